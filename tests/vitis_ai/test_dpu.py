"""The DPU's arithmetic against a scalar one, written from the documents with Python's integers."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from lichen.boards.vitis_ai import dpu
from lichen.boards.vitis_ai.dpu import Quantized
from lichen.boards.vitis_ai.network import Add, Conv, Deconv, Feed, Network
from lichen.errors import ContractError


def dpu_round(x: Fraction) -> int:
    """DPU_ROUND: halves of negative numbers go up, the others away from zero."""
    half = Fraction(1, 2)
    if x < 0 and x - (x.numerator // x.denominator) == half:
        return x.numerator // x.denominator + 1
    size = abs(x) + half
    return (size.numerator // size.denominator) * (1 if x >= 0 else -1)


@pytest.mark.parametrize(
    ("numerator", "wanted"), [(5, 3), (-5, -2), (3, 2), (-3, -1), (1, 1), (-1, 0), (4, 2), (-4, -2)]
)
def test_halves_go_up(numerator: int, wanted: int) -> None:
    assert dpu.round_half_up(np.array([numerator]), 1)[0] == wanted
    assert dpu_round(Fraction(numerator, 2)) == wanted


def finish(total: Fraction, relu: bool) -> int:
    return max(-128, min(127, dpu_round(max(total, Fraction(0)) if relu else total)))


def scalar_conv(q: Quantized, node: Conv, x: np.ndarray) -> np.ndarray:
    w, b = q.weights[node.name], q.biases[node.name]
    _, inputs, k, _ = w.shape
    cut, left = dpu.shifts(q, node)
    p, s = node.padding, node.stride
    rows, columns = ((n + 2 * p - k) // s + 1 for n in x.shape[1:])
    y = np.zeros((len(w), rows, columns), np.int8)
    for o, i, j in np.ndindex(*y.shape):
        total = 0
        first = o * inputs if node.groups > 1 else 0
        for c, dy, dx in np.ndindex(inputs, k, k):
            r, t = i * s + dy - p, j * s + dx - p
            if 0 <= r < x.shape[1] and 0 <= t < x.shape[2]:
                total += int(w[o, c, dy, dx]) * int(x[first + c, r, t])
        exact = (total + Fraction(int(b[o])) * Fraction(2) ** left) / 2**cut
        y[o, i, j] = finish(exact, node.relu)
    return y


def scalar_deconv(q: Quantized, node: Deconv, x: np.ndarray) -> np.ndarray:
    w, b = q.weights[node.name], q.biases[node.name]
    outputs, k = w.shape[1:3]
    cut, left = dpu.shifts(q, node)
    p, s = node.padding, node.stride
    rows, columns = ((n - 1) * s - 2 * p + k for n in x.shape[1:])
    sums = np.zeros((outputs, rows, columns), object)
    for c, r, t in np.ndindex(*x.shape):
        for o, dy, dx in np.ndindex(outputs, k, k):
            i, j = r * s + dy - p, t * s + dx - p
            if 0 <= i < rows and 0 <= j < columns:
                sums[o, i, j] += int(w[c, o, dy, dx]) * int(x[c, r, t])
    y = np.zeros(sums.shape, np.int8)
    for o, i, j in np.ndindex(*sums.shape):
        exact = (sums[o, i, j] + Fraction(int(b[o])) * Fraction(2) ** left) / 2**cut
        y[o, i, j] = finish(exact, node.relu)
    return y


def one(node: Conv | Deconv, channels: int, cut: int, left: int, seed: int) -> Quantized:
    """A network of one layer with these shifts, its integers at random with extremes among them."""
    rng = np.random.default_rng(seed)
    weight = rng.integers(-128, 128, node.weight.shape).astype(np.int8)
    weight.flat[:2] = -128, 127
    outputs = node.weight.shape[0 if isinstance(node, Conv) else 1]
    bias = rng.integers(-128, 128, outputs).astype(np.int8)
    network = Network("n", (Feed("x", channels, 1),), (node,), (node.name,))
    # fix_w + fix_in = 12
    return Quantized(
        network, {"x": 5, node.name: 12 - cut}, {node.name: weight}, {node.name: bias},
        {node.name: 7}, {node.name: 12 - left},
    )  # fmt: skip


CONVS = {
    "1x1": Conv("c", "x", np.zeros((3, 4, 1, 1), np.float32), np.zeros(3), 1, 0, 1, False),
    "3x3, ReLU": Conv("c", "x", np.zeros((2, 4, 3, 3), np.float32), np.zeros(2), 1, 1, 1, True),
    "5x5 /2": Conv("c", "x", np.zeros((2, 4, 5, 5), np.float32), np.zeros(2), 2, 2, 1, False),
    "depthwise": Conv("c", "x", np.zeros((4, 1, 3, 3), np.float32), np.zeros(4), 1, 1, 4, True),
}


@pytest.mark.parametrize("name", CONVS)
@pytest.mark.parametrize(("cut", "left"), [(0, 0), (7, 3), (10, 8), (9, -2), (16, 16)])
def test_convolution(name: str, cut: int, left: int) -> None:
    q = one(CONVS[name], 4, cut, left, seed=cut)
    x = np.random.default_rng(1).integers(-128, 128, (4, 6, 7)).astype(np.int8)
    found = dpu.run(q, {"x": x})["c"]
    assert np.array_equal(found, scalar_conv(q, CONVS[name], x))


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(6, 2, 2), (2, 2, 0), (12, 4, 4)])
def test_transposed_convolution(kernel: int, stride: int, padding: int) -> None:
    weight = np.zeros((3, 2, kernel, kernel), np.float32)
    node = Deconv("d", "x", weight, np.zeros(2), stride, padding, False)
    q = one(node, 3, 9, 4, seed=kernel)
    x = np.random.default_rng(2).integers(-128, 128, (3, 4, 5)).astype(np.int8)
    found = dpu.run(q, {"x": x})["d"]
    assert found.shape == (2, 4 * stride, 5 * stride)
    assert np.array_equal(found, scalar_deconv(q, node, x))


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("fix_a", "fix_b", "fix_y"), [(5, 5, 5), (7, 4, 5), (3, 8, 2), (4, 4, 6)])
def test_addition(fix_a: int, fix_b: int, fix_y: int, relu: bool) -> None:
    feeds = Feed("a", 2, 1), Feed("b", 2, 1)
    network = Network("n", feeds, (Add("y", "a", "b", relu),), ("y",))
    q = Quantized(network, {"a": fix_a, "b": fix_b, "y": fix_y}, {}, {}, {}, {})
    rng = np.random.default_rng(3)
    a, b = (rng.integers(-128, 128, (2, 9, 9)).astype(np.int8) for _ in range(2))
    found = dpu.run(q, {"a": a, "b": b})["y"]
    for place in np.ndindex(*a.shape):
        real = Fraction(int(a[place])) / 2**fix_a + Fraction(int(b[place])) / 2**fix_b
        assert found[place] == finish(real * 2**fix_y, relu)


@pytest.mark.parametrize(("cut", "left"), [(-1, 0), (17, 0), (8, 17), (8, -9)])
def test_shifts_that_the_dpu_has_not(cut: int, left: int) -> None:
    with pytest.raises(ContractError, match=r"shift_cut must be 0\.\.16 and shift_bias"):
        dpu.check(one(CONVS["1x1"], 4, cut, left, seed=0))


def test_inputs_are_checked() -> None:
    q = one(CONVS["1x1"], 4, 8, 0, seed=0)
    with pytest.raises(ContractError, match=r"reads x as int8 \(4, H, W\), not int16"):
        dpu.run(q, {"x": np.zeros((4, 2, 2), np.int16)})
