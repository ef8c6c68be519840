"""Figures over several models: the matrix of a sequence of stages, and the curve over the number of
pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from ..statistics.training import Resampled, backward_transfer, interval, mean_over, scaling_fit

if TYPE_CHECKING:
    from numpy.typing import NDArray


def sequence_of(
    drawn: Mapping[str, Resampled], dims: Sequence[str], order: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """The matrix a_{t,d}, each dimension's final gain, and what later stages did to it (BWT), with
    paired intervals.

    The means over dimensions are over those that a stage of the order trained.
    """
    n, at = (
        len(dims),
        [next((t for t, (_, label) in enumerate(order) if label == d), None) for d in dims],
    )
    matrix = np.array([drawn[m].estimate_M[:n] for m, _ in order])
    draws_T_B_D = np.array([drawn[m].draws_B_M[:, :n] for m, _ in order])
    gain, gains = matrix[-1] - matrix[0], draws_T_B_D[-1] - draws_T_B_D[0]
    transfer = backward_transfer(matrix, at)
    transfers = np.array([backward_transfer(m, at) for m in draws_T_B_D.transpose(1, 0, 2)])
    trained = [d for d, t in enumerate(at) if t is not None]
    return {
        "stages": [m for m, _ in order],
        "trained": [label for _, label in order if label],
        "matrix": {
            m: dict(zip(dims, _nulls(row), strict=True))
            for (m, _), row in zip(order, matrix, strict=True)
        },
        **_with_intervals("final_gain", dims, gain, gains, trained),
        **_with_intervals("backward_transfer", dims, transfer, transfers, trained),
    }


def _with_intervals(
    name: str,
    dims: Sequence[str],
    values_D: NDArray[np.float64],
    draws_B_D: NDArray[np.float64],
    trained: Sequence[int],
) -> dict[str, Any]:
    mean = _nulls([values_D[list(trained)].mean()])[0] if trained else None
    return {
        name: dict(zip(dims, _nulls(values_D), strict=True)),
        f"{name}_interval": {d: interval(draws_B_D[:, k]) for k, d in enumerate(dims)},
        f"mean_{name}": mean,
        f"mean_{name}_interval": interval(draws_B_D[:, list(trained)].mean(1)) if trained else None,
    }


def curve_of(
    name: str,
    means: Mapping[str, NDArray[np.float64]],
    drawn: Mapping[str, Resampled],
    metrics: Sequence[str],
    points: Sequence[tuple[str, int]],
) -> dict[str, Any]:
    """a + b (1 - exp(-n / n0)) for each metric over the number of pairs, and each seed's mean at
    each size."""
    sizes = [float(n) for _, n in points]
    fits: dict[str, Any] = {}
    for k, metric in enumerate(metrics):
        y = np.array([drawn[m].estimate_M[k] for m, _ in points])
        draws = np.column_stack([drawn[m].draws_B_M[:, k] for m, _ in points])
        fit = None if np.isnan(y).any() else scaling_fit(sizes, y, draws)
        fits[metric] = None if fit is None else asdict(fit)
    seeds = [
        {"pairs": n, "metric": metric, "values": _nulls(mean_over(means[m][:, :, k], 1))}
        for m, n in points
        for k, metric in enumerate(metrics)
    ]
    return {"name": name, "pairs": sizes, "fits": fits, "runs": seeds}


def evaluations(curves: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Lines of evals.jsonl: one per training run and metric; `fraction` is of the curve's largest
    size."""
    for curve in curves:
        most = max(curve["pairs"], default=0.0) or 1.0
        suffix = f" ({curve['name']})" if curve["name"] else ""
        for run in curve["runs"]:
            for seed, value in enumerate(run["values"]):
                if value is not None:
                    yield {
                        "fraction": run["pairs"] / most,
                        "seed": seed,
                        "metric": run["metric"] + suffix,
                        "value": value,
                    }


def _nulls(values: Sequence[float] | NDArray[np.float64]) -> list[float | None]:
    return [None if np.isnan(v) else float(v) for v in values]
