"""What wording alone gives away, and how varied the prompts are: own numpy, no model, no extra
dependency.

The probe is a logistic regression on hashed words (TF-IDF, 2,048 columns), tested on prompts that
it has not seen.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..statistics import Floats, Ints
from .values import Diversity, Wording, rounded, share

COLUMNS = 2048
FOLDS = 5
STEPS = 200
RIDGE = 1e-4
_SEEDS = 64  # hash functions of the near-duplicate sketch: 8 bands of 8
_BANDS = 8
VENDI = 500  # texts of the Vendi score: its eigenvalues cost the cube


def wording_probe(chosen: Sequence[str], rejected: Sequence[str], groups: Ints) -> Wording | None:
    """Can wording alone tell chosen from rejected? AUC on held-out prompts, and the share of pairs
    ranked right.

    `groups`: the prompt of each pair; a prompt is in one fold. None with fewer than 50 prompts.
    """
    labels, at = np.unique(groups, return_inverse=True)
    if len(labels) < 50:
        return None
    x = np.concatenate([_hashed(chosen), _hashed(rejected)])
    y = np.r_[np.ones(len(chosen)), np.zeros(len(rejected))]
    fold = np.tile(at % FOLDS, 2)
    scores = np.zeros(len(y))
    for f in range(FOLDS):
        train = fold != f
        idf = np.log((1 + train.sum()) / (1 + (x[train] > 0).sum(0))).astype(np.float32) + 1
        rows = x * idf
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
        w, b = _logistic(rows[train], y[train])
        scores[~train] = rows[~train] @ w + b
    aucs = [
        auc(scores[(fold == f) & (y == 1)], scores[(fold == f) & (y == 0)]) for f in range(FOLDS)
    ]
    n = len(chosen)
    right = int((scores[:n] > scores[n:]).sum())
    return {
        "auc": rounded(float(np.mean(aucs))),
        "auc_low": rounded(min(aucs)),
        "auc_high": rounded(max(aucs)),
        "pairs_right": share(right, n),
        "prompts": len(labels),
    }


def auc(positive: Floats, negative: Floats) -> float:
    """P(a positive scores higher than a negative), ties half."""
    rank, n, m = ranks(np.concatenate([positive, negative])), len(positive), len(negative)
    return float((rank[:n].sum() - n * (n + 1) / 2) / (n * m)) if n and m else math.nan


def ranks(values: Floats) -> Floats:
    """Rank of each value from 1 up; equal ones share the mean of theirs."""
    _, at, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[at]


def diversity(texts: Sequence[str]) -> Diversity:
    """Of a list of prompts: distinct-1, distinct-2 (share of n-grams that are new), zlib ratio,
    near-duplicate share.

    Compression: bytes before over after, 1 = nothing repeats. Near-duplicate: another prompt shares
    one of 8 bands of 8 MinHash values of its word 3-grams, which at a Jaccard similarity of 0.8 has
    a chance of 0.77. Vendi: see `vendi`.
    """
    words = [t.lower().split() for t in texts]
    once = Counter(w for ws in words for w in ws)
    twice = Counter(p for ws in words for p in pairwise(ws))
    data = "\n".join(texts).encode("utf-8", "replace")
    return {
        "n": len(texts),
        "distinct_1": _new(once),
        "distinct_2": _new(twice),
        "compression": rounded(len(data) / len(zlib.compress(data, 6))) if data else None,
        "near_duplicates": share(_near_duplicates(words), len(texts)),
        "vendi": rounded(vendi(texts)),
        "vendi_n": len(texts[:: max(1, -(-len(texts) // VENDI))]),
    }


def vendi(texts: Sequence[str]) -> float | None:
    """Effective number of different texts among 500 of them, evenly spaced: exp of the entropy of
    the eigenvalues of the cosines of their hashed words, over n (Friedman and Dieng 2023, eq. 2). 1
    = all say the same, n = no two share a word.
    """
    every = max(1, -(-len(texts) // VENDI))
    x = _hashed(texts[::every])
    x = x[x.any(1)]
    if not len(x):
        return None
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    eigen = np.linalg.eigvalsh((x @ x.T).astype(np.float64) / len(x))
    eigen = eigen[eigen > 1e-12]
    return float(np.exp(-(eigen * np.log(eigen)).sum()))


def entropy(counts: Sequence[int]) -> float | None:
    """Effective number of categories, exp(H)."""
    total = sum(counts)
    return (
        rounded(math.exp(-sum(c / total * math.log(c / total) for c in counts if c)))
        if total
        else None
    )


def _new(counts: Counter[Any]) -> float | None:
    return rounded(len(counts) / counts.total()) if counts else None


def _near_duplicates(words: Sequence[Sequence[str]]) -> int:
    rng = np.random.default_rng(0)
    a, b = rng.integers(1, 1 << 31, (2, _SEEDS), dtype=np.uint64)
    sketch = np.zeros((len(words), _SEEDS), np.uint64)
    for i, ws in enumerate(words):
        grams = {" ".join(ws[j : j + 3]) for j in range(max(len(ws) - 2, 1))}
        hashed = np.array(
            [zlib.crc32(g.encode("utf-8", "replace")) for g in sorted(grams)], np.uint64
        )
        sketch[i] = ((hashed[:, None] * a + b) % np.uint64(4294967291)).min(0)
    double = np.zeros(len(words), bool)
    width = _SEEDS // _BANDS
    for band in range(_BANDS):
        rows = np.ascontiguousarray(sketch[:, band * width : (band + 1) * width]).view(
            f"V{8 * width}"
        )[:, 0]
        _, at, count = np.unique(rows, return_inverse=True, return_counts=True)
        double |= count[at] > 1
    return int(double.sum())


def _hashed(texts: Sequence[str]) -> NDArray[np.float32]:
    """Log word counts in hashed columns."""
    out = np.zeros((len(texts), COLUMNS), np.float32)
    for i, t in enumerate(texts):
        columns = [
            zlib.crc32(w.encode("utf-8", "replace")) % COLUMNS for w in t.lower().split()[:400]
        ]
        np.add.at(out[i], columns, 1)
    return np.log1p(out)


def _logistic(x: NDArray[np.float32], y: Floats) -> tuple[NDArray[np.float32], float]:
    """Ridge logistic regression by accelerated gradient steps; rows of x have norm 1, so 1/L is
    known."""
    target = y.astype(np.float32)
    w, b = np.zeros(x.shape[1], np.float32), np.float32(0)
    ahead_w, ahead_b = w, b
    step = np.float32(4.0 / 2.0)
    for t in range(STEPS):
        p = 1 / (1 + np.exp(-(x @ ahead_w + ahead_b)))
        error = (p - target) / len(target)
        new_w = ahead_w - step * (x.T @ error + RIDGE * ahead_w)
        new_b = ahead_b - step * error.sum()
        pull = np.float32(t / (t + 3))
        ahead_w, ahead_b = new_w + pull * (new_w - w), new_b + pull * (new_b - b)
        w, b = new_w, new_b
    return w, float(b)
