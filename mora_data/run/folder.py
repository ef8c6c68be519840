"""The run folder: who may write to it, what it is a build of, and its top-level files."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from ..errors import LimitReached, RunFolderError
from ..resources import SECRET_BYTES
from ..settings import BuildSettings
from ..text import digest, one_line
from . import Manifest, SourceCounts, StageCounts
from .files import read_json, write_json, write_whole
from .partitions import Partition
from .remote import OF_A_COPY, SECRET_FILE, Remote, remote_url

LIVE = "live.json"  # how far a running build is; after one that failed, how it ended
OPTIONS = "options.json"  # what the command said beside the settings, to run it again
JOIN = " + "  # between the sources of a mix, in the identity of its run folder


class RunFolder:
    """A run folder, locked by this process.

    Attributes:
        secret: what the run's nonces are made from (`resources.Secret`): made with the folder, kept
            in it, and never published.

    Raises:
        RunFolderError: in use, not a run folder, or the build of another source.
    """

    def __init__(self, path: Path, identity: Mapping[str, str], fresh: bool) -> None:
        self.path = path
        self._remote: Remote | None = None
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._check_is_ours()
            self._lock = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as e:
            raise RunFolderError(
                f"can't use the run folder {path}: {e.strerror}; give another --out"
            ) from e
        try:
            self._take(identity, fresh)
        except BaseException:
            if self._remote is not None:
                self._remote.close()
            os.close(self._lock)
            raise

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._remote is not None:
                self._remote.close()
        finally:
            os.close(self._lock)

    def write(self, name: str, tree: Mapping[str, object], durable: bool = True) -> None:
        """Write a JSON file at the top of the folder, for `read_json`."""
        if self._remote is not None:
            self._remote.check()
        write_json(self.path / name, tree, durable)

    def delegated(self) -> AbstractContextManager[None]:
        """Around a time in which other machines write the partitions."""
        return self._remote.delegated("parts/") if self._remote else nullcontext()

    def parts(self) -> list[Partition]:
        """The partitions that exist, in order."""
        return parts_of(self.path)

    def _take(self, identity: Mapping[str, str], fresh: bool) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            raise RunFolderError(
                f"run folder {self.path} is in use by another mora-data process: wait for it, "
                "or give another --out"
            ) from e
        if remote_url(self.path) is not None:
            remote = Remote(self.path)
            remote.take()
            self._remote = remote
            self._check_is_ours()
        if fresh:
            try:
                self._clear()
            except OSError as e:
                raise RunFolderError(f"can't empty the run folder {self.path}: {e.strerror}") from e
        self._check_identity(identity)
        self.secret = self._own_secret()

    def _check_is_ours(self) -> None:
        inside = {p.name for p in self.path.iterdir()} - {".lock", "manifest.json.tmp", *OF_A_COPY}
        if inside and not is_run_folder(self.path):
            raise RunFolderError(
                f"{self.path} is not a run folder (it holds {sorted(inside)[0]!r}): give another"
                " --out"
            )

    def _own_secret(self) -> bytes:
        """The folder's secret and its checksum; a new one where there is none, and then requests
        with a nonce are asked anew.

        Raises:
            RunFolderError: it can't be read.
        """
        path = self.path / SECRET_FILE
        try:
            found = _whole_secret(path)
        except FileNotFoundError:
            found = secrets.token_bytes(SECRET_BYTES)
            write_secret(self.path, found)
        except OSError as e:
            raise RunFolderError(
                f"can't read {path}: {e.strerror}; build as the user who made the run folder"
            ) from e
        if found is None:
            raise RunFolderError(
                f"{path} is damaged: bring it back, or delete it; then what judges and guards were"
                " asked is asked anew"
            )
        return found

    def _clear(self) -> None:
        # last: until then it is ours
        for entry in sorted(self.path.iterdir(), key=lambda p: p.name == "manifest.json"):
            if entry.name in (".lock", *OF_A_COPY):
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def _check_identity(self, identity: Mapping[str, str]) -> None:
        before = manifest_of(self.path).get("identity") or identity
        begun = any(next(self.path.glob(name), None) for name in ("mine.json", "parts", "*.log"))
        if before == identity or not begun or _has_grown(before, identity):
            tree = read_json(self.path / "manifest.json")
            if tree.get("identity") != identity:
                self.write("manifest.json", {"status": "started", **tree, "identity": identity})
        else:
            key = next(k for k in sorted({*before, *identity}) if before.get(k) != identity.get(k))
            raise RunFolderError(
                f"run folder {self.path} is another build "
                f"({key}: {before.get(key)!r}, not {identity.get(key)!r}): "
                "give another --out, or --fresh to start anew"
            )


def _has_grown(before: Mapping[str, str], after: Mapping[str, str]) -> bool:
    """Whether sources were only added at the end of a mix, where no prompt before them moves."""
    first = {"shares": "-", **before}
    ends = {k: after.get(k, "").removeprefix(v + JOIN) for k, v in first.items()}
    return (
        first.keys() == after.keys()
        and all(ends[k] != after[k] for k in ends)
        and set(ends["shares"].split(JOIN)) == {"-"}
    )


def manifest_of(run_dir: Path) -> Manifest:
    """manifest.json. Where it is lost or damaged, the identity alone, which mine.json has too;
    empty of what is no run folder."""
    for name in ("manifest.json", "mine.json"):
        tree = read_json(run_dir / name)
        if "identity" in tree:
            whole = name == "manifest.json"
            return cast(Manifest, tree) if whole else {"identity": tree["identity"]}
    return {}


def carried_manifest(dataset: Path) -> Manifest:
    """The run's manifest that a dataset folder carries; empty where there is none."""
    tree = read_json(dataset / "provenance" / "manifest.json").get("manifest")
    return cast(Manifest, tree) if isinstance(tree, dict) else {}


def run_manifest(run_dir: Path) -> Manifest:
    """manifest.json; see `manifest_of`.

    Raises:
        RunFolderError: not a run folder.
    """
    if manifest := manifest_of(run_dir):
        return manifest
    raise RunFolderError(f"{run_dir} is not a run folder: give the --out of a build")


def write_secret(run_dir: Path, secret: bytes) -> None:
    """Keep a run's secret, with its checksum."""
    text = secret.hex()
    write_whole(run_dir / SECRET_FILE, f"{text} {digest(text)}".encode(), mode=0o600)


def _whole_secret(path: Path) -> bytes | None:
    """The secret in a file; None where it is damaged."""
    text, _, checksum = path.read_text("latin-1").partition(" ")
    return bytes.fromhex(text) if checksum == digest(text) else None


def secret_of(run_dir: Path) -> bytes | None:
    """A run's secret; None where it is not there, damaged, or another user's."""
    try:
        return _whole_secret(run_dir / SECRET_FILE)
    except (OSError, ValueError):
        return None


def is_run_folder(path: Path) -> bool:
    """Whether a command of ours made the folder; its secret and its partitions tell that, too,
    where other files are lost."""
    with suppress(OSError):
        if _whole_secret(path / SECRET_FILE) is not None:
            return True
    parts = path.glob("parts/[0-9][0-9][0-9][0-9][0-9]/prompts.jsonl")
    return bool(manifest_of(path)) or any(parts)


def free_for_preview(path: Path) -> Path:
    """Where a preview goes that is asked for in `path`: there, unless a build's run folder stands
    there, which a preview of a few prompts must not change; then beside it.

    Raises:
        RunFolderError: it is the working copy of a URL.
    """
    if not is_run_folder(path) or read_json(path / OPTIONS).get("preview"):
        return path
    if (url := remote_url(path)) is not None:
        raise RunFolderError(f"{url} holds a build: give the preview another --out")
    return free_for_preview(path.with_name(f"{path.name}-preview"))


def parts_of(run_dir: Path) -> list[Partition]:
    """The partitions that the run's mining made, in order; those of an earlier, larger limit stay
    on disk, uncounted."""
    n_parts = read_json(run_dir / "mine.json").get("n_parts", 0)
    return [Partition(run_dir, n) for n in range(n_parts)]


def finished_parts(run_dir: Path) -> list[Partition]:
    """The partitions that are worked through, in order."""
    return [p for p in parts_of(run_dir) if p.manifest() is not None]


@dataclass(frozen=True, slots=True)
class RunStatus:
    """How far a run is: the object that `mora-data status --json` prints.

    Attributes:
        owed: prompts of finalized partitions that the next build asks again.
        endpoints: how models are asked where not in full, and other names that they answer under.
        sources: what was mined of each source of a mix.
    """

    run_dir: str
    status: str | None
    source: Mapping[str, str]
    prompts: int
    prompts_done: int
    partitions: int
    partitions_sealed: int
    owed: int
    errors: int
    pairs: int | None
    counts: Mapping[str, StageCounts]
    dataset_dir: str | None
    endpoints: Mapping[str, list[str]]
    preview: bool
    sources: Sequence[SourceCounts] = ()


def run_status(run_dir: Path) -> RunStatus:
    """How far a run is.

    Raises:
        RunFolderError: not a run folder, or a file of it can't be read.
    """
    manifest, parts = run_manifest(run_dir), parts_of(run_dir)
    finalized = [m for p in parts if (m := p.manifest()) is not None]
    return RunStatus(
        run_dir=str(run_dir),
        status=manifest.get("status"),
        source=manifest["identity"],
        prompts=sum(p.n_prompts() for p in parts),
        prompts_done=sum(m["n_prompts"] - len(m["owed"]) for m in finalized),
        partitions=len(parts),
        partitions_sealed=len(finalized),
        owed=sum(len(m["owed"]) for m in finalized),
        errors=sum(m.get("errors", 0) for m in finalized),
        pairs=manifest.get("pairs"),
        counts=manifest.get("counts", {}),
        dataset_dir=str(run_dir / "dataset") if (run_dir / "dataset").is_dir() else None,
        endpoints=manifest.get("endpoints", {}),
        preview=bool(read_json(run_dir / OPTIONS).get("preview")),
        sources=manifest.get("sources") or read_json(run_dir / "mine.json").get("sources", []),
    )


def finished_manifest(run_dir: Path) -> Manifest:
    """The manifest of a run whose dataset is written.

    Raises:
        RunFolderError: not a run folder, or not built so far.
    """
    manifest = manifest_of(run_dir)
    if not manifest or not (run_dir / "dataset" / "README.md").is_file():
        raise RunFolderError(
            f"{run_dir} holds no finished dataset: give the --out of a build, run to its end"
        )
    return manifest


# what a run says about itself: its summary, counts as a tree


def source_of(counts: SourceCounts) -> str:
    """The name that `Prompt.source` gives it."""
    return " ".join((counts["dataset"], counts["config"], counts["split"], counts["revision"]))


def shortfalls(sources: Sequence[SourceCounts]) -> list[str]:
    """A line for each source that ended before its share or its count."""
    total = sum(s["kept"] for s in sources if s["share"])
    return [
        f"source {s['name']} ended after {s['kept']} prompts: "
        + (
            f"{s['missing']} fewer than its share of {total}"
            if s["share"]
            else f"{s['missing']} fewer than its count"
        )
        for s in sources
        if s["missing"]
    ]


@dataclass
class Summary:
    """What a build did: the object that --json prints."""

    run_dir: str
    dataset_dir: str | None = None
    counts: dict[str, StageCounts] = field(default_factory=dict)
    pairs: int = 0
    requests: int = 0
    repeated: int = 0
    replayed: int = 0
    tokens: dict[str, int] = field(default_factory=lambda: {"in": 0, "out": 0, "cached": 0})
    # of this command, in the currency of the prices; None where one of `unpriced` has no price
    cost: float | None = None
    currency: str = ""
    unpriced: list[str] = field(default_factory=list)
    spent: float | None = None  # by all builds of the run folder
    errors: int = 0
    seconds: float = 0.0
    damaged: int = 0
    retries: dict[str, int] = field(default_factory=dict)
    slots_busy: float | None = None  # mean share of the slots in use
    # base URLs that were taken out for a while, and why
    replicas_out: dict[str, str] = field(default_factory=dict)
    # what endpoints were found to refuse, and other names that they answer under, by model
    endpoints: dict[str, list[str]] = field(default_factory=dict)


def cause_of(errors: Sequence[Mapping[str, object]]) -> str:
    """The commonest kind of reason of rows that failed for good or are owed, with the first one's
    words and the dimension, if it is one, as `12 x harmless: HTTP 400: ...`; empty where there is
    none."""
    causes = [(one_line(e.get("error") or "", 120), e.get("dimension")) for e in errors]
    for kind, n in Counter(c.partition(":")[0] for c, _ in causes if c).most_common(1):
        alike = [(c, d) for c, d in causes if c.partition(":")[0] == kind]
        dims = {d for _, d in alike if d}
        return f"{n} x {f'{dims.pop()}: ' if len(dims) == 1 else ''}{alike[0][0]}"
    return ""


def too_many_errors(
    errors: Sequence[Mapping[str, object]], rows: int, settings: BuildSettings, run_dir: Path
) -> LimitReached | None:
    """The failure of a run of which more of the `rows` failed than the settings allow."""
    share = len(errors) / rows if rows else 0.0
    if share > settings.limits.max_error_share:
        return LimitReached(
            f"{len(errors)} of {rows} rows failed ({share:.1%}, limits.max_error_share = "
            f"{settings.limits.max_error_share:g}), most often {cause_of(errors)}: see"
            f" {run_dir}/errors.jsonl; the same command asks again what may still pass"
        )
    return None


def counts_in(flat: Mapping[str, int]) -> Counter[tuple[str, str]]:
    """(stage, what) -> n from `stage.what` -> n, as a partition's manifest has it."""
    names = {name: name.partition(".") for name in flat}
    return Counter({(stage, what): flat[name] for name, (stage, _, what) in names.items()})


def counts_tree(
    counts: Mapping[tuple[str, str], int], stages: Iterable[str]
) -> dict[str, StageCounts]:
    """stage -> {"in", "kept", "dropped": {reason: n}} from (stage, what) -> n."""
    out: dict[str, StageCounts] = {}
    for stage in stages:
        of_stage = {what: n for (st, what), n in sorted(counts.items()) if st == stage}
        n_in, n_kept = of_stage.pop("in", 0), of_stage.pop("kept", 0)
        dropped = {reason: n for reason, n in of_stage.items() if n}
        out[stage] = {"in": n_in, "kept": n_kept, "dropped": dropped}
    return out


def emptied_by(
    counts: Mapping[str, StageCounts], run_dir: Path, errors: Sequence[Mapping[str, object]]
) -> str:
    """Which stage left nothing and why, in one line."""
    for stage, c in counts.items():
        if c["in"] and not c["kept"]:
            reason, n = max(c["dropped"].items(), key=lambda kv: (kv[0] != "control_arm", kv[1]))
            why = ""
            if reason in ("failed", "unscored"):
                mostly = f", most often {cause}" if (cause := cause_of(errors)) else ""
                why = f"{mostly}; errors.jsonl has all; `mora-data check` tries an endpoint"
            if reason == "truncated":
                why = "; raise policy.max_tokens, unless a content filter ended them"
            if reason == "no_dominating_pair":
                why = "; raise rollout.n, or take a judge that tells more apart"
            return (
                f"no pair was selected: stage {stage} kept none of {c['in']} ({n} {reason}{why});"
                f" the folder {run_dir / 'dataset'} is written without pairs"
            )
    return "no pair was selected: no prompt came through; see `mora-data status`"
