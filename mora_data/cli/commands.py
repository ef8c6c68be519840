"""What each command of the command line does, from its parsed arguments to its exit code; cli.py
has the arguments."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import LimitReached, MoraError, NothingSelected, SettingsError

if TYPE_CHECKING:
    from ..settings import BuildSettings


def build(args: argparse.Namespace) -> int:
    """A build, and a push where one was asked for; or what it would take."""
    from ..run.progress import Progress
    from ..run.stats import RunStats

    if args.probe and not args.dry_run:
        raise SettingsError("--probe is a part of --dry-run: give both, or none")
    _check_capacity(args)
    settings = _settings(args)
    if args.fetch_benchmarks:
        from ..sources.benchmarks import cache_dir, fetch

        for name, what in fetch(cache_dir()).items():
            print(f"benchmark {name}: {what}", file=sys.stderr)
    if args.dry_run:
        return _dry_run(args, settings)
    from ..pipeline import Builder
    from ..settings import Options

    stats = RunStats()
    progress = Progress(stats)
    builder = Builder(
        settings,
        Options(args.sample, tuple(args.data), args.out, args.until, args.fresh),
        progress,
        stats,
    )
    failure: MoraError | None = None
    try:
        builder.run()
    except (NothingSelected, LimitReached) as e:
        failure = e
    if failure is None and args.push and args.until == "publish":
        _push_run(args, builder.out, args.push)
    _said(args, builder.summary)
    if failure is not None:
        fail(str(failure))
        return 1
    return 0


def _settings(args: argparse.Namespace) -> BuildSettings:
    from ..settings import load_settings, parse_override

    overrides = dict(parse_override(text) for text in args.set)
    flags = {
        **_urls("policy", args.base_url),
        **_urls("judge", args.judge_base_url),
        "policy.model": args.model,
        "policy.engine": args.engine,
        "judge.model": args.judge_model,
        "mine.limit": args.limit,
        "seed": args.seed,
        "executor": args.executor,
        "limits.max_cost": args.max_cost,
        "limits.max_tokens": args.max_tokens,
        "fuse.arms": (
            None if args.arms is None else [a.strip() for a in args.arms.split(",") if a.strip()]
        ),
        "select.allow_unreliable": True if args.allow_unreliable else None,
    }
    overrides.update({k: v for k, v in flags.items() if v is not None})
    return load_settings(args.source, overrides)


def _urls(role: str, given: Sequence[str] | None) -> dict[str, object]:
    """A role's base URL and its replicas, from flags that may hold several."""
    urls = [url.strip() for text in given or () for url in text.split(",") if url.strip()]
    return {f"{role}.base_url": urls[0], f"{role}.replicas": urls[1:]} if urls else {}


def _check_capacity(args: argparse.Namespace) -> None:
    """--gpus and what belongs to it."""
    for flag, value in (
        ("--tokens-per-s", args.tokens_per_s),
        ("--prompts", args.prompts),
        ("--gpu-price", args.gpu_price),
    ):
        if value is not None and args.gpus is None:
            raise SettingsError(f"{flag} belongs to --gpus: give both, or none")
    if args.gpus is not None and not args.dry_run:
        raise SettingsError("--gpus is a part of --dry-run, it starts nothing: give both, or none")
    if args.gpus is not None and args.tokens_per_s is None:
        raise SettingsError(
            "--gpus needs --tokens-per-s: what one GPU gets done in a second, as its server's log"
            " says"
        )
    for flag, value in (("--tokens-per-s", args.tokens_per_s), ("--gpu-price", args.gpu_price)):
        if value is not None and not 0 < value < float("inf"):
            raise SettingsError(f"{flag} {value:g}: give a number above 0")


def _dry_run(args: argparse.Namespace, settings: BuildSettings) -> int:
    from .estimate import estimate

    if args.probe:
        from .probe import probe

        found = probe(settings, args.sample, args.data)
    else:
        found = estimate(settings, args.sample, args.data)
    rows = []
    if args.gpus is not None:
        from dataclasses import asdict

        from .capacity import capacity, table

        rows = capacity(
            found, args.prompts or [found["prompts"]], args.gpus, args.tokens_per_s, args.gpu_price
        )
        if args.json:
            found["capacity"] = [asdict(r) for r in rows]
    measured = (
        dict.fromkeys(found.pop("from_probe", []), "   from the probe") if not args.json else {}
    )
    print(
        json.dumps(found)
        if args.json
        else "\n".join(f"{k:<20} {v}{measured.get(k, '')}" for k, v in found.items())
    )
    if rows and not args.json:
        print(f"\n{table(rows, args.tokens_per_s)}")
    return 0


def _said(args: argparse.Namespace, summary: Any) -> None:
    from dataclasses import asdict

    if args.json:
        print(json.dumps(asdict(summary)))
        return
    from .tables import table

    print(table(summary.counts))
    cost = "" if summary.cost is None else f"   cost {summary.cost:.4g}"
    print(
        f"pairs {summary.pairs}   requests {summary.requests}   replayed {summary.replayed}  "
        f" tokens {summary.tokens['in']} in, {summary.tokens['out']} out{cost}   errors"
        f" {summary.errors}   {summary.seconds:.1f} s"
    )
    for url, why in summary.replicas_out.items():
        print(f"replica {url} was taken out for a while ({why})")
    if summary.dataset_dir:
        print(f"dataset {summary.dataset_dir}")
        if (Path(summary.run_dir) / "report.html").exists():
            print(f"report {Path(summary.run_dir) / 'report.html'}")


def status(args: argparse.Namespace) -> int:
    """How far a run is."""
    from .tables import status, table

    found = status(args.run_dir)
    if args.json:
        print(json.dumps(found))
    else:
        print(
            f"{args.run_dir}: {found['status']}, {found['prompts_done']} of {found['prompts']}"
            f" prompts done, {found['partitions_sealed']} of {found['partitions']} partitions"
            f" sealed, {found['owed']} owed, {found['errors']} errors"
        )
        print(table(found["counts"]))
    return 0


def report(args: argparse.Namespace) -> int:
    """A run's report, or two compared."""
    from ..report import report_of, write_report
    from ..run.place import push_back
    from .tables import report_lines

    if args.compare is not None:
        return _report_compare(args)
    if args.run_dir is None or args.out is not None:
        raise SettingsError(
            "give RUN_DIR (its report is written into it), or --compare A B with or without"
            " --out DIR"
        )
    report = report_of(args.run_dir)
    written = write_report(args.run_dir, report)
    push_back(args.run_dir)
    print(
        json.dumps(report) if args.json else "\n".join([*report_lines(report), *map(str, written)])
    )
    return 0


def _report_compare(args: argparse.Namespace) -> int:
    from ..report.compare import compared, write_comparison
    from ..report.sides import side_of
    from .tables import compare_lines

    if args.run_dir is not None:
        raise SettingsError(f"report --compare takes two folders and no RUN_DIR ({args.run_dir})")
    tree = compared(side_of(args.compare[0]), side_of(args.compare[1]))
    written = write_comparison(args.out or Path(), tree)
    print(json.dumps(tree) if args.json else "\n".join([*compare_lines(tree), *map(str, written)]))
    return 0


def weights(args: argparse.Namespace) -> int:
    """Weights of the dimensions that reach a target."""
    from ..errors import SettingsError
    from ..report.target import lines, weights_of
    from ..settings import parse_override

    target = dict(parse_override(text) for text in args.target)
    for d, v in target.items():
        if isinstance(v, bool) or not isinstance(v, (int, float)):
            raise SettingsError(f"--target {d}={v}: the value must be a number in [0, 1]")
    found = weights_of(
        args.run_dir,
        {d: float(v) for d, v in target.items() if isinstance(v, (int, float))},
        args.arm,
    )
    print(json.dumps(found) if args.json else "\n".join(lines(found)))
    return 0


def view(args: argparse.Namespace) -> int:
    """Pages that show a folder, served or written."""
    if args.freeze is not None:
        from ..viewer.freeze import freeze

        done = freeze(args.folder, args.freeze, args.most)
        print(
            f"{done['pages']:,} pages, {done['pairs']:,} of {done['of']:,}"
            f" pairs\n{args.freeze / 'index.html'}"
        )
        return 0
    from ..viewer import serve

    serve(args.folder, args.port, not args.no_open, args.review, args.other)
    return 0


def push(args: argparse.Namespace) -> int:
    """A dataset folder to the Hub."""
    return _push_run(args, args.run_dir, args.repo_id)


def _push_run(args: argparse.Namespace, run_dir: Path, repo_id: str) -> int:
    if not args.split_unsafe:
        return _push_once(args, run_dir, repo_id, None)
    return _push_once(args, run_dir, f"{repo_id}-gated", "gate") or _push_once(
        args, run_dir, repo_id, "drop"
    )


def _push_once(args: argparse.Namespace, run_dir: Path, repo_id: str, unsafe: str | None) -> int:
    from ..dataset.push import push_folder
    from .tables import run_manifest

    result = push_folder(
        run_dir / "dataset",
        repo_id,
        args.tag,
        dry_run=args.dry_run,
        public=args.public,
        allow_simulated=args.allow_simulated,
        move_tag=args.move_tag,
        manifest=run_manifest(run_dir),
        unsafe=unsafe,
    )
    where = f"{result.repo_id}{'@' + result.tag if result.tag else ''}"
    print(
        f"{result.status}: {where}, {len(result.added)} files to add, {len(result.deleted)} to"
        f" delete, {result.n_bytes} bytes,"
        f" {'private' if result.private else 'public'}{'; ' + result.note if result.note else ''}",
        file=sys.stderr,
    )
    if args.dry_run:
        print(
            "\n".join(
                [
                    *(f"add {name}" for name in result.added),
                    *(f"delete {name}" for name in result.deleted),
                ]
            )
        )
    return 0


def export(args: argparse.Namespace) -> int:
    """One config, somewhere else."""
    from ..dataset.export import export_config
    from ..run.place import destination

    with destination(str(args.to)) as to:
        for path in export_config(args.run_dir / "dataset", args.config, to, args.format):
            print(f"{args.to}/{path.relative_to(to)}")
    return 0


def diff(args: argparse.Namespace) -> int:
    """Two datasets, config by config."""
    from dataclasses import asdict

    from ..dataset.diff import diff_datasets, diff_lines

    deltas = diff_datasets(args.before, args.after)
    print(
        json.dumps({name: asdict(d) for name, d in deltas.items()})
        if args.json
        else "\n".join(diff_lines(deltas))
    )
    return 0


def list_names(args: argparse.Namespace) -> int:
    """What there is to choose from."""
    from .tables import listing

    print("\n".join(listing(args.what)))
    return 0


def recipe_list(args: argparse.Namespace) -> int:
    """The recipes."""
    from .tables import listing

    print("\n".join(listing("recipes")))
    return 0


def recipe_copy(args: argparse.Namespace) -> int:
    """A recipe, copied."""
    from .recipes import copy_recipe

    for path in copy_recipe(args.name, args.to):
        print(path)
    return 0


def recipe_run(args: argparse.Namespace) -> int:
    """A recipe, run."""
    from .recipes import run_recipe

    return run_recipe(args.name, args.dataset, args.revision, args.config, args.overrides)


def evaluate_models(args: argparse.Namespace) -> int:
    """Models on held-out prompts."""
    from ..evaluate import evaluate, markdown
    from ..evaluate.models import EvaluateOptions
    from ..run.progress import Progress
    from ..run.stats import RunStats
    from ..settings import parse_override

    overrides = dict(parse_override(text) for text in args.set)
    flags = {
        "heldout_judge.base_url": args.judge_base_url,
        "heldout_judge.model": args.judge_model,
        "seed": args.seed,
    }
    overrides.update({k: v for k, v in flags.items() if v is not None})
    files = {"prompts": args.prompts, "harmful": args.harmful_prompts, "safe": args.safe_prompts}
    options = EvaluateOptions(
        args.dataset,
        args.source,
        {k: v for k, v in files.items() if v},
        args.reference,
        args.out,
        args.limit,
        args.samples,
        overrides,
        args.fresh,
        not args.no_win_rate,
        args.sequence,
        args.scaling,
        args.benchmark,
    )
    stats = RunStats()
    found = evaluate(args.models, options, Progress(stats), stats)
    print(json.dumps(found) if args.json else markdown(found))
    print(
        f"requests {stats.requests}   replayed {stats.replayed}   {args.out / 'evaluation.md'}",
        file=sys.stderr,
    )
    return 0


def fail(text: str) -> None:
    """One line on stderr."""
    print(f"mora-data: {' '.join(text.split())}", file=sys.stderr)
