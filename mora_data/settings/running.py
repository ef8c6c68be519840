"""How a build runs: limits, the simulator, recorded answers, a cluster."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .base import Settings
from .rewards import RewardSettings


class LimitSettings(Settings):
    """Where a run stops."""

    max_error_share: Annotated[float, Field(ge=0, le=1)] = 0.02
    """Share of failed rows (answers and verdicts) above which the command exits 1."""
    max_cost: Annotated[float, Field(gt=0)] | None = None
    """Money that the run folder's builds may spend in all, in the currency of the prices."""
    max_tokens: Annotated[int, Field(gt=0)] | None = None
    """Tokens in and out, together, that they may use in all."""
    prices: str | None = None
    """Path of a price table to use in place of the shipped one."""


class ScriptedSettings(Settings):
    """The embedded simulator."""

    not_in_rows = frozenset({"n_prompts"})

    world: Literal["planted"] | None = "planted"
    """planted: fusion widens what answers differ in; null: a world where fusion changes nothing."""
    n_prompts: Annotated[int, Field(ge=0)] = 0
    """Generated prompts beside the sample rows."""


class RecordedSettings(Settings):
    """What a build is with `--engine recorded`: the ratings that the source's rows carry."""

    dimensions: list[str]
    """Reward dimensions, in place of the build's."""
    rewards: dict[str, list[RewardSettings]]
    """Reward sources per dimension, in place of the build's."""


class RaySettings(Settings):
    """A Ray cluster (docs/scale.md)."""

    address: str | None = None
    """Address of its head, as host:port; null: RAY_ADDRESS, else a cluster that runs on this
    machine, else one is started here."""
    workers: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Workers, each with its own engines and `concurrency`; auto: one per node, or as many as its
    GPUs allow."""
    cpus: Annotated[float, Field(gt=0)] = 1
    """CPUs that a worker declares."""
    gpus: Annotated[float, Field(ge=0)] = 0
    """GPUs that a worker declares; for engines in its own process."""
    tries: Annotated[int, Field(ge=1)] = 3
    """How often a partition may bring its worker down before it is left out and listed in
    errors.jsonl."""
