"""How far a run is, while it works: on stderr for who waits, and in a file for `mora-data view`.

On a terminal stderr has a live line, elsewhere a plain line now and then. The file is written once
a second and is gone when the build ends:

    live.json   {"at": 1763730000.0, "step": "prompts", "done": 40, "total": 88, "requests": 512,
                 "retries": 3, "failed": 0,
                 "slots": [{"size": 64, "open": 48, "busy": 47, "waiting": 12}]}

`slots` has an entry per endpoint: permits there are, those that the server's refusals leave open,
in use, calls that wait. The simulator has none.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from ..errors import RunFolderError
from .folder import LIVE, RunFolder
from .stats import RunStats

EVERY_S = 1.0
_PLAIN_EVERY_S = 5.0
_LIVE_EVERY_S = 0.2


class Progress:
    """Prints how far a run is."""

    def __init__(self, stats: RunStats, quiet: bool = False) -> None:
        self._stats = stats
        self._stream: TextIO | None = None if quiet else sys.stderr
        self._live = self._stream is not None and self._stream.isatty()
        self._label, self._done, self._total = "", 0, 0
        self._started = self._printed_at = time.monotonic()
        self._width = 0

    @property
    def at(self) -> tuple[str, int, int]:
        """The step that is under way, its items done, and how many there are (0: not known)."""
        return self._label, self._done, self._total

    def start(self, label: str, total: int, done: int = 0) -> None:
        """A new long step begins."""
        self._label, self._total, self._done = label, total, done
        self._started = time.monotonic()
        self._print()

    def step(self, n: int = 1) -> None:
        """`n` more of the step's items are done."""
        self._done += n
        if time.monotonic() - self._printed_at >= (_LIVE_EVERY_S if self._live else _PLAIN_EVERY_S):
            self._print()

    def finish(self) -> None:
        """The step is over."""
        self._print()
        if self._live and self._stream is not None:
            self._stream.write("\n")
            self._width = 0

    def message(self, text: str) -> None:
        """One line of its own."""
        if self._stream is None:
            return
        if self._live and self._width:
            self._stream.write("\r" + " " * self._width + "\r")
            self._width = 0
        self._stream.write(text + "\n")
        self._stream.flush()

    def _print(self) -> None:
        if self._stream is None:
            return
        self._printed_at = time.monotonic()
        line = self._line()
        if self._live:
            self._stream.write("\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            self._stream.write(line + "\n")
        self._stream.flush()

    def _line(self) -> str:
        elapsed = max(time.monotonic() - self._started, 1e-9)
        u = self._stats
        share = self._done / self._total if self._total else 1.0
        bar = f"[{'#' * int(20 * share):<20}] " if self._live else ""
        left = (
            f", {_clock(elapsed / share - elapsed)} left" if 0 < share < 1 and elapsed > 2 else ""
        )
        sent = f", {u.requests} requests, {u.tokens_in + u.tokens_out} tokens" if u.requests else ""
        retried = f", {u.retries.total()} retries" if u.retries else ""
        of = f"/{self._total}" if self._total else ""
        return f"{bar}{self._label} {self._done}{of}{sent}{retried}{left}"


def _clock(seconds: float) -> str:
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


@contextmanager
def heartbeat(folder: RunFolder, stats: RunStats, progress: Progress) -> Iterator[None]:
    """Write live.json once a second, from the running event loop, while the block lasts."""
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle | None = None

    def write() -> None:
        nonlocal timer
        try:
            folder.write(LIVE, _live(stats, progress))
        except RunFolderError:
            return  # the disk is full: the build reports it where it matters
        timer = loop.call_later(EVERY_S, write)

    write()
    try:
        yield
    finally:
        if timer is not None:
            timer.cancel()
        (folder.path / LIVE).unlink(missing_ok=True)


def _live(stats: RunStats, progress: Progress) -> dict[str, object]:
    step, done, total = progress.at
    return {
        "at": time.time(),
        "step": step,
        "done": done,
        "total": total,
        "requests": stats.requests,
        "retries": stats.retries.total(),
        "failed": stats.failed.total(),
        "slots": [
            {"size": x.size, "open": x.usable, "busy": x.in_flight, "waiting": x.waiting}
            for x in stats.limiters
        ],
    }
