"""Eight secrets in the environment stand in no file, page or line of any command, whether it ends
well, is refused or meets code that raises with them."""

from __future__ import annotations

import argparse
import itertools
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.command import steady
from support.fake_openai import FakeOpenAI, Fault, Handler, answer
from support.hub_standin import make_server

from mora_data import cli

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
# by their names alone, whatever the settings are
TOLD = {name: value for name, value in CANARIES.items() if name != "JUDGE_SIGN_IN"}
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
        self.fake.echo = str(self.headers)  # type: ignore[attr-defined]
        super().do_POST()


class EchoServer(FakeOpenAI):
    handler = Echo
    echo = ""


def files_hold(folder: Path) -> list[str]:
    return [
        f"{name} in {path}"
        for path in folder.rglob("*")
        if path.is_file()
        for name, value in CANARIES.items()
        if value.encode() in path.read_bytes()
    ]


def leaves(parser: argparse.ArgumentParser, name: str = "") -> dict[str, argparse.ArgumentParser]:
    """The parsers of the commands, by name: `recipe list` is one."""
    groups = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not groups:
        return {name: parser}
    found = {}
    for word, below in groups[0].choices.items():
        found |= leaves(below, f"{name} {word}".strip())
    return found


COMMANDS = leaves(cli._parser())


def named_badly(name: str, folder: Path) -> list[str]:
    """A command with a secret in each place where it takes a word of the user's."""
    secrets, argv = itertools.cycle(TOLD.values()), name.split()
    for action in COMMANDS[name]._actions:
        word = str(next(iter(action.choices))) if action.choices else f"{folder}/{next(secrets)}"
        if action.type is int:
            word = next(secrets)
        if action.option_strings and action.nargs != 0:
            argv += [action.option_strings[-1], word] if action.required else []
        elif not action.option_strings:
            argv.append(word)
    return argv


@pytest.fixture()
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., int | None]]:
    """Runs a command as its process would, looks through what it said, and gives its exit code; at
    the end, through every file of the folder."""
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mora_data.engines.openai.TRIES", 2)
    monkeypatch.setattr("mora_data.engines.openai._wait_s", lambda fault, tries: 0.0)
    monkeypatch.setattr(cli, "_end_at_second_interrupt", lambda line: None)

    def run_one(*argv: object) -> int | None:
        monkeypatch.setattr("sys.argv", ["mora-data", *map(str, argv)])
        try:
            code: int | None = cli.main()
        except SystemExit as e:  # argparse's
            code = int(e.code or 0)
        said = capsys.readouterr()
        text = said.out + said.err
        assert not [name for name, value in CANARIES.items() if value in text], argv
        return code

    yield run_one
    kept = [file for file in files_hold(tmp_path) if "leaks.py" not in file]
    assert kept == []


@pytest.mark.parametrize("name", COMMANDS)
def test_no_canary_of_a_command_that_is_refused_or_crashes(
    name: str,
    run: Callable[..., int | None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(*named_badly(name, tmp_path))

    def crash(args: object) -> None:
        raise ZeroDivisionError(f"nobody foresaw\n{list(TOLD.values())}")

    monkeypatch.setattr(cli, "_reach_folders", crash)
    monkeypatch.setattr(
        capsys, "readouterr", lambda real=capsys.readouterr: said.append(real()) or said[-1]
    )
    said: list[Any] = []
    assert run(*named_badly(name, tmp_path)) in (1, 2)
    assert "Traceback" in said[-1].err or "--help" in said[-1].err


def test_no_canary_of_commands_on_a_server_that_says_them(
    run: Callable[..., int | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "leaks.py").write_text(RAISES % (list(CANARIES),))
    monkeypatch.syspath_prepend(str(tmp_path))
    out = tmp_path / "out"
    asked = 0

    def script(body: dict[str, Any], times: int) -> Fault | None:
        nonlocal asked
        asked += 1
        said = f"You sent {server.echo}"
        if asked % 40 == 20:
            return Fault(status=400, body=json.dumps({"error": {"message": said}}).encode())
        if asked % 40 == 30:
            return Fault(status=503, body=said.encode())
        if "response_format" in body:
            return steady(body, times) if "<answer-" in str(body) else None
        choices = [
            {"index": i, "message": {"content": f"{answer(body, i)} {said}"}}
            for i in range(body.get("n") or 1)
        ]
        return Fault(body=json.dumps({"model": "fake", "choices": choices}).encode())

    hub = make_server(tmp_path / "hub", token=CANARIES["HF_TOKEN"])
    thread = threading.Thread(target=hub.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub.server_address[1]}")
    with EchoServer(script) as server:
        where = (
            *("--source", "pku-saferlhf", "--sample", "--base-url", server.base_url),
            *("--judge-base-url", server.base_url, "--judge-model", "fake"),
            *("--set", "judge.api_key_env=JUDGE_SIGN_IN"),
        )
        build = (
            *("build", *where, "--limit", 40),  # a pair of one prompt in five
            *("--set", "presample.enabled=false", "--set", "fuse.arms=[identity]"),
            *(
                "--set",
                "select.confirm=false",
                "--set",
                "publish.configs=[preference, scored]",
                "--set",
                "limits.max_error_share=1",
                "--set",
                "rollout.n=4",
            ),
        )
        evaluate = (
            *("evaluate", f"a={server.base_url}", "--dataset", out / "run"),
            *("--judge-base-url", server.base_url, "--judge-model", "fake"),
            *("--set", "heldout_judge.api_key_env=JUDGE_SIGN_IN"),
        )
        assert run(*build, "--out", out / "run") == 0 and asked > 20
        leaks = '{"truthful": [{"kind": "leaks:Leaks"}]}'
        run(*build, "--set", f"rewards={leaks}", "--out", out / "crash", "--json")
        done: tuple[tuple[object, ...], ...] = (
            ("audit", *where, "--limit", 2, "--out", out / "audit"),
            ("check", "--base-url", server.base_url, "--json"),
            ("preview", *where, "--limit", 1, "--out", out / "preview", "--html"),
            ("resume", out / "run"),
            ("verify", out / "run"),
            ("settings",),
            ("init", out / "first.yaml"),
            ("template copy", "judge/helpful.j2", out / "mine"),
            ("source copy", "pku-saferlhf", out / "mine"),
            ("source look", out / "run" / "errors.jsonl"),
            ("completion", "bash"),
            ("status", out / "run"),
            ("status", out / "crash", "--json"),
            ("report", out / "run"),
            ("view", out / "run", "--freeze", out / "pages"),
            ("export", out / "run", "--config", "preference", "--to", out / "export"),
            ("weights", out / "run", "--target", "helpful=0.5"),
            ("diff", out / "run", out / "crash"),
            ("list", "sources"),
            ("recipe", "list"),
            ("recipe", "copy", "dpo", out / "recipe"),
            (*evaluate, "--out", out / "evaluate"),
            ("push", out / "run", "org/name", "--dry-run"),
            ("push", out / "run", "org/name", "--tag", "v1.0.0"),
        )
        for argv in done:
            run(*str(argv[0]).split(), *argv[1:])
        names = {name for name in COMMANDS for d in done if " ".join(map(str, d)).startswith(name)}
        # building was above, and training is a process of its own with code of the user's
        assert COMMANDS.keys() - names == {"build", "recipe run"}, "a command without its run here"
        server.script = lambda body, times: Fault(status=401, body=server.echo.encode())
        assert run(*build, "--out", out / "refused") == 1
        assert run("audit", *where, "--limit", 2, "--out", out / "refused audit") == 1
        assert run("check", "--base-url", server.base_url) == 1
        assert run(*evaluate, "--out", out / "refused evaluate") == 1
    hub.shutdown()
    thread.join()
    hub.server_close()
    assert len([*out.rglob("*.parquet")]) > 3 and (out / "pages" / "index.html").is_file()
