"""The dataset folder: README.md and its neighbours (papers.py) and
<config>/<split>-00000-of-0000N.parquet.

    result = write_dataset(tables, Release(settings, origin, manifest, floors, pick),
    Path("runs/demo/dataset")) result.counts["preference"]["train"]

Rows are streamed: one pass decides what can only be known from all rows (and stops as soon as it
knows), one writes. Everything goes into a sibling folder that takes the place of the old one at the
end.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .. import text
from ..errors import PublishError
from ..run.table import ScoredTable
from ..settings import BuildSettings, nearest
from ..types import Origin
from . import card, configs, papers, pii, schemas, statistics
from .configs import Pick, Plan, View
from .scrub import scrub, scrub_text
from .shards import ShardWriter

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_ROW_BYTES = 2_000_000
MIN_GROUPS_FOR_TEST = 10


@dataclass(frozen=True, slots=True)
class FolderResult:
    """What was written. `counts`: config -> split -> rows; `too_large`: config -> rows over 2 MB,
    left out; `pii`: see pii.py."""

    counts: dict[str, dict[str, int]]
    fingerprint: str
    n_bytes: int
    too_large: dict[str, int] = field(default_factory=dict)
    pii: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Release:
    """What the folder depends on beside the scored prompts.

    Attributes:
        figures: path in the folder -> PNG; the manifest's `figures` name them for the card.
    """

    settings: BuildSettings
    origin: Origin
    manifest: Mapping[str, Any]
    floors: Mapping[str, float]
    pick: Pick
    figures: Mapping[str, bytes] = field(default_factory=dict)


def write_dataset(
    scored: Callable[[], Iterable[ScoredTable]], release: Release, out_dir: Path
) -> FolderResult:
    """Write the dataset folder, replacing an old one; the same input gives the same bytes.

    `scored` is called twice and must give the same rows in the same order. Without any pair the
    folder is still written (`scored`, `prompt_only`, ...); a config or split without rows is
    neither written nor declared.

    Raises:
        PublishError: a pair breaks a law of its selector, publish.configs names an unknown config,
            or the disk refuses.
    """
    fresh, old = (
        out_dir.with_name(f".{out_dir.name}.new"),
        out_dir.with_name(f".{out_dir.name}.old"),
    )
    wanted = _wanted(release.settings)
    try:
        for leftover in (fresh, old):
            shutil.rmtree(leftover, ignore_errors=True)
        fresh.mkdir(parents=True)
        result = _write_all(
            scored, replace(release, origin=_clean_origin(release.origin)), fresh, wanted
        )
        if out_dir.exists():
            out_dir.rename(old)
        fresh.rename(out_dir)
    except OSError as e:
        raise PublishError(
            f"can't write the dataset folder {out_dir}: {e.strerror or e}; free space or choose"
            " another --out"
        ) from e
    finally:
        for leftover in (fresh, old):
            shutil.rmtree(leftover, ignore_errors=True)
    return result


def fingerprint_of(folder: Path) -> str:
    """sha256 over the names and bytes of the folder's Parquet files."""
    whole = hashlib.sha256()
    for path in sorted(folder.glob("*/*.parquet")):
        whole.update(path.relative_to(folder).as_posix().encode() + b"\0")
        with path.open("rb") as f:
            while block := f.read(1 << 20):
                whole.update(block)
    return whole.hexdigest()


def counts_of(folder: Path) -> dict[str, dict[str, int]]:
    """Rows per config and split, from the Parquet footers, in the order of the card."""
    found: dict[str, dict[str, int]] = {}
    for path in sorted(folder.glob("*/*.parquet")):
        split = path.name.split("-")[0]
        rows = found.setdefault(path.parent.name, {})
        rows[split] = rows.get(split, 0) + pq.read_metadata(path).num_rows
    return {
        name: dict(sorted(found[name].items(), key=lambda kv: kv[0] != "train"))
        for name in sorted(found, key=lambda n: (n != schemas.DEFAULT_CONFIG, n))
    }


def split_share(group: str) -> float:
    """Where a group stands in [0, 1): below the test share it is test. A function of the group's
    name alone."""
    return int(text.digest("split", group, hex_digits=13), 16) / 16**13


@dataclass(frozen=True, slots=True)
class _Survey:
    live: tuple[str, ...]  # dimensions with a score somewhere
    forced_test: str | None  # the group that is test although no group falls under the share


def _survey(tables: Iterable[ScoredTable], dims: tuple[str, ...], share: float) -> _Survey:
    """What only all rows tell; stops reading as soon as nothing is open any more."""
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
    return _Survey(
        tuple(d for d, is_live in zip(dims, live.tolist(), strict=True) if is_live), forced
    )


def _write_all(
    scored: Callable[[], Iterable[ScoredTable]], release: Release, out: Path, wanted: list[str]
) -> FolderResult:
    settings = release.settings
    dims, share = tuple(settings.dimensions), settings.publish.test_share
    survey = _survey(scored(), dims, share)
    plan = Plan(
        dims=dims,
        origin=release.origin,
        pick=release.pick,
        floors=dict(release.floors),
        grey=_grey(release.manifest, dims),
        live=survey.live,
        stages=tuple(d for d in settings.publish.stage_order if d in dims),
    )
    writers: dict[tuple[str, str], ShardWriter] = {}
    too_large: Counter[str] = Counter()
    rows_by_source: Counter[tuple[str, str, str, str]] = Counter()
    try:
        for table in scored():
            rows_by_source.update(
                (p.source_dataset, p.source_config, p.source_revision, p.source_licence)
                for p in table.prompts
            )
            is_test_P = np.array(
                [
                    split_share(p.group) < share or p.group == survey.forced_test
                    for p in table.prompts
                ],
                bool,
            )
            for name, row_K, rows in _rows_of(View(table, plan), wanted, too_large):
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
        writer.seal()
    counts = {
        n: {sp: writers[n, sp].n_rows for sp in ("train", "test") if (n, sp) in writers}
        for n in wanted
    }
    counts = {n: by_split for n, by_split in counts.items() if by_split}
    result = FolderResult(
        counts,
        fingerprint_of(out),
        sum(f.stat().st_size for f in out.glob("*/*.parquet")),
        dict(too_large),
        pii.screen(out) if settings.publish.pii else None,
    )
    _write_card(out, release, plan, result, rows_by_source)
    return result


def _rows_of(
    view: View, wanted: list[str], too_large: Counter[str]
) -> Iterator[tuple[str, NDArray[np.int64], pa.RecordBatch]]:
    """(config, row of the table per row, rows); those over the limit are left out and counted, of
    aligned configs all or none."""
    made = {
        name: configs.batch_of(view, name) for name in wanted if schemas.family_of(name) == "by_dim"
    }
    # a dimension that nobody scored has no rows
    fits = [_fits(rows) for _, rows in made.values() if rows.num_rows]
    aligned = np.logical_and.reduce(fits) if fits else np.empty(0, bool)
    for name in wanted:
        is_aligned = name in made
        row_K, rows = made.pop(name) if is_aligned else configs.batch_of(view, name)
        fit = _fits(rows) if not is_aligned or not rows.num_rows else aligned
        if not fit.all():
            too_large[name] += int((~fit).sum())
            row_K, rows = row_K[fit], rows.filter(pa.array(fit))
        yield name, row_K, rows


def _fits(rows: pa.RecordBatch) -> NDArray[np.bool_]:
    return (
        np.ones(rows.num_rows, bool)
        if rows.nbytes <= MAX_ROW_BYTES
        else text_bytes(rows) <= MAX_ROW_BYTES
    )


def text_bytes(rows: pa.RecordBatch) -> NDArray[np.int64]:
    """Bytes of each row, all texts counted in UTF-8 and every other value as eight."""
    return np.asarray(np.sum([_bytes(column) for column in rows.columns], axis=0, dtype=np.int64))


def _bytes(values: pa.Array) -> NDArray[np.int64]:
    if pa.types.is_string(values.type):
        return np.asarray(
            pc.fill_null(pc.binary_length(values), 0).to_numpy(zero_copy_only=False), np.int64
        )
    if pa.types.is_list(values.type):
        inner = np.concatenate([[0], np.cumsum(_bytes(values.flatten()))])
        offsets = values.offsets.to_numpy()
        return np.asarray(np.diff(inner[offsets - (offsets[0] if len(offsets) else 0)]))
    if pa.types.is_struct(values.type):
        return np.asarray(
            np.sum([_bytes(leaf) for leaf in values.flatten()], axis=0, dtype=np.int64)
        )
    return np.full(len(values), 8, np.int64)


def _wanted(settings: BuildSettings) -> list[str]:
    known = schemas.config_names(settings.dimensions, settings.publish.stage_order)
    given = settings.publish.configs
    if given == "all":
        return known
    for name in given:
        if name not in known and name != schemas.BY_DIM_UNION:
            raise PublishError(
                f"publish.configs names {name!r}, which does not exist: {nearest(name, known)}"
            )
    by_dim = (
        [n for n in known if schemas.family_of(n) == "by_dim"]
        if schemas.BY_DIM_UNION in given
        else []
    )
    return [n for n in known if n in given or n in by_dim]


def _grey(manifest: Mapping[str, Any], dims: tuple[str, ...]) -> dict[str, float]:
    """Twice the noise of each dimension, where the manifest has it."""
    noise = (manifest.get("reference") or {}).get("noise") or {}
    return {d: max(configs.GREY, 2.0 * float(noise[d])) for d in dims if noise.get(d) is not None}


def _clean_origin(origin: Origin) -> Origin:
    return replace(
        origin,
        policy=scrub_text(origin.policy),
        judge=scrub_text(origin.judge),
        rewriter=scrub_text(origin.rewriter),
    )


def _write_card(
    out: Path,
    release: Release,
    plan: Plan,
    result: FolderResult,
    rows_by_source: Counter[tuple[str, str, str, str]],
) -> None:
    """All but the rows; the card and its neighbours say nothing that the manifest does not."""
    described = [describe(out, name, plan.dims) for name in result.counts]
    manifest = scrub(dict(release.manifest))
    if "publish" in (manifest.get("counts") or {}):  # the run counts it when the folder is there
        manifest["counts"]["publish"] = _publish_counts(result)
    published = {
        "manifest": {**manifest, "fingerprint": result.fingerprint, "pii": result.pii},
        "folder": {
            "dimensions": list(plan.dims),
            "unscored": [d for d in plan.dims if d not in plan.live],
            "licence": release.settings.publish.licence,
            "test_share": release.settings.publish.test_share,
            "n_bytes": result.n_bytes,
            "origin": {
                "policy": plan.origin.policy,
                "judge": plan.origin.judge,
                "rewriter": plan.origin.rewriter,
                "selector": plan.origin.selector,
                "simulated": plan.origin.simulated,
                "seed": plan.origin.seed,
            },
            "floors": dict(plan.floors),
            "grey": dict(plan.grey),
            "too_large": result.too_large,
            "sources": [
                {"dataset": d, "config": c, "revision": r, "licence": lic, "prompts": n}
                for (d, c, r, lic), n in sorted(rows_by_source.items())
            ],
            "configs": described,
            "union": card.union_of(described),
            "statistics": statistics.of_pairs(out, plan.dims),
        },
    }
    papers.write_papers(out, published)
    for name, png in release.figures.items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(png)


def _publish_counts(result: FolderResult) -> dict[str, Any]:
    """What became of the selected pairs, as the other stages count."""
    n, large = (
        sum(result.counts.get(schemas.DEFAULT_CONFIG, {}).values()),
        result.too_large.get(schemas.DEFAULT_CONFIG, 0),
    )
    return {"in": n + large, "kept": n, "dropped": {"row_too_large": large} if large else {}}


def describe(out: Path, name: str, dims: tuple[str, ...]) -> dict[str, Any]:
    """A config as its footers tell it."""
    splits: dict[str, dict[str, int]] = {}
    files: dict[str, list[str]] = {}
    for split in ("train", "test"):
        for path in sorted((out / name).glob(f"{split}-*.parquet")):
            footer = pq.read_metadata(path)
            info = splits.setdefault(split, {"num_examples": 0, "num_bytes": 0, "file_bytes": 0})
            info["num_examples"] += footer.num_rows
            info["num_bytes"] += sum(
                footer.row_group(i).total_byte_size for i in range(footer.num_row_groups)
            )
            info["file_bytes"] += path.stat().st_size
            files.setdefault(split, []).append(path.relative_to(out).as_posix())
    return {
        "name": name,
        "splits": splits,
        "files": files,
        "n_columns": len(schemas.columns(name, dims)),
    }
