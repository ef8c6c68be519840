"""Checks of a dataset folder. Before a byte leaves (`lint`): header, files, numbers, privacy, a
load with `datasets`. Of a folder or a release from anywhere (`mora-data verify`): whether it is
whole and keeps what it promises, in its checksums, card, columns, pairs, splits and licence.

    for check in verify(folder, {"dominance_hv"}): check.name, check.faults

Rows are read a thousand at a time.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import orjson
import yaml

from .. import resources
from ..errors import UNREADABLE, DamagedFile, PublishError
from ..run.files import readable
from ..run.folder import carried_manifest
from ..text import one_line
from . import schemas
from .card import Header, PublishedManifest, format_value
from .privacy import scrub_text

_LICENCE_IDS = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear
c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0
cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl
ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl
lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0
odc-by odbl openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr
deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3
llama4 gemma unknown other
"""
OWN_TEXTS = frozenset({"README.md", "LICENSE.md", "CITATION.cff", "CHANGELOG.md"})
LICENCES = frozenset(_LICENCE_IDS.split())
_NUMBER = re.compile(r"(?<![\w.,])(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[+-]?\d+)?(?!\w)")


def lint(folder: Path, text: str | None = None) -> list[str]:
    """What is wrong with the folder, one line each; [] if nothing. `text` stands for README.md
    where it is given."""
    try:
        text = read_card(folder) if text is None else text
        path = folder / "provenance" / "manifest.json"
        with readable(path, "build again"):
            published = orjson.loads(path.read_bytes())
        header = read_header(text)
        if header is None:
            return ["README.md has no YAML header"]
        body = text.split("\n---\n", 1)[1]
        with readable("README.md, or provenance/manifest.json,", "build again"):
            return [
                *_header_faults(header),
                *_file_faults(folder, header, published["folder"]["dimensions"]),
                *_number_faults(body, published),
                *_private(body, published),
            ]
    except DamagedFile as e:
        return [str(e)]


def read_card(folder: Path) -> str:
    """README.md.

    Raises:
        DamagedFile: it can't be read.
    """
    with readable(folder / "README.md", "build again"):
        return (folder / "README.md").read_text("utf-8")


def fingerprint_in(folder: Path) -> str | None:
    """The fingerprint that the folder says it has; None where it says none."""
    found = carried_manifest(folder).get("fingerprint")
    return found if isinstance(found, str) else None


def read_header(text: str) -> Header | None:
    """The YAML header of a card, or None."""
    found = re.match(r"---\n(.*?\n)---\n", text, re.S)
    try:
        header = resources.parse_yaml(found[1]) if found else None
    except yaml.YAMLError:
        return None
    return cast(Header, header) if isinstance(header, dict) else None


def declared_files(header: Header) -> dict[str, dict[str, list[str]]]:
    """Config -> split -> files, as the header declares them.

    Raises:
        DamagedFile: it is no header of ours.
    """
    with readable("the header of README.md", "build again"):
        return {
            config["config_name"]: {
                d["split"]: d["path"] if isinstance(d["path"], list) else [d["path"]]
                for d in config["data_files"]
            }
            for config in header.get("configs") or []
        }


def load_back(folder: Path, header: Header) -> dict[str, dict[str, int]]:
    """Rows per config and split as `datasets` loads them from disk, each config with a cache of its
    own. It follows any address and path that a header declares, so only files of the folder may
    stand there.

    Raises:
        PublishError: a config does not load, has other rows than the header says, or declares what
            is no file of the folder.
    """
    named = {f for splits in declared_files(header).values() for of in splits.values() for f in of}
    there = {p.relative_to(folder).as_posix() for p in folder.glob("*/*.parquet")}
    keys = {key for config in header.get("configs") or [] for key in config}
    if odd := sorted(named - there) or sorted(keys - {"config_name", "default", "data_files"}):
        raise PublishError(
            f"README.md declares {one_line(odd[0])}, which is no Parquet file of the folder: it is"
            " not loaded"
        )

    import datasets

    out: dict[str, dict[str, int]] = {}
    bars = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        for info in header["dataset_info"]:
            name = info["config_name"]
            expected = {s["name"]: s["num_examples"] for s in info["splits"]}
            with tempfile.TemporaryDirectory(prefix="mora-load-") as cache:
                loaded = datasets.load_dataset(str(folder), name, cache_dir=cache)
                out[name] = {str(split): rows.num_rows for split, rows in loaded.items()}
                del loaded
            if out[name] != expected:
                raise PublishError(
                    f"config {name} loads with rows {out[name]}, README.md says {expected}: build"
                    " again"
                )
    except (datasets.exceptions.DatasetsError, ValueError, OSError) as e:
        raise PublishError(
            f"the folder does not load with datasets: {one_line(e, 300)}; build again"
        ) from e
    finally:
        if bars:
            datasets.enable_progress_bars()
    return out


def _header_faults(header: Header) -> Iterator[str]:
    configs = header.get("configs") or []
    defaults = [c["config_name"] for c in configs if c.get("default")]
    if len(defaults) != 1:
        yield f"exactly one config must be the default, not {defaults}"
    if header.get("license") not in LICENCES:
        yield (
            f"license {header.get('license')!r} is not one that the Hub knows: set publish.licence"
        )
    if not all(isinstance(x, str) for x in header.get("language") or []):
        yield f"languages must be strings: {header['language']}"
    infos = [i["config_name"] for i in header.get("dataset_info") or []]
    if infos != [c["config_name"] for c in configs]:
        yield "configs and dataset_info name different configs"


def _file_faults(folder: Path, header: Header, dims: list[str]) -> Iterator[str]:
    have = {
        p.relative_to(folder).as_posix()
        for p in folder.rglob("*")
        if p.is_file() and not any(x.startswith(".") for x in p.relative_to(folder).parts)
    }
    declared = declared_files(header)
    named = {f for by_split in declared.values() for files in by_split.values() for f in files}
    yield from (f"{missing} is declared but not there" for missing in sorted(named - have))
    for stray in sorted(have - named - OWN_TEXTS):
        if not re.fullmatch(r"provenance/.+|report/.+\.png", stray):
            yield f"{stray} is there but not declared"
    for info in header.get("dataset_info") or []:
        is_union = info["config_name"] == schemas.BY_DIM_UNION
        like = f"preference_{dims[0]}" if is_union else info["config_name"]
        known = [schemas.schema(like, dims, thoughts) for thoughts in (False, True)]
        for split in info["splits"]:
            where = f"{info['config_name']}/{split['name']}"
            files = declared.get(info["config_name"], {}).get(split["name"], [])
            footers = [schemas.footer_of(folder / f) for f in files if f in have]
            if (rows := sum(f.num_rows for f in footers)) != split["num_examples"]:
                yield f"{where} has {rows} rows, README.md says {split['num_examples']}"
            for footer in footers:
                known = [s for s in known if s == footer.schema.to_arrow_schema()]
                if not known:  # a config has one schema
                    yield f"{where} has other columns than its config has"


def _number_faults(body: str, published: PublishedManifest) -> Iterator[str]:
    """Every number of the body stands in the manifest, or in the card's own fixed text."""
    known = {n for text in _fixed_texts() for n in _NUMBER.findall(text)}
    for value in _values(published):
        known |= _printed(value)
    for number in dict.fromkeys(_NUMBER.findall(_prose(body))):
        if number not in known:
            yield f"the card says {number}, which is nowhere in provenance/manifest.json"


def _printed(value: object) -> set[str]:
    """How a value of the manifest may be printed."""
    if isinstance(value, str):
        return set(_NUMBER.findall(value)) | {value}
    if isinstance(value, float):
        printed = {format_value(v).lstrip("-") for v in (value, round(value, 3), round(value, 1))}
        return printed | {f"{value * 100:.0f}"} if abs(value) <= 1 else printed
    return {format_value(value).lstrip("-")} if isinstance(value, (int, float)) else set()


def _values(tree: object) -> Iterator[object]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield key
            yield from _values(value)
    elif isinstance(tree, list):
        yield len(tree)
        for value in tree:
            yield from _values(value)
    else:
        yield tree


def _fixed_texts() -> Iterator[str]:
    for path in sorted(resources.folder("cards").glob("parts/*.j2")):
        yield re.sub(r"\{[{%].*?[%}]\}", " ", path.read_text("utf-8"))
    for config in schemas.config_names(["x"], ["x"]):
        yield from (c.meaning for c in schemas.columns(config, ["x"]))


def _prose(body: str) -> str:
    """The body without fenced blocks and code spans."""
    without = re.sub(r"(?ms)^(`{3,})[^\n]*\n.*?^\1\s*$", "", body)
    return re.sub(r"`[^`\n]*`", "", without)


def _private(body: str, published: PublishedManifest) -> Iterator[str]:
    for value in _values(published):
        if isinstance(value, str) and "://" in value:
            yield f"provenance/manifest.json holds an address: {scrub_text(value)[:80]}"
    if "://" in _prose(body):
        yield "the card holds an address outside its examples"


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
    manifest = carried_manifest(folder)
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
    manifest = carried_manifest(folder)
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
