"""Lower the scale hyperprior."""

from __future__ import annotations

import numpy as np

from lichen.lower.builder import Builder, rename
from lichen.lower.parts import (
    add_medians,
    analysis_program,
    gain_rows,
    quantize_program,
    tables_of,
)
from lichen.model import Model
from lichen.models import balle2018, student
from lichen.program import Vector, ops


def lower_balle2018(model: balle2018.ScaleHyperprior, name: str, metadata: dict[str, str]) -> Model:
    """Lower a calibrated ScaleHyperprior: means or not, GDN or ReLU."""
    m, n = model.latent_channels, model.hyper_channels
    e_latent = student.LATENT_EXPONENT
    g_a = analysis_program(model.g_a)

    h = Builder()
    h.input("y", m, "s16", g_a.outputs[0].exponent)
    h.vectors.append(Vector("gain", m))
    gain, gain_exponent = gain_rows(model, 0)
    v = h.scale("v", "y", "gain", h.exponents["y"] + gain_exponent - e_latent, e_latent)
    source = v
    if not model.means:  # |v| = 2 max(v, 0) - v
        h.add(ops.Clamp("above", v, 0, 32767), e_latent)
        source = h.add(ops.Add("magnitude", "above", v, 1, 0, 0, True, "s16"), e_latent)
    z = h.stack("h_a", h.hold(source, model.h_a[0]), model.h_a)
    h_a = rename(h.build("h_a", [v, z]), z, "z")

    s = Builder()
    s.input("z", n, "s8", 0)
    source = s.hold(add_medians(s, "z", model.entropy_bottleneck), model.h_s[0])
    scale = s.stack("h_s", source, model.h_s)
    e_mean = s.exponents[scale]
    if model.means:
        s.add(ops.Slice("mean", scale, m, 2 * m), e_mean)
        scale = s.add(ops.Slice("scale", scale, 0, m), e_mean)
    else:
        s.add(ops.Scale("mean", scale, np.zeros(m, np.int32), 0, "s16"), e_mean)
    thresholds = balle2018.scale_thresholds().numpy().astype(np.int32)
    s.add(ops.TableIndex("index", scale, thresholds), 0)
    h_s = s.build("h_s", ["mean", "index"])

    g = Builder()
    g.input("symbols", m, "s16", 0)
    g.input("mean", m, "s16", e_mean)
    v_hat = ops.Add("v", "symbols", "mean", e_mean, 0, e_mean - e_latent, False, "s16")
    g.add(v_hat, e_latent)
    g.vectors.append(Vector("inverse_gain", m))
    inverse, inverse_exponent = gain_rows(model, 1)
    e_y = model.dequantized.output_exponent
    y_hat = g.scale("y", "v", "inverse_gain", e_latent + inverse_exponent - e_y, e_y)
    x = g.stack("g_s", g.hold(y_hat, model.g_s[0]), model.g_s)
    g_s = rename(g.build("g_s", [x]), x, "x")

    tables, first = tables_of(model.entropy_bottleneck, model.entropy_bottleneck.medians())
    return Model(
        name=name,
        order="hyperprior",
        reduction=model.REDUCTION,
        programs={
            "g_a": g_a,
            "h_a": h_a,
            "quantize": quantize_program(m, e_latent, e_mean),
            "h_s": h_s,
            "g_s": g_s,
        },
        tables=tables,
        z_tables=first + np.arange(n, dtype=np.uint16),
        gain=gain,
        inverse_gain=inverse,
        metadata=metadata,
    )
