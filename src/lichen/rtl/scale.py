"""Scale: multiply each channel by an integer, the rate gains among them."""

from __future__ import annotations

import numpy as np
from amaranth.hdl import Module, Mux, Signal, Value
from amaranth.lib.wiring import In
from numpy.typing import NDArray

from lichen.program import ops
from lichen.program.ops import DType
from lichen.rtl.element import Element, round_shift, saturate
from lichen.rtl.leaf import LoadBus, Memory, fill

MULTIPLIER_BITS = 16


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
        banks: int = 1,
    ) -> None:  # fmt: skip
        self.op, self.channels, self.bus, self.number = op, channels, bus, number
        self.banks = banks
        super().__init__({"input": x}, op.dtype, lanes, {"bank": In(range(max(2, banks)))})

    def prepare(self) -> None:
        m: Module = self.module
        beats = self.channels // self.lanes
        memory = Memory(MULTIPLIER_BITS * self.lanes, beats * self.banks)
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


def contents(multipliers: NDArray[np.int32], lanes: int) -> bytes:
    """Give the words of a Scale's memory, padded to multiples of 4 bytes, for the load bus."""
    words = np.asarray(multipliers, "<u2").reshape(-1, lanes)
    padded = np.zeros((len(words), -(-lanes // 2) * 2), "<u2")
    padded[:, :lanes] = words
    return padded.tobytes()
