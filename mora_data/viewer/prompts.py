"""The pages about prompts: the list with its filters, and one prompt's whole story, texts first.

    index = PromptIndex(); index.prompts(folder)       every mined prompt, pairs or none
    index.rows(folder, pairs, {"arm": "fused", "outcome": "harm"})

The list holds the beginnings of the texts in memory; a partition is read once, and again when its
files are others.
"""

from __future__ import annotations

import re
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson

from ..errors import DamagedFile, SettingsError
from ..run.files import readable
from ..run.partitions import PROMPTS, Partition, last_tries, lean_arrow, row_tuples
from ..text import commonest_first
from ..types import ARMS, may_harm
from .folder import (
    OTHER_VERSION,
    FileStamp,
    Page,
    PairIndex,
    Query,
    ViewedFolder,
    first_words,
    read_pair,
    stamp_files,
)
from .pairs import PAGE_ROWS, SEARCH_CHARS, TEXT_CHARS, PairSearch
from .provenance import ScoredAnswer, calls_of, read_provenance

FILTERS = ("arm", "outcome", "pair", "kind", "category")
SORTS = ("mined", "kind", "outcome", "tries", "pairs", "category")
ACCEPTED, AS_IT_IS, UNFINISHED = "accepted", "asked as it is", "not finished"
UNWRITTEN = ("identity", "recorded")  # arms that ask the source prompt
DIFF_CELLS = 4_000_000  # words of one text times words of the other, 8 MB and some 20 ms


class RewriteOutcome(NamedTuple):
    """What became of a prompt in an arm: ACCEPTED, the check that the last try failed, or why there
    was no try. `text`: the beginning of the last try."""

    outcome: str
    tries: int = 0
    text: str = ""


@dataclass(frozen=True, slots=True)
class ListedPrompt:
    """A prompt as the list knows it; `why_none` stands for arms that it has no rewrite in."""

    prompt_id: str
    source: str
    kind: str
    category: str
    why_none: str
    rewrites: dict[str, RewriteOutcome]

    def rewrite(self, arm: str) -> RewriteOutcome:
        """What became of it in an arm."""
        return self.rewrites.get(arm) or RewriteOutcome(self.why_none)


@dataclass(slots=True)
class PromptIndex:
    """The prompts of a folder and their pairs, as far as they were read."""

    _kept: dict[Path, tuple[FileStamp, list[ListedPrompt]]] = field(default_factory=dict)
    _paired: tuple[PairIndex | None, dict[tuple[str, str], list[str]]] = (None, {})
    _reading: threading.Lock = field(default_factory=threading.Lock)

    def prompts(self, folder: ViewedFolder) -> list[ListedPrompt]:
        """All of them in mined order.

        Raises:
            RunFolderError: a file is damaged or of another version.
        """
        with self._reading:
            old, self._kept = self._kept, {}
            for at, files, part in _pieces(folder):
                if (kept := old.get(at)) is None or kept[0] != stamp_files(files):
                    kept = stamp_files(files), list(_read(folder, files, part))
                self._kept[at] = kept
            return [p for _, prompts in self._kept.values() for p in prompts]

    def pairs(self, ix: PairIndex) -> Mapping[tuple[str, str], list[str]]:
        """(prompt id, arm) -> its published pairs."""
        if self._paired[0] is not ix:
            found: dict[tuple[str, str], list[str]] = defaultdict(list)
            ids, arms = list(ix.groups), ix.labels["arm"]
            for pair_id, prompt, arm in zip(ix.ids, ix.prompt_Q, arms.code_Q, strict=True):
                found[ids[prompt], arms.names[arm]].append(pair_id)
            self._paired = (ix, dict(found))
        return self._paired[1]


@dataclass(frozen=True, slots=True)
class PromptList:
    """The prompts that pass the filters, and what the filters count; `arm`: the one that is
    shown, `arms` all that there are with how many prompts were accepted in each."""

    rows: list[ListedPrompt]
    n: int
    arm: str
    arms: dict[str, int]
    facets: dict[str, dict[str, int]]


def find_prompts(index: PromptIndex, pairs: PairSearch, query: Query) -> PromptList:
    """The list of a query.

    Raises:
        SettingsError: an order that there is not, or too long a search.
    """
    prompts, paired = index.prompts(pairs.folder), index.pairs(pairs.index)
    accepted = Counter(
        arm for p in prompts for arm, r in p.rewrites.items() if r.outcome in (ACCEPTED, AS_IT_IS)
    )
    known = dict.fromkeys([*reversed(ARMS), *accepted, *(a for p in prompts for a in p.rewrites)])
    arms = {a: accepted[a] for a in known if any(a in p.rewrites for p in prompts)}
    arm = query.get("arm") or next(iter(arms), "fused")
    words, sort = query.get("q", "").casefold(), query.get("sort", "mined")
    if len(words) > SEARCH_CHARS:
        raise SettingsError(f"q has {len(words)} characters: search for at most {SEARCH_CHARS}")
    if sort.removeprefix("-") not in SORTS:
        raise SettingsError(f"sort={sort[:40]} is no column: choose one of {', '.join(SORTS)}")

    def values(p: ListedPrompt) -> tuple[str, str, str, str]:
        has_pair = "yes" if (p.prompt_id, arm) in paired else "no"
        return p.rewrite(arm).outcome, has_pair, p.kind, p.category

    wanted = [query.get(name) or None for name in FILTERS[1:]]
    counts: list[Counter[str]] = [Counter() for _ in wanted]
    rows = []
    for p in prompts:
        texts = p.source, p.rewrite(arm).text
        if not p.prompt_id.startswith(words) and not any(words in t.casefold() for t in texts):
            continue
        own = values(p)
        wrong = [i for i, w in enumerate(wanted) if w is not None and w != own[i]]
        for i, value in enumerate(own):
            if not wrong or wrong == [i]:  # as many as would be left with that value
                counts[i][value] += 1
        if not wrong:
            rows.append(p)
    facets = dict(zip(FILTERS[1:], map(commonest_first, counts), strict=True))
    return PromptList(_sorted(rows, sort, arm, paired), len(prompts), arm, arms, facets)


def _sorted(
    rows: list[ListedPrompt], sort: str, arm: str, paired: Mapping[tuple[str, str], list[str]]
) -> list[ListedPrompt]:
    keys: dict[str, Any] = {
        "kind": lambda p: p.kind,
        "outcome": lambda p: p.rewrite(arm).outcome,
        "tries": lambda p: p.rewrite(arm).tries,
        "pairs": lambda p: len(paired.get((p.prompt_id, arm), ())),
        "category": lambda p: p.category,
    }
    column, down = sort.removeprefix("-"), sort.startswith("-")
    if column == "mined":
        return rows[::-1] if down else rows
    return sorted(rows, key=keys[column], reverse=down)


def _pieces(folder: ViewedFolder) -> Iterator[tuple[Path, list[Path], Partition | None]]:
    """What is read at once: its place, the files that tell when it has changed, its partition; of
    a dataset alone `scored`."""
    for part in folder.partitions():
        yield part.folder, [part.folder / "manifest.json", part.folder / PROMPTS], part
    if folder.run is None:
        scored = folder.dataset / "scored"
        yield scored, sorted(scored.glob("*.parquet")), None


def _read(
    folder: ViewedFolder, files: Sequence[Path], part: Partition | None
) -> Iterator[ListedPrompt]:
    """The prompts of a piece, with the beginnings of their texts."""
    lean_arrow()
    with readable(part.folder if part else folder.dataset / "scored", OTHER_VERSION):
        yield from _of_partition(part, folder) if part else _of_scored(files)


def _of_partition(part: Partition, folder: ViewedFolder) -> Iterator[ListedPrompt]:
    """A partition's prompts; of an open one only what was mined."""
    try:
        mined = part.file(PROMPTS).read_bytes().splitlines()
    except (OSError, DamagedFile):  # mined just now, or started anew
        return
    profiles, rewrites = {}, defaultdict[str, dict[str, RewriteOutcome]](dict)
    if part.manifest() is not None:
        table = part.table("profiles", ["prompt_id", "kind", "owed"])
        profiles = {i: (k, o) for i, k, o in row_tuples(table, "prompt_id", "kind", "owed")}
        names = ("attempt", "accepted", "failed", "text")
        table = part.table("fusions", ("prompt_id", "arm", *names))
        rows = list(row_tuples(table, *names))
        for (i, arm), row in last_tries(table).items():
            attempt, ok, failed, text = rows[row]
            outcome = ACCEPTED if ok else (failed or ["failed"])[0]
            rewrites[i][arm] = RewriteOutcome(outcome, attempt + 1, first_words(text))
        arms = part.table("arms", ["prompt_id", "arm"])
        for i, arm in row_tuples(arms, "prompt_id", "arm"):
            if arm in UNWRITTEN:
                rewrites[i][arm] = RewriteOutcome(AS_IT_IS)
    for line in mined:
        row = orjson.loads(line)
        prompt_id = row["prompt_id"]
        kind, owed = profiles.get(prompt_id, (UNFINISHED, "it is open"))
        yield ListedPrompt(
            prompt_id,
            first_words(row["messages"][-1]["content"]),
            kind,
            row.get("category") or "none",
            UNFINISHED if owed else _why_none(folder, kind),
            rewrites.get(prompt_id, {}),
        )


def _why_none(folder: ViewedFolder, kind: str) -> str:
    """Why a finished prompt of a kind has no rewrite."""
    accepted = ((folder.manifest.get("settings") or {}).get("presample") or {}).get("accept") or ()
    return "not fused" if kind == "plain" or kind in accepted else f"not fused: {kind}"


def _of_scored(files: Sequence[Path]) -> Iterator[ListedPrompt]:
    """Of a dataset: the prompts of `scored`."""
    import pyarrow.parquet as pq

    names = ("prompt_id", "source_prompt", "prompt", "kind", "category", "arm")
    found: dict[str, ListedPrompt] = {}
    for path in files:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(1000, columns=list(names), use_threads=False):
                for i, source, prompt, kind, category, arm in row_tuples(batch, *names):
                    p = found.setdefault(
                        i,
                        ListedPrompt(
                            i, first_words(source), kind, category or "none", "not in it", {}
                        ),
                    )
                    text = "" if arm in UNWRITTEN else first_words(prompt[-1]["content"])
                    p.rewrites[arm] = RewriteOutcome(
                        AS_IT_IS if arm in UNWRITTEN else ACCEPTED, 0, text
                    )
    yield from found.values()


def prompt_list_page(index: PromptIndex, pairs: PairSearch, query: Query) -> Page:
    """The list of prompts: filters, search, order, pages."""
    found = find_prompts(index, pairs, query)
    start = query.get("from", "")[:9]
    first = int(start) if start.isdecimal() else 0
    fields = {
        "query": list_query(query),
        "sort": query.get("sort", "mined"),
        "n": found.n,
        "total": len(found.rows),
        "first": first,
        "arm": found.arm,
        "arms": found.arms,
        "facets": found.facets,
        "prompts": list(_cards(index, pairs, found.arm, found.rows[first : first + PAGE_ROWS])),
    }

    def changed(name: str) -> Callable[[str | None], dict[str, str]]:
        return lambda value: list_query({**query, name: value or ""})

    return Page("viewer/prompts.html", fields, {"page_rows": PAGE_ROWS, "changed": changed})


def newest_prompts(index: PromptIndex, pairs: PairSearch, n: int) -> list[dict[str, Any]]:
    """The last `n` prompts that were tried to be rewritten, or all are finished of; the last
    first."""
    found = find_prompts(index, pairs, {})
    finished = [p for p in found.rows if p.kind != UNFINISHED]
    return list(_cards(index, pairs, found.arm, finished[: -n - 1 : -1]))


def list_query(query: Query) -> dict[str, str]:
    """The state of the list, without its page."""
    return {k: query[k] for k in (*FILTERS, "q", "sort") if query.get(k)}


def _cards(
    index: PromptIndex, pairs: PairSearch, arm: str, prompts: Iterable[ListedPrompt]
) -> Iterator[dict[str, Any]]:
    """What the list says of some prompts."""
    paired = index.pairs(pairs.index)
    for p in prompts:
        rewrite = p.rewrite(arm)
        yield {
            "prompt_id": p.prompt_id,
            "arm": arm,
            "kind": p.kind,
            "category": p.category,
            "outcome": rewrite.outcome,
            "tries": rewrite.tries,
            "pairs": paired.get((p.prompt_id, arm), []),
            "source": p.source,
            "rewrite": rewrite.text,
        }


def prompt_page(index: PromptIndex, pairs: PairSearch, query: Query, prompt_id: str) -> Page | None:
    """One prompt from its source to its pairs, its texts first; None where there is no such
    prompt. `query`: the list that it was opened from; with `calls`, also each model call."""
    ix, floors = pairs.index, pairs.folder.floors
    rows = [read_pair(ix, i) for i in ix.of_prompt(prompt_id)]
    story = read_provenance(pairs.folder, prompt_id, rows)
    if story is None:
        return None
    ids = [p.prompt_id for p in find_prompts(index, pairs, query).rows]
    at = ids.index(prompt_id) if prompt_id in ids else None
    fields = {
        "lineage": story,
        "dimensions": list(ix.dims),
        "floors": floors,
        "x": query.get("x"),
        "y": query.get("y"),
        "query": list_query(query) | {k: query[k] for k in ("x", "y") if query.get(k)},
        "back": ids[at - 1] if at else None,
        "next": ids[at + 1] if at is not None and at + 1 < len(ids) else None,
        "pairs": rows,
        "before": _presamples(pairs.folder, story),
        "calls": calls_of(pairs.folder, prompt_id) if query.get("calls") else None,
    }

    def unsafe(answer: ScoredAnswer) -> bool:
        return may_harm(floors.get("harmless"), answer.rewards.get("harmless"))

    asked = story.messages[-1]["content"]
    helpers = {
        "unsafe": unsafe,
        "unsafe_side": lambda row, side: may_harm(
            floors.get("harmless"), row.get(f"{side}_reward_harmless")
        ),
        "list_query": list_query(query),
        "rewrite_diff": lambda rewrite: word_diff(asked, rewrite),
    }
    return Page("viewer/prompt.html", fields, helpers)


def _presamples(folder: ViewedFolder, story: Any) -> str | None:
    """How many presamples were asked, in which steps, and how many scores decided."""
    asked = next((len(a.answers) for a in story.arms if a.name == "presample"), 0)
    used = (story.profile or {}).get("n")
    if not asked or used is None:
        return None
    settings = (folder.manifest.get("settings") or {}).get("presample") or {}
    steps = ", ".join(map(str, settings.get("n") or ()))
    asked_so = f"The policy answered {asked} times" + (
        f" (in steps of {steps}, until the kind is clear)" if steps else ""
    )
    return f"{asked_so}; {used} answers decided the kind."


def word_diff(before: str, after: str) -> list[tuple[str, bool]]:
    """`after` in pieces, each with whether `before` lacks its words; one piece where little of
    `before` is left."""
    old, new = (re.findall(r"\S+\s*", text[:TEXT_CHARS]) for text in (before, after))
    if not old or not new or len(old) * len(new) > DIFF_CELLS:
        return [(after, False)]
    kept = _kept_words(*([w.strip().casefold() for w in words] for words in (old, new)))
    if sum(kept) < 0.5 * len(old):
        return [(after, False)]
    groups = groupby(zip(new, kept, strict=True), key=lambda word: not word[1])
    return [("".join(text for text, _ in words), is_new) for is_new, words in groups]


def _kept_words(old: Sequence[str], new: Sequence[str]) -> list[bool]:
    """Which words of `new` stand in a longest common subsequence with `old`: as many steps as a
    table of both has cells, whatever the words."""
    codes = {word: i for i, word in enumerate(dict.fromkeys([*old, *new]))}
    a, b = (np.array([codes[word] for word in words]) for words in (old, new))
    longest = np.zeros((len(a) + 1, len(b) + 1), np.int16)  # of a[i:] and b[j:]
    for i in range(len(a) - 1, -1, -1):
        best = np.maximum(longest[i + 1, :-1], longest[i + 1, 1:] + (b == a[i]))
        longest[i, :-1] = np.maximum.accumulate(best[::-1])[::-1]
    kept, i, j = [False] * len(b), 0, 0
    while i < len(a) and j < len(b):
        if a[i] == b[j]:
            kept[j] = True
            i, j = i + 1, j + 1
        elif longest[i + 1, j] >= longest[i, j + 1]:
            i += 1
        else:
            j += 1
    return kept
