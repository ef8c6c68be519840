"""What a model's name tells of its family: a judge may favour answers of its own kind."""

from __future__ import annotations

import re


def family(model: str) -> str:
    """The family that a model's name tells: `org/Qwen2.5-7B-Instruct` -> `qwen`; empty when the
    name tells none.

    The word that it begins with, of three letters or more and without the vendor's (`org/`,
    `region.vendor.`), unless a word in it is known to belong to a family of another name.
    """
    name = re.sub(r"^(?:[a-z]{2,}\.)+(?=[a-z])", "", model.rpartition("/")[2].lower())
    for pattern, known in _KIN:
        if re.search(pattern, name):
            return known
    found = re.match(r"[a-z]{3,}", name)
    return found[0] if found else ""


def same_family(policy: str, judge: str) -> str:
    """The family that both names tell, or empty."""
    a, b = family(policy), family(judge)
    return a if a == b else ""


_KIN = (
    (r"qwen|qwq|qvq", "qwen"),
    (r"mi[sx]tral|ministral|codestral|magistral|devstral|zephyr", "mistral"),
    (r"llama|vicuna|alpaca|tulu", "llama"),
    (r"gemma|gemini|palm", "google"),
    (r"gpt|^o[134]\b|davinci", "gpt"),
    (r"glm", "glm"),
)
