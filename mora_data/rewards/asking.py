"""What a reward needs of the engines: a way to ask."""

from __future__ import annotations

from typing import Protocol

from ..types import Answer, Request


class Ask(Protocol):
    """The one function that every model call goes through."""

    async def __call__(self, request: Request) -> list[Answer]: ...
