"""Integer weights fitted to what their layer reads: grids, adaptive rounding, bias correction.

For each output channel, with the layer's inputs x in integers, what counts is not the error of the
weights but that of the output (AdaRound: Nagel 2020, "Up or down? Adaptive rounding for
post-training quantization", eq. 13):

    E |w^ x - w x|^2  =  (w^ - w) A (w^ - w)^T,    A = E[x x^T]

over positions of calibration photographs. Each weight may go to the integer below or above it. The
paper relaxes this quadratic binary problem to sigmoids and descends by Adam; here it is descended
exactly, coordinate by coordinate, always the weight that gains most: the same objective without
step sizes and schedules, and the same result on every run.

A transform is fitted layer by layer, with its float twin beside it on the same input. Only means
follow the twin. Fitting the weights too to what the twin's layer reads (the paper's asymmetric
form, its section 3.3) made things worse: squares are then decided by the few values that saturate,
and the loss of a GDN model rose by 0.2 to 0.5 % for each transform so fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lichen.models.layers import (
    Conv2d,
    ConvTranspose2d,
    Quantizable,
    QuantizableModel,
    Stack,
    weight_exponents,
)
from lichen.training.loss import rates

Call = tuple[Tensor, int]  # input of a transform or a layer, and its exponent
SAMPLES = 8192  # positions of a layer's output that decide its rounding
MAX_VALUES = 2**26  # of all of a layer's patches: half a GiB
DAMPING = 1e-2  # of the mean power of the inputs, added to the diagonal of A against overfitting
FINER = 2  # exponents above the one that holds the largest weight, that a search tries


class Stop(Exception):
    """All that is looked at has run: the rest of the network need not."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """What a layer reads: E[x x^T] (K, K) in integers; means (K,) there and in float.

    K counts the inputs of one output: input channels x kernel x kernel.
    """

    square: Tensor
    mean: Tensor
    float_mean: Tensor


def units(model: QuantizableModel) -> Iterator[tuple[str, nn.Module]]:
    """List the transforms, and the convolutions that stand alone, by their names in the model."""

    def walk(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
        for name, child in module.named_children():
            if isinstance(child, Stack | Conv2d | ConvTranspose2d):
                yield prefix + name, child
            elif not isinstance(child, Quantizable):
                yield from walk(child, f"{prefix}{name}.")

    return walk(model, "")


def convolutions(unit: nn.Module) -> list[Conv2d | ConvTranspose2d]:
    """List a unit's dense convolutions in the order in which they run."""
    found = [layer for layer in unit.modules() if isinstance(layer, Conv2d | ConvTranspose2d)]
    return [layer for layer in found if isinstance(layer, ConvTranspose2d) or layer.groups == 1]


def inputs_of(module: nn.Module, run: Callable[[], object]) -> list[Call]:
    """Give what `module` reads, and its exponent, each time that it is called; then stop."""
    calls: list[Call] = []

    def keep(_: nn.Module, arguments: tuple[Tensor, int]) -> None:
        calls.append((arguments[0].detach(), arguments[1]))
        raise Stop

    hook = module.register_forward_pre_hook(keep)
    try:
        run()
    except Stop:
        pass
    finally:
        hook.remove()
    return calls


def unit_inputs(model: QuantizableModel, unit: nn.Module, batches: Sequence[Tensor]) -> list[Call]:
    """Give what a unit of a calibrated model reads in integers, for pictures over all rates."""
    model.set_quantized(True)
    found: list[Call] = []
    for x in batches:
        place = rates(len(x)).to(x.device)
        found += inputs_of(unit, lambda x=x, place=place: model(x, place, noise=False))
    model.set_quantized(False)
    return found


def as_matrix(layer: Conv2d | ConvTranspose2d, weight: Tensor) -> Tensor:
    """View a layer's weights as (O, K); of a transposed convolution, as the one it is turned."""
    if isinstance(layer, ConvTranspose2d):
        weight = weight.transpose(0, 1).flip(2, 3)
    return weight.flatten(1)


def from_matrix(layer: Conv2d | ConvTranspose2d, matrix: Tensor) -> Tensor:
    """Give `as_matrix` back the shape of the layer's weights."""
    if not isinstance(layer, ConvTranspose2d):
        return matrix.reshape(layer.weight.shape)
    inputs, outputs, k, _ = layer.weight.shape
    return matrix.reshape(outputs, inputs, k, k).flip(2, 3).transpose(0, 1).contiguous()


def _spread(layer: Conv2d | ConvTranspose2d, x: Tensor) -> tuple[Tensor, int]:
    """Pad what a layer reads, so that output (i, j) sees the patch at (i, j) * step."""
    if isinstance(layer, Conv2d):
        top, left, bottom, right = layer.padding
        return F.pad(x, (left, right, top, bottom)), layer.stride
    b, c, h, w = x.shape
    s, k = layer.stride, layer.weight.shape[2]
    spread = x.new_zeros(b, c, s * h, s * w)
    spread[:, :, ::s, ::s] = x
    before = k - 1 - layer.padding
    return F.pad(spread, (before, k - 1 - before, before, k - 1 - before)), 1


def _patches(padded: Tensor, kernel: int, step: int, places: Tensor) -> Tensor:
    """Cut patches (P, K) at output positions `places` (P, 3): picture, row, column."""
    reach = torch.arange(kernel)
    picture = places[:, 0, None, None]
    row = (places[:, 1] * step)[:, None, None] + reach[:, None]
    column = (places[:, 2] * step)[:, None, None] + reach[None]
    cut = padded[picture, :, row, column]  # (P, k, k, C)
    return cut.permute(0, 3, 1, 2).flatten(1)


@torch.no_grad()
def statistics(
    layer: Conv2d | ConvTranspose2d,
    calls: Sequence[Call],
    float_calls: Sequence[Call],
    generator: torch.Generator,
) -> Statistics:
    """Sample positions of a layer's outputs, and sum up what it reads there."""
    kernel = layer.weight.shape[2]
    width = as_matrix(layer, layer.weight).shape[1]
    count = min(SAMPLES, max(512, MAX_VALUES // width)) // len(calls)
    square = torch.zeros(width, width)
    mean, float_mean, total = torch.zeros(width), torch.zeros(width), 0
    for (x, _), (real, _) in zip(calls, float_calls):
        padded, step = _spread(layer, x)
        real = _spread(layer, real)[0]
        rows, columns = ((size - kernel) // step + 1 for size in padded.shape[2:])
        sides = (len(padded), rows, columns)
        taken = min(count, 4 * len(padded) * rows * columns)
        places = [torch.randint(side, (taken,), generator=generator) for side in sides]
        where = torch.stack(places, 1)
        q, r = (_patches(source, kernel, step, where) for source in (padded, real))
        square.addmm_(q.T, q)
        mean += q.sum(0)
        float_mean += r.sum(0)
        total += taken
    power = square.diagonal().mean() / total
    square = square / total + DAMPING * power * torch.eye(width)
    return Statistics(square, mean / total, float_mean / total)


def output_error(matrix: Tensor, real: Tensor, known: Statistics) -> Tensor:
    """Mean squared error (O,) that the rounding of weights makes in a layer's outputs."""
    error = matrix - real
    return (error @ known.square * error).sum(1)


def search_grid(matrix: Tensor, bits: int, known: Statistics | None = None) -> Tensor:
    """Choose for each row of weights (O, K) the exponent whose rounding and saturation err least.

    The error is that of the output where `known` says what the layer reads, else of the weights.
    Gives int64 (O,).
    """
    limit = 2 ** (bits - 1) - 1
    coarsest = weight_exponents(matrix, 0, limit)
    best, least = coarsest, torch.full((len(matrix),), torch.inf)
    for finer in range(FINER + 1):
        step = torch.exp2(-(coarsest + finer).float())[:, None]
        rounded = torch.round(matrix / step).clamp(-limit, limit) * step
        if known is None:
            error = (rounded - matrix).square().sum(1)
        else:
            error = output_error(rounded, matrix, known)
        better = error < least
        best, least = torch.where(better, coarsest + finer, best), torch.where(better, error, least)
    return best


def round_adaptively(
    matrix: Tensor, exponents: Tensor, bits: int, real: Tensor, known: Statistics
) -> Tensor:
    """Round each weight (O, K) down or up, so that the outputs err least; gives real values.

    matrix: the weights; exponents: int64 (O,), of their grids; real: the float layer's weights.
    """
    limit = 2 ** (bits - 1) - 1
    step = torch.exp2(-exponents.float())[:, None]
    scaled = (matrix / step).clamp(-limit, limit)
    nearest = torch.round(scaled)
    other = torch.where(scaled > nearest, nearest + 1, nearest - 1).clamp(-limit, limit)
    change = (other - nearest) * step
    value = nearest * step
    slope = (value - real) @ known.square  # half the gradient
    curve = known.square.diagonal()
    rows = torch.arange(len(matrix))
    for _ in range(2 * matrix.shape[1]):
        gain = change * (2 * slope + change * curve)  # of the error, where the weight is changed
        least, column = gain.min(1)
        moves = least < 0
        if not bool(moves.any()):
            break
        row, column = rows[moves], column[moves]
        delta = change[row, column]
        value[row, column] += delta
        change[row, column] = -delta
        slope[row] += delta[:, None] * known.square[column]
    return value


@torch.no_grad()
def fit_unit(
    unit: nn.Module,
    twin: nn.Module,
    calls: Sequence[Call],
    *,
    ranges: bool,
    adaptive: bool,
    bias: bool,
    generator: torch.Generator,
) -> None:
    """Fit the weights and biases of a calibrated unit to its float twin, layer by layer.

    calls: what the unit reads (`unit_inputs`). ranges: choose grids by the error of the outputs,
    not by the largest weight. adaptive: round up or down by it. bias: take off the biases what is
    left of the mean error (Nagel 2019, section 4.2). Weights become the real values of their
    integers.
    """
    for layer, reference in zip(convolutions(unit), convolutions(twin), strict=True):
        quantize(unit, True)
        here = [seen for call in calls for seen in inputs_of(layer, lambda c=call: unit(*c))]
        quantize(unit, False)
        there = [seen for call in calls for seen in inputs_of(reference, lambda c=call: twin(*c))]
        known = statistics(layer, here, there, generator)
        _fit_layer(layer, reference, here[0][1], known, ranges, adaptive, bias)


def quantize(unit: nn.Module, on: bool) -> None:
    """Let the layers of a unit compute in integers, or in float."""
    for layer in unit.modules():
        if isinstance(layer, Quantizable):
            layer.quantized = on


def _fit_layer(
    layer: Conv2d | ConvTranspose2d,
    reference: Conv2d | ConvTranspose2d,
    input_exponent: int,
    known: Statistics,
    ranges: bool,
    adaptive: bool,
    bias: bool,
) -> None:
    real_weight, real_bias = reference.effective()
    real = as_matrix(layer, real_weight)
    own = layer.effective()[0]
    matrix = as_matrix(layer, own)
    if ranges:
        layer.grid = search_grid(matrix, layer.weight_bits, known)
    # what biases and shifts leave of it
    exponents = layer.integer_weight_exponents(own, input_exponent)
    layer.grid = exponents
    if adaptive:
        value = round_adaptively(matrix, exponents, layer.weight_bits, real, known)
    else:
        step = torch.exp2(-exponents.float())[:, None]
        limit = layer.weight_limit
        value = torch.round(matrix / step).clamp(-limit, limit) * step
    factor = 2.0 ** (layer.attenuation if isinstance(layer, Conv2d) else 0)
    layer.weight.copy_(from_matrix(layer, value) * factor)
    if bias:
        wanted = real @ known.float_mean + real_bias
        found = value @ known.mean + layer.effective()[1]
        layer.bias.add_((wanted - found) * factor)
