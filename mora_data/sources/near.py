"""Near-duplicates in one pass: texts that share most of their runs of five words with one that came
before.

    near = NearDuplicates()
    near.seen("How do I keep a garden alive in a dry summer?")         # False, and remembered
    near.seen("How do I keep a garden alive in a dry summer, please?")  # True

MinHash (Broder 1997) with 128 hashes: the Jaccard similarity of two sets is estimated with a
standard error of at most 0.045, 0.035 at 0.8. Only texts that share one of 16 bands of 8 hashes are
compared (32 of 4 under a threshold of 0.8), which finds 95 % of the pairs at 0.8 and 99.9 % at 0.9.
A text of fewer than five words counts as one run. What came first stays, so the result depends on
the order of the texts and on nothing else. Memory: some 700 bytes a text (docs/numbers.md).
"""

from __future__ import annotations

import array
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..text import words

RUN, HASHES, SEED = 5, 128, 42
GROUP, FULLEST = 8, 0.6  # slots that are looked at together; share of all slots in use at most
FRESH = 1 << 9  # sketches that are put into the table together
CHUNK = 1 << 14  # sketches of one array; a multiple of FRESH
_FULL = (1 << 64) - 1


class NearDuplicates:
    """Remembers the texts that were not near-duplicates, as sketches that are found again by any of
    their bands.

    512 bytes a sketch, and for each of its bands a slot of 5 bytes: the number of the sketch and a
    tag, 7 bits of the band's hash (0: empty). Slots stand in groups; a band lies in the first group
    of its path that had room, and the path is the band's own, so that one look at a group's tags
    settles most bands. 30 to 60 % of the slots are in use. The last few sketches wait in a dict and
    are put into the table together.
    """

    def __init__(self, threshold: float = 0.8) -> None:
        import rensa

        self._sketch: Any = rensa.RMinHash
        self._least = threshold * HASHES - 1e-9
        self._n_bands, self._n = 16 if threshold >= 0.8 else 32, 0
        odd = np.random.default_rng(SEED).integers(
            1, 1 << 62, HASHES // self._n_bands // 2 + self._n_bands, np.uint64
        ) | np.uint64(1)
        self._odd, self._band = odd[self._n_bands :], odd[: self._n_bands]
        self._chunks: list[NDArray[np.uint32]] = []
        self._fresh: dict[int, list[int]] = {}
        self._last: list[NDArray[np.uint64]] = []
        self._clear(FRESH * self._n_bands // 2)

    def seen(self, text: str) -> bool:
        """Whether a text before had a Jaccard similarity of `threshold` or more; else this one is
        remembered."""
        tokens = words(text)
        if not tokens:
            return False
        made = self._sketch(HASHES, SEED)
        made.update([" ".join(tokens[i : i + RUN]) for i in range(max(len(tokens) - RUN, 0) + 1)])
        sketch = np.frombuffer(array.array("I", made.digest()), np.uint32)
        hashed = self._hashed(sketch)
        alike = self._alike(sketch, hashed)
        if any(np.count_nonzero(other == sketch) >= self._least for other in alike):
            return True
        self._add(sketch, hashed)
        return False

    def _hashed(self, sketches: NDArray[np.uint32]) -> NDArray[np.uint64]:
        """A hash of each band and its place; n x bands for n sketches. The values are hashes
        already: they need no mixing."""
        pairs = sketches.view(np.uint64).reshape(*sketches.shape[:-1], self._n_bands, -1)
        return np.asarray((pairs * self._odd).sum(-1) + self._band)

    def _alike(
        self, sketch: NDArray[np.uint32], hashed: NDArray[np.uint64]
    ) -> Iterator[NDArray[np.uint32]]:
        """The sketches that share a band with this one, each once."""
        compared: set[int] = set()
        for band, number in self._found(hashed):
            other = self._chunks[number // CHUNK][number % CHUNK]
            if number not in compared and np.array_equal(
                self._cut(other)[band], self._cut(sketch)[band]
            ):
                compared.add(number)
                yield other

    def _add(self, sketch: NDArray[np.uint32], hashed: NDArray[np.uint64]) -> None:
        """Remember a sketch."""
        if self._n % CHUNK == 0:
            self._chunks.append(np.empty((CHUNK, HASHES), np.uint32))
        self._chunks[-1][self._n % CHUNK] = sketch
        self._last.append(hashed)
        for h in hashed.tolist():
            self._fresh.setdefault(h, []).append(self._n)
        self._n += 1
        if self._n % FRESH == 0:
            self._settle()

    def _found(self, hashed: NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
        """(band, number) of sketches that seem to share the band."""
        fresh, tags, mask = self._fresh, self._tags, self._n_groups - 1
        for band, h in enumerate(hashed.tolist()):
            if h in fresh:
                yield from ((band, n) for n in fresh[h])
            tag, at = (h >> 57) + 1, (h & mask) * GROUP
            while True:
                slot = tags.find(tag, at, at + GROUP)
                while slot >= 0:
                    yield band, int(self._numbers[slot])
                    slot = tags.find(tag, slot + 1, at + GROUP)
                if not tags[at + GROUP - 1]:
                    break
                h = (h + (h >> 32 | 1)) & _FULL  # a full group: the path goes on
                at = (h & mask) * GROUP

    def _settle(self) -> None:
        """Into the table with the fresh ones; where it is too full, into one of twice the size with
        all of them."""
        hashed, first = np.concatenate(self._last), self._n - FRESH
        self._fresh.clear()
        self._last.clear()
        if self._n * self._n_bands <= FULLEST * len(self._tags):
            self._place(np.repeat(np.arange(first, self._n), self._n_bands), hashed)
            return
        self._clear(2 * self._n_groups)
        for at in range(0, self._n, FRESH):
            chunk = self._chunks[at // CHUNK][at % CHUNK : at % CHUNK + FRESH]
            self._place(
                np.repeat(np.arange(at, at + FRESH), self._n_bands), self._hashed(chunk).ravel()
            )

    def _cut(self, sketches: NDArray[np.uint32]) -> NDArray[np.uint32]:
        return sketches.reshape(*sketches.shape[:-1], self._n_bands, -1)

    def _clear(self, n_groups: int) -> None:
        self._tags, self._numbers = bytearray(), np.empty(0, np.int32)  # the old ones go first
        self._n_groups = n_groups
        self._tags = bytearray(n_groups * GROUP)
        self._numbers = np.zeros(n_groups * GROUP, np.int32)

    def _place(self, numbers: NDArray[np.int64], hashed: NDArray[np.uint64]) -> None:
        """Put bands into the first groups of their paths that have room."""
        tags = np.frombuffer(self._tags, np.uint8).reshape(-1, GROUP)
        tag = ((hashed >> np.uint64(57)) + np.uint64(1)).astype(np.uint8)
        while len(numbers):
            group = (hashed & np.uint64(self._n_groups - 1)).astype(np.int64)
            order = np.argsort(group, kind="stable")
            group, numbers, hashed, tag = group[order], numbers[order], hashed[order], tag[order]
            slot = (
                np.count_nonzero(tags[group], axis=1)
                + np.arange(len(group))
                - np.searchsorted(group, group)
            )
            fits = slot < GROUP
            tags[group[fits], slot[fits]] = tag[fits]
            self._numbers[group[fits] * GROUP + slot[fits]] = numbers[fits]
            numbers, hashed, tag = numbers[~fits], hashed[~fits], tag[~fits]
            hashed = hashed + ((hashed >> np.uint64(32)) | np.uint64(1))
