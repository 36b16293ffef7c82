"""Small models, photographs, and what Vitis AI's packages are replaced by."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lichen import model
from lichen.boards.vitis_ai.calibration import calibrate
from lichen.boards.vitis_ai.dpu import Quantized
from lichen.boards.vitis_ai.executor import Linear, Parts, parts_of
from lichen.executors import best

HERE = Path(__file__).parent
MODELS = HERE.parent / "conformance" / "vectors" / "models"
STAND_INS = HERE / "stand_ins"
sys.path.insert(0, str(STAND_INS.parent))


def photograph(height: int, width: int, seed: int) -> np.ndarray:
    """Give pixels (H, W, 3): waves, noise, black and white."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    wave = np.sin(rows / (5 + seed))[..., None] * np.cos(columns / 7)[..., None] * [90, 60, 75]
    pixels = wave + 128 + rng.normal(0, 12, (height, width, 3))
    pixels[: height // 4, : width // 4] = 0
    pixels[-(height // 4) :, -(width // 4) :] = 255
    return pixels.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for seed in range(6):
        Image.fromarray(photograph(72, 80, seed)).save(folder / f"{seed}.png")
    return folder


def tiny(name: str, linear: Linear = "arm") -> Parts:
    return parts_of(model.read(MODELS / f"{name}.safetensors"), linear)


def quantized(parts: Parts) -> dict[str, Quantized]:
    squares = [photograph(64, 64, seed) for seed in range(3)]
    return calibrate(parts, squares, best()).quantize(parts)
