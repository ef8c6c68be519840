"""What must not be shown: keys that go out, and text from elsewhere before it is read by anybody.

    signed_in("OPENAI_API_KEY")        {"Authorization": "Bearer ..."}
    redacted("no key sk-abc...")       "no key ***"
    visible("a\\x1b[2J")                  "a\\\\x1b[2J"

A secret is the value of an environment variable that names one (..._KEY, ..._TOKEN, ...) or that a
key was read from, the password of an address, and whatever has the form of a key. Every header is
made by `signed_in`; every foreign text that becomes a message goes through `text.one_line`, every
reply of a server through `without_key`, and the terminal through `visible` and `redacted`.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from .errors import SettingsError

HIDDEN = "***"
LEAST = 8  # characters of a secret; EMPTY and none are words
_NAMES_ONE = re.compile(r"(?:^|_)(?:KEY|TOKEN|PASSWORD|PASSWD|SECRET|CREDENTIALS?|PAT)(?:_|$)")
_SETTING = re.compile(
    r"(?:^|.*[_-])(?:api[_-]?key|access[_-]?key|(?:auth|access|hf|bearer)[_-]?token|authorization"
    r"|password|passwd|secret(?:[_-]key)?|credentials?)$",
    re.I,
)
_IN_ADDRESS = re.compile(r"(?<=://)[^/\s@:]{0,200}:[^/\s@]{1,200}@")
_FORMS = re.compile(
    r"\b(?:(?:sk|pk|rk|hf|gh[pousr]|xox[abp])[-_](?=[\w-]{0,40}\d)[\w-]{16,}|AKIA[0-9A-Z]{16})\b"
)
_BEARER = re.compile(r"\b(?:Bearer|Basic) (?=[\w.~+/=-]{0,40}[\d=])[\w.~+/=-]{8,}")
# what moves a cursor, turns the direction of writing or shows nothing; tabs and line ends stay
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
_key_variables: set[str] = set()  # further ones: settings name them, or a key was read there


def key_in(variable: str) -> str:
    """The key in an environment variable, without white space around it; empty where there is none.

    Raises:
        SettingsError: it holds what no header can carry.
    """
    key = os.environ.get(variable, "").strip()
    _key_variables.add(variable)
    if bad := re.search(r"[^\x21-\x7e]", key):
        raise SettingsError(
            f"the key in the environment variable {variable} has a character that no header can"
            f" carry at place {bad.start() + 1} of {len(key)}: set it again"
        )
    return key


def signed_in(variable: str) -> dict[str, str]:
    """The header that signs in with the key of an environment variable, where it holds one."""
    key = key_in(variable)
    return {"Authorization": f"Bearer {key}"} if key else {}


def redacted(text: str) -> str:
    """The text with every secret in it hidden."""
    for secret in _secrets():
        if secret in text:
            text = text.replace(secret, HIDDEN)
    if "://" in text:
        text = _IN_ADDRESS.sub(f"{HIDDEN}@", text)
    text = _BEARER.sub(f"Bearer {HIDDEN}", text)
    return _FORMS.sub(HIDDEN, text)


def without_key(body: bytes, headers: Mapping[str, str]) -> bytes:
    """The body of a reply without the keys that were sent for it: some servers say them back."""
    for value in headers.values():
        key = value.removeprefix("Bearer ")
        if len(key) >= LEAST and not key.isalpha() and (raw := key.encode()) in body:
            body = body.replace(raw, HIDDEN.encode())
    return body


def visible(text: str) -> str:
    """The text with the characters that a terminal obeys, or that nobody sees, by their code."""
    if text.isascii() and text.isprintable():
        return text
    return _UNSEEN.sub(lambda m: m[0].encode("unicode_escape").decode(), text)


def refuse_secrets(tree: object, where: str = "") -> None:
    """Settings are stored and published, so no secret may stand in them.

    Raises:
        SettingsError: one does; the value is not shown.
    """
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            inside = f"{where}.{key}" if where else str(key)
            named = where.endswith("headers_env")  # by the variable that holds it
            if (named or key == "api_key_env") and isinstance(value, str):
                _key_variables.add(value)
            if not named and _SETTING.match(str(key)) and isinstance(value, str) and value.strip():
                raise _secret(inside)
            refuse_secrets(value, inside)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            refuse_secrets(value, where)
    elif isinstance(tree, str):
        refuse_password(tree, where)
        if redacted(tree) != tree:
            raise _secret(where)


def refuse_password(address: str, where: str) -> None:
    """Raises SettingsError where an address holds a user name and a password."""
    if _IN_ADDRESS.search(address):
        raise SettingsError(
            f"{where} is an address with a password in it, which would be stored: leave it out;"
            " a key goes into the environment variable that api_key_env names"
        )


def is_loopback(url: str) -> bool:
    """Whether a URL names this machine, so that what is sent there stays here."""
    host = urlsplit(url).hostname or ""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _secret(where: str) -> SettingsError:
    return SettingsError(
        f"setting {where} holds a secret, and settings are stored and published: leave it out; a"
        " key goes into the environment variable that api_key_env names"
    )


def _secrets() -> Iterator[str]:
    for name, value in os.environ.items():
        if name in _key_variables or _NAMES_ONE.search(name.upper()):
            value = value.strip()
            if len(value) >= LEAST and not value.isalpha():
                yield value
