"""Fork: one stream to several readers."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lichen.rtl.lanes import beat


class Fork(wiring.Component):
    """Give each beat to every one of `count` outputs, each when it is ready.

    Throughput: one beat per cycle. Latency: 0 cycles. A beat is taken once all have had it.
    """

    def __init__(self, bits: int, count: int) -> None:
        self.count = count
        outputs = {f"output_{i}": Out(beat(bits)) for i in range(count)}
        super().__init__({"input": In(beat(bits)), **outputs})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        had = Signal(self.count)  # the readers that have had the present beat
        outputs = [getattr(self, f"output_{i}") for i in range(self.count)]
        takes = Cat(output.ready for output in outputs)
        m.d.comb += self.input.ready.eq((had | takes).all())
        for i, output in enumerate(outputs):
            m.d.comb += [
                output.payload.eq(self.input.payload),
                output.valid.eq(self.input.valid & ~had[i]),
            ]
        with m.If(self.input.valid):
            m.d.sync += had.eq(had | takes)
        with m.If(self.input.valid & self.input.ready):
            m.d.sync += had.eq(0)
        return m
