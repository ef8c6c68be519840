# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "accelerate>=1.10", "datasets>=4.0", "peft>=0.17", "pyyaml>=6.0", "torch>=2.6", "transformers>=5.0", "trl>=1.10",
# ]
# ///
"""Direct preference optimisation on the pairs of a published dataset, simultaneous over all its dimensions.

    python dpo.py --config dpo/smoke.yaml dataset=runs/demo/dataset output_dir=runs/dpo
    python dpo.py --config dpo/single-gpu-lora.yaml dataset=org/mora-pairs revision=v1.0.0 beta=0.05

A row's columns `prompt`, `chosen` and `rejected` are message lists, the prompt without the answer; others are ignored.
The YAML file is flat: the keys of `Settings` below and any field of TRL's DPOConfig; `key=value` overrides it.
Written to output_dir: the model (or adapter), checkpoints, and metrics.json. A stated failure is one line and exit 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
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
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.trainer_utils import get_last_checkpoint
from trl import DPOConfig, DPOTrainer

COLUMNS = ("prompt", "chosen", "rejected")
FORBIDDEN = {"trust_remote_code", "hub_token", "push_to_hub", "resume_from_checkpoint"}
EVALUATED = {"eval_loss": "eval_loss", "eval_rewards/margins": "eval_reward_margin",
             "eval_rewards/accuracies": "eval_accuracy"}  # fmt: skip
SIMPLE = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


class Stop(Exception):
    """A stated failure; its text is one line."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """The recipe's own keys; every other key is a field of DPOConfig."""

    dataset: str  # local folder, or Hub id
    model: str  # folder, Hub id, or `tiny`: made in output_dir/tiny, nothing is downloaded
    output_dir: str
    revision: str | None = None  # tag, branch or commit of the dataset on the Hub
    config: str = "preference"
    split: str = "train"
    eval_split: str | None = None  # evaluated after training
    model_revision: str | None = None
    dtype: str = "auto"  # of the loaded weights; auto: bfloat16 under lora with bf16, else float32
    lora: bool = False
    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    lora_target: str | list[str] = "all-linear"
    resume: bool = False  # go on from the last checkpoint in output_dir
    save_model: bool = True
    cpu_threads: int | None = None  # null: all cores
    launch: str | None = None  # flags of `accelerate launch`, which must start this script


OWN = {f.name: f for f in dataclasses.fields(Settings)}


# --- settings


def read_settings(file: Path | None, overrides: list[str]) -> tuple[Settings, dict[str, Any]]:
    """The recipe's own settings, and those for DPOConfig."""
    values = read_yaml(file) if file else {}
    for text in overrides:
        key, eq, value = text.partition("=")
        if not eq:
            raise Stop(f"{text!r} is not key=value")
        values[key] = parse_yaml(value, f"the value of {key}")
    training = typing.get_type_hints(DPOConfig)
    training = {f.name: training[f.name] for f in dataclasses.fields(DPOConfig) if f.init and f.name not in FORBIDDEN}
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
    return f"did you mean {close[0]!r}?" if close else "see the Settings class of this file and TRL's DPOConfig"


def training_arguments(settings: Settings, values: dict[str, Any]) -> DPOConfig:
    """DPOConfig, after checks that would otherwise fail late or not at all."""
    if settings.launch and "WORLD_SIZE" not in os.environ:
        raise Stop(f"this config wants several processes: start it by `accelerate launch {settings.launch} dpo.py ...`")
    if not values.get("use_cpu") and not torch.accelerator.is_available():
        raise Stop(
            "no GPU is visible: give use_cpu=true and bf16=false to train on the CPU (practical for tiny models)"
        )
    dtype = settings.dtype
    if dtype == "auto":
        dtype = "bfloat16" if settings.lora and values.get("bf16", True) else "float32"
    model_kwargs = {**(values.pop("model_init_kwargs", None) or {}), "dtype": dtype}
    if "trust_remote_code" in model_kwargs:
        raise Stop("trust_remote_code is not supported: this recipe runs no code from a model repository")
    if settings.model_revision:
        model_kwargs["revision"] = settings.model_revision
    try:
        # Trainer's filter would replace a NaN loss by the mean of the others; here it ends the run.
        return DPOConfig(output_dir=settings.output_dir, model_init_kwargs=model_kwargs,
                         **{"logging_nan_inf_filter": False, **values})  # fmt: skip
    except (TypeError, ValueError, ImportError) as e:
        raise Stop(f"training settings: {first_line(e)}") from e


# --- data


def load_pairs(settings: Settings, split: str) -> datasets.Dataset:
    """The three columns of one split, checked."""
    name, revision = settings.dataset, settings.revision
    source = name if revision is None else f"{name} at {revision}"
    if Path(name).expanduser().is_dir():
        name = str(Path(name).expanduser())
        if revision is not None:
            raise Stop(f"revision={revision} means nothing for the local folder {name}: leave it out, or give a Hub id")
    elif not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name):
        raise Stop(f"no dataset folder {name}, and it is not a Hub id either")
    try:
        configs = datasets.get_dataset_config_names(name, revision=revision)
        if settings.config not in configs:
            raise Stop(f"dataset {source} has no config {settings.config!r}; it has: {', '.join(configs)}")
        splits = datasets.load_dataset(name, settings.config, revision=revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as e:
        raise Stop(f"can't load dataset {source}: {first_line(e)}{hint(name)}") from e
    if split not in splits:
        raise Stop(f"config {settings.config!r} of {source} has no split {split!r}; it has: {', '.join(splits)}")
    return check_pairs(splits[split], f"config {settings.config!r} of {source}")


def hint(name: str) -> str:
    inner = Path(name) / "dataset"
    return f"; did you mean {inner}?" if (inner / "README.md").is_file() else ""


def check_pairs(rows: datasets.Dataset, where: str) -> datasets.Dataset:
    """The rows' three columns; Stop unless all are there, filled, and message lists."""
    missing = [c for c in COLUMNS if c not in rows.column_names]
    if missing:
        raise Stop(f"{where} lacks {', '.join(missing)} among its columns; it has: {', '.join(rows.column_names)}")
    rows = rows.select_columns(list(COLUMNS))
    if len(rows) == 0:
        raise Stop(f"{where} has no rows")
    text = [c for c in COLUMNS if isinstance(rows[0][c], str)]
    if text == ["prompt"]:
        raise Stop(f"{where}: prompt is a string while chosen and rejected are message lists: "
                   "make it [{'role': 'user', 'content': ...}]")  # fmt: skip
    if text:
        raise Stop(f"{where}: {', '.join(text)} must be message lists, not strings")
    for column in COLUMNS:
        lengths = pc.fill_null(pc.list_value_length(rows.data[column]), 0)
        if empty := pc.sum(pc.equal(lengths, 0)).as_py():
            raise Stop(f"{where}: {empty} of {len(rows)} rows have no message in {column}")
    return rows


def count_longer(tokenized: datasets.Dataset, max_length: int | None) -> int:
    """Pairs of which at least one side, with the prompt, is longer than max_length (TRL cuts its end)."""
    if max_length is None:
        return 0
    longer = 0
    for batch in tokenized.with_format("arrow").iter(batch_size=1000):
        prompt, chosen, rejected = (pc.list_value_length(batch[f"{c}_ids"]) for c in COLUMNS)
        length = pc.add(prompt, pc.max_element_wise(chosen, rejected))
        longer += pc.sum(pc.greater(length, max_length)).as_py() or 0
    return int(longer)


# --- model and training


class GuardedTrainer(DPOTrainer):
    """DPOTrainer that ends at the first loss that is not a number, before it can reach a checkpoint."""

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            last = get_last_checkpoint(self.args.output_dir)
            kept = f"the last checkpoint is {last}" if last else "no checkpoint was saved"
            step = self.state.global_step + 1
            raise Stop(f"the loss is {loss.item()} in step {step}: stopped, {kept}; try a lower learning_rate")
        return loss


def load_tokenizer(model: str, revision: str | None) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, revision=revision)
    except (OSError, ValueError, KeyError) as e:
        raise Stop(f"can't load model {model}: {first_line(e)}") from e
    if tokenizer.chat_template is None:
        raise Stop(f"model {model} has no chat template to render messages with: take its chat or instruct version")
    return tokenizer


def make_tiny(out: Path, pairs: datasets.Dataset, settings: Settings, args: DPOConfig) -> str:
    """Folder of a tiny model whose tokenizer knows the dataset's words; one process makes it, the others wait."""
    import tiny_model

    with args.main_process_first():
        if args.process_index == 0 and not (settings.resume and (out / "config.json").is_file()):
            rows = pairs.select(range(min(len(pairs), 2000)))
            tiny_model.make(out, [r["prompt"] + r["chosen"] for r in rows], seed=args.seed)
    return str(out)


def make_trainer(
    settings: Settings, args: DPOConfig, pairs: datasets.Dataset, held_out: datasets.Dataset | None
) -> DPOTrainer:
    """The trainer with model, reference and tokenized data in place."""
    model = settings.model
    if model == "tiny":
        model = make_tiny(Path(settings.output_dir) / "tiny", pairs, settings, args)
    tokenizer = load_tokenizer(model, settings.model_revision)
    peft_config = None
    if settings.lora:
        from peft import LoraConfig

        peft_config = LoraConfig(r=settings.lora_r, lora_alpha=settings.lora_alpha, lora_dropout=settings.lora_dropout,
                                 target_modules=settings.lora_target, task_type="CAUSAL_LM")  # fmt: skip
    try:
        return GuardedTrainer(model=model, args=args, train_dataset=pairs, eval_dataset=held_out,
                              processing_class=tokenizer, peft_config=peft_config)  # fmt: skip
    except (OSError, ValueError) as e:
        raise Stop(f"can't set up training of {settings.model}: {first_line(e)}") from e


def last_checkpoint(settings: Settings) -> str | None:
    if not settings.resume:
        return None
    found = get_last_checkpoint(settings.output_dir) if Path(settings.output_dir).is_dir() else None
    where = (
        f"resuming from {found}" if found else f"no checkpoint in {settings.output_dir}: starting from the beginning"
    )
    print(where, file=sys.stderr)
    return found


def train(trainer: DPOTrainer, checkpoint: str | None) -> None:
    """Train; what TRL refuses only now (an unknown loss_type) or memory can't hold is one line."""
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except ValueError as e:
        raise Stop(f"training failed in step {trainer.state.global_step + 1}: {first_line(e)}") from e
    except torch.OutOfMemoryError as e:
        raise Stop("the GPU is out of memory: lower per_device_train_batch_size or max_length, or use lora=true") from e


def summary(history: list[dict[str, float]]) -> dict[str, float | int | None]:
    """Loss and reward margin at both ends: means over the first and the last `logged_steps_averaged` logged steps."""
    logged = [h for h in history if "loss" in h]
    k = max(1, min(5, len(logged) // 2))

    def mean(key: str, entries: list[dict[str, float]]) -> float | None:
        values = [e[key] for e in entries if key in e and math.isfinite(e[key])]
        return sum(values) / len(values) if values else None

    return {
        "loss_first": mean("loss", logged[:k]),
        "loss_last": mean("loss", logged[-k:]),
        "reward_margin_first": mean("rewards/margins", logged[:k]),
        "reward_margin_last": mean("rewards/margins", logged[-k:]),
        "logged_steps_averaged": k,
    }


def run(settings: Settings, values: dict[str, Any]) -> dict[str, Any]:
    """Train, and what metrics.json holds."""
    if settings.cpu_threads:
        torch.set_num_threads(settings.cpu_threads)
    args = training_arguments(settings, values)
    pairs = load_pairs(settings, settings.split)
    held_out = load_pairs(settings, settings.eval_split) if settings.eval_split else None
    trainer = make_trainer(settings, args, pairs, held_out)
    dropped = len(pairs) - len(trainer.train_dataset)
    if dropped == len(pairs):
        raise Stop(f"all {len(pairs)} prompts alone fill max_length={args.max_length}: raise it")
    longer = count_longer(trainer.train_dataset, args.max_length) + dropped
    if longer:
        print(f"{longer} of {len(pairs)} pairs are longer than max_length={args.max_length}: their ends are cut, "
              f"and {dropped} without room for an answer are left out", file=sys.stderr)  # fmt: skip
    started = time.monotonic()
    train(trainer, last_checkpoint(settings))
    seconds = time.monotonic() - started
    evaluated = trainer.evaluate() if held_out is not None else {}
    if settings.save_model:
        trainer.save_model()
    return {
        **summary(trainer.state.log_history), "steps": trainer.state.global_step, "seconds": round(seconds, 2),
        "dataset": settings.dataset, "revision": settings.revision, "config": settings.config, "split": settings.split,
        "model": settings.model, "model_revision": settings.model_revision, "seed": args.seed,
        "pairs": len(pairs), "pairs_longer_than_max_length": longer, "pairs_left_out": dropped,
        **{EVALUATED[key]: value for key, value in evaluated.items() if key in EVALUATED},
    }  # fmt: skip


# --- command line


def first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")


def write_metrics(out: Path, metrics: dict[str, Any]) -> None:
    part = out / "metrics.json.part"
    part.write_text(json.dumps(metrics, indent=2) + "\n", "utf-8")
    part.replace(out / "metrics.json")


def report(metrics: dict[str, Any], out: Path) -> str:
    def move(name: str) -> str:
        first, last = metrics[f"{name}_first"], metrics[f"{name}_last"]
        return "not logged" if first is None or last is None else f"{first:.3g} -> {last:.3g}"

    return (f"{metrics['steps']} steps on {metrics['pairs']} pairs in {metrics['seconds']} s: loss {move('loss')}, "
            f"reward margin {move('reward_margin')}; {out / 'metrics.json'}")  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--config", type=Path, metavar="FILE.yaml", help="flat YAML file of settings")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings on top of the file, read as YAML")
    given = parser.parse_args()
    try:
        settings, values = read_settings(given.config, given.overrides)
        out = Path(settings.output_dir)
        (out / "metrics.json").unlink(missing_ok=True)  # never the figures of an earlier run
        metrics = run(settings, values)
        if int(os.environ.get("RANK", "0")) == 0:
            write_metrics(out, metrics)
            print(report(metrics, out))
    except Stop as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command with resume=true goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
