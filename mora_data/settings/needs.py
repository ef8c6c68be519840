"""Settings that do nothing unless another one is set: a note beside the field, and who looks for
those that are given in vain.

    near_duplicates: Annotated[float | None, Needs("dedup")] = None
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from pydantic import BaseModel


class Needs(NamedTuple):
    """Beside a setting that does nothing unless setting `name`, of its section or of one around it,
    is one of `values`; without `values`: unless it is on."""

    name: str
    values: tuple[str, ...] = ()

    def met_by(self, given: object) -> bool:
        """Whether that value is enough; the user's own code, module:function, may use anything."""
        found = given if isinstance(given, list) else [given]
        return any(v in self.values or ":" in str(v) for v in found) if self.values else bool(given)

    def __str__(self) -> str:
        return " or ".join(self.values) or "true, or a number"


def in_vain(
    model: BaseModel,
    as_used: Callable[[str, BaseModel], BaseModel],
    at: str = "",
    around: tuple[tuple[str, BaseModel], ...] = (),
) -> Iterator[tuple[str, Needs, str, object]]:
    """Settings that are not the default and do nothing, by their dotted names: each with what it
    needs, of which setting, and what that is. `as_used` gives a section with what it takes over
    from others."""
    around = ((at, as_used(at[:-1], model)), *around)
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if value == field.get_default(call_default_factory=True):
            continue
        for needs in (m for m in field.metadata if isinstance(m, Needs)):
            path = needs.name.split(".")
            where, section = next((w, s) for w, s in around if path[0] in type(s).model_fields)
            given = functools.reduce(getattr, path, section)
            if not needs.met_by(given):
                yield f"{at}{name}", needs, f"{where}{needs.name}", given
        for key, inner in _sections(f"{at}{name}.", value):
            yield from in_vain(inner, as_used, key, around)


def _sections(at: str, value: Any) -> Iterator[tuple[str, BaseModel]]:
    """The sections in a value: itself, or those in its lists and mappings."""
    if isinstance(value, BaseModel):
        yield at, value
    elif isinstance(value, (list, dict)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _sections(f"{at}{key}.", inner)
