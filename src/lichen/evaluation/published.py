"""Curves that others have published, from JSON files, to stand beside what is measured here.

Two forms are read: CompressAI's, `{"name", "results": {"bpp", "psnr-rgb", "ms-ssim-rgb"}}`, which
`lichen eval --json` writes too (then every codec in it is a curve); and many curves in one file,
`{NAME: {"bpp", "psnr", "ms_ssim", "source"}}`. MS-SSIM may be absent.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lichen.errors import LichenError
from lichen.evaluation import metrics

# What is drawn where nobody chooses and the file has them: a spread from JPEG 2000 to VTM.
USUAL = ("VTM", "BPG444 (x265, 8b)", "bmshj2018-hyperprior (CompressAI, MSE)", "JPEG2000")


@dataclass(frozen=True)
class Published:
    """One curve. quality["psnr"] in dB, quality["ms_ssim_db"] in dB; what there is of both."""

    label: str
    source: str
    bpp: tuple[float, ...]
    quality: dict[str, tuple[float, ...]]


def read(path: Path) -> list[Published]:
    """Read every curve of a file. Raises OSError, and LichenError for another form."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if "results" in document:
            entries = document.get("codecs", [document])
            return [_curve(e.get("name", path.stem), e, e["results"], path) for e in entries]
        return [_curve(name, entry, entry, path) for name, entry in document.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LichenError(
            f"{path} must hold curves as {{NAME: {{bpp, psnr}}}} or CompressAI's results as "
            f"{{name, results: {{bpp, psnr-rgb}}}}, but: {type(error).__name__} {error}"
        ) from error


def choose(curves: list[Published], names: list[str]) -> list[Published]:
    """Find curves by name; without names, the usual ones that there are, or else all."""
    known = {curve.label: curve for curve in curves}
    if not names:
        return [known[name] for name in USUAL if name in known] or curves
    for name in names:
        if name not in known:
            raise LichenError(
                f"no published curve is called {name!r}; there are {', '.join(known) or 'none'}"
            )
    return [known[name] for name in names]


def _curve(name: str, entry: dict[str, Any], results: dict[str, Any], path: Path) -> Published:
    def column(*keys: str) -> tuple[float, ...] | None:
        for key in keys:
            if key in results:
                return tuple(float(value) for value in results[key] if value is not None)
        return None

    bpp, psnr = column("bpp"), column("psnr-rgb", "psnr")
    ms_ssim, ms_ssim_db = column("ms-ssim-rgb", "ms-ssim", "ms_ssim"), column("ms_ssim_db")
    if ms_ssim is not None:
        ms_ssim_db = tuple(metrics.ms_ssim_db(value) for value in ms_ssim)
    columns = {"psnr": psnr, "ms_ssim_db": ms_ssim_db}
    quality = {key: value for key, value in columns.items() if value}
    if not bpp or not quality or any(len(value) != len(bpp) for value in quality.values()):
        raise ValueError(f"{name!r} needs as many qualities as rates")
    return Published(name, entry.get("source", path.name), bpp, quality)
