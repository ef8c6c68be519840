"""Two runs, arms or releases against each other: which numbers differ, by how much, and what else
differs.

    compare_sides(side_of("runs/a"), side_of("runs/b:single"))["arms"][0]["difference"]
    side_of("org/mora-pairs@v1.0.0")

A and B are numbers of the two report.json, each over its own prompts. Their difference, B minus A,
is taken on the prompts that both have, which are resampled for both at once: a paired interval.
Where none is shared it is over all prompts, and each side is resampled by itself. Of a published
dataset only the means of the arms are known.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..errors import SettingsError
from ..run.files import read_json, readable
from ..run.folder import manifest_of
from ..settings import settings_that_differ
from ..statistics import Bools, Floats
from ..statistics.inference import cluster_bootstrap, holm, percentile_ends
from .arms import DRAWS, HEADLINE, in_arm_order
from .caveats import comparison_caveats
from .document import arms_report, finish_report, run_facts, settings_of
from .measure import metric_names
from .pairs import PairTable, pair_numbers, read_pairs
from .values import (
    ComparedNumber,
    ComparisonReport,
    Estimate,
    PairedDifference,
    PairNumbers,
    SideFacts,
    rounded,
)

FORMAT = 1
LEVEL = 0.05  # of the adjusted p under which a number counts as another one
OF_K = ("joint_pass", "hypervolume")  # not comparable at different k


@dataclass(frozen=True, slots=True)
class Side:
    """What is compared.

    Attributes:
        facts: what the comparison says of it.
        settings: those of the build.
        metrics: arm -> metric -> its cell of the report.
        ids, values: prompts, and arm -> values_P_M of them; empty of a published dataset.
        table, pairs: the rows of `preference`, and what the report says of them.
    """

    facts: SideFacts
    settings: Mapping[str, Any]
    dims: list[str]
    metrics: Mapping[str, Mapping[str, Estimate]]
    pairs: PairNumbers
    table: PairTable
    ids: Sequence[str] = ()
    values: Mapping[str, Floats] = field(default_factory=dict)


def side_of(given: str) -> Side:
    """A run folder, a dataset folder or ORG/NAME@TAG, with :ARM where one arm is meant.

    Raises:
        RunFolderError: neither a run nor a dataset, or one of another version.
        SettingsError: it has no such arm.
        PublishError: the Hub does not have it.
    """
    where, arm = _split_arm(given)
    is_run = bool(manifest_of(Path(where)))
    side = _run_side(where, arm) if is_run else _published_side(where, arm)
    if arm is not None and arm not in side.metrics:
        raise SettingsError(
            f"{given}: {where} has no arm {arm!r}, only {', '.join(side.metrics) or 'none'}"
        )
    return side


def _split_arm(given: str) -> tuple[str, str | None]:
    if Path(given).exists() or ":" not in given:
        return given, None
    where, _, arm = given.rpartition(":")
    return where, arm


def _run_side(where: str, arm: str | None) -> Side:
    ids: list[str] = []
    values: dict[str, list[Floats]] = {}

    def keep(some: list[str], by_arm: Mapping[str, Floats]) -> None:
        for name, v in by_arm.items():
            values.setdefault(name, [np.full((len(ids), v.shape[1]), np.nan)]).append(v)
        ids.extend(some)
        for name in values.keys() - by_arm.keys():
            values[name].append(np.full((len(some), values[name][0].shape[1]), np.nan))

    folder = Path(where)
    report = finish_report(arms_report(folder, keep=keep), folder)
    dims, noise = report["settings"]["dimensions"], report["judge"]["dimensions"]
    facts: SideFacts = {
        "where": where,
        "arm": arm,
        "kind": "run",
        **report["run"],
        "pairs": report["pairs"]["n"],
        "verdict": report["verdict"],
        "doubts": report["doubts"],
        "floors": report["settings"]["floors"],
        "k": report["settings"]["k"],
        "sigma": {d: v["sigma"] for d, v in noise.items()},
        "reliability": {d: v["reliability"] for d, v in noise.items()},
    }
    return Side(
        facts,
        settings_of(folder),
        dims,
        {a: v["metrics"] for a, v in report["arms"].items()},
        report["pairs"],
        read_pairs(folder / "dataset", dims),
        ids,
        {name: np.concatenate(v) for name, v in values.items()},
    )


def _published_side(where: str, arm: str | None) -> Side:
    from ..dataset.client import dataset_of

    folder = dataset_of(where)
    tree = read_json(folder / "provenance" / "manifest.json")
    again = "it is missing, damaged, or of another version of mora-data; fetch or build it again"
    with readable(f"{where}/provenance/manifest.json", again):
        manifest, dims = tree["manifest"], list(tree["folder"]["dimensions"])
        settings, noise = manifest["settings"], manifest["reference"]
        summary = manifest.get("report") or {}
        prompts = int((manifest["counts"].get("mine") or {}).get("kept") or 0)
        table = read_pairs(folder, dims)
        sigma = {d: noise["noise"][d] for d in dims}
        pairs = pair_numbers(table, dims, list(map(float, sigma.values())), int(settings["seed"]))
        facts: SideFacts = {
            "where": where,
            "arm": arm,
            "kind": "dataset",
            **run_facts(manifest, settings, 0, {"prompts": prompts, "partitions_sealed": 0}),
            "pairs": pairs["n"],
            "verdict": summary.get("verdict", "not measured"),
            "doubts": [],
            "floors": dict(tree["folder"]["floors"]),
            "k": summary.get("k"),
            "sigma": sigma,
            "reliability": {d: noise["reliability"][d] for d in dims},
        }
        metrics = {
            a: {m: cast(Estimate, c) for m, c in v.items() if isinstance(c, dict)}
            for a, v in (summary.get("arms") or {}).items()
        }
        return Side(facts, settings, dims, metrics, pairs, table)


def compare_sides(a: Side, b: Side) -> ComparisonReport:
    """report-compare.json: who is compared, the caveats, the settings that differ, the numbers with
    their differences."""
    dims = [d for d in a.dims if d in b.dims]
    seed = int(a.settings["seed"])
    rows = list(_arms(a, b, dims, seed))
    if a.facts["arm"] is None and b.facts["arm"] is None:
        rows += _pairs(a, b, dims, seed)
    tested = [r for r in rows if r["difference"]["p"] is not None]
    adjusted = holm(np.array([r["difference"]["p"] for r in tested], float))
    for r, p in zip(tested, adjusted, strict=True):
        r["p_holm"], r["differs"] = rounded(p), bool(p < LEVEL)
    report: ComparisonReport = {
        "format": FORMAT,
        "a": a.facts,
        "b": b.facts,
        "doubts": [],
        "dimensions": dims,
        "settings": settings_that_differ(a.settings, b.settings),
        "prompts": _shared(a, b),
        "differ": sum(bool(r["differs"]) for r in rows),
        "tested": len(tested),
        "arms": [r for r in rows if r["arm"]],
        "pairs": [r for r in rows if not r["arm"]],
    }
    report["doubts"] = comparison_caveats(report)
    return report


def _shared(a: Side, b: Side) -> dict[str, int]:
    """Prompts of each side, by what is known of them: those of the partitions, of a release those
    with a pair."""
    whole = bool(a.ids and b.ids)
    one, two = (set(s.ids if whole else s.table.prompts_Q.tolist()) for s in (a, b))
    return {"a": len(one), "b": len(two), "shared": len(one & two)}


def _arms(a: Side, b: Side, dims: Sequence[str], seed: int) -> Iterator[ComparedNumber]:
    """The arms that are compared, metric by metric."""
    matched = [(x, x) for x in in_arm_order(x for x in a.metrics if x in b.metrics)]
    given, other = a.facts["arm"], b.facts["arm"]
    if given or other:
        matched = [(given or str(other), other or str(given))]
    same_k = a.facts["k"] == b.facts["k"]
    metrics = [*HEADLINE, "scored", "refusal", "repeats", "tokens"]
    metrics += [f"{m}_{d}" for d in dims for m in ("reward", "pass")]
    for one, two in matched:
        cells, others = a.metrics.get(one, {}), b.metrics.get(two, {})
        kept = [m for m in metrics if m in cells and m in others and (same_k or m not in OF_K)]
        found: list[PairedDifference] | list[None] = [None] * len(kept)
        if one in a.values and two in b.values:
            columns = [_columns(s, x, kept) for s, x in ((a, one), (b, two))]
            found = _differences(columns[0], a.ids, columns[1], b.ids, seed)
        for m, difference in zip(kept, found, strict=True):
            name = one if one == two else f"{two} − {one}"
            yield _row(name, m, cells[m], others[m], difference)


def _columns(s: Side, arm: str, metrics: Sequence[str]) -> Floats:
    at = {m: i for i, m in enumerate(metric_names(s.dims))}
    return s.values[arm][:, [at[m] for m in metrics]]


def _pairs(a: Side, b: Side, dims: Sequence[str], seed: int) -> Iterator[ComparedNumber]:
    """What the published pairs say, over source prompts."""
    if not (a.pairs["n"] and b.pairs["n"]):
        return
    one, two = _pair_metrics(a, dims), _pair_metrics(b, dims)
    columns = [np.stack([c for _, c in x.values()], axis=1) for x in (one, two)]
    found = _differences(columns[0], a.table.prompts_Q, columns[1], b.table.prompts_Q, seed)
    for (m, (cell, _)), (other, _), difference in zip(
        one.items(), two.values(), found, strict=True
    ):
        yield _row("", m, cell, other, difference)


def _pair_metrics(s: Side, dims: Sequence[str]) -> dict[str, tuple[Estimate | None, Floats]]:
    """Metric -> its cell of report.json, and the values that it is the mean of."""
    r, t, at = s.pairs, s.table, {d: i for i, d in enumerate(s.dims)}
    ratio, refused = np.log(t.length_ratio_Q()), t.refused_Q_2.astype(float)
    margins = r["margins"]
    return {
        **{f"margin_{d}": (margins[d]["mean"], t.margins_Q_D[:, at[d]]) for d in dims},
        **{
            f"margin_confirmed_{d}": (margins[d]["confirmed"], t.confirmed_Q_D[:, at[d]])
            for d in dims
        },
        "log_length_ratio": (r["length"]["log_ratio"], ratio),
        "chosen_longer": (r["length"]["chosen_longer"], (ratio > 0).astype(float)),
        "refusal_chosen": (r["refusal"]["chosen"], refused[:, 0]),
        "refusal_rejected": (r["refusal"]["rejected"], refused[:, 1]),
    }


def _row(
    arm: str, metric: str, a: Estimate | None, b: Estimate | None, found: PairedDifference | None
) -> ComparedNumber:
    if found is None:
        one, two = (None if c is None else c["value"] for c in (a, b))
        gap = None if one is None or two is None else rounded(two - one)
        found = {"low": None, "high": None, "n": None, "p": None, "paired": None, "value": gap}
    return {
        "arm": arm,
        "metric": metric,
        "a": a,
        "b": b,
        "difference": found,
        "p_holm": None,
        "differs": None,
    }


def _differences(
    a_P_M: Floats,
    a_ids: Sequence[str] | NDArray[Any],
    b_P_M: Floats,
    b_ids: Sequence[str] | NDArray[Any],
    seed: int,
) -> list[PairedDifference]:
    """B minus A of each column, on the prompts that have a value on both sides; on all, unpaired,
    where they share none."""
    labels, at = np.unique(
        np.concatenate([np.asarray(a_ids), np.asarray(b_ids)]), return_inverse=True
    )
    a_at, b_at = at[: len(a_ids)], at[len(a_ids) :]
    shared = bool(np.isin(a_at, b_at).any())
    if shared:
        both_C_M = _known(a_P_M, a_at, len(labels)) & _known(b_P_M, b_at, len(labels))
        a_P_M = np.where(both_C_M[a_at], a_P_M, np.nan)
        b_P_M = np.where(both_C_M[b_at], b_P_M, np.nan)
    m = a_P_M.shape[1]
    stacked = np.full((len(at), 2 * m), np.nan)
    stacked[: len(a_P_M), :m], stacked[len(a_P_M) :, m:] = a_P_M, b_P_M
    boot = cluster_bootstrap(stacked, at, DRAWS, seed)
    value = boot.estimate_M[m:] - boot.estimate_M[:m]
    draws = boot.draws_B_M[:, m:] - boot.draws_B_M[:, :m]
    n_M = np.minimum(boot.n_M[:m], boot.n_M[m:])
    low, high = percentile_ends(draws, n_M)
    return [
        {
            "value": rounded(value[i]),
            "low": rounded(low[i]),
            "high": rounded(high[i]),
            "n": int(n_M[i]),
            "p": _p(value[i], draws[:, i]) if rounded(low[i]) is not None else None,
            "paired": shared,
        }
        for i in range(m)
    ]


def _known(values_P_M: Floats, at_P: NDArray[np.intp], n: int) -> Bools:
    """Which of n prompts has a value in each column."""
    out = np.zeros((n, values_P_M.shape[1]), bool)
    np.logical_or.at(out, at_P, ~np.isnan(values_P_M))
    return out


def _p(value: float, draws: Floats) -> float:
    """Two-sided, the bootstrap's spread taken as normal: Holm over many numbers needs p far below 1
    / draws."""
    spread = float(np.nanstd(draws))
    if spread < 1e-12:
        return 1.0 if abs(value) < 1e-12 else 0.0
    return math.erfc(abs(float(value)) / spread / math.sqrt(2))
