"""Prune: a network in, a smaller one of the same kind out; `lichen prune`.

What comes out is the folder of an ordinary run: config.json, whose arguments of the model say how
many channels each group has left, and weights.safetensors. It is fine-tuned, lowered, measured and
pruned once more like any other.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from lichen.errors import LichenError
from lichen.frugal import importance as scoring
from lichen.frugal.choose import Limit, choose, fixed_groups, kmac, macs_limit, total
from lichen.frugal.importance import Scores
from lichen.frugal.mask_decay import Kept, MaskDecay
from lichen.frugal.network import load_network, weights_file
from lichen.models import channels as shapes
from lichen.models.channels import Channels, Counts, Layer
from lichen.models.layers import QuantizableModel
from lichen.training import run
from lichen.training.commands import Options, run_recipe
from lichen.training.data import Photographs, list_images
from lichen.training.recipe import Recipe
from lichen.training.train import Trainer

if TYPE_CHECKING:
    from lichen.frugal.budget import Budget

Importance = Literal["magnitude", "taylor", "mask-decay"]
SAMPLES = 64  # crops that Taylor scores look at
BATCH = 8
LEARNING_RATE = 2e-4  # of the run in which masks decay
WARMUP = 20  # of its steps, one in so many warms up
RUN = "mask-decay"  # its folder, in that of the result
TIGHTER = 0.93  # of what a core takes by formulas, where its whole plan takes more than they say
TRIES = 8
MACHINE = Options()


@dataclass(frozen=True)
class Request:
    """What shall be left of a network.

    Either `share`, 0..1 of its MACs, or `within`, a board's budget. multiple: counts of channels
    that change are multiples of it. keep: patterns of names of groups that stay whole. samples:
    crops that Taylor scores look at. steps, learning_rate: of the fine-tuning with mask decay.
    """

    share: float | None = None
    within: Budget | None = None
    importance: Importance = "taylor"
    multiple: int = 8
    keep: tuple[str, ...] = ()
    samples: int = SAMPLES
    steps: int = 0
    learning_rate: float = LEARNING_RATE

    def __post_init__(self) -> None:
        if (self.share is None) == (self.within is None):
            raise LichenError(
                "give either a share of the MACs (--macs -50%) or a board with a video (--board "
                "kv260 --video 1920x1080@30)"
            )
        if self.share is not None and not 0 < self.share < 1:
            raise LichenError(f"MACs can fall by 0 to 100 %, not by {1 - self.share:.1%}")
        if (self.importance == "mask-decay") != (self.steps > 0):
            raise LichenError("mask decay, and nothing else, takes --steps N of fine-tuning")


@dataclass(frozen=True)
class Pruned:
    """What pruning did. encode, decode: kMAC/pixel; each pair is of before and after."""

    folder: str
    model: str
    macs: tuple[float, float]
    encode: tuple[float, float]
    decode: tuple[float, float]
    parameters: tuple[int, int]
    groups: dict[str, tuple[int, int]]


def limits(channels: Channels, request: Request) -> list[Limit]:
    """Give what a request allows: of the MACs, or products and memory of each core."""
    if request.share is not None:
        return [macs_limit(channels, request.share)]
    from lichen.frugal import budget

    within = request.within
    assert within is not None
    columns = within.target.units(budget.REDUCTION)[1] * budget.REDUCTION
    found = []
    for core, parts in budget.CORES.items():

        def products(la: Layer, counts: Counts, parts: Any = parts) -> float:
            return budget.array_products(channels, la, counts) if la.part in parts else 0.0

        def bits(la: Layer, counts: Counts, parts: Any = parts) -> float:
            if la.part not in parts:
                return 0.0
            return budget.memory_bits(channels, la, counts, columns)

        def rate(cost: float, core: str = core) -> str:
            reached = within.target.frames_per_second * within.products / cost
            return f"{reached:.1f} frames/s of the {core}"

        def megabits(cost: float, core: str = core) -> str:
            return f"{cost / 1e6:.1f} Mbit of on-chip memory of the {core}"

        found += [
            Limit(rate, products, within.products),
            Limit(megabits, bits, within.memory_bits),
        ]
    return found


def chooser(channels: Channels, request: Request) -> Callable[[Scores], Kept]:
    """Give the function that chooses what to keep by scores, of a network with these channels."""
    fixed = fixed_groups(channels, request.keep)
    wanted = limits(channels, request)

    def by(scores: Scores) -> Kept:
        return choose(channels, scores, wanted, multiple=request.multiple, fixed=fixed)

    return by


def prune(
    source: Path,
    folder: Path,
    request: Request,
    photographs: Sequence[Path] = (),
    options: Options = MACHINE,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[int, Pruned | None]:
    """Prune the checkpoint `source` and write the smaller one to `folder`.

    photographs: pictures to calibrate or to fine-tune by; magnitudes need none. options: of the
    run of mask decay, whose folder is in `folder`, and with which the same call goes on. Returns
    the number of the signal that ended that run, or 0, and what was done; None where the run has
    not ended yet. Raises LichenError, OSError.
    """
    if (folder / run.CHECKPOINT).exists():
        raise LichenError(f"{folder} holds a run; name another folder for the pruned network")
    if request.importance != "magnitude" and not photographs:
        raise LichenError(
            f"{request.importance} looks at pictures: give --photographs FOLDER, or "
            "--importance magnitude, which looks at weights alone"
        )
    made, model = load_network(source)
    channels = shapes.trace(model)
    if request.importance == "mask-decay":
        number, done = decayed(made, source, folder / RUN, request, photographs, options, report)
        if done is None or not done.trainer.processes.first:
            return number, None
        done.trainer.model.load_state_dict(done.trainer.average)
        model, kept = done.trainer.model.cpu(), done.masks.kept
    else:
        scores = score(model, channels, made, request, photographs, options)
        kept = chooser(channels, request)(scores)
        if request.within is not None:
            kept = planned(made, channels, request, scores, kept)
    result = apply(model, channels, kept, folder, made)
    return 0, result


def score(
    model: QuantizableModel,
    channels: Channels,
    made: Recipe,
    request: Request,
    photographs: Sequence[Path],
    options: Options,
) -> Scores:
    """Score the units of a network as a request says."""
    if request.importance == "magnitude":
        return scoring.magnitude(model, channels)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    data = Photographs(list(photographs), made.crop, device, seed=made.seed)
    counts = [min(BATCH, request.samples - k) for k in range(0, request.samples, BATCH)]
    # as for calibration, other crops than those of training
    batches = (data.batch(count, -1 - k) for k, count in enumerate(counts))
    model.to(device)
    try:
        return scoring.taylor(model, channels, batches, made.one_lambda)
    finally:
        model.cpu()


@dataclass(frozen=True)
class Decayed:
    """A run of mask decay that has come to its end."""

    trainer: Trainer
    masks: MaskDecay


def decayed(
    made: Recipe,
    source: Path,
    folder: Path,
    request: Request,
    photographs: Sequence[Path],
    options: Options,
    report: Callable[[str], None],
) -> tuple[int, Decayed | None]:
    """Fine-tune while masks decay, or go on with that; None where it has not come to its end."""
    wanted = dataclasses.replace(
        made,
        steps=request.steps,
        quantized_steps=0,
        learning_rate=request.learning_rate,
        warmup_steps=min(made.warmup_steps, request.steps // WARMUP),
        schedule="cosine",
    )
    options = dataclasses.replace(options, weights=weights_file(source))
    if (folder / run.CHECKPOINT).exists():
        options = dataclasses.replace(options, weights=None)
    masks: list[MaskDecay] = []

    def extras(trainer: Trainer) -> list[MaskDecay]:
        channels = shapes.trace(trainer.model)
        by = chooser(channels, request)
        by(scoring.magnitude(trainer.model, channels))  # what cannot be met is said at once
        masks.append(MaskDecay(channels, by))
        return masks

    number, trainer = run_recipe(wanted, folder, photographs, options, report=report, extras=extras)
    if trainer.step < wanted.steps:
        return number, None
    return number, Decayed(trainer, masks[0])


def planned(made: Recipe, channels: Channels, request: Request, scores: Scores, kept: Kept) -> Kept:
    """Tighten what is kept until the whole plan fits too, where the model has hardware.

    Raises LichenError where it never does.
    """
    from lichen.frugal import fit
    from lichen.models import catalogue

    assert request.within is not None
    wanted, fixed = limits(channels, request), fixed_groups(channels, request.keep)
    for _ in range(TRIES):
        counts = {name: int(mask.sum()) for name, mask in kept.items()}
        arguments = {**made.arguments, "pruned": made.arguments.get("pruned", {}) | counts}
        model = catalogue.build(made.model, arguments)
        found = fit.measure(model, shapes.trace(model), request.within)
        if found.fits or found.no_hardware:
            return kept
        over = [not core.fits for core in found.cores for _ in range(2)]  # two limits each
        for number, limit in enumerate(wanted):
            if over[number]:
                takes = sum(limit.cost(layer, counts) for layer in channels.layers)
                wanted[number] = dataclasses.replace(limit, most=TIGHTER * takes)
        # streams carry up to eight channels at a time: not all counts can be shared out to them
        try:
            kept = choose(
                channels, scores, wanted, multiple=request.multiple, fixed=fixed, even=True
            )
        except LichenError:  # nothing is left to leave out
            break
    raise LichenError(
        f"the formulas are met, the plan of the cores is not: {fit.text(found)}; `lichen fit` "
        "finds a width that suits the board"
    )


def apply(
    model: QuantizableModel, channels: Channels, kept: Kept, folder: Path, made: Recipe
) -> Pruned:
    """Leave out of `model`, in place, what is not kept, and write it as a run's folder."""
    after = {name: int(mask.sum()) for name, mask in kept.items()}
    parameters = sum(p.numel() for p in model.parameters())
    shapes.keep(model, channels, kept)
    folder.mkdir(parents=True, exist_ok=True)
    # exponents that were calibrated are those of the whole network: `lichen lower` finds new ones
    facts = {"step": "0", "quantized": "0"}
    run.save_tensors(model.state_dict(), folder / run.WEIGHTS, facts=facts)
    recipe = dataclasses.replace(made, arguments=model.arguments)
    with run.whole_file(folder / run.CONFIG) as temporary:
        temporary.write_text(recipe.to_json())
    costs = [kmac(channels, counts) for counts in (channels.counts, after)]
    return Pruned(
        folder=str(folder),
        model=made.model,
        macs=(total(channels, channels.counts) / 1000, total(channels, after) / 1000),
        encode=(costs[0][0], costs[1][0]),
        decode=(costs[0][1], costs[1][1]),
        parameters=(parameters, sum(p.numel() for p in model.parameters())),
        groups={name: (count, after[name]) for name, count in channels.counts.items()},
    )


def prune_command(arguments: argparse.Namespace) -> int:
    """Prune a checkpoint; gives the number of the signal that ended its run, or 0."""

    def report(line: str) -> None:
        if not arguments.quiet:
            print(line, file=sys.stderr, flush=True)

    within = None
    if arguments.board or arguments.video:
        if not (arguments.board and arguments.video):
            raise LichenError("a budget is a board with a video: give --board and --video")
        from lichen.frugal.budget import budget

        within = budget(arguments.board, arguments.video)
    request = Request(
        share=None if arguments.macs is None else 1 + arguments.macs,
        within=within,
        importance=arguments.importance,
        multiple=arguments.multiple,
        keep=tuple(arguments.keep),
        samples=arguments.samples,
        steps=arguments.steps,
        learning_rate=arguments.learning_rate,
    )
    options = Options(
        device=arguments.device,
        minutes=arguments.minutes,
        threads=arguments.threads or 0,
        checkpoint_every_s=arguments.checkpoint_every,
    )
    photographs = list_images(arguments.photographs) if arguments.photographs else []
    number, done = prune(
        arguments.checkpoint, arguments.output, request, photographs, options, report
    )
    if done is None:
        report("stopped before the masks were zero; the same command goes on from there")
    elif arguments.json:
        print(json.dumps(dataclasses.asdict(done)))
    elif not arguments.quiet:
        print(text(done, arguments.verbose))
    return number


def text(done: Pruned, verbose: bool = False) -> str:
    """Give what `lichen prune` prints."""

    def pair(name: str, values: tuple[float, float]) -> str:
        return f"{values[0]:.2f} -> {values[1]:.2f} {name}"

    lines = [
        f"{done.folder}: {done.model}, {done.macs[1] / done.macs[0] - 1:+.1%} MACs; kMAC/pixel "
        f"{pair('to encode', done.encode)}, {pair('to decode', done.decode)}; "
        f"{done.parameters[0]} -> {done.parameters[1]} parameters",
    ]
    for name, (before, after) in done.groups.items():
        if before != after or verbose:
            lines.append(f"  {name:28} {before:4} -> {after:4}")
    lines.append(
        f"fine-tune it: lichen train PHOTOS RUN --recipe {done.folder}/{run.CONFIG} --weights "
        f"{done.folder}/{run.WEIGHTS} --steps N --learning-rate {LEARNING_RATE:g}"
    )
    return "\n".join(lines)
