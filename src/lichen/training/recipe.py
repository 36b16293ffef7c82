"""Recipe: everything that decides the result of a training run, as one small file.

    model = "balle2018"
    arguments = { n = 64, m = 128, means = true }
    rates = "all"                  # or one lambda, like 0.013
    steps = 10500

Loads no torch, so that the command line can list the fields.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lichen.errors import LichenError


def _field(default: Any, explains: str, **more: Any) -> Any:
    return dataclasses.field(default=default, metadata={"help": explains, **more})


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The fields of a recipe. Raises LichenError for a value that no run can have.

    Lambda weighs the mean squared error of pixels 0..255 against bits per pixel, as CompressAI's
    does. All rates are LAMBDA_MIN..LAMBDA_MAX of `models/student.py`.
    """

    model: str = _field("student", "name of the model")
    arguments: dict[str, Any] = dataclasses.field(
        default_factory=dict, metadata={"help": "arguments of the model, where not its defaults"}
    )
    rates: str | float = _field("all", "'all', or the lambda of one rate")
    start: str = _field(
        "transform",
        "begin as a transform codec, where the model has such a start, or plainly at random",
        choices=("transform", "plain"),
    )
    metric: str = _field("mse", "distortion", choices=("mse", "ms-ssim"))
    steps: int = _field(20000, "steps in all", low=1)
    quantized_steps: int = _field(0, "of these, the last so many in integers", low=0)
    quantized_learning_rate: float = _field(
        2e-4,
        "in integers: averaging and optimiser start anew from the averaged weights, with a cosine "
        "of their own from this rate; 0: the schedule goes on as if nothing had happened",
        low=0,
    )
    batch: int = _field(8, "crops per step, over all processes together", low=1)
    crop: int = _field(256, "side of the crops in pixels, a multiple of 64", low=64, multiple=64)
    colour: float = _field(
        0.0, "part of the crops with other saturation, white balance and exposure", low=0, high=1
    )
    optimizer: str = _field(
        "adamw", "soap: Adam in Shampoo's eigenbasis", choices=("adamw", "soap")
    )
    learning_rate: float = _field(6e-4, "of the optimizer, at its highest", above=0)
    auxiliary_learning_rate: float = _field(1e-2, "of the priors' quantiles", above=0)
    warmup_steps: int = _field(500, "the learning rate rises from 0 over so many steps", low=0)
    schedule: str = _field("cosine", "of the learning rate", choices=("cosine", "plateau"))
    plateau_steps: int = _field(
        2000, "plateau: the rate halves where so many steps lowered the loss by no 0.1 %%", low=1
    )
    ema: float = _field(0.998, "decay of the averaged weights", low=0, high=1)
    gradient_clip: float = _field(1.0, "largest norm of the gradient", above=0)
    bfloat16: bool = _field(True, "compute in bfloat16 where that is safe, until in integers")
    log_every: int = _field(50, "steps per line of log.csv", low=1)
    seed: int = _field(0, "of weights, crops and noise", low=0)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            self._check(field, getattr(self, field.name))
        if self.quantized_steps > self.steps:
            raise LichenError(
                f"quantized_steps are the last of the {self.steps} steps, "
                f"not {self.quantized_steps}"
            )
        if self.rates != "all" and not (isinstance(self.rates, float) and self.rates > 0):
            raise LichenError(f"rates must be 'all' or a positive lambda, not {self.rates!r}")

    def _check(self, field: dataclasses.Field[Any], value: Any) -> None:
        if field.name == "rates":
            if isinstance(value, int) and not isinstance(value, bool):
                object.__setattr__(self, "rates", float(value))
            return
        kind = kind_of(field)
        if kind is float and type(value) is int:
            value = float(value)
            object.__setattr__(self, field.name, value)
        if type(value) is not kind:
            raise LichenError(f"{field.name} must be a {kind.__name__}, not {value!r}")
        rules = field.metadata
        if "choices" in rules and value not in rules["choices"]:
            raise LichenError(
                f"{field.name} must be {' or '.join(rules['choices'])}, not {value!r}"
            )
        if kind is int or kind is float:
            _check_range(field.name, value, rules)

    @property
    def one_lambda(self) -> float | None:
        """The lambda of a run for one rate; None where all rates are trained."""
        return None if isinstance(self.rates, str) else self.rates

    def changed(self, changes: Mapping[str, Any], where: str) -> Recipe:
        """Give the recipe with other values; an error lists the fields if one is unknown."""
        known = [field.name for field in dataclasses.fields(self)]
        unknown = sorted(changes.keys() - set(known))
        if unknown:
            raise LichenError(
                f"{where} has {', '.join(unknown)}, which no recipe has; its fields are "
                f"{', '.join(known)}"
            )
        return dataclasses.replace(self, **changes)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"


def _check_range(name: str, value: float, rules: Mapping[str, Any]) -> None:
    limits = {  # key: (wording, whether it holds)
        "low": ("at least", lambda limit: value >= limit),
        "above": ("more than", lambda limit: value > limit),
        "high": ("at most", lambda limit: value <= limit),
        "multiple": ("a multiple of", lambda limit: value % limit == 0),
    }
    given = {key: limit for key, limit in limits.items() if key in rules}
    if not all(holds(rules[key]) for key, (_, holds) in given.items()):
        wanted = ", ".join(f"{wording} {rules[key]}" for key, (wording, _) in given.items())
        raise LichenError(f"{name} must be {wanted}, not {value}")


def kind_of(field: dataclasses.Field[Any]) -> type:
    """Give the type of a field's values, from its default."""
    return dict if field.default is dataclasses.MISSING else type(field.default)


def read(path: Path) -> Recipe:
    """Read a recipe from TOML, or from the config.json of a run. Raises LichenError, OSError."""
    text = path.read_text(encoding="utf-8")
    try:
        values = json.loads(text) if path.suffix == ".json" else parse_toml(text)
    except ValueError as error:
        raise LichenError(f"{path} is not a recipe: {error}; see docs/training.md") from error
    if not isinstance(values, dict):
        raise LichenError(f"{path} must hold names and values; see docs/training.md")
    return Recipe().changed(values, str(path))


def parse_toml(text: str) -> dict[str, Any]:
    """Read TOML. Raises ValueError."""
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib
    return tomllib.loads(text)


def parse_arguments(texts: list[str]) -> dict[str, Any]:
    """Read "n=64,means=true" and the like; values are JSON, or words. Raises LichenError."""
    found: dict[str, Any] = {}
    for text in texts:
        # a comma inside a value, as in blocks=[4,1], is not followed by a name
        for part in re.split(r",(?=\s*[A-Za-z_]\w*\s*=)", text):
            name, equals, value = (word.strip() for word in part.partition("="))
            if not (name and equals and value):
                raise LichenError(
                    f"arguments are written name=value, like n=64,m=128, not {part!r}"
                )
            try:
                found[name] = json.loads(value)
            except ValueError:
                found[name] = value
    return found
