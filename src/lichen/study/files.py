"""The measured results that the study reads, wherever lichen is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lichen.errors import LichenError

HERE = Path(__file__).parent
# A checkout has them in docs/results; setup.py copies them beside this file for a wheel.
FOLDERS = (HERE.parents[2] / "docs" / "results", HERE / "data")


def find(name: str) -> Path | None:
    """Give the path of a file of results, or None where there is none."""
    return next((folder / name for folder in FOLDERS if (folder / name).is_file()), None)


def results(name: str) -> dict[str, Any]:
    """Read a JSON object of results. Raises LichenError where there is none or it is broken."""
    path = find(name)
    if path is None:
        raise LichenError(
            f"the study needs {name}, which is neither in {FOLDERS[0]} nor in {FOLDERS[1]}; "
            "install lichen again, or run from a whole checkout"
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LichenError(f"{path} must be JSON, but: {error}; restore it") from error
    if not isinstance(values, dict):
        raise LichenError(f"{path} must hold a JSON object, found {type(values).__name__}")
    return values
