"""The viewer's index, pages, facets and memory on 100,000 pairs, beside its goals and a floor.

    python -m benchmarks.view [--pairs 100000] [--keep DIR]

The pairs are made up (words drawn by rank, some 2.6 kB each) and written in the published schema.
Index, page and facets are measured in a process of its own; a page is a request over HTTP. The
floor is reading the same columns with pyarrow.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np

DIMS = ("helpful", "harmless", "truthful")
GOALS = {"index_s": 5, "page_p95_ms": 30, "facets_ms": 200, "peak_mb": 250}
ASKED = (
    "sort=-margin_helpful",
    "sort=confirmed_total&kind=flat",
    "arm=fused&carried_dim=harmless&adds=helpful",
    "flag=lost",
    "sort=-length_ratio&split=test",
    "q=word7+word31",
    "q=word900&sort=margin_harmless&low=0.25&high=0.5",
    "texts=1",
)


def make(folder: Path, n: int, per_file: int = 25_000) -> None:
    """A dataset folder of n made-up pairs."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from mora_data.dataset.schemas import schema

    rng, made = np.random.default_rng(0), schema("preference", DIMS)
    words = np.array([f"word{i}" for i in range(5000)])
    chance = 1 / np.arange(1, 5001)
    chance /= chance.sum()
    (folder / "preference").mkdir(parents=True)
    for number in range(-(-n // per_file)):
        split = "test" if number == 0 else "train"
        with pq.ParquetWriter(
            folder / f"preference/{split}-{number:05d}-of-00009.parquet", made, compression="zstd"
        ) as writer:
            for start in range(number * per_file, min((number + 1) * per_file, n), 1000):
                drawn = words[rng.choice(5000, (1000, 460), p=chance)]
                writer.write_table(
                    pa.Table.from_pylist(
                        [_row(rng, start + i, drawn[i]) for i in range(1000)], made
                    )
                )


def _row(rng: np.random.Generator, i: int, words: np.ndarray) -> dict[str, object]:
    def turn(role: str, text: np.ndarray) -> list[dict[str, str]]:
        return [{"role": role, "content": " ".join(text)}]

    chosen, rejected = rng.integers(2, 5, 3) / 4, rng.integers(0, 3, 3) / 4
    margins = chosen - rejected
    row: dict[str, object] = {
        "pair_id": f"{i:016x}",
        "prompt_id": f"{i // 2:016x}",
        "arm": ("fused", "identity")[i % 2],
        "kind": ("flat", "one_dim", "conflict")[i % 3],
        "carried_dim": DIMS[i % 3],
        "target_dims": [DIMS[(i + 1) % 3]],
        "category": f"topic {i % 19}",
        "source_dataset": "org/source",
        "prompt": turn("user", words[:60]),
        "chosen": turn("assistant", words[60:280]),
        "rejected": turn("assistant", words[280:]),
        "len_chosen": 220,
        "len_rejected": 180,
        "margin_total": float(margins.sum()),
        "score": float(margins.prod()),
    }
    for j, d in enumerate(DIMS):
        row |= {
            f"chosen_reward_{d}": float(chosen[j]),
            f"rejected_reward_{d}": float(rejected[j]),
            f"margin_{d}": float(margins[j]),
            f"margin_confirmed_{d}": float(margins[j]) - 0.25 * int(rng.integers(0, 2)),
        }
    return row


def measure(folder: Path, repeats: int) -> dict[str, float]:
    """Index, pages over HTTP, facets and memory, in this process."""
    from mora_data.viewer.pairs import PairSearch, parse_query
    from mora_data.viewer.server import server_of

    cpu = time.process_time()
    server = server_of(folder, 0)
    view = server.state
    n = view.pairs().index.n
    out = {"pairs": float(n), "index_cpu_s": time.process_time() - cpu}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_address[1]}"
    opener = urllib.request.build_opener()
    opener.addheaders = [("Cookie", f"{server.cookie}={server.token}")]
    urllib.request.install_opener(opener)
    out |= _asked(base, ["/style.css"] * repeats * len(ASKED), "floor_request")
    out |= _asked(base, [f"/pairs?{asked}" for asked in ASKED] * repeats, "page")
    pairs: PairSearch = view.pairs()
    queries = [
        parse_query(dict(p.split("=") for p in a.replace("+", " ").split("&")), pairs.index)
        for a in ASKED
    ]
    cpu = time.process_time()
    for q in queries:
        pairs.facets(q)
    out["facets_ms"] = 1000 * (time.process_time() - cpu) / len(queries)
    start = time.perf_counter()
    with urllib.request.urlopen(f"{base}/pair/{n // 2:016x}") as reply:
        reply.read()
    out["pair_ms"] = 1000 * (time.perf_counter() - start)
    start = time.perf_counter()
    with urllib.request.urlopen(f"{base}/pairs?q=word4321&whole=1") as reply:
        reply.read()
    out["whole_text_search_s"] = time.perf_counter() - start
    server.shutdown()
    server.server_close()
    out["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return out


def _asked(base: str, paths: list[str], name: str) -> dict[str, float]:
    """Wall and CPU of requests, in ms; server and client are one process, so its CPU is that of
    both."""
    wall, cpu = [], []
    for path in paths:
        start, start_cpu = time.perf_counter(), time.process_time()
        with urllib.request.urlopen(base + path) as reply:
            reply.read()
        wall.append(1000 * (time.perf_counter() - start))
        cpu.append(1000 * (time.process_time() - start_cpu))
    return {
        f"{name}_p50_ms": float(np.median(wall)),
        f"{name}_p95_ms": float(np.quantile(wall, 0.95)),
        f"{name}_cpu_p50_ms": float(np.median(cpu)),
        f"{name}_cpu_p95_ms": float(np.quantile(cpu, 0.95)),
    }


def floor(folder: Path) -> dict[str, float]:
    """The same columns read with pyarrow and nothing made of them."""
    import pyarrow.parquet as pq

    from mora_data.run.partitions import lean_arrow

    lean_arrow()
    names = [
        "pair_id",
        "prompt_id",
        "arm",
        "kind",
        "carried_dim",
        "category",
        "prompt",
        "chosen",
        "rejected",
        *(f"{m}_{d}" for d in DIMS for m in ("margin", "margin_confirmed")),
    ]
    cpu = time.process_time()
    for path in sorted((folder / "preference").glob("*.parquet")):
        for _ in pq.ParquetFile(path).iter_batches(1000, columns=names, use_threads=False):
            pass
    return {
        "floor_read_cpu_s": time.process_time() - cpu,
        "floor_peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument(
        "--keep", type=Path, help="make the pairs here, or take those that are here"
    )
    parser.add_argument("--part", choices=("floor", "measure"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        print(
            json.dumps(
                floor(args.keep) if args.part == "floor" else measure(args.keep, args.repeats)
            )
        )
        return
    with tempfile.TemporaryDirectory() as root:
        folder = args.keep or Path(root) / "dataset"
        if not (folder / "preference").exists():
            make(folder, args.pairs)
        out: dict[str, float] = {}
        for part in ("floor", "measure"):
            command = [
                sys.executable,
                "-m",
                "benchmarks.view",
                "--part",
                part,
                "--keep",
                str(folder),
                "--repeats",
                str(args.repeats),
            ]
            env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            out |= json.loads(
                subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout
            )
        print(json.dumps({**{k: round(v, 2) for k, v in out.items()}, "goals": GOALS}))


if __name__ == "__main__":
    main()
