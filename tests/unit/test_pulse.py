"""What a running build says of itself: written at once, again every second, gone at the end, and no
reason to fail; on stderr within seconds, with what is left of the whole build."""

from __future__ import annotations

import asyncio
import io
import sys
import time
from pathlib import Path

import pytest

from mora_data.cli import main as cli
from mora_data.errors import RunFolderError
from mora_data.pipeline.asking import requests_of
from mora_data.run.files import read_json
from mora_data.run.folder import RunFolder
from mora_data.run.limiter import ConcurrencyLimiter
from mora_data.run.progress import Progress, heartbeat, progress_line
from mora_data.run.stats import RunStats
from mora_data.settings import BuildSettings

DIMENSIONS = ["helpful", "harmless"]


def test_it_says_what_is_under_way_and_is_gone_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mora_data.run.progress.EVERY_S", 0.001)
    stats = RunStats(sent=7)
    stats.limiters.append(ConcurrencyLimiter(4, n=2))
    stats.retries["429"] += 3
    progress = Progress(stats, quiet=True)
    assert progress_line(progress.state()).startswith("starting, ")
    progress.start("prompts", 88, 40)

    async def main() -> None:
        with RunFolder(tmp_path / "run", {"dataset": "x"}, False) as folder:
            path = folder.path / "live.json"
            with heartbeat(folder, progress):
                first = read_json(path)
                assert (first["step"], first["done"], first["total"]) == ("prompts", 40, 88)
                assert (first["requests"], first["retries"]) == (7, 3)
                assert first["slots"] == [{"size": 8, "open": 8, "busy": 0, "waiting": 0}]
                ticket = await stats.limiters[0].take()
                stats.limiters[0].limits[1].out = True
                while read_json(path)["slots"][0]["busy"] == 0:
                    await asyncio.sleep(0)
                assert read_json(path)["slots"] == [{"size": 8, "open": 4, "busy": 1, "waiting": 0}]
                stats.limiters[0].free(ticket)
            assert not path.exists()
            with pytest.raises(ZeroDivisionError), heartbeat(folder, progress):
                raise ZeroDivisionError
            assert not path.exists()

    asyncio.run(main())


def test_a_full_disk_is_not_its_business(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: RunFolder, name: str, tree: object, durable: bool) -> None:
        raise RunFolderError("no space")

    async def main() -> None:
        with RunFolder(tmp_path / "run", {"dataset": "x"}, False) as folder:
            monkeypatch.setattr(RunFolder, "write", full)
            with heartbeat(folder, Progress(RunStats(), quiet=True)):
                await asyncio.sleep(0)

    asyncio.run(main())


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def wait(clock: Clock, progress: Progress, seconds: int) -> None:
    for _ in range(seconds):
        clock.now += 1.0
        progress.tick()


def answer(stats: RunStats, prompt_id: str, n: int = 1) -> None:
    """`n` replies for a prompt, of 12 tokens."""
    for _ in range(n):
        stats.sent += 1
        stats.count("m", prompt_id, (10, 2, 0))


def test_plain_lines_come_after_five_seconds_and_then_every_thirty(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without a single finished prompt; before, that was silence."""
    stats, clock = RunStats(), Clock()
    progress = Progress(stats, clock=clock)
    progress.expect(5, (5 * 20, 5 * 60))
    progress.start("prompts", 5)
    stats.asked_for.update({f"p{i}": "presample" for i in range(5)})
    stats.under_way = 5
    wait(clock, progress, 5)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "prompts 0/5"
    assert second == (
        "prompts 0/5 (5 presampling), 0 requests answered, 5 in flight, time left not known yet"
    )
    wait(clock, progress, 90)
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_time_left_counts_requests_before_a_prompt_is_finished() -> None:
    """45 answers are paid and no prompt is done: 45 of 100 to 300 requests in 90 s."""
    stats, clock = RunStats(), Clock()
    progress = Progress(stats, quiet=True, clock=clock)
    progress.expect(5, (5 * 20, 5 * 60))
    progress.start("prompts", 5)
    assert progress.state()["left_s"] is None
    for i in range(45):
        answer(stats, f"p{i % 5}")
    clock.now = 90.0
    assert progress.state()["left_s"] == ((100 - 45) * 2.0, (300 - 45) * 2.0)
    progress.pairs, stats.under_way = 2, 7
    stats.asked_for.update({f"p{i}": "confirm" for i in range(3)})
    progress.watch_cost(lambda: 0.0123, "USD")
    assert progress_line(progress.state()) == (
        "prompts 0/5 (3 confirming), 45 requests answered, 7 in flight, 540 tokens, 2 pairs,"
        " 0.0123 USD (0.00615 a pair), 1:50 to 8:30 left"
    )


def test_finished_prompts_say_more_than_settings() -> None:
    """Every prompt takes 40 requests, one a second, two prompts at a time: the range closes in on
    what is true."""
    stats, clock = RunStats(), Clock()
    progress = Progress(stats, quiet=True, clock=clock)
    progress.expect(100, (100 * 20, 100 * 60))
    progress.start("prompts", 100)
    for a in range(0, 60, 2):
        for _ in range(40):
            for prompt_id in (f"p{a}", f"p{a + 1}"):
                clock.now += 1.0
                answer(stats, prompt_id)
        for prompt_id in (f"p{a}", f"p{a + 1}"):
            stats.finished(prompt_id)
            progress.step()
        low, high = progress.state()["left_s"]
        assert low <= (98 - a) * 40 <= high
    assert high / low < 1.12
    answer(stats, "p60", 10)
    assert progress.state()["left_s"][1] < high  # those of an open prompt are done
    assert list(stats.replies_to_open) == ["p60"]


def test_what_is_asked_before_the_prompts_serves_them_again_later() -> None:
    stats, clock = RunStats(), Clock()
    progress = Progress(stats, quiet=True, clock=clock)
    progress.expect(5, (5 * 20, 5 * 20))
    progress.start("judge calibration: prompts", 5)
    for i in range(50):
        answer(stats, f"p{i % 5}")
    clock.now = 50.0
    assert progress.state()["left_s"] == (50.0, 50.0)
    for i in range(5):
        stats.finished(f"p{i}")
    progress.start("prompts", 5)
    for i in range(50):
        stats.heard(f"p{i % 5}")  # from the log: no time passes
    assert progress.state()["left_s"] == (50.0, 50.0)


def test_the_first_of_many_replies_does_not_seem_slow() -> None:
    """64 requests in flight take 20 s each, 2 replies came after 18 s: 300 requests take 94 s, not
    2,700."""
    stats, clock = RunStats(), Clock()
    progress = Progress(stats, quiet=True, clock=clock)
    progress.expect(3, (300, 300))
    progress.start("prompts", 3)
    answer(stats, "p", 2)
    limiter = ConcurrencyLimiter(64)
    stats.limiters.append(limiter)

    async def ask() -> None:
        for _ in range(64):
            await limiter.take()

    asyncio.run(ask())
    clock.now = 18.0
    low, high = progress.state()["left_s"]
    assert low == high and 94 < high < 2 * 94


def test_what_follows_the_prompts_has_no_time_of_theirs() -> None:
    stats, clock = RunStats(), Clock()
    progress = Progress(stats, quiet=True, clock=clock)
    progress.expect(2, (40, 40))
    progress.start("prompts", 2)
    answer(stats, "p", 30)
    clock.now = 30.0
    progress.step(2)
    assert progress.state()["left_s"] is None
    progress.start("canaries")
    stats.under_way = 6
    assert progress.state()["left_s"] == (6.0, 6.0)
    stats.under_way = 0
    progress.start("selecting pairs")
    assert progress_line(progress.state()) == (
        "selecting pairs, 30 requests answered, 0 in flight, 360 tokens"
    )


def test_tokens_per_second_are_those_of_the_last_minute() -> None:
    stats, clock = RunStats(), Clock()
    progress = Progress(stats, quiet=True, clock=clock)
    progress.tick()
    answer(stats, "p", 100)
    wait(clock, progress, 60)
    assert progress.state()["tokens_per_s"] == 0.0  # the burst is a minute ago
    answer(stats, "p", 59)
    wait(clock, progress, 1)
    assert progress.state()["tokens_per_s"] == 12.0


def test_status_shows_the_line_of_a_build_at_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def main() -> None:
        with RunFolder(tmp_path / "run", {"dataset": "x"}, False) as folder:
            progress = Progress(RunStats(sent=4, answered=3), quiet=True)
            progress.start("prompts", 5)
            with heartbeat(folder, progress):
                assert cli(["status", str(folder.path)]) == 0
                assert (
                    "at work: prompts 0/5, 3 requests answered, 0 in flight"
                    in capsys.readouterr().out
                )
                folder.write("live.json", {"at": time.time(), "step": "prompts"})  # older
                assert cli(["status", str(folder.path)]) == 0
            assert "at work: prompts\n" in capsys.readouterr().out
            assert cli(["status", str(folder.path)]) == 0
            assert "at work" not in capsys.readouterr().out

    asyncio.run(main())


def test_a_terminal_has_one_live_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    stream.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", stream)
    clock = Clock()
    progress = Progress(RunStats(), clock=clock)
    progress.start("prompts", 4)
    clock.now = 1.0
    progress.step(2)
    progress.finish()
    assert stream.getvalue().split("\r")[2].startswith("[##########          ] prompts 2/4")
    assert stream.getvalue().count("\n") == 1


def test_a_reward_that_asks_no_model_takes_no_time() -> None:
    """A build with reward heads of the user's own said 17 hours where 40 minutes were left."""
    ends = []
    for kind in ("benchmarks.heads:Head", "rules", "judge"):
        rewards = {d: [{"kind": kind}] for d in DIMENSIONS}
        whole = {"name": "x", "source": {"kind": "jsonl"}, "dimensions": DIMENSIONS}
        ends.append(requests_of(BuildSettings.model_validate({**whole, "rewards": rewards}), 10))
    assert ends[0] == ends[1] and all(a < b / 2 for a, b in zip(ends[0], ends[2], strict=True))


def test_numbers_before_fusion_that_nobody_asked_for_take_no_time() -> None:
    rewards = {d: [{"kind": "rules"}] for d in DIMENSIONS}
    whole = {"name": "x", "source": {"kind": "jsonl"}, "dimensions": DIMENSIONS, "rewards": rewards}
    without, asked, capped = (
        requests_of(BuildSettings.model_validate({**whole, "presample": given}), 10)[1]
        for given in ({"before": 0}, {}, {"before_prompts": 5})
    )
    assert (asked - without, capped - without) == (10, 5)
