"""docs/tour.md says what happens to a pixel: run what it shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_tour(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "tour.md").read_text(), re.DOTALL)
    assert len(blocks) > 5
    exec(compile("\n".join(blocks), "docs/tour.md", "exec"), {})
    assert capsys.readouterr().out
