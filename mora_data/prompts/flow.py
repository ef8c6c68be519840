"""One prompt, from its presamples to its confirmed pairs: the coroutine reads like the method.

    presample -> kind and targets -> per arm: fuse -> rollouts -> scores -> best pairs -> confirmed

It is ordinary code; every model call goes through `context.ask`, which looks in the answer log
first. So it can be stopped anywhere and run again: what was paid for comes back at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..errors import PendingRetry
from ..resources import inert_turns
from ..rewards.combine import Anchors, Value, calibrated
from ..rewards.combine import combine as combine_sources
from ..rewards.judge import second_opinion
from ..rewards.rules import flags
from ..rewriting.checks import Check, pilot_check
from ..rewriting.guard import RULES
from ..rewriting.rewriter import Probe, RewriteSource, in_run_order, matched_length
from ..run.tasks import all_of
from ..settings import BuildSettings
from ..text import is_foreign, language_of, n_tokens, normalise, seed_of
from ..types import DEGENERATE, Answer, Messages, Pair, Prompt, Request, Rollout, Score
from .budget import goes_on, is_drawn
from .context import PromptContext
from .personas import as_persona, interleave
from .result import Arm, PromptResult, score_order

if TYPE_CHECKING:
    # numpy comes with them: imported with the first answers, not before the first request
    import numpy as np
    from numpy.typing import NDArray

    from ..statistics.rollouts import PromptStats

LONG_CHARS = 8192  # whose flags may take milliseconds


async def run_prompt(context: PromptContext, prompt: Prompt) -> PromptResult:
    """Everything that comes of one prompt. Never raises for a row: a prompt that a passing fault
    stopped says so in `pending`."""
    result = PromptResult(prompt)
    try:
        await _stages(context, result)
        missing = (s.reason for _, _, _, s in result.scores if s.may_pass)
        result.pending = result.pending or next(missing, None)
    except PendingRetry as e:
        result.pending = str(e)
        result.count(_stage_of(result), owed=1)
    result.scores.sort(key=score_order)
    return result


async def _stages(context: PromptContext, result: PromptResult) -> None:
    build, settings, prompt = context.build, context.settings, result.prompt
    if not build.reaches("presample"):
        return
    if settings.policy.engine == "recorded":
        await _recorded_arm(context, result)
        return
    if settings.presample.enabled:
        stats, arm, scores = await presample(context, prompt)
        result.stats, result.presample = stats, arm
        result.scores += [("presample", arm.rollouts[i].index, "score", s) for i, s in scores]
        if stats.kind not in settings.presample.accept:
            result.count("presample", **{stats.kind: 1})
            return
        stratum = prompt.stratum or "all"
        if not goes_on(build.judge_stats.mining, stratum, prompt.prompt_id, stats):
            result.count("presample", over_budget=1)
            return
        result.target_dims, result.binding_dims = targets(settings, stats)
    elif settings.fuse.targets == "auto":
        result.target_dims = tuple(settings.dimensions)
    else:
        result.target_dims = tuple(settings.fuse.targets)
    result.count("presample", kept=1)
    works = [_run_arms(context, result)]
    if result.presample is not None and "identity" not in settings.fuse.arms:
        share = build.judge_stats.before_share if settings.presample.before else 0.0
        if is_drawn("before", prompt.prompt_id, share):
            works.append(_measure_before(context, result, result.presample))
    await all_of(works)  # side by side: each step is a wave where an engine is `batch`


async def _run_arms(context: PromptContext, result: PromptResult) -> None:
    build, prompt = context.build, result.prompt
    if build.reaches("fuse"):
        leaks = [r.text for r in result.presample.rollouts] if result.presample else []
        source = await build.rewriter.prepare(
            context.ask,
            prompt,
            result.stats,
            result.target_dims,
            leaks,
            build.judge_stats.harm_guard.get("rule", RULES[0]),
        )
        for name in in_run_order(context.settings.fuse.arms):
            await _run_arm(context, result, name, source)


async def presample(
    context: PromptContext, prompt: Prompt
) -> tuple[PromptStats, Arm, list[tuple[int, Score]]]:
    """Sample and score the bare prompt, 8 -> 16 -> 32, until its kind is decided; with `step`,
    until it is foreseen. (Position, score) of its answers."""
    arm = Arm("presample", prompt.messages)
    kept: list[tuple[int, Score]] = []
    schedule = context.settings.presample.looks()
    for stop in schedule:
        scored = await sample_and_score(context, prompt, arm, stop)
        kept += scored
        _add_rewards(context, arm, scored)
        stats, decided = _prompt_stats(context, arm, schedule[-1])
        if decided:
            break
    return stats, arm, kept


async def sample_and_score(
    context: PromptContext, prompt: Prompt, arm: Arm, stop: int
) -> list[tuple[int, Score]]:
    """Fill `arm` up to `stop` answers to the bare prompt; (position, score) of the new ones. The
    judges' statistics and the schedule ask for them alike."""
    sampling, first = context.build.sampling("policy"), len(arm.rollouts)
    asked = inert_turns(prompt.messages)
    request = Request("policy", asked, sampling, arm.name, prompt.prompt_id, stop - first, first)
    answers = await context.ask(request)
    arm.rollouts += await as_rollouts(prompt.prompt_id, answers, prompt.text, arm.rollouts)
    new = arm.rollouts[first:]
    scored = await score(context, arm.messages, new, f"score:{arm.name}", arm.anchors)
    return [(first + i, s) for i, s in scored]


async def _measure_before(context: PromptContext, result: PromptResult, presamples: Arm) -> None:
    """The numbers before fusion, from fresh answers to the bare prompt: prompts that were picked
    for low scores score higher the next time by chance alone (docs/method.md, "Before and
    after")."""
    prompt, n = result.prompt, context.settings.presample.before
    result.before = arm = Arm("before", prompt.messages, anchors=presamples.anchors)
    try:
        scored = await sample_and_score(context, prompt, arm, n)
    except PendingRetry as e:  # the arms go on
        result.pending = str(e)
        return
    _add_rewards(context, arm, scored)
    result.scores += [(arm.name, arm.rollouts[i].index, "score", s) for i, s in scored]


def targets(settings: BuildSettings, stats: PromptStats) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Target dimensions (up to two that the prompt misses, weakest first) and binding ones (carried
    + targets)."""
    dims = settings.dimensions
    if settings.fuse.targets == "auto":
        weakest = sorted(
            stats.missing_dims, key=lambda d: (stats.passed[dims.index(d)], dims.index(d))
        )
        wanted = set(weakest[:2])
    else:
        wanted = set(settings.fuse.targets) - {stats.carried_dim}
    binding = wanted | ({stats.carried_dim} if stats.carried_dim else set())
    return tuple(d for d in dims if d in wanted), tuple(d for d in dims if d in binding)


async def _run_arm(
    context: PromptContext, result: PromptResult, name: str, source: RewriteSource
) -> None:
    messages = await _question(context, result, name, source)
    if messages is None or not context.build.reaches("rollout"):
        return
    arm = Arm(name, messages)
    arm.rollouts = await _rollouts(context, result, arm)
    result.arms.append(arm)
    if context.build.reaches("score"):
        await _score_arm(context, result, arm)
    if context.build.reaches("select"):
        await _select(context, result, arm)


async def _recorded_arm(context: PromptContext, result: PromptResult) -> None:
    """The source's own answers in place of rollouts; `precomputed` rewards find their ratings by
    text."""
    build, prompt = context.build, result.prompt
    result.count("presample", kept=1)
    if build.reaches("fuse"):
        result.count("fuse", kept=1)
    if not build.reaches("rollout"):
        return
    arm = Arm("recorded", prompt.messages)
    answers = [Answer(r.text, tokens_out=n_tokens(r.text)) for r in prompt.recorded]
    arm.rollouts = await as_rollouts(prompt.prompt_id, answers)
    _count_rollouts(result, arm.rollouts)
    result.arms.append(arm)
    ratings = {r.text: r.ratings for r in reversed(prompt.recorded)}
    rated = replace(context, ratings=ratings)
    if build.reaches("score"):
        await _score_arm(rated, result, arm)
    if build.reaches("select"):
        await _select(rated, result, arm)


async def _question(
    context: PromptContext, result: PromptResult, name: str, source: RewriteSource
) -> Messages | None:
    """What the arm asks; None, counted, where no rewrite passed or there is no fused prompt whose
    length it could have."""
    fuse = context.settings.fuse
    if name == "identity":
        result.count("fuse", kept=1)
        return result.prompt.messages
    within = None
    if name in fuse.length_matched and "fused" in fuse.arms:
        accepted = [a.text for a in result.attempts if a.arm == "fused" and a.accepted]
        if not accepted:
            result.count("fuse", not_fused=1)
            return None
        within = matched_length(accepted[0])
    before = result.presample if fuse.probe else None
    probe = _pilot(context, name, before) if before else None
    messages, attempts = await context.build.rewriter.fuse(context.ask, source, name, within, probe)
    result.attempts += attempts
    if messages is None:
        result.count("fuse", **{attempts[-1].failed[0]: 1})
    else:
        result.count("fuse", kept=1)
    return messages


def _pilot(context: PromptContext, name: str, before: Arm) -> Probe:
    """Answers to a rewrite, scored, compared with the presamples, and thrown away."""

    async def probe(messages: Messages) -> Check:
        prompt_id, n = before.rollouts[0].prompt_id, context.settings.fuse.probe
        sampling = context.build.sampling("policy")
        asked = inert_turns(messages)
        request = Request("policy", asked, sampling, f"probe:{name}", prompt_id, n)
        answers = await context.ask(request)
        rollouts = await as_rollouts(prompt_id, answers, messages[-1]["content"])
        arm = Arm("probe", messages, rollouts)
        scored = await score(context, messages, rollouts, f"score:probe:{name}")
        _add_rewards(context, arm, scored)
        sides = [
            (rewards, absolutes - uncertainties)
            for rewards, absolutes, uncertainties in (_arrays(context, a) for a in (before, arm))
        ]
        return pilot_check(sides[0], sides[1], *_thresholds_and_noise(context))

    return probe


async def _rollouts(context: PromptContext, result: PromptResult, arm: Arm) -> list[Rollout]:
    n, personas = context.settings.rollout.n, context.build.personas or (None,)
    sampling, prompt_id = context.build.sampling("policy"), result.prompt.prompt_id
    requests = [
        Request(
            "policy",
            as_persona(inert_turns(arm.messages), p),
            sampling,
            f"arm:{arm.name}" + (f":{p.name}" if p else ""),
            prompt_id,
            len(range(k, n, len(personas))),
        )
        for k, p in enumerate(personas)
    ]
    answers = interleave(await all_of(context.ask(r) for r in requests))
    asked = arm.messages[-1]["content"]
    rollouts = [
        replace(r, persona=p.name) if (p := personas[i % len(personas)]) else r
        for i, r in enumerate(await as_rollouts(prompt_id, answers, asked=asked))
    ]
    _count_rollouts(result, rollouts)
    return rollouts


async def as_rollouts(
    prompt_id: str,
    answers: Sequence[Answer],
    asked: str = "",
    before: Sequence[Rollout] = (),
) -> list[Rollout]:
    """Answers to the turn `asked` as rollouts with their flags; a text that came earlier, or
    `before` them, is a duplicate. Other work goes on between long ones."""
    seen = {normalise(r.text) for r in before if r.error is None}
    language = language_of(asked)
    out = []
    for i, a in enumerate(answers, len(before)):
        if len(a.text) > LONG_CHARS:
            await asyncio.sleep(0)
        found = flags(a.text, a.finish_reason) if a.error is None else ()
        if a.error is None and is_foreign(language, a.text):
            found = (*found, "language")
        if a.error is None:
            text = normalise(a.text)
            if text in seen:
                found = (*found, "duplicate")
            seen.add(text)
        said = (a.text, a.finish_reason, a.tokens_out, found, a.error, n_tokens(a.text))
        out.append(Rollout(prompt_id, i, *said, thought=a.thought))
    return out


def _count_rollouts(result: PromptResult, rollouts: Sequence[Rollout]) -> None:
    dropped = [
        "failed" if r.error is not None else next(f for f in r.flags if f in DEGENERATE)
        for r in rollouts
        if not r.is_scored
    ]
    reasons = {reason: dropped.count(reason) for reason in sorted(set(dropped))}
    result.count("rollout", kept=len(rollouts) - len(dropped), **reasons)


async def _score_arm(context: PromptContext, result: PromptResult, arm: Arm) -> None:
    scored = await score(context, arm.messages, arm.rollouts, f"score:{arm.name}", arm.anchors)
    result.scores += [(arm.name, arm.rollouts[i].index, "score", s) for i, s in scored]
    _add_rewards(context, arm, scored)
    asked = [i for i, r in enumerate(arm.rollouts) if r.is_scored]
    dims = context.build.dims
    whole = sum(all(arm.rewards[d][i] is not None for d in dims) for i in asked)
    result.count("score", kept=whole, unscored=len(asked) - whole)


async def score(
    context: PromptContext,
    messages: Messages,
    rollouts: Sequence[Rollout],
    purpose: str,
    anchors: Anchors | None = None,
) -> list[tuple[int, Score]]:
    """(position, score) of each rollout that is scored from each reward source; judges see the
    question asked, never the arm.

    Answers that differ in case and spaces alone are shown as the first of them, so that one call
    serves them all. `anchors` belong to the prompt as asked: the first scores set them, later ones
    are measured by them.
    """
    positions = [i for i, r in enumerate(rollouts) if r.is_scored]
    shown: dict[str, str] = {}
    texts = [shown.setdefault(normalise(t), t) for t in (rollouts[i].text for i in positions)]
    if not texts:
        return []
    build, prompt_id = context.build, rollouts[0].prompt_id
    # no dimension is always first
    order = sorted(build.dims, key=lambda d: seed_of("dims", context.settings.seed, prompt_id, d))
    asked = [s for d in order for s in build.sources[d]]
    came = await all_of(
        s.scores(context.ask, purpose, prompt_id, messages, texts, context.ratings) for s in asked
    )
    columns = {(s.dimension, s.number): column for s, column in zip(asked, came, strict=True)}
    anchors = {} if anchors is None else anchors
    ready = [
        calibrated(s, columns[d, s.number], len(texts), anchors)
        for d in build.dims
        for s in build.sources[d]
    ]
    return [(positions[i], s) for column in ready for i, s in enumerate(column)]


async def _select(context: PromptContext, result: PromptResult, arm: Arm) -> None:
    """The selector's best pairs, each scored once more by fresh verdicts (docs/method.md,
    Confirmation)."""
    build, confirm = context.build, context.settings.select.confirm
    if not confirm and not build.heldout:
        return  # nothing is asked: they are found when the partition is whole
    from .candidates import confirmed_pairs, find_candidates

    find_candidates(build, [(result, arm)])
    if confirm and arm.pairs:
        sides = sorted({i for p in arm.pairs for i in (p.chosen, p.rejected)})
        rollouts = [arm.rollouts[i] for i in sides]
        again = await score(context, arm.messages, rollouts, "confirm", arm.anchors)
        result.scores += [(arm.name, sides[k], "confirm", s) for k, s in again]
        fresh = {i: [s for j, s in again if sides[j] == i] for i in sides}
        arm.pairs = [_with_fresh_margins(context, p, fresh) for p in arm.pairs]
    if build.heldout:
        held = confirmed_pairs(arm.pairs, build.dims, result.binding_dims)
        sides = sorted({i for p in held for i in (p.chosen, p.rejected)})
        theirs = await second_opinion(context.ask, build.heldout, arm.messages, arm.rollouts, sides)
        result.scores += [(arm.name, i, "heldout", s) for i, s in theirs]


def _with_fresh_margins(
    context: PromptContext, pair: Pair, fresh: Mapping[int, Sequence[Score]]
) -> Pair:
    margins: dict[str, float | None] = {}
    for d in context.build.dims:
        a, b = (_combine(context, d, fresh[i]) for i in (pair.chosen, pair.rejected))
        margins[d] = None if a is None or b is None else a.reward - b.reward
    return replace(pair, margins_confirmed=margins)


def _combine(context: PromptContext, dimension: str, scores: Sequence[Score]) -> Value | None:
    """A rollout's reward in one dimension; None when a source has none."""
    build = context.build
    return combine_sources(
        build.sources[dimension],
        [s for s in scores if s.dimension == dimension],
        context.settings.select.kappa,
        build.judge_stats.sigma(dimension),
    )


def _add_rewards(context: PromptContext, arm: Arm, scored: Sequence[tuple[int, Score]]) -> None:
    """The rewards of the answers that were scored; None for those that were not."""
    by_rollout: dict[int, list[Score]] = {}
    for i, s in scored:
        by_rollout.setdefault(i, []).append(s)
    for d in context.build.dims:
        columns = [c.setdefault(d, []) for c in (arm.rewards, arm.absolutes, arm.uncertainties)]
        for column in columns:
            column += [None] * (len(arm.rollouts) - len(column))
        for i, scores in by_rollout.items():
            found = _combine(context, d, scores)
            for column, value in zip(columns, found or (None, None, None), strict=True):
                column[i] = value


def _prompt_stats(context: PromptContext, arm: Arm, last: int) -> tuple[PromptStats, bool]:
    """What the presamples say, and whether more of them, up to `last` presamples in all,
    may be spared."""
    import numpy as np

    from ..statistics.rollouts import foreseen, likeliest, profiles

    dims, settings = context.build.dims, context.settings.presample
    rewards, absolutes, uncertainties = (side[None] for side in _arrays(context, arm))
    certain = absolutes - uncertainties
    thresholds, sigma = _thresholds_and_noise(context)
    stats = profiles(rewards, dims, thresholds, sigma, settings, certain)[0]
    n = len(arm.rollouts)
    if settings.step is None or n >= last:
        return stats, stats.kind != "undecided"
    known = context.build.judge_stats.prior
    chances = foreseen(
        rewards[0],
        settings.n,
        thresholds,
        sigma,
        settings,
        np.array([known[d] for d in dims]) if known else None,
        seed=seed_of("foreseen", arm.rollouts[0].prompt_id, n),
    )
    kind, sure = likeliest(chances, settings.foresee, settings.accept)
    return replace(stats, kind=kind), sure >= 1 - settings.error


def _arrays(context: PromptContext, arm: Arm) -> list[NDArray[np.float64]]:
    """Rewards, absolute rewards and uncertainties of an arm, each N x D, NaN for None."""
    import numpy as np

    return [
        np.array(
            [[np.nan if v is None else v for v in column[d]] for d in context.build.dims],
            dtype=float,
        ).T
        for column in (arm.rewards, arm.absolutes, arm.uncertainties)
    ]


def _thresholds_and_noise(
    context: PromptContext,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    import numpy as np

    dims, stats = context.build.dims, context.build.judge_stats
    thresholds = np.array([stats.pass_thresholds[d] for d in dims]) - 1e-9
    return thresholds, np.array([stats.sigma(d) for d in dims])


def _stage_of(result: PromptResult) -> str:
    """The stage in which a stopped prompt was."""
    if ("presample", "in") not in result.counts:
        return "presample"
    if result.arms and not result.arms[-1].rewards:
        return "score"
    accepted = result.counts["fuse", "kept"]
    if accepted > len(result.arms):
        return "rollout"
    return "select" if result.arms else "fuse"
