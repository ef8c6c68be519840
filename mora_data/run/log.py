"""The answer log: the only durable state of a partition while it is open.

One line per server reply, written with one unbuffered `write()` before the request's permit is
free:

    crc32 (8 hex) SP request key (24 hex) first (8 hex) SP JSON LF
    9f2c11aa 0d4e...e1 00000000 {"n":16,"s":[["text","stop",41],...],"t":[120,655,0],"p":"3f..."}

The request key is the hash of the request, `first` the index of the record's first sample, `n` how
many were asked for and `s` what came; `e` instead of `s` is a failure that no retry can mend. `t`
are tokens in, out and cached, `p` is the prompt that it belongs to, for the day it moves. A
line survives the death of the process as soon as `write` returns; a thread syncs to disk about once
a second for the case of a power loss. A torn last line and damaged bytes are skipped and counted:
their answers are asked again. One process at a time has a log open.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from ..errors import LogHeld, RunFolderError
from ..types import Answer

HEAD = 42  # crc, space, key, space
# a process that has to stop, or whose machine is gone, lets go of its log within this
LOCK_WAIT_S = 10.0
_NAP_S = 0.05


class Record(NamedTuple):
    """One server reply: samples `first` .. `first + len(answers) - 1` of the `asked` that the
    request wanted."""

    asked: int
    answers: tuple[Answer, ...]
    tokens: tuple[int, int, int] = (0, 0, 0)  # in, out, cached

    def encode(self, prompt_id: str = "") -> bytes:
        """The record as JSON."""
        tree: dict[str, Any] = {"n": self.asked}
        if self.answers[0].error is not None:
            tree["e"] = self.answers[0].error
        else:
            tree["s"] = [_sample(a) for a in self.answers]
        tree["t"] = self.tokens
        return orjson.dumps({**tree, "p": prompt_id} if prompt_id else tree)

    @classmethod
    def decode(cls, raw: bytes) -> Record:
        """The record that `encode` wrote.

        Raises:
            ValueError: not such a record.
        """
        tree = orjson.loads(raw)
        try:
            tokens = tree.get("t") or (0, 0, 0)
            if "e" in tree:
                return cls(
                    tree["n"], (Answer("", "error", error=tree["e"]),) * tree["n"], tuple(tokens)
                )
            return cls(tree["n"], tuple(_answer(s) for s in tree["s"]), tuple(tokens))
        except (TypeError, KeyError, AttributeError, IndexError) as e:
            raise ValueError("not an answer record") from e


def prompt_of(raw: bytes) -> str:
    """The prompt that a record belongs to; empty where it does not say."""
    try:
        found = orjson.loads(raw).get("p")
    except (ValueError, AttributeError):
        return ""
    return found if isinstance(found, str) else ""


def _sample(a: Answer) -> list[Any]:
    fields: list[Any] = [a.text, a.finish_reason, a.tokens_out]
    if a.thought is not None:
        return [*fields, a.logprobs, a.thought]
    return [*fields, a.logprobs] if a.logprobs is not None else fields


def _answer(s: list[Any]) -> Answer:
    if len(s) == 3:
        return Answer(s[0], s[1], s[2])
    logprobs = None
    if s[3] is not None:
        logprobs = tuple((t, tuple((w, p) for w, p in top)) for t, top in s[3])
    return Answer(s[0], s[1], s[2], None, logprobs, s[4] if len(s) > 4 else None)


class AnswerLog:
    """The answers of one open partition, by key; finalized answers of an earlier run may stand
    under it.

    Attributes:
        damaged: lines that were skipped because their checksum or shape was wrong.
        old_end: where this command's own lines begin; answers before it were paid for by an earlier
            one.
    """

    def __init__(
        self, path: Path, finalized: dict[bytes, bytes] | None = None, old_end: int | None = None
    ) -> None:
        self.path = path
        self.damaged = 0
        self._finalized = finalized or {}
        self._at: dict[bytes, tuple[int, int]] = {}
        self._dirty = False
        self._stop = threading.Event()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
        except OSError as e:
            raise RunFolderError(f"can't open the answer log {path}: {e.strerror}") from e
        try:
            _lock(self._fd, path)
        except LogHeld:
            os.close(self._fd)
            raise
        self._end = self._load()
        self.old_end = self._end if old_end is None else old_end
        self._sync = threading.Thread(target=self._sync_often, name="log-sync", daemon=True)
        self._sync.start()

    @property
    def is_resumed(self) -> bool:
        """Whether an earlier command left answers."""
        return bool(self.old_end or self._finalized)

    def __len__(self) -> int:
        return len(self._finalized.keys() | self._at.keys())

    def has(self, request_key: bytes, first: int) -> bool:
        """Whether a record starts at sample `first` of a request."""
        key = request_key + first.to_bytes(4, "big")
        return key in self._at or key in self._finalized

    def is_old(self, request_key: bytes, first: int) -> bool:
        """Whether the record was there before this command."""
        place = self._at.get(request_key + first.to_bytes(4, "big"))
        return place is None or place[0] < self.old_end

    def get(self, request_key: bytes, first: int) -> Record | None:
        """The record that starts at sample `first` of a request."""
        key = request_key + first.to_bytes(4, "big")
        raw = self._raw(key)
        if raw is None:
            return None
        try:
            return Record.decode(raw)
        except ValueError:
            self.damaged += 1
            self._at.pop(key, None)
            self._finalized.pop(key, None)
            return None

    def put(self, request_key: bytes, first: int, record: Record, prompt_id: str = "") -> None:
        """Append a record. When this returns, the death of the process can't lose it.

        Raises:
            RunFolderError: as `append`.
        """
        self.append(request_key + first.to_bytes(4, "big"), record.encode(prompt_id))

    def append(self, key: bytes, body: bytes) -> None:
        """Append a record that is encoded already, under its 16-byte key.

        Raises:
            RunFolderError: the disk is full or the folder is gone; nothing half-written is ever
                read back.
        """
        payload = key.hex().encode() + b" " + body
        line = b"%08x %s\n" % (zlib.crc32(payload), payload)
        try:
            written = os.write(self._fd, line)
            if written != len(line):
                raise OSError(28, "No space left on device")
        except OSError as e:
            self._repair()
            raise RunFolderError(
                f"can't write to the answer log {self.path}: {e.strerror}; "
                "free some space and run the same command again, nothing is lost"
            ) from e
        self._at[key] = (self._end + HEAD, len(body))
        self._end += len(line)
        self._dirty = True

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """(16-byte key, record JSON) of every answer, sorted by key: the same bytes whatever the
        order of arrival."""
        for key in sorted(self._finalized.keys() | self._at.keys()):
            raw = self._raw(key)
            if raw is not None:
                yield key, raw

    def close(self) -> None:
        """Sync and close the file; once more does nothing."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._sync.join()
        if self._dirty:
            os.fdatasync(self._fd)
        os.close(self._fd)

    def _raw(self, key: bytes) -> bytes | None:
        place = self._at.get(key)
        if place is None:
            return self._finalized.get(key)
        return os.pread(self._fd, place[1], place[0])

    def _load(self) -> int:
        """Index every whole, undamaged line; cut a torn tail. Returns the end of the file."""
        end = 0
        with open(self._fd, "rb", buffering=1 << 20, closefd=False) as f:
            f.seek(0)
            for line in f:
                if not line.endswith(b"\n"):
                    self.damaged += 1
                    os.ftruncate(self._fd, end)
                    break
                if self._is_whole(line):
                    self._at.setdefault(
                        bytes.fromhex(line[9:41].decode()), (end + HEAD, len(line) - HEAD - 1)
                    )
                elif line != b"\n":
                    self.damaged += 1
                end += len(line)
        return end

    @staticmethod
    def _is_whole(line: bytes) -> bool:
        if len(line) < HEAD + 2 or line[8:9] != b" " or line[41:42] != b" ":
            return False
        try:
            bytes.fromhex(line[9:41].decode("ascii"))
            return int(line[:8], 16) == zlib.crc32(line[9:-1])
        except ValueError:
            return False

    def _repair(self) -> None:
        # then the torn line stays; the next open skips it by its checksum
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, self._end)

    def _sync_often(self) -> None:
        while not self._stop.wait(1.0):
            if self._dirty:
                self._dirty = False
                try:
                    os.fdatasync(self._fd)
                except OSError:
                    self._dirty = True


def _lock(fd: int, path: Path) -> None:
    """Lock a log for this process; where the file system has no locks, nobody is kept out.

    Raises:
        LogHeld: another process keeps it.
    """
    end = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            if e.errno not in (errno.EAGAIN, errno.EACCES):
                return
        if time.monotonic() > end:
            raise LogHeld(
                f"the answer log {path} is in use by another process: wait for it to end, "
                "and run the same command again"
            )
        time.sleep(_NAP_S)
