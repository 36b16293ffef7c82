"""The native twin of rans.py: the same functions through native/rans.c, equal to the last byte."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from lichen.entropy import rans
from lichen.entropy.tables import IndexArray, Int16Array, Tables
from lichen.errors import ContractError, LichenError, StreamError
from lichen.native import declare, lib

BUCKET_BITS = 9  # of rans.c

_ROW = np.dtype([("base", "<i4"), ("offset", "<i2"), ("escape", "<u2")])
_ENCODER_ENTRY = np.dtype(
    [
        ("multiplier", "<u4"),
        ("limit", "<u4"),
        ("start", "<u2"),
        ("complement", "<u2"),
        ("shift", "u1"),
        ("increment", "u1"),
        ("unused", "<u2"),
    ]
)
_DECODER_ENTRY = np.dtype([("start", "<u2"), ("frequency", "<u2")])

_pointer, _int32, _int64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64

_ROOM = -16
_ERRORS: dict[int, tuple[type[LichenError], str]] = {
    -17: (ContractError, "entropy coder: a table index names no table"),
    -18: (StreamError, "entropy coder: the stream ends too early"),
    -19: (StreamError, "entropy coder: an escaped symbol is not one that an encoder writes"),
}


class _TablesStruct(ctypes.Structure):
    """Field for field rans_tables of rans.c."""

    _fields_ = (
        ("precision", ctypes.c_int32),
        ("count", ctypes.c_int32),
        ("rows", ctypes.c_void_p),
        ("encoder", ctypes.c_void_p),
        ("decoder", ctypes.c_void_p),
        ("buckets", ctypes.c_void_p),
    )


class PreparedTables:
    """What rans.c needs of a Tables object; built once for each, see `prepare`."""

    def __init__(self, tables: Tables) -> None:
        precision = tables.precision
        self.rows = np.zeros(len(tables), _ROW)
        self.rows["base"] = tables.bases
        self.rows["offset"] = tables.offsets
        self.rows["escape"] = tables.lengths - 1
        frequency = tables.frequencies.astype(np.uint32)
        self.encoder = np.zeros(len(frequency), _ENCODER_ENTRY)
        fields = rans.reciprocal(tables.frequencies, precision)
        for name, values in zip(("multiplier", "shift", "increment"), fields, strict=True):
            self.encoder[name] = values
        self.encoder["limit"] = frequency << np.uint32(32 - precision)
        self.encoder["start"] = tables.starts
        self.encoder["complement"] = (1 << precision) - frequency
        self.decoder = np.zeros(len(frequency), _DECODER_ENTRY)
        self.decoder["start"] = tables.starts
        self.decoder["frequency"] = frequency
        self.buckets = np.empty((len(tables), 1 << BUCKET_BITS), np.uint16)
        edges = np.arange(1 << BUCKET_BITS, dtype=np.uint16) << (precision - BUCKET_BITS)
        for table, (base, length) in enumerate(zip(tables.bases, tables.lengths, strict=True)):
            starts = tables.starts[base : base + length]
            self.buckets[table] = np.searchsorted(starts, edges, side="right") - 1
        self.struct = _TablesStruct(
            precision,
            len(tables),
            self.rows.ctypes.data,
            self.encoder.ctypes.data,
            self.decoder.ctypes.data,
            self.buckets.ctypes.data,
        )


_prepared: WeakKeyDictionary[Tables, PreparedTables] = WeakKeyDictionary()


def prepare(tables: Tables) -> PreparedTables:
    """Give the prepared form, made at the first call and kept as long as the tables live."""
    prepared = _prepared.get(tables)
    if prepared is None:  # setdefault: the first of several threads wins, and its arrays stay
        prepared = _prepared.setdefault(tables, PreparedTables(tables))
    return prepared


def encode(symbols: Int16Array, indices: IndexArray, tables: Tables, *, lanes: int = 4) -> bytes:
    """Code symbols: see rans.encode. Fastest with uint8 indices and 4 lanes."""
    rans.check_lanes(lanes)
    rans.check_symbols(symbols, indices)
    n = len(symbols)
    if not n:
        return b""
    symbols, flat = np.ascontiguousarray(symbols), np.ascontiguousarray(indices)
    prepared = prepare(tables)
    # A symbol takes at most one word, an escaped one at most seven: room for few escapes, for all.
    for words in (n + n // 2 + 64, 7 * n):
        buffer = np.empty(4 * lanes + 2 * words, np.uint8)
        first = int(
            _encoder()(
                ctypes.byref(prepared.struct),
                symbols.ctypes.data,
                flat.ctypes.data,
                flat.itemsize == 2,
                n,
                lanes,
                buffer.ctypes.data,
                len(buffer),
            )
        )
        if first != _ROOM:
            break
    _check(first)
    return buffer[first:].tobytes()


class Decoder:
    """Decode a stream piece by piece: see rans.Decoder."""

    def __init__(self, data: bytes, tables: Tables, *, lanes: int = 4) -> None:
        self._states = np.array(rans.initial_states(data, lanes), np.uint32)
        self._data = np.frombuffer(data, np.uint8)
        self._prepared, self._lanes = prepare(tables), lanes
        self._position = 4 * len(self._states)
        self._count = 0

    def decode(self, indices: IndexArray) -> Int16Array:
        """Decode one symbol per index. indices: uint8 or uint16 (n,); returns int16 (n,)."""
        rans.check_indices(indices)
        symbols = np.empty(len(indices), np.int16)
        if not len(indices):
            return symbols
        rans.check_not_empty(len(self._data))
        flat = np.ascontiguousarray(indices)
        position = int(
            _decoder()(
                ctypes.byref(self._prepared.struct),
                self._data.ctypes.data,
                len(self._data),
                self._position,
                self._states.ctypes.data,
                self._lanes,
                self._count % self._lanes,
                flat.ctypes.data,
                flat.itemsize == 2,
                len(indices),
                symbols.ctypes.data,
            )
        )
        _check(position)
        self._position = position
        self._count += len(indices)
        return symbols

    def finish(self) -> None:
        """Raise StreamError unless the stream ends exactly here."""
        rans.check_end(self._states.tolist(), len(self._data) - self._position, self._count)


def decode(data: bytes, indices: IndexArray, tables: Tables, *, lanes: int = 4) -> Int16Array:
    """Decode all of a stream: see rans.decode."""
    decoder = Decoder(data, tables, lanes=lanes)
    symbols = decoder.decode(indices)
    decoder.finish()
    return symbols


def available() -> bool:
    """Say whether the native module is there: without it, nothing else here works."""
    return lib() is not None


@cache
def _encoder() -> Any:
    arguments = [_pointer, _pointer, _pointer, _int32, _int64, _int32, _pointer, _int64]
    return _declared("lichen_rans_encode", arguments)


@cache
def _decoder() -> Any:
    arguments = [_pointer, _pointer, _int64, _int64, _pointer, _int32, _int32]
    return _declared("lichen_rans_decode", [*arguments, _pointer, _int32, _int64, _pointer])


def _declared(name: str, arguments: list[Any]) -> Any:
    library = lib()
    assert library is not None, "entropy/__init__.py gives rans.py where this is so"
    return declare(library, name, _int64, arguments)


def _check(result: int) -> None:
    if result < 0:
        error, message = _ERRORS[result]
        raise error(message)
