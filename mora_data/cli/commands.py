"""What each command of the command line does, from its parsed arguments to its exit code; the
arguments are in __init__.py."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import MoraError, SettingsError

if TYPE_CHECKING:
    from ..run.folder import Summary
    from ..settings import BuildOptions, BuildSettings


def build_dataset(args: argparse.Namespace) -> int:
    """Mine, fuse, sample, score, select, publish; run again to resume."""
    settings, data = _settings(args)
    if args.push:
        from ..dataset.push import check_names

        decision = "gate" if args.split_unsafe else settings.publish.unsafe
        check_names(args.push, args.tag, args.public, decision)
    if args.fetch_benchmarks:
        from ..sources.benchmarks import cache_dir, fill_cache

        for name, what in fill_cache(cache_dir()).items():
            print(f"benchmark {name}: {what}", file=sys.stderr)
    from ..settings import BuildOptions

    options = BuildOptions(args.sample, data, args.out, args.until, args.fresh)
    if args.dry_run:
        return _dry_run(args, settings, options)
    from ..pipeline import run_dir_of

    summary, failure = _built(settings, options)
    if failure is None and args.push:
        _push_run(args, run_dir_of(settings, options), args.push)
    _print_summary(args, summary)
    return _exit_code(failure)


def preview_prompts(args: argparse.Namespace) -> int:
    """A few prompts through all steps, cheaply: source, fused prompt, checks, answers, pair."""
    from ..pipeline import run_dir_of
    from ..settings import BuildOptions, preview_settings
    from .show import print_preview

    arms = None if args.arms is None else _parts(args.arms)
    overrides = _overrides(args, {"mine.limit": args.limit, "fuse.arms": arms})
    settings, data = _of_sources(args, overrides, preview_settings)
    options = BuildOptions(args.sample, data, args.out, args.until, args.fresh, preview=True)
    run_dir = run_dir_of(settings, options)
    if args.out is not None and run_dir != args.out:
        print(f"{args.out} holds a build, so the preview is in {run_dir}", file=sys.stderr)
    summary, failure = _built(settings, options)
    print_preview(summary, args.json, args.html)
    return _exit_code(failure)


def _built(settings: BuildSettings, options: BuildOptions) -> tuple[Summary, MoraError | None]:
    """A build, its progress on stderr."""
    from ..pipeline import run_build
    from ..run.progress import Progress

    return run_build(settings, options, Progress())


def _exit_code(failure: object) -> int:
    """1 behind a failure, which is told of, else 0."""
    if failure is not None:
        fail(str(failure))
    return int(failure is not None)


def _settings(args: argparse.Namespace) -> tuple[BuildSettings, tuple[Path, ...]]:
    """The settings, and the local files of a build of one --source."""
    flags = {
        "mine.limit": args.limit,
        "executor": args.executor,
        "fuse.arms": None if args.arms is None else _parts(args.arms),
        "select.allow_unreliable": True if args.allow_unreliable else None,
    }
    return _of_sources(args, _overrides(args, flags))


def _of_sources(
    args: argparse.Namespace,
    overrides: Mapping[str, object],
    make: Callable[[Mapping[str, object], Mapping[str, object]], BuildSettings] | None = None,
) -> tuple[BuildSettings, tuple[Path, ...]]:
    """What --source and --data say, with the overrides; data of several sources is theirs. A data
    file as the source is its rows, of any layout."""
    from ..settings import build_settings, mixed_builder
    from ..sources.read import local_paths, names_data

    given: list[tuple[str, list[str]]] = []
    for i, name in enumerate(args.source):
        data = [path for number, path in args.data if number == i]
        if names_data(name):
            if args.sample:
                raise SettingsError(
                    "--sample takes the bundled rows: leave it out, or name a builder"
                )
            name, data = "auto", [name, *data]
        given.append((name, list(map(str, local_paths(data)))))
    settings = (make or build_settings)(mixed_builder(given), overrides)
    return settings, tuple(Path(p) for p in given[0][1]) if len(given) == 1 else ()


def _overrides(args: argparse.Namespace, flags: Mapping[str, object]) -> dict[str, object]:
    """What --set and the flags say; those of rows, models and limits are common to build and
    audit."""

    overrides = _assigned(args.set)
    common = {
        **_urls("policy", args.base_url),
        **_urls("judge", args.judge_base_url),
        "source.layout": args.layout,
        "policy.model": args.model,
        "policy.engine": args.engine,
        "judge.model": args.judge_model,
        "seed": args.seed,
        "limits.max_cost": args.max_cost,
        "limits.max_tokens": args.max_tokens,
    }
    given = {k: v for k, v in {**common, **flags}.items() if v is not None}
    return {**overrides, **given}


def _assigned(texts: Sequence[str], flag: str = "--set", used: str = "") -> dict[str, object]:
    """What KEY=VALUE texts say; `used` are the sections that the command uses, "" for all."""
    from ..settings import parse_override

    out = dict(parse_override(text, flag) for text in texts)
    if bad := [key for key in out if used and key.partition(".")[0] not in used.split()]:
        raise SettingsError(f"{flag} {bad[0]} does nothing here: of use are {used}")
    return out


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _urls(role: str, given: Sequence[str] | None) -> dict[str, object]:
    """A role's base URL and its replicas, from flags that may hold several."""
    urls = _parts(",".join(given or ()))
    return {f"{role}.base_url": urls[0], f"{role}.replicas": urls[1:]} if urls else {}


def _dry_run(args: argparse.Namespace, settings: BuildSettings, options: BuildOptions) -> int:
    from .dry_run import at_speed, capacity, estimate, for_pairs, for_prompts, probe_build
    from .show import capacity_table, estimate_lines

    if args.probe:
        found = probe_build(settings, options)
    else:
        found = estimate(settings, args.sample, options.data, args.until)
    rows = []
    if args.gpus is not None:
        sized = [for_prompts(found, settings, args.sample, n) for n in args.prompts or ()]
        rows = capacity(sized or [found], args.gpus, args.tokens_per_s, args.gpu_price)
    elif args.tokens_per_s is not None:
        found = at_speed(found, args.tokens_per_s)
    if args.pairs is not None:
        found = for_pairs(found, args.pairs)
    tree = found.as_dict()
    if args.gpus is not None:
        tree["capacity"] = [asdict(r) for r in rows]
    table = ["", capacity_table(rows, args.tokens_per_s)] if rows else []
    _print(args, tree, [*estimate_lines(found), *table])
    return _exit_code(found.failure)


def _print_summary(args: argparse.Namespace, summary: Summary) -> None:
    if args.json:
        print(json.dumps(asdict(summary)))
        return
    from .show import counts_table, money_line

    print(counts_table(summary.counts))
    tokens = summary.tokens["in"] + summary.tokens["out"]
    print(
        f"pairs {summary.pairs}   requests {summary.requests}   replayed {summary.replayed}  "
        f" tokens {summary.tokens['in']} in, {summary.tokens['out']} out,"
        f" {tokens / max(summary.seconds, 1e-3):.0f}/s   errors {summary.errors}  "
        f" {summary.seconds:.1f} s"
    )
    if line := money_line(
        summary.cost, summary.spent, summary.currency, summary.unpriced, summary.pairs
    ):
        print(line)
    for url, why in summary.replicas_out.items():
        print(f"replica {url} was taken out for a while ({why})")
    for model, notes in summary.endpoints.items():
        print(f"model {model} {'; '.join(notes)}")
    if summary.dataset_dir:
        print(f"dataset {summary.dataset_dir}")
        if (Path(summary.run_dir) / "report.html").exists():
            print(f"report {Path(summary.run_dir) / 'report.html'}")


def audit_judges(args: argparse.Namespace) -> None:
    """How far the judges agree with people, on answers that the source's rows have labels for."""
    from ..pipeline import run_dir_of
    from ..prompts.judge_audit import run_audit
    from ..run.folder import RunFolder
    from ..run.progress import Progress
    from ..settings import BuildOptions, load_settings
    from ..sources.mine import identity_of, open_sources
    from .show import audit_lines

    overrides = _overrides(args, {"audit.limit": args.limit})
    (settings, data), other = _of_sources(args, overrides), None
    if settings.role("judge").engine == "recorded":
        raise SettingsError("an audit asks the judges: leave --engine recorded out")
    if not settings.audit.limit:
        raise SettingsError("audit.limit is 0, so there is nothing to do: give --limit N")
    if args.compare or args.compare_set:
        changed = _assigned(args.compare_set, "--compare-set")
        overrides = {**overrides, **changed}
        other = (
            load_settings(args.compare, overrides)
            if args.compare
            else _of_sources(args, overrides)[0]
        )
    options = BuildOptions(args.sample, data, args.out)
    opened = open_sources(settings, args.sample, data)
    if args.dry_run:
        from .dry_run import audit_estimate

        tree = asdict(audit_estimate(settings, other, opened, args.sample))
        _print(args, tree, [f"{k:<20} {v}" for k, v in tree.items()])
        return
    run_dir = run_dir_of(settings, options)
    with RunFolder(run_dir, identity_of(settings, opened), fresh=False) as folder:
        found = run_audit(settings, other, opened, args.sample, folder, Progress())
    _print(args, asdict(found), audit_lines(found))


def look_at_rows(args: argparse.Namespace) -> None:
    """What is read from files: their layouts, and the first rows, before any build."""
    from ..settings import load_settings
    from ..sources.mine import open_source
    from ..sources.read import local_paths
    from .show import look

    overrides = _assigned(args.set, used="source policy dimensions rewards recorded")
    if args.layout:
        overrides["source.layout"] = args.layout
    settings = load_settings(args.source, overrides)
    opened = open_source(settings, False, local_paths(args.data))
    tree, lines = look(opened, settings, None if args.json else args.rows)
    _print(args, tree, lines)


def check_endpoints(args: argparse.Namespace) -> None:
    """Ask an endpoint some ten short requests: what it takes, how fast it is, what to set."""
    from ..settings import build_settings, load_settings
    from .check import check_models

    roles: tuple[str, ...] = ()
    if args.source is not None:
        used = "policy rewriter judge heldout_judge dimensions rewards fuse"
        overrides = _assigned(args.set, used=used)
        if args.model is not None:
            overrides["policy.model"] = args.model
        settings = load_settings(args.source, overrides)
    else:
        role, roles = {"base_url": args.base_url, "model": args.model}, ("policy",)
        tree = {
            "name": "check",
            "source": {"kind": "jsonl"},
            "policy": {"engine": "openai", **role},
        }
        settings = build_settings(tree, _assigned(args.set, used="policy"))
    for checked in check_models(settings, roles, lambda line: print(line, file=sys.stderr)):
        _print(args, asdict(checked), checked.lines())


def resume_build(args: argparse.Namespace) -> int:
    """Go on with the build of a run folder, with all the settings that it was started with."""
    from ..run.files import read_json
    from ..run.folder import OPTIONS, manifest_of
    from ..settings import BuildOptions, find_plugins_in, kept_settings
    from ..types import STAGES

    said, run_dir = read_json(args.run_dir / OPTIONS), args.run_dir.resolve()
    try:
        data, plugins = (tuple(map(Path, said[k])) for k in ("data", "plugins"))
        cwd, until = Path(said["cwd"]), STAGES[STAGES.index(said["until"])]
        options = BuildOptions(bool(said["sample"]), data, run_dir, until)
        manifest_of(args.run_dir)["identity"]
    except (LookupError, TypeError, ValueError) as e:
        raise SettingsError(
            f"{args.run_dir} does not say how it was built: give the --out of a build of this"
            " version, or run its `mora-data build` again"
        ) from e
    if said.get("preview"):
        raise SettingsError(
            f"{args.run_dir} holds a preview: start the build with `mora-data build`"
        )
    if cwd.is_dir():
        os.chdir(cwd)  # what settings name by a path
    for folder in plugins:
        find_plugins_in(folder)
    settings = kept_settings(run_dir / "build.yaml")
    summary, failure = _built(settings, options)
    _print_summary(args, summary)
    return _exit_code(failure)


def print_status(args: argparse.Namespace) -> None:
    """How far a run is, what was dropped and why."""
    from ..run.cost import spent_in
    from ..run.folder import is_run_folder, manifest_of, run_status
    from ..run.progress import progress_line, read_end, read_live
    from .show import counts_table, money_line, sources_lines

    if not is_run_folder(args.run_dir):
        _print_dataset(args)
        return
    found, now, ended = run_status(args.run_dir), read_live(args.run_dir), read_end(args.run_dir)
    spent = spent_in(args.run_dir, manifest_of(args.run_dir))
    money = money_line(None, spent.cost, spent.currency, spent.unpriced, found.pairs or 0)
    known = found.status or "without a manifest.json that can be read"
    state = "at work" if now is not None else known if ended is None else "not finished"
    kind = "a preview, " if found.preview else ""
    line = (
        f"{args.run_dir}: {kind}{state}, {found.prompts_done} of {found.prompts} prompts done,"
        f" {found.partitions_sealed} of {found.partitions} partitions sealed, {found.owed} owed,"
        f" {found.errors} errors"
    )
    at_work = [f"at work: {progress_line(now)}"] if now is not None else []
    if ended is not None:
        again = "run the preview again" if found.preview else f"mora-data resume {args.run_dir}"
        at_work = [f"ended before its end: {ended}", f"go on: {again}"]
    asked = [f"model {model} {'; '.join(notes)}" for model, notes in found.endpoints.items()]
    lines = [line, *at_work, *asked, *([money] if money else []), counts_table(found.counts)]
    lines += sources_lines(found.sources)
    tree = {**asdict(found), "spent": asdict(spent), "now": now, "ended": ended}
    _print(args, tree, lines)


def _print_dataset(args: argparse.Namespace) -> None:
    """What a dataset folder, or a release, says of itself."""
    from ..dataset.client import dataset_of, is_on_hub
    from ..dataset.lint import facts_of

    if not args.run_dir.exists() and not is_on_hub(str(args.run_dir)):
        raise SettingsError(
            f"{args.run_dir} does not exist: give the --out of a build, or a dataset"
        )
    tree = facts_of(dataset_of(str(args.run_dir)))
    lines = [f"{args.run_dir}: a dataset, made from {tree['source']}, licence {tree['licence']}"]
    lines += [f"{role} {model}" for role, model in sorted(tree["models"].items())]
    lines += [
        f"{name:<24} " + "  ".join(f"{split} {n}" for split, n in splits.items())
        for name, splits in tree["configs"].items()
    ]
    _print(args, tree, [*lines, f"check it: mora-data verify {args.run_dir}"])


def verify_dataset(args: argparse.Namespace) -> int:
    """Whether a dataset is whole and keeps its laws: checksums, columns, pairs, splits, licence."""
    from ..dataset.client import dataset_of
    from ..dataset.lint import verify
    from ..selection import DOMINANCE

    folder, checks = dataset_of(str(args.folder)), []
    for check in verify(folder, DOMINANCE):
        checks.append(check)
        if not args.json:
            print(f"{'FAILED' if check.faults else 'ok':<7} {check.name:<15} {check.looked_at}")
            print("".join(f"        {fault}\n" for fault in check.faults), end="", flush=True)
    if args.json:
        print(json.dumps([asdict(c) for c in checks]))
    bad = [c.name for c in checks if c.faults]
    if bad:
        fail(f"{args.folder} fails {len(bad)} of {len(checks)} checks ({', '.join(bad)})")
    return 1 if bad else 0


def print_report(args: argparse.Namespace) -> None:
    """Whether fusion helped and what to doubt: report.json, report.html."""
    from ..report.document import report_of
    from ..report.page import write_report
    from ..run.folder import is_run_folder
    from ..run.remote import upload_copy
    from .show import report_lines

    if args.compare is not None:
        _compare_reports(args)
        return
    if args.run_dir is None:
        raise SettingsError("give RUN_DIR (its report is written into it), or --compare A B")
    if not is_run_folder(args.run_dir) and args.run_dir.exists():
        raise SettingsError(
            f"{args.run_dir} is no run folder: `mora-data status` and `mora-data view` show a"
            " dataset, `mora-data report --compare A B` says what differs between two"
        )
    report = report_of(args.run_dir)
    written = write_report(args.run_dir, report)
    upload_copy(args.run_dir)
    _print(args, report, [*report_lines(report), *map(str, written)])


def _compare_reports(args: argparse.Namespace) -> None:
    from ..report.compare import compare_sides, side_of
    from ..report.page import write_comparison
    from .show import compare_lines

    if args.run_dir is not None:
        raise SettingsError(f"report --compare takes two folders and no RUN_DIR ({args.run_dir})")
    tree = compare_sides(side_of(args.compare[0]), side_of(args.compare[1]))
    written = write_comparison(args.out or Path(), tree)
    _print(args, tree, [*compare_lines(tree), *map(str, written)])


def print_weights(args: argparse.Namespace) -> None:
    """Weights of the dimensions that take the run's answers to target rewards."""
    from ..report.weights import weights_lines, weights_of

    target = _assigned(args.target, "--target")
    if len(target) < len(args.target):
        raise SettingsError("--target names a dimension twice: give it once")
    wanted = {}
    for d, v in target.items():
        if isinstance(v, bool) or not isinstance(v, (int, float)):
            raise SettingsError(f"--target {d}={v}: the value must be a number in [0, 1]")
        wanted[d] = float(v)
    found = weights_of(args.run_dir, wanted, args.arm)
    _print(args, found, weights_lines(found))


def view_folder(args: argparse.Namespace) -> None:
    """Look at a run or a dataset in the browser, while it runs too."""
    from ..dataset.client import dataset_of, is_on_hub

    if is_on_hub(str(args.folder)):
        args.folder = dataset_of(str(args.folder))
    if args.freeze is not None:
        from ..viewer.freeze import freeze

        done = freeze(args.folder, args.freeze, args.most)
        print(
            f"{done['pages']:,} pages, {done['pairs']:,} of {done['of']:,}"
            f" pairs\n{args.freeze / 'index.html'}"
        )
        return
    from ..viewer.server import serve

    serve(args.folder, args.port, not args.no_open, args.review)


def push_run(args: argparse.Namespace) -> None:
    """Publish a run's dataset folder on the Hub, in one commit, with a tag."""
    _push_run(args, args.run_dir, args.repo_id)


def _push_run(args: argparse.Namespace, run_dir: Path, repo_id: str) -> None:
    if args.split_unsafe:
        _push_once(args, run_dir, f"{repo_id}-gated", "gate")
        _push_once(args, run_dir, repo_id, "drop")
    else:
        _push_once(args, run_dir, repo_id, None)


def _push_once(args: argparse.Namespace, run_dir: Path, repo_id: str, unsafe: str | None) -> None:
    from urllib.parse import quote

    from ..dataset.client import endpoint
    from ..dataset.push import push_folder
    from ..run.folder import finished_manifest

    result = push_folder(
        run_dir / "dataset",
        repo_id,
        args.tag,
        dry_run=args.dry_run,
        public=args.public,
        allow_simulated=args.allow_simulated,
        move_tag=args.move_tag,
        manifest=finished_manifest(run_dir),
        unsafe=unsafe,
    )
    where = f"{result.repo_id}{'@' + result.tag if result.tag else ''}"
    at = f"/tree/{quote(result.tag)}" if result.tag else ""
    url = "" if args.dry_run else f"; {endpoint()}/datasets/{result.repo_id}{at}"
    print(
        f"{result.status}: {where}, {len(result.added)} files to add, {len(result.deleted)} to"
        f" delete, {result.n_bytes} bytes,"
        f" {'private' if result.private else 'public'}{'; ' + result.note if result.note else ''}"
        f"{url}",
        file=sys.stderr,
    )
    if args.dry_run:
        changes = [("add", result.added), ("delete", result.deleted)]
        print("\n".join(f"{verb} {name}" for verb, names in changes for name in names))


def export_dataset(args: argparse.Namespace) -> None:
    """Write one config of a run's dataset somewhere else."""
    from ..dataset.client import dataset_of
    from ..dataset.export import export_config
    from ..run.remote import destination

    folder = dataset_of(str(args.run_dir))
    with destination(str(args.to)) as to:
        for path in export_config(folder, args.config, to, args.format):
            print(f"{args.to}/{path.relative_to(to)}")


def print_diff(args: argparse.Namespace) -> None:
    """What changed between two datasets, config by config."""
    from ..dataset.push import diff_datasets, diff_lines

    deltas = diff_datasets(args.before, args.after)
    _print(args, {name: asdict(d) for name, d in deltas.items()}, diff_lines(deltas))


def print_names(args: argparse.Namespace) -> None:
    """What there is to choose from."""
    from .show import names_of

    print("\n".join(names_of(args.what)))


def copy_recipe_to(args: argparse.Namespace) -> None:
    """Copy a recipe with its configs, to change it."""
    from .recipes import copy_recipe

    for path in copy_recipe(args.name, args.to):
        print(path)


def copy_template_to(args: argparse.Namespace) -> None:
    """Copy a template that is shipped, to change it."""
    from .recipes import copy_shipped, templates

    path = copy_shipped("template", templates(), args.name, args.to)
    second = "skeptical" if path.stem == "concise" else "concise"  # one alone would be refused
    settings = {
        "fuse": f"fuse.arms=[{path}]",
        "judge": f"'rewards.{path.stem}={{kind: judge, template: {path}}}'",
        "intents": f"fuse.intents.{path.stem}={path}",
        "personas": f"'rollout.personas=[{path}, {second}]'",
    }
    used = settings.get(args.name.partition("/")[0])
    print(f"{path}" + (f"   use it with --set {used}" if used else ""))


def copy_source_to(args: argparse.Namespace) -> None:
    """Copy a source that is shipped, to change it."""
    from .recipes import copy_shipped, shipped_builders

    path = copy_shipped("source", shipped_builders(), args.name, args.to)
    print(f"{path}   use it with --source")


def write_first_builder(args: argparse.Namespace) -> None:
    """Write a commented builder for your own prompts and endpoints."""
    from .recipes import copy_files, templates

    copy_files({templates()["init/build.yaml"]: args.file}, "the builder")
    print(f"{args.file}   read it, then: mora-data check --source {args.file}")


def print_settings(args: argparse.Namespace) -> None:
    """What can be set: sections, or the settings of one with type, default and an example."""
    from .settings import overview, sections, setting_lines, settings_in

    if args.section is None:
        known = {name: [asdict(s) for s in some] for name, some in sections().items()}
        _print(args, known, overview())
        return
    found = settings_in(args.section)
    _print(args, [asdict(s) for s in found], setting_lines(found))


def print_completion(args: argparse.Namespace) -> None:
    """A script that completes commands and flags in the shell."""
    from .completion import script

    print(script(args.shell, args.parser_of_all()), end="")


def run_recipe_on(args: argparse.Namespace) -> int:
    """Train; prints the exact command first."""
    from ..run.folder import finished_manifest, is_run_folder
    from .recipes import run_command, run_recipe

    if "/" not in args.dataset and not Path(args.dataset).exists():
        raise SettingsError(f"no folder {args.dataset}: give a dataset or run folder, or ORG/NAME")
    if is_run_folder(Path(args.dataset)):
        finished_manifest(Path(args.dataset))
    given = (args.name, args.dataset, args.revision, args.config, args.overrides)
    return run_recipe(args.name, run_command(*given, dry_run=args.dry_run))


def evaluate_models(args: argparse.Namespace) -> None:
    """Compare models on held-out prompts; run again to resume."""
    from ..evaluate import evaluate, markdown
    from ..evaluate.asking import EvaluateOptions
    from ..run.progress import Progress

    overrides = _assigned(args.set, used="policy judge heldout_judge dimensions rewards seed")
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
    progress = Progress()
    found, stats = evaluate(args.models, options, progress), progress.stats
    _print(args, found, [markdown(found)])
    print(
        f"requests {stats.requests}   replayed {stats.replayed}   {args.out / 'evaluation.md'}",
        file=sys.stderr,
    )


def _print(args: argparse.Namespace, tree: object, lines: Sequence[str]) -> None:
    """What was found: with --json the tree, else the lines."""
    print(json.dumps(tree) if args.json else "\n".join(lines))


def fail(text: str) -> None:
    """One line on stderr."""
    print(f"mora-data: {' '.join(text.split())}", file=sys.stderr)
