"""rANS, the definition: plain Python that says what the native and the RTL coders must equal.

A lane holds one number, its state, always in [2**16, 2**32). `push` codes an interval (start,
frequency) out of 2**precision into a state, `pop` is its exact inverse; where a state would leave
the range it gives, or takes, one 16-bit word. Symbol i belongs to lane i % lanes, and all lanes
share one sequence of words. The encoder goes backwards, so that the decoder goes forwards:

    encoder   symbols n-1 .. 0, states from 2**16   --> final states, words (last one first)
    stream    lanes x state (4 bytes LE), words (2 bytes LE) in the order of decoding
    decoder   states, symbols 0 .. n-1, a word when a state falls below 2**16
              --> all states are 2**16 and no word is left, or the stream is damaged

Decoding what was encoded gives the symbols, and every stream that decodes is exactly the one that
encoding its symbols gives: there are no two streams for one sequence. No symbols: no bytes.

Sources: J. Duda, "Asymmetric numeral systems" (arXiv:1311.2540); F. Giesen, "Interleaved entropy
coders" (arXiv:1402.3392).
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
import numpy.typing as npt

from lichen.entropy.tables import (
    ESCAPE_GROUP_BITS,
    MAX_SYMBOL,
    MIN_SYMBOL,
    IndexArray,
    Int16Array,
    Tables,
)
from lichen.errors import ContractError, StreamError

LOWER = 1 << 16  # least state; also every lane's first state in the encoder, last in the decoder
WORD_BITS = 16
MAX_LANES = 8
MAX_ESCAPE_GROUPS = 6  # 3 bits each; the value is below 2**17

Step = tuple[int, int]  # start, frequency


def push(state: int, start: int, frequency: int, precision: int, words: list[int]) -> int:
    """Code one interval into a state; may append one word. The quotient: see `reciprocal`."""
    if state >= frequency << (32 - precision):
        words.append(state & 0xFFFF)
        state >>= WORD_BITS
    quotient, remainder = divmod(state, frequency)
    return (quotient << precision) + start + remainder


def steps(symbol: int, table: int, tables: Tables) -> list[Step]:
    """Give the intervals that code one symbol, in the order of decoding.

    One for a symbol of the table. Otherwise the escape entry, then 1..6 groups of 4 bits as
    equally likely intervals: value = 2 * distance + below, low three bits first, where distance
    counts from the nearest symbol outside the table; the fourth bit says that more follow.
    """
    base, length, offset = _row(table, tables)
    escape = length - 1
    entry = symbol - offset
    inside = 0 <= entry < escape
    at = base + (entry if inside else escape)
    path = [(int(tables.starts[at]), int(tables.frequencies[at]))]
    if inside:
        return path
    value = 2 * (-1 - entry) + 1 if entry < 0 else 2 * (entry - escape)
    uniform = 1 << (tables.precision - ESCAPE_GROUP_BITS)
    while True:
        group = value & 7 | (8 if value > 7 else 0)
        path.append((group * uniform, uniform))
        value >>= 3
        if not value:
            return path


def encode(symbols: Int16Array, indices: IndexArray, tables: Tables, *, lanes: int = 4) -> bytes:
    """Code symbols with the tables that the indices name.

    symbols: int16 (n,); indices: uint8 or uint16 (n,). Raises ContractError for other arrays, an
    index without a table, or lanes outside 1..8.
    """
    check_lanes(lanes)
    check_symbols(symbols, indices)
    tables.check(indices)
    if not len(symbols):
        return b""
    states = [LOWER] * lanes
    words: list[int] = []
    for i in range(len(symbols) - 1, -1, -1):
        for start, frequency in reversed(steps(int(symbols[i]), int(indices[i]), tables)):
            states[i % lanes] = push(states[i % lanes], start, frequency, tables.precision, words)
    head = b"".join(state.to_bytes(4, "little") for state in states)
    return head + b"".join(word.to_bytes(2, "little") for word in reversed(words))


class Decoder:
    """Decode a stream piece by piece: `decode` as often as there are indices, then `finish`.

    (The tables of a channel-wise model's later symbols depend on the earlier ones.)
    Raises StreamError for a stream that no encoder made, as soon as that shows.
    """

    def __init__(self, data: bytes, tables: Tables, *, lanes: int = 4) -> None:
        self._states = initial_states(data, lanes)
        self._data, self._tables, self._lanes = data, tables, lanes
        self._position = 4 * len(self._states)
        self._count = 0

    def decode(self, indices: IndexArray) -> Int16Array:
        """Decode one symbol per index. indices: uint8 or uint16 (n,); returns int16 (n,)."""
        check_indices(indices)
        self._tables.check(indices)
        if len(indices):
            check_not_empty(len(self._data))
        symbols = np.empty(len(indices), np.int16)
        for i, table in enumerate(indices.tolist()):
            symbols[i] = self._symbol(self._count % self._lanes, table)
            self._count += 1
        return symbols

    def finish(self) -> None:
        """Raise StreamError unless the stream ends exactly here."""
        check_end(self._states, len(self._data) - self._position, self._count)

    def _symbol(self, lane: int, table: int) -> int:
        base, length, offset = _row(table, self._tables)
        starts = self._tables.starts[base : base + length]
        entry = bisect_right(starts, self._slot(lane)) - 1
        self._pop(lane, int(starts[entry]), int(self._tables.frequencies[base + entry]))
        if entry < length - 1:
            return offset + entry
        value = self._escaped(lane)
        symbol = offset - 1 - (value >> 1) if value & 1 else offset + length - 1 + (value >> 1)
        if not MIN_SYMBOL <= symbol <= MAX_SYMBOL:
            raise StreamError(f"entropy coder: symbols must be 16-bit, found {symbol}")
        return symbol

    def _escaped(self, lane: int) -> int:
        bits = self._tables.precision - ESCAPE_GROUP_BITS
        value = 0
        for number in range(MAX_ESCAPE_GROUPS):
            group = self._slot(lane) >> bits
            self._pop(lane, group << bits, 1 << bits)
            value |= (group & 7) << (3 * number)
            if group < 8:
                if number and not group:
                    raise StreamError("entropy coder: an escaped symbol is longer than it must be")
                return value
        raise StreamError(f"entropy coder: an escape has more than {MAX_ESCAPE_GROUPS} groups")

    def _slot(self, lane: int) -> int:
        return self._states[lane] & ((1 << self._tables.precision) - 1)

    def _pop(self, lane: int, start: int, frequency: int) -> None:
        """Undo `push`: the interval holds the slot; may take one word."""
        quotient = self._states[lane] >> self._tables.precision
        state = frequency * quotient + self._slot(lane) - start
        if state < LOWER:
            word = self._data[self._position : self._position + 2]
            if len(word) < 2:
                raise StreamError("entropy coder: the stream ends too early")
            self._position += 2
            state = state << WORD_BITS | int.from_bytes(word, "little")
        self._states[lane] = state


def decode(data: bytes, indices: IndexArray, tables: Tables, *, lanes: int = 4) -> Int16Array:
    """Decode all of a stream: one symbol per index, int16 (n,). Raises StreamError."""
    decoder = Decoder(data, tables, lanes=lanes)
    symbols = decoder.decode(indices)
    decoder.finish()
    return symbols


def reciprocal(
    frequencies: npt.NDArray[np.uint16], precision: int
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Give (multiplier, shift, increment) that replace the division in `push`, exactly:

        state // frequency == ((state + increment) * multiplier) >> shift

    for every state < frequency << (32 - precision), which is every state that push divides.
    The multiplier has 32 bits, the shift is 31..47, the increment 0 or 1.

    Proof. With f = frequency, f <= 2**l, shift = 31 + l: rounding 2**shift / f up leaves an error
    e < f, and the quotient is right if e * (largest state) < 2**shift. Otherwise round down, error
    d = f - e, and increment the state: right if d > 0 and d * (largest state + 1) <= 2**shift,
    which then holds because (e + d) * f * 2**16 <= 2**(shift + 1). (Granlund and Montgomery 1994;
    A. Robison, "N-bit unsigned division via N-bit multiply-add", 2005.) Tests check each f.
    """
    f = np.asarray(frequencies).astype(np.int64)
    shift = 31 + np.ceil(np.log2(f)).astype(np.int64)
    down = (1 << shift) // f
    up = -(-(1 << shift) // f)
    increment = (up * f - (1 << shift)) * ((f << (32 - precision)) - 1) >= 1 << shift
    multiplier = np.where(increment, down, up)
    return multiplier.astype(np.uint32), shift.astype(np.uint8), increment.astype(np.uint8)


def initial_states(data: bytes, lanes: int) -> list[int]:
    """Read the states at the head of a stream (none if it is empty); StreamError if they cannot be.

    Raises ContractError unless lanes is 1..8.
    """
    check_lanes(lanes)
    if not data:
        return []
    if len(data) < 4 * lanes or len(data) % 2:
        raise StreamError(
            f"entropy coder: expected {4 * lanes} bytes of states and then 16-bit words, "
            f"found {len(data)} bytes"
        )
    states = [int.from_bytes(data[i : i + 4], "little") for i in range(0, 4 * lanes, 4)]
    if min(states) < LOWER:
        raise StreamError(f"entropy coder: states must be {LOWER} or more, found {min(states)}")
    return states


def check_end(states: list[int], left_bytes: int, count: int) -> None:
    """Raise StreamError unless a decoder that gave count symbols is at the end of its stream."""
    if left_bytes:
        raise StreamError(f"entropy coder: {left_bytes} bytes are left after the last symbol")
    if states and (count == 0 or any(state != LOWER for state in states)):
        raise StreamError("entropy coder: the states do not end where they began; stream damaged")


def check_not_empty(size_bytes: int) -> None:
    """Raise StreamError where symbols are wanted from a stream of no bytes."""
    if not size_bytes:
        raise StreamError("entropy coder: expected symbols, found an empty stream")


def check_lanes(lanes: int) -> None:
    """Raise ContractError unless 1..8."""
    if not 1 <= lanes <= MAX_LANES:
        raise ContractError(f"lanes must be 1..{MAX_LANES}, not {lanes}")


def check_symbols(symbols: Int16Array, indices: IndexArray) -> None:
    """Raise ContractError unless these are flat arrays of the right types and one length."""
    check_indices(indices)
    if symbols.dtype != np.int16 or symbols.shape != indices.shape:
        raise ContractError(
            f"symbols must be int16 of shape {indices.shape}, one for each index, "
            f"not {symbols.dtype} of shape {symbols.shape}"
        )


def check_indices(indices: IndexArray) -> None:
    """Raise ContractError unless indices are a flat array of table numbers."""
    if indices.dtype not in (np.uint8, np.uint16) or indices.ndim != 1:
        raise ContractError(
            "table indices must be uint8 or uint16 in one dimension, "
            f"not {indices.dtype} of shape {indices.shape}"
        )


def _row(table: int, tables: Tables) -> tuple[int, int, int]:
    return int(tables.bases[table]), int(tables.lengths[table]), int(tables.offsets[table])
