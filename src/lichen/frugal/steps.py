"""The steps of a chain: what each kind takes, and what it makes of a checkpoint.

teacher   a checkpoint that is there: of a run, of recipes/, of others
train     train or fine-tune; a recipe's fields
distill   train a student by a teacher
prune     leave out channels
quantize  integers: after training, mixed, or trained in them
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lichen.errors import LichenError
from lichen.frugal import distill
from lichen.frugal import prune as pruning
from lichen.frugal import quantize as integers
from lichen.frugal.budget import budget
from lichen.frugal.network import digest, load_network, weights_file
from lichen.frugal.quantize_command import as_json, methods_of
from lichen.frugal.ranges import Loss
from lichen.lower import lower as lower_model
from lichen.models.layers import QuantizableModel
from lichen.training import run
from lichen.training.commands import Options, keep_buffers, run_recipe
from lichen.training.data import Photographs
from lichen.training.extra import Extra
from lichen.training.recipe import Recipe, read
from lichen.training.train import Trainer, load_run
from lichen.training.train import train as run_training

# in the folder of a step
RUN, MODEL, POST_TRAINING = "run", "model.safetensors", "post-training.pt"
QUANTIZATION = "quantization.json"


class Stopped(Exception):
    """A step has not come to its end: `number` of the signal, 0 where the time is over."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass(frozen=True)
class Step:
    """One part of a recipe. source: the step whose checkpoint it starts from; None: nothing."""

    name: str
    kind: str
    options: Mapping[str, Any]
    source: str | None


@dataclass(frozen=True)
class Made:
    """What a step has made: a checkpoint that others can start from, a model file, or both."""

    checkpoint: Path | None
    model: Path | None = None


@dataclass(frozen=True)
class Place:
    """What a step works with.

    folder: its own, which is there. source: checkpoint of the step before. base: paths in the
    recipe are relative to it. results, folders: checkpoints and folders of the steps before, by
    name. machine: device, threads, time left.
    """

    folder: Path
    source: Path | None
    base: Path
    results: Mapping[str, Path]
    folders: Mapping[str, Path]
    photographs: Sequence[Path]
    machine: Options
    report: Callable[[str], None]

    def checkpoint(self, value: str) -> Path:
        """Find what a recipe names: a step before, or a file or folder."""
        return self.results.get(value) or self.base / value


@dataclass(frozen=True)
class Kind:
    """A kind of step. files: options that name a file, a checkpoint or a step before."""

    options: frozenset[str]
    run: Callable[[Place, dict[str, Any]], Made]
    from_nothing: bool = False  # may it stand first?
    files: tuple[str, ...] = ()


def nearest(word: str, known: Iterable[str]) -> str:
    """Say which known word was most likely meant, and all of them."""
    words = sorted(known)
    close = difflib.get_close_matches(word, words, 1, 0.5)
    return (f"did you mean {close[0]!r}? " if close else "") + f"There are {', '.join(words)}"


def check(step: Step) -> None:
    """Raise LichenError for a kind or an option that is none, naming the nearest."""
    if step.kind not in KINDS:
        raise LichenError(
            f"step {step.name!r} is of the kind {step.kind!r}, which is none; "
            f"{nearest(step.kind, KINDS)}"
        )
    kind = KINDS[step.kind]
    for option in step.options:
        if option not in kind.options:
            raise LichenError(
                f"step {step.name!r}: {step.kind} has no option {option!r}; "
                f"{nearest(option, kind.options)}"
            )
    if step.source is None and not kind.from_nothing:
        raise LichenError(
            f"step {step.name!r} needs a checkpoint to {step.kind}; put a step before it that "
            'gives one, like kind = "teacher"'
        )


def key_of(step: Step, keys: Mapping[str, str], base: Path, photographs: Sequence[Path]) -> str:
    """Give the hash of all that decides a step's result: its options, what it starts from, files,
    the names and sizes of the photographs. keys: of the steps before."""
    inputs: dict[str, str] = {}
    for option in KINDS[step.kind].files:
        if option in step.options:
            value = str(step.options[option])
            inputs[option] = keys.get(value) or _file_digest(step, base / value)
    pictures = [(path.name, path.stat().st_size) for path in photographs]
    parts = [
        step.kind,
        dict(step.options),
        keys[step.source] if step.source else None,
        inputs,
        [] if step.kind == "teacher" else pictures,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _file_digest(step: Step, path: Path) -> str:
    try:
        if path.is_dir() or path.suffix != ".toml":
            return digest(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except LichenError as error:
        raise LichenError(f"step {step.name!r}: {error}") from error


# The kinds


def teach(place: Place, options: dict[str, Any]) -> Made:
    """Give the checkpoint that is named."""
    if "checkpoint" not in options:
        raise LichenError('a teacher is named by checkpoint = "PATH"')
    path = place.base / options["checkpoint"]
    load_network(path)
    return Made(path)


def train(place: Place, options: dict[str, Any]) -> Made:
    """Train a model, or the network of the step before, with a recipe's fields."""
    wanted = _recipe(place, options)
    weights = None
    if "model" not in options and "recipe" not in options and place.source is not None:
        made, _ = load_network(place.source)
        wanted = replace(wanted, model=made.model, arguments=made.arguments)
        weights = weights_file(place.source)
    elif "like" in options:  # a student that has no teacher, to compare with one that has
        like = place.checkpoint(options["like"])
        _, found = distill.student_of(wanted.model, like, width=options.get("width"))
        wanted = replace(wanted, arguments=found | options.get("arguments", {}))
    return _trained(place, wanted, _start(place, options) or weights)


def distil(place: Place, options: dict[str, Any]) -> Made:
    """Train a student by the step before, or by the teacher that is named."""
    teacher = place.source
    if "teacher" in options:
        teacher = place.checkpoint(options["teacher"])
    if teacher is None:
        raise LichenError("distil by whom? Name a teacher, or put a step before this one")
    weights = _start(place, options)
    student, found = distill.student_of(
        options.get("student"),
        teacher,
        width=options.get("width"),
        board=board_of(options),
        weights=None if "arguments" in options else weights,
    )
    wanted = _recipe(place, options)
    wanted = replace(wanted, model=student, arguments=found | options.get("arguments", {}))
    terms = {
        name: options[f"{name}_weight"]
        for name in vars(distill.Weights())
        if f"{name}_weight" in options
    }
    lesson = distill.settle(place.folder / RUN, teacher, terms)
    return _trained(place, wanted, weights, lesson.extras)


def board_of(options: Mapping[str, Any]) -> tuple[str, tuple[int, int, float]] | None:
    """Read board = "zcu102" and video = "1280x720@60". Raises LichenError."""
    if "board" not in options:
        return None
    text = str(options.get("video", ""))
    try:
        size, rate = text.split("@")
        width, height = (int(part) for part in size.split("x"))
        return options["board"], (width, height, float(rate))
    except ValueError:
        raise LichenError(f'a board needs a video like "1280x720@60", not {text!r}') from None


def _recipe(place: Place, options: Mapping[str, Any]) -> Recipe:
    base = read(place.base / options["recipe"]) if "recipe" in options else Recipe()
    names = {field.name for field in fields(Recipe)}
    return base.changed({k: v for k, v in options.items() if k in names}, "the step")


def _start(place: Place, options: Mapping[str, Any]) -> Path | None:
    """Give the weights that a step names as its start."""
    return weights_file(place.checkpoint(options["weights"])) if "weights" in options else None


def _trained(
    place: Place,
    wanted: Recipe,
    weights: Path | None,
    extras: Callable[[Trainer], Sequence[Extra]] = lambda _: [],
) -> Made:
    """Run a recipe to its end; makes a model file too where it ended in integers."""
    folder = place.folder / RUN
    resumed = (folder / run.CHECKPOINT).exists()
    machine = replace(place.machine, weights=None if resumed else weights)
    number, trainer = run_recipe(
        wanted, folder, place.photographs, machine, report=place.report, extras=extras
    )
    if trainer.step < trainer.recipe.steps:
        raise Stopped(number)
    if not trainer.quantized:
        return Made(folder)
    made, network, facts = load_run(folder)
    metadata = {"recipe": made.to_json(), "step": facts["step"]}
    model = place.folder / MODEL
    with run.whole_file(model) as temporary:
        temporary.write_bytes(lower_model(network, place.folder.name, metadata).to_bytes())
    return Made(folder, model)


def prune(place: Place, options: dict[str, Any]) -> Made:
    """Leave out channels of the step before; with mask decay, while it is fine-tuned."""
    assert place.source is not None
    within = None
    if (board := board_of(options)) is not None:
        within = budget(*board)
    request = pruning.Request(
        share=None if "macs" not in options else 1 + fraction("macs", options["macs"]),
        within=within,
        keep=tuple(options.get("keep", ())),
        **{k: v for k, v in options.items() if k in REQUEST},
    )
    folder = place.folder / "pruned"
    number, done = pruning.prune(
        place.source, folder, request, place.photographs, place.machine, place.report
    )
    if done is None:
        raise Stopped(number)
    place.report(pruning.text(done).splitlines()[0])
    return Made(folder)


def fraction(name: str, value: Any) -> float:
    """Read "-50%" or -0.5. Raises LichenError."""
    text = str(value).strip()
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise LichenError(f'{name} is a share like "-50%", not {value!r}') from None


def quantise(place: Place, options: dict[str, Any]) -> Made:
    """Make a model file of integers, after training or with some steps of it in integers."""
    assert place.source is not None
    if place.machine.threads:
        torch.set_num_threads(place.machine.threads)
    made, network = load_network(place.source)
    plan, report = _post_training(place, options, made, network)
    steps = options.get("qat_steps", 0)
    if steps:
        _quantised_steps(place, options, made, network, report)
    lowered = lower_model(network, place.folder.name, {})
    batches = _calibration(place, options, plan)
    lowered = integers.fit_tables(lowered, place.photographs, batches, plan, report, place.report)
    facts = {
        "recipe": json.dumps(asdict(made)),
        "quantization": integers.metadata(network, report, plan),
    }
    with run.whole_file(place.folder / QUANTIZATION) as temporary:
        temporary.write_text(json.dumps(as_json(report), indent=1) + "\n")
    model = place.folder / MODEL
    with run.whole_file(model) as temporary:
        temporary.write_bytes(replace(lowered, metadata=facts).to_bytes())
    return Made(None, model)


def _calibration(place: Place, options: Mapping[str, Any], plan: integers.Plan) -> list[Tensor]:
    crops, crop = options.get("crops", 32), options.get("crop", 256)
    return integers.calibration(place.photographs, crops, crop, plan.seed)


def _plan(options: Mapping[str, Any]) -> integers.Plan:
    bits = options.get("bits", 8)
    return integers.Plan(
        bits=None if bits == "mixed" else bits,
        budget=options.get("budget"),
        methods=methods_of(options.get("method", "all")),
        wide=options.get("activations", "8") == "mixed",
        seed=options.get("seed", 0),
    )


def _post_training(
    place: Place, options: dict[str, Any], made: Recipe, network: QuantizableModel
) -> tuple[integers.Plan, integers.Report]:
    """Quantise in place, or take what was made by another step, or before the chain stopped."""
    note = place.folder / POST_TRAINING
    if "post_training" in options:
        other = options["post_training"]
        if other not in place.folders or not (place.folders[other] / POST_TRAINING).exists():
            raise LichenError(
                f"post_training names a quantize step before this one, not {other!r}; "
                f"{nearest(str(other), place.folders)}"
            )
        note = place.folders[other] / POST_TRAINING
    if note.exists():
        kept = torch.load(note, weights_only=True)
        try:
            integers.Snapshot(kept["state"], tuple(kept["layers"])).restore(network)
        except (RuntimeError, ValueError) as error:  # torch's, and zip's
            raise LichenError(
                f"{note} is of another network; start this step from what it started from"
            ) from error
        return _plan(kept["plan"]), integers.Report(**kept["report"])
    plan = _plan(options)
    report = integers.post_training(
        network,
        _calibration(place, options, plan),
        plan,
        metric=made.metric,
        one_lambda=made.one_lambda,
        say=place.report,
    )
    snapshot = integers.Snapshot.of(network)
    asked = {name: value for name, value in options.items() if name in PLAN}
    state = {
        "state": snapshot.state,
        "layers": snapshot.layers,
        "report": vars(report),
        "plan": asked,
    }
    with run.whole_file(note) as temporary:
        torch.save(state, temporary)
    return plan, report


def _quantised_steps(
    place: Place,
    options: dict[str, Any],
    made: Recipe,
    network: QuantizableModel,
    report: integers.Report,
) -> None:
    """Train on in integers, in a folder where that goes on; kept where it lowers the loss."""
    folder, seed, steps = place.folder / RUN, options.get("seed", 0), options["qat_steps"]
    before = integers.Snapshot.of(network)
    trainer = integers.tuner(
        network,
        made,
        steps,
        learning_rate=options.get("learning_rate", 2e-4),
        batch=options.get("batch", 8),
        crop=options.get("crop", 256),
        seed=seed,
    )
    keep_buffers()
    trainer.resume(folder)
    tuned = trainer.recipe
    data = Photographs(
        list(place.photographs), tuned.crop, trainer.device, seed=seed, colour=tuned.colour
    )
    number = run_training(
        trainer,
        data,
        folder,
        time_limit_s=60 * place.machine.minutes,
        save_every_s=place.machine.checkpoint_every_s,
        report=place.report,
    )
    if trainer.step < steps:
        raise Stopped(number)
    network.load_state_dict(trainer.average)
    batches = [data.batch(integers.BATCH, -1 - k) for k in range(integers.LOSS_BATCHES)]
    loss = Loss(batches, made.metric, made.one_lambda)(network)
    kept = loss < report.loss
    integers.add_step(report, f"{steps} quantised steps", loss, place.report, kept)
    if not kept:
        before.restore(network)


RECIPE_FIELDS = frozenset(field.name for field in fields(Recipe))
PLAN = frozenset({"bits", "budget", "method", "activations", "seed"})
REQUEST = frozenset({"importance", "multiple", "samples", "steps", "learning_rate"})
KINDS: dict[str, Kind] = {
    "prune": Kind(REQUEST | {"macs", "board", "video", "keep"}, prune),
    "quantize": Kind(
        PLAN | {"post_training", "qat_steps", "learning_rate", "batch", "crops", "crop"},
        quantise,
        files=("post_training",),
    ),
    "teacher": Kind(frozenset({"checkpoint"}), teach, from_nothing=True, files=("checkpoint",)),
    "train": Kind(
        RECIPE_FIELDS | {"weights", "recipe", "like", "width"},
        train,
        from_nothing=True,
        files=("weights", "recipe", "like"),
    ),
    "distill": Kind(
        (RECIPE_FIELDS - {"model"})
        | {"teacher", "student", "width", "board", "video", "weights", "recipe"}
        | {f"{name}_weight" for name in vars(distill.Weights())},
        distil,
        from_nothing=True,
        files=("teacher", "weights", "recipe"),
    ),
}
