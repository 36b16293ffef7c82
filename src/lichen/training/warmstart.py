"""Begin as a transform codec: KLT of 16x16 colour blocks, gains from the rate-distortion slope.

The linear paths of a `Student` become the leading principal components of training blocks and
their transpose. Basis vectors are scaled to equal peaks, not to unit length: an int8 weight then
has the same relative error in every channel, and what that error makes of a picture is smallest.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lichen.models.priors import SCALE_MIN, SCALE_STEP
from lichen.models.student import ANCHORS, Student, quality_to_lambda
from lichen.training.data import Photographs


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
