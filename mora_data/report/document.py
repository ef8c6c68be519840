"""report.json of a run: the verdict first, then every number with its n and interval, then the data
of each figure.

    report = report_of(Path("runs/demo"))        report["verdict"],
    report["arms"]["fused"]["metrics"]["joint_pass"]

A pure function of the run folder: the same files give the same bytes. Partitions are streamed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import yaml

from ..errors import UNREADABLE, RunFolderError
from ..resources import parse_yaml
from ..rewards.judge_stats import JudgeStats
from ..run import JudgeNumbers, Manifest
from ..run.files import read_json, readable
from ..run.folder import finished_parts, parts_of, run_manifest
from ..selection import plain_pairs_doubt
from .arms import (
    DRAWS,
    HEADLINE,
    Keep,
    answer_figures,
    arms_of,
    control_gains,
    gather,
    mined_prompts,
    verdict_on,
)
from .caveats import caveats_of, finding, headline, unmeasured_numbers
from .measure import HYPERVOLUME_PROMPTS, Scale, blocks
from .pairs import agreement, composition_figure, examples, length_figure, pair_numbers, read_pairs
from .values import (
    ArmsReport,
    CostFigure,
    EvaluationPoint,
    Report,
    RunFacts,
    ScalingFigure,
    Scorers,
    rounded,
)

FORMAT = 1
CLAIM = (
    "This is about the data only, not about training: whether training on these pairs helps a model"
    " is not tested here."
)
BEFORE = {"identity": "identity arm", "before": "fresh answers to the prompts that went on"}


def report_of(run_dir: Path) -> Report:
    """The whole report.

    Raises:
        RunFolderError: not a run folder, nothing in it is finished, or a file of it is damaged.
    """
    return finish_report(arms_report(run_dir), run_dir)


def arms_report(
    run_dir: Path, manifest: Manifest | None = None, keep: Keep | None = None
) -> ArmsReport:
    """The part that needs the partitions only, in one pass over the finished ones: verdict, arms,
    and the figures about prompts and answers.

    `manifest`: the run's, where a build is about to write it. `keep` is shown every prompt's
    values.

    Raises:
        RunFolderError: not a run folder, nothing in it is finished, or a file of it is damaged.
    """
    manifest, settings = _run(run_dir, manifest)
    dims, seed = tuple(settings["dimensions"]), int(settings["seed"])
    parts = finished_parts(run_dir)
    n_prompts = sum(p.n_prompts() for p in parts)
    if not n_prompts:
        raise RunFolderError(
            f"{run_dir} has no finished partition to report on ({manifest.get('status')}):"
            " run its `mora-data build` to the end first"
        )
    reference = manifest.get("reference") or {}
    if measured := read_json(run_dir / "reference.json"):  # none of a run without presamples
        with readable(run_dir / "reference.json", "run its `mora-data build` again"):
            reference = JudgeStats.from_json(measured).published()
    floors = reference.get("floors")
    if not floors or not all(d in floors for d in dims):
        raise RunFolderError(
            f"{run_dir} has no floors (reference.json): run its `mora-data build` again with"
            " --until score or later"
        )
    n_each = _answers_each(settings)
    scale = Scale(
        dims,
        floors_D=np.array([floors[d] for d in dims]) - 1e-9,
        sigma_D=np.array([reference["noise"][d] for d in dims]),
        k=max(1, min(8, n_each // 2)),
        every=max(1, -(-n_prompts // HYPERVOLUME_PROMPTS)),
    )
    g = gather(blocks(parts, dims), scale, n_each, n_prompts, keep)
    if not g.values:
        raise RunFolderError(
            f"{run_dir} holds no answers of an arm yet: run its `mora-data build` with --until"
            " score or later"
        )
    verdict, (arms, differences, coverage) = verdict_on(g, seed), arms_of(g, seed)
    return {
        "format": FORMAT,
        "verdict": verdict.line,
        "headline": headline(
            verdict.line, bool(verdict.comparisons), bool(manifest.get("simulated"))
        ),
        "finding": finding(arms, scale.k),
        "reasons": [verdict.reason],
        "claim": CLAIM,
        "doubts": [],
        "run": {"prompts": g.n[""], "partitions_sealed": len(parts)},
        "settings": {
            "dimensions": list(dims),
            "floors": {d: floors[d] for d in dims},
            "k": scale.k,
            "rollouts": int(settings["rollout"]["n"]),
            "hypervolume_every": scale.every,
            "bootstrap_draws": DRAWS,
            "seed": seed,
            "before": BEFORE.get(g.before or ""),
        },
        "arms": arms,
        "differences": differences,
        "coverage": coverage,
        "comparisons": control_gains(verdict),
        "over_best": {
            m: ends and {"low": rounded(ends[0]), "high": rounded(ends[1])}
            for m, ends in verdict.over_best.items()
        },
        "judge": _scorers(reference, run_dir, dims),
        "prompts": mined_prompts(g),
        "figures": answer_figures(g, n_each, seed),
    }


def finish_report(
    arms: ArmsReport,
    run_dir: Path,
    manifest: Manifest | None = None,
    dataset: Path | None = None,
) -> Report:
    """`arms_report` with what the written pairs and the manifest add.

    `manifest`, `dataset`: the run's, where a build is about to put them into their places.
    """
    manifest, settings = _run(run_dir, manifest)
    dims, seed = arms["settings"]["dimensions"], arms["settings"]["seed"]
    table = read_pairs(dataset or run_dir / "dataset", dims)
    sigma = [arms["judge"]["dimensions"][d]["sigma"] or 0.0 for d in dims]
    pairs = pair_numbers(table, dims, sigma, seed)
    report: Report = {
        **arms,
        "run": run_facts(manifest, settings, len(parts_of(run_dir)), arms["run"]),
        "figures": {
            **arms["figures"],
            "length": length_figure(table),
            "composition": composition_figure(table),
            "cost": _cost(manifest, pairs["n"]),
            "scaling": scaling_figure(run_dir, pairs["n"], arms["run"]["prompts"]),
        },
        "pairs": pairs,
        "examples": examples(table),
        "reviews": agreement(run_dir, table, seed),
        "judge_audit": manifest.get("judge_audit"),
        "contamination": manifest.get("contamination"),
        "not_measured": [],
    }
    report["not_measured"] = unmeasured_numbers(report, bool(manifest.get("pii")))
    plain = plain_pairs_doubt(settings)
    report["doubts"] = [
        *caveats_of(report),
        *([f"{plain[0].upper()}{plain[1:]}."] if plain else []),
    ]
    return report


def with_costs(report: Report, run_dir: Path) -> Report:
    """A build's report with what its manifest knows at the end: what the run cost."""
    manifest, settings = _run(run_dir)
    cost = _cost(manifest, report["pairs"]["n"])
    facts = run_facts(manifest, settings, report["run"]["partitions"], report["run"])
    return {**report, "run": facts, "figures": {**report["figures"], "cost": cost}}


def summary_of(arms: Report) -> dict[str, object]:
    """What the card prints of a report, rounded to three decimals: verdict, doubts, short cuts of
    the pairs, primary metrics of the arms, gains."""
    pairs, tokens = arms["pairs"], arms["figures"]["cost"]["tokens_per_pair"]
    wording = pairs.get("wording")
    return {
        "verdict": arms["verdict"],
        "headline": arms["headline"],
        "finding": arms["finding"],
        "reasons": arms["reasons"],
        "claim": arms["claim"],
        "doubts": arms["doubts"],
        "length_auc": _three_decimals(pairs["length"]["auc"]) if pairs["n"] else None,
        "wording_auc": _three_decimals(wording["auc"]) if wording else None,
        "tokens_per_pair": None if tokens is None else round(tokens),
        "k": arms["settings"]["k"],
        "comparisons": _three_decimals(arms["comparisons"]),
        "arms": _three_decimals(
            {
                a: {
                    "n": v["n"],
                    **{m: v["metrics"][m] for m in HEADLINE},
                    "log_ratio_to_fused": v["prompt_length"]["log_ratio_to_fused"],
                }
                for a, v in arms["arms"].items()
            }
        ),
    }


def _three_decimals(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {k: _three_decimals(v) for k, v in tree.items()}
    if isinstance(tree, list):
        return [_three_decimals(v) for v in tree]
    return round(tree, 3) + 0.0 if isinstance(tree, float) else tree


def settings_of(run_dir: Path) -> Mapping[str, Any]:
    """The settings that a run was built with.

    Raises:
        RunFolderError: not a run folder, or of another version.
    """
    return _run(run_dir)[1]


def _run(run_dir: Path, manifest: Manifest | None = None) -> tuple[Manifest, Mapping[str, Any]]:
    """Manifest and settings."""
    manifest = run_manifest(run_dir) if manifest is None else manifest
    settings = manifest.get("settings")
    if settings is None:  # the run was stopped before its first end
        try:
            settings = parse_yaml((run_dir / "build.yaml").read_text("utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
            raise RunFolderError(
                f"{run_dir} has no readable build.yaml: run its `mora-data build` again"
            ) from e
    dims = settings.get("dimensions") if isinstance(settings, dict) else None
    whole = isinstance(dims, list) and all(isinstance(d, str) for d in dims)
    if not whole or "rollout" not in settings:
        raise RunFolderError(
            f"the settings of {run_dir} are of another version of mora-data: build it again with"
            " this one"
        )
    return manifest, settings


def _answers_each(settings: Mapping[str, Any]) -> int:
    """Answers that each prompt has at least in the arms that are compared."""
    n, presample = int(settings["rollout"]["n"]), settings["presample"]
    measured = presample["enabled"] and "identity" not in settings["fuse"]["arms"]
    return min(n, presample.get("before") or n) if measured else n


def run_facts(
    manifest: Manifest,
    settings: Mapping[str, Any],
    n_parts: int,
    read: Mapping[str, int] | RunFacts,
) -> RunFacts:
    """`run` of report.json."""
    models = manifest.get("models") or {}
    policy, judge_url = models.get("policy"), (settings.get("judge") or {}).get("base_url")
    one_model = policy is not None and policy == models.get("judge") and not judge_url
    facts: RunFacts = {
        "status": manifest.get("status"),
        "source": manifest["identity"],
        "prompts": read["prompts"],
        "partitions": n_parts,
        "partitions_sealed": read["partitions_sealed"],
        "simulated": manifest.get("simulated"),
        "models": models,
        "selector": settings["select"]["selector"],
        "arms": settings["fuse"]["arms"],
        "settings_hash": manifest.get("settings_hash"),
        "fingerprint": manifest.get("fingerprint"),
        "judge_is_policy": bool(one_model and not manifest.get("simulated")),
    }
    if manifest.get("sources"):
        facts["sources"] = manifest["sources"]
    return facts


def _scorers(reference: JudgeNumbers, run_dir: Path, dims: tuple[str, ...]) -> Scorers:
    return {
        "dimensions": {
            d: {
                "sigma": rounded(sigma),
                "reliability": rounded(reference["reliability"][d]),
                "scored_twice": reference["scored_twice"][d],
                "measured": reference["noise_measured"][d],
            }
            for d, sigma in reference["noise"].items()
            if d in dims
        },
        "doubts": reference.get("doubts") or [],
        "n_rollouts": reference.get("n_rollouts"),
        "provisional": bool(reference.get("provisional")),
        "feedback": read_json(run_dir / "feedback.json") or None,
    }


def _cost(manifest: Manifest, n_pairs: int) -> CostFigure:
    """Tokens and failures of the run; per pair where there are pairs. Of what depends on how often
    it was interrupted, the money alone."""
    tokens = manifest.get("tokens") or {}
    both, money = sum(v for v in tokens.values() if v), manifest.get("cost")
    return {
        "tokens": tokens,
        "errors": manifest.get("errors"),
        "money": money,
        "currency": manifest.get("currency"),
        "money_per_pair": money / n_pairs if money is not None and n_pairs else None,
        "tokens_per_pair": rounded(both / n_pairs) if n_pairs else None,
        "stages": manifest.get("counts") or {},
    }


def scaling_figure(run_dir: Path, n_pairs: int, n_prompts: int) -> ScalingFigure:
    """evals.jsonl of the run folder, which `evaluate --scaling` writes; without it, only what pairs
    per prompt say."""
    found: list[EvaluationPoint] = []
    path = run_dir / "evals.jsonl"
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            row = orjson.loads(line)
            found.append(
                {
                    "fraction": float(row["fraction"]),
                    "seed": row["seed"],
                    "metric": str(row["metric"]),
                    "value": float(row["value"]),
                }
            )
        except UNREADABLE:
            continue
    return {
        "evaluations": found,
        "pairs_per_1000_prompts": rounded(1000 * n_pairs / n_prompts) if n_prompts else None,
    }
