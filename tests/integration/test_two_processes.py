"""Every training recipe on two processes (gloo, CPU), a few steps of its smoke config
(make test-slow)."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support.published import write_dataset, write_table
from support.recipe_cases import RECIPES
from test_dimension_recipes import SCHEMA, rows

pytestmark = [
    pytest.mark.train,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="needs the train extra"),
]
TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
# what `recipe run` adds to a stage; --multi_gpu is accelerate's word for torchrun
STAGES = (
    "stages=[helpful, harmless]",
    "stage_launch=--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no"
    " --dynamo_backend no --main_process_port 0",
)
# settings of each; the batches of a dimension recipe hold other dimensions on each process
CASES: dict[str, tuple[str, ...]] = {
    "sft": (),
    "dpo": ("eval_split=test",),
    "kto": (),
    "grpo": (),
    "reward": ("config=preference",),
    "sequential": STAGES,
    "mahdpo": ("per_device_train_batch_size=3", "eval_split=test", "gradient_checkpointing=true"),
    "raco": ("per_device_train_batch_size=2", "eval_split=test", "precompute_ref_log_probs=true"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published dataset, with pairs by dimension."""
    out = write_dataset(tmp_path_factory.mktemp("published"))
    table = pa.Table.from_pylist(rows(40), SCHEMA)
    write_table(out, "preference_by_dim", "train", table)
    write_table(out, "preference_by_dim", "test", table.slice(60))
    entry = (
        "- config_name: preference_by_dim\n  data_files:\n"
        "  - {split: train, path: preference_by_dim/train-*}\n"
        "  - {split: test, path: preference_by_dim/test-*}\n"
    )
    card = (out / "README.md").read_text("utf-8")
    (out / "README.md").write_text(card.replace("configs:\n", f"configs:\n{entry}", 1), "utf-8")
    return out


def run(name: str, folder: Path, out: Path, *settings: str, start: tuple[str, ...] = TWO) -> Any:
    """metrics.json of a recipe's run."""
    done = subprocess.run(
        [
            *(sys.executable, *start, str(RECIPES / f"{name}.py")),
            *("--config", str(RECIPES / name / "smoke.yaml")),
            *(f"dataset={folder}", f"output_dir={out}", "max_steps=2", *settings),
        ],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
        },
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((out / "metrics.json").read_text("utf-8"))


@pytest.mark.parametrize("name", CASES)
def test_trains_on_two_processes(folder: Path, tmp_path: Path, name: str) -> None:
    start = () if name == "sequential" else TWO
    m = run(name, folder, tmp_path / "out", *CASES[name], start=start)
    assert m["recipe"] == name
    for stage in m.get("stages", [m]):
        assert stage["steps"] == 2 and stage["loss_last"] is not None


def test_the_processes_take_one_step_together(folder: Path, tmp_path: Path) -> None:
    """Gradients that are combined by hand are those of all processes, whichever way a step's pairs
    are cut: two processes with two micro-batches of two, or one with eight."""
    same = ("weights={helpful: 3, harmless: 1}", "max_steps=4")
    cut = ("per_device_train_batch_size=2", "gradient_accumulation_steps=2")
    two = run("raco", folder, tmp_path / "two", *same, *cut)
    one = run("raco", folder, tmp_path / "one", *same, "per_device_train_batch_size=8", start=())
    for name in ("loss_last", "reward_margin_helpful_last", "coefficient_helpful_last"):
        assert two[name] == pytest.approx(one[name], abs=1e-3)
