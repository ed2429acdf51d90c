"""What the tests of the page share: a server in a process of its own, and the page in a browser."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import Chrome
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

ROOT = Path(__file__).parents[2]
WIDE = (1280, 900)
PHONE = (390, 844)


def wait_for(condition: Callable[[], Any], what: str, timeout: float = 25) -> Any:
    """Wait for something in the browser or in another process; return what the condition did."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            result = condition()
        except StaleElementReferenceException:  # the page was changing just then
            result = None
        if result:
            return result
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        time.sleep(0.05)


class Server:
    """A messenger that serves the page, until the end of a block."""

    def __init__(self, directory: Path, *options: str, prefix: str = "") -> None:
        self._data_dir = directory / "data"
        self._log = directory / "server.log"
        self._options = [*options, "--prefix", prefix]
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}{prefix}/"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; return when it serves."""
        command = [sys.executable, "-m", "tests.web.server", str(self._data_dir), str(self._port)]
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                [*command, *self._options],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"ready\n":
            self.stop()
            raise AssertionError(f"it does not serve: {self._log.read_text()}")

    def stop(self) -> None:
        """End it."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            process.communicate(timeout=20)
        finally:
            process.kill()
            process.wait(10)

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Page:
    """The page in a browser, as a reader uses it."""

    def __init__(self, driver: Chrome, screenshots: Path) -> None:
        self.driver = driver
        self._screenshots = screenshots
        self._url = ""
        # What the browser may complain about in this test: texts of its console.
        self.allowed: list[str] = []
        # What else it complained about, and what it asked for that is not the page's.
        self.complaints: list[str] = []
        self.strange: list[str] = []

    # -- looking

    def open(self, url: str, place: str = "#/") -> None:
        """Load the page anew."""
        self._url = url
        self.driver.get("about:blank")
        self.driver.get(url + place)

    def all(self, css: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def one(self, css: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def text(self, css: str) -> str:
        """Return the text of what fits, whether it is in sight or not; empty if nothing fits."""
        script = "return document.querySelector(arguments[0])?.textContent ?? ''"
        return str(self.driver.execute_script(script, css))

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def see(self, text: str, css: str = "main") -> None:
        """Wait for a text."""
        try:
            wait_for(lambda: text in self.text(css), "")
        except AssertionError:
            raise AssertionError(f"no {text!r} in {css}: {self.text(css)!r}") from None

    def rows(self, caption: str) -> list[str]:
        """Return the keys of the rows of the table with that caption."""
        script = """
            const [table] = [...document.querySelectorAll('table')]
                .filter((each) => each.caption.textContent === arguments[0]);
            return table ? [...table.querySelectorAll('tr[data-row]')]
                .map((row) => row.dataset.row) : []"""
        return list(self.run(script, caption))

    def has_rows(self, caption: str, number: int) -> list[str]:
        """Wait until a table has so many rows; return their keys."""
        wait_for(lambda: len(self.rows(caption)) == number, f"{number} rows of {caption}")
        return self.rows(caption)

    def focused_row(self) -> str | None:
        found = self.run("return document.activeElement.closest('tr')?.dataset.row ?? null")
        return None if found is None else str(found)

    # -- doing

    def answer(self, text: str) -> None:
        """Press a button of the dialog that is open."""
        self.button(text, "dialog[open] button").click()

    def button(self, text: str, css: str = "main button, header button") -> WebElement:
        """Wait for the button in sight whose text begins so, and that can be pressed."""

        def found() -> WebElement | None:
            fitting = (
                each
                for each in self.all(css)
                if each.is_displayed() and each.is_enabled() and each.text.startswith(text)
            )
            return next(fitting, None)

        button: WebElement = wait_for(found, f"a button {text!r}")
        return button

    def press(self, *keys: str) -> None:
        """Press keys, wherever the focus is."""
        ActionChains(self.driver).send_keys(*keys).perform()

    def write(self, css: str, text: str) -> None:
        """Write into a field, in place of what it has."""
        field = self.one(css)
        field.clear()
        field.send_keys(text)

    def resize(self, size: tuple[int, int]) -> None:
        """Have the page be so wide and so high."""
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def prefer(self, scheme: str) -> None:
        """Have the system be light or dark."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def shoot(self, name: str) -> None:
        """Keep a picture of what is in sight."""
        self.driver.save_screenshot(str(self._screenshots / f"{name}.png"))

    # -- judging

    def leave(self) -> None:
        """Leave the page, so that it asks the server no more; take down what it did."""
        for entry in self.driver.get_log("browser"):
            if not any(re.search(each, entry["message"]) for each in self.allowed):
                self.complaints.append(entry["message"])
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                url = message["params"]["request"]["url"]
                if url.startswith(("http", "ws")) and not url.startswith(self._url):
                    self.strange.append(url)
        self.driver.get("about:blank")


def screenshot_directory(otherwise: Path) -> Path:
    """Return where pictures go: to what KEYOP_SCREENSHOTS names, if it is set."""
    directory = Path(os.environ.get("KEYOP_SCREENSHOTS") or otherwise)
    directory.mkdir(parents=True, exist_ok=True)
    return directory
