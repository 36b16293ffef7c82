"""Cores: from a model to the Verilog and the packaged IP of a core for a board."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from amaranth.back import verilog

from lichen.boards import core_image, ipxact
from lichen.boards.address_map import CORES, SEGMENT_BYTES, CoreName
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
        """What it takes, as predicted; DMA and the rest of the block design come on top."""
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
    """Fold a core for a board that it has for itself or, by the target, shares; as `make_all`."""
    return make_all(model, (name,), board, target, face)[name]


def make_all(
    model: Model, names: Sequence[CoreName], board: Board, target: fold.Target,
    face: Face = "packed",
) -> dict[CoreName, BoardCore]:  # fmt: skip
    """Fold cores of a board. Raises ContractError where there is no hardware for one.

    Where the target is shared, both cores are planned and placed, whichever are asked for.
    face: "packed" to synthesise, "plain" to simulate.
    """
    part = fold.PARTS[board.name]
    planned = CORES if target.shared else names
    plans = {name: trial.plan_for(model, name, part, target) for name in planned}
    placements, made = place(plans, part), {}
    for name in names:
        placement = placements[name]
        core = trial.core_for(model, name, plans[name], placement, face)
        top = Top(core, board.name, target.width, target.height, trial.STRIPE)  # type: ignore[arg-type]
        image = core_image.of_core(core, model, top.layout)
        made[name] = BoardCore(name, plans[name], placement, top, image)
    return made


def place(plans: Mapping[CoreName, fold.Plan], part: fold.Part) -> dict[CoreName, fold.Placement]:
    """Find homes for the memories of all cores at once: they share the part's UltraRAM."""
    memories = [
        replace(memory, stage=f"{name}/{memory.stage}")
        for name, plan in plans.items()
        for memory in plan.memories
    ]
    logic = sum((plan.logic for plan in plans.values()), fold.Resources())
    whole = fold.place(tuple(memories), part, external=True, taken=logic)

    def mine(memory: fold.Memory, name: CoreName) -> list[fold.Memory]:
        owner, _, stage = memory.stage.partition("/")
        return [replace(memory, stage=stage)] if owner == name else []

    return {
        name: fold.Placement(
            tuple((m, home) for memory, home in whole.homes for m in mine(memory, name)),
            tuple(m for memory in whole.external for m in mine(memory, name)),
        )
        for name in plans
    }


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")
