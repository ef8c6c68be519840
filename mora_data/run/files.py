"""Files of run and dataset folders: written whole and durably, read with one error.

    write_whole(path, data)                     the old file or the new one, never half of it
    write_json(path, tree), read_json(path)     an object that carries a checksum of itself
    with readable(path, "build again"): ...     what a library says of a damaged file is one line
    sha256_of(path)                             read once for each state of the file

While a file is written it stands beside its place, as NAME.tmp.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson

from ..errors import UNREADABLE, DamagedFile, RunFolderError
from ..text import digest

# what files make their readers raise; Arrow's errors are of these kinds
_UNREADABLE = (*UNREADABLE, OSError, NotImplementedError, MemoryError)
MOST_BYTES = 2 << 30  # of a file that is read at once
_READ_WHOLE = frozenset(("", ".json", ".yaml", ".md", ".cff", ".png", ".html"))
CHECKSUM = "checksum"  # key of a JSON object: `json_hash` of all the others


@contextlib.contextmanager
def replacing(path: Path, durable: bool = True, mode: int = 0o666) -> Iterator[Path]:
    """A new file beside `path` to write to, which takes its place at the end; after an error the
    old one stays. `durable`: its bytes are on the disk before it has the name; `mode` is what the
    umask leaves of it.

    Raises:
        RunFolderError: it can't be written.
    """
    part = path.with_name(path.name + ".tmp")
    try:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()  # of a process that died; a link that stood there must not be followed
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
        yield part
        if durable:
            _sync(part, os.O_RDWR)
        part.replace(path)
    except BaseException as e:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        if not isinstance(e, OSError):
            raise
        way = "free some space, or see that it may be written there,"
        if e.errno == errno.EISDIR:
            way = "remove the folder that stands there"
        raise RunFolderError(
            f"can't write {path}: {e.strerror or e}; {way} and run the same command again"
        ) from e


def write_whole(path: Path, data: bytes, durable: bool = True, mode: int = 0o666) -> None:
    """Write a file so that a reader sees the old one or the new one, never half of it.

    Raises:
        RunFolderError: it can't be written.
    """
    with replacing(path, durable, mode) as part:
        part.write_bytes(data)


def sync_folder(path: Path) -> None:
    """The names in a folder are on the disk when this returns, where its file system can do it."""
    with contextlib.suppress(OSError):
        _sync(path, os.O_RDONLY)


def _sync(path: Path, flags: int) -> None:
    fd = os.open(path, flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def json_hash(tree: Any) -> str:
    """16 hex digits over a JSON tree, whatever the order of its keys."""
    return digest(orjson.dumps(tree, option=orjson.OPT_SORT_KEYS).decode())


def write_json(path: Path, tree: Mapping[str, object], durable: bool = True) -> None:
    """Write a JSON object with its checksum, for `read_json`.

    Raises:
        RunFolderError: it can't be written.
    """
    plain = orjson.loads(orjson.dumps(tree, option=orjson.OPT_NON_STR_KEYS))
    plain[CHECKSUM] = json_hash(plain)
    write_whole(path, orjson.dumps(plain, option=orjson.OPT_INDENT_2), durable)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty when there is none or it is damaged."""
    try:
        tree = orjson.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(tree, dict):
        return {}
    checksum = tree.pop(CHECKSUM, None)
    return tree if checksum is None or checksum == json_hash(tree) else {}


@contextlib.contextmanager
def readable(what: object, hint: str) -> Iterator[None]:
    """Around reading a file: what a library says of a damaged one becomes one line.

    Raises:
        DamagedFile: it can't be read.
    """
    try:
        yield
    except _UNREADABLE as e:
        why = (isinstance(e, OSError) and e.strerror) or " ".join(str(e).split())[:100]
        raise DamagedFile(f"{what} can't be read ({why or type(e).__name__}): {hint}") from e


def sha256_of(path: Path) -> str:
    """sha256 of a file's bytes; a file that stayed as it was is not read again.

    Raises:
        OSError: it can't be read.
    """
    s = path.stat()
    return _sha256(path, s.st_ino, s.st_size, s.st_mtime_ns)


@lru_cache(maxsize=1 << 16)
def _sha256(path: Path, inode: int, size: int, time_ns: int) -> str:
    found = hashlib.sha256()
    with path.open("rb") as f:
        while block := f.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def check_ordinary(folder: Path) -> None:
    """A folder of ours holds files and folders alone: a pipe or a device would be read for ever.

    Raises:
        DamagedFile: something else stands in it or up to two folders below, or a text that is
            larger than any that is read whole.
    """
    below = [(folder, 2)]
    while below:
        here, deeper = below.pop()
        for path in sorted(here.iterdir()) if here.is_dir() else ():
            try:
                mode, size = (found := path.stat()).st_mode, found.st_size
            except OSError:
                continue  # who reads it says so
            if stat.S_ISDIR(mode):
                below += [(path, deeper - 1)] if deeper and not path.is_symlink() else []
            elif not stat.S_ISREG(mode):
                raise DamagedFile(f"{path} is no file but a pipe, socket or device: remove it")
            elif size > MOST_BYTES and path.suffix in _READ_WHOLE:
                raise DamagedFile(f"{path} has {size:,} bytes, more than a build writes: remove it")


def check_inside(folder: Path, path: Path) -> Path:
    """`path`, which is in `folder` and leads nowhere else.

    Raises:
        DamagedFile: it is a link out of the folder, or a path out of it.
    """
    there = Path(os.path.realpath(path))
    if not there.is_relative_to(os.path.realpath(folder)):
        raise DamagedFile(f"{path} leads out of its folder, to {there}: put the file itself there")
    return path
