"""What each reward dimension asks of a question: templates/intents/<dimension>.yaml, read for the fuse templates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import yaml

from .. import resources
from ..errors import SettingsError


@dataclass(frozen=True, slots=True)
class Intent:
    """One dimension, as the fuse templates see it."""

    definition: str
    need: str  # what a question that needs this dimension looks like
    good: tuple[str, ...]
    bad: tuple[str, ...]


def load_intents(dimensions: Iterable[str], paths: Mapping[str, str] = MappingProxyType({})) -> dict[str, Intent]:
    """The intents of these dimensions, in their order; `paths` names files outside templates/intents/.

    Raises:
        SettingsError: a dimension has no file (the text names the one to add), or its file lacks a key.
    """
    return {dimension: _load(dimension, paths.get(dimension)) for dimension in dimensions}


def _load(dimension: str, given: str | None) -> Intent:
    where = given or f"templates/intents/{dimension}.yaml"
    path = Path(given) if given else resources.folder("templates") / "intents" / f"{dimension}.yaml"
    if not path.is_file():
        have = ", ".join(resources.names("templates", "intents/*.yaml"))
        raise SettingsError(
            f"no intent for dimension {dimension!r}: add {where} with definition, need, good, bad (there: {have}), "
            "or set fuse.intents")
    try:
        tree = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise SettingsError(f"{where} is not YAML: {' '.join(str(e).split())}") from e
    if not isinstance(tree, dict) or set(tree) != {"definition", "need", "good", "bad"}:
        raise SettingsError(f"{where} must have exactly the keys definition, need, good, bad")
    return Intent(_text(tree, "definition", where), _text(tree, "need", where),
                  _texts(tree, "good", where), _texts(tree, "bad", where))


def _text(tree: dict[str, object], key: str, where: str) -> str:
    value = tree[key]
    if not isinstance(value, str) or not value.strip():
        raise SettingsError(f"{where}: {key} must be text, not {value!r}")
    return value.strip()


def _texts(tree: dict[str, object], key: str, where: str) -> tuple[str, ...]:
    value = tree[key]
    if not isinstance(value, list) or not value or not all(isinstance(v, str) and v.strip() for v in value):
        raise SettingsError(f"{where}: {key} must be a list of questions, not {value!r}")
    return tuple(v.strip() for v in value)
