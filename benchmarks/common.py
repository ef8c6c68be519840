"""What the benchmarks share: a measured child process, a figure of the table, the median."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).resolve().parent.parent
MORA_DATA = (sys.executable, "-m", "mora_data")
T = TypeVar("T")


@dataclass(frozen=True)
class Scale:
    """How much a run measures."""

    quick: bool = False
    long: bool = False
    huge: bool = False

    @property
    def repeats(self) -> int:
        return 1 if self.quick else 3


@dataclass(frozen=True)
class Figure:
    """One row of the table."""

    name: str
    goal: str
    measured: str
    floor: str = "-"
    ratio: float | None = None  # measured / floor
    met: bool | None = None

    def row(self) -> str:
        met = {True: "yes", False: "**no**", None: "-"}[self.met]
        ratio = "-" if self.ratio is None else f"{self.ratio:.2f}"
        return f"| {self.name} | {self.goal} | {self.measured} | {self.floor} | {ratio} | {met} |"


HEAD = "| figure | goal | measured | floor | ratio | met? |\n|---|---|---|---|---|---|"


@dataclass(frozen=True)
class Run:
    """What a child process took."""

    code: int
    wall_s: float
    cpu_s: float  # with the processes it waited for
    peak_mb: float  # PSS of the process, sampled; RSS where the kernel has no PSS
    started: float  # time.time() at the start
    out: str
    err: str


def environment() -> dict[str, str]:
    """The environment of a measured process: this package, no proxy, no network, and the bytecode
    of the run before, as users have it."""
    unwanted = ("OPENAI_BASE_URL", "PYTHONDONTWRITEBYTECODE")
    kept = {
        k: v
        for k, v in os.environ.items()
        if not k.lower().endswith("_proxy") and k not in unwanted
    }
    return {**kept, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def run(
    command: Sequence[str | Path],
    env: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
    limit_s: float = 300,
) -> Run:
    """Runs a command to its end and measures it; it is killed after `limit_s`."""
    started, begun = time.time(), time.perf_counter()
    child = subprocess.Popen(
        [str(c) for c in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**environment(), **(env or {})},
        cwd=cwd,
    )
    said: list[bytes] = [b"", b""]
    readers = [
        threading.Thread(target=_drain, args=(stream, said, i))
        for i, stream in enumerate((child.stdout, child.stderr))
    ]
    peak, over = [0.0], threading.Event()
    watch = threading.Thread(target=_watch, args=(child.pid, peak, over))
    killer = threading.Timer(limit_s, child.kill)
    for thread in (*readers, watch, killer):
        thread.start()
    _, status, stats = os.wait4(child.pid, 0)
    wall = time.perf_counter() - begun
    child.returncode = os.waitstatus_to_exitcode(status)
    killer.cancel()
    over.set()
    for thread in (*readers, watch):
        thread.join()
    return Run(
        child.returncode,
        wall,
        stats.ru_utime + stats.ru_stime,
        peak[0] or stats.ru_maxrss / 1024,
        started,
        said[0].decode(),
        said[1].decode("utf-8", "replace"),
    )


def _drain(stream: object, said: list[bytes], i: int) -> None:
    said[i] = stream.read()  # type: ignore[attr-defined]


def _watch(pid: int, peak: list[float], over: threading.Event) -> None:
    """Samples the PSS of a process."""
    path = Path(f"/proc/{pid}/smaps_rollup")
    while not over.wait(0.1):
        try:
            pss = next(line for line in path.read_text().splitlines() if line.startswith("Pss:"))
        except (OSError, StopIteration):
            continue
        peak[0] = max(peak[0], int(pss.split()[1]) / 1024)


def checked(done: Run, what: str) -> Run:
    """The run, if it ended well.

    Raises:
        RuntimeError: it failed.
    """
    if done.code:
        raise RuntimeError(f"{what} ended with {done.code}: {done.err.strip()[-400:]}")
    return done


def median(runs: Sequence[T], of: Callable[[T], float]) -> float:
    """The median of one figure over runs."""
    return statistics.median(of(r) for r in runs)
