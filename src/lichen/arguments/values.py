"""What the text of an option means: each function gives its value, or says what it must be."""

from __future__ import annotations

import argparse
import os
import re
from contextlib import suppress

from lichen import container

THREADS_MAX = 256
UNITS = {"": 1, "k": 1000, "m": 1000**2, "ki": 1024, "mi": 1024**2}


def quality(text: str) -> float:
    return number(text, 0, 100, "the quality must be 0..100")


def bits_per_pixel(text: str) -> float:
    return number(text, 1e-6, 1e6, "the bits per pixel must be a positive number")


def lagrangian(text: str) -> float:
    return number(text, 1e-6, 1e3, "lambda must be a positive number, like 0.013")


def threads(text: str) -> int:
    if text == "all":
        counted = getattr(os, "sched_getaffinity", None)
        return min(THREADS_MAX, len(counted(0)) if counted else os.cpu_count() or 1)
    return integer(text, 1, THREADS_MAX, f"threads must be 1..{THREADS_MAX} or 'all'")


def pixel_limit(text: str) -> int:
    limit = container.MAX_SIDE**2
    return integer(text, 1, limit, f"the limit must be 1..{limit} pixels")


def stripe_lines(text: str) -> int:
    rows, top = container.ROW_LINES, container.ROW_LINES * container.MAX_STRIPE
    lines = integer(text, rows, top, f"a stripe must have {rows}..{top} lines")
    if lines % rows:
        raise argparse.ArgumentTypeError(f"a stripe must be a multiple of {rows} lines, not {text}")
    return lines


def byte_count(text: str) -> int:
    found = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,12})?)(k|m|ki|mi)?b?", text.lower())
    size = int(float(found[1]) * UNITS[found[2] or ""]) if found else 0
    if size < 1:
        raise argparse.ArgumentTypeError(
            f"a size must be bytes, like 20000, 20k (1000 each) or 20Ki (1024 each), not {text!r}"
        )
    return size


def whole(text: str) -> int:
    return integer(text, 0, 10**9, "a number must be 0 or more")


def crops(text: str) -> int:
    return integer(text, 1, 4096, "a number of crops must be 1..4096")


def positive(text: str) -> int:
    return integer(text, 1, 10**9, "it must be a positive whole number")


def channels(text: str) -> int:
    return integer(text, 1, 4096, "a width must be a positive number of channels")


def crop(text: str) -> int:
    side = integer(text, 64, 4096, "a crop must have 64..4096 pixels a side")
    if side % 64:
        raise argparse.ArgumentTypeError(f"a crop must be a multiple of 64 pixels, not {text}")
    return side


def learning_rate(text: str) -> float:
    return number(text, 1e-9, 1, "a learning rate must be above 0 and at most 1")


def weight(text: str) -> float:
    return number(text, 0, 1e6, "a weight must be 0 or more")


def reduction(text: str) -> float:
    """A change of -P %, as a share: -0.5."""
    if text.startswith("-") and text.endswith("%"):
        return -number(text[1:-1], 0.1, 99.9, "MACs fall by 0.1 to 99.9 %, like -50%%") / 100
    raise argparse.ArgumentTypeError(f"write what MACs fall by like -50%, not {text!r}")


def picture_size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", text)
    if not found or not all(1 <= int(n) <= container.MAX_SIDE for n in found.groups()):
        raise argparse.ArgumentTypeError(f"a size must be like 1920x1080, not {text!r}")
    return int(found[1]), int(found[2])


def video(text: str) -> tuple[int, int, float]:
    size, at, rate = text.partition("@")
    if not at:
        raise argparse.ArgumentTypeError(f"a video must be like 1280x720@60, not {text!r}")
    return (*picture_size(size), frame_rate(rate))


def frame_rate(text: str) -> float:
    return number(text, 0.1, 1000, "frames per second must be a positive number")


def pictures(text: str) -> int:
    return integer(text, 1, 100, "pictures must be 1..100")


def number(text: str, low: float, high: float, rule: str) -> float:
    with suppress(ValueError):
        if low <= float(text) <= high:
            return float(text)
    raise argparse.ArgumentTypeError(f"{rule}, not {text!r}")


def integer(text: str, low: int, high: int, rule: str) -> int:
    if text.isascii() and text.isdigit() and len(text) < 20 and low <= int(text) <= high:
        return int(text)
    raise argparse.ArgumentTypeError(f"{rule}, not {text!r}")
