"""A small dataset folder in the published layout, with generated harmless text: what a recipe
trains on.

folder/README.md                                    YAML header that declares the configs
folder/preference/train-00000-of-00001.parquet      prompt, chosen, rejected (message lists) and
extra columns folder/prompt_only/train-00000-of-00001.parquet     no pairs: for the error about
missing columns folder/sft, folder/unpaired                         prompt, completion (and label)
folder/stage1_helpful, stage2_harmless, preference_harmless, preference_helpful    the pairs again
"""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

THINGS = [
    "tea",
    "a kite",
    "a map",
    "the tide",
    "a garden",
    "a letter",
    "the piano",
    "bread",
    "a bicycle",
    "snow",
]

PAIRED = [
    "preference",
    "preference_harmless",
    "preference_helpful",
    "stage1_helpful",
    "stage2_harmless",
]
ENTRY = "- config_name: {0}\n  data_files:\n  - {{split: train, path: {0}/train-*}}\n"
HEADER = (
    "---\nconfigs:\n"
    + "".join(
        ENTRY.format(c) + ("  - {split: test, path: preference/test-*}\n" if c in PAIRED else "")
        for c in (*PAIRED, "prompt_only", "sft", "unpaired")
    ).replace("preference\n", "preference\n  default: true\n", 1)
    + "---\n# Pairs for tests\n"
)

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
COLUMNS = {
    "prompt_id": pa.string(),
    "prompt": MESSAGES,
    "chosen": MESSAGES,
    "rejected": MESSAGES,
    "margin_total": pa.float64(),
    "target_dims": pa.list_(pa.string()),
    "simulated": pa.bool_(),
}
SCHEMA = pa.schema(list(COLUMNS.items()))
DISMISSALS = [
    "Whatever, {} is boring.",
    "I don't know and I don't care.",
    "Ask someone else about {}.",
]


def pair(rng: random.Random, i: int) -> dict[str, object]:
    """One row: the chosen answer goes into the matter, the rejected one brushes the question
    off."""
    thing, other = rng.sample(THINGS, 2)
    chosen = (
        f"Start with {thing}, take your time, and check each step. If it does not work, {other} may"
        " help too."
    )
    return {
        "prompt_id": f"{i:016x}",
        "prompt": [{"role": "user", "content": f"How do I get better with {thing}, question {i}?"}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rng.choice(DISMISSALS).format(thing)}],
        "margin_total": rng.random(),
        "target_dims": ["helpful"],
        "simulated": True,
    }


def write_dataset(folder: Path, train: int = 96, test: int = 16, seed: int = 0) -> Path:
    """Write the folder; the same arguments write the same rows."""
    rng = random.Random(seed)
    rows = [pair(rng, i) for i in range(train + test)]
    for config in PAIRED:
        write_table(folder, config, "train", pa.Table.from_pylist(rows[:train], SCHEMA))
    write_table(folder, "preference", "test", pa.Table.from_pylist(rows[train:], SCHEMA))
    single = {"prompt": MESSAGES, "completion": MESSAGES, "label": pa.bool_()}
    answers = [
        {"prompt": r["prompt"], "completion": r[c], "label": c == "chosen"}
        for r in rows
        for c in ("chosen", "rejected")
    ]
    write_table(
        folder,
        "unpaired",
        "train",
        pa.Table.from_pylist(answers[:-10:3] + answers[::2], pa.schema(list(single.items()))),
    )
    write_table(
        folder,
        "sft",
        "train",
        pa.Table.from_pylist(answers[::2], pa.schema(list(single.items())[:2])),
    )
    write_table(
        folder,
        "prompt_only",
        "train",
        pa.Table.from_pylist(rows, SCHEMA).select(["prompt_id", "prompt"]),
    )
    (folder / "README.md").write_text(HEADER, "utf-8")
    return folder


def write_table(folder: Path, config: str, split: str, table: pa.Table) -> None:
    """One Parquet file of one config."""
    path = folder / config / f"{split}-00000-of-00001.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
