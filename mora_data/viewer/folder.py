"""What is looked at: a run folder (finished, running or left), or a dataset folder alone; how its
run stands; and its pairs as columns in memory.

    folder = open_folder(Path("runs/demo"))     folder.dims, folder.floors, folder.partitions()
    look_at(folder)                             {"running": True, "prompts_sealed": 40, ...}
    index = index_pairs(folder)        index.n, index.numbers["margin_helpful"], index.words(7)

The build's own files are read, its lock is never taken. Of the pairs, numbers and the first words
of each text are kept: 100,000 pairs take some 60 MB. Full texts stay on disk: a pair's place in its
file is known, so that its page reads one row group.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
from numpy.typing import NDArray
from typing_extensions import NotRequired

from ..errors import DamagedFile, RunFolderError
from ..report.document import settings_of
from ..report.pairs import SIDES
from ..rewards.rules import is_refusal
from ..run import Manifest, StageCounts
from ..run.cost import spent_in
from ..run.files import read_json, readable
from ..run.folder import carried_manifest, counts_in, counts_tree, manifest_of, parts_of
from ..run.partitions import Partition, lean_arrow
from ..run.progress import FRESH_S, read_live
from ..statistics import Bools
from ..types import STAGES

RELOAD_S = 3
CHANGED = "it changed; load the page again"
OTHER_VERSION = "it is damaged, being written, or of another version of mora-data"
Query = Mapping[str, str]  # of an address
FileStamp = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True)
class Page:
    """A page: the template that draws it, and its fields, which are its JSON. It loads itself again
    where it has a `reload_s`.

    `helpers`: what the template needs beside the fields.
    """

    template: str
    fields: dict[str, Any]
    helpers: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ViewedFolder:
    """One folder as it stood when it was opened.

    Attributes:
        run: the run folder; None where only a dataset folder was given.
        dataset: the dataset folder; it may be empty or not there yet.
        manifest: the run's, or the one that the dataset folder carries.
        dims: reward dimensions; those of the columns where no settings tell.
        floors: dimension -> pass threshold; empty where none is known.
    """

    root: Path
    run: Path | None
    dataset: Path
    manifest: Manifest
    dims: tuple[str, ...]
    floors: Mapping[str, float]

    @property
    def kind(self) -> str:
        """ "run" or "dataset"."""
        return "run" if self.run is not None else "dataset"

    def partitions(self) -> list[Partition]:
        """The run's partitions; none of a dataset folder."""
        return parts_of(self.run) if self.run is not None else []

    def finished(self) -> list[tuple[Partition, dict[str, Any]]]:
        """The partitions that are finished, each with its manifest."""
        return [(p, m) for p in self.partitions() if (m := p.manifest()) is not None]


def open_folder(path: Path) -> ViewedFolder:
    """The folder as it stands now.

    Raises:
        RunFolderError: neither a run nor a dataset folder, or one that another version wrote.
    """
    if manifest := manifest_of(path):
        return _open_run(path, manifest)
    if (path / "preference").is_dir() or (path / "scored").is_dir():
        floors = read_json(path / "provenance" / "calibration.json").get("floors")
        return ViewedFolder(
            path,
            None,
            path,
            carried_manifest(path),
            _dims_of_columns(path),
            _floors(floors),
        )
    if not path.exists():
        raise RunFolderError(
            f"{path} does not exist: give the --out of a build, or a dataset folder"
        )
    raise RunFolderError(
        f"{path} is neither a run nor a dataset folder: give the --out of a build, or a folder with"
        " preference/"
    )


def _open_run(path: Path, manifest: Manifest) -> ViewedFolder:
    begun = "settings" in manifest or (path / "build.yaml").exists()
    dims = settings_of(path)["dimensions"] if begun else ()
    reference = read_json(path / "reference.json") or manifest.get("reference") or {}
    floors = _floors(reference.get("floors"))
    return ViewedFolder(path, path, path / "dataset", manifest, tuple(dims), floors)


def _dims_of_columns(dataset: Path) -> tuple[str, ...]:
    for config, start in (("preference", "margin_confirmed_"), ("scored", "rewards_")):
        for file in stamp_files(sorted((dataset / config).glob("*.parquet"))):
            return tuple(n.removeprefix(start) for n in _columns(*file) if n.startswith(start))
    return ()


@lru_cache(maxsize=8)
def _columns(file: str, size: int, time_ns: int) -> tuple[str, ...]:
    """Names of a file's columns; read again when it is another one."""
    import pyarrow.parquet as pq

    with readable(file, "fetch or build the dataset again"):
        return tuple(pq.read_schema(file).names)


def _floors(tree: object) -> dict[str, float]:
    if not isinstance(tree, dict):
        return {}
    return {d: float(v) for d, v in tree.items() if isinstance(v, (int, float))}


def stamp_files(paths: Sequence[Path]) -> FileStamp:
    """Name, size and time of each file: differs when one was written again."""
    out = []
    for path in paths:
        try:
            s = path.stat()
        except OSError:
            continue
        out.append((str(path), s.st_size, s.st_mtime_ns))
    return tuple(out)


class ViewedStatus(TypedDict):
    """How a run stands; of a dataset folder alone only `running`, which is False.

    `answers` are those of finished partitions. `now` is what a running build says of itself: its
    step, done of total, tokens per second, and how busy its endpoints are. None where it is an
    older build, or has said nothing for a while.
    """

    running: bool
    status: NotRequired[str | None]
    prompts: NotRequired[int]
    prompts_sealed: NotRequired[int]
    owed: NotRequired[int]
    partitions: NotRequired[int]
    partitions_sealed: NotRequired[int]
    answers: NotRequired[int]
    tokens: NotRequired[dict[str, int]]
    cost: NotRequired[float | None]
    errors: NotRequired[int]
    now: NotRequired[dict[str, Any] | None]


def look_at(folder: ViewedFolder) -> ViewedStatus:
    """How the folder's run stands at this moment."""
    if folder.run is None:
        return {"running": False}
    parts, finished = folder.partitions(), folder.finished()
    spent = spent_in(folder.root, folder.manifest)
    used = spent.tokens.values()
    running = _is_locked(folder.run / ".lock") or (
        folder.manifest.get("status") == "started" and _is_fresh(folder)
    )
    owed = sum(len(m.get("owed") or ()) for _, m in finished)
    return {
        "running": running,
        "status": folder.manifest.get("status"),
        "prompts": sum(_n_prompts(p) for p in parts),
        "prompts_sealed": sum(int(m.get("n_prompts") or 0) for _, m in finished) - owed,
        "owed": owed,
        "partitions": len(parts),
        "partitions_sealed": len(finished),
        "answers": sum(int(m.get("answers") or 0) for _, m in finished),
        "tokens": {"in": sum(t[0] for t in used), "out": sum(t[1] for t in used)},
        "cost": spent.cost if spent.tokens else None,
        "errors": sum(int(m.get("errors") or 0) for _, m in finished),
        "now": _read_live(folder.run) if running else None,
    }


def reload_after(status: ViewedStatus, query: Query) -> int:
    """Seconds after which the page of a running build loads itself again; 0 for never, as where it
    is to stand still."""
    return RELOAD_S if status["running"] and not query.get("still") else 0


def stage_counts(folder: ViewedFolder, running: bool) -> dict[str, StageCounts]:
    """in, kept and dropped per stage: the manifest's; of a run that is not done, those of its
    finished partitions."""
    counts = folder.manifest.get("counts")
    if isinstance(counts, dict) and counts and not running:
        return {s: _counts(counts[s]) for s in STAGES if s in counts}
    mined = read_json(folder.root / "mine.json") if folder.run is not None else {}
    out = {"mine": _counts(mined)} if mined else {}
    total: Counter[tuple[str, str]] = Counter()
    for _, m in folder.finished():
        total.update(counts_in(m["counts"]))
    return out | counts_tree(total, [s for s in STAGES if (s, "in") in total])


def _counts(tree: Mapping[str, Any]) -> StageCounts:
    dropped = dict(tree.get("dropped") or {})
    return {"in": tree.get("in", 0), "kept": tree.get("kept", 0), "dropped": dropped}


def _read_live(run: Path) -> dict[str, Any] | None:
    live = cast(Mapping[str, Any], read_live(run) or {})
    slots = live.get("slots")
    if not isinstance(slots, list):
        return None
    sums = {
        k: sum(int(s.get(k) or 0) for s in slots if isinstance(s, dict))
        for k in ("size", "open", "busy", "waiting")
    }
    named = ("step", "done", "total", "requests", "retries", "failed", "tokens_per_s")
    return {**{k: live.get(k) for k in named}, "slots": slots, **sums}


def _is_locked(path: Path) -> bool:
    """Whether a process surely holds the run's lock, by the system's table of locks."""
    try:
        inode = path.stat().st_ino
        locks = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return False
    return any(f":{inode} " in line and "FLOCK" in line for line in locks)


def _is_fresh(folder: ViewedFolder) -> bool:
    logs = [p.log_path for p in folder.partitions()]
    stamps = stamp_files([folder.root / "spending.json", folder.root / "mine.json", *logs])
    return time.time() - max((ns / 1e9 for *_, ns in stamps), default=0.0) < FRESH_S


def _n_prompts(part: Partition) -> int:
    try:
        return part.n_prompts()
    except DamagedFile:
        return 0


# the pairs

PROMPT_BYTES, ANSWER_BYTES = 160, 100  # of each text that are kept in memory
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
