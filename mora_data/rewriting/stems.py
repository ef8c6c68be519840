"""Crude English stems: what counts as the same word when the subject of a question is compared."""

from __future__ import annotations

from ..text import words
from .patterns import STOP, SUFFIXES


def stem(word: str) -> str:
    """Stem of a lower-case word: plural, -ing, -ed, -ly and a final e are cut."""
    for suffix, least in SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= least:
            word = word[: -len(suffix)]
            if (
                suffix in ("ing", "ed")
                and len(word) > 3
                and word[-1] == word[-2]
                and word[-1] not in "sl"
            ):
                word = word[:-1]
            break
    if word.endswith(("ie", "y")) and len(word) > 3:
        word = word.removesuffix("ie").removesuffix("y") + "i"
    return word.removesuffix("e") if len(word) > 3 else word


def content_stems(text: str) -> set[str]:
    """Stems of the words that carry the subject; all words of a text that has none."""
    tokens = words(text)
    return {stem(w) for w in tokens if w not in STOP and (len(w) > 1 or not w.isascii())} or set(
        tokens
    )
