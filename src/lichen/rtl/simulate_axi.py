"""Simulate a top: its AXI ports at cycle level, with DMA and DRAM as the board has them.

Each channel of a bus is a stream of the driver in C++ (simulate.cpp): a DMA's transfer is an array
of beats, DRAM is a memory whose answers come some cycles later.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from amaranth.back import verilog
from numpy.typing import NDArray

from lichen.errors import DeviceError
from lichen.rtl.axi import OKAY
from lichen.rtl.ports import LITE_BITS, STREAM_BYTES, Pin, core_pins
from lichen.rtl.simulate import Port, Running, Wires
from lichen.rtl.top import Top

DRAM_LATENCY = 120  # cycles of 300 MHz from a request to its answer: some 400 ns under load
REPLY = 1000  # cycles in which AXI4-Lite must have answered
CHANNELS = ("aw", "w", "b", "ar", "r")
DATA, KEEP, LAST = 0, 1, 2  # words of a beat of AXI4-Stream


@dataclass(frozen=True)
class Waits:
    """Of a stream: its beats, cycles in which a beat waited to be taken, and cycles without one."""

    beats: int
    waits: int
    starved: int


class AxiSimulation:
    """A running model of a top. Time passes in cycles, and only while a method runs."""

    def __init__(self, top: Top, name: str, *, optimise: int = 1) -> None:
        self.top = top
        self.cycles = 0  # since the power came on
        pins = core_pins(len(top.delays))
        ports = axi_ports(pins)
        text = verilog.convert(top, name=name, emit_src=False)
        wires = Wires("aclk", "aresetn", active_low=True)
        self.model = Running(text, name, ports, wires=wires, optimise=optimise)
        for number in range(len(top.delays)):
            names = [f"m_axi_delay{number}_{channel}" for channel in CHANNELS]
            self.model.memory(names, DRAM_LATENCY)
        index = self.model.index
        self._lite = {channel: index(f"s_axi_{channel}") for channel in CHANNELS}
        self._input, self._output = index("s_axis"), index("m_axis")
        self._received = np.zeros((0, 3), np.uint32)
        self.model.reset()
        self.model.begin()

    def power_up(self) -> None:
        """Hold aresetn low: all registers are as after configuration."""
        self.stop()
        self.model.reset()

    def dram(self, base: int, data: NDArray[np.uint8]) -> None:
        """Let delays reach an array as DRAM from this address on."""
        self.model.region(base, data)

    def chances(self, **chances: float) -> None:
        """Let streams offer or take a beat in a cycle by chance: s_axis=0.5."""
        for name, chance in chances.items():
            self.model.chance(name, chance)

    def read(self, address: int) -> int:
        """Read a register. Raises DeviceError where the answer is not OKAY."""
        answer = np.zeros((1, 2), np.uint32)
        self.model.feed(self._lite["ar"], np.array([[address, 0]], np.uint32))
        self.model.feed(self._lite["r"], answer)
        self._reply(("ar", "r"), "read", address)
        self._check(int(answer[0, 1]), "read", address)
        return int(answer[0, 0])

    def write(self, address: int, value: int) -> None:
        """Write a register. Raises DeviceError where the answer is not OKAY."""
        answer = np.zeros((1, 1), np.uint32)
        self.model.feed(self._lite["aw"], np.array([[address, 0]], np.uint32))
        every = (1 << LITE_BITS // 8) - 1
        self.model.feed(self._lite["w"], np.array([[value, every]], np.uint32))
        self.model.feed(self._lite["b"], answer)
        self._reply(("aw", "w", "b"), "write", address)
        self._check(int(answer[0, 0]), "write", address)

    def _reply(self, channels: tuple[str, ...], what: str, address: int) -> None:
        if self._advance([self._lite[channel] for channel in channels], REPLY):
            raise DeviceError(f"simulation: no reply to a {what} at {address:#x}: {REPLY} cycles")

    @staticmethod
    def _check(answer: int, what: str, address: int) -> None:
        if answer != OKAY:
            raise DeviceError(f"simulation: a {what} at {address:#x} is answered by {answer}")

    def send(self, data: NDArray[np.uint8]) -> None:
        """Start a transfer to the core, as the DMA's MM2S channel does: a packet of all bytes."""
        size = STREAM_BYTES
        beats = np.zeros((-(-len(data) // size), 3), np.uint32)
        padded = np.zeros(len(beats) * size, np.uint8)
        padded[: len(data)] = data
        beats[:, DATA] = padded.view("<u4")
        beats[:, KEEP] = (1 << size) - 1
        beats[-1, KEEP] >>= len(padded) - len(data)
        beats[-1, LAST] = 1
        self.model.feed(self._input, beats)

    def receive(self, size_bytes: int) -> None:
        """Start a transfer from the core, as the DMA's S2MM channel does: until tlast or full."""
        self._received = np.zeros((-(-size_bytes // STREAM_BYTES), 3), np.uint32)
        self.model.feed(self._output, self._received, last=LAST)

    def stop(self) -> None:
        """Drop both transfers, as the DMA's reset does."""
        self.model.feed(self._input, np.zeros((0, 3), np.uint32))
        self._received = np.zeros((0, 3), np.uint32)
        self.model.feed(self._output, self._received)

    @property
    def sent(self) -> bool:
        """Whether the transfer to the core is complete."""
        return self.model.done(self._input)[1]

    @property
    def beats(self) -> tuple[int, int]:
        """Beats of both transfers that have moved: to the core and from it."""
        return self.model.done(self._input)[0], self.model.done(self._output)[0]

    @property
    def received(self) -> NDArray[np.uint8] | None:
        """The bytes of a complete transfer from the core, or None while it is on the way."""
        beats, complete = self.model.done(self._output)
        if not complete:
            return None
        found = self._received[:beats]
        keep = np.unpackbits(found[:, KEEP].astype(np.uint8)[:, None], axis=1, bitorder="little")
        data = np.ascontiguousarray(found[:, DATA]).view(np.uint8).reshape(-1, STREAM_BYTES)
        return data[keep[:, :STREAM_BYTES].astype(bool)]

    def wait(self, cycles: int, *, input: bool = False, output: bool = False) -> bool:
        """Let time pass until the named transfers are complete (True), or so many cycles."""
        watched = [self._input] * input + [self._output] * output
        return self._advance(watched, cycles) == 0

    def _advance(self, watched: list[int], cycles: int) -> int:
        end, passed = self.model.advance(watched, cycles, 1 << 62)
        self.cycles += passed
        return end

    def begin(self, seed: int = 1) -> None:
        """Begin `waits` anew, and random choices from a seed."""
        self.model.begin(seed)

    def waits(self) -> dict[str, Waits]:
        """Give the waits of each stream since `begin`."""
        stats = self.model.stats()
        return {
            port.name: Waits(int(row[0]), int(row[3]), int(row[4]))
            for port, row in zip(self.model.ports, stats)
            if not port.name.startswith("s_axi_")
        }


def axi_ports(pins: tuple[Pin, ...]) -> list[Port]:
    """Group pins into channels: each has a valid, a ready, and fields."""
    named = {pin.name: pin for pin in pins}
    ports = []
    for pin in pins:
        if not pin.name.endswith("valid"):
            continue
        prefix = pin.name.removesuffix("valid")  # ends in "_t" or in the channel's letters
        fields = tuple(
            (other.name, other.bits)
            for other in pins
            if other.name.startswith(prefix)
            and other.flow == pin.flow
            and not other.name.endswith(("valid", "ready"))
        )
        assert f"{prefix}ready" in named
        name = prefix.removesuffix("_t")
        ports.append(Port(name, fields, pin.name, f"{prefix}ready", pin.flow == "in"))
    return ports
