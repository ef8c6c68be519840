"""Arms: ways from one mined prompt to what is asked, for the same prompts, samples, judge and
selector.

    identity   the prompt itself, freshly sampled
    single     more detail on the need that it has already
    generic    longer and clearer
    random     something unrelated to ask for besides
    concat     questions of other subjects joined to it, unfused
    fused      several needs in one question

Controls keep to the length of the accepted fused prompt, +-15 %, prompt by prompt; so
they run after it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product

from ..errors import SettingsError
from ..text import n_tokens, seed_of
from .checks import Budget
from .intents import Intent

TOLERANCE = 0.15
JOINER = "And something else:"


def in_order(arms: Sequence[str]) -> list[str]:
    """The arms as they are run: fused before those that follow its length."""
    return sorted(arms, key=lambda arm: arm != "fused")


def matched(text: str) -> Budget:
    """Length of a control of a prompt whose fused form is `text`."""
    n = n_tokens(text)
    return Budget(math.ceil((1 - TOLERANCE) * n), math.floor((1 + TOLERANCE) * n))


def concat(
    prompt: str,
    target_dims: Sequence[str],
    specs: Mapping[str, Intent],
    within: Budget | None,
    seed: int,
) -> str:
    """The prompt, and behind it a question of another subject for each target dimension, joined
    without fusion.

    Of all combinations, the one nearest to the middle of `within`; where none is in it, one target
    has to do. Among equals, and without `within`, `seed` draws.

    Raises:
        SettingsError: a target dimension has no such questions.
    """
    for d in target_dims:
        if not specs[d].alone:
            raise SettingsError(
                f"arm concat needs questions of dimension {d!r}: add `alone` to"
                f" templates/intents/{d}.yaml"
            )
    best = prompt
    for dims in ((tuple(target_dims),), [(d,) for d in target_dims]):
        texts = [
            " ".join([prompt.strip(), *(f"{JOINER} {q}" for q in questions)])
            for some in dims
            for questions in product(*(specs[d].alone for d in some))
        ]
        best = min(texts, key=lambda t: (_distance(t, within), seed_of(seed, t)), default=prompt)
        if within is None or within.min <= n_tokens(best) <= within.max:
            break
    return best


def _distance(text: str, within: Budget | None) -> float:
    return 0.0 if within is None else abs(n_tokens(text) - (within.min + within.max) / 2)
