"""Engines: requests to answers. See `engine` for the protocol, `ask` for the one way in."""

from __future__ import annotations

import os

from ..config import BuildSettings, RoleSettings
from ..errors import SettingsError
from ..types import Role
from .engine import ENGINES, Engine, Usage

ROLES: tuple[Role, ...] = ("policy", "rewriter", "judge")

NO_ENDPOINT = ("no model endpoint is known: give --base-url URL (any OpenAI-compatible server), or set OPENAI_API_KEY or "
               "OPENAI_BASE_URL, or use the built-in simulator with --engine scripted")


def resolve(role: RoleSettings, sample: bool) -> RoleSettings:
    """The role with its engine and base URL decided.

    Raises:
        SettingsError: no endpoint is known, or the engine is not there yet.
    """
    kind = role.engine
    base_url = role.base_url or os.environ.get("OPENAI_BASE_URL")
    if kind is None:
        if base_url or os.environ.get("OPENAI_API_KEY"):
            kind = "openai"
        elif sample:
            kind = "scripted"
        else:
            raise SettingsError(NO_ENDPOINT)
    if kind == "openai" and not base_url:
        if not os.environ.get("OPENAI_API_KEY"):
            raise SettingsError(NO_ENDPOINT)
        base_url = "https://api.openai.com/v1"
    if kind not in ENGINES:
        raise SettingsError(f"engine {kind!r} is not part of this version: use {' or '.join(ENGINES)}")
    return role.model_copy(update={"engine": kind, "base_url": base_url if kind == "openai" else None})


def connect(settings: BuildSettings, sample: bool, usage: Usage) -> dict[Role, Engine]:
    """An engine for each role; roles on one base URL share its endpoint (connections and slots).

    Raises:
        SettingsError: no endpoint, or the model is not clear.
        EndpointError: the endpoint can't be asked which models it serves.
    """
    endpoints: dict[str, object] = {}
    engines: dict[Role, Engine] = {}
    for name in ROLES:
        role = resolve(settings.role(name), sample)
        if role.engine == "scripted":
            from .embedded import ScriptedEngine

            engines[name] = ScriptedEngine(settings.scripted, settings.seed, usage)
            continue
        from .openai import Endpoint, HttpEngine

        assert role.base_url is not None
        endpoint = endpoints.get(role.base_url)
        if not isinstance(endpoint, Endpoint):
            endpoint = endpoints[role.base_url] = Endpoint(role.base_url, role, usage)
        engines[name] = HttpEngine(endpoint, role, role.model or _only_model(role.base_url, role, endpoints))
    return engines


def _only_model(base_url: str, role: RoleSettings, cache: dict[str, object]) -> str:
    from .openai import served_models

    key = f"{base_url}#models"
    served = cache.get(key)
    if not isinstance(served, list):
        served = cache[key] = served_models(base_url, role)
    if len(served) != 1:
        shown = ", ".join(served[:5]) or "none"
        raise SettingsError(f"endpoint {base_url} serves {len(served)} models ({shown}): give --model")
    return str(served[0])
