"""docs/study.md: every figure in it stands in docs/results/study.json, and is still found."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="a study needs PyTorch: pip install 'lichen[train]'")

from lichen.study import document
from lichen.study.result import Video
from lichen.study.study import study

DOCS = Path(__file__).parent.parent / "docs"
AGAIN = "run scripts/study-document"


@pytest.fixture(scope="module")
def template() -> str:
    return (DOCS / "templates" / "study.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def kept() -> dict[str, document.Figure]:
    figures: dict[str, document.Figure] = json.loads(
        (DOCS / "results" / "study.json").read_text(encoding="utf-8")
    )
    return figures


def test_figures_are_written_as_people_read_them() -> None:
    figures: dict[str, document.Figure] = {"a.b-1": 1948.69, "n": 50495, "word": "does not fit"}
    assert document.fill("{a.b-1} {a.b-1:1} {n} {word} {n:0}", figures) == (
        "1,950 1,948.7 50,495 does not fit 50,495"
    )
    assert document.names("{b} {a:1} {b}") == ["a", "b"]
    with pytest.raises(KeyError):
        document.fill("{none}", figures)


def test_the_document_is_its_template(template: str, kept: dict[str, document.Figure]) -> None:
    assert document.names(template) == sorted(kept), AGAIN
    text = document.fill(template, kept)
    assert text == (DOCS / "study.md").read_text(encoding="utf-8"), AGAIN
    assert "{" not in text, "a name without a figure"


def test_its_figures_are_those_of_a_study_made_now(kept: dict[str, document.Figure]) -> None:
    """Of the model that changes most and of one that is quick; the others take half a minute."""
    pytest.importorskip("amaranth", reason="foldings need Amaranth: pip install 'lichen[rtl]'")
    pytest.importorskip("scipy", reason="BD-rates need SciPy: pip install 'lichen[eval]'")
    now = document.figures(
        study(["student-s", "balle2018"], ["zcu102", "kv260"], Video(1920, 1080, 30))
    )
    same = [name for name in kept if name in now and not name.startswith("intensity.")]
    assert len(same) > 60
    changed = {name: (kept[name], now[name]) for name in same if not _equal(kept[name], now[name])}
    assert not changed, AGAIN


def test_simulated_cycles_stand_beside_todays_foldings() -> None:
    """The measured rows of the tiny codec; those of the student are made by the same script."""
    pytest.importorskip("amaranth", reason="foldings need Amaranth: pip install 'lichen[rtl]'")
    from lichen.rtl import fold, graph

    sys.path.insert(0, str(Path(__file__).parent / "rtl"))
    try:
        import tiny_codec
    finally:
        sys.path.pop(0)
    programs = tiny_codec.programs()
    results = json.loads((DOCS / "results" / "pipeline-model.json").read_text(encoding="utf-8"))
    rows = [row for row in results["rows"] if row["name"].startswith("tiny codec")]
    assert len(rows) == 4
    for row in rows:
        _, core, wanted = row["name"].split(", ")
        clock = int(float(wanted.split()[0]) * 192 * 192 * 60)
        plan = fold.fold(getattr(graph, core)(programs), fold.Target(192, 192, 60, clock))
        frames = 2 / (plan.units[0] * plan.units[1])  # 64 x 128 pixels of 192 x 192
        again = "run scripts/measure-pipeline-model"
        assert plan.cycles * frames == pytest.approx(row["predicted_cycles"]), again


def _equal(a: document.Figure, b: document.Figure) -> bool:
    return a == b if isinstance(a, str) or isinstance(b, str) else a == pytest.approx(b, rel=1e-9)
