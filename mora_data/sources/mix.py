"""Several sources in one build: whose turn it is, and what became of each.

    opened = open_sources(settings, sample=True, data=[])
    counts = MineCounts()
    for prompt in mine_sources(opened, settings, counts):
        ...
    counts.sources[0]["kept"]      # counts itself is the sum

Sources with a share take turns: the next prompt is of the one whose prompts so far are fewest for
its share (Webster's rule, ties in the order of the list), so that every beginning of the mix has
the shares to within a prompt or so, and a larger `mine.limit` only appends. Those without a share
come after them, one after the other, so that one more source at the end changes nothing before it.
Where a source ends before its share, the others go on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..errors import SettingsError
from ..run.folder import JOIN, SourceCounts
from ..settings import BuildSettings, MixedSource
from ..types import Prompt
from . import read
from .benchmarks import Benchmarks
from .mine import MineCounts, OpenedSource, Seen, benchmarks_of, mine, open_source


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
    benchmarks = benchmarks or benchmarks_of(settings)
    seen, each = Seen(), [MineCounts() for _ in opened]
    left = {
        i: mine(one, settings.of_source(wanted), each[i], benchmarks, seen)
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
