"""Every model call of one prompt, as it was sent and answered.

    found = calls_of(folder, "31049b7914a5689e")        found.calls[0].messages, found.note

A log of answers holds no questions, only their keys. So the prompt's own coroutine runs again over
the kept answers: what it asks is rendered as it was for the build, and a key that is in the log
proves that this very request was answered. Nothing is ever sent.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from ..engines.cached_client import key_of_call
from ..engines.engine import extra_of
from ..errors import MoraError, PendingRetry
from ..resources import Secret, parse_yaml
from ..run.cache_key import encode, request_key
from ..run.files import read_json, readable
from ..run.folder import secret_of
from ..run.log import Record
from ..run.partitions import Partition
from ..settings import BuildSettings, build_settings
from ..text import seed_of
from ..types import Answer, Messages, Prompt, Request
from .folder import OTHER_VERSION, ViewedFolder

ONLY_RUN = "The model calls are in the run folder; only the dataset is at hand."
OPEN = "This prompt is not finished: its calls can be shown when its partition is."
OWN_CODE = "These settings name code of their own, or no file: a viewer runs neither."
NOT_FOUND = "No call was found: settings, templates or version are not those of these answers."
PARTLY = (
    "Other calls are missing here: {} requests, rendered with the settings, templates and version"
    " of now, are not among the answers of this run."
)
_CODE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True, slots=True)
class ModelCall:
    """One request: what the model saw, and its answers from sample `first` on."""

    role: str
    model: str
    purpose: str
    first: int
    sampling: Mapping[str, Any]
    messages: Messages
    answers: Sequence[Answer]


@dataclass(frozen=True, slots=True)
class ModelCalls:
    """The calls of a prompt in the order in which it asked; `note`: why there is none."""

    calls: Sequence[ModelCall]
    note: str | None = None

    @property
    def by_purpose(self) -> dict[str, list[ModelCall]]:
        """The calls of each purpose; what was asked first stands first."""
        found: dict[str, list[ModelCall]] = {}
        for call in self.calls:
            found.setdefault(call.purpose, []).append(call)
        return found


def calls_of(folder: ViewedFolder, prompt_id: str) -> ModelCalls:
    """The calls of a prompt of a finished partition.

    Raises:
        RunFolderError: a file of the folder is damaged or of another version.
    """
    if folder.run is None:
        return ModelCalls((), ONLY_RUN)
    with readable(folder.root, OTHER_VERSION):
        found = next(
            (
                (part, p)
                for part in folder.partitions()
                for p in part.prompts()
                if p.prompt_id == prompt_id
            ),
            None,
        )
        if found is None or found[0].manifest() is None:
            return ModelCalls((), OPEN)
        tree = parse_yaml((folder.root / "build.yaml").read_text("utf-8"))
        if any(_CODE.fullmatch(text) or _is_odd_file(text) for text in _texts(tree)):
            return ModelCalls((), OWN_CODE)
        try:
            settings = build_settings(tree)
            calls, lost = _replayed(folder, settings, *found)
        except MoraError as e:
            return ModelCalls((), f"The calls can't be rendered again: {e}")
    note = PARTLY.format(lost) if lost else None
    return ModelCalls(calls, note if calls else NOT_FOUND)


def _texts(tree: object) -> Iterator[str]:
    if isinstance(tree, dict):
        for value in tree.values():
            yield from _texts(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _texts(value)
    elif isinstance(tree, str):
        yield tree


def _is_odd_file(name: str) -> bool:
    """Whether a template's path leads to a pipe or device, which might never end."""
    path = Path(name)
    return name.endswith((".j2", ".yaml", ".yml")) and path.exists() and not path.is_file()


def _replayed(
    folder: ViewedFolder, settings: BuildSettings, part: Partition, prompt: Prompt
) -> tuple[list[ModelCall], int]:
    """The calls, and how many requests were not found."""
    from ..prompts.context import PromptContext, load
    from ..prompts.flow import run_prompt
    from ..rewards.judge_stats import JudgeStats
    from ..sources.benchmarks import Benchmarks

    secret = secret_of(folder.root)
    if secret is None:
        return [], 0
    build = load(settings, "select", Benchmarks({}), Secret(secret))
    if reference := read_json(folder.root / "reference.json"):
        build = build.with_judge_stats(JudgeStats.from_json(reference))
    client = _Replay(settings, folder.manifest.get("models") or {}, part.finalized_answers())
    asyncio.run(run_prompt(PromptContext(build, client), prompt))
    return client.calls, client.lost


@dataclass(slots=True)
class _Replay:
    """Asks the log alone (see `CachedClient`); what is not in it fails like an answer that never
    came."""

    settings: BuildSettings
    models: Mapping[str, str]
    records: Mapping[bytes, bytes]
    calls: list[ModelCall] = field(default_factory=list)
    lost: int = 0

    async def __call__(self, request: Request) -> list[Answer]:
        role = self.settings.role(request.role)
        model = self.models.get(request.role) or ""
        seed = seed_of(self.settings.seed, request.prompt_id, request.purpose)
        body = encode(request, model, extra_of(role))
        key = request_key(body, request.purpose, seed, role.revision)
        answers: list[Answer | None] = [None] * request.n
        at = 0
        while at < request.first + request.n:
            raw = self.records.get(key + at.to_bytes(4, "big"))
            record = Record.decode(raw) if raw is not None else None
            for i, answer in enumerate(record.answers if record else (), at - request.first):
                if 0 <= i < request.n:
                    answers[i] = answer
            at += len(record.answers) if record else 1
        self.lost += None in answers
        if any(answers):
            sent = orjson.loads(body)
            messages = sent.pop("messages", request.messages)
            here = [a for a in answers if a is not None]
            call = ModelCall(
                request.role, model, request.purpose, request.first, sent, messages, here
            )
            self.calls.append(call)
        return [a or Answer("", "error", error="not in the log") for a in answers]

    async def cached(
        self, key: Any, call: Callable[[], Awaitable[Any]], prompt_id: str = ""
    ) -> Any:
        """A reward's own call: from the log, never made.

        Raises:
            PendingRetry: it is not there.
        """
        raw = self.records.get(key_of_call(key) + bytes(4))
        if raw is None:
            self.lost += 1
            raise PendingRetry("not in the log")
        answer = Record.decode(raw).answers[0]
        self.calls.append(ModelCall("reward", "", str(key[1]), 0, {}, (), [answer]))
        return orjson.loads(answer.text)
