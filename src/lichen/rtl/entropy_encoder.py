"""Entropy encoder: the symbols of z and y in, the `S` chunks of the stream out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from lichen.rtl.chunks import BYTES, STRIPE_BITS, ChunkWriter
from lichen.rtl.lanes import connect, sliced
from lichen.rtl.leaf import Home, LoadBus
from lichen.rtl.rans_encoder import RansEncoder, rans_memories
from lichen.rtl.rans_tables import EncoderShape
from lichen.rtl.stripe_buffer import sequence
from lichen.rtl.symbol_steps import symbol_layout

Z_LANES, Y_LANES = 1, 4  # docs/stream.md 2


@dataclass(frozen=True)
class Room:
    """What the buffers of an entropy coder hold of one stripe: symbols, and 16-bit words."""

    z_symbols: int
    y_symbols: int
    z_words: int
    y_words: int


def encoder_memories(
    z_shape: EncoderShape, y_shape: EncoderShape, room: Room
) -> dict[str, tuple[int, int]]:
    """Give width and depth of the large memories of an EntropyEncoder, by their homes' names."""
    z = rans_memories(z_shape, room.z_symbols, room.z_words)
    y = rans_memories(y_shape, room.y_symbols, room.y_words)
    return {f"z {role}": size for role, size in z.items()} | {
        f"y {role}": size for role, size in y.items()
    }


def named(homes: Mapping[str, Home] | None, of: str) -> dict[str, Home]:
    """Take the homes of one substream's memories out of those of both: "y words" -> "words"."""
    return {
        name.removeprefix(f"{of} "): home
        for name, home in (homes or {}).items()
        if name.startswith(f"{of} ")
    }


class EntropyEncoder(wiring.Component):
    """Code the symbols of each stripe into a chunk.

    z, y: symbols with their tables (of the z tables and the y tables, each counted from 0), `last`
    at the end of a stripe. stripes: of the picture. Load bus: memories memory .. memory + 3, which
    are the descriptors and entries of z, then of y.

    Throughput: 2 symbols of y per 3 cycles, one of z per 6, a byte per cycle; all at once. Latency
    to the first byte: a stripe in, the same coded, and about 50 cycles.
    """

    MEMORIES = 4

    def __init__(
        self,
        z_shape: EncoderShape,
        y_shape: EncoderShape,
        room: Room,
        bus: LoadBus,
        memory: int,
        homes: Mapping[str, Home] | None = None,
    ) -> None:
        self.z_rans = RansEncoder(
            z_shape, Z_LANES, room.z_symbols, room.z_words, bus, memory, memory + 1,
            named(homes, "z"),
        )  # fmt: skip
        self.y_rans = RansEncoder(
            y_shape, Y_LANES, room.y_symbols, room.y_words, bus, memory + 2, memory + 3,
            named(homes, "y"),
        )  # fmt: skip
        self.writer = ChunkWriter((self.z_rans.count_layout, self.y_rans.count_layout))
        super().__init__(
            {
                "z": In(sequence(symbol_layout(z_shape.tables).size)),
                "y": In(sequence(symbol_layout(y_shape.tables).size)),
                "stripes": In(STRIPE_BITS),
                "bytes": Out(BYTES),
                "overflows": Out(stream.Signature(1)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.z_rans, m.submodules.y_rans = self.z_rans, self.y_rans
        m.submodules.writer = writer = self.writer
        # Whole paths of the network end here, and the writer decides late what it takes.
        sliced(m, "z_symbols", self.z, self.z_rans.symbols)
        sliced(m, "y_symbols", self.y, self.y_rans.symbols)
        sliced(m, "z_words", self.z_rans.words, writer.z_words)
        connect(m, self.z_rans.counts, writer.z_counts)
        sliced(m, "y_words", self.y_rans.words, writer.y_words)
        connect(m, self.y_rans.counts, writer.y_counts)
        connect(m, writer.bytes, self.bytes)
        connect(m, writer.overflows, self.overflows)
        m.d.comb += writer.stripes.eq(self.stripes)
        return m
