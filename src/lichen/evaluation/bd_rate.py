"""Bjontegaard delta rate: the mean difference in rate of two codecs at equal quality.

G. Bjontegaard, VCEG-M33 (2001), with the piecewise interpolations of JCTVC-L1100 (PCHIP) and of
later practice (Akima) instead of one cubic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lichen.errors import LichenError

# Below this share of the shorter curve, a BD-rate says little about either codec.
SMALL_OVERLAP = 0.5


@dataclass(frozen=True)
class BDRate:
    """A mean rate difference, and the qualities that it is a mean over.

    percent: negative is fewer bits than the anchor. low, high: the overlap of the two curves, in
    units of quality. share: the overlap as a part of the shorter curve's range, 0..1.
    """

    percent: float
    low: float
    high: float
    share: float


def bd_rate(
    anchor_bpp: ArrayLike,
    anchor_quality: ArrayLike,
    bpp: ArrayLike,
    quality: ArrayLike,
    method: Literal["pchip", "akima"] = "pchip",
) -> BDRate:
    """Compare (bpp, quality) against an anchor over the overlap of their qualities.

    Points that are not finite (lossless ones) are left out. Raises LichenError for fewer than four
    points, for curves that do not overlap, and where SciPy is missing.
    """
    try:
        from scipy.interpolate import Akima1DInterpolator, PchipInterpolator
    except ImportError as error:
        raise LichenError("BD-rates need SciPy: pip install scipy") from error
    curves = [_curve(anchor_bpp, anchor_quality), _curve(bpp, quality)]
    low = max(float(level[0]) for level, _ in curves)
    high = min(float(level[-1]) for level, _ in curves)
    if low >= high:
        raise LichenError(
            f"the curves must overlap in quality, but one ends at {high:.2f} where the other "
            f"starts at {low:.2f}; measure more points"
        )
    interpolate = {"pchip": PchipInterpolator, "akima": Akima1DInterpolator}[method]
    means = [
        float(interpolate(level, log_rate).integrate(low, high)) / (high - low)
        for level, log_rate in curves
    ]
    shorter = min(float(level[-1] - level[0]) for level, _ in curves)
    percent = 100.0 * (float(np.exp(means[1] - means[0])) - 1.0)
    return BDRate(percent, low, high, (high - low) / shorter)


def _curve(bpp: ArrayLike, quality: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sort by quality, of points of equal quality keep the cheapest; rates become logarithms."""
    rate, level = np.asarray(bpp, np.float64), np.asarray(quality, np.float64)
    if rate.shape != level.shape or rate.ndim != 1:
        raise LichenError(
            f"a curve needs a quality for each rate, found shapes {rate.shape} and {level.shape}"
        )
    finite = np.isfinite(level) & (rate > 0)
    rate, level = rate[finite], level[finite]
    order = np.lexsort((-rate, level))
    level, log_rate = level[order], np.log(rate[order])
    keep = np.append(np.diff(level) > 0, True)[: len(level)]
    if keep.sum() < 4:
        raise LichenError(
            f"a curve needs four or more points of different quality, found {keep.sum()}"
        )
    return level[keep], log_rate[keep]
