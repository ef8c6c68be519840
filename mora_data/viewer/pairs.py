"""The pages about pairs: the list with its filters, one pair, and the blind review.

Votes are lines of reviews.jsonl in the run folder; what they say of the scores is in report.json
(`mora-data report`).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from secrets import token_urlsafe
from typing import Any

import orjson

from ..errors import RunFolderError, SettingsError
from ..report.pairs import FILE, VOTES, Vote, prefers, read_reviews
from ..report.templates import url
from ..text import digest
from .folder import FileStamp, Page, Query, stamp_files
from .index import FACETS, TEXTS, PairIndex, read_pair
from .provenance import read_provenance
from .search import PairQuery, PairSearch, parse_query

TEXT_CHARS = 20_000  # of a text that a page shows unless asked for all (parts.html cuts)
FORM_BYTES = 4096
PairCard = dict[str, Any]  # what the list says of a pair


def pair_list_page(pairs: PairSearch, query: Query) -> Page:
    """The list of pairs: facets, a histogram that filters, search, order, pages."""
    q = parse_query(query, pairs.index)
    page = pairs.page(q)
    fields = {
        "query": q.params(),
        "n": pairs.index.n,
        "total": page.total,
        "first": page.first,
        "after": page.after,
        "before": page.before,
        "searched": page.searched,
        "dimensions": list(pairs.index.dims),
        "facets": pairs.facets(q),
        "histogram": pairs.histogram(q),
        "sorts": list(pairs.index.numbers),
        "pairs": pair_cards(pairs.index, page.rows),
    }
    return Page("viewer/pairs.html", fields)


def pair_cards(ix: PairIndex, rows: Sequence[int]) -> list[PairCard]:
    """What the list says of some pairs; `unsafe`: the sides that a page folds."""
    out: list[PairCard] = []
    for i in rows:
        card: PairCard = {"pair_id": ix.ids[i], "unsafe": ix.unsafe_sides(i)}
        card |= {k: ix.labels[k].names[int(ix.labels[k].code_Q[i])] for k in FACETS}
        card |= {t: ix.words(i, t) for t in TEXTS}
        numbers = {name: float(values[i]) for name, values in ix.numbers.items()}
        card |= {name: None if v != v else round(v, 4) for name, v in numbers.items()}
        out.append(card)
    return out


def pair_page(pairs: PairSearch, query: Query, pair_id: str) -> Page | None:
    """One pair: both answers side by side, scores against pass thresholds, where it stands among
    all answers of its prompt; None where there is no such pair. `query`: the list that it was
    opened from."""
    ix, q = pairs.index, parse_query(query, pairs.index)
    at = ix.row_of.get(pair_id)
    if at is None:
        return None

    def neighbour(step: PairQuery) -> str | None:
        rows = pairs.page(step, 1).rows
        return ix.ids[rows[0]] if rows and rows[0] != at else None

    row, whole = read_pair(ix, at), query.get("full") == "1"
    fields = {
        "pair": row,
        "dimensions": list(ix.dims),
        "floors": pairs.folder.floors,
        "unsafe": ix.unsafe_sides(at),
        "query": q.filters(),
        "next": neighbour(replace(q, after=pair_id, before=None)),
        "back": neighbour(replace(q, before=pair_id, after=None)),
        "x": query.get("x"),
        "y": query.get("y"),
        "whole": whole,
        "lineage": read_provenance(pairs.folder, row["prompt_id"], [row]),
    }
    is_long = any(len(m["content"] or "") > TEXT_CHARS for t in TEXTS for m in row[t])
    return Page("viewer/pair.html", fields, {"is_cut": is_long and not whole})


class ReviewSession:
    """One person's reviews of one run folder, while the viewer runs.

    Attributes:
        token: what a form has to carry, so that no other page can vote.
    """

    def __init__(self, run: Path, reviewer: str) -> None:
        self.run, self.reviewer, self.token = run, reviewer, token_urlsafe(24)
        self._writing = threading.Lock()
        self._order: tuple[FileStamp | None, list[str]] = (None, [])
        self._votes: tuple[FileStamp | None, dict[str, Vote]] = (None, {})

    def order(self, ix: PairIndex) -> list[str]:
        """All pairs in this person's order."""
        if self._order[0] != ix.stamp:
            order = sorted(ix.ids, key=lambda i: digest("review", self.reviewer, i))
            self._order = (ix.stamp, order)
        return self._order[1]

    def first(self, pair_id: str) -> str:
        """The side that is shown first."""
        return ("chosen", "rejected")[int(digest("first", self.reviewer, pair_id)[:8], 16) % 2]

    def votes(self) -> dict[str, Vote]:
        """This person's votes by pair, those of another viewer too."""
        now = stamp_files([self.run / FILE])
        if self._votes[0] != now:
            rows = read_reviews(self.run)
            self._votes = (now, {r["pair_id"]: r for r in rows if r["reviewer"] == self.reviewer})
        return self._votes[1]

    def next(self, ix: PairIndex, after: str | None) -> str:
        """The first pair without a vote, behind `after` where that is given; then those that were
        passed over."""
        order, votes = self.order(ix), self.votes()
        start = order.index(after) + 1 if after in order else 0
        return next((i for i in order[start:] + order[:start] if i not in votes), "")

    def add(self, pair_id: str, vote: str) -> None:
        """Append a vote.

        Raises:
            SettingsError: no such vote.
            RunFolderError: it can't be written.
        """
        if vote not in VOTES:
            raise SettingsError(f"vote {vote[:20]!r} is none of {', '.join(VOTES)}")
        row = {
            "pair_id": pair_id,
            "reviewer": self.reviewer,
            "first": self.first(pair_id),
            "vote": vote,
            "at": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
        }
        try:
            with self._writing:
                file = os.open(
                    self.run / FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o644
                )
                try:
                    # one write: two viewers don't mix their lines
                    os.write(file, orjson.dumps(row) + b"\n")
                finally:
                    os.close(file)
        except OSError as e:
            raise RunFolderError(
                f"can't write {self.run / FILE}: {e.strerror}; the vote is not kept"
            ) from e


def review_page(pairs: PairSearch, session: ReviewSession | None, query: Query) -> Page:
    """The blind review: two answers without scores, place and order by chance. Neither the page nor
    its JSON says which is the chosen one."""
    ix = pairs.index
    if session is None:
        return Page("viewer/review.html", {"n": ix.n, "on": False})
    pair_id = query.get("pair") or session.next(ix, query.get("after"))
    votes, at = session.votes(), ix.row_of.get(pair_id)
    fields = {
        "reviewer": session.reviewer,
        "n": ix.n,
        "judged": sum(i in ix.row_of for i in votes),
        "last": _last_vote(ix, votes.get(query.get("last", ""))),
        "pair_id": None if at is None else pair_id,
        "on": True,
    }
    if at is not None:
        row, first = read_pair(ix, at), session.first(pair_id)
        second = "rejected" if first == "chosen" else "chosen"
        fields |= {
            "prompt": row["prompt"],
            "first": row[first][-1]["content"],
            "second": row[second][-1]["content"],
            "may_harm": bool(ix.flags["harm"][at]),
        }
    return Page("viewer/review.html", fields, {"token": session.token})


def _last_vote(ix: PairIndex, vote: Vote | None) -> dict[str, object] | None:
    """The vote just given, with what the scores say: shown when it can't sway it any more."""
    at = ix.row_of.get(vote["pair_id"]) if vote is not None else None
    if vote is None or at is None:
        return None
    side, margin = prefers(vote), float(ix.numbers["margin_total"][at])
    return {
        "pair_id": ix.ids[at],
        "vote": vote["vote"],
        "agrees": None if side is None else side == "chosen",  # None: for neither side
        "margin": None if margin != margin else margin,
    }


def take_vote(pairs: PairSearch, session: ReviewSession, form: Mapping[str, str]) -> str:
    """Keep a vote; returns the address of the next pair.

    Raises:
        SettingsError: no such vote or pair.
        RunFolderError: it can't be written.
    """
    pair_id = form.get("pair", "")
    if pair_id not in pairs.index.row_of:
        raise SettingsError(f"there is no pair {pair_id[:40]!r} in this folder")
    session.add(pair_id, form.get("vote", ""))
    texts = {"texts": "1"} if form.get("texts") == "1" else {}
    return url("/review", {"last": pair_id, **texts})
