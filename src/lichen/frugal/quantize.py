"""Quantise a trained checkpoint: `lichen quantize`, from float weights to a model file of integers.

    float --[equalise]--> float --[ranges]--> integers --[widths]--> --[bias, adaround]-->
          --[ranges by loss]--> integers --[quantised training]--> model

Each step of post-training quantisation is kept only where it lowers the rate-distortion loss of the
calibration photographs in integers, and is reported with that loss. What results is lowered by
`lower.lower` like any other network: Programs that the codec runs.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lichen.errors import LichenError
from lichen.frugal import adaround, equalize, ranges, sensitivity
from lichen.frugal import fit_tables as tables_fit
from lichen.frugal.ranges import Loss
from lichen.model import Model
from lichen.models.layers import QuantizableModel
from lichen.training.data import Photographs
from lichen.training.recipe import Recipe
from lichen.training.train import Trainer, train

METHODS = ("ranges", "equalise", "bias", "adaround", "tables")
BATCH = 8  # crops of a batch, spread over the rates
LOSS_BATCHES = 2  # of the calibration set, that the loss is computed of
COUNTED = 6  # times as many crops as calibrate give the entropy tables
QAT_EMA = 0.99  # decay of the averaged weights in quantised training, which is short
QAT_WARMUP = 20
Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What shall be done. Raises LichenError for what contradicts itself.

    bits: of all weights, 4..8; None: mixed, within `budget`, bytes or a share of the 8-bit weights
    like "70%". methods: of METHODS; without "ranges", exponents follow the largest values. wide:
    activations that gain by it may have 16 bits.
    """

    bits: int | None = 8
    budget: str | None = None
    methods: tuple[str, ...] = METHODS
    wide: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = sorted(set(self.methods) - set(METHODS))
        if unknown:
            raise LichenError(
                f"a method must be one of {', '.join(METHODS)}, or all or none, not "
                f"{', '.join(unknown)}"
            )
        if self.bits is not None and not 4 <= self.bits <= 8:
            raise LichenError(f"weights must have 4 to 8 bits, or mixed, not {self.bits}")
        if self.bits is None and self.budget is None:
            raise LichenError(
                "mixed bits need a budget: --budget 70% of the 8-bit weights, or bytes"
            )
        if self.bits is not None and self.budget is not None:
            raise LichenError(f"a budget needs mixed bits, not {self.bits}: give --bits mixed")


@dataclass
class Report:
    """What was done. steps: name, loss in integers afterwards, and whether it was kept."""

    float_loss: float
    steps: list[dict[str, Any]] = field(default_factory=list)
    sensitivity: sensitivity.Table = field(default_factory=dict)
    activations: dict[str, float] = field(default_factory=dict)
    wide: list[str] = field(default_factory=list)
    weight_bytes: int = 0
    weight_bytes_8: int = 0
    tables: float | None = None  # bits by counted tables, over those by the old ones
    layers: list[dict[str, Any]] = field(default_factory=list)

    @property
    def loss(self) -> float:
        """The loss in integers after the last step that was kept."""
        return float(next(step["loss"] for step in reversed(self.steps) if step["kept"]))


def add_step(report: Report, name: str, loss: float, say: Say, kept: bool = True) -> None:
    """Report a step, with the loss in integers after it."""
    report.steps.append({"step": name, "loss": loss, "kept": kept})
    part = 100 * (loss / report.float_loss - 1)
    say(f"{name}: loss {loss:.4f}, {part:+.2f} % of that in float{'' if kept else ', not kept'}")


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A model's weights, and what its layers know of their integers."""

    state: dict[str, Tensor]
    layers: tuple[tuple[str, int, Tensor | None], ...]

    @classmethod
    def of(cls, model: QuantizableModel) -> Snapshot:
        state = {name: value.clone() for name, value in model.state_dict().items()}
        return cls(state, tuple(_knowledge(model)))

    def restore(self, model: QuantizableModel) -> None:
        """Give a model of the same kind what this one was."""
        model.load_state_dict(self.state)
        for layer, (dtype, bits, grid) in zip(model.quantized_layers(), self.layers, strict=True):
            layer.dtype = dtype
            if isinstance(layer, sensitivity.WEIGHTED):
                layer.weight_bits, layer.grid = bits, grid


def _knowledge(model: QuantizableModel) -> list[tuple[str, int, Tensor | None]]:
    found: list[tuple[str, int, Tensor | None]] = []
    for layer in model.quantized_layers():
        has = isinstance(layer, sensitivity.WEIGHTED)
        found.append((layer.dtype, layer.weight_bits if has else 8, layer.grid if has else None))
    return found


def fit_tables(
    model: Model,
    photographs: Sequence[Path],
    batches: Sequence[Tensor],
    plan: Plan,
    report: Report,
    say: Say,
) -> Model:
    """Give a lowered model entropy tables from photographs, where the plan has that method.

    batches: the calibration crops, by which it is judged; others are counted.
    """
    if "tables" not in plan.methods:
        return model
    crops = COUNTED * sum(map(len, batches))
    counted = calibration(photographs, crops, batches[0].shape[-1], plan.seed + 1)
    model, report.tables = tables_fit.fit(model, counted, batches, torch.get_num_threads())
    kept = "" if report.tables < 1 else ", not kept"
    say(f"tables: {100 * (report.tables - 1):+.2f} % of the bits{kept}")
    return model


def calibration(photographs: Sequence[Path], crops: int, crop: int, seed: int) -> list[Tensor]:
    """Cut the calibration crops, always the same for a seed: batches (8, 3, crop, crop).

    Raises LichenError where no photograph can be read or is as large as a crop.
    """
    data = Photographs(list(photographs), crop, torch.device("cpu"), seed=seed)
    return [data.batch(BATCH, -1 - k) for k in range(-(-crops // BATCH))]


def post_training(
    model: QuantizableModel,
    batches: Sequence[Tensor],
    plan: Plan,
    *,
    metric: str = "mse",
    one_lambda: float | None = None,
    trained: bool = False,
    say: Say | None = None,
) -> Report:
    """Quantise a float network in place; it then computes in integers where `set_quantized` is on.

    batches: pixels (B, 3, H, W) in -1..1, to calibrate by. trained: it was trained in integers,
    whose exponents are what others have to beat. Raises LichenError for a model that has no integer
    form and for a budget that cannot be met.
    """
    if not model.quantized_layers():
        raise LichenError(
            f"{type(model).__name__} runs in float and cannot be quantised; there are balle2016, "
            "balle2018, minnen2020 and student"
        )
    loss = Loss(batches[:LOSS_BATCHES], metric, one_lambda)
    work = _Work(model, batches, loss, plan, trained, say)
    if plan.bits is None:  # before anything that takes minutes
        _check_budget(model, plan)
    if "equalise" in plan.methods:
        work.equalise()
    else:
        work.begin()
    if plan.wide:
        work.widen()
    if plan.bits is None:
        work.spend()
    elif plan.bits < 8:
        for layer in sensitivity.weighted(model).values():
            sensitivity.narrow(layer, plan.bits)
        work.note(f"{plan.bits}-bit weights", work.loss(model))
    work.fit()
    if "ranges" in plan.methods:
        work.refine()
    return work.finish()


class _Work:
    """The state of `post_training`: a model, its calibration set, the report."""

    def __init__(
        self,
        model: QuantizableModel,
        batches: Sequence[Tensor],
        loss: Loss,
        plan: Plan,
        trained: bool,
        say: Say | None,
    ) -> None:
        self.model, self.batches, self.loss, self.plan = model, batches, loss, plan
        self.trained = trained
        self.say = say or (lambda _: None)
        for layer in sensitivity.weighted(model).values():
            layer.weight_bits, layer.grid = 8, None
        self.report = Report(loss(model, integers=False))
        self.say(f"float: loss {self.report.float_loss:.4f}")
        self.generator = torch.Generator().manual_seed(plan.seed)

    def note(self, name: str, loss: float, kept: bool = True) -> None:
        add_step(self.report, name, loss, self.say, kept)

    def calibrate(self) -> None:
        by = ranges.by_error if "ranges" in self.plan.methods else ranges.by_peak
        by(self.model, self.batches)

    def begin(self) -> None:
        if self.trained:
            self.note("as trained", self.loss(self.model))
            return
        self.calibrate()
        self.note("ranges" if "ranges" in self.plan.methods else "peaks", self.loss(self.model))

    def equalise(self) -> None:
        """Calibrate without equalisation and with each form of it, and keep the best."""
        before = Snapshot.of(self.model)
        self.begin()
        kept, least = Snapshot.of(self.model), self.report.loss
        for form in equalize.forms(self.model):
            before.restore(self.model)
            equalize.equalise(self.model, self.batches, form)
            self.calibrate()
            found = self.loss(self.model)
            better = found < least
            if better:
                kept, least = Snapshot.of(self.model), found
                for step in self.report.steps[1:]:  # another form of it
                    step["kept"] = False
            self.note("equalise" if form == "even" else f"equalise by {form}", found, better)
        kept.restore(self.model)

    def refine(self) -> None:
        ranges.by_loss(self.model, self.loss)
        self.note("ranges by loss", self.loss(self.model))

    def widen(self) -> None:
        """Give 16 bits to the activations that gain by them."""
        gains = sensitivity.measure_activations(self.model, self.loss)
        self.report.activations = gains
        tops = sensitivity.quantize.observe_outputs(self.model, self.batches)[0]
        limit = -sensitivity.WIDE_GAIN * self.report.loss
        for name, layer in sensitivity.widenable(self.model).items():
            if gains[name] < limit:
                sensitivity.widen(layer, tops[layer])
                self.report.wide.append(name)
        self.note("16-bit activations", self.loss(self.model))

    def spend(self) -> None:
        """Measure each layer's sensitivity and give it the bits that the budget allows."""
        model = self.model
        table = sensitivity.measure(model, self.loss)
        self.report.sensitivity = table
        budget = sensitivity.budget_bytes(self.plan.budget or "", _bytes_8(model))
        counts, fixed = sensitivity.sizes(model), sensitivity.fixed_bytes(model)
        chosen = sensitivity.allocate(table, counts, fixed, budget)
        for name, layer in sensitivity.weighted(model).items():
            sensitivity.narrow(layer, chosen[name])
        self.note("mixed bits", self.loss(model))

    def fit(self) -> None:
        """Fit integer weights unit by unit; a unit stays as it was where the loss rises."""
        methods = self.plan.methods
        if not {"ranges", "bias", "adaround"} & set(methods):
            return
        words = {"ranges": "grids", "bias": "bias", "adaround": "adaround"}
        done = ", ".join(word for name, word in words.items() if name in methods)
        twin = copy.deepcopy(self.model)
        twin.set_quantized(False)
        twins = dict(adaround.units(twin))
        best = self.report.loss
        for name, unit in adaround.units(self.model):
            before = Snapshot.of(self.model)
            calls = adaround.unit_inputs(self.model, unit, self.batches)
            adaround.fit_unit(
                unit,
                twins[name],
                calls,
                ranges="ranges" in methods,
                adaptive="adaround" in methods,
                bias="bias" in methods,
                generator=self.generator,
            )
            found = self.loss(self.model)
            kept = found < best
            best = min(best, found)
            if not kept:
                before.restore(self.model)
            self.note(f"{done} of {name}", found, kept)

    def finish(self) -> Report:
        report = self.report
        report.weight_bytes_8 = _bytes_8(self.model)
        report.weight_bytes = sensitivity.weight_bytes(self.model)
        report.layers = sensitivity.rows(self.model, report.sensitivity)
        return report


def _bytes_8(model: QuantizableModel) -> int:
    return sensitivity.weight_bytes(model, dict.fromkeys(sensitivity.weighted(model), 8))


def _check_budget(model: QuantizableModel, plan: Plan) -> None:
    """Raise LichenError, before minutes of measuring, where the budget cannot be met."""
    budget = sensitivity.budget_bytes(plan.budget or "", _bytes_8(model))
    counts = sensitivity.sizes(model)
    flat = {name: dict.fromkeys(sensitivity.WIDTHS, 0.0) for name in counts}
    sensitivity.allocate(flat, counts, sensitivity.fixed_bytes(model), budget)


def fine_tune(
    model: QuantizableModel,
    made: Recipe,
    photographs: Sequence[Path],
    steps: int,
    *,
    learning_rate: float = 2e-4,
    batch: int = 8,
    crop: int | None = None,
    seed: int = 0,
    say: Say | None = None,
) -> None:
    """Train a quantised network on in integers, in place: its grids and widths stay.

    made: the recipe of its float training, whose rates and metric go on, and its crops where no
    other `crop` is given. Raises LichenError where the loss is not finite, or the photographs do
    not serve.
    """
    rate = learning_rate
    trainer = tuner(model, made, steps, learning_rate=rate, batch=batch, crop=crop, seed=seed)
    data = Photographs(list(photographs), trainer.recipe.crop, torch.device("cpu"), seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        number = train(trainer, data, Path(folder), save_every_s=math.inf, report=say)
    if number:
        raise KeyboardInterrupt
    model.load_state_dict(trainer.average)


def tuner(
    model: QuantizableModel,
    made: Recipe,
    steps: int,
    *,
    learning_rate: float = 2e-4,
    batch: int = 8,
    crop: int | None = None,
    seed: int = 0,
) -> Trainer:
    """Give the trainer of `fine_tune`, at its first step; a chain resumes it from a folder."""
    recipe = dataclasses.replace(
        made,
        arguments=model.arguments,
        steps=steps,
        quantized_steps=steps,
        quantized_learning_rate=learning_rate,
        warmup_steps=QAT_WARMUP,
        batch=batch,
        crop=made.crop if crop is None else crop,
        schedule="cosine",
        ema=QAT_EMA,
        log_every=max(1, min(25, steps // 4)),
        seed=seed,
    )
    trainer = Trainer(recipe, torch.device("cpu"))
    Snapshot.of(model).restore(trainer.model)
    trainer.reset_average()
    trainer.compute_in_integers()
    trainer.model.train_quickly()
    return trainer


def metadata(model: QuantizableModel, report: Report, plan: Plan) -> str:
    """Say in JSON what a model file's integers are: bits by layer, steps that were kept."""
    return json.dumps(
        {
            "bits": "mixed" if plan.bits is None else plan.bits,
            "weight_bytes": report.weight_bytes,
            "layers": {name: w.weight_bits for name, w in sensitivity.weighted(model).items()},
            "activations_16": report.wide,
            "steps": [step["step"] for step in report.steps if step["kept"]]
            + ["tables"] * (report.tables is not None and report.tables < 1),
            "seed": plan.seed,
        }
    )
