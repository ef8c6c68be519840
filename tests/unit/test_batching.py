"""In-process batches with a model made of Python: order, sizes, memory that ends, and an event loop
that stays free."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mora_data.engines import connect
from mora_data.engines.cached_client import CachedClient
from mora_data.engines.engine import Piece, RefusedRequest
from mora_data.engines.in_process import BatchSizer, InProcessEngine, LazyModel, ModelQueue
from mora_data.errors import EndpointError, ExtraMissing, PendingRetry, SettingsError
from mora_data.run.log import AnswerLog
from mora_data.run.stats import RunStats
from mora_data.settings import LocalSettings, RoleSettings
from mora_data.types import Answer, Message, Request, Sampling

SAMPLING = Sampling(1.0, 0.95, 16)


class Words:
    """A model whose prompt has as many tokens as its text has words, and whose answer is its
    seed."""

    def __init__(
        self, fits: int = 1 << 30, before: Callable[[Sequence[Piece]], None] = lambda pieces: None
    ) -> None:
        self.fits, self.before = fits, before
        self.batches: list[list[int]] = []
        self.threads: set[str] = set()
        self.closed = False

    def encode(self, request: Request) -> list[int]:
        words = request.messages[-1]["content"].split()
        if "refuse" in words:
            raise RefusedRequest("not this one")
        return [0] * len(words)

    def run(self, pieces: Sequence[Piece]) -> list[tuple[Answer, ...]]:
        self.threads.add(threading.current_thread().name)
        self.before(pieces)
        if sum(len(p.tokens) for p in pieces) > self.fits:
            raise MemoryError("too large")
        self.batches.append([len(p.tokens) for p in pieces])
        return [tuple(Answer(str(p.seed + i), tokens_out=1) for i in range(p.n)) for p in pieces]

    def close(self) -> None:
        self.closed = True


def request(i: int, words: int, n: int = 1, **more: Any) -> Request:
    return Request(
        "policy",
        (Message(role="user", content="w " * words + str(more.pop("extra", ""))),),
        more.pop("sampling", SAMPLING),
        "presample",
        f"p{i}",
        n=n,
        **more,
    )


class Asked:
    """Asks requests through an engine and a log, all at once."""

    def __init__(
        self,
        tmp_path: Path,
        model: Words,
        clock: Callable[[], float] | None = None,
        whole: bool = False,
        **local: Any,
    ) -> None:
        self.path, self.model, self.whole = tmp_path / "answers.log", model, whole
        self.role = RoleSettings(engine="x", model="words", local=LocalSettings(**local))
        self.stats = RunStats()
        self.clock = clock
        self.loads = 0

    def load(self) -> Words:
        self.loads += 1
        return self.model

    async def _run(self, requests: Sequence[Request]) -> list[Any]:
        self.queue = ModelQueue(self.stats, self.clock) if self.clock else ModelQueue(self.stats)
        source = LazyModel("words", self.load, self.role.local, self.whole)
        engine = InProcessEngine(self.queue, lambda task: source, self.role, self.stats)
        other = InProcessEngine(self.queue, lambda task: source, self.role, self.stats)
        log = AnswerLog(self.path)
        try:
            asker = CachedClient({"policy": engine, "judge": other}, log, 0, self.stats)
            return list(await asyncio.gather(*(asker(r) for r in requests), return_exceptions=True))
        finally:
            await engine.close()
            await other.close()
            log.close()

    def __call__(self, *requests: Request) -> list[Any]:
        return asyncio.run(self._run(requests))


def test_batches_are_cut_from_all_that_wait_by_length(tmp_path: Path) -> None:
    model = Words()
    ask = Asked(tmp_path, model, max_batch=8)
    answers = ask(*(request(i, 1 + (i * 37) % 50) for i in range(40)))
    assert all(a[0].error is None for a in answers) and len({a[0].text for a in answers}) == 40
    assert [len(b) for b in model.batches] == [8] * 5
    lengths = [n for batch in model.batches for n in batch]
    assert lengths == sorted(lengths, reverse=True)
    assert 1 - ask.queue.tokens / ask.queue.padded < 0.2
    assert model.threads == {"model_0"} and model.closed and ask.loads == 1


@pytest.mark.parametrize("most", [64, 256])
def test_padding_is_under_a_tenth_with_a_full_window(tmp_path: Path, most: int) -> None:
    """Log-normal lengths (a factor of 2.2 is one deviation), as many as wait in a full window."""
    rng = random.Random(0)
    ask = Asked(tmp_path, Words(), max_batch=most)
    ask(*(request(i, max(3, min(1000, round(rng.lognormvariate(4, 0.8))))) for i in range(2048)))
    assert 0 < 1 - ask.queue.tokens / ask.queue.padded < 0.1


def test_sample_i_has_the_seed_plus_i_however_it_is_asked(tmp_path: Path) -> None:
    whole = Asked(tmp_path / "a", Words(), whole=True)(request(0, 3, n=6))[0]
    singly = Asked(tmp_path / "b", Words(), max_batch=4)(request(0, 3, n=6))[0]
    late = Asked(tmp_path / "c", Words())(request(0, 3, n=2, first=4))[0]
    seeds = [int(a.text) for a in singly]
    assert whole == singly and seeds == list(range(seeds[0], seeds[0] + 6))
    assert [a.text for a in late] == [a.text for a in singly[4:]]


def test_one_model_for_two_roles_and_one_lane_for_each_way_of_sampling(tmp_path: Path) -> None:
    model = Words()
    ask = Asked(tmp_path, model, max_batch=64)
    cold = Sampling(0.0, 1.0, 16)
    judge = [Request("judge", request(i, 4).messages, cold, "score", f"p{i}") for i in range(5)]
    ask(*(request(i, 4) for i in range(7)), *judge)
    assert sorted(map(len, model.batches)) == [5, 7] and ask.loads == 1


def test_answers_go_to_the_log_as_each_batch_ends(tmp_path: Path) -> None:
    sizes = []
    ask = Asked(
        tmp_path,
        Words(before=lambda pieces: sizes.append((tmp_path / "answers.log").stat().st_size)),
        max_batch=2,
    )
    ask(*(request(i, 4) for i in range(6)))
    assert len(sizes) == 3 and sizes[0] == 0 and sizes[0] < sizes[1] < sizes[2]


def test_memory_that_ends_halves_the_batch_and_goes_on(tmp_path: Path) -> None:
    model = Words(fits=35)  # three and a half of the prompts
    answers = Asked(tmp_path, model, max_batch=8)(*(request(i, 10) for i in range(20)))
    assert all(a[0].error is None for a in answers)
    assert max(map(len, model.batches)) == 2 and sum(map(len, model.batches)) == 20


def test_a_prompt_that_does_not_fit_alone_is_owed_and_the_others_go_on(tmp_path: Path) -> None:
    model = Words(fits=35)
    answers = Asked(tmp_path, model, max_batch=8)(
        request(0, 90), *(request(i, 5) for i in range(1, 200))
    )
    assert isinstance(
        answers[0], PendingRetry
    ) and "out of memory on a single prompt of 90 tokens with model words" in str(answers[0])
    assert all(a[0].error is None for a in answers[1:])
    assert max(map(len, model.batches)) > 2  # it grows again


def test_a_refusal_is_final_and_its_reason_is_kept(tmp_path: Path) -> None:
    model = Words()
    ask = Asked(tmp_path, model)
    first = ask(request(0, 3, n=2, extra="refuse"), request(1, 3))
    assert [a.error for a in first[0]] == ["not this one"] * 2 and first[1][0].error is None
    assert ask(request(0, 3, n=2, extra="refuse"))[0] == first[0] and ask.stats.sent == 2


def test_a_model_that_fails_ends_every_wait_in_one_line(tmp_path: Path) -> None:
    def broken(pieces: Sequence[Piece]) -> None:
        raise RuntimeError("device-side\nassert")

    answers = Asked(tmp_path, Words(before=broken), max_batch=2)(*(request(i, 3) for i in range(5)))
    assert {type(a) for a in answers} == {EndpointError}
    assert (
        str(answers[0])
        == "model words failed (RuntimeError: device-side assert): what was answered is kept, "
        "the same command goes on"
    )


def test_the_event_loop_is_free_while_a_batch_runs(tmp_path: Path) -> None:
    """The batch waits for something that only the event loop can do; a blocked loop would never do
    it."""
    free = threading.Event()

    def wait(pieces: Sequence[Piece]) -> None:
        running.set()
        seen.append(free.wait(10))

    async def run() -> list[Any]:
        asked = asyncio.ensure_future(Asked(tmp_path, Words(before=wait))._run([request(0, 3)]))
        while not running.is_set():
            await asyncio.sleep(0.001)
        free.set()
        return await asked

    running, seen = threading.Event(), []
    assert asyncio.run(run())[0][0].error is None and seen == [True]


def test_the_window_says_when_more_prompts_are_opened(tmp_path: Path) -> None:
    async def run() -> list[bool]:
        stats = RunStats()
        queue = ModelQueue(stats)
        gate = threading.Event()
        source = LazyModel(
            "words",
            lambda: Words(before=lambda pieces: gate.wait(10) and None),
            LocalSettings(window=4),
        )
        engine = InProcessEngine(
            queue,
            lambda task: source,
            RoleSettings(model="w", local=LocalSettings(window=4)),
            stats,
        )
        wants = [engine.wants_more]
        asked = [
            asyncio.ensure_future(engine.send(request(i, 2, n=3), b"", 7, lambda r: None))
            for i in range(2)
        ]
        await asyncio.sleep(0)
        wants.append(engine.wants_more)
        await engine.changed()
        wants.append(engine.wants_more)  # they are in a batch: the next one can fill
        gate.set()
        await asyncio.gather(*asked)
        await engine.close()
        return wants

    assert asyncio.run(run()) == [True, False, True]


@pytest.mark.parametrize(
    ("rates", "sizes"),
    [
        ((1, 2, 4, 8), [8, 16, 32, 64]),  # it pays up to the largest
        ((1, 1.9, 2.0), [8, 16, 32, 16]),  # the second doubling does not: back to what did
        ((1, 0.5), [8, 16, 8]),
    ],
)
def test_the_size_is_found_by_doubling(rates: Sequence[float], sizes: Sequence[int]) -> None:
    sizer, seen = BatchSizer(64), []
    for rate in rates:
        seen.append(sizer.size)
        sizer.ran(sizer.size - 1, 1e9, 1)  # not a full batch: it tells nothing
        sizer.ran(sizer.size, 1, 100)  # warming up
        sizer.ran(sizer.size, rate, 1)
    assert [*seen, sizer.size][: len(sizes)] == list(sizes) and sizer.size == sizes[-1]
    sizer.ran(sizer.size, 1e9, 1)
    sizer.ran(sizer.size, 1e9, 1)
    assert sizer.size == sizes[-1]


@pytest.mark.parametrize(("engine", "module"), [("transformers", "torch"), ("vllm", "vllm")])
def test_an_extra_that_is_missing_is_named(
    engine: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mora_data.settings import build_settings

    settings = build_settings(
        {"name": "x", "source": {"kind": "jsonl"}, "policy": {"engine": engine, "model": "m"}}
    )
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == module else object()
    )
    with pytest.raises(ExtraMissing, match=rf"pip install 'mora-data\[{engine}\]'"):
        connect(settings, False, RunStats())


@pytest.mark.parametrize(
    ("policy", "needs"),
    [
        ({"engine": "batch"}, "engine 'batch' needs"),
        ({"engine": "openai", "transport": "openai"}, "transport: openai needs"),
    ],
)
def test_the_openai_package_is_an_extra(
    policy: dict[str, str], needs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mora_data.settings import build_settings

    role = {"model": "m", "base_url": "http://127.0.0.1:9/v1", **policy}
    settings = build_settings({"name": "x", "source": {"kind": "jsonl"}, "policy": role})
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "openai" else object()
    )
    with pytest.raises(ExtraMissing) as e:
        connect(settings, False, RunStats(), tmp_path)
    assert str(e.value) == f"{needs} the openai package: pip install 'mora-data[openai]'"
    if policy["engine"] == "batch":  # files for another program need no client
        role["batch"] = {"mode": "files"}
        settings = build_settings({"name": "x", "source": {"kind": "jsonl"}, "policy": role})
        assert connect(settings, False, RunStats(), tmp_path)["policy"].model == "m"


def test_a_model_must_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from mora_data.settings import build_settings

    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    settings = build_settings(
        {"name": "x", "source": {"kind": "jsonl"}, "policy": {"engine": "vllm"}}
    )
    with pytest.raises(SettingsError, match="engine 'vllm' needs a model: give --model"):
        connect(settings, False, RunStats())
