"""Eight secrets in the environment stand in no file, page or line of any command, whether it ends
well, is refused or meets code that raises with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.fake_openai import FakeOpenAI, Fault, Handler

from mora_data.cli import main

CANARIES = {
    "OPENAI_API_KEY": "sk-canary-openai-11",
    "JUDGE_SIGN_IN": "canary-judge-222222",  # named by api_key_env alone
    "HF_TOKEN": "hf_canary33333333333333333",
    "AWS_SECRET_ACCESS_KEY": "canary/aws+44444444=",
    "WANDB_API_KEY": "canary5wandb5555555",
    "DB_PASSWORD": "canary-6-pass-word-6",
    "SOME_CREDENTIALS": "canary-7-credential",
    "GITHUB_PAT": "ghp_canary8888888888888888",
}
RAISES = """
import os
from mora_data.types import Score

class Leaks:
    pass_threshold, calibration, step, fingerprint = 0.5, "identity", 0.0, ""

    def __init__(self, dimension, options, context):
        self.dimension, self.name = dimension, "leaks"

    async def scores(self, ask, prompt_id, messages, answers, purpose):
        raise OSError(" ".join(os.environ.get(k, "") for k in %r))
"""


class Echo(Handler):
    """Says every request's headers back, in answers, errors and the names of models."""

    def do_GET(self) -> None:
        named = {"id": "fake", "owned_by": str(self.headers)}
        self._send(200, json.dumps({"data": [named]}).encode())

    def do_POST(self) -> None:
        self.fake.headers = str(self.headers)  # type: ignore[attr-defined]
        super().do_POST()


class EchoServer(FakeOpenAI):
    handler = Echo
    headers = ""


def files_hold(folder: Path) -> list[str]:
    return [
        f"{name} in {path}"
        for path in folder.rglob("*")
        if path.is_file()
        for name, value in CANARIES.items()
        if value.encode() in path.read_bytes()
    ]


def test_no_canary_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("mora_data.engines.openai.TRIES", 2)
    (tmp_path / "leaks.py").write_text(RAISES % (list(CANARIES),))
    monkeypatch.syspath_prepend(str(tmp_path))
    out = tmp_path / "out"
    asked = 0

    def script(body: dict[str, Any], times: int) -> Fault | None:
        nonlocal asked
        asked += 1
        said = f"You sent {server.headers}"
        if asked % 7 == 0:
            return Fault(status=400, body=json.dumps({"error": {"message": said}}).encode())
        if asked % 11 == 0:
            return Fault(status=503, body=said.encode())
        if "response_format" in body:
            return Fault(text=f'{{"score": {1 + asked % 5}}}')
        return Fault(text=f"{said} Answer {asked}.")

    def run(*argv: object) -> int:
        code = main([str(a) for a in argv])
        said = capsys.readouterr()
        text = said.out + said.err
        assert not [name for name, value in CANARIES.items() if value in text], argv[0]
        return code

    with EchoServer(script) as server:
        build = (
            *("build", "--source", "pku-saferlhf", "--sample", "--limit", 6),
            *("--base-url", server.base_url, "--judge-base-url", server.base_url),
            *("--judge-model", "fake", "--set", "judge.api_key_env=JUDGE_SIGN_IN"),
            *("--set", "presample.enabled=false", "--set", "fuse.arms=[identity]"),
            *("--set", "limits.max_error_share=1", "--set", "rollout.n=4"),
        )
        run(*build, "--out", out / "run")
        leaks = '{"truthful": [{"kind": "leaks:Leaks"}]}'
        run(*build, "--set", f"rewards={leaks}", "--out", out / "crash", "--json")
        server.script = lambda body, times: Fault(status=401, body=server.headers.encode())
        assert run(*build, "--out", out / "refused") == 1
        server.script = script
        for argv in (
            ("status", out / "run"),
            ("status", out / "crash", "--json"),
            ("report", out / "run"),
            ("view", out / "run", "--freeze", out / "pages"),
            ("export", out / "run", "--config", "preference", "--to", out / "export"),
            ("weights", out / "run", "--target", "helpful=0.5"),
            ("diff", out / "run", out / "crash"),
            ("recipe", "list"),
            (
                *("evaluate", f"a={server.base_url}", "--dataset", out / "run"),
                *("--judge-base-url", server.base_url, "--judge-model", "fake"),
                *("--set", "heldout_judge.api_key_env=JUDGE_SIGN_IN", "--out", out / "evaluate"),
            ),
            ("push", out / "run", "org/name", "--dry-run"),
            ("build", "--source", CANARIES["DB_PASSWORD"]),
            ("report", f"{tmp_path}/{CANARIES['GITHUB_PAT']}"),
        ):
            run(*argv)
    assert files_hold(out) == []
    assert len([*out.rglob("*.parquet")]) > 3 and (out / "pages" / "index.html").is_file()
