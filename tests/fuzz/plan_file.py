"""Plan files: a prepared Program for one picture size as plain bytes, for harnesses in C.

What `lichen.executors.native` hands to run.c, with offsets for pointers, together with one set of
inputs and the outputs that the reference gives. `plan_file.h` reads it; tests/fuzz/plans.c fuzzes
it, scripts/conformance-emulated runs it on other processors. All int64 little-endian unless said:

    magic, form, tensors, ops, inputs, outputs, vectors, steps, fills, arena bytes, scratch bytes
    per array of the caller   channels, height, width, bytes of an element, low, high, channels last
    per vector                channels
    per fill                  start, stop
    per tensor                the fields of lichen_tensor
    per operation             the integers of lichen_op; offset and size of each of its 4 arrays
    steps                     int32 [steps][3], padded to 8 bytes
    blob bytes, blob          the arrays, each at a multiple of 64
    inputs, vectors, outputs  (C, H, W) in C order, each padded to 8 bytes; vectors int32
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lichen.native.pack import PLANAR_CHANNELS, PackedProgram
from lichen.native.plan import OpRecord, Plan, TensorRecord
from lichen.program import Program, reference
from lichen.program.arithmetic import DTYPE_RANGE, NUMPY_DTYPE
from lichen.program.check import check_inputs

MAGIC = 0x4E414C504E48434C
ARRAYS = ("weight", "windows", "constants", "table")
Arrays = Mapping[str, NDArray[Any]]


def to_bytes(program: Program, inputs: Arrays, vectors: Arrays, form: int) -> bytes:
    """Pack, lay out and write a Program. form: `lichen_isa.bytes` of the instruction set."""
    packed = PackedProgram(program, form)
    plan = Plan(packed, check_inputs(program, inputs, vectors))
    expected = reference.run(program, inputs, vectors)
    externals = [(name, True) for name in packed.inputs] + [(n, False) for n in packed.outputs]
    head: list[int] = [
        MAGIC, form, len(plan.tensors), len(plan.ops), len(packed.inputs), len(packed.outputs),
        len(packed.vectors), len(plan.steps), len(plan.fills), plan.arena_bytes,
        plan.scratch_bytes,
    ]  # fmt: skip
    for name, is_input in externals:
        shape = plan.shapes[name]
        dtype = packed.known[name].dtype
        last = not is_input and shape[0] > PLANAR_CHANNELS
        head += [*shape, np.dtype(NUMPY_DTYPE[dtype]).itemsize, *DTYPE_RANGE[dtype], int(last)]
    head += [len(vectors[name]) for name in packed.vectors]
    for fill in plan.fills:
        head += fill
    for tensor in plan.tensors:
        head += [getattr(tensor, field) for field, _ in TensorRecord._fields_]
    integers = [field for field, _ in OpRecord._fields_ if field not in ARRAYS]
    blob = bytearray()
    for record, stage in zip(plan.ops, packed.stages, strict=True):
        head += [getattr(record, field) for field in integers]
        for field in ARRAYS:
            array = stage.arrays.get(field)
            if array is None:
                head += [-1, 0]
                continue
            blob += bytes(-len(blob) % 64)
            head += [len(blob), array.nbytes]
            blob += array.tobytes()
    parts = [struct.pack(f"<{len(head)}q", *head), _padded(plan.steps.astype("<i4").tobytes())]
    parts += [struct.pack("<q", len(_padded(bytes(blob)))), _padded(bytes(blob))]
    parts += [_padded(np.ascontiguousarray(inputs[n]).tobytes()) for n in packed.inputs]
    parts += [_padded(np.ascontiguousarray(vectors[n]).tobytes()) for n in packed.vectors]
    parts += [_padded(np.ascontiguousarray(expected[n]).tobytes()) for n in packed.outputs]
    return b"".join(parts)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)
