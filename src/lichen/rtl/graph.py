"""Graph: Programs -> the stages of a pipeline and the tensors that flow between them.

Shuffles merge with their convolutions (see `layer.Layer`), TransposedConv becomes a convolution
whose shuffle merges. What has no hardware is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lichen.errors import ContractError
from lichen.program import ops
from lichen.program.check import accumulator_bound, infer_shapes, operands
from lichen.program.check import tensors as known_tensors
from lichen.program.ops import DType
from lichen.program.program import Input, Program
from lichen.program.rewrite import subpixel
from lichen.rtl.convolution import layer_of
from lichen.rtl.layer import Layer

NEAREST = {
    ops.GDN: "a ReLU (output type u8)",
    ops.Concat: "an Add of two convolutions, one for each input",
    ops.Slice: "a convolution with the wanted outputs only",
    ops.PixelShuffle: "a PixelShuffle straight after a convolution that nothing else reads",
    ops.PixelUnshuffle: "a PixelUnshuffle that only convolutions read",
}


@dataclass(frozen=True)
class Tensor:
    """A tensor of the pipeline. rows and columns: per unit, a unit being the coarsest grid."""

    name: str
    channels: int
    dtype: DType
    scale: int


@dataclass(frozen=True, eq=False)
class Stage:
    """An operation that becomes hardware. Convolutions have their `layer` and merged shuffles."""

    name: str
    op: ops.Conv | ops.Add | ops.Scale | ops.Clamp | ops.TableIndex
    inputs: tuple[Tensor, ...]
    output: Tensor
    layer: Layer | None = None
    unshuffle: int = 1
    shuffle: int = 1


@dataclass(frozen=True, eq=False)
class Graph:
    """Stages in order, the tensors that come from outside and those that leave."""

    stages: tuple[Stage, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def build(
    programs: Sequence[Program],
    joins: Mapping[str, str],
    outputs: Sequence[str],
    scales: Mapping[str, int],
) -> Graph:
    """Join Programs to one graph; a tensor is called "<program>.<tensor>".

    joins: inputs of Programs that are tensors of others. scales: rows (and columns) per unit of
    the inputs that come from outside. Raises ContractError where something has no hardware.
    """
    tensors: dict[str, Tensor] = {}
    same: dict[str, str] = {}  # joined inputs -> where they come from
    flat: list[tuple[ops.Op, int]] = []
    outside = []
    for program in programs:
        known = known_tensors(program)
        shapes = {}
        for source in program.inputs:
            full = f"{program.name}.{source.name}"
            if full in joins:
                same[full] = same.get(joins[full], joins[full])
                shapes[source.name] = tensors[same[full]].scale
            else:
                shapes[source.name] = scales[full]
                tensors[full] = Tensor(full, source.channels, source.dtype, scales[full])
                outside.append(tensors[full])
        sizes = infer_shapes(
            program,
            {x.name: (x.channels, *[64 * shapes[x.name]] * 2) for x in program.inputs},
        )
        for op in program.ops:
            channels, height, _ = sizes[op.output]
            full = f"{program.name}.{op.output}"
            if height % 64:
                raise ContractError(f"{full}: its size must be a whole number per unit")
            tensors[full] = Tensor(full, channels, known[op.output].dtype, height // 64)
            bound = 0
            if isinstance(op, ops.Conv | ops.TransposedConv):
                half = int((np.int64(1) << op.shift.astype(np.int64)).max()) // 2
                bound = int(accumulator_bound(op, known[op.input].magnitude).max()) + half
            flat.append((_renamed(op, program.name, same), bound))
    return _merge(flat, tensors, tuple(outside), [same.get(name, name) for name in outputs])


def _renamed(op: ops.Op, prefix: str, same: Mapping[str, str]) -> ops.Op:
    """Give an operation with the names of the graph."""
    names = {field: f"{prefix}.{getattr(op, field)}" for field in ("a", "b", "input", "output")
             if hasattr(op, field)}  # fmt: skip
    names = {field: same.get(name, name) for field, name in names.items()}
    if isinstance(op, ops.Concat):
        return op  # refused later
    return replace(op, **names)


def _merge(
    flat: list[tuple[ops.Op, int]],
    tensors: dict[str, Tensor],
    inputs: tuple[Tensor, ...],
    outputs: Sequence[str],
) -> Graph:
    """Merge shuffles with convolutions and make the stages."""
    readers: dict[str, list[ops.Op]] = {}
    for op, _ in flat:
        for name in operands(op):
            readers.setdefault(name, []).append(op)
    writers = {op.output: op for op, _ in flat}
    stages = []
    for op, bound in flat:
        match op:
            case ops.PixelUnshuffle():
                users = readers.get(op.output, [])
                if op.output in outputs or not all(isinstance(user, ops.Conv) for user in users):
                    raise _refused(op)
            case ops.PixelShuffle():
                writer = writers.get(op.input)
                if not isinstance(writer, ops.Conv) or len(readers[op.input]) > 1:
                    raise _refused(op)
            case ops.Conv() | ops.TransposedConv():
                stages.append(_convolution(op, bound, tensors, readers, writers, outputs))
            case ops.Add() | ops.Scale() | ops.Clamp() | ops.TableIndex():
                sources = tuple(tensors[name] for name in operands(op))
                stages.append(Stage(op.output, op, sources, tensors[op.output]))
            case _:
                raise _refused(op)
    return Graph(tuple(stages), inputs, tuple(tensors[name] for name in outputs))


def _convolution(
    op: ops.Conv | ops.TransposedConv,
    bound: int,
    tensors: dict[str, Tensor],
    readers: Mapping[str, list[ops.Op]],
    writers: Mapping[str, ops.Op],
    outputs: Sequence[str],
) -> Stage:
    unshuffle, shuffle, source, name = 1, 1, tensors[op.input], op.output
    before = writers.get(op.input)
    if isinstance(before, ops.PixelUnshuffle):
        unshuffle, source = before.factor, tensors[before.input]
    after = readers.get(op.output, [])
    target = tensors[op.output]
    if isinstance(op, ops.TransposedConv):
        op, order = subpixel(op)
        shuffle = order.factor
    elif len(after) == 1 and isinstance(after[0], ops.PixelShuffle) and name not in outputs:
        shuffle, target = after[0].factor, tensors[after[0].output]
    try:
        layer = layer_of(op, source.dtype, bound, unshuffle, shuffle)
    except ValueError as error:
        raise ContractError(str(error)) from error
    return Stage(name, op, (source,), target, layer, unshuffle, shuffle)


def _refused(op: ops.Op) -> ContractError:
    kind = type(op).__name__
    nearest = NEAREST.get(type(op), "another operation")
    return ContractError(f"{kind} {op.output!r} has no hardware here; the nearest is {nearest}")


def encoder(programs: Mapping[str, Program]) -> Graph:
    """Join the Programs of a hyperprior encoder: pixels -> z, index, symbols."""
    used = [programs[name] for name in ("g_a", "h_a", "h_s", "quantize")]
    joins = {
        "h_a.y": "g_a.y", "h_s.z": "h_a.z", "quantize.v": "h_a.v", "quantize.mean": "h_s.mean",
        "quantize.index": "h_s.index",
    }  # fmt: skip
    outputs = ("h_a.z", "h_s.index", "quantize.symbols")
    return build(used, joins, outputs, {"g_a.x": _reduction(programs)})


def decoder(programs: Mapping[str, Program]) -> Graph:
    """Join the Programs of a hyperprior decoder: z, symbols -> index, pixels."""
    joins = {"g_s.mean": "h_s.mean"}
    sizes = infer_shapes(programs["h_s"], {"z": (_input(programs["h_s"], "z").channels, 64, 64)})
    scale = sizes["mean"][1] // 64
    return build(
        [programs["h_s"], programs["g_s"]],
        joins,
        ("h_s.index", "g_s.x"),
        {"h_s.z": 1, "g_s.symbols": scale},
    )


def _reduction(programs: Mapping[str, Program]) -> int:
    """Pixels per unit: the reduction of the analysis and of the hyper-analysis together."""
    y = infer_shapes(programs["g_a"], {"x": (3, 4096, 4096)})["y"]
    z = infer_shapes(programs["h_a"], {"y": y})["z"]
    return 4096 // z[1]


def _input(program: Program, name: str) -> Input:
    return next(x for x in program.inputs if x.name == name)
