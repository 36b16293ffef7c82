"""A cycle model of AMD's DPUCZDX8G B4096, the convolution processor of Vitis AI.

A step is what one core does for one layer. Its array multiplies 8 pixels of a row by 16 input and
16 output channels per cycle (PG338, "Architecture of the DPUCZDX8G": pixel, input and output
channel parallelism of B4096), so sizes that these do not divide leave multipliers idle:

    conv      rows * ceil(columns / 8) * ceil(out / 16) * kh * kw * ceil(in / 16)
    first     rows * ceil(columns / 8) * ceil(out / 16) * kh * ceil(kw * in / 16)
              with channel augmentation, of the picture
    deconv    stride**2 convolutions of ceil(k / stride)**2 taps on the input's grid
    depthwise, pool
              rows * ceil(columns / 4) * ceil(channels / 16) * kh * kw * alu_cycles_per_tap
    add       rows * ceil(columns / 4) * ceil(channels / 16)

Weights are loaded for every step. Feature maps are loaded from and saved to DRAM unless they stay
in the image banks (`resident`); a pool and an addition work on what the step before is about to
save. Transfers run beside the array but for a share: a step takes

    max(array, transfers) + serial_share * min(array, transfers) + step_cycles * phases

and a call of a subgraph `call_ms` more; phases are the convolutions of a deconv, else 1. While
several cores are busy they share the DRAM. Five constants are fitted (`Constants`); their values,
and how wrong the model is for what others have measured, are in docs/results/dpu-model.json
(scripts/fit-dpu-model).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cache
from math import ceil
from typing import Any, Literal

from lichen.study.files import results

PIXELS, INPUTS, OUTPUTS = 8, 16, 16  # of B4096, per cycle
PEAK_MACS = PIXELS * INPUTS * OUTPUTS  # per cycle
ADD_PIXELS = 4  # of the ALU in its default configuration (PG338 v4.1, "DepthwiseConv-ALU")
IMAGE_BANK_BYTES = 512 * 1024  # two groups of 4 x 2048 x 8 x 8 bytes (PG338, "RAM Usage")
# Both ends of a layer share the banks, and each is held twice, so that loading can run ahead.
RESIDENT_BYTES = IMAGE_BANK_BYTES // 4

StepKind = Literal["conv", "deconv", "depthwise", "pool", "add"]


@dataclass(frozen=True)
class Step:
    """A layer as the DPU computes it. rows, columns, outputs: of its result.

    loads, saves: bytes of the feature maps that cross to DRAM, 8 bits each.
    """

    name: str
    kind: StepKind
    rows: int
    columns: int
    inputs: int
    outputs: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    loads: int = 0
    saves: int = 0
    first: bool = False  # reads the picture: channels are augmented

    @property
    def macs(self) -> int:
        """Products, as the layer itself counts them (a deconv's at its input's positions)."""
        taps = self.kernel[0] * self.kernel[1]
        positions = self.rows * self.columns
        match self.kind:
            case "conv":
                return positions * taps * self.inputs * self.outputs
            case "deconv":
                return positions * taps * self.inputs * self.outputs // self.stride**2
            case "depthwise":
                return positions * taps * self.outputs
            case _:
                return 0

    @property
    def weight_bytes(self) -> int:
        """Weights of 8 bits; a bias byte for each output."""
        taps = self.kernel[0] * self.kernel[1]
        match self.kind:
            case "conv" | "deconv":
                return (taps * self.inputs + 1) * self.outputs
            case "depthwise":
                return (taps + 1) * self.outputs
            case _:
                return 0


@dataclass(frozen=True)
class Constants:
    """What was fitted by least squares (scripts/fit-dpu-model); cycles are of one core."""

    dram_bytes_per_cycle: float
    serial_share: float  # of the shorter of array and transfers that the longer does not hide
    alu_cycles_per_tap: float  # of depthwise convolutions and pools, for 4 pixels of 16 channels
    step_cycles: float  # a layer's overhead
    call_ms: float  # a subgraph's overhead
    shared_dram: float  # of the transfer time, that every further busy core adds

    @classmethod
    def from_json(cls, values: dict[str, float]) -> Constants:
        """Read them from the object of docs/results/dpu-model.json."""
        return cls(**{field.name: float(values[field.name]) for field in fields(cls)})


@cache
def constants() -> Constants:
    """The committed ones."""
    return Constants.from_json(model_values()["constants"])


@cache
def model_values() -> dict[str, Any]:
    """Give docs/results/dpu-model.json: constants, and the rows that were fitted and checked."""
    return results("dpu-model.json")


def resident(size_bytes: int) -> bool:
    """Tell whether a feature map stays in the image banks between two layers."""
    return size_bytes <= RESIDENT_BYTES


@dataclass(frozen=True)
class Cycles:
    """Cycles of one core: of the array or the ALU, what transfers add to them, and overheads.

    weights: the part of `exposed` that the weights have in the transfers.
    """

    compute: float
    exposed: float
    weights: float
    overhead: float

    @property
    def total(self) -> float:
        return self.compute + self.exposed + self.overhead


def ideal_cycles(step: Step) -> int:
    """Cycles of the array or the ALU as the formulas above give them, without efficiency."""
    kh, kw = step.kernel
    wide = ceil(step.outputs / OUTPUTS)
    match step.kind:
        case "conv" if step.first:
            taps = kh * ceil(kw * step.inputs / INPUTS)
            return step.rows * ceil(step.columns / PIXELS) * wide * taps
        case "conv":
            taps = kh * kw * ceil(step.inputs / INPUTS)
            return step.rows * ceil(step.columns / PIXELS) * wide * taps
        case "deconv":
            s = step.stride
            taps = ceil(kh / s) * ceil(kw / s) * ceil(step.inputs / INPUTS)
            positions = ceil(step.rows / s) * ceil(step.columns / s / PIXELS)
            return s * s * positions * wide * taps
        case "depthwise" | "pool":
            return step.rows * ceil(step.columns / ADD_PIXELS) * wide * kh * kw
        case "add":
            return step.rows * ceil(step.columns / ADD_PIXELS) * wide


def cycles(step: Step, c: Constants, busy_cores: int = 1) -> Cycles:
    """Predict a step on one core while `busy_cores` share the DRAM."""
    compute = float(ideal_cycles(step))
    if step.kind in ("depthwise", "pool"):
        compute *= c.alu_cycles_per_tap
    moved = step.loads + step.saves + step.weight_bytes
    transfers = moved / c.dram_bytes_per_cycle * (1 + c.shared_dram * (busy_cores - 1))
    longer, shorter = max(compute, transfers), min(compute, transfers)
    exposed = longer + c.serial_share * shorter - compute
    weights = exposed * step.weight_bytes / moved if moved else 0.0
    phases = step.stride**2 if step.kind == "deconv" else 1
    return Cycles(compute, exposed, weights, c.step_cycles * phases)


def milliseconds(
    steps: Iterable[Step], c: Constants, clock_hz: float, calls: int = 1, busy_cores: int = 1
) -> float:
    """Predict the time of one pass on one core, in `calls` subgraphs."""
    total = sum(cycles(step, c, busy_cores).total for step in steps)
    return 1e3 * total / clock_hz + calls * c.call_ms
