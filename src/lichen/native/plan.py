"""A packed Program laid out for one picture size: buffers, and the order in which rows are made.

Rows stream: the picture advances in bands, and every operation makes the rows that its inputs
allow as soon as they are there. A buffer is a ring that holds the rows which some operation still
needs, so memory stays near that of a few lines, and mostly in the second-level cache.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lichen.native.pack import KINDS, S8X, S16, S32, PackedProgram, Stage
from lichen.program import ops
from lichen.program.check import operands

Shape = tuple[int, int, int]
BAND_BYTES = 1 << 19  # of all the rows that one band makes: half of a common second-level cache
GDN_PIXELS = 32  # of plan.h


def _fields(integers: str, pointers: str = "") -> list[tuple[str, Any]]:
    """List fields of a C structure: int64_t first, then pointers."""
    named = [(name, ctypes.c_int64) for name in integers.split()]
    return named + [(name, ctypes.c_void_p) for name in pointers.split()]


class TensorRecord(ctypes.Structure):
    """Field for field lichen_tensor of plan.h."""

    _fields_ = _fields(
        "external offset pad_offset stride_y stride_x stride_c rows storage channels height width"
    )


class ExternalRecord(ctypes.Structure):
    """Field for field lichen_external of plan.h."""

    _fields_ = [*_fields("", "data"), *_fields("stride_c stride_y stride_x")]


class OpRecord(ctypes.Structure):
    """Field for field lichen_op of plan.h."""

    _fields_ = _fields(
        "kind a b output width low high stride top left kernel_h kernel_w groups group_inputs "
        "group_outputs shift_a shift_b shift subtract factor permuted vector mode",
        "weight windows constants table",
    )


class RunRecord(ctypes.Structure):
    """Field for field lichen_run of plan.h."""

    _fields_ = _fields("", "ops tensors external vectors arena nanoseconds")


def element_bytes(storage: int) -> int:
    """Give the size of a stored element."""
    return {S16: 2, S32: 4}.get(storage, 1)


@dataclass
class Rows:
    """Which rows a stage needs and makes; a unit is the work between two of its checks."""

    units: int
    input_heights: tuple[int, ...]
    stride: int = 1  # input rows per unit
    before: int = 0  # input rows above unit * stride (padding)
    span: int = 1  # input rows of a unit
    makes: int = 1  # output rows per unit

    def first(self, unit: int) -> int:
        """Give the first input row that units from `unit` on need."""
        return max(0, unit * self.stride - self.before)

    def possible(self, available: tuple[int, ...]) -> int:
        """Count the units that can be done with the input rows that are there."""
        units = self.units
        for rows, height in zip(available, self.input_heights, strict=True):
            if rows < height:
                units = min(units, (rows + self.before - self.span) // self.stride + 1)
        return max(0, units)


class Plan:
    """What lichen_run_plan needs for one size of picture; immutable, shared between threads."""

    def __init__(self, packed: PackedProgram, shapes: Mapping[str, Shape]) -> None:
        self.packed = packed
        self.shapes = dict(shapes)
        for name in packed.places:
            if name not in self.shapes:
                self.shapes[name] = self._shape(name)
        self.rows = [self._rows(stage) for stage in packed.stages]
        ring, self.steps = self._schedule()
        self._lay_out(ring)
        self._records()
        self.free_arenas: list[NDArray[np.uint8]] = []

    def _shape(self, name: str) -> Shape:
        """Give the shape of a tensor that packing added: a copy, a part, or phases."""
        for stage in self.packed.stages:
            if stage.output == name and stage.kind == "copy":
                return self.shapes[stage.inputs[0]]
            if name in stage.inputs and stage.kind == "copy":
                return self.shapes[stage.output]
            if name in stage.inputs and isinstance(stage.op, ops.PixelShuffle):
                _, height, width = self.shapes[stage.output]
                factor = stage.op.factor
                return (self.packed.channels(name), height // factor, width // factor)
        raise AssertionError(name)

    # ---- which rows when ----

    def _rows(self, stage: Stage) -> Rows:
        heights = tuple(self.shapes[name][1] for name in stage.inputs)
        height = self.shapes[stage.output][1]
        match stage.op:
            case ops.Conv() as op:
                return Rows(height, heights, op.stride, op.padding[0], op.weight.shape[2])
            case ops.PixelUnshuffle(factor=r):
                return Rows(height, heights, stride=r, span=r)
            case ops.PixelShuffle(factor=r):
                return Rows(height // r, heights, makes=r)
            case _:
                return Rows(height, heights)

    def _bands(self) -> int:
        """Choose the number of bands: at most one for each row of the tallest input."""
        total = 0
        for name, place in self.packed.places.items():
            if place.external < 0 and place.root == name:
                channels, height, width = self.shapes[name]
                total += channels * height * width * element_bytes(self.packed.storage(name))
        tallest = max(self.shapes[name][1] for name in self.packed.inputs)
        return max(1, min(tallest, -(-total // BAND_BYTES)))

    def _schedule(self) -> tuple[dict[str, int], NDArray[np.int32]]:
        """Play the bands through; return the rows that each buffer must hold, and the steps."""
        packed, stages = self.packed, self.packed.stages
        done = [0] * len(stages)
        made = dict.fromkeys(packed.places, 0)
        readers: dict[str, list[int]] = {}
        for index, stage in enumerate(stages):
            for name in stage.inputs:
                readers.setdefault(packed.places[name].root, []).append(index)
        structural = [op for op in packed.ops if isinstance(op, ops.Concat | ops.Slice)]
        ring: dict[str, int] = {}
        steps: list[tuple[int, int, int]] = []
        bands = self._bands()
        sources = [n for n, p in packed.places.items() if 0 <= p.external < len(packed.inputs)]
        for band in range(1, bands + 1):
            for name in sources:
                made[name] = -(-self.shapes[name][1] * band // bands)
            for index, (stage, rows) in enumerate(zip(stages, self.rows, strict=True)):
                for op in structural:  # not stages: their rows are there when their inputs' are
                    made[op.output] = min(made[name] for name in operands(op))
                units = rows.possible(tuple(made[name] for name in stage.inputs))
                if units <= done[index]:
                    continue
                root = packed.places[stage.output].root
                # The rows of this step count too: no two of them may share a slot. Other stages
                # that write to the same buffer have channels of their own.
                needed = [made[stage.output]]
                needed += [
                    self.rows[reader].first(done[reader])
                    for reader in readers.get(root, [])
                    if done[reader] < self.rows[reader].units
                ]
                steps.append((index, done[index], units))
                done[index] = units
                made[stage.output] = units * rows.makes
                ring[root] = max(ring.get(root, 1), made[stage.output] - min(needed))
        assert all(n == rows.units for n, rows in zip(done, self.rows, strict=True))
        return ring, np.array(steps, np.int32).reshape(-1, 3)

    # ---- where things are ----

    def _lay_out(self, ring: Mapping[str, int]) -> None:
        """Give every buffer its place in the arena: rows with margins, and a row of zeros."""
        packed = self.packed
        self.layouts: dict[str, Layout] = {}
        self.fills: list[tuple[int, int]] = []  # parts of the arena whose zero is 128
        end = 0
        for name, place in packed.places.items():
            if place.external >= 0 or place.root != name:
                continue
            left = right = vertical = 0
            for stage in packed.stages:
                reads = any(packed.places[n].root == name for n in stage.inputs)
                if reads and isinstance(stage.op, ops.Conv):
                    top, before, bottom, after = stage.op.padding
                    left, right = max(left, before), max(right, after)
                    vertical |= top > 0 or bottom > 0
            _, _, width = self.shapes[name]
            storage, channels = packed.storage(name), packed.channels(name)
            size = element_bytes(storage)
            if place.planar:
                step_x, step_c = size, round_up(width * size, 64)
                row = step_c * channels
            else:
                step_x, step_c = round_up(channels, 4) * size, size
                row = round_up((left + width + right) * step_x, 64)
            row += 64 * (row % 4096 == 0)  # rows a multiple of 4096 apart share cache sets
            rows = ring.get(name, 1)
            first = end + left * step_x
            self.layouts[name] = Layout(first, first + rows * row, row, step_x, step_c, rows)
            size_bytes = (rows + vertical) * row
            if storage == S8X:
                self.fills.append((end, end + size_bytes))
            end += size_bytes
        self.arena_bytes = end + 128  # kernels read up to three channels past the last one

    def _records(self) -> None:
        packed = self.packed
        index = {name: i for i, name in enumerate(packed.places)}
        self.tensors = (TensorRecord * len(index))()
        for name, i in index.items():
            self.tensors[i] = self._tensor(name)
        self.ops = (OpRecord * len(packed.stages))()
        self.scratch_bytes = 64
        for record, stage in zip(self.ops, packed.stages, strict=True):
            record.kind, record.output = KINDS.index(stage.kind), index[stage.output]
            record.a, record.b = index[stage.inputs[0]], index[stage.inputs[-1]]
            wide = stage.inputs[0] if stage.kind == "shuffle" else stage.output
            record.width = self.shapes[wide][2]
            record.vector = -1
            for key, value in stage.fields.items():
                setattr(record, key, value)
            for key, array in stage.arrays.items():
                setattr(record, key, array.ctypes.data)
            if stage.kind == "gdn":
                inputs = round_up(self.shapes[stage.output][0], 4)
                pixel = round_up(inputs, 16) * 4 + inputs * 2
                self.scratch_bytes = max(self.scratch_bytes, GDN_PIXELS * pixel + inputs * 4)

    def _tensor(self, name: str) -> TensorRecord:
        place, storage = self.packed.places[name], self.packed.storage(name)
        _, height, width = self.shapes[name]
        record = TensorRecord(external=place.external, storage=storage, height=height, width=width)
        record.channels = self.packed.channels(name)
        if place.external < 0:
            layout = self.layouts[place.root]
            shift = place.first * layout.step_c
            record.offset, record.pad_offset = layout.offset + shift, layout.pad_offset + shift
            record.stride_y, record.rows = layout.step_y, layout.rows
            record.stride_x, record.stride_c = layout.step_x, layout.step_c
        return record

    def arena(self) -> NDArray[np.uint8]:
        """Allocate the buffers, margins set to zero, at an address that is a multiple of 64."""
        raw = np.zeros(self.arena_bytes + 64, np.uint8)
        arena = raw[-raw.ctypes.data % 64 :]
        for start, stop in self.fills:
            arena[start:stop] = 128
        return arena


@dataclass
class Layout:
    """Where a buffer lies in the arena, in bytes; `rows` of a ring."""

    offset: int
    pad_offset: int
    step_y: int
    step_x: int
    step_c: int
    rows: int


def round_up(value: int, multiple: int) -> int:
    """Round up to a multiple."""
    return -(-value // multiple) * multiple
