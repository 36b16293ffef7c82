"""Complexity: the models have the parameters and multiply-accumulates that were published."""

import pytest

torch = pytest.importorskip("torch", reason="models need the [train] extra")

from torch import nn  # noqa: E402

from lichen.models import catalogue  # noqa: E402
from lichen.models.balle2016 import FactorizedPrior  # noqa: E402
from lichen.models.complexity import Complexity, Cost, complexity  # noqa: E402
from lichen.models.layers import Conv2d  # noqa: E402

torch.set_num_threads(1)  # one small picture


@pytest.fixture(autouse=True)
def no_initial_values(monkeypatch):
    """Zeros: drawing 114 million random numbers would take most of the time."""
    for name in ("kaiming_normal_", "kaiming_uniform_", "normal_", "trunc_normal_", "uniform_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *_, **__: nn.init.zeros_(tensor))


# Name and arguments of a model; kMAC per pixel of its parts; all parameters but the rate gains.
TABLE = {
    # Parameters: bmshj2018_factorized(1) and (8) of CompressAI 1.2.8.
    "balle2016": ("balle2016", {}, {"g_a": 42.176, "g_s": 42.176}, 2_998_147),
    "balle2016 wide": (
        "balle2016",
        {"n": 192, "m": 320},
        {"g_a": 93.696, "g_s": 93.696},
        7_030_531,
    ),
    # X-LIC's; it publishes times, not operations: see test_factorised_prior_by_hand.
    "balle2016 9-5-5": (
        "balle2016",
        {"n": 128, "m": 128, "kernels": "9-5-5", "power": 1},
        {"g_a": 11.224, "g_s": 11.224},
        None,
    ),
    # 44.9 kMAC per pixel to encode, 43.5 to decode: Balle 2018 as counted by C3 (Kim 2024,
    # baselines/kodak.py: 43.542 by fvcore). Parameters: bmshj2018_hyperprior(1) of CompressAI.
    "balle2018": (
        "balle2018",
        {},
        {"g_a": 42.176, "h_a": 1.364, "h_s": 1.364, "g_s": 42.176},
        5_075_843,
    ),
    # mbt2018_mean(1) and (8) of CompressAI 1.2.8.
    "balle2018 means": (
        "balle2018",
        {"means": True},
        {"g_a": 42.176, "h_a": 1.364, "h_s": 5.388, "g_s": 42.176},
        7_028_003,
    ),
    "balle2018 means wide": (
        "balle2018",
        {"n": 192, "m": 320, "means": True},
        {"g_a": 93.696, "h_a": 3.285, "h_s": 14.925, "g_s": 93.696},
        17_561_699,
    ),
    # Yang & Mandt 2023, "Computationally-efficient neural image compression with shallow decoders"
    # (their results' CSV): 187.6 kFLOP for g_a, as many for g_s, 513.0 for what decodes the
    # latents, which is h_s and the slices without residual prediction (8.610 + 247.880 kMAC).
    "minnen2020": (
        "minnen2020",
        {},
        {
            "g_a": 93.696,
            "h_a": 5.900,
            "h_s": 8.610,
            "slices": 247.880,
            "lrp": 130.940,
            "g_s": 93.696,
        },
        None,
    ),
    # Counted in the authors' code (github.com/Googolxx/STF, commit 0adbd29) by torch's
    # FlopCounterMode, at 128x128 and 256x256. Parameters: those of its classes, 75.24 and 99.86 M.
    "zou2022 WACNN": (
        "zou2022-wacnn",
        {},
        {
            "g_a": 161.520,
            "h_a": 8.0865,
            "h_s": 13.590,
            "slices": 118.800,
            "lrp": 61.920,
            "g_s": 161.520,
        },
        75_235_779,
    ),
    "zou2022 STF": (
        "zou2022-stf",
        {},
        {
            "g_a": 88.368,
            "h_a": 11.27925,
            "h_s": 22.5585,
            "slices": 159.192,
            "lrp": 82.620,
            "g_s": 147.120,
        },
        99_855_639,
    ),
}


@pytest.mark.parametrize("row", TABLE)
def test_table(row):
    name, arguments, parts, parameters = TABLE[row]
    model = catalogue.build(name, arguments)
    found = complexity(model)
    assert {part: cost.macs_per_pixel / 1000 for part, cost in found.parts.items()} == parts
    if parameters is not None:
        gains = model.gain.numel() + model.inverse_gain.numel()  # which are ours
        assert sum(p.numel() for p in model.parameters()) - gains == parameters
        prior = sum(p.numel() for p in model.entropy_bottleneck.parameters())
        assert sum(cost.parameters for cost in found.parts.values()) == parameters - prior


def test_published_sums():
    def costs(row):
        parts = TABLE[row][2]
        return Complexity({name: Cost(count, 0) for name, count in parts.items()}), parts

    found, _ = costs("balle2018")
    assert round(found.encode.macs_per_pixel, 1) == 44.9
    assert round(found.decode.macs_per_pixel, 1) == 43.5
    found, parts = costs("minnen2020")
    # published with one addition for each bias and the arithmetic of GDN: 0.1 % more
    assert parts["g_a"] == parts["g_s"] == pytest.approx(93.8, rel=0.0012)
    assert parts["h_s"] + parts["slices"] == pytest.approx(256.5, rel=0.0012)
    assert found.decode.macs_per_pixel == pytest.approx(8.61 + 247.88 + 130.94 + 93.696)
    assert found.encode.macs_per_pixel - found.decode.macs_per_pixel == pytest.approx(5.9)


def test_factorised_prior_by_hand():
    """g_a of 9-5-5, layer after layer: positions per pixel, times weights; and one GDN a layer."""
    n, m = 4, 6
    layers = (81 * 3 * n + n * n) / 16 + (25 * n * n + n * n) / 64 + 25 * n * m / 256
    found = complexity(FactorizedPrior(n, m, "9-5-5"))
    assert found.encode.macs_per_pixel == found.decode.macs_per_pixel == layers
    weights = 81 * 3 * n + 25 * n * n + 25 * n * m + 2 * n * n
    assert found.encode == Cost(layers, weights + 2 * n + m + 2 * n)  # biases, beta
    assert found.decode == Cost(layers, weights + 2 * n + 3 + 2 * n)


class Attention(nn.Module):
    """One head over all positions."""

    def __init__(self, channels):
        super().__init__()
        self.qkv = nn.Linear(channels, 3 * channels)

    def forward(self, x):
        q, k, v = self.qkv(x.flatten(2).transpose(1, 2)).chunk(3, 2)
        y = torch.softmax(q @ k.transpose(1, 2), 2) @ v
        return y.transpose(1, 2).reshape(x.shape)


class Toy(nn.Module):
    """8 channels at 1/16: a grouped convolution, lists of modules, attention, a linear layer."""

    def __init__(self, stray=False):
        super().__init__()
        self.g_a = nn.Sequential(nn.Conv2d(3, 8, 16, stride=16), nn.Conv2d(8, 8, 3, 1, 1, 1, 8))
        self.h_a = Attention(8)
        self.cc_mean_transforms = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(2))
        self.lrp_transforms = nn.ModuleList([nn.ModuleList([Conv2d(8, 8, 1, dtype="s8")])])
        self.g_s = nn.ConvTranspose2d(8, 3, 16, stride=16)
        self.stray = nn.Linear(8, 8) if stray else nn.Identity()

    def forward(self, x, position, noise):
        y = self.h_a(self.g_a(x))
        for layer in (*self.cc_mean_transforms, self.lrp_transforms[0][0]):
            y = layer(y)
        return self.g_s(self.stray(y.transpose(1, 3)).transpose(1, 3))


def test_kinds_of_layers():
    found = complexity(Toy()).parts
    positions = (128 // 16) ** 2
    per_pixel = {name: cost.macs_per_pixel * 256 for name, cost in found.items()}
    assert per_pixel == {
        "g_a": 256 * 3 * 8 + 9 * 8,
        "h_a": 8 * 24 + 2 * positions * 8,  # each position meets all others twice
        "slices": 2 * 64,
        "lrp": 64,
        "g_s": 256 * 3 * 8,
    }
    assert found["slices"].parameters == 2 * 72 and found["h_a"].parameters == 9 * 24


def test_layers_of_no_part_are_named():
    with pytest.raises(ValueError, match=r"Toy multiplies in \['stray'\]"):
        complexity(Toy(stray=True))
