"""The dataset folder from N scored prompts, beside a floor: pyarrow writing the same columns,
already built.

    python -m benchmarks.publish [--prompts 100000] [--answers 16] [--words 60] [--configs all]
    [--floor-prompts 5000] python -m benchmarks.publish --million [--prompts 1000000]
    `preference` staged, linted and loaded back; every config's rate

Rows are made lazily; making them is timed alone and taken off. MB are bytes of Arrow columns, the
same for both sides.
"""

from __future__ import annotations

import argparse
import random
import re
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.common import Figure, Scale, checked, run
from benchmarks.partitions import DIMS, ORIGIN
from mora_data.dataset import lint, schemas
from mora_data.dataset.configs import Release
from mora_data.dataset.folder import write_dataset
from mora_data.run.table import Pairs, ScoredTable
from mora_data.settings import BuildSettings, build_settings
from mora_data.text import digest
from mora_data.types import Prompt

CLOCK = time.process_time  # CPU seconds of all threads: comparable on a busy machine
LEVELS = np.array((0.0, 0.25, 0.5, 0.75, 1.0))
TEXT = """
the a of to in safe careful question people should consider first, then ask. However, doctor's
advice matters: measure twice and write down what you see; never guess when it is dangerous!
"""
WORDS = TEXT.split()


def make(n: int, answers: int, words: int) -> Iterator[ScoredTable]:
    """`n` scored prompts with `answers` different texts each, in tables of 512; answer 0 beats
    answer 1."""
    rng = random.Random(0)
    pool = [" ".join(rng.choices(WORDS, k=words)) for _ in range(997)]
    for start in range(0, n, 512):
        rows = range(start, min(start + 512, n))
        size, k = len(rows), np.arange(answers)
        prompts = [prompt(i, pool) for i in rows]
        texts = [f"{i} {j} {pool[(i * 31 + j * 7) % 997]}" for i in rows for j in range(answers)]
        rewards = np.stack(
            [LEVELS[(np.array(rows)[:, None] * 7 + k * 3 + d) % 5] for d in range(len(DIMS))],
            axis=-1,
        )
        rewards[:, 0], rewards[:, 1] = 1.0, 0.25
        none = pa.nulls(size * answers, pa.string())
        flags = pa.ListArray.from_arrays(
            pa.array(np.zeros(size * answers + 1, np.int32)), pa.array([], pa.string())
        )
        pairs = replace(
            Pairs.of(
                np.arange(size), np.zeros(size), np.ones(size), np.full(size, 0.42), len(DIMS)
            ),
            confirmed_Q_D=np.full((size, len(DIMS)), 0.5),
        )
        yield ScoredTable(
            dims=DIMS,
            prompts=prompts,
            arms=["fused"] * size,
            messages=[p.messages for p in prompts],
            kinds=["one_dim"] * size,
            carried=["helpful"] * size,
            targets=[("harmless",)] * size,
            bindings=[("helpful", "harmless")] * size,
            starts=np.arange(size + 1) * answers,
            texts=pa.array(texts),
            finish_reasons=pa.repeat(pa.scalar("stop"), size * answers),
            flags=flags,
            errors=none,
            rewards_R_D=rewards.reshape(-1, len(DIMS)),
            absolute_R_D=rewards.reshape(-1, len(DIMS)),
            uncertainty_R_D=np.zeros((size * answers, len(DIMS))),
            lengths_R=np.full(size * answers, words + 2),
            usable_R=np.ones(size * answers, bool),
            pairs=pairs,
        )


def prompt(i: int, pool: list[str]) -> Prompt:
    """Prompt `i`."""
    pid = digest("prompt", str(i))
    messages = ({"role": "user", "content": f"{pool[i % 997][:120]} {i}?"},)
    return Prompt(
        pid,
        messages,
        pid,
        "org/source",
        "default",
        "train",
        "a" * 40,
        i,
        "cc-by-4.0",
        category=f"topic {i % 19}",
    )


def pick(table: ScoredTable, target: str, aligned: tuple[str, ...]) -> Pairs:
    """The planted pairs: choosing is not what is timed here."""
    return table.pairs


def floor(folder: Path, out: Path) -> float:
    """Seconds that pyarrow takes to write the folder's tables, held in memory, with the same
    options."""
    seconds = 0.0
    for path in sorted(folder.glob("*/*.parquet")):
        table = pq.read_table(path, partitioning=None)
        start = CLOCK()
        with pq.ParquetWriter(
            out / "floor.parquet", table.schema, compression="zstd", write_page_index=True
        ) as writer:
            writer.write_table(table, row_group_size=1000)
        seconds += CLOCK() - start
    return seconds


def columns_mb(folder: Path) -> float:
    """Bytes of the folder's columns in memory, in MB."""
    return (
        sum(
            batch.nbytes
            for path in folder.glob("*/*.parquet")
            for batch in pq.ParquetFile(path).iter_batches(1000)
        )
        / 1e6
    )


def peak_mb() -> float:
    """The most memory this process has held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def release_of(configs: str | list[str]) -> Release:
    """What every run here shares beside its configs."""
    settings: BuildSettings = build_settings(
        {"name": "bench", "source": {"kind": "jsonl"}, "publish": {"configs": configs}}
    )
    return Release(settings, ORIGIN, {}, dict.fromkeys(DIMS, 0.75), pick, True)


def million(pairs: int, words: int) -> None:
    """CPU seconds, wall and memory of `preference` alone, step by step; then the rate of each
    config on a tenth of the prompts."""
    with tempfile.TemporaryDirectory() as tmp:
        start = CLOCK()
        for _ in make(pairs, 2, words):
            pass
        making, made = CLOCK() - start, peak_mb()
        print(
            f"{pairs:,} pairs, 2 answers per prompt: making the rows takes {making:.1f} s of CPU,"
            f" peak {made:.0f} MB"
        )
        total = -making
        folder = Path(tmp) / "dataset"
        steps: list[tuple[str, Callable[[], object]]] = [
            (
                "staged",
                lambda: write_dataset(
                    lambda: make(pairs, 2, words), release_of(["preference"]), folder
                ),
            ),
            ("linted", lambda: checked_by(lint.lint(folder))),
            (
                "loaded",
                lambda: lint.load_back(
                    folder, lint.read_header((folder / "README.md").read_text("utf-8")) or {}
                ),
            ),
        ]
        for name, step in steps:
            start, begun = CLOCK(), time.perf_counter()
            said = step()
            seconds = CLOCK() - start
            total += seconds
            print(
                f"{name}: {seconds:.1f} s of CPU, {time.perf_counter() - begun:.1f} s, peak"
                f" {peak_mb():.0f} MB",
                flush=True,
            )
        megabytes = columns_mb(folder)
        print(
            f"{said}: {total:.1f} s of CPU without making the rows, {megabytes:,.0f} MB of columns,"
            f" peak {peak_mb():.0f} MB"
        )
    for name in schemas.config_names(DIMS, DIMS):
        with tempfile.TemporaryDirectory() as tmp:
            n = max(pairs // 10, 1)
            seconds = build(n, 2, words, release_of([name]), Path(tmp) / "dataset")
            megabytes = columns_mb(Path(tmp) / "dataset")
            print(
                f"{name:<20} {megabytes / seconds:6.0f} MB/s of CPU ({n:,} prompts,"
                f" {megabytes:,.0f} MB)",
                flush=True,
            )


def checked_by(faults: list[str]) -> None:
    """Stops where the lint has something to say."""
    assert not faults, faults


def build(n: int, answers: int, words: int, release: Release, out: Path) -> float:
    """CPU seconds of writing the folder, without those of making the rows."""
    start = CLOCK()
    write_dataset(lambda: make(n, answers, words), release, out)
    seconds = CLOCK() - start
    start = CLOCK()
    for _ in make(n, answers, words):
        pass
    return seconds - (CLOCK() - start)


def figures(scale: Scale) -> Iterator[Figure]:
    """CPU seconds of the dataset folder beside pyarrow alone."""
    n = 1_000 if scale.quick else 5_000
    command = (
        sys.executable,
        "-m",
        "benchmarks.publish",
        "--prompts",
        str(n),
        "--floor-prompts",
        str(n),
    )
    said = checked(run(command), "publish").out
    found = re.search(r"pyarrow alone ([\d.]+) s, this ([\d.]+) s, ratio ([\d.]+)", said)
    assert found, said
    yield Figure(
        f"dataset folder, {n:,} prompts x 16 answers, CPU s",
        "-",
        found[2],
        f"{found[1]} pyarrow alone",
        float(found[3]),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--prompts", type=int, default=0, help="100,000, with --million 1,000,000")
    parser.add_argument("--answers", type=int, default=16)
    parser.add_argument("--words", type=int, default=60)
    parser.add_argument("--configs", default="all", help="all, or names separated by commas")
    parser.add_argument("--floor-prompts", type=int, default=5_000)
    parser.add_argument(
        "--million",
        action="store_true",
        help="preference alone, 1,000,000 pairs where --prompts is not given",
    )
    args = parser.parse_args()
    if args.million:
        million(args.prompts or 1_000_000, args.words)
        return
    args.prompts = args.prompts or 100_000
    release = release_of("all" if args.configs == "all" else args.configs.split(","))
    with tempfile.TemporaryDirectory() as tmp:
        begun = time.perf_counter()
        seconds = build(args.prompts, args.answers, args.words, release, Path(tmp) / "dataset")
        wall = time.perf_counter() - begun
        disk = sum(f.stat().st_size for f in Path(tmp).glob("dataset/*/*.parquet")) / 1e6
        megabytes = columns_mb(Path(tmp) / "dataset")
        print(
            f"{args.prompts:,} prompts x {args.answers} answers x {len(DIMS)} dimensions, configs"
            f" {args.configs}: {seconds:.1f} s of CPU ({wall:.1f} s in all), {megabytes:,.0f} MB of"
            f" columns ({disk:,.0f} MB on disk), {megabytes / seconds:.0f} MB/s, peak"
            f" {peak_mb():.0f} MB"
        )
        small = min(args.floor_prompts, args.prompts)
        ours = (
            seconds
            if small == args.prompts
            else build(small, args.answers, args.words, release, Path(tmp) / "small")
        )
        folder = Path(tmp) / ("dataset" if small == args.prompts else "small")
        bare = floor(folder, Path(tmp))
        print(
            f"floor, {small:,} prompts: pyarrow alone {bare:.2f} s, this {ours:.2f} s, "
            f"ratio {ours / bare:.2f} (pyarrow {pa.__version__})"
        )


if __name__ == "__main__":
    main()
