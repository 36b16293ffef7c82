"""The verdicts of the DPU's toolchain on a list of layers, and the layers changed as they say.

The rules themselves are `lichen.boards.vitis_ai.rules`, which the export obeys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lichen.boards.vitis_ai.rules import LEAKY_SLOPE, LayerVerdict, verdict
from lichen.study.layers import HOST, Layer


def verdicts(layers: Sequence[Layer]) -> list[LayerVerdict]:
    """Give the verdict of each layer; those of the host's own work are "cpu"."""
    readers: list[list[int]] = [[] for _ in layers]
    for number, layer in enumerate(layers):
        for source in layer.sources:
            if source >= 0:
                readers[source].append(number)
    found = []
    for number, layer in enumerate(layers):
        if layer.part == HOST:
            found.append(LayerVerdict("cpu", "rounding, gains, entropy coding", "", "", ""))
        else:
            host = all(layers[r].part == HOST for r in readers[number])
            found.append(verdict(layer, host))
    return found


def rewritten(layers: Sequence[Layer]) -> list[Layer]:
    """Give the layers as their verdicts say to rewrite them; sources keep their numbers."""
    return [
        layer if layer.part == HOST else _rewrite(layer) if v.place == "rewrite" else layer
        for layer, v in zip(layers, verdicts(layers), strict=True)
    ]


def _rewrite(layer: Layer) -> Layer:
    match layer.kind:
        case "deconv" if layer.output_padding:
            k = layer.kernel[0] + 1
            taps = (k * k) / (layer.kernel[0] * layer.kernel[1])
            return replace(
                layer, kernel=(k, k), output_padding=0, macs=layer.macs * taps,
                parameters=layer.parameters + round(layer.weights * (taps - 1)),
            )  # fmt: skip
        case "gdn":
            return replace(layer, kind="relu", macs=0.0, parameters=0)
        case "gelu" | "silu":
            return replace(layer, kind="relu")
        case "leaky_relu":
            return replace(layer, slope=LEAKY_SLOPE)
        case "sigmoid":
            return replace(layer, kind="hardsigmoid")
        case "sub":
            return replace(layer, kind="add")
        case "layer_norm":
            return replace(layer, kind="batch_norm", parameters=0)
        case "mean":
            return replace(layer, kind="pool")
        case "linear":
            return replace(layer, kind="conv")
        case "grouped":
            return replace(layer, kind="conv", groups=1, macs=layer.macs * layer.groups)
        case "tanh" | "abs" | "pixel_unshuffle":
            return replace(layer, part=HOST)
        case _:
            # Halves and sums: as many products; the array sees about the same layer.
            return layer
