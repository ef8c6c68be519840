"""The data of the figures (HUB's list of twelve), beside the numbers of arms.py and pairs.py. None
where there is " "nothing to show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from .arms import in_order
from .gather import CELLS, LEVELS, Gathered, pairs_of
from .numbers import number, share
from .texts import diversity, entropy

if TYPE_CHECKING:
    from .pairs import Pairs

GRID = 24  # cells of a side of the length x margin figure


def of_answers(g: Gathered) -> dict[str, Any]:
    """Reward distributions, the plane of two rewards, the funnel of the rewrites, first against
    second scores."""
    return {
        "rewards": _rewards(g),
        "planes": _planes(g),
        "funnel": _funnel(g),
        "repeats": _repeats(g),
    }


def prompts(g: Gathered) -> dict[str, Any]:
    """What was mined and how it was worded: kinds, classes, categories, diversity of each arm's
    prompts."""
    return {
        "n": g.n,
        "kinds": _sorted(g.kind),
        "carried": _sorted(g.carried),
        "categories": _sorted(g.category),
        "category_entropy": entropy(list(g.category.values())),
        "diversity": {
            a: diversity(g.texts[a])
            for a in ["source", *in_order(a for a in g.texts if a != "source")]
        },
        "checks": {
            arm: {
                check: {"mean": number(total / n), "n": n}
                for (a, check), (total, n) in sorted(g.checks.items())
                if a == arm
            }
            for arm in in_order({a for a, _ in g.checks})
        },
    }


def of_pairs(
    p: Pairs, numbers: Mapping[str, Any], shrinkage: dict[str, Any] | None
) -> dict[str, Any]:
    """Margins, length against margin, composition."""
    out: dict[str, Any] = {"margins": {"shrinkage": shrinkage}, "length": None, "composition": None}
    if not len(p):
        return out
    gap = np.log2(np.maximum(p.lengths_Q_2[:, 0], 1) / np.maximum(p.lengths_Q_2[:, 1], 1))
    total = np.nansum(p.margins_Q_D, axis=1)
    x = np.clip(((gap + 2) / 4 * GRID).astype(int), 0, GRID - 1)
    most = max(1.0, float(np.ceil(total.max())))
    y = np.clip((total / most * GRID).astype(int), 0, GRID - 1)
    cells = np.bincount(x * GRID + y, minlength=GRID**2).reshape(GRID, GRID)
    out["length"] = {
        "x": "log2 length ratio, -2 to 2",
        "y": f"total margin, 0 to {most:g}",
        "y_max": most,
        "counts": cells.tolist(),
    }
    categories = list(numbers["category"])[:12]
    kinds = list(numbers["kind"])
    out["composition"] = {
        "rows": categories,
        "columns": kinds,
        "counts": [[p.composition[c, k] for k in kinds] for c in categories],
        "left_out": max(0, len(numbers["category"]) - 12),
    }
    return out


def cost(manifest: Mapping[str, Any], n_pairs: int) -> dict[str, Any]:
    """Tokens and failures of the run; per pair where there are pairs. Nothing that depends on how
    often it was interrupted."""
    tokens = manifest.get("tokens") or {}
    both = sum(v for v in tokens.values() if v)
    return {
        "tokens": tokens,
        "errors": manifest.get("errors"),
        "money": manifest.get("cost"),
        "tokens_per_pair": number(both / n_pairs) if n_pairs else None,
        "stages": manifest.get("counts") or {},
    }


def scaling(run_dir: Path, n_pairs: int, n_prompts: int) -> dict[str, Any]:
    """evals.jsonl of the run folder ({"fraction", "seed", "metric", "value"} a line); without it,
    only what pairs per " "prompt say."""
    found = []
    path = run_dir / "evals.jsonl"
    if path.exists():
        for line in path.read_bytes().splitlines():
            try:
                row = orjson.loads(line)
                found.append(
                    {
                        "fraction": float(row["fraction"]),
                        "seed": row["seed"],
                        "metric": str(row["metric"]),
                        "value": float(row["value"]),
                    }
                )
            except (ValueError, KeyError, TypeError):
                continue
    return {
        "evaluations": found,
        "pairs_per_1000_prompts": number(1000 * n_pairs / n_prompts) if n_prompts else None,
    }


def not_measured(report: Mapping[str, Any], manifest: Mapping[str, Any]) -> list[str]:
    """What a reader may look for and won't find, by name."""
    checks = {
        "the verdict (it needs the arms identity, single, generic and fused)": not report[
            "comparisons"
        ],
        "numbers before fusion (no identity arm, and presamples are not split)": (
            report["settings"]["before"] is None
        ),
        "hypervolume (more than three dimensions)": len(report["settings"]["dimensions"]) > 3,
        "agreement of judges with each other": not report["judge"]["feedback"],
        "agreement with people (mora-data view --review)": not report.get("reviews"),
        "wording probe (it needs pairs of 50 prompts)": not report["pairs"].get("wording"),
        "overlap with evaluation sets": not report["contamination"],
        "personal data in texts": not manifest.get("pii"),
        "what training on these pairs does to a model": not report["figures"]["scaling"][
            "evaluations"
        ],
    }
    return [name for name, missing in checks.items() if missing]


def _rewards(g: Gathered) -> dict[str, Any]:
    """Share of answers per reward level, mean over prompts; with the distance of each arm from what
    was before."""
    arms = {}
    for arm in in_order(g.levels):
        total, _ = g.levels[arm]
        n = total.sum(0)
        arms[arm] = {
            d: [number(v) for v in total[:, j] / max(n[j], 1e-9)]
            for j, d in enumerate(g.scale.dims)
        }
    moved = {}
    if g.before:
        for arm in arms:
            if arm != g.before:
                moved[arm] = {
                    d: number(
                        float(
                            np.abs(np.cumsum(_gap(arms[arm][d], arms[g.before][d])))[:-1].sum()
                            / (LEVELS - 1)
                        )
                    )
                    for d in g.scale.dims
                }
    return {
        "levels": [number(i / (LEVELS - 1)) for i in range(LEVELS)],
        "arms": arms,
        "wasserstein_to_before": moved,
    }


def _gap(a: list[Any], b: list[Any]) -> Any:
    return np.array(a, float) - np.array(b, float)


def _planes(g: Gathered) -> dict[str, Any]:
    """Share of answers per cell of two rewards, and the staircase that one answer in four
    reaches."""
    out = []
    for p, (i, j) in enumerate(pairs_of(g.scale.dims)):
        arms = {}
        for arm in in_order(g.planes):
            cells = g.planes[arm][p]
            cells = cells / max(cells.sum(), 1e-9)
            # share with both rewards at least those of the cell
            reach = np.flip(np.flip(cells).cumsum(0).cumsum(1))
            arms[arm] = {
                "cells": [[number(v) for v in row] for row in cells],
                "staircase": [
                    int(at.max()) if (at := np.flatnonzero(row >= 0.25)).size else -1
                    for row in reach
                ],
            }
        out.append({"x": g.scale.dims[i], "y": g.scale.dims[j], "cells": CELLS, "arms": arms})
    return {"pairs": out}


def _funnel(g: Gathered) -> dict[str, Any]:
    """Rewrites per arm: accepted, or the first check that the last try failed; and the accepted
    share per category."""
    total = {arm: sum(by.values(), Counter()) for arm, by in g.fusion.items()}
    return {
        "arms": {
            a: {
                "tried": sum(total[a].values()),
                "accepted": share(total[a][""], sum(total[a].values())),
                "failed": _sorted({k: n for k, n in total[a].items() if k}),
                "tries": {str(k): n for k, n in sorted(g.tries.get(a, Counter()).items())},
            }
            for a in in_order(total)
        },
        "by_category": {
            a: {
                c: {
                    "accepted": share(n[""], sum(n.values())),
                    "refused": share(n["rewriter_refusal"], sum(n.values())),
                }
                for c, n in sorted(by.items(), key=lambda kv: (-sum(kv[1].values()), kv[0]))
            }
            for a, by in sorted(g.fusion.items())
        },
    }


def _repeats(g: Gathered) -> dict[str, Any]:
    out = {}
    for d, counts in g.repeats.items():
        n = int(counts.sum())
        if n:
            out[d] = {
                "counts": counts.tolist(),
                "n": n,
                "same": share(int(np.trace(counts)), n),
                "kappa": _kappa(counts),
            }
    return out


def _kappa(counts: Any) -> float | None:
    """Weighted kappa (squared distance) of the first and second score."""
    levels = np.arange(len(counts))
    weight = (levels[:, None] - levels) ** 2
    expected = np.outer(counts.sum(1), counts.sum(0)) / counts.sum()
    chance = (weight * expected).sum()
    return number(1 - (weight * counts).sum() / chance) if chance else None


def _sorted(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda kv: (-kv[1], kv[0])))
