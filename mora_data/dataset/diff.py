"""What changed between two datasets, config by config: rows added, removed and changed, columns
that differ; and CHANGELOG.md, which says so for each tag against the tag before it.

    deltas = diff_datasets("runs/a", "org/mora-pairs@v1.0.0")
    deltas["preference"].added
    changelog("v1.1.0", "v1.0.0", deltas, previous_text)

Rows are matched by `pair_id`; where there is none, by prompt, arm and, if the row has one, its
answer. A changelog is a pure function of both releases: a repeated push writes the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from ..errors import PublishError
from ..run.files import readable
from .card import code, escape_markdown, format_value
from .schemas import AGAIN, Row, footer_of, row_batches

TITLE = "# Changelog\n\nRows by `pair_id`; where a config has none, by prompt, arm and answer.\n"
_ON_HUB = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>\S+))?")


@dataclass(frozen=True, slots=True)
class Delta:
    """One config: rows by what became of them, and `name: type before -> after` of columns that
    differ."""

    added: int = 0
    removed: int = 0
    changed: int = 0
    same: int = 0
    columns: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed or self.columns)


def diff_datasets(before: str, after: str) -> dict[str, Delta]:
    """Config -> what changed, for every config of either.

    Each is a dataset folder, a run folder, or `ORG/NAME@TAG` on the Hub, where a commit or a branch
    serves as well.

    Raises:
        PublishError: one of them holds no dataset.
        DamagedFile: a Parquet file can't be read.
    """
    a, b = (_configs(dataset_of(where)) for where in (before, after))
    return {name: delta_of(a.get(name, []), b.get(name, [])) for name in dict.fromkeys([*a, *b])}


def delta_of(before: Iterable[Path], after: Iterable[Path]) -> Delta:
    """What changed from the rows of some Parquet files to those of others."""
    before, after = sorted(before), sorted(after)
    if not before or not after:
        return Delta(added=_count(after), removed=_count(before))
    a, b = _rows(before), _rows(after)
    changed = sum(a[key] != b[key] for key in a.keys() & b.keys())
    return Delta(
        added=len(b.keys() - a.keys()),
        removed=len(a.keys() - b.keys()),
        changed=changed,
        same=len(a.keys() & b.keys()) - changed,
        columns=_columns(before, after),
    )


def diff_lines(deltas: Mapping[str, Delta]) -> list[str]:
    """The deltas as an aligned table."""
    width = max([6, *map(len, deltas)])
    out = [f"{'config':<{width}} {'added':>8} {'removed':>8} {'changed':>8} {'same':>8}  columns"]
    for name, d in deltas.items():
        columns = "; ".join(d.columns) or "-"
        out.append(
            f"{name:<{width}} {d.added:>8} {d.removed:>8} {d.changed:>8} {d.same:>8}  {columns}"
        )
    return out


def dataset_of(where: str) -> Path:
    """The dataset folder of a run or a folder, or a copy of what a tag of the Hub holds.

    Raises:
        PublishError: there is none.
    """
    path = Path(where)
    if is_on_hub(where) and (on_hub := _ON_HUB.fullmatch(where)):
        from .client import snapshot

        path = snapshot(on_hub["repo"], on_hub["revision"])
    for folder in (path / "dataset", path):
        if (folder / "README.md").is_file() and any(folder.glob("*/*.parquet")):
            return folder
    raise PublishError(
        f"{where} holds no dataset: give a dataset folder, a run folder that is built to the end,"
        " or ORG/NAME@TAG"
    )


def is_on_hub(where: str) -> bool:
    """Whether a name is no folder here, and may be ORG/NAME or ORG/NAME@TAG."""
    return not Path(where).exists() and _ON_HUB.fullmatch(where) is not None


def _configs(folder: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*/*.parquet")):
        found.setdefault(path.parent.name, []).append(path)
    return found


def _rows(files: list[Path]) -> dict[bytes, bytes]:
    """Key -> what stands under it, both hashed; a further row under one key goes under the hash of
    that key."""
    found: dict[bytes, bytes] = {}
    for path in files:
        split = path.name.split("-")[0]
        with readable(path, AGAIN):
            for row in chain.from_iterable(row_batches([path])):
                key = _hash(_key(row))
                while key in found:
                    key = _hash(key.hex())
                found[key] = _hash([split, row])
    return found


def _count(files: list[Path]) -> int:
    return sum(footer_of(f).num_rows for f in files)


def _key(row: Row) -> object:
    if row.get("pair_id") is not None:
        return row["pair_id"]
    return [row.get("prompt_id"), row.get("arm"), row.get("completion"), row.get("response")]


def _hash(value: object) -> bytes:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).digest()


def _columns(before: list[Path], after: list[Path]) -> tuple[str, ...]:
    a, b = (
        {f.name: str(f.type) for f in footer_of(files[0]).schema.to_arrow_schema()}
        for files in (before, after)
    )
    return tuple(
        f"{n}: {a.get(n, 'none')} -> {b.get(n, 'none')}"
        for n in sorted({*a, *b})
        if a.get(n) != b.get(n)
    )


def changelog(tag: str, previous: str | None, deltas: Mapping[str, Delta], older: str = "") -> str:
    """The whole file: this tag's section, then those of the file at the previous tag."""
    against = (
        f"Against {escape_markdown(previous)}. A {version_step(deltas)} step."
        if previous
        else "First release."
    )
    rows = [
        f"| {code(name)} | {format_value(d.added)} | {format_value(d.removed)} |"
        f" {format_value(d.changed)} |"
        for name, d in deltas.items()
        if d
    ]
    table = ["| config | added | removed | changed |", "|---|---:|---:|---:|", *rows]
    columns = [
        f"- Columns of {code(name)}: {escape_markdown('; '.join(d.columns))}"
        for name, d in deltas.items()
        if d.columns
    ]
    lines = [
        f"## {escape_markdown(tag)}",
        "",
        against,
        "",
        *(table if rows else ["No row changed."]),
    ]
    lines += ["", *columns] if columns else []
    sections = older[older.index("\n## ") :] if "\n## " in older else ""
    return f"{TITLE}\n" + "\n".join(lines) + "\n" + sections


def version_step(deltas: Mapping[str, Delta]) -> str:
    """Which part of a semantic version the change calls for: major where a column is gone or means
    something else, minor where rows or configs differ, else patch."""
    if any(": none ->" not in column for d in deltas.values() for column in d.columns):
        return "major"
    return "minor" if any(deltas.values()) else "patch"
