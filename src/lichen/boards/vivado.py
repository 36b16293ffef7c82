"""Vivado: found on the PATH, its version, and a run of build.tcl."""

from __future__ import annotations

import re
import shutil
import subprocess
import warnings
from pathlib import Path

from lichen.boards import tcl
from lichen.errors import DeviceError

LOG = "vivado.log"
ERRORS_SHOWN = 3


def find() -> str | None:
    """Give the path of Vivado, or None where it is not on the PATH."""
    return shutil.which("vivado")


def version(path: str) -> str:
    """Ask Vivado for its version, as "2023.2". Raises DeviceError."""
    try:
        done = subprocess.run([path, "-version"], capture_output=True, text=True, timeout=300)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DeviceError(f"{path} does not start: {error}") from error
    found = re.search(r"vivado v(\d{4}\.\d+)", done.stdout, re.IGNORECASE)
    if found is None:
        line = (done.stdout + done.stderr).strip().splitlines()[:1]
        raise DeviceError(
            f"{path} -version said {line[0] if line else 'nothing'!r}; expected 'Vivado v2023.2'"
        )
    return found[1]


def warn_of(found: str) -> None:
    """Warn of a version whose documents the script was not written by."""
    if found not in tcl.DOCUMENTED:
        warnings.warn(
            f"Vivado {found}: build.tcl was written by the documents of "
            f"{', '.join(tcl.DOCUMENTED)}; go on and see, or take one of these",
            stacklevel=2,
        )


def run(path: str, folder: Path, step: str) -> None:
    """Run build.tcl of a build folder; takes an hour or more. Raises DeviceError."""
    home = folder / "vivado"
    command = [path, "-mode", "batch", "-nojournal", "-log", LOG, "-source", tcl.SCRIPT]
    done = subprocess.run([*command, "-tclargs", step], cwd=home, stdout=subprocess.DEVNULL)
    if done.returncode:
        raise DeviceError(
            f"Vivado failed: {'; '.join(_errors(home / LOG)) or 'it names no error'} "
            f"({home / LOG}; reports of what was done: {folder / 'reports'})"
        )


def _errors(log: Path) -> list[str]:
    """Give the last lines of a log that begin with ERROR."""
    if not log.is_file():
        return []
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line for line in lines if line.startswith("ERROR")][-ERRORS_SHOWN:]
