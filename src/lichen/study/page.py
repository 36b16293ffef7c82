"""The page of a study: one HTML file that needs nothing else, not even a network.

page.html is its frame, page.css and page.js go into it. A policy in the page forbids the browser
to load or to run anything else, so a hostile name in a checkpoint can do nothing.
"""

from __future__ import annotations

import base64
import hashlib
import statistics
from collections.abc import Iterable
from html import escape
from importlib.resources import files
from string import Template

from lichen.study import charts, model_page
from lichen.study.result import (
    Curve,
    DirectionResult,
    DpuResult,
    ModelResult,
    PipelineResult,
    Predictor,
    Study,
)
from lichen.study.tables import Cell, Column, number, size, slug, table, text, write

DIRECTIONS = ("encode", "decode")


def render(study: Study, command: str) -> str:
    """Give the page. command: the command line that made it, for its foot."""
    folder = files("lichen.study")
    script = folder.joinpath("page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    sections = [
        ("summary", "Summary", _summary(study)),
        ("speed", "How fast", _speed(study)),
        ("roofline", "Rooflines", _rooflines(study)),
        ("quality", "What it buys", _quality(study)),
        ("models", "Model by model", "".join(model_page.section(study, m) for m in study.models)),
        ("method", "Method and errors", _method(study)),
        ("sources", "Boards and sources", _boards(study)),
    ]
    return Template(folder.joinpath("page.html").read_text(encoding="utf-8")).substitute(
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        version=escape(study.lichen_version),
        title=f"{_video(study)}: which learned codec fits which FPGA",
        css=folder.joinpath("page.css").read_text(encoding="utf-8"),
        script=script,
        facts=_facts(study),
        links=" ".join(f'<a href="#{name}">{title}</a>' for name, title, _ in sections),
        body="".join(
            f'<section id="{name}"><h2>{title}</h2>{body}</section>'
            for name, title, body in sections
        ),
        command=escape(command),
        seconds=write(study.seconds),
    )


def _video(study: Study) -> str:
    video = study.video
    return f"{video.width}x{video.height} at {video.frames_per_second:g} frames/s"


def _facts(study: Study) -> str:
    pixels = study.video.width * study.video.height * study.video.frames_per_second
    boards = ", ".join(escape(board.title) for board in study.boards)
    date = study.date[:16].replace("T", " ")
    return (
        f"{len(study.models)} models on {boards}, for {_video(study)} ({write(pixels / 1e6)} "
        f"million pixels/s). Everything is predicted by formulas whose errors are under "
        f'<a href="#method">Method</a>, but what is marked measured. {escape(date)}.'
    )


# Summary


def _summary(study: Study) -> str:
    return _answers(study) + _overview(study)


WAYS = ("DPU, as published", "DPU, rewritten", "our pipeline")


def _answers(study: Study) -> str:
    """Say which models are fast enough, for each board and each way to run them."""
    columns = [Column("board"), Column("way"), *(Column(direction) for direction in DIRECTIONS)]
    rows = []
    for board in study.boards:
        for way in WAYS:
            cells = [_names(study, board.name, way, direction) for direction in DIRECTIONS]
            rows.append([text(board.name), text(way), *cells])
    return table(columns, rows, f"What reaches {_video(study)}", "By prediction. On the DPU: its "
                 "own work only, all cores; what is left to the CPU comes on top.")  # fmt: skip


def _names(study: Study, board: str, way: str, direction: str) -> Cell:
    found = []
    for model in study.models:
        result: DpuResult | PipelineResult | None
        if way == "our pipeline":
            result = pipeline_of(model, board, direction)
            reached = result is not None and result.meets_video and result.fits
        else:
            result = dpu_of(model, board, direction, way.removeprefix("DPU, "))
            reached = result is not None and result.meets_video and is_taken(result)
        if reached:
            found.append(f'<a href="#{slug("model", model.name)}">{escape(model.name)}</a>')
    return Cell(", ".join(found) or "none", len(found), "answer")


def is_taken(result: DpuResult) -> bool:
    """Tell whether the DPU takes nearly all: else its speed says nothing of the model's."""
    return result.runs_on_dpu_share >= charts.TAKEN


def dpu_of(model: ModelResult, board: str, direction: str, variant: str) -> DpuResult | None:
    """Find a model's result on a board's DPU."""
    key = (board, direction, variant)
    return next((r for r in model.dpu if (r.board, r.direction, r.variant) == key), None)


def pipeline_of(model: ModelResult, board: str, direction: str) -> PipelineResult | None:
    """Find a model's result as a pipeline on a board."""
    return next((r for r in model.pipeline if (r.board, r.direction) == (board, direction)), None)


def _overview(study: Study) -> str:
    columns = [
        Column("model"),
        Column("encode", "kMAC per pixel of picture", "kMAC/pixel"),
        Column("decode", "kMAC per pixel of picture", "kMAC/pixel"),
        Column("weights", "of all that encodes and decodes, 8 bits"),
        Column("steps", "passes of decoding that wait for one another"),
        Column("BD-rate", "against VTM on Kodak; m: measured here, p: published"),
    ]
    for board in study.boards:
        columns += [
            Column("DPU enc", "frames/s, rewritten; small: what it takes as published", board.name),
            Column("DPU dec", "frames/s, rewritten; small: what it takes as published", board.name),
            Column("pipe enc", "frames/s; ≤: at most, does not fit or lacks hardware", board.name),
            Column("pipe dec", "frames/s; ≤: at most, does not fit or lacks hardware", board.name),
        ]
    rows = []
    for model in study.models:
        by_direction: dict[str, DirectionResult] = {d.direction: d for d in model.directions}
        encode, decode = (by_direction.get(name) for name in DIRECTIONS)
        link = f'<a href="#{slug("model", model.name)}">{escape(model.name)}</a>'
        weights = sum(part.weight_bytes_8bit for part in model.parts)
        row = [
            Cell(link, model.name), number(encode.kmac_per_pixel if encode else None),
            number(decode.kmac_per_pixel if decode else None), size(weights),
            number(decode.serial_steps if decode else None), _rate(study, model),
        ]  # fmt: skip
        for board in study.boards:
            row += [_dpu_cell(model, board.name, direction) for direction in DIRECTIONS]
            row += [_pipeline_cell(model, board.name, direction) for direction in DIRECTIONS]
        rows.append(row)
    note = (
        f"✓: {_video(study)} or more. DPU: rewritten for it; below, what it takes of the model as "
        "published: share of the products, in so many subgraphs. ≤: the bound by multipliers "
        "alone, because something is missing or too large. Click a heading to sort."
    )
    return table(columns, rows, "All models", note)


def best_curve(study: Study, model: ModelResult) -> Curve | None:
    """Find the curve that speaks for a model: measured before published, then as listed."""
    curves = [c for c in study.curves if c.name in model.quality.curves]
    known = [c for c in curves if c.bd_rate_vs_vtm_percent is not None]
    listed = model.quality.curves.index
    return min(known, key=lambda c: (c.origin != "measured", listed(c.name)), default=None)


def _rate(study: Study, model: ModelResult) -> Cell:
    best = best_curve(study, model)
    if best is None:
        return number(None)
    cell = model_page.percent(best.bd_rate_vs_vtm_percent)
    return Cell(f'{cell.html}<small title="{escape(best.name)}">{best.origin}</small>',
                cell.order, cell.kind)  # fmt: skip


def _dpu_cell(model: ModelResult, board: str, direction: str) -> Cell:
    rewritten = dpu_of(model, board, direction, "rewritten")
    published = dpu_of(model, board, direction, "as published")
    shown = rewritten or published
    if shown is None:
        return number(None)
    cell = model_page.speed(shown.frames_per_second, shown.meets_video)
    small = ""
    if published is not None:
        share = f"{100 * published.runs_on_dpu_share:.0f}&nbsp;%"
        small = f"<small>{share} in {published.subgraphs}</small>"
    return Cell(cell.html + small, cell.order, cell.kind)


def _pipeline_cell(model: ModelResult, board: str, direction: str) -> Cell:
    result = pipeline_of(model, board, direction)
    if result is None:
        return number(None)
    cell = model_page.pipeline_speed(result)
    why = "" if result.fits and result.has_hardware else (
        "too large" if result.has_hardware else "no hardware")  # fmt: skip
    hint = escape("; ".join([*([result.limit] if result.limit else []), *result.missing]))
    small = f'<small title="{hint}">{why}</small>' if why else ""
    return Cell(cell.html + small, cell.order, cell.kind)


# Pictures


def _speed(study: Study) -> str:
    drawn = [
        charts.speeds(study, board.name, direction)
        for board in study.boards
        for direction in DIRECTIONS
    ]
    return f'{charts.speeds_legend()}<div class="pair">{"".join(drawn)}</div>'


def _rooflines(study: Study) -> str:
    drawn = "".join(charts.roofline(study, board) for board in study.boards)
    return f'{charts.roofline_legend(study)}<div class="pair">{drawn}</div>'


def _quality(study: Study) -> str:
    columns = [
        Column("codec"),
        Column("kind"),
        Column("origin"),
        Column("VTM", "BD-rate, negative is fewer bits", "BD-rate against"),
        Column("BPG", "BD-rate, negative is fewer bits", "BD-rate against"),
        Column("JPEG", "BD-rate, negative is fewer bits", "BD-rate against"),
        Column("decode, kMAC/pixel"),
        Column("source of the count"),
        Column("source"),
    ]
    rows = [
        [text(c.name), text(c.kind), model_page.origin(c.origin),
         model_page.percent(c.bd_rate_vs_vtm_percent), model_page.percent(c.bd_rate_vs_bpg_percent),
         model_page.percent(c.bd_rate_vs_jpeg_percent), number(c.decode_kmac_per_pixel),
         text(c.decode_kmac_source or "–", "prose"), text(c.source, "prose")]
        for c in sorted(study.curves, key=lambda c: (c.bd_rate_vs_vtm_percent is None,
                                                     c.bd_rate_vs_vtm_percent or 0.0))
    ]  # fmt: skip
    listed = table(columns, rows, "All curves", "Kodak, RGB PSNR.")
    return (
        charts.rate_cost(study)
        + charts.rate_distortion(study)
        + f"<details><summary>All {len(rows)} curves in numbers</summary>{listed}</details>"
        + _energy(study)
    )


def _energy(study: Study) -> str:
    columns = [Column("nJ/pixel"), Column("model"), Column("what"), Column("how it follows"),
               Column("source")]  # fmt: skip
    seen: dict[tuple[float, str], tuple[list[str], list[Cell]]] = {}
    for model in study.models:
        for e in model.quality.energy:
            cells = [
                text(e.what, "prose"),
                text(e.derived or "–", "prose"),
                text(e.source, "prose"),
            ]
            seen.setdefault((e.nanojoule_per_pixel, e.what), ([], cells))[0].append(model.name)
    rows = [
        [number(energy), text(", ".join(names)), *cells]
        for (energy, _), (names, cells) in seen.items()
    ]
    if not rows:
        return "<p>No source gives energy per pixel for a model like these.</p>"
    note = "Of models like these, measured by others; no power was measured here."
    return table(columns, rows, "Energy per pixel where a source gives it", note)


# Method


def _method(study: Study) -> str:
    notes = "".join(f"<li>{escape(note)}</li>" for note in study.notes)
    columns = [Column("predictor"), Column("checks"), Column("worst"), Column("median, absolute"),
               Column("mean"), Column("should keep to"), Column("made anew by")]  # fmt: skip
    rows = []
    for p in study.predictors:
        errors = [check.error_percent for check in p.checks]
        rows.append(
            [text(p.title), number(len(errors)), _error(p.worst_percent, signed=False),
             _error(statistics.median(map(abs, errors)) if errors else None, signed=False),
             _error(statistics.mean(errors) if errors else None),
             text(p.target, "prose"), Cell(f"<code>{escape(p.command)}</code>", p.command)]
        )  # fmt: skip
    return (
        (f"<ul>{notes}</ul>" if notes else "")
        + table(columns, rows, "How wrong the predictors have been", "Predicted over measured.")
        + '<div class="pair">'
        + "".join(charts.predictions(p) for p in study.predictors if p.checks)
        + "</div>"
        + "".join(_predictor(p) for p in study.predictors)
    )


def _error(value: float | None, signed: bool = True) -> Cell:
    if value is None:
        return number(None)
    return Cell(f"{value:{'+' if signed else ''}.1f}&nbsp;%", value, "number")


def _predictor(predictor: Predictor) -> str:
    if predictor.missing:
        return f'<p class="note">{escape(predictor.title)}: {escape(predictor.missing)}</p>'
    columns = [Column("check"), Column("predicted"), Column("measured"), Column("error"),
               Column("role"), Column("source"), Column("note")]  # fmt: skip
    rows = [
        [text(c.name), number(c.predicted, c.unit, digits=4), number(c.measured, c.unit, digits=4),
         _error(c.error_percent), text(c.role), text(c.source, "prose"), text(c.note, "prose")]
        for c in predictor.checks
    ]  # fmt: skip
    constants = table(
        [Column("constant"), Column("value"), Column("unit"), Column("meaning")],
        [[text(c.name), number(c.value, digits=4), text(c.unit), text(c.meaning, "prose")]
         for c in predictor.constants],
        "Constants",
    )  # fmt: skip
    shown = table(columns, rows, predictor.title) + constants
    return f"<details><summary>{escape(predictor.title)}: every check</summary>{shown}</details>"


def _boards(study: Study) -> str:
    columns = [Column("board"), Column("device"), Column("DSP"), Column("BRAM36"), Column("URAM"),
               Column("LUT"), Column("FF"), Column("on-chip memory"), Column("DRAM, GB/s"),
               Column("DPU"), Column("DPU, GMAC/s", "peak, all cores"),
               Column("pipeline, GMAC/s", "two products per DSP, of what a core may take"),
               Column("assumed clock, MHz", "of the pipeline")]  # fmt: skip
    rows = [
        [text(b.name), text(b.device), *map(number, (b.dsp, b.bram36, b.uram, b.lut, b.ff)),
         size(b.on_chip_bytes), number(b.dram_gbyte_per_s, digits=4),
         text(f"{b.dpu_cores} x {b.dpu_architecture}, {b.dpu_clock_mhz:g} MHz"),
         number(b.dpu_peak_gmac_per_s, digits=4), number(b.pipeline_peak_gmac_per_s, digits=4),
         number(b.pipeline_clock_mhz)]
        for b in study.boards
    ]  # fmt: skip
    sources = [
        f"<li>{escape(b.name)}: {escape(source)}</li>" for b in study.boards for source in b.sources
    ]
    limits = sorted({(x.dpu.limit, x.dpu.source) for m in study.models for p in m.parts
                     for x in p.layers if x.dpu.limit})  # fmt: skip
    met = (f"<li>{escape(limit)} <small>{escape(source)}</small></li>" for limit, source in limits)
    papers = dict.fromkeys(m.paper for m in study.models if m.paper)
    return (
        table(columns, rows, "Boards")
        + _list("Where the boards' figures come from", sources)
        + _list("The models' papers", (f"<li>{escape(paper)}</li>" for paper in papers))
        + _list("The DPU's limits that these models meet", met)
    )


def _list(title: str, items: Iterable[str]) -> str:
    inside = "".join(items)
    return f"<h3>{title}</h3><ul>{inside}</ul>" if inside else ""
