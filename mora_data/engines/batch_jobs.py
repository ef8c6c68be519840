"""Batches of requests: their files in RUN_DIR/batches/, and their way to the provider and back.

    state.json            every batch that is not finished with: where it was sent, its ids, how far
                          it is
    0001.requests.jsonl   {"custom_id": key, "method": "POST", "url": "/v1/chat/completions",
                          "body": {...}} a line
    0001.answers.jsonl    {"custom_id": key, "response": {"status_code": 200, "body": {...}},
                          "error": null} a line
    0001.errors.jsonl     the provider's second file, in the same form

`custom_id` is the request's key in the answer log, so answers find their place whoever asked for
them and whenever. Files appear by rename; the state is written after every step, so that a killed
command goes on from the step it was in. A batch's files are removed once all of its answers are in
the log.

`Provider` speaks the OpenAI Batch API (upload, create, look, fetch) through the `openai` package.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import orjson

from ..errors import UNREADABLE, EndpointError, RunFolderError
from ..run.files import read_json, replacing, write_whole
from ..secrets import key_in, refuse_password
from ..settings import RoleSettings
from ..text import one_line
from .http import MOST_BYTES
from .replies import reads_reply

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai.types import Batch

T = TypeVar("T")
ENDPOINT: Final = "/v1/chat/completions"
_HEAD = b'{"custom_id":"'
ID_CHARS = 32
WAITING = ("written", "uploaded", "sent")  # steps before its answers are here
RUNNING = frozenset(("validating", "in_progress", "finalizing", "cancelling"))
LOOKS_BACK = 100  # batches of the account that are searched for one whose id was lost to a kill
TRIES, WAIT_S = 5, 2.0


@dataclass(slots=True)
class BatchJob:
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


class BatchReply(NamedTuple):
    """What a batch says of one request: a chat completion, or a status with the error's text."""

    status: int
    body: bytes


class BatchFolder:
    """The batches of a run that are not finished with."""

    def __init__(self, path: Path) -> None:
        self.path = path
        state = read_json(path / "state.json")
        known = {f.name for f in fields(BatchJob)} - {"left"}
        self._last = int(state.get("last", 0))
        self.jobs = [
            BatchJob(**{k: v for k, v in tree.items() if k in known})
            for tree in state.get("jobs", [])
        ]
        self.jobs = [j for j in self.jobs if self.file(j, "requests").is_file()]
        self._at: dict[str, tuple[BatchJob, Path, int, int]] = {}
        for job in self.jobs:
            job.left = set(self._ids(job))
            if job.step == "got":
                self.read(job)

    def file(self, job: BatchJob, what: str) -> Path:
        """The file of a batch's `requests`, of its `answers`, or of the `errors` that the provider
        lists."""
        return self.path / f"{job.name}.{what}.jsonl"

    def write(
        self, mode: str, url: str, model: str, requests: Iterable[tuple[str, bytes]]
    ) -> BatchJob:
        """A new batch with these (key, body), on disk and in the state.

        Raises:
            RunFolderError: it can't be written.
        """
        self._last += 1
        job = BatchJob(f"{self._last:04d}", mode, url, model, 0)
        target = self.file(job, "requests")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise RunFolderError(f"can't make the folder {self.path}: {e.strerror}") from e
        with replacing(target) as part, part.open("wb") as f:
            for key, body in requests:
                f.write(as_line(key, body))
                job.left.add(key)
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

    def read(self, job: BatchJob) -> None:
        """Note where each reply stands in a batch's answer files; lines that are not in form are
        passed over."""
        for what in ("errors", "answers"):  # an answer outweighs an error
            path, at = self.file(job, what), 0
            for line in _lines(path):
                try:
                    key = orjson.loads(line)["custom_id"]
                except UNREADABLE:
                    key = None
                if isinstance(key, str):
                    self._at[key] = (job, path, at, len(line))
                at += len(line)

    def take(self, key: str) -> BatchReply | None:
        """What came for a key; None where nothing has."""
        place = self._at.pop(key, None)
        if place is None:
            return None
        job, path, at, size = place
        job.left.discard(key)
        with path.open("rb") as f:
            raw = os.pread(f.fileno(), size, at)
        return reply_of(orjson.loads(raw))

    def holder(self, key: str) -> BatchJob | None:
        """The batch under way that asks for a key."""
        return next((j for j in self.jobs if j.step in WAITING and key in j.left), None)

    def drop(self, job: BatchJob) -> None:
        """Forget a batch, with its files."""
        self.jobs.remove(job)
        self.save()
        for what in ("requests", "answers", "errors"):
            self.file(job, what).unlink(missing_ok=True)

    def _ids(self, job: BatchJob) -> Iterator[str]:
        for line in _lines(self.file(job, "requests")):
            yield line[len(_HEAD) : len(_HEAD) + ID_CHARS].decode("ascii", "replace")


def as_line(key: str, body: bytes) -> bytes:
    """One request as a line of a batch file."""
    return b'%s%s","method":"POST","url":"%s","body":%s}\n' % (
        _HEAD,
        key.encode(),
        ENDPOINT.encode(),
        body,
    )


@reads_reply(BatchReply(503, b'{"error": {"message": "no reply"}}'))
def reply_of(tree: Any) -> BatchReply:
    """The status and body in a line of an answer file; a line without a response is a failure that
    may pass."""
    response, error = tree.get("response"), tree.get("error")
    if isinstance(response, dict) and response.get("body") is not None:
        status = response.get("status_code")
        known = status if isinstance(status, int) and 100 <= status < 1000 else 503
        return BatchReply(known, orjson.dumps(response["body"]))
    return BatchReply(503, orjson.dumps({"error": error or {"message": "no response"}}))


def _lines(path: Path) -> Iterator[bytes]:
    """Its lines; one that is longer than any reply comes in parts, which are in no form."""
    try:
        with path.open("rb") as f:
            yield from iter(lambda: f.readline(MOST_BYTES), b"")
    except FileNotFoundError:
        return


class Unreachable(Exception):
    """The provider can't be reached now, or is unwell."""


class Provider:
    """One base URL with a batch API."""

    def __init__(
        self, url: str, role: RoleSettings, sleep: Callable[[float], Awaitable[None]]
    ) -> None:
        refuse_password(url, "a base URL")
        self.url = url
        self._sleep = sleep
        self._key_env = role.api_key_env
        self._timeout_s = role.timeout_s
        self._client: AsyncOpenAI | None = None

    async def send(self, folder: BatchFolder, job: BatchJob) -> None:
        """Bring a batch to the step `sent`, from whatever step it is in.

        Raises:
            EndpointError: the provider refuses.
        """
        try:
            if job.step == "written":
                job.file_id = await self._upload(folder.file(job, "requests"))
                job.step = "uploaded"
                folder.save()
            if job.step == "uploaded":
                job.batch_id = await self._create_once(job.file_id or "")
                job.step = "sent"
                folder.save()
        except Unreachable as e:
            raise EndpointError(
                f"batch provider {self.url} can't be reached ({e}): run the same command again"
            ) from e

    async def look(self, job: BatchJob) -> Batch:
        """The batch as the provider sees it.

        Raises:
            Unreachable: it can't be asked now.
            EndpointError: the provider refuses.
        """
        return await self._call(self._api().batches.retrieve(job.batch_id or ""))

    async def fetch(self, folder: BatchFolder, job: BatchJob, batch: Batch) -> None:
        """Download what an ended batch brought, and bring it to the step `got`.

        Raises:
            Unreachable: it can't be asked now.
        """
        for file_id, path in (
            (batch.error_file_id, folder.file(job, "errors")),
            (batch.output_file_id, folder.file(job, "answers")),
        ):
            if file_id:
                await self._download(file_id, path)
        job.step = "got"
        folder.save()

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()

    def _api(self) -> AsyncOpenAI:
        if self._client is None:
            from openai import AsyncOpenAI

            self._client = AsyncOpenAI(
                base_url=self.url, api_key=key_in(self._key_env) or "none", timeout=self._timeout_s
            )
        return self._client

    async def _upload(self, path: Path) -> str:
        with path.open("rb") as f:
            return (
                await self._call(self._api().files.create(file=(path.name, f), purpose="batch"))
            ).id

    async def _create_once(self, file_id: str) -> str:
        """A batch of the file, and one only, whether the reply to its creation is lost or the
        command dies before noting it."""
        for last in (False,) * (TRIES - 1) + (True,):
            try:
                return await self._find(file_id) or await self._create(file_id)
            except Unreachable:
                if last:
                    raise
            await self._sleep(WAIT_S)
        raise AssertionError("unreachable")

    async def _create(self, file_id: str) -> str:
        api = self._api().with_options(max_retries=0)
        return (
            await self._call(
                api.batches.create(
                    input_file_id=file_id, endpoint=ENDPOINT, completion_window="24h"
                )
            )
        ).id

    async def _find(self, file_id: str) -> str | None:
        """The batch that was made of a file by a command that died before it could write its id
        down."""
        page = await self._call(self._api().batches.list(limit=LOOKS_BACK))
        return next((b.id for b in page.data or () if b.input_file_id == file_id), None)

    async def _download(self, file_id: str, path: Path) -> None:
        async def stream(part: Path) -> None:
            async with self._api().files.with_streaming_response.content(file_id) as reply:
                with part.open("wb") as f:
                    async for piece in reply.iter_bytes():
                        await asyncio.to_thread(f.write, piece)

        with replacing(path) as part:
            await self._call(stream(part))

    async def _call(self, call: Awaitable[T]) -> T:
        """The result of a call; what the provider refuses, in one line."""
        import openai

        try:
            return await call
        except (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError) as e:
            raise Unreachable(one_line(e)) from e
        except (openai.AuthenticationError, openai.PermissionDeniedError) as e:
            raise EndpointError(
                f"batch provider {self.url} says {e.status_code}: put a valid key into the"
                f" environment variable {self._key_env}"
            ) from e
        except openai.NotFoundError as e:
            raise EndpointError(
                f"batch provider {self.url} says 404 ({one_line(e)}): it has no batch API, or does"
                " not know the batch any more; use engine openai, or --fresh"
            ) from e
        except openai.OpenAIError as e:
            raise EndpointError(f"batch provider {self.url} refuses: {one_line(e)}") from e
