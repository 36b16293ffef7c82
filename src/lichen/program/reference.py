"""The definition of every operation: naive, int64, no floats. What all executors must equal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lichen.program import ops
from lichen.program.arithmetic import gdn_factor, round_shift, saturate
from lichen.program.check import check, check_inputs
from lichen.program.program import Program
from lichen.program.rewrite import subpixel

Array = NDArray[Any]


def run(
    program: Program, inputs: Mapping[str, Array], vectors: Mapping[str, Array] | None = None
) -> dict[str, Array]:
    """Run a Program and return its outputs by name.

    inputs: (C, H, W) arrays in the dtype of each Input. vectors: int32 (C,) for each Vector.
    Raises ContractError when the Program, a shape, a dtype or a vector's range is not allowed.
    """
    check(program)
    vectors = vectors or {}
    check_inputs(program, inputs, vectors)
    values = {input.name: np.asarray(inputs[input.name]) for input in program.inputs}
    for op in program.ops:
        values[op.output] = run_op(op, values, vectors)
    return {output.name: values[output.name] for output in program.outputs}


def run_op(op: ops.Op, values: Mapping[str, Array], vectors: Mapping[str, Array]) -> Array:
    """Run one operation of a checked Program on the tensors computed so far."""
    match op:
        case ops.Conv():
            return _conv(op, values[op.input])
        case ops.TransposedConv():
            conv, shuffle = subpixel(op)
            return _pixel_shuffle(_conv(conv, values[op.input]), shuffle.factor)
        case ops.PixelShuffle():
            return _pixel_shuffle(values[op.input], op.factor)
        case ops.PixelUnshuffle():
            return _pixel_unshuffle(values[op.input], op.factor)
        case ops.Add():
            a = values[op.a].astype(np.int64) << op.shift_a
            b = values[op.b].astype(np.int64) << op.shift_b
            return saturate(round_shift(a - b if op.subtract else a + b, op.shift), op.dtype)
        case ops.Concat():
            return np.concatenate([values[name] for name in op.inputs])
        case ops.Slice():
            return values[op.input][op.start : op.stop]
        case ops.Scale():
            m = vectors[op.multiplier] if isinstance(op.multiplier, str) else op.multiplier
            exact = values[op.input].astype(np.int64) * m.astype(np.int64)[:, None, None]
            return saturate(round_shift(exact, op.shift), op.dtype)
        case ops.Clamp():
            return np.clip(values[op.input], op.low, op.high).astype(values[op.input].dtype)
        case ops.GDN():
            return _gdn(op, values[op.input])
        case ops.TableIndex():
            return np.searchsorted(op.thresholds, values[op.input], "right").astype(np.uint8)


def _conv(op: ops.Conv, x: Array) -> Array:
    top, left, bottom, right = op.padding
    x = np.pad(x, ((0, 0), (top, bottom), (left, right)))
    outputs, group_inputs, kernel_h, kernel_w = op.weight.shape
    height = (x.shape[1] - kernel_h) // op.stride + 1
    width = (x.shape[2] - kernel_w) // op.stride + 1
    weight = op.weight.reshape(op.groups, -1, group_inputs, kernel_h, kernel_w).astype(np.int64)
    acc = np.zeros((outputs, height, width), np.int64) + op.bias[:, None, None]
    for dy in range(kernel_h):
        for dx in range(kernel_w):
            window = x[:, dy:, dx:][:, :: op.stride, :: op.stride][:, :height, :width]
            columns = window.astype(np.int64).reshape(op.groups, group_inputs, -1)
            acc += (weight[..., dy, dx] @ columns).reshape(acc.shape)
    return saturate(round_shift(acc, op.shift[:, None, None]), op.dtype)


def _pixel_shuffle(x: Array, r: int) -> Array:
    channels, height, width = x.shape
    phases = x.reshape(channels // r**2, r, r, height, width).transpose(0, 3, 1, 4, 2)
    return phases.reshape(channels // r**2, height * r, width * r)


def _pixel_unshuffle(x: Array, r: int) -> Array:
    channels, height, width = x.shape
    phases = x.reshape(channels, height // r, r, width // r, r).transpose(0, 2, 4, 1, 3)
    return phases.reshape(channels * r**2, height // r, width // r)


def _gdn(op: ops.GDN, x: Array) -> Array:
    x = x.astype(np.int64)
    u = np.minimum(65535, round_shift(x * x, op.square_shift)) if op.power == 2 else np.abs(x)
    sums = op.gamma.astype(np.int64) @ u.reshape(len(u), -1)
    n = op.beta.astype(np.int64)[:, None, None] + sums.reshape(x.shape)
    factor, total = gdn_factor(n, op.power, op.inverse, op.shift)
    return saturate(round_shift(x * factor, total), op.dtype)
