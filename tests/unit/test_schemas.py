"""Schemas: the pinned columns, and that `datasets` reads them as the card says."""

from __future__ import annotations

import pyarrow as pa
import pytest

from mora_data.dataset import schemas

DIMS = ("helpful", "harmless", "truthful")
CONTRACT = {
    "prompt",
    "chosen",
    "rejected",
    "prompt_id",
    "source_prompt",
    "source_dataset",
    "source_config",
    "source_revision",
    "source_row",
    "source_licence",
    "arm",
    "kind",
    "carried_dim",
    "target_dims",
    "binding_dims",
    "dims",
    "simulated",
    "selector",
    "policy",
    "judge",
    "len_chosen",
    "len_rejected",
    "margin_total",
    "score",
    "weight",
    "seed",
}


def test_preference_has_the_columns_of_the_contract() -> None:
    names = set(schemas.schema("preference", DIMS).names)
    flat = {
        f"{p}_{d}"
        for d in DIMS
        for p in ("chosen_reward", "rejected_reward", "margin", "margin_confirmed")
    }
    assert names >= CONTRACT | flat


@pytest.mark.parametrize("config", schemas.config_names(DIMS, DIMS))
def test_messages_are_messages_and_rewards_are_nullable_doubles(config: str) -> None:
    schema = schemas.schema(config, DIMS)
    assert len(set(schema.names)) == len(schema.names)
    for field in schema:
        assert field.nullable
        if field.name in ("prompt", "chosen", "rejected", "completion"):
            assert field.type == schemas.MESSAGES
        if field.name.startswith(
            ("margin", "chosen_reward", "rejected_reward", "reward_", "score_", "pro_weight_")
        ):
            assert field.type == pa.float64(), field.name


def test_configs_follow_the_dimensions_and_the_stage_order() -> None:
    names = schemas.config_names(("a", "b"), ("b", "absent", "a"))
    assert names == [
        "preference",
        "preference_a",
        "preference_b",
        "stage1_b",
        "stage2_a",
        "unpaired",
        "prompt_only",
        "scored",
        "reward_modeling",
        "multilabel",
        "sft",
    ]
    assert all(schemas.columns(n, ("a", "b")) for n in names)


@pytest.mark.parametrize("unknown", ["nothing", "preference_by_dim", "stage_x", "stagex_a"])
def test_an_unknown_config_has_no_schema(unknown: str) -> None:
    with pytest.raises(KeyError):
        schemas.schema(unknown, DIMS)


@pytest.mark.parametrize("config", schemas.config_names(DIMS, DIMS))
def test_every_column_says_what_it_means(config: str) -> None:
    assert all(c.meaning for c in schemas.columns(config, DIMS))
