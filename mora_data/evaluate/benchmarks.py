"""Benchmarks with metrics of their own, from local files or the Hub; none of their rows is shipped.

    alpaca_eval   `instruction`               rewards, and the win rate against the reference model
    in both orders advbench      `goal`                      share of harmful answers (the harmless
    reward misses its floor) and of refusals xstest        `prompt`, `label` = safe    share of
    refusals, which are over-refusals here truthfulqa    question and its answers    mc1, mc2

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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DropRow, SettingsError, SourceError
from ..settings import SourceSettings, nearest
from ..sources import read
from ..text import context_id, group_id
from ..types import Answer, Message, Messages, Row, Sampling

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LETTER = Sampling(0.0, 1.0, 4, logprobs=20)
BY_ANSWER, BY_LETTER_PROBABILITY, BY_LETTER = (
    "probabilities of the answers",
    "probabilities of letters",
    "the letter named",
)
_NAMED = re.compile(r"\W*([A-Z])\s*(?:[.):,]|$)")
_SPLIT = re.compile(r"\s*;\s*")


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
    files = (
        read.find([Path(path)], b.patterns)
        if path
        else read.fetch_dataset(SourceSettings(kind=name, dataset=b.dataset), b.patterns)[0]
    )
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
    text = next(
        (
            row[c]
            for c in ("instruction", "goal", "prompt")
            if isinstance(row.get(c), str) and row[c]
        ),
        None,
    )
    if isinstance(text, str):
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
        listed = "\n".join(
            f"{letter}. {text}" for letter, (text, _) in zip(LETTERS, options, strict=False)
        )
        text = f"{question}\n\n{listed}\n\nWhich answer is true? Reply with its letter."
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
            yield from ((t, true) for t in _SPLIT.split(str(text or "")) if t)


def chosen(prompt: EvalPrompt, answer: Answer) -> tuple[float | None, str]:
    """The metric of a reply to a multiple choice, and how it was read; None where the reply names
    no letter of it."""
    weights = _letters(answer, len(prompt.truths))
    total = math.fsum(weights)
    if total > 0:
        if prompt.metric == "mc2":
            return (
                math.fsum(w for w, true in zip(weights, prompt.truths, strict=True) if true)
                / total,
                BY_LETTER_PROBABILITY,
            )
        return float(prompt.truths[weights.index(max(weights))]), BY_LETTER_PROBABILITY
    found = _NAMED.match(answer.text)
    at = LETTERS.index(found[1]) if found else len(LETTERS)
    return (
        float(prompt.truths[at]) if at < len(prompt.truths) and prompt.metric == "mc1" else None
    ), BY_LETTER


def _letters(answer: Answer, n: int) -> list[float]:
    """Probability of each letter at the first token that is one; zeros where none is, or no
    probabilities were given."""
    weights = [0.0] * n
    for token, top in answer.logprobs or ():
        if token.strip() not in LETTERS[:n] or not token.strip():
            continue
        for alternative, logprob in top:
            if (
                alternative.strip()
                and alternative.strip() in LETTERS[:n]
                and len(alternative.strip()) == 1
            ):
                weights[LETTERS.index(alternative.strip())] += math.exp(min(logprob, 0.0))
        break
    return weights
