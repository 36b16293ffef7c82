"""What CI installs is pinned: all that the requirements lead to has a version in one file."""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
EXTRAS = ("train", "onnx", "eval", "rtl", "dev")  # as scripts/test installs them
BESIDE = {"lichen", "pip"}  # what is tested, and what comes with Python


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def lines(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def pins() -> dict[str, str]:
    found = {}
    for line in lines(FOLDER / "constraints.txt"):
        name, _, rest = line.partition("==")
        found[canonical(name)] = rest.partition(";")[0].strip()
    return found


def needed() -> set[str]:
    """Give the names of all that is installed for the requirements and lichen's extras."""
    requirements = pytest.importorskip("packaging.requirements")
    pyproject = pytest.importorskip("tomllib", reason="Python 3.11").loads(
        (FOLDER.parent / "pyproject.toml").read_text(encoding="utf-8")
    )["project"]
    pending = [*lines(FOLDER / "requirements.txt"), *pyproject["dependencies"]]
    for extra in EXTRAS:
        pending += pyproject["optional-dependencies"][extra]
    found: set[str] = set()
    seen: set[str] = set()
    while pending:
        line = pending.pop()
        if line in seen:
            continue
        seen.add(line)
        wanted = requirements.Requirement(line)
        extras = wanted.extras or {""}
        if wanted.marker and not any(wanted.marker.evaluate({"extra": e}) for e in extras):
            continue
        try:
            installed = metadata.distribution(wanted.name)
        except metadata.PackageNotFoundError:
            continue  # not here; in CI everything is
        found.add(canonical(wanted.name))
        for text in installed.requires or []:
            inner = requirements.Requirement(text)
            if inner.marker is None or any(inner.marker.evaluate({"extra": e}) for e in extras):
                inner.marker = None
                pending.append(str(inner))
    return found


@pytest.mark.skipif(sys.version_info < (3, 11), reason="versions are pinned from Python 3.11 on")
def test_all_that_is_installed_is_pinned() -> None:
    missing = needed() - pins().keys() - BESIDE
    assert not missing, f"without a version in tests/constraints.txt: {', '.join(sorted(missing))}"


def test_pins_are_exact() -> None:
    for name, version in pins().items():
        assert re.fullmatch(r"[0-9][0-9A-Za-z.+]*", version), f"{name}: {version!r}"


def test_a_package_without_a_pin_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = pins()
    del kept["numpy"]
    monkeypatch.setattr(sys.modules[__name__], "pins", lambda: kept)
    with pytest.raises(AssertionError, match="numpy"):
        test_all_that_is_installed_is_pinned()
