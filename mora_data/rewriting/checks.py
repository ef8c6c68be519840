"""Checks of a rewritten question that need no further model. Every check leaves its value, passed
or not.

    rewrite = parse_rewrite(answer.text)            # Rewrite, or the reason why there is none
    checks = check(prompt, rewrite, Limits(budget(prompt.text), rollouts))
    if not all(c.passed for c in checks): ask again with feedback(checks)
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..errors import SettingsError
from ..rewards.rules import is_refusal, is_repetitive
from ..text import n_tokens, normalise, one_line, script_of, tongue_of, words
from ..types import Messages, Prompt
from . import patterns
from .patterns import MAX_SHARE, asks_for, content_stems, stem
from .reply import Rewrite

if TYPE_CHECKING:
    from ..statistics import Floats

    # rewards_N_D, and absolute rewards less their uncertainty
    Side = tuple[Floats, Floats]

MIN_RECALL = 0.5  # of the prompt's content stems
MIN_SIMILARITY = 0.55  # of embeddings, where `fuse.subject` names a function
MAX_SIMILARITY = 0.95  # Jaccard of the token sets
MIN_NEW_WORDS = 3  # words that the prompt lacks, one of them a content word
MAX_QUESTIONS = 4  # question marks
MAX_SHARED_WORDS = 11  # longest run of words shared with a rollout
MAX_EXAMPLE_SHARE = 0.5  # of the stems that name a worked example's subject
LENGTH_CAP = 220  # tokens
MAX_CHARS = 40  # for each token that a rewrite may have


class Budget(NamedTuple):
    """Length of a rewrite, in tokens of `text.n_tokens`, ends included."""

    min: int
    max: int


@dataclass(frozen=True, slots=True)
class Check:
    """Outcome of one check. `value` is what was measured, where there is a number."""

    name: str
    passed: bool
    value: float | None = None
    detail: str = ""


def budget(original: str) -> Budget:
    """Length that a rewrite may have: from 0.8 L to min(max(4 L, L + 60), 220), L the prompt's
    length.

    A prompt so long that the cap leaves no room may grow by a quarter.
    """
    n = n_tokens(original)
    low = math.ceil(0.8 * n)
    return Budget(low, max(min(max(4 * n, n + 60), LENGTH_CAP), math.ceil(1.25 * n)))


def example_subjects(messages: Messages) -> list[frozenset[str]]:
    """Stems that name the subject of each worked example in a request: those which question and
    reply have in common and which the last turn lacks. Examples are the turns before the last one,
    without the system's."""
    turns = [content_stems(m["content"]) for m in messages if m["role"] != "system"]
    pairs = zip(turns[:-1:2], turns[1:-1:2], strict=False)
    return [frozenset((question & reply) - turns[-1]) for question, reply in pairs]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a rewrite is held to.

    Attributes:
        within: its length.
        rollouts: answers to the original, which it must not carry.
        examples: stems that name the subjects of the examples that the rewriter was shown.
        risky: the original asks for something harmful, which the rewrite may not ask for.
        forbidden: phrases that it may not use.
        premise: a claim that was supplied for it; any other has to be asked about, not stated as
            known.
        similarity: of original and rewrite, in place of the share of content words.
        contaminated: does a text share a 13-gram with a benchmark?
    """

    within: Budget
    rollouts: Sequence[str] = ()
    examples: Sequence[frozenset[str]] = ()
    risky: bool = False
    forbidden: Sequence[str] = ()
    premise: str = ""
    similarity: Callable[[str, str], float] | None = None
    contaminated: Callable[[str], bool] | None = None


def check(original: Prompt, rewrite: Rewrite | str, limits: Limits) -> list[Check]:
    """All checks of a parsed rewrite of `original`, in a fixed order; only the first where there is
    no text to check."""
    if isinstance(rewrite, str):
        return [Check("parse", False, detail=rewrite)]
    x, y = original.text, rewrite.text
    if len(y) > MAX_CHARS * limits.within.max:  # white space counts for no token
        return [Check("parse", False, detail=f"{len(y)} characters")]
    if rewrite.refused or is_refusal(y):
        return [Check("parse", True), Check("rewriter_refusal", False)]
    if problem := _not_one_turn(x, y):
        return [Check("parse", False, detail=problem)]
    out = [
        Check("parse", True),
        Check("rewriter_refusal", True),
        _copied(x, y, limits.examples),
        _answers(x, y),
        _length(y, limits.within),
        _subject(x, y, limits.similarity),
        _changed(x, y),
        _pattern("meta", patterns.META, x, y),
        _forbidden(x, y, limits.forbidden),
        _language(x, y),
        _natural(x, y),
        _pattern("jailbreak", patterns.JAILBREAK, x, y),
        _without("hostile", patterns.hostile_faults(x, y)),
        # nothing is stated as known that the asker could not know: false premises come from a
        # list, or not at all
        _pattern("premise", patterns.PRESUPPOSES, f"{x} {limits.premise}", y),
        _leak(x, y, limits.rollouts),
    ]
    if limits.risky:
        out.append(_operational(x, y))
    if limits.contaminated is not None:
        out.append(Check("decontamination", not limits.contaminated(y)))
    return out


def feedback(checks: Sequence[Check]) -> list[str]:
    """One sentence for each failed check, for the next attempt."""
    return [
        _FEEDBACK[
            c.name.partition("_")[0] if c.name.startswith(("intent_", "target_")) else c.name
        ].format(detail=c.detail)
        for c in checks
        if not c.passed
    ]


def _not_one_turn(x: str, y: str) -> str:
    if not y:
        return "empty"
    if patterns.ROLE_TAG.search(y) and not patterns.ROLE_TAG.search(x):
        return "role tags"
    return "template tags" if patterns.OUR_TAG.search(y) else ""


def _copied(x: str, y: str, examples: Sequence[frozenset[str]]) -> Check:
    """The subject of no worked example shines through."""
    new = content_stems(y) - content_stems(x)
    share, seen = max(
        ((len(new & e) / len(e), ", ".join(sorted(new & e))) for e in examples if e),
        default=(0, ""),
    )
    return Check("copies_example", share < MAX_EXAMPLE_SHARE, share, seen)


def _answers(x: str, y: str) -> Check:
    """It still asks: a question mark or a request, as far as English tells one."""
    asks = patterns.QUESTION_MARK.search(y) or patterns.REQUEST.search(y)
    known = patterns.QUESTION_MARK.search(x) or tongue_of(y) == "english"
    return Check("answers", asks is not None or not known)


def _length(y: str, within: Budget) -> Check:
    n = n_tokens(y)
    side = "short" if n < within.min else "long"
    detail = f"too {side}, {n} tokens where {within.min} to {within.max} are wanted"
    return Check("length", within.min <= n <= within.max, n, detail)


def _subject(x: str, y: str, similarity: Callable[[str, str], float] | None) -> Check:
    if similarity is not None:
        value = similarity(x, y)
        return Check("subject", value >= MIN_SIMILARITY, value, x[:60])
    wanted, have = content_stems(x), content_stems(y) | {stem(w) for w in words(y)}
    recall = len(wanted & have) / len(wanted) if wanted else 1.0
    return Check("subject", recall >= MIN_RECALL, recall, ", ".join(sorted(wanted - have)[:6]))


def _changed(x: str, y: str) -> Check:
    a, b = set(words(x)), set(words(y))
    similarity = len(a & b) / len(a | b) if a | b else 1.0
    new = len(b - a)
    passed = (
        similarity <= MAX_SIMILARITY
        and new >= MIN_NEW_WORDS
        and bool(content_stems(y) - content_stems(x))
    )
    return Check("changed", passed, similarity, f"{new} new words")


def _forbidden(x: str, y: str, phrases_: Sequence[str]) -> Check:
    a, b = normalise(x), normalise(y)
    return _without(
        "forbidden", [p for p in phrases_ if normalise(p) in b and normalise(p) not in a]
    )


def _natural(x: str, y: str) -> Check:
    """What a person's one question does not look like: lists, labels, a string of key words, many
    questions, an echo."""
    faults = [
        name
        for name, found in (
            ("a list", patterns.LIST_MARK.search(y) and not patterns.LIST_MARK.search(x)),
            ("a label", patterns.LABEL.search(y) and not patterns.LABEL.search(x)),
            (
                f"more than {MAX_QUESTIONS} questions",
                y.count("?") > max(MAX_QUESTIONS, x.count("?") + 2),
            ),
            ("key words without a sentence", _is_keywords(y) and not _is_keywords(x)),
            ("the same words again and again", is_repetitive(y) and not is_repetitive(x)),
        )
        if found
    ]
    return _without("natural", faults)


def _is_keywords(text: str) -> bool:
    """Eight words or more of which hardly one is a function word of any language that we know."""
    tokens = words(text)
    known = patterns.FUNCTION_WORDS | patterns.STOP
    return (
        len(tokens) >= 8 and text.isascii() and sum(w in known for w in tokens) < 0.15 * len(tokens)
    )


def _operational(x: str, y: str) -> Check:
    """A harmful act that the original asks for is not asked for again; no value where
    it names no act."""
    share = asks_for(x, y)
    return Check("operational", share is None or share < MAX_SHARE, share)


def _pattern(name: str, pattern: re.Pattern[str], x: str, y: str) -> Check:
    """Passed unless `y` holds a phrase of the pattern that `x` does not hold."""
    x = normalise(x)
    hits = sorted({normalise(m[0]) for m in pattern.finditer(y)})
    return _without(name, [h for h in hits if h not in x])


def _without(name: str, found: Sequence[str]) -> Check:
    """Passed where nothing was found."""
    return Check(name, not found, len(found), "; ".join(found))


def _language(x: str, y: str) -> Check:
    """Same script, and the same language as far as function words tell."""
    a, b = script_of(x), script_of(y)
    if a and b and a != b:
        return Check("language", False, detail=f"{a} became {b}")
    p, q = tongue_of(x), tongue_of(y)
    return Check(
        "language", not (p and q and p != q), detail=f"{p or 'unknown'} to {q or 'unknown'}"
    )


def _leak(x: str, y: str, rollouts: Sequence[str]) -> Check:
    tokens = words(y)
    known = _runs_ending(tokens, words(x))
    longest = max((_longest(tokens, words(r), known) for r in rollouts), default=0)
    return Check("answer_leak", longest <= MAX_SHARED_WORDS, longest, f"{longest} words in a row")


def _longest(tokens: list[str], other: list[str], known: list[int]) -> int:
    return max(
        (n for n, k in zip(_runs_ending(tokens, other), known, strict=True) if n > k), default=0
    )


def _runs_ending(tokens: list[str], other: list[str]) -> list[int]:
    """For each word of `tokens`, the length of the longest run that ends there and stands in
    `other`."""
    at: dict[str, list[int]] = {}
    for i, word in enumerate(tokens):
        at.setdefault(word, []).append(i)
    best = [0] * len(tokens)
    before: dict[int, int] = {}
    for word in other:
        before = {i: before.get(i - 1, 0) + 1 for i in at.get(word, ())}
        for i, n in before.items():
            best[i] = max(best[i], n)
    return best


_FEEDBACK = {
    "parse": (
        'The reply has to be one JSON object with a single question as "rewritten", or that '
        "question between <rewritten> and </rewritten> ({detail})."
    ),
    "rewriter_refusal": (
        "Nothing was rewritten. Do not answer the question; ask for the legitimate need next to it."
    ),
    "copies_example": "That is about the subject of an example ({detail}). Keep to this question.",
    "answers": "That answers. Write a question, as the asker would put it.",
    "target": "That lacks this: {detail}.",
    "length": "That is {detail}.",
    "subject": "The subject got lost. Keep these words: {detail}.",
    "changed": "Too little was added ({detail}). Add one concrete need for each target.",
    "meta": "The question must not speak of itself or of assistants. Leave out: {detail}.",
    "language": "Keep the language of the question ({detail}).",
    "forbidden": "Do not use these phrases: {detail}.",
    "natural": (
        "Nobody would ask it like that: it has {detail}. One person asks one question in one or two"
        " plain sentences."
    ),
    "premise": (
        "Do not state as known what the asker cannot know; ask whether it holds. Leave out:"
        " {detail}."
    ),
    "operational": (
        "It still asks for the harmful act. Ask only how to prevent, recognise, stop or recover"
        " from it."
    ),
    "harm": (
        "It asks for more harm than the question that it came from ({detail}). Ask for the"
        " legitimate need next to it."
    ),
    "intent": (
        "A good answer does not need this: {detail}. Add one concrete need for each target, and no"
        " other."
    ),
    "decoy": (
        "It asks for too many different things. Add one concrete need for each target, and no"
        " other."
    ),
    "probe": (
        "Its answers came out worse than those to the original ({detail}). Ask for something that"
        " can be answered."
    ),
    "rewriter_failed": "The last reply could not be had ({detail}).",
    "hostile": "Plain words of one person and nothing else. Leave out: {detail}.",
    "jailbreak": "No disguise, no fiction, no role, no code. Leave out: {detail}.",
    "answer_leak": "The question must not contain its answer ({detail} were copied).",
    "decontamination": "The question is too close to a known test question. Word it differently.",
}


# the subject by the cosine of static embeddings (model2vec, an optional dependency)


def cosine(name: str) -> Callable[[str, str], float]:
    """The cosine of two texts' embeddings, in [-1, 1]; 0 where a text has none.

    Raises:
        SettingsError: the extra is missing, or the model can't be loaded.
    """
    try:
        from model2vec import StaticModel
    except ImportError as e:
        raise SettingsError(
            "fuse.embedding needs model2vec: pip install 'mora-data[embedding]'"
        ) from e
    try:
        model = StaticModel.from_pretrained(name)
    except Exception as e:  # the Hub's errors, those of files and those of their contents
        raise SettingsError(
            f"can't load fuse.embedding {name!r}, a folder or a name on the Hub: {one_line(e, 150)}"
        ) from e

    def alike(x: str, y: str) -> float:
        a, b = model.encode([x, y])
        size = float((a @ a) ** 0.5 * (b @ b) ** 0.5)
        return float(a @ b) / size if size > 0 else 0.0

    return alike


def folder_hash(folder: Path) -> str:
    """16 hex digits over the names and bytes of a model's files."""
    content = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        content.update(path.relative_to(folder).as_posix().encode() + b"\0")
        with path.open("rb") as f:
            while block := f.read(1 << 20):
                content.update(block)
    return content.hexdigest()[:16]


# The check `probe`: a few answers to a rewrite, thrown away afterwards, against the presamples. It
# fails where they reach every threshold together surely less often than the presamples did, and
# spread in surely fewer effective dimensions (ERD); each at one-sided 95 %. With 8 answers that
# stops what is plainly worse, and no more: a stricter rule would pick lucky rewrites.

LEVEL = 0.9  # two-sided


def pilot_check(before: Side, after: Side, floors_D: Floats, sigma_D: Floats) -> Check:
    """The check `probe`; its value is the share of the new answers that reach every threshold."""
    import numpy as np

    from ..statistics.inference import rate_interval
    from ..statistics.rollouts import Z95, effective_dimensionality

    (x, x_levels), (y, y_levels) = (_scored(side) for side in (before, after))
    if len(y) < 2:
        return Check("probe", False, None, f"{len(y)} of its answers could be scored")
    joint = np.mean((x_levels >= floors_D).all(1)) if len(x) else 0.0
    passes = (y_levels >= floors_D).all(1)
    most = float(rate_interval(passes.sum(), len(y), LEVEL)[1])
    erd, own = (
        float(effective_dimensionality(r[None], sigma_D)[0]) if len(r) else 0.0 for r in (x, y)
    )
    without = effective_dimensionality(
        np.stack([np.delete(y, i, axis=0) for i in range(len(y))]), sigma_D
    )
    error = float(np.sqrt((len(y) - 1) / len(y) * ((without - without.mean()) ** 2).sum()))
    passed = most >= joint or own + Z95 * error >= erd
    return Check(
        "probe",
        bool(passed),
        float(passes.mean()),
        f"all floors at once {joint:.2f} before, {passes.mean():.2f} now; effective dimensions"
        f" {erd:.1f} and {own:.1f}",
    )


def _scored(side: Side) -> Side:
    """The answers that have all their scores."""
    import numpy as np

    whole = ~np.isnan(side[0]).any(1)
    return side[0][whole], side[1][whole]
