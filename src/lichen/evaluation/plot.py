"""Rate-distortion plots: measured curves in colour, published ones in grey behind them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lichen.errors import LichenError
from lichen.evaluation.measure import Curve
from lichen.evaluation.published import Published

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AXES = {"psnr": "PSNR, RGB (dB)", "ms_ssim_db": "MS-SSIM, RGB (dB)"}
FORMATS = ("png", "svg")
COST_TICKS = (-50, -20, -10, -5, -2, 0, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def check() -> None:
    """Raise LichenError where matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise LichenError(
            "plots need matplotlib: pip install matplotlib, or leave out --plot"
        ) from error


def draw(
    curves: Sequence[Curve],
    published: Sequence[Published],
    title: str,
    metric: str,
    highest_bpp: float | None = None,
) -> dict[str, bytes]:
    """Draw quality over rate; gives the bytes of a file for each of FORMATS.

    metric: a key of AXES. highest_bpp: the right end; where it is None, as far as the first codec
    goes. The plot is as high as the curves between 0 and there.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 5.2), layout="constrained")  # no pyplot: no windows, no state
    axes = figure.subplots()
    behind = [other for other in published if metric in other.quality]
    lines: list[tuple[Sequence[float], Sequence[float]]] = []
    for number, other in enumerate(behind):
        shade = str(0.3 + 0.4 * number / max(1, len(behind) - 1))
        dashes = ("--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))[number % 4]
        lines.append((other.bpp, other.quality[metric]))
        axes.plot(*lines[-1], ls=dashes, color=shade, lw=1.2, label=other.label)
    for number, curve in enumerate(curves):
        width, marker = (2.4, "o") if number == 0 else (1.2, ".")
        lines.append(curve.points(metric))
        axes.plot(*lines[-1], lw=width, marker=marker, label=curve.label)
    right = highest_bpp or max(curves[0].points(metric)[0])
    seen = [q for rates, levels in lines for r, q in zip(rates, levels) if r <= right and q < 200]
    if seen:
        margin = 0.03 * (max(seen) - min(seen)) + 0.05
        axes.set_ylim(min(seen) - margin, max(seen) + margin)
    axes.set_xlim(0, 1.02 * right)
    axes.set_xlabel("bits per pixel (size of the file)")
    axes.set_ylabel(AXES[metric])
    axes.set_title(title, fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return _files(figure)


def draw_costs(
    groups: Sequence[tuple[str, Sequence[tuple[str, float, float]]]], title: str, ordinate: str
) -> dict[str, bytes]:
    """Draw what networks give over what they cost; gives the bytes of a file for each of FORMATS.

    groups: each with its name, a panel of its own and points (label, kMAC/pixel to encode and to
    decode together, value). ordinate: what the values are; linear between -10 and 10, logarithmic
    beyond, as a network that was cut and not trained on can lose very much.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    figure = Figure(figsize=(8, 4.4 * len(groups)), layout="constrained")
    panels = figure.subplots(len(groups), squeeze=False)[:, 0]
    for axes, (name, points) in zip(panels, groups):
        axes.plot([cost for _, cost, _ in points], [value for _, _, value in points], "o", ms=5)
        axes.set_yscale("symlog", linthresh=10, linscale=1.5)
        axes.margins(0.12)
        low, high = axes.get_ylim()
        axes.set_yticks([tick for tick in COST_TICKS if low <= tick <= high])
        axes.yaxis.set_major_formatter("{x:+g}")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_xlim(0, 1.3 * max(cost for _, cost, _ in points))  # the labels stand on the right
        axes.set_ylabel(ordinate)
        axes.set_title(name, fontsize=9)
        axes.grid(alpha=0.3)
    panels[-1].set_xlabel("kMAC per pixel, encoding and decoding together")
    figure.suptitle(title, fontsize=9)
    figure.draw_without_rendering()  # places are known from here on
    for axes, (_, points) in zip(panels, groups):
        _label(axes, points)
    return _files(figure)


def _label(axes: Axes, points: Sequence[tuple[str, float, float]]) -> None:
    """Write labels beside points, each above those that it would cover."""
    line, letter, taken = 9.0, 4.2, []  # points (1/72 inch) of text of size 7
    scale = 72 / axes.figure.dpi
    placed = sorted(
        ((*(scale * axes.transData.transform((x, y))), x, y, text) for text, x, y in points),
        key=lambda place: place[1],
    )
    for left, bottom, x, y, text in placed:
        right, wanted = left + letter * len(text), bottom
        for other_left, other_right, other in sorted(taken, key=lambda box: box[2]):
            if left < other_right and other_left < right and abs(wanted - other) < line:
                wanted = other + line
        taken.append((left, right, wanted))
        axes.annotate(
            text, (x, y), xytext=(6, wanted - bottom - 2), textcoords="offset points", fontsize=7
        )


def _files(figure: Figure) -> dict[str, bytes]:
    """Give a figure as files. The same figures give the same bytes: no date, ids that stay."""
    import matplotlib

    drawn = {}
    with matplotlib.rc_context({"svg.hashsalt": "lichen"}):
        for name in FORMATS:
            buffer = io.BytesIO()
            metadata = {"Date": None} if name == "svg" else None
            figure.savefig(buffer, format=name, dpi=110, metadata=metadata)
            drawn[name] = buffer.getvalue()
    return drawn
