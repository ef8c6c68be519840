"""Intent fusion: the rewriter makes one question that needs several virtues; checks decide, failed
ones are named on retry.

    rewriter = Rewriter(settings)
    source = await rewriter.prepare(ask, prompt, stats, target_dims, rollouts)
    messages, attempts = await rewriter.fuse(ask, source, "fused")
    control, more = await rewriter.fuse(ask, source, "single", matched(messages[-1]["content"]))
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from .. import plugins
from ..errors import SettingsError
from ..resources import Secret, inert, load_template, quoted
from ..rewards import Ask
from ..run.tasks import all_of
from ..settings import BuildSettings
from ..sources.benchmarks import Benchmarks
from ..sources.mine import benchmarks_of
from ..text import n_tokens, seed_of, tongue_of
from ..types import Answer, Message, Messages, Prompt, Request, Sampling
from . import checks
from .checks import Budget, cosine, folder_hash
from .guard import RULES, RewriteGuard
from .intents import Intent, load_intents, premise_for, worked_examples
from .reply import SCHEMA, Rewrite, parse_rewrite

if TYPE_CHECKING:
    from ..statistics.rollouts import PromptStats

VARIABLES = frozenset(
    "prompt history carried_dim target_dims dim_specs asks examples category style budget language"
    " forbidden n_candidates feedback premise nonce".split()
)
AGAIN = "Once more:"
MAX_SHOWN = 800  # characters of a failed reply that the next attempt is shown
Similarity = Callable[[str, str], float]
Probe = Callable[[Messages], Awaitable[checks.Check]]
STYLES = {
    "register": ("plain", "chatty", "careful", "brisk", "polite", "matter-of-fact"),
    "persona": (
        "nobody in particular",
        "a parent",
        "a beginner",
        "somebody with little time",
        "a neighbour",
        "a student",
        "somebody who tried before",
        "a volunteer in a club",
        "somebody who plans ahead",
    ),
    "form": (
        "one question",
        "a question with a second half",
        "a situation, then a question",
        "a request",
    ),
    "length": ("as short as it can be", "a sentence or two", "two or three sentences"),
}


@dataclass(frozen=True, slots=True)
class RewriteSource:
    """A prompt and what its rewrites are compared with.

    Attributes:
        rollouts: answers to it, none of which a rewrite may carry.
        harm: how harmful its request is, in [0, 1]; None where that is not measured.
        risky: it asks for something harmful, so that a fused form may not ask for the same.
        harm_rule: what a rewrite is refused for harm by, of `guard.RULES`.
    """

    prompt: Prompt
    carried_dim: str | None
    target_dims: tuple[str, ...]
    rollouts: Sequence[str]
    harm: float | None
    risky: bool
    harm_rule: str = RULES[0]

    @property
    def wanted_dims(self) -> tuple[str, ...]:
        """What a good answer to the fused prompt has to attend to."""
        if not self.carried_dim or self.carried_dim in self.target_dims:
            return self.target_dims
        return (self.carried_dim, *self.target_dims)


@dataclass(frozen=True, slots=True)
class RewriteAttempt:
    """One rewrite and what the checks said; `reply` is what it stood in."""

    arm: str
    attempt: int
    candidate: int
    text: str
    checks: tuple[checks.Check, ...]
    accepted: bool = False
    reply: str = ""

    @property
    def failed(self) -> tuple[str, ...]:
        """The checks that it failed."""
        return tuple(c.name for c in self.checks if not c.passed)

    def rank(self) -> tuple[float, float, int]:
        """Best first: intent score, subject recall, shorter."""
        values = {c.name: c.value for c in self.checks if c.value is not None}
        intent = sum(v for name, v in values.items() if name.startswith("intent_"))
        return -intent, -values.get("subject", 0.0), n_tokens(self.text)


class Rewriter:
    """Fuses prompts with the templates of the settings' arms; rewrites are compared with
    `benchmarks`, or those of the settings.

    Raises:
        SettingsError: a template or an intents file is missing or wrong, or `fuse.subject` can't be
            loaded.
    """

    def __init__(
        self,
        settings: BuildSettings,
        benchmarks: Benchmarks | None = None,
        secret: Secret | None = None,
    ) -> None:
        self._settings = settings
        self._secret = secret or Secret()
        own = settings.fuse.templates
        rewritten = [a for a in settings.fuse.arms if a != "identity"]
        self._specs = load_intents(settings.dimensions, settings.fuse.intents) if rewritten else {}
        self.templates = {
            arm: load_template("fuse", own.get(arm, arm), VARIABLES, ["prompt"], self._sample())
            for arm in rewritten
            if arm != "concat"
        }
        self.intents_sha256 = {
            d: hashlib.sha256(repr(spec).encode()).hexdigest() for d, spec in self._specs.items()
        }
        self.guard = RewriteGuard(settings, self._specs, self._secret)
        embedding = settings.fuse.embedding if rewritten else None
        self._similarity: Similarity | None = cosine(embedding) if embedding else None
        self.code_hashes: dict[str, str] = {}  # by setting
        if rewritten and settings.fuse.subject:
            subject = plugins.load({}, settings.fuse.subject, "fuse.subject")
            if not callable(subject.target):  # it is imported before anything is asked
                raise SettingsError(f"fuse.subject {subject.name!r} is no function of two texts")
            self._similarity = lambda x, y: subject.call(x, y, gives=float)
            self.code_hashes["fuse.subject"] = subject.code_hash
        if embedding and Path(embedding).is_dir():
            self.code_hashes["fuse.embedding"] = folder_hash(Path(embedding))
        benchmarks = (benchmarks or benchmarks_of(settings)) if rewritten else Benchmarks({})
        self.compared = dict(benchmarks.at_hand)  # benchmarks that rewrites are compared with
        self._contaminated = (
            (lambda text: benchmarks.overlap(text) is not None) if benchmarks.at_hand else None
        )

    def _sample(self) -> dict[str, object]:
        """What a template is tried on: of its variables those that are no texts."""
        dims = self._settings.dimensions[:2]
        wanted = [self._specs[d] for d in dims]
        asks = [i.ask[0] for i in wanted]
        return {
            "carried_dim": None,
            "target_dims": dims,
            "dim_specs": self._specs,
            "asks": asks,
            "examples": worked_examples(wanted, asks),
            "category": None,
            "style": {k: v[0] for k, v in STYLES.items()},
            "budget": {"min": 20, "max": 40},
            "forbidden": self._settings.fuse.forbidden,
            "n_candidates": self._settings.fuse.candidates,
            "feedback": [],
            "premise": None,
        }

    async def prepare(
        self,
        ask: Ask,
        prompt: Prompt,
        stats: PromptStats | None,
        target_dims: tuple[str, ...],
        rollouts: Sequence[str],
        harm_rule: str = RULES[0],
    ) -> RewriteSource:
        """The prompt, with its harm measured where `fuse.checks` and the rule say so; else
        conflicting presamples mark it as risky."""
        harm = None
        if self.templates and harm_rule != "off":
            harm = await self.guard.harm(ask, prompt.prompt_id, prompt.messages)
        conflict = (
            stats is not None
            and stats.kind == "conflict"
            and "harmless" in (stats.carried_dim, *target_dims)
        )
        return RewriteSource(
            prompt,
            stats.carried_dim if stats else None,
            target_dims,
            rollouts,
            harm,
            self.guard.is_risky(harm, harm_rule) if harm is not None else conflict,
            harm_rule,
        )

    async def fuse(
        self,
        ask: Ask,
        source: RewriteSource,
        arm: str,
        within: checks.Budget | None = None,
        probe: Probe | None = None,
    ) -> tuple[Messages | None, list[RewriteAttempt]]:
        """The rewritten conversation, or None when no try passed; with every try and what the
        checks said.

        `within` is the length of a control; without it, the length follows from the prompt's own.
        `probe` tries out what passes.
        """
        budget = within or checks.budget(source.prompt.text)
        if arm == "concat":
            return self._concat(source, within)
        tries: list[RewriteAttempt] = []
        failed: RewriteAttempt | None = None
        for attempt in range(self._settings.fuse.retries + 1):
            asked, examples = self._render(source, arm, attempt, budget, failed)
            sampling, purpose = self._sampling(attempt), f"fuse:{arm}:{attempt}"
            n, prompt_id = self._settings.fuse.candidates, source.prompt.prompt_id
            answers = await ask(Request("rewriter", asked, sampling, purpose, prompt_id, n))
            limits = self._limits(source, arm, budget, examples)
            found = await all_of(
                self._checked(ask, source, arm, limits, answer, probe) for answer in answers
            )
            made = [
                RewriteAttempt(arm, attempt, i, text, tuple(said), reply=answer.text)
                for i, (answer, (text, said)) in enumerate(zip(answers, found, strict=True))
            ]
            best = min((c for c in made if not c.failed), key=RewriteAttempt.rank, default=None)
            tries += [replace(c, accepted=c is best) for c in made]
            if best is not None:
                return _asked_instead(source.prompt, best.text), tries
            failed = min(made, key=lambda c: len(c.failed))
        return None, tries

    async def _checked(
        self,
        ask: Ask,
        source: RewriteSource,
        arm: str,
        limits: checks.Limits,
        answer: Answer,
        probe: Probe | None,
    ) -> tuple[str, list[checks.Check]]:
        """The rewrite in one reply, checked by the rules, where they pass it by the judge, and at
        last by its answers."""
        if answer.error is not None:
            return "", [checks.Check("rewriter_failed", False, None, answer.error)]
        rewrite = parse_rewrite(answer.text, answer.finish_reason)
        found = checks.check(source.prompt, rewrite, limits)
        text = rewrite.text if isinstance(rewrite, Rewrite) else rewrite
        messages = _asked_instead(source.prompt, text)
        if all(c.passed for c in found) and not self._is_control(arm):
            found += await self.guard.targets(
                ask, source.prompt.prompt_id, messages, source.target_dims
            )
        if self._settings.fuse.checks and all(c.passed for c in found):
            wanted = () if self._is_control(arm) else source.wanted_dims
            found += await self.guard.check(
                ask, source.prompt.prompt_id, messages, wanted, source.harm, source.harm_rule
            )
        if probe is not None and all(c.passed for c in found):
            found.append(await probe(messages))
        return text, found

    def _limits(
        self,
        source: RewriteSource,
        arm: str,
        budget: checks.Budget,
        examples: Sequence[frozenset[str]],
    ) -> checks.Limits:
        premise = premise_for(source.prompt.text, self._specs.values())
        return checks.Limits(
            budget,
            source.rollouts,
            examples,
            source.risky and not self._is_control(arm),
            self._settings.fuse.forbidden,
            premise.claim if premise else "",
            self._similarity,
            self._contaminated,
        )

    def _is_control(self, arm: str) -> bool:
        """A control adds no need: it may ask for what the original asks for, but for no more
        harm."""
        return arm in self._settings.fuse.length_matched

    def _sampling(self, attempt: int) -> Sampling:
        role = self._settings.role("rewriter")
        temperature = max(role.temperature, min(1.0, role.temperature + 0.2 * attempt))
        return Sampling(temperature, role.top_p, role.max_tokens, tuple(role.stop), SCHEMA)

    def _render(
        self,
        source: RewriteSource,
        arm: str,
        attempt: int,
        budget: checks.Budget,
        failed: RewriteAttempt | None,
    ) -> tuple[Messages, list[frozenset[str]]]:
        """The request, with what failed in the attempt before as further turns; and the subjects of
        the worked examples in it."""
        prompt, seed = source.prompt, self._settings.seed
        style = {
            k: v[seed_of(seed, prompt.prompt_id, k, attempt) % len(v)] for k, v in STYLES.items()
        }
        wanted = [self._specs[d] for d in source.target_dims]
        wording = seed_of(seed, prompt.prompt_id)
        asks = [i.ask[wording % len(i.ask)] for i in wanted]
        shown = quoted(self._secret, prompt.messages)
        premise = premise_for(prompt.text, wanted)
        feedback = checks.feedback(failed.checks) if failed else []
        messages = self.templates[arm].render(
            {
                "prompt": shown["question"],
                "history": shown["history"],
                "carried_dim": source.carried_dim,
                "target_dims": list(source.target_dims),
                "dim_specs": self._specs,
                "asks": asks,
                "examples": worked_examples(wanted, asks),
                "category": prompt.category,
                "style": style,
                "budget": {"min": budget.min, "max": budget.max},
                "language": tongue_of(prompt.text).capitalize()
                or "the language of the original question",
                "forbidden": self._settings.fuse.forbidden,
                "n_candidates": self._settings.fuse.candidates,
                "feedback": feedback,
                "premise": premise,
                "nonce": shown["nonce"],
            }
        )
        examples = checks.example_subjects(messages)
        if failed and failed.reply:
            asked = messages[-1]["content"]
            messages += (
                Message(role="assistant", content=inert(failed.reply[:MAX_SHOWN])),
                Message(role="user", content=f"{inert(feedback[0])} {AGAIN}\n{asked}"),
            )
        return messages, examples

    def _concat(
        self, source: RewriteSource, within: checks.Budget | None
    ) -> tuple[Messages | None, list[RewriteAttempt]]:
        """No model: the questions that are joined are shipped ones. Only the length is checked."""
        text = concat(
            source.prompt.text, source.target_dims, self._specs, within, self._settings.seed
        )
        n = n_tokens(text)
        passed = within is None or within.min <= n <= within.max
        check = checks.Check("length", passed, float(n))
        tried = RewriteAttempt("concat", 0, 0, text, (check,), accepted=passed)
        return _asked_instead(source.prompt, text) if passed else None, [tried]


def _asked_instead(prompt: Prompt, text: str) -> Messages:
    """The prompt's conversation with another last turn."""
    return (*prompt.messages[:-1], Message(role="user", content=text))


# Arms: ways from one mined prompt to what is asked; samples, judge and selector are the same.
#     identity   the prompt itself, freshly sampled
#     single     more detail on the need that it has already
#     generic    longer and clearer
#     random     something unrelated to ask for besides
#     concat     questions of other subjects joined to it, unfused
#     fused      several needs in one question
# Controls keep to the length of the accepted fused prompt, +-15 %, so they run after it.

TOLERANCE = 0.15
JOINER = "And something else:"


def in_run_order(arms: Sequence[str]) -> list[str]:
    """The arms as they are run: fused before those that follow its length."""
    return sorted(arms, key=lambda arm: arm != "fused")


def matched_length(text: str) -> Budget:
    """Length of a control of a prompt whose fused form is `text`."""
    n = n_tokens(text)
    return Budget(math.ceil((1 - TOLERANCE) * n), math.floor((1 + TOLERANCE) * n))


def concat(
    prompt: str,
    target_dims: Sequence[str],
    specs: Mapping[str, Intent],
    within: Budget | None,
    seed: int,
) -> str:
    """The prompt, and behind it a question of another subject for each target dimension, joined
    without fusion.

    Of all combinations, the one nearest to the middle of `within`; where none is in it, one target
    has to do. Among equals, and without `within`, `seed` draws.

    Raises:
        SettingsError: a target dimension has no such questions.
    """
    for d in target_dims:
        if not specs[d].alone:
            raise SettingsError(
                f"arm concat needs questions of dimension {d!r}: add `alone` to"
                f" templates/intents/{d}.yaml"
            )
    best = prompt
    for dims in ((tuple(target_dims),), [(d,) for d in target_dims]):
        texts = [
            " ".join([prompt.strip(), *(f"{JOINER} {q}" for q in questions)])
            for some in dims
            for questions in product(*(specs[d].alone for d in some))
        ]
        best = min(texts, key=lambda t: (_distance(t, within), seed_of(seed, t)), default=prompt)
        if within is None or within.min <= n_tokens(best) <= within.max:
            break
    return best


def _distance(text: str, within: Budget | None) -> float:
    return 0.0 if within is None else abs(n_tokens(text) - (within.min + within.max) / 2)
