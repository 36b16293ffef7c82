"""SVG: axes, marks and labels of the study's charts, as text that needs nothing from outside.

Sizes are CSS pixels of the drawing; a chart is drawn once for wide and once for narrow screens
(`figure` in study.html shows the one that fits), so that letters keep their size. Colours and
strokes are classes: study.css holds them, for light, dark and paper.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

LETTER_PX = 6.7  # mean width of a letter at the 11 px of labels
LINE_PX = 13.0
COLOURS = 10  # classes c0..c9
SHAPES = ("circle", "triangle", "square", "diamond", "plus", "cross", "wedge")


@dataclass(frozen=True)
class Scale:
    """An axis: low at the pixel `start`, high at `end`, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Give the pixel of a value, which may lie outside."""
        low, high, value = ((math.log(v) if self.log else v) for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def holds(self, value: float) -> bool:
        """Tell whether a value lies on the axis."""
        return self.low <= value <= self.high

    def ticks(self, spacing_px: float = 48.0) -> list[float]:
        """Give round values, about `spacing_px` apart or more."""
        room = max(2, int(abs(self.end - self.start) / spacing_px))
        if not self.log:
            step = _round_step((self.high - self.low) / room)
            first = math.ceil(self.low / step - 1e-9)
            last = math.floor(self.high / step + 1e-9)
            return [number * step for number in range(first, last + 1)]
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        decades = math.log10(self.high / self.low)
        digits = (1, 2, 5) if room >= 3 * decades else (1, 3) if room >= 2 * decades else (1,)
        every = 1 if len(digits) > 1 else max(1, math.ceil(decades / room))
        found = [d * 10.0**power for power in range(first, last + 1, every) for d in digits]
        return [value for value in found if self.low <= value * 1.000001 <= self.high * 1.00001]


def _round_step(least: float) -> float:
    """Give the smallest of 1, 2, 2.5, 5 times a power of ten that is not below."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= least * 0.999)


def span(values: Iterable[float], log: bool = False, margin: float = 0.06) -> tuple[float, float]:
    """Give an axis's ends for values, with a margin; 1..10 where there are none."""
    found = [v for v in values if math.isfinite(v) and (v > 0 or not log)]
    if not found:
        return (1.0, 10.0)
    low, high = min(found), max(found)
    if log:
        room = max(1.3, (high / low) ** margin)
        return low / room, high * room
    room = margin * (high - low) or abs(high) * 0.1 or 1.0
    return low - room, high + room


def short(value: float) -> str:
    """Write a tick: 0.05, 3, 2k, 1.5M."""
    size = abs(value)
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            divisor = 1e3 if letter == "k" else limit
            return f"{value / divisor:.3g}{letter}"
    return f"{value:.4g}"


@dataclass
class Drawing:
    """A chart in the making: a plot area inside margins, and the marks that are drawn in it."""

    width: float
    height: float
    title: str
    left: float = 54.0
    right: float = 14.0
    top: float = 12.0
    bottom: float = 42.0
    parts: list[str] = field(default_factory=list)
    taken: list[tuple[float, float, float, float]] = field(default_factory=list)

    @property
    def across(self) -> tuple[float, float]:
        """Left and right end of the plot area."""
        return self.left, self.width - self.right

    @property
    def upwards(self) -> tuple[float, float]:
        """Lower and upper end of the plot area."""
        return self.height - self.bottom, self.top

    def x_axis(self, scale: Scale, title: str, spacing_px: float = 48.0) -> None:
        """Draw ticks with their grid lines below, and the axis's title with its unit."""
        low, high = self.upwards
        for value in scale.ticks(spacing_px):
            at = scale(value)
            self.line(at, low, at, high, "grid")
            self.text(at, low + 15, short(value), "tick", "middle")
        self.line(scale.start, low, scale.end, low, "axis x-axis")
        self.text((scale.start + scale.end) / 2, self.height - 6, title, "axis-title", "middle")

    def y_axis(
        self, scale: Scale, title: str, ticks: Sequence[tuple[float, str]] | None = None
    ) -> None:
        """Draw ticks with their grid lines on the left, and the axis's title along it.

        ticks: values and what is written there, where they are not plain numbers.
        """
        first, last = self.across
        for value, text in ticks or [(value, short(value)) for value in scale.ticks(34.0)]:
            at = scale(value)
            self.line(first, at, last, at, "grid")
            self.text(first - 6, at + 4, text, "tick", "end")
        self.line(first, scale.start, first, scale.end, "axis y-axis")
        middle = (scale.start + scale.end) / 2
        self.parts.append(
            f'<text class="axis-title" text-anchor="middle" transform="translate(12 {middle:.1f}) '
            f'rotate(-90)">{escape(title)}</text>'
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        """Draw a straight line of a class."""
        self.path([(x1, y1), (x2, y2)], kind)

    def path(self, points: Sequence[tuple[float, float]], kind: str, hint: str = "") -> None:
        """Draw a line through points. hint: what a pointer resting on it shows."""
        data = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        self.parts.append(f'<path class="{kind}" d="{data}">{_hint(hint)}</path>')

    def box(
        self, x: float, y: float, width: float, height: float, kind: str, hint: str = ""
    ) -> None:
        """Draw a filled rectangle of a class."""
        self.parts.append(
            f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{max(0.0, width):.1f}" '
            f'height="{height:.1f}">{_hint(hint)}</rect>'
        )

    def text(self, x: float, y: float, text: str, kind: str, anchor: str = "start") -> None:
        """Write text whose base line begins, ends or is centred at a point."""
        self.parts.append(
            f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
            f"{escape(text)}</text>"
        )

    def mark(self, x: float, y: float, shape: str, kind: str, hint: str, size: float = 4.5) -> None:
        """Draw a mark of one of SHAPES; labels placed later keep off it."""
        self.parts.append(
            f'<path class="mark {kind}" d="{shape_path(shape, x, y, size)}">{_hint(hint)}</path>'
        )
        self.taken.append((x - size, y - size, x + size, y + size))

    def label(self, x: float, y: float, text: str, kind: str = "label") -> bool:
        """Write text beside a mark where nothing is yet; tells whether there was room."""
        if not text:
            return False
        width = LETTER_PX * len(text) + 2
        low, high = self.upwards
        for dx, dy, anchor in _SIDES:
            start = {"start": x + dx, "end": x + dx - width, "middle": x + dx - width / 2}[anchor]
            box = (start, y + dy - 9, start + width, y + dy + 3)
            inside = box[0] > self.left and box[2] < self.width - 4 and high < box[1] < box[3] < low
            if inside and not any(_overlap(box, other) for other in self.taken):
                self.taken.append(box)
                self.text(x + dx, y + dy, text, kind, anchor)
                return True
        return False

    def svg(self, kind: str) -> str:
        """Give the finished chart. kind: its class, "wide" or "narrow"."""
        return (
            f'<svg class="{kind}" viewBox="0 0 {self.width:g} {self.height:g}" role="img" '
            f'width="{self.width:g}" height="{self.height:g}" '
            f'aria-label="{escape(self.title)}">' + "".join(self.parts) + "</svg>"
        )


_SIDES = (
    (8, 4, "start"), (-8, 4, "end"), (0, -9, "middle"), (0, 17, "middle"),
    (7, -6, "start"), (7, 14, "start"), (-7, -6, "end"), (-7, 14, "end"),
    (0, 22, "middle"), (0, -14, "middle"),
)  # fmt: skip


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _hint(text: str) -> str:
    return f"<title>{escape(text)}</title>" if text else ""


def shape_path(shape: str, x: float, y: float, size: float) -> str:
    """Give the path data of a mark of one of SHAPES, its centre at a point."""
    r = size

    def polygon(*corners: tuple[float, float]) -> str:
        return "M" + "L".join(f"{x + dx * r:.1f} {y + dy * r:.1f}" for dx, dy in corners) + "Z"

    match shape:
        case "triangle":
            return polygon((0, -1.2), (1.15, 0.9), (-1.15, 0.9))
        case "wedge":
            return polygon((0, 1.2), (1.15, -0.9), (-1.15, -0.9))
        case "square":
            return polygon((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9))
        case "diamond":
            return polygon((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0))
        case "plus" | "cross":
            arms = [(-1.2, -0.35), (-0.35, -0.35), (-0.35, -1.2), (0.35, -1.2), (0.35, -0.35),
                    (1.2, -0.35), (1.2, 0.35), (0.35, 0.35), (0.35, 1.2), (-0.35, 1.2),
                    (-0.35, 0.35), (-1.2, 0.35)]  # fmt: skip
            turn = math.pi / 4 if shape == "cross" else 0.0
            c, s = math.cos(turn), math.sin(turn)
            return polygon(*((c * dx - s * dy, s * dx + c * dy) for dx, dy in arms))
        case _:
            return f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r:g} 0a{r} {r} 0 1 0 {-2 * r:g} 0Z"
