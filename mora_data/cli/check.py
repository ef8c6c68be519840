"""What an endpoint takes and how fast it is, found out before anything is built: `mora-data check`.

    mora-data check --base-url http://127.0.0.1:8000/v1
    mora-data check --source builder.yaml

Seven short requests, and as many at once as the concurrency. They go the way of a build's requests,
so what is worked around here is worked around there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import yaml

from ..engines import ROLES, resolve
from ..engines.engine import Shared, encode, endpoint_key
from ..engines.openai import HttpEngine, open_openai
from ..engines.replicas import listed_models
from ..errors import PendingRetry, SettingsError
from ..rewards.judge import SCHEMA, verdict
from ..run.log import Record
from ..run.stats import RunStats
from ..run.tasks import run_to_end
from ..settings import BuildSettings, RoleSettings
from ..text import one_line
from ..types import Message, Request, Sampling

AT_ONCE = 8  # where no concurrency is set
CHARS_PER_TOKEN = 1.5  # fewer than English has with any tokenizer
SURPLUS = 12  # tokens, the end of a turn and a few that are not printed
NO_THOUGHTS = "none seen"
WORDS = 48  # tokens of an answer whose speed is measured
_SYSTEM = Message(role="system", content="You grade answers.")
_GRADE = Message(
    role="user",
    content='How helpful is the answer "Tea is a drink." to "What is tea?", from 1 to 5? Reply with'
    ' one JSON object, {"score": n}, and nothing else.',
)
_HISTORY = (
    Message(role="user", content="What is tea?"),
    Message(role="assistant", content="A drink."),
    Message(role="user", content="Is it drunk hot? Answer in one word."),
)
_SPEAK = Message(role="user", content="Write a hundred words about the sea.")
JUDGED = Request(
    "judge",
    (_SYSTEM, _GRADE),
    Sampling(0.0, 0.95, 64, ("###",), SCHEMA, thoughts=True),
    "check",
    "c",
)


class Timed(NamedTuple):
    """A record, the seconds that it took, and why it is none where it is none."""

    record: Record
    seconds: float
    error: str

    @property
    def text(self) -> str:
        return self.record.answers[0].text if self.record.answers else ""

    def surplus(self) -> float:
        """Tokens beyond what the texts of the answers can have taken."""
        shown = sum(len(a.text) + len(a.thought or "") for a in self.record.answers)
        return self.record.tokens[1] - shown / CHARS_PER_TOKEN


@dataclass(frozen=True, slots=True)
class Checked:
    """What is known of one endpoint and model.

    Attributes:
        roles: that ask it.
        found: what was looked at, and what came of it.
        around: what a build works around by itself.
        cannot: what it can't, each with the setting.
        settings: to be copied into a builder, by role.
    """

    roles: tuple[str, ...]
    url: str
    model: str
    found: Mapping[str, str]
    around: tuple[str, ...]
    cannot: tuple[str, ...]
    settings: Mapping[str, Mapping[str, object]]

    def lines(self) -> list[str]:
        """As a table."""
        rows = [f"  {name:<16} {value}" for name, value in self.found.items()]
        rows += [f"  {'worked around':<16} {line}" for line in self.around or ("nothing",)]
        rows += [f"  {'to be set':<16} {line}" for line in self.cannot or ("nothing",)]
        tree = yaml.safe_dump(dict(self.settings), sort_keys=False).rstrip()
        return [f"{', '.join(self.roles)}: {self.model} at {self.url}", *rows, "", tree, ""]


def check_models(
    build: BuildSettings, roles: tuple[str, ...], say: Callable[[str], None]
) -> Iterator[Checked]:
    """Each endpoint of `roles`, of all roles of the build where none is named, one after the other;
    `say` prints a line while it is waited for.

    Raises:
        SettingsError: a role has no endpoint, or its model is not clear.
        EndpointError: it can't be used at all.
    """
    heldout = ("heldout_judge",) if build.heldout_judge is not None else ()
    alike: dict[str, tuple[list[str], RoleSettings]] = {}
    for name in roles or (*ROLES, *build.more_roles(), *heldout):
        role = resolve(build.role(name), sample=False)
        if role.engine == "openai":
            key = f"{endpoint_key(role)} {role.model} {role.extra_body} {role.system}"
            alike.setdefault(key, ([], role))[0].append(name)
    if not alike:
        raise SettingsError("no role asks an endpoint, so there is nothing to check")
    for names, role in alike.values():
        yield run_to_end(_check(tuple(names), role, build, say))


async def _check(
    roles: tuple[str, ...], role: RoleSettings, build: BuildSettings, say: Callable[[str], None]
) -> Checked:
    listed = await asyncio.to_thread(listed_models, role.base_url or "", role)
    stats = RunStats()
    engine = open_openai(role, build, stats, Shared(log=say))
    at_once = role.concurrency if "concurrency" in role.model_fields_set else AT_ONCE
    try:
        say(f"asking {engine.model} at {engine.endpoint.url}")
        judged = await _ask(engine, JUDGED)
        sampled = await _ask(engine, _spoken(8, 1), 3)
        turns = await _ask(engine, replace(JUDGED, messages=_HISTORY, sampling=_sampling(8)))
        likely = await _ask(engine, replace(JUDGED, sampling=replace(JUDGED.sampling, logprobs=5)))
        alone = await _ask(engine, _spoken(WORDS, 2))
        begun = time.monotonic()
        many = await asyncio.gather(*(_ask(engine, _spoken(WORDS, 3 + i)) for i in range(at_once)))
        together_s = time.monotonic() - begun
    finally:
        await engine.close()
    dialect = engine.learner.dialect
    probs = likely.record.answers[0].logprobs if likely.record.answers else None
    usage = alone.record.tokens[1] > 0
    score, why = verdict(judged.record.answers[0]) if judged.record.answers else (None, "no reply")
    silent = any(r.record.tokens[1] and not r.text for r in (judged, sampled, alone))
    thoughts = _thoughts((judged, sampled, turns, alone), silent)
    n = len(sampled.record.answers)
    spoken = sum(r.record.tokens[1] for r in many)
    taken = ("temperature", "top_p", dialect.tokens_field, "seed", "stop")
    found = {
        "models listed": "no list" if listed is None else _some(listed),
        "answers as": ", ".join(dialect.answers_as) or engine.model,
        "parameters": ", ".join(name for name in taken if name not in dialect.without),
        "n": f"{n} of 3 choices in one request" if dialect.many else "one choice a request",
        "verdict": f"read: {score}" if score is not None else f"not read ({why}): {_cut(judged)}",
        "turns": _cut(turns),
        "thoughts": thoughts,
        "usage": "reported" if usage else "not reported",
        "logprobs": "with alternatives" if probs and probs[0][1] else "none",
        "latency": f"{sampled.seconds:.2f} s for 8 tokens",
        "tokens/s": f"{_rate(alone.record.tokens[1], alone.seconds)} alone,"
        f" {_rate(spoken, together_s)} with {at_once} at once",
        "retries": ", ".join(f"{k}: {v}" for k, v in stats.retries.items()) or "none",
    }
    settings: dict[str, object] = {"base_url": role.base_url, "model": engine.model}
    settings["concurrency"] = at_once
    cannot = []
    if dialect.many and n < 3:
        settings["n_per_request"] = 1
        cannot.append("n is ignored: n_per_request: 1 saves the requests that find it out")
    if score is None:
        cannot.append("no verdict is read: another judge, or a larger judge.max_tokens")
    if silent:
        cannot.append(
            "thoughts use up the answer: raise max_tokens, or turn thinking off by extra_body"
        )
    elif thoughts != NO_THOUGHTS:
        cannot.append("thoughts count: every max_tokens needs room for them")
    if not usage:
        cannot.append("no usage: limits.max_tokens and max_cost can't count what it does")
    failed = {r.error for r in (judged, sampled, turns, likely, alone, *many) if r.error}
    cannot += [f"a request failed: {error}" for error in sorted(failed)]
    return Checked(
        roles,
        engine.endpoint.url,
        engine.model,
        found,
        tuple(dialect.lines()),
        tuple(cannot),
        {r: dict(settings) for r in roles},
    )


async def _ask(engine: HttpEngine, request: Request, n: int = 1) -> Timed:
    body = encode(request, engine.model, engine.extra)
    request = replace(request, n=min(n, engine.n_per_request))
    begun = time.monotonic()
    try:
        record = await engine.send(request, body, len(request.prompt_id), lambda r: None)
    except PendingRetry as e:
        return Timed(Record(request.n, ()), time.monotonic() - begun, one_line(e))
    error = record.answers[0].error or ""
    return Timed(record, time.monotonic() - begun, one_line(error))


def _sampling(max_tokens: int) -> Sampling:
    return Sampling(0.7, 0.95, max_tokens, thoughts=True)


def _thoughts(replies: Sequence[Timed], silent: bool) -> str:
    """Where thoughts were seen; of those that the server keeps to itself, only tokens are."""
    if silent:
        return "hidden, all of max_tokens"
    if any(a.thought for r in replies for a in r.record.answers):
        return "told from the answer"
    most = max(replies, key=Timed.surplus)
    if most.surplus() > SURPLUS:
        shown = sum(len(a.text) for a in most.record.answers)
        return f"not shown: {most.record.tokens[1]} tokens for {shown} characters"
    return NO_THOUGHTS


def _spoken(max_tokens: int, seed: int) -> Request:
    return Request("policy", (_SPEAK,), _sampling(max_tokens), "check", "c" * seed)


def _some(names: tuple[str, ...]) -> str:
    return f"{len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


def _cut(reply: Timed) -> str:
    return repr(one_line(reply.text, 60)) if not reply.error else reply.error


def _rate(tokens: int, seconds: float) -> str:
    return f"{tokens / seconds:.0f}" if tokens and seconds else "?"
