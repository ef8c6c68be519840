# /// script
# requires-python = ">=3.11"
# dependencies = ["datasets>=4.0", "pyyaml>=6.0"]
# ///
"""The rows of a published dataset that a recipe trains on: one config and split, its columns
checked, mixed with others if wanted.

    rows, held_out = load_both(recipe, own)      # a Recipe and its Settings, of trl_recipe.py
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow.compute as pc
from recipe import Stop, dataset_name, first_line


def load_both(recipe: Any, own: Any) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """The rows to train on, and those of the evaluation, if one is wanted."""
    held_out = load_rows(recipe, own, own.eval_split) if own.eval_split else None
    return load_rows(recipe, own, own.split), held_out


def load_rows(recipe: Any, own: Any, split: str) -> datasets.Dataset:
    """The checked columns of one split; under dataset_mix all rows of the original and a share of
    the dataset's.

    The share is a seeded choice; a smaller one is part of a larger one.
    """
    rows, mix = load_split(recipe, own.dataset, own.revision, own.config, split), own.dataset_mix
    if not mix or split != own.split:
        return rows
    share = mix.get("fraction")
    if not {"original", "fraction"} <= mix.keys() <= {
        "original",
        "fraction",
        "revision",
        "config",
    } or not (isinstance(share, (int, float)) and 0 <= share <= 1):
        raise Stop(f"dataset_mix = {mix}: give {{original: folder or Hub id, fraction: 0 to 1}}")
    original = load_split(
        recipe, mix["original"], mix.get("revision"), mix.get("config", own.config), split
    )
    added = rows.shuffle(seed=0).select(range(round(share * len(rows))))
    if differ := sorted(added.features.keys() ^ original.features.keys()):
        raise Stop(
            f"dataset_mix: only one of {mix['original']} and {own.dataset} has {', '.join(differ)}"
        )
    print(
        f"{len(original)} rows of {mix['original']} and {len(added)} of {len(rows)} of"
        f" {own.dataset}",
        file=sys.stderr,
    )
    return datasets.concatenate_datasets([original, added.cast(original.features)])


def load_split(
    recipe: Any, name: str, revision: str | None, config: str, split: str
) -> datasets.Dataset:
    source = f"{name} at {revision}" if revision else name
    name = dataset_name(name, revision)
    try:
        configs = datasets.get_dataset_config_names(name, revision=revision)
        if config not in configs:
            raise Stop(f"dataset {source} has no config {config!r}; it has: {', '.join(configs)}")
        splits = datasets.load_dataset(name, config, revision=revision)
        if split not in splits:
            raise Stop(
                f"config {config!r} of {source} has no split {split!r}; it has: {', '.join(splits)}"
            )
        if missing := [c for c in recipe.columns if c not in splits[split].column_names]:
            heads = {
                c: datasets.load_dataset(name, c, revision=revision, streaming=True)
                for c in configs
            }
            able = [
                c
                for c, s in heads.items()
                if recipe.columns.keys() <= set(next(iter(s.values())).column_names or [])
            ]
            raise Stop(
                f"config {config!r} of {source} lacks {', '.join(missing)} among its columns; "
                f"{'configs' if able else 'no config'} with them: {', '.join(able)}; "
                f"it has: {', '.join(splits[split].column_names)}"
            )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as e:
        inner = Path(name, "dataset")
        hint = f"; did you mean {inner}?" if (inner / "README.md").is_file() else ""
        raise Stop(f"can't load dataset {source}: {first_line(e)}{hint}") from e
    further = [
        c
        for c in splits[split].column_names
        if c not in recipe.columns and re.fullmatch(recipe.optional, c)
    ]
    return check_rows(
        recipe,
        splits[split].select_columns([*recipe.columns, *further]),
        f"config {config!r} of {source}",
    )


def check_rows(recipe: Any, rows: datasets.Dataset, where: str) -> datasets.Dataset:
    """The rows; Stop unless there are some, and every column is filled, messages with message
    lists."""
    if len(rows) == 0:
        raise Stop(f"{where} has no rows")
    texts = [
        c
        for c, kind in recipe.columns.items()
        if kind == "messages" and isinstance(rows[0][c], str)
    ]
    if texts:
        raise Stop(
            f"{where}: {' and '.join(texts)} is a string where a message list is wanted: "
            "make it [{'role': 'user', 'content': ...}]"
        )
    for column, kind in recipe.columns.items():
        values = rows.with_format("arrow")[:][column]
        filled = (
            pc.greater(pc.list_value_length(values), 0) if kind == "messages" else values.is_valid()
        )
        if empty := len(rows) - pc.sum(pc.fill_null(filled, False)).as_py():
            raise Stop(
                f"{where}: {empty} of {len(rows)} rows have no"
                f" {'message' if kind == 'messages' else kind} in {column}"
            )
    return rows
