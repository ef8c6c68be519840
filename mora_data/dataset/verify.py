"""Whether a dataset folder or a release is whole, and keeps what it promises: `mora-data verify`.

    for check in verify(folder, {"dominance_hv"}): check.name, check.faults

Its checksums, its card, its columns, the laws of its pairs and splits, its licence, and whether
`datasets` loads it. Rows are read a thousand at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UNREADABLE, DamagedFile, PublishError
from ..run.files import read_json
from ..text import one_line
from . import schemas
from .lint import LICENCES, fingerprint_in, lint, load_back, read_card, read_header

MOST = 5  # faults of a check that are told


@dataclass(frozen=True, slots=True)
class FolderCheck:
    """One check: what it looked at, in a phrase, and what is wrong, a line each."""

    name: str
    looked_at: str
    faults: tuple[str, ...]


def verify(folder: Path, dominance: Collection[str]) -> Iterator[FolderCheck]:
    """The checks of a dataset folder, in order; none raises for what it finds. `dominance`: the
    selectors whose pairs are worse in no dimension."""
    manifest = _mapping(read_json(folder / "provenance" / "manifest.json").get("manifest"))
    dims = _mapping(manifest.get("settings")).get("dimensions")
    dims = [str(d) for d in dims] if isinstance(dims, list) else []
    files = sorted(folder.glob("*/*.parquet"))
    known = fingerprint_in(folder)
    licence = _mapping(manifest.get("source")).get("licence")
    yield _check("checksums", f"{len(files)} Parquet files", _checksums(folder, known))
    yield _check("card and files", "README.md and what it declares", _card(folder))
    yield _check("columns", f"{len(dims)} dimensions", _columns(files, dims))
    yield _check("laws", "pairs and splits", _laws(files, dominance))
    yield _check("licence", f"source {licence}", _licence(folder, files))
    yield _check("loads", "datasets.load_dataset, each config", _loads(folder))


def facts_of(folder: Path) -> dict[str, Any]:
    """What a dataset folder says of itself: licence, source, models, rows per config and split."""
    manifest = _mapping(read_json(folder / "provenance" / "manifest.json").get("manifest"))
    return {
        "dataset_dir": str(folder),
        "licence": (read_header(read_card(folder)) or {}).get("license"),
        "source": _mapping(manifest.get("source")).get("dataset"),
        "models": _mapping(manifest.get("models")),
        "simulated": manifest.get("simulated"),
        "fingerprint": fingerprint_in(folder),
        "configs": schemas.counts_of(folder),
    }


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _check(name: str, looked_at: str, found: Iterator[str]) -> FolderCheck:
    faults = []
    try:
        for fault in found:
            faults.append(fault)
            if len(faults) == MOST:
                break
    except (DamagedFile, PublishError) as e:
        faults.append(str(e))
    except UNREADABLE as e:
        faults.append(f"it is not as this version of mora-data writes it ({one_line(e)})")
    return FolderCheck(name, looked_at, tuple(faults))


def _card(folder: Path) -> Iterator[str]:
    yield from lint(folder)


def _checksums(folder: Path, known: str | None) -> Iterator[str]:
    if known is None:
        yield "provenance/manifest.json holds no fingerprint of the rows: build or fetch it again"
    schemas.check_fingerprint(folder, known)


def _columns(files: Sequence[Path], dims: Sequence[str]) -> Iterator[str]:
    for path in files:
        name = path.parent.name
        found = schemas.footer_of(path).schema.to_arrow_schema()
        try:
            wanted = schemas.schema(name, dims)
        except KeyError:
            yield f"{name} is no config of this version of mora-data"
            continue
        have = {f.name: f.type for f in found}
        if off := [f.name for f in wanted if have.get(f.name) != f.type]:
            yield f"{name}/{path.name}: {', '.join(off[:4])} missing, or of another type"


def _laws(files: Sequence[Path], dominance: Collection[str]) -> Iterator[str]:
    """Chosen and rejected differ; no margin of a dominance selector is negative, and each binding
    one is positive; a prompt's rows are in one split."""
    split_of: dict[str, str] = {}
    for path in files:
        split = path.name.partition("-")[0]
        names = set(schemas.footer_of(path).schema.to_arrow_schema().names)
        pairs = path.parent.name == schemas.DEFAULT_CONFIG
        margins = sorted(
            n for n in names if n.startswith("margin_") and not n.startswith("margin_confirmed_")
        )
        wanted = ["prompt_id"] if "prompt_id" in names else []
        wanted += ["chosen", "rejected"] if {"chosen", "rejected"} <= names else []
        wanted += ["selector", "binding_dims", *margins] if pairs else []
        if not wanted:
            continue
        for batch in schemas.record_batches(path, wanted):
            if "chosen" in wanted:
                sides = (batch.column(side).to_pylist() for side in ("chosen", "rejected"))
                if n := sum(a == b for a, b in zip(*sides, strict=True)):
                    yield f"{path.parent.name}: in {n} rows chosen and rejected are the same text"
            for prompt_id in set(batch.column("prompt_id").to_pylist()):
                if split_of.setdefault(prompt_id, split) != split:
                    yield f"{path.parent.name}: prompt {prompt_id} is in two splits"
            if pairs:
                rows = [r for r in batch.to_pylist() if r["selector"] in dominance]
                yield from _margins(path, rows, margins)


def _margins(path: Path, rows: Sequence[schemas.Row], margins: Sequence[str]) -> Iterator[str]:
    broken: Counter[str] = Counter()
    for row in rows:
        binding = {f"margin_{d}" for d in row["binding_dims"] or ()} | {"margin_total"}
        for name in margins:
            value = row[name]
            if name in binding and (value is None or value <= 0):
                broken[f"{name} is not positive, although it is binding"] += 1
            elif value is not None and value < 0:
                broken[f"{name} is negative"] += 1
    for what, n in broken.items():
        yield f"{path.parent.name}: in {n} rows {what}"


def _licence(folder: Path, files: Sequence[Path]) -> Iterator[str]:
    header = read_header(read_card(folder)) or {}
    if header.get("license") not in LICENCES:
        yield f"README.md says licence {header.get('license')!r}, which the Hub does not know"
    if not (folder / "LICENSE.md").is_file():
        yield "LICENSE.md is missing"
    found: Counter[str] = Counter()
    for path in (p for p in files if p.parent.name == schemas.DEFAULT_CONFIG):
        for batch in schemas.record_batches(path, ["source_licence"]):
            found.update(str(v) for v in batch.column(0).to_pylist())
    if bad := sorted(v for v in found if v in ("", "None", "unknown")):
        yield f"{sum(found[v] for v in bad)} rows have a source of unknown licence"


def _loads(folder: Path) -> Iterator[str]:
    load_back(folder, read_header(read_card(folder)) or {"dataset_info": []})
    yield from ()
