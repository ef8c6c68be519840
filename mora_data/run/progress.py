"""How far a run is, while it works: on stderr for who waits, and in a file for `mora-data status`
and `mora-data view`.

On a terminal stderr has a live line, elsewhere a plain line: when a step begins, 5 s later, then
every 30 s. The file is written once a second and is gone when the build ends:

    live.json   {"at": 1763730000.0, "step": "prompts", "done": 40, "total": 88, "requests": 512,
                 "answered": 464, "in_flight": 48, "work": {"presampling": 3, "scoring": 5},
                 "tokens": 90300, "tokens_per_s": 812.0, "pairs": 31, "cost": 0.02,
                 "currency": "USD", "cost_per_pair": 0.00065, "left_s": [340.0, 610.0],
                 "retries": 3, "failed": 0,
                 "slots": [{"size": 64, "open": 48, "busy": 47, "waiting": 12}]}

`work` is what the open prompts asked for last. `left_s` is null while nothing is known. `slots` has
an entry per endpoint: permits there are, those that the server's refusals leave open, in use, calls
that wait. The simulator has none. A build that was stopped or failed leaves the file, with `ended`:
why, in a line.

How much is left counts requests. What a prompt asks for is known from the settings, low and high
(pipeline/asking.py), and from the prompts that are finished; the settings weigh as much as
`PRIOR_PROMPTS` of these. It is divided by the replies per second of this command so far,
those in flight as half ones.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, TypedDict, cast

from ..errors import MoraError, RunFolderError
from ..text import one_line
from .files import read_json
from .folder import LIVE, RunFolder
from .stats import RunStats

EVERY_S = 1.0
FRESH_S = 20.0  # a build that wrote this recently goes on
PRIOR_PROMPTS = 3.0
PROMPTS = "prompts"  # the step in which prompts go all their way
_PLAIN_FIRST_S, _PLAIN_EVERY_S = 5.0, 30.0
_LIVE_EVERY_S = 0.2
_SPEED_SPAN = 60  # looks, one a second, over which tokens per second are taken
_WORK = {
    "presample": "presampling",
    "before": "measuring before fusion",
    "fuse": "rewriting",
    "probe": "trying rewrites out",
    "arm": "rollouts",
    "score": "scoring",
    "repeat": "scoring again",
    "confirm": "confirming",
    "evaluate": "answering",
    "pairwise": "comparing",
}

Ends = tuple[float, float]  # low, high


class Slots(TypedDict):
    """The permits of one endpoint."""

    size: int
    open: int
    busy: int
    waiting: int


class Live(TypedDict, total=False):
    """live.json; another version may leave some of it out."""

    at: float
    step: str
    done: int
    total: int
    requests: int
    answered: int
    in_flight: int
    work: dict[str, int]
    tokens: int
    tokens_per_s: float | None
    pairs: int
    cost: float | None
    currency: str
    cost_per_pair: float | None
    left_s: Ends | None
    retries: int
    failed: int
    slots: list[Slots]
    ended: str


@dataclass(slots=True)
class _Step:
    """What is under way."""

    label: str
    total: int
    done: int
    began: float
    before: tuple[int, int, int]  # replies, prompts finished, replies to these
    lines: int = 0  # printed


class Progress:
    """Prints how far a run is, as its `stats` tell."""

    def __init__(
        self,
        stats: RunStats | None = None,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.pairs = 0  # confirmed so far
        self.stats, self._clock = stats or RunStats(), clock
        self._stream: TextIO | None = None if quiet else sys.stderr
        self._live = self._stream is not None and self._stream.isatty()
        self._step = _Step("starting", 0, 0, clock(), (0, 0, 0))
        self._printed_at, self._width = clock(), 0
        self._expected: Ends | None = None  # requests of a prompt
        self._n_prompts = 0
        self._asked_at = 0.0
        self._money: Callable[[], float | None] = lambda: None
        self._currency = ""
        self._looks: deque[tuple[float, int]] = deque(maxlen=_SPEED_SPAN)

    def expect(self, n_prompts: int, requests: Ends | None) -> None:
        """Asking begins: for so many prompts, which take between so many requests together."""
        self._n_prompts, self._asked_at = n_prompts, self._clock()
        if requests is not None and n_prompts:
            self._expected = requests[0] / n_prompts, requests[1] / n_prompts

    def watch_cost(self, cost: Callable[[], float | None], currency: str) -> None:
        """Say what `cost` gives, where it gives something."""
        self._money, self._currency = cost, currency

    def start(self, label: str, total: int = 0, done: int = 0) -> None:
        """A new long step begins, of `total` items (0: not known)."""
        if self._step.label == PROMPTS and self._expected is not None:
            self._expected = 0.0, 0.0  # what follows asks little
        self.stats.asked_for.clear()
        self._step = _Step(label, total, done, self._clock(), self._replies())
        self._print()

    def step(self, n: int = 1) -> None:
        """`n` more of the step's items are done."""
        self._step.done += n
        self._print_if(_LIVE_EVERY_S)

    def tick(self) -> None:
        """A second has passed."""
        self._looks.append((self._clock(), self.stats.tokens_in + self.stats.tokens_out))
        self._print_if(EVERY_S)

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
            self._stream.write("\r" + " " * self._width)
            self._stream.write("\r")
            self._width = 0
        self._stream.write(text + "\n")
        self._stream.flush()

    def state(self) -> Live:
        """What live.json says, but for its time."""
        s = self.stats
        work: Counter[str] = Counter()
        for purpose in s.asked_for.values():
            work[_WORK.get(purpose.partition(":")[0], "checking rewrites")] += 1
        busy, money = sum(x.in_flight for x in s.limiters), self._money()
        return {
            "step": self._step.label,
            "done": self._step.done,
            "total": self._step.total,
            "requests": s.requests,
            "answered": s.answered,
            "in_flight": busy if s.limiters else s.under_way,
            "work": dict(sorted(work.items())),
            "tokens": s.tokens_in + s.tokens_out,
            "tokens_per_s": self._tokens_per_s(),
            "pairs": self.pairs,
            "cost": money,
            "currency": self._currency,
            "cost_per_pair": money / self.pairs if money is not None and self.pairs else None,
            "left_s": self._left_s(),
            "retries": s.retries.total(),
            "failed": s.failed.total(),
            "slots": [
                {"size": x.size, "open": x.usable, "busy": x.in_flight, "waiting": x.waiting}
                for x in s.limiters
            ],
        }

    def _tokens_per_s(self) -> float | None:
        if len(self._looks) < 2 or self._looks[-1][0] <= self._looks[0][0]:
            return None
        (first, before), (last, now) = self._looks[0], self._looks[-1]
        return round((now - before) / (last - first), 1)

    def _left_s(self) -> Ends | None:
        """Seconds to the last reply of the build, low and high; where the settings don't tell what
        is asked for, to the step's end; None while nothing is known."""
        if self._expected is None:
            step = self._step
            elapsed, share = self._clock() - step.began, step.done / (step.total or 1)
            left = elapsed / share - elapsed if 0 < share < 1 and elapsed > 2 else None
            return None if left is None else (left, left)
        elapsed = self._clock() - self._asked_at
        if not self.stats.answered or elapsed <= 0:
            return None
        waiting = self.stats.under_way
        # those in flight are half done on average: else the first replies of many would seem slow
        half = sum(x.in_flight for x in self.stats.limiters) / 2
        s_per_reply = elapsed / (self.stats.answered + half)
        low, high = (max(n, waiting) * s_per_reply for n in self._requests_left(self._expected))
        return (round(low, 1), round(high, 1)) if high else None

    def _requests_left(self, of_prompt: Ends) -> Ends:
        step = self._step
        if step.label != PROMPTS:  # what is asked for now serves the prompts again later
            low, high = (self._n_prompts * n - self.stats.replies for n in of_prompt)
            return low, high
        replies, n, of_finished = (
            now - then for now, then in zip(self._replies(), step.before, strict=True)
        )
        low, high = (
            (step.total - step.done) * (PRIOR_PROMPTS * one + of_finished) / (PRIOR_PROMPTS + n)
            - (replies - of_finished)  # to those that are open
            for one in of_prompt
        )
        return low, high

    def _replies(self) -> tuple[int, int, int]:
        s = self.stats
        return s.replies, s.prompts_finished, s.replies_to_finished

    def _print_if(self, live_every_s: float) -> None:
        """Print where the last line is old enough."""
        plain_s = _PLAIN_FIRST_S if self._step.lines < 2 else _PLAIN_EVERY_S
        if self._clock() - self._printed_at >= (live_every_s if self._live else plain_s):
            self._print()

    def _print(self) -> None:
        if self._stream is None:
            return
        self._printed_at = self._clock()
        self._step.lines += 1
        line = progress_line(self.state())
        if self._live:
            share = min(self._step.done / self._step.total, 1.0) if self._step.total else 0.0
            line = f"[{'#' * int(20 * share):<20}] {line}"
            self._stream.write("\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            self._stream.write(line + "\n")
        self._stream.flush()


def progress_line(now: Live) -> str:
    """What live.json says, as one line; what another version leaves out is left out."""
    said = [str(now.get("step"))]
    if now.get("total") or now.get("done"):
        said[0] += f" {now.get('done')}" + (f"/{now['total']}" if now.get("total") else "")
    if work := now.get("work"):
        said[0] += f" ({', '.join(f'{n} {doing}' for doing, n in work.items())})"
    if now.get("requests") or now.get("in_flight"):
        said.append(
            f"{now.get('answered', 0)} requests answered, {now.get('in_flight', 0)} in flight"
        )
    if now.get("tokens"):
        speed = f" at {now['tokens_per_s']:.0f}/s" if now.get("tokens_per_s") is not None else ""
        said.append(f"{now['tokens']} tokens{speed}")
    if now.get("pairs"):
        said.append(f"{now['pairs']} pairs")
    if now.get("cost"):
        per_pair = f" ({now['cost_per_pair']:.3g} a pair)" if now.get("cost_per_pair") else ""
        said.append(f"{now['cost']:.4g} {now.get('currency')}{per_pair}")
    if now.get("retries"):
        said.append(f"{now['retries']} retries")
    if left_s := now.get("left_s"):
        low, high = map(_clock, left_s)
        said.append(f"{low} left" if low == high else f"{low} to {high} left")
    elif now.get("in_flight"):
        said.append("time left not known yet")
    return ", ".join(said)


def _clock(seconds: float) -> str:
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


@contextmanager
def heartbeat(folder: RunFolder, progress: Progress) -> Iterator[None]:
    """Write live.json once a second, from the running event loop, while the block lasts; plain
    lines are printed on that beat, too."""
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle | None = None

    def beat() -> None:
        nonlocal timer
        progress.tick()
        try:
            folder.write(LIVE, {"at": time.time(), **progress.state()}, durable=False)
        except RunFolderError:
            return  # the disk is full: the build reports it where it matters
        timer = loop.call_later(EVERY_S, beat)

    beat()
    try:
        yield
    finally:
        if timer is not None:
            timer.cancel()
        (folder.path / LIVE).unlink(missing_ok=True)


@contextmanager
def noting_its_end(folder: RunFolder, progress: Progress) -> Iterator[Callable[[MoraError], None]]:
    """Around a build: where it is stopped or fails, live.json says why; a failure that is not
    raised is handed to what this yields."""

    def note(why: str) -> None:
        with suppress(RunFolderError):  # the disk is full: that is what is reported
            tree = {"at": time.time(), **progress.state(), "ended": why}
            folder.write(LIVE, tree, durable=False)

    (folder.path / LIVE).unlink(missing_ok=True)
    try:
        yield lambda failure: note(one_line(failure, 500))
    except MoraError as e:
        note(one_line(e, 500))
        raise
    except BaseException as e:
        note("interrupted" if isinstance(e, KeyboardInterrupt) else type(e).__name__)
        raise


def read_live(run_dir: Path) -> Live | None:
    """What a build that is at work says of itself; None where none is."""
    live = cast(Live, read_json(run_dir / LIVE))
    at = live.get("at")
    fresh = isinstance(at, (int, float)) and abs(time.time() - at) <= FRESH_S
    return live if fresh and "ended" not in live else None


def read_end(run_dir: Path) -> str | None:
    """How the last build ended where it did not come to its end; None where it did, or goes on."""
    live = read_json(run_dir / LIVE)
    if not live or read_live(run_dir) is not None:
        return None
    return str(live.get("ended") or "killed, or its machine went down")
