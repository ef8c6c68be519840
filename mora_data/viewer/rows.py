"""What was left out and what failed: the page of drops with prompts to look at, the page of
requests and errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import orjson

from ..errors import RunFolderError
from ..report.figure import percent
from ..run.folder import read_json
from ..run.partitions import Partition, lean_arrow
from .html import a, bar, document, table, tiles, word
from .live import funnel, reloads
from .place import Place, one_line

if TYPE_CHECKING:
    from .server import View

SHOWN = 50


def drops(view: View, query: dict[str, str]) -> dict[str, Any]:
    """The JSON twin of the page of drops; with `stage` and `reason`, also prompts that it happened
    to."""
    place = view.place()
    counts = funnel(place, view.look(place)["running"])
    stage, reason = query.get("stage"), query.get("reason")
    out: dict[str, Any] = {
        "stages": counts,
        "notes": place.manifest.get("notes") or {},
        "stage": stage,
        "reason": reason,
        "examples": None,
    }
    if stage in counts and reason in counts[stage]["dropped"]:
        ix = view.pairs().index
        arms = ix.labels["arm"].names if ix.n else ("fused",)
        out["examples"] = _examples(place, str(stage), str(reason), arms)
        out["why_none"] = (
            None if out["examples"] else "Of this reason there are only counts in this folder."
        )
    return out


def _examples(place: Place, stage: str, reason: str, arms: Sequence[str]) -> list[dict[str, Any]]:
    import pyarrow as pa

    lean_arrow()
    found: list[dict[str, Any]] = []
    for part, _ in place.sealed():
        try:
            for row in _dropped(part, stage, reason, arms):
                found.append(row)
                if len(found) >= SHOWN:
                    return found
        except (OSError, pa.ArrowException, KeyError) as e:
            raise RunFolderError(
                f"{part.folder} can't be shown ({one_line(e)}): it is damaged, being written, or of"
                " another version of mora-data"
            ) from e
    return found


def _dropped(
    part: Partition, stage: str, reason: str, arms: Sequence[str]
) -> Iterator[dict[str, Any]]:
    import pyarrow.compute as pc

    if stage == "presample":
        table = part.table("profiles", ["prompt_id", "kind"])
        for prompt_id in table.filter(pc.equal(table["kind"], reason))["prompt_id"].to_pylist():
            yield {"prompt_id": prompt_id}
    elif stage == "fuse":
        last: dict[tuple[str, str], dict[str, Any]] = {}
        for row in part.table(
            "fusions", ["prompt_id", "arm", "attempt", "accepted", "failed"]
        ).to_pylist():
            last[row["prompt_id"], row["arm"]] = row
        for (prompt_id, arm), row in last.items():
            if not row["accepted"] and row["failed"] and row["failed"][0] == reason:
                yield {"prompt_id": prompt_id, "arm": arm, "tries": row["attempt"] + 1}
    elif stage == "rollout":
        table = part.table("rollouts", ["prompt_id", "arm", "index", "flags"])
        table = table.filter(pc.not_equal(table["arm"], "presample"))
        flags = table["flags"].combine_chunks()
        hit = pc.unique(
            pc.list_parent_indices(flags).filter(pc.equal(pc.list_flatten(flags), reason))
        )
        for row in (
            table.select(["prompt_id", "arm", "index"]).take(hit.slice(0, SHOWN)).to_pylist()
        ):
            yield row
    elif (stage, reason) == ("select", "no_dominating_pair"):
        held = {
            (r["prompt_id"], r["arm"])
            for r in part.table("pairs", ["prompt_id", "arm"]).to_pylist()
        }
        for row in part.table("arms", ["prompt_id", "arm"]).to_pylist():
            if row["arm"] in arms and (row["prompt_id"], row["arm"]) not in held:
                yield row


def drops_html(tree: dict[str, Any]) -> str:
    """The page of drops."""
    body = [
        "<h1>What was left out, and why</h1>",
        (
            '<p class="dim">in = kept + dropped at every stage; a reason opens what it happened'
            " to.</p>"
        ),
    ]
    if not tree["stages"]:
        body.append('<p class="note">Nothing is counted yet.</p>')
    body.append('<div class="columns"><div>')
    for stage, c in tree["stages"].items():
        rows = [
            [
                a(
                    "/drops",
                    reason,
                    {"stage": stage, "reason": reason},
                    anchor="rows",
                    current=(stage, reason) == (tree["stage"], tree["reason"]),
                ),
                n,
                percent(n / c["in"]) if c["in"] else "–",
                bar(n, c["in"]),
            ]
            for reason, n in sorted(c["dropped"].items(), key=lambda kv: (-kv[1], kv[0]))
        ]
        listed = (
            table(["reason", "rows", "of all", "share"], rows, f"drops of {stage}", "funnel")
            if rows
            else '<p class="dim">Nothing was dropped.</p>'
        )
        body.append(
            f"<section><h2>{word(stage)}: {c['in']:,} in, {c['kept']:,} kept</h2>{listed}</section>"
        )
    if tree["notes"]:
        notes = table(["note", "rows"], list(map(list, tree["notes"].items())), "notes")
        body.append(f"<section><h2>Noted in the source, not dropped</h2>{notes}</section>")
    body.append(
        "</div>" + (_examples_html(tree) if tree["examples"] is not None else "") + "</div>"
    )
    return document("Drops", body, "/drops", "/drops.json")


def _examples_html(tree: Mapping[str, Any]) -> str:
    head = f'<section id="rows"><h2>{word(tree["stage"])}: {word(tree["reason"])}</h2>'
    if not tree["examples"]:
        return head + f'<p class="note">{word(tree["why_none"])}</p></section>'
    rows = [
        [
            a(
                f"/prompt/{e['prompt_id']}",
                e["prompt_id"],
                anchor=f"{e['arm']}-{e['index']}" if "index" in e else "",
            ),
            e.get("arm"),
            e.get("index"),
            e.get("tries"),
        ]
        for e in tree["examples"]
    ]
    return (
        head
        + f'<p class="dim">The first {len(rows)}.</p>'
        + table(["prompt", "arm", "answer", "tries"], rows, "examples")
        + "</section>"
    )


def requests(view: View, query: dict[str, str]) -> dict[str, Any]:
    """The JSON twin of the page of requests: tokens by model, money, failed rows by cause."""
    place = view.place()
    live, models = view.look(place), read_json(place.root / "spending.json").get("models")
    causes, rows = _errors(place)
    return {
        "kind": "run" if place.run is not None else "dataset",
        "live": live,
        **reloads(live, query),
        "requests": place.manifest.get("requests"),
        "tokens": models if isinstance(models, dict) else {},
        "manifest_tokens": place.manifest.get("tokens"),
        "cost": live.get("cost"),
        "causes": [
            {"stage": s, "cause": c, "rows": n}
            for (s, c), n in sorted(causes.items(), key=lambda kv: (-kv[1], kv[0]))
        ],
        "failed": rows,
    }


def _errors(place: Place) -> tuple[Counter[tuple[str, str]], list[dict[str, Any]]]:
    """How often each cause was met, and the last rows; lines that can't be read are counted as
    such."""
    causes: Counter[tuple[str, str]] = Counter()
    last: list[dict[str, Any]] = []
    for part, _ in place.sealed():
        try:
            with (part.folder / "errors.jsonl").open("rb") as f:
                for line in f:
                    row = _read(line)
                    causes[str(row.get("stage")), str(row.get("error"))[:120]] += 1
                    last = [*last[1 - SHOWN :], row]
        except OSError:
            continue
    return causes, last[::-1]


def _read(line: bytes) -> dict[str, Any]:
    try:
        tree = orjson.loads(line)
    except ValueError:
        tree = None
    return tree if isinstance(tree, dict) else {"stage": "errors.jsonl", "error": "unreadable line"}


def requests_html(tree: dict[str, Any]) -> str:
    """The page of requests."""
    live, body = tree["live"], ["<h1>Requests and failures</h1>"]
    if tree["kind"] == "dataset":
        body.append(
            '<p class="note">Only the dataset is at hand: what was asked and what failed is in the'
            " run folder.</p>"
        )
    facts: list[tuple[str, Any]] = [
        ("requests of finished commands", tree["requests"]),
        ("answers in the logs", live.get("answers")),
        ("failed rows", live.get("errors")),
        ("owed prompts", live.get("owed")),
        ("cost", "no price known" if tree["cost"] is None else f"{tree['cost']:.2f}"),
    ]
    if live["running"]:
        facts += [
            ("answers per second", live["answers_per_s"]),
            ("tokens per second", live["tokens_per_s"]),
        ]
    body.append(tiles(facts))
    good = [[m, *t] for m, t in tree["tokens"].items() if isinstance(t, list) and len(t) == 3]
    if good:
        body.append(
            "<section><h2>Tokens by model</h2>"
            + table(["model", "in", "out", "of which cached"], good, "tokens")
            + "</section>"
        )
    if tree["causes"]:
        body.append(_failures(tree))
    elif tree["kind"] == "run":
        body.append('<p class="note">No row has failed in the finished partitions.</p>')
    return document("Requests", body, "/requests", "/requests.json")


def _failures(tree: Mapping[str, Any]) -> str:
    causes = [[c["stage"], c["cause"], c["rows"]] for c in tree["causes"][:SHOWN]]
    rows = [
        [
            a(f"/prompt/{e['prompt_id']}", str(e["prompt_id"])) if e.get("prompt_id") else None,
            *(e.get(name) for name in ("stage", "arm", "index", "dimension")),
            str(e.get("error")),
        ]
        for e in tree["failed"]
    ]
    failed = table(["prompt", "stage", "arm", "answer", "dimension", "error"], rows, "failed rows")
    counted = table(["stage", "cause", "rows"], causes, "causes")
    return (
        f"<section><h2>Causes</h2>{counted}</section><section><h2>The last failed"
        f" rows</h2>{failed}</section>"
    )
