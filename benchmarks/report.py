"""CPU and memory of `mora-data report` on 40,000 prompts in five arms, beside its goals (90 s, 1.5
GB), and of comparing two.

    python -m benchmarks.report [--prompts 40000]

A build of some 500 simulated prompts is made once; its partition and its pairs then stand in a run
folder as often as needed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ARMS = "[identity, single, generic, random, fused]"


def made(root: Path) -> Path:
    """A small build with all arms."""
    out = root / "small"
    command = [
        sys.executable,
        "-m",
        "mora_data",
        "build",
        "--source",
        "pku-saferlhf",
        "--sample",
        "--out",
        str(out),
        "--set",
        f"fuse.arms={ARMS}",
        "--set",
        "scripted.n_prompts=400",
        "--json",
    ]
    subprocess.run(command, check=True, capture_output=True)
    return out


def copied(small: Path, big: Path, n_prompts: int) -> int:
    """`small` repeated until it has `n_prompts`; returns how many it has."""
    mined = json.loads((small / "mine.json").read_text())
    copies = -(-n_prompts // mined["kept"])
    for name in ("manifest.json", "build.yaml", "reference.json"):
        (big / "parts").mkdir(parents=True, exist_ok=True)
        shutil.copy(small / name, big)
    (big / "mine.json").write_text(json.dumps({**mined, "n_parts": copies}))
    (big / "dataset/preference").mkdir(parents=True)
    for i in range(copies):
        (big / f"parts/{i:05d}").symlink_to(small / "parts/00000")
        for f in sorted((small / "dataset/preference").iterdir()):
            (big / f"dataset/preference/{f.name.split('-')[0]}-{i:05d}.parquet").symlink_to(f)
    return copies * int(mined["kept"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=40_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        small, big = made(Path(root)), Path(root) / "big"
        n = copied(small, big, args.prompts)
        cpu, peak = measured(["report", str(big)])
        html = (big / "report.html").stat().st_size
        compare_cpu, compare_peak = measured(
            ["report", "--compare", str(big), str(big), "--out", root]
        )
        print(
            json.dumps(
                {
                    "prompts": n,
                    "arms": 5,
                    "cpu_s": cpu,
                    "goal_s": 90,
                    "peak_gb": peak,
                    "goal_gb": 1.5,
                    "html_mb": round(html / 1e6, 2),
                    "goal_mb": 3,
                    "compare_cpu_s": compare_cpu,
                    "compare_peak_gb": compare_peak,
                }
            )
        )


def measured(words: list[str]) -> tuple[float, float]:
    """CPU seconds of a command, and the largest peak of the commands so far in GB."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-m", "mora_data", *words], check=True, capture_output=True, env=env
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return round(cpu, 1), round(after.ru_maxrss / 1024**2, 2)


if __name__ == "__main__":
    main()
