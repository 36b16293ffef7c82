"""Bjontegaard delta rate: the mean difference in rate of two codecs at equal quality.

G. Bjontegaard, VCEG-M33 (2001), with the piecewise interpolations of JCTVC-L1100 (PCHIP) and of
later practice (Akima) instead of one cubic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import Akima1DInterpolator, PchipInterpolator

from lichen.errors import LichenError


@dataclass(frozen=True)
class BDRate:
    """percent: mean rate difference (negative: fewer bits). low, high: the quality overlap."""

    percent: float
    low: float
    high: float


def bd_rate(
    anchor_bpp: ArrayLike,
    anchor_quality: ArrayLike,
    bpp: ArrayLike,
    quality: ArrayLike,
    method: Literal["pchip", "akima"] = "pchip",
) -> BDRate:
    """Compare (bpp, quality) against an anchor over the overlap of their qualities.

    Raises LichenError for fewer than four points or curves that do not overlap.
    """
    curves = [_curve(anchor_bpp, anchor_quality), _curve(bpp, quality)]
    low = max(float(quality[0]) for quality, _ in curves)
    high = min(float(quality[-1]) for quality, _ in curves)
    if low >= high:
        raise LichenError(
            f"the curves must overlap in quality, but one ends at {high:.2f} where the other "
            f"starts at {low:.2f}; measure more points"
        )
    interpolate = {"pchip": PchipInterpolator, "akima": Akima1DInterpolator}[method]
    means = [
        float(interpolate(quality, rate).integrate(low, high)) / (high - low)
        for quality, rate in curves
    ]
    return BDRate(100.0 * (float(np.exp(means[1] - means[0])) - 1.0), low, high)


def _curve(bpp: ArrayLike, quality: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sort by quality; drop points that a better point at no more rate makes useless."""
    rate, level = np.asarray(bpp, np.float64), np.asarray(quality, np.float64)
    if rate.shape != level.shape or rate.ndim != 1 or len(rate) < 4:
        raise LichenError(f"a curve needs four or more (bpp, quality) points, found {rate.shape}")
    order = np.argsort(level)
    level, log_rate = level[order], np.log(rate[order])
    keep = np.append(np.diff(level) > 0, True)
    return level[keep], log_rate[keep]
