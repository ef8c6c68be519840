"""What a run says of itself: manifest.json of its folder, which the dataset carries as well, under
`manifest` of provenance/manifest.json, without addresses and with what the folder adds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from typing_extensions import NotRequired

# of one stage; in = kept + dropped
StageCounts = TypedDict("StageCounts", {"in": int, "kept": int, "dropped": dict[str, int]})


class SourceCounts(StageCounts):
    """Of one source of a mix, while mining. `missing`: prompts that its share or count lacks;
    `stages`: of the stages after mining; `pairs`: published ones, once they are there."""

    name: str
    kind: str
    dataset: str
    config: str
    split: str
    revision: str
    licence: str
    share: float | None
    count: int | None
    missing: int
    stages: NotRequired[dict[str, StageCounts]]
    pairs: NotRequired[int]


class JudgeNumbers(TypedDict, total=False):
    """`rewards.judge_stats.JudgeStats` by quantity and dimension; empty where nothing was measured.
    Rewards and noise are in [0, 1]."""

    noise: dict[str, float]  # sigma of one score
    reliability: dict[str, float | None]  # rho
    reliability_upper: dict[str, float | None]  # upper end of its 95 % interval
    scored_twice: dict[str, int]  # answers
    noise_measured: dict[str, bool]  # else the noise is half a step of the scale
    floors: dict[str, float]  # pass thresholds
    n_rollouts: int
    provisional: bool  # on fewer than 1,000 answers
    mining: dict[str, dict[str, Any]]  # threshold per stratum
    before_share: float
    calibration: dict[str, list[dict[str, Any]]]  # a map per reward source
    harm_guard: dict[str, Any]
    doubts: list[str]


class SelectionNumbers(TypedDict, total=False):
    """Of the chosen pairs; empty where none were selected."""

    candidates_confirmed: int  # scored once more
    candidates_held: int  # of these
    shrinkage: float | None  # mean confirmed total margin over mean selected total margin
    mean_log_length_gap: float | None  # log(characters of chosen / of rejected)


class AuditRow(TypedDict):
    """One source of reward in one dimension, against the labels.

    `agreement` is the share of pairs in which the better answer has the higher score, ties half;
    `length` the same for the rule that the longer (or shorter) answer is the better one, whichever
    fits these pairs better; `over_length` the mean difference of the two. Shares and differences
    have 95 % intervals, prompts as clusters.
    """

    dimension: str
    source: str
    by: str
    rating: str
    pairs: int
    agreement: dict[str, float | int | None]
    ties: float | None
    parse_rate: float | None
    length_rule: str
    length: dict[str, float | int | None]
    over_length: dict[str, float | int | None]
    sigma: float | None
    scored_twice: int
    position: dict[str, Any] | None
    sentence: str


class Audit(TypedDict):
    """judge_audit.json. `without`: dimensions that were not audited, and why; `owed`: pairs that
    could not be asked to their end."""

    basis: str
    limit: int
    simulated: bool
    rows: list[AuditRow]
    without: dict[str, str]
    owed: int


class LengthAudit(TypedDict):
    """Of one control: over `n` prompts that have both, mean and largest log(tokens / tokens of the
    fused prompt); None where there is nothing to compare."""

    n: int
    mean_log_gap: float | None
    worst: float | None
    matched: bool | None


class Shift(TypedDict):
    """Of the scores of the canaries in one dimension, from a run's start to its end; `error`: its
    standard error, `n`: answers scored both times."""

    shift: float | None
    error: float | None
    n: int


class PersonalData(TypedDict):
    """How many texts of each side (prompts, source prompts, answers) hold what."""

    by: str
    configs: list[str]
    texts: dict[str, int]
    found: dict[str, dict[str, int]]


class CardFigure(TypedDict):
    """A picture on the card."""

    file: str  # in the dataset folder
    question: str


class Manifest(TypedDict, total=False):
    """manifest.json, in the order of its keys. Of a folder of another version or another hand any
    key may be missing or of another type; of a build that has not ended all but `identity` and
    `status`."""

    identity: Mapping[str, str]  # what the folder is a build of: see `sources.mine.identity_of`
    status: str  # started, done, empty (no pair) or drifted
    version: int
    created_with: dict[str, str]  # versions of mora_data and python
    settings: Mapping[str, Any]  # `BuildSettings` as JSON
    settings_hash: str
    source: dict[str, str | None]  # kind, dataset, config, split, revision, licence
    sources: list[SourceCounts]  # of a mix
    counts: dict[str, StageCounts]
    notes: dict[str, int]  # what mining noticed of rows -> how many
    tokens: Mapping[str, int]  # in and out, of what the rows rest on; not what was paid for
    cost: float | None  # of all builds of the folder, in `currency`; None: something has no price
    not_measured: list[str]  # benchmarks that no prompt was compared with
    contamination: dict[str, int] | None  # benchmark -> prompts dropped
    errors: int  # lines of errors.jsonl
    templates: Mapping[str, str]  # name -> sha256
    reference: JudgeNumbers
    judge_audit: Audit | None
    models: Mapping[str, str]  # role -> name
    endpoints: Mapping[str, list[str]]  # model -> how it is asked where not in full
    simulated: bool | None  # None: nothing was asked
    pairs: int  # selected ones
    selection: SelectionNumbers
    arms_audit: dict[str, LengthAudit]
    personas: Mapping[str, Any]  # see `prompts.personas.cap_shares`
    unreliable: Mapping[str, Mapping[str, Any]]  # see `JudgeStats.unreliable`
    feedback: Mapping[str, Any]  # see `prompts.judge_quality.quality`
    drift: Mapping[str, Shift]
    requests: int  # of all builds of the folder
    currency: str | None
    fingerprint: str | None  # of the rows of all configs; None: no dataset was written
    pii: PersonalData | None
    papers: Mapping[str, str]  # file beside the rows -> sha256
    # of the dataset's copy alone
    figures: Sequence[CardFigure]
    report: dict[str, Any]  # see `report.document.summary_of`
