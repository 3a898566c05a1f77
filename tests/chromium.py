"""A page in a real Chromium without a window, asked over the pipe of its DevTools protocol."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
TIMEOUT_S = 120.0

_OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
_TWO_FRAMES = "new Promise(go => requestAnimationFrame(() => requestAnimationFrame(() => go(0))))"


def found() -> str | None:
    """The browser of this machine, if it has one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser that keeps its profile in ``folder`` and ends with the context."""
    program = found()
    assert program is not None
    asked, answering = os.pipe(), os.pipe()
    # A new process gets its pipes under the numbers that Chromium reads and writes.
    script = f'exec "$0" "$@" 3<&{asked[0]} 4>&{answering[1]}'
    command = ["bash", "-c", script, program, *_OPTIONS, f"--user-data-dir={folder}", "about:blank"]
    process = subprocess.Popen(
        command,
        pass_fds=(asked[0], answering[1]),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(asked[0])
    os.close(answering[1])
    try:
        yield Browser(asked[1], answering[0])
    finally:
        os.close(asked[1])
        process.terminate()
        process.wait(timeout=30)
        os.close(answering[0])


class LoadedAnewError(Exception):
    """The page loaded itself anew while it was asked."""


class Browser:
    """One page of a running browser.

    Attributes:
        complaints: What the pages wrote on the console as warnings or errors, and exceptions that nobody caught.
        requests: Addresses that the pages asked for.
    """

    def __init__(self, writing: int, reading: int) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._writing, self._reading, self._buffer, self._id = writing, reading, b"", 0
        self._session: str | None = None
        self._events: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def open(self, page: Path | str, *, width: int, height: int = 900, **media: str) -> None:
        """Load a file or an address; see :meth:`emulate`."""
        url = page if isinstance(page, str) else page.resolve().as_uri()
        self.emulate(width=width, height=height, **media)
        self._events.clear()
        self.call("Page.navigate", url=url)
        self._wait_for("Page.loadEventFired")

    def emulate(self, *, width: int, height: int = 900, media: str = "", **features: str) -> None:
        """Give the window a size, and the page a medium and features (``prefers_color_scheme="dark"``)."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        pairs = [{"name": n.replace("_", "-"), "value": value} for n, value in features.items()]
        self.call("Emulation.setEmulatedMedia", media=media, features=pairs)
        self.value(_TWO_FRAMES)  # in the first the page is told

    def value(self, expression: str) -> Any:
        """Value of an expression of JavaScript in the page; of a promise, what it becomes.

        Raises:
            LoadedAnewError: If the page that was asked went away before it answered.
        """
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def picture(self, path: Path) -> None:
        """Save the whole page as PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask, and wait for the answer."""
        self._id += 1
        message: dict[str, Any] = {"id": self._id, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._id:
                if "navigated" in answer.get("error", {}).get("message", ""):
                    raise LoadedAnewError(method)
                assert "error" not in answer, (method, answer["error"])
                result: dict[str, Any] = answer["result"]
                return result

    def _wait_for(self, event: str) -> None:
        while event not in self._events:
            self._next()

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + TIMEOUT_S
        while b"\0" not in self._buffer:
            ready, _, _ = select.select(
                [self._reading], [], [], max(0.0, deadline - time.monotonic())
            )
            assert ready, f"Chromium said nothing for {TIMEOUT_S:g} s"
            read = os.read(self._reading, 1 << 20)
            assert read, "Chromium ended"
            self._buffer += read
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        self._note(message)
        return message

    def _note(self, message: dict[str, Any]) -> None:
        event, about = message.get("method", ""), message.get("params", {})
        self._events.append(event)
        if event == "Network.requestWillBeSent":
            self.requests.append(str(about["request"]["url"]))
        elif event == "Runtime.exceptionThrown":
            self.complaints.append(str(about["exceptionDetails"]))
        elif event == "Log.entryAdded" and about["entry"]["level"] in ("warning", "error"):
            self.complaints.append(str(about["entry"]["text"]))
        elif event == "Runtime.consoleAPICalled" and about["type"] in (
            "warning",
            "error",
            "assert",
        ):
            self.complaints.append(str(about["args"]))
