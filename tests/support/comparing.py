"""A judge's reply to a comparison of two answers: the one that begins with `good` wins, whichever
comes first."""

from __future__ import annotations

import json
import re

from support.fake_openai import Fault


def winner(text: str) -> Fault | None:
    """The verdict on the two answers in a judge's request; None where it compares none."""
    if "<second-" not in text:
        return None
    first, second = (re.search(rf"<{n}-\w+>\s(\w+)", text) for n in ("first", "second"))
    good = [bool(m) and m[1] == "good" for m in (first, second)]
    return Fault(
        text=json.dumps(
            {"winner": "tie" if good[0] == good[1] else "first" if good[0] else "second"}
        )
    )
