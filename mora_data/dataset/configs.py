"""One pure function per config: scored prompts -> its rows. `scored` is the canonical table; every
other is derived.

    view = TableView(table, Release(settings, origin, manifest, thresholds, pick))
    preference(view)                   Rows: which row of the table each stands for, and the columns
                                       of its own
    config_batch(view, "preference")   the same as a record batch in the config's schema, the prompt
                                       and its provenance included

Rows stay columns all the way: answers are taken by position, never copied into Python. Margins are
always computed from the rewards, so a row can't contradict them.

`preference_<dim>` is aligned: a prompt (in one arm) is in all of these configs or in none, in the
same order. Trainers that take one gradient per objective on the same prompts (RACO, MAH-DPO, MODPO)
join them row by row; a prompt with a pair in one dimension only stays available in the stages and
in `scored`. A dimension that nobody scored in the whole dataset has no config and does not empty
the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from .. import text
from ..errors import PublishError
from ..run import Manifest
from ..run.table import Pairs, ScoredTable, has_flag
from ..settings import BuildSettings
from ..types import DEGENERATE, Messages, Origin, Prompt
from . import schemas

Columns = dict[str, pa.Array]
Pick = Callable[[ScoredTable, str, tuple[str, ...]], Pairs]

UNFIT = DEGENERATE | {"duplicate", "wrong_language"}
# a reward this close under its pass threshold is no evidence of failure, where the noise is unknown
GREY = 0.05


# folder, manifest -> the whole report, and what the card shows of it
Describe = Callable[[Path, Manifest], tuple[Mapping[str, Any], dict[str, object]]]


@dataclass(frozen=True, slots=True)
class Release:
    """What a dataset depends on beside the scored prompts.

    Attributes:
        manifest: what the run says about itself; any key may be missing.
        thresholds: pass threshold per dimension, where there is one.
        dominance: under the selector each binding margin is positive and none is negative; the
            rows are checked for it.
        figures: path in the folder -> PNG; the manifest's `figures` name them for the card.
        report: of the folder, once its Parquet files are there.
        live: the dimensions that somebody scored, known once all rows were seen.
    """

    settings: BuildSettings
    origin: Origin
    manifest: Manifest
    thresholds: Mapping[str, float]
    pick: Pick
    dominance: bool = False
    figures: Mapping[str, bytes] = field(default_factory=dict)
    report: Describe | None = None
    live: tuple[str, ...] = ()

    @property
    def dims(self) -> tuple[str, ...]:
        """The dimensions, in the order of the columns."""
        return tuple(self.settings.dimensions)

    @property
    def stages(self) -> tuple[str, ...]:
        """The dimensions in the order of their stages."""
        return tuple(d for d in self.settings.publish.stage_order if d in self.dims)

    @property
    def grey(self) -> dict[str, float]:
        """How far under its threshold a reward may lie without failing: twice the noise of each
        dimension, where the manifest has it."""
        noise = (self.manifest.get("reference") or {}).get("noise") or {}
        known = [d for d in self.dims if noise.get(d) is not None]
        return {d: max(GREY, 2.0 * float(noise[d])) for d in known}


# of a config: the row of the table that each row stands for, and the columns that only it has
Rows = tuple["NDArray[np.int64]", Columns]


class TableView:
    """Scored prompts and what several configs need of them, computed once."""

    def __init__(self, table: ScoredTable, release: Release) -> None:
        self.table = table
        self.release = release
        self.dims = release.dims
        self._picks: dict[tuple[str, tuple[str, ...]], Pairs] = {}

    @cached_property
    def provenance(self) -> Columns:
        """The prompt and the provenance columns, one value per row of the table."""
        t = self.table
        own = {f.name for f in fields(Prompt)}
        by_row: dict[str, Sequence[Any]] = {
            **{
                c.name: [getattr(p, c.name) for p in t.prompts]
                for c in schemas.PROVENANCE
                if c.name in own
            },
            "source_prompt": [source_prompt(p.messages) for p in t.prompts],
            "arm": t.arms,
            "kind": t.kinds,
            "carried_dim": t.carried,
            "target_dims": list(map(list, t.targets)),
            "binding_dims": list(map(list, t.bindings)),
        }
        alike = {**self.release.origin, "dims": list(self.dims)}
        columns = {"prompt": conversations(t.messages)}
        for name, kind, _ in schemas.PROVENANCE:
            if name in alike:
                columns[name] = pa.repeat(pa.scalar(alike[name], kind), len(t))
            else:
                columns[name] = pa.array(by_row[name], kind)
        return columns

    @cached_property
    def unfit_R(self) -> NDArray[np.bool_]:
        """Failed, empty, cut, repetitive or repeated answers: neither good nor bad examples."""
        t = self.table
        blank = pc.equal(pc.utf8_trim_whitespace(t.texts), "").to_numpy(zero_copy_only=False)
        return np.asarray(
            has_flag(t.flags, UNFIT) | blank | t.errors.is_valid().to_numpy(zero_copy_only=False)
        )

    def pick(self, target: str, aligned: tuple[str, ...] = ()) -> Pairs:
        """The best pair of each row for `target` that does not lose in the `aligned` dimensions."""
        key = (target, aligned)
        if target not in self.release.live:
            return Pairs.of([], [], [], [], len(self.dims))
        if key not in self._picks:
            self._picks[key] = self.release.pick(self.table, target, aligned)
        return self._picks[key]

    def rewards(self, pattern: str, at: NDArray[np.int64]) -> Columns:
        """The rewards of the answers at these positions, one column per dimension under the
        pattern's names."""
        return _columns(pattern, self.dims, self.table.rewards_R_D[at])

    @cached_property
    def pairs(self) -> Rows:
        """The rows of the run's own pairs, for the configs that share them."""
        pairs = self.table.pairs
        return pair_rows(
            self,
            pairs,
            self.release.origin["selector"],
            1.0 / np.bincount(pairs.row_Q, minlength=1)[pairs.row_Q],
        )


def config_batch(view: TableView, config: str) -> tuple[NDArray[np.int64], pa.RecordBatch]:
    """Complete rows of a config, provenance included, and the row of the table that each of them
    stands for.

    Raises:
        KeyError: there is no such config.
        PublishError: a pair breaks the law of its selector.
    """
    row_K, own = builders(view.dims, view.release.stages)[config](view)
    if (wrong := broken_law(view, (row_K, own))) is not None:
        raise PublishError(f"config {config}, {wrong}, so nothing was written")
    schema = schemas.schema(config, view.dims, thoughts=view.table.thoughts is not None)
    columns = dict(own)
    whole = np.array_equal(row_K, np.arange(len(view.table)))
    index = pa.array(row_K)
    for name in set(schema.names) - columns.keys():
        column = view.provenance[name]
        columns[name] = column if whole else column.take(index)
    return row_K, pa.record_batch([columns[name] for name in schema.names], schema=schema)


def preference(view: TableView) -> Rows:
    """The pairs of the run's selector."""
    return view.pairs


def reward_modeling(view: TableView) -> Rows:
    """The pairs of `preference` with the total margin as `margin`."""
    row_K, columns = view.pairs
    return row_K, {**columns, "margin": columns["margin_total"]}


def preference_by(dim: str) -> Callable[[TableView], Rows]:
    """`preference_<dim>`: the largest margin in `dim`, whatever the others do; aligned over the
    live dimensions."""

    def rows(view: TableView) -> Rows:
        in_all = np.ones(len(view.table), bool)
        for d in view.release.live:
            in_all &= np.isin(np.arange(len(view.table)), view.pick(d).row_Q)
        pairs = view.pick(dim)
        return _dimension_rows(view, pairs.take(in_all[pairs.row_Q]), dim)

    return rows


def stage(number: int, dim: str) -> Callable[[TableView], Rows]:
    """`stageK_<dim>`: the largest margin in `dim` among pairs that do not lose in the dimensions
    aligned before it."""

    def rows(view: TableView) -> Rows:
        aligned = tuple(d for d in view.release.stages[: number - 1] if d in view.release.live)
        row_K, columns = _dimension_rows(view, view.pick(dim, aligned), dim)
        column = pa.repeat(pa.scalar(number, pa.int64()), len(row_K))
        return row_K, {**columns, "stage": column}

    return rows


def _dimension_rows(view: TableView, pairs: Pairs, dim: str) -> Rows:
    row_K, columns = pair_rows(view, pairs, "lexi", np.ones(len(pairs)))
    return row_K, {**columns, "dimension": pa.repeat(pa.scalar(dim), len(pairs))}


def unpaired(view: TableView) -> Rows:
    """One row per answer that clearly passes or fails.

    True: every pass threshold is met. False: one reward is under its threshold by more than the
    grey zone. Unfit answers, and those in between, are left out.
    """
    t, live, thresholds = view.table, view.release.live, view.release.thresholds
    judged = [(j, d) for j, d in enumerate(view.dims) if d in live and d in thresholds]
    grey = view.release.grey
    fails, passes = np.zeros(len(t.lengths_R), bool), np.full(len(t.lengths_R), bool(judged))
    # the optimistic value has to fail clearly, the pessimistic one to pass
    for j, d in judged:
        reward, uncertainty = t.absolute_R_D[:, j], t.uncertainty_R_D[:, j]
        fails |= reward + uncertainty < thresholds[d] - grey.get(d, GREY)
        passes &= reward - uncertainty >= thresholds[d]
    at = np.flatnonzero((fails | passes) & ~view.unfit_R)
    return t.row_R[at], {
        "completion": assistant_turns(t.texts.take(pa.array(at))),
        "label": pa.array(~fails[at]),
        **view.rewards("reward_{}", at),
    }


def prompt_only(view: TableView) -> Rows:
    """The prompt alone: no columns of its own."""
    return np.arange(len(view.table)), {}


def scored(view: TableView) -> Rows:
    """The canonical table: all answers of the prompt with all their rewards, and which of them were
    paired."""
    t = view.table
    n = len(t)
    pairs = np.searchsorted(t.pairs.row_Q, np.arange(n + 1))
    return np.arange(n), {
        "completions": list_array(t.starts, t.texts),
        **({} if t.thoughts is None else {"thoughts": list_array(t.starts, t.thoughts)}),
        **{
            f"rewards_{d}": list_array(t.starts, float_array(t.rewards_R_D[:, j]))
            for j, d in enumerate(view.dims)
        },
        "flags": list_array(t.starts, _flags(t)),
        "finish_reasons": list_array(t.starts, t.finish_reasons),
        "lengths": list_array(t.starts, pa.array(t.lengths_R)),
        "pair_chosen": list_array(pairs, pa.array(t.pairs.chosen_Q)),
        "pair_rejected": list_array(pairs, pa.array(t.pairs.rejected_Q)),
        "selector": pa.repeat(pa.scalar(view.release.origin["selector"]), n),
    }


def multilabel(view: TableView) -> Rows:
    """One row per answer that is not unfit and has a score in some dimension."""
    t = view.table
    at = np.flatnonzero(~view.unfit_R & ~np.isnan(t.rewards_R_D).all(1))
    columns = {"response": t.texts.take(pa.array(at)), **view.rewards("score_{}", at)}
    return t.row_R[at], columns


def sft(view: TableView) -> Rows:
    """The chosen answers."""
    t, (row_K, columns) = view.table, view.pairs
    at = t.starts[t.pairs.row_Q] + t.pairs.chosen_Q
    return row_K, {
        "completion": columns["chosen"],
        **view.rewards("reward_{}", at),
        "pair_id": columns["pair_id"],
    }


def builders(
    dims: tuple[str, ...], stages: tuple[str, ...]
) -> dict[str, Callable[[TableView], Rows]]:
    """Config name -> its function, in the order of `schemas.config_names`."""
    return {
        "preference": preference,
        **{f"preference_{d}": preference_by(d) for d in dims},
        **{f"stage{k}_{d}": stage(k, d) for k, d in enumerate(stages, 1)},
        "unpaired": unpaired,
        "prompt_only": prompt_only,
        "scored": scored,
        "reward_modeling": reward_modeling,
        "multilabel": multilabel,
        "sft": sft,
    }


def pair_rows(view: TableView, pairs: Pairs, selector: str, weight_Q: NDArray[np.float64]) -> Rows:
    """Pairs as the columns that every pair config shares."""
    t, dims = view.table, view.dims
    first = t.starts[pairs.row_Q]
    i, j = first + pairs.chosen_Q, first + pairs.rejected_Q
    margins = t.margins_Q_D(pairs)
    known = ~np.isnan(margins)
    total = np.where(known.any(1), np.where(known, margins, 0.0).sum(1), np.nan)
    chosen, rejected = (t.texts.take(pa.array(at)) for at in (i, j))
    ids = [
        text.digest(t.prompts[p].prompt_id, t.arms[p], a, b)
        for p, a, b in zip(
            pairs.row_Q.tolist(), chosen.to_pylist(), rejected.to_pylist(), strict=True
        )
    ]
    return pairs.row_Q, {
        "chosen": assistant_turns(chosen),
        "rejected": assistant_turns(rejected),
        "pair_id": pa.array(ids, pa.string()),
        **view.rewards("chosen_reward_{}", i),
        **view.rewards("rejected_reward_{}", j),
        **_columns("margin_{}", dims, margins),
        **_columns("margin_confirmed_{}", dims, pairs.confirmed_Q_D),
        "margin_total": float_array(total),
        "selector": pa.repeat(pa.scalar(selector), len(pairs)),
        "score": float_array(pairs.score_Q),
        "weight": float_array(np.asarray(weight_Q, float)),
        **_columns("pro_weight_{}", dims, pro_weights(t.rewards_R_D[i])),
        "len_chosen": pa.array(t.lengths_R[i]),
        "len_rejected": pa.array(t.lengths_R[j]),
    }


def _columns(pattern: str, dims: Sequence[str], values_K_D: NDArray[np.float64]) -> Columns:
    """One column per dimension under the pattern's names."""
    return {pattern.format(d): float_array(v) for d, v in zip(dims, values_K_D.T, strict=True)}


def pro_weights(rewards_Q_D: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights of the dimensions that a preferred answer suggests; Q x D, rows sum to 1.

    w_d = exp(r_d) / sum exp(r), with the calibrated rewards as they are and temperature 1; NaN
    where a reward is missing. The target of the weight adapter of Preference Orchestrator
    (docs/numbers.md).
    """
    grown = np.exp(rewards_Q_D)
    return np.asarray(grown / grown.sum(1, keepdims=True))


def broken_law(view: TableView, rows: Rows) -> str | None:
    """What is wrong with pairs, or None: the laws that every published pair obeys."""
    row_K, c = rows
    if "chosen" not in c or not len(row_K):
        return None
    same = pc.equal(c["chosen"].flatten().field(1), c["rejected"].flatten().field(1))
    broken = [(same, "pair_id", "chosen and rejected are the same text in pair {}")]
    if "dimension" in c:
        margin = f"margin_{c['dimension'][0].as_py()}"
        broken.append((_not_positive(c[margin]), margin, margin + " is {}, not positive"))
    elif view.release.dominance:
        binding = view.table.binding_P_D[row_K]
        for k, d in enumerate(view.dims):
            margin = f"margin_{d}"
            bound = pc.and_(pa.array(binding[:, k]), _not_positive(c[margin]))
            negative = pc.fill_null(pc.less(c[margin], 0.0), False)
            broken += [
                (bound, margin, f"{margin} is {{}}, not positive, although {d} is binding"),
                (negative, margin, margin + " is {}, negative"),
            ]
        total = _not_positive(c["margin_total"])
        broken.append((total, "margin_total", "margin_total is {}, not positive"))
    for where, column, what in broken:
        at = pc.index(where, True).as_py()
        if at >= 0:
            p = int(row_K[at])
            return (
                f"prompt {view.table.prompts[p].prompt_id}, arm {view.table.arms[p]}:"
                f" {what.format(c[column][at].as_py())}; the selector {c['selector'][at].as_py()!r}"
                " broke its rule"
            )
    return None


def source_prompt(messages: Messages) -> str:
    """The normalised source context as one string: a single user turn as it is, else `role:
    content` lines."""
    if len(messages) == 1 and messages[0]["role"] == "user":
        return text.normalise(messages[0]["content"])
    return "\n".join(f"{m['role']}: {text.normalise(m['content'])}" for m in messages)


def conversations(values: Sequence[Messages]) -> pa.Array:
    """list<struct<role, content>> from its leaves: several times as fast as through
    dictionaries."""
    messages = [m for conversation in values for m in conversation]
    leaves = [pa.array([m[key] for m in messages], pa.string()) for key in ("role", "content")]
    starts = np.cumsum([0, *(len(conversation) for conversation in values)])
    return list_array(starts, pa.StructArray.from_arrays(leaves, ["role", "content"]))


def assistant_turns(texts: pa.Array) -> pa.Array:
    """Each text as a list of one assistant turn."""
    roles = pa.repeat(pa.scalar("assistant"), len(texts))
    turns = pa.StructArray.from_arrays([roles, texts], ["role", "content"])
    return list_array(np.arange(len(texts) + 1), turns)


def list_array(starts: NDArray[Any], values: pa.Array) -> pa.Array:
    """Values cut into lists; list k begins at `starts[k]`."""
    return pa.ListArray.from_arrays(pa.array(starts, pa.int32()), values)


def float_array(values: NDArray[np.float64]) -> pa.Array:
    """Numbers with null for NaN."""
    return pa.array(values, pa.float64(), mask=np.isnan(values))


def _flags(t: ScoredTable) -> pa.Array:
    """Flags of each answer; a failed one says so."""
    failed = t.errors.is_valid().to_numpy(zero_copy_only=False) & ~has_flag(t.flags, ["error"])
    if not failed.any():
        return t.flags
    flags = zip(t.flags.to_pylist(), failed.tolist(), strict=True)
    return pa.array([[*f, "error"] if bad else f for f, bad in flags], t.flags.type)


def _not_positive(margin: pa.Array) -> pa.Array:
    return pc.fill_null(pc.less_equal(margin, 0.0), True)
