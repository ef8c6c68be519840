"""What is evaluated, and on what: models, options, held-out prompts.

A model is NAME[@SEED]=WHERE; WHERE is a base URL (`#MODEL` where it serves several), a file of
answers or the folder of them that train_recipes/evaluate.py writes, or ENGINE:MODEL for an engine
in this process. A name with a seed stands for one checkpoint; names that differ in their seed alone
are one method.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DropRow, MoraError, SettingsError, SourceError
from ..settings import RoleSettings
from ..sources import read
from ..text import context_id, group_id, normalise
from ..types import Message, Messages, Row
from .benchmarks import EvalPrompt, load_benchmark

PLAIN, FUSED, SAFE = "plain", "fused", "safe"
SPEC = re.compile(r"(?P<name>[\w.-]+)(?:@(?P<seed>[\w.-]+))?=(?P<where>.+)")


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says."""

    dataset: Path | None = None
    source: str | None = None
    files: Mapping[str, Path] = field(default_factory=dict)  # set name -> jsonl file of prompts
    reference: str | None = None
    out: Path = Path("runs/evaluate")
    limit: int | None = None
    n: int = 1
    overrides: Mapping[str, object] = field(default_factory=dict)
    fresh: bool = False
    pairwise: bool = True
    # each: MODEL or MODEL=DIMENSION in the order of training; the first is the start
    sequences: Sequence[Sequence[str]] = ()
    scalings: Sequence[Sequence[str]] = ()  # each: a name of the curve, perhaps, and MODEL=PAIRS
    benchmarks: Sequence[str] = ()  # NAME or NAME=FILE


@dataclass(frozen=True, slots=True)
class Model:
    """One checkpoint: a method's name, its training seed, and where its answers come from."""

    name: str
    seed: str
    where: str

    @property
    def label(self) -> str:
        return f"{self.name}@{self.seed}"


def parse_model(text: str) -> Model:
    """The model that NAME[@SEED]=WHERE names.

    Raises:
        SettingsError: not of that form.
    """
    found = SPEC.fullmatch(text)
    if found is None:
        raise SettingsError(
            f"{text!r} is not NAME=WHERE: write it as sft=http://host:8000/v1, or"
            " mora@0=answers.jsonl"
        )
    return Model(found["name"], found["seed"] or "0", found["where"])


def role_of(model: Model, policy: RoleSettings) -> RoleSettings | None:
    """The model's endpoint, sampling as the build's policy does; None where its answers lie in a
    file.

    Raises:
        SettingsError: neither a URL, nor a file, nor ENGINE:MODEL.
    """
    url, _, served = model.where.partition("#")
    if url.startswith(("http://", "https://")):
        return policy.model_copy(
            update={"engine": "openai", "base_url": url, "model": served or None, "use": None}
        )
    if model.where.endswith((".jsonl", ".json")) or Path(model.where).is_dir():
        return None
    engine, colon, path = model.where.partition(":")
    if not colon:
        raise SettingsError(
            f"model {model.label}: {model.where!r} is no URL, no .jsonl or .json file and not"
            " ENGINE:MODEL"
        )
    return policy.model_copy(
        update={"engine": engine, "model": path or None, "base_url": None, "use": None}
    )


def load_prompts(
    options: Options, folder: Path | None, skipped: Counter[str], seed: int = 0
) -> list[EvalPrompt]:
    """The held-out prompts of every set, in order; `skipped` counts rows that gave none, by reason.

    Raises:
        SourceError: a file can't be read, or there is no prompt at all.
    """
    rows: list[tuple[str, Messages]] = []
    for row in _test_rows(folder) if folder is not None else []:
        asked: Messages = tuple(
            Message(role=m["role"], content=m["content"]) for m in row["prompt"]
        )
        plain = asked if row["arm"] == "identity" else source_messages(asked, row["source_prompt"])
        if row["arm"] != "identity":
            rows.append((FUSED, asked))
        if plain is None:
            skipped["source_prompt_unclear"] += 1
        else:
            rows.append((PLAIN, plain))
    for part, path in options.files.items():
        rows += [(part, messages) for messages, _ in _file_rows(path)]
    prompts = [
        EvalPrompt(part, context_id(messages), group_id(messages), messages)
        for part, messages in rows
    ]
    prompts += [p for text in options.benchmarks for p in load_benchmark(text, seed)]
    found: dict[tuple[str, str], EvalPrompt] = {}
    taken: defaultdict[str, set[str]] = defaultdict(set)  # groups, as mc1 and mc2 of one question
    for p in prompts:
        key = (p.part, p.prompt_id)
        if key in found:
            skipped["duplicate"] += 1
        elif (
            options.limit is None
            or len(taken[p.part]) < options.limit
            or (p.metric and p.group in taken[p.part])
        ):
            taken[p.part].add(p.group if p.metric else p.prompt_id)
            found[key] = p
    if not found:
        raise SourceError(
            "no held-out prompt: the dataset has no `test` split in prompt_only; give --prompts"
            " FILE or --benchmark"
        )
    return list(found.values())


def source_messages(asked: Messages, source_prompt: str) -> Messages | None:
    """The unfused conversation: the fused one with its last turn as in the source (case folded);
    None if it can't be told."""
    history = asked[:-1]
    prefix = (
        "".join(f"{m['role']}: {normalise(m['content'])}\n" for m in history) + "user: "
        if history
        else ""
    )
    if not source_prompt.startswith(prefix) or len(source_prompt) == len(prefix):
        return None
    return (*history, Message(role="user", content=source_prompt[len(prefix) :]))


def _test_rows(folder: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    if not folder.is_dir():
        raise SourceError(
            f"no dataset folder {folder}: give a run folder, or download the dataset first"
        )
    files = sorted((folder / "prompt_only").glob("test-*.parquet"))
    return [
        r
        for f in files
        for r in pq.read_table(f, columns=["prompt", "source_prompt", "arm"]).to_pylist()
    ]


def _file_rows(path: Path) -> list[tuple[Messages, Row]]:
    """The rows of a file (jsonl, json, csv, parquet) with the conversation that each one asks:
    `prompt` (text or messages), `messages`, or a benchmark's `instruction`, `goal`, `question`."""
    out: list[tuple[Messages, Row]] = []
    try:
        for n, _, row in read.rows(read.find([path], [])):
            if isinstance(row, DropRow):
                raise ValueError(f"row {n + 1} is no object")
            value = next(
                (
                    row[k]
                    for k in ("prompt", "messages", "instruction", "goal", "question")
                    if row.get(k)
                ),
                None,
            )
            if isinstance(value, list):
                out.append(
                    (tuple(Message(role=m["role"], content=m["content"]) for m in value), row)
                )
            elif isinstance(value, str):
                out.append(((Message(role="user", content=value),), row))
            else:
                raise ValueError(f"row {n + 1} has no `prompt` text or `messages`")
    except (MoraError, ValueError, KeyError, TypeError) as e:
        raise SourceError(f"can't read prompts from {path}: {' '.join(str(e).split())}") from e
    return out


def read_answers(path: Path) -> dict[str, list[dict[str, Any]]]:
    """prompt id -> rows, of a file with `prompt` (text or messages), `answer` (or `output`), and
    perhaps `kl`, `mc1` and `mc2`; of a folder: of its answers.jsonl and choices.jsonl.

    Raises:
        SourceError: it can't be read.
    """
    out: dict[str, list[dict[str, Any]]] = {}
    files = (
        [f for f in (path / "answers.jsonl", path / "choices.jsonl") if f.is_file()]
        if path.is_dir()
        else [path]
    )
    if not files:
        raise SourceError(
            f"can't read answers from {path}: it holds neither answers.jsonl nor choices.jsonl"
        )
    for n, (messages, row) in enumerate((r for file in files for r in _file_rows(file)), 1):
        answer = row.get("answer", row.get("output"))
        if not isinstance(answer, str):
            raise SourceError(
                f"can't read answers from {path}: row {n} lacks `answer`; each one needs `prompt`"
                " and `answer`"
            )
        out.setdefault(context_id(messages), []).append(
            {"kl": None, "finish_reason": "stop", **row, "answer": answer}
        )
    return out


def parse_curve(texts: Sequence[str], names: Sequence[str]) -> tuple[str, list[tuple[str, int]]]:
    """The name of a scaling curve ("" where none is given) and its (model, pairs).

    Raises:
        SettingsError: no such model, or not of that form.
    """
    name, points = (texts[0], texts[1:]) if texts and "=" not in texts[0] else ("", texts)
    found = parse_points(points, names, "--scaling")
    if bad := [f"{m}={n}" for m, n in found if not n.isdecimal()]:
        raise SettingsError(f"--scaling {bad[0]!r}: write MODEL=PAIRS, as mora=1000")
    return name, [(m, int(n)) for m, n in found]


def parse_points(texts: Sequence[str], names: Sequence[str], flag: str) -> list[tuple[str, str]]:
    """(model, label) of each `MODEL=LABEL` of --sequence or --scaling, in order.

    Raises:
        SettingsError: no such model, or not of that form.
    """
    out = []
    for text in texts:
        name, _, label = text.partition("=")
        if name not in names:
            raise SettingsError(
                f"{flag} names {name!r}, which is none of the models: {', '.join(names)}"
            )
        out.append((name, label))
    return out
