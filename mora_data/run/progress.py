"""What a run says on stderr while it works: a live line on a terminal, a plain line now and then
elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from .stats import RunStats

_PLAIN_EVERY_S = 5.0
_LIVE_EVERY_S = 0.2


class Progress:
    """Prints how far a run is."""

    def __init__(self, stats: RunStats, quiet: bool = False) -> None:
        self._stats = stats
        self._stream: TextIO | None = None if quiet else sys.stderr
        self._live = self._stream is not None and self._stream.isatty()
        self._label, self._done, self._total = "", 0, 0
        self._started = self._shown = time.monotonic()
        self._width = 0

    @property
    def at(self) -> tuple[str, int, int]:
        """The step that is under way, its items done, and how many there are (0: not known)."""
        return self._label, self._done, self._total

    def start(self, label: str, total: int, done: int = 0) -> None:
        """A new long step begins."""
        self._label, self._total, self._done = label, total, done
        self._started = time.monotonic()
        self._show()

    def step(self, n: int = 1) -> None:
        """`n` more of the step's items are done."""
        self._done += n
        if time.monotonic() - self._shown >= (_LIVE_EVERY_S if self._live else _PLAIN_EVERY_S):
            self._show()

    def finish(self) -> None:
        """The step is over."""
        self._show()
        if self._live and self._stream is not None:
            self._stream.write("\n")
            self._width = 0

    def say(self, text: str) -> None:
        """One line of its own."""
        if self._stream is not None:
            self._clear()
            self._stream.write(text + "\n")
            self._stream.flush()

    def _show(self) -> None:
        if self._stream is None:
            return
        self._shown = time.monotonic()
        line = self._line()
        if self._live:
            self._stream.write("\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            self._stream.write(line + "\n")
        self._stream.flush()

    def _clear(self) -> None:
        if self._live and self._width and self._stream is not None:
            self._stream.write("\r" + " " * self._width + "\r")
            self._width = 0

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
