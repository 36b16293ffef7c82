"""State dicts of others, as they come, on the command line: file in, codec out."""

import warnings

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="training needs the [train] extra")

from safetensors.torch import load_file  # noqa: E402

import lichen  # noqa: E402
from lichen.cli import main  # noqa: E402
from lichen.model import read as read_model  # noqa: E402
from lichen.models import catalogue  # noqa: E402
from lichen.picture import from_array  # noqa: E402
from lichen.training import commands  # noqa: E402

torch.set_num_threads(1)  # the layers are tiny

KINDS = {
    "factorized": ("balle2016", {"n": 8, "m": 8}),
    "x-lic": ("balle2016", {"n": 8, "m": 8, "kernels": "9-5-5", "power": 1}),
    "hyperprior": ("balle2018", {"n": 8, "m": 8}),
    "mean": ("balle2018", {"n": 8, "m": 8, "means": True}),
    "channel-wise": ("minnen2020", {"n": 8, "m": 8, "slices": 2, "hidden": [8, 8]}),
    "wacnn": ("zou2022-wacnn", {"n": 16, "m": 16, "slices": 2, "hidden": [8, 8, 8, 8]}),
}
OURS = (".exponent", ".peak")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for i in range(3):
        small = Image.fromarray(rng.integers(0, 256, (36, 36, 3), np.uint8))
        small.resize((272, 272), Image.Resampling.BICUBIC).save(path / f"{i}.png")
    return path


def foreign(kind, path):
    """Save fresh weights as others save them: without what only lichen has."""
    torch.manual_seed(1)
    name, arguments = KINDS[kind]
    model = catalogue.build(name, arguments)
    state = {
        key: value
        for key, value in model.state_dict().items()
        if not key.endswith(OURS) and key not in ("gain", "inverse_gain")
    }
    if kind == "x-lic":  # GDN's parameters as they are applied; no bias on the last layer; no prior
        del state["g_a.4.bias"]
        for key in state:
            if key.endswith((".beta", ".gamma")):
                state[key] = state[key].square()
        state = {key: v for key, v in state.items() if not key.startswith("entropy_bottleneck.")}
    torch.save({"state_dict": state}, path)
    return name, state


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_becomes_a_codec(kind, folder, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(commands, "PRIOR_BATCHES", 1)
    few = [torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(2)) * 2 - 1]
    monkeypatch.setattr(commands, "calibration_batches", lambda *_: few)
    name, _ = foreign(kind, tmp_path / "theirs.pth.tar")
    found, has_prior = catalogue.from_checkpoint(tmp_path / "theirs.pth.tar")
    assert catalogue.name_of(found) == name and has_prior == (kind != "x-lic")
    command = ["lower", tmp_path / "theirs.pth.tar", tmp_path / "m.safetensors"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main([str(word) for word in (*command, "--photographs", folder)]) == 0, capfd
        codec = lichen.Codec(read_model(tmp_path / "m.safetensors"))
        picture = from_array(np.asarray(Image.open(folder / "0.png"))[:70, :60])
        encoded = codec.encode(picture, digest=True)
        assert codec.decode(encoded.data).pixels.shape == (70, 60, 3)


def test_a_checkpoint_without_photographs(tmp_path, capfd):
    foreign("x-lic", tmp_path / "x.pt")
    assert main(["lower", str(tmp_path / "x.pt"), str(tmp_path / "m.safetensors")]) == 2
    assert "has no prior: give --photographs" in capfd.readouterr().err
    foreign("mean", tmp_path / "y.pt")
    assert main(["lower", str(tmp_path / "y.pt"), str(tmp_path / "m.safetensors")]) == 2
    assert "give --photographs" in capfd.readouterr().err
    assert not (tmp_path / "m.safetensors").exists()


def test_a_checkpoint_is_trained_on(folder, tmp_path, capfd):
    _, state = foreign("mean", tmp_path / "w.pt")

    def train(run, *arguments):
        words = ["train", folder, tmp_path / run, "--model", "balle2018", "--threads", 1]
        words += ["--weights", tmp_path / "w.pt", "--batch", 1, "--crop", 64, "--steps", 1]
        words += ["--learning-rate", 1e-9, "--arguments", *arguments]
        return main([str(word) for word in words])

    assert train("run", "n=8,m=8,means=true") == 0
    trained = load_file(tmp_path / "run" / "weights.safetensors")
    assert torch.allclose(trained["g_a.2.weight"], state["g_a.2.weight"], atol=1e-6)
    assert train("other", "n=8,m=16,means=true") == 4
    assert "of another shape ['g_a.6.bias" in capfd.readouterr().err


def test_something_else(tmp_path, capfd):
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pt")
    assert main(["lower", str(tmp_path / "other.pt"), str(tmp_path / "m.safetensors")]) != 0
    err = capfd.readouterr().err
    assert "unknown architecture: 1 tensors, 3 values, the first conv.weight" in err
    assert "bmshj2018-hyperprior" in err and len(err.splitlines()) == 1
    torch.save({"analysis_branch.1.exponent": torch.tensor(3)}, tmp_path / "own.pt")
    assert main(["lower", str(tmp_path / "own.pt"), str(tmp_path / "m.safetensors")]) == 4
    assert "config.json" in capfd.readouterr().err
