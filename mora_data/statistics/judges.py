"""How far scorers can be trusted: ties, readable verdicts, length, position, agreement, family.
docs/method.md, "Noise and reliability".

What a run measures is kept as sums that add up over prompts and partitions, so memory does not
grow.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from . import Floats, Ints
from .inference import cluster_bootstrap, rate_interval

ROUNDING = 1e-12  # sums of squares under it are none
Z975 = NormalDist().inv_cdf(0.975)


class RateInterval(NamedTuple):
    """A share with its 95 % interval; `rate` None where n is 0."""

    rate: float | None
    low: float
    high: float
    n: int


class Gain(NamedTuple):
    """A mean paired difference with its 95 % interval; None with fewer than two clusters."""

    gain: float | None
    low: float | None
    high: float | None
    n: int


class Correlation(NamedTuple):
    """A correlation within prompts with its 95 % interval; None where nothing varies."""

    r: float | None
    low: float | None
    high: float | None
    prompts: int


@dataclass(slots=True)
class _Sums:
    """Numbers, lists and counts that add up over prompts and partitions."""

    def tree(self) -> dict[str, Any]:
        """The sums as JSON."""
        out: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Counter):
                value = dict(sorted(value.items()))
            out[f.name] = value.tree() if isinstance(value, _Sums) else value
        return out

    def merge(self, tree: Mapping[str, Any]) -> None:
        """Add the sums of another part of the run."""
        for name, value in tree.items():
            mine = getattr(self, name)
            if isinstance(mine, Counter):
                mine.update(value)
            elif isinstance(mine, _Sums):
                mine.merge(value)
            elif isinstance(mine, list):
                setattr(self, name, [a + b for a, b in zip(mine, value, strict=True)])
            else:
                setattr(self, name, mine + value)


@dataclass(slots=True)
class SourceSums(_Sums):
    """What one source of reward did, as sums.

    Attributes:
        n, valued: verdicts asked for, and those that gave a value; `reasons` counts why the rest
        did not. pairs, ties: pairs of answers to one prompt with both values, and those of equal
        value.
        prompts: prompts with two values or more.
        total, moments: sums over prompts of (Sxy, Sxx, Syy) for value x and log length y, and of
            their products.
        position: of a judge that compares.
    """

    n: int = 0
    valued: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    pairs: int = 0
    ties: int = 0
    prompts: int = 0
    total: list[float] = field(default_factory=lambda: [0.0] * 3)
    moments: list[float] = field(default_factory=lambda: [0.0] * 6)
    position: PositionSums = field(default_factory=lambda: PositionSums())

    def add(
        self,
        values: Sequence[float | None],
        lengths: Sequence[float],
        reasons: Iterable[str] = (),
        orders: Iterable[tuple[int | None, int | None]] = (),
    ) -> None:
        """One prompt's values and the lengths of the answers, in any unit above 0; `orders` of
        `Score.orders`."""
        self.position.add(orders)
        there = [
            (v, math.log(max(length, 1.0)))
            for v, length in zip(values, lengths, strict=True)
            if v is not None
        ]
        m = len(there)
        self.n += len(values)
        self.valued += m
        self.reasons.update(reasons)
        if m < 2:
            return
        self.prompts += 1
        self.pairs += m * (m - 1) // 2
        self.ties += sum(k * (k - 1) // 2 for k in Counter(v for v, _ in there).values())
        x0, y0 = sum(v for v, _ in there) / m, sum(y for _, y in there) / m
        s = (
            sum((v - x0) * (y - y0) for v, y in there),
            sum((v - x0) ** 2 for v, _ in there),
            sum((y - y0) ** 2 for _, y in there),
        )
        self.total = [a + b for a, b in zip(self.total, s, strict=True)]
        products = (s[0] * s[0], s[1] * s[1], s[2] * s[2], s[0] * s[1], s[0] * s[2], s[1] * s[2])
        self.moments = [a + b for a, b in zip(self.moments, products, strict=True)]

    def figures(self) -> dict[str, Any]:
        """Parse rate, tie rate, length correlation and position bias, as feedback.json holds
        them."""
        return {
            "n": self.n,
            "parse_rate": self.valued / self.n if self.n else None,
            "reasons": dict(sorted(self.reasons.items())),
            "tie_rate": self.ties / self.pairs if self.pairs else None,
            "length_correlation": self.correlation()._asdict(),
            "position": self.position.figures() if self.position.games else None,
        }

    def correlation(self) -> Correlation:
        """r = Sxy / sqrt(Sxx Syy), sums of squares pooled within prompts; its error by the delta
        method, prompts as clusters."""
        a, b, c = self.total
        if not (b > ROUNDING and c > ROUNDING and self.prompts > 1):
            return Correlation(None, None, None, self.prompts)
        r = a / math.sqrt(b * c)
        g = (1 / math.sqrt(b * c), -r / (2 * b), -r / (2 * c))
        aa, bb, cc, ab, ac, bc = self.moments
        variance = (
            g[0] ** 2 * aa
            + g[1] ** 2 * bb
            + g[2] ** 2 * cc
            + 2 * (g[0] * g[1] * ab + g[0] * g[2] * ac + g[1] * g[2] * bc)
        )
        half = Z975 * math.sqrt(max(variance, 0.0) * self.prompts / (self.prompts - 1))
        return Correlation(r, max(r - half, -1.0), min(r + half, 1.0), self.prompts)


@dataclass(slots=True)
class AgreementSums(_Sums):
    """Krippendorff's alpha for interval data, as sums over units: ratings, their sum and squares,
    disagreement within units."""

    n: int = 0
    total: float = 0.0
    squares: float = 0.0
    within: float = 0.0

    def add(self, ratings: Iterable[float | None]) -> None:
        """One unit's ratings; a unit with a single rating says nothing."""
        there = [r for r in ratings if r is not None and math.isfinite(r)]
        m = len(there)
        if m > 1:
            s, q = math.fsum(there), math.fsum(r * r for r in there)
            self.n, self.total, self.squares = self.n + m, self.total + s, self.squares + q
            self.within += 2 * (m * q - s * s) / (m - 1)

    def alpha(self) -> float | None:
        """1 - D_observed / D_expected (Krippendorff 2004, 11.3); None where the ratings do not
        vary."""
        expected = 2 * (self.n * self.squares - self.total**2) / (self.n - 1) if self.n > 1 else 0.0
        return 1 - self.within / expected if expected > 1e-12 * max(self.squares, 1e-300) else None


@dataclass(slots=True)
class PositionSums(_Sums):
    """What a judge said that saw each pair in both orders.

    Attributes:
        games: pairs shown, each in both orders.
        read: those of which both verdicts could be read.
        ties: those of them without a winner: two verdicts for one place, or one for neither.
        decided: those of them with two verdicts for a place.
        flips: those of them with two verdicts for the same place, so not for the same answer.
        verdicts, first: single verdicts for a place, and those for the first.
    """

    games: int = 0
    read: int = 0
    ties: int = 0
    decided: int = 0
    flips: int = 0
    verdicts: int = 0
    first: int = 0

    def add(self, orders: Iterable[tuple[int | None, int | None]]) -> None:
        """Games as the better place in either order: 1, 2, 0 for neither, None where it could not
        be read."""
        for one, two in orders:
            placed = [v for v in (one, two) if v]
            self.games += 1
            self.read += one is not None and two is not None
            self.ties += one is not None and two is not None and {one, two} != {1, 2}
            self.decided += len(placed) == 2
            self.flips += len(placed) == 2 and one == two
            self.verdicts += len(placed)
            self.first += placed.count(1)

    def figures(self) -> dict[str, Any]:
        """As feedback.json holds them, each a `RateInterval`. Without bias `first` is 0.5;
        `flips` is that of the decided games."""
        shares = {
            "parse_rate": (self.read, self.games),
            "tie_rate": (self.ties, self.read),
            "flips": (self.flips, self.decided),
            "first": (self.first, self.verdicts),
        }
        return {
            "games": self.games,
            **{name: rate(c, n)._asdict() for name, (c, n) in shares.items()},
        }


def pair_accuracy(margins: Sequence[float]) -> dict[str, float | int | None]:
    """Agreement of a held-out judge with chosen over rejected, from its own margins: ties apart,
    share of the rest with its interval."""
    agreed, ties = sum(m > 0 for m in margins), sum(m == 0 for m in margins)
    found = rate(agreed, len(margins) - ties)
    return {
        "pairs": len(margins),
        "ties": ties,
        "accuracy": found.rate,
        "low": found.low,
        "high": found.high,
    }


def rate(c: int, n: int) -> RateInterval:
    """c of n with its interval."""
    low, high = rate_interval(c, n)
    return RateInterval(c / n if n else None, float(low), float(high), n)


def right(better_P: Floats, worse_P: Floats) -> Floats:
    """Per pair of answers 1 where the better one has the higher score, 0.5 where both have the
    same, 0 where it has the lower, NaN where one has none. Its mean is the pair accuracy, and over
    pairs of all answers of two classes the AUC."""
    return np.where(
        np.isnan(better_P) | np.isnan(worse_P), np.nan, (1 + np.sign(better_P - worse_P)) / 2
    )


def label_agreement(
    right_P: Floats, other_P: Floats, clusters_P: Ints
) -> tuple[RateInterval, Gain]:
    """The mean of `right_P`, and by how much it exceeds that of `other_P` where both are known;
    pairs of one cluster are drawn together."""
    boot = cluster_bootstrap(np.stack([right_P, right_P - other_P], axis=1), clusters_P)
    low, high = (float(end[0]) for end in boot.rate())
    n = int((~np.isnan(right_P)).sum())
    known = bool(boot.n_M[0] > 1)
    share = RateInterval(
        float(boot.estimate_M[0]) if n else None, low if known else 0.0, high if known else 1.0, n
    )
    gain, ends = boot.estimate_M[1], [end[1] for end in boot.percentile()]
    n_both = int((~np.isnan(right_P - other_P)).sum())
    if boot.n_M[1] < 2:
        return share, Gain(None, None, None, n_both)
    return share, Gain(float(gain), float(ends[0]), float(ends[1]), n_both)
