"""What a build would ask for: requests, tokens, money and time, before anything is sent.

Low and high differ by what only the model can tell: how many prompts need more presamples, and how
many are mined. Tokens are counted from the prompts themselves and the longest answers allowed, so
`high` is an upper bound.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..settings import BuildSettings
from ..sources.mine import MineCounts, mine, open_source
from ..sources.recorded import as_recorded
from ..text import n_tokens
from ..types import Prompt

JUDGE_PROMPT_TOKENS = 400  # a rubric with its levels
FUSE_PROMPT_TOKENS = 700
CANARIES = 50  # scored at both ends, where a model scores
ANSWER_SHARE = 0.5  # of max_tokens, for the low estimate
# one mid-sized GPU serving a 7-8B model with full batches; stated in the result
TOKENS_PER_S = 2000.0


def estimate(settings: BuildSettings, sample: bool, data: Sequence[Path]) -> dict[str, Any]:
    """Requests and tokens of a build, low and high. Reads the source rows; asks no model.

    Raises:
        SourceError: the rows can't be read.
    """
    settings, said = as_recorded(settings)
    counts = MineCounts()
    if said:
        return _recorded(
            settings, mine(open_source(settings, sample, list(data)), settings, counts), counts
        )
    lengths = [
        n_tokens(p.text) for p in mine(open_source(settings, sample, list(data)), settings, counts)
    ]
    n, mean = len(lengths), sum(lengths) / max(len(lengths), 1)
    low, high = _volume(settings, n, mean, 0), _volume(settings, n, mean, 1)
    tokens = [v["tokens_in"] + v["tokens_out"] for v in (low, high)]
    return {
        "prompts": n,
        "rows": counts.rows,
        "requests": [low["requests"], high["requests"]],
        "tokens_in": [low["tokens_in"], high["tokens_in"]],
        "tokens_out": [low["tokens_out"], high["tokens_out"]],
        "answers": [low["answers"], high["answers"]],
        "cost": None,
        "seconds": [round(t / TOKENS_PER_S) for t in tokens],
        "assumed_tokens_per_s": TOKENS_PER_S,
    }


def _recorded(
    settings: BuildSettings, prompts: Iterable[Prompt], counts: MineCounts
) -> dict[str, Any]:
    """Recorded answers: only rewards that are models ask, once for each answer."""
    asking = sum(
        r.kind not in ("precomputed", "rules", "python")
        for d in settings.dimensions
        for r in settings.reward_sources(d)
    )
    lengths = [n_tokens(p.text) + n_tokens(r.text) for p in prompts for r in p.recorded]
    requests, tokens = (
        asking * len(lengths),
        asking * (sum(lengths) + JUDGE_PROMPT_TOKENS * len(lengths)),
    )
    return {
        "prompts": counts.kept,
        "rows": counts.rows,
        "requests": [requests] * 2,
        "tokens_in": [tokens] * 2,
        "tokens_out": [8 * requests] * 2,
        "answers": [len(lengths)] * 2,
        "cost": None,
        "seconds": [round(tokens / TOKENS_PER_S)] * 2,
        "assumed_tokens_per_s": TOKENS_PER_S,
    }


def _volume(s: BuildSettings, n_prompts: int, prompt_tokens: float, upper: int) -> dict[str, int]:
    """Requests and tokens when all prompts stop at the first step and half are mined (0), or none
    stops and all are (1)."""
    dims = sum(len(s.reward_sources(d)) for d in s.dimensions)
    answer = s.policy.max_tokens * (1.0 if upper else ANSWER_SHARE)
    counts = s.presample.looks()
    presamples = (counts[-1] if upper else counts[0]) if s.presample.enabled else 0
    steps = (len(counts) if upper else 1) if presamples else 0
    arms = n_prompts * (1.0 if upper or not presamples else 0.5) * len(s.fuse.arms)
    rewriting = sum(a not in ("identity", "concat") for a in s.fuse.arms)
    fused = arms * rewriting / max(len(s.fuse.arms), 1) * s.fuse.candidates
    checked = fused * len(s.fuse.checks) + (
        arms / len(s.fuse.arms) if rewriting and "harm" in s.fuse.checks else 0
    )
    tries = (s.fuse.retries + 1) if upper else 1
    probes = fused * tries * s.fuse.probe if presamples else 0.0
    confirmed = (
        arms * min(2 * s.select.confirm_top, s.rollout.n) * dims if s.select.confirm else 0.0
    )
    policy = n_prompts * _requests(s, presamples, steps) + arms * _requests(s, s.rollout.n, 1)
    policy += fused * tries * _requests(s, s.fuse.probe, 1) if probes else 0.0
    samples = n_prompts * presamples + arms * s.rollout.n + probes
    heldout = (
        arms * min(2 * s.select.confirm_top, s.rollout.n) * len(s.dimensions) * upper
        if s.heldout_judge is not None
        else 0.0
    )
    canaries = (
        2
        * (CANARIES if s.presample.canaries == "auto" else int(s.presample.canaries))
        * dims
        * upper
        if presamples
        else 0
    )
    judged = samples * dims + confirmed + heldout + canaries
    rewrites = fused * tries
    asked = rewrites / s.fuse.candidates  # one request for all candidates
    return {
        "answers": round(samples),
        "requests": round(policy + judged + asked + checked * tries),
        "tokens_in": round(
            policy * prompt_tokens
            + judged * (JUDGE_PROMPT_TOKENS + prompt_tokens + answer)
            + asked * (FUSE_PROMPT_TOKENS + prompt_tokens)
            + checked * tries * (JUDGE_PROMPT_TOKENS + 4 * prompt_tokens)
        ),
        "tokens_out": round(
            samples * answer
            + judged * 8
            + rewrites * 4 * max(prompt_tokens, 20)
            + checked * tries * 12
        ),
    }


def _requests(s: BuildSettings, samples: int, steps: int) -> float:
    """Policy requests for `samples` answers that are asked for in `steps` steps."""
    size = s.policy.n_per_request
    return float(steps) if size == "all" else float(-(-samples // size))
