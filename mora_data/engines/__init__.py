"""Engines: requests to answers. See `engine` for the protocol, `ask` for the one way in."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import plugins
from ..errors import SettingsError
from ..run.stats import RunStats
from ..settings import BuildSettings, RoleSettings
from ..types import Role
from .engine import ENGINES, Engine, Opened

ROLES: tuple[Role, ...] = ("policy", "rewriter", "judge")
OPENAI = "https://api.openai.com/v1"
NO_ENDPOINT = (
    "no model endpoint is known: give --base-url URL (any OpenAI-compatible server), or set"
    " OPENAI_API_KEY or OPENAI_BASE_URL, or use the built-in simulator with --engine scripted"
)


def resolve(role: RoleSettings, sample: bool) -> RoleSettings:
    """The role with its engine and base URL decided.

    Raises:
        SettingsError: no endpoint is known, or no such engine.
    """
    base_url = role.base_url or os.environ.get("OPENAI_BASE_URL")
    has_key = bool(os.environ.get("OPENAI_API_KEY"))
    kind = role.engine or ("openai" if base_url or has_key else "scripted" if sample else None)
    hosted = kind == "openai" or (kind == "batch" and role.batch.mode == "provider")
    if kind is None or (hosted and not base_url and not has_key):
        raise SettingsError(NO_ENDPOINT)
    plugins.load(ENGINES, kind, "engine")
    return role.model_copy(
        update={"engine": kind, "base_url": (base_url or OPENAI) if hosted else role.base_url}
    )


def connect(
    settings: BuildSettings,
    sample: bool,
    stats: RunStats,
    run_dir: Path | None = None,
    say: Callable[[str], None] = print,
    shared: dict[str, Any] | None = None,
) -> dict[Role, Engine]:
    """An engine for each role, and one for each reward that names an endpoint.

    Engines that keep files keep them in `run_dir`; `say` prints a line while they wait. Calls that
    give the same `shared` share endpoints and their slots.

    Raises:
        SettingsError: no endpoint, no such engine, or the model is not clear.
        EndpointError: the endpoint can't be asked which models it serves.
    """
    shared = {} if shared is None else shared
    shared |= {"run_dir": run_dir, "say": say}
    engines: dict[Role, Engine] = {}
    heldout = ("heldout_judge",) if settings.heldout_judge is not None else ()
    for name in (*ROLES, *settings.more_roles(), *heldout):
        role = resolve(settings.role(name), sample)
        opened: Opened = plugins.load(ENGINES, role.engine or "", f"{name}.engine").target
        engines[name] = opened(role, settings, stats, shared)
    return engines
