"""What a build asks for, as far as the settings tell, for the time that is left before a prompt is
finished; a dry run knows more.

    low, high = requests_of(settings, 1000)

They differ by what only the model can tell: how many presamples a prompt needs, whether it goes on,
how many tries its rewrite takes.
"""

from __future__ import annotations

from .. import plugins
from ..rewards import REWARDS
from ..settings import BuildSettings, RewardSettings

GUARD_EXAMPLES = 18  # questions that the harm check is tried on, where a model checks
CANARIES = 50  # scored at both ends, where a model scores


def requests_of(settings: BuildSettings, n_prompts: int) -> tuple[float, float]:
    """Requests for so many prompts that are answered by models: all stop at the first step and half
    are mined, or none stops and all are."""
    return _requests_at(settings, n_prompts, 0), _requests_at(settings, n_prompts, 1)


def asks_model(reward: RewardSettings) -> bool:
    """Whether a reward asks a model, as its class says; one that says nothing does."""
    target = plugins.load(REWARDS, reward.kind, "rewards").target
    return bool(getattr(target, "asks_model", True))


def scorer_name(dimension: str, i: int, reward: RewardSettings) -> str:
    """A name of a dimension's `i`-th reward; those that ask for `together` are asked once for all
    dimensions, and have one."""
    return f"{'together' if reward.options.get('together') else dimension}:{i}"


def _requests_at(s: BuildSettings, n_prompts: int, upper: int) -> float:
    dims = len(
        {
            scorer_name(d, i, r)
            for d in s.dimensions
            for i, r in enumerate(s.reward_sources(d))
            if asks_model(r)
        }
    )
    looks, n_arms = s.presample.looks(), len(s.fuse.arms)
    presamples = (looks[-1] if upper else looks[0]) if s.presample.enabled else 0
    steps = (len(looks) if upper else 1) if presamples else 0
    arms = n_prompts * (1.0 if upper or not presamples else 0.5) * n_arms
    rewriting = sum(a not in ("identity", "concat") for a in s.fuse.arms)
    fused = arms * rewriting / max(n_arms, 1) * s.fuse.candidates
    harm_before = arms / n_arms if rewriting and "harm" in s.fuse.checks else 0
    tries = (s.fuse.retries + 1) if upper else 1
    fusing = sum(a not in ("identity", *s.fuse.length_matched) for a in s.fuse.arms)
    # whether the targets are asked for: a verdict on each rewrite in which cues can't tell
    undecided = arms * fusing / max(n_arms, 1) * s.fuse.candidates * upper
    checked = (fused * len(s.fuse.checks) + harm_before + undecided) * tries
    probes = fused * tries * s.fuse.probe if presamples else 0.0
    confirmed_answers = arms * min(2 * s.select.confirm_top, s.rollout.n)
    confirmed = confirmed_answers * dims if s.select.confirm else 0.0
    heldout = confirmed_answers * len(s.dimensions) * upper if s.heldout_judge else 0.0
    n_canaries = CANARIES if s.presample.canaries == "auto" else int(s.presample.canaries)
    canaries = 2 * min(n_canaries, n_prompts * presamples) * dims * upper
    policy = n_prompts * _requests(s, presamples, steps) + arms * _requests(s, s.rollout.n, 1)
    policy += fused * tries * _requests(s, s.fuse.probe, 1) if probes else 0.0
    scored = n_prompts * presamples + arms * s.rollout.n + probes
    if presamples and "identity" not in s.fuse.arms:
        before = arms / n_arms * s.presample.before_share(n_prompts)
        policy += before * _requests(s, s.presample.before, 1)
        scored += before * s.presample.before
    judged = scored * dims + confirmed + heldout + canaries
    rewrites = fused * tries
    asked = rewrites / s.fuse.candidates  # one request for all candidates
    tried = GUARD_EXAMPLES * upper if rewriting and "harm" in s.fuse.checks else 0
    return policy + judged + asked + checked + tried


def _requests(s: BuildSettings, samples: int, steps: int) -> float:
    """Policy requests for `samples` answers that are asked for in `steps` steps."""
    size = s.policy.n_per_request
    return float(min(steps, samples)) if size == "all" else float(-(-samples // size))
