"""The reference against independent definitions: by hand, by torch, by exact rationals."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from harness import cases
from torch.nn import functional

from lichen.program import Input, Output, Program, ops, run
from lichen.program.arithmetic import DTYPE_RANGE, round_shift, saturate
from lichen.program.rewrite import subpixel

CASES = cases()


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """The tensors are small: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _one(op: ops.Op, **arrays: np.ndarray) -> list[int]:
    """Run one operation on (C, H, W) arrays; the output, flat."""
    names = {np.dtype(np.uint8): "u8", np.dtype(np.int8): "s8", np.dtype(np.int16): "s16"}
    inputs = tuple(Input(name, len(a), names[a.dtype], 0) for name, a in arrays.items())
    program = Program("hand", inputs, (), (op,), (Output("y", 0),))
    return run(program, arrays)["y"].ravel().tolist()


def _row(*values: int, dtype: type = np.int8) -> np.ndarray:
    return np.array(values, dtype).reshape(1, 1, -1)


def test_conv_by_hand() -> None:
    op = ops.Conv(
        "y", "x", np.array([[[[1, -2, 3]]], [[[0, 1, 0]]]], np.int8), np.array([1, -6], np.int32),
        np.array([1, 0], np.uint8), 1, (0, 1, 0, 1), 1, "s8",
    )  # fmt: skip
    # sums 1 + (-10 + 18), 1 + (5 - 12 + 21), 1 + (6 - 14): 9, 15, -7; halves go to even
    assert _one(op, x=_row(5, 6, 7)) == [4, 8, -4, -1, 0, 1]


def test_transposed_conv_by_hand() -> None:
    weight = np.array([[[[0, 0, 0], [1, 10, 100], [0, 0, 0]]]], np.int8)
    op = ops.TransposedConv(
        "y", "x", weight, np.array([0], np.int32), np.array([0], np.uint8), 2, 1, 1, "s16"
    )
    # input i adds 1, 10, 100 to outputs 2i-1, 2i, 2i+1
    assert _one(op, x=_row(1, 2, 3)) == [10, 102, 20, 203, 30, 300] + [0] * 6


def test_shuffles_by_hand() -> None:
    x = np.arange(8, dtype=np.uint8).reshape(8, 1, 1)
    assert _one(ops.PixelShuffle("y", "x", 2), x=x) == [0, 1, 2, 3, 4, 5, 6, 7]
    x = np.arange(8, dtype=np.uint8).reshape(1, 2, 4)
    assert _one(ops.PixelUnshuffle("y", "x", 2), x=x) == [0, 2, 1, 3, 4, 6, 5, 7]


def test_add_by_hand() -> None:
    a, b = _row(1, 2, 3, -128), _row(2, 1, 7, 127)
    assert _one(ops.Add("y", "a", "b", 0, 0, 1, False, "s8"), a=a, b=b) == [2, 2, 5, 0]
    assert _one(ops.Add("y", "a", "b", 1, 0, 1, True, "s8"), a=a, b=b) == [0, 2, 0, -128]
    assert _one(ops.Add("y", "a", "b", 0, 4, 0, True, "u8"), a=a, b=b) == [0, 0, 0, 0]


def test_channels_by_hand() -> None:
    x = np.arange(6, dtype=np.int8).reshape(3, 1, 2)
    assert _one(ops.Slice("y", "x", 1, 2), x=x) == [2, 3]
    assert _one(ops.Concat("y", ("x", "b")), x=x, b=_row(9, 8)) == [0, 1, 2, 3, 4, 5, 9, 8]


def test_scale_clamp_and_index_by_hand() -> None:
    x = _row(-3, -1, 0, 1, 5)
    scale = ops.Scale("y", "x", np.array([3], np.int32), 1, "s8")
    assert _one(scale, x=x) == [-4, -2, 0, 2, 8]
    assert _one(ops.Clamp("y", "x", -2, 1), x=x) == [-2, -1, 0, 1, 1]
    index = ops.TableIndex("y", "x", np.array([-1, 0, 0, 5], np.int32))
    assert _one(index, x=x) == [0, 1, 3, 3, 4]


def test_gdn_by_hand() -> None:
    beta, gamma = np.array([4], np.int32), np.array([[3]], np.uint8)
    x = _row(0, 1, 2, -2, 10, dtype=np.int16)
    # power 2: n = 4 + 3 * x**2 = 4, 7, 16, 16, 304; outputs times 2**8
    op = ops.GDN("y", "x", beta, gamma, 2, False, 0, -8, "s16")
    assert _one(op, x=x) == [0, 97, 128, -128, 147]
    op = ops.GDN("y", "x", beta, gamma, 2, True, 0, 1, "s16")
    assert _one(op, x=x) == [0, 1, 4, -4, 87]
    # power 1: n = 4 + 3 * |x| = 4, 7, 10, 10, 34
    op = ops.GDN("y", "x", beta, gamma, 1, False, 0, -8, "s16")
    assert _one(op, x=x) == [0, 37, 51, -51, 75]
    op = ops.GDN("y", "x", beta, gamma, 1, True, 0, 1, "s16")
    assert _one(op, x=x) == [0, 4, 10, -10, 170]
    # u is held to 65535, so that n = 65664 = 256.5 * 2**8, whose half goes to the even mantissa
    op = ops.GDN("y", "x", np.array([129], np.int32), np.array([[1]], np.uint8), 2, False, 14, -8,
                 "s16")  # fmt: skip
    assert _one(op, x=_row(-32768, dtype=np.int16)) == [-32768]


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.name.startswith("gdn-")], ids=lambda case: case.name
)
def test_gdn_approximates_the_papers_formula(case) -> None:
    """Within the factor's error of a tenth of a percent, a half for the rounding, and clipping."""
    (op,) = case.program.ops
    x = case.inputs["x"].astype(np.int64)
    u = np.abs(x) if op.power == 1 else np.minimum(65535, round_shift(x * x, op.square_shift))
    sums = np.einsum("ij,jhw->ihw", op.gamma.astype(np.int64), u)
    n = (op.beta[:, None, None] + sums).astype(np.float64)
    exact = x * n ** ((1 if op.inverse else -1) / op.power) * 2.0**-op.shift
    low, high = DTYPE_RANGE[op.dtype]
    error = np.abs(run(case.program, case.inputs)["y"] - np.clip(exact, low, high))
    assert (error <= 0.5 + np.abs(exact) * float(Fraction(102, 100) / 1024)).all()


def _float(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).double()[None]


def _finish(sums: torch.Tensor, op: ops.Conv | ops.TransposedConv) -> np.ndarray:
    exact = sums[0].numpy().astype(np.int64) + op.bias[:, None, None]
    return saturate(round_shift(exact, op.shift[:, None, None]), op.dtype)


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.name.startswith("transposed-")], ids=lambda case: case.name
)
def test_transposed_conv_is_torchs(case) -> None:
    (op,) = case.program.ops
    sums = functional.conv_transpose2d(
        _float(case.inputs["x"]), _float(op.weight)[0], stride=op.stride, padding=op.padding,
        output_padding=op.output_padding,
    )  # fmt: skip
    found = run(case.program, case.inputs)["y"]
    assert found.shape[1:] == tuple(op.stride * size for size in case.inputs["x"].shape[1:])
    assert np.array_equal(found, _finish(sums, op))


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.name.startswith("conv-")], ids=lambda case: case.name
)
def test_conv_is_torchs(case) -> None:
    (op,) = case.program.ops
    top, left, bottom, right = op.padding
    x = functional.pad(_float(case.inputs["x"]), (left, right, top, bottom))
    sums = functional.conv2d(x, _float(op.weight)[0], stride=op.stride, groups=op.groups)
    assert np.array_equal(run(case.program, case.inputs)["y"], _finish(sums, op))


@pytest.mark.parametrize(
    "case", [c for c in CASES if "shuffle-" in c.name], ids=lambda case: case.name
)
def test_shuffles_are_torchs(case) -> None:
    (op,) = case.program.ops
    shuffle = isinstance(op, ops.PixelShuffle)
    function = functional.pixel_shuffle if shuffle else functional.pixel_unshuffle
    expected = function(torch.from_numpy(case.inputs["x"].astype(np.int32)), op.factor)
    assert np.array_equal(run(case.program, case.inputs)["y"], expected.numpy())


def test_subpixel_keeps_every_tap_once() -> None:
    weight = np.arange(1, 2 * 3 * 25 + 1).reshape(2, 3, 5, 5).astype(np.int8)
    op = ops.TransposedConv(
        "y", "x", weight, np.arange(3, dtype=np.int32), np.arange(3, dtype=np.uint8), 2, 2, 1, "s8"
    )
    conv, shuffle = subpixel(op)
    assert conv.weight.shape == (12, 2, 3, 3)
    assert conv.padding == (1, 1, 1, 1)
    assert sorted(conv.weight[conv.weight != 0]) == sorted(weight[weight != 0])
    assert conv.bias.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert (conv.output, shuffle) == ("y.phases", ops.PixelShuffle("y", "y.phases", 2))


def test_the_contract_names_every_operation_and_real_cases() -> None:
    text = (Path(__file__).parents[2] / "docs" / "contract.md").read_text(encoding="utf-8")
    cited = set(re.findall(r"`([a-z]+-[a-z0-9-]*)`", text))
    assert all(any(case.name.startswith(name) for case in CASES) for name in cited), cited
    kinds = {name.split("-")[0] for name in cited}
    assert all(case.name.split("-")[0] in kinds for case in CASES)
    for op in get_args(ops.Op):
        assert f"| {op.__name__} |" in text
