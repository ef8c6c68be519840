"""A run's sealed partitions as arrays, one partition at a time: memory holds one block, whatever
the size of the run.

for block in blocks(parts, dims, want): block.arms["fused"].rewards_P_N_D
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import RunFolderError
from ..run.partitions import Partition, lean_arrow
from ..text import n_tokens
from ..types import Prompt

if TYPE_CHECKING:
    from numpy.typing import NDArray

PRESAMPLE = "presample"
BEFORE = "before"  # half B of split presamples, as an arm


@dataclass(frozen=True, slots=True)
class ArmBlock:
    """One arm of a partition.

    Attributes:
        rows_P: positions of its prompts among the partition's.
        rewards_P_N_D: calibrated rewards in [0, 1], NaN where there is none.
        tokens_P_N: length of each answer in the model's tokens, NaN for none.
        asked_P: how many answers of it there are, failed ones among them; N is the most.
        refusal_P_N: 1 where the rules saw a refusal, else 0, NaN where there is no answer.
        texts: last user turn of each prompt as asked.
        words_P: its length in word and punctuation tokens.
    """

    rows_P: NDArray[np.intp]
    rewards_P_N_D: NDArray[np.float64]
    tokens_P_N: NDArray[np.float64]
    refusal_P_N: NDArray[np.float64]
    asked_P: NDArray[np.int_]
    texts: list[str]
    words_P: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Fusions:
    """The rewriting of one arm in a partition: one entry for each prompt that was tried.

    Attributes:
        rows_P: positions of the prompts.
        failed_P: "" where a try was accepted, else the first check that the last try failed.
        tries_P: how many tries it took.
    """

    rows_P: NDArray[np.intp]
    failed_P: list[str]
    tries_P: NDArray[np.int_]


@dataclass(frozen=True, slots=True)
class Block:
    """One partition.

    Attributes:
        confirms: dimension -> (first, second) scores of the answers that were scored once more.
        checks: (arm, check) -> (sum, n) of the values that the accepted rewrites have.
        candidates_Q_2_D: selected and confirmed margins of the best pair of each prompt and arm,
            held or not.
    """

    prompts: list[Prompt]
    kind_P: list[str]
    carried_P: list[str | None]
    arms: dict[str, ArmBlock]
    fusions: dict[str, Fusions]
    confirms: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]] = field(
        default_factory=dict
    )
    checks: dict[tuple[str, str], tuple[float, int]] = field(default_factory=dict)
    candidates_Q_2_D: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 2, 0)))


def blocks(parts: Sequence[Partition], dims: Sequence[str], split: bool) -> Iterator[Block]:
    """The partitions in order. `split`: odd presamples decided nothing and stand as the arm
    `before`.

    Raises:
        RunFolderError: a table is damaged.
    """
    import pyarrow as pa

    lean_arrow()
    for part in parts:
        try:
            yield _block(part, dims, split)
        except (OSError, pa.ArrowException, KeyError) as e:
            raise RunFolderError(
                f"{part.folder} is damaged ({' '.join(str(e).split())[:80]}): delete its"
                " manifest.json and run the same build again, what was answered is kept"
            ) from e


def _block(part: Partition, dims: Sequence[str], split: bool) -> Block:
    import pyarrow.compute as pc

    prompts = part.prompts()
    profiles = part.table("profiles", ["prompt_id", "kind", "carried_dim"])
    place = {p: i for i, p in enumerate(profiles.column("prompt_id").to_pylist())}
    prompts = [p for p in prompts if p.prompt_id in place]
    prompts.sort(key=lambda p: place[p.prompt_id])
    ids = profiles.column("prompt_id").combine_chunks()
    rollouts = part.table(
        "rollouts",
        [
            "prompt_id",
            "arm",
            "index",
            "tokens_out",
            "flags",
            "error",
            *(f"reward_{d}" for d in dims),
        ],
    )
    if not split:
        rollouts = rollouts.filter(pc.not_equal(rollouts.column("arm"), PRESAMPLE))
    asked = _texts(part, place)
    row = pc.index_in(rollouts.column("prompt_id"), value_set=ids).to_numpy()
    index = rollouts.column("index").to_numpy()
    encoded = rollouts.column("arm").combine_chunks().dictionary_encode()
    names, place_of = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
    values = np.stack([_floats(rollouts.column(f"reward_{d}")) for d in dims], axis=1)
    tokens, refused = _floats(rollouts.column("tokens_out")), _refusals(rollouts)
    arms = {}
    for name in sorted(names):
        at = place_of == names.index(name)
        if name == PRESAMPLE:
            at &= index % 2 == 1
        if not at.any():
            continue
        arms[BEFORE if name == PRESAMPLE else name] = _arm(
            row[at],
            index[at] // 2 if name == PRESAMPLE else index[at],
            values[at],
            tokens[at],
            refused[at],
            asked.get(name, {}),
        )
    fusions, checks = _fusions(part, place)
    return Block(
        prompts,
        profiles.column("kind").to_pylist(),
        profiles.column("carried_dim").to_pylist(),
        arms,
        fusions,
        _confirmed(part, arms, place, dims),
        checks,
        _candidates(part, dims),
    )


def _arm(
    row: NDArray[Any],
    index: NDArray[Any],
    values: NDArray[np.float64],
    tokens: NDArray[np.float64],
    refused: NDArray[np.float64],
    asked: dict[int, str],
) -> ArmBlock:
    rows, at = np.unique(row, return_inverse=True)
    shape = (len(rows), int(index.max()) + 1)
    rewards = np.full((*shape, values.shape[1]), np.nan)
    long, refusal = np.full(shape, np.nan), np.full(shape, np.nan)
    rewards[at, index], long[at, index], refusal[at, index] = values, tokens, refused
    texts = [asked.get(int(r), "") for r in rows]
    words = np.array([max(n_tokens(t), 1) for t in texts], float)
    return ArmBlock(
        rows.astype(np.intp),
        rewards,
        long,
        refusal,
        np.bincount(at, minlength=len(rows)),
        texts,
        words,
    )


def _confirmed(
    part: Partition, arms: dict[str, ArmBlock], place: dict[str, int], dims: Sequence[str]
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """First and second score of each answer that was scored once more, by dimension; with several
    sources, each of the second."""
    import pyarrow.compute as pc

    scores = part.table("scores", ["prompt_id", "arm", "index", "purpose", "dimension", "value"])
    scores = scores.filter(pc.equal(scores.column("purpose"), "confirm"))
    found: dict[str, tuple[list[float], list[float]]] = {d: ([], []) for d in dims}
    slots = {name: {int(r): i for i, r in enumerate(a.rows_P)} for name, a in arms.items()}
    columns = (
        scores.column(c).to_pylist() for c in ("prompt_id", "arm", "index", "dimension", "value")
    )
    for prompt_id, arm, index, d, value in zip(*columns, strict=True):
        if value is None or arm not in arms or d not in found:
            continue
        first = arms[arm].rewards_P_N_D[slots[arm][place[prompt_id]], index, dims.index(d)]
        if np.isfinite(first):
            found[d][0].append(float(first))
            found[d][1].append(value)
    return {d: (np.array(a), np.array(b)) for d, (a, b) in found.items()}


def _candidates(part: Partition, dims: Sequence[str]) -> NDArray[np.float64]:
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


def _floats(column: Any) -> NDArray[np.float64]:
    import pyarrow as pa

    return np.asarray(column.cast(pa.float64()), float)


def _refusals(rollouts: Any) -> NDArray[np.float64]:
    import pyarrow.compute as pc

    flags = rollouts.column("flags").combine_chunks()
    refused = np.zeros(len(flags))
    hit = pc.list_parent_indices(flags).to_numpy()[
        pc.equal(pc.list_flatten(flags), "refusal").to_numpy(zero_copy_only=False)
    ]
    refused[hit] = 1.0
    refused[pc.is_valid(rollouts.column("error")).to_numpy()] = np.nan
    return refused


def _texts(part: Partition, place: dict[str, int]) -> dict[str, dict[int, str]]:
    """Arm -> position of the prompt -> last user turn as asked."""
    out: dict[str, dict[int, str]] = {}
    table = part.table("arms", ["prompt_id", "arm", "messages"])
    for prompt_id, arm, messages in zip(
        *(table.column(c).to_pylist() for c in ("prompt_id", "arm", "messages")), strict=True
    ):
        out.setdefault(arm, {})[place[prompt_id]] = messages[-1]["content"]
    return out


def _fusions(
    part: Partition, place: dict[str, int]
) -> tuple[dict[str, Fusions], dict[tuple[str, str], tuple[float, int]]]:
    table = part.table("fusions", ["prompt_id", "arm", "attempt", "accepted", "failed", "checks"])
    tried: dict[str, dict[int, tuple[str, int]]] = {}
    columns = [
        table.column(c).to_pylist() for c in ("prompt_id", "arm", "attempt", "accepted", "failed")
    ]
    for prompt_id, arm, attempt, accepted, failed in zip(*columns, strict=True):
        row, before = place[prompt_id], tried.setdefault(arm, {})
        passed_over = not accepted and not failed  # a better candidate of the same try was taken
        if not passed_over and before.get(row, ("-", 0))[0] != "":
            before[row] = ("" if accepted else failed[0], attempt + 1)
    out = {}
    for arm, by_row in tried.items():
        rows = sorted(by_row)
        out[arm] = Fusions(
            np.array(rows, np.intp),
            [by_row[r][0] for r in rows],
            np.array([by_row[r][1] for r in rows]),
        )
    return out, _checks(table)


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
