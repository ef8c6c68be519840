"""The dataset folder: README.md and its neighbours, <config>/<split>-00000-of-0000N.parquet.

    release = Release(settings, origin, manifest, thresholds, pick)
    result = write_dataset(tables, release, Path("runs/demo/dataset"))
    result.counts["preference"]["train"]

Rows are streamed: one pass decides what can only be known from all rows (and stops as soon as it
knows), one writes. Everything goes into a sibling folder that takes the place of the old one at the
end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from .. import text
from ..errors import SettingsError
from ..run import Manifest, PersonalData, SourceCounts, StageCounts
from ..run.folder import source_of
from ..run.table import ScoredTable
from ..settings import BuildSettings, nearest
from . import configs, papers, schemas
from .card import PublishedManifest, SourceInfo
from .configs import Release, TableView
from .privacy import screen, scrub
from .schemas import ShardWriter

MAX_ROW_BYTES = 2_000_000
MIN_GROUPS_FOR_TEST = 10


@dataclass(frozen=True, slots=True)
class FolderResult:
    """What was written. `counts`: config -> split -> rows; `too_large`: config -> rows over 2 MB,
    left out."""

    counts: dict[str, dict[str, int]]
    fingerprint: str
    too_large: dict[str, int] = field(default_factory=dict)
    pii: PersonalData | None = None
    papers: dict[str, str] = field(default_factory=dict)  # other files than Parquet -> sha256
    report: Mapping[str, Any] | None = None  # of the run, where there is one
    sources: list[SourceCounts] | None = None  # of a mix, with the pairs of each

    @property
    def stage(self) -> StageCounts:
        """What became of the selected pairs."""
        n = sum(self.counts.get(schemas.DEFAULT_CONFIG, {}).values())
        large = self.too_large.get(schemas.DEFAULT_CONFIG, 0)
        dropped = {"row_too_large": large} if large else {}
        return {"in": n + large, "kept": n, "dropped": dropped}


def write_dataset(
    scored: Callable[[], Iterable[ScoredTable]], release: Release, out_dir: Path
) -> FolderResult:
    """Write the dataset folder, replacing an old one; the same input gives the same bytes.

    `scored` is called twice and must give the same rows in the same order. Without any pair the
    folder is still written (`scored`, `prompt_only`, ...); a config or split without rows is
    neither written nor declared.

    Raises:
        PublishError: a pair breaks a law of its selector, or the disk refuses.
    """
    wanted = configs_to_write(release.settings)
    with schemas.replacement(out_dir) as fresh:
        return _write_all(scored, replace(release, origin=scrub(release.origin)), fresh, wanted)


def split_share(group: str) -> float:
    """Where a group stands in [0, 1): below the test share it is test. A function of the group's
    name alone."""
    return int(text.digest("split", group, hex_digits=13), 16) / 16**13


def _survey(
    tables: Iterable[ScoredTable], dims: tuple[str, ...], share: float
) -> tuple[tuple[str, ...], str | None]:
    """What only all rows tell; stops reading as soon as nothing is open any more.

    The dimensions with a score somewhere, and the group that is test although no group falls under
    the share.
    """
    live = np.zeros(len(dims), bool)
    lowest: dict[bool, tuple[float, str]] = {}
    # with a pair, any; counted up to MIN_GROUPS_FOR_TEST
    groups: dict[bool, set[str]] = {True: set(), False: set()}
    in_test = share == 0
    for t in tables:
        live |= (~np.isnan(t.rewards_R_D)).any(0)
        paired = np.isin(np.arange(len(t)), t.pairs.row_Q).tolist()
        for prompt, has_pair in zip(t.prompts, paired, strict=True):
            if in_test:
                break
            place = (split_share(prompt.group), prompt.group)
            for key in (True, False) if has_pair else (False,):
                lowest[key] = min(place, lowest.get(key, place))
                if len(groups[key]) < MIN_GROUPS_FOR_TEST:
                    groups[key].add(prompt.group)
            in_test = has_pair and place[0] < share
        if in_test and live.all():
            break
    forced = None
    if not in_test:
        key = len(groups[True]) >= MIN_GROUPS_FOR_TEST
        if len(groups[key]) >= MIN_GROUPS_FOR_TEST and lowest[key][0] >= share:
            forced = lowest[key][1]
    return tuple(d for d, is_live in zip(dims, live.tolist(), strict=True) if is_live), forced


def _write_all(
    scored: Callable[[], Iterable[ScoredTable]], release: Release, out: Path, wanted: list[str]
) -> FolderResult:
    share = release.settings.publish.test_share
    live, forced_test = _survey(scored(), release.dims, share)
    release = replace(release, live=live)
    writers: dict[tuple[str, str], ShardWriter] = {}
    too_large: Counter[str] = Counter()
    prompts_by_source: Counter[tuple[str, str, str, str]] = Counter()
    pairs: Counter[str] = Counter()
    try:
        for table in scored():
            prompts_by_source.update(
                (p.source_dataset, p.source_config, p.source_revision, p.source_licence)
                for p in table.prompts
            )
            pairs.update(table.prompts[row].source for row in table.pairs.row_Q.tolist())
            groups = [p.group for p in table.prompts]
            in_test = [split_share(g) < share or g == forced_test for g in groups]
            is_test_P = np.array(in_test, bool)
            for name, row_K, rows in _rows_of(TableView(table, release), wanted, too_large):
                for split, mask in (("train", ~is_test_P[row_K]), ("test", is_test_P[row_K])):
                    if not mask.any():
                        continue
                    if (name, split) not in writers:
                        writers[name, split] = ShardWriter(out / name, split, rows.schema)
                    writers[name, split].add(rows if mask.all() else rows.filter(pa.array(mask)))
        for writer in writers.values():
            writer.close()
    finally:
        for writer in writers.values():
            writer.discard()
    for writer in writers.values():
        writer.finalize()
    found = schemas.counts_of(out)
    mixed: Sequence[SourceCounts] = release.manifest.get("sources") or ()
    counted: list[SourceCounts] = [{**s, "pairs": pairs[source_of(s)]} for s in mixed]
    result = FolderResult(
        {name: found[name] for name in wanted if name in found},
        schemas.fingerprint_of(out),
        dict(too_large),
        screen(out) if release.settings.publish.pii else None,
        sources=counted or None,
    )
    sources: list[SourceInfo] = [
        {"dataset": d, "config": c, "revision": r, "licence": licence, "prompts": n}
        for (d, c, r, licence), n in sorted(prompts_by_source.items())
    ]
    published = _published(out, release, result, sources)
    report = None
    if release.report is not None and schemas.DEFAULT_CONFIG in result.counts:
        # the settings as they are: what is published of them lacks addresses
        known: Manifest = {**release.manifest, "fingerprint": result.fingerprint, "pii": result.pii}
        if "counts" in published["manifest"]:
            known["counts"] = published["manifest"]["counts"]
        report, summary = release.report(out, known)
        published["manifest"]["report"] = scrub(summary)
    papers.write_papers(out, published, None if report is None else scrub(dict(report)))
    for name, png in release.figures.items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(png)
    return replace(result, papers=schemas.papers_of(out), report=report)


def _rows_of(
    view: TableView, wanted: list[str], too_large: Counter[str]
) -> Iterator[tuple[str, NDArray[np.int64], pa.RecordBatch]]:
    """(config, row of the table per row, rows); those over the limit are left out and counted, of
    aligned configs all or none."""
    made = {
        name: configs.config_batch(view, name)
        for name in wanted
        if schemas.family_of(name) == "by_dim"
    }
    # a dimension that nobody scored has no rows
    fits = [_fits(rows) for _, rows in made.values() if rows.num_rows]
    aligned = np.logical_and.reduce(fits) if fits else np.empty(0, bool)
    for name in wanted:
        is_aligned = name in made
        row_K, rows = made.pop(name) if is_aligned else configs.config_batch(view, name)
        fit = _fits(rows) if not is_aligned or not rows.num_rows else aligned
        if not fit.all():
            too_large[name] += int((~fit).sum())
            row_K, rows = row_K[fit], rows.filter(pa.array(fit))
        yield name, row_K, rows


def _fits(rows: pa.RecordBatch) -> NDArray[np.bool_]:
    if rows.nbytes <= MAX_ROW_BYTES:
        return np.ones(rows.num_rows, bool)
    return sum(map(_text_bytes, rows.columns), np.zeros(rows.num_rows, np.int64)) <= MAX_ROW_BYTES


def _text_bytes(values: pa.Array) -> NDArray[np.int64]:
    """Bytes of each value, all texts counted in UTF-8 and everything else as eight."""
    if pa.types.is_string(values.type):
        return np.asarray(
            pc.fill_null(pc.binary_length(values), 0).to_numpy(zero_copy_only=False), np.int64
        )
    if pa.types.is_list(values.type):
        inner = np.concatenate([[0], np.cumsum(_text_bytes(values.flatten()))])
        offsets = values.offsets.to_numpy()
        return np.asarray(np.diff(inner[offsets - (offsets[0] if len(offsets) else 0)]))
    if pa.types.is_struct(values.type):
        return sum(map(_text_bytes, values.flatten()), np.zeros(len(values), np.int64))
    return np.full(len(values), 8, np.int64)


def configs_to_write(settings: BuildSettings) -> list[str]:
    """The configs that `publish.configs` names.

    Raises:
        SettingsError: there is no such config; the nearest is named.
    """
    known = schemas.config_names(settings.dimensions, settings.publish.stage_order)
    given = settings.publish.configs
    if given == "all":
        return known
    for name in given:
        if name not in known and name != schemas.BY_DIM_UNION:
            raise SettingsError(
                f"publish.configs names {name!r}, which does not exist: {nearest(name, known)}"
            )
    union = schemas.BY_DIM_UNION in given
    return [n for n in known if n in given or (union and schemas.family_of(n) == "by_dim")]


def _published(
    out: Path, release: Release, result: FolderResult, sources: list[SourceInfo]
) -> PublishedManifest:
    """The manifest of the folder; the card and its neighbours say nothing that it does not."""
    manifest: Manifest = scrub(release.manifest)
    if "publish" in (manifest.get("counts") or {}):  # the run counts it when the folder is there
        manifest["counts"]["publish"] = result.stage
    if result.sources:
        manifest["sources"] = scrub(result.sources)
    return {
        "manifest": {**manifest, "fingerprint": result.fingerprint, "pii": result.pii},
        "folder": {
            "dimensions": list(release.dims),
            "unscored": [d for d in release.dims if d not in release.live],
            "licence": release.settings.publish.licence,
            "test_share": release.settings.publish.test_share,
            "origin": release.origin,
            "floors": dict(release.thresholds),
            "grey": release.grey,
            "too_large": result.too_large,
            "sources": sources,
            **papers.describe(out, list(result.counts), release.dims),
        },
    }
