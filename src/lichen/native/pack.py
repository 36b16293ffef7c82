"""A Program as the C kernels want it, for any picture size: stages, packed weights, layouts.

    Stage     one C operation; TransposedConv becomes two, Concat and Slice mostly none
    Place     where a tensor lives: a buffer of its own, some channels of another tensor's
              buffer, or an array of the caller

Buffers inside are channel-last; pictures (few channels) that only element-wise operations and
pixel shuffles touch are planar, so that a shuffle moves whole runs of pixels.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lichen.errors import ContractError
from lichen.program import ops
from lichen.program.arithmetic import DTYPE_RANGE
from lichen.program.check import operands, tensors
from lichen.program.program import Program
from lichen.program.rewrite import subpixel

U8, S8X, S16, S8, S32 = range(5)  # STORE_* of plan.h
KINDS = ("conv", "depthwise", "copy", "shuffle", "unshuffle", "add", "scale", "clamp", "table",
         "gdn")  # fmt: skip
LANES = 32  # of a depthwise convolution, see transforms.h
PLANAR_CHANNELS = 4
ELEMENTWISE = (ops.Add, ops.Scale, ops.Clamp, ops.TableIndex)
READS_PLANAR = (*ELEMENTWISE, ops.PixelUnshuffle)
WRITES_PLANAR = (*ELEMENTWISE, ops.PixelShuffle)


@dataclass
class Place:
    """Where a tensor is: `root` names the tensor whose buffer holds it, from channel `first`."""

    root: str
    first: int = 0
    external: int = -1
    planar: bool = False


@dataclass
class Stage:
    """One C operation: fields of `lichen_op` that do not depend on the picture's size."""

    kind: str
    inputs: tuple[str, ...]
    output: str
    op: ops.Op | None = None
    fields: dict[str, int] = field(default_factory=dict)
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)


def aligned(array: NDArray[Any]) -> NDArray[Any]:
    """Copy to an address that is a multiple of 64."""
    raw = np.empty(array.nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    out = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    out[...] = array
    return out


def pack_weight(weight: NDArray[Any], groups: int, dtype: Any) -> NDArray[Any]:
    """(O, I, kh, kw) -> [group][O / 16][kh][kw][I / n][16][n], n elements filling 4 bytes."""
    outputs, inputs, *kernel = weight.shape
    blocks, fours = -(-(outputs // groups) // 16), -(-inputs // 4)
    whole = np.zeros((groups, blocks * 16, fours * 4, *kernel), dtype)
    whole[:, : outputs // groups, :inputs] = weight.reshape(groups, -1, inputs, *kernel)
    n = 4 // whole.itemsize
    split = whole.reshape(groups, blocks, 16, fours * 4 // n, n, *kernel)
    return aligned(split.transpose(0, 1, 5, 6, 3, 2, 4))


def tap_windows(packed: NDArray[Any]) -> NDArray[np.int32]:
    """Bound the taps of a packed weight that are not zero: [block](row from, to, column from, to).

    A subpixel convolution (5x5, stride 2) has 25 of 36 left.
    """
    taps = packed.any(axis=(4, 5, 6)).reshape(-1, *packed.shape[2:4])
    windows = np.zeros((len(taps), 4), np.int32)
    for window, used in zip(windows, taps, strict=True):
        for first, line in ((0, used.any(axis=1)), (2, used.any(axis=0))):
            where = np.flatnonzero(line)
            if len(where):
                window[first : first + 2] = where[0], where[-1] + 1
    return aligned(windows)


def pack_constants(bias: NDArray[Any], shift: NDArray[Any], groups: int) -> NDArray[Any]:
    """Give int32 [group][O / 16][bias, shift, half - 1, odd][16]; the bias wraps, as sums do."""
    shift = shift.astype(np.int64)
    half = np.where(shift > 0, ((1 << shift) >> 1) - 1, 0)
    rows = np.stack([bias.astype(np.int64), shift, half, shift > 0])
    rows = rows.reshape(4, groups, -1)
    rows = np.pad(rows, ((0, 0), (0, 0), (0, -rows.shape[2] % 16)))
    rows = rows.reshape(4, groups, -1, 16).transpose(1, 2, 0, 3)
    return aligned((rows & 0xFFFFFFFF).astype(np.uint32).view(np.int32))


class PackedProgram:
    """A checked Program packed for one way of storing and multiplying.

    bytes_: as in `lichen_isa` of plan.h. 0: all in s16. 1: u8 and s8 in bytes that kernels take
    as unsigned. 2: the same, taken as signed, less 128.
    Raises ContractError where the Program breaks the contract.
    """

    def __init__(self, program: Program, bytes_: int) -> None:
        for name in tensors(program):
            if "\0" in name:  # keeps the names made here apart from the Program's own
                raise ContractError(f"a tensor's name must not contain NUL, found {name!r}: rename")
        self.bytes = bytes_
        self.inputs = [input.name for input in program.inputs]
        self.outputs = [output.name for output in program.outputs]
        self.vectors = [vector.name for vector in program.vectors]
        self.ops = _live(_rewritten(program), self.outputs)
        self.known = tensors(replace(program, ops=tuple(self.ops)))
        self.uses: dict[str, list[ops.Op]] = defaultdict(list)
        for op in self.ops:
            for name in operands(op):
                self.uses[name].append(op)
        self.producer = {op.output: op for op in self.ops}
        self.permuted: dict[str, int] = {}  # convolution outputs in the order (dy, dx, c)
        self.places: dict[str, Place] = {}
        self.imports: list[tuple[str, str]] = []  # copies: array of the caller, tensor inside
        self.exports: list[tuple[str, str]] = []
        self._place_outputs()
        self._place_inputs()
        self._place_inside()
        self.stages = self._stages()

    def storage(self, name: str) -> int:
        """Tell how the elements of a tensor are stored."""
        dtype = self.known[name].dtype
        if self.places[name].external >= 0:
            return {"u8": U8, "s8": S8, "s16": S16}[dtype]
        return {"u8": U8, "s8": S8X, "s16": S16}[dtype] if self.bytes else S16

    def channels(self, name: str) -> int:
        """Count the channels of a tensor as stored."""
        return self.permuted.get(name, self.known[name].channels)

    def _place_outputs(self) -> None:
        for index, name in enumerate(self.outputs, len(self.inputs)):
            direct = isinstance(self.producer.get(name), WRITES_PLANAR) and not self.uses[name]
            outside = name if direct else f"{name}\0out"
            if not direct:
                self.exports.append((name, outside))
            self._place_outside(outside, name, index)

    def _place_inputs(self) -> None:
        for index, name in enumerate(self.inputs):
            uses, few = self.uses[name], self.known[name].channels <= PLANAR_CHANNELS
            direct = name not in self.outputs and (
                all(isinstance(op, ops.PixelUnshuffle) for op in uses)
                or (few and all(isinstance(op, READS_PLANAR) for op in uses))
                or (len(uses) == 1 and isinstance(uses[0], ELEMENTWISE))
            )
            outside = name if direct else f"{name}\0in"
            if not direct:
                self.imports.append((outside, name))
            self._place_outside(outside, name, index)

    def _place_outside(self, outside: str, name: str, index: int) -> None:
        self.known[outside] = self.known[name]
        self.places[outside] = Place(outside, external=index)

    def _place_inside(self) -> None:
        for op in reversed(self.ops):  # what a Concat reads is written into its place
            if not isinstance(op, ops.Concat):
                continue
            self.places.setdefault(op.output, Place(op.output))
            first = 0
            for name in op.inputs:
                made = self.producer.get(name)
                if made and not isinstance(made, ops.Slice) and name not in self.places:
                    self.places[name] = Place(op.output, first)
                first += self.known[name].channels
        for name in [*self.inputs, *(op.output for op in self.ops)]:
            made = self.producer.get(name)
            if isinstance(made, ops.Slice):
                source = self._resolved(made.input)
                if name not in self.places:
                    self.places[name] = Place(source.root, source.first + made.start)
            elif name not in self.places:
                planar = (
                    self.known[name].channels <= PLANAR_CHANNELS
                    and (name in self.inputs or isinstance(made, WRITES_PLANAR))
                    and all(isinstance(op, READS_PLANAR) for op in self.uses[name])
                )
                self.places[name] = Place(name, planar=planar)
        for name in self.places:
            self.places[name] = self._resolved(name)

    def _resolved(self, name: str) -> Place:
        place, first = self.places[name], 0
        while place.root != name:
            name, first = place.root, first + place.first
            place = self.places[name]
        return replace(place, first=first)

    def _stages(self) -> list[Stage]:
        stages = [Stage("copy", (outside,), inside) for outside, inside in self.imports]
        for op in self.ops:
            stages += self._concat(op) if isinstance(op, ops.Concat) else self._stage(op)
        stages += [Stage("copy", (inside,), outside) for inside, outside in self.exports]
        for stage in stages:
            low, high = DTYPE_RANGE[self.known[stage.output].dtype]
            stage.fields = {"low": low, "high": high} | stage.fields
        return stages

    def _concat(self, op: ops.Concat) -> list[Stage]:
        """Copy the inputs that do not lie in their place already."""
        stages, first, home = [], 0, self.places[op.output]
        for index, name in enumerate(op.inputs):
            part = f"{op.output}\0{index}"
            place = replace(home, first=home.first + first)
            if self.places[name] != place:
                self.known[part], self.places[part] = self.known[name], place
                stages.append(Stage("copy", (name,), part))
            first += self.known[name].channels
        return stages

    def _stage(self, op: ops.Op) -> list[Stage]:
        inputs, fields, arrays = operands(op), {}, {}
        match op:
            case ops.Slice():
                return []
            case ops.Conv():
                return [self._conv(op)]
            case ops.GDN():
                return [self._gdn(op)]
            case ops.PixelShuffle():
                kind = "shuffle"
                fields = {"factor": op.factor, "permuted": int(op.input in self.permuted)}
            case ops.PixelUnshuffle():
                kind, fields = "unshuffle", {"factor": op.factor}
            case ops.Add():
                kind = "add"
                fields = {"shift_a": op.shift_a, "shift_b": op.shift_b, "shift": op.shift,
                          "subtract": int(op.subtract)}  # fmt: skip
            case ops.Scale():
                kind, fields = "scale", {"shift": op.shift}
                if isinstance(op.multiplier, str):
                    fields["vector"] = self.vectors.index(op.multiplier)
                else:
                    arrays["constants"] = aligned(op.multiplier)
            case ops.Clamp():
                kind, fields = "clamp", {"low": op.low, "high": op.high}
            case ops.TableIndex():
                kind = "table"
                values = np.arange(-32768, 32768)
                index = np.searchsorted(op.thresholds, values, side="right")
                arrays["table"] = aligned(index.astype(np.uint8))
            case _:
                raise AssertionError(op)
        return [Stage(kind, inputs, op.output, op, fields, arrays)]

    def _conv(self, op: ops.Conv) -> Stage:
        source = self.known[op.input]
        outputs, inputs, kernel_h, kernel_w = op.weight.shape
        weight, bias, shift = op.weight, op.bias.astype(np.int64), op.shift
        fields = {"stride": op.stride, "top": op.padding[0], "left": op.padding[1],
                  "kernel_h": kernel_h, "kernel_w": kernel_w}  # fmt: skip
        storage = self.storage(op.input)
        if inputs == 1 and outputs == op.groups > 1:
            lanes = -outputs % LANES
            taps = weight.reshape(outputs, -1).T.astype(np.int16)
            half = np.where(shift > 0, ((np.int64(1) << shift.astype(np.int64)) >> 1) - 1, 0)
            constants = np.stack([bias, shift, half, shift > 0]).astype(np.int32)
            arrays = {"weight": aligned(np.pad(taps, ((0, 0), (0, lanes)))),
                      "constants": aligned(np.pad(constants, ((0, 0), (0, lanes))))}  # fmt: skip
            return Stage("depthwise", (op.input,), op.output, op, fields, arrays)
        # Kernels see x + 128 of s8 where they take bytes as unsigned, and x - 128 of u8 otherwise.
        seen = {(1, S8X): 128, (2, U8): -128}.get((self.bytes, storage), 0)
        bias = bias - seen * weight.astype(np.int64).sum(axis=(1, 2, 3))
        factor = self._permutable(op)
        if factor:
            weight, bias, shift = (permute(array, factor) for array in (weight, bias, shift))
            self.permuted[op.output] = outputs = len(bias)
        fields |= {"groups": op.groups, "group_inputs": inputs,
                   "group_outputs": outputs // op.groups}  # fmt: skip
        wide = np.int16 if storage == S16 else np.int8
        packed = pack_weight(weight, op.groups, wide)
        arrays = {"weight": packed, "windows": tap_windows(packed),
                  "constants": pack_constants(bias, shift, op.groups)}  # fmt: skip
        assert source.channels == inputs * op.groups
        return Stage("conv", (op.input,), op.output, op, fields, arrays)

    def _permutable(self, op: ops.Conv) -> int:
        """Return the factor of the PixelShuffle that alone reads a Conv, if copies then suffice."""
        uses = self.uses[op.output]
        if op.output in self.outputs or op.groups > 1 or len(uses) != 1:
            return 0
        shuffle = uses[0]
        if not isinstance(shuffle, ops.PixelShuffle):
            return 0
        place = self.places[shuffle.output]
        own = place.root == shuffle.output and place.external < 0 and not place.planar
        return shuffle.factor if own else 0

    def _gdn(self, op: ops.GDN) -> Stage:
        gamma = op.gamma.astype(np.int64)
        bias = op.beta.astype(np.int64) + 32768 * gamma.sum(axis=1)  # the kernel takes u - 32768
        packed = pack_weight(gamma[:, :, None, None], 1, np.int16)
        arrays = {
            "weight": packed,
            "windows": tap_windows(packed),
            "constants": pack_constants(bias, np.zeros(len(bias)), 1),
        }
        mode = 2 * (op.power == 1) + int(op.inverse)  # GDN_FORWARD .. SIMPLE_INVERSE
        fields = {"shift": op.shift, "shift_a": op.square_shift, "mode": mode}
        return Stage("gdn", (op.input,), op.output, op, fields, arrays)


def permute(array: NDArray[Any], factor: int) -> NDArray[Any]:
    """Reorder channels (c, dy, dx) to (dy, dx, c), each group of c padded to fours with zeros."""
    phases = array.reshape(-1, factor * factor, *array.shape[1:]).swapaxes(0, 1)
    padding = [(0, 0), (0, -phases.shape[1] % 4)] + [(0, 0)] * (array.ndim - 1)
    return np.pad(phases, padding).reshape(-1, *array.shape[1:])


def _rewritten(program: Program) -> list[ops.Op]:
    """Replace each TransposedConv."""
    result: list[ops.Op] = []
    for op in program.ops:
        if isinstance(op, ops.TransposedConv):
            conv, shuffle = subpixel(op)
            phases = f"{op.output}\0phases"
            result += [replace(conv, output=phases), replace(shuffle, input=phases)]
        else:
            result.append(op)
    return result


def _live(given: list[ops.Op], outputs: list[str]) -> list[ops.Op]:
    """Leave out operations that no output depends on."""
    needed, kept = set(outputs), []
    for op in reversed(given):
        if op.output in needed:
            kept.append(op)
            needed.update(operands(op))
    return kept[::-1]
