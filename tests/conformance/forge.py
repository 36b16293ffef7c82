"""Streams that no encoder would make of a picture, and a model small enough to read: by hand.

`micro_model` is a hyperprior of two latents whose weights are written here, with tables of the
least precision; `forge` codes any z and any symbols as a valid stream; `chunk`, `start` and
`repair` write the container by hand, right or wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lichen import codec, container
from lichen.crc32c import crc32c
from lichen.entropy.tables import Tables
from lichen.executors import Executor
from lichen.model import GAIN_ROWS, ORDERS, Model, from_bytes
from lichen.picture import grey_of_rgb
from lichen.program import Input, Output, Program, Vector, ops

MAGIC = container.MAGIC


def micro_model() -> Model:
    """Give a model of order hyperprior: 2 latents at 1/16, 1 hyper-latent, 5 tables."""
    rng = np.random.default_rng(1)
    latents, tables = 2, 4

    def conv(output: str, source: str, outputs: int, inputs: int, kernel: int, scale: int,
             shift: int, dtype: ops.DType, bias: int = 0) -> ops.Conv:  # fmt: skip
        weight = rng.integers(-scale, scale + 1, (outputs, inputs, kernel, kernel)).astype(np.int8)
        return ops.Conv(
            output, source, weight, np.full(outputs, bias, np.int32),
            np.full(outputs, shift, np.uint8), kernel, (0, 0, 0, 0), 1, dtype,
        )  # fmt: skip

    analysis = conv("y", "blocks", latents, 768, 1, 3, 4, "s16")
    programs = {
        "g_a": Program(
            "g_a", (Input("x", 3, "s8", 7),), (),
            (ops.PixelUnshuffle("blocks", "x", 16), analysis), (Output("y", 4),),
        ),
        "h_a": Program(
            "h_a", (Input("y", latents, "s16", 4),), (Vector("gain", latents),),
            (ops.Scale("v", "y", "gain", 8, "s16"), conv("z", "v", 1, latents, 4, 9, 8, "s8")),
            (Output("v", 4), Output("z", 0)),
        ),
        "quantize": Program(
            "quantize", (Input("v", latents, "s16", 4), Input("mean", latents, "s16", 4)), (),
            (ops.Add("symbols", "v", "mean", 0, 0, 4, True, "s16"),), (Output("symbols", 0),),
        ),
        "h_s": Program(
            "h_s", (Input("z", 1, "s8", 0),), (),
            (conv("phases", "z", 16 * latents, 1, 1, 127, 2, "s16"),
             ops.PixelShuffle("mean", "phases", 4),
             ops.TableIndex("index", "mean", np.array([-900, -20, 300], np.int32))),
            (Output("mean", 4), Output("index", 0)),
        ),
        "g_s": Program(
            "g_s", (Input("symbols", latents, "s16", 0), Input("mean", latents, "s16", 4)),
            (Vector("inverse_gain", latents),),
            (ops.Add("v", "symbols", "mean", 4, 0, 0, False, "s16"),
             ops.Scale("y", "v", "inverse_gain", 8, "s16"),
             conv("blocks", "y", 768, latents, 1, 100, 6, "s8"),
             ops.PixelShuffle("x", "blocks", 16)),
            (Output("x", 7),),
        ),
    }  # fmt: skip
    rows = [[4095, 1], [1] * 9 + [4087], [1000, 2000, 1, 95, 500, 500], [2048, 1024, 1024],
            [8] * 511 + [8]]  # fmt: skip
    shared = Tables(
        12, np.array([len(row) for row in rows], np.int32), np.array([0, -4, -3, 32766, -256]),
        np.concatenate(rows),
    )  # fmt: skip
    ramp = np.linspace(32, 512, GAIN_ROWS).astype(np.int16)[:, None].repeat(latents, 1)
    inverse = np.linspace(2000, 125, GAIN_ROWS).astype(np.int16)[:, None].repeat(latents, 1)
    inverse[0], inverse[-1], ramp[-1] = 32767, 1, 32767
    model = Model("micro", "hyperprior", 64, programs, shared, np.array([tables], np.uint16),
                  ramp, inverse, {})  # fmt: skip
    return from_bytes(model.to_bytes())


def header_of(model: Model, width: int, height: int, **fields: Any) -> container.Header:
    """Give a header for this model: RGB, position 400, stripes of 8 rows unless told otherwise."""
    known: dict[str, Any] = {
        "width": width, "height": height, "channels": 3, "alpha": False, "digest": False,
        "order": ORDERS.index(model.order), "weights": model.digest, "position": 400, "stripe": 8,
    }  # fmt: skip
    return container.Header(**known | fields)


@dataclass
class Forger:
    """An executor that replaces the hyper-latents and symbols of an encoder, value after value."""

    inner: Executor
    z: NDArray[Any]
    symbols: NDArray[Any]

    @property
    def name(self) -> str:
        return self.inner.name

    def run(
        self,
        program: Program,
        inputs: Mapping[str, NDArray[Any]],
        vectors: Mapping[str, NDArray[Any]] | None = None,
    ) -> dict[str, NDArray[Any]]:
        outputs = self.inner.run(program, inputs, vectors or {})
        for name, values, dtype in (("z", self.z, np.int8), ("symbols", self.symbols, np.int16)):
            if name in outputs:
                outputs[name] = np.resize(values, outputs[name].shape).astype(dtype)
        return outputs


def forge(
    model: Model,
    executor: Executor,
    header: container.Header,
    z: NDArray[Any],
    symbols: NDArray[Any],
    **chunks: bytes,
) -> bytes:
    """Code any hyper-latents and any symbols, repeated as needed, as the stream that holds them.

    chunks: alpha, icc, exif, xmp; a digest is made where the header wants one.
    """
    black = np.broadcast_to(np.uint8(0), (header.height, header.width, 3))
    forger = Forger(executor, np.asarray(z), np.asarray(symbols))
    analysis = codec.analyse(model, forger, black)
    coded = codec.encode(model, forger, analysis, header.position, header.stripe)
    digest = b""
    if header.digest:
        pixels = codec.decode(model, executor, header, coded.stripes)
        digest = codec.pixel_digest(grey_of_rgb(pixels) if header.channels == 1 else pixels)
    header = replace(header, alpha=bool(chunks.get("alpha")))
    return container.write(container.Stream(header, coded.stripes, digest=digest, **chunks))


# The container by hand


def varint(value: int, size: int = 0) -> bytes:
    """Write LEB128; `size` bytes, which may be more than the shortest form has."""
    out = bytearray()
    while value > 0x7F or len(out) + 1 < size:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def sealed(data: bytes) -> bytes:
    """Put the CRC after bytes."""
    return data + crc32c(data).to_bytes(4, "little")


def chunk(kind: bytes, payload: bytes) -> bytes:
    return sealed(kind + varint(len(payload)) + payload)


def start(fields: bytes, magic: bytes = MAGIC, version: int = 1) -> bytes:
    """Write the start of a stream around the fields of a header."""
    return sealed(magic + bytes([version]) + varint(len(fields)) + fields)


def parts_of(data: bytes) -> list[bytes]:
    """Cut a valid stream into its start and its chunks."""
    at = 5
    size, at = read_varint(data, at)
    cuts = [0, at + size + 4]
    while cuts[-1] < len(data):
        size, at = read_varint(data, cuts[-1] + 1)
        cuts.append(at + size + 4)
    return [data[a:b] for a, b in pairwise(cuts)]


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Read LEB128 as it comes; returns the value and the position after it."""
    value = shift = 0
    while at < len(data) and shift < 35:
        value |= (data[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 0x80:
            break
    return value, at


def repair(data: bytes, weights: bytes) -> bytes:
    """Make all CRCs of a damaged stream right, and its weights those of a model.

    What a forger would do. Lengths stay as they are; what does not reach a CRC's place stays too.
    """
    out = bytearray(data)
    size, at = read_varint(data, 5)
    if size >= 10:
        out[at + 2 : at + 10] = weights[: max(0, min(8, len(data) - at - 2))]
    end = at + size
    first = 0
    while end + 4 <= len(data):
        out[end : end + 4] = crc32c(bytes(out[first:end])).to_bytes(4, "little")
        first = end + 4
        size, at = read_varint(data, first + 1)
        end = at + size
    return bytes(out)
