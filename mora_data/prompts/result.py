"""What came of one prompt, and the tables a partition keeps of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..rewriting.rewriter import RewriteAttempt
from ..run.partitions import SIDES
from ..types import Messages, Pair, Prompt, Rollout, Row, Score

if TYPE_CHECKING:
    from ..statistics.rollouts import PromptStats

Counts = Counter[tuple[str, str]]  # (stage, "in" | "kept" | drop reason) -> n


@dataclass(slots=True)
class Arm:
    """One arm of a prompt: what was asked and what came."""

    name: str
    messages: Messages
    rollouts: list[Rollout] = field(default_factory=list)
    rewards: dict[str, list[float | None]] = field(default_factory=dict)
    # what pass thresholds are compared with
    absolutes: dict[str, list[float | None]] = field(default_factory=dict)
    uncertainties: dict[str, list[float | None]] = field(default_factory=dict)
    anchors: dict[tuple[str, int], float] = field(default_factory=dict)
    pairs: list[Pair] = field(default_factory=list)


@dataclass(slots=True)
class PromptResult:
    """Everything that came of one prompt. `pending` names the fault for which
    the next run asks it again."""

    prompt: Prompt
    stats: PromptStats | None = None
    target_dims: tuple[str, ...] = ()
    binding_dims: tuple[str, ...] = ()
    attempts: list[RewriteAttempt] = field(default_factory=list)
    arms: list[Arm] = field(default_factory=list)
    presample: Arm | None = None
    before: Arm | None = None
    # (arm, index, purpose, score)
    scores: list[tuple[str, int, str, Score]] = field(default_factory=list)
    counts: Counts = field(default_factory=Counter)
    pending: str | None = None

    @property
    def all_arms(self) -> list[Arm]:
        """Presamples and the answers before fusion, where there are any, then the arms."""
        return [*(a for a in (self.presample, self.before) if a), *self.arms]

    def count(self, stage: str, kept: int = 0, **dropped: int) -> None:
        """Count rows of a stage; what goes in is what is kept and what is dropped."""
        self.counts[stage, "in"] += kept + sum(dropped.values())
        if kept:
            self.counts[stage, "kept"] += kept
        for reason, n in dropped.items():
            if n:
                self.counts[stage, reason] += n


COLUMNS = {  # of the partition tables; those per dimension stand behind them
    "profiles": "prompt_id kind n carried_dim target_dims binding_dims dominance erd joint owed",
    "fusions": "prompt_id arm attempt candidate text accepted failed checks",
    "arms": "prompt_id arm messages",
    "rollouts": "prompt_id arm index text thought finish_reason tokens_out length flags error"
    " persona",
    "scores": "prompt_id arm index purpose dimension source value raw reason",
    "pairs": "prompt_id arm rank chosen rejected score",
}


def schemas(dims: Sequence[str]) -> dict[str, Any]:
    """Arrow schema of each partition table."""
    import pyarrow as pa

    text, number, whole, texts = pa.string(), pa.float64(), pa.int32(), pa.list_(pa.string())
    types = {
        **dict.fromkeys("n attempt candidate index tokens_out length rank".split(), whole),
        **dict.fromkeys(("chosen", "rejected"), whole),
        **dict.fromkeys("dominance erd joint value raw score".split(), number),
        **dict.fromkeys("target_dims binding_dims failed flags".split(), texts),
        "accepted": pa.bool_(),
        "checks": pa.list_(pa.struct([("name", text), ("passed", pa.bool_()), ("value", number)])),
        "messages": pa.list_(pa.struct([("role", text), ("content", text)])),
    }
    of_dims = {
        "profiles": [
            (f"{what}_{d}", text if what == "state" else number)
            for d in dims
            for what in ("state", "passed", "gini")
        ],
        "rollouts": [(f"{what}_{d}", number) for what in SIDES for d in dims],
        "pairs": [(f"{m}_{d}", number) for d in dims for m in ("margin", "margin_confirmed")],
    }
    return {
        name: pa.schema([(c, types.get(c, text)) for c in columns.split()] + of_dims.get(name, []))
        for name, columns in COLUMNS.items()
    }


def score_order(scored: tuple[str, int, str, Score]) -> tuple[str, str, int, str, str]:
    """What the scores of a prompt are sorted by, whichever came first."""
    arm, index, purpose, s = scored
    return arm, purpose, index, s.dimension, s.source


def tables(
    results: Sequence[PromptResult], dims: Sequence[str]
) -> dict[str, tuple[Any, Iterator[Row]]]:
    """Schema and rows of each table, in the order of the prompts, then arms, then samples."""
    arms = [(o.prompt.prompt_id, arm) for o in results for arm in o.all_arms]
    rows: dict[str, Iterator[Row]] = {
        "profiles": (_profile(o, dims) for o in results),
        "fusions": (
            {
                "prompt_id": o.prompt.prompt_id,
                **_values(f, "arm", "attempt", "candidate", "text", "accepted", "failed"),
                "checks": [_values(c, "name", "passed", "value") for c in f.checks],
            }
            for o in results
            for f in o.attempts
        ),
        "arms": ({"prompt_id": i, "arm": a.name, "messages": a.messages} for i, a in arms),
        "rollouts": (row for i, arm in arms for row in _rollouts(i, arm)),
        "scores": (
            {
                **{"prompt_id": o.prompt.prompt_id, "arm": arm, "index": i, "purpose": purpose},
                **_values(s, "dimension", "source", "value", "raw", "reason"),
            }
            for o in results
            for arm, i, purpose, s in sorted(o.scores, key=score_order)
        ),
        "pairs": (
            {
                **{"prompt_id": i, "arm": arm.name, "rank": rank},
                **_values(pair, "chosen", "rejected", "score"),
                **{f"margin_{d}": m for d, m in pair.margins.items()},
                **{f"margin_confirmed_{d}": m for d, m in pair.margins_confirmed.items()},
            }
            for i, arm in arms
            for rank, pair in enumerate(arm.pairs)
        ),
    }
    return {name: (schema, rows[name]) for name, schema in schemas(dims).items()}


def _values(of: object, *names: str) -> dict[str, Any]:
    """Attributes as the columns of their names."""
    return {name: getattr(of, name) for name in names}


def _profile(o: PromptResult, dims: Sequence[str]) -> Row:
    p = o.stats
    row: dict[str, Any] = {
        "prompt_id": o.prompt.prompt_id,
        "owed": o.pending,
        **_values(o, "target_dims", "binding_dims"),
        "kind": "plain",
    }
    if p is not None:
        row |= _values(p, "kind", "n", "carried_dim", "dominance", "erd", "joint")
        for j, d in enumerate(dims):
            row |= {f"state_{d}": p.state[j], f"passed_{d}": p.passed[j], f"gini_{d}": p.gini[j]}
    return row


def _rollouts(prompt_id: str, arm: Arm) -> Iterator[Row]:
    sides = dict(zip(SIDES, (arm.rewards, arm.absolutes, arm.uncertainties), strict=True))
    columns = {f"{name}_{d}": column for name, of in sides.items() for d, column in of.items()}
    own = COLUMNS["rollouts"].split()[2:]
    for i, r in enumerate(arm.rollouts):
        rated = {name: column[i] for name, column in columns.items()}
        yield {"prompt_id": prompt_id, "arm": arm.name, **_values(r, *own), **rated}
