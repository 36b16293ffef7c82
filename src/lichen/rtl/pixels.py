"""Pixels: the networks of a codec with pictures of any size at one end, symbols at the other.

Analysis    pixels -> whole blocks -> network -> z, index, symbols
Synthesis   z, symbols -> network -> crop -> pixels         (index: z's network gives it first)
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lichen.rtl.border import Crop, Replicate
from lichen.rtl.convolution import Face
from lichen.rtl.core import GAIN_BANKS, Network, identifier
from lichen.rtl.fold import Placement, Plan
from lichen.rtl.lanes import Relane, beat, connect
from lichen.rtl.leaf import LOAD_BITS

PIXEL = 24  # bits of a beat of pixels: red in the lowest


class _Pixels(wiring.Component):
    """A network and the sizes that both of its sides need.

    width, height: of the picture. unit_rows, unit_columns: those of its whole blocks, in units of
    the coarsest grid, ceil(height / reduction) and ceil(width / reduction). They stay during
    pictures and change in reset only. bank: of the gains, may change between pictures.
    """

    PIXELS: str  # name of the network's tensor of pixels

    def __init__(
        self, plan: Plan, *, placement: Placement | None = None, face: Face = "plain"
    ) -> None:
        self.plan = plan
        self.network = Network(plan, placement=placement, face=face)
        self.loops = self.network.loops
        graph = plan.graph
        tensors = {identifier(t.name): t for t in (*graph.inputs, *graph.outputs)}
        self.reduction = tensors[self.PIXELS].scale
        rows, columns = (n * self.reduction for n in plan.units)
        ports: dict[str, Any] = {
            "load": In(beat(LOAD_BITS)),
            "width": In(range(columns + 1)),
            "height": In(range(rows + 1)),
            "unit_rows": In(range(plan.units[0] + 1)),
            "unit_columns": In(range(plan.units[1] + 1)),
            "bank": In(range(GAIN_BANKS)),
        }
        for name, member in self.network.signature.members.items():
            if name not in ports and name != self.PIXELS:
                ports[name] = member
        flow = In if tensors[self.PIXELS] in graph.inputs else Out
        super().__init__({**ports, "pixels": flow(beat(PIXEL))})

    def _common(self, m: Module, border: Replicate | Crop) -> Any:
        """Join the ports that go straight to the network; give its stream of pixels."""
        m.submodules.network = network = self.network
        m.submodules.border = border
        whole_height = Signal.like(border.whole_height)
        whole_width = Signal.like(border.whole_width)
        m.d.sync += [
            whole_height.eq(self.unit_rows * self.reduction),
            whole_width.eq(self.unit_columns * self.reduction),
        ]
        m.d.comb += [
            border.width.eq(self.width),
            border.height.eq(self.height),
            border.whole_width.eq(whole_width),
            border.whole_height.eq(whole_height),
        ]
        for name, member in network.signature.members.items():
            if name == self.PIXELS:
                continue
            inner, outer = getattr(network, name), getattr(self, name)
            if member.is_port:
                m.d.comb += inner.eq(outer)
            elif member.flow == wiring.In:
                connect(m, outer, inner)
            else:
                connect(m, inner, outer)
        return getattr(network, self.PIXELS)

    def _border(self, kind: type[Any]) -> Any:
        rows, columns = (n * self.reduction for n in self.plan.units)
        return kind(3, columns, rows)


class Analysis(_Pixels):
    """The encoder's networks: a pixel per beat in; z, index and symbols out, `lanes` per beat.

    Throughput: a picture per `plan.cycles` (in proportion, if it is smaller than the plan's).
    """

    PIXELS = "g_a_x"

    def elaborate(self, platform: object) -> Module:
        m = Module()
        border = self._border(Replicate)
        inner = self._common(m, border)
        m.submodules.relane = relane = Relane(8, 3, self.plan.lanes)
        connect(m, self.pixels, border.input)
        connect(m, border.output, relane.input)
        connect(m, relane.output, inner)
        return m


class Synthesis(_Pixels):
    """The decoder's networks: z and symbols in, `lanes` per beat; index and pixels out.

    Throughput: a picture per `plan.cycles` (in proportion, if it is smaller than the plan's).
    """

    PIXELS = "g_s_x"

    def elaborate(self, platform: object) -> Module:
        m = Module()
        border = self._border(Crop)
        inner = self._common(m, border)
        m.submodules.relane = relane = Relane(8, self.plan.lanes, 3)
        connect(m, inner, relane.input)
        connect(m, relane.output, border.input)
        connect(m, border.output, self.pixels)
        return m
