"""Run folders on object storage: any fsspec URL (s3://, gs://, hf://, memory://, file://).

Object storage has no append and no rename, so work goes on in a working copy on this machine and is
carried up:

    answers.log            every SYNC_S seconds what was added, as a numbered object that never
    changes: answers.log/000007-3fa9c1d2 everything else        whole, when it changed; what others
    refer to first, a manifest after what it describes what was deleted       a manifest before, the
    rest after

Who takes a folder up downloads what another copy left there; joined in order, the numbered objects
are the log again. A working copy that was the last to write is ahead of the storage and is kept as
it is. `lease` keeps two builds apart.
"""

from __future__ import annotations

import contextlib
import os
import threading
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from ..errors import RunFolderError
from .lease import FOLDER, Lease
from .storage import filesystem, told

SYNC_S = 3.0
# in a working copy
URL_FILE, COPY_FILE, INDEX_FILE, LENT_FILE = OF_A_COPY = (".remote", ".copy", ".synced", ".lent")
LOG = ".log"
MANIFEST = "manifest.json"

State = list[int]  # size, time of change, inode of a local file


class Remote:
    """The storage behind a working copy."""

    def __init__(self, path: Path, only: str = "") -> None:
        self.url, self.path = url_of(path) or "", path
        self._fs, self._root = filesystem(self.url)
        self._only = only  # what is carried up: names that begin so
        self._copy = _copy_id(path)
        self._lent = ""  # what others write for now
        # files as they were carried; those that came down, as they were there
        self._index, self._signed = _read(path / INDEX_FILE)
        self._guard = threading.Lock()
        # of logs: bytes carried up, number of the next object
        self._ends: dict[str, tuple[int, int]] = {}
        self._stop = threading.Event()
        self._carrier: threading.Thread | None = None
        self._lease: Lease | None = None
        self._error: RunFolderError | None = None

    # a build
    def take(self) -> None:
        """Keep other builds out and bring the working copy up to date.

        Raises:
            RunFolderError: another build has it, it is no run folder, or the storage refuses to be
                written.
        """
        ahead = self.is_ahead()
        with told("write to", self.url, self.path):
            lease = Lease(self._fs, self._root, self._copy)
            lease.take(self.url)
        self._lease = lease
        try:
            self.freshen(ahead)
            (self.path / LENT_FILE).unlink(missing_ok=True)
            self.start()
        except BaseException:
            lease.release()
            raise

    def freshen(self, ahead: bool) -> None:
        """Fetch what others wrote since; from a copy that is ahead, that is what it had lent."""
        lent = self.path / LENT_FILE
        if not ahead:
            self.pull()
        elif lent.exists():
            self.pull(lent.read_text("utf-8"))

    def start(self) -> None:
        """Carry up what changes, every SYNC_S seconds, until `close`."""
        self._carrier = threading.Thread(target=self._carry, name="carrier", daemon=True)
        self._carrier.start()

    def check(self) -> None:
        """Raises RunFolderError when the storage no longer takes what is written, or another build
        took the folder over."""
        if self._error is not None:
            raise self._error
        if self._lease is not None and self._lease.lost:
            raise RunFolderError(
                f"run folder {self.url} was taken over by another build, which saw no sign of life"
                f" of this one: what was answered since is in {self.path}"
            )

    def close(self) -> None:
        """Carry up the rest and let others in.

        Raises:
            RunFolderError: the storage refused something.
        """
        self._stop.set()
        if self._carrier is not None:
            self._carrier.join()
        try:
            self.check()
            self.push()
        finally:
            if self._lease is not None:
                self._lease.release()

    @contextlib.contextmanager
    def lent(self, prefix: str) -> Iterator[None]:
        """Around a time in which others write what begins with `prefix`: it is all there before,
        and fetched after."""
        self.push()
        with self._guard:
            self._lent = prefix
        # for the next build, should this one die meanwhile
        (self.path / LENT_FILE).write_text(prefix, "utf-8")
        try:
            yield
        finally:
            with self._guard:
                self._lent = ""
            self.pull(prefix)
            (self.path / LENT_FILE).unlink(missing_ok=True)

    # both ways
    def is_ahead(self) -> bool:
        """Whether this working copy was the last that wrote, so that it has all that the storage
        has."""
        with told("read", self.url, self.path):
            return Lease(self._fs, self._root, self._copy).is_last()

    def pull(self, prefix: str = "") -> None:
        """Make the working copy what the storage holds, under `prefix`."""
        with self._guard, told("read", self.url, self.path):
            found = self._remote_files(prefix)
            if not prefix and found and MANIFEST not in found:
                raise RunFolderError(
                    f"{self.url} is not a run folder (it holds {sorted(found)[0]!r}): give another"
                    " --out"
                )
            logs = {name.rpartition("/")[0] for name in found if _is_segment(name)}
            for name in self._local_files(prefix).keys() - found.keys() - logs:
                (self.path / name).unlink(missing_ok=True)
                self._index.pop(name, None)
            for name, signature in found.items():
                if not _is_segment(name):
                    self._download(name, signature)
            for log in sorted(logs):
                self._join(log, sorted(n for n in found if n.startswith(log + "/")))
            self._save()

    def push(self) -> None:
        """Carry up what changed."""
        with self._guard, told("write to", self.url, self.path):
            there = self._local_files(self._only)
            gone = sorted(
                n
                for n in self._index
                if n not in there and n.startswith(self._only) and not self._is_lent(n)
            )
            changed = sorted(
                n for n, s in there.items() if not n.endswith(LOG) and self._index.get(n) != s
            )
            self._delete([n for n in gone if n.endswith(MANIFEST)])
            for name in [n for n in changed if not n.endswith(MANIFEST)]:
                self._upload(name, there[name])
            for name in [n for n in there if n.endswith(LOG)]:
                self._append(name)
            for name in sorted(
                (n for n in changed if n.endswith(MANIFEST)), key=lambda n: (n.count("/") == 0, n)
            ):
                self._upload(name, there[name])
            self._delete([n for n in gone if not n.endswith(MANIFEST)])
            for log in [n for n in self._ends if n not in there and not self._is_lent(n)]:
                self._forget(log)
            if gone or changed:
                self._save()

    def _carry(self) -> None:
        while not self._stop.wait(SYNC_S):
            try:
                self.check()
                self.push()
            except RunFolderError as e:
                self._error = e
                return

    def _is_lent(self, name: str) -> bool:
        return bool(self._lent) and name.startswith(self._lent)

    def _local_files(self, prefix: str) -> dict[str, State]:
        """Every file that is to be there for others, by its name in the folder."""
        found = {}
        start = self.path / prefix if prefix else self.path
        for folder, folders, names in os.walk(start):
            folders[:] = sorted(f for f in folders if not f.startswith("."))
            for file in names:
                if file.startswith(".") or file.endswith(".tmp"):
                    continue
                whole = Path(folder) / file
                with contextlib.suppress(FileNotFoundError):  # replaced or sealed just now
                    s = whole.stat()
                    found[whole.relative_to(self.path).as_posix()] = [
                        s.st_size,
                        s.st_mtime_ns,
                        s.st_ino,
                    ]
        return {n: s for n, s in found.items() if not self._is_lent(n)}

    def _remote_files(self, prefix: str) -> dict[str, str]:
        """Names in the storage, with what changes when they do."""
        self._fs.invalidate_cache()
        root = f"{self._root}/{prefix}".rstrip("/")
        found: Mapping[str, Mapping[str, Any]] = (
            self._fs.find(root, detail=True) if self._fs.exists(root) else {}
        )
        names = {path[len(self._root) :].lstrip("/"): info for path, info in found.items()}
        return {
            n: str(
                [
                    i.get(k)
                    for k in ("size", "ETag", "etag", "mtime", "created", "LastModified", "updated")
                ]
            )
            for n, i in names.items()
            if not n.startswith((".", FOLDER + "/"))
        }

    def _download(self, name: str, signature: str) -> None:
        target = self.path / name
        if self._signed.get(name) == signature and self._index.get(name) == _state(target):
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(target.name + ".tmp")
        self._fs.get_file(f"{self._root}/{name}", str(part))
        part.replace(target)
        self._index[name], self._signed[name] = _state(target) or [0, 0, 0], signature

    def _join(self, log: str, segments: list[str]) -> None:
        """A log from the objects that it was carried up as."""
        target = self.path / log
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(target.name + ".tmp")
        with part.open("wb") as f:
            for name in segments:
                f.write(self._fs.cat_file(f"{self._root}/{name}"))
        part.replace(target)
        self._ends[log] = (target.stat().st_size, _number(segments[-1]) + 1)

    def _append(self, log: str) -> None:
        """Carry up the whole lines that were added to a log."""
        # sealed just now: the next time tells
        with contextlib.suppress(FileNotFoundError), (self.path / log).open("rb") as f:
            end, number = self._ends.get(log) or self._found(log)
            if os.fstat(f.fileno()).st_size < end:  # another log by now
                self._forget(log)
                end, number = 0, 0
            f.seek(end)
            added = f.read()
            added = added[: added.rfind(b"\n") + 1]
            if added:
                self._write(f"{log}/{number:06d}-{self._copy[:8]}", added)
            self._ends[log] = (end + len(added), number + bool(added))

    def _found(self, log: str) -> tuple[int, int]:
        """How much of a log is in the storage already, after a start with a working copy that is
        ahead."""
        folder = f"{self._root}/{log}"
        infos = self._fs.find(folder, detail=True) if self._fs.exists(folder) else {}
        numbers = [_number(name) for name in infos]
        return sum(int(i["size"]) for i in infos.values()), max(numbers, default=-1) + 1

    def _forget(self, log: str) -> None:
        """A log that is gone: its answers are in answers.parquet by now."""
        self._ends.pop(log, None)
        if self._fs.exists(f"{self._root}/{log}"):
            self._fs.rm(f"{self._root}/{log}", recursive=True)

    def _upload(self, name: str, state: State) -> None:
        with contextlib.suppress(FileNotFoundError):  # replaced or sealed just now
            self._write(name, self.path / name)
            self._index[name] = state
            self._signed.pop(name, None)

    def _write(self, name: str, content: bytes | Path) -> None:
        target = f"{self._root}/{name}"
        if isinstance(content, Path):
            self._fs.put_file(str(content), target)  # in pieces, where the storage can
        else:
            self._fs.pipe_file(target, content)

    def _delete(self, names: list[str]) -> None:
        for name in names:
            if self._fs.exists(f"{self._root}/{name}"):
                self._fs.rm_file(f"{self._root}/{name}")
            self._index.pop(name, None)

    def _save(self) -> None:
        (self.path / INDEX_FILE).write_bytes(orjson.dumps([self._index, self._signed]))


def url_of(path: Path) -> str | None:
    """The URL whose working copy `path` is; None for an ordinary folder."""
    try:
        return (path / URL_FILE).read_text("utf-8")
    except OSError:
        return None


def _copy_id(path: Path) -> str:
    """What this working copy is called in leases."""
    try:
        return (path / COPY_FILE).read_text("utf-8")
    except OSError:
        made = uuid.uuid4().hex
        (path / COPY_FILE).write_text(made, "utf-8")
        return made


def _state(path: Path) -> State | None:
    try:
        s = path.stat()
    except OSError:
        return None
    return [s.st_size, s.st_mtime_ns, s.st_ino]


def _is_segment(name: str) -> bool:
    return name.rpartition("/")[0].endswith(LOG)


def _number(segment: str) -> int:
    return int(segment.rpartition("/")[2][:6])


def _read(path: Path) -> tuple[dict[str, State], dict[str, str]]:
    try:
        index, signed = orjson.loads(path.read_bytes())
    except (OSError, ValueError, TypeError):
        return {}, {}
    return index, signed
