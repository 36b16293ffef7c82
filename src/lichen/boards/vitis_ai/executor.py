"""Run a codec with its transforms on a DPU: the executor that `lichen.codec` is given.

The same code drives the DPU of a board (`worker.py` over VART), its bit-accurate emulation and ONNX
Runtime: each is a `Device`, which runs networks on int8 tensors. A compiled network has one size;
larger pictures are run in tiles that overlap by as much as the network looks around, so that the
result is that of the whole picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from lichen.boards.vitis_ai import dpu
from lichen.boards.vitis_ai.cut import HIGH_SHIFT, Cut, Source, cut
from lichen.boards.vitis_ai.network import Network
from lichen.errors import DeviceError, ModelError
from lichen.executors import NO_VECTORS, Executor, best
from lichen.model import Model
from lichen.program import Program
from lichen.program.arithmetic import round_shift, saturate

Int8 = NDArray[np.int8]
LATENT_LINES = 16  # of the picture per row of y, in models with a hyperprior
Linear = Literal["arm", "dpu"]
Size = tuple[int, int]  # lines and columns of a picture


class Device(Protocol):
    """What runs quantised networks.

    tile: the size of picture that networks are compiled for; None: any.
    """

    name: str
    tile: Size | None

    def fix(self, network: str, tensor: str) -> int:
        """Give the fix position of an input or output."""
        ...

    def run(self, network: str, inputs: Mapping[str, Int8]) -> dict[str, Int8]:
        """Run a network on int8 (C, H, W). Raises DeviceError."""
        ...


class EmulatedDpu:
    """The DPU's arithmetic in NumPy, exact: `dpu.py`."""

    name = "dpu-emulated"

    def __init__(self, networks: Mapping[str, dpu.Quantized], tile: Size | None = None) -> None:
        self.networks, self.tile = networks, tile

    def fix(self, network: str, tensor: str) -> int:
        return self.networks[network].fixes[tensor]

    def run(self, network: str, inputs: Mapping[str, Int8]) -> dict[str, Int8]:
        return dpu.run(self.networks[network], inputs)


@dataclass(frozen=True, eq=False)
class Parts:
    """The transforms of a model, cut. by_name: g_a and g_s."""

    model: Model
    by_name: Mapping[str, Cut]

    @property
    def networks(self) -> dict[str, Network]:
        """All networks by name."""
        return {n.name: n for part in self.by_name.values() for n in part.networks}


def parts_of(model: Model, linear: Linear = "arm") -> Parts:
    """Cut the transforms of a model. Raises LichenError where the DPU refuses a layer.

    linear: where the decoder's linear path in 16 bits runs: on the Arm cores, exact, or in two
    halves on the DPU. The encoder's runs on the Arm cores: docs/vitis-ai.md has the measurements.
    """
    if model.network is not None:
        raise ModelError(
            f"{model.name} runs in float (docs/decisions/0004-float-models.md): attention and "
            "LayerNorm have no place on the DPU; export a model that runs in integers"
        )
    latents = model.reduction if model.order == "factorised" else LATENT_LINES
    found = Parts(
        model,
        {
            "g_a": cut(model.programs["g_a"], 1, model.name),
            "g_s": cut(model.programs["g_s"], latents, model.name, linear == "dpu"),
        },
    )
    if not all(part.networks for part in found.by_name.values()):
        raise ModelError(
            f"{model.name} has nothing for the DPU to do: its transforms are linear, in 16 bits"
        )
    return found


@dataclass(frozen=True, eq=False)
class Prepared:
    """What the host has made. values: by tensor. feeds: integers and their exponent."""

    values: Mapping[str, NDArray[Any]]
    feeds: Mapping[str, tuple[NDArray[Any], int]]


def on_host(
    host: Executor,
    program: Program,
    values: Mapping[str, NDArray[Any]],
    vectors: Mapping[str, NDArray[Any]],
) -> dict[str, NDArray[Any]]:
    """Run the host's part of a Program."""
    if not program.ops:
        return {x.name: values[x.name] for x in program.outputs}
    given = {x.name: values[x.name] for x in program.inputs}
    return host.run(program, given, {v.name: vectors[v.name] for v in program.vectors})


def prepare(
    part: Cut,
    host: Executor,
    inputs: Mapping[str, NDArray[Any]],
    vectors: Mapping[str, NDArray[Any]],
) -> Prepared:
    """Do the host's work before the DPU."""
    values = dict(inputs) | on_host(host, part.before, inputs, vectors)
    feeds = {}
    for network in part.networks:
        for feed in network.feeds:
            source = part.sources[feed.name]
            x, exponent = halves(values[source.tensor], source)
            if feed.margin:
                edge = (feed.margin, feed.margin)
                x = np.pad(x, ((0, 0), edge, edge), constant_values=source.fill)
            feeds[feed.name] = x, exponent
    return Prepared(values, feeds)


class DpuExecutor:
    """An executor of Programs: g_a and g_s on a device, everything else on the host, exact."""

    def __init__(self, parts: Parts, device: Device, host: Executor | None = None) -> None:
        self.parts, self.device = parts, device
        self.host = best() if host is None else host
        self.name = device.name

    def run(
        self,
        program: Program,
        inputs: Mapping[str, NDArray[Any]],
        vectors: Mapping[str, NDArray[Any]] = NO_VECTORS,
    ) -> dict[str, NDArray[Any]]:
        """Run a Program; see `lichen.executors.Executor`. g_a and g_s are near it, not equal."""
        part = self.parts.by_name.get(program.name)
        if part is None:
            return self.host.run(program, inputs, vectors)
        if part.program is not program:
            raise DeviceError(f"{program.name} is not the one that was cut for {self.name}")
        prepared = prepare(part, self.host, inputs, vectors)
        values = dict(prepared.values)
        for network in part.networks:
            feeds = {
                feed.name: to_int8(
                    *prepared.feeds[feed.name], self.device.fix(network.name, feed.name)
                )
                for feed in network.feeds
            }
            values |= self._results(network, part, tiled(self.device, network, feeds))
        return on_host(self.host, part.after, values, vectors)

    def _results(
        self, network: Network, part: Cut, outputs: Mapping[str, Int8]
    ) -> dict[str, NDArray[Any]]:
        """Bring results to the exponents and types that the host's Program reads."""
        types = {x.name: x.dtype for x in part.after.inputs}
        found = {}
        for name, x in outputs.items():
            fix, exponent = self.device.fix(network.name, name), part.results[name]
            wide = x.astype(np.int64) << max(0, exponent - fix)
            found[name] = saturate(round_shift(wide, max(0, fix - exponent)), types[name])
        return found


def halves(x: NDArray[Any], source: Source) -> tuple[NDArray[Any], int]:
    """Give the part of a tensor that a feed carries, and its exponent."""
    if source.part == "whole":
        return x, source.exponent
    x = x.astype(np.int32)
    high = (x + (1 << (HIGH_SHIFT - 1))) >> HIGH_SHIFT
    if source.part == "high":
        return high, source.exponent - HIGH_SHIFT
    return x - (high << HIGH_SHIFT), source.exponent


def to_int8(x: NDArray[Any], exponent: int, fix: int) -> Int8:
    """Change q * 2**-exponent to a fix position: halves up, saturated, as VART copies do."""
    if exponent == fix and x.dtype == np.int8:
        return x
    exact = dpu.round_half_up(x.astype(np.int64), exponent - fix)
    found: Int8 = np.clip(exact, -128, 127).astype(np.int8)
    return found


def tiled(device: Device, network: Network, feeds: Mapping[str, Int8]) -> dict[str, Int8]:
    """Run a network over a picture of any size on a device of one size, or of any."""
    if device.tile is None:
        return device.run(network.name, feeds)
    reductions = network.reductions()
    coarsest = max(int(r) for r in reductions.values())
    first = network.feeds[0]
    lines, columns = ((n - 2 * first.margin) * first.reduction for n in feeds[first.name].shape[1:])
    found: dict[str, Int8] = {}
    spans = [
        list(places(length, tile, network.reach(), coarsest))
        for length, tile in zip((lines, columns), device.tile, strict=True)
    ]
    for (y, top, bottom), (x, left, right) in product(*spans):
        given = {}
        for feed in network.feeds:
            starts = y // feed.reduction, x // feed.reduction
            sizes = [t // feed.reduction + 2 * feed.margin for t in device.tile]
            given[feed.name] = window(feeds[feed.name], starts, sizes)
        for name, result in device.run(network.name, given).items():
            grid = reductions[name]
            if name not in found:
                shape = len(result), int(lines / grid), int(columns / grid)
                found[name] = np.zeros(shape, np.int8)
            a, b, c, d = (int(n / grid) for n in (top, bottom, left, right))
            rows, cols = int(y / grid), int(x / grid)
            found[name][:, a:b, c:d] = result[:, a - rows : b - rows, c - cols : d - cols]
    return found


def places(length: int, tile: int, reach: int, step: int) -> Iterator[tuple[int, int, int]]:
    """Give where tiles start and from where to where each one's results are good, in lines.

    Starts are multiples of `step`. A picture that is smaller than a tile has one.
    """
    if length <= tile:
        yield 0, 0, length
        return
    margin = -(-reach // step) * step
    good = 0  # lines that are done
    start = 0
    while good < length:
        start = min(max(0, good - margin), length - tile)
        end = length if start + tile >= length else start + tile - margin
        if end <= good:
            raise DeviceError(
                f"a tile of {tile} lines is too small: the network looks {reach} lines around on "
                f"each side; export with --tile of more than {2 * margin + step}"
            )
        yield start, good, end
        good = end


def window(x: Int8, starts: tuple[int, int], sizes: list[int]) -> Int8:
    """Cut a window out; where the tensor ends before it does, the last row and column repeat."""
    part = x[:, starts[0] : starts[0] + sizes[0], starts[1] : starts[1] + sizes[1]]
    missing = [(0, size - have) for size, have in zip(sizes, part.shape[1:], strict=True)]
    if any(end for _, end in missing):
        part = np.pad(part, [(0, 0), *missing], mode="edge")
    return np.ascontiguousarray(part)
