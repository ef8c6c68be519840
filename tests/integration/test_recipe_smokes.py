"""Every recipe's smoke config, run as a user runs it: SFT in the process that the tests share, the
others in processes of their own (make test-slow). DPO has a file of its own."""

from __future__ import annotations

import http.server
import importlib.util
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from support.published import MESSAGES, write_dataset, write_table
from support.recipe_cases import RECIPES, Recipes

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
pytestmark = [
    pytest.mark.train,
    pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="needs the train extra"),
]


def recipe(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a recipe with its smoke config, offline and where no GPU is seen."""
    command = [
        sys.executable,
        str(RECIPES / f"{name}.py"),
        "--config",
        str(RECIPES / name / "smoke.yaml"),
        *arguments,
    ]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=900, check=False, env=ENVIRONMENT
    )


def trained(done: subprocess.CompletedProcess[str], out: Path) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads((out / "metrics.json").read_text("utf-8"))
    return found


def refused(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr[-2000:]
    return next(line for line in done.stderr.splitlines() if line.startswith("error: "))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("published"))


def test_sft_learns_from_a_mix_and_its_card_says_on_what(
    recipes: Recipes, folder: Path, tmp_path: Path
) -> None:
    mix = f"dataset_mix={{original: {folder}, fraction: 0.25}}"
    smoke = ("--config", RECIPES / "sft" / "smoke.yaml")
    more = (f"dataset={folder}", f"output_dir={tmp_path}", mix, "max_length=30", "max_steps=12")
    done = recipes.run("sft.py", *smoke, *more)
    m = trained(done, tmp_path)
    assert m["loss_last"] < m["loss_first"] - 0.5 and m["rows"] == 112 + 28
    assert m["rows_longer_than_max_length"] > 100 and "are longer than max_length=30" in done.stderr
    card = (tmp_path / "README.md").read_text("utf-8")
    head = yaml.safe_load(card.split("---")[1])
    assert (
        head["tags"] == ["trl", "sft"]
        and str(tmp_path) not in card
        and str(folder.parent) not in card
    )
    assert (
        f"local folder {folder.name}" in card
        and "config sft, 0.25 of its rows added" in card
        and "| loss_last |" in card
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpo", "sft"])
def test_in_a_process_of_its_own(folder: Path, tmp_path: Path, name: str) -> None:
    """What the tests of `make test` ask the shared process, asked as a user does."""
    done = recipe(name, f"dataset={folder}", f"output_dir={tmp_path}", "max_steps=2")
    assert trained(done, tmp_path)["recipe"] == name and "metrics.json" in done.stdout


@pytest.mark.slow
def test_kto_weighs_the_rarer_label(folder: Path, tmp_path: Path) -> None:
    m = trained(recipe("kto", f"dataset={folder}", f"output_dir={tmp_path}"), tmp_path)
    assert m["reward_chosen_last"] - m["reward_rejected_last"] > 0.5
    n_false = m["rows"] - m["rows_true"]
    assert m["rows_true"] > n_false and m["undesirable_weight"] == pytest.approx(
        m["rows_true"] / n_false
    )
    assert m["desirable_weight"] == 1


class Rewards(http.server.BaseHTTPRequestHandler):
    """A reward service and a vLLM-shaped /classify; the first request of each is refused with
    503."""

    refused: set[str]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        first = self.path not in self.refused
        self.refused.add(self.path)
        if self.path == "/classify":
            assert body["messages"][-1]["role"] == "assistant" and body["use_activation"] is False
            reply: dict[str, Any] = {
                "data": [{"probs": [len(body["messages"][-1]["content"]) / 100]}]
            }
        elif self.path == "/short":
            reply = {"rewards": [1.0]}
        else:
            reply = {
                "rewards": [None if i == 0 else 0.1 * i for i, _ in enumerate(body["completions"])]
            }
        text = json.dumps(reply).encode()
        self.send_response(503 if first else 200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture()
def rewards() -> Iterator[str]:
    handler = type("Handler", (Rewards,), {"refused": set()})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_grpo_asks_reward_endpoints_and_a_function_of_a_file(
    folder: Path, tmp_path: Path, rewards: str
) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(
        "def words(completions, **columns):\n    return [len(c[-1]['content'].split()) for c in"
        " completions]\n"
    )
    named = f"rewards=[rm={rewards}/classify, custom={rewards}/score, words={mine}:words]"
    done = recipe(
        "grpo",
        f"dataset={folder}",
        f"output_dir={tmp_path}",
        named,
        "reward_weights=[1, 0.5, 0.1]",
        "max_steps=2",
    )
    m = trained(done, tmp_path)
    assert (
        m["steps"] == 2
        and m["reward_rm_last"] > 0
        and m["reward_custom_last"] == pytest.approx(0.4, abs=0.15)
    )
    assert m["reward_words_last"] > 0
    short = recipe(
        "grpo",
        f"dataset={folder}",
        f"output_dir={tmp_path}",
        f"rewards=[x={rewards}/short]",
        "reward_weights=[1]",
    )
    assert "must answer with 8 numbers or nulls" in refused(short)


@pytest.mark.slow
def test_sequential_goes_on_in_the_stage_it_stopped_in(folder: Path, tmp_path: Path) -> None:
    common = (
        f"dataset={folder}",
        f"output_dir={tmp_path}",
        "stages=[helpful, harmless]",
        "max_steps=4",
        "warmup_steps=1",
    )
    m = trained(recipe("sequential", *common), tmp_path)
    assert [s["config"] for s in m["stages"]] == ["stage1_helpful", "default"] or m["stages"][1][
        "pairs"
    ] == 106
    assert m["stages"][1]["pairs"] == 96 + 10 and m["stages"][1]["model"] == str(
        tmp_path / "1-helpful"
    )
    before = sorted(p for p in tmp_path.rglob("*") if p.is_file())
    dry = recipe("sequential", *common, "dry_run=true")
    assert dry.returncode == 0 and dry.stdout.count("steps   4 of ") == 2
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == before
    weights = (tmp_path / "1-helpful" / "model.safetensors").read_bytes()
    second = (tmp_path / "2-harmless" / "model.safetensors").read_bytes()
    (tmp_path / "2-harmless" / "metrics.json").unlink()  # as if it had been killed there
    done = recipe("sequential", *common, "resume=true")
    again = trained(done, tmp_path)
    assert "stage 1 of 2" not in done.stderr and "stage 2 of 2" in done.stderr
    assert (tmp_path / "1-helpful" / "model.safetensors").read_bytes() == weights != second
    assert (tmp_path / "2-harmless" / "model.safetensors").read_bytes() == second
    assert again["stages"][1]["loss_last"] == m["stages"][1]["loss_last"]
    other = recipe("sequential", *common, "resume=true", "beta=0.2")
    assert "was begun with other settings" in refused(other)


@pytest.mark.slow
def test_evaluate_answers_once_and_measures_how_far_a_model_is_from_its_reference(
    tmp_path: Path,
) -> None:
    messages = [[{"role": "user", "content": f"Question {i}, and is it safe?"}] for i in range(6)]
    rows = {
        "prompt": pa.array(messages, MESSAGES),
        "source_prompt": [f"question {i}" for i in range(6)],
        "arm": ["fused"] * 6,
    }
    write_table(tmp_path / "data", "prompt_only", "test", pa.table(rows))
    for seed in (0, 1):
        make = [
            sys.executable,
            str(RECIPES / "tiny_model.py"),
            str(tmp_path / str(seed)),
            "--seed",
            str(seed),
        ]
        subprocess.run(make, check=True, capture_output=True)
    common = (
        f"dataset={tmp_path / 'data'}",
        "config=default",
        f"model={tmp_path / '0'}",
        "max_new_tokens=8",
    )
    done = recipe(
        "evaluate", *common, f"reference={tmp_path / '1'}", f"output_dir={tmp_path / 'out'}"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    file = tmp_path / "out" / "answers.jsonl"
    whole = file.read_text("utf-8")
    found = [json.loads(line) for line in whole.splitlines()]
    assert len(found) == 12 and found[0]["prompt"] == [{"role": "user", "content": "question 0"}]
    assert sum(r["kl"] for r in found) / 12 > 0.1 and all(r["tokens"] <= 8 for r in found)
    file.write_text("".join(whole.splitlines(keepends=True)[:5]))  # as if it had been killed
    assert (
        recipe(
            "evaluate", *common, f"reference={tmp_path / '1'}", f"output_dir={tmp_path / 'out'}"
        ).returncode
        == 0
    )
    assert file.read_text("utf-8") == whole
    other = recipe("evaluate", *common, "temperature=0", f"output_dir={tmp_path / 'out'}")
    assert "holds answers of other settings" in refused(other)
    choices = tmp_path / "mc.json"
    right, wrong = {"yes": 1, "it is, always and ever": 1}, {"no, it is not": 0, "perhaps": 0}
    choices.write_text(
        json.dumps(
            [
                {
                    "question": "Is it?",
                    "mc1_targets": {"yes": 1, **wrong},
                    "mc2_targets": right | wrong,
                }
            ]
        )
    )
    done = recipe(
        "evaluate",
        *common,
        f"choices={choices}",
        f"reference={tmp_path / '1'}",
        f"output_dir={tmp_path / 'out'}",
    )
    assert done.returncode == 0 and file.read_text("utf-8") == whole, done.stderr[-2000:]
    found_choice = json.loads((tmp_path / "out" / "choices.jsonl").read_text("utf-8"))
    sums = {answer: log_probability(tmp_path / "0", "Is it?", answer) for answer in right | wrong}
    weights = {answer: math.exp(s - max(sums.values())) for answer, s in sums.items()}
    assert found_choice["mc2"] == pytest.approx(
        sum(weights[a] for a in right) / sum(weights.values()), rel=1e-3
    )
    assert found_choice["answer"] == max(("yes", *wrong), key=lambda a: sums[a])
    assert found_choice["mc1"] == (found_choice["answer"] == "yes")


def log_probability(folder: Path, question: str, answer: str) -> float:
    """log p of the answer's tokens, one at a time, without padding."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = (
        AutoTokenizer.from_pretrained(folder),
        AutoModelForCausalLM.from_pretrained(folder),
    )
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    ids, total = tokenizer(asked, add_special_tokens=False)["input_ids"], 0.0
    for token in tokenizer(answer, add_special_tokens=False)["input_ids"]:
        with torch.no_grad():
            total += model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)[token].item()
        ids.append(token)
    return total


def test_every_order_has_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(RECIPES))
    sequential, run = __import__("sequential"), []
    monkeypatch.setattr(
        sequential,
        "run_order",
        lambda own, values: run.append((own.stages, own.output_dir, values)),
    )
    sequential.work(
        None,
        [
            "dataset=d",
            "model=tiny",
            "output_dir=out",
            "stages=[a, b, c]",
            "all_orders=true",
            "beta=0.2",
        ],
    )
    assert len(run) == 6 and all(
        folder == f"out/{'-'.join(stages)}" and values == {"beta": 0.2}
        for stages, folder, values in run
    )
    sequential.work(None, ["dataset=d", "model=tiny", "output_dir=out", "stages=[a, b]"])
    assert run[6:] == [(["a", "b"], "out", {})]


def test_stages_take_the_config_that_was_built_after_the_same_dimensions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(RECIPES))
    config_of = __import__("sequential").config_of
    configs = [
        "preference",
        "preference_a",
        "preference_b",
        "preference_c",
        "stage1_a",
        "stage2_b",
        "stage3_c",
    ]
    assert [config_of(*s, configs) for s in (("a", []), ("b", ["a"]), ("c", ["b", "a"]))] == [
        "stage1_a",
        "stage2_b",
        "stage3_c",
    ]
    assert (
        config_of("b", [], configs) == "preference_b"
        and config_of("c", ["a"], configs) == "preference_c"
    )
    assert config_of("stage2_b", [], configs) == "stage2_b" and config_of("d", [], configs) is None
