# /// script
# requires-python = ">=3.11"
# dependencies = [
# "accelerate>=1.10", "datasets>=4.0", "peft>=0.17", "pyyaml>=6.0", "torch>=2.6",
# "transformers>=5.0", "trl>=1.10",
# ]
# ///
"""DPO on several dimensions that conflict: their gradients on the same prompts, combined so that
none is worked against.

    python raco.py --config raco/smoke.yaml dataset=runs/demo/dataset output_dir=runs/raco
    python raco.py --config raco/single-gpu-lora.yaml dataset=org/mora-pairs model=org/chat-7b
    output_dir=runs/raco \
        weights='{helpful: 0.5, harmless: 0.5}' c=0.4

RACO (Chen et al. 2026, arXiv:2602.02495), a clipped form of CAGrad (Liu et al. 2021,
arXiv:2110.14048). With g_k the gradient of dimension k's DPO loss, user weights w with sum 1, and 0
<= c < 1:

    g_0 = sum_k w_k g_k,  g_p = sum_k p_k g_k
    p*  = argmin over the simplex of <g_p, g_0> + c |g_0| |g_p|
    p~  = min(p*, w), each on its own, not scaled back to sum 1
    step along g_0 + c |g_0| / |g_p~| g_p~

All of it depends on the gradients' inner products alone. p* is found by exchanges between two
dimensions at a time, each in closed form; with two dimensions one exchange is the solution.
Checked: the equations as two descriptions of the paper give them; its text, code and further
    heuristics were not seen. The gradients of a step's micro-batches are added up before they are
    combined.

Read: the config preference_by_dim (prompt, prompt_id, chosen, rejected, dimension); prompts without
a pair in every dimension are left out and counted. Keys: those of `Settings` in trl_recipe.py and
dimension_recipe.py, those of `OwnSettings` below and any field of TRL's DPOConfig. A stated failure
is one line and exit 1.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from dimension_recipe import (
    COLUMNS,
    DimensionSettings,
    DimensionTrainer,
    load_dimensions,
    weights_of,
)
from dpo import LOGGED, length
from recipe import Stop
from trl import DPOConfig
from trl_recipe import Recipe, make_trainer, start, train


@dataclasses.dataclass
class OwnSettings(DimensionSettings):
    """The recipe's own keys."""

    c: float = 0.4  # how far the step may leave the weighted gradient, as a share of its length


def mixture(gram: Sequence[Sequence[float]], weights: Sequence[float], c: float) -> list[float]:
    """p*, from the gradients' inner products."""
    n = range(len(weights))
    towards = [sum(gram[i][j] * weights[j] for j in n) for i in n]  # <g_i, g_0>
    k = c * math.sqrt(max(0.0, sum(weights[i] * towards[i] for i in n)))
    p, moved = list(weights), 1.0
    for _ in range(500):
        if moved < 1e-12:
            break
        moved = 0.0
        for i in n:
            for j in range(i):
                t = exchange(gram, p, towards[i] - towards[j], k, i, j)
                p[i], p[j], moved = p[i] + t, p[j] - t, max(moved, abs(t))
    return p


def exchange(
    gram: Sequence[Sequence[float]], p: Sequence[float], a: float, k: float, i: int, j: int
) -> float:
    """The t in [-p_i, p_j] with the least a t + k |g_p + t (g_i - g_j)|."""
    n = range(len(p))
    square = gram[i][i] + gram[j][j] - 2 * gram[i][j]
    cross = sum(p[m] * (gram[i][m] - gram[j][m]) for m in n)
    norm = sum(p[x] * gram[x][y] * p[y] for x in n for y in n)
    if k * k * square > a * a:  # else it falls, or rises, all along
        beside = max(0.0, square * norm - cross * cross)  # what of g_p no t takes away
        t = (-a * math.sqrt(beside / (k * k * square - a * a)) - cross) / square
        return min(max(t, -p[i]), p[j])
    return 0.0 if a == 0 else -p[i] if a > 0 else p[j]


def coefficients(
    gram: Sequence[Sequence[float]], weights: Sequence[float], c: float
) -> list[float]:
    """The step as sum_k coefficient_k g_k."""
    n = range(len(weights))
    clipped = [min(p, w) for p, w in zip(mixture(gram, weights, c), weights, strict=True)]
    g_0, g_p = (
        math.sqrt(max(0.0, sum(v[i] * gram[i][j] * v[j] for i in n for j in n)))
        for v in (weights, clipped)
    )
    scale = c * g_0 / g_p if g_p > 1e-12 * g_0 else 0.0
    return [w + scale * p for w, p in zip(weights, clipped, strict=True)]


class Groups(torch.utils.data.Sampler):
    """Whole prompts in a seeded order; their rows, one per dimension, lie side by side."""

    def __init__(self, n_prompts: int, size: int, seed: int) -> None:
        self.n_prompts, self.size, self.seed, self.epoch = n_prompts, size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.n_prompts * self.size

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(
            self.n_prompts, generator=torch.Generator().manual_seed(self.seed + self.epoch)
        )
        return (i * self.size + k for i in order.tolist() for k in range(self.size))


class ConflictTrainer(DimensionTrainer):
    """Steps along the combination of the dimensions' gradients."""

    weights: list[float]
    c: float
    sums: dict[int, list[torch.Tensor | None]]
    combined: list[float]

    def _get_train_sampler(self, train_dataset: Any = None) -> Groups:
        rows = train_dataset if train_dataset is not None else self.train_dataset
        return Groups(len(rows) // len(self.dims), len(self.dims), self.args.seed)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *_: Any, **__: Any) -> torch.Tensor:
        """The weighted loss, for evaluations."""
        return sum(self.weights[k] * x for k, x, _ in self.dimension_losses(model, inputs))

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        model.train()
        inputs, total = self._prepare_inputs(inputs), 0.0
        learnt = [p for p in model.parameters() if p.requires_grad]
        for k, whole, _ in self.dimension_losses(model, inputs):
            loss = whole / self.args.gradient_accumulation_steps
            self.accelerator.backward(loss)
            total = total + self.weights[k] * loss.detach()
            before = self.sums.get(k) or [None] * len(learnt)
            self.sums[k] = [add(old, p.grad) for old, p in zip(before, learnt, strict=True)]
            for p in learnt:
                p.grad = None
        if self.accelerator.sync_gradients:
            self.step_along(learnt)
        return total

    def step_along(self, learnt: list[torch.nn.Parameter]) -> None:
        """Give the parameters the combined gradient; ready for the next step."""
        there = sorted(self.sums)
        shares = [self.weights[k] / sum(self.weights[j] for j in there) for k in there]
        gram = [[inner(self.sums[i], self.sums[j]) for j in there] for i in there]
        self.combined = coefficients(gram, shares, self.c)
        for at, p in enumerate(learnt):
            grads = [
                (x, g)
                for x, k in zip(self.combined, there, strict=True)
                if (g := self.sums[k][at]) is not None
            ]
            p.grad = sum(x * g for x, g in grads) if grads else None
        self.sums = {}
        for k, x in zip(there, self.combined, strict=True):
            self._metrics["train"][f"coefficient/{self.dims[k]}"].append(x)


def add(old: torch.Tensor | None, new: torch.Tensor | None) -> torch.Tensor | None:
    return new if old is None else old if new is None else old + new


def inner(a: Sequence[torch.Tensor | None], b: Sequence[torch.Tensor | None]) -> float:
    """Inner product of two gradients, over all shards of a sharded model."""
    products = [
        (x.float() * y.float()).sum()
        for x, y in zip(a, b, strict=True)
        if x is not None and y is not None
    ]
    return float(sum(getattr(p, "full_tensor", lambda p=p: p)().item() for p in products))


def aligned(rows: datasets.Dataset, n_dims: int) -> datasets.Dataset:
    """The rows of prompts that have a pair in every dimension, prompt by prompt."""
    places: dict[str, dict[int, int]] = defaultdict(dict)
    for at, (prompt, head) in enumerate(zip(rows["prompt_id"], rows["head"], strict=True)):
        places[prompt].setdefault(head, at)
    whole = [[found[k] for k in range(n_dims)] for found in places.values() if len(found) == n_dims]
    return rows.select([at for group in whole for at in group])


RECIPE = Recipe(
    Path(__file__).stem,
    "preference_by_dim",
    "pairs",
    {**COLUMNS, "prompt_id": "value"},
    dict(LOGGED),
    ConflictTrainer,
    DPOConfig,
    length,
    OwnSettings,
)


def run(own: OwnSettings, args: DPOConfig) -> dict[str, Any]:
    """Train, and what metrics.json holds."""
    loaded, held_out, dims = load_dimensions(RECIPE, own)
    if not 0 <= own.c < 1:
        raise Stop(f"c = {own.c}: must be from 0 to under 1")
    if args.per_device_train_batch_size % len(dims):
        raise Stop(
            f"per_device_train_batch_size={args.per_device_train_batch_size}: must be a multiple of"
            f" {len(dims)}, one pair in each of {', '.join(dims)}"
        )
    rows = aligned(loaded, len(dims))
    if not len(rows):
        raise Stop(
            f"no prompt of {own.dataset} has a pair in each of {', '.join(dims)}: give fewer"
            " dimensions"
        )
    if len(rows) < len(loaded):
        print(
            f"{len(loaded) - len(rows)} of {len(loaded)} pairs are of prompts without one in every"
            " dimension",
            file=sys.stderr,
        )
    for d in dims:
        RECIPE.logged.update(
            {f"margin/{d}": f"reward_margin_{d}", f"coefficient/{d}": f"coefficient_{d}"}
        )
    # else micro-batches but the last would add this process's gradients alone
    args.accelerator_config.gradient_accumulation_kwargs = {"sync_each_batch": True}
    trainer = make_trainer(RECIPE, own, args, rows, held_out)
    if trainer.is_deepspeed_enabled:
        raise Stop("DeepSpeed keeps the gradients that raco combines to itself: start it with FSDP")
    # a prompt may have lost a pair to max_length
    trainer.train_dataset = aligned(trainer.train_dataset, len(dims))
    trainer.dims, trainer.weights, trainer.c, trainer.sums = dims, weights_of(own, dims), own.c, {}
    return train(RECIPE, own, trainer, rows) | {
        "dimensions": dims,
        "weights": trainer.weights,
        "c": own.c,
        "pairs_not_aligned": len(loaded) - len(rows),
    }


if __name__ == "__main__":
    raise SystemExit(start(RECIPE, run, __doc__))
