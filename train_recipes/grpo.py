# /// script
# requires-python = ">=3.11"
# dependencies = [
# "accelerate>=1.10", "datasets>=4.0", "peft>=0.17", "pyyaml>=6.0", "torch>=2.6",
# "transformers>=5.0", "trl>=1.10",
# ]
# ///
"""Group-relative policy optimisation on the prompts of a published dataset, with one reward
function per dimension.

    python grpo.py --config grpo/smoke.yaml dataset=runs/demo/dataset output_dir=runs/grpo
    python grpo.py --config grpo/single-gpu-lora.yaml dataset=org/mora-pairs model=org/chat-7b
    output_dir=runs/grpo \
        rewards='[helpful=http://host:8001/classify, harmless=http://host:8002/classify]'
        reward_weights='[0.5, 0.5]'

Rewards, each NAME=WHERE: a reward model behind vLLM's /classify (raw logit of its first label;
`model` of the request is NAME); any other URL is sent {"prompts", "completions", "prompt_ids"} and
answers {"rewards": [number or null, ...]}; or FILE.py:function, called as TRL does; or the built-in
`brevity` and `on_topic`, which only show that it runs. multi_objective_aggregation:
normalize_then_sum makes each reward count by its weight, whatever its scale. The YAML file is flat:
the keys of `Settings` in trl_recipe.py, those of `OwnSettings` below and any field of TRL's
GRPOConfig; `key=value` overrides it. A stated failure is one line and exit 1.
"""

from __future__ import annotations

import dataclasses
import json
import runpy
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dataset_rows import load_both
from recipe import Stop, first_line
from trl import GRPOConfig, GRPOTrainer
from trl_recipe import Recipe, Settings, make_trainer, start, train

COLUMNS = {"prompt": "messages", "prompt_id": "value"}
LOGGED = {"loss": "loss", "reward": "reward", "completions/mean_length": "completion_length"}
TRIES = 4  # of a reward endpoint, with 1, 2 and 4 seconds between them


@dataclasses.dataclass
class OwnSettings(Settings):
    """The recipe's own keys."""

    rewards: list[str] = dataclasses.field(default_factory=list)  # NAME=WHERE, see above
    reward_timeout_s: float = 120.0


def brevity(completions: list[Any], **columns: Any) -> list[float]:
    """1 for an empty answer, falling to 0 at 50 words."""
    return [max(0.0, 1 - len(c[-1]["content"].split()) / 50) for c in completions]


def on_topic(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """Share of the question's words that the answer takes up."""
    asked = [set(p[-1]["content"].lower().split()) for p in prompts]
    said = [set(c[-1]["content"].lower().split()) for c in completions]
    return [len(a & s) / max(1, len(a)) for a, s in zip(asked, said, strict=True)]


def reward_function(text: str, timeout_s: float) -> Callable[..., list[float | None]]:
    """The function that `NAME=WHERE` names, called NAME in TRL's log."""
    name, _, where = text.partition("=")
    if where.startswith(("http://", "https://")):

        def function(
            prompts: list[Any], completions: list[Any], prompt_id: list[str], **columns: Any
        ) -> list[float | None]:
            if not where.rstrip("/").endswith("/classify"):
                found = post(
                    where,
                    {"prompts": prompts, "completions": completions, "prompt_ids": prompt_id},
                    timeout_s,
                )
                return numbers(found.get("rewards"), len(prompts), where)
            asked = (
                {"model": name, "messages": p + c, "use_activation": False}
                for p, c in zip(prompts, completions, strict=True)
            )
            with ThreadPoolExecutor(16) as pool:
                replies = list(pool.map(lambda body: post(where, body, timeout_s), asked))
            return numbers(
                [r["data"][0]["probs"][0] if r.get("data") else "" for r in replies],
                len(prompts),
                where,
            )

    elif not where and name in ("brevity", "on_topic"):
        return globals()[name]
    else:
        file, _, attribute = where.partition(":")
        try:
            function = runpy.run_path(file)[attribute]
        except (OSError, KeyError, SyntaxError, ImportError) as e:
            raise Stop(
                f"reward {text!r}: no function {attribute!r} in {file!r} ({first_line(e)}); "
                "write NAME=FILE.py:function or NAME=URL"
            ) from e
    function.__name__ = name
    return function


def post(url: str, body: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    """The JSON reply; faults that may pass are tried again, others end the run, since a reward made
    up would train the model."""
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    for k in range(TRIES):
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as reply:
                return json.load(reply)
        except (OSError, ValueError) as e:
            passing = (
                not isinstance(e, urllib.error.HTTPError)
                or e.code in (408, 409, 429)
                or e.code >= 500
            )
            if k == TRIES - 1 or not passing:
                raise Stop(f"reward endpoint {url.split('?')[0]}: {first_line(e)}") from e
            time.sleep(2**k)
    raise AssertionError


def numbers(found: Any, n: int, where: str) -> list[float | None]:
    if (
        not isinstance(found, list)
        or len(found) != n
        or not all(v is None or isinstance(v, (int, float)) for v in found)
    ):
        raise Stop(
            f"reward endpoint {where} must answer with {n} numbers or nulls, got {str(found)[:60]}"
        )
    return found


RECIPE = Recipe(
    Path(__file__).stem,
    "prompt_only",
    "prompts",
    COLUMNS,
    LOGGED,
    GRPOTrainer,
    GRPOConfig,
    None,
    OwnSettings,
)  # no length: GRPO cuts completions, at max_completion_length


def run(own: OwnSettings, args: GRPOConfig) -> dict[str, Any]:
    """Train, and what metrics.json holds."""
    if not own.rewards:
        raise Stop("missing: rewards; give rewards='[helpful=http://host:8001/classify, ...]'")
    if args.reward_weights and len(args.reward_weights) != len(own.rewards):
        raise Stop(
            f"{len(args.reward_weights)} reward_weights for {len(own.rewards)} rewards: give one"
            " for each"
        )
    functions = [reward_function(text, own.reward_timeout_s) for text in own.rewards]
    for function in functions:
        LOGGED[f"rewards/{function.__name__}/mean"] = f"reward_{function.__name__}"
    rows, held_out = load_both(RECIPE, own)
    return train(
        RECIPE, own, make_trainer(RECIPE, own, args, rows, held_out, reward_funcs=functions), rows
    )


if __name__ == "__main__":
    raise SystemExit(start(RECIPE, run, __doc__))
