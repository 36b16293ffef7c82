"""Fork: one stream to several readers."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lichen.rtl.lanes import Skid, beat, connect


class Fork(wiring.Component):
    """Give each beat to every one of `count` outputs, each when it is ready.

    Throughput: one beat per cycle. Latency: 0 cycles. A beat is taken once all have had it; its
    `ready` is a register's.
    """

    def __init__(self, bits: int, count: int) -> None:
        self.count = count
        outputs = {f"output_{i}": Out(beat(bits)) for i in range(count)}
        self.bits = bits
        super().__init__({"input": In(beat(bits)), **outputs})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.skid = skid = Skid(self.bits)
        connect(m, self.input, skid.input)
        source = skid.output
        had = Signal(self.count)  # the readers that have had the present beat
        outputs = [getattr(self, f"output_{i}") for i in range(self.count)]
        takes = Cat(output.ready for output in outputs)
        m.d.comb += source.ready.eq((had | takes).all())
        for i, output in enumerate(outputs):
            m.d.comb += [
                output.payload.eq(source.payload),
                output.valid.eq(source.valid & ~had[i]),
            ]
        with m.If(source.valid):
            m.d.sync += had.eq(had | takes)
            with m.If(source.ready):
                m.d.sync += had.eq(0)
        return m
