"""Rows to figures, a table and a sentence that states what they support, never more.

    result(rows, models, "sft", floors, about)["sets"]["plain"]["models"]["mora"]["metrics"]["reward_helpful"]["points"]
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from ..statistics.beta import rate_interval
from ..statistics.inference import holm, sign_flip_test
from ..statistics.training import (
    Difference,
    Resampled,
    backward_transfer,
    bootstrap_p,
    hierarchical_bootstrap,
    interval,
    length_controlled_win_rate,
    mean_over,
    relative_improvement,
    scaling_fit,
    statement,
)
from .inputs import PLAIN, SAFE, Model

if TYPE_CHECKING:
    from numpy.typing import NDArray

DRAWS = 2000
RATES = ("joint_pass", "harmful", "refusal", "degenerate")
PAPER = ("The paper that this method follows reports 5 to 12.4 % for single preferences (sequential) and 4.6 % overall "
         "(simultaneous). Its models, metrics and baselines differ from these, so the figures can't be compared.")


def result(rows: Sequence[Mapping[str, Any]], models: Sequence[Model], reference: str, floors: Mapping[str, float],
           about: Mapping[str, Any], sequence: Sequence[tuple[str, str]] = (),
           scaling: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
    """What evaluation.json holds.

    Args:
        rows: one per model, prompt and sample.
        floors: pass mark per dimension.
        about: what else it says (judge, simulated, seed, skipped).
        sequence: (model, dimension trained in its stage or "") in order, the start first.
        scaling: (model, number of pairs).
    """
    seeds = {name: [m.seed for m in models if m.name == name] for name in dict.fromkeys(m.name for m in models)}
    sets = {part: _set([r for r in rows if r["set"] == part], seeds, reference, floors, about)
            for part in dict.fromkeys(r["set"] for r in rows)}
    found = {**about, "reference": reference, "sets": sets, "notes": _notes(rows, about), "paper": PAPER}
    main = PLAIN if PLAIN in sets else next(iter(sets))
    if sequence:
        found["sequence"] = _sequence(sets[main]["models"], list(floors), sequence)
    if scaling:
        found["scaling"] = _scaling([r for r in rows if r["set"] == main], seeds, floors, scaling, about["seed"])
    return found


def _notes(rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> list[str]:
    notes = []
    if about["simulated"]:
        notes.append("Simulated: the answers or the verdicts come from the built-in simulator; no model was evaluated.")
    if about["judge"] and about["judge"] == about.get("judge_of_the_dataset"):
        notes.append(f"The judge {about['judge']} also chose the training pairs, so it favours what it chose: take another one.")
    if about["skipped"]:
        notes.append("Rows without a prompt of their own: " + ", ".join(f"{n} {why}" for why, n in about["skipped"].items()) + ".")
    failed = sum(r["error"] is not None for r in rows)
    unscored = sum(r["error"] is None and any(r[k] is None for k in r if k.startswith("reward_")) for r in rows)
    unread = sum("win" in r and r["win"] is None for r in rows)
    if failed or unscored or unread:
        notes.append(f"Left out of their figures: {failed} of {len(rows)} answers failed, {unscored} lack a score, "
                     f"{unread} comparisons could not be read.")
    return notes


def metrics_of(row: Mapping[str, Any], floors: Mapping[str, float]) -> dict[str, float]:
    """The row's metrics; NaN where one is missing. `harmful`: the harmless reward misses its floor."""
    rewards = {d: math.nan if row[f"reward_{d}"] is None else float(row[f"reward_{d}"]) for d in floors}
    complete = all(not math.isnan(v) for v in rewards.values())
    out = {f"reward_{d}": v for d, v in rewards.items()}
    out["joint_pass"] = float(all(v >= floors[d] for d, v in rewards.items())) if complete else math.nan
    if "harmless" in rewards:
        out["harmful"] = math.nan if math.isnan(rewards["harmless"]) else float(rewards["harmless"] < floors["harmless"])
    others = ("refusal", "degenerate", "length", "kl", "win", "length_gap")
    return out | {k: math.nan if row.get(k) is None else float(row[k]) for k in others}


def _table(rows: Sequence[Mapping[str, Any]], seeds: Mapping[str, Sequence[str]],
           floors: Mapping[str, float]) -> tuple[list[str], list[str], NDArray[np.int_], dict[str, NDArray[np.float64]]]:
    """Prompts, metric names, clusters, and per model S x P x M means over samples."""
    prompts = list(dict.fromkeys(r["prompt_id"] for r in rows))
    group = {r["prompt_id"]: r["group"] for r in rows}
    labels = {g: i for i, g in enumerate(dict.fromkeys(group.values()))}
    at = {p: i for i, p in enumerate(prompts)}
    names = list(metrics_of(rows[0], floors))
    sums = {m: np.zeros((2, len(s), len(prompts), len(names))) for m, s in seeds.items()}
    for r in rows:
        values = np.array(list(metrics_of(r, floors).values()))
        there = ~np.isnan(values)
        place = (list(seeds[r["model"]]).index(r["seed"]), at[r["prompt_id"]])
        sums[r["model"]][0][place] += np.where(there, values, 0)
        sums[r["model"]][1][place] += there
    means = {m: np.where(n > 0, total / np.maximum(n, 1), np.nan) for m, (total, n) in sums.items()}
    return prompts, names, np.array([labels[group[p]] for p in prompts]), means


def _set(rows: Sequence[Mapping[str, Any]], seeds: Mapping[str, Sequence[str]], reference: str, floors: Mapping[str, float],
         about: Mapping[str, Any]) -> dict[str, Any]:
    prompts, names, clusters, means = _table(rows, seeds, floors)
    drawn = dict(zip(means, hierarchical_bootstrap(list(means.values()), clusters, DRAWS, about["seed"]), strict=True))
    tested = [(m, k) for m in means if m != reference for k in range(len(floors))]
    p = {(m, k): _p(means[m], means[reference], drawn[m], drawn[reference], k, about["seed"]) for m, k in tested}
    adjusted = dict(zip(p, holm(np.array(list(p.values()))).tolist(), strict=True)) if p else {}
    found: dict[str, Any] = {}
    for m in means:
        entries = {name: _entry(name, k, drawn[m], drawn[reference] if m != reference else None, adjusted.get((m, k)),
                                len(prompts))
                   for k, name in enumerate(names) if name not in ("win", "length_gap")}
        found[m] = {"seeds": len(seeds[m]), "metrics": {n: e for n, e in entries.items() if e["mean"] is not None}}
        if m != reference:
            found[m]["win_rate"] = _win_rate(means[m], names, drawn[m], about["seed"])
            against = reference if len(seeds[reference]) > 1 else f"the one checkpoint of {reference}"
            found[m]["statement"] = statement(m, against, _differences(entries, list(floors), means[m], means[reference]),
                                              about["simulated"])
    return {"prompts": len(prompts), "models": found}


def _p(after: NDArray[np.float64], before: NDArray[np.float64], a: Resampled, b: Resampled, k: int, seed: int) -> float:
    """The larger of two p: sign flips of whole prompts, and the bootstrap over seeds and prompts."""
    gap_P = mean_over(after[:, :, k], 0) - mean_over(before[:, :, k], 0)  # NaN where either has none: no part in the test
    return max(float(sign_flip_test(gap_P[:, None], seed=seed)[0]), bootstrap_p(a.draws_B_M[:, k] - b.draws_B_M[:, k]))


def _entry(name: str, k: int, own: Resampled, reference: Resampled | None, p: float | None, n_prompts: int) -> dict[str, Any]:
    mean = float(own.estimate_M[k])
    ends = interval(own.draws_B_M[:, k])
    if ends and ends[0] == ends[1] and name in RATES:  # all alike: resampling can't tell 0 of 10 from 0 of 1000
        low, high = rate_interval(np.array([round(mean * n_prompts)]), np.array([n_prompts]))
        ends = (float(low[0]), float(high[0]))
    entry: dict[str, Any] = {"mean": None if math.isnan(mean) else mean, "interval": ends}
    if reference is not None and not math.isnan(mean) and not math.isnan(reference.estimate_M[k]):
        before = float(reference.estimate_M[k])
        entry |= {"points": mean - before, "points_interval": interval(own.draws_B_M[:, k] - reference.draws_B_M[:, k])}
        if name not in ("length", "kl"):  # relative figures only of bounded metrics
            entry["relative_percent"] = relative_improvement(mean, before)
        if p is not None:
            entry["p_holm"] = p
    return entry


def _win_rate(values: NDArray[np.float64], names: Sequence[str], own: Resampled, seed: int) -> dict[str, Any] | None:
    k, g = names.index("win"), names.index("length_gap")
    if math.isnan(own.estimate_M[k]):
        return None
    wins, gaps = values[:, :, k].ravel(), values[:, :, g].ravel()
    rate, ends = length_controlled_win_rate(wins, gaps, seed=seed)
    return {"rate": float(own.estimate_M[k]), "interval": interval(own.draws_B_M[:, k]), "length_controlled": rate,
            "length_controlled_interval": ends, "n": int(np.isfinite(wins).sum())}


def _differences(entries: Mapping[str, Mapping[str, Any]], dims: Sequence[str], after: NDArray[np.float64],
                 before: NDArray[np.float64]) -> dict[str, Difference]:
    out = {}
    for k, d in enumerate(dims):
        e = entries[f"reward_{d}"]
        if "points" in e:
            n = int((np.isfinite(after[:, :, k]).any(0) & np.isfinite(before[:, :, k]).any(0)).sum())
            out[d] = Difference(d, e["points"], e["points_interval"], e.get("p_holm"), n, len(after))
    return out


def _sequence(models: Mapping[str, Any], dims: Sequence[str], order: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """The matrix a_{t,d}, each dimension's final gain, and what later stages did to it (BWT)."""
    matrix = np.array([[_mean_of(models[m], d) for d in dims] for m, _ in order])
    at = [next((t for t, (_, label) in enumerate(order) if label == d), None) for d in dims]
    transfer = backward_transfer(matrix, at)
    return {"stages": [m for m, _ in order], "matrix": {m: dict(zip(dims, _nulls(row), strict=True))
                                                        for (m, _), row in zip(order, matrix, strict=True)},
            "final_gain": dict(zip(dims, _nulls(matrix[-1] - matrix[0]), strict=True)),
            "backward_transfer": dict(zip(dims, _nulls(transfer), strict=True))}


def _mean_of(model: Mapping[str, Any], dimension: str) -> float:
    return float(model["metrics"].get(f"reward_{dimension}", {}).get("mean", math.nan))


def _nulls(values: NDArray[np.float64]) -> list[float | None]:
    return [None if math.isnan(v) else float(v) for v in values]


def _scaling(rows: Sequence[Mapping[str, Any]], seeds: Mapping[str, Sequence[str]], floors: Mapping[str, float],
             points: Sequence[tuple[str, str]], seed: int) -> dict[str, Any]:
    """a + b (1 - exp(-n / n0)) for each dimension's mean reward over the number of pairs."""
    _, names, clusters, means = _table(rows, seeds, floors)
    drawn = hierarchical_bootstrap([means[m] for m, _ in points], clusters, DRAWS, seed)
    sizes = [float(n) for _, n in points]
    out: dict[str, Any] = {"pairs": sizes}
    for k, name in enumerate(names[:len(floors)]):
        y = np.array([r.estimate_M[k] for r in drawn])
        fit = None if np.isnan(y).any() else scaling_fit(sizes, y, np.column_stack([r.draws_B_M[:, k] for r in drawn]))
        out[name] = None if fit is None else asdict(fit)
    return out


def markdown(found: Mapping[str, Any]) -> str:
    """The tables, one per set of prompts, and under each what it supports."""
    lines = ["# Evaluation", "", *(f"> {note}" for note in found["notes"]), "",
             f"Reference: {found['reference']}. Judge: {found['judge']}. Rewards and rates in [0, 1], length in tokens; difference "
             "to the reference in points with its 95 % interval, paired by prompt, over seeds and prompts; p by Holm over models "
             "and dimensions.", ""]
    for part, s in found["sets"].items():
        lines += [f"## {part}: {s['prompts']} prompts" + (" (refusals here are over-refusals)" if part == SAFE else ""), "",
                  "| model | seeds | metric | mean | points | relative | p |", "|---|---|---|---|---|---|---|"]
        for name, model in s["models"].items():
            lines += [f"| {name} | {model['seeds']} | {metric} | {_ends(e['mean'], e['interval'])} | "
                      f"{_ends(e.get('points'), e.get('points_interval'), '+')} | {_percent(e.get('relative_percent'))} | "
                      f"{_number(e.get('p_holm'))} |" for metric, e in model["metrics"].items()]
            if w := model.get("win_rate"):
                lines.append(f"| {name} | {model['seeds']} | win rate, both orders | {_ends(w['rate'], w['interval'])} | | | |")
                lines.append(f"| {name} | {model['seeds']} | win rate at equal length | "
                             f"{_ends(w['length_controlled'], w['length_controlled_interval'])} | | | |")
        lines += ["", *(f"- {m['statement']}" for m in s["models"].values() if "statement" in m), ""]
    if "sequence" in found:
        q = found["sequence"]
        dims = list(q["final_gain"])
        rows = [*q["matrix"].items(), ("final gain", q["final_gain"]), ("backward transfer", q["backward_transfer"])]
        lines += ["## Sequence", "", f"| after | {' | '.join(dims)} |", "|---|" + "---|" * len(dims),
                  *(f"| {name} | {' | '.join(_number(values[d]) for d in dims)} |" for name, values in rows), ""]
    if "scaling" in found:
        sizes = ", ".join(f"{n:g}" for n in found["scaling"]["pairs"])
        lines += ["## Scaling", "", f"a + b (1 - exp(-n / n0)) over {sizes} pairs; three sizes at least.", "",
                  "| metric | a | b | n0 |", "|---|---|---|---|"]
        lines += [f"| {k} | {_number(f['a'])} | {_ends(f['b'], f['b_interval'])} | {_number(f['n0'])}"
                  f"{' (at the end of the search: no saturation seen)' if f['at_edge'] else ''} |"
                  for k, f in found["scaling"].items() if k != "pairs" and f]
        lines.append("")
    return "\n".join([*lines, found["paper"], ""])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:+.1f} %"


def _ends(value: float | None, ends: Sequence[float] | None, sign: str = "") -> str:
    if value is None:
        return ""
    return f"{value:{sign}.3g}" + (f" [{ends[0]:{sign}.3g}, {ends[1]:{sign}.3g}]" if ends else "")
