"""What a model's name tells: whether two names are one model, and of which family it is."""

from __future__ import annotations

import re

_ENDING = re.compile(
    r"(?:[-:](?:\d{3,8}|\d{4}-\d{2}-\d{2}|\d{2}-\d{4})|@[\w.-]+|:[a-z]+|-latest)+\Z"
)
_FAMILIES = (
    (r"qwen|qwq|qvq", "qwen"),
    (r"mi[sx]tral|ministral|codestral|magistral|devstral|zephyr", "mistral"),
    (r"llama|vicuna|alpaca|tulu", "llama"),
    (r"gemma|gemini|palm", "google"),
    (r"gpt|^o[134]\b|davinci", "gpt"),
    (r"glm", "glm"),
)


def same_model(asked: str, served: str) -> bool:
    """Whether `served` is a name of the model `asked`.

    Two names are the same model when they are equal without regard to case, `.gguf` and leading
    path segments that only one of them has, and but for an ending that only one of them has and
    that names no other model: a date or build of three or more digits (`-2024-08-06`, `-0613`), a
    revision (`@main`), or a tag of letters (`:latest`, `-latest`). `gpt-4o-mini` is not `gpt-4o`.
    """
    paths = [
        name.strip().strip("/").lower().removesuffix(".gguf").split("/") for name in (asked, served)
    ]
    n = min(len(p) for p in paths)
    short, long = sorted(("/".join(p[-n:]) for p in paths), key=len)
    return long == short or (
        long.startswith(short) and _ENDING.match(long[len(short) :]) is not None
    )


def family(model: str) -> str:
    """The family that a model's name tells: `org/Qwen2.5-7B-Instruct` -> `qwen`; empty when the
    name tells none.

    The word that it begins with, of three letters or more and without the vendor's (`org/`,
    `region.vendor.`), unless a word in it is known to belong to a family of another name.
    """
    name = re.sub(r"^(?:[a-z]{2,}\.)+(?=[a-z])", "", model.rpartition("/")[2].lower())
    for pattern, known in _FAMILIES:
        if re.search(pattern, name):
            return known
    found = re.match(r"[a-z]{3,}", name)
    return found[0] if found else ""


def same_family(policy: str, judge: str) -> str:
    """The family that both names tell, or empty: a judge may favour answers of its own kind."""
    a, b = family(policy), family(judge)
    return a if a == b else ""
