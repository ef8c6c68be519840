"""The shape of report.json, and the numbers in it: rounded, null where missing.

    report: Report = report_of(run_dir)
    report["arms"]["fused"]["metrics"]["joint_pass"]     {"value", "low", "high", "n"}

Ends are those of 95 % intervals. Which statistic is what: docs/numbers.md, "The report".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from numpy.typing import NDArray
from typing_extensions import NotRequired

from ..run import Audit, SourceCounts
from ..statistics import Bools, Floats
from ..statistics.inference import Bootstrap, Comparison, rate_interval

DIGITS = 5  # decimals: what the order of a sum may change lies below


class Estimate(TypedDict):
    """A mean or a share of `n` cases with its interval."""

    value: float | None
    low: float | None
    high: float | None
    n: int


class ReportSettings(TypedDict):
    """What the metrics are measured against; `k` as in docs/method.md, "What k samples bring"."""

    dimensions: list[str]
    floors: dict[str, float]
    k: int
    rollouts: int
    hypervolume_every: int
    bootstrap_draws: int
    seed: int
    before: str | None


class RunFacts(TypedDict):
    """What was built, by whom, and how far."""

    status: str | None
    source: Mapping[str, Any]
    sources: NotRequired[Sequence[SourceCounts]]  # of a mix
    prompts: int
    partitions: int
    partitions_sealed: int
    simulated: bool | None
    models: Mapping[str, str | None]
    selector: str
    arms: Sequence[str]
    settings_hash: str | None
    fingerprint: str | None
    judge_is_policy: bool


class PromptLength(TypedDict):
    """Of an arm: mean words, and mean log ratio to the fused prompt over paired prompts."""

    words: float | None
    log_ratio_to_fused: float | None
    low: float | None
    high: float | None
    n: int


class ArmNumbers(TypedDict):
    """`n` prompts have a metric of the arm."""

    n: int
    metrics: dict[str, Estimate]
    prompt_length: PromptLength


class ArmDifference(Estimate):
    """One arm minus another, over the prompts that have both."""

    arm: str
    minus: str
    metric: str


class ScorerNoise(TypedDict):
    """Of a dimension, measured on answers that were scored twice."""

    sigma: float | None
    reliability: float | None
    scored_twice: int
    measured: bool


class Scorers(TypedDict):
    """Noise by dimension; what was to be doubted of them before the build; `feedback` is
    feedback.json."""

    dimensions: dict[str, ScorerNoise]
    doubts: list[str]
    n_rollouts: int | None
    provisional: bool
    feedback: Mapping[str, Any] | None


class Diversity(TypedDict):
    """How varied the prompts of an arm are: see `pairs.diversity`."""

    n: int
    distinct_1: float | None
    distinct_2: float | None
    compression: float | None
    near_duplicates: Estimate
    vendi: float | None
    vendi_n: int


class MinedPrompts(TypedDict):
    """What was mined and how it was worded."""

    n: int
    kinds: dict[str, int]
    carried: dict[str, int]
    categories: dict[str, int]
    category_entropy: float | None
    diversity: dict[str, Diversity]
    checks: dict[str, dict[str, dict[str, float | int | None]]]


class ProfilePoint(TypedDict):
    """At k samples: shares of the grades of the best, and pass rates by dimension."""

    k: int
    n: int
    grades: list[float] | None
    any_pass: dict[str, Estimate]
    all_pass: dict[str, Estimate]


ProfilePanel = TypedDict(
    "ProfilePanel", {"class": str, "arm": str, "points": list[ProfilePoint]}
)  # "class" is a keyword


class Profile(TypedDict):
    """The paper's Fig. 2: `graded` is the first dimension, `passed` are the others."""

    graded: str
    passed: list[str]
    panels: list[ProfilePanel]


class RewardLevels(TypedDict):
    """Share of answers per level, by arm and dimension; distance of each arm from before."""

    levels: list[float | None]
    arms: dict[str, dict[str, list[float | None]]]
    wasserstein_to_before: dict[str, dict[str, float | None]]


class PlaneCells(TypedDict):
    """Share of answers per cell; for each column the row that one answer in four reaches."""

    cells: list[list[float | None]]
    staircase: list[int]


class Plane(TypedDict):
    """Two rewards against each other; `cells` a side."""

    x: str
    y: str
    cells: int
    arms: dict[str, PlaneCells]


class DimensionPair(Estimate):
    """The correlation of two dimensions within the `n` prompts of an arm."""

    x: str
    y: str
    arm: str


class RewritesOfArm(TypedDict):
    """What became of the rewrites of an arm: by the first check that the last try failed."""

    tried: int
    accepted: Estimate
    failed: dict[str, int]
    tries: dict[str, int]


class Rewrites(TypedDict):
    """The funnel of the rewrites."""

    arms: dict[str, RewritesOfArm]
    by_category: dict[str, dict[str, dict[str, Estimate]]]


class Repeats(TypedDict):
    """First against second score on five levels."""

    counts: list[list[int]]
    n: int
    same: Estimate
    kappa: float | None


class Shrinkage(TypedDict):
    """What the best pairs keep of their margins; `ratio` of the sums over dimensions."""

    n: int
    ratio: float | None
    by_dimension: dict[str, dict[str, float | None]]


class AnswerFigures(TypedDict):
    """Data of the figures that the partitions alone give."""

    profile: Profile
    rewards: RewardLevels
    planes: dict[str, list[Plane]]
    correlations: list[DimensionPair]
    funnel: Rewrites
    repeats: dict[str, Repeats]
    margins: dict[str, Shrinkage | None]


class LengthFigure(TypedDict):
    """Pairs by length ratio and total margin; `x`, `y` name the axes."""

    x: str
    y: str
    y_max: float
    counts: list[list[int]]


class Composition(TypedDict):
    """Pairs by category (rows) and kind (columns)."""

    rows: list[str]
    columns: list[str]
    counts: list[list[int]]
    left_out: int


class CostFigure(TypedDict):
    """Of the run; `stages` as the manifest counts them."""

    tokens: Mapping[str, int | None]
    errors: int | None
    money: float | None
    currency: str | None
    money_per_pair: float | None
    tokens_per_pair: float | None
    stages: Mapping[str, Mapping[str, Any]]


class EvaluationPoint(TypedDict):
    """A line of evals.jsonl."""

    fraction: float
    seed: object
    metric: str
    value: float


class ScalingFigure(TypedDict):
    """What more pairs buy."""

    evaluations: list[EvaluationPoint]
    pairs_per_1000_prompts: float | None


class Figures(AnswerFigures):
    """Data of all figures that have no other place in the report."""

    length: LengthFigure | None
    composition: Composition | None
    cost: CostFigure
    scaling: ScalingFigure


class MarginNumbers(TypedDict):
    """Margins of one dimension, as selected and as scored once more."""

    mean: Estimate
    quantiles: list[float | None]
    above_noise: Estimate
    confirmed: Estimate | None
    quantiles_confirmed: list[float | None]


class LengthNumbers(TypedDict):
    """Length of chosen against rejected."""

    log_ratio: Estimate
    chosen_longer: Estimate
    equal: Estimate
    auc: float | None
    margin_correlation: float | None


class RefusalNumbers(TypedDict):
    """Refusals of the sides; `by_class`: carried dimension -> side -> share."""

    chosen: Estimate
    rejected: Estimate
    one_side_refuses: Estimate
    rejected_where_one_refuses: Estimate
    by_class: dict[str, dict[str, Estimate]]


class Wording(TypedDict):
    """AUC of the word classifier over its folds."""

    auc: float | None
    auc_low: float | None
    auc_high: float | None
    pairs_right: Estimate
    prompts: int


class PairNumbers(TypedDict):
    """The published pairs; of a run without pairs there is `n` = 0 alone."""

    n: int
    prompts: int
    arm: dict[str, int]
    kind: dict[str, int]
    category: dict[str, int]
    source: dict[str, int]
    carried: dict[str, int]
    margins: dict[str, MarginNumbers]
    neg_dim_rate: Estimate
    neg_dim_rate_confirmed: Estimate
    length: LengthNumbers
    refusal: RefusalNumbers
    wording: Wording | None
    wording_pairs: int


class ReviewNumbers(TypedDict):
    """The blind votes against the scores."""

    votes: int
    pairs: int
    reviewers: int
    equal: int
    neither: int
    agree: Estimate
    kappa: Estimate | None
    first: Estimate
    between_people: dict[str, float | int | None] | None


class _Common(TypedDict):
    format: int
    verdict: str
    headline: str
    finding: str | None
    reasons: list[str]
    claim: str
    doubts: list[str]
    settings: ReportSettings
    arms: dict[str, ArmNumbers]
    differences: list[ArmDifference]
    coverage: dict[str, Estimate] | None
    comparisons: list[Comparison]
    over_best: dict[str, dict[str, float | None] | None]
    judge: Scorers
    prompts: MinedPrompts


class ArmsReport(_Common):
    """The part of the report that needs the partitions only."""

    run: dict[str, int]
    figures: AnswerFigures


class Report(_Common):
    """report.json."""

    run: RunFacts
    figures: Figures
    pairs: PairNumbers
    examples: dict[str, list[str]]
    reviews: ReviewNumbers | None
    judge_audit: Audit | None
    contamination: object
    not_measured: list[str]


class SideFacts(RunFacts):
    """One side of a comparison: a run, one arm of it, or a published dataset."""

    where: str
    arm: str | None
    kind: str
    pairs: int
    verdict: str
    doubts: list[str]
    floors: dict[str, float]
    k: int | None
    sigma: dict[str, float | None]
    reliability: dict[str, float | None]


class PairedDifference(TypedDict):
    """B minus A; no interval where a side has no prompts to resample."""

    value: float | None
    low: float | None
    high: float | None
    n: int | None
    p: float | None
    paired: bool | None


class ComparedNumber(TypedDict):
    """A number of both sides; `arm` is "" for one of the pairs."""

    arm: str
    metric: str
    a: Estimate | None
    b: Estimate | None
    difference: PairedDifference
    p_holm: float | None
    differs: bool | None


class ComparisonReport(TypedDict):
    """report-compare.json."""

    format: int
    a: SideFacts
    b: SideFacts
    doubts: list[str]
    dimensions: list[str]
    settings: list[dict[str, object]]
    prompts: dict[str, int]
    differ: int
    tested: int
    arms: list[ComparedNumber]
    pairs: list[ComparedNumber]


def rounded(value: Any) -> float | None:
    """A finite value rounded, else None."""
    if value is None or not math.isfinite(value):
        return None
    return round(float(value), DIGITS) + 0.0


def known(value: float | None) -> float:
    """A number to compare with others; NaN, of which no comparison holds, for a missing one."""
    return math.nan if value is None else value


def cell(value: Any, low: Any, high: Any, n: Any) -> Estimate:
    """A cell of the report."""
    return {"value": rounded(value), "low": rounded(low), "high": rounded(high), "n": int(n)}


def estimates(boot: Bootstrap, rates_M: Bools, n_M: NDArray[Any]) -> list[Estimate]:
    """A cell per column, with the interval that suits it; `n_M`: cases."""
    low, high = interval_of(boot, rates_M)
    return [cell(*column) for column in zip(boot.estimate_M, low, high, n_M, strict=True)]


def interval_of(boot: Bootstrap, rates_M: Bools) -> tuple[Floats, Floats]:
    """Percentile ends; where a column is a rate, those of `Bootstrap.rate`, which cover rare ones
    too (docs/method.md, "Comparing arms")."""
    low, high = boot.percentile()
    low[rates_M], high[rates_M] = boot.rate(rates_M)
    return low, high


def share(c: int, n: int) -> Estimate:
    """A share with its interval; value None without cases."""
    if not n:
        return {"value": None, "low": None, "high": None, "n": n}
    return cell(c / n, *rate_interval(c, n), n)
