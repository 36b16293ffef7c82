"""The leaves, and the Verilog of a stage, are clean under `verilator -Wall` but for lint.vlt."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import tiny_board
from amaranth.back import verilog

from lichen.rtl.layer import Folding, Layer
from lichen.rtl.leaf import FOLDER, SOURCES, LoadBus
from lichen.rtl.requantise import Requantise
from lichen.rtl.simulate import verilator

LAYER = Layer(8, 6, (3, 3), (1, 1), (1, 1), 2, "s8", "u8", 24)


def _lint(*arguments: str) -> str:
    """Give the warnings and errors."""
    root, command = verilator()
    done = subprocess.run(
        [*command, "--lint-only", "-Wall", str(FOLDER / "lint.vlt"), *arguments],
        capture_output=True, text=True, env={**os.environ, "VERILATOR_ROOT": root},
    )  # fmt: skip
    lines = (done.stdout + done.stderr).splitlines()
    return "\n".join(line for line in lines if line.startswith("%"))


@pytest.mark.parametrize(
    "parameters",
    [
        ("lichen_mac_array", '-GFACE="plain"'),
        ("lichen_mac_array", '-GFACE="packed"'),
        ("lichen_mac_array", '-GFACE="packed"', "-GX_BITS=16", "-GPIXELS=3", "-GLANES=2"),
        ("lichen_memory", "-GWIDTH=9"),
        ("lichen_memory", "-GDEPTH=5000", "-GLATENCY=2", "-GULTRA=4096", "-GBLOCK=512"),
        ("lichen_memory", "-GDEPTH=300", "-GBLOCK=0"),
    ],
)
def test_leaves(parameters: tuple[str, ...]) -> None:
    top, *rest = parameters
    names = ("memory.sv",) if top == "lichen_memory" else ("mac_array.sv", "mac_chain.sv")
    sources = [str(path) for path in SOURCES if path.name in names]
    assert _lint("--top-module", top, *rest, *sources) == ""


def test_generated_verilog(tmp_path: Path) -> None:
    unit = Requantise(LAYER, Folding(4, 3, 2, 4), 16, LoadBus(), 0)
    source = tmp_path / "requantise.v"
    source.write_text(verilog.convert(unit, name="requantise", emit_src=False), encoding="utf-8")
    memory = str(FOLDER / "memory.sv")
    assert _lint("--top-module", "requantise", str(source), memory) == ""


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_tops(kind: str, tmp_path: Path) -> None:
    """A whole core behind its AXI ports, with delays in DRAM."""
    source = tmp_path / "top.v"
    source.write_text(verilog.convert(tiny_board.top(kind), name="top", emit_src=False))
    assert _lint("--top-module", "top", str(source), *map(str, SOURCES)) == ""


def test_a_mistake_is_found(tmp_path: Path) -> None:
    source = tmp_path / "wrong.sv"
    source.write_text("module wrong(input [3:0] a, output [1:0] b); assign b = a; endmodule\n")
    assert "WIDTHTRUNC" in _lint("--top-module", "wrong", str(source))
