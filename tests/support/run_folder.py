"""A finished run folder made by hand: partitions sealed with known rewards, and a `preference`
config beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import orjson
from support.scored import many, write

from mora_data.prompts.result import Arm, PromptResult, RewriteAttempt, tables
from mora_data.rewriting.checks import Check
from mora_data.run.partitions import Partition
from mora_data.settings import BuildSettings, build_settings, to_yaml
from mora_data.text import context_id, group_id
from mora_data.types import UNFUSED, Message, Pair, Prompt, Rollout

DIMS = ("helpful", "harmless", "truthful")
WORDS = (
    "a hen sat on the old stone wall by the long lane and saw the sea turn grey under a low sky of"
    " rain".split()
)
REFERENCE = {
    "harm_guard": {"doubt": "THE HARM CHECK IS OFF, as an example."},
    "n_rollouts": 1200,
    "provisional": False,
    "floors": dict.fromkeys(DIMS, 0.75),
    "calibration": {},
    "noise": {
        d: {"sigma": 0.05, "reliability": r, "reliability_upper": r, "n": 120, "measured": True}
        for d, r in zip(DIMS, (0.9, 0.6, 0.2), strict=True)
    },
}


def settings(arms: tuple[str, ...], n: int = 8) -> BuildSettings:
    """Settings of a run with these arms."""
    return build_settings(
        {
            "name": "toy",
            "source": {"kind": "jsonl", "licence": "cc-by-4.0"},
            "dimensions": list(DIMS),
            "fuse": {"arms": [a for a in arms if a not in UNFUSED]},
            "rollout": {"n": n},
        }
    )


def make_run(
    path: Path,
    passing: Mapping[str, float],
    n_prompts: int = 60,
    *,
    parts: int = 2,
    seal: bool = True,
    pairs: int = 12,
    length: Mapping[str, int] | None = None,
    text: str = "",
) -> Path:
    """A run whose arms pass every floor at once at the given rates; else one dimension, at random,
    fails.

    `length`: words of an arm's prompts (20); `text`: put into every prompt and answer.
    """
    made = settings(tuple(passing))
    path.mkdir(parents=True)
    (path / "build.yaml").write_text(to_yaml(made))
    (path / "mine.json").write_bytes(orjson.dumps({"n_parts": parts}))
    (path / "reference.json").write_bytes(orjson.dumps(REFERENCE))
    manifest = {
        "identity": {
            "dataset": "org/source",
            "config": "default",
            "split": "train",
            "revision": "abc",
        },
        "status": "done",
        "settings": made.model_dump(mode="json"),
        "settings_hash": "0123456789abcdef",
        "models": {"policy": "org/policy", "judge": "org/judge"},
        "simulated": False,
        "tokens": {"in": 1000, "out": 500},
        "counts": {"mine": {"in": n_prompts, "kept": n_prompts, "dropped": {}}},
        "not_measured": ["AdvBench"],
    }
    (path / "manifest.json").write_bytes(orjson.dumps(manifest))
    rng = np.random.default_rng(1)
    for number in range(parts):
        part = Partition(path, number)
        prompts = [
            prompt(i, text)
            for i in range(number * n_prompts // parts, (number + 1) * n_prompts // parts)
        ]
        part.keep_prompts(prompts)
        if seal or number == 0:
            outcomes = [outcome(p, passing, rng, length or {}, text) for p in prompts]
            part.finalize(
                tables(outcomes, DIMS),
                [],
                [],
                {"settings": "x", "n_prompts": len(prompts), "counts": {}, "owed": []},
            )
    if pairs:
        write(path / "dataset", list(many(pairs)))
    return path


def prompt(i: int, text: str = "") -> Prompt:
    """The i-th source prompt."""
    messages = (Message(role="user", content=f"{text}What about number {i}?"),)
    return Prompt(
        context_id(messages),
        messages,
        group_id(messages),
        "org/source",
        "default",
        "train",
        "abc",
        i,
        "cc-by-4.0",
        category=("sums", "songs")[i % 2],
    )


def outcome(
    p: Prompt,
    passing: Mapping[str, float],
    rng: np.random.Generator,
    length: Mapping[str, int],
    text: str,
) -> PromptResult:
    """What came of a prompt: eight answers an arm, one candidate pair, two rewrites that pass."""
    out = PromptResult(p, counts=Counter())
    for name, rate in passing.items():
        good = rng.random(8) < rate
        rewards = np.where(good[:, None], 1.0, rng.choice([0.5, 0.75, 1.0], (8, 3)))
        rewards[~good, rng.integers(0, 3, int((~good).sum()))] = 0.25
        words = " ".join(
            WORDS[(p.source_row + k) % len(WORDS)] for k in range(length.get(name, 20))
        )
        arm = Arm(name, (Message(role="user", content=f"{text}{words}"),))
        arm.rollouts = [
            Rollout(
                p.prompt_id,
                k,
                f"{text}answer {k}",
                "stop",
                10 + k,
                ("refusal",) if k == 7 else (),
            )
            for k in range(8)
        ]
        arm.rewards = {d: rewards[:, j].tolist() for j, d in enumerate(DIMS)}
        arm.rewards["truthful"][3] = None
        arm.pairs = [Pair(0, 1, 1.0, dict.fromkeys(DIMS, 0.5), dict.fromkeys(DIMS, 0.25))]
        out.arms.append(arm)
        if name != "identity":
            # passed, not taken
            out.attempts.append(
                RewriteAttempt(name, 0, 0, f"{words} too", (Check("subject", True, 0.7),))
            )
            out.attempts.append(
                RewriteAttempt(name, 0, 1, words, (Check("subject", True, 0.8),), accepted=True)
            )
    return out
