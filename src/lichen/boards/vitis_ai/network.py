"""Network: what one subgraph of the DPU computes, in float: convolutions, their ReLUs, additions.

A network is cut out of a Program (`cut.py`), written into the exported folder for PyTorch
(`to_folder`), quantised (`calibrate.py`), run as the DPU runs it (`dpu.py`) and written as QDQ
ONNX (`qdq.py`). Tensors are (C, H, W), batch 1. There are no other operations, because the DPU
takes these without a doubt and pixel shuffles, paddings and gains have exact forms as them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
Array = NDArray[Any]
FORMAT = 1


@dataclass(frozen=True)
class Feed:
    """An input of a network. reduction: lines of the picture per row of it.

    margin: rows and columns beyond the picture on each side, which the host fills.
    """

    name: str
    channels: int
    reduction: int
    margin: int = 0


@dataclass(frozen=True, eq=False)
class Conv:
    """Correlation, bias, and a ReLU where `relu` says so.

    weight: float32 (O, I / groups, kh, kw); groups: 1, or the number of channels (depthwise).
    padding: zeros on each of the four sides.
    """

    name: str
    input: str
    weight: Float
    bias: Float
    stride: int
    padding: int
    groups: int
    relu: bool


@dataclass(frozen=True, eq=False)
class Deconv:
    """Transposed convolution as torch's with output_padding 0. weight: float32 (I, O, kh, kw)."""

    name: str
    input: str
    weight: Float
    bias: Float
    stride: int
    padding: int
    relu: bool


@dataclass(frozen=True)
class Add:
    """Sum of two tensors, and a ReLU where `relu` says so."""

    name: str
    a: str
    b: str
    relu: bool


Weighted = Conv | Deconv
Node = Conv | Deconv | Add


@dataclass(frozen=True, eq=False)
class Network:
    """Nodes in the order in which they run. outputs: their names, in the order they are given."""

    name: str
    feeds: tuple[Feed, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]

    def sources(self, node: Node) -> tuple[str, ...]:
        """Name the tensors that a node reads."""
        return (node.a, node.b) if isinstance(node, Add) else (node.input,)

    def channels(self) -> dict[str, int]:
        """Count the channels of every tensor."""
        found = {feed.name: feed.channels for feed in self.feeds}
        for node in self.nodes:
            match node:
                case Conv():
                    found[node.name] = node.weight.shape[0]
                case Deconv():
                    found[node.name] = node.weight.shape[1]
                case Add():
                    found[node.name] = found[node.a]
        return found

    def reductions(self) -> dict[str, Fraction]:
        """Give the lines of the picture per row of every tensor."""
        found = {feed.name: Fraction(feed.reduction) for feed in self.feeds}
        for node in self.nodes:
            before = found[self.sources(node)[0]]
            match node:
                case Conv():
                    found[node.name] = before * node.stride
                case Deconv():
                    found[node.name] = before / node.stride
                case Add():
                    found[node.name] = before
        return found

    def reach(self) -> int:
        """Give the lines beyond a place of the picture that its results depend on: at most.

        What lies farther inside a tile than this is what the whole picture would give.
        """
        scale = self.reductions()
        margins = {feed.name: feed.margin for feed in self.feeds}
        reach = dict.fromkeys(margins, Fraction(0))
        for node in self.nodes:
            before = max(reach[name] for name in self.sources(node))
            if not isinstance(node, Add):
                before_it = node.padding + margins.get(node.input, 0)
                taps = max(before_it, max(node.weight.shape[2:]) - 1 - before_it)
                before += taps * scale[node.input if isinstance(node, Conv) else node.name]
            reach[node.name] = before
        return ceil(max(reach.values()))

    def macs_per_pixel(self) -> float:
        """Count products per pixel of the picture."""
        scale, total = self.reductions(), Fraction(0)
        for node in self.nodes:
            if not isinstance(node, Add):
                # each weight of a Conv serves every output position, of a Deconv every input one
                grid = scale[node.name if isinstance(node, Conv) else node.input]
                total += Fraction(node.weight.size) / grid**2
        return float(total)

    def digest(self) -> str:
        """Identify what it computes: 16 hexadecimal digits."""
        hasher = hashlib.sha256(json.dumps(describe(self), sort_keys=True).encode())
        for array in weights(self).values():
            hasher.update(np.ascontiguousarray(array, "<f4").tobytes())
        return hasher.hexdigest()[:16]


def describe(network: Network) -> dict[str, Any]:
    """Give everything but the weights as JSON holds it: what the exported `network.py` builds."""
    layers = []
    for node in network.nodes:
        entry: dict[str, Any] = {"name": node.name, "kind": type(node).__name__.lower()}
        entry |= {"inputs": list(network.sources(node)), "relu": node.relu}
        if not isinstance(node, Add):
            first, second, *kernel = node.weight.shape
            channels = (second * node.groups, first) if isinstance(node, Conv) else (first, second)
            entry |= {"in_channels": channels[0], "out_channels": channels[1]}
            entry |= {"kernel": kernel, "stride": node.stride, "padding": node.padding}
        if isinstance(node, Conv):
            entry["groups"] = node.groups
        layers.append(entry)
    inputs = [
        {"name": x.name, "channels": x.channels, "reduction": x.reduction, "margin": x.margin}
        for x in network.feeds
    ]
    return {"format": FORMAT, "name": network.name, "inputs": inputs, "layers": layers,
            "outputs": list(network.outputs)}  # fmt: skip


def weights(network: Network) -> dict[str, Float]:
    """Give weights and biases by name, "<layer>.weight" and "<layer>.bias"."""
    found = {}
    for node in network.nodes:
        if not isinstance(node, Add):
            found[f"{node.name}.weight"] = node.weight
            found[f"{node.name}.bias"] = node.bias
    return found


def float32(x: Any) -> Float:
    """Give an array in float32."""
    return np.asarray(x, np.float32)


def precision(weight: Array, axes: tuple[int, ...]) -> type[np.float32] | type[np.float64]:
    """Give the float that sums of products with int8 inputs are exact in, in any order.

    axes: of the weights that one output sums over. Float weights take float32.
    """
    if weight.dtype != np.int8:
        return np.float32
    largest = int(np.abs(weight.astype(np.int64)).sum(axes).max(initial=0)) * 128
    return np.float32 if largest < 2**24 else np.float64


def convolve(x: Array, weight: Array, stride: int, padding: int, groups: int = 1) -> Array:
    """Correlate (C, H, W) with (O, C / groups, kh, kw); exact where both are int8."""
    outputs, inputs, kh, kw = weight.shape
    kind = precision(weight, (1, 2, 3))
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding))).astype(kind)
    height, width = ((n - k) // stride + 1 for n, k in zip(x.shape[1:], (kh, kw), strict=True))
    total = np.zeros((outputs, height, width), kind)
    for dy in range(kh):
        for dx in range(kw):
            window = x[:, dy:, dx:][:, ::stride, ::stride][:, :height, :width]
            part: Array = weight[:, :, dy, dx].astype(kind)
            if groups == 1:
                flat: Array = window.reshape(inputs, -1)
                total += (part @ flat).reshape(total.shape)
            else:
                total += part[:, 0, None, None] * window
    return total


def deconvolve(x: Array, weight: Array, stride: int, padding: int) -> Array:
    """Transposed convolution of (C, H, W) by (C, O, kh, kw), output_padding 0; exact likewise."""
    inputs, outputs, kh, kw = weight.shape
    kind = precision(weight, (0, 2, 3))
    rows, columns = x.shape[1:]
    whole = np.zeros((outputs, (rows - 1) * stride + kh, (columns - 1) * stride + kw), kind)
    flat: Array = x.reshape(inputs, -1).astype(kind)
    for dy in range(kh):
        for dx in range(kw):
            part: Array = weight[:, :, dy, dx].T.astype(kind)
            phase = whole[:, dy::stride, dx::stride][:, :rows, :columns]
            phase += (part @ flat).reshape(outputs, rows, columns)
    end = -padding or None
    return whole[:, padding:end, padding:end]


def accumulate(node: Weighted, x: Array, weight: Array) -> Array:
    """Sum the products of a node with other weights of its shape, without its bias."""
    if isinstance(node, Conv):
        return convolve(x, weight, node.stride, node.padding, node.groups)
    return deconvolve(x, weight, node.stride, node.padding)


def run(
    network: Network,
    inputs: Mapping[str, Array],
    seen: Callable[[str, Float], None] = lambda name, value: None,
) -> dict[str, Float]:
    """Run in float. seen: called with each tensor, inputs too, as it is made."""
    values: dict[str, Float] = {}
    left = {name: 0 for name in network.channels()}
    for node in network.nodes:
        for name in network.sources(node):
            left[name] += 1
    for feed in network.feeds:
        values[feed.name] = np.asarray(inputs[feed.name], np.float32)
        seen(feed.name, values[feed.name])
    for node in network.nodes:
        if isinstance(node, Add):
            y = values[node.a] + values[node.b]
        else:
            y = float32(accumulate(node, values[node.input], node.weight))
            y += node.bias[:, None, None]
        values[node.name] = np.maximum(y, 0) if node.relu else y
        seen(node.name, values[node.name])
        for name in network.sources(node):
            left[name] -= 1
            if not left[name] and name not in network.outputs:
                del values[name]
    return {name: values[name] for name in network.outputs}
