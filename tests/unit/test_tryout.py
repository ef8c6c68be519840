"""A rewrite is tried out: what is plainly worse than its original fails, what may be as good
passes."""

from __future__ import annotations

import numpy as np

from mora_data.rewriting.checks import pilot_check

FLOORS, SIGMA = np.full(2, 0.75), np.full(2, 0.05)
# two dimensions, a quarter passes both
FREE = np.tile([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]], (4, 1))
ONE = np.tile([[0.0, 0.0], [0.0, 0.2]], (4, 1))


def check(before: np.ndarray, after: np.ndarray) -> tuple[bool, float | None]:
    found = pilot_check((before, before), (after, after), FLOORS, SIGMA)
    return found.passed, found.value


def test_only_what_is_surely_worse_in_both_fails() -> None:
    assert check(FREE, FREE[:8]) == (True, 0.25)
    good = np.ones((16, 2))
    assert check(good, FREE[:8]) == (True, 0.25)  # fewer pass, but they differ in more ways
    good[::2] = [0.0, 1.0]
    assert check(FREE, np.ones((8, 2))) == (True, 1.0)  # no spread left, but all pass
    assert check(np.concatenate([FREE, np.ones((16, 2))]), ONE) == (False, 0.0)
    assert check(FREE[:4], np.zeros((2, 2)))[0]  # two answers prove nothing


def test_levels_less_doubt_meet_the_floors_and_unscored_answers_do_not_count() -> None:
    gone = np.full((8, 2), np.nan)
    assert check(FREE, gone) == (False, None)
    half = np.where(np.arange(8)[:, None] < 4, FREE[:8], np.nan)
    assert check(FREE, half) == (True, 0.25)
    found = pilot_check(
        (np.ones((16, 2)), np.ones((16, 2))), (np.ones((8, 2)), np.full((8, 2), 0.5)), FLOORS, SIGMA
    )
    assert found.value == 0 and found.passed  # nothing spreads on either side: ERD is no worse
