"""Asks the engine `vllm` in this process, under vLLM's own python, and prints what came as JSON;
test_inprocess_vllm.py reads it.

    python tests/support/inprocess_vllm.py MODEL_DIR CLASSIFIER_DIR
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

LOCAL = {
    "dtype": "float32",
    "max_length": 1024,
    "options": {
        # whole prompts: see real_server.py
        "enforce_eager": True,
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": 4096,
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"score": {"type": "integer", "minimum": 1, "maximum": 5}},
    "required": ["score"],
    "additionalProperties": False,
}
TURNS = [
    ("What is tea?", "A drink."),
    ("Is it safe?", "Yes, but go slowly. " * 5),
    ("Why?", "Nobody knows."),
]


async def chat(folder: str) -> dict[str, Any]:
    from mora_data.types import Message, Request, Sampling

    def asked(
        text: str, n: int, first: int = 0, purpose: str = "presample", **sampling: Any
    ) -> Request:
        return Request(
            "policy",
            (Message(role="user", content=text),),
            Sampling(**{"temperature": 1.0, "top_p": 0.95, "max_tokens": 24, **sampling}),
            purpose,
            "p",
            n,
            first,
        )

    bees = "Tell me something about bees."
    requests = {
        "eight": asked(bees, 8),
        "other": asked(bees, 4, purpose="confirm"),
        "logprobs": asked(bees, 2, logprobs=3),
        "stop": asked(bees, 4, stop=(".",)),
        "json": asked("Give a score. Reply with JSON.", 8, schema=SCHEMA),
        "pattern": asked("Give a score.", 4, schema=SCHEMA, pattern=r'\{"score": [1-5]\}'),
        "cold": asked(bees, 1, temperature=0.0),
        "long": asked("word " * 3000, 2),
    }
    first, stats = await answers(folder, requests)
    later, _ = await answers(folder, {"late": asked(bees, 4, first=4)})
    return {**first, **later, "tokens": [stats.tokens_in, stats.tokens_out]}


async def classify(folder: str) -> dict[str, Any]:
    from mora_data.types import Message, Request, Sampling

    requests = {
        str(i): Request(
            "policy",
            (Message(role="user", content=q), Message(role="assistant", content=a)),
            Sampling(0.0, 1.0, 1),
            "score",
            f"p{i}",
            task="classify",
        )
        for i, (q, a) in enumerate(TURNS)
    }
    return (await answers(folder, requests))[0]


async def answers(folder: str, requests: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """All requests at once, through a log of their own."""
    from mora_data.engines.cached_client import CachedClient
    from mora_data.engines.engine import Shared
    from mora_data.engines.in_process import open_vllm
    from mora_data.run.log import AnswerLog
    from mora_data.run.stats import RunStats
    from mora_data.settings import RoleSettings

    stats = RunStats()
    role: Any = RoleSettings.model_validate({"engine": "vllm", "model": folder, "local": LOCAL})
    engine = open_vllm(role, None, stats, Shared())  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as temp:
        log = AnswerLog(Path(temp) / "answers.log")
        ask = CachedClient({"policy": engine}, log, 0, stats)
        got = await asyncio.gather(*(ask(r) for r in requests.values()))
        log.close()
    await engine.close()
    return {
        name: [a._asdict() for a in some] for name, some in zip(requests, got, strict=True)
    }, stats


def own_logits(folder: str) -> list[list[float]]:
    """What transformers itself gives, one conversation at a time."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    out = []
    for q, a in TURNS:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": q}, {"role": "assistant", "content": a}], tokenize=False
        )
        with torch.inference_mode():
            out.append(
                model(**tokenizer(text, return_tensors="pt", add_special_tokens=False))
                .logits[0]
                .tolist()
            )
    return out


def make_classifier(model: str, folder: str) -> None:
    """A reward model with one output and the weights of a chat model, where there is none yet."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    if not (Path(folder) / "config.json").is_file():
        torch.manual_seed(0)
        AutoModelForSequenceClassification.from_pretrained(
            model, num_labels=1, dtype=torch.float32
        ).save_pretrained(folder)
        AutoTokenizer.from_pretrained(model).save_pretrained(folder)


if __name__ == "__main__":
    make_classifier(*sys.argv[1:])
    found = {
        "chat": asyncio.run(chat(sys.argv[1])),
        "classify": asyncio.run(classify(sys.argv[2])),
        "own": own_logits(sys.argv[2]),
    }
    print(json.dumps(found))
