"""Models in this process: the engine beside a bare transformers loop over the same batches, on the
CPU with one thread.

    python -m benchmarks.inprocess TASK REQUESTS MODEL_DIR      TASK: classify, chat; in an
    environment with torch

The model has 3 million parameters, so that what the engine adds shows: with a real one it is a
smaller share. The floor gets the engine's own batches as messages, applies the chat template, pads,
runs the model; the engine's side adds keys, the log, the queue and its thread, seeds. Both are CPU
seconds of this process, loading left out.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, Figure, Scale, checked, median, run

# in full, with --quick; fewer leave nothing to sort
REQUESTS = {"classify": (2048, 512), "chat": (512, 512)}
MAX_BATCH = 32
NEW_TOKENS = 16
GOAL_RATIO, GOAL_WASTE = 1.10, 0.10
WORDS = (
    "the quick brown fox jumps over a lazy dog and asks for bread tea soup or a train to the old"
    " town by the river".split()
)


def requests(task: str, n: int) -> list[Any]:
    """Conversations of very unlike length: log-normal, a factor of three and more either way."""
    from mora_data.types import Message, Request, Sampling

    rng = random.Random(0)
    out = []
    for i in range(n):
        words = [
            " ".join(rng.choices(WORDS, k=max(3, min(300, round(rng.lognormvariate(3.5, 0.8))))))
            for _ in range(2)
        ]
        turns = (
            Message(role="user", content=words[0]),
            Message(role="assistant", content=words[1]),
        )
        out.append(
            Request(
                "policy",
                turns if task == "classify" else turns[:1],
                Sampling(1.0, 0.95, NEW_TOKENS),
                "presample",
                f"p{i}",
                task=task,
            )
        )
    return out


async def ours(task: str, folder: str, asked: Sequence[Any]) -> tuple[float, float, list[Any]]:
    """CPU seconds, share of padding, and the batches that were run."""
    from mora_data.engines import hf
    from mora_data.engines.cached_client import CachedClient
    from mora_data.engines.in_process import InProcessEngine, LazyModel, ModelQueue
    from mora_data.run.log import AnswerLog
    from mora_data.run.stats import RunStats
    from mora_data.settings import LocalSettings, RoleSettings

    stats = RunStats()
    queue = ModelQueue(stats)
    local = LocalSettings(device="cpu", max_batch=MAX_BATCH)
    model: Any = (
        hf.SequenceClassifier(folder, None, local)
        if task == "classify"
        else hf.Generator(folder, None, local, queue.stop)
    )
    batches: list[Any] = []
    bare = model.run

    def run(pieces: Any) -> Any:
        batches.append(pieces)
        return bare(pieces)

    model.run = run
    source = LazyModel("model", lambda: model, local)
    engine = InProcessEngine(
        queue, lambda task: source, RoleSettings(model="model", local=local), stats
    )
    with tempfile.TemporaryDirectory() as temp:
        log = AnswerLog(Path(temp) / "answers.log")
        ask = CachedClient({"policy": engine}, log, 0, stats)
        started = time.process_time()
        await asyncio.gather(*(ask(r) for r in asked))
        seconds = time.process_time() - started
        log.close()
    await engine.close()
    return seconds, 1 - queue.tokens / queue.padded, batches


def floor(task: str, folder: str, batches: Sequence[Any]) -> float:
    """CPU seconds of a bare loop over the same batches."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        folder, padding_side="right" if task == "classify" else "left"
    )
    kind = AutoModelForSequenceClassification if task == "classify" else AutoModelForCausalLM
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    model.config.pad_token_id = tokenizer.pad_token_id
    found = 0
    started = time.process_time()
    with torch.inference_mode():
        for pieces in batches:
            texts = tokenizer.apply_chat_template(
                [list(p.request.messages) for p in pieces],
                tokenize=False,
                add_generation_prompt=task == "chat",
            )
            inputs = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
            if task == "classify":
                found += len(model(**inputs).logits.tolist())
            else:
                out = model.generate(
                    **inputs,
                    do_sample=True,
                    temperature=1.0,
                    top_p=0.95,
                    top_k=0,
                    max_new_tokens=NEW_TOKENS,
                )
                found += len(
                    tokenizer.batch_decode(
                        out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
                    )
                )
    assert found == sum(map(len, batches))
    return time.process_time() - started


def child(task: str, n: int, folder: str) -> None:
    """Both sides in this process: one run to warm up, then one that counts, floor first and
    last."""
    import torch

    torch.set_num_threads(1)
    asked = requests(task, n)
    asyncio.run(ours(task, folder, asked[:64]))
    seconds, waste, batches = asyncio.run(ours(task, folder, asked))
    floors = [floor(task, folder, batches), floor(task, folder, batches)]
    print(
        json.dumps(
            {
                "ours": seconds,
                "floor": min(floors),
                "waste": waste,
                "sizes": sorted({len(b) for b in batches}),
            }
        )
    )


def models(where: Path) -> dict[str, Path]:
    """The two models, untrained."""
    checked(
        run((sys.executable, ROOT / "train_recipes" / "tiny_model.py", where / "chat")),
        "tiny_model.py",
    )
    code = (
        "import sys, torch; from transformers import AutoModelForSequenceClassification as A,"
        " AutoTokenizer as T\n"
        "torch.manual_seed(0); A.from_pretrained(sys.argv[1],"
        " num_labels=1).save_pretrained(sys.argv[2])\n"
        "T.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])"
    )
    checked(run((sys.executable, "-c", code, where / "chat", where / "classify")), "classifier")
    return {"chat": where / "chat", "classify": where / "classify"}


def figures(scale: Scale) -> Iterator[Figure]:
    """Ratio and padding of both tasks."""
    if (
        importlib.util.find_spec("torch") is None
        or importlib.util.find_spec("transformers") is None
    ):
        yield Figure("models in this process", "-", "not measured: torch is not installed")
        return
    with tempfile.TemporaryDirectory() as temp:
        made = models(Path(temp))
        for task, sizes in REQUESTS.items():
            n = sizes[scale.quick]
            runs = [
                checked(
                    run(
                        (sys.executable, "-m", "benchmarks.inprocess", task, str(n), made[task]),
                        {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
                    ),
                    task,
                )
                for _ in range(scale.repeats)
            ]
            found = [json.loads(r.out.splitlines()[-1]) for r in runs]
            ratio = median(found, lambda f: f["ours"] / f["floor"])
            waste = max(f["waste"] for f in found)
            ours, floor = (f"{found[0][side]:.1f}" for side in ("ours", "floor"))
            yield Figure(
                f"transformers {task}, {n:,} requests, CPU s",
                f"<= {GOAL_RATIO:g} x a bare loop",
                ours,
                f"{floor} bare loop, same batches",
                ratio,
                ratio <= GOAL_RATIO,
            )
            yield Figure(
                "same, padding", f"< {GOAL_WASTE:.0%}", f"{waste:.1%}", met=waste < GOAL_WASTE
            )


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    child(sys.argv[1], int(sys.argv[2]), sys.argv[3])
