"""Rate-distortion curves from real files: lichen and the classical codecs of Pillow."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from lichen.api import Codec
from lichen.errors import LichenError
from lichen.picture import from_array

Pixels = NDArray[np.uint8]  # (H, W, 3)
# Settings from coarse to fine; each covers at least 0.1 to 1.2 bits per pixel on Kodak.
PILLOW_QUALITIES: dict[str, tuple[int, ...]] = {
    "jpeg": (5, 8, 12, 16, 20, 25, 30, 40, 50, 60, 70, 75, 80, 85, 90, 95),
    "webp": (1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 85, 90, 95),
    "avif": (10, 20, 30, 40, 50, 60, 70, 80, 85, 90, 95),
}
LICHEN_QUALITIES: tuple[float, ...] = (0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100)


@dataclass(frozen=True)
class Point:
    """One setting of one codec, averaged over pictures (mean of per-picture values)."""

    setting: float
    bpp: float
    psnr: float  # dB, RGB
    encode_s: float
    decode_s: float


def psnr(a: Pixels, b: Pixels) -> float:
    """Peak signal-to-noise ratio of 8-bit pictures in dB; infinite where they are equal."""
    mse = float(np.mean(np.square(a.astype(np.float64) - b)))
    return math.inf if mse == 0 else 10 * math.log10(255**2 / mse)


def load(folder: Path) -> list[Pixels]:
    """Read every picture of a folder as RGB."""
    suffixes = {".png", ".webp", ".ppm", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg", ".avif"}
    paths = sorted(p for p in folder.glob("*") if p.suffix.lower() in suffixes)
    if not paths:
        raise LichenError(f"expected pictures in {folder}, found none")
    pictures = []
    for path in paths:
        with Image.open(path) as image:
            pictures.append(np.asarray(image.convert("RGB")))
    return pictures


def lichen_curve(
    pictures: Sequence[Pixels], codec: Codec, qualities: Sequence[float] = LICHEN_QUALITIES
) -> list[Point]:
    """Measure lichen: bytes from `encode`, pixels from `decode`."""

    def run(pixels: Pixels, quality: float) -> tuple[bytes, Callable[[], Pixels]]:
        data = codec.encode(from_array(pixels), quality=quality).data
        return data, lambda: codec.decode(data).pixels

    return _curve(pictures, qualities, run)


def pillow_curve(pictures: Sequence[Pixels], name: str) -> list[Point]:
    """Measure a codec of Pillow: jpeg (4:2:0), webp (method 6) or avif (4:4:4, speed 6)."""
    if name not in PILLOW_QUALITIES:
        raise LichenError(f"a codec is one of {', '.join(PILLOW_QUALITIES)}, not {name!r}")
    if name != "jpeg" and not features.check(name):
        raise LichenError(f"this Pillow has no {name}; install pillow >= 11.3")
    options: dict[str, object] = {
        "jpeg": {"subsampling": "4:2:0"},
        "webp": {"method": 6},
        "avif": {"subsampling": "4:4:4", "speed": 6},
    }[name]

    def run(pixels: Pixels, quality: float) -> tuple[bytes, Callable[[], Pixels]]:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, name.upper(), quality=int(quality), **options)
        data = buffer.getvalue()
        return data, lambda: np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    return _curve(pictures, PILLOW_QUALITIES[name], run)


def _curve(
    pictures: Sequence[Pixels],
    settings: Sequence[float],
    run: Callable[[Pixels, float], tuple[bytes, Callable[[], Pixels]]],
) -> list[Point]:
    points = []
    for setting in settings:
        rows = []
        for pixels in pictures:
            start = time.perf_counter()
            data, decode = run(pixels, setting)
            middle = time.perf_counter()
            decoded = decode()
            end = time.perf_counter()
            bpp = 8 * len(data) / (pixels.shape[0] * pixels.shape[1])
            rows.append((bpp, psnr(pixels, decoded), middle - start, end - middle))
        points.append(Point(float(setting), *(float(v) for v in np.mean(rows, axis=0))))
    return points
