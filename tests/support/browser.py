"""Chromium without a screen over its own protocol: pages laid out, keys pressed, every request and
complaint of a page noted.

    async with browser(tmp_path) as tab:
        await tab.open(url, width=400, dark=True)
        assert await tab.run("document.title") == "Pairs"
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> str | None:
    """The browser's path, None where there is none."""
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)


class Tab:
    """One page of the browser.

    Attributes:
        requested: URLs that pages asked for. complaints: messages of the console and of the
            security policy.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._ids = socket, itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._loaded = asyncio.Event()
        self._session: str | None = None
        self.requested: list[str] = []
        self.complaints: list[str] = []

    async def listen(self) -> None:
        """Sort what the browser says until it is gone."""
        async for message in self._socket:
            said = message.json()
            if "id" in said:
                self._waiting.pop(said["id"]).set_result(said)
            elif said["method"] == "Page.loadEventFired":
                self._loaded.set()
            elif said["method"] == "Network.requestWillBeSent":
                self.requested.append(said["params"]["request"]["url"])
            elif said["method"] == "Log.entryAdded":
                self.complaints.append(said["params"]["entry"]["text"])
            elif said["method"] == "Runtime.exceptionThrown":
                self.complaints.append(said["params"]["exceptionDetails"]["text"])

    async def ask(self, method: str, **params: Any) -> Any:
        """A command of the protocol; its result."""
        number = next(self._ids)
        self._waiting[number] = asyncio.get_running_loop().create_future()
        session = {"sessionId": self._session} if self._session else {}
        await self._socket.send_json({"id": number, "method": method, "params": params, **session})
        reply = await asyncio.wait_for(self._waiting[number], 600)
        assert "error" not in reply, (method, reply["error"])
        return reply["result"]

    async def attach(self) -> None:
        """Take a new page."""
        target = await self.ask("Target.createTarget", url="about:blank")
        self._session = (
            await self.ask("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        )["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            await self.ask(f"{domain}.enable")

    async def open(self, url: str, width: int = 1600, dark: bool = False) -> None:
        """Load a page and wait for it."""
        await self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=1000,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        await self.scheme(dark)
        self._loaded.clear()
        await self.ask("Page.navigate", url=url)
        await asyncio.wait_for(self._loaded.wait(), 600)

    async def scheme(self, dark: bool) -> None:
        """Turn the page dark or light, as it stands."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.ask("Emulation.setEmulatedMedia", features=[scheme])

    async def press(self, key: str, alt: bool = False) -> None:
        """A key, and the page that it leads to; access keys are known by what is typed."""
        self._loaded.clear()
        code = (
            "Enter" if key == "Enter" else f"{'Digit' if key.isdecimal() else 'Key'}{key.upper()}"
        )
        number = 13 if key == "Enter" else ord(key.upper())
        typed = "\r" if key == "Enter" else key
        named = {
            "key": key,
            "code": code,
            "windowsVirtualKeyCode": number,
            "modifiers": 1 if alt else 0,
        }
        await self.ask("Input.dispatchKeyEvent", type="rawKeyDown", **named)
        await self.ask(
            "Input.dispatchKeyEvent", type="char", text=typed, unmodifiedText=typed, **named
        )
        await self.ask("Input.dispatchKeyEvent", type="keyUp", **named)
        await asyncio.wait_for(self._loaded.wait(), 600)

    async def run(self, script: str) -> Any:
        """The value of an expression in the page, as the browser's tools run it, whatever the
        page's policy."""
        result = (await self.ask("Runtime.evaluate", expression=script, returnByValue=True))[
            "result"
        ]
        assert result.get("subtype") != "error", result
        return result.get("value")


@contextlib.asynccontextmanager
async def browser(home: Path) -> AsyncIterator[Tab]:
    """A browser with one page, its files in `home`."""
    program = chromium()
    assert program is not None
    flags = (
        "--headless --no-sandbox --disable-gpu --remote-debugging-port=0 --no-first-run"
        " --disable-background-networking --disable-component-update --disable-sync about:blank"
    ).split()
    pipes = {"stderr": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.DEVNULL}
    process = await asyncio.create_subprocess_exec(
        program, f"--user-data-dir={home}", *flags, **pipes
    )
    try:
        assert process.stderr is not None
        url = ""
        while not url:
            line = await asyncio.wait_for(process.stderr.readline(), 600)
            assert line, "the browser did not start"
            found = re.search(rb"listening on (ws://\S+)", line)
            url = found[1].decode() if found else ""
        drain = asyncio.create_task(process.stderr.read())
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(url, max_msg_size=0) as socket,
        ):
            tab = Tab(socket)
            listening = asyncio.create_task(tab.listen())
            await tab.attach()
            yield tab
            listening.cancel()
        drain.cancel()
        await asyncio.gather(listening, drain, return_exceptions=True)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
