"""Channels whose ReLU never opens: they cost products and bits of memory, and do nothing.

Large steps close them for good (docs/decisions/0006-closed-relus.md); `models.layers.KeepAlive`
is what keeps them open in training, and this is how to see whether it does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lichen.models.layers import KEPT_OPEN, QuantizableModel, Weighted


@torch.no_grad()
def closed_channels(model: QuantizableModel, x: Tensor) -> dict[str, tuple[int, int]]:
    """Count the closed channels of each layer with a ReLU, and all of its channels.

    x: pixels (B, 3, H, W) in -1..1; several pictures, for they are coded at qualities from 0 to
    100. A channel is closed where fewer than KEPT_OPEN of its values are above 0. Gives a pair for
    each name of a layer, in the order in which the layers run.
    """
    opened: dict[str, Tensor] = {}

    def watch(name: str):  # type: ignore[no-untyped-def]
        def look(layer: Weighted, inputs: object, y: Tensor) -> None:
            opened[name] = (y > 0).mean((0, 2, 3), dtype=torch.float32)

        return look

    handles = [
        layer.register_forward_hook(watch(name))
        for name, layer in model.named_modules()
        if isinstance(layer, Weighted) and layer.rectified
    ]
    try:
        model(x, torch.linspace(0, 1, len(x), device=x.device))
    finally:
        for handle in handles:
            handle.remove()
    return {name: (int((share < KEPT_OPEN).sum()), len(share)) for name, share in opened.items()}
