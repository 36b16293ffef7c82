"""A codec with the student's operations and a handful of channels, with random weights."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from stages import random_conv

from lichen.entropy.tables import Tables
from lichen.model import GAIN_ROWS, Model
from lichen.program import Input, Output, Program, Vector, ops, reference
from lichen.program.ops import Conv, DType

WIDTH, LATENTS, HYPER = 4, 6, 2
TABLES = 8  # of the latents


def programs(seed: int = 5, hyper: int = HYPER) -> dict[str, Program]:
    """Give g_a, h_a, h_s, quantize and g_s; hyper: channels of z."""
    rng = np.random.default_rng(seed)
    n, m, z = WIDTH, LATENTS, hyper

    def conv(y: str, x: str, o: int, i: int, k: int, s: int, dtype: DType, shift: int) -> Conv:
        return random_conv(rng, o, i, k, s, dtype, (shift, shift + 2), (y, x))

    g_a = Program(
        "g_a",
        (Input("x", 3, "s8", 7),),
        (),
        (
            ops.PixelUnshuffle("linear.0", "x", 16),
            conv("linear.1", "linear.0", m, 768, 1, 1, "s16", 6),
            ops.PixelUnshuffle("branch.0", "x", 4),
            conv("branch.1", "branch.0", n, 48, 3, 2, "s8", 12),
            conv("conv1", "branch.1", n, n, 3, 1, "u8", 8),
            conv("conv2", "conv1", n, n, 3, 1, "s16", 5),
            ops.Add("branch.2", "branch.1", "conv2", 7, 0, 7, False, "s8"),
            conv("branch.3", "branch.2", 2 * n, n, 3, 2, "s8", 9),
            conv("branch.4", "branch.3", m, 2 * n, 1, 1, "s16", 3),
            ops.Add("y", "linear.1", "branch.4", 0, 0, 0, False, "s16"),
        ),
        (Output("y", 8),),
    )
    h_a = Program(
        "h_a",
        (Input("y", m, "s16", 8),),
        (Vector("gain", m),),
        (
            ops.Scale("v", "y", "gain", 16, "s16"),
            ops.Scale("input", "v", rng.integers(500, 16384, m).astype(np.int32), 16, "s8"),
            conv("h_a.0", "input", n, m, 1, 1, "u8", 5),
            conv("h_a.1", "h_a.0", n, n, 3, 2, "u8", 8),
            conv("z", "h_a.1", z, n, 3, 2, "s8", 9),
        ),
        (Output("v", 4), Output("z", 0)),
    )
    h_s = Program(
        "h_s",
        (Input("z", z, "s8", 0),),
        (),
        (
            conv("h_s.0", "z", 4 * n, z, 3, 1, "u8", 5),
            ops.PixelShuffle("h_s.1", "h_s.0", 2),
            conv("h_s.2", "h_s.1", 4 * n, n, 3, 1, "u8", 8),
            ops.PixelShuffle("h_s.3", "h_s.2", 2),
            conv("h_s.4", "h_s.3", n, n, 3, 1, "u8", 8),
            conv("mean", "h_s.4", m, n, 1, 1, "s16", 5),
            conv("index.raw", "h_s.4", m, n, 1, 1, "u8", 7),
            ops.Clamp("index", "index.raw", 0, TABLES - 1),
        ),
        (Output("mean", 4), Output("index", 0)),
    )
    quantize = Program(
        "quantize",
        (Input("v", m, "s16", 4), Input("mean", m, "s16", 4), Input("index", m, "u8", 0)),
        (),
        (
            ops.Add("residual", "v", "mean", 0, 0, 0, True, "s16"),
            ops.TableIndex("open", "index", np.array([2, 5, 6], np.int32)),
            ops.Add("above.moved", "residual", "open", 0, 0, 0, False, "s16"),
            ops.Clamp("above", "above.moved", 3, 32767),
            ops.Add("below.moved", "residual", "open", 0, 0, 0, True, "s16"),
            ops.Clamp("below", "below.moved", -32768, -3),
            ops.Add("symbols", "above", "below", 0, 0, 4, False, "s16"),
        ),
        (Output("symbols", 0),),
    )
    g_s = Program(
        "g_s",
        (Input("symbols", m, "s16", 0), Input("mean", m, "s16", 4)),
        (Vector("inverse_gain", m),),
        (
            ops.Add("v", "symbols", "mean", 4, 0, 0, False, "s16"),
            ops.Scale("y", "v", "inverse_gain", 6, "s16"),
            conv("linear.0", "y", 768, m, 1, 1, "s16", 10),
            ops.PixelShuffle("linear.1", "linear.0", 16),
            ops.Scale("narrow", "y", rng.integers(247, 23000, m).astype(np.int32), 19, "s8"),
            conv("branch.0", "narrow", 2 * n, m, 1, 1, "s8", 5),
            conv("branch.2", "branch.0", 4 * n, 2 * n, 1, 1, "s8", 7),
            ops.PixelShuffle("branch.3", "branch.2", 2),
            conv("conv1", "branch.3", n, n, 3, 1, "u8", 7),
            conv("conv2", "conv1", n, n, 3, 1, "s16", 4),
            ops.Add("branch.4", "branch.3", "conv2", 7, 0, 7, False, "s8"),
            conv("branch.7", "branch.4", 192, n, 3, 1, "s16", 4),
            ops.PixelShuffle("branch.8", "branch.7", 8),
            ops.Add("x", "linear.1", "branch.8", 0, 0, 4, False, "s8"),
        ),
        (Output("x", 7),),
    )
    return {program.name: program for program in (g_a, h_a, h_s, quantize, g_s)}


def gains(seed: int = 7) -> dict[str, NDArray[np.int32]]:
    """Give vectors for one quality."""
    rng = np.random.default_rng(seed)
    return {
        "gain": rng.integers(1, 32768, LATENTS).astype(np.int32),
        "inverse_gain": rng.integers(1, 600, LATENTS).astype(np.int32),
    }


def run_all(
    parts: dict[str, Program], x: NDArray[np.int8], vectors: dict[str, NDArray[np.int32]]
) -> dict[str, NDArray[np.generic]]:
    """Run the reference; give every tensor that goes in or out of a core."""
    y = reference.run(parts["g_a"], {"x": x})["y"]
    latents = reference.run(parts["h_a"], {"y": y}, {"gain": vectors["gain"]})
    hyper = reference.run(parts["h_s"], {"z": latents["z"]})
    residual = {"v": latents["v"], "mean": hyper["mean"], "index": hyper["index"]}
    symbols = reference.run(parts["quantize"], residual)["symbols"]
    picture = reference.run(
        parts["g_s"],
        {"symbols": symbols, "mean": hyper["mean"]},
        {"inverse_gain": vectors["inverse_gain"]},
    )["x"]
    return {
        "g_a_x": x, "h_a_z": latents["z"], "h_s_z": latents["z"], "h_s_index": hyper["index"],
        "quantize_symbols": symbols, "g_s_symbols": symbols, "g_s_x": picture,
    }  # fmt: skip


def model(seed: int = 5, hyper: int = HYPER) -> Model:
    """Give a whole model: the Programs, tables that suit them a little, and gains.

    z has tables of its own in each third of the qualities.
    """
    rng = np.random.default_rng(seed)
    z_scales = [*np.linspace(10, 20, hyper), *np.linspace(18, 24, hyper), *[12.0] * hyper]
    tables = Tables.gaussian([*np.geomspace(2, 30, TABLES), *z_scales], 12)
    levels = np.arange(GAIN_ROWS) * 3 // GAIN_ROWS
    return Model(
        "tiny",
        "hyperprior",
        64,
        programs(seed, hyper),
        tables,
        (TABLES + hyper * levels[:, None] + np.arange(hyper)[::-1]).astype(np.uint16),
        rng.integers(1, 32768, (GAIN_ROWS, LATENTS)).astype(np.int16),
        rng.integers(1, 600, (GAIN_ROWS, LATENTS)).astype(np.int16),
        digest=bytes(8),
    )
