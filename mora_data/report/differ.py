"""What else differs between two runs than the number that is looked at: the doubts of a comparison,
the gravest first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..statistics.expansion import LEAST_PROMPTS

SIZES = 1.5  # how many times as large one side may be before it is said
NOISE = 1.25
UNNAMED = ("name", "out")  # settings that change no row


def settings_that_differ(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Leaves of the two trees that are not the same, by their dotted names."""
    one, two = dict(_leaves(a)), dict(_leaves(b))
    keys = [k for k in dict.fromkeys([*one, *two]) if k not in UNNAMED and one.get(k) != two.get(k)]
    return [{"setting": k, "a": one.get(k), "b": two.get(k)} for k in sorted(keys)]


def _leaves(tree: Mapping[str, Any], start: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{start}{key}.")
        else:
            yield start + str(key), value


def doubts(tree: Mapping[str, Any]) -> list[str]:
    """Sentences; empty where nothing but the numbers differs."""
    return [*_of_sides(tree), *_of_scale(tree), *_of_prompts(tree), *_of_numbers(tree)]


def _of_sides(t: Mapping[str, Any]) -> Iterator[str]:
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


def _of_scale(t: Mapping[str, Any]) -> Iterator[str]:
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
    noise = [d for d in t["dimensions"] if _ratio(a["sigma"].get(d), b["sigma"].get(d)) > NOISE]
    if noise:
        yield (
            f"The scorers' noise differs ({', '.join(noise)}): the dominance rate counts gaps of"
            " two sigma, so it differs, too."
        )
    n = len(t["settings"])
    if n:
        shown = ", ".join(s["setting"] for s in t["settings"][:4])
        said = "1 setting differs" if n == 1 else f"{n} settings differ"
        yield f"{said} ({shown}{', ...' if n > 4 else ''}): the table of them is below."


def _of_prompts(t: Mapping[str, Any]) -> Iterator[str]:
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
    if _ratio(a["pairs"] or None, b["pairs"] or None) > SIZES and not (a["arm"] or b["arm"]):
        yield f"The sizes differ: {a['pairs']:,} pairs in A, {b['pairs']:,} in B."
    if 0 < least < LEAST_PROMPTS:
        yield (
            f"The smaller side has {least:,} prompts: under {LEAST_PROMPTS} only a large difference"
            " can be seen."
        )


def _of_numbers(t: Mapping[str, Any]) -> Iterator[str]:
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
