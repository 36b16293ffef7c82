"""Cores: from a model to the Verilog and the packaged IP of a core for a board."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from amaranth.back import verilog

from lichen.boards import core_image, ipxact
from lichen.boards.address_map import SEGMENT_BYTES, CoreName
from lichen.boards.board import Board
from lichen.boards.buses import interface
from lichen.boards.core_image import CoreImage
from lichen.boards.ipxact import Component
from lichen.model import Model
from lichen.rtl import fold, trial
from lichen.rtl.convolution import Face
from lichen.rtl.leaf import SOURCES
from lichen.rtl.ports import core_pins
from lichen.rtl.registers import REGISTERS
from lichen.rtl.top import Top

TITLES = {"encoder": "lichen encoder: pixels to stream", "decoder": "lichen decoder"}


@dataclass(frozen=True)
class BoardCore:
    """A core for a board, as it goes into a build folder.

    plan, placement: how it is folded. top: the hardware. image: the weights, as it takes them.
    """

    name: CoreName
    plan: fold.Plan
    placement: fold.Placement
    top: Top
    image: CoreImage

    @property
    def resources(self) -> fold.Resources:
        """What its networks take, as predicted; the entropy coder comes on top."""
        return self.plan.logic + self.placement.resources

    @cached_property
    def component(self) -> Component:
        """What component.xml says of it."""
        name = f"lichen_{self.name}"
        target = self.plan.target
        return Component(
            name=name,
            title=TITLES[self.name],
            description=f"{TITLES[self.name]}; pictures up to {target.width}x{target.height}",
            interface=interface(core_pins(len(self.top.delays))),
            files=[f"src/{name}.v", *(f"src/{path.name}" for path in SOURCES)],
            registers=REGISTERS,
            range_bytes=SEGMENT_BYTES,
        )

    def files(self) -> Mapping[str, str]:
        """Give the files of the packaged IP: text by path. Takes a minute for a whole core."""
        component = self.component
        text = verilog.convert(
            self.top, name=component.name, emit_src=False, strip_internal_attrs=True
        )
        found = {"component.xml": ipxact.text(component), f"src/{component.name}.v": text}
        return found | {f"src/{path.name}": _read(path) for path in SOURCES}


def make(
    model: Model, name: CoreName, board: Board, target: fold.Target, face: Face = "packed"
) -> BoardCore:
    """Fold a model's core for a board. Raises ContractError where there is no hardware for it.

    face: "packed" to synthesise, "plain" to simulate.
    """
    part = fold.PARTS[board.name]
    plan = trial.plan_for(model, name, part, target)
    placement = fold.place(plan.memories, part, external=True)
    core = trial.core_for(model, name, plan, placement, face)
    top = Top(core, board.name, target.width, target.height, trial.Bench.STRIPE)  # type: ignore[arg-type]
    return BoardCore(name, plan, placement, top, core_image.of_core(core, model, top.layout))


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")
