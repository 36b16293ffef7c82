"""rANS encoder: the symbols of a substream in, its words in the order of decoding out."""

from __future__ import annotations

from collections.abc import Mapping

from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from lichen.rtl.lanes import connect, sliced
from lichen.rtl.leaf import Home, LoadBus
from lichen.rtl.rans_push import RansPush
from lichen.rtl.rans_tables import EncoderShape
from lichen.rtl.stripe_buffer import StripeBuffer, sequence, stripe_memory
from lichen.rtl.symbol_steps import SymbolSteps, symbol_layout

MEMORY_BITS = 72  # of a word of UltraRAM, and of a block RAM


def packed(bits: int) -> int:
    """Give how many items fill a word of memory."""
    return max(1, MEMORY_BITS // bits)


def rans_memories(shape: EncoderShape, capacity: int, words: int) -> dict[str, tuple[int, int]]:
    """Give width and depth of the large memories of a RansEncoder, by the names of their homes."""
    item, word = symbol_layout(shape.tables).size, shape.coder.word_bits
    return {
        "symbols": stripe_memory(item, capacity, packed(item)),
        "words": stripe_memory(word, words, packed(word)),
        "entries": (shape.entry_bits, shape.entries),
    }


class RansEncoder(wiring.Component):
    """Code sequences of symbols as `entropy.encode` does, to the byte.

        symbols --[StripeBuffer]--> backwards --[SymbolSteps]--> steps --[RansPush]--> words
                                                       backwards --[StripeBuffer]--> words

    symbols: items of symbol_layout, in the order of decoding; `last` ends a substream. words: 16
    bits each, states first; counts: how many, before them, `overflow` set if they were more than
    `words`: the substream is then cut off and of no use. capacity: symbols of the longest
    substream. descriptors, entries: numbers of the table memories on the load bus.

    Throughput: lanes / 6 symbols per cycle (one per 6 cycles and lane; an escaped symbol holds all
    lanes for 6 cycles per group), 12 cycles per lane and substream. A substream is coded while the
    next one comes in. Latency: the whole substream in, coded, and about 40 cycles.
    """

    def __init__(
        self,
        shape: EncoderShape,
        lanes: int,
        capacity: int,
        words: int,
        bus: LoadBus,
        descriptors: int,
        entries: int,
        homes: Mapping[str, Home] | None = None,
    ) -> None:
        item = symbol_layout(shape.tables).size
        word = shape.coder.word_bits
        homes = homes or {}
        self.symbol_buffer = StripeBuffer(item, capacity, packed(item), homes.get("symbols"))
        self.word_buffer = StripeBuffer(word, words, packed(word), homes.get("words"))
        self.steps = SymbolSteps(
            shape,
            lanes,
            self.symbol_buffer.count_layout,
            bus,
            descriptors,
            entries,
            homes.get("entries"),
        )
        self.push = RansPush(shape.coder, lanes)
        self.count_layout = self.word_buffer.count_layout
        super().__init__(
            {
                "symbols": In(sequence(item)),
                "words": Out(sequence(word)),
                "counts": Out(stream.Signature(self.count_layout)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.symbol_buffer = self.symbol_buffer
        m.submodules.steps = self.steps
        m.submodules.push = self.push
        m.submodules.word_buffer = self.word_buffer
        connect(m, self.symbols, self.symbol_buffer.input)
        connect(m, self.symbol_buffer.output, self.steps.symbols)
        connect(m, self.symbol_buffer.counts, self.steps.counts)
        connect(m, self.steps.steps, self.push.steps)
        sliced(m, "pushed", self.push.words, self.word_buffer.input)
        connect(m, self.word_buffer.output, self.words)
        connect(m, self.word_buffer.counts, self.counts)
        return m
