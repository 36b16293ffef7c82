"""Clamp: hold values between two constants."""

from __future__ import annotations

from amaranth.hdl import Mux, Value

from lichen.program import ops
from lichen.program.ops import DType
from lichen.rtl.element import Element
from lichen.rtl.layer import BITS


class Clamp(Element):
    """The operation Clamp. Throughput: one beat per cycle. Latency: 1 cycle."""

    latency = 1

    def __init__(self, op: ops.Clamp, x: DType, lanes: int) -> None:
        self.op = op
        super().__init__({"input": x}, x, lanes)

    def lane(self, number: int, **values: Value) -> Value:
        x, (low, high) = values["input"], (self.op.low, self.op.high)
        return self.register(Mux(x < low, low, Mux(x > high, high, x))[: BITS[self.dtype]])
