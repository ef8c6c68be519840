"""What a command sent and got, over all endpoints, and whether it has to stop.

    stats.requests      sent over the wire, retries included
    stats.replayed      answers of earlier commands, taken from the answer log
    stats.count(...)    called with every reply; raises LimitReached when a budget is used up

The processes of a cluster send snapshots of theirs; `take` adds them up.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..errors import MoraError
from ..types import Request
from .limiter import ConcurrencyLimiter
from .log import Record

OnRecord = Callable[[Request, bytes, Record], None]  # the record's request and key
QUIET_TURNS = 50  # more than any coroutine needs from one answer to its next question


@dataclass
class RunStats:
    """What a run sent and got, over all endpoints, and whether it has to stop."""

    sent: int = 0  # over the wire, retries included
    simulated: int = 0  # answered by the simulator
    calls: int = 0  # requests put to `CachedClient`, whoever answered them
    under_way: int = 0  # calls to engines that have no answer yet
    asked_for: dict[str, str] = field(default_factory=dict)  # prompt -> purpose of its last call
    replies: int = 0  # of engines, and of the log
    answered: int = 0  # of engines
    prompts_finished: int = 0
    replies_to_finished: int = 0
    replies_to_open: dict[str, int] = field(default_factory=dict)  # by prompt
    prompts_begun: int = 0
    open_prompts: int = 0  # begun and not done
    replayed: int = 0  # answers of earlier commands, taken from the log
    finalized: int = 0  # answers of partitions that earlier commands finalized
    repeated: int = 0  # answers that came for a key the log already held
    retries: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)  # permanent failures by status
    accounts: dict[str, str] = field(default_factory=dict)  # of roles: what pays for their tokens
    by_account: dict[str, list[int]] = field(default_factory=dict)  # tokens in, out, cached
    # called with every record that comes, from an engine or the log
    on_record: OnRecord | None = None
    # base URLs that were taken out, and why the last time
    replicas_out: dict[str, str] = field(default_factory=dict)
    # what endpoints were found to refuse: how they are asked instead, in words
    dialects: dict[str, list[str]] = field(default_factory=dict)
    limiters: list[ConcurrencyLimiter] = field(default_factory=list)
    # seconds of permits in use, and of permits there were, in other processes
    busy_elsewhere_s: tuple[float, float] = (0.0, 0.0)
    on_tokens: Callable[[], None] | None = None  # called after every reply; may raise LimitReached
    silent: Counter[str] = field(default_factory=Counter)  # replies of tokens without a text
    on_note: Callable[[str], None] | None = None  # called with what the user has to know at once
    # nothing more is sent; what is in flight may still be answered
    stopped: MoraError | None = None

    @property
    def tokens_in(self) -> int:
        """Prompt tokens."""
        return sum(t[0] for t in self.by_account.values())

    @property
    def tokens_out(self) -> int:
        """Answer tokens."""
        return sum(t[1] for t in self.by_account.values())

    @property
    def tokens_cached(self) -> int:
        """Prompt tokens that the server had in its cache."""
        return sum(t[2] for t in self.by_account.values())

    @property
    def requests(self) -> int:
        """Requests sent; those to the simulator count only where nothing else is asked."""
        return self.sent or self.simulated

    async def until_still(self, enough: Callable[[], bool] = lambda: False) -> None:
        """Return when no coroutine goes on without an answer from an engine (or when there is
        `enough`): then a batch is as full as it gets. They are still when turn after turn of the
        event loop nobody asks and no prompt is begun."""
        quiet = 0
        while quiet < QUIET_TURNS and not enough():
            before = (self.calls, self.prompts_begun)
            await asyncio.sleep(0)
            quiet = quiet + 1 if (self.calls, self.prompts_begun) == before else 0

    @property
    def slots_busy(self) -> float | None:
        """Mean share of the permits in use, from an endpoint's first request to its last reply."""
        used, there = self._busy_s()
        return used / there if there else None

    def snapshot(self) -> RunStats:
        """A copy that can be sent to another process."""
        return replace(
            self,
            asked_for=dict(self.asked_for),
            replies_to_open={},
            retries=Counter(self.retries),
            failed=Counter(self.failed),
            replicas_out=dict(self.replicas_out),
            dialects=dict(self.dialects),
            by_account=added([self.by_account]),
            on_record=None,
            limiters=[],
            busy_elsewhere_s=self._busy_s(),
            on_tokens=None,
            silent=Counter(),
            on_note=None,
            stopped=None,
        )

    def take(self, parts: Sequence[RunStats]) -> None:
        """Become the sum of the numbers of several processes; `limiters` and what is to be called
        stay."""
        for name in _SUMMED:
            setattr(self, name, sum(getattr(p, name) for p in parts))
        for name in ("retries", "failed"):
            setattr(self, name, sum((getattr(p, name) for p in parts), Counter[str]()))
        for name in _MERGED:
            setattr(self, name, {k: v for p in parts for k, v in getattr(p, name).items()})
        self.by_account = added([p.by_account for p in parts])
        busy = [p.busy_elsewhere_s for p in parts]
        self.busy_elsewhere_s = sum(b[0] for b in busy), sum(b[1] for b in busy)

    def _busy_s(self) -> tuple[float, float]:
        all_s = [self.busy_elsewhere_s, *(x.busy_s for x in self.limiters)]
        return sum(s[0] for s in all_s), sum(s[1] for s in all_s)

    def count(self, account: str, prompt_id: str, tokens: tuple[int, int, int]) -> None:
        """A reply came.

        Raises:
            LimitReached: with it, a limit is used up; the reply is counted and logged.
        """
        self.answered += 1
        self.replies += 1
        self.replies_to_open[prompt_id] = self.replies_to_open.get(prompt_id, 0) + 1
        total = self.by_account.setdefault(account, [0, 0, 0])
        total[0] += tokens[0]
        total[1] += tokens[1]
        total[2] += tokens[2]
        if self.on_tokens is not None:
            self.on_tokens()

    def heard(self, prompt_id: str) -> None:
        """A reply for a prompt was in the log."""
        self.replies += 1
        self.replies_to_open[prompt_id] = self.replies_to_open.get(prompt_id, 0) + 1

    def finished(self, prompt_id: str) -> None:
        """Nothing more is asked for a prompt."""
        self.prompts_finished += 1
        self.replies_to_finished += self.replies_to_open.pop(prompt_id, 0)
        self.asked_for.pop(prompt_id, None)

    def stop(self, error: MoraError) -> None:
        """Let nothing more be sent."""
        if self.stopped is None:
            self.stopped = error


_SUMMED = (
    "sent simulated calls under_way replayed repeated replies answered prompts_finished"
    " replies_to_finished"
).split()
_MERGED = ("asked_for", "replicas_out", "dialects")


def added(totals: Iterable[Mapping[str, Sequence[int]]]) -> dict[str, list[int]]:
    """Tokens in, out and cached by account, summed."""
    out: dict[str, list[int]] = {}
    for total in totals:
        for account, tokens in total.items():
            before = out.get(account, [0] * len(tokens))
            out[account] = [a + b for a, b in zip(before, tokens, strict=True)]
    return out
