"""What the rollouts of a prompt reach together: hypervolume and coverage (METHOD 3.1, Pareto
coverage)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .atk import any_pass_at_k

if TYPE_CHECKING:
    from numpy.typing import NDArray

CHUNK = 1 << 22  # grid cells per block of prompts


def hypervolume_at_k(
    rewards_P_N_D: NDArray[np.float64], k: int = 8, reference_D: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """HV_k = E[vol(union over a k-subset of [ref, r_i])] / prod_d (1 - ref_d); shape P, in [0, 1]
    (METHOD 3.1, point 3).

    Exact over all C(n, k) subsets, of which METHOD's 200 are a sample: on the grid of the points'
    coordinates a cell that c of n points dominate lies under a k-subset with probability 1 - C(n -
    c, k) / C(n, k). At most three dimensions and 64 rollouts; work grows with N^D. Grows with k, so
    only equal k compare. NaN with fewer than k scored rollouts; the reference point is 0 unless
    given.
    """
    p, n, d = rewards_P_N_D.shape
    if not 1 <= d <= 3 or n > 64:
        raise ValueError(
            f"hypervolume takes 1 to 3 dimensions and up to 64 rollouts, got {d} and {n}"
        )
    reference = np.zeros(d) if reference_D is None else reference_D
    if np.any(reference >= 1):
        raise ValueError(f"the reference point must lie below 1, got {reference.tolist()}")
    step = max(1, CHUNK // n**d)
    blocks = [_hypervolume(rewards_P_N_D[i : i + step], k, reference) for i in range(0, p, step)]
    return np.concatenate(blocks) if blocks else np.zeros(0)


def coverage(
    ours_P_N_D: NDArray[np.float64], theirs_P_M_D: NDArray[np.float64]
) -> NDArray[np.float64]:
    """C(A, B): share of B's points that a point of A dominates, i.e. equals or exceeds everywhere
    and exceeds somewhere; shape P.

    Zitzler and Thiele (1999) let an equal point cover; here it does not, so that C(A, A) of tied
    judge levels is not 1. Points without all their scores are left out; NaN where B has none.
    """
    ours, theirs = ours_P_N_D[:, :, None, :], theirs_P_M_D[:, None, :, :]
    dominated = np.any(np.all(ours >= theirs, axis=-1) & np.any(ours > theirs, axis=-1), axis=1)
    there = ~np.any(np.isnan(theirs_P_M_D), axis=-1)
    number = there.sum(1)
    return np.where(number > 0, (dominated & there).sum(1) / np.maximum(number, 1), np.nan)


def _hypervolume(
    rewards_P_N_D: NDArray[np.float64], k: int, reference_D: NDArray[np.float64]
) -> NDArray[np.float64]:
    p, n, d = rewards_P_N_D.shape
    whole = ~np.any(np.isnan(rewards_P_N_D), axis=-1)
    points = np.where(whole[..., None], np.clip(rewards_P_N_D, reference_D, 1.0), reference_D)
    order = np.argsort(points, axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(n)[None, :, None], axis=1)
    edges = np.concatenate(
        [np.broadcast_to(reference_D, (p, 1, d)), np.take_along_axis(points, order, 1)], axis=1
    )
    width = np.diff(edges, axis=1)
    count = np.zeros((p, *[n] * d), np.uint8)
    count[(np.arange(p)[:, None], *(rank[..., j] for j in range(d)))] = whole
    for axis in range(1, d + 1):
        count = np.flip(np.cumsum(np.flip(count, axis), axis, dtype=np.uint8), axis)
    scored = whole.sum(1)
    chance = any_pass_at_k(np.minimum(np.arange(n + 1), scored[:, None]), scored[:, None], k)
    volume = np.take_along_axis(chance, count.reshape(p, -1).astype(np.intp), 1).reshape(
        count.shape
    )
    for j in reversed(range(d)):
        volume = np.einsum("p...n,pn->p...", volume, width[..., j])
    return np.asarray(volume / np.prod(1 - reference_D))
