"""The networks of a codec as pipelines equal the reference, at the rate that the plan says."""

from __future__ import annotations

import numpy as np
import pytest
from stages import random_tensor, through
from tiny_codec import gains, programs, run_all

from lichen.rtl import fold, graph
from lichen.rtl.core import Network, to_beats
from lichen.rtl.simulate import Simulation

PARTS = programs()
GAINS = gains()
UNITS = (2, 1)  # the size that is run, in 64 x 64 pixels
# 4.8 cycles per pixel at the assumed clock, as 1080p at 30 frames/s.
TARGET = fold.Target(192, 192, 60, clock_hz=int(4.8 * 192 * 192 * 60))
PORTS = {
    "encoder": (("g_a_x",), ("h_a_z", "h_s_index", "quantize_symbols")),
    "decoder": (("h_s_z", "g_s_symbols"), ("h_s_index", "g_s_x")),
}


@pytest.fixture(scope="module", params=PORTS)
def core(request: pytest.FixtureRequest) -> tuple[str, Simulation, fold.Plan]:
    kind = request.param
    plan = fold.fold(getattr(graph, kind)(PARTS), TARGET)
    network = Network(plan)
    simulation = Simulation(network, f"tiny_{kind}")
    simulation.set(unit_rows=UNITS[0], unit_columns=UNITS[1], bank=1)
    simulation.run({"load": network.contents(GAINS, bank=1)}, {})
    return kind, simulation, plan


def _tensors(kind: str, seed: int) -> tuple[dict, dict]:  # type: ignore[type-arg]
    rng = np.random.default_rng(seed)
    x = random_tensor(rng, "s8", (3, UNITS[0] * 64, UNITS[1] * 64))
    every = run_all(PARTS, x, GAINS)
    inputs, outputs = PORTS[kind]
    return {name: every[name] for name in inputs}, {name: every[name] for name in outputs}


def test_pictures_in_a_row_at_the_planned_rate(core: tuple[str, Simulation, fold.Plan]) -> None:
    kind, simulation, plan = core
    inputs, outputs = _tensors(kind, 1)
    simulation.reset()
    cycles = [
        through(simulation, inputs, outputs, plan.lanes, frames=frames).cycles for frames in (1, 3)
    ]
    for name, tensor in outputs.items():
        assert len(np.unique(tensor)) > 7 or name == "h_a_z", f"{name} hardly varies"
    planned = plan.cycles * UNITS[0] * UNITS[1] / (plan.units[0] * plan.units[1])
    assert abs((cycles[1] - cycles[0]) / 2 / planned - 1) < 0.02


def test_back_pressure_on_every_stream(core: tuple[str, Simulation, fold.Plan]) -> None:
    kind, simulation, plan = core
    simulation.reset()
    through(simulation, *_tensors(kind, 2), plan.lanes, chance=0.4, seed=9)


def test_reset_within_a_picture(core: tuple[str, Simulation, fold.Plan]) -> None:
    kind, simulation, plan = core
    inputs, outputs = _tensors(kind, 3)
    simulation.reset()
    first = next(iter(inputs))
    beats = to_beats(inputs[first], plan.lanes)
    simulation.run({first: beats[: len(beats) // 3]}, {})
    simulation.reset()
    through(simulation, inputs, outputs, plan.lanes)
