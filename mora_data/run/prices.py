"""What tokens cost: the table `prices.yaml` beside this file, or one of the user's own in its
place.

    currency: USD
    as_of: 2026-06-01
    models: {judge-1: {in: 0.25, cached: 0.025, out: 2.00}}     # per million tokens

A model without a price makes the cost unknown (None), never 0; a model that costs nothing has the
prices 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import SettingsError
from .model_names import same_model

PER = 1_000_000


class _Price(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    tokens_in: Annotated[float, Field(ge=0, alias="in")]
    tokens_out: Annotated[float, Field(ge=0, alias="out")]
    cached: Annotated[float, Field(ge=0)] | None = None


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    currency: str
    as_of: object = None
    models: dict[str, _Price]


@dataclass(frozen=True, slots=True)
class Prices:
    """A price table."""

    currency: str
    models: Mapping[str, _Price]

    def knows(self, model: str) -> bool:
        """Whether there is a price for `model`."""
        return self._of(model) is not None

    def cost(self, tokens: Mapping[str, Sequence[int]]) -> float | None:
        """What (in, out, cached) tokens by model cost; None when one of the models has no price, or
        none was asked."""
        total = 0.0
        for model, (n_in, n_out, n_cached) in tokens.items():
            price = self._of(model)
            if price is None:
                return None
            cached = price.tokens_in if price.cached is None else price.cached
            total += (
                (n_in - n_cached) * price.tokens_in + n_cached * cached + n_out * price.tokens_out
            )
        return total / PER if tokens else None

    def _of(self, model: str) -> _Price | None:
        if model in self.models:
            return self.models[model]
        alike = [name for name in self.models if same_model(name, model)]
        return self.models[max(alike, key=len)] if alike else None


def load_prices(path: str | None = None) -> Prices:
    """The table at `path`, or the shipped one.

    Raises:
        SettingsError: it can't be read, or is no price table.
    """
    file = Path(path) if path else Path(__file__).with_name("prices.yaml")
    try:
        table = _Table.model_validate(yaml.safe_load(file.read_text("utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise SettingsError(
            f"the price table {file} can't be read ({' '.join(str(e).split())[:100]}): "
            "correct limits.prices"
        ) from e
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(str(x) for x in first["loc"])
        raise SettingsError(
            f"the price table {file} is wrong at {where or 'its top'} ({first['msg']}): write it as"
            " currency: USD, models: {name: {in: 0.25, out: 2.00}}, per million tokens"
        ) from e
    return Prices(table.currency, table.models)
