"""What the command line says on stderr: errors and notes, each as one line."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from lichen.api import TargetError
from lichen.arguments import BAD_DATA, FILE, INTERNAL, MODEL, TARGET, USAGE
from lichen.errors import (
    ContractError,
    DeviceError,
    ImageError,
    LichenError,
    ModelError,
    StreamError,
)
from lichen.files import UsageError

HINTS: dict[type, str] = {
    FileNotFoundError: "; check the name and the folder",
    FileExistsError: "; name another output",
    IsADirectoryError: "; name a file",
    PermissionError: "; check who may read and write it",
}


def exit_code(error: Exception) -> int:
    """Give the exit code that an error ends the command with."""
    match error:
        case StreamError() | ImageError():
            return BAD_DATA
        case ModelError():
            return MODEL
        case TargetError():
            return TARGET
        case OSError():
            return FILE
        case ContractError() | DeviceError():
            return INTERNAL
        case UsageError() | LichenError():
            return USAGE
        case _:
            return INTERNAL


def complain(error: Exception, about: str = "") -> int:
    """Print one line on stderr; returns the exit code."""
    code = exit_code(error)
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        name = error.filename or "standard input or output"
        text = f"{name}: {error.strerror}{HINTS.get(type(error), '')}"
    elif isinstance(error, MemoryError):
        text = "not enough memory for this picture; code it in parts"
    elif code == INTERNAL and not isinstance(error, DeviceError):
        text = f"internal: {type(error).__name__}: {text}; please report it (-v shows where)"
    text = one_line(f"{about}{text}")
    with suppress(OSError):  # nobody listens: the exit code says it too
        print(f"lichen: error: {text}", file=sys.stderr, flush=True)
    return code


def one_line(text: str) -> str:
    """Give a message as one line. It may quote a stranger's file: no controls for the terminal."""
    words = " ".join(text.split())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in words)


@contextmanager
def notes(shown: bool) -> Iterator[None]:
    """Print the library's warnings as single lines on stderr."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        if shown:
            print(f"lichen: note: {one_line(str(message))}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        for category in (DeprecationWarning, PendingDeprecationWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)
        # Amaranth's, of cores that are made to see what they take.
        warnings.filterwarnings("ignore", ".* created but never used")
        warnings.showwarning = show
        yield
