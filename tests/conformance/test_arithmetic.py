"""Rounding, saturation and the factor of GDN against exact rationals."""

from __future__ import annotations

import hashlib
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lichen.program.arithmetic import (
    DTYPE_RANGE,
    GDN_INVERSE_SQRT,
    GDN_RECIPROCAL,
    GDN_SQRT,
    gdn_factor,
    gdn_tables,
    round_shift,
    saturate,
)

GDN_ERROR = Fraction(102, 100) / 1024
MODES = [(2, False), (2, True), (1, False), (1, True)]


@given(st.integers(-(2**60), 2**60), st.integers(0, 61))
@example(1, 1)
@example(3, 1)
@example(-1, 1)
@example(-3, 1)
@example(2**60, 61)
@example(-(2**60), 61)
def test_round_shift_is_division_rounded_half_to_even(x: int, shift: int) -> None:
    assert int(round_shift(x, shift)) == round(Fraction(x, 2**shift))


@given(st.integers(-(2**20), 2**20), st.integers(1, 31))
def test_ties_go_to_even(half: int, shift: int) -> None:
    tie = (2 * half + 1) << (shift - 1)
    found = int(round_shift(tie, shift))
    assert found % 2 == 0
    assert abs(Fraction(tie, 2**shift) - found) == Fraction(1, 2)


def test_round_shift_takes_a_shift_for_each_element() -> None:
    x = np.array([[5, 6, 7, -6], [-5, 2, 3, 10]])
    found = round_shift(x, np.array([[0], [1]]))
    assert found.dtype == np.int64
    assert found.tolist() == [[5, 6, 7, -6], [-2, 1, 2, 5]]


def test_the_formula_of_the_contract_fits_32_bits() -> None:
    """(x + (1 << (s-1)) - 1 + ((x >> s) & 1)) >> s: docs/contract.md gives it to implementers."""
    for s in range(1, 32):
        half = 1 << (s - 1)
        top = 2**31 - 1 - half  # what the checker allows an accumulator
        for x in {max(-top, min(top, v)) for v in (-(2**31), -half - 1, -half, 0, half, 2**31)}:
            inner = x + half - 1 + ((x >> s) & 1)
            assert -(2**31) <= inner < 2**31
            assert inner >> s == int(round_shift(x, s))


@pytest.mark.parametrize("dtype", DTYPE_RANGE)
def test_saturate_clips_to_the_type(dtype: str) -> None:
    low, high = DTYPE_RANGE[dtype]
    x = [-(2**40), low - 1, low, 0, high, high + 1, 2**40]
    assert saturate(x, dtype).tolist() == [low, low, low, 0, high, high, high]


def _exact_square(n: int, power: int, inverse: bool) -> Fraction:
    """The square of n**exponent."""
    value = Fraction(n) if power == 2 else Fraction(n) ** 2
    return value if inverse else 1 / value


@pytest.mark.parametrize(("power", "inverse"), MODES)
@given(n=st.one_of(st.integers(1, 2**31 - 1), st.integers(0, 30).map(lambda bit: 1 << bit)))
@example(n=2**31 - 1)
def test_gdn_factor_is_within_its_error(power: int, inverse: bool, n: int) -> None:
    factor, total = gdn_factor(n, power, inverse, 1)
    ratio = Fraction(2 * int(factor), 2 ** int(total)) ** 2 / _exact_square(n, power, inverse)
    assert (1 - GDN_ERROR) ** 2 < ratio < (1 + GDN_ERROR) ** 2
    if (power, inverse) == (1, True) or (n & (n - 1) == 0 and (power == 1 or n.bit_length() % 2)):
        assert ratio == 1


@pytest.mark.parametrize(
    ("table", "first", "square"),
    [
        (GDN_INVERSE_SQRT, 256, lambda m: Fraction(2**38) / m),
        (GDN_SQRT, 256, lambda m: Fraction(2**20) * m),
        (GDN_RECIPROCAL, 512, lambda m: (Fraction(2**24) / m) ** 2),
    ],
)
def test_gdn_error_holds_for_every_n(table, first, square) -> None:
    """Between the edges of each mantissa the function is monotonic: the edges bound all n."""
    for m, entry in enumerate(table.tolist(), first):
        assert 16384 <= entry <= 32768
        assert (entry - Fraction(1, 2)) ** 2 <= square(m) <= (entry + Fraction(1, 2)) ** 2
        for edge in (max(first, m - Fraction(1, 2)), min(1024, m + Fraction(1, 2))):
            assert (1 - GDN_ERROR) ** 2 < entry**2 / square(edge) < (1 + GDN_ERROR) ** 2


@pytest.mark.parametrize(("power", "inverse"), MODES)
def test_gdn_products_fit_48_bits_and_the_total_is_held(power: int, inverse: bool) -> None:
    n = np.unique(np.clip([2**b + d for b in range(32) for d in (-1, 0, 1)], 1, 2**31 - 1))
    factor, _ = gdn_factor(n, power, inverse, 31)
    assert int(factor.max()) * 32768 < (2**47 if power == 1 and inverse else 2**30 + 1)
    tables = gdn_tables(power, inverse, 31)
    assert tables.total[1:].max() <= 48
    assert round_shift(-(2**47) + 1, 48) == 0 == round_shift(2**47 - 1, 48)


def test_gdn_tables_never_change() -> None:
    """Streams depend on them; see CHANGELOG.md before touching this digest."""
    tables = np.concatenate([GDN_INVERSE_SQRT, GDN_SQRT, GDN_RECIPROCAL]).astype("<u2")
    digest = hashlib.sha256(tables.tobytes()).hexdigest()
    assert len(tables) == 2051
    assert digest == "5382fd7926ab21b9bfd72b340d019970ae154f3c041962e77c041a3baaa1a6c3"
