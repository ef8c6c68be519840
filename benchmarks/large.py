"""Select, publish and report on a run of millions of rollouts: CPU, memory, and how both grow,
beside a bare scan.

    python -m benchmarks.large [--prompts 20000,200000] [--arms fused] [--presamples 0] [--steps
    floor,select,publish,report] python -m benchmarks.large --prompts 2000000          32 million
    rollouts, 96 million scores; 3 GB of disk

Sealed partitions are made as a build leaves them (the same tables, columns and row groups), column
by column: `--arms` with 16 answers each, `--presamples` answers to the bare prompt, three
dimensions, short texts, three candidate pairs for most prompts. Each step is a process of its own.
The floor reads the columns that `select` and `report` need with pyarrow and drops them.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, checked, environment, run
from benchmarks.partitions import DIMS, ORIGIN

STEPS = ("floor", "select", "publish", "report")


def step_floor(run_dir: Path) -> dict[str, Any]:
    """The same columns, read and dropped."""
    from mora_data.run.folder import parts_of
    from mora_data.run.partitions import lean_arrow

    lean_arrow()
    numbers = [f"{what}_{d}" for what in ("reward", "level", "doubt") for d in DIMS]
    wanted = {
        "rollouts": [
            "prompt_id",
            "arm",
            "index",
            "finish_reason",
            "flags",
            "error",
            "length",
            "tokens_out",
            *numbers,
        ],
        "scores": ["prompt_id", "arm", "index", "purpose", "dimension", "value"],
        "arms": None,
        "pairs": None,
        "profiles": None,
        "fusions": None,
    }
    rows = 0
    for part in parts_of(run_dir):
        part.prompts()
        rows += sum(part.table(name, columns).num_rows for name, columns in wanted.items())
    return {"rows": rows}


def step_select(run_dir: Path) -> dict[str, Any]:
    """Selection alone."""
    from mora_data.run.folder import parts_of
    from mora_data.selection.select import select
    from mora_data.settings import load_settings

    found = select(parts_of(run_dir), load_settings(str(run_dir / "build.yaml"), {}))
    return {
        "pairs": found.n_pairs,
        "counts": {f"{a}.{b}": n for (a, b), n in sorted(found.counts.items())},
    }


def step_publish(run_dir: Path) -> dict[str, Any]:
    """Selection, then the dataset folder with `preference`, as in a build."""
    from mora_data.dataset.configs import Release
    from mora_data.dataset.folder import write_dataset
    from mora_data.run.folder import manifest_of, parts_of
    from mora_data.selection.select import select, selected
    from mora_data.settings import load_settings

    settings, parts = load_settings(str(run_dir / "build.yaml"), {}), parts_of(run_dir)
    selection = select(parts, settings)
    selected_by = {"select_cpu_s": round(time.process_time(), 1), "select_rss_mb": _rss_mb()}
    release = Release(
        settings,
        ORIGIN,
        manifest_of(run_dir),
        dict.fromkeys(DIMS, 0.75),
        lambda table, target, aligned: table.pairs,
        True,
    )
    dataset = run_dir / "dataset"
    result = write_dataset(lambda: selected(parts, selection, settings), release, dataset)
    return {
        **selected_by,
        "rows": result.counts,
        "mb": round(sum(f.stat().st_size for f in dataset.glob("*/*.parquet")) / 1e6),
        "fingerprint": result.fingerprint,
    }


def _rss_mb() -> int:
    """The most this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def step_report(run_dir: Path) -> dict[str, Any]:
    """report.json and report.html; what the partitions alone take is told apart."""
    from mora_data.report.document import arms_report, finish_report
    from mora_data.report.page import write_report

    arms = arms_report(run_dir)
    arms_by = {"arms_cpu_s": round(time.process_time(), 1), "arms_rss_mb": _rss_mb()}
    report = finish_report(arms, run_dir)
    write_report(run_dir, report)
    return {**arms_by, "verdict": report["verdict"], "pairs": report["pairs"]["n"]}


CHILDREN: dict[str, Callable[[Path], dict[str, Any]]] = {
    "floor": step_floor,
    "select": step_select,
    "publish": step_publish,
    "report": step_report,
}


def measured(run_dir: Path, n: int, steps: list[str], before: dict[str, float]) -> dict[str, float]:
    """Runs the steps, a process each, and prints a line for each; returns their CPU seconds."""
    cpu: dict[str, float] = {}
    for step in steps:
        command = (sys.executable, "-m", "benchmarks.large", "--child", step, str(run_dir))
        done = checked(
            run(command, env={"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}, limit_s=36_000),
            step,
        )
        cpu[step] = done.cpu_s
        said = [
            f"{step:<8} {n:>9,} prompts  {done.cpu_s:8.1f} s of CPU  {done.wall_s:8.1f} s  peak"
            f" {done.peak_mb:6.0f} MB"
        ]
        if "floor" in cpu and step != "floor":
            said.append(f"{done.cpu_s / cpu['floor']:.2f} x floor")
        if step in before:
            said.append(f"x{done.cpu_s / before[step]:.1f} CPU of the one before")
        print("  ".join(said), json.dumps(json.loads(done.out))[:200], flush=True)
    return cpu


def main() -> None:
    """Prints a line per size and step."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", default="20000,200000", help="sizes, by commas")
    parser.add_argument("--arms", default="fused")
    parser.add_argument("--presamples", type=int, default=0)
    parser.add_argument("--steps", default=",".join(STEPS))
    parser.add_argument(
        "--in",
        dest="folder",
        type=Path,
        help="keep the run folders here, and use those that are there",
    )
    parser.add_argument("--child", nargs=2, metavar=("STEP", "RUN_DIR"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(CHILDREN[args.child[0]](Path(args.child[1]))))
        return
    root = args.folder or Path(tempfile.mkdtemp())
    before: dict[str, float] = {}
    try:
        for n in map(int, args.prompts.split(",")):
            run_dir = root / f"run-{n}"
            if not (run_dir / "parts").exists():
                subprocess.run(
                    [
                        sys.executable,
                        "-c",
                        (
                            "import sys, pathlib; from benchmarks.partitions import make;"
                            " make(pathlib.Path(sys.argv[1]), int(sys.argv[2]),"
                            " sys.argv[3].split(','), int(sys.argv[4]))"
                        ),
                        str(run_dir),
                        str(n),
                        args.arms,
                        str(args.presamples),
                    ],
                    check=True,
                    cwd=ROOT,
                    env=environment(),
                )
            before = measured(run_dir, n, args.steps.split(","), before)
    finally:
        if args.folder is None:
            shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
