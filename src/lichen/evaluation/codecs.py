"""The codecs that `lichen eval` compares: pixels -> bytes of a file -> pixels.

A codec is named `[LABEL=]CODEC[:VARIANT][@QUALITY,...]`:

    lichen            the installed model              lichen:NAME or lichen:FILE.safetensors
    jpeg              4:2:0, baseline                  jpeg:444
    webp              method 6 (4:2:0, lossy)
    avif              4:4:4, speed 6                   avif:420
    jxl               effort 7; needs the package pillow-jxl-plugin
"""

from __future__ import annotations

import io
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, features

from lichen import model as models
from lichen.api import Codec
from lichen.errors import ImageError, LichenError
from lichen.evaluation.metrics import Pixels
from lichen.picture import from_array

# Pillow's name, its options, and qualities from coarse to fine that cover 0.1 to 1.2 bits per pixel
# on Kodak, and often much more. The first variant is the one without a name.
VARIANTS: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "jpeg": {
        "420": ("4:2:0, baseline", {"subsampling": "4:2:0"}),
        "444": ("4:4:4, baseline", {"subsampling": "4:4:4"}),
    },
    "webp": {"": ("method 6", {"method": 6})},
    "avif": {
        "444": ("4:4:4, speed 6", {"subsampling": "4:4:4", "speed": 6}),
        "420": ("4:2:0, speed 6", {"subsampling": "4:2:0", "speed": 6}),
    },
    "jxl": {"": ("effort 7", {"effort": 7})},
}
QUALITIES: dict[str, tuple[float, ...]] = {
    "lichen": (0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100),
    "jpeg": (5, 8, 12, 16, 20, 25, 30, 40, 50, 60, 70, 75, 80, 85, 90, 95),
    "webp": (1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 85, 90, 95),
    "avif": (10, 20, 30, 40, 50, 60, 70, 80, 85, 90, 95),
    "jxl": (5, 10, 20, 30, 40, 50, 60, 70, 80, 85, 90, 95),
}
HELP = "lichen[:NAME|FILE], jpeg[:420|:444], webp, avif[:444|:420], jxl"


@dataclass(frozen=True)
class Spec:
    """One codec as it was asked for. label: empty where `open_codec` shall find it."""

    label: str
    name: str
    variant: str
    qualities: tuple[float, ...]


def parse(text: str, qualities: tuple[float, ...] | None = None) -> Spec:
    """Read `[LABEL=]CODEC[:VARIANT][@QUALITY,...]`; `qualities` stand in where it has none.

    Raises LichenError with the list of what there is.
    """
    found = re.fullmatch(
        r"(?:(?P<label>[^=:@/\\]+)=)?(?P<name>[^=:@]*)(?::(?P<variant>.*?))?(?:@(?P<at>[0-9.,]+))?",
        text,
    )
    name, variant = (found["name"], found["variant"] or "") if found else ("", "")
    if not found or name not in QUALITIES:
        raise LichenError(f"expected a codec out of {HELP}, found {text!r}")
    if name != "lichen":
        variant = variant or next(iter(VARIANTS[name]))
        if variant not in VARIANTS[name]:
            names = " or ".join(f"{name}:{known}" if known else name for known in VARIANTS[name])
            raise LichenError(f"{name} is {names}, not {text!r}")
    at = parse_qualities(found["at"]) if found["at"] else qualities or QUALITIES[name]
    if name != "lichen" and any(quality % 1 for quality in at):
        raise LichenError(f"the qualities of {name} are whole numbers, found {text!r} at {at}")
    return Spec(found["label"] or "", name, variant, at)


def parse_qualities(text: str) -> tuple[float, ...]:
    """Read `10,20.5,30`: numbers 0..100, given back rising and each once. Raises LichenError."""
    try:
        values = sorted({float(part) for part in text.split(",")})
    except ValueError:
        values = []
    if not values or not 0 <= values[0] <= values[-1] <= 100:
        raise LichenError(f"expected qualities of 0..100 with commas between, found {text!r}")
    return tuple(values)


class FileCodec(ABC):
    """A codec that makes whole files. label: its name in tables; description: its settings."""

    label: str
    description: str

    @abstractmethod
    def encode(self, pixels: Pixels, quality: float) -> bytes:
        """Give the bytes of a file that holds (H, W, 3) pixels."""

    @abstractmethod
    def decode(self, data: bytes) -> Pixels:
        """Give the pixels (H, W, 3) of a file, from nothing but its bytes."""

    @abstractmethod
    def check(self, pixels: Pixels, quality: float) -> None:
        """Verify what can be, outside of what is timed. Raises LichenError."""


class LichenCodec(FileCodec):
    """lichen with one model."""

    def __init__(self, spec: Spec, threads: int) -> None:
        path = Path(spec.variant)
        if not spec.variant:
            model = models.default()
        else:
            model = models.read(path) if path.is_file() else models.named(spec.variant)
        self.codec = Codec(model, threads=threads)
        self.label = spec.label or f"lichen:{path.stem if spec.variant else model.name}"
        self.description = (
            f"lichen, model {model.name} ({model.digest.hex()}), executor "
            f"{self.codec.executor.name}"
        )

    def encode(self, pixels: Pixels, quality: float) -> bytes:
        return self.codec.encode(from_array(pixels), quality=quality).data

    def decode(self, data: bytes) -> Pixels:
        return self.codec.decode(data).pixels

    def check(self, pixels: Pixels, quality: float) -> None:
        """Decode a file that holds the digest of the pixels that its encoder expects."""
        self.codec.decode(self.codec.encode(from_array(pixels), quality=quality, digest=True).data)


class PillowCodec(FileCodec):
    """A format that Pillow, or a plugin of Pillow, writes and reads."""

    def __init__(self, spec: Spec, threads: int) -> None:
        if spec.name in ("webp", "avif") and not features.check(spec.name):
            raise LichenError(
                f"this Pillow has no {spec.name}: pip install 'pillow>=11.3', or leave it out"
            )
        self.format = spec.name.upper()
        about, options = VARIANTS[spec.name][spec.variant]
        self.options = dict(options)
        if spec.name == "jxl":
            version = f"pillow-jxl-plugin {_open_jxl(threads)}"
            self.options["num_threads"] = _jxl_threads(threads)
        elif spec.name == "avif":
            version = f"libavif {_open_avif(threads)}"
            self.options["max_threads"] = threads
        elif spec.name == "webp":
            version = f"libwebp {features.version('webp')}"
        else:
            turbo = features.version("libjpeg_turbo")
            version = f"libjpeg-turbo {turbo}" if turbo else f"libjpeg {features.version('jpg')}"
        usual = spec.variant == next(iter(VARIANTS[spec.name]))
        self.label = spec.label or (spec.name if usual else f"{spec.name}:{spec.variant}")
        self.description = f"{spec.name} of Pillow, {about}, {version}"

    def encode(self, pixels: Pixels, quality: float) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, self.format, quality=int(quality), **self.options)
        return buffer.getvalue()

    def decode(self, data: bytes) -> Pixels:
        with Image.open(io.BytesIO(data), formats=[self.format]) as image:
            return np.asarray(image.convert("RGB"))

    def check(self, pixels: Pixels, quality: float) -> None:
        """Do nothing: these files hold no digest."""


@cache  # a codec keeps what it has prepared
def open_codec(spec: Spec, threads: int) -> FileCodec:
    """Make a codec ready. Raises ModelError for a model that is not there, else LichenError."""
    return (LichenCodec if spec.name == "lichen" else PillowCodec)(spec, threads)


def round_trip_error(codec: FileCodec, picture: str, quality: float, error: Exception) -> Exception:
    """Say which codec failed on which picture; lichen's own errors keep their kind."""
    kind = type(error) if isinstance(error, LichenError) else ImageError
    return kind(f"{picture}, {codec.label} at quality {quality:g}: {error}")


def _open_jxl(threads: int) -> str:
    """Let Pillow know JPEG XL; gives the version of the plugin."""
    try:
        from importlib.metadata import version

        from pillow_jxl import JpegXLImagePlugin
    except ImportError as error:
        raise LichenError(
            "jxl needs the package pillow-jxl-plugin: pip install pillow-jxl-plugin, or leave it "
            "out"
        ) from error
    JpegXLImagePlugin.DECODE_THREADS = _jxl_threads(threads)  # the plugin has no other way
    return version("pillow-jxl-plugin")


def _jxl_threads(threads: int) -> int:
    """In the plugin's words: 0 is the calling thread alone."""
    return 0 if threads == 1 else threads


def _open_avif(threads: int) -> str | None:
    """Set the threads that read AVIF; gives the version of libavif."""
    from PIL import AvifImagePlugin

    AvifImagePlugin.DEFAULT_MAX_THREADS = threads  # readers take it from here alone
    return features.version("avif")
