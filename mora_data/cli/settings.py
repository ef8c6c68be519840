"""Every setting of a build with its type, default, meaning and an example: `mora-data settings`,
and docs/settings.md, which tests/support/pages.py makes of the same.

What a setting means is the docstring under its field, read from the source when it is asked for.
"""

from __future__ import annotations

import ast
import inspect
import shlex
import textwrap
import types
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import zip_longest
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ..errors import SettingsError
from ..plugins import load
from ..rewards import REWARDS
from ..settings import ROLES, BuildSettings, RoleSettings, nearest
from ..settings.build import model_in
from ..settings.needs import Needs
from ..settings.stages import MixedSource, SourceSettings

TOP = "build"  # the section of what stands in none
DIMENSION = "<dimension>"
WORDS: dict[Any, str] = {int: "integer", float: "number", str: "text", bool: "true or false"}
BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
# values to show where the default says nothing
EXAMPLES: dict[str, object] = {
    "name": "my-build",
    "dimensions": ["helpful", "harmless"],
    "executor": "ray",
    "seed": 1,
    "source.kind": "jsonl",
    "source.dataset": "org/prompts",
    "source.revision": "v1.0",
    "source.licence": "cc-by-4.0",
    "source.files": ["data/train-*.jsonl"],
    "source.columns": {"prompt": "question"},
    "source.decontaminate_from": {"AdvBench": "advbench.csv"},
    "sources": [{"builder": "pku-saferlhf"}, {"builder": "hh-rlhf", "count": 1000}],
    "sources.name": "mine",
    "sources.share": 2,
    "sources.count": 1000,
    "sources.data": ["rows.jsonl"],
    "policy.use": "policy",
    "policy.engine": "openai",
    "policy.base_url": "http://127.0.0.1:8000/v1",
    "policy.replicas": ["http://127.0.0.1:8001/v1"],
    "policy.transport": "openai",
    "policy.model": "org/policy-8b",
    "policy.served_as": ["*"],
    "policy.revision": "main",
    "policy.stop": ["###"],
    "policy.requests_per_min": 500,
    "policy.tokens_per_min": 100_000,
    "policy.n_per_request": 1,
    "policy.timeout_s": 300,
    "policy.extra_body": {"top_k": 50},
    "policy.headers_env": {"api-key": "AZURE_OPENAI_API_KEY"},
    "policy.ca_file": "company.pem",
    "policy.max_tokens_field": "max_completion_tokens",
    "policy.system": "merge",
    "policy.local.device": "cpu",
    "policy.local.max_length": 4096,
    "policy.local.options": {"gpu_memory_utilization": 0.8},
    "policy.batch.mode": "files",
    "mine.limit": 2000,
    "mine.near_duplicates": 0.8,
    "mine.strata": "none",
    "presample.step": 4,
    "presample.foresee": "label",
    "presample.budget": 1000,
    "presample.floors": {"helpful": 0.75, "harmless": 0.75, "truthful": 0.75},
    "presample.canaries": 20,
    "fuse.arms": "all",
    "fuse.templates": {"fused": "my/fused.j2"},
    "fuse.intents": {"helpful": "my-intents.yaml"},
    "fuse.targets": ["harmless", "truthful"],
    "fuse.checks": ["harm", "intent"],
    "fuse.guard": {"endpoint": {"model": "org/llama-guard"}},
    "fuse.guard.family": {"family": "llama-guard-3", "endpoint": {"model": "org/llama-guard"}},
    "fuse.guard.template": {
        "family": "wildguard",
        "template": "wildguard.j2",
        "endpoint": {"model": "org/wildguard"},
    },
    "fuse.guard.endpoint": {"endpoint": {"base_url": "http://127.0.0.1:8002/v1"}},
    "fuse.probe": 8,
    "fuse.forbidden": ["as an AI"],
    "fuse.subject": "mine:similarity",
    "fuse.embedding": "minishlab/potion-base-8M",
    "rollout.personas": ["cautious", "concise"],
    "rewards": {"helpful": {"kind": "judge"}},
    f"rewards.{DIMENSION}.kind": "pairwise",
    f"rewards.{DIMENSION}.weight": 2.0,
    f"rewards.{DIMENSION}.noise": 0.05,
    f"rewards.{DIMENSION}.endpoint": {"model": "org/reward-model"},
    f"rewards.{DIMENSION}.calibration": "ecdf",
    f"rewards.{DIMENSION}.calibration.kind": "ecdf",
    f"rewards.{DIMENSION}.calibration.labels": {"kind": "platt", "labels": "labels.jsonl"},
    f"rewards.{DIMENSION}.calibration.low": {"kind": "likert", "low": 0, "high": 10},
    f"rewards.{DIMENSION}.calibration.high": {"kind": "likert", "high": 10},
    f"rewards.{DIMENSION}.calibration.zero": {"kind": "sigmoid", "zero": 1.5},
    f"rewards.{DIMENSION}.calibration.temperature": {"kind": "sigmoid", "temperature": 2.0},
    f"rewards.{DIMENSION}.calibration.quantile": {"kind": "anchored", "quantile": 0.5},
    f"rewards.{DIMENSION}.calibration_file": "calibration.json",
    "audit.labels": {"harmless": "safe"},
    f"audit.labels.{DIMENSION}.rating": {"rating": "safe"},
    f"audit.labels.{DIMENSION}.invert": {"rating": "severity", "invert": True},
    f"audit.labels.{DIMENSION}.stratum": {"rating": "better", "stratum": "helpful-*"},
    f"audit.labels.{DIMENSION}.by": {"rating": "score", "by": "GPT-4"},
    "select.selector": "lexi",
    "select.weights": {"helpful": 2.0},
    "select.kappa": 1.0,
    "publish.configs": ["preference", "scored"],
    "publish.arms": ["fused"],
    "publish.unsafe": "drop",
    "publish.licence": "cc-by-4.0",
    "limits.max_cost": 20.0,
    "limits.max_tokens": 50_000_000,
    "limits.prices": "prices.yaml",
    "scripted.world": None,
    "scripted.n_prompts": 1000,
    "recorded": {"dimensions": ["helpful"], "rewards": {"helpful": []}},
    "recorded.dimensions": {"dimensions": ["helpful"], "rewards": {}},
    "recorded.rewards": {
        "dimensions": ["helpful"],
        "rewards": {"helpful": [{"kind": "precomputed", "column": "rating"}]},
    },
    "ray.address": "head:6379",
    # of kinds of rewards
    "judge.template": "helpful",
    "pairwise.template": "pairwise.j2",
    "rubric.template": "rubric.j2",
    "rubric.text": [{"text": "It gives a source."}],
    "rubric.weight": [{"text": "It gives a source.", "weight": 2.0}],
    "rubric.scale": [{"text": "It gives a source.", "scale": "levels"}],
    "classifier.family": "skywork",
    "classifier.labels": ["safe", "unsafe"],
    "classifier.label": "safe",
    "classifier.activation": "sigmoid",
    "classifier.layout": "layout.j2",
    "classifier.range": [-10, 10],
    "guard.family": "llama-guard-3",
    "guard.template": "shieldgemma.j2",
    "guard.policies": {"S1": "No insults."},
    "python.path": "mine:length_score",
    "precomputed.column": "rating",
    "precomputed.range": [1, 5],
}
WHOLE = ("fuse.guard.", "calibration.", "audit.labels.", "recorded.")  # given with their mapping


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting.

    Attributes:
        path: dotted name, as --set takes it.
        type: what may stand there, in words.
        default: as YAML on one line; None where it must be given.
        meaning: the docstring of its field.
        example: `KEY=VALUE` for --set.
    """

    path: str
    type: str
    default: str | None
    meaning: str
    example: str


@cache
def sections() -> dict[str, list[Setting]]:
    """Section -> its settings, in the order of the YAML; a role's are those of `policy`, a reward's
    own stand under `rewards` by their kind."""
    out: dict[str, list[Setting]] = {TOP: []}
    meanings = meanings_of(BuildSettings)
    for name, field in BuildSettings.model_fields.items():
        model = model_in(field.annotation)
        if model is RoleSettings:
            if name == "policy":
                out[name] = list(_walk(model, name))
        elif model is None:
            out[TOP].append(_setting(name, field, meanings[name]))
        else:
            whole = _is_optional(field) or _is_many(field)
            first = [_setting(name, field, meanings[name])] if whole else []
            inside = _walk(model, _below(name, field.annotation))
            out[name] = [*first, *(_noted(s, field) for s in inside)]
    for kind in REWARDS:
        own = getattr(load(REWARDS, kind, "rewards.kind").target, "Settings", None)
        if own is not None:
            out["rewards"] += _walk(own, f"rewards.{DIMENSION}", kind)
    return out


def settings_in(section: str) -> list[Setting]:
    """The settings of a section, or the one of a dotted name.

    Raises:
        SettingsError: there is neither; the nearest is named.
    """
    known = sections()
    head, _, rest = section.partition(".")
    role = head in ROLES and head != "policy"
    wanted = f"policy.{rest}".rstrip(".") if role else section
    everything = [s for some in known.values() for s in some]
    found = known[TOP] if section == TOP else [s for s in everything if _is_below(s.path, wanted)]
    if not found:
        names = [*known, *ROLES, *(s.path for s in everything)]
        raise SettingsError(f"no setting or section {section!r}: {nearest(section, names)}")
    return [_of_role(s, head) for s in found] if role else found


def _is_below(path: str, wanted: str) -> bool:
    """Whether a setting is the wanted one or stands in it; any name does for a dimension."""
    pairs = zip_longest(path.split("."), wanted.split("."))
    return all(b is None or a in (b, DIMENSION) for a, b in pairs)


def _of_role(setting: Setting, role: str) -> Setting:
    """A setting of `policy` as another role has it; some have a default of their own."""
    name = setting.path.removeprefix("policy.")
    own = BuildSettings.model_fields[role].default
    default = setting.default
    if own is not None and name in own.model_fields_set:
        default = _yaml(getattr(own, name))
    example = setting.example.replace("policy.", f"{role}.", 1)
    return replace(setting, path=f"{role}.{name}", default=default, example=example)


def setting_lines(settings: list[Setting]) -> list[str]:
    """Settings for the terminal."""
    lines = []
    for s in settings:
        default = "must be given" if s.default is None else f"default {s.default}"
        lines += [
            f"{s.path}   {s.type}   {default}",
            *textwrap.wrap(s.meaning, 96, initial_indent="    ", subsequent_indent="    "),
            f"    --set {shlex.quote(s.example)}",
        ]
    return lines


def overview() -> list[str]:
    """The sections, one a line."""
    meanings = meanings_of(BuildSettings)
    lines = [
        f"{name:<14} {len(found):>3} settings   {meanings.get(name, 'What stands in no section.')}"
        for name, found in sections().items()
    ]
    roles = ", ".join(r for r in ROLES if r != "policy")
    return [*lines, "", f"{roles} have the settings of policy: mora-data settings judge"]


def _walk(model: type[BaseModel], prefix: str, kind: str = "") -> Iterator[Setting]:
    """Settings of a model and of those in it; `kind`: it is a reward's own."""
    meanings = meanings_of(model)
    for name, field in model.model_fields.items():
        if model is MixedSource and name in SourceSettings.model_fields:
            continue  # as of `source`
        inner = model_in(field.annotation)
        path = f"{prefix}.{name}"
        if inner is None or inner is RoleSettings or _is_optional(field) or _is_many(field):
            yield _setting(path, field, meanings[name], kind)
        if inner is not None and inner is not RoleSettings and name != "rewards":
            for found in _walk(inner, _below(path, field.annotation), kind):
                yield _noted(found, field)


def _noted(setting: Setting, field: FieldInfo, own: bool = False) -> Setting:
    """With what makes it work, as its field, or the one of its section, says."""
    for m in field.metadata:
        if not isinstance(m, Needs) or (m.but and not own):
            continue
        if f" Only with {m.name}" not in setting.meaning:
            values = " or ".join(m.values or m.but)
            note = f" {'Not' if m.but else 'Only'} with {m.name}{values and f' {values}'}."
            setting = replace(setting, meaning=setting.meaning + note)
    return setting


def _setting(path: str, field: FieldInfo, meaning: str, kind: str = "") -> Setting:
    required = field.is_required()
    default = None if required else _yaml(field.get_default(call_default_factory=True))
    said = f"{kind}: {meaning}" if kind else meaning
    type_, example = _words(field.annotation, field.metadata), _example(path, field, kind)
    return _noted(Setting(path, type_, default, said, example), field, own=True)


def _example(path: str, field: FieldInfo, kind: str) -> str:
    parent, _, name = path.replace(DIMENSION, "helpful").rpartition(".")
    shown = EXAMPLES.get(f"{kind}.{name}" if kind else path, field.default)
    if kind:
        name = "criteria" if "criteria" in path else name
        return f"rewards.helpful={_yaml({'kind': kind, name: shown})}"
    if parent == "sources":
        return f"sources={_yaml([{'builder': 'pku-saferlhf', name: shown}])}"
    whole = any(part in path for part in WHOLE)
    return f"{parent if whole else f'{parent}.{name}'.lstrip('.')}={_yaml(shown)}"


def meanings_of(model: type[BaseModel]) -> dict[str, str]:
    """Field -> the docstring under it, on one line, of a model and those that it is made from."""
    out: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if not issubclass(cls, BaseModel) or cls is BaseModel:
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
            ):
                out[field.target.id] = " ".join(str(text.value.value).split())
    return out


def _is_optional(field: FieldInfo) -> bool:
    return type(None) in get_args(field.annotation)


def _is_many(field: FieldInfo) -> bool:
    return get_origin(field.annotation) in (dict, list)


def _below(path: str, annotation: object) -> str:
    """Where the settings of the model in a field stand: in a mapping under a dimension."""
    return f"{path}.{DIMENSION}" if get_origin(annotation) is dict else path


def _words(annotation: Any, metadata: list[Any] | tuple[Any, ...] = ()) -> str:
    """A type in words."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _words(args[0], args[1:])
    if origin is Literal:
        return " or ".join(map(str, args))
    if origin in (Union, types.UnionType):
        return " or ".join(_words(a) for a in args)
    if origin in (list, tuple):
        return f"list of {_words(args[0], metadata)}"
    if origin is dict:
        return f"mapping of {_words(args[0])} to {_words(args[1])}"
    if annotation is type(None):
        return "null"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "settings of a role" if annotation is RoleSettings else "mapping"
    bounds = [
        f"{sign} {getattr(m, name):g}"
        for inner in metadata
        for m in getattr(inner, "metadata", None) or [inner]
        for name, sign in BOUNDS.items()
        if getattr(m, name, None) is not None
    ]
    return " ".join([WORDS.get(annotation, "any value"), ", ".join(bounds)]).strip()


def _yaml(value: object) -> str:
    """A value as YAML on one line."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", exclude_unset=True)
    text = yaml.safe_dump([value], default_flow_style=True, width=10_000, sort_keys=False)
    return text.strip()[1:-1]
