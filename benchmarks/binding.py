"""Which dimensions should bind? What each rule leaves of every arm, from a finished run folder.

    python -m benchmarks.binding runs/arms

`wanted` binds what the prompt asks for: the carried dimension and the targets. `targets` binds the
targets alone. `varying` binds those of the wanted ones in which the prompt's usable answers differ
by the least margin at all; where none does there is no pair. `any` binds nothing: some margin is
above its noise and none is negative. One line an arm and rule: prompts, share with a pair, mean
total margin of the pairs, binding dimensions a pair, share whose fresh margins confirm it (pairs
that were scored again only).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mora_data.rewards.judge_stats import JudgeStats
from mora_data.run.folder import parts_of
from mora_data.run.table import ScoredTable, scored_tables
from mora_data.selection.batch import Batch, batch_of, dominance_hv, top_pairs
from mora_data.settings import BuildSettings, load_settings
from mora_data.statistics import Bools, Floats

LEAST = 1e-9


def batches(run: Path, settings: BuildSettings, arm: str) -> Iterator[tuple[ScoredTable, Batch]]:
    """An arm's prompts of each partition, under the build's own rules."""
    stats = JudgeStats.from_json(json.loads((run / "reference.json").read_text()))
    steps = dict.fromkeys(settings.dimensions, 0.25)
    for part in parts_of(run):
        for table in scored_tables(part, settings.dimensions, [arm], texts=False):
            index, there = table.padded(slice(0, len(table)))
            rewards = np.where(there[..., None], table.rewards_R_D[index], np.nan)
            certain = (table.absolute_R_D - table.uncertainty_R_D)[index]
            yield (
                table,
                batch_of(
                    settings,
                    stats,
                    steps,
                    rewards,
                    certain,
                    table.usable_R[index] & there,
                    table.lengths_R[index].astype(float),
                    table.binding_P_D,
                ),
            )


def varying(batch: Batch) -> Bools:
    """Dimensions in which the usable answers of a prompt differ by the least margin; P x D."""
    usable = np.where(batch.usable_P_N[..., None], batch.rewards_P_N_D, np.nan)
    some = ~np.isnan(usable).all(1)
    gap = np.nanmax(np.where(np.isnan(usable), -np.inf, usable), 1) - np.nanmin(
        np.where(np.isnan(usable), np.inf, usable), 1
    )
    return some & (gap >= batch.delta_D - LEAST) & (gap > 0)


def rules_of(
    table: ScoredTable, dims: Sequence[str], batch: Batch
) -> dict[str, tuple[Bools, Bools]]:
    """Per rule what binds (P x D) and which prompts may have a pair at all (P)."""
    wanted, all_of = batch.binding_P_D, np.ones(len(table), bool)
    targets = np.array([[d in t for d in dims] for t in table.targets], bool)
    both = wanted & varying(batch)
    return {
        "wanted": (wanted, all_of),
        "targets": (targets, all_of),
        "varying": (both, both.any(1)),
        "any": (np.zeros_like(wanted), all_of),
    }


def main() -> int:
    p = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    p.add_argument("run", type=Path)
    run: Path = p.parse_args().run
    settings = load_settings(str(run / "build.yaml"))
    print("| arm | rule | prompts | with a pair | mean total margin | binding a pair |")
    print("|---|---|---:|---:|---:|---:|")
    for arm in settings.fuse.arms:
        found: dict[str, list[Floats]] = {}
        n = 0
        for table, batch in batches(run, settings, arm):
            n += len(table)
            for name, (binding, may) in rules_of(table, settings.dimensions, batch).items():
                one = replace(batch, binding_P_D=binding, _margins=[])
                picks = top_pairs(one, dominance_hv(one), 1)
                row = np.flatnonzero((picks.chosen_P_K[:, 0] >= 0) & may)
                i, j = picks.chosen_P_K[row, 0], picks.rejected_P_K[row, 0]
                margin = (batch.rewards_P_N_D[row, i] - batch.rewards_P_N_D[row, j]).sum(-1)
                found.setdefault(name, []).append(np.stack([margin, binding[row].sum(1)], 1))
        for name, parts in found.items():
            pairs = np.concatenate(parts)
            margin, binds = pairs.mean(0) if len(pairs) else (np.nan, np.nan)
            print(f"| {arm} | {name} | {n} | {len(pairs) / n:.2f} | {margin:.2f} | {binds:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
