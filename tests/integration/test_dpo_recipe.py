"""The DPO recipe's command lines, on a dataset folder in the published layout."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from support.published import MESSAGES, write_dataset, write_table
from support.recipe_cases import RECIPES, Recipes

SMOKE = ["--config", str(RECIPES / "dpo" / "smoke.yaml")]
Run = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = [
    pytest.mark.train,
    pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="needs the train extra"),
]


@pytest.fixture(scope="module")
def dpo(recipes: Recipes) -> Run:
    """Runs dpo.py with the smoke config."""
    return lambda *arguments: recipes.run("dpo.py", *SMOKE, *arguments)


def metrics(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "metrics.json").read_text("utf-8"))
    return found


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one error line of a run that ended with exit code 1 and no traceback."""
    assert done.returncode == 1, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    (line,) = (x for x in done.stderr.splitlines() if x.startswith("error: "))
    return line


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("published"))


def test_smoke_config_learns_in_two_minutes_of_cpu(dpo: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = dpo(f"dataset={folder}", f"output_dir={out}", "eval_split=test")
    assert done.returncode == 0, done.stderr[-2000:]
    m = metrics(out)
    assert m["loss_last"] < 0.2 < m["loss_first"]
    assert m["reward_margin_last"] > m["reward_margin_first"] + 0.5
    assert m["steps"] == 30 and m["cpu_seconds"] < 120 and m["logged_steps_averaged"] == 5
    assert (m["dataset"], m["revision"], m["model"], m["pairs"]) == (str(folder), None, "tiny", 96)
    assert m["pairs_longer_than_max_length"] == m["pairs_left_out"] == 0
    assert m["eval_accuracy"] > 0.9
    assert (out / "model.safetensors").is_file() and f"{out / 'metrics.json'}" in done.stdout


def test_lora_weighted_losses_and_long_pairs(dpo: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    mixed = ("loss_type=[sigmoid, sft]", "loss_weights=[1, 0.1]")
    short = ("max_steps=3", "max_length=40", "learning_rate=1e-3")
    done = dpo(f"dataset={folder}", f"output_dir={out}", "lora=true", *mixed, *short)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (out / "adapter_model.safetensors").is_file()
    assert 0 < metrics(out)["pairs_longer_than_max_length"] <= 96
    assert "longer than max_length=40" in done.stderr


def test_a_killed_run_resumes_to_the_same_loss(dpo: Run, folder: Path, tmp_path: Path) -> None:
    common = (
        f"dataset={folder}",
        "save_strategy=steps",
        "save_steps=3",
        "max_steps=6",
        "save_model=false",
    )
    assert dpo(*common, f"output_dir={tmp_path / 'whole'}").returncode == 0
    whole = metrics(tmp_path / "whole")
    curve = losses(tmp_path / "whole" / "checkpoint-6")
    for later in ("checkpoint-6", "metrics.json"):  # as if it had been killed after step 3
        target = tmp_path / "whole" / later
        target.rename(tmp_path / later)
    done = dpo(*common, f"output_dir={tmp_path / 'whole'}", "resume=true")
    assert done.returncode == 0 and "resuming from" in done.stderr
    again = metrics(tmp_path / "whole")
    assert again["steps"] == 6
    assert again["loss_last"] == pytest.approx(whole["loss_last"], abs=1e-6)
    assert again["loss_first"] == pytest.approx(whole["loss_first"], abs=1e-6)
    assert len(curve) == 6 and losses(tmp_path / "whole" / "checkpoint-6") == pytest.approx(
        curve, abs=1e-6
    )


def losses(checkpoint: Path) -> list[float]:
    """The loss of every step up to a checkpoint."""
    return [
        h["loss"]
        for h in json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))["log_history"]
        if "loss" in h
    ]


def test_a_loss_that_is_not_a_number_stops_the_run(dpo: Run, folder: Path, tmp_path: Path) -> None:
    """The first step has a learning rate of 0, so that its checkpoint is good; the second step's
    weights are not."""
    done = dpo(
        f"dataset={folder}",
        f"output_dir={tmp_path}",
        "learning_rate=1e30",
        "warmup_steps=2",
        "max_grad_norm=0",
        "save_strategy=steps",
        "save_steps=1",
        "save_total_limit=2",
    )
    said = refused(done)
    assert (
        "error: the loss is nan in step 3: stopped" in said
        and f"the last checkpoint is {tmp_path / 'checkpoint-1'}" in said
    )
    assert (
        not (tmp_path / "metrics.json").exists() and not (tmp_path / "model.safetensors").exists()
    )
    assert (tmp_path / "checkpoint-1" / "model.safetensors").is_file() and not (
        tmp_path / "checkpoint-2"
    ).exists()


def test_a_dry_run_counts_and_trains_nothing(dpo: Run, folder: Path, tmp_path: Path) -> None:
    done = dpo(f"dataset={folder}", f"output_dir={tmp_path}", "dry_run=true", "max_length=30")
    assert done.returncode == 0, done.stderr[-2000:]
    rows, steps, memory = done.stdout.splitlines()
    assert rows.startswith("rows    96 pairs, ") and "the first are rows 0, 1, 2" in rows
    assert "96 are longer than max_length=30" in rows and " 5760 tokens" not in steps
    assert steps.startswith("steps   30 of 4 pairs on 1 processes, 1.25 epochs, ")
    assert memory.startswith("memory  0.0")
    assert not (tmp_path / "metrics.json").exists()


def test_accelerate_takes_the_flags_of_every_config() -> None:
    """Those of several GPUs, and DeepSpeed's as docs/train.md gives them."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    page = (RECIPES.parent / "docs" / "train.md").read_text("utf-8")
    configs = [yaml.safe_load(f.read_text("utf-8")) for f in RECIPES.glob("*/multi-gpu.yaml")]
    flags = {c.get("launch") or c["stage_launch"] for c in configs}
    flags |= set(re.findall(r'"launch=(.+?)"', page))
    assert len(configs) == 8 and any("use_deepspeed" in f for f in flags)
    for text in flags:
        args = launch_command_parser().parse_args([*shlex.split(text), "dpo.py"])
        args = _validate_launch_command(args)[0]
        assert args.use_fsdp or args.use_deepspeed
        assert args.training_script == "dpo.py" and args.mixed_precision == "bf16"


BAD_INPUT = [
    (["dataset=/nowhere/at/all"], "no dataset folder /nowhere/at/all"),
    (["dataset=FOLDER", "revision=v1.0.0"], "revision=v1.0.0 means nothing for the local folder"),
    (
        ["dataset=FOLDER", "config=preferences"],
        "has no config 'preferences'; it has: preference, preference_harmless",
    ),
    (
        ["dataset=FOLDER", "config=prompt_only"],
        "lacks chosen, rejected among its columns; configs with them: preference, pref",
    ),
    (
        ["dataset=FOLDER", "dataset_mix={original: FOLDER}"],
        "give {original: folder or Hub id, fraction: 0 to 1}",
    ),
    (
        ["dataset=FOLDER", "dataset_mix={original: FOLDER, fraction: 2}"],
        "give {original: folder or Hub id, fraction: 0 to 1}",
    ),
    (["dataset=FOLDER", "loss_type=["], "can't read the settings"),
    (["dataset=FOLDER", "split=validation"], "has no split 'validation'; it has: train, test"),
    (["dataset=FOLDER", "use_cpu=false"], "no GPU is visible: give use_cpu=true"),
    (["dataset=FOLDER", "model=/nowhere"], "can't load model /nowhere"),
    (["dataset=FOLDER", "max_length=5"], "all 96 pairs are too long for max_length=5"),
    (
        ["dataset=FOLDER", "loss_type=sigmod"],
        "training failed in step 1: Unknown loss type: sigmod",
    ),
    (["dataset=FOLDER", "betta=1"], "unknown key 'betta': did you mean 'beta'?"),
    (["dataset=FOLDER", "trust_remote_code=true"], "unknown key 'trust_remote_code'"),
    (["dataset=FOLDER", "max_steps=many"], "max_steps: invalid int value: 'many'"),
    (["max_steps=1"], "missing: dataset"),
    (["dataset=STRINGS", "config=default"], "prompt is a string where a message list is wanted"),
    (["dataset=FOLDER", "model=BARE"], "has no chat template"),
    (["dataset=FOLDER", "launch=--use_fsdp"], "accelerate launch --use_fsdp dpo.py"),
    (["dataset=/nowhere/at/all", "report_to=clearml"], "report_to=clearml: its package is not"),
    (["dataset=FOLDER", "report_to=wandbee"], "report_to=wandbee: give none, or one of azure_ml,"),
    (["dataset=FOLDER", "model=ENDLESS"], "<|im_end|>', but the model stops at '<|endoftext|>'"),
]


def string_prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out, answer = (
        tmp_path_factory.mktemp("strings"),
        pa.array([[{"role": "assistant", "content": "yes"}]], MESSAGES),
    )
    write_table(
        out,
        "preference",
        "train",
        pa.table({"prompt": ["a question"], "chosen": answer, "rejected": answer}),
    )
    return out


def bare_model(recipes: Recipes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokenizer has no chat template; beside it `endless`, whose template ends an
    answer with a token that the model does not stop at."""
    out = tmp_path_factory.mktemp("models") / "base"
    assert recipes.run("tiny_model.py", out).returncode == 0
    shutil.copytree(out, endless := out.with_name("endless"))
    (out / "chat_template.jinja").unlink()
    (endless / "generation_config.json").unlink()
    file = endless / "tokenizer_config.json"
    known = json.loads(file.read_text("utf-8")) | {"eos_token": "<|endoftext|>"}
    file.write_text(json.dumps(known), "utf-8")
    return out


@pytest.fixture(scope="module")
def bad_input_replies(
    recipes: Recipes, dpo: Run, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[int, str, Path]]:
    """Exit code, stderr and output folder of each case."""
    outs = [tmp_path_factory.mktemp("bad") for _ in BAD_INPUT]
    bare = bare_model(recipes, tmp_path_factory)
    places = {
        "FOLDER": folder,
        "STRINGS": string_prompts(tmp_path_factory),
        "BARE": bare,
        "ENDLESS": bare.with_name("endless"),
    }
    filled = [
        [re.sub("FOLDER|STRINGS|BARE|ENDLESS", lambda m: str(places[m[0]]), a) for a in arguments]
        for arguments, _ in BAD_INPUT
    ]
    found = [dpo(*a, f"output_dir={out}") for a, out in zip(filled, outs, strict=True)]
    return [(done.returncode, done.stderr, out) for done, out in zip(found, outs, strict=True)]


@pytest.mark.parametrize("case", range(len(BAD_INPUT)), ids=[" ".join(a) for a, _ in BAD_INPUT])
def test_bad_input_is_one_line(bad_input_replies: list[tuple[int, str, Path]], case: int) -> None:
    code, said, out = bad_input_replies[case]
    (line,) = (x for x in said.splitlines() if x.startswith("error: "))
    assert code == 1 and BAD_INPUT[case][1] in line
    assert not (out / "metrics.json").exists()
