"""The tests of the boards need Amaranth; without it they are skipped, and say so."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("amaranth", reason="the boards need Amaranth: pip install 'lichen[rtl]'")


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Give a maker of build folders whose cores are empty modules: milliseconds."""
    import board_folders

    return partial(board_folders.write, tmp_path / "build")
