"""Picture <-> stream: one plain function per direction and decoding order.

hyperprior (Balle 2018), per picture; [] are Programs, all in integers:

    encode   x -[g_a]-> y -[h_a]-> v, z     z -[h_s]-> mean, index
             v, mean and, where it wants, index -[quantize]-> symbols
    decode   z from its substream           z -[h_s]-> mean, index     symbols, mean -[g_s]-> x'

factorised (Balle 2016), per picture; a table for each channel and gain, nothing else:

    encode   x -[g_a]-> y -[quantize]-> symbols
    decode   symbols -[g_s]-> x'

channel-wise (Minnen 2020), per picture; the latents in slices k = 0, 1, .., one after the other:

    encode   x -[g_a]-> y -[h_a]-> v, z     z -[h_s]-> means, scales
             means, scales, y.0 .. -[context.k]-> mean, index    v, mean -[quantize.k]-> symbols
             symbols, mean, means, y.0 .. -[refine.k]-> y.k
    decode   the same from z and the symbols of slice k          y.0 y.1 .. -[g_s]-> x'

z and the symbols of each stripe (of a multiple of 64 lines) are two rANS substreams: z in ONE
lane, its tables by channel; symbols in FOUR lanes, their tables by index. Both run row by row,
pixel by pixel, channels innermost: the order in which a pipeline sees them. Slices follow one
another. The factorised order has no z.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lichen import container, entropy
from lichen.entropy import Decoder
from lichen.errors import DeviceError, ModelError, StreamError
from lichen.executors import Executor
from lichen.model import ORDERS, Model

Z_LANES, Y_LANES = 1, 4
DEFAULT_STRIPE = 8  # rows of z: 512 lines. Each stripe costs about 30 bytes

Pixels = NDArray[np.uint8]  # (H, W, 3)
# symbols, numbers of their tables, tables, lanes -> a substream
Coder = Callable[..., bytes]


@dataclass(frozen=True)
class Analysis:
    """What encoding needs of a picture at any rate: the latents before the rate gain."""

    width: int
    height: int
    y: NDArray[Any]  # (M, H / 16, W / 16) of the padded picture


@dataclass(frozen=True)
class Coded:
    """The entropy-coded stripes of a picture and what its decoder will give to g_s, by name."""

    position: int
    stripe: int
    stripes: tuple[tuple[bytes, bytes], ...]
    latents: Mapping[str, NDArray[Any]]


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
    coder: Coder = entropy.encode,
) -> Coded:
    """Quantise and entropy-code latents at a quality position 0..800."""
    gain = {"gain": model.gains(position)["gain"]}
    latents = executor.run(model.programs["h_a"], {"y": analysis.y}, gain)
    hyper = executor.run(model.programs["h_s"], {"z": latents["z"]})
    quantize = model.programs["quantize"]
    known = latents | hyper
    symbols = executor.run(quantize, {x.name: known[x.name] for x in quantize.inputs})["symbols"]
    per_row = symbols.shape[1] // latents["z"].shape[1]
    tables, per_stripe = model.tables_at(position), _coarse_rows(model, stripe)

    def code(first: int) -> tuple[bytes, bytes]:
        z = _interleave(latents["z"][:, first : first + per_stripe])
        rows = slice(first * per_row, (first + per_stripe) * per_row)
        return (
            coder(z.astype(np.int16), np.resize(tables, len(z)), model.tables, lanes=Z_LANES),
            coder(
                _interleave(symbols[:, rows]),
                _interleave(hyper["index"][:, rows]),
                model.tables,
                lanes=Y_LANES,
            ),
        )

    firsts = range(0, latents["z"].shape[1], per_stripe)
    stripes = tuple(_map(code, firsts, threads))
    return Coded(position, stripe, stripes, {"symbols": symbols, "mean": hyper["mean"]})


def decode_hyperprior(
    model: Model,
    executor: Executor,
    header: container.Header,
    stripes: tuple[tuple[bytes, bytes], ...],
    threads: int = 1,
) -> Pixels:
    """Decode the stripes of a picture to pixels (H, W, 3). Raises StreamError."""
    numbers = range(len(stripes))
    z = _decode_z(model, header, stripes, threads)
    hyper = executor.run(model.programs["h_s"], {"z": z})
    index = hyper["index"]
    per_stripe = _coarse_rows(model, header.stripe) * (index.shape[1] // z.shape[1])

    def decode_symbols(number: int) -> NDArray[np.int16]:
        band = index[:, number * per_stripe : (number + 1) * per_stripe]
        flat = entropy.decode(stripes[number][1], _interleave(band), model.tables, lanes=Y_LANES)
        return _planes(flat, band.shape[0], band.shape[2])

    symbols = np.concatenate(_map(decode_symbols, numbers, threads), axis=1)
    latents = {"symbols": symbols, "mean": hyper["mean"]}
    return synthesise(model, executor, latents, header.position, header.width, header.height)


def encode_factorised(
    model: Model,
    executor: Executor,
    analysis: Analysis,
    position: int,
    stripe: int = DEFAULT_STRIPE,
    threads: int = 1,
    coder: Coder = entropy.encode,
) -> Coded:
    """Quantise and entropy-code latents at a quality position 0..800."""
    gain = {"gain": model.gains(position)["gain"]}
    symbols = executor.run(model.programs["quantize"], {"y": analysis.y}, gain)["symbols"]
    tables, per_stripe = model.tables_at(position), _coarse_rows(model, stripe)

    def code(first: int) -> tuple[bytes, bytes]:
        flat = _interleave(symbols[:, first : first + per_stripe])
        indices = np.resize(tables, len(flat))
        return b"", coder(flat, indices, model.tables, lanes=Y_LANES)

    stripes = tuple(_map(code, range(0, symbols.shape[1], per_stripe), threads))
    return Coded(position, stripe, stripes, {"symbols": symbols})


def decode_factorised(
    model: Model,
    executor: Executor,
    header: container.Header,
    stripes: tuple[tuple[bytes, bytes], ...],
    threads: int = 1,
) -> Pixels:
    """Decode the stripes of a picture to pixels (H, W, 3). Raises StreamError."""
    rows, columns = -(-header.height // model.reduction), -(-header.width // model.reduction)
    tables, per_stripe = model.tables_at(header.position), _coarse_rows(model, header.stripe)

    def decode_symbols(number: int) -> NDArray[np.int16]:
        count = min(per_stripe, rows - number * per_stripe) * columns
        indices = np.resize(tables, count * len(tables))
        flat = entropy.decode(stripes[number][1], indices, model.tables, lanes=Y_LANES)
        return _planes(flat, len(tables), columns)

    symbols = np.concatenate(_map(decode_symbols, range(len(stripes)), threads), axis=1)
    latents = {"symbols": symbols}
    return synthesise(model, executor, latents, header.position, header.width, header.height)


def encode_channelwise(
    model: Model,
    executor: Executor,
    analysis: Analysis,
    position: int,
    stripe: int = DEFAULT_STRIPE,
    threads: int = 1,
    coder: Coder = entropy.encode,
) -> Coded:
    """Quantise and entropy-code latents slice by slice at a quality position 0..800."""
    tensors = {"y": analysis.y}
    vectors = model.gains(position)
    _step(model, executor, "h_a", tensors, vectors)
    _step(model, executor, "h_s", tensors, vectors)
    slices = []
    for k in range(model.slices):
        for name in ("context", "quantize", "refine"):
            _step(model, executor, f"{name}.{k}", tensors, vectors)
        slices.append((tensors["symbols"], tensors["index"]))
    z = tensors["z"]
    per_row = slices[0][0].shape[1] // z.shape[1]
    tables, per_stripe = model.tables_at(position), _coarse_rows(model, stripe)

    def code(first: int) -> tuple[bytes, bytes]:
        flat = _interleave(z[:, first : first + per_stripe]).astype(np.int16)
        rows = slice(first * per_row, (first + per_stripe) * per_row)
        symbols, indices = (
            np.concatenate([_interleave(planes[:, rows]) for planes in parts])
            for parts in zip(*slices, strict=True)
        )
        return (
            coder(flat, np.resize(tables, len(flat)), model.tables, lanes=Z_LANES),
            coder(symbols, indices, model.tables, lanes=Y_LANES),
        )

    stripes = tuple(_map(code, range(0, z.shape[1], per_stripe), threads))
    latents = {x.name: tensors[x.name] for x in model.programs["g_s"].inputs}
    return Coded(position, stripe, stripes, latents)


def decode_channelwise(
    model: Model,
    executor: Executor,
    header: container.Header,
    stripes: tuple[tuple[bytes, bytes], ...],
    threads: int = 1,
) -> Pixels:
    """Decode the stripes of a picture to pixels (H, W, 3). Raises StreamError.

    A slice is decoded in all stripes before the next: contexts look across the stripes' edges.
    """
    tensors: dict[str, NDArray[Any]] = {"z": _decode_z(model, header, stripes, threads)}
    rows = tensors["z"].shape[1]
    vectors = model.gains(header.position)
    _step(model, executor, "h_s", tensors, vectors)
    decoders = [entropy.Decoder(y, model.tables, lanes=Y_LANES) for _, y in stripes]
    for k in range(model.slices):
        _step(model, executor, f"context.{k}", tensors, vectors)
        per_stripe = _coarse_rows(model, header.stripe) * (tensors["index"].shape[1] // rows)
        tensors["symbols"] = _decode_slice(decoders, tensors["index"], per_stripe, threads)
        _step(model, executor, f"refine.{k}", tensors, vectors)
    for decoder in decoders:
        decoder.finish()
    latents = {x.name: tensors[x.name] for x in model.programs["g_s"].inputs}
    return synthesise(model, executor, latents, header.position, header.width, header.height)


def synthesise(
    model: Model,
    executor: Executor,
    latents: Mapping[str, NDArray[Any]],
    position: int,
    width: int,
    height: int,
) -> Pixels:
    """Run the decoder from the inputs of g_s to pixels (height, width, 3)."""
    inverse = {"inverse_gain": model.gains(position)["inverse_gain"]}
    planes = executor.run(model.programs["g_s"], latents, inverse)["x"]
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
    coder: Coder = entropy.encode,
) -> Coded:
    """Encode by the model's decoding order."""
    if model.order == "factorised":
        return encode_factorised(model, executor, analysis, position, stripe, threads, coder)
    if model.order == "hyperprior":
        return encode_hyperprior(model, executor, analysis, position, stripe, threads, coder)
    if model.order == "channel-wise":
        return encode_channelwise(model, executor, analysis, position, stripe, threads, coder)
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
    if model.order == "factorised":
        return decode_factorised(model, executor, header, stripes, threads)
    if model.order == "hyperprior":
        return decode_hyperprior(model, executor, header, stripes, threads)
    if model.order == "channel-wise":
        return decode_channelwise(model, executor, header, stripes, threads)
    raise ModelError(f"decoding order {model.order!r} is not supported by this build")


def pixel_digest(pixels: Pixels) -> bytes:
    """Digest decoded pixels (H, W, C), as docs/stream.md defines it: 16 bytes."""
    height, width, channels = pixels.shape
    hasher = hashlib.sha256(b"lichen")
    hasher.update(width.to_bytes(4, "little") + height.to_bytes(4, "little"))
    hasher.update(channels.to_bytes(1, "little"))
    hasher.update(np.ascontiguousarray(pixels).data)
    return hasher.digest()[:16]


def _step(
    model: Model,
    executor: Executor,
    name: str,
    tensors: dict[str, NDArray[Any]],
    vectors: Mapping[str, NDArray[np.int32]],
) -> None:
    """Run a Program on the tensors that it names; its outputs join them."""
    program = model.programs[name]
    inputs = {x.name: tensors[x.name] for x in program.inputs}
    tensors |= executor.run(program, inputs, {v.name: vectors[v.name] for v in program.vectors})


def _decode_z(
    model: Model,
    header: container.Header,
    stripes: tuple[tuple[bytes, bytes], ...],
    threads: int,
) -> NDArray[np.int8]:
    """Decode the z substreams of all stripes: (Z, rows, columns). Raises StreamError."""
    rows, columns = -(-header.height // model.reduction), -(-header.width // model.reduction)
    tables, per_stripe = model.tables_at(header.position), _coarse_rows(model, header.stripe)

    def decode_z(number: int) -> NDArray[np.int8]:
        count = min(per_stripe, rows - number * per_stripe) * columns
        indices = np.resize(tables, count * len(tables))
        flat = entropy.decode(stripes[number][0], indices, model.tables, lanes=Z_LANES)
        if flat.min() < -128 or flat.max() > 127:
            raise StreamError("a hyper-latent is outside -128..127: the stream is damaged")
        return _planes(flat.astype(np.int8), len(tables), columns)

    return np.concatenate(_map(decode_z, range(len(stripes)), threads), axis=1)


def _decode_slice(
    decoders: Sequence[Decoder], index: NDArray[np.uint8], per_stripe: int, threads: int
) -> NDArray[np.int16]:
    """Decode the next symbols of every stripe, one for each of `index` (C, H, W)."""

    def decode_band(number: int) -> NDArray[np.int16]:
        band = index[:, number * per_stripe : (number + 1) * per_stripe]
        return _planes(decoders[number].decode(_interleave(band)), band.shape[0], band.shape[2])

    return np.concatenate(_map(decode_band, range(len(decoders)), threads), axis=1)


def _interleave(planes: NDArray[Any]) -> NDArray[Any]:
    """(C, H, W) -> (H * W * C,), channels innermost."""
    return np.ascontiguousarray(planes.transpose(1, 2, 0)).reshape(-1)


def _planes(flat: NDArray[Any], channels: int, width: int) -> NDArray[Any]:
    """(H * W * C,) -> (C, H, W), a view: executors take any strides."""
    return flat.reshape(-1, width, channels).transpose(2, 0, 1)


def _coarse_rows(model: Model, stripe: int) -> int:
    """Count the rows of z, or of a factorised y, in a stripe of `stripe` times 64 lines."""
    return stripe * container.ROW_LINES // model.reduction


def _map(function: Callable[[int], Any], items: Iterable[int], threads: int) -> list[Any]:
    items = list(items)
    if threads == 1 or len(items) == 1:
        return [function(item) for item in items]
    try:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(function, items))
    except RuntimeError as error:  # what Python raises where a thread cannot be started
        raise DeviceError(
            f"{threads} threads were refused by the system ({error}): ask for fewer"
        ) from error
