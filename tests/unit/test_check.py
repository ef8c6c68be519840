"""Addresses, headers, certificates, lists of models, and `mora-data check` on fake servers."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.endpoint_cases import SAMPLE, ask, beside, error, has, if_, replies, wrapped
from support.fake_openai import FakeOpenAI, Fault

from mora_data.cli import main
from mora_data.engines.dialect import Refusal
from mora_data.engines.engine import MERGED, encode
from mora_data.engines.http import parse_duration, parse_retry_after
from mora_data.engines.replicas import address, model_names
from mora_data.errors import EndpointError, SettingsError
from mora_data.secrets import is_loopback
from mora_data.settings import build_settings

CHAT = "/chat/completions"


@pytest.mark.parametrize(
    ("base", "chat", "root"),
    [
        ("http://h:1/v1", "http://h:1/v1/chat/completions", "http://h:1/classify"),
        ("http://h:1/v1/", "http://h:1/v1/chat/completions", "http://h:1/classify"),
        ("http://h:1", "http://h:1/chat/completions", "http://h:1/classify"),
        ("http://[::1]:1/v1", "http://[::1]:1/v1/chat/completions", "http://[::1]:1/classify"),
        (f"http://h/v1{CHAT}", "http://h/v1/chat/completions", "http://h/classify"),
        (f"http://h/x{CHAT}?v=1", "http://h/x/chat/completions?v=1", "http://h/x/classify?v=1"),
    ],
)
def test_addresses(base: str, chat: str, root: str) -> None:
    assert address(base, CHAT) == chat
    assert address(base, "/classify", at_root=True) == root


def test_this_machine_is_asked_without_a_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy that nobody serves would refuse each of them."""
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with FakeOpenAI() as server:
        assert ask(server, tmp_path, SAMPLE, model=None)[0][0]
    for host in ("127.0.0.1", "127.1.2.3", "[::1]", "localhost"):
        assert is_loopback(f"https://{host}:8000/v1")
    assert not is_loopback("http://10.0.0.1/v1") and not is_loopback("http://localhost.org/v1")


def test_an_ipv6_address(tmp_path: Path) -> None:
    with FakeOpenAI() as server:
        url = f"http://[::ffff:127.0.0.1]:{server.port}/v1"
        assert not ask(server, tmp_path, SAMPLE, url=url)[0][0][0].error


def test_further_headers_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_KEY", "azure-key-1")
    monkeypatch.delenv("NOT_SET", raising=False)
    with FakeOpenAI() as server:
        ask(server, tmp_path, SAMPLE, headers_env={"api-key": "AZURE_KEY", "x-more": "NOT_SET"})
    assert server.headers[0]["api-key"] == "azure-key-1" and "x-more" not in server.headers[0]


def test_who_uses_an_endpoint_reaches_it_in_the_same_way() -> None:
    """A judge beside the policy needs the same header and certificate; another server has its
    own."""
    way = {"headers_env": {"api-key": "KEY"}, "ca_file": "ca.pem", "system": "merge"}
    policy = {"base_url": "https://h/v1", "max_tokens_field": "max_completion_tokens", **way}
    tree = {"name": "x", "source": {"kind": "jsonl"}, "policy": policy}
    for name in ("rewriter", "judge"):
        role = build_settings(tree).role(name)
        assert {k: getattr(role, k) for k in policy} == policy
    other = build_settings({**tree, "judge": {"base_url": "https://other/v1"}}).role("judge")
    assert not other.headers_env and other.ca_file is None and other.system == "auto"


def test_null_takes_a_field_out(tmp_path: Path) -> None:
    with FakeOpenAI() as server:
        without = {"top_p": None, "seed": None, "n": None, "top_k": 5}
        assert len(ask(server, tmp_path, SAMPLE, extra_body=without)[0][0]) == 3
        body = server.requests[0]
        assert not {"top_p", "seed", "n"} & set(body) and body["top_k"] == 5
        ask(server, tmp_path / "b", SAMPLE, max_tokens_field="max_completion_tokens")
        assert server.requests[-1]["max_completion_tokens"] == 64
        assert "max_tokens" not in server.requests[-1]


def test_a_merged_system_turn_is_in_the_key(tmp_path: Path) -> None:
    with FakeOpenAI() as server:
        ask(server, tmp_path, SAMPLE)
        (merged,), stats = ask(server, tmp_path, SAMPLE, system="merge")
        first, last = server.requests[0]["messages"], server.requests[-1]["messages"]
        assert stats.replayed == 0 and len(merged) == 3
        assert first[0]["role"] == "system" and last[0]["role"] == "user"
        assert last[0]["content"] == "You grade.\n\nWhat is tea?"
    assert encode(SAMPLE, "m", {"messages": MERGED}) != encode(SAMPLE, "m", {})


@pytest.mark.parametrize(
    ("tree", "names"),
    [
        ({"data": [{"id": "a"}, {"id": "b"}]}, ["a", "b"]),
        ([{"id": "a"}], ["a"]),
        ({"models": [{"name": "models/a"}]}, ["models/a"]),
        (["a"], ["a"]),
        ({"data": []}, []),
    ],
)
def test_lists_of_models(tree: Any, names: list[str]) -> None:
    assert model_names(tree) == names


@pytest.mark.parametrize("tree", [{}, {"data": None}, "a", None, {"error": "no"}])
def test_no_list_of_models(tree: Any) -> None:
    with pytest.raises(ValueError, match="no list"):
        model_names(tree)


def test_waits() -> None:
    now = time.time()
    for headers, low, high in (
        ({"retry-after": formatdate(now + 20, usegmt=True)}, 18, 20),
        ({"retry-after": str(int(now) + 20)}, 18, 20),
        ({"retry-after": str(int(now * 1000) + 20_000)}, 18, 20),
        ({"retry-after": "20", "retry-after-ms": "500"}, 0.5, 0.5),
        ({"retry-after": "99999"}, 600, 600),
        ({"x-ratelimit-reset-requests": "1m5s"}, 60, 60),
        ({"x-ratelimit-reset-tokens": "6s", "x-ratelimit-reset-requests": "1s"}, 6, 6),
        (
            {
                "x-ratelimit-reset-tokens": "6s",
                "x-ratelimit-remaining-tokens": "900",
                "x-ratelimit-reset-requests": "120ms",
            },
            0.12,
            0.12,
        ),
    ):
        found = parse_retry_after(headers)
        assert found is not None and low <= found <= high, headers
    assert parse_retry_after({"retry-after": "nan"}) is None
    assert parse_duration("6m0s") == 360 and parse_duration("01 Mar") is None
    for said, seconds in (
        (b'{"error": {"message": "Please retry after 45 seconds."}}', 45),
        (b'{"error": {"message": "Please try again in 7m12.5s."}}', 432.5),
        (b'[{"error": {"message": "quota", "details": [{"retryDelay": "26s"}]}}]', 26),
        (b'{"error": {"message": "Slow down"}}', None),
    ):
        assert Refusal(429, said).wait_s == seconds


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<html><head><title>502 Bad\n Gateway</title></head></html>", "502 Bad Gateway"),
        (b"<html><style>a{}</style><h1>Oh no</h1></html>", "Oh no"),
        (b'{"success": false, "errors": [{"message": "No such account"}]}', "No such account"),
        (b'{"error": {"error": {"message": "inner"}}}', "inner"),
        (
            b'{"message": {"detail": [{"loc": ["body", "seed"], "msg": "extra"}]}}',
            "body.seed extra",
        ),
        (b"\xff" * 5000, "\ufffd" * 200),
        (b"", "no message"),
    ],
)
def test_sentences(body: bytes, message: str) -> None:
    assert Refusal(400, body).message == message


def test_a_certificate_of_ones_own(tmp_path: Path) -> None:
    """Refused with the setting that mends it; taken with it."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not there to make a certificate")
    key, pem = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost".split()
    names = ["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    files = ["-keyout", str(key), "-out", str(pem)]
    subprocess.run([*command, *names, *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, key)
    with FakeOpenAI() as server:
        server._server.socket = context.wrap_socket(server._server.socket, server_side=True)
        url = server.base_url.replace("http", "https", 1)
        with pytest.raises(EndpointError, match="ca_file"):
            ask(server, tmp_path / "a", SAMPLE, url=url)
        answers, _ = ask(server, tmp_path / "b", SAMPLE, url=url, model=None, ca_file=str(pem))
        assert len(answers[0]) == 3
        with pytest.raises(SettingsError, match="PEM"):
            ask(server, tmp_path / "c", SAMPLE, url=url, ca_file=str(tmp_path / "none"))


def check(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> tuple[str, str]:
    capsys.readouterr()
    assert main(["check", *argv]) == code
    out, err = capsys.readouterr()
    return out, err


def test_check_on_a_server_that_takes_all(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeOpenAI() as server:
        out, _ = check(capsys, "--base-url", server.base_url)
        assert len(server.requests) <= 14
        found = json.loads(check(capsys, "--base-url", server.base_url, "--json")[0])
    assert found["found"]["n"] == "3 of 3 choices in one request" and found["around"] == []
    assert found["found"]["verdict"].startswith("read: ")
    settings = yaml.safe_load(out[out.index("\npolicy:") :])
    url = server.base_url
    assert settings == {"policy": {"base_url": url, "model": "fake", "concurrency": 8}}


def test_check_says_what_is_worked_around_and_what_is_to_be_set(
    capsys: pytest.CaptureFixture[str],
) -> None:
    seed = error(422, "seed is not permitted", param="seed")
    with FakeOpenAI(if_(has("seed"), seed), max_n=1) as server:
        out, _ = check(capsys, "--base-url", server.base_url, "--model", "fake")
    assert "worked around    without seed" in out
    assert "n is ignored: n_per_request: 1" in out and "n_per_request: 1\n" in out


@pytest.mark.parametrize(
    ("says", "said"),
    [
        (replies(wrapped("<think>They want it short.</think>")), "told from the answer"),
        (replies(beside("reasoning_content")), "told from the answer"),
        # 40 tokens for {"score": 3}
        (replies(wrapped("")), "not shown: 40 tokens for 12 characters"),
        (lambda body, time: None, "none seen"),
    ],
)
def test_check_tells_where_thoughts_are(
    says: Any, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server that keeps them to itself counts their tokens all the same."""
    with FakeOpenAI(says) as server:
        out, _ = check(capsys, "--base-url", server.base_url, "--json")
    found = json.loads(out)
    assert found["found"]["thoughts"] == said
    room = "thoughts count: every max_tokens needs room for them"
    assert (room in found["cannot"]) == (said != "none seen")


def test_check_of_a_builder_goes_through_its_roles(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeOpenAI() as policy, FakeOpenAI(models=("big-judge",)) as judge:
        tree = {
            "name": "x",
            "source": {"kind": "jsonl"},
            "policy": {"base_url": policy.base_url, "concurrency": 2},
            "judge": {"base_url": judge.base_url},
        }
        (tmp_path / "b.yaml").write_text(json.dumps(tree))
        out, _ = check(capsys, "--source", str(tmp_path / "b.yaml"))
    assert "policy, rewriter: fake at" in out and "judge: big-judge at" in out
    assert "with 2 at once" in out and "&id" not in out  # no YAML anchors: it is to be copied


def test_check_ends_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeOpenAI(lambda b, t: Fault(401, b'{"error": "no"}')) as server:
        _, err = check(capsys, "--base-url", server.base_url, code=1)
    assert "put a valid key" in err.splitlines()[-1]
    _, err = check(capsys, "--base-url", server.base_url, "--set", "judge.model=x", code=1)
    assert "judge.model" in err
