"""report.json of a run: the verdict first, then every number with its n and interval, then the data
of each figure.

    report = report_of(Path("runs/demo"))        report["verdict"],
    report["arms"]["fused"]["metrics"]["joint_pass"]

A pure function of the run folder: the same files give the same bytes. PartitionRunner are streamed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import yaml

from ..errors import RunFolderError
from ..run.folder import parts_of, read_json
from ..run.partitions import write_whole
from . import figures
from .arms import arms_of, profile_of
from .doubts import doubts
from .gather import Gathered, Keep, gather
from .measure import scale
from .numbers import number
from .pairs import examples, pairs_of_run, read_pairs
from .read import blocks
from .reviews import agreement

FORMAT = 1
CLAIM = (
    "This is about the data only, not about training: whether training on these pairs helps a model"
    " is not tested here."
)


def report_of(run_dir: Path) -> dict[str, Any]:
    """The whole report.

    Raises:
        RunFolderError: not a run folder, nothing in it is finished, or a file of it is damaged.
    """
    arms = arms_report(run_dir)
    return finished(arms, run_dir)


@dataclass(frozen=True, slots=True)
class Measured:
    """A run's partitions, measured once.

    Attributes:
        run: its manifest and its settings, as trees.
        reference: floors and noise.
        n_parts: finished partitions.
        n_each: answers that each prompt has at least in the arms that are compared.
    """

    run: Mapping[str, Any]
    reference: Mapping[str, Any]
    n_parts: int
    n_each: int
    gathered: Gathered


def measured(
    run_dir: Path, manifest: Mapping[str, Any] | None = None, keep: Keep | None = None
) -> Measured:
    """One pass over the finished partitions.

    `manifest`: the run's, where a build is about to write it. `keep` is shown every prompt's
    values.

    Raises:
        RunFolderError: not a run folder, nothing in it is finished, or a file of it is damaged.
    """
    run = _run(run_dir, manifest)
    settings, dims = run["settings"], tuple(run["settings"]["dimensions"])
    parts = [p for p in parts_of(run_dir) if p.manifest() is not None]
    n_prompts = sum(p.n_prompts() for p in parts)
    if not parts or not n_prompts:
        raise RunFolderError(
            f"{run_dir} has no finished partition to report on ({run['manifest'].get('status')}):"
            " run its `mora-data build` to the end first"
        )
    reference = read_json(run_dir / "reference.json") or _reference_of(run["manifest"], dims)
    if not reference.get("floors") or not all(d in reference["floors"] for d in dims):
        raise RunFolderError(
            f"{run_dir} has no floors (reference.json): run its `mora-data build` again with"
            " --until score or later"
        )
    split = bool(settings["presample"].get("split"))
    n_each = _answers_each(settings, split)
    sigma = {d: reference["noise"][d]["sigma"] for d in dims}
    s = scale(dims, reference["floors"], sigma, n_each, n_prompts)
    g = gather(blocks(parts, dims, split), s, n_each, n_prompts, keep)
    if not g.values:
        raise RunFolderError(
            f"{run_dir} holds no answers of an arm yet: run its `mora-data build` with --until"
            " score or later"
        )
    return Measured(run, reference, len(parts), n_each, g)


def arms_report(run_dir: Path, manifest: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The part that needs the partitions only: verdict, arms, and the figures about prompts and
    answers."""
    return arms_of_measured(measured(run_dir, manifest), run_dir)


def arms_of_measured(m: Measured, run_dir: Path) -> dict[str, Any]:
    """`arms_report` of what is measured already."""
    settings, g = m.run["settings"], m.gathered
    dims, s, seed = g.scale.dims, g.scale, int(settings["seed"])
    tested = arms_of(g, seed)
    return {
        "format": FORMAT,
        "verdict": tested.pop("verdict"),
        "reasons": tested.pop("reasons"),
        "claim": CLAIM,
        "doubts": [],
        "run": {"prompts": g.n, "partitions_sealed": m.n_parts},
        "settings": {
            "dimensions": list(dims),
            "floors": {d: m.reference["floors"][d] for d in dims},
            "k": s.k,
            "rollouts": int(settings["rollout"]["n"]),
            "hypervolume_every": s.every,
            "bootstrap_draws": 2000,
            "seed": seed,
            "before": (
                {"identity": "identity arm", "before": "presamples that decided nothing"}.get(
                    g.before or ""
                )
            ),
        },
        **tested,
        "judge": _judge(m.reference, run_dir, dims),
        "prompts": figures.prompts(g),
        "figures": {"profile": profile_of(g, m.n_each, seed), **figures.of_answers(g)},
        "_shrinkage": _shrinkage(g),
    }


def finished(arms: Mapping[str, Any], run_dir: Path) -> dict[str, Any]:
    """`arms_report` with what the written pairs and the manifest add."""
    run, out = _run(run_dir), dict(arms)
    shrinkage, dims = out.pop("_shrinkage"), out["settings"]["dimensions"]
    held = read_pairs(run_dir / "dataset", dims)
    sigma = [out["judge"]["dimensions"][d]["sigma"] for d in dims]
    out["run"] = about(run, len(parts_of(run_dir)), out["run"])
    out["pairs"] = pairs_of_run(held, dims, sigma, out["settings"]["seed"])
    out["figures"] |= figures.of_pairs(held, out["pairs"], shrinkage)
    out["figures"]["cost"] = figures.cost(run["manifest"], out["pairs"]["n"])
    out["figures"]["scaling"] = figures.scaling(run_dir, out["pairs"]["n"], out["run"]["prompts"])
    out["examples"] = examples(held)
    out["reviews"] = agreement(run_dir, held, out["settings"]["seed"])
    out["contamination"] = run["manifest"].get("contamination")
    out["not_measured"] = figures.not_measured(out, run["manifest"])
    out["doubts"] = doubts(out)
    return out


def write_report(run_dir: Path, report: Mapping[str, Any]) -> list[Path]:
    """Write RUN_DIR/report.json and report.html; returns the paths."""
    from .page import page

    paths = [run_dir / "report.json", run_dir / "report.html"]
    write_whole(paths[0], orjson.dumps(report, option=orjson.OPT_INDENT_2) + b"\n")
    write_whole(paths[1], page(report, run_dir).encode())
    return paths


def summary_of(arms: Mapping[str, Any]) -> dict[str, Any]:
    """What the card prints of a report, rounded to three decimals: verdict, reasons, primary
    metrics of the arms, gains."""
    primary = ("dominance_rate", "joint_pass", "hypervolume", "erd")
    shown = {
        "comparisons": arms["comparisons"],
        "arms": {
            a: {
                "n": v["n"],
                **{m: v["metrics"][m] for m in primary},
                "log_ratio_to_fused": v["prompt_length"]["log_ratio_to_fused"],
            }
            for a, v in arms["arms"].items()
        },
    }
    head = {name: arms[name] for name in ("verdict", "reasons", "claim")}
    return {**head, "k": arms["settings"]["k"], **_rounded(shown)}


def _rounded(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {k: _rounded(v) for k, v in tree.items()}
    if isinstance(tree, list):
        return [_rounded(v) for v in tree]
    return round(tree, 3) + 0.0 if isinstance(tree, float) else tree


def settings_of(run_dir: Path) -> dict[str, Any]:
    """The settings that a run was built with, as a tree.

    Raises:
        RunFolderError: not a run folder, or of another version.
    """
    settings: dict[str, Any] = _run(run_dir)["settings"]
    return settings


def _run(run_dir: Path, manifest: Mapping[str, Any] | None = None) -> dict[str, Any]:
    manifest = read_json(run_dir / "manifest.json") if manifest is None else manifest
    if "identity" not in manifest:
        raise RunFolderError(f"{run_dir} is not a run folder: give the --out of a build")
    settings = manifest.get("settings")
    if settings is None:  # the run was stopped before its first end
        try:
            settings = yaml.safe_load((run_dir / "build.yaml").read_text("utf-8"))
        except (OSError, yaml.YAMLError) as e:
            raise RunFolderError(
                f"{run_dir} has no readable build.yaml: run its `mora-data build` again"
            ) from e
    if (
        not isinstance(settings, dict)
        or not isinstance(settings.get("dimensions"), list)
        or "rollout" not in settings
    ):
        raise RunFolderError(
            f"the settings of {run_dir} are of another version of mora-data: build it again with"
            " this one"
        )
    return {"manifest": manifest, "settings": settings}


def _reference_of(manifest: Mapping[str, Any], dims: tuple[str, ...]) -> dict[str, Any]:
    """A run without presamples has no reference.json; the manifest says which floors it used."""
    published = manifest.get("reference") or {}
    if "noise" not in published:
        return {}
    return {
        "floors": published.get("floors", {}),
        "n_rollouts": published.get("n_rollouts", 0),
        "provisional": published.get("provisional"),
        "noise": {
            d: {
                "sigma": published["noise"][d],
                "reliability": published["reliability"][d],
                "n": published["scored_twice"][d],
                "measured": published["noise_measured"][d],
            }
            for d in dims
        },
    }


def _answers_each(settings: Mapping[str, Any], split: bool) -> int:
    """Answers that each prompt has at least in the arms that are compared; "before" has half of the
    first presamples."""
    n, presample = int(settings["rollout"]["n"]), settings["presample"]
    if not (split and presample["enabled"]) or "identity" in settings["fuse"]["arms"]:
        return n
    return min(n, int(presample.get("step") or presample["n"][0]) // 2)


def about(run: Mapping[str, Any], n_parts: int, read: Mapping[str, int]) -> dict[str, Any]:
    """`run` of report.json: what was built, by whom, and how far. `read`: prompts and finished
    partitions."""
    m = run["manifest"]
    models = m.get("models") or {}
    judge = run["settings"].get("judge") or {}
    one = (
        models.get("policy") is not None
        and models.get("policy") == models.get("judge")
        and not judge.get("base_url")
    )
    return {
        "status": m.get("status"),
        "source": m["identity"],
        "prompts": read["prompts"],
        "partitions": n_parts,
        "partitions_sealed": read["partitions_sealed"],
        "simulated": m.get("simulated"),
        "models": models,
        "selector": run["settings"]["select"]["selector"],
        "arms": run["settings"]["fuse"]["arms"],
        "settings_hash": m.get("settings_hash"),
        "fingerprint": m.get("fingerprint"),
        "judge_is_policy": bool(one and not m.get("simulated")),
    }


def _judge(reference: Mapping[str, Any], run_dir: Path, dims: tuple[str, ...]) -> dict[str, Any]:
    noise = {
        d: {
            "sigma": number(v["sigma"]),
            "reliability": number(v["reliability"]),
            "scored_twice": v["n"],
            "measured": v["measured"],
        }
        for d, v in reference["noise"].items()
        if d in dims
    }
    return {
        "dimensions": noise,
        "n_rollouts": reference.get("n_rollouts"),
        "provisional": bool(reference.get("provisional")),
        "feedback": read_json(run_dir / "feedback.json") or None,
    }


def _shrinkage(g: Gathered) -> dict[str, Any] | None:
    """Mean margin of each prompt's best pair as selected and as scored once more, before any was
    dropped for it."""
    total, n = g.candidates
    if not n:
        return None
    first, second = total / n
    return {
        "n": n,
        "ratio": number(second.sum() / first.sum()) if first.sum() else None,
        "by_dimension": {
            d: {"selected": number(first[j]), "confirmed": number(second[j])}
            for j, d in enumerate(g.scale.dims)
        },
    }
