"""Makes a tiny sequence classifier out of the tiny chat model: its weights, a random head, its chat
template.

    python tests/support/make_classifier.py CHAT_MODEL OUT LABELS < conversations.json > logits.json

Standard output is transformers' own logits for the conversations on standard input, in float32.
Needs torch and transformers.
"""

from __future__ import annotations

import json
import sys

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer


def main(chat_model: str, out: str, labels: int) -> None:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    model = AutoModelForSequenceClassification.from_pretrained(
        chat_model, num_labels=labels, dtype=torch.float32
    )
    torch.nn.init.normal_(model.score.weight, std=0.2)
    model.config.pad_token_id = tokenizer.pad_token_id or tokenizer.eos_token_id
    model.eval()
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    logits = []
    for item in json.load(sys.stdin):
        text = (
            item if isinstance(item, str) else tokenizer.apply_chat_template(item, tokenize=False)
        )
        ids = tokenizer(
            text, return_tensors="pt", add_special_tokens=isinstance(item, str)
        ).input_ids
        with torch.no_grad():
            logits.append(model(ids).logits[0].tolist())
    json.dump(logits, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
