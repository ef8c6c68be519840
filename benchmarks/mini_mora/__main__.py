"""Does asking for several virtues at once make better training pairs? Everything from scratch, nothing is downloaded.

    python -m benchmarks.mini_mora --scale cpu --out runs/mini-mora             all of it; the same command goes on where it stopped
    python -m benchmarks.mini_mora --scale cpu --piece build --seeds 3          up to a piece: base, build, rates, train, test
    python -m benchmarks.mini_mora --scale gpu --calibrate                      two minutes: how long would it take here?

Written to OUT: steps/ (one file per finished step), results.json, table.md. The page is README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

PIECES = ("base", "build", "rates", "train", "test", "skills", "portions", "sequences", "table")


def main(argv: Sequence[str] | None = None) -> int:
    """Run; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mini_mora", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--scale", choices=("toy", "cpu", "gpu"), default="cpu")
    parser.add_argument("--out", type=Path, help="folder of the experiment (default runs/mini-mora-SCALE)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of answers, selection and training (default 3)")
    parser.add_argument("--piece", choices=PIECES, default="table", help="go as far as this piece (default: all)")
    parser.add_argument("--calibrate", action="store_true", help="measure speeds and predict the time of every piece")
    args = parser.parse_args(argv)
    if args.scale != "gpu":
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from .scale import SCALES

    scale, out = SCALES[args.scale], (args.out or Path("runs") / f"mini-mora-{args.scale}").absolute()
    if args.calibrate:
        return calibrate(scale, args.seeds, out)
    from . import lab as labs
    from . import more, page

    lab = labs.Lab(out, scale, args.seeds)
    q = scale.skills[0]
    if args.piece == "base":
        labs.base(lab, q)
    elif args.piece == "build":
        for seed in range(args.seeds):
            labs.built(lab, q, seed)
    elif args.piece == "rates":
        labs.rates(lab)
    elif args.piece == "train":
        for make in labs.main_methods(lab, q).values():
            for seed in range(args.seeds):
                make(seed)
    elif args.piece == "test":
        labs.table(lab)
    elif args.piece in ("skills", "portions", "sequences"):
        print(json.dumps(getattr(more, args.piece)(lab), indent=1))
    else:
        found = labs.table(lab)
        if scale.name == "gpu":
            found |= {"P3": more.skills(lab), "P5": more.portions(lab), "P6": more.sequences(lab)}
        page.write(found, out)
        print((out / "table.md").read_text("utf-8"))
    return 0


def calibrate(scale: object, seeds: int, out: Path) -> int:
    """Print the predicted seconds of every piece."""
    from .calibrate import forecast, measure
    from .scale import Scale

    assert isinstance(scale, Scale)
    speed = measure(scale, out / "calibration")
    found = list(forecast(scale, seeds, speed))
    print(f"a step of the base policy {speed.base_step:.3f} s, an answer {1000 * speed.answer:.1f} ms, "
          f"a step of DPO {speed.dpo_step:.3f} s")
    for name, seconds in found:
        print(f"{seconds:8.0f} s  {name}")
    print(f"{sum(s for _, s in found):8.0f} s  in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
