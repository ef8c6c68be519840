"""The engine on a loopback server: M prompts x 8 answers, one judge call each, every request
distinct, 64 slots.

The real command runs in plain mode (no presampling, arm identity, one sample a request, one
dimension, no confirmation), with everything on: log, keys, judge, accounting, progress, Parquet,
the dataset folder. The floors do the same requests with bare loops. `asking` figures end with the
last reply (the stub's clock), the others with the process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.common import MORA_DATA, ROOT, Figure, Run, Scale, checked, median, run

SLOTS, K = 64, 8
JUDGE_USER = (
    'Rate the response for helpfulness, 1 to 5. Answer with one JSON object, {"score": n}.\n\n'
    "Prompt:\n{{ question }}\n\nResponse:\n{{ answer }}"
)
FILL = (
    "Explain the trade-offs carefully, mention at least two concrete examples, keep the tone"
    " friendly, avoid any unsafe advice, and say plainly what you are not sure about. " * 2
)
BUILD: dict[str, Any] = {
    "name": "bench",
    "source": {"kind": "jsonl", "licence": "mit"},
    "dimensions": ["helpful"],
    "policy": {"engine": "openai", "model": "stub-gen", "n_per_request": 1, "concurrency": SLOTS},
    "judge": {"model": "stub-judge"},
    "presample": {"enabled": False},
    "fuse": {"arms": ["identity"]},
    "rollout": {"n": K},
    "select": {"confirm": False},
}


def prompt_text(i: int) -> str:
    """Prompt `i` of the job."""
    return f"Prompt {i}. How would you plan topic number {i % 97}? {FILL}"


class Server:
    """The stub in a process of its own."""

    def __enter__(self) -> Server:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.stub"], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        return self

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        self._process.wait()

    def call(self, path: str, body: object = None) -> dict[str, Any]:
        """A control request."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            None if body is None else json.dumps(body).encode(),
        )
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            request, timeout=10
        ) as reply:
            found: dict[str, Any] = json.loads(reply.read())
            return found


@dataclass(frozen=True)
class Result:
    """A job done: what the process took, what the server saw."""

    job: Job
    done: Run
    seen: dict[str, Any]

    @property
    def first_s(self) -> float:
        return float(self.seen["first"]) - self.done.started

    @property
    def cpu_ms(self) -> float:
        return 1000 * self.done.cpu_s / self.job.requests

    @property
    def asking_s(self) -> float:
        """Process start to last reply."""
        return self.first_s + float(self.seen["span_s"])

    @property
    def per_s(self) -> float:
        return float(self.seen["received"] / self.seen["span_s"])

    @property
    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.done.out)
        return found

    def status(self, code: int) -> int:
        return int(self.seen["status"].get(str(code), 0))


@dataclass(frozen=True)
class Job:
    """The job and the server's settings for it."""

    m: int
    latency_ms: float = 50
    until: str = "publish"
    faults: dict[str, Any] = field(default_factory=dict)

    @property
    def requests(self) -> int:
        return 2 * self.m * K

    @property
    def ideal_s(self) -> float:
        return (
            self.requests * self.latency_ms / 1000 / min(SLOTS, self.faults.get("admit") or SLOTS)
        )

    def run(self, server: Server, who: str, folder: Path) -> Result:
        """The job by mora-data or by a floor, in an empty folder."""
        url = f"http://127.0.0.1:{server.port}/v1"
        folder.mkdir(parents=True)
        command = (
            self.command(folder, url)
            if who == "mora-data"
            else (
                sys.executable,
                "-m",
                "benchmarks.floor",
                who,
                "--base-url",
                url,
                "--m",
                self.m,
                "--k",
                K,
                "--out",
                folder / "rows.jsonl",
            )
        )
        server.call("/_reset", {"latency_ms": self.latency_ms, **self.faults})
        done = checked(run([str(c) for c in command], limit_s=max(600, self.m / 20)), who)
        time.sleep(0.1)
        return Result(self, done, server.call("/_stats"))

    def command(self, folder: Path, url: str) -> tuple[Any, ...]:
        """The build, its files in `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "judge.j2").write_text(
            f"{{% block user %}}{JUDGE_USER}{{% endblock %}}\n", "utf-8"
        )
        build = {
            **BUILD,
            "rewards": {"helpful": [{"kind": "judge", "template": str(folder / "judge.j2")}]},
        }
        (folder / "build.yaml").write_text(json.dumps(build), "utf-8")
        with (folder / "prompts.jsonl").open("w", encoding="utf-8") as f:
            f.writelines(json.dumps({"prompt": prompt_text(i)}) + "\n" for i in range(self.m))
        return (
            *MORA_DATA,
            "build",
            "--source",
            folder / "build.yaml",
            "--data",
            folder / "prompts.jsonl",
            "--base-url",
            url,
            "--out",
            folder / "run",
            "--until",
            self.until,
            "--json",
        )


class Bench:
    """Runs jobs in folders of their own."""

    def __init__(self, server: Server, folder: Path) -> None:
        self._server, self._folder, self._n = server, folder, 0

    def do(self, job: Job, who: str = "mora-data", times: int = 1) -> list[Result]:
        """`times` runs of a job, each complete: every key answered once, unless it is one of those
        that never are."""
        out = []
        for _ in range(times):
            self._n += 1
            result = job.run(self._server, who, self._folder / str(self._n))
            seen = result.seen
            if seen["answered_again"] or seen["answered"] + result.status(400) != seen["keys"]:
                raise RuntimeError(f"{who} left or repeated answers: {seen}")
            out.append(result)
        return out


def figures(scale: Scale) -> Iterator[Figure]:
    """The table of the engine."""
    with Server() as server, TemporaryDirectory() as folder:
        bench = Bench(server, Path(folder))
        yield from cpu_and_memory(bench, scale)
        yield from ceiling(bench, scale)
        yield from walls(bench, scale)
        yield from faults(bench, scale)
        yield from admission(bench, scale)
        yield from flatness(bench, scale)


def cpu_and_memory(bench: Bench, scale: Scale) -> Iterator[Figure]:
    """CPU per request and peak memory, start included."""
    m = 200 if scale.quick else 2000
    (whole,), (asked,) = bench.do(Job(m)), bench.do(Job(m, until="score"))
    (plain,), (raw,) = bench.do(Job(m), "aiohttp"), bench.do(Job(m), "raw")
    floor = f"{plain.cpu_ms:.3f} aiohttp, {raw.cpu_ms:.3f} raw"
    yield Figure(
        f"CPU ms/request, M={m:,}, everything on",
        "<= 0.25",
        f"{whole.cpu_ms:.3f}",
        floor,
        whole.cpu_ms / plain.cpu_ms,
        whole.cpu_ms <= 0.25,
    )
    yield Figure(
        "same, --until score (no selection, no dataset folder)",
        "-",
        f"{asked.cpu_ms:.3f}",
        floor,
        asked.cpu_ms / plain.cpu_ms,
    )
    memory = f"{plain.done.peak_mb:.0f} aiohttp, {raw.done.peak_mb:.0f} raw"
    yield Figure(
        f"peak PSS MB, M={m:,}",
        "<= 110",
        f"{whole.done.peak_mb:.0f}",
        memory,
        whole.done.peak_mb / plain.done.peak_mb,
        whole.done.peak_mb <= 110,
    )
    yield Figure(
        "same, --until score",
        "-",
        f"{asked.done.peak_mb:.0f}",
        memory,
        asked.done.peak_mb / plain.done.peak_mb,
    )


def ceiling(bench: Bench, scale: Scale) -> Iterator[Figure]:
    """Requests a second when the server answers at once."""
    job = Job(200 if scale.quick else 500, latency_ms=0)
    ours, plain, raw = (
        median(bench.do(job, who, scale.repeats), lambda r: r.per_s)
        for who in ("mora-data", "aiohttp", "raw")
    )
    yield Figure(
        "requests/s at 0 ms, one process",
        ">= 6,000",
        f"{ours:,.0f}",
        f"{plain:,.0f} aiohttp, {raw:,.0f} raw",
        ours / plain,
        ours >= 6000,
    )


def walls(bench: Bench, scale: Scale) -> Iterator[Figure]:
    """Wall time over the ideal of 64 busy slots, start included."""
    m = 50 if scale.quick else 200
    for latency, goal in ((50, 1.25), (200, 1.07)):
        job = Job(m, latency)
        ours = bench.do(job, times=scale.repeats)
        plain = bench.do(job, "aiohttp", scale.repeats if latency == 50 else 1)
        asking, floor = (median(rs, lambda r: r.asking_s) / job.ideal_s for rs in (ours, plain))
        whole = median(ours, lambda r: r.done.wall_s) / job.ideal_s
        yield Figure(
            f"wall x ideal to the last reply, {latency} ms, M={m}",
            f"<= {goal}",
            f"{asking:.2f}",
            f"{floor:.2f} aiohttp",
            asking / floor,
            asking <= goal,
        )
        yield Figure(
            "same, to the end of the process",
            f"<= {goal}",
            f"{whole:.2f}",
            f"{floor:.2f} aiohttp",
            whole / floor,
            whole <= goal,
        )


def faults(bench: Bench, scale: Scale) -> Iterator[Figure]:
    """What failing calls cost, beside the same job without faults."""
    m = 50 if scale.quick else 100
    clean = median(bench.do(Job(m), times=scale.repeats), lambda r: r.done.wall_s)
    for code in (429, 500):
        job = Job(m, faults={f"p_{code}": 0.05})
        ours = bench.do(job, times=scale.repeats)
        ratio = median(ours, lambda r: r.done.wall_s) / clean
        rows = min(r.status(200) for r in ours)
        yield Figure(
            f"5 % of calls get {code} once, M={m}",
            "<= 1.3 x clean, all rows",
            f"{ratio:.2f} x, {rows} of {job.requests}",
            f"{clean:.2f} s clean",
            ratio,
            ratio <= 1.3 and rows == job.requests,
        )
    (bad,) = bench.do(Job(m, faults={"bad_keys": 0.01}))
    errors, refused = bad.summary["errors"], bad.status(400)
    again = bad.seen["received"] - bad.seen["keys"]
    yield Figure(
        "1 % permanent 400",
        "only those rows, none retried",
        f"{refused} refused, {errors} rows in the list, {again} retried",
        met=errors == refused and again == 0,
    )


def admission(bench: Bench, scale: Scale) -> Iterator[Figure]:
    """The server takes 32 at a time and refuses the rest."""
    job = Job(50, faults={"admit": 32, "queue": 1, "retry_after": 1})
    ours, plain = bench.do(job, times=scale.repeats), bench.do(job, "aiohttp")
    served, floor = (median(rs, lambda r: r.seen["mean_in_service"]) for rs in (ours, plain))
    refused = median(ours, lambda r: r.status(429))
    yield Figure(
        "server admits 32 of 64: in service",
        ">= 29",
        f"{served:.1f}",
        f"{floor:.1f} aiohttp",
        served / floor,
        served >= 29,
    )
    yield Figure(
        "same, refusals",
        "<= 6 %",
        f"{100 * refused / job.requests:.1f} %",
        f"{100 * plain[0].status(429) / job.requests:.1f} % aiohttp",
        met=refused <= 0.06 * job.requests,
    )


def flatness(bench: Bench, scale: Scale) -> Iterator[Figure]:
    """Does memory stay flat? Peaks of ever larger jobs beside that of M=2,000, up to the scores."""
    sizes = (*((10_000, 30_000) if scale.long else ()), *((100_000,) if scale.huge else ()))
    small = bench.do(Job(2000, latency_ms=0, until="score"))[0].done.peak_mb if sizes else 0.0
    for m in sizes:
        large = bench.do(Job(m, latency_ms=0, until="score"))[0].done.peak_mb
        yield Figure(
            f"peak PSS MB, M={m:,} ({2 * m * K:,} requests), --until score",
            "flat, <= 130",
            f"{large:.0f}",
            f"{small:.0f} at M=2,000",
            large / small,
            large <= 130,
        )
