"""When to stop presampling: as soon as what all N samples would decide is known.

At any look, the answers still to come are drawn from their posterior, the decision rule is run on
each completed sample, and sampling stops when one kind comes out with probability 1 - error or
more:

    P(kind_N = k | first n) = mean over draws of 1[rule(first n, N - n answers drawn) = k]
    `foreseen`
    decision: P(kind_N = k | first n, kind_N decided);  label: `undecided` is a kind like the others
        `likeliest`

The bound holds however often one looks: whenever sampling stops, the chance that all N samples
would have said something else is at most `error` given the data, so over many prompts at most that
share of the kinds differs in expectation, as far as the model of the answers holds. Whether N
samples would fall short of a decision is the hardest thing to foresee, since it hangs on one answer
more or less, and is nothing about the prompt: hence `decision` by default.

The model: the answers to come are like those seen, with weights of the Bayesian bootstrap (Rubin
1981) and one further answer of a sort not seen yet. In a dimension whose answers so far all pass,
or all fail, the pass rate is drawn from its posterior, and an answer that differs lies at the other
end of the scale. Pass rates have the prior that the dataset's prompts show (`rate_prior`): the
empirical Bayes step of METHOD (b), with a free form instead of a Beta, since such rates pile up at
both ends.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from .beta import beta_tail
from .kinds import KINDS, decisions

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..settings import Foresee, PresampleSettings
    from ..types import Kind
    from .split import DecidingHalf

BINS = np.array(
    [
        0,
        0.005,
        0.01,
        0.02,
        0.03,
        0.05,
        0.07,
        0.1,
        0.15,
        0.25,
        0.4,
        0.6,
        0.75,
        0.85,
        0.9,
        0.93,
        0.95,
        0.97,
        0.98,
        0.99,
        0.995,
        1.0,
    ]
)
DRAWS = 128


def rate_prior(
    c_P: NDArray[np.int_], n_P: NDArray[np.int_], rounds: int = 200
) -> NDArray[np.float64]:
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
    deciding: DecidingHalf,
    last: int,
    floors_D: NDArray[np.float64],
    sigma_D: NDArray[np.float64],
    settings: PresampleSettings,
    prior_D_B: NDArray[np.float64] | None = None,
    *,
    seed: int = 0,
    draws: int = DRAWS,
) -> NDArray[np.float64]:
    """Probability of each of KINDS after `last` deciding samples of one prompt, given those seen;
    sums to 1.

    Args:
        prior_D_B: `rate_prior` per dimension; None: Jeffreys'.
        seed: of the draws.
    """
    seen = deciding.rewards_P_N_D[0]
    prior = np.ones((seen.shape[1], len(BINS) - 1)) if prior_D_B is None else prior_D_B
    completed, weight = _completions(
        seen, last, floors_D, prior, np.random.default_rng(seed), draws
    )
    votes = np.bincount(
        decisions(completed, floors_D, sigma_D, settings).kind_P, weight, minlength=len(KINDS)
    )
    return np.asarray(votes / votes.sum())


def likeliest(
    chance_K: NDArray[np.float64], foresee: Foresee, draws: int = DRAWS
) -> tuple[Kind, float]:
    """The kind to be expected from `foreseen`, and how sure it is: in [0, 1].

    `decision`: among the kinds other than undecided, given that one of them comes out, one draw
    being counted against it, so that few draws with a decision settle nothing.
    """
    if foresee == "label":
        best = int(chance_K.argmax())
        return KINDS[best], float(chance_K[best])
    decided = np.where(np.array(KINDS) == "undecided", 0.0, chance_K)
    best = int(decided.argmax())
    return KINDS[best], float(decided[best] / (decided.sum() + 1 / draws))


def _completions(
    seen_N_D: NDArray[np.float64],
    last: int,
    floors_D: NDArray[np.float64],
    prior_D_B: NDArray[np.float64],
    rng: np.random.Generator,
    draws: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
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


def _rates(
    c: int, n: int, prior_B: NDArray[np.float64], rng: np.random.Generator, draws: int
) -> NDArray[np.float64]:
    """Pass rates from their posterior, uniform within an interval."""
    posterior = prior_B * _jeffreys(int(c), int(n))
    at = rng.choice(len(posterior), draws, p=posterior / posterior.sum())
    return np.asarray(BINS[at] + rng.random(draws) * np.diff(BINS)[at])


@lru_cache(maxsize=4096)
def _jeffreys(c: int, n: int) -> NDArray[np.float64]:
    """Mass in each interval after c passes of n, with Jeffreys' prior."""
    return np.asarray(_masses(np.array([c + 0.5]), np.array([n - c + 0.5]))[0])


def _masses(a_P: NDArray[np.float64], b_P: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mass of Beta(a, b) in each interval; P x bins."""
    above = np.stack([beta_tail(a_P, b_P, float(x)) for x in BINS[1:-1]], axis=1)
    ends = np.concatenate([np.ones((len(a_P), 1)), above, np.zeros((len(a_P), 1))], axis=1)
    return np.asarray(np.maximum(-np.diff(ends, axis=1), 1e-300))
