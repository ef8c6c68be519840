"""The tables that README.md holds, from what `lab.table` found; results.json beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import analysis
from .lab import SUM
from .world import DIMENSIONS

NAMES = {"base": "base policy", SUM: "identity, plain sum", "additive": "identity and fused"}
MEANS = (
    "joint_pass",
    "joint_pass_H",
    "joint_pass_Q",
    "harmful_S",
    *(f"reward_{d}" for d in DIMENSIONS),
)


def write(found: dict[str, Any], out: Path) -> None:
    """Both files."""
    found["verdicts"] = verdicts(found)
    (out / "results.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    (out / "table.md").write_text(markdown(found), "utf-8")


def verdicts(found: Mapping[str, Any]) -> dict[str, str]:
    """One sentence for each prediction that was looked at."""
    out = {
        "P1": analysis.verdict_1(found["P1"]),
        "P2": analysis.verdict_2(found["P2"]),
        "P4": analysis.verdict_4(found["P4"], SUM, "identity"),
    }
    return out | {p: found[p]["verdict"] for p in ("P3", "P5", "P6") if p in found}


def markdown(found: Mapping[str, Any]) -> str:
    """Verdicts, then the figures of P1, P2 and P4 with their intervals."""
    parts = [
        "| | verdict |\n|---|---|\n"
        + "\n".join(f"| {p} | {v} |" for p, v in sorted(verdicts(found).items()))
    ]
    parts += [
        f"**P1, data level.** Fresh answers to the mined questions: {found['P1']['prompts']} of"
        f" them over all seeds, on {found['P1']['topics']} topics.\n\n" + _arms(found["P1"])
    ]
    parts += [differences(found["P1"]["differences"], "fused")]
    for key, title in (
        ("P2", "**P2, training level, plain test questions.**"),
        ("fused_questions", "**Secondary: fused test questions.**"),
    ):
        level = found[key]
        parts += [
            f"{title} {level['prompts']} questions on {level['topics']} topics; pairs per method"
            f" and seed: {', '.join(map(str, found['pairs']))}.\n\n" + means(level),
            differences(level["differences"]),
        ]
    parts += [
        "**Plain test questions, against the base policy.**\n\n"
        + differences(found["against_base"]["differences"])
    ]
    parts += [
        "**P4, plain test questions: each dimension against the base policy.**\n\n"
        + differences(found["P4"]["differences"])
    ]
    return "\n\n".join(parts) + "\n"


def means(level: Mapping[str, Any]) -> str:
    """A row per method."""
    head = (
        "| trained on | seeds | "
        + " | ".join(m.replace("_", " ") for m in MEANS)
        + " |\n|---|---|"
        + "---|" * len(MEANS)
    )
    rows = [
        f"| {_name(n)} | {level['seeds'][n]} | "
        + " | ".join(_number(m[k]["value"]) for k in MEANS)
        + " |"
        for n, m in level["means"].items()
    ]
    return "\n".join([head, *rows])


def differences(rows: Sequence[Mapping[str, Any]], method: str = "") -> str:
    """A row per comparison, with its interval and Holm's p."""
    head = "| difference | in | points | 95 % interval | p (Holm) |\n|---|---|---|---|---|"
    return "\n".join(
        [
            head,
            *(
                f"| {_name(r.get('method', method))} minus {_name(r['minus'])} |"
                f" {r['metric'].replace('_', ' ')} | {r['value']:+.3f} | {_ends(r)} |"
                f" {r['p_holm']:.3f} |"
                for r in rows
            ),
        ]
    )


def _arms(level: Mapping[str, Any]) -> str:
    head = (
        f"| arm | dominance rate | joint pass | ERD | {' | '.join(DIMENSIONS)}"
        " |\n|---|---|---|---|---|---|---|"
    )
    keys = ("dominance_rate", "joint_pass", "erd", *(f"reward_{d}" for d in DIMENSIONS))

    def shown(m: Mapping[str, Any], k: str) -> str:
        ends = f" [{m[k]['low']:.3f}, {m[k]['high']:.3f}]" if k in keys[:2] else ""
        return f"{m[k]['value']:.3f}{ends}"

    return "\n".join(
        [
            head,
            *(
                f"| {a} | {' | '.join(shown(m, k) for k in keys)} |"
                for a, m in level["arms"].items()
            ),
        ]
    )


def _name(name: str) -> str:
    return NAMES.get(name, name)


def _ends(r: Mapping[str, Any]) -> str:
    return "-" if r["low"] is None else f"{r['low']:+.3f} to {r['high']:+.3f}"


def _number(value: float) -> str:
    return "-" if value != value else f"{value:.3f}"
