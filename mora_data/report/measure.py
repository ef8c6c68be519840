"""A run's finished partitions as arrays, one at a time, so that memory holds one block whatever the
size of the run; what one arm's answers to one prompt say, as numbers (a column per metric, a row
per source prompt); and how these are added up.

    for block in blocks(parts, dims): block.arms["fused"].rewards_P_N_D

Every metric is a mean over prompts, so that the cluster bootstrap resamples prompts and nothing
else (docs/method.md, "Comparing arms").

    at = gathered.labels("", prompt_ids)            # of one partition
    added = Sums.empty(n_metrics); added.add(at, measure(arm, scale, sampled))
    bootstrap_of(gathered.sums(added))

Up to MOST prompts a cluster is one prompt. Beyond, it is one of BATCHES batches, by a hash of the
prompt's id, so that memory and time of the bootstrap stop growing. Prompts fall into batches at
random, so a batch's residual (its sum minus its number times the mean) has on average the sum of
its prompts' variances, and the variance over batches is that over prompts: the interval is the same
but for a relative error of 1 / sqrt(2 BATCHES) = 0.5 % of its width, under the 1.6 % that 2,000
draws have themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..run.files import readable
from ..run.partitions import AGAIN, Partition, last_tries, lean_arrow, row_tuples
from ..run.table import has_flag
from ..statistics import Bools, Floats, Ints
from ..statistics import rollouts as st
from ..statistics.inference import mean_over
from ..text import n_tokens
from ..types import Prompt

MOST = 50_000
BATCHES = 20_000
PRIMARY = ("dominance_rate", "joint_pass")
HYPERVOLUME_PROMPTS = 4000  # exact HV costs N^D cells a prompt; a subset drawn by id says enough


@dataclass(frozen=True, slots=True)
class Scale:
    """What the metrics are measured against.

    Attributes:
        k: of joint pass and hypervolume, the same for every arm: 8, or half of an arm's rollouts
            where that is less, so that an answer or two may fail without losing the prompt.
        every: hypervolume and coverage are taken for one prompt in so many.
    """

    dims: tuple[str, ...]
    floors_D: Floats
    sigma_D: Floats
    k: int
    every: int


def metric_names(dims: Sequence[str]) -> list[str]:
    """The metrics of an arm, in the order of their columns."""
    return [
        *("dominance_rate", "pareto_rate", "joint_pass", "joint_pass_1", "hypervolume"),
        *("erd", "eigen_entropy", "scored", "refusal", "repeats", "tokens"),
        *(f"{m}_{d}" for d in dims for m in ("reward", "pass", "variance", "gini", "range")),
    ]


def is_rate(name: str) -> bool:
    """Whether a metric is a share in [0, 1], which has an interval of its own."""
    rates = ("dominance_rate", "pareto_rate", "joint_pass", "joint_pass_1", "hypervolume")
    return name in (*rates, "scored", "refusal", "repeats") or name.startswith("pass_")


def measure(arm: ArmBlock, s: Scale, sampled_P: Bools) -> Floats:
    """values_P_M of one arm of a partition; NaN where a prompt has too few scores for a metric."""
    r = arm.rewards_P_N_D
    whole = ~np.isnan(r).any(-1)
    two = whole.sum(1) >= 2
    rate, _ = st.dominance_rate_everywhere(r, 2 * s.sigma_D)
    cov, _ = st.noise_corrected_covariance(r, s.sigma_D)
    eigen = np.clip(np.linalg.eigvalsh(cov), 0, None)
    columns = [
        np.where(two, rate, np.nan),
        np.where(two, st.pareto_rate(r, 2 * s.sigma_D), np.nan),
        st.joint_pass_at_k(r, s.floors_D, s.k),
        st.joint_pass_at_k(r, s.floors_D, 1),
        _hypervolume(r, s, sampled_P),
        np.where(two, st.effective_dimensionality(r, s.sigma_D), np.nan),
        np.where(two, _entropy(eigen), np.nan),
        whole.sum(1) / arm.asked_P,
        mean_over(arm.refusal_P_N, 1),
        mean_over(arm.repeats_P_N, 1),
        mean_over(arm.tokens_P_N, 1),
    ]
    gini, _ = st.gini_mean_difference(r)
    at_k = st.range_at_k(r, s.k)
    for j in range(len(s.dims)):
        there = ~np.isnan(r[..., j])
        n = there.sum(1)
        columns += [
            mean_over(r[..., j], 1),
            mean_over(np.where(there, r[..., j] >= s.floors_D[j], np.nan), 1),
            np.where(two, cov[:, j, j], np.nan),
            np.where(n >= 2, gini[:, j], np.nan),
            at_k[:, j],
        ]
    return np.stack(columns, axis=1)


def _hypervolume(r: Floats, s: Scale, sampled_P: Bools) -> Floats:
    out = np.full(len(r), np.nan)
    if len(s.dims) <= 3 and r.shape[1] <= 32 and sampled_P.any():
        out[sampled_P] = st.hypervolume_at_k(r[sampled_P], s.k)
    return out


def _entropy(eigen_P_D: Floats) -> Floats:
    """exp(H) of the normalised eigenvalues of the noise-corrected covariance; 0 where nothing is
    left after the noise."""
    total = eigen_P_D.sum(1)
    share = eigen_P_D / np.where(total > 1e-12, total, 1.0)[:, None]
    h = -(share * np.log(np.where(share > 0, share, 1.0))).sum(1)
    return np.where(total > 1e-12, np.exp(h), 0.0)


def cluster_batch(ids: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The batch of each id (16 hex digits as a number)."""
    return np.asarray(ids % np.uint64(BATCHES), np.int64)


PRESAMPLE = "presample"
BEFORE = "before"  # fresh answers to the bare prompt


@dataclass(frozen=True, slots=True)
class ArmBlock:
    """One arm of a partition.

    Attributes:
        rows_P: positions of its prompts among the partition's.
        rewards_P_N_D: calibrated rewards in [0, 1], NaN where there is none.
        tokens_P_N: length of each answer in the model's tokens, NaN for none.
        asked_P: how many answers of it there are, failed ones among them; N is the most.
        refusal_P_N: 1 where the rules saw a refusal, else 0, NaN where there is no answer.
        repeats_P_N: 1 where the text came before among the prompt's answers, else the same.
        texts: last user turn of each prompt as asked.
        words_P: its length in word and punctuation tokens.
    """

    rows_P: NDArray[np.intp]
    rewards_P_N_D: Floats
    tokens_P_N: Floats
    refusal_P_N: Floats
    repeats_P_N: Floats
    asked_P: Ints
    texts: list[str]
    words_P: Floats


@dataclass(frozen=True, slots=True)
class Block:
    """One partition.

    Attributes:
        rewrites: arm -> position of a prompt that was tried -> "" where a try was accepted, else
            the first check that the last try failed; and how many tries it took.
        confirms: dimension -> (first, second) scores of the answers that were scored once more.
        checks: (arm, check) -> (sum, n) of the values that the accepted rewrites have.
        candidates_Q_2_D: selected and confirmed margins of the best pair of each prompt and arm,
            confirmed or not.
    """

    prompts: list[Prompt]
    kind_P: list[str]
    carried_P: list[str | None]
    arms: dict[str, ArmBlock]
    rewrites: dict[str, dict[int, tuple[str, int]]]
    confirms: dict[str, tuple[Floats, Floats]]
    checks: dict[tuple[str, str], tuple[float, int]]
    candidates_Q_2_D: Floats


def blocks(parts: Sequence[Partition], dims: Sequence[str]) -> Iterator[Block]:
    """The partitions in order, without the presamples, which picked the prompts.

    Raises:
        DamagedFile: a file of theirs is damaged.
    """
    lean_arrow()
    for part in parts:
        with readable(part.folder, AGAIN):
            block = _block(part, dims)
        yield block


def _block(part: Partition, dims: Sequence[str]) -> Block:
    import pyarrow.compute as pc

    prompts = part.prompts()
    profiles = part.table("profiles", ["prompt_id", "kind", "carried_dim"])
    place = {p: i for i, p in enumerate(profiles.column("prompt_id").to_pylist())}
    prompts = [p for p in prompts if p.prompt_id in place]
    prompts.sort(key=lambda p: place[p.prompt_id])
    ids = profiles.column("prompt_id").combine_chunks()
    columns = ["prompt_id", "arm", "index", "tokens_out", "flags", "error"]
    rollouts = part.table("rollouts", [*columns, *(f"reward_{d}" for d in dims)])
    rollouts = rollouts.filter(pc.not_equal(rollouts.column("arm"), PRESAMPLE))
    asked = _texts(part, place)
    row = pc.index_in(rollouts.column("prompt_id"), value_set=ids).to_numpy()
    index = rollouts.column("index").to_numpy()
    encoded = rollouts.column("arm").combine_chunks().dictionary_encode()
    names, place_of = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
    values = np.stack([_floats(rollouts.column(f"reward_{d}")) for d in dims], axis=1)
    columns_of_R = [
        _floats(rollouts.column("tokens_out")),
        *(_flagged(rollouts, flag) for flag in ("refusal", "duplicate")),
    ]
    arms = {}
    for name in sorted(names):
        at = place_of == names.index(name)
        of_arm = [column[at] for column in columns_of_R]
        arms[name] = _arm(row[at], index[at], values[at], of_arm, asked.get(name, {}))
    rewrites, checks = _rewrites(part, place)
    return Block(
        prompts,
        profiles.column("kind").to_pylist(),
        profiles.column("carried_dim").to_pylist(),
        arms,
        rewrites,
        _confirmed(part, arms, place, dims),
        checks,
        _candidates(part, dims),
    )


def _arm(
    row: NDArray[Any],
    index: NDArray[Any],
    values: Floats,
    columns: Sequence[Floats],
    asked: dict[int, str],
) -> ArmBlock:
    """`columns`: tokens, refusals, repeats of the answers."""
    rows, at = np.unique(row, return_inverse=True)
    shape = (len(rows), int(index.max()) + 1)
    rewards = np.full((*shape, values.shape[1]), np.nan)
    rewards[at, index] = values
    tokens, refusal, repeats = (np.full(shape, np.nan) for _ in columns)
    for table, column in zip((tokens, refusal, repeats), columns, strict=True):
        table[at, index] = column
    texts = [asked.get(int(r), "") for r in rows]
    words = np.array([max(n_tokens(t), 1) for t in texts], float)
    return ArmBlock(
        rows.astype(np.intp),
        rewards,
        tokens,
        refusal,
        repeats,
        np.bincount(at, minlength=len(rows)),
        texts,
        words,
    )


def _confirmed(
    part: Partition, arms: dict[str, ArmBlock], place: dict[str, int], dims: Sequence[str]
) -> dict[str, tuple[Floats, Floats]]:
    """First and second score of each answer that was scored once more, by dimension; with several
    sources, each of the second."""
    import pyarrow.compute as pc

    scores = part.table("scores", ["prompt_id", "arm", "index", "purpose", "dimension", "value"])
    scores = scores.filter(pc.equal(scores.column("purpose"), "confirm"))
    found: dict[str, tuple[list[float], list[float]]] = {d: ([], []) for d in dims}
    slots = {name: {int(r): i for i, r in enumerate(a.rows_P)} for name, a in arms.items()}
    rows = row_tuples(scores, "prompt_id", "arm", "index", "dimension", "value")
    for prompt_id, arm, index, d, value in rows:
        if value is None or arm not in arms or d not in found:
            continue
        first = arms[arm].rewards_P_N_D[slots[arm][place[prompt_id]], index, dims.index(d)]
        if np.isfinite(first):
            found[d][0].append(float(first))
            found[d][1].append(value)
    return {d: (np.array(a), np.array(b)) for d, (a, b) in found.items()}


def _candidates(part: Partition, dims: Sequence[str]) -> Floats:
    table = part.table(
        "pairs", ["rank", *(f"{m}_{d}" for m in ("margin", "margin_confirmed") for d in dims)]
    )
    first = table.column("rank").to_numpy() == 0
    return np.stack(
        [
            np.stack([_floats(table.column(f"{m}_{d}"))[first] for d in dims], axis=1)
            for m in ("margin", "margin_confirmed")
        ],
        axis=1,
    )


def _floats(column: Any) -> Floats:
    import pyarrow as pa

    return np.asarray(column.cast(pa.float64()), float)


def _flagged(rollouts: Any, flag: str) -> Floats:
    """1 for the answers that have the flag, 0 for others, NaN for failed ones."""
    import pyarrow.compute as pc

    flagged = has_flag(rollouts.column("flags").combine_chunks(), [flag]).astype(float)
    flagged[pc.is_valid(rollouts.column("error")).to_numpy()] = np.nan
    return flagged


def _texts(part: Partition, place: dict[str, int]) -> dict[str, dict[int, str]]:
    """Arm -> position of the prompt -> last user turn as asked."""
    out: dict[str, dict[int, str]] = {}
    table = part.table("arms", ["prompt_id", "arm", "messages"])
    for prompt_id, arm, messages in row_tuples(table, "prompt_id", "arm", "messages"):
        out.setdefault(arm, {})[place[prompt_id]] = messages[-1]["content"]
    return out


def _rewrites(
    part: Partition, place: dict[str, int]
) -> tuple[dict[str, dict[int, tuple[str, int]]], dict[tuple[str, str], tuple[float, int]]]:
    table = part.table("fusions", ["prompt_id", "arm", "attempt", "accepted", "failed", "checks"])
    tried: dict[str, dict[int, tuple[str, int]]] = {}
    rows = list(row_tuples(table, "attempt", "accepted", "failed"))
    for (prompt_id, arm), i in last_tries(table).items():
        attempt, accepted, failed = rows[i]
        tried.setdefault(arm, {})[place[prompt_id]] = "" if accepted else failed[0], attempt + 1
    return tried, _checks(table)


def _checks(table: Any) -> dict[tuple[str, str], tuple[float, int]]:
    """Sum and number of each check's value over the accepted rewrites of each arm."""
    import pyarrow.compute as pc

    table = table.filter(table.column("accepted"))
    checks = table.column("checks").combine_chunks()
    arm = np.array(table.column("arm").to_pylist(), dtype=object)[
        pc.list_parent_indices(checks).to_numpy()
    ]
    flat = pc.list_flatten(checks)
    names = np.array(flat.field("name").to_pylist(), dtype=object)
    values = _floats(flat.field("value"))
    there = np.isfinite(values)
    keys = sorted(set(zip(arm[there].tolist(), names[there].tolist(), strict=True)))
    return {
        k: (float(values[at].sum()), int(at.sum()))
        for k in keys
        if (at := there & (arm == k[0]) & (names == k[1])).any()
    }
