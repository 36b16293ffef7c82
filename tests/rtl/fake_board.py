"""A board that is not there: simulated cores behind a model of the DMA, DRAM and caches.

The fakes of `pynq` and of Linux's files stand on it. They accept what the real ones document and
raise AssertionError for everything else; without a flush or an invalidate, bytes are old ones.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lichen.boards.address_map import MAPS, SEGMENT_BYTES, CoreName
from lichen.boards.axi_dma import S2MM
from lichen.boards.linux_board import System
from lichen.rtl.registers import ADDRESS_BITS, DELAYS
from lichen.rtl.simulate_axi import AxiSimulation

PAGE = 4096
STEP_CYCLES = 200  # that pass between two looks at a register
CR, SR, ADDRESS, ADDRESS_MSB, LENGTH = 0x00, 0x04, 0x18, 0x1C, 0x28  # PG021


class Dram:
    """Memory by address; what is not allocated does not exist."""

    def __init__(self) -> None:
        self.regions: dict[int, NDArray[np.uint8]] = {}
        self.next = 0x7000_0000

    def allocate(self, size_bytes: int) -> int:
        address = self.next
        self.regions[address] = np.random.default_rng(address).integers(
            0, 256, -(-size_bytes // PAGE) * PAGE, dtype=np.uint8
        )
        self.next += len(self.regions[address]) + PAGE
        return address

    def at(self, address: int, size_bytes: int) -> NDArray[np.uint8]:
        for base, data in self.regions.items():
            if base <= address and address + size_bytes <= base + len(data):
                return data[address - base : address - base + size_bytes]
        raise AssertionError(f"nothing at {address:#x}, {size_bytes} bytes")


class DmaModel:
    """AXI DMA in direct register mode, as PG021 has it, in front of a simulated core."""

    def __init__(self, simulation: AxiSimulation, dram: Dram) -> None:
        self.simulation, self.dram = simulation, dram
        self.registers: dict[int, int] = {}
        self.fail = 0  # a status bit to set at the next transfer
        self._reset()

    def _reset(self) -> None:
        self.simulation.stop()
        self.registers = {base + SR: 1 for base in (0x00, 0x30)}  # halted
        self.busy = {0x00: False, 0x30: False}

    def read(self, offset: int) -> int:
        self._step()
        return self.registers.get(offset, 0)

    def write(self, offset: int, value: int) -> None:
        self._step()
        base, register = (0x30, offset - 0x30) if offset >= 0x30 else (0x00, offset)
        if register == CR:
            if value & 4:
                self._reset()
                return
            self.registers[offset] = value
            halted = self.registers[base + SR] & ~1
            self.registers[base + SR] = halted | (0 if value & 1 else 1)
        elif register == SR:
            self.registers[offset] &= ~(value & 0x7000)
        elif register in (ADDRESS, ADDRESS_MSB):
            self.registers[offset] = value
        elif register == LENGTH:
            self._start(base, value)
        else:
            raise AssertionError(f"the DMA has no register to write at {offset:#x}")

    def _start(self, base: int, length: int) -> None:
        assert not self.registers[base + SR] & 1, "a transfer while the channel is halted"
        assert not self.busy[base], "a transfer while the channel is busy"
        assert 0 < length < 1 << 26
        self.registers[base + LENGTH] = length
        if self.fail:
            self.registers[base + SR] |= self.fail | 1
            return
        address = self.registers[base + ADDRESS] | self.registers[base + ADDRESS_MSB] << 32
        memory = self.dram.at(address, length)
        self.registers[base + SR] &= ~2
        self.busy[base] = True
        if base:
            self.target = memory
            self.simulation.receive(length)
        else:
            self.simulation.send(memory.copy())

    def _step(self) -> None:
        """Let time pass; note what has become complete."""
        self.simulation.wait(STEP_CYCLES)
        if self.busy[0x00] and self.simulation.sent:
            self._complete(0x00)
        if self.busy[0x30]:
            found = self.simulation.received
            if found is not None:
                self.target[: len(found)] = found
                self.registers[0x30 + LENGTH] = len(found)
                self._complete(0x30)

    def _complete(self, base: int) -> None:
        self.busy[base] = False
        self.registers[base + SR] |= 0x1002  # idle, interrupt on complete

    @property
    def interrupt(self) -> bool:
        return bool(self.registers.get(0x30 + CR, 0) & self.registers[0x30 + SR] & 0x1000)


class CoreModel:
    """A core's registers at the processor's bus."""

    def __init__(self, simulation: AxiSimulation) -> None:
        self.simulation = simulation

    def read(self, offset: int) -> int:
        assert 0 <= offset < 1 << ADDRESS_BITS and offset % 4 == 0
        return self.simulation.read(offset)

    def write(self, offset: int, value: int) -> None:
        assert 0 <= offset < 1 << ADDRESS_BITS and offset % 4 == 0
        self.simulation.write(offset, value)


class FakeBoard:
    """A board with one core at its place in the address map."""

    def __init__(self, core: CoreName, simulation: AxiSimulation) -> None:
        self.map, self.dram = MAPS[core], Dram()
        self.simulation = simulation
        self.dma = DmaModel(simulation, self.dram)
        self.devices: dict[int, Any] = {
            self.map.registers: CoreModel(simulation),
            self.map.dma: self.dma,
        }
        self.buffers: list[CachedBuffer] = []

    def show(self, address: int) -> None:
        """Let the core's delays reach a buffer of DRAM."""
        self.simulation.dram(address, self.dram.regions[address])


class CachedBuffer(np.ndarray):
    """What the processor sees of DRAM: its own copy, until it is flushed or invalidated."""

    board: FakeBoard
    device_address: int
    freed: bool

    @staticmethod
    def make(board: FakeBoard, size_bytes: int) -> CachedBuffer:
        made = np.zeros(size_bytes, np.uint8).view(CachedBuffer)
        made.board, made.freed = board, False
        made.device_address = board.dram.allocate(size_bytes)
        board.show(made.device_address)
        board.buffers.append(made)
        return made

    def _memory(self) -> NDArray[np.uint8]:
        assert not self.freed
        return self.board.dram.at(self.device_address, len(self))

    def flush(self) -> None:
        self._memory()[:] = self

    def invalidate(self) -> None:
        self[:] = self._memory()

    def freebuffer(self) -> None:
        assert not self.freed, "freed twice"
        self.freed = True


class FakePynq:
    """The module pynq, as far as its documentation goes that the driver needs."""

    def __init__(self, board: FakeBoard, names: dict[str, str]) -> None:
        self.board, self.names = board, names
        self.downloads: list[str] = []

    def Overlay(self, bitfile_name: str, dtbo: str | None = None, download: bool = True) -> Any:
        assert isinstance(bitfile_name, str)
        if not bitfile_name.endswith("lichen-kv260.bit"):
            raise OSError(f"Bitstream file {bitfile_name} does not exist.")

        def load() -> None:
            self.board.simulation.power_up()
            self.downloads.append(bitfile_name)

        if download:
            load()

        cells = {
            self.names["core"]: self.board.map.registers,
            self.names["dma"]: self.board.map.dma,
        }
        ip_dict = {
            cell: {"phys_addr": address, "addr_range": SEGMENT_BYTES, "fullpath": cell}
            for cell, address in cells.items()
        }
        return SimpleNamespace(
            ip_dict=ip_dict, download=load, is_loaded=lambda: bitfile_name in self.downloads[-1:]
        )

    def MMIO(self, base_addr: int, length: int = 4, device: object = None) -> Any:
        assert length == SEGMENT_BYTES
        inner = self.board.devices[base_addr]

        class Array:
            """What a view of device memory as uint32 does."""

            def __getitem__(self, word: int) -> np.uint32:
                assert 0 <= word < length // 4
                return np.uint32(inner.read(4 * word))

            def __setitem__(self, word: int, value: np.uint32) -> None:
                assert 0 <= word < length // 4 and type(value) is np.uint32
                inner.write(4 * word, int(value))

        return SimpleNamespace(array=Array())

    def allocate(self, shape: tuple[int, ...], dtype: Any, target: object = None) -> CachedBuffer:
        assert isinstance(shape, tuple) and len(shape) == 1 and dtype is np.uint8
        if shape[0] > 1 << 24:
            raise RuntimeError("Failed to allocate memory")
        return CachedBuffer.make(self.board, shape[0])


class FakeSystem(System):
    """Linux's files: /sys/class/uio, /sys/class/u-dma-buf, /dev."""

    def __init__(self, board: FakeBoard, buffer_bytes: int, *, uio: bool = True,
                 kind: str = "u-dma-buf") -> None:  # fmt: skip
        self.board, place = board, board.map
        self.opened: list[str] = []
        self.files: dict[str, str] = {}
        self.words_of: dict[tuple[str, int], Any] = {}
        self.interrupts = 0
        if uio:
            for number, (name, address) in enumerate(
                (("axi-pmon", 0), (place.uio, place.registers), (place.dma_uio, place.dma))
            ):
                self.files[f"sys/class/uio/uio{number}/name"] = name
                self.files[f"sys/class/uio/uio{number}/maps/map0/size"] = f"{SEGMENT_BYTES:#018x}"
                self.words_of[f"dev/uio{number}", 0] = board.devices.get(address)
        for address, device in board.devices.items():
            self.words_of["dev/mem", address] = device
        self.cached: dict[str, CachedBuffer] = {}
        names = [
            place.input_buffer,
            place.output_buffer,
            *(place.delay_buffer(n) for n in range(DELAYS)),
        ]
        for name in names:
            buffer = self.cached[name] = CachedBuffer.make(board, buffer_bytes)
            folder = f"sys/class/{kind}/{name}"
            self.files |= {
                f"{folder}/phys_addr": f"{buffer.device_address:#018x}",
                f"{folder}/size": str(buffer_bytes),
                f"{folder}/sync_offset": "0", f"{folder}/sync_size": "0",
                f"{folder}/sync_direction": "0",
            }  # fmt: skip

    def text(self, path: str) -> str:
        return self.files[path]

    def names(self, path: str) -> list[str]:
        found = {f[len(path) + 1 :].split("/")[0] for f in self.files if f.startswith(f"{path}/")}
        return sorted(found)

    def set(self, path: str, value: int) -> None:
        folder, name = path.rsplit("/", 1)
        buffer = self.cached[folder.rsplit("/", 1)[1]]
        if name not in ("sync_for_cpu", "sync_for_device"):
            assert path in self.files, f"no file {path}"
            self.files[path] = str(value)
            return
        assert value == 1
        first = int(self.files[f"{folder}/sync_offset"])
        part = slice(first, first + int(self.files[f"{folder}/sync_size"]))
        direction = int(self.files[f"{folder}/sync_direction"])
        memory = buffer._memory()
        if name == "sync_for_device" and direction in (0, 1):
            memory[part] = buffer[part]
        if name == "sync_for_cpu" and direction in (0, 2):
            buffer[part] = memory[part]

    def map(self, path: str, size_bytes: int, offset: int = 0) -> NDArray[np.uint8]:
        buffer = self.cached[path.removeprefix("dev/")]
        assert size_bytes == len(buffer) and offset == 0
        self.opened.append(path)
        return buffer

    def words(self, path: str, size_bytes: int, offset: int = 0) -> Any:
        assert size_bytes == SEGMENT_BYTES
        self.opened.append(path)
        return self.words_of[path, offset]

    def interrupt(self, path: str) -> Any:
        assert (
            self.files[f"sys/class/uio/{path.removeprefix('dev/')}/name"] == self.board.map.dma_uio
        )

        def wait(timeout_s: float) -> None:
            for _ in range(50):
                self.board.dma._step()
                if self.board.dma.interrupt:
                    self.interrupts += 1
                    return

        return wait


assert S2MM.base == 0x30
