"""Dual feedback: the scores of a dimension's sources as one value, with its uncertainty. The only
place where raw becomes value.

    source (raw) -> calibration map -> value in [0, 1]
                 -> weighted mean over the dimension's sources, and how far they disagree

A calibration map is JSON (rewards/calibration.py). A source whose own scale is known needs
none. A score that is missing, not finite or outside its scale is None with a reason, never a
number.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from .. import plugins
from ..errors import SettingsError
from ..resources import Secret
from ..run.files import json_hash
from ..run.limiter import ConcurrencyLimiter
from ..settings import BuildSettings, CalibrationSettings, RewardSettings, Settings, cache_tree
from ..text import one_line
from ..types import Messages, Score
from . import REWARDS, UNCALIBRATED, Ask, Reward, RewardClient, load, missing, scores_of

LABELLED_FLOOR = 0.5  # a calibrated P(good)
OWN = ("identity", "likert", "sigmoid")
LABELLED = ("isotonic", "platt")
ANCHORED = "anchored"
TAKES = {  # kind of calibration, and the settings that it takes
    "likert": {"low", "high"},
    "sigmoid": {"zero", "temperature"},
    ANCHORED: {"temperature", "quantile"},
    **{kind: {"labels"} for kind in LABELLED},
}

Anchors = dict[tuple[str, int], float]  # (dimension, number of the source) -> s_ref of one prompt


@dataclass(frozen=True, slots=True)
class RewardSource:
    """One source of reward in its place.

    Attributes:
        number: its place among the sources of its dimension, from 0.
        noise: standard deviation of its values, as the settings state it.
        kind: calibration in force.
        calibration_map: None where the source's own value stands, and before it is fitted.
        pass_threshold: in [0, 1]; None where none holds across prompts.
        step: smallest difference its values can show.
        cache_key: hash of its code, its settings, and the files that it reads.
        limiter: of the calls that it makes itself.
    """

    reward: Reward
    number: int
    weight: float
    noise: float
    kind: str
    calibration_map: Mapping[str, Any] | None
    pass_threshold: float | None
    step: float
    settings: CalibrationSettings
    cache_key: str
    limiter: ConcurrencyLimiter

    @property
    def dimension(self) -> str:
        return self.reward.dimension

    @property
    def needs_fit(self) -> bool:
        """Whether its map has to be fitted on the reference scores."""
        return self.calibration_map is None and self.kind not in OWN

    @property
    def relative(self) -> bool:
        """Whether its values compare answers to one prompt only."""
        return self.pass_threshold is None

    async def scores(
        self,
        ask: Ask,
        purpose: str,
        prompt_id: str,
        messages: Messages,
        answers: Sequence[str],
        ratings: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
    ) -> list[Score]:
        """The reward's scores, not calibrated yet; `ratings`: see `RewardClient`. Raises: see
        `scores_of`."""
        client = RewardClient(ask, self.cache_key, purpose, self.limiter, ratings, prompt_id)
        return await scores_of(self.reward, client, messages, answers)


RewardSources = Mapping[str, Sequence[RewardSource]]


class Value(NamedTuple):
    """A rollout's reward in one dimension.

    Attributes:
        reward: weighted mean of the sources.
        absolute: the same over the sources with an absolute scale: what pass thresholds are
            compared with.
        uncertainty: kappa times the weighted sd over the sources; of a single one, kappa times the
            noise of a score.
    """

    reward: float
    absolute: float
    uncertainty: float


def sources_of(
    settings: BuildSettings, secret: Secret | None = None
) -> dict[str, list[RewardSource]]:
    """The sources that the settings name, with those maps that need no reference scores.

    Raises:
        SettingsError: a reward is missing or wrong, a calibration file or label file can't be used,
            or a build without presamples would have to fit one.
    """
    out: dict[str, list[RewardSource]] = {d: [] for d in settings.dimensions}
    for d, found in out.items():
        for number, wanted in enumerate(settings.reward_sources(d)):
            source = _source(load(d, wanted, settings, secret=secret), number, wanted)
            found.append(source)
            if source.needs_fit and not settings.presample.enabled:
                anchored = source.kind == ANCHORED
                raise SettingsError(
                    f"rewards.{d}: {source.reward.name} needs the calibration {source.kind}, which"
                    " is fitted on presamples, and presample.enabled is false: give it a"
                    f" calibration_file{' or calibration.temperature' if anchored else ''}"
                )
    together = [
        d for d in out if any(r.options.get("together") for r in settings.reward_sources(d))
    ]
    if len(together) == 1:
        raise SettingsError(
            f"rewards.{together[0]}.together: one call scores three dimensions, and only"
            f" {together[0]} takes its number: set it for the others, too, or leave it out"
        )
    return out


def with_calibration_maps(
    sources: RewardSources, calibration_maps: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, list[RewardSource]]:
    """The sources with the maps of a reference.json."""
    return {
        d: [
            replace(s, calibration_map=calibration_maps[d][s.number]) if s.needs_fit else s
            for s in found
        ]
        for d, found in sources.items()
    }


def maps_as_json(sources: RewardSources) -> dict[str, list[dict[str, Any]]]:
    """The maps as reference.json and the published calibration.json hold them."""
    return {
        d: [{"source": s.reward.name, **(s.calibration_map or {"kind": s.kind})} for s in found]
        for d, found in sources.items()
    }


def pass_thresholds_of(
    sources: RewardSources, given: str | Mapping[str, float]
) -> dict[str, float]:
    """Pass mark per dimension: the one given, else that of its first source with an absolute scale.

    Raises:
        SettingsError: a dimension has none.
    """
    marks = {} if isinstance(given, str) else dict(given)
    out = {}
    for d, found in sources.items():
        own = next((s.pass_threshold for s in found if s.pass_threshold is not None), None)
        if own is None and not (d in marks and all(s.kind == ANCHORED for s in found)):
            raise SettingsError(_no_floor(d, found))
        out[d] = marks[d] if d in marks else float(own or 0.0)
    return out


def steps_of(sources: RewardSources) -> dict[str, float]:
    """Resolution of each dimension's scale: the coarsest of its sources."""
    return {d: max(s.step for s in found) for d, found in sources.items()}


def stated_noise(sources: RewardSources) -> dict[str, float]:
    """Standard deviation of each dimension's reward, as the settings of its sources state it."""
    return {
        d: math.hypot(*(s.weight * s.noise for s in found)) / math.fsum(s.weight for s in found)
        for d, found in sources.items()
    }


def calibrated(
    source: RewardSource, scores: Sequence[Score], n: int, anchors: Anchors
) -> list[Score]:
    """A source's scores of `n` answers with their values; the first ones of a prompt set its
    anchor."""
    if len(scores) != n:
        return [missing(source.reward, f"{len(scores)} scores for {n} answers")] * n
    if source.needs_fit:
        return list(scores)
    if source.calibration_map is None:
        return [_own(s) for s in scores]
    key = (source.dimension, source.number)
    if source.kind == ANCHORED and key not in anchors:
        anchors[key] = anchor(source, [s.raw for s in scores])
    values = _values(source.calibration_map, [s.raw for s in scores], anchors.get(key, math.nan))
    return [_with_value(s, v) for s, v in zip(scores, values, strict=True)]


def _with_value(score: Score, value: float | None) -> Score:
    if value is not None:
        return replace(score, value=value, reason="")
    reason = score.reason
    if reason in ("", UNCALIBRATED):
        known = score.raw is not None and math.isfinite(score.raw)
        reason = "no_score" if score.raw is None else "out_of_range" if known else "not_finite"
    return replace(score, value=None, reason=reason)


def anchor(source: RewardSource, raw: Sequence[float | None]) -> float:
    """s_ref of a prompt from the raw scores of its answers."""
    from .calibration import anchor_of

    return anchor_of(source.calibration_map or {}, [r for r in raw if r is not None])


def combine(
    sources: Sequence[RewardSource],
    scores: Sequence[Score],
    kappa: float | None = None,
    sigma: float = 0.0,
) -> Value | None:
    """One dimension's scores of one rollout, in the order of its sources; None when any of them has
    no value.

    `kappa` None: 1 for two or more sources, else 0 (docs/method.md,
    Scores to rewards).
    """
    if len(scores) != len(sources) or any(s.value is None for s in scores):
        return None
    if len(sources) == 1:
        value = scores[0].value
        return Value(value, value, (kappa or 0.0) * sigma) if value is not None else None
    weighed = [
        (source, s.value) for source, s in zip(sources, scores, strict=True) if s.value is not None
    ]
    mean = _mean(weighed)
    absolute = [(source, v) for source, v in weighed if not source.relative]
    spread = math.sqrt(_mean([(source, (v - mean) ** 2) for source, v in weighed]))
    return Value(
        mean, _mean(absolute) if absolute else mean, (1.0 if kappa is None else kappa) * spread
    )


def fit_maps(
    sources: RewardSources, raw: Mapping[tuple[str, int], Sequence[Sequence[float | None]]]
) -> dict[str, list[RewardSource]]:
    """The sources with maps fitted on the raw scores of the reference prompts, one list of scores
    per prompt.

    Raises:
        SettingsError: the scores can't carry such a map; the text names the dimension.
    """
    return {
        d: [
            replace(s, calibration_map=_fit(s, raw.get((d, s.number), ()))) if s.needs_fit else s
            for s in found
        ]
        for d, found in sources.items()
    }


def _fit(source: RewardSource, by_prompt: Sequence[Sequence[float | None]]) -> dict[str, Any]:
    import numpy as np

    from .calibration import fit

    prompts = [
        np.array([v for v in scores if v is not None and math.isfinite(v)]) for scores in by_prompt
    ]
    # sorted: the order in which prompts finish must not show
    raw = np.sort(np.concatenate([*prompts, np.empty(0)]))
    given = _given(source.settings)
    freedom = sum(max(len(p) - 1, 0) for p in prompts)
    if freedom and source.kind == ANCHORED:
        given["spread"] = math.sqrt(
            math.fsum(float(((p - p.mean()) ** 2).sum()) for p in prompts if len(p)) / freedom
        )
    try:
        return fit(source.kind, raw, given=given)
    except SettingsError as e:
        raise SettingsError(f"rewards.{source.dimension}: {source.reward.name}: {e}") from e


def _source(reward: Reward, number: int, settings: RewardSettings) -> RewardSource:
    ours = settings.calibration or CalibrationSettings()
    own = str(getattr(reward, "calibration", "identity"))
    where = f"rewards.{reward.dimension}: {reward.name}"
    calibration_map = (
        _chart_from_file(settings.calibration_file, reward) if settings.calibration_file else None
    )
    kind = str(calibration_map["kind"]) if calibration_map is not None else ours.kind or own
    if calibration_map is None and kind in LABELLED:
        calibration_map = _labelled(kind, ours.labels, where)
    if calibration_map is None and kind == ANCHORED and ours.temperature is not None:
        calibration_map = {"kind": kind, "n": 0, **_given(ours)}
    if calibration_map is None and kind in OWN and settings.calibration is not None:
        import numpy as np

        from .calibration import fit

        calibration_map = {**fit(kind, np.empty(0), given=_given(ours)), "n": 0}
    given = ours.model_dump(exclude={"kind"}, exclude_defaults=True)
    if unused := sorted(given.keys() - TAKES.get(kind, set())):
        raise SettingsError(
            f"rewards.{reward.dimension}.calibration.{unused[0]} is not for the kind {kind}:"
            " leave it out, or give another kind"
        )
    changed, raw = kind != own, raw_source(reward, number, settings)
    pass_threshold = raw.pass_threshold
    if kind in LABELLED:
        pass_threshold = LABELLED_FLOOR if changed or pass_threshold is None else pass_threshold
    elif changed and kind not in OWN:
        pass_threshold = None
    return replace(
        raw,
        kind=kind,
        calibration_map=calibration_map,
        pass_threshold=pass_threshold,
        step=raw.step if kind in OWN else 0.0,
        settings=ours,
    )


def raw_source(reward: Reward, number: int, settings: RewardSettings) -> RewardSource:
    """A source whose scores are taken as the reward gives them, whatever its calibration."""
    return RewardSource(
        reward,
        number,
        settings.weight,
        settings.noise,
        "identity",
        None,
        getattr(reward, "pass_threshold", None),
        reward.step,
        CalibrationSettings(),
        _cache_key(reward, settings),
        ConcurrencyLimiter(settings.concurrency),
    )


def _cache_key(reward: Reward, settings: RewardSettings) -> str:
    """Hash of all that a reward source is made of, besides the model that it asks."""
    plugin = plugins.load(REWARDS, settings.kind, f"rewards.{reward.dimension}")
    options = plugin.options(settings.options)
    own = cache_tree(options) if isinstance(options, Settings) else settings.options
    common = {k: v for k, v in cache_tree(settings).items() if k not in settings.options}
    files = calibration_files(settings)
    return json_hash([plugin.code_hash, common, own, getattr(reward, "fingerprint", ""), files])


def calibration_files(settings: RewardSettings) -> list[str]:
    """Hashes of the files that a source's calibration is read from; empty text for those that are
    not there."""
    labels = settings.calibration.labels if settings.calibration else None
    paths = [Path(name) for name in (settings.calibration_file, labels) if name]
    return [hashlib.sha256(p.read_bytes()).hexdigest()[:16] if p.is_file() else "" for p in paths]


def _given(settings: CalibrationSettings) -> dict[str, float]:
    return settings.model_dump(
        include={"low", "high", "zero", "temperature", "quantile"}, exclude_none=True
    )


def _chart_from_file(path: str, reward: Reward) -> dict[str, Any]:
    """A frozen map: the file's own, or the one that a published calibration.json holds for this
    source."""
    from .calibration import checked_map

    try:
        tree = json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as e:
        raise SettingsError(f"can't read the calibration file {path}: {one_line(e)}") from e
    if isinstance(tree, dict) and "kind" not in tree:
        published = tree.get("reference")
        held = (published if isinstance(published, dict) else tree).get("calibration") or {}
        found = held.get(reward.dimension) or []
        tree = next((c for c in found if c.get("source") == reward.name), None)
        if tree is None:
            raise SettingsError(
                f"calibration file {path} holds nothing for {reward.name} in {reward.dimension}"
            )
    return checked_map(tree, f"calibration file {path}")


def _labelled(kind: str, path: str | None, where: str) -> dict[str, Any]:
    import numpy as np

    from .calibration import fit

    if path is None:
        raise SettingsError(
            f"{where}: {kind} is fitted on labels: give calibration.labels, a JSONL file of {{raw,"
            " label}"
        )
    rows = _labels(path)
    try:
        return fit(
            kind,
            np.array([r for r, _ in rows], dtype=float),
            np.array([y for _, y in rows], dtype=float),
        )
    except SettingsError as e:
        raise SettingsError(f"{where}: {e} ({path})") from e


def _labels(path: str) -> list[tuple[float, float]]:
    """(raw, label) of each line.

    Raises:
        SettingsError: unreadable, or a line is not such a pair; the text names the line.
    """
    rows = []
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise SettingsError(f"can't read the label file {path}: {one_line(e)}") from e
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            raw, label = float(row["raw"]), float(row["label"])
        except (ValueError, TypeError, KeyError):
            raw = label = math.nan
        if not math.isfinite(raw) or not 0 <= label <= 1:
            raise SettingsError(
                f'{path}:{number}: {line[:60]!r} is not {{"raw": number, "label": 0 to 1}}'
            )
        rows.append((raw, label))
    return rows


def _own(score: Score) -> Score:
    """The source's own value, unless it is none."""
    if score.value is None:
        return score
    if not math.isfinite(score.value):
        return replace(score, value=None, reason="not_finite")
    return score if 0 <= score.value <= 1 else replace(score, value=None, reason="out_of_range")


def _values(
    calibration_map: Mapping[str, Any], raw: Sequence[float | None], ref: float
) -> list[float | None]:
    import numpy as np

    from .calibration import apply

    values = apply(
        calibration_map, np.array([math.nan if r is None else r for r in raw], dtype=float), ref
    )
    return [None if math.isnan(v) else v for v in values.tolist()]


def _mean(weighed: Sequence[tuple[RewardSource, float]]) -> float:
    return sum(s.weight * v for s, v in weighed) / sum(s.weight for s, _ in weighed)


def _no_floor(d: str, found: Sequence[RewardSource]) -> str:
    names = ", ".join(s.reward.name for s in found)
    remedy = f"add a source with an absolute scale to rewards.{d} (a judge or a guard)"
    if all(s.kind == ANCHORED for s in found):
        return (
            f"dimension {d}: scores of {names} only compare answers to one prompt, so they give no"
            f" pass mark: {remedy}, or say presample.floors.{d}, where 0.5 is the prompt's own"
            f" {found[0].settings.quantile:g}-quantile"
        )
    return (
        f"dimension {d}: {names} is known up to an offset for each prompt (Bradley-Terry), so no"
        f" floor on it means the same in two prompts: {remedy}, or set its calibration to anchored"
    )
