"""Simulation link: a core in Verilator, cycle by cycle at its AXI ports, as on a board."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lichen.errors import DeviceError
from lichen.rtl.registers import PAGE_BYTES
from lichen.rtl.simulate_axi import AxiSimulation

DRAM_BASE = 0x1000_0000  # where the simulated board has its delays
POLL_CYCLES = 20  # that pass between two reads of a register: a microsecond's worth is 300
PATIENCE_PICTURES = 6  # of the largest size: a timeout


class SimulationLink:
    """Drive a simulated core. Time is that of the core's clock: `clock_hz` cycles a second."""

    def __init__(self, simulation: AxiSimulation, clock_hz: int) -> None:
        self.simulation, self.clock_hz = simulation, clock_hz
        top = simulation.top
        self.name = f"simulation of the {'encoder' if top.encodes else 'decoder'} for {top.board}"
        self.timeout_s = PATIENCE_PICTURES * top.core.plan.cycles / clock_hz
        self._next_page = DRAM_BASE // PAGE_BYTES
        self._pages: dict[int, int] = {}
        self._sending = self._receiving = False

    def read(self, address: int) -> int:
        self.simulation.wait(POLL_CYCLES)
        return self.simulation.read(address)

    def write(self, address: int, value: int) -> None:
        self.simulation.write(address, value)

    def delay_page(self, number: int, size_bytes: int) -> int:
        if number not in self._pages:
            pages = -(-size_bytes // PAGE_BYTES)
            self._pages[number] = self._next_page
            memory = np.zeros(pages * PAGE_BYTES, np.uint8)
            self.simulation.dram(self._next_page * PAGE_BYTES, memory)
            self._next_page += pages
        return self._pages[number]

    def send(self, data: NDArray[np.uint8]) -> None:
        self.simulation.send(data)
        self._sending = True

    def receive(self, size_bytes: int) -> None:
        self.simulation.receive(size_bytes)
        self._receiving = True

    def wait(self, timeout_s: float, *, sent: bool = True, received: bool = True) -> bool:
        cycles = max(1, round(timeout_s * self.clock_hz))
        sending, receiving = self._sending and sent, self._receiving and received
        if not sending and not receiving:
            return True
        done = self.simulation.wait(cycles, input=sending, output=receiving)
        if done:
            self._sending &= not sending
            self._receiving &= not receiving
        return done

    def received(self) -> NDArray[np.uint8]:
        found = self.simulation.received
        if found is None:
            raise DeviceError("nothing was received: wait for the transfer first")
        return found

    def stop(self) -> None:
        self.simulation.stop()
        self._sending = self._receiving = False

    def state(self) -> str:
        to_core, from_core = self.simulation.beats
        return f"DMA: {to_core} beats sent, {from_core} received, {self.simulation.cycles} cycles"

    def close(self) -> None:
        self.stop()
