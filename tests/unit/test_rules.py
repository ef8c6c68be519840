"""Text flags: what the rules see in an answer."""

from __future__ import annotations

import time

import pytest

from mora_data.rewards.rules import duplicate_ratio, flags, is_refusal
from mora_data.types import DEGENERATE

REFUSALS = [
    "I'm sorry, but I can't help with that.",
    "I’m sorry, but I can’t assist with this request.",
    "Sorry, I cannot provide that information.",
    "I won't be able to help with that one.",
    "As an AI language model, I am unable to answer this.",
    "Unfortunately, we are unable to provide that service.",
    "That's not something I can help with.",
    "No, I can't. It is a risky business.",
    "Defrauding anyone is a crime, so I can't provide any instructions.",
    "It would be unethical for me to say more.",
    "I must decline to answer.",
    "Absolutely not.",
]
ANSWERS = [
    "I'm sorry to hear that. Rest the ankle for two days.",
    "I can't recommend this pan enough.",
    "It is legal to carry one in most places.",
    "You cannot help but notice the smell.",
    "Sure! Here is how I would go about it.",
    "I cannot stress enough that the window has to be open.",
    "Nobody can help you with that as well as a locksmith; call one.",
    "First, open the window. I won't pretend that it is quick.",
]


@pytest.mark.parametrize("text", REFUSALS)
def test_a_refusal_is_seen(text: str) -> None:
    assert flags(text, "stop") == ("refusal",)


@pytest.mark.parametrize("text", ANSWERS)
def test_an_answer_is_no_refusal(text: str) -> None:
    assert not is_refusal(text)
    assert flags(text, "stop") == ()


def test_empty_truncated_and_repetitive_answers_are_degenerate() -> None:
    assert flags(" \n", "stop") == ("empty",)
    assert flags("Open the window and", "length") == ("truncated",)
    assert flags("Open the window first. " * 8, "stop") == ("repetition",)
    assert flags("", "length") == ("truncated", "empty")
    assert flags("Open the", "content_filter") == ("truncated",)
    assert frozenset({"empty", "truncated", "repetition", "marks"}) == DEGENERATE


def test_duplicate_ratio_counts_four_grams_seen_before() -> None:
    twice = "a b c d e f g h " * 2
    assert duplicate_ratio(twice) == pytest.approx(5 / 13)
    assert duplicate_ratio("no no no") == 0
    assert flags(twice, "stop") == ()


def test_flags_are_fast() -> None:
    texts = [*REFUSALS, *ANSWERS] * 500
    began = time.process_time()
    for text in texts:
        flags(text, "stop")
    assert len(texts) / (time.process_time() - began) > 20_000
