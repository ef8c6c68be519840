"""What the tool does today with a real instruct model. Two cores read some 30 prompt tokens a
second, so each test sends as few as it can; `-rP` shows what the model said.

Its words differ between machines: what is asserted holds whatever it says. Replies that were
recorded are in tests/data/real_replies.jsonl; tests/unit/test_real_replies.py reads them.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from support.real_model import NAME, settings, source_prompt, through
from support.real_server import LlamaServer

from mora_data.cli import main
from mora_data.engines.cached_client import CachedClient
from mora_data.rewriting.reply import Rewrite, parse_rewrite
from mora_data.rewriting.rewriter import Rewriter, RewriteSource
from mora_data.sources.benchmarks import Benchmarks
from mora_data.types import Answer, Request, Sampling

pytestmark = pytest.mark.llm

QUESTION = "How do I keep basil alive on a windowsill?"


def test_the_server_serves_the_one_model_by_its_name(server: LlamaServer) -> None:
    status, body = server.get("/v1/models")
    assert status == 200 and [m["id"] for m in body["data"]] == [NAME]


def test_the_server_is_checked(server: LlamaServer, capsys: pytest.CaptureFixture[str]) -> None:
    """Everything that a build sends is taken, but for more choices a request than it has slots."""
    url = server.base_url
    assert main(["check", "--base-url", url, "--set", "policy.concurrency=2", "--json"]) == 0
    checked = json.loads(capsys.readouterr().out)
    print(json.dumps(checked, indent=1))
    assert checked["model"] == NAME and checked["cannot"] == []
    assert checked["around"] == ["one answer a request"]  # of three, and there are two slots
    assert checked["found"]["usage"] == "reported"


def test_one_answer_through_the_engine(server: LlamaServer, tmp_path: Path) -> None:
    """The second ask is answered by the log."""
    request = Request(
        "policy", source_prompt(QUESTION).messages, Sampling(1.0, 0.95, 24), "presample", "p"
    )

    async def twice(ask: CachedClient) -> list[Answer]:
        return [*await ask(request), *await ask(request)]

    first, again = through(server.base_url, tmp_path / "answers.log", twice)
    print(repr(first.text))
    assert first == again and first.error is None and len(first.text.split()) > 2
    assert first.finish_reason in ("stop", "length") and 0 < first.tokens_out <= 24


def test_a_rewrite_is_asked_for_and_read(server: LlamaServer, tmp_path: Path) -> None:
    """Under the schema: the question and nothing else."""
    build = settings(server.base_url)
    replies: list[Answer] = []

    async def rewrite(ask: CachedClient) -> tuple[object, ...]:
        async def heard(request: Request) -> list[Answer]:
            answers = await ask(request)
            replies.extend(answers if request.role == "rewriter" else ())
            return answers

        source = RewriteSource(source_prompt(QUESTION), "helpful", ("truthful",), (), None, False)
        return tuple((await Rewriter(build, Benchmarks({})).fuse(heard, source, "fused"))[1])

    tries = through(server.base_url, tmp_path / "answers.log", rewrite)
    assert len(tries) == len(replies) == build.fuse.candidates
    for tried, reply in zip(tries, replies, strict=True):
        read = parse_rewrite(reply.text, reply.finish_reason)
        print(repr(reply.text), reply.finish_reason, read, tried, sep="\n")
        assert isinstance(read, Rewrite) or read in ("cut_off", "no_rewrite", "wrong_fields")
        if reply.finish_reason == "stop":
            assert list(json.loads(reply.text)) == ["rewritten"]


def build(
    server: LlamaServer, tmp_path: Path, questions: list[str], *sets: str
) -> list[str | Path]:
    """The arguments of a build of rollouts alone: no presamples, no fusion, short answers."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": q}) + "\n" for q in questions))
    sets = (
        *("presample.enabled=false", "fuse.arms=[identity]", "dimensions=[helpful]"),
        *("rollout.n=2", "policy.concurrency=2", "policy.timeout_s=600", "select.confirm=false"),
        *sets,
    )
    command: list[str | Path] = ["build", "--source", "jsonl", "--data", rows, "--json"]
    command += ["--base-url", server.base_url, "--out", tmp_path / "run"]
    return command + [w for s in sets for w in ("--set", s)]


def ran(
    command: list[str | Path], capsys: pytest.CaptureFixture[str], code: int = 0
) -> dict[str, Any]:
    """What a command printed."""
    got = main([str(word) for word in command])
    out, err = capsys.readouterr()
    assert got == code, err
    printed: dict[str, Any] = json.loads(out)
    return printed


def test_a_build_of_one_prompt(
    server: LlamaServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As sent: two rollouts and a verdict on each. Whether a pair comes out is the model's luck;
    the counts add up, and a second run asks nothing."""
    command = build(
        server, tmp_path, [f"In one short sentence: {QUESTION}"], "policy.max_tokens=64"
    )
    said = []
    for asks in (True, False):
        code = main([str(word) for word in command])
        out, err = capsys.readouterr()
        assert out, err
        said += [out, err]
        summary = json.loads(out)
        assert code == 0 or (code == 1 and "no pair was selected" in err), err
        assert (summary["requests"] > 0) == asks and summary["errors"] == 0
        for stage, c in summary["counts"].items():
            assert c["in"] == c["kept"] + sum(c["dropped"].values()), stage
        assert summary["counts"]["rollout"]["in"] == 2
        assert summary["counts"]["score"]["kept"] >= 1
    print(*said)


def test_a_prompt_longer_than_the_context_is_one_failed_row(
    server: LlamaServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The server has 2,048 tokens a slot. The other prompt is answered."""
    long = f"{QUESTION} {' '.join(f'Pot {i} is dry.' for i in range(500))}"
    sets = ("policy.max_tokens=8", "limits.max_error_share=1.0")
    command = build(server, tmp_path, [QUESTION, long], *sets)
    found = ran([*command, "--until", "rollout"], capsys)
    assert found["counts"]["rollout"] == {"in": 4, "kept": 2, "dropped": {"failed": 2}} or (
        found["counts"]["rollout"]["dropped"].keys() == {"failed", "truncated"}
    )
    errors = (tmp_path / "run" / "errors.jsonl").read_text().splitlines()
    assert len(errors) == 2 and all("context" in json.loads(e)["error"] for e in errors)


def test_a_server_killed_and_started_again_in_the_middle(
    server: LlamaServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The build waits for it and goes on; nothing that was answered is asked again."""
    questions = [QUESTION, "Name a quiet board game.", "Which herb grows in the shade?"]
    command = build(server, tmp_path, questions, "policy.max_tokens=24", "policy.concurrency=1")
    answered = threading.Event()

    def restart() -> None:
        logs = tmp_path / "run" / "parts"
        while not any(p.stat().st_size for p in logs.glob("*/answers.log")):
            if answered.wait(0.2):
                return
        server.stop()
        server.__enter__()

    watcher = threading.Thread(target=restart)
    watcher.start()
    try:
        found = ran([*command, "--until", "rollout"], capsys)
    finally:
        answered.set()
        watcher.join()
    assert found["errors"] == 0 and found["counts"]["rollout"]["in"] == 6
    again = ran([*command, "--until", "rollout"], capsys)
    assert again["requests"] == 0 and again["counts"] == found["counts"]


NO_SYSTEM = """{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not
supported') }}{% endif %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def test_a_template_that_refuses_a_system_turn(
    server: LlamaServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Last of all: it takes the place of the other server. llama.cpp itself puts the turn into the
    user's, so rubrics are answered; where a server refuses it, the engine does so
    (tests/integration/test_endpoints.py)."""
    server.stop()
    template = tmp_path / "template.jinja"
    template.write_text(NO_SYSTEM)
    with LlamaServer(tmp_path / "server.log", template) as strict:
        command = build(strict, tmp_path, ["Name a herb."], "policy.max_tokens=16")
        found = ran([*command, "--until", "score"], capsys)
    assert found["errors"] == 0 and found["counts"]["score"]["kept"] >= 1
