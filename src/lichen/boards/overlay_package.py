"""Overlay package: a bitfile as a package for pip, by which PYNQ finds it and its notebook.

    pip install ./pynq        on the board
    pynq.Overlay("lichen-kv260.bit")
    pynq get-notebooks lichen-kv260

Entry points: `pynq.overlays` (folders in which Overlay looks for a bitfile) and `pynq.notebooks`
(PYNQ's documentation, "Python Packaging"). The .hwh lies beside the .bit, with the same stem.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lichen.boards.board import board
from lichen.boards.record import Record

NOTEBOOK_FORMAT = (4, 5)


def package(record: Record) -> str:
    """Give the name of the Python package."""
    return record.stem.replace("-", "_")


def texts(record: Record) -> Mapping[str, str]:
    """Give the package's files but for .bit and .hwh: text by path."""
    name = package(record)
    return {
        "pyproject.toml": _pyproject(record),
        f"{name}/__init__.py": _init(record),
        f"{name}/notebooks/__init__.py": "",
        f"{name}/notebooks/lichen.ipynb": notebook(record),
    }


def _pyproject(record: Record) -> str:
    name = package(record)
    # The wheel has a version of its own as soon as the weights or the shape of a core differ.
    layouts = ".".join(f"{core.layout:08x}" for core in record.cores.values())
    return f"""\
[build-system]
requires = ["setuptools>=61"]
build-backend = "setuptools.build_meta"

[project]
name = "{record.stem}"
version = "{record.lichen}+{layouts}"
description = "lichen's cores on the {board(record.board).title}, an overlay for PYNQ"
license = {{ text = "Apache-2.0" }}
requires-python = ">=3.10"
dependencies = ["pynq>=3.0", "lichen"]

[project.entry-points."pynq.overlays"]
{record.stem} = "{name}"

[project.entry-points."pynq.notebooks"]
{record.stem} = "{name}.notebooks"

[tool.setuptools]
packages = ["{name}", "{name}.notebooks"]

[tool.setuptools.package-data]
{name} = ["*.bit", "*.hwh", "*.json", "*.npz"]
"{name}.notebooks" = ["*.ipynb"]
"""


def _init(record: Record) -> str:
    cores = " and ".join(record.cores)
    return f'''\
"""lichen's {cores} on the {board(record.board).title}: an overlay for PYNQ."""

from pathlib import Path

BITFILE = str(Path(__file__).parent / "{record.stem}.bit")
'''


def notebook(record: Record) -> str:
    """Give the notebook, as nbformat 4 has it."""
    title = board(record.board).title
    cells: list[tuple[str, str]] = [
        (
            "markdown",
            f"# lichen on the {title}\n\nThe bitfile is loaded, a picture is encoded and decoded "
            "by the cores, and the result is compared with the codec of the processor: the same "
            "bytes, the same pixels.",
        ),
        ("code", f"!lichen selftest --device {record.board}"),
        (
            "markdown",
            "## A picture of your own\n\n`lichen encode` with `--device` works on files as without "
            "it; a core takes pictures up to "
            + ", ".join(f"{c.width}x{c.height} ({name})" for name, c in record.cores.items())
            + ".",
        ),
    ]
    if "encoder" in record.cores:
        encode = f"!lichen encode photo.png photo.lic --device {record.board}"
        cells.append(("code", f"{encode}\n!lichen info photo.lic"))
    if "decoder" in record.cores:
        cells.append(("code", f"!lichen decode photo.lic back.png --device {record.board}"))
    cells += [
        ("markdown", "## The overlay itself\n\nRegisters of the cores, as PYNQ sees them."),
        ("code", _registers(record)),
    ]
    return _notebook(cells)


def _registers(record: Record) -> str:
    first = next(iter(record.cores))
    return (
        "import pynq\n\n"
        f'overlay = pynq.Overlay("{record.stem}.bit", download=False)\n'
        f"overlay.{first}.register_map"
    )


def _notebook(cells: Sequence[tuple[str, str]]) -> str:
    found = []
    for number, (kind, source) in enumerate(cells):
        cell: dict[str, Any] = {
            "cell_type": kind, "id": f"cell-{number}", "metadata": {},
            "source": source.splitlines(keepends=True),
        }  # fmt: skip
        if kind == "code":
            cell |= {"execution_count": None, "outputs": []}
        found.append(cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {
        "cells": found,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": NOTEBOOK_FORMAT[0],
        "nbformat_minor": NOTEBOOK_FORMAT[1],
    }
    return json.dumps(whole, indent=1) + "\n"
