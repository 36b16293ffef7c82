"""Distillation: what is compared, what is learned, resuming, and runs that are refused."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="training needs the [train] extra")
pytest.importorskip("safetensors", reason="training needs the [train] extra")

from lichen.cli import main  # noqa: E402
from lichen.errors import LichenError, ModelError  # noqa: E402
from lichen.frugal import distill  # noqa: E402
from lichen.frugal.distill import Distillation, Teacher, Weights  # noqa: E402
from lichen.frugal.network import load_network  # noqa: E402
from lichen.models import catalogue  # noqa: E402
from lichen.models.student import quality_to_lambda  # noqa: E402
from lichen.training import commands, run, warmstart  # noqa: E402
from lichen.training import train as training  # noqa: E402
from lichen.training.data import Photographs, list_images  # noqa: E402
from lichen.training.extra import Extra  # noqa: E402
from lichen.training.loss import balance, mse_255  # noqa: E402
from lichen.training.recipe import Recipe  # noqa: E402
from lichen.training.train import Trainer, train  # noqa: E402

CPU = torch.device("cpu")
TEACHER = {"n": 8, "m": 12, "means": True}
TINY = Recipe(
    model="balle2018", arguments={"n": 8, "m": 8, "means": True}, steps=6, quantized_steps=2,
    batch=2, crop=64, warmup_steps=2, bfloat16=False, log_every=1,
)  # fmt: skip
OPTIONS = [
    "--steps", "4", "--batch", "2", "--crop", "64", "--warmup-steps", "2", "--no-bfloat16",
    "--log-every", "1", "--threads", "1", "--quiet",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _light():
    """One thread, as equality to the last bit wants it; few pictures."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "CALIBRATION_BATCHES", 2)
        patch.setattr(warmstart, "BLOCK_BATCHES", 20)
        patch.setattr(distill, "REGRESSION_BATCHES", 4)
        patch.setattr(commands, "keep_buffers", lambda: None)
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Four smooth pictures with edges, which have a spectrum like photographs."""
    path = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for number in range(4):
        coarse = rng.integers(0, 256, (5, 6, 3), np.uint8)
        Image.fromarray(coarse).resize((160, 128), Image.BICUBIC).save(path / f"{number}.png")
    return path


@pytest.fixture(scope="module")
def data(folder):
    return Photographs(list_images(folder), 64, CPU, scales=(1.0,))


@pytest.fixture(scope="module")
def teacher_run(data, tmp_path_factory) -> Path:
    """The run of a teacher."""
    path = tmp_path_factory.mktemp("teacher")
    wanted = dataclasses.replace(TINY, arguments=TEACHER, steps=3, quantized_steps=0)
    trainer = Trainer(wanted, CPU)
    warmstart.start(trainer.model, data, wanted, batches=4)
    trainer.reset_average()
    train(trainer, data, path)
    return path


def teacher_of(path: Path) -> Teacher:
    return Teacher(load_network(path)[1], CPU)


def value_of(lesson: Distillation, student, x, position) -> float:
    """What the terms add to the loss of a batch."""
    with torch.no_grad():
        return float(lesson.loss(student, x, position, student(x, position, noise=False)))


def begin(wanted: Recipe, data, path: Path, teacher_run: Path) -> Trainer:
    """Make a trainer with a teacher as `run_recipe` does: resumed, or started."""
    trainer = Trainer(wanted, CPU)
    teacher = teacher_of(teacher_run)
    trainer.add(Distillation(trainer.model, teacher, Weights(), wanted.one_lambda))
    if not trainer.resume(path):
        warmstart.start(trainer.model, data, wanted, batches=4)
        trainer.reset_average()
        for extra in trainer.extras:
            extra.begin(trainer.model, data)
    return trainer


def log_of(path: Path) -> list[dict[str, str]]:
    with (path / run.LOG).open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


# Extras of a run


class Spy(Extra):
    """Adds 2 * weight to the loss, and notes the steps."""

    name = "spy"

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(3.0))
        self.register_buffer("seen", torch.zeros(0, dtype=torch.int64))

    def loss(self, model, x, position, coded):
        return 2 * self.weight

    def after_step(self, model, step, steps):
        assert steps == TINY.steps
        self.seen = torch.cat([self.seen, torch.tensor([step])])


def test_an_extra_is_trained_logged_and_told_of_steps(data, tmp_path):
    trainer = Trainer(TINY, CPU)
    trainer.add(Spy())
    train(trainer, data, tmp_path)
    spy = trainer.extras[0]
    assert spy.seen.tolist() == [1, 2, 3, 4, 5, 6]
    assert spy.weight < 3.0  # its gradient is 2, whatever the model does
    rows = log_of(tmp_path)
    assert float(rows[0]["spy"]) == 6.0
    plain = Trainer(TINY, CPU)
    train(plain, data, tmp_path / "plain")
    own = log_of(tmp_path / "plain")
    assert "spy" not in own[0]
    assert float(rows[0]["loss"]) == pytest.approx(float(own[0]["loss"]) + 6.0)
    assert rows[0]["bpp"] == own[0]["bpp"]


def test_a_run_goes_on_only_with_its_extras(data, tmp_path):
    trainer = Trainer(TINY, CPU)
    trainer.add(Spy())
    trainer.save(tmp_path)
    with pytest.raises(LichenError, match="with spy besides"):
        Trainer(TINY, CPU).resume(tmp_path)
    with pytest.raises(ValueError, match="already"):
        trainer.add(Spy())
    with pytest.raises(LichenError, match="spy"):
        trainer.compile()


# What is compared


@pytest.mark.parametrize(
    "name, arguments, adapters",
    [
        ("balle2018", {"n": 8, "m": 12, "means": True}, (False, False)),
        ("balle2018", {"n": 8, "m": 8, "means": True}, (True, False)),
        ("balle2018", {"n": 16, "m": 12, "means": True}, (False, True)),
        ("student", {"width": 8, "encoder_blocks": [1, 1], "decoder_blocks": [1, 1]}, (True, True)),
        ("minnen2020", {"n": 8, "m": 8, "slices": 2, "hidden": [8, 8]}, (True, True)),
    ],
)  # fmt: skip
def test_adapters_only_where_latents_differ(name, arguments, adapters, teacher_run, data):
    student = catalogue.build(name, arguments)
    lesson = Distillation(student, teacher_of(teacher_run), Weights())
    found = [isinstance(a, torch.nn.Conv2d) for a in (lesson.latent_adapter, lesson.hyper_adapter)]
    assert tuple(found) == adapters
    x, position = data.batch(2), torch.tensor([0.2, 0.9])
    coded = student(x, position)
    loss = lesson.loss(student, x, position, coded)
    assert torch.isfinite(loss) and loss > 0
    loss.backward()
    assert not any(p.requires_grad for p in lesson.teacher.model.parameters())
    grads = [p.grad for n, p in student.named_parameters() if n.startswith(("g_a", "analysis"))]
    assert any(g is not None and g.abs().sum() > 0 for g in grads)


def test_a_copy_of_the_teacher_has_nothing_to_learn(teacher_run, data):
    student = load_network(teacher_run)[1]
    lesson = Distillation(student, teacher_of(teacher_run), Weights(1.0, 1.0, 1.0))
    x, position = data.batch(2), torch.tensor([0.2, 0.9])
    assert value_of(lesson, student, x, position) < 1e-9  # sums in another order


def test_terms_are_what_they_say(teacher_run, data):
    student = catalogue.build("balle2018", {"n": 8, "m": 12, "means": True})
    teacher = teacher_of(teacher_run)
    x, position = data.batch(2), torch.tensor([0.2, 0.9])
    picture, y, z = teacher(x, position)

    def term(weights: Weights) -> float:
        lesson = Distillation(student, teacher, weights)
        with torch.no_grad():
            return float(lesson.loss(student, x, position, student(x, position, noise=False)))

    with torch.no_grad():
        coded = student(x, position, noise=False)
        own = student.analyse(x)
        gain, _ = teacher.model.gains(torch.tensor([0.5]))
        own_z = student.hyper_analyse(own * student.gains(position)[0])
        weight = quality_to_lambda(position)
        pixel = (balance(weight) * weight * mse_255(coded.x_hat, picture)).mean()
        latent = (((own - y) * gain) ** 2).mean()
        hyper = ((own_z - z) ** 2).mean()
    assert term(Weights(2.0, 0, 0)) == pytest.approx(2 * float(pixel), rel=1e-5)
    assert term(Weights(0, 3.0, 0)) == pytest.approx(3 * float(latent), rel=1e-5)
    assert term(Weights(0, 0, 4.0)) == pytest.approx(4 * float(hyper), rel=1e-5)


def test_latents_are_compared_before_the_gains(teacher_run, data):
    """Gains that differ make another rate, not another latent."""
    student = load_network(teacher_run)[1]
    with torch.no_grad():
        student.gain.add_(1.0)
        student.inverse_gain.sub_(1.0)
    lesson = Distillation(student, teacher_of(teacher_run), Weights(0, 1.0, 0))
    x, position = data.batch(2), torch.tensor([0.2, 0.9])
    assert value_of(lesson, student, x, position) < 1e-9  # sums in another order


def test_an_adapter_begins_as_the_regression(teacher_run, data):
    """A student whose latents are the teacher's, mixed, is mapped back by the adapter."""
    student = load_network(teacher_run)[1]
    mix = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(0)))[0]
    lesson = Distillation(student, teacher_of(teacher_run), Weights(0, 1.0, 0))
    lesson.latent_adapter = torch.nn.Conv2d(12, 12, 1)
    kept = lesson.watch._kept
    plain = type(student).analyse
    student.analyse = kept("y", lambda x: torch.einsum("oi,bihw->bohw", mix, plain(student, x)))
    x, position = data.batch(4), torch.tensor([0.1, 0.4, 0.6, 0.9])
    before = value_of(lesson, student, x, position)
    lesson.begin(student, data)
    after = value_of(lesson, student, x, position)
    assert after < 0.02 * before


def test_one_rate_asks_the_teacher_for_that_rate(teacher_run, data):
    student = load_network(teacher_run)[1]  # differs from its teacher in the rate alone
    teacher = teacher_of(teacher_run)
    rate = float(quality_to_lambda(torch.tensor(0.8)))
    lesson = Distillation(student, teacher, Weights(1.0, 0, 0), rate)
    x, anywhere = data.batch(2), torch.tensor([0.5, 0.5])
    picture = teacher(x, torch.tensor([0.8, 0.8]))[0]
    with torch.no_grad():
        coded = student(x, anywhere, noise=False)
        wanted = float((rate * mse_255(coded.x_hat, picture)).mean())
        assert wanted > 0
    assert value_of(lesson, student, x, anywhere) == pytest.approx(wanted, rel=1e-4)


def test_weights_and_models_that_cannot_be(teacher_run):
    with pytest.raises(LichenError, match="all three"):
        Weights(0, 0, 0)
    with pytest.raises(LichenError, match="latent weight"):
        Weights(latent=-1.0)
    factorised = catalogue.build("balle2016", {"n": 8, "m": 8})
    with pytest.raises(LichenError, match="FactorizedPrior has no hyper"):
        Distillation(factorised, teacher_of(teacher_run), Weights())
    Distillation(factorised, teacher_of(teacher_run), Weights(hyper=0))


# Runs


def test_a_resumed_run_is_the_whole_run(teacher_run, data, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(begin(TINY, data, whole, teacher_run), data, whole)
    first = begin(TINY, data, parts, teacher_run)
    shorter = dataclasses.replace(first.recipe, steps=3, quantized_steps=0)
    for _ in range(3):
        first.train_step(data)
    assert shorter.steps == first.step
    parts.mkdir()
    first.save(parts)
    train(begin(TINY, data, parts, teacher_run), data, parts)
    states = [torch.load(p / run.CHECKPOINT, weights_only=True) for p in (whole, parts)]
    for part in ("model", "average"):
        for name, value in states[0][part].items():
            assert torch.equal(value, states[1][part][name]), name
    adapters = [state["extras"]["distillation"] for state in states]
    assert adapters[0]
    for name, value in adapters[0].items():
        assert torch.equal(value, adapters[1][name]), name


def test_the_command_trains_a_student_that_lowers(teacher_run, folder, tmp_path):
    path = tmp_path / "student"
    command = ["distill", str(folder), "-o", str(path), "--teacher", str(teacher_run)]
    assert main([*command, "--student", "balle2018", "--width", "16", *OPTIONS]) == 0
    made = load_network(path)[0]
    # the teacher's arguments, but for the width
    assert made.arguments["n"] == 16 and made.arguments["m"] == 12 and made.arguments["means"]
    assert all("distillation" in row for row in log_of(path))
    note = json.loads((path / distill.LESSON).read_text())
    assert note["teacher"] == str(teacher_run) and note["pixel"] == Weights().pixel
    output = tmp_path / "m.safetensors"
    lower = ["lower", str(path), str(output), "--photographs", str(folder), "--quiet"]
    assert main(lower) == 0 and output.exists()
    # goes on without being told again, to more steps
    again = ["distill", str(folder), "-o", str(path), *OPTIONS[2:], "--steps", "5"]
    assert main(again) == 0
    assert load_network(path)[0].steps == 5


@pytest.mark.parametrize(
    "more, text",
    [
        (["--student", "balle2018"], "give --teacher"),
        (["--teacher", "T", "--student", "baller"], "no model is called"),
        (["--teacher", "NOWHERE", "--student", "balle2018"], "expected a checkpoint"),
        (["--teacher", "T", "--student", "balle2018", "--video", "64x64@1"], "give that too"),
        (["--teacher", "T", "--student", "balle2018", "--board", "kv260"], "takes --video"),
        (["--teacher", "T"], "which student?"),
        (["--teacher", "T", "--student", "balle2018", "--arguments", "k=1"], "it takes n, m"),
    ],
)
def test_bad_commands_say_why(more, text, teacher_run, folder, tmp_path, capsys):
    path = tmp_path / "student"
    more = [str(teacher_run) if word == "T" else word for word in more]
    assert main(["distill", str(folder), "-o", str(path), *more, *OPTIONS]) != 0
    message = capsys.readouterr().err
    assert text in message and message.count("lichen: error") == 1
    assert not (path / run.CHECKPOINT).exists()


def test_a_run_keeps_its_teacher_and_weights(teacher_run, folder, tmp_path, capsys):
    path = tmp_path / "student"
    command = ["distill", str(folder), "-o", str(path), "--teacher", str(teacher_run)]
    assert main([*command, "--student", "balle2018", "--width", "8", *OPTIONS]) == 0
    assert main([*command, "--pixel-weight", "0.7", *OPTIONS]) != 0
    assert "pixel=0.7" in capsys.readouterr().err
    assert main(["train", str(folder), str(path), *OPTIONS]) != 0
    assert "with distillation besides" in capsys.readouterr().err
    assert main(["distill", str(folder), "-o", str(teacher_run), *OPTIONS]) != 0
    assert "without a teacher" in capsys.readouterr().err


def test_a_student_of_another_kind_and_of_a_board(teacher_run, monkeypatch):
    assert distill.student_of("student", teacher_run, width=16) == ("student", {"width": 16})
    found = distill.student_of(None, teacher_run, weights=teacher_run)
    assert found == ("balle2018", load_network(teacher_run)[0].arguments)
    with pytest.raises(LichenError, match="holds a balle2018, not a student"):
        distill.student_of("student", teacher_run, weights=teacher_run)
    asked = {}

    def width_for(name, board, video, arguments):
        asked.update(name=name, board=board, video=video, arguments=arguments)
        return {"n": 24, "m": 36, **arguments}

    monkeypatch.setattr(distill.fit, "width_for", width_for)
    board = "kv260", (640, 480, 30.0)
    name, found = distill.student_of("balle2018", teacher_run, board=board)
    assert name == "balle2018" and found["n"] == 24 and found["means"] is True
    assert "n" not in asked["arguments"] and asked["board"] == "kv260"
    with pytest.raises(ModelError, match="no model is called"):
        distill.student_of("students", teacher_run, width=16)
