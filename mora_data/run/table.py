"""Scored prompts as columns: what selection, publishing and reports read of a finalized partition.

    for table in scored_tables(part, ("helpful", "harmless"), ("fused",)):
        table.rewards_R_D[table.starts[p] : table.starts[p + 1]]  # the rewards of row p's answers

A row is one prompt in one arm; presamples and the arms that are there to compare with are left out.
A partition is cut into tables of some MB of text, so memory does not grow with the length of the
answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..types import OUT_OF_PAIRS, Kind, Message, Messages, Prompt
from .partitions import SIDES, Partition, lean_arrow

if TYPE_CHECKING:
    from numpy.typing import NDArray

TEXT_BYTES = 4 << 20  # of answers in one table, at most; a single row may hold more


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs of a table's rows; those of one row side by side, best first.

    Attributes:
        row_Q: row in the table.
        chosen_Q, rejected_Q: positions among the row's answers.
        score_Q: what the selector maximised.
        confirmed_Q_D: margins of the fresh scores; NaN where there is none.
        at_Q: row number in the partition's table of candidates; -1 for pairs made since.
    """

    row_Q: NDArray[np.int64]
    chosen_Q: NDArray[np.int64]
    rejected_Q: NDArray[np.int64]
    score_Q: NDArray[np.float64]
    confirmed_Q_D: NDArray[np.float64]
    at_Q: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Any, chosen: Any, rejected: Any, score: Any, n_dims: int) -> Pairs:
        """New pairs, not confirmed."""
        n = len(rows)
        return cls(
            row_Q=np.asarray(rows, np.int64),
            chosen_Q=np.asarray(chosen, np.int64),
            rejected_Q=np.asarray(rejected, np.int64),
            score_Q=np.asarray(score, np.float64),
            confirmed_Q_D=np.full((n, n_dims), np.nan),
            at_Q=np.full(n, -1),
        )

    def __len__(self) -> int:
        return len(self.row_Q)

    def take(self, index: NDArray[Any]) -> Pairs:
        """The pairs at `index` (positions or a mask)."""
        return Pairs(*(getattr(self, f.name)[index] for f in fields(self)))


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredTable:
    """P rows (a prompt in an arm) with R answers side by side.

    Attributes:
        dims: dimensions, in the order of the columns.
        messages: the prompt as asked in this arm, without an answer.
        starts: row p has the answers `starts[p]` .. `starts[p + 1] - 1`.
        texts: the answers (pyarrow.Array); None when the table was read without them.
        thoughts: what was thought before each, null where that is not known; None in the same way.
        rewards_R_D: calibrated rewards in [0, 1], NaN where there is none.
        absolute_R_D: what pass thresholds are compared with: the rewards of absolute sources.
        uncertainty_R_D: how far the sources disagree.
        lengths_R: length of each answer in word and punctuation tokens.
        usable_R: may stand in a pair.
        pairs: candidates, or the chosen ones.
    """

    dims: tuple[str, ...]
    prompts: Sequence[Prompt]
    arms: Sequence[str]
    messages: Sequence[Messages]
    kinds: Sequence[Kind]
    carried: Sequence[str | None]
    targets: Sequence[Sequence[str]]
    bindings: Sequence[Sequence[str]]
    starts: NDArray[np.int64]
    texts: Any
    finish_reasons: pa.Array
    flags: pa.Array
    errors: pa.Array
    rewards_R_D: NDArray[np.float64]
    absolute_R_D: NDArray[np.float64]
    uncertainty_R_D: NDArray[np.float64]
    lengths_R: NDArray[np.int64]
    usable_R: NDArray[np.bool_]
    pairs: Pairs
    thoughts: Any = None

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def row_R(self) -> NDArray[np.int64]:
        """The row that each answer belongs to."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    @property
    def binding_P_D(self) -> NDArray[np.bool_]:
        """Whether a dimension is binding in a row."""
        return np.array([[d in b for d in self.dims] for b in self.bindings], bool).reshape(
            -1, len(self.dims)
        )

    def margins_Q_D(self, pairs: Pairs) -> NDArray[np.float64]:
        """Rewards of chosen minus those of rejected."""
        first = self.starts[pairs.row_Q]
        return np.asarray(
            self.rewards_R_D[first + pairs.chosen_Q] - self.rewards_R_D[first + pairs.rejected_Q]
        )

    def padded(self, rows: slice) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """(index_P_N, there_P_N): positions of the rows' answers in the columns, as a rectangle;
        absent ones point at 0."""
        first, last = self.starts[:-1][rows], self.starts[1:][rows]
        at = first[:, None] + np.arange(max(int((last - first).max(initial=0)), 1))
        there = at < last[:, None]
        return np.where(there, at, 0), there


def usable(flags: pa.Array, errors: pa.Array) -> NDArray[np.bool_]:
    """Which answers may stand in a pair: they came, are not degenerate, and no duplicate."""
    return np.asarray(
        ~has_flag(flags, OUT_OF_PAIRS) & errors.is_null().to_numpy(zero_copy_only=False)
    )


def has_flag(flags: pa.Array, wanted: Iterable[str]) -> NDArray[np.bool_]:
    """Which of the flag lists hold one of the `wanted`."""
    hit = pc.is_in(flags.flatten(), value_set=pa.array(sorted(wanted), pa.string())).to_numpy(
        zero_copy_only=False
    )
    total = np.concatenate([[0], np.cumsum(hit)])
    at = flags.offsets.to_numpy() - (flags.offsets[0].as_py() if len(flags) else 0)
    return np.asarray(total[at[1:]] > total[at[:-1]])


def candidate_pairs(part: Partition, arms: Sequence[str]) -> pa.Table:
    """The partition's candidate pairs of these arms; `Pairs.at_Q` counts its rows."""
    lean_arrow()
    return _of_arms(part.table("pairs"), arms)


def scored_tables(
    part: Partition,
    dims: Sequence[str],
    published: Sequence[str],
    texts: bool = True,
    thoughts: bool = False,
) -> Iterator[ScoredTable]:
    """The `published` arms of a finalized partition, in the order of its prompts; `pairs` holds
    every candidate."""
    lean_arrow()
    prompts = {p.prompt_id: p for p in part.prompts()}
    profiles = part.table(
        "profiles", ["prompt_id", "kind", "carried_dim", "target_dims", "binding_dims"]
    ).to_pydict()
    profile_at = {prompt_id: i for i, prompt_id in enumerate(profiles["prompt_id"])}
    arms = part.table("arms").to_pydict()
    kept = [i for i, arm in enumerate(arms["arm"]) if arm in published]
    keys = [(arms["prompt_id"][i], arms["arm"][i]) for i in kept]
    columns = "prompt_id arm finish_reason flags error length".split()
    columns += [f"{what}_{d}" for what in SIDES for d in dims]
    columns += ["text"] * texts + ["thought"] * thoughts
    answers = _of_arms(part.table("rollouts", columns), published)
    starts = _starts(answers, keys)
    pairs = candidate_pairs(part, published)
    pair_starts = _starts(pairs, keys)
    for lo, hi in _slices(answers, starts):
        first, last = int(starts[lo]), int(starts[hi])
        rows = answers.slice(first, last - first)
        column = {
            name: rows[name].combine_chunks()
            for name in rows.column_names
            if name not in ("prompt_id", "arm")
        }
        at = [profile_at[keys[i][0]] for i in range(lo, hi)]
        rewards_R_D, absolute_R_D, uncertainty_R_D = (
            _numbers([column[f"{side}_{d}"] for d in dims], len(rows)) for side in SIDES
        )
        yield ScoredTable(
            dims=tuple(dims),
            prompts=[prompts[keys[i][0]] for i in range(lo, hi)],
            arms=[keys[i][1] for i in range(lo, hi)],
            messages=[
                tuple(
                    Message(role=m["role"], content=m["content"]) for m in arms["messages"][kept[i]]
                )
                for i in range(lo, hi)
            ],
            kinds=[profiles["kind"][i] for i in at],
            carried=[profiles["carried_dim"][i] for i in at],
            targets=[profiles["target_dims"][i] for i in at],
            bindings=[profiles["binding_dims"][i] for i in at],
            starts=starts[lo : hi + 1] - first,
            texts=column.get("text"),
            finish_reasons=column["finish_reason"],
            flags=column["flags"],
            errors=column["error"],
            rewards_R_D=rewards_R_D,
            absolute_R_D=absolute_R_D,
            uncertainty_R_D=np.nan_to_num(uncertainty_R_D),  # not known: none
            lengths_R=column["length"].to_numpy(zero_copy_only=False).astype(np.int64),
            usable_R=usable(column["flags"], column["error"]),
            pairs=_pairs(pairs, pair_starts, lo, hi, dims),
            thoughts=column.get("thought"),
        )


def _of_arms(table: pa.Table, arms: Sequence[str]) -> pa.Table:
    return table.filter(pc.is_in(table["arm"], value_set=pa.array(arms, pa.string())))


def _starts(table: pa.Table, keys: Sequence[tuple[str, str]]) -> NDArray[np.int64]:
    """Where the rows of each (prompt, arm) begin, and the end: a table holds them side by side, in
    the order of `keys`."""
    counts = dict.fromkeys(keys, 0)
    for batch in table.select(["prompt_id", "arm"]).to_batches():
        ids, arms = batch.column(0), batch.column(1)
        new = np.ones(len(ids), bool)
        if len(ids) > 1:
            new[1:] = pc.not_equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False) | pc.not_equal(
                arms[1:], arms[:-1]
            ).to_numpy(zero_copy_only=False)
        at = np.flatnonzero(new)
        for key, n in zip(
            zip(ids.take(at).to_pylist(), arms.take(at).to_pylist(), strict=True),
            np.diff([*at, len(ids)]).tolist(),
            strict=True,
        ):
            counts[key] += n
    return np.concatenate([[0], np.cumsum(list(counts.values()), dtype=np.int64)]).astype(np.int64)


def _slices(answers: pa.Table, starts: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Ranges of rows whose answers hold up to TEXT_BYTES."""
    n = len(starts) - 1
    if "text" not in answers.column_names or answers["text"].nbytes <= TEXT_BYTES:
        if n:
            yield 0, n
        return
    size = np.concatenate([[0], np.cumsum(pc.binary_length(answers["text"]).to_numpy())])[starts]
    lo = 0
    while lo < n:
        hi = max(lo + 1, int(np.searchsorted(size, size[lo] + TEXT_BYTES, "right")) - 1)
        yield lo, min(hi, n)
        lo = min(hi, n)


def _pairs(
    table: pa.Table, starts: NDArray[np.int64], lo: int, hi: int, dims: Sequence[str]
) -> Pairs:
    first, last = int(starts[lo]), int(starts[hi])
    rows = table.slice(first, last - first)
    return Pairs(
        row_Q=np.repeat(np.arange(hi - lo), np.diff(starts[lo : hi + 1])),
        chosen_Q=rows["chosen"].to_numpy().astype(np.int64),
        rejected_Q=rows["rejected"].to_numpy().astype(np.int64),
        score_Q=_numbers([rows["score"]], len(rows))[:, 0],
        confirmed_Q_D=_numbers([rows[f"margin_confirmed_{d}"] for d in dims], len(rows)),
        at_Q=np.arange(first, last),
    )


def _numbers(columns: Sequence[Any], n: int) -> NDArray[np.float64]:
    """Columns of `n` numbers side by side; null is NaN."""
    found = [c.to_numpy(zero_copy_only=False) for c in columns]
    return np.asarray(np.stack(found, axis=1), float) if found else np.empty((n, 0))
