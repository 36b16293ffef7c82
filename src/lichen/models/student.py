"""student: our own codec, made for integers and for a pipeline of layers on a small FPGA.

          +--------- linear 16x16 ----------+
    x ----|                                 (+)- y -[* gain]- v --------(-)-[round]- r -> rANS
          +- branch: 1/4 -> 1/8 -> 1/16 ----+            |           |         ^
                                                        h_a         mean       | table
                                                         |           |         | number
                                                         z -> rANS  h_s -------+
          +--------- linear 16x16 ----------+
    x' ---|                                 (+)- y' -[* inverse gain]- v' = r + mean
          +- branch: 1/16 -> 1/8 -----------+

The linear path is a block transform that starts as the KLT (`training/warmstart.py`): pixels are
exact 8-bit inputs and latents are s16, so nothing large ever squeezes through 8 bits. The branches
are residual networks in 8 bits; they only add what a linear transform cannot do (adaptive
analysis; deblocking and texture in the synthesis), so that their rounding costs little.
docs/decisions/0001-linear-path.md has the reasons and the measurements.

Latents are coded in the gain domain: v = y * gain(quality), in quantisation steps with
`LATENT_EXPONENT` fractional bits. One set of weights serves all rates: `gain` and
`inverse_gain` are learned at `ANCHORS` qualities and interpolated in between (Cui 2021,
"Asymmetric gained deep image compression", eq. 3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lichen.models.layers import (
    RANGES,
    Conv2d,
    Quantizable,
    QuantizableModel,
    Requantize,
    ResidualBlock,
    Stack,
    Sum,
    round_ste,
)
from lichen.models.priors import (
    SCALE_LEVELS,
    EntropyBottleneck,
    gaussian_likelihood,
    scale_of_index,
)

PIXEL_EXPONENT = 7  # pixels minus 128 as s8 are real -1 .. 1
LATENT_EXPONENT = 4  # v and the mean: sixteenths of a quantisation step, up to +-2047 steps
PICTURE_EXPONENT = 11  # sum of the two synthesis paths before the final rounding to pixels
ANCHORS = 8
QUALITY_ROWS = 51  # of gains and tables in a model file: model.GAIN_ROWS
# Encoders round towards zero where zero is likely: by as many sixteenths of a step as there are
# numbers here above the table's number. (The scale of table 3 is 0.16, of 9 0.33.)
DEAD_ZONE = (3, 6, 9)
INDEX_MIN = -12  # of table indices in float; files begin with 0

# Lagrangian weights of quality 0 and 100: loss = lambda * MSE (0..255 scale) + bits per pixel.
LAMBDA_MIN, LAMBDA_MAX = 0.0006, 0.08


def quality_to_lambda(position: Tensor) -> Tensor:
    """Map a quality position 0..1 to the Lagrangian weight it is trained with."""
    return LAMBDA_MIN * torch.exp(position * math.log(LAMBDA_MAX / LAMBDA_MIN))


def interpolate(log_gain: Tensor, position: Tensor) -> Tensor:
    """Give the gains (B, M, 1, 1) at quality positions (B,) in 0..1 from the anchors' logarithms.

    log_gain: (ANCHORS, M), at positions evenly spaced over 0..1.
    """
    place = position * (ANCHORS - 1)
    low = place.floor().clamp(0, ANCHORS - 2)
    k = low.to(torch.int64)
    between = torch.lerp(log_gain[k], log_gain[k + 1], (place - low).unsqueeze(1))
    return torch.exp(between)[:, :, None, None]


def to_symbols(residual: Tensor, index: Tensor) -> Tensor:
    """Round v - mean to whole steps, towards zero where the table's number tells to: DEAD_ZONE.

    Where |residual| is half a step and a bit, a zero is so much cheaper than +-1 that it pays.
    The gradient with respect to the residual passes through.
    """
    with torch.no_grad():
        number = index.round()
        zone = torch.stack([number < limit for limit in DEAD_ZONE]).sum(0) * 2.0**-LATENT_EXPONENT
        step = torch.minimum(torch.maximum(residual, -zone), zone)
    return round_ste(residual - step)


def full_precision(x: Tensor) -> torch.autocast:
    """Leave autocast: latents span more than the 8 significant bits of bfloat16."""
    return torch.autocast(x.device.type, enabled=False)


def _blocks(channels: int, count: int) -> list[nn.Module]:
    return [ResidualBlock(channels) for _ in range(count)]


def _block_counts(name: str, given: Sequence[int], fine_width: int) -> tuple[int, int, int]:
    """Give the numbers of residual blocks at 1/4, 1/8 and 1/16."""
    counts = (0, *given) if len(given) == 2 else tuple(given)
    if len(counts) != 3 or min(counts) < 0:
        raise ValueError(f"{name} must be two or three counts, not {list(given)}")
    if counts[0] and not fine_width:
        raise ValueError(f"{name} at 1/4 resolution need a fine_width above 0")
    return counts


class Coded(NamedTuple):
    """What a forward pass gives. Likelihoods multiply to the probability of the whole code."""

    x_hat: Tensor  # (B, 3, H, W), -1 .. 1
    y_likelihood: Tensor
    z_likelihood: Tensor


class Student(QuantizableModel):
    """The student codec.

    Args:
        width: channels at 1/8 resolution (a multiple of 8).
        encoder_blocks, decoder_blocks: residual blocks at (1/8, 1/16) resolution, or at
            (1/4, 1/8, 1/16).
        fine_width: channels at 1/4 resolution; 0 where the branches begin and end at 1/8.
        coarse_width: channels at 1/16 resolution; None for 2 * width. Without blocks at 1/16 the
            synthesis goes from the latents straight to 1/8.
        latents: channels of y; None for 4.5 * width.
        hyper_width: channels in the hyper transforms; None for width.
        hyper_reduction: lines of the picture per row of z, 64 or 32.
        hyper_levels: entropy models of z, each for an equal part of the qualities.
    """

    integers_in_bfloat16 = True  # its branches; what needs more leaves autocast

    def __init__(
        self,
        width: int = 64,
        encoder_blocks: Sequence[int] = (4, 1),
        decoder_blocks: Sequence[int] = (3, 1),
        fine_width: int = 0,
        coarse_width: int | None = None,
        latents: int | None = None,
        hyper_width: int | None = None,
        hyper_reduction: int = 64,
        hyper_levels: int = 1,
    ) -> None:
        super().__init__()
        n, f = width, fine_width
        m = 9 * width // 2 if latents is None else latents
        c = 2 * width if coarse_width is None else coarse_width
        h = width if hyper_width is None else hyper_width
        for name, value, step in (
            ("width", n, 8), ("coarse_width", c, 4), ("latents", m, 4), ("hyper_width", h, 4),
        ):  # fmt: skip
            if value < step or value % step:
                raise ValueError(f"{name} must be a positive multiple of {step}, not {value}")
        if f < 0 or f % 4:
            raise ValueError(f"fine_width must be 0 or a multiple of 4, not {f}")
        if hyper_reduction not in (32, 64):
            raise ValueError(f"hyper_reduction must be 32 or 64, not {hyper_reduction}")
        if not 1 <= hyper_levels <= QUALITY_ROWS:
            raise ValueError(f"hyper_levels must be 1..{QUALITY_ROWS}, not {hyper_levels}")
        self.arguments = {
            "width": width,
            "encoder_blocks": list(encoder_blocks),
            "decoder_blocks": list(decoder_blocks),
        }
        optional = {
            "fine_width": (f, 0),
            "coarse_width": (c, 2 * width),
            "latents": (m, 9 * width // 2),
            "hyper_width": (h, width),
            "hyper_reduction": (hyper_reduction, 64),
            "hyper_levels": (hyper_levels, 1),
        }
        self.arguments |= {name: v for name, (v, default) in optional.items() if v != default}
        self.REDUCTION = hyper_reduction
        z = self.hyper_channels = 3 * h // 4
        self.latent_channels = m
        encoder = _block_counts("encoder_blocks", encoder_blocks, f)
        decoder = _block_counts("decoder_blocks", decoder_blocks, f)

        # g_a
        self.analysis_linear = Stack(nn.PixelUnshuffle(16), Conv2d(768, m, 1, dtype="s16"))
        fine = (
            [Conv2d(48, f, 3, dtype="s8"), *_blocks(f, encoder[0])] if f else [],
            Conv2d(f or 48, n, 3, stride=2, dtype="s8"),
        )
        self.analysis_branch = Stack(
            nn.PixelUnshuffle(4),
            *fine[0],
            fine[1],
            *_blocks(n, encoder[1]),
            Conv2d(n, c, 3, stride=2, dtype="s8"),
            *_blocks(c, encoder[2]),
            Conv2d(c, m, 1, dtype="s16"),
        )
        self.analysis_sum = Sum("s16")
        # h_a, h_s
        self.hyper_input = Requantize(torch.ones(m), dtype="s8", exponent=2)
        twice = hyper_reduction == 64  # z is at 1/64, two steps of 2 from y
        self.hyper_analysis = Stack(
            Conv2d(m, 3 * h // 2, 1, dtype="u8"),
            *([Conv2d(3 * h // 2, h, 3, stride=2, dtype="u8")] if twice else []),
            Conv2d(h if twice else 3 * h // 2, z, 3, stride=2, dtype="s8", exponent=0),
        )
        self.hyper_synthesis = Stack(
            Conv2d(z, 4 * h, 3, dtype="u8"),
            nn.PixelShuffle(2),
            *([Conv2d(h, 4 * h, 3, dtype="u8"), nn.PixelShuffle(2)] if twice else []),
            Conv2d(h, 3 * h // 2, 3, dtype="u8"),
        )
        self.mean = Conv2d(3 * h // 2, m, 1, dtype="s16", exponent=LATENT_EXPONENT)
        self.index = Conv2d(3 * h // 2, m, 1, dtype="u8", exponent=0)
        self.index.rectified = False  # in float down to INDEX_MIN
        # g_s
        self.synthesis_linear = Stack(
            Conv2d(m, 768, 1, dtype="s16", exponent=PICTURE_EXPONENT), nn.PixelShuffle(16)
        )
        self.synthesis_input = Requantize(torch.ones(m), dtype="s8")
        coarse = [Conv2d(m, c, 1, dtype="s8"), *_blocks(c, decoder[2])] if decoder[2] else []
        if f:
            last = f, 48
            to_fine = Conv2d(n, 4 * f, 1, dtype="s8"), nn.PixelShuffle(2), *_blocks(f, decoder[0])
        else:
            last, to_fine = (n, 192), ()
        self.synthesis_branch = Stack(
            *coarse,
            Conv2d(c if coarse else m, 4 * n, 1, dtype="s8"),
            nn.PixelShuffle(2),
            *_blocks(n, decoder[1]),
            *to_fine,
            Conv2d(*last, 3, dtype="s16", exponent=PICTURE_EXPONENT, attenuation=4),
            nn.PixelShuffle(4 if f else 8),
        )
        self.picture_sum = Sum("s8", exponent=PIXEL_EXPONENT)
        # rate gains, as logarithms, at ANCHORS qualities evenly spaced over 0 .. 1
        self.gain = nn.Parameter(torch.zeros(ANCHORS, m))
        self.inverse_gain = nn.Parameter(torch.zeros(ANCHORS, m))
        self.latent = Quantizable("s16", exponent=LATENT_EXPONENT)  # v
        self.dequantized = Quantizable("s16")  # y'
        self.prior = EntropyBottleneck(z, levels=hyper_levels)

        for layer in (self.analysis_branch[-1], self.mean, self.synthesis_branch[-2]):
            nn.init.zeros_(layer.weight)
        nn.init.normal_(self.index.weight, std=0.1 / math.sqrt(3 * h / 2))
        nn.init.constant_(self.index.bias, 20.0)

    def gains(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Give gain and inverse gain, each (B, M, 1, 1), for quality positions (B,) in 0..1."""
        return interpolate(self.gain, position), interpolate(self.inverse_gain, position)

    def level(self, position: Tensor) -> Tensor:
        """Give the entropy models of z, int64 (B,), at quality positions (B,) in 0..1.

        Models change where rows of the gain tables do: a file has a row of tables for each.
        """
        row = torch.floor(position * (QUALITY_ROWS - 1) + 0.5).to(torch.int64)
        return row * self.prior.levels // QUALITY_ROWS

    def analyse(self, x: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in -1..1 -> latents y (B, M, H/16, W/16)."""
        branch = self.analysis_branch(x, PIXEL_EXPONENT)
        with full_precision(x):
            linear = self.analysis_linear(x.float(), PIXEL_EXPONENT)
            return self.analysis_sum(linear, branch.float())

    def hyper_analyse(self, v: Tensor) -> Tensor:
        """v -> z before rounding (after it, where quantised), (B, Z, H/64, W/64) or at 1/32."""
        # bfloat16 would round z, then z round otherwise than in integers
        with full_precision(v):
            e = self.hyper_input.output_exponent
            low, high = (limit * 2.0**-e for limit in RANGES["s8"])
            h = self.hyper_input(v).clamp(low, high)
            return self.hyper_analysis(h, e)

    def hyper_synthesise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Rounded z -> mean of v, table index (fractional where not quantised)."""
        h = self.hyper_synthesis(z, 0)
        e = self.hyper_synthesis.output_exponent
        with full_precision(z):
            h = h.float()
            return self.mean(h, e), self.index(h, e).clamp(INDEX_MIN, SCALE_LEVELS - 1)

    def synthesise(self, y: Tensor) -> Tensor:
        """Dequantised latents y' -> pixels in -1..1 (not clamped where not quantised)."""
        h = self.synthesis_input(y)
        branch = self.synthesis_branch(h, self.synthesis_input.output_exponent)
        with full_precision(y):
            linear = self.synthesis_linear(y, self.dequantized.output_exponent)
            return self.picture_sum(linear, branch.float())

    def forward(self, x: Tensor, position: Tensor, noise: bool = True) -> Coded:
        """Code pixels (B, 3, H, W) in -1..1 at quality positions (B,) in 0..1.

        With `noise`, rates are those of latents with uniform noise (Balle 2017, eq. 10), of z the
        mean of those and of rounded ones, while the picture is made from rounded ones; without, or
        wholly in integers, all are the rounded ones.
        """
        gain, inverse_gain = self.gains(position)
        v = self.latent.finish(self.analyse(x) * gain)
        z = self.hyper_analyse(v).float()
        z_hat = round_ste(z)
        mean, index = self.hyper_synthesise(z_hat)
        residual = v - mean
        symbols = to_symbols(residual, index)
        y_hat = self.dequantized.finish((symbols + mean) * inverse_gain)
        level = self.level(position)
        z_likelihood = self.prior.likelihood(z_hat, level=level)
        # In integers scales end at SCALE_MIN: noise would cost bits there that no symbol costs.
        if noise and not self.index.quantized:
            symbols = residual + torch.rand_like(residual) - 0.5
            # A constant halfway between two integers costs noise nothing, and rounding a bit.
            z_noisy = self.prior.likelihood(z + torch.rand_like(z) - 0.5, level=level)
            z_likelihood = torch.sqrt(z_likelihood * z_noisy)
        return Coded(
            self.synthesise(y_hat),
            gaussian_likelihood(symbols, scale_of_index(index)),
            z_likelihood,
        )

    def train_in_integers(self) -> None:
        """Compute in integers but for what noisy latents need: scales below all tables, z itself.

        Rounded latents have no rate that an optimiser can follow: trained by theirs, in float, a
        student was 4 % behind after 300 steps.
        """
        self.set_quantized(True)
        self.index.quantized = False
        self.hyper_analysis[-1].quantized = False

    def calibrate_end(self) -> None:
        """Choose each exponent, then bring the terms of sums to grids that suit one another."""
        super().calibrate_end()
        self.align()

    def align(self) -> None:
        """Bring the terms of sums to grids that suit one another."""
        # A branch needs no finer grid than a few bits below the sum that it enters.
        for block in self.modules():
            if isinstance(block, ResidualBlock):
                limit = block.sum.output_exponent + 7
                block.conv2.set_exponent(min(block.conv2.output_exponent, limit))
        paths = (self.analysis_linear[1], self.analysis_branch[-1], self.analysis_sum)
        common = min(path.output_exponent for path in paths)
        for path in paths:
            path.set_exponent(common)
