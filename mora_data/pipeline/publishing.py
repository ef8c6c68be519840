"""Selecting the pairs, writing the dataset and the report; and what a run says of itself: counts,
errors, manifest.json, the summary of a command.
"""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import orjson

from .. import __version__
from ..errors import NothingSelected, UnreliableScores
from ..prompts.context import BuildContext
from ..prompts.judge_quality import quality, self_preference
from ..prompts.personas import cap_shares
from ..run import CardFigure, LengthAudit, Manifest, SourceCounts
from ..run.files import json_hash, read_json, write_whole
from ..run.folder import (
    OPTIONS,
    Summary,
    counts_in,
    counts_tree,
    emptied_by,
    manifest_of,
    source_of,
)
from ..run.partitions import Partition, give_back
from ..settings import PLUGIN_FOLDERS, changes_of, to_yaml
from ..sources.mine import data_given
from ..types import STAGES, Origin
from .judge_calibration import check_drift
from .values import Asked, Build, Counts

if TYPE_CHECKING:
    from ..dataset.configs import Describe
    from ..dataset.folder import FolderResult
    from ..report.values import Report
    from ..selection.select import Selection


def finish(
    build: Build,
    asked: Asked,
    parts: Sequence[Partition],
    counts: Counts,
    tokens: Mapping[str, int],
    errors: Sequence[Mapping[str, object]],
) -> tuple[Manifest, NothingSelected | None]:
    """Select, write the dataset, the manifest and the report. `counts`: those of the stages before.

    Raises:
        UnreliableScores: the scorers changed during the run; the manifest says so.
    """
    manifest = _manifest_before(build, asked, parts, counts, tokens, len(errors))
    try:
        check_drift(asked.drift, build.settings.presample.max_drift)
    except UnreliableScores:
        _write_manifest(build, manifest, "drifted")
        raise
    if not build.reaches("select"):
        return _write_manifest(build, manifest, "done"), None
    selection, found = _select(build, asked, parts)
    known = counts_tree(counts + selection.counts, STAGES)
    manifest = {**manifest, **found, "counts": known}
    if not build.reaches("publish"):
        return _write_manifest(build, manifest, "done"), None
    written = _publish(build, asked, parts, manifest, selection)
    known = {**known, "publish": written.stage}
    failure = None
    configs = build.settings.publish.configs
    paired = configs == "all" or "preference" in configs  # else no row of the folder is a pair
    if not (written.stage["kept"] if paired else selection.n_pairs):
        failure = NothingSelected(emptied_by(known, build.folder.path, errors))
    manifest = _write_manifest(
        build, {**manifest, "counts": known}, "empty" if failure else "done", written
    )
    if written.report and failure is None:
        from ..report.document import with_costs
        from ..report.page import write_report

        build.progress.start("writing the report")
        report = cast("Report", written.report)
        write_report(build.folder.path, with_costs(report, build.folder.path))
    return manifest, failure


def _select(build: Build, asked: Asked, parts: Sequence[Partition]) -> tuple[Selection, Manifest]:
    """The pairs; and what the manifest says of them, and of how good the judges were on them."""
    from ..selection.select import select

    settings, context = build.settings, asked.context
    assert context is not None  # who selects has asked
    build.progress.start("selecting pairs")
    give_back()
    selection = select(parts, settings)
    personas = _cap_personas(parts, selection, context)
    family = self_preference(asked.engines)
    feedback = quality(parts, selection.chosen, settings, family, asked.drift)
    build.folder.write("feedback.json", feedback)
    return selection, {
        "pairs": selection.n_pairs,
        "selection": selection.numbers,
        "personas": personas,
        "feedback": feedback,
    }


def _publish(
    build: Build,
    asked: Asked,
    parts: Sequence[Partition],
    manifest: Manifest,
    selection: Selection,
) -> FolderResult:
    """Write the dataset folder."""
    from ..dataset.configs import Release
    from ..dataset.folder import write_dataset
    from ..selection.select import picker, selected

    settings, context = build.settings, asked.context
    assert context is not None
    build.progress.start("writing the dataset")
    describe, pictures = _report_of_release(build, selection, manifest)
    figures: list[CardFigure] = [{"file": f, "question": q} for f, (q, _) in pictures.items()]
    stats = context.judge_stats
    release = Release(
        settings,
        _origin(build, asked),
        {**manifest, "figures": figures} if figures else manifest,
        stats.pass_thresholds,
        picker(settings, stats, context.steps),
        context.dominance,
        {file: png for file, (_, png) in pictures.items()},
        describe,
    )
    return write_dataset(
        lambda: selected(parts, selection, settings), release, build.folder.path / "dataset"
    )


def _cap_personas(
    parts: Sequence[Partition], selection: Selection, context: BuildContext
) -> dict[str, Any]:
    """No persona has more than its share of either side; prompts that lose their last pair are
    counted."""
    names = [p.name for p in context.personas]
    if not names:
        return {}
    arms = context.settings.published_arms
    shares, lost = cap_shares(parts, selection.chosen, arms, names)
    selection.counts.update({("select", "kept"): -lost, ("select", "persona_share"): lost})
    return shares


def _report_of_release(
    build: Build, selection: Selection, manifest: Manifest
) -> tuple[Describe | None, dict[str, tuple[str, bytes]]]:
    """What makes the report of a dataset folder before it is in its place, so that the card says
    what the report doubts; and the card's pictures by file, each a question and a PNG. What the run
    cost is not in it. Plain sampling has nothing to compare."""
    s = build.settings
    if not selection.n_pairs or not (s.presample.enabled or len(s.fuse.arms) > 1):
        return None, {}
    from ..report.document import arms_report, finish_report, summary_of
    from ..report.page import pictures

    arms = arms_report(build.folder.path, manifest)

    def describe(folder: Path, manifest: Manifest) -> tuple[Report, dict[str, object]]:
        report = finish_report(arms, build.folder.path, manifest, folder)
        return report, summary_of(report)

    return describe, {f"report/{name}.png": drawn for name, drawn in pictures(arms).items()}


def _origin(build: Build, asked: Asked) -> Origin:
    names = {r: "@".join(x for x in (e.model, e.revision) if x) for r, e in asked.engines.items()}
    return {
        "policy": names["policy"],
        "judge": names["judge"],
        "rewriter": names["rewriter"],
        "selector": build.settings.select.selector,
        "simulated": asked.simulated,
        "seed": build.settings.seed,
    }


def keep_settings(build: Build) -> None:
    """build.yaml and options.json; before the old ones are gone, a line names the settings that the
    last build of the folder had otherwise."""
    path, options = build.folder.path, build.options
    if not read_json(path / OPTIONS).get("preview") and (path / "build.yaml").exists():
        changes = changes_of(path / "build.yaml", build.settings)
        if changes:
            lost = build.reaches("publish") and (path / "dataset").is_dir()
            n = manifest_of(path).get("pairs")
            loss = f"; its dataset of {n} pairs will be replaced" if lost else ""
            build.progress.message(
                f"settings differ from the last build's in {path}: {', '.join(changes)}{loss}"
            )
    write_whole(path / "build.yaml", to_yaml(build.settings).encode())
    build.folder.write(
        OPTIONS,
        {
            "sample": options.sample,
            "data": data_given(build.settings, options.data),
            "until": options.until,
            "preview": options.preview,
            "cwd": str(Path.cwd()),
            "plugins": [str(p) for p in PLUGIN_FOLDERS],
        },
    )


def write_errors(
    build: Build, parts: Sequence[Partition]
) -> tuple[Sequence[Mapping[str, object]], int]:
    """errors.jsonl of the run, from those of its partitions; and how many prompts, answers and
    scores there are."""
    if not build.reaches("presample"):
        return [], 0
    errors = [e for p in parts for e in p.errors()]
    lines = b"".join(orjson.dumps(e) + b"\n" for e in errors)
    write_whole(build.folder.path / "errors.jsonl", lines)
    numbers = ("n_prompts", "n_answers", "n_scores")
    rows = sum(m.get(name, 0) for p in parts if (m := p.manifest()) for name in numbers)
    return errors, rows


def totals(
    build: Build, mined: Mapping[str, Any], parts: Sequence[Partition], asked: Asked
) -> tuple[Counts, dict[str, int]]:
    """Rows by stage and fate, and tokens in and out, over mining and all partitions."""
    counts: Counts = Counter()
    counts.update({("mine", "in"): mined["in"], ("mine", "kept"): mined["kept"]})
    counts.update({("mine", k): v for k, v in mined["dropped"].items()})
    tokens = {"in": 0, "out": 0}
    manifests = [p.manifest() for p in parts] if build.reaches("presample") else []
    for manifest in (m for m in manifests if m is not None):
        counts.update(counts_in(manifest["counts"]))
        tokens["in"] += manifest["tokens"][0]
        tokens["out"] += manifest["tokens"][1]
    for number in asked.given_up:
        n = Partition(build.folder.path, number).n_prompts()
        counts.update({("presample", "in"): n, ("presample", "poisoned"): n})
    return counts, tokens


def audit_arms(build: Build, parts: Sequence[Partition]) -> dict[str, LengthAudit]:
    """Are the controls as long as the fused prompts that they are compared with? The manifest says
    so; so does a line."""
    fuse = build.settings.fuse
    controls = [a for a in fuse.arms if a in fuse.length_matched and "fused" in fuse.arms]
    if not controls or not build.reaches("fuse"):
        return {}
    from ..report.arms import arms_audit
    from ..statistics.inference import MOST_LENGTH_GAP

    audit = arms_audit(parts, controls)
    off = [f"{arm} ({a['mean_log_gap']:+.3f})" for arm, a in audit.items() if a["matched"] is False]
    if off:
        build.progress.message(
            f"arms not length-matched to fused (mean log ratio beyond +-{MOST_LENGTH_GAP}):"
            f" {', '.join(off)}; what they show may be length alone"
        )
    return audit


def _manifest_before(
    build: Build,
    asked: Asked,
    parts: Sequence[Partition],
    counts: Counts,
    tokens: Mapping[str, int],
    errors: int,
) -> Manifest:
    """What was built, from what and how, as far as it is known before selection; nothing in it
    tells how often the run was interrupted, so not what it cost."""
    s, context = build.settings, asked.context
    settings = s.model_dump(mode="json")
    identity = manifest_of(build.folder.path)["identity"]
    mined = read_json(build.folder.path / "mine.json")
    named = {k: identity.get(k) for k in ("dataset", "config", "split", "revision")}
    gamma = s.presample.gamma
    return {
        "identity": identity,
        "status": "done",
        "version": 1,
        "created_with": {"mora_data": __version__, "python": platform.python_version()},
        "settings": settings,
        "settings_hash": json_hash(settings),
        "source": {"kind": identity["source"], **named, "licence": build.licence},
        **({"sources": _by_source(mined["sources"], parts)} if "sources" in mined else {}),
        "counts": counts_tree(counts, STAGES),
        "notes": mined.get("notes", {}),
        "tokens": tokens,
        "cost": None,
        "not_measured": mined.get("not_measured", []),
        "contamination": mined.get("contamination"),
        "errors": errors,
        "templates": context.templates if context is not None else {},
        "reference": context.judge_stats.published() if context is not None else {},
        "judge_audit": asked.audit,
        "models": {r: e.model for r, e in asked.engines.items()},
        "endpoints": dict(sorted(build.progress.stats.dialects.items())),
        "simulated": asked.simulated if asked.engines else None,
        "pairs": 0,
        "selection": {},
        "arms_audit": audit_arms(build, parts),
        "personas": {},
        "unreliable": context.judge_stats.unreliable(gamma) if context is not None else {},
        "feedback": {},
        "drift": asked.drift,
    }


def _by_source(sources: Sequence[SourceCounts], parts: Sequence[Partition]) -> list[SourceCounts]:
    """The sources of a mix with what the stages after mining made of their prompts."""
    found: dict[str, Counts] = {}
    for manifest in (m for p in parts if (m := p.manifest()) is not None):
        for name, flat in manifest.get("sources", {}).items():
            found.setdefault(name, Counter()).update(counts_in(flat))
    return [
        {**s, "stages": counts_tree(c, [x for x in STAGES if (x, "in") in c])}
        if (c := found.get(source_of(s)))
        else s
        for s in sources
    ]


def _write_manifest(
    build: Build, manifest: Manifest, status: str, written: FolderResult | None = None
) -> Manifest:
    """Write what is known at the end, with what the run cost so far and the dataset folder."""
    before = manifest_of(build.folder.path)
    cost, currency = before.get("cost"), before.get("currency")
    if build.cost is not None:
        cost, currency = build.cost.cost(), build.cost.prices.currency
    whole: Manifest = {
        **manifest,
        "status": status,
        "cost": cost,
        "requests": before.get("requests", 0) + build.progress.stats.requests,
        "currency": currency,
        "fingerprint": written.fingerprint if written else None,
        "pii": written.pii if written else None,
        "papers": written.papers if written else {},
    }
    if written is not None and written.sources:
        whole["sources"] = written.sources
    build.folder.write("manifest.json", whole)
    return whole


def summary_of_command(build: Build, asked: Asked, errors: int, manifest: Manifest) -> Summary:
    stats, money = build.progress.stats, dict[str, Any]()
    if (cost := build.cost) is not None:
        money = {"cost": cost.command_cost(), "spent": cost.cost(), "unpriced": cost.unpriced()}
        money["currency"] = cost.prices.currency
    return Summary(
        str(build.folder.path),
        str(build.folder.path / "dataset") if manifest.get("fingerprint") else None,
        {stage: manifest["counts"][stage] for stage in build.stages},
        manifest.get("pairs", 0),
        requests=stats.requests,
        repeated=stats.repeated,
        replayed=stats.replayed + stats.finalized,
        tokens={"in": stats.tokens_in, "out": stats.tokens_out, "cached": stats.tokens_cached},
        **money,
        errors=errors,
        seconds=round(time.monotonic() - build.started, 3),
        damaged=asked.damaged,
        retries=dict(stats.retries),
        slots_busy=round(stats.slots_busy, 4) if stats.slots_busy is not None else None,
        replicas_out=dict(stats.replicas_out),
        endpoints=dict(sorted(stats.dialects.items())),
    )
