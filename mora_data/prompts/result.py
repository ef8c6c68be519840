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
    from ..statistics.kinds import PromptStats

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
    # (arm, index, purpose, score)
    scores: list[tuple[str, int, str, Score]] = field(default_factory=list)
    counts: Counts = field(default_factory=Counter)
    pending: str | None = None

    def count(self, stage: str, kept: int = 0, **dropped: int) -> None:
        """Count rows of a stage; what goes in is what is kept and what is dropped."""
        self.counts[stage, "in"] += kept + sum(dropped.values())
        if kept:
            self.counts[stage, "kept"] += kept
        for reason, n in dropped.items():
            if n:
                self.counts[stage, reason] += n


def schemas(dims: Sequence[str]) -> dict[str, Any]:
    """Arrow schema of each partition table."""
    import pyarrow as pa

    text, number, whole = pa.string(), pa.float64(), pa.int32()
    message = pa.list_(pa.struct([("role", text), ("content", text)]))
    stats = [
        ("prompt_id", text),
        ("kind", text),
        ("n", whole),
        ("carried_dim", text),
        ("target_dims", pa.list_(text)),
        ("binding_dims", pa.list_(text)),
        ("dominance", number),
        ("erd", number),
        ("joint", number),
        ("owed", text),
    ]
    for d in dims:
        stats += [(f"state_{d}", text), (f"passed_{d}", number), (f"gini_{d}", number)]
    pairs = [
        ("prompt_id", text),
        ("arm", text),
        ("rank", whole),
        ("chosen", whole),
        ("rejected", whole),
        ("score", number),
    ]
    for d in dims:
        pairs += [(f"margin_{d}", number), (f"margin_confirmed_{d}", number)]
    check = pa.list_(pa.struct([("name", text), ("passed", pa.bool_()), ("value", number)]))
    return {
        "profiles": pa.schema(stats),
        "fusions": pa.schema(
            [
                ("prompt_id", text),
                ("arm", text),
                ("attempt", whole),
                ("candidate", whole),
                ("text", text),
                ("accepted", pa.bool_()),
                ("failed", pa.list_(text)),
                ("checks", check),
            ]
        ),
        "arms": pa.schema([("prompt_id", text), ("arm", text), ("messages", message)]),
        "rollouts": pa.schema(
            [
                ("prompt_id", text),
                ("arm", text),
                ("index", whole),
                ("text", text),
                ("thought", text),
                ("finish_reason", text),
                ("tokens_out", whole),
                ("length", whole),
                ("flags", pa.list_(text)),
                ("error", text),
                ("persona", text),
            ]
            + [(f"{what}_{d}", number) for what in SIDES for d in dims]
        ),
        "scores": pa.schema(
            [
                ("prompt_id", text),
                ("arm", text),
                ("index", whole),
                ("purpose", text),
                ("dimension", text),
                ("source", text),
                ("value", number),
                ("raw", number),
                ("reason", text),
            ]
        ),
        "pairs": pa.schema(pairs),
    }


def tables(results: Sequence[PromptResult], dims: Sequence[str]) -> dict[str, Table]:
    """The outcomes as tables; rows in the order of the prompts, then arms, then samples."""
    out = {name: Table(schema) for name, schema in schemas(dims).items()}
    for o in results:
        _add_profile(out["profiles"], o, dims)
        for f in o.attempts:
            out["fusions"].add(
                prompt_id=o.prompt.prompt_id,
                arm=f.arm,
                attempt=f.attempt,
                candidate=f.candidate,
                text=f.text,
                accepted=f.accepted,
                failed=list(f.failed),
                checks=[{"name": n, "passed": p, "value": v} for n, p, v in f.checks],
            )
        for arm in [*([o.presample] if o.presample else []), *o.arms]:
            _add_arm(out, o.prompt.prompt_id, arm, dims)
        for arm_name, index, purpose, s in sorted(
            o.scores, key=lambda t: (t[0], t[2], t[1], t[3].dimension, t[3].source)
        ):
            out["scores"].add(
                prompt_id=o.prompt.prompt_id,
                arm=arm_name,
                index=index,
                purpose=purpose,
                dimension=s.dimension,
                source=s.source,
                value=s.value,
                raw=s.raw,
                reason=s.reason,
            )
    return out


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
        row |= {
            "kind": p.kind,
            "n": p.n,
            "carried_dim": p.carried_dim,
            "dominance": p.dominance,
            "erd": p.erd,
            "joint": p.joint,
        }
        for j, d in enumerate(dims):
            row |= {f"state_{d}": p.state[j], f"passed_{d}": p.passed[j], f"gini_{d}": p.gini[j]}
    table.add(**row)


def _add_arm(out: Mapping[str, Table], prompt_id: str, arm: Arm, dims: Sequence[str]) -> None:
    out["arms"].add(prompt_id=prompt_id, arm=arm.name, messages=list(arm.messages))
    for i, r in enumerate(arm.rollouts):
        out["rollouts"].add(
            prompt_id=prompt_id,
            arm=arm.name,
            index=r.index,
            text=r.text,
            thought=r.thought,
            finish_reason=r.finish_reason,
            tokens_out=r.tokens_out,
            length=r.length,
            flags=list(r.flags),
            error=r.error,
            persona=r.persona,
            **{
                f"{what}_{d}": side[d][i] if d in side else None
                for d in dims
                for what, side in zip(
                    SIDES, (arm.rewards, arm.absolutes, arm.uncertainties), strict=True
                )
            },
        )
    for rank, pair in enumerate(arm.pairs):
        margins = {f"margin_{d}": pair.margins.get(d) for d in dims}
        confirmed = {f"margin_confirmed_{d}": pair.margins_confirmed.get(d) for d in dims}
        out["pairs"].add(
            prompt_id=prompt_id,
            arm=arm.name,
            rank=rank,
            chosen=pair.chosen,
            rejected=pair.rejected,
            score=pair.score,
            **margins,
            **confirmed,
        )
