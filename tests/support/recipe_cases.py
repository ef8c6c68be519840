"""A training script run on many command lines by one process: importing torch and trl takes longer
than any of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_IN_ONE_PROCESS = """
import contextlib, io, json, runpy, sys
script = sys.argv[1]
for case in json.load(sys.stdin):
    sys.argv, said, code = [script, *case], io.StringIO(), 0
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as e:
            code = e.code
    print(json.dumps([code, said.getvalue()]), flush=True)
"""


def run_cases(
    script: Path, cases: Sequence[Sequence[str]], env: Mapping[str, str]
) -> list[tuple[int, str]]:
    """Exit code and stderr of each command line."""
    done = subprocess.run(
        [sys.executable, "-c", _IN_ONE_PROCESS, str(script)],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**env, "PYTHONPATH": str(script.parent)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [(code, said) for code, said in map(json.loads, done.stdout.splitlines())]
