"""Calibration: what the networks read for real photographs, as the host gives it: integers.

Crops of the photographs are coded by the integer codec at qualities from low to high; on the way
the feeds of each network are noted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lichen import codec
from lichen.boards.vitis_ai.calibrate import quantize
from lichen.boards.vitis_ai.dpu import Quantized
from lichen.boards.vitis_ai.executor import Parts, prepare
from lichen.boards.vitis_ai.network import float32
from lichen.errors import ImageError, LichenError
from lichen.executors import NO_VECTORS, Executor
from lichen.files import UsageError, read, read_picture
from lichen.model import POSITIONS
from lichen.program import Program

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".avif", ".bmp", ".tif", ".tiff"}
MAX_PIXELS = 2**28
QUALITIES = (0.1, 0.3, 0.5, 0.7, 0.85, 1.0)  # of the range
TEST_PICTURE = re.compile(r"kodim\d\d", re.IGNORECASE)
Pixels = NDArray[np.uint8]


@dataclass
class Calibration:
    """Integers by network and feed, each int8 (N, C, H, W) as a list, and their exponents."""

    values: dict[str, dict[str, list[NDArray[np.int8]]]] = field(default_factory=dict)
    exponents: dict[str, dict[str, int]] = field(default_factory=dict)

    def real(self, network: str) -> list[dict[str, NDArray[np.float32]]]:
        """Give the real numbers of a network's feeds, by picture."""
        feeds, exponents = self.values[network], self.exponents[network]
        count = len(next(iter(feeds.values())))
        return [
            {name: float32(x[k] * 2.0 ** -exponents[name]) for name, x in feeds.items()}
            for k in range(count)
        ]

    def quantize(self, parts: Parts) -> dict[str, Quantized]:
        """Quantise all networks on this."""
        return {
            name: quantize(network, self.real(name)) for name, network in parts.networks.items()
        }


def photographs(folder: Path) -> list[Path]:
    """List the pictures of a folder. Raises UsageError for none, or for test pictures."""
    if not folder.is_dir():
        raise UsageError(f"expected a folder of photographs, found none at {folder}")
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    if not found:
        raise UsageError(f"expected photographs in {folder}, found none; they calibrate the DPU")
    tests = [p.name for p in found if TEST_PICTURE.match(p.stem)]
    if tests:
        raise UsageError(
            f"{folder} holds {tests[0]}, a test picture of Kodak; calibrate with other pictures, "
            "or what is measured on it means nothing"
        )
    return found


def crops(paths: Sequence[Path], count: int, side: int, seed: int = 0) -> list[Pixels]:
    """Cut at most `count` squares (side, side, 3) out of photographs, spread over them.

    Pictures that are smaller, or cannot be read, are passed over. Raises UsageError for none.
    """
    generator = np.random.default_rng(seed)
    found: list[Pixels] = []
    for round_ in range(max(1, -(-count // len(paths)))):
        step = max(1, len(paths) // max(1, count - len(found))) if round_ == 0 else 1
        for path in paths[::step]:
            if len(found) == count:
                return found
            try:
                pixels = read_picture(read(str(path)), path.name, MAX_PIXELS).rgb
            except (ImageError, OSError):
                continue
            if min(pixels.shape[:2]) >= side:
                y, x = (int(generator.integers(n - side + 1)) for n in pixels.shape[:2])
                found.append(np.ascontiguousarray(pixels[y : y + side, x : x + side]))
    if not found:
        raise UsageError(
            f"none of {len(paths)} photographs can be read and has {side} pixels a side; give "
            "larger ones, or a smaller --crop"
        )
    return found


def calibrate(parts: Parts, pictures: Sequence[Pixels], host: Executor) -> Calibration:
    """Code pictures and note what the networks read. Raises LichenError."""
    recorder = _Recorder(parts, host)
    model = parts.model
    for number, pixels in enumerate(pictures):
        position = round(POSITIONS * QUALITIES[number % len(QUALITIES)])
        analysis = codec.analyse(model, recorder, pixels)
        coded = codec.encode(model, host, analysis, position)
        codec.synthesise(model, recorder, coded.latents, position, analysis.width, analysis.height)
    return recorder.found


class _Recorder:
    """The host's executor, and a note of what the DPU would be given."""

    def __init__(self, parts: Parts, host: Executor) -> None:
        self.parts, self.host, self.found = parts, host, Calibration()
        self.name = host.name

    def run(
        self,
        program: Program,
        inputs: Mapping[str, NDArray[Any]],
        vectors: Mapping[str, NDArray[Any]] = NO_VECTORS,
    ) -> dict[str, NDArray[Any]]:
        part = self.parts.by_name.get(program.name)
        if part is not None:
            prepared = prepare(part, self.host, inputs, vectors)
            for network in part.networks:
                for feed in network.feeds:
                    x, exponent = prepared.feeds[feed.name]
                    if x.min() < -128 or x.max() > 127:
                        raise LichenError(f"{feed.name} does not fit in 8 bits")
                    lists = self.found.values.setdefault(network.name, {})
                    lists.setdefault(feed.name, []).append(x.astype(np.int8))
                    exponents = self.found.exponents.setdefault(network.name, {})
                    exponents[feed.name] = exponent
        return self.host.run(program, inputs, vectors)
