"""What is read in a refusal, and what is kept of it; tests/integration/test_endpoints.py has the
behaviours of servers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.endpoint_cases import JUDGE, SAMPLE, TURNS, ask, error
from support.fake_openai import FakeOpenAI

from mora_data.engines.dialect import FILE, Dialect, Known, Refusal
from mora_data.errors import EndpointError


def test_what_refuses_everything_stops_the_run(tmp_path: Path) -> None:
    fault = error(400, "Your project may not use this model in your region")
    with FakeOpenAI(lambda body, time: fault) as server:
        with pytest.raises(EndpointError, match="may not use this model in your region"):
            ask(server, tmp_path, JUDGE, SAMPLE)
        assert len(server.requests) < 8
    assert (tmp_path / "answers.log").stat().st_size == 0


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"detail": "max_tokens: unknown field"}', "max_tokens"),
        (b'{"object": "error", "message": "top_p must be 1"}', "top_p"),
        (b'"temperature is fixed"', "temperature"),
        (b"<html>Bad Gateway</html>", None),
        (b"", None),
        (b'{"error": {"message": null}}', None),
        (b'{"detail": [1, {"loc": null}]}', None),
    ],
)
def test_bodies_of_errors(body: bytes, field: str | None) -> None:
    sent = {"messages": list(TURNS), "max_tokens": 5, "top_p": 0.9, "temperature": 0.5}
    assert Refusal(400, body).field(sent) == field


def test_what_is_known_stays_beside_what_the_role_sets(tmp_path: Path) -> None:
    """A role that leaves `n` out still asks by the name that was learned for max_tokens."""
    learned = Dialect(tokens_field="max_completion_tokens", without=("seed",))
    Known(tmp_path).put("here", learned)
    found = Known(tmp_path).get("here", Dialect(many=False, without=("stop",)))
    assert found == replace(learned, many=False, without=("seed", "stop"))


@pytest.mark.parametrize("text", ["", "[]", '{"x": 1}', "nope", '{"PLACE": {"json_step": 99}}'])
def test_a_damaged_file_teaches_nothing(text: str, tmp_path: Path) -> None:
    with FakeOpenAI() as server:
        (tmp_path / FILE).write_text(text.replace("PLACE", f"{server.base_url} fake"))
        assert not ask(server, tmp_path, SAMPLE)[0][0][0].error
