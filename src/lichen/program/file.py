"""Model files: named arrays and a little text, in the safetensors layout. No pickle.

8 bytes         header length, little-endian
header          JSON: {"__metadata__": {name: text}, array name: {"dtype", "shape",
                "data_offsets": [begin, end]}}, padded with spaces to a multiple of 8
the rest        the arrays, little-endian, C order, without gaps or overlap
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from math import prod
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from lichen.errors import ContractError, ModelError
from lichen.program import ops
from lichen.program.check import check
from lichen.program.program import Input, Output, Program, Vector

HEADER_MAX_BYTES = 16 * 2**20
DTYPES = {"U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4",
          "I64": "<i8", "F32": "<f4", "F64": "<f8"}  # fmt: skip
CLASSES = {cls.__name__: cls for cls in (Program, Input, Vector, Output, *get_args(ops.Op))}

Arrays = Mapping[str, NDArray[Any]]


def to_bytes(arrays: Arrays, metadata: Mapping[str, str]) -> bytes:
    """Write arrays and text as the bytes of a model file; equal contents give equal bytes."""
    codes = {np.dtype(code): name for name, code in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    parts: list[bytes] = []
    begin = 0
    # Wide types first: every array then starts at a multiple of its item size.
    for name, array in sorted(arrays.items(), key=lambda item: (-item[1].itemsize, item[0])):
        if array.dtype not in codes or array.size == 0 or name == "__metadata__":
            found = f"{array.dtype} {array.shape}"
            raise ModelError(f"{name!r} must be one of {', '.join(DTYPES)}, not empty, not {found}")
        spec = {"dtype": codes[array.dtype], "shape": list(array.shape)}
        header[name] = spec | {"data_offsets": [begin, begin + array.nbytes]}
        parts.append(array.tobytes())
        begin += array.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def from_bytes(data: bytes) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Read the arrays (read-only views of `data`) and the text of a model file, or ModelError."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(HEADER_MAX_BYTES, len(data) - 8):
        raise ModelError(f"a model file needs 8 bytes and its header, found {len(data)} bytes")
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError) as error:
        raise ModelError(f"the header of a model file must be JSON: {error}") from error
    metadata = header.pop("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ModelError("the header and its __metadata__ must be JSON objects, the latter of text")
    specs = sorted((_spec(name, spec) for name, spec in header.items()), key=lambda spec: spec[:2])
    body = 8 + length
    bounds = [0, *(end for _, end, *_ in specs)]
    if [begin for begin, *_ in specs] != bounds[:-1] or bounds[-1] != len(data) - body:
        raise ModelError("the arrays must fill the file without gaps or overlap; it is damaged")
    return {
        name: np.require(np.ndarray(shape, dtype, data, body + begin), requirements=["A"])
        for begin, _, name, shape, dtype in specs
    }, metadata


def _spec(name: str, spec: Any) -> tuple[int, int, str, tuple[int, ...], Any]:
    """Validate the header's entry of one array."""
    try:
        (begin, end), shape = spec["data_offsets"], tuple(spec["shape"])
        dtype = np.dtype(DTYPES[spec["dtype"]])
        sound = all(type(n) is int and 0 < n < 2**48 for n in (*shape, begin + 1, end))
        sound = sound and len(spec) == 3 and len(shape) <= 8
        sound = sound and end - begin == prod(shape) * dtype.itemsize
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise ModelError(f"{name!r} has no valid dtype, shape and data_offsets: {str(spec)[:200]}")
    return begin, end, name, shape, dtype


def pack_program(program: Program, prefix: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Split a Program into a JSON-able description and arrays named "<prefix>.<tensor>.<field>"."""
    arrays: dict[str, NDArray[Any]] = {}

    def pack(value: Any, name: str) -> Any:
        if isinstance(value, tuple):
            return [pack(item, name) for item in value]
        if isinstance(value, np.ndarray):
            arrays[name] = value
            return {"array": name}
        if type(value).__name__ in CLASSES:
            at = f"{prefix}.{value.output if hasattr(value, 'output') else value.name}"
            packed = {f.name: pack(getattr(value, f.name), f"{at}.{f.name}") for f in fields(value)}
            return {"type": type(value).__name__, **packed}
        return value

    description: dict[str, Any] = pack(program, prefix)
    return description, arrays


def unpack_program(description: Any, arrays: Arrays) -> Program:
    """Rebuild a Program from `pack_program`'s output and check it. Raises ModelError."""

    def unpack(value: Any) -> Any:
        if isinstance(value, list):
            return tuple(unpack(item) for item in value)
        if not isinstance(value, dict):
            return value
        if value.keys() == {"array"}:
            return arrays[value["array"]]
        cls = CLASSES[value["type"]]
        return cls(**{name: unpack(item) for name, item in value.items() if name != "type"})

    try:
        program = unpack(description)
        check(program)
    except (ContractError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(f"the file does not hold a valid Program: {error}") from error
    return program  # type: ignore[no-any-return]  # check has refused everything else
