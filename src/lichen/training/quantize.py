"""Post-training quantisation: fit a network trained in float to integers, without training.

`equalise` rescales channels so that 8 bits serve them alike, which changes nothing in float;
`calibrate` then chooses the exponents. Both look at sample pictures.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import torch
from torch import Tensor, nn

from lichen.models.gdn import GDN
from lichen.models.layers import (
    RANGES,
    Conv2d,
    ConvTranspose2d,
    Quantizable,
    QuantizableModel,
    Stack,
    fake_quantize,
)
from lichen.models.minnen2020 import ChannelConditional
from lichen.models.student import Student, quality_to_lambda
from lichen.training import scales
from lichen.training.loss import balance, rate_distortion

POSITIONS = (0.0, 0.5, 1.0)  # quality positions that are looked at
SAMPLES = 1 << 15  # values of a layer's output, per forward pass, that decide its exponent
CHANNEL_SAMPLES = 1 << 12  # of each channel, that decide its scale
MAX_EXPONENT = 20
PEAK = 0.999  # quantile that stands for a channel's peak
TRANSFORMS = ("g_a", "h_a", "h_s", "h_mean_s", "h_scale_s", "g_s")
FACTORS = 8  # of one octave, that a scale is chosen from
BETA_FLOOR = 1e-4  # least beta after rescaling, well above GDN's lower bound


def transforms(model: QuantizableModel) -> list[Stack]:
    """List those of the papers' transforms that a model has, in the order in which they run."""
    return [getattr(model, name) for name in TRANSFORMS if hasattr(model, name)]


@torch.no_grad()
def fit(
    model: QuantizableModel,
    batches: Sequence[Tensor],
    *,
    rescale: bool = True,
    correct: bool = True,
) -> None:
    """Fit a float network to integers by what serves its kind best.

    batches: as for `calibrate`. rescale, correct: weights may be equalised, biases corrected where
    that lowers the loss (in vain where training goes on); without, only exponents are chosen.
    """
    if isinstance(model, Student):  # knows how its sums must agree
        model.set_quantized(False)
        if rescale:
            scales.equalise(model, batches)
        model.calibrate_begin()
        scales.code(model, batches)
        model.calibrate_end()
        calibrate(model, batches, wide=False)
        model.align()
        return
    if rescale:
        equalise(model, batches)
    calibrate(model, batches)
    if correct:
        before = {name: value.clone() for name, value in model.state_dict().items()}
        without = _integer_loss(model, batches)
        correct_biases(model, batches)
        # it can do harm: a trained mean-scale hyperprior went from a loss of 1.48 to 1.68
        if _integer_loss(model, batches) > without:
            model.load_state_dict(before)


def _integer_loss(model: QuantizableModel, batches: Sequence[Tensor]) -> float:
    """Give the mean loss in integers, over the rates."""
    model.set_quantized(True)
    losses = []
    for x in batches:
        for position in POSITIONS:
            place = torch.full((len(x),), position, device=x.device)
            weight = quality_to_lambda(place)
            coded = model(x, place, noise=False)
            losses.append(rate_distortion(coded, x, weight, "mse", balance(weight))["loss"])
    model.set_quantized(False)
    return float(torch.stack(losses).mean())


@torch.no_grad()
def calibrate(
    model: QuantizableModel,
    batches: Iterable[Tensor],
    positions: Sequence[float] = POSITIONS,
    wide: bool = True,
) -> None:
    """Choose every exponent that the design leaves open.

    batches: pixels (B, 3, H, W) in -1..1, passed through at each quality position (0..1). An 8-bit
    layer takes the exponent whose rounding and saturation make the least squared error; a 16-bit
    layer, unless `wide` is off, the finest that leaves one bit above the largest value seen.
    """
    tops, samples = observe_outputs(model, batches, positions)
    for layer, top in tops.items():
        if layer.dtype == "s16":
            if wide:
                layer.set_exponent(wide_exponent(top))
            continue
        coarsest = finest_exponent(layer.dtype, top)
        values = torch.cat(samples[layer])
        errors = {
            e: float((fake_quantize(values, e, layer.dtype) - values).square().mean())
            for e in range(min(MAX_EXPONENT, coarsest), min(MAX_EXPONENT, coarsest + 5) + 1)
        }
        layer.set_exponent(min(errors, key=errors.__getitem__))


def finest_exponent(dtype: str, top: float) -> int:
    """Give the exponent of the finest grid of this type that holds values up to `top`."""
    # a layer that was silent may speak up on other pictures: a guess is better than 2**-20
    return math.floor(math.log2(RANGES[dtype][1] / (top or 1.0)))


def wide_exponent(top: float) -> int:
    """Give that of s16 which leaves one bit above `top`, for what calibration has not seen."""
    return min(MAX_EXPONENT, finest_exponent("s16", top) - 1)


@torch.no_grad()
def observe_outputs(
    model: QuantizableModel, batches: Iterable[Tensor], positions: Sequence[float] = POSITIONS
) -> tuple[dict[Quantizable, float], dict[Quantizable, list[Tensor]]]:
    """Give the largest magnitude, and samples, of the outputs in float of each layer.

    Only of those whose exponent is open; batches and positions as for `calibrate`.
    """
    samples: dict[Quantizable, list[Tensor]] = {}
    tops: dict[Quantizable, float] = {}

    def watch(layer: Quantizable) -> None:
        finish = layer.finish

        def keep(y: Tensor) -> Tensor:
            output = finish(y)
            flat = output.flatten()
            tops[layer] = max(tops.get(layer, 0.0), float(flat.abs().max()))
            step = max(1, len(flat) // SAMPLES)
            samples.setdefault(layer, []).append(flat[::step].clone())
            return output

        layer.finish = keep  # type: ignore[method-assign]

    free = [layer for layer in model.quantized_layers() if not layer.fixed]
    for layer in free:
        watch(layer)
    model.set_quantized(False)
    try:
        _observe(model, batches, positions)
    finally:
        for layer in free:
            del layer.finish
    return {layer: tops.get(layer, 0.0) for layer in free}, samples


@torch.no_grad()
def equalise(
    model: QuantizableModel,
    batches: Iterable[Tensor],
    positions: Sequence[float] = POSITIONS,
    even_gamma: bool = False,
) -> None:
    """Rescale the channels between layers so that neither activations nor weights lose bits.

    Cross-layer equalisation (Nagel 2019, "Data-free quantization through weight equalization and
    bias correction", section 4.1) with measured ranges: a channel whose activations peak at X and
    whose weights in the next layer have the root mean square W is scaled by sqrt(W / X), those
    weights by the inverse. GDN passes such a scale on through its own parameters, and the latents
    through the inverse rate gains. In float the network stays what it was.

    even_gamma: what a GDN reads is scaled like what it gives, which leaves the rows of gamma as
    they are to one another: its 8 bits are one grid. Else all that it reads peaks alike, which its
    s16 does not need: measured on a trained GDN model, gamma's rounding then cost 0.34 dB at high
    rates instead of 0.01. (Training in integers makes up for that; it begins so.)
    """
    inputs: dict[nn.Module, Tensor] = {}
    outputs: dict[nn.Module, Tensor] = {}

    def before(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        _record(inputs, layer, arguments[0])

    def after(layer: nn.Module, _: object, output: Tensor) -> None:
        _record(outputs, layer, output)

    model.set_quantized(False)
    _observe(model, batches, positions, before, after)
    conditional = model.slice_transforms() if isinstance(model, ChannelConditional) else []
    for stack in (*transforms(model), *conditional):
        layers = [layer for layer in stack if isinstance(layer, Quantizable)]
        convs = [k for k, layer in enumerate(layers) if isinstance(layer, Conv2d | ConvTranspose2d)]
        for first, second in itertools.pairwise(convs):
            scale = _balance(layers[second], inputs[layers[second]])
            between = layers[first + 1]
            if isinstance(between, GDN):
                inner = scale if even_gamma else 1 / outputs[layers[first]]
                inner = through_gdn(between, inner, scale)
                scale_outputs(layers[first], inner)
            else:  # ReLU and LeakyReLU commute with positive scales
                scale_outputs(layers[first], scale)
            scale_inputs(layers[second], 1 / scale)
    scale = _balance(model.g_s[0], inputs[model.g_s[0]])
    model.inverse_gain.add_(scale.log())
    scale_inputs(model.g_s[0], 1 / scale)
    fill_weights(model)


@torch.no_grad()
def fill_weights(model: QuantizableModel) -> None:
    """Make the largest weights exactly 127 where the scale of a layer's outputs is free."""
    for layers in (list(model.g_a), list(model.g_s)):
        for layer, between in itertools.pairwise(layers):
            if isinstance(between, GDN):
                scale_outputs(layer, through_gdn(between, _full(layer), torch.ones(1)))
    scale = _full(model.g_a[-1])
    scale_outputs(model.g_a[-1], scale)
    model.gain.sub_(scale.log())


@torch.no_grad()
def fill_ranges(model: QuantizableModel, batches: Iterable[Tensor]) -> None:
    """Rescale each 8-bit activation as a whole, so that the best of its ranges is a power of two.

    Best by the squared error of rounding and saturation. In float the network stays what it was.
    """
    samples = observe_outputs(model, batches)[1]
    conditional = model.slice_transforms() if isinstance(model, ChannelConditional) else []
    for stack in (*transforms(model), *conditional):
        layers = [layer for layer in stack if isinstance(layer, Quantizable)]
        convs = [k for k, layer in enumerate(layers) if isinstance(layer, Conv2d | ConvTranspose2d)]
        for first, second in itertools.pairwise(convs):
            between = layers[second - 1]
            if between.dtype == "s16" or between.fixed:
                continue
            factor = _best_factor(torch.cat(samples[between]), between.dtype)
            if isinstance(between, GDN):
                beta, gamma = between.effective()
                r = factor ** (between.power if between.inverse else -between.power)
                between.set_effective(r * beta, r * gamma)
            else:
                scale_outputs(layers[first], torch.full_like(layers[first].bias, factor))
            scale_inputs(layers[second], torch.tensor([1 / factor]))
    fill_weights(model)


def _best_factor(values: Tensor, dtype: str) -> float:
    """Give the factor, 1 to 2, at which values on a grid of this type err least."""
    top = float(values.abs().max())

    def error(factor: float) -> float:
        scaled, coarsest = values * factor, finest_exponent(dtype, top * factor)
        errors = [
            float((fake_quantize(scaled, e, dtype) - scaled).square().mean())
            for e in range(coarsest, coarsest + 6)
        ]
        return min(errors) / factor**2

    return min((2 ** (k / FACTORS) for k in range(FACTORS)), key=error)


@torch.no_grad()
def correct_biases(
    model: QuantizableModel, batches: Sequence[Tensor], positions: Sequence[float] = POSITIONS
) -> None:
    """Take off the biases what rounding adds to the mean of each layer's outputs.

    For a calibrated model: layer after layer, in the order in which they run, the mean of each
    output channel in integers becomes that of the float network (Nagel 2019, section 4.2).
    """
    stacks = transforms(model)
    if isinstance(model, ChannelConditional):
        # Means over all rates are those of high ones: corrected by them, the entropy part took 3 to
        # 4 % more bits at quality 0, while g_a and g_s alone saved 0.3 to 0.7 % at others.
        stacks = [stacks[0], stacks[-1]]
    layers = [m for s in stacks for m in s if isinstance(m, Conv2d | ConvTranspose2d)]
    model.set_quantized(False)
    float_means = _means(model, layers, batches, positions)
    model.set_quantized(True)
    try:
        for layer in layers:
            layer.bias.add_(float_means[layer] - _means(model, [layer], batches, positions)[layer])
    finally:
        model.set_quantized(False)


class _Enough(Exception):
    """All layers that are looked at have run: the rest of the network need not."""


def _means(
    model: QuantizableModel,
    layers: Sequence[nn.Module],
    batches: Iterable[Tensor],
    positions: Sequence[float],
) -> dict[nn.Module, Tensor]:
    """Average each layer's output channels over pictures, as saturated as they are in integers."""
    sums: dict[nn.Module, list[Tensor]] = {layer: [] for layer in layers}

    def after(layer: nn.Module, _: object, output: Tensor) -> None:
        assert isinstance(layer, Quantizable)
        low, high = (limit * 2.0**-layer.output_exponent for limit in RANGES[layer.dtype])
        sums[layer].append(output.clamp(low, high).mean(dim=(0, 2, 3)))
        if layer is layers[-1]:
            raise _Enough

    _observe(model, batches, positions, after=after, layers=layers)
    return {layer: torch.stack(means).mean(0) for layer, means in sums.items()}


def _observe(
    model: QuantizableModel,
    batches: Iterable[Tensor],
    positions: Sequence[float],
    before: Callable[..., None] | None = None,
    after: Callable[..., None] | None = None,
    layers: Iterable[nn.Module] | None = None,
) -> None:
    """Run the network on pictures with hooks on `layers` (None: all)."""
    hooks = []
    for layer in model.quantized_layers() if layers is None else layers:
        if before is not None:
            hooks.append(layer.register_forward_pre_hook(before))
        if after is not None:
            hooks.append(layer.register_forward_hook(after))
    try:
        for x in batches:
            for position in positions:
                with suppress(_Enough):
                    model(x, torch.full((len(x),), position, device=x.device), noise=False)
    finally:
        for hook in hooks:
            hook.remove()


def _record(peaks: dict[nn.Module, Tensor], layer: nn.Module, x: Tensor) -> None:
    flat = x.abs().transpose(0, 1).flatten(1)
    flat = flat[:, :: max(1, flat.shape[1] // CHANNEL_SAMPLES)].float()
    peak = flat.quantile(PEAK, dim=1).clamp_min(1e-6)
    peaks[layer] = torch.maximum(peaks.get(layer, peak), peak)


def _weights(layer: nn.Module, inputs: bool) -> Tensor:
    """View the weights of a convolution with its input or output channels first."""
    assert isinstance(layer, Conv2d | ConvTranspose2d)
    axis = int(isinstance(layer, Conv2d) == inputs)
    return layer.weight.transpose(0, axis)


def _balance(layer: nn.Module, activation_peak: Tensor) -> Tensor:
    """Give the scale of each input channel that balances its two ranges; geometric mean 1."""
    weights = _weights(layer, inputs=True).square().mean(dim=(1, 2, 3)).sqrt().clamp_min(1e-9)
    scale = torch.sqrt(weights / activation_peak)
    return scale / scale.log().mean().exp()


def _full(layer: nn.Module) -> Tensor:
    """Give the factor nearest 1 of each output channel that puts its largest weight at 127."""
    peak = _weights(layer, inputs=False).abs().amax(dim=(1, 2, 3)).clamp_min(1e-9)
    steps = torch.log2(peak * (128 / 127))
    return torch.exp2(steps.round() - steps)


def scale_outputs(layer: nn.Module, scale: Tensor) -> None:
    _weights(layer, inputs=False).mul_(scale[:, None, None, None])
    layer.bias.mul_(scale)  # type: ignore[union-attr, operator]


def scale_inputs(layer: nn.Module, scale: Tensor) -> None:
    _weights(layer, inputs=True).mul_(scale[:, None, None, None])


def through_gdn(layer: GDN, inner: Tensor, outer: Tensor) -> Tensor:
    """Let a GDN turn inputs scaled by `inner` into outputs scaled by `outer`; return `inner`.

    With n' = r * n it does for r = (inner / outer) ** power, or the inverse of that for IGDN:
    beta' = r * beta, gamma'[i, j] = r[i] * gamma[i, j] / inner[j] ** power. All of `inner` may
    still be raised or lowered together, which is used to keep beta above its lower bound.
    """
    beta, gamma = layer.effective()
    sign = -1 if layer.inverse else 1
    r = (inner / outer) ** (sign * layer.power)
    lift = torch.log2((BETA_FLOOR / (r * beta).min()).clamp_min(1)) / layer.power
    inner = inner * 2.0 ** (sign * lift.ceil())
    r = (inner / outer) ** (sign * layer.power)
    layer.set_effective(r * beta, r[:, None] * gamma / inner[None] ** layer.power)
    return inner
