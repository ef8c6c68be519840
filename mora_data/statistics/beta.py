"""Beta distributions in numpy: tails, quantiles, the interval of a share, and the prior that many
prompts share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from . import Floats, Ints


def beta_tail(a: Floats, b: Floats, x: float) -> Floats:
    """P(p >= x) for p ~ Beta(a, b), by the continued fraction of the incomplete beta function
    (Lentz's method)."""
    a, b = np.broadcast_arrays(np.asarray(a, float), np.asarray(b, float))
    return _beta_tail(a, b, np.full(a.shape, x), _log_beta(a, b))


def beta_quantile(a: Floats, b: Floats, q: float) -> Floats:
    """The x with P(p <= x) = q for p ~ Beta(a, b), by bisection to 1e-12."""
    a, b = np.broadcast_arrays(np.asarray(a, float), np.asarray(b, float))
    low, high = np.zeros(a.shape), np.ones(a.shape)
    log_beta = _log_beta(a, b)
    for _ in range(40):
        middle = (low + high) / 2
        under = _beta_tail(a, b, middle, log_beta) > 1 - q
        low, high = np.where(under, middle, low), np.where(under, high, middle)
    return np.asarray((low + high) / 2)


def rate_interval(c: Floats, n: Floats, level: float = 0.95) -> tuple[Floats, Floats]:
    """Confidence interval of a share c / n, also where both are effective numbers and not whole;
    (0, 1) where n = 0.

    The lower end is the quantile of Beta(c + t, n - c + 1 - t), the upper that of Beta(c + 1 - t, n
    - c + t), 0 where c = 0 and 1 where c = n. t = 0 is Clopper and Pearson's interval, which covers
    too much, t = 1/2 Jeffreys', which covers a rate of 0.05 in 88 % at n = 50; t = 1/3 covers 94 %
    or more (tests/unit/test_coverage.py, docs/numbers.md).
    """
    c, n = np.broadcast_arrays(np.asarray(c, float), np.asarray(n, float))
    rest, t = np.maximum(n - c, 0.0), 1 / 3
    low = np.where(c <= 0, 0.0, beta_quantile(c + t, rest + 1 - t, (1 - level) / 2))
    high = np.where(rest <= 1e-9, 1.0, beta_quantile(c + 1 - t, rest + t, (1 + level) / 2))
    return np.where(n > 0, low, 0.0), np.where(n > 0, high, 1.0)


def moment_prior(c_P: Ints, n_P: Ints, most: float = 64.0) -> tuple[float, float]:
    """Beta prior (a, b) of the pass rates of one dataset and dimension, by the method of moments
    (docs/method.md, "Budget").

    E[c/n] = E[p] and E[c(c-1) / n(n-1)] = E[p^2] hold for every n >= 2; prompts with fewer scores
    are left out. a and b are at least 0.5 and weigh together at most `most` rollouts, also where
    the rates differ by no more than chance. Jeffreys' prior with fewer than two prompts.
    """
    enough = n_P >= 2
    c, n = c_P[enough].astype(float), n_P[enough].astype(float)
    if len(c) < 2:
        return 0.5, 0.5
    mean, square = float(np.mean(c / n)), float(np.mean(c * (c - 1) / (n * (n - 1))))
    variance = square - mean**2
    strength = min((mean - square) / variance, most) if variance > 0 else most
    return max(mean * strength, 0.5), max((1 - mean) * strength, 0.5)


def _beta_tail(a: Floats, b: Floats, x: Floats, log_beta: Floats) -> Floats:
    swap = x > (a + 1) / (a + b + 2)
    p, q = np.where(swap, b, a), np.where(swap, a, b)
    y = np.where(swap, 1 - x, x)
    lower = np.exp(p * np.log(y) + q * np.log1p(-y) - log_beta) * _beta_fraction(p, q, y) / p
    return np.asarray(np.where(swap, lower, 1 - lower))


def _log_beta(a: Floats, b: Floats) -> Floats:
    return _log_gamma(a) + _log_gamma(b) - _log_gamma(a + b)


def _log_gamma(x: Floats) -> Floats:
    """Stirling's series after shifting the argument above 7; relative error under 1e-10."""
    shift = np.zeros_like(x)
    y = x.astype(float).copy()
    for _ in range(7):
        low = y < 7
        shift = np.where(low, shift + np.log(np.where(low, y, 1.0)), shift)
        y = np.where(low, y + 1, y)
    series = 1 / (12 * y) - 1 / (360 * y**3) + 1 / (1260 * y**5) - 1 / (1680 * y**7)
    return np.asarray((y - 0.5) * np.log(y) - y + 0.5 * np.log(2 * np.pi) + series - shift)


def _beta_fraction(a: Floats, b: Floats, x: Floats) -> Floats:
    tiny = 1e-300
    c = np.ones_like(a)
    d = 1 - (a + b) * x / (a + 1)
    d = 1 / np.where(np.abs(d) < tiny, tiny, d)
    value = d.copy()
    for m in range(1, 200):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 + term * d
            d = 1 / np.where(np.abs(d) < tiny, tiny, d)
            c = 1 + term / c
            c = np.where(np.abs(c) < tiny, tiny, c)
            step = c * d
            value = value * step
        if np.all(np.abs(step - 1) < 1e-12):
            break
    return value
