"""Fold: how many multipliers each stage gets, and what a pipeline of them costs: closed formulas.

The budget of every stage is the same: clock / frame rate cycles per frame. `fold` gives each
convolution the cheapest folding that keeps it, so that the stages end up close to one another.

Resources. DSP48E2 and memories are counted; LUT and FF come from the widths of a stage and a few
coefficients that were fitted to synthesised stages (`scripts/bench-synth`, docs/accelerator.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from lichen.errors import ContractError
from lichen.program import ops
from lichen.rtl import layer as layers
from lichen.rtl import skew
from lichen.rtl.graph import Graph, Stage
from lichen.rtl.layer import BITS, Folding, Layer
from lichen.rtl.parts import KV260 as KV260
from lichen.rtl.parts import LIMIT as LIMIT
from lichen.rtl.parts import PARTS as PARTS
from lichen.rtl.parts import ZCU102 as ZCU102
from lichen.rtl.parts import Part as Part
from lichen.rtl.parts import Resources as Resources
from lichen.rtl.parts import require_fit as require_fit
from lichen.rtl.parts import shortfall as shortfall
from lichen.rtl.placement import Memory as Memory
from lichen.rtl.placement import Placement as Placement
from lichen.rtl.placement import chooser, lut_ram
from lichen.rtl.placement import place as place

ASSUMED_CLOCK_HZ = 300_000_000
LAG_LINES = 400  # that a core may take from the first pixel to the first byte
LAG_WEIGHT = 0.25  # of that share beside those of memory and LUTs
GAIN_BANKS = 2  # a picture's gains are loaded while the one before is coded
SPARE_DSPS = 0.06  # of a stage, beyond the fewest, where that saves memory and LUTs
SHARED_SPARE_DSPS = 0.2  # where two cores fill a part's memory and LUTs long before its DSPs
SPREAD = 0.25  # every stage's cycles are within this of the slowest one's


@dataclass(frozen=True)
class Target:
    """What a core is built for. clock_hz is assumed: nothing here closes timing.

    shared: another core has its place on the same part.
    """

    width: int
    height: int
    frames_per_second: float
    clock_hz: int = ASSUMED_CLOCK_HZ
    shared: bool = False

    @property
    def cycles(self) -> int:
        """Cycles per frame."""
        return int(self.clock_hz / self.frames_per_second)

    def units(self, reduction: int) -> tuple[int, int]:
        """Rows and columns of the coarsest grid."""
        return -(-self.height // reduction), -(-self.width // reduction)


@dataclass(frozen=True)
class StagePlan:
    """A stage with its folding and its figures. cycles: per frame; busy: of them, multiplying."""

    stage: Stage
    folding: Folding | None
    cycles: int
    busy: float
    memories: tuple[Memory, ...]
    logic: Resources  # DSP, LUT and FF; memories excepted


@dataclass(frozen=True)
class Coder:
    """The entropy coder, stripe buffers and framing of a core (`codec.coder`).

    stripe_lines: lines of the picture in a stripe. cycles: from a stripe's last symbol to its first
    byte, where a whole stripe has to be there before it is coded; else 0.
    """

    memories: tuple[Memory, ...]
    logic: Resources
    stripe_lines: int
    cycles: int


@dataclass(frozen=True)
class Plan:
    """A folded pipeline."""

    graph: Graph
    target: Target
    units: tuple[int, int]
    lanes: int
    stages: tuple[StagePlan, ...]
    skew: skew.Skew
    coder: Coder | None = None

    @property
    def reduction(self) -> int:
        """Lines of the picture per row of units."""
        return max(tensor.scale for tensor in (*self.graph.inputs, *self.graph.outputs))

    @property
    def buffers(self) -> tuple[skew.Buffer, ...]:
        """The delays of its Adds."""
        return self.skew.buffers

    @property
    def lag_lines(self) -> dict[str, float]:
        """Lines of the picture that have come in when an output's first row of units is complete.

        A stripe is one such row: `reduction` lines.
        """
        lines = self.reduction / self.graph.inputs[0].scale
        return {name: rows * lines for name, rows in self.skew.lag_rows.items()}

    @property
    def first_output_lines(self) -> float:
        """Lines that come in before anything leaves: of bytes, a stripe; of pixels, a row of units.

        With a coder: the first pixel in to the first byte out, or the reverse, at the core's pace.
        """
        lines = max(self.lag_lines.values())
        if self.coder is None:
            return lines
        more = self.coder.stripe_lines - self.reduction
        return lines + more + self.coder.cycles * self.units[0] * self.reduction / self.cycles

    @property
    def folds(self) -> dict[str, Folding]:
        return {s.stage.name: s.folding for s in self.stages if s.folding is not None}

    @property
    def cycles(self) -> int:
        """Cycles per frame: those of the slowest stage."""
        return max(stage.cycles for stage in self.stages)

    @property
    def occupancy(self) -> float:
        """The share of all products of all cycles that a frame needs."""
        work = sum(s.busy * layers.multipliers(s.folding) for s in self.stages if s.folding)
        total = sum(layers.multipliers(s.folding) for s in self.stages if s.folding)
        return work / (total * self.cycles) if total else 0.0

    @property
    def memories(self) -> tuple[Memory, ...]:
        coder = self.coder.memories if self.coder else ()
        return (*(memory for stage in self.stages for memory in stage.memories), *coder)

    @property
    def logic(self) -> Resources:
        """DSP, LUT and FF of all but the memories."""
        coder = self.coder.logic if self.coder else Resources()
        delays = Resources(lut=LUT_DELAY * len(self.buffers), ff=FF_DELAY * len(self.buffers))
        return sum((stage.logic for stage in self.stages), coder + delays)

    def place(self, part: Part) -> Placement:
        """Place its memories on a part, long delays outside where they must be."""
        return place(self.memories, part, external=True, taken=self.logic)


# LUT and FF of a convolution: what `widths` says, times these (docs/results/synthesis.json).
LUT_PER_SUM_BIT = 2.37  # accumulator and the register that hands it on
LUT_PER_COLUMN_BIT = 0.96  # the shift registers that feed the array
LUT_OF_STAGE = 630.0  # counters of loader, player and tile buffer, a requantiser
FF_OF_STAGE = 620.0
REQUANTISE_SUMS = 6  # registers of whole sums in a requantiser
LUT_ELEMENT, FF_ELEMENT = 110, 130  # per lane and operation
LUT_DELAY, FF_DELAY = 140, 320  # of a delay on the chip, its memory excepted


def fold(graph: Graph, target: Target, part: Part = ZCU102, lanes: int | None = None) -> Plan:
    """Fold every stage of a graph for a target. Raises ContractError where none keeps the budget.

    lanes: values per beat of all streams; by default the fewest that carry every tensor.
    """
    reduction = max(tensor.scale for tensor in (*graph.inputs, *graph.outputs))
    units = target.units(reduction)
    if lanes is None:
        tensors = [tensor for stage in graph.stages for tensor in (*stage.inputs, stage.output)]
        values = max(t.channels * t.scale**2 for t in tensors) * units[0] * units[1]
        lanes = next((n for n in (1, 2, 4, 8) if values <= n * target.cycles), 8)
    folds = {
        stage.name: choose(
            stage,
            units,
            target.cycles,
            lanes,
            part,
            reduction,
            spare=SHARED_SPARE_DSPS if target.shared else SPARE_DSPS,
        )
        for stage in graph.stages
        if stage.layer is not None
    }
    follows = {"g_s.symbols": "h_s.index"}
    # The skew is at its most within eight rows of the coarsest grid; the other eight follow.
    found = skew.analyse(graph, folds, (16, units[1]), follows)
    stages = tuple(
        _plan(
            stage,
            folds.get(stage.name),
            units,
            lanes,
            [b for b in found.buffers if b.stage == stage.name],
        )
        for stage in graph.stages
    )
    return Plan(graph, target, units, lanes, stages, found)


def size(stage: Stage, units: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of a convolution's input, as its layer counts them."""
    scale = stage.inputs[0].scale
    return units[0] * scale, units[1] * scale // stage.unshuffle


def choose(
    stage: Stage,
    units: tuple[int, int],
    budget: int,
    lanes: int,
    part: Part = ZCU102,
    reduction: int = 64,
    spare: float = SPARE_DSPS,
) -> Folding:
    """Give the cheapest folding of a convolution that takes at most `budget` cycles per frame.

    Cheapest: of those with the fewest DSPs, or a share of `spare` more, the one with the smallest
    share of the part's memory, LUTs and DSPs together, and of the lines that a core may lag behind:
    wide groups of coarse positions are many lines.
    """
    layer = stage.layer
    assert layer is not None
    rows, columns = size(stage, units)
    fitting: list[tuple[int, float, int, Folding]] = []
    fastest = None
    for folding in foldings(layer, columns // layer.stride[1], lanes):
        cycles = layers.frame_cycles(layer, folding, rows, columns)
        fastest = min(cycles, fastest or cycles)
        if cycles > budget:
            continue
        logic = _logic(layer, folding)
        memories = (weight_memory("", layer, folding), ring_memory("", layer, folding, columns))
        cost = (
            sum(memory.share(part) for memory in memories)
            + logic.lut / part.resources.lut
            + logic.dsp / part.resources.dsp
            + LAG_WEIGHT * _lag(stage, folding, columns, reduction)
        )
        fitting.append((logic.dsp, cost, cycles, folding))
    if fastest is None and layer.depthwise:
        raise ContractError(
            f"{stage.name}: no folding suits a {layer.kernel[0]}x{layer.kernel[1]} kernel of "
            f"{layer.macs // layer.outputs} products: its sums end before they can leave; the "
            "nearest is a Scale, or a larger kernel"
        )
    if not fitting:
        raise ContractError(
            f"{stage.name}: no folding takes at most {budget} cycles per frame; the fastest takes "
            f"{fastest}: lower the frame rate or the size, or give the layer more channels to share"
        )
    most = (1 + spare) * min(fit[0] for fit in fitting)
    return min((fit for fit in fitting if fit[0] <= most), key=lambda fit: fit[1:3])[3]


def foldings(layer: Layer, positions: int, lanes: int) -> list[Folding]:
    """List the foldings that suit a layer whose rows have this many positions."""
    words = [n for n in (4, 6, 8, 9, 12, 16) if layer.channels % n == 0] or [1]
    outputs = layer.outputs // layer.passes
    every = (
        Folding(inner, outer, pixels, word, lanes)
        for word in words
        for inner in (n for n in (1, 2, 3, 4) if word % n == 0)
        for outer in (n for n in range(1, 25) if outputs % n == 0 and n % lanes == 0)
        for pixels in range(1, min(positions + 1, 20) + 1)
    )
    return [folding for folding in every if _suits(layer, folding)]


def _suits(layer: Layer, folding: Folding) -> bool:
    try:
        layers.check(layer, folding)
    except ValueError:
        return False
    return True


def _lag(stage: Stage, folding: Folding, columns: int, reduction: int) -> float:
    """Give the time of the groups on the way, in `LAG_LINES`."""
    assert stage.layer is not None
    groups = skew.GROUPS_ON_THE_WAY * folding.pixels * stage.layer.stride[1] / columns
    return groups * stage.layer.stride[0] * reduction / stage.inputs[0].scale / LAG_LINES


def ring_memory(name: str, layer: Layer, folding: Folding, columns: int) -> Memory:
    """The line memory of a convolution."""
    width = folding.word * BITS[layer.x]
    return Memory(name, "ring", width, layers.ring_words(layer, folding, columns))


def weight_memory(name: str, layer: Layer, folding: Folding) -> Memory:
    """The weight memory of a convolution."""
    return Memory(
        name, "weights", layers.packing(folding).bits, layers.weight_words(layer, folding)
    )


def _plan(
    stage: Stage,
    folding: Folding | None,
    units: tuple[int, int],
    lanes: int,
    buffers: list[skew.Buffer],
) -> StagePlan:
    delays = tuple(Memory(stage.name, "delay", *delay_words(buffer, lanes)) for buffer in buffers)
    if folding is None:
        tensor = stage.output
        values = tensor.channels * tensor.scale**2 * units[0] * units[1]
        logic = Resources(lut=LUT_ELEMENT * lanes, ff=FF_ELEMENT * lanes)
        memories = delays
        if isinstance(stage.op, ops.Scale):
            logic = logic + Resources(dsp=lanes)
            banks = GAIN_BANKS if isinstance(stage.op.multiplier, str) else 1
            depth = banks * tensor.channels // lanes
            memories += (Memory(stage.name, "gains", 16 * lanes, depth),)
        return StagePlan(stage, None, values // lanes, 0.0, memories, logic)
    layer = stage.layer
    assert layer is not None
    rows, columns = size(stage, units)
    out_positions = rows // layer.stride[0] * (columns // layer.stride[1])
    memories = stage_memories(stage.name, layer, folding, columns)
    return StagePlan(
        stage,
        folding,
        layers.frame_cycles(layer, folding, rows, columns),
        out_positions * layer.macs / layers.multipliers(folding),
        (*memories, *delays),
        _logic(layer, folding),
    )


def stage_memories(name: str, layer: Layer, folding: Folding, columns: int) -> tuple[Memory, ...]:
    """The memories of a convolution, its patch excepted."""
    tiles = layers.tile_slots(layer, folding) * layers.drain_cycles(layer, folding)
    return (
        ring_memory(name, layer, folding, columns),
        weight_memory(name, layer, folding),
        Memory(name, "tile", folding.beat * BITS[layer.y], tiles),
        Memory(
            name,
            "parameters",
            layers.PARAMETER_BITS * folding.beat,
            layer.outputs // folding.beat,
        ),
    )


def predict(layer: Layer, folding: Folding, columns: int) -> Resources:
    """Give all that a convolution takes by itself, its memories in block RAM or LUT RAM.

    columns: of its input, at most.
    """
    memories = stage_memories("", layer, folding, columns)
    return sum((memory.resources for memory in memories), _logic(layer, folding))


def delay_words(buffer: skew.Buffer, lanes: int) -> tuple[int, int]:
    """Width and depth of the memory of a buffer."""
    bits = BITS[buffer.tensor.dtype]
    word = delay_word(buffer.tensor.channels, bits, lanes)
    return word * bits, -(-(buffer.values + skew.SPARE) // word)


def delay_word(channels: int, bits: int, lanes: int) -> int:
    """Values in a word of a delay: up to 72 bits, dividing the channels, multiple of the lanes."""
    fits = [n for n in range(lanes, 72 // bits + 1, lanes) if channels % n == 0]
    return max(fits, default=lanes)


def _logic(layer: Layer, folding: Folding) -> Resources:
    """Predict the DSP, LUT and FF of a convolution without its memories, its patch included."""
    x, lut, ff = widths(layer, folding)
    lut += LUT_PER_SUM_BIT * x["sum bits"] + LUT_PER_COLUMN_BIT * x["column bits"] + LUT_OF_STAGE
    ff += FF_OF_STAGE
    return Resources(dsp=layers.dsps(layer, folding), lut=round(lut), ff=round(ff))


def widths(layer: Layer, folding: Folding) -> tuple[dict[str, int], float, float]:
    """Give the widths that LUTs go by, and the LUTs and FFs that are counted without a coefficient.

    Counted: LUT RAM of the patch, shift registers, one LUT per bit that is zeroed at the border or
    chosen from a wide word of weights; each register of the datapath.
    """
    f, x_bits = folding, BITS[layer.x]
    sums, columns = f.outputs * f.pixels, layers.window_columns(layer, f)
    word, lane_bits = f.word * x_bits, layers.beat_channels(layer, f) * x_bits
    paired = x_bits == 8
    operands = f.pixels // 2 if paired else f.pixels  # of one channel: what waits beside lane 0
    operand_bits = 17 if paired and layer.x != "u8" else 16
    packing = layers.packing(f)
    weights = 8 * f.outputs
    # Lane i waits i cycles; from three registers in a row on, a shift register in a LUT does it.
    waits, shifts = (0, 0, 1, 3, 3)[f.lanes], (0, 0, 0, 0, 1)[f.lanes]
    x = {
        "sum bits": sums * layer.sum_bits,
        "column bits": columns * lane_bits * _column_luts(layer, f),
    }
    lut = columns * lut_ram(word, 2 * layer.kernel[0] * layer.channels // f.word)
    lut += word + shifts * operands * operand_bits + weights * max(0, f.lanes - 2)
    lut += chooser(weights * f.lanes, packing.whole + (packing.sharing > 0))
    ff = 2 * x["sum bits"] + columns * (word + lane_bits) + 2 * word
    ff += waits * operands * operand_bits + weights * (0, 1, 3, 3, 3)[f.lanes]
    ff += packing.bits  # gathered from the load bus, as are biases and shifts
    ff += 2 * weights * f.lanes * (packing.sharing > 0)  # a shared beat, and the one that counts
    ff += f.beat * (REQUANTISE_SUMS * layer.sum_bits + BITS[layer.y] + layers.PARAMETER_BITS)
    return x, lut, ff


def _column_luts(layer: Layer, folding: Folding) -> int:
    """LUTs per bit of the registers that feed the array: parts of a word, or the next column."""
    parts = folding.word // layers.beat_channels(layer, folding)
    shifted = layer.kernel[1] > 1
    inputs = parts + (parts - 1).bit_length() + 2 * shifted
    return 0 if inputs == 1 else ceil(inputs / 6)
