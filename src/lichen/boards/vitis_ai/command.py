"""The command `lichen export vitis-ai`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import warnings
from pathlib import Path

from lichen.boards.folder import check_output
from lichen.boards.vitis_ai import calibration, targets
from lichen.boards.vitis_ai.export import export
from lichen.boards.vitis_ai.measure import table
from lichen.boards.vitis_ai.readme import DEVICES
from lichen.files import UsageError, read, read_picture
from lichen.model import Model

WANTED = (
    "photographs to calibrate the DPU with are missing: give --photographs FOLDER, pictures like "
    "those that it will code"
)


def check(arguments: argparse.Namespace) -> None:
    """Refuse what needs no model to be refused. Raises LichenError, UsageError, OSError."""
    targets.target(arguments.board)
    check_output(Path(arguments.output))
    if arguments.photographs is None:
        raise UsageError(WANTED)
    calibration.photographs(arguments.photographs)


def vitis_ai(arguments: argparse.Namespace, model: Model) -> int:
    """Write the folder; print what was measured."""
    target = targets.target(arguments.board)
    output = Path(arguments.output)
    paths = calibration.photographs(arguments.photographs)
    pictures = [
        (path.name, read_picture(read(str(path)), path.name, calibration.MAX_PIXELS).rgb)
        for path in pictures_of(arguments.pictures)
    ]
    width, height = arguments.tile
    found = export(
        model,
        target,
        paths,
        output,
        linear=arguments.linear,
        tile=(height, width),
        count=arguments.crops,
        crop=arguments.crop,
        pictures=pictures,
    )
    for note in found.notes:
        warnings.warn(note, stacklevel=1)
    if arguments.json:
        rows = {k: [dataclasses.asdict(row) for row in v] for k, v in found.rows.items()}
        print(json.dumps({"output": str(output), "board": target.name, "measured": rows}))
    elif not arguments.quiet:
        for device, lines in found.rows.items():
            print(f"{DEVICES[device]}:", *table(lines), sep="\n  ")
        print(
            f"{output}: {', '.join(found.networks)} for the {target.title}; README.md has the steps"
        )
    return 0


def pictures_of(place: Path | None) -> list[Path]:
    """List a folder's pictures, or name the one picture."""
    if place is None or place.is_file():
        return [place] if place else []
    return sorted(p for p in place.iterdir() if p.suffix.lower() in calibration.SUFFIXES)
