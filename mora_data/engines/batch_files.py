"""The files of engine `batch`: RUN_DIR/batches/.

    state.json               every batch that is not finished with: where it was sent, its ids, how
    far it is 0001.requests.jsonl      {"custom_id": key, "method": "POST", "url":
    "/v1/chat/completions", "body": {...}} a line 0001.answers.jsonl       {"custom_id": key,
    "response": {"status_code": 200, "body": {...}}, "error": null} a line 0001.errors.jsonl
    the provider's second file, in the same form

`custom_id` is the request's key in the answer log, so answers find their place whoever asked for
them and whenever. Files appear by rename; the state is written after every step, so that a killed
command goes on from the step it was in. A batch's files are removed once all of its answers are in
the log.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, NamedTuple

import orjson

from ..errors import RunFolderError
from ..run.folder import read_json
from ..run.partitions import write_whole

ENDPOINT: Final = "/v1/chat/completions"
_HEAD = b'{"custom_id":"'
ID_CHARS = 32
WAITING = ("written", "uploaded", "sent")  # steps before its answers are here


@dataclass(slots=True)
class Job:
    """One batch.

    Attributes:
        step: written (file here), uploaded (file there), sent (running), got (answers here).
        left: keys whose outcome is still wanted by somebody, or may be; in memory only.
    """

    name: str
    mode: str
    url: str
    model: str
    n: int
    step: str = "written"
    file_id: str | None = None
    batch_id: str | None = None
    left: set[str] = field(default_factory=set)


class Outcome(NamedTuple):
    """What a batch says of one request: a chat completion, or a status with the error's text."""

    status: int
    body: bytes


class BatchFolder:
    """The batches of a run that are not finished with."""

    def __init__(self, path: Path) -> None:
        self.path = path
        state = read_json(path / "state.json")
        known = {f.name for f in fields(Job)} - {"left"}
        self._last = int(state.get("last", 0))
        self.jobs = [
            Job(**{k: v for k, v in tree.items() if k in known}) for tree in state.get("jobs", [])
        ]
        self.jobs = [j for j in self.jobs if self.requests(j).is_file()]
        self._at: dict[str, tuple[Job, Path, int, int]] = {}
        for job in self.jobs:
            job.left = set(self._ids(job))
            if job.step == "got":
                self.read(job)

    def requests(self, job: Job) -> Path:
        """The file of a batch's requests."""
        return self.path / f"{job.name}.requests.jsonl"

    def answers(self, job: Job) -> Path:
        """The file of its answers."""
        return self.path / f"{job.name}.answers.jsonl"

    def errors(self, job: Job) -> Path:
        """The provider's file of requests that failed."""
        return self.path / f"{job.name}.errors.jsonl"

    def write(self, mode: str, url: str, model: str, requests: Iterable[tuple[str, bytes]]) -> Job:
        """A new batch with these (key, body), on disk and in the state.

        Raises:
            RunFolderError: it can't be written.
        """
        self._last += 1
        job = Job(f"{self._last:04d}", mode, url, model, 0)
        target = self.requests(job)
        part = target.with_name(target.name + ".tmp")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as f:
                for key, body in requests:
                    f.write(as_line(key, body))
                    job.left.add(key)
            part.replace(target)
        except OSError as e:
            with contextlib.suppress(OSError):
                part.unlink()
            raise RunFolderError(
                f"can't write {target}: {e.strerror}; free some space and run the same command"
                " again"
            ) from e
        job.n = len(job.left)
        self.jobs.append(job)
        self.save()
        return job

    def save(self) -> None:
        """Write the state."""
        trees = [{k: v for k, v in asdict(j).items() if k != "left"} for j in self.jobs]
        write_whole(
            self.path / "state.json",
            orjson.dumps({"last": self._last, "jobs": trees}, option=orjson.OPT_INDENT_2),
        )

    def read(self, job: Job) -> None:
        """Note where each outcome stands in a batch's answer files; lines that are not in form are
        passed over."""
        for path in (self.errors(job), self.answers(job)):  # an answer outweighs an error
            at = 0
            for line in _lines(path):
                try:
                    key = orjson.loads(line)["custom_id"]
                except (ValueError, KeyError, TypeError):
                    key = None
                if isinstance(key, str):
                    self._at[key] = (job, path, at, len(line))
                at += len(line)

    def take(self, key: str) -> Outcome | None:
        """What came for a key; None where nothing has."""
        place = self._at.pop(key, None)
        if place is None:
            return None
        job, path, at, size = place
        job.left.discard(key)
        with path.open("rb") as f:
            raw = os.pread(f.fileno(), size, at)
        return outcome_of(orjson.loads(raw))

    def holder(self, key: str) -> Job | None:
        """The batch under way that asks for a key."""
        return next((j for j in self.jobs if j.step in WAITING and key in j.left), None)

    def drop(self, job: Job) -> None:
        """Forget a batch, with its files."""
        self.jobs.remove(job)
        self.save()
        for path in (self.requests(job), self.answers(job), self.errors(job)):
            path.unlink(missing_ok=True)

    def _ids(self, job: Job) -> Iterator[str]:
        for line in _lines(self.requests(job)):
            yield line[len(_HEAD) : len(_HEAD) + ID_CHARS].decode("ascii", "replace")


def as_line(key: str, body: bytes) -> bytes:
    """One request as a line of a batch file."""
    return b'%s%s","method":"POST","url":"%s","body":%s}\n' % (
        _HEAD,
        key.encode(),
        ENDPOINT.encode(),
        body,
    )


def outcome_of(tree: Any) -> Outcome:
    """The status and body in a line of an answer file; a line without a response is a failure that
    may pass."""
    response, error = tree.get("response"), tree.get("error")
    if isinstance(response, dict) and response.get("body") is not None:
        return Outcome(int(response.get("status_code") or 0), orjson.dumps(response["body"]))
    return Outcome(503, orjson.dumps({"error": error or {"message": "no response"}}))


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as f:
            yield from f
    except FileNotFoundError:
        return
