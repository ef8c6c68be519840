"""Adaptive presampling: samples used, and kinds that come out as 64 samples would have said, on a
fixed mix of prompts.

    python benchmarks/adaptive.py [--prompts 1000] [--seed 0] [--step 4] [--oracle 0]

The mix, written down before anything was measured on it and not to be tuned:

    30 % flat      every dimension steady
    30 % one_dim   one dimension p ~ Beta(4, 4), the others steady
    25 % conflict  helpful p ~ Beta(4, 4); harmless passes where helpful fails, and the other way,
    in 95 of 100 answers; truthful
                   steady
    15 % multi     two dimensions p ~ Beta(4, 4), joined by a Gaussian copula of correlation 0.5,
    the third steady

A steady dimension is saturated, p ~ Beta(60, 1), in 7 of 10 cases and starved, p ~ Beta(1, 60), in
the rest. A passing answer is a judge's 5, a failing one a 2; the judge is off by one level, up or
down within the scale, in one verdict of ten. p_d is the chance that the true level passes the floor
of 0.75, and an error of one level carries none across it.

Every scheme sees the same answers in the same order; fixed N = 64 is the reference. Phase 0 (256
prompts of 16 answers) is part of the bill: none of its prompts counts for less than 16. Intervals:
95 %, over prompts.

    decided    agreement with fixed N = 64 over the prompts that it decides: the kinds of the goal,
    40 % of the samples at 97 % labels     agreement over all prompts, `undecided` a label like the
    others planted    the kinds from which the answers were drawn
    samples    share of the samples of fixed N = 64

`--oracle n` adds rows over n prompts for a stopper that knows the mix itself (adaptive_oracle.py):
how far the labels could be foreseen at all.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

KINDS, SHARES = ("flat", "one_dim", "conflict", "multi"), (0.30, 0.30, 0.25, 0.15)
DIMS, LAST = ("helpful", "harmless", "truthful"), 64
ERRORS = (0.02, 0.03, 0.04, 0.05, 0.1, 0.2)
SLIP = 0.1  # verdicts off by one level


def world(n_prompts: int, seed: int) -> tuple[Any, Any]:
    """The mix: kinds_P, and rewards_P_N_D of LAST answers each."""
    rng = np.random.default_rng(seed)
    kinds = rng.choice(len(KINDS), n_prompts, p=SHARES)
    passes = np.stack([_passes(KINDS[k], rng) for k in kinds])
    levels = np.where(passes, 5, 2)
    slips = np.where(rng.random(levels.shape) < 0.5, 1, -1) * (rng.random(levels.shape) < SLIP)
    return kinds, (np.clip(levels + slips, 1, 5) - 1) / 4


def noise() -> float:
    """sigma of one verdict: sqrt(mean (s1 - s2)^2 / 2) of two verdicts on the same answer, a level
    of 5 half of the time."""
    variance_2 = SLIP / 16  # up and down alike
    slip_5 = SLIP / 2  # upwards stays 5
    return float(np.sqrt((variance_2 + slip_5 * (1 - slip_5) / 16) / 2))


def _passes(kind: str, rng: np.random.Generator) -> Any:
    out = np.stack([rng.random(LAST) < _steady(rng) for _ in DIMS], axis=1)
    if kind == "one_dim":
        out[:, rng.integers(3)] = rng.random(LAST) < rng.beta(4, 4)
    elif kind == "conflict":
        out[:, 0] = rng.random(LAST) < rng.beta(4, 4)
        out[:, 1] = ~out[:, 0] ^ (rng.random(LAST) < 0.05)
    elif kind == "multi":
        common = rng.normal(size=LAST)
        for d in rng.choice(3, 2, replace=False):
            score = np.sqrt(0.5) * common + np.sqrt(0.5) * rng.normal(size=LAST)
            cut = np.quantile(rng.normal(size=100_000), 1 - rng.beta(4, 4))
            out[:, d] = score > cut
    return out


def _steady(rng: np.random.Generator) -> float:
    return float(rng.beta(60, 1) if rng.random() < 0.7 else rng.beta(1, 60))


def fixed(rewards: Any, last: int) -> tuple[Any, Any]:
    """The kinds of the first `last` samples, and what they cost."""
    from mora_data.statistics.rollouts import decisions

    return decisions(rewards[:, :last], *_rule()).kind_P, np.full(len(rewards), last)


def schedule(rewards: Any, counts: Sequence[int] = (16, 32, 64)) -> tuple[Any, Any]:
    """The default: the next count of the schedule for the undecided alone."""
    kind, used = fixed(rewards, counts[0])
    for n in counts[1:]:
        kind, used = np.where(kind == 4, fixed(rewards, n)[0], kind), np.where(kind == 4, n, used)
    return kind, used


def foresight(rewards: Any, step: int, prior_from: int = 256) -> Any:
    """Chance of each kind at every look, P x looks x kinds, by `presample.step`; after a look that
    settles all, NaN."""
    from mora_data.statistics.rollouts import foreseen, likeliest, rate_prior

    rule = _rule()
    first = rewards[:prior_from, :16] >= rule[0]
    prior = np.stack([rate_prior(first[..., d].sum(1), np.full(len(first), 16)) for d in range(3)])
    looks = range(step, LAST, step)
    out = np.full((len(rewards), len(looks), 5), np.nan)
    for p in range(len(rewards)):
        for i, n in enumerate(looks):
            out[p, i] = foreseen(rewards[p, :n], [LAST], *rule, prior_D_B=prior, seed=p)
            if min(likeliest(out[p, i], which)[1] for which in ("decision", "label")) >= 1 - min(
                ERRORS
            ):
                break
    return out


def stopped(
    chances: Any, reference: Any, step: int, error: float, foresee: str, prior_from: int = 256
) -> tuple[Any, Any]:
    """The kinds found and the samples used: the first look that is sure, else all N."""
    from mora_data.statistics.rollouts import KINDS as NAMES
    from mora_data.statistics.rollouts import likeliest

    kinds, used = reference.copy(), np.full(len(reference), LAST)
    for p in range(len(reference)):
        for i, chance in enumerate(chances[p]):
            kind, sure = likeliest(chance, foresee)
            if sure >= 1 - error:
                kinds[p], used[p] = NAMES.index(kind), step * (i + 1)
                break
    used[:prior_from] = np.maximum(used[:prior_from], 16)
    return kinds, used


def _rule() -> tuple[Any, Any, Any]:
    from mora_data.settings import PresampleSettings

    return np.full(3, 0.75) - 1e-9, np.full(3, noise()), PresampleSettings()


def interval(values: Any) -> list[float]:
    """Mean with its 95 % interval over prompts: `rate_interval` for shares of prompts, else
    normal."""
    from mora_data.statistics.inference import rate_interval

    mean, half = float(values.mean()), 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5
    low, high = (mean - half, mean + half)
    if values.dtype == bool:
        low, high = (float(end) for end in rate_interval(values.sum(), np.array(len(values))))
    return [round(mean, 4), round(low, 4), round(high, 4)]


def row(name: str, found: Any, used: Any, kinds: Any, reference: Any) -> dict[str, Any]:
    decided = reference != 4
    return {
        "scheme": name,
        "samples": interval(used / LAST),
        "decided": interval((found == reference)[decided]),
        "labels": interval(found == reference),
        "planted": interval(found == kinds),
        "undecided": round(float((found == 4).mean()), 4),
    }


def results(n_prompts: int, seed: int, step: int, oracle: int) -> Iterator[dict[str, Any]]:
    """One row per scheme."""
    kinds, rewards = world(n_prompts, seed)
    reference, used = fixed(rewards, LAST)
    yield row("fixed 64", reference, used, kinds, reference)
    yield row("16 -> 32 -> 64", *schedule(rewards), kinds, reference)
    for n in (16, 26):
        yield row(f"fixed {n}", *fixed(rewards, n), kinds, reference)
    start = time.process_time()
    chances = foresight(rewards, step)
    per_look = (time.process_time() - start) / (~np.isnan(chances[..., 0])).sum()
    for foresee in ("decision", "label"):
        for error in ERRORS:
            found = stopped(chances, reference, step, error, foresee)
            yield row(f"step {step}, {foresee}, error {error}", *found, kinds, reference)
    yield {"cpu_ms_per_look": round(1000 * per_look, 2)}
    if oracle:
        from adaptive_oracle import foresight as known

        kinds, rewards, reference = kinds[:oracle], rewards[:oracle], reference[:oracle]
        chances = known(rewards, range(step, LAST, step), _rule())
        for foresee in ("decision", "label"):
            for error in ERRORS:
                found = stopped(chances, reference, step, error, foresee, prior_from=0)
                yield row(f"knows the mix, {foresee}, error {error}", *found, kinds, reference)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--step", type=int, default=4)
    parser.add_argument("--oracle", type=int, default=0, metavar="PROMPTS")
    args = parser.parse_args()
    for line in results(args.prompts, args.seed, args.step, args.oracle):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
