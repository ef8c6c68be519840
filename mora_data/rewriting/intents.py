"""What each reward dimension asks of a question: templates/intents/<dimension>.yaml, read for the
fuse templates.

    definition: what the dimension means          good: questions that need it
    need: when a question needs it                bad: questions that only talk of it
    alone: questions that need it and nothing else (arm `concat`; may be left out)
    premises: claims of known truth, [{claim: ..., truth: false}], that a question may doubt or
        believe (may be left out)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

import yaml

from .. import resources
from ..errors import SettingsError
from ..text import one_line
from .patterns import content_stems

_REQUIRED, _OPTIONAL = {"definition", "need", "good", "bad"}, {"alone", "premises"}
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
        raise SettingsError(f"{where}: {key} must be a list of questions, not {value!r}")
    return tuple(v.strip() for v in value)


def _premises(value: object, where: str) -> tuple[Premise, ...]:
    out = []
    for row in value if isinstance(value, list) else [value]:
        claim, truth = (
            (row.get("claim"), row.get("truth"))
            if isinstance(row, dict) and len(row) == 2
            else (None, None)
        )
        if not isinstance(claim, str) or not isinstance(truth, bool):
            raise SettingsError(
                f"{where}: premises must be a list of {{claim: text, truth: true or false}}, not"
                f" {row!r}"
            )
        out.append(Premise(claim.strip(), truth))
    return tuple(out)
