"""The DPU's arithmetic, bit for bit as Vitis AI documents it: a quantised network and its executor.

A tensor is int8 with one fix position: real = q * 2**-fix. An operation of DPUCZDX8G gives

    convolution   clamp(round((acc + (b << shift_bias)) / 2**shift_cut))     acc, int32, exact
    addition      clamp(round(((a << la) + (b << lb)) / 2**shift))           to the finer input

with the ReLU before the rounding, clamp to -128..127 and

    shift_cut = fix_w + fix_in - fix_out     in 0..16
    shift_bias = fix_w + fix_in - fix_b      in min(0, -(24 - (8 + shift_cut)))..16
    la, lb = max(fix_a, fix_b) - fix_a or _b in 0..15;  min(fix_a, fix_b) - fix_out in -15..15

The rounding is half up, floor(x + 1/2). Sources: Xilinx/Vitis-AI, src/vai_library/cpu_task/ops
(conv2d-fix, depthwise-conv2d-fix, transposed-conv2d-fix, eltwise-fix), their common DPU_ROUND, and
vai_q_pytorch's fix_pos_adjust.py for the ranges. That source is AMD's software reference; nobody
here has compared it with the silicon.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lichen.boards.vitis_ai.network import Add, Network, Node, Weighted, accumulate
from lichen.errors import ContractError

Int8 = NDArray[np.int8]
MAX_CUT, MAX_BIAS, MAX_READ, MAX_WRITE = 16, 16, 15, 15


@dataclass(frozen=True, eq=False)
class Quantized:
    """A network with fix positions. fixes: of every tensor.

    weights, biases: int8 by node; weight_fixes, bias_fixes: theirs.
    """

    network: Network
    fixes: Mapping[str, int]
    weights: Mapping[str, Int8]
    biases: Mapping[str, Int8]
    weight_fixes: Mapping[str, int]
    bias_fixes: Mapping[str, int]


def round_half_up(x: NDArray[Any], shift: int) -> NDArray[Any]:
    """Divide integers by 2**shift and round, halves up: DPU_ROUND. Negative: multiply."""
    if shift <= 0:
        return x << -shift
    return (x + (1 << (shift - 1))) >> shift


def shifts(q: Quantized, node: Weighted) -> tuple[int, int]:
    """Give shift_cut and shift_bias of a convolution."""
    fix = q.weight_fixes[node.name] + q.fixes[node.input]
    return fix - q.fixes[node.name], fix - q.bias_fixes[node.name]


def alignment(q: Quantized, node: Add) -> tuple[int, int, int]:
    """Give the left shifts of an addition's inputs and the right shift of their sum."""
    a, b = q.fixes[node.a], q.fixes[node.b]
    fine = max(a, b)
    return fine - a, fine - b, fine - q.fixes[node.name]


def check(q: Quantized) -> None:
    """Raise ContractError unless every shift is one that the DPU has."""
    for node in q.network.nodes:
        if isinstance(node, Add):
            left_a, left_b, _ = alignment(q, node)
            write = min(q.fixes[node.a], q.fixes[node.b]) - q.fixes[node.name]
            if max(left_a, left_b) > MAX_READ or abs(write) > MAX_WRITE:
                raise ContractError(
                    f"{node.name}: shift_read must be 0..{MAX_READ} and shift_write "
                    f"-{MAX_WRITE}..{MAX_WRITE}, found {max(left_a, left_b)} and {write}"
                )
            continue
        cut, bias = shifts(q, node)
        lowest = min(0, -(24 - (8 + cut)))
        if not 0 <= cut <= MAX_CUT or not lowest <= bias <= MAX_BIAS:
            raise ContractError(
                f"{node.name}: shift_cut must be 0..{MAX_CUT} and shift_bias {lowest}..{MAX_BIAS}, "
                f"found {cut} and {bias}"
            )


def run_node(q: Quantized, node: Node, values: Mapping[str, Int8]) -> Int8:
    """Run one operation on int8 tensors (C, H, W)."""
    if isinstance(node, Add):
        left_a, left_b, shift = alignment(q, node)
        a: NDArray[np.int32] = values[node.a].astype(np.int32)
        b: NDArray[np.int32] = values[node.b].astype(np.int32)
        total: NDArray[Any] = (a << left_a) + (b << left_b)  # at most 2**23
    else:
        shift, left = shifts(q, node)
        wide = np.int32 if left >= 0 else np.int64  # the sums fit in int32; shifted ones need not
        total = accumulate(node, values[node.input], q.weights[node.name]).astype(wide)
        bias: NDArray[Any] = q.biases[node.name].astype(wide)[:, None, None]
        # A bias finer than the products has its digits kept: both go to the finer grid.
        total = total + (bias << left) if left >= 0 else (total << -left) + bias
        shift += max(0, -left)
    if node.relu:
        total = np.maximum(total, 0)
    found: Int8 = np.clip(round_half_up(total, shift), -128, 127).astype(np.int8)
    return found


def run(q: Quantized, inputs: Mapping[str, NDArray[Any]]) -> dict[str, Int8]:
    """Run a quantised network on int8 inputs (C, H, W) at the fix positions of its feeds."""
    values: dict[str, Int8] = {}
    last = {name: number for number, node in enumerate(q.network.nodes)
            for name in q.network.sources(node)}  # fmt: skip
    for feed in q.network.feeds:
        given = np.asarray(inputs[feed.name])
        if given.dtype != np.int8 or given.ndim != 3 or len(given) != feed.channels:
            raise ContractError(
                f"{q.network.name} reads {feed.name} as int8 ({feed.channels}, H, W), not "
                f"{given.dtype} {given.shape}"
            )
        values[feed.name] = given
    for number, node in enumerate(q.network.nodes):
        values[node.name] = run_node(q, node, values)
        for name in q.network.sources(node):
            if last[name] == number and name not in q.network.outputs:
                values.pop(name, None)
    return {name: values[name] for name in q.network.outputs}
