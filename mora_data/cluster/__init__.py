"""Partitions on a Ray cluster (`--executor ray`, extra `ray`): the build stays one process, its
partitions go to workers.

    schedule   which worker gets which partition, what becomes of those whose worker died; knows
               nothing of Ray
    worker     the actor that asks partitions to their end, with engines of its own; and the small
               one that holds what all workers share: rate limits, cost, progress
    driver     starts or joins the cluster, hires workers and runs the schedule on it

A worker runs the same coroutines over the same answer logs as a build on one machine, and writes
the same bytes.
"""

from __future__ import annotations

import importlib.util
import os
import socket

from ..errors import ClusterError, ExtraMissing, SettingsError
from ..settings import BuildSettings

REACH_S = 5.0


def check_cluster(settings: BuildSettings) -> None:
    """Say at once what would stop a build on a cluster.

    Raises:
        ExtraMissing: Ray is not installed.
        SettingsError: an engine that works on one machine only.
        ClusterError: nobody listens at the cluster's address.
    """
    if importlib.util.find_spec("ray") is None:
        raise ExtraMissing(
            "executor 'ray' needs Ray: pip install 'mora-data[ray]' here and on every node, or"
            " leave --executor out"
        )
    for role in ("policy", "rewriter", "judge", *settings.more_roles()):
        if settings.role(role).engine == "batch":
            raise SettingsError(
                f"{role}.engine = 'batch' waits for files and needs no cluster: leave"
                " --executor out"
            )
    host, _, port = (settings.ray.address or os.environ.get("RAY_ADDRESS") or "").rpartition(":")
    if host and "/" not in host:
        _reach(host, port)


def _reach(host: str, port: str) -> None:
    """Ray itself would try for minutes."""
    try:
        socket.create_connection((host, int(port)), REACH_S).close()
    except (OSError, ValueError, OverflowError) as e:
        raise ClusterError(
            f"can't join the Ray cluster at {host}:{port} ({getattr(e, 'strerror', None) or e}):"
            " start it with `ray start --head`, or correct ray.address"
        ) from e
