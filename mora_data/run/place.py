"""Where a run folder is: a path, or a URL with a working copy on this machine. The rest of the
program sees a path.

    local_of("s3://bucket/runs/a")      the working copy, to build in; RunFolder takes it from there
    refreshed("s3://bucket/runs/a")     the same with what is there now, to read
    Visit(place)                        for a worker of a cluster: partitions fetched and carried
    back one by one
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

from .. import resources
from ..text import digest
from .remote import URL_FILE, Remote, url_of
from .storage import filesystem, told


def local_of(place: str) -> Path:
    """A folder's path, or that of the working copy of a URL."""
    if "://" not in place:
        return Path(place)
    path = resources.cache() / "runs" / digest(place.rstrip("/"))
    return _copy_of(place, path)


def refreshed(place: str) -> Path:
    """`local_of`, with what other machines have put there since.

    Raises:
        RunFolderError: the storage can't be read.
    """
    path = local_of(place)
    if url_of(path) is not None:
        remote = Remote(path)
        remote.freshen(remote.is_ahead())
    return path


def push_back(path: Path) -> None:
    """Carry up what was written into a working copy without a build, as a report."""
    if url_of(path) is not None:
        Remote(path).push()


@contextmanager
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
        with told("write to", place, Path(folder)):
            for path in sorted(p for p in Path(folder).rglob("*") if p.is_file()):
                fs.pipe_file(f"{root}/{path.relative_to(folder).as_posix()}", path.read_bytes())


def shared(path: Path) -> str:
    """What another machine opens to reach a run folder."""
    return url_of(path) or str(path.resolve())


class Visit:
    """A run folder as a worker of a cluster has it: itself, where the machines share it; else a
    copy of what it works on.

    Attributes:
        path: the folder, or the copy.
    """

    def __init__(self, place: str) -> None:
        self._remote: Remote | None = None
        self.path = Path(place)
        if "://" in place:
            self.path = _copy_of(place, Path(mkdtemp(prefix="mora-data-")))
            self._remote = Remote(self.path, only="parts/")
            self._remote.start()

    def fetch(self, name: str) -> None:
        """Make sure that a file, or all that a folder (`parts/00003/`) holds, is there as it is
        now."""
        if self._remote is not None:
            self._remote.pull(name)

    def carry(self) -> None:
        """What was written is there for others, once this returns.

        Raises:
            RunFolderError: the storage refuses to be written.
        """
        if self._remote is not None:
            self._remote.check()
            self._remote.push()

    def leave(self) -> None:
        """Carry the rest and drop the copy."""
        if self._remote is not None:
            self._remote.close()
            shutil.rmtree(self.path, ignore_errors=True)


def _copy_of(url: str, path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / URL_FILE).write_text(url.rstrip("/"), "utf-8")
    return path
