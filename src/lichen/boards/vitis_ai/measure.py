"""What the DPU's 8 bits cost: a codec with its transforms on a device, beside the integer codec."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lichen import codec
from lichen.codec import Coded, Pixels
from lichen.executors import Executor
from lichen.model import POSITIONS, Model

QUALITIES = (10.0, 50.0, 90.0)
LOSSES = ("psnr_decoder", "psnr_encoder", "psnr")


@dataclass(frozen=True)
class Row:
    """One picture at one quality. PSNR in dB over RGB; bits per pixel of the entropy-coded stripes.

    psnr_decoder: the integer codec's stream, its picture made on the device. psnr: coded and
    decoded on the device. psnr_encoder: coded on the device, decoded by any lichen. equal_latents:
    share of symbols of both encoders that are the same.
    """

    picture: str
    quality: float
    bpp_integer: float
    psnr_integer: float
    psnr_decoder: float
    bpp: float
    psnr_encoder: float
    psnr: float
    equal_latents: float


def psnr(a: Pixels, b: Pixels) -> float:
    """Give the PSNR of two pictures in dB; 100 where they are equal."""
    error = float(np.mean(np.square(a.astype(np.float64) - b)))
    return 10 * float(np.log10(255**2 / error)) if error else 100.0


def measure(
    model: Model,
    host: Executor,
    device: Executor,
    pictures: Sequence[tuple[str, Pixels]],
    qualities: Sequence[float] = QUALITIES,
) -> list[Row]:
    """Compare an executor with a device against the host's, on pictures by name."""
    rows = []
    for name, pixels in pictures:
        analyses = [codec.analyse(model, executor, pixels) for executor in (host, device)]
        for quality in qualities:
            position = round(quality * POSITIONS / 100)
            exact, coded = (codec.encode(model, host, a, position) for a in analyses)

            def quality_of(
                coded: Coded, executor: Executor, pixels: Pixels = pixels, position: int = position
            ) -> float:
                columns, lines = pixels.shape[1], pixels.shape[0]
                found = codec.synthesise(model, executor, coded.latents, position, columns, lines)
                return psnr(pixels, found)

            area = pixels.shape[0] * pixels.shape[1]
            rows.append(
                Row(
                    picture=name,
                    quality=quality,
                    bpp_integer=_bits(exact) / area,
                    psnr_integer=quality_of(exact, host),
                    psnr_decoder=quality_of(exact, device),
                    bpp=_bits(coded) / area,
                    psnr_encoder=quality_of(coded, host),
                    psnr=quality_of(coded, device),
                    equal_latents=_equal(exact, coded),
                )
            )
    return rows


def mean(rows: Sequence[Row], quality: float, key: str) -> float:
    """Give the mean of a figure over the pictures at one quality."""
    return float(np.mean([getattr(row, key) for row in rows if row.quality == quality]))


def _bits(coded: Coded) -> int:
    return 8 * sum(len(z) + len(y) for z, y in coded.stripes)


def _equal(a: Coded, b: Coded) -> float:
    names = [name for name in a.latents if name != "mean"]

    def flat(coded: Coded) -> NDArray[Any]:
        return np.concatenate([np.asarray(coded.latents[name]).reshape(-1) for name in names])

    return float(np.mean(flat(a) == flat(b)))


def table(rows: Sequence[Row]) -> list[str]:
    """Give means over the pictures as lines of text, one for each quality."""
    lines = ["quality | bpp    DPU            | PSNR   DPU decodes, encodes, both | equal latents"]
    for quality in sorted({row.quality for row in rows}):
        m = {key: mean(rows, quality, key) for key in vars(rows[0]) if key != "picture"}
        more = m["bpp"] / m["bpp_integer"] - 1
        loss = [f"{m[key] - m['psnr_integer']:+7.3f}" for key in LOSSES]
        lines.append(
            f"{quality:7g} | {m['bpp_integer']:.4f} {m['bpp']:.4f} ({more:+.2%}) | "
            f"{m['psnr_integer']:.2f} {' '.join(loss)} dB | {m['equal_latents']:.2%}"
        )
    return lines
