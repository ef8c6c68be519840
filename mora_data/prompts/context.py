"""What a build works with, loaded once from its settings: rewards, rewriter, selector, personas,
and the statistics of its judges.

    build = load_context(settings, until, benchmarks)
    build = build.with_judge_stats(stats)
    build.partition_key(engines, partition)     of everything that can change the partition's rows
    PromptContext(build, ask)                   what one prompt's coroutine needs

A build has one, and so has every worker of a cluster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .. import plugins
from ..engines.engine import Engine
from ..resources import Secret
from ..rewards import Ask, Reward
from ..rewards.combine import (
    RewardSources,
    pass_thresholds_of,
    sources_of,
    stated_noise,
    steps_of,
    with_calibration_maps,
)
from ..rewards.judge import heldout_judges
from ..rewards.judge_stats import JudgeStats, unmeasured
from ..rewriting.rewriter import Rewriter
from ..run.files import json_hash
from ..run.limiter import ConcurrencyLimiter
from ..run.partitions import Partition
from ..selection import DOMINANCE, SELECTORS
from ..settings import GUARD_ROLE, BuildSettings, cache_tree
from ..sources.benchmarks import Benchmarks
from ..text import digest
from ..types import STAGES, Role, Sampling, reaches
from .personas import Persona, load_personas

FORMAT = 4  # of the partitions; raised when the same settings would make other rows

# what the judges' statistics do not rest on; everything else that the settings hold counts
NOT_IN_JUDGE_STATS = ("fuse", "rewriter", "rollout", "select", "heldout_judge")
NO_RATERS = ("rewriter", "heldout_judge", GUARD_ROLE)


@dataclass(frozen=True, slots=True)
class BuildContext:
    """The parts of a build that its settings name.

    Attributes:
        sources: reward sources per dimension, with their calibration maps where those are fitted.
        templates: hashes of everything that is shown to a model, by name.
        code: hashes of the code of the plug-ins, by the setting that names each.
    """

    settings: BuildSettings
    until: str
    sources: RewardSources
    judge_stats: JudgeStats
    heldout: Mapping[str, Reward]
    rewriter: Rewriter
    selector: plugins.Plugin
    dominance: bool  # whether its pairs never lose a dimension
    personas: tuple[Persona, ...]
    templates: Mapping[str, str]
    code: Mapping[str, str]

    @property
    def dims(self) -> list[str]:
        return self.settings.dimensions

    @property
    def steps(self) -> dict[str, float]:
        """Resolution of each dimension's scale."""
        return steps_of(self.sources)

    @property
    def limiters(self) -> list[ConcurrencyLimiter]:
        """Of the calls that reward sources make themselves."""
        return [s.limiter for group in self.sources.values() for s in group]

    def reaches(self, stage: str) -> bool:
        """Whether the run goes as far as `stage`."""
        return reaches(self.until, stage)

    def sampling(self, role: str) -> Sampling:
        """A role's sampling parameters."""
        r = self.settings.role(role)
        keep = r.reasoning == "keep"
        return Sampling(r.temperature, r.top_p, r.max_tokens, tuple(r.stop), thoughts=keep)

    def with_judge_stats(self, stats: JudgeStats) -> BuildContext:
        """With what was measured, and the calibration maps that were fitted."""
        if not self.settings.presample.enabled:
            return replace(self, judge_stats=stats)
        sources = with_calibration_maps(self.sources, stats.calibration)
        return replace(self, judge_stats=stats, sources=sources)

    def partition_key(self, engines: Mapping[Role, Engine], partition: Partition) -> str:
        """The cache key of a partition's rows: everything that the settings, the plug-ins, the
        models and the judges' statistics hold, but for what is excluded by name."""
        stats = self.judge_stats.to_json()
        for name in ("basis", "n_rollouts", "provisional", "doubts"):
            stats.pop(name, None)
        return json_hash(
            {
                **self._inputs(engines, self.code),
                "settings": cache_tree(self.settings),
                "until": min(self.until, "select", key=STAGES.index),
                "templates": dict(self.templates),
                "judge_stats": stats,
                "prompts": partition.prompts_hash(),
            }
        )

    def judge_stats_key(self, engines: Mapping[Role, Engine]) -> str:
        """The cache key of the judges' statistics."""
        tree = cache_tree(self.settings)
        kappa = tree["select"]["kappa"]
        for section in NOT_IN_JUDGE_STATS:
            del tree[section]
        raters = [r for r in engines if r not in NO_RATERS]
        judges = {k: v for k, v in self.templates.items() if k.startswith("judge/")}
        rewards = {k: v for k, v in self.code.items() if k.startswith("rewards.")}
        stated = {d: v for d, v in stated_noise(self.sources).items() if v}
        return json_hash(
            {
                **self._inputs({r: engines[r] for r in raters}, rewards),
                "settings": tree,
                "kappa": kappa,
                "templates": judges,
                "floors": dict(self.judge_stats.pass_thresholds),
                **({"noise": stated} if stated else {}),
            }
        )

    def _inputs(self, engines: Mapping[Role, Engine], code: Mapping[str, str]) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "models": {r: engine_identity(e) for r, e in engines.items()},
            "code": dict(code),
            "compared": self.rewriter.compared,
        }


@dataclass(frozen=True, slots=True)
class PromptContext:
    """What one prompt's coroutine needs: the build, and the one way to ask models."""

    build: BuildContext
    ask: Ask
    ratings: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # by recorded answer

    @property
    def settings(self) -> BuildSettings:
        return self.build.settings


def load_context(
    settings: BuildSettings, until: str, benchmarks: Benchmarks, secret: Secret
) -> BuildContext:
    """The context of a build; rewrites are compared with `benchmarks`.

    Raises:
        SettingsError: a reward, template, selector or persona is missing or wrong.
    """
    s = settings
    sources = sources_of(s, secret)
    judges = heldout_judges(s, secret)
    rewriter = Rewriter(s, benchmarks, secret)
    selector = plugins.load(SELECTORS, s.select.selector, "select.selector")
    personas = load_personas(s.rollout.personas, s.rollout.n)
    return BuildContext(
        s,
        until,
        sources,
        unmeasured(sources, pass_thresholds_of(sources, s.presample.floors)),
        judges,
        rewriter,
        selector,
        _is_dominance(selector),
        personas,
        _template_hashes(sources, judges, rewriter, personas),
        _code_hashes(sources, selector, rewriter),
    )


def engine_identity(engine: Engine) -> list[Any]:
    """What of an engine can change its answers."""
    return [engine.model, engine.revision, dict(engine.extra)]


def _is_dominance(plugin: plugins.Plugin) -> bool:
    """By its name, where it is shipped: it is imported with the first answers, as numpy is."""
    if plugin.name in SELECTORS:
        return plugin.name in DOMINANCE
    return bool(getattr(plugin.target, "dominance", False))


def _template_hashes(
    sources: RewardSources,
    judges: Mapping[str, Reward],
    rewriter: Rewriter,
    personas: Sequence[Persona],
) -> dict[str, str]:
    found = {
        f"judge/{d}" + (f"/{s.number}" if s.number else ""): getattr(s.reward, "fingerprint", "")
        for d, group in sources.items()
        for s in group
    }
    found |= {f"intents/{d}": text for d, text in rewriter.intents_sha256.items()}
    found |= {f"fuse/{arm}": t.sha256 for arm, t in rewriter.templates.items()}
    if rewriter.templates:
        found |= {f"guard/{name}": t.sha256 for name, t in rewriter.guard.templates.items()}
    found |= {f"heldout/{d}": getattr(r, "fingerprint", "") for d, r in judges.items()}
    return found | {f"personas/{p.name}": digest(p.system) for p in personas}


def _code_hashes(
    sources: RewardSources, selector: plugins.Plugin, rewriter: Rewriter
) -> dict[str, str]:
    found = {f"rewards.{d}.{s.number}": s.cache_key for d, group in sources.items() for s in group}
    found["select.selector"] = selector.code_hash
    return found | rewriter.code_hashes
