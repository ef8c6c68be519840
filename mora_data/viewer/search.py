"""Which pairs a page shows: filters, text search, order and keyset paging over the index, and the
counts beside them.

    pairs = PairSearch(folder)
    query = parse_query({"arm": "fused", "sort": "-margin_total"}, pairs.index)
    found = pairs.page(query)          found.rows, found.total, found.after

Every state of the list is such a query; `query.params()` writes it back for a URL.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import SettingsError
from ..run.files import readable
from ..run.partitions import lean_arrow
from ..statistics import Bools
from ..text import commonest_first
from .folder import CHANGED, ViewedFolder
from .index import FACETS, FLAGS, TEXTS, PairIndex, index_pairs

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
