"""The reference as an executor."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from numpy.typing import NDArray

from lichen.program import Program, run


class ReferenceExecutor:
    """Run Programs with the definition itself: naive, NumPy only."""

    name = "reference"

    def run(
        self,
        program: Program,
        inputs: Mapping[str, NDArray[Any]],
        vectors: Mapping[str, NDArray[Any]] = MappingProxyType({}),
    ) -> dict[str, NDArray[Any]]:
        """Return the outputs by name."""
        return run(program, inputs, vectors)
