"""The hardware against the vectors: a few of them; `lichen conformance --executor rtl` runs all."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("amaranth", reason="needs pip install 'lichen[rtl]'")

from lichen import conformance
from lichen.conformance import Vectors
from lichen.errors import DeviceError, UnsupportedError
from lichen.program import ops
from lichen.rtl import convolution, executor, simulate
from lichen.rtl.executor import RtlExecutor

try:
    simulate.verilator()
except DeviceError as error:
    pytest.skip(str(error), allow_module_level=True)
if not (shutil.which("clang++") or shutil.which("g++")):
    pytest.skip("needs a C++ compiler: apt-get install clang", allow_module_level=True)

CASES = (
    "program conv-ties-4-u8",
    "program transposed-3to5-k5-s2-4x7-s8-s16",
    "program add-ties-2",
    "program scale-vector-s16-u8-12",
    "program table-index-geometric-s8",
    "rans near-lanes-2-precision-13",
)
# Beside groups of several channels; sizes that padding or strides do not divide, outputs that no
# stage writes.
NO_HARDWARE = (
    "concat", "slice", "gdn", "conv-padding", "conv-4to6-4x4-s2", "conv-6to6-1x3",
    "program-outputs", "program-strided-input", "conv-8to8-3x3-s1-g8-9x17",
)  # fmt: skip


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    return Vectors()


@pytest.fixture(scope="module")
def rtl() -> RtlExecutor:
    return RtlExecutor()


@pytest.mark.parametrize("name", CASES)
def test_hardware_is_right(vectors: Vectors, rtl: RtlExecutor, name: str) -> None:
    (result,) = conformance.run(vectors, rtl, pattern=name)
    assert (result.problem, result.skipped) == ("", "")


def test_wrong_hardware_is_found(
    vectors: Vectors, rtl: RtlExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last bias of a convolution is loaded one too large."""
    contents = convolution.contents

    def wrong(*arguments: Any) -> list[bytes]:
        weights, parameters = contents(*arguments)
        last = np.frombuffer(parameters, "<u8").copy()
        last[-1] += 1 << 4  # the shift of conv-ties-4 is 4
        return [weights, last.tobytes()]

    monkeypatch.setattr(convolution, "contents", wrong)
    (result,) = conformance.run(vectors, rtl, pattern=CASES[0])
    assert "y differs" in result.problem


def test_what_has_no_hardware_is_said(vectors: Vectors, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the Programs: exactly those, found before anything is built."""

    class Built(Exception):
        pass

    def build(*arguments: Any) -> None:
        raise Built

    monkeypatch.setattr(executor, "Network", build)
    lacks = set()
    for case in vectors.select("program "):
        try:
            RtlExecutor().run(*conformance.read_program(vectors, case))
        except UnsupportedError:
            lacks.add(case["name"])
        except Built:
            pass
    assert lacks == {case["name"] for case in vectors.select("program ") if has_none(vectors, case)}


def has_none(vectors: Vectors, case: Any) -> bool:
    program, _, _ = conformance.read_program(vectors, case)
    grouped = any(
        op.groups > 1 and op.weight.shape[:2] != (op.groups, 1)
        for op in program.ops
        if isinstance(op, ops.Conv)
    )
    return grouped or case["name"].startswith(NO_HARDWARE)


def test_lanes_that_the_cores_do_not_have(vectors: Vectors, rtl: RtlExecutor) -> None:
    (result,) = conformance.run(vectors, rtl, pattern="rans lanes-8-precision-12")
    assert "1, 2 or 4 lanes" in result.skipped and "up to 6 lanes" in result.skipped


def test_a_damaged_substream_is_an_error(vectors: Vectors, rtl: RtlExecutor) -> None:
    (case,) = vectors.select(CASES[-1])
    data = bytes.fromhex(case["bytes"])

    def cut(coder: executor.RtlCoder, given: bytes, indices: NDArray[Any]) -> NDArray[np.int16]:
        return decode(coder, given[:-2], indices)

    decode = executor.RtlCoder.decode
    assert len(data) % 2 == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executor.RtlCoder, "decode", cut)
        (result,) = conformance.run(vectors, rtl, pattern=CASES[-1])
    assert "StreamError" in result.problem and "SHORT" in result.problem
