"""What our own core would take: a pipeline with one hardware stage for each layer (`lichen.rtl`).

A model that lowers to the contract and whose operations all have hardware is folded as `lichen
synth` folds it: the figures are those of the plan. Of any other the same formulas give the least
it would take: two 8-bit products per DSP and cycle, one for 16-bit inputs, weights and lines on the
chip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lichen.errors import ContractError
from lichen.model import Model
from lichen.rtl import fold, report, trial
from lichen.rtl import layer as rtl_layers
from lichen.study import costs
from lichen.study.boards import BRAM_BYTES, URAM_BYTES, Board
from lichen.study.layers import HOST, Layer
from lichen.study.result import (
    Direction,
    PipelineResult,
    ResourceUse,
    StagePlanResult,
    Video,
)

RESOURCES = ("dsp", "bram36", "uram", "lut", "ff")
# Kinds of layers that have stages, or merge with one; see `rtl.graph`.
STAGES = {"conv", "deconv", "depthwise", "add", "scale", "offset", "pixel_shuffle",
          "pixel_unshuffle", "pad", "clamp", "relu"}  # fmt: skip
NEAREST = {
    "gdn": "a ReLU (output type u8)",
    "concat": "an Add of two convolutions, one for each input",
    "slice": "a convolution with the wanted outputs only",
    "linear": "a 1x1 convolution",
    "leaky_relu": "a ReLU (output type u8)",
    "abs": "a prior with means, which needs none",
    "matmul": "a gate of convolutions",
    "softmax": "a gate of convolutions",
    "gelu": "a ReLU (output type u8)",
    "sigmoid": "a ReLU (output type u8)",
    "layer_norm": "none: its mean goes into the weights by training without it",
    "grouped": "a dense or a depthwise convolution",
}


def missing(layers: Sequence[Layer], parts: Sequence[str], order: str) -> tuple[str, ...]:
    """List what a direction uses and no stage computes, with what comes nearest."""
    counts: dict[str, int] = {}
    for layer in layers:
        if layer.part in parts and layer.kind not in STAGES:
            counts[layer.kind] = counts.get(layer.kind, 0) + 1
    found = [
        f"{count} x {kind}: {NEAREST.get(kind, 'another operation')}"
        for kind, count in sorted(counts.items(), key=lambda item: -item[1])
    ]
    if order != "hyperprior":
        found.append(f"decoding order {order!r}: the cores are for 'hyperprior'")
    return tuple(found)


def study(
    layers: Sequence[Layer],
    parts: Sequence[str],
    direction: Direction,
    board: Board,
    video: Video,
    model: Model | None,
    lowers: tuple[bool, str],
    order: str,
    line_bytes: int,
) -> PipelineResult:
    """Judge a direction of a model on a board. model: its Programs, where it was lowered."""
    absent = missing(layers, parts, order)
    about = _About(layers, parts, direction, board, video, lowers, absent, line_bytes)
    if model is not None and not absent:
        core: trial.Core = "encoder" if direction == "encode" else "decoder"
        hz = round(1e6 * board.pipeline_clock_mhz)
        target = fold.Target(video.width, video.height, video.frames_per_second, hz)
        try:
            return about.planned(trial.plan_for(model, core, board.part, target))
        except ContractError as error:
            return about.bounded(str(error))
    return about.bounded("")


class _About:
    """A direction on a board, and its two ways to a verdict."""

    def __init__(
        self,
        layers: Sequence[Layer],
        parts: Sequence[str],
        direction: Direction,
        board: Board,
        video: Video,
        lowers: tuple[bool, str],
        absent: tuple[str, ...],
        line_bytes: int,
    ) -> None:
        self.layers = [x for x in layers if x.part in parts and x.part != HOST]
        self.direction = direction
        self.board, self.video, self.lowers, self.absent = board, video, lowers, absent
        self.pixels = video.width * video.height
        self.hz = 1e6 * board.pipeline_clock_mhz
        self.macs = sum(layer.macs for layer in self.layers)
        self.line_bytes = line_bytes
        self.weight_bytes = costs.weight_bytes(self.layers, 8)

    def bounded(self, why: str) -> PipelineResult:
        """The least that it takes, from its layers alone."""
        rate = self.macs * self.pixels * self.video.frames_per_second
        dsp = self.dsp(rate)
        memory = self.weight_bytes + self.line_bytes
        uses = (
            self.use("dsp", dsp),
            *self.memory_uses(memory),
        )
        over = [u for u in uses if u.used > u.limit]
        limit = why
        if over and not why:
            limit = "; ".join(self.sentence(u) for u in over)
        elif not over and not why and self.absent:
            limit = "operations without hardware"
        at_most = self.at_most()
        return self.result(
            has_hardware=not self.absent, exact=False, fits=not over and not why, limit=limit,
            resources=uses, cycles=None, fps=None, at_most=at_most, lag=None, stages=(),
            meets=not over and not why and not self.absent,
        )  # fmt: skip

    def planned(self, plan: fold.Plan) -> PipelineResult:
        """The figures of a folding."""
        part = self.board.part
        total, placement = report.totals(plan, part)
        over = fold.shortfall(total, part)
        limit = "; ".join(
            f"{name}: {used:g} of {allowed:g} allowed ({used / allowed:.2f} times)"
            if allowed else f"{name}: {used:g}, the part has none"
            for name, (used, allowed) in over.items()
        )  # fmt: skip
        uses = tuple(self.use(name, float(getattr(total, name))) for name in RESOURCES)
        fps = plan.target.clock_hz / plan.cycles
        return self.result(
            has_hardware=True, exact=True, fits=not over, limit=limit, resources=uses,
            cycles=plan.cycles, fps=fps, at_most=self.at_most(),
            lag=plan.first_output_lines,
            stages=tuple(_stage(stage, plan, placement) for stage in plan.stages),
            meets=not over and fps >= self.video.frames_per_second,
        )  # fmt: skip

    def at_most(self) -> float | None:
        """Frames per second if all the DSPs that a core may take multiplied in every cycle."""
        if not self.macs:
            return None
        allowed = fold.LIMIT * self.board.dsp
        return 2 * allowed * self.hz / (self.macs * self.pixels)

    def dsp(self, rate: float) -> int:
        """DSPs for `rate` products per second, two in each, busy all the time."""
        return math.ceil(rate / (2 * self.hz))

    def memory_uses(self, size: float) -> tuple[ResourceUse, ...]:
        """Spread bytes over UltraRAM first, then block RAM, full to the last bit."""
        board = self.board
        ultra = min(int(fold.LIMIT * board.uram), math.ceil(size / URAM_BYTES))
        rest = max(0.0, size - ultra * URAM_BYTES)
        return (
            self.use("bram36", math.ceil(2 * rest / BRAM_BYTES) / 2),
            self.use("uram", float(ultra)),
        )

    def use(self, name: Any, used: float) -> ResourceUse:
        have = float(getattr(self.board, name))
        return ResourceUse(name, used, fold.LIMIT * have, have)

    def sentence(self, use: ResourceUse) -> str:
        video = self.video
        what = {
            "dsp": f"{video.frames_per_second:g} frames/s of {video.width}x{video.height} need at "
            f"least {use.used:g} DSPs",
            "bram36": f"weights and lines need at least {use.used:g} block RAMs"
            + (" beside all UltraRAMs" if self.board.uram else ""),
        }.get(use.resource, f"{use.resource}: {use.used:g}")
        return f"{what}, {use.limit:g} are allowed ({use.used / use.limit:.3g} times)"

    def result(
        self, *, has_hardware: bool, exact: bool, fits: bool, limit: str,
        resources: tuple[ResourceUse, ...], cycles: int | None, fps: float | None,
        at_most: float | None, lag: float | None, stages: tuple[StagePlanResult, ...], meets: bool,
    ) -> PipelineResult:  # fmt: skip
        rate = self.macs * self.pixels * self.video.frames_per_second
        return PipelineResult(
            board=self.board.name,
            direction=self.direction,
            lowers=self.lowers[0],
            lowers_reason=self.lowers[1],
            has_hardware=has_hardware,
            missing=self.absent,
            exact=exact,
            fits=fits,
            limit=limit,
            resources=resources,
            cycles_per_frame=cycles,
            cycles_per_pixel=None if cycles is None else cycles / self.pixels,
            frames_per_second=fps,
            frames_per_second_at_most=at_most,
            clock_mhz=self.board.pipeline_clock_mhz,
            meets_video=meets,
            lag_lines=lag,
            dsp_for_video=self.dsp(rate),
            on_chip_bytes=self.weight_bytes + self.line_bytes,
            on_chip_bytes_available=self.board.on_chip_bytes,
            stages=stages,
        )


def _stage(stage: fold.StagePlan, plan: fold.Plan, placement: fold.Placement) -> StagePlanResult:
    taken = stage.logic + placement.taken_by(stage.stage.name)
    return StagePlanResult(
        name=stage.stage.name,
        operation=type(stage.stage.op).__name__,
        multipliers=rtl_layers.multipliers(stage.folding) if stage.folding else 0,
        cycles=stage.cycles,
        busy_share=stage.busy / plan.cycles,
        dsp=taken.dsp,
        bram36=taken.bram36,
        uram=taken.uram,
        lut=taken.lut,
        ff=taken.ff,
    )
