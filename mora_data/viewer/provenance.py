"""Everything that is known of one prompt: where it came from, what was tried with it, every answer,
every pair.

    tree = lineage(place, "31049b7914a5689e")
    tree["arms"][0]["answers"][3]["rewards"]["helpful"]

From the partition of a run; from the `scored` config where only the dataset is at hand (then
without tries and presamples).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from ..errors import RunFolderError
from ..run.partitions import Partition, lean_arrow
from .index import plain
from .place import Place, one_line

BEFORE = ("identity", "presample")  # arms that show a prompt as it was


def lineage(place: Place, prompt_id: str) -> dict[str, Any] | None:
    """The prompt's story; None where the folder has no such prompt.

    Raises:
        RunFolderError: its files are damaged or of another version.
    """
    import pyarrow as pa

    lean_arrow()
    try:
        return _of_run(place, prompt_id) or _of_dataset(place, prompt_id)
    except (OSError, pa.ArrowException, KeyError, ValueError) as e:
        raise RunFolderError(
            f"prompt {prompt_id} of {place.root} can't be shown ({one_line(e)}): its files are"
            " damaged, being written, or of another version of mora-data"
        ) from e


def _of_run(place: Place, prompt_id: str) -> dict[str, Any] | None:
    for part in place.parts():
        mined = _mined(part, prompt_id)
        if mined is not None:
            return _of_part(part, mined, place.dims)
    return None


def _mined(part: Partition, prompt_id: str) -> dict[str, Any] | None:
    try:
        raw = (part.folder / "prompts.jsonl").read_bytes()
    except OSError:  # mined just now, or started anew
        return None
    start = raw.find(b'{"prompt_id":"' + prompt_id.encode() + b'"')
    if start < 0:
        return None
    tree: dict[str, Any] = orjson.loads(raw[start : raw.index(b"\n", start)])
    return tree


def _of_part(part: Partition, mined: Mapping[str, Any], dims: Sequence[str]) -> dict[str, Any]:
    prompt_id, sealed = mined["prompt_id"], part.manifest() is not None
    out: dict[str, Any] = {
        "prompt_id": prompt_id,
        "messages": list(mined["messages"]),
        "source": {
            k: mined.get(f"source_{k}")
            for k in ("dataset", "config", "split", "revision", "row", "licence")
        },
        "stratum": mined.get("stratum"),
        "category": mined.get("category"),
        "profile": None,
        "tries": [],
        "arms": [],
        "note": (
            None
            if sealed
            else "This prompt is not finished: its partition is open, its answers are in the log."
        ),
        "errors": [e for e in part.errors() if e.get("prompt_id") == prompt_id] if sealed else [],
    }
    if not sealed:
        return out
    out["profile"] = next(_rows(part, "profiles", prompt_id), None)
    out["tries"] = [
        {k: v for k, v in r.items() if k != "prompt_id"} for r in _rows(part, "fusions", prompt_id)
    ]
    out["arms"] = _arms(part, prompt_id, dims)
    return out


def _arms(part: Partition, prompt_id: str, dims: Sequence[str]) -> list[dict[str, Any]]:
    answers: dict[str, list[dict[str, Any]]] = {}
    for r in _rows(part, "rollouts", prompt_id):
        answers.setdefault(r["arm"], []).append(_answer(r, dims))
    found: dict[str, list[dict[str, Any]]] = {}
    for r in _rows(part, "pairs", prompt_id):
        margins = {d: r[f"margin_{d}"] for d in dims}
        confirmed = {d: r[f"margin_confirmed_{d}"] for d in dims}
        pair = {
            "chosen": r["chosen"],
            "rejected": r["rejected"],
            "score": r["score"],
            "margins": margins,
            "confirmed": confirmed,
        }
        found.setdefault(r["arm"], []).append(pair)
    return [
        {
            "name": r["arm"],
            "messages": r["messages"],
            "answers": answers.get(r["arm"], []),
            "candidates": found.get(r["arm"], []),
        }
        for r in _rows(part, "arms", prompt_id)
    ]


def _answer(r: Mapping[str, Any], dims: Sequence[str]) -> dict[str, Any]:
    return {
        "index": r["index"],
        "text": r["text"],
        "finish_reason": r["finish_reason"],
        "length": r["length"],
        "flags": list(r["flags"] or ()),
        "error": r["error"],
        "persona": r["persona"],
        "rewards": {d: r[f"reward_{d}"] for d in dims},
    }


def _rows(part: Partition, name: str, prompt_id: str) -> Iterator[dict[str, Any]]:
    """A prompt's rows of a table: the row groups that hold them, and no others."""
    yield from _matching(part.folder / f"{name}.parquet", "prompt_id", prompt_id)


def _matching(path: Path, column: str, value: str) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, memory_map=True) as file:
        keys = file.read(columns=[column], use_threads=False).column(0)
        wanted = np.flatnonzero(pc.equal(keys, pa.scalar(value, keys.type)).to_numpy())
        first = 0
        for group in range(file.metadata.num_row_groups):
            n = file.metadata.row_group(group).num_rows
            at = wanted[(wanted >= first) & (wanted < first + n)] - first
            if len(at):
                yield from plain(file.read_row_group(group, use_threads=False).take(at))
            first += n


def _of_dataset(place: Place, prompt_id: str) -> dict[str, Any] | None:
    rows = [
        r
        for path in sorted((place.dataset / "scored").glob("*.parquet"))
        for r in _matching(path, "prompt_id", prompt_id)
    ]
    if not rows:
        return None
    first = rows[0]
    return {
        "prompt_id": prompt_id,
        "messages": [{"role": "source", "content": first["source_prompt"]}],
        "source": {
            k: first[f"source_{k}"]
            for k in ("dataset", "config", "split", "revision", "row", "licence")
        },
        "stratum": first["stratum"],
        "category": first["category"],
        "tries": [],
        "errors": [],
        "profile": {k: first[k] for k in ("kind", "carried_dim", "target_dims", "binding_dims")},
        "arms": [_scored_arm(r, place.dims) for r in rows],
        "note": (
            "Only the dataset is at hand: rewrites, presamples and control arms are in the run"
            " folder."
        ),
    }


def _scored_arm(r: Mapping[str, Any], dims: Sequence[str]) -> dict[str, Any]:
    rewards = {d: r[f"rewards_{d}"] or [None] * len(r["completions"]) for d in dims}
    answers = [
        {
            "index": i,
            "text": text,
            "finish_reason": r["finish_reasons"][i],
            "length": r["lengths"][i],
            "flags": list(r["flags"][i] or ()),
            "error": "failed" if r["finish_reasons"][i] == "error" else None,
            "persona": None,
            "rewards": {d: rewards[d][i] for d in dims},
        }
        for i, text in enumerate(r["completions"])
    ]
    candidates = [
        {
            "chosen": c,
            "rejected": x,
            "score": None,
            "confirmed": dict.fromkeys(dims),
            "margins": {d: _less(rewards[d][c], rewards[d][x]) for d in dims},
        }
        for c, x in zip(r["pair_chosen"] or (), r["pair_rejected"] or (), strict=True)
    ]
    return {"name": r["arm"], "messages": r["prompt"], "answers": answers, "candidates": candidates}


def _less(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def mark_selected(tree: dict[str, Any], pairs: Sequence[Mapping[str, Any]]) -> None:
    """Put the published pairs of the prompt into its arms: `selected` holds (pair id, chosen,
    rejected) by answer index."""
    for arm in tree["arms"]:
        by_text = {a["text"]: a["index"] for a in reversed(arm["answers"])}
        arm["selected"] = [
            {"pair_id": p["pair_id"], "chosen": by_text[c], "rejected": by_text[r]}
            for p in pairs
            if p["arm"] == arm["name"]
            and (c := p["chosen"][-1]["content"]) in by_text
            and (r := p["rejected"][-1]["content"]) in by_text
        ]
