"""PYNQ board: registers and buffers of a core by pynq.Overlay, pynq.MMIO and pynq.allocate.

`pynq` is imported only here, and only when a board is opened.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lichen.boards.address_map import MAPS, CoreName
from lichen.errors import DeviceError


class PynqBuffer:
    """A buffer of pynq.allocate, with the processor's cache in between."""

    def __init__(self, pynq: Any, size_bytes: int) -> None:
        self._buffer = pynq.allocate(shape=(size_bytes,), dtype=np.uint8)
        self.address = int(self._buffer.device_address)
        self.data: NDArray[np.uint8] = self._buffer

    def for_device(self, size_bytes: int) -> None:
        self._buffer.flush()

    def for_cpu(self, size_bytes: int) -> None:
        self._buffer.invalidate()

    def close(self) -> None:
        self._buffer.freebuffer()


class PynqWords:
    """Registers behind pynq.MMIO, by its array: `read` has had other arguments in every version."""

    def __init__(self, mmio: Any) -> None:
        self._words = mmio.array

    def read(self, offset: int) -> int:
        return int(self._words[offset >> 2])

    def write(self, offset: int, value: int) -> None:
        self._words[offset >> 2] = np.uint32(value)


class PynqBoard:
    """A core of an overlay, which is loaded unless it is the one that is there.

    Loading it anew would lose the weights, and stop the other core. Raises DeviceError where PYNQ
    or the core is not there.
    """

    interrupt = None  # PYNQ's interrupts are coroutines; a picture takes some milliseconds

    def __init__(self, bitfile: Path, core: CoreName) -> None:
        try:
            import pynq
        except ImportError as error:
            raise DeviceError(
                "PYNQ is not here: install it (docs/boards.md), or give --device with firmware "
                "loaded by xmutil or fpgautil"
            ) from error
        self._pynq = pynq
        self.name = f"{core} on the board (PYNQ)"
        try:
            self.overlay = pynq.Overlay(str(bitfile), download=False)
            if not self.overlay.is_loaded():
                self.overlay.download()
        except Exception as error:  # PYNQ raises what its parts raise
            raise DeviceError(f"PYNQ cannot load {bitfile}: {error}") from error
        place = MAPS[core]
        self.core, self.dma = (PynqWords(self._mmio(cell)) for cell in (place.cell, place.dma_cell))

    def _mmio(self, cell: str) -> Any:
        entry = self.overlay.ip_dict.get(cell)
        if entry is None:
            found = ", ".join(sorted(self.overlay.ip_dict)) or "nothing"
            raise DeviceError(f"the overlay has no {cell}; it has {found}")
        return self._pynq.MMIO(int(entry["phys_addr"]), int(entry["addr_range"]))

    def buffer(self, purpose: str, size_bytes: int) -> PynqBuffer:
        try:
            return PynqBuffer(self._pynq, size_bytes)
        except (MemoryError, RuntimeError) as error:
            raise DeviceError(
                f"no {size_bytes} bytes of contiguous memory for the {purpose}: {error}; more "
                "comes with a larger cma= on the kernel's command line"
            ) from error

    def close(self) -> None:
        """The overlay stays: its weights are in it."""
