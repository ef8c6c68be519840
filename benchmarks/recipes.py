"""Training speed of dpo.py beside TRL's own DPO script with the same model, pairs and settings, on the CPU.

Both are started in processes of their own, in alternating order, by a few lines that note CPU time and clock after every step.
Steps are compared one by one: both see the same batches. What comes before the first step (imports, model, tokens) is a row of
its own. `trl dpo` itself also starts accelerate, whose time is not counted against it. Needs the train extra.
"""

from __future__ import annotations

import importlib.util
import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from benchmarks.common import MORA_DATA, ROOT, Figure, Scale, checked, environment, run

GOAL = 0.98
SKIPPED = 3  # steps that warm up
SETTINGS = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "per_device_train_batch_size": 4,
            "learning_rate": 1e-4, "beta": 0.1, "max_length": 512, "logging_steps": 1, "save_strategy": "no",
            "disable_tqdm": True, "report_to": "none", "seed": 0}
ONE_THREAD = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
METERED = """
import atexit, json, runpy, sys, time
from transformers.trainer_callback import CallbackHandler
script, file, sys.argv = sys.argv[1], sys.argv[2], [sys.argv[1], *sys.argv[3:]]
seen = {"cpu": [], "wall": [], "tokens": 0}
ended, logged = CallbackHandler.on_step_end, CallbackHandler.on_log
def on_step_end(self, args, state, control):
    seen["cpu"].append(time.process_time())
    seen["wall"].append(time.perf_counter())
    return ended(self, args, state, control)
def on_log(self, args, state, control, logs):
    seen["tokens"] = max(seen["tokens"], logs.get("num_tokens", 0))
    return logged(self, args, state, control, logs)
CallbackHandler.on_step_end, CallbackHandler.on_log = on_step_end, on_log
atexit.register(lambda: open(file, "w").write(json.dumps(seen)))
sys.path.insert(0, script.rpartition("/")[0])
runpy.run_path(script, run_name="__main__")
"""


def figures(scale: Scale) -> Iterator[Figure]:
    """Tokens per second of both; the floor is TRL's own script."""
    spec = importlib.util.find_spec("trl")
    if spec is None or spec.origin is None:
        yield Figure("dpo.py, tokens per CPU s", f">= {GOAL} x trl dpo", "not measured: needs the train extra")
        return
    scripts = {"ours": ROOT / "train_recipes" / "dpo.py", "trl": Path(spec.origin).parent / "scripts" / "dpo.py"}
    steps = 12 if scale.quick else 30
    seen: dict[str, list[dict[str, list[float]]]] = {which: [] for which in scripts}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checked(run((*MORA_DATA, "build", "--source", "pku-saferlhf", "--sample", "--engine", "scripted", "--out", folder / "run")),
                "the demo build")
        checked(run((sys.executable, ROOT / "train_recipes" / "tiny_model.py", folder / "tiny"), ONE_THREAD), "the tiny model")
        for repeat in range(scale.repeats):
            for which in sorted(scripts, reverse=bool(repeat % 2)):
                seen[which].append(_train(folder, steps, which, scripts[which]))
    tokens = {int(r["tokens"][0]) for runs in seen.values() for r in runs}
    if len(tokens) != 1 or any(len(r["cpu"]) != steps for runs in seen.values() for r in runs):
        raise RuntimeError(f"the two did not do the same work: {tokens} tokens")
    for clock, unit in (("cpu", "CPU s"), ("wall", "s")):
        mine, theirs = (_steps(seen[which], clock) for which in scripts)
        ratio, low, high = _ratio(theirs, mine)
        speeds = [tokens.copy().pop() * len(s) / steps / sum(s) for s in (mine, theirs)]
        yield Figure(f"dpo.py, tokens per {unit} in training steps", f">= {GOAL} x trl dpo",
                     f"{speeds[0]:,.0f} [{low:.3f}, {high:.3f}] x", f"{speeds[1]:,.0f} trl dpo", ratio,
                     ratio >= GOAL if clock == "cpu" else None)
    start = [statistics.median(r["cpu"][0] for r in seen[which]) for which in scripts]
    yield Figure("same, CPU s up to the end of the first step", "-", f"{start[0]:.1f}", f"{start[1]:.1f} trl dpo",
                 start[0] / start[1])


def _steps(runs: Sequence[dict[str, list[float]]], clock: str) -> list[float]:
    """Seconds of each step after the first ones: the median over the runs."""
    each = [[b - a for a, b in zip(r[clock][SKIPPED - 1:], r[clock][SKIPPED:], strict=False)] for r in runs]
    return [statistics.median(s) for s in zip(*each, strict=True)]


def _ratio(above: Sequence[float], below: Sequence[float]) -> tuple[float, float, float]:
    """Ratio of the sums, with its 95 % bootstrap interval over the steps, which are pairs."""
    rng, drawn = random.Random(0), []
    for _ in range(2000):
        at = rng.choices(range(len(above)), k=len(above))
        drawn.append(sum(above[i] for i in at) / sum(below[i] for i in at))
    drawn.sort()
    return sum(above) / sum(below), drawn[49], drawn[1949]


def _train(folder: Path, steps: int, which: str, script: Path) -> dict[str, list[float]]:
    """CPU time and clock after every step, and the tokens that TRL counts."""
    dataset, model = str(folder / "run" / "dataset"), str(folder / "tiny")
    settings = {**SETTINGS, "max_steps": steps, "output_dir": str(folder / which), "dtype": "float32"}
    if which == "ours":
        settings |= {"dataset": dataset, "model": model, "save_model": False, "cpu_threads": 1}
    else:
        settings |= {"dataset_name": dataset, "dataset_config": "preference", "model_name_or_path": model}
    file, out = folder / f"{which}.yaml", folder / f"{which}.json"
    file.write_text(yaml.safe_dump(settings), "utf-8")
    # not `run`, whose look at the memory, ten times a second, costs a core that the training wants
    done = subprocess.run([sys.executable, "-c", METERED, script, out, "--config", file], env={**environment(), **ONE_THREAD},
                          capture_output=True, text=True, timeout=3600, check=False)
    if done.returncode:
        raise RuntimeError(f"training with {which} ended with {done.returncode}: {done.stderr.strip()[-400:]}")
    seen: dict[str, list[float]] = json.loads(out.read_text("utf-8"))
    return seen | {"tokens": [float(seen["tokens"])]}  # type: ignore[arg-type]
