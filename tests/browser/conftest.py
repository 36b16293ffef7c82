"""A headless Chromium for tests of pages; without it they are skipped, and say so."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

REASON = "pages are tested in a browser: "
FLAGS = (
    "--headless",
    "--no-sandbox",  # the tests may run as root, and the page is our own
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)


def _program(*names: str) -> str:
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        raise FileNotFoundError(f"apt-get install chromium chromium-driver (no {names[0]} here)")
    return found


def start(profile: Path) -> Any:
    """Start a browser with a profile of its own. Raises FileNotFoundError where there is none."""
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = _program("chromium", "chromium-browser", "google-chrome")
    driver = Service(_program("chromedriver"))
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=driver)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Start one browser for all tests, and end it."""
    pytest.importorskip("selenium", reason=f"{REASON}pip install selenium")
    try:
        browser = start(tmp_path_factory.mktemp("profile"))
    except FileNotFoundError as error:
        pytest.skip(f"{REASON}{error}")
    try:
        yield browser
    finally:
        browser.quit()
