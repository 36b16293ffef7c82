"""Codec: the two cores, from pixels to the `S` chunks of a stream and back.

Encoder    pixels -[Analysis]-> z, index, symbols -[EntropyEncoder]-> bytes
Decoder    bytes -[EntropyDecoder]-> z -[Synthesis]-> index -[EntropyDecoder]-> symbols
                                                           -[Synthesis]-> pixels
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from amaranth.hdl import Array, Cat, Const, Module, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from numpy.typing import NDArray

from lichen.entropy.tables import Tables
from lichen.errors import ModelError
from lichen.model import Model
from lichen.rtl import rans_tables
from lichen.rtl.chunks import BYTES, STRIPE_BITS, Framing
from lichen.rtl.convolution import Face
from lichen.rtl.delay import Delay
from lichen.rtl.entropy_decoder import EntropyDecoder, decoder_memories
from lichen.rtl.entropy_encoder import EntropyEncoder, Room, encoder_memories
from lichen.rtl.fold import Coder, Memory, Placement, Plan, Resources, delay_word
from lichen.rtl.graph import Tensor
from lichen.rtl.lanes import Relane, connect, sliced
from lichen.rtl.load import blocks
from lichen.rtl.pixels import Analysis, Synthesis
from lichen.rtl.rans_decoder import Status
from lichen.rtl.stripes import StripeEnds

BITS_PER_PIXEL = 4.0  # of a stripe, at most
CODER = "entropy coder"  # its name among the stages of a placement
Z_AHEAD = "z ahead"  # the role of the memory where z waits for the coder
# What it and the border take beside memories, by Yosys (docs/accelerator.md).
CODER_LOGIC = {
    "encoder": Resources(8, lut=3400, ff=5000),
    "decoder": Resources(2, lut=3000, ff=3600),
}


Contents = list[tuple[int, bytes]]  # numbers of memories and what to load into them


@dataclass(frozen=True)
class Substream:
    """One of the two substreams of a stripe: its tables and the values of a unit.

    levels: sets of tables, of which a core holds the one that its quality uses.
    """

    levels: tuple[Tables, ...]
    table_of_channel: tuple[int, ...]  # empty: the index says it
    channels: int
    per_unit: int


def substreams(model: Model, plan: Plan) -> tuple[Substream, Substream]:
    """Give those of z and y. Raises ModelError where the tables of z are not side by side."""
    first = int(model.z_tables.min())
    if first == 0:
        raise ModelError(f"model {model.name}: the tables of z must follow those of y")
    rows = np.unique(model.z_tables.reshape(-1, model.z_channels), axis=0)
    orders = {tuple((row - row.min()).tolist()) for row in rows}
    if len(orders) > 1:
        raise ModelError(
            f"model {model.name}: at every quality the tables of z must have the same order"
        )
    y = rans_tables.subset(model.tables, 0, first)
    tensor = _index(plan)
    m = tensor.channels
    return (
        Substream(tuple(_neighbours(model, row) for row in rows), *orders, *[model.z_channels] * 2),
        Substream((y,), (), m, m * tensor.scale**2),
    )


def _neighbours(model: Model, numbers: NDArray[np.uint16]) -> Tables:
    """Give the set of tables from the first to the last of these."""
    first, last = int(numbers.min()), int(numbers.max())
    return rans_tables.subset(model.tables, first, last - first + 1)


def _index(plan: Plan) -> Tensor:
    return next(tensor for tensor in plan.graph.outputs if tensor.name == "h_s.index")


def room_for(plan: Plan, streams: tuple[Substream, Substream], stripe: int, bits: float) -> Room:
    """Give the buffers of a stripe of `stripe` units of height and `bits` per pixel at most."""
    units = stripe * plan.units[1]
    reduction = max(tensor.scale for tensor in (*plan.graph.inputs, *plan.graph.outputs))
    words = int(units * reduction**2 * bits / 16) + 16
    z, y = (units * part.per_unit for part in streams)
    return Room(z, y, max(64, words // 4), words)


def stripes_held(plan: Plan, stripe: int) -> int:
    """Stripes whose y a decoder holds: the one that is decoded, and those whose z it wants."""
    rows_below = math.ceil(plan.skew.lag_rows["h_s.index"]) - 1
    return 1 + -(-rows_below // stripe)


@dataclass(frozen=True)
class Sizes:
    """Sizes of the entropy coder of a core: shapes of the tables of z and y, and its buffers.

    stripes: whose y a decoder holds. ahead: word and depth of the delay where an encoder's z waits.
    """

    shapes: tuple[Any, Any]
    room: Room
    stripes: int = 0
    ahead: tuple[int, int] = (1, 1)


def sizes_of(model: Model, plan: Plan, kind: str, stripe: int, bits: float) -> Sizes:
    """Give the sizes of the coder of a core; kind: "encoder" or "decoder"."""
    streams = substreams(model, plan)
    if kind == "encoder":
        z, y = (rans_tables.encoder_shape(*part.levels) for part in streams)
        room = room_for(plan, streams, stripe, bits)
        word = delay_word(streams[0].channels, 8, 1)
        values = z_rows_ahead(plan, room, stripe) * plan.units[1] * streams[0].per_unit
        return Sizes((z, y), room, ahead=(word, math.ceil(values / word)))
    rows = (max(map(rans_tables.rows_for, part.levels)) for part in streams)
    shapes = [rans_tables.decoder_shape(n, *part.levels) for part, n in zip(streams, rows)]
    held = stripes_held(plan, stripe)
    return Sizes((shapes[0], shapes[1]), room_for(plan, streams, stripe, bits), stripes=held)


def coding_cycles(room: Room) -> int:
    """Give the cycles from a stripe's last symbol of y to its first byte: EntropyEncoder's pace."""
    return room.y_symbols * 3 // 2


def z_rows_ahead(plan: Plan, room: Room, stripe: int) -> float:
    """Give the rows of units of z that an encoder keeps in front of its coder.

    z leaves long before the y of its stripe, and a chunk begins with z but when y is coded. The
    coder holds two stripes of z; what follows must not wait, for the hyper-synthesis reads it, too.
    """
    lines, row = plan.lag_lines, plan.reduction
    coding = coding_cycles(room) * plan.units[0] * row / plan.cycles
    first_byte = max(lines.values()) + (stripe - 1) * row + coding
    third_stripe = lines["h_a.z"] - row + 2 * stripe * row
    return max(0.0, first_byte - third_stripe) / row + 1  # one for chunks that take their time


def coder(
    model: Model, plan: Plan, kind: str, stripe: int = 1, bits: float = BITS_PER_PIXEL
) -> Coder:
    """Give what the entropy coder of a core takes; kind: "encoder" or "decoder"."""
    sizes = sizes_of(model, plan, kind, stripe, bits)
    if kind == "encoder":
        word, depth = sizes.ahead
        found = encoder_memories(*sizes.shapes, sizes.room) | {Z_AHEAD: (8 * word, depth)}
    else:
        found = decoder_memories(*sizes.shapes, sizes.room, sizes.stripes)
    # A decoder's rows are addressed by states that are still being put together.
    memories = tuple(
        Memory(CODER, role, *size, luts=not role.endswith("rows")) for role, size in found.items()
    )
    cycles = coding_cycles(sizes.room) if kind == "encoder" else 0
    return Coder(memories, CODER_LOGIC[kind], stripe * plan.reduction, cycles)


class _Core(wiring.Component):
    """What both cores have: a network of pixels, and the settings of a picture.

    stripe: units of height in a stripe, up to the built one; stripes: of the picture. The other
    settings are those of `pixels.py`. All stay during pictures and change in reset only.
    """

    streams: tuple[Substream, Substream]
    shapes: tuple[Any, Any]  # of the memories of their tables
    first_memory: int  # of the entropy coder: two of z, two of y
    pack: Callable[..., tuple[bytes, bytes]]  # tables, shape -> what these memories hold

    def _network(self) -> Any:
        raise NotImplementedError

    def contents(self, model: Model, position: int) -> NDArray[np.uint32]:
        """Give the words of `load` for a model at a quality position."""
        words = self._network().contents(model.gains(position))
        y = self.pack(self.streams[1].levels[0], self.shapes[1])
        memories = [*self.z_contents(model, position), *enumerate(y, self.first_memory + 2)]
        return np.concatenate([words, blocks(memories)])

    def z_contents(self, model: Model, position: int) -> Contents:
        """Give those memories of the coder that depend on the quality: the tables of z."""
        tables = _neighbours(model, model.tables_at(position))
        return list(enumerate(self.pack(tables, self.shapes[0]), self.first_memory))

    def _settings(self, inner: wiring.Component, keep: Mapping[str, Any]) -> dict[str, Any]:
        ports = {n: v for n, v in inner.signature.members.items() if v.is_port or n == "load"}
        for pair in inner.loops:  # type: ignore[attr-defined]
            ports |= {name: inner.signature.members[name] for name in pair}
        return {**ports, "stripe": In(STRIPE_BITS), "stripes": In(STRIPE_BITS), **keep}

    def _join(self, m: Module, inner: wiring.Component, ports: Mapping[str, Any]) -> None:
        for name, member in inner.signature.members.items():
            if name not in ports:
                continue
            mine, its = getattr(self, name), getattr(inner, name)
            if member.is_port:
                m.d.comb += its.eq(mine)
            elif member.flow == wiring.In:
                connect(m, mine, its)
            else:
                connect(m, its, mine)


class Encoder(_Core):
    """The encoder core: a pixel per beat in, bytes of `S` chunks out.

    overflows: one bit per stripe, 1 where its substream was longer than `room`.

    Throughput: a picture per `plan.cycles`. Latency: see docs/accelerator.md.
    """

    pack = staticmethod(rans_tables.encoder_contents)

    def __init__(
        self, model: Model, plan: Plan, *, stripe: int = 1,
        bits_per_pixel: float = BITS_PER_PIXEL,
        placement: Placement | None = None, face: Face = "plain",
    ) -> None:  # fmt: skip
        self.plan = plan
        self.analysis = Analysis(plan, placement=placement, face=face)
        self.loops = self.analysis.loops
        self.streams = substreams(model, plan)
        self.first_memory = self.analysis.network.memories
        sizes = sizes_of(model, plan, "encoder", stripe, bits_per_pixel)
        self.shapes = sizes.shapes
        homes = placement.of(CODER) if placement else {}
        self.z_ahead = Delay(8, 1, *sizes.ahead, homes.get(Z_AHEAD))
        self.entropy = EntropyEncoder(
            *sizes.shapes, sizes.room, self.analysis.network.bus, self.first_memory, homes
        )
        ports = {"pixels": self.analysis.signature.members["pixels"]}
        ports |= {"bytes": Out(BYTES), "overflows": Out(stream.Signature(1))}
        self.ports = self._settings(self.analysis, ports)
        super().__init__(self.ports)

    def _network(self) -> Any:
        return self.analysis.network

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.analysis = analysis = self.analysis
        m.submodules.entropy = entropy = self.entropy
        self._join(m, analysis, self.ports)
        connect(m, entropy.bytes, self.bytes)
        connect(m, entropy.overflows, self.overflows)
        m.d.comb += entropy.stripes.eq(self.stripes)
        lanes = self.plan.lanes
        z_part, y_part = self.streams
        units = (self.unit_rows, self.unit_columns, self.stripe)

        m.submodules.z_one = z_one = Relane(8, lanes, 1)
        m.submodules.z_ahead = z = self.z_ahead
        connect(m, analysis.h_a_z, z_one.input)
        connect(m, z_one.output, z.input)
        z_ends = StripeEnds(m, "z", z_part.per_unit, *units)
        table = channel_table(m, "z", z_part, z_ends.step)
        m.d.comb += [
            entropy.z.valid.eq(z.output.valid),
            z.output.ready.eq(entropy.z.ready),
            z_ends.step.eq(z.output.valid & entropy.z.ready),
            entropy.z.payload.eq(
                Cat(_extended(z.output.payload, 8, 16), _cut(table, self.shapes[0].tables),
                    z_ends.last)
            ),
        ]  # fmt: skip

        m.submodules.symbol_one = symbol = Relane(16, lanes, 1)
        m.submodules.index_one = index = Relane(8, lanes, 1)
        connect(m, analysis.quantize_symbols, symbol.input)
        connect(m, analysis.h_s_index, index.input)
        y_ends = StripeEnds(m, "y", y_part.per_unit, *units)
        both = symbol.output.valid & index.output.valid
        m.d.comb += [
            entropy.y.valid.eq(both),
            symbol.output.ready.eq(both & entropy.y.ready),
            index.output.ready.eq(both & entropy.y.ready),
            y_ends.step.eq(both & entropy.y.ready),
            entropy.y.payload.eq(
                Cat(symbol.output.payload, _cut(index.output.payload, self.shapes[1].tables),
                    y_ends.last)
            ),
        ]  # fmt: skip
        return m


class Decoder(_Core):
    """The decoder core: the bytes of chunks in, a pixel per beat out.

    framings: one per picture; z_statuses, y_statuses: one per stripe; what is not OK was concealed
    by zeros. Whatever the bytes are, every picture has all of its pixels.

    Throughput: a picture per `plan.cycles`. Latency: see docs/accelerator.md.
    """

    pack = staticmethod(rans_tables.decoder_contents)

    def __init__(
        self, model: Model, plan: Plan, *, stripe: int = 1,
        bits_per_pixel: float = BITS_PER_PIXEL,
        placement: Placement | None = None, face: Face = "plain",
    ) -> None:  # fmt: skip
        self.plan = plan
        self.synthesis = Synthesis(plan, placement=placement, face=face)
        self.loops = self.synthesis.loops
        self.streams = substreams(model, plan)
        self.first_memory = self.synthesis.network.memories
        sizes = sizes_of(model, plan, "decoder", stripe, bits_per_pixel)
        self.shapes = sizes.shapes
        self.entropy = EntropyDecoder(
            *sizes.shapes, sizes.room, self.synthesis.network.bus, self.first_memory,
            sizes.stripes, placement.of(CODER) if placement else None,
        )  # fmt: skip
        ports = {
            "pixels": self.synthesis.signature.members["pixels"],
            "bytes": In(BYTES),
            "framings": Out(stream.Signature(Framing)),
            "z_statuses": Out(stream.Signature(Status)),
            "y_statuses": Out(stream.Signature(Status)),
        }
        self.ports = self._settings(self.synthesis, ports)
        super().__init__(self.ports)

    def _network(self) -> Any:
        return self.synthesis.network

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.synthesis = synthesis = self.synthesis
        m.submodules.entropy = entropy = self.entropy
        self._join(m, synthesis, self.ports)
        connect(m, self.bytes, entropy.bytes)
        for name in ("framings", "z_statuses", "y_statuses"):
            connect(m, getattr(entropy, name), getattr(self, name))
        m.d.comb += entropy.stripes.eq(self.stripes)
        lanes = self.plan.lanes
        z_part, y_part = self.streams
        units = (self.unit_rows, self.unit_columns, self.stripe)

        # The table of every value of z is known beforehand; what is not there yet waits for bytes.
        z_ends = StripeEnds(m, "z", z_part.per_unit, *units)
        table = channel_table(m, "z", z_part, z_ends.step)
        ready = Signal()  # the length of a row is known two cycles after reset
        settled = Signal()
        m.d.sync += [settled.eq(1), ready.eq(settled)]
        m.d.comb += [
            entropy.z_indices.valid.eq(ready),
            z_ends.step.eq(ready & entropy.z_indices.ready),
            entropy.z_indices.payload.eq(Cat(_cut(table, self.shapes[0].tables), z_ends.last)),
        ]
        m.submodules.z_lanes = z = Relane(8, 1, lanes)
        sliced(m, "z_symbols", entropy.z, z.input)
        connect(m, z.output, synthesis.h_s_z)

        m.submodules.index_one = index = Relane(8, lanes, 1)
        connect(m, synthesis.h_s_index, index.input)
        y_ends = StripeEnds(m, "y", y_part.per_unit, *units)
        m.d.comb += [
            entropy.y_indices.valid.eq(index.output.valid),
            index.output.ready.eq(entropy.y_indices.ready),
            y_ends.step.eq(index.output.valid & entropy.y_indices.ready),
            entropy.y_indices.payload.eq(
                Cat(_cut(index.output.payload, self.shapes[1].tables), y_ends.last)
            ),
        ]
        m.submodules.symbol_lanes = symbol = Relane(16, 1, lanes)
        sliced(m, "y_symbols", entropy.y, symbol.input)
        connect(m, symbol.output, synthesis.g_s_symbols)
        return m


def channel_table(m: Module, name: str, part: Substream, step: Value) -> Value:
    """Count the channels of a position; give the table of the present one."""
    channel = Signal(range(max(2, part.channels)), name=f"{name}_channel")
    with m.If(step):
        m.d.sync += channel.eq(channel + 1)
        with m.If(channel == part.channels - 1):
            m.d.sync += channel.eq(0)
    if part.table_of_channel == tuple(range(part.channels)):
        return channel
    bits = max(part.table_of_channel).bit_length()
    return Array(Const(number, max(1, bits)) for number in part.table_of_channel)[channel]


def _cut(value: Value, tables: int) -> Value:
    """Bring a table number to the bits that its layout has."""
    bits = max(1, (max(2, tables) - 1).bit_length())
    return Cat(value, Const(0, bits))[:bits]


def _extended(value: Value, bits: int, to: int) -> Value:
    """Repeat the sign bit."""
    return Cat(value, value[bits - 1].replicate(to - bits))
