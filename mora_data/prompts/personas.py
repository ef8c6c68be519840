"""Personas: system prompts that share a prompt's answers among them, so that the answers differ
more.

    rollout: {n: 15, personas: [concise, cautious, skeptical]}     # answers 0, 3, 6, ... are
        concise, 1, 4, 7, ... cautious

The training prompt stays without a system prompt, judges see none either, and no persona may have
more than 60 % of either side of the pairs: else training would copy a persona instead of preferring
better answers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import yaml

from .. import resources
from ..errors import SettingsError
from ..run.partitions import Partition, row_tuples
from ..text import one_line
from ..types import Message, Messages

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_SHARE = 0.6  # of the chosen or of the rejected answers

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Persona:
    """A name and a system prompt."""

    name: str
    system: str


def load_personas(names: Sequence[str], n: int) -> tuple[Persona, ...]:
    """The personas of templates/personas/, or of YAML files at these paths; `n` answers are shared
    among them.

    Raises:
        SettingsError: there is none of that name, a file lacks `system`, or there are too few
            personas or answers.
    """
    if names and (len(set(names)) < 2 or len(names) > n):
        raise SettingsError(
            f"rollout.personas = {list(names)} must name two or more, and no more than rollout.n"
            f" = {n}"
        )
    return tuple(_load(name) for name in names)


def as_persona(messages: Messages, persona: Persona | None) -> Messages:
    """The conversation with the persona's system prompt, which follows one that is there
    already."""
    if persona is None:
        return messages
    if messages[0]["role"] == "system":
        return (
            Message(role="system", content=f"{messages[0]['content']}\n\n{persona.system}"),
            *messages[1:],
        )
    return (Message(role="system", content=persona.system), *messages)


def interleave(shares: Sequence[Sequence[T]]) -> list[T]:
    """The shares as one list, dealt in turn: more answers only append."""
    k, n = len(shares), sum(map(len, shares))
    return [shares[i % k][i // k] for i in range(n)]


def cap_shares(
    parts: Iterable[Partition],
    chosen: dict[int, NDArray[np.int64]],
    arms: Sequence[str],
    names: Sequence[str],
) -> tuple[dict[str, Any], int]:
    """Take out of `chosen`, lowest scores first, what a persona has beyond its share of either
    side.

    Args:
        chosen: per partition, the chosen rows of its table of candidates; it is changed.
        arms: the published arms.
        names: the personas, in the order in which they answered.

    Returns:
        {"chosen": {persona: share}, "rejected": {persona: share}, "dropped": pairs taken out}, for
        the manifest; and how many prompts lost their last pair.
    """
    import pyarrow as pa

    from ..run.table import candidate_pairs

    rows: list[_Chosen] = []
    for part in parts:
        at = chosen.get(part.number, ())
        pairs = candidate_pairs(part, arms).take(pa.array(at, pa.int64()))
        found = row_tuples(pairs, "score", "prompt_id", "arm", "chosen", "rejected")
        for k, (score, prompt_id, arm, *answers) in zip(at, found, strict=True):
            whose = (names[answers[0] % len(names)], names[answers[1] % len(names)])
            rows.append(_Chosen(score, prompt_id, arm, part.number, int(k), whose))
    before, rows = rows, sorted(rows)
    while too_many := _excess(rows):
        side, name, excess = too_many
        out = {(r.part, r.at) for r in [r for r in rows if r.sides[side] == name][:excess]}
        rows = [r for r in rows if (r.part, r.at) not in out]
    kept = {(r.part, r.at) for r in rows}
    for number, at in chosen.items():
        chosen[number] = at[[(number, int(k)) in kept for k in at]]
    shares = [Counter(r.sides[side] for r in rows) for side in (0, 1)]
    lost = {(r.prompt_id, r.arm) for r in before} - {(r.prompt_id, r.arm) for r in rows}
    return {
        **{
            word: {name: c[name] / max(len(rows), 1) for name in names}
            for word, c in zip(("chosen", "rejected"), shares, strict=True)
        },
        "dropped": len(before) - len(rows),
    }, len(lost)


class _Chosen(NamedTuple):
    """A chosen pair, in the order in which pairs are given up."""

    score: float
    prompt_id: str
    arm: str
    part: int
    at: int
    sides: tuple[str, str]  # whose answers


def _excess(rows: Sequence[_Chosen]) -> tuple[int, str, int] | None:
    """A side, the persona that has too much of it, and how many of its pairs have to go; None when
    all is well."""
    for side in (0, 1):
        for name, c in sorted(Counter(r.sides[side] for r in rows).items()):
            if c > MAX_SHARE * len(rows) + 1e-9:
                return side, name, math.ceil((c - MAX_SHARE * len(rows)) / (1 - MAX_SHARE) - 1e-9)
    return None


def _load(name: str) -> Persona:
    path = (
        Path(name)
        if name.endswith((".yaml", ".yml"))
        else resources.folder("templates") / "personas" / f"{name}.yaml"
    )
    try:
        tree = resources.parse_yaml(path.read_text("utf-8"))
    except OSError as e:
        have = ", ".join(resources.names("templates", "personas/*.yaml"))
        raise SettingsError(
            f"no persona {name!r} in templates/personas/ (there: {have}); or give a path that ends"
            " in .yaml"
        ) from e
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise SettingsError(f"persona {name} is not YAML: {one_line(e)}") from e
    system = tree.get("system") if isinstance(tree, dict) and len(tree) == 1 else None
    if not isinstance(system, str) or not system.strip():
        raise SettingsError(f"persona {name} must have the one key system, with text")
    return Persona(path.stem, system.strip())
