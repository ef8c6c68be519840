"""The pages about the whole run: the overview, what was left out and why, requests and failures."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from ..run.cost import spent_in
from ..run.files import read_json
from ..run.partitions import Partition, last_tries, lean_arrow
from ..text import commonest_first
from ..types import UNFUSED
from .folder import Page, Query, ViewedFolder, ViewedStatus, reload_after, stage_counts
from .pairs import PairQuery, PairSearch, pair_cards
from .prompts import PromptIndex, newest_prompts

NEWEST = 12  # prompts, while there are no pairs
MOST_ROWS = 50


def overview_page(
    folder: ViewedFolder,
    status: ViewedStatus,
    pairs: PairSearch,
    prompts: PromptIndex,
    query: Query,
) -> Page:
    """The first page: how far the run is, what became of its rows, what the pairs look like. A
    running build refreshes it."""
    ix, manifest = pairs.index, folder.manifest
    report = read_json(folder.root / "report.json") or read_json(
        folder.dataset / "provenance" / "report.json"
    )
    newest = range(ix.n - 1, max(ix.n - 6, -1), -1) if not status["running"] else []
    fields = {
        "folder": folder.root.name,
        "kind": folder.kind,
        "dimensions": list(folder.dims),
        "floors": folder.floors,
        "live": status,
        "reload_s": reload_after(status, query),
        "stages": stage_counts(folder, status["running"]),
        "pairs": ix.n,
        "prompts_with_pairs": len(ix.groups),
        "splits": pairs.facets(PairQuery())["split"],
        "flags": {flag: int(hit.sum()) for flag, hit in ix.flags.items()},
        "margins": {d: _margins(pairs, f"margin_{d}") for d in folder.dims} if ix.n else {},
        "source": manifest.get("source") or manifest.get("identity") or {},
        "models": manifest.get("models") or {},
        "simulated": manifest.get("simulated"),
        **{k: report.get(k) for k in ("verdict", "headline", "finding")},
        "doubts": report.get("doubts") or [],
        "newest": pair_cards(ix, list(newest)),
        "prompts": newest_prompts(prompts, pairs, NEWEST) if status["running"] or not ix.n else [],
    }
    return Page("viewer/overview.html", fields)


def _margins(pairs: PairSearch, column: str) -> dict[str, object]:
    """(low, high, pairs) of each bar, and the mean of what is known."""
    values = pairs.index.numbers[column]
    known = values[values == values]
    mean = float(known.mean()) if len(known) else None
    return {"bins": pairs.histogram(PairQuery(sort=f"-{column}")), "mean": mean}


def drops_page(folder: ViewedFolder, status: ViewedStatus, pairs: PairSearch, query: Query) -> Page:
    """What was left out at each stage, and why; with `stage` and `reason`, also prompts that it
    happened to, or `why_none` of them are known."""
    counts = stage_counts(folder, status["running"])
    stage, reason = query.get("stage", ""), query.get("reason", "")
    fields: dict[str, Any] = {
        "stages": counts,
        "notes": folder.manifest.get("notes") or {},
        "stage": stage or None,
        "reason": reason or None,
        "examples": None,
    }
    if stage in counts and reason in counts[stage]["dropped"]:
        arms = pairs.index.labels["arm"].names if pairs.index.n else ("fused",)
        examples = _examples(folder, stage, reason, arms)
        why_none = "Of this reason there are only counts in this folder."
        fields |= {"examples": examples, "why_none": None if examples else why_none}
    return Page("viewer/drops.html", fields)


def _examples(
    folder: ViewedFolder, stage: str, reason: str, arms: Sequence[str]
) -> list[dict[str, Any]]:
    lean_arrow()
    found: list[dict[str, Any]] = []
    for part, _ in folder.finished():
        found += itertools.islice(_dropped(part, stage, reason, arms), MOST_ROWS - len(found))
    return found


def _dropped(
    part: Partition, stage: str, reason: str, arms: Sequence[str]
) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.compute as pc

    if stage == "presample":
        table = part.table("profiles", ["prompt_id", "kind"])
        yield from table.filter(pc.equal(table["kind"], reason)).select(["prompt_id"]).to_pylist()
    elif stage == "fuse":
        columns = ["prompt_id", "arm", "attempt", "accepted", "failed"]
        table = part.table("fusions", columns)
        for row in table.take(list(last_tries(table).values())).to_pylist():
            if not row["accepted"] and row["failed"] and row["failed"][0] == reason:
                tries = row["attempt"] + 1
                yield {"prompt_id": row["prompt_id"], "arm": row["arm"], "tries": tries}
    elif stage == "rollout":
        table = part.table("rollouts", ["prompt_id", "arm", "index", "flags"])
        table = table.filter(pc.invert(pc.is_in(table["arm"], pa.array(UNFUSED))))
        flags = table["flags"].combine_chunks()
        hit = pc.list_parent_indices(flags).filter(pc.equal(pc.list_flatten(flags), reason))
        first = pc.unique(hit).slice(0, MOST_ROWS)
        yield from table.select(["prompt_id", "arm", "index"]).take(first).to_pylist()
    elif (stage, reason) == ("select", "no_dominating_pair"):
        columns = ["prompt_id", "arm"]
        paired = {(r["prompt_id"], r["arm"]) for r in part.table("pairs", columns).to_pylist()}
        for row in part.table("arms", columns).to_pylist():
            if row["arm"] in arms and (row["prompt_id"], row["arm"]) not in paired:
                yield row


def requests_page(folder: ViewedFolder, status: ViewedStatus, query: Query) -> Page:
    """Tokens by model, money, failed rows by cause; `failed` has the last of these rows."""
    causes, rows = _failed_rows(folder)
    fields = {
        "kind": folder.kind,
        "live": status,
        "reload_s": reload_after(status, query),
        "requests": folder.manifest.get("requests"),
        "tokens": spent_in(folder.root, folder.manifest).tokens,
        "manifest_tokens": folder.manifest.get("tokens"),
        "cost": status.get("cost"),
        "causes": [
            {"stage": s, "cause": cause, "rows": n}
            for (s, cause), n in commonest_first(causes).items()
        ],
        "failed": rows,
    }
    return Page("viewer/requests.html", fields)


def _failed_rows(folder: ViewedFolder) -> tuple[Counter[tuple[str, str]], list[dict[str, Any]]]:
    """How often each cause was met, and the last rows, the newest first; lines that can't be read
    are counted as such."""
    causes: Counter[tuple[str, str]] = Counter()
    last: list[dict[str, Any]] = []
    for part, _ in folder.finished():
        try:
            with (part.folder / "errors.jsonl").open("rb") as f:
                for line in f:
                    row = _read_error(line)
                    causes[str(row.get("stage")), str(row.get("error"))[:120]] += 1
                    last = [*last[1 - MOST_ROWS :], row]
        except OSError:
            continue
    return causes, last[::-1]


def _read_error(line: bytes) -> dict[str, Any]:
    try:
        row = orjson.loads(line)
    except ValueError:
        row = None
    return row if isinstance(row, dict) else {"stage": "errors.jsonl", "error": "unreadable line"}
