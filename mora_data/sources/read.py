"""Reads rows from files: .jsonl, .json, .csv, .parquet, each also .gz; they are local, or fetched
from the Hub at a pinned revision. Streaming, in the order of the file names.

    for number, file, row in rows(find([Path("data/")], patterns=[])):
        ...     # row: a dict, or the DropRow that says why not

A damaged line is one dropped row with a reason; a file that can't be read at all is a SourceError.
Only .json (and a gzipped .parquet) is read whole, and neither it nor a line may be of any size: a
small gzip can hold gigabytes. HF_ENDPOINT, HF_HOME and the token store of
huggingface_hub are honoured; it reads them when it is first imported.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import orjson

from ..errors import DropRow, SourceError
from ..settings import SourceSettings
from ..types import Row

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
_BOM = b"\xef\xbb\xbf"
_BUFFER = 1 << 18
LONGEST_LINE = 64 << 20  # bytes
LARGEST_WHOLE = 2 << 30
_LIST_KEYS = ("data", "rows", "examples", "train", "test")
_WAYS_ON = "give --data PATH (files you have) or --sample (bundled rows)"


class DataFile(NamedTuple):
    """A file to read, and its name inside the dataset ("folder/name"): what sources match and
    messages show."""

    path: Path
    name: str


class SourceRow(NamedTuple):
    """A row's number over all files, the file it came from, and the row or why it can't be read."""

    number: int
    file: str
    row: Row | DropRow


def find(paths: Sequence[Path], patterns: Sequence[str]) -> list[DataFile]:
    """The data files at `paths`, sorted by name.

    A folder is searched with its sub-folders; where files in it match the source's `patterns`, only
    these are taken, so that a copy of the upstream repository gives the split asked for. Hidden
    files and folders are passed over.

    Raises:
        SourceError: nothing there, or nothing of a known type.
    """
    found: list[DataFile] = []
    for path in paths:
        if path.is_dir():
            found += _in_folder(path, patterns)
        elif path.is_file():
            found.append(DataFile(path, f"{path.absolute().parent.name}/{path.name}"))
        else:
            raise SourceError(f"no file or folder at {path}: check --data")
    for file in found:
        _suffix(file)
    return sorted(found, key=lambda f: f.name)


def sha256(files: Iterable[DataFile]) -> str:
    """Hash of the files' bytes in reading order: a single file's own sha256, else that of the
    joined digests.

    Raises:
        SourceError: a file can't be read.
    """
    digests = [_file_sha256(file) for file in files]
    return (
        digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    )


def rows(files: Iterable[DataFile]) -> Iterator[SourceRow]:
    """All rows of the files, numbered from 0 across them.

    Raises:
        SourceError: a file can't be read, or breaks off.
    """
    number = 0
    for file in files:
        try:
            for row in _READERS[_suffix(file)](file):
                yield SourceRow(number, file.name, row)
                number += 1
        except (OSError, EOFError, MemoryError, zlib.error, csv.Error) as e:
            why = (isinstance(e, OSError) and e.strerror) or str(e) or "it does not fit into memory"
            raise SourceError(
                f"can't read {file.path} beyond row {number}: {why}; get the file anew"
            ) from e


def _in_folder(folder: Path, patterns: Sequence[str]) -> list[DataFile]:
    files = [
        DataFile(p, p.relative_to(folder).as_posix()) for p in folder.rglob("*") if p.is_file()
    ]
    data = [f for f in files if _plain_suffix(f.name) in SUFFIXES and not f"/{f.name}".count("/.")]
    if not data:
        raise SourceError(
            f"no data file in {folder}: --data takes {', '.join(SUFFIXES)} files, each also .gz"
        )
    return [f for f in data if any(fnmatch(f.name, p) for p in patterns)] or data


def _plain_suffix(name: str) -> str:
    return Path(name.lower().removesuffix(".gz")).suffix


def _suffix(file: DataFile) -> str:
    suffix = _plain_suffix(file.path.name)
    if suffix not in SUFFIXES:
        known = ", ".join(SUFFIXES)
        raise SourceError(
            f"can't read {file.path}: the suffix {suffix!r} is not one of {known} (each also .gz)"
        )
    return suffix


def _file_sha256(file: DataFile) -> str:
    digest = hashlib.sha256()
    try:
        with file.path.open("rb") as stream:
            while block := stream.read(_BUFFER):
                digest.update(block)
    except OSError as e:
        raise SourceError(f"can't read {file.path}: {e.strerror}; check --data") from e
    return digest.hexdigest()


def _open(file: DataFile) -> IO[bytes]:
    if file.path.name.lower().endswith(".gz"):
        return io.BufferedReader(gzip.open(file.path, "rb"), _BUFFER)  # its readline is in C
    return file.path.open("rb", _BUFFER)


def _jsonl(file: DataFile) -> Iterator[Row | DropRow]:
    with _open(file) as stream:
        yield from _lines(_bounded_lines(stream))


def _bounded_lines(stream: IO[bytes]) -> Iterator[bytes | None]:
    """The lines; None in place of one that is too long to be a row."""
    read = partial(stream.readline, LONGEST_LINE)
    for line in iter(read, b""):
        if len(line) < LONGEST_LINE or line.endswith(b"\n"):
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = read()
        yield None


def _lines(lines: Iterable[bytes | None]) -> Iterator[Row | DropRow]:
    for line in lines:
        if line is None:
            yield DropRow("line_too_long")
            continue
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError:
            if not line.strip():
                continue
            row = _lenient(line)
        yield row if isinstance(row, (dict, DropRow)) else DropRow("not_an_object")


def _lenient(data: bytes) -> Row | DropRow:
    """What orjson refused: NaN and a byte-order mark are accepted, broken UTF-8 is told from broken
    JSON."""
    text = data.removeprefix(_BOM).decode("utf-8", "surrogateescape")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        # what is not UTF-8 was decoded to lone surrogates
        return DropRow("not_utf8" if any("\ud800" <= c <= "\udfff" for c in text) else "bad_json")
    return _encodable(value) if isinstance(value, dict) else DropRow("not_an_object")


def _encodable(row: dict[str, object]) -> Row | DropRow:
    """The row, unless a text in it can't be UTF-8."""
    try:
        orjson.dumps(row)
    except orjson.JSONEncodeError:
        return DropRow("not_utf8")
    return row


def _json(file: DataFile) -> Iterator[Row | DropRow]:
    with _open(file) as stream:
        data = _whole(file, stream)
    try:
        tree = json.loads(data.removeprefix(_BOM).decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError):
        yield from _lines(data.splitlines())  # many .json files hold JSON lines
        return
    for row in _rows_in(tree):
        yield _encodable(row) if isinstance(row, dict) else DropRow("not_an_object")


def _whole(file: DataFile, stream: IO[bytes]) -> bytes:
    data = stream.read(LARGEST_WHOLE + 1)
    if len(data) > LARGEST_WHOLE:
        raise SourceError(
            f"{file.path} holds more than {LARGEST_WHOLE >> 20} MB, and would be read at once: give"
            " it as .jsonl or as a plain .parquet"
        )
    return data


def _rows_in(tree: object) -> list[object]:
    """The rows of a parsed file: an array, an object that wraps one, or the one row that it is."""
    if isinstance(tree, list):
        return tree
    if isinstance(tree, dict):
        key = (
            next(iter(tree)) if len(tree) == 1 else next((k for k in _LIST_KEYS if k in tree), None)
        )
        if isinstance(rows := tree.get(key), list):
            return rows
    return [tree]


def _csv(file: DataFile) -> Iterator[Row | DropRow]:
    csv.field_size_limit(LONGEST_LINE)
    with (
        _open(file) as stream,
        io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline="") as text,
    ):
        reader = csv.reader(_bounded_text(text))
        header = next(reader, [])
        for fields in reader:
            if not fields:
                continue
            if len(fields) != len(header):
                yield DropRow("wrong_field_count")
            else:
                yield _encodable(dict(zip(header, fields, strict=True)))


def _bounded_text(text: IO[str]) -> Iterator[str]:
    for line in iter(partial(text.readline, LONGEST_LINE), ""):
        if len(line) == LONGEST_LINE and not line.endswith(("\n", "\r")):
            raise csv.Error(f"a line of more than {LONGEST_LINE >> 20} MB")
        yield line


def _parquet(file: DataFile) -> Iterator[Row | DropRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Arrow reads by itself: a thread of its that still held a Python file when the interpreter
        # ends would abort the process (apache/arrow#34314)
        source: Any = file.path
        if file.path.name.lower().endswith(".gz"):
            with _open(file) as stream:
                source = pa.BufferReader(_whole(file, stream))
        with pq.ParquetFile(source) as parquet:
            for batch in parquet.iter_batches(batch_size=1024):
                yield from _batch(batch)
    except pa.ArrowException as e:
        why = str(e).splitlines()[0]
        raise SourceError(
            f"can't read {file.path}: not a whole Parquet file ({why}); get the file anew"
        ) from e


def _batch(batch: Any) -> Iterator[Row | DropRow]:
    """A record batch's rows; where one text in it is not UTF-8, row by row."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for i in range(batch.num_rows):
            try:
                row: Row | DropRow = batch.slice(i, 1).to_pylist()[0]
            except UnicodeDecodeError:
                row = DropRow("not_utf8")
            yield row


def fetch_dataset(settings: SourceSettings, patterns: Sequence[str]) -> tuple[list[DataFile], str]:
    """The files that match `patterns`, sorted by name, and the full commit they are from.

    Raises:
        SourceError: no dataset id, Hub unreachable, no such dataset or revision, no matching file.
    """
    name, revision = settings.dataset, settings.revision
    if name is None:
        raise SourceError(
            f"source {settings.kind} names no Hub dataset: {_WAYS_ON}, or set source.dataset"
        )
    from huggingface_hub import errors

    unreachable = errors.HTTPError  # type: ignore[attr-defined]  # of httpx or httpx2, whichever the Hub's client uses
    try:
        return _download(name, revision, patterns)
    except errors.GatedRepoError as e:
        raise SourceError(
            f"Hub dataset {name} is gated: accept its terms and log in, or {_WAYS_ON}"
        ) from e
    except errors.RevisionNotFoundError as e:
        raise SourceError(
            f"Hub dataset {name} lacks revision {revision!r}: set source.revision, or {_WAYS_ON}"
        ) from e
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as e:
        raise SourceError(
            f"no Hub dataset {name!r}, or it is private: check source.dataset, or {_WAYS_ON}"
        ) from e
    except (OSError, unreachable) as e:
        why = type(e).__name__
        raise SourceError(
            f"can't fetch {name} from the Hub ({why}): try again later, or {_WAYS_ON}"
        ) from e


def _download(
    dataset: str, revision: str | None, patterns: Sequence[str]
) -> tuple[list[DataFile], str]:
    from huggingface_hub import HfApi, hf_hub_download

    info = HfApi().dataset_info(dataset, revision=revision)
    commit = info.sha or revision or "main"
    there = [s.rfilename for s in info.siblings or []]
    wanted = sorted(f for f in there if _matches(f, patterns))
    if not wanted:
        like = ", ".join(patterns) or "a data file"
        raise SourceError(
            f"Hub dataset {dataset} at {commit[:12]} has no file like {like}: "
            f"check source.config and source.split, or {_WAYS_ON}"
        )
    paths = (
        hf_hub_download(dataset, name, revision=commit, repo_type="dataset") for name in wanted
    )
    return [DataFile(Path(path), name) for path, name in zip(paths, wanted, strict=True)], commit


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """With no patterns, every data file matches."""
    return (
        any(fnmatch(name, p) for p in patterns)
        if patterns
        else name.lower().removesuffix(".gz").endswith(SUFFIXES)
    )


_READERS = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}
