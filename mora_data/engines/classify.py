"""Sequence classifiers over HTTP: vLLM's `/classify` and `/pooling`, which stand at the root of the
server, not under /v1.

    {"messages": [..., {"role": "assistant", ...}], "model": "rm", "use_activation": false}   the
    server's chat template {"input": "BEGINNING OF CONVERSATION: ...", "model": "rm",
    "use_activation": false}       the text as it is

What comes back is raw: one number per label, before any sigmoid or softmax (without
`use_activation` vLLM applies one). A request holds one conversation, so that requests sent are
answers wanted. Slots, retries and faults are those of chat. The bodies are made in `key`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from functools import partial

import orjson

from ..run.log import Record
from ..types import Answer, Task
from .openai import Route
from .replies import Passing

PATHS: Mapping[Task, str] = {"classify": "/classify", "pooling": "/pooling"}


def route(task: Task) -> Route:
    """Where an endpoint rates."""
    path = PATHS[task]
    return Route(
        path,
        partial(parse, task),
        f"check the reward's `endpoint`: it has to be a server with {path}, and to serve that"
        " model",
        at_root=True,
    )


def parse(
    task: Task, raw: bytes, asked: int, served: Callable[[object], None] = lambda name: None
) -> Record:
    """The outputs of one conversation as a JSON list; what is not a finite number is null in it.

    Raises:
        Passing: the body is not such a reply.
    """
    try:
        # takes NaN and Infinity, which are this text's fault and not the server's
        tree = json.loads(raw)
        served(tree.get("model"))
        (item,) = tree["data"]
        outputs = item["probs" if task == "classify" else "data"]
        numbers = [_number(x) for x in (outputs if isinstance(outputs, list) else [outputs])]
        tokens = int((tree.get("usage") or {}).get("prompt_tokens") or 0)
        return Record(asked, (Answer(orjson.dumps(numbers).decode()),), (tokens, 0, 0))
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise Passing(
            "not_json", f"HTTP 200 without the outputs of one text in it: {raw[:60]!r}"
        ) from e


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None
