"""The checker: what a Program must satisfy before anything runs it, and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lichen.errors import ContractError
from lichen.program import ops
from lichen.program.arithmetic import DTYPE_RANGE, NUMPY_DTYPE, gdn_factor, round_shift
from lichen.program.ops import DType, Op
from lichen.program.program import Input, Output, Program, Vector
from lichen.program.rewrite import subpixel

INT32_BOUND = 2**31  # an accumulator below it is exact in int32, in any order of summation
FLOAT32_BOUND = 2**24  # below it in float32 too, which holds every integer up to 2**24
SIZE_MAX = 2**20  # height or width
OPS_MAX = 1024  # of a Program; a published network has fewer than 100
VECTOR_MAX = 32767
RANGES = {  # of a field by its name, or by class and name
    "channels": (1, 65536), "exponent": (-64, 64), "stride": (1, 255), "factor": (1, 255),
    "shift": (0, 31), "shift_a": (0, 15), "shift_b": (0, 15), "square_shift": (0, 31),
    "GDN.shift": (-31, 31), "beta": (1, INT32_BOUND - 1), "multiplier": (0, 65535),
}  # fmt: skip

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Tensor:
    """What the checker knows of a tensor: channels, type, and bounds of its values."""

    channels: int
    dtype: DType
    low: int
    high: int

    @property
    def magnitude(self) -> int:
        """The largest absolute value that the tensor can hold."""
        return max(-self.low, self.high)


def check(program: Program, *, float32_bound: bool = False) -> None:
    """Raise ContractError where the Program breaks the contract.

    With `float32_bound`, also where the sums of a convolution may not be exact in float32.
    """
    known = tensors(program)
    _require("\0" not in "".join(known), program, "names", "free of NUL", sorted(known))
    for op in program.ops:
        if float32_bound and isinstance(op, ops.Conv | ops.TransposedConv):
            top = accumulator_bound(op, known[op.input].magnitude).max()
            _require(top < FLOAT32_BOUND, op, "the accumulator bound", "below 2**24", top)


def tensors(program: Program) -> dict[str, Tensor]:
    """Check a Program and return what is known of each of its tensors."""
    names: set[str] = set()
    _fields(program, set())
    _range(program, "the number of operations", len(program.ops), 0, OPS_MAX)
    for node in (*program.vectors, *program.inputs):
        _fields(node, names)
    vectors = {vector.name: vector.channels for vector in program.vectors}
    known = {x.name: Tensor(x.channels, x.dtype, *DTYPE_RANGE[x.dtype]) for x in program.inputs}
    for op in program.ops:
        _fields(op, names)
        for name in operands(op):
            _require(name in known, op, "an input", "a tensor written before", repr(name))
        known[op.output] = _result(op, [known[name] for name in operands(op)], vectors)
        _range(op, "channels", known[op.output].channels, *RANGES["channels"])
    names = set()
    for output in program.outputs:
        _fields(output, names)
        _require(output.name in known, output, "an output", "a tensor", repr(output.name))
    return known


def operands(op: Op) -> tuple[str, ...]:
    """Return the names of the tensors that an operation reads."""
    if isinstance(op, ops.Add):
        return (op.a, op.b)
    return op.inputs if isinstance(op, ops.Concat) else (op.input,)


def accumulator_bound(op: Op, *magnitudes: int) -> NDArray[np.int64]:
    """Bound, per channel, the absolute value of every partial sum that an operation forms.

    magnitudes: the largest absolute value of each input (`Tensor.magnitude`). The bound holds for
    any order of summation, without the half that rounding adds. A TransposedConv has one bound
    per channel and phase; the sum of a GDN is its n.
    """
    match op:
        case ops.Conv():
            sums = np.abs(op.weight.astype(np.int64)).sum(axis=(1, 2, 3))
            return np.asarray(sums * magnitudes[0] + np.abs(op.bias.astype(np.int64)), np.int64)
        case ops.TransposedConv():
            return accumulator_bound(subpixel(op)[0], *magnitudes)
        case ops.GDN():
            top = gdn_operand_max(op, magnitudes[0])
            return np.asarray(op.beta + top * op.gamma.astype(np.int64).sum(axis=1), np.int64)
        case ops.Add():
            return np.array([(magnitudes[0] << op.shift_a) + (magnitudes[1] << op.shift_b)])
        case ops.Scale():
            largest = VECTOR_MAX if isinstance(op.multiplier, str) else op.multiplier
            return np.atleast_1d(np.asarray(largest, np.int64) * magnitudes[0])
        case _:
            return np.array([max(magnitudes)], np.int64)


def gdn_operand_max(op: ops.GDN, magnitude: int) -> int:
    """Return the largest u of a GDN (see `ops.GDN`) for |x| <= magnitude."""
    square = int(round_shift(magnitude**2, op.square_shift))
    return magnitude if op.power == 1 else min(65535, square)


def _result(op: Op, inputs: list[Tensor], vectors: Mapping[str, int]) -> Tensor:
    """Check one operation whose inputs exist and describe the tensor that it writes."""
    x, channels = inputs[0], inputs[0].channels
    low, high = min(t.low for t in inputs), max(t.high for t in inputs)
    match op:
        case ops.PixelShuffle(factor=r):
            _require(channels % r**2 == 0, op, "channels", f"a multiple of {r**2}", channels)
        case ops.Concat():
            types = {tensor.dtype for tensor in inputs}
            _require(len(types) == 1, op, "the inputs' types", "the same", sorted(types))
        case ops.Slice():
            _range(op, "start", op.start, 0, channels - 1)
            _range(op, "stop", op.stop, op.start + 1, channels)
        case ops.Clamp():
            lowest, highest = DTYPE_RANGE[x.dtype]
            _range(op, "low", op.low, lowest, highest)
            _range(op, "high", op.high, op.low, highest)
            low, high = (min(max(value, op.low), op.high) for value in (low, high))
        case ops.TableIndex(thresholds=t):
            _shaped(op, (None,), "thresholds")
            _range(op, "the number of thresholds", len(t), 1, 255)
            _require(bool((t[1:] >= t[:-1]).all()), op, "thresholds", "ascending", t)
            return Tensor(channels, "u8", 0, len(t))
        case ops.Conv():
            _conv(op, channels)
        case ops.TransposedConv():
            _transposed_conv(op, channels)
        case ops.GDN():
            _gdn(op, x)
        case ops.Add():
            b = inputs[1].channels
            _require(b == channels, op, "channels of b", channels, b)
        case ops.Scale(multiplier=str(name)):
            found = vectors.get(name, "no such vector")
            _require(found == channels, op, "channels of the vector", channels, found)
        case ops.Scale():
            _shaped(op, (channels,), "multiplier")
    channels = _shape(op, [(tensor.channels, 0, 0) for tensor in inputs])[0]
    if not isinstance(op, ops.Conv | ops.TransposedConv | ops.GDN | ops.Add | ops.Scale):
        return Tensor(channels, x.dtype, low, high)
    top = accumulator_bound(op, *(tensor.magnitude for tensor in inputs))
    if not isinstance(op, ops.GDN):  # whose product is wider, see arithmetic.gdn_factor
        phases = op.stride**2 if isinstance(op, ops.TransposedConv) else 1
        top += np.repeat((np.int64(1) << np.asarray(op.shift, np.int64)) >> 1, phases)
    _require(top.max() < INT32_BOUND, op, "accumulator bound + rounding", "below 2**31", top.max())
    return Tensor(channels, op.dtype, *DTYPE_RANGE[op.dtype])


def _conv(op: ops.Conv, channels: int) -> None:
    _range(op, "groups", op.groups, 1, channels)
    _require(channels % op.groups == 0, op, "groups", f"a divisor of {channels}", op.groups)
    _shaped(op, (None, channels // op.groups, None, None), "weight")
    outputs, _, *kernel = op.weight.shape
    _require(outputs % op.groups == 0, op, "outputs", f"a multiple of {op.groups}", outputs)
    for pad, size in zip(op.padding, kernel * 2, strict=True):
        _range(op, "kernel", size, 1, 255)
        _range(op, "padding", pad, 0, size - 1)
    _shaped(op, (outputs,), "bias", "shift")


def _transposed_conv(op: ops.TransposedConv, channels: int) -> None:
    _shaped(op, (channels, None, None, None), "weight")
    _, outputs, kernel, kernel_w = op.weight.shape
    _require(kernel == kernel_w, op, "kernel", "square", (kernel, kernel_w))
    # A kernel below the stride would leave outputs without input, and subpixel() mostly zeros.
    _range(op, "kernel", kernel, op.stride, 255)
    _range(op, "padding", op.padding, 0, kernel - 1)
    _range(op, "output_padding", op.output_padding, 0, op.stride - 1)
    growth = kernel - 2 * op.padding + op.output_padding
    _require(growth == op.stride, op, "kernel - 2 * padding + output_padding", op.stride, growth)
    _shaped(op, (outputs,), "bias", "shift")


def _gdn(op: ops.GDN, x: Tensor) -> None:
    _require(x.dtype != "u8", op, "the input", "s8 or s16", x.dtype)
    _shaped(op, (x.channels,), "beta")
    _shaped(op, (x.channels, x.channels), "gamma")
    # The total shift is monotonic in n, so that its extremes are at the ends.
    n = [op.beta.min(), min(INT32_BOUND - 1, accumulator_bound(op, x.magnitude).max())]
    total = gdn_factor(n, op.power, op.inverse, op.shift)[1].min()
    _require(total >= 0, op, "the smallest total shift", "0 or more (raise shift)", total)


def _fields(node: Any, names: set[str]) -> None:
    """Check types and ranges of a dataclass of the contract, and that its name is a new one."""
    ours = isinstance(node, Op | Program | Input | Vector | Output)
    _require(ours, node, "an operation", "one of lichen.program.ops", node)
    for field in fields(node):
        value, kind = getattr(node, field.name), type(node).__name__
        if not _is(value, str(field.type)):  # the repr of arrays would take most of a start-up
            _require(False, node, field.name, field.type, getattr(value, "dtype", repr(value)))
        limits = RANGES.get(f"{kind}.{field.name}", RANGES.get(field.name))
        if limits is not None and not isinstance(value, str):
            _range(node, field.name, int(np.min(value)), *limits)
            _range(node, field.name, int(np.max(value)), *limits)
    name = getattr(node, "output", None) or node.name
    _require(name not in names, node, "the name", "new: a tensor is written once", repr(name))
    names.add(name)


def _is(value: Any, annotation: str) -> bool:
    """Tell whether a value is what a field's annotation says, and not empty."""
    match annotation:
        case "str":
            return isinstance(value, str) and value != ""
        case "Literal[1, 2]":
            return _is(value, "int") and value in (1, 2)
        case "DType":
            return isinstance(value, str) and value in DTYPE_RANGE
        case "Padding":
            return _is(value, "tuple[int, ...]") and len(value) == 4
        case "NDArray[np.int32] | str":
            return _is(value, "NDArray[np.int32]") or _is(value, "str")
        case _ if annotation.startswith("tuple["):
            member = annotation.removeprefix("tuple[").removesuffix(", ...]")
            some = isinstance(value, tuple) and (len(value) > 0 or member in ("Op", "Vector"))
            return some and all(_is(item, member) for item in value)
        case _ if isinstance(value, np.ndarray):
            return annotation == f"NDArray[np.{value.dtype}]" and value.size > 0
        case _:
            return annotation in (type(value).__name__, "Op")


def _shaped(op: Any, shape: tuple[int | None, ...], *names: str) -> None:
    for name in names:
        found = getattr(op, name).shape
        same = len(found) == len(shape) and all(n in (None, f) for n, f in zip(shape, found))
        _require(same, op, f"the shape of {name}", str(shape).replace("None", "any"), found)


def _range(where: Any, what: str, value: int, low: int, high: int) -> None:
    _require(low <= value <= high, where, what, f"in {low}..{high}", value)


def _require(condition: bool, where: Any, what: str, expected: Any, found: Any) -> None:
    if not condition:
        at = f"{type(where).__name__} {getattr(where, 'output', getattr(where, 'name', ''))!r}"
        raise ContractError(f"{at}: {what} must be {expected}, not {found}")


def check_inputs(
    program: Program, inputs: Mapping[str, NDArray[Any]], vectors: Mapping[str, NDArray[Any]]
) -> dict[str, Shape]:
    """Check what a Program is given to run on; return the shape of every tensor.

    Every executor calls it first, so that all of them refuse the same things.
    """
    dtypes = {x.name: NUMPY_DTYPE[x.dtype] for x in program.inputs}
    dtypes |= {vector.name: np.dtype(np.int32) for vector in program.vectors}
    given = {**inputs, **vectors}
    _require(given.keys() == dtypes.keys(), program, "what is given", sorted(dtypes), sorted(given))
    for name, dtype in dtypes.items():
        found = getattr(given[name], "dtype", type(given[name]))
        _require(found == dtype, program, f"the array {name!r}", f"of {dtype}", found)
    for vector in program.vectors:
        values, shape = vectors[vector.name], (vector.channels,)
        _require(values.shape == shape, vector, "the shape", shape, values.shape)
        _range(vector, "every value", int(values.min()), 0, VECTOR_MAX)
        _range(vector, "every value", int(values.max()), 0, VECTOR_MAX)
    return infer_shapes(program, {name: array.shape for name, array in inputs.items()})


def infer_shapes(program: Program, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Shape]:
    """Return the shape (C, H, W) of every tensor of a checked Program, given those of its inputs.

    Raises ContractError where sizes do not fit: unequal, not a multiple, smaller than a kernel.
    """
    known: dict[str, Shape] = {}
    for node in (*program.inputs, *program.ops):
        if isinstance(node, Input):
            channels, *size = shapes.get(node.name, ()) or (0,)
            fits = channels == node.channels and len(size) == 2
            _require(
                fits, node, "the shape", f"({node.channels}, height, width)", (channels, *size)
            )
        else:
            channels, *size = _shape(node, [known[name] for name in operands(node)])
        _range(node, "height and width", min(size), 1, SIZE_MAX)
        _range(node, "height and width", max(size), 1, SIZE_MAX)
        known[node.name if isinstance(node, Input) else node.output] = (channels, size[0], size[1])
    return known


def _shape(op: Op, inputs: list[Shape]) -> Shape:
    channels, height, width = inputs[0]
    match op:
        case ops.Conv(padding=(top, left, bottom, right)):
            channels, _, kernel_h, kernel_w = op.weight.shape
            height = (height + top + bottom - kernel_h) // op.stride + 1
            width = (width + left + right - kernel_w) // op.stride + 1
        case ops.TransposedConv(stride=r):
            channels, height, width = op.weight.shape[1], height * r, width * r
        case ops.PixelShuffle(factor=r):
            channels, height, width = channels // r**2, height * r, width * r
        case ops.PixelUnshuffle(factor=r):
            whole = height % r == 0 and width % r == 0
            _require(whole, op, "height and width", f"multiples of {r}", (height, width))
            channels, height, width = channels * r**2, height // r, width // r
        case ops.Slice():
            channels = op.stop - op.start
        case ops.Concat():
            channels = sum(shape[0] for shape in inputs)
    for other in inputs[1:]:
        same = other[1:] == inputs[0][1:]
        _require(same, op, "height and width", inputs[0][1:], other[1:])
    return (channels, height, width)


def macs_per_pixel(program: Program, reduction_of_input: int, wide_factor: int = 2) -> float:
    """Count 8-bit multiply-accumulates per pixel of a large picture.

    reduction_of_input: picture pixels per position of the inputs, along one axis (16: the inputs
    are latents at 1/16). Conv, TransposedConv (its true taps) and the sums of GDN count,
    `wide_factor` times where the operand has 16 bits.
    """
    known, side, total = tensors(program), 3 * 1024, 0
    shapes = infer_shapes(program, {x.name: (x.channels, side, side) for x in program.inputs})
    for op in program.ops:
        x, (_, height, width) = known[operands(op)[0]], shapes[op.output]
        wide, macs = x.dtype == "s16", 0
        match op:
            case ops.Conv():
                macs = op.weight.size * height * width
            case ops.TransposedConv():  # every tap meets every input position once
                macs = op.weight.size * height * width // op.stride**2
            case ops.GDN():
                macs = op.gamma.size * height * width
                wide = gdn_operand_max(op, x.magnitude) > 255
        total += macs * (wide_factor if wide else 1)
    return total / (side * reduction_of_input) ** 2
