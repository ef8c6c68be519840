"""README.md of a dataset folder: a pure function of provenance/manifest.json and one example pair.

    text = render_card(card_context(published, example))

Every value that enters the Markdown is escaped, whatever it holds; a block without data is named
under "Not measured".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from textwrap import wrap
from typing import Any

import yaml
from jinja2 import FileSystemLoader, StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .. import resources
from ..errors import PublishError
from . import schemas
from .statistics import EXAMPLE_CHARS

CLAIM = (
    "an independent implementation, not by the authors of the paper; thresholds, templates and"
    " defaults are ours"
)
PLACE, TAG = "ORG/NAME", "vX.Y.Z"  # in the load snippets, until the dataset is pushed
FENCE_WIDTH = 100
_SPECIAL = re.compile(r"([\\`*_{}\[\]|#~$!^])")
_HTML = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
    (1_000_000_000, "100M<n<1B"),
    (10_000_000_000, "1B<n<10B"),
    (100_000_000_000, "10B<n<100B"),
    (1_000_000_000_000, "100B<n<1T"),
)
_TRAINERS = {
    "preference": "DPO, IPO, ORPO, CPO, SimPO",
    "by_dim": "sequential DPO, MAH-DPO, RACO, MODPO, reward soups",
    "stage": "sequential DPO, one stage after the other",
    "unpaired": "KTO, BCO",
    "prompt_only": "GRPO, RLOO, online DPO",
    "scored": "best-of-N, listwise; the table that every other config derives from",
    "reward_modeling": "reward models with a margin",
    "multilabel": "multi-attribute reward models",
    "sft": "supervised warm-up",
}


_TYPES = {
    str(schemas.MESSAGES): "messages",
    str(schemas.TEXTS): "list of string",
    "double": "float64",
}


class Raw(str):
    """Markdown made by us; everything else is escaped on output."""

    __slots__ = ()


def escape(value: object) -> Raw:
    """Any text as inline Markdown that shows it literally: no markup, no HTML, no table cell, no
    line break."""
    if isinstance(value, Raw):
        return value
    return Raw(_SPECIAL.sub(r"\\\1", re.sub(r"\s+", " ", shown(value)).translate(_HTML)))


def code(value: object) -> Raw:
    """A code span that also survives inside a table."""
    span = " ".join(shown(value).split()).replace("`", "'").replace("|", "\\|")
    return Raw(f"`{span}`") if span else Raw("")


def fence(value: object, limit: int = EXAMPLE_CHARS) -> Raw:
    """A fenced block that the text can't close, cut to `limit` characters, its long lines
    wrapped."""
    text = "".join(
        c if c == "\n" or c.isprintable() else " " for c in str(value).replace("\r", "\n")
    )
    if len(text) > limit:
        text = text[:limit].rstrip() + " … [cut]"
    text = "\n".join(
        piece
        for line in text.split("\n")
        for piece in wrap(line, FENCE_WIDTH, break_on_hyphens=False) or [""]
    )
    marks = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return Raw(f"{marks}text\n{text}\n{marks}")


def card_context(
    published: Mapping[str, Any], example: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What the template needs, from the published manifest (see folder.py). Any key may be missing
    in the run's."""
    manifest, folder = published.get("manifest") or {}, published["folder"]
    dims = folder["dimensions"]
    licences = {s["licence"] for s in folder["sources"]}
    statistics = folder.get("statistics") or {}
    context = {
        "m": manifest,
        "folder": folder,
        "dims": dims,
        "stats": statistics,
        "example": _example(example, dims),
        "licence": licence_of(folder),
        "licence_warnings": [Raw(w) for w in licence_warnings(folder)],
        "mixed": folder["licence"] == "inherit" and len(licences) > 1,
        "configs": [_config(c, dims) for c in folder["configs"]],
        "union": folder["union"],
        "columns": [
            {
                "name": c.name,
                "type": _TYPES.get(str(c.type), str(c.type)),
                "meaning": Raw(c.meaning),
            }
            for c in schemas.columns("preference", dims)
        ],
        "repository": Raw(PLACE),
        "tag": Raw(TAG),
        "version": manifest.get("version") if isinstance(manifest.get("version"), str) else None,
        "made_with": _made_with(manifest.get("created_with")),
        "source": manifest.get("source") or {},
        "counts": manifest.get("counts") or {},
        "notes": (
            [str(n) for n in manifest.get("notes") or []]
            if not isinstance(manifest.get("notes"), Mapping)
            else [f"{k}: {v}" for k, v in manifest["notes"].items()]
        ),
        "models": {
            k: " ".join(str(x) for x in v.values() if x) if isinstance(v, Mapping) else v
            for k, v in (manifest.get("models") or {}).items()
            if v
        },
        "templates": manifest.get("templates") or {},
        "reference": manifest.get("reference") or {},
        "settings": manifest.get("settings") or {},
        "tokens": manifest.get("tokens") or {},
        "report": manifest.get("report") or {},
        "figures": [
            {"file": f["file"], "question": f["question"]}
            for f in manifest.get("figures") or []
            if re.fullmatch(r"report/\w+\.png", f["file"])
        ],
        "claim": CLAIM,
        "simulated": bool(folder["origin"]["simulated"] or manifest.get("simulated")),
        "recorded": (
            ((manifest.get("settings") or {}).get("policy") or {}).get("engine") == "recorded"
        ),
        "pairs": statistics.get("pairs", 0),
        "presampled": (
            ((manifest.get("settings") or {}).get("presample") or {}).get("enabled", True)
        ),
        "fused": ((manifest.get("settings") or {}).get("fuse") or {}).get("arms") != ["identity"],
    }
    return {**context, "header": header(context), "not_measured": not_measured(context)}


def licence_of(folder: Mapping[str, Any]) -> str:
    """The one licence of the dataset: the one set, the one of all sources, or `other`."""
    if folder["licence"] != "inherit":
        return str(folder["licence"])
    licences = sorted({s["licence"] for s in folder["sources"]})
    return str(licences[0]) if len(licences) == 1 else "other"


def is_non_commercial(licence: str) -> bool:
    """Whether a licence's name says that commercial use is not allowed."""
    return bool(re.search(r"(?:^|-)nc(?:-|$)|non-?commercial", licence.lower()))


def licence_warnings(folder: Mapping[str, Any]) -> list[str]:
    """One sentence (Markdown) for each way in which licences don't go together."""
    by_licence: dict[str, int] = {}
    for s in folder["sources"]:
        by_licence[s["licence"]] = by_licence.get(s["licence"], 0) + s["prompts"]
    bound = {lic: n for lic, n in by_licence.items() if is_non_commercial(lic)}
    named = ", ".join(f"{code(lic)}: {shown(n)} prompts" for lic, n in sorted(bound.items()))
    warnings = []
    if bound and len(bound) < len(by_licence):
        warnings.append(
            f"Rows that forbid commercial use are mixed with rows that don't ({named}). The dataset"
            " as a whole is non-commercial; filter by `source_licence` for the rest."
        )
    if bound and folder["licence"] != "inherit" and not is_non_commercial(folder["licence"]):
        warnings.append(
            f"The licence set for the dataset is wider than that of its sources ({named})."
        )
    return warnings


def render_card(context: Mapping[str, Any]) -> str:
    """The card as Markdown with its YAML header.

    Raises:
        PublishError: the template uses something that the context lacks.
    """
    env = ImmutableSandboxedEnvironment(
        loader=FileSystemLoader(resources.folder("cards")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
        finalize=escape,
    )
    env.filters |= {"code": code, "fence": fence}
    try:
        body = env.get_template("dataset.md.j2").render(context)
    except TemplateError as e:
        raise PublishError(f"cards/{getattr(e, 'name', None) or 'dataset.md.j2'}: {e}") from e
    yaml_text = yaml.safe_dump(context["header"], sort_keys=False, allow_unicode=True, width=120)
    return f"---\n{yaml_text}---\n\n" + re.sub(r"\n{3,}", "\n\n", body).strip() + "\n"


def addressed(card: str, repo_id: str, tag: str | None) -> str:
    """The card with the repository and the tag in its load snippets."""
    card = card.replace(f'load_dataset("{PLACE}"', f'load_dataset("{repo_id}"')
    return card.replace(f'revision="{TAG}")', f'revision="{tag}")') if tag else card


def header(context: Mapping[str, Any]) -> dict[str, Any]:
    """The YAML header: configs with explicit files, `dataset_info` from the Parquet footers,
    licence, tags."""
    folder, dims = context["folder"], context["dims"]
    described = [*folder["configs"], *([context["union"]] if context["union"] else [])]
    licence: dict[str, Any] = {"license": context["licence"]}
    if context["licence"] == "other":
        licence |= {"license_name": "mixed-see-card", "license_link": "LICENSE.md"}
    rows = sum(s["num_examples"] for c in folder["configs"][:1] for s in c["splits"].values())
    ids = sorted(
        {
            s["dataset"]
            for s in folder["sources"]
            if _HUB_ID.fullmatch(s["dataset"])
            and not s["revision"].startswith("local:")
            and not s["dataset"].startswith("mora-data/sample-")
        }
    )
    languages = context["m"].get("languages")
    return {
        **({"language": [str(x) for x in languages]} if languages else {}),
        **licence,
        "pretty_name": str(context["settings"].get("name") or "mora-data pairs"),
        "task_categories": ["text-generation"],
        "tags": [
            "text",
            "preference",
            "dpo",
            "rlhf",
            "multi-objective",
            "synthetic",
            *_tags(dims),
            "mora-data",
            *(["simulated"] if context["simulated"] else []),
            *(["not-for-all-audiences"] if "harmless" in dims else []),
        ],
        "size_categories": [next((name for most, name in _SIZES if rows < most), "n>1T")],
        "annotations_creators": ["machine-generated"],
        "language_creators": ["found", "machine-generated"],
        **({"source_datasets": ids} if ids else {}),
        "configs": [_declared(c, i == 0) for i, c in enumerate(described)],
        "dataset_info": [_info(c, dims) for c in described],
    }


def not_measured(context: Mapping[str, Any]) -> list[str]:
    """Blocks that the manifest has no data for, by name."""
    m, stats, reference = context["m"], context["stats"], context["reference"]
    margins = stats.get("margins") or {}
    named = f": {', '.join(sets)}" if (sets := m.get("not_measured")) else ""
    checks = {
        "margins and lengths of pairs (there are no pairs)": not stats,
        "confirmed margins (no pair was scored twice)": (
            bool(stats) and not any("n_confirmed" in v for v in margins.values())
        ),
        "noise of the scorers": not reference.get("noise"),
        "floors of the dimensions": not context["folder"]["floors"],
        "counts per stage": not context["counts"],
        "models and sampling": not context["models"],
        "tokens": not context["tokens"],
        "cost": m.get("cost") is None,
        "languages": not m.get("languages"),
        f"overlap with evaluation sets{named}": bool(named) or not m.get("contamination"),
        "personal data in texts": not m.get("pii"),
        "whether fusion helps (the build has not all of the arms identity, single, generic, fused)": (  # noqa: E501
            bool(m.get("report")) and not m["report"]["comparisons"]
        ),
        "agreement of judges with each other": not (m.get("feedback") or {}).get("agreement"),
        "agreement with a held-out judge": not (m.get("feedback") or {}).get("heldout"),
        "agreement of judges with people": True,
        "what training on these pairs does to a model": True,
    }
    unscored = [
        f"rewards in {d}: nobody scored this dimension" for d in context["folder"]["unscored"]
    ]
    return unscored + [name for name, missing in checks.items() if missing]


def shown(value: object) -> str:
    """A value of the manifest as the card prints it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (
        f"{value:,}"
        if isinstance(value, int)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def _made_with(made: object) -> str | None:
    """`mora-data 0.1.0, python 3.11.7`, from a text or from versions by name."""
    if isinstance(made, Mapping):
        return ", ".join(f"{str(name).replace('_', '-')} {number}" for name, number in made.items())
    return None if made is None else str(made)


def _tags(dims: list[str]) -> list[str]:
    nouns = {"helpful": "helpfulness", "harmless": "harmlessness", "truthful": "truthfulness"}
    return [nouns.get(d, d) for d in dims]


def _config(config: Mapping[str, Any], dims: list[str]) -> dict[str, Any]:
    splits = {s: i["num_examples"] for s, i in config["splits"].items()}
    return {
        **config,
        "train": splits.get("train", 0),
        "test": splits.get("test", 0),
        "use": _TRAINERS[schemas.family_of(config["name"])],
    }


def union_of(configs: list[dict[str, Any]]) -> dict[str, Any] | None:
    """`preference_by_dim`: the files of all `preference_<dim>` configs under one name; None where
    there are none."""
    parts = [c for c in configs if schemas.family_of(c["name"]) == "by_dim"]
    if not parts:
        return None
    union: dict[str, Any] = {"name": schemas.BY_DIM_UNION, "splits": {}, "files": {}}
    for part in parts:
        for split, info in part["splits"].items():
            total = union["splits"].setdefault(split, dict.fromkeys(info, 0))
            union["splits"][split] = {k: total[k] + v for k, v in info.items()}
            union["files"].setdefault(split, []).extend(part["files"][split])
    return union


def _declared(config: Mapping[str, Any], default: bool) -> dict[str, Any]:
    files = [{"split": s, "path": f if len(f) > 1 else f[0]} for s, f in config["files"].items()]
    return {
        "config_name": config["name"],
        **({"default": True} if default else {}),
        "data_files": files,
    }


def _info(config: Mapping[str, Any], dims: list[str]) -> dict[str, Any]:
    like = f"preference_{dims[0]}" if config["name"] == schemas.BY_DIM_UNION else config["name"]
    splits = [
        {"name": s, "num_bytes": i["num_bytes"], "num_examples": i["num_examples"]}
        for s, i in config["splits"].items()
    ]
    return {
        "config_name": config["name"],
        "features": schemas.features(schemas.schema(like, dims)),
        "splits": splits,
        "download_size": sum(i["file_bytes"] for i in config["splits"].values()),
        "dataset_size": sum(i["num_bytes"] for i in config["splits"].values()),
    }


def _example(row: Mapping[str, Any] | None, dims: list[str]) -> dict[str, Any] | None:
    if row is None:
        return None
    prompt = row["prompt"]
    asked = (
        prompt[0]["content"]
        if len(prompt) == 1
        else "\n".join(f"{m['role']}: {m['content']}" for m in prompt)
    )
    return {
        "prompt": asked,
        "chosen": row["chosen"][0]["content"],
        "rejected": row["rejected"][0]["content"],
        "margins": {d: row[f"margin_{d}"] for d in dims},
    }
