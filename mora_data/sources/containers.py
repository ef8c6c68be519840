"""Rows out of the bytes of a file, whatever it is packed in. What a file is, its first bytes say
before its name does.

    packed     .gz .zst .xz .bz2 (also misnamed), members of .zip and .tar
    JSON       lines, one array, objects one after another, keyed by id, by columns, nested
    the rest   .csv .tsv (also with `;`), .parquet, .arrow and .feather, .txt (a prompt a line)

Streaming, but for JSON that is no lines, and for Parquet or Arrow that is packed: these are read
whole, and neither they nor a line may be of any size, since a small gzip can hold gigabytes.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, NamedTuple

import orjson

from ..errors import DropRow, SourceError
from ..types import Row

PACKED = (".gz", ".gzip", ".zst", ".zstd", ".xz", ".bz2")
KIND_OF = {
    **dict.fromkeys((".jsonl", ".ndjson", ".jsonlines", ".json"), "json"),
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".arrow", ".feather", ".ipc"), "arrow"),
    **dict.fromkeys((".txt", ".text"), "text"),
}
ARCHIVES = (".zip", ".tar", ".tgz")
SUFFIXES = (*KIND_OF, *ARCHIVES)
SPLITS = ("train", "validation", "test")
LONGEST_LINE = 64 << 20  # bytes
LARGEST_WHOLE = 2 << 30
_BOM = b"\xef\xbb\xbf"
_BLANK = b" \t\r\n" + _BOM
_BUFFER = 1 << 18
_MAGIC = {  # how a file begins that is no text
    b"\x1f\x8b": "gz",
    b"\x28\xb5\x2f\xfd": "zst",
    b"\xfd7zXZ\x00": "xz",
    b"BZh": "bz2",
    b"PK\x03\x04": "zip",
    b"PAR1": "parquet",
    b"ARROW1": "arrow",
    b"\xff\xff\xff\xff": "arrow",
}
_NOT_DATA = {
    b"version https://git-lfs": "a Git LFS pointer, which stands for the file: run `git lfs pull`",
    b"<!doctype html": "a web page, not the file: get it anew from its download address",
    b"<html": "a web page, not the file: get it anew from its download address",
    b"\x80\x04\x95": "a pickle, which is never opened: write it as .jsonl or .parquet",
    b"%PDF": "a PDF: write the prompts into a .txt file, one a line",
}
_WRAPPERS = ("data", "rows", "examples", "items", "records", "instances")
_OF_A_ROW = ("messages", "conversations", "conversation", "chat", "dialogue", "dialog", "turns")
_STRAY_COMMA = re.compile(r'("(?:[^"\\]|\\.)*(?:"|\\?\Z))|,(?=\s*[}\]])', re.DOTALL)
_DECODE = json.JSONDecoder().raw_decode


class DataFile(NamedTuple):
    """A file to read, and its name inside the dataset ("folder/name"): what sources match and
    messages show; of an archive, the member."""

    path: Path
    name: str
    member: str = ""


def suffix_of(name: str) -> str:
    """The suffix that says what a file holds, what it is packed in aside."""
    name = name.lower()
    packed = next((p for p in PACKED if name.endswith(p)), "")
    return Path(name.removesuffix(packed)).suffix


def members_of(file: DataFile) -> list[DataFile]:
    """The data files in an archive, sorted by name; the file itself where it is none."""
    with open_stream(file) as stream:
        head = _peek(stream, 512)
        if head.startswith(b"PK\x03\x04"):
            with zipfile.ZipFile(file.path) as packed:
                names = [i.filename for i in packed.infolist() if not i.is_dir()]
        elif head[257:262] == b"ustar":
            with tarfile.open(fileobj=_Bounded(file, stream), mode="r|") as tar:
                names = [m.name for m in tar if m.isfile()]
        else:
            return [file]
    data = [
        n for n in names if suffix_of(n) in KIND_OF and not f"/{n}".removeprefix("/.").count("/.")
    ]
    if any(n.startswith("xl/") for n in names):
        raise SourceError(f"{file.path} is an Excel workbook: save its sheet as CSV (UTF-8)")
    if not data:
        raise SourceError(f"no data file in {file.path}: it takes {', '.join(KIND_OF)} files")
    return [DataFile(file.path, f"{file.name}/{n}", n) for n in sorted(data)]


def rows_in(file: DataFile, split: str = "train") -> Iterator[Row | DropRow]:
    """The rows of a file; of JSON that holds several splits, those of `split`.

    Raises:
        SourceError: it is no data, or not whole.
        OSError, EOFError, MemoryError, zlib.error, lzma.LZMAError, csv.Error: as the reader has it.
    """
    with open_stream(file) as packed:
        stream = _member(file, packed) if file.member else packed
        head = _peek(stream, 512)
        kind = next((k for magic, k in _MAGIC.items() if head.startswith(magic)), "")
        for start, what in _NOT_DATA.items():
            if head.lower().startswith(start.lower()):
                raise SourceError(f"{file.path} is {what}")
        if head.startswith((b"\xff\xfe", b"\xfe\xff")) and kind != "arrow":
            text = _whole(file, stream).decode("utf-16", "surrogateescape")
            recoded = io.BytesIO(text.encode("utf-8", "surrogatepass"))
            stream = io.BufferedReader(recoded, _BUFFER)
        kind = kind or KIND_OF.get(suffix_of(file.member or file.path.name), "")
        if not kind and head.lstrip()[:1] in (b"{", b"["):
            kind = "json"
        if kind == "json":
            lines = suffix_of(file.member or file.path.name) != ".json"
            yield from _json(file, stream, split, lines)
        elif kind == "csv":
            yield from _csv(file, stream)
        elif kind == "text":
            yield from _text(stream)
        elif kind in ("parquet", "arrow"):
            yield from _arrow(file, stream if _is_packed(file) else None, kind)
        else:
            suffix = suffix_of(file.member or file.path.name)
            why = (
                f"the suffix {suffix!r} is not one of {', '.join(SUFFIXES)} (each also"
                f" {' '.join(PACKED)}), and its first bytes don't say what it is"
            )
            if kind == "zip":
                why = "a zip archive that is not whole; get the file anew"
            raise SourceError(f"can't read {file.path}: {why}")


def open_stream(file: DataFile) -> IO[bytes]:
    """The file's bytes, unpacked where its first bytes say that they are packed."""
    raw: IO[bytes] = file.path.open("rb", _BUFFER)
    head = _peek(raw, 6)
    packed = next((k for magic, k in _MAGIC.items() if head.startswith(magic)), "")
    if packed not in ("gz", "bz2", "xz", "zst"):
        return raw
    raw.close()
    unpacked: Any  # a buffered reader's readline is in C
    if packed == "zst":
        import pyarrow as pa

        unpacked = pa.CompressedInputStream(pa.OSFile(str(file.path)), "zstd")
    else:
        unpacked = {"gz": gzip, "bz2": bz2, "xz": lzma}[packed].open(file.path, "rb")
    return io.BufferedReader(unpacked, _BUFFER)


def _peek(stream: IO[bytes], n: int) -> bytes:
    return stream.peek(n)[:n]  # type: ignore[attr-defined,no-any-return]


def _is_packed(file: DataFile) -> bool:
    if file.member:
        return True
    with file.path.open("rb") as raw:
        head = raw.read(6)
    return not any(head.startswith(m) for m, k in _MAGIC.items() if k in ("parquet", "arrow"))


class _Bounded(io.RawIOBase):
    """A stream that gives no more than LARGEST_WHOLE bytes: an archive is read through."""

    def __init__(self, file: DataFile, stream: IO[bytes]) -> None:
        self._file, self._stream, self._left = file, stream, LARGEST_WHOLE

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise too_large(self._file)
        return data


def _member(file: DataFile, stream: IO[bytes]) -> IO[bytes]:
    if _peek(stream, 4) == b"PK\x03\x04":
        packed = zipfile.ZipFile(file.path)
        if packed.getinfo(file.member).flag_bits & 1:
            raise SourceError(f"{file.path} is encrypted: unpack it first")
        return io.BufferedReader(packed.open(file.member), _BUFFER)  # type: ignore[type-var]
    tar = tarfile.open(fileobj=_Bounded(file, stream), mode="r|")  # noqa: SIM115
    for member in tar:
        if member.name == file.member and (found := tar.extractfile(member)) is not None:
            return io.BufferedReader(io.BytesIO(_whole(file, found)), _BUFFER)
    raise SourceError(f"{file.path} has no {file.member} any more: get the file anew")


def too_large(file: DataFile) -> SourceError:
    """What is too large to be read at once."""
    return SourceError(
        f"{file.path} holds more than {LARGEST_WHOLE >> 20} MB, and would be read at once: give"
        " it as .jsonl or as a plain .parquet"
    )


def _whole(file: DataFile, stream: IO[bytes], before: bytes = b"") -> bytes:
    data = before + stream.read(LARGEST_WHOLE + 1 - len(before))
    if len(data) > LARGEST_WHOLE:
        raise too_large(file)
    return data


# JSON


def _json(file: DataFile, stream: IO[bytes], split: str, lines: bool) -> Iterator[Row | DropRow]:
    """Lines where the first one is an object by itself; else everything at once. `lines`: an
    object that is alone in the file is a row, too."""
    head = _peek(stream, _BUFFER).removeprefix(_BOM).lstrip()
    start = b""
    if not head.startswith(b"[") and (lines or b"\n" in head):
        rest = _bounded_lines(stream)
        first = next((line for line in rest if line is None or line.strip(_BLANK)), b"")
        second = [] if lines else list(islice(rest, 1))
        several = lines or any(line is None or line.strip() for line in second)
        odd = first is None or (lines and not head.startswith(b"{"))
        if odd or first is None or (several and _is_object(first.strip(_BLANK))):
            yield from _lines(chain((first,), second, rest))
            return
        start = first + b"".join(line or b"" for line in second)
    data = _whole(file, stream, start)
    text = data.removeprefix(_BOM).decode("utf-8", "surrogateescape")
    try:
        tree = json.loads(text)
    except RecursionError:
        yield DropRow("bad_json")
        return
    except ValueError:
        yield from _several(data, text)
        return
    for row in _rows_in(tree, split, file):
        yield _encodable(row)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(orjson.loads(line.removesuffix(b",")), dict)
    except orjson.JSONDecodeError:
        return isinstance(_lenient(line), dict)


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
    """What orjson refused: NaN, a byte-order mark and a comma at the end are accepted, broken UTF-8
    is told from broken JSON."""
    text = data.removeprefix(_BOM).decode("utf-8", "surrogateescape").strip()
    try:
        return _encodable(json.loads(text.removesuffix(",")))
    except (ValueError, RecursionError):
        # what is not UTF-8 was decoded to lone surrogates
        return DropRow("not_utf8" if any("\ud800" <= c <= "\udfff" for c in text) else "bad_json")


def _encodable(row: object) -> Row | DropRow:
    """The row, unless it is none or a text in it can't be UTF-8."""
    if not isinstance(row, dict):
        return DropRow("not_an_object")
    try:
        orjson.dumps(row, option=orjson.OPT_NON_STR_KEYS)
    except orjson.JSONEncodeError:
        return DropRow("not_utf8")
    return row


def _several(data: bytes, text: str) -> Iterator[Row | DropRow]:
    """What is no JSON as a whole: commas too many, objects one after another, or damaged lines."""
    try:
        tree = json.loads(_STRAY_COMMA.sub(lambda m: m[1] or "", text))
    except (ValueError, RecursionError):
        tree = None
    if tree is not None:
        yield from map(_encodable, _rows_in(tree, "train", None))
        return
    found, at = _objects(text)
    first = next((line for line in data.splitlines() if line.strip(_BLANK)), b"")
    if len(found) < 2 or (at < len(text) and _is_object(first.strip(_BLANK))):
        yield from _lines(data.splitlines())  # a damaged line is no end
        return
    yield from map(_encodable, found)
    if at < len(text):
        yield DropRow("bad_json")


def _objects(text: str) -> tuple[list[object], int]:
    """The values one after another, and where they end."""
    found: list[object] = []
    at = 0
    blank = re.compile(r"[\s,]*")
    while True:
        at = blank.match(text, at).end()  # type: ignore[union-attr]
        if at == len(text):
            return found, at
        try:
            value, at = _DECODE(text, at)
        except (ValueError, RecursionError):
            return found, at
        found.append(value)


def _rows_in(tree: object, split: str, file: DataFile | None) -> list[Any]:
    """The rows of a parsed file: an array; an object of splits, that wraps them, of columns, or
    keyed by id; or the one row that it is."""
    if isinstance(tree, list):
        return [{"text": t} for t in tree] if tree and _all(str, tree) else tree
    if not isinstance(tree, dict) or not tree:
        return [tree]
    values = list(tree.values())
    splits = [k for k in tree if k in SPLITS and isinstance(tree[k], (list, dict))]
    if splits:
        if split not in splits:
            raise SourceError(
                f"{file.path if file else 'it'} holds the splits {', '.join(splits)}: give --set"
                f" source.split={splits[0]}"
            )
        return _rows_in(tree[split], split, file)
    listed = _all(list, values) and len({len(v) for v in values}) == 1
    if listed and not _all(dict, values[0]) and not tree.keys() & set(_OF_A_ROW):
        return [dict(zip(tree, row, strict=True)) for row in zip(*values, strict=True)]  # columns
    names, data = tree.get("columns"), tree.get("data")
    if isinstance(names, list) and isinstance(data, list) and _all(list, data):  # pandas, split
        return [dict(zip(names, row, strict=False)) for row in data]
    key = next(iter(tree)) if len(tree) == 1 else next((k for k in _WRAPPERS if k in tree), None)
    inner = tree.get(key) if key and key not in _OF_A_ROW else None
    if (isinstance(inner, list) and _all(dict, inner)) or (
        isinstance(inner, dict) and _nests(inner)
    ):
        return _rows_in(inner, split, file)
    if _all(dict, values):
        keys = {tuple(v) for v in values}
        if len(keys) == 1 and all(str(k).isdecimal() for k in next(iter(keys))):  # pandas, columns
            return [{c: tree[c][k] for c in tree} for k in values[0]]
        if len(keys) <= max(1, len(values) // 2):
            return values  # keyed by id
    return [tree]


def _nests(inner: dict[str, Any]) -> bool:
    return bool(inner) and (_all(list, inner.values()) or _all(dict, inner.values()))


def _all(kind: type, values: Iterable[object]) -> bool:
    return all(isinstance(v, kind) for v in values)


# tables and text


def _csv(file: DataFile, stream: IO[bytes]) -> Iterator[Row | DropRow]:
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_LINE))  # of the whole process
    with io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline="") as text:
        lines = _bounded_text(text)
        first = next(lines, "")
        comma = max(",", "\t", ";", key=first.count)
        reader = csv.reader(chain([first], lines), delimiter=comma)
        header = next(reader, [])
        twice = next((h for h in header if h and header.count(h) > 1), None)
        if twice:
            raise SourceError(
                f"{file.path} names the column {twice!r} twice in its first line: rename one"
            )
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


def _text(stream: IO[bytes]) -> Iterator[Row | DropRow]:
    """A prompt a line."""
    for line in _bounded_lines(stream):
        if line is None:
            yield DropRow("line_too_long")
            continue
        for part in line.removeprefix(_BOM).decode("utf-8", "surrogateescape").splitlines():
            if part.strip():
                yield _encodable({"text": part})


def _arrow(file: DataFile, packed: IO[bytes] | None, kind: str) -> Iterator[Row | DropRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Arrow reads by itself: a thread of its that still held a Python file when the interpreter
        # ends would abort the process (apache/arrow#34314)
        source: Any = file.path if packed is None else pa.BufferReader(_whole(file, packed))
        if kind == "parquet":
            with pq.ParquetFile(source) as parquet:
                for batch in parquet.iter_batches(batch_size=1024):
                    yield from _batch(batch)
            return
        with pa.OSFile(str(source)) if packed is None else source as opened:
            if opened.read(6) == b"ARROW1":
                table = pa.ipc.open_file(opened)
                batches = (table.get_batch(i) for i in range(table.num_record_batches))
            else:
                opened.seek(0)
                batches = iter(pa.ipc.open_stream(opened))
            for batch in batches:
                batch.validate(full=True)  # an offset that lies would end the process
                for at in range(0, batch.num_rows, 1024):
                    yield from _batch(batch.slice(at, 1024))
    except pa.ArrowException as e:
        name = "Parquet" if kind == "parquet" else "Arrow"
        why = str(e).splitlines()[0]
        raise SourceError(
            f"can't read {file.path}: not a whole {name} file ({why}); get the file anew"
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
