"""Build the native module; everything else is in pyproject.toml."""

import platform
import sys
from pathlib import Path

from setuptools import Extension, setup

SOURCES = Path("src/lichen/native")
WINDOWS = sys.platform == "win32"

setup(
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
