"""PKU-Alignment/PKU-SafeRLHF: one prompt, two replies, and for each reply safety, severity and 19
harm categories.

    {"prompt": "...", "response_0": "...", "response_1": "...", ..., "is_response_0_safe": true,
     ..., "response_0_severity_level": 0, "better_response_id": 0, "safer_response_id": 0, ...}

The form of 2023 has 7 columns and neither severity nor categories; each row shows which form it has
(note: old_form). Left out: an unreadable or empty prompt. Noted: replies that are empty, truncated,
identical or end in `// end //`; label_missing; label_contradiction (safe with a severity or
category, or unsafe without); forced_safer_id (both safe or both unsafe, so the id says little: most
rows); safer_id_contradiction (it points at the only unsafe reply).
Stratum: both_safe, one_safe, both_unsafe, unlabelled. Prior: harmless = mean of 1 - severity/3; old
form: of safe.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ..settings import SourceSettings
from ..types import Recorded, Row
from . import ParsedRow, number_in, prompt_in, reply_notes, user_turn

CATEGORIES = tuple(
    "Endangering National Security, Insulting Behavior, Discriminatory Behavior, Endangering Public"
    " Health, Copyright Issues, Violence, Drugs, Privacy Violation, Economic Crime, Mental"
    " Manipulation, Human Trafficking, Physical Harm, Sexual Content, Cybercrime, Disrupting Public"
    " Order, Environmental Damage, Psychological Harm, White-Collar Crime, Animal Abuse".split(", ")
)
_FOLDERS = {"alpaca-7b": "Alpaca-7B", "alpaca2-7b": "Alpaca2-7B", "alpaca3-8b": "Alpaca3-8B"}
_SIDES = (0, 1)


class PkuSafeRlhf:
    """Rows of the current and the old form."""

    required = (
        frozenset(
            "prompt response_0 response_1 is_response_0_safe is_response_1_safe better_response_id"
            " safer_response_id".split()
        ),
    )
    absolute = False  # better and safer compare the two replies of one row
    sft = "the licence of PKU-SafeRLHF is non-commercial, and so is what is trained on its replies"

    def __init__(self, settings: SourceSettings) -> None:
        self._split = settings.split
        one = _FOLDERS.get(settings.config, settings.config)
        self._models = list(_FOLDERS.values()) if settings.config == "default" else [one]

    def files(self) -> list[str]:
        """`data/<model>/<split>.jsonl`; `default` joins the three models."""
        return [f"data/{model}/{self._split}.jsonl*" for model in self._models]

    def parse(self, row: Row, file: str) -> ParsedRow:
        """The prompt; the stratum says how many replies are labelled safe."""
        prompt = prompt_in(row, "prompt")
        labels = _labels(row)
        category = next((c for c in CATEGORIES if any(c in h for h in labels.harms)), None)
        notes = (*_reply_notes(row), *_label_notes(row, labels))
        return ParsedRow(user_turn(prompt), _stratum(labels.safe), category, _priors(labels), notes)

    def recorded(self, row: Row) -> tuple[Recorded, ...]:
        """Both replies: severity 0-3 (higher is worse), safe 0 or 1, and better and safer 0 or 1
        against the other one."""
        labels = _labels(row)
        out = []
        for i in _SIDES:
            found = {"severity": labels.severity[i], "safe": labels.safe[i]}
            for name in ("better", "safer"):
                winner = row.get(f"{name}_response_id")
                found[name] = winner == i if winner in _SIDES else None
            text = row.get(f"response_{i}")
            if isinstance(text, str):
                ratings = {name: float(v) for name, v in found.items() if v is not None}
                out.append(Recorded(text, ratings))
        return tuple(out)


class _Labels(NamedTuple):
    """The safety labels of both replies; None where a label is missing or of a wrong type."""

    safe: list[bool | None]
    severity: list[int | None]
    harms: list[frozenset[str]]
    old: bool


def _labels(row: Row) -> _Labels:
    return _Labels(
        safe=[
            v if isinstance(v, bool) else None
            for v in (row.get(f"is_response_{i}_safe") for i in _SIDES)
        ],
        severity=[_level(row.get(f"response_{i}_severity_level")) for i in _SIDES],
        harms=[_harms(row.get(f"response_{i}_harm_category")) for i in _SIDES],
        old="response_0_severity_level" not in row and "response_0_harm_category" not in row,
    )


def _level(value: object) -> int | None:
    level = number_in(value)
    return int(level) if level in (0, 1, 2, 3) else None


def _harms(value: object) -> frozenset[str]:
    given = value.items() if isinstance(value, Mapping) else ()
    return frozenset(k for k, v in given if v is True)


def _stratum(safe: list[bool | None]) -> str:
    if None in safe:
        return "unlabelled"
    return ("both_unsafe", "one_safe", "both_safe")[safe.count(True)]


def _priors(labels: _Labels) -> dict[str, float]:
    known = [1 - s / 3 for s in labels.severity if s is not None] or [
        float(s) for s in labels.safe if s is not None
    ]
    return {"harmless": sum(known) / len(known)} if known else {}


def _reply_notes(row: Row) -> Iterable[str]:
    replies = [row.get(f"response_{i}") for i in _SIDES]
    yield from reply_notes(*replies)
    if any(isinstance(r, str) and r.rstrip().endswith("// end //") for r in replies):
        yield "reply_tail"


def _label_notes(row: Row, labels: _Labels) -> Iterable[str]:
    safe, severity, harms, old = labels
    ids = [row.get("better_response_id"), row.get("safer_response_id")]
    if old:
        yield "old_form"
    if None in safe or not all(i in _SIDES for i in ids) or (not old and None in severity):
        yield "label_missing"
    if not old and any(
        s is not None and s == bool(v or h) for s, v, h in zip(safe, severity, harms, strict=True)
    ):
        yield "label_contradiction"
    if safe in ([True, True], [False, False]):
        yield "forced_safer_id"
    if (safe, ids[1]) in (([True, False], 1), ([False, True], 0)):
        yield "safer_id_contradiction"
