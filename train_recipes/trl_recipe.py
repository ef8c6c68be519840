# /// script
# requires-python = ">=3.11"
# dependencies = [
# "accelerate>=1.10", "datasets>=4.0", "peft>=0.17", "pyyaml>=6.0", "torch>=2.6",
# "transformers>=5.0", "trl>=1.10",
# ]
# ///
"""What the recipes of TRL's trainers share: settings, rows, training, results. A recipe is a
`Recipe` and a function `run`.

    RECIPE = Recipe("sft", "sft", "rows", COLUMNS, LOGGED, SFTTrainer, SFTConfig, length)

    def run(own, args):
        rows, held_out = load_both(RECIPE, own)              # dataset_rows.py
        return train(RECIPE, own, make_trainer(RECIPE, own, args, rows, held_out), rows)

    raise SystemExit(start(RECIPE, run, __doc__))
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import itertools
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import datasets
import pyarrow.compute as pc
import torch
import yaml
from recipe import (
    Stop,
    command_line,
    first_line,
    read_values,
    shown,
    with_template,
    write_json,
)
from transformers import AutoTokenizer, GenerationConfig, HfArgumentParser
from transformers.integrations import integration_utils as integrations
from transformers.trainer_utils import get_last_checkpoint

FORBIDDEN = {"help", "trust_remote_code", "hub_token", "push_to_hub", "resume_from_checkpoint"}


@dataclasses.dataclass
class Settings:
    """The recipe's own keys; every other key is a field of TRL's config."""

    dataset: str  # local folder, or Hub id
    model: str  # folder, Hub id, or `tiny`: made in output_dir/tiny, nothing is downloaded
    revision: str | None = None  # tag, branch or commit of the dataset on the Hub
    config: str = ""  # of the dataset; empty: the recipe's own
    split: str = "train"
    eval_split: str | None = None  # evaluated after training
    # {original: folder or id, fraction: f}, and its own `revision` and `config`
    dataset_mix: dict | None = None
    model_revision: str | None = None
    dtype: str = "auto"  # of the loaded weights; auto: bfloat16 under lora with bf16, else float32
    lora: bool = False
    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    lora_target: str = "all-linear"  # or a list of layer names
    resume: bool = False  # go on from the last checkpoint in output_dir
    save_model: bool = True
    cpu_threads: int | None = None  # null: all cores
    dry_run: bool = False  # print rows, tokens, steps and memory, and stop there
    launch: str | None = None  # flags of `accelerate launch`, which must start this script
    # the settings as given, for the card
    given: dict = dataclasses.field(default_factory=dict, init=False)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What tells one recipe from another."""

    name: str
    config: str  # of the dataset
    unit: str  # what a row is called
    columns: dict[str, str]  # column -> `messages`, or `value`
    logged: dict[str, str]  # name in TRL's log -> in metrics.json
    trainer: type
    arguments: type  # of the trainer
    # tokens of each row of a tokenized batch; None: nothing is cut by max_length
    length: Callable[[dict[str, Any]], Any] | None
    settings: type = Settings
    optional: str = ""  # pattern of further columns, taken where the config has them


class Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Stop(re.sub(r"argument --(\w+)(/--[\w-]+)?", r"\1", message))


def read_settings(recipe: Recipe, file: Path | None, overrides: list[str]) -> tuple[Any, Any]:
    """The recipe's settings and TRL's, from a flat YAML file and key=value on top of it."""
    values = read_values(file, overrides)
    parser = Parser([recipe.settings, recipe.arguments])
    known = {action.dest for action in parser._actions} - FORBIDDEN
    if unknown := [key for key in values if key not in known]:
        close = difflib.get_close_matches(unknown[0], known, n=1, cutoff=0.5)
        where = (
            f"see the Settings of trl_recipe.py and {recipe.name}.py, and TRL's"
            f" {recipe.arguments.__name__}"
        )
        text = f"did you mean {close[0]!r}?" if close else where
        raise Stop(f"unknown key {unknown[0]!r}: {text}")
    if missing := [key for key in ("dataset", "model", "output_dir") if not values.get(key)]:
        raise Stop(f"missing: {', '.join(missing)}; give {missing[0]}=...")
    if not values.get("dry_run"):
        check_start(recipe.name, values.get("launch"), values.get("use_cpu"))
    elif not torch.accelerator.is_available():
        values["use_cpu"] = True
    # as text, so that argparse converts and checks what YAML made of it
    given = {"config": recipe.config, "logging_nan_inf_filter": False, **values}
    for action in parser._actions:
        if action.dest in given:
            value = given[action.dest]
            if value is False and action.dest.endswith("_strategy"):
                value = "no"
            action.default = str(value) if isinstance(value, (bool, int, float)) else value
            action.required = False
    try:
        own, args = parser.parse_args_into_dataclasses([], look_for_args_file=False)
    except (TypeError, ValueError, ImportError) as e:
        raise Stop(f"training settings: {first_line(e)}") from e
    check_reporters(args.report_to)
    if "trust_remote_code" in (extra := args.model_init_kwargs or {}):
        raise Stop(
            "trust_remote_code is not supported: this recipe runs no code from a model repository"
        )
    dtype = own.dtype
    if dtype == "auto":
        dtype = "bfloat16" if own.lora and args.bf16 else "float32"
    revision = {"revision": own.model_revision} if own.model_revision else {}
    args.model_init_kwargs = {**extra, "dtype": dtype, **revision}
    own.given = values
    torch.set_num_threads(own.cpu_threads or torch.get_num_threads())
    return own, args


def check_reporters(names: list[str]) -> None:
    """Stop where a reporter is unknown or its package is missing, before anything is loaded."""
    known = integrations.INTEGRATION_TO_CALLBACK
    there = {*integrations.get_available_reporting_integrations(), "flyte"}
    for name in names:
        if name not in known:
            raise Stop(f"report_to={name}: give none, or one of {', '.join(sorted(known))}")
        if name not in there:
            raise Stop(
                f"report_to={name}: its package is not installed: pip install {name}, or give"
                " report_to=none"
            )


def check_start(name: str, launch: str | None, use_cpu: bool | None) -> None:
    """Stop where the config wants several processes and this is none of them, or a GPU that is not
    there."""
    if launch and "WORLD_SIZE" not in os.environ:
        raise Stop(
            f"this config wants several processes: start it by `accelerate launch {launch}"
            f" {name}.py ...`"
        )
    if not use_cpu and not torch.accelerator.is_available():
        raise Stop(
            "no GPU is visible: give use_cpu=true and bf16=false to train on the CPU (practical for"
            " tiny models)"
        )


def guarded(trainer: type) -> type:
    """TRL's trainer, ended by the first loss that is not a number; a checkpoint of the weights that
    gave it is set aside."""

    class GuardedTrainer(trainer):
        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss = super().training_step(*args, **kwargs)
            if not torch.isfinite(loss):
                last = get_last_checkpoint(self.args.output_dir)
                if last and last.endswith(f"-{self.state.global_step}") and self.args.should_save:
                    Path(last).rename(Path(last).with_name(f"not-finite-{self.state.global_step}"))
                    last = get_last_checkpoint(self.args.output_dir)
                kept = f"the last checkpoint is {last}" if last else "no checkpoint was saved"
                step = self.state.global_step + 1
                raise Stop(
                    f"the loss is {loss.item()} in step {step}: stopped, {kept}; try a lower"
                    " learning_rate"
                )
            return loss

    return GuardedTrainer


def make_trainer(
    recipe: Recipe,
    own: Any,
    args: Any,
    rows: datasets.Dataset,
    held_out: datasets.Dataset | None,
    **more: Any,
) -> Any:
    """The trainer with model and tokenized rows in place."""
    model = model_folder(own, args, lambda: conversations(recipe, rows))
    with loading(own):
        return guarded(recipe.trainer)(
            model=model,
            args=args,
            train_dataset=rows,
            eval_dataset=held_out,
            processing_class=load_tokenizer(own, model),
            peft_config=adapter(own),
            **more,
        )


def conversations(recipe: Recipe, rows: datasets.Dataset) -> list[Any]:
    """The messages of the first rows, for the tiny model's tokenizer."""
    texts = [c for c, kind in recipe.columns.items() if kind == "messages"]
    return [[m for c in texts for m in row[c]] for row in rows.select(range(min(len(rows), 2000)))]


def model_folder(own: Any, args: Any, conversations: Callable[[], list[Any]], **more: Any) -> str:
    """Name of the model to load; `tiny` is made first, of the conversations: one process makes it,
    the others wait."""
    if own.model != "tiny":
        return str(own.model)
    import tiny_model

    folder = Path(args.output_dir) / "tiny"
    with args.main_process_first():
        if args.process_index == 0 and not (own.resume and Path(folder, "config.json").is_file()):
            tiny_model.make(folder, conversations(), seed=args.seed, **more)
    return str(folder)


@contextlib.contextmanager
def loading(own: Any) -> Iterator[None]:
    """What goes wrong while a model is loaded, in one line."""
    try:
        yield
    except (OSError, ValueError, KeyError) as e:
        raise Stop(f"can't load model {own.model}: {first_line(e)}") from e


def load_tokenizer(own: Any, model: str) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(model, revision=own.model_revision)
    try:
        found = GenerationConfig.from_pretrained(model, revision=own.model_revision).eos_token_id
    except OSError:  # the repository has none
        found = None
    ends = {tokenizer.eos_token_id, *(found if isinstance(found, list) else [found])} - {None}
    if not ends:
        raise Stop(f"model {model} has no end-of-sequence token: take its chat or instruct version")
    return with_template(tokenizer, model, ends)


def adapter(own: Any, **more: Any) -> Any:
    """The LoRA adapter that the settings want, or None."""
    if not own.lora:
        return None
    from peft import LoraConfig

    target: Any = own.lora_target
    if target != "all-linear":
        target = re.findall(r"[\w.]+", str(target))
    return LoraConfig(
        r=own.lora_r,
        lora_alpha=own.lora_alpha,
        lora_dropout=own.lora_dropout,
        target_modules=target,
        **{"task_type": "CAUSAL_LM", **more},
    )


def train(recipe: Recipe, own: Any, trainer: Any, rows: datasets.Dataset) -> dict[str, Any]:
    """Train, from the last checkpoint if asked to, evaluate and save; the metrics."""
    out, unit = trainer.args.output_dir, recipe.unit
    max_length, packing = (getattr(trainer.args, k, None) for k in ("max_length", "packing"))
    dropped = 0 if packing else len(rows) - len(trainer.train_dataset)
    if dropped == len(rows):
        raise Stop(f"all {len(rows)} {unit} are too long for max_length={max_length}: raise it")
    longer = count_longer(recipe, trainer.train_dataset, max_length) if max_length else 0
    if longer + dropped:
        print(
            f"{longer + dropped} of {len(rows)} {unit} are longer than max_length={max_length}:"
            f" {longer} are cut, and {dropped} are left out; dry_run=true names the first",
            file=sys.stderr,
        )
    found = get_last_checkpoint(out) if own.resume and Path(out).is_dir() else None
    started, cpu = time.monotonic(), time.process_time()
    if own.resume:
        none = f"no checkpoint in {out}: starting from the beginning"
        print(f"resuming from {found}" if found else none, file=sys.stderr)
    try:
        trainer.train(resume_from_checkpoint=found)
    except ValueError as e:  # what TRL refuses only now, as an unknown loss_type
        raise Stop(
            f"training failed in step {trainer.state.global_step + 1}: {first_line(e)}"
        ) from e
    except torch.OutOfMemoryError as e:
        raise Stop(
            "the GPU is out of memory: lower per_device_train_batch_size or max_length, or use"
            " lora=true"
        ) from e
    spent = {
        "seconds": round(time.monotonic() - started, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
    }
    evaluated = trainer.evaluate() if trainer.eval_dataset is not None else {}
    if own.save_model:
        trainer.save_model()
    return {
        **ends(recipe, trainer.state.log_history),
        **{
            f"eval_{name}": evaluated[f"eval_{key}"]
            for key, name in recipe.logged.items()
            if f"eval_{key}" in evaluated
        },
        "steps": trainer.state.global_step,
        **spent,
        "recipe": recipe.name,
        "dataset": own.dataset,
        "revision": own.revision,
        "config": own.config,
        "split": own.split,
        "model": own.model,
        "model_revision": own.model_revision,
        "seed": trainer.args.seed,
        unit: len(rows),
        f"{unit}_longer_than_max_length": longer + dropped,
        f"{unit}_left_out": dropped,
    }


def count_longer(recipe: Recipe, tokenized: datasets.Dataset, max_length: int) -> int:
    """Rows that are longer than max_length (those are cut)."""
    if recipe.length is None:
        return 0
    batches = tokenized.with_format("arrow").iter(batch_size=1000)
    return sum(
        pc.sum(pc.greater(recipe.length(batch), max_length)).as_py() or 0 for batch in batches
    )


def ends(recipe: Recipe, history: list[dict[str, Any]]) -> dict[str, Any]:
    """What `recipe.logged` names at both ends: means over the first and the last
    `logged_steps_averaged` logged steps."""
    steps = [h for h in history if "loss" in h]
    k = max(1, min(5, len(steps) // 2))
    found: dict[str, Any] = {"logged_steps_averaged": k}
    for (key, name), end in itertools.product(recipe.logged.items(), ("first", "last")):
        values = [
            h[key]
            for h in (steps[:k] if end == "first" else steps[-k:])
            if math.isfinite(h.get(key, math.nan))
        ]
        found[f"{name}_{end}"] = sum(values) / len(values) if values else None
    return found


def write_results(recipe: Recipe, own: Any, out: Path, metrics: dict[str, Any]) -> None:
    """metrics.json, and the model's card: dataset, tag, recipe, config, results. No path of this
    machine is in the card."""
    local = Path(own.dataset).is_dir()
    skipped = {"dataset", "model", "output_dir", "logging_dir", "launch", "dataset_mix"}
    head = {"library_name": "peft" if own.lora else "transformers", "tags": ["trl", recipe.name]}
    head |= {} if local else {"datasets": [own.dataset]}
    tag = "" if local else f" at {own.revision or 'no tag (main)'}"
    mix = (
        f", {own.dataset_mix['fraction']} of its rows added to {shown(own.dataset_mix['original'])}"
        if own.dataset_mix
        else ""
    )
    used = yaml.safe_dump({k: v for k, v in own.given.items() if k not in skipped}).strip()
    results = [f"| {k} | {v:.4g} |" for k, v in metrics.items() if isinstance(v, (int, float))]
    card = (
        f"""---\n{yaml.safe_dump(head)}---\n# {recipe.name} on {Path(own.dataset).name}\n
Model: {shown(own.model)}. Data: {shown(own.dataset)}{tag}, config {own.config}{mix}. Recipe: {recipe.name}.\n
```yaml\n{used}\n```\n\n| of this run, on its own data: no evaluation | |\n|---|---|\n"""  # noqa: E501
        + "\n".join(results)
        + "\n"
    )
    (out / "README.md").write_text(card, "utf-8")
    write_json(out / "metrics.json", metrics)


def start(recipe: Recipe, run: Callable[[Any, Any], dict[str, Any]], doc: str | None) -> int:
    """A recipe's command: `run` makes what metrics.json holds of the settings and TRL's arguments;
    the exit code."""

    def work(file: Path | None, overrides: list[str]) -> None:
        own, args = read_settings(recipe, file, overrides)
        if own.dry_run:
            import dry_run

            return dry_run.show(recipe, own, args)
        out = Path(args.output_dir)
        (out / "metrics.json").unlink(missing_ok=True)  # never the figures of an earlier run
        metrics = run(own, args)
        if int(os.environ.get("RANK", "0")) == 0:
            write_results(recipe, own, out, metrics)
            moves = (
                f"{n} {metrics[n + '_first']:.3g} -> {metrics[n + '_last']:.3g}"
                for n in recipe.logged.values()
                if None not in (metrics.get(n + "_first"), metrics.get(n + "_last"))
            )
            print(
                f"{metrics['steps']} steps on {metrics[recipe.unit]} {recipe.unit} in"
                f" {metrics['seconds']} s: {', '.join(moves)}; {out / 'metrics.json'}"
            )
        from torch import distributed

        if distributed.is_initialized():
            distributed.destroy_process_group()
            if int(os.environ.get("RANK", "0")):  # has nothing to finish, and a thread of a library
                sys.stderr.flush()  # that outlives its interpreter would abort it
                os._exit(0)

    return command_line(doc, work)
