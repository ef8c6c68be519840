"""How long will it take here? Measures the three speeds in about two minutes and predicts the wall
time of every piece.

    speed = measure(scale, folder)
    for name, seconds in forecast(scale, seeds=3, speed=speed): ...

An untrained policy does not stop by itself, so its answers are as long as they may be: predictions
lean to the long side.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .building import plain, write_pairs_of
from .scale import Scale
from .training import dpo, evaluate
from .world import Ask, compose, full_answer, question


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds of this machine: a step of the base policy, an answer (with all that a build does to
    it), a step of DPO; and what each command takes before it begins."""

    base_step: float
    answer: float
    dpo_step: float
    command: float
    recipe: float


def measure(scale: Scale, folder: Path, few: int = 10) -> Speed:
    """The speeds, each from a short and a longer run."""
    from .model import make  # torch

    def timed(work: Any) -> float:
        started = time.monotonic()
        work()
        return time.monotonic() - started

    def base(steps: int) -> float:
        return timed(
            lambda: make(
                folder / f"base-{steps}", scale.known(), replace(scale.model, steps=steps), 0.1, 0
            )
        )

    base(2)
    base_step, _ = slope(few, base(few), 3 * few, base(3 * few))
    model, rows = folder / f"base-{3 * few}", plain(scale.splits()["pool"], 4)
    small, large = rows[:8], rows[:64]
    answers = [
        timed(
            lambda some=some: evaluate(
                {"base@0": model}, some, folder / f"ask-{len(some)}", scale, scale.answers
            )
        )
        for some in (small, large)
    ]
    answer, command = slope(
        scale.answers * len(small), answers[0], scale.answers * len(large), answers[1]
    )
    pairs = write_pairs_of(_pairs(scale), folder / "pairs")
    steps = [
        timed(lambda n=n: dpo(pairs, model, folder / f"dpo-{n}", scale, 1e-5, 0, n))
        for n in (few, 3 * few)
    ]
    dpo_step, recipe = slope(few, steps[0], 3 * few, steps[1])
    return Speed(base_step, answer, dpo_step, command, recipe)


def slope(few: int, short_s: float, many: int, long_s: float) -> tuple[float, float]:
    """Seconds of one more, and of the start; where the longer run was not slower (a busy machine),
    its mean, and no start."""
    if long_s <= short_s:
        return long_s / many, 0.0
    each = (long_s - short_s) / (many - few)
    return each, max(0.0, short_s - few * each)


def forecast(scale: Scale, seeds: int, speed: Speed) -> Iterator[tuple[str, float]]:
    """(piece, seconds) of everything that `lab` and `more` do."""
    bases, arms, wordings = 3, len(scale.arms), scale.wordings
    mined = scale.n_topics[1] * bases * wordings
    going_on = min(mined, bases * scale.budget)
    steps = -(-scale.max_pairs // scale.batch) * scale.epochs
    train = speed.recipe + steps * speed.dpo_step
    methods = arms + 1 + scale.added
    one_test = scale.n_topics[2] * bases * scale.test_answers * speed.answer
    for q in scale.skills:
        yield f"base-q{q}", scale.model.steps * speed.base_step
        for s in range(seeds):
            yield (
                f"build-q{q}-s{s}",
                2 * speed.command + scale.answers * (mined + going_on * arms) * speed.answer,
            )
    yield (
        "rate: identity and fused at both learning rates",
        4 * train + speed.command + 5 * (scale.n_dev * bases * scale.test_answers * speed.answer),
    )
    for s in range(seeds):
        yield f"dpo-s{s}: every method", methods * train
    for name in ("plain", "fused"):
        yield f"test-{name}", speed.command + (1 + methods * seeds) * one_test
    for q in scale.skills[1:]:
        yield (
            f"skill q={q}: identity and fused",
            2 * seeds * train + speed.command + (1 + 2 * seeds) * one_test,
        )
    if scale.portions:
        n = len(scale.portions) * seeds
        yield "portions", n * train + speed.command + (1 + n) * one_test
    if scale.sequences:
        yield (
            "sequences",
            6 * seeds * train
            + 2 * seeds * speed.command
            + speed.command
            + (1 + 6 * seeds) * one_test,
        )


def _pairs(scale: Scale) -> list[dict[str, Any]]:
    def side(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    ask = Ask("H", ("truthful",))
    return [
        {
            "prompt": [{"role": "user", "content": question(t, ask)}],
            "chosen": side(full_answer(t, ask)),
            "rejected": side(compose(t, ["use", "false"])),
            "prompt_id": t.name,
            "arm": "fused",
        }
        for t in scale.known()
        for _ in range(-(-4 * scale.batch // len(scale.known())))
    ]
