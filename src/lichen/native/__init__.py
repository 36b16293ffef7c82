"""The shared library of C kernels: where it is and how to call it.

`lib()` loads it once with ctypes, which releases the interpreter lock during every call. A
function that is called declares its types next to its caller, with `declare`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

ERRORS = {-1: "contradictory arguments", -2: "out of memory", -3: "no thread to be had"}


@cache
def lib() -> ctypes.CDLL | None:
    """Load the native module, or return None where it was not built (no C compiler)."""
    spec = find_spec("lichen._native")
    if spec is None or spec.origin is None:
        return None
    try:
        return ctypes.CDLL(spec.origin)
    except OSError:  # built for another machine
        return None


def declare(
    library: ctypes.CDLL, name: str, result: Any, arguments: Sequence[Any]
) -> ctypes._NamedFuncPointer:
    """Set the types of a C function and return it."""
    function = library[name]
    function.restype = result
    function.argtypes = list(arguments)
    return function
