"""Parts: the programmable devices of the boards, and what a core may take of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lichen.errors import ContractError

LIMIT = 0.85  # of each resource that a core may take


@dataclass(frozen=True)
class Resources:
    """What a stage takes or a part has. Memories in whole blocks; LUT RAM counts as LUT."""

    dsp: int = 0
    bram36: float = 0.0
    uram: int = 0
    lut: int = 0
    ff: int = 0

    def __add__(self, other: Resources) -> Resources:
        return Resources(
            self.dsp + other.dsp, self.bram36 + other.bram36, self.uram + other.uram,
            self.lut + other.lut, self.ff + other.ff,
        )  # fmt: skip


@dataclass(frozen=True)
class Part:
    """A programmable device. `board` is the name on the command line."""

    board: str
    name: str
    resources: Resources


KV260 = Part("kv260", "XCK26", Resources(1248, 144, 64, 117_120, 234_240))
ZCU102 = Part("zcu102", "XCZU9EG", Resources(2520, 912, 0, 274_080, 548_160))
PARTS = {part.board: part for part in (KV260, ZCU102)}


def require_fit(total: Resources, part: Part) -> None:
    """Raise ContractError naming each resource of which more than LIMIT of the part is taken."""
    over = shortfall(total, part)
    if over:
        text = "; ".join(
            f"{name}: {used:g} of {limit:g} allowed, {used - limit:g} too many"
            for name, (used, limit) in over.items()
        )
        raise ContractError(f"the folding does not fit {part.name} ({part.board}): {text}")


def shortfall(total: Resources, part: Part) -> Mapping[str, tuple[float, float]]:
    """Give what is taken and what is allowed, for each resource that does not suffice."""
    found = {}
    for name in ("dsp", "bram36", "uram", "lut", "ff"):
        used, limit = float(getattr(total, name)), LIMIT * float(getattr(part.resources, name))
        if used > limit:
            found[name] = (used, int(limit * 2) / 2)
    return found
