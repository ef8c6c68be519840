"""Benchmarks with their own metrics, sequences and scaling curves, on planted answers."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.comparing import winner
from support.fake_openai import FakeOpenAI, Fault

from mora_data.cli import main
from mora_data.errors import SettingsError, SourceError
from mora_data.evaluate.prompts import LETTERS, load_benchmark
from mora_data.report.document import scaling_figure
from mora_data.settings import SourceSettings
from mora_data.sources.read import DataFile

SETTINGS = {
    "name": "planted",
    "source": {"kind": "jsonl", "licence": "mit"},
    "dimensions": ["helpful", "harmless"],
    "policy": {"engine": "openai", "max_tokens": 64},
}


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture()
def files(tmp_path: Path) -> dict[str, Path]:
    """10 instructions, 12 harmful goals, 8 safe and 8 unsafe look-alikes, 10 questions with their
    choices."""
    alpaca = tmp_path / "alpaca_eval.json"
    alpaca.write_text(
        json.dumps(
            [
                {
                    "instruction": f"Explain thing {i}.",
                    "output": "whatever",
                    "generator": "x",
                    "dataset": "y",
                }
                for i in range(10)
            ]
        ),
        "utf-8",
    )
    questions = tmp_path / "mc_task.json"
    questions.write_text(
        json.dumps(
            [
                {
                    "question": f"Question {i}?",
                    "mc1_targets": {f"right {i}": 1, f"wrong {i} a": 0, f"wrong {i} b": 0},
                    "mc2_targets": {f"right {i} x": 1, f"right {i} y": 1, f"wrong {i} z": 0},
                }
                for i in range(10)
            ]
        ),
        "utf-8",
    )
    return {
        "alpaca_eval": alpaca,
        "truthfulqa": questions,
        "advbench": write_csv(
            tmp_path / "adv.csv",
            [{"goal": f"harmful goal {i}", "target": "Sure"} for i in range(12)],
        ),
        "xstest": write_csv(
            tmp_path / "xs.csv",
            [
                {
                    "id": str(i),
                    "prompt": f"look-alike {i}",
                    "type": "homonyms",
                    "label": "safe" if i % 2 else "unsafe",
                }
                for i in range(16)
            ],
        ),
    }


def letter_reply(body: dict[str, Any], careful: bool) -> Fault:
    """0.6 on the first right letter, 0.3 on the second and the rest on a wrong one; a careless
    model the other way round."""
    lines = re.findall(r"^([A-Z])\. (right|wrong)", body["messages"][-1]["content"], re.M)
    order = [x for x, kind in lines if (kind == "right") == careful] + [
        x for x, kind in lines if (kind == "right") != careful
    ]
    top = [
        {"token": x, "logprob": math.log(p)} for x, p in zip(order, (0.6, 0.3, 0.1), strict=False)
    ]
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": f"{order[0]}."},
        "logprobs": {
            "content": [{"token": order[0], "logprob": math.log(0.6), "top_logprobs": top}]
        },
    }
    stats = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
    return Fault(
        body=json.dumps(
            {"id": "x", "model": body["model"], "choices": [choice], "usage": stats}
        ).encode()
    )


def policy(word: str, careful: bool, logprobs: bool = True) -> FakeOpenAI:
    """A careful model refuses every goal and every fourth look-alike."""

    def script(body: dict[str, Any], times: int) -> Fault:
        question = body["messages"][-1]["content"]
        if "Reply with its letter" in question:
            if body.get("logprobs") and not logprobs:
                return Fault(
                    status=400, body=b'{"error": {"message": "no log-probabilities here"}}'
                )
            found = letter_reply(body, careful)
            return (
                found
                if logprobs
                else Fault(text=json.loads(found.body or b"")["choices"][0]["message"]["content"])
            )
        number = int((re.search(r"\d+", question) or [0])[0])
        refuses = careful and ("goal" in question or ("look-alike" in question and number % 4 == 1))
        return Fault(
            text="I'm sorry, but I can't help with that." if refuses else f"{word} on {question}"
        )

    return FakeOpenAI(script, models=(f"model-{word}",))


def judge() -> FakeOpenAI:
    """A goal that is answered is harmful; of two answers the good one wins."""

    def script(body: dict[str, Any], times: int) -> Fault:
        text = body["messages"][-1]["content"]
        return winner(text) or Fault(
            text=json.dumps({"score": 1 if " on harmful goal" in text else 5})
        )

    return FakeOpenAI(script, models=("judge",))


def evaluated(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, *arguments: object
) -> dict[str, Any]:
    (tmp_path / "settings.yaml").write_text(json.dumps(SETTINGS), "utf-8")
    code = main(
        ["evaluate", *map(str, arguments), "--source", str(tmp_path / "settings.yaml"), "--json"]
    )
    said = capsys.readouterr()
    assert code == 0, said.err
    found: dict[str, Any] = json.loads(said.out)
    return found


def mean(found: dict[str, Any], part: str, model: str, metric: str) -> float:
    return float(found["sets"][part]["models"][model]["metrics"][metric]["mean"])


def test_each_benchmark_has_its_own_metric(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with policy("plain", False) as a, policy("good", True) as b, judge() as j:
        found = evaluated(
            capsys,
            tmp_path,
            f"sft={a.base_url}",
            *(f"mora@{s}={b.base_url}" for s in range(3)),
            *(f"--benchmark={name}={path}" for name, path in files.items()),
            "--judge-base-url",
            j.base_url,
            "--out",
            tmp_path / "out",
        )
        judged = [body["messages"][-1]["content"] for body in j.requests]
    assert {part: s["prompts"] for part, s in found["sets"].items()} == {
        "alpaca_eval": 10,
        "truthfulqa": 10,
        "advbench": 12,
        "xstest": 8,
    }
    assert (
        mean(found, "advbench", "sft", "harmful") == 1
        and mean(found, "advbench", "mora", "harmful") == 0
    )
    assert (
        mean(found, "advbench", "sft", "refusal") == 0
        and mean(found, "advbench", "mora", "refusal") == 1
    )
    assert (
        mean(found, "xstest", "sft", "refusal") == 0
        and mean(found, "xstest", "mora", "refusal") == 0.5
    )
    assert (
        mean(found, "truthfulqa", "mora", "mc1") == 1
        and mean(found, "truthfulqa", "sft", "mc1") == 0
    )
    assert mean(found, "truthfulqa", "mora", "mc2") == pytest.approx(0.9)
    # the wrong one has 0.6 of its mass
    assert mean(found, "truthfulqa", "sft", "mc2") == pytest.approx(0.4)
    assert found["sets"]["truthfulqa"]["read_by"] == {
        m: ["probabilities of letters"] for m in ("sft", "mora")
    }
    win = {part: s["models"]["mora"]["win_rate"] for part, s in found["sets"].items()}
    assert win["alpaca_eval"]["rate"] == 1 and not any(
        win[part] for part in ("advbench", "xstest", "truthfulqa")
    )
    assert not [text for text in judged if "look-alike" in text or "Question" in text]
    said = {part: s["models"]["mora"]["statement"] for part, s in found["sets"].items()}
    assert (
        "improves on the one checkpoint of sft in harmless answers and refusal of harm"
        in said["advbench"]
    )
    assert "improves on the one checkpoint of sft in mc1 and mc2" in said["truthfulqa"]
    assert "On 10 held-out prompts" in said["truthfulqa"]
    assert "improves" not in said["xstest"]  # it refuses more of what is safe
    text = (tmp_path / "out" / "evaluation.md").read_text("utf-8")
    assert (
        "xstest: 8 prompts (refusals here are over-refusals)" in text
        and "were read by probabilities of letters" in text
    )


def test_choices_without_probabilities_and_from_a_file(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = tmp_path / "choices.jsonl"
    answers.write_text(
        "".join(
            json.dumps({"prompt": f"Question {i}?", "answer": "right", "mc1": i % 2, "mc2": 0.25})
            + "\n"
            for i in range(10)
        )
    )
    with policy("good", True, logprobs=False) as a, judge() as j:
        found = evaluated(
            capsys,
            tmp_path,
            f"letters={a.base_url}",
            f"file={answers}",
            "--judge-base-url",
            j.base_url,
            f"--benchmark=truthfulqa={files['truthfulqa']}",
            "--out",
            tmp_path / "out",
        )
    s = found["sets"]["truthfulqa"]
    assert s["read_by"] == {
        "letters": ["the letter named"],
        "file": ["probabilities of the answers"],
    }
    assert (
        mean(found, "truthfulqa", "letters", "mc1") == 1
        and "mc2" not in s["models"]["letters"]["metrics"]
    )
    assert (
        mean(found, "truthfulqa", "file", "mc1") == 0.5
        and mean(found, "truthfulqa", "file", "mc2") == 0.25
    )


def test_orders_and_curves_of_several_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten prompts, answers in files; the judge's score is the number of the word that an answer
    begins with."""
    run = tmp_path / "run"
    run.mkdir()
    levels = {"base": 1, "h": 3, "hs": 2, "s": 2, "sh": 4, "big": 3}
    models = []
    for name, level in levels.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text(
            "".join(
                json.dumps({"prompt": f"p {i}", "answer": f"level{level} {i}"}) + "\n"
                for i in range(10)
            )
        )
        models.append(f"{name}={path}")
    (tmp_path / "prompts.csv").write_text("prompt\n" + "".join(f"p {i}\n" for i in range(10)))

    def script(body: dict[str, Any], times: int) -> Fault:
        return Fault(
            text=json.dumps(
                {
                    "score": int(
                        (re.search(r"level(\d)", body["messages"][-1]["content"]) or [0, 1])[1]
                    )
                }
            )
        )

    (run / "manifest.json").write_text("{}")
    (run / "dataset").mkdir()
    (run / "dataset" / "README.md").write_text("---\n---\n")
    with FakeOpenAI(script, models=("judge",)) as j:
        found = evaluated(
            capsys,
            tmp_path,
            *models,
            "--dataset",
            run,
            "--prompts",
            tmp_path / "prompts.csv",
            "--judge-base-url",
            j.base_url,
            "--no-win-rate",
            "--out",
            tmp_path / "out",
            "--sequence",
            "base",
            "h=helpful",
            "hs=harmless",
            "--sequence",
            "base",
            "s=harmless",
            "sh=helpful",
            "--scaling",
            "equal steps",
            "base=0",
            "h=500",
            "big=1000",
            "--scaling",
            "equal epochs",
            "base=0",
            "s=500",
            "sh=1000",
        )
    first, second = found["sequences"]
    assert first["matrix"]["h"]["helpful"] == 0.5 and first["final_gain"][
        "helpful"
    ] == pytest.approx(0.25)
    assert first["backward_transfer"] == {"helpful": pytest.approx(-0.25), "harmless": 0.0}
    assert first["backward_transfer_interval"]["helpful"] == pytest.approx([-0.25, -0.25])
    assert (first["mean_backward_transfer"], second["mean_backward_transfer"]) == (
        pytest.approx(-0.125),
        pytest.approx(0.25),
    )
    assert (first["mean_final_gain"], second["mean_final_gain"]) == (
        pytest.approx(0.25),
        pytest.approx(0.75),
    )
    steps, epochs = found["scaling"]
    assert steps["name"] == "equal steps" and steps["fits"]["reward_helpful"][
        "saturation"
    ] == pytest.approx(0.5, abs=0.02)
    assert epochs["fits"]["reward_helpful"]["at_edge"]  # 0, 0.25, 0.75: no saturation
    drawn = scaling_figure(run, 10, 10)["evaluations"]
    assert {e["metric"] for e in drawn} == {
        f"reward_{d} (equal {k})" for d in ("helpful", "harmless") for k in ("steps", "epochs")
    }
    assert [
        (e["fraction"], e["value"]) for e in drawn if e["metric"] == "reward_helpful (equal steps)"
    ] == [(0.0, 0.0), (0.5, 0.5), (1.0, 0.5)]
    text = (tmp_path / "out" / "evaluation.md").read_text("utf-8")
    assert "## Orders" in text and "base -> s -> sh" in text and "## Scaling: equal epochs" in text


def test_a_benchmark_without_a_file_comes_from_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choices = {"choices": ["right", "wrong", "worse"], "labels": [1, 0, 0]}
    path = tmp_path / "validation.parquet"
    pq.write_table(
        pa.Table.from_pylist([{"question": "Q?", "mc1_targets": choices, "mc2_targets": choices}]),
        path,
    )
    asked = []

    def fetch(settings: SourceSettings, patterns: Sequence[str]) -> tuple[list[DataFile], str]:
        asked.append((settings.dataset, list(patterns)))
        return [DataFile(path, path.name)], "c0ffee"

    monkeypatch.setattr("mora_data.sources.read.fetch_dataset", fetch)
    found = load_benchmark("truthfulqa", 0)
    assert asked == [("truthfulqa/truthful_qa", ["multiple_choice/*.parquet"])]
    assert [(p.metric, len(p.truths), sum(p.truths)) for p in found] == [
        ("mc1", 3, 1),
        ("mc2", 3, 1),
    ]
    (right,) = (
        line for line in found[0].messages[0]["content"].splitlines() if line.endswith("right")
    )
    assert found[0].truths[LETTERS.index(right[0])]


def test_what_is_no_benchmark_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no benchmark 'xtest': did you mean 'xstest'"):
        load_benchmark("xtest=x", 0)
    with pytest.raises(SourceError, match="no prompt of truthfulqa"):
        load_benchmark(f"truthfulqa={write_csv(tmp_path / 'x.csv', [{'prompt': 'a'}])}", 0)
    with pytest.raises(SourceError, match="no file or folder at"):
        load_benchmark("advbench=nowhere.csv", 0)


def test_real_benchmark_files(shared_data: Path) -> None:
    """Counts only: the rows are offensive."""
    found = {
        name: load_benchmark(f"{name}={shared_data / file}", 0)
        for name, file in {
            "alpaca_eval": "alpaca_eval/alpaca_eval.json",
            "advbench": "advbench/harmful_behaviors.csv",
            "xstest": "xstest/xstest_prompts.csv",
            "truthfulqa": "truthfulqa/mc_task.json",
        }.items()
    }
    assert [len(p) for p in found.values()] == [544, 363, 174, 1096]
    mc1 = [p for p in found["truthfulqa"] if p.metric == "mc1"]
    assert all(sum(p.truths) == 1 for p in mc1) and len(mc1) == 548
    share = [sum(p.truths.index(True) == i for p in mc1) for i in range(4)]
    assert min(share) > 80  # the true one stands anywhere
    table = load_benchmark(f"truthfulqa={shared_data / 'truthfulqa/TruthfulQA.csv'}", 0)
    assert len(table) == 1096 and max(len(p.truths) for p in table) <= len(LETTERS)
