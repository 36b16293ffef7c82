"""Complexity of a codec: multiply-accumulates per pixel of picture, and parameters, each direction.

Counted from the layers of the torch module: one MAC for each weight of a convolution that an
output position uses (taps in the padding included), and C * C per position for a GDN. The hyper
synthesis runs in both directions and counts in both; entropy coding is not arithmetic of this kind.
A layer that reads 16-bit integers counts once here, twice in `program.check.macs_per_pixel`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from lichen.models.gdn import GDN
from lichen.models.layers import Conv2d, ConvTranspose2d

SIDE = 128  # of the picture that is passed through: a multiple of every model's reduction


class Codec(Protocol):
    """The four transforms that every model has."""

    def analyse(self, x: Tensor) -> Tensor: ...
    def hyper_analyse(self, v: Tensor) -> Tensor: ...
    def hyper_synthesise(self, z: Tensor) -> tuple[Tensor, Tensor]: ...
    def synthesise(self, y: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Direction:
    """macs_per_pixel: per pixel of picture. parameters: weights, biases, GDN's beta and gamma."""

    macs_per_pixel: float
    parameters: int


@dataclass(frozen=True)
class Complexity:
    """What encoding (g_a, h_a, h_s) and decoding (h_s, g_s) a picture take."""

    encode: Direction
    decode: Direction


@torch.no_grad()
def complexity(model: Codec) -> Complexity:
    """Count a model of `lichen.models`."""
    x = torch.zeros(1, 3, SIDE, SIDE)
    g_a, y = _count(model, model.analyse, x)
    h_a, z = _count(model, model.hyper_analyse, y)
    h_s, _ = _count(model, model.hyper_synthesise, z)
    g_s, _ = _count(model, model.synthesise, y)
    return Complexity(_sum(g_a, h_a, h_s), _sum(h_s, g_s))


def _sum(*parts: Direction) -> Direction:
    return Direction(
        sum(part.macs_per_pixel for part in parts), sum(part.parameters for part in parts)
    )


def _count(
    model: Codec, transform: Callable[[Tensor], Tensor], x: Tensor
) -> tuple[Direction, Tensor]:
    macs, seen = 0, set()

    def count(layer: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs
        seen.add(layer)
        match layer:
            case Conv2d():
                positions = output.shape[2] * output.shape[3]
                macs += layer.weight.numel() * positions
            case ConvTranspose2d():  # every tap meets every input position once
                positions = arguments[0].shape[2] * arguments[0].shape[3]
                macs += layer.weight.numel() * positions
            case GDN():
                macs += layer.gamma.numel() * output.shape[2] * output.shape[3]

    assert isinstance(model, nn.Module)
    layers = [m for m in model.modules() if isinstance(m, Conv2d | ConvTranspose2d | GDN)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        result = transform(x)
    finally:
        for hook in hooks:
            hook.remove()
    parameters = sum(p.numel() for layer in seen for p in layer.parameters())
    return Direction(macs / SIDE**2, parameters), result
