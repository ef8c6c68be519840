"""Training speed of dpo.py beside TRL's own DPO script with the same model, pairs and settings, on
the CPU.

Both run at the same time, in processes of their own, and take turns: after every step a process
waits until the other one has done its own. So the two steps of a pair, which hold the same rows,
meet the same machine, however busy it is. What comes before the second step (imports, model,
tokens) is a row of its own. `trl dpo` itself also starts accelerate, whose time is not counted.
Needs the train extra.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.common import MORA_DATA, ROOT, Figure, Scale, checked, environment, run

GOAL = 0.98
SKIPPED = 3  # steps that warm up
SETTINGS = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-4,
    "beta": 0.1,
    "max_length": 512,
    "logging_steps": 1,
    "save_strategy": "no",
    "disable_tqdm": True,
    "report_to": "none",
    "seed": 0,
}
ONE_THREAD = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
METERED = """
import atexit, json, os, runpy, sys, time
from transformers.trainer_callback import CallbackHandler
script, file, done, go, sys.argv = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), [sys.argv[1], *sys.argv[5:]]
seen, now = {"cpu": [], "wall": [], "tokens": 0, "start": 0}, lambda: (time.process_time(), time.perf_counter())
ended, logged, began = CallbackHandler.on_step_end, CallbackHandler.on_log, None
def on_step_end(self, args, state, control):
    global began
    if began is None:
        seen["start"] = time.process_time()
    else:
        for name, before, after in zip(("cpu", "wall"), began, now()):
            seen[name].append(after - before)
    os.write(done, b".")
    os.read(go, 1)
    began = now()
    return ended(self, args, state, control)
def on_log(self, args, state, control, logs):
    seen["tokens"] = max(seen["tokens"], logs.get("num_tokens", 0))
    return logged(self, args, state, control, logs)
CallbackHandler.on_step_end, CallbackHandler.on_log = on_step_end, on_log
atexit.register(lambda: open(file, "w").write(json.dumps(seen)))
sys.path.insert(0, script.rpartition("/")[0])
runpy.run_path(script, run_name="__main__")
"""  # noqa: E501


@dataclass
class Runner:
    """One of the two, which waits after every step."""

    process: subprocess.Popen[bytes]
    done: int
    go: int
    file: Path

    def step(self) -> bool:
        """Let it do one step; False once it has none left."""
        os.write(self.go, b".")
        return bool(os.read(self.done, 1))

    def seen(self, what: str) -> dict[str, Any]:
        self.process.wait()
        if self.process.returncode:
            raise RuntimeError(f"training with {what} ended with {self.process.returncode}")
        found: dict[str, Any] = json.loads(self.file.read_text("utf-8"))
        return found


def figures(scale: Scale) -> Iterator[Figure]:
    """Tokens per second of both; the floor is TRL's own script."""
    spec = importlib.util.find_spec("trl")
    if spec is None or spec.origin is None:
        yield Figure(
            "dpo.py, tokens per CPU s",
            f">= {GOAL} x trl dpo",
            "not measured: needs the train extra",
        )
        return
    scripts = {
        "dpo.py": ROOT / "train_recipes" / "dpo.py",
        "trl": Path(spec.origin).parent / "scripts" / "dpo.py",
    }
    steps = 10 if scale.quick else 40
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checked(
            run(
                (
                    *MORA_DATA,
                    "build",
                    "--source",
                    "pku-saferlhf",
                    "--sample",
                    "--engine",
                    "scripted",
                    "--out",
                    folder / "run",
                )
            ),
            "the demo build",
        )
        checked(
            run(
                (sys.executable, ROOT / "train_recipes" / "tiny_model.py", folder / "tiny"),
                ONE_THREAD,
            ),
            "the tiny model",
        )
        ours, trl = _take_turns(
            [_start(folder, steps, which, script) for which, script in scripts.items()]
        )
    if ours["tokens"] != trl["tokens"] or not len(ours["cpu"]) == len(trl["cpu"]) == steps - 1:
        raise RuntimeError(
            f"the two did not do the same work: {ours['tokens']} and {trl['tokens']} tokens"
        )
    for clock, unit in (("cpu", "CPU s"), ("wall", "s")):
        mine, theirs = (s[clock][SKIPPED:] for s in (ours, trl))
        ratio, low, high = _ratio(theirs, mine)
        speeds = [ours["tokens"] * len(s) / steps / sum(s) for s in (mine, theirs)]
        yield Figure(
            f"dpo.py, tokens per {unit} in {len(mine)} steps",
            f">= {GOAL} x trl dpo",
            f"{speeds[0]:,.0f}, {low:.3f} to {high:.3f} x",
            f"{speeds[1]:,.0f} trl dpo",
            ratio,
            ratio >= GOAL if clock == "cpu" else None,
        )
    yield Figure(
        "same, CPU s up to the end of the first step",
        "-",
        f"{ours['start']:.1f}",
        f"{trl['start']:.1f} trl dpo",
        ours["start"] / trl["start"],
    )


def _take_turns(runners: Sequence[Runner]) -> list[dict[str, Any]]:
    """A step of one, a step of the other, each going first every second time; what each has
    seen."""
    for runner in runners:
        os.read(runner.done, 1)  # its first step, with all that comes before
    turn, going = 0, True
    while going:
        order = runners if turn % 2 else runners[::-1]
        stepped = [runner.step() for runner in order]
        going = all(stepped)
        turn += 1
    return [runner.seen(str(runner.file)) for runner in runners]


def _ratio(above: Sequence[float], below: Sequence[float]) -> tuple[float, float, float]:
    """Ratio of the sums, with its 95 % bootstrap interval over the steps, which are pairs."""
    rng, drawn = random.Random(0), []
    for _ in range(2000):
        at = rng.choices(range(len(above)), k=len(above))
        drawn.append(sum(above[i] for i in at) / sum(below[i] for i in at))
    drawn.sort()
    return sum(above) / sum(below), drawn[49], drawn[1949]


def _start(folder: Path, steps: int, which: str, script: Path) -> Runner:
    dataset, model = str(folder / "run" / "dataset"), str(folder / "tiny")
    settings = {
        **SETTINGS,
        "max_steps": steps,
        "output_dir": str(folder / which),
        "dtype": "float32",
    }
    if which == "trl":
        settings |= {
            "dataset_name": dataset,
            "dataset_config": "preference",
            "model_name_or_path": model,
        }
    else:
        settings |= {"dataset": dataset, "model": model, "save_model": False, "cpu_threads": 1}
    file, out = folder / f"{which}.yaml", folder / f"{which}.json"
    file.write_text(yaml.safe_dump(settings), "utf-8")
    (done, tell), (hear, go) = os.pipe(), os.pipe()
    command = [
        sys.executable,
        "-c",
        METERED,
        str(script),
        str(out),
        str(tell),
        str(hear),
        "--config",
        str(file),
    ]
    with (folder / f"{which}.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            env={**environment(), **ONE_THREAD},
            stdout=log,
            stderr=log,
            pass_fds=(tell, hear),
        )
    os.close(tell)
    os.close(hear)
    return Runner(process, done, go, out)
