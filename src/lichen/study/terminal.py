"""What `lichen study` prints: the same verdicts as the page's first tables, in a few lines."""

from __future__ import annotations

from lichen.study.page import best_curve, dpu_of, pipeline_of
from lichen.study.result import ModelResult, Study
from lichen.study.tables import write

DIRECTIONS = ("encode", "decode")
HEAD = 22  # letters of a model's name


def summary(study: Study) -> str:
    """Give the models' costs, each board's speeds, and how wrong the predictors have been."""
    video = study.video
    lines = [
        f"{video.width}x{video.height} at {video.frames_per_second:g} frames/s; "
        "frames/s are predicted, + is enough",
        "",
        f"{'model':{HEAD}} {'kMAC/pixel':>15} {'weights':>9} {'serial':>7} {'BD-rate':>9}",
        f"{'':{HEAD}} {'encode':>7} {'decode':>7} {'MB, int8':>9} {'steps':>7} {'to VTM':>9}",
        *(_cost(study, model) for model in study.models),
    ]
    for board in study.boards:
        cores = f"{board.dpu_cores} x {board.dpu_architecture}"
        lines += [
            "",
            f"{f'{board.name}, frames/s':{HEAD}} {'DPU takes as published':>26} "
            f"{'rewritten':>15} {'our pipeline':>15}   ({cores})",
            f"{'':{HEAD}} {'encode':>13} {'decode':>12} "
            + " ".join(f"{'encode':>7} {'decode':>7}" for _ in range(2)),
            *(_speeds(model, board.name) for model in study.models),
        ]
    lines += [
        "",
        "DPU: % of the products in so many subgraphs; frames/s of the DPU alone, all cores busy.",
        "Pipeline: < at most, by the multipliers alone: something is missing or too large.",
        "",
    ]
    for predictor in study.predictors:
        worst = predictor.worst_percent
        found = predictor.missing or "no checks"
        if worst is not None:
            found = f"wrong by at most {worst:.1f} % in {len(predictor.checks)} checks"
        lines.append(f"{predictor.title}: {found} (should be {predictor.target})")
    return "\n".join(lines)


def _cut(text: str) -> str:
    shown = "".join(letter if letter.isprintable() else "?" for letter in text)
    return shown if len(shown) <= HEAD else shown[: HEAD - 1] + "…"


def _cost(study: Study, model: ModelResult) -> str:
    kmac = {d.direction: write(d.kmac_per_pixel) for d in model.directions}
    steps = next((d.serial_steps for d in model.directions if d.direction == "decode"), None)
    weights = sum(part.weight_bytes_8bit for part in model.parts) / 1e6
    curve = best_curve(study, model)
    rate = "-" if curve is None else f"{curve.bd_rate_vs_vtm_percent:+.1f} % {curve.origin[0]}"
    return (
        f"{_cut(model.name):{HEAD}} {kmac.get('encode', '-'):>7} {kmac.get('decode', '-'):>7} "
        f"{write(weights):>9} {steps if steps is not None else '-':>7} {rate:>9}"
    )


def _speeds(model: ModelResult, board: str) -> str:
    cells = []
    for direction, width in zip(DIRECTIONS, (13, 12)):
        result = dpu_of(model, board, direction, "as published")
        text = "-"
        if result is not None:
            text = f"{100 * result.runs_on_dpu_share:.0f} % in {result.subgraphs}"
        cells.append(f"{text:>{width}}")
    for direction in DIRECTIONS:
        result = dpu_of(model, board, direction, "rewritten")
        text = "-" if result is None else write(result.frames_per_second) + _enough(
            result.meets_video)  # fmt: skip
        cells.append(f"{text:>7}")
    for direction in DIRECTIONS:
        found = pipeline_of(model, board, direction)
        text = "-"
        if found is not None and found.fits and found.has_hardware and found.frames_per_second:
            text = write(found.frames_per_second) + _enough(found.meets_video)
        elif found is not None and found.frames_per_second_at_most is not None:
            text = "<" + write(found.frames_per_second_at_most)
        cells.append(f"{text:>7}")
    return f"{_cut(model.name):{HEAD}} {' '.join(cells)}"


def _enough(enough: bool) -> str:
    return "+" if enough else ""
