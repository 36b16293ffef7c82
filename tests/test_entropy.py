"""Entropy coder: tables, the definition (rans.py), its native twin, and damaged streams."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lichen import entropy
from lichen.entropy import Tables, default_scales, native, rans
from lichen.entropy.tables import MAX_LENGTH
from lichen.errors import ContractError, LichenError, ModelError, StreamError

GOLDEN = Path(__file__).parent / "golden"
NATIVE = native.available()
needs_native = pytest.mark.skipif(not NATIVE, reason="the native module is not built")
CODERS = [rans, pytest.param(native, marks=needs_native)]
EXTREMES = [-32768, -32767, -1, 0, 1, 32766, 32767]

coders = pytest.mark.parametrize("coder", CODERS, ids=["rans", "native"])


@st.composite
def tables_strategy(draw: st.DrawFn) -> Tables:
    """Tables with offsets anywhere in int16, lengths 2..40, even and extremely uneven."""
    count = draw(st.integers(1, 4))
    pmfs, offsets = [], []
    for _ in range(count):
        length = draw(st.integers(1, 39))
        weight = st.sampled_from([0.0, 1e-9, 0.01, 1.0, 7.0, 1e6])
        row = np.array(draw(st.lists(weight, min_size=length, max_size=length)))
        pmfs.append(row / (row.sum() + draw(weight) + 1e-12))
        offset = draw(st.sampled_from([-32768, -20, -1, 0, 5, 32768 - length]))
        offsets.append(offset)
    return Tables.from_pmf(pmfs, offsets, draw(st.integers(12, 16)))


@st.composite
def messages(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, Tables, int]:
    """(symbols, indices, tables, lanes), half of the symbols inside their table."""
    tables = draw(tables_strategy())
    n = draw(st.integers(0, 60))
    indices = np.array(draw(st.lists(st.integers(0, len(tables) - 1), min_size=n, max_size=n)))
    anything = st.one_of(st.sampled_from(EXTREMES), st.integers(-32768, 32767))
    symbols = []
    for table in indices:
        low = int(tables.offsets[table])
        near = st.integers(max(-32768, low - 9), min(32767, low + int(tables.lengths[table]) + 7))
        symbols.append(draw(st.one_of(near, anything)))
    dtype = draw(st.sampled_from([np.uint8, np.uint16]))
    lanes = draw(st.integers(1, 8))
    return np.array(symbols, np.int16), indices.astype(dtype), tables, lanes


def outcome(
    coder: ModuleType, data: bytes, indices: np.ndarray, tables: Tables, lanes: int
) -> bytes | None:
    """Give the decoded symbols' bytes, or None for a StreamError; anything else fails."""
    try:
        symbols: np.ndarray = coder.decode(data, indices, tables, lanes=lanes)
    except StreamError:
        return None
    return symbols.tobytes()


# Tables


def test_tables_keep_their_rules_and_come_back_from_arrays() -> None:
    for precision in (12, 14, 16):
        tables = Tables.gaussian(default_scales(), precision)
        assert len(tables) == 64
        assert tables.frequencies.min() >= 1
        ends = tables.starts.astype(int) + tables.frequencies
        assert (ends[tables.bases + tables.lengths - 1] == 1 << precision).all()
        again = Tables.from_arrays(tables.to_arrays())
        assert again.precision == precision
        for name in ("lengths", "offsets", "frequencies"):
            assert np.array_equal(getattr(again, name), getattr(tables, name))
        with pytest.raises(ValueError, match="read-only"):
            tables.frequencies[0] = 3


def test_gaussian_tables_are_even_and_cut_at_the_tail() -> None:
    tables = Tables.gaussian([0.11, 1.0, 256.0, 1e6])
    assert tables.offsets.tolist() == [-1, -4, -939, -2047]
    assert tables.lengths.tolist() == [4, 10, 1880, MAX_LENGTH]
    row = tables.frequencies[4:13].astype(int)  # scale 1, without its escape
    assert np.abs(row - row[::-1]).max() <= 1
    assert row.argmax() == 4
    assert abs(row[4] - 0.38292492 * 65536) < 2  # erf(0.5 / sqrt(2))


def test_histograms_become_tables() -> None:
    tables = Tables.from_histogram([[1, 2, 1], [0, 0], [0, 5]], [-1, 0, 7], 12)
    rows = np.split(tables.frequencies, tables.bases[1:])
    assert [row.tolist() for row in rows] == [[1024, 2047, 1024, 1], [2047, 2048, 1], [1, 4094, 1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": 11}, "precision must be 12..16, not 11"),
        ({"precision": 17}, "precision must be 12..16"),
        ({"lengths": [4, 3]}, "expected 7 frequencies, found 6"),
        ({"lengths": [1, 5]}, "lengths must be 2..4096, found 1..5"),
        ({"lengths": [4097, 3]}, "lengths must be 2..4096"),
        ({"lengths": np.empty(0, int)}, "expected 1..65535 lengths"),
        ({"offsets": [0]}, "as many offsets, found 2 and 1"),
        ({"offsets": [-32769, 0]}, "symbols must be within int16"),
        ({"offsets": [32767, 0]}, "symbols must be within int16"),
        ({"offsets": [0.5, 0]}, "offsets must be integers"),
        ({"offsets": [2**40, 0]}, "offsets has values outside int32"),
        ({"frequencies": [4000, 95, 1, 4094, 1, 2]}, "table 1 must sum to 4096, found 4097"),
        ({"frequencies": [4000, 96, 0, 4094, 1, 1]}, "must be 1 or more, found 0"),
        ({"frequencies": [4000, 95, 1, 69630, 1, 1]}, "frequencies has values outside uint16"),
        ({"frequencies": [[4000, 95, 1], [4094, 1, 1]]}, "in one dimension"),
    ],
)
def test_tables_that_break_a_rule_are_refused(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "precision": 12,
        "lengths": [3, 3],
        "offsets": [0, -3],
        "frequencies": [4000, 95, 1, 4094, 1, 1],
    }
    Tables(**{k: np.array(v) if k != "precision" else v for k, v in good.items()})
    bad = good | change
    with pytest.raises(ModelError, match=message):
        Tables(**{k: np.array(v) if k != "precision" else v for k, v in bad.items()})


def test_table_sources_that_make_no_sense_are_refused() -> None:
    arrays = Tables.from_pmf([[1.0]], [0]).to_arrays()
    for bad in (
        lambda: Tables.gaussian([0.0]),
        lambda: Tables.gaussian([np.nan]),
        lambda: Tables.from_pmf([[0.5, -0.1]], [0]),
        lambda: Tables.from_pmf([[np.inf]], [0]),
        lambda: Tables.from_pmf([[0.5]], [0, 1]),
        lambda: Tables.from_pmf([[]], [0]),
        lambda: Tables.from_pmf([np.full(MAX_LENGTH, 1e-4)], [0]),
        lambda: Tables.from_pmf([], []),
        lambda: Tables.from_pmf([[0.5]], [0], precision=20),
        lambda: Tables.from_histogram([[-1.0, 2.0]], [0]),
        lambda: Tables.from_histogram([[]], [0]),
        lambda: Tables.from_arrays({k: v for k, v in arrays.items() if k != "lengths"}),
        lambda: Tables.from_arrays(arrays | {"precision": np.array([16, 16])}),
    ):
        with pytest.raises(ModelError):
            bad()


# The definition


def test_the_smallest_streams_by_hand() -> None:
    tables = Tables(16, np.array([2]), np.array([5]), np.array([0x8000, 0x8000]))
    index = np.zeros(1, np.uint8)
    # Start 0, frequency 2**15: 0x10000 // 0x8000 << 16 = 0x20000.
    data = rans.encode(np.array([5], np.int16), index, tables, lanes=1)
    assert data.hex() == "00000200"
    # 6 is escaped at distance 0: group 0 of 16 gives 0x100000, then the escape's interval.
    data = rans.encode(np.array([6], np.int16), index, tables, lanes=1)
    assert data.hex() == "00802000"
    # 4 is escaped below at distance 0: value 1, group 1.
    assert rans.steps(4, 0, tables) == [(0x8000, 0x8000), (0x1000, 0x1000)]
    # 9 is escaped at distance 3, value 6; 10 at distance 4, value 8: two groups, 0 and more, 1.
    assert rans.steps(9, 0, tables)[1:] == [(0x6000, 0x1000)]
    assert rans.steps(10, 0, tables)[1:] == [(0x8000, 0x1000), (0x1000, 0x1000)]
    for symbol, stream in ((4, "00902000"), (10, "00800302")):  # docs/stream.md, 3.6
        one = np.array([symbol], np.int16)
        assert rans.encode(one, index, tables, lanes=1).hex() == stream
    assert rans.encode(np.empty(0, np.int16), index[:0], tables) == b""


@settings(max_examples=150, deadline=None)
@given(st.integers(12, 16), st.data())
def test_pop_is_the_inverse_of_push(precision: int, data: st.DataObject) -> None:
    frequency = data.draw(st.integers(1, (1 << precision) - 1))
    start = data.draw(st.integers(0, (1 << precision) - frequency))
    state = data.draw(st.integers(1 << 16, (1 << 32) - 1))
    words: list[int] = []
    after = rans.push(state, start, frequency, precision, words)
    assert 1 << 16 <= after < 1 << 32
    slot = after & ((1 << precision) - 1)
    assert start <= slot < start + frequency
    before = frequency * (after >> precision) + slot - start
    assert (before < 1 << 16) == (len(words) == 1)
    assert (before << 16 | words[0] if words else before) == state


@pytest.mark.parametrize("precision", range(12, 17))
def test_reciprocals_equal_division_for_every_frequency(precision: int) -> None:
    f = np.arange(1, 1 << precision).astype(np.uint16)
    multiplier, shift, increment = (a.astype(np.uint64) for a in rans.reciprocal(f, precision))
    f = f.astype(np.uint64)
    limit = f << np.uint64(32 - precision)
    # The error grows with the state, so these states bound it from both sides: the largest with
    # remainders f-1 and 0. The others are there to catch a wrong proof.
    rng = np.random.default_rng(precision)
    states = [limit - np.uint64(1), limit - f, limit - f - np.uint64(1), f, f - np.uint64(1), 0 * f]
    states += [(rng.random(len(f)) * limit).astype(np.uint64) for _ in range(20)]
    for state in states:
        assert (((state + increment) * multiplier >> shift) == state // f).all()
    assert shift.min() == 31 and shift.max() == 31 + precision
    assert increment.max() == 1


@settings(max_examples=120, deadline=None)
@given(messages())
def test_round_trip_of_the_definition(message: tuple[Any, ...]) -> None:
    symbols, indices, tables, lanes = message
    data = rans.encode(symbols, indices, tables, lanes=lanes)
    assert np.array_equal(rans.decode(data, indices, tables, lanes=lanes), symbols)
    assert (len(data) == 0) == (len(symbols) == 0)
    assert len(data) <= tables.ideal_bits(symbols, indices) / 8 * 1.003 + 32


@needs_native
@settings(max_examples=250, deadline=None)
@given(messages(), st.integers(0, 60))
def test_native_equals_the_definition(message: tuple[Any, ...], cut: int) -> None:
    symbols, indices, tables, lanes = message
    data = rans.encode(symbols, indices, tables, lanes=lanes)
    assert native.encode(symbols, indices, tables, lanes=lanes) == data
    assert np.array_equal(native.decode(data, indices, tables, lanes=lanes), symbols)
    for coder in (rans, native):  # in two pieces
        decoder = coder.Decoder(data, tables, lanes=lanes)
        pieces = [decoder.decode(indices[:cut]), decoder.decode(indices[cut:])]
        decoder.finish()
        assert np.array_equal(np.concatenate(pieces), symbols)


@coders
@pytest.mark.parametrize("lanes", range(1, 9))
def test_every_length_and_escapes_at_the_extremes(coder: ModuleType, lanes: int) -> None:
    tables = Tables.from_pmf([[0.5, 0.3], [0.9], [0.1]], [-1, -32768, 32767])
    for n in [*range(20), 101]:
        symbols = np.resize(np.array(EXTREMES, np.int16), n)
        indices = np.resize(np.array([0, 1, 2, 2, 1], np.uint16), n)
        data = coder.encode(symbols, indices, tables, lanes=lanes)
        assert data == rans.encode(symbols, indices, tables, lanes=lanes)
        assert np.array_equal(coder.decode(data, indices, tables, lanes=lanes), symbols)


@needs_native
@pytest.mark.parametrize("precision", [12, 16])
def test_native_divides_exactly_where_the_reciprocal_is_rounded_down(precision: int) -> None:
    """Without the increment such a quotient is wrong at each multiple of the frequency."""
    total = 1 << precision
    frequencies = np.arange(3, total - 3).astype(np.uint16)
    increments = rans.reciprocal(frequencies, precision)[2]
    chosen = np.random.default_rng(1).permutation(frequencies[increments == 1])[:200]
    for f in chosen.astype(int).tolist():
        # Frequency 2 at `start` takes the first state, 2**16, to 2**(15 + precision) + start.
        start = -(1 << (15 + precision)) % f
        start += f if start == 0 else 0
        if start + 3 > total:
            continue
        rows = np.array([start, 2, total - start - 2, f, total - f])
        tables = Tables(precision, np.array([3, 2]), np.array([0, 0]), rows)
        symbols, indices = np.array([0, 1], np.int16), np.array([1, 0], np.uint8)
        data = native.encode(symbols, indices, tables, lanes=1)
        assert data == rans.encode(symbols, indices, tables, lanes=1), f


@needs_native
@pytest.mark.parametrize(("some", "row"), [([9999, 0, -32768], [65535, 1]), ([0], [1, 65535])])
def test_native_encoder_stays_inside_its_buffer(some: list[int], row: list[int]) -> None:
    tables = Tables(16, np.array([2]), np.array([0]), np.array(row))
    symbols = np.resize(np.array(some, np.int16), 50)
    indices = np.zeros(50, np.uint8)
    right = rans.encode(symbols, indices, tables)
    struct = ctypes.byref(native.prepare(tables).struct)
    for capacity in range(14 * 50 + 16 + 1):
        guarded = np.full(1000 + capacity + 1000, 0xA5, np.uint8)
        first = native._encoder()(
            struct, symbols.ctypes.data, indices.ctypes.data, 0, 50, 4,
            guarded.ctypes.data + 1000, capacity,
        )  # fmt: skip
        assert (guarded[:1000] == 0xA5).all() and (guarded[-1000:] == 0xA5).all()
        if first >= 0:
            assert guarded[1000 + first : -1000].tobytes() == right
    assert first >= 0


@coders
def test_more_escapes_than_the_first_buffer_holds(coder: ModuleType) -> None:
    tables = Tables(16, np.array([2]), np.array([0]), np.array([65535, 1]))
    symbols, indices = np.resize(np.array([32767, -32768], np.int16), 500), np.zeros(500, np.uint8)
    data = coder.encode(symbols, indices, tables)
    assert len(data) > 2 * (500 + 500 // 2 + 64)
    assert np.array_equal(coder.decode(data, indices, tables), symbols)


@coders
def test_strided_arrays_are_taken_as_they_are(coder: ModuleType) -> None:
    tables = Tables.gaussian([1.0, 3.0])
    symbols = np.arange(-20, 20, dtype=np.int16)[::2]
    indices = np.resize(np.array([0, 1, 1], np.uint8), 40)[::2]
    data = coder.encode(symbols, indices, tables)
    assert data == rans.encode(symbols.copy(), indices.copy(), tables)
    assert np.array_equal(coder.decode(data, indices, tables), symbols)


@coders
def test_wrong_arguments_are_refused(coder: ModuleType) -> None:
    tables = Tables.gaussian([1.0, 3.0])
    symbols, indices = np.zeros(5, np.int16), np.zeros(5, np.uint8)
    data = coder.encode(symbols, indices, tables)
    for bad in (
        lambda: coder.encode(symbols.astype(np.int32), indices, tables),
        lambda: coder.encode(symbols[:4], indices, tables),
        lambda: coder.encode(symbols, indices.astype(np.int64), tables),
        lambda: coder.encode(symbols.reshape(1, 5), indices.reshape(1, 5), tables),
        lambda: coder.encode(symbols, indices + np.uint8(2), tables),
        lambda: coder.encode(symbols, np.full(5, 65535, np.uint16), tables),
        lambda: coder.encode(symbols, indices, tables, lanes=0),
        lambda: coder.encode(symbols, indices, tables, lanes=9),
        lambda: coder.decode(data, indices + np.uint8(2), tables),
        lambda: coder.decode(data, indices.astype(np.int32), tables),
        lambda: coder.decode(data, indices, tables, lanes=9),
    ):
        with pytest.raises(ContractError):
            bad()


@coders
def test_size_is_near_the_ideal(coder: ModuleType) -> None:
    rng = np.random.default_rng(7)
    n = 300_000 if coder is native else 6_000
    scales = default_scales()
    tables = Tables.gaussian(scales)
    indices = rng.integers(0, 64, n).astype(np.uint8)
    symbols = np.rint(rng.standard_normal(n) * scales[indices]).astype(np.int16)
    data = coder.encode(symbols, indices, tables)
    ideal_bytes = tables.ideal_bits(symbols, indices) / 8
    assert ideal_bytes <= len(data) + 1 <= ideal_bytes * 1.003 + 32


def test_ideal_bits_count_what_is_coded() -> None:
    tables = Tables.from_pmf([[0.25, 0.5]], [0], 12)
    symbols = np.array([0, 1, 2, 5, 6, -1, -4, -5, 32767, -32768], np.int16)
    for symbol in symbols:
        path = rans.steps(int(symbol), 0, tables)
        bits = sum(12 - np.log2(frequency) for _, frequency in path)
        one = tables.ideal_bits(np.array([symbol]), np.zeros(1, np.uint8))
        assert one == pytest.approx(bits)


def test_the_fast_coder_is_the_one_that_the_package_gives() -> None:
    expected = native if NATIVE else rans
    assert entropy.encode is expected.encode
    assert entropy.decode is expected.decode
    assert entropy.Decoder is expected.Decoder


# Golden streams


def golden_cases() -> list[dict[str, Any]]:
    """Symbols, indices and tables out of integers alone, the same on every machine."""
    cases = []
    seed = 1

    def random() -> int:
        nonlocal seed
        seed = (seed * 1103515245 + 12345) % 2**31
        return seed >> 12

    for precision, lanes, n in [
        (16, 4, 96),
        (16, 1, 24),
        (12, 4, 40),
        (14, 8, 40),
        (16, 3, 1),
        (15, 2, 30),
        (16, 4, 0),
    ]:
        total = 1 << precision
        halves = [total >> k for k in range(1, 9)]
        rows = [
            (-4, [*halves[::-1], total >> 8]),
            (0, [total - 1, 1]),
            (-1, [1, total - 3, 1, 1]),
            (-300, [1] * 300 + [total - 600] + [1] * 300),
            (32766, [total // 2, total // 4, total // 4]),
            (-32768, [1, total - 1]),
        ]
        indices = [random() % len(rows) for _ in range(n)]
        symbols = []
        for i, t in enumerate(indices):
            offset, row = rows[t]
            symbol = offset + (len(row) - 1 if i % 2 else random() % len(row))
            symbol += (random() % 400 - 200) * (random() % 4 == 0)
            symbols.append(max(-32768, min(32767, EXTREMES[i % 7] if i % 17 == 9 else symbol)))
        cases.append(
            {
                "precision": precision,
                "lanes": lanes,
                "offsets": [offset for offset, _ in rows],
                "tables": [row for _, row in rows],
                "indices": indices,
                "symbols": symbols,
            }
        )
    return cases


def load(case: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, Tables, int]:
    """(symbols, indices, tables, lanes) of a golden case."""
    tables = Tables(
        case["precision"],
        np.array([len(row) for row in case["tables"]]),
        np.array(case["offsets"]),
        np.concatenate([np.array(row) for row in case["tables"]]),
    )
    indices = np.array(case["indices"], np.uint8)
    return np.array(case["symbols"], np.int16), indices, tables, case["lanes"]


def stored_cases() -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads((GOLDEN / "rans.json").read_text())
    return cases


def test_golden_streams_stay(golden: Callable[[str, bytes], None]) -> None:
    lines = []
    for case in golden_cases():
        symbols, indices, tables, lanes = load(case)
        stream = rans.encode(symbols, indices, tables, lanes=lanes).hex()
        lines.append(json.dumps(case | {"stream": stream}, separators=(",", ":")))
    golden("rans.json", ("[\n" + ",\n".join(lines) + "\n]\n").encode())


@coders
def test_golden_streams_decode_and_encode(coder: ModuleType) -> None:
    for case in stored_cases():
        symbols, indices, tables, lanes = load(case)
        data = bytes.fromhex(case["stream"])
        assert coder.encode(symbols, indices, tables, lanes=lanes) == data
        assert np.array_equal(coder.decode(data, indices, tables, lanes=lanes), symbols)


# Damage


@coders
def test_every_truncation_and_every_extension_is_refused(coder: ModuleType) -> None:
    for case in stored_cases():
        _, indices, tables, lanes = load(case)
        data = bytes.fromhex(case["stream"])
        for end in range(len(data)):
            with pytest.raises(StreamError):
                coder.decode(data[:end], indices, tables, lanes=lanes)
        for more in (b"\0", b"\0\0", b"\xff\xff", b"\0" * 64):
            with pytest.raises(StreamError):
                coder.decode(data + more, indices, tables, lanes=lanes)
        for count in {0, len(indices) // 2, len(indices) + 1} - {len(indices)}:
            with pytest.raises(StreamError):
                coder.decode(data, np.resize(indices, count), tables, lanes=lanes)


def test_no_changed_byte_gives_the_same_symbols() -> None:
    """Every value of every byte natively; three of them by the definition, with equal outcome."""
    for case in stored_cases():
        symbols, indices, tables, lanes = load(case)
        data = bytes.fromhex(case["stream"])
        right = symbols.tobytes()
        for position in range(len(data)):
            for flip in range(1, 256) if NATIVE else (1, 0x80, 0xFF):
                bad = bytearray(data)
                bad[position] ^= flip
                if NATIVE:
                    got = outcome(native, bytes(bad), indices, tables, lanes)
                    assert got != right
                if flip in (1, 0x80, 0xFF):
                    slow = outcome(rans, bytes(bad), indices, tables, lanes)
                    assert slow != right
                    assert not NATIVE or slow == got


@settings(max_examples=300, deadline=None)
@given(tables_strategy(), st.binary(max_size=60), st.integers(1, 8), st.integers(0, 40))
def test_what_decodes_is_what_encodes(tables: Tables, data: bytes, lanes: int, n: int) -> None:
    """Any bytes: the coders agree, and there is one stream for one sequence of symbols."""
    for stream in (
        data,
        b"\0\0\1\0" * lanes + data,
        data[: len(data) // 2 * 2] + b"\0\0\1\0" * lanes,
    ):
        indices = np.resize(np.arange(len(tables), dtype=np.uint8), n)
        slow = outcome(rans, stream, indices, tables, lanes)
        if NATIVE:
            assert outcome(native, stream, indices, tables, lanes) == slow
        if slow is not None:
            symbols = np.frombuffer(slow, np.int16)
            assert rans.encode(symbols, indices, tables, lanes=lanes) == stream


@coders
def test_escapes_that_no_encoder_writes_are_refused(coder: ModuleType) -> None:
    tables = Tables(16, np.array([2]), np.array([0]), np.array([1, 65535]))
    index = np.zeros(1, np.uint8)

    def stream(groups: list[int]) -> bytes:
        state, words = 1 << 16, []
        path = [(1, 65535)] + [(group << 12, 1 << 12) for group in groups]
        for start, frequency in reversed(path):
            state = rans.push(state, start, frequency, 16, words)
        return state.to_bytes(4, "little") + b"".join(
            word.to_bytes(2, "little") for word in reversed(words)
        )

    assert coder.decode(stream([8, 1]), index, tables, lanes=1).tolist() == [5]
    assert coder.decode(stream([15, 8, 8, 8, 8, 1]), index, tables, lanes=1).tolist() == [-16388]
    for groups in (
        [8, 0],  # longer than it must be
        [8, 8, 0],
        [14, 15, 15, 15, 15, 1],  # 65534 // 2 + 1 = 32768
        [8, 8, 8, 8, 8, 7],  # far too large
        [8, 8, 8, 8, 8, 9],  # seven groups
        [8, 8, 8, 8, 8, 8, 1],
    ):
        with pytest.raises(StreamError):
            coder.decode(stream(groups), index, tables, lanes=1)


@coders
def test_states_below_the_interval_are_refused(coder: ModuleType) -> None:
    """Else this stream would be a second one for symbol 5."""
    tables = Tables(16, np.array([2]), np.array([5]), np.array([0x8000, 0x8000]))
    with pytest.raises(StreamError, match="states must be 65536 or more, found 1"):
        coder.decode(b"\1\0\0\0\0\0", np.zeros(1, np.uint8), tables, lanes=1)


@coders
def test_a_decoder_that_is_not_at_the_end_says_so(coder: ModuleType) -> None:
    tables = Tables.gaussian([2.0])
    symbols, indices = np.arange(-5, 6, dtype=np.int16), np.zeros(11, np.uint8)
    data = coder.encode(symbols, indices, tables)
    decoder = coder.Decoder(data, tables)
    decoder.decode(indices[:7])
    with pytest.raises(LichenError):
        decoder.finish()
    empty = coder.Decoder(b"", tables)
    assert len(empty.decode(indices[:0])) == 0
    empty.finish()
    with pytest.raises(StreamError, match="empty stream"):
        empty.decode(indices)
    with pytest.raises(StreamError):
        coder.decode(b"\0\0\1\0" * 4, indices[:0], tables)  # no symbols must be no bytes
