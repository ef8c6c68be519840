"""A partition on disk: parts/<nnnnn>/.

    prompts.jsonl     the mined prompts, in order
    answers.log       the answer log, while the partition is open
    answers.parquet   the answers by key, once it is finalized
    *.parquet         what came of it: profiles, fusions, rollouts, scores, pairs
    errors.jsonl      failed rows
    manifest.json     written last, with the sha256 of all the others; while its `settings` hash
                      stands the partition is not touched again

And how Arrow is kept from holding memory that is used once, so that a run's peak is that of its
largest step.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from ..errors import DamagedFile, RunFolderError
from ..types import Prompt, Recorded, Row
from .files import read_json, readable, replacing, sha256_of, sync_folder, write_json, write_whole

MANIFEST_KEYS = {"settings", "n_prompts", "counts", "owed", "tokens"}
AGAIN = "run the same build again, it is made anew from what was answered"
PROMPTS, ANSWERS, ERRORS = "prompts.jsonl", "answers.parquet", "errors.jsonl"
SIDES = ("reward", "level", "doubt")  # columns of a partition's answers, one of each per dimension
_PROMPT_FIELDS = frozenset(f.name for f in fields(Prompt))


class Partition:
    """One partition's folder."""

    def __init__(self, run_dir: Path, number: int) -> None:
        self.number = number
        self.folder = run_dir / "parts" / f"{number:05d}"

    @property
    def log_path(self) -> Path:
        return self.folder / "answers.log"

    def log_size(self) -> int:
        """Bytes of the answer log; 0 where there is none."""
        return self.log_path.stat().st_size if self.log_path.exists() else 0

    def manifest(self) -> dict[str, Any] | None:
        """The partition's manifest, None while it is open or unreadable."""
        tree = read_json(self.folder / "manifest.json")
        return tree if tree.keys() >= MANIFEST_KEYS else None

    def file(self, name: str) -> Path:
        """A file of the partition, as it was when the partition was finalized.

        Raises:
            DamagedFile: it is another one, or gone.
        """
        path = self.folder / name
        wanted = ((self.manifest() or {}).get("files") or {}).get(name)
        with readable(path, AGAIN):
            if wanted is not None and wanted != sha256_of(path):
                raise DamagedFile(f"{path} is damaged (it has another checksum): {AGAIN}")
        return path

    def damage(self) -> str | None:
        """What is wrong with the first damaged file of a finalized partition, but for the answers;
        None where all are whole."""
        try:
            for name in (self.manifest() or {}).get("files") or ():
                if name != ANSWERS:
                    self.file(name)
        except DamagedFile as e:
            return str(e)
        return None

    def prompts(self) -> list[Prompt]:
        """The mined prompts, in order.

        Raises:
            DamagedFile: they can't be read.
        """
        path = self.file(PROMPTS)
        with readable(path, AGAIN), path.open("rb") as f:
            return [_prompt_of(orjson.loads(line)) for line in f]

    def n_prompts(self) -> int:
        """How many prompts were mined into it.

        Raises:
            DamagedFile: that can't be read.
        """
        with readable(self.folder / PROMPTS, AGAIN):
            return (self.folder / PROMPTS).read_bytes().count(b"\n")

    def prompts_hash(self) -> str:
        """16 hex digits over the mined prompts; empty where they can't be read."""
        try:
            return sha256_of(self.folder / PROMPTS)[:16]
        except OSError:
            return ""

    def keep_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Write the mined prompts, unless they are there already. A partition that was finalized
        with others is open again."""
        path, lines = self.folder / PROMPTS, _json_lines(prompts)
        found = hashlib.sha256(lines).hexdigest()
        if self.prompts_hash() != found[:16]:
            self.folder.mkdir(parents=True, exist_ok=True)
            if ((self.manifest() or {}).get("files") or {}).get(PROMPTS) != found:
                self.invalidate()
            write_whole(path, lines)

    def finalized_answers(self) -> dict[bytes, bytes]:
        """Key to record JSON of the answers of an earlier build; empty when there was none.

        Raises:
            DamagedFile: they can't be read.
        """
        path = self.folder / ANSWERS
        if not path.exists():
            return {}
        import pyarrow.parquet as pq

        # an open partition has no manifest: the pages have checksums of their own
        with readable(path, "delete it to ask its answers again"):
            table = pq.read_table(path, memory_map=True, page_checksum_verification=True)
            keys, records = (table.column(name).to_pylist() for name in ("key", "record"))
            return dict(zip(keys, records, strict=True))

    def keep_answers(self, answers: Iterable[tuple[bytes, bytes]]) -> None:
        """Of an open partition: these answers and no others, and no log."""
        self._write_answers(answers)
        sync_folder(self.folder)
        self.log_path.unlink(missing_ok=True)

    def _write_answers(self, answers: Iterable[tuple[bytes, bytes]]) -> list[int]:
        """answers.parquet; tokens in and out."""
        import pyarrow as pa

        tokens = [0, 0]

        def rows() -> Iterator[Row]:
            for key, record in answers:
                spent = orjson.loads(record).get("t") or (0, 0)
                tokens[:] = tokens[0] + spent[0], tokens[1] + spent[1]
                yield {"key": key, "record": record}

        schema = pa.schema([("key", pa.binary(16)), ("record", pa.binary())])
        write_rows(self.folder / ANSWERS, rows(), schema)
        return tokens

    def finalize(
        self,
        tables: Mapping[str, tuple[Any, Iterable[Row]]],
        answers: Iterable[tuple[bytes, bytes]],
        errors: Sequence[Mapping[str, object]],
        manifest: Mapping[str, object],
    ) -> None:
        """Write the tables, each an Arrow schema and its rows, and the answers, then the manifest,
        then drop the log: each is on the disk before the next."""
        tokens = self._write_answers(answers)
        for name, (schema, rows) in tables.items():
            write_rows(self.folder / f"{name}.parquet", rows, schema)
        write_whole(self.folder / ERRORS, _json_lines(errors))
        names = sorted([PROMPTS, ANSWERS, ERRORS, *(f"{name}.parquet" for name in tables)])
        files = {name: sha256_of(self.folder / name) for name in names}
        sync_folder(self.folder)
        tree = {**manifest, "tokens": tokens, "files": files}
        write_json(self.folder / "manifest.json", dict(sorted(tree.items())))
        sync_folder(self.folder)
        self.log_path.unlink(missing_ok=True)

    def give_up(self, why: str) -> None:
        """List every prompt as failed, of a partition that can't be worked on; it stays open, the
        next run tries it again."""
        errors = [
            {"prompt_id": p.prompt_id, "stage": "partition", "error": why} for p in self.prompts()
        ]
        write_whole(self.folder / ERRORS, _json_lines(errors))

    def invalidate(self) -> None:
        """Take the manifest away: the partition is open again, its answers serve as log.

        Raises:
            RunFolderError: it stays there.
        """
        path = self.folder / "manifest.json"
        try:
            path.unlink(missing_ok=True)
        except OSError as e:
            way = "remove the folder that stands there" if path.is_dir() else "see to its rights"
            raise RunFolderError(f"can't take {path} away: {e.strerror}; {way}") from e

    def table(self, name: str, columns: Sequence[str] | None = None) -> Any:
        """Table `name` (pyarrow.Table), all its columns or those named.

        Raises:
            DamagedFile: it can't be read.
        """
        import pyarrow.parquet as pq

        path = self.file(f"{name}.parquet")
        with readable(path, AGAIN), pq.ParquetFile(path, memory_map=True) as file:
            names = None if columns is None else list(columns)
            missing = {*(names or ())} - {*file.schema_arrow.names}
            if missing:
                raise KeyError(f"column {min(missing)} is missing")
            return file.read(columns=names, use_threads=False)

    def errors(self) -> list[dict[str, object]]:
        """The failed rows; none of a partition that was not worked on.

        Raises:
            DamagedFile: they can't be read.
        """
        if not (self.folder / ERRORS).exists() and self.manifest() is None:
            return []
        path = self.file(ERRORS)
        with readable(path, AGAIN), path.open("rb") as f:
            return [orjson.loads(line) for line in f]


def row_tuples(table: Any, *names: str) -> Iterator[tuple[Any, ...]]:
    """Some columns of a table, row by row."""
    return zip(*(table.column(name).to_pylist() for name in names), strict=True)


def last_tries(fusions: Any) -> dict[tuple[str, str], int]:
    """(prompt id, arm) -> the row of a table of `fusions` with what became of the prompt there: the
    rewrite that was accepted, else the last one."""
    found: dict[tuple[str, str], int] = {}
    accepted = fusions.column("accepted").to_pylist()
    for i, at in enumerate(row_tuples(fusions, "prompt_id", "arm")):
        if at not in found or not accepted[found[at]]:
            found[at] = i
    return found


def _json_lines(rows: Iterable[object]) -> bytes:
    return b"".join(orjson.dumps(row) + b"\n" for row in rows)


def _prompt_of(tree: Mapping[str, Any]) -> Prompt:
    """The prompt of a line in prompts.jsonl."""
    known = {k: v for k, v in tree.items() if k in _PROMPT_FIELDS}
    known["messages"] = tuple(known["messages"])
    known["recorded"] = tuple(Recorded(r["text"], r["ratings"]) for r in known.get("recorded", ()))
    return Prompt(**known)


def write_rows(path: Path, rows: Iterable[Row], schema: Any) -> None:
    """Write rows as zstd Parquet in row groups of 1,000, null where a row has no value; the file
    appears whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    lean_arrow()
    left = iter(rows)
    options = {"compression": "zstd", "write_page_index": True, "write_page_checksum": True}
    with (
        replacing(path) as part,
        pq.ParquetWriter(part, schema, use_dictionary=False, **options) as writer,
    ):
        while some := list(islice(left, 1000)):
            writer.write_batch(pa.RecordBatch.from_pylist(some, schema=schema))


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h


def give_back() -> None:
    """Between two phases: what the first one needed goes back to the system."""
    with contextlib.suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def choose_malloc() -> None:
    """Before pyarrow is imported: its Parquet writer and kernels take the system's malloc, too (22
    MB after one partition).

    `pa.set_memory_pool` reaches what Python allocates; the C++ side reads the environment, once.
    """
    if "pyarrow" not in sys.modules:
        os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")


class _Hidden:
    """An import finder that finds no pandas."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name)


@functools.cache
def lean_arrow() -> None:
    """Before pyarrow's first use: its arrays come from a malloc that gives memory back, and its
    first one without pandas.

    Its own pool keeps 60 to 90 MB after a few partitions; pandas would be imported for nothing (0.3
    s, 40 MB), and `to_pandas` still finds it later.
    """
    choose_malloc()
    import pyarrow as pa

    # only glibc has it; columns of text would raise its thresholds
    with contextlib.suppress(OSError, AttributeError):
        for option, value in (
            (M_MMAP_THRESHOLD, 256 << 10),
            (M_TRIM_THRESHOLD, 1 << 20),
            (M_ARENA_MAX, 1),
        ):
            ctypes.CDLL(None).mallopt(option, value)
    pa.set_memory_pool(pa.system_memory_pool())
    if "pandas" not in sys.modules:
        sys.meta_path.insert(0, _Hidden)
        try:
            pa.array([])
        finally:
            sys.meta_path.remove(_Hidden)
