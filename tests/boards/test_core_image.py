"""Files of a core's weights: damage is said, whatever reads them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lichen.boards import core_image
from lichen.boards.core_image import CoreImage
from lichen.errors import DeviceError


def test_damaged_files(tmp_path: Path) -> None:
    words = np.random.default_rng(0).integers(0, 9, 200).astype(np.uint32)
    levels, tables = (0,) * 51, (((3, b"\1\0\0\0" * 5),),)
    image = CoreImage("encoder", 1, "m", bytes(8), 64, words, ((1, "gain"),), 4, tables, levels, ())
    path = tmp_path / f"x{core_image.SUFFIX}"
    image.write(path)
    data = path.read_bytes()
    damaged = [data[:size] for size in range(0, len(data), 7)]
    damaged += [data[:k] + bytes([data[k] ^ 0x20]) + data[k + 1 :] for k in range(len(data))]
    refused = 0
    for changed in damaged:
        path.write_bytes(changed)
        try:
            found = core_image.read(path)
        except DeviceError:
            refused += 1
        else:  # a date, or the like
            assert np.array_equal(found.words, words) and replace(found, words=words) == image
    assert refused > len(damaged) // 2
    with pytest.raises(FileNotFoundError):
        core_image.read(tmp_path / "missing")
