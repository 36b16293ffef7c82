"""A model as the study judges it: its layers, and what they do not say.

The same functions judge a model and what would become of it (`advice`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from lichen.model import Model
from lichen.models.complexity import DECODER, ENCODER
from lichen.models.layers import QuantizableModel
from lichen.study import costs, dpu, dpu_plan, dpu_rules, pipeline, roofline
from lichen.study.boards import Board
from lichen.study.layers import HOST, Layer, layers_of
from lichen.study.models import Subject, lowered
from lichen.study.result import (
    Direction,
    DirectionResult,
    DpuResult,
    LayerResult,
    LayerVerdict,
    PartResult,
    PipelineResult,
    Video,
)

DIRECTIONS: tuple[Direction, ...] = ("encode", "decode")
LATENT_BYTES = 2  # of v, which waits for the hyperprior in 16 bits


@dataclass(frozen=True, eq=False)
class Facts:
    """symbols: to code per pixel. steps: passes in decoding that wait for one another, by part.

    programs: the integer form of a model whose operations all have hardware. plans: what is known
    of the pipelines of this model and of its changes, which often leave a direction as it is.
    """

    layers: list[Layer]
    order: str
    reduction: int | None
    symbols: float
    latents: float  # values of y per pixel
    steps: dict[str, int]
    decoding_steps: int
    lowers: tuple[bool, str]
    programs: Model | None = None
    plans: dict[tuple[object, ...], PipelineResult] = field(default_factory=dict)
    parts: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(costs.parts(self.layers, HOST)))

    def of(self, direction: Direction) -> tuple[str, ...]:
        """The parts that run in a direction; those of unknown names in both."""
        usual: dict[Direction, tuple[str, ...]] = {"encode": ENCODER, "decode": DECODER}
        known = set(ENCODER) | set(DECODER)
        return tuple(p for p in self.parts if p in usual[direction] or p not in known)

    def directions(self, part: str) -> tuple[Direction, ...]:
        """The directions in which a part runs."""
        return tuple(d for d in DIRECTIONS if part in self.of(d))


def of_subject(subject: Subject) -> Facts:
    """Count a model. Raises ModelError where no picture passes through it."""
    layers = layers_of(subject.module)
    module, slices = subject.module, subject.slices
    reduction, latents, symbols = None, 0.0, 0.0
    if isinstance(module, QuantizableModel):
        reduction = module.REDUCTION
        latents = float(module.latent_channels) / 256  # type: ignore[arg-type]
        # h_a ends in z, whatever its resolution is
        hyper = next((x.output_values for x in reversed(layers) if x.part == "h_a"), 0.0)
        symbols = latents + hyper
    ends = {"factorised": 1, "hyperprior": 2}.get(subject.order, 1 + slices)
    steps = {"slices": slices, "lrp": slices} if slices else {}
    found = Facts(
        layers, subject.order, reduction, symbols, latents, steps,
        ends if subject.known else 1, subject.lowers, subject.programs,
    )  # fmt: skip
    if found.programs is None and subject.lowers[0] and not _missing(found):
        assert isinstance(module, QuantizableModel)
        return replace(found, programs=lowered(module, subject.name))
    return found


def _missing(facts: Facts) -> list[str]:
    """List what no stage computes, of both directions."""
    return [
        name
        for which in DIRECTIONS
        for name in pipeline.missing(facts.layers, facts.of(which), facts.order)
    ]


def line_bytes(facts: Facts, direction: Direction, width: int) -> int:
    """Lines of a direction: of its parts, and of the latents that wait for the hyperprior."""
    parts = facts.of(direction)
    total = sum(costs.line_buffer_bytes(facts.layers, part, width) for part in parts)
    if direction == "encode":
        sides = [costs.receptive_field(facts.layers, p) for p in parts if p in ("h_a", "h_s")]
        lag = sum(side or 0 for side in sides) / 2
        total += round(lag * width * facts.latents * LATENT_BYTES)
    return total


def direction(facts: Facts, which: Direction, video: Video) -> DirectionResult:
    """Sum the parts of a direction."""
    parts = facts.of(which)
    own = [layer for layer in facts.layers if layer.part in parts]
    macs = sum(layer.macs for layer in own)
    rate = macs * video.width * video.height * video.frames_per_second
    return DirectionResult(
        direction=which,
        kmac_per_pixel=macs / 1e3,
        parameters=sum(layer.parameters for layer in own),
        weight_bytes_8bit=costs.weight_bytes(own, 8),
        weight_bytes_4bit=costs.weight_bytes(own, 4),
        activation_peak_bytes_per_pixel=max(
            (costs.peak(facts.layers, part) for part in parts), default=0.0
        ),
        activation_total_bytes_per_pixel=costs.traffic(own),
        serial_steps=facts.decoding_steps if which == "decode" else max(
            (facts.steps.get(part, 1) for part in parts), default=1
        ),
        line_buffer_bytes_1920=line_bytes(facts, which, 1920),
        line_buffer_bytes_3840=line_bytes(facts, which, 3840),
        symbols_per_pixel=facts.symbols,
        gmac_per_s_at_video=rate / 1e9,
    )  # fmt: skip


def parts(facts: Facts, boards: Sequence[Board], video: Video) -> tuple[PartResult, ...]:
    """Describe every part with all of its layers."""
    frame = dpu_plan.Frame.of(video, facts.reduction)
    verdicts = dpu_rules.verdicts(facts.layers)
    cycles = dpu_plan.cycles_by_layer(facts.layers, frame, dpu.constants())
    return tuple(_part(facts, name, boards, frame, verdicts, cycles) for name in facts.parts)


def _part(
    facts: Facts, name: str, boards: Sequence[Board], frame: dpu_plan.Frame,
    verdicts: Sequence[LayerVerdict], cycles: Mapping[int, int],
) -> PartResult:  # fmt: skip
    layers = facts.layers
    numbered = costs.of_part(layers, name)
    own = [layer for _, layer in numbered]
    results = tuple(
        LayerResult(
            name=layer.name, kind=layer.kind, shape=layer.shape, scale=layer.rows_out,
            kmac_per_pixel=layer.macs / 1e3, parameters=layer.parameters,
            weight_bytes_8bit=costs.weight_bytes([layer], 8),
            input_bytes_per_pixel=sum(layer.input_values),
            output_bytes_per_pixel=layer.output_values, runs=1,
            dpu=verdicts[number], cycles_dpu=cycles.get(number, 0),
        )
        for number, layer in numbered
    )  # fmt: skip
    return PartResult(
        name=name,
        directions=facts.directions(name),
        kmac_per_pixel=sum(layer.macs for layer in own) / 1e3,
        parameters=sum(layer.parameters for layer in own),
        weight_bytes_8bit=costs.weight_bytes(own, 8),
        weight_bytes_4bit=costs.weight_bytes(own, 4),
        activation_peak_bytes_per_pixel=costs.peak(layers, name),
        activation_total_bytes_per_pixel=costs.traffic(own),
        serial_steps=facts.steps.get(name, 1),
        receptive_field_pixels=costs.receptive_field(layers, name),
        line_buffer_bytes_1920=costs.line_buffer_bytes(layers, name, 1920),
        line_buffer_bytes_3840=costs.line_buffer_bytes(layers, name, 3840),
        operations=costs.histogram(own),
        roofline=tuple(roofline.point(layers, name, board, frame.pixels) for board in boards),
        layers=results,
    )


def on_dpu(facts: Facts, board: Board, video: Video) -> list[DpuResult]:
    """Judge both directions and both variants on a board's DPU."""
    return [
        dpu_plan.Directed(
            facts.layers, board, video, variant, which, facts.of(which), facts.reduction,
            facts.symbols, dpu.constants(),
        ).result()
        for which in DIRECTIONS
        for variant in ("as published", "rewritten")
    ]  # fmt: skip


def as_pipeline(facts: Facts, board: Board, video: Video) -> list[PipelineResult]:
    """Judge both directions as our core on a board."""
    found = []
    for which in DIRECTIONS:
        parts = facts.of(which)
        own = tuple(replace(x, sources=()) for x in facts.layers if x.part in parts)
        key = (which, board.name, video, own)
        if key not in facts.plans:
            facts.plans[key] = pipeline.study(
                facts.layers, parts, which, board, video, facts.programs, facts.lowers,
                facts.order, line_bytes(facts, which, video.width),
            )  # fmt: skip
        found.append(facts.plans[key])
    return found
