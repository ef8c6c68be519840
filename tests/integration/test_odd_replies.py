"""Small builds against servers whose replies are not plain completions: nothing of a thought is in
the dataset, and a reply that can't be read says why."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from support.fake_openai import FakeOpenAI, Fault, answer

from mora_data.cli import main

MUSING = "Musing: what do they want"  # in every thought
Body = dict[str, Any]
Say = Callable[[Body, str], dict[str, Any]]


def is_judge(body: Body) -> bool:
    return "response_format" in body


def in_content(body: Body, text: str) -> dict[str, Any]:
    return {"content": f"<think>\n{MUSING}?\n</think>\n\n{text}"}


def closing_tag_alone(body: Body, text: str) -> dict[str, Any]:
    return {"content": f"{MUSING}?\n</think>\n\n{text}"}


def in_fields(body: Body, text: str) -> dict[str, Any]:
    """A judge that is held to its grammar thinks nothing and answers in the wrong field."""
    if is_judge(body):
        return {"content": None, "reasoning_content": text}
    return {"content": text, "reasoning": f"{MUSING}?"}


def in_parts(body: Body, text: str) -> dict[str, Any]:
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": MUSING}]}
    return {"content": [thought, {"type": "text", "text": text}]}


def as_channels(body: Body, text: str) -> dict[str, Any]:
    start = f"<|channel|>analysis<|message|>{MUSING}?<|end|><|start|>assistant"
    return {"content": f"{start}<|channel|>final<|message|>{text}"}


def often_cut(body: Body, text: str) -> dict[str, Any]:
    """Every third answer of the policy never comes out of its thought."""
    cut = not is_judge(body) and sum(text.encode()) % 3 == 0
    return {"content": f"<think>{MUSING}" if cut else text}


def server_of(say: Say, stream: bool = False) -> FakeOpenAI:
    def script(body: Body, time: int) -> Fault:
        choices = [
            {"index": i, "finish_reason": "stop", "message": say(body, answer(body, i))}
            for i in range(body.get("n") or 1)
        ]
        usage = {"prompt_tokens": 10, "completion_tokens": 40}
        if not stream:
            tree = {"model": body["model"], "choices": choices, "usage": usage}
            return Fault(body=json.dumps(tree).encode())
        events = [{"choices": [{**c, "delta": c.pop("message")}]} for c in choices]
        lines = [f"data: {json.dumps(e)}\n\n" for e in (*events, {"usage": usage})]
        return Fault(body="".join([*lines, "data: [DONE]\n\n"]).encode())

    return FakeOpenAI(script, models=("gen", "judge"))


def build(server: FakeOpenAI, folder: Path, *more: str, n: int = 3) -> int:
    rows = [json.dumps({"prompt": f"How do I mend item {i} of a clock?"}) for i in range(n)]
    (folder / "rows.jsonl").write_text("\n".join(rows))
    plain = "presample.enabled=false fuse.arms=[identity] select.confirm=false rollout.n=6"
    argv = ["build", "--source", "jsonl", "--data", folder / "rows.jsonl", "--out", folder / "run"]
    argv += ["--base-url", server.base_url, "--model", "gen", "--judge-model", "judge", "--json"]
    argv += [x for setting in (*plain.split(), *more) for x in ("--set", setting)]
    return main([str(a) for a in argv])


def everything_in(folder: Path) -> str:
    tables = [str(pq.read_table(p).to_pylist()) for p in folder.rglob("*.parquet")]
    texts = [p.read_text("utf-8") for p in folder.rglob("*") if p.suffix in (".md", ".json")]
    assert tables and texts
    return "\n".join(tables + texts)


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("say", "stream"),
    [
        (in_content, False),
        (closing_tag_alone, False),
        (in_fields, False),
        (in_parts, True),
        (as_channels, False),
        (often_cut, False),
    ],
)
def test_no_thought_is_published(
    say: Say, stream: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with server_of(say, stream) as server:
        assert build(server, tmp_path) == 0
        summary = json.loads(capsys.readouterr().out)
        judged = [r for r in server.requests if is_judge(r)]
    published = everything_in(tmp_path / "run/dataset")
    assert MUSING not in published and "think>" not in published and "<|" not in published
    assert not any(MUSING in m["content"] for r in judged for m in r["messages"])
    counts = summary["counts"]
    assert summary["pairs"] and summary["repeated"] == summary["errors"] == 0
    assert counts["score"]["dropped"] == {}
    cut = counts["rollout"]["dropped"]
    assert cut == {} if say is not often_cut else 0 < cut["truncated"] < 18


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
