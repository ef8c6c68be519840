"""Plug-ins: everything that settings name and code carries out, loaded in one place.

    plugin = load(REWARDS, "judge", "rewards.helpful.kind")      a name of a table
    plugin = load(SELECTORS, "least:least_margin", "select.selector")      or module:name
    plugin.target                the class or function
    plugin.code_hash             hash of the source of its module, for every cache key it is part of
    plugin.options(given)        its own settings, checked by its `Settings` model

A table is a literal {name: "module:name"}. A dotted path of a user is imported as it stands:
the settings file is trusted, see `docs/add-your-own.md`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import SettingsError
from .settings import explain, nearest
from .text import digest

if TYPE_CHECKING:
    from pydantic import BaseModel


@dataclass(frozen=True)
class Plugin:
    """A part that settings name.

    Attributes:
        name: as the settings say it.
        path: module:name.
        where: the setting, for error lines.
    """

    name: str
    path: str
    where: str

    @functools.cached_property
    def target(self) -> Any:
        """The class or function; its module is imported now.

        Raises:
            SettingsError: there is none.
        """
        module, _, attribute = self.path.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as e:
            raise SettingsError(f"can't load {self.where} {self.name!r}: {e}") from e

    @functools.cached_property
    def code_hash(self) -> str:
        """16 hex digits over the source of its module, which need not be imported for it; of the
        path alone where there is no source."""
        module = self.path.partition(":")[0]
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            spec = None
        origin = Path(spec.origin) if spec is not None and spec.origin else None
        source = origin.read_bytes() if origin is not None and origin.suffix == ".py" else b""
        return digest(self.path, source.hex())

    def options(self, given: Mapping[str, Any], beside: Iterable[str] = ()) -> BaseModel | None:
        """What the settings say of the part's own, checked by the `Settings` model of its class;
        None where it has no such model. `beside` are the keys that every part of its kind has.

        Raises:
            SettingsError: an unknown option (the nearest is named) or a bad value.
        """
        from pydantic import ValidationError

        model: type[BaseModel] | None = getattr(self.target, "Settings", None)
        if model is None:
            if given:
                key = next(iter(given))
                raise SettingsError(
                    f"unknown setting {self.where}.{key}: {self.name} has no settings of its own,"
                    f" {nearest(key, beside)}"
                )
            return None
        try:
            return model.model_validate(dict(given))
        except ValidationError as e:
            raise SettingsError(explain(e, model, self.where, beside)) from e


def load(table: Mapping[str, str], name: str, where: str) -> Plugin:
    """The part `name` of a table, or the one at a dotted path `module:name`; nothing is
    imported yet.

    Raises:
        SettingsError: neither; the nearest name of the table is suggested.
    """
    path = table.get(name, name)
    if not all(path.partition(":")):
        hint = f"{nearest(name, table)} Or give module:name" if table else "write module:name"
        raise SettingsError(f"unknown {where} {name!r}: {hint}")
    return Plugin(name, path, where)
