"""Requests on one question begin alike, so that a server with prefix caching computes little."""

from __future__ import annotations

from typing import Any

import pytest
from support.prefixes import BLOCK, computed_share

from mora_data.cli import main
from mora_data.simulator.engine import Simulator
from mora_data.types import Answer, Request

SMALL = ("presample.n=[16]", "rollout.n=16", "fuse.checks=[harm,intent]")


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> list[Request]:
    """What a small build asks its judge."""
    found: list[Request] = []
    with pytest.MonkeyPatch.context() as patch:
        answer = Simulator.answer

        def heard(self: Simulator, request: Request, seed: int) -> list[Answer]:
            if request.role == "judge":
                found.append(request)
            return answer(self, request, seed)

        patch.setattr(Simulator, "answer", heard)
        run = tmp_path_factory.mktemp("run") / "run"
        command = ["build", "--source", "pku-saferlhf", "--sample", "--limit", "12"]
        command.append("--allow-unreliable")  # 36 answers scored twice say little
        sets = [word for s in SMALL for word in ("--set", s)]
        assert main([*command, "--until", "select", "--out", str(run), *sets, "--json"]) == 0
    return found


def said(request: Request) -> str:
    return "".join(f"<|{m['role']}|>\n{m['content']}\n" for m in request.messages)


def test_a_share_is_what_no_earlier_prompt_began_with() -> None:
    block = "word" + " word" * (BLOCK - 1)
    assert computed_share([block]) == 1.0
    assert computed_share([block] * 4) == 0.25
    assert computed_share([block + " a", block + " b"]) == (BLOCK + 2) / (2 * BLOCK + 2)
    assert computed_share(["other" + block, "word" + block]) == 1.0


def test_a_server_computes_at_most_a_quarter_of_the_judges_prompts(asked: list[Request]) -> None:
    assert len(asked) > 1000 and any(r.purpose == "confirm" for r in asked)
    share = computed_share(map(said, asked))
    print(share)
    assert share <= 0.25


def test_nothing_that_differs_between_answers_stands_before_the_answer(
    asked: list[Request],
) -> None:
    """One system turn per dimension, for what is confirmed, too, and one per check."""
    systems: dict[Any, set[str]] = {}
    until_answer: dict[Any, set[str]] = {}
    for r in asked:
        system, *_, user = (m["content"] for m in r.messages)  # examples between
        kind = system.splitlines()[1]
        systems.setdefault(kind, set()).add(system)
        if "<answer-" in user:
            shared = user[: user.rindex("<answer-")]
            question = shared.splitlines()[1:-1]
            until_answer.setdefault(tuple(question), set()).add(shared)
    assert len(systems) == 3 + 2
    assert all(len(texts) == 1 for texts in systems.values())
    assert len(until_answer) >= 12 and all(len(texts) == 1 for texts in until_answer.values())
