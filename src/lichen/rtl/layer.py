"""Layer and folding: what a convolution stage computes, and how many multipliers compute it."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from lichen.program.ops import DType

BITS: dict[DType, int] = {"u8": 8, "s8": 8, "s16": 16}
BIAS_BITS, SHIFT_BITS = 32, 5
PARAMETER_BITS = BIAS_BITS + SHIFT_BITS  # of an output channel
PIPELINE = 2  # cycles from the player's counters to the array: memory, then shift register


@dataclass(frozen=True)
class Layer:
    """A convolution as a stage sees it: its input is rows of columns of `channels` values.

    A PixelUnshuffle(r) before it is no work at all: r pixels of a line, channels innermost, are one
    column of r * C channels, and r lines are r rows of the kernel. A PixelShuffle(r) after it is an
    order of computing: `passes` = r, one pass over the row of columns for each line of the output.

    channels: of a column of the input. outputs: of all passes together, for one column.
    kernel, stride: (rows, columns). padding: (top, left); bottom and right follow, because the
    padding of an axis is kernel - stride in all, so that sizes divide by the stride exactly.
    sum_bits: of the signed accumulator, biases and rounding included.
    depthwise: each output looks at the channel of its own number only.
    """

    channels: int
    outputs: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    passes: int
    x: DType
    y: DType
    sum_bits: int
    depthwise: bool = False

    @property
    def macs(self) -> int:
        """Products per column of the output (of all its passes)."""
        inputs = 1 if self.depthwise else self.channels
        return inputs * self.outputs * self.kernel[0] * self.kernel[1]


@dataclass(frozen=True)
class Folding:
    """How a layer is folded: `lanes` input channels x `outputs` x `pixels` products per cycle.

    lanes: 1..4, divides `word`. outputs: divides the outputs of a pass. pixels: neighbouring
    positions of the output; even where two products share a DSP (8-bit inputs).
    word: channels in a word of the line memory and of the patch. beat: values in a beat of the
    output; divides `outputs`.

    A depthwise layer has 1 lane: a product for each of `outputs` channels, which come out of one
    word, and `pixels`.
    """

    lanes: int
    outputs: int
    pixels: int
    word: int
    beat: int = 1


def window_columns(layer: Layer, folding: Folding) -> int:
    """Columns of the input that a group of output positions looks at."""
    return (folding.pixels - 1) * layer.stride[1] + layer.kernel[1]


def tile_beats(layer: Layer, folding: Folding) -> int:
    """Cycles of one tile: `outputs` x `pixels` sums."""
    inputs = 1 if layer.depthwise else layer.channels
    return layer.kernel[0] * layer.kernel[1] * inputs // folding.lanes


def beat_channels(layer: Layer, folding: Folding) -> int:
    """Channels of the input that a beat of the array looks at."""
    return folding.outputs if layer.depthwise else folding.lanes


def tiles(layer: Layer, folding: Folding) -> int:
    """Tiles of one group in one pass."""
    return layer.outputs // layer.passes // folding.outputs


def group_cycles(layer: Layer, folding: Folding) -> int:
    """Cycles that the array spends on a group of `pixels` positions in one pass."""
    return tile_beats(layer, folding) * tiles(layer, folding)


def load_cycles(layer: Layer, folding: Folding) -> int:
    """Cycles that the window buffer takes to bring a group's columns to its patch memory."""
    words = layer.channels // folding.word
    return layer.kernel[0] * window_columns(layer, folding) * words + LOAD_OVERHEAD


@dataclass(frozen=True)
class Packing:
    """How beats of weights lie in the words of their memory, which are multiples of 9 bytes wide.

    Narrow beats: `whole` of them in a word. Wide ones: one in a word, and in the bytes that are
    left of `sharing` words in a row one beat more; 0 where nothing is left, or not enough.
    beat: in bytes.
    """

    beat: int
    whole: int
    sharing: int

    @property
    def beats(self) -> int:
        """Beats after which it repeats."""
        return self.sharing + 1 if self.sharing else self.whole

    @property
    def share(self) -> int:
        """Bytes of the shared beat in a word."""
        return self.beat // self.sharing if self.sharing else 0

    @property
    def bits(self) -> int:
        """Width of a word."""
        return 8 * (self.whole * self.beat + self.share)

    def words(self, beats: int) -> int:
        """Words of so many beats, from the beginning of a word on."""
        if not self.sharing:
            return ceil(beats / self.whole)
        return beats // self.beats * self.sharing + beats % self.beats


WORD_BYTES = 9  # of block RAM and UltraRAM
MOST_SHARING = 8


def packing(folding: Folding) -> Packing:
    """Give how the weights of a stage are packed."""
    beat = folding.lanes * folding.outputs
    left = -beat % WORD_BYTES
    if 2 * beat <= WORD_BYTES or not left:
        return Packing(beat, max(1, WORD_BYTES // beat), 0)
    ways = range(ceil(beat / left), MOST_SHARING + 1)
    return Packing(beat, 1, next((n for n in ways if beat % n == 0), 0))


def pass_words(layer: Layer, folding: Folding) -> int:
    """Words of the weight memory that a pass reads; the next one begins with a word of its own."""
    return packing(folding).words(group_cycles(layer, folding))


def weight_words(layer: Layer, folding: Folding) -> int:
    """Words of the weight memory."""
    return layer.passes * pass_words(layer, folding)


LOAD_OVERHEAD = 6  # decisions before a load, and the way through the line memory after it
SUM_LATENCY = 12  # cycles beside `lanes` from an array's last beat to the first value that it gives


def drain_cycles(layer: Layer, folding: Folding) -> int:
    """Cycles in which a group, of one pass, leaves the tile buffer."""
    return folding.pixels * layer.outputs // layer.passes // folding.beat


def group_pace(layer: Layer, folding: Folding) -> int:
    """Cycles per group: the array's, or the window buffer's, or the output's where it is more."""
    return max(
        group_cycles(layer, folding), load_cycles(layer, folding), drain_cycles(layer, folding)
    )


def tile_slots(layer: Layer, folding: Folding) -> int:
    """Groups that the tile buffer holds: as many as are on the way from their start to their end.

    A group takes its place when the array begins it, and leaves it when its last value is out.
    """
    last_tile = folding.pixels * folding.outputs // folding.beat + folding.lanes + SUM_LATENCY
    on_the_way = group_cycles(layer, folding) + last_tile + drain_cycles(layer, folding)
    return max(2, ceil(on_the_way / group_pace(layer, folding)))


def frame_cycles(layer: Layer, folding: Folding, rows: int, columns: int) -> int:
    """Cycles per frame in steady state; rows and columns are those of the layer's input."""
    groups = ceil(columns // layer.stride[1] / folding.pixels)
    return rows // layer.stride[0] * layer.passes * groups * group_pace(layer, folding)


def multipliers(folding: Folding) -> int:
    """Products per cycle."""
    return folding.lanes * folding.outputs * folding.pixels


def dsps(layer: Layer, folding: Folding) -> int:
    """DSP48E2 of the array: two 8-bit products in one, or one product with a 16-bit input."""
    return multipliers(folding) // (2 if BITS[layer.x] == 8 else 1)


def ring_words(layer: Layer, folding: Folding, columns: int) -> int:
    """Words of the line memory for inputs of up to `columns` columns, without stalling anybody.

    (kernel rows - 1) rows are read again. While a row of the output is computed, `stride` rows
    arrive and one is given back; with passes, the first one needs all of its last row at once, and
    only the last one gives back. Two groups of columns come on top.
    """
    passes = layer.passes
    rows = layer.kernel[0] - 1 + layer.stride[0] - 1 + 2 * (passes - 1) / passes
    slack = 2 * folding.pixels * layer.stride[1] + layer.kernel[1] + 2
    return (ceil(rows * columns) + slack) * (layer.channels // folding.word)


def check(layer: Layer, folding: Folding) -> None:
    """Raise ValueError where a folding does not suit a layer; the message says what would."""
    f, columns = folding, layer.outputs // layer.passes
    _require(layer.channels % f.word == 0, f"word must divide the {layer.channels} channels", f)
    _require(1 <= f.lanes <= 4 and f.word % f.lanes == 0, "lanes must be 1..4 and divide word", f)
    _require(columns % f.outputs == 0, f"outputs must divide {columns}", f)
    if layer.depthwise:
        _require(f.lanes == 1, "a depthwise layer has one lane", f)
        _require(f.word % f.outputs == 0, "outputs must divide word", f)
    _require(f.outputs % f.beat == 0, "beat must divide outputs", f)
    paired = BITS[layer.x] == 16 or f.pixels % 2 == 0
    _require(paired, "pixels must be even: two share a DSP", f)
    handed = f.pixels * f.outputs // f.beat + f.lanes + 1
    beats = tile_beats(layer, f)
    _require(handed <= beats, f"sums of a tile take {handed} cycles, more than its {beats}", f)


def _require(condition: bool, what: str, folding: Folding) -> None:
    if not condition:
        raise ValueError(f"folding: {what}; found {folding}")
