# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "accelerate>=1.10", "datasets>=4.0", "peft>=0.17", "pyyaml>=6.0", "torch>=2.6", "transformers>=5.0", "trl>=1.10",
# ]
# ///
"""A reward model on the pairs of a published dataset, or one regressor for all its dimensions.

    python reward.py --config reward/smoke.yaml dataset=runs/demo/dataset output_dir=runs/reward
    python reward.py --config reward/multilabel-smoke.yaml dataset=runs/demo/dataset output_dir=runs/reward

objective=pairs reads `prompt`, `chosen`, `rejected` and, with margin=true, `margin` (config reward_modeling): the Bradley-Terry
loss of TRL's RewardTrainer, one logit without an absolute zero. objective=multilabel reads `prompt`, `response` and every
`score_<dim>` column (config multilabel): one output per dimension, squared error, a missing score is left out of the loss.
The YAML file is flat: the keys of `Settings` below and any field of TRL's RewardConfig; `key=value` overrides it.
Written to output_dir: the classifier with its tokenizer, and metrics.json. A stated failure is one line and exit 1.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
import sys
import time
import types
import typing
from pathlib import Path
from typing import Any

import datasets
import pyarrow.compute as pc
import torch
import yaml
from recipe import Stop, command_line, dataset_name, first_line, write_json
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase, Trainer
from transformers.trainer_utils import get_last_checkpoint
from trl import RewardConfig, RewardTrainer
from trl_recipe import check_start

PAIRS = ("prompt", "chosen", "rejected")
FORBIDDEN = {"trust_remote_code", "hub_token", "push_to_hub", "resume_from_checkpoint"}
OBJECTIVES = {"pairs": "reward_modeling", "multilabel": "multilabel"}
SIMPLE = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


@dataclasses.dataclass(frozen=True)
class Settings:
    """The recipe's own keys; every other key is a field of RewardConfig."""

    dataset: str  # local folder, or Hub id
    model: str  # folder, Hub id, or `tiny`: made in output_dir/tiny, nothing is downloaded
    output_dir: str
    objective: str = "pairs"  # pairs, multilabel
    revision: str | None = None  # tag, branch or commit of the dataset on the Hub
    config: str | None = None  # null: reward_modeling for pairs, multilabel for multilabel
    split: str = "train"
    eval_split: str | None = None  # scored after training
    margin: bool = True  # pairs: subtract the column `margin`, where there is one, inside the loss
    model_revision: str | None = None
    dtype: str = "float32"  # of the loaded weights
    lora: bool = False
    lora_r: int = 16
    lora_alpha: int = 32
    lora_target: str | list[str] = "all-linear"
    tiny_steps: int = 0  # tiny: steps of next-token training on the dataset's own texts before anything is classified
    resume: bool = False  # go on from the last checkpoint in output_dir
    save_model: bool = True
    cpu_threads: int | None = None  # null: all cores
    launch: str | None = None  # flags of `accelerate launch`, which must start this script


OWN = {f.name: f for f in dataclasses.fields(Settings)}


# --- settings


def read_settings(file: Path | None, overrides: list[str]) -> tuple[Settings, dict[str, Any]]:
    """The recipe's own settings, and those for RewardConfig."""
    values = read_yaml(file) if file else {}
    for text in overrides:
        key, eq, value = text.partition("=")
        if not eq:
            raise Stop(f"{text!r} is not key=value")
        values[key] = parse_yaml(value, f"the value of {key}")
    training = typing.get_type_hints(RewardConfig)
    training = {f.name: training[f.name] for f in dataclasses.fields(RewardConfig) if f.init and f.name not in FORBIDDEN}
    for key in values:
        if key not in OWN and key not in training:
            raise Stop(f"unknown key {key!r}: {nearest(key, [*OWN, *training])}")
    missing = [n for n, f in OWN.items() if f.default is dataclasses.MISSING and values.get(n) in (None, "")]
    if missing:
        raise Stop(f"missing: {', '.join(missing)}; give {missing[0]}=...")
    hints = training | typing.get_type_hints(Settings)
    checked = {k: check_type(k, number(v), hints[k]) for k, v in values.items()}
    own = Settings(**{k: v for k, v in checked.items() if k in OWN})
    return own, {k: v for k, v in checked.items() if k not in OWN}


def read_yaml(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise Stop(f"can't read the config file {file}: {first_line(e)}") from e
    values = parse_yaml(text, str(file))
    if not isinstance(values, dict):
        raise Stop(f"{file} must hold a flat mapping of keys")
    return values


def parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise Stop(f"{where} is not YAML: {' '.join(str(e).split())}") from e


def number(value: Any) -> Any:
    """YAML 1.1 reads 2e-4 as text; here it is a number."""
    return float(value) if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value) else value


def check_type(key: str, value: Any, hint: Any) -> Any:
    """The value, or Stop where the key takes plain values only and this is of another kind."""
    kinds = set(typing.get_args(hint)) if isinstance(hint, types.UnionType) else {hint}
    kinds.discard(types.NoneType)
    if key.endswith("_strategy") and value is False:  # `save_strategy: no`
        return "no"
    if value is None or not kinds <= set(SIMPLE):
        return value
    fits = (type(value) in kinds) or (float in kinds and type(value) is int)
    if not fits and int in kinds and type(value) is float and value.is_integer():
        return int(value)
    if not fits:
        raise Stop(f"{key} = {value!r}: must be {' or '.join(SIMPLE[k] for k in SIMPLE if k in kinds)}")
    return value


def nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else "see the Settings class of this file and TRL's RewardConfig"


def training_arguments(settings: Settings, values: dict[str, Any]) -> RewardConfig:
    """RewardConfig, after checks that would otherwise fail late or not at all."""
    if settings.objective not in OBJECTIVES:
        raise Stop(f"objective = {settings.objective!r}: must be {' or '.join(OBJECTIVES)}")
    check_start("reward", settings.launch, values.get("use_cpu"))
    model_kwargs = {**(values.pop("model_init_kwargs", None) or {}), "dtype": settings.dtype}
    if "trust_remote_code" in model_kwargs:
        raise Stop("trust_remote_code is not supported: this recipe runs no code from a model repository")
    if settings.model_revision:
        model_kwargs["revision"] = settings.model_revision
    try:
        # Trainer's filter would replace a NaN loss by the mean of the others; here it ends the run.
        return RewardConfig(output_dir=settings.output_dir, model_init_kwargs=model_kwargs,
                         **{"logging_nan_inf_filter": False, **values})  # fmt: skip
    except (TypeError, ValueError, ImportError) as e:
        raise Stop(f"training settings: {first_line(e)}") from e


# --- data


def load_rows(settings: Settings, split: str) -> datasets.Dataset:
    """One split with the columns of the objective, checked."""
    revision = settings.revision
    name = dataset_name(settings.dataset, revision)
    config = settings.config or OBJECTIVES[settings.objective]
    try:
        configs = datasets.get_dataset_config_names(name, revision=revision)
        if config not in configs:
            raise Stop(f"dataset {name} has no config {config!r}; it has: {', '.join(configs)}")
        splits = datasets.load_dataset(name, config, revision=revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as e:
        inner = Path(name) / "dataset"
        hint = f"; did you mean {inner}?" if (inner / "README.md").is_file() else ""
        raise Stop(f"can't load dataset {name}: {first_line(e)}{hint}") from e
    if split not in splits:
        raise Stop(f"config {config!r} of {name} has no split {split!r}; it has: {', '.join(splits)}")
    where = f"config {config!r} of {name}"
    return check_pairs(splits[split], settings, where) if settings.objective == "pairs" else check_scores(splits[split], where)


def check_pairs(rows: datasets.Dataset, settings: Settings, where: str) -> datasets.Dataset:
    """prompt, chosen, rejected as message lists and, where wanted and there, margin; Stop unless all are filled."""
    columns = [*PAIRS, *(("margin",) if settings.margin and "margin" in rows.column_names else ())]
    rows = with_columns(rows, columns, where)
    for column in PAIRS:
        if isinstance(rows[0][column], str):
            raise Stop(f"{where}: {column} must be a list of messages, not a string")
        if empty := pc.sum(pc.equal(pc.fill_null(pc.list_value_length(rows.data[column]), 0), 0)).as_py():
            raise Stop(f"{where}: {empty} of {len(rows)} rows have no message in {column}")
    if "margin" in columns and rows.data["margin"].null_count:
        raise Stop(f"{where}: {rows.data['margin'].null_count} of {len(rows)} rows have no margin; give margin=false")
    return rows


def check_scores(rows: datasets.Dataset, where: str) -> datasets.Dataset:
    """prompt, response and the score columns; rows without any score are left out."""
    dims = [c for c in rows.column_names if c.startswith("score_")]
    if not dims:
        raise Stop(f"{where} has no score_<dim> column; it has: {', '.join(rows.column_names)}")
    rows = with_columns(rows, ["prompt", "response", *dims], where)
    kept = rows.filter(lambda r: any(r[d] is not None for d in dims))
    if not len(kept):
        raise Stop(f"{where}: no row has a score")
    return kept


def with_columns(rows: datasets.Dataset, columns: list[str], where: str) -> datasets.Dataset:
    if missing := [c for c in columns if c not in rows.column_names]:
        raise Stop(f"{where} lacks {', '.join(missing)} among its columns; it has: {', '.join(rows.column_names)}")
    if not len(rows):
        raise Stop(f"{where} has no rows")
    return rows.select_columns(columns)


def conversations(rows: datasets.Dataset, limit: int = 20_000) -> list[list[dict[str, str]]]:
    """The texts of the rows, as conversations."""
    few = rows.select(range(min(len(rows), limit)))
    if "response" in rows.column_names:
        return [[*r["prompt"], {"role": "assistant", "content": r["response"]}] for r in few]
    return [r["prompt"] + r["chosen"] for r in few]


# --- model and training


class GuardedTrainer(RewardTrainer):
    """RewardTrainer that ends at the first loss that is not a number."""

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return finite(super().training_step(*args, **kwargs), self.state.global_step + 1)


class ScoreTrainer(Trainer):
    """Regression on several scores at once; a missing one has no part in the loss."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **_: Any) -> Any:
        wanted = inputs.pop("labels")
        outputs = model(**inputs)
        there = ~torch.isnan(wanted)
        gaps = torch.where(there, outputs.logits.float() - torch.nan_to_num(wanted), 0.0)
        loss = (gaps**2).sum() / there.sum().clamp(min=1)
        return (loss, outputs) if return_outputs else loss

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return finite(super().training_step(*args, **kwargs), self.state.global_step + 1)


def finite(loss: torch.Tensor, step: int) -> torch.Tensor:
    if not torch.isfinite(loss):
        raise Stop(f"the loss is {loss.item()} in step {step}: stopped; try a lower learning_rate")
    return loss


def load_tokenizer(model: str, revision: str | None) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, revision=revision)
    except (OSError, ValueError, KeyError) as e:
        raise Stop(f"can't load model {model}: {first_line(e)}") from e
    if tokenizer.chat_template is None:
        raise Stop(f"model {model} has no chat template to render messages with: take its chat or instruct version")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def make_tiny(out: Path, rows: datasets.Dataset, settings: Settings, args: RewardConfig) -> str:
    """Folder of a model of half a million parameters that knows the dataset's words; one process makes it."""
    import tiny_model
    from transformers import Qwen2ForCausalLM

    with args.main_process_first():
        if args.process_index == 0 and not (settings.resume and (out / "config.json").is_file()):
            talks = conversations(rows)
            tokenizer = tiny_model.train_tokenizer([m["content"] for c in talks for m in c])
            config = tiny_model.model_config(tokenizer, 1024)
            config.update({"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
                           "layer_types": config.layer_types[:2]})  # fmt: skip
            torch.manual_seed(args.seed)
            model = Qwen2ForCausalLM(config)
            if settings.tiny_steps:
                texts = [tokenizer.apply_chat_template(c, tokenize=False) for c in talks]
                tiny_model.train(model, tokenizer, texts, settings.tiny_steps, batch=16, window=128, learning_rate=4e-3)
            model.save_pretrained(out)
            tokenizer.save_pretrained(out)
    return str(out)


def make_trainer(settings: Settings, args: RewardConfig, rows: datasets.Dataset) -> Trainer:
    """The trainer with its model and tokenized data in place."""
    model = settings.model
    if model == "tiny":
        model = make_tiny(Path(settings.output_dir) / "tiny", rows, settings, args)
    tokenizer = load_tokenizer(model, settings.model_revision)
    peft = None
    if settings.lora:
        from peft import LoraConfig

        peft = LoraConfig(r=settings.lora_r, lora_alpha=settings.lora_alpha, target_modules=settings.lora_target,
                          task_type="SEQ_CLS", modules_to_save=["score"])  # fmt: skip
    try:
        if settings.objective == "pairs":
            return GuardedTrainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer, peft_config=peft)
        return score_trainer(settings, args, rows, model, tokenizer, peft)
    except (OSError, ValueError) as e:
        raise Stop(f"can't set up training of {settings.model}: {first_line(e)}") from e


def score_trainer(settings: Settings, args: RewardConfig, rows: datasets.Dataset, name: str,
                  tokenizer: PreTrainedTokenizerBase, peft: Any) -> Trainer:  # fmt: skip
    dims = [c.removeprefix("score_") for c in rows.column_names if c.startswith("score_")]
    model = AutoModelForSequenceClassification.from_pretrained(
        name, num_labels=len(dims), problem_type="regression", id2label=dict(enumerate(dims)),
        label2id={d: i for i, d in enumerate(dims)}, **(args.model_init_kwargs or {}))  # fmt: skip
    model.config.pad_token_id = tokenizer.pad_token_id
    if peft is not None:
        from peft import get_peft_model

        model = get_peft_model(model, peft)
    tokens = rows.map(lambda r: {"input_ids": encoded(tokenizer, r["prompt"], r["response"], args.max_length)},
                      remove_columns=["prompt", "response"])  # fmt: skip
    args.remove_unused_columns = False

    def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        wanted = [[math.nan if r[f"score_{d}"] is None else r[f"score_{d}"] for d in dims] for r in batch]
        return {**padded(tokenizer, [r["input_ids"] for r in batch]), "labels": torch.tensor(wanted)}

    return ScoreTrainer(model=model, args=args, train_dataset=tokens, processing_class=tokenizer, data_collator=collate)


def encoded(tokenizer: PreTrainedTokenizerBase, prompt: list[dict[str, str]], answer: str, max_length: int | None) -> list[int]:
    """Token ids of a conversation; of one that is too long the beginning is cut, so that the answer's end stays."""
    text = tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": answer}], tokenize=False)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids if max_length is None else ids[-max_length:]


def padded(tokenizer: PreTrainedTokenizerBase, ids: list[list[int]]) -> dict[str, torch.Tensor]:
    longest = max(map(len, ids))
    return {"input_ids": torch.tensor([i + [tokenizer.pad_token_id] * (longest - len(i)) for i in ids]),
            "attention_mask": torch.tensor([[1] * len(i) + [0] * (longest - len(i)) for i in ids])}  # fmt: skip


@torch.no_grad()
def outputs(trainer: Trainer, tokenizer: PreTrainedTokenizerBase, ids: list[list[int]], batch: int = 32) -> torch.Tensor:
    """Raw outputs, one row per conversation, batches of like length."""
    model = trainer.model.eval()
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    rows: dict[int, torch.Tensor] = {}
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        found = model(**{k: v.to(model.device) for k, v in padded(tokenizer, [ids[i] for i in part]).items()}).logits
        rows.update(zip(part, found.float().cpu(), strict=True))
    return torch.stack([rows[i] for i in range(len(ids))])


def evaluate(trainer: Trainer, rows: datasets.Dataset, args: RewardConfig) -> dict[str, Any]:
    """Pairs: how often chosen scores higher, with Wilson's interval. Multilabel: error and correlation per dimension."""
    tokenizer = trainer.processing_class
    if "chosen" in rows.column_names:
        sides = [outputs(trainer, tokenizer, [encoded(tokenizer, r["prompt"], r[side][0]["content"], args.max_length)
                                              for r in rows])[:, 0] for side in ("chosen", "rejected")]  # fmt: skip
        gaps = sides[0] - sides[1]
        return {"eval_pairs": len(rows), **accuracy(int((gaps > 0).sum()), len(rows)), "eval_mean_gap": float(gaps.mean())}
    found = outputs(trainer, tokenizer, [encoded(tokenizer, r["prompt"], r["response"], args.max_length) for r in rows])
    out: dict[str, Any] = {"eval_rows": len(rows)}
    for k, column in enumerate(c for c in rows.column_names if c.startswith("score_")):
        both = [(float(p), v) for p, v in zip(found[:, k], rows[column], strict=True) if v is not None]
        if len(both) > 1:
            pair = torch.tensor(both, dtype=torch.float64).T
            r = float(torch.corrcoef(pair)[0, 1]) if bool((pair.std(1) > 0).all()) else None
            error = float((pair[0] - pair[1]).abs().mean())
            out |= {f"eval_mae_{column.removeprefix('score_')}": error, f"eval_r_{column.removeprefix('score_')}": r}
    return out


def accuracy(c: int, n: int) -> dict[str, float]:
    """c / n with its 95 % Wilson interval."""
    z = 1.959963984540054
    p, width = c / n, 1 + z * z / n
    middle, half = (p + z * z / (2 * n)) / width, z / width * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return {"eval_accuracy": p, "eval_accuracy_low": middle - half, "eval_accuracy_high": middle + half}


def run(settings: Settings, values: dict[str, Any]) -> dict[str, Any]:
    """Train, and what metrics.json holds."""
    if settings.cpu_threads:
        torch.set_num_threads(settings.cpu_threads)
    args = training_arguments(settings, values)
    rows = load_rows(settings, settings.split)
    held = load_rows(settings, settings.eval_split) if settings.eval_split else None
    trainer = make_trainer(settings, args, rows)
    left_out = len(rows) - len(trainer.train_dataset)
    if left_out == len(rows):
        raise Stop(f"all {len(rows)} rows are longer than max_length={args.max_length}: raise it")
    if left_out:
        print(f"{left_out} of {len(rows)} pairs are longer than max_length={args.max_length} and left out", file=sys.stderr)
    checkpoint = get_last_checkpoint(settings.output_dir) if settings.resume and Path(settings.output_dir).is_dir() else None
    started, cpu = time.monotonic(), time.process_time()
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except ValueError as e:
        raise Stop(f"training failed in step {trainer.state.global_step + 1}: {first_line(e)}") from e
    except torch.OutOfMemoryError as e:
        raise Stop("the GPU is out of memory: lower per_device_train_batch_size or max_length, or use lora=true") from e
    spent = {"seconds": round(time.monotonic() - started, 2), "cpu_seconds": round(time.process_time() - cpu, 2)}
    evaluated = evaluate(trainer, held, args) if held is not None else {}
    if settings.save_model:
        trainer.save_model()
    losses = [h["loss"] for h in trainer.state.log_history if "loss" in h]
    k = max(1, min(5, len(losses) // 2))
    return {
        "loss_first": sum(losses[:k]) / k if losses else None, "loss_last": sum(losses[-k:]) / k if losses else None,
        "steps": trainer.state.global_step, **spent, "objective": settings.objective, "rows": len(rows), "left_out": left_out,
        "margin": "margin" in rows.column_names, "dataset": settings.dataset, "revision": settings.revision,
        "split": settings.split, "model": settings.model, "model_revision": settings.model_revision, "seed": args.seed,
        **evaluated,
    }  # fmt: skip


# --- command line


def work(file: Path | None, overrides: list[str]) -> None:
    settings, values = read_settings(file, overrides)
    out = Path(settings.output_dir)
    (out / "metrics.json").unlink(missing_ok=True)  # never the figures of an earlier run
    metrics = run(settings, values)
    if int(os.environ.get("RANK", "0")) == 0:
        write_json(out / "metrics.json", metrics)
        held = f", held-out accuracy {metrics['eval_accuracy']:.3f}" if "eval_accuracy" in metrics else ""
        print(f"{metrics['steps']} steps on {metrics['rows']} rows in {metrics['seconds']} s: loss "
              f"{metrics['loss_first']:.3g} -> {metrics['loss_last']:.3g}{held}; {out / 'metrics.json'}")  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(command_line(__doc__, work))
