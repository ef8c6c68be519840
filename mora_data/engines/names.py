"""Whether the model that answered is the one that was asked for.

Two names are the same model when they are equal without regard to case, `.gguf` and leading path
segments that only one of them has, and but for an ending that only one of them has and that names
no other model: a date or build of three or more digits (`-2024-08-06`, `-0613`), a revision
(`@main`), or a tag of letters (`:latest`, `-latest`). `gpt-4o-mini` is not `gpt-4o`.
"""

from __future__ import annotations

import re

_ENDING = re.compile(
    r"(?:[-:](?:\d{3,8}|\d{4}-\d{2}-\d{2}|\d{2}-\d{4})|@[\w.-]+|:[a-z]+|-latest)+\Z"
)


def same_model(asked: str, served: str) -> bool:
    """Whether `served` is a name of the model `asked`."""
    paths = [
        name.strip().strip("/").lower().removesuffix(".gguf").split("/") for name in (asked, served)
    ]
    n = min(len(p) for p in paths)
    short, long = sorted(("/".join(p[-n:]) for p in paths), key=len)
    return long == short or (
        long.startswith(short) and _ENDING.match(long[len(short) :]) is not None
    )
