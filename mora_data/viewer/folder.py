"""What is looked at: a run folder (finished, running or left), or a dataset folder alone; and how
its run stands.

    folder = open_folder(Path("runs/demo"))     folder.dims, folder.floors, folder.partitions()
    look_at(folder)                             {"running": True, "prompts_sealed": 40, ...}

The build's own files are read, its lock is never taken.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypedDict, cast

from typing_extensions import NotRequired

from ..errors import DamagedFile, RunFolderError
from ..report.document import settings_of
from ..run.cost import spent_in
from ..run.files import read_json, readable
from ..run.folder import StageCounts, manifest_of, parts_of
from ..run.partitions import Partition
from ..run.progress import FRESH_S, read_live
from ..types import STAGES

RELOAD_S = 3
CHANGED = "it changed; load the page again"
OTHER_VERSION = "it is damaged, being written, or of another version of mora-data"
Query = Mapping[str, str]  # of an address
FileStamp = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True)
class Page:
    """A page: the template that draws it, and its fields, which are its JSON. It loads itself again
    where it has a `reload_s`.

    `helpers`: what the template needs beside the fields.
    """

    template: str
    fields: dict[str, Any]
    helpers: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ViewedFolder:
    """One folder as it stood when it was opened.

    Attributes:
        run: the run folder; None where only a dataset folder was given.
        dataset: the dataset folder; it may be empty or not there yet.
        manifest: the run's, or the one that the dataset folder carries.
        dims: reward dimensions; those of the columns where no settings tell.
        floors: dimension -> pass threshold; empty where none is known.
    """

    root: Path
    run: Path | None
    dataset: Path
    manifest: Mapping[str, Any]
    dims: tuple[str, ...]
    floors: Mapping[str, float]

    @property
    def kind(self) -> str:
        """ "run" or "dataset"."""
        return "run" if self.run is not None else "dataset"

    def partitions(self) -> list[Partition]:
        """The run's partitions; none of a dataset folder."""
        return parts_of(self.run) if self.run is not None else []

    def finished(self) -> list[tuple[Partition, dict[str, Any]]]:
        """The partitions that are finished, each with its manifest."""
        return [(p, m) for p in self.partitions() if (m := p.manifest()) is not None]


def open_folder(path: Path) -> ViewedFolder:
    """The folder as it stands now.

    Raises:
        RunFolderError: neither a run nor a dataset folder, or one that another version wrote.
    """
    if manifest := manifest_of(path):
        return _open_run(path, manifest)
    if (path / "preference").is_dir() or (path / "scored").is_dir():
        carried = read_json(path / "provenance" / "manifest.json").get("manifest")
        floors = read_json(path / "provenance" / "calibration.json").get("floors")
        return ViewedFolder(
            path,
            None,
            path,
            carried if isinstance(carried, dict) else {},
            _dims_of_columns(path),
            _floors(floors),
        )
    if not path.exists():
        raise RunFolderError(
            f"{path} does not exist: give the --out of a build, or a dataset folder"
        )
    raise RunFolderError(
        f"{path} is neither a run nor a dataset folder: give the --out of a build, or a folder with"
        " preference/"
    )


def _open_run(path: Path, manifest: Mapping[str, Any]) -> ViewedFolder:
    begun = "settings" in manifest or (path / "build.yaml").exists()
    dims = settings_of(path)["dimensions"] if begun else ()
    reference = read_json(path / "reference.json") or manifest.get("reference") or {}
    floors = _floors(reference.get("floors"))
    return ViewedFolder(path, path, path / "dataset", manifest, tuple(dims), floors)


def _dims_of_columns(dataset: Path) -> tuple[str, ...]:
    for config, start in (("preference", "margin_confirmed_"), ("scored", "rewards_")):
        for file in stamp_files(sorted((dataset / config).glob("*.parquet"))):
            return tuple(n.removeprefix(start) for n in _columns(*file) if n.startswith(start))
    return ()


@lru_cache(maxsize=8)
def _columns(file: str, size: int, time_ns: int) -> tuple[str, ...]:
    """Names of a file's columns; read again when it is another one."""
    import pyarrow.parquet as pq

    with readable(file, "fetch or build the dataset again"):
        return tuple(pq.read_schema(file).names)


def _floors(tree: object) -> dict[str, float]:
    if not isinstance(tree, dict):
        return {}
    return {d: float(v) for d, v in tree.items() if isinstance(v, (int, float))}


def stamp_files(paths: Sequence[Path]) -> FileStamp:
    """Name, size and time of each file: differs when one was written again."""
    out = []
    for path in paths:
        try:
            s = path.stat()
        except OSError:
            continue
        out.append((str(path), s.st_size, s.st_mtime_ns))
    return tuple(out)


class ViewedStatus(TypedDict):
    """How a run stands; of a dataset folder alone only `running`, which is False.

    `answers` are those of finished partitions. `now` is what a running build says of itself: its
    step, done of total, tokens per second, and how busy its endpoints are. None where it is an
    older build, or has said nothing for a while.
    """

    running: bool
    status: NotRequired[str | None]
    prompts: NotRequired[int]
    prompts_sealed: NotRequired[int]
    owed: NotRequired[int]
    partitions: NotRequired[int]
    partitions_sealed: NotRequired[int]
    answers: NotRequired[int]
    tokens: NotRequired[dict[str, int]]
    cost: NotRequired[float | None]
    errors: NotRequired[int]
    now: NotRequired[dict[str, Any] | None]


def look_at(folder: ViewedFolder) -> ViewedStatus:
    """How the folder's run stands at this moment."""
    if folder.run is None:
        return {"running": False}
    parts, finished = folder.partitions(), folder.finished()
    spent = spent_in(folder.root, folder.manifest)
    used = spent.tokens.values()
    running = _is_locked(folder.run / ".lock") or (
        folder.manifest.get("status") == "started" and _is_fresh(folder)
    )
    owed = sum(len(m.get("owed") or ()) for _, m in finished)
    return {
        "running": running,
        "status": folder.manifest.get("status"),
        "prompts": sum(_n_prompts(p) for p in parts),
        "prompts_sealed": sum(int(m.get("n_prompts") or 0) for _, m in finished) - owed,
        "owed": owed,
        "partitions": len(parts),
        "partitions_sealed": len(finished),
        "answers": sum(int(m.get("answers") or 0) for _, m in finished),
        "tokens": {"in": sum(t[0] for t in used), "out": sum(t[1] for t in used)},
        "cost": spent.cost if spent.tokens else None,
        "errors": sum(int(m.get("errors") or 0) for _, m in finished),
        "now": _read_live(folder.run) if running else None,
    }


def reload_after(status: ViewedStatus, query: Query) -> int:
    """Seconds after which the page of a running build loads itself again; 0 for never, as where it
    is to stand still."""
    return RELOAD_S if status["running"] and not query.get("still") else 0


def stage_counts(folder: ViewedFolder, running: bool) -> dict[str, StageCounts]:
    """in, kept and dropped per stage: the manifest's; of a run that is not done, those of its
    finished partitions."""
    counts = folder.manifest.get("counts")
    if isinstance(counts, dict) and counts and not running:
        return {s: _counts(counts[s]) for s in STAGES if s in counts}
    mined = read_json(folder.root / "mine.json") if folder.run is not None else {}
    out = {"mine": _counts(mined)} if mined else {}
    total: Counter[str] = Counter()
    for _, m in folder.finished():
        total.update(m.get("counts") or {})
    for name, n in sorted(total.items()):
        stage, _, what = name.partition(".")
        row = out.setdefault(stage, _counts({}))
        match what:
            case "in" | "kept":
                row[what] = n
            case reason:
                row["dropped"][reason] = n
    return {stage: out[stage] for stage in STAGES if stage in out}


def _counts(tree: Mapping[str, Any]) -> StageCounts:
    dropped = dict(tree.get("dropped") or {})
    return {"in": tree.get("in", 0), "kept": tree.get("kept", 0), "dropped": dropped}


def _read_live(run: Path) -> dict[str, Any] | None:
    live = cast(Mapping[str, Any], read_live(run) or {})
    slots = live.get("slots")
    if not isinstance(slots, list):
        return None
    sums = {
        k: sum(int(s.get(k) or 0) for s in slots if isinstance(s, dict))
        for k in ("size", "open", "busy", "waiting")
    }
    named = ("step", "done", "total", "requests", "retries", "failed", "tokens_per_s")
    return {**{k: live.get(k) for k in named}, "slots": slots, **sums}


def _is_locked(path: Path) -> bool:
    """Whether a process surely holds the run's lock, by the system's table of locks."""
    try:
        inode = path.stat().st_ino
        locks = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return False
    return any(f":{inode} " in line and "FLOCK" in line for line in locks)


def _is_fresh(folder: ViewedFolder) -> bool:
    logs = [p.log_path for p in folder.partitions()]
    stamps = stamp_files([folder.root / "spending.json", folder.root / "mine.json", *logs])
    return time.time() - max((ns / 1e9 for *_, ns in stamps), default=0.0) < FRESH_S


def _n_prompts(part: Partition) -> int:
    try:
        return part.n_prompts()
    except DamagedFile:
        return 0
