"""Slots and rates by an injected clock: what is admitted, cut, given back and paced."""

from __future__ import annotations

import asyncio

import pytest

from mora_data.engines.http import parse_retry_after
from mora_data.engines.openai import _wait_s
from mora_data.engines.replies import TransientFault
from mora_data.errors import SettingsError
from mora_data.run.limiter import ConcurrencyLimiter, LocalRateLimiter, Permit, RateClock
from mora_data.run.tasks import all_of


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


async def take(limiter: ConcurrencyLimiter, n: int) -> list[Permit]:
    return [await limiter.take() for _ in range(n)]


def test_least_loaded_base_url_first() -> None:
    async def run() -> None:
        limiter = ConcurrencyLimiter(4, 2)
        permits = await take(limiter, 8)
        assert [t.at for t in permits] == [0, 1, 0, 1, 0, 1, 0, 1]
        waiting = asyncio.ensure_future(limiter.take())
        await asyncio.sleep(0)
        assert limiter.waiting == 1 and limiter.in_flight == 8
        limiter.free(permits[1])
        assert (await waiting).at == 1 and limiter.waiting == 0

    asyncio.run(run())


def test_one_that_is_out_gets_nothing_and_its_queue_goes_elsewhere() -> None:
    async def run() -> None:
        limiter = ConcurrencyLimiter(1, 2)
        limiter.take_out(0)
        first = await limiter.take()
        assert first.at == 1
        waiting = asyncio.ensure_future(limiter.take())
        await asyncio.sleep(0)
        assert not waiting.done()
        limiter.take_out(0, False)
        assert (await waiting).at == 0

    asyncio.run(run())


def test_a_stray_refusal_changes_nothing_and_three_at_a_rank_set_the_limit() -> None:
    async def run() -> None:
        limiter = ConcurrencyLimiter(64)
        permits = await take(limiter, 64)
        limiter.refused(permits[40])
        limiter.succeeded(permits[63])
        limiter.refused(permits[41])
        limiter.refused(permits[42])
        assert limiter.limits[0].limit == 64
        limiter.refused(permits[33])
        assert limiter.limits[0].limit == 33

    asyncio.run(run())


def test_requests_that_waited_until_there_was_room_lift_no_limit() -> None:
    async def run() -> None:
        limiter = ConcurrencyLimiter(64)
        permits = await take(limiter, 64)
        # refused at once; the rest is read by a busy server when the first are done
        for t in permits[33:56]:
            limiter.refused(t)
        for t in permits[56:]:
            limiter.succeeded(t)
        assert limiter.limits[0].limit == 33

    asyncio.run(run())


def test_three_stray_refusals_in_a_row_are_found_out() -> None:
    async def run() -> None:
        limiter = ConcurrencyLimiter(64)
        permits = await take(limiter, 64)
        for t in permits[50:53]:
            limiter.refused(t)
        assert limiter.limits[0].limit == 50
        for t in permits[53:60]:
            limiter.succeeded(t)
        assert limiter.limits[0].limit == 60

    asyncio.run(run())


def test_from_far_too_high_it_falls_ever_faster() -> None:
    async def run() -> None:
        limiter, limits = ConcurrencyLimiter(64), []
        for _ in range(4):
            await take(limiter, limiter.limits[0].limit - limiter.in_flight)
            for _ in range(3):
                limiter.refused(Permit(limiter.limits[0].limit - 1, 1))
            limits.append(limiter.limits[0].limit)
        assert limits == [63, 61, 57, 49]

    asyncio.run(run())


def test_timeouts_in_a_row_halve_the_limit_once_and_it_grows_again() -> None:
    async def run() -> None:
        clock = Clock()
        limiter = ConcurrencyLimiter(64, clock=clock)
        permits = await take(limiter, 64)
        limiter.timed_out(permits[0])
        limiter.timed_out(permits[1])
        limiter.succeeded(permits[2])
        assert limiter.limits[0].limit == 64
        for t in permits[3:40]:
            limiter.timed_out(t)
        assert limiter.limits[0].limit == 32, "all of them were sent before the cut"
        for _ in range(20):
            clock.now += 40
            limiter.succeeded(Permit(0, 1))
        assert limiter.limits[0].limit == 64

    asyncio.run(run())


def test_who_waits_for_room_is_woken_where_there_is_some() -> None:
    """Not at each reply: every reply gives a permit back."""

    async def run() -> None:
        limiter = ConcurrencyLimiter(2)
        held = await take(limiter, 2)
        asked = [asyncio.ensure_future(limiter.take()) for _ in range(3)]
        turns = 0

        async def room() -> None:
            nonlocal turns
            while not limiter.wants_more:
                await limiter.changed()
                turns += 1

        waiting = asyncio.ensure_future(room())
        await asyncio.sleep(0)
        assert limiter.waiting == 3
        limiter.free(held[0])  # another call takes it: two wait, as many as there are permits
        assert not limiter._room.is_set()
        limiter.free(held[1])
        await waiting
        assert (limiter.waiting, turns) == (1, 1)
        for permit in await asyncio.gather(*asked[:2]):
            limiter.free(permit)
        limiter.free(await asked[2])

    asyncio.run(run())


def test_all_of_ends_what_goes_on_behind_a_grave_failure() -> None:
    """Others run to their end, and the first failure in order is raised; a MoraError ends them."""

    async def after(turns: int, error: Exception | None = None) -> int:
        for _ in range(turns):
            await asyncio.sleep(0)
        if error is not None:
            raise error
        done.append(turns)
        return turns

    async def never() -> int:
        await asyncio.Event().wait()
        return 0

    done: list[int] = []
    assert asyncio.run(all_of(after(n) for n in (3, 1, 2))) == [3, 1, 2] and done == [1, 2, 3]
    with pytest.raises(KeyError):
        asyncio.run(all_of([after(4, KeyError()), after(1, ValueError()), after(6)]))
    assert done[-1] == 6
    grave = SettingsError("no")
    grave.until = 1e-9  # its time is over
    with pytest.raises(SettingsError):
        asyncio.run(all_of([never(), after(1, ValueError()), after(2, grave)]))


def test_share_of_slots_in_use() -> None:
    async def run() -> None:
        clock = Clock()
        limiter = ConcurrencyLimiter(4, clock=clock)
        one, two = await take(limiter, 2)
        clock.now += 10
        limiter.free(one)
        clock.now += 10
        limiter.free(two)
        assert limiter.busy_s == (30.0, 80.0)

    asyncio.run(run())


@pytest.mark.parametrize(("per_min", "n"), [(60, 30), (600, 300), (6, 5)])
def test_rate_over_any_window(per_min: float, n: int) -> None:
    clock = Clock()
    rate = RateClock(per_min, clock)
    starts = []
    for _ in range(n):
        clock.now += rate.reserve(1.0)
        starts.append(clock.now)
    per_s = per_min / 60
    for i in range(n):
        for j in range(i, n):
            assert j - i <= per_s * (starts[j] - starts[i] + 1.0) + 1e-6
    assert starts[-1] - starts[0] == pytest.approx((n - 1) / per_s - 1.0, abs=1.0)


def test_tokens_are_reserved_and_put_right() -> None:
    clock = Clock()
    pace = LocalRateLimiter(None, 600.0, clock)
    wait, reserved = asyncio.run(pace.reserve(400, 100))
    assert (wait, reserved) == (0.0, 200.0)
    asyncio.run(pace.settle(reserved, 100, 10, 100))
    wait, less = asyncio.run(pace.reserve(400, 100))
    assert wait == pytest.approx(110 / 10 - 1.0)
    assert less < reserved, "answers turn out shorter than max_tokens"


@pytest.mark.parametrize(
    ("wait_s", "low", "high"), [(None, 0.5, 1.0), (7.0, 7.0, 8.75), (0.0, 0.0, 0.0)]
)
def test_retry_after_is_kept_to_and_spread(wait_s: float | None, low: float, high: float) -> None:
    waits = [_wait_s(TransientFault("429", "busy", wait_s), 3) for _ in range(200)]
    assert low <= min(waits) <= max(waits) <= high


@pytest.mark.parametrize(
    ("text", "seconds"), [("3", 3.0), ("0.5", 0.5), ("-4", 0.0), ("1e9", 600.0), ("soon", None)]
)
def test_retry_after_is_read(text: str, seconds: float | None) -> None:
    assert parse_retry_after({"retry-after": text}) == seconds
