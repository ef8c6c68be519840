"""What lies beside the rows, each a pure function of the published manifest: licence, citation,
provenance, Croissant.

    write_papers(out, published)     # README.md, LICENSE.md, CITATION.cff, provenance/*.json
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from . import card, schemas, statistics

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
_FORMATS = {"string": "sc:Text", "double": "sc:Float", "int64": "sc:Integer", "bool": "sc:Boolean"}


def write_papers(out: Path, published: Mapping[str, Any]) -> None:
    """All files of the folder but the Parquet files; the same manifest and rows give the same
    bytes."""
    folder = published["folder"]
    (out / "provenance").mkdir(exist_ok=True)
    example = statistics.example_pair(out, tuple(folder["dimensions"]), folder["floors"])
    texts = {
        "README.md": card.render_card(card.card_context(published, example)),
        "LICENSE.md": licence_md(published),
        "CITATION.cff": citation(published),
        "provenance/manifest.json": _json(published),
        "provenance/drops.json": _json(drops(published)),
        "provenance/calibration.json": _json(calibration(published)),
        "provenance/prompts.json": _json({"sha256": published["manifest"].get("templates") or {}}),
        "provenance/croissant.json": _json(croissant(published)),
    }
    for name, text in texts.items():
        (out / name).write_text(text, "utf-8")


def licence_md(published: Mapping[str, Any]) -> str:
    """LICENSE.md: what each source and each model brings, and where they don't go together."""
    folder = published["folder"]
    lines = [
        "# Licence",
        "",
        (
            f"The dataset as a whole: {card.escape(card.licence_of(folder))}. Each row names its"
            " source's licence in `source_licence`."
        ),
        *(
            line
            for warning in card.licence_warnings(folder)
            for line in ("", f"> **Note.** {warning}")
        ),
        "",
        "## Sources",
        "",
        "| source | config | revision | licence | commercial use | prompts |",
        "|---|---|---|---|---|---:|",
        *(
            f"| {card.escape(s['dataset'])} | {card.escape(s['config'])} |"
            f" {card.code(s['revision'])} | {card.escape(s['licence'])} |"
            f" {_commercial(s['licence'])} | {card.shown(s['prompts'])} |"
            for s in folder["sources"]
        ),
        "",
        "## Models",
        "",
        "Their own terms apply to what they wrote; this file does not know them.",
        "",
        "| role | model | wrote |",
        "|---|---|---|",
        *(
            f"| {role} | {card.escape(folder['origin'][role])} | {wrote} |"
            for role, wrote in (
                ("policy", "the answers"),
                ("rewriter", "the fused prompts"),
                ("judge", "the scores"),
            )
        ),
    ]
    return "\n".join(lines) + "\n"


def citation(published: Mapping[str, Any]) -> str:
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
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=120)


def drops(published: Mapping[str, Any]) -> dict[str, Any]:
    """provenance/drops.json: what went into each stage, what came out, and why the rest did not."""
    folder = published["folder"]
    return {
        "stages": published["manifest"].get("counts") or {},
        "rows_too_large": folder["too_large"],
        "unsafe": folder.get("unsafe"),
        "notes": published["manifest"].get("notes") or {},
    }


def calibration(published: Mapping[str, Any]) -> dict[str, Any]:
    """provenance/calibration.json: floors, grey zones, and what the reference sample said about the
    scorers."""
    folder = published["folder"]
    return {
        "dimensions": folder["dimensions"],
        "unscored": folder["unscored"],
        "floors": folder["floors"],
        "grey": folder["grey"],
        "reference": published["manifest"].get("reference") or {},
    }


def croissant(published: Mapping[str, Any]) -> dict[str, Any]:
    """provenance/croissant.json: the files and columns, and the responsible-AI properties (RAI 1.0)
    of the manifest."""
    folder, manifest = published["folder"], published["manifest"]
    settings = manifest.get("settings") or {}
    return {
        "@context": {
            "@language": "en",
            "@vocab": "https://schema.org/",
            "sc": "https://schema.org/",
            "cr": "http://mlcommons.org/croissant/",
            "rai": "http://mlcommons.org/croissant/RAI/",
            "dct": "http://purl.org/dc/terms/",
            "conformsTo": "dct:conformsTo",
            "column": "cr:column",
            "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
            "extract": "cr:extract",
            "field": "cr:field",
            "fileSet": "cr:fileSet",
            "includes": "cr:includes",
            "recordSet": "cr:recordSet",
            "repeated": "cr:repeated",
            "source": "cr:source",
            "subField": "cr:subField",
        },
        "@type": "sc:Dataset",
        "conformsTo": [
            "http://mlcommons.org/croissant/1.0",
            "http://mlcommons.org/croissant/RAI/1.0",
        ],
        "name": str(settings.get("name") or "mora-data pairs"),
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
        "recordSet": [_record_set(c["name"], folder["dimensions"]) for c in folder["configs"]],
        **{f"rai:{k}": v for k, v in _rai(published)},
    }


def _rai(published: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    folder, manifest = published["folder"], published["manifest"]
    origin, twice = folder["origin"], (manifest.get("reference") or {}).get("scored_twice") or {}
    yield (
        "dataCollection",
        (
            "Prompts mined from "
            + "; ".join(
                f"{s['dataset']} ({s['config']}, {s['revision']}, {s['prompts']} prompts)"
                for s in folder["sources"]
            )
            + f"; answers sampled from {origin['policy']}; prompts rewritten by"
            f" {origin['rewriter']}."
        ),
    )
    yield "dataCollectionType", ["Secondary Data analysis", "Software Collection"]
    yield "machineAnnotationTools", [origin["judge"]]
    repeats = ", ".join(f"{n} in {d}" for d, n in sorted(twice.items()))
    yield (
        "annotationsPerItem",
        "one verdict per dimension" + (f"; scored twice: {repeats}" if repeats else ""),
    )
    yield "annotatorDemographics", "none: all scores are a model's or a rule's"
    yield (
        "dataManipulationProtocol",
        f"pairs chosen by {origin['selector']}; counts of every stage in provenance/drops.json",
    )
    yield (
        "dataBiases",
        "scores carry the judge's biases; prompts carry the sources' topics and languages",
    )
    yield (
        "dataLimitations",
        (
            "simulated: of no use for training"
            if origin["simulated"]
            else "scores are verdicts of a model, not of people"
        ),
    )
    yield "dataUseCases", ["training and studying alignment with several objectives"]
    yield "personalSensitiveInformation", _personal(manifest.get("pii"))
    yield "dataReleaseMaintenancePlan", "releases are tags; CHANGELOG.md says what changed"


def _personal(pii: Mapping[str, Any] | None) -> str:
    if not pii:
        return "not measured"
    counts = "; ".join(
        f"{kind}: {n['prompts']} prompts, {n['answers']} answers"
        for kind, n in pii["found"].items()
    )
    return f"{counts} (by {pii['by']}; names and postal addresses were not looked for)"


def _record_set(config: str, dims: list[str]) -> dict[str, Any]:
    fields = [
        _field(f"{config}/{c.name}", config, c.name, c.type, c.meaning)
        for c in schemas.columns(config, dims)
    ]
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


def _commercial(licence: str) -> str:
    return (
        "no"
        if card.is_non_commercial(licence)
        else "not known"
        if licence in ("unknown", "other", "")
        else "see the licence"
    )


def _json(tree: object) -> str:
    return json.dumps(tree, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
