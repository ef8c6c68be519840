"""Models on held-out prompts, scored by the package's own rewards: what `mora-data evaluate` runs.

    evaluate(["sft=http://host:8000/v1", "mora@0=http://host:8001/v1", "mora@1=answers-1.jsonl"],
    Options(dataset=Path("runs/x")))

Every call goes through the answer log of the output folder: the same command again asks only what
is missing. Written there: rows.jsonl (one row per model, prompt and sample), evaluation.json and
evaluation.md; with scaling curves also evals.jsonl into the run folder of the dataset, whose report
draws them.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from ..errors import SettingsError
from ..run.folder import RunFolder, read_json
from ..run.log import AnswerLog
from ..run.partitions import write_whole
from ..run.progress import Progress
from ..run.stats import RunStats
from ..settings import BuildSettings, build_settings, load_settings
from .asking import Evaluation
from .inputs import Options, load_prompts, parse_curve, parse_model, parse_points

__all__ = ["Options", "evaluate"]


def evaluate(
    models: Sequence[str], options: Options, progress: Progress, stats: RunStats
) -> dict[str, Any]:
    """Run or resume an evaluation; what evaluation.json holds.

    Raises:
        MoraError: it can't be finished; the state is kept, and the same call goes on.
    """
    from .curves import evaluations
    from .report import result
    from .tables import markdown

    parsed = [parse_model(m) for m in models]
    if twice := [label for label, k in Counter(m.label for m in parsed).items() if k > 1]:
        raise SettingsError(
            f"model {twice[0]} is named twice: give other names, or seeds as in"
            f" {twice[0].split('@')[0]}@1=..."
        )
    reference = options.reference or parsed[0].name
    if reference not in {m.name for m in parsed}:
        raise SettingsError(
            f"--reference {reference!r} is none of the models:"
            f" {', '.join(sorted({m.name for m in parsed}))}"
        )
    options = replace(options, reference=reference)
    names = list(dict.fromkeys(m.name for m in parsed))
    sequences = [parse_points(points, names, "--sequence") for points in options.sequences]
    scalings = [parse_curve(points, names) for points in options.scalings]
    settings, folder = settings_for(options)
    skipped: Counter[str] = Counter()
    prompts = load_prompts(options, folder, skipped, settings.seed)
    work = Evaluation(parsed, settings, options, stats, progress)
    identity = {"evaluate": "1", "seed": str(settings.seed)}
    with RunFolder(options.out, identity, options.fresh) as out:
        log = AnswerLog(out.path / "answers.log")
        try:
            asyncio.run(work.run(prompts, log))
        finally:
            log.close()
        write_whole(out.path / "rows.jsonl", b"".join(orjson.dumps(r) + b"\n" for r in work.rows))
        built = read_json(folder.parent / "manifest.json").get("models", {}) if folder else {}
        floors = {
            d: max((r.pass_threshold for r in rs if r.pass_threshold is not None), default=0.0)
            for d, rs in work.rewards.items()
        }
        found = result(
            work.rows,
            parsed,
            reference,
            floors,
            {
                "simulated": work.simulated,
                "judge": work.judge,
                "judge_of_the_dataset": built.get("judge"),
                "skipped": dict(sorted(skipped.items())),
                "seed": settings.seed,
            },
            sequences,
            scalings,
        )
        out.write("evaluation.json", found)
        write_whole(out.path / "evaluation.md", markdown(found).encode())
        if scalings and folder is not None:
            write_whole(
                evals_file(folder),
                b"".join(orjson.dumps(row) + b"\n" for row in evaluations(found["scaling"])),
            )
    return found


def evals_file(folder: Path) -> Path:
    """Where the report of the run that made a dataset folder looks for training runs; beside the
    folder where there is none."""
    return (
        folder.parent if (folder.parent / "manifest.json").is_file() else folder
    ) / "evals.jsonl"


def settings_for(options: Options) -> tuple[BuildSettings, Path | None]:
    """Settings (dimensions, rewards, sampling) and the dataset folder; the held-out judge is the
    judge here.

    Raises:
        SettingsError: no settings are known, or no judge that is none of the models.
    """
    folder = options.dataset
    if folder is not None and (folder / "dataset" / "README.md").is_file():
        folder = folder / "dataset"
    built = next(
        (
            p / "build.yaml"
            for p in (options.dataset, folder.parent if folder else None)
            if p is not None and (p / "build.yaml").is_file()
        ),
        None,
    )
    source = options.source or (str(built) if built else None)
    if source is None:
        raise SettingsError(
            "no settings are known: give --source NAME (dimensions and rewards come from it), "
            "or --dataset RUN_DIR of a build on this machine"
        )
    settings = load_settings(source, options.overrides)
    held_out = settings.heldout_judge
    if held_out is not None:
        judge = {
            "use": None,
            "temperature": 0.0,
            "max_tokens": 256,
            **held_out.model_dump(mode="json", exclude_unset=True),
        }
        settings = build_settings(
            settings.model_dump(mode="json") | {"judge": judge, "heldout_judge": None}
        )
    judge_role = settings.judge
    if judge_role.use is not None and judge_role.base_url is None and judge_role.engine is None:
        raise SettingsError(
            "no judge is named, and no model may judge itself: give --judge-base-url URL and"
            " --judge-model ID, best of a judge that did not choose the pairs"
        )
    return settings, folder
