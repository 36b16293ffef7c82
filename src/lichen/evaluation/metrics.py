"""Distortion of one decoded picture against its original, 8-bit RGB on both sides.

Each figure belongs to one picture. A set's figure is the mean over its pictures, as in CompressAI's
`eval_model`; the PSNR of the mean error would be another (docs/evaluation.md).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from lichen.errors import LichenError

Pixels = NDArray[np.uint8]  # (H, W, 3), RGB
# MS-SSIM halves a picture four times and then needs a window of 11 pixels: side > (11 - 1) * 2**4.
MS_SSIM_SIDE = 161
# Rows Y, Cb, Cr of RGB. Rec. ITU-R BT.709-6, items 3.2 and 3.3, full range: the matrix of
# CompressAI's `rgb2ycbcr`, which fed the published VTM, HM and BPG results.
_LUMA = np.array([0.2126, 0.7152, 0.0722])
BT709 = np.stack(
    [
        _LUMA,
        (np.array([0.0, 0.0, 1.0]) - _LUMA) / 1.8556,
        (np.array([1.0, 0.0, 0.0]) - _LUMA) / 1.5748,
    ]
)


def psnr(a: Pixels, b: Pixels) -> float:
    """Peak signal-to-noise ratio over R, G and B in dB; infinite where a and b are equal."""
    return _decibel(float(np.mean(np.square(a.astype(np.float64) - b))))


def psnr_yuv(a: Pixels, b: Pixels) -> float:
    """Weigh the PSNR of Y, U and V as (6 Y + U + V) / 8, in dB; infinite where a and b are equal.

    The weights of J.-R. Ohm et al., "Comparison of the coding efficiency of video coding
    standards", IEEE TCSVT 22(12), 2012, there on 4:2:0 video. Here the planes are BT.709 Y, Cb and
    Cr at full resolution and full range, from 8-bit RGB, without rounding.
    """
    difference = (a.astype(np.float64) - b) @ BT709.T
    y, u, v = (_decibel(float(error)) for error in np.mean(np.square(difference), axis=(0, 1)))
    return (6 * y + u + v) / 8


def ms_ssim(a: Pixels, b: Pixels) -> float | None:
    """Give the multi-scale structural similarity over R, G and B, 0..1; None for small pictures.

    Z. Wang et al., "Multiscale structural similarity for image quality assessment", 2003, by the
    package pytorch-msssim, as CompressAI has it. Needs MS_SSIM_SIDE pixels on each side.
    """
    if min(a.shape[:2]) < MS_SSIM_SIDE:
        return None
    import torch
    from pytorch_msssim import ms_ssim as measure

    planes = (torch.from_numpy(p.transpose(2, 0, 1).copy())[None].float() for p in (a, b))
    return float(measure(*planes, data_range=255))


def ms_ssim_db(value: float) -> float:
    """Stretch an MS-SSIM to dB, -10 log10(1 - value); infinite for 1."""
    return math.inf if value >= 1 else -10 * math.log10(1 - value)


def check_ms_ssim() -> None:
    """Raise LichenError where the package for MS-SSIM is missing."""
    try:
        import pytorch_msssim  # noqa: F401
    except ImportError as error:
        raise LichenError(
            "MS-SSIM needs the package pytorch-msssim: pip install pytorch-msssim, or give "
            "--no-ms-ssim"
        ) from error


def _decibel(mean_square_error: float) -> float:
    return math.inf if mean_square_error == 0 else 10 * math.log10(255**2 / mean_square_error)
