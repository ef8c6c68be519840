"""Bad input: one line on stderr that says what happened and what to do, exit code 1, nothing
lost."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.command import (
    HANGS_S,
    asked_since,
    finish,
    kill,
    parquet_hashes,
    rows_file,
    start,
    steady,
)
from support.fake_openai import FakeOpenAI, Fault

from mora_data.cli import main
from mora_data.engines import openai

SMALL = (
    "--set",
    "presample.enabled=false",
    "--set",
    "fuse.arms=[identity]",
    "--set",
    "select.confirm=false",
    "--set",
    "rollout.n=4",
    "--set",
    "publish.configs=[preference, scored]",
)


class Bad:
    """Runs commands in this process, in a folder of their own, and checks how they fail."""

    def __init__(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.tmp, self._capsys = tmp_path, capsys
        self.data = rows_file(tmp_path / "rows.jsonl", 3)
        self.run = tmp_path / "run"

    def main(self, *argv: object, code: int) -> tuple[str, str]:
        self._capsys.readouterr()
        try:
            got = main([str(a) for a in argv])
        except SystemExit as e:
            got = int(e.code or 0)
        out, err = self._capsys.readouterr()
        assert got == code, err
        assert "Traceback" not in err
        return out, err

    def __call__(self, *argv: object, says: tuple[str, ...], code: int = 1) -> str:
        _, err = self.main(*argv, code=code)
        return one_line(err, *says)

    def build(
        self, *more: object, says: tuple[str, ...], source: str = "jsonl", data: Path | None = None
    ) -> str:
        """A simulated build of three rows that must fail."""
        return self(
            "build",
            "--source",
            source,
            "--data",
            data or self.data,
            "--engine",
            "scripted",
            "--out",
            self.run,
            *SMALL,
            *more,
            says=says,
        )

    def asks(self, server: FakeOpenAI, *more: object, says: tuple[str, ...]) -> str:
        return self(
            "build",
            "--source",
            "jsonl",
            "--data",
            self.data,
            "--base-url",
            server.base_url,
            "--out",
            self.run,
            *SMALL,
            *more,
            says=says,
        )

    def good(self, *more: object) -> dict[str, Any]:
        out, _ = self.main(
            "build",
            "--source",
            "jsonl",
            "--data",
            self.data,
            "--out",
            self.run,
            *SMALL,
            "--json",
            *more,
            code=0,
        )
        found: dict[str, Any] = json.loads(out)
        return found


def one_line(err: str, *says: str) -> str:
    lines = [line for line in err.splitlines() if line.startswith("mora-data: ")]
    assert len(lines) == 1 and err.splitlines()[-1] == lines[0], err
    assert (
        "Traceback" not in err
        and "Warning" not in err
        and "ignored in" not in err
        and "never retrieved" not in err
    ), err
    for text in says:
        assert text in lines[0], lines[0]
    return lines[0]


@pytest.fixture
def bad(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Bad:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HF_TOKEN", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(openai, "_wait_s", lambda fault, tries: 0.01)
    return Bad(tmp_path, capsys)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth of a second for the first answer, where none will come; a live server on a busy
    machine may take longer."""
    monkeypatch.setattr(openai, "NEVER_ANSWERED_S", 0.2)


@pytest.fixture(scope="module")
def sample_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of twelve sample rows."""
    run = tmp_path_factory.mktemp("sample") / "run"
    argv = ["build", "--source", "pku-saferlhf", "--sample", "--limit", "12", "--out", str(run)]
    assert main([*argv, "--set", "presample.n=[2]", "--set", "rollout.n=6"]) == 0
    return run


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# files
BROKEN_FILES: dict[str, tuple[str, bytes, tuple[str, ...]]] = {
    "empty": ("x.jsonl", b"", ("has no rows", "--data")),
    "empty csv": ("x.csv", b"", ("has no rows", "--data")),
    "empty json": ("x.json", b"", ("has no rows", "--data")),
    "empty parquet": ("x.parquet", b"", ("x.parquet", "get the file anew")),
    "empty gzip": ("x.jsonl.gz", b"", ("has no rows", "--data")),
    "unknown suffix": ("x.xlsx", b"PK", ("suffix '.xlsx'", ".parquet")),
    "not gzip": ("x.jsonl.gz", b"\x1f\x8b{}", ("x.jsonl.gz", "get the file anew")),
    "cut gzip": (
        "x.jsonl.gz",
        b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff\x01\x02",
        ("x.jsonl.gz", "get the file anew"),
    ),
    "cut parquet": ("x.parquet", b"PAR1 and then nothing", ("x.parquet", "get the file anew")),
    "binary": ("x.jsonl", bytes(range(128, 256)) * 4, ("none of the first", "x.jsonl", "suffix")),
    "another schema": (
        "x.jsonl",
        b'{"ask": "hello", "label": 1}\n',
        ("no layout", "ask, label", "ask is 'hello'", "--set source.columns.prompt=ask"),
    ),
    "all dropped": (
        "x.jsonl",
        b'{"prompt": null}\n{"prompt": "  "}\n',
        ("all 2 rows", "were dropped"),
    ),
}


@pytest.mark.parametrize("name", BROKEN_FILES)
def test_broken_file(bad: Bad, name: str) -> None:
    file, content, says = BROKEN_FILES[name]
    bad.build(says=says, data=write(bad.tmp / file, content))


def test_missing_and_unreadable_files(bad: Bad) -> None:
    bad.build(says=("no file or folder at", "nowhere.jsonl", "--data"), data=Path("nowhere.jsonl"))
    empty = bad.tmp / "empty"
    empty.mkdir()
    bad.build(says=("no data file in", ".jsonl", ".parquet"), data=empty)
    if os.getuid() == 0:  # root reads everything
        (bad.tmp / "loop.jsonl").symlink_to("loop.jsonl")
        bad.build(says=("loop.jsonl", "--data"), data=bad.tmp / "loop.jsonl")
    else:
        bad.data.chmod(0)
        bad.build(says=("Permission denied", "--data"))


def test_bad_rows_are_counted_and_the_run_goes_on(bad: Bad) -> None:
    good = [
        json.dumps({"prompt": f"How do I mend item {i} of a fence?"}).encode() for i in range(4)
    ]
    rows = [
        good[0],
        b'{"other": 1}',
        b'{"prompt": 7}',
        good[1],
        b'{"prompt": null}',
        b'{"prompt": "\xff\xfe"}',
        b"[1]",
        b'{"prompt": "cut',
        b'{"prompt": "\\ud800 alone"}',
        b'{"prompt": {"a": 1}}',
        good[2],
        good[3],
    ]
    bad.data.write_bytes(b"\n".join(rows) + b"\n")
    counts = bad.good("--engine", "scripted", "--until", "score")["counts"]["mine"]
    assert (
        counts["in"] == len(rows) == counts["kept"] + sum(counts["dropped"].values())
        and counts["kept"] == 4
    )
    assert counts["dropped"].keys() >= {"not_utf8", "not_an_object", "bad_json"}


def test_parquet_with_text_that_is_not_utf8(bad: Bad) -> None:
    raw = pa.array([b"How do I sow grass?", b"\xff\xfe", b"How do I mow it?"], pa.binary()).view(
        pa.string()
    )
    pq.write_table(pa.table({"prompt": raw}), bad.tmp / "x.parquet")
    bad.data = bad.tmp / "x.parquet"
    counts = bad.good("--engine", "scripted", "--until", "score")["counts"]["mine"]
    assert counts == {"in": 3, "kept": 2, "dropped": {"not_utf8": 1}}


def test_beavertails_is_not_pku(bad: Bad) -> None:
    row = {
        "prompt": "How do I fix a tap?",
        "response": "Turn it.",
        "category": {"animal_abuse": False},
        "is_safe": True,
    }
    says = ("another schema", "is_safe", "response_0", "read them with --source auto")
    bad.build(
        says=says,
        source="pku-saferlhf",
        data=write(bad.tmp / "b.jsonl", (json.dumps(row) + "\n").encode()),
    )
    assert not (bad.run / "parts").exists()


# settings
BAD_SETTINGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "unknown key": (
        ("--set", "rolout.n=8"),
        ("unknown setting 'rolout'", "did you mean 'rollout'?"),
    ),
    "unknown nested key": (
        ("--set", "presample.floor=auto"),
        ("unknown setting 'presample.floor'", "did you mean 'floors'?"),
    ),
    "unknown key of a role": (
        ("--set", "policy.temprature=1"),
        ("'policy.temprature'", "did you mean 'temperature'?"),
    ),
    "unknown key of a reward": (
        ("--set", "rewards={helpful: [{kid: judge}]}"),
        ("kid", "did you mean 'kind'?"),
    ),
    "no equals sign": (("--set", "rollout.n"), ("'rollout.n' is not KEY=VALUE", "rollout.n=VALUE")),
    "no key": (("--set", "=8"), ("is not KEY=VALUE",)),
    "value is not YAML": (("--set", "rollout.n=[8"), ("not YAML", "rollout.n")),
    "wrong type": (("--set", "rollout.n=many"), ("rollout.n", "'many'")),
    "out of range": (("--set", "rollout.n=1"), ("rollout.n", "greater than or equal to 2")),
    "schedule falls": (("--set", "presample.n=[8,4]"), ("presample.n", "must rise")),
    "a dimension twice": (("--set", "dimensions=[helpful,helpful]"), ("different names",)),
    "a setting set below a value": (("--set", "seed.x=1"), ("seed", "integer")),
    "selector": (
        ("--set", "select.selector=dominanse_hv"),
        ("unknown select.selector 'dominanse_hv'", "did you mean 'dominance_hv'?", "module:name"),
    ),
    "selector module": (
        ("--set", "select.selector=no_such_module:f"),
        ("no_such_module", "select"),
    ),
    "reward kind": (
        ("--set", "rewards={helpful: [{kind: juge}]}"),
        ("unknown rewards.helpful 'juge'", "did you mean 'judge'?"),
    ),
    "engine": (("--engine", "opnai"), ("engine 'opnai'", "did you mean 'openai'?")),
    "engine not there": (
        ("--engine", "vllm"),
        ("engine 'vllm' needs vllm", "pip install 'mora-data[vllm]'"),
    ),
    "fuse arm": (("--set", "fuse.arms=[fusd]"), ("template 'fusd'", "fused")),
    "template": (
        ("--set", "rewards={helpful: [{template: helpfull}]}"),
        ("template 'helpfull'", "there: harmless, helpful, pairwise, rubric, shared, together,"),
    ),
    "dimension without template": (
        ("--set", "dimensions=[helpful,brief]"),
        ("dimension 'brief' has no rubric", "rewards.brief.template=rubrics/brief.j2"),
    ),
    "template that is not there": (
        ("--set", "rewards={helpful: [{template: gone.j2}]}"),
        ("no template can be read at 'gone.j2': No such file or directory",),
    ),
    "function that is none": (
        ("--set", "rewards={helpful: [{kind: python, path: 'math:pi'}]}"),
        ("rewards.helpful.path 'math:pi' is no function of (messages, answer)",),
    ),
    "publish config": (
        ("--set", "publish.configs=[prefrence]"),
        ("prefrence", "did you mean 'preference'?"),
    ),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_bad_setting(bad: Bad, name: str) -> None:
    argv, says = BAD_SETTINGS[name]
    bad.build(*argv, says=says)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("source: [", ("mine.yaml", "not YAML")),
        ("- a\n- b\n", ("mine.yaml", "mapping, not list")),
        ("", ("mine.yaml", "mapping, not NoneType")),
        ("name: x\n", ("'source' is missing",)),
        ("name: x\nsource: {kind: jsnl}\n", ("jsnl", "did you mean 'jsonl'?")),
        ("name: x\nsource: {kind: jsonl}\nrollout: {m: 3}\n", ("'rollout.m'", "n")),
        (
            "name: x\nsource: {kind: jsonl}\njudge: {tempreature: 0}\n",
            ("judge.tempreature", "did you mean 'temperature'?"),
        ),
        (
            "name: x\nsource: {kind: jsonl, columns: {promt: q}}\n",
            ("'promt'", "did you mean 'prompt'?"),
        ),
        (
            "name: x\nsource: {kind: jsonl}\nrewards: {helpful: [{weigth: 1}]}\n",
            ("weigth", "did you mean 'weight'?"),
        ),
        ("name: [1\n: \xff", ("mine.yaml", "not YAML")),
    ],
)
def test_bad_yaml(bad: Bad, text: str, says: tuple[str, ...]) -> None:
    bad.build(says=says, source=str(write(bad.tmp / "mine.yaml", text.encode("latin-1"))))


def test_unknown_source(bad: Bad) -> None:
    bad.build(
        says=("unknown --source 'pku-saferhlf'", "did you mean 'pku-saferlhf'?"),
        source="pku-saferhlf",
    )
    bad.build(says=("no-such.yaml", "No such file"), source="no-such.yaml")


def test_template_names_all_undefined_variables(bad: Bad) -> None:
    path = write(
        bad.tmp / "mine.j2", b"{% block user %}{{ anser }} {{ questoin }} {{ nonce }}{% endblock %}"
    )
    setting = f"rewards={{helpful: [{{template: {path}}}]}}"
    bad.build("--set", setting, says=("anser, questoin", "it may use", "answer"))
    path.write_text("{% block user %}{{ answer }")
    bad.build("--set", setting, says=("judge/mine", "line 1"))
    path.write_text("{{ answer }}")
    bad.build("--set", setting, says=("no {% block user %}",))
    bad.build("--set", setting.replace("mine", "gone"), says=("no template can be read", "gone.j2"))


@pytest.mark.parametrize(
    "argv",
    [
        ("biuld",),
        (),
        ("build",),
        ("build", "--source", "jsonl", "--limit", "many"),
        ("build", "--source", "jsonl", "--sample", "--data", "x"),
        ("build", "--source", "jsonl", "--untill", "mine"),
        ("list", "things"),
        ("export", "run", "--to", "x"),
    ],
)
def test_usage(bad: Bad, argv: tuple[str, ...]) -> None:
    _, err = bad.main(*argv, code=2)
    assert err.startswith("mora-data") and err.endswith("--help)\n") and err.count("\n") == 1


# endpoints
def test_no_endpoint(bad: Bad) -> None:
    bad(
        "build",
        "--source",
        "jsonl",
        "--data",
        bad.data,
        "--out",
        bad.run,
        says=("--base-url", "OPENAI_API_KEY", "--engine scripted"),
    )
    assert not bad.run.exists()


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000/v1",
        "ftp://127.0.0.1/v1",
        "127.0.0.1",
        "http://",
        "http:///v1",
        "http://127.0.0.1:port/v1",
        "http://127.0.0.1:99999/v1",
        "http://[::1/v1",
        "http://a b/v1",
    ],
)
def test_base_url_is_not_an_address(bad: Bad, url: str) -> None:
    line = bad(
        "build",
        "--source",
        "jsonl",
        "--data",
        bad.data,
        "--base-url",
        url,
        "--out",
        bad.run,
        *SMALL,
        says=("is not an http(s) address", "http://127.0.0.1:8000/v1", repr(url.rstrip("/"))),
    )
    assert "chat/completions" not in line


def closed() -> FakeOpenAI:
    with FakeOpenAI() as server:
        pass
    return server


def test_endpoint_dead_from_the_start(bad: Bad, impatient: None) -> None:
    server = closed()
    bad.asks(
        server,
        says=("can't be asked for its models", "refused", "start the server", server.base_url),
    )
    bad.asks(
        server,
        "--model",
        "m",
        says=("never answered", "refused", "start the server", server.base_url),
    )
    bad.asks(
        server,
        "--model",
        "m",
        "--set",
        "presample.enabled=true",
        says=("never answered", "start the server"),
    )


def test_dead_endpoint_opens_no_more_prompts_than_it_could_serve(bad: Bad, impatient: None) -> None:
    bad.data = rows_file(bad.tmp / "rows.jsonl", 200)
    bad.asks(
        closed(),
        "--model",
        "m",
        "--set",
        "partition_size=1",
        "--set",
        "policy.concurrency=4",
        says=("never answered",),
    )
    # tried again, in flight, waiting
    assert len(list(bad.run.glob("parts/*/answers.log"))) <= 4 * 4 + 4 + 4


def test_endpoint_that_does_not_speak_http(
    bad: Bad, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket
    import threading

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            while True:
                try:
                    peer, _ = listener.accept()
                except OSError:
                    return
                with peer:
                    peer.recv(65536)
                    peer.sendall(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        args = (
            "build",
            "--source",
            "jsonl",
            "--data",
            bad.data,
            "--base-url",
            url,
            "--out",
            bad.run,
            *SMALL,
        )
        bad(*args, says=("can't be asked for its models", "base URL"))
        monkeypatch.setattr(openai, "NEVER_ANSWERED_S", 0.0)
        bad(*args, "--model", "m", says=("never answered", "not an HTTP reply", "base URL"))


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (401, ("401", "OPENAI_API_KEY")),
        (403, ("403", "OPENAI_API_KEY")),
        (404, ("404", "told to say 404", "--model")),
        (302, ("302", "base URL")),
    ],
)
def test_endpoint_refuses(bad: Bad, status: int, says: tuple[str, ...]) -> None:
    with FakeOpenAI(lambda body, time: Fault(status)) as server:
        bad.asks(server, "--model", "m", says=says)


def test_a_model_without_a_chat_template(bad: Bad) -> None:
    """vLLM's words: no request of the kind can be answered, so the run stops with them."""
    said = "default chat template is no longer allowed, so you must provide a chat template"
    body = json.dumps({"error": {"message": said, "code": 400}}).encode()
    with FakeOpenAI(lambda asked, time: Fault(400, body)) as server:
        bad.asks(server, "--model", "m", says=("must provide a chat template",))


def test_a_rewriter_that_always_refuses(bad: Bad) -> None:
    """Its prompts are dropped for that reason, which the last line names; nothing is lost."""

    def refuses(body: dict[str, Any], time: int) -> Fault | None:
        if "rewritten" in str(body["messages"][0]["content"]):
            return Fault(text=json.dumps({"rewritten": ""}))
        return None

    fused = ("--set", "fuse.arms=[fused]", "--set", "fuse.retries=1", "--model", "m")
    with FakeOpenAI(refuses) as server:
        bad.asks(server, *fused, says=("no pair was selected", "rewriter_refusal"))
        n = len(server.requests)
        bad.asks(server, *fused, says=("no pair was selected", "rewriter_refusal"))
        assert len(server.requests) == n
    manifest = json.loads((bad.run / "manifest.json").read_text())
    fuse = manifest["counts"]["fuse"]
    assert fuse["in"] == 3 and fuse["dropped"] == {"rewriter_refusal": 3}


def test_endpoint_refuses_in_the_middle_of_a_run(bad: Bad) -> None:
    bad.data = rows_file(bad.tmp / "rows.jsonl", 30)
    limit = [100]
    with FakeOpenAI(
        lambda body, time: Fault(401) if len(server.requests) > limit[0] else steady(body, time)
    ) as server:
        bad.asks(server, "--model", "m", says=("401", "OPENAI_API_KEY"))
        limit[0] = 1 << 30
        summary = bad.good("--base-url", server.base_url, "--model", "m")
        # those in flight when the run stopped
        assert summary["replayed"] > 0 and server.repeated() <= 64


def test_models_of_the_endpoint(bad: Bad) -> None:
    with FakeOpenAI(models=("a", "b")) as server:
        bad.asks(server, says=("serves 2 models (a, b)", "give --model"))
    with FakeOpenAI(models=()) as server:
        bad.asks(server, says=("serves 0 models", "give --model"))
    with FakeOpenAI() as server:
        server.base_url += "/v1x"
        server.models = ()
        bad(
            "build",
            "--source",
            "jsonl",
            "--data",
            bad.data,
            "--base-url",
            server.base_url.replace("/v1", "/none"),
            "--out",
            bad.run,
            *SMALL,
            says=("--model",),
        )


def test_context_too_long_is_a_failed_row(bad: Bad) -> None:
    bad.data = rows_file(bad.tmp / "rows.jsonl", 20)
    said = (
        b'{"error": {"message": "maximum context length is 2048 tokens", "type": "BadRequestError",'
        b' "code": 400}}'
    )

    def too_long(body: dict[str, Any], time: int) -> Fault | None:
        return (
            Fault(400, said)
            if "item 7 " in body["messages"][-1]["content"] and "response_format" not in body
            else steady(body, time)
        )

    with FakeOpenAI(too_long) as server:
        summary = bad.good(
            "--base-url", server.base_url, "--model", "m", "--set", "limits.max_error_share=0.5"
        )
        assert summary["errors"] == 4 and summary["counts"]["rollout"]["dropped"] == {"failed": 4}
        errors = [json.loads(line) for line in (bad.run / "errors.jsonl").read_text().splitlines()]
        assert all("maximum context length" in e["error"] for e in errors)
        n = len(server.requests)
        bad.asks(
            server,
            "--model",
            "m",
            "--set",
            "limits.max_error_share=0.001",
            says=("max_error_share = 0.001", "errors.jsonl"),
        )
        assert len(server.requests) == n


@pytest.mark.parametrize("presampled", [False, True])
def test_row_that_the_server_can_not_answer_now_is_owed(bad: Bad, presampled: bool) -> None:
    bad.data = rows_file(bad.tmp / "rows.jsonl", 8)
    more = (
        "--model",
        "m",
        "--set",
        "rollout.n=8",
        "--set",
        "limits.max_error_share=0",
        "--set",
        f"presample.enabled={presampled}",
    )
    if presampled:
        all_kinds = "presample.accept=[flat,one_dim,conflict,multi,undecided]"
        more += ("--set", "presample.n=[2]", "--set", all_kinds)
    with FakeOpenAI(steady) as server:
        bad.run = bad.tmp / "clean"
        bad.good("--base-url", server.base_url, *more)
        bad.run = bad.tmp / "run"
        server.script = lambda body, time: (
            Fault(500) if "item 3 " in str(body["messages"]) else steady(body, time)
        )
        bad.asks(server, *more, says=("max_error_share", "asks again"))
        out, _ = bad.main("status", bad.run, "--json", code=0)
        assert json.loads(out)["owed"] == 1
        server.script = steady
        assert bad.good("--base-url", server.base_url, *more)["errors"] == 0
        names = [n for n in parquet_hashes(bad.tmp / "clean") if "answers" not in n]
        assert {n: parquet_hashes(bad.run)[n] for n in names} == {
            n: parquet_hashes(bad.tmp / "clean")[n] for n in names
        }


# folders
def test_run_folder_of_another_build(bad: Bad) -> None:
    bad.good("--engine", "scripted", "--until", "score")
    other = rows_file(bad.tmp / "other.jsonl", 4)
    bad.build(says=("is another build", "revision", "--out", "--fresh"), data=other)
    bad.data = other
    assert (
        bad.good("--engine", "scripted", "--fresh", "--until", "score")["counts"]["mine"]["in"] == 4
    )


@pytest.mark.parametrize("fresh", [(), ("--fresh",)])
@pytest.mark.parametrize(
    "content",
    [
        {"notes.txt": "mine"},
        {"manifest.json": '{"name": "an app"}', "index.html": "x"},
        {"manifest.json": "not json"},
        {"parts/x": "y"},
    ],
)
def test_folder_that_is_no_run_folder_is_left_alone(
    bad: Bad, content: dict[str, str], fresh: tuple[str, ...]
) -> None:
    for name, text in content.items():
        (bad.run / name).parent.mkdir(parents=True, exist_ok=True)
        (bad.run / name).write_text(text)
    bad.build(*fresh, says=("is not a run folder", "--out"))
    assert {
        str(p.relative_to(bad.run)): p.read_text() for p in bad.run.rglob("*") if p.is_file()
    } == content


def test_out_is_a_file_or_can_not_be_made(bad: Bad) -> None:
    bad.run = bad.data
    bad.build(says=("can't use the run folder", "rows.jsonl"))
    bad.run = bad.data / "below"
    bad.build(says=("can't use the run folder", "Not a directory"))


def test_commands_on_a_folder_that_is_no_run(bad: Bad) -> None:
    for folder, said in ((bad.tmp, "holds no dataset"), (bad.tmp / "nowhere", "does not exist")):
        bad("status", folder, says=(said, "dataset"))
        bad("push", folder, "org/name", says=("holds no finished dataset", "--out of a build"))
        bad(
            "export",
            folder,
            "--config",
            "preference",
            "--to",
            bad.tmp / "to",
            says=("holds no dataset", "ORG/NAME@TAG"),
        )


def test_export_of_an_unknown_config(bad: Bad, sample_run: Path) -> None:
    shutil.copytree(sample_run, bad.run)
    bad(
        "export",
        bad.run,
        "--config",
        "preferences",
        "--to",
        bad.tmp / "to",
        says=("no config 'preferences'", "did you mean 'preference'?"),
    )
    bad(
        "export",
        bad.run,
        "--config",
        "nosuch",
        "--to",
        bad.tmp / "to",
        says=("no config 'nosuch'", "preference"),
    )
    bad(
        "export",
        bad.run,
        "--config",
        "preference",
        "--to",
        bad.data,
        says=("can't export preference",),
    )
    bad("push", bad.run, "not-an-id", "--allow-simulated", says=("not a repository id", "ORG/NAME"))


# the Hub, in processes of their own: its client reads the environment when it is imported
def test_hub_unreachable(bad: Bad) -> None:
    env = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    for source in ("pku-saferlhf", "hh-rlhf"):
        _, err = finish(
            ["build", "--source", source, "--engine", "scripted", "--out", source],
            bad.tmp,
            code=1,
            env=env,
        )
        one_line(err, "can't fetch", "--data", "--sample")


def test_push_without_a_token(bad: Bad, sample_run: Path) -> None:
    import threading

    from support.hub_standin import make_server

    shutil.copytree(sample_run, bad.run)
    hub = make_server(bad.tmp / "hub", token="T")
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        env = {
            "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_address[1]}",
            "HF_HUB_DISABLE_XET": "1",
        }
        _, err = finish(["push", "run", "org/pairs"], bad.tmp, code=1, env=env)
        one_line(err, "no Hub token", "HF_TOKEN")
        _, err = finish(
            ["push", "run", "org/pairs"], bad.tmp, code=1, env={**env, "HF_TOKEN": "wrong"}
        )
        one_line(err, "token")
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


# a disk that is full
def limited(n_bytes: int) -> Callable[[], None]:
    """No file of the process may grow beyond `n_bytes`."""

    def set_limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))

    return set_limit


@pytest.fixture(scope="module")
def whole() -> dict[int, dict[str, str]]:
    """Partition size -> the files of a run that nothing stopped."""
    return {}


@pytest.mark.skipif(sys.platform != "linux", reason="the limit works so on Linux alone")
@pytest.mark.parametrize(
    ("n_bytes", "size", "where"),
    [
        (300, 1, "build.yaml"),
        (4700, 1, "parts/000"),
        (9000, 1, "dataset folder"),
        (8000, 12, "answers.log"),
    ],
)
def test_disk_full_keeps_what_was_answered(
    bad: Bad, whole: dict[int, dict[str, str]], n_bytes: int, size: int, where: str
) -> None:
    rows_file(bad.tmp / "rows.jsonl", 12)
    argv = [
        "build",
        "--source",
        "jsonl",
        "--data",
        "rows.jsonl",
        "--model",
        "m",
        *SMALL,
        "--set",
        f"partition_size={size}",
        "--json",
        "--out",
    ]
    with FakeOpenAI(steady) as server:
        url = ("--base-url", server.base_url)
        if size not in whole:
            bad.main(*argv, "clean", *url, code=0)
            whole[size] = parquet_hashes(bad.tmp / "clean")
            server.answered.clear()
        # else it would leave module caches cut off at the limit
        uncached = {"PYTHONDONTWRITEBYTECODE": "1"}
        process = start([*argv, "run", *url], bad.tmp, limit=limited(n_bytes), env=uncached)
        err = process.communicate(timeout=HANGS_S)[1]
        assert process.returncode == 1, err
        one_line(err, "can't write", where, "space")
        bad.main(*argv, "run", *url, code=0)
        assert parquet_hashes(bad.tmp / "run") == whole[size] and server.repeated() <= 64


def test_interrupt_while_the_endpoint_is_away(bad: Bad) -> None:
    """Waiting for a server that never comes can be interrupted, too."""
    with FakeOpenAI(lambda body, time: Fault(503, headers={"retry-after": "600"})) as server:
        process = start(
            [
                "build",
                "--source",
                "jsonl",
                "--data",
                "rows.jsonl",
                "--model",
                "m",
                *SMALL,
                "--out",
                "run",
                "--base-url",
                server.base_url,
            ],
            bad.tmp,
        )
        asked_since(server, 0, 3)
        code, err = kill(process, signal.SIGINT)
        assert code == 130 and "To go on: mora-data build" in err and "Traceback" not in err
