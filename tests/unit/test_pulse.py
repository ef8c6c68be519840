"""What a running build says of itself: written at once, again every second, gone at the end, and no
reason to fail."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mora_data.engines.limiter import ConcurrencyLimiter
from mora_data.errors import RunFolderError
from mora_data.run.folder import RunFolder, read_json
from mora_data.run.progress import Progress, heartbeat
from mora_data.run.stats import RunStats


def test_it_says_what_is_under_way_and_is_gone_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mora_data.run.progress.EVERY_S", 0.001)
    stats = RunStats(sent=7)
    stats.limiters.append(ConcurrencyLimiter(4, n=2))
    stats.retries["429"] += 3
    progress = Progress(stats, quiet=True)
    progress.start("prompts", 88, 40)

    async def main() -> None:
        with RunFolder(tmp_path / "run", {"dataset": "x"}, False) as folder:
            path = folder.path / "live.json"
            with heartbeat(folder, stats, progress):
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
            with pytest.raises(ZeroDivisionError), heartbeat(folder, stats, progress):
                raise ZeroDivisionError
            assert not path.exists()

    asyncio.run(main())


def test_a_full_disk_is_not_its_business(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: RunFolder, name: str, tree: object) -> None:
        raise RunFolderError("no space")

    async def main() -> None:
        with RunFolder(tmp_path / "run", {"dataset": "x"}, False) as folder:
            monkeypatch.setattr(RunFolder, "write", full)
            with heartbeat(folder, RunStats(), Progress(RunStats(), quiet=True)):
                await asyncio.sleep(0)

    asyncio.run(main())
