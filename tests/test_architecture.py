"""Which part may import which: the arrows point one way, and the codec stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "src" / "lichen"
FILES = sorted(ROOT.rglob("*.py"))
CODEC = {"api", "arguments", "codec", "container", "files", "model", "picture"}
LEARN = {"lower", "models", "training"}
# Each part of lichen, and the parts that it may import. evaluation and study see all; nobody sees
# them but the command line, whose commands import them when they run.
ARROWS: dict[str, set[str]] = {
    "errors": set(),
    "_version": set(),
    "program": {"errors"},
    "native": {"errors", "program"},
    "crc32c": {"native"},
    "entropy": {"errors", "native"},
    "executors": {"errors", "native", "program"},
    "floating": {"errors", "program"},
    "container": {"crc32c", "errors"},
    "flow": {"errors", "program"},
    "model": {"entropy", "errors", "floating", "flow", "program"},
    "codec": {"container", "entropy", "errors", "executors", "model"},
    "picture": {"errors"},
    "neural": {"errors", "floating", "models", "program"},  # what runs float models
    "api": {"codec", "container", "errors", "executors", "model", "neural", "picture"},
    "__init__": {"_version", "api", "errors", "picture"},
    "files": {"container", "errors", "picture"},
    "arguments": {"_version", "api", "codec", "container", "training"},  # the fields of a recipe
    "conformance": CODEC | {"entropy", "errors", "executors", "program", "rtl"},
    "messages": {"api", "arguments", "errors", "files"},
    "commands": CODEC
    | {"boards", "conformance", "errors", "evaluation", "frugal", "messages", "rtl", "study"}
    | {"training"},
    "cli": {"arguments", "commands", "messages"},
    "__main__": {"cli"},
    "pillow": CODEC | {"errors"},
    "models": {"errors", "program"},
    "lower": {"entropy", "errors", "floating", "model", "models", "program"},
    "training": {"errors", "lower", "model", "models", "program"},
    "rtl": CODEC | {"crc32c", "entropy", "errors", "program"},
    "boards": CODEC | {"_version", "entropy", "errors", "executors", "program", "rtl"},
    "frugal": CODEC | LEARN | {"entropy", "errors", "evaluation", "executors", "program", "rtl"},
    "evaluation": CODEC | LEARN | {"_version", "entropy", "errors", "executors", "program"},
    "study": CODEC
    | LEARN
    | {"_version", "boards", "entropy", "errors", "evaluation", "program", "rtl"},
}
# Who may import the heavy packages; a name with a dot is one file.
HEAVY = {
    "torch": LEARN
    | {"evaluation", "executors.torch", "frugal", "neural", "study"}
    | {"boards.network", "boards.quantize"},  # templates of the Vitis AI flow
    "onnx": {"boards.qdq", "executors.onnx"},
    "onnxruntime": {"boards.qdq", "executors.onnx"},
    "amaranth": {"boards", "rtl"},
    "scipy": {"evaluation"},
    "matplotlib": {"evaluation"},
}


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Give each absolute module that a file imports, at its top or in a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative imports hide the arrow"
            assert node.module
            if node.module == "lichen":
                yield from (f"lichen.{alias.name}" for alias in node.names)
            else:
                yield node.module


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows(path: Path) -> None:
    part = part_of(path)
    assert part in ARROWS, f"{part} is new: say in ARROWS what it may import"
    for name in imports(path):
        top, *rest = name.split(".")
        if top == "lichen":
            assert rest, f"{path}: import the part that is needed, not the whole of lichen"
            assert rest[0] in {part, *ARROWS[part]}, f"{path}: {part} must not import {name}"
        elif top in HEAVY:
            file = f"{part}.{path.stem}"
            assert {part, file} & HEAVY[top], f"{path}: {part} must not import {top}"


def test_arrows_point_one_way() -> None:
    assert list(TopologicalSorter(ARROWS).static_order())


MODULES = ["lichen", "lichen.cli", "lichen.pillow", "lichen.boards.device"]


@pytest.mark.parametrize("module", MODULES)
def test_the_codec_is_light(module: str) -> None:
    heavy = ", ".join(repr(name) for name in HEAVY)
    code = f"import sys, {module}; print([name for name in ({heavy}) if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
