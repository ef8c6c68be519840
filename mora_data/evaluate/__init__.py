"""Models on held-out prompts, scored by the package's own rewards: what `mora-data evaluate` runs.

    models = ["sft=http://host:8000/v1", "mora@0=http://host:8001/v1", "mora@1=answers-1.jsonl"]
    evaluate(models, EvaluateOptions(dataset=Path("runs/x")), progress)

Every call goes through the answer log of the output folder: the same command again asks only what
is missing. Written there: rows.jsonl (one row per model, prompt and sample), evaluation.json and
evaluation.md; with scaling curves also evals.jsonl into the run folder of the dataset, whose report
draws them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson

from .. import resources
from ..errors import SettingsError
from ..run.files import write_whole
from ..run.folder import RunFolder, manifest_of
from ..run.log import AnswerLog
from ..run.progress import Progress
from ..run.tasks import run_to_end
from ..settings import nearest
from .asking import (
    EvaluateOptions,
    Evaluation,
    parse_curve,
    parse_model,
    parse_points,
    settings_for,
)
from .prompts import load_prompts


def evaluate(models: Sequence[str], options: EvaluateOptions, progress: Progress) -> dict[str, Any]:
    """Run or resume an evaluation; what evaluation.json holds.

    Raises:
        MoraError: it can't be finished; the state is kept, and the same call goes on.
    """
    from .report import About, result  # numpy comes with it

    parsed = [parse_model(m) for m in models]
    if twice := [label for label, k in Counter(m.label for m in parsed).items() if k > 1]:
        raise SettingsError(
            f"model {twice[0]} is named twice: give other names, or seeds as in"
            f" {twice[0].split('@')[0]}@1=..."
        )
    names = list(dict.fromkeys(m.name for m in parsed))
    options = replace(options, reference=options.reference or names[0])
    if options.reference not in names:
        raise SettingsError(
            f"--reference {options.reference!r} is none of the models: {', '.join(sorted(names))}"
        )
    scalings = [parse_curve(points, names) for points in options.scalings]
    sequences = [parse_points(points, names, "--sequence") for points in options.sequences]
    settings, folder, notes = settings_for(options)
    for stages in sequences:
        if len(stages) < 2:
            raise SettingsError(
                f"--sequence {stages[0][0]}: name the start, then each stage's model"
            )
        if bad := [d for _, d in stages if d and d not in settings.dimensions]:
            known = nearest(bad[0], settings.dimensions)
            raise SettingsError(f"--sequence names {bad[0]!r}, which is no dimension: {known}")
    for line in notes:
        progress.message(line)
    skipped: Counter[str] = Counter()
    prompts = load_prompts(
        folder, options.files, options.benchmarks, options.limit, skipped, settings.seed
    )
    secret = resources.Secret()
    work = Evaluation(parsed, settings, options, secret, progress)
    identity = {"evaluate": "1", "seed": str(settings.seed)}
    with RunFolder(options.out, identity, options.fresh) as out:
        secret.key = out.secret
        log = AnswerLog(out.path / "answers.log")
        try:
            run_to_end(work.run(prompts, log))
        finally:
            log.close()
        write_whole(out.path / "rows.jsonl", _json_lines(row.line() for row in work.rows))
        built = manifest_of(folder.parent).get("models") if folder else None
        about = About(
            simulated=work.simulated,
            judge=work.judge,
            judge_of_the_dataset=built.get("judge") if isinstance(built, dict) else None,
            skipped=dict(sorted(skipped.items())),
            seed=settings.seed,
        )
        found = result(
            work.rows, parsed, options.reference, work.pass_thresholds(), about, sequences, scalings
        )
        out.write("evaluation.json", found)
        write_whole(out.path / "evaluation.md", markdown(found).encode())
        if scalings and folder is not None:
            # where the report of the run that made the dataset looks for training runs
            built_by_run = (folder.parent / "manifest.json").is_file()
            place = (folder.parent if built_by_run else folder) / "evals.jsonl"
            write_whole(place, _json_lines(_training_runs(found["scaling"])))
    return found


def markdown(found: Mapping[str, Any]) -> str:
    """evaluation.md: a table per set of prompts, and under each what it supports."""
    env = resources.document_environment("cards")
    env.filters |= {"number": _number, "within": _within, "percent": _percent}
    return env.get_template("evaluation.md.j2").render(found)


def _number(value: float | None, form: str = ".3g") -> str:
    return "" if value is None else format(value, form)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:+.1f} %"


def _within(value: float | None, ends: Sequence[float] | None, sign: str = "") -> str:
    """A number with its interval."""
    text = _number(value, f"{sign}.3g")
    if value is None or not ends:
        return text
    return f"{text} [{ends[0]:{sign}.3g}, {ends[1]:{sign}.3g}]"


def _training_runs(curves: Sequence[dict[str, Any]]) -> Iterator[dict[str, object]]:
    """Lines of evals.jsonl: one per training run and metric; `fraction` is of the curve's largest
    size."""
    for curve in curves:
        most = max(curve["pairs"], default=0.0) or 1.0
        suffix = f" ({curve['name']})" if curve["name"] else ""
        for run in curve["runs"]:
            for seed, value in enumerate(run["values"]):
                if value is not None:
                    yield {
                        "fraction": run["pairs"] / most,
                        "seed": seed,
                        "metric": run["metric"] + suffix,
                        "value": value,
                    }


def _json_lines(rows: Iterable[object]) -> bytes:
    return b"".join(orjson.dumps(row) + b"\n" for row in rows)
