"""`mora-data weights`: weights of the dimensions that take a run's answers to target rewards (MAP's
dual, METHOD section 2).

found = weights_of(Path("runs/demo"), {"helpful": 0.7})        found["weights"], found["feasible"],
found["ess"]
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import RunFolderError, SettingsError
from ..run.folder import parts_of
from ..statistics import weights
from ..statistics.dual import LEAST_ESS
from .document import settings_of
from .numbers import number
from .read import blocks

MOST_PROMPTS = 20_000  # the dual's solution is settled long before


def weights_of(
    run_dir: Path, target: Mapping[str, float], arm: str | None = None
) -> dict[str, Any]:
    """Weights per dimension whose softmax over a prompt's answers has the target as mean reward.

    Dimensions without a target get none. `arm`: fused where the run has it, else its last arm.

    Raises:
        SettingsError: a target that is no dimension or outside [0, 1], or an arm that the run
            lacks.
        RunFolderError: not a run folder, no scored answers, or weights that rest on fewer than four
            answers a prompt.
    """
    dims = settings_of(run_dir)["dimensions"]
    for d, v in target.items():
        if d not in dims:
            raise SettingsError(
                f"--target {d}={v:g}: the run has no dimension {d!r}, only {', '.join(dims)}"
            )
        if not 0 <= v <= 1:
            raise SettingsError(f"--target {d}={v:g}: rewards lie in [0, 1]")
    used = [d for d in dims if d in target]
    arm, rewards = _rewards(run_dir, dims, arm)
    try:
        found = weights(
            rewards[..., [dims.index(d) for d in used]], np.array([target[d] for d in used])
        )
    except ValueError as e:
        raise RunFolderError(f"{run_dir}: {e}") from e
    if not found.trusted:
        raise RunFolderError(
            f"the target rests on {found.ess:.1f} of {rewards.shape[1]} answers a prompt, fewer"
            f" than {LEAST_ESS:g}: lower it"
            f" ({', '.join(f'{d}={v:.2f}' for d, v in zip(used, found.reached_D, strict=True))} is"
            " where it led), or sample more (rollout.n)"
        )

    def by(values: Any) -> dict[str, float | None]:
        return {d: number(v) for d, v in zip(used, values, strict=True)}

    mean = np.nanmean(rewards[..., [dims.index(d) for d in used]], axis=(0, 1))
    return {
        "run_dir": str(run_dir),
        "arm": arm,
        "prompts": found.n,
        "target": by([target[d] for d in used]),
        "mean": by(mean),
        "feasible": found.feasible,
        "weights": by(found.weights_D),
        "reached": by(found.reached_D),
        "nearest_feasible": by(found.nearest_D),
        "ess": number(found.ess),
        "answers": rewards.shape[1],
    }


def lines(found: Mapping[str, Any]) -> list[str]:
    """`weights_of` as text."""
    head = f"{'dimension':<14} {'target':>8} {'now':>8} {'reached':>8} {'nearest':>8} {'weight':>9}"
    rows = [
        f"{d:<14} {found['target'][d]:>8.3f} {found['mean'][d]:>8.3f} {found['reached'][d]:>8.3f} "
        f"{found['nearest_feasible'][d]:>8.3f} {w:>9.3f}"
        for d, w in found["weights"].items()
    ]
    said = (
        "feasible"
        if found["feasible"]
        else (
            "not feasible by re-weighting these answers; the weights are those of the nearest"
            " feasible point"
        )
    )
    return [
        head,
        *rows,
        (
            f"{said}   arm {found['arm']}, {found['prompts']} prompts, effective answers"
            f" {found['ess']:.1f} of {found['answers']}"
        ),
    ]


def _rewards(run_dir: Path, dims: list[str], arm: str | None) -> tuple[str, Any]:
    """rewards_P_N_D of one arm, the first prompts of the run."""
    parts = [p for p in parts_of(run_dir) if p.manifest() is not None]
    kept: list[Any] = []
    for block in blocks(parts, dims, split=False):
        name = arm or ("fused" if "fused" in block.arms else next(reversed(block.arms), None))
        if name is None or name not in block.arms:
            if arm:
                raise SettingsError(
                    f"--arm {arm}: the run has only {', '.join(block.arms) or 'no arm'}"
                )
            continue
        arm = name
        kept.append(block.arms[name].rewards_P_N_D)
        if sum(len(k) for k in kept) >= MOST_PROMPTS:
            break
    if not kept:
        raise RunFolderError(
            f"{run_dir} holds no scored answers: run its `mora-data build` with --until score or"
            " later"
        )
    wide = max(k.shape[1] for k in kept)
    padded = [
        np.pad(k, ((0, 0), (0, wide - k.shape[1]), (0, 0)), constant_values=np.nan) for k in kept
    ]
    return str(arm), np.concatenate(padded)[:MOST_PROMPTS]
