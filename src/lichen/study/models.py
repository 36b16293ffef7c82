"""The models of a study: by name, by file, or by the function that makes one.

balle2016, balle2018, balle2018-mean, minnen2020, zou2022-wacnn, zou2022-stf, student
                       a model of the catalogue at its paper's size, fresh weights
student-s              a model file that came with lichen
FILE.safetensors, FILE.pth
                       a model file of lichen, or a state dict of others' implementations
FOLDER                 a training run, or a folder of recipes/
FILE.toml              a recipe of `lichen train`: its model with its arguments, fresh weights
package.module:callable, FILE.py:callable
                       anything that gives a torch module which takes pictures (B, 3, H, W)
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from lichen import model as model_files
from lichen.errors import LichenError, ModelError
from lichen.lower import lower
from lichen.model import Model
from lichen.models import catalogue
from lichen.models.layers import QuantizableModel
from lichen.models.minnen2020 import ChannelConditional
from lichen.models.zou2022 import FloatCodec

# name: (of the catalogue, arguments, title, paper)
CATALOGUE: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "balle2016": (
        "balle2016", {}, "factorised prior, GDN",
        "Balle, Laparra & Simoncelli 2016, End-to-end optimized image compression"),
    "balle2018": (
        "balle2018", {}, "scale hyperprior, GDN",
        "Balle, Minnen, Singh, Hwang & Johnston 2018, Variational image compression with a scale "
        "hyperprior"),
    "balle2018-mean": (
        "balle2018", {"means": True}, "mean and scale hyperprior, GDN",
        "Minnen, Balle & Toderici 2018, Joint autoregressive and hierarchical priors, without "
        "its context model"),
    "minnen2020": (
        "minnen2020", {}, "channel-wise autoregressive, 10 slices",
        "Minnen & Singh 2020, Channel-wise autoregressive entropy models"),
    "zou2022-wacnn": (
        "zou2022-wacnn", {}, "CNN with window attention, 10 slices",
        "Zou, Song & Zhang 2022, The devil is in the details (WACNN)"),
    "zou2022-stf": (
        "zou2022-stf", {}, "symmetric transformer, 12 slices",
        "Zou, Song & Zhang 2022, The devil is in the details (STF)"),
}  # fmt: skip
STUDENT: tuple[str, dict[str, Any], str, str] = (
    "student",
    {},
    "integer student for a pipeline",
    "lichen, docs/decisions/0001",
)
SIDE = 64  # of the noise that ranges are found with
Origin = Literal["catalogue", "checkpoint", "module"]


@dataclass(frozen=True, eq=False)
class Subject:
    """A model to study. module: what is counted; programs: its integer form, where it has one."""

    name: str
    title: str
    paper: str
    origin: Origin
    module: nn.Module
    arguments: dict[str, Any] = field(default_factory=dict)
    programs: Model | None = None
    note: str = ""

    @property
    def family(self) -> str:
        """Its name in the catalogue; "" for a foreign module."""
        return catalogue.name_of(self.module) if self.known else ""  # type: ignore[arg-type]

    @property
    def known(self) -> bool:
        return type(self.module) in catalogue.MODELS.values()

    @property
    def order(self) -> str:
        """The decoding order."""
        if not self.known:
            return "unknown"
        if self.slices:
            return "channel-wise"
        return "factorised" if self.family == "balle2016" else "hyperprior"

    @property
    def slices(self) -> int:
        """How many slices the latents are decoded in; 0 where they are not."""
        return self.module.slices if isinstance(self.module, ChannelConditional) else 0

    @property
    def lowers(self) -> tuple[bool, str]:
        """Whether there is an integer form, and why (not)."""
        if not self.known:
            return False, "only models of lichen.models lower to integer Programs"
        if isinstance(self.module, FloatCodec):
            return False, (
                "attention, LayerNorm and GELU have no operations in the contract "
                "(docs/decisions/0004-float-models.md)"
            )
        return True, "every layer has an operation in the contract"


def defaults() -> list[str]:
    """List what is studied where nobody names models."""
    return [*CATALOGUE, *(path.stem for path in model_files.installed())]


def load(names: Sequence[str]) -> list[Subject]:
    """Make the models of a study. Raises LichenError for what does not exist or cannot be read."""
    found = [one(name) for name in (names or defaults())]
    twice = {x.name for x in found if sum(x.name == y.name for y in found) > 1}
    if twice:
        raise LichenError(f"each model needs its own name, found {', '.join(sorted(twice))} twice")
    return found


def one(name: str) -> Subject:
    """Make one model; see the head of this file."""
    if name in CATALOGUE or name == "student":
        family, arguments, title, paper = CATALOGUE.get(name, STUDENT)
        module = catalogue.build(family, arguments)
        return Subject(name, title, paper, "catalogue", module, dict(module.arguments))
    installed = {path.stem: path for path in model_files.installed()}
    if name in installed:
        return _model_file(installed[name], "catalogue")
    path, separator, function = name.rpartition(":")
    if separator and function.isidentifier():
        return _foreign(name, path, function)
    file = Path(name)
    if file.is_dir():
        return _run(file)
    if not file.is_file():
        known = [*CATALOGUE, "student", *installed]
        raise LichenError(
            f"no model and no file is called {name!r}; there are {', '.join(known)}, or give a "
            "file of weights, a training run, a recipe, or FILE.py:FUNCTION that makes a torch "
            "module"
        )
    if file.suffix == ".toml":
        return _recipe(file, file.stem)
    return _model_file(file, "checkpoint") if _is_model_file(file) else _state(file)


def _is_model_file(path: Path) -> bool:
    try:
        model_files.read(path)
    except ModelError:
        return False
    return True


def _model_file(path: Path, origin: Origin) -> Subject:
    """A lichen model file: its recipe says which module made it."""
    model = model_files.read(path)
    try:
        recipe = json.loads(model.metadata["recipe"])
        family = recipe.get("model", "student")
        keys = ("width", "encoder_blocks", "decoder_blocks")
        arguments = recipe.get("arguments", {key: recipe[key] for key in keys if key in recipe})
    except (KeyError, ValueError, AttributeError) as error:
        raise ModelError(
            f"{path} does not say which recipe made it, so its layers are not known; give the "
            "folder of its training run"
        ) from error
    module = catalogue.build(family, arguments)
    title, paper = _about(family, arguments)
    programs = model if model.network is None else None
    return Subject(path.stem, title, paper, origin, module, dict(module.arguments), programs)


def _run(folder: Path) -> Subject:
    """A training run, with whatever weights; a folder with a recipe and none yet."""
    from lichen.training.run import WEIGHTS
    from lichen.training.train import load_run

    if (folder / "recipe.toml").exists() and not (folder / WEIGHTS).exists():
        return _recipe(folder / "recipe.toml", folder.name)
    recipe, module, _ = load_run(folder)
    title, paper = _about(recipe.model, recipe.arguments)
    return Subject(folder.name, title, paper, "checkpoint", module, dict(module.arguments))


def _recipe(path: Path, name: str) -> Subject:
    """What a recipe trains; its steps and rates do not matter here."""
    from lichen.training.recipe import read
    from lichen.training.train import new_model

    recipe = read(path)
    module = new_model(recipe)
    title, paper = _about(recipe.model, recipe.arguments)
    return Subject(name, title, paper, "checkpoint", module, dict(module.arguments))


def _state(path: Path) -> Subject:
    """A state dict of others."""
    try:
        module, _ = catalogue.from_checkpoint(path)
    except ModelError as error:
        raise LichenError(
            f"{error}; weights alone do not say how layers are joined: give FILE.py:FUNCTION that "
            "makes the torch module, and its layers are counted"
        ) from error
    title, paper = _about(catalogue.name_of(module), module.arguments)
    return Subject(path.stem, title, paper, "checkpoint", module, dict(module.arguments))


def _foreign(name: str, path: str, function: str) -> Subject:
    """Call the user's function. It is his code, named by him."""
    try:
        if path.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(path).stem, path)
            assert spec is not None and spec.loader is not None
            source = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = source  # dataclasses and pickles of it look there
            spec.loader.exec_module(source)
        else:
            source = importlib.import_module(path)
        module = getattr(source, function)()
    except Exception as error:
        raise LichenError(
            f"{name} must make a torch module when called without arguments, but: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(module, nn.Module):
        raise LichenError(f"{name} must give a torch module, found {type(module).__name__}")
    note = (
        "Not a model of the catalogue: parts are its top-level modules, taken to run in both "
        "directions unless their names say otherwise; symbols and serial steps are not known."
    )
    return Subject(function, type(module).__name__, "", "module", module, note=note)


def _about(family: str, arguments: dict[str, Any]) -> tuple[str, str]:
    """Title and paper of a model of the catalogue with any arguments."""
    if family == "student":
        return STUDENT[2], STUDENT[3]
    key = "balle2018-mean" if family == "balle2018" and arguments.get("means") else family
    title, paper = CATALOGUE[key][2:]
    return title, paper


@cache
def _defaults_of(family: str) -> str:
    """A model's arguments at its paper's size, as JSON."""
    return json.dumps(catalogue.build(family, {}).arguments)


def full_arguments(family: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Give all arguments of a model of the catalogue, the paper's where none is given."""
    full: dict[str, Any] = json.loads(_defaults_of(family)) | arguments
    return full


@torch.no_grad()
def lowered(module: QuantizableModel, name: str) -> Model:
    """Lower a model with any weights: ranges from noise. Its costs are those of calibrated ones."""
    module.eval()
    module.calibrate_begin()
    side = max(SIDE, module.REDUCTION)
    generator = torch.Generator().manual_seed(0)
    picture = 2 * torch.rand(1, 3, side, side, generator=generator) - 1
    module(picture, torch.zeros(1), noise=False)
    module.calibrate_end()
    return lower(module, name, {})
