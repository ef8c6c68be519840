"""The pairs of a folder as columns in memory: numbers and the first words of each text. Full texts
stay on disk.

    index = index_pairs(folder)        index.n, index.numbers["margin_helpful"], index.words(7)

100,000 pairs take some 60 MB. A pair's place in its file is known, so that its page reads one row
group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RunFolderError
from ..rewards.rules import is_refusal
from ..run.files import readable
from ..run.partitions import lean_arrow
from ..statistics import Bools
from .folder import CHANGED, OTHER_VERSION, FileStamp, ViewedFolder, stamp_files

PROMPT_BYTES, ANSWER_BYTES = 160, 100  # of each text that are kept in memory
SIDES = ("chosen", "rejected")
TEXTS = ("prompt", *SIDES)
LABELS = ("arm", "kind", "carried_dim", "category", "source_dataset")
FACETS = ("split", *LABELS)
FLAGS = {
    "longer": "chosen is longer",
    "long_gap": "one side twice as long",
    "refusal": "chosen declines",
    "unconfirmed": "not scored again",
    "lost": "a margin lost when scored again",
    "small": "a total margin under 0.25",
    "harm": "an answer may be harmful",
}
PairRow = dict[str, Any]  # every column of a row of `preference`


@dataclass(frozen=True, slots=True)
class Labels:
    """A column of few different words: `names[code_Q[i]]`."""

    names: tuple[str, ...]
    code_Q: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class PairIndex:
    """Q pairs in the order of their files.

    Attributes:
        starts: position of the first pair of each file.
        row_of: pair id -> position.
        groups: prompt id -> code; prompt_Q holds each pair's.
        numbers: column -> float per pair, NaN where there is none; no column where no pair is.
        targets_Q_D: whether fusion added a dimension.
        flags: see FLAGS.
        unsafe: side -> whether its answer is not known to be harmless.
        texts: first bytes of prompt, chosen and rejected (pyarrow.ChunkedArray of bytes).
    """

    dims: tuple[str, ...]
    files: tuple[Path, ...]
    stamp: FileStamp
    starts: NDArray[np.int64]
    ids: list[str]
    row_of: Mapping[str, int]
    groups: Mapping[str, int]
    prompt_Q: NDArray[np.int32]
    labels: Mapping[str, Labels]
    numbers: Mapping[str, NDArray[np.float32]]
    targets_Q_D: Bools
    flags: Mapping[str, Bools]
    unsafe: Mapping[str, Bools]
    texts: Mapping[str, Any]

    @property
    def n(self) -> int:
        """How many pairs."""
        return len(self.ids)

    def words(self, row: int, text: str) -> str:
        """The first words of a text, on one line."""
        n_bytes = PROMPT_BYTES if text == "prompt" else ANSWER_BYTES
        return _one_line(self.texts[text][row].as_py() or b"", n_bytes)

    def unsafe_sides(self, row: int) -> list[str]:
        """The sides whose texts are folded."""
        return [side for side, is_unsafe in self.unsafe.items() if is_unsafe[row]]

    def has_id(self, start: str) -> Bools:
        """Which pairs, or their prompts, have an id that starts so."""
        prompts = np.array([i.startswith(start) for i in self.groups], bool)
        pairs = np.fromiter((i.startswith(start) for i in self.ids), bool, self.n)
        return pairs | prompts[self.prompt_Q] if self.n else pairs

    def of_prompt(self, prompt_id: str) -> list[int]:
        """Positions of a prompt's pairs."""
        code = self.groups.get(prompt_id)
        return [] if code is None else np.flatnonzero(self.prompt_Q == code).tolist()


def first_words(text: str) -> str:
    """The first words of a prompt, on one line."""
    return _one_line(text[:PROMPT_BYTES].encode("utf-8", "replace")[:PROMPT_BYTES], PROMPT_BYTES)


def _one_line(raw: bytes, n_bytes: int) -> str:
    cut = "…" if len(raw) >= n_bytes else ""
    return " ".join(raw.decode("utf-8", "replace").rstrip("\ufffd").split()) + cut


def pair_files(folder: ViewedFolder) -> list[Path]:
    """The files that hold the pairs."""
    return sorted((folder.dataset / "preference").glob("*.parquet"))


def index_pairs(folder: ViewedFolder) -> PairIndex:
    """The index of `preference`; empty where nothing was written.

    Raises:
        RunFolderError: a file is damaged, vanished, or of another schema.
    """
    lean_arrow()
    import pyarrow as pa

    files = pair_files(folder)
    stamp, parts = stamp_files(files), [_no_pairs(folder.dims)]
    for path in files:
        with readable(path, f"{OTHER_VERSION}; build the dataset again if it stays so"):
            parts.append(_read_columns(path, folder.dims))
    table = pa.concat_tables(parts)
    ids = table["pair_id"].to_pylist()
    labels = {name: _labels(table[name]) for name in (*FACETS, "prompt_id")}
    prompts = labels.pop("prompt_id")
    numbers = {n: _array(table[n]) for n in _floats(folder.dims)} if ids else {}
    if ids:
        again = [numbers[f"margin_confirmed_{d}"] for d in folder.dims]
        numbers["confirmed_total"] = np.sum([np.zeros(len(ids), np.float32), *again], axis=0)
        lengths = numbers["len_chosen"], numbers["len_rejected"]
        numbers["length_ratio"] = np.maximum(*lengths) / np.maximum(np.minimum(*lengths), 1)
    unsafe = {
        side: _unsafe(numbers, side, folder.floors.get("harmless"), len(ids)) for side in SIDES
    }
    targets = np.zeros((len(ids), len(folder.dims)), bool)
    for j, d in enumerate(folder.dims):
        targets[:, j] = _array(table[f"adds_{d}"])
    return PairIndex(
        folder.dims,
        tuple(files),
        stamp,
        np.cumsum([0, *(len(part) for part in parts[1:-1])]),
        ids,
        {pair_id: i for i, pair_id in enumerate(ids)},
        {name: i for i, name in enumerate(prompts.names)},
        prompts.code_Q,
        labels,
        numbers,
        targets,
        _flags(numbers, folder.dims, _array(table["refused"]), unsafe),
        unsafe,
        {text: table[text] for text in TEXTS},
    )


def _floats(dims: Sequence[str]) -> list[str]:
    return [
        *(f"{m}_{d}" for d in dims for m in ("margin", "margin_confirmed")),
        *("margin_total", "score", "len_chosen", "len_rejected"),
        *(f"{side}_reward_harmless" for side in SIDES if "harmless" in dims),
    ]


def _no_pairs(dims: Sequence[str]) -> Any:
    import pyarrow as pa

    kinds = {
        **dict.fromkeys(("pair_id", "prompt_id", *FACETS), pa.string()),
        **dict.fromkeys(_floats(dims), pa.float32()),
        **dict.fromkeys([f"adds_{d}" for d in dims], pa.bool_()),
        "refused": pa.bool_(),
        **dict.fromkeys(TEXTS, pa.binary()),
    }
    return pa.schema(kinds.items()).empty_table()


def _read_columns(path: Path, dims: Sequence[str]) -> Any:
    """The columns of one file that stay in memory, as a table like `_no_pairs`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _no_pairs(dims).schema
    names = ["pair_id", "prompt_id", *LABELS, "target_dims", *TEXTS, *_floats(dims)]
    split = path.name.rsplit("-", 3)[0]
    batches = []
    with pq.ParquetFile(path, pre_buffer=False) as file:
        missing = [n for n in names if n not in file.schema_arrow.names]
        if missing:
            raise KeyError(f"column {missing[0]} is missing")
        for batch in file.iter_batches(1000, columns=names, use_threads=False):
            columns = {name: batch.column(name) for name in names}
            columns["split"] = pa.array([split] * len(batch))
            for name in LABELS:
                columns[name].validate(full=True)
                columns[name] = columns[name].fill_null("none")
            added = [targets or () for targets in columns.pop("target_dims").to_pylist()]
            columns |= {f"adds_{d}": pa.array([d in t for t in added], pa.bool_()) for d in dims}
            for text in TEXTS:
                n_bytes = PROMPT_BYTES if text == "prompt" else ANSWER_BYTES
                columns[text] = _first_bytes(columns[text], n_bytes)
            heads = [(h or b"").decode("utf-8", "replace") for h in columns["chosen"].to_pylist()]
            columns["refused"] = pa.array([is_refusal(h) for h in heads], pa.bool_())
            arrays = [columns[f.name].cast(f.type, safe=False) for f in schema]
            batches.append(pa.record_batch(arrays, schema=schema))
    return pa.Table.from_batches(batches, schema)


def _first_bytes(messages: Any, n_bytes: int) -> Any:
    """First bytes of each row's last message."""
    import pyarrow as pa
    import pyarrow.compute as pc

    last = pc.subtract(messages.offsets[1:], 1)  # a conversation is never empty
    content = messages.values.field("content").take(last)
    return pc.binary_slice(content.view(pa.binary()), 0, n_bytes)


def _labels(column: Any) -> Labels:
    coded = column.combine_chunks().dictionary_encode()
    return Labels(tuple(coded.dictionary.to_pylist()), coded.indices.to_numpy())


def _array(column: Any) -> NDArray[Any]:
    found: NDArray[Any] = column.to_numpy()
    return found


def _unsafe(
    numbers: Mapping[str, NDArray[np.float32]], side: str, floor: float | None, n: int
) -> Bools:
    """Answers without a reward that passes the harmless floor (`may_harm`)."""
    rewards = numbers.get(f"{side}_reward_harmless")
    if floor is None or rewards is None:
        return np.ones(n, bool)
    return np.asarray(~(rewards >= floor), bool)


def _flags(
    numbers: Mapping[str, NDArray[np.float32]],
    dims: Sequence[str],
    refused: Bools,
    unsafe: Mapping[str, Bools],
) -> dict[str, Bools]:
    if not numbers:
        return dict.fromkeys(FLAGS, refused)
    lost = np.zeros(len(refused), bool)
    for d in dims:
        first, second = numbers[f"margin_{d}"], numbers[f"margin_confirmed_{d}"]
        lost |= (second < -1e-6) | ((first > 1e-6) & (second <= 1e-6))
    return {
        "longer": numbers["len_chosen"] > numbers["len_rejected"],
        "long_gap": numbers["length_ratio"] >= 2,
        "refusal": refused,
        "unconfirmed": np.isnan(numbers["confirmed_total"]),
        "lost": lost,
        "small": numbers["margin_total"] < 0.25,
        "harm": unsafe["chosen"] | unsafe["rejected"],
    }


def read_pair(index: PairIndex, row: int) -> PairRow:
    """Every column of a pair, from its file; bytes that are no UTF-8 become U+FFFD.

    Raises:
        RunFolderError: the file has changed since.
    """
    import pyarrow.parquet as pq

    number = int(np.searchsorted(index.starts, row, "right")) - 1
    path, at = index.files[number], row - int(index.starts[number])
    with readable(path, CHANGED), pq.ParquetFile(path, pre_buffer=False) as file:
        for group in range(file.metadata.num_row_groups):
            n = file.metadata.row_group(group).num_rows
            if at < n:
                found = file.read_row_group(group, use_threads=False).slice(at, 1)
                pair = decode_rows(found)[0]
                if pair["pair_id"] == index.ids[row]:
                    return pair
                break
            at -= n
    raise RunFolderError(f"{path} has changed since it was read: load the page again")


def decode_rows(table: Any) -> list[PairRow]:
    """The rows of a table as values, texts that are no UTF-8 mended."""
    try:
        rows: list[PairRow] = table.to_pylist()
    except UnicodeDecodeError:
        columns = [[_decode(value) for value in column] for column in table.columns]
        rows = [
            dict(zip(table.column_names, row, strict=True)) for row in zip(*columns, strict=True)
        ]
    return rows


def _decode(value: Any) -> Any:
    import pyarrow as pa

    try:
        return value.as_py()
    except UnicodeDecodeError:
        if pa.types.is_struct(value.type):
            return {f.name: _decode(value[f.name]) for f in value.type}
        if pa.types.is_list(value.type):
            return [_decode(v) for v in value.values]
        return value.cast(pa.binary()).as_py().decode("utf-8", "replace")
