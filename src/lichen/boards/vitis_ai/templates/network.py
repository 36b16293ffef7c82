"""The networks for the DPU as PyTorch modules: convolutions, ReLUs and additions, in float.

networks/NAME/network.json lists the layers, networks/NAME/weights.npz holds their parameters. Needs
PyTorch and NumPy only; runs from Python 3.7 on, as in AMD's container.
"""

import json
import os

import numpy
import torch
from torch import nn

HERE = os.path.dirname(os.path.abspath(__file__))


class Network(nn.Module):
    """One network: takes tensors (B, C, H, W) in the order of `inputs`, gives `outputs`."""

    def __init__(self, description):
        super().__init__()
        if description["format"] != 1:
            raise ValueError("network.json has format {format}, expected 1".format(**description))
        self.inputs = [entry["name"] for entry in description["inputs"]]
        self.layers = description["layers"]
        self.outputs = description["outputs"]
        for layer in self.layers:
            name, kind = attribute(layer["name"]), layer["kind"]
            if kind != "add":
                setattr(self, name, convolution(layer))
            if layer["relu"]:
                setattr(self, name + "_relu", nn.ReLU())

    def forward(self, *inputs):
        values = dict(zip(self.inputs, inputs))
        for layer in self.layers:
            name = attribute(layer["name"])
            given = [values[source] for source in layer["inputs"]]
            y = torch.add(*given) if layer["kind"] == "add" else getattr(self, name)(*given)
            values[layer["name"]] = getattr(self, name + "_relu")(y) if layer["relu"] else y
        results = tuple(values[name] for name in self.outputs)
        return results if len(results) > 1 else results[0]


def attribute(name):
    """A layer's name as an attribute of the module: without dots."""
    return name.replace(".", "_")


def convolution(layer):
    """Make the module of a convolution or transposed convolution, parameters not yet set."""
    shared = dict(kernel_size=tuple(layer["kernel"]), stride=layer["stride"])
    shared["padding"] = layer["padding"]
    channels = layer["in_channels"], layer["out_channels"]
    if layer["kind"] == "conv":
        return nn.Conv2d(*channels, groups=layer["groups"], **shared)
    if layer["kind"] == "deconv":
        return nn.ConvTranspose2d(*channels, **shared)
    raise ValueError("a layer is conv, deconv or add, not {!r}".format(layer["kind"]))


def describe(name):
    """Read networks/NAME/network.json."""
    with open(os.path.join(HERE, "networks", name, "network.json")) as file:
        return json.load(file)


def load(name):
    """Make the network of that name with its weights, ready to run."""
    model = Network(describe(name))
    parameters = numpy.load(os.path.join(HERE, "networks", name, "weights.npz"))
    state = {}
    for key in parameters.files:
        layer, which = key.rsplit(".", 1)
        state[attribute(layer) + "." + which] = torch.from_numpy(parameters[key])
    model.load_state_dict(state)
    return model.eval()


def names():
    """List the networks of the folder."""
    return sorted(os.listdir(os.path.join(HERE, "networks")))


def tile_inputs(description, tile):
    """Give the shape (1, C, H, W) of each input for a picture of tile = (lines, columns)."""
    return [
        (1, entry["channels"], *(n // entry["reduction"] + 2 * entry["margin"] for n in tile))
        for entry in description["inputs"]
    ]
