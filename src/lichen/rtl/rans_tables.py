"""Memory images of the rANS cores: what the driver writes into their tables, from the model's.

The encoder looks up an entry by its number, the decoder searches the entry that holds a slot:

    encoder   table -> (base, escape, offset)      base + entry -> (start, f, reciprocal, normalise)
    decoder   table -> (root, shift, length)       root | slot >> shift -> a row of `WAYS` keys

A decoder's row says which of its WAYS intervals holds the slot. In a leaf the intervals are
entries, so that one row read gives start, frequency and symbol; where too many entries share
2**shift slots, the row is an inner node and its intervals are rows, read in the next round. Wide
`shift`s save rows, narrow ones save rounds: `decoder_contents` takes the fastest choice that fits.

A content is the bytes that `load.blocks` takes: the rows of a memory from its beginning, each in
whole 32-bit words. Plain NumPy: the boards' driver uses this file without Amaranth.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lichen.entropy.rans import WORD_BITS
from lichen.entropy.tables import Tables
from lichen.errors import ModelError

WAYS = (
    7  # intervals of a decoder's row: 8 keys and 16 bits are 144 bits, two URAMs or 16 block RAMs
)
BASE_BITS = 14  # of a row's first symbol (signed) or first child (unsigned)
ROWS_STEP, ULTRA_ROWS = 512, 4096  # of a decoder: words of a block RAM, of an UltraRAM
SHIFT_STEPS = (0, 3, 5, 7)  # shift = precision - one of these: 1, 8, 32 or 128 rows of a table
LOAD_BITS = 32  # of a load word
ESCAPE_BITS = 12  # of the number of a table's last entry
LENGTH_BITS = 13  # of a table's entries
OFFSET_BITS = 17  # of a table's first symbol, signed


@dataclass(frozen=True)
class Coder:
    """The numbers of the rANS arithmetic that the hardware is built for.

    precision: log2 of every table's total. word_bits: 16; smaller only for proofs, which would
    take too long otherwise. A state has 2 * word_bits bits.
    """

    precision: int
    word_bits: int = WORD_BITS

    @property
    def quotient_bits(self) -> int:
        return 2 * self.word_bits - self.precision

    @property
    def reciprocal_bits(self) -> int:
        return self.quotient_bits + 1

    @property
    def normalise_bits(self) -> int:
        return (self.precision - 1).bit_length()

    @property
    def dropped_bits(self) -> int:
        """Low bits of the dividend that the product leaves out, so that it fits one DSP48E2."""
        return 6 if (self.precision, self.word_bits) == (16, 16) else 0


def reciprocals(frequencies: NDArray[np.int64], coder: Coder) -> tuple[NDArray[np.int64], ...]:
    """Give (reciprocal, normalise) for a division by one product that is at most 1 too small:

        estimate = (x << normalise >> dropped) * reciprocal >> (2 * word_bits - dropped)
        x // f  is  estimate or estimate + 1,   for every x < f << quotient_bits

    The normalised divisor g = f << normalise is in [2**(precision-1), 2**precision), the
    reciprocal the floor of 2**(2 word_bits) / g, at most all ones. Rounding down never makes the
    estimate too large; that it is never off by more than 1 is `estimate_error` <= 1, which the
    tests check for every f. (docs/stream.md 3.5 gives an exact multiplier of 32 bits: four DSPs and
    three more cycles in the loop of the state. One DSP and a correction are shorter.)
    """
    bits = np.frexp(frequencies.astype(np.float64))[1]  # bit length
    normalise = coder.precision - bits
    full = (1 << 2 * coder.word_bits) // (frequencies << normalise)
    return np.minimum(full, (1 << coder.reciprocal_bits) - 1), normalise.astype(np.int64)


def estimate_error(frequency: int, coder: Coder) -> float:
    """Bound by how much the unrounded estimate is below x / f, over all x that are divided."""
    reciprocal, normalise = (int(a[0]) for a in reciprocals(np.array([frequency]), coder))
    divisor, scale = frequency << normalise, 1 << 2 * coder.word_bits
    largest = (frequency << coder.quotient_bits) - 1 << normalise
    numerator = largest * (scale - reciprocal * divisor) + (
        ((1 << coder.dropped_bits) - 1) * reciprocal * divisor
    )
    return numerator / (divisor * scale)


@dataclass(frozen=True)
class EncoderShape:
    """Sizes of an encoder's memories, and how a row of each is packed."""

    coder: Coder
    tables: int
    entries: int

    @property
    def base_bits(self) -> int:
        return max(1, (self.entries - 1).bit_length())

    @property
    def descriptor_bits(self) -> int:
        return self.base_bits + ESCAPE_BITS + OFFSET_BITS

    @property
    def entry_bits(self) -> int:
        c = self.coder
        return 2 * c.precision + c.reciprocal_bits + c.normalise_bits


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of a decoder's memories."""

    coder: Coder
    tables: int
    rows: int

    @property
    def row_address_bits(self) -> int:
        return max(1, (self.rows - 1).bit_length())

    @property
    def descriptor_bits(self) -> int:
        return self.row_address_bits + 2 + LENGTH_BITS  # root, number of the shift, length

    @property
    def row_bits(self) -> int:
        return (WAYS + 1) * self.coder.precision + 2 + BASE_BITS


def subset(tables: Tables, first: int, count: int) -> Tables:
    """Take `count` neighbouring tables out of a set: those of y, or those of z."""
    base = int(tables.bases[first])
    end = base + int(tables.lengths[first : first + count].sum())
    return Tables(
        tables.precision,
        tables.lengths[first : first + count],
        tables.offsets[first : first + count],
        tables.frequencies[base:end],
    )


def encoder_shape(*sets: Tables) -> EncoderShape:
    """Give the least shape that holds any of these sets of tables."""
    count, entries = (max(map(size, sets)) for size in (len, lambda t: int(t.lengths.sum())))
    return EncoderShape(Coder(sets[0].precision), count, entries)


def encoder_contents(tables: Tables, shape: EncoderShape) -> tuple[bytes, bytes]:
    """Give (descriptors, entries) to load into an encoder. Raises ModelError if they do not fit."""
    _check_precision(tables, shape.coder)
    _check_room("tables", len(tables), shape.tables)
    _check_room("entries", len(tables.frequencies), shape.entries)
    f = tables.frequencies.astype(np.int64)
    reciprocal, normalise = reciprocals(f, shape.coder)
    p = shape.coder.precision
    entries = [
        pack((int(s), p), (int(v), p), (int(r), shape.coder.reciprocal_bits), (int(n), 4))
        for s, v, r, n in zip(tables.starts, f, reciprocal, normalise)
    ]
    descriptors = [
        pack(
            (int(base), shape.base_bits), (int(length) - 1, ESCAPE_BITS), (int(offset), OFFSET_BITS)
        )
        for base, length, offset in zip(tables.bases, tables.lengths, tables.offsets)
    ]
    return _content(shape.descriptor_bits, descriptors), _content(shape.entry_bits, entries)


def decoder_shape(rows: int, *sets: Tables) -> DecoderShape:
    """Give the shape of a decoder with `rows` rows for any of these sets of tables."""
    return DecoderShape(Coder(sets[0].precision), max(map(len, sets)), rows)


def rows_for(tables: Tables) -> int:
    """Give how many rows suit a set of tables: half as many again as they take at the least.

    But not more than two UltraRAMs hold, if the least fits there.
    """
    least = sum(min(tree.cost(step)[0] for step in SHIFT_STEPS) for tree in _trees(tables))
    rows = -(-(least * 3 // 2) // ROWS_STEP) * ROWS_STEP
    return min(rows, ULTRA_ROWS) if least <= ULTRA_ROWS else rows


def _trees(tables: Tables) -> list[_Tree]:
    return [_Tree(tables, number) for number in range(len(tables))]


def decoder_contents(tables: Tables, shape: DecoderShape) -> tuple[bytes, bytes]:
    """Give (descriptors, rows) to load into a decoder. Raises ModelError if they do not fit."""
    _check_precision(tables, shape.coder)
    _check_room("tables", len(tables), shape.tables)
    edge = 1 << BASE_BITS - 1
    if tables.offsets.min() < -edge or (tables.offsets + tables.lengths).max() >= edge:
        raise ModelError(f"the rANS decoder core takes tables of symbols within {-edge}..{edge}")
    trees = _trees(tables)
    steps = _steps_that_fit(trees, shape.rows)
    # First the rows that slots address, the most of a table first: each table's 2**step rows then
    # begin at a multiple of 2**step, and the address is an OR.
    roots, end = [0] * len(trees), 0
    for number in sorted(range(len(trees)), key=lambda n: -steps[n]):
        roots[number] = end
        end += 1 << steps[number]
    rows = [0] * end
    descriptors = []
    for tree, step, root in zip(trees, steps, roots):
        own = tree.rows(step, len(rows))
        rows[root : root + (1 << step)] = own[: 1 << step]
        rows += own[1 << step :]
        descriptors.append(
            pack(
                (root, shape.row_address_bits),
                (SHIFT_STEPS.index(step), 2),
                (len(tree.bounds) - 1, LENGTH_BITS),
            )
        )
    return _content(shape.descriptor_bits, descriptors), _content(shape.row_bits, rows)


def rounds(tables: Tables, row_count: int) -> NDArray[np.float64]:
    """Expected rows read per symbol of each table, if symbols come as their table says: (T,)."""
    trees = _trees(tables)
    steps = _steps_that_fit(trees, row_count)
    return np.array([1 + tree.cost(step)[1] for tree, step in zip(trees, steps)])


class _Tree:
    """The rows of one table, for any shift."""

    def __init__(self, tables: Tables, number: int) -> None:
        base, length = int(tables.bases[number]), int(tables.lengths[number])
        self.precision = tables.precision
        self.offset = int(tables.offsets[number])
        starts = tables.starts[base : base + length].tolist()
        self.bounds = [*starts, 1 << tables.precision]

    def buckets(self, step: int) -> Iterator[tuple[int, int]]:
        """Give the entries first..end of each of the table's 2**step equal ranges of slots."""
        size = 1 << self.precision - step
        edges = np.arange(0, 1 << self.precision, size)
        firsts = np.searchsorted(self.bounds, edges, "right") - 1
        ends = np.searchsorted(self.bounds, edges + size, "left")
        return zip(firsts.tolist(), ends.tolist())

    def cost(self, step: int) -> tuple[int, float]:
        """Give (rows, expected rows read beyond the first)."""
        counts = [end - first for first, end in self.buckets(step)]
        extra = sum(_depth(count) for count in counts) / len(counts)
        return sum(_row_count(count) for count in counts), extra

    def rows(self, step: int, at: int) -> list[int]:
        """Give the rows, packed: the 2**step that slots address, then, at `at`, the others."""
        buckets = list(self.buckets(step))
        rows = [0] * len(buckets)
        pending = [(i, first, end) for i, (first, end) in enumerate(buckets)]
        for place, first, end in pending:  # grows while it is read: breadth first
            size = WAYS ** _depth(end - first)
            if size == 1:
                rows[place] = self._row(first, end, 1, self.offset + first)
                continue
            firsts = range(first, end, size)
            rows[place] = self._row(first, end, size, at + len(rows) - len(buckets))
            pending += [(len(rows) + i, a, min(a + size, end)) for i, a in enumerate(firsts)]
            rows += [0] * len(firsts)
        return rows

    def _row(self, first: int, end: int, size: int, base: int) -> int:
        """Pack a row. Intervals left over are empty and come first, so that the last is the last.

        Bits, low first: WAYS + 1 keys, leaf, holds the escape, base (of interval 0).
        """
        keys = [self.bounds[i] for i in range(first, end, size)]
        empty = WAYS - len(keys)
        keys = [keys[0]] * empty + keys + [self.bounds[end]]
        leaf = size == 1
        escape = leaf and end == len(self.bounds) - 1
        flags = [(int(leaf), 1), (int(escape), 1), (base - empty, BASE_BITS)]
        return pack(*((key, self.precision) for key in keys), *flags)


def _steps_that_fit(trees: Sequence[_Tree], rows: int) -> list[int]:
    """Choose each table's shift: the least expected rounds per symbol within `rows` rows.

    A Lagrangian: the price of a row rises until the rows fit.
    """
    costs = [[(*tree.cost(step), step) for step in SHIFT_STEPS] for tree in trees]
    least = sum(min(c[0] for c in options) for options in costs)
    if least > rows:
        raise ModelError(
            f"these tables take at least {least} rows of the rANS decoder, which has {rows}: "
            "build it with more rows, or give fewer or shorter tables"
        )
    price = 1e-7
    while True:
        chosen = [min(options, key=lambda c: c[1] + price * c[0]) for options in costs]
        if sum(c[0] for c in chosen) <= rows:
            return [c[2] for c in chosen]
        price *= 1.2


def _depth(count: int) -> int:
    """Count the inner nodes above the leaf, for `count` entries."""
    depth = 0
    while WAYS ** (depth + 1) < count:
        depth += 1
    return depth


def _row_count(count: int) -> int:
    size = WAYS ** _depth(count)
    if size == 1:
        return 1
    whole, rest = divmod(count, size)
    return 1 + whole * _row_count(size) + (_row_count(rest) if rest else 0)


def pack(*fields: tuple[int, int]) -> int:
    """Pack (value, bits) fields, the first one lowest; values are taken modulo 2**bits."""
    value = position = 0
    for field, bits in fields:
        value |= (field & (1 << bits) - 1) << position
        position += bits
    return value


def _content(bits: int, rows: Sequence[int]) -> bytes:
    size = 4 * -(-bits // LOAD_BITS)
    return b"".join(row.to_bytes(size, "little") for row in rows)


def _check_precision(tables: Tables, coder: Coder) -> None:
    if tables.precision != coder.precision:
        raise ModelError(
            f"the rANS core was built for precision {coder.precision}, the tables have "
            f"{tables.precision}: build the core for this model"
        )


def _check_room(what: str, found: int, room: int) -> None:
    if found > room:
        raise ModelError(
            f"the rANS core has room for {room} {what}, found {found}: build it larger"
        )
