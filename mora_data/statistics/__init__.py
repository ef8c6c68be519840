"""What a prompt's sampled rewards say, and what many prompts say together.

Arrays carry their axes: `rewards_P_N_D` holds P prompts x N rollouts x D dimensions, values in [0,
1], NaN where a score is missing. Formulas: METHOD "spec v1" sections (b) and 3.1, which is this
project's specification and not the paper's text.
"""

from __future__ import annotations

from .atk import (
    all_pass_at_k,
    any_pass_at_k,
    best_of_k_distribution,
    best_of_k_mean,
    joint_pass_at_k,
    range_at_k,
    scaling_slope,
)
from .beta import beta_interval, beta_tail, moment_prior, rate_interval
from .dual import Weights, weights
from .expansion import Comparison, Gains, Verdict, verdict, verdict_of
from .inference import Bootstrap, Sums, bootstrap_of, cluster_bootstrap, holm, sign_flip_test
from .kinds import PromptStats, profiles
from .pareto import coverage, hypervolume_at_k
from .split import Before, BeforeHalf, DecidingHalf, before, split, undivided
from .spread import (
    dominance_rate,
    dominance_rate_everywhere,
    effective_dimensionality,
    gini_mean_difference,
    noise_corrected_covariance,
)

__all__ = [
    "Before",
    "BeforeHalf",
    "Bootstrap",
    "Comparison",
    "DecidingHalf",
    "Gains",
    "PromptStats",
    "Sums",
    "Verdict",
    "Weights",
    "all_pass_at_k",
    "any_pass_at_k",
    "before",
    "best_of_k_distribution",
    "best_of_k_mean",
    "beta_interval",
    "beta_tail",
    "bootstrap_of",
    "cluster_bootstrap",
    "coverage",
    "dominance_rate",
    "dominance_rate_everywhere",
    "effective_dimensionality",
    "gini_mean_difference",
    "holm",
    "hypervolume_at_k",
    "joint_pass_at_k",
    "moment_prior",
    "noise_corrected_covariance",
    "profiles",
    "range_at_k",
    "rate_interval",
    "scaling_slope",
    "sign_flip_test",
    "split",
    "undivided",
    "verdict",
    "verdict_of",
    "weights",
]
