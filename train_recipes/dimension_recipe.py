# /// script
# requires-python = ">=3.11"
# dependencies = [
# "accelerate>=1.10", "datasets>=4.0", "peft>=0.17", "pyyaml>=6.0", "torch>=2.6",
# "transformers>=5.0", "trl>=1.10",
# ]
# ///
"""What the recipes with a loss for each dimension share: rows that know their dimension, and
batches that can be cut by it.

    rows, held_out, dims = load_dimensions(RECIPE, own)   # column `head`: a place in dims
    for k, loss, n in trainer.dimension_losses(model, inputs): ...   # of n pairs of dims[k]
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import datasets
import torch
from accelerate.utils import gather_object
from dataset_rows import load_both
from recipe import Stop
from trl import DPOTrainer
from trl_recipe import Recipe, Settings

COLUMNS = {"prompt": "messages", "chosen": "messages", "rejected": "messages", "dimension": "value"}


@dataclasses.dataclass
class DimensionSettings(Settings):
    """Keys of the recipes with a loss for each dimension."""

    # empty: all of the dataset, in its order
    dimensions: list[str] = dataclasses.field(default_factory=list)
    weights: dict | None = None  # {dimension: weight}, scaled to sum 1; null: equal ones


class DimensionTrainer(DPOTrainer):
    """TRL's DPO; a batch also says of which dimension each pair is."""

    dims: list[str]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        collate = self.data_collator
        self.data_collator = lambda rows: {
            **collate(rows),
            "head": torch.tensor([r["head"] for r in rows]),
        }

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if "head" not in self._signature_columns:
            self._signature_columns = [*self._signature_columns, "head"]

    def turn_to(self, model: Any, dimension: int) -> None:
        """Called before the pairs of a dimension, by its place in `dims`, are scored."""

    def dimension_losses(
        self, model: Any, inputs: dict[str, Any]
    ) -> Iterator[tuple[int, torch.Tensor, int]]:
        """Each dimension's place in `dims`, TRL's DPO loss of its pairs in the batch, and their
        number. The margin is logged under the dimension's name.

        With several processes each makes the same forward passes, whatever its batch holds, since
        a pass talks to the other processes: a dimension without pairs has one of another, and a
        loss of 0.
        """
        heads, several = inputs["head"], self.accelerator.num_processes > 1
        for k, name in enumerate(self.dims):
            pairs = (heads == k).nonzero()[:, 0]
            if not (n := len(pairs)) and not several:
                continue
            self.turn_to(model, k)
            mode = "train" if model.training else "eval"
            part = of_pairs(inputs, pairs if n else heads.new_tensor([0]))
            with local_figures(self, kept=n > 0), self.compute_loss_context_manager():
                loss = super().compute_loss(model, part)
                logged = self._metrics[mode]
                logged[f"margin/{name}"].append(logged["rewards/margins"][-1])
            yield k, loss if n else 0.0 * loss, n

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode = "train" if self.model.training else "eval"
        if self.accelerator.num_processes > 1:
            found: list[dict[str, list[float]]] = gather_object([dict(self._metrics[mode])])
            for name in sorted({name for some in found for name in some}):
                values = [some[name] for some in found if some.get(name)]
                tokens = name == "num_tokens"  # a running sum; every other figure is averaged
                self._metrics[mode][name] = (
                    [sum(v[-1] for v in values)] if tokens else [x for v in values for x in v]
                )
        super().log(logs, start_time)


@contextlib.contextmanager
def local_figures(trainer: Any, kept: bool) -> Iterator[None]:
    """TRL gathers its figures over the processes at every loss, which needs as many pairs of a
    dimension on each. Inside, they are this process's, `log` brings them together; they are
    forgotten unless `kept`."""
    if trainer.accelerator.num_processes == 1:
        yield
        return
    accelerator = trainer.accelerator
    metrics, tokens = trainer._metrics, trainer._total_train_tokens
    accelerator.gather = accelerator.gather_for_metrics = lambda x, *_, **__: x
    if not kept:
        trainer._metrics = {mode: defaultdict(list) for mode in metrics}
    try:
        yield
    finally:
        del accelerator.gather, accelerator.gather_for_metrics
        if not kept:
            trainer._metrics, trainer._total_train_tokens = metrics, tokens


def of_pairs(inputs: dict[str, Any], pairs: torch.Tensor) -> dict[str, Any]:
    """Inputs of some pairs of a batch; TRL's rows are all chosen sides, then all rejected ones."""
    n = len(inputs["head"])
    both = torch.cat([pairs, pairs + n])
    return {
        name: rows[pairs if len(rows) == n else both]
        for name, rows in inputs.items()
        if name != "head"
    }


def load_dimensions(
    recipe: Recipe, own: DimensionSettings
) -> tuple[datasets.Dataset, datasets.Dataset | None, list[str]]:
    """The rows to train on, those of the evaluation, and the dimensions."""
    rows, held_out = load_both(recipe, own)
    there = list(dict.fromkeys(rows["dimension"]))
    dims = own.dimensions or there
    if missing := [d for d in (*dims, *(own.weights or {})) if d not in there]:
        raise Stop(
            f"config {own.config!r} of {own.dataset} has no pairs of {missing[0]!r}; it has:"
            f" {', '.join(there)}"
        )

    def with_heads(some: datasets.Dataset) -> datasets.Dataset:
        kept = some.filter(lambda d: d in dims, input_columns="dimension")
        return kept.map(
            lambda d: {"head": dims.index(d)}, input_columns="dimension", remove_columns="dimension"
        )

    return with_heads(rows), with_heads(held_out) if held_out is not None else None, dims


def weights_of(own: DimensionSettings, dims: list[str]) -> list[float]:
    """The weights of `dims` in order, with sum 1."""
    given = own.weights or dict.fromkeys(dims, 1.0)
    values = [given.get(d, 0.0) for d in dims]
    if not all(isinstance(v, (int, float)) and v >= 0 for v in values) or not sum(values) > 0:
        raise Stop(f"weights = {given}: must be numbers of 0 and more, one at least above 0")
    return [v / sum(values) for v in values]
