"""Placement: which words of which memory lie in UltraRAM, in block RAM and in LUT RAM.

UltraRAM comes in 4,096 words of 72 bits, block RAM in 512 words of 36, and few memories are a whole
number of either: what is left over of a depth goes to the next smaller kind (memory.sv joins them).

    words    0 ......... ultra ........ ultra + block ....... depth
             UltraRAM          block RAM            LUT RAM
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from math import ceil

from lichen.rtl.leaf import BLOCK_WORDS, LUT_RAM_BITS, LUT_RAM_WORDS, ULTRA_WORDS, Home
from lichen.rtl.parts import LIMIT, Part, Resources, shortfall

OUTSIDE_BITS = 1 << 17  # 16 KiB: shorter delays stay on the chip
# A delay in DRAM, beyond what one on the chip takes (docs/driver.md has what Yosys found).
OUTSIDE_LOGIC = Resources(lut=380, ff=430)
WHOLE_LUT_RAM_BITS = 1 << 17  # of a memory that may be LUT RAM and nothing else
NOTHING = Resources()
ROUNDS = 120  # of prices
SHARES = ("bram36", "uram", "lut")


@dataclass(frozen=True)
class Memory:
    """A memory as blocks see it: `depth` words of `width` bits.

    luts: LUT RAM may hold it, all or some; not where the address comes late in its cycle.
    """

    stage: str
    role: str  # "ring", "weights", "delay", "tile", "parameters", "gains", or of the entropy coder
    width: int
    depth: int
    luts: bool = True

    @property
    def bits(self) -> int:
        return self.width * self.depth

    @property
    def home(self) -> Home:
        """Where it lies if nobody says otherwise, as `leaf.Memory` decides."""
        return Home(0, 0 if self.bits <= LUT_RAM_BITS else self.depth)

    @property
    def resources(self) -> Resources:
        """What it takes there."""
        return self.taken(self.home)

    def taken(self, home: Home) -> Resources:
        """Give the block RAMs, UltraRAMs and LUTs that it takes in a home."""
        rest = self.depth - min(self.depth, home.ultra + home.block)
        halves, deep = _halves(self.width, home.block)
        ultra = ceil(home.ultra / ULTRA_WORDS)
        regions = (home.ultra > 0) + (home.block > 0) + (rest > 0)
        lut = chooser(self.width, deep) + chooser(self.width, ultra) + chooser(self.width, regions)
        if rest:
            lut += lut_ram(self.width, rest)
        return Resources(bram36=halves / 2, uram=ultra * ceil(self.width / 72), lut=lut)

    def homes(self, ultra: bool) -> tuple[Home, ...]:
        """List where it may lie; ultra: the part has UltraRAM."""
        if self.bits <= LUT_RAM_BITS:
            return (self.home,)
        found = set()
        for low in {0, self.depth // ULTRA_WORDS * ULTRA_WORDS, self.depth} if ultra else {0}:
            if low == self.depth and low % ULTRA_WORDS and low < ULTRA_WORDS // 4:
                continue  # nothing is gained by an UltraRAM that is a quarter full
            rest = self.depth - low
            found.add(Home(low, rest))
            if not self.luts:
                continue
            steps = [n for n in (BLOCK_WORDS, LUT_RAM_WORDS) if low or rest >= n]
            found |= {Home(low, rest // n * n) for n in steps}
        if self.luts and self.bits <= WHOLE_LUT_RAM_BITS and self.depth <= LUT_RAM_WORDS:
            found.add(Home(0, 0))
        return tuple(sorted(found, key=lambda home: (home.ultra, home.block)))

    def share(self, part: Part) -> float:
        """The share of a part that it takes, wherever it is cheapest."""
        ultra = part.resources.uram > 0
        return min(sum(_shares(self.taken(home), part)) for home in self.homes(ultra))


def lut_ram(width: int, depth: int) -> int:
    """LUTs of a LUT RAM: eight hold 32 words of 14 bits or 64 of 7, behind one read port."""
    if depth <= 32:
        return 8 * ceil(width / 14)
    banks = ceil(depth / 64)
    return 8 * ceil(width / 7) * banks + chooser(width, banks)


def _halves(width: int, depth: int) -> tuple[int, int]:
    """Half block RAMs (512 x 36, 1K x 18, ...), and how many of them follow each other in depth."""
    if not depth:
        return 0, 0
    return min(
        (ceil(width / wide) * ceil(depth / deep), ceil(depth / deep))
        for wide, deep in ((36, 512), (18, 1024), (9, 2048), (4, 4096), (2, 8192))
    )


def chooser(width: int, ways: int) -> int:
    """LUTs that choose one of so many words: a LUT chooses one of four bits."""
    return 0 if ways <= 1 else width * ceil(ways / 4)


def _shares(taken: Resources, part: Part) -> list[float]:
    have = part.resources
    return [getattr(taken, n) / getattr(have, n) for n in SHARES if getattr(have, n)]


@dataclass(frozen=True)
class Placement:
    """Where the memories of a plan lie.

    homes: of every memory on the chip. external: delays that the board keeps in its DRAM.
    """

    homes: tuple[tuple[Memory, Home], ...]
    external: tuple[Memory, ...] = ()

    @cached_property
    def resources(self) -> Resources:
        """Block RAMs, UltraRAMs and LUTs of all memories on the chip; logic of those outside."""
        inside = (memory.taken(home) for memory, home in self.homes)
        return sum([*inside, *[OUTSIDE_LOGIC] * len(self.external)], Resources())

    def of(self, stage: str) -> dict[str, Home]:
        """Give the homes of a stage's memories by their roles."""
        return {memory.role: home for memory, home in self.homes if memory.stage == stage}

    def taken_by(self, stage: str) -> Resources:
        """Give what a stage's memories take."""
        found = (memory.taken(home) for memory, home in self.homes if memory.stage == stage)
        return sum(found, Resources())


def place(
    memories: Sequence[Memory], part: Part, external: bool = False, taken: Resources = NOTHING
) -> Placement:
    """Find a home for each memory so that the part's scarcest kind is used least.

    taken: what the rest of the core takes of the part. With `external`, long delays leave the chip,
    the longest first, until the rest fits. Where nothing fits, the result is the nearest to it.
    """
    inside, outside = list(memories), []
    while True:
        ports = sum([OUTSIDE_LOGIC] * len(outside), taken)
        placement = Placement(_homes(inside, part, ports), tuple(outside))
        fits = not shortfall(placement.resources + taken, part)
        long = [m for m in inside if m.role == "delay" and m.bits > OUTSIDE_BITS]
        if fits or not external or not long:
            return placement
        outside.append(max(long, key=lambda memory: memory.bits))
        inside.remove(outside[-1])


class _Search:
    """One home for each memory, out of its options; totals and limits in the order of SHARES."""

    def __init__(self, memories: Sequence[Memory], part: Part, taken: Resources) -> None:
        self.limits = [
            max(1e-9, LIMIT * getattr(part.resources, n) - getattr(taken, n)) for n in SHARES
        ]
        ultra = part.resources.uram > 0
        self.options = [
            [(home, [float(getattr(memory.taken(home), n)) for n in SHARES])
             for home in memory.homes(ultra)]
            for memory in memories
        ]  # fmt: skip
        self.chosen = [0] * len(memories)

    def totals(self, chosen: Sequence[int]) -> list[float]:
        """Add up what the chosen homes take."""
        taken = [options[i][1] for options, i in zip(self.options, chosen)]
        return [sum(column) for column in zip(*taken)] or [0.0] * len(SHARES)

    def worst(self, totals: Sequence[float]) -> float:
        """Give the greatest share of a limit; below 1 all fits. A little counts for the others."""
        shares = [total / limit for total, limit in zip(totals, self.limits) if total]
        return max(shares, default=0.0) + 0.01 * sum(shares)

    def by_prices(self) -> None:
        """Take for each memory what is cheapest; prices rise with what is scarce."""
        prices = [1 / limit for limit in self.limits]
        best = None
        for step in range(ROUNDS):
            chosen = [
                min(range(len(options)),
                    key=lambda i: sum(map(float.__mul__, options[i][1], prices)))
                for options in self.options
            ]  # fmt: skip
            totals = self.totals(chosen)
            worst = self.worst(totals)
            if best is None or worst < best:
                best, self.chosen = worst, chosen
            speed = 0.3 / (1 + step / 20)
            prices = [
                price * (total / limit + 0.01) ** speed
                for price, total, limit in zip(prices, totals, self.limits)
            ]

    def by_moves(self) -> None:
        """Move one memory, or two at a time, as long as the scarcest kind is relieved."""
        totals = self.totals(self.chosen)
        while self.worst(totals) > 1.0:
            found = self._move(totals, 1) or self._move(totals, 2)
            if found is None:
                return
            totals = found

    def _move(self, totals: list[float], count: int) -> list[float] | None:
        """Make the first change of `count` memories that helps; give the totals after it."""
        now = self.worst(totals) - 1e-9
        for which in combinations(range(len(self.options)), count):
            base = list(totals)
            for k in which:
                base = list(map(float.__sub__, base, self.options[k][self.chosen[k]][1]))
            for i, (_, first) in enumerate(self.options[which[0]]):
                one = list(map(float.__add__, base, first))
                last = self.options[which[1]] if count == 2 else [(None, [0.0] * len(SHARES))]
                for j, (_, second) in enumerate(last):
                    moved = list(map(float.__add__, one, second))
                    if self.worst(moved) < now:
                        for k, choice in zip(which, (i, j)):
                            self.chosen[k] = choice
                        return moved
        return None


def _homes(
    memories: Sequence[Memory], part: Part, taken: Resources
) -> tuple[tuple[Memory, Home], ...]:
    search = _Search(memories, part, taken)
    search.by_prices()
    search.by_moves()
    return tuple(
        (memory, options[i][0])
        for memory, options, i in zip(memories, search.options, search.chosen)
    )
