# /// script
# requires-python = ">=3.11"
# dependencies = [
# "accelerate>=1.10", "datasets>=4.0", "peft>=0.17", "pyyaml>=6.0", "torch>=2.6",
# "transformers>=5.0", "trl>=1.10",
# ]
# ///
"""Direct preference optimisation on the pairs of a published dataset, simultaneous over all its
dimensions.

    python dpo.py --config dpo/smoke.yaml dataset=runs/demo/dataset output_dir=runs/dpo
    python dpo.py --config dpo/single-gpu-lora.yaml dataset=org/mora-pairs revision=v1.0.0 beta=0.05

A row's columns `prompt`, `chosen` and `rejected` are message lists, the prompt without the answer;
others are ignored. The YAML file is flat: the keys of `Settings` in trl_recipe.py and any field of
TRL's DPOConfig; `key=value` overrides it. Any of TRL's losses: loss_type=ipo, robust, bco_pair,
..., or several, loss_type='[sigmoid, sft]' loss_weights='[1.0, 0.1]'; ld_alpha. Written to
output_dir: the model (or adapter) with its card, checkpoints, metrics.json. A stated failure is one
    line and exit 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from dataset_rows import load_both
from trl import DPOConfig, DPOTrainer
from trl_recipe import Recipe, Settings, make_trainer, start, train

COLUMNS = {"prompt": "messages", "chosen": "messages", "rejected": "messages"}
LOGGED = {"loss": "loss", "rewards/margins": "reward_margin", "rewards/accuracies": "accuracy"}


def length(batch: dict[str, Any]) -> Any:
    """Of a pair: its longer side, with the prompt."""
    prompt, *sides = (pc.list_value_length(batch[f"{c}_ids"]) for c in COLUMNS)
    return pc.add(prompt, pc.max_element_wise(*sides))


RECIPE = Recipe(
    Path(__file__).stem, "preference", "pairs", COLUMNS, LOGGED, DPOTrainer, DPOConfig, length
)


def run(own: Settings, args: DPOConfig) -> dict[str, Any]:
    """Train, and what metrics.json holds."""
    rows, held_out = load_both(RECIPE, own)
    return train(RECIPE, own, make_trainer(RECIPE, own, args, rows, held_out), rows)


if __name__ == "__main__":
    raise SystemExit(start(RECIPE, run, __doc__))
