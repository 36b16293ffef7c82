"""Extra: something that takes part in a run besides the rate-distortion loss.

Distillation adds a loss, mask decay changes weights after each step. What an extra learns or
remembers (parameters, buffers) is trained, saved and resumed with the run.
"""

from __future__ import annotations

from torch import Tensor, nn

from lichen.models.layers import QuantizableModel
from lichen.models.student import Coded
from lichen.training.data import Photographs


class Extra(nn.Module):
    """Override what is needed. `Trainer.add` gives it to a run, before the first step.

    Parameters are trained with the model's, at the same learning rate; they and the buffers are in
    the checkpoint, under `name`, and a resumed run must have the same extras.
    """

    name: str  # the column of log.csv, and the key of its state; unlike those of other extras

    def begin(self, model: QuantizableModel, data: Photographs) -> None:
        """Called once, where a run begins: its weights are set, nothing has been trained."""

    def loss(
        self, model: QuantizableModel, x: Tensor, position: Tensor, coded: Coded
    ) -> Tensor | None:
        """Give a scalar to add to the loss, or None.

        x: pixels (B, 3, H, W) in -1..1; position: qualities (B,) in 0..1; coded: what the forward
        pass of just now gave for them.
        """
        return None

    def after_step(self, model: QuantizableModel, step: int, steps: int) -> None:
        """Called when `step` (1 ..) of the run's `steps` have been done, before averaging."""
