"""Biases and noise that are planted are found; what is not there is not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from mora_data.pipeline.judge_calibration import drift, drifting_dims
from mora_data.rewards.judge_stats import JudgeStats, Noise, noise_of
from mora_data.run.cost import family, same_family
from mora_data.settings import PresampleSettings
from mora_data.statistics.judges import (
    AgreementSums,
    Correlation,
    PositionSums,
    SourceSums,
    pair_accuracy,
)

GAMMA = PresampleSettings().gamma


def sums_of(values: np.ndarray, lengths: np.ndarray) -> SourceSums:
    sums = SourceSums()
    for v, n in zip(values.tolist(), lengths.tolist(), strict=True):
        sums.add([None if math.isnan(x) else x for x in v], n)
    return sums


def length_correlation(values: np.ndarray, lengths: np.ndarray) -> Correlation:
    return sums_of(values, lengths).correlation()


def krippendorff_alpha(ratings_S_N: np.ndarray) -> float | None:
    sums = AgreementSums()
    for unit in ratings_S_N.T.tolist():
        sums.add(unit)
    return sums.alpha()


def simulated_noise(true_sd: float, sigma: float, prompts: int = 400, n: int = 16) -> Noise:
    rng = np.random.default_rng(3)
    by_prompt, twice = [], []
    for _ in range(prompts):
        true = rng.normal(rng.normal(0.5, 0.3), true_sd, n)
        first, second = (true + rng.normal(0, sigma, n) for _ in range(2))
        by_prompt.append(first.tolist())
        twice += [(float(first[i]), float(second[i])) for i in range(0, n, 8)]
    return noise_of(by_prompt, twice, 0.0)


@pytest.mark.parametrize(("true_sd", "sigma"), [(0.2, 0.1), (0.15, 0.15), (0.1, 0.05)])
def test_known_noise_and_reliability_are_recovered(true_sd: float, sigma: float) -> None:
    found = simulated_noise(true_sd, sigma)
    rho = true_sd**2 / (true_sd**2 + sigma**2)
    assert found.sigma == pytest.approx(sigma, rel=0.1)
    assert found.reliability == pytest.approx(rho, rel=0.1)
    assert found.reliability is not None and found.reliability_upper is not None
    assert found.reliability < found.reliability_upper < 1


def test_upper_bound_of_the_reliability_covers_the_truth_about_19_times_in_20() -> None:
    rng = np.random.default_rng(11)
    covered = 0
    for _ in range(400):
        by_prompt, twice = [], []
        for _ in range(40):
            true = rng.normal(0, 0.1, 8)
            first = true + rng.normal(0, 0.2, 8)
            by_prompt.append(first.tolist())
            twice.append((float(first[0]), float(true[0] + rng.normal(0, 0.2))))
        covered += (noise_of(by_prompt, twice, 0.0).reliability_upper or 0) >= 0.2
    assert 0.90 <= covered / 400 <= 0.99


@pytest.mark.parametrize(
    ("true_sd", "sigma", "prompts", "refused"),
    [
        (0.02, 0.2, 400, True),  # noise all through
        (0.02, 0.2, 10, False),  # too few scored twice to say so
        (0.2, 0.1, 400, False),  # fine
        # saturated: nothing varies, and the noise would not look like anything
        (0.01, 0.03, 400, False),
    ],
)
def test_only_what_is_surely_noise_is_refused(
    true_sd: float, sigma: float, prompts: int, refused: bool
) -> None:
    assert bool(unreliable(simulated_noise(true_sd, sigma, prompts))) == refused


def test_a_source_that_never_varies_has_no_reliability() -> None:
    assert simulated_noise(0.0, 0.0).reliability is None and not unreliable(
        simulated_noise(0.0, 0.0)
    )


def unreliable(noise: Noise) -> bool:
    return bool(JudgeStats({"d": noise}, {"d": 0.5}, {}).unreliable(GAMMA))


def test_planted_length_bias_is_found_and_none_is_not() -> None:
    rng = np.random.default_rng(5)
    lengths = rng.integers(20, 400, (300, 12)).astype(float)
    true = rng.normal(0, 0.2, (300, 12)) + rng.normal(0, 1, (300, 1))
    biased = length_correlation(true + 0.15 * np.log(lengths), lengths)
    assert biased.low is not None and biased.low > 0.2 and biased.prompts == 300
    fair = length_correlation(true, lengths)
    assert (
        fair.low is not None
        and fair.high is not None
        and fair.low < 0 < fair.high
        and fair.high - fair.low < 0.15
    )
    # differences between prompts only
    by_prompt = length_correlation(np.repeat(rng.normal(size=(300, 1)), 12, 1), lengths)
    assert by_prompt.r is None


def test_interval_of_the_length_correlation_covers_zero_when_there_is_none() -> None:
    rng = np.random.default_rng(2)
    inside = 0
    for _ in range(200):
        found = length_correlation(
            rng.normal(size=(60, 6)), rng.integers(5, 90, (60, 6)).astype(float)
        )
        assert found.low is not None and found.high is not None
        inside += found.low <= 0 <= found.high
    assert 0.90 <= inside / 200 <= 0.99


def test_planted_position_bias_is_found_and_none_is_not() -> None:
    rng = np.random.default_rng(4)

    def judged(bias: float) -> dict[str, Any]:
        sums = PositionSums()
        for gap in rng.normal(0, 1, 400):
            sums.add(
                [
                    (
                        1 if gap + bias + rng.normal(0, 0.3) > 0 else 2,
                        1 if -gap + bias + rng.normal(0, 0.3) > 0 else 2,
                    )
                ]
            )
        return sums.figures()

    biased, fair = judged(0.5), judged(0.0)
    assert (
        biased["flips"]["low"] > 0.2
        and biased["first"]["low"] > 0.6
        and biased["first"]["n"] == 800
    )
    assert fair["flips"]["high"] < 0.2 and fair["first"]["low"] < 0.5 < fair["first"]["high"]


def test_games_are_counted_by_what_could_be_read() -> None:
    sums = PositionSums()
    sums.add([(1, 2), (2, 1), (1, 1), (0, 1), (0, 0), (None, 1), (None, None)])
    found = {name: (v["rate"], v["n"]) for name, v in sums.figures().items() if name != "games"}
    assert found == {
        "parse_rate": (5 / 7, 7),
        "tie_rate": (3 / 5, 5),
        "flips": (1 / 3, 3),
        "first": (6 / 8, 8),
    }
    both = PositionSums()
    both.merge(sums.tree()), both.merge(sums.tree())
    assert both.games == 14 and both.figures()["flips"]["n"] == 6
    assert PositionSums().figures()["flips"]["rate"] is None


def test_ties_and_parse_rate_are_counted() -> None:
    values = np.array([[1.0, 1.0, 2.0, np.nan]])
    assert sums_of(values, np.ones((1, 4))).figures()["tie_rate"] == pytest.approx(1 / 3)
    sums = SourceSums()
    sums.add([0.5, None, 0.5], [3.0, 3.0, 3.0], ["no_verdict"])
    figures = sums.figures()
    assert (
        figures["parse_rate"] == pytest.approx(2 / 3)
        and figures["reasons"] == {"no_verdict": 1}
        and figures["tie_rate"] == 1
    )
    both = SourceSums()
    both.merge(sums.tree()), both.merge(sums.tree())
    assert both.n == 6 and both.figures()["parse_rate"] == figures["parse_rate"]


def test_krippendorff_alpha_of_a_known_table() -> None:
    """The reliability data of Krippendorff 2011 (4 observers, 12 units, 41 values): alpha for
    interval data is 0.849."""
    table = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
        [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
    ]
    ratings = np.array([[math.nan if v is None else v for v in row] for row in table])
    assert krippendorff_alpha(ratings) == pytest.approx(0.849, abs=5e-4)
    rng = np.random.default_rng(1)
    assert krippendorff_alpha(rng.normal(size=(2, 5000))) == pytest.approx(0, abs=0.05)
    assert (
        krippendorff_alpha(np.ones((2, 5))) is None
        and krippendorff_alpha(np.array([[1.0, 2.0], [1.0, 2.0]])) == 1
    )
    parts = [AgreementSums(), AgreementSums()]
    for i, unit in enumerate(ratings.T.tolist()):
        parts[i % 2].add(unit)
    parts[0].merge(parts[1].tree())
    assert parts[0].alpha() == pytest.approx(0.849, abs=5e-4)


def test_pair_accuracy_leaves_ties_apart() -> None:
    found = pair_accuracy([0.5] * 80 + [0.0] * 100 + [-0.25] * 20)
    assert found["pairs"] == 200 and found["ties"] == 100 and found["accuracy"] == 0.8
    assert found["low"] == pytest.approx(0.711, abs=3e-3) and found["high"] == pytest.approx(
        0.871, abs=3e-3
    )
    assert pair_accuracy([])["accuracy"] is None


@pytest.mark.parametrize(
    ("policy", "judge", "shared"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", "Qwen/QwQ-32B", "qwen"),
        ("mistralai/Mixtral-8x7B", "mistral-large-2407", "mistral"),
        ("meta-llama/Llama-3.1-8B", "Qwen/Qwen3-8B", ""),
        ("gpt-4o-mini", "o3", "gpt"),
        ("my-model", "my-model-2", ""),
        ("", "", ""),
        ("us.vendor.novel-3-large-v1:0", "novel-2", "novel"),
        ("org/Meta-Llama-3.1-8B", "llama-guard", "llama"),
        ("microsoft/phi-4", "phi3-mini", "phi"),
        ("7b-chat", "7b-instruct", ""),
        ("eu.vendor.falcon-180b-v1", "tiiuae/falcon-7b", "falcon"),
        ("ibm/granite-3.0-8b", "granite3-dense", "granite"),
    ],
)
def test_families_by_name(policy: str, judge: str, shared: str) -> None:
    assert same_family(policy, judge) == shared and family("google/gemma-3-4b-it") == family(
        "gemini-2.0-flash"
    )


def test_drift_has_to_exceed_the_limit_and_its_error() -> None:
    start = {"d": [0.5, 0.75, 1.0, 0.25] * 10}
    moved = {"d": [v - 0.2 for v in start["d"]]}
    found = drift(start, moved, {"d": 0.05})
    assert (
        found["d"]["shift"] == pytest.approx(-0.2)
        and found["d"]["n"] == 40
        and drifting_dims(found, 0.1) == ["d"]
    )
    assert not drifting_dims(drift(start, start, {"d": 0.05}), 0.1)
    # one item of a noisy judge proves nothing
    few = drift({"d": [0.5, None]}, {"d": [0.25, 0.5]}, {"d": 0.3})
    assert few["d"]["n"] == 1 and not drifting_dims(few, 0.1)
    assert drift({"d": [None]}, {"d": [0.5]}, {})["d"]["shift"] is None


def test_the_noise_that_is_stated_holds_where_it_is_larger() -> None:
    """A reward that always says the same would let the smallest difference win a dimension."""
    scores = [[0.5, 0.9]] * 30
    changes, same = ([(0.5, second)] * 30 for second in (0.6, 0.5))
    seen = {"judge": noise_of(scores, changes, 0.25), "head": noise_of(scores, same, 0.0)}
    stats = JudgeStats(seen, {}, {})
    (line,) = stats.doubts()
    assert "The scores of head never change: 30 answers" in line and "rewards.head[].noise" in line
    assert stats.least_margins(["head"], {"head": 0.0}) == [0.0]
    assert noise_of(scores, changes, 0.25, 0.01) == seen["judge"] and seen["judge"].sigma > 0.07
    head = noise_of(scores, same, 0.0, 0.05)
    assert head.sigma == 0.05 and head.reliability == pytest.approx(1 - 1 / 32)
    stats = JudgeStats({"head": head}, {}, {})
    assert stats.doubts() == [] and stats.least_margins(["head"], {"head": 0.0})[0] > 0.14
    assert noise_of([], [], 0.0, 0.1).sigma == 0.1


def test_a_judge_that_gives_one_level_to_nearly_everything_is_told_of() -> None:
    noise = {
        "level": noise_of([[1.0, 1.0, 1.0, None if i else 0.5] for i in range(10)], [], 0.25),
        "varied": noise_of([[0.25, 0.5, 0.75, 0.75]] * 10, [], 0.25),
    }
    assert (noise["level"].ties, noise["level"].pairs) == (30 / 33, 33)
    assert noise["varied"].ties == 1 / 6
    stats = JudgeStats(noise, {}, {})
    (line,) = stats.doubts()
    assert "The scores of level tell little apart: 91% of 33 pairs" in line
    assert "stronger judge" in line and "rewards.level[].expected" in line
    assert stats.to_json()["doubts"] == stats.published()["doubts"] == [line]
    assert JudgeStats.from_json(stats.to_json()) == stats
