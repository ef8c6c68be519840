"""Endpoints as people have them: every behaviour of the table asked through the engine, some of
them through the real command, all of them with `-m slow`.

The bodies are those of public bug reports; the fake server says them, since no real one can be made
to.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import fake_openai
from support.command import rows_file, steady
from support.endpoint_cases import (
    CASES,
    JUDGE,
    MUSING,
    SAMPLE,
    Case,
    ask,
    everything_in,
    has,
    if_,
    is_judge,
)
from support.fake_openai import FakeOpenAI, Fault

from mora_data import resources
from mora_data.cli import main
from mora_data.engines import openai
from mora_data.errors import EndpointError
from mora_data.run.folder import StageCounts, cause_of, emptied_by, too_many_errors
from mora_data.settings import build_settings
from mora_data.types import Message

BAD = replace(SAMPLE, prompt_id="bad", messages=(Message(role="user", content="bad"),), n=1)
BY_NAME = {case.name: case for case in CASES}
# one of each kind through the command, in the form that it tests best
SOME = (
    ("max_tokens, by param", "plain"),
    ("temperature and top_p", "full"),
    ("seed, a list", "plain"),
    ("n, one choice", "plain"),
    ("system role, 500", "full"),
    ("bounds, of the schema", "plain"),
    ("402", "plain"),
    ("403, the key", "full"),
    ("row: content filter, Azure", "full"),
    ("passes: 503, loading", "plain"),
    ("a deployment, no list", "plain"),
    ("a query", "plain"),
    ("a key in a header of its own", "plain"),
    ("thought: the closing tag alone", "plain"),
    ("thought: channels", "plain"),
    ("thought: JSON taken for one", "full"),
    ("thought: a stream of parts", "plain"),
    ("verdict: within a result", "plain"),
    ("streams only, with thoughts", "full"),
    ("n, as many as slots", "full"),
)
# small builds: plain sampling; the full job, whose steps are the same for all prompts
FORMS: dict[str, dict[str, Any]] = {
    "plain": {
        "presample": {"enabled": False},
        "fuse": {"arms": ["identity"]},
        "rollout": {"n": 4},
        "select": {"confirm": False},
    },
    "full": {
        "dimensions": ["helpful", "truthful"],
        "presample": {
            "n": [2],
            "before": 2,
            "canaries": 0,
            "accept": ["flat", "one_dim", "conflict", "multi", "undecided"],
        },
        "fuse": {"arms": ["fused"], "checks": []},
        "rollout": {"n": 4},
    },
}
Command = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai, "_wait_s", lambda fault, tries: 0.0 if tries < 5 else 0.1)
    monkeypatch.setattr(openai, "NEVER_ANSWERED_S", 0.2)
    monkeypatch.setenv("FAKE_KEY", "a-key-of-twenty-letters")
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def test_there_are_as_many_cases_as_were_found() -> None:
    assert len(BY_NAME) == len(CASES) >= 130


@pytest.mark.parametrize("case", CASES, ids=BY_NAME)
def test_an_endpoint(case: Case, tmp_path: Path) -> None:
    lines: list[str] = []
    with FakeOpenAI(case.says) as server:
        case.set_up(server)
        url = case.url(server.base_url)
        requests = [JUDGE, SAMPLE, *([BAD] if case.ends == "row" else [])]

        def asked() -> Any:
            return ask(server, tmp_path, *requests, url=url, say=lines.append, **case.more)

        if case.ends == "stop":
            with pytest.raises(EndpointError) as caught:
                asked()
            said = str(caught.value)
            assert case.line in said and "\n" not in said and len(said) < 450
            assert len(server.requests) < 20 or "500" in case.name
            assert (tmp_path / "answers.log").stat().st_size == 0
            return
        (verdict, samples, *bad), stats = asked()
        assert [len(verdict), len(samples)] == [1, 3]
        assert not any(a.error or not a.text or MUSING in a.text for a in (*verdict, *samples))
        assert [bool(a.error) for answers in bad for a in answers] == [True] * len(bad)
        assert sum(stats.failed.values()) == len(bad) and server.repeated() == 0
        assert case.line in "\n".join(lines)
        n = len(server.requests)
        again, stats = asked()
        assert again == [verdict, samples, *bad] and stats.replayed == 4 + len(bad)
        assert len(server.requests) == n, "a resume asks nothing"


def test_a_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is waited for longer than a row is tried, and a line says so once."""
    monkeypatch.setattr(openai, "_wait_s", lambda fault, tries: 0.0)
    lines: list[str] = []
    loading = Fault(503, b'{"error": {"message": "Loading model"}}')
    with FakeOpenAI(lambda b, t: loading if len(server.requests) < 40 else None) as server:
        assert ask(server, tmp_path, JUDGE, SAMPLE, say=lines.append)[1].retries["503"] > 8
    assert len(lines) == 1 and "is waited for, up to 600 s (HTTP 503 Loading model)" in lines[0]


@pytest.fixture
def command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    """Builds from three prompts: exit code, its JSON, stderr."""
    monkeypatch.setattr(fake_openai, "grade", fake_openai.steady_grade)
    rows = [{"prompt": f"What is {x} tea?"} for x in ("green", "bad", "black")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))

    def run(
        case: Case, server: FakeOpenAI, *more: str, form: str = "plain"
    ) -> tuple[int, dict[str, Any], str]:
        (tmp_path / "b.yaml").write_text(json.dumps(settings_of(case, server, form)))
        argv = ["build", "--source", tmp_path / "b.yaml", "--data", tmp_path / "rows.jsonl"]
        capsys.readouterr()
        code = main([*map(str, argv), "--out", str(tmp_path / "run"), "--json", *more])
        out, err = capsys.readouterr()
        return code, json.loads(out) if out.strip() else {}, err

    return run


def settings_of(case: Case, server: FakeOpenAI, form: str) -> dict[str, Any]:
    """A builder of the case."""
    url = case.url(server.base_url)
    more = {"model": "fake", "temperature": 0.7, "stop": ["END"], **case.more}
    return {
        "name": "x",
        "source": {"kind": "jsonl", "licence": "mit"},
        "dimensions": ["helpful"],
        "policy": {"base_url": url, **more},
        "limits": {"max_error_share": 0.5},
        "publish": {"configs": ["preference", "scored"]},
        **FORMS[form],
    }


def check_command(case: Case, command: Command, form: str, folder: Path) -> None:
    with FakeOpenAI(case.says) as server:
        case.set_up(server)
        code, summary, err = command(case, server, form=form)
        last = err.strip().splitlines()[-1]
        if case.ends == "stop":
            assert code == 1 and case.line in last, err
            return
        kept = {stage: c["kept"] for stage, c in summary["counts"].items()}
        prompts = 2 if case.ends == "row" else 3
        assert (code, kept["rollout"]) == (0, 4 * prompts), err
        assert kept["score"] == 4 * prompts and summary["pairs"] > 0, summary["counts"]
        assert form == "plain" or kept["fuse"] == prompts, summary["counts"]
        assert (summary["errors"] > 0) == (case.ends == "row")
        # without seeds, fresh answers and their verdicts are asked for in the same words
        seeded = "seed" in server.requests[-1]
        assert summary["repeated"] == 0 and (server.repeated() == 0 or not seeded)
        judged = [body for body in server.requests if is_judge(body)]
        assert judged and MUSING not in json.dumps(judged)
        assert MUSING not in everything_in(folder / "run/dataset")
        n = len(server.requests)
        code, again, _ = command(case, server, form=form)
        assert code == 0 and len(server.requests) == n and again["pairs"] == summary["pairs"]


@pytest.mark.parametrize(("name", "form"), SOME)
def test_the_command(name: str, form: str, command: Command, tmp_path: Path) -> None:
    check_command(BY_NAME[name], command, form, tmp_path)


def test_only_the_refused_rows_are_lost(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a nonce has the letters of what is refused."""
    drawn = resources._drawn

    def with_letters(*of: Any) -> tuple[int, str]:
        number, nonce = drawn(*of)
        return number, "0bad" + nonce[:8]

    monkeypatch.setattr(resources, "_drawn", with_letters)
    check_command(BY_NAME["row: too long, llama.cpp"], command, "full", tmp_path)


def test_what_was_learned_is_shown(command: Command, tmp_path: Path, capsys: Any) -> None:
    """In the summary, in the manifest, in the status and on the card, without an address."""
    with FakeOpenAI(BY_NAME["n, one choice"].says) as server:
        _, summary, err = command(BY_NAME["n, one choice"], server)
    learned = {"fake": ["is asked one answer a request"]}
    assert f"fake at {server.base_url} is asked one answer a request\n" in err
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert summary["endpoints"] == manifest["endpoints"] == learned
    assert main(["status", str(tmp_path / "run")]) == 0
    line = "model fake is asked one answer a request"
    assert line in capsys.readouterr().out
    card = (tmp_path / "run/dataset/README.md").read_text()
    assert line.replace("model", "Model") in card and str(server.port) not in card


@pytest.mark.parametrize("presample", ["true", "false"])
def test_the_last_line_names_the_commonest_cause(command: Command, presample: str) -> None:
    """Failed rows are counted of all rows: a judge's too, of prompts that got no further."""
    case = Case("no verdict", if_(has("response_format"), Fault(text="I can't tell.")))
    with FakeOpenAI(case.says) as server:
        more = ("--set", f"presample.enabled={presample}", "--set", "limits.max_error_share=0.02")
        code, _, err = command(case, server, *more)
    last = err.strip().splitlines()[-1]
    assert code == 1 and re.search(r" x (\w+: )?no_verdict: ", last)
    assert "mora-data check" in last or "rows failed (" in last


def test_failed_rows_are_counted_of_all_rows() -> None:
    errors = [{"error": "HTTP 400:  no\nway"}, {"error": "HTTP 400: no way"}, {"error": "cut_off"}]
    assert cause_of(errors) == "2 x HTTP 400: no way"
    few = [
        {"error": "3 scores for 4 answers", "dimension": "calm"},
        {"error": "", "dimension": "x"},
    ]
    counts = {"select": StageCounts({"in": 2, "kept": 0, "dropped": {"no_dominating_pair": 2}})}
    assert "2 no_dominating_pair; raise rollout.n" in emptied_by(counts, Path("run"), [])
    assert cause_of(few) == "1 x calm: 3 scores for 4 answers"
    settings = build_settings({"name": "x", "source": {"kind": "jsonl"}})
    said = str(too_many_errors(errors, 4, settings, Path("run")))
    assert "3 of 4 rows failed (75.0%" in said and "most often 2 x HTTP 400: no way" in said
    assert too_many_errors(errors[:1], 100, settings, Path("run")) is None


EACH = [pytest.param(case, form, id=f"{case.name}-{form}") for case in CASES for form in FORMS]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "form"), EACH)
def test_the_command_on_each(case: Case, form: str, command: Command, tmp_path: Path) -> None:
    check_command(case, command, form, tmp_path)


def test_a_build_that_has_all_its_answers_needs_no_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def build(selector: str) -> tuple[int, dict[str, Any], str]:
        where = (
            "build",
            "--source",
            "jsonl",
            "--data",
            str(rows_file(tmp_path / "rows.jsonl", 12)),
        )
        url = ("--base-url", server.base_url, "--out", str(tmp_path / "run"), "--json")
        plain = ("presample.enabled=false", "fuse.arms=[identity]", "rollout.n=4")
        sets = [*plain, "select.confirm=false", f"select.selector={selector}"]
        code = main([*where, *url, *(w for s in sets for w in ("--set", s))])
        out, err = capsys.readouterr()
        return code, json.loads(out), err

    with FakeOpenAI(steady) as server:
        code, first, _ = build("dominance_hv")
        assert code == 0 and first["pairs"]
    code, again, err = build("weighted_sum")
    assert (code, again["requests"]) == (0, 0) and again["pairs"]
    assert "can't be asked for its models" in err and "taken to be fake" in err
