"""What a running build says of itself once a second, for `mora-data view`; the file is gone when
the build ends.

    live.json   {"at": 1763730000.0, "step": "prompts", "done": 40, "total": 88, "requests": 512,
    "retries": 3, "failed": 0,
                 "slots": [{"size": 64, "open": 48, "busy": 47, "waiting": 12}]}

`slots` has an entry per endpoint: slots there are, those that the server's refusals leave open, in
use, calls that wait. The simulator has none.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import RunFolderError
from .folder import LIVE, RunFolder
from .progress import Progress
from .stats import RunStats

EVERY_S = 1.0


@contextmanager
def pulse(folder: RunFolder, stats: RunStats, progress: Progress) -> Iterator[None]:
    """Write the file once a second, from the running event loop, while the block lasts."""
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle | None = None

    def beat() -> None:
        nonlocal timer
        try:
            folder.write(LIVE, state(stats, progress))
        except RunFolderError:
            return  # the disk is full: the build says so where it matters
        timer = loop.call_later(EVERY_S, beat)

    beat()
    try:
        yield
    finally:
        if timer is not None:
            timer.cancel()
        (folder.path / LIVE).unlink(missing_ok=True)


def state(stats: RunStats, progress: Progress) -> dict[str, Any]:
    """What the file holds."""
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
