"""The command line. `mora-data COMMAND --help` says what each one takes; exit codes:

    0 done   1 a stated failure, in one line   2 usage   130 interrupted, state kept
"""

from __future__ import annotations

import argparse
import gc
import json
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__
from .errors import LimitReached, MoraError, NothingSelected, SettingsError
from .types import STAGES

if TYPE_CHECKING:
    from .config import BuildSettings

LISTS = ("sources", "engines", "rewards", "selectors", "templates", "recipes")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = _parsed(argv)
    command: Callable[[argparse.Namespace], int] = args.command
    gc.set_threshold(20_000, 20, 50)  # requests leave no cycles behind; looking for them every 700 objects took 8 % of the CPU
    signal.signal(signal.SIGTERM, _stop)
    try:
        _reach_folders(args)
        return command(args)
    except MoraError as e:
        _fail(str(e))
        return 1
    except KeyboardInterrupt:
        again = shlex.join(["mora-data", *(a for a in argv if a != "--fresh")])
        print(f"\ninterrupted; what was answered is kept. To go on: {again}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0


def _stop(number: int, frame: object) -> None:
    """SIGTERM stops as ctrl-c does, also in the background of a script, where the shell has SIGINT ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.raise_signal(signal.SIGINT)


def _folder(text: str) -> Path | str:
    """A path; a URL stays as it is until it is reached for."""
    return text if "://" in text else Path(text)


def _reach_folders(args: argparse.Namespace) -> None:
    """Working copies in place of URLs: brought up to date to be read, left to the build to be written."""
    for name in ("run_dir", "folder", "out"):
        given = getattr(args, name, None)
        if isinstance(given, str):
            from .store.place import local_of, refreshed

            setattr(args, name, local_of(given) if name == "out" else refreshed(given))
            print(f"{given}: working copy {getattr(args, name)}", file=sys.stderr)


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments; `recipe run` takes key=value anywhere, which argparse alone does not."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if rest and args.command is _recipe_run and all("=" in r and not r.startswith("-") for r in rest):
        args.overrides += rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return args


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("mora-data", description="From a preference dataset to multi-objective preference pairs.")
    p.add_argument("--version", action="version", version=f"mora-data {__version__}")
    sub = p.add_subparsers(required=True, metavar="COMMAND")
    _add_build(sub)
    s = _add(sub, "status", _status, "how far a run is, what was dropped and why")
    s.add_argument("run_dir", type=_folder, metavar="RUN_DIR", help="the --out of a build")
    s.add_argument("--json", action="store_true", help="one JSON object on stdout")
    s = _add(sub, "report", _report_run, "whether fusion helped and what to doubt: report.json, report.html")
    s.add_argument("run_dir", nargs="?", type=_folder, metavar="RUN_DIR", help="the --out of a build")
    s.add_argument("--compare", nargs=2, metavar=("A", "B"), help="instead: what differs between two of RUN_DIR, RUN_DIR:ARM, "
                                                                  "dataset folder, ORG/NAME@TAG")
    s.add_argument("--out", type=Path, metavar="DIR", help="folder for report-compare.json and .html (default: here)")
    s.add_argument("--json", action="store_true", help="the JSON on stdout instead of the summary")
    s = _add(sub, "view", _view, "look at a run or a dataset in the browser, while it runs too")
    s.add_argument("folder", type=_folder, metavar="RUN_DIR", help="run folder, or a dataset folder alone")
    s.add_argument("--port", type=int, metavar="N", help="port of 127.0.0.1 (default: 7470, or a free one)")
    s.add_argument("--no-open", action="store_true", help="print the address, open no browser")
    s.add_argument("--with", dest="other", type=Path, metavar="OTHER", help="compare with this run or dataset folder, page by page")
    s.add_argument("--freeze", type=Path, metavar="DIR", help="instead: write pages into DIR that open from disk, and end")
    s.add_argument("--most", type=int, default=500, metavar="N", help="pairs with a page of their own in DIR (default: 500)")
    s.add_argument("--review", metavar="NAME", help="take NAME's blind votes on pairs; they go to RUN_DIR/reviews.jsonl")
    s = _add(sub, "weights", _weights, "weights of the dimensions that take the run's answers to target rewards")
    s.add_argument("run_dir", type=_folder, metavar="RUN_DIR", help="the --out of a build")
    s.add_argument("--target", action="append", required=True, metavar="DIM=VALUE", help="mean reward wanted, in [0, 1]; repeat it")
    s.add_argument("--arm", metavar="NAME", help="answers of this arm (default: fused)")
    s.add_argument("--json", action="store_true", help="one JSON object on stdout")
    s = _add(sub, "push", _push, "publish a run's dataset folder on the Hub, in one commit, with a tag")
    s.add_argument("run_dir", type=_folder, metavar="RUN_DIR", help="the --out of a build")
    s.add_argument("repo_id", metavar="REPO_ID", help="ORG/NAME on the Hub")
    _add_push_flags(s)
    s.add_argument("--dry-run", action="store_true", help="print the plan, send nothing")
    s = _add(sub, "export", _export, "write one config of a run's dataset somewhere else")
    s.add_argument("run_dir", type=_folder, metavar="RUN_DIR", help="the --out of a build")
    s.add_argument("--config", required=True, metavar="NAME", help="a config of the dataset, as preference")
    s.add_argument("--to", required=True, type=_folder, metavar="DIR", help="folder to write into, a path or a URL")
    s.add_argument("--format", choices=("parquet", "jsonl", "llamafactory", "mahdpo"), default="parquet", help="default: parquet")
    s = _add(sub, "diff", _diff, "what changed between two datasets, config by config")
    s.add_argument("before", metavar="A", help="dataset folder, run folder, or ORG/NAME@TAG on the Hub")
    s.add_argument("after", metavar="B", help="the same")
    s.add_argument("--json", action="store_true", help="one JSON object on stdout")
    s = _add(sub, "list", _list, "what there is to choose from")
    s.add_argument("what", choices=LISTS, metavar="WHAT", help=", ".join(LISTS))
    _add_recipe(sub)
    _add_evaluate(sub)
    return p


def _add(sub: Any, name: str, command: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = sub.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(command=command)
    return parser


def _add_build(sub: Any) -> None:
    b = _add(sub, "build", _build, "mine, fuse, sample, score, select, publish; run again to resume")
    b.add_argument("--source", required=True, metavar="NAME",
                   help="a builder (see `mora-data list sources`) or a path to a YAML file")
    where = b.add_mutually_exclusive_group()
    where.add_argument("--sample", action="store_true", help="use the rows bundled with the package; no network")
    where.add_argument("--data", nargs="+", action="extend", type=Path, default=[], metavar="PATH",
                       help="local files or a folder in the source's schema (json, jsonl, csv, parquet, .gz)")
    b.add_argument("--base-url", action="append", metavar="URL",
                   help="OpenAI-compatible endpoint, up to and including /v1; several times, or with commas: replicas of one model")
    b.add_argument("--model", metavar="ID", help="policy model; not needed when the endpoint serves one")
    b.add_argument("--engine", metavar="KIND", help="openai, batch, transformers, vllm, scripted (a simulator) or recorded "
                                                    "(the rows' own answers)")
    b.add_argument("--judge-base-url", action="append", metavar="URL", help="endpoint of the judge, if another; replicas likewise")
    b.add_argument("--judge-model", metavar="ID", help="judge model, if another")
    b.add_argument("--out", type=_folder, metavar="RUN_DIR",
                   help="run folder, a path or a URL as s3://bucket/run (default: runs/<name>)")
    b.add_argument("--limit", type=int, metavar="N", help="prompts to keep, in source order")
    b.add_argument("--seed", type=int, metavar="N", help="run seed")
    b.add_argument("--max-cost", type=float, metavar="MONEY", help="stop when the run folder's builds have spent this much")
    b.add_argument("--max-tokens", type=int, metavar="N", help="stop when they have used this many tokens, in and out")
    b.add_argument("--arms", metavar="ARMS", help="all, or names as identity,fused: compare ways to rewrite the same prompts")
    b.add_argument("--executor", choices=("local", "ray"), help="where partitions are worked on: here, or on a Ray cluster")
    b.add_argument("--until", choices=STAGES, default="publish", help="stop after this stage")
    b.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting, as rollout.n=8")
    b.add_argument("--push", metavar="REPO_ID", help="publish on the Hub when done")
    _add_push_flags(b)
    b.add_argument("--fetch-benchmarks", action="store_true",
                   help="download the benchmarks that prompts are decontaminated against; hashes of them are kept")
    b.add_argument("--allow-unreliable", action="store_true",
                   help="select also on dimensions whose scores are measured to be mostly noise; written down")
    b.add_argument("--dry-run", action="store_true", help="requests, tokens, money and time, and nothing else")
    b.add_argument("--probe", action="store_true", help="with --dry-run: ask the models for 16 prompts, and measure instead")
    b.add_argument("--gpus", type=_numbers, metavar="N[,N]", help="with --dry-run: hours and GPU-hours on so many GPUs")
    b.add_argument("--tokens-per-s", type=float, metavar="N",
                   help="with --gpus: tokens that one GPU gets done in a second, prompt and output together")
    b.add_argument("--prompts", type=_numbers, metavar="N[,N]", help="with --gpus: for so many prompts (default: those mined)")
    b.add_argument("--gpu-price", type=float, metavar="MONEY", help="with --gpus: of one GPU for an hour")
    b.add_argument("--fresh", action="store_true", help="start anew: forget what the run folder holds")
    b.add_argument("--json", action="store_true", help="one JSON object on stdout at the end")


def _numbers(text: str) -> list[int]:
    """Whole numbers of at least 1, by commas."""
    found = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give whole numbers of at least 1, by commas")
    return found


def _add_push_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("--tag", metavar="vX.Y.Z", help="version tag of the release")
    p.add_argument("--public", action="store_true", help="make the repository public (needs publish.unsafe to be decided)")
    p.add_argument("--split-unsafe", action="store_true",
                   help="two repositories: REPO_ID without unsafe text, REPO_ID-gated with all of it, behind terms when public")
    p.add_argument("--move-tag", action="store_true", help="let an existing tag point to this release")
    p.add_argument("--allow-simulated", action="store_true", help="push rows that the simulator made")


def _add_recipe(sub: Any) -> None:
    r = _add(sub, "recipe", _recipe_list, "training recipes: list, copy, run")
    what = r.add_subparsers(required=True, metavar="list|copy|run")
    _add(what, "list", _recipe_list, "recipes and their configs")
    c = _add(what, "copy", _recipe_copy, "copy a recipe with its configs, to change it")
    c.add_argument("name", metavar="NAME", help="a recipe (see `mora-data recipe list`)")
    c.add_argument("to", type=Path, metavar="DIR", help="folder to copy into")
    x = _add(what, "run", _recipe_run, "train; prints the exact command first")
    x.add_argument("name", metavar="NAME", help="a recipe (see `mora-data recipe list`)")
    x.add_argument("--dataset", required=True, metavar="PATH_OR_ID", help="dataset folder, or ORG/NAME on the Hub")
    x.add_argument("--revision", metavar="TAG", help="tag of the dataset on the Hub")
    x.add_argument("--config", default="smoke", metavar="NAME", help="a config of the recipe (default: smoke)")
    x.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the recipe, as learning_rate=1e-6")


def _add_evaluate(sub: Any) -> None:
    e = _add(sub, "evaluate", _evaluate, "compare models on held-out prompts; run again to resume")
    e.add_argument("models", nargs="+", metavar="NAME[@SEED]=WHERE",
                   help="WHERE: base URL (#MODEL where it serves several), answers.jsonl, or ENGINE:MODEL")
    e.add_argument("--dataset", type=Path, metavar="DIR", help="run or dataset folder: its test prompts, plain and fused apart")
    e.add_argument("--prompts", type=Path, metavar="FILE", help="further prompts (jsonl, json, csv, parquet)")
    e.add_argument("--harmful-prompts", type=Path, metavar="FILE", help="prompts that ask for harm")
    e.add_argument("--safe-prompts", type=Path, metavar="FILE", help="prompts that only look unsafe, for over-refusal")
    e.add_argument("--benchmark", action="append", default=[], metavar="NAME[=FILE]",
                   help="alpaca_eval, advbench, xstest (its safe half) or truthfulqa, of a file or the Hub; may be repeated")
    e.add_argument("--reference", metavar="NAME", help="what the others are compared with (default: the first model)")
    e.add_argument("--source", metavar="NAME", help="builder whose dimensions, rewards and sampling apply (default: the run's own)")
    e.add_argument("--judge-base-url", metavar="URL", help="endpoint of the held-out judge")
    e.add_argument("--judge-model", metavar="ID", help="the held-out judge")
    e.add_argument("--sequence", nargs="+", action="append", default=[], metavar="NAME[=DIM]",
                   help="models in the order of training; repeated: one per order")
    e.add_argument("--scaling", nargs="+", action="append", default=[], metavar="NAME=PAIRS",
                   help="models by the number of pairs they saw, behind a name of the curve where there are several")
    e.add_argument("--samples", type=int, default=1, metavar="N", help="answers per prompt")
    e.add_argument("--limit", type=int, metavar="N", help="prompts per set")
    e.add_argument("--seed", type=int, metavar="N", help="seed of sampling and of the intervals")
    e.add_argument("--out", type=Path, default=Path("runs/evaluate"), metavar="DIR", help="default: runs/evaluate")
    e.add_argument("--no-win-rate", action="store_true", help="leave out the pairwise comparisons")
    e.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting, as policy.temperature=0.6")
    e.add_argument("--fresh", action="store_true", help="forget the answers that the folder holds")
    e.add_argument("--json", action="store_true", help="one JSON object on stdout instead of the table")


def _build(args: argparse.Namespace) -> int:
    from .engines.engine import Usage
    from .progress import Progress

    if args.probe and not args.dry_run:
        raise SettingsError("--probe is a part of --dry-run: give both, or none")
    _check_capacity(args)
    settings = _settings(args)
    if args.fetch_benchmarks:
        from .sources.benchmarks import cache_dir, fetch

        for name, what in fetch(cache_dir()).items():
            print(f"benchmark {name}: {what}", file=sys.stderr)
    if args.dry_run:
        return _dry_run(args, settings)
    from .config import Options
    from .pipeline import Builder

    usage = Usage()
    progress = Progress(usage)
    builder = Builder(settings, Options(args.sample, tuple(args.data), args.out, args.until, args.fresh), progress, usage)
    failure: MoraError | None = None
    try:
        builder.run()
    except (NothingSelected, LimitReached) as e:
        failure = e
    if failure is None and args.push and args.until == "publish":
        _push_run(args, builder.out, args.push)
    _report(args, builder.summary)
    if failure is not None:
        _fail(str(failure))
        return 1
    return 0


def _settings(args: argparse.Namespace) -> BuildSettings:
    from .config import load_settings, parse_override

    overrides = dict(parse_override(text) for text in args.set)
    flags = {**_urls("policy", args.base_url), **_urls("judge", args.judge_base_url), "policy.model": args.model,
             "policy.engine": args.engine, "judge.model": args.judge_model, "mine.limit": args.limit, "seed": args.seed,
             "executor": args.executor, "limits.max_cost": args.max_cost, "limits.max_tokens": args.max_tokens,
             "fuse.arms": None if args.arms is None else [a.strip() for a in args.arms.split(",") if a.strip()],
             "select.allow_unreliable": True if args.allow_unreliable else None}
    overrides.update({k: v for k, v in flags.items() if v is not None})
    return load_settings(args.source, overrides)


def _urls(role: str, given: Sequence[str] | None) -> dict[str, object]:
    """A role's base URL and its replicas, from flags that may hold several."""
    urls = [url.strip() for text in given or () for url in text.split(",") if url.strip()]
    return {f"{role}.base_url": urls[0], f"{role}.replicas": urls[1:]} if urls else {}


def _check_capacity(args: argparse.Namespace) -> None:
    """--gpus and what belongs to it."""
    for flag, value in (("--tokens-per-s", args.tokens_per_s), ("--prompts", args.prompts), ("--gpu-price", args.gpu_price)):
        if value is not None and args.gpus is None:
            raise SettingsError(f"{flag} belongs to --gpus: give both, or none")
    if args.gpus is not None and not args.dry_run:
        raise SettingsError("--gpus is a part of --dry-run, it starts nothing: give both, or none")
    if args.gpus is not None and args.tokens_per_s is None:
        raise SettingsError("--gpus needs --tokens-per-s: what one GPU gets done in a second, as its server's log says")
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

        rows = capacity(found, args.prompts or [found["prompts"]], args.gpus, args.tokens_per_s, args.gpu_price)
        if args.json:
            found["capacity"] = [asdict(r) for r in rows]
    measured = dict.fromkeys(found.pop("from_probe", []), "   from the probe") if not args.json else {}
    print(json.dumps(found) if args.json else "\n".join(f"{k:<20} {v}{measured.get(k, '')}" for k, v in found.items()))
    if rows and not args.json:
        print(f"\n{table(rows, args.tokens_per_s)}")
    return 0


def _report(args: argparse.Namespace, summary: Any) -> None:
    from dataclasses import asdict

    if args.json:
        print(json.dumps(asdict(summary)))
        return
    from .show import table

    print(table(summary.counts))
    cost = "" if summary.cost is None else f"   cost {summary.cost:.4g}"
    print(f"pairs {summary.pairs}   requests {summary.requests}   replayed {summary.replayed}   tokens {summary.tokens['in']} in, "
          f"{summary.tokens['out']} out{cost}   errors {summary.errors}   {summary.seconds:.1f} s")
    for url, why in summary.replicas_out.items():
        print(f"replica {url} was taken out for a while ({why})")
    if summary.dataset_dir:
        print(f"dataset {summary.dataset_dir}")
        if (Path(summary.run_dir) / "report.html").exists():
            print(f"report {Path(summary.run_dir) / 'report.html'}")


def _status(args: argparse.Namespace) -> int:
    from .show import status, table

    found = status(args.run_dir)
    if args.json:
        print(json.dumps(found))
    else:
        print(f"{args.run_dir}: {found['status']}, {found['prompts_done']} of {found['prompts']} prompts done, "
              f"{found['partitions_sealed']} of {found['partitions']} partitions sealed, {found['owed']} owed, "
              f"{found['errors']} errors")
        print(table(found["counts"]))
    return 0


def _report_run(args: argparse.Namespace) -> int:
    from .report import report_of, write_report
    from .show import report_lines
    from .store.place import push_back

    if args.compare is not None:
        return _report_compare(args)
    if args.run_dir is None or args.out is not None:
        raise SettingsError("give RUN_DIR (its report is written into it), or --compare A B with or without --out DIR")
    report = report_of(args.run_dir)
    written = write_report(args.run_dir, report)
    push_back(args.run_dir)
    print(json.dumps(report) if args.json else "\n".join([*report_lines(report), *map(str, written)]))
    return 0


def _report_compare(args: argparse.Namespace) -> int:
    from .report.compare import compared, write_comparison
    from .report.sides import side_of
    from .show import compare_lines

    if args.run_dir is not None:
        raise SettingsError(f"report --compare takes two folders and no RUN_DIR ({args.run_dir})")
    tree = compared(side_of(args.compare[0]), side_of(args.compare[1]))
    written = write_comparison(args.out or Path(), tree)
    print(json.dumps(tree) if args.json else "\n".join([*compare_lines(tree), *map(str, written)]))
    return 0


def _weights(args: argparse.Namespace) -> int:
    from .config import parse_override
    from .errors import SettingsError
    from .report.target import lines, weights_of

    target = dict(parse_override(text) for text in args.target)
    for d, v in target.items():
        if isinstance(v, bool) or not isinstance(v, (int, float)):
            raise SettingsError(f"--target {d}={v}: the value must be a number in [0, 1]")
    found = weights_of(args.run_dir, {d: float(v) for d, v in target.items() if isinstance(v, (int, float))}, args.arm)
    print(json.dumps(found) if args.json else "\n".join(lines(found)))
    return 0


def _view(args: argparse.Namespace) -> int:
    if args.freeze is not None:
        from .view.freeze import freeze

        done = freeze(args.folder, args.freeze, args.most)
        print(f"{done['pages']:,} pages, {done['pairs']:,} of {done['of']:,} pairs\n{args.freeze / 'index.html'}")
        return 0
    from .view import serve

    serve(args.folder, args.port, not args.no_open, args.review, args.other)
    return 0


def _push(args: argparse.Namespace) -> int:
    return _push_run(args, args.run_dir, args.repo_id)


def _push_run(args: argparse.Namespace, run_dir: Path, repo_id: str) -> int:
    if not args.split_unsafe:
        return _push_once(args, run_dir, repo_id, None)
    return _push_once(args, run_dir, f"{repo_id}-gated", "gate") or _push_once(args, run_dir, repo_id, "drop")


def _push_once(args: argparse.Namespace, run_dir: Path, repo_id: str, unsafe: str | None) -> int:
    from .hub.push import push
    from .show import run_manifest

    result = push(run_dir / "dataset", repo_id, args.tag, dry_run=args.dry_run, public=args.public,
                  allow_simulated=args.allow_simulated, move_tag=args.move_tag, manifest=run_manifest(run_dir), unsafe=unsafe)
    where = f"{result.repo_id}{'@' + result.tag if result.tag else ''}"
    print(f"{result.status}: {where}, {len(result.added)} files to add, {len(result.deleted)} to delete, {result.n_bytes} bytes, "
          f"{'private' if result.private else 'public'}{'; ' + result.note if result.note else ''}", file=sys.stderr)
    if args.dry_run:
        print("\n".join([*(f"add {name}" for name in result.added), *(f"delete {name}" for name in result.deleted)]))
    return 0


def _export(args: argparse.Namespace) -> int:
    from .hub.export import export_config
    from .store.place import destination

    with destination(str(args.to)) as to:
        for path in export_config(args.run_dir / "dataset", args.config, to, args.format):
            print(f"{args.to}/{path.relative_to(to)}")
    return 0


def _diff(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from .hub.diff import compare, lines

    deltas = compare(args.before, args.after)
    print(json.dumps({name: asdict(d) for name, d in deltas.items()}) if args.json else "\n".join(lines(deltas)))
    return 0


def _list(args: argparse.Namespace) -> int:
    from .show import listing

    print("\n".join(listing(args.what)))
    return 0


def _recipe_list(args: argparse.Namespace) -> int:
    from .show import listing

    print("\n".join(listing("recipes")))
    return 0


def _recipe_copy(args: argparse.Namespace) -> int:
    from .recipes import copy_recipe

    for path in copy_recipe(args.name, args.to):
        print(path)
    return 0


def _recipe_run(args: argparse.Namespace) -> int:
    from .recipes import run_recipe

    return run_recipe(args.name, args.dataset, args.revision, args.config, args.overrides)


def _evaluate(args: argparse.Namespace) -> int:
    from .config import parse_override
    from .engines.engine import Usage
    from .evaluate import Options, evaluate
    from .evaluate.tables import markdown
    from .progress import Progress

    overrides = dict(parse_override(text) for text in args.set)
    flags = {"heldout_judge.base_url": args.judge_base_url, "heldout_judge.model": args.judge_model, "seed": args.seed}
    overrides.update({k: v for k, v in flags.items() if v is not None})
    files = {"prompts": args.prompts, "harmful": args.harmful_prompts, "safe": args.safe_prompts}
    options = Options(args.dataset, args.source, {k: v for k, v in files.items() if v}, args.reference, args.out, args.limit,
                      args.samples, overrides, args.fresh, not args.no_win_rate, args.sequence, args.scaling, args.benchmark)
    usage = Usage()
    found = evaluate(args.models, options, Progress(usage), usage)
    print(json.dumps(found) if args.json else markdown(found))
    print(f"requests {usage.requests}   replayed {usage.replayed}   {args.out / 'evaluation.md'}", file=sys.stderr)
    return 0


def _fail(text: str) -> None:
    print(f"mora-data: {' '.join(text.split())}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
