"""Add: align by left shifts, add or subtract, round, saturate."""

from __future__ import annotations

from amaranth.hdl import Value

from lichen.program import ops
from lichen.program.ops import DType
from lichen.rtl.element import Element, round_shift, saturate


class Add(Element):
    """The operation Add on two streams, `a` and `b`.

    Throughput: one beat per cycle. Latency: 3 cycles: sum, rounding, saturation.
    """

    latency = 3

    def __init__(self, op: ops.Add, a: DType, b: DType, lanes: int) -> None:
        self.op = op
        super().__init__({"a": a, "b": b}, op.dtype, lanes)

    def lane(self, number: int, **values: Value) -> Value:
        a, b = values["a"] << self.op.shift_a, values["b"] << self.op.shift_b
        total = self.register(a - b if self.op.subtract else a + b)
        rounded = self.register(round_shift(total, self.op.shift))
        return self.register(saturate(rounded, self.op.dtype))
