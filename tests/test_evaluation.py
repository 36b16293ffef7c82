"""`lichen eval`: BD-rates against the published table, metrics, codecs, files, and bad input."""

from __future__ import annotations

import csv
import importlib.util
import io
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("scipy", reason="evaluation needs the [eval] extra")
pytest.importorskip("matplotlib", reason="evaluation needs the [eval] extra")
pytest.importorskip("pytorch_msssim", reason="evaluation needs the [eval] extra")

import lichen
from lichen import container
from lichen import model as models
from lichen.api import Codec, DigestError
from lichen.cli import main
from lichen.errors import LichenError
from lichen.evaluation import metrics, plot, published, report
from lichen.evaluation.bd_rate import bd_rate
from lichen.evaluation.codecs import Spec, open_codec, parse
from lichen.evaluation.measure import Curve, Measured, Survey, measure, survey

TESTS = Path(__file__).parent
PUBLISHED = TESTS.parent / "docs" / "results" / "published.json"
PHOTOGRAPH = np.asarray(Image.open(TESTS / "samples" / "kodim23.webp").convert("RGB"))
BPP, PSNR = [0.1, 0.2, 0.4, 0.8, 1.6], [28.0, 30.5, 33.0, 36.0, 39.0]


# BD-rate


@pytest.mark.parametrize("method", ["pchip", "akima"])
@pytest.mark.parametrize("factor", [0.5, 1.0, 1.25])
def test_a_scaled_curve_differs_by_its_factor(method, factor):
    result = bd_rate(BPP, PSNR, np.multiply(BPP, factor), PSNR, method)
    assert result.percent == pytest.approx(100 * (factor - 1), abs=1e-9)
    assert (result.low, result.high, result.share) == (28.0, 39.0, 1.0)


def test_overlap_decides_the_range():
    result = bd_rate(BPP, PSNR, BPP, np.add(PSNR, 2))
    assert (result.low, result.high) == (30.0, 39.0) and result.percent < 0
    assert result.share == pytest.approx(9 / 11)


def test_points_that_say_nothing_are_left_out():
    expected = bd_rate(BPP, PSNR, [2 * r for r in BPP], PSNR)
    dearer = bd_rate(BPP, PSNR, [*(2 * r for r in BPP), 9.0], [*PSNR, 36.0])
    lossless = bd_rate([*BPP, 9.0], [*PSNR, math.inf], [2 * r for r in BPP], PSNR)
    assert dearer == lossless == expected


def test_curves_must_overlap_and_have_points():
    with pytest.raises(LichenError, match="overlap"):
        bd_rate(BPP, PSNR, BPP, np.add(PSNR, 20))
    for few in (PSNR[:3], [30.0, 30.0, 31.0, 32.0]):
        with pytest.raises(LichenError, match="four or more"):
            bd_rate(BPP[: len(few)], few, BPP, PSNR)
    with pytest.raises(LichenError, match="for each rate"):
        bd_rate(BPP, PSNR[:4], BPP, PSNR)


def test_published_bd_rates_are_reproduced():
    """Every row of a table that others computed from the same points, within 0.1 points."""
    curves = {curve.label: curve for curve in published.read(PUBLISHED)}
    anchors = {
        "VTM": "VTM",
        "BPG444": "BPG444 (x265, 8b)",
        "JPEG": "JPEG (Pillow 7.1.2, 4:2:0)",
    }
    with open(TESTS / "published_bd_rates.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 49
    for row, (short, name) in itertools.product(rows, anchors.items()):
        curve, anchor = curves[row["curve"]], curves[name]
        for method in ("pchip", "akima"):
            result = bd_rate(
                anchor.bpp, anchor.quality["psnr"], curve.bpp, curve.quality["psnr"], method
            )
            assert result.percent == pytest.approx(float(row[f"{short} {method}"]), abs=0.1), row
        if overlap := row.get(f"{short} overlap"):
            assert f"{result.low:.1f}-{result.high:.1f}" == overlap, row


# Metrics


def test_psnr():
    a = np.zeros((4, 4, 3), np.uint8)
    assert metrics.psnr(a, a) == math.inf
    assert metrics.psnr(a, a + np.uint8(255)) == 0.0
    assert metrics.psnr(a, a + np.uint8(1)) == pytest.approx(48.1308, abs=1e-4)


def test_psnr_yuv_weighs_bt709_planes_6_1_1():
    a = np.full((4, 4, 3), 100, np.uint8)
    assert metrics.psnr_yuv(a, a) == math.inf
    b = a.copy()
    b[..., 0] += 10  # red: Y by 2.126, Cb by -2.126 / 1.8556, Cr by 10 * 0.7874 / 1.5748 = 5
    y, u, v = (20 * math.log10(255 / e) for e in (2.126, 2.126 / 1.8556, 5.0))
    assert metrics.psnr_yuv(a, b) == pytest.approx((6 * y + u + v) / 8, abs=1e-9)
    assert metrics.psnr_yuv(b, a) == metrics.psnr_yuv(a, b)


def test_ms_ssim_needs_161_pixels():
    picture = PHOTOGRAPH[:161, :200]
    noisy = np.clip(picture.astype(int) + np.resize([9, -9], picture.shape), 0, 255)
    value = metrics.ms_ssim(picture, noisy.astype(np.uint8))
    assert 0.5 < value < 1.0
    assert metrics.ms_ssim(picture, picture) == pytest.approx(1.0, abs=1e-6)
    assert metrics.ms_ssim(picture[:160], picture[:160]) is None
    assert metrics.ms_ssim_db(0.99) == pytest.approx(20.0)
    assert metrics.ms_ssim_db(1.0) == math.inf


# Codecs


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("jpeg", Spec("", "jpeg", "420", (7,))),
        ("jpeg:444", Spec("", "jpeg", "444", (7,))),
        ("fine=jpeg:444@90,10", Spec("fine", "jpeg", "444", (10, 90))),
        ("lichen", Spec("", "lichen", "", (7,))),
        ("lichen@0,12.5", Spec("", "lichen", "", (0, 12.5))),
        ("mine=lichen:runs/a@b=c/m.safetensors@1", Spec("mine", "lichen", "runs/a@b=c/m.safetensors", (1,))),  # noqa: E501
        ("lichen:C:\\m.safetensors", Spec("", "lichen", "C:\\m.safetensors", (7,))),
        ("avif", Spec("", "avif", "444", (7,))),
        ("jxl", Spec("", "jxl", "", (7,))),
    ],
)  # fmt: skip
def test_codec_names(text, expected):
    assert parse(text, (7,)) == expected
    assert len(parse(text).qualities) >= 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("vtm", "lichen[:NAME|FILE], jpeg[:420|:444], webp"),
        ("", "expected a codec"),
        ("jpeg:422", "jpeg:420 or jpeg:444"),
        ("webp:444", "webp is webp, not"),
        ("jpeg@50.5", "whole numbers"),
        ("jpeg@101", "0..100"),
        ("jpeg@1,,2", "0..100"),
    ],
)
def test_bad_codec_names(text, words):
    with pytest.raises(LichenError) as caught:
        parse(text)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "magic"),
    [
        ("jpeg", b"\xff\xd8"), ("jpeg:444", b"\xff\xd8"), ("webp", b"RIFF"), ("avif", b"ftyp"),
        ("avif:420", b"ftyp"), ("jxl", b"\xff\x0a"), ("lichen", container.MAGIC),
    ],
)  # fmt: skip
def test_codecs_make_real_files(name, magic):
    if name == "jxl":
        pytest.importorskip("pillow_jxl", reason="jxl needs pillow-jxl-plugin")
    codec, pixels = open_codec(parse(name), 1), PHOTOGRAPH[100:195, 300:401]
    coarse, fine = (codec.encode(pixels, quality) for quality in (20, 90))
    assert magic in fine[:12] and len(coarse) < len(fine)
    decoded = [codec.decode(data) for data in (coarse, fine)]
    assert all(d.shape == pixels.shape and d.dtype == np.uint8 for d in decoded)
    assert metrics.psnr(pixels, decoded[0]) < metrics.psnr(pixels, decoded[1])
    assert codec.label == ("lichen:student-s" if name == "lichen" else name)


def test_subsampling_is_what_was_asked_for():
    red = np.zeros((64, 64, 3), np.uint8)
    red[:, 1::2, 0] = 255  # columns of one pixel: half the chroma loses them
    for name in ("jpeg", "avif"):
        half, full = (open_codec(parse(f"{name}:{v}"), 1) for v in ("420", "444"))
        qualities = [metrics.psnr(red, c.decode(c.encode(red, 95))) for c in (half, full)]
        assert qualities[1] > qualities[0] + 5, name


def test_jxl_without_its_package_names_it(monkeypatch):
    open_codec.cache_clear()
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    with pytest.raises(LichenError, match="pip install pillow-jxl-plugin"):
        open_codec(parse("jxl"), 1)


# Means, files and plots


def row(psnr: float, ms_ssim: float | None = 0.9) -> Measured:
    return Measured(100, 1.0, psnr, psnr + 1, ms_ssim, 0.5, 0.25)


PICTURES = Survey(Path("set"), (Path("a.png"), Path("b.png")), ((200, 200), (200, 100)), (), "0")


def test_means_are_over_pictures_and_nothing_is_left_out_in_silence():
    curve = Curve("c", "", (1.0, 2.0))
    curve.images = {"a": [row(30.0), row(math.inf)], "b": [row(40.0), row(50.0, None)]}
    assert curve.mean("psnr") == [35.0, math.inf]
    assert curve.mean("ms_ssim") == [0.9, None]
    assert curve.mean("ms_ssim_db") == [pytest.approx(10.0), None]
    assert curve.points("ms_ssim") == ([1.0], [0.9])
    entry = json.loads(report.to_json(report.codec_document(curve, PICTURES)))
    assert entry["results"]["psnr-rgb"] == [35.0, None]
    assert "ms-ssim-rgb" not in entry["results"]
    assert entry["images"]["b"]["ms-ssim-rgb"] == [0.9, None]


def curve_of(label: str, psnrs: list[float]) -> Curve:
    images = {"a.png": [Measured(9, b, p, p, 0.9, 0, 0) for b, p in zip(BPP, psnrs)]}
    return Curve(label, "", (1.0, 2.0, 3.0, 4.0, 5.0), images)


def test_small_overlap_is_said():
    near, far = curve_of("near", PSNR), curve_of("far", [p + 8 for p in PSNR])
    small = report.compare([near, far], [], [])[0]
    assert small.pchip.share == pytest.approx(3 / 11)
    assert "27 % of the shorter curve" in small.warning
    assert report.bd_table([small]).endswith("small")
    away = report.compare([near, curve_of("away", [p + 20 for p in PSNR])], [], [])[0]
    assert away.pchip is None and "overlap" in report.bd_table([away])
    beside = report.compare([near, curve_of("beside", [p + 1 for p in PSNR])], [], ["beside"])
    assert {(c.label, c.anchor) for c in beside} == {("near", "beside")}
    assert not beside[0].warning and beside[0].pchip.percent > 0


def test_plots_are_files_and_stay_the_same():
    curves = [curve_of("mine", PSNR), curve_of("theirs", [*PSNR[:-1], math.inf])]
    others = published.choose(published.read(PUBLISHED), [])
    assert [other.label for other in others] == list(published.USUAL)
    drawn = plot.draw(curves, others, "a title", "psnr")
    assert drawn["png"].startswith(b"\x89PNG") and b"<svg" in drawn["svg"]
    assert drawn == plot.draw(curves, others, "a title", "psnr")


def test_published_curves(tmp_path):
    everything = published.read(PUBLISHED)
    assert all(curve.source for curve in everything)
    assert [c.label for c in published.choose(everything, ["STF (Zou2022)"])] == ["STF (Zou2022)"]
    with pytest.raises(LichenError, match="no published curve is called 'nobody'; there are JPEG"):
        published.choose(everything, ["nobody"])
    theirs = tmp_path / "theirs.json"  # CompressAI's form
    theirs.write_text(
        '{"name": "x", "results": {"bpp": [1, 2], "psnr": [30, 33], "ms-ssim": [0.9, 0.99]}}'
    )
    (curve,) = published.read(theirs)
    assert curve == published.Published(
        "x", "theirs.json", (1, 2), {"psnr": (30, 33), "ms_ssim_db": (10.0, pytest.approx(20.0))}
    )
    for bad in (
        '{"x": {"bpp": [1, 2], "psnr": [30]}}',
        '{"x": 3}',
        "[]",
        "{",
        '{"x": {"bpp": []}}',
    ):
        theirs.write_text(bad)
        with pytest.raises(LichenError, match=r"theirs\.json must hold curves"):
            published.read(theirs)


# The command


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two pictures that MS-SSIM can measure; the current folder is empty and beside them."""
    pictures, here = tmp_path / "pictures", tmp_path / "here"
    for path in (pictures, here):
        path.mkdir()
    Image.fromarray(PHOTOGRAPH[100:276, 200:392]).save(pictures / "a.png")
    Image.fromarray(PHOTOGRAPH[200:376, 400:592]).save(pictures / "b.webp", lossless=True)
    (pictures / "notes.txt").write_text("not a picture")
    monkeypatch.chdir(here)
    return pictures


FOUR = ("lichen@0,30,60,100", "jpeg@10,30,60,90")
LIGHT = ("--codec", "jpeg@10,50", "--no-ms-ssim")


def evaluate(folder: Path, *arguments: object, codecs: tuple[str, ...] = FOUR) -> int:
    names = [word for codec in codecs for word in ("--codec", codec)]
    return main(["eval", str(folder), *names, *map(str, arguments)])


def load_compressai_plot() -> Any:
    """Load compressai/utils/plot alone: the whole of CompressAI would need torchvision."""
    spec = importlib.util.find_spec("compressai")
    if spec is None:
        pytest.skip("CompressAI is not installed")
    path = Path(spec.submodule_search_locations[0]) / "utils" / "plot" / "__main__.py"
    plot_spec = importlib.util.spec_from_file_location("compressai_plot", path)
    module = importlib.util.module_from_spec(plot_spec)
    plot_spec.loader.exec_module(module)
    return module


def check_compressai_form(entry: dict[str, Any]) -> None:
    """CompressAI's schema: what utils/eval_model writes and utils/plot reads."""
    assert isinstance(entry["name"], str) and isinstance(entry["description"], str)
    keys = {"bpp", "psnr-rgb", "ms-ssim-rgb", "encoding_time", "decoding_time"}
    assert keys <= set(entry["results"])
    lengths = {len(values) for values in entry["results"].values()}
    assert lengths == {4}
    assert all(isinstance(v, float) for values in entry["results"].values() for v in values)


def test_everything_is_written(folder, capsys):
    outputs = ("--json", "o.json", "--csv", "o.csv", "--plot", "o.png", "--compressai", "each")
    assert evaluate(folder, *outputs, "--published", PUBLISHED) == 0
    out, err = capsys.readouterr()
    assert "lichen:student-s  jpeg" in out and "MS-SSIM" in out and "Akima" in out
    assert not err or "overlap" in err
    made = {"o.json", "o.csv", "o.png", "o.svg", "o-ms-ssim.png", "o-ms-ssim.svg", "each"}
    assert set(os.listdir()) == made
    document = json.loads(Path("o.json").read_text())
    check_compressai_form(document)
    own, jpeg = document["codecs"]
    for entry in (own, jpeg):
        check_compressai_form(entry)
    assert document["results"] == own["results"] and jpeg["name"] == "jpeg"
    assert document["run"]["command"].startswith("lichen eval ")
    assert document["run"]["host"]["cores"] >= 1 and "pillow" in document["run"]["versions"]
    assert document["pictures"]["count"] == 2
    assert document["published"]["VTM"].startswith("CompressAI@")
    anchors = {entry["anchor"] for entry in document["bd_rates"]}
    assert anchors == {"jpeg", *published.USUAL}
    assert json.loads(Path("each/lichen-student-s.json").read_text()) == own
    # The figures are those of files: code a picture again, and compare.
    data = lichen.encode(Image.open(folder / "a.png"), quality=60)
    assert own["images"]["a.png"]["bytes"][2] == len(data)
    pixels = np.asarray(Image.open(folder / "a.png"))
    expected = metrics.psnr(pixels, np.asarray(lichen.decode(data)))
    assert own["images"]["a.png"]["psnr-rgb"][2] == pytest.approx(expected, abs=1e-4)
    both = [own["images"][name]["psnr-rgb"][2] for name in ("a.png", "b.webp")]
    assert own["results"]["psnr-rgb"][2] == pytest.approx(sum(both) / 2, abs=1e-3)
    both = [8 * own["images"][name]["bytes"][2] / (176 * 192) for name in ("a.png", "b.webp")]
    assert own["results"]["bpp"][2] == pytest.approx(sum(both) / 2, abs=1e-5)
    rows = list(csv.DictReader(io.StringIO(Path("o.csv").read_text())))
    assert len(rows) == 2 * 4 * 3
    means = {(r["codec"], r["quality"]): r for r in rows if r["picture"] == "mean"}
    mean = means["jpeg", "30"]
    assert float(mean["ms-ssim-rgb"]) == pytest.approx(jpeg["results"]["ms-ssim-rgb"][1], abs=1e-6)


def test_compressai_reads_our_files(folder, capsys):
    compressai = load_compressai_plot()
    assert evaluate(folder, "--json", "o.json", "--compressai", "each", "--quiet") == 0
    results = json.loads(Path("o.json").read_text())["results"]
    for path in ("o.json", "each/lichen-student-s.json"):
        psnr = compressai.parse_json_file(path, "psnr")
        assert psnr == {"name": "lichen:student-s", "xs": results["bpp"], "ys": results["psnr-rgb"]}
        assert compressai.parse_json_file(path, "ms-ssim")["ys"] == pytest.approx(
            results["ms-ssim-rgb-db"], abs=1e-3
        )
    compressai.main(["-f", "o.json", "each/jpeg.json", "-m", "ms-ssim", "-o", "theirs.png"])
    assert Path("theirs.png").stat().st_size > 0


def test_our_own_files_are_published_curves(folder, capsys):
    assert evaluate(folder, "--json", "o.json", "--quiet") == 0
    again = ("--published", "o.json", "--curve", "jpeg", "--anchor", "jpeg")
    assert evaluate(folder, *again, "--quiet", codecs=("lichen@30", "j=jpeg@10,30,60,90")) == 0
    assert evaluate(folder, *again, codecs=FOUR) == 2
    assert "two curves are called 'jpeg'" in capsys.readouterr().err


def test_model_file_label_and_one_quality_for_all(folder, capsys):
    path = models.installed()[0]
    codecs = (f"mine=lichen:{path}", "jpeg", "webp@40")
    assert evaluate(folder, "--qualities", "50", "--json", "-", codecs=codecs) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert [entry["name"] for entry in document["codecs"]] == ["mine", "jpeg", "webp"]
    assert [entry["qualities"] for entry in document["codecs"]] == [[50], [50], [40]]
    assert models.default().digest.hex() in document["description"]
    assert "found 1" in err  # no BD-rate from one point, and no failure


def test_processes_measure_the_same(folder):
    specs = [parse("lichen@20,80"), parse("jpeg@20,80")]
    one, two = (measure(specs, survey(folder), jobs=jobs, with_ms_ssim=False) for jobs in (1, 2))
    for a, b in zip(one, two):
        assert a.label == b.label and list(a.images) == list(b.images) == ["a.png", "b.webp"]
        for column in ("size_bytes", "psnr", "psnr_yuv"):
            assert a.mean(column) == b.mean(column)


# Bad input


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--codec", "vtm"], 2, ["'vtm'", "jxl"]),
        (["--codec", "lichen:nobody"], 4, ["nobody", "student-s"]),
        (["--codec", "jpeg", "--codec", "jpeg@5"], 2, ["two curves", "NAME=CODEC"]),
        (["--qualities", "1,x"], 2, ["0..100"]),
        (["--codec", "jpeg", "--anchor", "webp"], 2, ["no anchor", "'webp'", "jpeg"]),
        (["--codec", "jpeg", "--curve", "VTM"], 2, ["no published curve"]),
        (["--json", "nowhere/o.json"], 3, ["nowhere/o.json", "no folder"]),
        (["--csv", "nowhere/o.csv"], 3, ["nowhere/o.csv"]),
        (["--plot", "nowhere/o.png"], 3, ["nowhere/o.png"]),
        (["--plot", "o.pdf"], 2, [".png and .svg", ".pdf"]),
        (["--compressai", "nowhere/each"], 3, ["nowhere/each"]),
        (["--published", "nowhere.json"], 3, ["nowhere.json"]),
        (["--jobs", "0"], 2, ["1..256"]),
    ],
)
def test_wrong_commands_end_before_the_work(folder, capsys, monkeypatch, arguments, code, words):
    monkeypatch.setattr("lichen.evaluation.command.survey", None)
    assert main(["eval", str(folder), *arguments]) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("lichen: error: ")
    assert all(word in lines[0] for word in words), lines[0]
    assert not os.listdir()


def test_folders_without_pictures(tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.txt").write_text("nothing")
    assert main(["eval", str(empty)]) == 2
    assert "found none" in capsys.readouterr().err
    assert main(["eval", str(tmp_path / "nowhere")]) == 3
    assert main(["eval", str(empty / "notes.txt")]) == 3
    (empty / "bad.png").write_text("this is no picture")
    assert main(["eval", str(empty)]) == 1
    assert "none of the 1 pictures" in capsys.readouterr().err


def test_unreadable_pictures_are_named_skipped_and_counted(folder, capsys):
    (folder / "c.png").write_text("this is no picture")
    data = (folder / "a.png").read_bytes()
    (folder / "d.png").write_bytes(data[: len(data) // 2])
    assert evaluate(folder, *LIGHT, "--json", "o.json", codecs=()) == 0
    notes = capsys.readouterr().err
    assert "skipped c.png" in notes and "skipped d.png" in notes
    assert "2 of 4 pictures were skipped" in notes
    pictures = json.loads(Path("o.json").read_text())["pictures"]
    assert pictures["count"] == 2 and len(pictures["skipped"]) == 2


def test_small_pictures_go_without_ms_ssim(folder, capsys):
    Image.fromarray(PHOTOGRAPH[:160, :300]).save(folder / "small.png")
    assert evaluate(folder, "--json", "o.json", "--plot", "o", codecs=("jpeg@10,50",)) == 0
    assert "161 pixels on each side: 1 of 3 pictures" in capsys.readouterr().err
    assert set(os.listdir()) == {"o.json", "o.png", "o.svg"}
    document = json.loads(Path("o.json").read_text())
    assert "ms-ssim-rgb" not in document["results"]
    images = document["codecs"][0]["images"]
    assert images["small.png"]["ms-ssim-rgb"] == [None, None]
    assert None not in images["a.png"]["ms-ssim-rgb"]


def test_a_failing_decoder_stops_with_the_name_of_the_picture(folder, capsys, monkeypatch):
    open_codec.cache_clear()

    def wrong(*_: object, **__: object) -> None:
        raise DigestError("the decoded pixels have another digest")

    monkeypatch.setattr(Codec, "decode", wrong)
    assert evaluate(folder, "--json", "o.json") == 1
    error = capsys.readouterr().err
    assert "a.png, lichen:student-s at quality 0: the decoded pixels" in error
    monkeypatch.setattr(Image.Image, "save", wrong)
    assert evaluate(folder, "--json", "o.json", codecs=("jpeg@10",)) == 1
    assert "a.png, jpeg at quality 10" in capsys.readouterr().err
    assert not os.listdir()


def test_a_wrong_digest_is_found(folder, capsys, monkeypatch):
    """The encoder's own idea of the pixels is compared with what its file decodes to."""
    monkeypatch.setattr(Codec, "_digest", lambda *_: bytes(16))
    assert evaluate(folder) == 1
    assert "a.png, lichen:student-s at quality 0" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals and terminals")
@pytest.mark.parametrize("jobs", [1, 2])
def test_interrupt_leaves_nothing(folder, jobs):
    import pty

    for number in range(40):  # work for some seconds
        Image.fromarray(PHOTOGRAPH).save(folder / f"{number}.bmp")
    source = {"PYTHONPATH": str(Path(lichen.__file__).parents[1])}
    command = [sys.executable, "-m", "lichen", "eval", str(folder), "--no-ms-ssim"]
    command += ["--codec", "webp", "--json", "o.json", "--jobs", str(jobs)]
    terminal, stderr = pty.openpty()
    process = subprocess.Popen(
        command, stderr=stderr, env=os.environ | source, start_new_session=True,
        # a shell's background jobs ignore Ctrl-C, and so would this one
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    os.close(stderr)
    shown = b""
    while b" of 42 pictures, " not in shown:  # it is at work
        shown += os.read(terminal, 1000)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does: to every process of the job
    assert process.wait(timeout=60) == 130
    shown += os.read(terminal, 100_000)
    os.close(terminal)
    assert b"Traceback" not in shown
    assert shown.endswith(b"\r\nlichen: interrupted\r\n")  # on a line of its own
    assert not os.listdir()
    for _ in range(100):  # until no worker is left
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("worker processes were left behind")
