"""Build folders whose cores are empty modules: what the tests of scripts and packages work on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lichen.boards import firmware, ipxact, overlay_package, shell, tcl
from lichen.boards.address_map import CORES, SEGMENT_BYTES, stem
from lichen.boards.board import BOARDS
from lichen.boards.buses import interface
from lichen.boards.core_image import CoreImage
from lichen.boards.ipxact import Component
from lichen.boards.record import NAME, CoreRecord, Record
from lichen.rtl.ports import core_pins
from lichen.rtl.registers import REGISTERS


def component(name: str, delays: int = 1) -> Component:
    """Give a core's component.xml without a core: pins and registers are those of all cores."""
    return Component(
        name=f"lichen_{name}",
        title=name,
        description=name,
        interface=interface(core_pins(delays)),
        files=[f"src/lichen_{name}.v", "src/memory.sv"],
        registers=REGISTERS,
        range_bytes=SEGMENT_BYTES,
    )


def record(board: str, cores: tuple[str, ...] = CORES) -> Record:
    """Give the record of a build that never was."""
    core = CoreRecord(
        0x1234ABCD, 1280, 720, 30.0, 30.1, 300_000_000, 9_966_000, 1 << 21, (1 << 20,)
    )
    return Record("0.1.0", board, stem(board), "student-s", "00" * 8, dict.fromkeys(cores, core))


def write(
    root: Path, board: str = "kv260", cores: tuple[str, ...] = CORES, delays: int = 1
) -> Path:
    """Write a build folder of that board."""
    made = record(board, cores)
    components = {name: component(name, delays) for name in cores}
    files = {NAME: made.text()}
    for part in components.values():
        base = f"ip/{part.name}"
        files[f"{base}/component.xml"] = ipxact.text(part)
        files[f"{base}/src/{part.name}.v"] = f"module {part.name}(); endmodule\n"
        files[f"{base}/src/memory.sv"] = "module lichen_memory(); endmodule\n"
    design = shell.design(components)
    files["vivado/build.tcl"] = tcl.script(BOARDS[board], made.stem, components, design)
    files |= {f"firmware/{k}": v for k, v in firmware.texts(made).items()}
    files |= {f"pynq/{k}": v for k, v in overlay_package.texts(made).items()}
    for path, text in files.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    for name in cores:
        words = np.arange(9, dtype=np.uint32)
        z_tables = (((7, bytes(8)),),)
        image = CoreImage(
            name, 0x1234ABCD, "student-s", bytes(8), 64, words, (), 1, z_tables, (0,) * 51,
            (1 << 20,),
        )  # fmt: skip
        (root / "weights").mkdir(exist_ok=True)
        image.write(root / "weights" / made.image_name(name))
    return root
