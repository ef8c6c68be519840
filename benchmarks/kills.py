"""Death and return: SIGKILL at 50 random moments of asking, and the first new request after many
finished rows.

The same command is started again after each kill, on the same run folder. What the stub has
answered and the run folder does not hold was in flight when its client died; it is asked again, and
there can be no more of it per kill than there are slots. At the end every request of the job has
been answered and the build is complete: nothing is lost.
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.common import ROOT, Figure, Scale, checked, environment, run
from benchmarks.endpoint import SLOTS, Job, K, Server

POLL_S = 0.005
GIVE_UP_S = 60.0


def figures(scale: Scale) -> Iterator[Figure]:
    """The table of kills and resumes."""
    with Server() as server, TemporaryDirectory() as folder:
        yield from kills(server, Path(folder), 10 if scale.quick else 50)
        yield from resume(server, Path(folder), 1024 if scale.quick else 12_800)


def kills(server: Server, folder: Path, n: int) -> Iterator[Figure]:
    """Repeats and losses of `n` kills."""
    job = Job(100 * n // 4, until="score")
    command = [str(c) for c in job.command(folder / "kills", f"http://127.0.0.1:{server.port}/v1")]
    server.call("/_reset", {"latency_ms": job.latency_ms})
    rng, gone = random.Random(0), [0]
    for _ in range(n):
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _wait(server, _seen(server)["received"], process)
        time.sleep(rng.uniform(0.0, 0.25))
        if process.poll() is not None:
            raise RuntimeError(f"the job was over after {len(gone) - 1} kills")
        process.kill()
        process.wait()
        # what the dead client had sent is answered, or its connection seen to be closed
        time.sleep(2 * job.latency_ms / 1000)
        seen = _seen(server)
        gone.append(seen["answered"] + seen["answered_again"] - _kept(folder / "kills" / "run"))
    last = checked(run(command, limit_s=600), "the last run")
    seen = _seen(server)
    whole = seen["keys"] == seen["answered"] == job.requests
    most = max(after - before for before, after in pairwise(gone))
    yield Figure(
        f"SIGKILL at {n} random moments: answers asked again, mean (most)",
        f"<= {SLOTS} a kill",
        f"{gone[-1] / n:.1f} ({most})",
        f"{SLOTS} in flight",
        met=most <= SLOTS,
    )
    yield Figure(
        "same, answers lost; asked again without need",
        "0; 0",
        f"{job.requests - seen['answered']} of {job.requests}; {seen['answered_again'] - gone[-1]}",
        met=whole and last.code == 0 and seen["answered_again"] == gone[-1],
    )


def resume(server: Server, folder: Path, m: int) -> Iterator[Figure]:
    """Time from process start to the first new request: with `m` x 8 rows in finished partitions,
    and in the midst of one."""
    (empty, _), whole, part = (_resumed(server, folder / str(n), n) for n in (0, m, 488))
    floor = f"{empty:.2f} in an empty folder"
    for name, (first_s, cpu_s) in (
        (f"first new request after {m * K:,} finished rows, s", whole),
        ("same, 488 of the 512 prompts of an open partition done", part),
    ):
        yield Figure(
            name,
            "<= 1.0",
            f"{first_s:.2f} ({cpu_s:.2f} of CPU)",
            floor,
            first_s / empty,
            first_s <= 1.0,
        )


def _resumed(server: Server, folder: Path, done: int) -> tuple[float, float]:
    """Seconds from the start of a process to its first request, and of its CPU, with `done` prompts
    finished before."""
    command = [
        str(c)
        for c in Job(done + SLOTS, until="score").command(
            folder, f"http://127.0.0.1:{server.port}/v1"
        )
    ]
    if done:
        checked(run([*command, "--limit", str(done)], limit_s=3600), "the first build")
    server.call("/_reset", {"latency_ms": 1000})
    started = time.time()
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _wait(server, 0, process)
    used = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    process.kill()
    process.wait()
    return float(_seen(server)["first"]) - started, (int(used[11]) + int(used[12])) / os.sysconf(
        "SC_CLK_TCK"
    )


def _seen(server: Server) -> dict[str, Any]:
    return server.call("/_stats")


def _kept(run_dir: Path) -> int:
    """Answers that a run folder holds."""
    import pyarrow.parquet as pq

    n = 0
    for part in sorted((run_dir / "parts").iterdir()):
        sealed, log = part / "answers.parquet", part / "answers.log"
        if (part / "manifest.json").exists():
            n += pq.read_metadata(sealed).num_rows
        elif log.exists():
            n += log.read_bytes().count(b"\n")
    return n


def _wait(server: Server, received: int, process: subprocess.Popen[bytes]) -> None:
    """Return when the server has read a request more than `received`."""
    end = time.monotonic() + GIVE_UP_S
    while _seen(server)["received"] <= received:
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"a restarted run sent nothing (exit code {process.poll()})")
        time.sleep(POLL_S)
