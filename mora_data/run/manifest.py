"""What a run says about itself: its summary, fingerprints of settings, counts as a tree, the words
for an empty result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

import orjson

from ..errors import LimitReached
from ..settings import BuildSettings
from ..text import digest

# of one stage; in = kept + dropped
StageCounts = TypedDict("StageCounts", {"in": int, "kept": int, "dropped": dict[str, int]})


@dataclass
class Summary:
    """What a build did: the object that --json prints."""

    run_dir: str
    dataset_dir: str | None = None
    counts: dict[str, StageCounts] = field(default_factory=dict)
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


def too_many_errors(
    summary: Summary, counts: Mapping[tuple[str, str], int], settings: BuildSettings
) -> LimitReached | None:
    """The failure of a run of which more rows failed than the settings allow; `counts` is (stage,
    what) -> n."""
    scored = counts.get(("score", "in"), 0) * len(settings.dimensions)
    rows = counts.get(("presample", "in"), 0) + counts.get(("rollout", "in"), 0) + scored
    share = summary.errors / rows if rows else 0.0
    if share > settings.limits.max_error_share:
        return LimitReached(
            f"{summary.errors} of {rows} rows failed ({share:.1%}, limits.max_error_share = "
            f"{settings.limits.max_error_share:g}): see {summary.run_dir}/errors.jsonl; "
            "the same command asks again what may still pass"
        )
    return None


def json_hash(tree: Any) -> str:
    """16 hex digits over a JSON tree, whatever the order of its keys."""
    return digest(orjson.dumps(tree, option=orjson.OPT_SORT_KEYS).decode())


def counts_tree(
    counts: Mapping[tuple[str, str], int], stages: Iterable[str]
) -> dict[str, StageCounts]:
    """stage -> {"in", "kept", "dropped": {reason: n}} from (stage, what) -> n."""
    out: dict[str, StageCounts] = {}
    for stage in stages:
        of_stage = {what: n for (st, what), n in sorted(counts.items()) if st == stage}
        n_in, n_kept = of_stage.pop("in", 0), of_stage.pop("kept", 0)
        dropped = {reason: n for reason, n in of_stage.items() if n}
        out[stage] = {"in": n_in, "kept": n_kept, "dropped": dropped}
    return out


def emptied_by(counts: Mapping[str, StageCounts], dataset_dir: str | None) -> str:
    """Which stage left nothing, in one line."""
    for stage, c in counts.items():
        if c["in"] and not c["kept"]:
            reason, n = max(c["dropped"].items(), key=lambda kv: (kv[0] != "control_arm", kv[1]))
            return (
                f"no pair was selected: stage {stage} kept none of {c['in']} ({n} {reason}); "
                f"the folder {dataset_dir} is written without pairs"
            )
    return "no pair was selected: no prompt came through; see `mora-data status`"
