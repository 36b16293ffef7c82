"""Several processes that train one model (torchrun), and the signals that stop them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import torch
import torch.distributed
from torch import Tensor

from lichen.errors import LichenError


class Processes:
    """The processes of a run; here one that is alone. All must call the same methods alike."""

    rank, size = 0, 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and reports."""
        return self.rank == 0

    def share(self, batch: int) -> int:
        """Give the samples of a batch that each process takes. Raises LichenError."""
        if batch % self.size:
            raise LichenError(
                f"a batch of {batch} does not divide among {self.size} processes; give a --batch "
                f"that is a multiple of {self.size}"
            )
        return batch // self.size

    def mean(self, values: Sequence[float]) -> list[float]:
        """Average numbers over the processes."""
        return list(values)

    def any(self, flag: bool) -> bool:
        """Tell whether one of the processes says so."""
        return flag

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Average tensors over the processes, in place."""


class Distributed(Processes):
    """One of several processes, as torchrun starts them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.rank = torch.distributed.get_rank()
        self.size = torch.distributed.get_world_size()

    def mean(self, values: Sequence[float]) -> list[float]:
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(total)
        return (total / self.size).tolist()  # type: ignore[no-any-return]

    def any(self, flag: bool) -> bool:
        return self.mean([float(flag)])[0] > 0

    def average(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            torch.distributed.all_reduce(tensor)
            tensor.div_(self.size)


def is_first() -> bool:
    """Tell whether this is the process that speaks, before the processes have joined."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def joined(device: str) -> Iterator[tuple[Processes, torch.device]]:
    """Join the processes that torchrun has started, or be alone; gives this one's device too."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes(), torch.device(device)
        return
    here = torch.device(device)
    if here.type == "cuda":
        here = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(here)
    torch.distributed.init_process_group("nccl" if here.type == "cuda" else "gloo")
    try:
        yield Distributed(here), here
    finally:
        torch.distributed.destroy_process_group()


class Signals:
    """Inside, the first Ctrl-C or SIGTERM is noted in `number`; a second one ends at once."""

    def __init__(self) -> None:
        self.number = 0

    def __enter__(self) -> Signals:
        wanted = (signal.SIGINT, signal.SIGTERM)
        if threading.current_thread() is not threading.main_thread():
            wanted = ()  # Python lets only the main thread handle signals
        self.before = {number: signal.signal(number, self._note) for number in wanted}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.number = number
        signal.signal(number, signal.SIG_DFL)
        # print() may be what was interrupted
        os.write(2, b"\nlichen: writing a checkpoint after this step; again to stop at once\n")
