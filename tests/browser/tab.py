"""A page in a browser, and what a test asks of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class Tab:
    """A page in the browser, and what a test asks of it."""

    def __init__(self, browser: Any, page: Path) -> None:
        self.browser, self.page = browser, page

    def load(self, width: int = 1280, height: int = 900, scheme: str = "light") -> Tab:
        """Load the page anew on a screen of that size."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.command("Emulation.setDeviceMetricsOverride", metrics)
        self.media("", scheme)
        self.browser.get(self.page.as_uri())
        return self

    def media(self, kind: str, scheme: str) -> None:
        """Show the page as on a screen ("") or on paper ("print"), in light or dark."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.command("Emulation.setEmulatedMedia", {"media": kind, "features": features})

    def command(self, name: str, values: dict[str, Any]) -> Any:
        """Give a command of Chrome's own protocol."""
        return self.browser.execute_cdp_cmd(name, values)

    def __call__(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript; gives what it returns."""
        return self.browser.execute_script(script, *arguments)

    def messages(self) -> list[str]:
        """Give what the page has written to the console since the last call, errors included."""
        return [entry["message"] for entry in self.browser.get_log("browser")]
