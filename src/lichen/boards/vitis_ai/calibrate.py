"""Choose fix positions as vai_q_pytorch does for the DPU: a board's picture can be foreseen.

    weights, biases   of five positions from the finest that holds the peak, the one of least
                      squared error
    activations       the same for each picture of the calibration, then the most frequent one
    inputs            the finest position that holds the peak of all pictures

(Xilinx/Vitis-AI, vai_q_pytorch: doc/Quant_Config.md, nndct_fix_kernels_cpu.cc cpu_diff_S.) Before,
channels of neighbouring convolutions are equalised (Nagel 2019, "Data-free quantization through
weight equalization and bias correction", section 4.1); after, biases take up the mean error of the
rounded weights (section 4.2): both are the quantizer's defaults. It may still choose otherwise in a
place; `quantize.py` in the exported folder is the authority.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lichen.boards.vitis_ai import dpu
from lichen.boards.vitis_ai import network as net
from lichen.boards.vitis_ai.dpu import MAX_BIAS, MAX_CUT, MAX_READ, Int8, Quantized
from lichen.boards.vitis_ai.network import Add, Conv, Deconv, Float, Network, Weighted
from lichen.errors import LichenError

CANDIDATES = 5
MAX_FIX = 12  # nndct's cap for 8 bits
Inputs = Mapping[str, Float]


def quantize(network: Network, batches: Sequence[Inputs]) -> Quantized:
    """Quantise a network on float inputs, each (C, H, W) by name. Raises LichenError for none."""
    if not batches:
        raise LichenError("calibration needs at least one picture")
    network = equalize(network)
    votes: dict[str, Counter[int]] = {name: Counter() for name in network.channels()}
    peaks: dict[str, float] = {feed.name: 0.0 for feed in network.feeds}
    means: dict[str, NDArray[np.float64]] = {}

    def see(name: str, value: Float) -> None:
        if name in peaks:
            peaks[name] = max(peaks[name], reach(value))
        else:
            votes[name][best_fix(value)] += 1
        mean = value.mean((1, 2), dtype=np.float64) / len(batches)
        means[name] = means[name] + mean if name in means else mean

    for batch in batches:
        net.run(network, batch, see)
    fixes = {
        name: finest(peaks[name]) if name in peaks else max(count, key=lambda f: (count[f], f))
        for name, count in votes.items()
    }
    q = Quantized(network, fixes, {}, {}, {}, {})
    return _with_weights(q, means)


def reach(x: NDArray[Any]) -> float:
    """Give the size that a position must hold: one step more is there below 0 than above."""
    return max(float(x.min()) / -128.5, float(x.max()) / 127.5)


def finest(size: float) -> int:
    """Give the finest position whose range holds `reach`."""
    if size <= 0:
        return MAX_FIX
    return min(MAX_FIX, math.floor(math.log2(1 / size)))


def to_fix(x: NDArray[Any], fix: int) -> Int8:
    """Round to int8, halves up."""
    return np.clip(np.floor(x * 2.0**fix + 0.5), -128, 127).astype(np.int8)


def best_fix(x: NDArray[Any]) -> int:
    """Give the position of least squared error, of CANDIDATES from the finest that holds all."""
    first = finest(reach(x))
    if x.size > 2**18:  # every nth value tells as much
        x = x.reshape(-1)[:: x.size // 2**17]
    found, least = first, math.inf
    for fix in range(first, min(first + CANDIDATES, MAX_FIX + 1)):
        error = float(np.square(to_fix(x, fix) * 2.0**-fix - x).sum(dtype=np.float64))
        if error < least:
            found, least = fix, error
    return found


def _with_weights(q: Quantized, means: Mapping[str, NDArray[np.float64]]) -> Quantized:
    """Round weights and biases, at positions that the DPU's shifts allow."""
    fixes = dict(q.fixes)
    weights: dict[str, Int8] = {}
    weight_fixes, bias_fixes = {}, {}
    biases: dict[str, Int8] = {}
    for node in q.network.nodes:
        if isinstance(node, Add):
            spread = max(fixes[node.a], fixes[node.b]) - MAX_READ
            fixes[node.name] = max(fixes[node.name], spread)
            continue
        fix = best_fix(node.weight)
        # the output is no finer than the products, and the accumulator not 2**16 times as fine
        fixes[node.name] = min(fixes[node.name], fix + fixes[node.input])
        fix = min(fix, MAX_CUT + fixes[node.name] - fixes[node.input])
        bias = corrected(node, node.bias, to_fix(node.weight, fix), fix, means[node.input])
        at = min(best_fix(bias) if bias.any() else MAX_FIX, fix + fixes[node.input])
        fix = min(fix, MAX_BIAS + at - fixes[node.input])
        weights[node.name], biases[node.name] = to_fix(node.weight, fix), to_fix(bias, at)
        weight_fixes[node.name], bias_fixes[node.name] = fix, at
    found = replace(
        q, fixes=fixes, weights=weights, biases=biases, weight_fixes=weight_fixes,
        bias_fixes=bias_fixes,
    )  # fmt: skip
    dpu.check(found)
    return found


def corrected(
    node: Weighted, bias: Float, rounded: Int8, fix: int, mean: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Take the mean error that rounded weights make off a bias; borders are not looked at."""
    error: NDArray[Any] = rounded * 2.0**-fix - node.weight
    taken: NDArray[np.float64]
    match node:
        case Conv() if node.groups > 1:
            taken = error.sum((1, 2, 3)) * mean
        case Conv():
            taken = error.sum((2, 3)) @ mean
        case Deconv():  # an output sees every stride-th tap
            taken = (error.sum((2, 3)).T @ mean) / node.stride**2
    return np.asarray(bias - taken, np.float64)


def equalize(network: Network) -> Network:
    """Bring the ranges of both sides of each channel between two convolutions together.

    In float the function stays: ReLU(s x) = s ReLU(x) for s > 0. Only where one convolution
    alone reads what the other makes.
    """
    nodes = {node.name: node for node in network.nodes}
    readers = Counter(name for node in network.nodes for name in network.sources(node))
    for name in list(nodes):
        second = nodes[name]
        if isinstance(second, Add) or second.input not in nodes:
            continue
        first = nodes[second.input]
        alone = readers[first.name] == 1 and first.name not in network.outputs
        if isinstance(first, Add) or not alone:
            continue
        nodes[first.name], nodes[name] = _equalized(first, second)
    return replace(network, nodes=tuple(nodes.values()))


def _equalized(first: Weighted, second: Weighted) -> tuple[Weighted, Weighted]:
    depthwise = isinstance(second, Conv) and second.groups > 1
    out = _peaks(first.weight, 0 if isinstance(first, Conv) else 1)
    into = _peaks(second.weight, 0 if isinstance(second, Deconv) or depthwise else 1)
    scale = np.ones_like(out)
    used = (out > 0) & (into > 0)
    scale[used] = np.sqrt(into[used] / out[used])  # the first layer's channels times this
    scale = np.clip(scale, 2.0**-8, 2.0**8).astype(np.float32)
    column = scale[:, None, None]
    grown = first.weight * (column[:, None] if isinstance(first, Conv) else column)
    by_rows = isinstance(second, Deconv) or depthwise
    shrunk = second.weight / (column[:, None] if by_rows else column)
    return (
        replace(first, weight=net.float32(grown), bias=net.float32(first.bias * scale)),
        replace(second, weight=net.float32(shrunk)),
    )


def _peaks(weight: Float, axis: int) -> Float:
    axes = tuple(a for a in range(4) if a != axis)
    return net.float32(np.abs(weight).max(axis=axes))
