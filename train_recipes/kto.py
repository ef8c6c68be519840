# /// script
# requires-python = ">=3.11"
# dependencies = [
# "accelerate>=1.10", "datasets>=4.0", "peft>=0.17", "pyyaml>=6.0", "torch>=2.6",
# "transformers>=5.0", "trl>=1.10",
# ]
# ///
"""Kahneman-Tversky optimisation on the unpaired answers of a published dataset.

    python kto.py --config kto/smoke.yaml dataset=runs/demo/dataset output_dir=runs/kto
    python kto.py --config kto/single-gpu-lora.yaml dataset=org/mora-pairs revision=v1.0.0
    model=org/chat-7b output_dir=runs/kto

A row's columns `prompt` and `completion` are message lists, `label` is true or false. The side with
fewer rows weighs more, as TRL recommends (Ethayarajh et al. 2024, eq. 8), unless desirable_weight
or undesirable_weight is given. The batch must hold at least two rows: the KL term pairs a prompt
with another row's completion. The YAML file is flat: the keys of `Settings` in trl_recipe.py and
any field of TRL's KTOConfig; `key=value` overrides it. A stated failure is one line and exit 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from dataset_rows import load_both
from recipe import Stop
from trl import KTOConfig, KTOTrainer
from trl_recipe import Recipe, Settings, make_trainer, start, train

COLUMNS = {"prompt": "messages", "completion": "messages", "label": "value"}
LOGGED = {
    "loss": "loss",
    "rewards/chosen": "reward_chosen",
    "rewards/rejected": "reward_rejected",
    "kl": "kl",
}


def length(batch: dict[str, Any]) -> Any:
    return pc.add(
        pc.list_value_length(batch["prompt_ids"]), pc.list_value_length(batch["completion_ids"])
    )


RECIPE = Recipe(
    Path(__file__).stem, "unpaired", "rows", COLUMNS, LOGGED, KTOTrainer, KTOConfig, length
)


def run(own: Settings, args: KTOConfig) -> dict[str, Any]:
    """Train, and what metrics.json holds."""
    rows, held_out = load_both(RECIPE, own)
    rows = rows.shuffle(seed=args.seed)  # TRL takes them in order, for the KL term's sake
    n_true = sum(rows["label"])
    if n_true in (0, len(rows)):
        raise Stop(f"every label of {own.dataset} is {n_true > 0}: KTO needs both kinds")
    if not own.given.keys() & {"desirable_weight", "undesirable_weight"}:
        args.desirable_weight = max(1.0, (len(rows) - n_true) / n_true)
        args.undesirable_weight = max(1.0, n_true / (len(rows) - n_true))
    weights = {
        "desirable_weight": args.desirable_weight,
        "undesirable_weight": args.undesirable_weight,
    }
    return (
        train(RECIPE, own, make_trainer(RECIPE, own, args, rows, held_out), rows)
        | {"rows_true": n_true}
        | weights
    )


if __name__ == "__main__":
    raise SystemExit(start(RECIPE, run, __doc__))
