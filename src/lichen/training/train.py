"""Train any model of the catalogue: float first, then in integers; resumable at any moment.

The same loop serves one CPU, one GPU and several processes. With one seed, one machine and one
number of threads a run gives the same losses to the last bit, stopped and resumed or not: whatever
is random in a step follows from the seed and the step (`training/seeds.py`).
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lichen.errors import LichenError, ModelError
from lichen.models import catalogue
from lichen.models.layers import QuantizableModel, Weighted, fast_bfloat16
from lichen.models.priors import EntropyBottleneck
from lichen.models.student import Coded, Student, quality_to_lambda
from lichen.training import quantize, run
from lichen.training import recipe as recipes
from lichen.training.closed import closed_channels
from lichen.training.data import Photographs
from lichen.training.extra import Extra
from lichen.training.loss import balance, rate_distortion
from lichen.training.processes import Processes, Signals
from lichen.training.recipe import Recipe
from lichen.training.seeds import SampleNoise, derived, positions
from lichen.training.soap import SOAP

FLOOR = 0.02  # of the learning rate, where a cosine ends
LINEAR_FACTOR = 0.15  # the student's warm-started linear paths are nearly right: smaller steps
QUANTIZED_WARMUP = 20  # steps of linear warm-up where the optimiser starts anew
PLATEAU = 0.999  # a mean loss above this times the best one so far halves the learning rate
CALIBRATION_BATCHES = 8


def new_model(recipe: Recipe) -> QuantizableModel:
    """Make the recipe's model with fresh weights. Raises ModelError for what does not exist."""
    try:
        model = catalogue.build(recipe.model, recipe.arguments)
    except ValueError as error:
        raise ModelError(f"{recipe.model} cannot be made so: {error}") from error
    if recipe.crop % model.REDUCTION:
        raise ModelError(
            f"{recipe.model} codes multiples of {model.REDUCTION} pixels, not crops of "
            f"{recipe.crop}; give --crop {-(-recipe.crop // model.REDUCTION) * model.REDUCTION}"
        )
    if recipe.quantized_steps and not model.quantized_layers():
        raise ModelError(f"{recipe.model} runs in float; give --quantized-steps 0")
    return model


class Trainer:
    """The state of a run and the steps that change it."""

    def __init__(
        self, recipe: Recipe, device: torch.device, processes: Processes | None = None
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.device, self.processes = device, processes or Processes()
        self.share = self.processes.share(recipe.batch)
        self.model = new_model(recipe).to(device, memory_format=torch.channels_last)
        self.recipe = dataclasses.replace(recipe, arguments=self.model.arguments)
        self.extras: list[Extra] = []
        quantiles = [m.quantiles for m in self.model.modules() if isinstance(m, EntropyBottleneck)]
        self.forward: Callable[[Tensor, Tensor], Coded] = self.model
        self.compiled = False
        if self.processes.size > 1:
            for parameter in quantiles:  # the loss does not reach them: not DDP's business
                parameter.requires_grad_(False)
            self.forward = nn.parallel.DistributedDataParallel(self.model)
            for parameter in quantiles:
                parameter.requires_grad_(True)
        self.auxiliary = torch.optim.Adam(quantiles, lr=recipe.auxiliary_learning_rate)
        self.step, self.seconds, self.quantized = 0, 0.0, False
        self.sums: dict[str, float] = {}  # of the losses since the last line of the log
        # plateau: the factor of the learning rate, the best mean loss, the sum for the next mean
        self.plateau = {"factor": 1.0, "best": math.inf, "sum": 0.0}
        self.new_optimizer()
        self.reset_average()

    def add(self, extra: Extra) -> None:
        """Let an extra take part; before `resume`, and before the first step."""
        if any(extra.name == other.name for other in self.extras):
            raise ValueError(f"the run already has an extra called {extra.name!r}")
        self.extras.append(extra.to(self.device))
        self.new_optimizer()

    def compile(self) -> None:
        """Have torch compile the forward pass. Noise is then drawn per process, not per sample."""
        if self.extras:
            raise LichenError(
                f"--compile does not go with {', '.join(extra.name for extra in self.extras)}, "
                "which look into the forward pass; leave it out"
            )
        self.forward = torch.compile(self.forward, dynamic=False)
        self.compiled = True

    def new_optimizer(self) -> None:
        """Begin anew: linear paths take smaller steps, only weights of layers are matrices."""
        weights = {
            f"{name}.weight" for name, m in self.model.named_modules() if isinstance(m, Weighted)
        }
        student = isinstance(self.model, Student)
        kinds: dict[tuple[float, bool], list[Tensor]] = {}  # of equal steps and rotation
        for factor in (1.0, LINEAR_FACTOR):
            for matrix in (True, False):
                kinds[factor, matrix] = []
        for name, parameter in self.model.named_parameters():
            if not name.endswith("quantiles"):
                factor = LINEAR_FACTOR if student and "linear" in name else 1.0
                kinds[factor, name in weights].append(parameter)
        groups: list[dict[str, Any]] = [
            {"params": chosen, "factor": factor, "rotate": matrix}
            for (factor, matrix), chosen in kinds.items()
        ]
        groups += [
            {"params": list(extra.parameters()), "factor": 1.0, "rotate": False}
            for extra in self.extras
        ]
        groups = [group for group in groups if group["params"]]
        rate = self.recipe.learning_rate
        self.optimizer: torch.optim.Optimizer
        if self.recipe.optimizer == "soap":
            low = self.recipe.bfloat16 and fast_bfloat16(self.device)
            self.optimizer = SOAP(groups, lr=rate, dtype=torch.bfloat16 if low else torch.float32)
        else:
            self.optimizer = torch.optim.AdamW(
                groups, lr=rate, betas=(0.9, 0.999), weight_decay=0.0
            )

    def reset_average(self) -> None:
        """Begin averaging anew, after the model's weights were set from elsewhere."""
        self.average = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.averaged = 0

    @property
    def float_steps(self) -> int:
        return self.recipe.steps - self.recipe.quantized_steps

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then the schedule; the steps in integers have one of their own."""
        r = self.recipe
        peak, begin, end, warmup = r.learning_rate, 0, r.steps, r.warmup_steps
        if r.quantized_steps and r.quantized_learning_rate:
            end = self.float_steps
            if step >= end:
                peak, begin, end = r.quantized_learning_rate, end, r.steps
                warmup = min(warmup, QUANTIZED_WARMUP)
        if step - begin < warmup:
            return peak * (step - begin + 1) / warmup
        if r.schedule == "plateau":
            return peak * self.plateau["factor"]
        part = (step - begin - warmup) / max(1, end - begin - warmup)
        return peak * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * min(1.0, part))))

    def enter_integers(self, data: Photographs) -> None:
        """Choose exponents from training pictures, and compute in integers from now on."""
        r, restart = self.recipe, self.recipe.quantized_learning_rate > 0
        if restart:
            self.model.load_state_dict(self.average)
        batches = calibration_batches(data, r)
        quantize.fit(self.model, batches, rescale=restart, correct=False)
        self.compute_in_integers()
        if restart:
            self.new_optimizer()
            self.reset_average()
            self.plateau.update(factor=1.0, best=math.inf, sum=0.0)
        for name, value in self.model.state_dict().items():
            if name.endswith(("exponent", "peak")):
                self.average[name].copy_(value)

    def compute_in_integers(self) -> None:
        """Compute in integers from now on, by the exponents that the layers have."""
        self.quantized = True
        self.model.train_in_integers()

    def train_step(self, data: Photographs) -> None:
        """Do one step. Raises FloatingPointError, with nothing changed, for infinite gradients."""
        r = self.recipe
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step) * group["factor"]
        terms = self._loss(data)
        self.optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        if r.one_lambda is not None:
            self._tie_gains()
        for extra in self.extras:
            self.processes.average([p.grad for p in extra.parameters() if p.grad is not None])
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(trained, r.gradient_clip)
        *values, norm_value = torch.stack([*terms.values(), norm]).detach().double().tolist()
        losses = dict(zip(terms, self.processes.mean(values)))
        if not math.isfinite(norm_value) or not math.isfinite(losses["loss"]):
            raise FloatingPointError(
                f"at step {self.step} the loss is {losses['loss']:.4g} and the norm of its "
                f"gradient {norm_value:.4g}"
            )
        self.optimizer.step()
        self._auxiliary_step()
        for extra in self.extras:
            extra.after_step(self.model, self.step + 1, r.steps)
        self._update_average()
        self.step += 1
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self._watch_plateau(losses["loss"])

    def _loss(self, data: Photographs) -> dict[str, Tensor]:
        r, first = self.recipe, self.processes.rank * self.share
        x = data.batch(self.share, self.step, first).to(memory_format=torch.channels_last)
        if r.one_lambda is None:
            everyone = positions(r.batch, r.seed, self.step)
            position = everyone[first : first + self.share].to(self.device)
            weight = quality_to_lambda(position)
            factor: Tensor | float = balance(weight)
        else:
            position = torch.full((self.share,), 0.5, device=self.device)
            weight, factor = torch.full_like(position, r.one_lambda), 1.0
        torch.manual_seed(derived(r.seed, "other", self.step, self.processes.rank))
        noise = (
            contextlib.nullcontext()
            if self.compiled
            else SampleNoise(r.seed, self.step, first, self.device)
        )
        amp = r.bfloat16 and (not self.quantized or self.model.integers_in_bfloat16)
        with noise, torch.autocast(self.device.type, torch.bfloat16, enabled=amp):
            coded = self.forward(x, position)
        terms = rate_distortion(coded, x, weight, r.metric, factor)
        for extra in self.extras:
            more = extra.loss(self.model, x, position, coded)
            terms[extra.name] = torch.zeros_like(terms["loss"]) if more is None else more
            if more is not None:
                terms["loss"] = terms["loss"] + more
        return terms

    def _tie_gains(self) -> None:
        """Let the gains of all qualities learn alike: at one rate they are one and the same."""
        for parameter in (self.model.gain, self.model.inverse_gain):
            if parameter.grad is not None:  # type: ignore[union-attr]
                parameter.grad = parameter.grad.mean(0, keepdim=True).expand_as(parameter).clone()

    def _auxiliary_step(self) -> None:
        self.auxiliary.zero_grad(set_to_none=True)
        for prior in self.model.modules():
            if isinstance(prior, EntropyBottleneck):
                prior.auxiliary_loss().backward()
        self.auxiliary.step()

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.recipe.ema, (1 + self.averaged) / (10 + self.averaged))
        for name, value in self.model.named_parameters():
            if name.endswith("quantiles"):  # they follow the prior: no use in lagging behind
                self.average[name].copy_(value)
            else:
                self.average[name].lerp_(value, 1 - decay)
        self.averaged += 1

    def _watch_plateau(self, loss: float) -> None:
        state, window = self.plateau, self.recipe.plateau_steps
        state["sum"] += loss
        begun = self.float_steps if self.quantized and self.recipe.quantized_learning_rate else 0
        if (self.step - begun) % window == 0:
            mean, state["sum"] = state["sum"] / window, 0.0
            if mean > PLATEAU * state["best"]:
                state["factor"] *= 0.5
            state["best"] = min(state["best"], mean)

    def save(self, folder: Path) -> None:
        """Write the checkpoint and the averaged weights. Raises OSError; the old ones stay."""
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "quantized": self.quantized,
            "model": self.model.state_dict(),
            "average": self.average,
            "averaged": self.averaged,
            "optimizer": self.optimizer.state_dict(),
            "auxiliary": self.auxiliary.state_dict(),
            "sums": self.sums,
            "plateau": self.plateau,
            "extras": {extra.name: extra.state_dict() for extra in self.extras},
        }
        run.save_checkpoint(state, folder)
        run.save_tensors(self.average, folder / run.WEIGHTS, facts=self.facts())

    def facts(self) -> dict[str, str]:
        """What a file of averaged weights says about itself."""
        return {"step": str(self.step), "quantized": str(int(self.quantized))}

    def resume(self, folder: Path) -> bool:
        """Go on from the folder's checkpoint, if there is one."""
        state: dict[str, Any] | None = run.load_checkpoint(folder, self.device)
        if state is None:
            return False
        saved, own = state.get("extras", {}), {extra.name: extra for extra in self.extras}
        if saved.keys() != own.keys():
            raise LichenError(
                f"{folder} holds a run with {', '.join(saved) or 'nothing'} besides the "
                f"rate-distortion loss, not with {', '.join(own) or 'nothing'}; go on with the "
                "command and the options that began it, or name another folder"
            )
        for name, extra in own.items():
            extra.load_state_dict(saved[name])
        self.model.load_state_dict(state["model"])
        self.average, self.averaged = state["average"], state["averaged"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.auxiliary.load_state_dict(state["auxiliary"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.sums, self.plateau = state["sums"], state["plateau"]
        if state["quantized"]:
            self.compute_in_integers()
        return True


def load_run(folder: Path) -> tuple[Recipe, QuantizableModel, dict[str, str]]:
    """Give the recipe of a run, or of a folder of recipes/, its model with averaged weights, facts.

    The facts are those of `Trainer.facts`. Raises LichenError, OSError.
    """
    paths = [folder / name for name in (run.CONFIG, "recipe.toml")]
    found = [path for path in paths if path.exists()]
    if not found:
        raise LichenError(
            f"expected the folder of a run, found no {run.CONFIG} in {folder}; `lichen train` "
            "makes one"
        )
    made = recipes.read(found[0])
    model = new_model(made)
    facts = run.load_tensors(model, folder / run.WEIGHTS)
    planned = {"step": str(made.steps), "quantized": str(int(made.quantized_steps > 0))}
    return made, model.eval(), planned | facts


def calibration_batches(data: Photographs, recipe: Recipe) -> list[Tensor]:
    """Give the batches that exponents are chosen by; all processes of a run take the same."""
    # Steps count from 0, so that these crops are others than those that are trained on.
    return [
        data.batch(min(8, recipe.batch), -1 - k).to(memory_format=torch.channels_last)
        for k in range(CALIBRATION_BATCHES)
    ]


def train(
    trainer: Trainer,
    data: Photographs,
    folder: Path,
    *,
    time_limit_s: float = math.inf,
    save_every_s: float = 60.0,
    saved: Callable[[Path], None] | None = None,
    report: Callable[[str], None] | None = None,
) -> int:
    """Run to the recipe's last step, the time limit, Ctrl-C or SIGTERM; save in each case.

    Gives the number of the signal that ended it, or 0; `trainer.step` tells how far it came.
    `saved` is called with the folder after each save, `report` with a line of progress. Raises
    LichenError where the loss or its gradient is not finite, OSError where a file cannot be
    written; the last checkpoint that was written stays.
    """
    r, writes = trainer.recipe, trainer.processes.first
    start = last_save = time.monotonic()
    begun = trainer.step

    def save() -> None:
        if writes:
            trainer.save(folder)
            if saved is not None:
                saved(folder)

    if writes:
        folder.mkdir(parents=True, exist_ok=True)
        with run.whole_file(folder / run.CONFIG) as temporary:
            temporary.write_text(r.to_json())
        run.begin_log(folder, trainer.step, log_fields(trainer))
    with Signals() as signals:
        while trainer.step < r.steps:
            over = time.monotonic() - start >= time_limit_s
            if trainer.processes.any(over or signals.number > 0):
                break
            began = time.monotonic()
            if not trainer.quantized and r.quantized_steps and trainer.step >= trainer.float_steps:
                trainer.enter_integers(data)
            try:
                trainer.train_step(data)
            except FloatingPointError as error:
                rate = f"learning rate than {trainer.learning_rate(trainer.step):.2g}"
                raise LichenError(
                    f"training stopped: {error}; the last good checkpoint is kept in {folder}: go "
                    f"on from it with a smaller {rate}, or another --seed"
                ) from error
            trainer.seconds += time.monotonic() - began
            if trainer.step % r.log_every == 0:
                pace = (time.monotonic() - start) / (trainer.step - begun)
                _log(trainer, folder, pace, report if writes else None)
            if time.monotonic() - last_save > save_every_s:
                save()
                last_save = time.monotonic()
        save()
    if trainer.step >= r.steps and report is not None and writes:
        _report_closed(trainer, data, report)
    return signals.number


def _report_closed(trainer: Trainer, data: Photographs, report: Callable[[str], None]) -> None:
    """Say how many channels of ReLUs do nothing."""
    batch = calibration_batches(data, trainer.recipe)[0]
    counts = closed_channels(trainer.model, batch)
    closed, all_of_them = (sum(pair[k] for pair in counts.values()) for k in (0, 1))
    if all_of_them:
        most = [f"{name} {a} of {b}" for name, (a, b) in counts.items() if 2 * a > b]
        report(
            f"{closed} of {all_of_them} channels with a ReLU are closed"
            + (f", most of {', '.join(most)}" if most else "")
        )


def log_fields(trainer: Trainer) -> list[str]:
    """List the columns of the run's log.csv."""
    return [*run.LOG_FIELDS, *(extra.name for extra in trainer.extras)]


def _log(trainer: Trainer, folder: Path, pace: float, report: Callable[[str], None] | None) -> None:
    """Append a line to log.csv and report it; pace: seconds per step."""
    r, step = trainer.recipe, trainer.step
    mean = {name: value / r.log_every for name, value in trainer.sums.items()}
    trainer.sums.clear()
    if not trainer.processes.first:
        return
    psnr = 10 * math.log10(255**2 / max(mean["mse"], 1e-9))
    row = {
        "step": step,
        "seconds": f"{trainer.seconds:.1f}",
        **{name: f"{value:.9g}" for name, value in mean.items()},
        "psnr": f"{psnr:.3f}",
        "learning_rate": f"{trainer.learning_rate(step - 1):.3g}",
        "quantized": int(trainer.quantized),
    }
    with (folder / run.LOG).open("a", newline="") as file:
        csv.DictWriter(file, log_fields(trainer)).writerow(row)
    if report is not None:
        left = round((r.steps - step) * pace)
        report(
            f"step {step}/{r.steps}  loss {mean['loss']:.4f}  bpp {mean['bpp']:.3f}  "
            f"PSNR {psnr:.2f} dB  {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"
        )
