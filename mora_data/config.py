"""The settings of a build: what stands in builders/*.yaml, checked and merged.

Precedence: flags > --set > YAML > environment > defaults. An unknown key is an error that names the nearest known one.

    settings = load_settings("pku-saferlhf", overrides={"rollout.n": 8})
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from . import resources
from .errors import SettingsError
from .types import ARMS

ROLES = ("policy", "rewriter", "judge", "heldout_judge")
_ENDPOINT = ("engine", "base_url", "replicas", "transport", "model", "served_as", "revision", "api_key_env", "requests_per_min",
             "tokens_per_min", "local", "batch")  # what a role takes over from the one that it uses
REWARD_ROLE = "reward:"  # and then dimension:number
GUARD_ROLE = "guard"


class Settings(BaseModel):
    """Base of all settings: unknown keys refused, frozen once built."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class SourceSettings(Settings):
    """Where the source rows come from."""

    kind: str
    """Source adapter: pku-saferlhf, hh-rlhf, ultrafeedback, ultrafeedback-binarized, helpsteer, jsonl, or module:Class."""
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
    columns: dict[str, str] = {}
    """jsonl only: our column name (prompt, messages, category) to the file's."""
    decontaminate_from: dict[str, str] = {}
    """Benchmark name to a local file of its prompts, for 13-gram decontamination; others come from the cache
    (--fetch-benchmarks)."""


class LocalSettings(Settings):
    """Models in this process: engines `transformers` and `vllm`."""

    device: str = "auto"
    """transformers: cpu, cuda, cuda:1, ...; auto: the GPU where there is one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Weights and arithmetic; auto: bfloat16 on a GPU, float32 on a CPU (vllm: what the model says)."""
    max_batch: Annotated[int, Field(ge=1)] = 256
    """transformers: samples in one batch at most; up to it the size is found by doubling. vllm: requests handed over at once."""
    window: Annotated[int, Field(ge=1)] = 2048
    """Samples that may wait before no further prompt is opened; sorted by length, so that batches hold little padding."""
    max_length: Annotated[int, Field(ge=2)] | None = None
    """Longest prompt and answer together, in tokens; null: the model's own limit."""
    text_pair: bool = False
    """Classifiers without a chat template: give them the turns before the answer and the answer as a pair of texts."""
    options: dict[str, Any] = {}
    """vllm: further arguments of its LLM class, as gpu_memory_utilization or tensor_parallel_size."""


class BatchSettings(Settings):
    """Requests handed over as files: engine `batch`."""

    mode: Literal["provider", "files"] = "provider"
    """provider: the OpenAI Batch API of base_url; files: written here, run by vLLM's run-batch, read again by the same command."""
    max_requests: Annotated[int, Field(ge=1, le=50_000)] = 50_000
    """Requests in one file at most."""
    max_bytes: Annotated[int, Field(ge=1_000, le=200_000_000)] = 200_000_000
    """Bytes in one file at most."""
    prompts: Annotated[int, Field(ge=1)] = 1024
    """Prompts open at once, over several partitions; 1,024 with 16 answers and 3 judges are a wave of 49,152 judge requests."""
    poll_s: Annotated[float, Field(gt=0)] = 30.0
    """Seconds between two looks at a running batch."""
    tries: Annotated[int, Field(ge=1)] = 3
    """Batches that a request may go through when it expires or fails in a way that may pass."""


class RoleSettings(Settings):
    """One model in one role: which engine answers, and how it samples."""

    use: Literal["policy", "rewriter", "judge"] | None = None
    """Use another role's engine, endpoint and model."""
    engine: str | None = None
    """openai, batch, transformers, vllm, scripted, or module:function; null: openai when a base URL or key is known."""
    base_url: str | None = None
    """Base URL of an OpenAI-compatible endpoint, up to and including /v1."""
    replicas: list[str] = []
    """Further base URLs that serve the same model; each gets `concurrency` slots."""
    transport: str = "auto"
    """auto; openai: over the openai package; module:function: over the AsyncOpenAI that function(base_url) returns."""
    model: str | None = None
    """Model name; null: the only model that the endpoint serves."""
    served_as: list[str] = []
    """Names by which replies may call the model, where they are not like `model`; ["*"]: any."""
    revision: str | None = None
    """Revision of the model's weights, for the record and for the request key."""
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key. The key itself is never stored."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    """Sampling temperature."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Nucleus sampling mass."""
    max_tokens: Annotated[int, Field(ge=1)] = 512
    """Longest answer, in tokens."""
    stop: list[str] = []
    """Stop strings."""
    concurrency: Annotated[int, Field(ge=1, le=4096)] = 64
    """Requests in flight at most, on each base URL. Roles with the same URLs share them."""
    requests_per_min: Annotated[float, Field(gt=0)] | None = None
    """Requests a minute at most, over all base URLs; null: no limit but the server's refusals."""
    tokens_per_min: Annotated[float, Field(gt=0)] | None = None
    """Tokens a minute at most, in and out together, over all base URLs."""
    n_per_request: Literal["all"] | Annotated[int, Field(ge=1)] = "all"
    """Samples asked for in one request: all, or a number."""
    timeout_s: Annotated[float, Field(gt=0)] | None = None
    """Longest wait for one reply, in seconds; null: 60 s and half a second for each token of max_tokens."""
    give_up_s: Annotated[float, Field(gt=0)] = 60.0
    """The run stops, state kept, when the endpoint has failed every request for this long, in seconds."""
    extra_body: dict[str, Any] = {}
    """Further fields of the request body, sent as they are and part of the request key."""
    local: LocalSettings = LocalSettings()
    """Engines transformers and vllm: device, batches, lengths."""
    batch: BatchSettings = BatchSettings()
    """Engine batch: files, waves, polling."""


class CriterionSettings(Settings):
    """One criterion of a rubric list."""

    text: str
    """What a good answer does, as a statement."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight among the criteria."""
    scale: Literal["yes_no", "levels"] = "yes_no"
    """yes_no: met or not; levels: 1 to 5."""


class CalibrationSettings(Settings):
    """How the raw scores of a reward source become values in [0, 1]. `calibration: ecdf` is short for `{kind: ecdf}`."""

    kind: Literal["identity", "likert", "sigmoid", "ecdf", "robust_z", "isotonic", "platt", "anchored"] | None = None
    """null: the source's own. anchored: against the other answers to the same prompt, for Bradley-Terry scores."""
    labels: str | None = None
    """isotonic, platt: JSONL file of {"raw": score, "label": 0 to 1}."""
    low: float | None = None
    """likert: raw score that is worth 0; null: 1."""
    high: float | None = None
    """likert: raw score that is worth 1; null: 5."""
    zero: float | None = None
    """sigmoid: raw score that is worth 0.5; null: 0."""
    temperature: Annotated[float, Field(gt=0)] | None = None
    """sigmoid, anchored: raw difference per unit of the logistic; null: 1 for sigmoid, fitted for anchored."""
    quantile: Annotated[float, Field(ge=0, le=1)] = 0.5
    """anchored: quantile of the prompt's own answers that is worth 0.5."""

    @model_validator(mode="after")
    def _fits_together(self) -> CalibrationSettings:
        if self.kind in ("isotonic", "platt") and not self.labels:
            raise ValueError(f"{self.kind} is fitted on labels: give labels, a JSONL file of {{raw, label}}")
        if self.labels and self.kind not in ("isotonic", "platt"):
            raise ValueError("labels are for the kinds isotonic and platt")
        low, high = self.low if self.low is not None else 1.0, self.high if self.high is not None else 5.0
        if low >= high:
            raise ValueError(f"low = {low:g} must be under high = {high:g}")
        return self


class RewardSettings(Settings):
    """One source of reward for one dimension."""

    kind: str = "judge"
    """Reward adapter: judge, pairwise, rubric, classifier, guard, python, precomputed, rules, or a dotted path module:Class."""
    template: str | None = None
    """judge, pairwise, rubric: a file in templates/judge/ (without .j2), or a path; guard: a path."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight among the sources of this dimension."""
    endpoint: RoleSettings | None = None
    """The model that this source asks, where it is not the judge: engine, base URL, model. Without a URL, the judge's server."""
    family: str | None = None
    """classifier: beaver-reward, beaver-cost, armorm, skywork, helpsteer; guard: llama-guard-3, wildguard, shieldgemma."""
    task: Literal["classify", "pooling"] = "classify"
    """classifier: which path of the server is asked."""
    labels: list[str] = []
    """classifier: names of the outputs, in order; a reply with another number of outputs is no score."""
    label: str | None = None
    """classifier: the output that is this dimension's."""
    activation: Literal["sigmoid", "softmax"] | None = None
    """classifier: makes a probability of the raw output."""
    invert: bool = False
    """classifier, precomputed: higher is worse."""
    layout: str | None = None
    """classifier: the text that is rated, with {question} and {answer}; null: the server applies the model's chat template."""
    range: tuple[float, float] | None = None
    """classifier, precomputed: lowest and highest value of the source's own scale."""
    expected: bool = False
    """judge: the mean of the levels under the probabilities of the score token, where the server gives them."""
    opponents: Annotated[int, Field(ge=2, le=64)] = 4
    """pairwise: other answers of the prompt that each answer is compared with."""
    criteria: list[CriterionSettings] = []
    """rubric: what is judged, one call each."""
    policies: dict[str, str] = {}
    """guard shieldgemma: name to text of the policies; the worst verdict counts."""
    path: str | None = None
    """python: module:function of (messages, answer), giving a number in [0, 1] or null."""
    column: str | None = None
    """precomputed: name of the rating in the source row."""

    calibration: CalibrationSettings | None = None
    """Raw scores to values in [0, 1]; null: the source's own scale or kind."""
    calibration_file: str | None = None
    """JSON file of a frozen calibration to use as it is: one chart, or the calibration.json of another dataset."""

    @field_validator("calibration", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @property
    def signature(self) -> str:
        """`@model` where the source has a model of its own, to sign its scores with."""
        model = self.endpoint.model if self.endpoint else None
        return f"@{model.rpartition('/')[2]}" if model else ""


class MineSettings(Settings):
    """Rows to prompts."""

    limit: Annotated[int, Field(ge=1)] | None = None
    """Prompts kept, in source order; null: all."""
    dedup: bool = True
    """Drop prompts whose normalised text was seen before."""
    near_duplicates: Annotated[float, Field(ge=0.6, le=1)] | None = None
    """With dedup: drop prompts that share so much of their five-word runs (Jaccard similarity by MinHash) with one before, as
    0.8; null: keep them."""
    decontaminate: bool = True
    """Drop prompts that share a 13-gram with a benchmark at hand."""
    strata: Literal["auto", "none"] = "auto"
    """auto: the source's own labels; none: one stratum."""
    max_chars: Annotated[int, Field(ge=1)] = 16000
    """Longest conversation, in characters."""


Foresee = Literal["decision", "label"]


class PresampleSettings(Settings):
    """Sampling the policy on source prompts to find the single-reward ones."""

    enabled: bool = True
    """false: plain sampling, every prompt goes on."""
    n: list[Annotated[int, Field(ge=2)]] = [16, 32, 64]
    """Sample counts of the adaptive schedule; later ones only for prompts still undecided."""
    step: Annotated[int, Field(ge=2)] | None = None
    """Look after every so many samples, up to the last of n, and stop when the kind that all of them would give is known;
    null: look at the counts in n."""
    error: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """With step: chance that the last of n samples would have given another kind, at most, whenever sampling stops."""
    foresee: Foresee = "decision"
    """With step. decision: the kind that the last of n samples would decide, where they decide; label: undecided is a kind of its
    own, to be foreseen like the others, which takes half as many samples again."""
    split: bool = True
    """Samples of even index decide, those of odd index give the numbers before fusion; false: all decide."""
    budget: Annotated[int, Field(ge=1)] | dict[str, Annotated[int, Field(ge=1)]] | None = None
    """Prompts that go on, about: in all, or per stratum; those with the least to be had in several dimensions at once come
    first. null: all of the accepted kinds."""
    floors: Literal["auto"] | dict[str, float] = "auto"
    """Pass mark per dimension in [0, 1]; auto: that of the first reward source with an absolute scale."""
    accept: list[Literal["flat", "one_dim", "conflict", "multi", "undecided"]] = ["flat", "one_dim", "conflict", "undecided"]
    """Kinds that go on to fusion. The first three are the single-reward kinds; undecided ones keep their label."""
    gamma: Annotated[float, Field(ge=0)] = 0.1
    """Smallest Gini mean difference, above noise, of an informative dimension."""
    eps: Annotated[float, Field(gt=0, lt=0.5)] = 0.1
    """A dimension is saturated above 1 - eps and starved below eps."""
    delta_e: Annotated[float, Field(ge=0)] = 0.25
    """Effective reward dimensionality up to 1 + delta_e counts as one."""
    q_min: Annotated[float, Field(ge=0, le=1)] = 0.02
    """Least dominance rate of a prompt whose rewards do not conflict."""
    reference: Annotated[int, Field(ge=1)] = 256
    """Prompts presampled first, to freeze noise and calibration."""
    repeat_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the reference rollouts that is scored twice."""
    canaries: Literal["auto"] | Annotated[int, Field(ge=0, le=1000)] = "auto"
    """Reference rollouts scored at the start and again at the end; auto: 50, none where only the simulator scores; 0: none."""
    max_drift: Annotated[float, Field(gt=0)] = 0.1
    """Shift of the canaries' mean score, beyond its error, at which the run stops."""

    def looks(self) -> list[int]:
        """Presample counts at which a decision is tried: the schedule, or every `step` samples up to its end."""
        return list(self.n) if self.step is None else [*range(self.step, self.n[-1], self.step), self.n[-1]]

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
    """wildguard: path of a .j2 file with the instruction of its model card (variables question, history, answer)."""
    endpoint: RoleSettings
    """Engine, base URL, model. Without a URL, the judge's server."""

    @model_validator(mode="after")
    def _fits_together(self) -> GuardSettings:
        if (self.family == "wildguard") != (self.template is not None):
            raise ValueError("template belongs to the guard wildguard, which needs one")
        return self


class FuseSettings(Settings):
    """Rewriting a prompt so that one question needs several virtues."""

    arms: list[str] = ["fused"]
    """Arms to run: fused, identity, concat, or another template in templates/fuse/; `all`: the six that are shipped."""
    length_matched: list[str] = ["single", "generic", "random", "concat"]
    """Controls: where fused is among the arms, they run after it and keep to its length, +-15 %, prompt by prompt."""
    intents: dict[str, str] = {}
    """Dimension to the path of its intents YAML, where it is not in templates/intents/."""
    targets: Literal["auto"] | list[str] = "auto"
    """Dimensions to add; auto: up to two that the prompt misses."""
    candidates: Annotated[int, Field(ge=1, le=8)] = 1
    """Rewrites asked for per attempt; the best that passes is kept."""
    retries: Annotated[int, Field(ge=0, le=10)] = 3
    """Further attempts, each naming the checks that failed, in another style and at a higher temperature."""
    checks: list[Literal["harm", "intent"]] = ["harm"]
    """What the judge checks, beside the rules: harm (no more than in the original; one call more per rewrite and prompt) and
    intent (every wanted dimension is needed, a decoy is not; one call per rewrite, for a judge that you trust)."""
    guard: GuardSettings | None = None
    """A guard model for the check harm, in place of the judge."""
    probe: Annotated[int, Field(ge=0, le=64)] = 0
    """Answers that a rewrite is tried out with before it is accepted, 8 or so, thrown away afterwards; 0: none."""
    forbidden: list[str] = []
    """Phrases that no rewrite may use, unless the original does."""
    subject: str | None = None
    """Similarity of original and rewrite as module:function(original, rewritten) -> float, kept from 0.55 on; null: the
    share of the original's content words, from 0.5 on."""
    embedding: str | None = None
    """Static embedding model (model2vec; `pip install 'mora-data[embedding]'`), a folder or a name on the Hub: its cosine in place
    of the share of words, kept from 0.55 on."""

    @model_validator(mode="after")
    def _one_similarity(self) -> FuseSettings:
        if self.subject and self.embedding:
            raise ValueError("subject and embedding are two measures of one thing: give one of them")
        return self

    @field_validator("arms", mode="before")
    @classmethod
    def _all_arms(cls, arms: Any) -> Any:
        return list(ARMS) if arms in ("all", ["all"]) else arms

    @field_validator("arms")
    @classmethod
    def _distinct(cls, arms: list[str]) -> list[str]:
        if not arms or len(set(arms)) != len(arms):
            raise ValueError("must be a list of different arms, or all")
        return arms


class RolloutSettings(Settings):
    """Self-play answers to the fused prompts."""

    n: Annotated[int, Field(ge=2)] = 16
    """Answers per prompt and arm."""
    personas: list[str] = []
    """Files in templates/personas/, or paths, whose system prompts share the answers; none gets more than 60 % of a side."""


class SelectSettings(Settings):
    """Which pairs become training data."""

    selector: str = "dominance_hv"
    """Selector name, or a dotted path module:function."""
    pairs_per_prompt: Annotated[int, Field(ge=1, le=4)] = 1
    """Pairs kept per prompt and arm."""
    confirm: bool = True
    """Score the best pairs once more, freshly, and drop those that do not hold."""
    confirm_top: Annotated[int, Field(ge=1, le=10)] = 3
    """Candidate pairs confirmed per prompt."""
    balance_length: bool = True
    """Choose among the confirmed pairs so that chosen is not longer on average."""
    max_length_ratio: Annotated[float, Field(gt=1)] = 3.0
    """Longest/shortest answer of a pair, in tokens."""
    weights: dict[str, float] = {}
    """weighted_sum: weight per dimension; missing ones are 1."""
    kappa: Annotated[float, Field(ge=0)] | None = None
    """Doubt: disagreements of the sources that a score is lowered by for chosen and raised by for rejected; null: 1 in
    dimensions of two or more sources, else 0."""
    allow_unreliable: bool = False
    """Select on dimensions whose scores are measured to be mostly noise, too; written down in manifest and card."""


class PublishSettings(Settings):
    """The dataset folder."""

    configs: Literal["all"] | list[str] = "all"
    """Configs to write."""
    arms: Literal["auto"] | list[str] = "auto"
    """Arms whose pairs and answers are published; auto: fused where it was run, else all. The others stay in the run folder."""
    test_share: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of first-user-turn groups in the test split."""
    stage_order: list[str] = ["helpful", "harmless", "truthful"]
    """Order of the sequential stages."""
    unsafe: Literal["gate", "drop", "redact"] | None = None
    """What a public release does with unsafe text; null: undecided, so only private."""
    licence: str = "inherit"
    """Licence of the dataset; inherit: the source's."""
    pii: bool = False
    """Count the published texts that hold an e-mail address, phone number, IP address, card, bank or social security number
    (needs `pip install 'mora-data[pii]'`)."""


class LimitSettings(Settings):
    """Where a run stops."""

    max_error_share: Annotated[float, Field(ge=0, le=1)] = 0.02
    """Share of failed rows (answers and verdicts) above which the command exits 1."""
    max_cost: Annotated[float, Field(gt=0)] | None = None
    """Money that the run folder's builds may spend in all, in the currency of the prices."""
    max_tokens: Annotated[int, Field(gt=0)] | None = None
    """Tokens in and out, together, that they may use in all."""
    prices: str | None = None
    """Path of a price table to use in place of the shipped one."""


class ScriptedSettings(Settings):
    """The embedded simulator."""

    world: Literal["planted"] | None = "planted"
    """planted: fusion widens what answers differ in; null: a world where fusion changes nothing."""
    n_prompts: Annotated[int, Field(ge=0)] = 0
    """Generated prompts beside the sample rows."""


class RecordedSettings(Settings):
    """What a build is with `--engine recorded`: the ratings that the source's rows carry."""

    dimensions: list[str]
    """Reward dimensions, in place of the build's."""
    rewards: dict[str, list[RewardSettings]]
    """Reward sources per dimension, in place of the build's."""


class RaySettings(Settings):
    """A Ray cluster (docs/scale.md)."""

    address: str | None = None
    """Address of its head, as host:port; null: RAY_ADDRESS, else a cluster that runs on this machine, else one is started here."""
    workers: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Workers, each with its own engines and `concurrency`; auto: one per node, or as many as its GPUs allow."""
    cpus: Annotated[float, Field(gt=0)] = 1
    """CPUs that a worker declares."""
    gpus: Annotated[float, Field(ge=0)] = 0
    """GPUs that a worker declares; for engines in its own process."""
    tries: Annotated[int, Field(ge=1)] = 3
    """How often a partition may bring its worker down before it is left out and listed in errors.jsonl."""


class BuildSettings(Settings):
    """One build, end to end: what a file in builders/ holds."""

    name: str
    """Name of the build."""
    source: SourceSettings
    """Source rows."""
    dimensions: list[str] = ["helpful", "harmless", "truthful"]
    """Reward dimensions, in the order of the columns."""
    policy: RoleSettings = RoleSettings()
    """The model to be aligned."""
    rewriter: RoleSettings = RoleSettings(use="policy", temperature=0.7)
    """The model that fuses intents."""
    judge: RoleSettings = RoleSettings(use="policy", temperature=0.0, max_tokens=256)
    """The model that scores."""
    heldout_judge: RoleSettings | None = None
    """A second judge, for confirmation and reports only."""
    rewards: dict[str, list[RewardSettings]] = {}
    """Reward sources per dimension; a dimension without an entry gets the judge with its own template."""
    mine: MineSettings = MineSettings()
    """Mining."""
    presample: PresampleSettings = PresampleSettings()
    """Presampling."""
    fuse: FuseSettings = FuseSettings()
    """Fusion."""
    rollout: RolloutSettings = RolloutSettings()
    """Rollouts."""
    select: SelectSettings = SelectSettings()
    """Selection."""
    publish: PublishSettings = PublishSettings()
    """Publishing."""
    limits: LimitSettings = LimitSettings()
    """Limits."""
    scripted: ScriptedSettings = ScriptedSettings()
    """The simulator, where it is the engine."""
    recorded: RecordedSettings | None = None
    """Dimensions and rewards where the engine is recorded."""
    executor: Literal["local", "ray"] = Field("local", exclude=True)
    """Where partitions are worked on: in this process, or on a Ray cluster. No part of what is built: the same folder may go on
    with the other."""
    ray: RaySettings = Field(default_factory=lambda: RaySettings(), exclude=True)
    """The cluster, where the executor is ray."""
    seed: int = 0
    """Run seed."""
    partition_size: Annotated[int, Field(ge=1, le=65536)] = 512
    """Prompts per partition."""

    @model_validator(mode="before")
    @classmethod
    def _role_defaults(cls, values: Any) -> Any:
        """A role's own defaults stand under what the YAML gives (the rewriter's temperature, the judge's `use`)."""
        if not isinstance(values, dict):
            return values
        own = {"rewriter": {"use": "policy", "temperature": 0.7}, "judge": {"use": "policy", "temperature": 0.0, "max_tokens": 256}}
        merged = dict(values)
        for role, defaults in own.items():
            given = values.get(role)
            if given is None or isinstance(given, dict):
                merged[role] = {**defaults, **(given or {})}
        return merged

    @model_validator(mode="after")
    def _dimensions_known(self) -> BuildSettings:
        if not self.dimensions or len(set(self.dimensions)) != len(self.dimensions):
            raise ValueError("dimensions must be a list of different names")
        if isinstance(self.fuse.targets, list) and (bad := set(self.fuse.targets) - set(self.dimensions)):
            raise ValueError(f"fuse.targets names {sorted(bad)}, not in dimensions {self.dimensions}")
        if self.fuse.probe and not self.presample.enabled:
            raise ValueError("fuse.probe compares with presamples: presample.enabled has to be true")
        if self.publish.arms != "auto" and (bad := set(self.publish.arms) - set(self.fuse.arms)):
            raise ValueError(f"publish.arms names {sorted(bad)}, not in fuse.arms {self.fuse.arms}")
        return self

    @property
    def published_arms(self) -> list[str]:
        """The arms that go into the dataset; the others are there to compare with."""
        if self.policy.engine == "recorded":
            return ["recorded"]
        if self.publish.arms != "auto":
            return self.publish.arms
        return ["fused"] if "fused" in self.fuse.arms else self.fuse.arms

    def reward_sources(self, dimension: str) -> list[RewardSettings]:
        """Reward sources of a dimension: those given, else the judge with the dimension's own template."""
        given = self.rewards.get(dimension)
        if not given:
            return [RewardSettings(kind="judge", template=dimension)]
        return [r if r.template or r.kind != "judge" else r.model_copy(update={"template": dimension}) for r in given]

    def reward_role(self, dimension: str, reward: RewardSettings) -> str:
        """The role that a reward asks as: its own where it names an endpoint, else the judge."""
        sources = self.reward_sources(dimension)
        if reward.endpoint is None or reward not in sources:
            return "judge"
        return f"{REWARD_ROLE}{dimension}:{sources.index(reward)}"

    def reward_roles(self) -> list[str]:
        """The roles of the rewards that name an endpoint."""
        found = [self.reward_role(d, r) for d in self.dimensions for r in self.reward_sources(d)]
        return [r for r in dict.fromkeys(found) if r != "judge"]

    def more_roles(self) -> list[str]:
        """The roles beside policy, rewriter and judge, but for the held-out judge."""
        return [*self.reward_roles(), *([GUARD_ROLE] if self.fuse.guard else [])]

    def role(self, name: str) -> RoleSettings:
        """A role's settings, with what it does not say itself taken over from the role that it uses.

        A role with a base URL of its own takes nothing but the key: another server has its own models.
        """
        role: RoleSettings | None
        if name.startswith(REWARD_ROLE):
            role = self._endpoint(name)
        elif name == GUARD_ROLE:
            role = _as_rater(self.fuse.guard.endpoint) if self.fuse.guard else None
        else:
            role = getattr(self, name)
        if role is None:
            raise SettingsError(f"no {name} is set: give {name}.base_url or {name}.use")
        if role.use is None or role.use == name or role.engine is not None:
            return role
        base = self.role(role.use)
        names = ("api_key_env",) if role.base_url is not None else _ENDPOINT
        own = {k for k in names if k in role.model_fields_set and getattr(role, k) is not None}
        if "model" in own:
            own.add("served_as")
        return role.model_copy(update={k: getattr(base, k) for k in names if k not in own})


    def _endpoint(self, name: str) -> RoleSettings | None:
        """The endpoint of a reward's role; one that names no server is the judge's."""
        dimension, _, index = name.removeprefix(REWARD_ROLE).rpartition(":")
        found = self.reward_sources(dimension)[int(index)].endpoint
        return None if found is None else _as_rater(found)


def _as_rater(found: RoleSettings) -> RoleSettings:
    """An endpoint that scores, with a judge's defaults; the judge's server where it names none."""
    own: dict[str, Any] = {"temperature": 0.0, "max_tokens": 256}
    if not (found.use or found.base_url or found.engine):
        own["use"] = "judge"
    return found.model_copy(update={k: v for k, v in own.items() if k not in found.model_fields_set or k == "use"})


@dataclass(frozen=True, slots=True)
class Options:
    """What a command adds to the settings."""

    sample: bool = False
    data: tuple[Path, ...] = ()
    out: Path | None = None
    until: str = "publish"
    fresh: bool = False
    only: frozenset[str] | None = None  # prompts of the mined ones, for a probe


def load_settings(source: str, overrides: Mapping[str, object] | None = None) -> BuildSettings:
    """Settings of builder `source` (a name in builders/, or a path to a YAML file) with dotted `overrides` on top.

    Raises:
        SettingsError: unknown source, unreadable YAML, unknown key or bad value; the text names the nearest known one.
    """
    tree = _read_builder(source)
    for key, value in (overrides or {}).items():
        _put(tree, key, value)
    return build_settings(tree)


def build_settings(tree: Mapping[str, object]) -> BuildSettings:
    """Check a settings tree.

    Raises:
        SettingsError: one line with the first fault.
    """
    try:
        return BuildSettings.model_validate(tree)
    except ValidationError as e:
        raise SettingsError(_explain(e)) from e


def parse_override(text: str) -> tuple[str, object]:
    """`KEY=VALUE` of --set, the value read as YAML.

    Raises:
        SettingsError: no `=`, or the value is not YAML.
    """
    key, eq, value = text.partition("=")
    if not eq or not key.strip():
        raise SettingsError(f"--set {text!r} is not KEY=VALUE: write it as rollout.n=8")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError as e:
        raise SettingsError(f"--set {text!r}: the value is not YAML ({' '.join(str(e).split())})") from e


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?` or the list of what is known."""
    options = sorted(known)
    close = difflib.get_close_matches(word, options, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(options)}"


def to_yaml(settings: BuildSettings) -> str:
    """The settings as YAML, keys in the order of the models."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read_builder(source: str) -> dict[str, Any]:
    path = Path(source)
    if path.suffix not in (".yaml", ".yml"):
        path = resources.folder("builders") / f"{source}.yaml"
        if os.sep in source or not path.is_file():
            raise SettingsError(f"unknown --source {source!r}: {nearest(source, resources.names('builders', '*.yaml'))}")
    try:
        tree = yaml.safe_load(path.read_text("utf-8"))
    except OSError as e:
        raise SettingsError(f"can't read the builder file {source}: {e.strerror}") from e
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise SettingsError(f"builder file {source} is not YAML: {' '.join(str(e).split())}") from e
    if not isinstance(tree, dict):
        raise SettingsError(f"builder file {source} must hold a mapping, not {type(tree).__name__}")
    return tree


def _put(tree: dict[str, Any], dotted: str, value: object) -> None:
    *path, last = dotted.split(".")
    node = tree
    for part in path:
        below = node.get(part)
        if not isinstance(below, dict):
            below = node[part] = {}
        node = below
    node[last] = value


def _explain(error: ValidationError) -> str:
    fault = error.errors()[0]
    where = ".".join(str(p) for p in fault["loc"]) or "settings"
    if fault["type"] == "extra_forbidden":
        parents, last = list(fault["loc"][:-1]), str(fault["loc"][-1])
        return f"unknown setting {where!r}: {nearest(last, _fields_at(parents))}"
    if fault["type"] == "missing":
        return f"setting {where!r} is missing: add it to the builder file or give --set {where}=..."
    message = fault["msg"].removeprefix("Value error, ")
    return f"setting {where} = {fault.get('input')!r}: {message}"


def _fields_at(path: list[int | str]) -> list[str]:
    model: type[BaseModel] = BuildSettings
    for part in path:
        if isinstance(part, str) and part in model.model_fields:
            inner = model.model_fields[part].annotation
            options = [inner, *getattr(inner, "__args__", ())]
            found = next((a for a in options if isinstance(a, type) and issubclass(a, BaseModel)), None)
            if found is None:
                found = RewardSettings if part == "rewards" else None
            if found is None:
                break
            model = found
    return list(model.model_fields)
