"""The first page: how far the run is, what became of its rows, what the pairs look like. A running
build refreshes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..report.figure import percent, shown
from ..run.folder import read_json
from ..run.partitions import lean_arrow
from . import pairs as pairs_page
from .html import a, bar, document, table, tiles, word
from .live import funnel, reloads
from .place import Place
from .query import Pairs, Query, params

if TYPE_CHECKING:
    from .server import View

NEWEST = 12


def data(view: View, query: dict[str, str]) -> dict[str, Any]:
    """The page's JSON twin."""
    place = view.place()
    live = view.look(place)
    held = view.pairs()
    ix, report = held.index, read_json(place.root / "report.json")
    manifest = place.manifest
    shares = {flag: int(hit.sum()) for flag, hit in ix.flags.items()}
    return {
        "folder": place.root.name,
        "kind": "run" if place.run is not None else "dataset",
        "dimensions": list(place.dims),
        "floors": place.floors,
        "live": live,
        **reloads(live, query),
        "stages": funnel(place, live["running"]),
        "pairs": ix.n,
        "prompts_with_pairs": len(ix.groups),
        "splits": held.facets(Query())["split"] if ix.n else {},
        "flags": shares,
        "margins": {d: _histogram(held, f"margin_{d}") for d in place.dims} if ix.n else {},
        "source": manifest.get("source") or manifest.get("identity") or {},
        "models": manifest.get("models") or {},
        "simulated": manifest.get("simulated"),
        "verdict": report.get("verdict"),
        "doubts": report.get("doubts") or [],
        "newest": (
            pairs_page.cards(held, list(range(ix.n - 1, max(ix.n - 6, -1), -1)), Query())
            if ix.n and not live["running"]
            else []
        ),
        "candidates": candidates(place) if live["running"] or not ix.n else [],
    }


def _histogram(held: Pairs, column: str) -> dict[str, Any]:
    q = Query(sort=f"-{column}")
    values = held.index.numbers[column]
    known = values[values == values]
    return {"bins": held.histogram(q), "mean": float(known.mean()) if len(known) else None}


def candidates(place: Place) -> list[dict[str, Any]]:
    """The newest candidate pairs of a run whose dataset is not written: one per prompt, from the
    last finished partition."""
    lean_arrow()
    for part, _ in reversed(place.sealed()):
        try:
            table = part.table("pairs")
        except OSError:
            continue
        rows = [r for r in table.to_pylist() if r["rank"] == 0][-NEWEST:]
        if rows:
            return [
                {
                    "prompt_id": r["prompt_id"],
                    "arm": r["arm"],
                    "margins": {d: r.get(f"margin_{d}") for d in place.dims},
                }
                for r in rows
            ]
    return []


def html(tree: dict[str, Any]) -> str:
    """The page."""
    source = tree["source"]
    where = " ".join(str(source.get(k) or "") for k in ("dataset", "config", "split"))
    body = [
        f'<h1>{word(tree["folder"])}</h1><p class="dim">{word(tree["kind"])} of'
        f" {word(where or 'an unknown source')}"
        f"{', simulated: for trying things out only' if tree['simulated'] else ''}</p>",
        _verdict(tree),
        _progress(tree),
        _tiles(tree),
    ]
    body.append(_margins(tree) if tree["pairs"] else _no_pairs(tree))
    body += [f'<div class="columns">{_funnel(tree)}{_presets(tree)}</div>', _newest(tree)]
    return document(tree["folder"], body, "/", "/index.json")


def _verdict(tree: dict[str, Any]) -> str:
    if not tree["verdict"]:
        return ""
    style = {"supports expansion": "supports", "not supported": "not"}.get(tree["verdict"], "")
    doubts = "".join(f"<li>{word(d)}</li>" for d in tree["doubts"])
    return (
        f'<div class="verdict {style}"><strong>{word(tree["verdict"])}</strong><p class="dim">Data'
        " level only, not training; "
        "report.html in the run folder has the"
        f" numbers.</p>{f'<ul>{doubts}</ul>' if doubts else ''}</div>"
    )


def _progress(tree: dict[str, Any]) -> str:
    live = tree["live"]
    if "status" not in live or (live["status"] == "done" and not live["running"]):
        return ""
    says = (
        "This build is running."
        if live["running"]
        else (
            f"This run is not finished (status: {live['status']}). The same mora-data build command"
            " goes on where it stopped."
        )
    )
    speed = (
        "measured from the next look on"
        if live["answers_per_s"] is None
        else f"{live['answers_per_s']:,.0f} answers/s, {live['tokens_per_s']:,.0f} tokens/s"
    )
    now = live["now"]
    facts = tiles(
        [
            *_slots(now),
            ("prompts finished", f"{live['prompts_sealed']:,} of {live['prompts']:,}"),
            ("partitions", f"{live['partitions_sealed']} of {live['partitions']}"),
            ("answers in the logs", live["answers"]),
            ("speed", speed if live["running"] else "–"),
            ("failed rows", live["errors"]),
            ("owed prompts", live["owed"]),
        ]
    )
    return (
        '<section aria-label="progress"><p class="note"'
        f' role="status">{word(says)}{_hold(tree)}</p>'
        f"{bar(*_done(live), 'progress')}{facts}</section>"
    )


def _done(live: Mapping[str, Any]) -> tuple[int, int]:
    """Items done, and of how many: of the step that is under way, else prompts of the run."""
    if live["now"] and live["now"]["total"]:
        return live["now"]["done"], live["now"]["total"]
    return live["prompts_sealed"], live["prompts"]


def _hold(tree: Mapping[str, Any]) -> str:
    """Whoever reads needs a page that stands still."""
    if not tree["live"]["running"]:
        return ""
    if tree["reload_s"]:
        return (
            f" The page loads itself again every {tree['reload_s']} seconds:"
            f" {a('/', 'hold it still', {'still': '1'})}."
        )
    return f" The page stands still: {a('/', 'let it follow the build')}."


def _slots(now: Mapping[str, Any] | None) -> list[tuple[str, Any]]:
    """How busy the endpoints are, of a running build that says so."""
    if now is None:
        return []
    of = f" of {now['total']:,}" if now["total"] else ""
    facts: list[tuple[str, Any]] = [
        ("doing", f"{now['step']} {now['done']:,}{of}"),
        ("requests of this command", now["requests"]),
    ]
    if now["size"]:
        shut = now["size"] - now["open"]
        waiting = f", {now['waiting']:,} waiting" if now["waiting"] else ""
        refused = f" ({shut:,} shut by refusals)" if shut > 0 else ""
        facts.append(("slots busy", f"{now['busy']:,} of {now['size']:,}{refused}{waiting}"))
    if now["retries"] or now["failed"]:
        facts.append(("retries / given up", f"{now['retries']:,} / {now['failed']:,}"))
    return facts


def _tiles(tree: dict[str, Any]) -> str:
    live, models = tree["live"], tree["models"]
    facts: list[tuple[str, Any]] = [
        ("pairs", tree["pairs"]),
        ("prompts with a pair", tree["prompts_with_pairs"]),
        *((f"pairs in {split}", n) for split, n in sorted(tree["splits"].items())),
    ]
    if "tokens" in live:
        facts += [
            ("tokens in / out", f"{live['tokens']['in']:,} / {live['tokens']['out']:,}"),
            ("cost", "no price known" if live["cost"] is None else f"{live['cost']:.2f}"),
        ]
    facts += [(role, models[role]) for role in ("policy", "judge") if models.get(role)]
    return tiles(facts)


def _no_pairs(tree: dict[str, Any]) -> str:
    if tree["kind"] == "dataset":
        said = "This folder has no rows in preference/."
    elif tree["live"]["running"] or tree["live"]["status"] == "started":
        said = "No pairs are written yet: they are selected when all partitions are finished."
    else:
        said = (
            "No pairs are written: the build ended before its last stage, or nothing was selected;"
            " the stages below say which."
        )
    return f'<p class="note">{said}</p>'


def _margins(tree: dict[str, Any]) -> str:
    panels = [
        pairs_page.histogram(
            h["bins"],
            Query(sort=f"-margin_{d}"),
            f"{d}: margin of the pairs, mean {shown(h['mean'])}",
        )
        for d, h in tree["margins"].items()
    ]
    head = '<h2>Margins by dimension</h2><p class="dim">A bar opens its pairs.</p>'
    return f'<section>{head}<div class="panels">{"".join(panels)}</div></section>'


def _presets(tree: dict[str, Any]) -> str:
    if not tree["pairs"]:
        return ""
    n, flags = tree["pairs"], tree["flags"]
    rows = [
        [
            a("/pairs", name, params(Query(flag=flag, sort=sort))),
            shown(flags[flag]),
            percent(flags[flag] / n),
        ]
        for name, flag, sort in (
            ("scored again, a margin was lost", "lost", "confirmed_total"),
            ("smallest margins", "small", "margin_total"),
            ("one side twice as long", "long_gap", "-length_ratio"),
            ("chosen is longer", "longer", "-length_ratio"),
            ("chosen opens by declining", "refusal", "-margin_total"),
            ("not scored again", "unconfirmed", "-margin_total"),
        )
    ]
    return (
        "<section><h2>Pairs to doubt</h2>"
        + table(["look at", "pairs", "share"], rows, "pairs to doubt")
        + "</section>"
    )


def _funnel(tree: dict[str, Any]) -> str:
    rows = []
    for stage, c in tree["stages"].items():
        reasons = ", ".join(
            f"{n:,} {r}"
            for r, n in sorted(c["dropped"].items(), key=lambda kv: (-kv[1], kv[0]))[:4]
        )
        rows.append([stage, c["in"], c["kept"], bar(c["kept"], c["in"]), reasons or "–"])
    if not rows:
        return (
            '<section><h2>What became of the rows</h2><p class="note">Nothing is counted'
            " yet.</p></section>"
        )
    return (
        "<section><h2>What became of the rows</h2>"
        + table(
            ["stage", "in", "kept", "share kept", "mostly dropped for"], rows, "funnel", "funnel"
        )
        + f"<p>{a('/drops', 'All reasons, with rows to look at')}</p></section>"
    )


def _newest(tree: dict[str, Any]) -> str:
    if tree["newest"]:
        return (
            "<section><h2>The last"
            f" pairs</h2>{pairs_page.listing(tree['newest'], tree['dimensions'], Query())}</section>"  # noqa: E501
        )
    if not tree["candidates"]:
        return ""
    rows = [
        [
            a(f"/prompt/{c['prompt_id']}", c["prompt_id"]),
            c["arm"],
            *(c["margins"][d] for d in tree["dimensions"]),
        ]
        for c in tree["candidates"]
    ]
    return (
        '<section><h2>Newest candidates</h2><p class="dim">From the last finished partition; which'
        " of them become pairs is decided "
        "at the"
        f" end.</p>{table(['prompt', 'arm', *tree['dimensions']], rows, 'candidates')}</section>"
    )
