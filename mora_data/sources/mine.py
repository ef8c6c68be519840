"""Mine: source rows -> prompts, one pass, every row kept or dropped for a counted reason.

    opened = open_source(settings, sample=True, data=[])
    counts = MineCounts()
    for prompt in mine(opened, settings, counts):
        ...
    counts.as_dict()   # {"in": 86, "kept": 80, "dropped": {"duplicate": 3, ...}}; in = kept +
    dropped at every moment

Streaming: what stays in memory is one 8-byte integer per kept prompt, and its sketch where
near-duplicates are looked for (docs/numbers.md). A repeated context is dropped, so its
stratum and priors are those of the first row that has it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from .. import sources
from ..errors import DropRow, SourceError
from ..settings import BuildSettings, MineSettings, SourceSettings
from ..text import context_and_group, digest
from ..types import Prompt
from . import ParsedRow, Source, hub, read
from .benchmarks import Benchmarks, cache_dir

if TYPE_CHECKING:
    from .near import NearDuplicates

_PEEK = 50  # rows looked at before a source is taken to be of the right schema


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where the rows are from, as every published row will say it."""

    dataset: str
    config: str
    split: str
    revision: str
    licence: str


@dataclass(frozen=True, slots=True)
class OpenedSource:
    """A source ready to be mined: its adapter, its rows, unread, and their provenance."""

    source: Source
    rows: Iterable[read.SourceRow]
    provenance: Provenance


@dataclass(slots=True)
class MineCounts:
    """What became of the rows so far.

    Attributes:
        notes: defects that left the prompt intact; a row may have several.
        overlaps: dropped as contaminated, by benchmark.
        compared: benchmarks at hand.
        not_measured: known benchmarks that were not at hand.
    """

    rows: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    overlaps: Counter[str] = field(default_factory=Counter)
    compared: tuple[str, ...] = ()
    not_measured: tuple[str, ...] = ()

    @property
    def contamination(self) -> dict[str, int] | None:
        """Rows dropped per benchmark at hand; None without any."""
        return {name: self.overlaps[name] for name in self.compared} or None

    def as_dict(self) -> dict[str, object]:
        """`in`, `kept` and `dropped`, commonest reason first."""
        ranked = sorted(self.dropped.items(), key=lambda item: (-item[1], item[0]))
        return {"in": self.rows, "kept": self.kept, "dropped": dict(ranked)}


def open_source(settings: BuildSettings, sample: bool, data: Sequence[Path]) -> OpenedSource:
    """The rows of the build's source: the bundled sample, local files, or the Hub.

    Raises:
        SettingsError: unknown source kind.
        SourceError: the rows can't be had; the text names the ways on.
    """
    wanted = settings.source
    source = sources.load(wanted)
    patterns = wanted.files or source.files()
    if sample:
        files = read.find([sources.sample_path(wanted.kind)], [])
        provenance = Provenance(
            f"mora-data/sample-{wanted.kind}", "sample", "sample", "sample", "apache-2.0"
        )
    elif data:
        files = read.find(data, patterns)
        split = (
            wanted.split
            if all(Path(f.name).name.startswith(wanted.split) for f in files)
            else "local"
        )
        revision = f"local:{read.sha256(files)[:12]}"
        provenance = Provenance(wanted.dataset or "local", "local", split, revision, wanted.licence)
    elif wanted.dataset and re.fullmatch("[0-9a-f]{40}", wanted.revision or ""):
        provenance = Provenance(
            wanted.dataset, wanted.config, wanted.split, wanted.revision or "", wanted.licence
        )
        return OpenedSource(source, _fetched(wanted, patterns), provenance)
    else:
        files, commit = hub.fetch(wanted, patterns)
        provenance = Provenance(
            wanted.dataset or "", wanted.config, wanted.split, commit, wanted.licence
        )
    return OpenedSource(source, read.rows(files), provenance)


def _fetched(wanted: SourceSettings, patterns: Sequence[str]) -> Iterator[read.SourceRow]:
    """Rows at a pinned commit, fetched when the first one is read: a run that is mined already
    needs no network."""
    files, _ = hub.fetch(wanted, patterns)
    yield from read.rows(files)


def mine(
    opened: OpenedSource,
    settings: BuildSettings,
    counts: MineCounts,
    benchmarks: Benchmarks | None = None,
) -> Iterator[Prompt]:
    """The prompts kept, in source order; `counts` follows. Reading stops at `mine.limit` prompts.

    Prompts are compared with `benchmarks`, or with those of the settings.

    Raises:
        SourceError: no rows at all, rows of another schema, or every row dropped.
    """
    sieve = _Sieve(settings, counts, benchmarks or benchmarks_of(settings))
    rated = sources.rated(opened.source) if settings.policy.engine == "recorded" else None
    joins = rated is not None and rated.absolute and settings.mine.dedup
    # where neighbours may add their answers, a prompt waits for the row after
    held: Prompt | None = None
    for number, file, row in _checked(opened):
        counts.rows += 1
        try:
            if isinstance(row, DropRow):
                raise row
            prompt = sieve.pass_on(opened, number, opened.source.parse(row, file))
        except DropRow as drop:
            counts.dropped[drop.reason] += 1
            again = held is not None and (drop.reason, drop.detail) == ("duplicate", held.prompt_id)
            if again and held and rated and not isinstance(row, DropRow):
                held = replace(held, recorded=held.recorded + rated.recorded(row))
                counts.notes["answers_joined"] += 1
            continue
        if held:
            yield held
            if counts.kept == settings.mine.limit:
                counts.dropped["over_limit"] += 1
                return
        counts.kept += 1
        prompt = replace(prompt, recorded=rated.recorded(row)) if rated else prompt
        held = prompt if joins else None
        if joins:
            continue
        yield prompt
        if counts.kept == settings.mine.limit:
            return
    if held:
        yield held
    if not counts.kept:
        reason, n = counts.dropped.most_common(1)[0]
        raise SourceError(
            f"all {counts.rows} rows of source {settings.source.kind} were dropped, {n} as"
            f" {reason}: check the data, or mine.* in the builder"
        )


def benchmarks_of(settings: BuildSettings) -> Benchmarks:
    """The benchmarks that a build's prompts are compared with: files that it names, then the
    cache."""
    return (
        Benchmarks(settings.source.decontaminate_from, cache_dir())
        if settings.mine.decontaminate
        else Benchmarks({})
    )


def _near(wanted: MineSettings) -> NearDuplicates | None:
    if not (wanted.dedup and wanted.near_duplicates):
        return None
    from .near import NearDuplicates  # imports numpy

    return NearDuplicates(wanted.near_duplicates)


class _Sieve:
    """The filters that need more than the row itself."""

    def __init__(self, settings: BuildSettings, counts: MineCounts, benchmarks: Benchmarks) -> None:
        self._mine: MineSettings = settings.mine
        self._counts = counts
        self._seen: set[int] = set()
        self._near = _near(self._mine)
        self._benchmarks = benchmarks
        counts.compared = tuple(self._benchmarks.at_hand)
        counts.not_measured = self._benchmarks.not_measured

    def pass_on(self, opened: OpenedSource, number: int, draft: ParsedRow) -> Prompt:
        """The draft as a prompt.

        Raises:
            DropRow: too_long, duplicate, contaminated, near_duplicate.
        """
        if draft.notes:
            self._counts.notes.update(draft.notes)
        if sum(len(m["content"]) for m in draft.messages) > self._mine.max_chars:
            raise DropRow("too_long")
        prompt_id, group = context_and_group(draft.messages)
        prompt_id = self._unseen(prompt_id)
        if self._benchmarks.at_hand:
            self._refuse_contaminated(draft)
        if self._near is not None and self._near.seen(
            "\n".join(m["content"] for m in draft.messages)
        ):
            raise DropRow("near_duplicate")
        where = opened.provenance
        return Prompt(
            prompt_id=prompt_id,
            messages=draft.messages,
            group=group,
            source_dataset=where.dataset,
            source_config=where.config,
            source_split=where.split,
            source_revision=where.revision,
            source_row=number,
            source_licence=where.licence,
            stratum=draft.stratum if self._mine.strata == "auto" else "all",
            category=draft.category,
            priors=draft.priors,
        )

    def _unseen(self, prompt_id: str) -> str:
        """The id, or one of its own for a repeated context that is kept: two prompts never share an
        id."""
        key = int(prompt_id, 16)
        if key in self._seen:
            if self._mine.dedup:
                raise DropRow("duplicate", prompt_id)
            return digest(prompt_id, "again", str(self._counts.rows))
        self._seen.add(key)
        return prompt_id

    def _refuse_contaminated(self, draft: ParsedRow) -> None:
        for message in draft.messages:
            if message["role"] == "user" and (name := self._benchmarks.overlap(message["content"])):
                self._counts.overlaps[name] += 1
                raise DropRow("contaminated", name)


def _checked(opened: OpenedSource) -> Iterator[read.SourceRow]:
    """The rows, once the first of them show the schema that is needed: a huge wrong file fails at
    once."""
    rows = iter(opened.rows)
    first = list(islice(rows, _PEEK))
    if not first:
        raise SourceError("the source has no rows: check --data")
    readable = [r.row for r in first if not isinstance(r.row, DropRow)]
    if not readable:
        reason = first[0].row.reason if isinstance(first[0].row, DropRow) else ""
        raise SourceError(
            f"none of the first {len(first)} rows of {first[0].file} can be read ({reason}): "
            "is the file of the type that its suffix says?"
        )
    needed = opened.source.required
    if not any(columns <= row.keys() for row in readable for columns in needed):
        seen = ", ".join(str(k) for k in list(readable[0])[:12])
        wanted = "; or ".join(", ".join(sorted(columns)) for columns in needed)
        raise SourceError(
            f"{first[0].file} is of another schema: its columns are {seen}; this source needs"
            f" {wanted}. Check --source and --data"
        )
    return chain(first, rows)
