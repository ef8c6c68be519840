"""The capacity table: its arithmetic, its flags, and that the page shows what the command
prints."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from support import pages

from mora_data.cli import dry_run as c
from mora_data.cli import main
from mora_data.cli.dry_run import BuildEstimate, capacity
from mora_data.cli.show import capacity_table

PAGE = Path(__file__).parents[2] / "docs" / "capacity.md"
FOUND = BuildEstimate(
    prompts=1_000,
    rows=1_200,
    requests=(40_000, 100_000),
    answers=(16_000, 40_000),
    tokens_in=(30_000_000, 80_000_000),
    tokens_out=(6_000_000, 10_000_000),
    cost=None,
    seconds=(1, 2),
)


def test_the_arithmetic() -> None:
    (row,) = capacity([FOUND], [8], 25_000, gpu_price=2.0)
    assert row.requests == (40_000, 100_000) and row.tokens == (36e6, 90e6)
    assert row.hours == pytest.approx((36e6 / 200_000 / 3600, 90e6 / 200_000 / 3600))
    assert row.gpu_hours == pytest.approx((0.4, 1.0)) and row.cost == pytest.approx((0.8, 2.0))
    assert row.requests_per_s == pytest.approx((40_000 / 180, 100_000 / 450)) and row.clients == (
        1,
        1,
    )
    low = (
        6e6 * c.ANSWER_BYTES_PER_TOKEN + 16_000 * c.BYTES_PER_ANSWER + 40_000 * c.BYTES_PER_REQUEST
    ) * (1 + c.DATASET_SHARE)
    assert row.storage_gb[0] == pytest.approx(low / 1e9)


def test_more_gpus_take_less_time_and_at_some_point_more_clients() -> None:
    rows = capacity([FOUND], [1, 8, 64, 512], 25_000)
    assert [r.hours[0] for r in rows] == sorted((r.hours[0] for r in rows), reverse=True)
    assert (
        len({round(r.gpu_hours[0], 9) for r in rows}) == 1
        and rows[0].clients == (1, 1)
        and rows[-1].clients[1] > 1
    )
    assert capacity([replace(FOUND, prompts=0)], [1], 25_000) == []


def test_the_page_shows_what_the_command_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    page = PAGE.read_text("utf-8")
    (command,) = [line for line in page.splitlines() if line.startswith("mora-data build")]
    assert pages.capacity(page) == page, "run make pages"
    for value in (
        c.CLIENT_REQUESTS_PER_S,
        c.ANSWER_BYTES_PER_TOKEN,
        c.BYTES_PER_ANSWER,
        c.BYTES_PER_REQUEST,
    ):
        assert f"{value:,.12g} " in page
    fewer = ("--set", "presample.enabled=false", "--set", "rollout.n=2")
    assert main([*shlex.split(command)[1:], *fewer, "--json", "--gpu-price", "3"]) == 0
    rows = json.loads(capsys.readouterr().out)["capacity"]
    assert [(r["prompts"], r["gpus"]) for r in rows] == [
        (p, g) for p in (10_000, 100_000, 1_000_000) for g in (1, 8, 64)
    ]
    assert rows[0]["cost"][0] == pytest.approx(3 * rows[0]["gpu_hours"][0])


def test_a_cost_column_only_with_a_price() -> None:
    assert "cost" not in capacity_table(capacity([FOUND], [1], 1e4), 1e4)
    assert capacity_table(capacity([FOUND], [1], 1e4, 2.0), 1e4).count("cost") == 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--dry-run", "--gpus", "8"], "--tokens-per-s"),
        (["--gpus", "8", "--tokens-per-s", "9"], "--dry-run"),
        (["--tokens-per-s", "9"], "--dry-run"),
        (["--pairs", "9"], "--dry-run"),
        (["--dry-run", "--prompts", "9"], "--gpus"),
        (["--dry-run", "--gpus", "8", "--tokens-per-s", "0"], "above 0"),
        (["--dry-run", "--gpus", "8", "--tokens-per-s", "nan"], "above 0"),
    ],
)
def test_flags_that_do_not_fit_are_one_line(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["build", "--source", "pku-saferlhf", "--sample", *flags])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and said in err and err.count("\n") == 1


@pytest.mark.parametrize("gpus", ["0", "8,x", "-1", ""])
def test_numbers_that_are_none_are_usage(gpus: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(
            [
                "build",
                "--source",
                "pku-saferlhf",
                "--sample",
                "--dry-run",
                "--gpus",
                gpus,
                "--tokens-per-s",
                "9",
            ]
        )
    assert stop.value.code == 2 and "whole numbers" in capsys.readouterr().err
