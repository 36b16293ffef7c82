"""Distillation: a student learns from what a teacher makes of the same crops.

            +-- y_t ------ v_t ---- z_t          x_t     the teacher, frozen
        x --|    :                   :            :
            +-- y -[gain]- v ------- z -- ...  -- x'     the student, any model of the catalogue
             latent              hyper         pixel

Three terms join the student's rate-distortion loss, each with its weight: on the picture, on the
latent y and on the hyper-latent z (Hinton 2015, "Distilling the knowledge in a neural network";
Romero 2015, "FitNets", section 2.1: hints, and a regressor to the teacher's width). y is compared
before the rate gains, where it does not depend on the quality, and measured in the teacher's
quantisation steps in the middle of its rates. Where teacher and student differ in kind, in channels
or in resolution, a 1x1 convolution, the adapter, maps the student's latents to the teacher's. It
begins as the linear regression over photographs and is trained with the student; nothing of it is
left in the model.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lichen.errors import LichenError
from lichen.frugal import fit
from lichen.frugal.network import digest, load_network
from lichen.models import catalogue
from lichen.models.layers import QuantizableModel
from lichen.models.student import LAMBDA_MAX, LAMBDA_MIN, Coded, interpolate, quality_to_lambda
from lichen.training import run
from lichen.training.commands import train_command
from lichen.training.data import Photographs
from lichen.training.extra import Extra
from lichen.training.loss import balance, mse_255
from lichen.training.processes import is_first
from lichen.training.recipe import parse_arguments
from lichen.training.train import Trainer

LESSON = "teacher.json"  # in the folder of the run
REGRESSION_BATCHES = 16  # of 4 crops, that an adapter begins with
RIDGE = 1e-3  # of the mean square of the student's latents, so that silent channels do no harm


@dataclass(frozen=True)
class Weights:
    """How much the terms count.

    pixel: of the squared error against the teacher's picture, as a part of what the error against
    the original counts. latent, hyper: of the mean squared error of y and z, in the teacher's
    quantisation steps, next to bits per pixel. 0 leaves a term out.
    """

    pixel: float = 0.3
    latent: float = 0.05
    hyper: float = 0.02

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (math.isfinite(value) and value >= 0):
                raise LichenError(f"the {name} weight must be 0 or more, not {value}")
        if not any(vars(self).values()):
            raise LichenError(
                "all three weights are 0, which leaves nothing of the teacher; use `lichen train`"
            )


class Watch:
    """Keep what a model's last forward pass had as `y` (before gains) and `z`, with gradients."""

    def __init__(self, model: QuantizableModel) -> None:
        self.y: Tensor | None = None
        self.z: Tensor | None = None
        self.has_hyper = hasattr(model, "hyper_analyse")
        # Instance attributes stand before methods; a state dict knows nothing of them.
        model.analyse = self._kept("y", model.analyse)  # type: ignore[assignment, arg-type]
        if self.has_hyper:
            model.hyper_analyse = self._kept("z", model.hyper_analyse)  # type: ignore[assignment, arg-type]

    def _kept(self, name: str, method: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def call(x: Tensor) -> Tensor:
            result = method(x)
            setattr(self, name, result)
            return result

        return call


class Teacher:
    """A frozen model. bfloat16: compute in it where the model's layers allow."""

    def __init__(
        self, model: QuantizableModel, device: torch.device, bfloat16: bool = False
    ) -> None:
        self.model = model.to(device, memory_format=torch.channels_last).eval()
        self.model.requires_grad_(False)
        if self.model.quantized_layers():
            self.model.set_quantized(False)
        self.watch, self.bfloat16 = Watch(model), bfloat16

    @torch.no_grad()
    def __call__(self, x: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Give picture (B, 3, H, W), y (B, M, ..) before its gains and z (None: it has none)."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bfloat16):
            coded = self.model(x, position, noise=False)
        y, z = self.watch.y, self.watch.z
        assert y is not None
        return coded.x_hat.float(), y.float(), None if z is None else z.float()

    @torch.no_grad()
    def latents(self, x: Tensor, position: Tensor) -> tuple[Tensor, Tensor | None]:
        """Give y and z alone."""
        return self(x, position)[1:]


class Distillation(Extra):
    """The three terms, as one sum: an Extra of a training run.

    rates: the recipe's lambda; None where all rates are trained.
    """

    name = "distillation"

    def __init__(
        self,
        student: QuantizableModel,
        teacher: Teacher,
        weights: Weights,
        rates: float | None = None,
    ) -> None:
        super().__init__()
        self.weights, self.rates = weights, rates
        self.__dict__["teacher"] = teacher  # no submodule: its weights are in no checkpoint
        self.watch = Watch(student)
        if weights.hyper and not (teacher.watch.has_hyper and self.watch.has_hyper):
            without = student if teacher.watch.has_hyper else teacher.model
            raise LichenError(
                f"{type(without).__name__} has no hyper-latent to compare; give --hyper-weight 0"
            )
        y, z = _latent_channels(student, self.watch)
        y_teacher, z_teacher = _latent_channels(teacher.model, teacher.watch)
        alike = type(student) is type(teacher.model)
        self.latent_adapter = _adapter(y, y_teacher, alike)
        self.hyper_adapter = _adapter(z, z_teacher, alike) if weights.hyper else nn.Identity()
        middle = torch.full((1,), 0.5, device=teacher.model.gain.device)  # type: ignore[union-attr]
        gain = interpolate(teacher.model.gain.detach(), middle)  # type: ignore[operator, union-attr]
        self.register_buffer("step_gain", gain.cpu(), persistent=False)

    @torch.no_grad()
    def begin(self, model: QuantizableModel, data: Photographs) -> None:
        """Set the adapters to the ridge regression of the teacher's latents on the student's."""
        pairs: dict[nn.Conv2d, list[tuple[Tensor, Tensor]]] = {}
        for number in range(REGRESSION_BATCHES):
            # other crops than those that are trained on, which count from 0
            x = data.batch(4, -1 - number)
            position = torch.linspace(0, 1, len(x), device=x.device)
            model(x, position, noise=False)
            y, z = self.teacher.latents(x, position)
            for adapter, own, wanted in (
                (self.latent_adapter, self.watch.y, y),
                (self.hyper_adapter, self.watch.z, z),
            ):
                if isinstance(adapter, nn.Conv2d):
                    pairs.setdefault(adapter, []).append((_at(own.float(), wanted), wanted))
        for adapter, samples in pairs.items():
            _regress(adapter, samples)

    def loss(self, model: QuantizableModel, x: Tensor, position: Tensor, coded: Coded) -> Tensor:
        """Give the weighted sum of the terms of this batch."""
        if self.rates is None:
            weight, place = quality_to_lambda(position), position
            factor: Tensor | float = balance(weight)
        else:  # the student has one rate at every quality; the teacher has it at this one
            weight, factor = torch.full_like(position, self.rates), 1.0
            at = math.log(self.rates / LAMBDA_MIN) / math.log(LAMBDA_MAX / LAMBDA_MIN)
            place = torch.full_like(position, min(max(at, 0.0), 1.0))
        picture, y, z = self.teacher(x, place)
        total = x.new_zeros(())
        if self.weights.pixel:
            error = mse_255(coded.x_hat, picture)
            total = total + self.weights.pixel * (factor * weight * error).mean()
        if self.weights.latent:
            assert self.watch.y is not None
            difference = self.latent_adapter(_at(self.watch.y.float(), y)) - y
            total = total + self.weights.latent * (difference * self.step_gain).square().mean()
        if self.weights.hyper:
            assert self.watch.z is not None and z is not None
            difference = self.hyper_adapter(_at(self.watch.z.float(), z)) - z
            total = total + self.weights.hyper * difference.square().mean()
        return total


def _latent_channels(model: QuantizableModel, watch: Watch) -> tuple[int, int]:
    """Count the channels of y and of z (0: it has none), by coding one grey block."""
    device = next(model.parameters()).device
    side = 2 * model.REDUCTION
    with torch.no_grad():
        model(
            torch.zeros(1, 3, side, side, device=device),
            torch.zeros(1, device=device),
            noise=False,
        )
    assert watch.y is not None
    return watch.y.shape[1], 0 if watch.z is None else watch.z.shape[1]


def _adapter(own: int, wanted: int, alike: bool) -> nn.Module:
    """Nothing where the channels of one are those of the other, else a 1x1 convolution."""
    if alike and own == wanted:
        return nn.Identity()
    return nn.Conv2d(own, wanted, 1)


def _at(own: Tensor, wanted: Tensor) -> Tensor:
    """Bring latents to the resolution of others, where it differs: means, or repetition."""
    if own.shape[2:] == wanted.shape[2:]:
        return own
    return F.interpolate(own, wanted.shape[2:], mode="area")


def _regress(adapter: nn.Conv2d, samples: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Least squares with a little ridge: wanted = weight @ own + bias."""

    def flat(x: Tensor) -> Tensor:
        return x.transpose(0, 1).flatten(1).double()

    own = torch.cat([flat(a) for a, _ in samples], 1)
    wanted = torch.cat([flat(b) for _, b in samples], 1)
    own_mean, wanted_mean = own.mean(1, keepdim=True), wanted.mean(1, keepdim=True)
    own, wanted = own - own_mean, wanted - wanted_mean
    square = own @ own.T
    ridge = RIDGE * float(square.diagonal().mean()) + 1e-12
    eye = torch.eye(len(square), dtype=square.dtype, device=square.device)
    weight = torch.linalg.solve(square + ridge * eye, own @ wanted.T).T
    adapter.weight.copy_(weight[:, :, None, None])
    assert adapter.bias is not None
    adapter.bias.copy_((wanted_mean - weight @ own_mean).flatten())


# The run


@dataclass(frozen=True)
class Lesson:
    """What a run with a teacher needs besides its recipe; kept in its folder."""

    teacher: Path
    weights: Weights

    def extras(self, trainer: Trainer) -> list[Extra]:
        """Give the Distillation of a trainer."""
        r = trainer.recipe
        made, network = load_network(self.teacher)
        if r.crop % network.REDUCTION:
            raise LichenError(
                f"the teacher, {made.model}, codes multiples of {network.REDUCTION} pixels, not "
                f"crops of {r.crop}"
            )
        teacher = Teacher(network, trainer.device, r.bfloat16)
        return [Distillation(trainer.model, teacher, self.weights, r.one_lambda)]

    def to_json(self) -> str:
        """Write it, with the SHA-256 of the teacher's weights."""
        values = {
            "teacher": str(self.teacher),
            "teacher_sha256": digest(self.teacher),
            **dataclasses.asdict(self.weights),
        }
        return json.dumps(values, indent=1) + "\n"


def settle(folder: Path, teacher: Path | None, weights: Mapping[str, float]) -> Lesson:
    """Give the lesson of a run that begins, or of the one in `folder`, and note it there.

    weights: those of the three that were asked for. Raises LichenError for a run that goes on with
    another teacher or other weights: its loss would be another.
    """
    note = folder / LESSON
    if not (folder / run.CHECKPOINT).exists():
        if teacher is None:
            raise LichenError("a student that begins needs its teacher: give --teacher CHECKPOINT")
        lesson = Lesson(teacher, Weights(**weights))
        if is_first():
            folder.mkdir(parents=True, exist_ok=True)
            with run.whole_file(note) as temporary:
                temporary.write_text(lesson.to_json())
        return lesson
    try:
        kept = json.loads(note.read_text())
        before = Weights(**{name: float(kept[name]) for name in vars(Weights())})
        of_before, sha256 = Path(kept["teacher"]), kept["teacher_sha256"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise LichenError(
            f"{folder} holds a run without a teacher ({LESSON} is not there or not whole); go on "
            "with `lichen train`, or name another folder"
        ) from error
    lesson = Lesson(teacher or of_before, dataclasses.replace(before, **weights))
    if lesson.weights != before or digest(lesson.teacher) != sha256:
        raise LichenError(
            f"{folder} holds a run with the teacher {of_before} and {before}, not with "
            f"{lesson.teacher} and {lesson.weights}; name another folder"
        )
    return lesson


def student_of(
    name: str | None,
    teacher: Path,
    *,
    width: int | None = None,
    board: tuple[str, tuple[int, int, float]] | None = None,
    weights: Path | None = None,
) -> tuple[str, dict[str, Any]]:
    """Give the model and arguments of a student: the teacher's, where of its kind, but narrower.

    width: N of the papers, C of STF, the width of a student. board: its name, and the width,
    height and frames per second of the video, from which the width follows (`lichen fit`). weights:
    what it starts from, whose model and arguments it then has. Raises LichenError.
    """
    if weights is not None and width is None and board is None:
        start = load_network(weights)[0]
        if name not in (None, start.model):
            raise LichenError(f"{weights} holds a {start.model}, not a {name}; leave that out")
        return start.model, start.arguments
    if name is None:
        raise LichenError(
            "which student? Name a model, like balle2018, or weights that it starts from"
        )
    known = catalogue.build(name, {}).arguments
    made, _ = load_network(teacher)
    arguments = dict(made.arguments) if made.model == name else {}
    if board is None and width is None:
        return name, arguments
    arguments.pop("pruned", None)  # the channels of another width
    if board is not None:
        sizes = ("width", "n", "m")  # what follows from the board
        others = {key: value for key, value in arguments.items() if key not in sizes}
        return name, fit.width_for(name, *board, others)
    key = next(key for key in ("width", "n", "embed_dim") if key in known)
    return name, arguments | {key: width}


def distill_command(arguments: argparse.Namespace) -> int:
    """Train a student by its teacher; gives the number of the signal that ended it, or 0."""
    given = {
        name: value
        for name in vars(Weights())
        if (value := getattr(arguments, f"{name}_weight")) is not None
    }
    going_on = (arguments.run / run.CHECKPOINT).exists()
    if not going_on and arguments.recipe is None:
        if arguments.teacher is None:
            raise LichenError("a student that begins needs its teacher: give --teacher CHECKPOINT")
        arguments.model, found = student_of(
            arguments.model,
            arguments.teacher,
            width=arguments.width,
            board=_board(arguments),
            weights=None if arguments.arguments else arguments.weights,
        )
        asked = parse_arguments(arguments.arguments or [])
        arguments.arguments = [f"{k}={json.dumps(v)}" for k, v in (found | asked).items()]
    lesson = settle(arguments.run, arguments.teacher, given)
    return train_command(arguments, lesson.extras)


def _board(arguments: argparse.Namespace) -> tuple[str, tuple[int, int, float]] | None:
    if arguments.board is None:
        if arguments.video is not None:
            raise LichenError("--video says what a --board shall do; give that too")
        return None
    if arguments.video is None or arguments.width is not None:
        raise LichenError("--board takes --video, like 1280x720@60, and no --width")
    return arguments.board, arguments.video
