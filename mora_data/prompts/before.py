"""The numbers before fusion, read from sealed partitions: presamples of odd index, which decided
nothing.

    prompt_ids, half = before_half(folder.parts(), settings)
    statistics.before(half, floors, sigma)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import SettingsError
from ..run.partitions import Partition
from ..settings import BuildSettings

if TYPE_CHECKING:
    from ..statistics import BeforeHalf


def before_half(
    parts: Sequence[Partition], settings: BuildSettings
) -> tuple[list[str], BeforeHalf]:
    """Prompt ids in order, and the half of their presamples that decided nothing, filled up with
    NaN where it is shorter.

    Raises:
        SettingsError: the presamples were not split, so that each of them decided.
    """
    import numpy as np

    from ..statistics import BeforeHalf

    if not (settings.presample.enabled and settings.presample.split):
        raise SettingsError(
            "there are no numbers before fusion: presample.enabled or presample.split is false; "
            "use the identity arm"
        )
    rows: dict[str, list[list[float | None]]] = {}
    for part in parts:
        table = part.table(
            "rollouts", ["prompt_id", "arm", "index", *(f"reward_{d}" for d in settings.dimensions)]
        ).to_pydict()
        rewards = zip(*(table[f"reward_{d}"] for d in settings.dimensions), strict=True)
        for prompt_id, arm, index, values in zip(
            table["prompt_id"], table["arm"], table["index"], rewards, strict=True
        ):
            if arm == "presample" and index % 2:
                rows.setdefault(prompt_id, []).append(list(values))
    longest = max(map(len, rows.values()), default=0)
    out = np.full((len(rows), longest, len(settings.dimensions)), np.nan)
    for i, found in enumerate(rows.values()):
        out[i, : len(found)] = np.array(found, dtype=float)
    return list(rows), BeforeHalf(out)
