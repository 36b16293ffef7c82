"""Delay: the buffer of a skip connection, a FIFO in block RAM or UltraRAM."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lichen.rtl.lanes import Relane, beat, connect
from lichen.rtl.leaf import Home, Memory


class Delay(wiring.Component):
    """Hold up to `depth` words of `word` values, and a few more in its registers.

    Values come and go in beats of `lanes`; memory keeps them in words of `word`, a multiple of
    `lanes`, so that an UltraRAM's 72 bits are used. The number of values of a picture must be a
    multiple of `word`: an unfinished word stays inside.

    Throughput: one beat per cycle. Latency: word / lanes + 4 cycles through an empty buffer.
    """

    def __init__(
        self, bits: int, lanes: int, word: int, depth: int, home: Home | None = None
    ) -> None:
        self.bits, self.lanes, self.word, self.depth = bits, lanes, word, depth
        self.home = home
        super().__init__({"input": In(beat(bits * lanes)), "output": Out(beat(bits * lanes))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        width, depth = self.bits * self.word, self.depth
        m.submodules.widen = widen = Relane(self.bits, self.lanes, self.word)
        m.submodules.narrow = narrow = Relane(self.bits, self.word, self.lanes)
        memory = Memory(width, depth, home=self.home, latency=2)
        m.submodules.memory = memory.instance()
        connect(m, self.input, widen.input)
        connect(m, narrow.output, self.output)

        level, full = Signal(range(depth + 1)), Signal()
        readable = Signal(range(depth + 1))  # of these, written in earlier cycles
        head, tail = Signal(range(depth)), Signal(range(depth))
        put, take = Signal(), Signal()
        valid = Signal(2)  # the two registers of the memory
        advance = ~valid[1] | narrow.input.ready
        m.d.comb += [
            widen.output.ready.eq(~full),
            put.eq(widen.output.valid & widen.output.ready),
            take.eq(advance & (readable != 0)),
            memory.read_enable.eq(advance),
            memory.read_address.eq(head),
            narrow.input.payload.eq(memory.read_data),
            narrow.input.valid.eq(valid[1]),
        ]
        written = Signal()
        m.d.sync += [
            written.eq(put),
            memory.write_enable.eq(put),
            memory.write_address.eq(tail),
            memory.write_data.eq(widen.output.payload),
        ]
        m.d.sync += level.eq(level + put - take)
        with m.If(put != take):
            m.d.sync += full.eq(put & (level == depth - 1))
        m.d.sync += readable.eq(readable + written - take)
        with m.If(advance):
            m.d.sync += [valid[0].eq(take), valid[1].eq(valid[0])]
        with m.If(put):
            m.d.sync += tail.eq(_next(tail, depth))
        with m.If(take):
            m.d.sync += head.eq(_next(head, depth))
        return m


def _next(pointer: Signal, depth: int) -> Value:
    return Mux(pointer == depth - 1, 0, pointer + 1)
