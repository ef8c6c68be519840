"""The harm check may refuse only by a rule that its model followed on worked examples."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from support.fake_openai import FakeOpenAI, Fault, harm_levels, harm_of_example

from mora_data.cli import main
from mora_data.pipeline.asking import GUARD_EXAMPLES
from mora_data.pipeline.judge_calibration import judged
from mora_data.rewriting.guard import refuses
from mora_data.simulator.language import interpret


@pytest.mark.parametrize(
    ("about", "asking", "rule"),
    [
        ([0.0] * 6, [1.0] * 6, "rise"),
        ([0.25] + [0.0] * 5, [0.25] * 4 + [0.0] * 2, "rise"),  # one wrong, four caught
        ([0.75] * 6, [1.0] * 6, "sure"),  # asking about harm is taken for harm, but not surely
        ([0.5, 0.5, *[0.0] * 4], [1.0] * 4 + [0.75] * 2, "sure"),
        ([1.0] * 6, [1.0] * 6, "off"),  # one level for everything
        ([0.0] * 6, [0.0] * 6, "off"),
        ([None] * 6, [None] * 6, "off"),  # nothing that can be read
        ([0.75] * 6, [1.0] * 3 + [0.75] * 3, "off"),
    ],
)
def test_the_strictest_rule_that_tells_the_examples_apart(
    about: list[float | None], asking: list[float | None], rule: str
) -> None:
    found = judged([0.0] * 6, about, asking, "a-judge")
    assert found["rule"] == rule and found["n"] == 6
    assert ("doubt" in found) == (rule != "rise")
    if rule != "rise":
        assert "a-judge" in found["doubt"] and "fuse.guard" in found["doubt"]
        assert ("THE HARM CHECK IS OFF" in found["doubt"]) == (rule == "off")


def test_what_the_rules_refuse() -> None:
    """Never what was as harmful before; and None is not harmless."""
    cases = [(0.0, 0.25), (0.0, 1.0), (1.0, 1.0), (0.75, 1.0), (None, 0.75), (0.0, None)]
    by_rule = {r: [refuses(r, *c) for c in cases] for r in ("rise", "sure", "off")}
    assert by_rule == {
        "rise": [True, True, False, True, True, True],
        "sure": [False, True, False, True, False, True],
        "off": [False] * 6,
    }


def test_the_examples_are_what_they_say() -> None:
    levels = harm_levels()
    assert len(levels) == GUARD_EXAMPLES
    for text, level in levels.items():
        assert level < 5 or interpret(text, True).risky, text
        assert len(text) < 200


def build(server: FakeOpenAI, out: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    url = server.base_url
    capsys.readouterr()
    words = "fuse.arms=[fused] presample.n=[2] rollout.n=2 fuse.retries=0 presample.canaries=0"
    code = main(
        [
            *("build", "--source", "pku-saferlhf", "--sample", "--limit", "2", "--json"),
            *("--base-url", url, "--judge-base-url", url, "--out", str(out), "--until", "fuse"),
            *(w for text in words.split() for w in ("--set", text)),
        ]
    )
    printed, err = capsys.readouterr()
    assert code == 0, err
    return {**json.loads(printed), "err": err}


def test_a_guard_that_takes_questions_about_harm_for_harm_is_told_of_and_tried_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its lower levels refuse nothing then, its highest does."""

    def script(body: dict[str, Any], time: int) -> Fault | None:
        level = harm_of_example(body)
        if level is None or "Check: harm" not in body["messages"][0]["content"]:
            return None
        asked = body["messages"][-1]["content"]
        careful = re.search("could go wrong|careful|be harmed", asked)
        return Fault(text=json.dumps({"score": 4 if careful else level}))

    with FakeOpenAI(script=script) as server:
        first = build(server, tmp_path, capsys)
        tried = [b for b in server.requests if harm_of_example(b) is not None]
        assert len(tried) == GUARD_EXAMPLES
        again = build(server, tmp_path, capsys)
        assert again["requests"] == 0 and server.repeated() == 0
    line = "The harm check refuses only what is surely harmful: of worked examples fake refuses 6"
    assert line in first["err"] and line in again["err"]
    reference = json.loads((tmp_path / "reference.json").read_text())
    assert reference["harm_guard"]["rule"] == "sure"
    assert reference["harm_guard"]["refused"]["sure"] == {"harmless": 0, "harmful": 6}
    assert any(line in d for d in reference["doubts"])
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["reference"]["doubts"] == reference["doubts"]
