"""Training: warm start, loss, resuming, integers; tiny pictures and tiny widths throughout."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="training needs the [train] extra")

from lichen.errors import LichenError  # noqa: E402
from lichen.models.student import Student  # noqa: E402
from lichen.training import loss  # noqa: E402
from lichen.training.data import Photographs, list_images  # noqa: E402
from lichen.training.train import Recipe, Trainer, load_tensors, save_tensors, train  # noqa: E402
from lichen.training.warmstart import block_covariance, start_as_klt  # noqa: E402

TINY = Recipe(
    width=8, encoder_blocks=(1, 1), decoder_blocks=(1, 1), steps=8, quantized_steps=3, batch=2,
    crop=64, warmup_steps=2, bfloat16=False,
)  # fmt: skip
CPU = torch.device("cpu")


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


def test_batches_are_crops_in_range(data):
    batch = data.batch(5)
    assert batch.shape == (5, 3, 64, 64) and batch.dtype == torch.float32
    assert batch.min() >= -1 and batch.max() <= 127 / 128
    assert torch.equal(batch * 128, torch.round(batch * 128))


def test_no_pictures_is_an_error(tmp_path, folder):
    with pytest.raises(LichenError, match="found none"):
        list_images(tmp_path)
    with pytest.raises(LichenError, match="found no folder"):
        list_images(tmp_path / "absent")
    with pytest.raises(LichenError, match="512x512"):
        Photographs(list_images(folder), 512, CPU)


def test_unreadable_pictures_are_skipped(tmp_path, folder):
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    good = tmp_path / "good.png"
    good.write_bytes((folder / "0.png").read_bytes())
    assert len(Photographs(list_images(tmp_path), 64, CPU, scales=(1.0,)).pictures) == 1


def test_warm_start_is_a_transform_codec(data):
    torch.manual_seed(0)
    x = data.batch(8)
    position = torch.full((8,), 0.5)
    cold, warm = Student(8), Student(8)
    start_as_klt(warm, block_covariance(data, batches=20))
    with torch.no_grad():
        mse = [float(loss.mse_255(m(x, position).x_hat, x).mean()) for m in (cold, warm)]
    assert mse[1] < 100 < mse[0]


def test_training_lowers_the_loss_and_ends_in_integers(data, tmp_path):
    trainer = Trainer(TINY, tmp_path / "run", CPU)
    start_as_klt(trainer.model, block_covariance(data, batches=20))
    trainer.reset_average()
    assert train(trainer, data, log_every=2)
    assert trainer.quantized and all(layer.quantized for layer in trainer.model.quantized_layers())
    with (tmp_path / "run" / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [2, 4, 6, 8]
    assert [row["quantized"] for row in rows] == ["0", "0", "1", "1"]
    assert all(math.isfinite(float(row["loss"])) for row in rows)
    model = TINY.model()
    load_tensors(model, tmp_path / "run" / "weights.safetensors")
    exponent = trainer.model.analysis_linear.output_exponent
    assert exponent and model.analysis_linear.output_exponent == exponent


def test_resuming_goes_on_where_it_stopped(data, tmp_path):
    torch.manual_seed(5)
    whole = Trainer(TINY, tmp_path / "run", CPU)
    covariance = block_covariance(data, batches=5)
    start_as_klt(whole.model, covariance)
    (tmp_path / "run").mkdir()
    batches = [data.batch(2) for _ in range(4)]
    for batch in batches[:2]:
        whole.train_step(batch)
    whole.save()
    resumed = Trainer(TINY, tmp_path / "run", CPU)
    assert resumed.resume() and resumed.step == 2
    for trainer in (whole, resumed):
        torch.manual_seed(9)
        for batch in batches[2:]:
            trainer.train_step(batch)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_a_loss_that_is_not_finite_stops_with_the_checkpoint_kept(data, tmp_path):
    trainer = Trainer(TINY, tmp_path / "run", CPU)
    (tmp_path / "run").mkdir()
    trainer.save()
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    with torch.no_grad():
        trainer.model.gain.fill_(math.nan)
    with pytest.raises(LichenError, match="last good checkpoint"):
        train(trainer, data)
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before


def test_weights_of_another_model_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_tensors(Student(8).state_dict(), path)
    with pytest.raises(LichenError, match="of another shape"):
        load_tensors(Student(16), path)
    assert not list(Path(tmp_path).glob("*.part"))


def test_ms_ssim_is_a_metric(data):
    pytest.importorskip("pytorch_msssim", reason="MS-SSIM needs pytorch-msssim")
    model = Student(8)
    # MS-SSIM halves a picture four times under an 11-pixel window: 176 pixels at least.
    x = torch.nn.functional.interpolate(data.batch(2), size=192, mode="bilinear")
    position = torch.tensor([0.2, 0.8])
    terms = loss.rate_distortion(model(x, position), x, position, "ms-ssim")
    terms["loss"].backward()
    assert math.isfinite(float(terms["loss"].detach()))
    with pytest.raises(ValueError, match="'mse' or 'ms-ssim'"):
        loss.rate_distortion(model(x, position), x, position, "psnr")
