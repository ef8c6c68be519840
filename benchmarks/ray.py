"""A build on a Ray cluster of two nodes on this machine, beside one on one worker; and a node that
dies in the middle.

The server is the limit, not the CPU: it takes 400 ms for an answer, and a worker has 16 slots.
Rates are the stub's: requests over the time from the first to the last. What a dead node had in
flight is asked again, and nothing else.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.common import ROOT, Figure, Scale, checked, environment, run
from benchmarks.endpoint import Job, K, Server
from benchmarks.nodes import QUIET, Nodes

LATENCY_MS, WORKER_SLOTS = 400, 16
GIVE_UP_S = 120.0


@dataclass(frozen=True)
class Cluster:
    """Where a build runs."""

    nodes: Nodes
    server: Server
    folder: Path

    def command(self, name: str, m: int, workers: int, *more: str) -> list[str]:
        """A build of `m` prompts on so many workers; 0: in its own process."""
        parts = max(4, m // 12)
        job = Job(m, LATENCY_MS, until="score").command(
            self.folder / name, f"http://127.0.0.1:{self.server.port}/v1"
        )
        ray = (
            "--executor",
            "ray",
            "--set",
            f"ray.address={self.nodes.address}",
            "--set",
            f"ray.workers={workers}",
        )
        on = ray if workers else ()
        sets = (
            "--set",
            f"policy.concurrency={WORKER_SLOTS}",
            "--set",
            f"judge.concurrency={WORKER_SLOTS}",
            "--set",
            f"partition_size={max(1, m // parts)}",
        )
        return [str(c) for c in (*job, *on, *sets, *more)]

    def asked(self, name: str, m: int, workers: int) -> dict[str, Any]:
        """What the server saw of a whole build; it fails if it left or repeated anything."""
        self.server.call("/_reset", {"latency_ms": LATENCY_MS})
        done = checked(run(self.command(name, m, workers), QUIET, limit_s=900), name)
        seen = self.server.call("/_stats")
        if seen["answered_again"] or seen["answered"] != 2 * m * K:
            raise RuntimeError(f"{name} left or repeated answers: {seen}")
        return {
            **seen,
            "per_s": seen["received"] / seen["span_s"],
            "start_s": seen["first"] - done.started,
        }


def figures(scale: Scale) -> Iterator[Figure]:
    """The table of the cluster."""
    with Server() as server, TemporaryDirectory() as folder, Nodes(2, environment()) as nodes:
        cluster = Cluster(nodes, server, Path(folder))
        yield Figure(
            "a Ray cluster of two nodes, here: up after, s", "stated", f"{nodes.seconds:.1f}"
        )
        yield from throughput(cluster, 48 if scale.quick else 144)
        yield from same_bytes(cluster)
        yield from killed(cluster, 48 if scale.quick else 144)


def throughput(cluster: Cluster, m: int) -> Iterator[Figure]:
    """Two workers beside one."""
    alone, one, two = (cluster.asked(f"speed{n}", m, n) for n in (0, 1, 2))
    ratio = two["per_s"] / (2 * one["per_s"])
    yield Figure(
        f"requests/s of two workers, M={m}, {WORKER_SLOTS} slots each at {LATENCY_MS} ms",
        ">= 0.9 of 2 x one",
        f"{two['per_s']:.1f}",
        f"{one['per_s']:.1f} one worker, {alone['per_s']:.1f} no Ray",
        ratio,
        ratio >= 0.9,
    )
    yield Figure(
        "same, in flight at the server, mean",
        "-",
        f"{two['mean_in_flight']:.1f} of {2 * WORKER_SLOTS}",
        f"{one['mean_in_flight']:.1f} of {WORKER_SLOTS} one worker",
    )
    yield Figure(
        "same, process start to first request, s",
        "stated",
        f"{two['start_s']:.1f}",
        f"{alone['start_s']:.1f} no Ray",
        two["start_s"] / alone["start_s"],
    )


def same_bytes(cluster: Cluster) -> Iterator[Figure]:
    """The files of the folders."""
    files = [
        {str(p.relative_to(run_dir)): p.read_bytes() for p in sorted(run_dir.rglob("*.parquet"))}
        for run_dir in (cluster.folder / f"speed{n}" / "run" for n in (0, 2))
    ]
    same = sum(files[0][name] == files[1].get(name) for name in files[0])
    yield Figure(
        "same, Parquet files equal byte for byte to those without Ray",
        "all",
        f"{same} of {len(files[0])}",
        met=same == len(files[0]) == len(files[1]),
    )


def killed(cluster: Cluster, m: int) -> Iterator[Figure]:
    """One of the two nodes dies when half of the answers are there."""
    server = cluster.server
    server.call("/_reset", {"latency_ms": LATENCY_MS})
    process = subprocess.Popen(
        cluster.command("killed", m, 2),
        cwd=ROOT,
        env={**environment(), **QUIET},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + GIVE_UP_S
    while server.call("/_stats")["answered"] < m * K:
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(
                f"the build with a death in it did not get half way (exit code {process.poll()})"
            )
        time.sleep(0.05)
    cluster.nodes.kill()
    died = time.monotonic()
    _, said = process.communicate(timeout=600)
    seen = server.call("/_stats")
    lost = 2 * m * K - seen["answered"]
    yield Figure(
        f"a node killed in the middle, M={m}: answers lost, exit code",
        "0, 0",
        f"{lost}, {process.returncode}",
        met=lost == 0 and process.returncode == 0,
    )
    yield Figure(
        "same, asked again",
        f"<= {WORKER_SLOTS} in flight on it",
        str(seen["received"] - seen["keys"]),
        met=seen["received"] - seen["keys"] <= WORKER_SLOTS,
    )
    yield Figure(
        "same, from its death to the end of the build, s",
        "-",
        f"{time.monotonic() - died:.1f}",
        f"{(m * K) / (WORKER_SLOTS * 1000 / LATENCY_MS):.1f} on one worker",
    )
    if "others take it up" not in said:
        raise RuntimeError(f"nothing was said about the death: {said[-300:]}")
