"""What a run says about itself: its summary, fingerprints of settings, counts as a tree, the words
for an empty result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from ..errors import LimitReached
from ..settings import BuildSettings
from ..text import digest


@dataclass
class Summary:
    """What a build did: the object that --json prints."""

    run_dir: str
    dataset_dir: str | None = None
    counts: dict[str, dict[str, Any]] = field(default_factory=dict)
    pairs: int = 0
    requests: int = 0
    repeated: int = 0
    replayed: int = 0
    tokens: dict[str, int] = field(default_factory=lambda: {"in": 0, "out": 0, "cached": 0})
    # of this command, in the currency of the prices; None where a price is missing
    cost: float | None = None
    errors: int = 0
    seconds: float = 0.0
    damaged: int = 0
    retries: dict[str, int] = field(default_factory=dict)
    slots_busy: float | None = None  # mean share of the slots in use
    # base URLs that were taken out for a while, and why
    replicas_out: dict[str, str] = field(default_factory=dict)


def check_errors(
    summary: Summary, counts: Mapping[tuple[str, str], int], settings: BuildSettings
) -> None:
    """Raises LimitReached when more rows failed than the settings allow; `counts` is (stage, what)
    -> n."""
    scored = counts.get(("score", "in"), 0) * len(settings.dimensions)
    rows = counts.get(("presample", "in"), 0) + counts.get(("rollout", "in"), 0) + scored
    share = summary.errors / rows if rows else 0.0
    if share > settings.limits.max_error_share:
        raise LimitReached(
            f"{summary.errors} of {rows} rows failed ({share:.1%}, limits.max_error_share = "
            f"{settings.limits.max_error_share:g}): see {summary.run_dir}/errors.jsonl; "
            "the same command asks again what may still pass"
        )


def json_hash(tree: Any) -> str:
    """16 hex digits over a JSON tree, whatever the order of its keys."""
    return digest(orjson.dumps(tree, option=orjson.OPT_SORT_KEYS).decode())


def counts_tree(
    counts: Mapping[tuple[str, str], int], stages: Iterable[str]
) -> dict[str, dict[str, Any]]:
    """stage -> {"in", "kept", "dropped": {reason: n}} from (stage, what) -> n."""
    out: dict[str, dict[str, Any]] = {}
    for stage in stages:
        dropped = {
            what: n
            for (st, what), n in sorted(counts.items())
            if st == stage and what not in ("in", "kept") and n
        }
        out[stage] = {
            "in": counts.get((stage, "in"), 0),
            "kept": counts.get((stage, "kept"), 0),
            "dropped": dropped,
        }
    return out


def emptied_by(counts: Mapping[str, Mapping[str, Any]], dataset_dir: str | None) -> str:
    """Which stage left nothing, in one line."""
    for stage, c in counts.items():
        if c["in"] and not c["kept"]:
            reason, n = max(c["dropped"].items(), key=lambda kv: (kv[0] != "control_arm", kv[1]))
            return (
                f"no pair was selected: stage {stage} kept none of {c['in']} ({n} {reason}); "
                f"the folder {dataset_dir} is written without pairs"
            )
    return "no pair was selected: no prompt came through; see `mora-data status`"
