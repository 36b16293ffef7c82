"""The command `lichen eval`: checks everything that can be checked, measures, then writes."""

from __future__ import annotations

import argparse
import errno
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lichen import files
from lichen.errors import LichenError
from lichen.evaluation import metrics, plot, published, report
from lichen.evaluation.codecs import open_codec, parse, parse_qualities
from lichen.evaluation.measure import Curve, Survey, measure, survey

DEFAULT_CODECS = ("lichen", "jpeg", "webp", "avif")
PROGRESS_S = 30.0  # between lines of progress where they do not overwrite each other


def run(arguments: argparse.Namespace) -> int:
    """Evaluate codecs on a folder as `lichen eval -h` says; returns 0, or raises what went wrong.

    Output files appear when everything has been measured, each of them whole.
    """
    qualities = parse_qualities(arguments.qualities) if arguments.qualities else None
    specs = [parse(text, qualities) for text in arguments.codec or DEFAULT_CODECS]
    labels = [open_codec(spec, arguments.threads).label for spec in specs]
    others = [curve for path in arguments.published for curve in published.read(Path(path))]
    others = published.choose(others, arguments.curve)
    report.check_labels([*labels, *(curve.label for curve in others)], arguments.anchor)
    plots = _plots(arguments)
    _check_outputs(arguments, plots)
    if arguments.ms_ssim:
        metrics.check_ms_ssim()
    pictures = survey(Path(arguments.folder))
    _tell_skipped(pictures, arguments.ms_ssim)
    started = time.perf_counter()
    with _progress(not arguments.quiet) as progress:
        curves = measure(
            specs,
            pictures,
            threads=arguments.threads,
            jobs=arguments.jobs,
            with_ms_ssim=arguments.ms_ssim,
            progress=progress,
        )
    comparisons = report.compare(curves, others, arguments.anchor)
    about = {
        "command": arguments.invocation,
        "threads": arguments.threads,
        "jobs": arguments.jobs,
        "seconds": round(time.perf_counter() - started, 1),
    }
    whole = report.document(curves, pictures, comparisons, others, about)
    if not arguments.quiet:
        _print(arguments, curves, comparisons)
    outputs = _texts(arguments, whole, curves)
    for metric, names in plots.items():
        if all(None not in curve.mean(metric) for curve in curves):
            drawn = plot.draw(curves, others, f"{pictures}, whole files", metric, arguments.bpp)
            outputs.update({names[kind]: data for kind, data in drawn.items()})
    for name, data in outputs.items():
        with files.output_file(name, overwrite=True) as file:
            file.write(data)
    return 0


def _texts(
    arguments: argparse.Namespace, whole: dict[str, Any], curves: list[Curve]
) -> dict[str, bytes]:
    """Give the text files that were asked for: name -> bytes."""
    texts = {}
    if arguments.json:
        texts[arguments.json] = report.to_json(whole)
    if arguments.csv:
        texts[arguments.csv] = report.to_csv(curves)
    if arguments.compressai:
        folder = Path(arguments.compressai)
        folder.mkdir(exist_ok=True)
        for entry in whole["codecs"]:
            texts[str(folder / _file_name(entry["name"]))] = report.to_json(entry)
    return {name: text.encode() for name, text in texts.items()}


def _plots(arguments: argparse.Namespace) -> dict[str, dict[str, str]]:
    """Name the files of --plot: metric -> kind -> name."""
    if not arguments.plot:
        return {}
    plot.check()
    stem, suffix = os.path.splitext(arguments.plot)
    if suffix.lower() not in ("", *(f".{kind}" for kind in plot.FORMATS)):
        raise LichenError(
            f"--plot writes {' and '.join(f'.{kind}' for kind in plot.FORMATS)}, not {suffix!r}"
        )
    stems = {"psnr": stem}
    if arguments.ms_ssim:
        stems["ms_ssim_db"] = f"{stem}-ms-ssim"
    return {
        metric: {kind: f"{start}.{kind}" for kind in plot.FORMATS}
        for metric, start in stems.items()
    }


def _check_outputs(arguments: argparse.Namespace, plots: dict[str, dict[str, str]]) -> None:
    """Refuse outputs that cannot be written, before hours of work. Raises OSError."""
    names = [name for kinds in plots.values() for name in kinds.values()]
    names += [name for name in (arguments.json, arguments.csv) if name and name != "-"]
    if folder := arguments.compressai:
        names.append(os.path.join(folder, "x.json") if os.path.isdir(folder) else folder)
    for name in names:
        files.check_output(name, "-", overwrite=name != arguments.compressai)
        if not os.access(Path(name).parent, os.W_OK):
            raise PermissionError(errno.EACCES, "the folder of the output is not writable", name)


def _tell_skipped(pictures: Survey, with_ms_ssim: bool) -> None:
    for reason in pictures.skipped:
        warnings.warn(f"skipped {reason}", stacklevel=1)
    if pictures.skipped:
        total = len(pictures.paths) + len(pictures.skipped)
        warnings.warn(f"{len(pictures.skipped)} of {total} pictures were skipped", stacklevel=1)
    if with_ms_ssim and pictures.too_small:
        small = pictures.too_small
        warnings.warn(
            f"MS-SSIM needs {metrics.MS_SSIM_SIDE} pixels on each side: {len(small)} of "
            f"{len(pictures.paths)} pictures are evaluated without it, and there is no mean of it "
            f"({', '.join(small[:3])}{', ...' if len(small) > 3 else ''})",
            stacklevel=1,
        )


def _print(
    arguments: argparse.Namespace, curves: list[Curve], comparisons: list[report.Comparison]
) -> None:
    """Print the tables: on stderr where a file itself goes to stdout."""
    file = sys.stderr if "-" in (arguments.json, arguments.csv) else sys.stdout
    for curve in curves:
        print(report.curve_table(curve), end="\n\n", file=file)
    if comparisons:
        print(report.bd_table(comparisons), file=file)
    for comparison in comparisons:
        if comparison.warning:
            warnings.warn(comparison.warning, stacklevel=1)
    if arguments.jobs > 1:
        warnings.warn(
            f"the times are those of {arguments.jobs} processes at once; --jobs 1 measures speed",
            stacklevel=1,
        )


@contextmanager
def _progress(shown: bool) -> Iterator[Callable[[int, int], None]]:
    """Yield what shows on stderr how far it is and how long it will take."""
    started = last = time.monotonic()
    terminal = sys.stderr.isatty()

    def show(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if not shown or (not terminal and now - last < PROGRESS_S):
            return
        last = now
        left_s = (now - started) * (total - done) / done
        text = f"lichen: {done} of {total} pictures, {left_s / 60:.1f} min left"
        start, end = ("\r", "  ") if terminal else ("", "\n")
        print(f"{start}{text}", end=end, file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        if terminal and last > started:
            print(file=sys.stderr)  # what follows starts on a line of its own


def _file_name(label: str) -> str:
    return re.sub(r"[^\w.-]+", "-", label) + ".json"
