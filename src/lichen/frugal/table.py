"""The table of what pruning, quantising and distilling cost: measured, never measured twice.

A list of rows (docs/results/frugal.toml) names checkpoints and model files, or steps of chains:

    [[group]]
    name = "balle2018 with means"
    [[group.row]]                                   # the first row is the anchor of its group
    label = "float"
    path = "recipes/balle2018-mean-small"
    [[group.row]]
    label = "8 bits, after training"
    recipe = "recipes/frugal-balle2018/integers.toml"   # its folder: runs/frugal-balle2018/integers
    step = "ptq"
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lichen.errors import LichenError
from lichen.evaluation import plot
from lichen.evaluation.bd_rate import BDRate, bd_rate
from lichen.evaluation.measure import Survey
from lichen.frugal.measure import QUALITIES, Measured, from_dict, measure_model, measure_network
from lichen.frugal.network import digest, load_network
from lichen.frugal.steps import nearest
from lichen.training.recipe import parse_toml

# What others report: method, what is saved, what it costs, where that comes from.
ANCHORS = (
    (
        "EVC, mask decay (Wang 2023), M against L",
        "-52 % MACs of the decoder",
        "+2.1 % BD-rate",
        "BD-rate from the points in the authors' repository (Kodak, PSNR); MACs of their table 3",
    ),
    (
        "EVC, mask decay (Wang 2023), S against L",
        "-86 % MACs of the decoder",
        "+8.6 % BD-rate",
        "as above",
    ),
    (
        "RDO-PTQ (Shi 2022), Minnen 2018",
        "8-bit weights and activations, after training",
        "+5.8 % BD-rate",
        "the authors' README (Kodak)",
    ),
    (
        "DRAQ (Fang & Chen, arXiv 2511.17135), a GDN model",
        "8-bit weights and activations; clipping and weight regularisation",
        "+6.3 % BD-rate (+30 % without)",
        "abstract",
    ),
    (
        "Q-LIC (Sun 2022), Cheng 2020",
        "8-bit weights and activations, after training",
        "+10.5 % BD-rate",
        "as quoted by later papers (Kodak)",
    ),
    (
        "PRIM (arXiv 2509.10366), scale hyperprior N=64 taught by N=128",
        "-72 % MACs",
        "-0.42 dB at -0.9 % rate",
        "the paper's tables",
    ),
)


@dataclass(frozen=True)
class Row:
    """One line of the table: a checkpoint or model file (path), or a step of a recipe's chain."""

    group: str
    label: str
    path: str | None
    recipe: str | None
    step: str | None
    made_by: str

    @property
    def key(self) -> str:
        """The row's name in the JSON."""
        return f"{self.group}: {self.label}"


@dataclass(frozen=True)
class Line:
    """A row that was measured; `against` its group's first, None for that one itself or where the
    curves do not overlap."""

    row: Row
    sha256: str
    measured: Measured
    against: BDRate | None


def read(path: Path) -> list[Row]:
    """Read the list of rows. Raises LichenError, OSError."""
    known = ("label", "path", "recipe", "step", "made_by")
    try:
        groups = parse_toml(path.read_text(encoding="utf-8")).get("group", [])
        rows = []
        for group in groups:
            for values in group["row"]:
                for key in values:
                    if key not in known:
                        raise LichenError(f"{path}: a row has no {key!r}; {nearest(key, known)}")
                rows.append(
                    Row(
                        group=group["name"],
                        label=values["label"],
                        path=values.get("path"),
                        recipe=values.get("recipe"),
                        step=values.get("step"),
                        made_by=values.get("made_by", ""),
                    )
                )
    except (KeyError, TypeError, ValueError) as error:
        raise LichenError(f"{path} is no list of rows ({error}); see docs/frugal.md") from error
    for row in rows:
        if (row.path is None) == (row.recipe is None) or (row.recipe is None) != (row.step is None):
            raise LichenError(f"{path}: {row.key!r} needs a path, or a recipe and one of its steps")
    if not rows:
        raise LichenError(f"{path} has no rows; see docs/frugal.md")
    return rows


def chain_folder(recipe: str) -> str:
    """Give the folder in which a recipe's chain runs: recipes/A/B.toml in runs/A/B."""
    path = Path(recipe)
    return str(Path("runs") / path.parent.name / path.stem)


def find(row: Row, root: Path) -> Path | None:
    """Give the file or folder of a row; None where it has not been made yet."""
    if row.path is not None:
        path = root / row.path
        return path if path.exists() else None
    assert row.recipe is not None and row.step is not None
    folder = root / chain_folder(row.recipe)
    if not (folder / "report.json").exists():
        return None
    steps = json.loads((folder / "report.json").read_text())["steps"]
    found = next((step for step in steps if step["name"] == row.step), None)
    if found is None:
        return None
    path = folder / (found["model"] or found["checkpoint"])
    return path if path.exists() else None


def measure_rows(
    rows: Sequence[Row],
    root: Path,
    pictures: Survey,
    known: dict[str, Any],
    report: Callable[[str], None] = lambda line: None,
    save: Callable[[dict[str, Any]], None] = lambda known: None,
) -> list[Line]:
    """Measure the rows that are there, but those in `known` whose file is the same.

    known: `to_json`'s "rows" of before, extended. save: called after each measurement. Of a row
    whose file is not there what was measured before stands, if it was on these pictures; one that
    was never measured is left out. Both are reported.
    """
    lines: list[Line] = []
    for row in rows:
        path = find(row, root)
        before = known.get(row.key)
        same = before is not None and before["pictures"] == pictures.sha256
        if path is None:
            what = "what was measured before stands" if same else "left out"
            report(f"{row.key}: not here ({row.path or f'{row.recipe}, {row.step}'}): {what}")
            if not same:
                continue
        sha256 = known[row.key]["sha256"] if path is None else digest(path)
        if path is not None and not (same and known[row.key]["sha256"] == sha256):
            report(f"{row.key}: measuring {path.relative_to(root)}")
            if path.is_file() and path.name != "weights.safetensors":
                measured = measure_model(path, pictures, QUALITIES)
            else:
                measured = measure_network(load_network(path)[1], pictures, QUALITIES)
            known[row.key] = {"sha256": sha256, **dataclasses.asdict(measured)}
            save(known)
        values = {k: v for k, v in known[row.key].items() if k != "sha256"}
        measured = from_dict(values)
        anchor = next((line for line in lines if line.row.group == row.group), None)
        lines.append(Line(row, sha256, measured, _against(anchor, measured)))
    return lines


def _against(anchor: Line | None, measured: Measured) -> BDRate | None:
    if anchor is None:
        return None
    try:
        return bd_rate(anchor.measured.bpp, anchor.measured.psnr, measured.bpp, measured.psnr)
    except LichenError:
        return None


def markdown(lines: Sequence[Line], pictures: Survey, command: str) -> str:
    """Give docs/results/frugal.md."""
    out = [
        "# Frugal: what pruning, quantising and distilling cost",
        "",
        f"Measured on {len(pictures.paths)} pictures ({pictures.folder.name}) at qualities "
        f"{', '.join(f'{q:g}' for q in QUALITIES)} by `{command}`; this file is what it wrote, "
        "[frugal.json](frugal.json) has every point. BD-rate: PCHIP, PSNR over RGB, against the "
        "first row of each table, over the overlap of the two curves. Rates of networks in float "
        "are ideal code lengths under their own likelihoods; those of integers are sizes of whole "
        "files, decoded again, and *exact* says that every executor that was tried gave the same "
        "bytes and pixels. kMAC/pixel counts a product once, whatever its width. Weights are "
        "counted at 32 bits in float, in integers at the bits that each layer needs.",
        "",
        "![BD-rate against kMAC/pixel](frugal.png)",
    ]
    groups = list(dict.fromkeys(line.row.group for line in lines))
    for group in groups:
        members = [line for line in lines if line.row.group == group]
        out += [
            "",
            f"## {group}",
            "",
            "| | arithmetic | BD-rate | overlap | kMAC/pixel, encode | decode | MACs | weights, kB "
            "| made by |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        out += [_line(line, members[0]) for line in members]
    out += [
        "",
        "## What others report",
        "",
        "| | saved | cost | source |",
        "| --- | --- | --- | --- |",
    ]
    out += [f"| {' | '.join(anchor)} |" for anchor in ANCHORS]
    recipes = sorted({line.row.recipe for line in lines if line.row.recipe})
    if recipes:
        out += ["", "## Commands", "", "```"]
        out += [
            f"lichen chain {recipe} -o {chain_folder(recipe)} --photographs PHOTOGRAPHS"
            for recipe in recipes
        ]
        out += [command, "```"]
    return "\n".join(out) + "\n"


def _line(line: Line, anchor: Line) -> str:
    m, first = line.measured, anchor.measured
    arithmetic = "float" if m.rate == "ideal" else "integers, exact" if m.exact else "float files"
    change, overlap = "anchor", ""
    if line is not anchor:
        change = "no overlap" if line.against is None else f"{line.against.percent:+.2f} %"
        if line.against is not None:
            overlap = f"{line.against.low:.1f}-{line.against.high:.1f} dB"
    macs = 100 * ((m.encode + m.decode) / (first.encode + first.decode) - 1)
    made_by = line.row.made_by
    if line.row.recipe is not None:
        made_by = f"[{Path(line.row.recipe).name}](../../{line.row.recipe}), `{line.row.step}`"
    cells = (
        line.row.label,
        arithmetic,
        change,
        overlap,
        f"{m.encode:.2f}",
        f"{m.decode:.2f}",
        "" if abs(macs) < 0.05 else f"{macs:+.1f} %",
        f"{m.weight_bytes / 1000:.0f}",
        made_by,
    )
    return f"| {' | '.join(cells)} |"


def to_json(lines: Sequence[Line], known: dict[str, Any], pictures: Survey) -> str:
    """Give docs/results/frugal.json: every point, and what is known of rows measured before."""
    document = {
        "pictures": {"count": len(pictures.paths), "sha256": pictures.sha256},
        "bd_rates": {
            line.row.key: None if line.against is None else dataclasses.asdict(line.against)
            for line in lines
        },
        "rows": known,
    }
    return json.dumps(document, indent=1) + "\n"


def chart(lines: Sequence[Line], pictures: Survey) -> dict[str, bytes]:
    """Draw BD-rate against kMAC/pixel, a colour for each group."""
    groups = []
    for group in dict.fromkeys(line.row.group for line in lines):
        members = [line for line in lines if line.row.group == group]
        points = [
            (
                line.row.label,
                line.measured.encode + line.measured.decode,
                line.against.percent if line.against else 0.0,
            )
            for line in members
            if line.against is not None or line is members[0]
        ]
        groups.append((group, points))
    title = f"What frugality costs: {len(pictures.paths)} pictures, each against its float parent"
    return plot.draw_costs(groups, title, "BD-rate, PSNR RGB (%)")
