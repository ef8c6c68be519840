"""Which worker gets which partition: deaths, poison, machines that can't do the work; no Ray
needed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from mora_data.cluster.schedule import IN_HAND, Board, Died, Ended, Unfit, distribute
from mora_data.errors import ClusterError, RunFolderError

Fate = Callable[["FakeHand", int], Ended | Exception]
SEALED = Ended("sealed")


@dataclass(eq=False)
class FakeHand:
    """A worker that does what `fate` says."""

    crew: FakeCrew
    number: int
    open: list[int] = field(default_factory=list)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    dismissed: bool = False

    async def seal(self, part: int) -> Ended:
        self.open.append(part)
        self.crew.together.append(tuple(self.open))
        self.crew.tried[part] += 1
        try:
            for _ in range(3):
                await asyncio.sleep(0)
            outcome = self.crew.fate(self, part)
            if isinstance(outcome, Died):
                self.gone.set()
            if self.gone.is_set():  # a death takes all that the worker has in hand
                raise Died("it is gone", self.crew.node_lost)
            if isinstance(outcome, Exception):
                raise outcome
            if outcome.what == "sealed":
                self.crew.sealed.append(part)
            return outcome
        finally:
            self.open.remove(part)

    async def dismiss(self) -> None:
        self.dismissed = True


@dataclass
class FakeCrew:
    """Hires as long as `hires` lasts."""

    fate: Fate = lambda hand, part: SEALED
    node_lost: bool = False
    hires: Iterator[Exception | None] | None = None
    hands: list[FakeHand] = field(default_factory=list)
    tried: Counter[int] = field(default_factory=Counter)
    together: list[tuple[int, ...]] = field(default_factory=list)
    sealed: list[int] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    async def hire(self) -> FakeHand:
        await asyncio.sleep(0)
        refusal = next(self.hires, None) if self.hires is not None else None
        if refusal is not None:
            raise refusal
        self.hands.append(FakeHand(self, len(self.hands)))
        return self.hands[-1]

    def run(self, n: int, size: int = 2, tries: int = 3) -> Board:
        board = asyncio.run(
            asyncio.wait_for(distribute(range(n), self.hire, size, tries, self.said.append), 20)
        )
        assert all(h.dismissed and not h.open for h in self.hands)
        return board


def test_every_partition_is_sealed_once_and_workers_have_two_in_hand() -> None:
    crew = FakeCrew()
    board = crew.run(20)
    assert sorted(crew.sealed) == list(range(20)) and set(crew.tried.values()) == {1}
    assert len(crew.hands) == 2 and max(len(t) for t in crew.together) == IN_HAND
    assert not board.poisoned and not crew.said


def test_fewer_partitions_than_places_hire_no_more_workers_than_needed() -> None:
    crew = FakeCrew()
    crew.run(2, size=10)
    assert len(crew.hands) == 2


def test_a_worker_that_dies_is_replaced_and_its_partitions_are_taken_up() -> None:
    crew = FakeCrew(lambda hand, part: Died("killed") if hand.number == 0 and part == 0 else SEALED)
    board = crew.run(8)
    assert sorted(crew.sealed) == list(range(8)) and not board.poisoned
    assert len(crew.hands) == 3 and "others take it up" in crew.said[0]


@pytest.mark.parametrize("how", ["dies", "raises"])
def test_a_poisoned_partition_is_left_out_after_three_tries_and_nothing_else(how: str) -> None:
    poison = Died("killed") if how == "dies" else Ended("raised", "ValueError: bad row")
    crew = FakeCrew(lambda hand, part: poison if part == 3 else SEALED)
    board = crew.run(9)
    assert set(board.poisoned) == {3} and crew.tried[3] == 3
    assert sorted(crew.sealed) == [n for n in range(9) if n != 3]
    assert ("bad row" in board.poisoned[3]) == (how == "raises")
    last_two = [t for t in crew.together if 3 in t][1:]
    assert last_two == [(3,), (3,)], (
        "with a strike it is alone, so the next strikes are surely its own"
    )


def test_two_poisoned_partitions_do_not_take_an_innocent_one_with_them() -> None:
    crew = FakeCrew(lambda hand, part: Died("killed") if part in (0, 5) else SEALED)
    board = crew.run(7, size=3)
    assert set(board.poisoned) == {0, 5} and sorted(crew.sealed) == [1, 2, 3, 4, 6]


def test_lost_nodes_are_nobodys_fault() -> None:
    crew = FakeCrew(lambda hand, part: Died("gone") if hand.number < 6 else SEALED, node_lost=True)
    board = crew.run(4)
    assert (
        not board.poisoned and sorted(crew.sealed) == [0, 1, 2, 3] and max(crew.tried.values()) > 3
    )


def test_a_worker_without_the_model_is_left_out_and_the_others_do_its_work() -> None:
    crew = FakeCrew(
        lambda hand, part: Ended("unfit", "node b: no such model") if hand.number == 1 else SEALED
    )
    board = crew.run(10)
    assert sorted(crew.sealed) == list(range(10)) and not board.poisoned and len(crew.hands) == 2
    assert crew.said == ["a worker is left out: node b: no such model"]


def test_a_worker_of_another_version_is_never_given_anything() -> None:
    crew = FakeCrew(hires=iter([Unfit("node b has pyarrow 20, the driver 26"), None]))
    board = crew.run(5)
    assert sorted(crew.sealed) == list(range(5)) and len(crew.hands) == 1 and not board.poisoned


def test_nobody_fit_is_an_error_that_says_why() -> None:
    crew = FakeCrew(hires=iter([Unfit("node a has pyarrow 20, the driver 26")] * 9))
    with pytest.raises(
        ClusterError,
        match=r"no worker .* \(node a has pyarrow 20, the driver 26\).* what was answered is kept",
    ):
        crew.run(5)
    assert len(crew.said) == 1, "said once, whatever the number of workers"


def test_workers_that_die_as_they_start_are_given_up() -> None:
    crew = FakeCrew(hires=iter([Died("ModuleNotFoundError: No module named 'mora_data'")] * 99))
    with pytest.raises(ClusterError, match="died as it started: ModuleNotFoundError"):
        crew.run(5)


def test_storage_that_refuses_writes_stops_the_build() -> None:
    crew = FakeCrew(
        lambda hand, part: (
            Ended("storage", "node a: can't write /x: No space left") if part == 4 else SEALED
        )
    )
    with pytest.raises(RunFolderError, match="No space left"):
        crew.run(50)
    assert len(crew.sealed) < 50


def test_a_log_that_is_held_and_a_stopped_neighbour_cost_no_strike() -> None:
    times = Counter[int]()

    def fate(hand: FakeHand, part: int) -> Ended:
        times[part] += 1
        return (
            Ended("held" if part == 0 else "stopped", "later")
            if part < 2 and times[part] < 6
            else SEALED
        )

    crew = FakeCrew(fate)
    board = crew.run(4)
    assert not board.poisoned and sorted(crew.sealed) == [0, 1, 2, 3]
    assert set(crew.said) == {"partition 00000 is tried again: later"}


def test_an_interrupt_dismisses_every_worker() -> None:
    crew = FakeCrew()

    async def interrupted() -> None:
        async def forever(part: int) -> Ended:
            await asyncio.Event().wait()
            return SEALED

        hire = crew.hire

        async def hired() -> FakeHand:
            hand = await hire()
            hand.seal = forever  # type: ignore[method-assign]
            return hand

        task = asyncio.ensure_future(distribute(range(9), hired, 3, 3, crew.said.append))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(interrupted())
    assert len(crew.hands) == 3 and all(h.dismissed for h in crew.hands)


def test_damaged_lines_are_added_up() -> None:
    assert FakeCrew(lambda hand, part: Ended("sealed", damaged=part)).run(4).damaged == 6
