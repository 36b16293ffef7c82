"""`pytest --regenerate-golden` rewrites tests/golden/; fixtures of several modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--regenerate-golden",
        action="store_true",
        help="write the golden bytes anew instead of comparing; needs a line in CHANGELOG.md",
    )


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Let PyTorch use one thread during a module: tiny layers want no more."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, bytes], None]:
    """Compare bytes with a file of tests/golden/, or write it where the switch is on."""

    def compare(name: str, data: bytes) -> None:
        path = GOLDEN / name
        if request.config.getoption("--regenerate-golden"):
            path.write_bytes(data)
        assert path.is_file(), f"{path} is missing: run pytest --regenerate-golden"
        assert data == path.read_bytes(), (
            f"bytes differ from {path}. Bytes are an interface: if the change is meant, run "
            "pytest --regenerate-golden and write a line into CHANGELOG.md"
        )

    return compare
