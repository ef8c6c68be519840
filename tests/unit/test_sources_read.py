"""Local files: every type, and every way in which a file or a line can be damaged."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mora_data.errors import DropRow, SourceError
from mora_data.sources import read
from mora_data.sources.containers import KIND_OF

ROWS = [{"prompt": "Wo ist die Brücke?", "n": "1"}, {"prompt": "Why “so”,\nthen?", "n": "2"}]


def put(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def rows_of(*paths: Path, patterns: Iterable[str] = ()) -> list[object]:
    """The rows, dropped ones as their reason."""
    got = list(read.rows(read.find(paths, list(patterns))))
    assert [r.number for r in got] == list(range(len(got)))
    return [r.row.reason if isinstance(r.row, DropRow) else r.row for r in got]


def parquet(path: Path, table: pa.Table) -> Path:
    pq.write_table(table, path)
    return path


def written(folder: Path, suffix: str) -> Path:
    """The rows as a file of this type."""
    path = folder / f"rows{suffix}"
    plain = folder / f"rows{suffix.removesuffix('.gz')}"
    if suffix.startswith((".parquet", ".pq")):
        parquet(plain, pa.Table.from_pylist(ROWS))
    elif suffix.startswith((".arrow", ".ipc", ".feather")):
        table = pa.Table.from_pylist(ROWS)
        opened = pa.ipc.new_stream if suffix.startswith(".arrow") else pa.ipc.new_file
        with opened(plain, table.schema) as out:
            out.write_table(table)
    elif ".csv" in suffix:
        put(plain, 'prompt,n\r\nWo ist die Brücke?,1\r\n\r\n"Why “so”,\nthen?",2\r\n')
    elif suffix.startswith(".tsv"):
        put(plain, 'prompt\tn\nWo ist die Brücke?\t1\n"Why “so”,\nthen?"\t2\n')
    elif suffix.startswith((".jsonl", ".ndjson")):
        put(plain, "\n".join(json.dumps(r) for r in ROWS) + "\n\n")
    else:
        put(plain, json.dumps(ROWS, ensure_ascii=False, indent=1))
    if path != plain:
        path.write_bytes(packed(plain.read_bytes(), path.suffix))
        plain.unlink()
    return path


def packed(data: bytes, suffix: str) -> bytes:
    """The bytes, packed as the suffix says."""
    if suffix == ".zst":
        return bytes(pa.compress(data, "zstd", asbytes=True))
    return {".gz": gzip, ".bz2": bz2, ".xz": lzma}[suffix].compress(data)


@pytest.mark.parametrize("zipped", ["", ".gz", ".zst", ".bz2", ".xz"])
@pytest.mark.parametrize("suffix", [s for s, kind in KIND_OF.items() if kind != "text"])
def test_every_type_gives_the_same_rows(tmp_path: Path, suffix: str, zipped: str) -> None:
    assert rows_of(written(tmp_path, suffix + zipped)) == ROWS


@pytest.mark.parametrize(
    "text",
    ['{"data": [{"a": 1}]}', '{"version": 2, "rows": [{"a": 1}]}', '[{"a": 1}]', '{"a": 1}\n'],
)
def test_shapes_of_json(tmp_path: Path, text: str) -> None:
    assert rows_of(put(tmp_path / "x.json", text)) == [{"a": 1}]


def test_json_lines_in_a_json_file(tmp_path: Path) -> None:
    assert rows_of(put(tmp_path / "x.json", '{"a": 1}\n{"a": 2}\n')) == [{"a": 1}, {"a": 2}]
    assert rows_of(put(tmp_path / "x.json", '[{"a": 1}, 7]')) == [{"a": 1}, "not_an_object"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": ', "bad_json"),
        (b'{"a": "caf\xe9"}', "not_utf8"),
        (b'{"a": "\\ud800"}', "not_utf8"),
        (b"\xff\xfe", "not_utf8"),
        (b"[1]", "not_an_object"),
        (b'"text"', "not_an_object"),
        (b"[" * 100_000, "bad_json"),
    ],
)
def test_a_damaged_line_is_one_dropped_row(tmp_path: Path, line: bytes, reason: str) -> None:
    assert rows_of(put(tmp_path / "x.jsonl", b'{"a": 1}\n' + line + b'\n{"a": 2}\n')) == [
        {"a": 1},
        reason,
        {"a": 2},
    ]


def test_byte_order_mark_and_nan_are_read(tmp_path: Path) -> None:
    first, second = rows_of(put(tmp_path / "x.jsonl", b'\xef\xbb\xbf{"a": 1}\n{"a": NaN}\n'))
    assert first == {"a": 1}
    assert isinstance(second, dict) and second["a"] != second["a"]
    assert rows_of(put(tmp_path / "x.csv", b"\xef\xbb\xbfa\n1\n")) == [{"a": "1"}]
    assert rows_of(put(tmp_path / "x.json", b'\xef\xbb\xbf[{"a": 1}]')) == [{"a": 1}]


def test_not_utf8_in_other_types(tmp_path: Path) -> None:
    assert rows_of(put(tmp_path / "x.csv", b"a\ncaf\xe9\nok\n")) == ["not_utf8", {"a": "ok"}]
    assert rows_of(put(tmp_path / "x.json", b'[{"a": "caf\xe9"}, {"a": "ok"}]')) == [
        "not_utf8",
        {"a": "ok"},
    ]
    broken = pa.Array.from_buffers(
        pa.string(), 2, [None, *pa.array([b"caf\xe9", b"ok"], pa.binary()).buffers()[1:]]
    )
    assert rows_of(parquet(tmp_path / "x.parquet", pa.table({"a": broken}))) == [
        "not_utf8",
        {"a": "ok"},
    ]


def test_csv_rows_of_another_width(tmp_path: Path) -> None:
    assert rows_of(put(tmp_path / "x.csv", "a,b\n1\n1,2\n1,2,3\n")) == [
        "wrong_field_count",
        {"a": "1", "b": "2"},
        "wrong_field_count",
    ]
    assert rows_of(put(tmp_path / "x.csv", "a\n" + "x" * 200_000 + "\n")) == [{"a": "x" * 200_000}]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".jsonl.gz"])
def test_an_empty_file_has_no_rows(tmp_path: Path, suffix: str) -> None:
    assert (
        rows_of(put(tmp_path / f"x{suffix}", gzip.compress(b"") if suffix.endswith("gz") else b""))
        == []
    )


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("x.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 9, mtime=0)[:-9]),
        ("x.parquet", b""),
        ("x.parquet", b"PAR1" * 9),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path: Path, name: str, data: bytes) -> None:
    path = put(tmp_path / name, data)
    with pytest.raises(SourceError, match=r"can't read .*get the file anew") as caught:
        rows_of(path)
    assert "\n" not in str(caught.value)


def test_missing_and_unknown_paths(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no file or folder at .*nowhere: correct the path"):
        read.find([tmp_path / "nowhere"], [])
    with pytest.raises(SourceError, match=r"'\.docx' is not one of \.jsonl"):
        rows_of(put(tmp_path / "x.docx", "a"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="no data file in"):
        read.find([tmp_path / "empty"], [])


def test_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = read.find([put(tmp_path / "x.jsonl", "{}")], [])

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(SourceError, match="Permission denied"):
        list(read.rows(file))
    with pytest.raises(SourceError, match="Permission denied"):
        read.sha256(file)


def test_a_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    put(tmp_path / "b" / "train.jsonl", '{"a": 2}')
    put(tmp_path / "a" / "train.jsonl.gz", gzip.compress(b'{"a": 1}'))
    put(tmp_path / "a" / "test.jsonl", '{"a": 0}')
    put(tmp_path / ".cache" / "x.jsonl", '{"a": 9}')
    put(tmp_path / "README.md", "# no data")
    put(tmp_path / "dataset_infos.json", "{}")
    assert rows_of(tmp_path) == [{"a": 0}, {"a": 1}, {"a": 2}]
    assert rows_of(tmp_path, patterns=["a/train.jsonl*", "b/train.jsonl*"]) == [{"a": 1}, {"a": 2}]
    assert rows_of(tmp_path, patterns=["z/*.jsonl"]) == [{"a": 0}, {"a": 1}, {"a": 2}]
    assert [f.name for f in read.find([tmp_path], [])] == [
        "a/test.jsonl",
        "a/train.jsonl.gz",
        "b/train.jsonl",
    ]


def test_the_hash_does_not_depend_on_the_place(tmp_path: Path) -> None:
    one = put(tmp_path / "a" / "x.jsonl", "{}\n")
    other = put(tmp_path / "b" / "x.jsonl", "{}\n")
    assert (
        read.sha256(read.find([one], []))
        == read.sha256(read.find([other], []))
        == hashlib.sha256(b"{}\n").hexdigest()
    )
    both = read.sha256(read.find([tmp_path], []))
    put(tmp_path / "b" / "x.jsonl", "{}\n\n")
    assert read.sha256(read.find([tmp_path], [])) != both


ARROW_ENDS = """
import sys
from pathlib import Path
from mora_data.errors import SourceError
from mora_data.sources import read
for path in map(Path, sys.argv[1:]):
    good, refused = path.read_bytes(), 0
    for at in range(0, len(good) - 4, max(4, len(good) // 80 // 4 * 4)):
        path.write_bytes(good[:at] + b"\\xff\\xff\\xff\\x7f" + good[at + 4:])
        try:
            list(read.rows(read.find([path], [])))
        except SourceError as e:
            refused += 1
            assert "\\n" not in str(e)
    print(refused)
"""


def test_a_number_that_lies_in_a_table_is_one_error(tmp_path: Path) -> None:
    """Arrow believes the offsets of a file: one that lies ended the process."""
    paths = [written(tmp_path, suffix) for suffix in (".arrow", ".ipc", ".parquet")]
    command = [sys.executable, "-c", ARROW_ENDS, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-500:]
    assert min(map(int, done.stdout.split())) > 20


def test_a_packed_file_that_its_reader_does_not_know_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("a.jsonl", "{}\n")
    raw = path.read_bytes()
    for at, to in ((8, b"\x63"), (raw.index(b"PK\x01\x02") + 10, b"\x63")):  # the method
        raw = raw[:at] + to + raw[at + 1 :]
    path.write_bytes(raw)
    with pytest.raises(SourceError, match="can't read"):
        rows_of(path)
