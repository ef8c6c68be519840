"""What a server with prefix caching computes of the prompts that it is sent.

    cache = PrefixCache()
    cache.add(prompt)       (tokens sent, tokens computed)

A prompt is cut into blocks of 16 tokens, as vLLM does; a block is computed once for all prompts
that are the same up to its end, what is left behind the last whole block each time. Nothing is
forgotten.
"""

from __future__ import annotations

import re

BLOCK = 16
# words, single digits and marks: near to what the tokenizers of language models do with English
_TOKEN = re.compile(r" ?[^\W\d_]+|\d|_| ?[^\w\s]+|\s+")


class PrefixCache:
    """The blocks that were computed so far."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def add(self, prompt: str) -> tuple[int, int]:
        """Tokens of a prompt, and how many of them are computed."""
        tokens = _TOKEN.findall(prompt)
        computed, so_far = len(tokens) % BLOCK, 0
        for end in range(BLOCK, len(tokens) + 1, BLOCK):
            so_far = hash((so_far, *tokens[end - BLOCK : end]))
            computed += BLOCK * (so_far not in self._seen)
            self._seen.add(so_far)
        return len(tokens), computed
