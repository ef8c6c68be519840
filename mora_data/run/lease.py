"""Who may write to a run folder on object storage: numbered leases, each created once, the last one
counts.

    .lease/000004   {"copy": "3fa9...", "beat": 17}        held; rewritten every BEAT_S seconds
    .lease/000004   {"copy": "3fa9...", "beat": null}      given back

A lease that has not been rewritten for LEASE_S seconds is over. Its age is the storage's: the time
of change of the lease, beside that of an object written just now; clocks of the machines, right or
wrong, do not come into it.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import orjson

from ..errors import RunFolderError

FOLDER = ".lease"
BEAT_S, LEASE_S = 5.0, 20.0
_POLL_S = 1.0


class Lease:
    """The right to write to the folder at `root`, for a working copy."""

    def __init__(self, fs: Any, root: str, copy: str) -> None:
        self._fs, self._folder, self._copy = fs, f"{root}/{FOLDER}", copy
        self._number = -1
        self._stop = threading.Event()
        self._beater: threading.Thread | None = None
        self.lost = False

    def is_last(self) -> bool:
        """Whether this working copy had the last lease."""
        number = self._last()
        return number is not None and self._read(number).get("copy") == self._copy

    def take(self, name: str) -> None:
        """Hold the lease from now on.

        Raises:
            RunFolderError: another build holds it.
        """
        last = self._last()
        if last is not None and self._read(last).get("copy") != self._copy:
            self._wait_for_the_end(last, name)
        self._number = 0 if last is None else last + 1
        try:
            self._fs.pipe_file(self._path(self._number), self._content(0), mode="create")
        except FileExistsError as e:
            raise _in_use(name) from e
        for old in range(max(0, self._number - 3), self._number):
            if self._fs.exists(self._path(old)):
                self._fs.rm_file(self._path(old))
        self._beater = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._beater.start()

    def release(self) -> None:
        """Give it back; once more does nothing."""
        if self._beater is None or self._stop.is_set():
            return
        self._stop.set()
        self._beater.join()
        if not self.lost:
            try:
                self._fs.pipe_file(self._path(self._number), self._content(None))
            except Exception:  # then it ends by itself
                return

    def _wait_for_the_end(self, number: int, name: str) -> None:
        """Return once the lease is over."""
        seen = self._read(number).get("beat")
        end = time.monotonic() + LEASE_S - self._age_s(number)
        while seen is not None and time.monotonic() < end:
            time.sleep(_POLL_S)
            if self._last() != number or self._read(number).get("beat") not in (seen, None):
                raise _in_use(name)
            seen = self._read(number).get("beat")

    def _age_s(self, number: int) -> float:
        """Seconds since a lease was rewritten, by the storage's clock; 0 where it does not tell."""
        probe = f"{self._folder}/now-{self._copy[:8]}"
        try:
            self._fs.pipe_file(probe, b"")
            self._fs.invalidate_cache()
            age = (self._fs.modified(probe) - self._fs.modified(self._path(number))).total_seconds()
            self._fs.rm_file(probe)
        except (NotImplementedError, FileNotFoundError):
            return 0.0
        return max(0.0, float(age))

    def _beat(self) -> None:
        beat = 0
        while not self._stop.wait(BEAT_S):
            beat += 1
            try:
                if self._last() != self._number:
                    self.lost = True
                    return
                self._fs.pipe_file(self._path(self._number), self._content(beat))
            # the next one may go through; what is written meanwhile is told by who writes it
            except Exception:
                continue

    def _last(self) -> int | None:
        self._fs.invalidate_cache()
        if not self._fs.exists(self._folder):
            return None
        names = [str(path).rpartition("/")[2] for path in self._fs.ls(self._folder, detail=False)]
        return max((int(n) for n in names if n.isdigit()), default=None)

    def _read(self, number: int) -> dict[str, Any]:
        self._fs.invalidate_cache()
        try:
            found = orjson.loads(self._fs.cat_file(self._path(number)))
        except (FileNotFoundError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _content(self, beat: int | None) -> bytes:
        return orjson.dumps({"copy": self._copy, "beat": beat})

    def _path(self, number: int) -> str:
        return f"{self._folder}/{number:06d}"


def _in_use(name: str) -> RunFolderError:
    return RunFolderError(
        f"run folder {name} is in use by another mora-data build: wait for it, or give another"
        " --out"
    )
