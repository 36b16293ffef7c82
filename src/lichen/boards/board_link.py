"""Board link: a core on a board, by its registers, its DMA and buffers in DRAM.

What differs between PYNQ and plain Linux is how registers and buffers are reached: `Words`,
`Buffer` and `Board` here; pynq_board.py and linux_board.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lichen.boards.axi_dma import MM2S, S2MM, AxiDma, Channel, Words
from lichen.errors import DeviceError
from lichen.rtl.registers import PAGE_BYTES

TIMEOUT_S = 5.0  # far longer than any picture takes
POLL_S = 100e-6
INTERRUPT_S = 0.05  # then the status is looked at, whether an interrupt came or not


class Buffer(Protocol):
    """Memory that processor and DMA both reach. address: the DMA's. data: uint8 (n,)."""

    address: int
    data: NDArray[np.uint8]

    def for_device(self, size_bytes: int) -> None:
        """Write the processor's cache back: the DMA may now read or write the first bytes."""

    def for_cpu(self, size_bytes: int) -> None:
        """Forget the processor's cache: it may now read what the DMA wrote."""

    def close(self) -> None:
        """Give it back."""


class Board(Protocol):
    """What a kind of Linux gives of one core. name: for messages.

    interrupt: waits for that of the S2MM channel, for so many seconds at most; None: there is none.
    """

    name: str
    core: Words
    dma: Words
    interrupt: Callable[[float], None] | None

    def buffer(self, purpose: str, size_bytes: int) -> Buffer:
        """Give a buffer for "input", "output" or "delayN". Raises DeviceError."""

    def close(self) -> None:
        """Give back what the board holds."""


class BoardLink:
    """Drive a core on a board."""

    def __init__(self, board: Board) -> None:
        self.board, self.name, self.timeout_s = board, board.name, TIMEOUT_S
        self.dma = AxiDma(board.dma, interrupts=board.interrupt is not None)
        self._buffers: dict[str, Buffer] = {}
        self._started: list[Channel] = []
        self._received = np.zeros(0, np.uint8)

    def read(self, address: int) -> int:
        return self.board.core.read(address)

    def write(self, address: int, value: int) -> None:
        self.board.core.write(address, value)

    def _buffer(self, purpose: str, size_bytes: int) -> Buffer:
        """Give a buffer that is large enough, the one at hand if it is."""
        found = self._buffers.get(purpose)
        if found is None or len(found.data) < size_bytes:
            if found is not None:
                found.close()
                del self._buffers[purpose]
            found = self._buffers[purpose] = self.board.buffer(purpose, size_bytes)
        return found

    def delay_page(self, number: int, size_bytes: int) -> int:
        buffer = self._buffer(f"delay{number}", size_bytes)
        if buffer.address % PAGE_BYTES:
            raise DeviceError(
                f"{self.name}: delay {number} must begin with a page of {PAGE_BYTES} bytes, its "
                f"buffer is at {buffer.address:#x}"
            )
        buffer.for_device(size_bytes)  # nothing of the cache may be written over it later
        return buffer.address // PAGE_BYTES

    def send(self, data: NDArray[np.uint8]) -> None:
        buffer = self._buffer("input", len(data))
        buffer.data[: len(data)] = data
        buffer.for_device(len(data))
        self._start(MM2S, buffer, len(data))

    def receive(self, size_bytes: int) -> None:
        buffer = self._buffer("output", size_bytes)
        buffer.for_device(size_bytes)
        self._start(S2MM, buffer, size_bytes)

    def _start(self, channel: Channel, buffer: Buffer, size_bytes: int) -> None:
        if channel in self._started:
            raise DeviceError(f"{self.name}: a transfer is on the way already: wait or stop")
        self.dma.start(channel, buffer.address, size_bytes)
        self._started.append(channel)

    def wait(self, timeout_s: float, *, sent: bool = True, received: bool = True) -> bool:
        wanted = [MM2S] * sent + [S2MM] * received
        deadline = time.monotonic() + timeout_s
        while True:
            for channel in tuple(self._started):
                if self.dma.complete(channel):
                    self._started.remove(channel)
                    if channel is S2MM:
                        self._take()
            left = deadline - time.monotonic()
            going = any(channel in self._started for channel in wanted)
            if not going or left <= 0:
                return not going
            if self.board.interrupt is not None and S2MM in self._started:
                self.board.interrupt(min(left, INTERRUPT_S))
            else:
                time.sleep(min(left, POLL_S))

    def _take(self) -> None:
        """Copy what has come, and let the next interrupt come."""
        size = self.dma.received_bytes()
        self.dma.acknowledge()
        buffer = self._buffers["output"]
        buffer.for_cpu(size)
        self._received = np.array(buffer.data[:size])

    def received(self) -> NDArray[np.uint8]:
        return self._received

    def stop(self) -> None:
        self.dma.reset()
        self._started.clear()

    def state(self) -> str:
        return self.dma.state()

    def close(self) -> None:
        self.stop()
        for buffer in self._buffers.values():
            buffer.close()
        self._buffers.clear()
        self.board.close()
