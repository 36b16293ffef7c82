"""Skew: how far one way through the pipeline runs ahead of another, and the buffer that it needs.

For every position of a tensor, `progress` is how much of the source must have come in before the
position can leave, in positions of the source. It follows from the windows alone:

    convolution   the last column of the group's window, in the last of its rows, and three groups
                  more, one being loaded, one computed and one sent
    passes        line `dy` of r leaves (r - 1) / r of a row later, so that the first pass finds its
                  whole row and the others follow at the speed of the input
    add           the later of its inputs

Where two ways meet in an Add, the earlier one waits: the buffer holds what has come on it by the
time at which the later one gives the same position, at most over the upper half of a picture (at
its bottom the source has ended, and what comes then is the next picture).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lichen.rtl.graph import Graph, Stage, Tensor
from lichen.rtl.layer import BITS, Folding

Progress = NDArray[np.float64]  # (rows, columns), ascending in raster order
GROUPS_ON_THE_WAY = 3
SPARE = 16  # values beyond the formula: registers of elements that stop and go


@dataclass(frozen=True)
class Buffer:
    """A delay on input number `port` of a stage. depth: in positions of the tensor."""

    stage: str
    port: int
    tensor: Tensor
    depth: int

    @property
    def values(self) -> int:
        return self.depth * self.tensor.channels

    @property
    def bits(self) -> int:
        return self.values * BITS[self.tensor.dtype]


def convolution_progress(source: Progress, stage: Stage, folding: Folding) -> Progress:
    """Give the progress of a convolution's output from that of its input."""
    layer = stage.layer
    assert layer is not None
    height, width = source.shape
    (kernel_h, kernel_w), (stride_y, stride_x) = layer.kernel, layer.stride
    pixels = stage.unshuffle  # of the source in a column of the layer
    columns = width // pixels
    rows_out, columns_out = height // stride_y, columns // stride_x
    row = np.minimum(np.arange(rows_out) * stride_y + kernel_h - 1 - layer.padding[0], height - 1)[
        :, None
    ]
    group = np.arange(columns_out) // folding.pixels
    last = group * folding.pixels * stride_x + (folding.pixels - 1) * stride_x
    last = last + kernel_w - 1 - layer.padding[1]
    # A row of the output takes the time of `stride` rows of the input.
    on_the_way = GROUPS_ON_THE_WAY * folding.pixels * stride_x * stride_y
    column = np.minimum(last, columns - 1) + on_the_way
    flat = np.maximum.accumulate(source.reshape(-1))
    if layer.passes == 1:
        at = row * width + np.broadcast_to(column, (rows_out, columns_out)) * pixels + pixels - 1
        return flat[np.minimum(at, flat.size - 1)]
    r = layer.passes
    # In columns of the output, of which r * r pass while one column comes in.
    turn = np.arange(r)[:, None] * columns * r + np.arange(columns * r)[None, :]
    ahead = turn / r**2 + columns * (1 - 1 / r) + GROUPS_ON_THE_WAY * folding.pixels
    at = row[:, :, None] * width + np.maximum(ahead, np.repeat(column, r)[None, :])
    found = np.interp(at.reshape(-1), np.arange(flat.size), flat)
    return found.reshape(rows_out * r, columns * r)


def stage_progress(stage: Stage, inputs: list[Progress], folds: Mapping[str, Folding]) -> Progress:
    """Give the progress of a stage's output."""
    if stage.layer is not None:
        return convolution_progress(inputs[0], stage, folds[stage.name])
    result = inputs[0]
    for other in inputs[1:]:
        result = np.maximum(result, other)
    return result


@dataclass(frozen=True)
class Skew:
    """What the windows of a graph make wait.

    buffers: of its Adds. lag_rows: for each output, how many rows of the source have come in when
    the output's first row of units (a stripe of 64 lines) is complete.
    """

    buffers: tuple[Buffer, ...]
    lag_rows: Mapping[str, float]


def analyse(
    graph: Graph,
    folds: Mapping[str, Folding],
    units: tuple[int, int],
    follows: Mapping[str, str] | None = None,
) -> Skew:
    """Give the delays that a graph needs for pictures of `units` (rows, columns), and its lags.

    The first input of the graph is the source. follows: inputs that come as another tensor leaves;
    other inputs come beside the source, at its pace.
    """
    progress: dict[str, Progress] = {}
    source = graph.inputs[0]
    shape = (units[0] * source.scale, units[1] * source.scale)
    progress[source.name] = np.arange(shape[0] * shape[1], dtype=np.float64).reshape(shape)
    pending = dict(follows or {})
    found: list[Buffer] = []
    for stage in graph.stages:
        for tensor in stage.inputs:
            if tensor.name not in progress:
                leader = pending.get(tensor.name)
                if leader in progress:
                    progress[tensor.name] = progress[leader]
                else:
                    progress[tensor.name] = _beside(progress[source.name], tensor, units)
        inputs = [progress[tensor.name] for tensor in stage.inputs]
        progress[stage.output.name] = stage_progress(stage, inputs, folds)
        if len(inputs) == 2:
            found += _join(graph, stage, progress, folds)
    lags = {
        tensor.name: float(progress[tensor.name][tensor.scale - 1, -1]) / shape[1]
        for tensor in graph.outputs
    }
    return Skew(tuple(found), lags)


def _beside(source: Progress, tensor: Tensor, units: tuple[int, int]) -> Progress:
    """Give the progress of an input that comes at the pace of the source."""
    shape = (units[0] * tensor.scale, units[1] * tensor.scale)
    return np.linspace(0, source.size - 1, shape[0] * shape[1]).reshape(shape)


def _join(
    graph: Graph, stage: Stage, progress: Mapping[str, Progress], folds: Mapping[str, Folding]
) -> list[Buffer]:
    """Give the buffer on the earlier input of an Add, where its tensor is smallest.

    Inputs that leave at the same time, group by group, need none: the formula below would count the
    group that both have ready.
    """
    first, second = (progress[tensor.name] for tensor in stage.inputs)
    if np.array_equal(first, second):
        return []
    port = int(np.argmin([progress[tensor.name].mean() for tensor in stage.inputs]))
    merged = np.maximum.accumulate(progress[stage.output.name].reshape(-1))
    choices = []
    for where, number, chain in _places(graph, stage, port):
        tensor = where.inputs[number]
        came = np.searchsorted(
            np.maximum.accumulate(progress[tensor.name].reshape(-1)), merged, side="right"
        )
        shape = progress[tensor.name].shape
        used = np.arange(shape[0] * shape[1], dtype=np.float64).reshape(shape)
        for link in chain:
            used = stage_progress(link, [used], folds)
        ahead = came - used.reshape(-1)
        depth = int(np.ceil(ahead[: len(ahead) // 2].max()))
        choices.append(Buffer(where.name, number, tensor, depth))
    best = min(choices, key=lambda buffer: buffer.bits)
    return [best] if best.values > SPARE else []


def _places(graph: Graph, stage: Stage, port: int) -> list[tuple[Stage, int, list[Stage]]]:
    """List where a buffer for an input may stand: there, or before the stages that it comes from.

    Gives the stage before which it stands, its input's number, and the stages in between.
    """
    writers = {other.output.name: other for other in graph.stages}
    readers: dict[str, int] = {}
    for other in graph.stages:
        for tensor in other.inputs:
            readers[tensor.name] = readers.get(tensor.name, 0) + 1
    leaving = {tensor.name for tensor in graph.outputs}
    places: list[tuple[Stage, int, list[Stage]]] = [(stage, port, [])]
    name, chain = stage.inputs[port].name, []
    while name in writers and readers[name] == 1 and name not in leaving:
        before = writers[name]
        if len(before.inputs) > 1:
            break
        chain = [before, *chain]
        places.append((before, 0, chain))
        name = before.inputs[0].name
    return places
