"""What the build takes from the world, by the package's own hooks: rewards, the rewriter's engine,
selectors.

    rewards:  {helpful: [{kind: python, path: "benchmarks.mini_mora.plugins:helpful"}], ...}
    rewriter: {engine: "benchmarks.mini_mora.plugins:rewriter"}
    select:   {selector: "benchmarks.mini_mora.plugins:dominance"}

Rewards and rewriter see what any reward and rewriter sees, the messages, and read them back into
topic and question.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from mora_data.engines.engine import OnRecord, Shared
from mora_data.run.log import Record
from mora_data.run.stats import RunStats
from mora_data.selection.selectors import dominance_hv, rs_gap
from mora_data.settings import BuildSettings, RoleSettings
from mora_data.types import Answer, Messages, Request

from .world import DIMENSIONS, OWN, Arm, Ask, Topic, arm_question, fusions, read, rewards, world

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mora_data.selection.batch import Batch

_TASK = re.compile(r"^Task: (\w+)$", re.M)
_TARGETS = re.compile(r"^Targets: (.+)$", re.M)
_LENGTH = re.compile(r"^Length: (\d+) to (\d+) tokens$", re.M)
_PROMPT = re.compile(r"<prompt-(\w+)>\n(.+?)\n</prompt-\1>", re.S)
_ARMS: Mapping[str, Arm] = {a: a for a in ("single", "generic", "random", "fused")}


@lru_cache(maxsize=1)
def topics() -> dict[str, Topic]:
    """The one world of this benchmark, by name; scales differ in how many topics of each split they
    take."""
    return {t.name: t for t in world(seed=0)}


@lru_cache(maxsize=1 << 16)
def _asked(text: str) -> tuple[Topic, Ask, int] | None:
    return read(text, topics())


def _reward(messages: Messages, answer: str, dimension: str) -> float | None:
    found = _asked(messages[-1]["content"])
    return None if found is None else rewards(found[0], found[1], answer)[dimension]


def helpful(messages: Messages, answer: str) -> float | None:
    """`world.rewards` of the question as asked."""
    return _reward(messages, answer, "helpful")


def harmless(messages: Messages, answer: str) -> float | None:
    """`world.rewards` of the question as asked."""
    return _reward(messages, answer, "harmless")


def truthful(messages: Messages, answer: str) -> float | None:
    """`world.rewards` of the question as asked."""
    return _reward(messages, answer, "truthful")


def rewrite(messages: Messages) -> str | None:
    """The arm's form of the prompt in a request that the package's fuse template made; None where
    it is none of this world's."""
    system, user = messages[0]["content"], "\n".join(m["content"] for m in messages[1:])
    task, prompt = _TASK.search(system), _PROMPT.search(user)
    found = _asked(prompt[2]) if prompt else None
    if task is None or prompt is None or found is None or task[1] not in _ARMS:
        return None
    topic, ask, k = found
    rng = random.Random(prompt[2])
    targets, variant = rng.choice(fusions(ask.base)).targets, k % 4 + 4 * rng.randrange(2)
    wanted, within = _TARGETS.search(system), _LENGTH.search(user[prompt.end() :])
    if task[1] == "fused" and wanted:
        named = tuple(d for d in DIMENSIONS if d in wanted[1].split(", ") and d != OWN[ask.base])
        targets = named or targets
    # of the fused form, where a control is asked for
    n_words = round((int(within[1]) + int(within[2])) / 2) if within else None
    return arm_question(topic, ask.base, _ARMS[task[1]], targets, variant, rng, n_words)


def rewriter(role: RoleSettings, build: BuildSettings, stats: RunStats, shared: Shared) -> Rewriter:
    """An engine whose model is the world's own grammar."""
    return Rewriter(stats)


class Rewriter:
    """Answers fuse requests at once, in this process."""

    model = "topic-world-grammar"
    simulated = False
    revision: str | None = None
    n_per_request = 1 << 30
    wants_more = True
    extra: Mapping[str, Any] = {}

    def __init__(self, stats: RunStats) -> None:
        self._stats = stats

    async def send(
        self,
        request_bytes: bytes,
        request: Request,
        n: int,
        first: int,
        seed: int,
        on_record: OnRecord,
    ) -> Record:
        self._stats.sent += 1
        text = rewrite(request.messages)
        reply = json.dumps(
            {"rewritten": text or "", "subject": "", "intents": [], "refused": text is None}
        )
        record = Record(n, (Answer(reply),) * n, (0, 0, 0))
        on_record(record)
        return record

    async def changed(self) -> None:
        return None

    async def close(self) -> None:
        return None


def dominance(batch: Batch) -> NDArray[np.float64]:
    """No dimension loses, one wins; the largest total gain.

    `dominance_hv` with nothing binding. As shipped it wants a strict gain in every binding
    dimension; with three dimensions all of them bind, and a plain question whose answers never
    differ in one would have no pair in any arm that asks no more.
    """
    return dominance_hv(replace(batch, binding_P_D=batch.binding_P_D & False))


def total(batch: Batch) -> NDArray[np.float64]:
    """Largest sum of the three, whatever a single dimension loses and whatever floor is missed: the
    plain weighted sum.

    The shipped `weighted_sum` lets a dimension lose by its noise at most, and these rewards have
    none; and an answer that passes every floor, as any selector's `chosen` must, has nothing left
    to lose here: with either, the pairs are those of `dominance`.
    """
    return rs_gap(replace(batch, passing_P_N=batch.passing_P_N | True))
