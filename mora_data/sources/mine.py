"""Mine: source rows -> prompts, one pass, every row kept or dropped for a counted reason; of one
source, or of several in one build.

    opened = open_sources(settings, sample=True, data=[])
    counts = MineCounts()
    for prompt in mine_sources(opened, settings, counts):
        ...
    counts.as_dict()   # {"in": 86, "kept": 80, "dropped": {"duplicate": 3, ...}}
                       # in = kept + dropped at every moment

Streaming: what stays in memory is one 8-byte integer per kept prompt, and its sketch where
near-duplicates are looked for (docs/numbers.md). A repeated context is dropped, so its stratum
is that of the first row that has it.

With `--engine recorded` the source's own answers and ratings take the place of a model's:

    mined prompt with its answers -> rollouts of the arm "recorded" -> ratings -> best pairs

There is nothing to presample, to fuse or to measure anew, so these steps are off, and so is
confirmation. Selection, export and report are the same. `recorded:` in the builder names the
dimensions and ratings that the source has.

Several sources: `counts` is their sum, `counts.sources` what became of each. Those with a share
take turns: the next prompt is of the one whose prompts so far are fewest for its share (Webster's
rule, ties in the order of the list), so that every beginning of the mix has the shares to within a
prompt or so, and a larger `mine.limit` only appends. Those without a share come after them, one
after the other, so that one more source at the end changes nothing before it. Where a source ends
before its share, the others go on.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import chain, groupby, islice, starmap
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ..errors import DropRow, SettingsError, SourceError
from ..plugins import guarded
from ..run import SourceCounts, StageCounts
from ..run.folder import JOIN
from ..settings import BuildSettings, MineSettings, MixedSource, SourceSettings
from ..text import commonest_first, context_and_group, digest, one_line
from ..types import Messages, Prompt, Recorded, Row, is_turn
from . import Layout, ParsedRow, SourceAdapter, is_rated, load_source, plugin_of, read, sample_path
from .benchmarks import Benchmarks, cache_dir

if TYPE_CHECKING:
    from .auto import Auto
    from .near import NearDuplicates

RECORDED_MESSAGE = (
    "recorded answers: the rows' own answers and ratings are used; presampling, fusion and"
    " confirmation are skipped"
)
_BREAKS = b"\t\n\v\f\r"
_CONTROL = bytes([*range(0x09), *range(0x0E, 0x20), 0x7F])
_UNTIDY = _CONTROL + _BREAKS
_PEEK = 50  # rows looked at before a source is taken to be of the right schema
LONGEST_LABEL = 80  # characters


@dataclass(frozen=True, slots=True)
class OpenedSource:
    """A source ready to be mined: its adapter, its rows, unread, and where they are from, as every
    published row will have it."""

    source: SourceAdapter
    rows: Iterable[read.SourceRow]
    dataset: str
    config: str
    split: str
    revision: str
    licence: str
    left_out: tuple[str, ...] = ()  # data files that lie beside those that are read
    unread: tuple[str, ...] = ()  # folders that nothing is read of

    def not_read(self) -> list[str]:
        """A line on the files that lie beside those that are read."""
        none = f"; nothing of {', '.join(self.unread)} is read" if self.unread else ""
        names = ", ".join(self.left_out)
        return [f"not read, as of another split or no data: {names}{none}"] if names else []


@dataclass(slots=True)
class MineCounts:
    """What became of the rows so far.

    Attributes:
        notes: defects that left the prompt intact; a row may have several.
        overlaps: dropped as contaminated, by benchmark.
        compared: benchmarks at hand.
        not_measured: known benchmarks that were not at hand.
        layouts: of each file that was looked at, what its rows are.
        sources: what became of each source of a mix, once all is read.
    """

    rows: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    overlaps: Counter[str] = field(default_factory=Counter)
    compared: tuple[str, ...] = ()
    not_measured: tuple[str, ...] = ()
    layouts: dict[str, str] = field(default_factory=dict)
    sources: list[SourceCounts] = field(default_factory=list)

    def add(self, other: MineCounts) -> None:
        """What became of another source's rows, too."""
        self.rows += other.rows
        self.kept += other.kept
        for name in ("dropped", "notes", "overlaps"):
            getattr(self, name).update(getattr(other, name))
        self.compared, self.not_measured = other.compared, other.not_measured
        self.layouts |= other.layouts

    @property
    def contamination(self) -> dict[str, int] | None:
        """Rows dropped per benchmark at hand; None without any."""
        return {name: self.overlaps[name] for name in self.compared} or None

    def reading(self) -> list[str]:
        """What the files are, in lines."""
        files: dict[str, list[str]] = {}
        for file, what in self.layouts.items():
            files.setdefault(what, []).append(file)
        return [
            f"{names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}: {what}"
            for what, names in files.items()
        ]

    def as_dict(self) -> StageCounts:
        """`in`, `kept` and `dropped`, commonest reason first."""
        return {"in": self.rows, "kept": self.kept, "dropped": commonest_first(self.dropped)}


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def open_source(settings: BuildSettings, sample: bool, data: Sequence[Path]) -> OpenedSource:
    """The rows of the build's source: the bundled sample, local files, or the Hub.

    Raises:
        SettingsError: unknown source kind.
        SourceError: the rows can't be had; the text names the ways on.
    """
    wanted = settings.source
    source = load_source(wanted)
    patterns = wanted.files or source.files()
    if sample:
        files = read.find([sample_path(wanted.kind)], [])
        name = f"mora-data/sample-{wanted.kind}"
        where = (name, "sample", "sample", "sample", "apache-2.0")
        return OpenedSource(source, read.rows(files), *where)
    if data:
        files = read.find(data, patterns, wanted.split)
        of_split = all(Path(f.name).name.startswith(wanted.split) for f in files)
        return OpenedSource(
            source,
            read.rows(files, wanted.split),
            dataset=wanted.dataset or "local",
            config="local",
            split=wanted.split if of_split else "local",
            revision=f"local:{read.sha256(files)[:12]}",
            licence=wanted.licence,
            left_out=(beside := tuple(read.left_out(data, files))),
            unread=tuple(
                sorted({_folder(n) for n in beside} - {_folder(f.name) for f in files} - {""})
            ),
        )
    if wanted.dataset and re.fullmatch("[0-9a-f]{40}", wanted.revision or ""):
        rows, commit = _fetched_rows(wanted, patterns), wanted.revision or ""
    else:
        files, commit = read.fetch_dataset(wanted, patterns)
        rows = read.rows(files, wanted.split)
    where = (wanted.dataset or "", wanted.config, wanted.split, commit, wanted.licence)
    return OpenedSource(source, rows, *where)


def _fetched_rows(wanted: SourceSettings, patterns: Sequence[str]) -> Iterator[read.SourceRow]:
    """Rows at a pinned commit, fetched when the first one is read: a run that is mined already
    needs no network."""
    files, _ = read.fetch_dataset(wanted, patterns)
    yield from read.rows(files, wanted.split)


def mine(
    opened: OpenedSource,
    settings: BuildSettings,
    counts: MineCounts,
    benchmarks: Benchmarks | None = None,
    seen: Seen | None = None,
) -> Iterator[Prompt]:
    """The prompts kept, in source order; `counts` follows. Reading stops at `mine.limit` prompts.

    Prompts are compared with `benchmarks`, or with those of the settings, and with those `seen`.

    Raises:
        SourceError: no rows at all, rows of another schema, or every row dropped.
    """
    wanted, own, parse = settings.mine, plugin_of(settings.source).own, opened.source.parse
    if own:
        parse = partial(guarded, own, parse)
    rows = by_file(opened, settings, counts)
    if (first := next(rows, None)) is None:
        raise SourceError("the source has no rows: check --data")
    recorded = settings.policy.engine == "recorded" and is_rated(opened.source)
    apart = wanted.model_copy(update={"dedup": False})
    seen = seen or Seen(benchmarks or benchmarks_of(settings))
    own_ids: set[int] = set()
    seen.ids.append(own_ids)
    counts.compared = tuple(seen.benchmarks.at_hand)
    counts.not_measured = seen.benchmarks.not_measured
    if wanted.dedup and wanted.near_duplicates and seen.near is None:
        from .near import NearDuplicates  # imports numpy

        seen.near = NearDuplicates(wanted.near_duplicates)
    # where neighbours may add their answers, a prompt waits for the row after
    waiting: Prompt | None = None
    for number, file, row in chain([first], rows):
        counts.rows += 1
        if recorded:  # answers that only compare within a row never join; files may differ in that
            wanted = settings.mine if getattr(opened.source, "absolute", False) else apart
        try:
            if isinstance(row, DropRow):
                raise row
            parsed = parse(row, file)
            if not isinstance(parsed, ParsedRow):
                raise SourceError(f"{own} gave {type(parsed).__name__} of a row, not a ParsedRow")
            if own and not _are_turns(parsed.messages):
                raise SourceError(
                    f"{own} gave {one_line(parsed.messages, 60)} of row {number} of {file}:"
                    " messages are turns, each with a role (system, user, assistant) and a text as"
                    " content, the last of a user; raise DropRow(REASON) where a row has none"
                )
            prompt = _prompt_of(opened, number, parsed, wanted, counts, seen, own_ids)
        except DropRow as drop:
            counts.dropped[drop.reason] += 1
            repeats = waiting and (drop.reason, drop.detail) == ("duplicate", waiting.prompt_id)
            if repeats and waiting:
                waiting = replace(
                    waiting, recorded=waiting.recorded + guarded(own, _recorded, parsed)
                )
                counts.notes["answers_joined"] += 1
            continue
        if waiting:
            yield waiting
            waiting = None
            if counts.kept == settings.mine.limit:
                counts.dropped["over_limit"] += 1
                return
        counts.kept += 1
        if recorded:
            prompt = replace(prompt, recorded=guarded(own, _recorded, parsed))
            if wanted.dedup:
                waiting = prompt
                continue
        yield prompt
        if counts.kept == settings.mine.limit:
            return
    if waiting:
        yield waiting
    if not counts.kept:
        reason, n = counts.dropped.most_common(1)[0]
        raise SourceError(
            f"all {counts.rows} rows of source {settings.source.kind} were dropped, {n} as"
            f" {reason}: check the data, or mine.* in the builder"
        )


def _recorded(parsed: ParsedRow) -> tuple[Recorded, ...]:
    return tuple(starmap(Recorded, parsed.answers))


def benchmarks_of(settings: BuildSettings) -> Benchmarks:
    """The benchmarks that a build's prompts are compared with: files that it names, then the
    cache."""
    if not settings.mine.decontaminate:
        return Benchmarks({})
    named: dict[str, str] = {}
    for source in settings.all_sources:
        named |= source.decontaminate_from
    return Benchmarks(named, cache_dir())


@dataclass(slots=True)
class Seen:
    """What a build's prompts are compared with: the benchmarks, and the prompts kept so far, by
    source their ids, of all the sketches."""

    benchmarks: Benchmarks
    ids: list[set[int]] = field(default_factory=list)
    near: NearDuplicates | None = None


def _are_turns(messages: object) -> bool:
    """Whether this is a conversation that ends with a user turn."""
    return (
        isinstance(messages, Sequence)
        and all(map(is_turn, messages))
        and [m["role"] for m in messages][-1:] == ["user"]
    )


def _prompt_of(
    opened: OpenedSource,
    number: int,
    parsed: ParsedRow,
    wanted: MineSettings,
    counts: MineCounts,
    seen: Seen,
    own_ids: set[int],
) -> Prompt:
    """The parsed row as a prompt.

    Raises:
        DropRow: control_character, too_long, duplicate, in_other_source, contaminated,
            near_duplicate.
    """
    if parsed.notes:
        counts.notes.update(parsed.notes)
    n_characters, tidy = checked_text(parsed.messages)
    if n_characters > wanted.max_chars:
        raise DropRow("too_long")
    prompt_id, group = context_and_group(parsed.messages, tidy)
    key = int(prompt_id, 16)
    elsewhere = len(seen.ids) > 1 and any(key in ids for ids in seen.ids if ids is not own_ids)
    repeated = elsewhere or key in own_ids
    if repeated and wanted.dedup:
        raise DropRow("in_other_source" if elsewhere else "duplicate", prompt_id)
    own_ids.add(key)
    if repeated:  # two prompts never share an id
        where = (opened.dataset, opened.config, opened.split, opened.revision)
        again = (*(where if elsewhere else ()), str(counts.rows))
        prompt_id = digest(prompt_id, "again", *again)
    if seen.benchmarks.at_hand:
        for message in parsed.messages:
            if message["role"] == "user" and (name := seen.benchmarks.overlap(message["content"])):
                counts.overlaps[name] += 1
                raise DropRow("contaminated", name)
    if (
        seen.near
        and wanted.dedup
        and seen.near.seen("\n".join(m["content"] for m in parsed.messages))
    ):
        raise DropRow("near_duplicate")
    return Prompt(
        prompt_id=prompt_id,
        messages=parsed.messages,
        group=group,
        source_dataset=opened.dataset,
        source_config=opened.config,
        source_split=opened.split,
        source_revision=opened.revision,
        source_row=number,
        source_licence=opened.licence,
        stratum=label(parsed.stratum) if wanted.strata == "auto" else "all",
        category=label(parsed.category or "") or None,
    )


def checked_text(messages: Messages) -> tuple[int, bool]:
    """Length of a conversation that holds no control character but white space, and whether it is
    tidy: without tabs and line ends, too.

    Raises:
        DropRow: control_character; such a text is damaged.
    """
    text = "".join([m["content"] for m in messages])
    raw = text.encode("utf-8", "surrogatepass")  # a third of the time of a look at the text itself
    tidy = len(raw.translate(None, _UNTIDY)) == len(raw)
    if not tidy and len(raw.translate(None, _CONTROL)) < len(raw):
        raise DropRow("control_character")
    return len(text), tidy


@lru_cache(maxsize=1024)  # most rows have one of a few
def label(text: str) -> str:
    """A source's own label as a short name: it stands in charts, on the card and in the manifest,
    where no address may be."""
    return one_line(text, LONGEST_LABEL).replace("://", ":")


def by_file(
    opened: OpenedSource, settings: BuildSettings, counts: MineCounts
) -> Iterator[read.SourceRow]:
    """The rows, once the first of each file show what they are: a huge wrong file fails at once,
    and one that has drifted is not read as if it were like the others."""
    for file, rows in groupby(opened.rows, key=attrgetter("file")):
        first = list(islice(rows, _PEEK))
        readable = [r.row for r in first if not isinstance(r.row, DropRow)]
        if not readable:
            reason = first[0].row.reason if isinstance(first[0].row, DropRow) else ""
            hints = {
                "not_utf8": "save it as UTF-8, or give it the suffix of its type",
                "not_an_object": 'each row has to be an object, as {"prompt": "Why?"}',
            }
            raise SourceError(
                f"none of the first {len(first)} rows of {file} can be read ({reason}): "
                + hints.get(reason, "is the file of the type that its suffix says?")
            )
        _look(opened.source, readable, file, settings, counts)
        yield from chain(first, rows)  # noqa: B031


def _look(
    source: SourceAdapter,
    rows: Sequence[Row],
    file: str,
    settings: BuildSettings,
    counts: MineCounts,
) -> None:
    """What the first rows of a file are.

    Raises:
        SourceError: not what the source reads; the text says what does.
    """
    if hasattr(source, "look"):  # asked by name: other sources need not load the layouts
        auto = cast("Auto", source)
        counts.layouts[file] = auto.look(rows, file)
        if settings.policy.engine == "recorded":
            sources = [r for d in settings.dimensions for r in settings.rewards.get(d, [])]
            wanted = (r.options.get("column") for r in sources if r.kind == "precomputed")
            auto.check_ratings(rows, frozenset(str(c) for c in wanted), file)
        return
    if isinstance(source, Layout):
        fits, needed = any(map(source.matches, rows)), source.known_by.replace("`", "")
    else:
        fits = any(set(columns) <= row.keys() for row in rows for columns in source.required)
        needed = "; or ".join(", ".join(sorted(columns)) for columns in source.required)
    if fits:
        return
    seen = ", ".join(one_line(k, 40) for k in list(rows[0])[:12])
    from .auto import Auto

    try:
        found = Auto(settings.source.model_copy(update={"columns": {}})).look(rows, file)
        way = f"They are {found}: read them with --source auto"
    except SourceError:
        way = "Check --source and --data"
    raise SourceError(
        f"{file} is of another schema: its columns are {seen}; this source needs {needed}. {way}"
    )


def as_recorded(settings: BuildSettings) -> tuple[BuildSettings, list[str]]:
    """The settings of a build with recorded answers, and messages; any other build as it is.

    Raises:
        SettingsError: the source carries no rated answers, or its card forbids the config sft.
    """
    if settings.policy.engine != "recorded":
        return settings, []
    if settings.sources:
        raise SettingsError(
            "--engine recorded takes one source, as ratings of different sources don't compare:"
            " build them one by one"
        )
    source, wanted = load_source(settings.source), settings.recorded
    if not is_rated(source) or wanted is None:
        raise SettingsError(
            "--engine recorded needs a source with rated answers and `recorded:` in its builder: "
            f"{settings.source.kind} has no such {'part' if is_rated(source) else 'answers'}"
        )
    missing = [d for d in wanted.dimensions if not wanted.rewards.get(d)]
    if missing:
        raise SettingsError(
            f"recorded.rewards lacks {', '.join(missing)}: name the rating of each dimension"
        )
    dims, before = wanted.dimensions, settings.publish.stage_order
    order = [d for d in before if d in dims] + [d for d in dims if d not in before]
    publish = settings.publish.model_copy(update={"stage_order": order})
    messages = [RECORDED_MESSAGE]
    sft = getattr(source, "sft", "")
    if sft.startswith("refused"):
        from ..dataset.schemas import config_names  # pyarrow comes with it

        why = sft.removeprefix("refused: ")
        if publish.configs != "all" and "sft" in publish.configs:
            raise SettingsError(f"publish.configs names sft: {why}; leave it out")
        messages.append(f"without the config sft: {why}")
        configs = config_names(dims, order) if publish.configs == "all" else publish.configs
        publish = publish.model_copy(update={"configs": [c for c in configs if c != "sft"]})
    elif sft:
        messages.append(f"warning: {sft}")
    changed = {
        "dimensions": dims,
        "rewards": wanted.rewards,
        "publish": publish,
        "presample": settings.presample.model_copy(update={"enabled": False}),
        "fuse": settings.fuse.model_copy(update={"arms": ["identity"], "targets": "auto"}),
        "select": settings.select.model_copy(update={"confirm": False}),
    }
    return settings.model_copy(update=changed), messages


# several sources


def open_sources(
    settings: BuildSettings, sample: bool, data: Sequence[Path]
) -> tuple[OpenedSource, ...]:
    """The rows of every source of the build, as `open_source` opens one.

    Raises:
        SettingsError: as there; or `data` of a mix does not say whose it is.
        SourceError: as there.
    """
    if not settings.sources:
        return (open_source(settings, sample, data),)
    given = _data_of(settings.sources, data)
    return tuple(
        open_source(settings.of_source(s), sample, given[s.name]) for s in settings.sources
    )


def data_given(settings: BuildSettings, data: Sequence[Path]) -> list[str]:
    """The local files of the build as `open_sources` takes them, wherever it is called from."""
    if not settings.sources:
        return [str(p.resolve()) for p in data]
    given = _data_of(settings.sources, data)
    return [f"{name}={p.resolve()}" for name, paths in given.items() for p in paths]


def identity_of(settings: BuildSettings, opened: Sequence[OpenedSource]) -> dict[str, str]:
    """What a run folder is a build of: another source is another run. Of a mix, each entry joins
    those of its sources."""
    trees = [
        {
            "source": wanted.kind,
            "dataset": one.dataset,
            "config": one.config,
            "split": one.split,
            "revision": one.revision,
        }
        for wanted, one in zip(settings.all_sources, opened, strict=True)
    ]
    if not settings.sources:
        return trees[0]
    shares = ["-" if s.share is None else f"{s.share:g}" for s in settings.sources]
    joined = {key: JOIN.join(tree[key] for tree in trees) for key in trees[0]}
    return {**joined, "shares": JOIN.join(shares)}


def mine_sources(
    opened: Sequence[OpenedSource],
    settings: BuildSettings,
    counts: MineCounts,
    benchmarks: Benchmarks | None = None,
) -> Iterator[Prompt]:
    """The prompts of all sources, each kept once, whichever source has it first; `counts` follows,
    of a mix at its end. Reading stops at `mine.limit` prompts.

    Raises:
        SourceError: as `mine`, of any source.
    """
    if not settings.sources:
        yield from mine(opened[0], settings, counts, benchmarks)
        return
    seen, each = Seen(benchmarks or benchmarks_of(settings)), [MineCounts() for _ in opened]
    left = {
        i: mine(one, settings.of_source(wanted), each[i], seen=seen)
        for i, (wanted, one) in enumerate(zip(settings.sources, opened, strict=True))
    }
    ended: set[int] = set()
    try:
        while left and sum(c.kept for c in each) != settings.mine.limit:
            i = _next(settings.sources, each, left)
            if (prompt := next(left[i], None)) is not None:
                yield prompt
            else:
                del left[i]
                ended.add(i)
    finally:
        for one in each:
            counts.add(one)
        counts.sources = [
            _counts_of(settings.sources, opened, each, i, i in ended) for i in range(len(each))
        ]


def _next(
    sources: Sequence[MixedSource],
    counts: Sequence[MineCounts],
    left: Mapping[int, Iterator[Prompt]],
) -> int:
    """Whose turn it is, of the sources that are left."""
    turns = [((2 * counts[i].kept + 1) / share, i) for i in left if (share := sources[i].share)]
    return min(turns)[1] if turns else min(left)


def _counts_of(
    sources: Sequence[MixedSource],
    opened: Sequence[OpenedSource],
    counts: Sequence[MineCounts],
    i: int,
    ended: bool,
) -> SourceCounts:
    s, one, kept = sources[i], opened[i], counts[i].kept
    wanted = kept
    if ended and s.count is not None:
        wanted = s.count
    elif ended and s.share:
        turns = [(c.kept, t.share) for c, t in zip(counts, sources, strict=True) if t.share]
        wanted = int(sum(n for n, _ in turns) * s.share / sum(share for _, share in turns))
    stage = counts[i].as_dict()
    return {
        "name": s.name,
        "kind": s.kind,
        "dataset": one.dataset,
        "config": one.config,
        "split": one.split,
        "revision": one.revision,
        "licence": one.licence,
        "share": s.share,
        "count": s.count,
        "in": stage["in"],
        "kept": stage["kept"],
        "dropped": stage["dropped"],
        "missing": max(wanted - kept, 0),
    }


def _data_of(sources: Sequence[MixedSource], data: Sequence[Path]) -> dict[str, list[Path]]:
    """Local files by the source that they belong to."""
    found = {s.name: read.local_paths(s.data) for s in sources}
    for path in data:
        name, _, rest = str(path).partition("=")
        if name not in found or not rest:
            raise SettingsError(
                f"--data {path}: this build has several sources; write NAME=PATH, with NAME one of"
                f" {', '.join(found)}"
            )
        found[name] += read.local_paths([rest])
    return found
