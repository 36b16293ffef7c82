"""Build the native module, and copy what the study reads; all else is in pyproject.toml."""

import platform
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

SOURCES = Path("src/lichen/native")
WINDOWS = sys.platform == "win32"
RESULTS = Path("docs/results")


class BuildWithResults(build_py):
    """Put the results that `lichen.study` reads beside it: a checkout has them in docs/."""

    def run(self):
        super().run()
        target = Path(self.build_lib) / "lichen/study/data"
        if RESULTS.is_dir() and not self.editable_mode:
            target.mkdir(parents=True, exist_ok=True)
            for path in RESULTS.glob("*.json"):
                shutil.copy(path, target)


setup(
    cmdclass={"build_py": BuildWithResults},
    package_dir={"": "src"},
    ext_modules=[
        Extension(
            "lichen._native",
            sources=sorted(str(path) for path in SOURCES.glob("*.c")),
            depends=sorted(str(path) for path in SOURCES.glob("*.h")),
            extra_compile_args=[]
            if WINDOWS
            else [
                *("-O3", "-std=c11", "-fvisibility=hidden", "-Wall", "-Wextra"),
                "-fno-math-errno",  # or square roots are not vectorised
            ],
            extra_link_args=[] if WINDOWS else ["-pthread"],
            # One wheel serves CPython 3.10 and later.
            py_limited_api=platform.python_implementation() == "CPython",
            # Without a compiler the package installs all the same and runs on NumPy.
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
