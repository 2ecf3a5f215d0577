"""Headless Chromium by the WebDriver protocol, which is JSON over HTTP: no package is needed for it."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def missing() -> str | None:
    """What is not installed, or None."""
    absent = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return " and ".join(absent) or None


class Page:
    """A page in a window of its own."""

    def __init__(self, session: str) -> None:
        self._session = session

    def open(self, file: Path, *, width: int, scheme: str) -> None:
        """Load a file in a viewport of so many CSS pixels, in the colour scheme ``light`` or ``dark``."""
        metrics = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
        self.devtools("Emulation.setDeviceMetricsOverride", **metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.devtools("Emulation.setEmulatedMedia", features=features)
        _post(f"{self._session}/url", {"url": file.resolve().as_uri()})

    def run(self, script: str) -> Any:
        """What a script of JavaScript returns."""
        return _post(f"{self._session}/execute/sync", {"script": script, "args": []})

    def logged(self, kind: str) -> list[dict[str, Any]]:
        """What was logged since it was asked for last: ``browser`` is the console, ``performance`` all that happens."""
        return list(_post(f"{self._session}/se/log", {"type": kind}))

    def requests(self) -> list[str]:
        """Addresses that were asked for since they were asked for last."""
        events = (json.loads(entry["message"])["message"] for entry in self.logged("performance"))
        return [each["params"]["request"]["url"] for each in events if each["method"] == "Network.requestWillBeSent"]

    def screenshot(self, file: Path) -> None:
        """The whole page as a PNG."""
        found = self.devtools("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(found["data"]))

    def devtools(self, command: str, **parameters: Any) -> Any:
        """A command of Chromium's own protocol."""
        return _post(f"{self._session}/goog/cdp/execute", {"cmd": command, "params": parameters})


@contextmanager
def chromium(profile: Path) -> Iterator[Page]:
    """A browser with a fresh profile in the folder given, ended with the block."""
    driver = subprocess.Popen(
        ["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert driver.stdout is not None
        started = (re.search(r"successfully on port (\d+)", line) for line in driver.stdout)
        port = next(found[1] for found in started if found)
        options = {"binary": shutil.which("chromium"), "args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        sessions = f"http://127.0.0.1:{port}/session"
        created = _post(sessions, {"capabilities": {"alwaysMatch": wanted}})
        session = f"{sessions}/{created['sessionId']}"
        try:
            page = Page(session)
            _post(f"{session}/url", {"url": "about:blank"})  # away from the browser's own first page
            page.logged("performance")
            yield page
        finally:
            _send(urllib.request.Request(session, method="DELETE"))
    finally:
        driver.terminate()
        driver.wait()
        if driver.stdout is not None:
            driver.stdout.close()


def _post(address: str, content: dict[str, Any]) -> Any:
    request = urllib.request.Request(address, json.dumps(content).encode(), {"Content-Type": "application/json"})
    return _send(request)


def _send(request: urllib.request.Request) -> Any:
    # Nothing but this machine is asked, whatever proxy the environment names.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=120) as answer:
        return json.loads(answer.read())["value"]
