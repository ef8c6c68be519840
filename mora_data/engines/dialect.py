"""What an endpoint takes of the chat protocol, learned from what it refuses.

A request is written in full: both sampling parameters, `n`, `seed`, a JSON schema, a system turn.
Many servers refuse one of them. A refusal that names a field (in `param`, in `loc`, or by a word of
its message) changes the form at once: the field is renamed, made plainer or left out, and the
request is sent again. Where a refusal names nothing, a short request of the same form tells whether
the row, the form or the endpoint is at fault (`Endpoint._settle`).

What was learned holds for one endpoint and model. It stands in the run folder's `endpoints.json`,
so that the next run begins with it. It is not part of the request key: a refused request has no
answers that could be mixed with later ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

from ..errors import UNREADABLE, RunFolderError
from ..run.files import read_json, write_json
from ..run.stats import RunStats
from ..settings import RoleSettings
from ..text import one_line, pattern
from ..types import Request
from .engine import Shared, endpoint_key, without_system
from .http import parse_duration

FILE = "endpoints.json"
WARM = 0.01  # sent for a temperature of 0 where only larger ones are taken
PROBE_TOKENS = 16
_JSON_STEPS = ("with its schema", "with a schema without bounds", "without a schema", "unasked")
_BOUNDS = frozenset(
    "minimum maximum exclusiveMinimum exclusiveMaximum multipleOf minItems maxItems minLength"
    " maxLength".split()
)


@dataclass(frozen=True, slots=True)
class Dialect:
    """How requests have to be written for one endpoint and model; the default is all in full."""

    without: tuple[str, ...] = ()  # fields left out
    tokens_field: str = "max_tokens"
    json_step: int = 0  # how JSON is asked for: an index of _JSON_STEPS
    system: bool = True  # takes a system turn; else it opens the first user turn
    any_turns: bool = True  # else user and assistant have to alternate, the user first
    many: bool = True  # takes n > 1
    zero: bool = True  # takes temperature 0
    stream: bool = False
    path: str = ""  # between base URL and /chat/completions
    answers_as: tuple[str, ...] = field(default=(), compare=False)  # other names of the model

    def write(self, body: bytes) -> bytes:
        """A full request body in this form."""
        if self is PLAIN or self == PLAIN:  # nearly always the same object, which is faster to tell
            return body
        return orjson.dumps(self.apply(orjson.loads(body)))

    def apply(self, tree: dict[str, Any]) -> dict[str, Any]:
        """The same for a parsed body, which is changed."""
        if not self.system:
            tree["messages"] = without_system(tree["messages"])
        if not self.any_turns:
            tree["messages"] = _in_turns(tree["messages"])
        if self.tokens_field not in tree and "max_tokens" in tree:
            tree[self.tokens_field] = tree.pop("max_tokens")
        if not self.many:
            tree.pop("n", None)
        if not self.zero and tree.get("temperature") == 0:
            tree["temperature"] = WARM
        wanted = tree.get("response_format")
        if isinstance(wanted, dict) and self.json_step:
            tree.pop("response_format")
            if self.json_step == 1:
                tree["response_format"] = _without_bounds(wanted)
            elif self.json_step == 2:
                tree["response_format"] = {"type": "json_object"}
        for name in self.without:
            tree.pop(name, None)
        if self.stream:
            tree["stream"], tree["stream_options"] = True, {"include_usage": True}
        return tree

    def next_for(self, name: str, tree: Mapping[str, Any]) -> Dialect | None:
        """The form after a refusal of field `name` in the body `tree`; None where there is none."""
        if name == "response_format":
            known = self.json_step < len(_JSON_STEPS) - 1 and "response_format" in tree
            return replace(self, json_step=self.json_step + 1) if known else None
        if name == "max_tokens":
            other = {"max_tokens": "max_completion_tokens"}.get(self.tokens_field)
            return replace(self, tokens_field=other) if other else self._less("max_tokens", tree)
        if name == "messages.system":
            has = any(m["role"] == "system" for m in tree["messages"])
            return replace(self, system=False) if self.system and has else None
        if name == "messages":
            return replace(self, any_turns=False) if self.any_turns else None
        if name == "n":
            return replace(self, many=False) if self.many and tree.get("n", 1) != 1 else None
        if name == "stream":
            return replace(self, stream=True) if not self.stream else None
        if name == "temperature" and tree.get("temperature") == 0 and self.zero:
            return replace(self, zero=False)
        if name == "logprobs":
            fewer = self._less("top_logprobs", tree) or self
            return fewer._less("logprobs", tree)
        return self._less(name, tree)

    def simpler(self, tree: Mapping[str, Any]) -> Iterator[Dialect]:
        """Forms to try where a refusal names nothing: first the barest, then each with one thing
        less."""
        steps = [s for name in _TRIED if (s := self.next_for(name, tree)) is not None]
        if "response_format" in tree:
            steps += [replace(self, json_step=i) for i in (2, 3) if i > self.json_step + 1]
        bare = self
        for name in (*_TRIED, *["response_format"] * 2):
            bare = bare.next_for(name, tree) or bare
        if bare != self:
            yield bare
            yield from steps

    def _less(self, name: str, tree: Mapping[str, Any]) -> Dialect | None:
        if name in self.without or (name not in tree and name != self.tokens_field):
            return None
        return replace(self, without=tuple(sorted({*self.without, name})))

    def lines(self) -> list[str]:
        """What differs from a full request, in words."""
        out = [f"without {', '.join(self.without)}"] if self.without else []
        if self.tokens_field != "max_tokens":
            out.append(f"{self.tokens_field} for max_tokens")
        if self.json_step:
            out.append(f"JSON {_JSON_STEPS[self.json_step]}")
        if not self.system:
            out.append("the system turn put before the first user turn")
        if not self.any_turns:
            out.append("turns of user and assistant in alternation")
        if not self.many:
            out.append("one answer a request")
        if not self.zero:
            out.append(f"temperature {WARM} for 0")
        if self.stream:
            out.append("as a stream")
        if self.path:
            out.append(f"with {self.path} added to the base URL")
        return out

    def notes(self) -> list[str]:
        """What is known of the endpoint: how it is asked, under which names it answers."""
        asked = [f"is asked {'; '.join(self.lines())}"] if self.lines() else []
        return asked + [f"answers as {name}" for name in self.answers_as]


PLAIN = Dialect()
# tried one by one where a refusal names nothing, likeliest first
_TRIED = (
    "response_format n messages.system seed top_p logprobs stop max_tokens temperature stream"
).split()


def _in_turns(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Neighbours of one role joined; a conversation that the assistant begins gets a user turn
    before it."""
    out: list[dict[str, Any]] = []
    for m in messages:
        if out and out[-1]["role"] == m["role"]:
            out[-1]["content"] += "\n\n" + m["content"]
        else:
            if m["role"] == "assistant" and (not out or out[-1]["role"] == "system"):
                out.append({"role": "user", "content": "..."})
            out.append(dict(m))
    return out


def _without_bounds(wanted: dict[str, Any]) -> dict[str, Any]:
    """A response format whose schema does not say how much or how many."""

    def plain(tree: Any) -> Any:
        if isinstance(tree, list):
            return [plain(x) for x in tree]
        if isinstance(tree, dict):
            return {k: plain(v) for k, v in tree.items() if k not in _BOUNDS}
        return tree

    return dict(plain(wanted))


# what a refusal is about


class Refusal:
    """What a server says when it refuses a request.

    Attributes:
        status: of HTTP, or the code in a body that came with another one.
        message: its sentence, on one line, cut.
        wait_s: seconds after which it may be asked again, where it says so.
    """

    __slots__ = ("_named", "code", "message", "status", "wait_s")

    def __init__(self, status: int, body: bytes) -> None:
        self.status = 400 if status == 200 else status
        self.message, self.code = "no message", ""
        self._named: list[str] = []
        with contextlib.suppress(*UNREADABLE):  # what is not in form says nothing
            self._read(body, status == 200)

    def _read(self, body: bytes, is_inside: bool) -> None:
        try:
            tree = orjson.loads(body)
        except ValueError:
            tree = None
        inner = _error_of(tree)
        said = _message_of(inner, tree, body)
        self.message = one_line(said) or "no message"
        delay = _DELAY.search(f"{said} {body[:4000].decode('utf-8', 'replace')}")
        self.wait_s = parse_duration(delay[1] or delay[2]) if delay else None
        names = [inner.get("param")] if isinstance(inner, dict) else []
        names += [".".join(map(str, x["loc"])) for x in _details(tree) if x.get("loc")]
        self._named = [n for n in names if isinstance(n, str)]
        if isinstance(inner, dict):
            codes = (inner.get(k) for k in ("code", "type", "status"))
            self.code = " ".join(str(c) for c in codes if c)
        if is_inside:
            self.status = self._own_status(inner, tree)

    def _own_status(self, *trees: Any) -> int:
        """The status that an error has which came with HTTP 200: its code, or what it says."""
        if self.of_row:
            return 400
        for tree in trees:
            for key in ("code", "status", "status_code") if isinstance(tree, dict) else ():
                if re.fullmatch("[45][0-9][0-9]", str(tree.get(key))):
                    return int(tree[key])
        if _ACCOUNT.search(f"{self.code} {self.message}"):
            return 402
        return 503 if _PASSES.search(f"{self.code} {self.message}") else 400

    @property
    def of_row(self) -> bool:
        """The text of this request is at fault: too long for the model, or moderated."""
        return self.status == 413 or bool(_ROW_CODE.search(self.code) or _ROW.search(self.message))

    @property
    def of_account(self) -> bool:
        """No request will be answered until somebody pays."""
        used_up = _ACCOUNT.search(self.code) or (
            self.status == 429 and _ACCOUNT.search(self.message)
        )
        return self.status == 402 or (bool(used_up) and self.wait_s is None)

    @property
    def of_length(self) -> bool:
        """`max_tokens` is more than the model can take, alone or with the prompt."""
        return self.status in (400, 422) and bool(_LENGTH.search(self.message))

    @property
    def of_model(self) -> bool:
        """The endpoint does not know the model."""
        return bool(_NO_MODEL.search(f"{self.code} {self.message}"))

    def field(self, tree: Mapping[str, Any]) -> str | None:
        """The field of the body `tree` that is refused, as `Dialect.next_for` names it."""
        for name in self._named:
            for known, sign in _NAMES:
                if sign.search(name) and _is_in(known, tree):
                    return known
        for known, sign in _WORDS:
            if _is_in(known, tree) and sign.search(self.message):
                return known
        return None


def _error_of(tree: Any) -> Any:
    """The error object of a body: the innermost `error`, the first item of a list, or the body
    itself."""
    for _ in range(4):
        if isinstance(tree, list) and tree:
            tree = tree[0]
        inner = tree.get("error") or tree.get("errors") if isinstance(tree, dict) else None
        if not inner:
            break
        tree = inner
    return tree


def _details(tree: Any, depth: int = 3) -> list[dict[str, Any]]:
    """What a validator lists, wherever it stands: objects with `loc` and `msg`."""
    if isinstance(tree, list):
        return [x for x in tree if isinstance(x, dict) and isinstance(x.get("loc"), list)]
    if not isinstance(tree, dict) or not depth:
        return []
    inner = (tree.get(k) for k in ("detail", "message", "error"))
    return next((found for x in inner if (found := _details(x, depth - 1))), [])


def _message_of(inner: Any, tree: Any, body: bytes) -> str:
    if details := _details(tree):
        return "; ".join(f"{'.'.join(map(str, x['loc']))} {x.get('msg') or ''}" for x in details)
    if isinstance(inner, dict):
        # a router says what the provider behind it said
        raw = inner["metadata"].get("raw") if isinstance(inner.get("metadata"), dict) else None
        for key in ("message", "detail", "msg", "error", "title"):
            if isinstance(inner.get(key), str):
                return f"{inner[key]} {raw}" if isinstance(raw, str) else str(inner[key])
    if isinstance(inner, str):
        return inner
    if inner:
        return json.dumps(inner)
    text = body[:20_000].decode("utf-8", "replace")
    if "<" in text:  # the page of a gateway
        title = re.search(r"<title>(.*?)</title>", text, re.IGNORECASE | re.DOTALL)
        hidden = r"<(style|script|head)\b.*?</\1>|<[^>]*>"
        text = title[1] if title else re.sub(hidden, " ", text, flags=re.IGNORECASE | re.DOTALL)
    return text


def _is_in(name: str, tree: Mapping[str, Any]) -> bool:
    if name == "messages.system":
        return any(m["role"] == "system" for m in tree["messages"])
    if name == "messages":
        return len(tree["messages"]) > 1
    if name == "n":
        return bool(tree.get("n", 1) != 1)
    if name == "max_tokens":
        return "max_tokens" in tree or "max_completion_tokens" in tree
    return name == "stream" or name in tree


def _any(*patterns: str) -> re.Pattern[str]:
    return pattern("|".join(patterns), re.IGNORECASE)


_ROW_CODE = _any(
    "context_length|content_filter|content_policy|string_above_max|data_inspection|moderation",
    "ResponsibleAI",
)
_ROW = _any(
    "context (length|size|window)|prompt is too long|too many tokens|input is too long",
    r"maximum (prompt|input|sequence|model) length|exceed\w* .{0,40}(token|context|length)",
    "content (filter|policy|management)|moderation|flagged|safety (system|filter)",
)
_ACCOUNT = _any(
    "insufficient.{0,3}(quota|credit|balance|fund)|billing|out of credit",
    "exceeded your current quota|credit balance",
    "(credits?|balance|quota).{0,40}(exhausted|used up|too low|depleted)|payment",
)
_LENGTH = _any(
    r"max_(completion_|output_|new_)?tokens.{0,80}(too large|at most|greater|exceed|less than|range"
    r"|larger|<=|between|maximum)",
    r"(at most|exceed\w*|<=|less than).{0,60}max_(completion_|output_|new_)?tokens",
    r"valid range of max_tokens|supports at most \d+ completion tokens",
)
_DELAY = _any(
    r"\"retryDelay\": ?\"([\d.]+s)",
    r"(?:try again|retry|wait)\w* (?:in|after|for) ([\d.]+ ?(?:ms|s\b|seconds?|m(?:\d+(?:\.\d+)?s)?"
    r"|minutes?))",
)
_PASSES = _any(
    "overload|rate.?limit|too many requests|(try|retry) .{0,20}(again|later)|temporar",
    r"unavailable|timed?.?out|\bbusy\b|at capacity",
    "(server|internal|upstream|provider).{0,10}error",
)
_NO_MODEL = _any(
    "model.?not.?found|model.{0,80}(does not exist|not exist|unknown|not found)",
    "(no such|unknown|invalid) model|deployment.{0,40}not (exist|found)",
)
_NAMES = (
    ("messages.system", _any(r"messages?\W+\d+\W+role", r"system")),
    ("response_format", _any("response_format", "json_schema", "output_config", "response_schema")),
    ("max_tokens", _any("max_(completion_|output_)?tokens")),
    ("n", _any(r"(^|\.)n$", "candidate_?count")),
    ("logprobs", _any("logprobs")),
    *(
        (name, _any(rf"(^|\.){name}$"))
        for name in ("top_p", "temperature", "seed", "stop", "stream")
    ),
)
_WORDS = (
    (
        "messages",
        _any(
            r"alternat|conversation roles|(start|begin)\w* with .{0,20}user",
            "first (message|turn).{0,40}user|consecutive",
        ),
    ),
    (
        "messages.system",
        _any(
            "(system|developer).{0,3} (role|message|instruction|prompt|turn)",
            r"role.{0,20}\bsystem\b|\bsystem\b.{0,40}(not|un)\W?(support|allow)",
        ),
    ),
    (
        "response_format",
        _any(
            "response.?(format|schema|mime)|json.?(schema|object|mode)|structured.?output|guided",
            r"\bgrammar\b|\b(minimum|maximum)\b|'?strict'?\b|output_config",
        ),
    ),
    ("max_tokens", _any(r"max_(completion_|output_)?tokens", r"maxOutputTokens")),
    (
        "n",
        _any(
            r"\bn\b['\"`]?:? .{0,40}(must|most|support|allow|only|1\b)",
            r"\bn_cmpl\b|\bn ?> ?1|\bn=",
            "(one|1|single|multiple) (completion|choice|candidate|sample|response)",
            "completion choice|candidate.?count|best_of",
            r"\bn['\"`]? (is|param)",
            r"param\w*:? ['\"`]?n['\"`]?(\W|$)",
        ),
    ),
    ("logprobs", _any(r"log.?prob")),
    ("top_p", _any(r"top_?p\b", r"topP")),
    ("temperature", _any(r"temperature")),
    ("seed", _any(r"\bseed\b")),
    ("stop", _any(r"\bstop\b")),
    ("stream", _any(r"\bstream", r"SSE")),
)


@dataclass(slots=True)
class Learner:
    """What is known of one endpoint and model, and how more is found out.

    Attributes:
        dialect: how it is written to now.
        works: kinds of requests (`Call.shape`) that were answered; of these a refusal is the row's.
        on_change: called when the dialect has changed.
    """

    dialect: Dialect = PLAIN
    works: set[object] = field(default_factory=set)
    on_change: Callable[[Dialect], None] = lambda dialect: None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def adopt(self, dialect: Dialect) -> None:
        """Write so from now on."""
        if dialect != self.dialect:
            self.dialect = dialect
            self.on_change(dialect)

    def note_name(self, name: str) -> None:
        """It answers under this name, too."""
        if name not in self.dialect.answers_as:
            names = (*self.dialect.answers_as, name)
            self.dialect = replace(self.dialect, answers_as=names)
            self.on_change(self.dialect)


def shape_of(request: Request) -> object:
    """What differs between the forms of requests to one model; `n` too, as llama.cpp's server has
    as many choices as slots, and answers up to there."""
    s = request.sampling
    parts = (request.n, s.temperature > 0, s.schema is None, not s.logprobs)
    return (*parts, len(request.messages) > 1)


def probe_of(body: bytes, at_length: bool = False) -> bytes:
    """A short harmless request of the same form; `at_length` also asks for as many tokens."""
    tree = orjson.loads(body)
    system = [m for m in tree["messages"] if m["role"] == "system"][:1]
    turns = [{"role": "system", "content": "You answer briefly, in JSON."}] if system else []
    tree["messages"] = [*turns, {"role": "user", "content": 'Reply with {"score": 1}.'}]
    if not at_length:
        tree["max_tokens"] = min(tree.get("max_tokens", PROBE_TOKENS), PROBE_TOKENS)
    return orjson.dumps(tree)


class Known:
    """The dialects in a run folder's `endpoints.json`, by endpoint and model."""

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / FILE
        self._trees = {} if self._path is None else read_json(self._path)

    def get(self, name: str, start: Dialect = PLAIN) -> Dialect:
        """What was learned of `name` on top of `start`, which also stands where nothing was, or
        where it can't be read."""
        try:
            found = _dialect(self._trees.get(name) or {})
        except (TypeError, ValueError):
            return start
        is_set = start.tokens_field != PLAIN.tokens_field
        known = replace(
            found,
            without=tuple(sorted({*found.without, *start.without})),
            tokens_field=start.tokens_field if is_set else found.tokens_field,
            many=found.many and start.many,
        )
        return PLAIN if known == PLAIN and not known.answers_as else known

    def put(self, name: str, dialect: Dialect) -> None:
        """Keep what was learned; a folder that can't be written keeps nothing."""
        self._trees[name] = {k: v for k, v in asdict(dialect).items() if v != getattr(PLAIN, k)}
        if self._path is not None:
            with contextlib.suppress(RunFolderError):
                write_json(self._path, self._trees, durable=False)


def learner_of(
    url: str, model: str, role: RoleSettings, stats: RunStats, shared: Shared
) -> Learner:
    """What is known of a model at an endpoint, by roles that begin in the same form; what is new is
    printed, counted in `stats` and kept in the run folder."""
    removed = {name for name, value in role.extra_body.items() if value is None}
    start = Dialect(
        without=("seed",) if "seed" in removed else (),
        tokens_field=role.max_tokens_field or PLAIN.tokens_field,
        many="n" not in removed,
    )
    known = shared.once("dialects", lambda: Known(shared.run_dir))
    place = f"{url} {model}"

    def note(dialect: Dialect) -> None:
        known.put(place, dialect)
        new = [line for line in dialect.notes() if line not in stats.dialects.get(model, ())]
        stats.dialects[model] = dialect.notes()
        shared.log(f"{model} at {url} {'; '.join(new)}")

    def make() -> Learner:
        found = known.get(place, start)
        stats.dialects.update({model: found.notes()} if found.notes() else {})
        return Learner(found, on_change=note)

    return shared.once(f"{endpoint_key(role)} {model} {start}", make)


def _dialect(tree: Mapping[str, Any]) -> Dialect:
    found = replace(PLAIN, **tree)
    without, names = (tuple(map(str, x)) for x in (found.without, found.answers_as))
    found = replace(found, without=without, answers_as=names)
    if not 0 <= int(found.json_step) < len(_JSON_STEPS):
        raise ValueError("json_step")
    if found.tokens_field not in ("max_tokens", "max_completion_tokens"):
        raise ValueError("tokens_field")
    return replace(found, path="/v1" if found.path == "/v1" else "")
