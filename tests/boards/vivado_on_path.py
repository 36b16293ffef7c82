"""What a stand-in called `vivado` does: -version, or build.tcl in vivado_stub.tcl, with a log."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from vivado import run

VERSION = "2023.2"


def install(folder: Path, version: str = VERSION, settings: str = "") -> Path:
    """Write an executable `vivado` that calls `main`."""
    folder.mkdir(exist_ok=True)
    program = folder / "vivado"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        f"import vivado_on_path\nsys.exit(vivado_on_path.main({version!r}, {settings!r}))\n",
        encoding="utf-8",
    )
    program.chmod(0o755)
    return program


def main(version: str, settings: str) -> int:
    """Do what the command line asks for; as Vivado, exit with 1 where the script fails."""
    arguments = sys.argv[1:]
    if arguments == ["-version"]:
        print(f"vivado v{version} (64-bit)\nTool Version Limit: 2023.10" if version else "?")
        return 0
    assert arguments[:4] == ["-mode", "batch", "-nojournal", "-log"], arguments
    assert arguments[5:8] == ["-source", "build.tcl", "-tclargs"], arguments
    with TemporaryDirectory() as scratch:
        ran = run(Path("build.tcl").absolute(), Path(scratch), arguments[8], settings=settings)
    Path(arguments[4]).write_text(ran.output + ran.error, encoding="utf-8")
    return ran.code
