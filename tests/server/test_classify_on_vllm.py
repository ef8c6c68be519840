"""Rewards over real vLLM servers: a tiny sequence classifier behind /classify and /pooling, and a
judge's expected score.

The classifier is the tiny chat model with a random head; transformers' own logits for the same
conversations are the oracle.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.real_server import ROOT, RealServer, vllm_python
from support.tiny import tiny_model

from mora_data.engines import connect
from mora_data.engines.cached_client import CachedClient
from mora_data.rewards import load
from mora_data.rewards.classifier import BEAVER
from mora_data.run.log import AnswerLog
from mora_data.run.stats import RunStats
from mora_data.settings import BuildSettings, build_settings
from mora_data.types import Message, Messages, Score

pytestmark = pytest.mark.server

LABELS = ["bad", "fair", "good"]
ASKED: Messages = (Message(role="user", content="How do I learn about bees?"),)
TALK: Messages = (
    Message(role="system", content="Be brief."),
    Message(role="user", content="Hello."),
    Message(role="assistant", content="Good day."),
    *ASKED,
)
ANSWERS = [
    "Sure. You can read a book on bees in a quiet place.",
    "Bye.",
    "It helps to ask a friend. " * 12,
    "Über Bienen: 蜂 🐝",
    *(f"Take care, and go slowly with {i} of them." for i in range(28)),
]


def texts_of(messages: Messages, layout: str | None) -> list[Any]:
    if layout:
        return [layout.format(question=messages[-1]["content"], answer=a) for a in ANSWERS]
    return [[*messages, {"role": "assistant", "content": a}] for a in ANSWERS]


CASES = {"chat": (ASKED, None), "talk": (TALK, None), "beaver": (ASKED, BEAVER)}


@pytest.fixture(scope="module")
def classifier(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict[str, list[list[float]]]]:
    """The model's folder, and transformers' logits for every case."""
    out = tmp_path_factory.mktemp("classifier") / "model"
    said = [t for messages, layout in CASES.values() for t in texts_of(messages, layout)]
    made = subprocess.run(
        [
            vllm_python(),
            str(ROOT / "tests/support/make_classifier.py"),
            str(tiny_model(vllm_python())),
            str(out),
            str(len(LABELS)),
        ],
        input=json.dumps(said),
        capture_output=True,
        text=True,
        check=True,
    )
    logits = json.loads(made.stdout)
    n = len(ANSWERS)
    return out, {name: logits[i * n : (i + 1) * n] for i, name in enumerate(CASES)}


@pytest.fixture(scope="module")
def rater(
    classifier: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RealServer]:
    with RealServer(
        classifier[0], tmp_path_factory.mktemp("rater") / "server.log", name="rm"
    ) as running:
        yield running


def build(url: str, dimension: str = "helpful", **reward: Any) -> BuildSettings:
    return build_settings(
        {
            "name": "x",
            "source": {"kind": "jsonl"},
            "dimensions": [dimension],
            "policy": {"base_url": url},
            "rewards": {dimension: [{"endpoint": {"base_url": url}, **reward}]},
        }
    )


def rated(
    settings: BuildSettings, folder: Path, messages: Messages, answers: list[str], stats: RunStats
) -> list[Score]:
    async def run() -> list[Score]:
        engines = connect(settings, False, stats)
        log = AnswerLog(folder / "answers.log")
        (dimension,) = settings.dimensions
        reward = load(dimension, settings.reward_sources(dimension)[0], settings)
        try:
            return await reward.scores(
                CachedClient(engines, log, 0, stats), "p", messages, answers, "score"
            )
        finally:
            log.close()
            for engine in set(engines.values()):
                await engine.close()

    return asyncio.run(run())


def seen(server: RealServer, path: str) -> int:
    return sum(
        int(v)
        for k, v in server.metrics().items()
        if k.startswith("http_requests_total{") and f'handler="{path}"' in k
    )


@pytest.mark.parametrize("task", ["classify", "pooling"])
@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(
    case: str, task: str, rater: RealServer, classifier: tuple[Path, Any], tmp_path: Path
) -> None:
    (messages, layout), oracle = CASES[case], classifier[1][case]
    before, stats = seen(rater, f"/{task}"), RunStats()
    worst = 0.0
    for k, label in enumerate(LABELS):
        settings = build(
            rater.base_url, kind="classifier", task=task, labels=LABELS, label=label, layout=layout
        )
        found = rated(settings, tmp_path, messages, ANSWERS, stats)
        worst = max(
            worst,
            *(
                abs((s.raw if s.raw is not None else 9e9) - o[k])
                for s, o in zip(found, oracle, strict=True)
            ),
        )
    print(f"{case} {task}: largest difference {worst:.2e}", file=sys.stderr)
    assert worst < 1e-3
    # the other labels came from the log
    assert stats.sent == seen(rater, f"/{task}") - before == len(ANSWERS)
    assert len({o[0] for o in oracle}) == len(ANSWERS)


def test_probabilities_are_ours_and_the_label_count_is_checked(
    rater: RealServer, classifier: tuple[Path, Any], tmp_path: Path
) -> None:
    import math

    settings = build(
        rater.base_url, kind="classifier", labels=LABELS, label="good", activation="softmax"
    )
    for found, o in zip(
        rated(settings, tmp_path, ASKED, ANSWERS, RunStats()), classifier[1]["chat"], strict=True
    ):
        assert found.value == pytest.approx(math.exp(o[2]) / sum(math.exp(x) for x in o), abs=1e-4)
    wrong = build(rater.base_url, "harmless", kind="classifier", family="beaver-cost")
    assert {s.reason for s in rated(wrong, tmp_path, ASKED, ANSWERS[:3], RunStats())} == {
        "label_count: 3 outputs, 1 labels"
    }


def test_a_text_that_is_too_long_is_one_reason(rater: RealServer, tmp_path: Path) -> None:
    settings = build(rater.base_url, kind="classifier", labels=LABELS, label="good")
    good, long = rated(settings, tmp_path, ASKED, ["Fine.", "word " * 4000], RunStats())
    assert good.raw is not None and long.value is long.raw is None
    assert long.reason.startswith("HTTP 400: This model's maximum context length is 2048 tokens")


def test_expected_scores_follow_the_probabilities_of_the_score_token(
    server: RealServer, tmp_path: Path
) -> None:
    """The judge answers under a pattern; the reply's digit and the digits of its alternatives make
    the mean."""
    answers = [
        f"Sure. It helps to ask a friend. {end}"
        for end in ("That is all I know.", "Have fun!", "I hope this helps.")
    ]
    whole = rated(build(server.base_url, kind="judge"), tmp_path, ASKED, answers, RunStats())
    found = rated(
        build(server.base_url, kind="judge", expected=True), tmp_path, ASKED, answers, RunStats()
    )
    assert all(s.value is not None and s.raw in (1, 2, 3, 4, 5) for s in whole)
    assert all(
        s.raw is not None and 1 <= s.raw <= 5 and s.value == pytest.approx((s.raw - 1) / 4)
        for s in found
    )
    assert any(s.raw != int(s.raw or 0) for s in found)
