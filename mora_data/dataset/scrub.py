"""Published copies of settings and manifests hold no URL, path, host or user name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

WITHHELD = "(withheld)"
_PRIVATE_KEYS = frozenset(
    {
        "base_url",
        "replicas",
        "transport",
        "prices",
        "api_key_env",
        "files",
        "decontaminate_from",
        "extra_body",
        "run_dir",
        "dataset_dir",
        "out_dir",
        "hostname",
        "username",
        "cwd",
        "argv",
    }
)
_URL = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s\"'<>]+", re.I)
_ADDRESS = re.compile(
    r"\b(?:localhost|\d{1,3}(?:\.\d{1,3}){3})(?::\d+)?\b|\b[\w.-]+@[\w-]+\.[\w.-]+"
)
_PATH = re.compile(
    r"(?<![\w/:<.])(?:~|\.{1,2}|[A-Za-z]:)?[/\\](?:[^\s/\\\"'<>,;]+[/\\])*([^\s/\\\"'<>,;]*)"
)


def scrub(value: Any) -> Any:
    """A copy without private keys, and with every string scrubbed."""
    if isinstance(value, Mapping):
        return {str(k): scrub(v) for k, v in value.items() if k not in _PRIVATE_KEYS}
    if isinstance(value, (list, tuple)):
        return [scrub(v) for v in value]
    return scrub_text(value) if isinstance(value, str) else value


def scrub_text(value: str) -> str:
    """The text with URLs and addresses withheld, and of a file path only its last part
    (`/home/me/tiny` -> `tiny`)."""
    value = _ADDRESS.sub(WITHHELD, _URL.sub(WITHHELD, value))
    return _PATH.sub(lambda m: m[1], value)
