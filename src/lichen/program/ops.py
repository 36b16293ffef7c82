"""The operations of a Program: frozen data, no behaviour.

Tensors are integer arrays of shape (C, H, W), batch 1. A tensor has one of three types:

    u8    0 .. 255           what a ReLU leaves (saturating to u8 *is* the ReLU)
    s8    -128 .. 127        pixels minus 128, linear outputs
    s16   -32768 .. 32767    latents, residual sums, GDN; only where an operation declares it

There is one rounding in the project (`arithmetic.round_shift`): divide by a power of two, round
half to even; then saturate to the output type. Every operation that changes values is written
``saturate(round_shift(exact, shift), dtype)`` with ``exact`` an integer that the checker has
proven to fit in 32 bits.

An operation names its input tensors and its one output tensor. Arrays are never modified.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

DType = Literal["u8", "s8", "s16"]
Padding = tuple[int, int, int, int]  # top, left, bottom, right; padded with the integer 0


@dataclass(frozen=True, eq=False)
class Conv:
    """Correlate with int8 weights, exact int32 accumulator, one right shift per output channel.

    out[o] = saturate(round_shift(bias[o] + sum(weight[o] * window), shift[o]), dtype)

    weight: int8 (O, I / groups, kh, kw). bias: int32 (O,). shift: uint8 (O,), 0..31.
    The input may be u8, s8 or s16 (an s16 input costs two 8-bit products per multiplication).
    Output size: (H + top + bottom - kh) // stride + 1.
    """

    output: str
    input: str
    weight: NDArray[np.int8]
    bias: NDArray[np.int32]
    shift: NDArray[np.uint8]
    stride: int
    padding: Padding
    groups: int
    dtype: DType


@dataclass(frozen=True, eq=False)
class TransposedConv:
    """Upsample by `stride`: the transpose of a strided convolution, as in torch.ConvTranspose2d.

    Defined as a stride-1 Conv with stride**2 * O channels followed by PixelShuffle(stride)
    (`rewrite.subpixel`), hence size H -> stride * H exactly: kernel - 2 * padding +
    output_padding == stride is required on both axes.

    weight: int8 (I, O, kh, kw) as in torch. bias: int32 (O,). shift: uint8 (O,), 0..31.
    """

    output: str
    input: str
    weight: NDArray[np.int8]
    bias: NDArray[np.int32]
    shift: NDArray[np.uint8]
    stride: int
    padding: int
    output_padding: int
    dtype: DType


@dataclass(frozen=True)
class PixelShuffle:
    """(C * r * r, H, W) -> (C, r * H, r * W); input channel c * r * r + dy * r + dx."""

    output: str
    input: str
    factor: int


@dataclass(frozen=True)
class PixelUnshuffle:
    """(C, r * H, r * W) -> (C * r * r, H, W); the inverse of PixelShuffle. H, W multiples of r."""

    output: str
    input: str
    factor: int


@dataclass(frozen=True)
class Add:
    """Align by left shifts, add or subtract, round: a residual sum, a quantiser, a dequantiser.

    out = saturate(round_shift((a << shift_a) +- (b << shift_b), shift), dtype)

    shift_a, shift_b: 0..15. shift: 0..31. `subtract` takes b from a.
    """

    output: str
    a: str
    b: str
    shift_a: int
    shift_b: int
    shift: int
    subtract: bool
    dtype: DType


@dataclass(frozen=True)
class Concat:
    """Stack tensors of one type and size along channels."""

    output: str
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class Slice:
    """Take channels start..stop-1."""

    output: str
    input: str
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class Scale:
    """Multiply each channel by an integer: rate gains, changes of exponent.

    out[c] = saturate(round_shift(input[c] * multiplier[c], shift), dtype)

    multiplier: int32 array (C,), each 0..65535, or the name of a `Vector` given at run time
    (its values are held to 0..32767). shift: 0..31.
    """

    output: str
    input: str
    multiplier: NDArray[np.int32] | str
    shift: int
    dtype: DType


@dataclass(frozen=True)
class Clamp:
    """out = min(max(input, low), high); the type stays."""

    output: str
    input: str
    low: int
    high: int


@dataclass(frozen=True, eq=False)
class GDN:
    """Generalised divisive normalisation and its inverse in integers (Balle 2016, eq. 1 and 2).

    With x the input (s8 or s16) and, for each position,

        u[j] = min(65535, round_shift(x[j] ** 2, square_shift))     power == 2
        u[j] = |x[j]|                                               power == 1 (simplified GDN)
        n[i] = beta[i] + sum over j of gamma[i, j] * u[j]           1 <= n < 2**31
        out[i] = saturate(round_shift(x[i] * factor, total), dtype)

    with (factor, total) = `arithmetic.gdn_factor(n[i], ...)`: factor * 2**-total approximates
    2**-shift * n[i]**exponent to a tenth of a percent, where exponent is -1/2 (GDN), +1/2
    (inverse), -1 (simplified GDN) or, exactly, +1 (its inverse).

    beta: int32 (C,), >= 1. gamma: uint8 (C, C), [out, in]. square_shift: 0..31.
    shift: -31..31, and such that total is never negative.
    """

    output: str
    input: str
    beta: NDArray[np.int32]
    gamma: NDArray[np.uint8]
    power: Literal[1, 2]
    inverse: bool
    square_shift: int
    shift: int
    dtype: DType


@dataclass(frozen=True, eq=False)
class TableIndex:
    """Map a scale to the number of its entropy table: out = count(thresholds <= input), as u8.

    thresholds: int32 (T,), ascending, T <= 255.
    """

    output: str
    input: str
    thresholds: NDArray[np.int32]


Op = (
    Conv
    | TransposedConv
    | PixelShuffle
    | PixelUnshuffle
    | Add
    | Concat
    | Slice
    | Scale
    | Clamp
    | GDN
    | TableIndex
)
