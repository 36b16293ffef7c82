"""Scales of channels around GDN, chosen by the noise that integers will make in the picture.

Around each GDN stand two scales for each channel: what it reads may be scaled by t, what it gives
by s, and in float nothing changes (`training.quantize.through_gdn`). Three roundings depend on
them, and what suits one spoils another:

- the GDN's output, on one grid of 8 bits, saturated beyond it: s wants all channels to peak alike;
- weights of the layer that reads it, a grid for each output channel: s wants the largest weights
  of all input channels alike, those of loud ones above all;
- gamma, on one grid of 8 bits: s and t want its rows and columns alike.

Each makes noise whose power follows in closed form from the scales and from what a few photographs
say: samples of the output, powers, and how much a disturbance of each channel counts in the
picture. The sum is descended by Adam, for each GDN alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lichen.models.gdn import GDN
from lichen.models.layers import Conv2d, ConvTranspose2d, QuantizableModel
from lichen.models.student import quality_to_lambda
from lichen.training import quantize
from lichen.training.loss import balance, rates

SAMPLES = 4096  # of each channel, that its saturation is computed from
PICTURES = 4  # of a forward pass
STEPS, RATE = 300, 0.05  # of Adam, on logarithms of scales
ADAPTIVE = 0.5  # of the noise of nearest rounding, that adaptive rounding of weights leaves
UNIFORM = 1 / 12  # variance of a rounding error, in squared steps
Convolution = Conv2d | ConvTranspose2d


@dataclass(frozen=True, eq=False)
class Junction:
    """A GDN, the convolution before it and the one that reads it."""

    before: Convolution
    gdn: GDN
    reader: Convolution


@dataclass(frozen=True, eq=False)
class Seen:
    """What photographs say of a junction of C channels and a reader of O outputs.

    outputs: samples of |y|, (C, n); power: mean square of y (C,). weight: how much a squared error
    counts that all values of a channel of y (C,) get, and of the reader's output (O,). gamma: the
    same for squared relative errors of n, by what each input adds to it, (C, C).
    """

    outputs: Tensor
    power: Tensor
    weight: Tensor
    reader_weight: Tensor
    gamma: Tensor


def junctions(model: QuantizableModel) -> list[Junction]:
    """List the GDNs of a model's transforms."""
    found = []
    for stack in quantize.transforms(model):
        layers = [layer for layer in stack if not isinstance(layer, nn.Identity)]
        for before, gdn, reader in zip(layers, layers[1:], layers[2:]):
            if isinstance(gdn, GDN):
                assert isinstance(before, Conv2d | ConvTranspose2d)
                assert isinstance(reader, Conv2d | ConvTranspose2d)
                found.append(Junction(before, gdn, reader))
    return found


@torch.no_grad()
def equalise(model: QuantizableModel, batches: Sequence[Tensor], seed: int = 0) -> None:
    """Rescale a float network around its GDNs; it computes what it did before.

    batches: pixels (B, 3, H, W) in -1..1, coded at qualities spread over the rates.
    """
    places = junctions(model)
    seen, latents, counts = look(model, places, batches, seed)
    scales = [inner_and_outer(j, s) for j, s in zip(places, seen)]
    for junction, (inner, outer) in zip(places, scales):
        inner = quantize.through_gdn(junction.gdn, inner, outer)
        quantize.scale_outputs(junction.before, inner)
        quantize.scale_inputs(junction.reader, 1 / outer)
    scale = latent_scale(model.g_s[0], latents, counts)  # type: ignore[index, arg-type]
    model.inverse_gain.add_(scale.log())  # type: ignore[operator]
    quantize.scale_inputs(model.g_s[0], 1 / scale)  # type: ignore[index, arg-type]
    quantize.fill_weights(model)


@torch.no_grad()
def look(
    model: QuantizableModel, places: Sequence[Junction], batches: Sequence[Tensor], seed: int
) -> tuple[list[Seen], Tensor, Tensor]:
    """Run a float network on photographs, and its gradients from random signs at every pixel.

    The mean square of such a gradient is the sum of the squared derivatives of all pixels
    (Hutchinson). Gives also the power of the latents that synthesis reads (M,), and how much
    errors of its first layer's outputs count (C,).
    """
    generator = torch.Generator().manual_seed(seed)
    first = model.g_s[0]  # type: ignore[index]
    layers = list(
        dict.fromkeys([first, *(la for j in places for la in (j.before, j.gdn, j.reader))])
    )
    outputs: dict[nn.Module, Tensor] = {}
    read: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda la, _, output: outputs.update({la: output}))
        for layer in layers
    ]
    hooks.append(first.register_forward_pre_hook(lambda _, x: read.append(_power(x[0]))))
    model.set_quantized(False)
    sums: list[list[Seen]] = [[] for _ in places]
    counts: list[Tensor] = []
    try:
        for batch in batches:
            for x, position in zip(batch.split(PICTURES), rates(len(batch)).split(PICTURES)):
                grads = _gradients(model, x, position, layers, outputs, generator)
                counts.append(_total(grads[first]))
                for junction, parts in zip(places, sums):
                    parts.append(_seen(junction, outputs, grads))
    finally:
        for hook in hooks:
            hook.remove()
    latents = torch.stack(read).mean(0)
    return [_together(parts) for parts in sums], latents, torch.stack(counts).sum(0)


def _gradients(
    model: QuantizableModel,
    x: Tensor,
    position: Tensor,
    layers: Sequence[nn.Module],
    outputs: dict[nn.Module, Tensor],
    generator: torch.Generator,
) -> dict[nn.Module, Tensor]:
    weight = quality_to_lambda(position)
    weight = (weight * balance(weight)).sqrt()[:, None, None, None]
    with torch.enable_grad():
        picture = model(x, position, noise=False).x_hat
        signs = torch.randint(0, 2, picture.shape, generator=generator) * 2.0 - 1
        grads = torch.autograd.grad(
            (picture * signs * weight).sum(), [outputs[la] for la in layers]
        )
    return dict(zip(layers, grads))


def _power(x: Tensor) -> Tensor:
    return x.detach().square().mean((0, 2, 3))


def _total(x: Tensor) -> Tensor:
    return x.square().sum((0, 2, 3))


def _seen(
    junction: Junction, outputs: dict[nn.Module, Tensor], grads: dict[nn.Module, Tensor]
) -> Seen:
    gdn = junction.gdn
    x, y, g = (
        value.detach().transpose(0, 1).flatten(1)
        for value in (outputs[junction.before], outputs[gdn], grads[gdn])
    )
    beta, gamma = gdn.effective()
    u = x.abs() ** gdn.power
    n = beta[:, None] + gamma @ u
    step = max(1, y.shape[1] // (SAMPLES // PICTURES))
    return Seen(
        outputs=y[:, ::step].abs(),
        power=y.square().mean(1),
        weight=g.square().sum(1),
        reader_weight=_total(grads[junction.reader]),
        gamma=(g * y / n).square() @ u.square().T / gdn.power**2,
    )


def _together(parts: Sequence[Seen]) -> Seen:
    def total(name: str) -> Tensor:
        return torch.stack([getattr(part, name) for part in parts]).sum(0)

    outputs = torch.cat([part.outputs for part in parts], 1)
    outputs = outputs[:, :: max(1, outputs.shape[1] // SAMPLES)]
    power = total("power") / len(parts)
    return Seen(outputs, power, total("weight"), total("reader_weight"), total("gamma"))


@torch.no_grad()
def inner_and_outer(junction: Junction, seen: Seen) -> tuple[Tensor, Tensor]:
    """Find the scales (C,) of what a GDN reads and of what it gives that make the least noise."""
    gdn = junction.gdn
    gamma = gdn.effective()[1]
    largest, fan = _largest(junction.reader), _fan(junction.reader)
    peak = seen.outputs.quantile(quantize.PEAK, dim=1).clamp_min(1e-6)
    outer = (largest.square().mean(0).sqrt().clamp_min(1e-9) / peak).log() / 2
    outer = outer - (outer + peak.log()).max()
    columns = gamma.amax(0).clamp_min(float(gamma.max()) * 1e-6)
    inner = columns.log() / (2 * gdn.power)
    sign, bits = -1 if gdn.inverse else 1, 16 if gdn.dtype == "s16" else 8

    def noise(inner: Tensor, outer: Tensor) -> Tensor:
        s = outer.exp()
        step = 2.0 ** (1 - bits)  # the range is -1..1: s may be anything
        beyond = (seen.outputs * s[:, None] - 1).clamp_min(0).square().mean(1)
        total = (seen.weight / s.square() * (UNIFORM * step**2 + beyond)).sum()
        rows = (largest / s).amax(1) / 127
        heard = fan * (seen.power * s.square()).sum()
        total = total + ADAPTIVE * UNIFORM * heard * (seen.reader_weight * rows.square()).sum()
        lift = (sign * gdn.power * (inner - outer)).exp()  # of n
        columns = (gdn.power * inner).exp()
        grid = (lift[:, None] * gamma / columns).max() / 255
        spread = (seen.gamma * (columns / lift[:, None]).square()).sum()
        return total + UNIFORM * grid.square() * spread

    inner, outer = descend(noise, inner, outer)
    inner = inner - inner.mean()  # gamma alone sees no common factor
    return inner.exp(), outer.exp()


@torch.no_grad()
def latent_scale(reader: Convolution, power: Tensor, counts: Tensor) -> Tensor:
    """Find the scale (M,) of the latents that synthesis reads: 16 bits, so that weights decide."""
    largest = _largest(reader)

    def noise(scale: Tensor) -> Tensor:
        s = scale.exp()
        rows = (largest / s).amax(1)
        return (counts * rows.square()).sum() * (power * s.square()).sum()

    top = largest.amax(0)
    (scale,) = descend(noise, top.clamp_min(float(top.max()) * 1e-3).log())
    return (scale - scale.mean()).exp()


def descend(noise: Callable[..., Tensor], *start: Tensor) -> list[Tensor]:
    """Minimise a noise over logarithms of scales; gives the best that were seen."""
    logs = [value.detach().clone().requires_grad_() for value in start]
    optimiser = torch.optim.Adam(logs, lr=RATE)
    best, least = [value.detach().clone() for value in logs], math.inf
    for step in range(STEPS):
        optimiser.param_groups[0]["lr"] = RATE * (0.5 + 0.5 * math.cos(math.pi * step / STEPS))
        with torch.enable_grad():
            found = noise(*logs)
            found.log().backward()
        if float(found) < least:
            best, least = [value.detach().clone() for value in logs], float(found)
        optimiser.step()
        optimiser.zero_grad()
    return best


def _largest(layer: Convolution) -> Tensor:
    """Give the largest |weight| of each output and input channel, (O, I)."""
    weight = layer.effective()[0].detach().abs().amax((2, 3))
    return weight.T if isinstance(layer, ConvTranspose2d) else weight


def _fan(layer: Convolution) -> float:
    """Count the taps of an output in each input channel."""
    taps = layer.weight[0, 0].numel()
    return taps / layer.stride**2 if isinstance(layer, ConvTranspose2d) else float(taps)
