"""Write a Program as an ONNX graph, and run it with ONNX Runtime: the same codec, bit for bit.

Only standard operators (opset 17), the products by ConvInteger. How the contract's integers are
carried inside the graph:

    u8    uint8
    s8    uint8, 128 more (the zero point of ConvInteger)
    s16   int32; two ConvInteger take its high byte (zero point 128) and its low byte

Weights travel as uint8 with zero point 128 too: not every ONNX Runtime takes int8 weights in
ConvInteger, and on x86 before VNNI its uint8 x int8 kernels saturate pairs of products at 16
bits. Rounding is Mul by 2**-shift, Round (half to even) and Clip, in float32 where the bound of
the accumulator is below 2**24 and in float64 elsewhere: exact in both.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from lichen.errors import DeviceError
from lichen.program import DType, Op, Program, ops
from lichen.program.arithmetic import DTYPE_RANGE, NUMPY_DTYPE, gdn_tables
from lichen.program.check import (
    FLOAT32_BOUND,
    Shape,
    Tensor,
    accumulator_bound,
    check,
    check_inputs,
    gdn_operand_max,
    infer_shapes,
    operands,
    tensors,
)
from lichen.program.rewrite import subpixel

OPSET = 17
IR_VERSION = 8  # of opset 17's time, so that older readers take the file

Array = NDArray[Any]


def export(program: Program, shapes: Mapping[str, tuple[int, ...]]) -> Any:
    """Return the onnx.ModelProto of a Program for inputs of the given shapes (C, H, W).

    Graph inputs and outputs are (1, C, H, W) in uint8, int8 or int16; vectors are int32 (C,).
    They keep their names and order; an output that is an input has ".out" added to its name.
    """
    onnx = _need("onnx")
    graph = _Graph(program, infer_shapes(program, shapes))
    inputs = [graph.declare_input(x.name, x.dtype) for x in program.inputs]
    for vector in program.vectors:
        inputs.append(onnx.helper.make_tensor_value_info(
            vector.name, onnx.TensorProto.INT32, [vector.channels]))  # fmt: skip
    for op in program.ops:
        graph.add(op)
    outputs = [graph.declare_output(output.name) for output in program.outputs]
    proto = onnx.helper.make_graph(graph.nodes, program.name, inputs, outputs, graph.constants)
    model = onnx.helper.make_model(
        proto, producer_name="lichen", ir_version=IR_VERSION,
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
    )  # fmt: skip
    onnx.checker.check_model(model)
    return model


class OnnxExecutor:
    """Run Programs with ONNX Runtime on the CPU, equal to the reference.

    threads: of ONNX Runtime, within an operator. Raises DeviceError where onnx or onnxruntime is
    not installed. A session is built for each Program and input size, and kept with the Program.
    """

    name = "onnx"

    def __init__(self, threads: int = 1) -> None:
        _need("onnx")
        self._runtime = _need("onnxruntime")
        self.threads = threads
        self._sessions: WeakKeyDictionary[Program, dict[Any, Any]] = WeakKeyDictionary()

    def run(
        self,
        program: Program,
        inputs: Mapping[str, Array],
        vectors: Mapping[str, Array] = MappingProxyType({}),
    ) -> dict[str, Array]:
        """Return the outputs by name."""
        sessions = self._sessions.setdefault(program, {})
        if not sessions:
            check(program)
        check_inputs(program, inputs, vectors)
        shapes = tuple(inputs[x.name].shape for x in program.inputs)
        if shapes not in sessions:
            sessions[shapes] = self._session(program, shapes)
        feed = {name: np.ascontiguousarray(array)[None] for name, array in inputs.items()}
        found = sessions[shapes].run(None, feed | dict(vectors))
        return {out.name: array[0] for out, array in zip(program.outputs, found, strict=True)}

    def _session(self, program: Program, shapes: tuple[Any, ...]) -> Any:
        names = [x.name for x in program.inputs]
        model = export(program, dict(zip(names, shapes, strict=True)))
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        return self._runtime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )


class _Graph:
    """The nodes of one export. Methods take and give names of values in the graph."""

    def __init__(self, program: Program, shapes: Mapping[str, Shape]) -> None:
        self.onnx = _need("onnx")
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.known: dict[str, Tensor] = tensors(program)
        self.shapes = shapes
        self.taken = {x.name for x in (*program.inputs, *program.vectors, *program.outputs)}
        self.inputs = {x.name for x in program.inputs}
        self.prefix = "lichen"  # of the names made here, and of no other
        while any(name.startswith(self.prefix) for name in self.taken):
            self.prefix += "_"
        self.carried: dict[str, str] = {}  # tensor of the Program -> value that carries it

    # Building blocks

    def node(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        output = output or f"{self.prefix}.{len(self.nodes)}.{kind}"
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(self, value: Any, dtype: Any) -> str:
        name = f"{self.prefix}.constant.{len(self.constants)}"
        array = np.asarray(value).astype(dtype)
        self.constants.append(self.onnx.numpy_helper.from_array(array, name))
        return name

    def cast(self, value: str, dtype: Any) -> str:
        to = self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self.node("Cast", value, to=to)

    def real(self, tensor: str, dtype: Any) -> str:
        """The true integers of a tensor of the Program, as floats."""
        value = self.cast(self.carried[tensor], dtype)
        if self.known[tensor].dtype == "s8":
            value = self.node("Sub", value, self.constant(128, dtype))
        return value

    def store(self, op: Any, value: str, scale: Any, dtype: Any) -> str:
        """Round value * scale, saturate and carry it in the type of `op`."""
        low, high = (self.constant(limit, dtype) for limit in DTYPE_RANGE[_type(op)])
        value = self.node("Round", self.node("Mul", value, self.constant(scale, dtype)))
        value = self.node("Clip", value, low, high)
        if op.dtype == "s8":
            value = self.node("Add", value, self.constant(128, dtype))
        return self.cast(value, np.int32 if op.dtype == "s16" else np.uint8)

    def bytes_of(self, value: str) -> tuple[str, str]:
        """Split int32 values 0..65535 into their high and low bytes, as uint8."""
        base = self.constant(256, np.int32)
        high = self.node("Div", value, base)
        low = self.node("Sub", value, self.node("Mul", high, base))
        return self.cast(high, np.uint8), self.cast(low, np.uint8)

    def declare_input(self, name: str, dtype: DType) -> Any:
        if dtype == "s8":
            moved = self.node("Add", self.cast(name, np.int32), self.constant(128, np.int32))
            self.carried[name] = self.cast(moved, np.uint8)
        else:
            self.carried[name] = name if dtype == "u8" else self.cast(name, np.int32)
        return self._info(name, name)

    def declare_output(self, tensor: str) -> Any:
        name = tensor
        while tensor in self.inputs and name in self.taken:
            name += ".out"
        value, dtype = self.carried[tensor], self.known[tensor].dtype
        if dtype == "s8":
            value = self.node("Sub", self.cast(value, np.int32), self.constant(128, np.int32))
        to = self.onnx.helper.np_dtype_to_tensor_dtype(NUMPY_DTYPE[dtype])
        self.node("Cast", value, output=name, to=to)
        return self._info(name, tensor)

    def _info(self, name: str, tensor: str) -> Any:
        kind = self.onnx.helper.np_dtype_to_tensor_dtype(NUMPY_DTYPE[self.known[tensor].dtype])
        shape = [1, *self.shapes[tensor]]
        return self.onnx.helper.make_tensor_value_info(name, kind, shape)

    # Operations

    def add(self, op: Op) -> None:
        """Add the nodes of one operation."""
        names = operands(op)
        bound = accumulator_bound(op, *(self.known[name].magnitude for name in names)).max()
        dtype = np.float32 if bound < FLOAT32_BOUND else np.float64
        carried = [self.carried[name] for name in names]
        self.carried[op.output] = self.result(op, carried, dtype)

    def result(self, op: Op, carried: list[str], dtype: Any) -> str:
        match op:
            case ops.Conv():
                return self.conv(op, dtype)
            case ops.TransposedConv():
                return self.shuffle(self.conv(subpixel(op)[0], dtype), op.output, op.stride)
            case ops.PixelShuffle():
                return self.shuffle(carried[0], op.output, op.factor)
            case ops.PixelUnshuffle(factor=r):
                channels, height, width = self.shapes[op.input]
                phases = (1, channels, height // r, r, width // r, r)
                return self.permute(carried[0], phases, (0, 1, 3, 5, 2, 4), op.output)
            case ops.Add():
                shifted = [
                    self.node("Mul", self.real(name, dtype), self.constant(2**shift, dtype))
                    for name, shift in ((op.a, op.shift_a), (op.b, op.shift_b))
                ]
                exact = self.node("Sub" if op.subtract else "Add", *shifted)
                return self.store(op, exact, 0.5**op.shift, dtype)
            case ops.Concat():
                return self.node("Concat", *carried, axis=1)
            case ops.Slice():
                ends = [self.constant([value], np.int64) for value in (op.start, op.stop, 1)]
                return self.node("Slice", carried[0], *ends)
            case ops.Scale():
                if isinstance(op.multiplier, str):
                    shape = self.constant([1, -1, 1, 1], np.int64)
                    m = self.node("Reshape", self.cast(op.multiplier, dtype), shape)
                else:
                    m = self.constant(op.multiplier.reshape(1, -1, 1, 1), dtype)
                exact = self.node("Mul", self.real(op.input, dtype), m)
                return self.store(op, exact, 0.5**op.shift, dtype)
            case ops.Clamp():
                kind = self.known[op.input].dtype
                limits = np.array([op.low, op.high]) + (128 if kind == "s8" else 0)
                ends = [self.constant(v, np.int32 if kind == "s16" else np.uint8) for v in limits]
                return self.node("Clip", carried[0], *ends)
            case ops.GDN():
                return self.gdn(op)
            case ops.TableIndex():
                low, high = DTYPE_RANGE[self.known[op.input].dtype]
                table = np.searchsorted(op.thresholds, np.arange(low, high + 1), side="right")
                index = self.cast(carried[0], np.int64)
                if self.known[op.input].dtype == "s16":
                    index = self.node("Add", index, self.constant(-low, np.int64))
                return self.node("Gather", self.constant(table, np.uint8), index)

    def shuffle(self, value: str, output: str, r: int) -> str:
        channels, height, width = self.shapes[output]
        phases = (1, channels, r, r, height // r, width // r)
        return self.permute(value, phases, (0, 1, 4, 2, 5, 3), output)

    def permute(
        self, value: str, split: tuple[int, ...], order: tuple[int, ...], output: str
    ) -> str:
        value = self.node("Reshape", value, self.constant(split, np.int64))
        value = self.node("Transpose", value, perm=order)
        return self.node("Reshape", value, self.constant((1, *self.shapes[output]), np.int64))

    def sums(self, value: str, zero: int, weight: str, weight_zero: int, dtype: Any,
             **attributes: Any) -> str:  # fmt: skip
        """Exact sums of products of uint8 values, cast to floats that hold them."""
        zeros = [self.constant(z, np.uint8) for z in (zero, weight_zero)]
        return self.cast(self.node("ConvInteger", value, weight, *zeros, **attributes), dtype)

    def conv(self, op: ops.Conv, dtype: Any) -> str:
        weight = self.constant(op.weight.astype(np.int16) + 128, np.uint8)
        value, kind = self.carried[op.input], self.known[op.input].dtype
        attributes = {
            "kernel_shape": op.weight.shape[2:],
            "strides": (op.stride, op.stride),
            "pads": op.padding,
            "group": op.groups,
        }
        if kind == "s16":
            moved = self.node("Add", value, self.constant(32768, np.int32))
            high, low = self.bytes_of(moved)
            # The high bytes alone, times 256, may exceed the bound of the whole sum.
            dtype = np.float64
            sums = self.node("Add",
                self.node("Mul", self.sums(high, 128, weight, 128, dtype, **attributes),
                          self.constant(256, dtype)),
                self.sums(low, 0, weight, 128, dtype, **attributes))  # fmt: skip
        else:
            zero = 128 if kind == "s8" else 0
            sums = self.sums(value, zero, weight, 128, dtype, **attributes)
        exact = self.node("Add", sums, self.constant(op.bias.reshape(1, -1, 1, 1), dtype))
        return self.store(op, exact, 0.5 ** op.shift.astype(np.float64).reshape(1, -1, 1, 1), dtype)

    def gdn(self, op: ops.GDN) -> str:
        double = np.float64
        x = self.real(op.input, double)
        if op.power == 2:
            scale = self.constant(0.5**op.square_shift, double)
            u = self.node("Round", self.node("Mul", self.node("Mul", x, x), scale))
            u = self.node("Min", u, self.constant(65535, double))
        else:
            u = self.node("Abs", x)
        gamma = self.constant(op.gamma[:, :, None, None], np.uint8)
        high, low = self.bytes_of(self.cast(u, np.int32))
        n = self.node("Add", self.sums(low, 0, gamma, 0, double),
                      self.constant(op.beta.reshape(1, -1, 1, 1), double))  # fmt: skip
        if gdn_operand_max(op, self.known[op.input].magnitude) > 255:
            wide = self.node(
                "Mul", self.sums(high, 0, gamma, 0, double), self.constant(256, double)
            )
            n = self.node("Add", n, wide)
        tables = gdn_tables(op.power, op.inverse, op.shift)
        bits = self.bit_length(n)
        factor = n
        if len(tables.factors) > 0:
            normalise = self.node("Gather", self.constant(0.5**tables.normalise, double), bits)
            mantissa = self.node("Round", self.node("Mul", n, normalise))
            first = self.constant(tables.first, np.int64)
            index = self.node("Sub", self.cast(mantissa, np.int64), first)
            factor = self.node("Gather", self.constant(tables.factors, double), index)
        exact = self.node("Mul", x, factor)  # below 2**47, exact in float64
        total = self.node("Gather", self.constant(0.5**tables.total, double), bits)
        return self.store(op, self.node("Mul", exact, total), 1.0, double)

    def bit_length(self, n: str) -> str:
        """The bit length of integers 1 .. 2**31 - 1, by halving; comparisons only, all exact."""
        bits = self.constant(1, np.int64)
        zero = self.constant(0, np.int64)
        for step in (16, 8, 4, 2, 1):
            big = self.node("GreaterOrEqual", n, self.constant(2.0**step, np.float64))
            halved = self.node("Mul", n, self.constant(0.5**step, np.float64))
            n = self.node("Where", big, halved, n)
            count = self.node("Where", big, self.constant(step, np.int64), zero)
            bits = self.node("Add", bits, count)
        return bits


def _type(op: Any) -> DType:
    dtype: DType = op.dtype
    return dtype


def _need(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise DeviceError(f"the ONNX executor needs {module}: pip install {module}") from error
