"""What a build's steps hand to each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..engines.engine import Engine
from ..errors import MoraError
from ..prompts.context import BuildContext
from ..run import Audit, Shift, SourceCounts
from ..run.cost import CostTracker
from ..run.folder import RunFolder
from ..run.progress import Progress
from ..settings import BuildOptions, BuildSettings
from ..sources.benchmarks import Benchmarks
from ..types import STAGES, Role, reaches

Counts = Counter[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Build:
    """What stays the same from a build's first step to its last."""

    settings: BuildSettings
    options: BuildOptions
    progress: Progress
    folder: RunFolder
    benchmarks: Benchmarks
    recorded: bool  # the source's own answers are used
    cost: CostTracker | None  # None where nothing is asked
    started: float

    @property
    def spending(self) -> CostTracker:
        """The cost of a build that asks."""
        assert self.cost is not None
        return self.cost

    def reaches(self, stage: str) -> bool:
        """Whether the run goes as far as `stage`."""
        return reaches(self.options.until, stage)

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that this run goes through."""
        return STAGES[: STAGES.index(self.options.until) + 1]

    @property
    def licence(self) -> str:
        """That of the rows; of a mix, the strictest."""
        if self.options.sample:
            return "apache-2.0"
        from ..dataset.card import strictest  # jinja comes with it

        return strictest(s.licence for s in self.settings.all_sources)


@dataclass(frozen=True, slots=True)
class Asked:
    """What is known once everything is asked; empty where nothing was.

    Attributes:
        given_up: partitions that no worker could do, and why.
    """

    context: BuildContext | None = None
    engines: Mapping[Role, Engine] = field(default_factory=dict)
    audit: Audit | None = None
    drift: Mapping[str, Shift] = field(default_factory=dict)
    damaged: int = 0
    given_up: Mapping[int, str] = field(default_factory=dict)

    @property
    def simulated(self) -> bool:
        return any(e.simulated for e in self.engines.values())


@dataclass(frozen=True, slots=True)
class Probe:
    """Some prompts of a build that went all their way.

    Attributes:
        rows: of the source.
        prompts: mined from them.
        pairs: by prompt that was finished, how many it brings.
        failure: what ended it early.
        sources: what was mined of each source of a mix.
    """

    rows: int
    prompts: int
    pairs: Mapping[str, int]
    failure: MoraError | None
    sources: Sequence[SourceCounts]
