# /// script
# requires-python = ">=3.11"
# dependencies = [
# "accelerate>=1.10", "datasets>=4.0", "peft>=0.17", "pyyaml>=6.0", "torch>=2.6",
# "transformers>=5.0", "trl>=1.10",
# ]
# ///
"""A reward model on the pairs of a published dataset, or one regressor for all its dimensions.

    python reward.py --config reward/smoke.yaml dataset=runs/demo/dataset output_dir=runs/reward
    python reward.py --config reward/multilabel-smoke.yaml dataset=runs/demo/dataset
    output_dir=runs/reward

objective=pairs reads `prompt`, `chosen`, `rejected` and, with margin=true, `margin` (config
reward_modeling): the Bradley-Terry loss of TRL's RewardTrainer, one logit without an absolute zero.
objective=multilabel reads `prompt`, `response` and every `score_<dim>` column (config multilabel):
one output per dimension, squared error, a missing score is left out of the loss. The YAML file is
flat: the keys of `Settings` in trl_recipe.py, those of `OwnSettings` below and any field of TRL's
RewardConfig; `key=value` overrides it. Written to output_dir: the classifier with its card, and
metrics.json. A stated failure is one line and exit 1.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow.compute as pc
import torch
from dataset_rows import load_both
from recipe import Stop
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase, Trainer
from trl import RewardConfig, RewardTrainer
from trl_recipe import (
    Recipe,
    Settings,
    adapter,
    guarded,
    load_tokenizer,
    loading,
    model_folder,
    start,
    train,
)


@dataclasses.dataclass
class OwnSettings(Settings):
    """The recipe's own keys."""

    # pairs, multilabel; `config` is by default reward_modeling for pairs, multilabel for multilabel
    objective: str = "pairs"
    margin: bool = True  # pairs: subtract the column `margin`, where there is one, inside the loss
    # tiny: steps of next-token training on the dataset's own texts before anything is classified
    tiny_steps: int = 0


class ScoreTrainer(Trainer):
    """Regression on several scores at once; a missing one has no part in the loss."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **_: Any
    ) -> Any:
        wanted = inputs.pop("labels")
        outputs = model(**inputs)
        there = ~torch.isnan(wanted)
        gaps = torch.where(there, outputs.logits.float() - torch.nan_to_num(wanted), 0.0)
        loss = (gaps**2).sum() / there.sum().clamp(min=1)
        return (loss, outputs) if return_outputs else loss


PAIRS = Recipe(
    Path(__file__).stem,
    "reward_modeling",
    "rows",
    {"prompt": "messages", "chosen": "messages", "rejected": "messages"},
    {"loss": "loss", "accuracy": "accuracy"},
    RewardTrainer,
    RewardConfig,
    None,
    OwnSettings,
    "margin",
)


def length(batch: dict[str, Any]) -> Any:
    return pc.list_value_length(batch["input_ids"])


SCORES = dataclasses.replace(
    PAIRS,
    config="multilabel",
    columns={"prompt": "messages", "response": "value"},
    trainer=ScoreTrainer,
    length=length,
    optional="score_.+",
    logged={"loss": "loss"},
)


def checked_pairs(rows: datasets.Dataset, own: OwnSettings) -> datasets.Dataset:
    """The rows, without `margin` where it is not wanted; Stop where one is missing."""
    if not own.margin and "margin" in rows.column_names:
        rows = rows.remove_columns("margin")
    if "margin" in rows.column_names and (empty := rows.data["margin"].null_count):
        raise Stop(
            f"config {own.config!r} of {own.dataset}: {empty} of {len(rows)} rows have no margin;"
            " give margin=false"
        )
    return rows


def checked_scores(rows: datasets.Dataset, own: OwnSettings) -> datasets.Dataset:
    """The rows that have a score; Stop unless there are some."""
    dims = dimensions(rows)
    if not dims:
        raise Stop(f"config {own.config!r} of {own.dataset} has no score_<dim> column")
    kept = rows.filter(lambda r: any(r[f"score_{d}"] is not None for d in dims))
    if not len(kept):
        raise Stop(f"config {own.config!r} of {own.dataset}: no row has a score")
    if len(kept) < len(rows):
        print(
            f"{len(rows) - len(kept)} of {len(rows)} rows have no score and are left out",
            file=sys.stderr,
        )
    return kept


def dimensions(rows: datasets.Dataset) -> list[str]:
    return [c.removeprefix("score_") for c in rows.column_names if c.startswith("score_")]


def talks(rows: datasets.Dataset, limit: int = 20_000) -> list[list[dict[str, str]]]:
    """The texts of the rows, as conversations."""
    few = rows.select(range(min(len(rows), limit)))
    if "response" in rows.column_names:
        return [[*r["prompt"], {"role": "assistant", "content": r["response"]}] for r in few]
    return [r["prompt"] + r["chosen"] for r in few]


def classifier(own: OwnSettings, args: RewardConfig, rows: datasets.Dataset) -> Trainer:
    """The trainer with its model and tokenized data in place."""
    name = model_folder(own, args, lambda: talks(rows), train_steps=own.tiny_steps, small=True)
    with loading(own):
        tokenizer = load_tokenizer(own, name)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        lora = adapter(own, task_type="SEQ_CLS", modules_to_save=["score"])
        if own.objective == "pairs":
            return guarded(RewardTrainer)(
                model=name,
                args=args,
                train_dataset=rows,
                processing_class=tokenizer,
                peft_config=lora,
            )
        return regression(args, rows, name, tokenizer, lora)


def regression(
    args: RewardConfig,
    rows: datasets.Dataset,
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    lora: Any,
) -> Trainer:
    dims = dimensions(rows)
    model = AutoModelForSequenceClassification.from_pretrained(
        name,
        num_labels=len(dims),
        problem_type="regression",
        id2label=dict(enumerate(dims)),
        label2id={d: i for i, d in enumerate(dims)},
        **(args.model_init_kwargs or {}),
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    if lora is not None:
        from peft import get_peft_model

        model = get_peft_model(model, lora)
    tokens = rows.map(
        lambda r: {"input_ids": encoded(tokenizer, r["prompt"], r["response"])},
        remove_columns=["prompt", "response"],
    )
    args.remove_unused_columns = False

    def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        wanted = [
            [math.nan if r[f"score_{d}"] is None else r[f"score_{d}"] for d in dims] for r in batch
        ]
        return {
            **padded(tokenizer, [r["input_ids"] for r in batch], args.max_length),
            "labels": torch.tensor(wanted),
        }

    return guarded(ScoreTrainer)(
        model=model,
        args=args,
        train_dataset=tokens,
        processing_class=tokenizer,
        data_collator=collate,
    )


def encoded(
    tokenizer: PreTrainedTokenizerBase, prompt: list[dict[str, str]], answer: str
) -> list[int]:
    """Token ids of a conversation."""
    text = tokenizer.apply_chat_template(
        [*prompt, {"role": "assistant", "content": answer}], tokenize=False
    )
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def padded(
    tokenizer: PreTrainedTokenizerBase, ids: list[list[int]], max_length: int | None
) -> dict[str, torch.Tensor]:
    """A batch; of what is too long the beginning is cut, so that the answer's end stays."""
    cut = [i if max_length is None else i[-max_length:] for i in ids]
    longest = max(map(len, cut))
    return {
        "input_ids": torch.tensor([i + [tokenizer.pad_token_id] * (longest - len(i)) for i in cut]),
        "attention_mask": torch.tensor([[1] * len(i) + [0] * (longest - len(i)) for i in cut]),
    }


@torch.no_grad()
def outputs(
    trainer: Trainer, tokenizer: PreTrainedTokenizerBase, ids: list[list[int]], batch: int = 32
) -> torch.Tensor:
    """Raw outputs, one row per conversation, batches of like length."""
    model, limit = trainer.model.eval(), trainer.args.max_length
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    rows: dict[int, torch.Tensor] = {}
    for first in range(0, len(order), batch):
        part = order[first : first + batch]
        found = model(
            **{
                k: v.to(model.device)
                for k, v in padded(tokenizer, [ids[i] for i in part], limit).items()
            }
        ).logits
        rows.update(zip(part, found.float().cpu(), strict=True))
    return torch.stack([rows[i] for i in range(len(ids))])


def evaluate(trainer: Trainer, rows: datasets.Dataset) -> dict[str, Any]:
    """Pairs: how often chosen scores higher, with Wilson's interval. Multilabel: error and
    correlation per dimension."""
    tokenizer = trainer.processing_class
    if "chosen" in rows.column_names:
        sides = (
            [encoded(tokenizer, r["prompt"], r[side][0]["content"]) for r in rows]
            for side in ("chosen", "rejected")
        )
        better, worse = (outputs(trainer, tokenizer, ids)[:, 0] for ids in sides)
        gaps = better - worse
        return {
            "eval_pairs": len(rows),
            **accuracy(int((gaps > 0).sum()), len(rows)),
            "eval_mean_gap": float(gaps.mean()),
        }
    found = outputs(
        trainer, tokenizer, [encoded(tokenizer, r["prompt"], r["response"]) for r in rows]
    )
    out: dict[str, Any] = {"eval_rows": len(rows)}
    for k, d in enumerate(dimensions(rows)):
        both = [
            (float(p), v)
            for p, v in zip(found[:, k], rows[f"score_{d}"], strict=True)
            if v is not None
        ]
        if len(both) > 1:
            pair = torch.tensor(both, dtype=torch.float64).T
            r = float(torch.corrcoef(pair)[0, 1]) if bool((pair.std(1) > 0).all()) else None
            out |= {f"eval_mae_{d}": float((pair[0] - pair[1]).abs().mean()), f"eval_r_{d}": r}
    return out


def accuracy(c: int, n: int) -> dict[str, float]:
    """c / n with its 95 % Wilson interval."""
    z = 1.959963984540054
    p, width = c / n, 1 + z * z / n
    middle = (p + z * z / (2 * n)) / width
    half = z / width * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return {
        "eval_accuracy": p,
        "eval_accuracy_low": middle - half,
        "eval_accuracy_high": middle + half,
    }


def run(own: OwnSettings, args: RewardConfig) -> dict[str, Any]:
    """Train, and what metrics.json holds."""
    kinds = {"pairs": (PAIRS, checked_pairs), "multilabel": (SCORES, checked_scores)}
    if own.objective not in kinds:
        raise Stop(f"objective = {own.objective!r}: must be {' or '.join(kinds)}")
    recipe, check = kinds[own.objective]
    own.config = own.given.get("config") or recipe.config
    loaded, held_out = load_both(recipe, own)
    rows = check(loaded, own)
    trainer = classifier(own, args, rows)
    found = train(recipe, own, trainer, rows)
    found |= {
        "objective": own.objective,
        "rows_without_score": len(loaded) - len(rows),
        "margin": "margin" in rows.column_names,
    }
    return found | (evaluate(trainer, check(held_out, own)) if held_out is not None else {})


if __name__ == "__main__":
    raise SystemExit(start(PAIRS, run, __doc__))
