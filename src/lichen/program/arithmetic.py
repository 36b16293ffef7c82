"""The arithmetic of the contract: types, the one rounding, saturation, and the factor of GDN.

Everything is exact in int64; nothing here or in `reference` uses a float.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lichen.program.ops import DType

Range = tuple[int, int]
DTYPE_RANGE: dict[DType, Range] = {"u8": (0, 255), "s8": (-128, 127), "s16": (-32768, 32767)}
NUMPY_DTYPE: dict[DType, np.dtype[Any]]
NUMPY_DTYPE = {"u8": np.dtype(np.uint8), "s8": np.dtype(np.int8), "s16": np.dtype(np.int16)}


def round_shift(x: ArrayLike, shift: ArrayLike) -> NDArray[np.int64]:
    """Divide by 2**shift and round half to even, exactly.

    x: integers, |x| < 2**61. shift: integers 0..61, broadcast against x.
    """
    x = np.asarray(x, np.int64)
    shift = np.asarray(shift, np.int64)
    # Adding one less than a half rounds half down; adding the quotient's lowest bit makes it even.
    almost_half = ((np.int64(1) << shift) >> 1) - 1 + ((x >> shift) & 1)
    return np.asarray((x + np.where(shift > 0, almost_half, 0)) >> shift, np.int64)


def saturate(x: ArrayLike, dtype: DType) -> NDArray[Any]:
    """Clip to the range of `dtype` and store in it. Saturating to u8 is the ReLU."""
    clipped: NDArray[Any] = np.clip(np.asarray(x), *DTYPE_RANGE[dtype])
    return clipped.astype(NUMPY_DTYPE[dtype])


# The tables of GDN by mantissa, from 256 (512 for the reciprocal) to 1024: 2**19 / sqrt(mantissa),
# 2**10 * sqrt(mantissa) and 2**24 / mantissa, to nearest (isqrt is the floor, hence of the double).
GDN_INVERSE_SQRT = np.array([(isqrt(2**40 // m) + 1) // 2 for m in range(256, 1025)], np.uint16)
GDN_SQRT = np.array([(isqrt(2**22 * m) + 1) // 2 for m in range(256, 1025)], np.uint16)
GDN_RECIPROCAL = np.array([(2**25 // m + 1) // 2 for m in range(512, 1025)], np.uint16)
GDN_TOTAL_MAX = 48


@dataclass(frozen=True, eq=False)
class GDNTables:
    """What `gdn_factor` looks up by the bit length of n (1..31; entry 0 is unused)."""

    normalise: NDArray[np.int64]  # s, the right shift that makes the mantissa
    total: NDArray[np.int64]  # the right shift of the product
    factors: NDArray[np.uint16]  # by mantissa, from `first` on
    first: int


def gdn_tables(power: Literal[1, 2], inverse: bool, shift: int) -> GDNTables:
    """Return the tables of a GDN; power 1 inverse uses only `total`, and has no factors."""
    bits = np.arange(32)
    s = (bits - 9) & ~1 if power == 2 else bits - 10
    match power, inverse:
        case 2, False:
            factors, total = GDN_INVERSE_SQRT, shift + 19 + (s >> 1)
        case 2, True:
            factors, total = GDN_SQRT, shift + 10 - (s >> 1)
        case _, False:
            factors, total = GDN_RECIPROCAL, shift + 24 + s
        case _:
            factors, total = GDN_RECIPROCAL[:0], np.full(32, shift)
    return GDNTables(s, np.minimum(total, GDN_TOTAL_MAX), factors, 256 if power == 2 else 512)


def gdn_factor(
    n: ArrayLike, power: Literal[1, 2], inverse: bool, shift: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (factor, total): factor * 2**-total approximates n**exponent * 2**-shift.

    n: integers 1 .. 2**31 - 1. With bits = the bit length of n (1..31):

    power 2:         s = (bits - 9) rounded down to even (-8..22), so that sqrt(2**s) is exact
                     mantissa = round_shift(n, s), or n << -s when s < 0        (256..1024)
      forward:       factor = GDN_INVERSE_SQRT[mantissa - 256]; total = shift + 19 + s/2
      inverse:       factor = GDN_SQRT[mantissa - 256];         total = shift + 10 - s/2
    power 1 forward: s = bits - 10 (-9..21); mantissa likewise                  (512..1024)
                     factor = GDN_RECIPROCAL[mantissa - 512];   total = shift + 24 + s
    power 1 inverse: factor = n, exact;                         total = shift

    total is held to at most 48. The checker refuses a GDN whose total could be negative.

    Error: |factor * 2**-total / exact - 1| < 1.02 * 2**-10 (a tenth of a percent), the sum of at
    most half a unit in a mantissa of at least 256 (512 without the root) and half a unit in an
    entry of at least 16384; no error at all where n is a power of 4 (of 2 without the root).

    Width: with a table |x * factor| <= 2**30, so that product and rounding fit int32 for total
    <= 31, and total >= 32 gives 0. With n, |x * n| < 2**46. Both stay below 2**47: holding total
    to 48 changes no result, and 48 signed bits suffice.
    """
    n = np.asarray(n, np.int64)
    tables = gdn_tables(power, inverse, shift)
    bits = np.searchsorted(np.int64(1) << np.arange(31), n, side="right")
    s, total = tables.normalise[bits], tables.total[bits]
    if tables.factors.size == 0:
        return n, total
    mantissa = round_shift(n << np.maximum(-s, 0), np.maximum(s, 0))
    return tables.factors[mantissa - tables.first].astype(np.int64), total
