"""Probability models of the latents: factorised (Balle 2018, appendix 6.1) and Gaussian."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Scales of the 64 Gaussian tables, in quantisation steps: geometric, as in CompressAI.
SCALE_MIN, SCALE_MAX, SCALE_LEVELS = 0.11, 256.0, 64
SCALE_STEP = math.log(SCALE_MAX / SCALE_MIN) / (SCALE_LEVELS - 1)
LIKELIHOOD_MIN = 1e-9
QUANTILE_TAIL = 1e-9  # probability outside the first and the last quantile


def scale_table() -> list[float]:
    """Give the scales of the Gaussian tables, in quantisation steps."""
    return [SCALE_MIN * math.exp(SCALE_STEP * level) for level in range(SCALE_LEVELS)]


def scale_of_index(index: Tensor) -> Tensor:
    """Give the scale of a (fractional) table index."""
    return SCALE_MIN * torch.exp(SCALE_STEP * index)


def gaussian_likelihood(residual: Tensor, scale: Tensor) -> Tensor:
    """Probability of the unit bin around `residual` under a zero-mean Gaussian."""
    magnitude = residual.abs()
    inverse = math.sqrt(0.5) / scale
    upper = torch.erfc((magnitude - 0.5) * inverse)
    lower = torch.erfc((magnitude + 0.5) * inverse)
    return (0.5 * (upper - lower)).clamp_min(LIKELIHOOD_MIN)


class EntropyBottleneck(nn.Module):
    """Factorised prior: a monotone network per channel gives the cumulative distribution.

    Balle 2018, "Variational image compression with a scale hyperprior", appendix 6.1. Parameter
    names are those of CompressAI's class, so that its state dicts load.

    With `levels` above 1 there is a distribution per channel and level, and `likelihood` is told
    the level of each picture: those of level l are the channels l * C .. of the parameters.
    """

    def __init__(
        self,
        channels: int,
        filters: tuple[int, ...] = (3, 3, 3, 3),
        init_scale: float = 10.0,
        levels: int = 1,
    ) -> None:
        super().__init__()
        self.levels, self.filters = levels, filters
        channels = levels * channels
        sizes = (1, *filters, 1)
        for i in range(len(filters) + 1):
            matrix = torch.empty(channels, sizes[i + 1], sizes[i])
            self.register_parameter(f"_matrix{i}", nn.Parameter(matrix))
            bias = torch.empty(channels, sizes[i + 1], 1).uniform_(-0.5, 0.5)
            self.register_parameter(f"_bias{i}", nn.Parameter(bias))
            if i < len(filters):
                factor = torch.zeros(channels, sizes[i + 1], 1)
                self.register_parameter(f"_factor{i}", nn.Parameter(factor))
        quantiles = torch.tensor([-init_scale, 0.0, init_scale]).repeat(channels, 1, 1)
        self.quantiles = nn.Parameter(quantiles)
        self.reset(torch.full((channels,), init_scale))

    @property
    def channels(self) -> int:
        """Channels of a latent."""
        return len(self.quantiles) // self.levels

    @torch.no_grad()
    def reset(self, scale: Tensor) -> None:
        """Begin anew with about logistic distributions around 0 of scales (levels * channels,)."""
        layers = len(self.filters) + 1
        for i, outputs in enumerate((*self.filters, 1)):
            slope = scale.to(torch.float64) ** (-1 / layers) / outputs
            matrix, init = getattr(self, f"_matrix{i}"), torch.log(torch.expm1(slope))
            matrix.copy_(init[:, None, None].expand_as(matrix))
            if i < len(self.filters):
                getattr(self, f"_factor{i}").zero_()

    def logits(self, x: Tensor, constant: bool = False, chosen: Tensor | None = None) -> Tensor:
        """Give the logits of the cumulative distribution; x and result are (channels, 1, n).

        constant: no gradient reaches the parameters. chosen: int64 (channels,), the distribution of
        each channel of x; None for all of them in their order.
        """

        def value(name: str) -> Tensor:
            parameter: Tensor = getattr(self, name)
            parameter = parameter if chosen is None else parameter[chosen]
            return parameter.detach() if constant else parameter

        for i in range(len(self.filters) + 1):
            x = torch.matmul(F.softplus(value(f"_matrix{i}")), x)
            x = x + value(f"_bias{i}")
            if i < len(self.filters):
                x = x + torch.tanh(value(f"_factor{i}")) * torch.tanh(x)
        return x

    def auxiliary_loss(self) -> Tensor:
        """Sum of |logits(quantiles) - (-t, 0, t)|, t = log(2 / QUANTILE_TAIL - 1): a scalar.

        Its gradient reaches the quantiles only. The second one is the median, about which z is
        rounded, and must follow the distribution (CompressAI's `EntropyBottleneck.loss`).
        """
        top = math.log(2 / QUANTILE_TAIL - 1)
        wanted = self.quantiles.new_tensor([-top, 0.0, top])
        return (self.logits(self.quantiles, constant=True) - wanted).abs().sum()

    def likelihood(
        self, x: Tensor, half: Tensor | None = None, level: Tensor | None = None
    ) -> Tensor:
        """Probability of the bin around x (B, C, H, W), one wide or twice `half` (B, C, 1, 1).

        level: int64 (B,), the level of each picture; needed where there are several.
        """
        shape, chosen = (self.channels, x.shape[0], *x.shape[2:]), None
        bins = 0.5 if half is None else self._by_channel(half.expand_as(x))
        flat = self._by_channel(x)
        if level is not None:
            # each picture's channels become channels of their own
            flat = flat.reshape(flat.shape[0] * x.shape[0], 1, -1)
            channel = torch.arange(self.channels, device=x.device)
            chosen = (level * self.channels + channel[:, None]).flatten()
            bins = bins if half is None else bins.reshape(flat.shape)
        ends = torch.cat((flat - bins, flat + bins), dim=-1)
        with torch.autocast(x.device.type, enabled=False):  # differences of logits need all bits
            lower, upper = self.logits(ends, chosen=chosen).chunk(2, dim=-1)
        sign = -torch.sign(lower + upper).detach()  # keep away from saturated sigmoids
        p = (torch.sigmoid(sign * upper) - torch.sigmoid(sign * lower)).abs()
        p = p.clamp_min(LIKELIHOOD_MIN)
        return p.reshape(shape).transpose(0, 1)

    def _by_channel(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (C, 1, B * H * W), as `logits` takes it."""
        return x.transpose(0, 1).reshape(self.channels, 1, -1).float()

    def medians(self) -> Tensor:
        """Medians (1, C, 1, 1), the offsets of CompressAI's rounding."""
        return self.quantiles[:, 0, 1].detach().reshape(1, -1, 1, 1)
