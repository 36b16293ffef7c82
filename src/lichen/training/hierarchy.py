"""Begin four stages of 5x5 stride-2 convolutions as a transform codec: a KLT of 2x2 blocks of KLTs.

The transforms of Balle 2018 and of the models after it halve the picture four times. Each stage of
`g_a` becomes the principal components of 2x2 blocks of what the stage before it gives (12, then 48
of them; from the third stage on as many as there are channels), held by the taps 2 and 3 of its
kernels; `g_s` is the transpose. GDN begins near the identity. What is left of the kernels and of
the channels begins small and random. A model that begins so codes a photograph at once, where a
random one needs thousands of steps to get there.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lichen.models.gdn import GDN
from lichen.models.layers import Conv2d, ConvTranspose2d
from lichen.models.student import ANCHORS, quality_to_lambda
from lichen.training.data import Photographs

TAPS = slice(2, 4)  # of a 5x5 stride-2 convolution with padding 2: the block that it halves
NOISE = 0.02  # standard deviation of what is not set, over that of the usual initialisation
GAMMA = 1e-3  # of a GDN that is nearly the identity: 1 / sqrt(1 + GAMMA * x ** 2)


@torch.no_grad()
def start_as_hierarchy(
    g_a: nn.Sequential,
    g_s: nn.Sequential,
    gain: nn.Parameter,
    inverse_gain: nn.Parameter,
    data: Photographs,
    batches: int = 40,
) -> None:
    """Set the convolutions, GDNs and rate gains of a model from training photographs.

    g_a takes pixels in 0..1, g_s gives pixels in -1..1; gain, inverse_gain: (ANCHORS, M).
    """
    down = [layer for layer in g_a if isinstance(layer, Conv2d)]
    up = [layer for layer in g_s if isinstance(layer, ConvTranspose2d)]
    for layer in (*down, *up):
        layer.weight.mul_(NOISE)
    for layer in (*g_a, *g_s):
        if isinstance(layer, GDN):
            channels = len(layer.beta)
            near = GAMMA * (0.1 + 0.9 * torch.eye(channels))
            layer.set_effective(torch.ones(channels), near)
    x = torch.cat([(data.batch(4).float().cpu() + 1) / 2 for _ in range(batches)])
    mean = x.mean((0, 2, 3))
    x = x - mean[:, None, None]
    kept = 3
    for number, (analysis, synthesis) in enumerate(zip(down, reversed(up), strict=True)):
        basis = _components(x, len(analysis.weight))  # (K, C, 2, 2)
        count = len(basis)
        analysis.weight[:count, :kept] *= 0
        analysis.weight[:count, :kept, TAPS, TAPS] = basis
        analysis.bias.zero_()
        synthesis.weight[:count, :kept] *= 0
        synthesis.weight[:count, :kept, TAPS, TAPS] = basis
        synthesis.bias.zero_()
        if number == 0:
            analysis.bias[:count] = -(basis.sum((2, 3)) @ mean)
            synthesis.weight[:, :, TAPS, TAPS] *= 2  # 0..1 -> -1..1
            synthesis.bias.copy_(2 * mean - 1)
        x = nn.functional.conv2d(x, basis, stride=2)
        kept = count
    positions = torch.linspace(0, 1, ANCHORS)
    # D = step**2 / 12 at high rates: lambda / 3 * dD/dR = -1 with pixels 0..255; three quarters
    # of it because of the dead zone at low ones, as in `warmstart`.
    steps = 0.75 * torch.sqrt(18 / (math.log(2) * quality_to_lambda(positions))) / 255
    gain.copy_(-torch.log(steps)[:, None].expand_as(gain))
    inverse_gain.copy_(torch.log(steps)[:, None].expand_as(inverse_gain))


def _components(x: Tensor, limit: int) -> Tensor:
    """Principal components of 2x2 blocks of x (B, C, H, W): at most `limit`, (K, C, 2, 2)."""
    channels = x.shape[1]
    blocks = nn.functional.pixel_unshuffle(x, 2).transpose(0, 1).reshape(4 * channels, -1).double()
    _, vectors = torch.linalg.eigh(blocks @ blocks.T / blocks.shape[1])
    count = min(limit, 4 * channels)
    basis = vectors.flip(1)[:, :count].T.float()
    return basis.reshape(count, channels, 2, 2)
