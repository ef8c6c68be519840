"""The dataset folder: README.md and its neighbours (papers.py) and <config>/<split>-00000-of-0000N.parquet.

    result = write_dataset(scored, settings, origin, manifest, floors, pick, Path("runs/demo/dataset"))
    result.counts["preference"]["train"]

Rows are streamed: one pass decides what can only be known from all rows (and stops as soon as it knows), one writes.
Everything goes into a sibling folder that takes the place of the old one at the end.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from .. import text
from ..config import BuildSettings, nearest
from ..errors import PublishError
from ..types import Origin, Scored
from . import card, configs, papers, schemas, statistics
from .configs import Pick, Plan, Row, View
from .scrub import scrub, scrub_text
from .shards import ShardWriter

MAX_ROW_BYTES = 2_000_000
MIN_GROUPS_FOR_TEST = 10
_SMALL = 32_000  # characters; a prompt below never needs its rows measured
_IN_FLIGHT = 4


@dataclass(frozen=True, slots=True)
class FolderResult:
    """What was written. `counts`: config -> split -> rows; `too_large`: config -> rows over 2 MB, left out."""

    counts: dict[str, dict[str, int]]
    fingerprint: str
    n_bytes: int
    too_large: dict[str, int] = field(default_factory=dict)


def write_dataset(
    scored: Callable[[], Iterable[Scored]],
    settings: BuildSettings,
    origin: Origin,
    manifest: Mapping[str, Any],
    floors: Mapping[str, float],
    pick: Pick,
    out_dir: Path,
) -> FolderResult:
    """Write the dataset folder, replacing an old one; the same input gives the same bytes.

    `scored` is called twice and must give the same rows in the same order. Without any pair the folder is still written
    (`scored`, `prompt_only`, ...); a config or split without rows is neither written nor declared.

    Raises:
        PublishError: a pair breaks a law of its selector, publish.configs names an unknown config, or the disk refuses.
    """
    fresh, old = out_dir.with_name(f".{out_dir.name}.new"), out_dir.with_name(f".{out_dir.name}.old")
    wanted = _wanted(settings)
    try:
        for leftover in (fresh, old):
            shutil.rmtree(leftover, ignore_errors=True)
        fresh.mkdir(parents=True)
        result = _write_all(scored, settings, _clean_origin(origin), manifest, floors, pick, fresh, wanted)
        if out_dir.exists():
            out_dir.rename(old)
        fresh.rename(out_dir)
    except OSError as e:
        raise PublishError(
            f"can't write the dataset folder {out_dir}: {e.strerror or e}; free space or choose another --out"
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
    """Where a group stands in [0, 1): below the test share it is test. A function of the group's name alone."""
    return int(text.digest("split", group, hex_digits=13), 16) / 16**13


@dataclass(frozen=True, slots=True)
class _Survey:
    live: tuple[str, ...]  # dimensions with a score somewhere
    forced_test: str | None  # the group that is test although no group falls under the share


def _survey(rows: Iterable[Scored], dims: tuple[str, ...], share: float) -> _Survey:
    """What only all rows tell; stops reading as soon as nothing is open any more."""
    live: set[str] = set()
    lowest: dict[bool, tuple[float, str]] = {}
    groups: dict[bool, set[str]] = {True: set(), False: set()}  # with a pair, any; counted up to MIN_GROUPS_FOR_TEST
    in_test = share == 0
    for s in rows:
        live.update(d for d in dims if d not in live and any(v is not None for v in s.rewards.get(d, ())))
        if not in_test:
            place = (split_share(s.prompt.group), s.prompt.group)
            for key in (True, False) if s.pairs else (False,):
                lowest[key] = min(place, lowest.get(key, place))
                if len(groups[key]) < MIN_GROUPS_FOR_TEST:
                    groups[key].add(s.prompt.group)
            in_test = bool(s.pairs) and place[0] < share
        if in_test and len(live) == len(dims):
            break
    forced = None
    if not in_test:
        key = len(groups[True]) >= MIN_GROUPS_FOR_TEST
        if len(groups[key]) >= MIN_GROUPS_FOR_TEST and lowest[key][0] >= share:
            forced = lowest[key][1]
    return _Survey(tuple(d for d in dims if d in live), forced)


class _Background:
    """One thread that writes while the next batch is built; a few batches in flight at most."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="parquet")
        self._slots = threading.Semaphore(_IN_FLIGHT)
        self._error: BaseException | None = None

    def submit(self, job: Callable[[], None]) -> None:
        self._slots.acquire()
        if self._error is not None:
            self._slots.release()
            raise self._error
        self._pool.submit(job).add_done_callback(self._done)

    def finish(self) -> None:
        self._pool.shutdown(wait=True)
        if self._error is not None:
            raise self._error

    def _done(self, future: Future[None]) -> None:
        self._error = self._error or future.exception()
        self._slots.release()


def _write_all(
    scored: Callable[[], Iterable[Scored]],
    settings: BuildSettings,
    origin: Origin,
    manifest: Mapping[str, Any],
    floors: Mapping[str, float],
    pick: Pick,
    out: Path,
    wanted: list[str],
) -> FolderResult:
    dims = tuple(settings.dimensions)
    survey = _survey(scored(), dims, settings.publish.test_share)
    plan = Plan(
        dims=dims,
        origin=origin,
        pick=pick,
        floors=dict(floors),
        grey=_grey(manifest, dims),
        live=survey.live,
        stages=tuple(d for d in settings.publish.stage_order if d in dims),
    )
    makers = {name: make for name, make in configs.builders(dims, plan.stages).items() if name in wanted}
    writers: dict[tuple[str, str], ShardWriter] = {}
    too_large: Counter[str] = Counter()
    rows_by_source: Counter[tuple[str, str, str, str]] = Counter()
    background = _Background()
    try:
        for s in scored():
            p = s.prompt
            is_test = split_share(p.group) < settings.publish.test_share or p.group == survey.forced_test
            rows_by_source[p.source_dataset, p.source_config, p.source_revision, p.source_licence] += 1
            view = View(s, plan)
            for name, made, n_bytes in _rows_of(view, makers, too_large):
                key = (name, "test" if is_test else "train")
                if key not in writers:
                    writers[key] = ShardWriter(out / name, key[1], schemas.schema(name, dims), background.submit)
                writers[key].add(view.base, made, n_bytes)
        for writer in writers.values():
            writer.close()
    finally:
        try:
            background.finish()
        finally:
            for writer in writers.values():
                writer.discard()
    for writer in writers.values():
        writer.seal()
    counts = {n: {sp: writers[n, sp].n_rows for sp in ("train", "test") if (n, sp) in writers} for n in makers}
    counts = {n: by_split for n, by_split in counts.items() if by_split}
    result = FolderResult(
        counts, fingerprint_of(out), sum(f.stat().st_size for f in out.glob("*/*.parquet")), dict(too_large)
    )
    _write_card(out, settings, plan, manifest, result, rows_by_source)
    return result


def _rows_of(
    view: View, makers: Mapping[str, Callable[[View], list[Row]]], too_large: Counter[str]
) -> Iterator[tuple[str, list[Row], int]]:
    """(config, rows, bytes of text) of one prompt; rows over the limit are left out and counted."""
    s = view.scored
    n_chars = sum(len(r.text) for r in s.rollouts) + 2 * sum(
        len(m["content"]) for m in (*s.messages, *s.prompt.messages)
    )
    made = {name: make(view) for name, make in makers.items()}
    sizes = dict.fromkeys(made, n_chars)
    if n_chars > _SMALL:
        _drop_large(view, made, sizes, too_large)
    for name, rows in made.items():
        for row in rows:
            if "chosen" in row and (wrong := configs.fault(row, s, view.plan.dims)) is not None:
                raise PublishError(
                    f"config {name}, prompt {s.prompt.prompt_id}, arm {s.arm}: {wrong}; the selector "
                    f"{row['selector']!r} broke its rule, so nothing was written"
                )
        if rows:
            yield name, rows, sizes[name]


def _drop_large(view: View, made: dict[str, list[Row]], sizes: dict[str, int], too_large: Counter[str]) -> None:
    """Leave out rows over the limit; of the aligned configs all or none."""
    base = _size(view.base)
    before = {name: len(rows) for name, rows in made.items()}
    for name, rows in made.items():
        measured = [(row, base + _size(row)) for row in rows]
        made[name] = [row for row, n in measured if n <= MAX_ROW_BYTES]
        sizes[name] = sum(n for _, n in measured if n <= MAX_ROW_BYTES)
    aligned = [name for name in made if schemas.family_of(name) == "by_dim"]
    if not all(made[name] for name in aligned):
        made.update((name, []) for name in aligned)
    too_large.update({name: n - len(made[name]) for name, n in before.items() if n > len(made[name])})


def _size(value: Any) -> int:
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, dict):
        return sum(_size(v) for v in value.values())
    return sum(_size(v) for v in value) if isinstance(value, list) else 8


def _wanted(settings: BuildSettings) -> list[str]:
    known = schemas.config_names(settings.dimensions, settings.publish.stage_order)
    given = settings.publish.configs
    if given == "all":
        return known
    for name in given:
        if name not in known and name != schemas.BY_DIM_UNION:
            raise PublishError(f"publish.configs names {name!r}, which does not exist: {nearest(name, known)}")
    by_dim = [n for n in known if schemas.family_of(n) == "by_dim"] if schemas.BY_DIM_UNION in given else []
    return [n for n in known if n in given or n in by_dim]


def _grey(manifest: Mapping[str, Any], dims: tuple[str, ...]) -> dict[str, float]:
    """Twice the noise of each dimension, where the manifest has it."""
    noise = (manifest.get("reference") or {}).get("noise") or {}
    return {d: max(configs.GREY, 2.0 * float(noise[d])) for d in dims if noise.get(d) is not None}


def _clean_origin(origin: Origin) -> Origin:
    return replace(
        origin, policy=scrub_text(origin.policy), judge=scrub_text(origin.judge), rewriter=scrub_text(origin.rewriter)
    )


def _write_card(
    out: Path,
    settings: BuildSettings,
    plan: Plan,
    manifest: Mapping[str, Any],
    result: FolderResult,
    rows_by_source: Counter[tuple[str, str, str, str]],
) -> None:
    """All but the rows; the card and its neighbours say nothing that the manifest does not."""
    described = [describe(out, name, plan.dims) for name in result.counts]
    published = {
        "manifest": {**scrub(dict(manifest)), "fingerprint": result.fingerprint},
        "folder": {
            "dimensions": list(plan.dims),
            "unscored": [d for d in plan.dims if d not in plan.live],
            "licence": settings.publish.licence,
            "test_share": settings.publish.test_share,
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


def describe(out: Path, name: str, dims: tuple[str, ...]) -> dict[str, Any]:
    """A config as its footers tell it."""
    splits: dict[str, dict[str, int]] = {}
    files: dict[str, list[str]] = {}
    for split in ("train", "test"):
        for path in sorted((out / name).glob(f"{split}-*.parquet")):
            footer = pq.read_metadata(path)
            info = splits.setdefault(split, {"num_examples": 0, "num_bytes": 0, "file_bytes": 0})
            info["num_examples"] += footer.num_rows
            info["num_bytes"] += sum(footer.row_group(i).total_byte_size for i in range(footer.num_row_groups))
            info["file_bytes"] += path.stat().st_size
            files.setdefault(split, []).append(path.relative_to(out).as_posix())
    return {"name": name, "splits": splits, "files": files, "n_columns": len(schemas.columns(name, dims))}
