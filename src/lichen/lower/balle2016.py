"""Lower the factorised prior."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lichen.entropy.tables import MAX_LENGTH, Tables
from lichen.lower.builder import Builder, depthwise, integers, rename
from lichen.lower.parts import gain_rows
from lichen.model import GAIN_ROWS, Model
from lichen.models import balle2016, student
from lichen.models.priors import EntropyBottleneck
from lichen.program import Vector, ops

TAIL = 2.0**-16  # probability beyond a latent's table, on each side: one part of its range
MAX_REACH = (MAX_LENGTH - 2) // 2  # symbols on each side of 0 that a table may hold


def lower_balle2016(model: balle2016.FactorizedPrior, name: str, metadata: dict[str, str]) -> Model:
    """Lower a calibrated FactorizedPrior: any kernels, GDN of either power, or ReLU."""
    m = model.latent_channels

    a = Builder()
    pixels = a.input("x", 3, "s8", student.PIXEL_EXPONENT)
    # 0 is black: see balle2018. Dense, not depthwise: executors are made fast for that
    identity, raised = np.eye(3, dtype=np.int8)[..., None, None], np.full(3, 128, np.int32)
    no_shift, no_padding = np.zeros(3, np.uint8), (0, 0, 0, 0)
    black = ops.Conv("pixels", pixels, identity, raised, no_shift, 1, no_padding, 1, "u8")
    y = a.stack("g_a", a.add(black, student.PIXEL_EXPONENT + 1), model.g_a)
    g_a = rename(a.build("g_a", [y]), y, "y")

    q = Builder()
    e_y = a.exponents[y]
    q.input("y", m, "s16", e_y)
    q.vectors.append(Vector("gain", m))
    gain, gain_exponent = gain_rows(model, 0, most=31 - e_y)
    q.scale("symbols", "y", "gain", e_y + gain_exponent, 0)
    quantize = q.build("quantize", ["symbols"])

    g = Builder()
    g.input("symbols", m, "s16", 0)
    g.vectors.append(Vector("inverse_gain", m))
    e_y = model.dequantized.output_exponent
    # a gain beyond what that leaves in 16 bits saturates y' at the first symbol but 0 anyway
    inverse, inverse_exponent = gain_rows(model, 1, least=e_y, most=31 + e_y)
    y_hat = g.scale("y.centred", "symbols", "inverse_gain", inverse_exponent - e_y, e_y)
    model.set_quantized(True)
    offsets = integers(model.offsets().detach() * 2.0**e_y, -(2**15), 2**15 - 1)
    model.set_quantized(False)
    if offsets.any():
        y_hat = g.add(depthwise("y", y_hat, m, 1, offsets, "s16"), e_y)
    x = g.stack("g_s", g.hold(y_hat, model.g_s[0]), model.g_s)
    g_s = rename(g.build("g_s", [x]), x, "x")

    tables, numbers = latent_tables(model)
    return Model(
        name=name,
        order="factorised",
        reduction=model.REDUCTION,
        programs={"g_a": g_a, "quantize": quantize, "g_s": g_s},
        tables=tables,
        z_tables=numbers,
        gain=gain,
        inverse_gain=inverse,
        metadata=metadata,
    )


@torch.no_grad()
def latent_tables(model: balle2016.FactorizedPrior) -> tuple[Tables, NDArray[np.uint16]]:
    """Give a table for each channel and row of gains, and their numbers, uint16 (GAIN_ROWS, M).

    Rows of gains that are equal share their tables: all do where weights serve one rate.
    """
    prior = model.entropy_bottleneck
    double = EntropyBottleneck(prior.channels, prior.filters).double()
    double.load_state_dict(prior.state_dict())
    gains = model.gains(torch.linspace(0, 1, GAIN_ROWS))[0].flatten(1).double()
    ratios = gains[-1] / gains  # steps of v at quality 100 in one of v here
    ends = _quantiles(double, TAIL)
    pmfs, offsets, numbers = [], [], np.empty(ratios.shape, np.uint16)
    for row, ratio in enumerate(ratios):
        if row and torch.equal(ratio, ratios[row - 1]):
            numbers[row] = numbers[row - 1]
            continue
        numbers[row] = len(pmfs) + np.arange(len(ratio))
        for pmf, offset in _row(double, ratio, ends):
            pmfs.append(pmf)
            offsets.append(offset)
    return Tables.from_pmf(pmfs, offsets), numbers


def _row(
    prior: EntropyBottleneck, ratio: Tensor, ends: Tensor
) -> list[tuple[NDArray[np.float64], int]]:
    """Give for each channel the probabilities of its likely symbols, and the first of these.

    ratio: float64 (M,), the size of a step of v in the domain of the prior. ends: float64 (M, 2),
    where likely values begin and end there. Bins are cut as the model's likelihood cuts them.
    """
    medians = prior.medians().flatten()
    first, last = torch.round((ends - medians[:, None]) / ratio[:, None]).to(torch.int64).T
    first = first.clamp(-MAX_REACH, MAX_REACH)
    last = torch.maximum(last.clamp(-MAX_REACH, MAX_REACH), first)
    symbols = torch.arange(int(first.min()), int(last.max()) + 1, dtype=torch.float64)
    edges = torch.cat([symbols - 0.5, symbols[-1:] + 0.5])
    places = edges * ratio[:, None] + medians[:, None]
    below = torch.sigmoid(prior.logits(places[:, None])[:, 0])
    pmf = (below[:, 1:] - below[:, :-1]).numpy()
    start = int(symbols[0])
    spans = zip(first.tolist(), last.tolist(), strict=True)
    return [(pmf[c, a - start : b + 1 - start], a) for c, (a, b) in enumerate(spans)]


def _quantiles(prior: EntropyBottleneck, tail: float) -> Tensor:
    """Find where a prior has `tail` below and above it, by bisection: float64 (M, 2)."""
    wanted = torch.tensor([tail, 1 - tail], dtype=torch.float64).logit()
    low = torch.full((prior.channels, 1, 2), -(2.0**20), dtype=torch.float64)
    high = -low
    for _ in range(64):
        middle = (low + high) / 2
        above = prior.logits(middle) > wanted
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return low[:, 0]
