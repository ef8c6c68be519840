"""Shows what a run made: `python -m mora_data.cli.demo RUN_DIR` prints counts, one pair side by
side, and how to load it."""

from __future__ import annotations

import sys
import textwrap
from itertools import zip_longest
from pathlib import Path
from typing import Any

from .tables import status, table

WIDTH = 54


def main(run_dir: Path) -> None:
    """Print the run's counts, its best pair and the lines that load it."""
    print(table(status(run_dir)["counts"]))
    row = best_pair(run_dir / "dataset")
    if row is not None:
        print(
            f"\nthe pair with the largest margin (arm {row['arm']}, kind {row['kind']}, carried"
            f" {row['carried_dim']}, added {', '.join(row['target_dims'] or []) or '-'})\n"
        )
        print(textwrap.fill("prompt: " + row["prompt"][-1]["content"], 2 * WIDTH + 3), "\n")
        print(side_by_side(row))
    print(
        "\nload it:\n\n    from datasets import load_dataset\n"
        f'    pairs = load_dataset({str(run_dir / "dataset")!r}, split="train")\n'
        '    print(pairs[0]["prompt"], pairs[0]["chosen"], pairs[0]["rejected"])'
    )


def best_pair(dataset: Path) -> dict[str, Any] | None:
    """The row of `preference` with the largest total margin; None when there is none."""
    import pyarrow.parquet as pq

    rows = [
        r
        for path in sorted(dataset.glob("preference/*.parquet"))
        for r in pq.read_table(path).to_pylist()
    ]
    return max(rows, key=lambda r: (r["margin_total"], r["prompt_id"]), default=None)


def side_by_side(row: dict[str, Any]) -> str:
    """Chosen and rejected in two columns, scores on top."""
    dims = row["dims"]
    heads = [
        f"{side.upper()}  " + "  ".join(f"{d} {row[f'{side}_reward_{d}']:.2f}" for d in dims)
        for side in ("chosen", "rejected")
    ]
    columns = [
        [*textwrap.wrap(head, WIDTH), "-" * WIDTH, *textwrap.wrap(row[side][-1]["content"], WIDTH)]
        for head, side in zip(heads, ("chosen", "rejected"), strict=True)
    ]
    return "\n".join(f"{a or '':<{WIDTH}} | {b or ''}" for a, b in zip_longest(*columns))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
