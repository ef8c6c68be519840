"""Does asking for several virtues at once make better training pairs? Everything from scratch,
nothing is downloaded.

    python -m benchmarks.mini_mora --scale cpu --out runs/mini-mora     all of it; the same command
    goes on where it stopped python -m benchmarks.mini_mora --scale cpu --piece build-1          one
    piece, and what it needs; seeds may run side by side python -m benchmarks.mini_mora --scale gpu
    --calibrate              two minutes: how long would it take here?

Written to OUT: steps/ (one file per finished step), results.json, table.md. The page is README.md
beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# so small a model gains nothing from more; one process per seed does
os.environ.setdefault("OMP_NUM_THREADS", "1")

from . import lab as labs
from . import more, page
from .calibrate import forecast, measure
from .scale import SCALES, Scale


def main(argv: Sequence[str] | None = None) -> int:
    """Run; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mini_mora", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--scale", choices=("toy", "cpu", "gpu"), default="cpu")
    parser.add_argument(
        "--out", type=Path, help="folder of the experiment (default runs/mini-mora-SCALE)"
    )
    parser.add_argument(
        "--seeds", type=int, default=3, help="seeds of answers, selection and training (default 3)"
    )
    parser.add_argument(
        "--piece",
        default="table",
        metavar="NAME",
        help=(
            "base, build[-SEED], candidates[-0|-1], rate, train[-SEED], test[-plain|-fused],"
            " skills, portions, sequences, table"
        ),
    )
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="measure speeds and predict the time of every piece",
    )
    args = parser.parse_args(argv)
    scale, out = (
        SCALES[args.scale],
        (args.out or Path("runs") / f"mini-mora-{args.scale}").absolute(),
    )
    if args.calibrate:
        return calibrate(scale, args.seeds, out)
    lab = labs.Lab(out, scale, args.seeds)
    q, (name, _, number) = scale.skills[0], args.piece.partition("-")
    seeds = [int(number)] if number.isdecimal() else list(range(args.seeds))
    pieces: dict[str, Callable[[], object]] = {
        "base": lambda: labs.base(lab, q),
        "build": lambda: [labs.built(lab, q, s) for s in seeds],
        "candidates": lambda: [labs.candidates(lab, i) for i in seeds[:2]],
        "rate": lambda: print(labs.learning_rate(lab)),
        "train": lambda: [make(s) for make in labs.main_methods(lab, q).values() for s in seeds],
        "test": lambda: [
            labs.finals(lab, which) for which in ([number] if number else ["plain", "fused"])
        ],
        "skills": lambda: print(json.dumps(more.skills(lab), indent=1)),
        "portions": lambda: print(json.dumps(more.portions(lab), indent=1)),
        "sequences": lambda: print(json.dumps(more.sequences(lab), indent=1)),
        "table": lambda: table(lab),
    }
    if name not in pieces:
        parser.error(
            f"unknown piece {args.piece!r}: {', '.join(pieces)}; build-1 and train-1 are one seed's"
        )
    pieces[name]()
    return 0


def table(lab: labs.Lab) -> None:
    """Whatever is missing, then the tables."""
    found = labs.table(lab)
    if lab.scale.sequences:
        found |= {"P3": more.skills(lab), "P5": more.portions(lab), "P6": more.sequences(lab)}
    page.write(found, lab.out)
    print((lab.out / "table.md").read_text("utf-8"))


def calibrate(scale: Scale, seeds: int, out: Path) -> int:
    """Print the predicted seconds of every piece."""
    speed = measure(scale, out / "calibration")
    found = list(forecast(scale, seeds, speed))
    print(
        f"a step of the base policy {speed.base_step:.3f} s, an answer {1000 * speed.answer:.1f}"
        f" ms, a step of DPO {speed.dpo_step:.3f} s"
    )
    for name, seconds in found:
        print(f"{seconds:8.0f} s  {name}")
    print(f"{sum(s for _, s in found):8.0f} s  in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
