"""Builds over a provider's batch API and over run-batch files: waves, resume, failures, and answers
shared with a live run."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from support.command import finish_here, kill, parquet_hashes, rows_file, start, steady
from support.endpoint_cases import error
from support.fake_batches import FakeProvider, run_batch
from support.fake_openai import FakeOpenAI, Fault

from mora_data.cli import main

PROMPTS = 12
SETTINGS = (
    "presample.n=[2]",
    "rollout.n=4",
    "fuse.arms=[identity]",
    "partition_size=5",
    "policy.batch.poll_s=0.01",
    "presample.accept=[flat,one_dim,conflict,multi,undecided]",
    "presample.repeat_share=0.5",
    "presample.canaries=0",
    "judge.use=policy",
    "publish.configs=[preference, scored]",
)
PLAIN = (
    "presample.enabled=false",
    "fuse.arms=[identity]",
    "select.confirm=false",
    "rollout.n=4",
    "policy.batch.poll_s=0.01",
    "partition_size=5",
    "publish.configs=[preference, scored]",
)


class Cli:
    """Runs `mora-data build` in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str], where: Path) -> None:
        self._capsys, self._where = capsys, where
        self.err = ""

    def __call__(
        self,
        url: str,
        run: str,
        *sets: str,
        engine: str = "batch",
        judge: str = "judge",
        code: int = 0,
    ) -> dict[str, Any]:
        self._capsys.readouterr()
        got = main(arguments(url, run, *sets, engine=engine, judge=judge, where=self._where))
        out, self.err = self._capsys.readouterr()
        assert got == code, self.err
        return json.loads(out) if out.strip() else {}

    @property
    def said(self) -> str:
        lines = [line for line in self.err.splitlines() if line.startswith("mora-data: ")]
        assert len(lines) == 1, self.err
        return lines[0]


def arguments(
    url: str,
    run: str,
    *sets: str,
    engine: str = "batch",
    judge: str = "judge",
    where: Path = Path(),
) -> list[str]:
    words = [
        "build",
        "--source",
        "jsonl",
        "--data",
        str(where / "rows.jsonl"),
        "--out",
        str(where / run),
        "--engine",
        engine,
        "--model",
        "gen",
        *(["--base-url", url] if url else []),
        "--judge-model",
        judge,
        "--json",
    ]
    own = [s for s in sets if engine == "batch" or not s.startswith("policy.batch.")]
    return words + [w for s in own for w in ("--set", s)]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    rows_file(tmp_path / "rows.jsonl", PROMPTS)
    return Cli(capsys, tmp_path)


def sizes(provider: FakeProvider) -> list[tuple[str, int]]:
    """(model, requests) of each batch."""
    return [
        (
            json.loads(provider.files[b["input_file_id"]].splitlines()[0])["body"]["model"],
            b["request_counts"]["total"],
        )
        for b in provider.batches.values()
    ]


def test_a_batch_build_and_a_live_build_are_one(cli: Cli, tmp_path: Path) -> None:
    """Waves alternate between the models and are as large as they can be; the rows are those of a
    live build, byte for byte."""
    with FakeProvider(steady, steady) as provider:
        live = cli(provider.base_url, "live", *SETTINGS, engine="openai")
        sent = len(provider.requests)
        batched = cli(provider.base_url, "batched", *SETTINGS)
        assert len(provider.requests) == sent == live["requests"] == batched["requests"]
        assert parquet_hashes(tmp_path / "live") == parquet_hashes(tmp_path / "batched")
        waves = sizes(provider)
        repeated = waves[2][1]
        assert waves[:5] == [
            ("gen", 12),
            ("judge", 12 * 2 * 3),
            ("judge", repeated),
            ("gen", 12),
            ("judge", 12 * 4 * 3),
        ]
        assert 0 < repeated < 12 * 4 * 3 and len(waves) == 6, waves  # the last one confirms
        again = cli(
            provider.base_url,
            "batched",
            *SETTINGS,
            "select.pairs_per_prompt=2",
            "select.confirm=false",
            engine="openai",
        )
        assert again["requests"] == 0 and again["replayed"] > 0 and len(provider.requests) == sent
        assert [p.name for p in (tmp_path / "batched/batches").iterdir()] == ["state.json"]


def test_the_numbers_before_fusion_need_no_wave_of_their_own(cli: Cli, tmp_path: Path) -> None:
    waves = {}
    for before in (0, 4):
        with FakeProvider(lines=steady) as provider:
            more = ("fuse.arms=[concat]", "fuse.checks=[]", "presample.repeat_share=0")
            sets = (*SETTINGS, *more, f"presample.before={before}")
            argv = arguments(provider.base_url, f"{before}", *sets, where=tmp_path)
            assert main([*argv, "--until", "score"]) == 0
            waves[before] = sizes(provider)
    assert [m for m, _ in waves[0]] == [m for m, _ in waves[4]]
    assert sum(n for _, n in waves[4]) - sum(n for _, n in waves[0]) == 12 + 12 * 4 * 3


def test_one_model_in_both_roles_shares_a_file(cli: Cli) -> None:
    with FakeProvider(lines=steady) as provider:
        cli(provider.base_url, "run", *SETTINGS, "presample.repeat_share=0", judge="gen")
        assert [n for _, n in sizes(provider)][:4] == [12, 72, 12, 144]


def test_files_are_split_at_the_limits(cli: Cli) -> None:
    with FakeProvider(lines=steady) as provider:
        cli(
            provider.base_url,
            "run",
            *PLAIN,
            "rollout.n=2",
            "policy.batch.max_requests=5",
            "policy.batch.max_bytes=5000",
        )
        policy = [n for model, n in sizes(provider) if model == "gen"]
        assert policy == [5, 5, 2]
        assert len(provider.batches) > 3 + -(-72 // 5)  # some files are full of bytes
        assert (
            max(
                len(f)
                for f in (provider.files[b["input_file_id"]] for b in provider.batches.values())
            )
            <= 5000
        )
        keys = [
            json.loads(line)["custom_id"]
            for b in provider.batches.values()
            for line in provider.files[b["input_file_id"]].splitlines()
        ]
        assert len(keys) == len(set(keys)) == 12 + 72 and all(
            re.fullmatch("[0-9a-f]{32}", k) for k in keys
        )


def test_a_budget_that_ends_inside_a_wave_keeps_the_wave_and_goes_on(cli: Cli) -> None:
    """All that a batch brought was paid for, so all of it is kept."""
    with FakeProvider(lines=steady) as provider:
        first = cli(provider.base_url, "run", *PLAIN, "limits.max_tokens=500", code=1)
        assert "limits.max_tokens = 500 is used up" in cli.said
        assert first["requests"] == len(provider.asked) == 12 + 144
        rest = cli(provider.base_url, "run", *PLAIN, "limits.max_tokens=100000")
        assert rest["requests"] == 0 and len(provider.asked) == 12 + 144


def test_no_more_prompts_are_open_than_set(cli: Cli) -> None:
    with FakeProvider(lines=steady) as provider:
        cli(provider.base_url, "run", *PLAIN, "policy.batch.prompts=6")
        assert sizes(provider) == [("gen", 6), ("judge", 72), ("gen", 6), ("judge", 72)]


def test_a_live_judge_beside_a_batch_policy(cli: Cli) -> None:
    """The judge answers over HTTP, a few at a time; the batches are still as large as they can be:
    two prompts of phase 0, their rollouts with the presamples of the other ten, and the rollouts of
    these."""
    with FakeProvider(steady, steady, delay_s=0.002) as provider:
        done = cli(
            provider.base_url,
            "run",
            *SETTINGS,
            "judge.engine=openai",
            f"judge.base_url={provider.base_url}",
            "judge.model=judge",
            "presample.repeat_share=0",
            "presample.reference=2",
            "judge.concurrency=4",
        )
        assert sizes(provider) == [("gen", 2), ("gen", 12), ("gen", 10)]
        assert done["requests"] == 24 + len(provider.requests) > 24 + 72 + 144


def test_kill_while_a_batch_runs(cli: Cli, tmp_path: Path) -> None:
    """The same command fetches the batch that is under way: none is made twice, and the waves after
    it are whole."""
    with FakeProvider(lines=steady) as provider:
        clean = cli(provider.base_url, "clean", *PLAIN)
        wanted, n = sizes(provider), len(provider.batches)
        provider.looks = 10**9
        for i in range(n):
            process = start(arguments(provider.base_url, "run", *PLAIN, where=tmp_path), tmp_path)
            provider.wait_for(lambda name=f"batch_{n + i}": provider.looked[name] > 0)  # type: ignore[misc]
            kill(process, signal.SIGKILL)
            # ended while nobody looked
            provider.looked.update(dict.fromkeys(provider.batches, 10**9))
        done, said = finish_here(
            arguments(provider.base_url, "run", *PLAIN, where=tmp_path), tmp_path
        )
        assert sizes(provider)[n:] == wanted and done["requests"] == 0 and done["repeated"] == 0
        assert "sent before" in said
        assert parquet_hashes(tmp_path / "run") == parquet_hashes(tmp_path / "clean")
        assert done["pairs"] == clean["pairs"]


def test_an_interrupt_names_the_batch_that_goes_on(cli: Cli, tmp_path: Path) -> None:
    with FakeProvider(lines=steady, looks=10**9) as provider:
        process = start(arguments(provider.base_url, "run", *PLAIN, where=tmp_path), tmp_path)
        provider.wait_for(lambda: provider.looked["batch_0"] > 0)
        code, said = kill(process, signal.SIGINT)
        assert (
            code == 130
            and "1 batches go on at the provider (batch_0 ...): the same command fetches them"
            in said
        )


def test_a_lost_reply_to_the_creation_makes_no_second_batch(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mora_data.engines.batch_jobs.WAIT_S", 0.0)
    with FakeProvider(lines=steady, lose_created=1) as provider:
        cli(provider.base_url, "run", *PLAIN)
        assert sizes(provider) == [("gen", 12), ("judge", 144)]


def test_an_expired_batch_is_asked_again_for_the_rest(cli: Cli, tmp_path: Path) -> None:
    with FakeProvider(lines=steady, fates=("expired",)) as provider:
        done = cli(provider.base_url, "run", *PLAIN)
        assert sizes(provider) == [("gen", 12), ("judge", 72), ("gen", 6), ("judge", 72)] or sizes(
            provider
        )[1] == ("gen", 6)
        assert (
            len(provider.asked) == 12 + 144
            and done["errors"] == 0
            and done["retries"] == {"503": 6}
        )
    with FakeProvider(lines=steady, fates=("expired",) * 2) as provider:
        owed = cli(provider.base_url, "owed", *PLAIN, "policy.batch.tries=1", code=1)
        assert (
            owed["errors"] > 0
            and "no answer from 1 batches" in (tmp_path / "owed/errors.jsonl").read_text()
        )
        whole = cli(provider.base_url, "owed", *PLAIN)
        assert whole["errors"] == 0 and len(provider.asked) == 12 + 144


def test_what_a_line_says(cli: Cli, tmp_path: Path) -> None:
    """A 400 is final, a 500 and a line that is missing are asked again, once each; nothing else
    is."""
    hit: set[str] = set()

    def lines(body: dict[str, Any], time: int) -> Fault | None:
        said = body["messages"][-1]["content"]
        if body["model"] == "gen" and "item 3 " in said:
            return Fault(status=400)
        for words, fault in (("item 4 ", Fault(status=500)), ("item 5 ", Fault(drop="before"))):
            if body["model"] == "gen" and words in said and words not in hit:
                hit.add(words)
                return fault
        return steady(body, time)

    with FakeProvider(lines=lines) as provider:
        done = cli(provider.base_url, "run", *PLAIN, "limits.max_error_share=0.5")
        assert done["errors"] == 4 and done["retries"] == {"500": 1}
        errors = [json.loads(e) for e in (tmp_path / "run/errors.jsonl").read_text().splitlines()]
        assert {e["error"] for e in errors} == {"HTTP 400: told to say 400"}
        again = cli(
            provider.base_url,
            "run",
            *PLAIN,
            "select.pairs_per_prompt=2",
            "limits.max_error_share=0.5",
        )
        assert (
            again["requests"] == 0
            and done["requests"] == len(provider.asked) == 12 + 2 + 11 * 4 * 3
        )


@pytest.mark.parametrize("fate", ["failed", "cancelled"])
def test_a_refused_or_cancelled_batch_stops_the_run(cli: Cli, fate: str) -> None:
    with FakeProvider(lines=steady, fates=(fate,)) as provider:
        cli(provider.base_url, "run", *PLAIN, code=1)
        assert (
            cli.said
            == "mora-data: batch batch_0 "
            + {
                "failed": "of 12 requests to gen was refused: too many tokens in the queue",
                "cancelled": "was cancelled: the same command asks again what it left out",
            }[fate]
        )
        done = cli(provider.base_url, "run", *PLAIN)
        assert done["errors"] == 0 and len(provider.asked) == 12 + 144


@pytest.mark.parametrize(
    ("status", "said"),
    [(404, "batch provider says 404 (told to say 404): check --model and the key")],
)
def test_a_model_that_is_not_there(cli: Cli, status: int, said: str) -> None:
    with FakeProvider(lines=lambda body, time: Fault(status=status)) as provider:
        for n in (1, 2):
            cli(provider.base_url, "run", *PLAIN, code=1)
            assert cli.said == f"mora-data: {said}" and len(provider.batches) == n


def test_a_bad_key(cli: Cli) -> None:
    with FakeProvider() as provider:
        provider.keys = {"right"}
        cli(provider.base_url, "run", *PLAIN, code=1)
        assert "says 401: put a valid key into the environment variable OPENAI_API_KEY" in cli.said


def test_a_provider_that_is_unwell_for_a_while(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "openai._base_client.BaseClient._calculate_retry_timeout", lambda *a, **k: 0.0
    )
    with FakeProvider(lines=steady) as provider:
        provider.unwell = 9
        cli(provider.base_url, "run", *PLAIN)
        assert sizes(provider) == [("gen", 12), ("judge", 144)]
        provider.unwell = 10**9
        cli(provider.base_url, "other", *PLAIN, code=1)
        assert "can't be reached" in cli.said and "the batches go on there" in cli.said


def test_a_server_without_a_batch_api(cli: Cli) -> None:
    with FakeProvider() as provider:
        provider.has_batches = False
        cli(provider.base_url, "run", *PLAIN, code=1)
        assert "says 404" in cli.said and "it has no batch API" in cli.said


def test_no_model_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path, cli: Cli) -> None:
    assert (
        main(
            [
                "build",
                "--source",
                "jsonl",
                "--data",
                str(tmp_path / "rows.jsonl"),
                "--out",
                str(tmp_path / "run"),
                "--engine",
                "batch",
                "--base-url",
                "http://127.0.0.1:9/v1",
            ]
        )
        == 1
    )
    assert "engine 'batch' needs a model: give --model" in capsys.readouterr().err


def test_files_for_run_batch(cli: Cli, tmp_path: Path) -> None:
    """Each command writes a wave and says what to run; a partial file is taken, and the rest
    written anew."""
    files = ("policy.batch.mode=files",)
    written = []
    for share in (0.5, 1.0, 1.0):
        cli("", "run", *PLAIN, *files, code=1)
        said = cli.said
        cli("", "run", *PLAIN, *files, code=1)
        assert cli.said == said  # nothing is written twice
        assert re.fullmatch(
            r"mora-data: \d+ requests are written: run `.+`, then the same command again", said
        )
        commands = re.findall(r"vllm run-batch --model (\w+) -i (\S+) -o ([^\s;`]+)", said)
        written.append(
            [
                (model, run_batch(Path(requests), Path(answers), share))
                for model, requests, answers in commands
            ]
        )
    assert written == [[("gen", 6)], [("gen", 6), ("judge", 72)], [("judge", 72)]]
    done = cli("", "run", *PLAIN, *files)
    assert done["errors"] == 0 and done["counts"]["rollout"]["kept"] == 48
    assert [p.name for p in (tmp_path / "run/batches").iterdir()] == ["state.json"]
    with FakeOpenAI() as server:
        cli(server.base_url, "run", *PLAIN, "select.pairs_per_prompt=2", engine="openai")
        assert not server.requests


def test_a_form_that_is_refused_is_learned_in_a_wave(cli: Cli) -> None:
    """A refused seed and a schema cost a wave each and no row; the next wave has the form."""

    def lines(body: dict[str, Any], time: int) -> Fault | None:
        if "seed" in body:
            return error(400, "Unsupported parameter: 'seed'", param="seed")
        if "response_format" in body:
            return error(400, "This response_format type is unavailable now")
        return steady(body, time)

    with FakeProvider(lines=lines) as provider:
        done = cli(provider.base_url, "run", *PLAIN)
        assert done["errors"] == 0 and done["counts"]["score"]["kept"] == 12 * 4
        assert done["endpoints"]["gen"] == ["is asked without seed"]
        last = provider.asked[-1]
        assert "seed" not in last and "response_format" not in last
        asked = len(provider.asked)
        again = cli(provider.base_url, "run", *PLAIN, "select.pairs_per_prompt=2")
        assert again["requests"] == 0 and len(provider.asked) == asked


def test_what_refuses_every_line_stops_the_run(cli: Cli, tmp_path: Path) -> None:
    """In one line, and no row is logged as failed."""
    said = "Your project may not use this model"
    with FakeProvider(lines=lambda body, time: error(400, said)) as provider:
        cli(provider.base_url, "run", *PLAIN, code=1)
        assert f"refuses every request of this form (HTTP 400: {said})" in cli.said
    assert (tmp_path / "run/errors.jsonl").read_text() == ""
