"""What the workers of a cluster share: one clock for rate limits, one sum for money and tokens, the
same versions."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from mora_data.cluster import check_cluster
from mora_data.cluster.worker import UsageMonitor, version_mismatch, versions
from mora_data.errors import ExtraMissing, SettingsError
from mora_data.run.cost import load_prices
from mora_data.run.stats import RunStats
from mora_data.settings import LimitSettings, build_settings

SETTINGS = {
    "name": "x",
    "source": {"kind": "jsonl"},
    "policy": {"engine": "openai", "base_url": "http://127.0.0.1:1/v1"},
}


def used(n: int) -> RunStats:
    return RunStats(
        sent=n,
        by_account={"m": [10 * n, n, 0]},
        retries=Counter({"429": n}),
        busy_elsewhere_s=(float(n), 2.0 * n),
    )


def test_workers_share_one_clock() -> None:
    async def turns(monitors: list[UsageMonitor]) -> list[float]:
        return sorted(
            [
                (await m.reserve("model", (60.0, None), 100, 10))[0]
                for m in monitors
                for _ in range(3)
            ]
        )

    monitor = UsageMonitor(LimitSettings(), load_prices(None), {})
    assert asyncio.run(turns([monitor, monitor])) == pytest.approx([0, 0, 1, 2, 3, 4], abs=0.05)
    apart = asyncio.run(
        turns([UsageMonitor(LimitSettings(), load_prices(None), {}) for _ in range(2)])
    )
    assert apart == pytest.approx([0, 0, 0, 0, 1, 1], abs=0.05), (
        "two clocks would let twice as much through"
    )


def test_the_sum_of_all_workers_meets_the_limit() -> None:
    async def told() -> list[str | None]:
        monitor = UsageMonitor(
            LimitSettings(max_tokens=1000), load_prices(None), {"m": [300, 30, 0]}
        )
        return [
            await monitor.report("1", used(20), {}),
            await monitor.report("2", used(30), {}),
            await monitor.report("1", used(41), {}),
            await monitor.report("2", used(30), {}),
        ]

    first, second, third, fourth = asyncio.run(told())
    assert first is second is None
    assert third is not None and third == fourth and "1111 in this run folder" in third


def test_reports_replace_each_other_and_a_dead_workers_last_one_stays() -> None:
    async def state() -> RunStats:
        monitor = UsageMonitor(LimitSettings(), load_prices(None), {})
        await monitor.report("1", used(5), {0: 3})
        await monitor.report("1", used(8), {0: 7})
        await monitor.report("2", used(2), {0: 1, 1: 4})  # took partition 0 up
        of_workers, prompts = await monitor.state()
        assert prompts == 5
        total = RunStats(sent=99)
        total.take([used(1), *of_workers])
        return total

    total = asyncio.run(state())
    assert (total.sent, total.tokens_in, total.by_account) == (11, 110, {"m": [110, 11, 0]})
    assert total.retries == Counter({"429": 11}) and total.slots_busy == 0.5


def test_a_snapshot_is_a_copy() -> None:
    stats = used(3)
    copy = stats.snapshot()
    stats.by_account["m"][0] += 1
    stats.retries["429"] += 1
    assert copy.by_account == {"m": [30, 3, 0]} and copy.retries == Counter({"429": 3})


def test_versions_have_to_be_the_same() -> None:
    here = versions()
    assert version_mismatch(here, here) is None and here["pyarrow"].count(".") == 2
    for name in here:
        found = version_mismatch(here, {**here, name: "0.0.1"})
        assert (
            found is not None and name in found and "0.0.1" in found and "install the same" in found
        )
    assert version_mismatch(here, {}) is not None


def test_ray_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ExtraMissing, match=r"executor 'ray' needs Ray: pip install 'mora-data\[ray\]'"
    ):
        check_cluster(build_settings(SETTINGS))


def test_the_batch_engine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(SettingsError, match=r"policy\.engine = 'batch'.*leave --executor out"):
        check_cluster(build_settings({**SETTINGS, "policy": {"engine": "batch"}}))
    check_cluster(build_settings(SETTINGS))


def test_where_it_runs_is_no_part_of_what_is_built() -> None:
    there = build_settings({**SETTINGS, "executor": "ray", "ray": {"workers": 4}})
    assert there.executor == "ray" and there.model_dump(mode="json") == build_settings(
        SETTINGS
    ).model_dump(mode="json")
