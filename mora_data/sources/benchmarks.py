"""Decontamination: finds prompts that share 13 words in a row with a benchmark's prompts.

A benchmark prompt of fewer than 13 words (most of AdvBench and TruthfulQA) matches a turn that has exactly its words.
A benchmark whose prompts are not at hand is "not measured", and the manifest says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from ..errors import DropRow, SourceError
from ..text import words
from ..types import Row
from . import read

NAMES = ("AlpacaEval", "AdvBench", "TruthfulQA", "XSTest", "BeaverTails-Evaluation", "MT-Bench")
_COLUMNS = ("prompt", "instruction", "goal", "Question", "question", "turns")
_N = 13

Gram = tuple[str, ...]


class Benchmarks:
    """The benchmarks at hand.

    Attributes:
        at_hand: whether there is any benchmark to compare with.
        not_measured: the known benchmarks that were not given.
    """

    def __init__(self, files: Mapping[str, str]) -> None:
        self._name_of: dict[Gram, str] = {}
        for name, path in files.items():
            for gram in _grams(name, Path(path)):
                self._name_of.setdefault(gram, name)
        given = {name.casefold() for name in files}
        self.at_hand = bool(files)
        self.not_measured = tuple(name for name in NAMES if name.casefold() not in given)

    def overlap(self, turn: str) -> str | None:
        """The benchmark that this turn overlaps with first, or None."""
        grams = _windows(words(turn))
        if self._name_of.keys().isdisjoint(grams):
            return None
        return next(self._name_of[gram] for gram in grams if gram in self._name_of)


def _windows(tokens: list[str]) -> list[Gram]:
    """All runs of 13 words, or the whole text where it is shorter."""
    if len(tokens) < _N:
        return [tuple(tokens)]
    return list(zip(*(tokens[i:] for i in range(_N)), strict=False))


def _grams(name: str, path: Path) -> frozenset[Gram]:
    grams = frozenset(gram for prompt in _prompts(path) for gram in _windows(words(prompt)) if gram)
    if not grams:
        raise SourceError(f"benchmark {name}: no prompts in {path}: it needs one of the columns {', '.join(_COLUMNS)}")
    return grams


def _prompts(path: Path) -> Iterator[str]:
    for _, _, row in read.rows(read.find([path], [])):
        if not isinstance(row, DropRow):
            yield from _texts(row)


def _texts(row: Row) -> list[str]:
    value = next((row[c] for c in _COLUMNS if c in row), None)
    return [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, str)]
