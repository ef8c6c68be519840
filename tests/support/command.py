"""The command line in processes of their own: started, watched through the server that they ask,
killed."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from mora_data.cli import main

from .fake_openai import FakeOpenAI, Fault

HANGS_S = 600  # what takes longer will not end; a busy machine needs a minute for seconds of work
ROOT = Path(__file__).parents[2]
NO_PICTURES = Path(__file__).with_name("no_pictures")
KEPT = "PATH", "LANG", "TMPDIR", "SYSTEMROOT", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"
_ANSWER = re.compile(r"<answer-\w+>\n(.*?)\n</answer-", re.S)
_DIMENSION = re.compile(r"^Dimension: (\w+)", re.M)


def steady(body: dict[str, Any], time: int) -> Fault | None:
    """A judge whose verdict is a function of the answer and the dimension, so that every repeat
    agrees with itself."""
    if "response_format" not in body:
        return None
    said = "\n".join(m["content"] for m in body["messages"])
    answer, dimension = _ANSWER.findall(said)[-1], _DIMENSION.findall(said)[-1]
    return Fault(
        text=json.dumps(
            {"score": 1 + hashlib.sha256(f"{dimension} {answer}".encode()).digest()[0] % 5}
        )
    )


def rows_file(path: Path, n: int) -> Path:
    """`n` short prompts."""
    path.write_text(
        "".join(
            json.dumps({"prompt": f"How do I repair item {i} of the old clock?"}) + "\n"
            for i in range(n)
        )
    )
    return path


def parquet_hashes(run: Path) -> dict[str, str]:
    """Every Parquet file in a run folder, with the hash of its bytes; of answers, whose keys follow
    the folder's own secret, the hash of the records."""
    return {
        str(p.relative_to(run)): hashlib.sha256(_content(p)).hexdigest()
        for p in sorted(run.rglob("*.parquet"))
    }


def _content(path: Path) -> bytes:
    if path.name != "answers.parquet":
        return path.read_bytes()
    return b"\n".join(sorted(pq.read_table(path)["record"].to_pylist()))


def environment(home: Path, **more: str) -> dict[str, str]:
    """An environment without keys, proxies and caches of its own; no card gets pictures in it."""
    kept = {k: v for k, v in os.environ.items() if k in KEPT}
    return {
        **kept,
        "HOME": str(home),
        "HF_HOME": str(home / "hf"),
        "PYTHONPATH": f"{NO_PICTURES}:{ROOT}",
        "PYTHONWARNINGS": "error",
        "PYTHONASYNCIODEBUG": "0",
        **more,
    }


def start(
    argv: list[str], cwd: Path, limit: Callable[[], None] = lambda: None, **more: Any
) -> subprocess.Popen[str]:
    """`mora-data ARGV` in a process of its own, under the resource `limit` it sets itself."""

    def prepare() -> None:
        # ignored when the tests run in the background of a shell
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        limit()

    return subprocess.Popen(
        [sys.executable, "-m", "mora_data", *argv],
        cwd=cwd,
        env=environment(cwd, **more.pop("env", {})),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=prepare,
        **more,
    )


def finish(argv: list[str], cwd: Path, code: int = 0, **more: Any) -> tuple[dict[str, Any], str]:
    """Run to the end: (the JSON object of stdout, stderr)."""
    process = start(argv, cwd, **more)
    with process:
        try:
            out, err = process.communicate(timeout=HANGS_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert process.returncode == code, err
    return json.loads(out) if out.startswith("{") else {}, err


def finish_here(
    argv: list[str], cwd: Path, code: int = 0, env: dict[str, str] | None = None
) -> tuple[dict[str, Any], str]:
    """`finish` in this process: where what counts is the command before it, which died."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
            patch.delenv(name, raising=False)
        for name, value in (env or {}).items():
            patch.setenv(name, value)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            got = main(argv)
    assert got == code, err.getvalue()
    printed = out.getvalue()
    return json.loads(printed) if printed.startswith("{") else {}, err.getvalue()


def kill(process: subprocess.Popen[str], how: signal.Signals) -> tuple[int, str]:
    """Send a signal to a live process; (its exit code, stderr)."""
    assert process.poll() is None, process.communicate()[1]
    process.send_signal(how)
    err = process.communicate(timeout=HANGS_S)[1]
    return process.returncode, err


def asked_since(server: FakeOpenAI, before: int, n: int) -> None:
    """Return once the server has read `n` requests more than `before`."""
    server.wait_for(lambda: len(server.requests) >= before + n)
