"""CRC32C in hardware: up to eight bytes per cycle (docs/stream.md 1.4)."""

from __future__ import annotations

from functools import cache, reduce
from operator import xor

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lichen.crc32c import POLYNOMIAL


class Crc32c(wiring.Component):
    """Compute the CRC32C of a run of bytes.

    count: how many of the bytes of `data`, the first one lowest, come in this cycle, 0..bytes.
    clear: forget the run so far; bytes that come in the same cycle begin the next one. crc: of all
    bytes of the cycles before.

    Throughput: `bytes` per cycle. Latency: one cycle.
    """

    def __init__(self, size: int = 1) -> None:
        if not 1 <= size <= 8:
            raise ValueError(f"size must be 1..8 bytes, not {size}")
        self.size = size
        super().__init__(
            {
                "data": In(8 * size),
                "count": In(range(size + 1)),
                "clear": In(1),
                "crc": Out(32),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        state = Signal(32, init=0xFFFFFFFF)
        m.d.comb += self.crc.eq(~state)
        after = [state | self.clear.replicate(32)]
        for size in range(1, self.size + 1):
            # Linear: what the state and what the data turn into are added at the end.
            begun = Const(_advanced(0xFFFFFFFF, size), 32)
            of_state, of_data = Signal(32, name=f"state{size}"), Signal(32, name=f"data{size}")
            m.d.comb += [
                of_state.eq(advance(state, Const(0, 8 * size), size)),
                of_data.eq(advance(Const(0, 32), self.data[: 8 * size], size)),
            ]
            after.append(Mux(self.clear, begun, of_state) ^ of_data)
        m.d.sync += state.eq(Array(after)[self.count])
        return m


def _advanced(state: int, size: int) -> int:
    """Give what a known state turns into by `size` bytes of 0."""
    masks = _masks(size)
    return reduce(xor, (masks[j] for j in range(32) if state >> j & 1), 0)


def advance(state: Value, data: Value, size: int) -> Value:
    """Give the remainder after `size` bytes: each bit is an exclusive or of bits of both."""
    masks = _masks(size)
    bits = []
    for i in range(32):
        terms = [state[j] for j in range(32) if masks[j] >> i & 1]
        terms += [data[j] for j in range(8 * size) if masks[32 + j] >> i & 1]
        bits.append(reduce(xor, terms, Const(0, 1)))
    return Cat(*bits)


@cache
def _masks(size: int) -> tuple[int, ...]:
    """What each bit of (state, data) alone turns into: the step is linear in them."""

    def step(state: int, data: int) -> int:
        for _ in range(8 * size):
            state, data = (state >> 1) ^ (POLYNOMIAL if (state ^ data) & 1 else 0), data >> 1
        return state

    return tuple([step(1 << j, 0) for j in range(32)] + [step(0, 1 << j) for j in range(8 * size)])
