"""An evaluation begins prompts while its engines want more, and stops at the first error that ends
a run."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mora_data.errors import EndpointError, MoraError
from mora_data.evaluate.prompts import EvalPrompt
from mora_data.run.stats import RunStats
from mora_data.run.tasks import run_prompts

PROMPTS = [EvalPrompt("plain", f"{i:016x}", "", ()) for i in range(60)]


class Engine:
    """Wants no more than five prompts; `wants_more` may change whenever one ends."""

    def __init__(self, stats: RunStats) -> None:
        self.stats, self.most = stats, 0

    @property
    def wants_more(self) -> bool:
        return self.stats.open_prompts < 5

    async def changed(self) -> None:
        await asyncio.Event().wait()


def begun(fail_at: int | None = None) -> tuple[list[str] | EndpointError, int, int]:
    """Results or the error, the most prompts that were open at once, and how many were begun."""
    stats = RunStats()
    engine: Any = Engine(stats)
    most = 0

    async def work(prompt: EvalPrompt) -> str:
        nonlocal most
        most = max(most, stats.open_prompts)
        for _ in range(12 + int(prompt.prompt_id, 16) % 3):
            await asyncio.sleep(0)
        if int(prompt.prompt_id, 16) == fail_at:
            raise EndpointError("gone")
        return prompt.prompt_id

    async def run() -> list[str]:
        return await run_prompts(work, PROMPTS, [engine], stats)

    try:
        return asyncio.run(run()), most, stats.prompts_begun
    except EndpointError as e:
        return e, most, stats.prompts_begun


def test_few_prompts_are_open_and_the_results_are_in_order() -> None:
    found, most, n = begun()
    assert found == [p.prompt_id for p in PROMPTS] and most == 5 and n == 60


def test_nothing_more_is_begun_after_an_error() -> None:
    found, _, n = begun(fail_at=10)
    assert isinstance(found, EndpointError) and n < 20


@pytest.mark.parametrize("n", [0, 1])
def test_no_prompt_and_one(n: int) -> None:
    async def work(prompt: EvalPrompt) -> str:
        return prompt.prompt_id

    stats = RunStats()
    assert len(asyncio.run(run_prompts(work, PROMPTS[:n], [], stats))) == n == stats.prompts_begun
    assert stats.open_prompts == 0


def test_a_prompt_that_cancels_itself_fails_the_run() -> None:
    async def work(prompt: Any) -> None:
        raise asyncio.CancelledError

    with pytest.raises(MoraError, match="cancelled itself"):
        asyncio.run(run_prompts(work, [1, 2], [], RunStats()))
