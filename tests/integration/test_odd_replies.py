"""Small builds against servers whose replies are not plain completions: nothing of a thought is in
the dataset, and a reply that can't be read says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from support.endpoint_cases import (
    MUSING,
    beside,
    everything_in,
    in_parts,
    is_judge,
    replies,
)
from support.fake_openai import FakeOpenAI, Fault

from mora_data.cli import main

Body = dict[str, Any]
MODELS = ("gen", "judge")


def often_cut(body: Body, text: str) -> dict[str, Any]:
    """Every third answer of the policy never comes out of its thought."""
    cut = not is_judge(body) and sum(text.encode()) % 3 == 0
    return {"content": f"<think>{MUSING}" if cut else text}


def build(server: FakeOpenAI, folder: Path, *more: str, n: int = 3) -> int:
    rows = [json.dumps({"prompt": f"How do I mend item {i} of a clock?"}) for i in range(n)]
    (folder / "rows.jsonl").write_text("\n".join(rows))
    plain = "presample.enabled=false fuse.arms=[identity] select.confirm=false rollout.n=6"
    argv = ["build", "--source", "jsonl", "--data", folder / "rows.jsonl", "--out", folder / "run"]
    argv += ["--base-url", server.base_url, "--model", "gen", "--judge-model", "judge", "--json"]
    sets = (*plain.split(), "publish.configs=[preference, scored]", *more)
    argv += [x for setting in sets for x in ("--set", setting)]
    return main([str(a) for a in argv])


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def test_a_thought_that_is_cut_off_leaves_a_truncated_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeOpenAI(replies(often_cut), models=MODELS) as server:
        assert build(server, tmp_path, n=12) == 0
    counts = json.loads(capsys.readouterr().out)["counts"]
    assert MUSING not in everything_in(tmp_path / "run/dataset")
    assert 0 < counts["rollout"]["dropped"]["truncated"] < 72 and not counts["score"]["dropped"]


@pytest.mark.parametrize(
    "says",
    [
        replies(beside("reasoning_content")),
        replies(in_parts, stream=True),
    ],
)
def test_thoughts_are_kept_in_a_column_of_their_own(says: Any, tmp_path: Path) -> None:
    """Beside each answer of `scored`, and nowhere else; the next run has them from the log."""
    with FakeOpenAI(says, models=MODELS) as server:
        for _ in range(2):
            assert build(server, tmp_path, "policy.reasoning=keep") == 0
            scored = pq.read_table(tmp_path / "run/dataset/scored").to_pylist()
            thoughts = [(t or "").strip("?") for row in scored for t in row["thoughts"]]
            assert thoughts == [MUSING] * 18
            (tmp_path / "run/manifest.json").unlink()
        assert server.repeated() == 0 and len(server.requests) == 3 + 54
        assert not any(MUSING in json.dumps(body["messages"]) for body in server.requests)
    (tmp_path / "run/dataset/scored").rename(tmp_path / "scored")
    assert MUSING not in everything_in(tmp_path / "run/dataset")


def test_a_judge_that_thinks_to_the_end_of_its_tokens_is_named_early(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As with hidden reasoning: content null, finish_reason length, tokens counted
    (https://github.com/codelibs/fess/pull/3061)."""

    def script(body: Body, time: int) -> Fault | None:
        if not is_judge(body):
            return None
        choice = {"index": 0, "finish_reason": "length", "message": {"content": None}}
        usage = {"prompt_tokens": 10, "completion_tokens": 256}
        return Fault(body=json.dumps({"choices": [choice], "usage": usage}).encode())

    with FakeOpenAI(script, models=("gen", "judge")) as server:
        assert build(server, tmp_path) == 1
    said = capsys.readouterr().err
    assert said.count("judge: max_tokens = 256 ends replies inside the model's thoughts") == 1
    assert "set judge.max_tokens to 4096" in said
    assert "54 x thought_cut_off: max_tokens = 256 went into the model's thoughts" in said


def test_errors_that_come_with_status_200(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A passing one is tried again, the one of a row is that row's failure."""
    monkeypatch.setattr("mora_data.engines.openai._wait_s", lambda fault, tries: 0.0)

    def script(body: Body, time: int) -> Fault | None:
        said = {"message": "Provider returned error", "code": 429} if time == 1 else None
        if not is_judge(body) and "item 1 " in body["messages"][-1]["content"]:
            said = {"message": "This model's maximum context length is 8 tokens", "code": 500}
        tree = {"choices": None, "error": said}
        return Fault(body=json.dumps(tree).encode()) if said else None

    with FakeOpenAI(script, models=("gen", "judge")) as server:
        assert build(server, tmp_path, "limits.max_error_share=0.5", n=8) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["counts"]["rollout"]["dropped"] == {"failed": 6} and summary["errors"] == 6
    errors = (tmp_path / "run/errors.jsonl").read_text()
    assert errors.count("HTTP 400: This model's maximum context length is 8 tokens") == 6
    assert summary["counts"]["score"]["dropped"] == {}
