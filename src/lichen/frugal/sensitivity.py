"""Mixed precision: what each layer's bits are worth, and a budget of bytes spent by that.

The table has, for each convolution, the increase of the rate-distortion loss of calibration
photographs when its weights alone have so many bits, all else 8; and for each activation between
layers what 16 bits instead of 8 would change. Increases are taken as additive (Dong 2019, "HAWQ";
Wang 2019, "HAQ" measure alike): the budget is then a multiple-choice knapsack, solved along the
lower convex hull of each layer's increases, always taking the step that saves most bytes for its
price (the Lagrangian solution, Shoham 1988).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lichen.errors import LichenError
from lichen.frugal.adaround import as_matrix, search_grid
from lichen.frugal.ranges import Loss
from lichen.models.gdn import GDN
from lichen.models.layers import (
    Conv2d,
    ConvTranspose2d,
    Quantizable,
    QuantizableModel,
    Stack,
)
from lichen.training import quantize

WIDTHS = (4, 5, 6, 7, 8)  # of weights, in bits
WIDE_GAIN = 0.002  # part of the loss that 16 bits of an activation must save to be worth them
WEIGHTED = (Conv2d, ConvTranspose2d)
Table = dict[str, dict[int, float]]  # layer -> bits -> increase of the loss


def weighted(model: QuantizableModel) -> dict[str, Conv2d | ConvTranspose2d]:
    """List the layers with weights of chosen widths, by name."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, Conv2d | ConvTranspose2d)
    }


def sizes(model: QuantizableModel) -> dict[str, int]:
    """Count the weights of each such layer."""
    return {name: layer.weight.numel() for name, layer in weighted(model).items()}


def fixed_bytes(model: QuantizableModel) -> int:
    """Bytes of the weights that have 8 bits in any case: GDN's gamma."""
    return sum(m.gamma.numel() for m in model.modules() if isinstance(m, GDN))


def weight_bytes(model: QuantizableModel, bits: Mapping[str, int] | None = None) -> int:
    """Bytes of all weights where layers have these widths (default: those that they have)."""
    layers = weighted(model)
    total = sum(
        layer.weight.numel() * (layer.weight_bits if bits is None else bits[name])
        for name, layer in layers.items()
    )
    return -(-total // 8) + fixed_bytes(model)


@torch.no_grad()
def narrow(layer: Conv2d | ConvTranspose2d, bits: int) -> None:
    """Give a layer's weights so many bits, on the grids that round them best."""
    layer.weight_bits, layer.grid = bits, None
    if bits < 8:
        layer.grid = search_grid(as_matrix(layer, layer.effective()[0]), bits)


@torch.no_grad()
def measure(model: QuantizableModel, loss: Loss, widths: Sequence[int] = WIDTHS) -> Table:
    """Measure the table of a model calibrated for 8 bits."""
    base, table = loss(model), {}
    for name, layer in weighted(model).items():
        before, row = layer.grid, {8: 0.0}
        for bits in sorted(set(widths) - {8}, reverse=True):
            narrow(layer, bits)
            row[bits] = loss(model) - base
        layer.weight_bits, layer.grid = 8, before
        table[name] = row
    return table


def widenable(model: QuantizableModel) -> dict[str, Quantizable]:
    """List the 8-bit activations that may have 16: the next layer of their stack reads them."""

    def within(stack: Stack, prefix: str) -> Iterator[tuple[str, Quantizable]]:
        layers = [
            (f"{prefix}.{name}", layer)
            for name, layer in stack.named_children()
            if not isinstance(layer, nn.Identity | nn.PixelShuffle | nn.PixelUnshuffle)
        ]
        for (name, layer), (_, reader) in itertools.pairwise(layers):
            reads = isinstance(reader, Conv2d | ConvTranspose2d)
            if reads and isinstance(layer, Quantizable) and layer.dtype != "s16":
                yield name, layer

    return {
        name: layer
        for prefix, stack in model.named_modules()
        if isinstance(stack, Stack)
        for name, layer in within(stack, prefix)
        if not layer.fixed
    }


@torch.no_grad()
def measure_activations(model: QuantizableModel, loss: Loss) -> dict[str, float]:
    """Measure how the loss changes where one activation alone has 16 bits: negative is a gain."""
    base, found = loss(model), {}
    tops = quantize.observe_outputs(model, loss.batches)[0]
    for name, layer in widenable(model).items():
        dtype, exponent = layer.dtype, layer.output_exponent
        widen(layer, tops[layer])
        found[name] = loss(model) - base
        layer.dtype = dtype
        layer.set_exponent(exponent)
    return found


def widen(layer: Quantizable, top: float) -> None:
    """Let an activation have 16 bits, one of them above the largest value seen."""
    layer.widen()
    layer.set_exponent(quantize.wide_exponent(top))


def hull(row: Mapping[int, float]) -> list[tuple[int, float]]:
    """Give (bits, increase) from 8 bits down along the lower convex hull, never falling.

    A fewer-bit width that measures better than a wider one is taken as no worse: what is left of
    the difference is noise of the calibration set.
    """
    points: list[tuple[int, float]] = []
    least = float("inf")
    for bits in sorted(row):  # from the fewest bits: an increase is at most that of fewer
        least = min(least, max(0.0, row[bits]))
        points.append((bits, least))
    points.reverse()
    kept: list[tuple[int, float]] = []
    for point in points:
        while len(kept) > 1 and _slope(kept[-2], kept[-1]) >= _slope(kept[-2], point):
            kept.pop()
        kept.append(point)
    return kept


def _slope(a: tuple[int, float], b: tuple[int, float]) -> float:
    return (b[1] - a[1]) / (a[0] - b[0])


def allocate(
    table: Mapping[str, Mapping[int, float]], counts: Mapping[str, int], fixed: int, budget: int
) -> dict[str, int]:
    """Choose each layer's bits so that all weights take at most `budget` bytes.

    table: layer -> bits -> increase of the loss; counts: weights of each layer; fixed: bytes that
    are spent in any case. Raises LichenError, with the least budget that can be met.
    """
    hulls = {name: hull(row) for name, row in table.items()}
    place = dict.fromkeys(table, 0)

    def spent() -> int:
        total = sum(counts[name] * hulls[name][k][0] for name, k in place.items())
        return -(-total // 8) + fixed

    everything = -(-sum(8 * counts[name] for name in table) // 8) + fixed
    while spent() > budget:
        steps = []
        for name, k in place.items():
            if k + 1 < len(hulls[name]):
                (bits, cost), (fewer, more) = hulls[name][k : k + 2]
                steps.append(((more - cost) / ((bits - fewer) * counts[name]), name))
        if not steps:
            least = spent()
            raise LichenError(
                f"the budget must be at least {least} bytes, {100 * least / everything:.1f} % of "
                f"the {everything} bytes at 8 bits, where all weights have the fewest bits; "
                f"{budget} cannot be met"
            )
        place[min(steps)[1]] += 1
    chosen = {name: hulls[name][k][0] for name, k in place.items()}
    return _spend_rest(table, counts, chosen, 8 * (budget - spent()))


def _spend_rest(
    table: Mapping[str, Mapping[int, float]],
    counts: Mapping[str, int],
    chosen: dict[str, int],
    bits_left: int,
) -> dict[str, int]:
    """Give bits back where the rest of the budget allows: what gains most for a byte first."""
    while True:
        steps = []
        for name, bits in chosen.items():
            for wider in range(bits + 1, 9):
                price = (wider - bits) * counts[name]
                gain = table[name][bits] - table[name].get(wider, table[name][bits])
                if gain > 0 and price <= bits_left:
                    steps.append((-gain / max(price, 1), name, wider))
        if not steps:
            return chosen
        _, name, wider = min(steps)
        bits_left -= (wider - chosen[name]) * counts[name]
        chosen[name] = wider


def budget_bytes(text: str, everything: int) -> int:
    """Read "70%" of `everything`, or bytes. Raises LichenError."""
    try:
        share = text.strip().endswith("%")
        value = float(text.strip().removesuffix("%"))
        found = value / 100 * everything if share else value
        if not 0 < found < 2**62:
            raise ValueError
        return int(found)
    except ValueError:
        raise LichenError(
            f"a budget must be a share of the 8-bit weights like 70%, or bytes, not {text!r}"
        ) from None


def rows(model: QuantizableModel, table: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Give the table as rows for people and for JSON: a layer, its weights, its bits."""
    return [
        {
            "layer": name,
            "weights": layer.weight.numel(),
            "bits": layer.weight_bits,
            "increase": {str(bits): value for bits, value in sorted(table.get(name, {}).items())},
        }
        for name, layer in weighted(model).items()
    ]
