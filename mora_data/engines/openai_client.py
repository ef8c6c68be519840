"""The openai package as the way to POST: for providers whose sign-in it knows. Ten times the CPU
per request of the others.

`transport: openai` builds `openai.AsyncOpenAI` for the base URL; `transport: module:function` calls
the user's own `function(base_url) -> AsyncOpenAI`, say one that returns `AsyncAzureOpenAI` with a
token provider. Its retries are turned
off: they are counted and bounded in one place, for all transports.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import orjson

from .. import plugins
from ..errors import SettingsError
from .http import Fault, OnSend, Reply, parse_retry_after

if TYPE_CHECKING:
    from openai import AsyncOpenAI


class ClientTransport:
    """An AsyncOpenAI, made when it is first used."""

    def __init__(
        self, base_url: str, path: str, headers: Mapping[str, str], on_send: OnSend, kind: str
    ) -> None:
        self._base_url, self._path, self._on_send = base_url, path, on_send
        self._key = headers.get("Authorization", "").removeprefix("Bearer ")
        self._make = None if kind == "openai" else plugins.load({}, kind, "transport").target
        self._client: AsyncOpenAI | None = None

    async def post(self, body: bytes, timeout_s: float) -> Reply:
        import openai

        if self._client is None:
            self._client = self._opened()
        self._on_send()
        try:
            reply = await self._client.post(
                self._path,
                cast_to=_reply_class(),
                body=orjson.loads(body),
                options={"timeout": timeout_s, "max_retries": 0},
            )
            return Reply(reply.status_code, reply.content)
        except openai.APIStatusError as e:
            after = e.response.headers.get("retry-after")
            return Reply(
                e.status_code, e.response.content, parse_retry_after(after) if after else None
            )
        except openai.APITimeoutError as e:
            raise Fault("timeout", f"no reply within {timeout_s:g} s") from e
        except openai.APIConnectionError as e:
            raise Fault(_kind(e), str(e.__cause__ or e)) from e

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()

    def _opened(self) -> AsyncOpenAI:
        from openai import AsyncOpenAI

        if self._make is None:
            return AsyncOpenAI(base_url=self._base_url, api_key=self._key or "none", max_retries=0)
        try:
            client: AsyncOpenAI = self._make(self._base_url)
            return client
        except Exception as e:  # the user's code and what it calls
            raise SettingsError(
                f"the openai client can't sign in ({' '.join(str(e).split())[:160]}): set what it"
                " asks for, or leave `transport` out"
            ) from e


def _reply_class() -> Any:
    """The class of raw replies; it is httpx's or, in newer versions of openai, httpx2's."""
    for name in ("httpx2", "httpx"):
        with contextlib.suppress(ImportError):
            return importlib.import_module(name).Response
    raise SettingsError(
        "transport: openai finds neither httpx2 nor httpx: pip install --upgrade openai"
    )


def _kind(error: BaseException) -> str:
    """refused, dns or reset, by the classes of what lies under the client's own error."""
    classes = []
    cause: BaseException | None = error
    while cause is not None:
        classes.append(cause.__class__.__name__)
        cause = cause.__cause__ or cause.__context__
    if "gaierror" in classes:
        return "dns"
    return "refused" if "ConnectError" in classes else "reset"
