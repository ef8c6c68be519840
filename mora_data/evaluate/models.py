"""What is evaluated: models, and the options of the command.

A model is NAME[@SEED]=WHERE; WHERE is a base URL (`#MODEL` where it serves several), a file of
answers or the folder of them that train_recipes/evaluate.py writes, or ENGINE:MODEL for an engine
in this process. A name with a seed stands for one checkpoint; names that differ in their seed alone
are one method.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from .. import resources
from ..errors import SettingsError, SourceError
from ..secrets import refuse_password
from ..settings import BuildSettings, RoleSettings, build_settings, load_settings, read_builder
from ..text import context_id
from .prompts import prompts_of_file

SAMPLING = ("temperature", "top_p", "max_tokens", "stop")  # of a role, without its endpoint
SPEC = re.compile(r"(?P<name>[\w.-]+)(?:@(?P<seed>[\w.-]+))?=(?P<where>.+)")


@dataclass(frozen=True, slots=True)
class EvaluateOptions:
    """What the command line says."""

    dataset: Path | None = None
    source: str | None = None
    files: Mapping[str, Path] = field(default_factory=dict)  # set name -> jsonl file of prompts
    reference: str | None = None
    out: Path = Path("runs/evaluate")
    limit: int | None = None
    n: int = 1
    overrides: Mapping[str, object] = field(default_factory=dict)
    fresh: bool = False
    pairwise: bool = True
    # each: MODEL or MODEL=DIMENSION in the order of training; the first is the start
    sequences: Sequence[Sequence[str]] = ()
    scalings: Sequence[Sequence[str]] = ()  # each: a name of the curve, perhaps, and MODEL=PAIRS
    benchmarks: Sequence[str] = ()  # NAME or NAME=FILE


@dataclass(frozen=True, slots=True)
class EvalModel:
    """One checkpoint: a method's name, its training seed, and where its answers come from."""

    name: str
    seed: str
    where: str

    @property
    def label(self) -> str:
        return f"{self.name}@{self.seed}"


def parse_model(text: str) -> EvalModel:
    """The model that NAME[@SEED]=WHERE names.

    Raises:
        SettingsError: not of that form.
    """
    found = SPEC.fullmatch(text)
    if found is None:
        raise SettingsError(
            f"{text!r} is not NAME=WHERE: write it as sft=http://host:8000/v1, or"
            " mora@0=answers.jsonl"
        )
    return EvalModel(found["name"], found["seed"] or "0", found["where"])


def role_of(model: EvalModel, policy: RoleSettings) -> RoleSettings | None:
    """The model's endpoint, sampling as the build's policy does; None where its answers lie in a
    file.

    Raises:
        SettingsError: neither a URL, nor a file, nor ENGINE:MODEL.
    """
    refuse_password(model.where, f"model {model.label}")
    url, _, served = model.where.partition("#")
    if url.startswith(("http://", "https://")):
        return policy.model_copy(
            update={"engine": "openai", "base_url": url, "model": served or None, "use": None}
        )
    if model.where.endswith((".jsonl", ".json")) or Path(model.where).is_dir():
        return None
    engine, colon, path = model.where.partition(":")
    if not colon:
        raise SettingsError(
            f"model {model.label}: {model.where!r} is no URL, no .jsonl or .json file and not"
            " ENGINE:MODEL"
        )
    return policy.model_copy(
        update={"engine": engine, "model": path or None, "base_url": None, "use": None}
    )


@dataclass(frozen=True, slots=True)
class RecordedAnswer:
    """An answer that lies in a file, with the figures beside it (kl, mc1, mc2)."""

    text: str
    finish_reason: str
    figures: Mapping[str, float]


def read_answers(path: Path) -> dict[str, list[RecordedAnswer]]:
    """prompt id -> answers, of a file with `prompt` (text or messages), `answer` (or `output`), and
    perhaps `kl`, `mc1` and `mc2`; of a folder: of its answers.jsonl and choices.jsonl.

    Raises:
        SourceError: it can't be read.
    """
    out: dict[str, list[RecordedAnswer]] = {}
    files = [path]
    if path.is_dir():
        files = [f for f in (path / "answers.jsonl", path / "choices.jsonl") if f.is_file()]
    if not files:
        raise SourceError(
            f"can't read answers from {path}: it holds neither answers.jsonl nor choices.jsonl"
        )
    rows = (row for file in files for row in prompts_of_file(file))
    for n, (messages, row) in enumerate(rows, 1):
        answer = row.get("answer", row.get("output"))
        if not isinstance(answer, str):
            raise SourceError(
                f"can't read answers from {path}: row {n} lacks `answer`; each one needs `prompt`"
                " and `answer`"
            )
        figures = {k: v for k in ("kl", "mc1", "mc2") if isinstance(v := row.get(k), int | float)}
        recorded = RecordedAnswer(answer, str(row.get("finish_reason", "stop")), figures)
        out.setdefault(context_id(messages), []).append(recorded)
    return out


def parse_curve(texts: Sequence[str], names: Sequence[str]) -> tuple[str, list[tuple[str, int]]]:
    """The name of a scaling curve ("" where none is given) and its (model, pairs).

    Raises:
        SettingsError: no such model, or not of that form.
    """
    name, points = (texts[0], texts[1:]) if texts and "=" not in texts[0] else ("", texts)
    found = parse_points(points, names, "--scaling")
    if bad := [f"{m}={n}" for m, n in found if not n.isdecimal()]:
        raise SettingsError(f"--scaling {bad[0]!r}: write MODEL=PAIRS, as mora=1000")
    return name, [(m, int(n)) for m, n in found]


def parse_points(texts: Sequence[str], names: Sequence[str], flag: str) -> list[tuple[str, str]]:
    """(model, label) of each `MODEL=LABEL` of --sequence or --scaling, in order.

    Raises:
        SettingsError: no such model, or not of that form.
    """
    out = []
    for text in texts:
        name, _, label = text.partition("=")
        if name not in names:
            raise SettingsError(
                f"{flag} names {name!r}, which is none of the models: {', '.join(names)}"
            )
        out.append((name, label))
    return out


def settings_for(options: EvaluateOptions) -> tuple[BuildSettings, Path | None, list[str]]:
    """Settings (dimensions, rewards, sampling), the dataset folder, and what the user has to know
    of them, a line each; the held-out judge is the judge here.

    Raises:
        SettingsError: no settings are known, or no judge that is none of the models.
    """
    folder = options.dataset
    if folder is not None and (folder / "dataset" / "README.md").is_file():
        folder = folder / "dataset"
    notes: list[str] = []
    if options.source is not None:
        settings = load_settings(options.source, options.overrides)
    else:
        settings = build_settings(_from_dataset(options.dataset, folder, notes), options.overrides)
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
    return settings, folder, notes


def _from_dataset(given: Path | None, folder: Path | None, notes: list[str]) -> dict[str, Any]:
    """What the build.yaml of a dataset may say: dimensions, shipped rubrics, sampling, the seed.

    A dataset may be somebody else's. Endpoints, names of keys, files, code and kinds of rewards
    come from flags or from the user's own file.
    """
    places = [] if given is None or folder is None else [given, folder.parent]
    source = next((p / "build.yaml" for p in places if (p / "build.yaml").is_file()), None)
    if source is None:
        raise SettingsError(
            "no settings are known: give --source NAME (dimensions and rewards come from it), "
            "or --dataset RUN_DIR of a build on this machine"
        )
    tree = read_builder(str(source))
    own = f"give --source FILE, settings of your own, in place of {source}"
    out: dict[str, Any] = {"name": "evaluate", "source": {"kind": "jsonl"}}
    out |= {k: tree[k] for k in ("dimensions", "seed") if k in tree}
    policy = tree.get("policy")
    out["policy"] = {k: policy[k] for k in SAMPLING if k in policy} if _is_tree(policy) else {}
    try:
        settings = build_settings(out)
    except SettingsError as e:
        raise SettingsError(f"{e}; {own}") from e
    shipped = resources.names("templates", "judge/*.j2")
    rewards = tree.get("rewards")
    out["rewards"] = {}
    for d in settings.dimensions:
        sources = rewards.get(d) if _is_tree(rewards) else None
        sources = sources if isinstance(sources, list) and sources else [{}]
        first = sources[0] if _is_tree(sources[0]) else {}
        rubric = first.get("template") or d
        is_rubric = first.get("kind", "judge") == "judge" and rubric in shipped
        if is_rubric and rubric != d:
            out["rewards"][d] = [{"template": rubric}]
        elif not is_rubric and d not in shipped:
            raise SettingsError(f"dimension {d!r} has no rubric that is shipped: {own}")
        if not is_rubric or len(sources) > 1 or first.keys() - {"kind", "template", "weight"}:
            notes.append(
                f"{d} is scored by the judge alone: a dataset names no other rewards; {own} for"
                " the build's"
            )
    return out


def _is_tree(value: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)
