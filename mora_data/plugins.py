"""Plug-ins: everything that settings name and code carries out, loaded in one place.

    plugin = load(REWARDS, "judge", "rewards.helpful.kind")      a name of a table
    plugin = load(SELECTORS, "least:least_margin", "select.selector")      or module:name
    plugin.target                the class or function
    plugin.code_hash             hash of the source of its module, for every cache key it is part of
    plugin.options(given)        its own settings, checked by its `Settings` model
    plugin.call(*arguments)      what the target gives; a user's own that raises is one line

A table is a literal {name: "module:name"}. A dotted path of a user is imported as it stands:
the settings file is trusted, see `docs/add-your-own.md`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from traceback import walk_tb
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import DropRow, MoraError, PendingRetry, SettingsError
from .settings import explain, nearest
from .text import digest, one_line

if TYPE_CHECKING:
    from pydantic import BaseModel

T = TypeVar("T")
FAULTS = (Exception, SystemExit)  # what a user's own code may raise that is no end of the run


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

    @property
    def own(self) -> str:
        """What an error calls a user's own part; empty where it is shipped."""
        return f"{self.where} {self.name!r}" if self.path == self.name else ""

    @functools.cached_property
    def target(self) -> Any:
        """The class or function; its module is imported now.

        Raises:
            SettingsError: there is none.
        """
        module, _, attribute = self.path.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except FAULTS as e:
            if not self.own and not isinstance(e, (ImportError, AttributeError, ValueError)):
                raise
            why = one_line(e)
            if isinstance(e, ModuleNotFoundError) and e.name == module:
                why += " beside the builder file or on PYTHONPATH"
            elif isinstance(e, SystemExit):
                why = f"it exits when it is imported ({why})"
            raise SettingsError(f"can't load {self.where} {self.name!r}: {why}") from e

    def call(
        self, *arguments: Any, needs: Iterable[str] = (), gives: Callable[[Any], Any] | None = None
    ) -> Any:
        """What the target gives for the arguments, made into what it `gives` (float, say), with the
        attributes that it `needs`.

        Raises:
            SettingsError: a user's own raised something, or what it gave lacks one of these.
        """
        made = guarded(self.own, self.target, *arguments)
        made = made if gives is None else guarded(self.own, gives, made)
        if lacking := [name for name in needs if not hasattr(made, name)]:
            raise SettingsError(
                f"{self.where} {self.name!r} gave {type(made).__name__} without"
                f" {', '.join(lacking)}: see docs/add-your-own.md"
            )
        return made

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
        if not hasattr(model, "model_validate"):
            raise SettingsError(
                f"{self.where}: Settings of {self.name} must be a class that inherits from"
                " mora_data.settings.Settings"
            )
        try:
            return model.model_validate(dict(given))
        except ValidationError as e:
            raise SettingsError(explain(e, model, self.where, beside)) from e


def guarded(own: str, function: Callable[..., T], *arguments: Any) -> T:
    """`function` of the arguments; where it is a user's `own`, of that name, what it raises is one
    line that says where.

    Raises:
        SettingsError: that line. What is raised on purpose passes.
    """
    try:
        return function(*arguments)
    except (MoraError, DropRow, PendingRetry):
        raise
    except FAULTS as e:
        if not own:
            raise
        code, line = [(f.f_code.co_filename, n) for f, n in walk_tb(e.__traceback__)][-1]
        at = (
            ""
            if Path(code).parent == Path(__file__).parent
            else f" ({Path(code).name}, line {line})"
        )
        raise SettingsError(f"{own} raised {type(e).__name__}: {one_line(e, 160)}{at}") from e


def load(table: Mapping[str, str], name: str, where: str) -> Plugin:
    """The part `name` of a table, or the one at a dotted path `module:name`; nothing is
    imported yet.

    Raises:
        SettingsError: neither; the nearest name of the table is suggested.
    """
    path = table.get(name, name)
    if not all(path.partition(":")):
        hint = f"{nearest(name, table)}; or write module:name" if table else "write module:name"
        raise SettingsError(f"unknown {where} {name!r}: {hint}")
    return Plugin(name, path, where)
