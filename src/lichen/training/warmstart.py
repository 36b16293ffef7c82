"""The weights that training starts from: `start`.

A `Student` begins as a transform codec: KLT of 16x16 colour blocks, gains from the rate-distortion
slope (`hierarchy` does the like for other models). Its linear paths become the leading principal
components of training blocks and their transpose. Basis vectors are scaled to equal peaks, not to
unit length: an int8 weight then has the same relative error in every channel, and what that error
makes of a picture is smallest.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from lichen.errors import LichenError
from lichen.models import catalogue
from lichen.models.balle2018 import ScaleHyperprior
from lichen.models.checkpoint import is_foreign, names_of, read_state
from lichen.models.layers import QuantizableModel
from lichen.models.minnen2020 import ChannelWise
from lichen.models.priors import SCALE_MIN, SCALE_STEP
from lichen.models.student import (
    ANCHORS,
    LAMBDA_MAX,
    LAMBDA_MIN,
    Student,
    interpolate,
    quality_to_lambda,
)
from lichen.training.data import Photographs
from lichen.training.hierarchy import start_as_hierarchy
from lichen.training.recipe import Recipe
from lichen.training.run import load_tensors

TRANSFORMS = ("g_a.", "g_s.", "gain", "inverse_gain")  # names of their tensors begin so
BLOCK_BATCHES = 400  # of 8 crops, for the covariance of blocks


@torch.no_grad()
def start(
    model: QuantizableModel,
    data: Photographs,
    recipe: Recipe,
    weights: Path | None = None,
    transforms: Path | None = None,
    batches: int = BLOCK_BATCHES,
) -> None:
    """Set what a run starts from: `weights`, or a transform codec, or what initialisation gave.

    transforms: weights of another model, from which g_a, g_s and the rate gains are then taken.

    Of a run for one rate the gains of all qualities become those of this rate, and stay equal (the
    trainer ties them), so that the model gives it at any quality.
    """
    data.drawn = 0  # what was drawn before shall make no difference
    if weights is not None:
        load_weights(model, weights)
    elif recipe.start == "transform" and isinstance(model, Student):
        start_as_klt(model, block_covariance(data, batches).to(data.device))
    elif recipe.start == "transform" and _halves_four_times(model):
        stages = model.g_a, model.g_s
        start_as_hierarchy(*stages, model.gain, model.inverse_gain, data, -(-batches // 10))
    elif recipe.one_lambda is None:
        start_gains(model)
    if transforms is not None:
        take_transforms(model, transforms)
    if recipe.one_lambda is not None:
        place = math.log(recipe.one_lambda / LAMBDA_MIN) / math.log(LAMBDA_MAX / LAMBDA_MIN)
        position = torch.tensor([min(max(place, 0.0), 1.0)], device=data.device)
        for gains in (model.gain, model.inverse_gain):
            gains.copy_(interpolate(gains, position).log().flatten(1).expand_as(gains))


def load_weights(model: QuantizableModel, path: Path) -> None:
    """Load the weights of a run, or a state dict of others. Raises LichenError, OSError."""
    if path.exists() and not path.is_dir():
        state = read_state(path)
        if state.keys() != model.state_dict().keys() and is_foreign(names_of(state)):
            catalogue.load_checkpoint(model, state)
            return
    load_tensors(model, path)


@torch.no_grad()
def take_transforms(model: QuantizableModel, path: Path) -> None:
    """Load g_a, g_s and the rate gains of another model. Raises LichenError where they differ."""
    own = model.state_dict()
    wanted = {name for name in own if name.startswith(TRANSFORMS)}
    state = {k: v for k, v in read_state(path).items() if k.startswith(TRANSFORMS)}
    differ = sorted(wanted ^ state.keys()) + sorted(
        f"{k} {tuple(state[k].shape)} for {tuple(own[k].shape)}"
        for k in wanted & state.keys()
        if own[k].shape != state[k].shape
    )
    if differ or not wanted:
        raise LichenError(
            f"the transforms in {path} do not fit {type(model).__name__}({model.arguments}): "
            f"{differ[:5]} differ; give weights of a model with the same n, m and activation"
        )
    model.load_state_dict(own | state)


def _halves_four_times(model: QuantizableModel) -> bool:
    """Tell whether `start_as_hierarchy` fits; ReLU would cut the components' negative halves."""
    return (
        isinstance(model, ScaleHyperprior | ChannelWise) and model.arguments["activation"] == "gdn"
    )


@torch.no_grad()
def start_gains(model: QuantizableModel) -> None:
    """Let steps follow the rate: gain sqrt(lambda), and 1 in the middle of the range.

    At high rates the step that suits lambda is proportional to 1 / sqrt(lambda).
    """
    rates = quality_to_lambda(torch.linspace(0, 1, ANCHORS))
    logs = 0.5 * torch.log(rates / quality_to_lambda(torch.tensor(0.5)))[:, None]
    model.gain.copy_(logs.expand_as(model.gain))
    model.inverse_gain.copy_(-logs.expand_as(model.inverse_gain))


def block_covariance(data: Photographs, batches: int = 400) -> Tensor:
    """Second moments (768, 768) of 16x16 RGB blocks in PixelUnshuffle order."""
    total = torch.zeros(768, 768, dtype=torch.float64)
    count = 0
    for _ in range(batches):
        blocks = torch.nn.functional.pixel_unshuffle(data.batch(8), 16)
        flat = blocks.permute(0, 2, 3, 1).reshape(-1, 768).double().cpu()
        total += flat.T @ flat
        count += len(flat)
    return total / count


@torch.no_grad()
def start_as_klt(model: Student, covariance: Tensor) -> None:
    """Set linear paths, gains and input scales of `model` from block statistics."""
    values, vectors = torch.linalg.eigh(covariance)
    m = model.latent_channels
    variance = values.flip(0)[:m].clamp_min(1e-9)
    basis = vectors.flip(1)[:, :m].T  # (M, 768), orthonormal rows
    peak = basis.abs().amax(dim=1)
    deviation = variance.sqrt()
    analysis, synthesis = model.analysis_linear[1], model.synthesis_linear[0]
    # Peaks of 1 for the weights, but latents of at most some hundreds: s16 then has bits to spare.
    size = torch.clamp(25 * peak / deviation, max=1.0)
    rise = size / peak  # y = rise * <basis, x>, and y' = peak * <basis, x>
    analysis.weight.copy_((basis * rise[:, None]).float().reshape(m, 768, 1, 1))
    synthesis.weight.copy_((basis / peak[:, None]).float().T.reshape(768, m, 1, 1))
    positions = torch.linspace(0, 1, ANCHORS)
    # High-rate theory for D = step**2 / 12: lambda / 3 * dD/dR = -1 with pixels 0..255.
    steps = torch.sqrt(18 / (math.log(2) * quality_to_lambda(positions).double())) / 128
    # At low rates the dead zone of a Laplacian source asks for smaller steps than that.
    steps = steps * 0.75
    model.gain.copy_(-torch.log(steps[:, None] * rise[None, :]).float())
    model.inverse_gain.copy_(torch.log(steps[:, None] * peak[None, :]).float())
    # h_a reads s8 quarters: fine for channels that are often zero, coarser for the large ones
    top = deviation / steps[-1]
    model.hyper_input.multiplier.copy_((8.0 / (2 * top)).clamp(0.02, 1.0).float())
    # the synthesis branch reads latents over their deviation: s8 then holds +-8 deviations
    model.synthesis_input.multiplier.copy_((1 / (deviation * peak)).float())
    # tables of the prior start at what the channels' spreads ask for in the middle of the range
    middle = deviation / steps[ANCHORS // 2]
    index = torch.log((0.4 * middle).clamp(SCALE_MIN, 200) / SCALE_MIN) / SCALE_STEP
    model.index.bias.copy_(index.float())
