"""Every rule of the checker is broken once and must say so."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from harness import cases
from hypothesis import given
from hypothesis import strategies as st

from lichen.errors import ContractError
from lichen.program import Input, Output, Program, Vector, check, ops
from lichen.program.check import accumulator_bound, infer_shapes, macs_per_pixel, tensors


def _i8(*shape: int, value: int = 1) -> np.ndarray:
    return np.full(shape, value, np.int8)


def _i32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


CONV = ops.Conv(
    "y",
    "x",
    _i8(6, 2, 3, 3),
    np.zeros(6, np.int32),
    np.zeros(6, np.uint8),
    1,
    (1, 1, 1, 1),
    2,
    "s8",
)
UP = ops.TransposedConv(
    "y", "x", _i8(4, 3, 5, 5), np.zeros(3, np.int32), np.zeros(3, np.uint8), 2, 2, 1, "s8"
)
ADD = ops.Add("y", "x", "x", 0, 0, 1, False, "s8")
SCALE = ops.Scale("y", "x", _i32(1, 2, 3, 4), 2, "s8")
GDN = ops.GDN("y", "x", _i32(1, 1, 1, 1), np.ones((4, 4), np.uint8), 2, False, 4, 0, "s8")
INDEX = ops.TableIndex("y", "x", _i32(1, 2, 2))
SLICE = ops.Slice("y", "x", 1, 3)
CLAMP = ops.Clamp("y", "x", -3, 3)
CONCAT = ops.Concat("y", ("x", "x"))


def program(op: Any, dtype: str = "s8", channels: int = 4) -> Program:
    return Program(
        "p", (Input("x", channels, dtype, 0), Input("wide", 5, "u8", 0)), (Vector("v", 5),), (op,),
        (Output("y", 0),),
    )  # fmt: skip


BASE = program(CONV)

BROKEN: list[tuple[str, Program, str]] = [
    ("not an operation", program("conv"), "an operation must be|ops must be"),
    ("no inputs", replace(BASE, inputs=()), "inputs must be"),
    ("no outputs", replace(BASE, outputs=()), "outputs must be"),
    ("a list of ops", replace(BASE, ops=[CONV]), "ops must be"),
    ("program name", replace(BASE, name=""), "name must be"),
    ("input name", replace(BASE, inputs=(Input("", 4, "s8", 0),)), "name must be"),
    ("input twice", replace(BASE, inputs=(Input("x", 4, "s8", 0),) * 2), "written once"),
    ("input channels", replace(BASE, inputs=(Input("x", 0, "s8", 0),)), "channels must be in"),
    ("input exponent", replace(BASE, inputs=(Input("x", 4, "s8", 65),)), "exponent must be in"),
    ("input type", replace(BASE, inputs=(Input("x", 4, "s32", 0),)), "dtype must be"),
    ("vector name", replace(BASE, vectors=(Vector("x", 4),)), "written once"),
    ("vector channels", replace(BASE, vectors=(Vector("v", 65537),)), "channels must be in"),
    ("output unknown", replace(BASE, outputs=(Output("z", 0),)), "an output must be a tensor"),
    ("output twice", replace(BASE, outputs=(Output("y", 0),) * 2), "written once"),
    ("output exponent", replace(BASE, outputs=(Output("y", -65),)), "exponent must be in"),
    ("output name", replace(BASE, outputs=(Output(None, 0),)), "name must be str"),
    ("NUL in a name", replace(BASE, ops=(CONV, replace(CLAMP, output="z\0"))), "free of NUL"),
    ("write an input", program(replace(CONV, output="x")), "written once"),
    ("write twice", replace(BASE, ops=(CONV, CONV)), "written once"),
    ("write a vector", program(replace(CONV, output="v")), "written once"),
    ("read the unwritten", program(replace(CONV, input="z")), "written before, not 'z'"),
    ("read itself", program(replace(CONV, input="y")), "written before, not 'y'"),
    ("read a vector", program(replace(CONV, input="v")), "written before, not 'v'"),
    ("conv weight type", program(replace(CONV, weight=CONV.weight.astype(int))), "NDArray"),
    ("conv weight list", program(replace(CONV, weight=[[1]])), "NDArray"),
    ("conv weight empty", program(replace(CONV, weight=_i8(0, 2, 3, 3))), "NDArray"),
    ("conv weight rank", program(replace(CONV, weight=_i8(6, 2, 3))), "shape of weight"),
    ("conv weight inputs", program(replace(CONV, weight=_i8(6, 4, 3, 3))), "shape of weight"),
    ("conv bias type", program(replace(CONV, bias=np.zeros(6))), "bias must be NDArray"),
    ("conv bias swapped", program(replace(CONV, bias=np.zeros(6, ">i4"))), "bias must be NDArray"),
    ("conv bias shape", program(replace(CONV, bias=_i32(1))), "shape of bias"),
    ("conv shift shape", program(replace(CONV, shift=CONV.shift[:5])), "shape of shift"),
    ("conv shift", program(replace(CONV, shift=CONV.shift + np.uint8(32))), "shift must be in"),
    ("conv stride", program(replace(CONV, stride=0)), "stride must be in"),
    ("conv stride type", program(replace(CONV, stride=1.0)), "stride must be int"),
    ("conv stride bool", program(replace(CONV, stride=True)), "stride must be int"),
    ("conv padding", program(replace(CONV, padding=(1, 1, 1, 3))), "padding must be in 0..2"),
    ("conv padding negative", program(replace(CONV, padding=(-1, 1, 1, 1))), "padding must be in"),
    ("conv padding length", program(replace(CONV, padding=(1, 1))), "padding must be"),
    ("conv padding list", program(replace(CONV, padding=[1, 1, 1, 1])), "padding must be"),
    ("conv groups", program(replace(CONV, groups=3)), "a divisor of 4"),
    ("conv groups 0", program(replace(CONV, groups=0)), "groups must be in"),
    ("conv outputs", program(replace(CONV, groups=4, weight=_i8(6, 1, 3, 3))), "a multiple of 4"),
    ("conv kernel", program(replace(CONV, weight=_i8(6, 2, 256, 1), padding=(0,) * 4)), "kernel"),
    ("conv type", program(replace(CONV, dtype="f32")), "dtype must be"),
    ("conv bound", program(replace(CONV, bias=np.full(6, 2**31 - 1, np.int32))), r"below 2\*\*31"),
    ("conv bound of the rounding",
     program(replace(CONV, bias=np.full(6, 2**30, np.int32), shift=np.full(6, 31, np.uint8))),
     r"below 2\*\*31"),
    ("too many operations", replace(program(CLAMP), ops=tuple(
        ops.Clamp(f"y{k}", "x", 0, 1) for k in range(1025))), r"operations must be in 0\.\.1024"),
    ("up inputs", program(replace(UP, weight=_i8(3, 4, 5, 5))), "shape of weight"),
    ("up kernel", program(replace(UP, weight=_i8(4, 3, 5, 4))), "square"),
    ("up small kernel",
     program(replace(UP, weight=_i8(4, 3, 1, 1), padding=0, output_padding=1)), "kernel must be"),
    ("up size", program(replace(UP, padding=1)), "output_padding must be 2, not 4"),
    ("up padding", program(replace(UP, padding=5)), "padding must be in 0..4"),
    ("up output padding", program(replace(UP, output_padding=2)), "output_padding must be in"),
    ("up bias", program(replace(UP, bias=_i32(1, 2))), "shape of bias"),
    ("up shift", program(replace(UP, shift=UP.shift[:2])), "shape of shift"),
    ("up bound", program(replace(UP, bias=np.full(3, -(2**31), np.int32))), r"below 2\*\*31"),
    ("shuffle channels", program(ops.PixelShuffle("y", "x", 3)), "a multiple of 9"),
    ("shuffle factor", program(ops.PixelShuffle("y", "x", 0)), "factor must be in"),
    ("unshuffle factor", program(ops.PixelUnshuffle("y", "x", 256)), "factor must be in"),
    ("unshuffle channels", program(ops.PixelUnshuffle("y", "x", 200)), "channels must be in"),
    ("add channels", program(replace(ADD, b="wide")), "channels of b must be 4, not 5"),
    ("add shift_a", program(replace(ADD, shift_a=16)), "shift_a must be in"),
    ("add shift_b", program(replace(ADD, shift_b=-1)), "shift_b must be in"),
    ("add shift", program(replace(ADD, shift=32)), "shift must be in"),
    ("add subtract", program(replace(ADD, subtract=1)), "subtract must be bool"),
    ("add bound", program(replace(ADD, shift_a=15, shift_b=15, dtype="s16"), "s16"), r"2\*\*31"),
    ("add bound of the rounding",
     program(replace(ADD, shift_a=15, shift_b=14, shift=31), "s16"), r"2\*\*31"),
    ("concat none", program(replace(CONCAT, inputs=())), "inputs must be"),
    ("concat list", program(replace(CONCAT, inputs=["x"])), "inputs must be"),
    ("concat types", program(replace(CONCAT, inputs=("x", "wide"))), "types must be the same"),
    ("concat unknown", program(replace(CONCAT, inputs=("x", "z"))), "written before"),
    ("slice start", program(replace(SLICE, start=4)), "start must be in 0..3"),
    ("slice empty", program(replace(SLICE, stop=1)), "stop must be in 2..4"),
    ("slice stop", program(replace(SLICE, stop=5)), "stop must be in 2..4"),
    ("scale shape", program(replace(SCALE, multiplier=_i32(1, 2, 3))), "shape of multiplier"),
    ("scale negative", program(replace(SCALE, multiplier=_i32(1, 2, 3, -1))), "multiplier must be"),
    ("scale large", program(replace(SCALE, multiplier=_i32(1, 2, 3, 65536))), "multiplier must be"),
    ("scale type", program(replace(SCALE, multiplier=np.ones(4, np.int64))), "multiplier must be"),
    ("scale vector unknown", program(replace(SCALE, multiplier="w")), "no such vector"),
    ("scale vector channels", program(replace(SCALE, multiplier="v")), "must be 4, not 5"),
    ("scale shift", program(replace(SCALE, shift=32)), "shift must be in"),
    ("scale bound", program(replace(SCALE, multiplier=_i32(1, 1, 1, 65535), shift=20), "s16"),
     r"2\*\*31"),
    ("clamp order", program(replace(CLAMP, low=4)), "high must be in 4..127"),
    ("clamp range", program(replace(CLAMP, low=-129)), "low must be in"),
    ("clamp range high", program(replace(CLAMP, high=128)), "high must be in"),
    ("gdn type", program(GDN, "u8"), "s8 or s16, not u8"),
    ("gdn beta", program(replace(GDN, beta=_i32(1, 1, 1, 0))), "beta must be in"),
    ("gdn beta shape", program(replace(GDN, beta=_i32(1))), "shape of beta"),
    ("gdn gamma", program(replace(GDN, gamma=np.ones((4, 3), np.uint8))), "shape of gamma"),
    ("gdn gamma type", program(replace(GDN, gamma=np.ones((4, 4), np.int8))), "gamma must be"),
    ("gdn power", program(replace(GDN, power=3)), "power must be"),
    ("gdn inverse", program(replace(GDN, inverse=0)), "inverse must be bool"),
    ("gdn square_shift", program(replace(GDN, square_shift=32)), "square_shift must be in"),
    ("gdn shift", program(replace(GDN, shift=-32)), "shift must be in -31..31"),
    ("gdn n", program(replace(GDN, beta=_i32(1, 1, 1, 2**31 - 1))), r"below 2\*\*31"),
    ("gdn total", program(replace(GDN, shift=-16)), "total shift must be 0 or more"),
    ("gdn total inverse", program(replace(GDN, inverse=True, shift=-9)), "total shift must be"),
    ("gdn total simple", program(replace(GDN, power=1, shift=-16)), "total shift must be"),
    ("gdn total simple inverse", program(replace(GDN, power=1, inverse=True, shift=-1)), "total"),
    ("index order", program(replace(INDEX, thresholds=_i32(2, 1))), "ascending"),
    ("index empty", program(replace(INDEX, thresholds=_i32())), "thresholds must be"),
    ("index many", program(replace(INDEX, thresholds=np.arange(256, dtype=np.int32))), "0?1..255"),
    ("index rank", program(replace(INDEX, thresholds=_i8(2, 2).astype(np.int32))), "shape of"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "broken", "message"), BROKEN, ids=[what for what, *_ in BROKEN])
def test_a_broken_rule_is_said(what: str, broken: Program, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        check(broken)


@pytest.mark.parametrize("op", [CONV, UP, ADD, SCALE, GDN, INDEX, SLICE, CLAMP, CONCAT])
def test_the_unbroken_are_accepted(op: ops.Op) -> None:
    check(program(op), float32_bound=True)


def test_messages_say_where_what_and_what_was_found() -> None:
    with pytest.raises(ContractError) as error:
        check(program(replace(CONV, groups=3)))
    assert str(error.value) == "Conv 'y': groups must be a divisor of 4, not 3"


GARBAGE = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3),
    st.binary(max_size=2), st.tuples(st.integers(), st.text(max_size=1)),
    st.lists(st.integers(), max_size=3), st.just({"array": "x"}), st.just(np.zeros(3)),
    st.just(np.int64(1)), st.just(np.int8(3)), st.just(np.zeros((), np.int32)),
    st.just(np.zeros((0, 4), np.int8)),
)  # fmt: skip


@pytest.mark.parametrize("op", [CONV, UP, ADD, SCALE, GDN, INDEX, SLICE, CLAMP, CONCAT])
@given(data=st.data())
def test_garbage_in_any_field_is_a_contract_error_or_allowed(op: ops.Op, data: Any) -> None:
    node: Any = data.draw(st.sampled_from([op, BASE.inputs[0], BASE.vectors[0], BASE.outputs[0]]))
    field = data.draw(st.sampled_from(fields(node))).name
    changed = replace(node, **{field: data.draw(GARBAGE)})
    whole = program(op)
    swap: Callable[[Any], Any] = lambda item: changed if item is node else item  # noqa: E731
    candidate = replace(
        whole, ops=(swap(op),), outputs=(swap(BASE.outputs[0]),),
        inputs=(swap(BASE.inputs[0]), whole.inputs[1]), vectors=(swap(BASE.vectors[0]),),
    )  # fmt: skip
    with suppress(ContractError):
        check(candidate)


def test_float32_bound() -> None:
    for taps, fits in ((518, True), (519, False)):
        op = replace(
            CONV, weight=_i8(6, taps, 1, 1, value=127), padding=(0, 0, 0, 0), groups=1,
        )  # fmt: skip
        check(program(op, "u8", taps))
        assert accumulator_bound(op, 255).max() == 255 * 127 * taps
        if fits:
            check(program(op, "u8", taps), float32_bound=True)
        else:
            with pytest.raises(ContractError, match=r"below 2\*\*24, not 16807815"):
                check(program(op, "u8", taps), float32_bound=True)


def test_the_bound_of_a_conv_takes_signs_away() -> None:
    weight = np.tile(np.array([127, -128, 0], np.int8), (6, 2, 3, 1))
    op = replace(CONV, weight=weight, bias=_i32(0, 1, -1, -(2**31), 5, 6))
    assert (accumulator_bound(op, 10) - 10 * 255 * 6).tolist() == [0, 1, 1, 2**31, 5, 6]


def test_the_bound_of_a_transposed_conv_is_that_of_each_phase() -> None:
    bounds = accumulator_bound(replace(UP, bias=_i32(0, -7, 9)), 128).reshape(3, 2, 2)
    assert bounds[0].tolist() == [[128 * 4 * 9, 128 * 4 * 6], [128 * 4 * 6, 128 * 4 * 4]]
    assert (bounds[1] - bounds[0] == 7).all()
    assert (bounds[2] - bounds[0] == 9).all()


def test_clamps_narrow_what_follows() -> None:
    """A convolution of values held to 0..9 may have weights that all of s16 would not allow."""
    wide = ops.Conv(
        "z", "y", _i8(1, 600, 1, 1, value=127), _i32(0), np.zeros(1, np.uint8), 1, (0, 0, 0, 0), 1,
        "s16",
    )  # fmt: skip
    clamp = ops.Clamp("y", "x", -3, 9)
    held = replace(program(clamp, "s16", 600), ops=(clamp, wide))
    check(held, float32_bound=True)
    known = tensors(held)
    assert (known["y"].low, known["y"].high, known["y"].magnitude) == (-3, 9, 9)
    assert (known["x"].low, known["x"].high, known["x"].magnitude) == (-32768, 32767, 32768)
    with pytest.raises(ContractError):
        check(replace(held, ops=(replace(wide, input="x", output="y"),)))


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_values_stay_inside_what_the_checker_says(case: Any) -> None:
    from lichen.program import run

    known = tensors(case.program)
    shapes = infer_shapes(case.program, {name: a.shape for name, a in case.inputs.items()})
    exposed = replace(case.program, outputs=tuple(Output(n, 0) for n in known))
    for name, array in run(exposed, case.inputs, case.vectors).items():
        assert array.shape == shapes[name]
        assert known[name].channels == len(array)
        assert known[name].low <= array.min() and array.max() <= known[name].high


@pytest.mark.parametrize(
    ("op", "shape", "message"),
    [
        (replace(CONV, padding=(0, 0, 0, 0)), (4, 2, 9), "height and width must be in"),
        (ops.PixelUnshuffle("y", "x", 2), (4, 4, 5), "multiples of 2"),
        (ADD, (5, 4, 4), r"must be \(4, height, width\)"),
        (ADD, (4, 4), "the shape must be"),
        (ADD, (4, 0, 4), "height and width must be in"),
        (ops.PixelShuffle("y", "x", 2), (4, 2**20, 4), "height and width must be in"),
    ],
)
def test_sizes_that_do_not_fit(op: ops.Op, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        infer_shapes(program(op), {"x": shape, "wide": (5, 4, 4)})


def test_sizes_of_two_inputs_that_differ() -> None:
    for op in (ops.Add("y", "a", "b", 0, 0, 0, False, "s8"), ops.Concat("y", ("a", "b"))):
        two = Program(
            "p", (Input("a", 4, "s8", 0), Input("b", 4, "s8", 0)), (), (op,), (Output("y", 0),)
        )
        assert infer_shapes(two, {"a": (4, 3, 5), "b": (4, 3, 5)})["y"][1:] == (3, 5)
        with pytest.raises(ContractError, match=r"must be \(3, 5\), not \(3, 6\)"):
            infer_shapes(two, {"a": (4, 3, 5), "b": (4, 3, 6)})


def test_macs_per_pixel_by_hand() -> None:
    def down(output: str, input: str, o: int, i: int) -> ops.Conv:
        return ops.Conv(
            output, input, _i8(o, i, 5, 5), np.zeros(o, np.int32), np.zeros(o, np.uint8), 2,
            (2, 2, 2, 2), 1, "s16",
        )  # fmt: skip

    gdn = replace(GDN, input="a", output="g", beta=np.ones(8, np.int32),
                  gamma=np.ones((8, 8), np.uint8), dtype="s16")  # fmt: skip
    up = replace(UP, input="b", weight=_i8(16, 3, 5, 5))
    chain = Program(
        "p", (Input("x", 3, "s8", 0),), (),
        (down("a", "x", 8, 3), gdn, down("b", "g", 16, 8), up), (Output("y", 0),),
    )  # fmt: skip
    first, second, last = 8 * 3 * 25 / 4, 2 * 16 * 8 * 25 / 16, 2 * 16 * 3 * 25 / 16
    sums = 2 * 64 / 4  # squares of s16, shifted by 4: 16 bits
    assert macs_per_pixel(chain, 1) == first + sums + second + last
    assert macs_per_pixel(chain, 16) == (first + sums + second + last) / 256
