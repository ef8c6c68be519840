# /// script
# requires-python = ">=3.11"
# dependencies = [
# "accelerate>=1.10", "datasets>=4.0", "peft>=0.17", "pyyaml>=6.0", "torch>=2.6",
# "transformers>=5.0", "trl>=1.10",
# ]
# ///
"""What the recipes with a loss for each dimension share: rows that know their dimension, and
batches that can be cut by it.

    rows, held_out, dims = load_dimensions(RECIPE, own)      # column `head`: the row's dimension as
    a place in dims for k, part in parts(inputs): ...                        # inputs of a
    DimensionTrainer, the pairs of one dimension each
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import datasets
import torch
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

    def dimension_loss(self, model: Any, part: dict[str, Any], name: str) -> torch.Tensor:
        """TRL's DPO loss of the pairs of one dimension, whose margin is logged under its name."""
        loss = super().compute_loss(model, part)
        logged = self._metrics["train" if model.training else "eval"]
        logged[f"margin/{name}"].append(logged["rewards/margins"][-1])
        return loss


def parts(inputs: dict[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each dimension in the batch and the inputs of its pairs; TRL's rows are all chosen sides,
    then all rejected ones."""
    heads = inputs["head"]
    for k in heads.unique().tolist():
        pairs = (heads == k).nonzero()[:, 0]
        both = torch.cat([pairs, pairs + len(heads)])
        yield (
            k,
            {
                name: rows[pairs if len(rows) == len(heads) else both]
                for name, rows in inputs.items()
                if name != "head"
            },
        )


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
