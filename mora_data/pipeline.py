"""A build from end to end: what `mora-data build` and `mora_data.build` run.

    mine -> connect -> measure the judges -> run partitions -> select -> write -> report

Mining, selection and publishing are pure and deterministic; between them, partitions run over the
answer log. Each step is a function that takes values and gives a value; the run folder is the only
state. So `run_build` may be called again by another process at any time after a kill.
"""

from __future__ import annotations

import platform
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import orjson

from . import __version__
from .cluster import check_cluster
from .engines import connect, resolve, role_warnings
from .engines.cached_client import CachedClient
from .engines.engine import Engine
from .errors import LimitReached, MoraError, NothingSelected, UnreliableScores
from .prompts.context import BuildContext, PromptContext
from .prompts.context import load as load_context
from .prompts.flow import run_prompt
from .prompts.judge_audit import audit_of_build
from .prompts.judge_calibration import (
    Running,
    check_drift,
    check_reliability,
    measure_drift,
    measure_judges,
)
from .prompts.judge_quality import quality, self_preference
from .prompts.personas import cap_shares
from .prompts.result import PromptResult
from .prompts.runner import PartitionRunner, ask_partitions, is_finalized
from .prompts.volume import requests_of
from .resources import Secret
from .rewards.audit import Audit
from .run.cost import CostTracker, load_prices
from .run.files import json_hash, read_json, write_whole
from .run.folder import (
    OPTIONS,
    Failures,
    RunFolder,
    SourceCounts,
    Summary,
    counts_tree,
    emptied_by,
    failures_of,
    free_for_preview,
    shortfalls,
    source_of,
    too_many_errors,
)
from .run.moving import all_partitions, homes_of, move_answers
from .run.partitions import Partition, choose_malloc, give_back
from .run.progress import PROMPTS, Progress, heartbeat, noting_its_end
from .run.remote import shared_address
from .run.stats import RunStats
from .run.tasks import distinct, run_to_end
from .settings import (
    PLUGIN_FOLDERS,
    BuildOptions,
    BuildSettings,
    SourceSettings,
    changes_of,
    to_yaml,
)
from .sources import SOURCES, load_source, plugin_of
from .sources.benchmarks import Benchmarks
from .sources.mine import (
    MineCounts,
    OpenedSource,
    as_recorded,
    benchmarks_of,
    mine,
)
from .sources.mix import data_given, identity_of, mine_sources, open_sources
from .sources.read import SourceRow
from .types import STAGES, Origin, Prompt, Role, reaches

if TYPE_CHECKING:
    from .dataset.configs import Describe
    from .report.arms import LengthAudit
    from .report.values import ArmsReport, Report
    from .selection.select import Selection

Counts = Counter[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Build:
    """What stays the same from a build's first step to its last."""

    settings: BuildSettings
    options: BuildOptions
    progress: Progress
    stats: RunStats
    folder: RunFolder
    benchmarks: Benchmarks
    recorded: bool  # the source's own answers are used
    cost: CostTracker | None  # None where nothing is asked
    started: float

    def reaches(self, stage: str) -> bool:
        """Whether the run goes as far as `stage`."""
        return reaches(self.options.until, stage)

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that this run goes through."""
        return STAGES[: STAGES.index(self.options.until) + 1]

    @property
    def licence(self) -> str:
        """That of the rows; of a mix, the strictest."""
        if self.options.sample:
            return "apache-2.0"
        from .dataset.card import strictest  # jinja comes with it

        return strictest(s.licence for s in self.settings.all_sources)


@dataclass(frozen=True, slots=True)
class Asked:
    """What is known once everything is asked; empty where nothing was.

    Attributes:
        given_up: partitions that no worker could do, and why.
    """

    context: BuildContext | None = None
    engines: Mapping[Role, Engine] = field(default_factory=dict)
    audit: Audit | None = None
    drift: Mapping[str, Any] = field(default_factory=dict)
    damaged: int = 0
    given_up: Mapping[int, str] = field(default_factory=dict)

    @property
    def simulated(self) -> bool:
        return any(e.simulated for e in self.engines.values())


@dataclass(frozen=True, slots=True)
class Published:
    """What selection and publishing made; empty where the run stops before."""

    pairs: int = 0
    dataset_dir: Path | None = None
    selection: Mapping[str, Any] = field(default_factory=dict)
    personas: Mapping[str, Any] = field(default_factory=dict)
    feedback: Mapping[str, Any] = field(default_factory=dict)
    report: Report | None = None
    fingerprint: str | None = None
    pii: Mapping[str, Any] | None = None
    papers: Mapping[str, str] = field(default_factory=dict)
    sources: Sequence[SourceCounts] | None = None  # of a mix, with their pairs


def run_build(
    settings: BuildSettings, options: BuildOptions, progress: Progress, stats: RunStats
) -> tuple[Summary, MoraError | None]:
    """Run or resume a build: what it did, and the failure that it ended with where there is
    something to be told of it (a limit, or no pair).

    Raises:
        MoraError: any other failure; the state is kept.
    """
    with _opened(settings, options, progress, stats) as (build, context, opened):
        _keep_settings(build)
        with noting_its_end(build.folder, progress) as note_end:
            summary, failure = _run(build, opened, context)
            if failure is not None:
                note_end(failure)
        return summary, failure


@dataclass(frozen=True, slots=True)
class Probe:
    """Some prompts of a build that went all their way.

    Attributes:
        rows: of the source.
        prompts: mined from them.
        pairs: by prompt that was finished, how many it brings.
        failure: what ended it early.
        sources: what was mined of each source of a mix.
    """

    rows: int
    prompts: int
    pairs: Mapping[str, int]
    failure: MoraError | None
    sources: Sequence[SourceCounts]


def run_probe(
    settings: BuildSettings, options: BuildOptions, n: int, progress: Progress, stats: RunStats
) -> Probe:
    """Mine the prompts of a build and ask for `n` of them, drawn by the run seed. The answers are
    in the run folder's logs, where the build finds them; nothing else is left for it.

    Raises:
        MoraError: nothing could be asked.
    """
    with _opened(settings, options, progress, stats) as (build, context, opened):
        mined, parts = _mine(build, opened), build.folder.parts()
        rows, sources = mined["in"], mined.get("sources", ())
        ids = [p.prompt_id for part in parts for p in part.prompts()]
        chosen = frozenset(random.Random(settings.seed).sample(ids, min(n, len(ids))))
        pairs: dict[str, int] = {}
        if context is None or build.cost is None or not chosen:
            return Probe(rows, len(ids), pairs, None, sources)
        failure: MoraError | None = None
        try:
            run_to_end(_ask_some(build, context, parts, build.cost, chosen, pairs))
        except MoraError as e:
            failure = e
        return Probe(rows, len(ids), pairs, failure, sources)


async def _ask_some(
    build: Build,
    context: BuildContext,
    parts: Sequence[Partition],
    cost: CostTracker,
    chosen: frozenset[str],
    pairs: dict[str, int],
) -> None:
    """Ask for the `chosen` prompts alone; `pairs` gets those that are finished."""
    async with _connected(build, context, cost) as running:
        context = context.with_judge_stats(await measure_judges(context, running, parts, chosen))
        try:
            check_reliability(context, build.progress.message)
        except UnreliableScores as e:
            build.progress.message(f"the build would end here: {e}")

        async def flow(ask: CachedClient, prompt: Prompt) -> PromptResult:
            return await run_prompt(PromptContext(context, ask), prompt)

        def on_prompt(result: PromptResult) -> None:
            if result.pending is None:
                pairs[result.prompt.prompt_id] = _n_pairs(context, result)
            build.progress.step()

        build.progress.start(PROMPTS, len(chosen))
        some = [p for p in parts if chosen & {x.prompt_id for x in p.prompts()}]
        await running.runner.run(some, flow, on_prompt, lambda opened: None, chosen)


def _n_pairs(context: BuildContext, result: PromptResult) -> int:
    from .prompts.candidates import n_pairs  # numpy comes with it

    return n_pairs(context, result) if result.arms else 0


@contextmanager
def _opened(
    settings: BuildSettings, options: BuildOptions, progress: Progress, stats: RunStats
) -> Iterator[tuple[Build, BuildContext | None, Sequence[OpenedSource]]]:
    """A build with its run folder locked, what it asks with, and its sources."""
    started = time.monotonic()
    choose_malloc()
    settings, notes = as_recorded(settings)
    benchmarks = benchmarks_of(settings)
    context = prices = None
    secret = Secret()
    if reaches(options.until, "presample"):
        for line in [*notes, *role_warnings(settings, options.sample, bool(notes))]:
            progress.message(line)
        prices = load_prices(settings.limits.prices)
        context = _load_context(settings, options, benchmarks, secret)
    opened = open_sources(settings, options.sample, options.data)
    with RunFolder(
        run_dir_of(settings, options), identity_of(settings, opened), options.fresh
    ) as f:
        secret.key = f.secret
        cost = CostTracker(f, settings.limits, prices, stats) if prices is not None else None
        build = Build(settings, options, progress, stats, f, benchmarks, bool(notes), cost, started)
        yield build, context, opened


def _run(
    build: Build, opened: Sequence[OpenedSource], context: BuildContext | None
) -> tuple[Summary, MoraError | None]:
    mined = _mine(build, opened)
    parts = build.folder.parts()
    asked = Asked()
    failure: MoraError | None = None
    try:
        if context is not None and build.cost is not None:
            asked = run_to_end(_ask(build, context, parts, build.cost))
    except LimitReached as e:
        failure = e
    finally:
        failed = _write_errors(build, parts)
    counts, tokens = _totals(build, mined, parts, asked)
    published = Published()
    if failure is None:
        parts = [p for p in parts if p.number not in asked.given_up]
        manifest = _manifest(
            build, asked, counts, tokens, failed.n, _audit_arms(build, parts), parts
        )
        published, failure = _finish(build, asked, parts, counts, manifest, failed)
    summary = _summary(build, asked, counts, failed.n, published)
    return summary, failure or too_many_errors(failed, build.settings, build.folder.path)


def _keep_settings(build: Build) -> None:
    """build.yaml and options.json; before the old ones are gone, a line names the settings that the
    last build of the folder had otherwise."""
    path, options = build.folder.path, build.options
    if not read_json(path / OPTIONS).get("preview") and (path / "build.yaml").exists():
        changes = changes_of(path / "build.yaml", build.settings)
        if changes:
            lost = build.reaches("publish") and (path / "dataset").is_dir()
            n = build.folder.manifest().get("pairs")
            kept = f"; its dataset of {n} pairs will be replaced" if lost else ""
            build.progress.message(
                f"settings differ from the last build's in {path}: {', '.join(changes)}{kept}"
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


def _finish(
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
        _write_manifest(build, manifest, Published(), "drifted")
        raise
    published, failure = Published(), None
    if asked.context is not None and build.reaches("select"):
        published = _select(build, asked, asked.context, parts, counts, manifest)
    if published.dataset_dir is not None and not counts["publish", "kept"]:
        left = counts_tree(counts, build.stages)
        failure = NothingSelected(emptied_by(left, build.folder.path, failed))
    manifest = {**manifest, **_selected(counts, published)}
    _write_manifest(build, manifest, published, "empty" if failure else "done")
    if published.report and failure is None:
        from .report.document import with_costs
        from .report.page import write_report

        build.progress.start("writing the report")
        write_report(build.folder.path, with_costs(published.report, build.folder.path))
    return published, failure


def run_dir_of(settings: BuildSettings, options: BuildOptions) -> Path:
    """The run folder of a build; that of a preview is not a build's."""
    path = options.out or Path("runs") / settings.name
    return free_for_preview(path) if options.preview else path


def _load_context(
    settings: BuildSettings, options: BuildOptions, benchmarks: Benchmarks, secret: Secret
) -> BuildContext:
    """Everything that the settings name, loaded before the first request."""
    if settings.executor == "ray":
        check_cluster(settings)
    context = load_context(settings, options.until, benchmarks, secret)
    if settings.publish.pii and context.reaches("publish"):
        from .dataset.privacy import recognizers

        recognizers()  # says at once that the extra is missing
    return context


# mining


def _mine(build: Build, opened: Sequence[OpenedSource]) -> dict[str, Any]:
    """The mined prompts as partitions, and mine.json; skipped when both are there, undamaged."""
    s = build.settings
    rows = [
        {
            "source": wanted.model_dump(),
            "code": "" if wanted.kind in SOURCES else plugin_of(wanted).code_hash,
            "revision": one.revision,
        }
        for wanted, one in zip(s.all_sources, opened, strict=True)
    ]
    key = json_hash(
        {
            "mine": s.mine.model_dump(),
            **({"sources": rows} if s.sources else rows[0]),
            "size": s.partition_size,
            "generated": _n_generated(build),
            "benchmarks": build.benchmarks.at_hand,
            "recorded": build.recorded,
        }
    )
    mined = read_json(build.folder.path / "mine.json")
    if mined.get("basis") == key:
        there = [p.prompts_hash() for p in build.folder.parts()]
        wanted = mined.get("prompts") or there
        damaged = [n for n, given in enumerate(wanted) if given != there[n]]
        if not damaged:
            return mined
        for n in damaged:
            path = Partition(build.folder.path, n).folder / "prompts.jsonl"
            build.progress.message(f"{path} was damaged: mined again")
    for one in opened:
        build.progress.message(f"source {one.dataset}: split {one.split}, licence {one.licence}")
    counts, run_dir = MineCounts(), build.folder.path
    # cut short while prompts went into other partitions: any answer may be in any of them
    anywhere = bool(mined.get("moving"))
    homes = {} if anywhere else homes_of(run_dir)
    if mined:
        build.folder.write("mine.json", {**mined, "basis": None, "moving": True})
    moved: dict[str, int] = {}
    build.progress.start("mine: prompts", s.mine.limit or 0)
    n_parts, prompts = 0, iter(_prompts(build, opened, counts))
    while chunk := list(islice(prompts, s.partition_size)):
        if anywhere or homes:
            ids = (p.prompt_id for p in chunk)
            moved |= {i: n_parts for i in ids if anywhere or homes.get(i, n_parts) != n_parts}
        Partition(run_dir, n_parts).keep_prompts(chunk)
        build.progress.step(len(chunk))
        n_parts += 1
    build.progress.finish()
    left_out = [name for one in opened for name in one.left_out]
    for line in (*counts.reading(left_out), *shortfalls(counts.sources)):
        build.progress.message(line)
    if moved:
        build.progress.start("answers to other partitions")
        left = {homes[i] for i in moved if i in homes}
        if anywhere:
            left = {p.number for p in all_partitions(run_dir)}
        move_answers(run_dir, left, moved)
    mined = {
        "basis": key,
        "identity": identity_of(s, opened),
        "n_parts": n_parts,
        "prompts": [Partition(build.folder.path, n).prompts_hash() for n in range(n_parts)],
        **counts.as_dict(),
        **({"sources": counts.sources} if s.sources else {}),
        "notes": dict(sorted(counts.notes.items())),
        "contamination": counts.contamination,
        "not_measured": list(counts.not_measured),
    }
    build.folder.write("mine.json", mined)
    return mined


def _prompts(build: Build, opened: Sequence[OpenedSource], counts: MineCounts) -> Iterator[Prompt]:
    """The sources' prompts, then the simulator's own where they are asked for."""
    yield from mine_sources(opened, build.settings, counts, build.benchmarks)
    if n := _n_generated(build):
        from .simulator.writing import generated_prompts

        rows = enumerate(generated_prompts(n, build.settings.seed))
        generated = OpenedSource(
            load_source(SourceSettings(kind="jsonl")),
            [SourceRow(i, "generated", row) for i, row in rows],
            *("mora-data/generated", "generated", "generated", "generated", "apache-2.0"),
        )
        yield from mine(generated, build.settings, counts, build.benchmarks)


def _n_generated(build: Build) -> int:
    """Prompts that the simulator adds; only where it is the policy."""
    n = build.settings.scripted.n_prompts
    if not n or not build.reaches("presample"):
        return 0
    policy = resolve(build.settings.role("policy"), build.options.sample)
    return n if policy.engine == "scripted" else 0


# asking


async def _ask(
    build: Build, context: BuildContext, parts: Sequence[Partition], cost: CostTracker
) -> Asked:
    """Connect, measure the judges, run the partitions, measure drift."""
    settings, progress = build.settings, build.progress
    n_prompts = sum(p.n_prompts() for p in parts)
    progress.expect(n_prompts, None if build.recorded else requests_of(settings, n_prompts))
    async with _connected(build, context, cost) as running:
        engines = running.engines
        audit = await _audit(build, context, engines)
        context = context.with_judge_stats(await measure_judges(context, running, parts))
        _warn_of_family(engines, progress)
        check_reliability(context, progress.message)
        given_up, damaged = await _run_partitions(build, context, running, parts, cost)
        drift: Mapping[str, Any] = {}
        if context.reaches("select"):
            keys = [context.partition_key(engines, p) for p in parts]
            drift = await measure_drift(context, running, json_hash(keys))
        damaged += running.runner.damaged
        if damaged:
            progress.message(
                f"{damaged} damaged lines in the answer logs of {build.folder.path}/parts: their"
                " answers were asked again"
            )
        return Asked(context, engines, audit, drift, damaged, given_up)


@asynccontextmanager
async def _connected(
    build: Build, context: BuildContext, cost: CostTracker
) -> AsyncIterator[Running]:
    """Engines that answer, a beat for those who watch, and every reply counted."""
    progress, folder, stats = build.progress, build.folder, build.stats
    progress.watch_cost(cost.cost, cost.prices.currency)
    with heartbeat(folder, progress):
        engines = connect(
            build.settings, build.options.sample, stats, folder.path, progress.message
        )
        try:
            if unpriced := cost.start(stats.accounts.values()):
                progress.message(
                    f"no price is known for {', '.join(unpriced)}, so the money is not counted:"
                    " limits.prices takes a table"
                )
            runner = PartitionRunner(engines, stats, build.settings.seed, limiters=context.limiters)
            yield Running(folder, engines, stats, progress, runner)
        finally:
            for engine in distinct(engines.values()):
                await engine.close()
            cost.save()


async def _audit(
    build: Build, context: BuildContext, engines: Mapping[Role, Engine]
) -> Audit | None:
    """The judges against the source's labels; the sample's labels are nobody's."""
    s, options, folder = build.settings, build.options, build.folder
    if options.sample or build.recorded:
        return None
    return await audit_of_build(
        s,
        context.sources,
        engines,
        str(folder.manifest()["identity"]["revision"]),
        lambda: open_sources(s, False, options.data),
        folder,
        build.progress,
        build.stats,
    )


async def _run_partitions(
    build: Build,
    context: BuildContext,
    running: Running,
    parts: Sequence[Partition],
    cost: CostTracker,
) -> tuple[Mapping[int, str], int]:
    """Ask the partitions that are not finalized: partitions given up and why, damaged log lines
    seen by workers."""
    done = [p for p in parts if is_finalized(context, running.engines, p)]
    todo = [p for p in parts if p not in done]
    build.stats.finalized = sum(int((p.manifest() or {}).get("answers", 0)) for p in done)
    build.progress.pairs = sum(int((p.manifest() or {}).get("pairs", 0)) for p in done)
    n_done = sum(p.n_prompts() for p in done)
    build.progress.start(PROMPTS, n_done + sum(p.n_prompts() for p in todo), n_done)
    given_up, damaged = await _ask_partitions(build, context, running, todo, cost)
    # checked behind the requests, which need not wait for it
    if again := [p for p in done if _is_damaged(build, p)]:
        build.progress.start(PROMPTS, sum(p.n_prompts() for p in again))
        more, lines = await _ask_partitions(build, context, running, again, cost)
        given_up, damaged = {**given_up, **more}, damaged + lines
    build.progress.finish()
    return given_up, damaged


def _is_damaged(build: Build, part: Partition) -> bool:
    if (why := part.damage()) is not None:
        build.progress.message(f"{why.partition(': ')[0]}: made anew from what was answered")
    return why is not None


async def _ask_partitions(
    build: Build,
    context: BuildContext,
    running: Running,
    todo: Sequence[Partition],
    cost: CostTracker,
) -> tuple[Mapping[int, str], int]:
    if build.settings.executor == "ray" and todo:
        return await _on_cluster(build, context, running, todo, cost)

    def on_prompt(result: PromptResult) -> None:
        build.progress.pairs += _n_pairs(context, result)
        build.progress.step()

    await ask_partitions(context, running.engines, running.runner, todo, on_prompt)
    return {}, 0


async def _on_cluster(
    build: Build,
    context: BuildContext,
    running: Running,
    todo: Sequence[Partition],
    cost: CostTracker,
) -> tuple[dict[int, str], int]:
    from .cluster.driver import environment, work_off
    from .cluster.worker import Job, PartitionTask, versions

    job = Job(
        build.settings,
        build.options.sample,
        build.options.until,
        shared_address(build.folder.path),
        read_json(build.folder.path / "mine.json")["basis"],
        context.judge_stats,
        build.benchmarks,
        build.folder.secret,
        versions(),
        environment(),
        str(Path.cwd()),
    )
    old_ends = running.runner.old_ends
    tasks = [
        PartitionTask(
            p.number,
            context.partition_key(running.engines, p),
            old_ends.get(p.log_path, p.log_size()),
        )
        for p in todo
    ]
    with build.folder.delegated():
        given_up, damaged = await work_off(job, tasks, cost, build.stats, build.progress)
    for number, why in given_up.items():
        Partition(build.folder.path, number).give_up(why)
    return given_up, damaged


def _warn_of_family(engines: Mapping[Role, Engine], progress: Progress) -> None:
    """A judge favours answers of its own kind; a warning where names tell."""
    found = self_preference(engines)
    if found["family"] and not found["same_model"]:
        progress.message(
            f"judge and policy are of one family ({found['family']}): a judge may favour answers"
            " of its own kind"
        )


def _write_errors(build: Build, parts: Sequence[Partition]) -> Failures:
    """errors.jsonl of the run from those of its partitions."""
    if not build.reaches("presample"):
        return Failures()
    errors = [e for p in parts for e in p.errors()]
    lines = b"".join(orjson.dumps(e) + b"\n" for e in errors)
    write_whole(build.folder.path / "errors.jsonl", lines)
    numbers = ("n_prompts", "n_answers", "n_scores")
    rows = sum(m.get(name, 0) for p in parts if (m := p.manifest()) for name in numbers)
    return failures_of(errors, rows)


def _totals(
    build: Build, mined: Mapping[str, Any], parts: Sequence[Partition], asked: Asked
) -> tuple[Counts, dict[str, int]]:
    """Rows by stage and fate, and tokens in and out, over mining and all partitions."""
    counts: Counts = Counter()
    counts.update({("mine", "in"): mined["in"], ("mine", "kept"): mined["kept"]})
    counts.update({("mine", k): v for k, v in mined["dropped"].items()})
    tokens = {"in": 0, "out": 0}
    manifests = [p.manifest() for p in parts] if build.reaches("presample") else []
    for manifest in (m for m in manifests if m is not None):
        for name, n in manifest["counts"].items():
            stage, _, what = name.partition(".")
            counts[stage, what] += n
        tokens["in"] += manifest["tokens"][0]
        tokens["out"] += manifest["tokens"][1]
    for number in asked.given_up:
        n = Partition(build.folder.path, number).n_prompts()
        counts.update({("presample", "in"): n, ("presample", "poisoned"): n})
    return counts, tokens


def _audit_arms(build: Build, parts: Sequence[Partition]) -> dict[str, LengthAudit]:
    """Are the controls as long as the fused prompts that they are compared with? The manifest says
    so; so does a line."""
    if not build.reaches("fuse"):
        return {}
    from .report.arms import arms_audit
    from .statistics.inference import MOST_LENGTH_GAP

    fuse = build.settings.fuse
    controls = [a for a in fuse.arms if a in fuse.length_matched and "fused" in fuse.arms]
    audit = arms_audit(parts, controls)
    off = [f"{arm} ({a['mean_log_gap']:+.3f})" for arm, a in audit.items() if a["matched"] is False]
    if off:
        build.progress.message(
            f"arms not length-matched to fused (mean log ratio beyond +-{MOST_LENGTH_GAP}):"
            f" {', '.join(off)}; what they show may be length alone"
        )
    return audit


# selecting and publishing


def _select(
    build: Build,
    asked: Asked,
    context: BuildContext,
    parts: Sequence[Partition],
    counts: Counts,
    manifest: Mapping[str, Any],
) -> Published:
    """Select the pairs and, where the run goes on, publish them; `counts` gets the two stages."""
    from .selection.select import select

    s = build.settings
    build.progress.start("selecting pairs")
    give_back()
    selection = select(parts, s)
    personas = _cap_personas(parts, selection, s, context)
    counts.update(selection.counts)
    family = self_preference(asked.engines)
    feedback = quality(parts, selection.chosen, s, family, asked.drift)
    build.folder.write("feedback.json", feedback)
    published = Published(selection.n_pairs, personas=personas, feedback=feedback)
    if not build.reaches("publish"):
        return published
    return _publish(build, asked, context, parts, counts, manifest, selection, published)


def _publish(
    build: Build,
    asked: Asked,
    context: BuildContext,
    parts: Sequence[Partition],
    counts: Counts,
    manifest: Mapping[str, Any],
    selection: Selection,
    published: Published,
) -> Published:
    """Write the dataset folder."""
    from .dataset.configs import Release
    from .dataset.folder import write_dataset
    from .selection.select import picker, selected

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
    tree = {**manifest, **_selected(counts, published)}
    report, figures = _arms_report(build, selection, tree)
    pick = picker(s, stats, context.steps)
    release = Release(
        s,
        _origin(build, asked),
        tree,
        stats.pass_thresholds,
        pick,
        context.dominance,
        figures,
        _describe(build, report) if report is not None else None,
    )
    dataset_dir = build.folder.path / "dataset"
    result = write_dataset(lambda: selected(parts, selection, s), release, dataset_dir)
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
    parts: Sequence[Partition],
    selection: Selection,
    settings: BuildSettings,
    context: BuildContext,
) -> dict[str, Any]:
    """No persona has more than its share of either side; prompts that lose their last pair are
    counted."""
    names = [p.name for p in context.personas]
    if not names:
        return {}
    shares, lost = cap_shares(parts, selection.chosen, settings.published_arms, names)
    selection.counts.update({("select", "kept"): -lost, ("select", "persona_share"): lost})
    return shares


def _describe(build: Build, arms: ArmsReport) -> Describe:
    """Makes the report of a dataset folder before it is in its place, so that the card says what
    the report doubts. What the run cost is not in it."""
    from .report.document import finish_report, summary_of

    def describe(
        folder: Path, manifest: Mapping[str, Any]
    ) -> tuple[Mapping[str, Any], dict[str, object]]:
        report = finish_report(arms, build.folder.path, manifest, folder)
        return report, summary_of(report)

    return describe


def _arms_report(
    build: Build, selection: Selection, manifest: dict[str, Any]
) -> tuple[ArmsReport | None, dict[str, bytes]]:
    """The part of the report that needs no pairs, with the card's figures, which `manifest` gets
    the names of. Plain sampling has nothing to compare."""
    s = build.settings
    if not selection.n_pairs or not (s.presample.enabled or len(s.fuse.arms) > 1):
        return None, {}
    from .report.document import arms_report
    from .report.png import pictures

    report = arms_report(build.folder.path, manifest)
    drawn = pictures(report)
    manifest["figures"] = [
        {"file": f"report/{name}.png", "question": question}
        for name, (question, _) in drawn.items()
    ]
    return report, {f"report/{name}.png": png for name, (_, png) in drawn.items()}


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


# what a run says of itself


def _manifest(
    build: Build,
    asked: Asked,
    counts: Counts,
    tokens: Mapping[str, int],
    errors: int,
    audit: Mapping[str, Any],
    parts: Sequence[Partition],
) -> dict[str, Any]:
    """What was built, from what and how, as far as it is known before selection; nothing in it
    tells how often the run was interrupted, so not what it cost."""
    s, context = build.settings, asked.context
    settings = s.model_dump(mode="json")
    identity = build.folder.manifest()["identity"]
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
        "endpoints": dict(sorted(build.stats.dialects.items())),
        "simulated": asked.simulated if asked.engines else None,
        "pairs": 0,
        "selection": {},
        "arms_audit": audit,
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
            for key, n in flat.items():
                stage, _, what = key.partition(".")
                found.setdefault(name, Counter())[stage, what] += n
    return [
        {**s, "stages": counts_tree(c, [x for x in STAGES if (x, "in") in c])}
        if (c := found.get(source_of(s)))
        else s
        for s in sources
    ]


def _selected(counts: Counts, published: Published) -> dict[str, Any]:
    """What selection adds to the manifest."""
    return {
        "counts": counts_tree(counts, STAGES),
        "pairs": published.pairs,
        "selection": published.selection,
        "personas": published.personas,
        "feedback": published.feedback,
        **({"sources": published.sources} if published.sources else {}),
    }


def _write_manifest(
    build: Build,
    manifest: Mapping[str, Any],
    published: Published,
    status: str = "done",
) -> None:
    before = build.folder.manifest()
    cost, currency = before.get("cost"), before.get("currency")
    if build.cost is not None:
        cost, currency = build.cost.cost(), build.cost.prices.currency
    build.folder.write(
        "manifest.json",
        {
            **manifest,
            "status": status,
            "requests": before.get("requests", 0) + build.stats.requests,
            "cost": cost,
            "currency": currency,
            "fingerprint": published.fingerprint,
            "pii": published.pii,
            "papers": published.papers,
        },
    )


def _summary(
    build: Build, asked: Asked, counts: Counts, errors: int, published: Published
) -> Summary:
    stats = build.stats
    return Summary(
        str(build.folder.path),
        str(published.dataset_dir) if published.dataset_dir else None,
        counts_tree(counts, build.stages),
        published.pairs,
        requests=stats.requests,
        repeated=stats.repeated,
        replayed=stats.replayed + stats.finalized,
        tokens={"in": stats.tokens_in, "out": stats.tokens_out, "cached": stats.tokens_cached},
        cost=build.cost.command_cost() if build.cost is not None else None,
        currency=build.cost.prices.currency if build.cost is not None else "",
        unpriced=build.cost.unpriced() if build.cost is not None else [],
        spent=build.cost.cost() if build.cost is not None else None,
        errors=errors,
        seconds=round(time.monotonic() - build.started, 3),
        damaged=asked.damaged,
        retries=dict(stats.retries),
        slots_busy=round(stats.slots_busy, 4) if stats.slots_busy is not None else None,
        replicas_out=dict(stats.replicas_out),
        endpoints=dict(sorted(stats.dialects.items())),
    )
