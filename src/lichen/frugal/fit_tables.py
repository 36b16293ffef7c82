"""Entropy tables from what photographs give: the last step of `lichen quantize`.

Training believes in Gaussians and in a network for z. What is coded are integers, of which the
symbols with one table number have heavier tails than a Gaussian, the more so the lower the rate. A
model's tables are numbers in its file, so they may as well be counted: each becomes the mean of its
old probabilities, which count as `WEIGHT` symbols, and of what calibration pictures give. Lengths
and offsets stay.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lichen import codec, executors
from lichen.entropy.tables import Tables
from lichen.executors import Executor
from lichen.model import POSITIONS, Model

QUALITIES = 17  # evenly spaced, at which pictures are counted: twice the levels that z may have
WEIGHT = 200.0  # symbols that the old probabilities of a table count for


class Counter:
    """Counts entries of tables, in the place of an entropy coder."""

    def __init__(self, tables: Tables) -> None:
        self.counts = np.zeros(len(tables.frequencies), np.int64)

    def __call__(
        self, symbols: NDArray[np.int16], indices: NDArray[np.integer], tables: Tables, lanes: int
    ) -> bytes:
        """Count symbols (n,) with their table numbers (n,); gives no bytes."""
        last = tables.lengths[indices] - 1
        entry = symbols.astype(np.int64) - tables.offsets[indices]
        entry = np.where((entry < 0) | (entry > last), last, entry)
        size = len(self.counts)
        self.counts += np.bincount(tables.bases[indices] + entry, minlength=size)
        return b""


def count(
    model: Model, executor: Executor, pictures: Iterable[codec.Pixels], qualities: int = QUALITIES
) -> NDArray[np.int64]:
    """Count the entries of all tables that pictures (H, W, 3) take: int64 (qualities, entries)."""
    counters = [Counter(model.tables) for _ in range(qualities)]
    positions = np.linspace(0, POSITIONS, qualities).round().astype(int)
    for pixels in pictures:
        analysis = codec.analyse(model, executor, pixels)
        for position, counter in zip(positions, counters, strict=True):
            codec.encode(model, executor, analysis, int(position), coder=counter)
    return np.stack([counter.counts for counter in counters])


def fitted(tables: Tables, counts: NDArray[np.int64], weight: float = WEIGHT) -> Tables:
    """Give tables of the same sizes that suit counts of their entries (qualities, entries).

    All qualities weigh alike: a bit of a low rate is a larger part of it. An escape's count is
    shared by all symbols that the table does not list.
    """
    share = 1 / np.maximum(bits(tables, counts), 1.0)
    counts = (counts * (share / share.mean())[:, None]).sum(axis=0)
    pmfs = []
    for base, length in zip(tables.bases, tables.lengths):
        old = tables.frequencies[base : base + length] / 2.0**tables.precision
        row = counts[base : base + length]
        pmfs.append(((row + weight * old) / (row.sum() + weight))[:-1])
    return Tables.from_pmf(pmfs, tables.offsets.tolist(), tables.precision)


def bits(tables: Tables, counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Ideal code lengths of counted entries (qualities, entries), without escaped symbols' own."""
    lengths: NDArray[np.float64] = counts @ -np.log2(tables.frequencies / 2.0**tables.precision)
    return lengths


def fit(
    model: Model, counted: Sequence[Tensor], watched: Sequence[Tensor], threads: int = 1
) -> tuple[Model, float]:
    """Give the model with tables that suit crops, and the bits of other crops, new over old.

    counted, watched: batches (B, 3, H, W) in -1..1, as training has them. The ratio is the mean
    of those at all qualities. Where it is 1 or more, the model stays as it is.
    """
    executor = executors.best(threads)
    tables = fitted(model.tables, count(model, executor, pixels_of(counted)))
    seen = count(model, executor, pixels_of(watched))
    change = float(np.mean(bits(tables, seen) / np.maximum(bits(model.tables, seen), 1.0)))
    return (dataclasses.replace(model, tables=tables) if change < 1 else model), change


def pixels_of(batches: Iterable[Tensor]) -> Iterable[codec.Pixels]:
    """Give the crops of batches (B, 3, H, W) in -1..1 as pixels (H, W, 3)."""
    for batch in batches:
        whole = (batch * 128 + 128).round().clamp(0, 255).byte()
        yield from np.ascontiguousarray(whole.permute(0, 2, 3, 1).numpy())
