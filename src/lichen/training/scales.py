"""Scales of a student's channels: they change nothing in float and save the 8 bits of integers.

A positive scale of a channel commutes with ReLU, sums and pixel shuffles (Nagel 2019, "Data-free
quantization through weight equalization and bias correction", section 4.1). The grids of the
contract are powers of two, activations share one and each output channel of weights has its own.

Two kinds of scales:

- `Stream`: signed channels that several layers write and read, as those of a row of residual
  blocks, and what a Requantize gives. Each channel fills the range: activations lose much more than
  weights here (measured on student-s: 0.3 dB at quality 100 by activations, 0.05 dB by weights).
- `Pair`: a convolution with a ReLU and those that read it. The paper balances the ranges of two
  layers' weights; what a scale gains is computed here from the grids, and a pair stays as it is
  where nothing is gained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lichen.models.layers import Conv2d, Requantize, ResidualBlock, Stack
from lichen.models.student import Student
from lichen.training.loss import rates

PEAK = 0.999  # quantile that stands for a channel's peak
CHANNEL_SAMPLES = 1 << 12  # of each channel, per forward pass
RARE = 64  # a channel's peak is taken as no smaller than this part of the largest one
CLEARLY = 0.98  # of the noise, that a scale must leave at most to be worth it
CLIPS = 16  # ranges that are tried, a quarter of an octave apart
MULTIPLIERS = 128  # largest over smallest multiplier of a Requantize: the least keeps 8 bits
HYPER_RANGE = 0.5  # of a latent's peak at quality 100, that h_a reads: a finer grid serves low ones
HYPER_FINEST = 32  # levels of a quantisation step, that h_a reads at most


@dataclass(frozen=True, eq=False)
class Stream:
    """Signed 8-bit channels: layers that write them, each with its pixel shuffle, and readers."""

    writers: tuple[tuple[Conv2d | Requantize, int], ...]
    readers: tuple[Conv2d, ...]


@dataclass(frozen=True, eq=False)
class Pair:
    """A convolution with a ReLU, and those that read it. shuffle: factor of what is between."""

    first: Conv2d
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


@torch.no_grad()
def equalise(model: Student, batches: Sequence[Tensor]) -> int:
    """Scale the channels of a float student, which computes what it did before.

    (But for rare latents of high qualities, that h_a now reads clipped: see HYPER_RANGE.)

    batches: pixels (B, 3, H, W) in -1..1, coded at qualities from 0 to 100. Gives the number of
    streams and pairs that were scaled. Exponents are to be chosen anew.
    """
    model.set_quantized(False)
    streams = streams_of(model)
    for stream, clip in zip(streams, clips(model, streams, batches), strict=True):
        fill(stream, clip)
    changed = len(streams) + 1
    _fill_hyper_input(model, batches)
    for pair in pairs_of(model):
        scale = best_scale(pair, _watch(model, pair, batches))
        if scale is not None:
            changed += 1
            _apply(pair, scale)
    return changed


def streams_of(model: Student) -> list[Stream]:
    """List the streams of a student's branches, in the order in which they run."""
    first = next(layer for layer in model.synthesis_branch if isinstance(layer, Conv2d))
    return [
        *_streams(model.analysis_branch),
        Stream(((model.synthesis_input, 1),), (first,)),
        *_streams(model.synthesis_branch),
    ]


def _streams(stack: Stack) -> Iterator[Stream]:
    writers: list[tuple[Conv2d | Requantize, int]] = []
    readers: list[Conv2d] = []
    for layer in stack:
        if isinstance(layer, nn.PixelShuffle) and writers:
            writers[-1] = (writers[-1][0], layer.upscale_factor)
        elif isinstance(layer, ResidualBlock):
            writers.append((layer.conv2, 1))
            readers.append(layer.conv1)
        elif isinstance(layer, Conv2d):
            if writers:
                yield Stream(tuple(writers), (*readers, layer))
            writers, readers = [(layer, 1)], []


def pairs_of(model: Student) -> list[Pair]:
    """List the pairs of a student: in its residual blocks and its hyper transforms."""
    pairs = [
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
    last = list(model.hyper_synthesis)[-1]
    assert isinstance(last, Conv2d)
    pairs.append(Pair(last, (model.mean, model.index)))
    return pairs


@contextmanager
def _before(layers: Iterable[nn.Module], look: Callable[..., None]) -> Iterator[None]:
    """Call `look` with a layer and its arguments before each time that one of `layers` runs."""
    hooks = [layer.register_forward_pre_hook(look) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _by_channel(x: Tensor) -> Tensor:
    return x.transpose(0, 1).flatten(1).float()


def _sample(x: Tensor) -> Tensor:
    """Take about CHANNEL_SAMPLES values of each channel (C, n), evenly spaced."""
    return x[:, :: max(1, x.shape[1] // CHANNEL_SAMPLES)]


def code(model: Student, batches: Sequence[Tensor]) -> None:
    """Code pictures (B, 3, H, W), those of a batch at rates from the lowest to the highest."""
    for x in batches:
        model(x, rates(len(x)).to(x.device), noise=False)


def clips(model: Student, streams: Sequence[Stream], batches: Sequence[Tensor]) -> list[Tensor]:
    """Give for each stream the range of its channels (C,) by which 8 bits err least."""
    found: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}

    def keep(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        x = _by_channel(arguments[0])
        found.setdefault(layer, []).append((_sample(x), x.abs().amax(1)))

    with _before((reader for stream in streams for reader in stream.readers), keep):
        code(model, batches)
    ranges = {reader: _best_clip(*zip(*seen, strict=True)) for reader, seen in found.items()}
    return [torch.stack([ranges[r] for r in stream.readers]).amax(0) for stream in streams]


def _best_clip(samples: Sequence[Tensor], tops: Sequence[Tensor]) -> Tensor:
    """Give the best range (C,) from samples (C, n) and largest magnitudes (C,) of each pass."""
    x, top = torch.cat(tuple(samples), 1), torch.stack(tuple(tops)).amax(0)
    tried = [top * 2.0 ** (-k / 4) for k in range(CLIPS)]
    errors = [_clipping_error(x, clip.clamp_min(1e-9)) for clip in tried]
    best = torch.stack(errors).argmin(0)
    return torch.stack(tried).gather(0, best[None])[0]


def _clipping_error(x: Tensor, clip: Tensor) -> Tensor:
    """Give the mean squared error (C,) of x (C, n) on 255 levels up to +-clip (C,)."""
    step = clip[:, None] / 127
    return (torch.round(x / step).clamp(-127, 127) * step - x).square().mean(1)


def fill(stream: Stream, clip: Tensor) -> None:
    """Scale each channel so that `clip` (C,) is the end of 8 bits, without moving the whole."""
    scale = (127 / 128) / clip.clamp_min(float(clip.max()) * 1e-6)
    for writer, _ in stream.writers:
        if isinstance(writer, Requantize):
            least = float((writer.multiplier * scale).min())
            scale = torch.minimum(scale, MULTIPLIERS * least / writer.multiplier)
    # a power of two for all: the exponent takes it up, and weights keep their size
    scale = scale * 2.0 ** -round(float(scale.log2().mean()))
    for writer, shuffle in stream.writers:
        if isinstance(writer, Requantize):
            writer.multiplier.mul_(scale)
        else:
            _scale_outputs(writer, scale, shuffle)
    for reader in stream.readers:
        reader.weight.div_(scale[None, :, None, None])


def _fill_hyper_input(model: Student, batches: Sequence[Tensor]) -> None:
    """Give h_a's input the finest grid that its rare values allow, channel by channel.

    What it reads spans a fraction of a step at quality 0 and tens of steps at quality 100.
    """
    layer, reader = model.hyper_input, model.hyper_analysis[0]
    assert isinstance(reader, Conv2d)
    seen: list[Tensor] = []
    with _before([layer], lambda _, arguments: seen.append(_sample(_by_channel(arguments[0])))):
        for x in batches:
            model(x, torch.ones(len(x), device=x.device), noise=False)
    peak = torch.cat(seen, 1).abs().quantile(PEAK, dim=1)
    one = 2.0**-layer.output_exponent
    wanted = (127 * one / (HYPER_RANGE * peak).clamp_min(1e-9)).clamp_max(HYPER_FINEST * one)
    old = layer.multiplier.clone()
    new = torch.maximum(wanted, old)
    shift = round(float((new / old).log2().mean()))
    new = new * 2.0**-shift
    layer.set_exponent(layer.output_exponent + shift)
    layer.multiplier.copy_(new)
    reader.weight.mul_((old / new)[None, :, None, None])


def _scale_outputs(layer: Conv2d, scale: Tensor, shuffle: int) -> None:
    outputs = scale.repeat_interleave(shuffle**2)
    layer.weight.mul_(outputs[:, None, None, None])
    layer.bias.mul_(outputs)


def _watch(model: Student, pair: Pair, batches: Sequence[Tensor]) -> Seen:
    """Run the network in float and look at a pair's activations."""
    powers: list[float] = []
    between: list[Tensor] = []

    def look(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if layer is pair.first:
            powers.append(float(arguments[0].square().mean()))
        else:
            between.append(_by_channel(arguments[0]))

    with _before([pair.first, pair.readers[0]], look):
        code(model, batches)
    flat = torch.cat(between, 1)
    top = flat.abs().amax(1)
    flat = _sample(flat)
    # a channel that speaks up rarely must not be raised so far that it decides the range then
    peak = flat.abs().quantile(PEAK, dim=1).maximum(top / 4)
    peak = peak.clamp_min(max(1e-6, float(peak.max()) / RARE))
    return Seen(peak, flat.square().mean(1), sum(powers) / len(powers))


def best_scale(pair: Pair, seen: Seen) -> Tensor | None:
    """Give the scale (C,) of the channels between that errs least; None: leave them as they are."""
    energy = sum(_by_input(reader).square().sum(1) for reader in pair.readers)
    assert isinstance(energy, Tensor)
    balance = torch.sqrt(energy.sqrt().clamp_min(1e-9) / seen.peak)
    balance = balance / balance.log().mean().exp()
    one = torch.ones_like(balance)
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
    _scale_outputs(pair.first, scale, pair.shuffle)
    for reader in pair.readers:
        reader.weight.div_(scale[None, :, None, None])
