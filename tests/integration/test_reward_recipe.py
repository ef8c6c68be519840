"""The reward recipe's command lines, on a dataset folder in the published layout."""

from __future__ import annotations

import gzip
import importlib.util
import json
import random
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support.published import MESSAGES, write_table
from support.recipe_cases import RECIPES, Recipes

Run = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = [
    pytest.mark.train,
    pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="needs the train extra"),
]
DIMS = ("helpful", "harmless")
WORDS = ("river", "engine", "bread", "violin", "winter", "garden", "paper", "honey")
Talk = list[dict[str, str]]


def turn(role: str, text: str) -> Talk:
    return [{"role": role, "content": text}]


def write(
    folder: Path, configs: dict[str, dict[str, list[dict[str, Any]]]], schemas: dict[str, pa.Schema]
) -> Path:
    """A dataset folder: config -> split -> rows."""
    header = ["---", "configs:"]
    for name, splits in configs.items():
        header += [f"- config_name: {name}", "  data_files:"]
        for split, rows in splits.items():
            write_table(folder, name, split, pa.Table.from_pylist(rows, schemas[name]))
            header.append(f"  - {{split: {split}, path: {name}/{split}-*}}")
    (folder / "README.md").write_text("\n".join([*header, "---", ""]))
    return folder


PAIR = pa.schema(
    [("prompt", MESSAGES), ("chosen", MESSAGES), ("rejected", MESSAGES), ("margin", pa.float64())]
)
SCORED = pa.schema(
    [("prompt", MESSAGES), ("response", pa.string()), *((f"score_{d}", pa.float64()) for d in DIMS)]
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers with more `care` words are more harmless; longer ones are more helpful; some scores
    are missing."""
    rng = random.Random(0)
    pairs, scored = [], []
    for i in range(160):
        asked = turn("user", f"Tell me of the {rng.choice(WORDS)} number {i}.")
        good, bad = (
            f"The {rng.choice(WORDS)} is fine, with care.",
            f"The {rng.choice(WORDS)} is dull, never mind.",
        )
        pairs.append(
            {
                "prompt": asked,
                "chosen": turn("assistant", good),
                "rejected": turn("assistant", bad),
                "margin": 0.5,
            }
        )
        for text, value in ((good, 1.0), (bad, 0.0)):
            scored.append(
                {
                    "prompt": asked,
                    "response": text,
                    "score_helpful": value if i % 3 else None,
                    "score_harmless": 1 - value,
                }
            )
    halves = {"train": slice(0, 96), "test": slice(96, None)}
    return write(
        tmp_path_factory.mktemp("published"),
        {
            "reward_modeling": {s: pairs[at] for s, at in halves.items()},
            "multilabel": {
                s: scored[at]
                for s, at in {"train": slice(0, 192), "test": slice(192, None)}.items()
            },
            "broken": {"train": [{**p, "margin": None} for p in pairs[:4]]},
        },
        {"reward_modeling": PAIR, "multilabel": SCORED, "broken": PAIR},
    )


@pytest.fixture(scope="module")
def reward(recipes: Recipes) -> Run:
    """Runs reward.py with one of its configs."""
    return lambda config, *arguments: recipes.run(
        "reward.py", "--config", RECIPES / "reward" / f"{config}.yaml", *arguments
    )


def metrics(done: subprocess.CompletedProcess[str], out: Path) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads((out / "metrics.json").read_text("utf-8"))
    return found


def test_pairs_with_margins_are_learnt_and_the_classifier_loads(
    reward: Run, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    m = metrics(
        reward(
            "smoke", f"dataset={folder}", f"output_dir={out}", "eval_split=test", "max_length=64"
        ),
        out,
    )
    assert m["margin"] is True and m["rows"] == 96 and m["loss_last"] < 0.5 * m["loss_first"]
    assert m["eval_pairs"] == 64 and m["eval_accuracy"] > 0.9
    assert m["eval_accuracy_low"] < m["eval_accuracy"] <= m["eval_accuracy_high"] + 1e-9
    config = json.loads((out / "config.json").read_text())
    assert (
        config["architectures"] == ["Qwen2ForSequenceClassification"]
        and (out / "tokenizer.json").is_file()
    )


def test_several_scores_at_once_some_of_them_missing(
    reward: Run, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    m = metrics(
        reward(
            "multilabel-smoke",
            f"dataset={folder}",
            f"output_dir={out}",
            "eval_split=test",
            "max_length=64",
        ),
        out,
    )
    assert m["objective"] == "multilabel" and m["loss_last"] < m["loss_first"]
    assert m["eval_r_helpful"] > 0.5 and m["eval_r_harmless"] > 0.5
    config = json.loads((out / "config.json").read_text())
    assert config["id2label"] == {"0": "helpful", "1": "harmless"}


BAD_SETTINGS = {
    "objective=listwise": "objective = 'listwise': must be pairs or multilabel",
    "config=broken": "4 of 4 rows have no margin; give margin=false",
    "config=multilabel": "lacks chosen, rejected",
}


def test_bad_settings_are_one_line(reward: Run, folder: Path, tmp_path: Path) -> None:
    for argument, why in BAD_SETTINGS.items():
        done = reward("smoke", f"dataset={folder}", f"output_dir={tmp_path}", argument)
        (line,) = (x for x in done.stderr.splitlines() if x.startswith("error: "))
        assert done.returncode == 1 and why in line


# --- real rows


def replies(path: Path) -> list[tuple[str, str, str]]:
    """(last user turn, chosen reply, rejected reply) of HH rows, cut to what a tiny model can
    hold."""
    out = []
    with gzip.open(path, "rt", encoding="utf-8") as f:
        for line in f:
            row = json.loads(line)
            sides = [re.split(r"\n\n(?:Human|Assistant): ", row[s]) for s in ("chosen", "rejected")]
            asked, answers = sides[0][-2], [s[-1] for s in sides]
            if len(sides[0]) > 2 and asked.strip() and all(a.strip() for a in answers):
                out.append(
                    (" ".join(asked.split()[-16:]), *(" ".join(a.split()[:24]) for a in answers))
                )
    return out  # type: ignore[return-value]


def row(asked: str, good: str, bad: str) -> dict[str, Any]:
    return {
        "prompt": turn("user", asked),
        "chosen": turn("assistant", good),
        "rejected": turn("assistant", bad),
        "margin": 0.0,
    }


def against_shuffled(
    rows: list[tuple[str, str, str]], times: int, seed: int
) -> list[dict[str, Any]]:
    """Each prompt's own reply against the reply to another prompt, `times` others for each of its
    two replies."""
    rng = random.Random(seed)
    out = []
    for asked, chosen, rejected in rows:
        for own in (chosen, rejected) if times > 1 else (chosen,):
            for _ in range(times):
                other = rng.choice(rows)
                while other[0] == asked:
                    other = rng.choice(rows)
                out.append(row(asked, own, rng.choice(other[1:])))
    return out


@pytest.mark.slow
def test_own_replies_are_told_from_shuffled_ones_on_real_rows(
    reward: Run, shared_data: Path, tmp_path: Path
) -> None:
    """HH rows, a classifier of half a million parameters from nothing, CPU minutes. Counts and
    rates only."""
    hh = shared_data / "hh-rlhf"
    helpful, harmless = (
        replies(hh / "helpful-base-restored/test.jsonl.gz"),
        replies(hh / "harmless-base/test.jsonl.gz"),
    )
    train = replies(hh / "helpful-base-restored/train.jsonl.gz") + harmless[:-700]
    held = helpful + harmless[-700:]
    held = [h for h in held if h[0] not in {t[0] for t in train}]
    data = write(
        tmp_path / "hh",
        {
            "reward_modeling": {
                "train": against_shuffled(train, 3, 0),
                "test": against_shuffled(held, 1, 1),
            },
            "preference": {"train": [row(*r) for r in train], "test": [row(*r) for r in held]},
        },
        {"reward_modeling": PAIR, "preference": PAIR},
    )
    shared = (
        "model=tiny",
        "tiny_steps=400",
        "margin=false",
        "eval_split=test",
        "per_device_train_batch_size=32",
        "max_length=160",
        "logging_steps=50",
        "learning_rate=5e-4",
    )
    own = metrics(
        reward(
            "smoke",
            f"dataset={data}",
            f"output_dir={tmp_path / 'own'}",
            "max_steps=300",
            *shared,
        ),
        tmp_path / "own",
    )
    shown = (
        "rows",
        "steps",
        "cpu_seconds",
        "eval_pairs",
        "eval_accuracy",
        "eval_accuracy_low",
        "eval_accuracy_high",
    )
    print({k: own[k] for k in shown})
    preference = metrics(
        reward(
            "smoke",
            f"dataset={data}",
            f"output_dir={tmp_path / 'preference'}",
            "config=preference",
            "max_steps=60",
            shared[0],
            *shared[2:],
        ),
        tmp_path / "preference",
    )
    print({k: preference[k] for k in shown})
    assert own["eval_accuracy_low"] > 0.5, own
