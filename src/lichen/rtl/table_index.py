"""TableIndex: the number of thresholds that a value has reached."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Const, Value, signed

from lichen.program import ops
from lichen.program.arithmetic import DTYPE_RANGE
from lichen.program.ops import DType
from lichen.rtl.element import Element


class TableIndex(Element):
    """The operation TableIndex: a binary search, one comparison per register.

    The thresholds are constants of the circuit: one of 2**k of them is compared in step k.

    Throughput: one beat per cycle. Latency: the bit length of the number of thresholds.
    """

    def __init__(self, op: ops.TableIndex, x: DType, lanes: int) -> None:
        self.op, self.x = op, x
        self.latency = len(op.thresholds).bit_length()
        super().__init__({"input": x}, "u8", lanes)

    def lane(self, number: int, **values: Value) -> Value:
        # Below its range no value lies, above it none reaches; the rest is padded with "above".
        low, high = DTYPE_RANGE[self.x]
        size = 1 << self.latency
        held = [min(max(int(t), low), high + 1) for t in self.op.thresholds]
        held += [high + 1] * (size - 1 - len(held))
        value, count = values["input"], Const(0, 0)
        for step in range(self.latency):
            below = size >> (step + 1)  # thresholds below the one that is compared, in its part
            choice = Array(
                Const(held[(k * 2 + 1) * below - 1], signed(18)) for k in range(1 << step)
            )
            reached = value >= (choice[count] if step else choice[0])
            count = self.register(reached if step == 0 else Cat(reached, count))
            value = self.register(value)
        return count
