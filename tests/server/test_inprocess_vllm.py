"""The engine `vllm` without a server: a real vLLM in a process of its own, one that imports
mora_data."""

from __future__ import annotations

import json
import os
import re
import subprocess
from typing import Any

import pytest
from support.real_server import ROOT, START_S, vllm_python
from support.tiny import tiny_model

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    where = tmp_path_factory.mktemp("inprocess")
    quiet = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "DO_NOT_TRACK": "1",
        "PYTHONPATH": str(ROOT),
    }
    python = vllm_python()
    with (where / "stderr").open("wb") as err:
        done = subprocess.run(
            [
                python,
                str(ROOT / "tests/support/inprocess_vllm.py"),
                str(tiny_model(python)),
                str(where / "rm"),
            ],
            env={**os.environ, **quiet},
            stdout=subprocess.PIPE,
            stderr=err,
            timeout=4 * START_S,
            check=False,
        )
    assert done.returncode == 0, (where / "stderr").read_text("utf-8", "replace")[-3000:]
    # stdout is for results: vLLM's own lines go elsewhere
    (line,) = done.stdout.decode().splitlines()
    tree: dict[str, Any] = json.loads(line)
    return tree


def texts(answers: list[dict[str, Any]]) -> list[str]:
    assert all(a["error"] is None for a in answers), answers
    return [a["text"] for a in answers]


def test_n_samples_each_with_its_own_seed(found: dict[str, Any]) -> None:
    """Samples 4 .. 7 asked for alone, by another process of the engine, are samples 4 .. 7 of
    eight."""
    chat = found["chat"]
    assert len(set(texts(chat["eight"]))) > 4 and set(texts(chat["other"])) != set(
        texts(chat["eight"])[:4]
    )
    assert texts(chat["late"]) == texts(chat["eight"])[4:]
    assert {
        a["finish_reason"] for some in chat.values() if isinstance(some[0], dict) for a in some
    } == {"stop", "length", "error"}
    assert all(a["tokens_out"] == 24 for a in chat["eight"] if a["finish_reason"] == "length")
    assert chat["tokens"][1] == sum(
        a["tokens_out"]
        for name, some in chat.items()
        if name not in ("tokens", "late")
        for a in some
    )


def test_stops_schema_and_pattern(found: dict[str, Any]) -> None:
    chat = found["chat"]
    assert all("." not in t for t in texts(chat["stop"])) and {
        a["finish_reason"] for a in chat["stop"]
    } == {"stop"}
    whole = [a for a in chat["json"] if a["finish_reason"] == "stop"]
    assert whole and all(json.loads(t)["score"] in range(1, 6) for t in texts(whole))
    assert all(re.fullmatch(r'\{"score": [1-5]\}', t) for t in texts(chat["pattern"]))


def test_logprobs(found: dict[str, Any]) -> None:
    for a in found["chat"]["logprobs"]:
        assert len(a["logprobs"]) == a["tokens_out"]
        assert all(
            0 < len(top) <= 3 and top == sorted(top, key=lambda pair: -pair[1])
            for _, top in a["logprobs"]
        )
    one, two = (a["logprobs"][0][1] for a in found["chat"]["logprobs"])
    assert one == two  # the first step does not depend on the sample


def test_a_prompt_that_is_too_long_fails_alone(found: dict[str, Any]) -> None:
    assert {a["error"] is not None for a in found["chat"]["long"]} == {True}
    assert re.match(
        r"the prompt has \d+ tokens, the model takes 1024", found["chat"]["long"][0]["error"]
    )


def test_classifier_outputs_are_transformers_own(found: dict[str, Any]) -> None:
    mine = [json.loads(t) for t in (texts(found["classify"][str(i)])[0] for i in range(3))]
    assert len({m[0] for m in mine}) == 3
    for a, b in zip(mine, found["own"], strict=True):
        assert a == pytest.approx(b, abs=1e-3)
