"""Fold: how many multipliers each stage gets, and what a pipeline of them costs: closed formulas.

The budget of every stage is the same: clock / frame rate cycles per frame. `fold` gives each
convolution the cheapest folding that keeps it, so that the stages end up close to one another.

Resources. DSP48E2 and memories are counted; LUT and FF come from the widths of a stage and a few
coefficients that were fitted to synthesised stages (`scripts/bench-synth`, docs/accelerator.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil

from lichen.errors import ContractError
from lichen.program import ops
from lichen.rtl import layer as layers
from lichen.rtl import skew
from lichen.rtl.graph import Graph, Stage
from lichen.rtl.layer import BITS, Folding, Layer
from lichen.rtl.leaf import LUT_RAM_BITS

ULTRA_WORDS = 4096  # of 72 bits
LIMIT = 0.85  # of each resource that a core may take
ASSUMED_CLOCK_HZ = 300_000_000
LAG_LINES = 400  # that a core may take from the first pixel to the first byte
LAG_WEIGHT = 0.25  # of that share beside those of memory and LUTs
PIXELS_PER_UNIT = 64
SPREAD = 0.25  # every stage's cycles are within this of the slowest one's


@dataclass(frozen=True)
class Resources:
    """What a stage takes or a part has. Memories in whole blocks; LUT RAM counts as LUT."""

    dsp: int = 0
    bram36: float = 0.0
    uram: int = 0
    lut: int = 0
    ff: int = 0

    def __add__(self, other: Resources) -> Resources:
        return Resources(
            self.dsp + other.dsp, self.bram36 + other.bram36, self.uram + other.uram,
            self.lut + other.lut, self.ff + other.ff,
        )  # fmt: skip


@dataclass(frozen=True)
class Part:
    """A programmable device. `board` is the name on the command line."""

    board: str
    name: str
    resources: Resources


KV260 = Part("kv260", "XCK26", Resources(1248, 144, 64, 117_120, 234_240))
ZCU102 = Part("zcu102", "XCZU9EG", Resources(2520, 912, 0, 274_080, 548_160))
PARTS = {part.board: part for part in (KV260, ZCU102)}


@dataclass(frozen=True)
class Target:
    """What a core is built for. clock_hz is assumed: nothing here closes timing."""

    width: int
    height: int
    frames_per_second: float
    clock_hz: int = ASSUMED_CLOCK_HZ

    @property
    def cycles(self) -> int:
        """Cycles per frame."""
        return int(self.clock_hz / self.frames_per_second)

    def units(self, reduction: int) -> tuple[int, int]:
        """Rows and columns of the coarsest grid."""
        return -(-self.height // reduction), -(-self.width // reduction)


@dataclass(frozen=True)
class Memory:
    """A memory as blocks see it: words of `width` bits; `read_only` by the datapath: weights."""

    stage: str
    role: str  # "ring", "weights", "delay", "tile", "parameters", "gains"
    width: int
    depth: int

    @property
    def bits(self) -> int:
        return self.width * self.depth

    @property
    def bram36(self) -> float:
        """Block RAMs, in halves: 512 x 72, 1K x 36, 2K x 18, 4K x 9 (simple dual port)."""
        return 0.0 if self.distributed else self._halves[0] / 2

    @property
    def distributed(self) -> bool:
        """Whether it is LUT RAM, as `leaf.Memory` decides where nothing else is said."""
        return self.bits <= LUT_RAM_BITS

    @property
    def _halves(self) -> tuple[int, int]:
        """Half block RAMs, and how many of them follow each other in depth."""
        return min(
            (ceil(self.width / width) * ceil(self.depth / depth), ceil(self.depth / depth))
            for width, depth in ((36, 512), (18, 1024), (9, 2048), (4, 4096), (2, 8192))
        )

    @property
    def lut(self) -> int:
        """LUTs: those of LUT RAM, or those that choose between block RAMs in depth."""
        if self.distributed:
            return lut_ram(self.width, self.depth)
        return _choice(self.width, self._halves[1])

    @property
    def uram(self) -> int:
        """UltraRAMs of 4K x 72."""
        return ceil(self.width / 72) * ceil(self.depth / ULTRA_WORDS)

    @property
    def split(self) -> tuple[Memory, Memory]:
        """Its whole UltraRAMs, and what is left for block RAM; either may have no words."""
        low = self.depth // ULTRA_WORDS * ULTRA_WORDS
        return replace(self, depth=low), replace(self, depth=self.depth - low)

    def share(self, part: Part) -> float:
        """The share of a part's memory that it takes, wherever it is cheapest."""
        have = part.resources
        shares = [self.bram36 / have.bram36]
        if have.uram:
            whole, rest = self.split
            shares.append(self.uram / have.uram)
            shares.append(whole.uram / have.uram + rest.bram36 / have.bram36)
        return min(shares)


def lut_ram(width: int, depth: int) -> int:
    """LUTs of a LUT RAM: eight hold 32 words of 14 bits or 64 of 7, behind one read port."""
    if depth <= 32:
        return 8 * ceil(width / 14)
    banks = ceil(depth / 64)
    return 8 * ceil(width / 7) * banks + _choice(width, banks)


def _choice(width: int, ways: int) -> int:
    """LUTs that choose one of so many words: a LUT chooses one of four bits."""
    return 0 if ways == 1 else width * ceil(ways / 4)


@dataclass(frozen=True)
class StagePlan:
    """A stage with its folding and its figures. cycles: per frame; busy: of them, multiplying."""

    stage: Stage
    folding: Folding | None
    cycles: int
    busy: float
    memories: tuple[Memory, ...]
    logic: Resources  # DSP, LUT and FF


@dataclass(frozen=True)
class Plan:
    """A folded pipeline."""

    graph: Graph
    target: Target
    units: tuple[int, int]
    lanes: int
    stages: tuple[StagePlan, ...]
    skew: skew.Skew

    @property
    def buffers(self) -> tuple[skew.Buffer, ...]:
        """The delays of its Adds."""
        return self.skew.buffers

    @property
    def lag_lines(self) -> dict[str, float]:
        """Lines of the picture that have come in when an output's first 64 lines are complete."""
        source = self.graph.inputs[0].scale
        pixels = max(tensor.scale for tensor in (*self.graph.inputs, *self.graph.outputs))
        return {name: rows * pixels / source for name, rows in self.skew.lag_rows.items()}

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
        return tuple(memory for stage in self.stages for memory in stage.memories)

    @property
    def logic(self) -> Resources:
        return sum((stage.logic for stage in self.stages), Resources())


# LUT and FF of a convolution: what `widths` says, times these (docs/results/synthesis.json).
LUT_PER_SUM_BIT = 2.37  # accumulator and the register that hands it on
LUT_PER_COLUMN_BIT = 0.96  # the shift registers that feed the array
LUT_OF_STAGE = 619.0  # counters of loader, player and tile buffer, a requantiser
FF_OF_STAGE = 543.0
REQUANTISE_SUMS = 6  # registers of whole sums in a requantiser
LUT_ELEMENT, FF_ELEMENT = 110, 130  # per lane and operation


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
        stage.name: choose(stage, units, target.cycles, lanes, part)
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
    stage: Stage, units: tuple[int, int], budget: int, lanes: int, part: Part = ZCU102
) -> Folding:
    """Give the cheapest folding of a convolution that takes at most `budget` cycles per frame.

    Cheapest: fewest DSPs, then the smallest share of the part's memory and LUTs together, and of
    the lines that a core may lag behind: wide groups of coarse positions are many lines.
    """
    layer = stage.layer
    assert layer is not None
    rows, columns = size(stage, units)
    best: tuple[tuple[int, float, int], Folding] | None = None
    fastest = None
    for folding in foldings(layer, columns // layer.stride[1], lanes):
        cycles = layers.frame_cycles(layer, folding, rows, columns)
        fastest = min(cycles, fastest or cycles)
        if cycles > budget:
            continue
        cost = (
            layers.dsps(layer, folding),
            weight_memory("", layer, folding).share(part)
            + ring_memory("", layer, folding, columns).share(part)
            + _logic(layer, folding).lut / part.resources.lut
            + LAG_WEIGHT * _lag(stage, folding, columns),
            cycles,
        )
        if best is None or cost < best[0]:
            best = (cost, folding)
    if best is None:
        raise ContractError(
            f"{stage.name}: no folding takes at most {budget} cycles per frame; the fastest takes "
            f"{fastest}: lower the frame rate or the size, or give the layer more channels to share"
        )
    return best[1]


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


def _lag(stage: Stage, folding: Folding, columns: int) -> float:
    """Give the time of the groups on the way, in `LAG_LINES`."""
    assert stage.layer is not None
    groups = skew.GROUPS_ON_THE_WAY * folding.pixels * stage.layer.stride[1] / columns
    return groups * stage.layer.stride[0] * PIXELS_PER_UNIT / stage.inputs[0].scale / LAG_LINES


def ring_memory(name: str, layer: Layer, folding: Folding, columns: int) -> Memory:
    """The line memory of a convolution."""
    width = folding.word * BITS[layer.x]
    return Memory(name, "ring", width, layers.ring_words(layer, folding, columns))


def weight_memory(name: str, layer: Layer, folding: Folding) -> Memory:
    """The weight memory of a convolution."""
    width = 8 * folding.lanes * folding.outputs * layers.weight_pack(folding)
    return Memory(name, "weights", width, layers.weight_words(layer, folding))


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
            memories += (Memory(stage.name, "gains", 16 * lanes, tensor.channels // lanes),)
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
        _logic(layer, folding) + Resources(lut=sum(memory.lut for memory in memories)),
    )


def stage_memories(name: str, layer: Layer, folding: Folding, columns: int) -> tuple[Memory, ...]:
    """The memories of a convolution, its patch excepted."""
    half = folding.pixels * layer.outputs // layer.passes // folding.beat
    return (
        ring_memory(name, layer, folding, columns),
        weight_memory(name, layer, folding),
        Memory(name, "tile", folding.beat * BITS[layer.y], 2 * half),
        Memory(name, "parameters", 37 * folding.beat, layer.outputs // folding.beat),
    )


def predict(layer: Layer, folding: Folding, columns: int) -> Resources:
    """Give all that a convolution takes by itself, its memories in block RAM or LUT RAM.

    columns: of its input, at most.
    """
    memories = stage_memories("", layer, folding, columns)
    return _logic(layer, folding) + Resources(
        bram36=sum(memory.bram36 for memory in memories),
        lut=sum(memory.lut for memory in memories),
    )


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
    word, lane_bits = f.word * x_bits, f.lanes * x_bits
    paired = x_bits == 8
    operands = f.pixels // 2 if paired else f.pixels
    operand_bits = 17 if paired and layer.x != "u8" else 16
    pack = layers.weight_pack(f)
    weights = 8 * f.outputs
    # Lane i waits i cycles; from three registers in a row on, a shift register in a LUT does it.
    waits, shifts = (0, 0, 1, 3, 3)[f.lanes], (0, 0, 0, 0, 1)[f.lanes]
    x = {
        "sum bits": sums * layer.sum_bits,
        "column bits": columns * lane_bits * _column_luts(layer, f),
    }
    lut = columns * lut_ram(word, 2 * layer.kernel[0] * layer.channels // f.word)
    lut += word + shifts * operands * operand_bits + weights * max(0, f.lanes - 2)
    lut += _choice(weights * f.lanes, pack)
    ff = 2 * x["sum bits"] + columns * (word + lane_bits) + 2 * word
    ff += waits * operands * operand_bits + weights * (0, 1, 3, 3, 3)[f.lanes]
    ff += weights * f.lanes * pack  # gathered from the load bus, as are biases and shifts
    ff += f.beat * (REQUANTISE_SUMS * layer.sum_bits + BITS[layer.y] + 37)
    return x, lut, ff


def _column_luts(layer: Layer, folding: Folding) -> int:
    """LUTs per bit of the registers that feed the array: parts of a word, or the next column."""
    parts, shifted = folding.word // folding.lanes, layer.kernel[1] > 1
    inputs = parts + (parts - 1).bit_length() + 2 * shifted
    return 0 if inputs == 1 else ceil(inputs / 6)


@dataclass(frozen=True)
class Placement:
    """Where the memories of a plan go.

    split: in UltraRAM as far as it is full, the rest in block RAM. external: delays that the board
    keeps in its DRAM.
    """

    block: tuple[Memory, ...]
    ultra: tuple[Memory, ...]
    split: tuple[Memory, ...]
    external: tuple[Memory, ...]

    @property
    def resources(self) -> Resources:
        """Block RAMs and UltraRAMs."""
        parts = [memory.split for memory in self.split]
        block = [*self.block, *(rest for _, rest in parts)]
        ultra = [*self.ultra, *(whole for whole, _ in parts)]
        return Resources(
            bram36=sum(memory.bram36 for memory in block),
            uram=sum(memory.uram for memory in ultra),
        )


def place(
    memories: tuple[Memory, ...], part: Part, external: bool = False, taken: Resources = Resources()
) -> Placement:
    """Put each memory where it wastes least. taken: what the rest of the core takes of the part.

    With `external`, delays leave the chip, the largest first, until the rest fits.
    """
    outside: list[Memory] = []
    while True:
        inside = [memory for memory in memories if memory not in outside]
        left = int(LIMIT * part.resources.uram) - taken.uram
        placement = _place(inside, part, tuple(outside), left)
        fits = not shortfall(placement.resources + taken, part)
        delays = [memory for memory in inside if memory.role == "delay"]
        if fits or not external or not delays:
            return placement
        outside.append(max(delays, key=lambda memory: memory.bits))


def _place(memories: list[Memory], part: Part, outside: tuple[Memory, ...], left: int) -> Placement:
    """Give UltraRAM, `left` blocks of it, to whom it saves most block RAM per block."""
    ways = []  # (block RAM saved per UltraRAM, memory, whether split)
    for memory in memories:
        if part.resources.uram and memory.bram36 >= 2:
            ways.append((memory.bram36 / memory.uram, memory, False))
            whole, rest = memory.split
            if whole.depth and rest.depth:
                ways.append(((memory.bram36 - rest.bram36) / whole.uram, memory, True))
    chosen: dict[int, bool] = {}
    for _, memory, split in sorted(ways, key=lambda way: way[0], reverse=True):
        count = memory.split[0].uram if split else memory.uram
        if id(memory) not in chosen and count <= left:
            chosen[id(memory)] = split
            left -= count
    return Placement(
        tuple(memory for memory in memories if id(memory) not in chosen),
        tuple(memory for memory in memories if chosen.get(id(memory)) is False),
        tuple(memory for memory in memories if chosen.get(id(memory)) is True),
        outside,
    )


def require_fit(total: Resources, part: Part) -> None:
    """Raise ContractError naming each resource of which more than LIMIT of the part is taken."""
    over = shortfall(total, part)
    if over:
        text = "; ".join(
            f"{name}: {used:g} of {limit:g} allowed, {used - limit:g} too many"
            for name, (used, limit) in over.items()
        )
        raise ContractError(f"the folding does not fit {part.name} ({part.board}): {text}")


def shortfall(total: Resources, part: Part) -> Mapping[str, tuple[float, float]]:
    """Give what is taken and what is allowed, for each resource that does not suffice."""
    found = {}
    for name in ("dsp", "bram36", "uram", "lut", "ff"):
        used, limit = float(getattr(total, name)), LIMIT * float(getattr(part.resources, name))
        if used > limit:
            found[name] = (used, int(limit * 2) / 2)
    return found
