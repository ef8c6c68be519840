"""Which worker gets which partition: deaths, poison, machines that can't do the work; no Ray
needed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from mora_data.cluster.schedule import (
    PER_WORKER,
    Backlog,
    Outcome,
    UnfitWorker,
    WorkerDied,
    distribute,
)
from mora_data.errors import ClusterError, RunFolderError

Fate = Callable[["FakeWorker", int], Outcome | Exception]
DONE = Outcome("finalized")


@dataclass(eq=False)
class FakeWorker:
    """A worker that does what `fate` says."""

    pool: FakePool
    number: int
    open: list[int] = field(default_factory=list)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    dismissed: bool = False

    async def finalize(self, part: int) -> Outcome:
        self.open.append(part)
        self.pool.together.append(tuple(self.open))
        self.pool.tried[part] += 1
        try:
            for _ in range(3):
                await asyncio.sleep(0)
            outcome = self.pool.fate(self, part)
            if isinstance(outcome, WorkerDied):
                self.gone.set()
            if self.gone.is_set():  # a death takes all that the worker has in hand
                raise WorkerDied("it is gone", self.pool.node_lost)
            if isinstance(outcome, Exception):
                raise outcome
            if outcome.kind == "finalized":
                self.pool.finalized.append(part)
            return outcome
        finally:
            self.open.remove(part)

    async def dismiss(self) -> None:
        self.dismissed = True


@dataclass
class FakePool:
    """Hires as long as `hires` lasts."""

    fate: Fate = lambda worker, part: DONE
    node_lost: bool = False
    hires: Iterator[Exception | None] | None = None
    workers: list[FakeWorker] = field(default_factory=list)
    tried: Counter[int] = field(default_factory=Counter)
    together: list[tuple[int, ...]] = field(default_factory=list)
    finalized: list[int] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    async def hire(self) -> FakeWorker:
        await asyncio.sleep(0)
        refusal = next(self.hires, None) if self.hires is not None else None
        if refusal is not None:
            raise refusal
        self.workers.append(FakeWorker(self, len(self.workers)))
        return self.workers[-1]

    def run(self, n: int, size: int = 2, tries: int = 3) -> Backlog:
        backlog = asyncio.run(
            asyncio.wait_for(distribute(range(n), self.hire, size, tries, self.said.append), 20)
        )
        assert all(h.dismissed and not h.open for h in self.workers)
        return backlog


def test_every_partition_is_sealed_once_and_workers_have_two_in_hand() -> None:
    pool = FakePool()
    backlog = pool.run(20)
    assert sorted(pool.finalized) == list(range(20)) and set(pool.tried.values()) == {1}
    assert len(pool.workers) == 2 and max(len(t) for t in pool.together) == PER_WORKER
    assert not backlog.poisoned and not pool.said


def test_fewer_partitions_than_places_hire_no_more_workers_than_needed() -> None:
    pool = FakePool()
    pool.run(2, size=10)
    assert len(pool.workers) == 2


def test_a_worker_that_dies_is_replaced_and_its_partitions_are_taken_up() -> None:
    pool = FakePool(
        lambda worker, part: WorkerDied("killed") if worker.number == 0 and part == 0 else DONE
    )
    backlog = pool.run(8)
    assert sorted(pool.finalized) == list(range(8)) and not backlog.poisoned
    assert len(pool.workers) == 3 and "others take it up" in pool.said[0]


@pytest.mark.parametrize("how", ["dies", "raises"])
def test_a_poisoned_partition_is_left_out_after_three_tries_and_nothing_else(how: str) -> None:
    poison = WorkerDied("killed") if how == "dies" else Outcome("raised", "ValueError: bad row")
    pool = FakePool(lambda worker, part: poison if part == 3 else DONE)
    backlog = pool.run(9)
    assert set(backlog.poisoned) == {3} and pool.tried[3] == 3
    assert sorted(pool.finalized) == [n for n in range(9) if n != 3]
    assert ("bad row" in backlog.poisoned[3]) == (how == "raises")
    last_two = [t for t in pool.together if 3 in t][1:]
    assert last_two == [(3,), (3,)], (
        "with a strike it is alone, so the next strikes are surely its own"
    )


def test_two_poisoned_partitions_do_not_take_an_innocent_one_with_them() -> None:
    pool = FakePool(lambda worker, part: WorkerDied("killed") if part in (0, 5) else DONE)
    backlog = pool.run(7, size=3)
    assert set(backlog.poisoned) == {0, 5} and sorted(pool.finalized) == [1, 2, 3, 4, 6]


def test_lost_nodes_are_nobodys_fault() -> None:
    pool = FakePool(
        lambda worker, part: WorkerDied("gone") if worker.number < 6 else DONE, node_lost=True
    )
    backlog = pool.run(4)
    assert (
        not backlog.poisoned
        and sorted(pool.finalized) == [0, 1, 2, 3]
        and max(pool.tried.values()) > 3
    )


def test_a_worker_without_the_model_is_left_out_and_the_others_do_its_work() -> None:
    pool = FakePool(
        lambda worker, part: (
            Outcome("unfit", "node b: no such model") if worker.number == 1 else DONE
        )
    )
    backlog = pool.run(10)
    assert (
        sorted(pool.finalized) == list(range(10))
        and not backlog.poisoned
        and len(pool.workers) == 2
    )
    assert pool.said == ["a worker is left out: node b: no such model"]


def test_a_worker_of_another_version_is_never_given_anything() -> None:
    pool = FakePool(hires=iter([UnfitWorker("node b has pyarrow 20, the driver 26"), None]))
    backlog = pool.run(5)
    assert (
        sorted(pool.finalized) == list(range(5)) and len(pool.workers) == 1 and not backlog.poisoned
    )


def test_nobody_fit_is_an_error_that_says_why() -> None:
    pool = FakePool(hires=iter([UnfitWorker("node a has pyarrow 20, the driver 26")] * 9))
    with pytest.raises(
        ClusterError,
        match=r"no worker .* \(node a has pyarrow 20, the driver 26\).* what was answered is kept",
    ):
        pool.run(5)
    assert len(pool.said) == 1, "said once, whatever the number of workers"


def test_workers_that_die_as_they_start_are_given_up() -> None:
    pool = FakePool(
        hires=iter([WorkerDied("ModuleNotFoundError: No module named 'mora_data'")] * 99)
    )
    with pytest.raises(ClusterError, match="died as it started: ModuleNotFoundError"):
        pool.run(5)


def test_storage_that_refuses_writes_stops_the_build() -> None:
    pool = FakePool(
        lambda worker, part: (
            Outcome("storage", "node a: can't write /x: No space left") if part == 4 else DONE
        )
    )
    with pytest.raises(RunFolderError, match="No space left"):
        pool.run(50)
    assert len(pool.finalized) < 50


def test_a_log_that_is_held_and_a_stopped_neighbour_cost_no_strike() -> None:
    times = Counter[int]()

    def fate(worker: FakeWorker, part: int) -> Outcome:
        times[part] += 1
        return (
            Outcome("locked" if part == 0 else "stopped", "later")
            if part < 2 and times[part] < 6
            else DONE
        )

    pool = FakePool(fate)
    backlog = pool.run(4)
    assert not backlog.poisoned and sorted(pool.finalized) == [0, 1, 2, 3]
    assert set(pool.said) == {"partition 00000 is tried again: later"}


def test_an_interrupt_dismisses_every_worker() -> None:
    pool = FakePool()

    async def interrupted() -> None:
        async def forever(part: int) -> Outcome:
            await asyncio.Event().wait()
            return DONE

        hire = pool.hire

        async def hired() -> FakeWorker:
            worker = await hire()
            worker.finalize = forever  # type: ignore[method-assign]
            return worker

        task = asyncio.ensure_future(distribute(range(9), hired, 3, 3, pool.said.append))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(interrupted())
    assert len(pool.workers) == 3 and all(h.dismissed for h in pool.workers)


def test_damaged_lines_are_added_up() -> None:
    assert FakePool(lambda worker, part: Outcome("finalized", damaged=part)).run(4).damaged == 6
