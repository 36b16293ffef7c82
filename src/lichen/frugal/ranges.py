"""Ranges of activations: by their largest value, by squared error, by the rate-distortion loss.

What a coarse grid costs is spread over all values, what a narrow range costs falls on the few that
saturate: the best range clips. GDN's outputs have tails so long that this decides (the inputs of
GDN are s16 in every model here, so that its squares are safe).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lichen.models.layers import RANGES, Quantizable, QuantizableModel
from lichen.models.student import Coded, quality_to_lambda
from lichen.training import quantize
from lichen.training.loss import balance, rate_distortion, rates


@dataclass(frozen=True, eq=False)
class Loss:
    """The mean rate-distortion loss of calibration photographs spread over the rates.

    batches: pixels (B, 3, H, W) in -1..1. metric: as in a recipe. one_lambda: of weights for one
    rate; None: each picture has a rate of its own.
    """

    batches: Sequence[Tensor]
    metric: str = "mse"
    one_lambda: float | None = None

    def __call__(self, model: QuantizableModel, integers: bool = True) -> float:
        """Compute it in integers, or in float; leaves the model computing in float."""
        return float(self.each(model, integers).mean())

    @torch.no_grad()
    def each(self, model: QuantizableModel, integers: bool = True) -> Tensor:
        """Compute it for each photograph (N,)."""
        model.set_quantized(integers)
        losses = []
        for x in self.batches:
            place = rates(len(x)).to(x.device)
            weight, factor = quality_to_lambda(place), balance(quality_to_lambda(place))
            if self.one_lambda is not None:
                weight, factor = torch.full_like(place, self.one_lambda), torch.ones_like(place)
            coded = model(x, place, noise=False)
            coded = coded._replace(x_hat=coded.x_hat.clamp(-1, 127 / 128))  # as pixels are
            for k in range(len(x)):
                one = slice(k, k + 1)
                part = Coded(*(value[one] for value in coded))
                terms = rate_distortion(part, x[one], weight[one], self.metric, factor[one])
                losses.append(terms["loss"])
        model.set_quantized(False)
        return torch.stack(losses)


@torch.no_grad()
def by_peak(model: QuantizableModel, batches: Sequence[Tensor]) -> None:
    """Choose each exponent as the finest whose range holds the largest value seen."""
    tops = quantize.observe_outputs(model, batches)[0]
    for layer, top in tops.items():
        settle(layer, quantize.finest_exponent(layer.dtype, top))
    model.calibrate_end()


@torch.no_grad()
def by_error(model: QuantizableModel, batches: Sequence[Tensor]) -> None:
    """Choose each exponent by the squared error of rounding and saturation (`calibrate`)."""
    quantize.calibrate(model, batches)
    for layer in free_layers(model):
        settle(layer, layer.output_exponent)
    model.calibrate_end()  # a student brings the terms of its sums together


def settle(layer: Quantizable, exponent: int) -> None:
    """Let `calibrate_end` choose this exponent."""
    exponent = min(quantize.MAX_EXPONENT, exponent)
    layer.peak.fill_(RANGES[layer.dtype][1] * 2.0**-exponent)


def free_layers(model: QuantizableModel) -> list[Quantizable]:
    """List the layers whose exponent calibration chooses."""
    return [layer for layer in model.quantized_layers() if not layer.fixed]


@torch.no_grad()
def by_loss(model: QuantizableModel, loss: Loss) -> int:
    """Move each 8-bit exponent by one where that lowers the loss in integers; count the moves.

    The photographs must agree on it: the mean of what they gain is more than twice its standard
    error. (Of moves that lowered the mean alone, by 0.5 % together, other pictures lost 1 %.)
    """
    best, moves = loss.each(model), 0
    for layer in free_layers(model):
        if layer.dtype == "s16":
            continue
        start = layer.output_exponent
        for change in (1, -1):
            layer.set_exponent(start + change)
            found = loss.each(model)
            gain = best - found
            if float(gain.mean()) > 2 * float(gain.std()) / math.sqrt(len(gain)):
                best, moves = found, moves + 1
                break
            layer.set_exponent(start)
    return moves
