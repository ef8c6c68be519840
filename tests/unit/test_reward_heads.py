"""Reward heads on made-up embeddings: the fit, the splits, the reward that a build loads."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import heads, reward_heads
from benchmarks.reward_heads import Pair, fit_head, held_out, row, shared_axis, sides
from mora_data.errors import SettingsError
from mora_data.rewards import load
from mora_data.settings import RewardSettings, build_settings
from mora_data.types import Message

SIZE = 6
BUILD = build_settings({"name": "x", "source": {"kind": "jsonl"}})


def vector(text: str) -> heads.Floats:
    """A unit vector that follows from the text; "good" moves it along the first axis."""
    found = np.random.default_rng(list(text.encode())).normal(size=SIZE)
    found[0] += 2.0 * ("good" in text)
    return found / np.linalg.norm(found)


def world(n: int) -> tuple[list[Pair], dict[str, heads.Floats]]:
    """Pairs of which the better answer is never the longer one."""
    pairs = [
        Pair("made up", f"q{i // 2}", f"q{i // 2}", f"good {i}", f"plain {i}") for i in range(n)
    ]
    texts = {text for p in pairs for text in (p.question, p.better, p.worse)}
    return pairs, {text: vector(text) for text in texts}


@pytest.fixture(scope="module")
def fitted() -> tuple[heads.Weights, list[Pair], dict[str, heads.Floats]]:
    pairs, vectors = world(600)
    training = [pair for pair in pairs if not held_out(pair)]
    return fit_head(training, vectors, 1.0, "an encoder"), pairs, vectors


def test_a_head_ranks_pairs_of_prompts_that_it_has_not_seen(fitted) -> None:  # type: ignore[no-untyped-def]
    head, pairs, vectors = fitted
    unseen = [pair for pair in pairs if held_out(pair)]
    assert 60 < len(unseen) < 200
    better, worse = (head.values(head.logits(side)) for side in sides(unseen, vectors))
    assert (better > worse).mean() > 0.85
    assert worse.min() > 0 and better.max() < 1
    assert np.concatenate([better, worse]).mean() == pytest.approx(0.5, abs=0.05)
    line = row("helpful", "made up", unseen, head, vectors, longer=True)
    assert line.startswith(f"| helpful | made up | {len(unseen)} (") and "| 0.00 (" in line


def test_nothing_is_learned_where_labels_are_drawn_by_a_coin(fitted) -> None:  # type: ignore[no-untyped-def]
    _, pairs, vectors = fitted
    coin = np.random.default_rng(0).random(len(pairs)) < 0.5
    drawn = [
        p._replace(better=p.worse, worse=p.better) if c else p
        for p, c in zip(pairs, coin, strict=True)
    ]
    head = fit_head([p for p in drawn if not held_out(p)], vectors, 1.0, "an encoder")
    better, worse = (head.logits(s) for s in sides([p for p in drawn if held_out(p)], vectors))
    assert 0.3 < (better > worse).mean() < 0.7


def test_the_pairs_of_the_judges_are_in_no_training_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    people = [(f"Question {i}?", "Better.", "Worse.") for i in range(60)]
    monkeypatch.setattr(reward_heads, "pku", lambda data: iter(people))
    monkeypatch.setattr(reward_heads, "hh", lambda data: iter(people[:50]))
    others = [Pair("other", f"QUESTION {i}? ", "What?", "Good.", "Bad.") for i in range(60, 65)]
    again = [Pair("other", p.upper(), "What?", "Good.", "Bad.") for p, _, _ in people]
    for name in ("hh_rlhf", "do_not_answer", "ultrafeedback", "truthfulqa"):
        monkeypatch.setattr(reward_heads, name, lambda *_: iter(others + again))
    found = reward_heads.read(tmp_path)
    asked = {p.prompt.lower().strip() for _, held in found.values() for p in held}
    assert len(asked) >= 20
    for labelled, _ in found.values():
        assert {p.prompt for p in labelled} >= {p.prompt for p in others}
        assert not {p.prompt.lower().strip() for p in labelled} & asked


def test_heads_that_contradict_each_other_are_found(fitted) -> None:  # type: ignore[no-untyped-def]
    head, pairs, vectors = fitted
    both = {"helpful": head, "harmless": replace(head, weights_F=-head.weights_F)}
    assert shared_axis(pairs[:50], both, vectors) == (
        "correlation of margins: helpful and harmless -1.00; all alike in 0.00 of 50"
    )


def test_the_middle_plain_answer_is_placed_at_a_half(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="add it to fuse"):
        reward_heads.place(tmp_path)
    part = tmp_path / "parts" / "00000"
    part.mkdir(parents=True)
    columns = {"purpose": ["score"] * 5, "dimension": ["harmless"] * 5, "source": ["head"] * 5}
    columns |= {"arm": [*["identity"] * 4, "fused"], "raw": [-3.0, -2.0, -1.0, None, 9.0]}
    pq.write_table(pa.table(columns), part / "scores.parquet")
    reward_heads.place(tmp_path)
    assert capsys.readouterr().out == (
        "harmless, head, 3 answers: calibration:"
        " {kind: sigmoid, zero: -2.0000, temperature: 0.4797}\n"
    )


def test_a_build_loads_a_head_and_its_scores_do_not_depend_on_neighbours(
    fitted,  # type: ignore[no-untyped-def]
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights of an encoder")
    file = tmp_path / "harmless.npz"
    sha256 = heads.encoder_sha256(str(tmp_path))
    replace(fitted[0], encoder=sha256).save(file)
    monkeypatch.setattr(heads, "encoder", lambda _: lambda texts: np.stack([*map(vector, texts)]))
    options = {"weights": str(file), "encoder": str(tmp_path)}
    settings = RewardSettings.model_validate({"kind": "benchmarks.heads:Head", **options})
    head = load("harmless", settings, BUILD)
    question = (
        Message(role="system", content="Be short."),
        Message(role="user", content="q1"),
    )

    async def scores(answers: list[str]) -> list[float | None]:
        return [s.value for s in await head.scores(None, "p", question, answers, "score")]  # type: ignore[arg-type]

    both = asyncio.run(scores(["good 7", "plain 8", " "]))
    assert both == asyncio.run(scores(["good 7"])) + asyncio.run(scores(["plain 8"])) + [None]
    assert both[0] > both[1]  # type: ignore[operator]

    replace(fitted[0], encoder="another").save(file)
    with pytest.raises(SettingsError, match="fitted with another encoder"):
        load("harmless", settings, BUILD)
    file.write_text(json.dumps({}))
    with pytest.raises(SettingsError, match="can't read the head"):
        load("harmless", settings, BUILD)
