"""Every figure of speed and size, beside its goal and a floor measured in the same run, as one
Markdown table.

    python -m benchmarks.run [--only start,demo] [--quick] [--long] [--huge]

Exits 0 whether or not the goals are met: the table says so.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
import time

from benchmarks.common import HEAD, Scale

BENCHMARKS = (
    "start",
    "install",
    "demo",
    "mining",
    "selection",
    "calibration",
    "publish",
    "inprocess",
    "endpoint",
    "kills",
    "evaluate",
    "recipes",
    "ray",
)


def main() -> int:
    """Runs the benchmarks, prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", default=",".join(BENCHMARKS), metavar="A,B", help=f"of {', '.join(BENCHMARKS)}"
    )
    parser.add_argument(
        "--quick", action="store_true", help="smaller jobs, one run each: under two minutes"
    )
    parser.add_argument(
        "--long",
        action="store_true",
        help="adds the endpoint job at 10,000 and 30,000 prompts (minutes)",
    )
    parser.add_argument(
        "--huge",
        action="store_true",
        help="adds it at 100,000 prompts, 1.6 million requests (an hour)",
    )
    args = parser.parse_args()
    names = args.only.split(",")
    if unknown := [n for n in names if n not in BENCHMARKS]:
        parser.error(f"no benchmark {', '.join(unknown)}: there are {', '.join(BENCHMARKS)}")
    scale = Scale(args.quick, args.long, args.huge)
    begun, failed = time.monotonic(), 0
    print(
        f"{os.cpu_count()} cores, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}"
        f" at the start{', --quick' if args.quick else ''}\n\n{HEAD}",
        flush=True,
    )
    for name in names:
        try:
            for figure in importlib.import_module(f"benchmarks.{name}").figures(scale):
                print(figure.row(), flush=True)
        except (RuntimeError, OSError, AssertionError) as e:
            failed += 1
            print(
                f"| {name} | | failed: {' '.join(str(e).split())[:200]} | | | **no** |", flush=True
            )
    print(f"\n{time.monotonic() - begun:.0f} s, load {os.getloadavg()[0]:.1f} at the end")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
