"""The commands `lichen train` and `lichen lower`: from photographs to a model file."""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import json
import math
import platform
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lichen.errors import LichenError
from lichen.lower import lower as lower_model
from lichen.model import Model, from_bytes
from lichen.models import catalogue
from lichen.models.balle2016 import FactorizedPrior, fit_prior
from lichen.models.layers import QuantizableModel
from lichen.training import quantize, recipe, run
from lichen.training.data import Photographs, list_images
from lichen.training.extra import Extra
from lichen.training.processes import is_first, joined
from lichen.training.recipe import Recipe
from lichen.training.train import Trainer, calibration_batches, load_run, new_model, train
from lichen.training.warmstart import start

PRIOR_BATCHES = 40  # of 8 crops, for weights that came without a prior
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


@dataclasses.dataclass(frozen=True)
class Options:
    """How a run is made, besides its recipe.

    weights, transforms: what a new run starts from, as in `warmstart.start`. minutes: stop after
    so long. threads: of torch on a CPU; 0: its own choice. device: None: cuda where there is one.
    """

    weights: Path | None = None
    transforms: Path | None = None
    device: str | None = None
    minutes: float = math.inf
    threads: int = 0
    checkpoint_every_s: float = 60.0
    compile: bool = False


def no_extras(_: Trainer) -> list[Extra]:
    """Give none: the rate-distortion loss alone."""
    return []


def run_recipe(
    wanted: Recipe,
    folder: Path,
    photographs: Sequence[Path],
    options: Options = Options(),
    *,
    report: Callable[[str], None] = lambda line: None,
    extras: Callable[[Trainer], Sequence[Extra]] = no_extras,
) -> tuple[int, Trainer]:
    """Train a recipe in a run's folder, or go on with it; what `lichen train` does.

    extras: gives what takes part in the run, for its trainer. report: called in the first process
    with lines about progress. Returns the number of the signal that ended it, or 0, and the
    trainer. Raises LichenError, OSError.
    """
    keep_buffers()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    with joined(device) as (processes, here):

        def say(line: str) -> None:
            if processes.first:
                report(line)

        trainer = Trainer(wanted, here, processes)
        for extra in extras(trainer):
            trainer.add(extra)
        resumed = trainer.resume(folder)
        data = Photographs(
            list(photographs), wanted.crop, here, seed=wanted.seed, colour=wanted.colour
        )
        if not resumed:
            start(trainer.model, data, wanted, options.weights, options.transforms)
            trainer.reset_average()
            for extra in trainer.extras:
                extra.begin(trainer.model, data)
        elif options.weights or options.transforms:
            given = "--weights" if options.weights else "--transforms"
            warnings.warn(
                f"{given} is not used: {folder} goes on from its checkpoint", stacklevel=1
            )
        if options.compile:
            trainer.compile()
        say(
            f"{len(data.pictures)} pictures and smaller copies, {processes.size} x {here.type}, "
            f"{'resumed at' if resumed else 'from'} step {trainer.step}"
        )
        number = train(
            trainer,
            data,
            folder,
            time_limit_s=60 * options.minutes,
            save_every_s=options.checkpoint_every_s,
            report=say,
        )
        return number, trainer


def train_command(
    arguments: argparse.Namespace, extras: Callable[[Trainer], Sequence[Extra]] = no_extras
) -> int:
    """Train, or go on with a run; gives the number of the signal that ended it, or 0."""

    def report(line: str) -> None:
        if not arguments.quiet:
            print(line, file=sys.stderr, flush=True)

    options = Options(
        weights=arguments.weights,
        transforms=arguments.transforms,
        device=arguments.device,
        minutes=arguments.minutes,
        threads=arguments.threads or 0,
        checkpoint_every_s=arguments.checkpoint_every,
        compile=arguments.compile,
    )
    if not is_first():
        warnings.simplefilter("ignore")
    wanted, paths = resolve(arguments), list_images(arguments.photographs)
    number, trainer = run_recipe(
        wanted, arguments.run, paths, options, report=report, extras=extras
    )
    complete = trainer.step >= trainer.recipe.steps
    if trainer.processes.first:
        if arguments.json:
            print(json.dumps({"run": str(arguments.run), "step": trainer.step, "done": complete}))
        report(
            f"complete: `lichen lower {arguments.run} MODEL.safetensors` makes a model file"
            if complete
            else f"stopped at step {trainer.step}; the same command goes on from there"
        )
    return number


def resolve(arguments: argparse.Namespace) -> Recipe:
    """Give the recipe that is asked for: a file's, else that of the run, and what options change.

    Raises LichenError for a run that goes on as another model.
    """
    config = arguments.run / run.CONFIG
    going_on = (arguments.run / run.CHECKPOINT).exists() and config.exists()
    before = recipe.read(config) if going_on else None
    base = recipe.read(arguments.recipe) if arguments.recipe else before or Recipe()
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(Recipe):
        value = getattr(arguments, field.name, None)
        if value is not None:
            changes[field.name] = value
    if "arguments" in changes:
        changes["arguments"] = recipe.parse_arguments(changes["arguments"])
        if changes.get("model", base.model) == base.model:
            changes["arguments"] = base.arguments | changes["arguments"]
    elif changes.get("model", base.model) != base.model:
        changes["arguments"] = {}
    wanted = base.changed(changes, "the command line")
    if before is None:
        return wanted
    full = new_model(wanted).arguments
    if (before.model, before.arguments, before.rates) != (wanted.model, full, wanted.rates):
        raise LichenError(
            f"{arguments.run} holds a run of {_title(before)}, not of "
            f"{_title(dataclasses.replace(wanted, arguments=full))}; name another folder"
        )
    wanted = dataclasses.replace(wanted, arguments=full)
    differ = [
        f"{field.name} {getattr(before, field.name)} -> {getattr(wanted, field.name)}"
        for field in dataclasses.fields(Recipe)
        if getattr(before, field.name) != getattr(wanted, field.name)
    ]
    if differ:
        warnings.warn(f"the run goes on with another recipe: {', '.join(differ)}", stacklevel=1)
    return wanted


def _title(wanted: Recipe) -> str:
    return f"{wanted.model}({_listed(wanted.arguments)}) for rates {wanted.rates}"


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def lower_command(arguments: argparse.Namespace) -> int:
    """Write a run's averaged weights, or a state dict of others, as a model file; gives 0."""
    name = arguments.name or arguments.model.stem
    made, model, facts = integers_of(arguments.run, arguments.photographs)
    in_float = not model.quantized_layers()
    if arguments.photographs and (in_float or facts["quantized"] == "1"):
        why = "has no integers" if in_float else "ended in integers"
        warnings.warn(f"--photographs is not used: {made.model} {why}", stacklevel=1)
    metadata = {"recipe": json.dumps(dataclasses.asdict(made)), "step": facts["step"]}
    written = lower_model(model, name, metadata).to_bytes()
    with run.whole_file(arguments.model) as temporary:
        temporary.write_bytes(written)
    if arguments.float_weights:
        run.save_tensors(model.state_dict(), arguments.float_weights, half=True, facts=facts)
    report = {
        "model": str(arguments.model),
        "name": name,
        "bytes": len(written),
        "weights": from_bytes(written).digest.hex(),
    }
    if arguments.json:
        print(json.dumps(report))
    elif not arguments.quiet:
        print(f"{arguments.model}: {len(written)} bytes, {name}, weights {report['weights']}")
    return 0


def lowered(path: Path, photographs: Path | None) -> Model:
    """Lower a run, a recipe's folder or a state dict of others in memory; its name is that of path.

    Raises LichenError, OSError.
    """
    made, model, facts = integers_of(path, photographs)
    metadata = {"recipe": json.dumps(dataclasses.asdict(made)), "step": facts["step"]}
    return from_bytes(lower_model(model, path.stem, metadata).to_bytes())


def integers_of(
    path: Path, photographs: Path | None
) -> tuple[Recipe, QuantizableModel, dict[str, str]]:
    """Read a run or a state dict and choose integers' ranges where it has none yet, as `lower`."""
    if path.is_file():
        made, model, facts = _load_checkpoint(path, photographs)
    else:
        made, model, facts = load_run(path)
    in_float = not model.quantized_layers()
    if in_float or facts["quantized"] == "1":
        return made, model, facts
    if photographs:
        data = Photographs(list_images(photographs), made.crop, torch.device("cpu"), seed=made.seed)
        quantize.fit(model, calibration_batches(data, made))
    else:
        raise LichenError(
            "these weights are of training in float: give --photographs FOLDER, pictures to "
            "choose the integers' ranges by, or train on with --quantized-steps"
        )
    return made, model, facts


def _load_checkpoint(
    path: Path, photographs: Path | None
) -> tuple[Recipe, QuantizableModel, dict[str, str]]:
    """Read a state dict of others, as `load_run` reads a run; fit a prior where it has none."""
    model, has_prior = catalogue.from_checkpoint(path)
    name = catalogue.name_of(model)
    made = Recipe(model=name, arguments=model.arguments)
    if not has_prior:
        if not isinstance(model, FactorizedPrior):
            raise LichenError(f"{path} has no entropy_bottleneck, which {name} needs")
        if not photographs:
            raise LichenError(
                f"{path} has no prior: give --photographs FOLDER, pictures to fit one to"
            )
        data = Photographs(list_images(photographs), made.crop, torch.device("cpu"), seed=made.seed)
        fit_prior(model, [data.batch(8, k) for k in range(PRIOR_BATCHES)])
    return made, model.eval(), {"step": "0", "quantized": "0"}


def keep_buffers() -> None:
    """Have glibc keep freed buffers: mapping big ones anew each step takes a third of the time.

    Measured on one core, balle2018 n=64 m=128 at batch 8: 1.11 s a step without, 0.72 s with.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
