"""Make the small models of the conformance vectors: random weights from a seed, lowered.

    python tests/conformance/tiny_models.py [NAME ...]

Needs torch; the model files are committed, so that the vectors need none. A model that is made
anew gives other vectors: run generate_vectors.py afterwards.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lichen.entropy import Tables

if TYPE_CHECKING:
    from torch import Tensor

    from lichen.models.layers import QuantizableModel

LENGTH_KEPT = 19  # symbols of a table
FOLDER = Path(__file__).parent / "vectors" / "models"


def picture(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """Give pixels (H, W, 3): waves with noise, a black and a white corner."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    waves = np.sin(rows / 9 + seed)[..., None] * np.cos(columns / 7)[..., None] * [90, 60, 75]
    pixels = waves + 128 + rng.normal(0, 6, (height, width, 3))
    pixels[: height // 4, : width // 4] = 0
    pixels[height - height // 4 :, width - width // 4 :] = 255
    return pixels.clip(0, 255).astype(np.uint8)


def as_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    import torch

    return torch.from_numpy(pixels.transpose(2, 0, 1).copy()).float()[None] / 128 - 1


def student(fine: bool) -> QuantizableModel:
    """Make a student of the least width, its branches and priors stirred up.

    fine: with blocks at 1/4 and none at 1/16, a row of z for every 32 lines, and three entropy
    models of z over the qualities.
    """
    import torch

    from lichen.models.student import Student

    if fine:
        hyper = {"hyper_width": 12, "hyper_reduction": 32, "hyper_levels": 3}
        model = Student(8, (1, 1, 0), (1, 1, 0), 4, 12, 8, **hyper)
    else:
        model = Student(8, (1, 1), (1, 1), latents=8)
    with torch.no_grad():
        for layer in (model.analysis_branch[-1], model.mean, model.synthesis_branch[-2]):
            layer.weight.normal_(std=0.05)
        model.index.weight.normal_(std=0.5)
        model.gain.copy_(torch.linspace(-1.0, 3.0, len(model.gain))[:, None])
        model.inverse_gain.copy_(-model.gain)
    return model


def hyperprior(means: bool, activation: str) -> QuantizableModel:
    """Make a scale hyperprior, with means or without, with GDN or ReLU."""
    import torch

    from lichen.models.balle2018 import ScaleHyperprior
    from lichen.models.gdn import GDN

    model = ScaleHyperprior(8, 12, means, activation)
    with torch.no_grad():
        model.g_a[6].weight.mul_(30)
        model.g_s[0].weight.mul_(0.1)
        model.h_a[4].weight.mul_(8)
        model.h_s[4].weight.mul_(2)
        model.entropy_bottleneck.quantiles[:, 0, 1].uniform_(-3, 3)
        for layer in model.modules():
            if isinstance(layer, GDN):
                layer.set_effective(torch.rand(8) + 0.5, torch.rand(8, 8) * 0.2)
            elif hasattr(layer, "bias"):
                layer.bias.normal_(std=0.1)
        model.h_s[4].bias.add_(1.0)
        model.gain.copy_(torch.linspace(-1.0, 1.0, len(model.gain))[:, None])
        model.inverse_gain.copy_(-model.gain)
        half = torch.tensor([0.5])
        x_hat = model(as_tensor(picture(64, 64, 0)), half, noise=False).x_hat
        model.g_s[6].weight.mul_(0.3 / x_hat.abs().mean())
    return model


def factorised() -> QuantizableModel:
    """Make a factorised prior of the simplified transform: kernels of 9, GDN of power 1."""
    import torch

    from lichen.models.balle2016 import FactorizedPrior
    from lichen.models.gdn import GDN

    model = FactorizedPrior(6, 8, "9-5-5", 1, "gdn")
    with torch.no_grad():
        model.g_a[-1].weight.mul_(30)
        model.g_s[0].weight.mul_(0.1)
        for layer in model.modules():
            if isinstance(layer, GDN):
                layer.set_effective(torch.rand(6) + 0.5, torch.rand(6, 6) * 0.2)
            elif hasattr(layer, "bias"):
                layer.bias.normal_(std=0.1)
        model.gain.copy_(torch.linspace(-1.0, 1.0, len(model.gain))[:, None])
        model.inverse_gain.copy_(-model.gain)
        x_hat = model(as_tensor(picture(64, 64, 0)), torch.tensor([0.5]), noise=False).x_hat
        model.g_s[-1].weight.mul_(0.4 / x_hat.abs().mean())
    return model


def channel_wise() -> QuantizableModel:
    """Make a channel-wise model of three slices, each of which sees one before it."""
    import torch

    from lichen.models.gdn import GDN
    from lichen.models.minnen2020 import ChannelWise

    model = ChannelWise(4, 12, 3, 1, (4, 4))
    with torch.no_grad():
        model.g_a[6].weight.mul_(30)
        model.h_a[4].weight.mul_(8)
        model.entropy_bottleneck.quantiles[:, 0, 1].uniform_(-3, 3)
        for layer in model.modules():
            if isinstance(layer, GDN):
                channels = len(layer.beta)
                gamma = torch.rand(channels, channels) * 0.2
                layer.set_effective(torch.rand(channels) + 0.5, gamma)
            elif hasattr(layer, "bias"):
                layer.bias.normal_(std=0.1)
        for k in range(model.slices):
            model.cc_mean_transforms[k][-1].weight.normal_(std=0.05)
            model.cc_scale_transforms[k][-1].weight.normal_(std=0.1)
            model.cc_scale_transforms[k][-1].bias.fill_(1.0)
            model.lrp_transforms[k][-1].weight.normal_(std=0.02)
        model.gain.copy_(torch.linspace(-1.0, 1.0, len(model.gain))[:, None])
        model.inverse_gain.copy_(-model.gain)
        x_hat = model(as_tensor(picture(64, 64, 0)), torch.tensor([0.5]), noise=False).x_hat
        model.g_s[6].weight.mul_(0.3 / x_hat.abs().mean())
    return model


MAKERS: dict[str, Callable[[], QuantizableModel]] = {
    "student": lambda: student(fine=False),
    "student-fine": lambda: student(fine=True),
    "relu": lambda: hyperprior(False, "relu"),
    "gdn-means": lambda: hyperprior(True, "gdn"),
    "factorised": factorised,
    "channel-wise": channel_wise,
}


def trimmed(tables: Tables) -> Tables:
    """Keep the middle of long tables and leave the rest to their escapes, to save room."""
    lengths, offsets, rows = [], [], []
    for base, length, offset in zip(tables.bases, tables.lengths, tables.offsets, strict=True):
        row = tables.frequencies[base : base + length].astype(np.int64)
        cut = max(0, (length - 1 - LENGTH_KEPT) // 2)
        kept = row[cut : length - 1 - cut]
        rows.append(np.append(kept, row.sum() - kept.sum()))
        lengths.append(len(rows[-1]))
        offsets.append(offset + cut)
    frequencies = np.concatenate(rows).astype(np.uint16)
    return Tables(tables.precision, np.array(lengths), np.array(offsets), frequencies)


def main(names: list[str]) -> None:
    import torch

    from lichen.lower import lower
    from lichen.training.quantize import calibrate

    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in names or MAKERS:
        torch.manual_seed(3)
        model = MAKERS[name]()
        pictures = [as_tensor(picture(64, 64, seed)) for seed in (0, 1)]
        calibrate(model, pictures, (0.0, 0.5, 1.0))
        lowered = lower(model, f"tiny-{name}", {})
        data = replace(lowered, tables=trimmed(lowered.tables)).to_bytes()
        (FOLDER / f"{name}.safetensors").write_bytes(data)
        print(f"{name}: {len(data)} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
