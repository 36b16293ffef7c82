"""The SystemVerilog leaves: where their text lies, and their instances in Amaranth."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Literal

from amaranth.hdl import Cat, ClockSignal, Const, Instance, Module, ResetSignal, Signal

FOLDER = Path(__file__).parent
SOURCES = tuple(FOLDER / name for name in ("memory.sv", "mac_array.sv", "mac_chain.sv"))
LOAD_BITS = 32
LUT_RAM_BITS = 2048  # a memory of no more than these is LUT RAM where nobody says otherwise
ULTRA_WORDS, BLOCK_WORDS = 4096, 512  # of an UltraRAM, and of a block RAM at its widest
LUT_RAM_WORDS = 1024  # at most, behind UltraRAM or block RAM


@dataclass(frozen=True)
class Home:
    """Where a memory lies: its first `ultra` words in UltraRAM, the next `block` in block RAM.

    The rest is LUT RAM. Where something follows, `ultra` is a multiple of ULTRA_WORDS, and fewer
    than those follow; `ultra + block` is a multiple of BLOCK_WORDS or LUT_RAM_WORDS, and no more
    than those follow.
    """

    ultra: int
    block: int


LUT_RAM = Home(0, 0)


class Memory:
    """A memory of `depth` words with a write port and a read port, memory.sv; never initialised.

    The signals are its ports. home: None is decided here, and not by a tool, so that `fold` can
    count what becomes of it: LUT RAM for up to LUT_RAM_BITS, else block RAM. Reading takes
    `latency` (1 or 2) cycles in which `read_enable` is high, and one read per enabled cycle.
    """

    def __init__(
        self, width: int, depth: int, *, home: Home | None = None, latency: int = 1
    ) -> None:
        if home is None:
            home = Home(0, 0 if width * depth <= LUT_RAM_BITS else depth)
        _check(home, depth)
        self.width, self.depth, self.latency, self.home = width, depth, latency, home
        bits = max(1, (depth - 1).bit_length())
        self.write_enable = Signal()
        self.write_address = Signal(bits)
        self.write_data = Signal(width)
        self.read_enable = Signal()
        self.read_address = Signal(bits)
        self.read_data = Signal(width)

    def instance(self) -> Instance:
        """Give the instance; add it to the module's submodules."""
        ports = {
            f"{way}_{name}": getattr(self, name)
            for way, name in (
                ("i", "write_enable"), ("i", "write_address"), ("i", "write_data"),
                ("i", "read_enable"), ("i", "read_address"), ("o", "read_data"),
            )
        }  # fmt: skip
        return Instance(
            "lichen_memory",
            p_WIDTH=self.width,
            p_DEPTH=self.depth,
            p_LATENCY=self.latency,
            p_ULTRA=self.home.ultra,
            p_BLOCK=self.home.block,
            i_clk=ClockSignal(),
            **ports,
        )


def _check(home: Home, depth: int) -> None:
    """Raise ValueError where memory.sv could not address a home."""
    end = home.ultra + home.block
    ultra = home.ultra % ULTRA_WORDS == 0 and depth - home.ultra < ULTRA_WORDS
    block = any(end % words == 0 and depth - end <= words for words in (BLOCK_WORDS, LUT_RAM_WORDS))
    if end > depth or not (home.ultra in (0, depth) or ultra) or not (end in (0, depth) or block):
        raise ValueError(
            f"{home} does not suit {depth} words: what follows UltraRAM must begin at a multiple "
            f"of {ULTRA_WORDS} and be shorter, LUT RAM behind others at one of {BLOCK_WORDS} (or "
            f"{LUT_RAM_WORDS}) and not be longer"
        )


class LoadBus:
    """What fills memories at run time: `data` goes to the next place of memory number `select`.

    strobe: data is valid. restart: it is the first word of that memory. There is no ready: every
    memory takes a word in every cycle. `load.py` drives it.
    """

    def __init__(self) -> None:
        self.strobe = Signal(name="load_strobe")
        self.restart = Signal(name="load_restart")
        self.select = Signal(8, name="load_select")
        self.data = Signal(LOAD_BITS, name="load_data")


def fill(m: Module, bus: LoadBus, number: int, memory: Memory, name: str) -> None:
    """Write a memory's words, each ceil(width / 32) words of the bus, lowest bits first.

    Takes one word of the bus per cycle, and writes three cycles after the last one of a word.
    """
    parts = ceil(memory.width / LOAD_BITS)
    strobe, restart = Signal(name=f"{name}_strobe"), Signal(name=f"{name}_restart")
    data = Signal(LOAD_BITS, name=f"{name}_data")
    # One register on the way, for the bus reaches the whole chip.
    m.d.sync += [strobe.eq(bus.strobe & (bus.select == number)), restart.eq(bus.restart)]
    m.d.sync += data.eq(bus.data)
    word = Signal(parts * LOAD_BITS, name=f"{name}_word")
    part = Signal(range(max(2, parts)), name=f"{name}_part")
    address = Signal(range(memory.depth), name=f"{name}_address")
    write = Signal(name=f"{name}_write")
    at = Signal.like(part, name=f"{name}_at")
    m.d.comb += at.eq(part)
    with m.If(restart):
        m.d.comb += at.eq(0)
    m.d.sync += write.eq(strobe & (at == parts - 1))
    with m.If(write):
        m.d.sync += address.eq(address + 1)
    with m.If(strobe):
        m.d.sync += [
            word.eq(Cat(word[LOAD_BITS:], data)),
            part.eq(at + 1),
        ]
        with m.If(at == parts - 1):
            m.d.sync += part.eq(0)
        with m.If(restart):
            m.d.sync += address.eq(0)
    m.d.comb += [
        memory.write_enable.eq(write),
        memory.write_address.eq(address),
        memory.write_data.eq(word[: memory.width]),
    ]


class MacArray:
    """The array of mac_array.sv; the signals are its ports."""

    def __init__(
        self,
        *,
        lanes: int,
        outputs: int,
        pixels: int,
        x_bits: int,
        x_signed: bool,
        sum_bits: int,
        shift: int,
        face: Literal["plain", "packed"],
        depthwise: bool = False,
    ) -> None:
        self.parameters = {
            "LANES": lanes, "OUTPUTS": outputs, "PIXELS": pixels, "X_BITS": x_bits,
            "X_SIGNED": Const(int(x_signed), 1), "SUM_BITS": sum_bits, "SHIFT": shift,
            "FACE": face, "DEPTHWISE": Const(int(depthwise), 1),
        }  # fmt: skip
        self.valid, self.first, self.last = Signal(), Signal(), Signal()
        self.x = Signal(pixels * (outputs if depthwise else lanes) * x_bits)
        self.w = Signal(outputs * lanes * 8)
        self.next, self.done = Signal(), Signal()
        self.head = Signal(shift * sum_bits)

    def instance(self) -> Instance:
        """Give the instance; add it to the module's submodules."""
        ports = {f"i_{n}": getattr(self, n) for n in ("valid", "first", "last", "x", "w", "next")}
        ports |= {f"o_{name}": getattr(self, name) for name in ("done", "head")}
        parameters = {f"p_{name}": value for name, value in self.parameters.items()}
        clock = {"i_clk": ClockSignal(), "i_rst": ResetSignal()}
        return Instance("lichen_mac_array", **parameters, **clock, **ports)
