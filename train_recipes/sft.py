# /// script
# requires-python = ">=3.11"
# dependencies = [
# "accelerate>=1.10", "datasets>=4.0", "peft>=0.17", "pyyaml>=6.0", "torch>=2.6",
# "transformers>=5.0", "trl>=1.10",
# ]
# ///
"""Supervised fine-tuning on the chosen answers of a published dataset: a warm-up, or a baseline for
the pairs.

    python sft.py --config sft/smoke.yaml dataset=runs/demo/dataset output_dir=runs/sft
    python sft.py --config sft/single-gpu-lora.yaml dataset=org/mora-pairs revision=v1.0.0
    model=org/base output_dir=runs/sft

A row's columns `prompt` and `completion` are message lists; the loss is on the completion alone.
Mind the source's terms: some forbid training on their answers (the dataset's card says so). The
YAML file is flat: the keys of `Settings` in trl_recipe.py and any field of TRL's SFTConfig;
`key=value` overrides it. Written to output_dir: the model (or adapter) with its card, checkpoints,
metrics.json. A stated failure is one line and exit 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from dataset_rows import load_both
from trl import SFTConfig, SFTTrainer
from trl_recipe import Recipe, Settings, make_trainer, start, train

COLUMNS = {"prompt": "messages", "completion": "messages"}
LOGGED = {"loss": "loss", "mean_token_accuracy": "token_accuracy"}


def length(batch: dict[str, Any]) -> Any:
    """One more than is left of a row: TRL has cut those that were longer, which fill max_length."""
    return pc.add(pc.list_value_length(batch["input_ids"]), 1)


RECIPE = Recipe(Path(__file__).stem, "sft", "rows", COLUMNS, LOGGED, SFTTrainer, SFTConfig, length)


def run(own: Settings, args: SFTConfig) -> dict[str, Any]:
    """Train, and what metrics.json holds."""
    rows, held_out = load_both(RECIPE, own)
    return train(RECIPE, own, make_trainer(RECIPE, own, args, rows, held_out), rows)


if __name__ == "__main__":
    raise SystemExit(start(RECIPE, run, __doc__))
