"""A build from end to end: what `mora-data build` and `mora_data.build` run.

    mine -> phase 0 (noise, floors) -> partitions (presample .. confirm) -> select -> publish

Mining, selection and publishing are pure and deterministic; between them, partitions run over the
answer log.
"""

from __future__ import annotations

import asyncio
import platform
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from . import __version__
from .cluster import check_cluster
from .engines import connect, resolve, role_warnings
from .engines.engine import Engine
from .errors import NothingSelected, UnreliableScores
from .prompts.context import BuildContext
from .prompts.context import load as load_kit
from .prompts.judge_calibration import JudgeCalibration
from .prompts.judge_quality import quality, self_preference
from .prompts.judge_stats import judge_stats_of, unreliable
from .prompts.personas import capped
from .prompts.runner import PartitionRunner
from .report.arms_audit import MAX_GAP, arms_audit
from .rewards.combine import steps_of
from .run.cost import CostTracker
from .run.folder import RunFolder, read_json
from .run.heartbeat import pulse
from .run.manifest import (
    Summary,
    check_errors,
    counts_tree,
    emptied_by,
    fingerprint,
    published_reference,
)
from .run.memory import choose_malloc, give_back
from .run.partitions import Partition, write_whole
from .run.place import shared
from .run.prices import load_prices
from .run.progress import Progress
from .run.stats import RunStats
from .settings import BuildSettings, Options, SourceSettings, to_yaml
from .sources import load as load_source
from .sources.benchmarks import Benchmarks
from .sources.mine import MineCounts, OpenedSource, Provenance, benchmarks_of, mine, open_source
from .sources.read import SourceRow
from .sources.recorded import as_recorded
from .types import STAGES, Origin, Prompt, Role

if TYPE_CHECKING:
    from .selection.select import Selection


class Builder:
    """One build in one run folder. `run()` may be called again by another process at any time after
    a kill."""

    def __init__(
        self, settings: BuildSettings, options: Options, progress: Progress, stats: RunStats
    ) -> None:
        self.settings, self._said = as_recorded(settings)
        self.options, self.progress, self.stats = options, progress, stats
        self.out = options.out or Path("runs") / settings.name
        self.summary = Summary(str(self.out))
        self._tokens = {"in": 0, "out": 0}
        self._selection: dict[str, Any] = {}
        self._audit: dict[str, Any] = {}
        self._persona_shares: dict[str, Any] = {}
        self._report: dict[str, Any] = {}
        self._fingerprint: str | None = None
        self._pii: dict[str, Any] | None = None
        self._counts: Counter[tuple[str, str]] = Counter()
        self._replayed_sealed = 0
        self._started = time.monotonic()
        self._benchmarks = Benchmarks({})
        self._kit: BuildContext | None = None  # None where nothing is asked
        self._feedback: dict[str, Any] = {}
        self._measuring: JudgeCalibration | None = None
        self._reference: dict[str, Any] = {}
        self._engines: dict[Role, Engine] = {}
        self._damaged = 0
        self._given_up: dict[int, str] = {}  # partitions, and why
        self._spending: CostTracker | None = None

    def run(self) -> Summary:
        """Run or resume the build.

        Raises:
            MoraError: it can't be finished; the state is kept.
        """
        choose_malloc()
        self._benchmarks = benchmarks_of(self.settings)
        if self.reaches("presample"):
            if self.settings.executor == "ray":
                check_cluster(self.settings)
            for line in [
                *self._said,
                *role_warnings(self.settings, self.options.sample, bool(self._said)),
            ]:
                self.progress.say(line)
            self._kit = self._load_kit()
        opened = open_source(self.settings, self.options.sample, list(self.options.data))
        p = opened.provenance
        identity = {
            "source": self.settings.source.kind,
            "dataset": p.dataset,
            "config": p.config,
            "split": p.split,
            "revision": p.revision,
        }
        with RunFolder(self.out, identity, self.options.fresh) as folder:
            write_whole(folder.path / "build.yaml", to_yaml(self.settings).encode())
            mined = self._mine(folder, opened)
            parts = folder.parts()
            try:
                if self._kit is not None:
                    asyncio.run(self._asked(folder, parts, self._kit))
            finally:
                self._finish_counts(folder, parts, mined)
            parts = [p for p in parts if p.number not in self._given_up]
            if self.reaches("fuse"):
                self._audit_arms(parts)
            self._check_drift(folder)
            if self._kit is not None and self.reaches("select"):
                self._publish(folder, parts, self._kit)
            self._write_manifest(folder, "done")
            if self._report:
                from .report import finished, write_report

                write_report(folder.path, finished(self._report, folder.path))
            check_errors(self.summary, self._counts, self.settings)
        return self.summary

    def reaches(self, stage: str) -> bool:
        """Whether the run goes as far as `stage`."""
        return STAGES.index(stage) <= STAGES.index(self.options.until)

    # before the first request
    def _load_kit(self) -> BuildContext:
        s = self.settings
        self._prices = load_prices(s.limits.prices)
        kit = load_kit(s, self.options.until, self._benchmarks)
        if s.publish.pii and self.reaches("publish"):
            from .dataset.pii import recognizers

            recognizers()  # says at once that the extra is missing
        return kit

    def _mine(self, folder: RunFolder, opened: OpenedSource) -> dict[str, Any]:
        """The mined prompts as partitions; skipped when they are there already."""
        s = self.settings
        basis = fingerprint(
            {
                "mine": s.mine.model_dump(),
                "source": s.source.model_dump(),
                "size": s.partition_size,
                "revision": opened.provenance.revision,
                "generated": self._n_generated(),
                "benchmarks": self._benchmarks.at_hand,
                **({"recorded": True} if self._said else {}),
            }
        )
        mined = read_json(folder.path / "mine.json")
        if mined.get("basis") == basis:
            return mined
        counts = MineCounts()
        self.progress.start("mine: prompts", s.mine.limit or 0)
        n_parts = 0
        for n_parts, prompts in enumerate(
            _chunks(self._prompts(opened, counts), s.partition_size), 1
        ):
            Partition(folder.path, n_parts - 1).keep_prompts(prompts)
            self.progress.step(len(prompts))
        self.progress.finish()
        mined = {
            "basis": basis,
            "n_parts": n_parts,
            **counts.as_dict(),
            "notes": dict(sorted(counts.notes.items())),
            "contamination": counts.contamination,
            "not_measured": list(counts.not_measured),
        }
        folder.write("mine.json", mined)
        return mined

    def _prompts(self, opened: OpenedSource, counts: MineCounts) -> Iterator[Prompt]:
        """The source's prompts, then the simulator's own where they are asked for."""
        only = self.options.only
        yield from (
            p
            for p in mine(opened, self.settings, counts, self._benchmarks)
            if only is None or p.prompt_id in only
        )
        if self._n_generated():
            from .simulator.writing import generated_prompts

            rows = enumerate(generated_prompts(self._n_generated(), self.settings.seed))
            generated = OpenedSource(
                load_source(SourceSettings(kind="jsonl")),
                [SourceRow(i, "generated", row) for i, row in rows],
                Provenance(
                    "mora-data/generated", "generated", "generated", "generated", "apache-2.0"
                ),
            )
            yield from mine(generated, self.settings, counts, self._benchmarks)

    def _n_generated(self) -> int:
        """Prompts that the simulator adds; only where it is the policy."""
        n = self.settings.scripted.n_prompts
        if not n or not self.reaches("presample"):
            return 0
        return (
            n
            if resolve(self.settings.role("policy"), self.options.sample).engine == "scripted"
            else 0
        )

    # the partitions
    async def _asked(
        self, folder: RunFolder, parts: Sequence[Partition], kit: BuildContext
    ) -> None:
        with pulse(folder, self.stats, self.progress):
            await self._ask(folder, parts, kit)

    async def _ask(self, folder: RunFolder, parts: Sequence[Partition], kit: BuildContext) -> None:
        self._engines = connect(
            self.settings, self.options.sample, self.stats, folder.path, self.progress.say
        )
        self._spending = CostTracker(folder, self.settings.limits, self._prices, self.stats)
        try:
            self._spending.start([e.model for e in self._engines.values()])
            runner = PartitionRunner(self._engines, self.stats, self.settings.seed)
            self._measuring = JudgeCalibration(
                kit, folder, self._engines, self.stats, self.progress
            )
            self._reference = await self._measuring.phase_0(parts, runner)
            self._kit = kit = self._measuring.kit
            self._warn_of_family()
            self._measuring.check_reliability(self.reaches("select"))
            await self._run_parts(folder, parts, runner, kit)
            if self.reaches("select"):
                await self._measuring.again(
                    fingerprint([kit.fingerprint(self._engines, self._reference, p) for p in parts])
                )
            self._damaged = runner.damaged
            if runner.damaged:
                self.progress.say(
                    f"{runner.damaged} damaged lines in the answer logs of {folder.path}/parts:"
                    " their answers were asked again"
                )
        finally:
            for engine in {id(e): e for e in self._engines.values()}.values():
                await engine.close()
            self._spending.save()

    def _check_drift(self, folder: RunFolder) -> None:
        """Raises UnreliableScores, once the manifest says so."""
        if self._measuring is None:
            return
        try:
            self._measuring.check_drift()
        except UnreliableScores:
            self._write_manifest(folder, "drifted")
            raise

    def _warn_of_family(self) -> None:
        """A judge favours answers of its own kind; said where names tell."""
        found = self_preference(self._engines)
        if found["family"] and not found["same_model"]:
            self.progress.say(
                f"judge and policy are of one family ({found['family']}): a judge may favour"
                " answers of its own kind"
            )

    async def _run_parts(
        self,
        folder: RunFolder,
        parts: Sequence[Partition],
        runner: PartitionRunner,
        kit: BuildContext,
    ) -> None:
        todo = [p for p in parts if not kit.is_sealed(self._engines, self._reference, p)]
        n_prompts = [p.n_prompts() for p in parts]
        done = sum(n for p, n in zip(parts, n_prompts, strict=True) if p not in todo)
        for p in parts:
            if p not in todo:
                self._replayed_sealed += int((p.manifest() or {}).get("answers", 0))
        self.progress.start("prompts", sum(n_prompts), done)
        if self.settings.executor == "ray" and todo:
            await self._on_cluster(folder, todo, runner, kit)
        else:
            await kit.through(
                self._engines, self._reference, runner, todo, lambda outcome: self.progress.step()
            )
        self.progress.finish()

    async def _on_cluster(
        self,
        folder: RunFolder,
        todo: Sequence[Partition],
        runner: PartitionRunner,
        kit: BuildContext,
    ) -> None:
        from .cluster.driver import environment, work_off
        from .cluster.worker import Job, PartitionTask, versions

        job = Job(
            self.settings,
            self.options.sample,
            self.options.until,
            shared(folder.path),
            read_json(folder.path / "mine.json")["basis"],
            self._reference,
            self._benchmarks,
            versions(),
            environment(),
            str(Path.cwd()),
        )
        orders = [
            PartitionTask(
                p.number,
                kit.fingerprint(self._engines, self._reference, p),
                runner.old_ends.get(p.log_path, p.log_size()),
            )
            for p in todo
        ]
        assert self._spending is not None
        with folder.lent():
            self._given_up, damaged = await work_off(
                job, orders, self._prices, self._spending, self.stats, self.progress
            )
        for number, why in self._given_up.items():
            Partition(folder.path, number).give_up(why)
        runner.damaged += damaged

    def _drift_seen(self) -> dict[str, Any]:
        return self._measuring.drift if self._measuring is not None else {}

    def _stages(self) -> tuple[str, ...]:
        """The stages that this run goes through."""
        return STAGES[: STAGES.index(self.options.until) + 1]

    # select and publish
    def _publish(self, folder: RunFolder, parts: Sequence[Partition], kit: BuildContext) -> None:
        from .dataset.folder import Release, write_dataset
        from .selection.select import picker, select, selected

        s = self.settings
        give_back()
        selection = select(parts, s)
        if kit.personas:
            self._cap_personas(parts, selection, kit)
        self._counts.update(selection.counts)
        self._feedback = quality(
            parts, selection.chosen, s, self_preference(self._engines), self._drift_seen()
        )
        folder.write("feedback.json", self._feedback)
        self.summary.pairs = selection.n_pairs
        self.summary.counts = counts_tree(self._counts, self._stages())
        if not self.reaches("publish"):
            return
        self._selection = {
            "candidates_confirmed": selection.confirmed[0],
            "candidates_held": selection.confirmed[1],
            "shrinkage": selection.shrinkage,
            "mean_log_length_gap": selection.mean_log_length_gap,
        }
        manifest, figures = self._manifest(folder, "done"), {}
        # plain sampling has nothing to compare
        if selection.n_pairs and (s.presample.enabled or len(s.fuse.arms) > 1):
            from .report import arms_report, png, summary_of

            self._report = arms_report(folder.path, manifest)
            manifest["report"] = summary_of(self._report)
            drawn = png.pictures(self._report)
            manifest["figures"] = png.listed(drawn)
            figures = {f"report/{name}.png": p.png for name, p in drawn.items()}
        reference = judge_stats_of(self._reference)
        steps = steps_of(kit.sources)
        release = Release(
            s,
            self._origin(),
            manifest,
            reference.pass_thresholds,
            picker(s, reference, steps),
            figures,
        )
        result = write_dataset(
            lambda: selected(parts, selection, s), release, folder.path / "dataset"
        )
        self.summary.dataset_dir = str(folder.path / "dataset")
        published = result.counts.get("preference", {})
        n = sum(published.values())
        self._counts["publish", "in"] += selection.n_pairs
        self._counts["publish", "kept"] += n
        if selection.n_pairs > n:
            self._counts["publish", "row_too_large"] += selection.n_pairs - n
        self._fingerprint, self._pii = result.fingerprint, result.pii
        self.summary.counts = counts_tree(self._counts, self._stages())
        if not n:
            self._write_manifest(folder, "empty")
            raise NothingSelected(emptied_by(self.summary.counts, self.summary.dataset_dir))

    def _cap_personas(
        self, parts: Sequence[Partition], selection: Selection, kit: BuildContext
    ) -> None:
        """No persona has more than its share of either side; prompts that lose their last pair are
        counted."""
        self._persona_shares, lost = capped(
            parts, selection.chosen, self.settings.published_arms, [p.name for p in kit.personas]
        )
        selection.counts.update({("select", "kept"): -lost, ("select", "persona_share"): lost})

    def _origin(self) -> Origin:
        names = {
            r: "@".join(x for x in (e.model, e.revision) if x) for r, e in self._engines.items()
        }
        return Origin(
            names["policy"],
            names["judge"],
            names["rewriter"],
            self.settings.select.selector,
            any(e.simulated for e in self._engines.values()),
            self.settings.seed,
        )

    # what is said at the end
    def _finish_counts(
        self, folder: RunFolder, parts: Sequence[Partition], mined: Mapping[str, Any]
    ) -> None:
        self._counts.update({("mine", "in"): mined["in"], ("mine", "kept"): mined["kept"]})
        self._counts.update({("mine", k): v for k, v in mined["dropped"].items()})
        errors = self._errors(folder, parts) if self.reaches("presample") else []
        for manifest in (
            [m for p in parts if (m := p.manifest()) is not None]
            if self.reaches("presample")
            else []
        ):
            for name, n in manifest["counts"].items():
                stage, _, what = name.partition(".")
                self._counts[stage, what] += n
            self._tokens = {
                "in": self._tokens["in"] + manifest["tokens"][0],
                "out": self._tokens["out"] + manifest["tokens"][1],
            }
        for number in self._given_up:
            n = Partition(folder.path, number).n_prompts()
            self._counts.update({("presample", "in"): n, ("presample", "poisoned"): n})
        u, s = self.stats, self.summary
        s.counts = counts_tree(self._counts, self._stages())
        s.requests, s.repeated, s.replayed = (
            u.requests,
            u.repeated,
            u.replayed + self._replayed_sealed,
        )
        s.tokens = {"in": u.tokens_in, "out": u.tokens_out, "cached": u.tokens_cached}
        s.retries, s.damaged, s.replicas_out = dict(u.retries), self._damaged, dict(u.replicas_out)
        s.cost = self._spending.command_cost() if self._spending is not None else None
        s.slots_busy = round(u.slots_busy, 4) if u.slots_busy is not None else None
        s.errors, s.seconds = len(errors), round(time.monotonic() - self._started, 3)

    def _audit_arms(self, parts: Sequence[Partition]) -> None:
        """Are the controls as long as the fused prompts that they are compared with? The manifest
        says so; so does a line."""
        s = self.settings
        self._audit = arms_audit(
            parts, [a for a in s.fuse.arms if a in s.fuse.length_matched and "fused" in s.fuse.arms]
        )
        off = [
            f"{arm} ({a['mean_log_gap']:+.3f})"
            for arm, a in self._audit.items()
            if a["matched"] is False
        ]
        if off:
            self.progress.say(
                f"arms not length-matched to fused (mean log ratio beyond +-{MAX_GAP}):"
                f" {', '.join(off)}; what they show may be length alone"
            )

    def _errors(self, folder: RunFolder, parts: Iterable[Partition]) -> list[dict[str, Any]]:
        errors = [e for p in parts for e in p.errors()]
        write_whole(folder.path / "errors.jsonl", b"".join(orjson.dumps(e) + b"\n" for e in errors))
        return errors

    def _manifest(self, folder: RunFolder, status: str) -> dict[str, Any]:
        """What was built, from what and how; nothing in it tells how often the run was interrupted,
        so not what it cost."""
        s = self.settings
        before, mined = folder.manifest(), read_json(folder.path / "mine.json")
        return {
            "identity": before["identity"],
            "status": status,
            "version": 1,
            "created_with": {"mora_data": __version__, "python": platform.python_version()},
            "settings": s.model_dump(mode="json"),
            "settings_hash": fingerprint(s.model_dump(mode="json")),
            "source": {
                "kind": s.source.kind,
                **{
                    k: before["identity"].get(k) for k in ("dataset", "config", "split", "revision")
                },
                "licence": self._licence(),
            },
            "counts": counts_tree(self._counts, STAGES),
            "notes": mined.get("notes", {}),
            "tokens": self._tokens,
            "cost": None,
            "not_measured": mined.get("not_measured", []),
            "contamination": mined.get("contamination"),
            "errors": self.summary.errors,
            "templates": self._kit.templates if self._kit is not None else {},
            "reference": published_reference(self._reference),
            "models": {r: e.model for r, e in self._engines.items()},
            "simulated": (
                any(e.simulated for e in self._engines.values()) if self._engines else None
            ),
            "pairs": self.summary.pairs,
            "selection": self._selection,
            "arms_audit": self._audit,
            "personas": self._persona_shares,
            "unreliable": unreliable(self._reference, s.presample.gamma),
            "feedback": self._feedback,
            "drift": self._drift_seen(),
        }

    def _licence(self) -> str:
        return "apache-2.0" if self.options.sample else self.settings.source.licence

    def _write_manifest(self, folder: RunFolder, status: str) -> None:
        self.summary.seconds = round(time.monotonic() - self._started, 3)
        requests = folder.manifest().get("requests", 0) + self.stats.requests
        cost = (
            self._spending.cost() if self._spending is not None else folder.manifest().get("cost")
        )
        folder.write(
            "manifest.json",
            {
                **self._manifest(folder, status),
                "requests": requests,
                "cost": cost,
                "fingerprint": self._fingerprint,
                "pii": self._pii,
            },
        )


def _chunks(prompts: Iterable[Prompt], size: int) -> Iterator[list[Prompt]]:
    prompts = iter(prompts)
    while chunk := list(islice(prompts, size)):
        yield chunk
