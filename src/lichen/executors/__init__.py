"""Executors: run a Program on integers, equal to `program.reference` to the last bit.

    native      C kernels, the everyday executor (lichen.executors.native)
    reference   NumPy, the definition; slow, always there
    torch       float32 carrying integers, CPU or CUDA
    onnx        ONNX Runtime; proves that the exported graph is the same codec

`tests/conformance` compares all of them on every operation.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol

from numpy.typing import NDArray

from lichen.errors import DeviceError
from lichen.executors.reference import ReferenceExecutor
from lichen.program import Program

__all__ = ["Executor", "ReferenceExecutor", "best"]

NO_VECTORS: Mapping[str, NDArray[Any]] = MappingProxyType({})


class Executor(Protocol):
    """What runs Programs. `name` says which one it is, for reports."""

    name: str

    def run(
        self,
        program: Program,
        inputs: Mapping[str, NDArray[Any]],
        vectors: Mapping[str, NDArray[Any]] = NO_VECTORS,
    ) -> dict[str, NDArray[Any]]:
        """Return the outputs by name, as `lichen.program.run` does, bit for bit.

        inputs: (C, H, W) arrays in the dtype of each Input. vectors: int32 (C,) for each Vector.
        Raises ContractError where the Program or what it is given breaks the contract, and
        DeviceError where the executor itself fails.
        """
        ...


def best(threads: int = 1) -> Executor:
    """Return the fastest executor of this installation that needs nothing optional.

    threads: worker threads of the native executor, 1..256. Where the native module is missing (no C
    compiler at installation), warns and returns the reference, some hundred times slower. Raises
    DeviceError for another number of threads.
    """
    from lichen.executors.native import Library, NativeExecutor, check_threads

    check_threads(threads)
    try:
        Library()
    except DeviceError as error:
        warnings.warn(
            f"lichen runs in NumPy, slowly: its native module is not usable ({error}). "
            "Install a C compiler and reinstall lichen.",
            RuntimeWarning,
            stacklevel=2,
        )
        return ReferenceExecutor()
    return NativeExecutor(threads=threads)
