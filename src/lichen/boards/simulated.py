"""Simulated: a board's core in Verilator, and the words of a model for a core that was built."""

from __future__ import annotations

from dataclasses import replace

from lichen.boards import cores
from lichen.boards.address_map import CoreName
from lichen.boards.board import board
from lichen.boards.build import target_of
from lichen.boards.core_image import CoreImage
from lichen.boards.record import Record, require_layout
from lichen.boards.simulation_link import SimulationLink
from lichen.model import Model
from lichen.rtl import fold
from lichen.rtl.simulate_axi import AxiSimulation

OPTIMISE = 2  # of the C++ compiler: a picture takes longer than the build


def simulated(
    model: Model, core: CoreName, board_name: str, target: fold.Target | None = None
) -> tuple[SimulationLink, CoreImage]:
    """Give the link to a simulated core, built where it is not yet, and what to load into it.

    target: what it is folded for; by default what the board's core alone is.
    """
    target = target or target_of(board_name, core, None, None)
    made = cores.make(model, core, board(board_name), target, "plain")
    simulation = AxiSimulation(made.top, f"lichen_{core}_{board_name}", optimise=OPTIMISE)
    return SimulationLink(simulation, target.clock_hz), made.image


def image_for(made: Record, core: CoreName, model: Model) -> CoreImage:
    """Make the words of a model for a core of a build. Raises ModelError for another shape."""
    built = made.cores[core]
    shared = len(made.cores) > 1
    target = fold.Target(built.width, built.height, built.target, built.clock_hz, shared)
    found = cores.make(model, core, board(made.board), target)
    require_layout(made, core, found.top.layout, model)
    # Where memories are does not change the words; an older plan may keep other delays in DRAM.
    return replace(found.image, delay_bytes=built.delay_bytes)
