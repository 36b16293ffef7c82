"""Train a model for all rates: float first, then in integers; resumable at any moment.

The same loop serves a CPU and a GPU (`scripts/train-gpu`). A run lives in one folder:

    config.json        the recipe
    checkpoint.pt      everything needed to go on (written to a temporary name, then renamed)
    weights.safetensors  averaged (EMA) weights, what evaluation and lowering read
    log.csv            one line per `log_every` steps
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from lichen.errors import LichenError
from lichen.models.student import Coded, Student
from lichen.training.data import Photographs
from lichen.training.loss import rate_distortion

LOG_FIELDS = ["step", "seconds", "loss", "bpp", "mse", "psnr", "learning_rate", "quantized"]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides the result of a run."""

    width: int = 64
    encoder_blocks: tuple[int, int] = (4, 1)
    decoder_blocks: tuple[int, int] = (3, 1)
    metric: str = "mse"
    steps: int = 20000
    quantized_steps: int = 4000  # at the end of `steps`, in integers
    batch: int = 8
    crop: int = 256
    learning_rate: float = 6e-4
    warmup_steps: int = 500
    ema: float = 0.998
    gradient_clip: float = 1.0
    seed: int = 0
    bfloat16: bool = True

    def model(self) -> Student:
        return Student(self.width, self.encoder_blocks, self.decoder_blocks)


def save_tensors(state: dict[str, Tensor], path: Path, half: bool = False) -> None:
    """Write tensors as safetensors under a temporary name, then rename."""
    from safetensors.torch import save_file

    temporary = path.with_suffix(".part")
    cast = {
        k: v.detach().cpu().to(torch.float16 if half and v.is_floating_point() else v.dtype)
        for k, v in state.items()
    }
    save_file({k: v.contiguous() for k, v in cast.items()}, temporary)
    os.replace(temporary, path)


def load_tensors(model: nn.Module, path: Path) -> None:
    """Load safetensors into `model`; an error names what is missing or unexpected."""
    from safetensors.torch import load_file

    state = load_file(path)
    own = model.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    wrong = [k for k in own.keys() & state.keys() if own[k].shape != state[k].shape]
    if missing or extra or wrong:
        raise LichenError(
            f"{path} does not hold this model: missing {missing[:5]}, unexpected {extra[:5]}, "
            f"of another shape {wrong[:5]}; give the width and blocks that it was trained with"
        )
    model.load_state_dict(state)


class Trainer:
    """The state of a run and the steps that change it."""

    def __init__(self, recipe: Recipe, folder: Path, device: torch.device) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.folder, self.device = recipe, folder, device
        self.model = recipe.model().to(device, memory_format=torch.channels_last)
        self.reset_average()
        self.optimizer = torch.optim.AdamW(
            self._groups(), lr=recipe.learning_rate, betas=(0.9, 0.999)
        )
        self.forward: Callable[[Tensor, Tensor], Coded] = self.model
        self.step, self.seconds = 0, 0.0
        self.quantized = False
        self.sums: dict[str, float] = {}
        self.logged = 0

    def _groups(self) -> list[dict]:  # type: ignore[type-arg]
        """The warm-started linear paths are nearly right: they take smaller steps."""
        slow, fast = [], []
        for name, parameter in self.model.named_parameters():
            if name == "prior.quantiles":
                continue
            (slow if "linear" in name else fast).append(parameter)
        return [
            {"params": fast, "weight_decay": 0.0, "factor": 1.0},
            {"params": slow, "weight_decay": 0.0, "factor": 0.15},
        ]

    def reset_average(self) -> None:
        """Begin averaging anew, after the model's weights were set from elsewhere."""
        self.average = {k: v.detach().clone() for k, v in self.model.state_dict().items()}

    def learning_rate(self) -> float:
        """Linear warm-up, then a cosine to 2 % over the whole run."""
        r = self.recipe
        if self.step < r.warmup_steps:
            return r.learning_rate * (self.step + 1) / r.warmup_steps
        part = (self.step - r.warmup_steps) / max(1, r.steps - r.warmup_steps)
        return r.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, part))))

    @torch.no_grad()
    def calibrate(self, data: Photographs, batches: int = 8) -> None:
        """Choose exponents from the ranges that training pictures give at all rates."""
        self.model.calibrate_begin()
        for _ in range(batches):
            x = data.batch(self.recipe.batch).to(memory_format=torch.channels_last)
            self.model(x, torch.linspace(0, 1, len(x), device=self.device), noise=False)
        self.model.calibrate_end()
        for name, value in self.model.state_dict().items():
            if name.endswith(("exponent", "peak")):
                self.average[name].copy_(value)

    def train_step(self, x: Tensor) -> None:
        r = self.recipe
        rate = self.learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        # stratified qualities: every batch sees the whole range
        position = (torch.arange(len(x)) + torch.rand(len(x))) / len(x)
        position = position[torch.randperm(len(x))].to(self.device)
        amp = r.bfloat16 and not self.quantized
        with torch.autocast(self.device.type, torch.bfloat16, enabled=amp):
            coded = self.forward(x, position)
        terms = rate_distortion(coded, x, position, r.metric)
        self.optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), r.gradient_clip)
        if not math.isfinite(float(norm)):
            raise FloatingPointError(f"gradient is not finite at step {self.step}")
        self.optimizer.step()
        decay = min(r.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, value in self.model.named_parameters():
                self.average[name].lerp_(value, 1 - decay)
        self.step += 1
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value.detach())

    def save(self) -> None:
        """Write the checkpoint and the averaged weights."""
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "quantized": self.quantized,
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
        }
        path = self.folder / "checkpoint.pt"
        torch.save(state, path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)
        save_tensors(self.average, self.folder / "weights.safetensors")

    def resume(self) -> bool:
        """Go on from the folder's checkpoint, if there is one."""
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return False
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.quantized = state["quantized"]
        self.model.set_quantized(self.quantized)
        torch.set_rng_state(state["random"].cpu())
        return True


def train(
    trainer: Trainer,
    data: Photographs,
    *,
    time_limit_s: float = math.inf,
    save_every_s: float = 60.0,
    log_every: int = 50,
    saved: Callable[[Path], None] | None = None,
) -> bool:
    """Run until the recipe's last step or the time limit; True when the recipe is complete.

    Ctrl-C saves and raises KeyboardInterrupt again. A gradient that is not finite stops the run
    with the last good checkpoint on disk. `saved` is called with the folder after each save.
    """
    r, folder = trainer.recipe, trainer.folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(r), indent=1) + "\n")
    log_path = folder / "log.csv"
    fresh = not log_path.exists()
    start = last_save = time.monotonic()

    def save() -> None:
        trainer.save()
        if saved is not None:
            saved(folder)

    data.random.seed(r.seed * 1_000_003 + trainer.step)
    with log_path.open("a", newline="") as file:
        log = csv.DictWriter(file, LOG_FIELDS)
        if fresh:
            log.writeheader()
        try:
            while trainer.step < r.steps and time.monotonic() - start < time_limit_s:
                if not trainer.quantized and trainer.step >= r.steps - r.quantized_steps:
                    trainer.calibrate(data)
                    trainer.quantized = True
                    trainer.model.set_quantized(True)
                began = time.monotonic()
                trainer.train_step(data.batch(r.batch).to(memory_format=torch.channels_last))
                trainer.seconds += time.monotonic() - began
                if trainer.step % log_every == 0:
                    _report(trainer, log, log_every)
                    file.flush()
                if time.monotonic() - last_save > save_every_s:
                    save()
                    last_save = time.monotonic()
        except KeyboardInterrupt:
            save()
            raise
        except FloatingPointError as error:
            raise LichenError(
                f"training stopped: {error}; the last good checkpoint is in {folder}; "
                "resume with a smaller learning rate"
            ) from error
    save()
    return trainer.step >= r.steps


def _report(trainer: Trainer, log: csv.DictWriter, count: int) -> None:  # type: ignore[type-arg]
    mean = {name: value / count for name, value in trainer.sums.items()}
    trainer.sums.clear()
    left = (trainer.recipe.steps - trainer.step) * trainer.seconds / trainer.step
    log.writerow(
        {
            "step": trainer.step,
            "seconds": round(trainer.seconds, 1),
            "loss": round(mean["loss"], 5),
            "bpp": round(mean["bpp"], 4),
            "mse": round(mean["mse"], 3),
            "psnr": round(10 * math.log10(255**2 / mean["mse"]), 3),
            "learning_rate": f"{trainer.learning_rate():.2e}",
            "quantized": int(trainer.quantized),
        }
    )
    print(
        f"step {trainer.step}/{trainer.recipe.steps}  loss {mean['loss']:.4f}  "
        f"bpp {mean['bpp']:.3f}  mse {mean['mse']:.1f}  {left / 60:.0f} min left",
        file=sys.stderr,
        flush=True,
    )
