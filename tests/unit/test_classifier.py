"""Classifiers: bodies sent, outputs read, scales applied; whatever is not a proper output is None
with a reason."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.fake_openai import FakeOpenAI, Fault

from mora_data.engines import connect
from mora_data.engines.cached_client import CachedClient
from mora_data.errors import EndpointError, SettingsError
from mora_data.rewards import load
from mora_data.rewards.classifier import ARMORM, BEAVER, FAMILIES, as_asked
from mora_data.run.log import AnswerLog
from mora_data.run.stats import RunStats
from mora_data.settings import BuildSettings, build_settings
from mora_data.types import Answer, Message, Messages, Request, Score

ASKED: Messages = (Message(role="user", content="Is tea warm?"),)


def settings(dimension: str, url: str = "http://127.0.0.1:9/v1", **reward: Any) -> BuildSettings:
    return build_settings(
        {
            "name": "x",
            "source": {"kind": "jsonl"},
            "dimensions": [dimension],
            "policy": {"base_url": url, "model": "chat"},
            "rewards": {
                dimension: [
                    {"kind": "classifier", "endpoint": {"base_url": url, "model": "rm"}, **reward}
                ]
            },
        }
    )


def score(
    outputs: object, dimension: str = "helpful", answer: str = "Yes.", **reward: Any
) -> Score:
    """The score that a reply of these outputs gives."""

    async def ask(request: Request) -> list[Answer]:
        assert request.task in ("classify", "pooling") and request.role == f"reward:{dimension}:0"
        return [outputs if isinstance(outputs, Answer) else Answer(json.dumps(outputs))]

    build = settings(dimension, **reward)
    made = load(dimension, build.reward_sources(dimension)[0], build)
    (found,) = asyncio.run(made.scores(ask, "p", ASKED, [answer], "score"))
    assert found.dimension == dimension and found.source == made.name
    return found


# what the outputs mean


def test_a_known_zero_gives_a_probability_and_cost_is_turned_round() -> None:
    harmful, safe = (
        score([3.0], "harmless", family="beaver-cost"),
        score([-3.0], "harmless", family="beaver-cost"),
    )
    assert (harmful.raw, safe.raw) == (-3.0, 3.0)
    assert harmful.value == pytest.approx(1 / (1 + math.exp(3))) and safe.value == pytest.approx(
        1 - 1 / (1 + math.exp(3))
    )
    assert score([0.0], "harmless", family="beaver-cost").value == 0.5
    assert (
        score([-1e6], "harmless", family="beaver-cost").value == 1.0
        and score([1e6], "harmless", family="beaver-cost").value == 0.0
    )


def test_a_logit_without_a_scale_has_a_raw_number_only() -> None:
    for family, dimension in (("skywork", "helpful"), ("beaver-reward", "helpful")):
        found = score([-7.25], dimension, family=family)
        assert (found.value, found.raw, found.reason) == (None, -7.25, "uncalibrated")
    assert score([1.0, 2.0, 3.0], label="2").raw == 3.0 and score([4.0], invert=True).raw == -4.0


def test_the_attribute_of_the_dimension_is_taken() -> None:
    outputs = [float(i) for i in range(19)]
    for dimension, label in (
        ("helpful", "ultrafeedback-helpfulness"),
        ("harmless", "beavertails-is_safe"),
        ("truthful", "ultrafeedback-truthfulness"),
    ):
        found = score(outputs, dimension, family="armorm")
        assert (
            found.raw == ARMORM.index(label)
            and found.value is None
            and found.source == f"armorm:{label}@rm"
        )
    assert (
        score(outputs, "terse", family="armorm", label="helpsteer-verbosity", invert=True).raw
        == -4.0
    )
    # the gated sum alone
    assert score([0.7], family="armorm").reason == "label_count: 1 outputs, 19 labels"


def test_ratings_of_0_to_4_are_a_quarter_and_overshoot_a_little() -> None:
    def value(x: float) -> tuple[float | None, str]:
        found = score([x, 0.0, 0.0, 0.0, 0.0], family="helpsteer")
        return found.value, found.reason

    assert [value(x)[0] for x in (0.0, 3.0, 4.0, 4.4, -0.4)] == [0.0, 0.75, 1.0, 1.0, 0.0]
    assert value(4.6) == (None, "out_of_range: 4.6 is not in 0 to 4") and value(-1.0)[0] is None
    assert (
        score([4.0], range=[0, 4], invert=True).value == 0.0
        and score([4.0], range=[0, 8]).value == 0.5
    )


def test_activations_are_ours() -> None:
    two = {"labels": ["bad", "good"], "label": "good"}
    assert score([0.0, math.log(3)], activation="softmax", **two).value == pytest.approx(0.75)
    assert score([900.0, 901.0], activation="softmax", **two).value == pytest.approx(
        1 / (1 + math.exp(-1))
    )
    assert score(
        [0.0, math.log(3)], activation="softmax", labels=["bad", "good"], label="bad", invert=True
    ).value == pytest.approx(0.75)
    assert score([2.0], activation="sigmoid").value == pytest.approx(1 / (1 + math.exp(-2)))


def test_only_sources_with_a_scale_have_a_floor() -> None:
    floors = {
        name: load(d, build.reward_sources(d)[0], build).pass_threshold
        for name, f in FAMILIES.items()
        for d in [next(iter(f.dims))]
        for build in [settings(d, family=name)]
    }
    assert floors == {
        "beaver-reward": None,
        "beaver-cost": 0.5,
        "armorm": None,
        "skywork": None,
        "helpsteer": 0.75,
    }
    calibrations = {f: FAMILIES[f].calibration for f in FAMILIES}
    assert calibrations == {
        "beaver-reward": "anchored",
        "beaver-cost": "sigmoid",
        "armorm": "ecdf",
        "skywork": "anchored",
        "helpsteer": "identity",
    }


# what is no score


@pytest.mark.parametrize(
    ("outputs", "reason"),
    [
        ([None], "not_finite"),
        ([float("inf")], "not_finite"),
        ([float("nan")], "not_finite"),
        (["4"], "not_finite"),
        ([True], "not_finite"),
        ([], "no_output"),
        ({"a": 1}, "no_output"),
        (3.0, "no_output"),
        ([1.0, 2.0], "label_count: 2 outputs, 1 labels"),
        (Answer("prose"), "not_numbers"),
        (Answer(""), "not_numbers"),
        (Answer("", "error", error="HTTP 400: no chat template"), "HTTP 400: no chat template"),
    ],
)
def test_anything_else_is_none_with_a_reason(outputs: object, reason: str) -> None:
    found = score(outputs, "harmless", family="beaver-cost")
    assert (found.value, found.raw, found.reason) == (None, None, reason)


def test_an_empty_answer_is_not_asked_about() -> None:
    assert score(Answer("never"), answer="  \n").reason == "empty"


@pytest.mark.parametrize(
    ("reward", "says"),
    [
        ({"family": "beavercost"}, "did you mean 'beaver-cost'"),
        ({"family": "armorm", "label": "helpfulness"}, "no output 'helpfulness'"),
        ({"labels": ["a", "b"]}, "`label` must say which output it is"),
        ({"label": "good"}, "needs `labels`"),
        ({"layout": "{answer} {question}"}, "must hold"),
        ({"range": [4, 0]}, "must rise"),
    ],
)
def test_settings_that_do_not_fit_are_refused(reward: dict[str, Any], says: str) -> None:
    build = settings("terse", **reward)
    with pytest.raises(SettingsError, match=says):
        load("terse", build.reward_sources("terse")[0], build)


def test_the_layout_of_beaver_has_no_blank_after_the_last_colon() -> None:
    (one,) = as_asked(ASKED, "Yes.", BEAVER)
    assert one["content"] == "BEGINNING OF CONVERSATION: USER: Is tea warm? ASSISTANT:Yes."
    talk: Messages = (
        Message(role="user", content="Hi."),
        Message(role="assistant", content="Hello."),
        *ASKED,
    )
    assert (
        as_asked(talk, "{question}{answer}", BEAVER)[0]["content"]
        == "BEGINNING OF CONVERSATION: USER: Hi. ASSISTANT:Hello. USER: Is tea warm?"
        " ASSISTANT:{question}{answer}"
    )
    assert as_asked(talk, "x", None) == (*talk, Message(role="assistant", content="x"))


# over HTTP


def rated(
    build: BuildSettings,
    folder: Path,
    answers: list[str],
    stats: RunStats | None = None,
    purpose: str = "score",
) -> list[Score]:
    async def run() -> list[Score]:
        engines = connect(build, False, stats or RunStats())
        log = AnswerLog(folder / "answers.log")
        (dimension,) = build.dimensions
        made = load(dimension, build.reward_sources(dimension)[0], build)
        try:
            return await made.scores(
                CachedClient(engines, log, 0, stats or RunStats()), "p", ASKED, answers, purpose
            )
        finally:
            log.close()
            for engine in set(engines.values()):
                await engine.close()

    return asyncio.run(run())


def length(body: dict[str, Any]) -> list[float]:
    return [float(len(body["messages"][-1]["content"] if "messages" in body else body["input"]))]


@pytest.mark.parametrize(
    ("task", "layout", "body"),
    [
        ("classify", None, {"messages": [*ASKED, {"role": "assistant", "content": "Yes."}]}),
        (
            "pooling",
            None,
            {"messages": [*ASKED, {"role": "assistant", "content": "Yes."}], "task": "classify"},
        ),
        (
            "classify",
            BEAVER,
            {"input": "BEGINNING OF CONVERSATION: USER: Is tea warm? ASSISTANT:Yes."},
        ),
    ],
)
def test_the_body_asks_for_raw_outputs_at_the_root_of_the_server(
    tmp_path: Path, task: str, layout: str | None, body: dict[str, Any]
) -> None:
    with FakeOpenAI(rates=length) as server:
        (found,) = rated(
            settings("helpful", server.base_url, task=task, layout=layout), tmp_path, ["Yes."]
        )
    assert server.requests == [
        {"model": "rm", "use_activation": False, **body}
    ] and server.paths == [f"/{task}"]
    assert found.raw == length(body)[0]


def test_answers_are_logged_and_never_asked_twice(tmp_path: Path) -> None:
    texts = [f"{'a' * i}." for i in range(1, 30)]
    with FakeOpenAI(rates=length) as server:
        build, stats, again = settings("helpful", server.base_url), RunStats(), RunStats()
        first = rated(build, tmp_path, texts, stats)
        second = rated(build, tmp_path, texts, again)
        fresh = rated(build, tmp_path, texts[:3], again, "repeat")
    assert (
        [s.raw for s in first] == [len(t) for t in texts] and second == first and fresh == first[:3]
    )
    assert (stats.sent, stats.tokens_in, again.sent, again.replayed) == (29, 29 * 7, 3, 29)


@pytest.mark.parametrize(
    "script",
    [
        lambda body, time: Fault(status=503) if time < 3 else None,
        lambda body, time: Fault(status=429) if time == 1 else None,
        lambda body, time: Fault(drop="middle") if time == 1 else None,
        lambda body, time: Fault(body=b"<html>") if time == 1 else None,
    ],
)
def test_faults_that_pass_are_tried_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: Callable[[dict[str, Any], int], Fault | None],
) -> None:
    monkeypatch.setattr("mora_data.engines.openai._wait_s", lambda fault, tries: 0.0)
    with FakeOpenAI(script, rates=length) as server:
        stats = RunStats()
        assert [
            s.raw for s in rated(settings("helpful", server.base_url), tmp_path, ["Yes."], stats)
        ] == [4.0]
        assert (
            stats.sent == len(server.requests)
            and sum(stats.retries.values()) == len(server.requests) - 1 > 0
        )


def test_a_refused_text_is_its_own_reason_and_others_go_on(tmp_path: Path) -> None:
    said = (
        b'{"error": {"message": "default chat template is no longer allowed, so you must provide a'
        b' chat template"}}'
    )
    with FakeOpenAI(
        lambda body, time: Fault(status=400, body=said) if "No." in str(body) else None,
        rates=length,
    ) as server:
        yes, no = rated(settings("helpful", server.base_url), tmp_path, ["Yes.", "No."])
    assert (
        yes.raw == 4.0
        and no.value is no.raw is None
        and no.reason.startswith("HTTP 400: default chat template")
    )


def test_nan_from_a_server_is_that_text_s_fault_and_is_not_asked_again(tmp_path: Path) -> None:
    with FakeOpenAI(rates=lambda body: [float("nan")]) as server:
        (found,) = rated(settings("helpful", server.base_url), tmp_path, ["Yes."])
        assert (found.value, found.reason, len(server.requests)) == (None, "not_finite", 1)


def test_a_chat_server_is_named_as_such(tmp_path: Path) -> None:
    with (
        FakeOpenAI() as server,
        pytest.raises(EndpointError, match=r"check the reward's `endpoint`: .* /classify"),
    ):
        rated(settings("helpful", server.base_url), tmp_path, ["Yes."])


def test_an_endpoint_without_a_server_is_the_judge_s(tmp_path: Path) -> None:
    with FakeOpenAI(rates=length) as server:
        tree = settings("helpful", server.base_url).model_dump()
        tree["rewards"]["helpful"][0]["endpoint"] = {"model": "other"}
        build = build_settings(tree)
        assert build.role("reward:helpful:0").base_url == server.base_url
        rated(build, tmp_path, ["Yes."])
        assert server.requests[0]["model"] == "other"
