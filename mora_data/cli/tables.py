"""What the commands print about a run, and the lists of what there is to choose from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from .. import resources
from ..errors import RunFolderError
from ..run.folder import parts_of, read_json


def table(counts: Mapping[str, Mapping[str, Any]]) -> str:
    """Counts per stage as aligned text: in, kept, and what was dropped for which reason."""
    lines = [f"{'stage':<10} {'in':>8} {'kept':>8}  dropped"]
    for stage, c in counts.items():
        reasons = ", ".join(
            f"{n} {reason}"
            for reason, n in sorted(c["dropped"].items(), key=lambda kv: (-kv[1], kv[0]))
        )
        lines.append(f"{stage:<10} {c['in']:>8} {c['kept']:>8}  {reasons or '-'}")
    return "\n".join(lines)


def status(run_dir: Path) -> dict[str, Any]:
    """How far a run is.

    Raises:
        RunFolderError: not a run folder.
    """
    manifest = read_json(run_dir / "manifest.json")
    if "identity" not in manifest:
        raise RunFolderError(f"{run_dir} is not a run folder: give the --out of a build")
    parts = parts_of(run_dir)
    sealed = [m for p in parts if (m := p.manifest()) is not None]
    return {
        "run_dir": str(run_dir),
        "status": manifest.get("status"),
        "source": manifest["identity"],
        "prompts": sum(p.n_prompts() for p in parts),
        "prompts_done": sum(m["n_prompts"] - len(m["owed"]) for m in sealed),
        "partitions": len(parts),
        "partitions_sealed": len(sealed),
        "owed": sum(len(m["owed"]) for m in sealed),
        "errors": sum(m["errors"] for m in sealed),
        "pairs": manifest.get("pairs"),
        "counts": manifest.get("counts", {}),
        "dataset_dir": str(run_dir / "dataset") if (run_dir / "dataset").is_dir() else None,
    }


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """The verdict, the arms with their intervals, and what to doubt, as text."""
    k = report["settings"]["k"]
    lines = [
        f"verdict: {report['verdict']} (data level only, not training)",
        *(f"  because {r}" for r in report["reasons"]),
        "",
        (
            f"{'arm':<10} {'prompts':>8}  {'dominance rate':<24} {f'joint pass in {k}':<24}"
            f" {'hypervolume':<24} {'ERD':<24}"
        ),
    ]
    for arm, v in report["arms"].items():
        cells = [
            _interval(v["metrics"][m])
            for m in ("dominance_rate", "joint_pass", "hypervolume", "erd")
        ]
        lines.append(f"{arm:<10} {v['n']:>8}  " + " ".join(f"{c:<24}" for c in cells).rstrip())
    if report["comparisons"]:
        lines += ["", "fused minus each control (p by sign flips, Holm over all):"]
        lines += [
            f"  {c['metric']:<16} {c['control']:<10} {_interval({**c, 'value': c['gain']}):<26} p ="
            f" {c['p_holm']:.4f}   n = {c['n']}"
            for c in report["comparisons"]
        ]
    if report["doubts"]:
        lines += ["", "what to doubt:", *(f"- {d}" for d in report["doubts"])]
    return [*lines, ""]


def compare_lines(tree: Mapping[str, Any]) -> list[str]:
    """What to doubt of a comparison, then which numbers differ, as text."""
    from ..report.compare_page import label, summary

    said = summary(tree)
    lines = [
        f"A: {label(tree['a'])}",
        f"B: {label(tree['b'])}",
        "",
        *(f"- {d}" for d in tree["doubts"]),
        "",
    ]
    lines.append(f"{tree['differ']} of {tree['tested']} numbers differ (p < 0.05, Holm)")
    lines += [f"  {s}" for s in said[:12]]
    return [*lines, *([f"  and {len(said) - 12} more"] if len(said) > 12 else []), ""]


def _interval(cell: Mapping[str, Any]) -> str:
    if cell["value"] is None:
        return "not measured"
    ends = f" [{cell['low']:.3f}, {cell['high']:.3f}]" if cell["low"] is not None else ""
    return f"{cell['value']:.3f}{ends}"


def run_manifest(run_dir: Path) -> dict[str, Any]:
    """The manifest of a run whose dataset is written.

    Raises:
        RunFolderError: not a run folder, or not built so far.
    """
    manifest = read_json(run_dir / "manifest.json")
    if "identity" not in manifest or not (run_dir / "dataset" / "README.md").is_file():
        raise RunFolderError(
            f"{run_dir} holds no finished dataset: run its `mora-data build` to the end first"
        )
    return manifest


def listing(what: str) -> list[str]:
    """One line for each thing of a kind."""
    if what == "sources":
        return [
            f"{name:<24} {_builder_line(name)}" for name in resources.names("builders", "*.yaml")
        ]
    if what == "engines":
        from ..engines.engine import ENGINES

        return [f"{name:<12} {_summary(path)}" for name, path in ENGINES.items()]
    if what == "rewards":
        from ..rewards import REWARDS

        return [f"{name:<12} {_summary(path)}" for name, path in REWARDS.items()]
    if what == "selectors":
        from ..selection import SELECTORS

        return [f"{name:<14} {_summary(path)}" for name, path in SELECTORS.items()]
    if what == "templates":
        root = resources.folder("templates")
        return [
            str(p.relative_to(root))
            for p in sorted(root.rglob("*"))
            if p.suffix in (".j2", ".yaml")
        ]
    from .recipes import list_recipes

    return [f"{r.name:<12} {r.summary}  [{', '.join(r.configs)}]" for r in list_recipes()]


def _builder_line(name: str) -> str:
    tree = yaml.safe_load((resources.folder("builders") / f"{name}.yaml").read_text("utf-8"))
    source = tree.get("source", {})
    return f"{source.get('dataset') or 'your own rows'} ({source.get('licence', 'unknown')})"


def _summary(path: str) -> str:
    import importlib

    module, _, attribute = path.partition(":")
    return (
        (getattr(importlib.import_module(module), attribute).__doc__ or "").strip().split("\n")[0]
    )
