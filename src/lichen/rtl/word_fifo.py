"""Word FIFO: the substreams that wait while the hyperprior looks ahead, in block RAM or UltraRAM.

A stripe's y is decoded only when the z of later stripes is known, which follow it in the stream.
"""

from __future__ import annotations

from amaranth.hdl import Array, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from lichen.rtl.delay import Delay
from lichen.rtl.leaf import Home
from lichen.rtl.rans_decoder import word_layout

PACK = 4  # words of 18 bits in the 72 of an UltraRAM


def fifo_memory(bits: int, capacity: int) -> tuple[int, int]:
    """Give width and depth of the memory of a WordFifo."""
    return PACK * word_layout(bits).size, max(2, -(-capacity // PACK))


class WordFifo(wiring.Component):
    """Hold up to `capacity` words of `bits`; the end of a substream takes the room of 1 to 4.

    Four beats are kept in one memory word, and an end fills up the last one: it is never held back
    by the substream after it, but words are until four are there.

    Throughput: one beat per cycle in and one out. Latency: 7
    cycles after the fourth beat.
    """

    def __init__(self, bits: int, capacity: int, home: Home | None = None) -> None:
        self.bits, self.home = bits, home
        _, self.depth = fifo_memory(bits, capacity)
        words = stream.Signature(word_layout(bits))
        super().__init__({"input": In(words), "output": Out(words)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        layout = word_layout(self.bits)
        size = layout.size
        m.submodules.delay = delay = Delay(size * PACK, 1, 1, self.depth, self.home)
        # In: the memory word so far, and a register of it on the way to the memory.
        gathered, slot = Signal(size * PACK), Signal(range(PACK))
        whole = Signal.like(gathered)
        accepted = self.input.valid & self.input.ready
        complete = (slot == PACK - 1) | self.input.p.end
        full = Signal()
        m.d.comb += [
            whole.eq(gathered),
            whole.word_select(slot, size).eq(self.input.payload),
            self.input.ready.eq(~full | delay.input.ready),
            delay.input.valid.eq(full),
        ]
        with m.If(delay.input.ready):
            m.d.sync += full.eq(0)
        with m.If(accepted):
            m.d.sync += [
                gathered.eq(Mux(complete, 0, whole)),
                slot.eq(Mux(complete, 0, slot + 1)),
            ]
            with m.If(complete):
                m.d.sync += [full.eq(1), delay.input.payload.eq(whole)]
        # Out: nothing follows an end in its memory word.
        beats = Array(delay.output.payload[i * size : (i + 1) * size] for i in range(PACK))
        place = Signal(range(PACK))
        done = (place == PACK - 1) | self.output.p.end
        m.d.comb += [
            self.output.payload.eq(beats[place]),
            self.output.valid.eq(delay.output.valid),
            delay.output.ready.eq(self.output.ready & done),
        ]
        with m.If(self.output.valid & self.output.ready):
            m.d.sync += place.eq(Mux(done, 0, place + 1))
        return m
