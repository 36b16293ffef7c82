"""Training: warm start, loss, seeds, resuming, integers, processes; tiny models throughout."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="training needs the [train] extra")
pytest.importorskip("safetensors", reason="training needs the [train] extra")

import lichen  # noqa: E402
from lichen.cli import main  # noqa: E402
from lichen.errors import LichenError, ModelError  # noqa: E402
from lichen.model import read as read_model  # noqa: E402
from lichen.models import catalogue  # noqa: E402
from lichen.models.layers import Quantizable  # noqa: E402
from lichen.models.priors import QUANTILE_TAIL, EntropyBottleneck  # noqa: E402
from lichen.models.student import (  # noqa: E402
    LAMBDA_MAX,
    LAMBDA_MIN,
    Student,
    quality_to_lambda,
)
from lichen.picture import from_array  # noqa: E402
from lichen.training import (  # noqa: E402
    commands,
    loss,
    quantize,
    recipe,
    run,
    seeds,
    warmstart,
)
from lichen.training import train as training  # noqa: E402
from lichen.training.data import Photographs, list_images, recoloured  # noqa: E402
from lichen.training.recipe import Recipe  # noqa: E402
from lichen.training.train import Trainer, train  # noqa: E402

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
TINY = Recipe(
    model="balle2018", arguments={"n": 8, "m": 8, "means": True}, steps=8, quantized_steps=3,
    batch=2, crop=64, warmup_steps=2, bfloat16=False, log_every=1,
)  # fmt: skip
STUDENT = dataclasses.replace(
    TINY,
    model="student",
    arguments={"width": 8, "encoder_blocks": [1, 1], "decoder_blocks": [1, 1]},
)
# Small arguments of each model of the catalogue: all of them train, whatever they are made of.
SMALL = {
    "balle2016": {"n": 8, "m": 8},
    "balle2018": {"n": 8, "m": 8},
    "minnen2020": {"n": 8, "m": 8, "slices": 2, "hidden": [8, 8]},
    "student": STUDENT.arguments,
    "zou2022-stf": {
        "embed_dim": 4, "depths": [1, 1, 2, 1], "heads": [1, 2, 2, 2], "slices": 2,
        "hidden": [8, 8, 8, 8],
    },
    "zou2022-wacnn": {"n": 8, "m": 8, "slices": 2, "hidden": [8, 8, 8, 8], "heads": 2},
}  # fmt: skip

# Equality to the last bit is for one number of threads; tiny layers want one.
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", autouse=True)
def _light():
    """Calibrate on few pictures, and leave the memory of the other tests alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "CALIBRATION_BATCHES", 2)
        patch.setattr(commands, "keep_buffers", lambda: None)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four smooth pictures with edges, which have a spectrum like photographs."""
    path = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for number in range(4):
        coarse = rng.integers(0, 256, (5, 6, 3), np.uint8)
        image = Image.fromarray(coarse).resize((160, 128), Image.BICUBIC)
        image.save(path / f"{number}.png")
    return path


@pytest.fixture(scope="module")
def data(folder):
    return Photographs(list_images(folder), 64, CPU, scales=(1.0,))


def begin(wanted: Recipe, data: Photographs, path: Path) -> Trainer:
    """Make a trainer as `lichen train` does: resumed, or started."""
    trainer = Trainer(wanted, CPU)
    if not trainer.resume(path):
        warmstart.start(trainer.model, data, wanted, batches=4)
        trainer.reset_average()
    return trainer


def log_of(path: Path) -> list[dict[str, str]]:
    """The lines of a run's log, without the seconds, which differ from run to run."""
    with (path / run.LOG).open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The folder of an uninterrupted run of TINY."""
    path = tmp_path_factory.mktemp("whole")
    assert train(begin(TINY, data, path), data, path) == 0
    return path


# Photographs


def test_batches_are_crops_in_range(data):
    batch = data.batch(5)
    assert batch.shape == (5, 3, 64, 64) and batch.dtype == torch.float32
    assert batch.min() >= -1 and batch.max() <= 127 / 128
    assert torch.equal(batch * 128, torch.round(batch * 128))
    assert not torch.equal(data.batch(5), batch)


def test_crops_follow_from_seed_step_and_sample(data, folder):
    batch = data.batch(4, step=7)
    assert torch.equal(batch[1:3], data.batch(2, step=7, first=1))
    assert not torch.equal(batch, data.batch(4, step=8))
    other = Photographs(list_images(folder), 64, CPU, scales=(1.0,), seed=1)
    assert not torch.equal(batch, other.batch(4, step=7))


def test_a_part_of_the_crops_is_recoloured(data, folder):
    plain = data.batch(40, step=7)
    half = Photographs(list_images(folder), 64, CPU, scales=(1.0,), colour=0.5).batch(40, step=7)
    changed = [not torch.equal(a, b) for a, b in zip(plain, half)]
    assert 10 < sum(changed) < 30  # and the others are the same crops
    assert torch.equal(half * 128, torch.round(half * 128))
    assert half.min() >= -1 and half.max() <= 127 / 128


def test_recoloured_crops_differ_in_colour_alone():
    rng = random.Random(5)
    ramp = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(3, 16, 16)
    factors = []
    for _ in range(50):
        crop = recoloured(ramp, rng)
        assert crop.dtype == torch.uint8 and crop.shape == ramp.shape
        middle = crop[:, 4, 8].double()  # 72 in the ramp: never cut off
        factors.append(middle / 72)
        expected = (ramp.double() * factors[-1][:, None, None]).clamp(0, 255)
        assert (crop.double() - expected).abs().max() <= 0.5 + 255 / 72 * 0.5
    factors = torch.stack(factors)
    low, high = 0.7 * 0.9 - 0.01, 1.15 * 1.1 + 0.01
    assert low <= factors.min() < 0.75 and 1.1 < factors.max() <= high
    assert (factors.amax(1) - factors.amin(1)).max() > 0.05  # white balance
    red = torch.tensor([200, 60, 60], dtype=torch.uint8)[:, None, None].expand(3, 2, 2)
    spans = []
    for _ in range(50):
        r, g, b = recoloured(red, rng)[:, 0, 0].tolist()
        spans.append((r - (g + b) / 2) / max(r, 1))
    assert min(spans) < 0.55 and max(spans) > 0.75  # 0.7 in the picture


def test_no_pictures_is_an_error(tmp_path, folder):
    with pytest.raises(LichenError, match="found none"):
        list_images(tmp_path)
    with pytest.raises(LichenError, match="found no folder"):
        list_images(tmp_path / "absent")
    with pytest.raises(LichenError, match=r"512x512.*4 smaller than 512x512 \(0.png, .*--crop"):
        Photographs(list_images(folder), 512, CPU)


def test_pictures_of_no_use_are_named_and_counted(tmp_path, folder):
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    (tmp_path / "cut.png").write_bytes((folder / "0.png").read_bytes()[:900])
    Image.new("RGB", (60, 400)).save(tmp_path / "narrow.png")
    shutil.copy(folder / "0.png", tmp_path / "good.png")
    with pytest.warns(UserWarning) as notes:
        found = Photographs(list_images(tmp_path), 64, CPU, scales=(1.0,))
    assert len(found.pictures) == 1
    assert str(notes[0].message) == (
        "3 of 4 pictures left out: 2 unreadable (bad.png, cut.png), "
        "1 smaller than 64x64 (narrow.png)"
    )


# Loss, priors, starting points


def test_auxiliary_loss_finds_the_quantiles():
    torch.manual_seed(0)
    prior = EntropyBottleneck(3, init_scale=1.0)
    optimizer = torch.optim.Adam([prior.quantiles])
    before = float(prior.auxiliary_loss().detach())
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.97**step
        optimizer.zero_grad()
        prior.auxiliary_loss().backward()
        optimizer.step()
    assert all(p.grad is None for name, p in prior.named_parameters() if name != "quantiles")
    after = float(prior.auxiliary_loss().detach())
    assert after < 0.02 * before
    below = torch.sigmoid(prior.logits(prior.quantiles))[:, 0]
    assert torch.allclose(below[:, 1], torch.tensor(0.5), atol=0.02)
    assert torch.allclose(below[:, 0], torch.tensor(QUANTILE_TAIL / 2), rtol=0.2, atol=0)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("student", {"width": 8}),
        ("balle2018", {"n": 48, "m": 48, "means": True}),
        ("minnen2020", {"n": 48, "m": 48, "slices": 2, "hidden": [8, 8]}),
    ],
)
def test_warm_start_is_a_transform_codec(name, arguments, data):
    torch.manual_seed(0)
    x = data.batch(8)
    position = torch.full((8,), 0.5)
    cold, warm = (catalogue.build(name, arguments) for _ in range(2))
    warmstart.start(warm, data, Recipe(), batches=20)
    with torch.no_grad():
        mse = [float(loss.mse_255(m(x, position).x_hat, x).mean()) for m in (cold, warm)]
    assert mse[1] < 100 < mse[0]


def test_gains_of_other_models_begin_with_the_rate(data):
    model = catalogue.build("balle2018", SMALL["balle2018"])
    warmstart.start(model, data, Recipe(start="plain"))
    position = torch.tensor([0.0, 0.5, 1.0])
    gain, inverse = (g[:, 0, 0, 0] for g in model.gains(position))
    assert torch.allclose(gain * inverse, torch.ones(3))
    assert torch.allclose(gain[2] / gain[0], torch.tensor(math.sqrt(LAMBDA_MAX / LAMBDA_MIN)))
    assert torch.allclose(gain[1], torch.tensor(1.0), atol=1e-5)


def test_training_goes_on_from_weights_of_another_run(whole, data):
    model = catalogue.build(TINY.model, TINY.arguments)
    warmstart.start(model, data, TINY, whole / run.WEIGHTS)
    expected = torch.load(whole / run.CHECKPOINT, weights_only=True)["average"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_transforms_of_another_model(data, tmp_path):
    torch.manual_seed(3)
    source = catalogue.build("balle2018", {"n": 8, "m": 8, "means": True})
    run.save_tensors(source.state_dict(), tmp_path / "w.safetensors")
    model = catalogue.build("minnen2020", {"n": 8, "m": 8, "slices": 2, "hidden": [8, 8]})
    warmstart.start(model, data, Recipe(), transforms=tmp_path / "w.safetensors")
    for name, value in model.state_dict().items():
        if name.startswith(warmstart.TRANSFORMS):
            assert torch.equal(value, source.state_dict()[name]), name
    wider = catalogue.build("minnen2020", {"n": 8, "m": 16, "slices": 2, "hidden": [8, 8]})
    with pytest.raises(LichenError, match=r"do not fit ChannelWise.*g_a\.6.*differ"):
        warmstart.start(wider, data, Recipe(), transforms=tmp_path / "w.safetensors")


def test_rates_weigh_alike_only_where_there_are_many(data):
    model = Student(8)
    x = data.batch(2)
    position = torch.tensor([0.2, 0.8])
    weight = quality_to_lambda(position)
    coded = model(x, position, noise=False)
    plain = loss.rate_distortion(coded, x, weight, "mse")
    mse = loss.mse_255(coded.x_hat, x)
    bits = [-torch.log2(p).flatten(1).sum(1) / 64**2 for p in coded[1:]]
    assert torch.allclose(plain["loss"], (weight * mse + bits[0] + bits[1]).mean())
    balanced = loss.rate_distortion(coded, x, weight, "mse", loss.balance(weight))
    assert not torch.allclose(plain["loss"], balanced["loss"])


def test_ms_ssim_is_a_metric(data):
    pytest.importorskip("pytorch_msssim", reason="MS-SSIM needs pytorch-msssim")
    model = Student(8)
    # MS-SSIM halves a picture four times under an 11-pixel window: 176 pixels at least.
    x = torch.nn.functional.interpolate(data.batch(2), size=192, mode="bilinear")
    weight = torch.tensor([0.002, 0.05])
    coded = model(x, torch.tensor([0.2, 0.8]))
    terms = loss.rate_distortion(coded, x, weight, "ms-ssim")
    terms["loss"].backward()
    assert math.isfinite(float(terms["loss"].detach()))
    with pytest.raises(ValueError, match="'mse' or 'ms-ssim'"):
        loss.rate_distortion(coded, x, weight, "psnr")


def test_biases_are_corrected_only_where_that_helps(data, monkeypatch):
    models = []
    for wreck in (False, True):
        torch.manual_seed(0)
        model = catalogue.build(TINY.model, TINY.arguments)
        warmstart.start(model, data, TINY, batches=4)
        if wreck:

            def correct(model, _):
                model.g_s[-1].bias.add_(1.0)

            monkeypatch.setattr(quantize, "correct_biases", correct)
        quantize.fit(model, [data.batch(2, step=0)], correct=wreck)
        models.append(model.state_dict())
    for name, value in models[0].items():
        assert torch.equal(value, models[1][name]), name


# Recipes


def test_a_recipe_is_read_from_toml_and_from_a_run(tmp_path):
    pytest.importorskip(
        "tomllib" if sys.version_info >= (3, 11) else "tomli", reason="TOML needs tomli on 3.10"
    )
    path = tmp_path / "recipe.toml"
    path.write_text('model = "balle2018"\narguments = { n = 8 }\nrates = 0.013\nema = 1\n')
    found = recipe.read(path)
    assert found == Recipe(model="balle2018", arguments={"n": 8}, rates=0.013, ema=1.0)
    assert found.one_lambda == 0.013 and type(found.ema) is float
    config = tmp_path / "config.json"
    config.write_text(found.to_json())
    assert recipe.read(config) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stpes = 3", "has stpes, which no recipe has; its fields are model, arguments, .*steps"),
        ("steps = 0", "steps must be at least 1, not 0"),
        ("steps = 2.5", "steps must be a int, not 2.5"),
        ("crop = 100", "crop must be at least 64, a multiple of 64, not 100"),
        ("learning_rate = nan", "learning_rate must be more than 0, not nan"),
        ('schedule = "step"', "schedule must be cosine or plateau, not 'step'"),
        ("rates = -1", "rates must be 'all' or a positive lambda"),
        ('rates = "some"', "rates must be 'all' or a positive lambda"),
        ("steps = 4\nquantized_steps = 5", "the last of the 4 steps, not 5"),
        ("steps =", "is not a recipe"),
    ],
)
def test_a_wrong_recipe_is_refused(tmp_path, text, message):
    pytest.importorskip(
        "tomllib" if sys.version_info >= (3, 11) else "tomli", reason="TOML needs tomli on 3.10"
    )
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(LichenError, match=message):
        recipe.read(path)


def test_arguments_of_a_model_are_json_or_words():
    assert recipe.parse_arguments(["n=64,means=true", "blocks=[4,1],activation=gdn"]) == {
        "n": 64, "means": True, "blocks": [4, 1], "activation": "gdn",
    }  # fmt: skip
    with pytest.raises(LichenError, match="name=value"):
        recipe.parse_arguments(["64"])


def test_the_recipes_that_are_shipped_can_be_read():
    paths = sorted((ROOT / "recipes").rglob("recipe*.toml"))
    assert paths
    for path in paths:
        wanted = recipe.read(path)
        assert wanted.steps > 0 and wanted.model in catalogue.MODELS


# The loop


@pytest.mark.parametrize("name", sorted(catalogue.MODELS))
def test_training_lowers_the_loss(name, data, tmp_path):
    wanted = dataclasses.replace(
        TINY, model=name, arguments=SMALL[name], steps=14, quantized_steps=0, learning_rate=3e-3,
        start="plain",
    )  # fmt: skip
    trainer = begin(wanted, data, tmp_path)
    quantiles = {k: v.clone() for k, v in trainer.average.items() if k.endswith("quantiles")}
    x, position = data.batch(4, step=0), torch.tensor([0.1, 0.3, 0.6, 0.9])
    weight = quality_to_lambda(position)

    def measured() -> float:
        with torch.no_grad(), seeds.SampleNoise(0, 0, 0, CPU):
            coded = trainer.model(x, position)
        return float(loss.rate_distortion(coded, x, weight, "mse", loss.balance(weight))["loss"])

    before = measured()
    assert train(trainer, data, tmp_path) == 0
    assert all(math.isfinite(float(row["loss"])) for row in log_of(tmp_path))
    assert measured() < before
    # the loss of rates does not reach the quantiles, the auxiliary loss does
    assert quantiles and all(not torch.equal(v, trainer.average[k]) for k, v in quantiles.items())


@pytest.mark.parametrize("wanted", [TINY, STUDENT], ids=lambda wanted: wanted.model)
def test_training_ends_in_integers(wanted, data, tmp_path):
    trainer = begin(wanted, data, tmp_path)
    assert train(trainer, data, tmp_path) == 0
    assert trainer.averaged == 3  # anew in integers
    # what noisy latents need computes in float: table indices below 0, z before it is rounded
    in_float = {"index", "hyper_analysis.2"} if wanted is STUDENT else set()
    found = {
        name
        for name, layer in trainer.model.named_modules()
        if isinstance(layer, Quantizable) and not layer.quantized
    }
    assert trainer.quantized and found == in_float
    rows = log_of(tmp_path)
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [row["quantized"] for row in rows] == ["0"] * 5 + ["1"] * 3
    assert all(math.isfinite(float(row["loss"])) for row in rows)
    model = catalogue.build(wanted.model, wanted.arguments)
    assert run.load_tensors(model, tmp_path / run.WEIGHTS) == {"step": "8", "quantized": "1"}
    for ours, trained in zip(model.quantized_layers(), trainer.model.quantized_layers()):
        assert ours.output_exponent == trained.output_exponent


def test_schedules(data):
    trainer = Trainer(dataclasses.replace(TINY, steps=1000, quantized_steps=200), CPU)
    r = trainer.recipe
    assert trainer.learning_rate(0) == r.learning_rate / 2
    assert trainer.learning_rate(2) == r.learning_rate
    assert trainer.learning_rate(401) == pytest.approx(0.51 * r.learning_rate)
    assert trainer.learning_rate(799) == pytest.approx(0.02 * r.learning_rate, rel=1e-3)
    assert trainer.learning_rate(801) == r.quantized_learning_rate
    assert trainer.learning_rate(999) == pytest.approx(0.02 * r.quantized_learning_rate, rel=1e-2)
    trainer.recipe = dataclasses.replace(r, quantized_learning_rate=0)
    assert trainer.learning_rate(801) > trainer.learning_rate(900) > 0.02 * r.learning_rate
    trainer.recipe = dataclasses.replace(r, schedule="plateau", plateau_steps=2)
    rates = []
    for value in (3.0, 3.0, 2.0, 2.0, 2.0, 2.0, 1.0, 1.0):
        trainer.step += 1
        trainer._watch_plateau(value)
        rates.append(trainer.learning_rate(500) / r.learning_rate)
    assert rates == [1, 1, 1, 1, 1, 0.5, 0.5, 0.5]


def test_one_rate_is_the_same_at_all_qualities(data, tmp_path):
    wanted = dataclasses.replace(STUDENT, rates=0.01, steps=3, quantized_steps=0)
    trainer = begin(wanted, data, tmp_path)
    first = trainer.model.gain.detach().clone()
    train(trainer, data, tmp_path)
    for gains, start in ((trainer.model.gain, first), (trainer.average["gain"], first)):
        assert not torch.equal(gains, start)
        assert torch.equal(gains, gains[:1].expand_as(gains))
    x = data.batch(1)
    with torch.no_grad():
        low, high = (trainer.model(x, torch.tensor([q]), noise=False) for q in (0.0, 1.0))
    assert torch.equal(low.x_hat, high.x_hat)


# Seeds, stopping, resuming


def test_noise_follows_from_the_sample():
    x = torch.zeros(4, 2, 3, 3)
    with seeds.SampleNoise(0, 5, 0, CPU):
        first, second = torch.rand_like(x), torch.rand_like(x)
    with seeds.SampleNoise(0, 5, 2, CPU):
        assert torch.equal(torch.rand_like(x[2:]), first[2:])
        assert torch.equal(torch.rand_like(x[2:]), second[2:])
    assert len({float(v) for v in torch.stack([first, second]).flatten()}) > 140
    assert first.min() >= 0 and first.max() < 1


def test_positions_are_stratified():
    found = seeds.positions(8, seed=3, step=4)
    assert sorted((found * 8).floor().tolist()) == list(range(8))
    assert torch.equal(found, seeds.positions(8, seed=3, step=4))
    assert not torch.equal(found, seeds.positions(8, seed=3, step=5))


def test_one_seed_gives_one_curve(whole, data, folder, tmp_path):
    fresh = Photographs(list_images(folder), 64, CPU, scales=(1.0,))
    train(begin(TINY, fresh, tmp_path), fresh, tmp_path)
    assert log_of(tmp_path) == log_of(whole)
    other = dataclasses.replace(TINY, seed=1, steps=1, quantized_steps=0)
    train(begin(other, data, tmp_path / "other"), data, tmp_path / "other")
    assert log_of(tmp_path / "other")[0]["loss"] != log_of(whole)[0]["loss"]


@pytest.mark.parametrize("stop", [2, 5, 6])
def test_a_resumed_run_gives_the_same_curve(whole, data, tmp_path, stop):
    """Stopped before, at and after the change to integers; a stale log is cut back."""

    def saved(path: Path) -> None:
        if trainer.step == stop:
            raise KeyboardInterrupt  # as a kill right after a checkpoint

    trainer = begin(TINY, data, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train(trainer, data, tmp_path, save_every_s=0, saved=saved)
    with (tmp_path / run.LOG).open("a") as file:
        file.write(f"{stop + 1},1,9,9,9,9,9,0\n{stop + 2},1,9")  # was not in the checkpoint
    resumed = begin(TINY, data, tmp_path)
    assert resumed.step == stop
    train(resumed, data, tmp_path)
    assert log_of(tmp_path) == log_of(whole)
    states = [torch.load(p / run.CHECKPOINT, weights_only=True) for p in (tmp_path, whole)]
    for part in ("model", "average"):
        for name, value in states[1][part].items():
            assert torch.equal(value, states[0][part][name]), name


@pytest.mark.parametrize("bfloat16", [False, True])
def test_soap_resumes_to_the_same_curve(data, tmp_path, bfloat16):
    wanted = dataclasses.replace(
        STUDENT, optimizer="soap", steps=6, quantized_steps=0, bfloat16=bfloat16
    )
    whole = begin(wanted, data, tmp_path / "whole")
    whole.optimizer.param_groups[0]["every"] = 2
    train(whole, data, tmp_path / "whole")
    first = begin(wanted, data, tmp_path / "parts")
    first.optimizer.param_groups[0]["every"] = 2
    train(first, data, tmp_path / "parts", time_limit_s=0)
    for _ in range(3):
        first.train_step(data)
    first.save(tmp_path / "parts")
    resumed = begin(wanted, data, tmp_path / "parts")
    assert resumed.step == 3
    train(resumed, data, tmp_path / "parts")
    for name, value in whole.average.items():
        assert torch.equal(value, resumed.average[name]), name


def test_a_log_line_may_span_a_checkpoint(data, tmp_path):
    wanted = dataclasses.replace(TINY, log_every=3, steps=6, quantized_steps=0)
    train(begin(wanted, data, tmp_path / "a"), data, tmp_path / "a")
    trainer = begin(wanted, data, tmp_path / "b")
    trainer.train_step(data)
    trainer.train_step(data)
    (tmp_path / "b").mkdir()
    trainer.save(tmp_path / "b")
    train(begin(wanted, data, tmp_path / "b"), data, tmp_path / "b")
    assert log_of(tmp_path / "a") == log_of(tmp_path / "b")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_with_a_checkpoint(data, tmp_path, number):
    before = signal.getsignal(number)
    trainer = begin(TINY, data, tmp_path)

    def report(line: str) -> None:
        if line.startswith("step 2/"):
            os.kill(os.getpid(), number)
            assert signal.getsignal(number) == signal.SIG_DFL  # a second one ends at once

    assert train(trainer, data, tmp_path, report=report) == number
    assert begin(TINY, data, tmp_path).step == 2
    assert signal.getsignal(number) == before


def test_a_time_limit_can_be_gone_on_from(whole, data, tmp_path):
    trainer = begin(TINY, data, tmp_path)
    assert train(trainer, data, tmp_path, time_limit_s=0) == 0
    assert trainer.step == 0
    train(begin(TINY, data, tmp_path), data, tmp_path)
    assert log_of(tmp_path) == log_of(whole)


# What goes wrong


def test_a_loss_that_is_not_finite_stops_with_the_checkpoint_kept(data, tmp_path):
    trainer = begin(TINY, data, tmp_path)
    trainer.save(tmp_path)
    before = (tmp_path / run.CHECKPOINT).read_bytes()
    with torch.no_grad():
        trainer.model.gain.fill_(math.nan)
    with pytest.raises(LichenError, match=r"last good checkpoint.*smaller learning rate"):
        train(trainer, data, tmp_path, save_every_s=0)
    assert (tmp_path / run.CHECKPOINT).read_bytes() == before


def test_a_full_disk_leaves_the_old_checkpoint(data, tmp_path):
    resource = pytest.importorskip("resource", reason="limits of file sizes are POSIX's")
    trainer = begin(TINY, data, tmp_path)
    trainer.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {run.CHECKPOINT, run.WEIGHTS}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"could not be written.*is kept.*free space"):
            trainer.save(tmp_path)
        with pytest.raises(OSError, match="could not be written"):
            run.save_tensors(trainer.average, tmp_path / run.WEIGHTS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_model_without_integers_takes_no_integer_steps():
    name = "zou2022-wacnn"
    wanted = dataclasses.replace(TINY, model=name, arguments=SMALL[name])
    with pytest.raises(ModelError, match=f"{name} runs in float"):
        Trainer(wanted, CPU)


def test_damaged_and_old_checkpoints_are_refused(data, tmp_path):
    (tmp_path / run.CHECKPOINT).write_bytes(b"PK damaged")
    with pytest.raises(LichenError, match=r"is damaged.*--weights"):
        begin(TINY, data, tmp_path)
    torch.save({"step": 3, "model": {}}, tmp_path / run.CHECKPOINT)
    with pytest.raises(LichenError, match=r"older version.*--weights"):
        begin(TINY, data, tmp_path)


def test_weights_of_another_model_are_refused(tmp_path):
    path = tmp_path / run.WEIGHTS
    run.save_tensors(Student(8).state_dict(), path)
    with pytest.raises(LichenError, match="of another shape"):
        run.load_tensors(Student(16), path)
    path.write_bytes(b"nothing")
    with pytest.raises(LichenError, match="is no safetensors file"):
        run.load_tensors(Student(16), path)
    assert not list(Path(tmp_path).glob("*.part"))


# The commands


SMALLEST = ("--batch", 2, "--crop", 64, "--no-bfloat16", "--log-every", 1, "--threads", 1)
MODEL = (
    "--model",
    "balle2018",
    "--arguments",
    "n=8,m=8",
    "--arguments",
    "means=true",
    "--warmup-steps",
    2,
)


def lichen_(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def process(*arguments: object, **environment: str) -> subprocess.Popen[bytes]:
    """Start `lichen` as a process of its own."""
    here = {"PYTHONPATH": str(Path(lichen.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lichen", *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, env=os.environ | here | environment)


def test_from_photographs_to_a_codec(folder, tmp_path, capfd):
    """Train, go on with more steps, lower, encode and decode: the way of docs/training.md."""
    runs, model = tmp_path / "run", tmp_path / "mine.safetensors"
    assert lichen_("train", folder, runs, *MODEL, *SMALLEST, "--steps", 2) == 0
    assert lichen_("train", folder, runs, "--steps", 4, "--json") == 0
    out, err = capfd.readouterr()
    assert json.loads(out) == {"run": str(runs), "step": 4, "done": True}
    assert "resumed at step 2" in err and "steps 2 -> 4" in err and "0:00:00 left" in err
    assert [row["step"] for row in log_of(runs)] == ["1", "2", "3", "4"]
    config = json.loads((runs / run.CONFIG).read_text())
    assert config["arguments"] == {"n": 8, "m": 8, "means": True, "activation": "gdn"}
    assert config["steps"] == 4 and config["batch"] == 2
    assert lichen_("lower", runs, model) == 2
    assert "give --photographs" in capfd.readouterr().err
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert lichen_("lower", runs, model, "--photographs", folder, "--json") == 0
    report = json.loads(capfd.readouterr().out)
    assert report["bytes"] == model.stat().st_size and report["name"] == "mine"
    codec = lichen.Codec(read_model(model))
    pixels = np.asarray(Image.open(folder / "0.png"))[:64, :64]
    assert codec.decode(codec.encode(from_array(pixels)).data).width == 64
    assert codec.model.digest.hex() == report["weights"]


def test_bad_requests_are_one_line(folder, whole, tmp_path, capfd):
    def fails(code: int, *arguments: object) -> str:
        assert lichen_("train", *arguments) == code
        (line,) = capfd.readouterr().err.splitlines()
        assert line.startswith("lichen: error: ")
        return line

    runs = tmp_path / "run"
    assert "there are balle2016, balle2018" in fails(4, folder, runs, "--model", "x", *SMALLEST)
    line = fails(4, folder, runs, "--model", "balle2018", "--arguments", "k=3", *SMALLEST)
    assert "it takes n, m, means, activation" in line
    line = fails(4, folder, runs, "--model", "balle2018", "--arguments", "n=0", *SMALLEST)
    assert "positive" in line
    assert "found no folder" in fails(2, tmp_path / "none", runs, *SMALLEST)
    assert "use a smaller --crop" in fails(2, folder, runs, *SMALLEST, "--crop", 512)
    assert "student" in fails(2, folder, whole, "--model", "student", *SMALLEST)
    assert "lambda must be" in fails(2, folder, runs, "--lambda", 0)
    assert "not allowed with" in fails(2, folder, runs, "--lambda", 0.01, "--rates", "all")
    assert "No such file" in fails(3, folder, runs, "--recipe", tmp_path / "none.toml")
    assert not runs.exists()
    assert lichen_("lower", tmp_path, "x.safetensors") == 2
    assert "found no config.json" in capfd.readouterr().err


def test_a_killed_run_goes_on_as_if_nothing_had_happened(folder, tmp_path, capfd):
    """A real SIGKILL, at whatever moment it comes, among checkpoints after every step."""
    options = (*MODEL, *SMALLEST, "--steps", 40, "--quiet", "--checkpoint-every", 0)
    killed = process("train", folder, tmp_path / "killed", *options)
    path, deadline = tmp_path / "killed" / run.LOG, time.monotonic() + 60
    try:
        while not path.exists() or len(path.read_text().splitlines()) < 5:
            assert killed.poll() is None and time.monotonic() < deadline, killed.stderr.read()
            time.sleep(0.01)
    finally:
        killed.kill()
        killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    checkpoint = torch.load(tmp_path / "killed" / run.CHECKPOINT, weights_only=True)
    assert 0 < checkpoint["step"] < 40
    assert lichen_("train", folder, tmp_path / "killed", "--threads", 1, "--quiet") == 0
    assert lichen_("train", folder, tmp_path / "whole", *options) == 0
    assert len(log_of(tmp_path / "whole")) == 40
    assert log_of(tmp_path / "killed") == log_of(tmp_path / "whole")


def test_two_processes_do_what_one_does(folder, tmp_path, monkeypatch):
    """Same crops, positions and noise, sample for sample; sums in another order."""
    monkeypatch.setattr(training, "CALIBRATION_BATCHES", 8)  # as the processes have it
    options = (*MODEL, *SMALLEST, "--batch", 4, "--steps", 4, "--quantized-steps", 1, "--quiet")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    both = [
        process("train", folder, tmp_path / "two", *options, RANK=rank, LOCAL_RANK=rank, **shared)
        for rank in ("0", "1")
    ]
    assert lichen_("train", folder, tmp_path / "one", *options) == 0
    for one in both:
        _, errors = one.communicate(timeout=300)
        assert one.returncode == 0, errors.decode()
    rows = [log_of(tmp_path / name) for name in ("one", "two")]
    assert [row["step"] for row in rows[1]] == ["1", "2", "3", "4"]
    for alone, shared_row in zip(*rows):
        for name in ("loss", "bpp", "mse"):
            assert float(shared_row[name]) == pytest.approx(float(alone[name]), rel=2e-3), name
    assert float(rows[1][0]["loss"]) == pytest.approx(float(rows[0][0]["loss"]), rel=1e-5)
