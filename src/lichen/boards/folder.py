"""Folder: what `lichen build` writes, and the packages that are made of it.

DIR/README.md, lichen.json      what it is
DIR/ip/CORE/                    packaged IP: component.xml, src/
DIR/vivado/build.tcl            the script; its project is vivado/work
DIR/reports/, DIR/out/          what Vivado leaves: reports; STEM.bit, STEM.hwh, STEM.xsa
DIR/firmware/                   for Linux without PYNQ (`firmware`)
DIR/pynq/                       for PYNQ (`overlay_package`)
"""

from __future__ import annotations

import errno
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from lichen._version import VERSION
from lichen.boards import firmware, overlay_package, record, shell, tcl
from lichen.boards.address_map import CoreName, stem
from lichen.boards.board import Board
from lichen.boards.record import CoreRecord, Record
from lichen.errors import DeviceError
from lichen.files import UsageError
from lichen.model import Model

if TYPE_CHECKING:  # packages are made without the hardware's text
    from lichen.boards.cores import BoardCore


WEIGHTS = "weights"


def check_output(path: Path) -> None:
    """Refuse a folder that has something in it, or whose parent is not there."""
    if path.is_dir() and any(path.iterdir()):
        raise UsageError(f"the folder {path} is not empty; name another, or remove it")
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file; expected a new folder for --output")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no folder for the output", str(path))


def record_of(board: Board, model: Model, cores: Mapping[CoreName, BoardCore]) -> Record:
    """Give the record of a build."""
    found = {}
    for name, core in cores.items():
        target = core.plan.target
        found[str(name)] = CoreRecord(
            core.top.layout, target.width, target.height, target.frames_per_second,
            round(target.clock_hz / core.plan.cycles, 3), target.clock_hz, core.plan.cycles,
            core.image.words.nbytes, core.image.delay_bytes,
        )  # fmt: skip
    return Record(VERSION, board.name, stem(board.name), model.name, model.digest.hex(), found)


def write(path: Path, board: Board, model: Model, cores: Mapping[CoreName, BoardCore]) -> Record:
    """Write a build folder, whole or not at all."""
    check_output(path)
    made = record_of(board, model, cores)
    components = {name: core.component for name, core in cores.items()}
    design = shell.design(components)
    files = {
        record.NAME: made.text(),
        "README.md": readme(board, made),
        f"vivado/{tcl.SCRIPT}": tcl.script(board, made.stem, components, design),
    }
    for name, core in cores.items():
        files |= {f"ip/{components[name].name}/{k}": v for k, v in core.files().items()}
    files |= {f"firmware/{name}": text for name, text in firmware.texts(made).items()}
    files |= {f"pynq/{name}": text for name, text in overlay_package.texts(made).items()}
    temporary = path.absolute().with_name(f".{secrets.token_hex(8)}.lichen.part")
    try:
        for file, text in files.items():
            target = temporary / file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
        (temporary / WEIGHTS).mkdir()
        for core in cores.values():
            core.image.write(temporary / WEIGHTS / made.image_name(core.name))
        if path.is_dir():
            path.rmdir()
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return made


def finish(path: Path) -> Sequence[Path]:
    """Make the packages of a folder in which Vivado has been; give the files that were made.

    Raises DeviceError where Vivado has not been there, or a tool is missing or fails.
    """
    made = record.read(path)
    bit, handoff = (path / "out" / f"{made.stem}{suffix}" for suffix in (".bit", ".hwh"))
    for file in (bit, handoff):
        if not file.is_file():
            raise DeviceError(
                f"{file} is not there: run Vivado first, {vivado_command()} in {path / 'vivado'}"
            )
    home, package = path / "firmware", path / "pynq" / overlay_package.package(made)
    overlay = f"{made.stem}.dtbo"
    with TemporaryDirectory(dir=path) as name:  # so that nothing is there where a tool fails
        work = Path(name)
        shutil.copy(bit, work)
        shutil.copy(home / f"{made.stem}.bif", work)
        converted = firmware.convert_bitfile(work, made.stem)
        firmware.compile_overlay(home / f"{made.stem}.dtsi", work / overlay)
        files = [Path(shutil.copy(file, home)) for file in (converted, work / overlay)]
    loaded = [path / WEIGHTS / made.image_name(name) for name in made.cores]
    for place, wanted in ((home, loaded), (package, [bit, handoff, *loaded])):
        files += [Path(shutil.copy(file, place)) for file in [*wanted, path / record.NAME]]
    return files


def vivado_command() -> str:
    """Give the command that builds, to be run in the folder `vivado`."""
    return f"vivado -mode batch -source {tcl.SCRIPT}"


def _core_line(name: str, core: CoreRecord) -> str:
    delays = "".join(
        f", {size} bytes of DRAM for delay {number}" for number, size in enumerate(core.delay_bytes)
    )
    return (
        f"- {name}: pictures up to {core.width}x{core.height}, {core.cycles} cycles for one of "
        f"that size ({core.frames_per_second:.1f} per second at {core.clock_hz / 1e6:g} MHz), "
        f"layout {core.layout:#010x}{delays}"
    )


def readme(board: Board, made: Record) -> str:
    """Give README.md of a build folder."""
    cores = "\n".join(_core_line(name, core) for name, core in made.cores.items())
    files = [f"{made.stem}.bit.bin", f"{made.stem}.dtbo", *map(made.image_name, made.cores)]
    files += [record.NAME, *["shell.json"] * board.kria]
    installed = f"{firmware.INSTALLED}/{made.stem}"
    load = (
        f"xmutil unloadapp; xmutil loadapp {made.stem}"
        if board.kria
        else f"fpgautil -b {installed}/{made.stem}.bit.bin -o {installed}/{made.stem}.dtbo"
    )
    return f"""\
# lichen on the {board.title}

Written by `lichen build` (lichen {made.lichen}) for the shape of model {made.model}, weights
{made.weights}. Weights are loaded at run time: any model of this shape will do.

{cores}

1. Build, in `vivado/` (Vivado {tcl.DOCUMENTED[0]} to {tcl.DOCUMENTED[-1]}):

       {vivado_command()}

   leaves {made.stem}.bit, .hwh and .xsa in `out/`, and reports in `reports/`; it ends with an
   error where timing is not met. `-tclargs core` builds each core alone, `-tclargs design` only
   checks the block design.

2. Make the packages: `lichen package DIR`. Without lichen, in `firmware/`:

       cp ../out/{made.stem}.bit .
       bootgen -w -arch zynqmp -process_bitstream bin -image {made.stem}.bif
       dtc -@ -I dts -O dtb -o {made.stem}.dtbo {made.stem}.dtsi

   and copy `out/{made.stem}.bit` and `.hwh` to `pynq/{overlay_package.package(made)}/`,
   `lichen.json` and `weights/*` there and to `firmware/`.

3. On the board, with PYNQ: `pip install ./pynq`, then `lichen selftest --device {made.board}`.

4. On the board, without PYNQ: copy {", ".join(files)} to
   `{installed}/`, then

       {load}
       lichen selftest --device {made.board}

docs/boards.md of lichen has all of it step by step.
"""
