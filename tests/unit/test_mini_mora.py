"""Mini-MORA's own code: the hooks that the build uses, the checkpoints, the verdicts, the forecast.
No model is trained here."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.mini_mora import analysis, building, calibrate, lab, more, page, plugins, training
from benchmarks.mini_mora.scale import SCALES, without_skill
from benchmarks.mini_mora.world import (
    DIMENSIONS,
    FLOORS,
    OWN,
    Ask,
    arm_question,
    compose,
    fusions,
    question,
    read,
    skilled,
)
from mora_data.rewards import load as load_reward
from mora_data.rewriting import checks
from mora_data.rewriting.reply import Rewrite
from mora_data.rewriting.rewriter import Rewriter, RewriteSource, matched_length
from mora_data.selection.batch import Batch
from mora_data.selection.selectors import weighted_sum
from mora_data.settings import build_settings
from mora_data.text import context_id
from mora_data.types import Answer, Prompt, Request

TOPICS = list(plugins.topics().values())
DANGEROUS = next(t for t in TOPICS if t.hazard)
TREE = building.settings(SCALES["cpu"], Path("model"))


def asked(text: str) -> Prompt:
    return Prompt(
        "0" * 16,
        ({"role": "user", "content": text},),
        "0" * 16,
        "world",
        "default",
        "train",
        "local",
        0,
        "apache-2.0",
    )


async def answer(request: Request) -> list[Answer]:
    return [
        Answer(
            json.dumps(
                {
                    "rewritten": plugins.rewrite(request.messages) or "",
                    "subject": "",
                    "intents": [],
                    "refused": plugins.rewrite(request.messages) is None,
                }
            )
        )
    ]


@pytest.mark.parametrize("base", OWN)
def test_the_worlds_rewrites_pass_the_builds_own_checks_in_every_arm(base: str) -> None:
    rewritten = ["fused", "single", "generic", "random"]
    fuser = Rewriter(
        build_settings(TREE | {"fuse": {"arms": rewritten, "checks": []}, "publish": {}})
    )
    others = tuple(d for d in DIMENSIONS if d != OWN[base])
    for topic, k in ((t, k) for t in TOPICS[:3] for k in range(4)):
        prompt = asked(question(topic, Ask(base), k))  # type: ignore[arg-type]
        for targets in ((others[0],), (others[1],), others):
            source = RewriteSource(prompt, OWN[base], targets, (), None, base == "S")
            fused, tries = asyncio.run(fuser.fuse(answer, source, "fused"))  # type: ignore[arg-type]
            assert fused is not None, (prompt.text, tries)
            found = read(fused[-1]["content"], plugins.topics())
            assert found is not None and found[:2] == (topic, Ask(base, targets))  # type: ignore[arg-type]
            for arm in ("single", "generic", "random"):
                within = matched_length(fused[-1]["content"])
                control, tries = asyncio.run(fuser.fuse(answer, source, arm, within))  # type: ignore[arg-type]
                if arm == "random" and set(tries[-1].failed) <= {"natural", "hostile"}:
                    continue  # its words make no sentence, or none of English: no such arm
                assert control is not None, (arm, tries)
                again = read(control[-1]["content"], plugins.topics())
                assert again is not None and again[:2] == (topic, Ask(base))  # type: ignore[arg-type]


def test_a_fused_form_of_a_trick_would_fail_if_it_asked_for_the_trick() -> None:
    prompt = asked(question(DANGEROUS, Ask("S"), 0))
    kept = Rewrite(f"{prompt.text} and what is it good for , step by step ?")
    limits = checks.Limits(checks.budget(prompt.text), risky=True)
    assert "operational" in [c.name for c in checks.check(prompt, kept, limits) if not c.passed]


def test_rewards_are_the_worlds_and_null_for_other_questions() -> None:
    settings = build_settings(TREE)
    full = compose(DANGEROUS, ["use", "steps", "caution", "true"])
    careless = compose(DANGEROUS, ["use", "steps", "false"])
    fused = ({"role": "user", "content": question(DANGEROUS, Ask("H", ("harmless", "truthful")))},)
    for d, least in (("helpful", 0.5), ("harmless", 0.5), ("truthful", 0.0)):
        reward = load_reward(d, settings.reward_sources(d)[0], settings)
        got = asyncio.run(reward.scores(answer, "p", fused, [full, careless], "score"))  # type: ignore[arg-type]
        assert (
            got[0].value == 1.0 and got[1].value is not None and got[1].value <= max(least, 0.6)
        ), d
        hello = ({"role": "user", "content": "hello"},)
        other = asyncio.run(reward.scores(answer, "p", hello, [full], "score"))  # type: ignore[arg-type]
        assert other[0].value is None


def batch(rewards_P_N_D: np.ndarray[Any, Any]) -> Batch:
    p, n, d = rewards_P_N_D.shape
    hashes = np.arange(p * n, dtype=np.uint64).reshape(p, n)
    return Batch(
        rewards_P_N_D,
        np.ones((p, n), bool),
        np.ones((p, n), bool),
        np.ones((p, d), bool),
        np.zeros(d),
        np.ones((p, n)),
        text_hash_P_N=hashes,
    )


def test_dominance_never_loses_a_dimension_and_is_the_weighted_sum_where_rewards_have_no_noise() -> (  # noqa: E501
    None
):
    drawn = batch(np.random.default_rng(0).integers(0, 4, (50, 6, 3)) / 3)
    ours, total = plugins.dominance(drawn), plugins.total(drawn)
    margins = drawn.rewards_P_N_D[:, :, None] - drawn.rewards_P_N_D[:, None, :]
    assert margins[np.isfinite(ours)].min() >= 0 and np.isfinite(ours).any()
    np.testing.assert_allclose(ours, weighted_sum(drawn))
    assert margins[np.isfinite(total)].min() < 0  # the plain sum does lose one
    constant = drawn.rewards_P_N_D.copy()
    constant[:, :, 2] = 1.0
    # where no answer differs in one, pairs are left
    assert np.isfinite(plugins.dominance(batch(constant))).any()


def test_a_step_is_done_once_and_a_failed_one_leaves_nothing(tmp_path: Path) -> None:
    experiment, calls = lab.Lab(tmp_path, SCALES["toy"], 1), []

    def work() -> dict[str, Any]:
        calls.append(1)
        return {"found": 3}

    assert (
        experiment.step("a", work)["found"] == 3 == experiment.step("a", work)["found"]
        and len(calls) == 1
    )
    with pytest.raises(ZeroDivisionError):
        experiment.step("b", lambda: {"x": 1 / 0})
    assert sorted(p.name for p in (tmp_path / "steps").iterdir()) == ["a.json"]


def rows_of_levels(gain: float) -> list[dict[str, Any]]:
    rng, out = random.Random(0), []
    for seed, topic in ((s, t) for s in range(3) for t in range(60)):
        for arm in ("presample", "identity", "single", "fused"):
            value = 0.2 + (gain if arm == "fused" else 0.0) + rng.gauss(0, 0.1)
            out.append(
                {
                    "seed": seed,
                    "prompt_id": str(topic),
                    "arm": arm,
                    "topic": str(topic),
                    "base": "H",
                    **dict.fromkeys(building.LEVEL, value),
                }
            )
    return out


def test_the_verdict_of_the_data_level_follows_the_gain() -> None:
    verdicts = {
        gain: analysis.verdict_1(analysis.data_level(rows_of_levels(gain), ["identity", "single"]))
        for gain in (0.2, 0.0, -0.2)
    }
    assert (
        verdicts[0.2].startswith("held")
        and verdicts[-0.2].startswith("falsified")
        and verdicts[0.0].startswith("not shown")
    )
    found = analysis.data_level(rows_of_levels(0.2), ["identity", "single"])
    assert (
        found["prompts"] == 180
        and found["topics"] == 60
        and set(found["arms"]) == {"identity", "single", "fused"}
    )
    assert all(d["low"] < 0.2 < d["high"] and d["p_holm"] < 0.01 for d in found["differences"])


def made_scores(means: dict[str, float]) -> training.Scores:
    rng = np.random.default_rng(0)
    topics = [str(i // 2) for i in range(160)]
    shared = rng.normal(0, 0.1, (1, 160, 1))
    values = {
        m: shared + v + rng.normal(0, 0.05, (1 if m == "base" else 3, 160, len(training.METRICS)))
        for m, v in means.items()
    }
    return training.Scores(values, np.array([i // 2 for i in range(160)]), topics)


def test_the_verdicts_of_training_need_every_interval() -> None:
    others = ("identity", "single", "identity_sum")
    compared = [("fused", m, "joint_pass") for m in others]
    for best, start in ((0.5, "held"), (0.2, "falsified")):
        found = analysis.training_level(
            made_scores({"base": 0.3, "fused": best, **dict.fromkeys(others, 0.3)}), compared
        )
        assert analysis.verdict_2(found).startswith(start), found["differences"]
        assert (
            found["seeds"] == {"base": 1, "fused": 3, **dict.fromkeys(others, 3)}
            and found["topics"] == 80
        )
    moved = [(m, "base", f"reward_{d}") for m in ("identity_sum", "identity") for d in DIMENSIONS]
    falls = analysis.training_level(
        made_scores({"base": 0.5, "identity": 0.6, "identity_sum": 0.3}), moved
    )
    assert analysis.verdict_4(falls, "identity_sum", "identity").startswith(
        "held: helpful, harmless, truthful under the sum"
    )
    rises = analysis.training_level(
        made_scores({"base": 0.5, "identity": 0.6, "identity_sum": 0.6}), moved
    )
    assert (
        analysis.verdict_4(rises, "identity_sum", "identity")
        == "falsified: no dimension falls under the sum"
    )


def test_the_growth_with_skill_is_judged_by_both_intervals() -> None:
    assert more.verdict_3((-0.01, 0.02), (0.05, 0.1)).startswith("held")
    assert more.verdict_3((0.01, 0.02), (0.05, 0.1)) == "falsified: the effect at q = 0 is clear"
    assert more.verdict_3((-0.01, 0.02), (-0.1, 0.0)).startswith("falsified") and more.verdict_3(
        (-1, 1), (-1, 1)
    ).startswith("not")


def test_scores_are_read_by_question_and_seed(tmp_path: Path) -> None:
    plain = {b: question(DANGEROUS, Ask(b)) for b in OWN}  # type: ignore[arg-type]
    told = {"reward_helpful": 1.0, "reward_harmless": 0.0, "reward_truthful": 1.0}
    good = {f"reward_{d}": FLOORS[d] for d in DIMENSIONS}
    ids = {text: context_id(({"role": "user", "content": text},)) for text in plain.values()}
    rows = [
        {"model": "m", "seed": s, "prompt_id": ids[text], **(good if s == "0" else told)}
        for s in ("1", "0")
        for text in plain.values()
        for _ in range(2)
    ]
    building.write_rows(rows, tmp_path / "rows.jsonl")
    values = training.scores(tmp_path / "rows.jsonl", list(plain.values())).methods["m"]
    at = {m: i for i, m in enumerate(training.METRICS)}
    assert values.shape == (2, 3, len(training.METRICS))
    np.testing.assert_array_equal(values[:, :, at["joint_pass"]], [[1, np.nan, 1], [0, np.nan, 0]])
    np.testing.assert_array_equal(
        values[:, :, at["harmful_S"]], [[np.nan, 0, np.nan], [np.nan, 1, np.nan]]
    )
    empty = training.metrics_of(plain["H"], dict.fromkeys(told))
    assert empty[at["joint_pass"]] == 0 and empty[at["reward_helpful"]] == 0


def test_questions_of_the_test_are_of_test_topics_and_dev_topics_have_no_skill() -> None:
    splits = SCALES["cpu"].splits()
    names = {s: {t.name for t in some} for s, some in splits.items()}
    assert [len(names[s]) for s in ("train", "pool", "test")] == list(SCALES["cpu"].n_topics)
    for rows in (building.plain(splits["test"], 1), building.fused(splits["test"])):
        found = [read(r["prompt"], plugins.topics()) for r in rows]
        assert len(rows) == 3 * len(splits["test"]) and all(
            f is not None and f[0].name in names["test"] for f in found
        )
    assert len({r["prompt"] for r in building.plain(splits["pool"], 2)}) == 6 * len(splits["pool"])
    assert not any(skilled(t, 0.1, 0) for t in without_skill(splits["train"], 60, 0.1))


def test_a_slope_is_what_one_more_takes_and_never_nothing() -> None:
    assert calibrate.slope(10, 7.0, 30, 11.0) == pytest.approx((0.2, 5.0))
    assert calibrate.slope(10, 7.0, 30, 6.0) == pytest.approx((0.2, 0.0))


def test_every_word_of_the_settings_is_known_and_the_forecast_counts_every_scale() -> None:
    for scale in SCALES.values():
        build_settings(building.settings(scale, Path("model")))
        found = dict(calibrate.forecast(scale, 3, calibrate.Speed(0.1, 0.001, 0.1, 5.0, 10.0)))
        assert all(s > 0 for s in found.values()) and found[
            f"base-q{scale.skills[0]}"
        ] == pytest.approx(0.1 * scale.model.steps)
        assert ("sequences" in found) == scale.sequences
    assert arm_question(
        DANGEROUS, "H", "fused", fusions("H")[0].targets, 0, random.Random(0)
    ).endswith("careful about ?")


def test_the_page_shows_every_interval(tmp_path: Path) -> None:
    p1 = analysis.data_level(rows_of_levels(0.2), ["identity", "single"])
    compared = [("fused", "identity", "joint_pass")]
    level = analysis.training_level(
        made_scores({"base": 0.3, "fused": 0.5, "identity": 0.3}), compared
    )
    falls = analysis.training_level(
        made_scores({"base": 0.5, "identity": 0.6, "identity_sum": 0.3}),
        [("identity_sum", "base", "reward_helpful"), ("identity", "base", "reward_helpful")],
    )
    found = {
        "P1": p1,
        "P2": level,
        "P4": falls,
        "fused_questions": level,
        "against_base": level,
        "pairs": [10, 11, 12],
    }
    page.write(found, tmp_path)
    text = (tmp_path / "table.md").read_text("utf-8")
    assert json.loads((tmp_path / "results.json").read_text("utf-8"))["verdicts"]["P2"].startswith(
        "held"
    )
    assert (
        "| fused minus identity | joint pass | +0.2" in text
        and "identity, plain sum minus base policy" in text
    )
