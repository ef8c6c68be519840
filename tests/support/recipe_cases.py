"""Training scripts run on many command lines by one process: importing torch and trl takes longer
than any of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import IO

RECIPES = Path(__file__).parents[2] / "train_recipes"
_LOOP = """
import contextlib, io, json, os, runpy, sys, traceback
asked, replies = sys.stdin, os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
for line in asked:
    script, argv, given = json.loads(line)
    sys.argv, sys.stdin, code = [script, *argv], io.StringIO(given), 0
    out, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(out):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as e:
            code = e.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
    print(json.dumps([code, out.getvalue(), said.getvalue()]), file=replies, flush=True)
"""


class Recipes:
    """A process with the recipes on its path, offline and where no GPU is seen; its own stderr goes
    to a file."""

    def __init__(self, errors: IO[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LOOP],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={
                **os.environ,
                "HF_HUB_OFFLINE": "1",
                "CUDA_VISIBLE_DEVICES": "",
                "PYTHONPATH": str(RECIPES),
            },
        )

    def run(
        self, script: str | Path, *argv: object, given: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """`python SCRIPT ARGV` with `given` as its stdin; a script of train_recipes by its name."""
        path, words = str(RECIPES / script), [str(a) for a in argv]
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([path, words, given]) + "\n")
        self._process.stdin.flush()
        reply = self._process.stdout.readline()
        assert reply, f"{path} ended the process"
        return subprocess.CompletedProcess([path, *words], *json.loads(reply))

    def close(self) -> None:
        self._process.communicate(timeout=600)
