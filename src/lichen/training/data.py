"""Training photographs: decoded once, cropped and augmented on the device that trains."""

from __future__ import annotations

import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lichen.errors import LichenError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".avif", ".bmp", ".tif", ".tiff"}


def list_images(folder: Path) -> list[Path]:
    """List the image files of a folder, sorted by name; an error if there is none."""
    if not folder.is_dir():
        raise LichenError(f"expected a folder of pictures, found no folder at {folder}")
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    if not paths:
        raise LichenError(
            f"expected pictures ({', '.join(sorted(SUFFIXES))}) in {folder}, found none"
        )
    return paths


def load_rgb(path: Path) -> np.ndarray:
    """Read a picture as uint8 (H, W, 3)."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _at_scales(path: Path, scales: tuple[float, ...], crop: int) -> list[np.ndarray] | None:
    """Read one picture at each scale as uint8 (3, H, W); None where it cannot be read."""
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except OSError:
        return None
    arrays = []
    for scale in scales:
        size = round(image.width * scale), round(image.height * scale)
        if min(size) >= crop:
            small = image if scale == 1.0 else image.resize(size, Image.Resampling.LANCZOS)
            arrays.append(np.asarray(small).transpose(2, 0, 1).copy())
    return arrays


class Photographs:
    """All training pictures in memory as uint8 (3, H, W), each also at smaller scales.

    `batch` gives random crops with flips and rotations. Smaller scales (Lanczos) make a small set
    of photographs last longer and sharpen soft ones.
    """

    def __init__(
        self,
        paths: list[Path],
        crop: int,
        device: torch.device,
        scales: tuple[float, ...] = (1.0, 0.7, 0.5),
        seed: int = 0,
    ) -> None:
        self.crop, self.device = crop, device
        self.random = random.Random(seed)
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            loaded = list(pool.map(lambda path: _at_scales(path, scales, crop), paths))
        skipped = sum(arrays is None for arrays in loaded)
        self.pictures = [
            torch.from_numpy(array).to(device) for arrays in loaded for array in arrays or ()
        ]
        if not self.pictures:
            raise LichenError(
                f"expected pictures of at least {crop}x{crop} pixels, found none among "
                f"{len(paths)} files ({skipped} unreadable); use a smaller --crop"
            )
        # Large pictures hold more crops: choose in proportion to area.
        self.weights = [float(p.shape[1] * p.shape[2]) for p in self.pictures]

    def batch(self, size: int) -> Tensor:
        """Give `size` crops as float32 (size, 3, crop, crop), pixels minus 128 over 128."""
        crops = []
        for picture in self.random.choices(self.pictures, self.weights, k=size):
            top = self.random.randint(0, picture.shape[1] - self.crop)
            left = self.random.randint(0, picture.shape[2] - self.crop)
            crop = picture[:, top : top + self.crop, left : left + self.crop]
            if self.random.random() < 0.5:
                crop = crop.flip(2)
            crops.append(torch.rot90(crop, self.random.randrange(4), (1, 2)))
        return (torch.stack(crops).float() - 128.0) / 128.0
