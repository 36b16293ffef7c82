"""What the models share beside their transforms: quantiser, rate gains, entropy tables."""

from __future__ import annotations

import copy
import math
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lichen.entropy.tables import Tables
from lichen.lower.builder import Builder, depthwise, integers, rename
from lichen.model import GAIN_ROWS
from lichen.models.balle2018 import HYPER_EXPONENT
from lichen.models.layers import Stack
from lichen.models.priors import SCALE_LEVELS, EntropyBottleneck, scale_table
from lichen.models.student import PIXEL_EXPONENT
from lichen.program import Program, ops

TAIL = 1e-7  # probability beyond a hyper-latent's table, on each side


class Gained(Protocol):
    """A model with rate gains."""

    def gains(self, position: Tensor) -> tuple[Tensor, Tensor]: ...


def analysis_program(g_a: Stack) -> Program:
    """x -> y for models whose padding is black (see `models.balle2018`): pixels are u8 there."""
    b = Builder()
    x = b.input("x", 3, "s8", PIXEL_EXPONENT)
    # Dense, not depthwise: executors are made fast for that
    identity, raised = np.eye(3, dtype=np.int8)[..., None, None], np.full(3, 128, np.int32)
    no_shift, no_padding = np.zeros(3, np.uint8), (0, 0, 0, 0)
    black = ops.Conv("pixels", x, identity, raised, no_shift, 1, no_padding, 1, "u8")
    y = b.stack("g_a", b.add(black, PIXEL_EXPONENT + 1), g_a)
    return rename(b.build("g_a", [y]), y, "y")


def add_medians(b: Builder, z: str, prior: EntropyBottleneck) -> str:
    """z without its medians -> z^, s16 with HYPER_EXPONENT."""
    medians = integers(prior.medians().flatten().double() * 2.0**HYPER_EXPONENT, -(2**15), 2**15)
    weight = 2**HYPER_EXPONENT
    op = depthwise(f"{z}.hat", z, prior.channels, weight, medians, "s16")
    return b.add(op, HYPER_EXPONENT)


def quantize_program(channels: int, exponent: int, mean_exponent: int) -> Program:
    """v, mean -> symbols: subtract the mean, round to whole steps."""
    b = Builder()
    v = b.input("v", channels, "s16", exponent)
    mean = b.input("mean", channels, "s16", mean_exponent)
    fine = max(exponent, mean_exponent)
    b.add(ops.Add("symbols", v, mean, fine - exponent, fine - mean_exponent, fine, True, "s16"), 0)
    return b.build("quantize", ["symbols"])


def gain_rows(
    model: Gained, which: int, least: int = -64, most: int = 64
) -> tuple[NDArray[np.int16], int]:
    """Give the gains of GAIN_ROWS evenly spaced qualities as int16 (rows, M), and the exponent.

    least, most: bounds of the exponent, where the shift after the multiplication needs them.
    """
    with torch.no_grad():
        rows = model.gains(torch.linspace(0, 1, GAIN_ROWS))[which].flatten(1).double()
    exponent = math.floor(math.log2(32767.0 / float(rows.max())))
    exponent = min(max(exponent, least), most)
    return integers(rows * 2.0**exponent, 1, 32767).astype(np.int16), exponent


def tables_of(prior: EntropyBottleneck, medians: Tensor | None = None) -> tuple[Tables, int]:
    """Gaussian tables first, then one per level and channel of z; returns the number of the first.

    medians: what was taken off z before rounding, (1, levels * channels, 1, 1).
    """
    grid = torch.arange(-128, 128, dtype=torch.float64)
    if medians is not None:
        grid = grid + medians.double().reshape(-1, 1, 1)
    with torch.no_grad():
        double = copy.deepcopy(prior).double()
        count = prior.levels * prior.channels
        logits = [double.logits((grid + d).expand(count, 1, -1)) for d in (-0.5, 0.5)]
        pmf = (torch.sigmoid(logits[1]) - torch.sigmoid(logits[0])).squeeze(1).numpy()
    pmfs, offsets = [], []
    for row in pmf:
        inside = np.flatnonzero((np.cumsum(row) > TAIL) & (np.cumsum(row[::-1])[::-1] > TAIL))
        pmfs.append(row[inside[0] : inside[-1] + 1])
        offsets.append(int(inside[0]) - 128)
    return join(Tables.gaussian(scale_table()), Tables.from_pmf(pmfs, offsets)), SCALE_LEVELS


def join(first: Tables, second: Tables) -> Tables:
    """Put the tables of `second` after those of `first`."""
    return Tables(
        first.precision,
        np.concatenate([first.lengths, second.lengths]),
        np.concatenate([first.offsets, second.offsets]),
        np.concatenate([first.frequencies, second.frequencies]),
    )
