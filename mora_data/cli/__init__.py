"""The command line. `mora-data COMMAND --help` says what each one takes; exit codes:

0 done   1 a stated failure, in one line   2 usage   130 interrupted, state kept
"""

from __future__ import annotations

import argparse
import gc
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import MoraError
from ..types import STAGES
from . import commands

LISTS = ("sources", "engines", "rewards", "selectors", "templates", "recipes")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = _parsed(argv)
    command: Callable[[argparse.Namespace], int] = args.command
    # requests leave no cycles behind; looking for them every 700 objects took 8 % of the CPU
    gc.set_threshold(20_000, 20, 50)
    signal.signal(signal.SIGTERM, _stop)
    try:
        _reach_folders(args)
        return command(args)
    except MoraError as e:
        commands.fail(str(e))
        return 1
    except KeyboardInterrupt:
        again = shlex.join(["mora-data", *(a for a in argv if a != "--fresh")])
        print(f"\ninterrupted; what was answered is kept. To go on: {again}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0


def _stop(number: int, frame: object) -> None:
    """SIGTERM stops as ctrl-c does, also in the background of a script, where the shell has SIGINT
    ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.raise_signal(signal.SIGINT)


def _folder(text: str) -> Path | str:
    """A path; a URL stays as it is until it is reached for."""
    return text if "://" in text else Path(text)


def _reach_folders(args: argparse.Namespace) -> None:
    """Working copies in place of URLs: brought up to date to be read, left to the build to be
    written."""
    for name in ("run_dir", "folder", "out"):
        given = getattr(args, name, None)
        if isinstance(given, str):
            from ..run.place import local_of, refreshed

            setattr(args, name, local_of(given) if name == "out" else refreshed(given))
            print(f"{given}: working copy {getattr(args, name)}", file=sys.stderr)


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments; `recipe run` takes key=value anywhere, which argparse alone does not."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if (
        rest
        and args.command is commands.recipe_run
        and all("=" in r and not r.startswith("-") for r in rest)
    ):
        args.overrides += rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return args


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        "mora-data", description="From a preference dataset to multi-objective preference pairs."
    )
    p.add_argument("--version", action="version", version=f"mora-data {__version__}")
    sub = p.add_subparsers(required=True, metavar="COMMAND")
    _add_build(sub)
    s = _add(sub, "status", commands.status, "how far a run is, what was dropped and why")
    s.add_argument("run_dir", type=_folder, metavar="RUN_DIR", help="the --out of a build")
    s.add_argument("--json", action="store_true", help="one JSON object on stdout")
    s = _add(
        sub,
        "report",
        commands.report,
        "whether fusion helped and what to doubt: report.json, report.html",
    )
    s.add_argument(
        "run_dir", nargs="?", type=_folder, metavar="RUN_DIR", help="the --out of a build"
    )
    s.add_argument(
        "--compare",
        nargs=2,
        metavar=("A", "B"),
        help=(
            "instead: what differs between two of RUN_DIR, RUN_DIR:ARM, "
            "dataset folder, ORG/NAME@TAG"
        ),
    )
    s.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for report-compare.json and .html (default: here)",
    )
    s.add_argument("--json", action="store_true", help="the JSON on stdout instead of the summary")
    s = _add(
        sub, "view", commands.view, "look at a run or a dataset in the browser, while it runs too"
    )
    s.add_argument(
        "folder", type=_folder, metavar="RUN_DIR", help="run folder, or a dataset folder alone"
    )
    s.add_argument(
        "--port", type=int, metavar="N", help="port of 127.0.0.1 (default: 7470, or a free one)"
    )
    s.add_argument("--no-open", action="store_true", help="print the address, open no browser")
    s.add_argument(
        "--with",
        dest="other",
        type=Path,
        metavar="OTHER",
        help="compare with this run or dataset folder, page by page",
    )
    s.add_argument(
        "--freeze",
        type=Path,
        metavar="DIR",
        help="instead: write pages into DIR that open from disk, and end",
    )
    s.add_argument(
        "--most",
        type=int,
        default=500,
        metavar="N",
        help="pairs with a page of their own in DIR (default: 500)",
    )
    s.add_argument(
        "--review",
        metavar="NAME",
        help="take NAME's blind votes on pairs; they go to RUN_DIR/reviews.jsonl",
    )
    s = _add(
        sub,
        "weights",
        commands.weights,
        "weights of the dimensions that take the run's answers to target rewards",
    )
    s.add_argument("run_dir", type=_folder, metavar="RUN_DIR", help="the --out of a build")
    s.add_argument(
        "--target",
        action="append",
        required=True,
        metavar="DIM=VALUE",
        help="mean reward wanted, in [0, 1]; repeat it",
    )
    s.add_argument("--arm", metavar="NAME", help="answers of this arm (default: fused)")
    s.add_argument("--json", action="store_true", help="one JSON object on stdout")
    s = _add(
        sub,
        "push",
        commands.push,
        "publish a run's dataset folder on the Hub, in one commit, with a tag",
    )
    s.add_argument("run_dir", type=_folder, metavar="RUN_DIR", help="the --out of a build")
    s.add_argument("repo_id", metavar="REPO_ID", help="ORG/NAME on the Hub")
    _add_push_flags(s)
    s.add_argument("--dry-run", action="store_true", help="print the plan, send nothing")
    s = _add(sub, "export", commands.export, "write one config of a run's dataset somewhere else")
    s.add_argument("run_dir", type=_folder, metavar="RUN_DIR", help="the --out of a build")
    s.add_argument(
        "--config", required=True, metavar="NAME", help="a config of the dataset, as preference"
    )
    s.add_argument(
        "--to",
        required=True,
        type=_folder,
        metavar="DIR",
        help="folder to write into, a path or a URL",
    )
    s.add_argument(
        "--format",
        choices=("parquet", "jsonl", "llamafactory", "mahdpo"),
        default="parquet",
        help="default: parquet",
    )
    s = _add(sub, "diff", commands.diff, "what changed between two datasets, config by config")
    s.add_argument(
        "before", metavar="A", help="dataset folder, run folder, or ORG/NAME@TAG on the Hub"
    )
    s.add_argument("after", metavar="B", help="the same")
    s.add_argument("--json", action="store_true", help="one JSON object on stdout")
    s = _add(sub, "list", commands.list_names, "what there is to choose from")
    s.add_argument("what", choices=LISTS, metavar="WHAT", help=", ".join(LISTS))
    _add_recipe(sub)
    _add_evaluate(sub)
    return p


def _add(
    sub: Any, name: str, command: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = sub.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + "."
    )
    parser.set_defaults(command=command)
    return parser


def _add_build(sub: Any) -> None:
    b = _add(
        sub,
        "build",
        commands.build,
        "mine, fuse, sample, score, select, publish; run again to resume",
    )
    b.add_argument(
        "--source",
        required=True,
        metavar="NAME",
        help="a builder (see `mora-data list sources`) or a path to a YAML file",
    )
    where = b.add_mutually_exclusive_group()
    where.add_argument(
        "--sample", action="store_true", help="use the rows bundled with the package; no network"
    )
    where.add_argument(
        "--data",
        nargs="+",
        action="extend",
        type=Path,
        default=[],
        metavar="PATH",
        help="local files or a folder in the source's schema (json, jsonl, csv, parquet, .gz)",
    )
    b.add_argument(
        "--base-url",
        action="append",
        metavar="URL",
        help=(
            "OpenAI-compatible endpoint, up to and including /v1; several times, or with commas:"
            " replicas of one model"
        ),
    )
    b.add_argument(
        "--model", metavar="ID", help="policy model; not needed when the endpoint serves one"
    )
    b.add_argument(
        "--engine",
        metavar="KIND",
        help=(
            "openai, batch, transformers, vllm, scripted (a simulator) or recorded "
            "(the rows' own answers)"
        ),
    )
    b.add_argument(
        "--judge-base-url",
        action="append",
        metavar="URL",
        help="endpoint of the judge, if another; replicas likewise",
    )
    b.add_argument("--judge-model", metavar="ID", help="judge model, if another")
    b.add_argument(
        "--out",
        type=_folder,
        metavar="RUN_DIR",
        help="run folder, a path or a URL as s3://bucket/run (default: runs/<name>)",
    )
    b.add_argument("--limit", type=int, metavar="N", help="prompts to keep, in source order")
    b.add_argument("--seed", type=int, metavar="N", help="run seed")
    b.add_argument(
        "--max-cost",
        type=float,
        metavar="MONEY",
        help="stop when the run folder's builds have spent this much",
    )
    b.add_argument(
        "--max-tokens",
        type=int,
        metavar="N",
        help="stop when they have used this many tokens, in and out",
    )
    b.add_argument(
        "--arms",
        metavar="ARMS",
        help="all, or names as identity,fused: compare ways to rewrite the same prompts",
    )
    b.add_argument(
        "--executor",
        choices=("local", "ray"),
        help="where partitions are worked on: here, or on a Ray cluster",
    )
    b.add_argument("--until", choices=STAGES, default="publish", help="stop after this stage")
    b.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any setting, as rollout.n=8",
    )
    b.add_argument("--push", metavar="REPO_ID", help="publish on the Hub when done")
    _add_push_flags(b)
    b.add_argument(
        "--fetch-benchmarks",
        action="store_true",
        help=(
            "download the benchmarks that prompts are decontaminated against; hashes of them are"
            " kept"
        ),
    )
    b.add_argument(
        "--allow-unreliable",
        action="store_true",
        help="select also on dimensions whose scores are measured to be mostly noise; written down",
    )
    b.add_argument(
        "--dry-run", action="store_true", help="requests, tokens, money and time, and nothing else"
    )
    b.add_argument(
        "--probe",
        action="store_true",
        help="with --dry-run: ask the models for 16 prompts, and measure instead",
    )
    b.add_argument(
        "--gpus",
        type=_numbers,
        metavar="N[,N]",
        help="with --dry-run: hours and GPU-hours on so many GPUs",
    )
    b.add_argument(
        "--tokens-per-s",
        type=float,
        metavar="N",
        help="with --gpus: tokens that one GPU gets done in a second, prompt and output together",
    )
    b.add_argument(
        "--prompts",
        type=_numbers,
        metavar="N[,N]",
        help="with --gpus: for so many prompts (default: those mined)",
    )
    b.add_argument(
        "--gpu-price", type=float, metavar="MONEY", help="with --gpus: of one GPU for an hour"
    )
    b.add_argument(
        "--fresh", action="store_true", help="start anew: forget what the run folder holds"
    )
    b.add_argument("--json", action="store_true", help="one JSON object on stdout at the end")


def _numbers(text: str) -> list[int]:
    """Whole numbers of at least 1, by commas."""
    found = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give whole numbers of at least 1, by commas")
    return found


def _add_push_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("--tag", metavar="vX.Y.Z", help="version tag of the release")
    p.add_argument(
        "--public",
        action="store_true",
        help="make the repository public (needs publish.unsafe to be decided)",
    )
    p.add_argument(
        "--split-unsafe",
        action="store_true",
        help=(
            "two repositories: REPO_ID without unsafe text, REPO_ID-gated with all of it, behind"
            " terms when public"
        ),
    )
    p.add_argument(
        "--move-tag", action="store_true", help="let an existing tag point to this release"
    )
    p.add_argument(
        "--allow-simulated", action="store_true", help="push rows that the simulator made"
    )


def _add_recipe(sub: Any) -> None:
    r = _add(sub, "recipe", commands.recipe_list, "training recipes: list, copy, run")
    what = r.add_subparsers(required=True, metavar="list|copy|run")
    _add(what, "list", commands.recipe_list, "recipes and their configs")
    c = _add(what, "copy", commands.recipe_copy, "copy a recipe with its configs, to change it")
    c.add_argument("name", metavar="NAME", help="a recipe (see `mora-data recipe list`)")
    c.add_argument("to", type=Path, metavar="DIR", help="folder to copy into")
    x = _add(what, "run", commands.recipe_run, "train; prints the exact command first")
    x.add_argument("name", metavar="NAME", help="a recipe (see `mora-data recipe list`)")
    x.add_argument(
        "--dataset",
        required=True,
        metavar="PATH_OR_ID",
        help="dataset folder, or ORG/NAME on the Hub",
    )
    x.add_argument("--revision", metavar="TAG", help="tag of the dataset on the Hub")
    x.add_argument(
        "--config", default="smoke", metavar="NAME", help="a config of the recipe (default: smoke)"
    )
    x.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="settings of the recipe, as learning_rate=1e-6",
    )


def _add_evaluate(sub: Any) -> None:
    e = _add(
        sub,
        "evaluate",
        commands.evaluate_models,
        "compare models on held-out prompts; run again to resume",
    )
    e.add_argument(
        "models",
        nargs="+",
        metavar="NAME[@SEED]=WHERE",
        help="WHERE: base URL (#MODEL where it serves several), answers.jsonl, or ENGINE:MODEL",
    )
    e.add_argument(
        "--dataset",
        type=Path,
        metavar="DIR",
        help="run or dataset folder: its test prompts, plain and fused apart",
    )
    e.add_argument(
        "--prompts", type=Path, metavar="FILE", help="further prompts (jsonl, json, csv, parquet)"
    )
    e.add_argument("--harmful-prompts", type=Path, metavar="FILE", help="prompts that ask for harm")
    e.add_argument(
        "--safe-prompts",
        type=Path,
        metavar="FILE",
        help="prompts that only look unsafe, for over-refusal",
    )
    e.add_argument(
        "--benchmark",
        action="append",
        default=[],
        metavar="NAME[=FILE]",
        help=(
            "alpaca_eval, advbench, xstest (its safe half) or truthfulqa, of a file or the Hub; may"
            " be repeated"
        ),
    )
    e.add_argument(
        "--reference",
        metavar="NAME",
        help="what the others are compared with (default: the first model)",
    )
    e.add_argument(
        "--source",
        metavar="NAME",
        help="builder whose dimensions, rewards and sampling apply (default: the run's own)",
    )
    e.add_argument("--judge-base-url", metavar="URL", help="endpoint of the held-out judge")
    e.add_argument("--judge-model", metavar="ID", help="the held-out judge")
    e.add_argument(
        "--sequence",
        nargs="+",
        action="append",
        default=[],
        metavar="NAME[=DIM]",
        help="models in the order of training; repeated: one per order",
    )
    e.add_argument(
        "--scaling",
        nargs="+",
        action="append",
        default=[],
        metavar="NAME=PAIRS",
        help=(
            "models by the number of pairs they saw, behind a name of the curve where there are"
            " several"
        ),
    )
    e.add_argument("--samples", type=int, default=1, metavar="N", help="answers per prompt")
    e.add_argument("--limit", type=int, metavar="N", help="prompts per set")
    e.add_argument("--seed", type=int, metavar="N", help="seed of sampling and of the intervals")
    e.add_argument(
        "--out",
        type=Path,
        default=Path("runs/evaluate"),
        metavar="DIR",
        help="default: runs/evaluate",
    )
    e.add_argument("--no-win-rate", action="store_true", help="leave out the pairwise comparisons")
    e.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any setting, as policy.temperature=0.6",
    )
    e.add_argument("--fresh", action="store_true", help="forget the answers that the folder holds")
    e.add_argument(
        "--json", action="store_true", help="one JSON object on stdout instead of the table"
    )


if __name__ == "__main__":
    sys.exit(main())
