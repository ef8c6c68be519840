"""Lengths of texts: the fast count is the count."""

from __future__ import annotations

import random
import re

from mora_data import text


def test_the_fast_length_of_ascii_is_that_of_the_pattern() -> None:
    rng = random.Random(1)
    alphabet = [chr(c) for c in range(128)] + list("éß½²漢\u00a0\u2003’")
    for k in range(2000):
        value = "".join(rng.choices(alphabet[:128] if k % 5 else alphabet, k=rng.randrange(40)))
        assert text.n_tokens(value) == len(re.findall(r"\w+|[^\w\s]", value)), repr(value)
    for c in alphabet:
        assert text.n_tokens(f"a{c}b") == len(re.findall(r"\w+|[^\w\s]", f"a{c}b")), repr(c)
