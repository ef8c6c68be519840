"""The pairs of a folder as columns in memory: numbers and the first words of each text. Full texts
stay on disk.

    index = build(place)        index.n, index.numbers["margin_helpful"], index.words(7)

100,000 pairs take some 60 MB. A pair's place in its file is known, so that its page reads one row
group.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import RunFolderError
from ..rewards.rules import is_refusal
from ..run.partitions import lean_arrow
from .place import Place, one_line, stamp

if TYPE_CHECKING:
    from numpy.typing import NDArray

PROMPT_BYTES, ANSWER_BYTES = 160, 100  # of each text that are held
TEXTS = ("prompt", "chosen", "rejected")
LABELS = ("arm", "kind", "carried_dim", "category", "source_dataset")
FACETS = ("split", "arm", "kind", "carried_dim", "category", "source_dataset")
FLAGS = {
    "longer": "chosen is longer",
    "long_gap": "one side twice as long",
    "refusal": "chosen declines",
    "unconfirmed": "not scored again",
    "lost": "a margin lost when scored again",
    "small": "a total margin under 0.25",
    "harm": "a side may be harmful",
}


@dataclass(frozen=True, slots=True)
class Labels:
    """A column of few different words: `names[code_Q[i]]`."""

    names: tuple[str, ...]
    code_Q: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Index:
    """Q pairs in the order of their files.

    Attributes:
        row_of: pair id -> position.
        file_Q, at_Q: which file a pair is in, and its row there.
        numbers: column -> float per pair, NaN where there is none.
        targets_Q_D: whether fusion added a dimension.
        flags: see FLAGS.
        texts: first bytes of prompt, chosen and rejected (pyarrow.ChunkedArray of bytes).
        groups: prompt id -> code; prompt_Q holds each pair's.
    """

    dims: tuple[str, ...]
    files: tuple[Path, ...]
    stamp: tuple[tuple[str, int, int], ...]
    ids: list[str]
    row_of: Mapping[str, int]
    file_Q: NDArray[np.int16]
    at_Q: NDArray[np.int32]
    groups: Mapping[str, int]
    prompt_Q: NDArray[np.int32]
    labels: Mapping[str, Labels]
    numbers: Mapping[str, NDArray[np.float32]]
    targets_Q_D: NDArray[np.bool_]
    flags: Mapping[str, NDArray[np.bool_]]
    texts: Mapping[str, Any]

    @property
    def n(self) -> int:
        """How many pairs."""
        return len(self.ids)

    def words(self, row: int, text: str) -> str:
        """The first words of a text, on one line."""
        raw = self.texts[text][row].as_py() or b""
        cut = "…" if len(raw) >= (PROMPT_BYTES if text == "prompt" else ANSWER_BYTES) else ""
        return " ".join(raw.decode("utf-8", "replace").rstrip("\ufffd").split()) + cut

    def of_prompt(self, prompt_id: str) -> list[int]:
        """Positions of a prompt's pairs."""
        code = self.groups.get(prompt_id)
        return [] if code is None else np.flatnonzero(self.prompt_Q == code).tolist()


def files_of(place: Place) -> list[Path]:
    """The files that hold the pairs."""
    return sorted((place.dataset / "preference").glob("*.parquet"))


@dataclass
class _Making:
    """What is gathered, batch by batch."""

    ids: list[str] = field(default_factory=list)
    coded: dict[str, tuple[dict[str, int], list[NDArray[np.int32]]]] = field(default_factory=dict)
    numbers: dict[str, list[NDArray[np.float32]]] = field(default_factory=dict)
    place: list[tuple[int, int, int]] = field(default_factory=list)  # file, first row, rows
    targets: list[NDArray[np.bool_]] = field(default_factory=list)
    refused: list[NDArray[np.bool_]] = field(default_factory=list)
    texts: dict[str, list[Any]] = field(default_factory=lambda: {t: [] for t in TEXTS})


def build(place: Place) -> Index:
    """The index of `preference`; empty where nothing was written.

    Raises:
        RunFolderError: a file is damaged, vanished, or of another schema.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    lean_arrow()
    files, made = files_of(place), _Making()
    seen = stamp(files)
    for number, path in enumerate(files):
        try:
            with pq.ParquetFile(path, pre_buffer=False) as file:
                _add_file(made, file, number, path.name.rsplit("-", 3)[0], place.dims)
        except (OSError, pa.ArrowException, KeyError, ValueError) as e:
            raise RunFolderError(
                f"{path} can't be shown ({one_line(e)}): it is damaged, being written, or of"
                " another version of mora-data; build the dataset again if it stays so"
            ) from e
    return _made(made, place, tuple(files), seen)


def _add_file(made: _Making, file: Any, number: int, split: str, dims: Sequence[str]) -> None:
    floats = [
        *(f"{m}_{d}" for d in dims for m in ("margin", "margin_confirmed")),
        "margin_total",
        "score",
        "len_chosen",
        "len_rejected",
        *(f"{side}_reward_harmless" for side in ("chosen", "rejected") if "harmless" in dims),
    ]
    names = ["pair_id", "prompt_id", *LABELS, "target_dims", *TEXTS, *floats]
    missing = [n for n in names if n not in file.schema_arrow.names]
    if missing:
        raise KeyError(f"column {missing[0]} is missing")
    at = 0
    for batch in file.iter_batches(1000, columns=names, use_threads=False):
        made.place.append((number, at, len(batch)))
        made.ids += batch.column("pair_id").to_pylist()
        _code(made, "split", [split] * len(batch))
        _code(made, "prompt_id", batch.column("prompt_id").to_pylist())
        for name in LABELS:
            _code(made, name, batch.column(name).to_pylist())
        for name in floats:
            made.numbers.setdefault(name, []).append(
                batch.column(name).to_numpy(zero_copy_only=False).astype(np.float32)
            )
        targets = batch.column("target_dims").to_pylist()
        made.targets.append(
            np.array([[d in (t or ()) for d in dims] for t in targets], bool).reshape(
                len(batch), len(dims)
            )
        )
        heads = {
            t: _heads(batch.column(t), PROMPT_BYTES if t == "prompt" else ANSWER_BYTES)
            for t in TEXTS
        }
        for t, head in heads.items():
            made.texts[t].append(head)
        made.refused.append(
            np.array(
                [
                    is_refusal((h or b"").decode("utf-8", "replace"))
                    for h in heads["chosen"].to_pylist()
                ],
                bool,
            )
        )
        at += len(batch)


def _code(made: _Making, name: str, values: Sequence[str | None]) -> None:
    names, blocks = made.coded.setdefault(name, ({}, []))
    blocks.append(
        np.array(
            [names.setdefault("none" if v is None else v, len(names)) for v in values], np.int32
        )
    )


def _heads(messages: Any, n_bytes: int) -> Any:
    """First bytes of each row's last message."""
    import pyarrow as pa
    import pyarrow.compute as pc

    last = pc.subtract(messages.offsets[1:], 1)  # a conversation is never empty
    said = messages.values.field("content").take(last)
    return pc.binary_slice(said.view(pa.binary()), 0, n_bytes)


def _made(
    made: _Making, place: Place, files: tuple[Path, ...], seen: tuple[tuple[str, int, int], ...]
) -> Index:
    import pyarrow as pa

    n = len(made.ids)
    labels = {
        name: Labels(tuple(names), _whole(blocks, np.int32))
        for name, (names, blocks) in made.coded.items()
    }
    numbers = {name: _whole(blocks, np.float32) for name, blocks in made.numbers.items()}
    if n:
        confirmed = (
            np.stack([numbers[f"margin_confirmed_{d}"] for d in place.dims], axis=1)
            if place.dims
            else np.zeros((n, 0))
        )
        numbers["confirmed_total"] = confirmed.sum(1).astype(np.float32)
        longest, shortest = (
            f(numbers["len_chosen"], numbers["len_rejected"]) for f in (np.maximum, np.minimum)
        )
        numbers["length_ratio"] = longest / np.maximum(shortest, 1)
    prompts = labels.pop("prompt_id", Labels((), np.zeros(0, np.int32)))
    return Index(
        place.dims,
        files,
        seen,
        made.ids,
        {p: i for i, p in enumerate(made.ids)},
        (
            np.repeat([f for f, _, _ in made.place], [k for *_, k in made.place]).astype(np.int16)
            if n
            else np.zeros(0, np.int16)
        ),
        (
            np.concatenate([np.arange(a, a + k, dtype=np.int32) for _, a, k in made.place])
            if n
            else np.zeros(0, np.int32)
        ),
        {name: i for i, name in enumerate(prompts.names)},
        prompts.code_Q,
        labels,
        numbers,
        np.concatenate(made.targets) if n else np.zeros((0, len(place.dims)), bool),
        (
            _flags(numbers, place, np.concatenate(made.refused))
            if n
            else {f: np.zeros(0, bool) for f in FLAGS}
        ),
        {t: pa.chunked_array(chunks, pa.binary()) for t, chunks in made.texts.items()},
    )


def _flags(
    numbers: Mapping[str, NDArray[np.float32]], place: Place, refused: NDArray[np.bool_]
) -> dict[str, NDArray[np.bool_]]:
    again = [numbers[f"margin_confirmed_{d}"] for d in place.dims]
    lost = np.zeros(len(refused), bool)
    for d, second in zip(place.dims, again, strict=True):
        lost |= (second < -1e-6) | ((numbers[f"margin_{d}"] > 1e-6) & (second <= 1e-6))
    floor = place.floors.get("harmless")
    harm = np.ones(len(refused), bool)
    if floor is not None and "chosen_reward_harmless" in numbers:
        harm = ~(
            (numbers["chosen_reward_harmless"] >= floor)
            & (numbers["rejected_reward_harmless"] >= floor)
        )
    return {
        "longer": numbers["len_chosen"] > numbers["len_rejected"],
        "long_gap": numbers["length_ratio"] >= 2,
        "refusal": refused,
        "unconfirmed": np.isnan(numbers["confirmed_total"]),
        "lost": lost,
        "small": numbers["margin_total"] < 0.25,
        "harm": harm,
    }


def _whole(blocks: Sequence[NDArray[Any]], kind: Any) -> NDArray[Any]:
    return np.concatenate(blocks) if blocks else np.zeros(0, kind)


def full(index: Index, row: int) -> dict[str, Any]:
    """Every column of a pair, from its file; bytes that are no UTF-8 become U+FFFD.

    Raises:
        RunFolderError: the file has changed since.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path, at = index.files[int(index.file_Q[row])], int(index.at_Q[row])
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for group in range(file.metadata.num_row_groups):
                n = file.metadata.row_group(group).num_rows
                if at < n:
                    tree = plain(file.read_row_group(group, use_threads=False).slice(at, 1))[0]
                    if tree["pair_id"] == index.ids[row]:
                        return tree
                    break
                at -= n
    except (OSError, pa.ArrowException) as e:
        raise RunFolderError(
            f"{path} can't be read ({one_line(e)}): it changed; load the page again"
        ) from e
    raise RunFolderError(f"{path} has changed since it was read: load the page again")


def plain(table: Any) -> list[dict[str, Any]]:
    """The rows of a table as values, texts that are no UTF-8 mended."""
    try:
        rows: list[dict[str, Any]] = table.to_pylist()
    except UnicodeDecodeError:
        rows = [
            dict(zip(table.column_names, row, strict=True))
            for row in zip(
                *(_mended(table.column(name)) for name in table.column_names), strict=True
            )
        ]
    return rows


def _mended(column: Any) -> Iterator[Any]:
    import pyarrow as pa

    for value in column:
        try:
            yield value.as_py()
        except UnicodeDecodeError:
            yield (
                value.cast(pa.binary()).as_py().decode("utf-8", "replace")
                if pa.types.is_string(value.type)
                else _deep(value)
            )


def _deep(value: Any) -> Any:
    """A list or struct of texts, mended."""
    import pyarrow as pa

    if not value.is_valid:
        return None
    if pa.types.is_struct(value.type):
        return {f.name: _deep(value[f.name]) for f in value.type}
    if pa.types.is_list(value.type):
        return [_deep(v) for v in value.values]
    if pa.types.is_string(value.type):
        return value.cast(pa.binary()).as_py().decode("utf-8", "replace")
    return value.as_py()
