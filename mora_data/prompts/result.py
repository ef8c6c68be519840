"""What came of one prompt, and the tables a partition keeps of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..rewriting.rewriter import RewriteAttempt
from ..run.partitions import SIDES, Table
from ..types import Messages, Pair, Prompt, Rollout, Score

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


def tables(results: Sequence[PromptResult], dims: Sequence[str]) -> dict[str, Table]:
    """The outcomes as tables; rows in the order of the prompts, then arms, then samples."""
    out = {name: Table(schema) for name, schema in schemas(dims).items()}
    for o in results:
        prompt_id = o.prompt.prompt_id
        _add_profile(out["profiles"], o, dims)
        for f in o.attempts:
            out["fusions"].add(
                prompt_id=prompt_id,
                **_values(f, "arm", "attempt", "candidate", "text", "accepted"),
                failed=list(f.failed),
                checks=[_values(c, "name", "passed", "value") for c in f.checks],
            )
        for arm in o.all_arms:
            _add_arm(out, prompt_id, arm, dims)
        for arm_name, index, purpose, s in sorted(o.scores, key=score_order):
            out["scores"].add(
                **{"prompt_id": prompt_id, "arm": arm_name, "index": index, "purpose": purpose},
                **_values(s, "dimension", "source", "value", "raw", "reason"),
            )
    return out


def _values(of: object, *names: str) -> dict[str, Any]:
    """Attributes as the columns of their names."""
    return {name: getattr(of, name) for name in names}


def _add_profile(table: Table, o: PromptResult, dims: Sequence[str]) -> None:
    p = o.stats
    row: dict[str, Any] = {
        "prompt_id": o.prompt.prompt_id,
        "owed": o.pending,
        "target_dims": list(o.target_dims),
        "binding_dims": list(o.binding_dims),
        "kind": "plain",
    }
    if p is not None:
        row |= _values(p, "kind", "n", "carried_dim", "dominance", "erd", "joint")
        for j, d in enumerate(dims):
            row |= {f"state_{d}": p.state[j], f"passed_{d}": p.passed[j], f"gini_{d}": p.gini[j]}
    table.add(**row)


def _add_arm(out: Mapping[str, Table], prompt_id: str, arm: Arm, dims: Sequence[str]) -> None:
    at = {"prompt_id": prompt_id, "arm": arm.name}
    out["arms"].add(**at, messages=list(arm.messages))
    sides = dict(zip(SIDES, (arm.rewards, arm.absolutes, arm.uncertainties), strict=True))
    for i, r in enumerate(arm.rollouts):
        own = _values(r, "index", "text", "thought", "finish_reason", "tokens_out", "length")
        out["rollouts"].add(
            **{**at, **own, "flags": list(r.flags), "error": r.error, "persona": r.persona},
            **{
                f"{k}_{d}": side[d][i] if d in side else None
                for k, side in sides.items()
                for d in dims
            },
        )
    for rank, pair in enumerate(arm.pairs):
        margins = {f"margin_{d}": pair.margins.get(d) for d in dims}
        confirmed = {f"margin_confirmed_{d}": pair.margins_confirmed.get(d) for d in dims}
        own = _values(pair, "chosen", "rejected", "score")
        out["pairs"].add(**at, rank=rank, **own, **margins, **confirmed)
