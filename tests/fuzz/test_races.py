"""Threads of the native module under ThreadSanitizer: no data race, and no wrong row."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
NATIVE = FOLDER.parent.parent / "src" / "lichen" / "native"
FLAGS = ["-g", "-O1", "-std=gnu11", "-fsanitize=thread", f"-I{NATIVE}", "-pthread"]


def test_no_races(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    binary = tmp_path / "races"
    probe = tmp_path / "probe.c"
    probe.write_text("int main(void) { return 0; }\n")
    made = subprocess.run([compiler, *FLAGS, str(probe), "-o", str(binary)], capture_output=True)
    if made.returncode or subprocess.run([str(binary)], capture_output=True).returncode:
        pytest.skip("this compiler or system has no ThreadSanitizer")
    subprocess.run([compiler, *FLAGS, str(FOLDER / "races.c"), "-o", str(binary)], check=True)
    done = subprocess.run([str(binary)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
