"""Fit: the widest network of a kind that codes a video on a board: `lichen fit`.

Closed formulas (`budget`) find the width; where the model has hardware, the whole plan of both
cores (`rtl.fold`, with LUTs, whole memory blocks and foldings that divide channels) then has the
last word.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch

from lichen import model as model_files
from lichen.errors import ContractError, LichenError
from lichen.frugal.budget import CORES, Budget, Core, Needs, budget, needs
from lichen.lower import lower
from lichen.models import catalogue
from lichen.models.channels import Channels, trace
from lichen.models.layers import QuantizableModel
from lichen.program import Program
from lichen.rtl import fold, graph, report, trial
from lichen.training import quantize
from lichen.training.recipe import parse_arguments

STEP = 8  # widths are multiples of this
WIDEST = 1024
# What follows a student's width, and the multiples of it. z has 3/4 of the hyper transforms'
# channels, and must be a whole number of the 2 or 4 values that a fast core carries per cycle.
SCALED = {"fine_width": STEP, "coarse_width": STEP, "latents": STEP, "hyper_width": 2 * STEP}
BIAS_BYTES = 4
MAKE: dict[Core, Callable[[Mapping[str, Program]], graph.Graph]] = {
    "encoder": graph.encoder,
    "decoder": graph.decoder,
}


@dataclass(frozen=True)
class CoreFit:
    """One core of a network on a board.

    source: "plan", the folded pipeline, or "formulas". taken: the share of the part that it takes,
    by resource. limits: the resource of the largest share. frames_per_second: at the assumed clock.
    """

    core: Core
    source: str
    fits: bool
    frames_per_second: float
    limits: str
    taken: dict[str, float]


@dataclass(frozen=True)
class Fit:
    """A network and what it is on a board. kmac: per pixel of picture; weight_bytes: in 8 bits."""

    model: str
    arguments: dict[str, Any]
    board: str
    video: str
    encode_kmac: float
    decode_kmac: float
    weight_bytes: int
    cores: tuple[CoreFit, ...]
    no_hardware: str  # why there is no plan, "" where there is one

    @property
    def fits(self) -> bool:
        return all(core.fits for core in self.cores)


def width_arguments(name: str, width: int, arguments: dict[str, Any]) -> dict[str, Any]:
    """Give the arguments of a model of this width: other channels in proportion to it.

    That is the proportion of the paper, or of student-s.
    """
    if name not in catalogue.MODELS:
        catalogue.build(name, {})  # raises, listing the models
    match name:
        case "student":
            own = {"width": width}
            arguments = scaled_student(width) | arguments
        case "balle2016" | "balle2018":
            own = {"n": width, "m": 3 * width // 2}
        case "minnen2020":
            slices = arguments.get("slices", 10)
            own = {"n": width, "m": -(-5 * width // (3 * slices)) * slices}
        case _:
            raise LichenError(
                f"{name} has no width that fits a board: attention has no hardware here; give "
                "student, balle2016, balle2018 or minnen2020"
            )
    clash = [key for key in own if key in arguments]
    if clash or "pruned" in arguments:
        given = ", ".join(clash) or "pruned"
        raise LichenError(f"{given} follows from the board: leave it out of --arguments")
    return arguments | own


def scaled_student(width: int) -> dict[str, Any]:
    """Give the shape of student-s at another width: all its widths in the same proportion."""
    recipe = json.loads(model_files.default().metadata["recipe"])
    shape: dict[str, Any] = recipe.get("arguments", {})
    whole = catalogue.build("student", shape)
    shape = {"latents": whole.latent_channels, **whole.arguments}
    found = {key: value for key, value in shape.items() if key not in SCALED}
    for key, step in SCALED.items():
        if shape.get(key) and width != shape["width"]:
            found[key] = max(step, width * shape[key] // shape["width"] // step * step)
        elif shape.get(key):
            found[key] = shape[key]
    return {key: value for key, value in found.items() if key not in ("width", "pruned")}


def width_for(
    name: str,
    board: str,
    video: tuple[int, int, float],
    arguments: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Give the arguments of the widest model of a kind that codes a video on a board.

    video: width, height, frames per second. arguments: other ones of the model. Raises LichenError
    for a board or a model that is not known, and where the narrowest does not fit.
    """
    return search(name, budget(board, video), arguments or {}).arguments


def search(name: str, within: Budget, arguments: dict[str, Any]) -> Fit:
    """Find the widest model that fits. Raises LichenError saying the nearest that could be met."""

    @cache
    def traced(width: int) -> tuple[QuantizableModel, Channels]:
        model = _build(name, width_arguments(name, width, arguments))
        return model, trace(model)

    def by_formula(width: int) -> bool:
        channels = traced(width)[1]
        return all(n.fit(within) for n in needs(channels, channels.counts, within).values())

    def measured(width: int) -> Fit:
        return measure(*traced(width), within)

    low, high = 1, 2  # in STEPs: the widest that fits lies from low on, below high
    while by_formula(high * STEP) and high * STEP < WIDEST:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if by_formula(middle * STEP) else (low, middle)
    best = measured(low * STEP)
    if best.fits and not best.no_hardware:  # the formulas may be too careful
        while low * STEP < WIDEST and (wider := measured((low + 1) * STEP)).fits:
            low, best = low + 1, wider
    while not best.fits and low > 1:
        low -= 1
        best = measured(low * STEP)
    if not best.fits:
        raise LichenError(_too_small(best, within))
    return best


def _build(name: str, arguments: dict[str, Any]) -> QuantizableModel:
    try:
        return catalogue.build(name, arguments)
    except ValueError as error:
        raise LichenError(f"{name} cannot be made so: {error}") from error


def _too_small(best: Fit, within: Budget) -> str:
    """Say what the narrowest network would need, and what could be met."""
    named = ", ".join(f"{key}={value}" for key, value in best.arguments.items())
    text = f"no {best.model} codes {within.video} on {best.board}: the narrowest ({named}) "
    over = {
        f"{core.core}: {share:.0%} of its {resource}"
        for core in best.cores
        for resource, share in core.taken.items()
        if share > fold.LIMIT and resource != "multipliers"
    }
    if over:
        return text + f"takes {', '.join(sorted(over))}; give a smaller video or another board"
    rate = min(core.frames_per_second for core in best.cores)
    return text + f"reaches {rate:.1f} frames/s of this size; give that, or a smaller size"


def measure(model: QuantizableModel, channels: Channels, within: Budget) -> Fit:
    """Look at what a network, whatever its weights, is on a board."""
    counts = channels.counts
    cores: tuple[CoreFit, ...]
    reason = ""
    try:
        cores = _planned(model, within)
    except ContractError as error:
        reason = str(error)
        cores = tuple(
            _by_formula(core, need, within)
            for core, need in needs(channels, counts, within).items()
        )

    def kmac(core: Core) -> float:
        layers = (layer for layer in channels.layers if layer.part in CORES[core])
        return sum(channels.macs(layer, counts) for layer in layers) / 1000

    state = model.state_dict()
    weights = sum(state[n].numel() for n in state if n.endswith((".weight", ".gamma")))
    biases = sum(
        state[n].numel() for n in state if n.endswith((".bias", ".beta")) and "prior" not in n
    )
    return Fit(
        model=catalogue.name_of(model),
        arguments=model.arguments,
        board=within.part.board,
        video=within.video,
        encode_kmac=kmac("encoder"),
        decode_kmac=kmac("decoder"),
        weight_bytes=weights + BIAS_BYTES * biases,
        cores=cores,
        no_hardware=reason,
    )


def _by_formula(core: Core, need: Needs, within: Budget) -> CoreFit:
    taken = {
        "multipliers": fold.LIMIT * need.products / within.products,
        "on-chip memory": fold.LIMIT * need.memory_bits / within.memory_bits,
    }
    rate = need.frames_per_second(within)
    return CoreFit(core, "formulas", need.fit(within), rate, need.limit(within), taken)


def _planned(model: QuantizableModel, within: Budget) -> tuple[CoreFit, ...]:
    """Fold both cores. Raises ContractError where the model has no hardware."""
    channels = trace(model)
    generator = torch.Generator().manual_seed(0)
    model.set_quantized(False)
    # What a stage costs follows from types and shapes; exponents need only be possible ones.
    picture = torch.rand(1, 3, 64, 64, generator=generator) * 2 - 1
    quantize.fit(model, [picture], rescale=False, correct=False)
    lowered = lower(model, "fit", {})
    if lowered.order != "hyperprior":
        raise ContractError(f"cores are for the order 'hyperprior', not {lowered.order!r}")
    for make in MAKE.values():  # what has no hardware is said before anything is folded
        make(lowered.programs)
    found = []
    for core in MAKE:
        try:
            plan = trial.plan_for(lowered, core, within.part, within.target)
        except ContractError as error:  # a layer whose channels cannot be shared out
            need = needs(channels, channels.counts, within)[core]
            rate = need.frames_per_second(within)
            found.append(CoreFit(core, "formulas", False, rate, f"its foldings: {error}", {}))
            continue
        total, _ = report.totals(plan, within.part)
        have = within.part.resources
        taken = {
            name: getattr(total, name) / getattr(have, name)
            for name in report.COLUMNS
            if getattr(have, name)
        }
        rate = plan.target.clock_hz / plan.cycles
        fits = not fold.shortfall(total, within.part) and rate >= plan.target.frames_per_second
        found.append(CoreFit(core, "plan", fits, rate, max(taken, key=taken.__getitem__), taken))
    return tuple(found)


def fit_command(arguments: argparse.Namespace) -> int:
    """Print the widest network of a kind that codes a video on a board; gives 0."""
    within = budget(arguments.board, arguments.video)
    found = search(arguments.model, within, parse_arguments(arguments.arguments or []))
    print(json.dumps(asdict(found)) if arguments.json else text(found))
    return 0


def text(found: Fit) -> str:
    """Give what `lichen fit` prints."""
    own = {key: value for key, value in found.arguments.items() if key != "pruned"}
    named = ", ".join(f"{key}={value}" for key, value in own.items())
    named += ", pruned" if "pruned" in found.arguments else ""
    lines = [
        f"{found.model} for {found.video} on {found.board}: {named}",
        f"  {found.encode_kmac:.2f} kMAC/pixel to encode, {found.decode_kmac:.2f} to decode, "
        f"{found.weight_bytes} bytes of weights",
    ]
    for core in found.cores:
        shares = [f"{name} {share:.0%}" for name, share in core.taken.items()]
        taken = f" ({', '.join(shares)}; {fold.LIMIT:.0%} may be taken)" if shares else ""
        lines.append(
            f"  {core.core}: {core.frames_per_second:.1f} frames/s at an assumed "
            f"{fold.ASSUMED_CLOCK_HZ / 1e6:g} MHz by the {core.source}, limited by "
            f"{core.limits}{taken}"
        )
    if found.no_hardware:
        lines.append(f"  no plan, only formulas: {found.no_hardware}")
    return "\n".join(lines)
