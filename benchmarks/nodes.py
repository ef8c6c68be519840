"""A Ray cluster of several nodes on this machine, in a process of its own, for benchmarks and
tests.

    python -m benchmarks.nodes 2      prints {"address": "...", "seconds": 6.1}
    kill                              (on stdin) the last node dies, with everything on it; prints
    {"killed": 1} end of stdin                      the cluster ends
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MEMORY = 80_000_000  # of a node's object store: Ray's least
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AUTH_MODE": "disabled",
}


class Nodes:
    """The cluster: its `address`, and how long it took to be up."""

    def __init__(self, n: int, env: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.nodes", str(n)],
            cwd=ROOT,
            env={**env, **QUIET},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        up = self._said()
        self.address, self.seconds = str(up["address"]), float(up["seconds"])

    def __enter__(self) -> Nodes:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate(timeout=60)

    def kill(self) -> None:
        """The last node dies."""
        assert self._process.stdin is not None
        self._process.stdin.write("kill\n")
        self._process.stdin.flush()
        self._said()

    def _said(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        raise RuntimeError("the Ray cluster did not come up")


def main() -> None:
    """Serves until stdin ends."""
    os.environ.update(QUIET)
    from ray.cluster_utils import Cluster

    begun = time.monotonic()
    size = {"num_cpus": 1, "object_store_memory": MEMORY}
    cluster = Cluster(initialize_head=True, head_node_args={**size, "include_dashboard": False})
    nodes = [cluster.add_node(**size) for _ in range(int(sys.argv[1]) - 1)]
    cluster.wait_for_nodes()
    print(
        json.dumps({"address": cluster.address, "seconds": round(time.monotonic() - begun, 1)}),
        flush=True,
    )
    for line in sys.stdin:
        if line.strip() == "kill":
            cluster.remove_node(nodes.pop(), allow_graceful=False)
            print(json.dumps({"killed": 1}), flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
