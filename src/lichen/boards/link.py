"""Link: how the driver reaches a core: its registers, and one transfer each way.

SimulationLink   the core in Verilator, cycle by cycle at its AXI ports   simulation_link.py
BoardLink        registers and buffers of a board                         board_link.py
                   with PYNQ                                              pynq_board.py
                   with UIO or /dev/mem, and u-dma-buf                    linux_board.py
RecordingLink    another link, written down                               recording.py
ReplayLink       what was written down, without a board                   recording.py
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Link(Protocol):
    """What the driver needs of a core, wherever it is.

    name: for messages. timeout_s: how long a picture may take here before something is wrong.
    """

    name: str
    timeout_s: float

    def read(self, address: int) -> int:
        """Read a register of the core at its address in bytes: 0..2**32 - 1."""

    def write(self, address: int, value: int) -> None:
        """Write a register of the core."""

    def delay_page(self, number: int, size_bytes: int) -> int:
        """Give the page of DRAM (registers.PAGE_BYTES) where delay `number` may keep its ring.

        It stays for as long as the link does. Raises DeviceError where there is not enough.
        """

    def send(self, data: NDArray[np.uint8]) -> None:
        """Start a transfer to the core: one packet. Raises DeviceError where it is too long."""

    def receive(self, size_bytes: int) -> None:
        """Start a transfer from the core: one packet of at most so many bytes."""

    def wait(self, timeout_s: float, *, sent: bool = True, received: bool = True) -> bool:
        """Wait until what was started is complete; False where it is not after `timeout_s`.

        sent, received: which of the two transfers. Raises DeviceError where the DMA met an error.
        """

    def received(self) -> NDArray[np.uint8]:
        """Give the bytes of the last complete transfer from the core."""

    def stop(self) -> None:
        """Give up transfers that are on the way: as a reset of the DMA does."""

    def state(self) -> str:
        """Say how the transfers stand, for the message of an error."""

    def close(self) -> None:
        """Give back what the link holds."""
