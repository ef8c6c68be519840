"""Raw scores of a reward source to values in [0, 1]: maps that are fitted once, kept as JSON, and
applied ever after.

    fitted = fit("ecdf", raw)                 # {"kind": "ecdf", "n": 4096, "x": [...], "y": [...]}
    values = apply(fitted, raw)               # NaN stays NaN

A calibration map is plain JSON: `kind`, `n` (raw scores or labels it rests on) and the kind's
parameters. Kinds (docs/method.md, Scores to rewards):

    identity    the score itself, in [0, 1]
    likert      (s - low) / (high - low)
    sigmoid     1 / (1 + exp(-(s - zero) / temperature))
    ecdf        mid-rank among the reference scores
    robust_z    (s - median) / (1.4826 MAD), cut at +-3, as a share of that range
    isotonic    P(good) by a rising step curve through labels
    platt       P(good) = sigmoid(slope s + offset)
    anchored    sigmoid((s - s_ref) / temperature), s_ref the `quantile` of the scores of the same
                prompt's own answers

A table of a curve (ecdf, isotonic) has at most 2 * GRID points, whatever the number of scores:
linear in between, which differs from the whole curve by at most 1 / (GRID - 1) = 0.002 at every
reference score.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import SettingsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..statistics import Floats

OWN = ("identity", "likert", "sigmoid")  # the source's scale is known: nothing is fitted
RANKED = ("ecdf", "robust_z")  # fitted on the reference scores
LABELLED = ("isotonic", "platt")  # fitted on labels
ANCHORED = "anchored"  # its temperature is fitted, its reference belongs to each prompt
KINDS = (*OWN, *RANKED, *LABELLED, ANCHORED)

GRID = 512
MAD_TO_SD = 1.4826
LOGISTIC_SD = math.pi / math.sqrt(3)  # standard deviation of the standard logistic distribution
LEAST_SCORES = 8
LEAST_LABELS = 20
DECIMALS = 12

Chart = Mapping[str, Any]


def fit(
    kind: str, raw: Floats, labels: Floats | None = None, given: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """The map of `kind` for reference scores, or for labels in [0, 1] beside them; scores that
    are not finite are left out.

    `anchored` takes its temperature from `spread`, the standard deviation of the scores within
    prompts: such that answers spread like a logistic distribution fill [0, 1] evenly. Parameters in
        `given` stand over fitted ones.

    Raises:
        SettingsError: the scores can't carry such a map; the text says why.
    """
    given = given or {}
    finite = np.isfinite(raw)
    x = np.asarray(raw, float)[finite]
    y = None if labels is None else np.asarray(labels, float)[finite]
    if kind in RANKED and len(x) < LEAST_SCORES:
        raise SettingsError(
            f"{kind} can't be fitted on {len(x)} reference scores: it takes {LEAST_SCORES} at least"
        )
    if kind in LABELLED:
        found = _fit_labelled(kind, x, y)
    elif kind in RANKED:
        found = _fit_ecdf(x) if kind == "ecdf" else _fit_robust_z(x)
    elif kind == ANCHORED:
        found = {"quantile": given.get("quantile", 0.5), "temperature": _temperature(given)}
    else:
        found = {k: given[k] for k in _PARAMETERS[kind] if k in given}
    return {"kind": kind, "n": len(x), **found}


def apply(calibration_map: Chart, raw: Floats, anchor: Floats | float = math.nan) -> Floats:
    """Values in [0, 1] of raw scores of any shape; NaN for a score that is not finite or lies
    outside the scale.

    `anchor` is s_ref of each score, for anchored maps. Rounded to DECIMALS, so that the last bits
    of exp on another processor do not show.
    """
    s = np.where(np.isfinite(raw), raw, np.nan)
    return np.round(_mapped(calibration_map, s, anchor), DECIMALS)


def _mapped(fitted: Chart, s: Floats, anchor: Floats | float) -> Floats:
    kind = fitted["kind"]
    if kind in ("ecdf", "isotonic"):
        ends = {"left": 0.0, "right": 1.0} if kind == "ecdf" else {}
        return np.asarray(np.interp(s, np.asarray(fitted["x"]), np.asarray(fitted["y"]), **ends))
    if kind == "robust_z":
        z = np.clip((s - fitted["median"]) / fitted["scale"], -3.0, 3.0)
        return np.asarray((z + 3.0) / 6.0)
    if kind == "platt":
        return logistic(fitted["slope"] * s + fitted["offset"])
    if kind == "sigmoid":
        return logistic((s - fitted.get("zero", 0.0)) / fitted.get("temperature", 1.0))
    if kind == ANCHORED:
        return logistic((s - anchor) / fitted["temperature"])
    low, high = 0.0, 1.0
    if kind == "likert":
        low, high = fitted.get("low", 1.0), fitted.get("high", 5.0)
    with np.errstate(invalid="ignore"):
        return np.where((s >= low) & (s <= high), (s - low) / (high - low), np.nan)


def anchor_of(calibration_map: Chart, raw: Iterable[float]) -> float:
    """s_ref of a prompt: the map's quantile of its answers' scores, linear between them; NaN
    without any."""
    there = sorted(v for v in raw if math.isfinite(v))
    if not there:
        return math.nan
    at = float(calibration_map.get("quantile", 0.5)) * (len(there) - 1)
    low = math.floor(at)
    high = min(low + 1, len(there) - 1)
    return there[low] + (at - low) * (there[high] - there[low])


def checked_map(calibration_map: object, where: str) -> dict[str, Any]:
    """A map read from a file, with its parameters as they must be.

    Raises:
        SettingsError: it is none.
    """
    kind = calibration_map.get("kind") if isinstance(calibration_map, Mapping) else None
    if not isinstance(calibration_map, Mapping) or kind not in KINDS:
        raise SettingsError(
            f"{where} holds no calibration: a JSON object with kind, one of {', '.join(KINDS)}"
        )
    for name in _REQUIRED.get(str(kind), ()):
        value = calibration_map.get(name)
        good = _is_curve(value) if name in ("x", "y") else _is_number(value)
        if not good:
            raise SettingsError(
                f"{where}: {name} of a {kind} calibration must be"
                f" {'a rising list of numbers' if name in ('x', 'y') else 'a number'}, not"
                f" {str(value)[:40]!r}"
            )
    if kind in ("ecdf", "isotonic") and len(calibration_map["x"]) != len(calibration_map["y"]):
        raise SettingsError(
            f"{where}: x has {len(calibration_map['x'])} points and y {len(calibration_map['y'])}"
        )
    if any(
        _is_number(calibration_map.get(k)) and calibration_map[k] <= 0
        for k in ("temperature", "scale", "slope")
    ):
        raise SettingsError(f"{where}: temperature, scale and slope must be above 0")
    return dict(calibration_map)


def logistic(z: Floats) -> Floats:
    """1 / (1 + exp(-z)) without overflow."""
    small = np.exp(-np.abs(z))
    return np.asarray(np.where(z >= 0, 1.0, small) / (1.0 + small))


def _fit_ecdf(x: Floats) -> dict[str, Any]:
    """Mid-ranks (#less + #equal / 2) / n of the distinct scores, thinned."""
    points, counts = np.unique(x, return_counts=True)
    ranks = (np.cumsum(counts) - counts / 2) / len(x)
    keep = _thinned(ranks)
    return {"x": points[keep].tolist(), "y": ranks[keep].tolist()}


def _fit_robust_z(x: Floats) -> dict[str, Any]:
    median = float(np.median(x))
    scale = MAD_TO_SD * float(np.median(np.abs(x - median)))
    if scale == 0:
        raise SettingsError(
            f"robust_z can't be fitted: more than half of {len(x)} reference scores are {median:g};"
            " use ecdf"
        )
    return {"median": median, "scale": scale}


def _temperature(given: Mapping[str, float]) -> float:
    temperature = given.get("temperature", given.get("spread", math.nan) / LOGISTIC_SD)
    if not temperature > 0:
        raise SettingsError(
            "anchored can't be fitted: no two answers to one prompt have different scores; "
            "give calibration.temperature"
        )
    return float(temperature)


def _fit_labelled(kind: str, x: Floats, y: Floats | None) -> dict[str, Any]:
    if y is None or len(x) < LEAST_LABELS:
        raise SettingsError(
            f"{kind} can't be fitted on {0 if y is None else len(x)} labels: it takes"
            f" {LEAST_LABELS} at least"
        )
    if np.ptp(y) == 0 or np.ptp(x) == 0:
        raise SettingsError(
            f"{kind} can't be fitted: all {len(x)} {'labels' if np.ptp(y) == 0 else 'raw scores'}"
            " are the same"
        )
    fit_maps = _fit_isotonic(x, y) if kind == "isotonic" else _fit_platt(x, y)
    if fit_maps.get("slope", 1.0) <= 0 or len(set(fit_maps.get("y", (0, 1)))) < 2:
        raise SettingsError(
            f"{kind} can't be fitted: the labels do not rise with the raw scores (is the sign"
            " turned?)"
        )
    return fit_maps


def _fit_isotonic(x: Floats, y: Floats) -> dict[str, Any]:
    """The rising curve nearest the labels in squares (pool adjacent violators, Ayer et al. 1955).

    Whole falling runs are pooled at a time: blocks of a falling run always end in one pool, so a
    few passes do.
    """
    points, index, counts = np.unique(x, return_inverse=True, return_counts=True)
    weight = counts.astype(float)
    mean = np.bincount(index, weights=y) / weight
    size = np.ones(len(points), int)
    while len(mean) > 1 and bool((fall := mean[1:] <= mean[:-1]).any()):
        if not (mean[1:] < mean[:-1]).any():
            break
        start = np.flatnonzero(np.concatenate(([True], ~fall)))
        total = np.add.reduceat(weight * mean, start)
        weight, size = np.add.reduceat(weight, start), np.add.reduceat(size, start)
        mean = total / weight
    ends = np.cumsum(size)
    # both ends of each pool: level inside, linear between
    edges = np.unique(np.concatenate((ends - size, ends - 1)))
    values = np.repeat(mean, size)[edges]
    keep = _thinned(values)
    return {"x": points[edges][keep].tolist(), "y": values[keep].tolist()}


def _fit_platt(x: Floats, y: Floats) -> dict[str, Any]:
    """Logistic regression by Newton's method, labels drawn in as Platt (1999) has it, so that
    separable ones converge."""
    centre, scale = float(x.mean()), float(x.std())
    z = (x - centre) / scale
    good = y.sum()
    target = 1 / (len(y) - good + 2) + y * ((good + 1) / (good + 2) - 1 / (len(y) - good + 2))
    slope = offset = 0.0
    for _ in range(100):
        p = logistic(slope * z + offset)
        w, miss = np.maximum(p * (1 - p), 1e-12), target - p
        a, b, c = float((w * z * z).sum()), float((w * z).sum()), float(w.sum())
        g, h = float((miss * z).sum()), float(miss.sum())
        det = a * c - b * b
        step = ((c * g - b * h) / det, (a * h - b * g) / det)
        slope, offset = slope + step[0], offset + step[1]
        if max(abs(step[0]), abs(step[1])) < 1e-10:
            break
    return {"slope": slope / scale, "offset": offset - slope * centre / scale}


def _thinned(rising: Floats) -> NDArray[np.intp]:
    """Indices to keep of a rising curve: those on both sides of each of GRID levels, so that no gap
    spans more than one."""
    if len(rising) <= 2 * GRID:
        return np.arange(len(rising))
    levels = np.linspace(rising[0], rising[-1], GRID)
    above = np.minimum(np.searchsorted(rising, levels), len(rising) - 1)
    return np.unique(np.concatenate(([0, len(rising) - 1], above, np.maximum(above - 1, 0))))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_curve(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(map(_is_number, value))
        and all(a <= b for a, b in pairwise(value))
    )


_PARAMETERS = {"identity": (), "likert": ("low", "high"), "sigmoid": ("zero", "temperature")}
_REQUIRED = {
    "ecdf": ("x", "y"),
    "isotonic": ("x", "y"),
    "robust_z": ("median", "scale"),
    "platt": ("slope", "offset"),
    ANCHORED: ("temperature",),
}
