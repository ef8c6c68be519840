"""Where a run folder is: a path, or a URL (s3://, gs://, hf://, memory://, file://) with a working
copy on this machine. The rest of the program sees a path.

    local_path("s3://bucket/a")     the working copy, to build in; RunFolder takes it from there
    current_copy("s3://bucket/a")   the same with what is there now, to read
    WorkerCopy(address)             for a worker of a cluster: partitions fetched and uploaded one
                                    by one

Object storage has no append and no rename, so work goes on in the working copy and is uploaded:

    answers.log            every SYNC_S seconds what was added, as a numbered object that never
                           changes: answers.log/000007-3fa9c1d2
    everything else        whole, when it changed; what others refer to first, a manifest after
                           what it describes
    what was deleted       a manifest before, the rest after

Whoever takes a folder up downloads what another copy left there; joined in order, the numbered
objects are the log again. A working copy that was the last to write is ahead of the storage and is
kept as it is. A lease keeps two builds apart (storage.py).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

import orjson

from .. import resources
from ..errors import RunFolderError
from ..text import digest
from .files import replacing
from .storage import LEASE_FOLDER, Lease, filesystem, storage_errors

SYNC_S = 3.0
# in a working copy; .lent holds the prefix of what others write for now
URL_FILE, COPY_FILE, INDEX_FILE, DELEGATED_FILE = OF_A_COPY = (
    ".remote",
    ".copy",
    ".synced",
    ".lent",
)
SECRET_FILE = "secret"  # in a run folder, for its owner alone
LOG = ".log"
MANIFEST = "manifest.json"
_SIGNS_OF_CHANGE = ("size", "ETag", "etag", "mtime", "created", "LastModified", "updated")

FileState = list[int]  # size, time of change, inode of a local file


def remote_url(path: Path) -> str | None:
    """The URL whose working copy `path` is; None for an ordinary folder."""
    try:
        return (path / URL_FILE).read_text("utf-8")
    except OSError:
        return None


def local_path(place: str) -> Path:
    """A folder's path, or that of the working copy of a URL."""
    if "://" not in place:
        return Path(place)
    return _copy_of(place, resources.cache() / "runs" / digest(place.rstrip("/")))


def current_copy(place: str) -> Path:
    """`local_path`, with what other machines have put there since.

    Raises:
        RunFolderError: the storage can't be read.
    """
    path = local_path(place)
    if remote_url(path) is not None:
        remote = Remote(path)
        remote.freshen(remote.is_ahead())
    return path


def upload_copy(path: Path) -> None:
    """Upload what was written into a working copy without a build, as a report."""
    if remote_url(path) is not None:
        Remote(path).push()


@contextlib.contextmanager
def destination(place: str) -> Iterator[Path]:
    """A folder to write into; where it is a URL, what was written is put there at the end.

    Raises:
        RunFolderError: the storage refuses to be written.
    """
    if "://" not in place:
        yield Path(place)
        return
    fs, root = filesystem(place)
    with TemporaryDirectory(prefix="mora-data-") as folder:
        yield Path(folder)
        with storage_errors("write to", place, Path(folder)):
            for path in sorted(p for p in Path(folder).rglob("*") if p.is_file()):
                fs.pipe_file(f"{root}/{path.relative_to(folder).as_posix()}", path.read_bytes())


def shared_address(path: Path) -> str:
    """What another machine opens to reach a run folder."""
    return remote_url(path) or str(path.resolve())


class WorkerCopy:
    """A run folder as a worker of a cluster has it: itself, where the machines share it; else a
    copy of what it works on.

    Attributes:
        path: the folder, or the copy.
    """

    def __init__(self, address: str) -> None:
        self._remote: Remote | None = None
        self.path = Path(address)
        if "://" in address:
            self.path = _copy_of(address, Path(mkdtemp(prefix="mora-data-")))
            self._remote = Remote(self.path, only="parts/")
            self._remote.start()

    def fetch(self, name: str) -> None:
        """Make sure that a file, or all that a folder (`parts/00003/`) holds, is there as it is
        now."""
        if self._remote is not None:
            self._remote.pull(name)

    def upload(self) -> None:
        """What was written is there for others, once this returns.

        Raises:
            RunFolderError: the storage refuses to be written.
        """
        if self._remote is not None:
            self._remote.check()
            self._remote.push()

    def close(self) -> None:
        """Upload the rest and drop the copy."""
        if self._remote is not None:
            self._remote.close()
            shutil.rmtree(self.path, ignore_errors=True)


class Remote:
    """The storage behind a working copy."""

    def __init__(self, path: Path, only: str = "") -> None:
        self.url, self.path = remote_url(path) or "", path
        self._fs, self._root = filesystem(self.url)
        self._only = only  # what is uploaded: names that begin so
        self._copy = _copy_id(path)
        self._delegated = ""  # what others write for now
        # files as they were uploaded; those that came down, as they were there
        self._index, self._signed = _index_of(path)
        self._mutex = threading.Lock()
        # of logs: bytes uploaded, number of the next object
        self._ends: dict[str, tuple[int, int]] = {}
        self._stop = threading.Event()
        self._uploader: threading.Thread | None = None
        self._lease: Lease | None = None
        self._error: RunFolderError | None = None

    def take(self) -> None:
        """Keep other builds out and bring the working copy up to date.

        Raises:
            RunFolderError: another build has it, it is no run folder, or the storage refuses to be
                written.
        """
        ahead = self.is_ahead()
        with storage_errors("write to", self.url, self.path):
            lease = Lease(self._fs, self._root, self._copy)
            lease.take(self.url)
        self._lease = lease
        try:
            self.freshen(ahead)
            (self.path / DELEGATED_FILE).unlink(missing_ok=True)
            self.start()
        except BaseException:
            lease.release()
            raise

    def freshen(self, ahead: bool) -> None:
        """Fetch what others wrote since; from a copy that is ahead, that is what it had
        delegated."""
        delegated = self.path / DELEGATED_FILE
        if not ahead:
            self.pull()
        elif delegated.exists():
            self.pull(delegated.read_text("utf-8"))

    def start(self) -> None:
        """Upload what changes, every SYNC_S seconds, until `close`."""
        self._uploader = threading.Thread(target=self._upload_changes, name="upload", daemon=True)
        self._uploader.start()

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
        """Upload the rest and let others in.

        Raises:
            RunFolderError: the storage refused something.
        """
        self._stop.set()
        if self._uploader is not None:
            self._uploader.join()
        try:
            self.check()
            self.push()
        finally:
            if self._lease is not None:
                self._lease.release()

    @contextlib.contextmanager
    def delegated(self, prefix: str) -> Iterator[None]:
        """Around a time in which others write what begins with `prefix`: it is all there before,
        and fetched after."""
        self.push()
        with self._mutex:
            self._delegated = prefix
        # for the next build, should this one die meanwhile
        (self.path / DELEGATED_FILE).write_text(prefix, "utf-8")
        try:
            yield
        finally:
            with self._mutex:
                self._delegated = ""
            self.pull(prefix)
            (self.path / DELEGATED_FILE).unlink(missing_ok=True)

    def is_ahead(self) -> bool:
        """Whether this working copy was the last that wrote, so that it has all that the storage
        has."""
        with storage_errors("read", self.url, self.path):
            return Lease(self._fs, self._root, self._copy).is_last()

    def pull(self, prefix: str = "") -> None:
        """Make the working copy what the storage holds, under `prefix`."""
        with self._mutex, storage_errors("read", self.url, self.path):
            found = self._remote_files(prefix)
            if (
                not prefix
                and found
                and not any(n in (MANIFEST, "mine.json") or n.startswith("parts/") for n in found)
            ):
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
            self._save_index()

    def push(self) -> None:
        """Upload what changed."""
        with self._mutex, storage_errors("write to", self.url, self.path):
            there = self._local_files(self._only)
            gone = sorted(
                n
                for n in self._index
                if n not in there and n.startswith(self._only) and not self._is_delegated(n)
            )
            changed = sorted(
                n for n, s in there.items() if not n.endswith(LOG) and self._index.get(n) != s
            )
            self._delete([n for n in gone if n.endswith(MANIFEST)])
            for name in [n for n in changed if not n.endswith(MANIFEST)]:
                self._upload(name, there[name])
            for name in [n for n in there if n.endswith(LOG)]:
                self._append(name)
            manifests = [n for n in changed if n.endswith(MANIFEST)]
            for name in sorted(manifests, key=lambda n: (n.count("/") == 0, n)):
                self._upload(name, there[name])
            self._delete([n for n in gone if not n.endswith(MANIFEST)])
            for log in [n for n in self._ends if n not in there and not self._is_delegated(n)]:
                self._forget(log)
            if gone or changed:
                self._save_index()

    def _upload_changes(self) -> None:
        while not self._stop.wait(SYNC_S):
            try:
                self.check()
                self.push()
            except RunFolderError as e:
                self._error = e
                return

    def _is_delegated(self, name: str) -> bool:
        return bool(self._delegated) and name.startswith(self._delegated)

    def _local_files(self, prefix: str) -> dict[str, FileState]:
        """Every file that is to be there for others, by its name in the folder."""
        found = {}
        for folder, folders, names in os.walk(self.path / prefix):
            folders[:] = sorted(f for f in folders if not f.startswith("."))
            for file in names:
                path = Path(folder) / file
                name = path.relative_to(self.path).as_posix()
                if file.startswith(".") or file.endswith(".tmp") or self._is_delegated(name):
                    continue
                if (state := _state(path)) is not None:  # else replaced or finalized just now
                    found[name] = state
        return found

    def _remote_files(self, prefix: str) -> dict[str, str]:
        """Names in the storage, with what changes when they do."""
        self._fs.invalidate_cache()
        root = f"{self._root}/{prefix}".rstrip("/")
        found = self._fs.find(root, detail=True) if self._fs.exists(root) else {}
        names = {path[len(self._root) :].lstrip("/"): info for path, info in found.items()}
        return {
            name: str([info.get(k) for k in _SIGNS_OF_CHANGE])
            for name, info in names.items()
            if not name.startswith((".", LEASE_FOLDER + "/"))
        }

    def _download(self, name: str, signature: str) -> None:
        target = self.path / name
        if self._signed.get(name) == signature and self._index.get(name) == _state(target):
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target, mode=0o600 if name == SECRET_FILE else 0o666) as part:
            self._fs.get_file(f"{self._root}/{name}", str(part))
        self._index[name], self._signed[name] = _state(target) or [0, 0, 0], signature

    def _join(self, log: str, segments: list[str]) -> None:
        """A log from the objects that it was uploaded as."""
        target = self.path / log
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as part, part.open("wb") as f:
            for name in segments:
                f.write(self._fs.cat_file(f"{self._root}/{name}"))
        self._ends[log] = (target.stat().st_size, _number(segments[-1]) + 1)

    def _append(self, log: str) -> None:
        """Upload the whole lines that were added to a log."""
        # no such file: finalized just now, which the next time tells
        with contextlib.suppress(FileNotFoundError), (self.path / log).open("rb") as f:
            end, number = self._ends.get(log) or self._uploaded_end(log)
            if os.fstat(f.fileno()).st_size < end:  # another log by now
                self._forget(log)
                end, number = 0, 0
            f.seek(end)
            added = f.read()
            added = added[: added.rfind(b"\n") + 1]
            if added:
                self._write(f"{log}/{number:06d}-{self._copy[:8]}", added)
            self._ends[log] = (end + len(added), number + bool(added))

    def _uploaded_end(self, log: str) -> tuple[int, int]:
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

    def _upload(self, name: str, state: FileState) -> None:
        with contextlib.suppress(FileNotFoundError):  # replaced or finalized just now
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

    def _save_index(self) -> None:
        (self.path / INDEX_FILE).write_bytes(orjson.dumps([self._index, self._signed]))


def _copy_of(url: str, path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / URL_FILE).write_text(url.rstrip("/"), "utf-8")
    return path


def _copy_id(path: Path) -> str:
    """What this working copy is called in leases."""
    try:
        return (path / COPY_FILE).read_text("utf-8")
    except OSError:
        name = uuid.uuid4().hex
        (path / COPY_FILE).write_text(name, "utf-8")
        return name


def _state(path: Path) -> FileState | None:
    try:
        s = path.stat()
    except OSError:
        return None
    return [s.st_size, s.st_mtime_ns, s.st_ino]


def _is_segment(name: str) -> bool:
    return name.rpartition("/")[0].endswith(LOG)


def _number(segment: str) -> int:
    return int(segment.rpartition("/")[2][:6])


def _index_of(path: Path) -> tuple[dict[str, FileState], dict[str, str]]:
    try:
        index, signed = orjson.loads((path / INDEX_FILE).read_bytes())
    except (OSError, ValueError, TypeError):
        return {}, {}
    return index, signed
