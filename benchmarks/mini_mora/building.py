"""Data level: the real `mora-data build` on the world, what its answers are worth, and pairs as a
dataset for the recipe.

    run = build(folder, scale, model, q=0.1, seed=0)            mined, fused, sampled, scored,
    selected, published level(run)                                                  per prompt and
    arm: dominance rate, joint pass, ... write_pairs(run, "fused", n=300, out=folder / "pairs")
        a folder that dpo.py loads
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from mora_data.statistics import rollouts as st
from mora_data.text import seed_of

from .plugins import topics
from .scale import Scale
from .world import DIMENSIONS, FLOORS, OWN, Ask, Topic, fusions, question, read, rewards

HERE = "benchmarks.mini_mora.plugins"
ROOT = Path(__file__).resolve().parents[2]
LEVEL = ("dominance_rate", "joint_pass", "erd", *(f"reward_{d}" for d in DIMENSIONS))


def plain(some: Sequence[Topic], wordings: int) -> list[dict[str, str]]:
    """Plain questions on the topics: every base, in some of its wordings, drawn by the topic's
    name."""
    return [
        {"prompt": question(t, Ask(base), k), "category": base}
        for t in some
        for base in OWN
        for k in sorted(random.Random(f"{t.name} {base}").sample(range(4), wordings))
    ]


def fused(some: Sequence[Topic]) -> list[dict[str, str]]:
    """One fused question of each base on each topic."""
    out = []
    for t in some:
        rng = random.Random(f"fused {t.name}")
        out += [
            {"prompt": question(t, rng.choice(fusions(base)), rng.randrange(8)), "category": base}
            for base in OWN
        ]
    return out


def write_rows(rows: Sequence[dict[str, Any]], file: Path) -> Path:
    """As JSON lines; appears whole, since seeds run side by side."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.{os.getpid()}")
    part.write_text("".join(json.dumps(r) + "\n" for r in rows), "utf-8")
    part.replace(file)
    return file


def settings(scale: Scale, model: Path, selector: str = "dominance") -> dict[str, Any]:
    """The builder's tree: one policy in this process, the world's rewards, rewriter and
    selector."""
    world = {"engine": f"{HERE}:rewriter"}
    return {
        "name": "mini-mora",
        "source": {"kind": "jsonl", "licence": "apache-2.0"},
        "policy": {
            "engine": "transformers",
            "model": str(model),
            "temperature": 1.0,
            "top_p": 1.0,
            "max_tokens": 80,
            "local": {
                "device": scale.device,
                "dtype": "float32",
                "max_batch": 256 if scale.device == "cpu" else 4096,
            },
        },
        "rewriter": world,
        "judge": world,
        "rewards": {d: [{"kind": "python", "path": f"{HERE}:{d}"}] for d in DIMENSIONS},
        "mine": {"decontaminate": False},
        "presample": {
            "n": [scale.answers],
            "floors": dict(FLOORS),
            "budget": dict.fromkeys(OWN, scale.budget),
            "canaries": 0,
        },
        "fuse": {"arms": list(scale.arms), "checks": []},
        "rollout": {"n": scale.answers},
        "select": {
            "selector": f"{HERE}:{selector}",
            "confirm": False,
            "balance_length": False,
            "pairs_per_prompt": 2,
        },
        "publish": {"arms": list(scale.arms), "test_share": 0.0},
    }


def build(
    run: Path,
    scale: Scale,
    model: Path,
    seed: int,
    selector: str = "dominance",
    start: Path | None = None,
    order: Sequence[str] = DIMENSIONS,
) -> Path:
    """Build (or resume) into `run`; `start` is a run of the same answers, for another selector or
    `order` of the stages."""
    if start is not None and not run.exists():
        shutil.copytree(start, run)
    rows = write_rows(plain(scale.splits()["pool"], scale.wordings), run.parent / "pool.jsonl")
    builder = run.parent / f"{run.name}.yaml"
    tree = settings(scale, model, selector)
    tree["publish"]["stage_order"] = list(order)
    builder.write_text(yaml.safe_dump(tree, sort_keys=False), "utf-8")
    command = [
        sys.executable,
        "-m",
        "mora_data",
        "build",
        "--source",
        builder,
        "--data",
        rows,
        "--out",
        run,
        "--seed",
        seed,
    ]
    call(command, run.parent / f"{run.name}.log")
    return run


def call(command: Sequence[object], log: Path) -> None:
    """Run a command of the project from its root; what it said is in `log`.

    Raises:
        SystemExit: it failed; with its last lines.
    """
    with log.open("wb") as out:
        code = subprocess.run(
            [str(c) for c in command], cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, check=False
        ).returncode
    if code:
        last = log.read_text("utf-8", "replace").strip().splitlines()[-4:]
        raise SystemExit(
            f"error: {' '.join(str(c) for c in command[:5])} ... ended with {code}:"
            f" {' / '.join(last)} (see {log})"
        )


def level(run: Path) -> list[dict[str, Any]]:
    """One row per prompt and arm, of all its answers: those that repeat another count as often as
    they were given."""
    asked = {(r["prompt_id"], r["arm"]): r["messages"][-1]["content"] for r in _tables(run, "arms")}
    values: dict[tuple[str, str], list[list[float]]] = {}
    for r in _tables(run, "rollouts"):
        topic, ask, _ = _read(asked[r["prompt_id"], r["arm"]])
        values.setdefault((r["prompt_id"], r["arm"]), []).append(
            [rewards(topic, ask, r["text"])[d] for d in DIMENSIONS]
        )
    floors, out = np.array([FLOORS[d] for d in DIMENSIONS]) - 1e-9, []
    for (prompt_id, arm), scored in values.items():
        topic, ask, _ = _read(asked[prompt_id, arm])
        r_1_N_D = np.array([scored])
        rate = st.dominance_rate_everywhere(r_1_N_D, np.zeros(len(DIMENSIONS)))[0][0]
        erd = st.effective_dimensionality(r_1_N_D, np.zeros(len(DIMENSIONS)))[0]
        found = [rate, (r_1_N_D[0] >= floors).all(1).mean(), erd, *r_1_N_D[0].mean(0)]
        out.append(
            {
                "prompt_id": prompt_id,
                "arm": arm,
                "topic": topic.name,
                "base": ask.base,
                **dict(zip(LEVEL, map(float, found), strict=True)),
            }
        )
    return out


def count_pairs(run: Path) -> dict[str, int]:
    """Published pairs of each arm."""
    arms = [r["arm"] for r in _published(run)]
    return {arm: arms.count(arm) for arm in sorted(set(arms))}


def write_pairs(
    run: Path,
    arm: str,
    n: int,
    out: Path,
    seed: int = 0,
    config: str = "preference",
    at_most: bool = False,
) -> Path:
    """`n` of the arm's pairs, a seeded choice (a smaller one is part of a larger), as a dataset
    folder with one config."""
    rows = sorted(
        (r for r in _published(run, config) if r["arm"] == arm),
        key=lambda r: seed_of(seed, r["prompt_id"], r["chosen"][0]["content"]),
    )
    if len(rows) < n and not at_most:
        raise SystemExit(f"error: arm {arm} of {run} has {len(rows)} pairs, {n} are wanted")
    return write_pairs_of(rows[:n], out)


def write_pairs_of(rows: Sequence[dict[str, Any]], out: Path) -> Path:
    """The rows as a dataset folder that the recipe loads."""
    (out / "preference").mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(
        [{c: r[c] for c in ("prompt", "chosen", "rejected", "prompt_id", "arm")} for r in rows]
    )
    pq.write_table(table, out / "preference" / "train-00000-of-00001.parquet")
    head = {
        "configs": [
            {
                "config_name": "preference",
                "data_files": [{"split": "train", "path": "preference/train-*.parquet"}],
            }
        ]
    }
    (out / "README.md").write_text(f"---\n{yaml.safe_dump(head)}---\n", "utf-8")
    return out


def _published(run: Path, config: str = "preference") -> list[dict[str, Any]]:
    return [
        r
        for f in sorted((run / "dataset" / config).glob("train-*.parquet"))
        for r in pq.read_table(f).to_pylist()
    ]


def _tables(run: Path, name: str) -> list[dict[str, Any]]:
    return [
        r
        for f in sorted((run / "parts").glob(f"*/{name}.parquet"))
        for r in pq.read_table(f).to_pylist()
    ]


def _read(text: str) -> tuple[Topic, Ask, int]:
    found = read(text, topics())
    if found is None:
        raise SystemExit(f"error: {text!r} is no question of this world")
    return found
