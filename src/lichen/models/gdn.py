"""Generalised divisive normalisation (Balle 2016, "Density modeling of images using a generalized
normalization transformation", eq. 1 and 2) and its simplified form without square and root
(Johnston 2019, "Computationally efficient neural image compression", section 3.1).

    y[i] = x[i] / sqrt(beta[i] + sum over j of gamma[i, j] * x[j] ** 2)     power 2
    y[i] = x[i] / (beta[i] + sum over j of gamma[i, j] * |x[j]|)            power 1

The inverse layer multiplies where these divide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lichen.models.layers import RANGES, Quantizable
from lichen.program.arithmetic import gdn_tables

# CompressAI's reparametrisation: what is stored is sqrt(value + PEDESTAL), held to a lower bound.
PEDESTAL = 2.0**-36
BETA_MIN = 1e-6

OPERAND_BITS = 16  # of a square, unsigned (ops.GDN)
SUM_MAX = 2**31 - 1  # of n


class LowerBound(torch.autograd.Function):
    """max(x, bound), whose gradient also passes where it would lift x back to the bound."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bound: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bound = bound
        return x.clamp_min(bound)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return gradient * ((x >= ctx.bound) | (gradient < 0)), None


@dataclass(frozen=True, eq=False)
class IntegerGDN:
    """What ops.GDN takes: beta int64 (C,), gamma int64 (C, C), and the two shifts.

    fraction: gamma's exponent.
    """

    beta: Tensor
    gamma: Tensor
    square_shift: int
    shift: int
    fraction: int


class GDN(Quantizable):
    """GDN or its inverse; parameters and their reparametrisation are those of CompressAI's GDN.

    When quantised the input must be on an s16 grid; the result is that of ops.GDN to the last
    bit, with the gradient of the float layer.
    """

    def __init__(
        self,
        channels: int,
        *,
        inverse: bool = False,
        power: Literal[1, 2] = 2,
        dtype: str = "s8",
        exponent: int | None = None,
    ) -> None:
        super().__init__(dtype, exponent)
        self.inverse, self.power = inverse, power
        self.beta = nn.Parameter(torch.ones(channels))
        self.gamma = nn.Parameter(torch.empty(channels, channels))
        self.set_effective(torch.ones(channels), 0.1 * torch.eye(channels))

    @torch.no_grad()
    def set_effective(self, beta: Tensor, gamma: Tensor) -> None:
        """Store the values that the layer shall apply: beta (C,), gamma (C, C) [out, in], >= 0."""
        self.beta.copy_(torch.sqrt(beta.clamp_min(0) + PEDESTAL))
        self.gamma.copy_(torch.sqrt(gamma.clamp_min(0) + PEDESTAL))

    def effective(self) -> tuple[Tensor, Tensor]:
        """Beta and gamma as the layer applies them."""
        beta = LowerBound.apply(self.beta, math.sqrt(BETA_MIN + PEDESTAL))
        gamma = LowerBound.apply(self.gamma, math.sqrt(PEDESTAL))
        return beta**2 - PEDESTAL, gamma**2 - PEDESTAL

    @torch.no_grad()
    def integer_parameters(self, input_exponent: int) -> IntegerGDN:
        """Choose the grids of gamma (8 bits), of the squares (16) and of the sums (31).

        With x = X * 2**-input_exponent, real n = N * 2**-e, where e counts the fractional bits of
        gamma and of the squares; power 2 needs e even, for its root to be a shift.
        """
        beta, gamma = (value.detach().double().cpu() for value in self.effective())
        peak = max(float(gamma.max()), 2.0**-40)
        fraction = math.floor(math.log2(255.0 / peak))  # of gamma
        square_shift, squares = 0, 0  # squares: fractional bits of u
        if self.power == 2:
            square_shift = 30 - OPERAND_BITS  # an s16 squared has 31 bits, the last for -2**15
            squares = 2 * input_exponent - square_shift
        else:
            squares = input_exponent
        room = math.floor(math.log2(SUM_MAX / 2 / max(float(beta.max()), BETA_MIN)))
        fraction = min(fraction, room - squares)
        if self.power == 2 and (fraction + squares) % 2:
            square_shift, squares = square_shift + 1, squares - 1
        top = min(2**OPERAND_BITS - 1, 2 ** (30 - square_shift)) if self.power == 2 else 2**15
        while True:
            integers = torch.round(gamma * 2.0**fraction).clamp(0, 255)
            offsets = torch.round(beta * 2.0 ** (fraction + squares)).clamp_min(1)
            if float((offsets + top * integers.sum(1)).max()) <= SUM_MAX:
                break
            fraction -= self.power
        e = fraction + squares
        gain = e // 2 if self.power == 2 else e
        shift = input_exponent - self.output_exponent + (gain if self.inverse else -gain)
        return IntegerGDN(offsets.long(), integers.long(), square_shift, shift, fraction)

    def forward(self, x: Tensor, input_exponent: int | None = None) -> Tensor:
        autocast = torch.is_autocast_enabled(x.device.type)
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            if self.quantized and not torch.is_grad_enabled():
                assert input_exponent is not None
                return self._exact(x, input_exponent)
            beta, gamma = self.effective()
            if self.quantized and self.quick:
                assert input_exponent is not None
                gamma = self._rounded(gamma, input_exponent)
            operand = x.square() if self.power == 2 else x.abs()
            n = self._norm(operand, gamma, beta, autocast and not self.quantized)
            if self.power == 2:
                y = x * (n.sqrt() if self.inverse else n.rsqrt())
            else:
                y = x * n if self.inverse else x / n
            if not self.quantized or self.quick:
                return self.finish(y)
            assert input_exponent is not None
            low, high = (limit * 2.0**-self.output_exponent for limit in RANGES[self.dtype])
            y = y.clamp(low, high)  # no gradient where the integers saturate
            return y + (self._exact(x.detach(), input_exponent) - y).detach()

    def _rounded(self, gamma: Tensor, input_exponent: int) -> Tensor:
        """Gamma on its grid, straight-through."""
        step = 2.0 ** -self.integer_parameters(input_exponent).fraction
        return gamma + ((gamma / step).round().clamp_max(255) * step - gamma).detach()

    @staticmethod
    def _norm(operand: Tensor, gamma: Tensor, beta: Tensor, bfloat16: bool) -> Tensor:
        """beta + gamma * operand; in training the products may be of bfloat16, the sum is not."""
        if not bfloat16:
            return F.conv2d(operand, gamma[:, :, None, None], beta)
        low = torch.bfloat16
        n = F.conv2d(operand.to(low), gamma[:, :, None, None].to(low)).float()
        return n + beta.reshape(1, -1, 1, 1)

    @torch.no_grad()
    def _exact(self, x: Tensor, input_exponent: int) -> Tensor:
        """Compute ops.GDN in float64, which holds every integer of it."""
        integers = self.integer_parameters(input_exponent)
        tables = gdn_tables(self.power, self.inverse, integers.shift)
        device = x.device
        x = torch.round(x.double() * 2.0**input_exponent)
        u = x.abs()
        if self.power == 2:
            u = torch.round(x * x * 0.5**integers.square_shift).clamp_max(2**OPERAND_BITS - 1)
        gamma = integers.gamma.double().to(device)[:, :, None, None]
        n = F.conv2d(u, gamma, integers.beta.double().to(device))
        bits = torch.frexp(n).exponent.long()  # the bit length of an integer
        factor = n
        if len(tables.factors):
            normalise = torch.from_numpy(0.5 ** tables.normalise.astype(float)).to(device)
            mantissa = torch.round(n * normalise[bits]).long()
            factors = torch.from_numpy(tables.factors.astype(float)).to(device)
            factor = factors[mantissa - tables.first]
        total = torch.from_numpy(0.5 ** tables.total.astype(float)).to(device)
        y = torch.round(x * factor * total[bits]).clamp(*RANGES[self.dtype])
        return (y * 2.0**-self.output_exponent).float()
