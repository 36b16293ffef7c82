"""The commands `lichen build` and `lichen package`."""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lichen import model as models
from lichen.boards import folder, record, tcl, vivado
from lichen.boards.address_map import CORES, CoreName
from lichen.boards.board import Board, board
from lichen.errors import ContractError, DeviceError
from lichen.files import UsageError
from lichen.model import Model
from lichen.rtl import fold

if TYPE_CHECKING:
    from lichen.boards.cores import BoardCore

# What cores are folded for, alone and two of them: (width, height, pictures per second).
ALONE = {"kv260": (1920, 1080, 30.0), "zcu102": (1920, 1080, 60.0)}
TOGETHER = {"kv260": (1280, 720, 30.0), "zcu102": (1920, 1080, 30.0)}


def target_of(
    board: str, core: str, size: tuple[int, int] | None, rate: float | None
) -> fold.Target:
    """Give the target that the options name, or that of the board."""
    width, height, usual = (TOGETHER if core == "both" else ALONE)[board]
    if size is not None:
        width, height = size
    return fold.Target(width, height, rate or usual, shared=core == "both")


def build(arguments: argparse.Namespace, model: Model | None) -> int:
    """Write the folder, and run Vivado in it where there is one."""
    place, path = board(arguments.board), Path(arguments.output)
    folder.check_output(path)
    model = model or models.default()
    wanted = arguments.core or "both"
    target = target_of(place.name, wanted, arguments.size, arguments.fps)
    from amaranth.hdl import UnusedElaboratable

    from lichen.boards import cores  # Amaranth: not for `package`

    warnings.simplefilter("ignore", UnusedElaboratable)  # what an error leaves unused
    names = CORES if wanted == "both" else (wanted,)
    try:
        made = cores.make_all(model, names, place, target)
    except ContractError as error:
        raise UsageError(str(error)) from error
    warn_of_shortage(place, made)
    entry = folder.write(path, place, model, made)
    program = None if arguments.no_vivado else vivado.find()
    state = "written"
    if program is not None:
        vivado.warn_of(vivado.version(program))
        vivado.run(program, path, arguments.step)
        state = arguments.step
    packaged = package_or_note(path) if state == "all" else []
    if arguments.json:
        values = {"output": str(path), "state": state, "packages": [str(p) for p in packaged]}
        print(json.dumps({**json.loads(entry.text()), **values}))
    elif not arguments.quiet:
        print(_report(path, entry, state, packaged, arguments.no_vivado))
    return 0


def warn_of_shortage(place: Board, made: Mapping[CoreName, BoardCore]) -> None:
    """Warn where the plan already takes more than the part should give."""
    total = fold.Resources()
    for core in made.values():
        total += core.resources
    over = fold.shortfall(total, fold.PARTS[place.name])
    if over:
        text = ", ".join(f"{n}: {used:g} of {limit:g}" for n, (used, limit) in over.items())
        warnings.warn(
            f"by the plan the cores take more of the {place.title} than {fold.LIMIT:.0%}: {text}. "
            "Vivado may fail to place them or to keep the clock; a smaller --size or --fps, one "
            "core, or a smaller model takes less",
            stacklevel=2,
        )


def package_or_note(path: Path) -> list[Path]:
    """Make the packages; where a tool is missing, say so and go on."""
    try:
        return list(folder.finish(path))
    except DeviceError as error:
        warnings.warn(f"no packages yet: {error}; then: lichen package {path}", stacklevel=2)
        return []


def _report(
    path: Path, entry: record.Record, state: str, packaged: list[Path], unwanted: bool
) -> str:
    names = ", ".join(entry.cores)
    lines = [f"{path}: {names} for {entry.board}, model {entry.model} ({entry.weights})"]
    if state == "written":
        why = "" if unwanted else "Vivado is not on the PATH. "
        lines += [
            f"{why}Where it is (with {tcl.DOCUMENTED[0]} to {tcl.DOCUMENTED[-1]}), build by:",
            f"  cd {path / 'vivado'} && {folder.vivado_command()}",
            "then make the packages by:",
            f"  lichen package {path}",
        ]
    else:
        lines.append(f"Vivado did step '{state}'; reports are in {path / 'reports'}")
    lines += [f"  {file}" for file in packaged]
    return "\n".join(lines)


def package(arguments: argparse.Namespace) -> int:
    """Make the packages of a build folder."""
    path = Path(arguments.folder)
    made = folder.finish(path)
    if arguments.json:
        print(json.dumps({"folder": str(path), "packages": [str(file) for file in made]}))
    elif not arguments.quiet:
        print("\n".join(str(file) for file in made))
    return 0
