"""Synthesis: levels of logic in netlists, predictions against what was measured, a small stage."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lichen.errors import ContractError, DeviceError
from lichen.rtl import fold, paths, synthesise
from lichen.rtl.fork import Fork
from lichen.rtl.layer import Folding, Layer

RESULTS = Path(__file__).parents[2] / "docs" / "results" / "synthesis.json"
TOLERANCE = 0.10
SMALL = Layer(16, 8, (3, 3), (1, 1), (1, 1), 1, "s8", "u8", 20), Folding(4, 1, 4, 8)
SIZE = (16, 16)


def _cell(kind: str, output: int | None, *inputs: int) -> dict[str, Any]:
    ports = {f"I{k}": [bit] for k, bit in enumerate(inputs)}
    directions = dict.fromkeys(ports, "input") | {"O": "output"}
    if output is not None:
        ports["O"] = [output]
    return {"type": kind, "connections": ports, "port_directions": directions}


def _module(cells: dict[str, Any], **ports: tuple[str, int]) -> dict[str, Any]:
    described = {name: {"direction": way, "bits": [bit]} for name, (way, bit) in ports.items()}
    return {"cells": cells, "ports": described, "netnames": {}}


def test_levels_of_logic() -> None:
    """A register, two LUTs, a chain of two carries, a LUT and a wide multiplexer: four levels."""
    cells = {
        "q": _cell("FDRE", 1, 9), "a": _cell("LUT2", 2, 1), "b": _cell("LUT6", 3, 2, 1),
        "c0": _cell("CARRY4", 4, 3), "c1": _cell("CARRY4", 5, 4), "d": _cell("LUT3", 6, 5),
        "m": _cell("MUXF7", 7, 6), "r": _cell("FDRE", 8, 7), "f": _cell("LUT1", 9, 8),
    }  # fmt: skip
    assert paths.analyse(_module(cells)).inside == 4
    assert paths.analyse(_module({"q": _cell("FDRE", 1, 1)})).inside == 0
    alone = {"q": _cell("FDRE", 1, 2), "i": _cell("INV", 2, 1)}
    assert paths.analyse(_module(alone)).inside == 1


def test_levels_across_modules() -> None:
    """in -LUT-> register; register -LUT-LUT-> out; way -LUT-> through. Outside: three more LUTs."""
    child = _module(
        {
            "a": _cell("LUT2", 3, 1), "q": _cell("FDRE", 4, 3), "b": _cell("LUT2", 5, 4),
            "c": _cell("LUT2", 6, 5), "t": _cell("LUT1", 7, 2),
        },
        i=("input", 1), way=("input", 2), o=("output", 6), through=("output", 7),
    )  # fmt: skip
    arcs = paths.analyse(child)
    assert (arcs.before, arcs.behind) == ({"i": 1}, {"o": 2})
    assert arcs.through == {("way", "through"): 1}
    ports = {"i": [13], "o": [11], "way": [11], "through": [12]}
    ways = {"i": "input", "o": "output", "way": "input", "through": "output"}
    cells = {
        "box": {"type": "child", "connections": ports, "port_directions": ways},
        "x": _cell("LUT2", 13, 12),
    }
    # out (2), through (1), a LUT (1), into the register (1)
    assert paths.analyse(_module(cells), {"child": arcs}).inside == 5


def test_lut_ram_is_read_and_written() -> None:
    """Its address is a level on the way to what it gives; its data is the end of a path."""
    ram = {
        "type": "RAM64M8",
        "connections": {"ADDRA": [2], "DIA": [4], "WE": [4], "DOA": [5]},
        "port_directions": {"ADDRA": "input", "DIA": "input", "WE": "input", "DOA": "output"},
    }
    cells = {
        "q": _cell("FDRE", 1, 5), "a": _cell("LUT2", 2, 1), "d": _cell("LUT2", 3, 1),
        "e": _cell("LUT2", 4, 3), "ram": ram,
    }  # fmt: skip
    assert paths.analyse(_module(cells)).inside == 2
    del cells["ram"]["connections"]["ADDRA"]
    cells["q"]["connections"]["I0"] = [4]
    assert paths.analyse(_module(cells)).inside == 2


def test_cells_add_up() -> None:
    found = synthesise.sums({"LUT2": 3, "RAM32M16": 2, "FDRE": 5, "RAMB18E2": 1, "CARRY4": 2})
    assert found == {
        "dsp": 0, "lut": 19, "lut_as_memory": 16, "ff": 5, "bram36": 0.5, "bram18": 1, "uram": 0,
        "carry4": 2,
    }  # fmt: skip


def _results() -> list[dict[str, Any]]:
    return json.loads(RESULTS.read_text(encoding="utf-8"))["stages"]  # type: ignore[no-any-return]


LEVELS = 6


@pytest.mark.parametrize("entry", _results(), ids=lambda entry: entry["stage"])
def test_predictions_agree_with_what_was_measured(entry: dict[str, Any]) -> None:
    """The formulas of today against the committed measurements, none further off than 10 %."""
    given = entry["parameters"]
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in given["layer"].items()}
    layer, folding = Layer(**values), Folding(**given["folding"])
    predicted = asdict(fold.predict(layer, folding, given["columns"]))
    assert predicted == entry["predicted"], "scripts/bench-synth has not been run since"
    for name, value in predicted.items():
        measured = entry["measured"][name]
        assert abs(value - measured) <= TOLERANCE * measured, name
    assert entry["measured"]["levels"] <= LEVELS


def test_some_stages_are_held_out() -> None:
    held = [entry["held_out"] for entry in _results()]
    assert sum(held) >= 3 and held.count(False) >= 5


@pytest.fixture(scope="session")
def made() -> list[synthesise.Module]:
    """A small convolution and a fork, in one run of Yosys: seconds, and only once."""
    try:
        synthesise.yosys()
    except DeviceError as error:
        pytest.skip(str(error))
    texts = [synthesise.convolution(*SMALL, *SIZE), synthesise.verilog_of(Fork(8, 2))]
    return synthesise.modules(texts)


def test_a_small_stage_is_what_was_predicted(made: list[synthesise.Module]) -> None:
    predicted, counts = fold.predict(*SMALL, SIZE[1]), made[0].counts
    assert (predicted.dsp, predicted.bram36) == (counts["dsp"], counts["bram36"])
    assert abs(predicted.lut / counts["lut"] - 1) < 0.15
    assert abs(predicted.ff / counts["ff"] - 1) < 0.15
    assert made[0].arcs.levels <= 6


def test_a_fork_cuts_the_way_of_ready(made: list[synthesise.Module]) -> None:
    arcs = made[1].arcs
    assert ("output_0__ready", "input__ready") not in arcs.through
    assert ("input__valid", "output_0__valid") in arcs.through
    assert arcs.behind["input__ready"] <= 1


def test_a_missing_tool_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    monkeypatch.setattr(synthesise.shutil, "which", lambda name: None)
    with pytest.raises(DeviceError, match="apt-get install yosys"):
        synthesise.yosys()


def test_an_unknown_stage_is_named() -> None:
    known = SimpleNamespace(folding=SMALL[1], stage=SimpleNamespace(name="g_a.there"))
    plan = SimpleNamespace(stages=(known,))
    with pytest.raises(ContractError, match=r"no convolution g_a\.wrong; there are g_a\.there"):
        synthesise.core(None, plan, None, ["g_a.wrong"])  # type: ignore[arg-type]
