"""A float network from whatever holds one: a run, a folder of recipes/, a state dict of others."""

from __future__ import annotations

import hashlib
from pathlib import Path

from lichen.errors import LichenError
from lichen.models import catalogue
from lichen.models.balle2016 import FactorizedPrior
from lichen.models.layers import QuantizableModel
from lichen.training import run
from lichen.training.recipe import Recipe
from lichen.training.train import load_run


def weights_file(path: Path) -> Path:
    """Give the file of weights: of a run's folder, or the file itself. Raises LichenError."""
    found = path / run.WEIGHTS if path.is_dir() else path
    if not found.is_file():
        raise LichenError(
            f"expected a checkpoint, found no {found}; give the folder of a run, one of recipes/, "
            "or a state dict of CompressAI, STF or X-LIC"
        )
    return found


def load_network(path: Path) -> tuple[Recipe, QuantizableModel]:
    """Read a network with its averaged weights, computing in float, and the recipe of its run.

    path: the folder of a run or its weights, or a state dict of others, whose recipe then has
    nothing but the model and its arguments. Raises LichenError, OSError.
    """
    file = weights_file(path)
    folder = file.parent
    of_run = (folder / run.CONFIG).exists() or (folder / "recipe.toml").exists()
    if path.is_dir() or (file.name == run.WEIGHTS and of_run):
        made, model, _ = load_run(folder)
        return made, model
    model, has_prior = catalogue.from_checkpoint(file)
    if not has_prior and isinstance(model, FactorizedPrior):
        raise LichenError(
            f"{file} has no prior; `lichen lower {file} MODEL --photographs FOLDER "
            "--float-weights FILE` fits one"
        )
    return Recipe(model=catalogue.name_of(model), arguments=model.arguments), model.eval()


def digest(path: Path) -> str:
    """Give the SHA-256 of a checkpoint's weights, or of a model file."""
    return hashlib.sha256(weights_file(path).read_bytes()).hexdigest()
