"""The pages about pairs: the list with its filters, one pair, and the blind review.

    pairs = PairSearch(folder)
    query = parse_query({"arm": "fused", "sort": "-margin_total"}, pairs.index)
    found = pairs.page(query)          found.rows, found.total, found.after

Every state of the list is such a query: filters, text search, order and keyset paging over the
index. `query.params()` writes it back for a URL.

Votes are lines of reviews.jsonl in the run folder; what they say of the scores is in report.json
(`mora-data report`).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from secrets import token_urlsafe
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from ..errors import RunFolderError, SettingsError
from ..report.markup import url
from ..report.pairs import FILE, VOTES, Vote, prefers, read_reviews
from ..run.files import readable
from ..run.partitions import lean_arrow
from ..statistics import Bools
from ..text import commonest_first, digest
from .folder import (
    CHANGED,
    FACETS,
    FLAGS,
    TEXTS,
    FileStamp,
    Page,
    PairIndex,
    Query,
    ViewedFolder,
    index_pairs,
    read_pair,
    stamp_files,
)
from .provenance import read_provenance

PAGE_ROWS = 50
SEARCH_S = 10.0  # for reading whole texts
BINS = 24
SEARCH_CHARS = 200


@dataclass(frozen=True, slots=True)
class PairQuery:
    """One state of the list of pairs; None and "" filter nothing.

    Attributes:
        adds: a dimension that fusion added.
        flag: one of FLAGS.
        q, whole: words looked for, or the beginning of an id; in the whole texts instead of their
            beginnings.
        low, high: range of the column that orders the list.
        sort: a column, with `-` in front for largest first.
        after, before: a pair id: the page that follows or precedes it.
    """

    split: str | None = None
    arm: str | None = None
    kind: str | None = None
    carried_dim: str | None = None
    category: str | None = None
    source_dataset: str | None = None
    adds: str | None = None
    flag: str | None = None
    q: str = ""
    whole: bool = False
    low: float | None = None
    high: float | None = None
    sort: str = "-margin_total"
    after: str | None = None
    before: str | None = None

    @property
    def column(self) -> str:
        """The column that orders the list."""
        return self.sort.removeprefix("-")

    @classmethod
    def parse(cls, given: Mapping[str, str]) -> PairQuery:
        """What `params` has written, or a person."""
        values: dict[str, Any] = {f.name: given[f.name] for f in fields(cls) if given.get(f.name)}
        values["whole"] = given.get("whole") == "1"
        return cls(**{**values, "low": _number(given, "low"), "high": _number(given, "high")})

    def params(self, /, **changes: Any) -> dict[str, str]:
        """The state as URL parameters, with changes; a change of a filter or of the order goes back
        to the first page."""
        if changes and not changes.keys() & {"after", "before"}:
            changes |= {"after": None, "before": None}
        if "sort" in changes:
            changes = {"low": None, "high": None, **changes}
        out = {}
        for f in fields(self):
            value = changes.get(f.name, getattr(self, f.name))
            if value is True:
                out[f.name] = "1"
            elif value != f.default:
                out[f.name] = f"{value:g}" if isinstance(value, float) else str(value)
        return out

    def ordered(self, sort: str) -> dict[str, str]:
        """The state as URL parameters, in another order."""
        return self.params(sort=sort)

    def filtered(self, name: str) -> Callable[[str | None], dict[str, str]]:
        """For a filter: its value -> the state as URL parameters."""
        return lambda value: self.params(**{name: value})

    def filters(self) -> dict[str, str]:
        """The state as URL parameters, without the page of the list."""
        return self.params(after=None, before=None)


def parse_query(given: Mapping[str, str], index: PairIndex) -> PairQuery:
    """The state that a URL names; what it does not know is left out.

    Raises:
        SettingsError: a sort, flag, dimension or number that there is not.
    """
    q = PairQuery.parse(given)
    for name, value, known, what in (
        ("sort", q.column if index.n else None, index.numbers, "no column"),
        ("flag", q.flag, FLAGS, "none"),
        ("adds", q.adds, index.dims, "no dimension"),
    ):
        if value is not None and value not in known:
            raise SettingsError(
                f"{name}={given[name][:40]} is {what}: choose one of {', '.join(known)}"
            )
    if len(q.q) > SEARCH_CHARS:
        raise SettingsError(f"q has {len(q.q)} characters: search for at most {SEARCH_CHARS}")
    return q


def _number(given: Mapping[str, str], name: str) -> float | None:
    text = given.get(name)
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise SettingsError(f"{name}={text[:40]} is no number: give one as 0.25")
    return value


@dataclass(frozen=True, slots=True)
class ResultPage:
    """What is shown: positions in the index, and where the next and the previous page begin.

    `searched`: pairs that were looked through, where the time did not suffice for all.
    """

    rows: list[int]
    total: int
    first: int
    after: str | None
    before: str | None
    searched: int | None = None


class PairSearch:
    """The index with what is remembered of earlier questions: orders and the hits of searches."""

    def __init__(self, folder: ViewedFolder) -> None:
        self.folder, self.index = folder, index_pairs(folder)
        self._orders: dict[str, NDArray[np.int64]] = {}
        self._hits: dict[tuple[str, bool], tuple[Bools, int | None]] = {}

    def page(self, q: PairQuery, size: int = PAGE_ROWS) -> ResultPage:
        """One page of the pairs that pass."""
        mask, searched = self._mask(q)
        order = self._order(q.sort)
        rows = order[mask[order]]
        start = self._start(q, rows, size)
        shown = rows[start : start + size]
        ids = self.index.ids
        return ResultPage(
            shown.tolist(),
            len(rows),
            start,
            ids[shown[-1]] if start + size < len(rows) else None,
            ids[shown[0]] if start and len(shown) else None,
            searched,
        )

    def _start(self, q: PairQuery, rows: NDArray[np.int64], size: int) -> int:
        key = q.after or q.before
        at = self.index.row_of.get(key) if key else None
        if at is None:
            return 0
        found = np.flatnonzero(rows == at)
        if len(found):
            place, step = int(found[0]), 1
        else:  # the pair is filtered out: go on where it would stand
            order = self._order(q.sort)
            rank = np.empty(len(order), np.int64)
            rank[order] = np.arange(len(order))
            place, step = int(np.searchsorted(rank[rows], rank[at])), 0
        return place + step if q.after else max(place - size, 0)

    def _mask(self, q: PairQuery, without: str = "") -> tuple[Bools, int | None]:
        """Which pairs pass all filters but `without`; and how many were searched where not all
        were."""
        ix, searched = self.index, None
        mask = np.ones(ix.n, bool)
        for name in FACETS:
            wanted, label = getattr(q, name), ix.labels[name]
            if wanted is not None and name != without:
                code = label.names.index(wanted) if wanted in label.names else -1
                mask &= label.code_Q == code
        if q.adds and without != "adds":
            mask &= ix.targets_Q_D[:, ix.dims.index(q.adds)]
        if q.flag and without != "flag":
            mask &= ix.flags[q.flag]
        if without != "range" and ix.n and (q.low is not None or q.high is not None):
            values = ix.numbers[q.column]
            mask &= (values >= (-np.inf if q.low is None else q.low - 1e-6)) & (
                values <= (np.inf if q.high is None else q.high + 1e-6)
            )
        if q.q:
            hits, searched = self._search(q.q, q.whole)
            mask &= hits
        return mask, searched

    def facets(self, q: PairQuery) -> dict[str, dict[str, int]]:
        """For each filter, how many of the pairs that pass the others have each value; commonest
        first."""
        ix, passing, out = self.index, self._mask(q)[0], {}

        def others(name: str) -> Bools:
            return passing if getattr(q, name) is None else self._mask(q, name)[0]

        for name in FACETS:
            label = ix.labels[name]
            counts = np.bincount(label.code_Q[others(name)], minlength=len(label.names)).tolist()
            named = zip(label.names, counts, strict=True)
            out[name] = commonest_first({k: n for k, n in named if n})
        mask = others("adds")
        out["adds"] = {d: int((ix.targets_Q_D[:, j] & mask).sum()) for j, d in enumerate(ix.dims)}
        mask = others("flag")
        out["flag"] = {f: int((flagged & mask).sum()) for f, flagged in ix.flags.items()}
        return out

    def histogram(self, q: PairQuery) -> list[tuple[float, float, int]]:
        """(low, high, pairs) of the column that orders the list, before its own range filter."""
        if not self.index.n:
            return []
        values = self.index.numbers[q.column][self._mask(q, "range")[0]]
        values = values[~np.isnan(values)]
        if not len(values):
            return []
        low, high = float(values.min()), float(values.max())
        if low == high:
            return [(low, high, len(values))]
        counts, edges = np.histogram(values, BINS, (low, high))
        return list(zip(edges.tolist(), edges[1:].tolist(), counts.tolist(), strict=False))

    def _order(self, sort: str) -> NDArray[np.int64]:
        if sort not in self._orders:
            if len(self._orders) > 12:
                self._orders.clear()
            column = self.index.numbers.get(sort.removeprefix("-"), np.zeros(self.index.n))
            # NaN goes last
            self._orders[sort] = np.argsort(-column if sort[:1] == "-" else column, kind="stable")
        return self._orders[sort]

    def _search(self, words: str, whole: bool) -> tuple[Bools, int | None]:
        key = words, whole
        if key not in self._hits:
            if len(self._hits) > 8:
                self._hits.clear()
            search = _search_files if whole else _search_heads
            hit, searched = search(self.index, words)
            self._hits[key] = hit | self.index.has_id(words.casefold()), searched
        return self._hits[key]


def _search_heads(index: PairIndex, words: str) -> tuple[Bools, None]:
    """Pairs with the words in the beginning of a text, whatever their case."""
    hit = np.zeros(index.n, bool)
    for text in TEXTS:
        at = 0
        for chunk in index.texts[text].chunks:
            hit[at : at + len(chunk)] |= _contains(chunk, words)
            at += len(chunk)
    return hit, None


def _contains(texts: Any, words: str) -> Bools:
    import pyarrow as pa
    import pyarrow.compute as pc

    found = pc.match_substring(texts.view(pa.string()), words, ignore_case=True)
    return np.asarray(pc.fill_null(found, False).to_numpy(zero_copy_only=False), bool)


def _search_files(index: PairIndex, words: str) -> tuple[Bools, int | None]:
    """The same in whole texts, read from disk for at most SEARCH_S seconds; also how many pairs
    were read where the time did not suffice.

    Raises:
        RunFolderError: a file has changed since it was indexed.
    """
    lean_arrow()
    import pyarrow.parquet as pq

    hit, at, until = np.zeros(index.n, bool), 0, time.monotonic() + SEARCH_S
    for path in index.files:
        with readable(path, CHANGED), pq.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(1000, columns=list(TEXTS), use_threads=False):
                if time.monotonic() > until or at + len(batch) > index.n:
                    return hit, at
                for text in TEXTS:
                    hit[at : at + len(batch)] |= _any_turn_contains(batch.column(text), words)
                at += len(batch)
    return hit, None


def _any_turn_contains(messages: Any, words: str) -> Bools:
    first = messages.offsets.to_numpy()
    found = _contains(messages.flatten().field("content"), words)
    total = np.concatenate([[0], np.cumsum(found)])
    return np.asarray(total[first[1:] - first[0]] > total[first[:-1] - first[0]])


# the pages

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
