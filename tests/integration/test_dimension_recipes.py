"""mahdpo.py and raco.py: their equations on small cases, and a few steps of each, in one process
with torch."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support.published import MESSAGES, pair, write_table
from support.recipe_cases import RECIPES, Recipes

SCRIPT = Path(__file__).parents[1] / "support" / "by_dimension.py"
pytestmark = [
    pytest.mark.train,
    pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="needs the train extra"),
]
SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("prompt", MESSAGES),
        ("chosen", MESSAGES),
        ("rejected", MESSAGES),
        ("dimension", pa.string()),
    ]
)
RNG = random.Random(3)
TWO = [
    ([[RNG.gauss(0, 1) for _ in range(4)] for _ in range(2)], [w, 1 - w], c)
    for w in (0.2, 0.5, 0.9)
    for c in (0.0, 0.4, 0.9)
    for _ in range(4)
]
BY_HAND = [
    ([[1.0, -4.0], [-1.0, 1.0]], [0.2, 0.8], 0.5),
    ([[1.0, 2.0], [1.0, 2.0]], [0.5, 0.5], 0.4),
]
THREE = [
    ([[RNG.gauss(0, 1) for _ in range(6)] for _ in range(3)], [0.5, 0.3, 0.2], 0.6)
    for _ in range(4)
]
CASES = [*TWO, *BY_HAND, *THREE]


def rows(n: int) -> list[dict[str, Any]]:
    """The harmless pairs are the helpful ones turned round; the last prompts have a helpful one
    alone."""
    rng, out = random.Random(0), []
    for i in range(n):
        p = {k: v for k, v in pair(rng, i).items() if k in SCHEMA.names}
        out.append({**p, "dimension": "helpful"})
        if i < n - 8:
            out.append(
                {**p, "chosen": p["rejected"], "rejected": p["chosen"], "dimension": "harmless"}
            )
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("by_dimension")
    table = pa.Table.from_pylist(rows(40), SCHEMA)
    write_table(out, "preference_by_dim", "train", table)
    write_table(
        out,
        "preference_helpful",
        "train",
        table.filter(pa.compute.equal(table["dimension"], "helpful")),
    )
    entries = "".join(
        f"- config_name: {c}\n  data_files:\n  - {{split: train, path: {c}/train-*}}\n"
        for c in ("preference_by_dim", "preference_helpful")
    )
    (out / "README.md").write_text(f"---\nconfigs:\n{entries}---\n", "utf-8")
    return out


@pytest.fixture(scope="module")
def found(
    recipes: Recipes, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("out")
    done = recipes.run(SCRIPT, RECIPES, folder, out, given=json.dumps(CASES))
    assert done.returncode == 0, done.stderr[-3000:]
    read: dict[str, Any] = json.loads(done.stdout)
    return read


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def mix(gradients: list[list[float]], p: list[float]) -> list[float]:
    return [
        sum(w * g[i] for w, g in zip(p, gradients, strict=True)) for i in range(len(gradients[0]))
    ]


def objective(
    gradients: list[list[float]], weights: list[float], c: float, p: list[float]
) -> float:
    g_0, g_p = mix(gradients, weights), mix(gradients, p)
    return dot(g_p, g_0) + c * math.sqrt(dot(g_0, g_0) * dot(g_p, g_p))


def clipped_step(
    gradients: list[list[float]], weights: list[float], c: float, p: list[float]
) -> list[float]:
    g_0, g_p = (
        mix(gradients, weights),
        mix(gradients, [min(a, w) for a, w in zip(p, weights, strict=True)]),
    )
    scale = c * math.sqrt(dot(g_0, g_0) / dot(g_p, g_p)) if dot(g_p, g_p) > 0 else 0.0
    return [a + scale * b for a, b in zip(g_0, g_p, strict=True)]


def closed_form(gradients: list[list[float]], weights: list[float], c: float) -> list[float]:
    """p* of two gradients: an end, or a root of the derivative's quadratic."""
    (a, b), g_0 = gradients, mix(gradients, weights)
    gap = [x - y for x, y in zip(a, b, strict=True)]
    slope, k = dot(gap, g_0), c * math.sqrt(dot(g_0, g_0))
    # |g_p|^2 = square t^2 + 2 cross t + rest
    square, cross, rest = dot(gap, gap), dot(gap, b), dot(b, b)
    # slope^2 |g_p|^2 = k^2 (square t + cross)^2
    qa, qb = k * k * square * square - slope**2 * square, 2 * cross * (k * k * square - slope**2)
    qc = k * k * cross**2 - slope**2 * rest
    inside = qb * qb - 4 * qa * qc
    roots = (
        [(-qb + s * math.sqrt(inside)) / (2 * qa) for s in (1, -1)] if qa and inside >= 0 else []
    )
    candidates = [0.0, 1.0, *(t for t in roots if 0 <= t <= 1)]
    best = min(candidates, key=lambda t: objective(gradients, weights, c, [t, 1 - t]))
    return [best, 1 - best]


def test_two_gradients_are_combined_as_the_closed_form_says(found: dict[str, Any]) -> None:
    for (gradients, weights, c), (step, _) in zip(TWO, found["combined"], strict=False):
        expected = clipped_step(gradients, weights, c, closed_form(gradients, weights, c))
        assert step == pytest.approx(mix(gradients, weights) if c == 0 else expected, abs=1e-6)
    (_, coefficients), (_, alike) = found["combined"][len(TWO) : len(TWO) + 2]
    p_2 = closed_form(*BY_HAND[0])[1]
    # p* = (0.3561, 0.6439) is clipped to (0.2, 0.6439)
    assert p_2 == pytest.approx(0.6439, abs=1e-4)
    g_p = mix(BY_HAND[0][0], [0.2, p_2])
    scale = 0.5 * 0.6 / math.sqrt(dot(g_p, g_p))  # g_0 = (-0.6, 0)
    assert coefficients == pytest.approx([0.2 + scale * 0.2, 0.8 + scale * p_2])
    assert sum(alike) == pytest.approx(1.4)  # equal gradients: (1 + c) times


def test_three_gradients_reach_the_least_value_on_a_grid(found: dict[str, Any]) -> None:
    n = 60
    grid = [[i / n, j / n, (n - i - j) / n] for i in range(n + 1) for j in range(n + 1 - i)]
    for (gradients, weights, c), (step, _) in zip(
        THREE, found["combined"][-len(THREE) :], strict=True
    ):
        best = min(grid, key=lambda p: objective(gradients, weights, c, p))
        near = clipped_step(gradients, weights, c, best)
        assert math.dist(step, near) < 0.06 * math.sqrt(dot(near, near))


def test_one_head_is_plain_dpo(found: dict[str, Any]) -> None:
    assert found["single"]["losses"] == pytest.approx(found["dpo"]["losses"], abs=1e-5)
    assert found["same_weights"] < 1e-4 and found["single"]["pairs"] == found["dpo"]["pairs"] == 40


def test_heads_learn_what_contradicts_and_any_weights_are_a_model(found: dict[str, Any]) -> None:
    heads = found["heads"]
    assert heads["reward_margin_helpful_last"] > 0.1 and heads["reward_margin_harmless_last"] > 0.1
    assert (
        heads["weights"] == [0.25, 0.75]
        and heads["pairs_helpful"] == 40
        and heads["pairs_harmless"] == 32
    )
    assert max(found["merged_error"]) < 1e-4 < found["heads_differ"]
    assert found["lora_logits"] and found["lora"]["steps"] == 2


def test_conflicting_pairs_are_aligned_and_weighted(found: dict[str, Any]) -> None:
    m = found["raco"]
    assert m["pairs"] == 64 and m["pairs_not_aligned"] == 8 and m["weights"] == [0.75, 0.25]
    assert m["coefficient_helpful_last"] >= 0.75 and m["coefficient_harmless_last"] >= 0.25
    steered = found["steered"]
    assert (
        steered["coefficient_helpful_last"] == pytest.approx(0.75)
        and steered["reward_margin_helpful_last"] > 0
    )
    assert steered["reward_margin_helpful_last"] == pytest.approx(
        -steered["reward_margin_harmless_last"], abs=1e-4
    )
    assert found["accumulated"]["losses"][1:] == pytest.approx(steered["losses"][1:], abs=1e-4)


def test_bad_settings_are_one_line(found: dict[str, Any]) -> None:
    batch, weights, c, head = found["refused"]
    assert (
        "per_device_train_batch_size=3: must be a multiple of 2, one pair in each of helpful,"
        " harmless" in batch
    )
    assert (
        "has no pairs of 'helpfull'; it has: helpful, harmless" in weights
        and "c = 1.5: must be from 0 to under 1" in c
    )
    assert "weights names 'truthful', which is no head of" in head


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mahdpo", "raco"])
def test_smoke_config(folder: Path, tmp_path: Path, name: str) -> None:
    command = [
        sys.executable,
        str(RECIPES / f"{name}.py"),
        "--config",
        str(RECIPES / name / "smoke.yaml"),
        f"dataset={folder}",
        f"output_dir={tmp_path}",
    ]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, check=False, env=env
    )
    assert done.returncode == 0, done.stderr[-2000:]
    m = json.loads((tmp_path / "metrics.json").read_text("utf-8"))
    assert m["recipe"] == name and m["cpu_seconds"] < 120
    card = (tmp_path / "README.md").read_text("utf-8")
    assert f"# {name} on" in card and "config preference_by_dim" in card
