"""The channel-wise autoregressive entropy model with latent residual prediction.

    x --[g_a]-- y -[* gain]- v ---- v.k ---(-)-[round]- r.k -> rANS
                             |              ^            ^ number of a table
                            h_a          mean.k       scale.k        [cc_mean_transforms.k],
                             |              |            |           [cc_scale_transforms.k]
                    rANS <-[round]       means, y.0 ..  scales, y.0 ..
                             |              |            |
                             z^ ----[h_mean_s] --- [h_scale_s]

    y.k = (r.k + mean.k) + tanh(lrp_transforms.k(means, y.0 .., r.k + mean.k)) / 2
    x' -[g_s]-- y' -[* inverse gain]- y.0 y.1 ..

Minnen & Singh 2020, "Channel-wise autoregressive entropy models for learned image compression":
the latents are cut into slices of channels, coded one after the other; each slice's means and
scales see the hyperprior and slices decoded before ("channel-conditioning"), and what rounding took
away is predicted in part ("latent residual prediction"). Layers, channels and kernels are
those of the authors' code (`models/ms2020.py` of TensorFlow Compression), where, as here, only the
first `max_support_slices` slices are ever looked at. Names of parameters are those of the STF and
WACNN release (Zou 2022), whose entropy part derives from this one.

Everything between v and y.k is in the gain domain (in quantisation steps), so that one set of
weights serves all rates. Pixels, g_a, g_s and the rounding about medians: as in `balle2018`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from lichen.errors import ModelError
from lichen.models.balle2018 import (
    HYPER_EXPONENT,
    SCALE_EXPONENT,
    CentredConv2d,
    ScaleHyperprior,
    scale_thresholds,
)
from lichen.models.checkpoint import (
    check_fit,
    from_unit_pixels,
    is_foreign,
    names_of,
    own_values,
    read_state,
)
from lichen.models.gdn import LowerBound
from lichen.models.layers import (
    Conv2d,
    ConvTranspose2d,
    Quantizable,
    QuantizableModel,
    Stack,
    held,
    round_ste,
)
from lichen.models.priors import (
    SCALE_MIN,
    EntropyBottleneck,
    gaussian_likelihood,
    scale_of_index,
)
from lichen.models.student import ANCHORS, PIXEL_EXPONENT, Coded, full_precision, interpolate

# v, mean and y.k: 32nds of a quantisation step, up to +-1023 steps. (Halving the resolution would
# cost 0.3 % of the squared error, as rounding noise on top of that of the quantiser.)
LATENT_EXPONENT = 5
LRP_EXPONENT = 10  # input of the hyperbolic tangent
LRP_LEVELS = 2**LATENT_EXPONENT  # steps of tanh(x) / 2, from -1/2 to 1/2


def lrp_thresholds() -> Tensor:
    """Give the least integer x (with LRP_EXPONENT) of tanh(x) / 2 at each level: int64 (levels,).

    With n of them at or below x, n / LRP_LEVELS - 1/2 is the multiple of 1 / LRP_LEVELS that is
    nearest to tanh(x) / 2. There are no ties: atanh of a rational number other than 0 is not one.
    """
    middles = (torch.arange(LRP_LEVELS, dtype=torch.float64) + 0.5) / LRP_LEVELS - 0.5
    return torch.ceil(torch.atanh(2 * middles) * 2**LRP_EXPONENT).to(torch.int64)


class ChannelConditional(QuantizableModel):
    """The entropy part: slices of v, each conditioned on the hyperprior and on earlier slices.

    A model of this kind has `latent`, the s16 grid of v, and the three lists of transforms, one of
    each for every slice, each reading (means or scales, y.0, y.1 ..) along channels.
    """

    slices: int
    max_support_slices: int
    latent: Quantizable
    cc_mean_transforms: nn.ModuleList
    cc_scale_transforms: nn.ModuleList
    lrp_transforms: nn.ModuleList
    thresholds: Tensor  # of scales, see balle2018
    lrp_levels: Tensor  # thresholds of tanh

    def supports(self, k: int) -> int:
        """Count the slices that slice k sees: the first ones."""
        return min(k, self.max_support_slices)

    def slice_transforms(self) -> list[Stack]:
        """List the transforms of all slices, in the order in which they run."""
        lists = (self.cc_mean_transforms, self.cc_scale_transforms, self.lrp_transforms)
        return [layers for of_slice in zip(*lists, strict=True) for layers in of_slice]

    def context(
        self, k: int, means: Tensor, scales: Tensor, y_hat: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Predict mean and scale of slice k, (B, M / slices, H/16, W/16) each, in steps.

        means, scales: what the hyper-synthesis gave. y_hat: the slices before k.
        """
        seen = y_hat[: self.supports(k)]
        mean = self._transform(self.cc_mean_transforms[k], [means, *seen])
        scale = self._transform(self.cc_scale_transforms[k], [scales, *seen])
        return mean.float(), scale.float()

    def refine(
        self, k: int, symbols: Tensor, mean: Tensor, means: Tensor, y_hat: Sequence[Tensor]
    ) -> Tensor:
        """Give y.k: slice k dequantised, with the latent residual prediction added."""
        rough = self.latent.finish(symbols + mean)
        support = [means, *y_hat[: self.supports(k)], rough]
        x = self._transform(self.lrp_transforms[k], support).float()
        residual = 0.5 * torch.tanh(x)
        if self.latent.quantized:
            scaled = (x * 2.0**LRP_EXPONENT).contiguous()
            level = torch.bucketize(scaled, self.lrp_levels.to(x), right=True)
            residual = residual + (level / LRP_LEVELS - 0.5 - residual).detach()
        return self.latent.finish(rough + residual)

    def code(self, v: Tensor, means: Tensor, scales: Tensor, noise: bool) -> tuple[Tensor, Tensor]:
        """Quantise v slice by slice; give what the decoder has of it, and the likelihood.

        With `noise`, the likelihood is that of v with uniform noise, while later slices and the
        synthesis see rounded ones, with the gradient of the identity.
        """
        y_hat: list[Tensor] = []
        likelihood = []
        for k, part in enumerate(v.chunk(self.slices, 1)):
            mean, scale = self.context(k, means, scales, y_hat)
            residual = part - mean
            symbols = round_ste(residual)
            if noise:
                residual = residual + torch.rand_like(residual) - 0.5
            else:
                residual = symbols
                if self.latent.quantized:  # the scale of the table that codes it
                    scale = scale_of_index(self.table_index(scale).float())
            likelihood.append(gaussian_likelihood(residual, LowerBound.apply(scale, SCALE_MIN)))
            y_hat.append(self.refine(k, symbols, mean, means, y_hat))
        return torch.cat(y_hat, 1), torch.cat(likelihood, 1)

    def table_index(self, scale: Tensor) -> Tensor:
        """Number of the entropy table of a scale that is a multiple of 2**-SCALE_EXPONENT."""
        scaled = (scale * 2.0**SCALE_EXPONENT).contiguous()
        return torch.bucketize(scaled, self.thresholds.to(scale), right=True)

    @staticmethod
    def _transform(layers: nn.Module, support: list[Tensor]) -> Tensor:
        assert isinstance(layers, Stack) and isinstance(layers[0], Conv2d)
        x = torch.cat(support, 1)
        return layers(held(x, layers[0], LATENT_EXPONENT), LATENT_EXPONENT)


class ChannelWise(ChannelConditional):
    """Minnen & Singh 2020.

    Args:
        n, m: channels inside the transforms (and of z), and of the latents.
        slices: how many slices the latents are cut into; divides m.
        max_support_slices: how many of them, the first ones, the others may look at.
        hidden: channels inside the slice transforms.
        activation: "gdn" (the paper) or "relu", in g_a and g_s.
    """

    REDUCTION = 64  # pictures are padded to a multiple of this

    def __init__(
        self,
        n: int = 192,
        m: int = 320,
        slices: int = 10,
        max_support_slices: int = 5,
        hidden: tuple[int, int] = (224, 128),
        activation: Literal["gdn", "relu"] = "gdn",
    ) -> None:
        super().__init__()
        if slices < 1 or m % slices:
            raise ValueError(f"slices must divide the {m} latent channels evenly, not {slices}")
        if max_support_slices < 0:
            raise ValueError(f"max_support_slices must be 0 or more, not {max_support_slices}")
        if len(hidden) != 2 or min(hidden) < 1:
            raise ValueError(f"hidden must be two positive integers, not {hidden}")
        self.arguments = {
            "n": n,
            "m": m,
            "slices": slices,
            "max_support_slices": max_support_slices,
            "hidden": list(hidden),
            "activation": activation,
        }
        self.slices, self.max_support_slices = slices, max_support_slices
        self.hyper_channels, self.latent_channels = n, m
        transforms = ScaleHyperprior(n, m, means=True, activation=activation)
        self.g_a, self.g_s = transforms.g_a, transforms.g_s  # theirs to the last parameter
        self.entropy_bottleneck = EntropyBottleneck(n)
        between = (n + m) // 2  # 256 for the paper's 192 and 320
        # (M, H/16, W/16) -> (N, H/64, W/64)
        self.h_a = Stack(
            Conv2d(m, m, 3, dtype="u8"),
            nn.Identity(),  # here and below: saturating to u8 has been the ReLU
            Conv2d(m, between, 5, stride=2, padding=2, dtype="u8"),
            nn.Identity(),
            CentredConv2d(
                between,
                n,
                5,
                stride=2,
                padding=2,
                dtype="s8",
                exponent=0,
                prior=self.entropy_bottleneck,
            ),
        )

        def hyper_synthesis() -> Stack:  # (N, H/64, W/64) -> (M, H/16, W/16), then a ReLU
            return Stack(
                ConvTranspose2d(n, n, 5, stride=2, dtype="u8"),
                nn.Identity(),
                ConvTranspose2d(n, between, 5, stride=2, dtype="u8"),
                nn.Identity(),
                Conv2d(between, m, 3, dtype="s16", exponent=LATENT_EXPONENT),
            )

        self.h_mean_s, self.h_scale_s = hyper_synthesis(), hyper_synthesis()
        width = m // slices

        def slice_transforms(own: int, exponent: int) -> nn.ModuleList:
            # (M + width * slices seen, H/16, W/16) -> (width, H/16, W/16)
            return nn.ModuleList(
                Stack(
                    Conv2d(m + width * (self.supports(k) + own), hidden[0], 5, dtype="u8"),
                    nn.Identity(),
                    Conv2d(hidden[0], hidden[1], 5, dtype="u8"),
                    nn.Identity(),
                    Conv2d(hidden[1], width, 3, dtype="s16", exponent=exponent),
                )
                for k in range(slices)
            )

        self.cc_mean_transforms = slice_transforms(0, LATENT_EXPONENT)
        self.cc_scale_transforms = slice_transforms(0, SCALE_EXPONENT)
        self.lrp_transforms = slice_transforms(1, LRP_EXPONENT)
        # rate gains, as logarithms, at ANCHORS qualities evenly spaced over 0 .. 1
        self.gain = nn.Parameter(torch.zeros(ANCHORS, m))
        self.inverse_gain = nn.Parameter(torch.zeros(ANCHORS, m))
        self.latent = Quantizable("s16", exponent=LATENT_EXPONENT)  # v and y.k
        self.hyper_latent = Quantizable("s16", exponent=HYPER_EXPONENT)  # z^
        self.dequantized = Quantizable("s16")  # y'
        self.register_buffer("thresholds", scale_thresholds(), persistent=False)
        self.register_buffer("lrp_levels", lrp_thresholds(), persistent=False)
        if activation == "gdn":  # which raises what it inverts: without this, begin at 1e4
            for layer in self.g_s[::2]:
                nn.init.normal_(layer.weight, std=0.5 * float(layer.weight.detach().std()))
        for k in range(slices):  # begin with no prediction and scales of one step
            for transforms_of in (self.cc_mean_transforms, self.lrp_transforms):
                nn.init.zeros_(transforms_of[k][-1].weight)
            nn.init.normal_(self.cc_scale_transforms[k][-1].weight, std=1e-2 / hidden[1])
            nn.init.ones_(self.cc_scale_transforms[k][-1].bias)

    def gains(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Give gain and inverse gain, each (B, M, 1, 1), for quality positions (B,) in 0..1."""
        return interpolate(self.gain, position), interpolate(self.inverse_gain, position)

    def analyse(self, x: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in -1..1 -> latents y (B, M, H/16, W/16)."""
        return self.g_a((x + 1) * 0.5, PIXEL_EXPONENT + 1)

    def hyper_analyse(self, v: Tensor) -> Tensor:
        """v -> z minus its medians, before rounding (after it, where quantised)."""
        return self.h_a(held(v, self.h_a[0], LATENT_EXPONENT), LATENT_EXPONENT)

    def hyper_synthesise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Rounded (z minus its medians) -> means and scales, features (B, M, H/16, W/16) each."""
        z = self.hyper_latent.finish(z + self.entropy_bottleneck.medians())
        features = (
            stack(held(z, stack[0], HYPER_EXPONENT), HYPER_EXPONENT).clamp_min(0)
            for stack in (self.h_mean_s, self.h_scale_s)
        )
        means, scales = features
        return means, scales

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
        means, scales = self.hyper_synthesise(z_hat)
        y_hat, likelihood = self.code(v, means, scales, noise)
        z = z + torch.rand_like(z) - 0.5 if noise else z_hat
        return Coded(
            self.synthesise(self.dequantized.finish(y_hat * inverse_gain)),
            likelihood,
            self.entropy_bottleneck.likelihood(z + self.entropy_bottleneck.medians()),
        )


@torch.no_grad()
def load_checkpoint(model: ChannelWise, path_or_state: Path | str | dict[str, Tensor]) -> None:
    """Load weights that have the names of STF and WACNN, or that lichen has saved, into `model`.

    Files of others have no rate gains (they become 1), no exponents (calibrate before
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


def from_checkpoint(path_or_state: Path | str | dict[str, Tensor]) -> ChannelWise:
    """Make the model whose weights these are and load them. Raises ModelError."""
    state = path_or_state if isinstance(path_or_state, dict) else read_state(Path(path_or_state))
    names = names_of(state)
    slices = sum(f"cc_mean_transforms.{k}.0.weight" in names for k in range(len(names)))
    try:
        n, m = len(names["g_a.0.weight"]), len(names["g_a.6.weight"])
        hidden = tuple(len(names[f"cc_mean_transforms.0.{layer}.weight"]) for layer in (0, 2))
        widest = names[f"cc_mean_transforms.{slices - 1}.0.weight"].shape[1]
        width = len(names["cc_mean_transforms.0.4.weight"])
        activation: Literal["gdn", "relu"] = "gdn" if "g_a.1.beta" in names else "relu"
        model = ChannelWise(n, m, slices, (widest - m) // width, hidden, activation)
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise ModelError(
            "expected the weights of a channel-wise model of two hidden layers a slice "
            f"(cc_mean_transforms.0.0, .2 and .4), found others ({error}); give a file of "
            "minnen2020"
        ) from error
    load_checkpoint(model, names)
    return model
