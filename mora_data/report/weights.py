"""`mora-data weights`: weights of the dimensions that take a run's answers to target rewards (MAP's
dual, per prompt: docs/method.md, "Selection").

    found = weights_of(Path("runs/demo"), {"helpful": 0.7})
    found["weights"], found["feasible"], found["ess"]
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np

from ..errors import RunFolderError, SettingsError
from ..run.folder import finished_parts
from ..statistics import Bools, Floats
from .document import settings_of
from .measure import blocks
from .values import rounded

MOST_WEIGHT = 200.0  # a larger weight tells rollouts apart that differ by less than 0.005
LEAST_ESS = 4.0
NEAR = 1e-3
MOST_PROMPTS = 20_000  # the solution is settled long before


class WeightsReport(TypedDict):
    """By dimension: target, mean reward now, weights, where they lead, the nearest feasible point.
    `ess`: effective number of `answers` a prompt."""

    run_dir: str
    arm: str
    prompts: int
    target: dict[str, float | None]
    mean: dict[str, float | None]
    feasible: bool
    weights: dict[str, float | None]
    reached: dict[str, float | None]
    nearest_feasible: dict[str, float | None]
    ess: float | None
    answers: int


def weights_of(run_dir: Path, target: Mapping[str, float], arm: str | None = None) -> WeightsReport:
    """Weights per dimension whose softmax over a prompt's answers has the target as mean reward.

    Dimensions without a target get none. `arm`: fused where the run has it, else its last arm.

    Raises:
        SettingsError: a target that is no dimension or outside [0, 1], or an arm that the run
            lacks.
        RunFolderError: not a run folder, no scored answers, or weights that rest on fewer than four
            answers a prompt.
    """
    dims = list(settings_of(run_dir)["dimensions"])
    for d, v in target.items():
        if d not in dims:
            raise SettingsError(
                f"--target {d}={v:g}: the run has no dimension {d!r}, only {', '.join(dims)}"
            )
        if not 0 <= v <= 1:
            raise SettingsError(f"--target {d}={v:g}: rewards lie in [0, 1]")
    used = [d for d in dims if d in target]
    arm, rewards = _rewards(run_dir, dims, arm)
    rewards = rewards[..., [dims.index(d) for d in used]]
    try:
        found = solve_dual(rewards, np.array([target[d] for d in used]))
    except ValueError as e:
        raise RunFolderError(f"{run_dir}: {e}") from e
    if found.ess < LEAST_ESS:
        raise RunFolderError(
            f"the target rests on {found.ess:.1f} of {rewards.shape[1]} answers a prompt, fewer"
            f" than {LEAST_ESS:g}: lower it"
            f" ({', '.join(f'{d}={v:.2f}' for d, v in zip(used, found.reached_D, strict=True))} is"
            " where it led), or sample more (rollout.n)"
        )

    def by(values: Iterable[float]) -> dict[str, float | None]:
        return {d: rounded(v) for d, v in zip(used, values, strict=True)}

    return {
        "run_dir": str(run_dir),
        "arm": arm,
        "prompts": found.n,
        "target": by([target[d] for d in used]),
        "mean": by(np.nanmean(rewards, axis=(0, 1))),
        "feasible": found.feasible,
        "weights": by(found.weights_D),
        "reached": by(found.reached_D),
        "nearest_feasible": by(found.nearest_D),
        "ess": rounded(found.ess),
        "answers": rewards.shape[1],
    }


def weights_lines(found: WeightsReport) -> list[str]:
    """`weights_of` as text."""
    head = f"{'dimension':<14} {'target':>8} {'now':>8} {'reached':>8} {'nearest':>8} {'weight':>9}"
    rows = [
        f"{d:<14} {found['target'][d]:>8.3f} {found['mean'][d]:>8.3f} {found['reached'][d]:>8.3f} "
        f"{found['nearest_feasible'][d]:>8.3f} {w:>9.3f}"
        for d, w in found["weights"].items()
    ]
    verdict = (
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
            f"{verdict}   arm {found['arm']}, {found['prompts']} prompts, effective answers"
            f" {found['ess']:.1f} of {found['answers']}"
        ),
    ]


def _rewards(run_dir: Path, dims: list[str], arm: str | None) -> tuple[str, Floats]:
    """rewards_P_N_D of one arm, the first prompts of the run."""
    kept: list[Floats] = []
    for block in blocks(finished_parts(run_dir), dims):
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


@dataclass(frozen=True, slots=True)
class DualSolution:
    """The answer to a target.

    Attributes:
        feasible: some re-weighting of each prompt's rollouts reaches the target, to 0.001 and with
            weights up to 200.
        weights_D: the lambda of `nearest_D`: weights for weighted_sum.
        nearest_D: the target, or where it is not feasible the last feasible point on the way to it
            from the present mean.
        reached_D: mean rewards under the weights; in a dimension of weight 0 it may lie above the
            target.
        ess: mean over prompts of 1 / sum_i w_i^2, the number of rollouts that still count.
        n: prompts with a rollout that has all its scores.
    """

    feasible: bool
    weights_D: Floats
    nearest_D: Floats
    reached_D: Floats
    ess: float
    n: int


def solve_dual(rewards_P_N_D: Floats, target_D: Floats) -> DualSolution:
    """Least change of the policy, per prompt, whose mean rewards reach `target_D`.

    Maximises g(lambda) = lambda . c - mean_x log mean_i exp(lambda . r_i(x)) over lambda >= 0
    (MAP's dual in its per-prompt form): concave, by projected Newton steps.
    Rollouts without all their scores are left out.

    Raises:
        ValueError: no rollout has all its scores.
    """
    whole = ~np.any(np.isnan(rewards_P_N_D), axis=-1)
    kept = whole.any(1)
    if not kept.any():
        raise ValueError("no rollout has all its scores: there is nothing to weight")
    rewards, whole = np.where(whole[..., None], rewards_P_N_D, 0.0)[kept], whole[kept]
    target = np.asarray(target_D, float)
    start, _, _, _ = _moments(rewards, whole, np.zeros(len(target)))
    found, feasible, near = _solve(rewards, whole, target), True, target
    if not _reaches(rewards, whole, found, target):
        feasible, low, high = False, 0.0, 1.0
        base = np.minimum(start, target)
        for _ in range(12):
            middle = (low + high) / 2
            point = base + middle * (target - base)
            lam = _solve(rewards, whole, point)
            low, high = (middle, high) if _reaches(rewards, whole, lam, point) else (low, middle)
        near = base + low * (target - base)
        found = _solve(rewards, whole, near)
    reached, _, share, _ = _moments(rewards, whole, found)
    ess = float((1 / (share**2).sum(1)).mean())
    return DualSolution(feasible, found, near, reached, ess, len(rewards))


def _moments(
    rewards_P_N_D: Floats, whole_P_N: Bools, lam_D: Floats
) -> tuple[Floats, Floats, Floats, float]:
    """Mean reward, its mean covariance within prompts, each rollout's share, and mean_x log mean_i
    exp(lambda . r_i)."""
    score = np.where(whole_P_N, rewards_P_N_D @ lam_D, -np.inf)
    top = score.max(1, keepdims=True)
    share = np.exp(score - top)
    total = share.sum(1, keepdims=True)
    log_mean = float((top + np.log(total / whole_P_N.sum(1, keepdims=True))).mean())
    share /= total
    mean = np.einsum("pn,pnd->pd", share, rewards_P_N_D)
    centred = rewards_P_N_D - mean[:, None, :]
    spread = np.einsum("pn,pni,pnj->ij", share, centred, centred, optimize=True) / len(share)
    return mean.mean(0), spread, share, log_mean


def _solve(rewards_P_N_D: Floats, whole_P_N: Bools, target_D: Floats) -> Floats:
    lam = np.zeros(len(target_D))
    mean, spread, _, log_mean = _moments(rewards_P_N_D, whole_P_N, lam)
    value = -log_mean
    for _ in range(60):
        gradient = target_D - mean
        free = ~((lam <= 0) & (gradient <= 0)) & ~((lam >= MOST_WEIGHT) & (gradient >= 0))
        if not free.any() or np.abs(gradient[free]).max() < NEAR / 10:
            break
        step = np.zeros(len(lam))
        step[free] = np.linalg.solve(
            spread[np.ix_(free, free)] + 1e-6 * np.eye(int(free.sum())), gradient[free]
        )
        size = 1.0
        while size > 1e-6:
            trial = np.clip(lam + size * step, 0.0, MOST_WEIGHT)
            moments = _moments(rewards_P_N_D, whole_P_N, trial)
            if (gain := float(trial @ target_D) - moments[3] - value) > 1e-12:
                break
            size /= 2
        else:
            break
        lam, mean, spread, value = trial, moments[0], moments[1], value + gain
    return lam


def _reaches(rewards_P_N_D: Floats, whole_P_N: Bools, lam_D: Floats, target_D: Floats) -> bool:
    return bool(np.all(_moments(rewards_P_N_D, whole_P_N, lam_D)[0] >= target_D - NEAR))
