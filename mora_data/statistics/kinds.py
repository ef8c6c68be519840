"""The kind of a prompt, from its presamples, and when to stop presampling: as soon as what the
schedule would decide is known.

The schedule tries the decision rule at growing numbers of samples, the last of them N, and takes
the first that decides. At any look, the answers still to come are drawn from their posterior, the
schedule is run on each completed sample, and sampling stops when one kind comes out with
probability 1 - error or more:

    P(kind = k | first n) = mean over draws of 1[schedule(first n, N - n answers drawn) = k]
    `foreseen`
    decision: P(kind = k | first n, the schedule decides);  label: `undecided` is a kind like the
        others    `likeliest`

The bound holds however often one looks: whenever sampling stops, the chance that the schedule
would have said something else is at most `error` given the data, so over many prompts at most that
share of the kinds differs in expectation, as far as the model of the answers holds. Whether N
samples would fall short of a decision is the hardest thing to foresee, since it hangs on one answer
more or less, and is nothing about the prompt: hence `decision` by default.

The model: the answers to come are like those seen, with weights of the Bayesian bootstrap (Rubin
1981) and one further answer of a sort not seen yet. In a dimension whose answers so far all pass,
or all fail, the pass rate is drawn from its posterior, and an answer that differs lies at the other
end of the scale. Pass rates have the prior that the dataset's prompts show (`rate_prior`): the
empirical Bayes step of docs/method.md, "Adaptive sampling", with a free form instead of a Beta,
since such rates pile up at both ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..settings import Foresee, PresampleSettings
from ..types import Kind
from . import Floats, Ints
from .inference import beta_tail
from .rollouts import dominance_rate, effective_dimensionality, gini_mean_difference

KINDS: tuple[Kind, ...] = ("flat", "one_dim", "conflict", "multi", "undecided")
UNDECIDED = KINDS.index("undecided")
STATES = ("informative", "saturated", "starved", "static", "undecided")
Z95 = 1.6448536269514722  # one-sided 95 %


@dataclass(frozen=True, slots=True)
class PromptStats:
    """What the presamples of one prompt say.

    Attributes:
        state: per dimension: informative, saturated, starved, static or undecided.
        passed: per dimension, share of rollouts at or above the floor.
        gini: per dimension, expected absolute difference of two rollouts.
        dominance: rate of usable dominance among pairs.
        erd: effective reward dimensionality.
        joint: share of rollouts at or above every floor.
    """

    kind: Kind
    n: int
    carried_dim: str | None
    missing_dims: tuple[str, ...]
    state: tuple[str, ...]
    passed: tuple[float, ...]
    gini: tuple[float, ...]
    dominance: float
    erd: float
    joint: float


def profiles(
    rewards_P_N_D: Floats,
    dims: Sequence[str],
    floors_D: Floats,
    sigma_D: Floats,
    settings: PresampleSettings,
    levels_P_N_D: Floats | None = None,
) -> list[PromptStats]:
    """The kind of each prompt from its presamples, as in `decisions`.

    A dimension is informative when its expected difference exceeds noise by gamma (one-sided 95 %);
    else saturated or starved when the posterior of its pass rate says so; else static when the
    difference is surely below gamma; else undecided. `static` keeps such a dimension from
    being undecided for ever.
    """
    found = decisions(rewards_P_N_D, floors_D, sigma_D, settings, levels_P_N_D)
    n, c = found.n_P_D, found.passes_P_D
    a, b = c + 0.5, n - c + 0.5
    p_low = (a / (a + b)) - Z95 * np.sqrt(a * b / ((a + b) ** 2 * (a + b + 1)))
    names = np.array(STATES)[found.state_P_D]
    out = []
    for i, code in enumerate(found.kind_P.tolist()):
        carried = int(np.argmax(p_low[i]))
        missing = tuple(d for j, d in enumerate(dims) if j != carried)
        passed = tuple((c[i] / np.maximum(n[i], 1)).tolist())
        out.append(
            PromptStats(
                KINDS[code],
                int(n[i].max(initial=0)),
                dims[carried],
                missing,
                tuple(names[i].tolist()),
                passed,
                tuple(found.gini_P_D[i].tolist()),
                float(found.dominance_P[i]),
                float(found.erd_P[i]),
                float(found.joint_P[i]),
            )
        )
    return out


@dataclass(frozen=True, slots=True)
class Decisions:
    """The decisions about P prompts, as arrays.

    Attributes:
        kind_P: index into KINDS.
        state_P_D: index into STATES.
    """

    kind_P: Ints
    state_P_D: Ints
    n_P_D: Ints
    passes_P_D: Ints
    gini_P_D: Floats
    dominance_P: Floats
    erd_P: Floats
    joint_P: Floats


def decisions(
    rewards_P_N_D: Floats,
    floors_D: Floats,
    sigma_D: Floats,
    settings: PresampleSettings,
    levels_P_N_D: Floats | None = None,
    *,
    kinds_only: bool = False,
) -> Decisions:
    """The rule of docs/method.md, "Kinds of prompts"; NaN where a score is missing. Thresholds are
    compared with the levels, by default the rewards. `kinds_only`: dominance and dimensionality are
    0 where the kind does not rest on them, which is most of the time that this takes."""
    n = (~np.isnan(rewards_P_N_D)).sum(1)
    levels = rewards_P_N_D if levels_P_N_D is None else levels_P_N_D
    passes = np.where(np.isnan(levels), False, levels >= floors_D)
    c = passes.sum(1)
    gini, se = gini_mean_difference(rewards_P_N_D)
    above = gini - 2 * sigma_D / np.sqrt(np.pi)
    informative = above - Z95 * se >= settings.gamma
    above_eps = _tail_tables(int(n.max(initial=0)), settings.eps)
    high, low = (table[n, c] for table in above_eps)
    tests = [informative, high >= 0.95, low <= 0.05, (above + Z95 * se < settings.gamma) & (n >= 8)]
    state = np.select(tests, [0, 1, 2, 3], 4)
    some = np.sum(informative, axis=-1)
    at = some >= (2 if kinds_only else 0)
    rate, rate_se, erd = np.zeros((3, len(some)))
    rate[at], rate_se[at] = dominance_rate(rewards_P_N_D[at], informative[at], 2 * sigma_D)
    erd[at] = effective_dimensionality(rewards_P_N_D[at], sigma_D)
    at_odds = (erd <= 1 + settings.delta_e) | (rate + Z95 * rate_se < settings.q_min)
    settled = np.all(state < 4, axis=-1)
    kind = np.select([(some >= 2) & at_odds, some >= 2, ~settled, some == 1], [2, 3, 4, 1], 0)
    return Decisions(kind, state, n, c, gini, rate, erd, np.mean(np.all(passes, axis=-1), axis=1))


@lru_cache(maxsize=64)
def _tail_tables(most: int, eps: float) -> tuple[Floats, Floats]:
    """P(p >= 1 - eps) and P(p >= eps) under Jeffreys' prior, for every n <= `most` and c <= n: each
    is solved once."""
    n, c = np.arange(most + 1)[:, None], np.arange(most + 1)[None, :]
    a, b = np.broadcast_arrays(c + 0.5, np.maximum(n - c, 0) + 0.5)
    return beta_tail(a, b, 1 - eps), beta_tail(a, b, eps)


# fmt: off
BINS = np.array([
    0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15,
    0.25, 0.4, 0.6, 0.75, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995, 1.0,
])
# fmt: on
DRAWS = 128


def rate_prior(c_P: Ints, n_P: Ints, rounds: int = 200) -> Floats:
    """How pass rates of one dimension spread over prompts: mass in each of BINS' intervals, against
    Jeffreys' prior.

    Nonparametric maximum likelihood by EM (Kiefer and Wolfowitz 1956; Laird 1978) over interval
    masses with Jeffreys' density inside. One prompt's worth of Jeffreys' prior is mixed in, so that
    no interval is impossible. All ones without data.
    """
    jeffreys = _jeffreys(0, 0)
    seen = n_P > 0
    if not seen.any():
        return np.ones(len(jeffreys))
    likelihood = (
        _masses(np.asarray(c_P[seen] + 0.5, float), np.asarray((n_P - c_P)[seen] + 0.5, float))
        / jeffreys
    )
    mass = jeffreys.copy()
    for _ in range(rounds):
        share = likelihood * mass
        mass = (share / share.sum(1, keepdims=True)).sum(0) + jeffreys
        mass /= mass.sum()
    return np.asarray(mass / jeffreys)


def foreseen(
    seen_N_D: Floats,
    counts: Sequence[int],
    floors_D: Floats,
    sigma_D: Floats,
    settings: PresampleSettings,
    prior_D_B: Floats | None = None,
    *,
    seed: int = 0,
    draws: int = DRAWS,
) -> Floats:
    """Probability of each of KINDS that the schedule gives to one prompt, given the samples seen;
    sums to 1.

    Args:
        counts: samples at which the schedule tries a decision, rising; a kind takes the
            first that decides.
        prior_D_B: `rate_prior` per dimension; None: Jeffreys'.
        seed: of the draws.
    """
    prior = np.ones((seen_N_D.shape[1], len(BINS) - 1)) if prior_D_B is None else prior_D_B
    rng = np.random.default_rng(seed)
    completed, weight = _completions(seen_N_D, counts[-1], floors_D, prior, rng, draws)
    kinds = np.full(draws, UNDECIDED)
    for n in counts:
        left = np.flatnonzero(kinds == UNDECIDED)
        if left.size:
            some = completed[left, :n]
            found = decisions(some, floors_D, sigma_D, settings, kinds_only=True)
            kinds[left] = found.kind_P
    votes = np.bincount(kinds, weight, minlength=len(KINDS))
    return np.asarray(votes / votes.sum())


def likeliest(
    chance_K: Floats, foresee: Foresee, accept: Sequence[Kind] = KINDS, draws: int = DRAWS
) -> tuple[Kind, float]:
    """The kind to be expected from `foreseen`, and how sure it is: in [0, 1].

    `decision`: among the kinds other than undecided, given that one of them comes out, one draw
    being counted against it, so that few draws with a decision settle nothing. One that drops the
    prompt, not in `accept`, has to be as sure as a label: undecided, the prompt might have gone on.
    """
    if foresee == "label":
        best = int(chance_K.argmax())
        return KINDS[best], float(chance_K[best])
    decided = np.where(np.array(KINDS) == "undecided", 0.0, chance_K)
    best = int(decided.argmax())
    if KINDS[best] not in accept:
        return likeliest(chance_K, "label")
    return KINDS[best], float(decided[best] / (decided.sum() + 1 / draws))


def _completions(
    seen_N_D: Floats,
    last: int,
    floors_D: Floats,
    prior_D_B: Floats,
    rng: np.random.Generator,
    draws: int,
) -> tuple[Floats, Floats]:
    """`draws` completed samples, draws x last x D, and their weights."""
    n, dims = seen_N_D.shape
    there = ~np.isnan(seen_N_D)
    with np.errstate(invalid="ignore"):
        passed = there & (seen_N_D >= floors_D)
    c, scored = passed.sum(0), there.sum(0)
    # an answer of a sort not seen yet, with the weight of one
    unlike = rng.integers(0, 2, (draws, dims))
    mass = rng.standard_exponential((draws, n + 1))
    mass /= mass.sum(1, keepdims=True)
    which = (rng.random((draws, last - n))[..., None] > np.cumsum(mass, axis=1)[:, None, :-1]).sum(
        -1
    )
    future = np.where(
        (which < n)[..., None], seen_N_D[np.minimum(which, n - 1)], unlike[:, None, :]
    )
    weight = np.ones(draws)
    for d in range(dims):
        if 0 < c[d] < scored[d]:
            rate = (mass[:, :n] @ passed[:, d] + mass[:, n] * unlike[:, d]) / (
                mass[:, :n] @ there[:, d] + mass[:, n]
            )
            weight *= prior_D_B[
                d, np.clip(np.searchsorted(BINS, rate, side="right") - 1, 0, len(BINS) - 2)
            ]
        else:
            rate = _rates(c[d], scored[d], prior_D_B[d], rng, draws)
            flipped = rng.random((draws, last - n)) < (rate if c[d] == 0 else 1 - rate)[:, None]
            same = np.where(which < n, future[..., d], float(c[d] > 0))
            future[..., d] = np.where(flipped, float(c[d] == 0), same)
    return np.concatenate([np.broadcast_to(seen_N_D, (draws, n, dims)), future], axis=1), weight


def _rates(c: int, n: int, prior_B: Floats, rng: np.random.Generator, draws: int) -> Floats:
    """Pass rates from their posterior, uniform within an interval."""
    posterior = prior_B * _jeffreys(int(c), int(n))
    at = rng.choice(len(posterior), draws, p=posterior / posterior.sum())
    return BINS[at] + rng.random(draws) * np.diff(BINS)[at]


@lru_cache(maxsize=4096)
def _jeffreys(c: int, n: int) -> Floats:
    """Mass in each interval after c passes of n, with Jeffreys' prior."""
    return np.asarray(_masses(np.array([c + 0.5]), np.array([n - c + 0.5]))[0])


def _masses(a_P: Floats, b_P: Floats) -> Floats:
    """Mass of Beta(a, b) in each interval; P x bins."""
    above = np.stack([beta_tail(a_P, b_P, float(x)) for x in BINS[1:-1]], axis=1)
    ends = np.concatenate([np.ones((len(a_P), 1)), above, np.zeros((len(a_P), 1))], axis=1)
    return np.maximum(-np.diff(ends, axis=1), 1e-300)
