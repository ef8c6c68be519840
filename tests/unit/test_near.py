"""Near-duplicates against exact Jaccard similarity; benchmarks fetched from a stand-in for the Hub,
kept as hashes alone."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support.hub_standin import Store, make_server

from mora_data.sources.benchmarks import NAMES, Benchmarks
from mora_data.sources.near import NearDuplicates
from mora_data.text import words

WORDS = [f"word{i}" for i in range(400)]


def runs(text: str) -> set[tuple[str, ...]]:
    tokens = words(text)
    return {tuple(tokens[i : i + 5]) for i in range(max(len(tokens) - 5, 0) + 1)}


def jaccard(a: str, b: str) -> float:
    return len(runs(a) & runs(b)) / len(runs(a) | runs(b))


def test_what_is_near_is_found_and_what_is_not_is_kept() -> None:
    """Texts changed in a few places: all pairs beyond 0.9 are found, none under 0.65 (4 standard
    errors)."""
    rng = random.Random(0)
    for _ in range(300):
        first = rng.choices(WORDS, k=rng.randint(20, 120))
        second = list(first)
        for _ in range(rng.randint(0, 4)):
            second[rng.randrange(len(second))] = rng.choice(WORDS)
        near = NearDuplicates()
        assert not near.seen(" ".join(first))
        same, similarity = near.seen(" ".join(second)), jaccard(" ".join(first), " ".join(second))
        assert same or similarity < 0.9
        assert not same or similarity > 0.65


def test_short_and_empty_texts() -> None:
    near = NearDuplicates()
    assert [near.seen(t) for t in ("Why?", "why", "Why not?", "", "", "!!")] == [
        False,
        True,
        False,
        False,
        False,
        False,
    ]


def test_the_same_order_gives_the_same_answers() -> None:
    rng = random.Random(1)
    texts = [" ".join(rng.choices(WORDS[:2], k=9)) for _ in range(400)]
    first, second = NearDuplicates(0.6), NearDuplicates(0.6)
    flags = [first.seen(t) for t in texts]
    assert flags == [second.seen(t) for t in texts] and 0 < sum(flags) < 400


@pytest.mark.parametrize("threshold", [0.6, 0.75, 0.8, 1.0])
def test_its_own_index_tells_what_that_of_rensa_tells(
    threshold: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the table has grown several times, where groups of slots are full, and where many
    texts share a band."""
    import rensa

    from mora_data.sources import near as module

    monkeypatch.setattr(module, "FRESH", 16)
    monkeypatch.setattr(module, "CHUNK", 64)
    monkeypatch.setattr(module, "FULLEST", 0.8)
    rng = random.Random(2)
    bases = [rng.choices(WORDS, k=60) for _ in range(6)]
    ours, theirs = (
        NearDuplicates(threshold),
        rensa.RMinHashDeduplicator(threshold, 128, True, 16 if threshold >= 0.8 else 32, 42),
    )
    found = []
    for i in range(1200):
        tokens = (
            list(rng.choice(bases))
            if i % 3
            else rng.choices(WORDS[:3], k=9)
            if i % 2
            else rng.choices(WORDS, k=30)
        )
        for _ in range(rng.randint(0, 9)):
            tokens[rng.randrange(len(tokens))] = rng.choice(WORDS)
        sketch = rensa.RMinHash(128, 42)
        sketch.update([" ".join(tokens[k : k + 5]) for k in range(len(tokens) - 4)])
        found.append((ours.seen(" ".join(tokens)), not theirs.add(str(i), sketch)))
    assert all(a == b for a, b in found) and 20 < sum(a for a, _ in found) < 1100


QUESTION = (
    "What are the names of some famous actors that started their careers on Broadway and later"
    " moved to film?"
)
CLIENT = """
import json, sys
from pathlib import Path
from mora_data.sources.benchmarks import fill_cache
print(json.dumps([fill_cache(Path(sys.argv[1])), fill_cache(Path(sys.argv[1]))]))
"""


def test_fetched_once_and_kept_as_hashes(tmp_path: Path) -> None:
    store = Store(tmp_path / "hub")
    repo = store.create("dataset", "tatsu-lab/alpaca_eval", False)
    store.commit(
        repo,
        "main",
        [
            ("file", "alpaca_eval.json", json.dumps([{"instruction": QUESTION}]).encode()),
            ("file", "other.json", b"[]"),
        ],
        "data",
        "",
    )
    store.save(repo)
    server = make_server(tmp_path / "hub")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    cache = tmp_path / "cache"
    env = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_OFFLINE": "0",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    try:
        done = subprocess.run(
            [sys.executable, "-c", CLIENT, str(cache)],
            env=env,
            capture_output=True,
            text=True,
            timeout=600,
        )
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout)
    assert first.keys() == set(NAMES) and first["AlpacaEval"].startswith(
        "7 hashes of tatsu-lab/alpaca_eval@"
    )
    assert first["AdvBench"].startswith("not measured: no Hub dataset 'walledai/AdvBench'")
    assert second["AlpacaEval"] == "cached"
    (kept,) = cache.iterdir()
    assert kept.stat().st_size == 7 * 8 and b"Broadway" not in kept.read_bytes()
    found = Benchmarks({}, cache)
    assert (
        found.overlap(f"Tell me: {QUESTION}") == "AlpacaEval"
        and found.overlap("Who acts on Broadway?") is None
    )
    assert "AlpacaEval" not in found.not_measured and len(found.not_measured) == 5


def test_a_given_file_goes_before_the_cache(tmp_path: Path) -> None:
    (tmp_path / "XSTest.13gram").write_bytes(b"12345678")
    bench = tmp_path / "bench.jsonl"
    bench.write_text('{"prompt": "How do I kill a Python process?"}\n')
    found = Benchmarks({"xstest": str(bench)}, tmp_path)
    assert found.overlap("how do I KILL a python process") == "XSTest"
    assert found.at_hand["XSTest"] != Benchmarks({}, tmp_path).at_hand["XSTest"]


@pytest.mark.parametrize("raw", [b"", b"123"])
def test_a_cut_cache_file_is_not_at_hand(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "XSTest.13gram").write_bytes(raw)
    assert "XSTest" in Benchmarks({}, tmp_path).not_measured
