"""Blind review: one pair, two answers without scores, place and order by chance. The only page that
writes, and only with --review.

Votes are lines of reviews.jsonl in the run folder; what they say of the scores is in report.json
(`mora-data report`).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from secrets import token_urlsafe
from typing import TYPE_CHECKING, Any

import orjson

from ..errors import RunFolderError, SettingsError
from ..report.reviews import FILE, VOTES, prefers, read_reviews
from ..text import digest
from .html import Html, a, conversation, document, folded, said, unfold, url, word
from .index import Index, full
from .place import stamp

if TYPE_CHECKING:
    from .server import View

BUTTONS = (
    ("first", "First is better", "1"),
    ("second", "Second is better", "2"),
    ("equal", "Equally good", "3"),
    ("neither", "Neither will do", "4"),
)
FORM_BYTES = 4096


class Reviewing:
    """One person's reviews of one run folder, while the viewer runs.

    Attributes:
        token: what a form has to carry, so that no other page can vote.
    """

    def __init__(self, run: Path, reviewer: str) -> None:
        self.run, self.reviewer, self.token = run, reviewer, token_urlsafe(24)
        self._writing = threading.Lock()
        self._order: tuple[object, list[str]] = (None, [])
        self._votes: tuple[object, dict[str, dict[str, Any]]] = (None, {})

    def order(self, ix: Index) -> list[str]:
        """All pairs in this person's order."""
        if self._order[0] != ix.stamp:
            self._order = (
                ix.stamp,
                sorted(ix.ids, key=lambda i: digest("review", self.reviewer, i)),
            )
        return self._order[1]

    def first(self, pair_id: str) -> str:
        """The side that is shown first."""
        return ("chosen", "rejected")[int(digest("first", self.reviewer, pair_id)[:8], 16) % 2]

    def votes(self) -> dict[str, dict[str, Any]]:
        """This person's votes by pair, those of another viewer too."""
        now = stamp([self.run / FILE])
        if self._votes[0] != now:
            rows = read_reviews(self.run)
            self._votes = (now, {r["pair_id"]: r for r in rows if r["reviewer"] == self.reviewer})
        return self._votes[1]

    def add(self, pair_id: str, vote: str) -> None:
        """Append a vote.

        Raises:
            SettingsError: no such vote.
            RunFolderError: it can't be written.
        """
        if vote not in VOTES:
            raise SettingsError(f"vote {vote[:20]!r} is none of {', '.join(VOTES)}")
        at = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
        row = {
            "pair_id": pair_id,
            "reviewer": self.reviewer,
            "first": self.first(pair_id),
            "vote": vote,
            "at": at,
        }
        try:
            with self._writing:
                file = os.open(self.run / FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
                try:
                    # one write: two viewers don't mix their lines
                    os.write(file, orjson.dumps(row) + b"\n")
                finally:
                    os.close(file)
        except OSError as e:
            raise RunFolderError(
                f"can't write {self.run / FILE}: {e.strerror}; the vote is not kept"
            ) from e


def data(view: View, query: dict[str, str]) -> dict[str, Any]:
    """The page's JSON twin: neither it nor the page says which side is the chosen one."""
    held, reviewing = view.pairs(), view.reviewing
    state = {"texts": "1"} if query.get("texts") == "1" else {}
    if reviewing is None:
        return {"on": False, "n": held.index.n, "query": state}
    ix, votes = held.index, reviewing.votes()
    order = reviewing.order(ix)
    pair_id = query.get("pair") or _next(order, votes, query.get("after"))
    out = {
        "on": True,
        "reviewer": reviewing.reviewer,
        "n": ix.n,
        "judged": sum(i in ix.row_of for i in votes),
        "last": _last(ix, votes.get(query.get("last", ""))),
        "query": state,
        "pair_id": pair_id if pair_id in ix.row_of else None,
        "_token": reviewing.token,
    }
    if pair_id in ix.row_of:
        row = full(ix, ix.row_of[pair_id])
        first = reviewing.first(pair_id)
        out |= {
            "prompt": row["prompt"],
            "first": row[first][-1]["content"],
            "second": row["rejected" if first == "chosen" else "chosen"][-1]["content"],
            "may_harm": bool(ix.flags["harm"][ix.row_of[pair_id]]),
        }
    return out


def _next(order: list[str], votes: Mapping[str, Any], after: str | None) -> str:
    """The first pair without a vote, behind `after` where that is given; then those that were
    passed over."""
    start = order.index(after) + 1 if after in order else 0
    return next((i for i in order[start:] + order[:start] if i not in votes), "")


def _last(ix: Index, vote: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The vote just given, with what the scores say: shown when it can't sway it any more."""
    if vote is None or vote["pair_id"] not in ix.row_of:
        return None
    at = ix.row_of[vote["pair_id"]]
    side = prefers(dict(vote))
    agrees = None if side is None else side == "chosen"
    margin = float(ix.numbers["margin_total"][at])
    return {
        "pair_id": ix.ids[at],
        "vote": vote["vote"],
        "agrees": agrees,
        "margin": None if margin != margin else margin,
    }


def vote(view: View, form: Mapping[str, str]) -> str:
    """Take a vote; returns the address of the next pair.

    Raises:
        SettingsError: no such vote or pair.
        RunFolderError: it can't be written.
    """
    reviewing, pair_id = view.reviewing, form.get("pair", "")
    if reviewing is None or pair_id not in view.pairs().index.row_of:
        raise SettingsError(f"there is no pair {pair_id[:40]!r} in this folder")
    reviewing.add(pair_id, form.get("vote", ""))
    return url(
        "/review", {"last": pair_id, **({"texts": "1"} if form.get("texts") == "1" else {})}
    ).replace("&amp;", "&")


def html(tree: dict[str, Any]) -> str:
    """The page."""
    if not tree["on"]:
        body = [
            '<h1>Review</h1><p class="note">Start the viewer with --review NAME to judge pairs'
            " blindly: two answers without their scores, place and order by chance. Votes go to"
            " reviews.jsonl of the run folder, and mora-data report says how far people and scores"
            " agree.</p>"
        ]
        return document("Review", body, "/review", "/review.json")
    body = ["<h1>Which answer is better?</h1>", _progress(tree), _told(tree["last"], tree["query"])]
    if tree["pair_id"] is None:
        body.append(
            '<p class="note">Every pair has your vote.</p>'
            if tree["n"]
            else '<p class="note">There are no pairs.</p>'
        )
    else:
        texts = (
            f'<h2>Prompt</h2>{conversation(tree["prompt"])}<h2>Answers</h2><div class="sides'
            f' blind">{_sides(tree)}</div>'
        )
        body += [
            (
                f'<p class="pager">{_skip(tree)}'
                f" {unfold('/review', {**tree['query'], 'pair': tree['pair_id']})}</p>"
            ),
            folded(
                "Show the texts (they may be harmful)",
                texts,
                tree["may_harm"] and not tree["query"].get("texts"),
            ),
            _form(tree),
        ]
    return document("Review", body, "/review", "/review.json")


def _progress(tree: Mapping[str, Any]) -> str:
    return (
        f'<p class="dim">{tree["judged"]:,} of {tree["n"]:,} pairs judged by'
        f" {word(tree['reviewer'])}.</p>"
    )


def _told(last: Mapping[str, Any] | None, query: Mapping[str, str]) -> str:
    if last is None:
        return ""
    words = {
        True: "The scores agree",
        False: "The scores chose the other answer",
        None: "The scores had to choose",
    }
    agrees = words[last["agrees"]]
    again = a("/review", "vote again", {**query, "pair": last["pair_id"]})
    pair = a(f"/pair/{last['pair_id']}", "its scores")
    margin = "" if last["margin"] is None else f", by a total margin of {last['margin']:+.2f}"
    return f'<p class="note" role="status">Kept. {agrees}{margin}: {pair}, {again}.</p>'


def _skip(tree: Mapping[str, Any]) -> Html:
    return a("/review", "pass over ›", {**tree["query"], "after": tree["pair_id"]}, key="n")


def _sides(tree: Mapping[str, Any]) -> str:
    named = (("first", "First"), ("second", "Second"))
    return "".join(f"<div><h3>{name}</h3>{said(tree[side], True)}</div>" for side, name in named)


def _form(tree: Mapping[str, Any]) -> str:
    hidden = {
        "token": tree["_token"],
        "pair": tree["pair_id"],
        "texts": tree["query"].get("texts", ""),
    }
    fields = "".join(
        f'<input type="hidden" name="{k}" value="{word(v)}">' for k, v in hidden.items()
    )
    buttons = "".join(
        f'<button name="vote" value="{vote}" accesskey="{key}">{text} ({key})</button>'
        for vote, text, key in BUTTONS
    )
    return (
        '<form class="find vote" method="post" action="/review" aria-label="your'
        f' vote">{fields}{buttons}</form>'
    )
