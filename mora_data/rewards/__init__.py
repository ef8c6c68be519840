"""Reward sources: a prompt and its answers to scores, higher is better.

A new one is a class with the methods of `Reward` and a line in `REWARDS`, or a dotted path
`module:Class` in the YAML. What it needs to be told it declares as a nested `Settings` model; the
build makes it as `Class(dimension, options, context)`, options being an instance of that model.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import isawaitable
from numbers import Real
from typing import Any, Protocol, get_args

from .. import plugins
from ..errors import MoraError, PendingRetry, SettingsError
from ..resources import Secret
from ..run.limiter import ConcurrencyLimiter
from ..settings import BuildSettings, RewardSettings, RoleSettings
from ..settings.roles import CalibrationKind
from ..text import one_line
from ..types import Answer, Messages, Request, Role, Score

REWARDS = {
    "judge": "mora_data.rewards.judge:Judge",
    "pairwise": "mora_data.rewards.pairwise:Pairwise",
    "rubric": "mora_data.rewards.rubric:Rubric",
    "classifier": "mora_data.rewards.classifier:Classifier",
    "guard": "mora_data.rewards.guard:Guard",
    "python": "mora_data.rewards.function:Function",
    "precomputed": "mora_data.rewards.precomputed:Precomputed",
    "rules": "mora_data.rewards.rules:Rules",
}


@dataclass(frozen=True, slots=True)
class RewardContext:
    """What a reward source is told of the build that it scores for.

    Attributes:
        role: the role that it asks as: its own endpoint's, else the judge.
        model: that role's sampling parameters.
        seed: the run's.
        secret: of the nonces; see `resources.quoted`.
        suffix: `@model` where it has a model of its own, to sign its scores with.
        recorded: the answers are the source's own.
    """

    role: Role
    model: RoleSettings
    seed: int
    secret: Secret = field(default_factory=Secret)
    suffix: str = ""
    recorded: bool = False


CALIBRATIONS = get_args(CalibrationKind)


class Reward(Protocol):
    """One source of reward for one dimension.

    Attributes:
        dimension: the dimension it scores.
        name: how its scores are signed.
        pass_threshold: in [0, 1]; None where no threshold means the same for two prompts
            (Bradley-Terry scores).
        calibration: how its raw scores become values. identity, likert, sigmoid: it gives values
            itself; ecdf, robust_z,
            anchored: its values are None with the reason "uncalibrated", and a chart maps `raw`
                (rewards/calibration.py).
        step: smallest difference its scale can show, in [0, 1]; 0 for a continuous scale.
        fingerprint: hash of what it does beyond its code and its settings, as of the template that
            it reads; empty where there is nothing.
    """

    dimension: str
    name: str
    pass_threshold: float | None
    calibration: str
    step: float
    fingerprint: str

    async def scores(
        self, ask: Ask, prompt_id: str, messages: Messages, answers: Sequence[str], purpose: str
    ) -> list[Score]:
        """A score for each answer to the conversation, in order; value None with a reason where
        there is none.

        `purpose` begins with score, repeat or confirm; the last two must be fresh measurements.
        """


def asks_model(reward: RewardSettings) -> bool:
    """Whether a reward asks a model, as its class says; one that says nothing does."""
    target = plugins.load(REWARDS, reward.kind, "rewards").target
    return bool(getattr(target, "asks_model", True))


def load(
    dimension: str,
    settings: RewardSettings,
    build: BuildSettings,
    role: Role | None = None,
    secret: Secret | None = None,
) -> Reward:
    """The reward source that the settings name, with its own settings checked; `role` is whom it
    asks, by default its own endpoint, else the judge. A run that is to be resumed gives its own
    `secret`.

    Raises:
        SettingsError: there is none, or one of its settings is wrong.
    """
    plugin = plugins.load(REWARDS, settings.kind, f"rewards.{dimension}")
    options = plugin.options(settings.options, RewardSettings.model_fields)
    role = role or build.reward_role(dimension, settings)
    model = settings.endpoint.model if settings.endpoint else None
    context = RewardContext(
        role,
        build.role(role),
        build.seed,
        secret or Secret(),
        f"@{model.rpartition('/')[2]}" if model else "",
        build.policy.engine == "recorded",
    )
    needs = ("dimension", "name", "step", "scores")
    reward: Reward = plugin.call(dimension, options, context, needs=needs)
    if settings.endpoint is not None and not asks_model(settings):
        raise SettingsError(
            f"rewards.{dimension}.endpoint: {settings.kind} asks no model: leave it out"
        )
    faults = {
        "step": reward.step is None or not _is_threshold(reward.step),
        "pass_threshold": not _is_threshold(getattr(reward, "pass_threshold", None)),
        "calibration": getattr(reward, "calibration", "identity") not in CALIBRATIONS,
    }
    for name in (name for name, is_fault in faults.items() if is_fault):
        raise SettingsError(
            f"rewards.{dimension}: {name} of {settings.kind} is {getattr(reward, name)!r}: step is"
            " from 0 to 1, pass_threshold, too, or None, calibration one of"
            f" {', '.join(CALIBRATIONS)}"
        )
    return reward


def _is_threshold(value: object) -> bool:
    return value is None or (isinstance(value, Real) and 0 <= float(value) <= 1)


def missing(reward: Reward, reason: str, raw: float | None = None, may_pass: bool = False) -> Score:
    """The score of an answer that has no value, for a reason."""
    return Score(reward.dimension, reward.name, None, raw, reason, may_pass=may_pass)


# What a reward source asks through: models by requests, and its own servers by cached calls

NOT_RATED, NO_OPPONENT = "not_rated", "no_opponent"  # nothing to score by, which is no failure
UNCALIBRATED = "uncalibrated"
"""Reason of a score that has a raw number and no value yet: the source has no scale of its own."""


class Ask(Protocol):
    """The one way to ask: first the answer log, then whoever answers."""

    async def __call__(self, request: Request) -> list[Answer]:
        """The request's answers in index order."""

    async def cached(
        self, key: Any, call: Callable[[], Awaitable[Any]], prompt_id: str = ""
    ) -> Any:
        """The JSON value of `call`, from the answer log where the same `key` is there; it is kept
        with the prompt."""


@dataclass(frozen=True, slots=True)
class RewardClient:
    """`Ask` for one reward source and one purpose.

    Attributes:
        cache_key: of the source; together with the purpose it is part of every key.
        limiter: of the source's own calls.
        ratings: of the prompt's recorded answers, by text.
        prompt_id: of the prompt that it scores for.
    """

    ask: Ask
    cache_key: str
    purpose: str
    limiter: ConcurrencyLimiter
    ratings: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    prompt_id: str = ""

    async def __call__(self, request: Request) -> list[Answer]:
        """The request's answers in index order; see `engines.cached_client`."""
        return await self.ask(request)

    async def cached(
        self, key: Any, call: Callable[[], Awaitable[Any]], prompt_id: str = ""
    ) -> Any:
        """The JSON value that `call()` returns, logged: the next run gets it without a call.

        `key` is a JSON value that names everything in the call that can change its outcome. The
        source's code and settings, the prompt's purpose (first score, repeat, confirmation) are
        part of the key already. What `call` raises passes through and is not logged.
        """

        async def limited() -> Any:
            permit = await self.limiter.take()
            try:
                return await call()
            finally:
                self.limiter.free(permit)

        key = [self.cache_key, self.purpose, key]
        return await self.ask.cached(key, limited, prompt_id or self.prompt_id)


async def scores_of(
    reward: Reward, ask: RewardClient, messages: Messages, answers: Sequence[str]
) -> list[Score]:
    """The reward's scores of the answers. What its code raises, or gives in place of scores, is the
    reason of missing ones, which may pass: a server that is down, code that gets corrected.

    Raises:
        MoraError: the run can't go on.
        PendingRetry: what it asked can't be had now.
    """
    try:
        asked = reward.scores(ask, ask.prompt_id, messages, answers, ask.purpose)
        found = await asked if isawaitable(asked) else asked
        reason = _not_scores(found, reward.dimension)
    except (MoraError, PendingRetry):
        raise
    except plugins.FAULTS as e:
        reason = f"raised {type(e).__name__}: {one_line(e, 160)}"
    if not reason:
        return [_plain(score) for score in found]
    return [missing(reward, reason, may_pass=True)] * len(answers)


def _plain(score: Score) -> Score:
    """With numbers of Python, since numpy's have no JSON, and a reason where there is none."""
    value, raw = score.value, score.raw
    if value is None and raw is None:
        return score if score.reason else replace(score, reason="no_score")
    if {type(value), type(raw)} <= {float, type(None)}:
        return score
    value, raw = (None if x is None else float(x) for x in (value, raw))
    return replace(score, value=value, raw=raw)


def _not_scores(found: object, dimension: str) -> str:
    """Why this is no list of scores; empty where it is one."""
    if not isinstance(found, (list, tuple)):
        return f"gave {type(found).__name__} in place of scores"
    for score in found:
        if not isinstance(score, Score):
            return f"gave {type(score).__name__} in place of a score"
        if score.dimension != dimension:
            return f"gave a score of {score.dimension!r} in place of {dimension!r}"
        for number in (score.value, score.raw):
            if number is not None and not isinstance(number, Real):
                return f"gave a score of {type(number).__name__} in place of a number"
    return ""
