"""The Parquet files of a dataset folder: one pinned Arrow schema per config, and their writer.

Nothing is inferred from rows: a dimension that nobody scored is a column of nulls in every shard,
never another type. `prompt`, `chosen`, `rejected` and `completion` are message lists; rewards and
margins are flat nullable float64, so that a viewer can plot and filter them.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import PublishError
from ..run.files import readable, sha256_of, sync_folder

AGAIN = "fetch it anew, or build it again"
Row = dict[str, Any]  # of a Parquet file; the schema of its config says what it holds
DEFAULT_CONFIG = "preference"
BY_DIM_UNION = "preference_by_dim"  # declared by listing paths; it has no files of its own
STRING, INT, FLOAT, BOOL = pa.string(), pa.int64(), pa.float64(), pa.bool_()
MESSAGES = pa.list_(pa.struct([("role", STRING), ("content", STRING)]))
TEXTS = pa.list_(STRING)
INTS = pa.list_(INT)
_WITHOUT_DIMENSION = ("unpaired", "prompt_only", "scored", "reward_modeling", "multilabel", "sft")
BATCH_ROWS = 1000
BATCH_BYTES = 32 << 20
SHARD_BYTES = 500 << 20
FREE_TEXT = frozenset(
    {"chosen", "rejected", "completion", "response", "completions", "thoughts", "pair_id"}
)


class Column(NamedTuple):
    """One column: its name, its Arrow type, and what it means, in one phrase for the card."""

    name: str
    type: pa.DataType
    meaning: str


PROVENANCE = (
    Column("prompt_id", STRING, "hash of the normalised source context"),
    Column(
        "source_prompt",
        STRING,
        "the source context, normalised; several turns as `role: content` lines",
    ),
    Column("source_dataset", STRING, "where the prompt was mined"),
    Column("source_config", STRING, "its configuration"),
    Column("source_split", STRING, "its split"),
    Column("source_revision", STRING, "its commit, or `local:` and the hash of the file"),
    Column("source_row", INT, "row number in the source"),
    Column("source_licence", STRING, "licence of the source row"),
    Column("stratum", STRING, "the source's own label; never a verdict"),
    Column("category", STRING, "the source's topic or harm category"),
    Column("arm", STRING, "how the prompt was rewritten: `fused`, `identity`, ..."),
    Column(
        "kind",
        STRING,
        "what presampling found: `flat`, `one_dim`, `conflict`, `multi`, `undecided`, `plain`",
    ),
    Column("carried_dim", STRING, "the dimension that the source prompt already asks for"),
    Column("target_dims", TEXTS, "the dimensions that fusion added"),
    Column("binding_dims", TEXTS, "the dimensions in which `chosen` must win"),
    Column("dims", TEXTS, "all reward dimensions, in the order of the columns"),
    Column("simulated", BOOL, "true: made by the simulator, not by a language model"),
    Column("policy", STRING, "the model that answered"),
    Column("judge", STRING, "the model that scored"),
    Column("rewriter", STRING, "the model that fused"),
    Column("seed", INT, "seed of the run"),
)
THOUGHTS = Column("thoughts", TEXTS, "what was thought before each answer; null: nothing known")
PROMPT = Column("prompt", MESSAGES, "the conversation up to and including the user's turn")
DIMENSION = Column("dimension", STRING, "the dimension that the pair was chosen for")
_BEHIND_PAIRS = {
    "preference": (),
    "by_dim": (DIMENSION,),
    "stage": (DIMENSION, Column("stage", INT, "number of the stage, from 1")),
    "reward_modeling": (
        Column("margin", FLOAT, "`margin_total`, under the name that reward trainers read"),
    ),
}


def columns(config: str, dims: Sequence[str]) -> tuple[Column, ...]:
    """The columns of a config, in file order."""
    family = family_of(config)
    if family in _BEHIND_PAIRS:
        return (PROMPT, *_pair(dims), *PROVENANCE, *_BEHIND_PAIRS[family])
    own: tuple[Column, ...] = ()
    if family == "scored":
        own = (
            Column("completions", TEXTS, "every answer, failed ones as empty text"),
            THOUGHTS,
            *_per_dim(
                "rewards_{}",
                dims,
                "one reward in [0, 1] per answer, null where there is none",
                pa.list_(FLOAT),
            ),
            Column(
                "flags",
                pa.list_(TEXTS),
                "what was seen in each answer: `truncated`, `refusal`, `error`, ...",
            ),
            Column("finish_reasons", TEXTS, "why each answer ended"),
            Column("lengths", INTS, "length of each answer in word and punctuation tokens"),
            Column("pair_chosen", INTS, "positions of the chosen answers of the selected pairs"),
            Column("pair_rejected", INTS, "positions of the rejected ones, in the same order"),
            Column("selector", STRING, "the rule that chose the pairs"),
        )
    elif family == "multilabel":
        own = (
            Column("response", STRING, "one answer"),
            *_per_dim("score_{}", dims, "its reward in [0, 1]"),
        )
    elif family == "unpaired":
        own = (
            Column("completion", MESSAGES, "one answer"),
            Column("label", BOOL, "true: every floor is met; false: one is clearly missed"),
            *_per_dim("reward_{}", dims, "reward in [0, 1]"),
        )
    elif family == "sft":
        own = (
            Column("completion", MESSAGES, "the chosen answer"),
            *_per_dim("reward_{}", dims, "its reward in [0, 1]"),
            Column("pair_id", STRING, "the pair it was chosen in"),
        )
    return (PROMPT, *own, *PROVENANCE)


def _pair(dims: Sequence[str]) -> tuple[Column, ...]:
    length = "length in word and punctuation tokens"
    return (
        Column("chosen", MESSAGES, "the better answer"),
        Column("rejected", MESSAGES, "the worse answer"),
        Column("pair_id", STRING, "hash of prompt id, arm and both texts"),
        *_per_dim("chosen_reward_{}", dims, "reward of `chosen`, in [0, 1]"),
        *_per_dim("rejected_reward_{}", dims, "reward of `rejected`, in [0, 1]"),
        *_per_dim("margin_{}", dims, "chosen minus rejected"),
        *_per_dim(
            "margin_confirmed_{}",
            dims,
            "the margin when both were scored once more; null: not done",
        ),
        Column("margin_total", FLOAT, "sum of the margins"),
        Column("selector", STRING, "the rule that chose the pair"),
        Column("score", FLOAT, "what that rule maximised"),
        Column("weight", FLOAT, "1 / number of pairs of this prompt and arm"),
        *_per_dim("pro_weight_{}", dims, "share of the dimension in softmax(rewards of `chosen`)"),
        Column("len_chosen", INT, length),
        Column("len_rejected", INT, length),
    )


def _per_dim(
    pattern: str, dims: Sequence[str], meaning: str, kind: pa.DataType = FLOAT
) -> tuple[Column, ...]:
    return tuple(Column(pattern.format(d), kind, meaning) for d in dims)


def schema(config: str, dims: Sequence[str], thoughts: bool = False) -> pa.Schema:
    """The Arrow schema of a config; `thoughts` are a column only where they are asked for."""
    own = (c for c in columns(config, dims) if thoughts or c is not THOUGHTS)
    return pa.schema([pa.field(c.name, c.type) for c in own])


def config_names(dims: Sequence[str], stage_order: Sequence[str]) -> list[str]:
    """Every config that has files, the default first. Stages follow `stage_order`, as far as `dims`
    has them."""
    stages = [d for d in stage_order if d in dims]
    return [
        DEFAULT_CONFIG,
        *(f"preference_{d}" for d in dims),
        *(f"stage{k}_{d}" for k, d in enumerate(stages, 1)),
        *_WITHOUT_DIMENSION,
    ]


def family_of(config: str) -> str:
    """`by_dim` for preference_<dim>, `stage` for stageK_<dim>, else the config's own name.

    Raises:
        KeyError: there is no such config.
    """
    if config in (DEFAULT_CONFIG, *_WITHOUT_DIMENSION):
        return config
    if re.fullmatch(r"stage\d+_.+", config):
        return "stage"
    if config.startswith("preference_") and config != BY_DIM_UNION:
        return "by_dim"
    raise KeyError(config)


@contextlib.contextmanager
def replacement(folder: Path) -> Iterator[Path]:
    """An empty folder that takes the place of `folder` at the end; after an error all stays as it
    was.

    Raises:
        PublishError: the disk refuses.
    """
    fresh = folder.with_name(f".{folder.name}.new")
    old = folder.with_name(f".{folder.name}.old")
    try:
        for leftover in (fresh, old):
            shutil.rmtree(leftover, ignore_errors=True)
        fresh.mkdir(parents=True)
        yield fresh
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
        sync_folder(folder.parent)
    except OSError as e:
        raise PublishError(
            f"can't write the dataset folder {folder}: {e.strerror or e}; free space or choose"
            " another --out"
        ) from e
    finally:
        for leftover in (fresh, old):
            shutil.rmtree(leftover, ignore_errors=True)


def record_batches(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a Parquet file, a thousand at a time.

    Raises:
        DamagedFile: it can't be read.
    """
    with readable(path, AGAIN), pq.ParquetFile(path) as file:
        yield from file.iter_batches(BATCH_ROWS, columns=columns)


def row_batches(files: Iterable[Path]) -> Iterator[list[Row]]:
    """The rows of Parquet files, a thousand at a time.

    Raises:
        DamagedFile: one can't be read.
    """
    for path in files:
        for batch in record_batches(path):
            with readable(path, AGAIN):
                rows = batch.to_pylist()
            yield rows


def footer_of(path: Path) -> Any:
    """The footer of a Parquet file (pyarrow.parquet.FileMetaData).

    Raises:
        DamagedFile: it can't be read.
    """
    with readable(path, AGAIN):
        return pq.read_metadata(path)


def fingerprint_of(folder: Path) -> str:
    """sha256 over the names and bytes of the folder's Parquet files.

    Raises:
        DamagedFile: one can't be read.
    """
    whole = hashlib.sha256()
    for path in sorted(folder.glob("*/*.parquet")):
        whole.update(path.relative_to(folder).as_posix().encode() + b"\0")
        with readable(path, AGAIN), path.open("rb") as f:
            while block := f.read(1 << 20):
                whole.update(block)
    return whole.hexdigest()


def papers_of(folder: Path) -> dict[str, str]:
    """sha256 of every file of the folder that is not Parquet, by path."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix != ".parquet")
    return {p.relative_to(folder).as_posix(): sha256_of(p) for p in files}


def check_fingerprint(folder: Path, known: str | None) -> None:
    """Raises PublishError where the Parquet files are not those of the `known` fingerprint."""
    if known and known != fingerprint_of(folder):
        raise PublishError(
            f"the Parquet files in {folder} were changed since the build (fingerprint is not"
            f" {known[:12]}): build again"
        )


def counts_of(folder: Path) -> dict[str, dict[str, int]]:
    """Rows per config and split, from the Parquet footers, in the order of the card."""
    found: dict[str, dict[str, int]] = {}
    for path in sorted(folder.glob("*/*.parquet")):
        split = path.name.split("-")[0]
        rows = found.setdefault(path.parent.name, {})
        rows[split] = rows.get(split, 0) + footer_of(path).num_rows
    return {
        name: dict(sorted(found[name].items(), key=lambda kv: kv[0] != "train"))
        for name in sorted(found, key=lambda n: (n != DEFAULT_CONFIG, n))
    }


class ShardWriter:
    """Rows of one config and split -> `<split>-<k>.part` files; `finalize` gives them their names.

    A batch is 1,000 rows (fewer when they are large) and one row group. The bytes depend on the
    rows and on pyarrow's version, on nothing else.
    """

    def __init__(self, folder: Path, split: str, schema: pa.Schema) -> None:
        self._folder, self._split, self._schema = folder, split, schema
        self._waiting: list[pa.RecordBatch] = []
        self._n_waiting = 0
        self._parts: list[Path] = []
        self._sink: Any = None
        self._writer: Any = None

    def add(self, rows: pa.RecordBatch) -> None:
        """Take rows in the writer's schema."""
        if not rows.num_rows:
            return
        self._waiting.append(rows)
        self._n_waiting += rows.num_rows
        if self._n_waiting >= BATCH_ROWS or sum(b.nbytes for b in self._waiting) >= BATCH_BYTES:
            self._flush(last=False)

    def close(self) -> None:
        """Write what is left."""
        self._flush(last=True)
        self._finish()

    def discard(self) -> None:
        """Let go of a file that could not be finished: its writer would try again, and complain,
        when it is collected."""
        if self._writer is not None:
            self._writer.is_open = False
            with contextlib.suppress(OSError):
                self._sink.close()
            self._writer = self._sink = None

    def finalize(self) -> None:
        """Give the parts their final names, once all is written."""
        for k, part in enumerate(self._parts):
            name = f"{self._split}-{k:05d}-of-{len(self._parts):05d}.parquet"
            part.rename(part.with_name(name))

    def _flush(self, last: bool) -> None:
        """Write whole row groups; what is left waits for more rows, unless these are the `last`
        ones."""
        table = pa.Table.from_batches(self._waiting, self._schema)
        mean = max(table.nbytes // max(table.num_rows, 1), 1)
        rows = max(1, min(BATCH_ROWS, BATCH_BYTES // mean))
        stop = table.num_rows if last else table.num_rows - table.num_rows % rows
        for at in range(0, stop, rows):
            self._write(table.slice(at, min(rows, stop - at)))
        self._n_waiting = table.num_rows - stop
        # a copy: a slice would keep all the rows alive
        left = table.take(pa.array(range(stop, table.num_rows), pa.int64()))
        self._waiting = left.to_batches() if self._n_waiting else []

    def _write(self, group: pa.Table) -> None:
        if self._writer is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._parts.append(self._folder / f"{self._split}-{len(self._parts):05d}.part")
            self._sink = pa.OSFile(str(self._parts[-1]), "wb")
            self._writer = pq.ParquetWriter(
                self._sink,
                self._schema,
                compression="zstd",
                write_page_index=True,
                use_dictionary=_paths(self._schema, FREE_TEXT),
                write_statistics=_paths(
                    self._schema, FREE_TEXT | {"prompt", "source_prompt"}, numbers=True
                ),
            )
        self._writer.write_table(group.combine_chunks(), row_group_size=BATCH_ROWS)
        if self._sink.tell() >= SHARD_BYTES:
            self._finish()

    def _finish(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._sink.close()
            self._writer = self._sink = None


def _paths(schema: pa.Schema, without: frozenset[str], numbers: bool = False) -> list[str]:
    """Parquet paths of the columns not named in `without`; fractions and booleans only with
    `numbers`."""
    return [p for f in schema if f.name not in without for p in _leaves(f.name, f.type, numbers)]


def _leaves(path: str, kind: pa.DataType, numbers: bool) -> list[str]:
    if pa.types.is_list(kind):
        return _leaves(f"{path}.list.element", kind.value_type, numbers)
    if pa.types.is_struct(kind):
        return [p for f in kind for p in _leaves(f"{path}.{f.name}", f.type, numbers)]
    skipped = pa.types.is_boolean(kind) or pa.types.is_floating(kind)
    return [path] if numbers or not skipped else []
