"""What a run shows about its scorers: feedback.json in the run folder, and the same in the
manifest.

    sums_of(outcomes)                           when a partition is sealed: sums, into its manifest
    quality(parts, chosen, settings, ...)       when pairs are chosen: the figures
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..run.partitions import Partition, row_tuples
from ..settings import BuildSettings
from ..types import Role, Score
from .result import PromptResult

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..engines.engine import Engine


def sums_of(results: Sequence[PromptResult]) -> dict[str, Any]:
    """Sums over a partition's first scores: dimension -> number of the source -> SourceSums, and
    per dimension agreement."""
    from ..statistics.judges import AgreementSums, SourceSums

    sources: dict[str, dict[str, SourceSums]] = {}
    agreement: dict[str, AgreementSums] = {}
    for o in results:
        lengths = {(a.name, r.index): float(r.length) for a in o.all_arms for r in a.rollouts}
        by_arm: dict[str, dict[str, dict[int, list[Score]]]] = {}
        for arm, index, purpose, s in o.scores:
            if purpose == "score":
                by_arm.setdefault(arm, {}).setdefault(s.dimension, {}).setdefault(index, []).append(
                    s
                )
        for arm, dims in by_arm.items():
            for d, rows in dims.items():
                _add(sources.setdefault(d, {}), agreement, d, rows, [lengths[arm, i] for i in rows])
    return {
        "sources": {
            d: {name: s.tree() for name, s in found.items()} for d, found in sources.items()
        },
        "agreement": {d: s.tree() for d, s in agreement.items()},
    }


def _add(
    sources: dict[str, Any],
    agreement: dict[str, Any],
    d: str,
    rows: Mapping[int, Sequence[Score]],
    lengths: Sequence[float],
) -> None:
    from ..statistics.judges import AgreementSums, SourceSums

    for column in zip(*rows.values(), strict=True):  # one source over the answers
        sums = sources.setdefault(column[0].source, SourceSums())
        sums.add(
            [s.value for s in column],
            lengths,
            [s.reason.split(":")[0] for s in column if s.value is None],
            [order for s in column for order in s.orders],
        )
    if len(next(iter(rows.values()))) > 1:
        alpha = agreement.setdefault(d, AgreementSums())
        for scores in rows.values():
            alpha.add(s.value for s in scores)


def quality(
    parts: Sequence[Partition],
    chosen: Mapping[int, NDArray[np.int64]],
    settings: BuildSettings,
    family: Mapping[str, Any],
    drift: Mapping[str, Any],
) -> dict[str, Any]:
    """feedback.json: each source's parse and tie rate, length correlation and position bias;
    agreement; held-out judge; drift."""
    from ..statistics.judges import AgreementSums, SourceSums

    sources: dict[str, dict[str, SourceSums]] = {}
    agreement: dict[str, AgreementSums] = {}
    for part in parts:
        tree = (part.manifest() or {}).get("feedback") or {"sources": {}, "agreement": {}}
        for d, found in tree["sources"].items():
            for name, sums in found.items():
                sources.setdefault(d, {}).setdefault(name, SourceSums()).merge(sums)
        for d, sums in tree["agreement"].items():
            agreement.setdefault(d, AgreementSums()).merge(sums)
    out = {
        "sources": {
            d: {name: s.figures() for name, s in found.items()} for d, found in sources.items()
        },
        "agreement": {
            d: {"krippendorff_alpha": s.alpha(), "ratings": s.n} for d, s in agreement.items()
        },
        "self_preference": dict(family),
        "drift": dict(drift),
        "heldout": None,
    }
    if settings.heldout_judge is not None:
        out["heldout"] = heldout_accuracy(
            parts, chosen, settings.published_arms, settings.dimensions
        )
    compared = any(s.position.games for found in sources.values() for s in found.values())
    measured = {
        "position flips (no pairwise judge)": compared,
        "agreement of sources (one per dimension)": agreement,
        "held-out judge": out["heldout"] is not None,
        "drift": drift,
    }
    return {**out, "not_measured": [name for name, there in measured.items() if not there]}


def heldout_accuracy(
    parts: Sequence[Partition],
    chosen: Mapping[int, NDArray[np.int64]],
    arms: Sequence[str],
    dims: Sequence[str],
) -> dict[str, Any]:
    """How often the held-out judge agrees with the chosen pairs: per dimension over the pairs that
    win in it, and in total."""
    import pyarrow as pa

    from ..run.table import candidate_pairs
    from ..statistics.judges import pair_accuracy

    columns = ("prompt_id", "arm", "index", "dimension", "value", "purpose")
    margins: dict[str, list[float]] = {d: [] for d in dims}
    total: list[float] = []
    unscored = 0
    for part in parts:
        values = {
            (p, a, i, d): v
            for p, a, i, d, v, purpose in row_tuples(part.table("scores", columns), *columns)
            if purpose == "heldout"
        }
        pairs = candidate_pairs(part, arms).take(pa.array(chosen.get(part.number, ()), pa.int64()))
        won = {d: pairs.column(f"margin_{d}").to_pylist() for d in dims}
        sided = row_tuples(pairs, "prompt_id", "arm", "chosen", "rejected")
        for k, (p, a, i, j) in enumerate(sided):
            sides = {d: (values.get((p, a, i, d)), values.get((p, a, j, d))) for d in dims}
            theirs = {d: x - y for d, (x, y) in sides.items() if x is not None and y is not None}
            unscored += len(theirs) < len(dims)
            if len(theirs) == len(dims):
                total.append(round(sum(theirs.values()), 9))
            for d, margin in theirs.items():
                if won[d][k] > 0:
                    margins[d].append(margin)
    return {
        "total": pair_accuracy(total),
        **{d: pair_accuracy(m) for d, m in margins.items()},
        "unscored": unscored,
    }


def self_preference(engines: Mapping[Role, Engine]) -> dict[str, Any]:
    """Whether judge and policy are one model or of one family, by their names; the simulator is
    neither."""
    from ..run.cost import same_family

    policy, judge = engines["policy"], engines["judge"]
    if policy.simulated or judge.simulated:
        return {"family": "", "same_model": False}
    return {
        "family": same_family(policy.model, judge.model),
        "same_model": policy.model == judge.model,
    }
