"""Rate-distortion loss: lambda * distortion + bits per pixel."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lichen.models.student import LAMBDA_MAX, LAMBDA_MIN, Coded

# MS-SSIM distortion is 1 - MS-SSIM; this factor puts it at the slope of MSE in mid range
# (CompressAI's pairs 0.0130 and 8.73 per 255**2 units give 8.73 / 0.0130).
MS_SSIM_FACTOR = 8.73 / 0.0130


def bits_per_pixel(likelihood: Tensor, pixels: int) -> Tensor:
    """Ideal code length of each picture of a batch, in bits per pixel: (B,)."""
    return -torch.log2(likelihood).flatten(1).sum(1) / pixels


def mse_255(x_hat: Tensor, x: Tensor) -> Tensor:
    """Mean squared error of each picture, on the 0..255 scale: (B,)."""
    return ((x_hat.float() - x) * 128.0).square().flatten(1).mean(1)


def balance(weight: Tensor) -> Tensor:
    """Give the factors (B,) of the losses at lambdas (B,) where one batch has many rates.

    A picture's loss rises elevenfold with its rate over the range, which lambda spans 133 times;
    without balance the high rates would decide everything, while BD-rate weighs all rates alike.
    Each term is divided by the power of lambda that follows the typical loss.
    """
    return (weight / math.sqrt(LAMBDA_MIN * LAMBDA_MAX)) ** -0.5


def rates(count: int) -> Tensor:
    """Spread `count` pictures over the rates: quality positions 0..1."""
    return torch.linspace(0, 1, count) if count > 1 else torch.full((1,), 0.5)


def rate_distortion(
    coded: Coded, x: Tensor, weight: Tensor, metric: str, factor: Tensor | float = 1.0
) -> dict[str, Tensor]:
    """Give loss, bpp and mse (each a scalar mean) of a batch coded for the lambdas `weight` (B,).

    loss: the mean of factor * (lambda * distortion + bpp); factor: (B,), as `balance` gives it.
    """
    pixels = x.shape[2] * x.shape[3]
    bpp = bits_per_pixel(coded.y_likelihood, pixels) + bits_per_pixel(coded.z_likelihood, pixels)
    mse = mse_255(coded.x_hat, x)
    if metric == "mse":
        distortion = mse
    elif metric == "ms-ssim":
        from pytorch_msssim import ms_ssim

        similarity = ms_ssim(
            (coded.x_hat.float() + 1) * 128, (x + 1) * 128, data_range=255, size_average=False
        )
        distortion = MS_SSIM_FACTOR * (1 - similarity)
    else:
        raise ValueError(f"metric must be 'mse' or 'ms-ssim', not {metric!r}")
    loss = (factor * (weight * distortion + bpp)).mean()
    return {"loss": loss, "bpp": bpp.mean(), "mse": mse.mean()}
