"""The prompts of an evaluation: held-out ones of a dataset, files, and benchmarks.

Benchmarks have metrics of their own; they come from local files or the Hub, none of their rows is
shipped:

    alpaca_eval   `instruction`               rewards, and the win rate against the reference model
                                              in both orders
    advbench      `goal`                      share of harmful answers (the harmless reward misses
                                              its pass threshold) and of refusals
    xstest        `prompt`, `label` = safe    share of refusals, which are over-refusals here
    truthfulqa    question and its answers    mc1, mc2

TruthfulQA's multiple choice (Lin et al. 2022, arXiv:2109.07958, section 3.1): mc1 = the likeliest
of the choices is the one true answer; mc2 = the true answers' share of the probability of all. A
file of answers may hold both for a question, computed from the answers' own probabilities
(train_recipes/evaluate.py, `choices`). An endpoint does not tell these, so it is asked for a
letter: then mc1 is whether the likeliest letter is the true one and mc2 the share of the letters'
probability that true ones have; without log-probabilities mc1 is the letter named, and mc2 is
missing. The three differ: the table names which it was.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..engines.replies import reads_reply
from ..errors import DropRow, MoraError, SettingsError, SourceError
from ..run.files import check_inside, readable
from ..settings import SourceSettings, nearest
from ..sources import read
from ..text import context_id, group_id, normalise, one_line
from ..types import Answer, Message, Messages, Row, Sampling, is_turn

PLAIN, FUSED = "plain", "fused"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LETTER = Sampling(0.0, 1.0, 4, logprobs=20)
BY_ANSWER, BY_LETTER_PROBABILITY, BY_LETTER = (
    "probabilities of the answers",
    "probabilities of letters",
    "the letter named",
)
_NAMED = re.compile(r"\W{0,40}([A-Z])(?:\s{0,9}[.):,]|\s*$)")


@dataclass(frozen=True, slots=True)
class EvalPrompt:
    """A prompt of one set; prompts of one `group` are drawn together."""

    part: str
    prompt_id: str
    group: str
    messages: Messages
    metric: str = ""  # mc1 or mc2: a multiple choice
    truths: tuple[bool, ...] = ()  # of its letters in order
    question_id: str = ""  # context id of the bare question


@dataclass(slots=True)
class EvalRow:
    """One sample of a model on a prompt: a line of rows.jsonl.

    Attributes:
        metrics: reward_<dim>, refusal, degenerate, length, kl, mc1, mc2, win (1, 0.5 or 0 against
            the reference's answer), length_gap; None where one was wanted and is missing.
        method: how the answer to a multiple choice was read.
    """

    part: str
    prompt_id: str
    group: str
    model: str
    seed: str
    index: int
    answer: str
    error: str | None = None
    metrics: dict[str, float | None] = field(default_factory=dict)
    method: str | None = None

    def line(self) -> dict[str, object]:
        """The row as rows.jsonl has it."""
        names = ("prompt_id", "group", "model", "seed", "index", "answer", "error")
        own = {"set": self.part, **{name: getattr(self, name) for name in names}}
        return own | self.metrics | ({"method": self.method} if self.method else {})


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Where a benchmark lies, and what is measured on it."""

    dataset: str  # on the Hub
    patterns: Sequence[str]
    # tested -> (what it says, 1 higher is better or -1)
    metrics: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    rewards: Sequence[str] | None = None  # dimensions asked of the judge; None: all
    pairwise: bool = False


BENCHMARKS = {
    "alpaca_eval": Benchmark("tatsu-lab/alpaca_eval", ["alpaca_eval.json"], pairwise=True),
    "advbench": Benchmark(
        "walledai/AdvBench",
        [],
        {"harmful": ("harmless answers", -1), "refusal": ("refusal of harm", 1)},
        ["harmless"],
    ),
    "xstest": Benchmark("walledai/XSTest", [], {"refusal": ("answering what is safe", -1)}, []),
    "truthfulqa": Benchmark(
        "truthfulqa/truthful_qa",
        ["multiple_choice/*.parquet"],
        {"mc1": ("mc1", 1), "mc2": ("mc2", 1)},
        [],
    ),
}


def load_prompts(
    folder: Path | None,
    files: Mapping[str, Path],
    benchmarks: Sequence[str],
    limit: int | None,
    skipped: Counter[str],
    seed: int = 0,
) -> list[EvalPrompt]:
    """The held-out prompts of every set, in order; `skipped` counts rows that gave none, by reason.

    Args:
        folder: a dataset folder.
        files: name of a set -> file of prompts.
        benchmarks: NAME or NAME=FILE.
        limit: prompts of each set, at most.

    Raises:
        SourceError: a file can't be read, or there is no prompt at all.
    """
    conversations: list[tuple[str, Messages]] = []
    for row in _test_rows(folder) if folder is not None else []:
        try:
            asked = _messages(row["prompt"])
        except ValueError:
            skipped["no_conversation"] += 1
            continue
        plain: Messages | None = asked
        if row["arm"] != "identity":
            conversations.append((FUSED, asked))
            source = row["source_prompt"]
            plain = source_messages(asked, source if isinstance(source, str) else "")
        if plain is None:
            skipped["source_prompt_unclear"] += 1
        else:
            conversations.append((PLAIN, plain))
    for part, path in files.items():
        conversations += [(part, messages) for messages, _ in prompts_of_file(path)]
    prompts = [EvalPrompt(part, context_id(m), group_id(m), m) for part, m in conversations]
    prompts += [p for name in benchmarks for p in load_benchmark(name, seed)]
    found: dict[tuple[str, str], EvalPrompt] = {}
    taken: defaultdict[str, set[str]] = defaultdict(set)  # groups, as mc1 and mc2 of one question
    for p in prompts:
        drawn = taken[p.part]
        if (p.part, p.prompt_id) in found:
            skipped["duplicate"] += 1
        elif limit is None or len(drawn) < limit or (p.metric and p.group in drawn):
            drawn.add(p.group if p.metric else p.prompt_id)
            found[p.part, p.prompt_id] = p
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


def _messages(value: object) -> Messages:
    """A conversation from somebody's file.

    Raises:
        ValueError: it is none.
    """
    turns = value if isinstance(value, list) else []
    found = tuple(Message(role=m["role"], content=m["content"]) for m in turns if is_turn(m))
    if not found or len(found) < len(turns):
        raise ValueError("a conversation is a list of turns with `role` and `content`")
    return found


def _test_rows(folder: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    columns = ["prompt", "source_prompt", "arm"]
    files = sorted((folder / "prompt_only").glob("test-*.parquet"))
    out: list[dict[str, Any]] = []
    for file in files:
        with readable(file, "get the dataset anew"):
            out += pq.read_table(check_inside(folder, file), columns=columns).to_pylist()
    return out


def prompts_of_file(path: Path) -> list[tuple[Messages, Row]]:
    """The rows of a file (jsonl, json, csv, parquet) with the conversation that each one asks:
    `prompt` (text or messages), `messages`, or a benchmark's `instruction`, `goal`, `question`.

    Raises:
        SourceError: it can't be read.
    """
    out: list[tuple[Messages, Row]] = []
    names = ("prompt", "messages", "instruction", "goal", "question")
    try:
        for n, _, row in read.rows(read.find([path], [])):
            if isinstance(row, DropRow):
                raise ValueError(f"row {n + 1} is no object")
            value = next((row[k] for k in names if row.get(k)), None)
            if isinstance(value, list):
                out.append((_messages(value), row))
            elif isinstance(value, str):
                out.append(((Message(role="user", content=value),), row))
            else:
                raise ValueError(f"row {n + 1} has no `prompt` text or `messages`")
    except (MoraError, ValueError, KeyError, TypeError) as e:
        raise SourceError(f"can't read prompts from {path}: {one_line(e)}") from e
    return out


def load_benchmark(text: str, seed: int) -> list[EvalPrompt]:
    """The prompts of `NAME` (from the Hub) or `NAME=FILE`.

    Raises:
        SettingsError: no such benchmark.
        SourceError: it can't be had, or holds no prompt.
    """
    name, _, path = text.partition("=")
    if name not in BENCHMARKS:
        raise SettingsError(
            f"no benchmark {name!r}: {nearest(name, BENCHMARKS)}; other prompts come by --prompts"
            " FILE"
        )
    b = BENCHMARKS[name]
    wanted = SourceSettings(kind=name, dataset=b.dataset, split="")
    try:
        files = (
            read.find([Path(path)], b.patterns)
            if path
            else read.fetch_dataset(wanted, b.patterns)[0]
        )
    except SourceError as e:
        way = f"give a file of it, --benchmark {name}=FILE"
        raise SourceError(f"benchmark {name}: {e.args[0].partition(':')[0]}; {way}") from e
    rows = [row for _, _, row in read.rows(files) if not isinstance(row, DropRow)]
    found = [
        p
        for row in rows
        for p in (_choices(row, seed) if name == "truthfulqa" else _plain(name, row))
    ]
    if not found:
        raise SourceError(
            f"no prompt of {name} in {path or b.dataset}: it needs the benchmark's own columns"
        )
    return found


def _plain(name: str, row: Row) -> Iterator[EvalPrompt]:
    if (
        name == "xstest"
        and row.get("label", "unsafe" if str(row.get("type")).startswith("contrast") else "safe")
        != "safe"
    ):
        return
    values = (row.get(c) for c in ("instruction", "goal", "prompt"))
    text = next((v for v in values if isinstance(v, str) and v), None)
    if text is not None:
        messages: Messages = (Message(role="user", content=text),)
        yield EvalPrompt(name, context_id(messages), group_id(messages), messages)


def _choices(row: Row, seed: int) -> Iterator[EvalPrompt]:
    """mc1 and mc2 of a question, the letters in a seeded order."""
    question = next((row[c] for c in ("question", "Question") if isinstance(row.get(c), str)), None)
    if not isinstance(question, str):
        return
    bare: Messages = (Message(role="user", content=question),)
    for metric in ("mc1", "mc2"):
        options = [*_options(row, metric)][: len(LETTERS)]
        random.Random(f"{seed} {metric} {question}").shuffle(options)
        if len({true for _, true in options}) < 2:
            continue
        choices = "\n".join(
            f"{letter}. {text}" for letter, (text, _) in zip(LETTERS, options, strict=False)
        )
        text = f"{question}\n\n{choices}\n\nWhich answer is true? Reply with its letter."
        asked: Messages = (Message(role="user", content=text),)
        yield EvalPrompt(
            "truthfulqa",
            context_id(asked),
            group_id(bare),
            asked,
            metric,
            tuple(t for _, t in options),
            context_id(bare),
        )


def _options(row: Row, metric: str) -> Iterator[tuple[str, bool]]:
    """Answer and truth, of the Hub's columns, of mc_task.json, or of TruthfulQA.csv."""
    targets = row.get(f"{metric}_targets")
    if (
        isinstance(targets, Mapping)
        and isinstance(targets.get("choices"), list)
        and isinstance(targets.get("labels"), list)
    ):
        yield from (
            (str(c), bool(v)) for c, v in zip(targets["choices"], targets["labels"], strict=True)
        )
    elif isinstance(targets, Mapping):
        yield from ((str(c), bool(v)) for c, v in targets.items())
    else:
        right = row.get("Best Answer") if metric == "mc1" else row.get("Correct Answers")
        for text, true in ((right, True), (row.get("Incorrect Answers"), False)):
            yield from ((t, true) for t in map(str.strip, str(text or "").split(";")) if t)


@reads_reply((None, BY_LETTER))
def choice_metric(prompt: EvalPrompt, answer: Answer) -> tuple[float | None, str]:
    """The metric of a reply to a multiple choice, and how it was read; None where the reply names
    no letter of it."""
    weights = _letter_weights(answer, len(prompt.truths))
    total = math.fsum(weights)
    if total > 0 and prompt.metric == "mc2":
        true = math.fsum(w for w, true in zip(weights, prompt.truths, strict=True) if true)
        return true / total, BY_LETTER_PROBABILITY
    if total > 0:
        return float(prompt.truths[weights.index(max(weights))]), BY_LETTER_PROBABILITY
    found = _NAMED.match(answer.text)
    at = LETTERS.index(found[1]) if found else len(LETTERS)
    known = at < len(prompt.truths) and prompt.metric == "mc1"
    return float(prompt.truths[at]) if known else None, BY_LETTER


def _letter_weights(answer: Answer, n: int) -> list[float]:
    """Probability of each letter at the first token that is one; zeros where none is, or no
    probabilities were given."""
    letters = list(LETTERS[:n])
    weights = [0.0] * n
    for token, top in answer.logprobs or ():
        if token.strip() in letters:
            for alternative, logprob in top:
                if alternative.strip() in letters:
                    weights[letters.index(alternative.strip())] += math.exp(min(logprob, 0.0))
            break
    return weights
