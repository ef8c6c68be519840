"""Decontamination: finds prompts that share 13 words in a row with a benchmark's prompts.

A benchmark prompt of fewer than 13 words (most of AdvBench and TruthfulQA) matches a turn that has
exactly its words. A benchmark comes from a file that the settings name, else from the cache, which
`fill_cache` fills from the Hub and which holds hashes alone; one that is in neither is "not
measured", and the manifest says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import blake2b
from pathlib import Path

from .. import resources
from ..errors import DropRow, SourceError
from ..run.files import write_whole
from ..settings import SourceSettings
from ..text import digest, words
from . import read

HUB = {
    "AlpacaEval": ("tatsu-lab/alpaca_eval", ["alpaca_eval.json"]),
    "AdvBench": ("walledai/AdvBench", []),
    "TruthfulQA": ("truthfulqa/truthful_qa", ["generation/*.parquet"]),
    "XSTest": ("walledai/XSTest", []),
    "BeaverTails-Evaluation": ("PKU-Alignment/BeaverTails-Evaluation", []),
    "MT-Bench": ("HuggingFaceH4/mt_bench_prompts", []),
}
NAMES = tuple(HUB)
_COLUMNS = ("prompt", "instruction", "goal", "Question", "question", "turns")
_N = 13
_BYTES = 8  # of a hash


class Benchmarks:
    """The benchmarks at hand.

    Attributes:
        at_hand: name to a hash over its hashes, of each benchmark that there is to compare with.
        not_measured: the known benchmarks that are neither given nor cached.
    """

    def __init__(self, files: Mapping[str, str], cache: Path | None = None) -> None:
        known = {name.casefold(): name for name in NAMES}
        hashes = {
            known.get(name.casefold(), name): _hashes(name, Path(path))
            for name, path in files.items()
        }
        for name in NAMES:
            if name not in hashes and cache is not None and (cached := _cached(cache, name)):
                hashes[name] = cached
        self._name_of: dict[bytes, str] = {}
        for name, some in hashes.items():
            for h in some:
                self._name_of.setdefault(h, name)
        self.at_hand = {
            name: digest(*(h.hex() for h in sorted(some))) for name, some in sorted(hashes.items())
        }
        self.not_measured = tuple(name for name in NAMES if name not in hashes)

    def overlap(self, turn: str) -> str | None:
        """The benchmark that this turn overlaps with first, or None."""
        return next((self._name_of[h] for h in _windows(words(turn)) if h in self._name_of), None)


def cache_dir() -> Path:
    """Where hashes of benchmarks are kept: $MORA_DATA_CACHE, else mora-data in the user's cache
    folder."""
    return resources.cache() / "benchmarks"


def fill_cache(cache: Path) -> dict[str, str]:
    """Fetch the benchmarks that the cache lacks from the Hub; what became of each, in words.

    A benchmark that can't be had (no network, gated) stays "not measured": never an error of the
    build.
    """
    results = {}
    for name, (dataset, patterns) in HUB.items():
        if _cached(cache, name):
            results[name] = "cached"
            continue
        wanted = SourceSettings(kind="benchmark", dataset=dataset, split="")
        try:
            files, commit = read.fetch_dataset(wanted, patterns)
            found = frozenset(h for file in files for h in _hashes(name, file.path))
        except SourceError as e:
            results[name] = f"not measured: {str(e).partition(': ')[0]}"
            continue
        cache.mkdir(parents=True, exist_ok=True)
        write_whole(_path(cache, name), b"".join(sorted(found)), durable=False)
        results[name] = f"{len(found)} hashes of {dataset}@{commit[:12]}"
    return results


def _path(cache: Path, name: str) -> Path:
    return cache / f"{name}.13gram"


def _cached(cache: Path, name: str) -> frozenset[bytes]:
    try:
        raw = _path(cache, name).read_bytes()
    except OSError:
        return frozenset()
    return frozenset(raw[i : i + _BYTES] for i in range(0, len(raw) - _BYTES + 1, _BYTES))


def _windows(tokens: list[str]) -> Iterator[bytes]:
    """Hashes of all runs of 13 words, or of the whole text where it is shorter."""
    for i in range(max(len(tokens) - _N, 0) + 1):
        yield blake2b(
            " ".join(tokens[i : i + _N]).encode("utf-8", "surrogatepass"), digest_size=_BYTES
        ).digest()


def _hashes(name: str, path: Path) -> frozenset[bytes]:
    found = frozenset(
        h for prompt in _prompts(path) if (tokens := words(prompt)) for h in _windows(tokens)
    )
    if not found:
        raise SourceError(
            f"benchmark {name}: no prompts in {path}: it needs one of the columns"
            f" {', '.join(_COLUMNS)}"
        )
    return found


def _prompts(path: Path) -> Iterator[str]:
    for _, _, row in read.rows(read.find([path], [])):
        if not isinstance(row, DropRow):
            value = next((row[c] for c in _COLUMNS if c in row), None)
            texts = value if isinstance(value, list) else [value]
            yield from (text for text in texts if isinstance(text, str))
