"""What each reward dimension asks of a question: templates/intents/<dimension>.yaml, read for the
fuse templates.

    definition: what the dimension means          good: questions that need it
    need: when a question needs it                bad: questions that only talk of it
    alone: questions that need it and nothing else (arm `concat`; may be left out)
    premises: claims of known truth, [{claim: ..., truth: false}], that a question may doubt or
        believe (may be left out)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

import yaml

from .. import resources
from ..errors import SettingsError
from ..text import one_line, script_of, tongue_of
from .patterns import content_stems
from .reply import as_reply

_REQUIRED = {"definition", "need", "good", "bad"}
_OPTIONAL = {"ask", "asked", "cues", "alone", "premises"}
_SHARED_STEMS = 2  # that a claim and a question must have in common to be about the same thing


@dataclass(frozen=True, slots=True)
class Premise:
    """A claim whose truth is known."""

    claim: str
    truth: bool


@dataclass(frozen=True, slots=True)
class Intent:
    """One dimension, as the fuse templates see it."""

    definition: str
    need: str  # what a question that needs this dimension looks like
    good: tuple[str, ...] = ()
    bad: tuple[str, ...] = ()
    ask: tuple[str, ...] = ()  # wordings of what a rewriter is told to ask; else the need
    asked: Mapping[str, str] = field(default_factory=dict)  # question -> how a wording ends there
    cues: re.Pattern[str] | None = None  # by which one sees that a question asks for it
    alone: tuple[str, ...] = ()
    premises: tuple[Premise, ...] = ()


def load_intents(
    dimensions: Iterable[str], paths: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Intent]:
    """The intents of these dimensions, in their order; `paths` names files outside
    templates/intents/.

    Raises:
        SettingsError: a dimension has no file (the text names the one to add), or its file lacks a
            key.
    """
    return {dimension: _load(dimension, paths.get(dimension)) for dimension in dimensions}


def worked_examples(wanted: Sequence[Intent], asks: Sequence[str]) -> list[dict[str, str]]:
    """A `question` and the `reply` of a rewriter that lets it ask for more, of every question for
    which all wanted intents say how it ends; `asks` has the wording of each."""
    shared = [q for q in wanted[0].asked if all(q in i.asked for i in wanted)] if wanted else []
    more = {
        q: [a.replace("...", i.asked[q]) for i, a in zip(wanted, asks, strict=True)] for q in shared
    }
    return [{"question": q, "reply": as_reply(_joined(q, more[q]))} for q in shared]


def is_asked(intent: Intent, question: str) -> bool | None:
    """Whether a question holds a cue of this dimension; None where it holds none and cues can't
    tell, for there are none or the question is not in English."""
    if intent.cues and intent.cues.search(question):
        return True
    english = tongue_of(question) in ("", "english") and script_of(question) in ("", "LATIN")
    return False if intent.cues and english else None


def _joined(question: str, more: Sequence[str]) -> str:
    """One natural question: "How do I x, what a, and is b?", or "Write x. What a, and is b?"."""
    if question.endswith("?"):
        return ", ".join([question[:-1], *more[:-1], f"and {more[-1]}?"])
    first, *others = more
    asked = ", and ".join([first[:1].upper() + first[1:], *others])
    return f"{question} {asked}?"


def premise_for(question: str, intents: Iterable[Intent]) -> Premise | None:
    """The supplied claim that has most content words in common with the question, two at least;
    None where there is none."""
    stems = content_stems(question)
    ranked = [(len(stems & _stems_of(p.claim)), p) for i in intents for p in i.premises]
    shared, best = max(ranked, key=lambda r: r[0], default=(0, None))
    return best if shared >= _SHARED_STEMS else None


@lru_cache(maxsize=4096)
def _stems_of(claim: str) -> frozenset[str]:
    return frozenset(content_stems(claim))


def _load(dimension: str, given: str | None) -> Intent:
    where = given or f"templates/intents/{dimension}.yaml"
    path = Path(given) if given else resources.folder("templates") / "intents" / f"{dimension}.yaml"
    if not path.is_file():
        have = ", ".join(resources.names("templates", "intents/*.yaml"))
        raise SettingsError(
            f"no intent for dimension {dimension!r}: add {where} with definition, need, good, bad"
            f" (there: {have}), or set fuse.intents"
        )
    try:
        tree = resources.parse_yaml(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise SettingsError(f"{where} is not YAML: {one_line(e)}") from e
    if not isinstance(tree, dict) or not _REQUIRED <= set(tree) <= _REQUIRED | _OPTIONAL:
        raise SettingsError(
            f"{where} must have the keys definition, need, good, bad, and besides them alone and"
            " premises at most"
        )
    return Intent(
        _text(tree, "definition", where),
        _text(tree, "need", where),
        _texts(tree, "good", where),
        _texts(tree, "bad", where),
        _texts(tree, "ask", where) if "ask" in tree else (_text(tree, "need", where),),
        tree.get("asked", {}),
        _cues(tree, where),
        _texts(tree, "alone", where) if "alone" in tree else (),
        _premises(tree.get("premises", []), where),
    )


def _text(tree: dict[str, object], key: str, where: str) -> str:
    value = tree[key]
    if not isinstance(value, str) or not value.strip():
        raise SettingsError(f"{where}: {key} must be text, not {value!r}")
    return value.strip()


def _texts(tree: dict[str, object], key: str, where: str) -> tuple[str, ...]:
    value = tree[key]
    if (
        not isinstance(value, list)
        or not value
        or not all(isinstance(v, str) and v.strip() for v in value)
    ):
        raise SettingsError(f"{where}: {key} must be a list of texts, not {value!r}")
    return tuple(v.strip() for v in value)


def _cues(tree: dict[str, object], where: str) -> re.Pattern[str] | None:
    if "cues" not in tree:
        return None
    try:
        return re.compile(rf"\b(?:{'|'.join(_texts(tree, 'cues', where))})\b", re.I)
    except re.error as e:
        raise SettingsError(f"{where}: cues must be regular expressions: {e}") from e


def _premises(value: object, where: str) -> tuple[Premise, ...]:
    out = []
    for row in value if isinstance(value, list) else [value]:
        given = row if isinstance(row, dict) and len(row) == 2 else {}
        claim, truth = given.get("claim"), given.get("truth")
        if not isinstance(claim, str) or not isinstance(truth, bool):
            raise SettingsError(
                f"{where}: premises must be a list of {{claim: text, truth: true or false}}, not"
                f" {row!r}"
            )
        out.append(Premise(claim.strip(), truth))
    return tuple(out)
