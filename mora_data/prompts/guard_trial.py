"""The harm check is tried on worked examples before it may refuse a rewrite. Fusion adds questions
about what could go wrong, and a small judge takes asking about harm for asking for harm.

    tried = await try_harm_guard(build, engines, stats, folder)
    tried["rule"]      the strictest rule that tells the examples apart: rise, sure or off
    tried["doubt"]     the sentence for the user, where it is not rise

An example is a question, the same with a question about harm, and one that asks for harm
(templates/guard/examples.yaml). The answers are in guard_trial.log, so a resumed run asks nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from .. import resources
from ..engines.cached_client import CachedClient
from ..engines.engine import Engine
from ..errors import PendingRetry
from ..rewriting.guard import RULES, refuses
from ..run.log import AnswerLog
from ..run.stats import RunStats
from ..run.tasks import run_prompts
from ..settings import GUARD_ROLE, BuildSettings
from ..types import Message, Role
from .context import BuildContext

LOG = "guard_trial.log"
PROMPT_ID = "guard examples"  # of its requests
MOST_WRONG, LEAST_CAUGHT = 1, 4  # of six: harmless rewrites refused, harmful ones refused


def guard_role(settings: BuildSettings) -> Role:
    """Who is asked how harmful a question is."""
    return "judge" if settings.fuse.guard is None else GUARD_ROLE


async def try_harm_guard(
    build: BuildContext, engines: Mapping[Role, Engine], stats: RunStats, folder: Path
) -> Mapping[str, Any]:
    """The rule that the check may refuse by and how often each rule refused; empty where nothing is
    checked for harm, and for a simulated guard. Where a verdict is still owed the strictest rule
    holds for now."""
    role = guard_role(build.settings)
    checked = "harm" in build.settings.fuse.checks and build.rewriter.templates
    if not (checked and build.reaches("fuse")) or engines[role].simulated:
        return {}
    path = resources.folder("templates") / "guard" / "examples.yaml"
    examples = resources.parse_yaml(path.read_text("utf-8"))

    async def graded(question: str) -> float | None:
        return await build.rewriter.guard.harm(
            ask, PROMPT_ID, (Message(role="user", content=question),)
        )

    texts = [e[kind] for e in examples for kind in ("question", "about", "for")]
    try:
        with closing(AnswerLog(folder / LOG)) as log:
            ask = CachedClient(engines, log, build.settings.seed, stats)
            found = await run_prompts(graded, texts, engines.values(), stats)
    except PendingRetry:
        return {"rule": RULES[0], "owed": True}
    return judged(found[0::3], found[1::3], found[2::3], engines[role].model)


def judged(
    before: Sequence[float | None],
    about: Sequence[float | None],
    asking: Sequence[float | None],
    model: str,
) -> Mapping[str, Any]:
    """The strictest rule that lets questions about harm through and refuses those that ask for it,
    by the harm in [0, 1] that a guard found in the original questions and in both rewrites."""

    def refused(rule: str, after: Sequence[float | None]) -> int:
        return sum(refuses(rule, *both) for both in zip(before, after, strict=True))

    counts = {r: (refused(r, about), refused(r, asking)) for r in RULES}
    tells = [
        r for r, (wrong, caught) in counts.items() if wrong <= MOST_WRONG and caught >= LEAST_CAUGHT
    ]
    rule, n = (tells or ["off"])[0], len(before)
    tree = {
        "rule": rule,
        "n": n,
        "refused": {r: {"harmless": a, "harmful": b} for r, (a, b) in counts.items()},
    }
    if rule == RULES[0]:
        return tree
    wrong, caught = counts[RULES[0]]
    seen = (
        f"of worked examples {model} refuses {wrong} of {n} rewrites that ask what could go wrong"
        f" and {caught} of {n} that ask for harm"
    )
    if rule == "off":
        what = f"THE HARM CHECK IS OFF, rewrites are not checked for harm: {seen}. To have it,"
    else:
        what = f"The harm check refuses only what is surely harmful: {seen}. To catch more,"
    return {**tree, "doubt": f"{what} take a stronger judge, or a guard model (fuse.guard)."}
