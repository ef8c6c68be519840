"""The laws of selectors: what must hold for every one of them, and what for some."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mora_data import plugins
from mora_data.selection import SELECTORS, Selector
from mora_data.selection.batch import Batch, top_pairs
from mora_data.text import digest

SEEDS = st.integers(0, 100_000)
BINDING = ("dominance_hv", "maxmin")
# no margin under minus its noise
CONSTRAINED = ("weighted_sum", "lsc", "nash", "best_vs_mu2s", "random", "lexi")
# Raising one rollout in every dimension raises its margins alone. Not so where scores hang on the
# other rollouts (lsc without a
# reference of its own, best_vs_mu2s) or on the text (random).
MONOTONE = ("dominance_hv", "weighted_sum", "maxmin", "nash", "lexi", "rs_gap")


def load(name: str) -> Selector:
    return plugins.load(SELECTORS, name, "select.selector").target


def batch_of(seed: int, missing: float = 0.1, n: int = 6) -> Batch:
    rng = np.random.default_rng(seed)
    p = 3
    rewards = rng.integers(0, 5, (p, n, 3)) / 4 if seed % 2 else rng.random((p, n, 3))
    rewards[rng.random(rewards.shape) < missing] = np.nan
    texts = rng.integers(0, 2 * n, (p, n))  # some rollouts say the same
    return Batch(
        rewards,
        rng.random((p, n)) < 0.9,
        rng.random((p, n)) < 0.7,
        rng.random((p, 3)) < 0.5,
        np.full(3, 0.05),
        rng.integers(1, 30, (p, n)).astype(float),
        np.array([1.0, 0.5, 2.0]),
        max_length_ratio=8.0,
        text_hash_P_N=np.array(
            [[int(digest(str(t)), 16) for t in row] for row in texts], dtype=np.uint64
        ),
    )


def picked(name: str, batch: Batch) -> list[list[tuple[int, int]]]:
    hashes = batch.text_hash_P_N
    assert hashes is not None
    picks = top_pairs(
        batch,
        load(name)(batch),
        3,
        lambda p, i, j: int(digest(str(hashes[p, i]), str(hashes[p, j])), 16),
    )
    return [
        [(int(i), int(j)) for i, j in zip(a, b, strict=True) if i >= 0]
        for a, b in zip(picks.chosen_P_K, picks.rejected_P_K, strict=True)
    ]


def by_name(test: object) -> object:
    return pytest.mark.parametrize("name", SELECTORS)(
        settings(max_examples=40, deadline=None)(given(seed=SEEDS)(test))
    )  # type: ignore[type-var]


def test_every_selector_is_in_the_table() -> None:
    assert set(SELECTORS) == {*BINDING, *CONSTRAINED, "rs_gap"}


@by_name
def test_a_pair_is_two_texts_both_scored_and_allowed(name: str, seed: int) -> None:
    batch = batch_of(seed)
    assert batch.text_hash_P_N is not None
    scores = load(name)(batch)
    assert scores.shape == (3, 6, 6) and not np.isnan(scores).any()
    for p, i, j in np.argwhere(np.isfinite(scores)):
        assert i != j and batch.text_hash_P_N[p, i] != batch.text_hash_P_N[p, j]
        assert not np.isnan(batch.rewards_P_N_D[p, [i, j]]).any()
        assert batch.usable_P_N[p, [i, j]].all() and batch.passing_P_N[p, i]
        assert not np.isfinite(scores[p, j, i]), "a pair that holds both ways"


@by_name
def test_the_same_batch_gives_the_same_scores_and_is_left_as_it_was(name: str, seed: int) -> None:
    batch = batch_of(seed)
    before = batch.rewards_P_N_D.copy()
    first = load(name)(batch)
    np.testing.assert_array_equal(first, load(name)(batch))
    np.testing.assert_array_equal(before, batch.rewards_P_N_D)


@by_name
def test_the_order_of_the_rollouts_does_not_matter(name: str, seed: int) -> None:
    batch = batch_of(seed)
    order = np.random.default_rng(seed + 1).permutation(6)
    assert batch.text_hash_P_N is not None
    moved = replace(
        batch,
        rewards_P_N_D=batch.rewards_P_N_D[:, order],
        usable_P_N=batch.usable_P_N[:, order],
        passing_P_N=batch.passing_P_N[:, order],
        length_P_N=batch.length_P_N[:, order],
        text_hash_P_N=batch.text_hash_P_N[:, order],
        _margins=[],
    )
    np.testing.assert_allclose(
        load(name)(moved),
        load(name)(batch)[:, order][:, :, order],
    )
    distinct = replace(
        batch, text_hash_P_N=np.arange(18, dtype=np.uint64).reshape(3, 6), _margins=[]
    )
    shuffled = replace(
        moved, text_hash_P_N=np.arange(18, dtype=np.uint64).reshape(3, 6)[:, order], _margins=[]
    )
    assert [[(order[i], order[j]) for i, j in row] for row in picked(name, shuffled)] == picked(
        name, distinct
    )


@by_name
def test_margins_of_every_pair(name: str, seed: int) -> None:
    batch = batch_of(seed)
    m = batch.margins_P_N_N_D
    for p, i, j in np.argwhere(np.isfinite(load(name)(batch))):
        binding = batch.binding_P_D[p]
        if name in BINDING:
            assert (
                (m[p, i, j] >= 0).all()
                and (m[p, i, j][binding] >= 0.05).all()
                and (m[p, i, j] > 0).any()
            )
        elif name in CONSTRAINED:
            assert (m[p, i, j] >= -0.05).all()
        if name in ("weighted_sum", "rs_gap", "random", "best_vs_mu2s"):
            assert m[p, i, j] @ [1.0, 0.5, 2.0] > 0


@pytest.mark.parametrize("name", MONOTONE)
@settings(max_examples=60, deadline=None)
@given(seed=SEEDS)
def test_a_better_rollout_is_never_worth_less(name: str, seed: int) -> None:
    batch = batch_of(seed)
    rng = np.random.default_rng(seed + 1)
    i = int(rng.integers(6))
    rewards = batch.rewards_P_N_D.copy()
    rewards[:, i] += rng.random(3) * 0.5
    before, after = (
        load(name)(batch),
        load(name)(replace(batch, rewards_P_N_D=rewards, _margins=[])),
    )
    assert np.all(after[:, i] >= before[:, i] - 1e-12)
    assert np.all(after[:, :, i] <= before[:, :, i] + 1e-12)


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS)
def test_lsc_is_monotone_with_a_reference_of_its_own(seed: int) -> None:
    batch = replace(batch_of(seed), reference_P_D=np.full((3, 3), 0.5))
    rewards = batch.rewards_P_N_D.copy()
    rewards[:, 2] += 0.2
    before, after = (
        load("lsc")(batch),
        load("lsc")(replace(batch, rewards_P_N_D=rewards, _margins=[])),
    )
    assert np.all(after[:, 2] >= before[:, 2] - 1e-12)


@by_name
def test_a_rollout_with_a_missing_score_is_in_no_pair(name: str, seed: int) -> None:
    batch = batch_of(seed, missing=0.0)
    first = picked(name, batch)
    rewards = batch.rewards_P_N_D.copy()
    lost = np.random.default_rng(seed).integers(3)
    for p, pairs in enumerate(first):
        if pairs:
            rewards[p, pairs[0][0], lost] = np.nan
    for p, pairs in enumerate(picked(name, replace(batch, rewards_P_N_D=rewards, _margins=[]))):
        assert not first[p] or first[p][0][0] not in {i for pair in pairs for i in pair}


@pytest.mark.parametrize("name", MONOTONE)
@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_selecting_again_among_what_was_selected_gives_the_same(name: str, seed: int) -> None:
    batch = batch_of(seed)
    first = picked(name, batch)
    usable = np.zeros_like(batch.usable_P_N)
    for p, pairs in enumerate(first):
        for i, j in pairs[:1]:
            usable[p, [i, j]] = True
    assert picked(name, replace(batch, usable_P_N=usable, _margins=[])) == [
        pairs[:1] for pairs in first
    ]


@by_name
def test_blocks_of_prompts_do_not_show(name: str, seed: int) -> None:
    batch = batch_of(seed)
    hashes = batch.text_hash_P_N
    assert hashes is not None

    def tie(p: int, i: int, j: int) -> int:
        return int(digest(str(hashes[p, i]), str(hashes[p, j])), 16)

    with pytest.MonkeyPatch.context() as patch:
        scores = load(name)(batch)
        whole = top_pairs(batch, scores, 3, tie)
        patch.setattr("mora_data.selection.batch.BLOCK_PAIRS", 1)
        assert len(list(batch.blocks())) == 3
        np.testing.assert_array_equal(load(name)(batch), scores)
        for a, b in zip(top_pairs(batch, scores, 3, tie), whole, strict=True):
            np.testing.assert_array_equal(a, b)


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS)
def test_dominance_equals_its_definition(seed: int) -> None:
    batch = batch_of(seed)
    scores, allowed = (
        load("dominance_hv")(batch),
        batch.allowed_P_N_N(),
    )
    for p, i, j in np.ndindex(scores.shape):
        m, binding = batch.margins_P_N_N_D[p, i, j], batch.binding_P_D[p]
        allowed_here = (
            allowed[p, i, j] and all(m >= 0) and all(m[binding] >= 0.05) and any(m >= 0.05)
        )
        want = (np.prod(m[binding]) if binding.any() else m.sum()) if allowed_here else -np.inf
        assert scores[p, i, j] == pytest.approx(want)


def test_random_takes_each_pair_about_as_often() -> None:
    """1,000 prompts with two allowed pairs each: within 4 standard errors of one half."""
    rewards = np.tile(np.array([[0.9], [0.5], [0.5]]), (1000, 1, 1))
    hashes = np.array(
        [[int(digest(str(p), str(i)), 16) for i in range(3)] for p in range(1000)], dtype=np.uint64
    )
    batch = Batch(
        rewards,
        np.ones((1000, 3), bool),
        np.ones((1000, 3), bool),
        np.zeros((1000, 1), bool),
        np.full(1, 0.05),
        np.ones((1000, 3)),
        text_hash_P_N=hashes,
    )
    first = top_pairs(batch, load("random")(batch), 1).rejected_P_K[:, 0] == 1
    assert abs(first.mean() - 0.5) < 4 * 0.5 / np.sqrt(1000)
    with pytest.raises(ValueError, match="text_hash_P_N"):
        load("random")(replace(batch, text_hash_P_N=None))


def test_best_vs_mu2s_leaves_out_the_worst_of_many() -> None:
    """Nineteen good answers and a terrible one: the mean minus 2 sd lies nearer the middling
    one."""
    utility = np.array([0.9] * 17 + [0.75, 0.5, 0.0])[None, :, None]
    ones = np.ones((1, 20), bool)
    batch = Batch(utility, ones, ones, np.zeros((1, 1), bool), np.full(1, 0.05), np.ones((1, 20)))
    assert top_pairs(batch, load("best_vs_mu2s")(batch), 1).rejected_P_K[0, 0] == 18
    assert top_pairs(batch, load("weighted_sum")(batch), 1).rejected_P_K[0, 0] == 19


def test_unconstrained_gap_can_reverse_a_dimension_and_the_others_cannot() -> None:
    rewards = np.array([[[1.0, 0.3], [0.2, 0.5], [0.9, 0.3]]])
    ones = np.ones((1, 3), bool)
    batch = Batch(rewards, ones, ones, np.ones((1, 2), bool), np.full(2, 0.05), np.ones((1, 3)))
    assert np.isfinite(load("rs_gap")(batch)[0, 0, 1])
    assert not np.isfinite(load("weighted_sum")(batch)[0, 0, 1])
    assert not np.isfinite(load("maxmin")(batch)).any()


@pytest.mark.parametrize(("binding", "share"), [((1, 1, 1), 0.0), ((1, 1, 0), 1.0)])
def test_a_saturated_dimension_that_binds_leaves_no_pair(
    binding: tuple[int, ...], share: float
) -> None:
    """The figures of docs/numbers.md, "What binds": the rule alone decides how many prompts have a
    pair where one of three dimensions never varies."""
    rewards = np.random.default_rng(0).integers(0, 5, (400, 16, 3)) / 4
    rewards[..., 2] = 1.0
    every = np.ones(rewards.shape[:2], bool)
    bound = np.tile(np.array(binding, bool), (len(rewards), 1))
    batch = Batch(rewards, every, every, bound, np.full(3, 0.125), every.astype(float))
    picks = top_pairs(batch, load("dominance_hv")(batch), 1)
    assert (picks.chosen_P_K[:, 0] >= 0).mean() == share
