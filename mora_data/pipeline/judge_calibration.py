"""How good the judges are: measured on the first prompts before the partitions run, and once more
on a few canaries when all is scored.

    stats = await measure_judges(build, context, runner, parts)     reference.json; frozen while
                                                                    settings stand
    drift = await measure_drift(build, context, engines, settled)   canaries: did scorers change?
    check_drift(drift, limit)                                       raises UnreliableScores
    check_reliability(context, log)                                 before noise selects pairs

Canaries are a few reference answers scored at the start and at the end, both under the conditions
of ordinary scores. Each measurement has a purpose of its own, so neither is a replay of mining, and
a run that was cut asks only what is missing. canary.json holds the items and both results,
canary.log the answers.

The harm check is tried on worked examples before it may refuse a rewrite: fusion adds questions
about what could go wrong, and a small judge takes asking about harm for asking for harm. An example
is a question, the same with a question about harm, and one that asks for harm
(templates/guard/examples.yaml). The answers are in guard_trial.log, so a resumed run asks nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from .. import resources
from ..engines.cached_client import CachedClient
from ..engines.engine import Engine
from ..errors import PendingRetry, UnreliableScores
from ..prompts.budget import Mined, fit_thresholds
from ..prompts.context import BuildContext, PromptContext
from ..prompts.flow import presample, sample_and_score, score
from ..prompts.result import Arm, PromptResult
from ..prompts.runner import PartitionRunner
from ..rewards import Ask, missing
from ..rewards.combine import (
    ANCHORED,
    Anchors,
    RewardSource,
    RewardSources,
    anchor,
    calibrated,
    combine,
)
from ..rewards.judge_stats import JudgeStats, Measured, columns_of, conclude, is_repeated
from ..rewriting.guard import RULES, refuses
from ..run import Shift
from ..run.files import read_json
from ..run.log import AnswerLog
from ..run.partitions import Partition
from ..run.tasks import all_of, run_prompts
from ..settings import GUARD_ROLE, BuildSettings
from ..text import seed_of
from ..types import Message, Prompt, Role, Score
from .values import Build


async def measure_judges(
    build: Build,
    context: BuildContext,
    runner: PartitionRunner,
    parts: Sequence[Partition],
    chosen: frozenset[str] | None = None,
) -> JudgeStats:
    """The judges' statistics, from reference.json where its settings still stand, else measured on
    the first prompts and frozen there; with the trial of the harm check, beside which nothing
    waits. With `chosen`, for a probe, on these prompts, not frozen."""
    works: list[Coroutine[Any, Any, Any]] = [
        try_harm_guard(build, context, runner.engines),
        _measure(build, context, runner, parts, chosen),
    ]
    trial, measured = await all_of(works)
    stats: JudgeStats = replace(measured, harm_guard=trial)
    tree, is_measured = stats.to_json(), context.settings.presample.enabled or stats.harm_guard
    if chosen is None and is_measured and tree != read_json(build.folder.path / "reference.json"):
        build.folder.write("reference.json", tree)
    for line in stats.doubts():
        build.progress.message(line)
    return stats


async def _measure(
    build: Build,
    context: BuildContext,
    runner: PartitionRunner,
    parts: Sequence[Partition],
    chosen: frozenset[str] | None,
) -> JudgeStats:
    """What the first prompts show of the judges; canary.json holds what drift is measured by."""
    if not context.settings.presample.enabled:
        return context.judge_stats
    engines = runner.engines
    key, n = context.judge_stats_key(engines), n_canaries(build.settings, _models(engines))
    frozen = read_json(build.folder.path / "reference.json")
    kept = read_json(build.folder.path / "canary.json")
    has_canaries = not n or (kept.get("basis"), kept.get("n")) == (key, n)
    if frozen.get("basis") == key and has_canaries:
        return JudgeStats.from_json(frozen)
    ids, first = _reference_prompts(parts, context.settings.presample.reference, chosen)
    measured, pending = await _measure_prompts(build, context, runner, first, ids)
    presampling = context.settings.presample
    stats, sources = conclude(
        measured,
        context.sources,
        context.judge_stats.pass_thresholds,
        context.settings.select.kappa,
        with_prior=bool(presampling.step),
    )
    n_mined = read_json(build.folder.path / "mine.json")["kept"]
    stats = replace(
        stats, cache_key=None if pending else key, before_share=presampling.before_share(n_mined)
    )
    if presampling.budget is not None:
        calibrated = replace(context, sources=sources, judge_stats=stats)
        stats = await _with_mining_thresholds(build, calibrated, runner, parts, first, ids)
    if chosen is not None:
        return stats
    if n:
        items = choose_items(measured, sources, n)
        build.progress.start("canaries")
        start = await _score_canaries(build, sources, engines, items, "start")
        tree = {"basis": stats.cache_key, "n": n, "items": items, "start": start}
        build.folder.write("canary.json", tree)
    return stats


async def measure_drift(
    build: Build, context: BuildContext, engines: Mapping[Role, Engine], settled: str
) -> Mapping[str, Shift]:
    """Score the canaries once more, when all is scored; once for each state of the partitions,
    which `settled` names. Empty where there are none."""
    kept = read_json(build.folder.path / "canary.json")
    n = n_canaries(build.settings, _models(engines))
    if not (context.settings.presample.enabled and n and kept):
        return {}
    build.progress.start("canaries")
    end = await _score_canaries(build, context.sources, engines, kept["items"], f"end:{settled}")
    sigma = {d: noise.sigma for d, noise in context.judge_stats.noise.items()}
    found = drift(kept["start"], end, sigma)
    build.folder.write("canary.json", {**kept, "end": end, "drift": found})
    return found


def check_drift(drift: Mapping[str, Shift], limit: float) -> None:
    """Raises UnreliableScores when the scorers are not what they were at the start."""
    for d in drifting_dims(drift, limit):
        v = drift[d]
        raise UnreliableScores(
            f"the scorers changed during the run: {v['n']} canary answers moved by"
            f" {v['shift']:+.3f} in {d} from start to end (presample.max_drift = {limit:g}): see"
            " that judge model and revision are what they were and start anew with --fresh, or"
            " raise presample.max_drift; the state is kept"
        )


def check_reliability(context: BuildContext, log: Callable[[str], None]) -> None:
    """Raises UnreliableScores before anything is selected by scores that are mostly noise; where
    that is allowed, or nothing is selected, `log` gets the line."""
    for d, v in context.judge_stats.unreliable(context.settings.presample.gamma).items():
        what = (
            f"the scores of dimension {d} are mostly noise: reliability {v['reliability']:.2f} (95"
            f" % sure to be under {v['reliability_upper']:.2f}) over {v['n']} answers scored twice,"
            " 0.3 is the least"
        )
        if context.settings.select.allow_unreliable or not context.reaches("select"):
            log(what)
            continue
        raise UnreliableScores(
            f"{what}: take a better judge or rubric, or leave {d} out of dimensions, or go on with"
            " --allow-unreliable, which is written down; the state is kept"
        )


async def _measure_prompts(
    build: Build,
    context: BuildContext,
    runner: PartitionRunner,
    parts: Sequence[Partition],
    ids: frozenset[str],
) -> tuple[list[Measured], int]:
    """First presamples, scored, a share of them scored again; raw scores where no calibration map
    is there yet. By prompt id, as the order in which prompts finish must not show; and how many
    lack something."""
    found: dict[str, Measured] = {}
    pending = 0

    async def flow(ask: CachedClient, prompt: Prompt) -> PromptResult:
        nonlocal pending
        try:
            measured = await measure(PromptContext(context, ask), prompt)
            found[prompt.prompt_id] = measured
            pending += any(s.may_pass for _, s in [*measured.first, *measured.again])
        except PendingRetry:  # left out for now
            pending += 1
        return PromptResult(prompt)

    async def measure(of: PromptContext, prompt: Prompt) -> Measured:
        arm = Arm("presample", prompt.messages)
        settings = of.settings.presample
        first = await sample_and_score(of, prompt, arm, settings.n[0])
        scored = {i for i, _ in first}
        # of equal texts one: their second scores would be one verdict
        again = [
            i
            for i, r in enumerate(arm.rollouts)
            if r.is_usable
            and i in scored
            and is_repeated(prompt.prompt_id, i, settings.repeat_share)
        ]
        chosen = [arm.rollouts[i] for i in again]
        fresh = await score(of, prompt.messages, chosen, "repeat", arm.anchors)
        return Measured(prompt, arm.rollouts, first, [(again[k], s) for k, s in fresh], again)

    build.progress.start("judge calibration: prompts", len(ids))
    await runner.run(parts, flow, lambda r: build.progress.step(), lambda opened: None, ids)
    build.progress.finish()
    return [found[prompt_id] for prompt_id in sorted(found)], pending


async def _with_mining_thresholds(
    build: Build,
    context: BuildContext,
    runner: PartitionRunner,
    parts: Sequence[Partition],
    first: Sequence[Partition],
    ids: frozenset[str],
) -> JudgeStats:
    """With the mining threshold per stratum, from the reference prompts presampled in full; their
    answers serve again later."""
    presampling = context.settings.presample
    found: list[Mined] = []
    pending: list[str] = []

    async def flow(ask: CachedClient, prompt: Prompt) -> PromptResult:
        try:
            stats, _, scores = await presample(PromptContext(context, ask), prompt)
            if any(s.may_pass for _, s in scores):
                pending.append(prompt.prompt_id)
            found.append(Mined(prompt.prompt_id, prompt.stratum or "all", stats))
        except PendingRetry:
            pending.append(prompt.prompt_id)
        return PromptResult(prompt)

    build.progress.start("budget: prompts", len(ids))
    await runner.run(first, flow, lambda r: build.progress.step(), lambda opened: None, ids)
    build.progress.finish()
    assert presampling.budget is not None
    by_id = sorted(found, key=lambda m: m.prompt_id)
    strata = Counter(p.stratum or "all" for part in parts for p in part.prompts())
    mining = fit_thresholds(
        by_id, dict(sorted(strata.items())), presampling.budget, presampling.accept
    )
    stats = replace(context.judge_stats, mining=mining)
    return replace(stats, cache_key=None) if pending else stats


async def _score_canaries(
    build: Build,
    sources: RewardSources,
    engines: Mapping[Role, Engine],
    items: Sequence[Item],
    when: str,
) -> Values:
    """Per dimension the value of each item, None where there is none now."""
    stats, s = build.progress.stats, build.settings

    async def scored(item: Item) -> dict[str, list[Score]]:
        return await _one(ask, sources, item, f"score:canary:{when}")

    with closing(AnswerLog(build.folder.path / "canary.log")) as log:
        ask = CachedClient(engines, log, s.seed, stats)
        rows = await run_prompts(scored, items, engines.values(), stats)
    found = {
        d: [combine(group, row.get(d, []), s.select.kappa) for row in rows]
        for d, group in sources.items()
    }
    return {d: [None if v is None else v.reward for v in found[d]] for d in found}


def _models(engines: Mapping[Role, Engine]) -> list[Role]:
    return [role for role, e in engines.items() if not e.simulated]


def n_canaries(settings: BuildSettings, models: Collection[str]) -> int:
    """How many reference answers are scored at both ends; `models`: the roles that are not
    simulated, since the simulator never changes."""
    given = settings.presample.canaries
    if given != "auto":
        return int(given)
    return CANARIES if set(models) - {"policy", "rewriter"} else 0


def _reference_prompts(
    parts: Sequence[Partition], n: int, chosen: frozenset[str] | None
) -> tuple[frozenset[str], list[Partition]]:
    """Ids of the first `n` mined prompts, or those `chosen`, and the partitions that hold them."""
    ids: list[str] = []
    used: list[Partition] = []
    for part in parts:
        found = [p.prompt_id for p in part.prompts() if chosen is None or p.prompt_id in chosen]
        if len(ids) >= n:
            break
        if found:
            used.append(part)
            ids += found
    return frozenset(ids if chosen else ids[:n]), used


LOG = "guard_trial.log"
PROMPT_ID = "guard examples"  # of its requests
MOST_WRONG, LEAST_CAUGHT = 1, 4  # of six: harmless rewrites refused, harmful ones refused


def guard_role(settings: BuildSettings) -> Role:
    """Who is asked how harmful a question is."""
    return "judge" if settings.fuse.guard is None else GUARD_ROLE


async def try_harm_guard(
    build: Build, context: BuildContext, engines: Mapping[Role, Engine]
) -> Mapping[str, Any]:
    """The rule that the check may refuse by and how often each rule refused; empty where nothing is
    checked for harm, and for a simulated guard. Where a verdict is still owed the strictest rule
    holds for now."""
    role, stats = guard_role(context.settings), build.progress.stats
    checked = "harm" in context.settings.fuse.checks and context.rewriter.templates
    if not (checked and context.reaches("fuse")) or engines[role].simulated:
        return {}
    path = resources.folder("templates") / "guard" / "examples.yaml"
    examples = resources.parse_yaml(path.read_text("utf-8"))

    async def graded(question: str) -> float | None:
        return await context.rewriter.guard.harm(
            ask, PROMPT_ID, (Message(role="user", content=question),)
        )

    texts = [e[kind] for e in examples for kind in ("question", "about", "for")]
    try:
        with closing(AnswerLog(build.folder.path / LOG)) as log:
            ask = CachedClient(engines, log, context.settings.seed, stats)
            found = await run_prompts(graded, texts, engines.values(), stats)
    except PendingRetry:
        return {"rule": RULES[0], "owed": True}
    return judged(found[0::3], found[1::3], found[2::3], engines[role].model)


def judged(
    before: Sequence[float | None],
    about: Sequence[float | None],
    asking: Sequence[float | None],
    model: str,
) -> Mapping[str, Any]:
    """The strictest rule that lets questions about harm through and refuses those that ask for it,
    by the harm in [0, 1] that a guard found in the original questions and in both rewrites."""

    def refused(rule: str, after: Sequence[float | None]) -> int:
        return sum(refuses(rule, *both) for both in zip(before, after, strict=True))

    counts = {r: (refused(r, about), refused(r, asking)) for r in RULES}
    tells = [
        r for r, (wrong, caught) in counts.items() if wrong <= MOST_WRONG and caught >= LEAST_CAUGHT
    ]
    rule, n = (tells or ["off"])[0], len(before)
    tree = {
        "rule": rule,
        "n": n,
        "refused": {r: {"harmless": a, "harmful": b} for r, (a, b) in counts.items()},
    }
    if rule == RULES[0]:
        return tree
    wrong, caught = counts[RULES[0]]
    seen = (
        f"of worked examples {model} refuses {wrong} of {n} rewrites that ask what could go wrong"
        f" and {caught} of {n} that ask for harm"
    )
    if rule == "off":
        what = f"THE HARM CHECK IS OFF, rewrites are not checked for harm: {seen}. To have it,"
    else:
        what = f"The harm check refuses only what is surely harmful: {seen}. To catch more,"
    return {**tree, "doubt": f"{what} take a stronger judge, or a guard model (fuse.guard)."}


CANARIES = 50  # scored at both ends, where a model scores
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


def drift(
    start: Mapping[str, Sequence[float | None]],
    end: Mapping[str, Sequence[float | None]],
    sigma: Mapping[str, float],
) -> dict[str, Shift]:
    """Mean shift of each dimension from start to end, its standard error, and the number of items
    scored both times."""
    out: dict[str, Shift] = {}
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


def drifting_dims(found: Mapping[str, Shift], limit: float) -> list[str]:
    """The dimensions that shifted by more than `limit` and by more than their error explains."""
    return [
        d
        for d, v in found.items()
        if v["shift"] is not None
        and v["error"] is not None
        and abs(v["shift"]) > max(limit, ERRORS * v["error"])
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
        return await source.scores(ask, purpose, item["prompt_id"], messages, [item["text"]])
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
