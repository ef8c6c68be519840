"""Which pairs a page shows: filters, text search, order and keyset paging over the index, and the
counts beside them.

    q = query_of({"arm": "fused", "sort": "-margin_total", "after": "40044381007a5a39"}, index)
    found = page(index, q)          found.rows, found.total, found.after

Every state is these parameters; `params` writes them back for a URL.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import RunFolderError, SettingsError
from ..run.partitions import lean_arrow
from .index import FACETS, FLAGS, TEXTS, Index, build
from .place import Place, one_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIZE = 50
SEARCH_S = 10.0  # for reading whole texts
BINS = 24
LONGEST = 200  # characters of a search


@dataclass(frozen=True, slots=True)
class Query:
    """One state of the list of pairs; None and "" filter nothing.

    Attributes:
        adds: a dimension that fusion added.
        flag: one of FLAGS.
        q, whole: words looked for; in the whole texts instead of their beginnings.
        low, high: range of the column that orders the list.
        sort: a column, with `-` in front for largest first; "" is the order of the files.
        after, before: a pair id: the page that follows or precedes it.
        texts: also show texts that may be harmful.
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
    texts: bool = False


_DEFAULTS = {f.name: f.default for f in fields(Query)}


def query_of(given: Mapping[str, str], index: Index) -> Query:
    """The state that a URL names; what it does not know is left out.

    Raises:
        SettingsError: a sort, flag, dimension or number that there is not.
    """
    q = Query(
        **{  # type: ignore[arg-type]
            k: v
            for k, v in given.items()
            if k in _DEFAULTS and v and k not in ("low", "high", "whole", "texts")
        }
    )
    q = replace(
        q,
        whole=given.get("whole") == "1",
        texts=given.get("texts") == "1",
        low=_number(given, "low"),
        high=_number(given, "high"),
    )
    if index.n and q.sort.removeprefix("-") not in index.numbers:
        raise SettingsError(
            f"sort={q.sort[:40]} is no column: choose one of {', '.join(index.numbers)}"
        )
    if q.flag and q.flag not in FLAGS:
        raise SettingsError(f"flag={q.flag[:40]} is none: choose one of {', '.join(FLAGS)}")
    if q.adds and q.adds not in index.dims:
        raise SettingsError(
            f"adds={q.adds[:40]} is no dimension: choose one of {', '.join(index.dims)}"
        )
    if len(q.q) > LONGEST:
        raise SettingsError(f"q has {len(q.q)} characters: search for at most {LONGEST}")
    return q


def params(q: Query, /, **changes: Any) -> dict[str, str]:
    """The state as URL parameters, with changes; a change of a filter or of the order goes back to
    the first page."""
    if changes and not changes.keys() & {"after", "before"}:
        changes |= {"after": None, "before": None}
    if "sort" in changes:
        changes = {"low": None, "high": None, **changes}
    out = {}
    for name, default in _DEFAULTS.items():
        value = changes.get(name, getattr(q, name))
        if value != default:
            out[name] = (
                "1" if value is True else f"{value:g}" if isinstance(value, float) else str(value)
            )
    return out


@dataclass(frozen=True, slots=True)
class Page:
    """What is shown: positions in the index, and where the next and the previous page begin."""

    rows: list[int]
    total: int
    first: int
    after: str | None
    before: str | None
    # pairs that were looked through, where the time did not suffice for all
    searched: int | None = None


class Pairs:
    """The index with what is remembered of earlier questions: orders and the hits of searches."""

    def __init__(self, place: Place) -> None:
        self.place, self.index = place, build(place)
        self._orders: dict[str, NDArray[np.int64]] = {}
        self._hits: dict[tuple[str, bool], tuple[NDArray[np.bool_], int | None]] = {}

    def page(self, q: Query, size: int = SIZE) -> Page:
        """One page of the pairs that pass."""
        mask, searched = self.mask(q)
        order = self._order(q.sort)
        rows = order[mask[order]]
        start = self._start(q, rows, size)
        shown = rows[start : start + size]
        more = start + size < len(rows)
        ids = self.index.ids
        return Page(
            shown.tolist(),
            len(rows),
            start,
            ids[shown[-1]] if more else None,
            ids[shown[0]] if start and len(shown) else None,
            searched,
        )

    def _start(self, q: Query, rows: NDArray[np.int64], size: int) -> int:
        key = q.after or q.before
        at = self.index.row_of.get(key) if key else None
        if at is None:
            return 0
        found = np.flatnonzero(rows == at)
        if len(found):
            return int(found[0]) + 1 if q.after else max(int(found[0]) - size, 0)
        rank = self._rank(q.sort)  # the pair is filtered out: go on where it would stand
        place = int(np.searchsorted(rank[rows], rank[at]))
        return place if q.after else max(place - size, 0)

    def mask(self, q: Query, without: str = "") -> tuple[NDArray[np.bool_], int | None]:
        """Which pairs pass all filters but `without`; and how many were searched where not all
        were."""
        ix = self.index
        mask, searched = np.ones(ix.n, bool), None
        for name in FACETS:
            wanted = getattr(q, name)
            if wanted is not None and name != without and ix.n:
                names = ix.labels[name].names
                mask &= ix.labels[name].code_Q == (names.index(wanted) if wanted in names else -1)
        if q.adds and without != "adds":
            mask &= ix.targets_Q_D[:, ix.dims.index(q.adds)]
        if q.flag and without != "flag":
            mask &= ix.flags[q.flag]
        if without != "range" and ix.n and (q.low is not None or q.high is not None):
            values = ix.numbers[q.sort.removeprefix("-")]
            mask &= (values >= (-np.inf if q.low is None else q.low - 1e-6)) & (
                values <= (np.inf if q.high is None else q.high + 1e-6)
            )
        if q.q:
            hits, searched = self._search(q.q, q.whole)
            mask &= hits
        return mask, searched

    def facets(self, q: Query) -> dict[str, dict[str, int]]:
        """For each filter, how many of the pairs that pass the others have each value; commonest
        first."""
        ix, out = self.index, {}
        all_mask = self.mask(q)[0]
        for name in FACETS:
            mask = self.mask(q, name)[0] if getattr(q, name) is not None else all_mask
            counts = (
                np.bincount(ix.labels[name].code_Q[mask], minlength=len(ix.labels[name].names))
                if ix.n
                else np.zeros(0, int)
            )
            pairs = zip(ix.labels[name].names if ix.n else (), counts.tolist(), strict=True)
            out[name] = dict(
                sorted(((k, v) for k, v in pairs if v), key=lambda kv: (-kv[1], kv[0]))
            )
        mask = self.mask(q, "adds")[0] if q.adds else all_mask
        out["adds"] = {d: int((ix.targets_Q_D[:, j] & mask).sum()) for j, d in enumerate(ix.dims)}
        mask = self.mask(q, "flag")[0] if q.flag else all_mask
        out["flag"] = {f: int((flagged & mask).sum()) for f, flagged in ix.flags.items()}
        return out

    def histogram(self, q: Query) -> list[tuple[float, float, int]]:
        """(low, high, pairs) of the column that orders the list, before its own range filter."""
        values = self.index.numbers.get(q.sort.removeprefix("-"), np.zeros(0, np.float32))
        values = values[self.mask(q, "range")[0]] if len(values) else values
        values = values[~np.isnan(values)]
        if not len(values):
            return []
        ends = (float(values.min()), float(values.max()))
        if ends[0] == ends[1]:
            return [(*ends, len(values))]
        counts, edges = np.histogram(values, BINS, ends)
        return [
            (float(a), float(b), int(n)) for a, b, n in zip(edges, edges[1:], counts, strict=False)
        ]

    def _order(self, sort: str) -> NDArray[np.int64]:
        held = self._orders.get(sort)
        if held is None:
            if len(self._orders) > 12:
                self._orders.clear()
            self._orders[sort] = held = self._sorted(sort)
        return held

    def _sorted(self, sort: str) -> NDArray[np.int64]:
        if not self.index.n:
            return np.zeros(0, np.int64)
        values = self.index.numbers[sort.removeprefix("-")]
        # NaN goes last
        return np.argsort(-values if sort.startswith("-") else values, kind="stable")

    def _rank(self, sort: str) -> NDArray[np.int64]:
        order = self._order(sort)
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        return rank

    def _search(self, words: str, whole: bool) -> tuple[NDArray[np.bool_], int | None]:
        held = self._hits.get((words, whole))
        if held is None:
            if len(self._hits) > 8:
                self._hits.clear()
            held = _in_files(self.index, words) if whole else (_in_heads(self.index, words), None)
            self._hits[words, whole] = held
        return held


def _in_heads(index: Index, words: str) -> NDArray[np.bool_]:
    """Pairs with the words in the beginning of a text, whatever their case."""
    hit = np.zeros(index.n, bool)
    for text in TEXTS:
        at = 0
        for chunk in index.texts[text].chunks:
            hit[at : at + len(chunk)] |= _holds(chunk, words)
            at += len(chunk)
    return hit


def _holds(texts: Any, words: str) -> NDArray[np.bool_]:
    import pyarrow as pa
    import pyarrow.compute as pc

    found = pc.match_substring(texts.view(pa.string()), words, ignore_case=True)
    return np.asarray(pc.fill_null(found, False).to_numpy(zero_copy_only=False), bool)


def _in_files(index: Index, words: str) -> tuple[NDArray[np.bool_], int | None]:
    """The same in whole texts, read from disk for at most SEARCH_S seconds.

    Raises:
        RunFolderError: a file has changed since it was indexed.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    lean_arrow()
    hit, at, until = np.zeros(index.n, bool), 0, time.monotonic() + SEARCH_S
    for path in index.files:
        try:
            with pq.ParquetFile(path, pre_buffer=False) as file:
                for batch in file.iter_batches(1000, columns=list(TEXTS), use_threads=False):
                    if time.monotonic() > until or at + len(batch) > index.n:
                        return hit, at
                    for text in TEXTS:
                        hit[at : at + len(batch)] |= _in_turns(batch.column(text), words)
                    at += len(batch)
        except (OSError, pa.ArrowException) as e:
            raise RunFolderError(
                f"{path} can't be read ({one_line(e)}): it changed; load the page again"
            ) from e
    return hit, None


def _in_turns(messages: Any, words: str) -> NDArray[np.bool_]:
    """Which conversations have a turn with the words."""
    first = messages.offsets.to_numpy()
    total = np.concatenate([[0], np.cumsum(_holds(messages.flatten().field("content"), words))])
    return np.asarray(total[first[1:] - first[0]] > total[first[:-1] - first[0]])


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
