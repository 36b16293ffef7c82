"""Complexity of a codec: multiply-accumulates per pixel of picture, and parameters, part by part.

PyTorch counts the products (`torch.utils.flop_counter`) while the network codes a picture: one MAC
for each weight of a convolution that an output position uses (taps in the padding included), C * C
per position for a GDN, those of linear layers and of the matrix products of attention. Sums,
activations and normalisations are not counted; neither is the factorised prior, in whose place a
codec has tables. A layer that reads 16-bit integers counts once here, twice in
`program.check.macs_per_pixel`.

The hyper-synthesis and, in channel-wise models, the slice transforms and the latent residual
prediction (lrp) run in both directions and count in both. (The encoder could do without the
prediction of slices that no other looks at; it is counted in both all the same.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

SIDE = 128  # of the picture that is passed through: a multiple of every model's reduction

Part = Literal["g_a", "h_a", "h_s", "slices", "lrp", "g_s"]
# The modules of all models, by the part to which they belong
MODULES: dict[Part, tuple[str, ...]] = {
    "g_a": ("g_a", "analysis_linear", "analysis_branch", "patch_embed", "layers"),
    "h_a": ("h_a", "hyper_analysis"),
    "h_s": ("h_s", "h_mean_s", "h_scale_s", "hyper_synthesis", "mean", "index"),
    "slices": ("cc_mean_transforms", "cc_scale_transforms"),
    "lrp": ("lrp_transforms",),
    "g_s": ("g_s", "synthesis_linear", "synthesis_branch", "syn_layers", "end_conv"),
}
ENCODER: tuple[Part, ...] = ("g_a", "h_a", "h_s", "slices", "lrp")
DECODER: tuple[Part, ...] = ("h_s", "slices", "lrp", "g_s")


@dataclass(frozen=True)
class Cost:
    """macs_per_pixel: per pixel of picture. parameters: of all layers, the prior's left out."""

    macs_per_pixel: float
    parameters: int


@dataclass(frozen=True)
class Complexity:
    """What each part of a model takes, those that it has not left out."""

    parts: dict[Part, Cost]

    @property
    def encode(self) -> Cost:
        """What encoding a picture takes: g_a, h_a, h_s, the slices, lrp."""
        return self._sum(ENCODER)

    @property
    def decode(self) -> Cost:
        """What decoding a picture takes: h_s, the slices, lrp, g_s."""
        return self._sum(DECODER)

    def _sum(self, names: tuple[Part, ...]) -> Cost:
        parts = [self.parts[name] for name in names if name in self.parts]
        macs = sum(part.macs_per_pixel for part in parts)
        return Cost(macs, sum(part.parameters for part in parts))


@torch.no_grad()
def complexity(model: nn.Module) -> Complexity:
    """Count a model of `lichen.models`. Raises ValueError for layers outside its known parts."""
    device = next(model.parameters()).device
    picture = torch.zeros(1, 3, SIDE, SIDE, device=device)
    with FlopCounterMode(display=False) as counter:
        model(picture, torch.zeros(1, device=device), noise=False)
    counts = counter.get_flop_counts()

    def macs(module: nn.Module, name: str) -> int:
        if name not in counts:  # a list of modules is not called itself
            return sum(macs(child, f"{name}.{key}") for key, child in module.named_children())
        total: int = sum(counts[name].values())
        return total // 2  # a multiplication and an addition

    found = {
        name: macs(child, f"{type(model).__name__}.{name}")
        for name, child in model.named_children()
    }
    parts: dict[Part, Cost] = {}
    known = {name for names in MODULES.values() for name in names}
    others = [name for name, count in found.items() if count and name not in known]
    if others:
        raise ValueError(f"{type(model).__name__} multiplies in {others}: add them to MODULES")
    for part, names in MODULES.items():
        modules = {name: getattr(model, name) for name in names if hasattr(model, name)}
        if modules:
            count = sum(found[name] for name in modules)
            weights = {p for module in modules.values() for p in module.parameters()}
            parts[part] = Cost(count / SIDE**2, sum(p.numel() for p in weights))
    return Complexity(parts)
