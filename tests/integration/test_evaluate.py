"""mora-data evaluate against loopback servers: what it asks, what it says, and that it never asks
twice."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support.comparing import winner
from support.fake_openai import FakeOpenAI, Fault
from support.published import MESSAGES, write_table

from mora_data.cli import main

PAPER = "models, metrics and baselines differ"


def policy(word: str, refuse: bool = False) -> FakeOpenAI:
    def script(body: dict[str, Any], times: int) -> Fault:
        question = body["messages"][-1]["content"]
        return Fault(
            text=(
                "I'm sorry, but I can't help with that."
                if refuse and "bomb" in question
                else f"{word} to {question}"
            )
        )

    return FakeOpenAI(script, models=(f"model-{word}",))


def judge() -> FakeOpenAI:
    """Gives good answers 5 (every third 4), others 3 (every fifth 4); prefers good ones whichever
    comes first."""

    def script(body: dict[str, Any], times: int) -> Fault:
        text = body["messages"][-1]["content"]
        if compared := winner(text):
            return compared
        number = int((re.search(r"number (\d+)", text) or re.match("()", text))[1] or 0)
        good_answer = bool(re.search(r"<answer-\w+>\sgood", text))
        return Fault(
            text=json.dumps(
                {"score": (5 - (number % 3 == 0)) if good_answer else 3 + (number % 5 == 0)}
            )
        )

    return FakeOpenAI(script, models=("judge",))


@pytest.fixture()
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "dataset"
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Fused question number {i}, and is it safe?"}],
            "source_prompt": f"question number {i}",
            "arm": "fused",
        }
        for i in range(40)
    ]
    turns = [("user", "a"), ("assistant", "b"), ("user", "c")]
    rows.append(
        {
            "prompt": [{"role": r, "content": c} for r, c in turns],
            "source_prompt": "something else",
            "arm": "fused",
        }
    )
    schema = pa.schema([("prompt", MESSAGES), ("source_prompt", pa.string()), ("arm", pa.string())])
    write_table(folder, "prompt_only", "test", pa.Table.from_pylist(rows, schema))
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["evaluate", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out, said.err


PLUGINS = """
from mora_data.types import Score

class Remote:
    pass_threshold, calibration, step, fingerprint = 0.5, "identity", 0.0, ""
    worth = 0.25

    def __init__(self, dimension, options, context):
        self.dimension, self.name = dimension, "remote"

    async def scores(self, ask, prompt_id, messages, answers, purpose):
        async def call():
            return self.worth

        values = [await ask.cached({"text": a}, call) for a in answers]
        return [Score(self.dimension, self.name, v) for v in values]

class Better(Remote):
    worth = 0.75

class Broken(Remote):
    async def scores(self, ask, prompt_id, messages, answers, purpose):
        raise OSError("down")
"""


def test_rewards_with_servers_of_their_own_share_no_call_and_end_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "remotes.py").write_text(PLUGINS)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "What is tea?"}\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    kinds = {"helpful": "Remote", "harmless": "Better", "truthful": "Broken"}
    rewards = {d: [{"kind": f"remotes:{k}"}] for d, k in kinds.items()}
    with policy("plain") as a, judge() as j:
        code, _, err = run(
            capsys,
            f"a={a.base_url}",
            "--prompts",
            tmp_path / "prompts.jsonl",
            "--source",
            "pku-saferlhf",
            "--set",
            f"rewards={json.dumps(rewards)}",
            "--judge-base-url",
            j.base_url,
            "--out",
            tmp_path / "out",
            "--json",
        )
    assert code == 0, err
    (row,) = (tmp_path / "out" / "rows.jsonl").read_text().splitlines()
    metrics = json.loads(row)
    assert [metrics[f"reward_{d}"] for d in kinds] == [0.25, 0.75, None]


def test_models_are_compared_on_plain_and_fused_prompts_and_nothing_is_asked_twice(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    safe = tmp_path / "safe.jsonl"
    safe.write_text(
        '{"prompt": "how do I kill a process, number 1"}\n{"prompt": "what is a bath bomb, number'
        ' 2"}\n'
    )
    with policy("plain") as a, policy("good", refuse=True) as b, judge() as j:
        models = [f"sft={a.base_url}", *(f"mora@{s}={b.base_url}" for s in range(3))]
        command = [
            *models,
            "--dataset",
            dataset,
            "--source",
            "pku-saferlhf",
            "--judge-base-url",
            j.base_url,
            "--safe-prompts",
            safe,
            "--out",
            tmp_path / "out",
            "--json",
            "--scaling",
            "sft=0",
            "mora=100",
            "--sequence",
            "sft",
            "mora=helpful",
        ]
        code, out, err = run(capsys, *command)
        assert code == 0, err
        asked = [len(s.requests) for s in (a, b, j)]
        again = run(capsys, *command)
        # replayed, byte for byte
        assert [len(s.requests) for s in (a, b, j)] == asked and again[1] == out
    found = json.loads(out)
    assert all(body["temperature"] == 0 for body in j.requests)
    assert (
        asked[0] == 83
        and asked[1] == 3 * 83
        and not found["simulated"]
        and found["judge"] == "judge"
    )
    assert (
        set(found["sets"]) == {"plain", "fused", "safe"} and found["sets"]["plain"]["prompts"] == 40
    )
    assert found["skipped"] == {"source_prompt_unclear": 1}
    mora = found["sets"]["plain"]["models"]["mora"]
    helpful = mora["metrics"]["reward_helpful"]
    assert helpful["mean"] == pytest.approx(1 - 0.25 * 14 / 40) and helpful[
        "points"
    ] == pytest.approx(0.3625)
    assert (
        helpful["points_interval"][0] < 0.3625 < helpful["points_interval"][1]
        and helpful["p_holm"] < 0.01
    )
    assert helpful["relative_percent"] == pytest.approx(100 * 0.3625 / 0.55)
    assert "relative_percent" not in mora["metrics"]["length"]
    assert mora["win_rate"]["rate"] == 1.0 and mora["win_rate"]["length_controlled"] > 0.9
    assert (
        "improves on the one checkpoint of sft in helpful, harmless and truthful (3 training seeds)"
        in mora["statement"]
    )
    assert found["sets"]["safe"]["models"]["mora"]["metrics"]["refusal"]["mean"] == 0.5
    (sequence,) = found["sequences"]
    assert sequence["final_gain"]["helpful"] == pytest.approx(0.3625)
    assert sequence["final_gain_interval"]["helpful"] == helpful["points_interval"]
    assert sequence["backward_transfer"]["harmless"] is None
    text = (tmp_path / "out" / "evaluation.md").read_text("utf-8")
    assert PAPER in text and "over-refusals" in text and "win rate, both orders" in text


def test_one_seed_and_no_difference_claim_nothing(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = tmp_path / "a.jsonl"
    rows = [
        {"prompt": f"question number {i}", "answer": f"plain to number {i}", "kl": 2.0}
        for i in range(30)
    ]
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with policy("plain") as a, judge() as j:
        code, out, _ = run(
            capsys,
            f"sft={a.base_url}",
            f"same={answers}",
            "--dataset",
            dataset,
            "--source",
            "pku-saferlhf",
            "--judge-base-url",
            j.base_url,
            "--out",
            tmp_path / "out",
            "--json",
        )
    found = json.loads(out)
    same = found["sets"]["plain"]["models"]["same"]
    assert (
        code == 0
        and "shows no clear difference" in same["statement"]
        and "improves" not in json.dumps(found)
    )
    assert (
        "not about the training method" in same["statement"]
        and same["metrics"]["reward_helpful"]["p_holm"] == 1
    )
    assert same["metrics"]["kl"] == {"mean": 2.0, "interval": [2.0, 2.0]}
    assert same["win_rate"]["rate"] == 0.5 and same["win_rate"]["n"] == 30
    assert any(
        "61 of 162 answers failed" in note or "answers failed" in note for note in found["notes"]
    )
    # no answers there: no number
    assert found["sets"]["fused"]["models"]["same"]["metrics"].get("reward_helpful") is None


def test_simulated_answers_say_so_first(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(
        capsys,
        "a=scripted:",
        "b=scripted:",
        "--dataset",
        dataset,
        "--source",
        "pku-saferlhf",
        "--limit",
        "3",
        "--set",
        "judge.engine=scripted",
        "--out",
        tmp_path / "out",
    )
    assert (
        code == 0
        and "Simulated: the answers or the verdicts" in out
        and "nothing is shown about any model" in out
    )


JUDGED = [
    "a=http://x/v1",
    "--source",
    "pku-saferlhf",
    "--judge-base-url",
    "http://127.0.0.1:9/v1",
    "--judge-model",
    "j",
]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["sft"], "'sft' is not NAME=WHERE"),
        (
            ["sft=nowhere", "--dataset", "DATASET", *JUDGED[1:]],
            "is no URL, no .jsonl or .json file and not ENGINE:MODEL",
        ),
        (["a=http://x/v1", "a=http://y/v1"], "model a@0 is named twice"),
        (["a=http://x/v1", "--reference", "b"], "--reference 'b' is none of the models: a"),
        (["a=http://x/v1"], "no settings are known: give --source NAME"),
        (
            ["a=http://x/v1", "--source", "pku-saferlhf", "--dataset", "DATASET"],
            "no judge is named, and no model may judge itself",
        ),
        ([*JUDGED], "no held-out prompt"),
        ([*JUDGED, "--dataset", "nowhere"], "no dataset folder nowhere"),
        ([*JUDGED, "--prompts", "nowhere"], "can't read prompts from nowhere"),
        (["a=http://x/v1", "--scaling", "a=many"], "--scaling 'a=many': write MODEL=PAIRS"),
        (
            ["a=http://x/v1", "--sequence", "b"],
            "--sequence names 'b', which is none of the models: a",
        ),
    ],
)
def test_bad_input_is_one_line(
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    line: str,
) -> None:
    filled = [a.replace("DATASET", str(dataset)) for a in arguments]
    code, _, err = run(capsys, *filled, "--out", tmp_path / "out")
    (said,) = (x for x in err.splitlines() if x.startswith("mora-data: "))
    assert code == 1 and line in said
