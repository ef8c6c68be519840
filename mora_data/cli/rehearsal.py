"""Sixteen prompts of a build, asked or rehearsed, and what each of them takes.

settings = rehearsed(settings, "planted", simulated=False)     the simulator in every role
meter = Meter(settings)     stats.on_record = meter.on_record
case = meter.case(probe, answer_tokens=300)     counts by prompt and role
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import plugins, resources
from ..engines import ROLES
from ..engines.engine import ENGINES
from ..pipeline.asking import scorer_name
from ..pipeline.judge_calibration import PROMPT_ID as TRIAL
from ..pipeline.values import Probe
from ..rewards import REWARDS, asks_model
from ..rewards import load as load_reward
from ..run import SourceCounts
from ..run.log import Record
from ..settings import GUARD_ROLE, BuildSettings, RewardSettings, RoleSettings
from ..sources.mine import as_recorded
from ..types import Request

if TYPE_CHECKING:
    from ..statistics import Floats

REQUESTS, IN, COMPUTED, OUT, CACHED, ANSWERS, SHOWN, READ, MONEY = range(9)
"""What is counted for a prompt and a role; SHOWN: answers in the requests; READ: those of them that
no earlier request has shown behind the same beginning."""

BLOCK = 16
# words, single digits and marks: near to what the tokenizers of language models do with English
_TOKEN = re.compile(r" ?[^\W\d_]+|\d|_| ?[^\w\s]+|\s+")


def rehearsed(settings: BuildSettings, world: Any, simulated: bool) -> BuildSettings:
    """The settings with the simulator in every role, and with a judge of the simulator's in place
    of rewards and checks that it can't play or that are the user's code.

    Raises:
        SettingsError: there is no such engine, or a setting of a shipped reward is wrong.
    """
    settings, _ = as_recorded(settings)
    recorded = settings.policy.engine == "recorded"
    scripted: dict[str, Any] = {"engine": "scripted", "base_url": None, "replicas": [], "use": None}

    def played(role: RoleSettings, revision: str | None = None) -> RoleSettings:
        if role.engine is not None:
            plugins.load(ENGINES, role.engine, "engine")
        return role.model_copy(update={**scripted, "revision": revision})

    def reward(dimension: str, i: int, r: RewardSettings) -> RewardSettings:
        if r.kind in ("judge", "rubric"):
            endpoint = r.endpoint and played(r.endpoint, scorer_name(dimension, i, r))
            return r.model_copy(update={"endpoint": endpoint})
        if recorded and not asks_model(r):
            return r
        if r.kind in REWARDS and r.kind != "python":
            load_reward(dimension, r, settings)  # its own settings are checked, nobody is asked
        rubrics = resources.names("templates", "judge/*.j2")
        template = dimension if f"judge/{dimension}" in rubrics else "helpful"
        # the revision keeps its requests apart from those of others with the same rubric
        own = {"engine": "scripted", "revision": f"{dimension}:{i}"}
        judge = {"kind": "judge", "template": template, "weight": r.weight, "endpoint": own}
        judge["noise"] = r.noise
        return RewardSettings.model_validate(judge)

    sources = {
        d: [reward(d, i, r) for i, r in enumerate(settings.reward_sources(d))]
        for d in settings.dimensions
    }
    heldout = settings.heldout_judge
    return settings.model_copy(
        update={
            **{name: played(settings.role(name)) for name in ROLES},
            **({"policy": settings.policy} if recorded else {}),
            "heldout_judge": heldout and played(settings.role("heldout_judge")),
            "rewards": sources,
            # a build takes these up in place of its own
            "recorded": settings.recorded
            and settings.recorded.model_copy(update={"rewards": sources}),
            "presample": settings.presample.model_copy(update={"before_prompts": None}),
            "fuse": settings.fuse.model_copy(
                update={"guard": None, "subject": None, "embedding": None}
            ),
            "limits": settings.limits.model_copy(
                update={"max_cost": None, "max_tokens": None, "max_error_share": 1.0}
            ),
            "scripted": settings.scripted.model_copy(
                update={"world": world, **({} if simulated else {"n_prompts": 0})}
            ),
            "executor": "local",
        }
    )


@dataclass(frozen=True, slots=True)
class StandIn:
    """What a real reward asks where the rehearsal asks its stand-in once.

    Attributes:
        role: whose requests they are.
        requests: 0 where it asks no model.
        bare: no rubric is around question and answer.
        shown: answers in a request.
    """

    role: str
    requests: int = 1
    bare: bool = False
    shown: int = 1


def stand_ins(settings: BuildSettings) -> dict[str, StandIn]:
    """By the role of the stand-in in `rehearsed`."""
    found = {}
    for d in settings.dimensions:
        for i, r in enumerate(settings.reward_sources(d)):
            role, options = settings.reward_role(d, r), r.options
            n = 1 if asks_model(r) else 0
            if r.kind == "pairwise":
                n = int(options.get("opponents", 4))
            if r.kind == "guard":
                n = max(len(options.get("policies", ())), 1)
            bare = r.kind in ("classifier", "guard")
            shown = 2 if r.kind == "pairwise" else 1
            if r.kind not in ("judge", "rubric"):
                found[f"reward:{d}:{i}"] = StandIn(role, n, bare, shown)
    return found


# what the prompts took


@dataclass(frozen=True, slots=True)
class Case:
    """What sixteen prompts took under one assumption.

    Attributes:
        n_prompts, rows: of the whole build.
        own, once, before: prompts x roles x counts; `once`: what is asked of the reference prompts
            alone; `before`: the numbers before fusion, as if all prompts were asked for them.
        verdicts: roles x counts, of scoring one answer for the first time.
        harm: the same, of grading the harm of one question.
        pairs: of each prompt.
    """

    n_prompts: int
    rows: int
    roles: list[str]
    own: Floats
    once: Floats
    before: Floats
    verdicts: Floats
    harm: Floats
    pairs: Floats
    sources: Sequence[SourceCounts] = ()  # of a mix


class PrefixCache:
    """What a server with prefix caching computes of the prompts that it is sent.

    A prompt is cut into blocks of 16 tokens, as vLLM does; a block is computed once for all prompts
    that are the same up to its end, what is left behind the last whole block each time. Nothing is
    forgotten.
    """

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def add(self, prompt: str) -> tuple[int, int]:
        """Tokens of a prompt, and how many of them are computed."""
        tokens = _TOKEN.findall(prompt)
        computed, so_far = len(tokens) % BLOCK, 0
        for end in range(BLOCK, len(tokens) + 1, BLOCK):
            so_far = hash((so_far, *tokens[end - BLOCK : end]))
            computed += BLOCK * (so_far not in self._seen)
            self._seen.add(so_far)
        return len(tokens), computed


class Meter:
    """Counts what a probe asks, by prompt and role; with `settings`, it is a rehearsal of them."""

    def __init__(self, settings: BuildSettings | None = None) -> None:
        self.prompts: dict[str, None] = {}
        self._stand_ins = stand_ins(settings) if settings else {}
        self._guard = settings is not None and settings.fuse.guard is not None
        self._seen: set[bytes] = set()
        self._read: set[tuple[str, str]] = set()
        self._caches: dict[str, PrefixCache] = {}
        self._counts: dict[tuple[str, str, str], list[float]] = {}
        self._harm: dict[str, list[float]] = {}

    def on_record(self, request: Request, key: bytes, record: Record) -> None:
        """A record came, of an engine or the log; once for each key."""
        if key in self._seen:
            return
        self._seen.add(key)
        if request.prompt_id == TRIAL:  # of no prompt; counted by `harm`
            return
        self.prompts[request.prompt_id] = None
        kind, _, what = request.purpose.partition(":")
        real = self._stand_ins.get(request.role) or StandIn(request.role)
        role = GUARD_ROLE if self._guard and (kind, what) == ("guard", "harm") else real.role
        texts = [m["content"] for m in request.messages]
        n_in, n_out, cached = record.tokens
        if real.bare:
            n_in = n_in * len(texts[-1]) // max(sum(map(len, texts)), 1)
            texts = texts[-1:]
        sent, computed = self._caches.setdefault(role, PrefixCache()).add("\n".join(texts))
        of_policy = role == "policy"
        scores = kind in ("score", "repeat", "confirm") and not of_policy
        shown = real.shown if scores else 0
        # the last line may name the dimension, behind an answer that is in the cache by then
        read = (role, "\n".join(texts).rpartition("\n")[0])
        is_new = read not in self._read
        self._read.add(read)
        numbers = (
            1,
            n_in,
            n_in * computed / max(sent, 1),
            n_out,
            cached,
            len(record.answers) if of_policy else 0,
            shown,
            shown if is_new else 0,
        )
        stage = "before" if "before" in (kind, what) else kind
        totals = [self._counts.setdefault((request.prompt_id, role, stage), [0.0] * MONEY)]
        if (kind, what) == ("guard", "harm"):
            totals.append(self._harm.setdefault(role, [0.0] * MONEY))
        for total in totals:
            for i, n in enumerate(numbers):
                total[i] += n * (1 if of_policy else real.requests)

    def case(
        self,
        probe: Probe,
        answer_tokens: float | None = None,
        size: float = 1.0,
        before_share: float = 1.0,
    ) -> Case:
        """The counts, of the finished prompts where there are any; with answers `answer_tokens`
        long, and prompts of `size` tokens for one that was counted. `before_share`: of the prompts,
        those that were asked for the numbers before fusion."""
        import numpy as np

        ids = [p for p in self.prompts if p in probe.pairs] or list(self.prompts)
        roles = list(dict.fromkeys(role for _, role, _ in self._counts))
        shape = max(len(ids), 1), len(roles), MONEY + 1
        own, once, before = (np.zeros(shape) for _ in range(3))
        verdicts, harm = (np.zeros((len(roles), MONEY + 1)) for _ in range(2))
        for role, numbers in self._harm.items():
            harm[roles.index(role), :MONEY] = np.array(numbers) / numbers[REQUESTS]
        place = {p: i for i, p in enumerate(ids)}
        for (prompt_id, role, kind), numbers in self._counts.items():
            if prompt_id in place:
                r, side = roles.index(role), {"repeat": once, "before": before}.get(kind, own)
                side[place[prompt_id], r, :MONEY] += numbers
                if kind == "score":
                    verdicts[r, :MONEY] += numbers
        before /= before_share
        answers = own[..., ANSWERS].sum()
        for counts in (own, once, before, verdicts):
            counts[..., [IN, COMPUTED]] *= size
        if answer_tokens is not None and answers:
            said = (own + before)[:, roles.index("policy")].sum(0)
            more = answer_tokens - said[OUT] / said[ANSWERS]
            for counts in (own, once, before, verdicts):
                counts[..., OUT] += more * counts[..., ANSWERS]
                counts[..., IN] += size * more * counts[..., SHOWN]
                counts[..., COMPUTED] += size * more * counts[..., READ]
        pairs = np.array([probe.pairs.get(p, 0) for p in ids] or [0], float)
        first = verdicts / max(answers, 1)
        return Case(
            *(probe.prompts, probe.rows, roles, own, once, before, first, harm, pairs),
            probe.sources,
        )
