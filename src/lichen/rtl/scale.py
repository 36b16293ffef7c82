"""Scale: multiply each channel by an integer, the rate gains among them."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, Value
from amaranth.lib.wiring import In

from lichen.program import ops
from lichen.program.ops import DType
from lichen.rtl.element import Element, round_shift, saturate
from lichen.rtl.leaf import Home, LoadBus, Memory, fill
from lichen.rtl.words import multipliers

MULTIPLIER_BITS = 16
contents = multipliers  # the words of its memory


class Scale(Element):
    """The operation Scale; its multipliers lie in a memory that the load bus fills.

    channels: of the tensor, a multiple of `lanes`. banks: vectors in the memory, one after the
    other; `bank` says which one is used, and changes between pictures only: the gains of the next
    picture are loaded while this one is coded.

    Throughput: one beat per cycle. Latency: 6 cycles: memory (beside the value), operands,
    product, product again (the DSP's own two registers), rounding, saturation.
    """

    latency = 6

    def __init__(
        self, op: ops.Scale, x: DType, channels: int, lanes: int, bus: LoadBus, number: int,
        banks: int = 1, home: Home | None = None,
    ) -> None:  # fmt: skip
        self.op, self.channels, self.bus, self.number = op, channels, bus, number
        self.banks, self.home = banks, home
        super().__init__({"input": x}, op.dtype, lanes, {"bank": In(range(max(2, banks)))})

    def prepare(self) -> None:
        m: Module = self.module
        beats = self.channels // self.lanes
        memory = Memory(MULTIPLIER_BITS * self.lanes, beats * self.banks, home=self.home)
        m.submodules.multipliers = memory.instance()
        fill(m, self.bus, self.number, memory, "multipliers")
        at = Signal(range(max(2, beats)))
        with m.If(self.taken):
            m.d.sync += at.eq(Mux(at == beats - 1, 0, at + 1))
        m.d.comb += [
            memory.read_enable.eq(self.advance),
            memory.read_address.eq(at + self.bank * beats),
        ]
        self.memory = memory

    def lane(self, number: int, **values: Value) -> Value:
        x = self.register(self.register(values["input"]))
        multiplier = self.register(self.memory.read_data.word_select(number, MULTIPLIER_BITS))
        product = self.register(self.register(x * multiplier))
        rounded = self.register(round_shift(product, self.op.shift))
        return self.register(saturate(rounded, self.op.dtype))
