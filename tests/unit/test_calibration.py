"""Calibration: what is fitted recovers what was planted, NaN stays NaN, and a chart survives its
JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mora_data.errors import SettingsError
from mora_data.rewards.calibration import (
    ANCHORED,
    GRID,
    KINDS,
    LABELLED,
    anchor_of,
    apply,
    checked_map,
    fit,
    logistic,
)
from mora_data.rewards.combine import calibrated, combine, pass_thresholds_of, sources_of
from mora_data.settings import Settings as PluginSettings
from mora_data.settings import build_settings
from mora_data.types import Score

RNG = np.random.default_rng(7)
RAW = RNG.normal(2.0, 3.0, 5000)
LABELS = (RNG.random(5000) < logistic(RAW - 2.0)).astype(float)


def calibration_map(kind: str) -> dict[str, Any]:
    return fit(
        kind, RAW, LABELS if kind in LABELLED else None, {"spread": 3.0} if kind == ANCHORED else {}
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_maps_into_the_unit_interval_in_order_and_survives_json(kind: str) -> None:
    made = calibration_map(kind)
    again = checked_map(json.loads(json.dumps(made)), "a file")
    raw = (
        np.linspace(1, 5, 101)
        if kind == "likert"
        else np.linspace(0, 1, 101)
        if kind == "identity"
        else np.sort(RAW)
    )
    values = apply(made, raw, 2.0)
    assert np.array_equal(values, apply(again, raw, 2.0))  # bit for bit
    assert (
        values.min() >= 0
        and values.max() <= 1
        and np.all(np.diff(values) >= 0)
        and values[-1] > values[0]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_number_stays_none(kind: str) -> None:
    assert np.isnan(apply(calibration_map(kind), np.array([np.nan, np.inf, -np.inf]), 0.0)).all()


def test_scores_outside_a_known_scale_are_no_numbers() -> None:
    assert np.isnan(apply({"kind": "likert"}, np.array([0.9, 5.1]))).all()
    assert np.isnan(apply({"kind": "identity"}, np.array([-0.1, 1.1]))).all()
    assert apply({"kind": "likert", "low": 0.0, "high": 4.0}, np.array([3.0])).tolist() == [0.75]


def test_sigmoid_has_its_zero_at_one_half() -> None:
    assert apply(
        {"kind": "sigmoid", "zero": 1.5, "temperature": 2.0}, np.array([1.5, 1e9])
    ).tolist() == [0.5, 1.0]


@pytest.mark.parametrize(
    "values",
    [
        RNG.normal(size=200_000),
        RNG.integers(0, 7, 50_000).astype(float),
        np.round(RNG.standard_cauchy(100_000), 1),
    ],
)
def test_ecdf_is_the_mid_rank_within_its_stated_error(values: np.ndarray[Any, Any]) -> None:
    made = fit("ecdf", values)
    ordered = np.sort(values)
    truth = (
        (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right"))
        / 2
        / len(values)
    )
    assert len(made["x"]) <= 2 * GRID
    assert np.abs(apply(made, values) - truth).max() <= 1 / (GRID - 1)
    assert apply(made, np.array([values.min() - 1, values.max() + 1])).tolist() == [0.0, 1.0]


def test_robust_z_ignores_outliers_and_says_when_it_cannot() -> None:
    clean = apply(fit("robust_z", RAW), np.array([2.0]))
    dirty = apply(fit("robust_z", np.concatenate([RAW, np.full(500, 1e9)])), np.array([2.0]))
    assert abs(float(clean[0]) - 0.5) < 0.02 and abs(float(dirty[0]) - float(clean[0])) < 0.05
    with pytest.raises(
        SettingsError, match="more than half of 10 reference scores are 1; use ecdf"
    ):
        fit("robust_z", np.array([1.0] * 8 + [2.0, 3.0]))


def test_isotonic_recovers_a_monotone_distortion() -> None:
    truth = RNG.random(50_000)
    raw = np.exp(3 * truth) + 5 * (truth > 0.5)  # any rising distortion
    exact = apply(fit("isotonic", raw, truth), raw)
    assert np.abs(exact - truth).max() <= 0.02
    # labels good / not good
    drawn = apply(fit("isotonic", raw, (RNG.random(50_000) < truth).astype(float)), raw)
    assert np.abs(drawn - truth).mean() <= 0.02


def test_isotonic_is_the_least_squares_rising_curve() -> None:
    from scipy.optimize import isotonic_regression

    raw = RNG.integers(0, 60, 400).astype(float)
    labels = RNG.random(400)
    points, index, counts = np.unique(raw, return_inverse=True, return_counts=True)
    oracle = isotonic_regression(np.bincount(index, labels) / counts, weights=counts).x
    assert apply(fit("isotonic", raw, labels), points) == pytest.approx(oracle, abs=1e-9)


def test_platt_recovers_slope_and_offset() -> None:
    raw = RNG.normal(size=100_000)
    made = fit("platt", raw, (RNG.random(100_000) < logistic(1.7 * raw - 0.6)).astype(float))
    assert made["slope"] == pytest.approx(1.7, rel=0.03) and made["offset"] == pytest.approx(
        -0.6, abs=0.03
    )
    separable = fit("platt", np.arange(40.0), (np.arange(40) >= 20).astype(float))
    assert math.isfinite(separable["slope"]) and separable["slope"] > 0


@pytest.mark.parametrize("kind", LABELLED)
@pytest.mark.parametrize(
    ("raw", "labels", "why"),
    [
        (np.arange(5.0), np.arange(5) / 5, "on 5 labels"),
        (np.arange(50.0), np.ones(50), "all 50 labels are the same"),
        (np.ones(50), np.arange(50) / 50, "all 50 raw scores are the same"),
        (np.arange(50.0), 1 - np.arange(50) / 50, "is the sign turned"),
    ],
)
def test_labels_that_cannot_carry_a_chart_are_refused(
    kind: str, raw: Any, labels: Any, why: str
) -> None:
    with pytest.raises(SettingsError, match=why):
        fit(kind, raw, labels)


@pytest.mark.parametrize(
    ("tree", "why"),
    [
        ([], "holds no calibration"),
        ({"kind": "magic"}, "holds no calibration"),
        ({"kind": "ecdf"}, "x of a ecdf"),
        ({"kind": "ecdf", "x": [2, 1], "y": [0, 1]}, "rising"),
        ({"kind": "ecdf", "x": [1], "y": [0, 1]}, "points"),
        ({"kind": "platt", "slope": -1, "offset": 0}, "above 0"),
        ({"kind": "robust_z", "median": 0, "scale": math.nan}, "a number"),
    ],
)
def test_a_file_that_holds_no_chart_is_refused(tree: Any, why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        checked_map(tree, "f.json")


def test_anchor_is_a_quantile_of_the_prompts_own_answers() -> None:
    assert anchor_of({"quantile": 0.5}, [3.0, 1.0, math.nan]) == 2.0
    assert anchor_of({"quantile": 0.75}, [0.0, 1.0, 2.0, 3.0, 4.0]) == 3.0 and math.isnan(
        anchor_of({}, [])
    )


class Fake:
    """A reward that returns nothing: only its scale matters here."""

    class Settings(PluginSettings):
        own: str = "identity"
        passes_from: float | None = 0.5

    step, fingerprint = 0.0, "fake"

    def __init__(self, dimension: str, options: Settings, context: object) -> None:
        self.dimension, self.name = dimension, f"fake:{options.own}"
        self.calibration, self.pass_threshold = options.own, options.passes_from

    async def scores(self, *args: Any) -> list[Score]:
        return []


def one(
    own: str = "identity", pass_threshold: float | None = 0.5, plain: bool = False, **reward: Any
) -> Any:
    settings = build_settings(
        {
            "name": "x",
            "source": {"kind": "jsonl"},
            "dimensions": ["d"],
            "presample": {"enabled": not plain},
            "rewards": {
                "d": [
                    {
                        "kind": "unit.test_calibration:Fake",
                        "own": own,
                        "passes_from": pass_threshold,
                        **reward,
                    }
                ]
            },
        }
    )
    return sources_of(settings)["d"]


def scores(*raw: float | None, value: float | None = None) -> list[Score]:
    return [Score("d", "fake", value, r, "uncalibrated" if value is None else "") for r in raw]


@pytest.mark.parametrize(
    ("score", "reason"),
    [
        (Score("d", "fake", math.nan), "not_finite"),
        (Score("d", "fake", math.inf), "not_finite"),
        (Score("d", "fake", 1.5), "out_of_range"),
        (Score("d", "fake", None, None, "no_verdict"), "no_verdict"),
    ],
)
def test_a_bad_value_of_the_source_itself_is_none_with_a_reason(score: Score, reason: str) -> None:
    (found,) = calibrated(one()[0], [score], 1, {})
    assert found.value is None and found.reason == reason


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (math.nan, "not_finite"),
        (-math.inf, "not_finite"),
        (None, "no_score"),
        (7.0, "out_of_range"),
    ],
)
def test_a_bad_raw_score_is_none_with_a_reason(raw: float | None, reason: str) -> None:
    found = calibrated(one("likert", 0.75, calibration="likert")[0], scores(raw, 5.0), 2, {})
    assert (found[0].value, found[0].reason) == (None, reason) and (
        found[1].value,
        found[1].reason,
    ) == (1.0, "")


def test_scores_that_do_not_match_the_answers_are_none() -> None:
    found = calibrated(one()[0], [Score("d", "fake", 0.5)], 2, {})
    assert [(s.value, s.reason) for s in found] == [(None, "1 scores for 2 answers")] * 2


def test_first_scores_of_a_prompt_set_its_anchor_and_later_ones_keep_it() -> None:
    (source,) = one(ANCHORED, None, calibration={"temperature": 1.0})
    anchors: dict[tuple[str, int], float] = {}
    assert [s.value for s in calibrated(source, scores(1.0, 2.0, 9.0), 3, anchors)][
        1
    ] == 0.5 and anchors == {("d", 0): 2.0}
    shifted = [s.value for s in calibrated(source, scores(3.0), 1, anchors)]
    assert shifted == pytest.approx([1 / (1 + math.exp(-1))])
    # an offset of the whole prompt changes nothing
    offset = calibrated(source, scores(101.0, 102.0, 109.0), 3, {})
    assert [s.value for s in offset] == [
        s.value for s in calibrated(source, scores(1.0, 2.0, 9.0), 3, {})
    ]


@pytest.mark.parametrize(
    ("calibration", "mark", "why"),
    [
        ("ecdf", None, "Bradley-Terry.*add a source with an absolute scale to rewards.d"),
        ("ecdf", 0.5, "no floor on it means the same"),
        (ANCHORED, None, "presample.floors.d"),
    ],
)
def test_a_bradley_terry_score_gives_no_floor_across_prompts(
    calibration: str, mark: float | None, why: str
) -> None:
    with pytest.raises(SettingsError, match=why):
        pass_thresholds_of({"d": one(calibration, None)}, {} if mark is None else {"d": mark})


def test_where_floors_come_from() -> None:
    assert pass_thresholds_of({"d": one(ANCHORED, None)}, {"d": 0.6}) == {"d": 0.6}
    assert pass_thresholds_of({"d": one("likert", 0.75)}, "auto") == {"d": 0.75}
    # ranks are another scale than the mark of the source
    with pytest.raises(SettingsError, match="Bradley-Terry"):
        pass_thresholds_of({"d": one("likert", 0.75, calibration="ecdf")}, "auto")
    both = [*one(ANCHORED, None), *one("likert", 0.75)]
    assert pass_thresholds_of({"d": both}, "auto") == {"d": 0.75}


def test_level_comes_from_the_absolute_source_alone_and_doubt_from_all() -> None:
    both = [*one(ANCHORED, None, weight=3.0), *one("likert", 0.75)]
    found = combine(both, [Score("d", "a", 0.2), Score("d", "b", 0.8)])
    assert found is not None and found.reward == pytest.approx(0.35) and found.absolute == 0.8
    # weighted sd, kappa 1 for two sources
    assert found.uncertainty == pytest.approx(math.sqrt(0.75 * 0.25) * 0.6)
    single = combine(one(), [Score("d", "a", 0.4)], 2.0, 0.1)
    assert single == (0.4, 0.4, 0.2) and combine(one(), [Score("d", "a", 0.4)]) == (0.4, 0.4, 0.0)
    assert (
        combine(both, [Score("d", "a", 0.2), Score("d", "b", None)]) is None
        and combine(both, []) is None
    )


def test_plain_builds_cannot_fit_and_say_so() -> None:
    with pytest.raises(
        SettingsError, match=r"presample.enabled is false: give it a calibration_file$"
    ):
        one("ecdf", None, plain=True)
    with pytest.raises(SettingsError, match=r"or calibration\.temperature"):
        one(ANCHORED, None, plain=True)
    assert not one(ANCHORED, None, plain=True, calibration={"temperature": 2.0})[0].needs_fit


def test_labels_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    rows = [{"raw": float(i), "label": int(i >= 20)} for i in range(40)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    (source,) = one("ecdf", None, plain=True, calibration={"kind": "isotonic", "labels": str(path)})
    assert (
        not source.needs_fit
        and source.pass_threshold == 0.5
        and source.calibration_map is not None
        and source.calibration_map["n"] == 40
    )
    bad = (
        ('{"raw": 1}', ":41:"),
        ('{"raw": NaN, "label": 1}', ":41:"),
        ('{"raw": 1, "label": 2}', "label"),
        ("x", ":41:"),
    )
    for line, why in bad:
        path.write_text("".join(json.dumps(r) + "\n" for r in rows) + line + "\n")
        with pytest.raises(SettingsError, match=why):
            one("ecdf", None, calibration={"kind": "platt", "labels": str(path)})
    with pytest.raises(SettingsError, match="can't read the label file"):
        one("ecdf", None, calibration={"kind": "platt", "labels": str(tmp_path / "none")})
    with pytest.raises(SettingsError, match="is fitted on labels"):
        one("ecdf", None, calibration="platt")


def test_a_frozen_calibration_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "chart.json"
    path.write_text(json.dumps(fit("ecdf", RAW)))
    (source,) = one("ecdf", 0.5, plain=True, calibration_file=str(path))
    assert source.calibration_map == fit("ecdf", RAW) and source.pass_threshold == 0.5
    held = {"d": [{"source": "fake:ecdf", **fit("ecdf", RAW)}]}
    path.write_text(json.dumps({"reference": {"calibration": held}}))  # as published
    assert (
        one("ecdf", None, calibration_file=str(path))[0].calibration_map["x"]
        == fit("ecdf", RAW)["x"]
    )
    path.write_text(json.dumps({"calibration": {}}))
    with pytest.raises(SettingsError, match="holds nothing for fake:ecdf in d"):
        one("ecdf", None, calibration_file=str(path))
    with pytest.raises(SettingsError, match="can't read the calibration file"):
        one("ecdf", None, calibration_file=str(tmp_path / "none"))
