"""Budget: what a model costs on a board, by closed formulas, and what the board has.

A pipeline of layers (docs/accelerator.md) computes two 8-bit products per DSP48E2 and cycle, or one
with a 16-bit input, at an assumed clock; its multipliers are busy nine cycles in ten. Weights and
the lines that convolutions read again are in block and UltraRAM. Of each resource a core takes 85 %
at most. The encoder and the decoder are two cores: each must fit a board of its own.

The formulas are those of `rtl.fold` and `rtl.layer` without their rounding to whole blocks, whole
groups of channels and whole tiles: `fit` therefore looks at the whole plan too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lichen.errors import LichenError
from lichen.models.channels import Channels, Counts, Layer
from lichen.models.complexity import DECODER, ENCODER, Part
from lichen.models.gdn import GDN
from lichen.models.layers import ConvTranspose2d
from lichen.rtl import fold

BUSY = 0.9  # the share of cycles in which multipliers work
BRAM36_BITS, URAM_BITS = 36 * 1024, 72 * 4096
REDUCTION = 64  # pictures are padded to a multiple of this
Core = Literal["encoder", "decoder"]
CORES: Mapping[Core, tuple[Part, ...]] = {"encoder": ENCODER, "decoder": DECODER}


@dataclass(frozen=True)
class Budget:
    """A part, and the video that it shall code."""

    part: fold.Part
    target: fold.Target

    @property
    def pixels(self) -> int:
        """Pixels of a frame, padded."""
        rows, columns = self.target.units(REDUCTION)
        return rows * columns * REDUCTION**2

    @property
    def products(self) -> float:
        """8-bit products per pixel of picture that the multipliers have time for."""
        per_second = 2 * fold.LIMIT * self.part.resources.dsp * self.target.clock_hz * BUSY
        return per_second / (self.pixels * self.target.frames_per_second)

    @property
    def memory_bits(self) -> float:
        """Bits of on-chip memory that a core may take."""
        have = self.part.resources
        return fold.LIMIT * (have.bram36 * BRAM36_BITS + have.uram * URAM_BITS)

    @property
    def video(self) -> str:
        t = self.target
        return f"{t.width}x{t.height}@{t.frames_per_second:g}"


def budget(board: str, video: tuple[int, int, float]) -> Budget:
    """Give the budget of a board for a video (width, height, frames per second).

    Raises LichenError for a board that is not known.
    """
    if board not in fold.PARTS:
        raise LichenError(f"no board is called {board!r}; there are {', '.join(fold.PARTS)}")
    return Budget(fold.PARTS[board], fold.Target(*video))


def _phases(layer: Layer) -> tuple[int, int]:
    """Side of the kernel as the array computes it, and outputs for each channel.

    A transposed convolution of stride s is a convolution of s * s phases: `program.rewrite`.
    """
    if layer.kind is not ConvTranspose2d:
        return layer.kernel, 1
    padding, s = layer.kernel // 2, layer.stride
    return (layer.kernel - 1 - padding) // s + (s - 1 + padding) // s + 1, s * s


def array_products(channels: Channels, layer: Layer, counts: Counts) -> float:
    """8-bit products per pixel of picture; one with a 16-bit input takes the time of two."""
    kernel, phases = _phases(layer)
    density = layer.density[0 if layer.kind is ConvTranspose2d else 1]
    pairs = channels.width(layer.inputs, counts) * channels.width(layer.outputs, counts)
    wide = 2 if layer.bits == 16 or layer.kind is GDN else 1  # a GDN multiplies squares
    return pairs * phases * kernel**2 * density * wide


def memory_bits(channels: Channels, layer: Layer, counts: Counts, columns: int) -> float:
    """Bits of a layer's weights and lines, for pictures of so many columns."""
    kernel, phases = _phases(layer)
    inputs, outputs = (channels.width(c, counts) for c in (layer.inputs, layer.outputs))
    weights = 8 * kernel**2 * inputs * outputs * phases
    if layer.kind is GDN:
        return weights
    transposed = layer.kind is ConvTranspose2d
    high, stride = kernel * layer.unshuffle, 1 if transposed else layer.stride * layer.unshuffle
    passes = layer.stride if transposed else layer.shuffle
    # as `rtl.layer.ring_words`: rows that are read again, and those that arrive meanwhile
    rows = high - 1 + stride - 1 + 2 * (passes - 1) / passes
    width = columns * layer.density[0] ** 0.5
    return weights + rows * width * inputs / layer.unshuffle * layer.bits


@dataclass(frozen=True)
class Needs:
    """What a core takes: products per pixel of picture, bits of memory."""

    products: float
    memory_bits: float

    def frames_per_second(self, within: Budget) -> float:
        """Frames per second that the multipliers reach."""
        return within.target.frames_per_second * within.products / self.products

    def limit(self, within: Budget) -> str:
        """Name the resource of which the larger share of what may be used is taken."""
        shares = {
            "multipliers": self.products / within.products,
            "on-chip memory": self.memory_bits / within.memory_bits,
        }
        return max(shares, key=shares.__getitem__)

    def fit(self, within: Budget) -> bool:
        return self.products <= within.products and self.memory_bits <= within.memory_bits


def needs(channels: Channels, counts: Counts, within: Budget) -> dict[Core, Needs]:
    """Give what the cores of a model take where its groups have these counts."""
    columns = within.target.units(REDUCTION)[1] * REDUCTION
    found: dict[Core, Needs] = {}
    for core, parts in CORES.items():
        layers = [layer for layer in channels.layers if layer.part in parts]
        found[core] = Needs(
            sum(array_products(channels, layer, counts) for layer in layers),
            sum(memory_bits(channels, layer, counts, columns) for layer in layers),
        )
    return found
