"""Lower the student."""

from __future__ import annotations

import numpy as np
import torch

from lichen.lower.builder import Builder, rename
from lichen.lower.parts import gain_rows, tables_of
from lichen.model import GAIN_ROWS, Model
from lichen.models import student
from lichen.models.priors import SCALE_LEVELS
from lichen.program import Program, Vector, ops


def lower_student(model: student.Student, name: str, metadata: dict[str, str]) -> Model:
    """Lower a calibrated Student (its exponents set by `calibrate_end`)."""
    m, z_channels = model.latent_channels, model.hyper_channels
    e_latent = student.LATENT_EXPONENT

    a = Builder()
    x = a.input("x", 3, "s8", student.PIXEL_EXPONENT)
    linear = a.stack("linear", x, model.analysis_linear)
    branch = a.stack("branch", x, model.analysis_branch)
    y = a.sum("y", linear, branch, model.analysis_sum)
    g_a = a.build("g_a", [y])

    h = Builder()
    h.input("y", m, "s16", a.exponents[y])
    h.vectors.append(Vector("gain", m))
    gain, gain_exponent = gain_rows(model, 0)
    v = h.scale("v", "y", "gain", h.exponents["y"] + gain_exponent - e_latent, e_latent)
    z = h.stack("h_a", h.requantize("input", v, model.hyper_input), model.hyper_analysis)
    h_a = rename(h.build("h_a", [v, z]), z, "z")

    s = Builder()
    features = s.stack("h_s", s.input("z", z_channels, "s8", 0), model.hyper_synthesis)
    mean = s.conv("mean", features, model.mean)
    raw = s.conv("index.raw", features, model.index)
    s.add(ops.Clamp("index", raw, 0, SCALE_LEVELS - 1), 0)
    h_s = s.build("h_s", [mean, "index"])

    g = Builder()
    g.input("symbols", m, "s16", 0)
    g.input("mean", m, "s16", e_latent)
    v_hat = g.add(ops.Add("v", "symbols", "mean", e_latent, 0, 0, False, "s16"), e_latent)
    g.vectors.append(Vector("inverse_gain", m))
    inverse, inverse_exponent = gain_rows(model, 1)
    e_y = model.dequantized.output_exponent
    y_hat = g.scale("y", v_hat, "inverse_gain", e_latent + inverse_exponent - e_y, e_y)
    linear = g.stack("linear", y_hat, model.synthesis_linear)
    narrow = g.requantize("narrow", y_hat, model.synthesis_input)
    branch = g.stack("branch", narrow, model.synthesis_branch)
    g.sum("x", linear, branch, model.picture_sum)
    g_s = g.build("g_s", ["x"])

    tables, first = tables_of(model.prior)
    z_tables = first + np.arange(z_channels, dtype=np.uint16)
    if model.prior.levels > 1:
        levels = model.level(torch.linspace(0, 1, GAIN_ROWS)).numpy().astype(np.uint16)
        z_tables = z_tables + z_channels * levels[:, None]
    return Model(
        name=name,
        order="hyperprior",
        reduction=model.REDUCTION,
        programs={
            "g_a": g_a,
            "h_a": h_a,
            "quantize": _quantize(m),
            "h_s": h_s,
            "g_s": g_s,
        },
        tables=tables,
        z_tables=z_tables,
        gain=gain,
        inverse_gain=inverse,
        metadata=metadata,
    )


def _quantize(channels: int) -> Program:
    """v, mean, index -> symbols, as `models.student.to_symbols` does.

    With r = v - mean, g numbers of DEAD_ZONE at or below the index and d numbers in all, the zone
    is d - g wide, and max(r + g, d) + min(r - g, -d) is r, nearer to zero by the zone.
    """
    e, widest = student.LATENT_EXPONENT, len(student.DEAD_ZONE)
    q = Builder()
    v, mean = (q.input(name, channels, "s16", e) for name in ("v", "mean"))
    index = q.input("index", channels, "u8", 0)
    limits = np.array(student.DEAD_ZONE, np.int32)
    q.add(ops.Add("residual", v, mean, 0, 0, 0, True, "s16"), e)
    q.add(ops.TableIndex("open", index, limits), e)
    for name, subtract, low, high in (
        ("above", False, widest, 32767), ("below", True, -32768, -widest),
    ):  # fmt: skip
        q.add(ops.Add(f"{name}.moved", "residual", "open", 0, 0, 0, subtract, "s16"), e)
        q.add(ops.Clamp(name, f"{name}.moved", low, high), e)
    q.add(ops.Add("symbols", "above", "below", 0, 0, e, False, "s16"), 0)
    return q.build("quantize", ["symbols"])
