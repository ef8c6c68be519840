"""One prompt, from its presamples to its confirmed pairs: the coroutine reads like the method.

    presample -> kind and targets -> per arm: fuse -> rollouts -> scores -> best pairs -> confirmed

It is ordinary code; every model call goes through `work.ask`, which looks in the answer log first.
So it can be stopped anywhere and run again: what was paid for comes back at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..errors import PendingRetry
from ..rewards import Reward
from ..rewards.asking import Ask
from ..rewards.combine import Anchors, RewardSources, Value, calibrated, steps_of
from ..rewards.combine import combine as combine_sources
from ..rewards.heldout import second_opinion
from ..rewards.precomputed import Rated
from ..rewards.rules import flags
from ..rewriting.arms import in_order, matched
from ..rewriting.checks import Check
from ..rewriting.rewriter import Probe, Rewriter, RewriteSource
from ..run.tasks import all_of
from ..settings import BuildSettings
from ..text import is_foreign, language_of, n_tokens, normalise, seed_of
from ..types import (
    OUT_OF_PAIRS,
    STAGES,
    Answer,
    Messages,
    Pair,
    Prompt,
    Request,
    Rollout,
    Sampling,
    Score,
)
from .budget import goes_on
from .personas import Persona, as_persona, dealt
from .pilot import tried_out
from .result import Arm, PromptResult

# numpy comes with them: imported when the first answers are there, not before the first request
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..selection import Selector
    from ..statistics import PromptStats

REPEAT_UNIT = 10_000


@dataclass(frozen=True, slots=True)
class JudgeStats:
    """Dataset-wide quantities, frozen before the first partition (reference.json).

    Attributes:
        sigma: judge noise per dimension: standard deviation of one score, in [0, 1].
        floors: pass mark per dimension.
        prior: per dimension, how pass rates spread over prompts (`statistics.adaptive`); empty: not
            measured.
        mining: threshold per stratum (`stages.budget`); empty: no budget.
    """

    sigma: Mapping[str, float]
    pass_thresholds: Mapping[str, float]
    prior: Mapping[str, Sequence[float]] = field(default_factory=dict)
    mining: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def delta(self, dims: Sequence[str], steps: Mapping[str, float]) -> list[float]:
        """Smallest margin per dimension that is more than noise: 2 sqrt(2) sigma, and half a step
        of the scale."""
        return [max(2 * 2**0.5 * self.sigma.get(d, 0.0), steps[d] / 2) for d in dims]


@dataclass(frozen=True, slots=True)
class PromptContext:
    """What a prompt's coroutine needs."""

    settings: BuildSettings
    ask: Ask
    sources: RewardSources
    fuser: Rewriter
    selector: Selector
    reference: JudgeStats
    until: str = "publish"
    personas: Sequence[Persona] = ()
    heldout: Mapping[str, Reward] = field(default_factory=dict)

    def reaches(self, stage: str) -> bool:
        """Whether the run goes as far as `stage`."""
        return STAGES.index(stage) <= STAGES.index(self.until)

    @property
    def dims(self) -> list[str]:
        return self.settings.dimensions

    @property
    def steps(self) -> dict[str, float]:
        """Resolution of each dimension's scale."""
        return steps_of(self.sources)

    def sampling(self, role: str, temperature: float | None = None) -> Sampling:
        """A role's sampling parameters."""
        r = self.settings.role(role)
        return Sampling(
            r.temperature if temperature is None else temperature,
            r.top_p,
            r.max_tokens,
            tuple(r.stop),
        )


async def run_prompt(work: PromptContext, prompt: Prompt) -> PromptResult:
    """Everything that comes of one prompt. Never raises for a row: a prompt stopped by a passing
    fault says so in `owed`."""
    outcome = PromptResult(prompt)
    try:
        await _run(work, outcome)
    except PendingRetry as e:
        outcome.owed = str(e)
        stage = _stage_of(outcome)
        outcome.count(stage, owed=1)
    return outcome


async def presample(
    work: PromptContext, prompt: Prompt
) -> tuple[PromptStats, Arm, list[tuple[int, Score]]]:
    """Sample and score the bare prompt, 16 -> 32 -> 64, until its kind is decided; with `step`,
    until it is foreseen."""
    arm = Arm("presample", prompt.messages)
    kept: list[tuple[int, Score]] = []
    schedule = work.settings.presample.looks()
    profile = None
    for first, stop in zip([0, *schedule], schedule, strict=False):
        rollouts, scored = await sample_and_score(work, prompt, first, stop, arm.anchors)
        arm.rollouts += rollouts
        kept += [(first + i, s) for i, s in scored]
        _add_rewards(work, arm, rollouts, scored)
        profile, decided = _profile(work, arm, schedule[-1])
        if decided:
            break
    assert profile is not None
    return profile, arm, kept


async def sample_and_score(
    work: PromptContext, prompt: Prompt, first: int, stop: int, anchors: Anchors | None = None
) -> tuple[list[Rollout], list[tuple[int, Score]]]:
    """Presamples `first` .. `stop - 1` of the bare prompt with their scores; phase 0 and the
    schedule ask them alike."""
    answers = await work.ask(
        Request(
            "policy",
            prompt.messages,
            work.sampling("policy"),
            "presample",
            prompt.prompt_id,
            stop - first,
            first,
        )
    )
    rollouts = as_rollouts(prompt.prompt_id, "presample", answers, first, prompt.text)
    return rollouts, await score(work, prompt.messages, rollouts, "score:presample", anchors)


async def score(
    work: PromptContext,
    messages: Messages,
    rollouts: Sequence[Rollout],
    purpose: str,
    anchors: Anchors | None = None,
) -> list[tuple[int, Score]]:
    """(position, score) of each usable rollout from each reward source; judges see the question
    asked, never the arm.

    `anchors` belong to the prompt as asked: the first scores set them, later ones are measured by
    them.
    """
    usable = [i for i, r in enumerate(rollouts) if is_usable(r)]
    texts = [rollouts[i].text for i in usable]
    if not texts:
        return []
    prompt_id = rollouts[0].prompt_id
    # no dimension is always first
    order = sorted(work.dims, key=lambda d: seed_of("dims", work.settings.seed, prompt_id, d))
    asked = [s for d in order for s in work.sources[d]]
    came = await all_of(
        s.reward.scores(work.ask, prompt_id, messages, texts, purpose) for s in asked
    )
    columns = {(s.dimension, s.number): column for s, column in zip(asked, came, strict=True)}
    anchors = {} if anchors is None else anchors
    ready = [
        calibrated(s, columns[d, s.number], len(texts), anchors)
        for d in work.dims
        for s in work.sources[d]
    ]
    return [(usable[i], s) for column in ready for i, s in enumerate(column)]


def combine(work: PromptContext, dimension: str, scores: Sequence[Score]) -> Value | None:
    """A rollout's reward in one dimension; None when a source has none."""
    of_dimension = [s for s in scores if s.dimension == dimension]
    return combine_sources(
        work.sources[dimension],
        of_dimension,
        work.settings.select.kappa,
        work.reference.sigma.get(dimension, 0.0),
    )


def is_usable(rollout: Rollout) -> bool:
    """Whether a rollout may stand in a pair."""
    return rollout.error is None and not OUT_OF_PAIRS.intersection(rollout.flags)


def as_rollouts(
    prompt_id: str, arm: str, answers: Sequence[Answer], first: int = 0, asked: str = ""
) -> list[Rollout]:
    """Answers to the turn `asked` as rollouts with their flags; a text that came before among them
    is a duplicate."""
    seen: set[str] = set()
    tongue = language_of(asked)
    out = []
    for i, a in enumerate(answers, first):
        found = flags(a.text, a.finish_reason) if a.error is None else ()
        if a.error is None and is_foreign(tongue, a.text):
            found = (*found, "language")
        same = normalise(a.text)
        if arm != "presample" and a.error is None and same in seen:
            found = (*found, "duplicate")
        seen.add(same)
        out.append(
            Rollout(
                prompt_id,
                arm,
                i,
                a.text,
                a.finish_reason,
                a.tokens_out,
                found,
                a.error,
                n_tokens(a.text),
            )
        )
    return out


def repeated(prompt_id: str, index: int, share: float) -> bool:
    """Whether a reference rollout is scored twice: a fixed draw by its name."""
    return seed_of("repeat", prompt_id, index) % REPEAT_UNIT < share * REPEAT_UNIT


async def _run(work: PromptContext, o: PromptResult) -> None:
    prompt, settings = o.prompt, work.settings
    if not work.reaches("presample"):
        return
    if settings.policy.engine == "recorded":
        await _run_recorded(work, o)
        return
    if settings.presample.enabled:
        o.profile, o.presample, kept = await presample(work, prompt)
        o.scores += [("presample", o.presample.rollouts[i].index, "score", s) for i, s in kept]
        if o.profile.kind not in settings.presample.accept:
            o.count("presample", **{o.profile.kind: 1})
            return
        if not goes_on(work.reference.mining, prompt.stratum or "all", prompt.prompt_id, o.profile):
            o.count("presample", over_budget=1)
            return
        o.target_dims, o.binding_dims = targets(settings, o.profile)
        o.count("presample", kept=1)
    else:
        o.target_dims = (
            tuple(settings.dimensions)
            if settings.fuse.targets == "auto"
            else tuple(settings.fuse.targets)
        )
        o.count("presample", kept=1)
    if work.reaches("fuse"):
        leaks = [r.text for r in o.presample.rollouts] if o.presample else []
        source = await work.fuser.prepare(work.ask, prompt, o.profile, o.target_dims, leaks)
        for name in in_order(settings.fuse.arms):
            await _run_arm(work, o, name, source)


async def _run_recorded(work: PromptContext, o: PromptResult) -> None:
    """The source's own answers in place of rollouts; `precomputed` rewards find their ratings by
    text."""
    o.count("presample", kept=1)
    if work.reaches("fuse"):
        o.count("fuse", kept=1)
    if not work.reaches("rollout"):
        return
    prompt = o.prompt
    arm = Arm("recorded", prompt.messages)
    arm.rollouts = as_rollouts(
        prompt.prompt_id,
        arm.name,
        [Answer(r.text, tokens_out=n_tokens(r.text)) for r in prompt.recorded],
    )
    _count_rollouts(o, arm.rollouts)
    o.arms.append(arm)
    rated = replace(
        work, ask=Rated(work.ask, {r.text: r.ratings for r in reversed(prompt.recorded)})
    )
    if work.reaches("score"):
        await _score_arm(rated, o, arm)
    if work.reaches("select"):
        await _select(rated, o, arm)


async def _run_arm(work: PromptContext, o: PromptResult, name: str, source: RewriteSource) -> None:
    messages = await _asked(work, o, name, source)
    if messages is None or not work.reaches("rollout"):
        return
    arm = Arm(name, messages)
    arm.rollouts = await _rollouts(work, o, arm)
    o.arms.append(arm)
    if work.reaches("score"):
        await _score_arm(work, o, arm)
    if work.reaches("select"):
        await _select(work, o, arm)


async def _asked(
    work: PromptContext, o: PromptResult, name: str, source: RewriteSource
) -> Messages | None:
    """What the arm asks; None, counted, where no rewrite passed or there is no fused prompt whose
    length it could have."""
    if name == "identity":
        o.count("fuse", kept=1)
        return o.prompt.messages
    within = None
    if name in work.settings.fuse.length_matched and "fused" in work.settings.fuse.arms:
        fused = next((f.text for f in o.fusions if f.arm == "fused" and f.accepted), None)
        if fused is None:
            o.count("fuse", not_fused=1)
            return None
        within = matched(fused)
    before = o.presample if work.settings.fuse.probe else None
    messages, tries = await work.fuser.fuse(
        work.ask, source, name, within, _probe(work, name, before) if before else None
    )
    o.fusions += tries
    o.count("fuse", **({tries[-1].failed[0]: 1} if messages is None else {"kept": 1}))
    return messages


def _probe(work: PromptContext, name: str, before: Arm) -> Probe:
    """Answers to a rewrite, scored, compared with the presamples, and thrown away."""

    async def probe(messages: Messages) -> Check:
        prompt_id, n = before.rollouts[0].prompt_id, work.settings.fuse.probe
        answers = await work.ask(
            Request("policy", messages, work.sampling("policy"), f"probe:{name}", prompt_id, n)
        )
        arm = Arm(
            "probe",
            messages,
            as_rollouts(prompt_id, "probe", answers, asked=messages[-1]["content"]),
        )
        _add_rewards(
            work,
            arm,
            arm.rollouts,
            await score(work, messages, arm.rollouts, f"score:probe:{name}"),
        )
        sides = [
            (rewards, absolutes - uncertainties)
            for rewards, absolutes, uncertainties in (_sides(work, a) for a in (before, arm))
        ]
        return tried_out(sides[0], sides[1], *_floors_and_noise(work))

    return probe


def _sides(work: PromptContext, arm: Arm) -> list[NDArray[np.float64]]:
    """Rewards, levels and doubts of an arm, each N x D."""
    return [as_array(side, work.dims).T for side in (arm.rewards, arm.absolutes, arm.uncertainties)]


def _floors_and_noise(work: PromptContext) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    import numpy as np

    pass_thresholds, sigma = work.reference.pass_thresholds, work.reference.sigma
    return np.array([pass_thresholds[d] for d in work.dims]) - 1e-9, np.array(
        [sigma.get(d, 0.0) for d in work.dims]
    )


async def _rollouts(work: PromptContext, o: PromptResult, arm: Arm) -> list[Rollout]:
    n, personas = work.settings.rollout.n, work.personas or (None,)
    answers = dealt(
        await all_of(
            work.ask(
                Request(
                    "policy",
                    as_persona(arm.messages, p),
                    work.sampling("policy"),
                    f"arm:{arm.name}" + (f":{p.name}" if p else ""),
                    o.prompt.prompt_id,
                    len(range(k, n, len(personas))),
                )
            )
            for k, p in enumerate(personas)
        )
    )
    rollouts = [
        replace(r, persona=p.name) if (p := personas[i % len(personas)]) else r
        for i, r in enumerate(
            as_rollouts(o.prompt.prompt_id, arm.name, answers, asked=arm.messages[-1]["content"])
        )
    ]
    _count_rollouts(o, rollouts)
    return rollouts


def _count_rollouts(o: PromptResult, rollouts: Sequence[Rollout]) -> None:
    dropped = [
        "failed" if r.error is not None else next(f for f in r.flags if f in OUT_OF_PAIRS)
        for r in rollouts
        if not is_usable(r)
    ]
    o.count(
        "rollout",
        kept=len(rollouts) - len(dropped),
        **{reason: dropped.count(reason) for reason in sorted(set(dropped))},
    )


async def _score_arm(work: PromptContext, o: PromptResult, arm: Arm) -> None:
    scored = await score(work, arm.messages, arm.rollouts, f"score:{arm.name}", arm.anchors)
    o.scores += [(arm.name, arm.rollouts[i].index, "score", s) for i, s in scored]
    _add_rewards(work, arm, arm.rollouts, scored)
    usable = [i for i, r in enumerate(arm.rollouts) if is_usable(r)]
    whole = sum(all(arm.rewards[d][i] is not None for d in work.dims) for i in usable)
    o.count("score", kept=whole, unscored=len(usable) - whole)


async def _select(work: PromptContext, o: PromptResult, arm: Arm) -> None:
    """The selector's best pairs, each scored once more by fresh verdicts (METHOD (e), winner's
    curse)."""
    # nothing is asked: they are found when the partition is whole
    if not work.settings.select.confirm and not work.heldout:
        return
    from .candidates import candidates

    candidates(work, [(o, arm)])
    if work.settings.select.confirm and arm.pairs:
        sides = sorted({i for p in arm.pairs for i in (p.chosen, p.rejected)})
        again = await score(
            work, arm.messages, [arm.rollouts[i] for i in sides], "confirm", arm.anchors
        )
        o.scores += [(arm.name, sides[k], "confirm", s) for k, s in again]
        fresh = {sides[k]: [s for j, s in again if j == k] for k in range(len(sides))}
        arm.pairs = [_confirmed(work, p, fresh) for p in arm.pairs]
    if work.heldout:
        theirs = await second_opinion(
            work.ask, work.heldout, arm.messages, arm.rollouts, arm.pairs, o.binding_dims
        )
        o.scores += [(arm.name, i, "heldout", s) for i, s in theirs]


def _confirmed(work: PromptContext, pair: Pair, fresh: Mapping[int, Sequence[Score]]) -> Pair:
    margins: dict[str, float | None] = {}
    for d in work.dims:
        a, b = combine(work, d, fresh[pair.chosen]), combine(work, d, fresh[pair.rejected])
        margins[d] = None if a is None or b is None else a.reward - b.reward
    return Pair(
        pair.prompt_id, pair.arm, pair.chosen, pair.rejected, pair.score, pair.margins, margins
    )


def as_array(
    values: Mapping[str, Sequence[float | None]], dims: Sequence[str]
) -> NDArray[np.float64]:
    """D x N, NaN for None."""
    import numpy as np

    return np.array([[np.nan if v is None else v for v in values[d]] for d in dims], dtype=float)


def targets(
    settings: BuildSettings, profile: PromptStats
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Target dimensions (up to two that the prompt misses, weakest first) and binding ones (carried
    + targets)."""
    if settings.fuse.targets == "auto":
        weakest = sorted(
            profile.missing_dims,
            key=lambda d: (
                profile.passed[settings.dimensions.index(d)],
                settings.dimensions.index(d),
            ),
        )
        wanted = set(weakest[:2])
    else:
        wanted = set(settings.fuse.targets) - {profile.carried_dim}
    binding = wanted | ({profile.carried_dim} if profile.carried_dim else set())
    return tuple(d for d in settings.dimensions if d in wanted), tuple(
        d for d in settings.dimensions if d in binding
    )


def _profile(work: PromptContext, arm: Arm, last: int) -> tuple[PromptStats, bool]:
    """What the deciding presamples say, and whether more of them, up to `last` presamples in all,
    may be spared."""
    import numpy as np

    from ..statistics import profiles, split, undivided
    from ..statistics.adaptive import foreseen, likeliest

    dims, settings = work.dims, work.settings.presample
    rewards, absolutes, uncertainties = (side[None] for side in _sides(work, arm))
    deciding = (
        split(rewards, absolutes - uncertainties)[0]
        if settings.split
        else undivided(rewards, absolutes - uncertainties)
    )
    pass_thresholds, sigma = _floors_and_noise(work)
    profile = profiles(deciding, dims, pass_thresholds, sigma, settings)[0]
    n = len(arm.rollouts)
    if settings.step is None or n >= last:
        return profile, profile.kind != "undecided"
    prior = np.array([work.reference.prior[d] for d in dims]) if work.reference.prior else None
    chances = foreseen(
        deciding,
        (last + 1) // 2 if settings.split else last,
        pass_thresholds,
        sigma,
        settings,
        prior,
        seed=seed_of("foreseen", arm.rollouts[0].prompt_id, n),
    )
    kind, sure = likeliest(chances, settings.foresee)
    return replace(profile, kind=kind), sure >= 1 - settings.error


def _add_rewards(
    work: PromptContext, arm: Arm, rollouts: Sequence[Rollout], scored: Sequence[tuple[int, Score]]
) -> None:
    by_rollout: dict[int, list[Score]] = {}
    for i, s in scored:
        by_rollout.setdefault(i, []).append(s)
    for i in range(len(rollouts)):
        for d in work.dims:
            found = combine(work, d, by_rollout.get(i, []))
            for side, value in zip(
                (arm.rewards, arm.absolutes, arm.uncertainties),
                found or (None, None, None),
                strict=True,
            ):
                side.setdefault(d, []).append(value)


def _stage_of(o: PromptResult) -> str:
    """The stage in which a stopped prompt was."""
    if ("presample", "in") not in o.counts:
        return "presample"
    if o.arms and not o.arms[-1].rewards:
        return "score"
    accepted = o.counts["fuse", "kept"]
    return "rollout" if accepted > len(o.arms) else "select" if o.arms else "fuse"
