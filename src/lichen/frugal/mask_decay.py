"""Mask decay: channels fade out while the network is fine-tuned, instead of being cut off.

After Wang 2023, "EVC: Towards real-time neural image compression with mask decay" (ICLR): every
channel has a mask, 1 at first; those that the budget has no room for decay to 0, so slowly that the
others can take over their work, and what is then cut off is already zero. Here the masks live in
the weights: to multiply a channel by a mask is to multiply the weights and biases that make it, so
checkpoints are ordinary ones at every step, and a mask that does not decay is free to be learned.

    steps   0 .. LEARNED       masks learn what they are worth: (dL / dm) ** 2 is averaged
            LEARNED .. DECAYED the units that the budget leaves out decay to 0
            DECAYED .. 1       the rest is fine-tuned without them
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lichen.frugal.importance import Scores, mask_gradient
from lichen.models.channels import Channels
from lichen.models.layers import QuantizableModel
from lichen.training.extra import Extra

LEARNED, DECAYED = 0.15, 0.7  # parts of the steps
Kept = Mapping[str, NDArray[np.bool_]]  # (units,) of each group


class MaskDecay(Extra):
    """Take part in a run so that its network can lose units at the end without a loss.

    choose: gives the units to keep, by their scores. Its state is saved and resumed with the run.
    """

    name = "mask-decay"

    def __init__(self, channels: Channels, choose: Callable[[Scores], Kept]) -> None:
        super().__init__()
        self.channels, self.choose = channels, choose
        self.register_buffer("chosen", torch.tensor(False))
        for number, group in enumerate(channels.groups.values()):
            self.register_buffer(f"score{number}", torch.zeros(group.units, dtype=torch.float64))
            self.register_buffer(f"kept{number}", torch.ones(group.units, dtype=torch.bool))

    def score(self, number: int) -> Tensor:
        """Sum of the squared gradients of a group's masks so far (units,)."""
        return self.get_buffer(f"score{number}")

    @property
    def kept(self) -> Kept:
        """Tell which units stay; all of them before they are chosen."""
        return {
            name: self.get_buffer(f"kept{number}").cpu().numpy()
            for number, name in enumerate(self.channels.groups)
        }

    def mask(self, step: int, steps: int) -> float:
        """Give the mask of the units that leave, after `step` steps of `steps`: 1 to 0, linear."""
        part = step / steps
        return min(1.0, max(0.0, (DECAYED - part) / (DECAYED - LEARNED)))

    @torch.no_grad()
    def after_step(self, model: QuantizableModel, step: int, steps: int) -> None:
        """Learn, choose, or let the masks decay by one step."""
        if step <= LEARNED * steps or step == 1:
            for number, group in enumerate(self.channels.groups.values()):
                score = self.score(number)
                score += mask_gradient(model, group).square().to(score.device)
            if step + 1 <= LEARNED * steps:
                return
        if not self.chosen:
            scores = {
                name: self.score(number).cpu().numpy()
                for number, name in enumerate(self.channels.groups)
            }
            for number, mask in enumerate(self.choose(scores).values()):
                self.get_buffer(f"kept{number}").copy_(torch.from_numpy(mask))
            self.chosen.fill_(True)
        before, now = self.mask(step - 1, steps), self.mask(step, steps)
        self._multiply(model, now / before if before else 0.0)

    def _multiply(self, model: QuantizableModel, factor: float) -> None:
        """Multiply what makes the units that leave."""
        if factor == 1.0:
            return
        kept = self.kept
        for name, group in self.channels.groups.items():
            for member in group.members:
                if not member.makes or kept[name].all():
                    continue
                weight = model.get_parameter(member.tensor)
                leaves = np.where(member.units < 0, False, ~kept[name][member.units])
                shape = [1] * weight.dim()
                shape[member.axis] = -1
                mask = torch.from_numpy(np.where(leaves, factor, 1.0)).to(weight)
                weight.mul_(mask.reshape(shape))
