"""The tests of the accelerator need its tools; without them they are skipped, and say so."""

from __future__ import annotations

import shutil

import pytest

amaranth = pytest.importorskip("amaranth", reason="needs pip install 'lichen[rtl]'")


@pytest.fixture(scope="session", autouse=True)
def tools() -> None:
    """Skip where nothing can build a model."""
    from lichen.errors import DeviceError
    from lichen.rtl.simulate import verilator

    try:
        verilator()
    except DeviceError as error:
        pytest.skip(str(error))
    if not (shutil.which("clang++") or shutil.which("g++")):
        pytest.skip("needs a C++ compiler: apt-get install clang")
