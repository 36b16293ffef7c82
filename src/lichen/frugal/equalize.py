"""Cross-layer equalisation: scales that pass from one layer to the next, so that 8 bits serve both.

A positive scale of a channel commutes with ReLU, sums and pixel shuffles (Nagel 2019, "Data-free
quantization through weight equalization and bias correction", section 4.1). The paper balances the
ranges of two layers' weights for one real scale per tensor. The grids of the contract are powers
of two, activations share one and each output channel of weights has its own, so what a scale gains
is computed from those grids, and a pair of layers stays as it is where nothing is gained.

Models with GDN, and those of the same transforms with ReLU, are equalised as a whole by
`training.quantize.equalise`, through GDN and the rate gains too; who calls it compares the loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lichen.frugal import noise
from lichen.frugal.adaround import rates
from lichen.models.gdn import GDN
from lichen.models.layers import Conv2d, QuantizableModel, Requantize, ResidualBlock, Stack
from lichen.models.student import Student
from lichen.training import quantize

Form = Literal["even", "peaks", "noise"]
PEAK = 0.999  # quantile that stands for a channel's peak
CHANNEL_SAMPLES = 1 << 12
MULTIPLIERS = 128  # largest over smallest multiplier of a Requantize: the least keeps 8 bits
RARE = 64  # a channel's peak is taken as no smaller than this part of the largest one
CLEARLY = 0.98  # of the noise, that a scale must leave at most to be worth it


@dataclass(frozen=True, eq=False)
class Pair:
    """A convolution with a ReLU, and those that read it. shuffle: factor of what is between.

    first may also be a Requantize, whose multipliers take any scale without a loss.
    """

    first: Conv2d | Requantize
    readers: tuple[Conv2d, ...]
    shuffle: int = 1


@dataclass(frozen=True, eq=False)
class Seen:
    """What is known of a pair's activations in float, in the channels that the readers see.

    peak, power: of each channel between (C,), where its range may end, and its mean square;
    input_power: mean square of what the first layer reads.
    """

    peak: Tensor
    power: Tensor
    input_power: float


def pairs_of(model: Student) -> list[Pair]:
    """List the pairs of a student: its residual blocks, its hyper transforms, what synthesis reads.

    The last is where most is gained: the first latents span a hundred times what others do.
    """
    reader = next(layer for layer in model.synthesis_branch if isinstance(layer, Conv2d))
    pairs = [Pair(model.synthesis_input, (reader,))]
    pairs += [
        Pair(block.conv1, (block.conv2,))
        for block in model.modules()
        if isinstance(block, ResidualBlock)
    ]
    for stack in (model.hyper_analysis, model.hyper_synthesis):
        previous, shuffle = None, 1
        for layer in stack:
            if isinstance(layer, nn.PixelShuffle):
                shuffle = layer.upscale_factor
                continue
            if previous is not None and previous.rectified:
                pairs.append(Pair(previous, (layer,), shuffle))
            previous, shuffle = layer, 1
    pairs.append(Pair(_last(model.hyper_synthesis), (model.mean, model.index)))
    return pairs


def _last(stack: Stack) -> Conv2d:
    layer = list(stack)[-1]
    assert isinstance(layer, Conv2d)
    return layer


def forms(model: QuantizableModel) -> tuple[Form, ...]:
    """List the ways in which a model can be equalised; which is best, its weights decide."""
    has_gdn = any(isinstance(layer, GDN) for layer in model.modules())
    return ("even", "peaks", "noise") if has_gdn else ("even",)


@torch.no_grad()
def equalise(model: QuantizableModel, batches: Sequence[Tensor], form: Form = "even") -> int:
    """Equalise a float network, which computes what it did before; count the rescaled pairs.

    batches: pixels (B, 3, H, W) in -1..1. form: what a GDN reads is scaled as what it gives
    ("even"), or all of it to one peak ("peaks"), which serves a gamma whose columns lie far apart;
    or what is around GDNs then goes to where the predicted noise is least ("noise").
    """
    if not isinstance(model, Student):
        quantize.equalise(model, batches, even_gamma=form == "even")
        quantize.fill_ranges(model, batches)
        if form == "noise":
            noise.equalise(model, batches)
        return len(quantize.transforms(model))
    changed = 0
    for pair in pairs_of(model):
        scale = best_scale(pair, _watch(model, pair, batches))
        if scale is not None:
            changed += 1
            _apply(pair, scale)
    return changed


def _watch(model: QuantizableModel, pair: Pair, batches: Sequence[Tensor]) -> Seen:
    """Run the network in float and look at a pair's activations."""
    reader = pair.readers[0]
    outside: list[float] = []
    between: list[Tensor] = []

    def before(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        outside.append(float(arguments[0].square().mean()))

    def after(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        between.append(arguments[0])

    hooks = [
        pair.first.register_forward_pre_hook(before),
        reader.register_forward_pre_hook(after),
    ]
    model.set_quantized(False)
    try:
        for x in batches:
            model(x, rates(len(x)).to(x.device), noise=False)
    finally:
        for hook in hooks:
            hook.remove()
    flat = torch.cat([x.transpose(0, 1).flatten(1) for x in between], 1).float()
    top = flat.abs().amax(1)
    flat = flat[:, :: max(1, flat.shape[1] // CHANNEL_SAMPLES)]
    # a channel that speaks up rarely must not be raised so far that it decides the range then
    peak = flat.abs().quantile(PEAK, dim=1).maximum(top / 4)
    peak = peak.clamp_min(max(1e-6, float(peak.max()) / RARE))
    return Seen(peak, flat.square().mean(1), sum(outside) / len(outside))


def best_scale(pair: Pair, seen: Seen) -> Tensor | None:
    """Give the scale (C,) of the channels between that errs least; None: leave them as they are."""
    energy = sum(_by_input(reader).square().sum(1) for reader in pair.readers)
    assert isinstance(energy, Tensor)
    balance = torch.sqrt(energy.sqrt().clamp_min(1e-9) / seen.peak)
    balance = balance / balance.log().mean().exp()
    one = torch.ones_like(balance)
    if isinstance(pair.first, Requantize):
        balance = balance.clamp_min(float(balance.max()) / MULTIPLIERS)
        return _least(pair, seen, [one, balance, balance.sqrt()])
    weights = pair.first.effective()[0].abs().amax(dim=(1, 2, 3)).clamp_min(1e-9)
    top = weights.reshape(-1, pair.shuffle**2).amax(1)

    def full(scale: Tensor) -> Tensor:
        """The nearest scale at which a channel's largest weight is 127 steps of its grid."""
        steps = torch.log2(top * scale * (128 / 127))
        return scale * torch.exp2(steps.round() - steps)

    root = balance.sqrt()
    return _least(pair, seen, [one, full(one), balance, full(balance), root, full(root)])


def _least(pair: Pair, seen: Seen, candidates: list[Tensor]) -> Tensor | None:
    """Choose the scale that errs least, if that is clearly less than the first one does."""
    costs = [output_noise(pair, seen, scale) for scale in candidates]
    best = min(range(len(costs)), key=costs.__getitem__)
    return candidates[best] if costs[best] < CLEARLY * costs[0] else None


def output_noise(pair: Pair, seen: Seen, scale: Tensor) -> float:
    """Predict what rounding adds to the readers' outputs, squared, where channels are so scaled.

    Three terms, each from uniform errors of a twelfth of a squared step: the activations between,
    on one grid; the readers' weights and the first layer's, on grids of each output channel.
    """
    energy = sum(_by_input(reader).square().sum(1) for reader in pair.readers)
    step = _step(float((seen.peak * scale).max()), 255)
    activation = step**2 * float((energy / scale.square()).sum())
    readers = 0.0
    for reader in pair.readers:
        weight = _by_input(reader) / scale[:, None]
        peaks = weight.reshape(len(scale), len(reader.weight), -1).abs().amax(dim=(0, 2))
        steps = torch.exp2(-torch.floor(torch.log2(127 / peaks.clamp_min(1e-9))))
        taps = reader.weight[0, 0].numel()
        readers += float(steps.square().sum()) * taps * float((seen.power * scale.square()).sum())
    if isinstance(pair.first, Requantize):
        return (activation + readers) / 12
    weight = pair.first.effective()[0].abs().amax(dim=(1, 2, 3)).clamp_min(1e-9)
    every = pair.shuffle**2
    peaks = weight.reshape(-1, every) * scale[:, None]
    steps = torch.exp2(-torch.floor(torch.log2(127 / peaks))).square().mean(1)
    count = pair.first.weight[0].numel()
    first = seen.input_power * count * float((steps * energy / scale.square()).sum())
    return (activation + readers + first) / 12


def _step(peak: float, limit: int) -> float:
    return 2.0 ** -math.floor(math.log2(limit / peak))


def _by_input(layer: Conv2d) -> Tensor:
    """View effective weights as (input channels, the rest: outputs first)."""
    return layer.effective()[0].transpose(0, 1).flatten(1)


def _apply(pair: Pair, scale: Tensor) -> None:
    if isinstance(pair.first, Requantize):
        pair.first.multiplier.mul_(scale)
    else:
        outputs = scale.repeat_interleave(pair.shuffle**2)
        pair.first.weight.mul_(outputs[:, None, None, None])
        pair.first.bias.mul_(outputs)
    for reader in pair.readers:
        reader.weight.div_(scale[None, :, None, None])
