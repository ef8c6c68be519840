"""The tiny trained chat model that the real server serves: its answers differ between samples and
end by themselves.

It is made by train_recipes/tiny_model.py from generated small talk and judge-like exchanges, under
the server's own python (which has torch and transformers), once, into a cache folder named by the
hash of all that goes into it.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

MAKER = Path(__file__).parents[2] / "train_recipes" / "tiny_model.py"
STEPS = 150

TOPICS = [
    "bread",
    "a bicycle",
    "the moon",
    "sleep",
    "tea",
    "a garden",
    "chess",
    "the sea",
    "old maps",
    "rain",
    "bees",
    "a violin",
    "soup",
    "trains",
    "paper",
    "honey",
    "winter",
    "a river",
    "clouds",
    "apples",
]
ASKS = [
    "How do I learn about {}?",
    "Tell me something about {}.",
    "Why do people like {}?",
    "Is it safe to work with {}?",
    "Write a short note on {}.",
    "What should a beginner know about {}?",
    "Explain {} to a child.",
]
OPENERS = [
    "Sure.",
    "Good question.",
    "Of course.",
    "Let me think.",
    "I am not certain, but here is a start.",
    "Yes.",
    "That depends on what you need.",
]
POINTS = [
    "Most people begin with {} when they are young.",
    "You can read a book on {} in a quiet place.",
    "It helps to ask a friend who knows {} well.",
    "Take care, and go slowly with {}.",
    "There are many kinds of {}, and each has its own story.",
    "I would try {} for ten minutes every day.",
    "Nobody knows everything about {}.",
    "The best time for {} is the morning.",
    "First look at {}, then write down what you see.",
]
CLOSERS = [
    "That is all I know.",
    "Bye.",
    "Have fun!",
    "Ask me if you want more.",
    "I hope this helps.",
]  # scored 1 to 5
SYSTEMS = [
    "You are a helpful assistant.",
    "You are a careful judge. Score the answer from 1 to 5.",
    "",
]


def conversations(count: int = 2400, seed: int = 0) -> list[list[dict[str, str]]]:
    """Generated exchanges: half are small talk, the others end with a verdict such as {"score":
    3}."""
    rng = random.Random(seed)
    return [_verdict(rng) if rng.random() < 0.5 else _small_talk(rng) for _ in range(count)]


def _small_talk(rng: random.Random) -> list[dict[str, str]]:
    topic = rng.choice(TOPICS)
    system = rng.choice(SYSTEMS[::2])
    turns = [("user", rng.choice(ASKS).format(topic)), ("assistant", _answer(rng, topic))]
    return _messages(*([("system", system)] if system else []), *turns)


def _answer(rng: random.Random, topic: str) -> str:
    points = rng.sample(POINTS, rng.randint(1, 3))
    return " ".join(
        [rng.choice(OPENERS), *(p.format(topic) for p in points), rng.choice(CLOSERS)]
    ).strip()


LAYOUTS = [
    "Question:\n{ask}\nAnswer:\n{answer}\nReply with JSON.",
    "{ask}\n\n{answer}\n\nScore the answer from 1 to 5 as JSON.",
    "<answer>\n{answer}\n</answer>\nGive a score.",
]


def _verdict(rng: random.Random) -> list[dict[str, str]]:
    """A judge's exchange. The score follows from how the answer ends: more than so short a training
    learns."""
    topic = rng.choice(TOPICS)
    answer = _answer(rng, topic)
    asked = rng.choice(LAYOUTS).format(ask=rng.choice(ASKS).format(topic), answer=answer)
    score = next(i for i, closer in enumerate(CLOSERS, 1) if answer.endswith(closer))
    return _messages(
        ("system", SYSTEMS[1]), ("user", asked), ("assistant", f'{{"score": {score}}}')
    )


def _messages(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def tiny_model(python: str, cache: Path | None = None) -> Path:
    """Folder of the model; made on first use (about a minute on 2 cores), with `python`, which must
    have torch."""
    rows = "\n".join(json.dumps(c) for c in conversations())
    digest = hashlib.sha256(
        b"|".join([rows.encode(), MAKER.read_bytes(), str(STEPS).encode()])
    ).hexdigest()[:12]
    home = (
        cache or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mora-data-tests"
    )
    out = home / f"tiny-{digest}"
    if (out / "model.safetensors").is_file():
        return out
    home.mkdir(parents=True, exist_ok=True)
    texts = home / f"tiny-{digest}.jsonl"
    texts.write_text(rows, "utf-8")
    making = home / f"tiny-{digest}.{os.getpid()}"
    command = [python, str(MAKER), str(making), "--texts", str(texts), "--train-steps", str(STEPS)]
    # steady where cores are shared
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        making.rename(out)
    except OSError:  # another process was faster
        if not (out / "model.safetensors").is_file():
            raise
        shutil.rmtree(making)
    return out


if __name__ == "__main__":
    print(tiny_model(sys.argv[1] if len(sys.argv) > 1 else sys.executable))
