"""Changes of a list of layers: what a model would be with another operation in a place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from lichen.study.layers import HOST, Layer

ATTENTION = {"matmul", "softmax", "permute", "roll", "slice", "scale", "offset", "pad"}
TRANSFORMS = ("g_a", "g_s")


def drop(layers: Sequence[Layer], unwanted: Callable[[Layer], bool]) -> list[Layer]:
    """Take layers out; who reads one reads what it read first."""
    place: dict[int, int] = {-1: -1}
    found: list[Layer] = []
    for number, layer in enumerate(layers):
        if unwanted(layer):
            place[number] = place[layer.sources[0]] if layer.sources else -1
            continue
        place[number] = len(found)
        found.append(replace(layer, sources=tuple(place[s] for s in layer.sources)))
    return found


def without_gdn(layers: Sequence[Layer]) -> list[Layer]:
    """ReLU for every GDN."""
    return [
        replace(x, kind="relu", macs=0.0, parameters=0) if x.kind == "gdn" else x for x in layers
    ]


def without_attention(layers: Sequence[Layer]) -> list[Layer]:
    """For window attention: a depthwise 3x3, then its own output layer as a 1x1 convolution.

    What gates it stays: sigmoids become hard.
    """
    windows = {x.name for x in layers if x.kind == "softmax" and x.name}

    def inside(layer: Layer) -> bool:
        return any(layer.name.startswith(w) for w in windows)

    def around(layer: Layer) -> bool:
        return any(w.startswith(f"{layer.name}.") for w in windows)

    gone = drop(
        layers, lambda x: (inside(x) or around(x)) and x.kind in ATTENTION and x.part != HOST
    )
    found = []
    for layer in gone:
        if layer.kind == "linear" and inside(layer) and layer.outputs == 3 * layer.inputs:
            c, positions = layer.inputs, layer.rows_in**2
            layer = replace(
                layer, kind="depthwise", outputs=c, kernel=(3, 3), groups=c, macs=9 * c * positions,
                parameters=10 * c, output_values=layer.input_values[0],
            )  # fmt: skip
        elif layer.kind == "linear":
            layer = replace(layer, kind="conv")
        elif layer.kind == "sigmoid":
            layer = replace(layer, kind="hardsigmoid")
        found.append(layer)
    return found


def smaller_deconvs(layers: Sequence[Layer]) -> list[Layer]:
    """Kernels of 2 * stride for transposed convolutions with output_padding."""
    found = []
    for layer in layers:
        if layer.kind == "deconv" and layer.output_padding:
            k = 2 * layer.stride
            share = k * k / (layer.kernel[0] * layer.kernel[1])
            layer = replace(
                layer, kernel=(k, k), output_padding=0, macs=layer.macs * share,
                parameters=layer.parameters - round(layer.weights * (1 - share)),
            )  # fmt: skip
        found.append(layer)
    return found


def narrower_finest(layers: Sequence[Layer]) -> list[Layer]:
    """Half the channels on the finest grid inside g_a and g_s."""
    grids = [
        x.rows_out for x in layers if x.part in TRANSFORMS and x.kind == "conv" and x.rows_out < 1
    ]
    finest = max(grids, default=0.0)
    found = []
    for layer in layers:
        if layer.part not in TRANSFORMS or layer.kind in ("linear", "matmul", "softmax"):
            found.append(layer)
            continue
        into = 0.5 if layer.rows_in == finest and layer.inputs > 3 else 1.0
        out = 0.5 if layer.rows_out == finest and layer.outputs > 3 else 1.0
        biases = layer.parameters - layer.weights
        found.append(
            replace(
                layer, inputs=round(layer.inputs * into), outputs=round(layer.outputs * out),
                macs=layer.macs * into * out,
                parameters=round(layer.weights * into * out + biases * out),
                input_values=tuple(v * into for v in layer.input_values),
                output_values=layer.output_values * out,
            )
        )  # fmt: skip
    return found


def checkerboard(layers: Sequence[Layer], latents: int) -> list[Layer]:
    """Two passes over all channels for the slices: He 2021, "Checkerboard context model".

    A 5x5 convolution of the anchors, then 1x1 ones as in Minnen 2018 (10/3, 8/3, 2 times the
    latents), which run densely in both passes.
    """
    kept = drop(layers, lambda x: x.part in ("slices", "lrp"))
    grid = next(x.rows_out for x in reversed(kept) if x.part == "g_a" and x.kind == "conv")
    hyper = max(n for n, x in enumerate(kept) if x.part == "h_s")
    area = grid * grid

    def conv(name: str, inputs: int, outputs: int, k: int, sources: tuple[int, ...]) -> Layer:
        values = tuple(area * inputs / len(sources) for _ in sources)
        weights = k * k * inputs * outputs
        return Layer(
            name, "slices", "conv", inputs, outputs, grid, grid, weights * area,
            weights + outputs, values, outputs * area, sources, (k, k),
        )  # fmt: skip

    m = latents
    for number in (1, 2):
        # The anchors' pass sees zeros in the place of a context; the other one sees the anchors.
        kept.append(conv(f"pass{number}.context", m, 2 * m, 5, (-1,)))
        sources: tuple[int, ...] = (hyper, len(kept) - 1)
        for step, (a, b) in enumerate(((4 * m, 10 * m // 3), (10 * m // 3, 8 * m // 3),
                                       (8 * m // 3, 2 * m))):  # fmt: skip
            kept.append(conv(f"pass{number}.parameters.{step}", a, b, 1, sources))
            kept.append(
                Layer(
                    f"pass{number}.relu.{step}", "slices", "relu", b, b, grid, grid, 0.0, 0,
                    (b * area,), b * area, (len(kept) - 1,),
                )
            )  # fmt: skip
            sources = (len(kept) - 1,)
    return kept
