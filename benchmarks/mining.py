"""Mining speed and memory: synthetic HH rows through read, parse, normalise, filter and dedup, in
one pass.

    python -m benchmarks.mining [--rows 100000] [--plain]
    python -m benchmarks.mining --million      1,000,000 prompts beside 100,000: repeats,
    near-duplicates and decontamination

Rows are written to a .jsonl.gz (--plain: .jsonl) in a temporary folder and streamed from there. The
floor reads the same file with orjson.loads and str.split only. Each run is a process of its own, on
one core, with its own peak memory.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal

import orjson

from benchmarks.common import ROOT, Figure, Scale

TEXT = (
    "how do I keep a small garden alive in a dry summer when water is short and the soil is poor"
    " it's fine to ask the neighbour about compost or read a book from the library cafe bikes loans"
    " letters paint roof tools"
)
WORDS = TEXT.split()
GOAL_ROWS_PER_S = 20_000
N_MINHASH, GOAL_MINHASH_S = 200_000, 60.0


def transcript(rng: random.Random, n_turns: int) -> str:
    """Human and Assistant by turns, `n_turns` each; the last reply is left to the caller."""
    said = []
    for turn in range(2 * n_turns - 1):
        name = "Assistant" if turn % 2 else "Human"
        # one turn in five of the real rows is not ASCII
        curly = "It’s odd: " if rng.random() < 0.2 else ""
        said.append(f"\n\n{name}: {curly}{' '.join(rng.choices(WORDS, k=rng.randint(8, 45)))}?")
    return "".join(said)


def synthetic(n: int) -> Iterator[bytes]:
    """HH rows of about the length of real ones: one in twenty is repeated, one in fifty has a
    defect."""
    rng = random.Random(0)
    context = ""
    for i in range(n):
        if i % 20 or not context:
            context = transcript(rng, rng.randint(1, 4))
        replies = [" ".join(rng.choices(WORDS, k=rng.randint(5, 60))) + "." for _ in range(2)]
        other = context + "…" if i % 50 == 7 else context
        yield (
            orjson.dumps(
                {
                    "chosen": f"{context}\n\nAssistant: {replies[0]}",
                    "rejected": f"{other}\n\nAssistant: {replies[1]}",
                }
            )
            + b"\n"
        )


def opened(path: Path, mode: Literal["rb", "wb"]) -> IO[bytes]:
    """The file, through gzip where its name says so."""
    return gzip.open(path, mode) if path.suffix == ".gz" else path.open(mode)


def write(path: Path, n: int) -> None:
    """The rows as a file."""
    with opened(path, "wb") as out:
        out.writelines(synthetic(n))


def mined(path: Path, source: dict[str, object], near: float | None) -> dict[str, object]:
    """One pass of the real thing, exact repeats alone unless `near` is given."""
    from mora_data.settings import build_settings
    from mora_data.sources.mine import MineCounts, mine, open_source

    settings = build_settings(
        {"name": "bench", "source": source, "mine": {"near_duplicates": near}}
    )
    counts = MineCounts()
    for _ in mine(open_source(settings, sample=False, data=[path]), settings, counts):
        pass
    return counts.as_dict()


def run_mine(path: Path, near: float | None = None) -> dict[str, object]:
    """Rows of HH-RLHF."""
    return mined(path, {"kind": "hh-rlhf"}, near)


def run_near(path: Path) -> dict[str, object]:
    """The same with near-duplicates, as in builders/hh-rlhf.yaml."""
    return run_mine(path, 0.8)


def run_minhash(path: Path) -> dict[str, object]:
    """Near-duplicates alone: 200,000 single-turn prompts of 8 to 45 words, one in ten a
    near-duplicate; `path` is not read."""
    from mora_data.sources.near import NearDuplicates

    rng, near, seen = random.Random(0), NearDuplicates(), 0
    vocabulary = [f"{w}{i}" for w in WORDS for i in range(60)]
    text = ""
    start = time.process_time()
    making = 0.0
    for i in range(N_MINHASH):
        begun = time.process_time()
        text = (
            f"{text} please"
            if i % 10 == 9
            else " ".join(rng.choices(vocabulary, k=rng.randint(8, 45)))
        )
        making += time.process_time() - begun
        seen += near.seen(text)
    return {
        "in": N_MINHASH,
        "near_duplicates": seen,
        "dedup_s": time.process_time() - start - making,
    }


def write_prompts(path: Path, n: int) -> None:
    """`n` rows of the jsonl source, 14 to 34 made-up words; one in twenty is repeated, one in ten
    nearly so."""
    import numpy as np

    from benchmarks.partitions import sentences

    with path.open("wb") as out:
        for at in range(0, n, 10_000):
            rng = np.random.default_rng(at)
            texts = [
                a + b
                for a, b in zip(
                    sentences(rng, 10_000, 14),
                    (f" {t}" * (i % 2) for i, t in enumerate(sentences(rng, 10_000, 20))),
                    strict=True,
                )
            ]
            for i in range(1, len(texts)):
                texts[i] = (
                    texts[i - 1]
                    if i % 20 == 7
                    else f"{texts[i - 1]} please"
                    if i % 10 == 4
                    else texts[i]
                )
            out.writelines(orjson.dumps({"prompt": t}) + b"\n" for t in texts)
    (path.parent / "bench.jsonl").write_bytes(
        b"".join(
            orjson.dumps({"prompt": t}) + b"\n"
            for t in sentences(np.random.default_rng(10**9), 5_000, 20)
        )
    )


def run_prompts(path: Path, near: float | None = None) -> dict[str, object]:
    """Exact repeats and decontamination against 5,000 prompts of another set."""
    return mined(
        path,
        {"kind": "jsonl", "decontaminate_from": {"bench": str(path.parent / "bench.jsonl")}},
        near,
    )


def run_prompts_near(path: Path) -> dict[str, object]:
    """The same, and near-duplicates."""
    return run_prompts(path, 0.8)


SIDES = {
    "prompts": run_prompts,
    "prompts_near": run_prompts_near,
    "mine": run_mine,
    "near": run_near,
    "minhash": run_minhash,
}


def run_floor(path: Path) -> dict[str, object]:
    """Reading alone."""
    n = 0
    with opened(path, "rb") as stream:
        for line in stream:
            row = orjson.loads(line)
            row["chosen"].split(), row["rejected"].split()
            n += 1
    return {"in": n}


def run_floor_prompts(path: Path) -> dict[str, object]:
    """Reading the prompts alone."""
    with path.open("rb") as stream:
        return {"in": sum(len(orjson.loads(line)["prompt"].split()) > 0 for line in stream)}


def timed(what: str, path: Path) -> dict[str, float]:
    """`what` in a fresh process: seconds of wall and CPU time, peak MB, rows."""
    command = [sys.executable, "-m", "benchmarks.mining", "--child", what, str(path)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def child(what: str, path: Path) -> None:
    """Runs one side and prints its figures."""
    side = {**SIDES, "floor_prompts": run_floor_prompts}.get(what, run_floor)
    before_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start, cpu = time.perf_counter(), time.process_time()
    counts = side(path)
    seconds, cpu_s = time.perf_counter() - start, time.process_time() - cpu
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        json.dumps(
            {
                **counts,
                "seconds": seconds,
                "cpu_s": cpu_s,
                "peak_mb": peak_mb,
                "before_mb": before_mb,
            }
        )
    )


def figures(scale: Scale) -> Iterator[Figure]:
    """Rows a second and memory, 100,000 rows beside 10,000."""
    rows = 40_000 if scale.quick else 100_000
    with tempfile.TemporaryDirectory() as folder:
        small, large = (Path(folder) / f"rows-{n}.jsonl.gz" for n in (rows // 10, rows))
        write(small, rows // 10)
        write(large, rows)
        fewer, mined, floor = timed("mine", small), timed("mine", large), timed("floor", large)
        near, minhash = timed("near", large), timed("minhash", large)
    ours, bare = (side["in"] / side["cpu_s"] for side in (mined, floor))
    yield Figure(
        f"mining {rows:,} HH rows (.gz), rows/s of CPU",
        f">= {GOAL_ROWS_PER_S:,}",
        f"{ours:,.0f}",
        f"{bare:,.0f} orjson and split",
        ours / bare,
        ours >= GOAL_ROWS_PER_S,
    )
    growth = (mined["peak_mb"] - fewer["peak_mb"]) * 2**20 / (mined["in"] - fewer["in"])
    yield Figure(
        "same, peak RSS MB",
        "flat but for the dedup hashes, <= 200 B a row",
        f"{mined['peak_mb']:.0f} ({growth:.0f} B a row)",
        f"{fewer['peak_mb']:.0f} at {rows // 10:,} rows",
        mined["peak_mb"] / fewer["peak_mb"],
        growth <= 200,
    )
    yield Figure(
        "same with near-duplicates, rows/s of CPU",
        "-",
        f"{near['in'] / near['cpu_s']:,.0f}, {near['peak_mb']:.0f} MB",
        f"{ours:,.0f} without",
        ours * near["cpu_s"] / near["in"],
    )
    each = (minhash["peak_mb"] - minhash["before_mb"]) * 2**20 / minhash["in"]
    yield Figure(
        f"near-duplicates of {N_MINHASH:,} prompts, CPU s",
        f"<= {GOAL_MINHASH_S:.0f}",
        f"{minhash['dedup_s']:.1f}, {minhash['peak_mb']:.0f} MB ({each:.0f} B a prompt)",
        met=minhash["dedup_s"] <= GOAL_MINHASH_S,
    )


def million(rows: int) -> None:
    """`rows` prompts beside a tenth of them: CPU and memory, and what each kept prompt costs."""
    with tempfile.TemporaryDirectory() as folder:
        for side in ("floor_prompts", "prompts", "prompts_near"):
            before: dict[str, float] = {}
            for n in (rows // 10, rows):
                path = Path(folder) / f"prompts-{n}.jsonl"
                if not path.exists():  # elsewhere: a child's peak is at least its parent's
                    subprocess.run(
                        [
                            sys.executable,
                            "-c",
                            (
                                "import sys; from pathlib import Path; from benchmarks.mining"
                                " import write_prompts; write_prompts(Path(sys.argv[1]),"
                                " int(sys.argv[2]))"
                            ),
                            str(path),
                            str(n),
                        ],
                        check=True,
                        cwd=ROOT,
                    )
                got = timed(side, path)
                said = (
                    f"{side:<14} {n:>9,} rows  {got['cpu_s']:7.1f} s of CPU  peak"
                    f" {got['peak_mb']:5.0f} MB"
                )
                if before and "kept" in got:
                    each = (
                        (got["peak_mb"] - before["peak_mb"])
                        * 2**20
                        / (got["kept"] - before["kept"])
                    )
                    said += (
                        f"  x{got['cpu_s'] / before['cpu_s']:.1f} CPU, {each:.0f} B a prompt kept,"
                        f" {got['dropped']}"
                    )
                print(said, flush=True)
                before = got


def main() -> None:
    """Prints the figures; exits 1 below the goal."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--plain", action="store_true", help="no gzip")
    parser.add_argument("--million", action="store_true", help="1,000,000 prompts beside 100,000")
    parser.add_argument("--child", nargs=2, metavar=("SIDE", "PATH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args.child[0], Path(args.child[1]))
    if args.million:
        return million(1_000_000 if args.rows == 100_000 else args.rows)
    with tempfile.TemporaryDirectory() as folder:
        paths = [
            Path(folder) / f"rows-{n}.jsonl{'' if args.plain else '.gz'}"
            for n in (args.rows // 10, args.rows)
        ]
        for path, n in zip(paths, (args.rows // 10, args.rows), strict=True):
            write(path, n)
        small, mined = (timed("mine", path) for path in paths)
        floor = timed("floor", paths[1])
    print(
        f"mining {mined['in']:,} HH rows from {paths[1].name}: kept {mined['kept']:,}, dropped"
        f" {mined['dropped']}"
    )
    for name, one in (("mine", mined), ("floor", floor)):
        wall, cpu = one["in"] / one["seconds"], one["in"] / one["cpu_s"]
        print(f"  {name:5} {wall:>9,.0f} rows/s {cpu:>9,.0f} rows/s of CPU time")
    ratio = mined["cpu_s"] / floor["cpu_s"]
    print(f"  ratio {ratio:.2f} x the floor's CPU time (goal {GOAL_ROWS_PER_S:,} rows/s)")
    print(
        f"  peak memory {small['peak_mb']:.0f} MB at {small['in']:,} rows, "
        f"{mined['peak_mb']:.0f} MB at {mined['in']:,}"
    )
    if mined["in"] / mined["cpu_s"] < GOAL_ROWS_PER_S:
        sys.exit(1)


if __name__ == "__main__":
    main()
