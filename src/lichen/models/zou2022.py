"""WACNN and STF: window attention in a convolutional codec, and a symmetric transformer.

    WACNN  g_a: conv GDN | conv GDN window-attention | conv GDN | conv window-attention    3 -> M
    STF    g_a: 2x2 patches | (Swin blocks, merging) x 3 | Swin blocks                     3 -> M
           sizes          1/2 | 1/4                  1/8 | 1/16               g_s mirrors g_a

    entropy part of both: minnen2020 (its drawing), with GELU, other widths and 3x3 kernels

Zou, Song & Zhang 2022, "The devil is in the details: window-based attention for image
compression", sections 3.2 (window attention module), 3.3 (STF) and figures 3 to 5. Layers, names
and widths are those of the authors' code (github.com/Googolxx/STF, Apache-2.0), so that the
released state dicts (`cnn_*_best.pth.tar`, `stf_*_best.pth.tar`) load by name.

GELU, softmax and LayerNorm have no integer form in this project's contract: these models run in
float (docs/decisions/0004-float-models.md). Pixels of the networks are the authors', 0..1. Rate
gains are ours, as in `student`: without them every gain is 1, and v is y.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lichen.errors import ModelError
from lichen.models.checkpoint import check_fit, names_of, own_values, read_state
from lichen.models.gdn import GDN
from lichen.models.layers import Quantizable, round_ste
from lichen.models.minnen2020 import LATENT_EXPONENT, ChannelConditional
from lichen.models.priors import SCALE_LEVELS, EntropyBottleneck, scale_table
from lichen.models.student import ANCHORS, Coded, full_precision, interpolate
from lichen.models.window_attention import (
    PatchEmbed,
    PatchMerging,
    PatchSplit,
    Stage,
    WindowAttentionModule,
)

HIDDEN = (224, 176, 128, 64)  # channels inside the slice transforms


def _steps(first: int, last: int) -> list[int]:
    """Five channel counts from `first` to `last`, evenly spaced."""
    return [first + (last - first) * i // 4 for i in range(5)]


def _conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1)


def _twice(inputs: int, outputs: int) -> nn.Sequential:
    """Sub-pixel convolution: doubles the size."""
    return nn.Sequential(_conv3x3(inputs, 4 * outputs), nn.PixelShuffle(2))


def _with_gelu(*layers: nn.Module) -> nn.Sequential:
    """Put a GELU between each two layers."""
    parts = [part for layer in layers for part in (layer, nn.GELU())]
    return nn.Sequential(*parts[:-1])


class FloatCodec(ChannelConditional):
    """What WACNN and STF share: the entropy part, rate gains, the pixels' range."""

    REDUCTION = 64  # pictures are padded to a multiple of this; forward takes nothing else

    def _make_entropy_part(
        self,
        hyper_analysis: Sequence[int],
        hyper_synthesis: Sequence[int],
        slices: int,
        max_support_slices: int,
        hidden: Sequence[int],
    ) -> None:
        """Make h_a, h_s, slice transforms, prior and gains.

        hyper_analysis: channels M .. Z before, between and after the five layers of h_a;
        hyper_synthesis: Z .. M, those of the two branches of h_s.
        """
        m, z = hyper_analysis[0], hyper_analysis[-1]
        if slices < 1 or m % slices:
            raise ValueError(f"slices must divide the {m} latent channels evenly, not {slices}")
        if max_support_slices < 0:
            raise ValueError(f"max_support_slices must be 0 or more, not {max_support_slices}")
        if len(hidden) != 4 or min(hidden) < 1:
            raise ValueError(f"hidden must be four positive integers, not {tuple(hidden)}")
        self.slices, self.max_support_slices = slices, max_support_slices
        self.latent_channels, self.hyper_channels = m, z
        a, s = hyper_analysis, hyper_synthesis
        # (M, H/16, W/16) -> (Z, H/64, W/64)
        self.h_a = _with_gelu(
            _conv3x3(a[0], a[1]),
            _conv3x3(a[1], a[2]),
            _conv3x3(a[2], a[3], 2),
            _conv3x3(a[3], a[4]),
            _conv3x3(a[4], a[5], 2),
        )

        def branch() -> nn.Sequential:  # (Z, H/64, W/64) -> (M, H/16, W/16)
            return _with_gelu(
                _conv3x3(s[0], s[1]),
                _twice(s[1], s[2]),
                _conv3x3(s[2], s[3]),
                _twice(s[3], s[4]),
                _conv3x3(s[4], s[5]),
            )

        self.h_mean_s, self.h_scale_s = branch(), branch()
        width = m // slices

        def transforms(own: int) -> nn.ModuleList:
            # (M + width * slices seen, H/16, W/16) -> (width, H/16, W/16)
            seen = (m + width * (self.supports(k) + own) for k in range(slices))
            counts = ((first, *hidden, width) for first in seen)
            return nn.ModuleList(
                _with_gelu(*(_conv3x3(i, o) for i, o in pairwise(c))) for c in counts
            )

        self.cc_mean_transforms, self.cc_scale_transforms = transforms(0), transforms(0)
        self.lrp_transforms = transforms(1)
        for layers in self.cc_scale_transforms:
            nn.init.ones_(layers[-1].bias)  # begin with scales near one step
        self.entropy_bottleneck = EntropyBottleneck(z)
        # rate gains, as logarithms, at ANCHORS qualities evenly spaced over 0 .. 1
        self.gain = nn.Parameter(torch.zeros(ANCHORS, m))
        self.inverse_gain = nn.Parameter(torch.zeros(ANCHORS, m))
        self.latent = Quantizable("s16", exponent=LATENT_EXPONENT)  # never quantised

    @staticmethod
    def _transform(layers: nn.Module, support: list[Tensor]) -> Tensor:
        return layers(torch.cat(support, 1))

    def set_quantized(self, quantized: bool) -> None:
        """Refuse integers."""
        if quantized:
            raise ModelError(
                f"{type(self).__name__} runs in float: GELU, softmax and LayerNorm have no integer "
                "form here; train it without quantisation"
            )

    def quantized_layers(self) -> list[Quantizable]:
        """Give none: there is nothing to calibrate."""
        return []

    def gains(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Give gain and inverse gain, each (B, M, 1, 1), for quality positions (B,) in 0..1."""
        return interpolate(self.gain, position), interpolate(self.inverse_gain, position)

    def analyse(self, x: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in -1..1 -> latents y (B, M, H/16, W/16)."""
        return self._analyse((x * 128 + 128) / 255)

    def synthesise(self, y: Tensor) -> Tensor:
        """Dequantised latents y' -> pixels in -1..1 (not clamped)."""
        return (self._synthesise(y) * 255 - 128) / 128

    def _analyse(self, pixels: Tensor) -> Tensor:
        raise NotImplementedError

    def _synthesise(self, y: Tensor) -> Tensor:
        raise NotImplementedError

    def hyper_analyse(self, v: Tensor) -> Tensor:
        """v -> z minus its medians, before rounding."""
        return self.h_a(v) - self.entropy_bottleneck.medians()

    def hyper_synthesise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Rounded (z minus its medians) -> means and scales, features (B, M, H/16, W/16) each."""
        z = z + self.entropy_bottleneck.medians()
        return self.h_mean_s(z), self.h_scale_s(z)

    def table_index(self, scale: Tensor) -> Tensor:
        """Number of the entropy table whose scale is nearest in ratio, as in `balle2018`."""
        scales = torch.tensor(scale_table(), dtype=torch.float64)
        thresholds = torch.sqrt(scales[:-1] * scales[1:]).to(scale)
        index = torch.bucketize(scale.contiguous(), thresholds, right=True)
        return index.clamp_max(SCALE_LEVELS - 1)

    def forward(self, x: Tensor, position: Tensor, noise: bool = True) -> Coded:
        """Code pixels (B, 3, H, W) in -1..1 at quality positions (B,) in 0..1.

        With `noise`, rates are those of latents with uniform noise (Balle 2018, eq. 3) while the
        picture is made from rounded ones; without, both are the rounded ones. H and W: multiples
        of 64.
        """
        gain, inverse_gain = self.gains(position)
        y = self.analyse(x)
        with full_precision(x):
            v = y.float() * gain
        z = self.hyper_analyse(v).float()
        z_hat = round_ste(z)
        means, scales = self.hyper_synthesise(z_hat)
        y_hat, likelihood = self.code(v, means, scales, noise)
        z = z + torch.rand_like(z) - 0.5 if noise else z_hat
        return Coded(
            self.synthesise(y_hat * inverse_gain),
            likelihood,
            self.entropy_bottleneck.likelihood(z + self.entropy_bottleneck.medians()),
        )


class WACNN(FloatCodec):
    """The CNN-based codec with window attention modules.

    Args:
        n, m: channels inside the transforms (and of z), and of the latents.
        slices, max_support_slices: how many slices the latents are cut into, and how many of
            them, the first ones, the others may look at.
        hidden: channels inside the slice transforms.
        heads: of every attention; divides n and m.
        windows: sides of the attention windows at 1/4 and at 1/16 of the picture.
    """

    def __init__(
        self,
        n: int = 192,
        m: int = 320,
        slices: int = 10,
        max_support_slices: int = 5,
        hidden: tuple[int, int, int, int] = HIDDEN,
        heads: int = 8,
        windows: tuple[int, int] = (8, 4),
    ) -> None:
        super().__init__()
        if len(windows) != 2:
            raise ValueError(f"windows must be of two sizes, not {windows}")
        self.arguments = {
            "n": n,
            "m": m,
            "slices": slices,
            "max_support_slices": max_support_slices,
            "hidden": list(hidden),
            "heads": heads,
            "windows": list(windows),
        }

        def down(inputs: int, outputs: int) -> nn.Conv2d:
            return nn.Conv2d(inputs, outputs, 5, stride=2, padding=2)

        def up(inputs: int, outputs: int) -> nn.ConvTranspose2d:
            return nn.ConvTranspose2d(inputs, outputs, 5, stride=2, padding=2, output_padding=1)

        def norm(inverse: bool) -> GDN:
            return GDN(n, inverse=inverse, dtype="s16")

        self.g_a = nn.Sequential(
            down(3, n),
            norm(False),
            down(n, n),
            norm(False),
            WindowAttentionModule(n, windows[0], heads),
            down(n, n),
            norm(False),
            down(n, m),
            WindowAttentionModule(m, windows[1], heads),
        )
        self.g_s = nn.Sequential(
            WindowAttentionModule(m, windows[1], heads),
            up(m, n),
            norm(True),
            up(n, n),
            norm(True),
            WindowAttentionModule(n, windows[0], heads),
            up(n, n),
            norm(True),
            up(n, 3),
        )
        synthesis = [n, *_steps(n, m)]
        self._make_entropy_part([m, *_steps(m, n)], synthesis, slices, max_support_slices, hidden)

    def _analyse(self, pixels: Tensor) -> Tensor:
        return self.g_a(pixels)

    def _synthesise(self, y: Tensor) -> Tensor:
        return self.g_s(y)


class STF(FloatCodec):
    """The symmetric transformer.

    Args:
        embed_dim: channels C at 1/2 of the picture; 8 C latents, 4 C channels of z.
        depths: Swin blocks at 1/2, 1/4, 1/8, 1/16, in g_a; the reverse in g_s.
        heads: of the attention at each of these sizes; divides C, 2 C, 4 C, 8 C.
        window: side of the attention windows.
        slices, hidden: as in WACNN; the first half of the slices is what others look at.
        drop_path: the largest probability of leaving a branch out in training, see SwinBlock.
    """

    PATCH = 2

    def __init__(
        self,
        embed_dim: int = 48,
        depths: tuple[int, int, int, int] = (2, 2, 6, 2),
        heads: tuple[int, int, int, int] = (3, 6, 12, 24),
        window: int = 4,
        slices: int = 12,
        hidden: tuple[int, int, int, int] = HIDDEN,
        drop_path: float = 0.2,
    ) -> None:
        super().__init__()
        if len(depths) != 4 or len(heads) != 4:
            raise ValueError(f"depths and heads must be of four sizes, not {depths} and {heads}")
        self.arguments = {
            "embed_dim": embed_dim,
            "depths": list(depths),
            "heads": list(heads),
            "window": window,
            "slices": slices,
            "hidden": list(hidden),
            "drop_path": drop_path,
        }
        c, patch = embed_dim, self.PATCH
        self.patch_embed = PatchEmbed(c, patch)
        dims = [c * 2**i for i in range(4)]
        rising = [drop_path * i / max(1, sum(depths) - 1) for i in range(sum(depths))]

        def stages(
            order: Sequence[int], resample: type[PatchMerging] | type[PatchSplit]
        ) -> nn.ModuleList:
            done, made = 0, []
            for i in order:
                drops = rising[done : done + depths[i]]
                done += depths[i]
                last = i == order[-1]
                made.append(Stage(dims[i], window, heads[i], drops, None if last else resample))
            return nn.ModuleList(made)

        self.layers = stages((0, 1, 2, 3), PatchMerging)
        self.syn_layers = stages((3, 2, 1, 0), PatchSplit)
        self.end_conv = nn.Sequential(
            nn.Conv2d(c, c * patch**2, 5, padding=2),
            nn.PixelShuffle(patch),
            nn.Conv2d(c, 3, 3, padding=1),
        )
        m, z = 8 * c, 4 * c
        self._make_entropy_part([m, *_steps(m, z)], [*_steps(z, m), m], slices, slices // 2, hidden)

    def _analyse(self, pixels: Tensor) -> Tensor:
        h = self.patch_embed(pixels)
        for stage in self.layers:
            h = stage(h)
        return h.permute(0, 3, 1, 2).contiguous()

    def _synthesise(self, y: Tensor) -> Tensor:
        h = y.permute(0, 2, 3, 1)
        for stage in self.syn_layers:
            h = stage(h)
        return self.end_conv(h.permute(0, 3, 1, 2).contiguous())


@torch.no_grad()
def load_checkpoint(model: FloatCodec, path_or_state: Path | str | dict[str, Tensor]) -> None:
    """Load the authors' weights, or ones that lichen has saved, into `model`.

    The authors' have no rate gains: they become 1. Raises ModelError naming what is missing,
    unexpected or misshapen.
    """
    where = "the state dict" if isinstance(path_or_state, dict) else str(path_or_state)
    state = path_or_state if isinstance(path_or_state, dict) else read_state(Path(path_or_state))
    state = names_of(state)
    own = own_values(model)
    check_fit(model, state, where, own)
    model.load_state_dict(own | state)


def from_checkpoint(path_or_state: Path | str | dict[str, Tensor]) -> FloatCodec:
    """Make the model whose weights these are, WACNN or STF, and load them. Raises ModelError."""
    state = path_or_state if isinstance(path_or_state, dict) else read_state(Path(path_or_state))
    names = names_of(state)
    try:
        arguments = _entropy_arguments(names)
        model: FloatCodec
        if "patch_embed.proj.weight" in names:
            model = STF(**(arguments | _stf_arguments(names)))
        else:
            model = WACNN(**(arguments | _wacnn_arguments(names)))
    except (KeyError, ValueError) as error:
        raise ModelError(
            f"expected the weights of WACNN or STF, found no model of theirs in it ({error}); give "
            "a file of the STF release (cnn_*_best.pth.tar, stf_*_best.pth.tar)"
        ) from error
    load_checkpoint(model, names)
    return model


def _count(names: dict[str, Tensor], pattern: str) -> int:
    """Count how far the number in `pattern` runs from 0."""
    number = 0
    while pattern.format(number) in names:
        number += 1
    return number


def _attention(names: dict[str, Tensor], prefix: str) -> tuple[int, int]:
    """Side of the window and heads of an attention, from its table: ((2 w - 1)**2, heads)."""
    rows, heads = names[f"{prefix}.attn.relative_position_bias_table"].shape
    return (round(rows**0.5) + 1) // 2, heads


def _entropy_arguments(names: dict[str, Tensor]) -> dict[str, Any]:
    slices = _count(names, "cc_mean_transforms.{}.0.weight")
    layers = [names[f"cc_mean_transforms.0.{2 * i}.weight"] for i in range(4)]
    return {"slices": slices, "hidden": tuple(len(layer) for layer in layers)}


def _wacnn_arguments(names: dict[str, Tensor]) -> dict[str, Any]:
    n, m = len(names["g_a.0.weight"]), len(names["g_a.7.weight"])
    (coarse, heads), (fine, _) = (_attention(names, f"g_a.{i}.conv_b.0") for i in (4, 8))
    slices = _count(names, "cc_mean_transforms.{}.0.weight")
    last = names[f"cc_mean_transforms.{slices - 1}.0.weight"].shape[1]
    support = (last - m) // (m // slices)
    windows = (coarse, fine)
    return {"n": n, "m": m, "max_support_slices": support, "heads": heads, "windows": windows}


def _stf_arguments(names: dict[str, Tensor]) -> dict[str, Any]:
    blocks = [_count(names, f"layers.{i}.blocks.{{}}.norm1.weight") for i in range(4)]
    attentions = [_attention(names, f"layers.{i}.blocks.0") for i in range(4)]
    return {
        "embed_dim": len(names["patch_embed.proj.weight"]),
        "depths": tuple(blocks),
        "heads": tuple(heads for _, heads in attentions),
        "window": attentions[0][0],
    }
