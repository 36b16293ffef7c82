"""Charts of a study: speed, rooflines, rate against cost, rate-distortion, operations, errors.

Each function gives an HTML `figure`: title, how to read it, legend, and the drawing for wide and
for narrow screens. Every value that is drawn stands in a table of the page too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from html import escape

from lichen.study.result import (
    BoardResult,
    Curve,
    DpuResult,
    ModelResult,
    PartResult,
    Predictor,
    Study,
)
from lichen.study.svg import COLOURS, Drawing, Scale, shape_path, short, span
from lichen.study.tables import slug

# Widths in px: alone on a line; two side by side; on a screen of 375 or so.
WIDE, HALF, NARROW = 1080.0, 580.0, 344.0
PART_SHAPES = {
    "g_a": "triangle", "g_s": "wedge", "h_a": "square", "h_s": "diamond", "slices": "plus",
    "lrp": "cross",
}  # fmt: skip
DIRECTIONS = ("encode", "decode")


def colour(study: Study, model: str) -> str:
    """Give the class of a model's colour; models beyond COLOURS begin again."""
    names = [entry.name for entry in study.models]
    return f"c{names.index(model) % COLOURS}"


def figure(
    name: str,
    title: str,
    text: str,
    legend: str,
    draw: Callable[[float], Drawing],
    width: float = HALF,
) -> str:
    """Give a figure that is drawn `width` wide and for narrow screens. text, legend: HTML."""
    return (
        f'<figure class="chart" id="{slug(name)}"><figcaption><strong>{escape(title)}</strong> '
        f"{text}</figcaption>{legend}{draw(width).svg('wide')}{draw(NARROW).svg('narrow')}</figure>"
    )


def legend(entries: Iterable[tuple[str, str, str]]) -> str:
    """Give a legend of (shape or "line", class, text)."""
    items = []
    for shape, kind, text in entries:
        data = "M0 6L18 6" if shape == "line" else shape_path(shape, 9, 6, 4.5)
        mark = kind if shape == "line" else f"mark {kind}"
        items.append(
            f'<li><svg width="18" height="12" aria-hidden="true"><path class="{mark}" d="{data}"/>'
            f"</svg>{escape(text)}</li>"
        )
    return f'<ul class="legend">{"".join(items)}</ul>'


# Speed

TAKEN = 0.99  # of the products: a DPU that takes less leaves the model's speed to the CPU
SPEED_LEGEND = (
    ("circle", "hollow k0", "DPU, as published, where it takes all"),
    ("circle", "k0", "DPU, rewritten"),
    ("square", "k1", "our pipeline, folded"),
    ("square", "hollow k1", "our pipeline, at most by its DSPs: something is missing or too large"),
    ("line", "target", "the video"),
)


def speeds_legend() -> str:
    """Say how to read `speeds`, once for all boards."""
    return (
        "<p>Right of the dashed line is fast enough for the video. The DPU's speed is that of all "
        "its cores; work left to the CPU and entropy coding are not in it.</p>"
        + legend(SPEED_LEGEND)
    )


def speeds(study: Study, board: str, direction: str) -> str:
    """Frames per second of every model on a board."""
    video = study.video
    rows = [
        (model, [r for r in model.dpu if (r.board, r.direction) == (board, direction)
                 and (r.variant == "rewritten" or r.runs_on_dpu_share >= TAKEN)],
         [r for r in model.pipeline if (r.board, r.direction) == (board, direction)])
        for model in study.models
    ]  # fmt: skip
    values = [video.frames_per_second]
    values += [r.frames_per_second for _, dpu, _ in rows for r in dpu]
    values += [
        v for _, _, pipe in rows for r in pipe
        for v in (r.frames_per_second, r.frames_per_second_at_most) if v
    ]  # fmt: skip
    title = f"Frames per second on the {board}, {direction}"

    def draw(width: float) -> Drawing:
        narrow = width == NARROW
        drawing = Drawing(width, 62 + 28.0 * len(rows), title, left=(94 if narrow else 150))
        x = Scale(*span(values, log=True), *drawing.across, log=True)
        drawing.x_axis(x, f"{video.width}x{video.height} frames/s", 44)
        low, high = drawing.upwards
        for number, (model, dpu, pipeline) in enumerate(rows):
            at = high + 14 + 28.0 * number
            drawing.line(drawing.left, at, drawing.width - drawing.right, at, "grid")
            drawing.text(drawing.left - 8, at + 4, _cut(model.name, 13 if narrow else 22),
                         "tick", "end")  # fmt: skip
            for r in dpu:
                hollow = "hollow " if r.variant == "as published" else ""
                if r.frames_per_second > 0:
                    lift = 6 if hollow else 1
                    hint = f"{model.name}, DPU {r.variant}: {short(r.frames_per_second)}/s"
                    drawing.mark(x(r.frames_per_second), at - lift, "circle", f"{hollow}k0", hint)
            for p in pipeline:
                value = p.frames_per_second or p.frames_per_second_at_most
                if value:
                    whole = p.frames_per_second and p.fits and p.has_hardware
                    what = "folded" if whole else "at most"
                    drawing.mark(x(value), at + 6, "square", "k1" if whole else "hollow k1",
                                 f"{model.name}, pipeline, {what}: {short(value)}/s")  # fmt: skip
        drawing.line(drawing.left, low, drawing.left, high, "axis y-axis")
        at = x(video.frames_per_second)
        drawing.line(at, low, at, high - 6, "target")
        return drawing

    return figure(f"speed-{board}-{direction}", title, "", "", draw)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


# Rooflines


def roofline(study: Study, board: BoardResult) -> str:
    """What the video asks of each part, under what the board's DPU can give."""
    pixels = study.video.width * study.video.height * study.video.frames_per_second
    points = []
    for model in study.models:
        for part in model.parts:
            for r in part.roofline:
                if r.board == board.name and part.kmac_per_pixel > 0:
                    asked = part.kmac_per_pixel * pixels / 1e6
                    points.append((model, part, r, asked))
    peak, bandwidth = board.dpu_peak_gmac_per_s, board.dram_gbyte_per_s
    title = f"Roofline of the {board.name}"
    shapes = {p.name: _part_shape(p) for model in study.models for p in model.parts}

    def draw(width: float) -> Drawing:
        drawing = Drawing(width, 400 if width != NARROW else 360, title)
        ridge = peak / bandwidth
        xs = [r.intensity_mac_per_byte for _, _, r, _ in points] + [ridge / 4, ridge * 8]
        ys = [asked for *_, asked in points] + [peak * 2, board.pipeline_peak_gmac_per_s]
        x = Scale(*span(xs, log=True), *drawing.across, log=True)
        y = Scale(*span(ys, log=True), *drawing.upwards, log=True)
        drawing.x_axis(x, "MAC per byte of DRAM traffic (8 bits)")
        drawing.y_axis(y, "GMAC/s")
        foot = max(x.low, y.low / bandwidth)
        roof = [(foot, foot * bandwidth), (ridge, peak), (x.high, peak)]
        drawing.path([(x(a), y(b)) for a, b in roof], "roof",
                     f"{peak:.0f} GMAC/s, {bandwidth:g} GB/s")  # fmt: skip
        over = y(board.pipeline_peak_gmac_per_s)
        drawing.line(*(drawing.left, over), *(drawing.width - drawing.right, over), "roof second")
        for model, part, r, asked in points:
            at = x(r.intensity_mac_per_byte), y(asked)
            reaches = r.frames_per_second_at_roof
            drawing.mark(*at, shapes[part.name], colour(study, model.name),
                         f"{model.name} {part.name}: {short(asked)} GMAC/s asked for, "
                         f"{short(r.attainable_gmac_per_s)} at the roof ({r.bound}), "
                         f"{short(reaches)} frames/s", 4.5)  # fmt: skip
        top = sorted(points, key=lambda point: -point[3])
        for model, part, r, asked in top[: 10 if width != NARROW else 4]:
            name = f"{model.name} {part.name}"
            drawing.label(x(r.intensity_mac_per_byte), y(asked), name)
        return drawing

    text = (
        f"DPU {peak:.0f} GMAC/s, DRAM {bandwidth:g} GB/s, pipeline "
        f"{board.pipeline_peak_gmac_per_s:.0f} GMAC/s."
    )
    return figure(f"roofline-{board.name}", title, text, "", draw)


def roofline_legend(study: Study) -> str:
    """Say how to read `roofline`, once for all boards."""
    shapes = {part.name: _part_shape(part) for model in study.models for part in model.parts}
    entries = [("circle", colour(study, model.name), model.name) for model in study.models]
    entries += [(shape, "k2", name) for name, shape in shapes.items() if name in PART_SHAPES]
    if any(name not in PART_SHAPES for name in shapes):
        entries.append(("circle", "k2", "another part"))
    entries += [("line", "roof", "the DPU's roof"),
                ("line", "roof second", "our pipeline's multipliers")]  # fmt: skip
    return (
        f"<p>Each mark is a part of a model: what {study.video.width}x{study.video.height} at "
        f"{study.video.frames_per_second:g} frames/s asks for, over how much it multiplies per "
        "byte that goes to or from DRAM when it runs layer by layer. Above the roof it cannot run "
        "at that speed. The pipeline keeps weights and lines on chip: for it only the height "
        "counts.</p>" + legend(entries)
    )


def _part_shape(part: PartResult) -> str:
    return PART_SHAPES.get(part.name, "circle")


# What it buys

RATE_TICKS = (-50, -30, -20, -10, 0, 10, 20, 30, 50, 75, 100, 150, 200, 300, 500)
NO_MACS_PX = (190.0, 62.0)  # width of the strip for codecs without a network: wide, narrow


def is_ours(curve: Curve) -> bool:
    """Tell whether a curve was measured here."""
    return curve.origin == "measured"


def curve_class(study: Study, curve: Curve) -> str:
    """Give a curve's class: its model's colour, or that of its kind; hollow where published."""
    hollow = "" if is_ours(curve) else "hollow "
    for model in study.models:
        if curve.name in model.quality.curves:
            return hollow + colour(study, model.name)
    return hollow + ("k2" if curve.kind == "classical" else "k3")


def rate_cost(study: Study) -> str:
    """BD-rate against VTM over the decoder's products, for all curves that have both."""
    against = {c.name: 0.0 if c.name == "VTM" else c.bd_rate_vs_vtm_percent for c in study.curves}
    level = {name: 100 + rate for name, rate in against.items() if rate is not None}
    known = [c for c in study.curves if c.name in level]
    networks = [c for c in known if c.decode_kmac_per_pixel]
    classical = [c for c in known if c.kind == "classical"]
    rates = [level[c.name] for c in (*networks, *classical)]
    title = "Rate against cost, Kodak"

    def draw(width: float) -> Drawing:
        wide = width != NARROW
        drawing = Drawing(width, 560 if wide else 420, title, left=68)
        y = Scale(*span([*rates, 90.0, 200.0], log=True), *drawing.upwards, log=True)
        ticks = [(100.0 + t, f"{t:+d}%" if t else "0") for t in RATE_TICKS if y.holds(100 + t)]
        if not wide:
            ticks = [tick for tick in ticks if tick[0] not in (90, 120, 130, 175)]
        drawing.y_axis(y, "BD-rate against VTM, RGB PSNR (fewer bits: lower)", ticks)
        strip = drawing.left + NO_MACS_PX[0 if wide else 1]
        x = Scale(*span([c.decode_kmac_per_pixel or 0 for c in networks], log=True),
                  strip + 12, drawing.width - drawing.right, log=True)  # fmt: skip
        drawing.x_axis(x, "kMAC per pixel to decode")
        low, high = drawing.upwards
        drawing.line(strip, low, strip, high, "grid strong")
        drawing.text((drawing.left + strip) / 2, low + 15, "no network", "tick", "middle")
        marks = [(drawing.left + 12, c) for c in classical]
        marks += [(x(c.decode_kmac_per_pixel or 0), c) for c in networks]
        kinds = ("model", "classical", "peer")
        order = sorted(marks, key=lambda entry: (kinds.index(entry[1].kind), not is_ours(entry[1])))
        for at, c in order:
            count = c.decode_kmac_per_pixel
            kmac = f", {short(count)} kMAC/pixel" if count else ""
            hint = f"{c.name}: {level[c.name] - 100:+.1f} %{kmac} ({c.origin})"
            drawing.mark(at, y(level[c.name]), _curve_shape(c),
                         curve_class(study, c), hint)  # fmt: skip
        for at, c in order:
            name = _cut(_short_name(study, c), 30 if wide else 16)
            drawing.label(at, y(level[c.name]), name)
        return drawing

    text = (
        "Down and left is better. Filled: measured here on real files. Hollow: published by "
        "others. Codecs without a count are in the table only; marks without a name had no room "
        "for it, point at them."
    )
    entries = legend(_curve_entries(study, networks + classical))
    return figure("rate-cost", title, text, entries, draw, WIDE)


def _short_name(study: Study, curve: Curve) -> str:
    """Give the name of the model whose first curve this is, or the curve's own; "": a further."""
    for model in study.models:
        if curve.name in model.quality.curves:
            return model.name if curve.name == model.quality.curves[0] else ""
    return curve.name


def _curve_shape(curve: Curve) -> str:
    return {"model": "circle", "peer": "diamond", "classical": "square"}[curve.kind]


def _curve_entries(study: Study, curves: Sequence[Curve]) -> list[tuple[str, str, str]]:
    entries = []
    for model in study.models:
        found = [c for c in curves if c.name in model.quality.curves]
        if found:
            entries.append(("circle", curve_class(study, found[0]), model.name))
    names = (("model", "another size of these models"), ("peer", "peers"),
             ("classical", "classical codecs"))  # fmt: skip
    for kind, text in names:
        found = [c for c in curves if c.kind == kind]
        found = [c for c in found if curve_class(study, c).split()[-1] in ("k2", "k3")]
        if found:
            entries.append((_curve_shape(found[0]), curve_class(study, found[0]), text))
    return entries


CLASSICAL_SHOWN = ("VTM", "BPG444", "AV1", "WebP", "JPEG (", "JPEG 4")


def rate_distortion(study: Study) -> str:
    """PSNR over bits per pixel, of the models and of a few classical codecs."""
    models = [(m, c) for m in study.models for c in study.curves if c.name in m.quality.curves]
    chosen: dict[str, Curve] = {}
    for start in CLASSICAL_SHOWN:
        for c in study.curves:
            if c.kind == "classical" and c.name.startswith(start):
                chosen.setdefault(start, c)
    curves = list({c.name: c for c in [*chosen.values(), *(c for _, c in models)]}.values())
    title = "Rate and distortion, Kodak"
    right = max((b for _, c in models for b in c.bpp), default=2.0)

    def draw(width: float) -> Drawing:
        drawing = Drawing(width, 420 if width != NARROW else 360, title)
        x = Scale(0, min(2.0, right) * 1.02, *drawing.across)
        seen = [p for c in curves for b, p in zip(c.bpp, c.psnr_rgb_db) if x.holds(b)]
        y = Scale(*span(seen, margin=0.03), *drawing.upwards)
        drawing.x_axis(x, "bits per pixel")
        drawing.y_axis(y, "PSNR over RGB (dB)")
        for c in curves:
            points = [(x(b), y(p)) for b, p in zip(c.bpp, c.psnr_rgb_db) if x.holds(b)]
            kind = curve_class(study, c).replace("hollow ", "dashed ")
            if len(points) > 1:
                drawing.path(points, f"curve {kind}", f"{c.name} ({c.origin})")
        for c in curves:  # names at the right end
            points = [(x(b), y(p)) for b, p in zip(c.bpp, c.psnr_rgb_db) if x.holds(b)]
            if points:
                name = _cut(_short_name(study, c), 26 if width != NARROW else 14)
                drawing.label(*points[-1], name)
        return drawing

    text = "Mean over 24 pictures. Solid: measured here, whole files. Dashed: published."
    entries = [("line", "curve " + curve_class(study, c).replace("hollow ", "dashed "), c.name)
               for c in curves if c.kind != "classical"]  # fmt: skip
    entries.append(("line", "curve dashed k2", "classical codecs, named at their ends"))
    return figure("rate-distortion", title, text, legend(entries), draw, WIDE)


# A model's own


def operations(study: Study, model: ModelResult) -> str:
    """Products and layers of each kind of operation, stacked by part."""
    kinds: dict[str, dict[str, float]] = {}
    counts: dict[str, int] = {}
    for part in model.parts:
        for op in part.operations:
            kinds.setdefault(op.kind, {})[part.name] = op.kmac_per_pixel
            counts[op.kind] = counts.get(op.kind, 0) + op.count
    order = sorted(kinds, key=lambda kind: (-sum(kinds[kind].values()), -counts[kind], kind))
    most = max((sum(parts.values()) for parts in kinds.values()), default=0.0) or 1.0
    names = [part.name for part in model.parts]
    title = f"Operations of {model.name}"

    def draw(width: float) -> Drawing:
        wide = width != NARROW
        drawing = Drawing(width, 58 + 20.0 * len(order), title, left=110, right=110 if wide else 74)
        x = Scale(0, most, *drawing.across)
        drawing.x_axis(x, "kMAC per pixel of picture", 52)
        low, high = drawing.upwards
        for number, kind in enumerate(order):
            at = high + 4 + 20.0 * number
            start = x(0)
            for part in names:
                value = kinds[kind].get(part, 0.0)
                if value:
                    share = x(value) - x(0)
                    drawing.box(start, at, share, 13, f"bar k{names.index(part) % 8 + 4}",
                                f"{kind} in {part}: {value:.3g} kMAC/pixel")  # fmt: skip
                    start += share
            total = sum(kinds[kind].values())
            amount = f"{total:.3g}, " if total else ""
            text = f"{amount}{counts[kind]}x" if not wide else (
                f"{amount}{counts[kind]} layer{'s' * (counts[kind] != 1)}")  # fmt: skip
            drawing.text(drawing.left - 8, at + 11, _cut(kind, 17), "tick", "end")
            drawing.text(start + 6, at + 11, text, "label")
        drawing.line(drawing.left, low, drawing.left, high, "axis y-axis")
        return drawing

    used = [name for name in names if any(kinds[kind].get(name) for kind in order)]
    entries = [("square", f"k{names.index(name) % 8 + 4}", name) for name in used]
    text = "Products by kind and part, and how many layers there are of each kind."
    return figure(f"operations-{model.name}", title, text, legend(entries), draw, 760.0)


TIMES = (
    ("compute_ms", "multiplying", "k4"), ("memory_ms", "activations", "k5"),
    ("weights_ms", "weights", "k6"), ("overhead_ms", "calls", "k7"),
)  # fmt: skip


def frame_time(study: Study, model: ModelResult, board: str) -> str:
    """Where the time of a frame goes on one DPU core."""
    rows: list[DpuResult] = [r for r in model.dpu if r.board == board]
    most = max((r.dpu_ms for r in rows), default=0.0) or 1.0
    title = f"{model.name} on one DPU core of the {board}"
    cores = max((r.cores for r in rows), default=1)
    budget = 1000.0 / study.video.frames_per_second  # ms

    def draw(width: float) -> Drawing:
        wide = width != NARROW
        drawing = Drawing(width, 56 + 24.0 * len(rows), title, left=150 if wide else 92, right=70)
        x = Scale(0, most, *drawing.across)
        drawing.x_axis(x, "ms per frame", 52)
        low, high = drawing.upwards
        for number, r in enumerate(rows):
            at = high + 3 + 24.0 * number
            start = x(0)
            for name, meaning, kind in TIMES:
                share = x(getattr(r, name)) - x(0)
                drawing.box(start, at, share, 16, f"bar {kind}",
                            f"{meaning}: {getattr(r, name):.3g} ms")  # fmt: skip
                start += share
            variant = (
                r.variant if wide else {"as published": "publ.", "rewritten": "rewr."}[r.variant]
            )
            drawing.text(drawing.left - 8, at + 12, f"{r.direction}, {variant}", "tick", "end")
            drawing.text(start + 6, at + 12, f"{short(round(r.dpu_ms, 1))} ms", "label")
        drawing.line(drawing.left, low, drawing.left, high, "axis y-axis")
        if budget * cores <= most:
            at = x(budget * cores)
            drawing.line(at, low, at, high - 6, "target")
        return drawing

    entries = [("square", kind, text) for _, text, kind in TIMES]
    if budget * cores <= most:
        entries.append(("line", "target", f"allowed with {cores} core{'s' * (cores > 1)}"))
    text = (
        "Predicted time of the DPU's subgraphs for one frame. As published, only what the DPU "
        "takes is in it: the rest runs on the CPU."
    )
    return figure(f"time-{model.name}-{board}", title, text, legend(entries), draw)


def predictions(predictor: Predictor) -> str:
    """Predicted over measured, for every check of a predictor."""
    checks = [c for c in predictor.checks if c.predicted > 0 and c.measured > 0]
    units = {c.unit for c in checks}
    unit = f" ({units.pop()})" if len(units) == 1 else ""
    title = f"Predicted and measured: {predictor.title}"

    def draw(width: float) -> Drawing:
        drawing = Drawing(min(width, 480.0), 330, title)
        ends = span([v for c in checks for v in (c.predicted, c.measured)], log=True)
        x = Scale(*ends, *drawing.across, log=True)
        y = Scale(*ends, *drawing.upwards, log=True)
        drawing.x_axis(x, f"measured{unit}")
        drawing.y_axis(y, f"predicted{unit}")
        drawing.path([(x(v), y(v)) for v in ends], "roof second")
        for c in checks:
            drawing.mark(x(c.measured), y(c.predicted), "circle",
                         "hollow k0" if c.role == "fit" else "k0",
                         f"{c.name}: {short(c.predicted)} for {short(c.measured)} {c.unit}, "
                         f"{c.error_percent:+.1f} %", 4)  # fmt: skip
        for c in sorted(checks, key=lambda c: -abs(c.error_percent))[:4]:
            drawing.label(
                x(c.measured), y(c.predicted), f"{_cut(c.name, 22)} {c.error_percent:+.0f}%"
            )
        return drawing

    entries = [("line", "roof second", "equal")]
    roles = {c.role for c in checks}
    entries += [("circle", "k0", "a check")] * ("check" in roles)
    entries += [("circle", "hollow k0", "constants were fitted on it")] * ("fit" in roles)
    return figure(f"errors-{predictor.name}", title, escape(predictor.target),
                  legend(entries), draw)  # fmt: skip
