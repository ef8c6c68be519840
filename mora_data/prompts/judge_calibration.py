"""What is measured around the partitions: phase 0 before them, the canaries at both ends, and what
follows from it.

    measuring = JudgeCalibration(...)
    reference = await measuring.phase_0(parts, runner)      reference.json: calibration, noise,
    floors, thresholds measuring.check_reliability(...)                        before anything is
    selected by scores that are mostly noise await measuring.again(...)
    the canaries once more, when all is scored measuring.check_drift()
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..engines.cached_client import CachedClient
from ..engines.engine import Engine
from ..errors import UnreliableScores
from ..rewards import canary
from ..rewards.combine import digests
from ..run.folder import RunFolder, read_json
from ..run.log import AnswerLog
from ..run.manifest import fingerprint, sampling_of
from ..run.partitions import Partition
from ..run.progress import Progress
from ..run.stats import RunStats
from ..settings import BuildSettings
from ..types import Role
from .budget import Mined, fit
from .context import BuildContext, model_of
from .judge_stats import (
    Measurements,
    Rates,
    conclude,
    first_prompts,
    judge_stats_of,
    mining_flow,
    reference_flow,
    strata_of,
    unmeasured,
    unreliable,
)
from .runner import PartitionRunner


@dataclass
class JudgeCalibration:
    """Phase 0 and the canaries of one build.

    Attributes:
        kit: what the build works with; its reward sources get their charts in phase 0.
        drift: what the canaries show; empty before `again`.
    """

    kit: BuildContext
    folder: RunFolder
    engines: Mapping[Role, Engine]
    stats: RunStats
    progress: Progress
    reference: dict[str, Any] = field(default_factory=dict)
    drift: dict[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> BuildSettings:
        return self.kit.settings

    async def phase_0(self, parts: Sequence[Partition], runner: PartitionRunner) -> dict[str, Any]:
        """The reference of reference.json, measured unless it is there; the kit gets its charts."""
        self.reference = await self._phase_0(parts, runner)
        return self.reference

    async def _phase_0(self, parts: Sequence[Partition], runner: PartitionRunner) -> dict[str, Any]:
        s, folder, kit = self.settings, self.folder, self.kit
        if not s.presample.enabled:
            return unmeasured(kit.sources, kit.pass_thresholds)
        basis = fingerprint(
            {
                "policy": model_of(self.engines["policy"]),
                "judge": model_of(self.engines["judge"]),
                "seed": s.seed,
                "dims": s.dimensions,
                "rewards": kit.rubrics,
                "n": s.presample.n[0],
                "share": s.presample.repeat_share,
                "reference": s.presample.reference,
                "floors": dict(kit.pass_thresholds),
                "kappa": s.select.kappa,
                "calibration": [
                    [
                        r.weight,
                        r.calibration.model_dump() if r.calibration else None,
                        r.calibration_file,
                    ]
                    for d in s.dimensions
                    for r in s.reward_sources(d)
                ],
                "files": digests(s),
                "sampling": [sampling_of(s, "policy"), sampling_of(s, "judge")],
                "raters": [
                    [model_of(self.engines[r]), sampling_of(s, r)] for r in s.reward_roles()
                ],
                **(
                    {"presample": s.presample.model_dump()}
                    if s.presample.budget or s.presample.step
                    else {}
                ),
            }
        )
        frozen, kept = (
            read_json(folder.path / "reference.json"),
            read_json(folder.path / "canary.json"),
        )
        n_canaries = self._n_canaries()
        if frozen.get("basis") == basis and (
            not n_canaries or (kept.get("basis"), kept.get("n")) == (basis, n_canaries)
        ):
            self.kit = kit.with_calibration(frozen)
            return frozen
        chosen, first_parts = first_prompts(parts, s.presample.reference)
        found, rates = (
            Measurements(),
            Rates(kit.pass_thresholds, s.presample.split) if s.presample.step else None,
        )
        self.progress.start("reference: prompts", len(chosen))
        plain = judge_stats_of(unmeasured(kit.sources, kit.pass_thresholds))
        await runner.run(
            first_parts,
            reference_flow(lambda ask: kit.work(ask, plain), found),
            lambda o: self.progress.step(),
            lambda opened: None,
            only=chosen,
        )
        self.progress.finish()
        measured, sources = conclude(found, kit.sources, kit.pass_thresholds, s.select.kappa, rates)
        self.kit = replace(kit, sources=sources)
        # the next run measures what is owed
        reference = {"basis": None if found.owed else basis, **measured}
        if rates is not None:
            reference["prior"] = rates.result()
        if s.presample.budget is not None:
            await self._freeze_thresholds(reference, parts, runner, first_parts, chosen)
        folder.write("reference.json", reference)
        if n_canaries:
            items = canary.chosen(found, self.kit.sources, n_canaries)
            start = await self._score_canaries(items, "start")
            folder.write(
                "canary.json",
                {"basis": reference["basis"], "n": n_canaries, "items": items, "start": start},
            )
        return reference

    async def _freeze_thresholds(
        self,
        reference: dict[str, Any],
        parts: Sequence[Partition],
        runner: PartitionRunner,
        first_parts: Sequence[Partition],
        chosen: frozenset[str],
    ) -> None:
        """The mining threshold per stratum, from the reference prompts presampled in full."""
        s = self.settings.presample
        found: list[Mined] = []
        owed: list[str] = []
        measured = judge_stats_of(reference)
        self.progress.start("budget: prompts", len(chosen))
        await runner.run(
            first_parts,
            mining_flow(lambda ask: self.kit.work(ask, measured), found, owed),
            lambda o: self.progress.step(),
            lambda opened: None,
            only=chosen,
        )
        self.progress.finish()
        assert s.budget is not None
        reference["mining"] = fit(
            sorted(found, key=lambda m: m.prompt_id), strata_of(parts), s.budget, s.accept
        )
        if owed:
            reference["basis"] = None

    def _n_canaries(self) -> int:
        """How many reference answers are scored at both ends; the simulator never changes."""
        given = self.settings.presample.canaries
        if given != "auto":
            return int(given)
        return (
            canary.AUTO
            if any(
                not e.simulated for r, e in self.engines.items() if r not in ("policy", "rewriter")
            )
            else 0
        )

    async def _score_canaries(self, items: Sequence[canary.Item], when: str) -> canary.Values:
        log = AnswerLog(self.folder.path / "canary.log")
        try:
            ask = CachedClient(self.engines, log, self.settings.seed, self.stats)
            return await canary.measured(
                ask, self.kit.sources, items, when, self.settings.select.kappa
            )
        finally:
            log.close()

    async def again(self, settled: str) -> None:
        """Score the canaries once more, when all is scored; once for each state of the partitions,
        which `settled` names."""
        kept = read_json(self.folder.path / "canary.json")
        if not (self.settings.presample.enabled and self._n_canaries() and kept):
            return
        end = await self._score_canaries(kept["items"], f"end:{settled}")
        sigma = {d: v["sigma"] for d, v in self.reference["noise"].items()}
        self.drift = canary.drift(kept["start"], end, sigma)
        self.folder.write("canary.json", {**kept, "end": end, "drift": self.drift})

    def check_drift(self) -> None:
        """Raises UnreliableScores when the scorers are not what they were at the start."""
        limit = self.settings.presample.max_drift
        for d in canary.drifted(self.drift, limit):
            v = self.drift[d]
            raise UnreliableScores(
                f"the scorers changed during the run: {v['n']} canary answers moved by"
                f" {v['shift']:+.3f} in {d} from start to end (presample.max_drift = {limit:g}):"
                " see that judge model and revision are what they were and start anew with"
                " --fresh, or raise presample.max_drift; the state is kept"
            )

    def check_reliability(self, selecting: bool) -> None:
        """Raises UnreliableScores before anything is selected by scores that are mostly noise."""
        found = unreliable(self.reference, self.settings.presample.gamma)
        for d, v in found.items():
            what = (
                f"the scores of dimension {d} are mostly noise: reliability {v['reliability']:.2f}"
                f" (95 % sure to be under {v['reliability_upper']:.2f}) over {v['n']} answers"
                " scored twice, 0.3 is the least"
            )
            if self.settings.select.allow_unreliable or not selecting:
                self.progress.message(what)
                continue
            raise UnreliableScores(
                f"{what}: take a better judge or rubric, or leave {d} out of dimensions, or go on"
                " with --allow-unreliable, which is written down; the state is kept"
            )
