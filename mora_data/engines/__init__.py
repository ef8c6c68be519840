"""Engines: requests to answers. `engine` has the protocol, `cached_client` the one way in."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

from .. import plugins
from ..errors import EndpointError, SettingsError
from ..run.cost import account_of
from ..run.folder import manifest_of
from ..run.stats import RunStats
from ..secrets import refuse_password
from ..settings import BuildSettings, RoleSettings
from ..types import Role
from .engine import ENGINES, Engine, OpenEngine, Shared

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
    refuse_password(base_url or "", "OPENAI_BASE_URL")
    has_key = bool(os.environ.get("OPENAI_API_KEY"))
    kind = role.engine or ("openai" if base_url or has_key else "scripted" if sample else None)
    hosted = kind == "openai" or (kind == "batch" and role.batch.mode == "provider")
    if kind is None or (hosted and not base_url and not has_key):
        raise SettingsError(NO_ENDPOINT)
    plugins.load(ENGINES, kind, "engine")
    return role.model_copy(
        update={"engine": kind, "base_url": (base_url or OPENAI) if hosted else role.base_url}
    )


NEEDS = "model revision extra n_per_request simulated send wants_more changed close".split()


def connect(
    settings: BuildSettings,
    sample: bool,
    stats: RunStats,
    run_dir: Path | None = None,
    log: Callable[[str], None] = print,
    shared: Shared | None = None,
) -> dict[Role, Engine]:
    """An engine for each role, and one for each reward that names an endpoint.

    Engines that keep files keep them in `run_dir`; `log` prints a line while they wait. Calls that
    give the same `shared` share endpoints and their permits.

    Raises:
        SettingsError: no endpoint, no such engine, or the model is not clear.
        EndpointError: the endpoint can't be asked which models it serves.
    """
    shared = Shared() if shared is None else shared
    shared.run_dir, shared.log, stats.on_note = run_dir, log, log
    engines: dict[Role, Engine] = {}
    heldout = ("heldout_judge",) if settings.heldout_judge is not None else ()
    for name in (*ROLES, *settings.more_roles(), *heldout):
        role = resolve(settings.role(name), sample)
        plugin = plugins.load(ENGINES, role.engine or "", f"{name}.engine")
        opened: OpenEngine = functools.partial(plugin.call, needs=NEEDS)
        try:
            engines[name] = opened(role, settings, stats, shared)
        except EndpointError as e:  # a build that has all its answers needs no server
            last = (manifest_of(run_dir).get("models") or {}) if run_dir is not None else {}
            if (model := last.get(name)) is None:
                raise
            role = role.model_copy(update={"model": model})
            log(f"{e}. Its model is taken to be {role.model}, as when this folder was last built")
            engines[name] = opened(role, settings, stats, shared)
        stats.accounts[name] = account_of(engines[name].model, role)
    return engines


def role_warnings(settings: BuildSettings, sample: bool, recorded: bool) -> list[str]:
    """What the user has to know of the roles before the first request, one line each: who is
    simulated, who judges their own answers.

    Raises:
        SettingsError: a role has no endpoint, or there is no such engine.
    """
    roles = {r: resolve(settings.role(r), sample) for r in (*ROLES, *settings.more_roles())}
    warnings = []
    simulated = [name for name, role in roles.items() if role.engine == "scripted"]
    if simulated:
        warnings.append(
            f"the built-in simulator answers as {', '.join(simulated)}: the rows are marked"
            " simulated, fit for trying things out and for nothing else (--base-url URL asks a"
            " real model)"
        )
    judge, policy = roles["judge"], roles["policy"]
    one = (judge.base_url, judge.model) == (policy.base_url, policy.model)
    if one and not simulated and not recorded:
        warnings.append(
            "judge and policy are one model: it will favour its own answers (give --judge-model)"
        )
    if settings.heldout_judge is not None:
        other = resolve(settings.role("heldout_judge"), sample)
        if (other.base_url, other.model) == (judge.base_url, judge.model):
            warnings.append(
                "heldout_judge and judge are one model: its agreement says nothing (give"
                " heldout_judge.model)"
            )
    return warnings
