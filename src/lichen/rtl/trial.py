"""Trial: a picture through a simulated core, compared with what the codec gives."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lichen.container import ROW_LINES
from lichen.errors import ContractError, DeviceError
from lichen.model import Model
from lichen.rtl import codec, fold, graph
from lichen.rtl.codec import Decoder, Encoder
from lichen.rtl.convolution import Face
from lichen.rtl.core import to_beats
from lichen.rtl.simulate import Result, Simulation

Core = Literal["encoder", "decoder"]
PATIENCE = 2_000_000  # cycles without a beat outside: delays and stripes fill meanwhile
LAST = 1 << 8  # of a beat of bytes: the picture's last one


@dataclass(frozen=True)
class Trial:
    """What a trial found. Cycles are exact; the clock is assumed.

    difference: "" or where the first one is. cycles: from reset to the last beat out. per_picture:
    from the end of the first picture to the end of the second; 0 where only one was run. planned:
    what the formulas say for a picture of this size. latency: from the first beat in to the first
    one out. occupancy: of each array, the share of `per_picture` (or `cycles`) in which it
    multiplied. waits: cycles in which a stream waited for the core: its input to be taken, its
    output to come.
    """

    core: Core
    board: str
    width: int
    height: int
    difference: str
    cycles: int
    per_picture: int
    planned: int
    latency: int
    occupancy: Mapping[str, float]
    waits: Mapping[str, int]
    clock_hz: int
    build_seconds: float
    run_seconds: float

    @property
    def paced(self) -> int:
        """Cycles per picture: of pictures in a row, if they were run, else of the single one."""
        return self.per_picture or self.cycles

    @property
    def cycles_per_pixel(self) -> float:
        return self.paced / (self.width * self.height)

    @property
    def frames_per_second(self) -> float:
        """Of this size, at the assumed clock."""
        return self.clock_hz / self.paced


def plan_for(model: Model, core: Core, part: fold.Part, target: fold.Target) -> fold.Plan:
    """Fold a model's core for a part. Raises ContractError where there is no hardware for it."""
    if model.order != "hyperprior":
        raise ContractError(
            f"model {model.name}: cores are for the order 'hyperprior', not {model.order!r}; "
            "the student is one"
        )
    make = graph.encoder if core == "encoder" else graph.decoder
    plan = fold.fold(make(model.programs), target, part)
    return replace(plan, coder=codec.coder(model, plan, core, stripe_units(model)))


def stripe_units(model: Model) -> int:
    """Count the rows of the coarsest grid in a stripe of 64 lines."""
    return ROW_LINES // model.reduction


def core_for(
    model: Model, kind: Core, plan: fold.Plan, placement: fold.Placement, face: Face = "plain"
) -> Encoder | Decoder:
    """Make a core of a plan, in stripes of 64 lines, the least that a stream has."""
    make = Encoder if kind == "encoder" else Decoder
    return make(model, plan, stripe=stripe_units(model), placement=placement, face=face)


class Bench:
    """A core's model, built once, for pictures up to the target's size in stripes of 64 lines.

    Long delays are outside of the core, as `fold.place` decides; the bench joins them.
    """

    STRIPE = 1

    def __init__(
        self, model: Model, kind: Core, part: fold.Part, target: fold.Target, optimise: int = 1
    ) -> None:
        self.model, self.kind, self.part, self.target = model, kind, part, target
        self.plan = plan_for(model, kind, part, target)
        placement = self.plan.place(part)
        self.core = core_for(model, kind, self.plan, placement)
        started = time.perf_counter()
        name = f"lichen_{kind}_{part.board}"
        self.simulation = Simulation(self.core, name, loops=self.core.loops, optimise=optimise)
        self.build_seconds = time.perf_counter() - started

    def encode(
        self, pixels: NDArray[np.uint8], position: int, chunks: bytes, pictures: int = 1
    ) -> Trial:
        """Encode a picture (H, W, 3), `pictures` times in a row; chunks: what it should give.

        Raises ContractError where the picture is larger than the core, DeviceError where it hangs.
        """
        beats = to_beats(pixels.transpose(2, 0, 1), 3)[:, 0]
        return self._run(pixels.shape[:2], position, "pixels", beats, "bytes", _bytes(chunks),
                         pictures)  # fmt: skip

    def decode(
        self, chunks: bytes, position: int, pixels: NDArray[np.uint8], pictures: int = 1
    ) -> Trial:
        """Decode the chunks behind a stream's start, as `encode`; pixels: what they should give."""
        beats = to_beats(pixels.transpose(2, 0, 1), 3)[:, 0]
        return self._run(pixels.shape[:2], position, "bytes", _bytes(chunks), "pixels", beats,
                         pictures)  # fmt: skip

    def _run(
        self,
        size: tuple[int, ...],
        position: int,
        source: str,
        given: NDArray[np.uint32],
        target: str,
        wanted: NDArray[np.uint32],
        pictures: int,
    ) -> Trial:
        height, width = size
        rows, columns = (-(-n // self.model.reduction) for n in size)
        if rows > self.plan.units[0] or columns > self.plan.units[1]:
            raise ContractError(
                f"the picture is {width}x{height}, the core was built for up to "
                f"{self.target.width}x{self.target.height}: build it larger or cut the picture"
            )
        simulation = self.simulation
        started = time.perf_counter()
        simulation.run({"load": self.core.contents(self.model, position)}, {})
        simulation.set(
            width=width, height=height, unit_rows=rows, unit_columns=columns, bank=0,
            stripe=stripe_units(self.model), stripes=-(-rows // stripe_units(self.model)),
        )  # fmt: skip
        simulation.reset()  # sizes change in reset only; what is loaded stays
        results = []
        for count in sorted({1, pictures}):
            checks = self._checks(count, rows)
            data = {source: np.concatenate([given] * count)}
            outputs = {target: count * len(wanted), **checks}
            results.append(simulation.run(data, outputs, patience=PATIENCE))
        last = results[-1]
        per_picture = (last.cycles - results[0].cycles) // (pictures - 1) if pictures > 1 else 0
        scale = rows * columns / (self.plan.units[0] * self.plan.units[1])
        paced = per_picture or results[0].cycles
        return Trial(
            core=self.kind,
            board=self.part.board,
            width=width,
            height=height,
            difference=self._difference(
                last, target, np.concatenate([wanted] * pictures), pictures, rows
            ),
            cycles=results[0].cycles,
            per_picture=per_picture,
            planned=int(self.plan.cycles * scale),
            latency=results[0].first[target] - results[0].first[source],
            occupancy={
                stage.stage.name: stage.busy * scale / paced
                for stage in self.plan.stages
                if stage.folding is not None
            },
            waits={source: last.waits[source], target: last.starved[target]},
            clock_hz=self.target.clock_hz,
            build_seconds=self.build_seconds,
            run_seconds=time.perf_counter() - started,
        )

    def _checks(self, count: int, rows: int) -> dict[str, int]:
        """Beats of the streams that say whether all is well."""
        stripes = count * -(-rows // stripe_units(self.model))
        if self.kind == "encoder":
            return {"overflows": stripes}
        return {"framings": count, "z_statuses": stripes, "y_statuses": stripes}

    def _difference(
        self, result: Result, target: str, wanted: NDArray[np.uint32], pictures: int, rows: int
    ) -> str:
        wrong = np.flatnonzero(result.outputs[target] != wanted)
        if len(wrong):
            picture, place = divmod(int(wrong[0]), len(wanted) // pictures)
            found, right = int(result.outputs[target][wrong[0]]), int(wanted[wrong[0]])
            return (
                f"{target}, picture {picture}, beat {place}: {found:#x}, not {right:#x}; "
                f"{len(wrong)} of {len(wanted)} differ"
            )
        for name in self._checks(pictures, rows):
            bad = np.flatnonzero(result.outputs[name])
            if len(bad):
                return f"{name}, number {bad[0]}: {int(result.outputs[name][bad[0]])}, not 0"
        return ""


def require_identical(trial: Trial) -> None:
    """Raise DeviceError where a trial found a difference."""
    if trial.difference:
        raise DeviceError(f"the {trial.core} core differs from the codec: {trial.difference}")


def _bytes(chunks: bytes) -> NDArray[np.uint32]:
    beats = np.frombuffer(chunks, np.uint8).astype(np.uint32)
    beats[-1] |= LAST
    return beats
