"""Pixels behind AXI4-Stream: three bytes each, packed without gaps, whatever a beat's width is.

A picture's last beat may be a part of one; the next picture begins with the next beat.
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lichen.rtl.lanes import beat
from lichen.rtl.ports import Flow, stream_pins

PIXEL_BYTES = 3
SIDE_BITS = 16


def stream_members(prefix: str, flow: Flow, size_bytes: int) -> dict[str, Any]:
    """Give the members of a component for the ports of an AXI4-Stream."""
    ways = {"in": In, "out": Out}
    return {pin.name: ways[pin.flow](pin.bits) for pin in stream_pins(prefix, flow, size_bytes)}


class PixelsFromAxi(wiring.Component):
    """Take pixels from an AXI4-Stream of `size` bytes per beat.

    tkeep: any number of the low bytes. tlast is not looked at.
    Throughput: one pixel per cycle, as long as beats come. Latency: 1 cycle.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.capacity = 2 * size + PIXEL_BYTES + 1
        pins = stream_members("s_axis", "in", size)
        super().__init__({**pins, "output": Out(beat(8 * PIXEL_BYTES))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        # Bytes still to go, the next one lowest; those from `count` on are 0.
        held = Signal(8 * self.capacity)
        count, after = Signal(range(self.capacity + 1)), Signal(range(self.capacity + 1))
        give = self.output.valid & self.output.ready
        take = self.s_axis_tvalid & self.s_axis_tready
        mask = Cat(bit.replicate(8) for bit in self.s_axis_tkeep)
        left = Signal.like(held)
        m.d.comb += [
            self.output.payload.eq(held[: 8 * PIXEL_BYTES]),
            self.output.valid.eq(count >= PIXEL_BYTES),
            self.s_axis_tready.eq(count <= self.capacity - self.size),
            after.eq(count - Mux(give, PIXEL_BYTES, 0)),
            left.eq(Mux(give, held >> 8 * PIXEL_BYTES, held)),
        ]
        m.d.sync += [held.eq(left), count.eq(after)]
        with m.If(take):
            kept = self.s_axis_tdata & mask
            m.d.sync += count.eq(after + sum(self.s_axis_tkeep))
            with m.Switch(after):
                for place in range(self.capacity - self.size + 1):
                    with m.Case(place):
                        m.d.sync += held.eq(left | kept << 8 * place)
        return m


class Raster(wiring.Component):
    """Count the pixels of pictures: `first` and `last` say what the next one is.

    width, height: 1..65535, steady while pictures go through; known a cycle before the first step.
    `step` goes on to the next pixel.
    """

    def __init__(self) -> None:
        super().__init__(
            {
                "width": In(SIDE_BITS), "height": In(SIDE_BITS), "step": In(1),
                "first": Out(1), "last": Out(1),
            }
        )  # fmt: skip

    def elaborate(self, platform: object) -> Module:
        m = Module()
        x, y = Signal(SIDE_BITS), Signal(SIDE_BITS)
        last_x, last_y = Signal(SIDE_BITS), Signal(SIDE_BITS)
        row_ends, started = Signal(), Signal()
        m.d.sync += [last_x.eq(self.width - 1), last_y.eq(self.height - 1)]
        m.d.comb += [
            self.first.eq(~started),
            row_ends.eq(x == last_x),
            self.last.eq(row_ends & (y == last_y)),
        ]
        with m.If(self.step):
            m.d.sync += [x.eq(x + 1), started.eq(~self.last)]
            with m.If(row_ends):
                m.d.sync += [x.eq(0), y.eq(y + 1)]
            with m.If(self.last):
                m.d.sync += y.eq(0)
        return m


class PixelsToAxi(wiring.Component):
    """Give pixels as an AXI4-Stream of `size` bytes per beat, tlast at the end of each picture.

    width, height: of the picture, as in Raster.
    Throughput: one pixel per cycle, one cycle more per picture. Latency: 1 cycle after the pixel
    that fills a beat.
    """

    def __init__(self, size: int) -> None:
        assert size >= PIXEL_BYTES, "a pixel fills at most one beat"
        self.size = size
        super().__init__(
            {
                "input": In(beat(8 * PIXEL_BYTES)),
                "width": In(SIDE_BITS),
                "height": In(SIDE_BITS),
                **stream_members("m_axis", "out", size),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.raster = raster = Raster()
        size = self.size
        rest, count = Signal(8 * (size - 1)), Signal(range(size))  # bytes that fill no beat yet
        ending = Signal()  # the last pixel is in, a part of it not yet out
        free = ~self.m_axis_tvalid | self.m_axis_tready
        accepted = self.input.valid & self.input.ready
        together, total = Signal(8 * (size + PIXEL_BYTES - 1)), Signal(range(size + PIXEL_BYTES))
        full = total >= size
        m.d.comb += [
            raster.width.eq(self.width),
            raster.height.eq(self.height),
            raster.step.eq(accepted),
            self.input.ready.eq(free & ~ending),
            total.eq(count + PIXEL_BYTES),
        ]
        with m.Switch(count):
            for place in range(size):
                with m.Case(place):
                    m.d.comb += together.eq(rest[: 8 * place] | self.input.payload << 8 * place)
        with m.If(self.m_axis_tready):
            m.d.sync += self.m_axis_tvalid.eq(0)
        with m.If(accepted):
            m.d.sync += [rest.eq(together), count.eq(total)]
            with m.If(full):
                m.d.sync += [rest.eq(together >> 8 * size), count.eq(total - size)]
            with m.If(full | raster.last):
                m.d.sync += self._beat(together[: 8 * size], Mux(full, size, total))
                m.d.sync += self.m_axis_tlast.eq(raster.last & (total <= size))
            with m.If(raster.last):
                m.d.sync += ending.eq(total > size)
                with m.If(total <= size):
                    m.d.sync += count.eq(0)
        with m.If(ending & free):
            m.d.sync += self._beat(Cat(rest, Signal(8)), count)
            m.d.sync += [self.m_axis_tlast.eq(1), ending.eq(0), count.eq(0)]
        return m

    def _beat(self, data: Value, count: Value) -> list[Any]:
        return [
            self.m_axis_tdata.eq(data),
            self.m_axis_tkeep.eq((Const(1) << count) - 1),
            self.m_axis_tvalid.eq(1),
        ]
