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

from collections.abc import Mapping

from ..types import Row
from . import Layout, ParsedRow, prompt_in, reply_notes, score_in, side_in, truth_in, user_turn

CATEGORIES = tuple(
    "Endangering National Security, Insulting Behavior, Discriminatory Behavior, Endangering Public"
    " Health, Copyright Issues, Violence, Drugs, Privacy Violation, Economic Crime, Mental"
    " Manipulation, Human Trafficking, Physical Harm, Sexual Content, Cybercrime, Disrupting Public"
    " Order, Environmental Damage, Psychological Harm, White-Collar Crime, Animal Abuse".split(", ")
)
_FOLDERS = {"alpaca-7b": "Alpaca-7B", "alpaca2-7b": "Alpaca2-7B", "alpaca3-8b": "Alpaca3-8B"}
_SIDES = (0, 1)


def _read(row: Row) -> ParsedRow:
    """The prompt, and both replies with severity 0-3 (higher is worse), safe 0 or 1, and better and
    safer 0 or 1 against the other one. The stratum says how many replies are labelled safe."""
    prompt = prompt_in(row, "prompt")
    replies = [row.get(f"response_{i}") for i in _SIDES]
    # labels of both replies; None where one is missing or of a wrong type
    safe = [truth_in(row.get(f"is_response_{i}_safe")) for i in _SIDES]
    severity = [_level(row.get(f"response_{i}_severity_level")) for i in _SIDES]
    harms = [_harms(row.get(f"response_{i}_harm_category")) for i in _SIDES]
    winners = {name: side_in(row.get(f"{name}_response_id")) for name in ("better", "safer")}
    answers = []
    for i, text in enumerate(replies):
        if isinstance(text, str):
            found = {"severity": severity[i], "safe": safe[i]}
            found |= {n: None if id_ is None else id_ == i for n, id_ in winners.items()}
            ratings = {name: float(v) for name, v in found.items() if v is not None}
            answers.append((text, ratings))
    stratum = "unlabelled"
    if None not in safe:
        stratum = ("both_unsafe", "one_safe", "both_safe")[safe.count(True)]
    old = "response_0_severity_level" not in row and "response_0_harm_category" not in row
    notes = [*reply_notes(*replies)]
    if any(isinstance(r, str) and r.rstrip().endswith("// end //") for r in replies):
        notes.append("reply_tail")
    if old:
        notes.append("old_form")
    if None in (*safe, *winners.values()) or (not old and None in severity):
        notes.append("label_missing")
    if not old and any(
        s is not None and s == bool(v or h) for s, v, h in zip(safe, severity, harms, strict=True)
    ):
        notes.append("label_contradiction")
    if safe in ([True, True], [False, False]):
        notes.append("forced_safer_id")
    if (safe, winners["safer"]) in (([True, False], 1), ([False, True], 0)):
        notes.append("safer_id_contradiction")
    return ParsedRow(
        user_turn(prompt),
        stratum,
        next((c for c in CATEGORIES if c in harms[0] or c in harms[1]), None),
        tuple(notes),
        tuple(answers),
    )


def _level(value: object) -> int | None:
    level = score_in(value)
    return int(level) if level in (0, 1, 2, 3) else None


def _harms(value: object) -> frozenset[str]:
    given = value.items() if isinstance(value, Mapping) else ()
    return frozenset(k for k, v in given if v is True)


_COLUMNS = "prompt response_0 response_1 is_response_0_safe is_response_1_safe better_response_id"
PKU_SAFERLHF = Layout(
    "pku-saferlhf",
    "PKU-SafeRLHF, two replies with labels of safety",
    "`prompt`, `response_0`, `response_1`, `is_response_0_safe` and its fellows",
    frozenset(_COLUMNS.split()).issubset,
    _read,
    scales={"better": (0, 1), "safer": (0, 1), "safe": (0, 1), "severity": (0, 3)},
    patterns=lambda settings: [
        f"data/{folder}/{settings.split}.jsonl*"
        for folder in (
            _FOLDERS.values()
            if settings.config == "default"
            else [_FOLDERS.get(settings.config, settings.config)]
        )
    ],
    sft="the licence of PKU-SafeRLHF is non-commercial, and so is what is trained on its replies",
)
