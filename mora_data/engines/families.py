"""What a model's name tells of its family: a judge may favour answers of its own kind."""

from __future__ import annotations

import re

_FAMILIES = (
    (r"qwen|qwq|qvq", "qwen"), (r"mi[sx]tral|ministral|codestral|magistral|devstral|zephyr", "mistral"),
    (r"llama|vicuna|alpaca|tulu", "llama"), (r"gemma|gemini|palm", "google"), (r"gpt|^o[134]\b|chatgpt|davinci", "gpt"),
    (r"deepseek", "deepseek"), (r"\bphi\b|^phi", "phi"), (r"glm", "glm"), (r"\byi\b|^yi-", "yi"),
    (r"command|^c4ai|aya", "cohere"), (r"olmo", "olmo"), (r"smollm", "smollm"), (r"granite", "granite"), (r"falcon", "falcon"))


def family(model: str) -> str:
    """The family that a model's name tells: `org/Qwen2.5-7B-Instruct` -> `qwen`; empty when the name tells none."""
    last = re.sub(r"^(?:[a-z]+\.)+", "", model.rpartition("/")[2].lower())  # vendors' prefixes, `org/` and `xx.org.`
    for pattern, name in _FAMILIES:
        if re.search(pattern, last):
            return name
    found = re.match(r"[a-z]{3,}", last)
    return found[0] if found else ""


def same_family(policy: str, judge: str) -> str:
    """The family that both names tell, or empty."""
    a, b = family(policy), family(judge)
    return a if a == b else ""
