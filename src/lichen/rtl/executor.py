"""Executor: Programs and substreams through simulated hardware, for the conformance vectors.

Each Program becomes a pipeline of its own (`core.Network`), built by Verilator for the size of its
inputs, rounded up, and kept in `simulate.cache_folder`. It is slow, seconds for a build: a check of
the hardware, not a way to run a codec.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import gcd
from typing import Any

import numpy as np
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In
from numpy.typing import NDArray

from lichen.entropy.tables import Tables
from lichen.errors import ContractError, DeviceError, ModelError, StreamError, UnsupportedError
from lichen.program import ops
from lichen.program.arithmetic import NUMPY_DTYPE
from lichen.program.check import check_inputs, infer_shapes
from lichen.program.check import tensors as known_tensors
from lichen.program.program import Program
from lichen.program.rewrite import subpixel
from lichen.rtl import fold, graph, rans_tables
from lichen.rtl.core import Network, from_beats, identifier, to_beats
from lichen.rtl.lanes import beat, connect
from lichen.rtl.leaf import LOAD_BITS, LoadBus
from lichen.rtl.load import Load, blocks
from lichen.rtl.rans_decoder import DEPTH, RansDecoder, Status
from lichen.rtl.rans_encoder import RansEncoder
from lichen.rtl.simulate import Simulation, verilator

Arrays = Mapping[str, NDArray[Any]]
BUDGETS = (100_000, 1_000_000, 10_000_000, 200_000_000)  # cycles per frame, the first that folds
LANES = 1  # values per beat: any number of channels is a multiple
KEPT = 16  # models in memory
PATIENCE = 2_000_000
CAPACITY, WORDS = 512, 2048  # symbols and words of a substream
ROWS = 1024  # of a decoder's search trees
NAME = "p"  # of every Program in hardware: those of vectors are no identifiers
WORD_END, WORD_BAD = 1 << 16, 3 << 16


@dataclass(frozen=True)
class _Built:
    program: Program
    network: Network
    simulation: Simulation


class RtlExecutor:
    """Run Programs on their own pipelines in simulation.

    A shuffle that stands alone gets an identity convolution beside it, for hardware merges the two;
    padding that no window reaches is left out. Raises DeviceError where Verilator is missing, and
    in `run` UnsupportedError where there is no hardware for a Program or the size of its inputs.
    """

    name = "rtl"

    def __init__(self) -> None:
        verilator()
        self._built: dict[tuple[int, tuple[int, ...], tuple[int, int]], _Built] = {}

    def run(
        self, program: Program, inputs: Arrays, vectors: Arrays | None = None
    ) -> dict[str, NDArray[Any]]:
        """Give the outputs by name, as `program.reference.run` does."""
        vectors = vectors or {}
        sizes = check_inputs(program, inputs, vectors)
        built, units = self._model(program, {x.name: sizes[x.name] for x in program.inputs})
        network, simulation = built.network, built.simulation
        simulation.run({"load": network.contents(vectors)}, {})
        simulation.set(unit_rows=units[0], unit_columns=units[1], bank=0)
        simulation.reset()  # sizes change in reset only
        result = simulation.run(
            {_port(x.name): to_beats(inputs[x.name], LANES) for x in program.inputs},
            {_port(y.name): int(np.prod(sizes[y.name])) // LANES for y in program.outputs},
            patience=PATIENCE,
        )
        known = known_tensors(program)
        return {
            y.name: from_beats(
                result.outputs[_port(y.name)],
                sizes[y.name],
                np.dtype(NUMPY_DTYPE[known[y.name].dtype]),
                LANES,
            )
            for y in program.outputs
        }

    def coder(self, tables: Tables, lanes: int) -> RtlCoder:
        """Give the entropy coder's cores, as `RtlCoder`."""
        return RtlCoder(tables, lanes)

    def _model(
        self, program: Program, shapes: Mapping[str, tuple[int, int, int]]
    ) -> tuple[_Built, tuple[int, int]]:
        """Give the model of a Program, and the units of inputs of these shapes."""
        changed = _exact_padding(_with_convolutions(program), shapes)
        plain, units = _graph(changed, shapes)
        room = (_room(units[0]), _room(units[1]))
        key = (id(program), tuple(tensor.scale for tensor in plain.inputs), room)
        if key not in self._built:
            try:
                plan = _fold(plain, room)
            except UnsupportedError:
                plan = _fold(_graph(_wider(changed), shapes)[0], room)
            network = Network(plan)
            simulation = Simulation(network, "program")
            while len(self._built) >= KEPT:
                del self._built[next(iter(self._built))]
            self._built[key] = _Built(program, network, simulation)  # the Program keeps its id
        return self._built[key], units


def _fold(plain: graph.Graph, units: tuple[int, int]) -> fold.Plan:
    """Fold for the first of `BUDGETS` that every stage can keep."""
    reduction = max(tensor.scale for tensor in (*plain.inputs, *plain.outputs))
    reason = ""
    for cycles in BUDGETS:
        target = fold.Target(units[1] * reduction, units[0] * reduction, 1.0, clock_hz=cycles)
        try:
            return fold.fold(plain, target, lanes=LANES)
        except ContractError as error:
            reason = str(error)
    raise UnsupportedError(reason)


def _graph(
    program: Program, shapes: Mapping[str, tuple[int, int, int]]
) -> tuple[graph.Graph, tuple[int, int]]:
    """Give the graph of a Program, and the units of inputs of these shapes."""
    first = shapes[program.inputs[0].name]
    reason = "inputs whose sizes are no whole multiples of one another"
    whole = gcd(*(n for shape in shapes.values() for n in shape[1:]))
    for scale in (n for n in range(1, whole + 1) if whole % n == 0):
        units = (first[1] // scale, first[2] // scale)
        scales = {name: shape[1] // units[0] for name, shape in shapes.items()}
        if any(
            (scales[name] * units[0], scales[name] * units[1]) != shape[1:]
            for name, shape in shapes.items()
        ):
            continue
        try:
            found = graph.build(
                [replace(program, name=NAME)],
                {},
                [f"{NAME}.{y.name}" for y in program.outputs],
                {f"{NAME}.{name}": n for name, n in scales.items()},
            )
        except ContractError as error:
            reason = str(error)
            continue
        written = {stage.output.name for stage in found.stages}
        if missing := [tensor.name for tensor in found.outputs if tensor.name not in written]:
            raise UnsupportedError(f"{', '.join(missing)}: an output that no stage writes")
        return found, units
    raise UnsupportedError(reason)


def _port(tensor: str) -> str:
    return identifier(f"{NAME}.{tensor}")


def _room(value: int) -> int:
    """Round up to few different sizes, for each is a model to build."""
    return max(4, 1 << (value - 1).bit_length())


def _identity(output: str, source: str, channels: int, dtype: ops.DType) -> ops.Conv:
    """Make a convolution that changes nothing."""
    weight = np.eye(channels, dtype=np.int8)[:, :, None, None]
    zeros = np.zeros(channels, np.int32)
    return ops.Conv(
        output, source, weight, zeros, zeros.astype(np.uint8), 1, (0, 0, 0, 0), 1, dtype
    )


def _with_convolutions(program: Program) -> Program:
    """Put an identity convolution beside a lone shuffle, take transposed ones for what they are."""
    known = known_tensors(program)
    given = {x.name for x in program.inputs}
    outputs = {y.name for y in program.outputs}
    changed: list[ops.Op] = []
    for op in program.ops:
        if isinstance(op, ops.TransposedConv):
            changed += subpixel(op)
        elif isinstance(op, ops.PixelShuffle) and op.input in given:
            tensor = known[op.input]
            inner = f"{op.input}.same"
            changed.append(_identity(inner, op.input, tensor.channels, tensor.dtype))
            changed.append(replace(op, input=inner))
        elif isinstance(op, ops.PixelUnshuffle) and op.output in outputs:
            tensor = known[op.output]
            inner = f"{op.output}.apart"
            changed.append(replace(op, output=inner))
            changed.append(_identity(op.output, inner, tensor.channels, tensor.dtype))
        else:
            changed.append(op)
    return replace(program, ops=tuple(changed))


def _wider(program: Program) -> Program:
    """Set kernels in a frame of zeros: a tile of too few products ends before its sums are out."""
    changed: list[ops.Op] = []
    for op in program.ops:
        if isinstance(op, ops.Conv):
            weight = np.pad(op.weight, ((0, 0), (0, 0), (1, 1), (1, 1)))
            top, left, bottom, right = (n + 1 for n in op.padding)
            op = replace(op, weight=weight, padding=(top, left, bottom, right))
        changed.append(op)
    return replace(program, ops=tuple(changed))


def _exact_padding(program: Program, shapes: Mapping[str, tuple[int, int, int]]) -> Program:
    """Leave out the padding of strided convolutions that no window reaches at this size."""
    sizes = {**shapes, **infer_shapes(program, dict(shapes))}

    def exact(op: ops.Op) -> ops.Op:
        if not isinstance(op, ops.Conv):
            return op
        top, left, bottom, right = op.padding
        ends = []
        for axis, first, last in ((1, top, bottom), (2, left, right)):
            reach = (sizes[op.output][axis] - 1) * op.stride + op.weight.shape[axis + 1]
            ends.append(min(last, max(0, reach - sizes[op.input][axis] - first)))
        return replace(op, padding=(top, left, *ends))

    return replace(program, ops=tuple(exact(op) for op in program.ops))


class _Loaded(wiring.Component):
    """A component with a load bus, and the stream that feeds the bus."""

    def __init__(self, inner: Any, bus: LoadBus) -> None:
        self.inner, self.bus = inner, bus
        super().__init__({"load": In(beat(LOAD_BITS)), **dict(inner.signature.members)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.load = load = Load(self.bus)
        m.submodules.inner = self.inner
        connect(m, self.load, load.input)
        for name, member in self.inner.signature.members.items():
            outer, inner = getattr(self, name), getattr(self.inner, name)
            connect(m, *((outer, inner) if member.flow == wiring.In else (inner, outer)))
        return m


class RtlCoder:
    """The rANS cores for one set of tables and a number of lanes, each built when it is used.

    `encode` and `decode` raise UnsupportedError where their core has no room or no lanes for these.
    """

    def __init__(self, tables: Tables, lanes: int) -> None:
        self.tables, self.lanes = tables, lanes
        self.number_bits = max(1, (max(2, len(tables)) - 1).bit_length())

    @cached_property
    def encoder(self) -> Simulation:
        if self.lanes > DEPTH or self.lanes & (self.lanes - 1):
            raise UnsupportedError(f"the encoder core has 1, 2 or 4 lanes, not {self.lanes}")
        try:
            shape = rans_tables.encoder_shape(self.tables)
            contents = rans_tables.encoder_contents(self.tables, shape)
        except ModelError as error:
            raise UnsupportedError(str(error)) from error
        bus = LoadBus()
        core = RansEncoder(shape, self.lanes, CAPACITY, WORDS, bus, 0, 1)
        return _loaded(core, bus, "rans_encoder", contents)

    @cached_property
    def decoder(self) -> Simulation:
        if self.lanes > DEPTH:
            raise UnsupportedError(f"the decoder core has up to {DEPTH} lanes, not {self.lanes}")
        shape = rans_tables.decoder_shape(ROWS, self.tables)
        try:
            contents = rans_tables.decoder_contents(self.tables, shape)
        except ModelError as error:
            raise UnsupportedError(str(error)) from error
        bus = LoadBus()
        return _loaded(RansDecoder(shape, self.lanes, bus, 0, 1), bus, "rans_decoder", contents)

    def encode(self, symbols: NDArray[np.int16], indices: NDArray[Any]) -> bytes:
        """Encode a substream: the words of the core, 16 bits each, first a run to count them."""
        given = (symbols.astype(np.int64) & 0xFFFF) | self._indices(indices).astype(np.int64) << 16
        words = int(self.encoder.run({"symbols": given}, {"counts": 1}).outputs["counts"][0])
        self.encoder.reset()
        result = self.encoder.run({"symbols": given}, {"words": words, "counts": 1})
        beats = result.outputs["words"]
        ends = np.flatnonzero(beats >> 16)
        if ends.tolist() != [words - 1]:
            raise DeviceError(f"the encoder core ends its {words} words at {ends.tolist()}")
        return (beats & 0xFFFF).astype("<u2").tobytes()

    def decode(self, data: bytes, indices: NDArray[Any]) -> NDArray[np.int16]:
        """Decode a substream. Raises StreamError where the core says that it is damaged."""
        words = np.frombuffer(data[: len(data) // 2 * 2], "<u2").astype(np.uint32)
        words = np.append(words, np.uint32(WORD_BAD if len(data) % 2 else WORD_END))
        result = self.decoder.run(
            {"indices": self._indices(indices), "words": words},
            {"symbols": len(indices), "statuses": 1},
        )
        status = Status(int(result.outputs["statuses"][0]))
        if status is not Status.OK:
            raise StreamError(f"the decoder core says {status.name}")
        return (result.outputs["symbols"] & 0xFFFF).astype(np.uint16).view(np.int16)

    def _indices(self, indices: NDArray[Any]) -> NDArray[np.uint32]:
        """Give table numbers with `last` on the last one."""
        beats = indices.astype(np.uint32)
        beats[-1] |= np.uint32(1 << self.number_bits)
        return beats


def _loaded(core: Any, bus: LoadBus, name: str, contents: Sequence[bytes]) -> Simulation:
    """Build a core and fill its tables."""
    simulation = Simulation(_Loaded(core, bus), name)
    simulation.run({"load": blocks(enumerate(contents))}, {})
    return simulation
