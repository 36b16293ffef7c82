"""The study's page as a reader meets it: drawn, sorted, on a phone, on paper, in the dark."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="a study needs PyTorch: pip install 'lichen[train]'")

from study_example import example
from tab import Tab

from lichen.study.page import render

# Marks, bars and curves that lie outside the plot area of their chart, or have no size; and charts
# without any. A visible chart is one that takes room on the screen.
OUTSIDE = """
const found = [];
let drawn = 0;
for (const figure of document.querySelectorAll("figure.chart")) {
  const name = figure.id;
  const shown = [...figure.querySelectorAll("svg[role=img]")].filter((svg) => svg.clientWidth > 0);
  if (shown.length !== 1) { found.push(`${name}: ${shown.length} drawings shown`); continue; }
  drawn += 1;
  const svg = shown[0];
  const [x, y] = ["x", "y"].map((axis) => svg.querySelector(`.${axis}-axis`).getBBox());
  const marks = [...svg.querySelectorAll(".mark, .bar, .curve, .roof")];
  if (!marks.length) found.push(`${name}: nothing is drawn`);
  for (const mark of marks) {
    const box = mark.getBBox();
    if (box.width + box.height === 0) found.push(`${name}: a mark without size`);
    // the strip of codecs without a network lies left of the axis, by design
    const left = svg.getAttribute("aria-label").startsWith("Rate against") ? 60 : x.x;
    const inside = box.x >= left - 6 && box.x + box.width <= x.x + x.width + 6 &&
      box.y >= y.y - 6 && box.y + box.height <= y.y + y.height + 6;
    if (!inside) found.push(`${name}: ${mark.getAttribute("class")} outside its axes`);
  }
  const titles = [...svg.querySelectorAll(".axis-title")].map((text) => text.textContent.length);
  if (!titles.length || Math.min(...titles) < 3) found.push(`${name}: axis untitled`);
  if (!svg.querySelectorAll(".tick").length) found.push(`${name}: no ticks`);
  for (const text of svg.querySelectorAll("text")) {
    const box = text.getBoundingClientRect(), frame = svg.getBoundingClientRect();
    if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.bottom > frame.bottom + 1)
      found.push(`${name}: "${text.textContent}" is cut`);
    const shrunk = frame.width / svg.viewBox.baseVal.width;
    const size = parseFloat(getComputedStyle(text).fontSize) * shrunk;
    if (size < 8.5) found.push(`${name}: letters of ${size} px`);
  }
}
return [drawn, [...new Set(found)]];
"""
ORDER = """
const [caption, heading] = arguments;
const table = [...document.querySelectorAll("table")].find(
  (table) => table.caption.textContent.startsWith(caption));
const head = [...table.tHead.rows].at(-1);
const cell = [...head.cells].find((cell) => cell.textContent.trim() === heading);
cell.querySelector("button").click();
return [cell.getAttribute("aria-sort"),
        [...table.tBodies[0].rows].map((row) => row.cells[0].textContent),
        [...table.tBodies[0].rows].map((row) => row.cells[cell.cellIndex].textContent)];
"""
CONTRAST = """
function light(text) {
  const rgb = text.match(/[0-9.]+/g).slice(0, 3).map((v) => v / 255);
  const [r, g, b] = rgb.map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
function behind(node) {
  for (; node; node = node.parentElement) {
    const colour = getComputedStyle(node).backgroundColor;
    if (!colour.endsWith(", 0)")) return colour;
  }
}
let least = 99;
for (const node of document.querySelectorAll("p, td, th, a, small, .badge, summary, button, h2")) {
  const pair = [light(getComputedStyle(node).color), light(behind(node))].sort((a, b) => b - a);
  least = Math.min(least, (pair[0] + 0.05) / (pair[1] + 0.05));
}
return least;
"""


@pytest.fixture(scope="module")
def tab(chromium: Any, tmp_path_factory: pytest.TempPathFactory) -> Tab:
    page = tmp_path_factory.mktemp("study") / "study.html"
    page.write_text(render(example(), "lichen study"), encoding="utf-8")
    return Tab(chromium, page)


def open_all(tab: Tab) -> None:
    tab("for (const part of document.querySelectorAll('details')) part.open = true")


def test_nothing_is_loaded_and_nothing_complains(tab: Tab) -> None:
    tab.load()
    open_all(tab)
    assert tab.messages() == []
    assert tab("return performance.getEntriesByType('resource').length") == 0
    assert tab("return document.scripts.length") == 1, "a name from outside became a script"


@pytest.mark.parametrize("width", [1280, 375])
def test_charts_are_drawn_inside_their_axes(tab: Tab, width: int) -> None:
    tab.load(width)
    open_all(tab)
    drawn, problems = tab(OUTSIDE)
    assert problems == []
    models = len(example().models)
    assert drawn == 4 + 2 + 2 + models * 3 + 1  # speeds, rooflines, rates, of models, errors


def test_tables_sort_by_a_click(tab: Tab) -> None:
    tab.load()
    hostile = 'x<script>alert("1")</script>&y'
    assert tab(ORDER, "All models", "decode")[:2] == [
        "descending",
        ["minnen2020", hostile, "student"],
    ]
    assert tab(ORDER, "All models", "decode")[:2] == [
        "ascending",
        ["student", hostile, "minnen2020"],
    ]
    assert tab(ORDER, "All models", "model")[:2] == [
        "ascending",
        ["minnen2020", "student", hostile],
    ]
    direction, names, values = tab(ORDER, "All models", "BD-rate")
    assert (direction, names[-1], values[-1]) == ("descending", hostile, "–"), "no figure is last"
    assert tab(ORDER, "All models", "BD-rate")[1] == ["minnen2020", "student", hostile]
    sorted_columns = "return document.querySelectorAll('#summary [aria-sort]').length"
    assert tab(sorted_columns) == 1, "one column at a time says that it is sorted"


def test_tables_sort_by_the_keyboard(tab: Tab) -> None:
    from selenium.webdriver.common.keys import Keys

    tab.load()
    head = tab("return document.querySelector('#summary thead button')")
    head.send_keys(Keys.ENTER)
    assert tab("return arguments[0].parentElement.getAttribute('aria-sort')", head) == "ascending"


@pytest.mark.parametrize("width", [320, 375, 800])
def test_narrow_screens_do_not_scroll_sideways(tab: Tab, width: int) -> None:
    tab.load(width, 800)
    for _ in range(2):
        assert tab("return document.documentElement.scrollWidth") <= width
        tab("scrollTo(500, 0)")
        assert tab("return scrollX") == 0
        open_all(tab)
    wide = (
        "return [...document.querySelectorAll('.frame')].some((f) => f.scrollWidth > f.clientWidth)"
    )
    assert width > 400 or tab(wide), "tables scroll in their frames"


def test_a_link_opens_its_model(tab: Tab) -> None:
    tab.load()
    assert tab("return document.getElementById('model-minnen2020').open") is False
    tab("document.querySelector('#summary a[href=\"#model-minnen2020\"]').click()")
    assert tab("return document.getElementById('model-minnen2020').open") is True


def test_paper(tab: Tab) -> None:
    tab.load(scheme="dark")
    folded = "window.folded = document.querySelectorAll('details.model:not([open])').length"
    tab(f"addEventListener('beforeprint', () => {{ {folded} }})")
    done = tab.command("Page.printToPDF", {"printBackground": False, "preferCSSPageSize": True})
    pdf = base64.b64decode(done["data"])
    pages = len(re.findall(rb"/Type\s*/Page\b", pdf))
    assert pages >= 2 + len(example().models), "each model begins on a page of its own"
    assert tab("return window.folded") == 0, "everything is open on paper"
    assert tab("return document.querySelectorAll('details.model[open]').length") == 0, (
        "and not after"
    )
    tab.media("print", "dark")
    style = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    assert tab(style, "body", "backgroundColor") == "rgb(255, 255, 255)", "paper is white"
    assert tab(style, "nav", "display") == "none"
    assert tab(style, ".frame", "overflowX") == "visible", "nothing is cut off"


def test_dark_and_light(tab: Tab) -> None:
    background = "return getComputedStyle(document.body).backgroundColor"
    seen = []
    for scheme in ("light", "dark"):
        tab.load(scheme=scheme)
        open_all(tab)
        seen.append(tab(background))
        assert tab(CONTRAST) >= 4.5, f"WCAG 2.2, 1.4.3, in {scheme}"
        tab("document.getElementById('theme').click()")
        assert tab(background) != seen[-1], "the button turns it"
        assert tab(CONTRAST) >= 4.5
    assert seen[0] != seen[1]


def test_the_page_reads_without_scripts(tab: Tab, tmp_path: Path) -> None:
    plain = tmp_path / "plain.html"
    text = tab.page.read_text(encoding="utf-8")
    plain.write_text(re.sub(r"<script>.*</script>", "", text, flags=re.DOTALL), encoding="utf-8")
    quiet = Tab(tab.browser, plain).load()
    assert quiet.messages() == []
    assert quiet("return document.getElementById('theme').hidden") is True
    assert (
        quiet(OUTSIDE.replace("figure.chart", "#summary ~ section > .pair figure.chart"))[1] == []
    )
