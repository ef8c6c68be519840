"""What a partition needs to be worked on, made once from the settings: rewards, fuser, selector,
personas, their fingerprints.

    kit = load(settings, until, benchmarks)
    kit.work(ask, as_reference(reference))             what a prompt's coroutine needs
    kit.fingerprint(engines, reference, part)          everything that changes the partition's rows
    await kit.through(engines, reference, runner, ...) partitions asked to their end and sealed

A build has one, and so has every worker of a cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..engines.cached_client import CachedClient
from ..engines.engine import Engine
from ..rewards import Reward, heldout
from ..rewards import load as load_reward
from ..rewards.combine import RewardSources, pass_thresholds_of, sources_of, with_calibration_maps
from ..rewriting.rewriter import Rewriter
from ..run.manifest import fingerprint, sampling_of
from ..run.partitions import Partition
from ..selection import load as load_selector
from ..settings import BuildSettings
from ..sources.benchmarks import Benchmarks
from ..text import digest
from ..types import STAGES, Prompt, Role
from .flow import JudgeStats, PromptContext, run_prompt
from .judge_stats import judge_stats_of
from .personas import Persona, load_personas
from .result import PromptResult
from .runner import OpenPartition, PartitionRunner, seal

if TYPE_CHECKING:
    from ..selection import Selector

FORMAT = 2  # of the partitions; raised when the same settings would make other rows


@dataclass(frozen=True, slots=True)
class BuildContext:
    """The parts of a build that its settings name.

    Attributes:
        sources: reward sources per dimension; with their charts once `with_calibration`.
        floors: pass mark per dimension, before phase 0.
        templates: fingerprints of everything that is shown to a model, by name.
    """

    settings: BuildSettings
    until: str
    sources: RewardSources
    pass_thresholds: Mapping[str, float]
    heldout: Mapping[str, Reward]
    fuser: Rewriter
    selector: Selector
    personas: tuple[Persona, ...]
    templates: Mapping[str, str]

    def with_calibration(self, reference: Mapping[str, Any]) -> BuildContext:
        """With the calibration that phase 0 froze; where there was no phase 0, as it is."""
        if not self.settings.presample.enabled:
            return self
        return replace(self, sources=with_calibration_maps(self.sources, reference["calibration"]))

    def work(self, ask: CachedClient, reference: JudgeStats) -> PromptContext:
        """What a prompt's coroutine needs."""
        return PromptContext(
            self.settings,
            ask,
            self.sources,
            self.fuser,
            self.selector,
            reference,
            self.until,
            self.personas,
            self.heldout,
        )

    @property
    def rubrics(self) -> dict[str, str]:
        """Fingerprints of the reward sources."""
        return {k: v for k, v in self.templates.items() if k.startswith("judge/")}

    def fingerprint(
        self, engines: Mapping[Role, Engine], reference: Mapping[str, Any], part: Partition
    ) -> str:
        """Everything that changes a partition's rows."""
        s = self.settings
        return fingerprint(
            {
                "format": FORMAT,
                "until": min(self.until, "select", key=STAGES.index),
                "dims": s.dimensions,
                "seed": s.seed,
                "models": {r: model_of(e) for r, e in engines.items()},
                "sampling": [sampling_of(s, r) for r in engines],
                "rewards": {
                    d: [r.model_dump(exclude={"endpoint"}) for r in s.reward_sources(d)]
                    for d in s.dimensions
                },
                "compared": self.fuser.compared,
                "templates": self.templates,
                "fuse": s.fuse.model_dump(),
                "rollout": s.rollout.model_dump(),
                "presample": s.presample.model_dump(exclude={"canaries", "max_drift"}),
                "select": s.select.model_dump(exclude={"balance_length", "allow_unreliable"}),
                "reference": {
                    k: reference[k]
                    for k in ("noise", "floors", "prior", "mining", "calibration")
                    if k in reference
                },
                "prompts": digest((part.folder / "prompts.jsonl").read_text("utf-8")),
            }
        )

    def is_sealed(
        self, engines: Mapping[Role, Engine], reference: Mapping[str, Any], part: Partition
    ) -> bool:
        """Whether nothing is left to be done for a partition."""
        manifest = part.manifest()
        return (
            manifest is not None
            and not manifest.get("owed")
            and manifest.get("settings") == self.fingerprint(engines, reference, part)
        )

    async def through(
        self,
        engines: Mapping[Role, Engine],
        reference: Mapping[str, Any],
        runner: PartitionRunner,
        parts: Sequence[Partition],
        on_prompt: Callable[[PromptResult], None],
    ) -> None:
        """Ask partitions to their end and seal them.

        Raises:
            MoraError: it can't go on; what was answered is in the logs.
        """
        measured = judge_stats_of(reference)
        confirms = self.settings.select.confirm or bool(self.heldout)

        async def flow(ask: CachedClient, prompt: Prompt) -> PromptResult:
            return await run_prompt(self.work(ask, measured), prompt)

        def finished(opened: OpenPartition) -> None:
            if STAGES.index(self.until) >= STAGES.index("select") and not confirms:
                from .candidates import candidates

                outcomes = [opened.outcomes[p.prompt_id] for p in opened.prompts]
                candidates(
                    self.work(opened.ask, measured),
                    [(o, arm) for o in outcomes for arm in o.arms if arm.rewards],
                )
            seal(
                opened, self.settings.dimensions, self.fingerprint(engines, reference, opened.part)
            )

        for part in parts:
            part.invalidate()
        await runner.run(parts, flow, on_prompt, finished)


def load(settings: BuildSettings, until: str, benchmarks: Benchmarks) -> BuildContext:
    """The kit of a build; rewrites are compared with `benchmarks`.

    Raises:
        SettingsError: a reward, template, selector or persona is missing or wrong.
    """
    s = settings
    rewards = {d: [load_reward(d, r, s) for r in s.reward_sources(d)] for d in s.dimensions}
    sources = sources_of(rewards, s)
    pass_thresholds = pass_thresholds_of(sources, s.presample.floors)
    judges = heldout.judges_of(s)
    fuser = Rewriter(s, benchmarks)
    selector = load_selector(s.select.selector)
    personas = load_personas(s.rollout.personas, s.rollout.n)
    return BuildContext(
        s,
        until,
        sources,
        pass_thresholds,
        judges,
        fuser,
        selector,
        personas,
        _templates(rewards, fuser, personas),
    )


def model_of(engine: Engine) -> list[Any]:
    """What of an engine can change its answers."""
    return [engine.model, engine.revision, dict(engine.extra)]


def _templates(
    rewards: Mapping[str, Sequence[Reward]], fuser: Rewriter, personas: Iterable[Persona]
) -> dict[str, str]:
    found = {
        f"judge/{d}" + (f"/{i}" if i else ""): r.fingerprint
        for d, rs in rewards.items()
        for i, r in enumerate(rs)
    }
    found |= {f"intents/{d}": text for d, text in fuser.intents_sha256.items()}
    found |= {f"fuse/{arm}": t.sha256 for arm, t in fuser.templates.items()}
    if fuser.templates:
        found |= {f"guard/{name}": t.sha256 for name, t in fuser.guard.templates.items()}
    return found | {f"personas/{p.name}": digest(p.system) for p in personas}
