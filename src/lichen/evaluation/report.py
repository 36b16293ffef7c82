"""What `lichen eval` writes: JSON with CompressAI's keys, CSV, and tables to read.

The JSON's top level is the first codec in CompressAI's form, so that `compressai.utils.plot` reads
the file as it is; `codecs` holds every codec in that form. Lists run over qualities. `null` is a
PSNR where nothing was lost, and an MS-SSIM where a picture was too small for it.
"""

from __future__ import annotations

import csv
import importlib.metadata
import io
import json
import math
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from PIL import features

from lichen._version import VERSION
from lichen.errors import LichenError
from lichen.evaluation.bd_rate import SMALL_OVERLAP, BDRate, bd_rate
from lichen.evaluation.measure import Curve, Measured, Survey
from lichen.evaluation.published import Published

# A column of Measured, its key in JSON (CompressAI's where it has one), and the digits kept.
COLUMNS = (
    ("bpp", "bpp", 6),
    ("psnr", "psnr-rgb", 4),
    ("psnr_yuv", "psnr-yuv", 4),
    ("ms_ssim", "ms-ssim-rgb", 6),
    ("ms_ssim_db", "ms-ssim-rgb-db", 4),
    ("encode_s", "encoding_time", 5),
    ("decode_s", "decoding_time", 5),
)
METRICS = {"psnr": "PSNR RGB", "psnr_yuv": "PSNR YUV 6:1:1", "ms_ssim_db": "MS-SSIM RGB"}
PACKAGES = ("numpy", "pillow", "pillow-jxl-plugin", "pytorch-msssim", "scipy", "torch")


Points = tuple[Sequence[float], Sequence[float]]  # rates, qualities


@dataclass(frozen=True)
class Comparison:
    """One codec against an anchor in one metric; `problem` where there is no BD-rate."""

    label: str
    anchor: str
    metric: str
    pchip: BDRate | None
    akima: BDRate | None
    problem: str = ""

    @property
    def warning(self) -> str:
        """Say where the overlap is too small to mean much; empty where it is not."""
        if self.pchip is None or self.pchip.share >= SMALL_OVERLAP:
            return ""
        return (
            f"{self.label} and {self.anchor} overlap in {METRICS[self.metric]} only from "
            f"{self.pchip.low:.1f} to {self.pchip.high:.1f} dB, {100 * self.pchip.share:.0f} % of "
            "the shorter curve: their BD-rate says little; measure more qualities"
        )


def compare(
    curves: Sequence[Curve], published: Sequence[Published], anchors: Sequence[str]
) -> list[Comparison]:
    """Give BD-rates of every curve against each anchor.

    Without anchors: of the first codec against every other curve.
    """
    points: dict[str, dict[str, Points]] = {
        curve.label: {m: curve.points(m) for m in METRICS if None not in curve.mean(m)}
        for curve in curves
    }
    for other in published:
        points[other.label] = {m: (other.bpp, quality) for m, quality in other.quality.items()}
    pairs = [(curves[0].label, anchor) for anchor in points]
    if anchors:
        pairs = [(label, anchor) for anchor in anchors for label in points]
    return [
        _compare(label, anchor, metric, points)
        for label, anchor in pairs
        for metric in METRICS
        if label != anchor and metric in points[label] and metric in points[anchor]
    ]


def check_labels(labels: Sequence[str], anchors: Sequence[str]) -> None:
    """Raise LichenError for a name that two curves have, and for an anchor that none has."""
    for label in labels:
        if labels.count(label) > 1:
            raise LichenError(
                f"two curves are called {label!r}; name yours: --codec NAME=CODEC, each another"
            )
    for anchor in anchors:
        if anchor not in labels:
            raise LichenError(f"no anchor is called {anchor!r}; there are {', '.join(labels)}")


def _compare(
    label: str, anchor: str, metric: str, points: dict[str, dict[str, Points]]
) -> Comparison:
    both = (*points[anchor][metric], *points[label][metric])
    try:
        pchip, akima = bd_rate(*both, "pchip"), bd_rate(*both, "akima")
    except LichenError as error:
        return Comparison(label, anchor, metric, None, None, str(error))
    return Comparison(label, anchor, metric, pchip, akima)


# JSON


def document(
    curves: Sequence[Curve],
    pictures: Survey,
    comparisons: Sequence[Comparison],
    published: Sequence[Published],
    run: dict[str, Any],
) -> dict[str, Any]:
    """Make the JSON document; `run` holds what only the command knows, like its threads."""
    codecs = [codec_document(curve, pictures) for curve in curves]
    return {
        **{key: codecs[0][key] for key in ("name", "description", "results")},
        "pictures": {
            "folder": pictures.folder.resolve().name,
            "count": len(pictures.paths),
            "sha256": pictures.sha256,
            "skipped": list(pictures.skipped),
            "without_ms_ssim": list(pictures.too_small),
        },
        "run": {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            **run,
            "host": host(),
            "versions": versions(),
        },
        "bd_rates": [_comparison_document(comparison) for comparison in comparisons],
        "published": {curve.label: curve.source for curve in published},
        "codecs": codecs,
    }


def codec_document(curve: Curve, pictures: Survey) -> dict[str, Any]:
    """Make one codec's document in CompressAI's form, with the values of each picture beside."""
    results = {
        key: [_number(value, digits) for value in curve.mean(column)]
        for column, key, digits in COLUMNS
    }
    if None in curve.mean("ms_ssim"):  # not measured, or not of all pictures
        del results["ms-ssim-rgb"], results["ms-ssim-rgb-db"]
    results["psnr"] = results["psnr-rgb"]  # its name in CompressAI's older files
    return {
        "name": curve.label,
        "description": f"{curve.description}; {pictures}, whole files",
        "results": results,
        "qualities": list(curve.qualities),
        "images": {name: _image(row) for name, row in curve.images.items()},
    }


def _image(row: Sequence[Measured]) -> dict[str, list[float | None]]:
    columns = [("size_bytes", "bytes", 0), *COLUMNS]
    return {key: [_number(getattr(m, name), digits) for m in row] for name, key, digits in columns}


def _comparison_document(comparison: Comparison) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "codec": comparison.label,
        "anchor": comparison.anchor,
        "metric": METRICS[comparison.metric],
    }
    if comparison.pchip is None or comparison.akima is None:
        return {**entry, "problem": comparison.problem}
    return {
        **entry,
        "percent_pchip": round(comparison.pchip.percent, 2),
        "percent_akima": round(comparison.akima.percent, 2),
        "overlap": [round(comparison.pchip.low, 3), round(comparison.pchip.high, 3)],
        "overlap_share": round(comparison.pchip.share, 3),
    }


def _number(value: float | None, digits: int) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return round(value, digits) if digits else int(value)


def to_json(entry: dict[str, Any]) -> str:
    """Write JSON with each list of numbers on one line."""
    text = json.dumps(entry, indent=1, ensure_ascii=False, allow_nan=False)
    return re.sub(r"\[[^][{}\"]*\]", lambda found: " ".join(found[0].split()), text) + "\n"


def host() -> dict[str, Any]:
    """Say what machine this is, as far as times depend on it; not which one."""
    name = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        name = found[1] if found else name
    usable, load = getattr(os, "sched_getaffinity", None), getattr(os, "getloadavg", None)
    return {
        "cpu": name or platform.machine(),
        "cores": len(usable(0)) if usable else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "load": round(load()[1], 1) if load else None,  # processes at work, mean of five minutes
    }


def versions() -> dict[str, str]:
    """List the versions that figures and times depend on."""
    found = {"lichen": VERSION, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    for feature in ("libjpeg_turbo", "webp", "avif"):
        if version := features.version(feature):
            found[feature] = version
    return found


# CSV


def to_csv(curves: Sequence[Curve]) -> str:
    """Write a row for each codec, quality and picture, and one with picture `mean` for each set."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["codec", "quality", "picture", "bytes", *(key for _, key, _ in COLUMNS)])
    for curve in curves:
        means = {column: curve.mean(column) for column in ("size_bytes", *(c[0] for c in COLUMNS))}
        for number, quality in enumerate(curve.qualities):
            rows = [
                (name, [row[number].size_bytes, *(getattr(row[number], c[0]) for c in COLUMNS)])
                for name, row in curve.images.items()
            ]
            rows.append(("mean", [mean[number] for mean in means.values()]))
            for name, values in rows:
                cells = ["" if value is None else f"{value:.10g}" for value in values]
                writer.writerow([curve.label, f"{quality:g}", name, *cells])
    return out.getvalue()


# Tables


def curve_table(curve: Curve) -> str:
    """Give the means of one codec as text."""
    lines = [
        f"{curve.label}: {curve.description}",
        "quality     bpp  PSNR RGB  PSNR YUV  MS-SSIM  in dB  encode ms  decode ms",
    ]
    columns = [curve.mean(column) for column, _, _ in COLUMNS]
    for quality, (bpp, psnr, yuv, ms_ssim, decibel, encode, decode) in zip(
        curve.qualities, zip(*columns)
    ):
        similarity = "      -      -" if ms_ssim is None else f"{ms_ssim:7.5f}  {decibel:5.2f}"
        lines.append(
            f"{quality:7g}  {bpp:6.4f}  {psnr:8.3f}  {yuv:8.3f}  {similarity}  "
            f"{1e3 * encode:9.1f}  {1e3 * decode:9.1f}"
        )
    return "\n".join(lines)


def bd_table(comparisons: Sequence[Comparison]) -> str:
    """Give BD-rates as text, with the overlap that each is a mean over."""
    width = max([len(c.label) for c in comparisons] + [len("codec")])
    anchor_width = max([len(c.anchor) for c in comparisons] + [len("anchor")])
    lines = [
        "BD-rate: the mean difference in rate at equal quality; negative is fewer bits than the "
        "anchor",
        f"{'codec':{width}}  {'anchor':{anchor_width}}  {'metric':14}   PCHIP    Akima  overlap dB",
    ]
    for c in comparisons:
        start = f"{c.label:{width}}  {c.anchor:{anchor_width}}  {METRICS[c.metric]:14}"
        if c.pchip is None or c.akima is None:
            lines.append(f"{start}  none: {c.problem}")
            continue
        lines.append(
            f"{start}  {c.pchip.percent:+5.1f} %  {c.akima.percent:+5.1f} %  "
            f"{c.pchip.low:.1f}-{c.pchip.high:.1f}{'  small' if c.warning else ''}"
        )
    return "\n".join(lines)
