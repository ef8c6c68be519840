"""The base policy: a small Llama with one token per word, trained from scratch on the world, saved
as any chat model is.

    make(Path("out/model"), topics, Size(...), q=0.1, seed=0)      model, tokenizer with chat
    template, base.json
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from .scale import Size
from .world import Topic, sft_rows, vocabulary

PAD, UNKNOWN, ASK, ANSWER, END = "<pad>", "<unk>", "<ask>", "<answer>", "<end>"
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<answer> {{ m['content'] }} <end>{%"
    " else %}<ask> {{ m['content'] }} {% endif %}{% endfor %}{% if add_generation_prompt %}<answer>"
    " {% endif %}"
)
CONTEXT = 160  # the longest fused question with its full answer has under 100 words


def make(
    out: Path,
    topics: Sequence[Topic],
    size: Size,
    q: float,
    seed: int,
    start: Path | None = None,
    part: int = 0,
) -> dict[str, Any]:
    """Train (on, from `start`, in a further round) and save; steps, seconds of CPU and loss, which
    base.json holds, too."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer, started = make_tokenizer(), time.process_time()
    torch.manual_seed(seed)
    if start is not None:
        model, size = (
            LlamaForCausalLM.from_pretrained(start),
            replace(size, steps=size.more, learning_rate=size.learning_rate / 2),
        )
    else:
        model = LlamaForCausalLM(config(len(tokenizer), size, tokenizer))
    loss = train(model.to(device), tokenizer, topics, size, q, seed, part)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = (
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    found = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": size.steps,
        "q": q,
        "seed": seed,
        "loss": loss,
        "cpu_s": round(time.process_time() - started, 1),
    }
    (out / "base.json").write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    return found


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word of the world."""
    words = [PAD, UNKNOWN, ASK, ANSWER, END, *vocabulary()]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def config(n_words: int, size: Size, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=n_words,
        hidden_size=size.width,
        intermediate_size=3 * size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def train(
    model: Any,
    tokenizer: Any,
    topics: Sequence[Topic],
    size: Size,
    q: float,
    seed: int,
    part: int = 0,
) -> float:
    """Next-word training on the answers, AdamW under a cosine; mean loss of the last 50 steps."""
    device, rows, losses = model.device, batches(tokenizer, topics, size.batch, q, seed, part), []
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=size.learning_rate, weight_decay=0.01, betas=(0.9, 0.98)
    )
    warm = max(1, size.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda k: min(
            (k + 1) / warm, 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, k / size.steps)))
        ),
    )
    model.train()
    for step in range(size.steps):
        ids, labels = (t.to(device) for t in next(rows))
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = model(
                input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long(), labels=labels
            ).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        if (step + 1) % 200 == 0:
            print(
                f"base policy: step {step + 1} of {size.steps}, loss {float(losses[-1]):.3f}",
                file=sys.stderr,
                flush=True,
            )
    model.eval()
    return float(torch.stack(losses[-50:]).mean())


def batches(
    tokenizer: Any, topics: Sequence[Topic], batch: int, q: float, seed: int, part: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """ids_N_T and their labels, the question's masked; pass after pass, rows in a seeded order.

    Every eight batches are sorted by length among themselves: half of the words were padding.
    """
    known = tokenizer.get_vocab()
    generator, epoch = torch.Generator().manual_seed(seed), 1000 * part
    while True:
        rows = [
            (
                [known[ASK], *(known[w] for w in question.split()), known[ANSWER]],
                [*(known[w] for w in answer.split()), known[END]],
            )
            for question, answer in sft_rows(topics, q, seed, epoch, fillers=part > 0)
        ]
        order = torch.randperm(len(rows), generator=generator).tolist()
        size_of = [len(a) + len(b) for a, b in rows]
        for k in range(0, len(order), 8 * batch):
            order[k : k + 8 * batch] = sorted(order[k : k + 8 * batch], key=size_of.__getitem__)
        starts = torch.randperm(len(rows) // batch, generator=generator) * batch
        for first in starts.tolist():
            some = [rows[i] for i in order[first : first + batch]]
            width = max(len(a) + len(b) for a, b in some)
            ids = [[*a, *b] + [known[PAD]] * (width - len(a) - len(b)) for a, b in some]
            labels = [[-100] * len(a) + b + [-100] * (width - len(a) - len(b)) for a, b in some]
            yield torch.tensor(ids), torch.tensor(labels)
        epoch += 1
