"""Chains of steps: recipes, what is done again and what is not, measurements, reports."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="training needs the [train] extra")
pytest.importorskip("safetensors", reason="training needs the [train] extra")
pytest.importorskip("scipy", reason="BD-rates need the [eval] extra")
pytest.importorskip("matplotlib", reason="charts need the [eval] extra")

from lichen import model as models  # noqa: E402
from lichen.cli import main  # noqa: E402
from lichen.errors import LichenError, ModelError  # noqa: E402
from lichen.evaluation.measure import load  # noqa: E402
from lichen.evaluation.metrics import psnr  # noqa: E402
from lichen.frugal import chain, distill, measure, steps, table  # noqa: E402
from lichen.frugal.network import load_network  # noqa: E402
from lichen.frugal.steps import Kind, Made, Stopped  # noqa: E402
from lichen.models.complexity import complexity  # noqa: E402
from lichen.training import commands, run, warmstart  # noqa: E402
from lichen.training import train as training  # noqa: E402
from lichen.training.commands import Options  # noqa: E402
from lichen.training.data import Photographs, list_images  # noqa: E402
from lichen.training.recipe import Recipe  # noqa: E402
from lichen.training.train import Trainer, train  # noqa: E402

CPU = torch.device("cpu")
ARGUMENTS = {"n": 8, "m": 8, "means": True}
HERE = Options(threads=1, device="cpu")
FIELDS = """\
batch = 2
crop = 64
warmup_steps = 1
bfloat16 = false
log_every = 1
"""


@pytest.fixture(scope="module", autouse=True)
def _light():
    """One thread, few pictures, few blocks."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "CALIBRATION_BATCHES", 2)
        patch.setattr(warmstart, "BLOCK_BATCHES", 20)
        patch.setattr(distill, "REGRESSION_BATCHES", 2)
        patch.setattr(commands, "keep_buffers", lambda: None)
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """Twelve smooth pictures with edges; numbers 0 and 10 are held out."""
    path = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for number in range(12):
        coarse = rng.integers(0, 256, (5, 6, 3), np.uint8)
        Image.fromarray(coarse).resize((100, 80), Image.BICUBIC).save(path / f"{number:02}.png")
    return path


@pytest.fixture(scope="module")
def teacher(photographs, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "run"
    wanted = Recipe(
        model="balle2018", arguments=ARGUMENTS, steps=3, batch=2, crop=64, bfloat16=False
    )
    data = Photographs(list_images(photographs), 64, CPU, scales=(1.0,))
    trainer = Trainer(wanted, CPU)
    warmstart.start(trainer.model, data, wanted, batches=8)
    trainer.reset_average()
    train(trainer, data, path)
    return path


def recipe_at(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def go(recipe: Path, folder: Path, photographs: Path, lines: list[str] | None = None, **more):
    report = (lambda _: None) if lines is None else lines.append
    machine = dataclasses.replace(HERE, **more)
    return chain.run_chain(chain.read(recipe), folder, photographs, None, machine, report)


# Recipes


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "has no steps"),
        ("steps = 3", "did you mean 'step'"),
        ("[[step]]\nkind = 'prun'", "is of the kind 'prun', which is none; did you mean"),
        ("[[step]]\nsteps = 3", "has no kind"),
        ("[[step]]\nkind = 'train'\nlearning_rat = 1", "did you mean 'learning_rate'"),
        ("[[step]]\nkind = 'distill'\nteachr = 'x'", "did you mean 'teacher'"),
        ("[[step]]\nkind = 'teacher'\nname = 'a b'", "without spaces"),
        (
            "[[step]]\nkind = 'teacher'\nname = 'a'\n[[step]]\nkind = 'train'\nname = 'a'",
            "a name of its own",
        ),
        ("[[step]]\nkind = 'train'\nfrom = 'nobody'", "starts from 'nobody'"),
        ("[[step", "is no recipe"),
        ("pictures = 0\n[[step]]\nkind = 'teacher'", "pictures must be"),
        ("qualities = [200]\n[[step]]\nkind = 'teacher'", "0..100"),
        ("qualities = [0, 50, 100]\n[[step]]\nkind = 'teacher'", "takes four qualities"),
    ],
)
def test_bad_recipes_are_named(text, message, tmp_path):
    with pytest.raises(LichenError, match=message):
        chain.read(recipe_at(tmp_path / "r.toml", text))


def test_every_shipped_recipe_reads():
    found = sorted((Path(__file__).parent.parent / "recipes").glob("frugal-*/*.toml"))
    assert found
    for path in found:
        recipe = chain.read(path)
        for step in recipe.steps:
            if step.kind == "teacher":
                assert (recipe.base / step.options["checkpoint"]).exists()


def test_what_is_missing_is_said(tmp_path, photographs, teacher):
    path = recipe_at(tmp_path / "r.toml", "[[step]]\nkind = 'teacher'\ncheckpoint = 'nowhere'")
    with pytest.raises(LichenError, match=r"1-teacher.*expected a checkpoint"):
        go(path, tmp_path / "out", photographs)
    with pytest.raises(LichenError, match="give --photographs"):
        chain.run_chain(chain.read(path), tmp_path / "out", None, None, HERE)
    with pytest.raises(LichenError, match="no folder at"):
        chain.run_chain(chain.read(path), tmp_path / "out", tmp_path / "none", None, HERE)


# Steps that are done once


@pytest.fixture
def fake(monkeypatch, teacher):
    """A kind of step that counts its calls and may stop; nothing is measured."""
    calls: list[str] = []
    points = tuple(float(k) for k in range(1, 5))
    nothing = measure.Measured("ideal", "", points, points, points, 1, None, 1.0, 1.0)
    monkeypatch.setattr(chain, "measure_network", lambda *_: nothing)
    monkeypatch.setattr(chain.plot, "draw_costs", lambda *_: {})

    def work(place, options):
        calls.append(place.folder.name.rpartition("-")[0])
        if options.get("stop"):
            raise Stopped(15)
        return Made(place.source or teacher)

    kind = Kind(frozenset({"amount", "stop"}), work, from_nothing=True)
    monkeypatch.setitem(steps.KINDS, "fake", kind)
    return calls


FAKES = """\
qualities = [0, 50, 75, 100]
[[step]]
name = "a"
kind = "fake"
[[step]]
name = "b"
kind = "fake"
amount = {b}
[[step]]
name = "c"
kind = "fake"
[[step]]
name = "d"
kind = "fake"
from = "a"
"""


def test_a_step_is_done_again_where_it_or_its_input_changes(fake, tmp_path, photographs):
    path, out = tmp_path / "r.toml", tmp_path / "out"
    go(recipe_at(path, FAKES.format(b=1)), out, photographs)
    assert fake == ["a", "b", "c", "d"]
    go(path, out, photographs)
    assert fake == ["a", "b", "c", "d"]
    go(recipe_at(path, FAKES.format(b=2)), out, photographs)
    assert fake == ["a", "b", "c", "d", "b", "c"]  # d starts from a
    go(recipe_at(path, FAKES.format(b=1)), out, photographs)
    assert len(fake) == 6  # found again
    report = json.loads((out / "report.json").read_text())
    assert [row["name"] for row in report["steps"]] == ["a", "b", "c", "d"] and report["complete"]


def test_a_step_that_stops_leaves_the_rest(fake, tmp_path, photographs):
    path, out = tmp_path / "r.toml", tmp_path / "out"
    text = FAKES.format(b=1).replace("amount = 1", "stop = true")
    with pytest.raises(Stopped):
        go(recipe_at(path, text), out, photographs)
    assert fake == ["a", "b"]
    report = json.loads((out / "report.json").read_text())
    assert [row["name"] for row in report["steps"]] == ["a"] and not report["complete"]


def test_photographs_decide_too(fake, tmp_path, photographs):
    path, out = recipe_at(tmp_path / "r.toml", FAKES.format(b=1)), tmp_path / "out"
    go(path, out, photographs)
    fewer = tmp_path / "fewer"
    fewer.mkdir()
    for picture in list_images(photographs)[:11]:
        (fewer / picture.name).symlink_to(picture)
    go(path, out, fewer)
    assert len(fake) == 8


def test_every_tenth_photograph_is_measured_and_not_learnt(tmp_path, photographs):
    text = "[[step]]\nkind = 'teacher'\n"
    recipe = chain.read(recipe_at(tmp_path / "r.toml", text))
    learn, pictures = chain.pictures_of(recipe, photographs, None)
    assert [path.stem for path in pictures.paths] == ["00", "10"]
    assert len(learn) == 10 and not set(learn) & set(pictures.paths)
    recipe = chain.read(recipe_at(tmp_path / "r.toml", "pictures = 3\n" + text))
    learn, pictures = chain.pictures_of(recipe, photographs, photographs)
    assert [path.stem for path in pictures.paths] == ["00", "04", "08"]
    assert len(learn) == 12


# A real chain


CHAIN = f"""\
name = "tiny"
qualities = [0, 40, 70, 100]
[[step]]
name = "teacher"
kind = "teacher"
checkpoint = "{{teacher}}"
[[step]]
name = "student"
kind = "distill"
student = "balle2018"
width = 16
steps = 3
{FIELDS}
[[step]]
name = "integers"
kind = "train"
steps = 2
quantized_steps = 2
{FIELDS}
[[step]]
name = "alone"
kind = "train"
model = "balle2018"
like = "teacher"
width = 16
steps = 3
{FIELDS}
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory, photographs, teacher):
    folder = tmp_path_factory.mktemp("chain")
    path = recipe_at(folder / "r.toml", CHAIN.format(teacher=teacher))
    return path, folder / "out", go(path, folder / "out", photographs)


def test_a_chain_of_real_steps(whole, teacher):
    _, out, results = whole
    by_name = {result.step.name: result for result in results}
    student = load_network(by_name["student"].made.checkpoint)[1]
    assert student.arguments["n"] == 16 and student.arguments["means"]
    integers = by_name["integers"]
    assert load_network(integers.made.checkpoint)[1].arguments == student.arguments
    assert integers.measured.rate == "files"
    assert integers.measured.exact[0] == "native" and "reference" in integers.measured.exact
    assert "torch-cpu" in integers.measured.exact
    assert by_name["student"].measured.rate == "ideal"
    # the cost of integers is that of the network, whatever the width of an operand; 9 MACs more
    # take pixels from s8 to u8
    assert integers.measured.encode == pytest.approx(by_name["student"].measured.encode, abs=0.0091)
    assert integers.measured.weight_bytes < 0.3 * by_name["student"].measured.weight_bytes
    alone = by_name["alone"]
    assert alone.step.source is None
    assert load_network(alone.made.checkpoint)[1].arguments == student.arguments
    report = json.loads((out / "report.json").read_text())
    assert report["complete"] and len(report["steps"]) == 4
    text = (out / "report.md").read_text()
    assert "ideal code lengths" in text and "native, torch-cpu, reference" in text
    for name in ("student", "integers", "alone"):
        assert f"| {name} |" in text


def test_measured_in_float_is_what_the_forward_pass_gives(teacher, photographs):
    network = load_network(teacher)[1]
    pictures = measure.survey_of(list_images(photographs)[:2])
    found = measure.measure_network(network, pictures, (0.0, 60.0))
    rows = []
    for path in pictures.paths:
        pixels = load(path)
        x = measure.padded(pixels, 64)
        with torch.no_grad():
            coded = network(x, torch.tensor([0.6]), noise=False)
        bits = -sum(float(torch.log2(p).sum()) for p in coded[1:])
        decoded = torch.round(coded.x_hat[0] * 128 + 128).clamp(0, 255).byte()
        decoded = decoded[:, : pixels.shape[0], : pixels.shape[1]].permute(1, 2, 0).numpy()
        rows.append((bits / pixels[..., 0].size, psnr(pixels, decoded)))
    assert found.bpp[1] == pytest.approx(np.mean([row[0] for row in rows]), rel=1e-4)
    assert found.psnr[1] == pytest.approx(np.mean([row[1] for row in rows]), abs=1e-3)
    cost = complexity(network)
    assert found.encode == cost.encode.macs_per_pixel / 1000
    assert "analyse" not in vars(network)  # the shortcut is gone


def test_weight_bytes_count_what_each_layer_needs(whole):
    model = models.read(whole[2][2].made.model)
    assert measure._width(np.array([-8, 7])) == 4
    assert measure._width(np.array([-9, 0])) == 5
    assert measure._width(np.array([127])) == 8
    assert measure._width(np.array([-127, 127], np.int8)) == 8
    assert measure._width(np.array([0])) == 1
    count = sum(p.numel() for p in load_network(whole[2][2].made.checkpoint)[1].g_a.parameters())
    assert 0.5 * count < measure.weight_bytes(model) < 8 * count


def test_executors_that_differ_are_an_error(whole, photographs, monkeypatch):
    model = models.read(whole[2][2].made.model)
    right = measure.ReferenceExecutor.run

    def wrong(self, program, inputs, vectors=None):
        outputs = right(self, program, inputs, vectors or {})
        return {name: value ^ 1 for name, value in outputs.items()}

    monkeypatch.setattr(measure.ReferenceExecutor, "run", wrong)
    with pytest.raises(ModelError, match="reference differ"):
        measure.check_exact(model, load(list_images(photographs)[0]))


def test_integers_are_final_where_there_is_no_checkpoint(monkeypatch, whole, tmp_path, photographs):
    model = whole[2][2].made.model
    kind = Kind(frozenset(), lambda place, options: Made(None, model), from_nothing=True)
    monkeypatch.setitem(steps.KINDS, "fake", kind)
    text = "qualities = [0, 40, 70, 100]\n[[step]]\nkind = 'fake'\n[[step]]\nkind = 'train'"
    with pytest.raises(LichenError, match="integers are final"):
        go(recipe_at(tmp_path / "r.toml", text), tmp_path / "out", photographs)


def test_killed_in_a_step_it_goes_on(whole, tmp_path, photographs, teacher):
    """A chain killed while it trains ends as one that was not: the same weights, bit for bit."""
    text = CHAIN.format(teacher=teacher).split('[[step]]\nname = "integers"')[0]
    slow = text.replace("steps = 3", "steps = 12")
    path, out = recipe_at(tmp_path / "r.toml", slow), tmp_path / "out"
    command = [
        sys.executable, "-c",
        "import sys, torch; torch.set_num_threads(1)\n"
        "from lichen.frugal import distill; distill.REGRESSION_BATCHES = 2\n"
        "from lichen.training import warmstart; warmstart.BLOCK_BATCHES = 20\n"
        "from lichen.cli import main; sys.exit(main(sys.argv[1:]))",
        "chain", str(path), "-o", str(out), "--photographs", str(photographs),
        "--checkpoint-every", "0", "--threads", "1", "--device", "cpu",
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 600  # a busy machine takes a minute to import torch
    while not list(out.glob("student-*/run/checkpoint.pt")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (folder,) = out.glob("student-*")
    assert not (folder / "step.json").exists()
    before = torch.load(folder / "run" / run.CHECKPOINT, weights_only=True)["step"]
    assert 0 < before < 12
    lines: list[str] = []
    resumed = go(path, out, photographs, lines)[1]
    assert any("resumed at" in line for line in lines)
    assert any("teacher" in line and "done before" in line for line in lines)
    straight = go(path, tmp_path / "straight", photographs)[1]
    states = [load_network(r.made.checkpoint)[1].state_dict() for r in (resumed, straight)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


FRUGAL = f"""\
qualities = [0, 40, 70, 100]
[[step]]
name = "teacher"
kind = "teacher"
checkpoint = "{{teacher}}"
[[step]]
name = "cut"
kind = "prune"
macs = "-30%"
multiple = 2
samples = 4
[[step]]
name = "tuned"
kind = "train"
steps = 2
{FIELDS}
[[step]]
name = "ptq"
kind = "quantize"
method = "ranges"
crops = 8
crop = 64
[[step]]
name = "qat"
kind = "quantize"
from = "tuned"
post_training = "ptq"
qat_steps = 3
batch = 2
crop = 64
"""


def test_prune_and_quantize_are_steps(tmp_path, photographs, teacher, monkeypatch):
    path, out = recipe_at(tmp_path / "r.toml", FRUGAL.format(teacher=teacher)), tmp_path / "out"
    plain = steps.run_training

    def stopped(trainer, *arguments, **options):  # as by SIGTERM after its first step
        step = trainer.train_step

        def once(data):
            step(data)
            signal.raise_signal(signal.SIGTERM)

        trainer.train_step = once
        return plain(trainer, *arguments, **options)

    monkeypatch.setattr(steps, "run_training", stopped)
    with pytest.raises(Stopped) as stop:
        go(path, out, photographs)
    assert stop.value.number == signal.SIGTERM
    monkeypatch.setattr(steps, "run_training", plain)
    monkeypatch.setattr(steps.integers, "post_training", None)  # is not done again
    lines: list[str] = []
    results = {result.step.name: result for result in go(path, out, photographs, lines)}
    assert sum("done before" in line for line in lines) == 4
    before, after = (results[name].measured for name in ("teacher", "cut"))
    assert 0.6 < (after.encode + after.decode) / (before.encode + before.decode) < 0.8
    assert results["tuned"].measured.encode == after.encode
    for name in ("ptq", "qat"):
        measured = results[name].measured
        assert measured.rate == "files" and "reference" in measured.exact
        assert measured.encode == pytest.approx(after.encode, abs=0.0091)  # as above
    told = json.loads((results["qat"].folder / steps.QUANTIZATION).read_text())["steps"]
    before = json.loads((results["ptq"].folder / steps.QUANTIZATION).read_text())["steps"]
    assert told[:-1] == before and told[-1]["step"] == "3 quantised steps"
    assert told[-1]["kept"] or results["qat"].measured.bpp == results["ptq"].measured.bpp


def test_quantize_needs_a_step_that_quantised(tmp_path, photographs, teacher):
    text = FRUGAL.format(teacher=teacher).replace('post_training = "ptq"', 'post_training = "cut"')
    keep = text.split('[[step]]\nname = "tuned"')[0]
    keep += '[[step]]\nkind = "quantize"\npost_training = "cut"'
    with pytest.raises(LichenError, match="post_training names a quantize step"):
        go(recipe_at(tmp_path / "r.toml", keep), tmp_path / "out", photographs)


# The table


def test_the_table_measures_once_and_names_what_is_missing(tmp_path, photographs, teacher, whole):
    root = tmp_path
    (root / "runs/frugal-x").mkdir(parents=True)
    (root / "runs/frugal-x/chain").symlink_to(whole[1])
    (root / "parent").symlink_to(teacher)
    rows = recipe_at(
        root / "rows.toml",
        """
        [[group]]
        name = "tiny"
        [[group.row]]
        label = "float"
        path = "parent"
        made_by = "hand"
        [[group.row]]
        label = "integers"
        recipe = "recipes/frugal-x/chain.toml"
        step = "integers"
        [[group.row]]
        label = "later"
        recipe = "recipes/frugal-y/chain.toml"
        step = "z"
        """,
    )
    pictures = measure.survey_of(list_images(photographs)[:2])
    known: dict = {}
    said: list[str] = []
    saved: list[int] = []
    lines = table.measure_rows(
        table.read(rows), root, pictures, known, said.append, lambda k: saved.append(len(k))
    )
    assert [line.row.label for line in lines] == ["float", "integers"] and saved == [1, 2]
    assert any("later" in line and "left out" in line for line in said)
    assert lines[0].against is None and lines[1].measured.exact
    again = json.loads(table.to_json(lines, known, pictures))["rows"]
    said.clear()
    repeated = table.measure_rows(table.read(rows), root, pictures, again, said.append)
    assert repeated == lines and not any("measuring" in line for line in said)
    (root / "runs/frugal-x/chain").unlink()
    said.clear()
    assert table.measure_rows(table.read(rows), root, pictures, again, said.append) == lines
    assert any("integers" in line and "stands" in line for line in said)
    others = measure.survey_of(list_images(photographs)[:1])
    left = table.measure_rows(table.read(rows), root, others, again, said.append)
    assert [line.row.label for line in left] == ["float"], "no figure of other pictures"
    text = table.markdown(lines, pictures, "scripts/frugal-table PICTURES")
    for wanted in ("mask decay", "DRAQ", "Q-LIC", "PRIM", "| integers | integers, exact |", "hand",
                   "lichen chain recipes/frugal-x/chain.toml -o runs/frugal-x/chain"):  # fmt: skip
        assert wanted in text
    assert set(table.chart(lines, pictures)) == {"png", "svg"}


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "has no rows"),
        ("[[group]]\nname = 'x'", "is no list of rows"),
        ("[[group]]\nname='x'\n[[group.row]]\nlabel='a'", "needs a path"),
        ("[[group]]\nname='x'\n[[group.row]]\nlabel='a'\npaht='b'", "did you mean 'path'"),
    ],
)
def test_bad_lists_are_named(text, message, tmp_path):
    with pytest.raises(LichenError, match=message):
        table.read(recipe_at(tmp_path / "rows.toml", text))


def test_the_shipped_list_names_steps_of_shipped_recipes():
    root = Path(__file__).parent.parent
    rows = table.read(root / "docs/results/frugal.toml")
    for row in rows:
        if row.recipe is not None:
            names = [step.name for step in chain.read(root / row.recipe).steps]
            assert row.step in names


def test_the_time_limit_stops_and_the_command_says_so(tmp_path, photographs, teacher, capsys):
    text = CHAIN.format(teacher=teacher)
    path, out = recipe_at(tmp_path / "r.toml", text), tmp_path / "out"
    command = ["chain", str(path), "-o", str(out), "--photographs", str(photographs)]
    assert main([*command, "--minutes", "0", "--threads", "1", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"folder": str(out), "done": False}
    assert "goes on from there" in captured.err
