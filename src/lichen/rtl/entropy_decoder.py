"""Entropy decoder: the chunks of a stream in, the symbols of z and y out."""

from __future__ import annotations

from collections.abc import Mapping

from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from lichen.rtl.chunks import BYTES, STRIPE_BITS, WORD_BITS, ChunkParser, Framing
from lichen.rtl.entropy_encoder import Y_LANES, Z_LANES, Room
from lichen.rtl.lanes import connect
from lichen.rtl.leaf import Home, LoadBus
from lichen.rtl.rans_decoder import SYMBOL_BITS, RansDecoder, Status, index_layout
from lichen.rtl.rans_tables import DecoderShape
from lichen.rtl.stripe_buffer import sequence
from lichen.rtl.word_fifo import WordFifo, fifo_memory

Z_LOW, Z_HIGH = -128, 127  # docs/stream.md 2


def held_words(room: Room, stripes: int) -> int:
    """Give the words of y that are held: an end takes up to 4 places, beyond the parser's limit."""
    return stripes * (room.y_words + 4)


def decoder_memories(
    z_shape: DecoderShape, y_shape: DecoderShape, room: Room, stripes: int
) -> dict[str, tuple[int, int]]:
    """Give width and depth of the large memories of an EntropyDecoder, by their homes' names."""
    return {
        "z rows": (z_shape.row_bits, z_shape.rows),
        "y rows": (y_shape.row_bits, y_shape.rows),
        "y words": fifo_memory(WORD_BITS, held_words(room, stripes)),
    }


class EntropyDecoder(wiring.Component):
    """Decode the symbols of each stripe from its chunk.

    bytes: the chunks after the start of the stream. z_indices, y_indices: the table of each symbol
    (of the z tables and the y tables, each counted from 0), `last` at the end of a stripe. z, y:
    the symbols. framings: one per picture; z_statuses, y_statuses: one per stripe. stripes: whose y
    is held, for it waits for the z of later ones. Load bus: memories memory .. memory + 3, which
    are the descriptors and rows of z, then of y.

    Whatever the bytes are, every index gets a symbol. Throughput: 2 symbols of y per 3 cycles, one
    of z per 6, for rows that are leaves; one byte per cycle. Latency: about 40 cycles from byte to
    symbol.
    """

    MEMORIES = 4

    def __init__(
        self,
        z_shape: DecoderShape,
        y_shape: DecoderShape,
        room: Room,
        bus: LoadBus,
        memory: int,
        stripes: int,
        homes: Mapping[str, Home] | None = None,
    ) -> None:
        self.parser = ChunkParser(room.z_words, room.y_words)
        limits = {"low": Z_LOW, "high": Z_HIGH}
        homes = homes or {}
        self.z_rans = RansDecoder(
            z_shape, Z_LANES, bus, memory, memory + 1, **limits, home=homes.get("z rows")
        )
        self.y_rans = RansDecoder(
            y_shape, Y_LANES, bus, memory + 2, memory + 3, home=homes.get("y rows")
        )
        self.y_fifo = WordFifo(WORD_BITS, held_words(room, stripes), homes.get("y words"))
        super().__init__(
            {
                "bytes": In(BYTES),
                "stripes": In(STRIPE_BITS),
                "z_indices": In(stream.Signature(index_layout(z_shape.tables))),
                "y_indices": In(stream.Signature(index_layout(y_shape.tables))),
                "z": Out(sequence(SYMBOL_BITS)),
                "y": Out(sequence(SYMBOL_BITS)),
                "framings": Out(stream.Signature(Framing)),
                "z_statuses": Out(stream.Signature(Status)),
                "y_statuses": Out(stream.Signature(Status)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.parser = parser = self.parser
        m.submodules.z_rans, m.submodules.y_rans = z, y = self.z_rans, self.y_rans
        m.submodules.y_fifo = self.y_fifo
        m.d.comb += parser.stripes.eq(self.stripes)
        connect(m, self.bytes, parser.bytes)
        connect(m, parser.z_words, z.words)
        connect(m, parser.y_words, self.y_fifo.input)
        connect(m, self.y_fifo.output, y.words)
        connect(m, self.z_indices, z.indices)
        connect(m, self.y_indices, y.indices)
        connect(m, z.symbols, self.z)
        connect(m, y.symbols, self.y)
        connect(m, parser.framings, self.framings)
        connect(m, z.statuses, self.z_statuses)
        connect(m, y.statuses, self.y_statuses)
        return m
