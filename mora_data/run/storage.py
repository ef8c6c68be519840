"""Object storage through fsspec: file systems by URL, and who may write to a run folder there.

The right to write is a numbered lease. Each is created once, and the last one counts:

    .lease/000004   {"copy": "3fa9...", "beat": 17}        held; rewritten every RENEW_S seconds
    .lease/000004   {"copy": "3fa9...", "beat": null}      given back

A lease that was not rewritten for LEASE_S seconds is over. Its age is measured by the storage's
clock: the time of change of the lease, beside that of an object written just now. The clocks of the
machines don't matter.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from ..errors import ExtraMissing, RunFolderError, SettingsError

LEASE_FOLDER = ".lease"
RENEW_S, LEASE_S = 5.0, 20.0
_POLL_S = 1.0


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the folder's path in it.

    Raises:
        ExtraMissing: the package for this kind of URL is not installed.
        SettingsError: not a URL of a folder.
    """
    import fsspec

    options = {"auto_mkdir": True} if url.startswith("file://") else {}
    try:
        fs, root = fsspec.url_to_fs(url, **options)
    except ImportError as e:
        raise ExtraMissing(
            f"{url} needs another package ({e}): pip install it, as s3fs for s3:// or gcsfs for"
            " gs://"
        ) from e
    except (ValueError, OSError) as e:
        why = " ".join(str(e).split())[:150]
        raise SettingsError(
            f"{url} is no address of a folder ({why}): write it as s3://bucket/runs/a"
        ) from e
    return fs, str(root).rstrip("/")


@contextlib.contextmanager
def storage_errors(what: str, url: str, path: Path) -> Iterator[None]:
    """Around calls of a file system; `what` they are for, `path` is the working copy.

    Raises:
        RunFolderError: one of them failed.
    """
    try:
        yield
    except RunFolderError:
        raise
    except Exception as e:  # every file system has errors of its own
        why = f"{type(e).__name__}: {' '.join(str(e).split())[:150]}"
        raise RunFolderError(
            f"can't {what} {url} ({why}): see to its address and your rights there; what was"
            f" answered is kept in {path}"
        ) from e


class Lease:
    """The right to write to the folder at `root`, for a working copy."""

    def __init__(self, fs: Any, root: str, copy: str) -> None:
        self._fs, self._folder, self._copy = fs, f"{root}/{LEASE_FOLDER}", copy
        self._number = -1
        self._stop = threading.Event()
        self._renewer: threading.Thread | None = None
        self.lost = False

    def is_last(self) -> bool:
        """Whether this working copy had the last lease."""
        number = self._last()
        return number is not None and self._content(number).get("copy") == self._copy

    def take(self, name: str) -> None:
        """Hold the lease from now on.

        Raises:
            RunFolderError: another build holds it.
        """
        last = self._last()
        if last is not None and self._content(last).get("copy") != self._copy:
            self._wait_for_the_end(last, name)
        self._number = 0 if last is None else last + 1
        try:
            self._write(0, mode="create")
        except FileExistsError as e:
            raise _in_use(name) from e
        for old in range(max(0, self._number - 3), self._number):
            if self._fs.exists(self._path(old)):
                self._fs.rm_file(self._path(old))
        self._renewer = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._renewer.start()

    def release(self) -> None:
        """Give it back; once more does nothing."""
        if self._renewer is None or self._stop.is_set():
            return
        self._stop.set()
        self._renewer.join()
        if not self.lost:
            with contextlib.suppress(Exception):  # a lease that is not given back ends by itself
                self._write(None)

    def _wait_for_the_end(self, number: int, name: str) -> None:
        """Return once the lease is over."""
        seen = self._content(number).get("beat")
        end = time.monotonic() + LEASE_S - self._age_s(number)
        while seen is not None and time.monotonic() < end:
            time.sleep(_POLL_S)
            now = self._content(number).get("beat")
            if self._last() != number or now not in (seen, None):
                raise _in_use(name)
            seen = now

    def _age_s(self, number: int) -> float:
        """Seconds since a lease was rewritten, by the storage's clock; 0 where it has none."""
        now = f"{self._folder}/now-{self._copy[:8]}"
        try:
            self._fs.pipe_file(now, b"")
            self._fs.invalidate_cache()
            age = (self._fs.modified(now) - self._fs.modified(self._path(number))).total_seconds()
            self._fs.rm_file(now)
        except (NotImplementedError, FileNotFoundError):
            return 0.0
        return max(0.0, float(age))

    def _renew(self) -> None:
        beat = 0
        while not self._stop.wait(RENEW_S):
            beat += 1
            # one that fails may go through next time; who writes meanwhile reports the failure
            with contextlib.suppress(Exception):
                if self._last() != self._number:
                    self.lost = True
                    return
                self._write(beat)

    def _last(self) -> int | None:
        self._fs.invalidate_cache()
        if not self._fs.exists(self._folder):
            return None
        names = [str(path).rpartition("/")[2] for path in self._fs.ls(self._folder, detail=False)]
        return max((int(n) for n in names if n.isdigit()), default=None)

    def _content(self, number: int) -> dict[str, Any]:
        self._fs.invalidate_cache()
        try:
            found = orjson.loads(self._fs.cat_file(self._path(number)))
        except (FileNotFoundError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self, beat: int | None, **options: str) -> None:
        content = orjson.dumps({"copy": self._copy, "beat": beat})
        self._fs.pipe_file(self._path(self._number), content, **options)

    def _path(self, number: int) -> str:
        return f"{self._folder}/{number:06d}"


def _in_use(name: str) -> RunFolderError:
    return RunFolderError(
        f"run folder {name} is in use by another mora-data build: wait for it, or give another"
        " --out"
    )
