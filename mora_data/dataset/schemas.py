"""One pinned Arrow schema per config, as a function of the dimensions.

Nothing is inferred from rows: a dimension that nobody scored is a column of nulls in every shard,
never another type. `prompt`, `chosen`, `rejected` and `completion` are message lists; rewards and
margins are flat nullable float64, so that a viewer can plot and filter them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa

DEFAULT_CONFIG = "preference"
BY_DIM_UNION = "preference_by_dim"  # declared by listing paths; it has no files of its own
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
TEXTS = pa.list_(pa.string())
DOUBLES = pa.list_(pa.float64())


class Column(NamedTuple):
    """One column: its name, its Arrow type, and what it means, in one phrase for the card."""

    name: str
    type: pa.DataType
    meaning: str


LINEAGE = (
    Column("prompt_id", pa.string(), "hash of the normalised source context"),
    Column(
        "source_prompt",
        pa.string(),
        "the source context, normalised; several turns as `role: content` lines",
    ),
    Column("source_dataset", pa.string(), "where the prompt was mined"),
    Column("source_config", pa.string(), "its configuration"),
    Column("source_split", pa.string(), "its split"),
    Column("source_revision", pa.string(), "its commit, or `local:` and the hash of the file"),
    Column("source_row", pa.int64(), "row number in the source"),
    Column("source_licence", pa.string(), "licence of the source row"),
    Column("stratum", pa.string(), "the source's own label; never a verdict"),
    Column("category", pa.string(), "the source's topic or harm category"),
    Column("arm", pa.string(), "how the prompt was rewritten: `fused`, `identity`, ..."),
    Column(
        "kind",
        pa.string(),
        "what presampling found: `flat`, `one_dim`, `conflict`, `multi`, `undecided`, `plain`",
    ),
    Column("carried_dim", pa.string(), "the dimension that the source prompt already asks for"),
    Column("target_dims", TEXTS, "the dimensions that fusion added"),
    Column("binding_dims", TEXTS, "the dimensions in which `chosen` must win"),
    Column("dims", TEXTS, "all reward dimensions, in the order of the columns"),
    Column("simulated", pa.bool_(), "true: made by the simulator, not by a language model"),
    Column("policy", pa.string(), "the model that answered"),
    Column("judge", pa.string(), "the model that scored"),
    Column("rewriter", pa.string(), "the model that fused"),
    Column("seed", pa.int64(), "seed of the run"),
)
PROMPT = Column("prompt", MESSAGES, "the conversation up to and including the user's turn")
DIMENSION = Column("dimension", pa.string(), "the dimension that the pair was chosen for")


def per_dim(
    pattern: str, dims: Sequence[str], meaning: str, kind: pa.DataType | None = None
) -> tuple[Column, ...]:
    """One column per dimension, `{}` of the pattern replaced by its name."""
    return tuple(
        Column(pattern.format(d), pa.float64() if kind is None else kind, meaning) for d in dims
    )


def columns(config: str, dims: Sequence[str]) -> tuple[Column, ...]:
    """The columns of a config, in file order.

    Raises:
        KeyError: there is no such config.
    """
    family = family_of(config)
    if family == "scored":
        return (
            PROMPT,
            Column("completions", TEXTS, "every answer, failed ones as empty text"),
            *per_dim(
                "rewards_{}",
                dims,
                "one reward in [0, 1] per answer, null where there is none",
                DOUBLES,
            ),
            Column(
                "flags",
                pa.list_(TEXTS),
                "what was seen in each answer: `truncated`, `refusal`, `error`, ...",
            ),
            Column("finish_reasons", TEXTS, "why each answer ended"),
            Column(
                "lengths",
                pa.list_(pa.int64()),
                "length of each answer in word and punctuation tokens",
            ),
            Column(
                "pair_chosen",
                pa.list_(pa.int64()),
                "positions of the chosen answers of the selected pairs",
            ),
            Column(
                "pair_rejected",
                pa.list_(pa.int64()),
                "positions of the rejected ones, in the same order",
            ),
            Column("selector", pa.string(), "the rule that chose the pairs"),
            *LINEAGE,
        )
    if family == "prompt_only":
        return (PROMPT, *LINEAGE)
    if family == "multilabel":
        return (
            PROMPT,
            Column("response", pa.string(), "one answer"),
            *per_dim("score_{}", dims, "its reward in [0, 1]"),
            *LINEAGE,
        )
    if family == "unpaired":
        return (
            PROMPT,
            Column("completion", MESSAGES, "one answer"),
            Column("label", pa.bool_(), "true: every floor is met; false: one is clearly missed"),
            *per_dim("reward_{}", dims, "reward in [0, 1]"),
            *LINEAGE,
        )
    if family == "sft":
        return (
            PROMPT,
            Column("completion", MESSAGES, "the chosen answer"),
            *per_dim("reward_{}", dims, "its reward in [0, 1]"),
            Column("pair_id", pa.string(), "the pair it was chosen in"),
            *LINEAGE,
        )
    if family == "reward_modeling":
        return (
            *_pair(dims),
            Column(
                "margin", pa.float64(), "`margin_total`, under the name that reward trainers read"
            ),
        )
    if family == "by_dim":
        return (*_pair(dims), DIMENSION)
    if family == "stage":
        return (*_pair(dims), DIMENSION, Column("stage", pa.int64(), "number of the stage, from 1"))
    return _pair(dims)


def schema(config: str, dims: Sequence[str]) -> pa.Schema:
    """The Arrow schema of a config.

    Raises:
        KeyError: there is no such config.
    """
    return pa.schema([pa.field(c.name, c.type) for c in columns(config, dims)])


def config_names(dims: Sequence[str], stage_order: Sequence[str]) -> list[str]:
    """Every config that has files, the default first. Stages follow `stage_order`, as far as `dims`
    has them."""
    stages = [d for d in stage_order if d in dims]
    return [
        DEFAULT_CONFIG,
        *(f"preference_{d}" for d in dims),
        *(f"stage{k}_{d}" for k, d in enumerate(stages, 1)),
        "unpaired",
        "prompt_only",
        "scored",
        "reward_modeling",
        "multilabel",
        "sft",
    ]


def family_of(config: str) -> str:
    """`by_dim` for preference_<dim>, `stage` for stageK_<dim>, else the config's own name.

    Raises:
        KeyError: there is no such config.
    """
    if config in (
        "preference",
        "unpaired",
        "prompt_only",
        "scored",
        "reward_modeling",
        "multilabel",
        "sft",
    ):
        return config
    if re.fullmatch(r"stage\d+_.+", config):
        return "stage"
    if config.startswith("preference_") and config != BY_DIM_UNION:
        return "by_dim"
    raise KeyError(config)


def features(arrow: pa.Schema) -> list[dict[str, object]]:
    """The schema in the notation of `dataset_info.features` in a card's header."""
    return [{"name": f.name, **_feature(f.type)} for f in arrow]


def _feature(kind: pa.DataType) -> dict[str, object]:
    if not pa.types.is_list(kind):
        return {"dtype": _scalar(kind)}
    inner = kind.value_type
    if pa.types.is_struct(inner):
        return {"list": [{"name": f.name, "dtype": _scalar(f.type)} for f in inner]}
    return {"list": _feature(inner) if pa.types.is_list(inner) else _scalar(inner)}


def _scalar(kind: pa.DataType) -> str:
    return {"double": "float64"}.get(str(kind), str(kind))


def _pair(dims: Sequence[str]) -> tuple[Column, ...]:
    return (
        PROMPT,
        Column("chosen", MESSAGES, "the better answer"),
        Column("rejected", MESSAGES, "the worse answer"),
        Column("pair_id", pa.string(), "hash of prompt id, arm and both texts"),
        *per_dim("chosen_reward_{}", dims, "reward of `chosen`, in [0, 1]"),
        *per_dim("rejected_reward_{}", dims, "reward of `rejected`, in [0, 1]"),
        *per_dim("margin_{}", dims, "chosen minus rejected"),
        *per_dim(
            "margin_confirmed_{}",
            dims,
            "the margin when both were scored once more; null: not done",
        ),
        Column("margin_total", pa.float64(), "sum of the margins"),
        Column("selector", pa.string(), "the rule that chose the pair"),
        Column("score", pa.float64(), "what that rule maximised"),
        Column("weight", pa.float64(), "1 / number of pairs of this prompt and arm"),
        *per_dim("pro_weight_{}", dims, "share of the dimension in softmax(rewards of `chosen`)"),
        Column("len_chosen", pa.int64(), "length in word and punctuation tokens"),
        Column("len_rejected", pa.int64(), "length in word and punctuation tokens"),
        *LINEAGE,
    )
