"""A model in this process, as the queue of `in_process` sees it, and what such models have in
common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import orjson

from ..text import one_line
from ..types import Answer, Messages, Request


class RefusedRequest(Exception):
    """This model can't take this request, now or later; the text says why."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What a model answers in one go: samples `first` .. `first + n - 1` of a request, the first of
    them with `seed`."""

    request: Request
    first: int
    n: int
    seed: int
    tokens: Sequence[int] = ()

    def singles(self) -> list[Piece]:
        """A piece for each of its samples."""
        return [
            replace(self, first=self.first + i, n=1, seed=(self.seed + i) & 0x7FFFFFFF)
            for i in range(self.n)
        ]


class LocalModel(Protocol):
    """A loaded model. The worker thread alone calls it."""

    def encode(self, request: Request) -> Sequence[int]:
        """The request's tokens.

        Raises:
            RefusedRequest: it can't be answered.
        """

    def run(self, pieces: Sequence[Piece]) -> Sequence[tuple[Answer, ...]]:
        """The answers to each piece of a batch.

        Raises:
            MemoryError: the batch is too large; a smaller one may fit.
        """

    def close(self) -> None:
        """Let go of the device."""


def templated(tokenizer: Any, messages: Messages, answer_follows: bool) -> str:
    """A conversation as the model's own chat template writes it.

    Raises:
        RefusedRequest: the template does not take it.
    """
    try:
        text: str = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=answer_follows
        )
        return text
    # a template is the model's own program: whatever it raises, this conversation is not for it
    except Exception as e:
        raise RefusedRequest(
            f"the model's chat template refuses the conversation: {one_line(e, 150)}"
        ) from e


def checked_length(ids: list[int], limit: int, answer_follows: bool) -> list[int]:
    """The tokens, where the model can take them.

    Raises:
        RefusedRequest: there are none, or too many.
    """
    if not ids or len(ids) + answer_follows > limit:
        raise RefusedRequest(
            f"the prompt has {len(ids)} tokens, the model takes {limit} with its answer"
        )
    return ids


def outputs_answer(values: Sequence[float]) -> Answer:
    """A classifier's raw outputs as a JSON list."""
    if not all(math.isfinite(v) for v in values):
        return Answer("", "error", error="outputs_not_finite")
    return Answer(orjson.dumps(list(values)).decode())
