"""The study's page, its JSON, its summary, and the command that writes them; browsers apart."""

from __future__ import annotations

import errno
import json
import math
import os
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch", reason="a study needs PyTorch: pip install 'lichen[train]'")

from study_example import HOSTILE, example

from lichen.cli import main
from lichen.errors import ModelError
from lichen.study import command
from lichen.study.page import render
from lichen.study.result import Study, Video
from lichen.study.svg import Drawing, Scale, span
from lichen.study.tables import write, write_size
from lichen.study.terminal import summary

VOID = {"meta", "path", "rect", "link", "br", "img"}


class Outline(HTMLParser):
    """Reads a page as strictly as a parser of XML would: what is opened is closed, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: Counter[str] = Counter()
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        assert len(values) == len(attrs), f"{tag} has an attribute twice"
        self.tags[tag] += 1
        self.ids += [values["id"] or ""] if "id" in values else []
        self.links += [values[name] or "" for name in ("href", "src") if name in values]
        if tag not in VOID or tag in ("path", "rect"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes another"

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_is_whole() -> None:
    text = render(example(), "lichen study")
    outline = Outline(text)
    assert [name for name, count in Counter(outline.ids).items() if count > 1] == []
    assert {link.lstrip("#") for link in outline.links} <= set(outline.ids), "links lead somewhere"
    assert all(link.startswith("#") for link in outline.links), "nothing comes from outside"
    assert "http" not in text.replace("http-equiv", ""), "nor is anything named there"
    assert outline.tags["script"] == 1, "a hostile name is text"
    assert "".join(outline.words).count(HOSTILE) >= 3
    for word in ("None", "nan", "inf<", "$"):
        assert not re.search(
            rf">[^<]*{re.escape(word)}", text.split("<body>")[1].split("<script")[0]
        ), word


def test_the_page_holds_what_the_study_found() -> None:
    study = example()
    text = "".join(Outline(render(study, "lichen study student")).words)
    model = study.models[1]
    for expected in (
        model.paper, model.note, model.lowers_reason, model.advice[0].title, model.advice[0].costs,
        *(limit for result in model.dpu for limit in result.limits),
        *(result.limit for result in model.pipeline),
        *(layer.name for part in model.parts for layer in part.layers),
        *(layer.dpu.rewrite for part in model.parts for layer in part.layers),
        *(check.name for predictor in study.predictors for check in predictor.checks),
        study.predictors[1].missing, *study.notes, *study.boards[0].sources, "lichen study student",
        *(curve.name for curve in study.curves), "120\xa0", "+208.5\xa0%",
    ):  # fmt: skip
        assert expected.strip("\xa0") in text, expected


def test_a_study_of_little() -> None:
    """No models, no curves, no checks: still a page, a summary and JSON."""
    full = example()
    bare = replace(full.models[0], parts=(), directions=(), dpu=(), pipeline=(), advice=(),
                   quality=replace(full.models[0].quality, curves=(), energy=()))  # fmt: skip
    for study in (
        replace(full, models=(bare,), curves=(), predictors=(), notes=()),
        replace(full, models=(), curves=(), predictors=(), boards=()),
    ):
        Outline(render(study, "lichen study"))
        assert summary(study)
        json.dumps(study.to_json(), allow_nan=False)


def test_json_has_no_infinities() -> None:
    study = example()
    odd = replace(study, seconds=math.inf)
    assert odd.to_json()["seconds"] is None
    back = json.loads(json.dumps(study.to_json(), allow_nan=False))
    assert back["models"][0]["parts"][0]["layers"][1]["dpu"]["place"] == "rewrite"


def test_summary_fits_a_terminal() -> None:
    lines = summary(example()).splitlines()
    assert max(map(len, lines)) <= 120
    student = [line for line in lines if line.startswith("student")]
    assert student[0].split() == ["student", "9.00", "9.00", "0.0160", "1", "+95.0", "%", "m"]
    assert student[1].split()[1:7] == ["40", "%", "in", "9", "40", "%"]
    assert student[1].split()[9:] == ["333+", "333+", "33.0+", "33.0+"]
    minnen = [line for line in lines if line.startswith("minnen2020")]
    assert minnen[1].split()[-1] == "<0.833"
    assert "wrong by at most 5.0 % in 5 checks" in summary(example())


@pytest.mark.parametrize(
    "value, text",
    [(0.0, "0"), (8, "8"), (1234567, "1,234,567"), (8.0, "8.00"), (1234567.0, "1,230,000"),
     (0.01234, "0.0123"), (99.96, "100.0"), (-5.5, "-5.50"), (1e-9, "1.0e-09"), (math.inf, "∞")],
)  # fmt: skip
def test_numbers(value: float, text: str) -> None:
    assert write(value) == text


def test_sizes() -> None:
    assert [write_size(n) for n in (12, 1200, 3_400_000)] == [
        "12\xa0B", "1.20\xa0kB", "3.40\xa0MB",
    ]  # fmt: skip


@given(st.lists(st.floats(1e-6, 1e9), min_size=1), st.booleans(), st.floats(40, 1200))
def test_axes_hold_their_values(values: list[float], log: bool, length: float) -> None:
    scale = Scale(*span(values, log), 0.0, length, log)
    assert all(-0.01 <= scale(value) <= length + 0.01 for value in values)
    ticks = scale.ticks()
    assert ticks == sorted(set(ticks))
    pixels = [scale(tick) for tick in ticks]
    assert all(-0.5 <= pixel <= length + 0.5 for pixel in pixels)
    assert all(b - a >= 14 for a, b in pairwise(pixels)), "ticks do not touch"


def test_labels_do_not_overlap() -> None:
    drawing = Drawing(400, 300, "a chart")
    placed = [drawing.label(200 + i, 150 + i, f"label {i}") for i in range(40)]
    assert placed[0] and not all(placed), "there is room for some"
    boxes = drawing.taken
    assert not any(
        a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
        for i, a in enumerate(boxes) for b in boxes[i + 1 :]
    )  # fmt: skip


# The command


class Shell:
    """Runs `lichen study` in a folder of its own, with a made-up study."""

    def __init__(self, folder: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capture = folder, capture

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        code = main(["study", *arguments])
        return code, *self.capture.readouterr()

    @property
    def files(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Shell:
    def study(models: list[str], boards: list[str], video: Video) -> Study:
        if "wrong" in models:
            raise ModelError("no model is called 'wrong'; there are student")
        return replace(example(), video=video)

    monkeypatch.setattr(command, "study", study)
    monkeypatch.chdir(tmp_path)
    return Shell(tmp_path, capsys)


def test_page_json_and_summary(shell: Shell) -> None:
    code, out, err = shell("student", "--video", "1280x720@60", "-o", "x.html")
    assert (code, err) == (0, "")
    assert shell.files == {"x.html", "x.json"}
    assert "1280x720 at 60 frames/s" in out and "x.html and x.json written" in out
    assert json.loads(Path("x.json").read_text())["video"] == {
        "width": 1280, "height": 720, "frames_per_second": 60.0,
    }  # fmt: skip
    text = Path("x.html").read_text()
    assert "lichen study student --video 1280x720@60 -o x.html" in text


def test_standard_output(shell: Shell) -> None:
    code, out, err = shell("-o", "-")
    assert code == 0 and shell.files == set()
    assert out.startswith("<!DOCTYPE html>") and out.rstrip().endswith("</html>")
    assert "frames/s" in err
    code, out, _ = shell("--json")
    assert code == 0 and shell.files == {"study.html", "study.json"}
    assert json.loads(out)["models"][0]["name"] == "student"
    assert shell("--quiet")[:2] == (0, "")


@pytest.mark.parametrize(
    "arguments, code, words",
    [
        (["--video", "0x1080@30"], 2, ("1920x1080", "0x1080")),
        (["--video", "1920x1080"], 2, ("1280x720@60",)),
        (["--video", "1920x99999@30"], 2, ("1920x99999",)),
        (["--video", "1920x1080@0"], 2, ("positive",)),
        (["--video", "1920x1080@-1"], 2, ("positive",)),
        (["-o", "x.json"], 2, (".html",)),
        (["-o", "nowhere/x.html"], 3, ("nowhere", "folder")),
        (["-o", "."], 3, ("folder",)),
        (["wrong"], 4, ("wrong", "student")),
    ],
)
def test_bad_input(shell: Shell, arguments: list[str], code: int, words: tuple[str, ...]) -> None:
    found, out, err = shell(*arguments)
    assert (found, out) == (code, "")
    assert err.startswith("lichen: error: ") and len(err.splitlines()) == 1
    assert all(word in err for word in words), err
    assert shell.files == set()


def test_nothing_is_overwritten_unasked(shell: Shell) -> None:
    Path("study.json").write_text("kept")
    code, _, err = shell("--no-overwrite")
    assert code == 3 and "study.json" in err
    assert shell.files == {"study.json"} and Path("study.json").read_text() == "kept"
    assert shell()[0] == 0 and shell.files == {"study.html", "study.json"}


@pytest.mark.parametrize("breaks", ["render", "json", "disk"])
def test_a_failure_leaves_nothing(
    shell: Shell, breaks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("study.html").write_text("the page before")

    def fail(*_: object, **__: object) -> str:
        raise RuntimeError("no more")

    def full(source: Path, target: Path, rename: Any = os.replace) -> None:
        if target.name == "study.json":
            raise OSError(errno.ENOSPC, "the disk is full")
        rename(source, target)

    if breaks == "render":
        monkeypatch.setattr("lichen.study.page.render", fail)
    elif breaks == "json":
        monkeypatch.setattr("lichen.study.command.json.dumps", fail)
    else:
        monkeypatch.setattr("lichen.files.os.replace", full)
    assert shell()[0] == (3 if breaks == "disk" else 6)
    assert shell.files == {"study.html"}
    assert Path("study.html").read_text() == "the page before"


# With the real figures

FOREIGN = """
from torch import nn

def make():
    return nn.Sequential(nn.Conv2d(3, 16, 5, 2, 2), nn.GELU(), nn.ConvTranspose2d(16, 3, 4, 2, 1))
"""


@pytest.fixture
def real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Shell:
    pytest.importorskip("amaranth", reason="foldings need Amaranth: pip install 'lichen[rtl]'")
    pytest.importorskip("scipy", reason="BD-rates need SciPy: pip install 'lichen[eval]'")
    monkeypatch.chdir(tmp_path)
    return Shell(tmp_path, capsys)


def test_an_unknown_architecture_is_counted(real: Shell) -> None:
    Path("mine.py").write_text(FOREIGN)
    code, out, err = real("mine.py:make", "--board", "kv260", "--video", "640x480@30")
    assert (code, err) == (0, "")
    assert real.files - {"__pycache__"} == {"mine.py", "study.html", "study.json"}
    Outline(Path("study.html").read_text())
    model = json.loads(Path("study.json").read_text())["models"][0]
    assert not model["recognised"] and model["note"]
    # 5x5 taps of 3 x 16 channels at half the size, and 4x4 of 16 x 3 from half the size
    macs = (25 * 3 * 16 + 16 * 16 * 3) / 4
    assert sum(part["kmac_per_pixel"] for part in model["parts"]) == pytest.approx(macs / 1e3)
    assert {layer["kind"] for part in model["parts"] for layer in part["layers"]} >= {
        "conv", "gelu", "deconv",
    }  # fmt: skip
    assert "make" in out and "kv260" in out and "zcu102" not in out


def test_bad_files(real: Shell) -> None:
    Path("mine.toml").write_text('[part]\ndevice = "XC7"\n')
    Path("mine.safetensors").write_bytes(b"no weights")
    for arguments, words in (
        (["--board", "mine.toml"], ("mine.toml", "part.dsp is missing", "dram.gbyte_per_s")),
        (["--board", "versal"], ("versal", "kv260")),
        (["mine.safetensors"], ("mine.safetensors",)),
        (["balle2019"], ("balle2019", "balle2018", "zou2022-stf")),
        (["--video", "15x15@30"], ("15", "1920x1080@30")),
    ):
        code, out, err = real(*arguments)
        assert code in (2, 4) and out == "", (arguments, code, err)
        assert err.startswith("lichen: error: ") and len(err.splitlines()) == 1
        assert all(word in err for word in words), err
        assert real.files == {"mine.toml", "mine.safetensors"}
