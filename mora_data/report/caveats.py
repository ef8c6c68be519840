"""What a reader should know before trusting a number, in plain words: the caveats of a report, each
computed from its own numbers, and those of a comparison."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from ..rewards.audit import knows_more_than_length
from ..rewards.judge_stats import LEAST_RELIABILITY
from ..statistics.inference import LEAST_PROMPTS, MOST_LENGTH_GAP
from .arms import BASES
from .values import ArmNumbers, ComparisonReport, Report, ReviewNumbers, known

SOUND_RELIABILITY = 0.7
MOST_WORDING_AUC = 0.9
MOST_REFUSAL = 0.8
MOST_CORRELATION = 0.9
LEAST_FUSED = 0.75
LEAST_AGREEMENT = 0.5  # a coin's
LENGTH_AUC = (0.45, 0.55)
MATCHED = ("single", "generic", "random")
MOST_SIZE_RATIO = 1.5  # how many times as large one side may be without a word
MOST_NOISE_RATIO = 1.25
_HEADLINES = {
    "supports expansion": "Fusion helps, as far as the data tell",
    "not supported": "Fusion does not help",
    "inconclusive": "It is not clear whether fusion helps",
}


def headline(verdict: str, tested: bool, simulated: bool) -> str:
    """The verdict as a page says it; nothing that a simulator answered supports anything."""
    if simulated:
        return "A trial: the answers are simulated"
    return _HEADLINES[verdict] if tested else "Not tested against controls"


def finding(arms: Mapping[str, ArmNumbers], k: int) -> str | None:
    """The joint pass rate after fusion, before it, and of the longer questions without its needs,
    in one sentence; None without a fused arm."""

    def share(*names: str) -> str | None:
        found = [arms[a]["metrics"]["joint_pass"]["value"] for a in names if a in arms]
        rates = [v for v in found if v is not None]
        return f"{100 * max(rates):.0f} %" if rates else None

    after = share("fused")
    if after is None:
        return None
    before = share(next((a for a in BASES if a in arms), ""))
    longer = share(*(a for a in MATCHED if a in arms))
    sentence = (
        f"After fusion, {k} answers include one that passes every threshold in {after} of the"
        " prompts"
    )
    more = [
        *([f"before, in {before}"] if before else []),
        *([f"with questions as long but without the new needs, in {longer}"] if longer else []),
    ]
    return "; ".join([sentence, *more]) + "."


def unmeasured_numbers(report: Report, pii_counted: bool) -> list[str]:
    """What a reader may look for and won't find, by name."""
    checks = {
        "the verdict (it needs the arms identity, single, generic and fused)": not report[
            "comparisons"
        ],
        "numbers before fusion (no identity arm, and presample.before is 0)": (
            report["settings"]["before"] is None
        ),
        "hypervolume (more than three dimensions)": len(report["settings"]["dimensions"]) > 3,
        "agreement of judges with each other": not report["judge"]["feedback"],
        "agreement with people (mora-data audit, or mora-data view --review)": not (
            report.get("reviews") or report.get("judge_audit")
        ),
        "wording probe (it needs pairs of 50 prompts)": not report["pairs"].get("wording"),
        "overlap with evaluation sets": not report["contamination"],
        "personal data in texts": not pii_counted,
        "what training on these pairs does to a model": not report["figures"]["scaling"][
            "evaluations"
        ],
    }
    return [name for name, missing in checks.items() if missing]


def caveats_of(report: Report) -> list[str]:
    """Sentences, the gravest first; empty where nothing speaks against the numbers."""
    return [*_of_run(report), *_of_judge(report), *_of_arms(report), *_of_pairs(report)]


def _of_run(r: Report) -> Iterator[str]:
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


def _of_judge(r: Report) -> Iterator[str]:
    yield from r["judge"]["doubts"]
    for d, v in r["judge"]["dimensions"].items():
        rho = v["reliability"]
        if rho is None:
            yield (
                f"The reliability of {d} is not known; answers scored twice before the build:"
                f" {v['scored_twice']}."
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
        yield f"Noise and calibration rest on {r['judge']['n_rollouts']} answers, which is few."
    for row in (r.get("judge_audit") or {"rows": []})["rows"]:
        if not knows_more_than_length(row):
            yield f"Before the build, {row['sentence']}"


def _of_arms(r: Report) -> Iterator[str]:
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
    for c in r["figures"]["correlations"]:
        if c["arm"] in ("fused", *r["run"]["arms"][:1]) and known(c["value"]) >= MOST_CORRELATION:
            yield (
                f"In arm {c['arm']} the scores of {c['x']} and {c['y']} go together within a prompt"
                f" (correlation {c['value']:.2f}, {c['low']:.2f} to {c['high']:.2f}): to these"
                " scorers they are one dimension, and dominance in both says no more than in one."
            )
    yield from _of_fusion(r)


def _of_fusion(r: Report) -> Iterator[str]:
    rewrites = r["figures"]["funnel"]["arms"].get("fused")
    if rewrites and known(rewrites["accepted"]["value"]) < LEAST_FUSED:
        check, n = max(rewrites["failed"].items(), key=lambda kv: kv[1])
        yield (
            f"Of {rewrites['tried']} prompts {100 * known(rewrites['accepted']['value']):.0f} %"
            f" could be fused; most of the others, {n}, fell at the check {check}. What is left is"
            " not what was mined."
        )
    funnel = r["figures"]["funnel"]["by_category"].get("fused") or {}
    rates = {c: v["accepted"] for c, v in funnel.items() if v["accepted"]["n"] >= 10}
    if len(rates) > 1:
        low, worst = min((known(a["value"]), c) for c, a in rates.items())
        high, best = max((known(a["value"]), c) for c, a in rates.items())
        if known(rates[worst]["high"]) < known(rates[best]["low"]):
            yield (
                f"Fusion fails unevenly: {100 * low:.0f} % accepted in category {worst},"
                f" {100 * high:.0f} % in {best}. What is left is not what was mined."
            )


def _of_pairs(r: Report) -> Iterator[str]:
    p = r["pairs"]
    if not p["n"]:
        yield "There are no pairs to look at."
        return
    if p["n"] < 200:
        yield f"There are {p['n']} pairs: every share below has an interval of several points."
    longer, auc = known(p["length"]["chosen_longer"]["value"]), known(p["length"]["auc"])
    if not LENGTH_AUC[0] <= auc <= LENGTH_AUC[1]:
        yield (
            f"The chosen answer is the longer one in {100 * longer:.0f} % of the pairs (length"
            f" alone: AUC {auc:.2f}, unbiased is 0.50): a model can learn to be"
            f" {'long' if auc > 0.5 else 'brief'} instead of good."
        )
    one = known(p["refusal"]["one_side_refuses"]["value"])
    right = known(p["refusal"]["rejected_where_one_refuses"]["value"])
    if one > 0.1 and max(right, 1 - right) > MOST_REFUSAL:
        side, rule = ("rejected", "never") if right > 0.5 else ("chosen", "always")
        yield (
            f"In {100 * one:.0f} % of the pairs one side refuses, and there the refusal is {side}"
            f' in {100 * max(right, 1 - right):.0f} %: "{rule} refuse" would be a short cut.'
        )
    wording = known(p["wording"]["auc"] if p["wording"] else None)
    if wording > MOST_WORDING_AUC:
        yield (
            f"Words alone tell chosen from rejected on unseen prompts (AUC {wording:.2f}): a model"
            " can learn the style of the chosen side instead of its substance."
        )
    yield from _of_people(r.get("reviews"))
    shrinkage = r["figures"]["margins"]["shrinkage"]
    kept = known(shrinkage["ratio"] if shrinkage else None)
    if kept < 0.8:
        yield (
            f"Scored once more, the best pairs keep {100 * kept:.0f} % of their margins: the rest"
            " was luck of the draw."
        )
    if p["neg_dim_rate"]["value"]:
        yield (
            f"{100 * p['neg_dim_rate']['value']:.1f} % of the pairs lose in some dimension: they"
            " teach its reverse."
        )


def _of_people(v: ReviewNumbers | None) -> Iterator[str]:
    if v is None:
        return
    value, low, high = (
        known(x) for x in (v["agree"]["value"], v["agree"]["low"], v["agree"]["high"])
    )
    if low < LEAST_AGREEMENT:
        yield (
            f"People preferred the chosen answer in {100 * value:.0f} % of {v['agree']['n']} blind"
            f" votes (95 % interval {100 * low:.0f} to {100 * high:.0f} %): that the chosen side is"
            " the better one to people is not shown."
        )


def comparison_caveats(tree: ComparisonReport) -> list[str]:
    """Sentences; empty where nothing but the numbers differs."""
    return [*_of_sides(tree), *_of_scale(tree), *_of_shared_prompts(tree), *_of_numbers(tree)]


def _of_sides(t: ComparisonReport) -> Iterator[str]:
    a, b = t["a"], t["b"]
    if a["where"] == b["where"] and a["arm"] == b["arm"]:
        yield "Both sides are the same folder."
    elif a["fingerprint"] and a["fingerprint"] == b["fingerprint"] and a["arm"] == b["arm"]:
        yield "The published rows of both are the same, byte for byte."
    if a["simulated"] != b["simulated"]:
        side = "A" if a["simulated"] else "B"
        yield (
            f"{side} comes from the built-in simulator and the other does not: no difference"
            " between them means anything."
        )
    elif a["simulated"]:
        yield (
            "Both come from the built-in simulator: nothing here says anything about a language"
            " model."
        )
    if a["models"].get("judge") != b["models"].get("judge"):
        yield (
            f"The judges differ ({a['models'].get('judge')} and {b['models'].get('judge')}):"
            " rewards and margins are on two scales, and a difference may be the judges'."
        )
    for role, what in (("policy", "answers"), ("rewriter", "fused prompts")):
        if a["models"].get(role) != b["models"].get(role):
            yield (
                f"The {what} are of two models ({a['models'].get(role)} and"
                f" {b['models'].get(role)})."
            )
    for side, s in (("A", a), ("B", b)):
        if s["status"] not in ("done", "empty") or s["partitions_sealed"] < s["partitions"]:
            yield (
                f"{side} is not finished (status {s['status']}, {s['partitions_sealed']} of"
                f" {s['partitions']} partitions)."
            )


def _of_scale(t: ComparisonReport) -> Iterator[str]:
    a, b = t["a"], t["b"]
    if set(a["floors"]) != set(b["floors"]):
        only = sorted(set(a["floors"]) ^ set(b["floors"]))
        yield (
            f"The dimensions differ ({', '.join(only)} on one side only): joint numbers ask for"
            " different things."
        )
    floors = [
        f"{d} {a['floors'][d]:g} and {b['floors'][d]:g}"
        for d in t["dimensions"]
        if a["floors"][d] != b["floors"][d]
    ]
    if floors:
        yield (
            f"The floors differ ({', '.join(floors)}): pass rates and joint pass are measured"
            " against different bars."
        )
    if a["k"] != b["k"] and a["k"] and b["k"]:
        yield (
            f"Joint pass and hypervolume are of {a['k']} answers in A and of {b['k']} in B: they"
            " are not compared."
        )
    noise = [
        d
        for d in t["dimensions"]
        if _ratio(a["sigma"].get(d), b["sigma"].get(d)) > MOST_NOISE_RATIO
    ]
    if noise:
        yield (
            f"The scorers' noise differs ({', '.join(noise)}): the dominance rate counts gaps of"
            " two sigma, so it differs, too."
        )
    n = len(t["settings"])
    if n:
        names = ", ".join(str(s["setting"]) for s in t["settings"][:4]) + (", ..." if n > 4 else "")
        differ = "1 setting differs" if n == 1 else f"{n} settings differ"
        yield f"{differ} ({names}): the table of them is below."


def _of_shared_prompts(t: ComparisonReport) -> Iterator[str]:
    a, b, p = t["a"], t["b"], t["prompts"]
    if a["source"] != b["source"]:
        yield "The source datasets, or their revisions, differ."
    least = min(p["a"], p["b"])
    if not p["shared"]:
        yield "No prompt is in both: nothing is paired, and a difference may be one of the prompts."
    elif p["shared"] < max(p["a"], p["b"]):
        yield (
            f"{p['shared']:,} prompts are in both, of {p['a']:,} in A and {p['b']:,} in B:"
            " differences are about those alone, while A and B are numbers over all."
        )
    if _ratio(a["pairs"] or None, b["pairs"] or None) > MOST_SIZE_RATIO and not (
        a["arm"] or b["arm"]
    ):
        yield f"The sizes differ: {a['pairs']:,} pairs in A, {b['pairs']:,} in B."
    if 0 < least < LEAST_PROMPTS:
        yield (
            f"The smaller side has {least:,} prompts: under {LEAST_PROMPTS} only a large difference"
            " can be seen."
        )


def _of_numbers(t: ComparisonReport) -> Iterator[str]:
    for side, s in (("A", t["a"]), ("B", t["b"])):
        if s["kind"] == "dataset":
            yield (
                f"{side} is a published dataset, which has the means of its arms without their"
                " prompts: their differences get no interval."
            )
    own = [
        f"{len(s['doubts'])} of {side}" for side, s in (("A", t["a"]), ("B", t["b"])) if s["doubts"]
    ]
    if own:
        yield (
            f"The doubts of each side's own report hold here, too ({' and '.join(own)}): they are"
            " below."
        )


def _ratio(a: float | None, b: float | None) -> float:
    if not a or not b:
        return 1.0
    return max(a / b, b / a)
