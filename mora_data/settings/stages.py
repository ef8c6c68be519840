"""What the stages do, in their order: source, mine, presample, fuse, rollout, select, publish; and
how a build runs: limits, the simulator, recorded answers, a cluster."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ..types import ARMS, NO_ARMS
from .needs import Names, Needs
from .roles import DimensionName, RewardSettings, RoleSettings, Settings

Foresee = Literal["decision", "label"]
CONTROLS = tuple(a for a in ARMS if a not in ("identity", "fused"))  # of one length with fused
STAGE_ORDER = ["helpful", "harmless", "truthful"]  # as far as they are dimensions
STEP = 4
_ON = Needs("enabled")
_ANY_ROWS = Needs("kind", ("auto", "jsonl"))
_REWRITTEN = Needs("arms", but=("identity", "concat"))  # which ask no rewriter
_WEIGHTED, _FUSED = Needs("selector", ("weighted_sum",)), Needs("arms", ("fused",))
_Some = Annotated[list[str], Field(min_length=1)]
_Share = Annotated[float, Field(ge=0, le=1)]
_Count = Annotated[int, Field(ge=1)]
MOST_ANSWERS = 4096  # to one prompt; they are asked and scored at once


class SourceSettings(Settings):
    """Where the source rows come from."""

    kind: str
    """Source adapter: auto (any layout), pku-saferlhf, hh-rlhf, ultrafeedback,
    ultrafeedback-binarized, helpsteer, jsonl (as auto), or module:Class."""
    dataset: str | None = None
    """Hub id of the dataset."""
    config: str = "default"
    """Configuration (or data_dir) of the dataset."""
    split: str = "train"
    """Split to mine."""
    revision: str | None = None
    """Commit of the dataset, pinned."""
    licence: str = "unknown"
    """Licence of the rows, as an SPDX-like identifier in lower case."""
    files: list[str] = []
    """File patterns inside the dataset repository; empty: the source's own."""
    columns: Annotated[dict[str, str], _ANY_ROWS] = {}
    """Our column name (prompt, messages, system, input, category, chosen, rejected,
    score_chosen, score_rejected, answers, ranked) to the file's; a.b is a field of a column."""
    layout: Annotated[str | None, _ANY_ROWS] = None
    """The layout of all rows (`mora-data list layouts`); null: what they look like."""
    decontaminate_from: Annotated[dict[str, str], Needs("mine.decontaminate")] = {}
    """Benchmark name to a local file of its prompts, for 13-gram decontamination; others come from
    the cache (--fetch-benchmarks)."""


class MixedSource(SourceSettings):
    """One of the sources of a mix. In YAML, `builder: NAME` stands for the source of a builder."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$")]
    """What it is called where sources are counted; its builder's name, or its kind, where none is
    given."""
    share: Annotated[float, Field(gt=0)] | None = None
    """Weight in the mix: sources with a share take turns in proportion to it, in the order of the
    list; those without come after them, one after the other."""
    count: Annotated[int, Field(ge=1)] | None = None
    """Prompts kept of it; null: all."""
    data: list[str] = Field([], exclude=True)
    """Local files or folders in place of the Hub. No part of the settings' hash: the rows are known
    by theirs."""


class MineSettings(Settings):
    """Rows to prompts."""

    limit: Annotated[int, Field(ge=1)] | None = None
    """Prompts kept, in source order; null: all."""
    dedup: bool = True
    """Drop prompts whose normalised text was seen before."""
    near_duplicates: Annotated[Annotated[float, Field(ge=0.6, le=1)] | None, Needs("dedup")] = None
    """Drop prompts that share so much of their five-word runs (Jaccard similarity by MinHash) with
    one before, as 0.8; null: keep them."""
    decontaminate: bool = True
    """Drop prompts that share a 13-gram with a benchmark at hand."""
    strata: Literal["auto", "none"] = "auto"
    """auto: the source's own labels; none: one stratum."""
    max_chars: Annotated[int, Field(ge=1)] = 16000
    """Longest conversation, in characters."""


class PresampleSettings(Settings):
    """Sampling the policy on source prompts to find the single-reward ones."""

    not_in_rows = frozenset({"canaries", "max_drift"})

    enabled: bool = True
    """false: plain sampling, every prompt goes on."""
    n: Annotated[list[Annotated[int, Field(ge=2, le=MOST_ANSWERS)]], _ON] = [8, 16, 32]
    """Sample counts of the adaptive schedule; later ones only for prompts still undecided."""
    step: Literal["auto"] | Annotated[int, Field(ge=2)] | None = "auto"
    """From the first of n on, look after every so many samples and stop when the kind that the
    schedule n would give is known; null: look at the counts in n alone. auto: 4, but null with the
    engine `batch`, for which each look is a wave, and with `pairwise` rewards, which compare the
    answers between two looks."""
    error: Annotated[float, Field(gt=0, lt=0.5), _ON, Needs("step")] = 0.04
    """Chance that the schedule would have given another kind, at most, whenever sampling stops."""
    foresee: Annotated[Foresee, _ON, Needs("step")] = "decision"
    """decision: the kind that the schedule would decide, where it decides; label: undecided is a
    kind of its own, to be foreseen like the others, which takes half as many samples again. A kind
    that drops the prompt is always foreseen as a label."""
    before: Annotated[int, Field(ge=0, le=64), _ON] = 8
    """Fresh answers to a prompt that goes on, for the numbers before fusion: those that picked it
    would be biased. 0: none; none either where an identity arm is run."""
    before_prompts: Annotated[_Count | None, _ON, Needs("before")] = 500
    """About so many prompts are asked for them: a fixed draw of those that were mined when the
    judges were measured. null: all that go on."""
    budget: Annotated[_Count | dict[str, _Count] | None, _ON] = None
    """Prompts that go on, about: in all, or per stratum; those with the least to be had in several
    dimensions at once come first. null: all of the accepted kinds."""
    floors: Annotated[Literal["auto"] | dict[str, _Share], Names("dimensions")] = "auto"
    """Pass threshold per dimension in [0, 1]; auto: that of the first reward source with an
    absolute scale."""
    accept: Annotated[
        list[Literal["flat", "one_dim", "conflict", "multi", "undecided"]], Field(min_length=1), _ON
    ] = ["flat", "one_dim", "conflict", "undecided"]
    """Kinds that go on to fusion. The first three are the single-reward kinds; undecided ones keep
    their label."""
    gamma: Annotated[float, Field(ge=0)] = 0.1
    """Smallest Gini mean difference, above noise, of an informative dimension."""
    eps: Annotated[float, Field(gt=0, lt=0.5), _ON] = 0.1
    """A dimension is saturated above 1 - eps and starved below eps."""
    delta_e: Annotated[float, Field(ge=0), _ON] = 0.25
    """Effective reward dimensionality up to 1 + delta_e counts as one."""
    q_min: Annotated[float, Field(ge=0, le=1), _ON] = 0.02
    """Least dominance rate of a prompt whose rewards do not conflict."""
    reference: Annotated[int, Field(ge=1), _ON] = 256
    """Prompts presampled first, to freeze noise and calibration."""
    repeat_share: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Share of the scored reference rollouts that is scored twice."""
    canaries: Annotated[Literal["auto"] | Annotated[int, Field(ge=0, le=1000)], _ON] = "auto"
    """Reference rollouts scored at the start and again at the end; auto: 50, none where only the
    simulator scores; 0: none."""
    max_drift: Annotated[float, Field(gt=0), _ON] = 0.1
    """Shift of the canaries' mean score, beyond its error, at which the run stops."""

    def looks(self) -> list[int]:
        """Presample counts at which a decision is tried: the schedule, or every `step` samples from
        its first to its last."""
        if self.step is None:
            return list(self.n)
        assert self.step != "auto", "resolved by BuildSettings"
        return [*range(self.n[0], self.n[-1], self.step), self.n[-1]]

    def before_share(self, n_mined: int) -> float:
        """Of so many mined prompts, the share that is asked for the numbers before fusion."""
        return min(1.0, (self.before_prompts or n_mined) / max(n_mined, 1))

    @field_validator("n")
    @classmethod
    def _rising(cls, n: list[int]) -> list[int]:
        if not n or sorted(set(n)) != n:
            raise ValueError("must rise, as in [16, 32, 64]")
        return n


class GuardSettings(Settings):
    """A guard model that says how harmful a request is."""

    family: Literal["llama-guard-3", "wildguard"] = "llama-guard-3"
    """How it is asked and read."""
    template: str | None = None
    """wildguard: path of a .j2 file with the instruction of its model card (variables question,
    history, answer)."""
    endpoint: RoleSettings
    """Engine, base URL, model. Without a URL, the judge's server."""

    @model_validator(mode="after")
    def _fits_together(self) -> GuardSettings:
        if (self.family == "wildguard") != (self.template is not None):
            raise ValueError("template belongs to the guard wildguard, which needs one")
        return self


class FuseSettings(Settings):
    """Rewriting a prompt so that one question needs several virtues."""

    not_in_rows = frozenset({"templates"})  # their text is part of the key

    arms: list[str] = ["fused"]
    """Arms to run: fused, identity, concat, another template in templates/fuse/, or the path of one
    that ends in .j2, whose arm has the file's name; `all`: the six that are shipped."""
    templates: Annotated[dict[str, str], Names("arms")] = {}
    """Arm to the path of its template, where it is not in templates/fuse/; a path among `arms` is
    put here."""
    length_matched: Annotated[list[str], _FUSED, Names("arms", CONTROLS)] = list(CONTROLS)
    """Controls: they run after fused and keep to its length, +-15 %, prompt by prompt."""
    intents: Annotated[dict[str, str], Names("dimensions")] = {}
    """Dimension to the path of its intents YAML, where it is not in templates/intents/."""
    targets: Annotated[Literal["auto"] | _Some, Names("dimensions")] = "auto"
    """Dimensions to add; auto: up to two that the prompt misses."""
    candidates: Annotated[int, Field(ge=1, le=8), _REWRITTEN] = 1
    """Rewrites asked for per attempt; the best that passes is kept."""
    retries: Annotated[int, Field(ge=0, le=10), _REWRITTEN] = 3
    """Further attempts, each shown the rewrite that failed and what to mend, at a higher
    temperature."""
    checks: list[Literal["harm", "intent"]] = ["harm"]
    """What the judge checks besides: harm (no more than in the original; one call more
    per rewrite and prompt) and intent (every wanted dimension is needed, a decoy is not; one call
    per rewrite, for a judge that you trust)."""
    guard: Annotated[GuardSettings | None, Needs("checks", ("harm",))] = None
    """A guard model for the check harm, in place of the judge."""
    probe: Annotated[int, Field(ge=0, le=64), Needs("presample.enabled")] = 0
    """Answers that a rewrite is tried out with before it is accepted, 8 or so, thrown away
    afterwards; 0: none."""
    forbidden: Annotated[list[str], _REWRITTEN] = []
    """Phrases that no rewrite may use, unless the original does."""
    subject: Annotated[str | None, _REWRITTEN] = None
    """Similarity of original and rewrite as module:function(original, rewritten) -> float, kept
    from 0.55 on; null: the share of the original's content words, from 0.5 on."""
    embedding: Annotated[str | None, _REWRITTEN] = None
    """Static embedding model (model2vec; `pip install 'mora-data[embedding]'`), a folder or a name
    on the Hub: its cosine in place of the share of words, kept from 0.55 on."""

    @model_validator(mode="after")
    def _one_similarity(self) -> FuseSettings:
        if self.subject and self.embedding:
            raise ValueError(
                "subject and embedding are two measures of one thing: give one of them"
            )
        return self

    @field_validator("arms", mode="before")
    @classmethod
    def _all_arms(cls, arms: Any) -> Any:
        return list(ARMS) if arms in ("all", ["all"]) else arms

    @model_validator(mode="before")
    @classmethod
    def _paths_apart(cls, values: Any) -> Any:
        """An arm is called as its file, whatever folder that is in: rows and keys hold the name."""
        if not isinstance(values, dict):
            return values
        values, paths = dict(values), dict[str, str]()
        for key in ("length_matched", "arms"):
            if isinstance(values.get(key), list):
                own = {a: PurePath(a).stem for a in values[key] if str(a).endswith(".j2")}
                paths = {stem: path for path, stem in own.items() if key == "arms"}
                values[key] = [own.get(a, a) for a in values[key]]
        given = values.get("templates", {})
        if isinstance(given, dict):
            values["templates"] = {**given, **paths}
        return values

    @field_validator("arms")
    @classmethod
    def _distinct(cls, arms: list[str]) -> list[str]:
        if not arms or len(set(arms)) != len(arms):
            raise ValueError("must be a list of different arms, or all")
        for arm in arms:
            if arm in NO_ARMS:
                raise ValueError(f"{arm!r} means something else in every run: rename the template")
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}", arm):
                raise ValueError(
                    f"{arm!r}: name an arm, and its template, with letters, digits, _ and -, 40 at"
                    " most; a path ends in .j2"
                )
        return arms

    @field_validator("length_matched")
    @classmethod
    def _of_controls(cls, arms: list[str]) -> list[str]:
        if bad := {"identity", "fused"} & set(arms):
            raise ValueError(
                f"{min(bad)!r} is no control that could keep to a length: leave it out"
            )
        return arms

    @field_validator("templates")
    @classmethod
    def _asked_of_a_model(cls, templates: dict[str, str]) -> dict[str, str]:
        if taken := templates.keys() & {"identity", "concat"}:
            raise ValueError(f"arm {min(taken)} asks no rewriter: rename the template")
        return templates


class RolloutSettings(Settings):
    """Self-play answers to the fused prompts."""

    n: Annotated[int, Field(ge=2, le=MOST_ANSWERS)] = 16
    """Answers per prompt and arm."""
    personas: list[str] = []
    """Files in templates/personas/, or paths, whose system prompts share the answers; none gets
    more than 60 % of a side."""


class LabelSettings(Settings):
    """A rating of the source's rows that says how good an answer is in one dimension."""

    rating: str
    """Name of the rating in the rows, as `safe`; docs/rewards.md lists what each source has."""
    invert: bool = False
    """Higher is worse."""
    stratum: str = "*"
    """Pattern of the strata whose rows speak of the dimension, as helpful-*."""
    by: str = "people"
    """Who gave the ratings, as reports say it."""


class AuditSettings(Settings):
    """How far the judges agree with labels, measured before the build pays for their scores."""

    limit: Annotated[int, Field(ge=0, le=100_000)] = 50
    """Pairs of labelled answers per dimension, the first of the source; 0: no audit."""
    labels: Annotated[dict[str, LabelSettings], Names("dimensions")] = {}
    """Dimension to the rating that speaks of it: a name, or rating, invert, stratum and by; without
    one a dimension is not audited."""

    @field_validator("labels", mode="before")
    @classmethod
    def _by_name(cls, labels: Any) -> Any:
        if not isinstance(labels, dict):
            return labels
        return {d: {"rating": v} if isinstance(v, str) else v for d, v in labels.items()}


class SelectSettings(Settings):
    """Which pairs become training data."""

    not_in_rows = frozenset({"balance_length", "allow_unreliable"})

    selector: str = "dominance_hv"
    """Selector name, or a dotted path module:function."""
    pairs_per_prompt: Annotated[int, Field(ge=1, le=4)] = 1
    """Pairs kept per prompt and arm."""
    confirm: bool = True
    """Score the best pairs once more, freshly, and drop those that do not hold."""
    confirm_top: Annotated[int, Field(ge=1, le=10), Needs("confirm")] = 3
    """Candidate pairs confirmed per prompt."""
    balance_length: bool = True
    """Choose among the confirmed pairs so that chosen is not longer on average."""
    max_length_ratio: Annotated[float, Field(gt=1)] = 3.0
    """Longest/shortest answer of a pair, in tokens."""
    weights: Annotated[
        dict[str, Annotated[float, Field(ge=0)]], Names("dimensions"), _WEIGHTED
    ] = {}
    """Weight per dimension; missing ones are 1."""
    kappa: Annotated[float, Field(ge=0)] | None = None
    """Weight of the uncertainty, the disagreement of the sources, by which a score is lowered for
    chosen and raised for rejected; null: 1 in dimensions of two or more sources, else 0."""
    allow_unreliable: bool = False
    """Select on dimensions whose scores are measured to be mostly noise, too; written down in
    manifest and card."""


def published_of(run: list[str], wanted: Literal["auto"] | list[str]) -> list[str]:
    """Of the arms that are run, those whose pairs are published, by `publish.arms`."""
    if wanted != "auto":
        return wanted
    return ["fused"] if "fused" in run else run


class PublishSettings(Settings):
    """The dataset folder."""

    configs: Literal["all"] | _Some = "all"
    """Configs to write."""
    arms: Annotated[Literal["auto"] | _Some, Names("fuse.arms")] = "auto"
    """Arms whose pairs and answers are published; auto: fused where it was run, else all. The
    others stay in the run folder."""
    test_share: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of first-user-turn groups in the test split."""
    stage_order: Annotated[list[str], Names("dimensions")] = STAGE_ORDER
    """Order of the sequential stages."""
    unsafe: Literal["gate", "drop", "redact"] | None = None
    """What a public release does with unsafe text; null: undecided, so only private."""
    licence: str = "inherit"
    """Licence of the dataset; inherit: the source's."""
    pii: bool = False
    """Count the published texts that hold an e-mail address, phone number, IP address, card, bank
    or social security number (needs `pip install 'mora-data[pii]'`)."""


class LimitSettings(Settings):
    """Where a run stops."""

    max_error_share: Annotated[float, Field(ge=0, le=1)] = 0.02
    """Share of failed rows (answers and verdicts) above which the command exits 1."""
    max_cost: Annotated[float, Field(gt=0)] | None = None
    """Money that the run folder's builds may spend in all, in the currency of the prices."""
    max_tokens: Annotated[int, Field(gt=0)] | None = None
    """Tokens in and out, together, that they may use in all."""
    prices: str | None = None
    """Path of a price table that comes before the shipped one."""


class ScriptedSettings(Settings):
    """The embedded simulator."""

    world: Literal["planted"] | None = "planted"
    """planted: fusion widens what answers differ in; null: a world where fusion changes nothing."""
    n_prompts: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    """Generated prompts beside the sample rows."""


class RecordedSettings(Settings):
    """What a build is with `--engine recorded`: the ratings that the source's rows carry."""

    dimensions: list[DimensionName]
    """Reward dimensions, in place of the build's."""
    rewards: Annotated[dict[str, list[RewardSettings]], Names("dimensions")]
    """Reward sources per dimension, in place of the build's."""


class RaySettings(Settings):
    """A Ray cluster (docs/scale.md)."""

    address: str | None = None
    """Address of its head, as host:port; null: RAY_ADDRESS, else a cluster that runs on this
    machine, else one is started here."""
    workers: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Workers, each with its own engines and `concurrency`; auto: one per node, or as many as its
    GPUs allow."""
    cpus: Annotated[float, Field(gt=0)] = 1
    """CPUs that a worker declares."""
    gpus: Annotated[float, Field(ge=0)] = 0
    """GPUs that a worker declares; for engines in its own process."""
    tries: Annotated[int, Field(ge=1)] = 3
    """How often a partition may bring its worker down before it is left out and listed in
    errors.jsonl."""
