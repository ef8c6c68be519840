"""Everything that is known of one prompt: where it came from, what was tried with it, every answer,
every pair, and every model call as it was sent and answered.

    prompt = read_provenance(folder, "31049b7914a5689e", pairs)
    prompt.arms[0].answers[3].rewards["helpful"]
    calls_of(folder, "31049b7914a5689e").calls[0].messages

From the partition of a run; from the `scored` config where only the dataset is at hand (then
without rewrites and presamples).

A log of answers holds no questions, only their keys. So the prompt's own coroutine runs again over
the kept answers: what it asks is rendered as it was for the build, and a key that is in the log
proves that this very request was answered. Nothing is ever sent.
"""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from ..engines.cached_client import key_of_call
from ..engines.engine import encode, extra_of, request_key
from ..errors import DamagedFile, MoraError, PendingRetry
from ..resources import Secret, parse_yaml
from ..run.files import read_json, readable
from ..run.folder import secret_of
from ..run.log import Record
from ..run.partitions import PROMPTS, Partition, lean_arrow
from ..settings import BuildSettings, kept_settings
from ..text import seed_of
from ..types import Answer, Message, Messages, Prompt, Request
from .folder import OTHER_VERSION, PairRow, ViewedFolder, decode_rows

BEFORE = ("identity", "before", "presample")  # arms that show a prompt as it was
SOURCE = ("dataset", "config", "split", "revision", "row", "licence")
Row = Mapping[str, Any]  # a row of a table of the run, all columns


@dataclass(frozen=True, slots=True)
class ScoredAnswer:
    """One answer of an arm; `rewards` has every dimension."""

    index: int
    rewards: Mapping[str, float | None]
    flags: Sequence[str] = ()
    text: str = ""
    finish_reason: str | None = None
    length: int | None = None
    error: str | None = None
    persona: str | None = None


@dataclass(frozen=True, slots=True)
class PromptArm:
    """The prompt in one arm: as it was asked, and what came of it.

    Attributes:
        candidates: pairs that selection had to choose from: `chosen` and `rejected` by answer
            index, `score`, and by dimension `margins` and `confirmed` ones.
        selected: published pairs: `pair_id`, `chosen`, `rejected`.
    """

    name: str
    messages: Sequence[Message]
    answers: Sequence[ScoredAnswer]
    candidates: Sequence[Row]
    selected: Sequence[Row]


@dataclass(frozen=True, slots=True)
class PromptProvenance:
    """One prompt.

    Attributes:
        profile: what presampling found, a row of `profiles`; of a dataset only kind and dimensions.
        tries: rows of `fusions`: the rewrites with their checks.
        note: why something is not known.
        errors: rows that failed.
    """

    prompt_id: str
    messages: Sequence[Message]
    source: Row
    stratum: str | None
    category: str | None
    profile: Row | None = None
    tries: Sequence[Row] = ()
    arms: Sequence[PromptArm] = ()
    note: str | None = None
    errors: Sequence[Row] = ()


def read_provenance(
    folder: ViewedFolder, prompt_id: str, pairs: Sequence[PairRow]
) -> PromptProvenance | None:
    """The prompt's story; None where the folder has no such prompt. `pairs`: its published pairs.

    Raises:
        RunFolderError: its files are damaged or of another version.
    """
    lean_arrow()
    with readable(f"prompt {prompt_id} of {folder.root}", OTHER_VERSION):
        for part in folder.partitions():
            mined = _find_mined(part, prompt_id)
            if mined is not None:
                return _of_run(part, mined, folder.dims, pairs)
        return _of_dataset(folder, prompt_id, pairs)


def _find_mined(part: Partition, prompt_id: str) -> Row | None:
    try:
        raw = part.file(PROMPTS).read_bytes()
    except (OSError, DamagedFile):  # mined just now, or started anew
        return None
    start = raw.find(b'{"prompt_id":"' + prompt_id.encode() + b'"')
    if start < 0:
        return None
    row: dict[str, Any] = orjson.loads(raw[start : raw.index(b"\n", start)])
    return row


def _of_run(
    part: Partition, mined: Row, dims: Sequence[str], pairs: Sequence[PairRow]
) -> PromptProvenance:
    prompt_id = mined["prompt_id"]
    about = {
        "prompt_id": prompt_id,
        "messages": list(mined["messages"]),
        "source": {k: mined.get(f"source_{k}") for k in SOURCE},
        "stratum": mined.get("stratum"),
        "category": mined.get("category"),
    }
    if part.manifest() is None:
        note = "This prompt is not finished: its partition is open, its answers are in the log."
        return PromptProvenance(**about, note=note)
    return PromptProvenance(
        **about,
        profile=next(_rows(part, "profiles", prompt_id), None),
        tries=[
            {k: v for k, v in row.items() if k != "prompt_id"}
            for row in _rows(part, "fusions", prompt_id)
        ],
        arms=_arms(part, prompt_id, dims, pairs),
        errors=[e for e in part.errors() if e.get("prompt_id") == prompt_id],
    )


def _arms(
    part: Partition, prompt_id: str, dims: Sequence[str], pairs: Sequence[PairRow]
) -> list[PromptArm]:
    answers: dict[str, list[ScoredAnswer]] = defaultdict(list)
    for r in _rows(part, "rollouts", prompt_id):
        named = ("text", "finish_reason", "length", "error", "persona")
        answer = ScoredAnswer(
            r["index"],
            {d: r[f"reward_{d}"] for d in dims},
            list(r["flags"] or ()),
            **{k: r[k] for k in named},
        )
        answers[r["arm"]].append(answer)
    candidates: dict[str, list[Row]] = defaultdict(list)
    for r in _rows(part, "pairs", prompt_id):
        pair = {
            **{name: r[name] for name in ("chosen", "rejected", "score")},
            "margins": {d: r[f"margin_{d}"] for d in dims},
            "confirmed": {d: r[f"margin_confirmed_{d}"] for d in dims},
        }
        candidates[r["arm"]].append(pair)
    return [
        PromptArm(
            name := r["arm"],
            r["messages"],
            answers[name],
            candidates[name],
            _selected(name, answers[name], pairs),
        )
        for r in _rows(part, "arms", prompt_id)
    ]


def _selected(arm: str, answers: Sequence[ScoredAnswer], pairs: Sequence[PairRow]) -> list[Row]:
    """The published pairs of an arm; their answers are found by their texts."""
    by_text = {a.text: a.index for a in reversed(answers)}
    return [
        {"pair_id": p["pair_id"], "chosen": by_text[c], "rejected": by_text[r]}
        for p in pairs
        if p["arm"] == arm
        and (c := p["chosen"][-1]["content"]) in by_text
        and (r := p["rejected"][-1]["content"]) in by_text
    ]


def _rows(part: Partition, name: str, prompt_id: str) -> Iterator[PairRow]:
    return rows_of_prompt(part.file(f"{name}.parquet"), prompt_id)


def rows_of_prompt(path: Path, prompt_id: str) -> Iterator[PairRow]:
    """A prompt's rows of a table: the row groups that hold them are read, and no others."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, memory_map=True) as file:
        keys = file.read(columns=["prompt_id"], use_threads=False).column(0)
        wanted = np.flatnonzero(pc.equal(keys, pa.scalar(prompt_id, keys.type)).to_numpy())
        first = 0
        for group in range(file.metadata.num_row_groups):
            n = file.metadata.row_group(group).num_rows
            at = wanted[(wanted >= first) & (wanted < first + n)] - first
            if len(at):
                yield from decode_rows(file.read_row_group(group, use_threads=False).take(at))
            first += n


def _of_dataset(
    folder: ViewedFolder, prompt_id: str, pairs: Sequence[PairRow]
) -> PromptProvenance | None:
    files = sorted((folder.dataset / "scored").glob("*.parquet"))
    rows = [r for path in files for r in rows_of_prompt(path, prompt_id)]
    if not rows:
        return None
    first = rows[0]
    return PromptProvenance(
        prompt_id,
        [Message(role="source", content=first["source_prompt"])],
        {k: first[f"source_{k}"] for k in SOURCE},
        first["stratum"],
        first["category"],
        {k: first[k] for k in ("kind", "carried_dim", "target_dims", "binding_dims")},
        arms=[_scored_arm(r, folder.dims, pairs) for r in rows],
        note=(
            "Only the dataset is at hand: rewrites, presamples and control arms are in the run"
            " folder."
        ),
    )


def _scored_arm(r: Row, dims: Sequence[str], pairs: Sequence[PairRow]) -> PromptArm:
    rewards = {d: r[f"rewards_{d}"] or [None] * len(r["completions"]) for d in dims}

    def margin(d: str, chosen: int, rejected: int) -> float | None:
        a, b = rewards[d][chosen], rewards[d][rejected]
        return None if a is None or b is None else a - b

    answers = [
        ScoredAnswer(
            i,
            {d: rewards[d][i] for d in dims},
            list(r["flags"][i] or ()),
            text,
            r["finish_reasons"][i],
            r["lengths"][i],
            "failed" if r["finish_reasons"][i] == "error" else None,
        )
        for i, text in enumerate(r["completions"])
    ]
    candidates = [
        {
            **{"chosen": c, "rejected": x, "score": None},
            "margins": {d: margin(d, c, x) for d in dims},
            "confirmed": dict.fromkeys(dims),
        }
        for c, x in zip(r["pair_chosen"] or (), r["pair_rejected"] or (), strict=True)
    ]
    return PromptArm(
        r["arm"], r["prompt"], answers, candidates, _selected(r["arm"], answers, pairs)
    )


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
            settings = kept_settings(folder.root / "build.yaml")
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
    from ..prompts.context import PromptContext, load_context
    from ..prompts.flow import run_prompt
    from ..rewards.judge_stats import JudgeStats
    from ..sources.benchmarks import Benchmarks

    secret = secret_of(folder.root)
    if secret is None:
        return [], 0
    build = load_context(settings, "select", Benchmarks({}), Secret(secret))
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
