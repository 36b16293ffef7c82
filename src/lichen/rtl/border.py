"""Border: pictures of any size to whole blocks and back."""

from __future__ import annotations

from amaranth.hdl import Const, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lichen.rtl.lanes import beat
from lichen.rtl.leaf import Home, Memory

CENTRE = 0x80  # u8 pixels minus 128 are s8, and back: one bit


class Replicate(wiring.Component):
    """Repeat the last pixel of each line and the last line until the size is a whole one.

    A beat is a pixel of `channels` u8 values; the output's are s8, minus 128. width, height: of
    the picture; whole_width, whole_height: of the output; all constant while it runs. One line is
    kept.

    Throughput: one pixel per cycle. Latency: 1 cycle.
    """

    def __init__(self, channels: int, max_width: int, max_height: int) -> None:
        self.bits, self.max_width = 8 * channels, max_width
        sizes = {
            "width": In(range(max_width + 1)),
            "whole_width": In(range(max_width + 1)),
            "height": In(range(max_height + 1)),
            "whole_height": In(range(max_height + 1)),
        }
        super().__init__({"input": In(beat(self.bits)), "output": Out(beat(self.bits)), **sizes})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        line = Memory(self.bits, self.max_width, home=Home(0, self.max_width))
        m.submodules.line = line.instance()
        x, y = Signal.like(self.whole_width), Signal.like(self.whole_height)
        last_x, last_y = Signal.like(x, init=-1), Signal.like(y, init=-1)  # none, after reset
        m.d.sync += [last_x.eq(self.whole_width - 1), last_y.eq(self.whole_height - 1)]
        valid, from_line, pixel = Signal(), Signal(), Signal(self.bits)
        advance, step = Signal(), Signal()
        beyond, below = x >= self.width, y >= self.height
        m.d.comb += [
            advance.eq(~valid | self.output.ready),
            self.input.ready.eq(advance & ~beyond & ~below),
            step.eq(advance & (self.input.valid | beyond | below)),
            line.write_enable.eq(step & ~below),
            line.write_address.eq(x),
            line.write_data.eq(Mux(beyond, pixel, self.input.payload)),
            line.read_enable.eq(advance),
            line.read_address.eq(x),
            self.output.valid.eq(valid),
            self.output.payload.eq(
                Mux(from_line, line.read_data, pixel) ^ Const(_every(self.bits), self.bits)
            ),
        ]
        with m.If(advance):
            m.d.sync += valid.eq(step)
        with m.If(step):
            m.d.sync += from_line.eq(below)
            with m.If(~beyond & ~below):
                m.d.sync += pixel.eq(self.input.payload)
            m.d.sync += x.eq(x + 1)
            with m.If(x == last_x):
                m.d.sync += [x.eq(0), y.eq(y + 1)]
                with m.If(y == last_y):
                    m.d.sync += y.eq(0)
        return m


class Crop(wiring.Component):
    """Drop what `Replicate` has added: the columns and the lines beyond the picture's size.

    A beat is a pixel of `channels` s8 values; the output's are u8, plus 128.

    Throughput: one pixel per cycle. Latency: 0 cycles.
    """

    def __init__(self, channels: int, max_width: int, max_height: int) -> None:
        self.bits = 8 * channels
        sizes = {
            "width": In(range(max_width + 1)),
            "whole_width": In(range(max_width + 1)),
            "height": In(range(max_height + 1)),
            "whole_height": In(range(max_height + 1)),
        }
        super().__init__({"input": In(beat(self.bits)), "output": Out(beat(self.bits)), **sizes})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        x, y = Signal.like(self.whole_width), Signal.like(self.whole_height)
        last_x, last_y = Signal.like(x, init=-1), Signal.like(y, init=-1)  # none, after reset
        m.d.sync += [last_x.eq(self.whole_width - 1), last_y.eq(self.whole_height - 1)]
        # Registers of their own, so that no comparison stands between valid and valid.
        inside_x, inside_y = Signal.like(x, init=-1), Signal.like(y, init=-1)
        beyond_x, beyond_y = Signal(), Signal()
        m.d.sync += [inside_x.eq(self.width - 1), inside_y.eq(self.height - 1)]
        outside = beyond_x | beyond_y
        m.d.comb += [
            self.output.payload.eq(self.input.payload ^ Const(_every(self.bits), self.bits)),
            self.output.valid.eq(self.input.valid & ~outside),
            self.input.ready.eq(self.output.ready | outside),
        ]
        with m.If(self.input.valid & self.input.ready):
            m.d.sync += x.eq(x + 1)
            with m.If(x == inside_x):
                m.d.sync += beyond_x.eq(1)
            with m.If(x == last_x):
                m.d.sync += [x.eq(0), y.eq(y + 1), beyond_x.eq(0)]
                with m.If(y == inside_y):
                    m.d.sync += beyond_y.eq(1)
                with m.If(y == last_y):
                    m.d.sync += [y.eq(0), beyond_y.eq(0)]
        return m


def _every(bits: int) -> int:
    return sum(CENTRE << k for k in range(0, bits, 8))
