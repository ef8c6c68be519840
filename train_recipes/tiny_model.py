# /// script
# requires-python = ">=3.11"
# dependencies = ["torch>=2.6", "transformers>=5.0", "tokenizers>=0.20"]
# ///
"""A chat model of 3 million parameters, made on this machine in seconds: nothing is downloaded.

    python tiny_model.py OUT [--texts conversations.jsonl] [--train-steps 200] [--seed 0] [--context
    2048]

It is for trying out recipes and servers, not for answers that make sense. Architecture: Qwen2,
hidden 256, 4 layers.
Tokenizer: byte-level BPE of 2048 tokens, trained on the texts given and on Python's standard
library; ChatML template. Untrained, it repeats one token; after some 150 steps its samples differ
and end. One line of `--texts` is one conversation, a list of {"role": ..., "content": ...}; without
texts it trains on the standard library's source.
"""

from __future__ import annotations

import argparse
import json
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

Conversation = Sequence[dict[str, str]]

VOCABULARY = 2048
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n'"
    " }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make(
    out: Path,
    conversations: Sequence[Conversation] = (),
    train_steps: int = 0,
    seed: int = 0,
    context: int = 2048,
    small: bool = False,
) -> Path:
    """Write model and tokenizer into folder `out`; the same arguments give the same weights on the
    same machine.

    `small`: half a million parameters, whose tokenizer knows the words of the conversations alone.
    """
    sources = [] if small else standard_library()
    contents = [m["content"] for c in conversations for m in c]
    tokenizer = train_tokenizer([*contents, *sources])
    torch.manual_seed(seed)
    config, speed = model_config(tokenizer, context), {}
    if small:
        config.update(
            {
                "hidden_size": 128,
                "intermediate_size": 256,
                "num_hidden_layers": 2,
                "layer_types": config.layer_types[:2],
            }
        )
        speed = {"batch": 16, "window": 128, "learning_rate": 4e-3}
    model = Qwen2ForCausalLM(config)
    if train_steps:
        texts = [
            tokenizer.apply_chat_template(list(c), tokenize=False) for c in conversations
        ] or sources
        train(model, tokenizer, texts, train_steps, **speed)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def standard_library(files: int = 60) -> list[str]:
    """Source text of the standard library's first modules, by name."""
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:files]
    return [p.read_text("utf-8", errors="ignore") for p in paths]


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE with the three ChatML tokens and a chat template."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [PAD, START, END]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END, pad_token=PAD, bos_token=None
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def model_config(tokenizer: PreTrainedTokenizerFast, context: int) -> Qwen2Config:
    """The tiny Qwen2."""
    return Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def train(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    steps: int,
    batch: int = 8,
    window: int = 160,
    learning_rate: float = 2e-3,
) -> float:
    """Next-token training on random windows of the texts laid end to end; the last loss."""
    ids = torch.tensor(
        [i for text in texts for i in tokenizer.encode(text, add_special_tokens=False)]
    )
    if len(ids) <= window:
        raise SystemExit(
            f"error: {len(ids)} tokens of text are too few to train on: give more than {window}"
        )
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=steps + 1, pct_start=0.1
    )
    model.train()
    for step in range(steps):
        starts = torch.randint(len(ids) - window, (batch,))
        rows = torch.stack([ids[s : s + window] for s in starts.tolist()])
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 25 == 0 or step == steps - 1:
            print(f"step {step}: loss {loss.item():.3f}", file=sys.stderr)
    model.eval()
    return float(loss.item())


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a tiny chat model; nothing is downloaded.")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument(
        "--texts", type=Path, help="JSON lines, one conversation (a list of messages) each"
    )
    parser.add_argument(
        "--train-steps", type=int, default=0, help="steps of next-token training (default 0)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--context", type=int, default=2048, help="longest sequence, in tokens")
    args = parser.parse_args()
    lines = args.texts.read_text("utf-8").splitlines() if args.texts else []
    make(args.out, [json.loads(line) for line in lines], args.train_steps, args.seed, args.context)
    print(args.out)


if __name__ == "__main__":
    main()
