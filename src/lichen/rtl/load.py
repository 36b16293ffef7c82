"""Load: a stream of words that fills the memories of a core with weights, biases and gains."""

from __future__ import annotations

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from lichen.rtl.lanes import beat
from lichen.rtl.leaf import LOAD_BITS, LoadBus
from lichen.rtl.words import COUNT_BITS
from lichen.rtl.words import blocks as blocks


class Load(wiring.Component):
    """Read blocks from the stream: a word with memory (8 bits) << 24 | words, then those words.

    A memory takes its words from its beginning; a block may hold fewer than the memory does.
    Throughput: one word of 32 bits per cycle. Latency: two cycles to the bus.
    """

    def __init__(self, bus: LoadBus) -> None:
        self.bus = bus
        super().__init__({"input": In(beat(LOAD_BITS))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        left, first = Signal(COUNT_BITS), Signal()
        m.d.comb += self.input.ready.eq(1)
        m.d.sync += self.bus.strobe.eq(0)
        with m.If(self.input.valid):
            with m.If(left == 0):
                m.d.sync += [
                    left.eq(self.input.payload[:COUNT_BITS]),
                    self.bus.select.eq(self.input.payload[COUNT_BITS:]),
                    first.eq(1),
                ]
            with m.Else():
                m.d.sync += [
                    left.eq(left - 1),
                    first.eq(0),
                    self.bus.strobe.eq(1),
                    self.bus.restart.eq(first),
                    self.bus.data.eq(self.input.payload),
                ]
        return m
