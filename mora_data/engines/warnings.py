"""What is to be said about the roles before the first request: who is simulated, who judges their
own answers."""

from __future__ import annotations

from ..settings import BuildSettings
from . import resolve


def warnings_of(settings: BuildSettings, sample: bool, recorded: bool) -> list[str]:
    """One line each; the simulator is never used in silence.

    Raises:
        SettingsError: a role has no endpoint, or there is no such engine.
    """
    roles = {
        r: resolve(settings.role(r), sample)
        for r in ("policy", "rewriter", "judge", *settings.more_roles())
    }
    said = []
    simulated = [name for name, role in roles.items() if role.engine == "scripted"]
    if simulated:
        said.append(
            f"the built-in simulator answers as {', '.join(simulated)}: the rows are marked"
            " simulated, fit for trying things out and for nothing else (--base-url URL asks a"
            " real model)"
        )
    judge, policy = roles["judge"], roles["policy"]
    if (
        (judge.base_url, judge.model) == (policy.base_url, policy.model)
        and not simulated
        and not recorded
    ):
        said.append(
            "judge and policy are one model: it will favour its own answers (give --judge-model)"
        )
    if settings.heldout_judge is not None:
        other = resolve(settings.role("heldout_judge"), sample)
        if (other.base_url, other.model) == (judge.base_url, judge.model):
            said.append(
                "heldout_judge and judge are one model: its agreement says nothing (give"
                " heldout_judge.model)"
            )
    return said
