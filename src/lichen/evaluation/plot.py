"""Rate-distortion plots: measured curves in colour, published ones in grey behind them."""

from __future__ import annotations

import io
from collections.abc import Sequence

from lichen.errors import LichenError
from lichen.evaluation.measure import Curve
from lichen.evaluation.published import Published

AXES = {"psnr": "PSNR, RGB (dB)", "ms_ssim_db": "MS-SSIM, RGB (dB)"}
FORMATS = ("png", "svg")


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
    import matplotlib
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
    # The same figures give the same bytes: no date, and ids that do not change.
    drawn = {}
    with matplotlib.rc_context({"svg.hashsalt": "lichen"}):
        for name in FORMATS:
            buffer = io.BytesIO()
            metadata = {"Date": None} if name == "svg" else None
            figure.savefig(buffer, format=name, dpi=110, metadata=metadata)
            drawn[name] = buffer.getvalue()
    return drawn
