"""Keys go where the user sends them and nowhere else: no line, file or other host gets one."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from support.fake_openai import FakeOpenAI, Fault, Handler

from mora_data.cli import main
from mora_data.engines import resolve
from mora_data.engines.replicas import is_up, served_models, takes_patterns
from mora_data.engines.replies import parse_chat
from mora_data.errors import EndpointError, MoraError, SettingsError
from mora_data.evaluate.asking import parse_model, role_of
from mora_data.settings import RoleSettings, build_settings

KEY = "sk-canary-0123456789abcdef"
BUILD = "build --source pku-saferlhf --sample --limit 2 --model fake".split()
PLAIN: dict[str, Any] = {"name": "x", "source": {"kind": "jsonl"}}


class Elsewhere(BaseHTTPRequestHandler):
    """Keeps the headers of every request; `to` sends it on, else it answers with `status` and what
    it was sent."""

    to, status = "", 200
    seen: ClassVar[list[dict[str, str]]] = []

    def do_GET(self) -> None:
        self.seen.append(dict(self.headers))
        body = json.dumps({"data": [{"id": "m"}], "said": dict(self.headers)}).encode()
        self.send_response(307 if self.to else self.status)
        self.send_header("content-length", str(len(body)))
        if self.to:
            self.send_header("location", self.to)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def serve(**values: object) -> HTTPServer:
    handler = type("Handler", (Elsewhere,), {"seen": [], **values})
    server = HTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    return server


@pytest.fixture()
def servers() -> Iterator[list[HTTPServer]]:
    made: list[HTTPServer] = []
    yield made
    for server in made:
        server.shutdown()
        server.server_close()


def test_a_redirect_takes_no_key_to_another_host(
    servers: list[HTTPServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    other = serve()
    servers.append(other)
    first = serve(to=f"http://localhost:{other.server_port}/v1/models")
    servers.append(first)
    url, role = f"http://127.0.0.1:{first.server_port}/v1", RoleSettings()
    served_models([url], role, 0.0)
    takes_patterns(url, role)
    is_up(url, role)
    near, far = (s.RequestHandlerClass.seen for s in (first, other))  # type: ignore[attr-defined]
    assert len(far) >= 3 and KEY in json.dumps(near) and KEY not in json.dumps(far)


@pytest.mark.parametrize("key", [KEY + "\n", f"  {KEY}\r\n"])
def test_white_space_round_a_key_is_none_of_it(
    key: str, servers: list[HTTPServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    servers.append(serve())
    served_models([f"http://127.0.0.1:{servers[0].server_port}/v1"], RoleSettings(), 0.0)
    assert servers[0].RequestHandlerClass.seen[0]["Authorization"] == f"Bearer {KEY}"  # type: ignore[attr-defined]


@pytest.mark.parametrize("key", ["sk-can\nary-1234", "sk-canary-ключ1234", "sk canary 1234"])
def test_a_key_that_no_header_can_carry_is_refused_unseen(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with FakeOpenAI() as server:
        code = main([*BUILD, "--base-url", server.base_url, "--out", str(tmp_path / "run")])
    said = capsys.readouterr()
    assert code == 1 and "OPENAI_API_KEY" in said.err and "canary" not in said.err + said.out


@pytest.mark.parametrize("status", [400, 401, 403, 404, 500])
def test_a_body_that_says_the_key_is_shown_without_it(
    status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr("mora_data.engines.openai.TRIES", 1)
    body = json.dumps({"error": {"message": f"bad key {KEY}\x1b[2J"}}).encode()
    with FakeOpenAI(lambda b, t: Fault(status=status, body=body)) as server:
        main([*BUILD, "--base-url", server.base_url, "--out", str(tmp_path / "run")])
    said = capsys.readouterr()
    assert KEY not in said.err + said.out and "\x1b" not in said.err + said.out
    for path in (tmp_path / "run").rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path


PASSWORD = "http://me:pass-word-1@host.example/v1"


@pytest.mark.parametrize(
    "tree",
    [
        {"policy": {"base_url": PASSWORD}},
        {"policy": {"replicas": [PASSWORD]}},
        {"rewards": {"helpful": [{"kind": "calm:Calm", "url": PASSWORD}]}},
        {"policy": {"extra_body": {"api_key": "pass-word-1"}}},
        {"policy": {"extra_body": {"nested": [{"Authorization": "Bearer pass-word-1"}]}}},
        {"judge": {"extra_body": {"x": "sk-pass-word-1234567890"}}},
        {"rewards": {"helpful": [{"kind": "calm:Calm", "password": "pass-word-1"}]}},
        {"policy": {"local": {"options": {"hf_token": "pass-word-1"}}}},
        {"limits": {"prices": "pass-word-1.yaml"}},
    ],
)
def test_settings_hold_no_secret(tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_PASSWORD", "pass-word-1")
    with pytest.raises(SettingsError) as e:
        build_settings({**PLAIN, **tree})
    assert "pass-word" not in str(e.value) and "\n" not in str(e.value)


def test_ordinary_settings_are_no_secrets() -> None:
    body = {
        "max_tokens": 5,
        "stop_token_ids": [1],
        "bos_token": "<s>",
        "cache_key": "a",
        "key": "b",
    }
    build_settings({**PLAIN, "policy": {"extra_body": body, "base_url": "http://h:1/v1?a=b@c"}})


def test_an_address_with_a_password_is_refused_wherever_it_comes_from(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", PASSWORD)
    with pytest.raises(MoraError) as e:
        resolve(RoleSettings(), False)
    assert "pass-word" not in str(e.value)
    with pytest.raises(MoraError) as e:
        role_of(parse_model(f"a={PASSWORD}"), RoleSettings())
    assert "pass-word" not in str(e.value)
    monkeypatch.delenv("OPENAI_BASE_URL")
    for argv in (
        ["build", "--source", "pku-saferlhf", "--base-url", PASSWORD],
        ["build", "--source", "pku-saferlhf", "--sample", "--out", PASSWORD],
        ["build", "--source", "pku-saferlhf", "--set", f"policy.base_url={PASSWORD}"],
        ["status", PASSWORD],
        ["export", PASSWORD, "--config", "x", "--to", PASSWORD],
        ["diff", PASSWORD, PASSWORD],
        ["evaluate", f"a={PASSWORD}", "--source", "pku-saferlhf"],
    ):
        assert main(argv) == 1
        said = capsys.readouterr()
        assert "pass-word" not in said.err + said.out, argv


def test_a_model_list_that_says_the_key_or_moves_the_cursor(
    servers: list[HTTPServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    class Models(Handler):
        def do_GET(self) -> None:
            self._send(200, json.dumps({"data": [{"id": f"a\x1b[2J {KEY}"}, {"id": 3}]}).encode())

    fake = type("Fake", (FakeOpenAI,), {"handler": Models})
    with fake() as server:
        _, names = served_models([server.base_url], RoleSettings(), 0.0)
    assert KEY not in "".join(names) and "\x1b" not in "".join(names) and names[1] == "3"
    monkeypatch.setenv("OPENAI_API_KEY", "bad\x01key")
    with pytest.raises((EndpointError, SettingsError)) as e:
        served_models(["http://127.0.0.1:9/v1"], RoleSettings(), 0.0)
    assert "bad" not in str(e.value)


def test_the_terminal_gets_no_escape_from_a_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "canary-42-canary")
    odd = tmp_path / "a\x1b]0;x\x07\u202ecanary-42-canary\udce4"
    assert main(["status", str(odd)]) == 1
    assert main(["build", "--source", "jsonl", "--data", str(odd)]) == 1
    said = capsys.readouterr()
    for bad in ("\x1b", "\x07", "\u202e", "\udce4", "canary-42"):
        assert bad not in said.err + said.out
    assert "\\x1b]0;x\\x07" in said.err


def test_replies_that_say_the_key_are_kept_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that puts its request's key into an answer brings it into no file."""
    from mora_data.engines.openai import Call, Endpoint, ReplyTimes
    from mora_data.run.stats import RunStats

    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    async def ask(url: str) -> str:
        endpoint = Endpoint(url, RoleSettings(base_url=url), RunStats())
        try:
            read, times = partial(parse_chat, asked=1), ReplyTimes(5.0)
            call = Call(b'{"messages": []}', 1, read, lambda r: None, 8, times)
            return (await endpoint.post(call)).answers[0].text
        finally:
            await endpoint.close()

    with FakeOpenAI(lambda b, t: Fault(text=f"Your key is {KEY}.")) as server:
        assert asyncio.run(ask(server.base_url)) == "Your key is ***."


def test_each_role_signs_in_with_its_own_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one server, too: a gateway tells its clients apart by their keys."""
    from mora_data.engines.engine import Shared
    from mora_data.engines.openai import open_openai
    from mora_data.run.stats import RunStats
    from mora_data.types import Request, Sampling

    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("JUDGE_SIGN_IN", "canary-judge-1")
    seen: list[str] = []

    class Notes(Handler):
        def do_POST(self) -> None:
            seen.append(self.headers.get("Authorization", ""))
            super().do_POST()

    async def ask(url: str) -> None:
        shared, stats, build = Shared(tmp_path), RunStats(), build_settings(PLAIN)
        for variable in ("OPENAI_API_KEY", "JUDGE_SIGN_IN", "OPENAI_API_KEY"):
            role = RoleSettings(base_url=url, model="fake", api_key_env=variable)
            engine = open_openai(role, build, stats, shared)
            request = Request(
                "judge", ({"role": "user", "content": "a"},), Sampling(0, 1, 8), "s", "p"
            )
            await engine.send(request, b'{"messages": []}', 0, lambda r: None)
        assert len(stats.limiters) == 2
        for part in {p for p in shared._parts.values() if hasattr(p, "close")}:
            await part.close()  # type: ignore[attr-defined]

    fake = type("Fake", (FakeOpenAI,), {"handler": Notes})
    with fake() as server:
        asyncio.run(ask(server.base_url))
    assert seen == [f"Bearer {KEY}", "Bearer canary-judge-1", f"Bearer {KEY}"]


def test_the_first_retry_imports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no descriptor is left, an import fails: what a retry needs is there before."""
    from mora_data.engines.openai import Call, Endpoint, ReplyTimes
    from mora_data.run.stats import RunStats

    async def ask(url: str) -> int:
        endpoint = Endpoint(url, RoleSettings(base_url=url), RunStats())
        try:
            read, times = partial(parse_chat, asked=1), ReplyTimes(5.0)
            call = Call(b'{"messages": []}', 1, read, lambda r: None, 8, times)
            await endpoint.post(call)
            return endpoint.stats.retries.total()
        finally:
            await endpoint.close()

    class Closed:
        """No module can be found any more."""

        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            raise OSError(24, "Too many open files", name)

    monkeypatch.setattr("mora_data.engines.openai._wait_s", lambda fault, tries: 0.0)
    with FakeOpenAI(lambda b, t: Fault(status=503) if t < 3 else Fault(text="a")) as server:
        monkeypatch.setattr(sys, "meta_path", [Closed()])
        assert asyncio.run(ask(server.base_url)) == 2
