"""Settings that do nothing unless another one says so: a note beside the field, and who looks for
those that are given in vain.

    near_duplicates: Annotated[float | None, Needs("dedup")] = None
    weights: Annotated[dict[str, float], Names("dimensions")] = {}
"""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from pydantic import BaseModel

from ..text import one_line


class Needs(NamedTuple):
    """Beside a setting that does nothing unless setting `name`, of its section or of one around it,
    is one of `values`; `but` these: unless it is another; without both: unless it is on."""

    name: str
    values: tuple[str, ...] = ()
    but: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " or ".join(self.values) or ("another" if self.but else "true, or a number")

    def faults(self, setting: str, value: object, where: str, there: Any) -> Iterator[InVain]:
        """One where it is not; the user's own code, module:function, may use anything."""
        found = there if isinstance(there, list) else [there]
        one = any(v in self.values or ":" in str(v) for v in found)
        other = any(v not in self.but for v in found)
        if not (one if self.values else other if self.but else there):
            shown = one_line(json.dumps(there, ensure_ascii=False), 80)
            way = f"set {where} to {self}, or leave {setting} out"
            yield InVain(setting, where, f"{setting} does nothing while {where} is {shown}: {way}")


class Names(NamedTuple):
    """Beside a list or mapping of names, each in the list of setting `name`, or `beside` it."""

    name: str
    beside: tuple[str, ...] = ()

    def faults(self, setting: str, value: object, where: str, there: Any) -> Iterator[InVain]:
        """One for each name that is not, or is there twice."""
        known = {*there, *self.beside}
        if isinstance(value, list) and len(set(value)) < len(value):
            twice = max(value, key=value.count)
            yield InVain(setting, setting, f"{setting} names {twice!r} twice: give it once")
        for bad in value if isinstance(value, (list, dict)) else ():
            if bad not in known:
                fault = f"{setting} names {bad!r}, not in {where}: {nearest(bad, known)}"
                yield InVain(f"{setting}.{bad}", where, fault)


class InVain(NamedTuple):
    """A setting that does nothing, by its dotted name; where that is decided; and a line on it."""

    setting: str
    where: str
    fault: str


def in_vain(
    model: BaseModel,
    as_used: Callable[[str, BaseModel], BaseModel],
    at: str = "",
    around: tuple[tuple[str, BaseModel], ...] = (),
) -> Iterator[InVain]:
    """Settings that are not the default and do nothing. `as_used` gives a section with what it
    takes over from others."""
    around = ((at, as_used(at[:-1], model)), *around)
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if value == field.get_default(call_default_factory=True):
            continue
        for needs in (m for m in field.metadata if isinstance(m, (Needs, Names))):
            path = needs.name.split(".")
            where, section = next((w, s) for w, s in around if path[0] in type(s).model_fields)
            there = functools.reduce(getattr, path, section)
            yield from needs.faults(f"{at}{name}", value, f"{where}{needs.name}", there)
        for key, inner in _sections(f"{at}{name}.", value):
            yield from in_vain(inner, as_used, key, around)


def _sections(at: str, value: Any) -> Iterator[tuple[str, BaseModel]]:
    """The sections in a value: itself, or those in its lists and mappings."""
    if isinstance(value, BaseModel):
        yield at, value
    elif isinstance(value, (list, dict)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _sections(f"{at}{key}.", inner)


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?` or the list of what is known."""
    options = sorted(known)
    close = difflib.get_close_matches(word, options, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(options)}"
