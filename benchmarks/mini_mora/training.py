"""Training level: the recipe `dpo.py` on one arm's pairs, and `mora-data evaluate` of many
checkpoints on the same questions.

    dpo(pairs, model, out, scale, learning_rate=2e-4, seed=0)
    scores = evaluate({"base@0": model, "fused@0": out, ...}, rows, folder, scale)      rows x
    answers, per checkpoint
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from mora_data.text import context_id

from .building import ROOT, call, settings, write_rows
from .plugins import topics
from .scale import Scale
from .world import DIMENSIONS, FLOORS, read

if TYPE_CHECKING:
    from numpy.typing import NDArray

METRICS = (
    "joint_pass",
    "joint_pass_H",
    "joint_pass_Q",
    "harmful_S",
    *(f"reward_{d}" for d in DIMENSIONS),
)


@dataclass(frozen=True, slots=True)
class Scores:
    """What the checkpoints answered: values_S_P_M per method, seeds in order, NaN where a metric is
    not of that question.

    joint_pass: all floors reached, on H and Q (a bare S question has no answer that reaches all);
        harmful_S: the trick is told.
    """

    methods: Mapping[str, NDArray[np.float64]]
    clusters_P: NDArray[np.int_]  # topics: questions on one are drawn together
    topics_P: Sequence[str]


def config(scale: Scale) -> dict[str, Any]:
    """Settings of the recipe, the same for every arm."""
    cpu = scale.device == "cpu"
    return {
        "use_cpu": cpu,
        "bf16": not cpu,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": scale.batch,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 5,
        "beta": 0.1,
        "max_length": 160,
        "logging_steps": 5,
        "save_strategy": "no",
        "disable_tqdm": True,
        "report_to": "none",
        "dtype": "float32",
        **({"cpu_threads": 1} if cpu else {}),
    }


def dpo(
    pairs: Path,
    model: Path,
    out: Path,
    scale: Scale,
    learning_rate: float,
    seed: int,
    steps: int,
    original: Path | None = None,
) -> dict[str, Any]:
    """Train; what metrics.json holds. `original`: pairs that these are added to."""
    file = out.parent / f"{out.name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(config(scale) | {"max_steps": steps}), "utf-8")
    mix = [f"dataset_mix={{original: {original}, fraction: 1.0}}"] if original else []
    call(
        [
            sys.executable,
            ROOT / "train_recipes" / "dpo.py",
            "--config",
            file,
            f"dataset={pairs}",
            f"model={model}",
            f"output_dir={out}",
            f"learning_rate={learning_rate}",
            f"seed={seed}",
            *mix,
        ],
        out.parent / f"{out.name}.log",
    )
    found: dict[str, Any] = json.loads((out / "metrics.json").read_text("utf-8"))
    return found


def evaluate(
    models: Mapping[str, Path],
    rows: Sequence[Mapping[str, str]],
    out: Path,
    scale: Scale,
    answers: int,
    seed: int = 0,
) -> Scores:
    """Every checkpoint (named METHOD@SEED) on the questions, by the package's command, rewards by
    the world."""
    out.parent.mkdir(parents=True, exist_ok=True)
    prompts = write_rows([dict(r) for r in rows], out.parent / f"{out.name}.jsonl")
    builder = out.parent / f"{out.name}.yaml"
    builder.write_text(
        yaml.safe_dump(settings(scale, next(iter(models.values()))), sort_keys=False), "utf-8"
    )
    named = [f"{name}=transformers:{path}" for name, path in models.items()]
    call(
        [
            sys.executable,
            "-m",
            "mora_data",
            "evaluate",
            *named,
            "--prompts",
            prompts,
            "--source",
            builder,
            "--samples",
            answers,
            "--seed",
            seed,
            "--no-win-rate",
            "--out",
            out,
        ],
        out.parent / f"{out.name}.log",
    )
    return scores(out / "rows.jsonl", [r["prompt"] for r in rows])


def scores(file: Path, prompts: Sequence[str]) -> Scores:
    """The rows of an evaluation as arrays."""
    at: dict[str, int] = {}
    for text in prompts:
        at.setdefault(context_id(({"role": "user", "content": text},)), len(at))
    texts = list(dict.fromkeys(prompts))
    sums: dict[str, dict[str, NDArray[np.float64]]] = {}
    with file.open(encoding="utf-8") as lines:
        for r in map(json.loads, lines):
            cell = sums.setdefault(r["model"], {}).setdefault(
                r["seed"], np.zeros((2, len(at), len(METRICS)))
            )
            values = metrics_of(texts[at[r["prompt_id"]]], r)
            there = ~np.isnan(values)
            cell[0][at[r["prompt_id"]]] += np.where(there, values, 0)
            cell[1][at[r["prompt_id"]]] += there
    methods = {
        m: np.stack(
            [
                np.where(n > 0, total / np.maximum(n, 1), np.nan)
                for _, (total, n) in sorted(by_seed.items())
            ]
        )
        for m, by_seed in sums.items()
    }
    names = [_topic(text) for text in texts]
    labels = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return Scores(methods, np.array([labels[n] for n in names]), names)


def metrics_of(text: str, row: Mapping[str, Any]) -> NDArray[np.float64]:
    """METRICS of one answer; an empty one has reward 0 in helpful and no more."""
    found = read(text, topics())
    base = found[1].base if found else ""
    r = {
        d: row[f"reward_{d}"] if row[f"reward_{d}"] is not None else float(d != "helpful")
        for d in DIMENSIONS
    }
    joint = float(all(r[d] >= FLOORS[d] - 1e-9 for d in DIMENSIONS))
    nan = float("nan")
    return np.array(
        [
            joint if base in "HQ" else nan,
            joint if base == "H" else nan,
            joint if base == "Q" else nan,
            float(r["harmless"] == 0) if base == "S" else nan,
            *(r[d] for d in DIMENSIONS),
        ]
    )


def _topic(text: str) -> str:
    found = read(text, topics())
    return found[0].name if found else ""
