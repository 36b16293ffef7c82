"""Lower the channel-wise autoregressive model: g_a, h_a, h_s, three Programs a slice, g_s.

h_s         z -> means, scales
context.k   means, scales, y.0 ..          -> mean, index
quantize.k  v, mean                        -> symbols                     (encoder only)
refine.k    symbols, mean, means, y.0 ..   -> y.k
g_s         y.0 y.1 .. (and inverse_gain)  -> x
"""

from __future__ import annotations

import numpy as np

from lichen.lower.builder import Builder, depthwise, rename
from lichen.lower.parts import add_medians, analysis_program, gain_rows, tables_of
from lichen.model import Model
from lichen.models.layers import Conv2d, Stack
from lichen.models.minnen2020 import LATENT_EXPONENT, LRP_LEVELS, ChannelWise
from lichen.program import Program, Vector, ops


def lower_minnen2020(model: ChannelWise, name: str, metadata: dict[str, str]) -> Model:
    """Lower a calibrated ChannelWise."""
    gain, gain_exponent = gain_rows(model, 0)
    inverse, inverse_exponent = gain_rows(model, 1)
    g_a = analysis_program(model.g_a)
    programs = {
        "g_a": g_a,
        "h_a": _hyper_analysis(model, g_a.outputs[0].exponent + gain_exponent),
        "h_s": _hyper_synthesis(model),
    }
    for k in range(model.slices):
        programs[f"context.{k}"] = _context(model, k)
        programs[f"quantize.{k}"] = _quantize(model, k)
        programs[f"refine.{k}"] = _refine(model, k)
    programs["g_s"] = _synthesis(model, inverse_exponent)
    tables, first = tables_of(model.entropy_bottleneck, model.entropy_bottleneck.medians())
    return Model(
        name=name,
        order="channel-wise",
        reduction=model.REDUCTION,
        programs=programs,
        tables=tables,
        z_tables=first + np.arange(model.hyper_channels, dtype=np.uint16),
        gain=gain,
        inverse_gain=inverse,
        metadata=metadata,
    )


def _hyper_analysis(model: ChannelWise, gained_exponent: int) -> Program:
    """gained_exponent: of y times an integer gain."""
    b = Builder()
    b.input("y", model.latent_channels, "s16", model.g_a.output_exponent)
    b.vectors.append(Vector("gain", model.latent_channels))
    v = b.scale("v", "y", "gain", gained_exponent - LATENT_EXPONENT, LATENT_EXPONENT)
    z = b.stack("h_a", b.hold(v, model.h_a[0]), model.h_a)
    return rename(b.build("h_a", [v, z]), z, "z")


def _hyper_synthesis(model: ChannelWise) -> Program:
    b = Builder()
    b.input("z", model.hyper_channels, "s8", 0)
    z_hat = add_medians(b, "z", model.entropy_bottleneck)
    for output, layers in (("means", model.h_mean_s), ("scales", model.h_scale_s)):
        features = b.stack(output, b.hold(z_hat, layers[0], f"{output}.input"), layers)
        b.add(ops.Clamp(output, features, 0, 32767), b.exponents[features])  # ReLU
    return b.build("h_s", ["means", "scales"])


def _context(model: ChannelWise, k: int) -> Program:
    b = Builder()
    for hyper, layers in (("means", model.h_mean_s), ("scales", model.h_scale_s)):
        b.input(hyper, len(layers[-1].bias), "s16", LATENT_EXPONENT)
    seen = _seen(b, model, k)
    mean = _transform(b, "mean", ["means", *seen], model.cc_mean_transforms[k])
    scale = _transform(b, "scale", ["scales", *seen], model.cc_scale_transforms[k])
    b.add(ops.TableIndex("index", scale, model.thresholds.cpu().numpy().astype(np.int32)), 0)
    return rename(b.build(f"context.{k}", [mean, "index"]), mean, "mean")


def _quantize(model: ChannelWise, k: int) -> Program:
    b, width = Builder(), model.latent_channels // model.slices
    b.input("v", model.latent_channels, "s16", LATENT_EXPONENT)
    b.input("mean", width, "s16", LATENT_EXPONENT)
    part = b.add(ops.Slice("part", "v", width * k, width * (k + 1)), LATENT_EXPONENT)
    b.add(ops.Add("symbols", part, "mean", 0, 0, LATENT_EXPONENT, True, "s16"), 0)
    return b.build(f"quantize.{k}", ["symbols"])


def _refine(model: ChannelWise, k: int) -> Program:
    b, width, e = Builder(), model.latent_channels // model.slices, LATENT_EXPONENT
    b.input("symbols", width, "s16", 0)
    b.input("mean", width, "s16", e)
    b.input("means", len(model.h_mean_s[-1].bias), "s16", e)
    seen = _seen(b, model, k)
    rough = b.add(ops.Add("rough", "symbols", "mean", e, 0, 0, False, "s16"), e)
    x = _transform(b, "lrp", ["means", *seen, rough], model.lrp_transforms[k])
    b.add(ops.TableIndex("level", x, model.lrp_levels.cpu().numpy().astype(np.int32)), e)
    centre = np.full(width, -(LRP_LEVELS // 2), np.int64)
    residual = b.add(depthwise("residual", "level", width, 1, centre, "s8"), e)
    b.add(ops.Add(f"y.{k}", rough, residual, 0, 0, 0, False, "s16"), e)
    return b.build(f"refine.{k}", [f"y.{k}"])


def _synthesis(model: ChannelWise, inverse_exponent: int) -> Program:
    b, width = Builder(), model.latent_channels // model.slices
    parts = [b.input(f"y.{k}", width, "s16", LATENT_EXPONENT) for k in range(model.slices)]
    b.vectors.append(Vector("inverse_gain", model.latent_channels))
    y_hat = b.add(ops.Concat("y.hat", tuple(parts)), LATENT_EXPONENT)
    e = model.dequantized.output_exponent
    y = b.scale("y", y_hat, "inverse_gain", LATENT_EXPONENT + inverse_exponent - e, e)
    x = b.stack("g_s", b.hold(y, model.g_s[0]), model.g_s)
    return rename(b.build("g_s", [x]), x, "x")


def _seen(b: Builder, model: ChannelWise, k: int) -> list[str]:
    """Declare the slices that slice k may look at as inputs."""
    width = model.latent_channels // model.slices
    return [b.input(f"y.{i}", width, "s16", LATENT_EXPONENT) for i in range(model.supports(k))]


def _transform(b: Builder, prefix: str, support: list[str], layers: Stack) -> str:
    source = support[0]
    if len(support) > 1:
        source = b.add(ops.Concat(f"{prefix}.support", tuple(support)), LATENT_EXPONENT)
    assert isinstance(layers[0], Conv2d)
    return b.stack(prefix, b.hold(source, layers[0]), layers)
