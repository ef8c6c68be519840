"""How far the judges agree with the source's labels, measured before a build pays for their scores.
The command and the build ask through one answer log, so what one has asked the other has.

    run_audit(settings, ...)    mora-data audit: asks nobody but the judges

    judge_audit.json   {"limit": 50, "rows": [{"dimension": "harmless", "source": "judge:harmless",
                       "agreement": {"rate": 0.58, "low": 0.52, "high": 0.64, "n": 300}, ...}]}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

from ..engines import connect
from ..engines.cached_client import CachedClient
from ..engines.engine import Engine
from ..errors import PendingRetry, SourceError
from ..resources import Secret
from ..rewards import Ask
from ..rewards.audit import (
    AuditDifference,
    Judged,
    Labelled,
    LabelledAnswer,
    LabelledPair,
    PairScores,
    audit_rows,
    differences,
    labelled_pairs,
)
from ..rewards.combine import RewardSource, RewardSources, calibrated, sources_of
from ..rewards.judge_stats import is_repeated
from ..run import Audit
from ..run.cost import CostTracker, load_prices
from ..run.files import json_hash
from ..run.folder import JOIN, RunFolder
from ..run.log import AnswerLog
from ..run.progress import Progress, heartbeat
from ..run.tasks import Gate, all_of, distinct, run_prompts, run_to_end
from ..settings import BuildSettings, cache_tree
from ..sources.mine import OpenedSource
from ..types import Role, Score
from .context import NO_RATERS, engine_identity

LOG, FILE, OTHER_FILE = "judge_audit.log", "judge_audit.json", "judge_audit-other.json"
NO_SCORERS = ("policy", *NO_RATERS)


@dataclass(frozen=True, slots=True)
class AuditResult:
    """What `mora-data audit` found: the object that its --json prints.

    Attributes:
        other: the same under the settings to compare with, and `differences` between the two.
        requests: sent by this command, as its tokens and its cost; None where a price is missing.
    """

    run_dir: str
    audit: Audit
    other: Audit | None
    differences: Sequence[AuditDifference]
    requests: int
    replayed: int
    tokens: Mapping[str, int]
    cost: float | None


def run_audit(
    settings: BuildSettings,
    other: BuildSettings | None,
    opened: Sequence[OpenedSource],
    sample: bool,
    folder: RunFolder,
    progress: Progress,
) -> AuditResult:
    """Run or resume an audit of the judges of `settings`, and of those of `other` on the same rows.

    Raises:
        SourceError: no answers of the rows have labels that speak of a dimension.
        MoraError: it can't go on; what was answered is kept.
    """
    if sample:
        settings = _of_the_sample(settings)
    labelled = labelled_pairs(opened, settings)
    if not labelled.pairs:
        why = "; ".join(f"{d}: {text}" for d, text in labelled.without.items())
        raise SourceError(f"nothing to audit with in source {settings.source.kind}: {why}")
    if other is not None:  # its faults are said before the first judges are paid
        other = other.model_copy(
            update={"dimensions": settings.dimensions, "audit": settings.audit}
        )
        sources_of(other, Secret(folder.secret))
    stats = progress.stats
    cost = CostTracker(folder, settings.limits, load_prices(settings.limits.prices), stats)

    async def ask(s: BuildSettings, name: str) -> tuple[Audit, Judged]:
        sources = sources_of(s, Secret(folder.secret))
        judge = s.role("judge")  # nobody else is asked, so no policy need be known
        alone = s.model_copy(update={"policy": judge, "rewriter": judge})
        engines = connect(alone, sample, stats, folder.path, progress.message)
        try:
            cost.start([stats.accounts[r] for r in scorers(engines)])
            basis = audit_basis(s, sources, engines, JOIN.join(o.revision for o in opened))
            scores = await score_pairs(s, sources, labelled, engines, folder, progress)
        finally:
            for engine in distinct(engines.values()):
                await engine.close()
            cost.save()
        audit = audit_of(s, basis, labelled, sources, scores, engines)
        folder.write(name, audit)
        return audit, (sources, scores)

    async def ask_all() -> tuple[Audit, Audit | None, Sequence[AuditDifference]]:
        with heartbeat(folder, progress):
            audit, first = await ask(settings, FILE)
            if other is None:
                return audit, None, []
            other_audit, second = await ask(other, OTHER_FILE)
            return audit, other_audit, differences(labelled, first, second)

    audit, other_audit, compared = run_to_end(ask_all())
    return AuditResult(
        str(folder.path),
        audit,
        other_audit,
        compared,
        stats.requests,
        stats.replayed,
        {"in": stats.tokens_in, "out": stats.tokens_out, "cached": stats.tokens_cached},
        cost.command_cost(),
    )


def scorers(engines: Mapping[Role, Engine]) -> dict[Role, Engine]:
    """The engines that rewards ask."""
    return {r: e for r, e in engines.items() if r not in NO_SCORERS}


def audit_basis(
    s: BuildSettings, sources: RewardSources, engines: Mapping[Role, Engine], revision: str
) -> str:
    """Hash of all that an audit rests on, but for how many pairs it takes."""
    labels = s.audit.labels
    return json_hash(
        {
            "labels": {d: cache_tree(labels[d]) for d in s.dimensions if d in labels},
            "sources": {d: [x.cache_key for x in group] for d, group in sources.items()},
            "judge": cache_tree(s.judge),
            "models": {r: engine_identity(e) for r, e in scorers(engines).items()},
            "rows": [*(revision, s.mine.dedup, s.mine.max_chars), *map(cache_tree, s.all_sources)],
            "seed": s.seed,
            "repeats": s.presample.repeat_share,
        }
    )


def audit_of(
    s: BuildSettings,
    basis: str,
    labelled: Labelled,
    sources: RewardSources,
    scores: Sequence[PairScores],
    engines: Mapping[Role, Engine],
) -> Audit:
    """The tree of judge_audit.json."""
    return {
        "basis": basis,
        "limit": s.audit.limit,
        "simulated": any(e.simulated for e in scorers(engines).values()),
        "rows": audit_rows(labelled, scores, sources, s),
        "without": dict(labelled.without),
        "owed": sum(p.owed for p in scores),
    }


def _of_the_sample(s: BuildSettings) -> BuildSettings:
    """With the labels called what they are."""
    labels = {
        d: label.model_copy(update={"by": "the authors of the sample"})
        for d, label in s.audit.labels.items()
    }
    return s.model_copy(update={"audit": s.audit.model_copy(update={"labels": labels})})


async def score_pairs(
    s: BuildSettings,
    sources: RewardSources,
    labelled: Labelled,
    engines: Mapping[Role, Engine],
    folder: RunFolder,
    progress: Progress,
) -> list[PairScores]:
    """Scores of all pairs, in order, by way of the folder's answer log; a share of the pairs is
    scored once more, freshly.

    Raises:
        MoraError: it can't go on; what was answered is in the log.
    """

    async def work(pair: LabelledPair) -> PairScores:
        scores, group = PairScores(), sources[pair.dimension]
        try:
            scores.first = await all_of(_both(ask, x, pair, "score:audit") for x in group)
            if is_repeated(pair.better.prompt_id, 0, s.presample.repeat_share):
                scores.again = await all_of(_both(ask, x, pair, "repeat:audit") for x in group)
            scores.owed = any(x.may_pass for both in scores.first for x in both)
        except PendingRetry:
            scores.owed = True
        progress.step()
        return scores

    progress.start("audit: pairs", len(labelled.pairs))
    limiters = [x.limiter for group in sources.values() for x in group]
    gates: list[Gate] = [*engines.values(), *limiters]
    with closing(AnswerLog(folder.path / LOG)) as log:
        ask = CachedClient(engines, log, s.seed, progress.stats)
        found = await run_prompts(work, labelled.pairs, gates, progress.stats)
    progress.finish()
    return found


async def _both(ask: Ask, source: RewardSource, pair: LabelledPair, purpose: str) -> list[Score]:
    """A source's scores of (better, worse). Both answers to one prompt are shown in one call, in an
    order that the label has no part in."""

    async def scored(answers: Sequence[LabelledAnswer]) -> list[Score]:
        prompt, texts = answers[0], [a.text for a in answers]
        found = await source.scores(ask, purpose, prompt.prompt_id, prompt.messages, texts)
        return calibrated(source, found, len(texts), {})

    if pair.better.prompt_id != pair.worse.prompt_id:
        (one,), (other,) = await all_of(scored([a]) for a in (pair.better, pair.worse))
        return [one, other]
    by_text = sorted((pair.better, pair.worse), key=lambda a: a.text)
    found = await scored(by_text)
    return found if by_text[0] is pair.better else found[::-1]
