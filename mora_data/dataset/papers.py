"""What lies beside the rows: licence, citation, provenance, Croissant, figures of the card.

    describe(out, names, dims)       # configs, sizes, statistics: read from the Parquet files
    write_papers(out, published)     # README.md, LICENSE.md, CITATION.cff, provenance/*.json

The papers are pure functions of the published manifest. Memory: two columns of numbers (8 bytes a
row each) are held at most; texts are counted batch by batch.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray

from .. import resources
from ..secrets import visible
from ..text import commonest_first
from ..types import may_harm
from . import card, schemas
from .card import ConfigInfo, FolderInfo, PublishedManifest, SplitInfo

PAPER = {
    "title": (
        "Explaining and Breaking the Safety-Helpfulness Ceiling via Preference Dimensional"
        " Expansion"
    ),
    "identifier": "arXiv:2605.11679",
}
_SPDX = {
    "apache-2.0": "Apache-2.0",
    "mit": "MIT",
    "cc-by-4.0": "CC-BY-4.0",
    "cc-by-sa-4.0": "CC-BY-SA-4.0",
    "cc-by-nc-4.0": "CC-BY-NC-4.0",
    "cc-by-nc-sa-4.0": "CC-BY-NC-SA-4.0",
    "cc0-1.0": "CC0-1.0",
    "odc-by": "ODC-By-1.0",
}
_EXAMPLE_ROWS = 1000
_BATCH_ROWS = 1 << 16
_FORMATS = {"string": "sc:Text", "double": "sc:Float", "int64": "sc:Integer", "bool": "sc:Boolean"}


def describe(out: Path, names: Sequence[str], dims: Sequence[str]) -> FolderInfo:
    """What the Parquet files of these configs tell; a config without files is left out."""
    configs = [c for c in (_config(out, name, dims) for name in names) if c["splits"]]
    return {
        "configs": configs,
        "union": union_of(configs),
        "n_bytes": sum(f.stat().st_size for f in out.glob("*/*.parquet")),
        "statistics": pair_statistics(out, dims),
    }


def _config(out: Path, name: str, dims: Sequence[str]) -> ConfigInfo:
    info: ConfigInfo = {"name": name, "splits": {}, "files": {}}
    for split in ("train", "test"):
        for path in sorted((out / name).glob(f"{split}-*.parquet")):
            footer = pq.read_metadata(path)
            none: SplitInfo = {"num_examples": 0, "num_bytes": 0, "file_bytes": 0}
            sizes = info["splits"].setdefault(split, none)
            sizes["num_examples"] += footer.num_rows
            sizes["num_bytes"] += sum(
                footer.row_group(i).total_byte_size for i in range(footer.num_row_groups)
            )
            sizes["file_bytes"] += path.stat().st_size
            info["files"].setdefault(split, []).append(path.relative_to(out).as_posix())
    return {**info, "n_columns": len(_columns(out, name, dims))}


def _columns(out: Path, name: str, dims: Sequence[str]) -> list[schemas.Column]:
    """The columns that a config's files have."""
    path = next((out / name).glob("*.parquet"), None)
    have = [] if path is None else pq.read_schema(path).names
    return [c for c in schemas.columns(name, dims) if c.name in have]


def union_of(configs: Sequence[ConfigInfo]) -> ConfigInfo | None:
    """`preference_by_dim`: the files of all `preference_<dim>` configs under one name; None where
    there are none."""
    parts = [c for c in configs if schemas.family_of(c["name"]) == "by_dim"]
    if not parts:
        return None
    union: ConfigInfo = {"name": schemas.BY_DIM_UNION, "splits": {}, "files": {}}
    for split in dict.fromkeys(s for part in parts for s in part["splits"]):
        infos = [part["splits"][split] for part in parts if split in part["splits"]]
        union["splits"][split] = {
            "num_examples": sum(i["num_examples"] for i in infos),
            "num_bytes": sum(i["num_bytes"] for i in infos),
            "file_bytes": sum(i["file_bytes"] for i in infos),
        }
        union["files"][split] = [f for part in parts for f in part["files"].get(split, [])]
    return union


def pair_statistics(folder: Path, dims: Sequence[str]) -> dict[str, object]:
    """Margins per dimension, lengths and composition of `preference`, all splits together; {}
    without pairs."""
    files = sorted((folder / "preference").glob("*.parquet"))
    if not files:
        return {}
    n = sum(pq.read_metadata(f).num_rows for f in files)
    chosen, rejected = (_numbers(files, f"len_{side}") for side in ("chosen", "rejected"))
    return {
        "pairs": n,
        "prompts": _n_distinct(files, "prompt_id"),
        "margins": {
            d: _spread(_numbers(files, f"margin_{d}"), _numbers(files, f"margin_confirmed_{d}"))
            for d in dims
        },
        "margin_total": _spread(_numbers(files, "margin_total")),
        "chosen_longer": round(float((chosen > rejected).sum()) / n, 3),
        "length": {
            "chosen": round(float(chosen.sum()) / n, 3),
            "rejected": round(float(rejected.sum()) / n, 3),
        },
        **{name: _tally(files, name) for name in ("kind", "arm", "category")},
    }


def _batches(files: Sequence[Path], column: str) -> Iterator[pa.Array]:
    """A column, some row groups at a time."""
    for path in files:
        for batch in pq.ParquetFile(path).iter_batches(batch_size=_BATCH_ROWS, columns=[column]):
            yield batch[column]


def _numbers(files: Sequence[Path], column: str) -> NDArray[Any]:
    """The numbers of a column that are there."""
    return np.concatenate([v.drop_null().to_numpy() for v in _batches(files, column)] or [[]])


def _n_distinct(files: Sequence[Path], column: str) -> int:
    """How many different values a column of texts has; a hash of 8 bytes is held for each."""
    hashes = [
        b"".join(blake2b(v.encode(), digest_size=8).digest() for v in values.unique().to_pylist())
        for values in _batches(files, column)
    ]
    return len(np.unique(np.frombuffer(b"".join(hashes), np.uint64)))


def _spread(known: NDArray[Any], again: NDArray[Any] | None = None) -> dict[str, float]:
    out: dict[str, float] = {"n": len(known)}
    if len(known):
        p10, p50, p90 = np.percentile(known, (10, 50, 90)).tolist()
        out |= {"p10": p10, "p50": p50, "p90": p90, "positive": float((known > 0).mean())}
    if again is not None and again.size:
        out |= {"n_confirmed": len(again), "confirmed_p50": float(np.median(again))}
    return {name: round(value, 3) for name, value in out.items()}


def _tally(files: Sequence[Path], column: str) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for values in _batches(files, column):
        found = pc.value_counts(values).to_pylist()
        counts.update({str(v["values"]): v["counts"] for v in found if v["values"] is not None})
    return commonest_first(counts)


def write_papers(
    out: Path, published: PublishedManifest, report: Mapping[str, Any] | None = None
) -> None:
    """All files of the folder but the Parquet files; the same manifest and rows give the same
    bytes. `report`: the whole one, whose summary the manifest has."""
    folder, manifest = published["folder"], published["manifest"]
    (out / "provenance").mkdir(exist_ok=True)
    trees = {
        "manifest": published,
        # what went into each stage, what came out, and why the rest did not
        "drops": {
            "stages": manifest.get("counts") or {},
            "rows_too_large": folder["too_large"],
            "unsafe": folder.get("unsafe"),
            "notes": manifest.get("notes") or {},
        },
        # what the judges' calibration found
        "calibration": {
            **{key: folder[key] for key in ("dimensions", "unscored", "floors", "grey")},
            "reference": manifest.get("reference") or {},
        },
        "prompts": {"sha256": manifest.get("templates") or {}},
        "croissant": _croissant(out, published),
        **({"report": report} if report is not None else {}),
    }
    texts = {
        "README.md": card.render_card(published, _example_pair(out, folder)),
        "LICENSE.md": licence_md(published),
        "CITATION.cff": citation(published),
        **{
            f"provenance/{name}.json": json.dumps(
                tree, indent=2, sort_keys=True, ensure_ascii=False
            )
            + "\n"
            for name, tree in trees.items()
        },
    }
    for name, text in texts.items():
        (out / name).write_text(text, "utf-8")


def _example_pair(out: Path, folder: FolderInfo) -> schemas.Row | None:
    """The shortest early training pair whose two answers pass the `harmless` threshold; None if
    none is known to."""
    files = sorted((out / "preference").glob("train-*.parquet"))
    dims, threshold = folder["dimensions"], folder["floors"].get("harmless")
    if not files or "harmless" not in dims or threshold is None:
        return None
    rewards = ["chosen_reward_harmless", "rejected_reward_harmless"]
    names = ["prompt", "chosen", "rejected", *(f"margin_{d}" for d in dims), *rewards]
    batches = pq.ParquetFile(files[0]).iter_batches(batch_size=_EXAMPLE_ROWS, columns=names)
    rows: list[dict[str, Any]] = next(batches).to_pylist()
    safe = [r for r in rows if not may_harm(threshold, *(r[name] for name in rewards))]
    return min(
        safe, key=lambda r: sum(len(m["content"]) for k in names[:3] for m in r[k]), default=None
    )


def licence_md(published: PublishedManifest) -> str:
    """LICENSE.md: what each source and each model brings, and where they don't go together."""
    folder = published["folder"]
    return card.render_template(
        "licence.md.j2",
        {
            "folder": folder,
            "licence": card.licence_of(folder),
            "licence_warnings": [card.Raw(w) for w in card.licence_warnings(folder)],
        },
    )


def citation(published: PublishedManifest) -> str:
    """CITATION.cff: the dataset, the paper and the sources."""
    folder, settings = published["folder"], published["manifest"].get("settings") or {}
    sources = dict.fromkeys(s["dataset"] for s in folder["sources"])
    licence = _SPDX.get(card.licence_of(folder))
    tree: dict[str, Any] = {
        "cff-version": "1.2.0",
        "message": "If you use this dataset, please cite it, the paper and the sources.",
        "type": "dataset",
        "title": str(settings.get("name") or "mora-data pairs"),
        "authors": [{"name": "The publishers of this dataset"}],
        "abstract": (
            "Preference pairs for alignment with several objectives, made with mora-data,"
            f" {card.CLAIM}."
        ),
        **({"license": licence} if licence else {}),
        "references": [
            {
                "type": "article",
                "title": PAPER["title"],
                "authors": [{"name": "The authors of the paper"}],
                "identifiers": [{"type": "other", "value": PAPER["identifier"]}],
            },
            *(
                {"type": "data", "title": s, "authors": [{"name": s.split("/")[0]}]}
                for s in sources
            ),
        ],
    }
    return visible(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=120))


def _croissant(out: Path, published: PublishedManifest) -> dict[str, Any]:
    """The files and columns, and the responsible-AI properties (RAI 1.0) of the manifest."""
    folder, manifest = published["folder"], published["manifest"]
    name = (manifest.get("settings") or {}).get("name") or "mora-data pairs"
    fixed: dict[str, Any] = json.loads(
        (resources.folder("cards") / "croissant.json").read_text("utf-8")
    )
    return {
        **fixed,
        "name": str(name),
        "description": (
            "Preference pairs for alignment with several objectives:"
            f" {', '.join(folder['dimensions'])}."
        ),
        "license": card.licence_of(folder),
        "distribution": [
            {
                "@type": "cr:FileSet",
                "@id": c["name"],
                "name": c["name"],
                "encodingFormat": "application/x-parquet",
                "includes": f"{c['name']}/*.parquet",
            }
            for c in folder["configs"]
        ],
        "recordSet": [
            _record_set(c["name"], _columns(out, c["name"], folder["dimensions"]))
            for c in folder["configs"]
        ],
        **{f"rai:{k}": v for k, v in _rai(published).items()},
    }


def _rai(published: PublishedManifest) -> dict[str, object]:
    folder, manifest = published["folder"], published["manifest"]
    origin, twice = folder["origin"], (manifest.get("reference") or {}).get("scored_twice") or {}
    sources = "; ".join(
        f"{s['dataset']} ({s['config']}, {s['revision']}, {s['prompts']} prompts)"
        for s in folder["sources"]
    )
    repeats = ", ".join(f"{n} in {d}" for d, n in sorted(twice.items()))
    return {
        "dataCollection": f"Prompts mined from {sources}; answers sampled from {origin['policy']};"
        f" prompts rewritten by {origin['rewriter']}.",
        "machineAnnotationTools": [origin["judge"]],
        "annotationsPerItem": "one verdict per dimension"
        + (f"; scored twice: {repeats}" if repeats else ""),
        "dataManipulationProtocol": f"pairs chosen by {origin['selector']};"
        " counts of every stage in provenance/drops.json",
        "dataLimitations": "simulated: of no use for training"
        if origin["simulated"]
        else "scores are verdicts of a model, not of people",
        "personalSensitiveInformation": _personal(manifest.get("pii")),
    }


def _personal(pii: Mapping[str, Any] | None) -> str:
    if not pii:
        return "not measured"
    counts = "; ".join(
        f"{kind}: {n['prompts']} prompts, {n['answers']} answers"
        for kind, n in pii["found"].items()
    )
    return f"{counts} (by {pii['by']}; names and postal addresses were not looked for)"


def _record_set(config: str, columns: Sequence[schemas.Column]) -> dict[str, Any]:
    fields = [_field(f"{config}/{c.name}", config, c.name, c.type, c.meaning) for c in columns]
    return {"@type": "cr:RecordSet", "@id": f"rows/{config}", "name": config, "field": fields}


def _field(name: str, config: str, column: str, kind: pa.DataType, meaning: str) -> dict[str, Any]:
    inner, repeated = kind, False
    while pa.types.is_list(inner):
        inner, repeated = inner.value_type, True
    field: dict[str, Any] = {
        "@type": "cr:Field",
        "@id": name,
        "name": column,
        "description": meaning,
    }
    if repeated:
        field["repeated"] = True
    if pa.types.is_struct(inner):
        field["subField"] = [
            {
                "@type": "cr:Field",
                "@id": f"{name}/{f.name}",
                "name": f.name,
                "dataType": _FORMATS[str(f.type)],
            }
            for f in inner
        ]
    else:
        field["dataType"] = _FORMATS[str(inner)]
    return {**field, "source": {"fileSet": {"@id": config}, "extract": {"column": column}}}
