"""A headless Chromium that tests look at pages with, over its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.mlflow_server import wait_for

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SIZE = (1280, 800)
# Without a GPU, WebGL (Plotly's lines) is drawn by SwiftShader, which has to be asked for.
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--enable-unsafe-swiftshader", "--hide-scrollbars"),
    *("--disable-quic", "--no-first-run", "--disable-sync", "--disable-background-networking"),
    *("--disable-component-update", "--disable-dev-shm-usage", "--remote-debugging-port=0"),
    f"--window-size={SIZE[0]},{SIZE[1]}",
)


class Page:
    """One page of the browser. requests: those made since `goto`, in order. errors: what its scripts did not catch."""

    def __init__(self, runner: asyncio.Runner, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._runner, self._socket, self._number = runner, socket, 0
        self.requests: list[dict[str, Any]] = []
        self.errors: list[str] = []
        for domain in ("Page", "Network", "Runtime"):
            self.call(f"{domain}.enable")
        width, height = SIZE
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """What the browser answers to a command of the DevTools protocol."""
        return self._runner.run(asyncio.wait_for(self._call(method, params), 300))

    async def _call(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": params})
        while True:
            message = await self._socket.receive_json()
            if message.get("id") == self._number:
                assert "error" not in message, message["error"]
                return dict(message["result"])
            if message.get("method") == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"])
            if message.get("method") == "Runtime.exceptionThrown":
                self.errors.append(json.dumps(message["params"]["exceptionDetails"])[:500])

    def remember(self, key: str, value: str) -> None:
        """Have this in the `localStorage` of every page from now on."""
        source = f"try {{ localStorage.setItem({json.dumps(key)}, {json.dumps(value)}) }} catch {{}}"
        self.call("Page.addScriptToEvaluateOnNewDocument", source=source)

    def send_headers(self, headers: Mapping[str, str]) -> None:
        """Send these with every request from now on."""
        self.call("Network.setExtraHTTPHeaders", headers=dict(headers))

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, or of its promise, as JSON can hold it."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def goto(self, url: str, until: str, seconds: float = 60) -> float:
        """Open an address as a new page and wait until a JavaScript expression is true; returns how long that took."""
        self.call("Page.navigate", url="about:blank")
        self.requests.clear()
        started = time.monotonic()
        self.call("Page.navigate", url=url)
        self.wait_for(until, seconds)
        return time.monotonic() - started

    def wait_for(self, condition: str, seconds: float = 60) -> None:
        """Return as soon as a JavaScript expression is true."""
        deadline = time.monotonic() + seconds
        while not self.evaluate(f"Boolean({condition})"):
            assert time.monotonic() < deadline, f"{condition} in vain; the page says: {self.text()[:2000]}"
            time.sleep(0.05)

    def click(self, element: str) -> None:
        """Wait for the element that a JavaScript expression finds, and press the mouse on its middle."""
        self.wait_for(element)
        middle = "[r.x + r.width / 2, r.y + r.height / 2]"
        x, y = self.evaluate(
            f"(e => {{ e.scrollIntoView({{block: 'nearest'}}); const r = e.getBoundingClientRect(); return {middle} }})"
            f"({element})"
        )
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def text(self) -> str:
        """What there is to read on the page."""
        return str(self.evaluate("document.body ? document.body.innerText : ''"))

    def screenshot(self, clip: Mapping[str, float] | None = None) -> bytes:
        """The page, or a part (x, y, width, height), as PNG."""
        part = {"clip": {**clip, "scale": 1}} if clip else {}
        return base64.b64decode(self.call("Page.captureScreenshot", format="png", **part)["data"])


@contextmanager
def browsing(folder: Path) -> Iterator[Page]:
    """A page of a new browser whose profile lies in `folder`; skips the test where there is no Chromium."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no Chromium is installed ({', '.join(NAMES)})")
    log = folder / "chromium.log"
    browser = subprocess.Popen(
        [program, *FLAGS, f"--user-data-dir={folder}/profile", "about:blank"],
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
    )
    try:
        where = folder / "profile" / "DevToolsActivePort"
        wait_for(lambda: (where.exists() and "\n" in where.read_text()) or browser.poll() is not None, 60)
        assert browser.poll() is None, log.read_text()
        port = int(where.read_text().split("\n")[0])
        with asyncio.Runner() as runner:
            session, socket = runner.run(_connect(port))
            yield Page(runner, socket)
            runner.run(session.close())
    finally:
        browser.terminate()
        browser.wait(timeout=30)


async def _connect(port: int) -> tuple[aiohttp.ClientSession, aiohttp.ClientWebSocketResponse]:
    session = aiohttp.ClientSession()
    async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
        (page,) = [target for target in await answer.json() if target["type"] == "page"]
    return session, await session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0)
