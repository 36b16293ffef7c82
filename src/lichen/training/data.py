"""Training photographs: decoded once, cropped and augmented on the device that trains."""

from __future__ import annotations

import itertools
import os
import random
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lichen.errors import LichenError
from lichen.training.seeds import derived

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".avif", ".bmp", ".tif", ".tiff"}
SATURATION = 0.5, 1.4  # of recoloured crops, times that of the picture
EXPOSURE = 0.7, 1.15
WHITE_BALANCE = 0.9, 1.1  # of each channel
NAMED = 8  # pictures that a note names; it counts the others


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
    except MemoryError:
        raise
    except Exception:  # Pillow's readers raise nearly anything on damaged files
        return None
    arrays = []
    for scale in scales:
        size = round(image.width * scale), round(image.height * scale)
        if min(size) >= crop:
            small = image if scale == 1.0 else image.resize(size, Image.Resampling.LANCZOS)
            arrays.append(np.asarray(small).transpose(2, 0, 1).copy())
    return arrays


def recoloured(crop: Tensor, rng: random.Random) -> Tensor:
    """Give a crop, uint8 (3, H, W), other saturation, white balance and exposure, at random.

    Pixels stay whole numbers of 0..255, as those of any photograph.
    """
    saturation = rng.uniform(*SATURATION)
    exposure = rng.uniform(*EXPOSURE)
    gains = [exposure * rng.uniform(*WHITE_BALANCE) for _ in range(3)]
    x = crop.float()
    grey = x.mean(0, keepdim=True)
    x = torch.lerp(grey, x, saturation) * x.new_tensor(gains)[:, None, None]
    return x.round_().clamp_(0, 255).to(torch.uint8)


def _named(paths: list[Path], what: str) -> str:
    names = ", ".join(path.name for path in paths[:NAMED])
    more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
    return f"{len(paths)} {what} ({names}{more})"


class Photographs:
    """All training pictures in memory as uint8 (3, H, W), each also at smaller scales.

    `batch` gives random crops with flips and rotations, a part `colour` of them with other colours
    (see `recoloured`). Smaller scales (Lanczos) make a small set of photographs last longer and
    sharpen soft ones. Pictures that cannot be read or are smaller than a crop are left out, with a
    warning that names and counts them.
    """

    def __init__(
        self,
        paths: list[Path],
        crop: int,
        device: torch.device,
        scales: tuple[float, ...] = (1.0, 0.7, 0.5),
        seed: int = 0,
        colour: float = 0.0,
    ) -> None:
        self.crop, self.device, self.seed, self.drawn = crop, device, seed, 0
        self.colour = colour
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            loaded = list(pool.map(lambda path: _at_scales(path, scales, crop), paths))
        self.pictures = [
            torch.from_numpy(array).to(device) for arrays in loaded for array in arrays or ()
        ]
        unread = [path for path, arrays in zip(paths, loaded) if arrays is None]
        small = [path for path, arrays in zip(paths, loaded) if arrays == []]
        left_out = [_named(unread, "unreadable")] if unread else []
        left_out += [_named(small, f"smaller than {crop}x{crop}")] if small else []
        if not self.pictures:
            raise LichenError(
                f"expected pictures of at least {crop}x{crop} pixels, found none among "
                f"{len(paths)} files: {', '.join(left_out)}; use a smaller --crop or other pictures"
            )
        if left_out:
            count = len(unread) + len(small)
            warnings.warn(
                f"{count} of {len(paths)} pictures left out: {', '.join(left_out)}", stacklevel=2
            )
        # Large pictures hold more crops: choose in proportion to area.
        areas = [float(p.shape[1] * p.shape[2]) for p in self.pictures]
        self.cumulative_areas = list(itertools.accumulate(areas))

    def batch(self, count: int, step: int | None = None, first: int = 0) -> Tensor:
        """Give `count` crops as float32 (count, 3, crop, crop), pixels minus 128 over 128.

        step, first: these crops are samples first, first + 1, .. of that step, always the same for
        the seed. Without a step they are the next ones of a sequence of its own.
        """
        if step is None:
            place, first = "drawn", self.drawn
            self.drawn += count
        else:
            place = f"step {step}"
        samples: Iterable[int] = range(first, first + count)
        crops = [self._crop(random.Random(derived(self.seed, place, k))) for k in samples]
        return (torch.stack(crops).float() - 128.0) / 128.0

    def _crop(self, rng: random.Random) -> Tensor:
        picture = rng.choices(self.pictures, cum_weights=self.cumulative_areas)[0]
        top = rng.randint(0, picture.shape[1] - self.crop)
        left = rng.randint(0, picture.shape[2] - self.crop)
        crop = picture[:, top : top + self.crop, left : left + self.crop]
        if rng.random() < 0.5:
            crop = crop.flip(2)
        crop = torch.rot90(crop, rng.randrange(4), (1, 2))
        return recoloured(crop, rng) if rng.random() < self.colour else crop
