"""Selectors: a prompt's reward matrix to its best pairs.

A selector is a pure function `(Batch) -> scores_P_N_N`: entry [p, i, j] is how good the pair
(chosen i, rejected j) of prompt p is, -inf where it is not allowed. A new one is a function here
(or anywhere, named `module:function`) and a line below.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import SettingsError
from ..settings import nearest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .batch import Batch, Picks, top_pairs
    from .length import balance
    from .selectors import dominance_hv, lexi, weighted_sum

Selector = Callable[["Batch"], "NDArray[np.float64]"]

SELECTORS = {
    "dominance_hv": "mora_data.selection.selectors:dominance_hv",
    "weighted_sum": "mora_data.selection.selectors:weighted_sum",
    "maxmin": "mora_data.selection.selectors:maxmin",
    "lsc": "mora_data.selection.selectors:lsc",
    "nash": "mora_data.selection.selectors:nash",
    "lexi": "mora_data.selection.selectors:lexi",
    "rs_gap": "mora_data.selection.selectors:rs_gap",
    "best_vs_mu2s": "mora_data.selection.selectors:best_vs_mu2s",
    "random": "mora_data.selection.selectors:random",
}

__all__ = [
    "SELECTORS",
    "Batch",
    "Picks",
    "Selector",
    "balance",
    "dominance_hv",
    "lexi",
    "load",
    "top_pairs",
    "weighted_sum",
]

_HOMES = {
    "balance": "length",
    **dict.fromkeys(("Batch", "Picks", "top_pairs"), "batch"),
    **dict.fromkeys(("dominance_hv", "lexi", "weighted_sum"), "selectors"),
}


def __getattr__(name: str) -> Any:
    """The public names, imported when first used: naming a selector does not load numpy."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def load(name: str) -> Selector:
    """The selector `name`, or the function at a dotted path `module:function`.

    Raises:
        SettingsError: there is none.
    """
    if name in SELECTORS:
        return lambda batch: _built_in(name)(batch)
    module, colon, attribute = name.partition(":")
    if not colon:
        raise SettingsError(
            f"unknown selector {name!r}: {nearest(name, SELECTORS)}, or give module:function"
        )
    try:
        found: Selector = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as e:
        raise SettingsError(f"can't load the selector {name!r}: {e}") from e
    return found


@functools.cache
def _built_in(name: str) -> Selector:
    module, _, attribute = SELECTORS[name].partition(":")
    found: Selector = getattr(importlib.import_module(module), attribute)
    return found
