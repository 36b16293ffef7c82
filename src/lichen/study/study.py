"""The study: models x boards -> `result.Study`."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from datetime import datetime, timezone

from lichen._version import VERSION
from lichen.errors import LichenError
from lichen.study import advice, boards, facts, models, predictors, quality
from lichen.study.boards import Board
from lichen.study.facts import Facts
from lichen.study.models import Subject
from lichen.study.result import Curve, ModelResult, Study, Video

MIN_SIDE, MAX_SIDE, MAX_RATE = 16, 16384, 1000
NOTES = (
    "MAC: one multiplication and its addition. Attention's products count; sums, activations and "
    "normalisations do not.",
    "Bytes of activations are those of 8-bit values.",
    "Counts are free of borders: sizes of pictures are multiples of a model's reduction, or what "
    "grows with the border was taken out (see lichen.study.layers).",
    "Frames per second on the DPU are those of the DPU alone, with all cores busy; host, entropy "
    "coding and operations left to the CPU come on top.",
    "The pipeline's clock is assumed: nothing here closes timing.",
    "Times of operations on the CPU are lower bounds by memory traffic.",
)


def study(names: Sequence[str], board_names: Sequence[str], video: Video) -> Study:
    """Study models (all that are known, if none is named) on boards (all, if none) for a video.

    names: see `models`. board_names: names, or files ending in .toml. Raises LichenError for what
    does not exist, for a board with missing resources and for an impossible size of frames.
    """
    started = time.perf_counter()
    check(video)
    targets = [boards.load(name) for name in (board_names or boards.installed())]
    twice = {x.name for x in targets if sum(x.name == y.name for y in targets) > 1}
    if twice:
        raise LichenError(f"each board needs its own name, found {', '.join(sorted(twice))} twice")
    subjects = models.load(names)
    counted = [(subject, facts.of_subject(subject)) for subject in subjects]
    decoders = {
        name: facts.direction(fact, "decode", video).kmac_per_pixel
        for subject, fact in counted
        for name in quality.names_of(subject)
    }
    curves = quality.curves(decoders)
    return Study(
        lichen_version=VERSION,
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        video=video,
        boards=tuple(board.result() for board in targets),
        models=tuple(one(subject, fact, targets, video, curves) for subject, fact in counted),
        predictors=predictors.all_of_them(),
        curves=curves,
        notes=NOTES,
        seconds=time.perf_counter() - started,
    )


def check(video: Video) -> None:
    """Raise LichenError for a size of frames that no camera has."""
    for name, side in (("width", video.width), ("height", video.height)):
        if not MIN_SIDE <= side <= MAX_SIDE:
            raise LichenError(
                f"the {name} of the video must be {MIN_SIDE}..{MAX_SIDE} pixels, not {side}; give "
                "something like 1920x1080@30"
            )
    rate = video.frames_per_second
    if not (math.isfinite(rate) and 0 < rate <= MAX_RATE):
        raise LichenError(
            f"the video must have more than 0 and at most {MAX_RATE} frames per second, not "
            f"{rate:g}; give something like 1920x1080@30"
        )


def one(
    subject: Subject, fact: Facts, targets: Sequence[Board], video: Video, curves: Sequence[Curve]
) -> ModelResult:
    """Study one model."""
    lowers, reason = subject.lowers
    return ModelResult(
        name=subject.name,
        title=subject.title,
        paper=subject.paper,
        origin=subject.origin,
        recognised=subject.known,
        note=subject.note,
        arguments=subject.arguments,
        parameters=sum(layer.parameters for layer in fact.layers),
        order=subject.order,
        slices=subject.slices,
        reduction=fact.reduction,
        lowers=lowers,
        lowers_reason=reason,
        parts=facts.parts(fact, targets, video),
        directions=tuple(facts.direction(fact, d, video) for d in facts.DIRECTIONS),
        dpu=tuple(r for board in targets for r in facts.on_dpu(fact, board, video)),
        pipeline=tuple(r for board in targets for r in facts.as_pipeline(fact, board, video)),
        advice=advice.for_model(subject, fact, targets, video),
        quality=quality.quality(subject, curves),
    )
