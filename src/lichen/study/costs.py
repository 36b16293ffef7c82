"""Costs of a part of a model from its layers: products, weights, memory, lines, reach.

All per pixel of picture, 8 bits for each value. Activations, additions of constants, padding and
orders of values are done where a value is written or read, and cost no traffic of their own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lichen.study.layers import ACTIVATIONS, Layer
from lichen.study.result import OperationCount

# What needs no pass over memory of its own.
FUSED = ACTIVATIONS | {
    "pad", "offset", "scale", "pixel_shuffle", "pixel_unshuffle", "slice", "concat", "permute",
    "roll", "batch_norm",
}  # fmt: skip
GLOBAL = {"mean"}  # sees the whole picture
ON_GRID = {"conv", "deconv", "depthwise", "grouped", "linear", "layer_norm", "gdn", "pool"}


@dataclass(frozen=True)
class Reach:
    """receptive_pixels: side of what a value sees, None: all. rows: of its grid per picture row."""

    receptive_pixels: float | None
    rows: float


def of_part(layers: Sequence[Layer], part: str) -> list[tuple[int, Layer]]:
    """List the layers of a part with their numbers."""
    return [(number, layer) for number, layer in enumerate(layers) if layer.part == part]


def parts(layers: Sequence[Layer], host: str = "host") -> list[str]:
    """List the parts in the order of the usual drawing, then any others as they come."""
    usual = ("g_a", "h_a", "h_s", "slices", "lrp", "g_s")
    found = dict.fromkeys(layer.part for layer in layers if layer.part != host)
    return [name for name in usual if name in found] + [n for n in found if n not in usual]


def histogram(layers: Sequence[Layer]) -> tuple[OperationCount, ...]:
    """Count layers by kind, those with most products first."""
    counts = Counter(layer.kind for layer in layers)
    macs = {kind: sum(x.macs for x in layers if x.kind == kind) for kind in counts}
    order = sorted(counts, key=lambda kind: (-macs[kind], -counts[kind], kind))
    return tuple(OperationCount(kind, counts[kind], macs[kind] / 1e3) for kind in order)


def weight_bytes(layers: Sequence[Layer], bits: int) -> int:
    """Bytes of weights of `bits` bits; biases have 4 bytes, as the contract's int32."""
    weights = sum(layer.weights for layer in layers)
    biases = sum(layer.parameters - layer.weights for layer in layers)
    return math.ceil(weights * bits / 8) + 4 * max(0, biases)


def traffic(layers: Sequence[Layer]) -> float:
    """Bytes per pixel that all layers read and write."""
    return sum(sum(x.input_values) + x.output_values for x in layers if x.kind not in FUSED)


def peak(layers: Sequence[Layer], part: str) -> float:
    """Bytes per pixel of the tensors that live at once at most, layer after layer."""
    own = of_part(layers, part)
    homes: dict[int, tuple[int, ...]] = {}

    def home(number: int) -> tuple[int, ...]:
        """The layers whose outputs hold the values of this one."""
        if number not in homes:
            layer = layers[number] if number >= 0 else None
            if layer is not None and layer.part == part and layer.kind in FUSED:
                found = [h for source in layer.sources for h in home(source)]
                homes[number] = tuple(dict.fromkeys(found))
            else:
                homes[number] = (number,)
        return homes[number]

    sizes: dict[int, float] = {}
    last: dict[int, int] = {}
    first: dict[int, int] = {}
    for number, layer in own:
        for source, values in zip(layer.sources, layer.input_values, strict=True):
            for place in home(source):
                outside = place < 0 or layers[place].part != part
                sizes[place] = values if outside else layers[place].output_values
                last[place] = max(last.get(place, 0), number)
                first.setdefault(place, own[0][0] if outside else place)
        for place in home(number):
            first.setdefault(place, number)
            sizes.setdefault(place, layer.output_values)
            last[place] = max(last.get(place, 0), number)
    return max(
        (sum(sizes[p] for p in sizes if first[p] <= n <= last[p]) for n, _ in own), default=0.0
    )


def reaches(layers: Sequence[Layer], part: str) -> dict[int, Reach]:
    """Give the reach of every layer of a part; it starts anew at the part's inputs."""
    found: dict[int, Reach] = {}
    for number, layer in of_part(layers, part):
        before = [
            found[s] if s in found else Reach(1 / layer.rows_in, layer.rows_in)
            for s in layer.sources
        ]
        rows_in = before[0].rows
        if layer.kind in ON_GRID or all(s not in found for s in layer.sources):
            rows_in = layer.rows_in
        known = [b.receptive_pixels for b in before if b.receptive_pixels is not None]
        widest = max(known) if len(known) == len(before) else None
        grown = _growth(layer, rows_in)
        rows = layer.rows_out if layer.kind in ON_GRID else rows_in
        if _resampled(layer) != 1:
            rows = rows_in / _resampled(layer)
        total = None if widest is None or grown is None else widest + grown
        found[number] = Reach(total, rows)
    return found


def _growth(layer: Layer, rows: float) -> float | None:
    """Pixels by which a layer sees further than its input."""
    k, jump = layer.kernel[0], 1 / rows
    match layer.kind:
        case "conv" | "depthwise" | "grouped" | "pool":
            return (k - 1) * layer.dilation * jump
        case "deconv":
            return (math.ceil(k / layer.stride) - 1) * jump
        case "softmax":
            return 2 * (layer.window - 1) * jump if layer.window else None
        case _ if _resampled(layer) > 1:
            return (_resampled(layer) - 1) * jump
        case kind if kind in GLOBAL:
            return None
        case _:
            return 0.0


def _resampled(layer: Layer) -> float:
    """By how much an order of values makes the grid coarser: r, or 1 / r where finer."""
    if layer.kind not in ("pixel_shuffle", "pixel_unshuffle", "slice", "upsample"):
        return 1
    ratio = layer.rows_in / layer.rows_out
    return ratio if ratio.is_integer() or (1 / ratio).is_integer() else 1


def receptive_field(layers: Sequence[Layer], part: str) -> int | None:
    """Side in pixels of what an output of the part sees; None where that is all of the picture."""
    sides = [reach.receptive_pixels for reach in reaches(layers, part).values()]
    if any(side is None for side in sides):
        return None
    return math.ceil(max((side for side in sides if side is not None), default=1.0))


def line_buffer_bytes(layers: Sequence[Layer], part: str, width: int) -> int:
    """Bytes that a pipeline of the part's layers holds for pictures of `width` pixels.

    A window of k rows keeps k - 1; attention keeps its windows' rows of queries, keys and values;
    where paths of different reach meet, the shorter one waits for half the difference.
    """
    reach = reaches(layers, part)
    total = 0.0
    for number, layer in of_part(layers, part):
        row = width * layer.rows_in * layer.inputs
        match layer.kind:
            case "conv" | "depthwise" | "grouped" | "pool":
                total += (layer.kernel[0] - 1) * layer.dilation * row
            case "deconv":
                total += (math.ceil(layer.kernel[0] / layer.stride) - 1) * row
            case "softmax" if layer.window:
                rows = reach[number].rows
                query = next((layers[s].input_values[0] for s in _matmul(layers, number)), 0.0)
                total += layer.window * width * 3 * query / rows
        sides = [
            (reach[s].receptive_pixels, values)
            for s, values in zip(layer.sources, layer.input_values, strict=True)
            if s in reach
        ]
        known = [side for side, _ in sides if side is not None]
        if len(sides) > 1 and len(known) == len(sides) and layer.kind != "matmul":
            total += sum((max(known) - (s or 0)) / 2 * width * values for s, values in sides)
    return math.ceil(total)


def _matmul(layers: Sequence[Layer], number: int) -> list[int]:
    """The product of queries and keys before a softmax, through scales and offsets."""
    found = []
    for source in layers[number].sources:
        while source >= 0 and layers[source].kind in ("scale", "offset", "add"):
            source = layers[source].sources[0]
        if source >= 0 and layers[source].kind == "matmul":
            found.append(source)
    return found
