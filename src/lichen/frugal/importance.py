"""Importance of channels: what a network loses without them, as far as weights or gradients tell.

Every score is one number for each unit of each group of `models.channels`, larger for units that
are missed more, and comparable between groups: `prune` ranks units of all layers in one list, by
score per product saved.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lichen.models.channels import Channels, Group
from lichen.models.layers import QuantizableModel
from lichen.models.student import quality_to_lambda
from lichen.training.loss import balance, rate_distortion
from lichen.training.seeds import SampleNoise, positions

Scores = dict[str, NDArray[np.float64]]  # (units,) of each group


def by_unit(group: Group, axis: int, units: NDArray[np.int64], values: Tensor) -> Tensor:
    """Sum a tensor over all but the units that its positions along `axis` have: (group.units,)."""
    flat = values.detach().double().transpose(0, axis).reshape(len(units), -1).sum(1).cpu()
    own = torch.from_numpy(units >= 0)
    total = torch.zeros(group.units, dtype=torch.float64)
    return total.index_add_(0, torch.from_numpy(units)[own], flat[own])


@torch.no_grad()
def magnitude(model: QuantizableModel, channels: Channels) -> Scores:
    """Score units by the L2 norms of the weights that make them and of those that read them.

    Each tensor's share is relative to the mean of its group, as layers differ in scale for reasons
    that have nothing to do with importance (He 2017, "Channel pruning for accelerating very deep
    neural networks", looks at one layer at a time); what a group costs then decides between
    groups. Weights alone: no picture is looked at.
    """
    state = model.state_dict()
    scores = {}
    for name, group in channels.groups.items():
        shares = []
        for member in group.members:
            if member.tensor.endswith(".weight"):
                squares = by_unit(group, member.axis, member.units, state[member.tensor].square())
                shares.append(squares / squares.mean().clamp_min(1e-30))
        scores[name] = torch.stack(shares).mean(0).sqrt().numpy()
    return scores


def mask_gradient(model: QuantizableModel, group: Group) -> Tensor:
    """Give dL / dm (units,) of masks m = 1 that multiply a group's channels, from the gradients.

    The channels are w * x + b: what multiplies w and b multiplies them, so dL / dm = sum of w *
    dL / dw over the weights and biases that make a unit. Zero where nothing had a gradient.
    """
    total = torch.zeros(group.units, dtype=torch.float64)
    for member in group.members:
        parameter = model.get_parameter(member.tensor) if member.makes else None
        if parameter is not None and parameter.grad is not None:
            product = parameter * parameter.grad
            total += by_unit(group, member.axis, member.units, product)
    return total


def taylor(
    model: QuantizableModel,
    channels: Channels,
    batches: Iterable[Tensor],
    one_lambda: float | None = None,
) -> Scores:
    """Score units by what the rate-distortion loss changes, to first order, when they leave.

    batches: pixels (B, 3, H, W) in -1..1, each sample coded at a quality of its own, all of them
    evenly spread; or all at `one_lambda`, where the network knows one rate. The score is the mean
    over the samples of (sum of w * dL / dw) ** 2, Molchanov 2019, "Importance estimation for neural
    network pruning", eq. 8, at the gate of the channel (section 3.3). Sample by sample: at a
    minimum of the loss the mean gradient is zero. Gradients of the model are left cleared.
    """
    device = next(model.parameters()).device
    flags = [(layer, layer.quantized) for layer in model.quantized_layers()]
    total = {name: torch.zeros(g.units, dtype=torch.float64) for name, g in channels.groups.items()}
    seen = 0
    try:
        model.set_quantized(False)
        for number, batch in enumerate(batches):
            place = positions(len(batch), 0, number).to(device)
            for x, position in zip(batch.to(device).split(1), place.split(1)):
                model.zero_grad(set_to_none=True)
                weight, factor = quality_to_lambda(position), balance(quality_to_lambda(position))
                if one_lambda is not None:
                    position = torch.full_like(position, 0.5)
                    weight, factor = torch.full_like(weight, one_lambda), torch.ones_like(factor)
                with SampleNoise(0, seen, 0, device):
                    coded = model(x, position)
                terms = rate_distortion(coded, x, weight, "mse", factor)
                terms["loss"].backward()
                for name, group in channels.groups.items():
                    total[name] += mask_gradient(model, group).square()
                seen += 1
    finally:
        model.zero_grad(set_to_none=True)
        for layer, flag in flags:
            layer.quantized = flag
    return {name: (score / max(1, seen)).numpy() for name, score in total.items()}
