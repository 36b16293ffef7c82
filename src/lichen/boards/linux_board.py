"""Linux board: a core by UIO or /dev/mem, and buffers of u-dma-buf; without PYNQ.

The device tree overlay that `lichen build` writes (`firmware.overlay`) makes the devices:

    /dev/uioN, /sys/class/uio/uioN/name    registers of core and DMA, and the DMA's interrupt
    /dev/NAME, /sys/class/u-dma-buf/NAME   a buffer: its address, its size, its cache

Sources: Linux, Documentation/driver-api/uio-howto.rst; u-dma-buf's Readme, "Manual cache
management". Where there is no UIO device, registers are reached at their addresses by /dev/mem,
which wants root.
"""

from __future__ import annotations

import mmap
import os
import select
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lichen.boards.address_map import MAPS, SEGMENT_BYTES, CoreName
from lichen.boards.axi_dma import Words
from lichen.errors import DeviceError

TO_DEVICE, FROM_DEVICE = 1, 2  # of sync_direction
BUFFER_CLASSES = ("u-dma-buf", "udmabuf")  # since version 3, and before


class MappedWords:
    """Registers in mapped memory: each access is one of 32 bits."""

    def __init__(self, memory: NDArray[np.uint8]) -> None:
        self._words = memory.view(np.uint32)

    def read(self, offset: int) -> int:
        return int(self._words[offset >> 2])

    def write(self, offset: int, value: int) -> None:
        self._words[offset >> 2] = np.uint32(value)


class System:
    """The files by which Linux shows devices."""

    root = Path("/")

    def text(self, path: str) -> str:
        """Read a file of /sys, without the line's end."""
        return (self.root / path).read_text(encoding="ascii").strip()

    def set(self, path: str, value: int) -> None:
        """Write a number to a file of /sys."""
        (self.root / path).write_text(f"{value}", encoding="ascii")

    def names(self, path: str) -> list[str]:
        """List a folder of /sys; an absent one is empty."""
        folder = self.root / path
        return sorted(os.listdir(folder)) if folder.is_dir() else []

    def map(self, path: str, size_bytes: int, offset: int = 0) -> NDArray[np.uint8]:
        """Map a device, shared. Raises OSError."""
        # O_SYNC: of /dev/mem, not cached. A buffer is opened without, and its cache is managed.
        flags = os.O_RDWR | (os.O_SYNC if path == "dev/mem" else 0)
        descriptor = os.open(self.root / path, flags)
        try:
            memory = mmap.mmap(descriptor, size_bytes, mmap.MAP_SHARED, offset=offset)
        finally:
            os.close(descriptor)
        return np.frombuffer(memory, np.uint8)

    def words(self, path: str, size_bytes: int, offset: int = 0) -> Words:
        """Map registers."""
        return MappedWords(self.map(path, size_bytes, offset))

    def interrupt(self, path: str) -> Callable[[float], None]:
        """Give what waits for the interrupt of a UIO device."""
        descriptor = os.open(self.root / path, os.O_RDWR)

        def wait(timeout_s: float) -> None:
            os.write(descriptor, (1).to_bytes(4, "little"))  # the kernel masks it each time
            if select.select([descriptor], [], [], timeout_s)[0]:
                os.read(descriptor, 4)

        return wait


class UserBuffer:
    """A buffer of u-dma-buf, mapped with the processor's cache."""

    def __init__(self, system: System, name: str, size_bytes: int) -> None:
        kinds = [kind for kind in BUFFER_CLASSES if name in system.names(f"sys/class/{kind}")]
        if not kinds:
            raise DeviceError(
                f"there is no buffer {name}: load the module u-dma-buf and the overlay of "
                "`lichen build` (docs/boards.md)"
            )
        self._system, self._folder = system, f"sys/class/{kinds[0]}/{name}"
        have = int(system.text(f"{self._folder}/size"))
        if have < size_bytes:
            raise DeviceError(
                f"the buffer {name} has {have} bytes, {size_bytes} are needed: give it that size "
                "in the overlay"
            )
        self.address = int(system.text(f"{self._folder}/phys_addr"), 0)
        self.data = system.map(f"dev/{name}", have)

    def for_device(self, size_bytes: int) -> None:
        self._sync("device", TO_DEVICE, size_bytes)

    def for_cpu(self, size_bytes: int) -> None:
        self._sync("cpu", FROM_DEVICE, size_bytes)

    def _sync(self, owner: str, direction: int, size_bytes: int) -> None:
        values = {"sync_offset": 0, "sync_size": size_bytes, "sync_direction": direction,
                  f"sync_for_{owner}": 1}  # fmt: skip
        for name, value in values.items():
            self._system.set(f"{self._folder}/{name}", value)

    def close(self) -> None:
        """The mapping ends with its last view."""


class LinuxBoard:
    """A core whose bitfile is loaded. Raises DeviceError where a device is not there."""

    def __init__(self, core: CoreName, system: System | None = None) -> None:
        self._system = system = system or System()
        self._map = place = MAPS[core]
        self.name = f"{core} on the board"
        self.interrupt: Callable[[float], None] | None = None
        self.core = self._registers(place.uio, place.registers)
        self.dma = self._registers(place.dma_uio, place.dma)
        device = self._device(place.dma_uio)
        if device is not None:
            self.interrupt = system.interrupt(f"dev/{device}")

    def _device(self, name: str) -> str | None:
        """Find the UIO device of a name."""
        for device in self._system.names("sys/class/uio"):
            if self._system.text(f"sys/class/uio/{device}/name") == name:
                return device
        return None

    def _registers(self, name: str, address: int) -> Words:
        device = self._device(name)
        try:
            if device is None:
                return self._system.words("dev/mem", SEGMENT_BYTES, address)
            size = int(self._system.text(f"sys/class/uio/{device}/maps/map0/size"), 0)
            return self._system.words(f"dev/{device}", size)
        except OSError as error:
            path = f"/dev/{device or 'mem'}"
            raise DeviceError(
                f"{self.name}: cannot reach the registers {name} by {path}: {error.strerror}. Is "
                "the firmware loaded (xmutil or fpgautil, docs/boards.md), and may you write there?"
            ) from error

    def buffer(self, purpose: str, size_bytes: int) -> UserBuffer:
        names = {"input": self._map.input_buffer, "output": self._map.output_buffer}
        if purpose not in names:
            names[purpose] = self._map.delay_buffer(int(purpose.removeprefix("delay")))
        try:
            return UserBuffer(self._system, names[purpose], size_bytes)
        except OSError as error:
            raise DeviceError(
                f"{self.name}: cannot map the buffer {names[purpose]}: {error.strerror}"
            ) from error

    def close(self) -> None:
        """The core stays as it is: its weights are in it."""
