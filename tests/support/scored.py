"""Small made-up scored prompts for the tests of the dataset folder, as tables, and a pick function
of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mora_data.dataset.configs import Release
from mora_data.dataset.folder import FolderResult, write_dataset
from mora_data.run.table import Pairs, ScoredTable, usable
from mora_data.settings import BuildSettings, build_settings
from mora_data.text import context_id, group_id, n_tokens
from mora_data.types import Kind, Message, Messages, Origin, Pair, Prompt, Rollout

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
    "version": 1,
    "created_with": {"mora_data": "0.1.0", "python": "3.11.7"},
    "settings_hash": "0123abcd",
    "simulated": False,
    "settings": {"name": "toy", "policy": {"temperature": 1.0, "top_p": 0.95, "max_tokens": 512}},
    "counts": {
        "mine": {"in": 30, "kept": 24, "dropped": {"duplicate": 5, "too_long": 1}},
        "select": {"in": 24, "kept": 24, "dropped": {}},
    },
    "models": {"policy": "org/policy@abc", "judge": "org/judge"},
    "templates": {"judge/helpful": "ab" * 32},
    "reference": {
        "noise": {"helpful": 0.05, "harmless": 0.04, "truthful": 0.06},
        "floors": FLOORS,
        "n": 1200,
    },
    "tokens": {"in": 12345, "out": 67890},
    "pairs": 24,
}


@dataclass(frozen=True)
class Scored:
    """One prompt of one arm with all its rollouts: one row of a `ScoredTable`."""

    prompt: Prompt
    arm: str
    messages: Messages
    kind: Kind
    carried_dim: str | None
    target_dims: tuple[str, ...]
    binding_dims: tuple[str, ...]
    rollouts: tuple[Rollout, ...]
    rewards: Mapping[str, tuple[float | None, ...]]  # dimension -> a value per rollout
    pairs: tuple[Pair, ...]


def table_of(rows: Sequence[Scored], dims: Sequence[str] = DIMS) -> ScoredTable:
    """The rows side by side, all rewards absolute and certain."""
    rollouts = [r for s in rows for r in s.rollouts]
    rewards_R_D = np.concatenate(
        [
            np.array([s.rewards.get(d, [None] * len(s.rollouts)) for d in dims], float).T
            for s in rows
        ]
    )
    flags = pa.array([r.flags for r in rollouts], pa.list_(pa.string()))
    errors = pa.array([r.error for r in rollouts], pa.string())
    found = [(p, x) for p, s in enumerate(rows) for x in s.pairs]
    pairs = Pairs.of(
        [p for p, _ in found],
        [x.chosen for _, x in found],
        [x.rejected for _, x in found],
        [x.score for _, x in found],
        len(dims),
    )
    pairs.at_Q[:] = range(len(found))
    for q, (_, x) in enumerate(found):
        pairs.confirmed_Q_D[q] = [x.margins_confirmed.get(d) for d in dims]
    return ScoredTable(
        dims=tuple(dims),
        prompts=[s.prompt for s in rows],
        arms=[s.arm for s in rows],
        messages=[s.messages for s in rows],
        kinds=[s.kind for s in rows],
        carried=[s.carried_dim for s in rows],
        targets=[s.target_dims for s in rows],
        bindings=[s.binding_dims for s in rows],
        starts=np.cumsum([0, *(len(s.rollouts) for s in rows)]),
        texts=pa.array([r.text for r in rollouts], pa.string()),
        finish_reasons=pa.array([r.finish_reason for r in rollouts], pa.string()),
        flags=flags,
        errors=errors,
        rewards_R_D=rewards_R_D,
        absolute_R_D=rewards_R_D,
        uncertainty_R_D=np.zeros(rewards_R_D.shape),
        lengths_R=np.array([n_tokens(r.text) for r in rollouts], np.int64),
        usable_R=usable(flags, errors),
        pairs=pairs,
    )


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
    messages: tuple[Message, ...] = (
        *history,
        {"role": "user", "content": question or f"How do I number {i} things?"},
    )
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
        Rollout(
            prompt.prompt_id,
            k,
            t,
            "stop",
            5,
            flags[k] if flags else () if t else ("empty",),
        )
        for k, t in enumerate(texts)
    )
    best = Pair(0, 1, 0.42, dict.fromkeys(dims, 0.75), {"helpful": 0.5})
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


def pick(table: ScoredTable, target: str, aligned: tuple[str, ...]) -> Pairs:
    """Per row, the largest margin in `target` that does not lose in `aligned`."""
    best = [
        (row, *found)
        for row in range(len(table))
        if (found := _best(table, row, target, aligned)) is not None
    ]
    return Pairs.of(
        [b[0] for b in best],
        [b[2] for b in best],
        [b[3] for b in best],
        [b[1] for b in best],
        len(table.dims),
    )


def _best(
    table: ScoredTable, row: int, target: str, aligned: tuple[str, ...]
) -> tuple[float, int, int] | None:
    rewards = table.rewards_R_D[table.starts[row] : table.starts[row + 1]]
    column = {d: rewards[:, k] for k, d in enumerate(table.dims)}
    found = [
        (float(m), i, j)
        for i in range(len(rewards))
        for j in range(len(rewards))
        if (m := column[target][i] - column[target][j]) > 0
        and all((np.nan_to_num(column[d][i] - column[d][j])) >= 0 for d in aligned)
    ]
    return max(found, key=lambda f: (f[0], -f[1], -f[2])) if found else None


def write(out: Path, rows: list[Scored], **overrides: Any) -> FolderResult:
    """The rows as a dataset folder."""
    given: dict[str, Any] = {
        "settings": settings(),
        "origin": ORIGIN,
        "manifest": MANIFEST,
        "thresholds": FLOORS,
        "pick": pick,
        "dominance": True,
        **overrides,
    }
    tables = [table_of(rows, given["settings"].dimensions)] if rows else []
    return write_dataset(lambda: iter(tables), Release(**given), out)
