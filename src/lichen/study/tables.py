"""Tables of the page: cells that know how they sort, and numbers as people read them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

Kind = Literal["good", "bad", "part", "quiet", ""]


@dataclass(frozen=True)
class Cell:
    """One cell. html: what is shown. order: what it sorts by; None sorts last. kind: its class."""

    html: str
    order: float | str | None
    kind: str = ""


@dataclass(frozen=True)
class Column:
    """A column. title may have a unit in it; hint: what a pointer resting on it shows.

    group: written above the neighbouring columns that share it.
    """

    title: str
    hint: str = ""
    group: str = ""


def text(value: str, kind: str = "") -> Cell:
    """Give a cell of plain text."""
    return Cell(escape(value), value.lower(), f"words {kind}".strip())


def number(value: float | None, unit: str = "", kind: str = "", digits: int = 3) -> Cell:
    """Give a cell with a number of so many significant digits; a dash where there is none."""
    if value is None:
        return Cell("–", None, f"number {kind}".strip())
    after = f"&nbsp;{escape(unit)}" if unit else ""
    order = value if math.isfinite(value) else 1e300
    return Cell(f"{write(value, digits)}{after}", order, f"number {kind}".strip())


def size(value: float | None, kind: str = "") -> Cell:
    """Give a cell with a number of bytes."""
    if value is None:
        return number(None, kind=kind)
    return Cell(write_size(value), value, f"number {kind}".strip())


def badge(word: str, kind: Kind, hint: str = "", order: float | None = None) -> Cell:
    """Give a cell with a coloured word; the colour never says what the word does not."""
    shown = f' title="{escape(hint)}"' if hint else ""
    return Cell(f'<span class="badge {kind}"{shown}>{escape(word)}</span>',
                word if order is None else order)  # fmt: skip


def slug(*words: str) -> str:
    """Give an id that links can name, whatever a file is called."""
    return re.sub(r"[^A-Za-z0-9]+", "-", "-".join(words)).strip("-")


def write(value: float, digits: int = 3) -> str:
    """Write a number with so many significant digits, thousands apart; whole ones in full."""
    if not math.isfinite(value):
        return "∞"
    if isinstance(value, int) or value == 0:
        return f"{value:,.0f}"
    power = math.floor(math.log10(abs(value)))
    places = max(0, digits - 1 - power)
    if places > 6:
        return f"{value:.1e}"
    return f"{value:,.{places}f}" if places else f"{round(value, digits - 1 - power):,.0f}"


def write_size(size_bytes: float) -> str:
    """Write a number of bytes in B, kB or MB (1000 each)."""
    for limit, unit in ((1e6, "MB"), (1e3, "kB")):
        if size_bytes >= limit:
            return f"{write(size_bytes / limit)}\xa0{unit}"
    return f"{write(size_bytes)}\xa0B"


def table(
    columns: Sequence[Column], rows: Iterable[Sequence[Cell]], title: str, note: str = ""
) -> str:
    """Give a table whose columns sort; it scrolls in its own frame where a screen is narrow.

    The first cell of a row is its head. note: HTML behind the title. "" where there are no rows.
    """
    body, rows = [], list(rows)
    groups = [column.group for column in columns]
    edges = {i for i in range(1, len(groups)) if groups[i] and groups[i] != groups[i - 1]}
    for row in rows:
        assert len(row) == len(columns), (len(row), [column.title for column in columns])
        first, *others = row
        cells = [f'<th scope="row"{_data(first)}>{first.html}</th>']
        cells += [
            f"<td{_data(cell, index in edges)}>{cell.html}</td>"
            for index, cell in enumerate(others, 1)
        ]
        body.append(f"<tr>{''.join(cells)}</tr>")
    if not body:
        return ""
    heads = []
    for index, column in enumerate(columns):
        hint = f' title="{escape(column.hint)}"' if column.hint else ""
        kind = ' class="number"' if rows[0][index].kind.startswith("number") else ""
        button = f'<button type="button"{hint}>{escape(column.title)}</button>'
        heads.append(f'<th scope="col"{kind}>{button}</th>')
    return (
        f'<div class="frame" tabindex="0" role="region" aria-label="{escape(title)}">'
        f'<table class="sortable"><caption><div><strong>{escape(title)}</strong> {note}'
        f"</div></caption><thead>{_groups(columns)}<tr>{''.join(heads)}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _data(cell: Cell, edge: bool = False) -> str:
    order = "" if cell.order is None else f' data-order="{escape(str(cell.order))}"'
    kind = f"{cell.kind}{' edge' * edge}".strip()
    return order + (f' class="{kind}"' if kind else "")


def _groups(columns: Sequence[Column]) -> str:
    if not any(column.group for column in columns):
        return ""
    spans: list[tuple[str, int]] = []
    for column in columns:
        if spans and spans[-1][0] == column.group:
            spans[-1] = (column.group, spans[-1][1] + 1)
        else:
            spans.append((column.group, 1))
    cells = [
        f'<th scope="colgroup" colspan="{count}">{escape(name)}</th>' if name
        else f'<td colspan="{count}"></td>'
        for name, count in spans
    ]  # fmt: skip
    return f'<tr class="groups">{"".join(cells)}</tr>'
