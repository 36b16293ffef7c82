"""Run a script for Vivado in the stand-in of vivado_stub.tcl."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

FOLDER = Path(__file__).parent
SPIRIT = "{http://www.spiritconsortium.org/XMLSchema/SPIRIT/1685-2009}"
TCLSH = shutil.which("tclsh")
WANTS_TCL = "needs tclsh: apt-get install tcl"


@dataclass(frozen=True)
class Ran:
    """What a run left: the exit code, what it printed, the commands it gave."""

    code: int
    output: str
    error: str
    commands: list[str]


def run(script: Path, scratch: Path, *arguments: str, settings: str = "") -> Ran:
    """Run a script with the packaged blocks of the `ip` folder beside its own folder."""
    assert TCLSH is not None
    repository = script.parent.parent / "ip"
    parts = [f"set stub(repository) {{{repository}}}", settings]
    parts += [packaged(path) for path in sorted(repository.glob("*/component.xml"))]
    (scratch / "settings.tcl").write_text("\n".join(parts), encoding="utf-8")
    record = scratch / "record.txt"
    command = [TCLSH, str(FOLDER / "vivado_stub.tcl"), str(record), str(scratch / "settings.tcl")]
    done = subprocess.run(
        [*command, str(script), *arguments], capture_output=True, text=True, timeout=60
    )
    commands = record.read_text(encoding="utf-8").splitlines() if record.exists() else []
    return Ran(done.returncode, done.stdout, done.stderr, commands)


def packaged(path: Path) -> str:
    """Say what a component.xml has in the words of vivado_blocks.tcl."""
    root = ElementTree.parse(path).getroot()
    vlnv = ":".join(_text(root, tag) for tag in ("vendor", "library", "name", "version"))
    widths = {}
    for port in root.iter(f"{SPIRIT}port"):
        left = port.find(f"{SPIRIT}wire/{SPIRIT}vector/{SPIRIT}left")
        widths[_text(port, "name")] = 1 + int(left.text or 0) if left is not None else 1
    for file in root.iter(f"{SPIRIT}file"):
        assert (path.parent / _text(file, "name")).is_file()
    lines, clocks, resets = [], {}, {}
    for bus in root.iter(f"{SPIRIT}busInterface"):
        kind = bus.find(f"{SPIRIT}busType").get(f"{SPIRIT}name")  # type: ignore[union-attr]
        if kind == "clock":
            values = _parameters(bus)
            resets[values["ASSOCIATED_RESET"]] = _physical(bus)["CLK"]
            clocks |= dict.fromkeys(values["ASSOCIATED_BUSIF"].split(":"), _physical(bus)["CLK"])
            lines.append(f"pin {_physical(bus)['CLK']} in clock 1 required")
    for bus in root.iter(f"{SPIRIT}busInterface"):
        kind = bus.find(f"{SPIRIT}busType").get(f"{SPIRIT}name")  # type: ignore[union-attr]
        name = _text(bus, "name")
        role = "master" if bus.find(f"{SPIRIT}master") is not None else "slave"
        if kind == "reset":
            assert _parameters(bus)["POLARITY"] == "ACTIVE_LOW"
            pin = _physical(bus)["RST"]
            lines.append(f"pin {pin} in reset_low 1 required {resets[pin]}")
        elif kind == "axis":
            bits = widths[_physical(bus)["TDATA"]]
            lines.append(f"interface {name} {role} stream {bits} {clocks[name]} required")
        elif kind == "aximm":
            lite = _parameters(bus)["PROTOCOL"] == "AXI4LITE"
            bits = widths[_physical(bus)["WDATA"]]
            assert bits == int(_parameters(bus)["DATA_WIDTH"])
            what = "lite" if lite else "memory"
            lines.append(f"interface {name} {role} {what} {bits} {clocks[name]} required")
    lines += _addresses(root)
    return f"packaged {vlnv} {{\n" + "\n".join(lines) + "\n}"


def _addresses(root: ElementTree.Element) -> list[str]:
    """Give the segments and spaces that bus interfaces refer to."""
    lines = []
    for bus in root.iter(f"{SPIRIT}busInterface"):
        name = _text(bus, "name")
        memory = bus.find(f"{SPIRIT}slave/{SPIRIT}memoryMapRef")
        if memory is not None:
            wanted = memory.get(f"{SPIRIT}memoryMapRef")
            found = next(m for m in root.iter(f"{SPIRIT}memoryMap") if _text(m, "name") == wanted)
            block = found.find(f"{SPIRIT}addressBlock")
            assert block is not None
            segment = f"{wanted}/{_text(block, 'name')}"
            lines.append(f"segment {segment} {name} {_text(block, 'range')}")
        space = bus.find(f"{SPIRIT}master/{SPIRIT}addressSpaceRef")
        if space is not None:
            wanted = space.get(f"{SPIRIT}addressSpaceRef")
            spaces = root.iter(f"{SPIRIT}addressSpace")
            found = next(s for s in spaces if _text(s, "name") == wanted)
            lines.append(f"space {wanted} {name} 0 {_text(found, 'range')}")
    return lines


def _text(parent: ElementTree.Element, tag: str) -> str:
    found = parent.find(f"{SPIRIT}{tag}")
    assert found is not None and found.text
    return found.text


def _physical(bus: ElementTree.Element) -> dict[str, str]:
    return {
        _text(pair.find(f"{SPIRIT}logicalPort"), "name"): _text(  # type: ignore[arg-type]
            pair.find(f"{SPIRIT}physicalPort"),  # type: ignore[arg-type]
            "name",
        )
        for pair in bus.iter(f"{SPIRIT}portMap")
    }


def _parameters(bus: ElementTree.Element) -> dict[str, str]:
    return {_text(p, "name"): _text(p, "value") for p in bus.iter(f"{SPIRIT}parameter")}
