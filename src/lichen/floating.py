"""Float models: what a model file holds of a network that runs in float, and its steps by name.

Such a network has no Programs: its layers (GELU, softmax, LayerNorm) are not in the contract.
`codec.py` drives it like any other model, through steps with the names and the inputs that the
Programs of an integer model have; `lichen.neural` runs them. What comes out of a float step
depends on the machine: docs/decisions/0004-float-models.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from numpy.typing import NDArray

from lichen.program import DType, Input, Output, Program, Vector

ARITHMETIC = "float"
PREFIX = "network."  # of the arrays of a model file that are weights
SLICES_MAX = 256
FLOAT: DType = cast(DType, "f32")  # not a type of the contract: `check` refuses it


@dataclass(frozen=True, eq=False)
class Network:
    """The weights of a model of `lichen.models`, and how to make the module that they belong to.

    architecture, arguments: as `models.catalogue.build` takes them; arguments are JSON.
    state: the state dict.
    latent_channels, hyper_channels, slices: of y, of z, and of the channel-wise order.
    gain_exponents: the Model's gain and inverse_gain are these many powers of two too large.
    kmac_per_pixel: thousands of float multiply-accumulates, to encode and to decode.
    """

    architecture: str
    arguments: Mapping[str, Any]
    state: Mapping[str, NDArray[Any]]
    latent_channels: int
    hyper_channels: int
    slices: int
    gain_exponents: tuple[int, int]
    kmac_per_pixel: tuple[float, float]


@dataclass(frozen=True)
class FloatProgram(Program):
    """One step of a float model, in the shape of a Program without operations.

    Executors of integers refuse it with a ContractError.
    """

    network: Network


def programs_of(network: Network) -> dict[str, FloatProgram]:
    """Give the steps of a channel-wise float model, as `codec.py` names and feeds them."""
    m, width = network.latent_channels, network.latent_channels // network.slices

    def step(name: str, inputs: list[Input], outputs: list[str], *vectors: Vector) -> FloatProgram:
        results = tuple(Output(output, 0) for output in outputs)
        return FloatProgram(name, tuple(inputs), vectors, (), results, network)

    mean, symbols = Input("mean", width, FLOAT, 0), Input("symbols", width, "s16", 0)
    means, scales = Input("means", m, FLOAT, 0), Input("scales", m, FLOAT, 0)
    y, v = Input("y", m, FLOAT, 0), Input("v", m, FLOAT, 0)
    slices = [Input(f"y.{k}", width, FLOAT, 0) for k in range(network.slices)]
    steps = [
        step("g_a", [Input("x", 3, "s8", 7)], ["y"]),
        step("h_a", [y], ["v", "z"], Vector("gain", m)),
        step("h_s", [Input("z", network.hyper_channels, "s8", 0)], ["means", "scales"]),
    ]
    for k in range(network.slices):
        steps += [
            step(f"context.{k}", [means, scales, *slices[:k]], ["mean", "index"]),
            step(f"quantize.{k}", [v, mean], ["symbols"]),
            step(f"refine.{k}", [symbols, mean, means, *slices[:k]], [f"y.{k}"]),
        ]
    steps.append(step("g_s", slices, ["x"], Vector("inverse_gain", m)))
    return {program.name: program for program in steps}


def network_of(programs: Mapping[str, Program]) -> Network | None:
    """Give the network that these programs are steps of; none where they are integer Programs."""
    first = programs.get("g_a")
    return first.network if isinstance(first, FloatProgram) else None


def pack(network: Network) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Split a network into a JSON-able description and arrays, for a model file."""
    description = {
        "architecture": network.architecture,
        "arguments": dict(network.arguments),
        "latent_channels": network.latent_channels,
        "hyper_channels": network.hyper_channels,
        "slices": network.slices,
        "gain_exponents": list(network.gain_exponents),
        "kmac_per_pixel": list(network.kmac_per_pixel),
    }
    return description, {f"{PREFIX}{name}": array for name, array in network.state.items()}


def unpack(description: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Network:
    """Rebuild a network from what `pack` gave. Raises KeyError, TypeError and ValueError."""
    m, z, slices = (description[k] for k in ("latent_channels", "hyper_channels", "slices"))
    gain, inverse = description["gain_exponents"]
    bounds = ((m, 1, 65536), (z, 1, 65536), (slices, 1, SLICES_MAX), (gain, -64, 64))
    for value, low, high in (*bounds, (inverse, -64, 64)):
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"a number of the network must be {low}..{high}, not {value!r}")
    if m % slices:
        raise ValueError(f"{slices} slices must divide {m} latent channels evenly")
    encode, decode = description["kmac_per_pixel"]
    return Network(
        str(description["architecture"]),
        dict(description["arguments"]),
        {k.removeprefix(PREFIX): v for k, v in arrays.items() if k.startswith(PREFIX)},
        m,
        z,
        slices,
        (gain, inverse),
        (float(encode), float(decode)),
    )
