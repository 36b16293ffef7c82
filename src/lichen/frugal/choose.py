"""Choose: which channels go, so that what a network misses least frees most of what it costs.

Units of all groups (`models.channels`) stand in one list: at each step those go whose scores
(`importance`) are smallest against the share of the budget that they free, until it is met.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lichen.errors import LichenError
from lichen.frugal.importance import Scores
from lichen.models.channels import Channels, Counts, Group, Layer
from lichen.models.complexity import DECODER, ENCODER

TOLERANCE = 0.02  # of the whole network's MACs, within which a share of them is met


@dataclass(frozen=True)
class Limit:
    """A cost, a sum over layers, that shall be at most `most` and not below `least`.

    text: gives the words for such a cost. aim: what is tried for while it can be reached without
    going below `least`.
    """

    text: Callable[[float], str]
    cost: Callable[[Layer, Counts], float]
    most: float
    least: float = 0.0
    aim: float | None = None

    @property
    def goal(self) -> float:
        return self.most if self.aim is None else self.aim


def macs_limit(channels: Channels, share: float) -> Limit:
    """Ask for a share 0..1 of a network's MACs: all parts, each counted once."""
    whole = total(channels, channels.counts)
    return Limit(
        lambda macs: f"{macs / whole - 1:+.1%} MACs",
        channels.macs,
        most=(share + TOLERANCE) * whole,
        least=(share - TOLERANCE) * whole,
        aim=share * whole,
    )


def total(channels: Channels, counts: Counts) -> float:
    """MACs per pixel of picture of all parts, each counted once."""
    return sum(channels.macs(layer, counts) for layer in channels.layers)


def kmac(channels: Channels, counts: Counts) -> tuple[float, float]:
    """KMACs per pixel of picture to encode and to decode."""
    encode, decode = (
        sum(channels.macs(layer, counts) for layer in channels.layers if layer.part in parts)
        for parts in (ENCODER, DECODER)
    )
    return encode / 1000, decode / 1000


def fewer(group: Group, count: int, multiple: int) -> int:
    """Give the next smaller count of a group's units, 0 where it has none.

    Counts are multiples of `multiple` and of the group's parts.
    """
    step = math.lcm(multiple, group.parts)
    return (count - 1) // step * step


def fixed_groups(channels: Channels, patterns: Sequence[str]) -> frozenset[str]:
    """Give the groups whose names match. Raises LichenError for a pattern that matches none."""
    for pattern in patterns:
        if not fnmatch.filter(channels.groups, pattern):
            raise LichenError(
                f"no group of channels is called {pattern!r}; there are "
                f"{', '.join(channels.groups)}"
            )
    return frozenset(n for n in channels.groups for p in patterns if fnmatch.fnmatchcase(n, p))


@dataclass
class Choice:
    """Counts that fall step by step; what each limit's layers cost at them."""

    channels: Channels
    limits: Sequence[Limit]
    multiple: int
    fixed: frozenset[str]

    def __post_init__(self) -> None:
        self.counts = dict(self.channels.counts)
        layers = self.channels.layers
        self.totals = [sum(limit.cost(la, self.counts) for la in layers) for limit in self.limits]
        self.touched = {  # by each group
            name: [la for la in layers if name in la.inputs or name in la.outputs]
            for name in self.counts
        }

    def saved(self, name: str, count: int) -> list[float]:
        """Give what each limit's cost falls by if a group has `count` units left."""
        less = {**self.counts, name: count}
        return [
            sum(limit.cost(la, self.counts) - limit.cost(la, less) for la in self.touched[name])
            for limit in self.limits
        ]

    def steps(self) -> dict[str, tuple[int, list[float]]]:
        """Give the next count of each group that can lose units, and what that saves."""
        found = {}
        for name, group in self.channels.groups.items():
            count = fewer(group, self.counts[name], self.multiple)
            if count and name not in self.fixed:
                found[name] = count, self.saved(name, count)
        return found

    def allowed(self, saved: Sequence[float]) -> bool:
        """Tell whether no limit's cost falls below what it must be."""
        return all(t - s >= limit.least for t, s, limit in zip(self.totals, saved, self.limits))

    def take(self, name: str, count: int, saved: Sequence[float]) -> None:
        self.counts[name] = count
        self.totals = [before - less for before, less in zip(self.totals, saved)]

    @property
    def met(self) -> bool:
        return all(t <= limit.most for t, limit in zip(self.totals, self.limits))


def choose(
    channels: Channels,
    scores: Scores,
    limits: Sequence[Limit],
    *,
    multiple: int = 8,
    fixed: frozenset[str] = frozenset(),
    even: bool = False,
) -> dict[str, NDArray[np.bool_]]:
    """Choose the units to keep, (units,) of each group, so that all limits are met.

    multiple: counts that change are multiples of it; with `even` all are, where they are not below
    it. fixed: groups that stay whole. Raises LichenError where the limits cannot be met, with the
    nearest that can.
    """
    choice = Choice(channels, limits, multiple, fixed)
    for name, group in channels.groups.items() if even else ():
        if group.units % math.lcm(multiple, group.parts) and name in (steps := choice.steps()):
            choice.take(name, *steps[name])
    order = {name: _order(group, scores[name]) for name, group in channels.groups.items()}
    whole = list(choice.totals)
    while True:
        over = [t - limit.goal for t, limit in zip(choice.totals, limits)]
        if max(over) <= 0:
            break
        best = None
        for name, (count, saved) in choice.steps().items():
            freed = sum(s / w for s, w, o in zip(saved, whole, over) if o > 0)
            if freed <= 0 or not choice.allowed(saved):
                continue
            lost = _lost(channels.groups[name], scores[name], order[name], choice.counts, count)
            if best is None or lost / freed < best[0]:
                best = lost / freed, name, count, saved
        if best is None:
            break
        choice.take(*best[1:])
    if not choice.met:
        raise LichenError(_unmet(choice))
    return {name: _kept(group, order[name], choice.counts) for name, group in
            channels.groups.items()}  # fmt: skip


def _order(group: Group, scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Give the units of each part, (parts, units of a part), those that are missed most first."""
    by_part = scores.reshape(group.parts, -1)
    first = np.arange(group.parts)[:, None] * by_part.shape[1]
    return np.argsort(-by_part, axis=1, kind="stable") + first


def _lost(
    group: Group,
    scores: NDArray[np.float64],
    order: NDArray[np.int64],
    counts: Mapping[str, int],
    count: int,
) -> float:
    """Sum the scores of the units that leave where `count` units are left."""
    left, now = count // group.parts, counts[group.name] // group.parts
    return float(scores[order[:, left:now]].sum())


def _kept(group: Group, order: NDArray[np.int64], counts: Mapping[str, int]) -> NDArray[np.bool_]:
    kept = np.zeros(group.units, bool)
    kept[order[:, : counts[group.name] // group.parts]] = True
    return kept


def _unmet(choice: Choice) -> str:
    """Say what was asked for and what is nearest to it."""
    steps = choice.steps()
    texts = []
    for number, limit in enumerate(choice.limits):
        now = choice.totals[number]
        if now <= limit.most:
            continue
        nearest = [now, *(now - saved[number] for _, saved in steps.values())]
        best = min(nearest, key=lambda cost: abs(cost - limit.goal))
        texts.append(f"{limit.text(limit.goal)} cannot be met, the nearest is {limit.text(best)}")
    hint = "give that, or a smaller --multiple" if choice.multiple > 1 else "give that"
    return f"{'; '.join(texts)}, with counts that are multiples of {choice.multiple}; {hint}"
