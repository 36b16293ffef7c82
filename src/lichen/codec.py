"""Picture <-> stream: one plain function per direction and decoding order.

hyperprior (Balle 2018), per picture; [] are Programs, all in integers:

    encode   x -[g_a]-> y -[h_a]-> v, z     z -[h_s]-> mean, index     v, mean -[quantize]-> symbols
    decode   z from its substream           z -[h_s]-> mean, index     symbols, mean -[g_s]-> x'

z and the symbols of each stripe (a run of rows of z) are two rANS substreams: z in ONE lane, its
tables by channel; symbols in FOUR lanes, their tables by index. Both run row by row, pixel by
pixel, channels innermost: the order in which a pipeline sees them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lichen import container, entropy
from lichen.errors import ModelError, StreamError
from lichen.executors import Executor
from lichen.model import ORDERS, Model

Z_LANES, Y_LANES = 1, 4
DEFAULT_STRIPE = 8  # rows of z: 512 lines. Each stripe costs about 30 bytes

Pixels = NDArray[np.uint8]  # (H, W, 3)


@dataclass(frozen=True)
class Analysis:
    """What encoding needs of a picture at any rate: the latents before the rate gain."""

    width: int
    height: int
    y: NDArray[Any]  # (M, H / 16, W / 16) of the padded picture


@dataclass(frozen=True)
class Coded:
    """The entropy-coded stripes of a picture and what its decoder will see."""

    position: int
    stripe: int
    stripes: tuple[tuple[bytes, bytes], ...]
    symbols: NDArray[np.int16]
    mean: NDArray[np.int16]


def analyse(model: Model, executor: Executor, pixels: Pixels) -> Analysis:
    """Run the rate-independent part of the encoder."""
    height, width = pixels.shape[:2]
    r = model.reduction
    centred = (pixels ^ np.uint8(0x80)).view(np.int8)  # minus 128
    planes = np.pad(
        centred.transpose(2, 0, 1), ((0, 0), (0, -height % r), (0, -width % r)), mode="edge"
    )
    y = executor.run(model.programs["g_a"], {"x": planes})["y"]
    return Analysis(width, height, y)


def encode_hyperprior(
    model: Model,
    executor: Executor,
    analysis: Analysis,
    position: int,
    stripe: int = DEFAULT_STRIPE,
    threads: int = 1,
) -> Coded:
    """Quantise and entropy-code latents at a quality position 0..800."""
    gain = {"gain": model.gains(position)["gain"]}
    latents = executor.run(model.programs["h_a"], {"y": analysis.y}, gain)
    hyper = executor.run(model.programs["h_s"], {"z": latents["z"]})
    symbols = executor.run(model.programs["quantize"], {"v": latents["v"], "mean": hyper["mean"]})[
        "symbols"
    ]
    per_row = symbols.shape[1] // latents["z"].shape[1]

    def code(first: int) -> tuple[bytes, bytes]:
        z = _interleave(latents["z"][:, first : first + stripe])
        rows = slice(first * per_row, (first + stripe) * per_row)
        return (
            entropy.encode(
                z.astype(np.int16), _z_indices(model, len(z)), model.tables, lanes=Z_LANES
            ),
            entropy.encode(
                _interleave(symbols[:, rows]),
                _interleave(hyper["index"][:, rows]),
                model.tables,
                lanes=Y_LANES,
            ),
        )

    firsts = range(0, latents["z"].shape[1], stripe)
    stripes = tuple(_map(code, firsts, threads))
    return Coded(position, stripe, stripes, symbols, hyper["mean"])


def decode_hyperprior(
    model: Model,
    executor: Executor,
    header: container.Header,
    stripes: tuple[tuple[bytes, bytes], ...],
    threads: int = 1,
) -> Pixels:
    """Decode the stripes of a picture to pixels (H, W, 3). Raises StreamError."""
    rows, columns = -(-header.height // model.reduction), -(-header.width // model.reduction)
    channels = len(model.z_tables)

    def decode_z(number: int) -> NDArray[np.int8]:
        count = min(header.stripe, rows - number * header.stripe) * columns
        indices = _z_indices(model, count * channels)
        flat = entropy.decode(stripes[number][0], indices, model.tables, lanes=Z_LANES)
        if flat.min() < -128 or flat.max() > 127:
            raise StreamError("a hyper-latent is outside -128..127: the stream is damaged")
        return _planes(flat.astype(np.int8), channels, columns)

    numbers = range(len(stripes))
    z = np.concatenate(_map(decode_z, numbers, threads), axis=1)
    hyper = executor.run(model.programs["h_s"], {"z": z})
    index = hyper["index"]
    per_row = index.shape[1] // rows

    def decode_symbols(number: int) -> NDArray[np.int16]:
        band = index[:, number * header.stripe * per_row : (number + 1) * header.stripe * per_row]
        flat = entropy.decode(stripes[number][1], _interleave(band), model.tables, lanes=Y_LANES)
        return _planes(flat, band.shape[0], band.shape[2])

    symbols = np.concatenate(_map(decode_symbols, numbers, threads), axis=1)
    return synthesise(
        model, executor, symbols, hyper["mean"], header.position, header.width, header.height
    )


def synthesise(
    model: Model,
    executor: Executor,
    symbols: NDArray[np.int16],
    mean: NDArray[np.int16],
    position: int,
    width: int,
    height: int,
) -> Pixels:
    """Run the decoder from symbols to pixels (height, width, 3)."""
    inverse = {"inverse_gain": model.gains(position)["inverse_gain"]}
    planes = executor.run(model.programs["g_s"], {"symbols": symbols, "mean": mean}, inverse)["x"]
    pixels = np.empty((height, width, len(planes)), np.uint8)
    raised = planes.view(np.uint8) ^ np.uint8(0x80)  # plus 128
    for channel, plane in enumerate(raised):  # several times as fast as one transposed copy
        pixels[..., channel] = plane[:height, :width]
    return pixels


def encode(
    model: Model,
    executor: Executor,
    analysis: Analysis,
    position: int,
    stripe: int = DEFAULT_STRIPE,
    threads: int = 1,
) -> Coded:
    """Encode by the model's decoding order."""
    if model.order == "hyperprior":
        return encode_hyperprior(model, executor, analysis, position, stripe, threads)
    raise ModelError(f"encoding order {model.order!r} is not supported by this build")


def decode(
    model: Model,
    executor: Executor,
    header: container.Header,
    stripes: tuple[tuple[bytes, bytes], ...],
    threads: int = 1,
) -> Pixels:
    """Decode by the stream's decoding order."""
    if header.order != ORDERS.index(model.order):
        raise StreamError(
            f"the stream's decoding order is {header.order}, its model's "
            f"{ORDERS.index(model.order)}: the header is damaged"
        )
    if model.order == "hyperprior":
        return decode_hyperprior(model, executor, header, stripes, threads)
    raise ModelError(f"decoding order {model.order!r} is not supported by this build")


def pixel_digest(pixels: Pixels) -> bytes:
    """Digest decoded pixels (H, W, C), as docs/stream.md defines it: 16 bytes."""
    height, width, channels = pixels.shape
    hasher = hashlib.sha256(b"lichen")
    hasher.update(width.to_bytes(4, "little") + height.to_bytes(4, "little"))
    hasher.update(channels.to_bytes(1, "little"))
    hasher.update(np.ascontiguousarray(pixels).data)
    return hasher.digest()[:16]


def _interleave(planes: NDArray[Any]) -> NDArray[Any]:
    """(C, H, W) -> (H * W * C,), channels innermost."""
    return np.ascontiguousarray(planes.transpose(1, 2, 0)).reshape(-1)


def _planes(flat: NDArray[Any], channels: int, width: int) -> NDArray[Any]:
    """(H * W * C,) -> (C, H, W), a view: executors take any strides."""
    return flat.reshape(-1, width, channels).transpose(2, 0, 1)


def _z_indices(model: Model, count: int) -> NDArray[np.uint16]:
    return np.resize(model.z_tables, count)


def _map(function: Callable[[int], Any], items: Iterable[int], threads: int) -> list[Any]:
    items = list(items)
    if threads == 1 or len(items) == 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, items))
