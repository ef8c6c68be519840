"""What a reader should doubt, in plain words, each computed from the report's own numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from ..statistics.expansion import LEAST_PROMPTS, MOST_LENGTH_GAP

LEAST_RELIABILITY = 0.3
SOUND_RELIABILITY = 0.7
MOST_WORDING_AUC = 0.9
MOST_REFUSAL = 0.8
LEAST_AGREEMENT = 0.5  # a coin's
LENGTH_AUC = (0.45, 0.55)
MATCHED = ("single", "generic", "random")


def doubts(report: Mapping[str, Any]) -> list[str]:
    """Sentences, the gravest first; empty where nothing speaks against the numbers."""
    return [*_of_run(report), *_of_judge(report), *_of_arms(report), *_of_pairs(report)]


def _of_run(r: Mapping[str, Any]) -> Iterator[str]:
    run = r["run"]
    if run["simulated"]:
        yield (
            "The answers and scores come from the built-in simulator: nothing here says anything"
            " about a language model."
        )
    if run["partitions_sealed"] < run["partitions"]:
        yield (
            f"The run is not finished: {run['partitions_sealed']} of {run['partitions']} partitions"
            " are in here; the prompts of the others may differ."
        )
    elif run["status"] not in ("done", "empty"):
        yield (
            f"The build did not come to its end (status {run['status']}): what its manifest would"
            " say is missing here."
        )
    if run["judge_is_policy"]:
        yield "Judge and policy are one model, which tends to favour its own answers."


def _of_judge(r: Mapping[str, Any]) -> Iterator[str]:
    for d, v in r["judge"]["dimensions"].items():
        rho = v["reliability"]
        if rho is None:
            yield (
                f"The reliability of {d} was not measured: no answer was scored twice before the"
                " build."
            )
        elif rho < LEAST_RELIABILITY:
            yield (
                f"{d}: reliability {rho:.2f}. Most of the difference between two scores is noise;"
                f" margins in {d} are mostly luck."
            )
        elif rho < SOUND_RELIABILITY:
            yield (
                f"{d}: reliability {rho:.2f}. About {100 * (1 - rho):.0f} % of the variance between"
                " answers is the scorer's noise."
            )
    if r["judge"]["provisional"]:
        yield f"Noise was measured on {r['judge']['n_rollouts']} answers only, which is few."


def _of_arms(r: Mapping[str, Any]) -> Iterator[str]:
    n = min((c["n"] for c in r["comparisons"]), default=None)
    if n is not None and n < LEAST_PROMPTS:
        yield (
            f"Arms are compared on {n} prompts. Under {LEAST_PROMPTS} the absence of an effect"
            " can't be shown, and only a large one can be seen."
        )
    gaps = {
        a: v["prompt_length"]["log_ratio_to_fused"] for a, v in r["arms"].items() if a in MATCHED
    }
    uneven = [
        f"{a} {100 * abs(math.expm1(g)):.0f} % {'longer' if g > 0 else 'shorter'}"
        for a, g in gaps.items()
        if g is not None and abs(g) > MOST_LENGTH_GAP
    ]
    if uneven:
        yield (
            f"Prompts of the control arms are not as long as the fused ones ({', '.join(uneven)}):"
            " a difference may come from length."
        )
    for arm, v in r["arms"].items():
        scored = v["metrics"]["scored"]["value"]
        if scored is not None and scored < 0.8:
            yield (
                f"In arm {arm} only {100 * scored:.0f} % of the answers could be scored; the others"
                " are left out, not counted as bad."
            )
    yield from _of_fusion(r)


def _of_fusion(r: Mapping[str, Any]) -> Iterator[str]:
    funnel = r["figures"]["funnel"]["by_category"].get("fused") or {}
    rates = {c: v["accepted"] for c, v in funnel.items() if v["accepted"]["n"] >= 10}
    if len(rates) > 1:
        worst = min(rates, key=lambda c: (rates[c]["value"], c))
        best = max(rates, key=lambda c: (rates[c]["value"], c))
        if rates[worst]["high"] < rates[best]["low"]:
            yield (
                f"Fusion fails unevenly: {100 * rates[worst]['value']:.0f} % accepted in category"
                f" {worst}, {100 * rates[best]['value']:.0f} % in {best}. What is left is not what"
                " was mined."
            )


def _of_pairs(r: Mapping[str, Any]) -> Iterator[str]:
    p = r["pairs"]
    if not p["n"]:
        yield "There are no pairs to look at."
        return
    if p["n"] < 200:
        yield f"There are {p['n']} pairs: every share below has an interval of several points."
    longer, auc = p["length"]["chosen_longer"]["value"], p["length"]["auc"]
    if not LENGTH_AUC[0] <= auc <= LENGTH_AUC[1]:
        yield (
            f"The chosen answer is the longer one in {100 * longer:.0f} % of the pairs (length"
            f" alone: AUC {auc:.2f}, unbiased is 0.50): a model can learn to be"
            f" {'long' if auc > 0.5 else 'brief'} instead of good."
        )
    one, right = (
        p["refusal"]["one_side_refuses"],
        p["refusal"]["rejected_where_one_refuses"]["value"],
    )
    if one["value"] > 0.1 and right is not None and max(right, 1 - right) > MOST_REFUSAL:
        loser = right > 0.5
        yield (
            f"In {100 * one['value']:.0f} % of the pairs one side refuses, and there the"
            " refusal is "
            f"{'rejected' if loser else 'chosen'} in "
            f'{100 * max(right, 1 - right):.0f} %: "{"never" if loser else "always"} refuse" would'
            " be a short cut."
        )
    if p["wording"] and p["wording"]["auc"] > MOST_WORDING_AUC:
        yield (
            "Words alone tell chosen from rejected on unseen prompts (AUC"
            f" {p['wording']['auc']:.2f}): a model can learn the style of the chosen side instead"
            " of its substance."
        )
    yield from _of_people(r.get("reviews"))
    shrink = r["figures"]["margins"]["shrinkage"]
    if shrink and shrink["ratio"] is not None and shrink["ratio"] < 0.8:
        yield (
            f"Scored once more, the best pairs keep {100 * shrink['ratio']:.0f} % of their margins:"
            " the rest was luck of the draw."
        )
    if p["neg_dim_rate"]["value"]:
        yield (
            f"{100 * p['neg_dim_rate']['value']:.1f} % of the pairs lose in some dimension: they"
            " teach its reverse."
        )


def _of_people(v: Mapping[str, Any] | None) -> Iterator[str]:
    if v and v["agree"]["high"] is not None and v["agree"]["low"] < LEAST_AGREEMENT:
        low, high = v["agree"]["low"], v["agree"]["high"]
        yield (
            f"People preferred the chosen answer in {100 * v['agree']['value']:.0f} % of"
            f" {v['agree']['n']} blind votes (95 % interval {100 * low:.0f} to {100 * high:.0f} %):"
            " that the chosen side is the better one to people is not shown."
        )
