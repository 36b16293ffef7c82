"""AXI DMA: the registers of Xilinx's DMA in direct register mode (PG021, "Register Space").

    MM2S  from memory to the core's input stream      0x00: control, status, address, length
    S2MM  from the core's output stream to memory     0x30: the same

A transfer begins when its length is written. S2MM's length then reads as the bytes that came.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

from lichen.boards.address_map import DMA_LENGTH_BITS
from lichen.errors import DeviceError

CONTROL, STATUS, ADDRESS, ADDRESS_HIGH, LENGTH = 0x00, 0x04, 0x18, 0x1C, 0x28
RUN, RESET, INTERRUPT_ENABLE = 1 << 0, 1 << 2, 1 << 12  # of the control register
HALTED, IDLE, COMPLETE = 1 << 0, 1 << 1, 1 << 12  # of the status register
ERRORS = {1 << 4: "internal error", 1 << 5: "slave error", 1 << 6: "decode error"}
RESET_TIMEOUT_S = 0.1


class Words(Protocol):
    """Memory-mapped registers of 32 bits, by their offset in bytes."""

    def read(self, offset: int) -> int: ...

    def write(self, offset: int, value: int) -> None: ...


@dataclass(frozen=True)
class Channel:
    name: str
    base: int


MM2S, S2MM = Channel("MM2S", 0x00), Channel("S2MM", 0x30)


class AxiDma:
    """Drive one AXI DMA, both channels. interrupts: S2MM's completion raises its interrupt."""

    def __init__(self, words: Words, *, interrupts: bool = False) -> None:
        self.words, self.interrupts = words, interrupts
        self.reset()

    def reset(self) -> None:
        """Drop what is on the way and start both channels. Raises DeviceError."""
        self._write(MM2S, CONTROL, RESET)  # resets both
        deadline = time.monotonic() + RESET_TIMEOUT_S
        while any(self._read(channel, CONTROL) & RESET for channel in (MM2S, S2MM)):
            if time.monotonic() > deadline:
                raise DeviceError(f"the DMA does not leave its reset: {self.state()}")
        self._write(MM2S, CONTROL, RUN)
        self._write(S2MM, CONTROL, RUN | INTERRUPT_ENABLE * self.interrupts)

    def start(self, channel: Channel, address: int, size_bytes: int) -> None:
        """Start a transfer. Raises DeviceError where it is too long."""
        if not 0 < size_bytes < 1 << DMA_LENGTH_BITS:
            raise DeviceError(
                f"a transfer must have 1..{(1 << DMA_LENGTH_BITS) - 1} bytes, not {size_bytes}: "
                "code the picture in parts"
            )
        self._write(channel, STATUS, COMPLETE)  # clears it
        self._write(channel, ADDRESS, address & 0xFFFF_FFFF)
        self._write(channel, ADDRESS_HIGH, address >> 32)
        self._write(channel, LENGTH, size_bytes)

    def complete(self, channel: Channel) -> bool:
        """Whether the transfer is. Raises DeviceError where the channel met an error."""
        status = self._read(channel, STATUS)
        problems = [text for bit, text in ERRORS.items() if status & bit]
        if problems:
            text = f"the DMA met a {', '.join(problems)} ({channel.name})"
            raise DeviceError(f"{text}: {self.state()}")
        return bool(status & COMPLETE)

    def received_bytes(self) -> int:
        """Count the bytes of the last transfer from the core."""
        return self._read(S2MM, LENGTH) & (1 << DMA_LENGTH_BITS) - 1

    def acknowledge(self) -> None:
        """Take S2MM's interrupt back; its status then no longer says complete."""
        self._write(S2MM, STATUS, COMPLETE)

    def state(self) -> str:
        """Say what both channels' registers hold."""
        found = [
            f"{channel.name} control {self._read(channel, CONTROL):#x} status "
            f"{self._read(channel, STATUS):#x} length {self._read(channel, LENGTH):#x}"
            for channel in (MM2S, S2MM)
        ]
        return f"DMA: {', '.join(found)}"

    def _read(self, channel: Channel, register: int) -> int:
        return self.words.read(channel.base + register)

    def _write(self, channel: Channel, register: int, value: int) -> None:
        self.words.write(channel.base + register, value)
