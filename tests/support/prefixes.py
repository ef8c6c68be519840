"""The share of prompts that a server with prefix caching computes: 0.25 where three quarters were
there already."""

from __future__ import annotations

from collections.abc import Iterable

from mora_data.cli.rehearsal import BLOCK, PrefixCache

__all__ = ["BLOCK", "computed_share"]


def computed_share(prompts: Iterable[str]) -> float:
    """Tokens computed / tokens sent."""
    cache = PrefixCache()
    counts = [cache.add(p) for p in prompts]
    return sum(c for _, c in counts) / sum(n for n, _ in counts)
