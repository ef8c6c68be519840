"""The OpenAI Batch API: upload, create, look, fetch. The `openai` package carries it; errors are
said in one line."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ..errors import EndpointError, RunFolderError
from ..settings import RoleSettings
from .batch_files import ENDPOINT, BatchFolder, Job

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai.types import Batch

T = TypeVar("T")
RUNNING = frozenset(("validating", "in_progress", "finalizing", "cancelling"))
LOOKS_BACK = 100  # batches of the account that are searched for one whose id was lost to a kill
TRIES, WAIT_S = 5, 2.0
FAULTS = 20  # looks in a row that may fail for want of a connection


class Unreachable(Exception):
    """The provider can't be reached now, or is unwell."""


class Provider:
    """One base URL with a batch API."""

    def __init__(
        self, url: str, role: RoleSettings, sleep: Callable[[float], Awaitable[None]]
    ) -> None:
        self.url = url
        self._sleep = sleep
        self._key_env = role.api_key_env
        self._timeout_s = role.timeout_s
        self._client: AsyncOpenAI | None = None

    async def send(self, folder: BatchFolder, job: Job) -> None:
        """Bring a batch to the step `sent`, from whatever step it is in.

        Raises:
            EndpointError: the provider refuses.
        """
        try:
            if job.step == "written":
                job.file_id = await self._upload(folder.requests(job))
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

    async def look(self, job: Job) -> Batch:
        """The batch as the provider sees it.

        Raises:
            Unreachable: it can't be asked now.
            EndpointError: the provider refuses.
        """
        return await self._said(self._api().batches.retrieve(job.batch_id or ""))

    async def fetch(self, folder: BatchFolder, job: Job, batch: Batch) -> None:
        """Download what an ended batch brought, and bring it to the step `got`.

        Raises:
            Unreachable: it can't be asked now.
        """
        for file_id, path in (
            (batch.error_file_id, folder.errors(job)),
            (batch.output_file_id, folder.answers(job)),
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
                base_url=self.url,
                api_key=os.environ.get(self._key_env) or "none",
                timeout=self._timeout_s,
            )
        return self._client

    async def _upload(self, path: Path) -> str:
        with path.open("rb") as f:
            return (
                await self._said(self._api().files.create(file=(path.name, f), purpose="batch"))
            ).id

    async def _create_once(self, file_id: str) -> str:
        """A batch of the file, and one only, whether the reply to its creation is lost or the
        command dies before noting it."""
        for last in (False,) * (TRIES - 1) + (True,):
            try:
                return await self._created(file_id) or await self._create(file_id)
            except Unreachable:
                if last:
                    raise
            await self._sleep(WAIT_S)
        raise AssertionError("unreachable")

    async def _create(self, file_id: str) -> str:
        api = self._api().with_options(max_retries=0)
        return (
            await self._said(
                api.batches.create(
                    input_file_id=file_id, endpoint=ENDPOINT, completion_window="24h"
                )
            )
        ).id

    async def _created(self, file_id: str) -> str | None:
        """The batch that was made of a file by a command that died before it could write its id
        down."""
        page = await self._said(self._api().batches.list(limit=LOOKS_BACK))
        return next((b.id for b in page.data if b.input_file_id == file_id), None)

    async def _download(self, file_id: str, path: Path) -> None:
        part = path.with_name(path.name + ".tmp")

        async def stream() -> None:
            async with self._api().files.with_streaming_response.content(file_id) as reply:
                with part.open("wb") as f:
                    async for piece in reply.iter_bytes():
                        await asyncio.to_thread(f.write, piece)

        try:
            await self._said(stream())
            part.replace(path)
        except OSError as e:
            raise RunFolderError(
                f"can't write {path}: {e.strerror}; free some space and run the same command again"
            ) from e
        finally:
            part.unlink(missing_ok=True)

    async def _said(self, call: Awaitable[T]) -> T:
        """The result of a call; what the provider refuses, in one line."""
        import openai

        try:
            return await call
        except (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError) as e:
            raise Unreachable(" ".join(str(e).split())[:200]) from e
        except (openai.AuthenticationError, openai.PermissionDeniedError) as e:
            raise EndpointError(
                f"batch provider {self.url} says {e.status_code}: put a valid key into the"
                f" environment variable {self._key_env}"
            ) from e
        except openai.NotFoundError as e:
            raise EndpointError(
                f"batch provider {self.url} says 404 ({_message(e)}): it has no batch API, or does"
                " not know the batch any more; use engine openai, or --fresh"
            ) from e
        except openai.OpenAIError as e:
            raise EndpointError(f"batch provider {self.url} refuses: {_message(e)}") from e


def _message(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
