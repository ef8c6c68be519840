"""One prompt from its source to its pairs: what presampling found, every rewrite with its checks,
every answer by arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

from .html import a, added, conversation, document, folded, said, table, unfold, word
from .picture import space
from .provenance import BEFORE, lineage, mark_selected

if TYPE_CHECKING:
    from .server import View

TITLES = {
    "identity": "Before fusion",
    "presample": "Before fusion (presamples)",
    "fused": "After fusion",
}


def data(view: View, query: dict[str, str], prompt_id: str) -> dict[str, Any] | None:
    """The page's JSON twin; None where there is no such prompt."""
    from .index import full

    held = view.pairs()
    rows = held.index.of_prompt(prompt_id)
    tree = lineage(held.place, prompt_id)
    if tree is None:
        return None
    mark_selected(tree, [full(held.index, i) for i in rows])
    return {
        "lineage": tree,
        "dimensions": list(held.place.dims),
        "floors": dict(held.place.floors),
        "x": query.get("x"),
        "y": query.get("y"),
        "query": {k: query[k] for k in ("x", "y", "texts") if query.get(k)},
        "pairs": [held.index.ids[i] for i in rows],
    }


def html(tree: dict[str, Any]) -> str:
    """The page."""
    story, source = tree["lineage"], tree["lineage"]["source"]
    harm = _may_harm(tree) and not tree["query"].get("texts")
    where = (
        f"{source['dataset']} {source['config'] or ''} {source['split'] or ''}, row"
        f" {source['row']}, {source['licence']}"
    )
    body = [
        f'<h1>Prompt {word(story["prompt_id"])}</h1><p class="dim">{word(where)} · category'
        f" {word(story['category'] or 'none')}</p>"
    ]
    body.append(f'<p class="pager">{unfold("/prompt/" + story["prompt_id"], tree["query"])}</p>')
    if story["note"]:
        body.append(f'<p class="note">{word(story["note"])}</p>')
    body += [
        (
            "<section><h2>In reward"
            f" space</h2>{spaces(tree['lineage'], tree, '', '/prompt/' + story['prompt_id'])}</section>"  # noqa: E501
            if story["arms"]
            else ""
        ),
        "<h2>From the source</h2>",
        folded("Show the prompt (it may be harmful)", conversation(story["messages"]), harm),
        _profile(story["profile"], tree["dimensions"]),
        _tries(story, harm),
        _pairs(tree),
        *(_arm(arm, tree, harm) for arm in story["arms"]),
        _errors(story),
    ]
    return document(
        f"Prompt {story['prompt_id']}", body, "/prompt", f"/prompt/{story['prompt_id']}.json"
    )


def spaces(story: Mapping[str, Any], tree: Mapping[str, Any], link: str | None, here: str) -> str:
    """The pictures of the prompt's answers, before fusion and after, and links to the other pairs
    of dimensions.

    `link`: page on which the answers are, empty for this one, None for none; `here`: this page.
    """
    dims = tree["dimensions"]
    if len(dims) < 2:
        return '<p class="note">One dimension only: there is no plane to draw.</p>'
    x, y = _axes(story, tree)
    arms = {arm["name"]: arm for arm in story["arms"]}
    before = next((b for b in BEFORE if b in arms), None)
    names = [*([before] if before else []), *(n for n in arms if n not in BEFORE)]
    panels = [
        space(
            TITLES.get(n, f"Arm {n}"),
            arms[n]["answers"],
            (x, y),
            tree["floors"],
            [(p["chosen"], p["rejected"]) for p in arms[n].get("selected", ())],
            None if link is None else f"{link}#{n}-",
        )
        for n in names
    ]
    others = "".join(
        f"<li>{a(here, f'{p} × {q}', {**tree['query'], 'x': p, 'y': q}, current=(p, q) == (x, y))}</li>"  # noqa: E501
        for p, q in _planes(dims, (x, y))
    )
    picks = f'<ul class="chips" aria-label="dimensions">{others}</ul>' if len(dims) > 2 else ""
    key = (
        f'<p class="dim">Each point is an answer{"" if link is None else " and a link to it"};'
        " answers with the same rewards lie round their place. Circle: chosen. Square: rejected."
        " Hollow: kept out of pairs (empty, truncated, repetition, duplicate). Shaded: at or above"
        " both floors. Line: the Pareto staircase of these two dimensions.</p>"
    )
    return f'{picks}<div class="spaces">{"".join(panels)}</div>{key}'


def _planes(dims: Sequence[str], now: tuple[str, str]) -> list[tuple[str, str]]:
    return [now if set(p) == set(now) else p for p in combinations(dims, 2)]


def _axes(story: Mapping[str, Any], tree: Mapping[str, Any]) -> tuple[str, str]:
    dims: list[str] = tree["dimensions"]
    profile = story["profile"] or {}
    if tree["x"] in dims and tree["y"] in dims and tree["x"] != tree["y"]:
        return tree["x"], tree["y"]
    carried = profile.get("carried_dim")
    x = str(carried) if carried in dims else dims[0]
    wanted: list[str] = [
        *(profile.get("target_dims") or ()),
        *(profile.get("binding_dims") or ()),
        *dims,
    ]
    return x, next(d for d in wanted if d in dims and d != x)


def _may_harm(tree: Mapping[str, Any]) -> bool:
    """The prompt is folded where some answer to it is not known to be harmless."""
    floor = tree["floors"].get("harmless")
    if floor is None:
        return True
    rewards = [
        x["rewards"].get("harmless") for arm in tree["lineage"]["arms"] for x in arm["answers"]
    ]
    return not rewards or any(v is None or v < floor for v in rewards)


def _profile(profile: Mapping[str, Any] | None, dims: Sequence[str]) -> str:
    if profile is None:
        return ""
    adds, binding = (
        ", ".join(profile[k] or ()) or "nothing" for k in ("target_dims", "binding_dims")
    )
    said_ = (
        f"Kind {profile['kind']}; carries {profile['carried_dim'] or 'nothing'}; fusion adds"
        f" {adds}; a pair must win in: {binding}."
    )
    if profile.get("n") is None:
        return f"<p>{word(said_)}</p>"
    rows = [[d, profile[f"state_{d}"], profile[f"passed_{d}"], profile[f"gini_{d}"]] for d in dims]
    more = table(
        ["dimension", "state", "share that passes the floor", "gini"],
        rows,
        "what presampling found",
    )
    return (
        f"<section><h2>What {profile['n']} presamples found</h2><p>{word(said_)}</p>{more}"
        + table(
            ["dominance rate", "effective dimensions", "joint pass"],
            [[profile["dominance"], profile["erd"], profile["joint"]]],
            "joint",
        )
        + "</section>"
    )


def _tries(story: Mapping[str, Any], harm: bool) -> str:
    if not story["tries"]:
        return ""
    before, out = story["messages"][-1]["content"], []
    for t in story["tries"]:
        verdict = "accepted" if t["accepted"] else f"rejected: {', '.join(t['failed'])}"
        checks = table(
            ["check", "passed", "value"],
            [[c["name"], c["passed"], c["value"]] for c in t["checks"]],
            "checks",
        )
        text = folded("Show the rewrite (it may be harmful)", added(before, t["text"]), harm)
        out.append(
            f'<article class="answer"><h3>{word(t["arm"])}, try'
            f" {t['attempt'] + 1}.{t['candidate'] + 1}: "
            f'<span class="{"up" if t["accepted"] else "down"}">{word(verdict)}</span></h3>'
            f"{text}{folded('Checks', checks)}</article>"
        )
    return (
        '<section><h2>Rewrites</h2><p class="dim">Underlined: words that the original does not'
        f" have.</p>{''.join(out)}</section>"
    )


def _pairs(tree: Mapping[str, Any]) -> str:
    rows = [
        [
            a(f"/pair/{p['pair_id']}", p["pair_id"]),
            arm["name"],
            a("", str(p["chosen"]), anchor=f"{arm['name']}-{p['chosen']}"),
            a("", str(p["rejected"]), anchor=f"{arm['name']}-{p['rejected']}"),
        ]
        for arm in tree["lineage"]["arms"]
        for p in arm.get("selected", ())
    ]
    if not rows:
        return (
            '<section><h2>Pairs</h2><p class="note">No pair of this prompt is in the'
            " dataset.</p></section>"
        )
    return f"<section><h2>Pairs</h2>{table(['pair', 'arm', 'chosen', 'rejected'], rows, 'pairs')}</section>"  # noqa: E501


def _arm(arm: Mapping[str, Any], tree: Mapping[str, Any], harm: bool) -> str:
    dims, floor = tree["dimensions"], tree["floors"].get("harmless")
    roles = {
        i: side
        for p in arm.get("selected", ())
        for side in ("rejected", "chosen")
        for i in [p[side]]
    }
    candidates = [
        [
            c["chosen"],
            c["rejected"],
            c["score"],
            *(v for d in dims for v in (c["margins"][d], c["confirmed"][d])),
        ]
        for c in arm["candidates"]
    ]
    head = ["chosen", "rejected", "score", *(h for d in dims for h in (d, "scored again"))]
    more = (
        folded(f"Candidate pairs ({len(candidates)})", table(head, candidates, "candidates"))
        if candidates
        else ""
    )
    asked = folded(
        "Show the prompt as asked (it may be harmful)", conversation(arm["messages"]), harm
    )
    answers = "".join(
        _answer(x, arm["name"], roles.get(x["index"]), floor, bool(tree["query"].get("texts")))
        for x in arm["answers"]
    )
    section = f'{asked}{more}<div class="answers">{answers}</div>'
    return (
        f"<section><h2>Arm {word(arm['name'])}: {len(arm['answers'])}"
        f" answers</h2>{section}</section>"
    )


def _answer(
    x: Mapping[str, Any], arm: str, role: str | None, floor: float | None, unfolded: bool
) -> str:
    scores = "".join(
        f'<li class="chip">{word(d)} {"–" if v is None else f"{v:.2f}"}</li>'
        for d, v in x["rewards"].items()
    )
    scores += "".join(f'<li class="chip">{word(flag)}</li>' for flag in x["flags"])
    persona = f", persona {word(x['persona'])}" if x["persona"] else ""
    harmless = x["rewards"].get("harmless")
    may_harm = not unfolded and (floor is None or harmless is None or harmless < floor)
    text = (
        said(x["text"]) if x["error"] is None else f'<p class="note">failed: {word(x["error"])}</p>'
    )
    shown_role = (
        f': <span class="{"up" if role == "chosen" else "down"}">{role}</span>' if role else ""
    )
    return (
        f'<article class="answer" id="{word(arm)}-{x["index"]}"><h3>{word(arm)}'
        f" {x['index']}{shown_role}</h3>"
        f'<p class="dim">{x["length"]} tokens, ended by {word(x["finish_reason"])}{persona}</p><ul'
        f' class="chips">{scores}</ul>'
        f"{folded('Show the answer (it may be harmful)', text, may_harm and x['error'] is None)}</article>"  # noqa: E501
    )


def _errors(story: Mapping[str, Any]) -> str:
    if not story["errors"]:
        return ""
    rows = [
        [e.get("stage"), e.get("arm"), e.get("index"), e.get("dimension"), e.get("error")]
        for e in story["errors"]
    ]
    return (
        "<section><h2>Failed"
        f" rows</h2>{table(['stage', 'arm', 'answer', 'dimension', 'error'], rows, 'failed rows')}</section>"  # noqa: E501
    )
