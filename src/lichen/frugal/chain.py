"""Chains: one recipe of steps, run by one command, resumed where it stopped, measured throughout.

    FOLDER/
      NAME-1a2b3c4d/   a step: named by what decides its result, so that it is done once
        run/           of training: an ordinary run's folder
        model.safetensors
        step.json      what it made; written when it is done
        measured.json  rate, distortion and cost, by set of pictures
      report.json, report.md, chart.png, chart.svg

A step whose part of the recipe changes, or what it starts from, gets another folder; the one that
was there stays, and is found again by the recipe that made it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lichen.errors import LichenError
from lichen.evaluation import plot
from lichen.evaluation.codecs import parse_qualities
from lichen.evaluation.measure import Survey, survey
from lichen.frugal import steps as kinds
from lichen.frugal.measure import (
    QUALITIES,
    Measured,
    from_dict,
    measure_model,
    measure_network,
    survey_of,
)
from lichen.frugal.network import load_network
from lichen.frugal.steps import Made, Place, Step, Stopped, check, key_of, nearest
from lichen.training import run
from lichen.training.commands import Options
from lichen.training.data import list_images
from lichen.training.recipe import parse_toml

HOLD_OUT = 10  # every tenth photograph is not trained on where there is no test folder
TOP = ("name", "photographs", "test", "pictures", "qualities", "step")
DONE, MEASURED = "step.json", "measured.json"


@dataclass(frozen=True)
class Chain:
    """A recipe of steps. photographs, test: None where it names none; pictures: the most that are
    measured, evenly spread over the test folder."""

    name: str
    base: Path
    steps: tuple[Step, ...]
    photographs: Path | None
    test: Path | None
    pictures: int | None
    qualities: tuple[float, ...]


@dataclass(frozen=True)
class Result:
    """A step that is done."""

    step: Step
    folder: Path
    made: Made
    measured: Measured
    seconds: float


# The recipe


def read(path: Path) -> Chain:
    """Read a recipe. Raises LichenError for what it cannot be, naming the nearest; OSError."""
    try:
        document = parse_toml(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LichenError(f"{path} is no recipe: {error}; see docs/frugal.md") from error
    for key in document:
        if key not in TOP:
            raise LichenError(f"{path}: a chain has no {key!r}; {nearest(key, TOP)}")
    tables = document.get("step")
    if not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables) or not tables:
        raise LichenError(f"{path} has no steps: each is a table [[step]] with its kind")
    base = path.resolve().parent
    steps: list[Step] = []
    for table in tables:
        steps.append(_step(table, steps))
    for step in steps:
        check(step)
    pictures = document.get("pictures")
    if pictures is not None and (type(pictures) is not int or pictures < 1):
        raise LichenError(f"{path}: pictures must be a positive number, not {pictures!r}")
    named = {key: base / document[key] if key in document else None for key in TOP[1:3]}
    qualities = QUALITIES
    if "qualities" in document:
        qualities = parse_qualities(",".join(map(str, document["qualities"])))
        if len(qualities) < 4:
            raise LichenError(f"{path}: a BD-rate takes four qualities, not {len(qualities)}")
    return Chain(
        name=str(document.get("name", path.stem)),
        base=base,
        steps=tuple(steps),
        photographs=named["photographs"],
        test=named["test"],
        pictures=pictures,
        qualities=qualities,
    )


def _step(table: Mapping[str, Any], before: Sequence[Step]) -> Step:
    options = dict(table)
    kind = options.pop("kind", None)
    if not isinstance(kind, str):
        raise LichenError(f"step {len(before) + 1} has no kind; {nearest(str(kind), kinds.KINDS)}")
    name = str(options.pop("name", f"{len(before) + 1}-{kind}"))
    names = [step.name for step in before]
    if name in names or not name or any(c in name for c in "/\\: "):
        raise LichenError(
            f"step {len(before) + 1} is called {name!r}; give each step a name of its own, "
            "without spaces, colons and slashes"
        )
    source = options.pop("from", names[-1] if names else None)
    # a step that says where it begins, does not begin where the one before it ended
    if source == "" or (kind == "train" and {"model", "recipe"} & options.keys()):
        source = None
    if source is not None and source not in names:
        raise LichenError(
            f"step {name!r} starts from {source!r}, which is no step before it; "
            f"{nearest(str(source), names)}"
        )
    return Step(name, kind, options, None if kind == "teacher" else source)


# Running


def run_chain(
    chain: Chain,
    folder: Path,
    photographs: Path | None,
    test: Path | None,
    machine: Options,
    report: Callable[[str], None] = lambda line: None,
) -> list[Result]:
    """Do the steps that are not done, measure them all, and write the report after each.

    photographs, test: in the place of the recipe's. machine.minutes: for all steps together. Raises
    Stopped where a step has not come to its end, LichenError, OSError.
    """
    began = time.monotonic()
    learn, pictures = pictures_of(chain, photographs or chain.photographs, test or chain.test)
    folder.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    keys: dict[str, str] = {}
    for number, step in enumerate(chain.steps, 1):
        here = f"step {number}/{len(chain.steps)}, {step.name}"
        keys[step.name] = key = key_of(step, keys, chain.base, learn)
        place = Place(
            folder=folder / f"{step.name}-{key[:8]}",
            source=_source(step, results),
            base=chain.base,
            results={r.step.name: r.made.checkpoint for r in results if r.made.checkpoint},
            folders={r.step.name: r.folder for r in results},
            photographs=learn,
            machine=dataclasses.replace(
                machine, minutes=machine.minutes - (time.monotonic() - began) / 60
            ),
            report=lambda line, here=here: report(f"{here}: {line}"),  # type: ignore[misc]
        )
        made, seconds = _done(step, place, report, here)
        measured = _measured(place.folder, made, pictures, chain.qualities)
        results.append(Result(step, place.folder, made, measured, seconds))
        report(f"{here}: {_line(results[-1], results[0])}")
        write_report(chain, folder, results, pictures)
    return results


def pictures_of(
    chain: Chain, photographs: Path | None, test: Path | None
) -> tuple[list[Path], Survey]:
    """Give the photographs to learn from and the pictures to measure on.

    Without a test folder every tenth photograph is measured, and not learnt from.
    """
    learns = any(step.kind != "teacher" for step in chain.steps)
    if photographs is None and (learns or test is None):
        raise LichenError(
            "no photographs to train and to calibrate by: give --photographs FOLDER, or name one "
            "in the recipe"
        )
    learn = list_images(photographs) if photographs is not None else []
    if test is not None:
        seen = survey(test)
        if chain.pictures is not None:
            seen = survey_of(_spread(seen.paths, chain.pictures))
        return learn, seen
    held = learn[::HOLD_OUT]
    learn = [path for number, path in enumerate(learn) if number % HOLD_OUT]
    if not learn:
        raise LichenError(
            f"{photographs} has too few photographs to hold any out: give --test FOLDER"
        )
    return learn, survey_of(_spread(held, chain.pictures or len(held)))


def _spread(paths: Sequence[Path], count: int) -> list[Path]:
    """Give so many of the paths, evenly spread."""
    count = min(count, len(paths))
    return [paths[k * len(paths) // count] for k in range(count)]


def _source(step: Step, results: Sequence[Result]) -> Path | None:
    if step.source is None:
        return None
    before = next(result for result in results if result.step.name == step.source)
    if before.made.checkpoint is None:
        raise LichenError(
            f"step {step.name!r} cannot start from {step.source!r}, whose integers are final; say "
            f'with from = "NAME" which other step it starts from'
        )
    return before.made.checkpoint


def _done(step: Step, place: Place, report: Callable[[str], None], here: str) -> tuple[Made, float]:
    """Give what a step has made: found, or made now."""
    note = place.folder / DONE
    if note.exists():
        kept = json.loads(note.read_text())
        paths = [_path(place.folder, kept[name]) for name in ("checkpoint", "model")]
        if all(path is None or path.exists() for path in paths):
            report(f"{here}: done before, in {place.folder.name}")
            return Made(*paths), kept["seconds"]
    if place.machine.minutes <= 0:
        raise Stopped(0)
    report(f"{here}: {step.kind}")
    place.folder.mkdir(exist_ok=True)
    spent = place.folder / "seconds"
    before = float(spent.read_text()) if spent.exists() else 0.0
    began = time.monotonic()
    try:
        made = kinds.KINDS[step.kind].run(place, dict(step.options))
    except LichenError as error:
        raise type(error)(f"step {step.name!r}: {error}") from error
    finally:
        seconds = before + time.monotonic() - began
        spent.write_text(f"{seconds:.1f}")
    values = {
        "name": step.name,
        "kind": step.kind,
        "options": dict(step.options),
        "from": step.source,
        "checkpoint": _relative(place.folder, made.checkpoint),
        "model": _relative(place.folder, made.model),
        "seconds": round(seconds, 1),
    }
    _write(note, json.dumps(values, indent=1) + "\n")
    return made, seconds


def _relative(folder: Path, path: Path | None) -> str | None:
    """Name a path within its step's folder relative to it, so that folders can be moved."""
    if path is None:
        return None
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


def _path(folder: Path, text: str | None) -> Path | None:
    return None if text is None else folder / text


def _measured(folder: Path, made: Made, pictures: Survey, qualities: tuple[float, ...]) -> Measured:
    """Measure what a step has made on these pictures, once."""
    note = folder / MEASURED
    known: dict[str, Any] = json.loads(note.read_text()) if note.exists() else {}
    key = f"{pictures.sha256[:16]} at {','.join(f'{q:g}' for q in qualities)}"
    if key not in known:
        if made.model is not None:
            found = measure_model(made.model, pictures, qualities)
        else:
            assert made.checkpoint is not None
            found = measure_network(load_network(made.checkpoint)[1], pictures, qualities)
        known[key] = dataclasses.asdict(found)
        folder.mkdir(exist_ok=True)
        _write(note, json.dumps(known, indent=1) + "\n")
    return from_dict(known[key])


def _write(path: Path, content: str | bytes) -> None:
    with run.whole_file(path) as temporary:
        data = content.encode() if isinstance(content, str) else content
        temporary.write_bytes(data)


# The report


def _line(result: Result, first: Result) -> str:
    m = result.measured
    change = m.bd_rate_against(first.measured)
    against = "" if result is first or change is None else f", BD-rate {change:+.1f} %"
    return (
        f"{m.bpp[0]:.3f}-{m.bpp[-1]:.3f} bpp, {m.psnr[0]:.2f}-{m.psnr[-1]:.2f} dB{against}, "
        f"{m.encode:.1f} and {m.decode:.1f} kMAC/pixel, {m.weight_bytes / 1000:.0f} kB"
    )


def write_report(chain: Chain, folder: Path, results: Sequence[Result], pictures: Survey) -> None:
    """Write report.json, report.md and, from two steps on, the chart."""
    first = results[0].measured
    rows = [
        {
            "name": r.step.name,
            "kind": r.step.kind,
            "from": r.step.source,
            "options": dict(r.step.options),
            "folder": r.folder.name,
            "checkpoint": _relative(folder, r.made.checkpoint),
            "model": _relative(folder, r.made.model),
            "seconds": round(r.seconds, 1),
            "bd_rate": r.measured.bd_rate_against(first),
            **dataclasses.asdict(r.measured),
        }
        for r in results
    ]
    document = {
        "chain": chain.name,
        "complete": len(results) == len(chain.steps),
        "pictures": [path.name for path in pictures.paths],
        "steps": rows,
    }
    _write(folder / "report.json", json.dumps(document, indent=1) + "\n")
    _write(folder / "report.md", markdown(chain.name, results, pictures))
    points = [
        (r.step.name, r.measured.encode + r.measured.decode, change)
        for r in results
        if (change := r.measured.bd_rate_against(first)) is not None
    ]
    if len(points) > 1:
        title = f"{chain.name}: {len(pictures.paths)} pictures"
        drawn = plot.draw_costs(
            [("", points)], title, f"BD-rate against {results[0].step.name} (%)"
        )
        for name, data in drawn.items():
            _write(folder / f"chart.{name}", data)


def markdown(name: str, results: Sequence[Result], pictures: Survey) -> str:
    """Give the table of a report, and the points of every step."""
    first = results[0]
    lines = [
        f"# {name}",
        "",
        f"{len(pictures.paths)} pictures; BD-rate (PCHIP, PSNR over RGB) against "
        f"`{first.step.name}`. Rates of networks in float are ideal code lengths, those of "
        "integers are sizes of files.",
        "",
        "| step | kind | arithmetic | BD-rate | kMAC/pixel, encode | decode | weights, kB | "
        "file, kB | bit-exact | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in results:
        m, change = r.measured, r.measured.bd_rate_against(first.measured)
        cells = (
            r.step.name,
            r.step.kind,
            "float" if m.rate == "ideal" else "integers" if m.exact else "float files",
            "anchor" if r is first else "no overlap" if change is None else f"{change:+.2f} %",
            f"{m.encode:.2f}",
            f"{m.decode:.2f}",
            f"{m.weight_bytes / 1000:.0f}",
            "" if m.file_bytes is None else f"{m.file_bytes / 1000:.0f}",
            ", ".join(m.exact),
            f"{r.seconds:.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Bits per pixel and PSNR (dB) at each quality:", ""]
    qualities = results[0].measured.qualities
    lines.append(f"| step | {' | '.join(f'{q:g}' for q in qualities)} |")
    lines.append("| --- |" + " --- |" * len(qualities))
    for r in results:
        points = (f"{b:.4f}, {p:.2f}" for b, p in zip(r.measured.bpp, r.measured.psnr))
        lines.append(f"| {r.step.name} | {' | '.join(points)} |")
    return "\n".join(lines) + "\n"


def chain_command(arguments: argparse.Namespace) -> int:
    """Run a recipe of steps; gives the number of the signal that ended it, or 0."""
    plot.check()

    def report(line: str) -> None:
        if not arguments.quiet:
            print(line, file=sys.stderr, flush=True)

    machine = Options(
        device=arguments.device,
        minutes=arguments.minutes,
        threads=arguments.threads or 0,
        checkpoint_every_s=arguments.checkpoint_every,
    )
    chain = read(arguments.recipe)
    number, complete = 0, True
    try:
        run_chain(chain, arguments.output, arguments.photographs, arguments.test, machine, report)
        report(f"complete: {arguments.output / 'report.md'}")
    except Stopped as stopped:
        number, complete = stopped.number, False
        report("stopped; the same command goes on from there")
    if arguments.json:
        print(json.dumps({"folder": str(arguments.output), "done": complete}))
    return number
