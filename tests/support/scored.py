"""Small made-up `Scored` rows for the tests of the dataset folder, and a pick function of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mora_data.config import BuildSettings, build_settings
from mora_data.hub.folder import FolderResult, write_dataset
from mora_data.text import context_id, group_id
from mora_data.types import Message, Origin, Pair, Prompt, Rollout, Scored

DIMS = ("helpful", "harmless", "truthful")
ORIGIN = Origin(
    policy="org/policy@abc",
    judge="org/judge",
    rewriter="org/policy@abc",
    selector="dominance_hv",
    simulated=False,
    seed=7,
)
FLOORS = {"helpful": 0.75, "harmless": 0.5, "truthful": 0.75}
MANIFEST: dict[str, Any] = {
    "version": "v0.1.0",
    "created_with": "mora-data 0.1.0",
    "settings_hash": "0123abcd",
    "simulated": False,
    "settings": {"name": "toy", "policy": {"temperature": 1.0, "top_p": 0.95, "max_tokens": 512}},
    "counts": {
        "mine": {"in": 30, "kept": 24, "dropped": {"duplicate": 5, "too_long": 1}},
        "select": {"in": 24, "kept": 24, "dropped": {}},
    },
    "models": {"policy": "org/policy@abc", "judge": "org/judge"},
    "templates": {"judge/helpful": "ab" * 32},
    "reference": {"noise": {"helpful": 0.05, "harmless": 0.04, "truthful": 0.06}, "floors": FLOORS, "n": 1200},
    "tokens": {"in": 12345, "out": 67890},
    "pairs": 24,
}


def settings(**overrides: Any) -> BuildSettings:
    """Settings of a toy build."""
    tree: dict[str, Any] = {
        "name": "toy",
        "source": {"kind": "jsonl", "licence": "cc-by-4.0"},
        "dimensions": list(DIMS),
    }
    return build_settings({**tree, **overrides})


def one(
    i: int = 0,
    *,
    question: str | None = None,
    answers: tuple[str, ...] | None = None,
    rewards: Mapping[str, tuple[float | None, ...]] | None = None,
    pairs: tuple[Pair, ...] | None = None,
    history: tuple[Message, ...] = (),
    flags: tuple[tuple[str, ...], ...] = (),
    dims: tuple[str, ...] = DIMS,
) -> Scored:
    """One scored prompt with four answers; answer 0 beats answer 1 in every dimension."""
    messages: tuple[Message, ...] = (*history, {"role": "user", "content": question or f"How do I number {i} things?"})
    texts = answers or (f"Count {i} of them, slowly.", f"No idea {i}.", f"Ask {i} friends.", "")
    values = rewards or dict.fromkeys(dims, (1.0, 0.25, 0.5, None))
    prompt = Prompt(
        prompt_id=context_id(messages),
        messages=messages,
        group=group_id(messages),
        source_dataset="org/source",
        source_config="default",
        source_split="train",
        source_revision="a" * 40,
        source_row=i,
        source_licence="cc-by-4.0",
        category="sums" if i % 2 else None,
    )
    rollouts = tuple(
        Rollout(prompt.prompt_id, "fused", k, t, "stop", 5, flags[k] if flags else () if t else ("empty",))
        for k, t in enumerate(texts)
    )
    best = Pair(prompt.prompt_id, "fused", 0, 1, 0.42, dict.fromkeys(dims, 0.75), {"helpful": 0.5})
    return Scored(
        prompt=prompt,
        arm="fused",
        messages=messages,
        kind="one_dim",
        carried_dim="helpful",
        target_dims=("harmless",),
        binding_dims=("helpful", "harmless"),
        rollouts=rollouts,
        rewards=values,
        pairs=(best,) if pairs is None else pairs,
    )


def many(n: int) -> Iterator[Scored]:
    """`n` scored prompts with different texts."""
    return (one(i) for i in range(n))


def pick(scored: Scored, target: str, aligned: tuple[str, ...]) -> Pair | None:
    """The largest margin in `target` that does not lose in `aligned`."""

    def margin(dim: str, i: int, j: int) -> float | None:
        values = scored.rewards.get(dim)
        return None if values is None or (a := values[i]) is None or (b := values[j]) is None else a - b

    found = [
        (m, i, j)
        for i in range(len(scored.rollouts))
        for j in range(len(scored.rollouts))
        if (m := margin(target, i, j)) is not None and m > 0 and all((margin(d, i, j) or 0.0) >= 0 for d in aligned)
    ]
    if not found:
        return None
    best, i, j = max(found, key=lambda f: (f[0], -f[1], -f[2]))
    return Pair(scored.prompt.prompt_id, scored.arm, i, j, best, {target: best})


def write(out: Path, rows: list[Scored], **overrides: Any) -> FolderResult:
    """The rows as a dataset folder."""
    given: dict[str, Any] = {
        "settings": settings(),
        "origin": ORIGIN,
        "manifest": MANIFEST,
        "floors": FLOORS,
        "pick": pick,
        **overrides,
    }
    return write_dataset(
        lambda: iter(rows), given["settings"], given["origin"], given["manifest"], given["floors"], given["pick"], out
    )
