"""What the tests of the entropy cores share: loading, random tables and symbols."""

from __future__ import annotations

import numpy as np
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from lichen.entropy.tables import Tables
from lichen.rtl.lanes import beat, connect
from lichen.rtl.leaf import LoadBus
from lichen.rtl.load import Load


class Loaded(wiring.Component):
    """A component with a load bus, and the stream that feeds the bus."""

    def __init__(self, build):
        self.bus = LoadBus()
        self.inner = build(self.bus)
        super().__init__({"load": In(beat(32)), **dict(self.inner.signature.members)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.load = load = Load(self.bus)
        m.submodules.inner = self.inner
        connect(m, self.load, load.input)
        for name, member in self.inner.signature.members.items():
            outer, inner = getattr(self, name), getattr(self.inner, name)
            if member.is_port:
                m.d.comb += inner.eq(outer) if member.flow == wiring.In else outer.eq(inner)
            else:
                connect(m, *((outer, inner) if member.flow == wiring.In else (inner, outer)))
        return m


def random_tables(rng, count=9, precision=16):
    """Tables of every kind: the shortest, single frequencies, long tails, far offsets."""
    top = (1 << precision) - 1
    pmfs = [rng.dirichlet(np.full(n, 0.3)) for n in rng.integers(1, 40, count - 4)]
    offsets = rng.integers(-200, 200, count - 4).tolist()
    made = Tables.from_pmf(pmfs, offsets, precision)
    wide = Tables.gaussian([0.11, 3.0, 60.0], precision)
    edge = Tables(precision, np.array([2]), np.array([8100]), np.array([top, 1], np.uint16))
    names = ("lengths", "offsets", "frequencies")
    sets = [made, wide, edge]
    return Tables(precision, *(np.concatenate([getattr(s, n) for s in sets]) for n in names))


def random_symbols(rng, t, n, escapes=0.0):
    """Symbols of random tables, some of them outside: (int16, table numbers)."""
    indices = rng.integers(0, len(t), n).astype(np.uint8)
    entry = (rng.random(n) * (t.lengths[indices] - 1)).astype(int)
    wild = rng.random(n) < escapes
    values = np.where(wild, rng.integers(-32768, 32768, n), t.offsets[indices] + entry)
    return values.astype(np.int16), indices


def is_last(n):
    return np.arange(n) == n - 1


def table_bits(t):
    return max(1, (max(2, len(t)) - 1).bit_length())


def symbol_beats(values, indices, t):
    """The beats of a sequence of symbols."""
    word = (values.astype(np.int64) & 0xFFFF) | indices.astype(np.int64) << 16
    return (word | is_last(len(values)).astype(np.int64) << (16 + table_bits(t))).astype(np.uint32)


def index_beats(indices, t):
    return (indices | is_last(len(indices)).astype(np.int64) << table_bits(t)).astype(np.uint32)


def signed(beats):
    """The symbols in beats of 16 bits and `last`."""
    return (beats & 0xFFFF).astype(np.uint16).view(np.int16)
