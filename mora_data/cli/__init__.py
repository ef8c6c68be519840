"""The command line. `mora-data COMMAND --help` says what each one takes; exit codes:

0 done   1 a stated failure, in one line   2 usage   130 interrupted, state kept
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import shlex
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO, cast

from .. import __version__
from ..errors import MoraError
from ..secrets import redacted, refuse_password, visible
from ..types import STAGES
from . import commands

Command = Callable[[argparse.Namespace], int | None]  # gives the exit code where it is not 0
# of dataset/export.py, which is not imported for --help
EXPORTS = (
    *("parquet", "jsonl", "csv", "binarized", "llamafactory", "llamafactory-alpaca"),
    *("openrlhf", "axolotl", "openai", "mahdpo"),
)
LISTS = ("sources", "layouts", "engines", "rewards", "selectors", "templates", "recipes")

EXAMPLES: dict[str, list[str]] = {  # of each command, shown by its --help
    "": [
        "mora-data preview --source pku-saferlhf --sample",
        "mora-data build --source pku-saferlhf --sample --out runs/demo",
        "mora-data view runs/demo",
    ],
    "build": [
        "mora-data build --source pku-saferlhf --sample --out runs/demo",
        "mora-data build --source build.yaml --data prompts.jsonl --limit 200 --dry-run",
        "mora-data build --source jsonl --data prompts.jsonl --base-url http://127.0.0.1:8000/v1",
    ],
    "preview": [
        "mora-data preview --source pku-saferlhf --sample",
        "mora-data preview --source build.yaml --data prompts.jsonl --limit 3 --html",
        "mora-data preview --source build.yaml --data prompts.jsonl --until fuse",
    ],
    "audit": ["mora-data audit --source pku-saferlhf --judge-base-url http://127.0.0.1:8001/v1"],
    "check": ["mora-data check --base-url http://127.0.0.1:8000/v1"],
    "resume": ["mora-data resume runs/demo"],
    "status": ["mora-data status runs/demo"],
    "report": ["mora-data report runs/demo", "mora-data report --compare runs/a org/pairs@v1.0.0"],
    "view": ["mora-data view runs/demo", "mora-data view runs/demo --freeze pages"],
    "weights": ["mora-data weights runs/demo --target helpful=0.8 --target harmless=0.9"],
    "push": ["mora-data push runs/demo org/pairs --tag v1.0.0 --dry-run"],
    "export": ["mora-data export runs/demo --config preference --to out --format jsonl"],
    "diff": ["mora-data diff org/pairs@v1.0.0 runs/demo"],
    "verify": ["mora-data verify runs/demo", "mora-data verify org/pairs@v1.0.0"],
    "list": ["mora-data list sources"],
    "settings": ["mora-data settings fuse", "mora-data settings judge.temperature"],
    "init": ["mora-data init my-build.yaml"],
    "template": ["mora-data template copy judge/helpful.j2 my"],
    "template copy": ["mora-data template copy judge/helpful.j2 my"],
    "source": ["mora-data source look my-rows.csv", "mora-data source copy pku-saferlhf my"],
    "source look": ["mora-data source look my-rows.csv"],
    "source copy": ["mora-data source copy pku-saferlhf my"],
    "recipe": ["mora-data recipe list", "mora-data recipe run dpo --dataset runs/demo"],
    "recipe list": ["mora-data recipe list"],
    "recipe copy": ["mora-data recipe copy dpo my"],
    "recipe run": ["mora-data recipe run dpo --dataset runs/demo max_steps=10"],
    "evaluate": [
        "mora-data evaluate sft=http://127.0.0.1:8000/v1 dpo=http://127.0.0.1:8001/v1"
        " --dataset runs/demo --judge-base-url http://127.0.0.1:8002/v1"
    ],
    "completion": ["source <(mora-data completion bash)"],
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code. Without `argv` the process is the command's own."""
    out, err = (cast(TextIO, _Terminal(s)) for s in (sys.stdout, sys.stderr))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        if argv is not None:
            return _run(list(argv), False)
        try:
            code = _run(sys.argv[1:], True)
            gc.freeze()  # nothing is looked through again while Python ends
            return code
        except Exception:  # printed here, since Python itself would print the secrets in it, too
            import traceback

            traceback.print_exc()
            return 1


class _Terminal:
    """stdout or stderr. Names of files, columns and models come from elsewhere: secrets are hidden,
    control characters are shown by their code, but for ends of lines and a return at the start."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        start = "\r" if text.startswith("\r") else ""
        self._stream.write(start + visible(redacted(text.removeprefix("\r"))))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _run(argv: list[str], own: bool) -> int:
    args = _parsed(argv)
    command: Command = args.command
    again = shlex.join(["mora-data", *(a for a in argv if a != "--fresh")])
    interrupted = f"\ninterrupted; what was answered is kept. To go on: {again}\n"
    if own:
        _end_at_second_interrupt(visible(redacted(interrupted)))
    # imports make half a million objects that stay, and requests leave no cycles behind, but 30
    # objects (5 kB) for a fault that is tried again: looking for them every 700 objects took 8 %
    gc.set_threshold(100_000, 20, 50)
    signal.signal(signal.SIGTERM, _stop)
    try:
        _reach_folders(args)
        return command(args) or 0
    except MoraError as e:
        commands.fail(str(e))
        return 1
    except MemoryError:
        commands.fail(
            "there is not enough memory for this: free some, or give it less to do at once"
        )
        return 1
    except KeyboardInterrupt:
        if own:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is ending already
        print(interrupted, end="", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0


def _end_at_second_interrupt(line: str) -> None:
    """A second ctrl-c ends the process at once, whatever it waits for: the logs hold what was
    answered. A thread does it, as an exception from a handler would land anywhere."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def watch() -> None:
        seen = 0
        while seen < 2:
            seen += os.read(reader, 64).count(signal.SIGINT)
        os.write(2, line.encode("utf-8", "backslashreplace"))
        os._exit(130)

    threading.Thread(target=watch, name="interrupts", daemon=True).start()
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)


def _stop(number: int, frame: object) -> None:
    """SIGTERM stops as ctrl-c does, also in the background of a script, where the shell has SIGINT
    ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.raise_signal(signal.SIGINT)


class _DataOfSource(argparse.Action):
    """Collects (number of the --source before it, path)."""

    def __call__(
        self, parser: object, args: argparse.Namespace, values: Any, option: object = None
    ) -> None:
        number = max(len(getattr(args, "source", None) or ()), 1) - 1
        setattr(args, self.dest, [*getattr(args, self.dest), *((number, v) for v in values)])


def _folder(text: str) -> Path | str:
    """A path; a URL stays as it is until it is reached for."""
    return text if "://" in text else Path(_word(text))


def _reach_folders(args: argparse.Namespace) -> None:
    """Working copies in place of URLs: brought up to date to be read, left to the build to be
    written."""
    for name in ("run_dir", "folder", "out", "to"):
        given = getattr(args, name, None)
        if isinstance(given, str):
            refuse_password(given, "the folder")
        if isinstance(given, str) and name != "to":
            from ..run.remote import current_copy, local_path

            setattr(args, name, local_path(given) if name == "out" else current_copy(given))
            print(f"{given}: working copy {getattr(args, name)}", file=sys.stderr)
    from ..run.files import check_ordinary

    ours = ("manifest.json", "README.md", "dataset", "parts")  # --out / would walk the disk
    for name in ("run_dir", "folder", "out", "dataset", "compare", "before", "after"):
        found = getattr(args, name, None)
        for path in found if isinstance(found, list) else [found]:
            if path and any((Path(path) / sign).exists() for sign in ours):
                check_ordinary(Path(path))


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments; `recipe run` takes key=value anywhere, which argparse alone does not."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    settings = all("=" in r and not r.startswith("-") for r in rest)
    if rest and args.command is commands.run_recipe_on and settings:
        args.overrides += rest
    elif rest:
        own: argparse.ArgumentParser = args.parser
        word = rest[0].partition("=")[0]
        flags = [f for f in own._option_string_actions if f.startswith("--")]
        hint = f": {_nearest(word, flags)}" if word.startswith("-") else ""
        own.error(f"unknown argument {rest[0]!r}{hint if 'did you mean' in hint else ''}")
    _check_needs(args.parser, args)
    return args


class _Parser(argparse.ArgumentParser):
    """A parser whose faults are one line that names the nearest command or flag."""

    def error(self, message: str) -> NoReturn:
        message = message.replace("argument COMMAND: ", "").replace("argument WHAT: ", "")
        self.exit(2, f"{self.prog}: {' '.join(message.split())} (see {self.prog} --help)\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            text = f"unknown {value!r}: {_nearest(str(value), map(str, action.choices))}"
            raise argparse.ArgumentError(action, text)


def _nearest(word: str, known: Iterable[str]) -> str:
    from ..settings import nearest  # pydantic comes with it

    return nearest(word, known)


def _parser() -> argparse.ArgumentParser:
    p = _Parser(
        "mora-data",
        description="From a preference dataset to multi-objective preference pairs.",
        epilog=f"examples:\n  {chr(10).join(EXAMPLES['']).replace(chr(10), chr(10) + '  ')}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--version", action="version", version=f"mora-data {__version__}")
    sub = p.add_subparsers(required=True, metavar="COMMAND")
    _add_build(sub)
    _add_preview(sub)
    _add_audit(sub)
    _add_source_commands(sub)
    _add_check(sub)
    c = _command(sub, "resume", commands.resume_build)
    _run_dir(c)
    _switch(c, "--json", "one JSON object on stdout at the end")
    c = _command(sub, "status", commands.print_status)
    _run_dir(c)
    _switch(c, "--json", "one JSON object on stdout")
    _add_report(sub)
    _add_view(sub)
    c = _command(sub, "weights", commands.print_weights)
    _run_dir(c)
    text = "mean reward wanted, in [0, 1]; repeat it"
    _value(c, "--target", "DIM=VALUE", text, action="append", required=True)
    _value(c, "--arm", "NAME", "answers of this arm (default: fused)")
    _switch(c, "--json", "one JSON object on stdout")
    c = _command(sub, "push", commands.push_run)
    _run_dir(c)
    _value(c, "repo_id", "REPO_ID", "ORG/NAME on the Hub")
    _add_push_flags(c)
    _switch(c, "--dry-run", "print the plan, send nothing")
    c = _command(sub, "export", commands.export_dataset)
    _run_dir(c)
    _value(c, "--config", "NAME", "a config of the dataset, as preference", required=True)
    text = "folder to write into, a path or a URL"
    _value(c, "--to", "DIR", text, type=_folder, required=True)
    c.add_argument("--format", choices=EXPORTS, default="parquet", help="default: parquet")
    c = _command(sub, "diff", commands.print_diff)
    _value(c, "before", "A", "dataset folder, run folder, or ORG/NAME@TAG on the Hub")
    _value(c, "after", "B", "the same")
    _switch(c, "--json", "one JSON object on stdout")
    c = _command(sub, "verify", commands.verify_dataset)
    text = "dataset folder, run folder, or ORG/NAME@TAG on the Hub"
    _value(c, "folder", "DATASET", text, type=_folder)
    _switch(c, "--json", "one JSON list on stdout")
    c = _command(sub, "list", commands.print_names, "What there is to choose from.")
    _value(c, "what", "WHAT", ", ".join(LISTS), choices=LISTS)
    c = _command(sub, "settings", commands.print_settings)
    text = "as rollout, judge or fuse.retries; none: all sections"
    _value(c, "section", "SECTION", text, nargs="?")
    _switch(c, "--json", "one JSON list on stdout")
    c = _command(sub, "init", commands.write_first_builder)
    text = "file to write (default: build.yaml)"
    _value(c, "file", "FILE", text, nargs="?", type=_folder, default=Path("build.yaml"))
    c = _command(sub, "template", commands.print_names, "Copy a template that is shipped.")
    text = "a template (see `mora-data list templates`)"
    what = c.add_subparsers(required=True, metavar="copy")
    _add_copy(what, commands.copy_template_to, text)
    _add_recipe(sub)
    _add_evaluate(sub)
    c = _command(sub, "completion", commands.print_completion)
    c.add_argument("shell", choices=("bash", "zsh"), help="bash or zsh")
    c.set_defaults(parser_of_all=_parser)
    return p


def _add_copy(what: Any, command: Command, text: str) -> None:
    c = _command(what, "copy", command)
    _value(c, "name", "NAME", text)
    text = "folder to copy into (default: here)"
    _value(c, "to", "DIR", text, nargs="?", type=_folder, default=Path())


def _command(
    sub: Any, name: str, command: Command, does: str | None = None
) -> argparse.ArgumentParser:
    """A command; what it does is said by its function, where `does` doesn't say it."""
    text = does or " ".join((command.__doc__ or "").split())
    parser: argparse.ArgumentParser = sub.add_parser(
        name,
        help=text[:1].lower() + text[1:].rstrip("."),
        description=textwrap.fill(text, 78),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    full = parser.prog.partition(" ")[2]
    if full in EXAMPLES:
        head = "example" if len(EXAMPLES[full]) == 1 else "examples"
        parser.epilog = "\n  ".join([f"{head}:", *EXAMPLES[full]])
    parser.set_defaults(command=command, parser=parser)
    return parser


def _value(
    p: Any, name: str, metavar: Any, text: str, needs: str = "", without: str = "", **options: Any
) -> None:
    action = p.add_argument(name, metavar=metavar, help=text, **{"type": _word, **options})
    action.needs, action.without = needs.split(), without.split()


def _word(text: str) -> str:
    """What is not given has a default: an empty --base-url would ask another server, and pay."""
    if not text.strip(" ,\n\t"):
        raise argparse.ArgumentTypeError("is empty (a shell variable that is not set?)")
    return text


def _switch(p: Any, name: str, text: str, needs: str = "", without: str = "") -> None:
    """A flag; `needs` and `without` are those that it does nothing without, or beside."""
    action = p.add_argument(name, action="store_true", help=text)
    action.needs, action.without = needs.split(), without.split()


def _check_needs(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    flags = {a.option_strings[-1]: a for a in parser._actions if a.option_strings}
    given = [f for f, a in flags.items() if getattr(args, a.dest, a.default) != a.default]
    for flag in given:
        for other in getattr(flags[flag], "needs", ()):
            if other not in given:
                parser.error(f"{flag} does nothing without {other}: give both, or none")
        for other in getattr(flags[flag], "without", ()):
            if other in given:
                parser.error(f"{flag} does nothing beside {other}: give one of them")


def _run_dir(p: argparse.ArgumentParser, **options: Any) -> None:
    _value(p, "run_dir", "RUN_DIR", "the --out of a build", type=_folder, **options)


def _add_build(sub: Any) -> None:
    parser = _command(sub, "build", commands.build_dataset)
    _add_source(parser, "prompts to keep, in source order")
    b = parser.add_argument_group("how it is built")
    text = "all, or names as identity,fused: compare ways to rewrite the same prompts"
    _value(b, "--arms", "ARMS", text)
    text = "where partitions are worked on: here, or on a Ray cluster"
    b.add_argument("--executor", choices=("local", "ray"), help=text)
    b.add_argument("--until", choices=STAGES, default="publish", help="stop after this stage")
    _switch(b, "--fresh", "start anew: forget what the run folder holds")
    _switch(b, "--json", "one JSON object on stdout at the end")
    text = (
        "download the benchmarks that prompts are decontaminated against; hashes of them are kept"
    )
    _switch(b, "--fetch-benchmarks", text)
    text = "select also on dimensions whose scores are measured to be mostly noise; written down"
    _switch(b, "--allow-unreliable", text)
    b = parser.add_argument_group("what it would take")
    _switch(b, "--dry-run", "requests, tokens, money, pairs and time by role, and nothing else")
    text = "with --dry-run: ask the models for 16 prompts, which the build then has, and measure"
    _switch(b, "--probe", text, needs="--dry-run")
    text = "with --dry-run: hours and GPU-hours on so many GPUs"
    _value(b, "--gpus", "N[,N]", text, type=_numbers, needs="--dry-run --tokens-per-s")
    text = "with --dry-run: how many prompts so many pairs need"
    _value(b, "--pairs", "N", text, type=_number, needs="--dry-run")
    text = (
        "with --dry-run: tokens that the servers get done in a second, prompt and output together;"
        " with --gpus, one GPU"
    )
    _value(b, "--tokens-per-s", "N", text, type=_amount, needs="--dry-run")
    text = "with --gpus: for so many prompts (default: those mined)"
    _value(b, "--prompts", "N[,N]", text, type=_numbers, needs="--gpus")
    text = "with --gpus: of one GPU for an hour"
    _value(b, "--gpu-price", "MONEY", text, type=_amount, needs="--gpus")
    b = parser.add_argument_group("the Hub")
    _value(b, "--push", "REPO_ID", "publish on the Hub when done", without="--until")
    _add_push_flags(b, needs="--push")


def _add_preview(sub: Any) -> None:
    p = _command(sub, "preview", commands.preview_prompts)
    _add_source(p, "prompts to show, the first of the source (default: 5)")
    _value(p, "--arms", "ARMS", "names as identity,fused (default: the one that is published)")
    stages = STAGES[: STAGES.index("select") + 1]
    p.add_argument("--until", choices=stages, default="select", help="stop after this stage")
    _switch(p, "--fresh", "start anew: forget what an earlier preview left in the folder")
    _switch(p, "--html", "write RUN_DIR/preview.html, too")
    _switch(p, "--json", "one JSON object on stdout at the end")


def _add_source(parser: argparse.ArgumentParser, limit: str) -> None:
    """Rows, models, run folder and limits: what build, preview and audit have in common."""
    p = parser.add_argument_group("rows and models")
    text = (
        "a builder (see `mora-data list sources`), a path to a YAML file, or a data file: that is"
        " --source auto --data FILE; several times: a mix in equal shares"
    )
    _value(p, "--source", "NAME", text, required=True, action="append")
    where = p.add_mutually_exclusive_group()
    _switch(where, "--sample", "use the rows bundled with the package; no network")
    text = (
        "files, folders, globs or URLs to read the rows of the --source before it from"
        " (docs/data.md)"
    )
    _value(where, "--data", "PATH", text, nargs="+", action=_DataOfSource, default=[])
    text = "of source auto: layout of the rows (default: what the first of them look like)"
    _value(p, "--layout", "NAME", text)
    text = (
        "OpenAI-compatible endpoint, up to and including /v1; several times, or with commas:"
        " replicas of one model"
    )
    _value(p, "--base-url", "URL", text, action="append")
    _value(p, "--model", "ID", "policy model; not needed when the endpoint serves one")
    text = (
        "openai, batch, transformers, vllm, scripted (a simulator) or recorded "
        "(the rows' own answers)"
    )
    _value(p, "--engine", "KIND", text)
    text = "endpoint of the judge, if another; replicas likewise"
    _value(p, "--judge-base-url", "URL", text, action="append")
    _value(p, "--judge-model", "ID", "judge model, if another")
    p = parser.add_argument_group("how much, and where")
    text = "run folder, a path or a URL as s3://bucket/run (default: runs/<name>)"
    _value(p, "--out", "RUN_DIR", text, type=_folder)
    _value(p, "--limit", "N", limit, type=int)
    _value(p, "--seed", "N", "run seed", type=int)
    text = "stop when all that was built in the run folder has cost this much"
    _value(p, "--max-cost", "MONEY", text, type=float)
    text = "stop when it has used this many tokens, in and out"
    _value(p, "--max-tokens", "N", text, type=int)
    _value(p, "--set", "KEY=VALUE", "any setting, as rollout.n=8", action="append", default=[])


def _add_audit(sub: Any) -> None:
    a = _command(sub, "audit", commands.audit_judges)
    _add_source(
        a, "pairs of answers per dimension, the first of the source (default: audit.limit, 50)"
    )
    text = "builder whose judges score the same pairs, to compare"
    _value(a, "--compare", "OTHER", text)
    text = "the same with a setting changed, as 'rewards.harmless.template=my.j2'; repeat it"
    _value(a, "--compare-set", "KEY=VALUE", text, action="append", default=[])
    _switch(a, "--dry-run", "requests, tokens and money, and nothing else")
    _switch(a, "--json", "one JSON object on stdout")


def _add_source_commands(sub: Any) -> None:
    s = _command(
        sub, "source", commands.print_names, "Look at rows before a build, copy a builder."
    )
    what = s.add_subparsers(required=True, metavar="look|copy")
    text = "a builder (see `mora-data list sources`)"
    _add_copy(what, commands.copy_source_to, text)
    c = _command(what, "look", commands.look_at_rows)
    _value(c, "data", "PATH", "files, folders, globs or URLs (docs/data.md)", nargs="+")
    _value(c, "--source", "NAME", "read them as this builder does (default: auto)", default="auto")
    _value(c, "--layout", "NAME", "layout of the rows (default: what the first look like)")
    text = "any setting of how rows are read, as source.columns.prompt=ask"
    _value(c, "--set", "KEY=VALUE", text, action="append", default=[])
    _value(c, "--rows", "N", "rows to show of each file (default: 3)", type=int, default=3)
    _switch(c, "--json", "one JSON object on stdout, all rows in it")


def _add_check(sub: Any) -> None:
    c = _command(sub, "check", commands.check_endpoints)
    where = c.add_mutually_exclusive_group(required=True)
    _value(where, "--base-url", "URL", "OpenAI-compatible endpoint")
    text = "a builder or a path to a YAML file: the endpoints of all its roles"
    _value(where, "--source", "NAME", text)
    _value(c, "--model", "ID", "not needed when the endpoint serves one")
    text = "any setting of a role, as policy.api_key_env=MY_KEY"
    _value(c, "--set", "KEY=VALUE", text, action="append", default=[])
    _switch(c, "--json", "one JSON object on stdout for each endpoint")


def _number(text: str) -> int:
    """A whole number of at least 1."""
    (found,) = _numbers(text.replace(",", " "))
    return found


def _amount(text: str) -> float:
    """A number above 0."""
    with contextlib.suppress(ValueError):
        if 0 < (found := float(text)) < float("inf"):
            return found
    raise argparse.ArgumentTypeError(f"{text!r}: give a number above 0")


def _numbers(text: str) -> list[int]:
    """Whole numbers of at least 1, by commas."""
    found = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give whole numbers of at least 1, by commas")
    return found


def _add_push_flags(p: Any, needs: str = "") -> None:
    _value(p, "--tag", "vX.Y.Z", "version tag of the release", needs=needs)
    text = "make the repository public (needs publish.unsafe to be decided)"
    _switch(p, "--public", text, needs=needs)
    text = (
        "two repositories: REPO_ID without unsafe text, REPO_ID-gated with all of it, behind"
        " terms when public"
    )
    _switch(p, "--split-unsafe", text, needs=needs)
    _switch(p, "--move-tag", "let an existing tag point to this release", needs=f"{needs} --tag")
    _switch(p, "--allow-simulated", "push rows that the simulator made", needs=needs)


def _add_report(sub: Any) -> None:
    r = _command(sub, "report", commands.print_report)
    _run_dir(r, nargs="?")
    text = "instead: what differs between two of RUN_DIR, RUN_DIR:ARM, dataset folder, ORG/NAME@TAG"
    _value(r, "--compare", ("A", "B"), text, nargs=2)
    text = "folder for report-compare.json and .html (default: here)"
    _value(r, "--out", "DIR", text, type=_folder, needs="--compare")
    _switch(r, "--json", "the JSON on stdout instead of the summary")


def _add_view(sub: Any) -> None:
    v = _command(sub, "view", commands.view_folder)
    text = "run folder, dataset folder, or ORG/NAME@TAG on the Hub"
    _value(v, "folder", "RUN_DIR", text, type=_folder)
    text = "port of 127.0.0.1 (default: 7470, or a free one)"
    _value(v, "--port", "N", text, type=int, without="--freeze")
    _switch(v, "--no-open", "print the address, open no browser", without="--freeze")
    text = "instead: write pages into DIR that open from disk, and end"
    _value(v, "--freeze", "DIR", text, type=_folder)
    text = "pairs with a page of their own in DIR (default: 500)"
    _value(v, "--most", "N", text, type=int, default=500, needs="--freeze")
    text = "take NAME's blind votes on pairs; they go to RUN_DIR/reviews.jsonl"
    _value(v, "--review", "NAME", text, without="--freeze")


def _add_recipe(sub: Any) -> None:
    r = _command(sub, "recipe", commands.print_names, "Training recipes: list, copy, run.")
    what = r.add_subparsers(required=True, metavar="list|copy|run")
    c = _command(what, "list", commands.print_names, "Recipes and their configs.")
    c.set_defaults(what="recipes")
    c = _command(what, "copy", commands.copy_recipe_to)
    _value(c, "name", "NAME", "a recipe (see `mora-data recipe list`)")
    _value(c, "to", "DIR", "folder to copy into", type=_folder)
    x = _command(what, "run", commands.run_recipe_on)
    _value(x, "name", "NAME", "a recipe (see `mora-data recipe list`)")
    text = "dataset or run folder, or ORG/NAME on the Hub"
    _value(x, "--dataset", "PATH_OR_ID", text, required=True)
    _value(x, "--revision", "TAG", "tag of the dataset on the Hub")
    _value(x, "--config", "NAME", "a config of the recipe (default: smoke)", default="smoke")
    _switch(x, "--dry-run", "rows, tokens, steps and memory, and nothing else")
    text = "settings of the recipe, as learning_rate=1e-6"
    _value(x, "overrides", "key=value", text, nargs="*")


def _add_evaluate(sub: Any) -> None:
    e = _command(sub, "evaluate", commands.evaluate_models)
    text = "WHERE: base URL (#MODEL where it serves several), answers.jsonl, or ENGINE:MODEL"
    _value(e, "models", "NAME[@SEED]=WHERE", text, nargs="+")
    text = "run or dataset folder: its test prompts, plain and fused apart"
    _value(e, "--dataset", "DIR", text, type=_folder)
    _value(e, "--prompts", "FILE", "further prompts (jsonl, json, csv, parquet)", type=_folder)
    _value(e, "--harmful-prompts", "FILE", "prompts that ask for harm", type=_folder)
    text = "prompts that only look unsafe, for over-refusal"
    _value(e, "--safe-prompts", "FILE", text, type=_folder)
    text = (
        "alpaca_eval, advbench, xstest (its safe half) or truthfulqa, of a file or the Hub; may"
        " be repeated"
    )
    _value(e, "--benchmark", "NAME[=FILE]", text, action="append", default=[])
    text = "what the others are compared with (default: the first model)"
    _value(e, "--reference", "NAME", text)
    text = (
        "builder whose dimensions, rewards and sampling apply (default: dimensions, shipped rubrics"
        " and sampling of the dataset)"
    )
    _value(e, "--source", "NAME", text)
    _value(e, "--judge-base-url", "URL", "endpoint of the held-out judge")
    _value(e, "--judge-model", "ID", "the held-out judge")
    text = "models in the order of training; repeated: one per order"
    _value(e, "--sequence", "NAME[=DIM]", text, nargs="+", action="append", default=[])
    text = (
        "models by the number of pairs they saw, behind a name of the curve where there are several"
    )
    _value(e, "--scaling", "NAME=PAIRS", text, nargs="+", action="append", default=[])
    _value(e, "--samples", "N", "answers per prompt", type=_number, default=1)
    _value(e, "--limit", "N", "prompts per set", type=_number)
    _value(e, "--seed", "N", "seed of sampling and of the intervals", type=int)
    out = Path("runs/evaluate")
    _value(e, "--out", "DIR", "default: runs/evaluate", type=_folder, default=out)
    _switch(e, "--no-win-rate", "leave out the pairwise comparisons")
    text = "any setting of a role or a reward, as policy.temperature=0.6"
    _value(e, "--set", "KEY=VALUE", text, action="append", default=[])
    _switch(e, "--fresh", "forget the answers that the folder holds")
    _switch(e, "--json", "one JSON object on stdout instead of the table")


if __name__ == "__main__":
    sys.exit(main())
