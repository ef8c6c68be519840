"""Canaries: a few reference answers scored when a run begins and once more when it ends, to see
whether the scorers changed.

    items = choose_items(measured, sources, 50)
    start = await score_items(ask, engines, stats, sources, items, "start", kappa)
    end = await score_items(ask, engines, stats, sources, items, "end:<what was built>", kappa)
    drift(start, end, sigma)     # {"helpful": {"shift": -0.02, "error": 0.01, "n": 50}, ...}

Both are fresh measurements under the conditions of ordinary scores: each has a purpose of its own,
so neither is a replay of mining, and a run that was cut asks only what is missing. canary.json
holds the items and both results, canary.log the answers.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..errors import PendingRetry
from ..run.stats import RunStats
from ..run.tasks import Gate, all_of, run_prompts
from ..text import seed_of
from ..types import Message, Score
from . import Ask, RewardClient, missing, scores_of
from .combine import ANCHORED, Anchors, RewardSource, RewardSources, anchor, calibrated, combine
from .judge_stats import Measured, columns_of

AUTO = 50
ERRORS = 2.0  # standard errors that a shift has to exceed, besides the limit

Item = dict[str, Any]
Values = dict[str, list[float | None]]


def choose_items(measured: Sequence[Measured], sources: RewardSources, n: int) -> list[Item]:
    """Up to `n` scored reference rollouts, a fixed draw by their names, each with the anchors of
    its prompt."""
    drawn = sorted(
        ((m, r) for m in measured for r in m.usable),
        key=lambda mr: (
            seed_of("canary", mr[1].prompt_id, mr[1].index),
            mr[1].prompt_id,
            mr[1].index,
        ),
    )[:n]
    return [
        {
            "prompt_id": r.prompt_id,
            "index": r.index,
            "messages": list(m.prompt.messages),
            "text": r.text,
            "anchors": _anchors(m, sources),
        }
        for m, r in drawn
    ]


async def score_items(
    ask: Ask,
    engines: Collection[Gate],
    stats: RunStats,
    sources: RewardSources,
    items: Sequence[Item],
    when: str,
    kappa: float | None,
) -> Values:
    """Per dimension the value of each item, None where there is none now."""

    async def one(item: Item) -> dict[str, list[Score]]:
        return await _one(ask, sources, item, f"score:canary:{when}")

    rows = await run_prompts(one, items, engines, stats)
    out: Values = {d: [] for d in sources}
    for row in rows:
        for d, scorers in sources.items():
            value = combine(scorers, row.get(d, []), kappa)
            out[d].append(None if value is None else value.reward)
    return out


def drift(
    start: Mapping[str, Sequence[float | None]],
    end: Mapping[str, Sequence[float | None]],
    sigma: Mapping[str, float],
) -> dict[str, dict[str, Any]]:
    """Mean shift of each dimension from start to end, its standard error, and the number of items
    scored both times."""
    out = {}
    for d, before in start.items():
        gaps = [
            b - a
            for a, b in zip(before, end.get(d, ()), strict=True)
            if a is not None and b is not None
        ]
        n = len(gaps)
        shift = math.fsum(gaps) / n if n else None
        error = None
        if shift is not None:
            sd = math.sqrt(math.fsum((g - shift) ** 2 for g in gaps) / (n - 1)) if n > 1 else 0.0
            error = max(sd, sigma.get(d, 0.0) * math.sqrt(2)) / math.sqrt(n)
        out[d] = {"shift": shift, "error": error, "n": n}
    return out


def drifting_dims(found: Mapping[str, Mapping[str, Any]], limit: float) -> list[str]:
    """The dimensions that shifted by more than `limit` and by more than their error explains."""
    return [
        d
        for d, v in found.items()
        if v["shift"] is not None and abs(v["shift"]) > max(limit, ERRORS * v["error"])
    ]


async def _one(
    ask: Ask, sources: RewardSources, item: Item, purpose: str
) -> dict[str, list[Score]]:
    messages = tuple(Message(role=m["role"], content=m["content"]) for m in item["messages"])
    group = [s for found in sources.values() for s in found]
    columns = await all_of(_column(ask, s, item, messages, purpose) for s in group)
    out: dict[str, list[Score]] = {}
    for source, column in zip(group, columns, strict=True):
        key = f"{source.dimension}/{source.number}"
        anchors: Anchors = {(source.dimension, source.number): item["anchors"].get(key, math.nan)}
        out.setdefault(source.dimension, []).extend(calibrated(source, column, 1, anchors))
    return out


async def _column(
    ask: Ask, source: RewardSource, item: Item, messages: tuple[Message, ...], purpose: str
) -> list[Score]:
    try:
        client = RewardClient(ask, source.cache_key, purpose, source.limiter)
        return await scores_of(source.reward, client, item["prompt_id"], messages, [item["text"]])
    except PendingRetry as e:  # a passing fault costs this item, not the run
        return [missing(source.reward, str(e))]


def _anchors(m: Measured, sources: RewardSources) -> dict[str, float]:
    columns = columns_of(m.first, sources)
    found = {
        f"{s.dimension}/{s.number}": anchor(
            s, [score.raw for _, score in columns[s.dimension, s.number]]
        )
        for group in sources.values()
        for s in group
        if s.kind == ANCHORED
    }
    return {key: value for key, value in found.items() if not math.isnan(value)}
