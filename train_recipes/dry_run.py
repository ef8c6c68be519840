# /// script
# requires-python = ">=3.11"
# dependencies = ["datasets>=4.0", "torch>=2.6", "transformers>=5.0", "trl>=1.10"]
# ///
"""What a recipe would do, without loading a model's weights: rows, tokens, steps, memory.

    python dpo.py --config dpo/single-gpu-lora.yaml dataset=org/pairs model=org/chat-7b \
        output_dir=runs/dpo dry_run=true
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from dataset_rows import load_rows
from transformers import AutoConfig, AutoModelForCausalLM
from trl_recipe import conversations, load_tokenizer, loading, model_folder


def lines(recipe: Any, own: Any, args: Any) -> Iterator[str]:
    """The lines to print.

    Tokens are those of the chat template. Memory is that of weights (and of a reference model that
    stays), gradients and Adam's two moments in float32, and what a backward pass keeps of the
    longest batch: exact for the former, within a factor of two for the latter. Answers that GRPO
    draws come on top.
    """
    rows = load_rows(recipe, own, own.split)
    folder = model_folder(own, args, lambda: conversations(recipe, rows))
    with loading(own):
        tokenizer = load_tokenizer(own, folder)
        config = AutoConfig.from_pretrained(folder, revision=own.model_revision)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    texts = [c for c, kind in recipe.columns.items() if kind == "messages"]
    sides = [c for c in texts if c != "prompt"] or ["prompt"]
    lengths = [
        [
            len(tokenizer.apply_chat_template([*start, *row[side]], return_dict=False))
            for side in sides
        ]
        for row in rows.select_columns(texts)
        for start in [row["prompt"] if "prompt" in row and sides != ["prompt"] else []]
    ]
    limit = getattr(args, "max_length", None) or math.inf
    longest = [max(some) for some in lengths]
    tokens = sum(min(n, limit) for some in lengths for n in some)
    long = [i for i, n in enumerate(longest) if n > limit]
    first = f", the first are rows {', '.join(map(str, long[:3]))}" if long else ""
    yield (
        f"rows    {len(rows)} {recipe.unit}, {tokens} tokens; the longest has {max(longest)};"
        f" {len(long)} are longer than max_length={limit}{first}"
    )
    processes = max(1, torch.cuda.device_count()) if own.launch else 1
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * processes
    per_epoch = math.ceil(len(rows) / batch)
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * per_epoch)
    yield (
        f"steps   {steps} of {batch} {recipe.unit} on {processes} processes,"
        f" {steps / per_epoch:.2f} epochs, {tokens * steps / per_epoch:.3g} tokens"
    )
    states, kept = memory(own, args, model, len(sides) * int(min(max(longest), limit)))
    sharded = " in all, shared among the processes" if "fsdp" in (own.launch or "") else ""
    yield f"memory  {states / 1e9:.2f} GB of states{sharded}, about {kept / 1e9:.2f} GB of a batch"


def memory(own: Any, args: Any, model: Any, tokens_a_row: int) -> tuple[float, float]:
    """Bytes of weights, gradients and optimiser; and of a batch, per process."""
    n = sum(p.numel() for p in model.parameters())
    weights = n * torch.tensor([], dtype=getattr(torch, args.model_init_kwargs["dtype"])).itemsize
    linear = {
        name: m
        for name, m in model.named_modules()
        if isinstance(m, torch.nn.Linear) and name != "lm_head"
    }
    if own.lora_target != "all-linear":
        wanted = re.findall(r"[\w.]+", str(own.lora_target))
        linear = {name: m for name, m in linear.items() if name.split(".")[-1] in wanted}
    added = own.lora_r * sum(m.in_features + m.out_features for m in linear.values())
    states = weights + 16 * added if own.lora else weights + 12 * n
    if (
        not own.lora
        and getattr(args, "beta", 0)
        and not getattr(args, "precompute_ref_log_probs", 0)
    ):
        states += weights
    c = model.config.get_text_config()
    per_layer = c.hidden_size * (1 if args.gradient_checkpointing else 16)
    width = c.num_hidden_layers * per_layer + 16 * c.hidden_size + 4 * c.intermediate_size
    rows = args.per_device_train_batch_size
    return states, rows * tokens_a_row * width * (2 if args.bf16 else 4)


def show(recipe: Any, own: Any, args: Any) -> None:
    """Print the lines; the tiny model's folder is all that is written."""
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    for line in lines(recipe, own, args):
        print(line)
