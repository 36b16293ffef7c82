"""Cases for every operation, and the comparison of an executor with the reference.

`cases()` is deterministic: random values from fixed seeds, and the extremes by hand. Each case's
name starts with its operation ("conv-...", "gdn-..."), as docs/contract.md cites them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lichen.executors import Executor
from lichen.program import Input, Output, Program, Vector, ops, run
from lichen.program.arithmetic import DTYPE_RANGE, NUMPY_DTYPE
from lichen.program.check import accumulator_bound
from lichen.program.ops import DType, Op

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Case:
    """A Program and what to run it on."""

    name: str
    program: Program
    inputs: Mapping[str, Array]
    vectors: Mapping[str, Array] = field(default_factory=dict)


def compare(executor: Executor, case: Case) -> None:
    """Raise AssertionError with the first difference from the reference, if there is one."""
    before = {name: array.copy() for name, array in case.inputs.items()}
    found = executor.run(case.program, case.inputs, case.vectors)
    expected = _expected(case)
    for name, array in case.inputs.items():
        assert np.array_equal(array, before[name]), f"{executor.name} changed input {name!r}"
    assert found.keys() == expected.keys(), f"outputs {sorted(found)}, not {sorted(expected)}"
    if any(_difference(expected[name], found[name]) for name in expected):
        raise AssertionError(f"{executor.name}, {case.name}: {_first_difference(executor, case)}")


@cache
def _expected(case: Case) -> dict[str, Array]:
    return run(case.program, case.inputs, case.vectors)


def _first_difference(executor: Executor, case: Case) -> str:
    """Run again with every tensor as an output, and describe the first that differs."""
    names = dict.fromkeys([op.output for op in case.program.ops])
    exposed = replace(case.program, outputs=tuple(Output(name, 0) for name in names))
    found = executor.run(exposed, case.inputs, case.vectors)
    expected = run(exposed, case.inputs, case.vectors)
    for number, op in enumerate(case.program.ops):
        difference = _difference(expected[op.output], found[op.output])
        if difference:
            return f"operation {number}, {type(op).__name__} {op.output!r}{difference}"
    plain = executor.run(case.program, case.inputs, case.vectors)
    differences = [f"{name!r}{_difference(_expected(case)[name], plain[name])}" for name in plain]
    return "only while inner tensors are not outputs: " + "; ".join(differences)


def _difference(expected: Array, found: Array) -> str:
    if expected.dtype != found.dtype or expected.shape != found.shape:
        return f": expected {expected.dtype} {expected.shape}, found {found.dtype} {found.shape}"
    wrong = np.argwhere(expected != found)
    if len(wrong) == 0:
        return ""
    at = tuple(int(i) for i in wrong[0])
    return (
        f" at {at}: expected {expected[at]}, found {found[at]} "
        f"({len(wrong)} of {expected.size} values differ)"
    )


def cases() -> list[Case]:
    """Return every case, in the order of `ops`."""
    generators = (
        _conv_random, _conv_extreme, _conv_ties, _transposed, _shuffles, _add, _channels,
        _scale, _clamp, _gdn, _table_index, _programs,
    )  # fmt: skip
    return [case for generator in generators for case in generator()]


# Building blocks


def values(rng: np.random.Generator, dtype: DType, shape: tuple[int, ...], kind: str) -> Array:
    """Random values of a type: "random" over all of it, "extreme" at its ends, 0 and 1."""
    low, high = DTYPE_RANGE[dtype]
    if kind == "extreme":
        return rng.choice([low, high, low, high, 0, 1], shape).astype(NUMPY_DTYPE[dtype])
    return rng.integers(low, high + 1, shape).astype(NUMPY_DTYPE[dtype])


def single(name: str, op: Op, dtypes: Mapping[str, DType], arrays: Mapping[str, Array],
           vectors: Mapping[str, Array] | None = None) -> Case:  # fmt: skip
    """A case of one operation."""
    vectors = vectors or {}
    program = Program(
        name=name,
        inputs=tuple(Input(n, len(arrays[n]), dtypes[n], 0) for n in arrays),
        vectors=tuple(Vector(n, len(vectors[n])) for n in vectors),
        ops=(op,),
        outputs=(Output(op.output, 0),),
    )
    return Case(name, program, arrays, vectors)


def conv(name: str, rng: np.random.Generator, x: Array, dtype: DType, weight: Array, *,
         out: DType, shift: Array | int | None = None, bias: Array | int | None = None,
         stride: int = 1, padding: ops.Padding = (0, 0, 0, 0),
         groups: int = 1) -> Case:  # fmt: skip
    """A case of one Conv. Without a shift, most values land inside the output type."""
    outputs = len(weight)
    if bias is None:
        bias = rng.integers(-(2**15), 2**15, outputs)
    op = ops.Conv(
        output="y", input="x", weight=weight.astype(np.int8),
        bias=np.broadcast_to(np.asarray(bias), outputs).astype(np.int32),
        shift=np.zeros(outputs, np.uint8), stride=stride, padding=padding, groups=groups,
        dtype=out,
    )  # fmt: skip
    if shift is None:
        top = accumulator_bound(op, int(np.abs(x.astype(np.int64)).max()))
        bits = 14 if out == "s16" else 6
        shift = np.maximum(0, np.floor(np.log2(top + 1)).astype(int) - bits)
        shift = np.clip(shift - rng.integers(0, 4, outputs), 0, 31)
    shifts = np.broadcast_to(np.asarray(shift), outputs).astype(np.uint8)
    return single(name, replace(op, shift=shifts), {"x": dtype}, {"x": x})


# Operations


def _conv_random() -> Iterator[Case]:
    # (inputs, outputs, kernel h, kernel w, stride, groups, H, W); "same" padding where odd
    shapes = [
        (1, 1, 1, 1, 1, 1, 1, 1), (3, 8, 1, 1, 1, 1, 1, 9), (8, 3, 1, 1, 1, 1, 7, 1),
        (16, 16, 1, 1, 1, 1, 8, 8), (64, 48, 1, 1, 1, 1, 5, 33), (17, 19, 1, 1, 1, 1, 6, 7),
        (5, 7, 1, 1, 2, 1, 9, 11), (12, 16, 2, 2, 2, 1, 8, 10), (3, 5, 2, 2, 1, 1, 5, 6),
        (3, 16, 3, 3, 1, 1, 16, 17), (16, 16, 3, 3, 1, 1, 1, 1), (16, 3, 3, 3, 1, 1, 1, 20),
        (32, 32, 3, 3, 1, 1, 9, 35), (33, 31, 3, 3, 1, 1, 5, 18), (8, 8, 3, 3, 2, 1, 11, 13),
        (48, 64, 3, 3, 2, 1, 16, 32), (4, 6, 4, 4, 4, 1, 16, 20), (4, 6, 4, 4, 2, 1, 9, 10),
        (3, 12, 5, 5, 2, 1, 17, 15), (12, 4, 5, 5, 1, 1, 6, 21), (20, 24, 5, 5, 2, 1, 16, 64),
        (3, 4, 6, 6, 1, 1, 7, 8), (3, 4, 6, 6, 3, 1, 13, 12), (6, 6, 1, 3, 1, 1, 5, 19),
        (6, 6, 3, 1, 1, 1, 12, 5), (6, 6, 5, 2, 2, 1, 12, 9), (2, 2, 7, 7, 1, 1, 7, 7),
        (8, 8, 3, 3, 1, 8, 9, 17), (32, 32, 3, 3, 2, 32, 10, 33), (64, 64, 5, 5, 1, 64, 6, 8),
        (7, 14, 3, 3, 1, 7, 6, 9), (16, 8, 3, 3, 1, 2, 8, 9), (12, 24, 1, 1, 1, 4, 6, 16),
        (40, 40, 5, 5, 2, 5, 9, 10), (33, 33, 4, 4, 1, 33, 8, 9), (128, 32, 1, 1, 1, 1, 4, 17),
    ]  # fmt: skip
    types: list[DType] = ["u8", "s8", "s16"]
    for number, (i, o, kh, kw, stride, groups, h, w) in enumerate(shapes):
        for turn, kind in enumerate(("random", "extreme")):
            rng = np.random.default_rng([number, turn])
            for dtype in types:
                out = types[(number + turn + types.index(dtype)) % 3]
                limits = (-128, 127, 127, -127) if kind == "extreme" else range(-128, 128)
                weight = rng.choice(np.array(limits), (o, i // groups, kh, kw))
                # asymmetric where the kernel is even, and at times without any padding
                padding = (kh // 2, kw // 2, (kh - 1) // 2, (kw - 1) // 2)
                if number % 4 == 3 and h >= kh and w >= kw:
                    padding = (0, 0, 0, 0)
                x = values(rng, dtype, (i, h, w), kind)
                name = f"conv-{i}to{o}-{kh}x{kw}-s{stride}-g{groups}-{h}x{w}-{dtype}-{out}-{kind}"
                yield conv(name, rng, x, dtype, weight, out=out, stride=stride, padding=padding,
                           groups=groups)  # fmt: skip


def _conv_extreme() -> Iterator[Case]:
    rng = np.random.default_rng(1)
    # Every shift at once, in each output type, on accumulators of every size.
    for out in ("u8", "s8", "s16"):
        weight = rng.integers(-128, 128, (32, 64, 1, 1))
        bias = rng.integers(-(2**30), 2**30, 32) // 2 ** rng.integers(0, 30, 32)
        for dtype in ("u8", "s8", "s16"):
            x = values(rng, dtype, (64, 3, 11), "random")
            yield conv(f"conv-shifts-0-to-31-{dtype}-{out}", rng, x, dtype, weight, out=out,
                       shift=np.arange(32), bias=bias)  # fmt: skip
    # All products at one end: the largest sums of 8-bit pairs, where saturating kernels fail.
    for dtype in ("u8", "s8"):
        for end in DTYPE_RANGE[dtype]:
            for weights in (-128, 127):
                x = np.full((72, 6, 19), end, NUMPY_DTYPE[dtype])
                weight = np.full((9, 72, 3, 3), weights)
                yield conv(f"conv-all-{end}-times-{weights}-{dtype}", rng, x, dtype, weight,
                           out="s16", padding=(1, 1, 1, 1), shift=np.arange(4, 13),
                           bias=np.arange(9) * 3 + 1)  # fmt: skip
    # Sums on both sides of 2**24, exact in float32 and not, one beside a tie of the rounding.
    for taps in (518, 519):  # 255 * 127 * 518 < 2**24 < 255 * 127 * 519
        top = 255 * 127 * taps
        near = [multiple * 1024 + 512 + d for multiple in range(-3, 1) for d in (-1, 0, 1)]
        x = np.full((taps, 2, 5), 255, np.uint8)
        x[:, 1, 1::2] -= rng.integers(0, 2, (taps, 2), np.uint8)
        yield conv(f"conv-float32-limit-{taps}-taps", rng, x, "u8",
                   np.full((len(near), taps, 1, 1), 127), out="s16", shift=10,
                   bias=np.array(near) - top % 1024)  # fmt: skip
    # 16-bit values in sums below 2**24: exact in float32, but not with bfloat16 or TF32 products.
    x = values(rng, "s16", (64, 16, 16), "random")
    yield conv("conv-s16-float32", rng, x, "s16", rng.integers(-7, 8, (64, 64, 1, 1)), out="s16",
               shift=5)  # fmt: skip
    # Just inside int32: 511 taps of -128 * -32768, and of 127 * -32768 the other way.
    x = np.full((511, 1, 3), -32768, np.int16)
    x[:, 0, 1] = 32767
    weight = np.full((3, 511, 1, 1), -128)
    weight[1] = 127
    yield conv("conv-int32-limit", rng, x, "s16", weight, out="s16",
               shift=np.array([16, 16, 17]), bias=[-2, 1, 0])  # fmt: skip
    # Bytes of s16 values: carries between the low and the high byte.
    x = np.array([-32768, -257, -256, -255, -129, -128, -1, 0, 1, 127, 128, 255, 256, 32767])
    weight = rng.integers(-128, 128, (5, 1, 3, 3))
    yield conv("conv-s16-bytes", rng, x.astype(np.int16).reshape(1, 2, 7), "s16", weight,
               out="s16", padding=(1, 1, 1, 1), shift=8)  # fmt: skip
    # Padding on one side only, and as wide as the kernel allows.
    x = values(rng, "s8", (3, 5, 4), "random")
    for padding in ((0, 2, 4, 0), (4, 4, 4, 4), (0, 0, 0, 1)):
        name = "conv-padding-" + "-".join(map(str, padding))
        yield conv(name, rng, x, "s8", rng.integers(-128, 128, (4, 3, 5, 5)), out="s8",
                   padding=padding if padding[3] != 1 else (0, 1, 0, 1), stride=2)  # fmt: skip


def _conv_ties() -> Iterator[Case]:
    # Weights and biases are multiples of 2**(shift - 1), so that half of all sums are ties.
    for shift in (1, 2, 4, 7):
        for out in ("u8", "s8", "s16"):
            rng = np.random.default_rng(shift)
            step = 2 ** (shift - 1)
            weight = rng.integers(-128 // step, 127 // step + 1, (16, 4, 3, 3)) * step
            bias = rng.integers(-200, 200, 16) * step
            x = rng.integers(-3, 4, (4, 9, 17)).astype(np.int8)
            yield conv(f"conv-ties-{shift}-{out}", rng, x, "s8", weight, out=out, shift=shift,
                       bias=bias, padding=(1, 1, 1, 1))  # fmt: skip
    # Ties of the large shifts come from the bias: 0.5, 1.5, 2.5 and their negatives.
    shifts, biases = [], []
    for shift in range(8, 30):
        for halves in (1, 3, 5) if shift < 29 else (1, 3):
            shifts += [shift, shift]
            biases += [halves << (shift - 1), -(halves << (shift - 1))]
    x = np.array([[[0, 1, -1]]], np.int8)
    yield conv("conv-ties-8-to-29", np.random.default_rng(0), x, "s8",
               np.ones((len(shifts), 1, 1, 1)), out="s8", shift=np.array(shifts),
               bias=np.array(biases))  # fmt: skip


def _transposed() -> Iterator[Case]:
    geometries = [  # kernel, stride, padding, output padding
        (5, 2, 2, 1), (3, 2, 1, 1), (4, 2, 1, 0), (2, 2, 0, 0), (6, 2, 2, 0), (3, 1, 1, 0),
        (1, 1, 0, 0), (4, 4, 0, 0), (6, 4, 1, 0), (5, 4, 1, 1), (3, 3, 0, 0), (5, 3, 1, 0),
        (9, 2, 4, 1),
    ]  # fmt: skip
    for number, (kernel, stride, padding, output_padding) in enumerate(geometries):
        for turn, (dtype, out) in enumerate((("u8", "s8"), ("s8", "s16"), ("s16", "u8"))):
            rng = np.random.default_rng([number, turn])
            i, o, h, w = [(1, 1, 1, 1), (3, 5, 4, 7), (16, 8, 5, 1), (24, 33, 3, 18)][
                (number + turn) % 4
            ]
            op = ops.TransposedConv(
                output="y", input="x",
                weight=values(rng, "s8", (i, o, kernel, kernel), ("random", "extreme")[turn % 2]),
                bias=rng.integers(-(2**14), 2**14, o).astype(np.int32),
                shift=rng.integers(*((14, 22) if dtype == "s16" else (6, 14)), o).astype(np.uint8),
                stride=stride, padding=padding, output_padding=output_padding, dtype=out,
            )  # fmt: skip
            x = values(rng, dtype, (i, h, w), "random")
            yield single(f"transposed-{i}to{o}-k{kernel}-s{stride}-{h}x{w}-{dtype}-{out}", op,
                         {"x": dtype}, {"x": x})  # fmt: skip


def _shuffles() -> Iterator[Case]:
    for number, factor in enumerate((1, 2, 3, 4)):
        for dtype in ("u8", "s8", "s16"):
            rng = np.random.default_rng([number, factor])
            x = values(rng, dtype, (3 * factor**2, 5, 4), "random")
            yield single(f"shuffle-{factor}-{dtype}", ops.PixelShuffle("y", "x", factor),
                         {"x": dtype}, {"x": x})  # fmt: skip
            x = values(rng, dtype, (3, 2 * factor, 5 * factor), "random")
            yield single(f"unshuffle-{factor}-{dtype}", ops.PixelUnshuffle("y", "x", factor),
                         {"x": dtype}, {"x": x})  # fmt: skip


def _add() -> Iterator[Case]:
    settings = [  # types, shift_a, shift_b, shift, subtract
        ("s8", "s8", "s8", 0, 0, 0, False), ("s8", "s8", "s8", 0, 0, 1, True),
        ("u8", "u8", "u8", 0, 0, 1, False), ("u8", "s8", "s8", 0, 3, 2, True),
        ("s16", "s16", "s16", 0, 0, 0, False), ("s16", "s16", "s16", 0, 0, 0, True),
        ("s16", "s8", "s16", 0, 8, 0, False), ("s16", "u8", "s8", 0, 4, 6, True),
        ("s8", "s16", "u8", 7, 0, 7, False), ("s16", "s16", "s8", 14, 14, 23, False),
        ("s16", "s16", "s16", 15, 14, 14, False), ("s8", "u8", "s8", 15, 15, 31, False),
        ("s16", "s16", "u8", 14, 14, 29, True), ("s16", "s16", "s16", 3, 5, 5, True),
    ]  # fmt: skip
    for number, (a, b, out, shift_a, shift_b, shift, subtract) in enumerate(settings):
        for kind in ("random", "extreme"):
            rng = np.random.default_rng(number)
            arrays = {
                "a": values(rng, a, (5, 7, 9), kind),
                "b": values(rng, b, (5, 7, 9), kind),
            }
            op = ops.Add("y", "a", "b", shift_a, shift_b, shift, subtract, out)
            yield single(f"add-{a}-{b}-{out}-{shift_a}-{shift_b}-{shift}-{subtract}-{kind}", op,
                         {"a": a, "b": b}, arrays)  # fmt: skip
    ties = np.arange(-128, 128).astype(np.int8).reshape(1, 16, 16)
    for shift in (1, 2, 3):
        op = ops.Add("y", "a", "b", shift - 1, shift - 1, shift, False, "s8")
        yield single(f"add-ties-{shift}", op, {"a": "s8", "b": "s8"},
                     {"a": ties, "b": ties[:, ::-1, :] // 2})  # fmt: skip


def _channels() -> Iterator[Case]:
    for dtype in ("u8", "s8", "s16"):
        rng = np.random.default_rng(3)
        for count in (1, 2, 5):
            arrays = {
                f"x{n}": values(rng, dtype, (2 * n + 1, 3, 5), "random") for n in range(count)
            }
            op: Op = ops.Concat("y", tuple(arrays))
            yield single(f"concat-{count}-{dtype}", op, dict.fromkeys(arrays, dtype), arrays)
        x = values(rng, dtype, (9, 4, 3), "random")
        yield single(f"concat-twice-{dtype}", ops.Concat("y", ("x", "x")), {"x": dtype}, {"x": x})
        for start, stop in ((0, 9), (0, 1), (8, 9), (3, 7)):
            yield single(f"slice-{start}-{stop}-{dtype}", ops.Slice("y", "x", start, stop),
                         {"x": dtype}, {"x": x})  # fmt: skip


def _scale() -> Iterator[Case]:
    settings = [
        ("u8", "u8", 8), ("s8", "s16", 0), ("s16", "s8", 15), ("s16", "s16", 8),
        ("s16", "u8", 12), ("s8", "s8", 31), ("u8", "s16", 1),
    ]  # fmt: skip
    for number, (dtype, out, shift) in enumerate(settings):
        rng = np.random.default_rng(number)
        multiplier = np.array([0, 1, 2, 255, 256, 32767, 65535 if shift < 31 else 1], np.int32)
        multiplier = np.concatenate([multiplier, rng.integers(0, 32768, 10).astype(np.int32)])
        if dtype == "s16" and shift > 0:
            multiplier = np.minimum(multiplier, 65280)
        for kind in ("random", "extreme"):
            x = values(rng, dtype, (17, 5, 6), kind)
            op = ops.Scale("y", "x", multiplier, shift, out)
            yield single(f"scale-{dtype}-{out}-{shift}-{kind}", op, {"x": dtype}, {"x": x})
        gains = np.minimum(multiplier, 32767)
        yield single(f"scale-vector-{dtype}-{out}-{shift}", ops.Scale("y", "x", "gain", shift, out),
                     {"x": dtype}, {"x": x}, {"gain": gains})  # fmt: skip
    x = np.arange(-32768, 32768, 7, np.int16)[:9360].reshape(1, 72, 130)
    for shift in (1, 6, 16):
        multiplier = np.array([2 ** (shift - 1)], np.int32)
        yield single(f"scale-ties-{shift}", ops.Scale("y", "x", multiplier, shift, "s16"),
                     {"x": "s16"}, {"x": x})  # fmt: skip


def _clamp() -> Iterator[Case]:
    settings = [
        ("u8", 0, 255), ("u8", 17, 200), ("u8", 9, 9), ("s8", -128, 127), ("s8", -5, -2),
        ("s16", -32768, 32767), ("s16", -300, 4000), ("s16", 32767, 32767),
    ]  # fmt: skip
    for number, (dtype, low, high) in enumerate(settings):
        x = values(np.random.default_rng(number), dtype, (3, 9, 11), "random")
        yield single(f"clamp-{dtype}-{low}-{high}", ops.Clamp("y", "x", low, high),
                     {"x": dtype}, {"x": x})  # fmt: skip


def _gdn() -> Iterator[Case]:
    # dtype, out, channels, beta's bits, gamma's maximum, square_shift
    settings = [
        ("s8", "s8", 1, 1, 0, 0), ("s8", "s8", 16, 10, 255, 0), ("s8", "s16", 5, 16, 3, 4),
        ("s16", "s8", 16, 20, 255, 14), ("s16", "s16", 33, 24, 64, 10), ("s16", "s16", 3, 1, 1, 31),
        ("s16", "u8", 8, 12, 255, 16), ("s16", "s16", 1, 30, 255, 8), ("s8", "s16", 64, 8, 20, 0),
        ("s16", "s16", 48, 31, 2, 15),
    ]  # fmt: skip
    for number, (dtype, out, channels, bits, top, square_shift) in enumerate(settings):
        for power in (1, 2):
            for inverse in (False, True):
                for kind in ("random", "extreme"):
                    rng = np.random.default_rng([number, power, inverse])
                    beta = rng.integers(1 << (bits - 1), 1 << bits, channels, endpoint=True)
                    gamma = rng.integers(0, top + 1, (channels, channels)).astype(np.uint8)
                    beta = np.minimum(beta, 2**31 - 1 - 65535 * gamma.sum(axis=1, dtype=np.int64))
                    op = ops.GDN(
                        output="y", input="x", beta=np.maximum(beta, 1).astype(np.int32),
                        gamma=gamma, power=power, inverse=inverse, square_shift=square_shift,
                        shift=0, dtype=out,
                    )  # fmt: skip
                    x = values(rng, dtype, (channels, 7, 9), kind)
                    x[:, 0, :4] = np.array([0, 1, -1, 2])
                    shift = _gdn_shift(op, x, number)
                    name = f"gdn-{number}-p{power}-{'inverse' if inverse else 'forward'}-{kind}"
                    yield single(name, replace(op, shift=shift), {"x": dtype}, {"x": x})
    # Every bit length of n with its neighbours, through beta alone; the largest n of all.
    edges = sorted({max(1, min(2**31 - 1, 2**bit + d)) for bit in range(32) for d in (-1, 0, 1)})
    beta = np.array(edges, np.int32)
    x = np.tile(np.array([-32768, -181, -1, 0, 1, 255, 32767], np.int16), (len(beta), 1, 1))
    for power, inverse in ((1, False), (1, True), (2, False), (2, True)):
        shifts = {(1, False): (-15, -8, 0, 31), (1, True): (0, 16, 30, 31),
                  (2, False): (-15, -9, 0, 31), (2, True): (1, 8, 31)}[power, inverse]  # fmt: skip
        for shift in shifts:
            gamma = np.zeros((len(beta), len(beta)), np.uint8)
            op = ops.GDN("y", "x", beta, gamma, power, inverse, 0, shift, "s16")
            name = f"gdn-edges-p{power}-{'inverse' if inverse else 'forward'}-{shift}"
            yield single(name, op, {"x": "s16"}, {"x": x})
    # The square of -32768 is held to 65535; with 129 and 130, n is a tie of the mantissa and after.
    op = ops.GDN("y", "x", np.array([129, 130], np.int32), np.eye(2, dtype=np.uint8), 2, False, 14,
                 -8, "s16")  # fmt: skip
    x = np.tile(np.array([-32768, 32767, 32766, 5], np.int16), (2, 1, 1))
    yield single("gdn-square-limit", op, {"x": "s16"}, {"x": x})


def _gdn_shift(op: ops.GDN, x: Array, turn: int) -> int:
    """The shift that brings typical outputs near the top of their type, give or take two."""
    magnitude = float(np.abs(x.astype(float)).mean())
    u = magnitude if op.power == 1 else min(65535.0, magnitude**2 / 2**op.square_shift)
    n = float(op.beta.mean()) + u * float(op.gamma.sum(axis=1).mean())
    exponent = (1.0 if op.inverse else -1.0) / op.power
    bits = np.log2(magnitude * n**exponent + 1e-9) - (14 if op.dtype == "s16" else 6)
    lowest = {(1, False): -15, (1, True): 0, (2, False): -15, (2, True): 1}[op.power, op.inverse]
    return int(np.clip(round(bits) + turn % 5 - 2, lowest, 31))


def _table_index() -> Iterator[Case]:
    tables = {
        "one": [0], "equal": [-3, 0, 0, 0, 5], "wide": [-(2**31), -40000, -1, 7, 40000, 2**31 - 1],
        "full": sorted(np.random.default_rng(5).integers(-200, 300, 255).tolist()),
        "geometric": [int(1.12**n) for n in range(64)],
    }  # fmt: skip
    for name, thresholds in tables.items():
        for dtype in ("u8", "s8", "s16"):
            x = values(np.random.default_rng(6), dtype, (4, 16, 16), "random")
            if dtype == "s16":
                x = (x // np.array([1, 16, 128, 256], np.int16)[:, None, None]).astype(np.int16)
            op = ops.TableIndex("y", "x", np.array(thresholds, np.int32))
            yield single(f"table-index-{name}-{dtype}", op, {"x": dtype}, {"x": x})


# Whole Programs


def _programs() -> Iterator[Case]:
    yield _analysis("program-analysis", 32, 64)
    yield _analysis("program-analysis-small", 8, 8)
    yield _synthesis("program-synthesis", 3, 5)
    yield _synthesis("program-synthesis-1x1", 1, 1)
    rng = np.random.default_rng(9)
    x = values(rng, "s8", (4, 6, 5), "random")
    # Outputs that are an input, an inner tensor read later, and one that nothing reads.
    weight = rng.integers(-128, 128, (4, 4, 3, 3))
    layers = [
        _layer("a", "x", weight, rng, "u8"), _layer("b", "a", weight, rng, "s8"),
        _layer("unread", "b", weight, rng, "u8"), _layer("c", "b", weight, rng, "s8"),
    ]  # fmt: skip
    program = Program(
        "program-outputs", (Input("x", 4, "s8", 0),), (), tuple(layers),
        tuple(Output(name, 0) for name in ("c", "x", "b", "unread")),
    )  # fmt: skip
    yield Case("program-outputs", program, {"x": x})
    # Names that an executor might have wanted for itself.
    names = ("lichen.0.Cast", "y.phases", "x.out", "lichen.constant.0", "y", 'Ünï "quoted"')
    up = ops.TransposedConv(
        "y", names[0], rng.integers(-128, 128, (4, 3, 4, 4)).astype(np.int8),
        np.zeros(3, np.int32), np.full(3, 9, np.uint8), 2, 1, 0, "s8",
    )  # fmt: skip
    operations: tuple[Op, ...] = (
        ops.Clamp("y.phases", names[0], -9, 9), ops.Clamp("x.out", names[0], -99, 9), up,
        ops.Clamp(names[5], "y.phases", -5, 5),
    )  # fmt: skip
    program_of_names = Program(
        "program-names", (Input(names[0], 4, "s8", 0),), (), operations,
        tuple(Output(name, 0) for name in ("y.phases", "x.out", names[0], names[5], "y")),
    )  # fmt: skip
    yield Case("program-names", program_of_names, {names[0]: x})
    # The caller's arrays need not be contiguous.
    strided = np.asfortranarray(np.repeat(x, 2, axis=2))[:, :, ::2]
    yield Case("program-strided-input", program, {"x": strided})


def _layer(output: str, input: str, weight: Array, rng: np.random.Generator, dtype: DType,
           shift: int = 9, stride: int = 1, groups: int = 1) -> ops.Conv:  # fmt: skip
    o, _, kh, kw = weight.shape
    return ops.Conv(
        output=output, input=input, weight=weight.astype(np.int8),
        bias=rng.integers(-(2**12), 2**12, o).astype(np.int32),
        shift=(shift + rng.integers(0, 2, o)).astype(np.uint8), stride=stride,
        padding=(kh // 2, kw // 2, (kh - 1) // 2, (kw - 1) // 2), groups=groups, dtype=dtype,
    )  # fmt: skip


def _analysis(name: str, height: int, width: int) -> Case:
    """Pixels to a quantised latent: unshuffle, convolutions, depthwise, residual, GDN, gains."""
    rng = np.random.default_rng(7)

    def weight(o: int, i: int, k: int) -> Array:
        return rng.integers(-90, 91, (o, i, k, k))

    beta, gamma = rng.integers(900, 5000, 24), rng.integers(0, 40, (24, 24))
    operations: tuple[Op, ...] = (
        ops.PixelUnshuffle("space", "x", 2),
        _layer("c1", "space", weight(24, 12, 3), rng, "u8", 9),
        _layer("c2", "c1", weight(24, 1, 5), rng, "u8", 9, groups=24),
        _layer("c3", "c2", weight(24, 24, 1), rng, "s8", 8),
        ops.Add("sum", "c3", "c1", 0, 0, 0, False, "s16"),
        _layer("c4", "sum", weight(24, 24, 3), rng, "s16", 7, stride=2),
        ops.GDN("g", "c4", beta.astype(np.int32), gamma.astype(np.uint8), 2, False, 6, -6, "s16"),
        ops.Slice("left", "g", 0, 8),
        ops.Slice("right", "g", 8, 24),
        ops.Clamp("held", "right", -500, 900),
        ops.Concat("both", ("held", "left")),
        _layer("y", "both", weight(16, 24, 5), rng, "s16", 10, stride=2),
        ops.Scale("q", "y", "gain", 14, "s16"),
    )
    program = Program(
        name, (Input("x", 3, "s8", 7),), (Vector("gain", 16),), operations,
        (Output("y", 4), Output("q", 0)),
    )  # fmt: skip
    x = values(rng, "s8", (3, height, width), "random")
    return Case(name, program, {"x": x}, {"gain": rng.integers(1, 32768, 16).astype(np.int32)})


def _synthesis(name: str, height: int, width: int) -> Case:
    """Latents and a hyper latent to pixels and table numbers."""
    rng = np.random.default_rng(8)

    def up(output: str, input: str, i: int, o: int, dtype: DType, shift: int) -> ops.TransposedConv:
        return ops.TransposedConv(
            output=output, input=input, weight=values(rng, "s8", (i, o, 5, 5), "random"),
            bias=rng.integers(-(2**12), 2**12, o).astype(np.int32),
            shift=np.full(o, shift, np.uint8), stride=2, padding=2, output_padding=1, dtype=dtype,
        )  # fmt: skip

    beta, gamma = rng.integers(1, 3000, 20), rng.integers(0, 40, (20, 20))
    operations: tuple[Op, ...] = (
        up("h1", "z", 6, 16, "u8", 10),
        up("h2", "h1", 16, 32, "s16", 5),
        ops.Slice("means", "h2", 0, 16),
        ops.Slice("scales", "h2", 16, 32),
        ops.TableIndex("index", "scales", np.array([int(9 * 1.1**n) for n in range(63)], np.int32)),
        ops.Add("latent", "y", "means", 5, 0, 5, False, "s16"),
        up("u1", "latent", 16, 20, "s16", 11),
        ops.GDN("g", "u1", beta.astype(np.int32), gamma.astype(np.uint8), 2, True, 8, 8, "s8"),
        _layer("c", "g", rng.integers(-90, 91, (12, 20, 3, 3)), rng, "s8", 9),
        ops.PixelShuffle("pixels", "c", 2),
    )
    program = Program(
        name, (Input("z", 6, "s8", 0), Input("y", 16, "s16", 0)), (), operations,
        (Output("pixels", 7), Output("index", 0), Output("means", 5)),
    )  # fmt: skip
    inputs = {
        "z": values(rng, "s8", (6, height, width), "random"),
        "y": rng.integers(-300, 300, (16, 4 * height, 4 * width)).astype(np.int16),
    }
    return Case(name, program, inputs)
