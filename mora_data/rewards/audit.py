"""Judges against labels: pairs of answers of the source's rows, of which people called one better,
and what the judges' scores of them say.

    labelled = labelled_pairs(opened, settings)       two answers each, one labelled better
    rows = audit_rows(labelled, scores, ...)          as manifest and report have them

A pair is two answers to one prompt with different ratings, one pair a prompt. Answers that stand
alone at their prompts are paired with answers to other prompts: over those the accuracy is the AUC.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import chain
from typing import TYPE_CHECKING, Any, TypedDict

from ..errors import SettingsError
from ..run import AuditRow
from ..settings import BuildSettings, LabelSettings
from ..sources import is_rated
from ..sources.mine import MineCounts, OpenedSource, mine
from ..text import n_tokens, seed_of
from ..types import Messages, Prompt, Score
from .combine import RewardSource, RewardSources, calibrated, combine, fit_maps
from .judge_stats import retest_noise

if TYPE_CHECKING:
    from ..statistics import Floats, Ints
    from ..statistics.judges import Gain

LEAST_PAIRS = 20  # under which the sentence draws no conclusion
TOGETHER = "all sources"
DECIMALS = 5


@dataclass(frozen=True, slots=True)
class LabelledAnswer:
    """An answer of a source row, and the prompt that it answers."""

    prompt_id: str
    group: str
    messages: Messages
    text: str


@dataclass(frozen=True, slots=True)
class LabelledPair:
    """Two answers, the first of them labelled the better one in a dimension."""

    dimension: str
    better: LabelledAnswer
    worse: LabelledAnswer


@dataclass(frozen=True, slots=True)
class Labelled:
    """What there is to audit with: pairs, and the dimensions without any, each with its reason."""

    pairs: Sequence[LabelledPair]
    without: Mapping[str, str]


@dataclass(slots=True)
class PairScores:
    """What each source of the pair's dimension said: of (better, worse), and of both once more."""

    first: list[list[Score]] = field(default_factory=list)
    again: list[list[Score]] = field(default_factory=list)
    owed: bool = False  # something could not be had now


Judged = tuple[RewardSources, Sequence[PairScores]]


# the pairs


def labelled_pairs(opened: Sequence[OpenedSource], settings: BuildSettings) -> Labelled:
    """The first `audit.limit` pairs of each dimension whose labels the rows carry, in source order,
    source after source.

    Raises:
        SourceError: the rows can't be read.
    """
    audit, dims = settings.audit, settings.dimensions
    without = dict.fromkeys(dims, "no rating is said to speak of it (audit.labels)")
    wanted = {d: audit.labels[d] for d in dims if d in audit.labels}
    rated = [o for o in opened if is_rated(o.source)]
    if not rated or not wanted or not audit.limit:
        if not rated:
            without = dict.fromkeys(dims, "the rows carry no rated answers")
        return Labelled([], without)
    found = {d: _Pairing(d, label, audit.limit) for d, label in wanted.items()}
    for prompt in chain.from_iterable(_rated_prompts(one, settings) for one in rated):
        for pairing in found.values():
            pairing.add(prompt)
        if all(p.is_full for p in found.values()):
            break
    without = {d: found[d].why_none() if d in found else why for d, why in without.items()}
    return Labelled(
        [pair for p in found.values() for pair in p.pairs],
        {d: why for d, why in without.items() if why},
    )


def _rated_prompts(opened: OpenedSource, settings: BuildSettings) -> Iterator[Prompt]:
    """A source's prompts with their answers and ratings."""
    changed = {"limit": None, "near_duplicates": None, "decontaminate": False, "strata": "auto"}
    mining = settings.model_copy(
        update={
            "mine": settings.mine.model_copy(update=changed),
            "policy": settings.policy.model_copy(update={"engine": "recorded"}),
        }
    )
    return mine(opened, mining, MineCounts())


class _Pairing:
    """Pairs of one dimension, as prompts come by."""

    def __init__(self, dimension: str, label: LabelSettings, limit: int) -> None:
        self.pairs: list[LabelledPair] = []
        self._dimension, self._label, self._limit = dimension, label, limit
        self._values: dict[float, int] = {}
        # alone at their prompts, all with one rating: they wait for an answer with another
        self._alone: list[tuple[float, LabelledAnswer]] = []

    @property
    def is_full(self) -> bool:
        return len(self.pairs) >= self._limit

    def add(self, prompt: Prompt) -> None:
        if self.is_full or not fnmatchcase(prompt.stratum, self._label.stratum):
            return
        sign = -1.0 if self._label.invert else 1.0
        rated: dict[str, float] = {}  # of equal texts the first
        for answer in prompt.recorded:
            rating = answer.ratings.get(self._label.rating)
            if rating is not None and answer.text.strip():
                rated.setdefault(answer.text, sign * rating)
        for rating in rated.values():
            self._values[sign * rating] = self._values.get(sign * rating, 0) + 1
        pairs = [(a, b) for a in rated for b in rated if rated[a] > rated[b]]
        if pairs:
            better, worse = pairs[seed_of("audit", prompt.prompt_id, self._dimension) % len(pairs)]
            self._keep(_answer(prompt, better), _answer(prompt, worse))
        elif len(rated) == 1:
            ((text, rating),) = rated.items()
            self._match(rating, _answer(prompt, text))

    def _match(self, rating: float, answer: LabelledAnswer) -> None:
        if self._alone and self._alone[0][0] != rating:
            other, waiting = self._alone.pop(0)
            self._keep(*((answer, waiting) if rating > other else (waiting, answer)))
        elif len(self._alone) < self._limit:
            self._alone.append((rating, answer))

    def _keep(self, better: LabelledAnswer, worse: LabelledAnswer) -> None:
        self.pairs.append(LabelledPair(self._dimension, better, worse))

    def why_none(self) -> str:
        """Why there is no pair; empty where there is one."""
        name, n = self._label.rating, sum(self._values.values())
        if self.pairs:
            return ""
        if not n:
            of = "" if self._label.stratum == "*" else f" of strata {self._label.stratum}"
            return f"no answer of the rows{of} has the rating {name!r} (audit.labels)"
        if len(self._values) == 1:
            return f"all {n} ratings {name!r} are {next(iter(self._values)):g}: one class only"
        return f"no two of {n} answers can be compared: rating {name!r} is equal within each prompt"


def _answer(prompt: Prompt, text: str) -> LabelledAnswer:
    return LabelledAnswer(prompt.prompt_id, prompt.group, prompt.messages, text)


# what they say


def audit_rows(
    labelled: Labelled, scores: Sequence[PairScores], sources: RewardSources, s: BuildSettings
) -> list[AuditRow]:
    """A row for each source of each audited dimension, and one for all of them together where a
    dimension has several."""
    rows = []
    for d in s.dimensions:
        at = [i for i, p in enumerate(labelled.pairs) if p.dimension == d]
        if at:
            pairs, found = [labelled.pairs[i] for i in at], [scores[i] for i in at]
            rows += [
                _row(name, column, again, pairs, s.audit.labels[d])
                for name, column, again in _columns(sources[d], found)
            ]
    return rows


Both = tuple[Score, Score]


def _columns(
    sources: Sequence[RewardSource], scores: Sequence[PairScores]
) -> list[tuple[str, list[Both | None], list[Both | None]]]:
    """(name, first scores, scores once more) of each source, and of all together; None where there
    are none."""

    def column(read: Callable[[PairScores], list[list[Score]]], k: int) -> list[Both | None]:
        return [(c[k][0], c[k][1]) if (c := read(s)) else None for s in scores]

    out = [
        (s.reward.name, column(lambda p: p.first, k), column(lambda p: p.again, k))
        for k, s in enumerate(sources)
    ]
    if len(sources) < 2:
        return out
    raw = {
        (s.dimension, s.number): [[x.raw for x in both] if both else [] for both in out[k][1]]
        for k, s in enumerate(sources)
    }
    try:
        ready = fit_maps({sources[0].dimension: sources}, raw)[sources[0].dimension]
    except SettingsError:  # too few scores for a map: the sources alone say what can be said
        return out
    together: list[Both | None] = []
    for row in zip(*(first for _, first, _ in out), strict=True):
        columns = [
            calibrated(r, both, 2, {}) if s.needs_fit else both
            for s, r, both in zip(sources, ready, row, strict=True)
            if both
        ]
        values = [combine(ready, [c[side] for c in columns]) for side in (0, 1)]
        one, other = (Score(ready[0].dimension, TOGETHER, v.reward if v else None) for v in values)
        together.append((one, other))
    return [*out, (TOGETHER, together, [None] * len(scores))]


def _row(
    name: str,
    column: Sequence[Both | None],
    again: Sequence[Both | None],
    pairs: Sequence[LabelledPair],
    label: LabelSettings,
) -> AuditRow:
    import numpy as np

    from ..statistics.judges import PositionSums, label_agreement, right

    judged, clusters = right(*_sides(column)), clusters_of(pairs)
    sides = zip(*((p.better, p.worse) for p in pairs), strict=True)
    longer = right(*(np.array([float(n_tokens(a.text)) for a in side]) for side in sides))
    rule, by_length = ("longer", longer) if longer.mean() >= 0.5 else ("shorter", 1 - longer)
    share, gain = label_agreement(judged, by_length, clusters)
    alone, _ = label_agreement(by_length, judged, clusters)
    there = [s for both in column if both for s in both]
    twice = [
        (a.value, b.value)
        for one, two in zip(column, again, strict=True)
        if one and two
        for a, b in zip(one, two, strict=True)
    ]
    squares = [(a - b) ** 2 for a, b in twice if a is not None and b is not None]
    sigma = retest_noise(squares)
    position = PositionSums()
    position.add(order for s in there for order in s.orders)
    row: AuditRow = {
        "dimension": pairs[0].dimension,
        "source": name,
        "by": label.by,
        "rating": label.rating,
        "pairs": len(pairs),
        "agreement": _rounded(share._asdict()),
        "ties": _share(int((judged == 0.5).sum()), share.n),
        "parse_rate": _share(sum(_number(s) is not None for s in there), len(there)),
        "length_rule": rule,
        "length": _rounded(alone._asdict()),
        "over_length": _rounded(gain._asdict()),
        "sigma": None if sigma is None else round(sigma, DECIMALS),
        "scored_twice": len(squares),
        "position": position.figures() if position.games else None,
        "sentence": "",
    }
    row["sentence"] = sentence(row)
    return row


def _share(c: int, n: int) -> float | None:
    return round(c / n, DECIMALS) if n else None


def _rounded(numbers: Mapping[str, Any]) -> dict[str, float | int | None]:
    """So that the order of a sum does not show."""
    return {k: round(v, DECIMALS) if isinstance(v, float) else v for k, v in numbers.items()}


def clusters_of(pairs: Sequence[LabelledPair]) -> Ints:
    """Pairs of one first user turn are one cluster."""
    import numpy as np

    names: dict[str, int] = {}
    return np.array([names.setdefault(p.better.group, len(names)) for p in pairs], dtype=int)


def _sides(column: Sequence[Both | None]) -> list[Floats]:
    import numpy as np

    return [
        np.array(
            [np.nan if not both or (v := _number(both[side])) is None else v for both in column],
            dtype=float,
        )
        for side in (0, 1)
    ]


def _number(score: Score) -> float | None:
    """The value; before its map is fitted the raw score, which orders answers alike."""
    return score.raw if score.reason == "uncalibrated" else score.value


def knows_more_than_length(row: AuditRow) -> bool:
    """Whether that is sure: the whole interval of the difference lies above 0."""
    low, n = row["over_length"]["low"], row["agreement"]["n"]
    return low is not None and low > 0 and n is not None and n >= LEAST_PAIRS


def sentence(row: AuditRow) -> str:
    """What a row says, in plain words."""
    d, share = row["dimension"], row["agreement"]
    if share["rate"] is None:
        return f"{row['source']} gave no score that can be compared in {row['pairs']} pairs of {d}."
    low, high = float(share["low"] or 0), float(share["high"] or 0)
    ties = f", {row['ties']:.0%} ties as half" if row["ties"] else ""
    if int(share["n"] or 0) < LEAST_PAIRS:
        end = "too few pairs to tell"
    elif high < 0.5:
        end = "it prefers the worse one, so look whether a scale is turned"
    elif low <= 0.5:
        end = "it can't be told from a coin"
    elif knows_more_than_length(row):
        end = "it knows more than length"
    else:
        end = "it is not surely better than length"
    return (
        f"{row['source']} finds the answer that {row['by']} call more {d} in"
        f" {share['rate']:.0%} of {share['n']} pairs ({low:.0%} to {high:.0%}{ties}); taking the"
        f" {row['length_rule']} one is right in {row['length']['rate']:.0%}: {end}."
    )


class AuditDifference(TypedDict):
    """A dimension under two judges or rubrics, on the pairs that both have read."""

    dimension: str
    first: str
    second: str
    gain: dict[str, float | int | None]
    sentence: str


def differences(labelled: Labelled, first: Judged, second: Judged) -> list[AuditDifference]:
    """By how much the second side agrees more often with the labels than the first, per
    dimension."""
    from ..statistics.judges import label_agreement, right

    out: list[AuditDifference] = []
    for d in dict.fromkeys(p.dimension for p in labelled.pairs):
        at = [i for i, p in enumerate(labelled.pairs) if p.dimension == d]
        names, judged = [], []
        for sources, scores in (first, second):
            name, column, _ = _columns(sources[d], [scores[i] for i in at])[-1]
            names.append(name)
            judged.append(right(*_sides(column)))
        _, gain = label_agreement(
            judged[1], judged[0], clusters_of([labelled.pairs[i] for i in at])
        )
        out.append(
            {
                "dimension": d,
                "first": names[0],
                "second": names[1],
                "gain": _rounded(gain._asdict()),
                "sentence": _verdict(d, names, gain),
            }
        )
    return out


def _verdict(d: str, names: Sequence[str], gain: Gain) -> str:
    if gain.gain is None or gain.low is None or gain.high is None:
        return f"{d}: there are no pairs that both have read."
    end = "no sure difference"
    if gain.low > 0 or gain.high < 0:
        end = f"{'the second' if gain.low > 0 else 'the first'} agrees more with the labels"
    return (
        f"{d}: {names[1]} (second) is right in {100 * gain.gain:+.1f} points more than {names[0]}"
        f" (first), {100 * gain.low:+.1f} to {100 * gain.high:+.1f}, {gain.n} pairs: {end}."
    )
