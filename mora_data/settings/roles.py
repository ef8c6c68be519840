"""Who answers: the endpoints, in-process models and batch jobs behind the roles of a build; and
what all settings have in common."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from .needs import Needs

ROLES = ("policy", "rewriter", "judge", "heldout_judge")
_OPENAI, _HTTP = Needs("engine", ("openai",)), Needs("engine", ("openai", "batch"))
_LOCAL = Needs("engine", ("transformers", "vllm"))


def _dimension_name(name: str) -> str:
    """A dimension's name is part of columns, configs and folders."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,39}", name):
        raise ValueError("write it with letters, digits, _ and -, a letter first, 40 at most")
    if name.lower() in ("total", "by_dim") or name.lower().startswith("confirmed_"):
        raise ValueError("columns and configs of that name mean something else: take another one")
    return name


DimensionName = Annotated[str, AfterValidator(_dimension_name)]


class Settings(BaseModel):
    """Base of all settings: unknown keys refused, frozen once built."""

    # built once, by the model that holds it; `model_construct` of a default builds nothing
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    not_in_rows: ClassVar[frozenset[str]] = frozenset()
    """Settings that can't change a row of a partition; every other one is part of its cache key."""


def cache_tree(settings: Settings) -> dict[str, Any]:
    """What of the settings can change a partition's rows, as a JSON tree."""
    return {k: _in_rows(v) for k, v in settings if k not in settings.not_in_rows}


def _in_rows(value: Any) -> Any:
    if isinstance(value, Settings):
        return cache_tree(value)
    if isinstance(value, Mapping):
        return {str(k): _in_rows(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_in_rows(v) for v in value]
    return value


class LocalSettings(Settings):
    """Models in this process: engines `transformers` and `vllm`."""

    device: Annotated[str, Needs("engine", ("transformers",))] = "auto"
    """transformers: cpu, cuda, cuda:1, ...; auto: the GPU where there is one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Weights and arithmetic; auto: bfloat16 on a GPU, float32 on a CPU (vllm: what the model
    says)."""
    max_batch: Annotated[int, Field(ge=1)] = 256
    """transformers: samples in one batch at most; up to it the size is found by doubling. vllm:
    requests handed over at once."""
    window: Annotated[int, Field(ge=1)] = 2048
    """Samples that may wait before no further prompt is opened; sorted by length, so that batches
    hold little padding."""
    max_length: Annotated[int, Field(ge=2)] | None = None
    """Longest prompt and answer together, in tokens; null: the model's own limit."""
    text_pair: Annotated[bool, Needs("engine", ("transformers",))] = False
    """Classifiers without a chat template: give them the turns before the answer and the answer as
    a pair of texts."""
    options: Annotated[dict[str, Any], Needs("engine", ("vllm",))] = {}
    """vllm: further arguments of its LLM class, as gpu_memory_utilization or tensor_parallel_size.
    """


class BatchSettings(Settings):
    """Requests handed over as files: engine `batch`."""

    mode: Literal["provider", "files"] = "provider"
    """provider: the OpenAI Batch API of base_url; files: written here, run by vLLM's run-batch,
    read again by the same command."""
    max_requests: Annotated[int, Field(ge=1, le=50_000)] = 50_000
    """Requests in one file at most."""
    max_bytes: Annotated[int, Field(ge=1_000, le=200_000_000)] = 200_000_000
    """Bytes in one file at most."""
    prompts: Annotated[int, Field(ge=1)] = 1024
    """Prompts open at once, over several partitions; 1,024 with 16 answers and 3 judges are a wave
    of 49,152 judge requests."""
    poll_s: Annotated[float, Field(gt=0)] = 30.0
    """Seconds between two looks at a running batch."""
    tries: Annotated[int, Field(ge=1)] = 3
    """Batches that a request may go through when it expires or fails in a way that may pass."""


class RoleSettings(Settings):
    """One model in one role: which engine answers, and how it samples."""

    not_in_rows = frozenset(
        "use engine base_url replicas transport model served_as revision api_key_env concurrency"
        " requests_per_min tokens_per_min timeout_s give_up_s extra_body local batch headers_env"
        " ca_file max_tokens_field system".split()
    )  # models come in by name, revision and extra fields, as the engine knows them

    use: Literal["policy", "rewriter", "judge"] | None = None
    """Use another role's engine, endpoint and model."""
    engine: str | None = None
    """openai, batch, transformers, vllm, scripted, or module:function; null: openai when a base URL
    or key is known."""
    base_url: Annotated[str | None, _HTTP] = None
    """Base URL of an OpenAI-compatible endpoint, up to and including /v1."""
    replicas: Annotated[list[str], _OPENAI] = []
    """Further base URLs that serve the same model; each gets `concurrency` requests."""
    transport: Annotated[str, _OPENAI] = "auto"
    """auto; openai: over the openai package; module:function: over the AsyncOpenAI that
    function(base_url) returns."""
    model: str | None = None
    """Model name; null: the only model that the endpoint serves."""
    served_as: Annotated[list[str], _OPENAI] = []
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
    concurrency: Annotated[int, Field(ge=1, le=4096), _OPENAI] = 64
    """Requests in flight at most, on each base URL. Roles with the same URLs and key share
    them."""
    requests_per_min: Annotated[Annotated[float, Field(gt=0)] | None, _OPENAI] = None
    """Requests a minute at most, over all base URLs; null: no limit but the server's refusals."""
    tokens_per_min: Annotated[Annotated[float, Field(gt=0)] | None, _OPENAI] = None
    """Tokens a minute at most, in and out together, over all base URLs."""
    n_per_request: Literal["all"] | Annotated[int, Field(ge=1)] = "all"
    """Samples asked for in one request: all, or a number."""
    timeout_s: Annotated[Annotated[float, Field(gt=0)] | None, _HTTP] = None
    """Longest wait for one reply, in seconds, from the request on its way to the end of the reply;
    null: as long as this server may need."""
    give_up_s: Annotated[float, Field(gt=0), _OPENAI] = 60.0
    """The run stops, state kept, when every request has failed for this long, in seconds from the
    first failure."""
    extra_body: Annotated[dict[str, Any], Needs("engine", ("openai", "batch", "vllm"))] = {}
    """Further fields of the request body, sent as they are and part of the request key; null takes
    a field out."""
    headers_env: Annotated[
        dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")], str], _OPENAI
    ] = {}
    """Further headers: name, and the environment variable that holds the value, as `api-key`:
    AZURE_OPENAI_API_KEY."""
    ca_file: Annotated[str | None, _OPENAI] = None
    """PEM file of further certificates that https may be signed with; null: those of the system."""
    max_tokens_field: Annotated[Literal["max_tokens", "max_completion_tokens"] | None, _HTTP] = None
    """Field that bounds an answer; null: max_tokens until it is refused."""
    system: Annotated[Literal["auto", "merge"], _HTTP] = "auto"
    """merge: put the system turn before the first user turn, for models that ignore it; auto: only
    where it is refused."""
    reasoning: Literal["strip", "keep"] = "strip"
    """The policy's thoughts before its answers. keep: in a column of their own, `thoughts` of the
    config `scored`; strip: nowhere. No judge and no pair has them."""
    local: Annotated[LocalSettings, _LOCAL] = LocalSettings.model_construct()
    """Engines transformers and vllm: device, batches, lengths."""
    batch: Annotated[BatchSettings, Needs("engine", ("batch",))] = BatchSettings.model_construct()
    """Engine batch: files, waves, polling."""


# who scores: the reward sources of a dimension and how their raw scores become rewards


CalibrationKind = Literal[
    "identity", "likert", "sigmoid", "ecdf", "robust_z", "isotonic", "platt", "anchored"
]


class CalibrationSettings(Settings):
    """How the raw scores of a reward source become values in [0, 1]. `calibration: ecdf` is short
    for `{kind: ecdf}`."""

    kind: CalibrationKind | None = None
    """null: the source's own. anchored: against the other answers to the same prompt, for
    Bradley-Terry scores."""
    labels: Annotated[str | None, Needs("kind", ("isotonic", "platt"))] = None
    """JSONL file of {"raw": score, "label": 0 to 1}."""
    low: float | None = None
    """likert: raw score that is worth 0; null: 1."""
    high: float | None = None
    """likert: raw score that is worth 1; null: 5."""
    zero: float | None = None
    """sigmoid: raw score that is worth 0.5; null: 0."""
    temperature: Annotated[float, Field(gt=0)] | None = None
    """sigmoid, anchored: raw difference per unit of the logistic; null: 1 for sigmoid, fitted for
    anchored."""
    quantile: Annotated[float, Field(ge=0, le=1)] = 0.5
    """anchored: quantile of the prompt's own answers that is worth 0.5."""

    @model_validator(mode="after")
    def _fits_together(self) -> CalibrationSettings:
        if self.kind in ("isotonic", "platt") and not self.labels:
            raise ValueError(
                f"{self.kind} is fitted on labels: give labels, a JSONL file of {{raw, label}}"
            )
        low = self.low if self.low is not None else 1.0
        high = self.high if self.high is not None else 5.0
        if low >= high:
            raise ValueError(f"low = {low:g} must be under high = {high:g}")
        return self


class RewardSettings(Settings):
    """One source of reward for one dimension. What a kind needs besides stands beside these keys
    and is checked when the build loads it (`Settings` of its class)."""

    model_config = ConfigDict(extra="allow", frozen=True, defer_build=True)

    not_in_rows = frozenset({"concurrency", "noise"})  # noise: the judges' statistics hold it

    kind: str = "judge"
    """Reward source: judge, pairwise, rubric, classifier, guard, python, precomputed, rules, or a
    dotted path module:Class."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight among the sources of this dimension."""
    noise: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """How far its score is from the worth of an answer, as a standard deviation on the scale of 0
    to 1; what two scores of one answer show counts where it is larger, and is 0 for a source that
    always says the same."""
    endpoint: RoleSettings | None = None
    """The model that this source asks, where it is not the judge: engine, base URL, model. Without
    a URL, the judge's server."""
    calibration: CalibrationSettings | None = None
    """Raw scores to values in [0, 1]; null: the source's own scale or kind."""
    calibration_file: str | None = None
    """JSON file of a frozen calibration to use as it is: one calibration map, or the
    calibration.json of another dataset."""

    concurrency: Annotated[int, Field(ge=1, le=4096)] = 16
    """Calls in flight at most that a source makes itself, not through an engine (`ask.cached`)."""

    @field_validator("calibration", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_calibration(self) -> RewardSettings:
        if self.calibration is not None and self.calibration_file is not None:
            raise ValueError("calibration and calibration_file: a frozen one is used as it is")
        return self

    @property
    def options(self) -> dict[str, Any]:
        """What is said of the kind's own settings."""
        return dict(self.model_extra or {})
