"""One build: all settings together, which endpoint each role ends up with, and how they come from a
builder's YAML and overrides, and go back to YAML; every fault is one line."""

from __future__ import annotations

import copy
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import ErrorDetails

from .. import resources
from ..errors import SettingsError
from ..secrets import refuse_secrets
from ..text import one_line
from .needs import Names, Needs, in_vain, nearest
from .roles import DimensionName, RewardSettings, RoleSettings, Settings
from .stages import (
    STAGE_ORDER,
    STEP,
    AuditSettings,
    FuseSettings,
    LimitSettings,
    MineSettings,
    MixedSource,
    PresampleSettings,
    PublishSettings,
    RaySettings,
    RecordedSettings,
    RolloutSettings,
    ScriptedSettings,
    SelectSettings,
    SourceSettings,
    published_of,
)

# what a role takes over from the one that it uses
_ENDPOINT = tuple(
    "engine base_url replicas transport model served_as revision api_key_env requests_per_min"
    " tokens_per_min local batch headers_env ca_file max_tokens_field system".split()
)
_ROLE_DEFAULTS: dict[str, dict[str, Any]] = {
    "rewriter": {"use": "policy", "temperature": 0.7},
    "judge": {"use": "policy", "temperature": 0.0, "max_tokens": 256},
}
PREVIEW: dict[str, Any] = {  # of a preview, under what its flags say
    "mine.limit": 5,
    "presample.enabled": False,
    "fuse.probe": 0,
    "rollout.n": 4,
    "select.confirm": False,
    "heldout_judge": None,
    "audit.limit": 0,
    "executor": "local",
}
_HALF = re.compile("[\ud800-\udfff]")  # of a surrogate pair, or a byte that is no UTF-8
_TYPE = re.compile(r"[^\[]*\[.*\]|constrained-.*|function-.*|int|float|str|bool")
REWARD_ROLE = "reward:"  # and then dimension:number
GUARD_ROLE = "guard"
PLUGIN_FOLDERS: list[Path] = []  # those of the builder files that were read
_RATED = Needs("policy.engine", but=("recorded",))  # `recorded` says it in their place
IDLE_TOO = {"idle": True}  # context of a validation that lets what does nothing stand
UNNAMED = ("name", "out")  # settings that change no row
_JUDGE_ALONE = (RewardSettings.model_construct(),)


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """What a command adds to the settings."""

    sample: bool = False
    data: tuple[Path, ...] = ()
    out: Path | None = None
    until: str = "publish"
    fresh: bool = False
    preview: bool = False


class BuildSettings(Settings):
    """One build, end to end: what a file in builders/ holds."""

    not_in_rows = frozenset(
        "name source sources mine rewards audit publish limits scripted recorded executor ray"
        " partition_size".split()
    )  # prompts come in by their hash, reward sources by theirs, models by their names

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$")]
    """Name of the build, and of its folder in runs/: letters, digits, `.`, `_` and `-`."""
    source: SourceSettings
    """Source rows; nothing to go by where there are `sources`."""
    sources: list[MixedSource] = []
    """Several sources, in place of `source`."""
    dimensions: Annotated[list[DimensionName], _RATED] = ["helpful", "harmless", "truthful"]
    """Reward dimensions, in the order of the columns; of recorded answers those in `recorded`."""
    policy: RoleSettings = RoleSettings.model_construct()
    """The model to be aligned."""
    rewriter: RoleSettings = RoleSettings.model_construct(**_ROLE_DEFAULTS["rewriter"])
    """The model that fuses intents."""
    judge: RoleSettings = RoleSettings.model_construct(**_ROLE_DEFAULTS["judge"])
    """The model that scores."""
    heldout_judge: RoleSettings | None = None
    """A second judge, for confirmation and reports only."""
    rewards: Annotated[
        dict[str, Annotated[list[RewardSettings], Field(min_length=1)]], _RATED, Names("dimensions")
    ] = {}
    """Reward sources per dimension; a dimension without an entry gets the judge with its own
    template."""
    audit: AuditSettings = AuditSettings.model_construct()
    """Judges against labels."""
    mine: MineSettings = MineSettings.model_construct()
    """Mining."""
    presample: PresampleSettings = PresampleSettings.model_construct()
    """Presampling."""
    fuse: FuseSettings = FuseSettings.model_construct()
    """Fusion."""
    rollout: RolloutSettings = RolloutSettings.model_construct()
    """Rollouts."""
    select: SelectSettings = SelectSettings.model_construct()
    """Selection."""
    publish: PublishSettings = PublishSettings.model_construct()
    """Publishing."""
    limits: LimitSettings = LimitSettings.model_construct()
    """Limits."""
    scripted: ScriptedSettings = ScriptedSettings.model_construct()
    """The simulator, where it is the engine."""
    recorded: RecordedSettings | None = None
    """Dimensions and rewards where the engine is recorded."""
    executor: Literal["local", "ray"] = Field("local", exclude=True)
    """Where partitions are worked on: in this process, or on a Ray cluster. No part of what is
    built: the same folder may go on with the other."""
    ray: Annotated[RaySettings, Needs("executor", ("ray",))] = Field(
        RaySettings.model_construct(), exclude=True
    )
    """The cluster, where the executor is ray."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Run seed."""
    partition_size: Annotated[int, Field(ge=1, le=65536)] = 512
    """Prompts per partition."""

    @field_validator("rewards", mode="before")
    @classmethod
    def _single_sources(cls, rewards: Any) -> Any:
        """One source may stand without its list, so that --set rewards.helpful.template=... can
        name it."""
        if not isinstance(rewards, dict):
            return rewards
        return {d: [v] if isinstance(v, dict) else v for d, v in rewards.items()}

    @model_validator(mode="before")
    @classmethod
    def _role_defaults(cls, values: Any) -> Any:
        """A role's own defaults stand under what the YAML gives (the rewriter's temperature, the
        judge's `use`)."""
        if not isinstance(values, dict):
            return values
        merged = dict(values)
        for role, defaults in _ROLE_DEFAULTS.items():
            given = values.get(role)
            if given is None or isinstance(given, dict):
                merged[role] = {**defaults, **(given or {})}
        return merged

    @model_validator(mode="before")
    @classmethod
    def _source_or_sources(cls, values: Any) -> Any:
        """The sources of a mix get different names."""
        if not isinstance(values, dict) or not values.get("sources"):
            return values
        if "source" in values:
            raise ValueError("there are `source` and `sources`: give one of them")
        given = values["sources"]
        if not isinstance(given, list) or not all(isinstance(s, dict) for s in given):
            raise ValueError("sources must be a list of sources, each with its kind or builder")
        mixed: list[dict[str, Any]] = []
        for one in given:
            stem = str(one.get("name") or one.get("kind") or "source").replace(":", ".")
            name, k = stem, 1
            while name in [m["name"] for m in mixed]:
                k += 1
                name = f"{stem}-{k}"
            mixed.append({**one, "name": name})
        return {**values, "sources": mixed, "source": {"kind": mixed[0].get("kind") or ""}}

    @model_serializer(mode="wrap")
    def _one_of_both(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """`source`, or `sources`: what was given, so that it can be read again."""
        tree: dict[str, Any] = dump(self)
        del tree["source" if self.sources else "sources"]
        return tree

    @model_validator(mode="after")
    def _dimensions_known(self) -> BuildSettings:
        if not self.dimensions or len({d.lower() for d in self.dimensions}) != len(self.dimensions):
            raise ValueError("dimensions must be a list of different names")
        if self.publish.stage_order == STAGE_ORDER:
            order = [d for d in self.publish.stage_order if d in self.dimensions]
            publish = self.publish.model_copy(update={"stage_order": order})
            object.__setattr__(self, "publish", publish)
        if "keep" in (self.rewriter.reasoning, self.judge.reasoning):
            raise ValueError("reasoning: keep is for the policy: no other thought has a column")
        for start in ("policy", "rewriter", "judge"):
            seen, at = [start], getattr(self, start)
            while at.use is not None and at.use != seen[-1] and at.engine is None:
                if at.use in seen:
                    raise ValueError(
                        f"{' -> '.join([*seen, at.use])}: `use` leads in a circle, give one of"
                        " these roles a model of its own and `use: null`"
                    )
                seen.append(at.use)
                at = getattr(self, at.use)
        compared = any(r.kind == "pairwise" for rs in self.rewards.values() for r in rs)
        if self.presample.step == "auto":
            waves = "batch" in (self.role(r).engine for r in ("policy", "judge"))
            step = None if waves or compared else STEP
            presample = self.presample.model_copy(update={"step": step})
            object.__setattr__(self, "presample", presample)
        return self

    @model_validator(mode="after")
    def _of_use(self, info: ValidationInfo) -> BuildSettings:
        for found in in_vain(self, self.as_used) if info.context is not IDLE_TOO else ():
            raise ValueError(found.fault)
        return self

    @property
    def all_sources(self) -> Sequence[SourceSettings]:
        """The one source, or those of the mix."""
        return self.sources or [self.source]

    def of_source(self, source: MixedSource) -> BuildSettings:
        """The same build of one source of the mix alone, with its own count as limit."""
        mine = self.mine.model_copy(update={"limit": source.count})
        return self.model_copy(update={"source": source, "sources": [], "mine": mine})

    @property
    def published_arms(self) -> list[str]:
        """The arms that go into the dataset; the others are there to compare with."""
        if self.policy.engine == "recorded":
            return ["recorded"]
        return published_of(self.fuse.arms, self.publish.arms)

    def reward_sources(self, dimension: str) -> Sequence[RewardSettings]:
        """Reward sources of a dimension: those given, else the judge with the dimension's own
        rubric."""
        return self.rewards.get(dimension) or _JUDGE_ALONE

    def reward_role(self, dimension: str, reward: RewardSettings) -> str:
        """The role that a reward asks as: its own where it names an endpoint, else the judge."""
        sources = self.reward_sources(dimension)
        if reward.endpoint is None or reward not in sources:
            return "judge"
        return f"{REWARD_ROLE}{dimension}:{sources.index(reward)}"

    def reward_roles(self) -> list[str]:
        """The roles of the rewards that name an endpoint."""
        found = [self.reward_role(d, r) for d in self.dimensions for r in self.reward_sources(d)]
        return [r for r in dict.fromkeys(found) if r != "judge"]

    def more_roles(self) -> list[str]:
        """The roles beside policy, rewriter and judge, but for the held-out judge."""
        return [*self.reward_roles(), *([GUARD_ROLE] if self.fuse.guard else [])]

    def role(self, name: str) -> RoleSettings:
        """A role's settings, with what it does not say itself taken over from the role that it
        uses.

        A role with a base URL of its own takes nothing but the key: another server has its own
        models.
        """
        role: RoleSettings | None
        if name.startswith(REWARD_ROLE):
            role = self._endpoint(name)
        elif name == GUARD_ROLE:
            role = _as_rater(self.fuse.guard.endpoint) if self.fuse.guard else None
        else:
            role = getattr(self, name)
        if role is None:
            raise SettingsError(f"no {name} is set: give {name}.base_url or {name}.use")
        return role if role.use == name else self._taken_over(role)

    def _taken_over(self, role: RoleSettings) -> RoleSettings:
        if role.use is None or role.engine is not None:
            return role
        base = self.role(role.use)
        names = ("api_key_env",) if role.base_url is not None else _ENDPOINT
        own = {k for k in names if k in role.model_fields_set and getattr(role, k) is not None}
        if "model" in own:
            own.add("served_as")
        return role.model_copy(update={k: getattr(base, k) for k in names if k not in own})

    def _endpoint(self, name: str) -> RoleSettings | None:
        """The endpoint of a reward's role; one that names no server is the judge's."""
        dimension, _, index = name.removeprefix(REWARD_ROLE).rpartition(":")
        found = self.reward_sources(dimension)[int(index)].endpoint
        return None if found is None else _as_rater(found)

    def as_used(self, at: str, section: BaseModel) -> BaseModel:
        """A section of these settings, a role with its engine and what else it takes over."""
        if not isinstance(section, RoleSettings):
            return section
        role = self._taken_over(_as_rater(section)) if "." in at else self.role(at)
        return role.model_copy(update={"engine": role.engine or "openai"})


def _as_rater(found: RoleSettings) -> RoleSettings:
    """An endpoint that scores, with a judge's defaults; the judge's server where it names none."""
    own: dict[str, Any] = {"temperature": 0.0, "max_tokens": 256}
    if not (found.use or found.base_url or found.engine):
        own["use"] = "judge"
    return found.model_copy(
        update={k: v for k, v in own.items() if k not in found.model_fields_set or k == "use"}
    )


def _in_tree(tree: Any, path: Sequence[str]) -> Any:
    for part in path:
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


def load_settings(source: str, overrides: Mapping[str, object] | None = None) -> BuildSettings:
    """Settings of builder `source` (a name in builders/, or a path to a YAML file) with dotted
    `overrides` on top.

    Raises:
        SettingsError: unknown source, unreadable YAML, unknown key or bad value; the text names the
            nearest known one.
    """
    return build_settings(read_builder(source), overrides)


def preview_settings(
    tree: Mapping[str, object], overrides: Mapping[str, object] | None = None
) -> BuildSettings:
    """Settings of a cheap look at a few prompts: a build's without presampling, confirmation and
    audit, with few answers, in one arm; `overrides` stand above that.

    Raises:
        SettingsError: one line with the first fault.
    """
    overrides = overrides or {}
    wanted, cheap = build_settings(tree, overrides), dict(PREVIEW)
    if wanted.policy.engine != "recorded":
        arms, own = wanted.published_arms[:1], wanted.fuse.templates
        cheap |= {"fuse.arms": arms, "publish.arms": "auto"}
        cheap |= {"fuse.templates": {a: path for a, path in own.items() if a in arms}}
    cheap = {k: v for k, v in cheap.items() if not any(_overlap(k, o) for o in overrides)}
    return build_settings(_merged(tree, overrides), cheap)


def build_settings(
    tree: Mapping[str, object], overrides: Mapping[str, object] | None = None
) -> BuildSettings:
    """Check a settings tree with dotted `overrides` on top. What is given and does nothing is a
    fault; where an override turns it off, it is left out.

    Raises:
        SettingsError: one line with the first fault.
    """
    overrides = overrides or {}
    merged = _merged(tree, overrides)
    settings = _checked(merged)
    idle = list(in_vain(settings, settings.as_used))
    for setting, where, fault in idle:
        # of an engine also what decides it, in the role that it is taken over from, too
        by = (".engine", ".base_url", ".use") if where.endswith(".engine") else ()
        off = any(_overlap(o, where) or o.endswith(by) for o in overrides)
        if not off or any(_overlap(o, setting) for o in overrides):
            raise SettingsError(fault)
        _take_out(merged, setting)
    return _checked(merged) if idle else settings


def _merged(tree: Mapping[str, object], overrides: Mapping[str, object]) -> dict[str, Any]:
    merged: dict[str, Any] = copy.deepcopy(dict(tree))
    for key, value in overrides.items():
        _put(merged, key, value)
    if isinstance(merged.get("sources"), list):
        merged["sources"] = [_with_builder(s) for s in merged["sources"]]
    return merged


def _checked(tree: Mapping[str, object]) -> BuildSettings:
    """The settings, also those that do nothing."""
    _check_colons(tree)
    _check_writable(tree)
    refuse_secrets(tree)
    try:
        return BuildSettings.model_validate(tree, context=IDLE_TOO)
    except ValidationError as e:
        raise SettingsError(explain(e, BuildSettings)) from e


def _take_out(tree: Any, setting: str) -> None:
    """The setting, or the name in a list, and what holds nothing without it."""
    above, _, last = setting.rpartition(".")
    found = _in_tree(tree, above.split(".")) if above else tree
    if isinstance(found, list):
        found[:] = [v for v in found if PurePath(str(v)).stem != last]
    elif isinstance(found, dict):
        found.pop(last, None)
    if found in ([], {}) and above:
        _take_out(tree, above)


def _overlap(a: str, b: str) -> bool:
    """Whether one dotted name is the other, or stands above it."""
    return f"{a}.".startswith(f"{b}.") or f"{b}.".startswith(f"{a}.")


def parse_override(text: str, flag: str = "--set") -> tuple[str, object]:
    """`KEY=VALUE` of a flag, the value read as YAML.

    Raises:
        SettingsError: no `=`, no value, or the value is not YAML.
    """
    key, eq, value = text.partition("=")
    if not eq or not key.strip():
        shown = f"{key.strip() or 'rollout.n'}=VALUE"
        raise SettingsError(f"{flag} {text!r} is not KEY=VALUE: write it as {shown}")
    if not value.strip():
        raise SettingsError(f"{flag} {text!r} has no value: write null for none")
    try:
        return key.strip(), resources.parse_yaml(value)
    except yaml.YAMLError as e:
        raise SettingsError(f"{flag} {text!r}: the value is not YAML ({one_line(e)})") from e


def _check_colons(value: object) -> None:
    """YAML takes {helpful:2} for a key without a value."""
    for inner in value if isinstance(value, list) else ():
        _check_colons(inner)
    for key, inner in value.items() if isinstance(value, dict) else ():
        if inner is None and all(parts := str(key).partition(":")):
            raise SettingsError(
                f"{{{key}}} has no space behind the colon: write '{{{parts[0]}: {parts[2]}}}', on a"
                " command line in quotes"
            )
        _check_colons(inner)


def _check_writable(value: object, where: str = "") -> None:
    """Numbers that a machine has a place for, and texts that are whole."""
    fault = ""
    if isinstance(value, int) and abs(value) > sys.maxsize:
        fault = f"should be at most {sys.maxsize}"
    if isinstance(value, str) and _HALF.search(value):
        fault = "should be text: it holds bytes or halves of characters that are none"
    if fault:
        raise SettingsError(f"setting {where} = {value!r}: {fault}")
    items = value.items() if isinstance(value, Mapping) else ()
    for key, inner in enumerate(value) if isinstance(value, (list, tuple)) else items:
        _check_writable(key, where)
        _check_writable(inner, f"{where}.{key}".removeprefix("."))


def to_yaml(settings: BuildSettings) -> str:
    """The settings as YAML, keys in the order of the models."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def settings_that_differ(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[dict[str, object]]:
    """Leaves of two trees of settings that are not the same, by their dotted names."""
    one, two = dict(_leaves(a)), dict(_leaves(b))
    keys = [k for k in dict.fromkeys([*one, *two]) if k not in UNNAMED and one.get(k) != two.get(k)]
    return [{"setting": k, "a": one.get(k), "b": two.get(k)} for k in sorted(keys)]


def kept_settings(path: Path) -> BuildSettings:
    """The settings in a file that `to_yaml` wrote. What does nothing may stand in it: older
    versions let it.

    Raises:
        SettingsError: it can't be read, or another version wrote it.
    """
    try:
        return _checked(_read_yaml(path, str(path)))
    except SettingsError as e:
        raise SettingsError(f"{e}. Correct {path}, or run its `mora-data build` again") from e


def changes_of(path: Path, settings: BuildSettings) -> list[str]:
    """`setting before -> now` of each setting that a file which `to_yaml` wrote has otherwise;
    none where it can't be read, or is of another version."""
    try:
        if path.read_bytes() == to_yaml(settings).encode():
            return []
        before = kept_settings(path)
    except (OSError, SettingsError):
        return []
    trees = (s.model_dump(mode="json") for s in (before, settings))
    return [
        f"{c['setting']} {_shown(c['a'])} -> {_shown(c['b'])}" for c in settings_that_differ(*trees)
    ]


def _shown(value: object) -> str:
    return one_line(json.dumps(value, ensure_ascii=False), 80)


def _leaves(tree: Mapping[str, Any], start: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{start}{key}.")
        else:
            yield start + str(key), value


def read_builder(source: str) -> dict[str, Any]:
    """The tree of a builder's file, unchecked. Its folder goes to the end of `sys.path`: plug-ins
    that it names are looked for beside it, too.

    Raises:
        SettingsError: no such builder, or no YAML mapping.
    """
    path = Path(source)
    if path.suffix in (".yaml", ".yml"):
        find_plugins_in(path.resolve().parent)
    else:
        path = resources.folder("builders") / f"{source}.yaml"
        if os.sep in source or not path.is_file():
            raise SettingsError(
                f"unknown --source {source!r}:"
                f" {nearest(source, resources.names('builders', '*.yaml'))} (your own rows:"
                " --source auto --data PATH)"
            )
    return _read_yaml(path, source)


def _read_yaml(path: Path, name: str) -> dict[str, Any]:
    try:
        tree = resources.parse_yaml(path.read_text("utf-8"))
    except OSError as e:
        raise SettingsError(f"can't read the builder file {name}: {e.strerror}") from e
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as e:
        raise SettingsError(f"builder file {name} is not YAML: {one_line(e)}") from e
    if not isinstance(tree, dict):
        raise SettingsError(f"builder file {name} must hold a mapping, not {type(tree).__name__}")
    return tree


def find_plugins_in(folder: Path) -> None:
    """Look for modules that settings name in this folder, too, behind all others."""
    if folder not in PLUGIN_FOLDERS:
        PLUGIN_FOLDERS.append(folder)
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def mixed_builder(given: Sequence[tuple[str, Sequence[str]]]) -> dict[str, Any]:
    """The tree of a mix of builders, each with its local files, in equal shares: the settings of
    the first, the sources of all.

    Raises:
        SettingsError: as `read_builder`; or one of several builders is a mix itself.
    """
    trees = [read_builder(name) for name, _ in given]
    for (name, _), tree in zip(given, trees, strict=True):
        if len(given) > 1 and "source" not in tree:
            raise SettingsError(
                f"--source {name} has several sources of its own: to add others, list them all in"
                " one YAML file, under `sources`"
            )
    if len(given) == 1:
        return trees[0]
    sources = [
        {**tree["source"], "name": tree.get("name"), "share": 1, "data": list(data)}
        for tree, (_, data) in zip(trees, given, strict=True)
    ]
    name = "_".join(dict.fromkeys(str(tree.get("name")) for tree in trees))[:96]
    rest = {k: v for k, v in trees[0].items() if k not in ("source", "recorded")}
    return {**rest, "name": name, "sources": sources}


def _with_builder(source: Any) -> Any:
    """A source of a mix with what the builder that it names says of its own."""
    if not isinstance(source, dict) or "builder" not in source:
        return source
    name, own = str(source["builder"]), {k: v for k, v in source.items() if k != "builder"}
    tree = read_builder(name)
    if not isinstance(tree.get("source"), dict):
        raise SettingsError(f"sources: builder {name!r} has no source of its own: name another")
    return {**tree["source"], "name": tree.get("name", name), **own}


def _put(tree: dict[str, Any], dotted: str, value: object) -> None:
    *path, last = dotted.split(".")
    node = tree
    for part in path:
        below = node.get(part)
        if not isinstance(below, dict):
            below = node[part] = {}
        node = below
    node[last] = value


def explain(
    error: ValidationError, model: type[BaseModel], inside: str = "", beside: Iterable[str] = ()
) -> str:
    """The first fault of settings of `model` as one line; `inside` is where they stand, `beside`
    are further keys that may stand there."""
    faults = error.errors()  # an unknown key tells more than the missing one that it was meant for
    fault = next((f for f in faults if f["type"] == "extra_forbidden"), faults[0])
    # of a setting that takes one of several types, the type that the value comes nearest to
    same = [f for f in faults if _path(f)[: len(_path(fault))] == _path(fault)]
    fault = max(same, key=lambda f: len(_path(f)))
    path = [*([inside] if inside else []), *_path(fault)]
    where = ".".join(path) or "settings"
    if fault["type"] == "extra_forbidden":
        parents, last = list(fault["loc"][:-1]), str(fault["loc"][-1])
        known = [*_fields_at(model, parents), *(() if parents else beside)]
        return f"unknown setting {where!r}: {nearest(last, known)}"
    if fault["type"] == "missing":
        flag = "" if inside else f" or give --set {where}=..."
        return f"setting {where!r} is missing: add it to the builder file{flag}"
    ways = [f["msg"].removeprefix("Value error, ") for f in same if _path(f) == _path(fault)]
    message = ", or ".join(w if w is ways[0] else w.removeprefix("Input should be ") for w in ways)
    if not path:  # of the whole, whose value no line can hold
        return f"settings: {message}"
    return f"setting {where} = {fault.get('input')!r}: {message}"


def _path(fault: ErrorDetails) -> list[str]:
    """Where a fault is, without the names of types between."""
    return [str(p) for p in fault["loc"] if not _TYPE.fullmatch(str(p))]


def _fields_at(model: type[BaseModel], path: list[int | str]) -> list[str]:
    for part in path:
        field = model.model_fields.get(str(part))
        inner = model_in(field.annotation) if field is not None else None
        if inner is not None:
            model = inner
    return list(model.model_fields)


def model_in(annotation: object) -> type[BaseModel] | None:
    """The settings model that an annotation holds, as in dict[str, list[Model]] or Model | None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (model_in(a) for a in getattr(annotation, "__args__", ()))
    return next((m for m in found if m is not None), None)
