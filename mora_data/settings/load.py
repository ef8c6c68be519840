"""From a builder's YAML and overrides to checked settings, and back to YAML; every fault is one
line."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from .. import resources
from ..errors import SettingsError
from .build import BuildSettings
from .nearest import nearest


def load_settings(source: str, overrides: Mapping[str, object] | None = None) -> BuildSettings:
    """Settings of builder `source` (a name in builders/, or a path to a YAML file) with dotted
    `overrides` on top.

    Raises:
        SettingsError: unknown source, unreadable YAML, unknown key or bad value; the text names the
            nearest known one.
    """
    tree = _read_builder(source)
    for key, value in (overrides or {}).items():
        _put(tree, key, value)
    return build_settings(tree)


def build_settings(tree: Mapping[str, object]) -> BuildSettings:
    """Check a settings tree.

    Raises:
        SettingsError: one line with the first fault.
    """
    try:
        return BuildSettings.model_validate(tree)
    except ValidationError as e:
        raise SettingsError(explain(e, BuildSettings)) from e


def parse_override(text: str) -> tuple[str, object]:
    """`KEY=VALUE` of --set, the value read as YAML.

    Raises:
        SettingsError: no `=`, or the value is not YAML.
    """
    key, eq, value = text.partition("=")
    if not eq or not key.strip():
        raise SettingsError(f"--set {text!r} is not KEY=VALUE: write it as rollout.n=8")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError as e:
        raise SettingsError(
            f"--set {text!r}: the value is not YAML ({' '.join(str(e).split())})"
        ) from e


def to_yaml(settings: BuildSettings) -> str:
    """The settings as YAML, keys in the order of the models."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read_builder(source: str) -> dict[str, Any]:
    path = Path(source)
    if path.suffix not in (".yaml", ".yml"):
        path = resources.folder("builders") / f"{source}.yaml"
        if os.sep in source or not path.is_file():
            raise SettingsError(
                f"unknown --source {source!r}:"
                f" {nearest(source, resources.names('builders', '*.yaml'))}"
            )
    try:
        tree = yaml.safe_load(path.read_text("utf-8"))
    except OSError as e:
        raise SettingsError(f"can't read the builder file {source}: {e.strerror}") from e
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise SettingsError(f"builder file {source} is not YAML: {' '.join(str(e).split())}") from e
    if not isinstance(tree, dict):
        raise SettingsError(f"builder file {source} must hold a mapping, not {type(tree).__name__}")
    return tree


def _put(tree: dict[str, Any], dotted: str, value: object) -> None:
    *path, last = dotted.split(".")
    node = tree
    for part in path:
        below = node.get(part)
        if not isinstance(below, dict):
            below = node[part] = {}
        node = below
    node[last] = value


def explain(error: ValidationError, model: type[BaseModel], inside: str = "") -> str:
    """The first fault of settings of `model` as one line; `inside` is where they stand."""
    faults = error.errors()  # an unknown key tells more than the missing one that it was meant for
    fault = next((f for f in faults if f["type"] == "extra_forbidden"), faults[0])
    path = [*([inside] if inside else []), *(str(p) for p in fault["loc"])]
    where = ".".join(path) or "settings"
    if fault["type"] == "extra_forbidden":
        parents, last = list(fault["loc"][:-1]), str(fault["loc"][-1])
        return f"unknown setting {where!r}: {nearest(last, _fields_at(model, parents))}"
    if fault["type"] == "missing":
        return f"setting {where!r} is missing: add it to the builder file or give --set {where}=..."
    message = fault["msg"].removeprefix("Value error, ")
    return f"setting {where} = {fault.get('input')!r}: {message}"


def _fields_at(model: type[BaseModel], path: list[int | str]) -> list[str]:
    for part in path:
        field = model.model_fields.get(str(part))
        inner = _model_in(field.annotation) if field is not None else None
        if inner is not None:
            model = inner
    return list(model.model_fields)


def _model_in(annotation: object) -> type[BaseModel] | None:
    """The settings model that an annotation holds, as in dict[str, list[Model]] or Model | None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_model_in(a) for a in getattr(annotation, "__args__", ()))
    return next((m for m in found if m is not None), None)
