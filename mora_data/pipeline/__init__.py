"""A build from end to end: what `mora-data build` and `mora_data.build` run.

    mine -> connect -> measure the judges -> run partitions -> select -> write -> report

Mining, selection and publishing are pure and deterministic; between them, partitions run over the
answer log. Each step is a function that takes values and gives a value; the run folder is the only
state. So `run_build` may be called again by another process at any time after a kill.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..cluster import check_cluster
from ..engines import role_warnings
from ..errors import LimitReached, MoraError
from ..prompts.context import BuildContext, load_context
from ..resources import Secret
from ..run import Manifest
from ..run.cost import CostTracker, load_prices
from ..run.folder import RunFolder, Summary, counts_tree, free_for_preview, too_many_errors
from ..run.partitions import choose_malloc
from ..run.progress import Progress, noting_its_end
from ..run.tasks import run_to_end
from ..selection import plain_pairs_doubt
from ..settings import BuildOptions, BuildSettings
from ..sources.benchmarks import Benchmarks
from ..sources.mine import OpenedSource, as_recorded, benchmarks_of, identity_of, open_sources
from ..types import STAGES, reaches
from .asking import ask, ask_some
from .mining import mine_prompts
from .publishing import (
    finish,
    keep_settings,
    summary_of_command,
    totals,
    write_errors,
)
from .values import Asked, Build, Probe


def run_build(
    settings: BuildSettings, options: BuildOptions, progress: Progress
) -> tuple[Summary, MoraError | None]:
    """Run or resume a build: what it did, and the failure that it ended with where there is
    something to be told of it (a limit, or no pair).

    Raises:
        MoraError: any other failure; the state is kept.
    """
    with _opened(settings, options, progress) as (build, context, opened):
        keep_settings(build)
        with noting_its_end(build.folder, progress) as note_end:
            summary, failure = _run(build, opened, context)
            if failure is not None:
                note_end(failure)
        return summary, failure


def run_probe(settings: BuildSettings, options: BuildOptions, n: int, progress: Progress) -> Probe:
    """Mine the prompts of a build and ask for `n` of them, drawn by the run seed. The answers are
    in the run folder's logs, where the build finds them; nothing else is left for it.

    Raises:
        MoraError: nothing could be asked.
    """
    with _opened(settings, options, progress) as (build, context, opened):
        mined, parts = mine_prompts(build, opened), build.folder.parts()
        rows, sources = mined["in"], mined.get("sources", ())
        ids = [p.prompt_id for part in parts for p in part.prompts()]
        chosen = frozenset(random.Random(settings.seed).sample(ids, min(n, len(ids))))
        pairs: dict[str, int] = {}
        if context is None or not chosen:
            return Probe(rows, len(ids), pairs, None, sources)
        failure: MoraError | None = None
        try:
            run_to_end(ask_some(build, context, parts, chosen, pairs))
        except MoraError as e:
            failure = e
        return Probe(rows, len(ids), pairs, failure, sources)


@contextmanager
def _opened(
    settings: BuildSettings, options: BuildOptions, progress: Progress
) -> Iterator[tuple[Build, BuildContext | None, Sequence[OpenedSource]]]:
    """A build with its run folder locked, what it asks with, and its sources."""
    started = time.monotonic()
    choose_malloc()
    settings, notes = as_recorded(settings)
    benchmarks = benchmarks_of(settings)
    context = prices = None
    secret = Secret()
    if reaches(options.until, "presample"):
        lines = [*notes, *role_warnings(settings, options.sample, bool(notes))]
        for line in filter(None, [*lines, plain_pairs_doubt(settings.model_dump())]):
            progress.message(line)
        prices = load_prices(settings.limits.prices)
        context = _load_context(settings, options, benchmarks, secret)
    opened = open_sources(settings, options.sample, options.data)
    with RunFolder(
        run_dir_of(settings, options), identity_of(settings, opened), options.fresh
    ) as f:
        secret.key = f.secret
        cost = CostTracker(f, settings.limits, prices, progress.stats) if prices else None
        build = Build(settings, options, progress, f, benchmarks, bool(notes), cost, started)
        yield build, context, opened


def _run(
    build: Build, opened: Sequence[OpenedSource], context: BuildContext | None
) -> tuple[Summary, MoraError | None]:
    mined = mine_prompts(build, opened)
    parts = build.folder.parts()
    asked = Asked()
    failure: MoraError | None = None
    try:
        if context is not None:
            asked = run_to_end(ask(build, context, parts))
    except LimitReached as e:
        failure = e
    finally:
        errors, rows = write_errors(build, parts)
    counts, tokens = totals(build, mined, parts, asked)
    manifest: Manifest = {"counts": counts_tree(counts, STAGES)}
    if failure is None:
        parts = [p for p in parts if p.number not in asked.given_up]
        manifest, failure = finish(build, asked, parts, counts, tokens, errors)
    summary = summary_of_command(build, asked, len(errors), manifest)
    too_many = too_many_errors(errors, rows, build.settings, build.folder.path)
    return summary, failure or too_many


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
    if context.reaches("publish"):
        if settings.publish.configs != "all":
            from ..dataset.folder import configs_to_write

            configs_to_write(settings)  # says at once what there is not
        if settings.publish.pii:
            from ..dataset.privacy import recognizers

            recognizers()  # and that the extra is missing
    return context
