"""The scale hyperprior, and the mean-scale hyperprior as an argument of it.

    x --[g_a]-- y -[* gain]- v ------------------(-)-[round]- r -> rANS
                             |                    ^             ^ number of a table
                           h_a(|v|)              mean       scale
                             |                    |           |
                             z -[round]- z^ ---- h_s ---------+
                                 |
                                 +-> rANS

    x' -[g_s]-- y' -[* inverse gain]- v' = r + mean

Balle 2018, "Variational image compression with a scale hyperprior", figure 4: mean = 0, h_a reads
|v|, activations inside h_a and h_s are ReLU, those of g_a and g_s are GDN (eq. 1 of Balle 2016).
Minnen 2018, "Joint autoregressive and hierarchical priors for learned image compression",
section 3 without the context model (means=True): h_a reads v, LeakyReLU, h_s gives both.

State dicts of CompressAI's `bmshj2018-hyperprior` and `mbt2018-mean` load by name
(`load_checkpoint`). Rate gains are ours (as in `student`): without them every gain is 1, and v is
y. With activation="relu" the layers 1, 3 and 5 of g_a and g_s are ReLU: cheap in integers.

Pixels: CompressAI's are 0..1 and its padding is 0, which is black. g_a therefore starts with
p = (x + 1) / 2, in integers pixel - 128 + 128 as u8, so that padding is black here too, exactly.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lichen.errors import ModelError
from lichen.models.checkpoint import (
    check_fit,
    from_unit_pixels,
    is_foreign,
    names_of,
    own_values,
    read_state,
)
from lichen.models.gdn import GDN
from lichen.models.layers import (
    Conv2d,
    ConvTranspose2d,
    Quantizable,
    QuantizableModel,
    Stack,
    fake_quantize,
    held,
    round_ste,
)
from lichen.models.priors import (
    SCALE_MIN,
    EntropyBottleneck,
    gaussian_likelihood,
    scale_of_index,
    scale_table,
)
from lichen.models.student import (
    ANCHORS,
    LATENT_EXPONENT,
    PIXEL_EXPONENT,
    Coded,
    full_precision,
    interpolate,
)

SCALE_EXPONENT = 7  # h_s gives scales and means in 128ths of a quantisation step, up to 256 steps
HYPER_EXPONENT = 6  # z^ = integer + median, in 64ths
LEAK_SLOPE = 0.01  # of LeakyReLU
LEAK, LEAK_EXPONENT = 82, 13  # the same in integers: 82 / 8192 = 0.01001


class LeakyReLU(Quantizable):
    """max(x, 0) + min(x, 0) / 100: s16 in, s8 out. The leak keeps 6 bits more than the input."""

    LEAK_BITS = 6

    def forward(self, x: Tensor, input_exponent: int | None = None) -> Tensor:
        below = x.clamp_max(0)
        leak = below * LEAK_SLOPE
        if self.quantized:
            assert input_exponent is not None
            leak = below * (LEAK * 2.0**-LEAK_EXPONENT)
            leak = fake_quantize(leak, input_exponent + self.LEAK_BITS, "s16")
        return self.finish(x.clamp_min(0) + leak)


class CentredConv2d(Conv2d):
    """The last layer of h_a: gives z minus the medians of its prior, so that rounding is about 0.

    Rounding about the medians is CompressAI's; in integers it is a matter of this layer's bias.
    """

    def __init__(self, *args: Any, prior: EntropyBottleneck, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.__dict__["prior"] = prior  # not a submodule: the model owns it

    def effective(self) -> tuple[Tensor, Tensor]:
        weight, bias = super().effective()
        return weight, bias - self.prior.medians().flatten()


def scale_thresholds() -> Tensor:
    """Give the least integer scale (with SCALE_EXPONENT) of tables 1, 2, ..: int64 (T - 1,).

    A scale takes the table that is nearest in ratio, which costs 0.06 % of the code length of true
    Gaussians of 0.2 to 8 steps. (The next larger one, as CompressAI takes it, costs 0.23 %.)
    """
    scales = torch.tensor(scale_table(), dtype=torch.float64)
    return torch.ceil(torch.sqrt(scales[:-1] * scales[1:]) * 2**SCALE_EXPONENT).to(torch.int64)


class ScaleHyperprior(QuantizableModel):
    """Balle 2018; Minnen 2018's mean-scale hyperprior with `means`.

    Args:
        n, m: the papers' N (channels inside, and of z) and M (of y).
        means: h_s also predicts the mean of each latent.
        activation: "gdn" (the papers) or "relu", in g_a and g_s.
    """

    REDUCTION = 64  # pictures are padded to a multiple of this

    def __init__(
        self,
        n: int = 128,
        m: int = 192,
        means: bool = False,
        activation: Literal["gdn", "relu"] = "gdn",
    ) -> None:
        super().__init__()
        if n < 1 or m < 1:
            raise ValueError(f"n and m must be positive integers, not {n} and {m}")
        if activation not in ("gdn", "relu"):
            raise ValueError(f"activation must be 'gdn' or 'relu', not {activation!r}")
        self.arguments = {"n": n, "m": m, "means": means, "activation": activation}
        self.means, self.hyper_channels, self.latent_channels = means, n, m
        inside = "u8" if activation == "relu" else "s16"  # what a convolution leaves

        def down(inputs: int, outputs: int, dtype: str) -> Conv2d:
            return Conv2d(inputs, outputs, 5, stride=2, padding=2, dtype=dtype)

        def up(inputs: int, outputs: int, dtype: str, e: int | None = None) -> ConvTranspose2d:
            return ConvTranspose2d(inputs, outputs, 5, stride=2, dtype=dtype, exponent=e)

        def act(inverse: bool, dtype: str = "s8") -> nn.Module:
            # the convolution before it has done the ReLU, by saturating to u8
            if activation == "relu":
                return nn.Identity()
            return GDN(n, inverse=inverse, dtype=dtype)

        # (3, H, W) -> N at 1/2, 1/4, 1/8 -> (M, H/16, W/16)
        self.g_a = Stack(
            down(3, n, inside),
            act(False),
            down(n, n, inside),
            act(False),
            down(n, n, inside),
            act(False, "s16"),  # what makes the latents is worth 16 bits: 5 % more work
            down(n, m, "s16"),
        )
        # (M, H/16, W/16) -> N at 1/8, 1/4, 1/2 -> (3, H, W)
        self.g_s = Stack(
            up(m, n, inside),
            act(True),
            up(n, n, inside),
            act(True),
            up(n, n, inside),
            act(True),
            up(n, 3, "s8", PIXEL_EXPONENT),
        )
        self.entropy_bottleneck = EntropyBottleneck(n)
        inside = "s16" if means else "u8"

        def hyper_act() -> nn.Module:
            return LeakyReLU("s8") if means else nn.Identity()

        # (M, H/16, W/16) -> (N, H/64, W/64)
        self.h_a = Stack(
            Conv2d(m, n, 3, dtype=inside),
            hyper_act(),
            down(n, n, inside),
            hyper_act(),
            CentredConv2d(
                n,
                n,
                5,
                stride=2,
                padding=2,
                dtype="s8",
                exponent=0,
                prior=self.entropy_bottleneck,
            ),
        )
        # (N, H/64, W/64) -> (M or 2 M, H/16, W/16): scales, then means
        a, b, c = (m, m * 3 // 2, 2 * m) if means else (n, n, m)
        self.h_s = Stack(
            up(n, a, inside),
            hyper_act(),
            up(a, b, inside),
            hyper_act(),
            Conv2d(b, c, 3, dtype="s16", exponent=SCALE_EXPONENT),
        )
        # rate gains, as logarithms, at ANCHORS qualities evenly spaced over 0 .. 1
        self.gain = nn.Parameter(torch.zeros(ANCHORS, m))
        self.inverse_gain = nn.Parameter(torch.zeros(ANCHORS, m))
        self.latent = Quantizable("s16", exponent=LATENT_EXPONENT)  # v and v'
        self.hyper_latent = Quantizable("s16", exponent=HYPER_EXPONENT)  # z^
        self.dequantized = Quantizable("s16")  # y'
        self.register_buffer("thresholds", scale_thresholds(), persistent=False)
        with torch.no_grad():
            self.h_s[-1].bias[:m].fill_(1.0)

    def gains(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Give gain and inverse gain, each (B, M, 1, 1), for quality positions (B,) in 0..1."""
        return interpolate(self.gain, position), interpolate(self.inverse_gain, position)

    def analyse(self, x: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in -1..1 -> latents y (B, M, H/16, W/16)."""
        return self.g_a((x + 1) * 0.5, PIXEL_EXPONENT + 1)

    def hyper_analyse(self, v: Tensor) -> Tensor:
        """v -> z minus its medians, before rounding (after it, where quantised)."""
        v = v if self.means else v.abs()
        return self.h_a(held(v, self.h_a[0], LATENT_EXPONENT), LATENT_EXPONENT)

    def hyper_synthesise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Rounded (z minus its medians) -> mean and scale of v, each (B, M, H/16, W/16)."""
        z = self.hyper_latent.finish(z + self.entropy_bottleneck.medians())
        h = self.h_s(held(z, self.h_s[0], HYPER_EXPONENT), HYPER_EXPONENT)
        if not self.means:
            return torch.zeros_like(h), h
        scale, mean = h.chunk(2, 1)
        return mean, scale

    def table_index(self, scale: Tensor) -> Tensor:
        """Number of the entropy table of a scale that is a multiple of 2**-SCALE_EXPONENT."""
        scaled = (scale * 2.0**SCALE_EXPONENT).contiguous()
        return torch.bucketize(scaled, self.thresholds.to(scale), right=True)

    def synthesise(self, y: Tensor) -> Tensor:
        """Dequantised latents y' -> pixels in -1..1 (not clamped where not quantised)."""
        e = self.dequantized.output_exponent
        return self.g_s(held(y, self.g_s[0], e), e)

    def forward(self, x: Tensor, position: Tensor, noise: bool = True) -> Coded:
        """Code pixels (B, 3, H, W) in -1..1 at quality positions (B,) in 0..1.

        With `noise`, rates are those of latents with uniform noise (Balle 2018, eq. 3) while the
        picture is made from rounded ones; without, both are the rounded ones.
        """
        gain, inverse_gain = self.gains(position)
        y = self.analyse(x)
        with full_precision(x):
            v = self.latent.finish(y.float() * gain)
        z = self.hyper_analyse(v).float()
        z_hat = round_ste(z)
        mean, scale = (h.float() for h in self.hyper_synthesise(z_hat))
        residual = v - mean
        symbols = round_ste(residual)
        if noise:
            residual = residual + torch.rand_like(residual) - 0.5
            z = z + torch.rand_like(z) - 0.5
        else:
            residual, z = symbols, z_hat
            if self.latent.quantized:  # the scale of the table that codes it
                scale = scale_of_index(self.table_index(scale).float())
        v_hat = self.latent.finish(symbols + mean)
        return Coded(
            self.synthesise(self.dequantized.finish(v_hat * inverse_gain)),
            gaussian_likelihood(residual, scale.clamp_min(SCALE_MIN)),
            self.entropy_bottleneck.likelihood(z + self.entropy_bottleneck.medians()),
        )


@torch.no_grad()
def load_checkpoint(model: ScaleHyperprior, path_or_state: Path | str | dict[str, Tensor]) -> None:
    """Load CompressAI's weights, or ones that lichen has saved, into `model`.

    Files of CompressAI have no rate gains (they become 1), no exponents (calibrate before
    quantising), and code pixels / 255 in 0..1: the first and the last layer are scaled to the
    pixels of this model. Raises ModelError naming what is missing, unexpected or misshapen.
    """
    where = "the state dict" if isinstance(path_or_state, dict) else str(path_or_state)
    state = path_or_state if isinstance(path_or_state, dict) else read_state(Path(path_or_state))
    state = names_of(state)
    if not is_foreign(state):
        check_fit(model, state, where)
        model.load_state_dict(state)
        return
    own = own_values(model)
    check_fit(model, state, where, own)
    model.load_state_dict(own | from_unit_pixels(state, "g_a.0", "g_s.6"))


def from_checkpoint(path_or_state: Path | str | dict[str, Tensor]) -> ScaleHyperprior:
    """Make the model whose weights these are and load them. Raises ModelError."""
    state = path_or_state if isinstance(path_or_state, dict) else read_state(Path(path_or_state))
    names = names_of(state)
    try:
        n, m = len(names["g_a.0.weight"]), len(names["g_a.6.weight"])
        means = len(names["h_s.4.weight"]) == 2 * m
    except KeyError as error:
        raise ModelError(
            f"expected the weights of a scale hyperprior, found no {error.args[0]}; give a file "
            "of bmshj2018-hyperprior or mbt2018-mean"
        ) from error
    model = ScaleHyperprior(n, m, means, "gdn" if "g_a.1.beta" in names else "relu")
    load_checkpoint(model, names)
    return model
