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
VERSION = 1

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
    Register("width_limit", 0x0C, "read", 16, "pixels: the widest picture that the core takes"),
    Register("digest_low", 0x10, "write", 32, "digest of the weights in the core, bytes 0..3"),
    Register("digest_high", 0x14, "write", 32, "bytes 4..7; the driver writes both after loading"),
    Register(
        "control", 0x18, "write", 1, "bit 0: hold the core in reset; streams in it are lost", 1
    ),
    Register("width", 0x20, "write", 16, "pixels of a line of the picture"),
    Register("height", 0x24, "write", 16, "lines of the picture"),
    Register("position", 0x28, "write", 10, "quality * 8, 0..800"),
    Register("stripe", 0x2C, "write", 11, "rows of 64 lines in a stripe, 1..1024", 1),
    Register("load", 0x30, "stream", 32, "a word of the load stream: weights, tables, gains"),
    Register("status", 0x40, "read", 32, "of the picture before: see Status bits; 0 is good"),
    Register("pictures", 0x44, "read", 32, "pictures finished since the reset"),
    Register("bad_pictures", 0x48, "read", 32, "of these, those whose status was not 0"),
    Register("cycles", 0x4C, "read", 32, "of the picture before, first beat in to last beat out"),
    Register("input_waits", 0x50, "read", 32, "cycles of these in which the input had no beat"),
    Register("output_waits", 0x54, "read", 32, "cycles in which the output was not taken"),
    Register("bytes_low", 0x58, "read", 32, "bytes of streams since the reset"),
    Register("bytes_high", 0x5C, "read", 32, "their upper 32 bits"),
)

# Bits of `status`: (lowest bit, number of bits).
STATUS_FRAMING = (0, 3)  # decoder: chunks.Framing of the picture
STATUS_Z = (4, 3)  # decoder: rans_decoder.Status of the first bad z substream
STATUS_Y = (8, 3)  # decoder: of the first bad y substream
STATUS_OVERFLOW = (12, 1)  # encoder: a stripe had more words than the core holds


def register(name: str) -> Register:
    """Find a register. Raises KeyError."""
    for entry in REGISTERS:
        if entry.name == name:
            return entry
    raise KeyError(f"no register {name!r}; there are {', '.join(r.name for r in REGISTERS)}")
