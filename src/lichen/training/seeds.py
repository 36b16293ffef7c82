"""Randomness that depends on where it is used, never on what was drawn before.

Crops, quality positions and noise follow from (seed, step, sample). A resumed run therefore goes on
as if it had never stopped, and processes that share a batch draw what one alone would.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


def derived(*parts: int | str) -> int:
    """Give a seed 0 .. 2**63 - 1 that is another one for any other parts."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def positions(batch: int, seed: int, step: int) -> Tensor:
    """Give quality positions (batch,) in 0..1, shuffled: every batch sees the whole range."""
    generator = torch.Generator().manual_seed(derived(seed, "position", step))
    places = torch.arange(batch) + torch.rand(batch, generator=generator)
    return (places / batch)[torch.randperm(batch, generator=generator)]


class SampleNoise(TorchFunctionMode):
    """Inside, `torch.rand_like` of a batch draws for each sample from a seed of its own.

    first: number of the batch's first sample among those of all processes.
    """

    def __init__(self, seed: int, step: int, first: int, device: torch.device) -> None:
        super().__init__()
        self.place, self.first, self.calls = (seed, "noise", step), first, 0
        self.generator = torch.Generator(device)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is not torch.rand_like:
            return func(*args, **(kwargs or {}))
        (like,) = args
        self.calls += 1
        noise = []
        for sample in range(self.first, self.first + len(like)):
            self.generator.manual_seed(derived(*self.place, sample, self.calls))
            noise.append(torch.rand(like.shape[1:], generator=self.generator, device=like.device))
        return torch.stack(noise).to(like.dtype)
