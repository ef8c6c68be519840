"""A transformers model in this process, on one GPU or the CPU: generation, and reward models with a
classification head.

    policy: {engine: transformers, model: org/policy-1b}

Slower than a server that batches continuously; right for small models, for classifiers, and where
no server can be run. Sample i of a request depends on seed + i and on nothing that shares its
batch, but for rounding: see `hf.Generator`.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from ..errors import ExtraMissing, SettingsError
from ..run.stats import RunStats
from ..settings import BuildSettings, LocalSettings, RoleSettings
from ..types import Task
from .batching import Driver, InProcess, Model, Source


def opened(
    role: RoleSettings, build: BuildSettings, stats: RunStats, shared: dict[str, Any]
) -> InProcess:
    """A transformers model in this process (extra `transformers`): generation and classifiers, on
    one GPU or the CPU.

    Raises:
        ExtraMissing: torch or transformers is not installed.
        SettingsError: no model is named, or `extra_body` is given.
    """
    if (
        importlib.util.find_spec("torch") is None
        or importlib.util.find_spec("transformers") is None
    ):
        raise ExtraMissing(
            "engine 'transformers' needs torch and transformers: pip install"
            " 'mora-data[transformers]'"
        )
    if role.extra_body:
        raise SettingsError(
            f"extra_body = {role.extra_body} means nothing to engine 'transformers': leave it empty"
        )
    driver: Driver = shared.get("driver") or shared.setdefault("driver", Driver(stats))

    def source(task: Task) -> Source:
        key = f"transformers {role.model} {role.revision} {task} {role.local.model_dump_json()}"
        if key not in shared:
            shared[key] = Source(
                role.model or "",
                lambda: _load(role.model or "", role.revision, role.local, task, driver),
                role.local,
            )
        made: Source = shared[key]
        return made

    return InProcess(driver, source, role, stats)


def _load(
    name: str, revision: str | None, settings: LocalSettings, task: Task, driver: Driver
) -> Model:
    from .hf import Classifier, Generator

    if task == "chat":
        return Generator(name, revision, settings, driver.stop)
    return Classifier(name, revision, settings)
