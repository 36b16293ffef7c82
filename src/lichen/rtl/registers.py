"""The register map of the cores: the one place where it is written down.

`axi.Registers` builds the hardware from it, the boards' driver works by it. Plain Python:
no Amaranth here. Registers are 32 bits; what is not listed answers with an error (SLVERR).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

WORD_BYTES = 4
ADDRESS_BITS = 8  # of the whole map, in bytes

# A word that only this map begins with, and the version of its meaning.
MAGIC = 0x4C49_4348  # "LICH"
VERSION = 2

CORES = {"encoder": 1, "decoder": 2}  # values of `core`
BOARDS = {"kv260": 1, "zcu102": 2}  # values of `board`

# Bits of `control`.
RESET = 1  # the core is in reset: what is in it is lost, and beats that come are dropped
LOAD = 2  # beats of the input stream are words of the load stream

DELAYS = 8  # the most delays that a core may keep in DRAM
PAGE_BYTES = 4096  # unit of their addresses

Access = Literal["read", "write", "stream"]


@dataclass(frozen=True)
class Register:
    """A register.

    address: in bytes. access: `read`, the core gives it; `write`, the driver sets it and may read
    it back; `stream`, each word written goes on as a beat, and the write ends when it is taken.
    bits: those above read as 0. reset: of a `write` register.
    """

    name: str
    address: int
    access: Access
    bits: int
    meaning: str
    reset: int = 0


REGISTERS = (
    Register("magic", 0x00, "read", 32, "MAGIC: whether a core is there at all"),
    Register("version", 0x04, "read", 32, "VERSION of this map"),
    Register("core", 0x08, "read", 2, "1 encoder, 2 decoder"),
    Register("board", 0x0C, "read", 8, "the board that it was folded for, see BOARDS"),
    Register(
        "layout",
        0x10,
        "read",
        32,
        "hash of its stages, memories and constants: all that `load` cannot change",
    ),
    Register("width_limit", 0x14, "read", 16, "pixels: the widest picture that the core takes"),
    Register("height_limit", 0x18, "read", 16, "lines: the highest one"),
    Register("stripe_limit", 0x1C, "read", 11, "rows of 64 lines in the highest stripe"),
    Register("control", 0x20, "write", 2, "bits RESET and LOAD", RESET),
    Register("width", 0x24, "write", 16, "pixels of a line of the picture"),
    Register("height", 0x28, "write", 16, "lines of the picture"),
    Register("stripe", 0x2C, "write", 11, "rows of 64 lines in a stripe, 1..1024", 1),
    Register("stripes", 0x30, "write", 16, "stripes of the picture", 1),
    Register(
        "position", 0x34, "write", 10, "quality * 8, 0..800; its gains and z's tables are loaded"
    ),
    Register("digest_low", 0x38, "write", 32, "digest of the weights in the core, bytes 0..3"),
    Register("digest_high", 0x3C, "write", 32, "bytes 4..7; the driver writes both after loading"),
    Register("load", 0x40, "stream", 32, "a word of the load stream: weights, tables, gains"),
    Register("loaded", 0x44, "read", 32, "words of the load stream taken since power-up"),
    Register("status", 0x50, "read", 16, "of the picture before: see STATUS; 0 is good"),
    Register("pictures", 0x54, "read", 32, "pictures finished since the reset"),
    Register("bad_pictures", 0x58, "read", 32, "of these, those whose status was not 0"),
    Register("stream_bytes", 0x5C, "read", 32, "bytes of the stream of the picture before"),
    Register("picture_cycles", 0x60, "read", 32, "of it, from its first beat in to its last out"),
    Register("latency_cycles", 0x64, "read", 32, "of it, from its first beat in to its first out"),
    Register("period_cycles", 0x68, "read", 32, "from the end of the picture before that to its"),
    Register("input_waits", 0x6C, "read", 32, "cycles in which a beat waited to be taken"),
    Register("input_starved", 0x70, "read", 32, "cycles in which the core waited for a beat"),
    Register("output_waits", 0x74, "read", 32, "cycles in which a beat waited to leave"),
    Register("output_starved", 0x78, "read", 32, "cycles in which the board waited for a beat"),
    Register("state", 0x7C, "read", 16, "what it does now: see STATE"),
    *(
        Register(f"delay_{n}", 0x80 + 4 * n, "write", 32, f"page of DRAM where delay {n} begins")
        for n in range(DELAYS)
    ),
)

# Fields of `status`: (lowest bit, number of bits).
STATUS = {
    "framing": (0, 3),  # decoder: chunks.Framing of the picture
    "z": (4, 3),  # decoder: rans_decoder.Status of the first bad z substream
    "y": (8, 3),  # decoder: of the first bad y substream
    "overflow": (12, 1),  # encoder: a stripe had more words than the core holds
    "memory": (13, 1),  # a delay in DRAM was answered by an error
}

# Fields of `state`.
STATE = {
    "input_valid": (0, 1),
    "input_ready": (1, 1),
    "output_valid": (2, 1),
    "output_ready": (3, 1),
    "begun": (4, 4),  # pictures of which a beat has come in, modulo 16
    "ended": (8, 4),  # pictures that are finished, modulo 16
    "busy": (12, 1),  # a delay still has transfers on the way, in reset too
}


def register(name: str) -> Register:
    """Find a register. Raises KeyError."""
    for entry in REGISTERS:
        if entry.name == name:
            return entry
    raise KeyError(f"no register {name!r}; there are {', '.join(r.name for r in REGISTERS)}")


def fields(layout: dict[str, tuple[int, int]], value: int) -> dict[str, int]:
    """Split a value into the fields of STATUS or STATE."""
    return {name: value >> low & (1 << bits) - 1 for name, (low, bits) in layout.items()}
