"""Is a rewrite worse than its original? A few answers to it, thrown away afterwards, against the
presamples (docs/method.md, Fusion and its checks).

A rewrite fails where its answers reach every threshold together surely less often than the
presamples did, and spread in surely fewer effective dimensions (ERD); each at one-sided 95 %. With
8 answers that stops what is plainly worse, and no more: a stricter rule would pick lucky rewrites.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..rewriting.checks import Check

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    # rewards_N_D, and absolute rewards less their uncertainty
    Side = tuple[NDArray[np.float64], NDArray[np.float64]]

LEVEL = 0.9  # two-sided


def pilot_check(
    before: Side, after: Side, floors_D: NDArray[np.float64], sigma_D: NDArray[np.float64]
) -> Check:
    """The check `probe`; its value is the share of the new answers that reach every threshold."""
    import numpy as np

    from ..statistics.beta import rate_interval
    from ..statistics.kinds import Z95
    from ..statistics.rollouts import effective_dimensionality

    (x, x_levels), (y, y_levels) = (_scored(side) for side in (before, after))
    if len(y) < 2:
        return Check("probe", False, None, f"{len(y)} of its answers could be scored")
    joint, passes = (
        np.mean((x_levels >= floors_D).all(1)) if len(x) else 0.0,
        (y_levels >= floors_D).all(1),
    )
    most = float(rate_interval(passes.sum(), np.array(len(y)), LEVEL)[1])
    erd, own = (
        float(effective_dimensionality(r[None], sigma_D)[0]) if len(r) else 0.0 for r in (x, y)
    )
    without = effective_dimensionality(
        np.stack([np.delete(y, i, axis=0) for i in range(len(y))]), sigma_D
    )
    error = float(np.sqrt((len(y) - 1) / len(y) * ((without - without.mean()) ** 2).sum()))
    passed = most >= joint or own + Z95 * error >= erd
    return Check(
        "probe",
        bool(passed),
        float(passes.mean()),
        f"all floors at once {joint:.2f} before, {passes.mean():.2f} now; effective dimensions"
        f" {erd:.1f} and {own:.1f}",
    )


def _scored(side: Side) -> Side:
    """The answers that have all their scores."""
    import numpy as np

    whole = ~np.isnan(side[0]).any(1)
    return side[0][whole], side[1][whole]
