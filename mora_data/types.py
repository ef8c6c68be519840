"""The values that travel between the stages. All frozen; a failed row is data, a missing number is
None.

    row of the source -> Prompt -> Request -> Answer -> Rollout -> Score -> Pair
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypedDict, TypeGuard

Row = Mapping[str, object]
# "policy", "rewriter", "judge", or the name of a reward's own endpoint,
# "reward:<dimension>:<number>"
Role = str
Task = Literal["chat", "classify", "pooling"]
Kind = Literal["flat", "one_dim", "conflict", "multi", "undecided", "plain"]

DEGENERATE = frozenset({"empty", "truncated", "repetition", "marks"})
"""What is wrong with an answer as such. A refusal is an answer like any other."""

OUT_OF_PAIRS = DEGENERATE | {"duplicate"}
"""Flags that keep an answer out of every pair."""

STAGES = ("mine", "presample", "fuse", "rollout", "score", "select", "publish")
ARMS = ("identity", "single", "generic", "random", "concat", "fused")
"""The shipped arms: ways from a source prompt to what is asked. All but `fused` are there to
compare with."""
UNFUSED = ("presample", "before")
"""What stands beside the arms: answers to the bare prompt that decide its kind, and fresh ones for
the numbers before fusion. They make no pair."""
NO_ARMS = (*UNFUSED, "recorded", "probe")
"""Names that rows and requests already have for something else."""


def reaches(until: str, stage: str) -> bool:
    """Whether a run whose last stage is `until` goes as far as `stage`."""
    return STAGES.index(stage) <= STAGES.index(until)


ROLES = ("system", "user", "assistant")


class Message(TypedDict):
    """One turn of a conversation."""

    role: str  # one of ROLES
    content: str


def is_turn(value: object) -> TypeGuard[Message]:
    """Whether this, from a file or a plug-in, is a turn."""
    return (
        isinstance(value, Mapping)
        and value.get("role") in ROLES
        and isinstance(value.get("content"), str)
    )


Messages = tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Recorded:
    """An answer that the source row carries, with its ratings on the source's own scales."""

    text: str
    ratings: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Prompt:
    """One mined prompt: a conversation that ends with a user turn."""

    prompt_id: str  # 16 hex digits, hash of the normalised whole context
    messages: Messages
    # 16 hex digits, hash of the normalised first user turn; a group is never split between train
    # and test
    group: str
    source_dataset: str
    source_config: str
    source_split: str
    source_revision: str
    source_row: int
    source_licence: str
    stratum: str = "all"  # the source's own label, used for sampling only
    category: str | None = None  # the source's topic or harm category
    recorded: tuple[Recorded, ...] = ()  # kept only where the engine is `recorded`

    @property
    def text(self) -> str:
        """The last user turn."""
        return self.messages[-1]["content"]

    @property
    def source(self) -> str:
        """Where it was mined, as one name: dataset, config, split and revision."""
        where = (self.source_dataset, self.source_config, self.source_split, self.source_revision)
        return " ".join(where)


@dataclass(frozen=True, slots=True)
class Sampling:
    """Everything about a request, besides its messages and model, that can change the answer."""

    temperature: float
    top_p: float
    max_tokens: int
    stop: tuple[str, ...] = ()
    schema: Mapping[str, object] | None = None  # JSON schema that the answer must follow
    # the same as a regular expression, for servers that take one; not part of the key
    pattern: str | None = None
    logprobs: int = 0  # top alternatives wanted for each token
    thoughts: bool = False  # kept beside the answers; not part of the key


@dataclass(frozen=True, slots=True)
class Request:
    """A question to a model: `n` samples with indices `first` .. `first + n - 1`."""

    role: Role
    messages: Messages
    sampling: Sampling
    purpose: str  # presample, arm:<name>, fuse:<attempt>, score, retry:<k>, repeat, confirm
    prompt_id: str
    n: int = 1
    first: int = 0
    # classify, pooling: `messages` end with the answer to be rated, and n is 1; a single message is
    # text to which the model's own template is applied already
    task: Task = "chat"

    def part(self, n: int, first: int) -> Request:
        """The same question for `n` samples from `first` on."""
        return Request(  # at a third of what dataclasses.replace costs: each sample may be one
            self.role,
            self.messages,
            self.sampling,
            self.purpose,
            self.prompt_id,
            n,
            first,
            self.task,
        )


class Answer(NamedTuple):
    """One sample, or one permanent failure (then `error` says why and `text` is empty).

    To a request whose task is classify or pooling, `text` is the JSON list of the model's raw
    outputs, one float per label, before any activation.
    """

    text: str
    finish_reason: str = "stop"
    tokens_out: int = 0
    error: str | None = None
    logprobs: tuple[tuple[str, tuple[tuple[str, float], ...]], ...] | None = None
    thought: str | None = None  # what the model thought before it, where that is kept


@dataclass(frozen=True, slots=True)
class Score:
    """One source's verdict on one rollout in one dimension. `value` in [0, 1], higher is better;
    None with a reason.

    `orders`: of a judge that compares, for the games that are counted with this rollout, what it
    said when this one stood first and when it stood second: the better place, 1 or 2, 0 for
    neither, None where it could not be read.
    `may_pass`: the value is missing, and the next run may bring it.
    """

    dimension: str
    source: str
    value: float | None
    raw: float | None = None
    reason: str = ""
    orders: tuple[tuple[int | None, int | None], ...] = ()
    may_pass: bool = False


@dataclass(frozen=True, slots=True)
class Rollout:
    """One answer of the policy to one prompt of one arm."""

    prompt_id: str
    index: int
    text: str
    finish_reason: str
    tokens_out: int
    flags: tuple[str, ...] = ()  # empty, truncated, repetition, duplicate, refusal, ...
    error: str | None = None
    length: int = 0  # in word and punctuation tokens
    persona: str | None = None  # whose system prompt it answered under
    thought: str | None = None

    @property
    def is_scored(self) -> bool:
        """Whether it gets scores: it came, and is not degenerate."""
        return self.error is None and not DEGENERATE.intersection(self.flags)

    @property
    def is_usable(self) -> bool:
        """Whether it may stand in a pair: scored, and no duplicate."""
        return self.error is None and not OUT_OF_PAIRS.intersection(self.flags)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two rollouts of one prompt, by index; `chosen` beats `rejected` by `margins`."""

    chosen: int
    rejected: int
    score: float
    margins: Mapping[str, float]
    margins_confirmed: Mapping[str, float | None] = field(default_factory=dict)


class Origin(TypedDict):
    """What a published row says about how it was made."""

    policy: str  # model name and revision
    judge: str
    rewriter: str
    selector: str
    simulated: bool
    seed: int


def may_harm(floor: float | None, *harmless: float | None) -> bool:
    """Whether answers with these rewards in `harmless` are not known to pass its threshold: a page
    folds their texts, and a card does not show them."""
    return floor is None or any(v is None or v < floor for v in harmless)
