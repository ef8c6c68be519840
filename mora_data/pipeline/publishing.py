"""Selecting the pairs, writing the dataset and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..errors import NothingSelected, UnreliableScores
from ..prompts.context import BuildContext
from ..prompts.judge_calibration import check_drift
from ..prompts.judge_quality import quality, self_preference
from ..prompts.personas import cap_shares
from ..run.folder import Failures, counts_tree, emptied_by
from ..run.partitions import Partition, give_back
from ..types import Origin
from .manifest import with_selection, write_manifest
from .values import Asked, Build, Counts, Published

if TYPE_CHECKING:
    from ..dataset.configs import Describe
    from ..report.values import Report
    from ..selection.select import Selection


@dataclass(frozen=True, slots=True)
class ReleaseInputs:
    """What selecting and publishing work on; `counts` gets the two stages."""

    build: Build
    asked: Asked
    context: BuildContext
    parts: Sequence[Partition]
    counts: Counts
    manifest: Mapping[str, Any]


def finish(
    build: Build,
    asked: Asked,
    parts: Sequence[Partition],
    counts: Counts,
    manifest: Mapping[str, Any],
    failed: Failures,
) -> tuple[Published, NothingSelected | None]:
    """Select, write the dataset, the manifest and the report; `counts` gets the stages.

    Raises:
        UnreliableScores: the scorers changed during the run; the manifest says so.
    """
    try:
        check_drift(asked.drift, build.settings.presample.max_drift)
    except UnreliableScores:
        write_manifest(build, manifest, Published(), "drifted")
        raise
    published, failure = Published(), None
    if asked.context is not None and build.reaches("select"):
        published = _select(ReleaseInputs(build, asked, asked.context, parts, counts, manifest))
    if published.dataset_dir is not None and not counts["publish", "kept"]:
        left = counts_tree(counts, build.stages)
        failure = NothingSelected(emptied_by(left, build.folder.path, failed))
    manifest = {**manifest, **with_selection(counts, published)}
    write_manifest(build, manifest, published, "empty" if failure else "done")
    if published.report and failure is None:
        from ..report.document import with_costs
        from ..report.page import write_report

        build.progress.start("writing the report")
        write_report(build.folder.path, with_costs(published.report, build.folder.path))
    return published, failure


def _select(inputs: ReleaseInputs) -> Published:
    """Select the pairs and, where the run goes on, publish them."""
    from ..selection.select import select

    build, asked, parts, s = inputs.build, inputs.asked, inputs.parts, inputs.build.settings
    build.progress.start("selecting pairs")
    give_back()
    selection = select(parts, s)
    personas = _cap_personas(parts, selection, inputs.context)
    inputs.counts.update(selection.counts)
    family = self_preference(asked.engines)
    feedback = quality(parts, selection.chosen, s, family, asked.drift)
    build.folder.write("feedback.json", feedback)
    published = Published(selection.n_pairs, personas=personas, feedback=feedback)
    if not build.reaches("publish"):
        return published
    return _publish(inputs, selection, published)


def _publish(inputs: ReleaseInputs, selection: Selection, published: Published) -> Published:
    """Write the dataset folder."""
    from ..dataset.configs import Release
    from ..dataset.folder import write_dataset
    from ..selection.select import picker, selected

    build, context, counts = inputs.build, inputs.context, inputs.counts
    s, stats = build.settings, context.judge_stats
    build.progress.start("writing the dataset")
    published = replace(
        published,
        selection={
            "candidates_confirmed": selection.confirmed[0],
            "candidates_held": selection.confirmed[1],
            "shrinkage": selection.shrinkage,
            "mean_log_length_gap": selection.mean_log_length_gap,
        },
    )
    tree = {**inputs.manifest, **with_selection(counts, published)}
    describe, figures = _report_of_release(build, selection, tree)
    pick = picker(s, stats, context.steps)
    release = Release(
        s,
        _origin(build, inputs.asked),
        tree,
        stats.pass_thresholds,
        pick,
        context.dominance,
        figures,
        describe,
    )
    dataset_dir = build.folder.path / "dataset"
    result = write_dataset(lambda: selected(inputs.parts, selection, s), release, dataset_dir)
    n = sum(result.counts.get("preference", {}).values())
    counts["publish", "in"] += selection.n_pairs
    counts["publish", "kept"] += n
    if selection.n_pairs > n:
        counts["publish", "row_too_large"] += selection.n_pairs - n
    return replace(
        published,
        dataset_dir=dataset_dir,
        report=cast("Report | None", result.report),
        fingerprint=result.fingerprint,
        pii=result.pii,
        papers=result.papers,
        sources=result.sources,
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
    build: Build, selection: Selection, manifest: dict[str, Any]
) -> tuple[Describe | None, dict[str, bytes]]:
    """What makes the report of a dataset folder before it is in its place, so that the card says
    what the report doubts; and the card's figures, which `manifest` gets the names of. What the run
    cost is not in it. Plain sampling has nothing to compare."""
    s = build.settings
    if not selection.n_pairs or not (s.presample.enabled or len(s.fuse.arms) > 1):
        return None, {}
    from ..report.document import arms_report, finish_report, summary_of
    from ..report.png import pictures

    arms = arms_report(build.folder.path, manifest)
    drawn = pictures(arms)
    manifest["figures"] = [
        {"file": f"report/{name}.png", "question": question}
        for name, (question, _) in drawn.items()
    ]

    def describe(
        folder: Path, manifest: Mapping[str, Any]
    ) -> tuple[Mapping[str, Any], dict[str, object]]:
        report = finish_report(arms, build.folder.path, manifest, folder)
        return report, summary_of(report)

    return describe, {f"report/{name}.png": png for name, (_, png) in drawn.items()}


def _origin(build: Build, asked: Asked) -> Origin:
    names = {r: "@".join(x for x in (e.model, e.revision) if x) for r, e in asked.engines.items()}
    return Origin(
        names["policy"],
        names["judge"],
        names["rewriter"],
        build.settings.select.selector,
        asked.simulated,
        build.settings.seed,
    )
