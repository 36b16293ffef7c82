"""What the page says of one model: costs, operations, DPU, pipeline, advice, quality."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape

from lichen.study import charts
from lichen.study.result import (
    Advice,
    Effect,
    LayerResult,
    ModelResult,
    PipelineResult,
    RooflinePoint,
    Study,
)
from lichen.study.tables import (
    Cell,
    Column,
    Kind,
    badge,
    number,
    size,
    slug,
    table,
    text,
    write,
    write_size,
)

PLACES: dict[str, tuple[str, Kind]] = {
    "dpu": ("DPU", "good"),
    "rewrite": ("rewrite", "part"),
    "cpu": ("CPU", "bad"),
    "free": ("free", "quiet"),
}
RESOURCES = ("dsp", "bram36", "uram", "lut", "ff")


def section(study: Study, model: ModelResult) -> str:
    """Give all of one model, folded away behind its title."""
    boards = [board.name for board in study.boards]
    body = [
        f'<p class="facts">{_facts(model)}</p>',
        f'<p class="note">{escape(model.note)}</p>' if model.note else "",
        "<h3>What it costs</h3>",
        _directions(study, model),
        _parts(model),
        charts.operations(study, model) if model.parts else "",
        "<h3>On the DPU</h3>",
        '<div class="pair">',
        *(charts.frame_time(study, model, board) for board in boards),
        "</div>" if model.dpu else '</div><p class="note">Nothing was predicted.</p>',
        _dpu(model),
        _limits(model),
        _places(model),
        _verdicts(model),
        _layers(model),
        "<h3>As a pipeline of our own</h3>",
        _pipeline(model),
        *(_stages(result) for result in model.pipeline if result.stages),
        "<h3>What would help</h3>",
        _advice(model),
        "<h3>What it buys</h3>",
        _quality(study, model),
    ]
    return (
        f'<details class="model" id="{slug("model", model.name)}"><summary><h2>'
        f"{escape(model.name)}</h2> <span>{escape(model.title)}</span></summary>"
        f"{''.join(body)}</details>"
    )


def _facts(model: ModelResult) -> str:
    arguments = ", ".join(f"{key}={value}" for key, value in model.arguments.items())
    facts = [
        escape(model.paper),
        f"{write(model.parameters / 1e6)} million parameters",
        f"decoding order: {escape(model.order)}"
        + (f", {model.slices} slices" if model.slices > 1 else ""),
        f"from the {escape(model.origin)}" + ("" if model.recognised else ", not recognised"),
        f"arguments {escape(arguments)}" if arguments else "",
        f"pictures are padded to multiples of {model.reduction}" if model.reduction else "",
        ("lowers to the integer contract" if model.lowers else "does not lower to the contract")
        + (f": {escape(model.lowers_reason)}" if model.lowers_reason else ""),
    ]
    return "; ".join(fact for fact in facts if fact) + "."


# Costs


def _directions(study: Study, model: ModelResult) -> str:
    columns = [
        Column("direction"),
        Column("kMAC/pixel"),
        Column("GMAC/s", "what the video asks for"),
        Column("parameters"),
        Column("weights, 8 bits"),
        Column("4 bits"),
        Column("activations, peak B/pixel", "of the tensors that live at once, 8 bits"),
        Column("traffic B/pixel", "written by all layers and read by the next, 8 bits"),
        Column("serial steps", "passes that wait for one another"),
        Column("symbols/pixel", "to entropy-code"),
        Column("lines, 1920", "line buffers for a picture 1920 wide, 8 bits"),
        Column("lines, 3840"),
    ]
    rows = [
        [text(d.direction), number(d.kmac_per_pixel), number(d.gmac_per_s_at_video),
         number(d.parameters, digits=4), size(d.weight_bytes_8bit), size(d.weight_bytes_4bit),
         number(d.activation_peak_bytes_per_pixel), number(d.activation_total_bytes_per_pixel),
         number(d.serial_steps), number(d.symbols_per_pixel), size(d.line_buffer_bytes_1920),
         size(d.line_buffer_bytes_3840)]
        for d in model.directions
    ]  # fmt: skip
    return table(columns, rows, "To encode and to decode a picture", "Sums of the parts below.")


def _parts(model: ModelResult) -> str:
    boards = [point.board for point in (model.parts[0].roofline if model.parts else ())]
    columns = [
        Column("part"),
        Column("runs in"),
        Column("kMAC/pixel"),
        Column("parameters"),
        Column("weights, 8 bits"),
        Column("4 bits"),
        Column("peak B/pixel", "activations that live at once, 8 bits"),
        Column("traffic B/pixel", "activations written and read, 8 bits"),
        Column("serial steps"),
        Column("receptive field", "side in pixels; – where it is not local or not known"),
        Column("lines, 1920", "line buffers, 8 bits (16 where the integers are)"),
        Column("lines, 3840"),
        Column("MAC/byte", "of DRAM traffic, layer by layer"),
        Column("fused", "MAC per byte if only the part's ends go to DRAM"),
        *(Column(f"{name} at its roof", "frames/s of the video's size, and what limits")
          for name in boards),
    ]  # fmt: skip
    rows = []
    for p in model.parts:
        first = p.roofline[0] if p.roofline else None
        by_board = {point.board: point for point in p.roofline}
        rows.append(
            [text(p.name), text(", ".join(p.directions)), number(p.kmac_per_pixel),
             number(p.parameters, digits=4), size(p.weight_bytes_8bit), size(p.weight_bytes_4bit),
             number(p.activation_peak_bytes_per_pixel), number(p.activation_total_bytes_per_pixel),
             number(p.serial_steps),
             number(p.receptive_field_pixels, digits=4), size(p.line_buffer_bytes_1920),
             size(p.line_buffer_bytes_3840),
             number(first.intensity_mac_per_byte if first else None),
             number(first.intensity_fused_mac_per_byte if first else None),
             *(_roof(by_board.get(name)) for name in boards)]
        )  # fmt: skip
    return table(columns, rows, "Part by part", "Counts are of one multiplication per weight and "
                 "position, those of attention included.")  # fmt: skip


def _roof(point: RooflinePoint | None) -> Cell:
    if point is None:
        return number(None)
    cell = number(point.frames_per_second_at_roof, "/s")
    return Cell(f"{cell.html} <small>{point.bound}</small>", cell.order, cell.kind)


# DPU


def _dpu(model: ModelResult) -> str:
    columns = [
        Column("board"),
        Column("direction"),
        Column("variant"),
        Column("on the DPU", "share of the products"),
        Column("subgraphs", "a CPU operation between them cuts"),
        Column("calls/frame"),
        Column("ms, one core"),
        Column("multiplying"),
        Column("activations", "loads and saves that multiplying does not hide"),
        Column("weights"),
        Column("calls"),
        Column("efficiency", "MAC over what the core could do in that time"),
        Column("frames/s", "all cores at work on different frames, the DPU alone"),
        Column("CPU ms, at least", "traffic of what is left to the CPU, computing not counted"),
        Column("entropy ms", "symbols at the measured time of one A53 core"),
    ]
    rows = [
        [text(r.board), text(r.direction), text(r.variant),
         number(100 * r.runs_on_dpu_share, "%"), number(r.subgraphs), number(r.calls_per_frame),
         number(r.dpu_ms), number(r.compute_ms), number(r.memory_ms), number(r.weights_ms),
         number(r.overhead_ms), number(100 * r.efficiency, "%"),
         speed(r.frames_per_second, r.meets_video), number(r.cpu_ms_at_least), number(r.entropy_ms)]
        for r in model.dpu
    ]  # fmt: skip
    return table(columns, rows, "Predicted times on the DPU, one frame of the video",
                 "The predictor's own errors are under Method.")  # fmt: skip


def speed(frames_per_second: float, enough: bool, prefix: str = "") -> Cell:
    """Give frames per second with a mark for enough or not."""
    mark, kind = ("✓", "good") if enough else ("✗", "bad")
    return Cell(f'<span class="badge {kind}">{mark} {prefix}{write(frames_per_second)}</span>',
                frames_per_second, "number")  # fmt: skip


def _limits(model: ModelResult) -> str:
    found: dict[str, dict[str, list[str]]] = {}  # sentence, direction and variant, boards
    for r in model.dpu:
        for limit in r.limits:
            where = found.setdefault(limit, {}).setdefault(f"{r.direction}, {r.variant}", [])
            where.append(r.board)
    items = []
    for limit, places in found.items():
        shown = "; ".join(f"{where}: {', '.join(boards)}" for where, boards in places.items())
        items.append(f"<li>{escape(limit)} <small>({escape(shown)})</small></li>")
    return f'<p>In the way:</p><ul class="limits">{"".join(items)}</ul>' if items else ""


def _places(model: ModelResult) -> str:
    variants = tuple(dict.fromkeys(r.variant for r in model.dpu))
    counts = {(count.part, r.variant): count for r in model.dpu for count in r.places}
    columns = [Column("part")]
    columns += [Column(name, "", v) for v in variants for name, _ in PLACES.values()]
    rows = []
    for part in dict.fromkeys(part for part, _ in counts):
        row = [text(part)]
        for variant in variants:
            count = counts.get((part, variant))
            row += [number(getattr(count, place) if count else None) for place in PLACES]
        rows.append(row)
    return table(columns, rows, "Layers by place", "Rewrite: would run on the DPU once changed as "
                 "the next table says. Free: no work of its own there.")  # fmt: skip


def _verdicts(model: ModelResult) -> str:
    groups: dict[tuple[str, ...], list[tuple[str, LayerResult]]] = {}
    for part in model.parts:
        for layer in part.layers:
            v = layer.dpu
            key = (layer.kind, v.place, v.limit, v.source, v.rewrite)
            groups.setdefault(key, []).append((part.name, layer))
    columns = [Column("operation"), Column("where"), Column("layers"), Column("kMAC/pixel"),
               Column("parts"), Column("why"), Column("instead"), Column("limit"),
               Column("source")]  # fmt: skip
    order = ["cpu", "rewrite", "dpu", "free"]  # what stands in the way first
    ranked = sorted(groups.items(), key=lambda item: (order.index(item[0][1]), item[0][0]))
    rows = []
    for (kind, place, limit, source, rewrite), layers in ranked:
        word, colour = PLACES[place]
        parts = ", ".join(dict.fromkeys(name for name, _ in layers))
        why = _range({layer.dpu.reason for _, layer in layers})
        rows.append([text(kind), badge(word, colour, order=order.index(place)), number(len(layers)),
                     number(sum(layer.kmac_per_pixel * layer.runs for _, layer in layers)),
                     text(parts), *(text(words or "–", "prose")
                                    for words in (why, rewrite, limit, source))])  # fmt: skip
    return table(columns, rows, "Verdict by operation", "As published; \"instead\" is what the "
                 "rewritten variant has in its place.")  # fmt: skip


def _range(reasons: set[str]) -> str:
    """Give a few reasons in full, many that differ in their figures by the first and the last."""

    def figures(reason: str) -> list[tuple[int, str]]:
        return [(int(word or 0), other) for other, word in re.findall(r"(\D*)(\d*)", reason)]

    ordered = sorted(reasons, key=figures)
    if len(ordered) <= 2:
        return "; ".join(ordered)
    return f"{ordered[0]} ... {ordered[-1]} ({len(ordered)} cases)"


def _layers(model: ModelResult) -> str:
    columns = [Column("layer"), Column("part"), Column("kind"), Column("shape"),
               Column("rows", "of the output, per row of picture"), Column("kMAC/pixel"),
               Column("parameters"), Column("weights, 8 bits"), Column("in B/pixel"),
               Column("out B/pixel"), Column("runs"), Column("where"), Column("DPU cycles",
               "of one core, for a frame of the video, rewritten where it must be")]  # fmt: skip
    rows = []
    for part in model.parts:
        for x in part.layers:
            word, colour = PLACES[x.dpu.place]
            rows.append([text(x.name), text(part.name), text(x.kind), text(x.shape),
                         number(x.scale), number(x.kmac_per_pixel), number(x.parameters, digits=6),
                         size(x.weight_bytes_8bit), number(x.input_bytes_per_pixel),
                         number(x.output_bytes_per_pixel), number(x.runs),
                         badge(word, colour, x.dpu.reason), number(x.cycles_dpu)])  # fmt: skip
    shown = table(columns, rows, f"Layers of {model.name}")
    return f"<details><summary>All {len(rows)} layers</summary>{shown}</details>" if rows else ""


# Pipeline


def _pipeline(model: ModelResult) -> str:
    columns = [
        Column("board"),
        Column("direction"),
        Column("fits", "all of it, within what a core may take of the part"),
        Column("frames/s", "at the assumed clock; 'at most' by the DSPs alone"),
        Column("cycles/pixel"),
        Column("cycles/frame"),
        *(Column(name.upper(), "share of the part") for name in RESOURCES),
        Column("DSP for the video", "that its products need at full occupancy, two each"),
        Column("on chip", "weights at 8 bits and lines at the video's width"),
        Column("of", "memory on the part"),
        Column("lag, lines", "of input before the first output leaves"),
        Column("counted from", "a real folding, or the closed formulas on the list of layers"),
    ]
    rows = [
        [text(r.board), text(r.direction),
         badge(*(("✓ fits", "good") if r.fits and r.has_hardware else ("✗ no", "bad"))),
         pipeline_speed(r), number(r.cycles_per_pixel), number(r.cycles_per_frame, digits=5),
         *(_share(r, name) for name in RESOURCES), number(r.dsp_for_video, digits=4),
         size(r.on_chip_bytes, "" if r.on_chip_bytes <= r.on_chip_bytes_available else "over"),
         size(r.on_chip_bytes_available), number(r.lag_lines),
         text("folding" if r.exact else "formulas")]
        for r in model.pipeline
    ]  # fmt: skip
    notes = []
    for r in model.pipeline:
        words = [r.limit] if r.limit else []
        words += [f"no hardware for {', '.join(map(_instead, r.missing))}"] if r.missing else []
        words += [] if r.lowers else [f"does not lower: {r.lowers_reason}"]
        if words:
            notes.append(f"<li>{escape(r.board)}, {escape(r.direction)}: "
                         f"{escape('; '.join(words))}.</li>")  # fmt: skip
    listed = f'<ul class="limits">{"".join(dict.fromkeys(notes))}</ul>' if notes else ""
    return table(columns, rows, "A stage for each operation, all at work on every line") + listed


def _instead(missing: str) -> str:
    """Rephrase "3 x gdn: a ReLU"."""
    what, separator, replacement = missing.partition(": ")
    return f"{what} (instead: {replacement})" if separator and " x " in what else missing


def pipeline_speed(result: PipelineResult) -> Cell:
    """Give the speed of a folding that fits, or the bound that the DSPs set."""
    if result.fits and result.has_hardware and result.frames_per_second is not None:
        return speed(result.frames_per_second, result.meets_video)
    if result.frames_per_second_at_most is None:
        return number(None)
    return speed(result.frames_per_second_at_most, False, "≤ ")


def _share(result: PipelineResult, name: str) -> Cell:
    for use in result.resources:
        if use.resource == name:
            over = "over" if use.used > use.limit else ""
            if not use.available:
                return number(use.used if use.used else None, "of none" if use.used else "", over)
            cell = number(100 * use.share, "%", over)
            return Cell(f'<span title="{use.used:,.0f} of {use.available:,.0f}">{cell.html}</span>',
                        cell.order, cell.kind)  # fmt: skip
    return number(None)


def _stages(result: PipelineResult) -> str:
    columns = [Column("stage"), Column("operation"), Column("multipliers"), Column("cycles"),
               Column("busy"), Column("DSP"), Column("BRAM36"), Column("URAM"),
               Column("LUT"), Column("FF")]  # fmt: skip
    rows = [
        [text(s.name), text(s.operation), number(s.multipliers, digits=5),
         number(s.cycles, digits=7), number(100 * s.busy_share, "%"), number(s.dsp, digits=5),
         number(s.bram36), number(s.uram), number(s.lut, digits=6), number(s.ff, digits=6)]
        for s in result.stages
    ]  # fmt: skip
    title = f"Folding of the {result.direction}r on the {result.board}"
    shown = table(columns, rows, title, f"{result.clock_mhz:g} MHz is assumed.")
    return f"<details><summary>{escape(title)}, {len(rows)} stages</summary>{shown}</details>"


# Advice and quality


def _advice(model: ModelResult) -> str:
    if not model.advice:
        return "<p>Nothing that the formulas know of.</p>"
    return f'<div class="cards">{"".join(_card(advice) for advice in model.advice)}</div>'


def _card(advice: Advice) -> str:
    training = "needs training" if advice.needs_training else "needs no training"
    return (
        f'<article class="card"><h4>{escape(advice.title)}</h4><p>{escape(advice.change)}</p>'
        f"<p>{escape(advice.reason)}</p>{_effects(advice.effects)}"
        f'<p class="small">Costs: {escape(advice.costs)}; {training}. '
        f"Source: {escape(advice.source)}</p></article>"
    )


def _effects(effects: Iterable[Effect]) -> str:
    """Tabulate effects: "encode, kv260: DPU time" stands in the row DPU time, below kv260."""
    found: dict[tuple[str, str], dict[tuple[str, str], Effect]] = {}  # row, column
    for e in effects:
        where, _, quantity = e.quantity.rpartition(": ")
        direction, _, board = where.partition(", ")
        found.setdefault((quantity, e.unit), {})[board or "model", direction or "change"] = e
    places = list({place: None for row in found.values() for place in row})
    places.sort(key=lambda place: (place[0] != "model", place[0], place[1] != "encode"))
    rows = []
    for (quantity, unit), row in found.items():
        name = f"{quantity} ({unit})" if unit not in ("", "byte") else quantity
        rows.append([text(name), *(_effect(row.get(place)) for place in places)])
    columns = [Column("predicted"), *(Column(way, "", board) for board, way in places)]
    return table(columns, rows, "Effect", "Before → after.")


def _effect(e: Effect | None) -> Cell:
    if e is None:
        return number(None)
    better = (e.after > e.before) == e.higher_is_better
    kind: Kind = "quiet" if e.after == e.before else "good" if better else "bad"
    before, after = (write_size(v) if e.unit == "byte" else write(v) for v in (e.before, e.after))
    return badge(f"{before} → {after}", kind, f"x {write(e.factor)}", e.factor)


def _quality(study: Study, model: ModelResult) -> str:
    columns = [Column("curve"), Column("origin"), Column("against VTM"), Column("against BPG"),
               Column("against JPEG"), Column("source")]  # fmt: skip
    curves = [c for c in study.curves if c.name in model.quality.curves]
    rows = [
        [text(c.name), origin(c.origin), percent(c.bd_rate_vs_vtm_percent),
         percent(c.bd_rate_vs_bpg_percent), percent(c.bd_rate_vs_jpeg_percent),
         text(c.source, "prose")]
        for c in curves
    ]  # fmt: skip
    shown = table(columns, rows, "BD-rate on Kodak, RGB PSNR", "Negative: fewer bits.")
    if model.quality.note:
        shown += f'<p class="note">{escape(model.quality.note)}</p>'
    for e in model.quality.energy:
        derived = f" ({escape(e.derived)})" if e.derived else ""
        shown += (f"<p>Energy: {write(e.nanojoule_per_pixel)} nJ per pixel, {escape(e.what)}"
                  f"{derived}. <small>{escape(e.source)}</small></p>")  # fmt: skip
    return shown or "<p>Nothing is known.</p>"


def origin(name: str) -> Cell:
    """Say whether a figure was measured here or published by others."""
    return badge(name, "good" if name == "measured" else "quiet")


def percent(value: float | None) -> Cell:
    """Give a BD-rate with its sign."""
    return (
        Cell("–", None, "number")
        if value is None
        else Cell(f"{value:+.1f}&nbsp;%", value, "number")
    )
