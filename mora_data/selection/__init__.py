"""Selectors: a prompt's reward matrix to its best pairs.

A selector is a pure function `(Batch) -> scores_P_N_N`: entry [p, i, j] is how good the pair
(chosen i, rejected j) of prompt p is, -inf where it is not allowed. A new one is a function here
(or anywhere, named `module:function`) and a line below. One whose pairs never lose a dimension may
say so with an attribute, `least_margin.dominance = True`; then the dataset is checked for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..settings.stages import published_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .batch import Batch

Selector = Callable[["Batch"], "NDArray[np.float64]"]

SELECTORS = {
    name: f"mora_data.selection.batch:{name}"
    for name in "dominance_hv weighted_sum maxmin lsc nash lexi rs_gap best_vs_mu2s random".split()
}
DOMINANCE = frozenset({"dominance_hv"})
"""Selectors under which each binding margin is positive and none is negative."""


def plain_pairs_doubt(settings: Mapping[str, Any]) -> str:
    """What is wrong with published pairs of arms whose questions need nothing more, in a build that
    presamples; empty where there are none. `settings`: of the build, as a tree."""
    fuse = settings["fuse"]
    arms = published_of(fuse["arms"], settings["publish"]["arms"])
    plain = [a for a in arms if a == "identity" or (a in fuse["length_matched"] and a != "concat")]
    if not settings["presample"]["enabled"] or not plain:
        return ""
    return (
        f"pairs of {', '.join(plain)} are a biased plain baseline here, since they have to win in"
        " the dimensions that fused prompts need: for plain pairs build with presample.enabled:"
        " false and fuse.arms: [identity] (docs/numbers.md, A pair)"
    )
