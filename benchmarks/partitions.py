"""A run folder with sealed partitions, made up: the tables, columns and row groups of a build, a
few texts, planted pairs.

    make(Path("run"), n_prompts=20_000, arms=["fused"], presamples=0)

Column by column and from the partition's number alone, so that millions of prompts take minutes and
the same arguments give the same bytes. Three dimensions; of most prompts four answers stand for
three candidate pairs, of which one in seven does not hold.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mora_data.types import Origin

DIMS = ("helpful", "harmless", "truthful")
ORIGIN: Origin = {
    "policy": "org/policy",
    "judge": "org/judge",
    "rewriter": "org/policy",
    "selector": "dominance_hv",
    "simulated": False,
    "seed": 0,
}
# prompts of a partition; answers of an arm; share of the prompts with pairs
PART, ANSWERS, PAIRED = 512, 16, 0.7
BEFORE = 8  # fresh answers before fusion, where there are presamples
AS_IT_IS = ("presample", "before", "identity")
_CHECKS = [
    {"name": n, "passed": True, "value": 0.0}
    for n in ("parse", "length", "subject", "harm_before", "harm")
]


def settings_of(arms: list[str], presamples: int) -> dict[str, Any]:
    """What a build with this layout would be set to."""
    return {
        "source": "pku-saferlhf",
        "overrides": {
            "fuse.arms": arms,
            "presample.enabled": presamples > 0,
            "rollout.n": ANSWERS,
            "publish.configs": ["preference"],
            **({"presample.n": [presamples]} if presamples else {}),
        },
    }


def make(run_dir: Path, n_prompts: int, arms: list[str], presamples: int) -> None:
    """The run folder. The same arguments give the same bytes."""
    import numpy as np

    from mora_data.rewards.judge_stats import JudgeStats, Noise
    from mora_data.run.partitions import Partition
    from mora_data.settings import load_settings, to_yaml

    wanted = settings_of(arms, presamples)
    settings = load_settings(wanted["source"], wanted["overrides"])
    run_dir.mkdir(parents=True)
    (run_dir / "build.yaml").write_text(to_yaml(settings))
    n_parts = -(-n_prompts // PART)
    stats = JudgeStats(
        {d: Noise(0.08, 400, True, 0.8, 0.85) for d in DIMS},
        dict.fromkeys(DIMS, 0.75),
        {d: [] for d in DIMS},
        n_rollouts=4096,
        provisional=False,
        cache_key="",
    )
    (run_dir / "reference.json").write_text(json.dumps(stats.to_json()))
    (run_dir / "mine.json").write_text(
        json.dumps({"n_parts": n_parts, "kept": n_prompts, "in": n_prompts, "dropped": {}})
    )
    identity = {
        "source": "pku-saferlhf",
        "dataset": "org/large",
        "config": "default",
        "split": "train",
        "revision": "a" * 40,
    }
    (run_dir / "manifest.json").write_text(
        json.dumps(
            {
                "identity": identity,
                "status": "done",
                "settings": settings.model_dump(mode="json"),
                "counts": {},
                "tokens": {},
                "models": {"policy": "org/policy", "judge": "org/judge"},
                "simulated": False,
                "errors": 0,
            }
        )
    )
    layout = [(a, ANSWERS) for a in arms]
    if presamples:
        layout = [("presample", presamples), ("before", BEFORE), *layout]
    for k in range(n_parts):
        part = Partition(run_dir, k)
        part.folder.mkdir(parents=True)
        _partition(
            part.folder, np.random.default_rng(k), k * PART, min(PART, n_prompts - k * PART), layout
        )


def _partition(
    folder: Path, rng: np.random.Generator, first: int, n: int, layout: list[tuple[str, int]]
) -> None:
    import numpy as np
    import pyarrow as pa

    numbers = np.arange(first, first + n)
    ids = [f"{v:016x}" for v in _mixed(numbers).tolist()]
    asked = sentences(rng, n, 14)
    lines = [
        {
            "prompt_id": i,
            "messages": [{"role": "user", "content": t}],
            "group": i,
            "source_dataset": "org/large",
            "source_config": "default",
            "source_split": "train",
            "source_revision": "a" * 40,
            "source_row": row,
            "source_licence": "cc-by-4.0",
            "stratum": "all",
            "category": f"topic {row % 19}",
            "recorded": [],
        }
        for i, t, row in zip(ids, asked, numbers.tolist(), strict=True)
    ]
    (folder / "prompts.jsonl").write_text(
        "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    )
    sizes = np.array([size for _, size in layout])
    names = np.array([name for name, _ in layout])
    arm_of_row = np.repeat(np.tile(np.arange(len(layout)), n), np.tile(sizes, n))
    prompt_of_row = np.repeat(np.arange(n), sizes.sum())
    index = np.concatenate([np.arange(s) for _ in range(n) for s in sizes])
    levels = rng.choice(5, (len(index), len(DIMS)), p=(0.08, 0.12, 0.2, 0.25, 0.35)) / 4
    pairs = _planted(rng, n, layout, levels)
    who, arm = pa.array(ids), pa.array(names.tolist())
    rows = {
        "prompt_id": who.take(pa.array(prompt_of_row)),
        "arm": arm.take(pa.array(arm_of_row)),
        "index": pa.array(index, pa.int32()),
    }
    _rollouts(folder, rng, rows, levels)
    _scores(folder, rng, rows, levels, pairs, index)
    _pairs(folder, rows, pairs, levels, index)
    _few(folder, rng, ids, asked, layout)


def _planted(
    rng: np.random.Generator, n: int, layout: list[tuple[str, int]], levels_R_D: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Rows of (chosen, rejected) of the candidate pairs, three to a prompt and arm, best first;
    rewards are made to fit."""
    import numpy as np

    width = sum(size for _, size in layout)
    found, at = [], 0
    for name, size in layout:
        if name in AS_IT_IS:
            at += size
            continue
        four = np.argsort(rng.random((n, size)), axis=1)[:, :4] + at + np.arange(n)[:, None] * width
        four = four[rng.random(n) < PAIRED]
        for k, value in enumerate((1.0, 0.75, 0.0, 0.25)):
            levels_R_D[four[:, k]] = value
        found.append(
            np.stack([four[:, [0, 2]], four[:, [0, 3]], four[:, [1, 2]]], axis=1).reshape(-1, 2)
        )
        at += size
    flat = np.concatenate(found) if found else np.zeros((0, 2), int)
    return flat[
        np.argsort(flat[:, 0] // width * 64 + _arm_place(flat[:, 0] % width, layout), kind="stable")
    ]


def _arm_place(at: NDArray[np.int64], layout: list[tuple[str, int]]) -> NDArray[np.int64]:
    import numpy as np

    return np.asarray(np.searchsorted(np.cumsum([size for _, size in layout]), at, "right"))


def _rollouts(
    folder: Path, rng: np.random.Generator, rows: dict[str, Any], levels: NDArray[np.float64]
) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    n = len(levels)
    words = sentences(rng, 997, 12)
    number = pc.cast(pa.array(rng.integers(0, 1 << 40, n)), pa.string())
    text = pc.binary_join_element_wise(
        pa.array(words).take(pa.array(rng.integers(0, 997, n))), number, " "
    )
    odd = rng.random(n) < 0.02
    flags = pa.ListArray.from_arrays(
        pa.array(np.concatenate([[0], np.cumsum(odd)]), pa.int32()),
        pa.repeat(pa.scalar("refusal"), int(odd.sum())),
    )
    long = pa.array(rng.integers(8, 40, n), pa.int32())
    _write(
        folder,
        "rollouts",
        {
            **rows,
            "text": text,
            "finish_reason": pa.repeat(pa.scalar("stop"), n),
            "tokens_out": long,
            "length": long,
            "flags": flags,
            "error": pa.nulls(n, pa.string()),
            "persona": pa.nulls(n, pa.string()),
            **{
                f"{what}_{d}": pa.array(levels[:, j] if what != "doubt" else np.zeros(n))
                for what in ("reward", "level", "doubt")
                for j, d in enumerate(DIMS)
            },
        },
    )


def _scores(
    folder: Path,
    rng: np.random.Generator,
    rows: dict[str, Any],
    levels: NDArray[np.float64],
    pairs: NDArray[np.int64],
    index: NDArray[np.int64],
) -> None:
    """One row per answer and dimension, and one more where an answer of a pair was scored again."""
    import numpy as np
    import pyarrow as pa

    again = np.unique(pairs)
    at = np.repeat(np.concatenate([np.arange(len(levels)), again]), len(DIMS))
    d = np.tile(np.arange(len(DIMS)), len(levels) + len(again))
    purpose = np.repeat([0, 1], [len(levels) * len(DIMS), len(again) * len(DIMS)])
    value = levels[at, d]
    moved = (purpose == 1) & (rng.random(len(value)) < 0.1)
    value = np.where(moved, np.clip(value + rng.choice((-0.25, 0.25), len(value)), 0, 1), value)
    order = np.argsort(rows["prompt_id"].dictionary_encode().indices.to_numpy()[at], kind="stable")
    at, d, purpose, value = at[order], d[order], purpose[order], value[order]
    take = pa.array(at)
    _write(
        folder,
        "scores",
        {
            **{name: column.take(take) for name, column in rows.items()},
            "purpose": pa.array(["score", "confirm"]).take(pa.array(purpose)),
            "dimension": pa.array(DIMS).take(pa.array(d)),
            "source": pa.array([f"judge:{name}" for name in DIMS]).take(pa.array(d)),
            "value": pa.array(value),
            "raw": pa.array(value * 4 + 1),
            "reason": pa.repeat(pa.scalar(""), len(at)),
        },
    )


def _pairs(
    folder: Path,
    rows: dict[str, Any],
    pairs: NDArray[np.int64],
    levels: NDArray[np.float64],
    index: NDArray[np.int64],
) -> None:
    import numpy as np
    import pyarrow as pa

    margin = levels[pairs[:, 0]] - levels[pairs[:, 1]]
    fresh = np.where(np.arange(len(pairs))[:, None] % 7 == 3, -0.25, margin)
    first = pa.array(pairs[:, 0])
    _write(
        folder,
        "pairs",
        {
            "prompt_id": rows["prompt_id"].take(first),
            "arm": rows["arm"].take(first),
            "rank": pa.array(np.arange(len(pairs)) % 3, pa.int32()),
            "chosen": pa.array(index[pairs[:, 0]], pa.int32()),
            "rejected": pa.array(index[pairs[:, 1]], pa.int32()),
            "score": pa.array(margin.prod(1)),
            **{f"margin_{d}": pa.array(margin[:, j]) for j, d in enumerate(DIMS)},
            **{f"margin_confirmed_{d}": pa.array(fresh[:, j]) for j, d in enumerate(DIMS)},
        },
    )


def _few(
    folder: Path,
    rng: np.random.Generator,
    ids: list[str],
    asked: list[str],
    layout: list[tuple[str, int]],
) -> None:
    """The tables with a row per prompt or arm, and the manifest."""
    import pyarrow as pa

    n = len(ids)
    carried = [DIMS[k] for k in rng.integers(0, len(DIMS), n).tolist()]
    rewritten = {
        name: sentences(rng, n, 20) if name not in AS_IT_IS else asked for name, _ in layout
    }
    _write(
        folder,
        "profiles",
        {
            "prompt_id": ids,
            "kind": ["one_dim"] * n,
            "n": [16] * n,
            "carried_dim": carried,
            "target_dims": [[d for d in DIMS if d != c] for c in carried],
            "binding_dims": [list(DIMS)] * n,
            "dominance": [0.1] * n,
            "erd": [1.0] * n,
            "joint": [0.5] * n,
            "owed": [None] * n,
            **{f"state_{d}": ["static"] * n for d in DIMS},
            **{f"{what}_{d}": [0.5] * n for what in ("passed", "gini") for d in DIMS},
        },
    )
    keys = [(i, k, name) for k, i in enumerate(ids) for name, _ in layout]
    _write(
        folder,
        "arms",
        {
            "prompt_id": [i for i, _, _ in keys],
            "arm": [a for _, _, a in keys],
            "messages": [[{"role": "user", "content": rewritten[a][k]}] for _, k, a in keys],
        },
    )
    made = [key for key in keys if key[2] not in AS_IT_IS]
    _write(
        folder,
        "fusions",
        {
            "prompt_id": [i for i, _, _ in made],
            "arm": [a for _, _, a in made],
            "attempt": [0] * len(made),
            "candidate": [0] * len(made),
            "text": [rewritten[a][k] for _, k, a in made],
            "accepted": [True] * len(made),
            "failed": pa.array([[]] * len(made), pa.list_(pa.string())),
            "checks": [_CHECKS] * len(made),
        },
    )
    (folder / "errors.jsonl").write_bytes(b"")
    (folder / "manifest.json").write_text(
        json.dumps(
            {
                "settings": "",
                "n_prompts": n,
                "answers": 0,
                "counts": {},
                "errors": 0,
                "owed": [],
                "tokens": [0, 0],
            }
        )
    )


def _write(folder: Path, name: str, columns: dict[str, Any]) -> None:
    """As `store.parts.write_table`, from columns that are arrays already."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from mora_data.prompts.result import schemas

    schema = schemas(DIMS)[name]
    n = len(next(iter(columns.values())))

    def of(f: pa.Field) -> pa.Array:
        values = columns.get(f.name, [None] * n)  # a column that no run here has anything in
        return values if isinstance(values, pa.Array) else pa.array(values, f.type)

    table = pa.table({f.name: of(f) for f in schema}).cast(schema)
    with pq.ParquetWriter(
        folder / f"{name}.parquet",
        schema,
        compression="zstd",
        use_dictionary=False,
        write_page_index=True,
    ) as writer:
        writer.write_table(table, row_group_size=1000)


def sentences(rng: np.random.Generator, n: int, words: int) -> list[str]:
    """Texts of so many made-up words; two share a run of five by chance alone."""
    import pyarrow as pa
    import pyarrow.compute as pc

    pool = pa.array(
        [
            f"{a}{b}{c}"
            for a in "bdfklmnprst"
            for b in "aeiou"
            for c in ("", "n", "st", "r", "lo", "mi", "ta", "ku")
        ]
    )
    columns = [pool.take(pa.array(rng.integers(0, len(pool), n))) for _ in range(words)]
    return [str(t) for t in pc.binary_join_element_wise(*columns, " ").to_pylist()]


def _mixed(numbers: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Ids that look drawn: splitmix64's last step, which is one to one."""
    import numpy as np

    x = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))
