"""README.md of a dataset folder: a pure function of provenance/manifest.json and one example pair.

    text = render_card(published, example)

Every value that enters the Markdown is escaped, whatever it holds; a block without data is named
under "Not measured".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from textwrap import wrap
from typing import Any, TypedDict, cast

import yaml
from jinja2 import Environment, TemplateError

from .. import resources
from ..errors import PublishError
from ..run import AuditRow, Manifest
from ..secrets import visible
from ..text import transcript
from ..types import STAGES, Origin
from . import schemas

CLAIM = (
    "an independent implementation, not by the authors of the paper; thresholds, templates and"
    " defaults are ours"
)
EXAMPLE_CHARS = 600
PLACE, TAG = "ORG/NAME", "vX.Y.Z"  # in the load snippets, until the dataset is pushed
FENCE_WIDTH = 100
_SPECIAL = re.compile(r"([\\`*_{}\[\]|#~$!^])")
_HTML = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_SIZES = (  # by the number of digits
    *("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M"),
    *("100M<n<1B", "1B<n<10B", "10B<n<100B", "100B<n<1T", "n>1T"),
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
_NOUNS = {"helpful": "helpfulness", "harmless": "harmlessness", "truthful": "truthfulness"}


_STRICTNESS = {  # what the user of a row has to do, or may not do
    **dict.fromkeys(("cc0-1.0", "pddl", "unlicense"), 0),
    **dict.fromkeys(("mit", "bsd-2-clause", "bsd-3-clause", "isc"), 1),
    **dict.fromkeys(("apache-2.0",), 2),
    **dict.fromkeys(("odc-by", "cc-by-3.0", "cc-by-4.0"), 3),
    **dict.fromkeys(("cc-by-sa-3.0", "cc-by-sa-4.0"), 4),
    **dict.fromkeys(("cc-by-nc-3.0", "cc-by-nc-4.0"), 5),
    **dict.fromkeys(("cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0"), 6),
}


class SplitInfo(TypedDict):
    """A split of a config, from its Parquet footers."""

    num_examples: int
    num_bytes: int
    file_bytes: int


class ConfigInfo(TypedDict, total=False):
    """A config of the folder; `n_columns` is missing of the union."""

    name: str
    splits: dict[str, SplitInfo]
    files: dict[str, list[str]]  # split -> paths in the folder
    n_columns: int


class SourceInfo(TypedDict):
    """Where some of the prompts come from, and how many."""

    dataset: str
    config: str
    revision: str
    licence: str
    prompts: int


class FolderInfo(TypedDict, total=False):
    """What the folder itself adds to the manifest of the run."""

    dimensions: list[str]
    unscored: list[str]  # dimensions without any reward
    licence: str  # the setting: `inherit`, or the licence of the whole
    test_share: float
    n_bytes: int
    origin: Origin
    floors: dict[str, float]
    grey: dict[str, float]
    too_large: dict[str, int]  # config -> rows over 2 MB, left out
    sources: list[SourceInfo]
    configs: list[ConfigInfo]
    union: ConfigInfo | None
    statistics: dict[str, Any]  # see papers.pair_statistics
    unsafe: dict[str, Any]  # of a public copy: what was left out or redacted


class PublishedManifest(TypedDict):
    """What provenance/manifest.json holds. Any key of the run's manifest may be missing."""

    manifest: Manifest
    folder: FolderInfo


class Header(TypedDict, total=False):
    """The part of a card's YAML header that the checks read."""

    license: str
    language: list[str]
    configs: list[dict[str, Any]]
    dataset_info: list[dict[str, Any]]


class Raw(str):
    """Markdown made by us; everything else is escaped on output."""

    __slots__ = ()


def escape_markdown(value: object) -> Raw:
    """Any text as inline Markdown that shows it literally: no markup, no HTML, no table cell, no
    line break."""
    if isinstance(value, Raw):
        return value
    return Raw(_SPECIAL.sub(r"\\\1", re.sub(r"\s+", " ", format_value(value)).translate(_HTML)))


def code(value: object) -> Raw:
    """A code span that also survives inside a table."""
    span = " ".join(format_value(value).split()).replace("`", "'").replace("|", "\\|")
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


def render_card(published: PublishedManifest, example: schemas.Row | None = None) -> str:
    """The card as Markdown with its YAML header; `example`: the row of a pair to show.

    Raises:
        PublishError: the template uses something that the manifest lacks.
    """
    head = header(published)
    body = render_template(
        "dataset.md.j2",
        {
            **_context(published),
            "header": head,
            "example": example,
            "not_measured": unmeasured_blocks(published),
        },
    )
    # short lists and mappings on one line each: a header that can be read
    options: dict[str, Any] = {"sort_keys": False, "allow_unicode": True, "width": 120}
    yaml_text = visible(yaml.safe_dump(head, default_flow_style=None, **options))
    return f"---\n{yaml_text}---\n\n" + re.sub(r"\n{3,}", "\n\n", body).strip() + "\n"


def render_template(template: str, values: Mapping[str, object]) -> str:
    """A template of cards/, every value escaped.

    Raises:
        PublishError: it uses something that the values lack.
    """
    try:
        return _environment().get_template(template).render(values)
    except TemplateError as e:
        raise PublishError(f"cards/{getattr(e, 'name', None) or template}: {e}") from e


@cache
def _environment() -> Environment:
    """The one environment of all cards."""
    env = resources.document_environment("cards", sandboxed=True, finalize=escape_markdown)
    env.filters |= {"code": code, "fence": fence, "commercial": _commercial, "share": _share}
    env.filters["transcript"] = transcript
    return env


def _context(published: PublishedManifest) -> dict[str, Any]:
    """What the template needs besides the header."""
    manifest, folder = published["manifest"], published["folder"]
    dims, statistics = folder["dimensions"], folder.get("statistics") or {}
    settings = manifest.get("settings") or {}
    names = ("counts", "templates", "reference", "settings", "tokens", "report")
    return {
        **{name: manifest.get(name) or {} for name in names},
        "m": manifest,
        "stages": [(s, c) for s in STAGES if (c := (manifest.get("counts") or {}).get(s))],
        "reliability": {
            d: rho
            for d in dims
            if (rho := ((manifest.get("reference") or {}).get("reliability") or {}).get(d))
            is not None
        },
        "audit": _audit_rows(manifest),
        "folder": folder,
        "dims": dims,
        "stats": statistics,
        "licence": licence_of(folder),
        "licence_warnings": [Raw(w) for w in licence_warnings(folder)],
        "mixed": folder["licence"] == "inherit"
        and len({s["licence"] for s in folder["sources"]}) > 1,
        "configs": [
            {
                **c,
                **{
                    s: c["splits"][s]["num_examples"] if s in c["splits"] else 0
                    for s in ("train", "test")
                },
                "use": _TRAINERS[schemas.family_of(c["name"])],
            }
            for c in folder["configs"]
        ],
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
        "made_with": ", ".join(
            f"{name.replace('_', '-')} {version}"
            for name, version in (manifest.get("created_with") or {}).items()
        ),
        "notes": [f"{k}: {v}" for k, v in (manifest.get("notes") or {}).items()],
        "models": {k: v for k, v in (manifest.get("models") or {}).items() if v},
        "figures": [
            f for f in manifest.get("figures") or [] if re.fullmatch(r"report/\w+\.png", f["file"])
        ],
        "claim": CLAIM,
        "simulated": _is_simulated(published),
        "recorded": (settings.get("policy") or {}).get("engine") == "recorded",
        "pairs": statistics.get("pairs", 0),
        "presampled": (settings.get("presample") or {}).get("enabled", True),
        "fused": (settings.get("fuse") or {}).get("arms") != ["identity"],
    }


def _is_simulated(published: PublishedManifest) -> bool:
    return bool(
        published["folder"]["origin"]["simulated"] or published["manifest"].get("simulated")
    )


def licence_of(folder: FolderInfo) -> str:
    """The one licence of the dataset: the one set, or the strictest of all sources."""
    if folder["licence"] != "inherit":
        return str(folder["licence"])
    return strictest(s["licence"] for s in folder["sources"])


def strictest(licences: Iterable[str]) -> str:
    """The one licence under whose terms rows of all these may be passed on together.

    `other` where there is none, or where that is not known: two of equal rank, a name that is not
    in `_STRICTNESS`, or rows that have to stay under a licence that forbids what another asks.
    """
    found = sorted(set(licences))
    if len(found) == 1:
        return found[0]
    ranks = {name: _STRICTNESS.get(name, -1) for name in found}
    top = [name for name in found if ranks[name] == max(ranks.values(), default=0)]
    alike = [name for name in found if "-sa" in name]
    if len(top) != 1 or min(ranks.values()) < 0 or (alike and alike != top):
        return "other"
    return top[0]


def is_non_commercial(licence: str) -> bool:
    """Whether a licence's name says that commercial use is not allowed."""
    return bool(re.search(r"(?:^|-)nc(?:-|$)|non-?commercial", licence.lower()))


def _commercial(licence: str) -> str:
    if is_non_commercial(licence):
        return "no"
    return "not known" if licence in ("unknown", "other", "") else "see the licence"


def _share(value: float | None) -> str:
    """A share as the card prints it."""
    return "–" if value is None else f"{value * 100:.0f} %"


def licence_warnings(folder: FolderInfo) -> list[str]:
    """One sentence (Markdown) for each way in which licences don't go together."""
    by_licence: dict[str, int] = {}
    for s in folder["sources"]:
        by_licence[s["licence"]] = by_licence.get(s["licence"], 0) + s["prompts"]
    bound = {lic: n for lic, n in by_licence.items() if is_non_commercial(lic)}
    named = ", ".join(f"{code(lic)}: {format_value(n)} prompts" for lic, n in sorted(bound.items()))
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


def with_address(card: str, repo_id: str, tag: str | None) -> str:
    """The card with the repository and the tag in its load snippets."""
    card = card.replace(f'load_dataset("{PLACE}"', f'load_dataset("{repo_id}"')
    return card.replace(f'revision="{TAG}")', f'revision="{tag}")') if tag else card


def header(published: PublishedManifest) -> Header:
    """The YAML header: configs with explicit files, `dataset_info` from the Parquet footers,
    licence, tags."""
    manifest, folder = published["manifest"], published["folder"]
    dims, configs = folder["dimensions"], folder["configs"]
    declared = [*configs, *([folder["union"]] if folder["union"] else [])]
    licence = licence_of(folder)
    rows = sum(s["num_examples"] for c in configs[:1] for s in c["splits"].values())
    ids = sorted(
        {
            s["dataset"]
            for s in folder["sources"]
            if _HUB_ID.fullmatch(s["dataset"])
            and not s["revision"].startswith("local:")
            and not s["dataset"].startswith("mora-data/sample-")
        }
    )
    mixed = {"license_name": "mixed-see-card", "license_link": "LICENSE.md"}
    head: dict[str, Any] = {
        "license": licence,
        **(mixed if licence == "other" else {}),
        "pretty_name": str((manifest.get("settings") or {}).get("name") or "mora-data pairs"),
        "task_categories": ["text-generation"],
        "tags": [
            "text",
            "preference",
            "dpo",
            "rlhf",
            "multi-objective",
            "synthetic",
            *(_NOUNS.get(d, d) for d in dims),
            "mora-data",
            *(["simulated"] if _is_simulated(published) else []),
            *(["not-for-all-audiences"] if "harmless" in dims else []),
        ],
        "size_categories": [_SIZES[min(max(len(str(rows)) - 3, 0), 10)]],
        "annotations_creators": ["machine-generated"],
        "language_creators": ["found", "machine-generated"],
        **({"source_datasets": ids} if ids else {}),
        "configs": [_declared(c, i == 0) for i, c in enumerate(declared)],
        "dataset_info": [_info(c) for c in declared],
    }
    return cast(Header, head)


def _audit_rows(manifest: Manifest) -> list[AuditRow]:
    audit = manifest.get("judge_audit")
    return audit["rows"] if audit else []


def unmeasured_blocks(published: PublishedManifest) -> list[str]:
    """Blocks that the manifest has no data for, by name."""
    m, folder = published["manifest"], published["folder"]
    stats, feedback = folder.get("statistics") or {}, m.get("feedback") or {}
    named = f": {', '.join(sets)}" if (sets := m.get("not_measured")) else ""
    checks = {
        "margins and lengths of pairs (there are no pairs)": not stats,
        "confirmed margins (no pair was scored twice)": (
            bool(stats) and not any("n_confirmed" in v for v in stats["margins"].values())
        ),
        "noise of the scorers": not (m.get("reference") or {}).get("noise"),
        "floors of the dimensions": not folder["floors"],
        "counts per stage": not m.get("counts"),
        "models and sampling": not any((m.get("models") or {}).values()),
        "tokens": not m.get("tokens"),
        "cost": True,
        "languages": True,
        f"overlap with evaluation sets{named}": bool(named) or not m.get("contamination"),
        "personal data in texts": not m.get("pii"),
        "whether fusion helps (the build has not all of the arms identity, single, generic, fused)": (  # noqa: E501
            bool(m.get("report")) and not m["report"]["comparisons"]
        ),
        "agreement of judges with each other": not feedback.get("agreement"),
        "agreement with a held-out judge": not feedback.get("heldout"),
        "agreement of judges with people": not _audit_rows(m),
        "what training on these pairs does to a model": True,
    }
    unscored = [f"rewards in {d}: nobody scored this dimension" for d in folder["unscored"]]
    return unscored + [name for name, missing in checks.items() if missing]


def format_value(value: object) -> str:
    """A value of the manifest as the card prints it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else visible(str(value))


def _declared(config: ConfigInfo, default: bool) -> dict[str, Any]:
    files = [{"split": s, "path": f if len(f) > 1 else f[0]} for s, f in config["files"].items()]
    return {
        "config_name": config["name"],
        **({"default": True} if default else {}),
        "data_files": files,
    }


def _info(config: ConfigInfo) -> dict[str, Any]:
    """What a loader checks itself by. Columns are left out: every shard has the one schema of its
    config, so that the first says them."""
    splits = [
        {"name": s, "num_bytes": i["num_bytes"], "num_examples": i["num_examples"]}
        for s, i in config["splits"].items()
    ]
    return {"config_name": config["name"], "splits": splits}
