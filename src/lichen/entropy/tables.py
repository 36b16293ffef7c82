"""Tables: the integer frequencies that the entropy coder works with. They travel with the weights.

Table t of a set codes the symbols offsets[t] .. offsets[t] + lengths[t] - 2; its last entry is the
escape, which stands for every other symbol. All tables of a set have the total 2**precision.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from lichen.errors import ContractError, ModelError

MIN_PRECISION, MAX_PRECISION = 12, 16
MAX_TABLES = 65535
MIN_LENGTH, MAX_LENGTH = 2, 4096  # entries, the escape included
MIN_SYMBOL, MAX_SYMBOL = -32768, 32767
ESCAPE_GROUP_BITS = 4  # three bits of the value, low bits first, below one bit "more follow"

Int16Array = npt.NDArray[np.int16]
IndexArray = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


@dataclass(frozen=True, eq=False)
class Tables:
    """A validated set of frequency tables; raises ModelError for a set that breaks a rule.

    precision: log2 of every table's total, 12..16.
    lengths: int32 (T,), entries per table with the escape, 2..4096.
    offsets: int32 (T,), first symbol per table; all coded symbols are within int16.
    frequencies: uint16 (sum of lengths,), table after table, each 1 or more.
    """

    precision: int
    lengths: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int32]
    frequencies: npt.NDArray[np.uint16]

    def __post_init__(self) -> None:
        precision = int(self.precision)
        lengths = _owned(self.lengths, np.int32, "lengths")
        offsets = _owned(self.offsets, np.int32, "offsets")
        frequencies = _owned(self.frequencies, np.uint16, "frequencies")
        _validate(precision, lengths, offsets, frequencies)
        for name, value in (
            ("precision", precision),
            ("lengths", lengths),
            ("offsets", offsets),
            ("frequencies", frequencies),
        ):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def bases(self) -> npt.NDArray[np.int64]:
        """Position of each table's first entry in the flat arrays, int64 (T,)."""
        return np.cumsum(self.lengths, dtype=np.int64) - self.lengths

    @cached_property
    def starts(self) -> npt.NDArray[np.uint16]:
        """Sum of the frequencies before each entry of its own table, uint16, flat."""
        before = np.cumsum(self.frequencies, dtype=np.int64) - self.frequencies
        return (before - np.repeat(before[self.bases], self.lengths)).astype(np.uint16)

    @classmethod
    def gaussian(
        cls, scales: npt.ArrayLike, precision: int = 16, tail_mass: float = 2.0**-12
    ) -> Tables:
        """Integrate zero-mean Gaussians over unit bins, one table per standard deviation.

        A table ends where less than tail_mass lies beyond it (both sides together), but codes at
        least -1, 0 and 1. The default is near the shortest expected code for 16 bits: listed
        symbols cost 2**-16 of the range each, escaped ones 16 to 24 bits more.
        """
        pmfs = []
        for scale in np.asarray(scales, np.float64).ravel():
            if not 0 < scale < math.inf:
                raise ModelError(f"scales must be positive and finite, not {scale}")
            reach = 1
            while reach < (MAX_LENGTH - 2) // 2 and 2 * _upper(reach + 0.5, scale) >= tail_mass:
                reach += 1
            beyond = np.array([_upper(k + 0.5, scale) for k in range(reach + 1)])
            side = beyond[:-1] - beyond[1:]
            pmfs.append(np.concatenate([side[::-1], [1 - 2 * beyond[0]], side]))
        return cls.from_pmf(pmfs, [-(len(pmf) // 2) for pmf in pmfs], precision)

    @classmethod
    def from_pmf(
        cls, pmfs: Sequence[npt.ArrayLike], offsets: Sequence[int], precision: int = 16
    ) -> Tables:
        """Quantise probabilities: pmfs[t][i] is that of symbol offsets[t] + i in table t.

        What a pmf leaves below 1 goes to the escape; a pmf that sums to more is scaled down.
        """
        _check_precision(precision)  # so that a longest table, 4096 entries, has room
        if len(pmfs) != len(offsets):
            raise ModelError(f"expected one offset per table, found {len(offsets)}/{len(pmfs)}")
        rows = []
        for number, values in enumerate(pmfs):
            pmf = np.asarray(values, np.float64).ravel()
            if not (np.isfinite(pmf).all() and (pmf >= 0).all()):
                raise ModelError(f"table {number}: probabilities must be finite and not negative")
            if not MIN_LENGTH <= len(pmf) + 1 <= MAX_LENGTH:
                raise ModelError(
                    f"table {number}: expected {MIN_LENGTH - 1}..{MAX_LENGTH - 1} symbols, "
                    f"found {len(pmf)}"
                )
            full = np.append(pmf, max(0.0, 1.0 - float(pmf.sum())))
            rows.append(_quantise(full / full.sum(), precision))
        return cls(
            precision,
            np.array([len(row) for row in rows], np.int32),
            np.asarray(offsets, np.int32),
            np.concatenate(rows) if rows else np.empty(0, np.uint16),
        )

    @classmethod
    def from_histogram(
        cls, counts: Sequence[npt.ArrayLike], offsets: Sequence[int], precision: int = 16
    ) -> Tables:
        """Turn counts into tables: counts[t][i] is that of symbol offsets[t] + i in table t.

        The escape gets the least frequency, 1; an empty histogram becomes a uniform table.
        """
        pmfs = []
        for values in counts:
            row = np.asarray(values, np.float64).ravel()
            row = row if row.any() else np.ones_like(row)
            pmfs.append(row / row.sum())
        return cls.from_pmf(pmfs, offsets, precision)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Tables:
        """Take tables out of a model file's arrays: see to_arrays. Raises ModelError."""
        missing = {"precision", "lengths", "offsets", "frequencies"} - set(arrays)
        if missing:
            raise ModelError(f"entropy tables: expected arrays {sorted(missing)}, found none")
        precision = np.asarray(arrays["precision"])
        if precision.shape != (1,) or precision.dtype.kind not in "iu":
            raise ModelError("entropy tables: precision must be one integer in an array")
        return cls(
            int(precision[0]),
            arrays["lengths"],
            arrays["offsets"],
            arrays["frequencies"],
        )

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Give the arrays that a model file stores."""
        return {
            "precision": np.array([self.precision], np.int32),
            "lengths": self.lengths,
            "offsets": self.offsets,
            "frequencies": self.frequencies,
        }

    def check(self, indices: IndexArray) -> None:
        """Raise ContractError unless every index names a table."""
        if indices.size and int(indices.max()) >= len(self):
            raise ContractError(
                f"table indices must be below {len(self)}, found {int(indices.max())}"
            )

    def ideal_bits(self, symbols: Int16Array, indices: IndexArray) -> float:
        """Sum the information of symbols in bits: what a coder without any loss would take."""
        self.check(indices)
        tables = indices.ravel().astype(np.int64)
        value = symbols.ravel().astype(np.int64)
        offset, last = self.offsets[tables], self.lengths[tables] - 1
        entry = value - offset
        escaped = (entry < 0) | (entry >= last)
        frequency = self.frequencies[self.bases[tables] + np.where(escaped, last, entry)]
        below = entry[escaped] < 0
        beyond = np.where(below, -1 - entry[escaped], entry[escaped] - last[escaped])
        rest = 2 * beyond + below
        groups = np.ones(len(rest), np.int64)
        for shift in range(3, 18, 3):
            groups += rest >> shift > 0
        bits = len(value) * self.precision - float(np.log2(frequency.astype(np.float64)).sum())
        return bits + ESCAPE_GROUP_BITS * int(groups.sum())


def default_scales() -> npt.NDArray[np.float64]:
    """The 64 standard deviations of the conditional models: geometric, 0.11 to 256."""
    return np.geomspace(0.11, 256.0, 64)


def _upper(x: float, scale: float) -> float:
    """Probability that a zero-mean Gaussian exceeds x."""
    return 0.5 * math.erfc(x / (scale * math.sqrt(2.0)))


def _quantise(pmf: npt.NDArray[np.float64], precision: int) -> npt.NDArray[np.uint16]:
    """Round to frequencies of at least 1 that sum to 2**precision, keeping the code short.

    Starts from the floor and moves single units where they gain most, or cost least, in expected
    code length: sum of -p log2(frequency). (Convex, so one pass of a heap does it.)
    """
    total = 1 << precision
    frequencies = [max(1, min(total - 1, math.floor(p * total))) for p in pmf.tolist()]
    missing = total - sum(frequencies)
    step = 1 if missing > 0 else -1

    def price(i: int) -> float:
        f = frequencies[i]
        return math.inf if f + step < 1 else -float(pmf[i]) * math.log2((f + step) / f)

    heap = [(price(i), i) for i in range(len(frequencies))]
    heapq.heapify(heap)
    for _ in range(abs(missing)):
        i = heap[0][1]
        frequencies[i] += step
        heapq.heapreplace(heap, (price(i), i))
    return np.array(frequencies, np.uint16)


def _check_precision(precision: int) -> None:
    if not MIN_PRECISION <= precision <= MAX_PRECISION:
        raise ModelError(
            f"entropy tables: precision must be {MIN_PRECISION}..{MAX_PRECISION}, not {precision}"
        )


def _owned(array: npt.NDArray[Any], dtype: type[np.integer[Any]], name: str) -> npt.NDArray[Any]:
    """Copy into a read-only array of this type; ModelError if a value does not fit."""
    source = np.asarray(array)
    if source.ndim != 1 or source.dtype.kind not in "iu":
        raise ModelError(
            f"entropy tables: {name} must be integers in one dimension, "
            f"not {source.dtype} of shape {source.shape}"
        )
    owned = source.astype(dtype)
    if not np.array_equal(owned, source):
        raise ModelError(f"entropy tables: {name} has values outside {np.dtype(dtype)}")
    owned.flags.writeable = False
    return owned


def _validate(
    precision: int,
    lengths: npt.NDArray[np.int32],
    offsets: npt.NDArray[np.int32],
    frequencies: npt.NDArray[np.uint16],
) -> None:
    _check_precision(precision)
    if not 1 <= len(lengths) <= MAX_TABLES or len(offsets) != len(lengths):
        raise ModelError(
            f"entropy tables: expected 1..{MAX_TABLES} lengths and as many offsets, "
            f"found {len(lengths)} and {len(offsets)}"
        )
    if lengths.min() < MIN_LENGTH or lengths.max() > MAX_LENGTH:
        raise ModelError(
            f"entropy tables: lengths must be {MIN_LENGTH}..{MAX_LENGTH}, "
            f"found {lengths.min()}..{lengths.max()}"
        )
    if offsets.min() < MIN_SYMBOL or (offsets.astype(np.int64) + lengths - 2).max() > MAX_SYMBOL:
        raise ModelError("entropy tables: symbols must be within int16; correct the offsets")
    if len(frequencies) != lengths.sum(dtype=np.int64):
        raise ModelError(
            f"entropy tables: expected {lengths.sum(dtype=np.int64)} frequencies, "
            f"found {len(frequencies)}"
        )
    if frequencies.min() < 1:
        raise ModelError("entropy tables: frequencies must be 1 or more, found 0")
    firsts = np.cumsum(lengths, dtype=np.int64) - lengths
    sums = np.add.reduceat(frequencies.astype(np.int64), firsts)
    if (sums != 1 << precision).any():
        bad = int(np.flatnonzero(sums != 1 << precision)[0])
        raise ModelError(
            f"entropy tables: table {bad} must sum to {1 << precision}, found {sums[bad]}"
        )
