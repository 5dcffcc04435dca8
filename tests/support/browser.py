"""A real headless browser: the distribution's Chromium, controlled by its own driver."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

_SECONDS = 90.0
_OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--window-size=1280,900",
    "--enable-unsafe-swiftshader",
    "--disable-background-networking",
    "--disable-component-update",
)
"""As root, Chromium has no sandbox; without a GPU it draws WebGL on the CPU only with this option."""


class Browser:
    """A browser tab: opens pages, waits for their content, and records their network requests and errors."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, address: str) -> None:
        self.driver.get_log("browser"), self.driver.get_log("performance")
        self.driver.get(address)

    def ask(self, script: str, *arguments: Any) -> Any:
        """Return the value of a JavaScript expression."""
        return self.driver.execute_script(f"return {script}", *arguments)

    def wait(self, script: str, told: str = "") -> Any:
        """Return the value of a JavaScript expression once it is true."""
        deadline = time.monotonic() + _SECONDS
        while time.monotonic() < deadline:
            with suppress(WebDriverException):  # the page is being replaced
                if found := self.ask(script):
                    return found
            time.sleep(0.1)
        raise AssertionError(f"{told or script}: not within {_SECONDS:g} s\n{self.ask('document.body.innerText')}")

    def wait_for_text(self, *words: str) -> None:
        for word in words:
            self.wait(f"document.body.innerText.includes({json.dumps(word)})", f"the page does not say {word!r}")

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def requests(self) -> list[str]:
        """Return the addresses that the page has requested since it was opened."""
        entries = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        sent = [
            entry["params"]["request"]["url"] for entry in entries if entry["method"] == "Network.requestWillBeSent"
        ]
        return [address for address in sent if address.startswith(("http", "ws"))]  # and not the browser's own pages

    def dark(self, value: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": value}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def picture(self, file: Path, *, width: int = 1280, height: int = 900) -> None:
        """Save a screenshot of the page in a window of this size."""
        self.driver.set_window_size(width, height)
        self.driver.save_screenshot(str(file))


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests of a process; without one they fail, in CI as elsewhere."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not binary or not driver:
        pytest.fail("no browser: apt-get install chromium chromium-driver")
    options = Options()
    options.binary_location = binary
    for option in (*_OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield Browser(started)
    finally:
        started.quit()
