"""Model files: what is written is read back, and nothing hostile passes."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from harness import cases
from hypothesis import given, settings
from hypothesis import strategies as st

from lichen.errors import ModelError
from lichen.program import run
from lichen.program.file import from_bytes, pack_program, to_bytes, unpack_program

ARRAYS = {
    "bytes": np.arange(5, dtype=np.uint8),
    "words": np.arange(-6, 6, dtype=np.int32).reshape(3, 4),
    "scalar": np.array(7.5, np.float32),
}
CASES = {case.name: case for case in cases() if case.name.startswith("program-")}


def build(header: Any, body: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + body


def entry(dtype: Any = "U8", shape: Any = (4,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_round_trip() -> None:
    data = to_bytes(ARRAYS, {"format": "1", "name": "täst"})
    arrays, metadata = from_bytes(data)
    assert metadata == {"format": "1", "name": "täst"}
    assert arrays.keys() == ARRAYS.keys()
    for name, array in arrays.items():
        assert array.dtype == ARRAYS[name].dtype and np.array_equal(array, ARRAYS[name])
        assert array.flags.aligned and not array.flags.writeable
    assert to_bytes(dict(reversed(ARRAYS.items())), metadata) == data


def test_golden_bytes() -> None:
    """The layout is an interface: other tools read these files."""
    data = to_bytes({"b": np.array([1, 2], np.uint8), "a": np.array([[-2]], np.int16)}, {"k": "v"})
    text = (
        b'{"__metadata__":{"k":"v"},"a":{"dtype":"I16","shape":[1,1],"data_offsets":[0,2]},'
        b'"b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}'
    )
    text += b" " * (-len(text) % 8)
    assert data == len(text).to_bytes(8, "little") + text + b"\xfe\xff\x01\x02"


def test_safetensors_reads_it() -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    read = safetensors.load(to_bytes(ARRAYS, {"k": "v"}))
    for name, array in ARRAYS.items():
        assert np.array_equal(read[name], array)
    arrays, _ = from_bytes(safetensors.save(dict(ARRAYS)))
    assert all(np.array_equal(arrays[name], ARRAYS[name]) for name in ARRAYS)


@pytest.mark.parametrize(
    "array",
    [np.zeros(3, complex), np.zeros(3, ">i4"), np.zeros((2, 0), np.int8), np.array(["a"])],
)
def test_what_cannot_be_written(array: np.ndarray) -> None:
    with pytest.raises(ModelError, match="must be one of"):
        to_bytes({"x": array}, {})


HOSTILE = {
    "empty": b"",
    "no header": b"\x02\0\0\0\0\0\0",
    "header beyond the file": build({}, length=3),
    "header of 2**63 bytes": build({}, length=2**63),
    "not JSON": build(b"{]"),
    "not UTF-8": build(b'{"\xff": 1}'),
    "deep": build(b"[" * 100_000),
    "long number": build(b'{"a": ' + b"9" * 10_000 + b"}"),
    "a list": build([]),
    "a number": build(7),
    "metadata a list": build({"__metadata__": []}),
    "metadata of numbers": build({"__metadata__": {"a": 1}}),
    "entry a list": build({"a": [1]}, b"1234"),
    "entry null": build({"a": None}, b"1234"),
    "unknown dtype": build({"a": entry(dtype="F128")}, b"1234"),
    "dtype a list": build({"a": entry(dtype=[])}, b"1234"),
    "dtype null": build({"a": entry(dtype=None)}, b"1234"),
    "wrong dtype": build({"a": entry(dtype="I16")}, b"1234"),
    "wrong shape": build({"a": entry(shape=[5])}, b"1234"),
    "shape a number": build({"a": entry(shape=4)}, b"1234"),
    "shape text": build({"a": entry(shape="4")}, b"1234"),
    "shape of floats": build({"a": entry(shape=[4.0])}, b"1234"),
    "shape of booleans": build({"a": entry(shape=[True], offsets=[0, 1])}, b"1"),
    "negative shape": build({"a": entry(shape=[-2, -2])}, b"1234"),
    "nine axes": build({"a": entry(shape=[1] * 8 + [4])}, b"1234"),
    "overflowing shape": build({"a": entry(shape=[2**32, 2**32, 4])}, b"1234"),
    "empty huge shape": build({"a": entry(shape=[2**40, 2**40, 0], offsets=[0, 0])}),
    "negative offsets": build({"a": entry(offsets=[-4, 0])}, b"1234"),
    "offsets reversed": build({"a": entry(offsets=[4, 0])}, b"1234"),
    "one offset": build({"a": entry(offsets=[0])}, b"1234"),
    "three offsets": build({"a": entry(offsets=[0, 4, 8])}, b"1234"),
    "offsets a number": build({"a": entry(offsets=4)}, b"1234"),
    "offset of floats": build({"a": entry(offsets=[0.0, 4.0])}, b"1234"),
    "beyond the file": build({"a": entry(offsets=[4, 8])}, b"1234"),
    "truncated": build({"a": entry()}, b"123"),
    "trailing": build({"a": entry()}, b"12345"),
    "trailing without arrays": build({}, b"1"),
    "gap before": build({"a": entry(offsets=[1, 5])}, b"12345"),
    "gap between": build({"a": entry(), "b": entry(offsets=[5, 9])}, b"123456789"),
    "overlap": build({"a": entry(), "b": entry(offsets=[2, 6])}, b"123456"),
    "same place": build({"a": entry(), "b": entry()}, b"1234"),
    "further key": build({"a": entry() | {"x": 1}}, b"1234"),
    "missing key": build({"a": {"dtype": "U8", "shape": [4]}}, b"1234"),
    "twice": build(b'{"a": %b, "a": %b}' % ((json.dumps(entry()).encode(),) * 2), b"1234" * 2),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_hostile_files(data: bytes) -> None:
    with pytest.raises(ModelError):
        from_bytes(data)


def test_an_unaligned_file_of_another_writer_is_read_aligned() -> None:
    header = {"a": entry(shape=[3], offsets=[0, 3]), "b": entry("I32", [2], [3, 11])}
    arrays, _ = from_bytes(build(header, b"abc" + np.array([5, -5], "<i4").tobytes()))
    assert arrays["b"].flags.aligned and arrays["b"].tolist() == [5, -5]


def test_every_truncation() -> None:
    data = to_bytes(ARRAYS, {"format": "1"})
    for length in range(len(data)):
        with pytest.raises(ModelError):
            from_bytes(data[:length])


@given(st.data())
def test_flipped_bytes_give_model_errors_or_arrays(data: Any) -> None:
    damaged = bytearray(to_bytes(ARRAYS, {"format": "1"}))
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with suppress(ModelError):
        from_bytes(bytes(damaged))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_programs_survive(case: Any) -> None:
    description, arrays = pack_program(case.program, "net")
    assert all(name.startswith("net.") for name in arrays)
    data = to_bytes(arrays, {"net": json.dumps(description)})
    arrays, metadata = from_bytes(data)
    program = unpack_program(json.loads(metadata["net"]), arrays)
    expected = run(case.program, case.inputs, case.vectors)
    for name, array in run(program, case.inputs, case.vectors).items():
        assert np.array_equal(array, expected[name])
    again, arrays = pack_program(program, "net")
    assert to_bytes(arrays, {"net": json.dumps(again)}) == data


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from(
        ["", "x", "y", "gain", "u8", "Conv", "Program", "net.c1.weight"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["type", "array", "name", "output"]), inner, max_size=3),
    ),
    max_leaves=5,
)  # fmt: skip


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    below = value.items() if isinstance(value, dict) else ()
    below = enumerate(value) if isinstance(value, list) else below
    return [path] + [p for key, item in below for p in _paths(item, (*path, key))]


@settings(max_examples=300)
@given(data=st.data())
def test_hostile_descriptions(data: Any) -> None:
    description, arrays = pack_program(CASES["program-analysis-small"].program, "net")
    *path, last = data.draw(st.sampled_from(_paths(description)[1:]))
    inner = description
    for key in path:
        inner = inner[key]
    if isinstance(inner, dict) and data.draw(st.booleans()):
        del inner[last]
    else:
        inner[last] = data.draw(JSON)
    with suppress(ModelError):
        unpack_program(description, arrays)


@pytest.mark.parametrize("description", [None, 7, "x", [], {}, {"type": "Input"}, {"array": "a"}])
def test_descriptions_that_are_no_program(description: Any) -> None:
    with pytest.raises(ModelError, match="valid Program"):
        unpack_program(description, {"a": np.zeros(3)})


def test_a_deep_description() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ModelError):
        unpack_program(deep, {})
    while deep:  # undo it step by step, so that freeing it does not recurse
        deep = deep[0]


def test_a_program_that_breaks_the_contract_is_a_model_error() -> None:
    description, arrays = pack_program(CASES["program-analysis-small"].program, "net")
    arrays["net.c1.bias"] = np.full_like(arrays["net.c1.bias"], 2**31 - 1)
    with pytest.raises(ModelError, match="accumulator bound"):
        unpack_program(description, arrays)
