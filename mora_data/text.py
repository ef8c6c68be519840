"""Text normalisation and hashing. Everything that is compared, split or seeded by text goes through these functions."""

from __future__ import annotations

import hashlib
import re
import unicodedata

from .types import Messages

_WORD = re.compile(r"\w+")
_TOKEN = re.compile(r"\w+|[^\w\s]")
_MARKS = bytes(c for c in range(128) if re.fullmatch(r"[^\w\s]", chr(c)))
_WORDS_ONLY = bytes(c if c < 128 and re.fullmatch(r"\w", chr(c)) else 32 for c in range(256))


def normalise(text: str) -> str:
    """NFKC, case folded, white space collapsed: two texts a reader would call the same compare equal."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    if "  " in text or not text.isprintable():  # the only printable white space is the blank
        text = " ".join(text.split())
    return text.strip().casefold()


def digest(*parts: str, hex_digits: int = 16) -> str:
    """First `hex_digits` of sha256 over the parts, joined by a unit separator."""
    return hashlib.sha256("\x1f".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:hex_digits]


def context_id(messages: Messages) -> str:
    """`prompt_id` of a conversation: hash of the normalised whole context, roles included."""
    return context_and_group(messages)[0]


def group_id(messages: Messages) -> str:
    """Hash of the normalised first user turn; train and test never share one."""
    return context_and_group(messages)[1]


def context_and_group(messages: Messages) -> tuple[str, str]:
    """`context_id` and `group_id`, each turn normalised once."""
    texts = [normalise(m["content"]) for m in messages]
    roles = [m["role"] for m in messages]
    first = texts[roles.index("user")] if "user" in roles else texts[0]
    return digest(*map("%s\x1e%s".__mod__, zip(roles, texts, strict=True))), digest("group", first)


def seed_of(*parts: str | int) -> int:
    """31-bit seed from the parts."""
    return int(digest("seed", *(str(p) for p in parts)), 16) & 0x7FFFFFFF


def words(text: str) -> list[str]:
    """Lower-case word tokens."""
    return _WORD.findall(text.lower())


def n_tokens(text: str) -> int:
    """Length of a text in word and punctuation tokens: close to a BPE count for English, with no tokenizer to load."""
    if not text.isascii():
        return len(_TOKEN.findall(text))
    raw = text.encode()  # the same count several times as fast
    return len(raw.translate(_WORDS_ONLY).split()) + len(raw) - len(raw.translate(None, _MARKS))
