"""What tokens cost, what the builds of a run folder have spent, and when the next reply is one too
many.

The price table is `prices.yaml` beside this file, or one of the user's own in its place:

    currency: USD
    as_of: 2026-06-01
    models: {judge-1: {in: 0.25, cached: 0.025, out: 2.00}}     # per million tokens

A model without a price makes the cost unknown (None), never 0; a model that costs nothing has the
prices 0.

    spending.json   {"models": {"judge-1": [tokens in, tokens out, tokens cached]}}

The limits hold for the folder, over all its builds: run again with the same limit, a build stops at
once; with a higher one it goes on. Every reply is counted when it comes; what is in flight then
comes on top. The file is written once a second and at the end, so a killed process forgets what its
last second cost.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import LimitReached, SettingsError
from ..resources import parse_yaml
from ..settings import LimitSettings
from ..text import one_line
from .files import read_json
from .folder import RunFolder
from .stats import RunStats

FILE = "spending.json"
SAVE_EVERY_S = 1.0
PER = 1_000_000


class _Price(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    tokens_in: Annotated[float, Field(ge=0, alias="in")]
    tokens_out: Annotated[float, Field(ge=0, alias="out")]
    cached: Annotated[float, Field(ge=0)] | None = None


class _PriceTable(BaseModel):
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
        table = _PriceTable.model_validate(parse_yaml(file.read_text("utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise SettingsError(
            f"the price table {file} can't be read ({one_line(e, 100)}): correct limits.prices"
        ) from e
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(str(x) for x in first["loc"])
        raise SettingsError(
            f"the price table {file} is wrong at {where or 'its top'} ({first['msg']}): write it as"
            " currency: USD, models: {name: {in: 0.25, out: 2.00}}, per million tokens"
        ) from e
    return Prices(table.currency, table.models)


class CostTracker:
    """Counts what a command spends on top of those before."""

    def __init__(
        self,
        folder: RunFolder,
        limits: LimitSettings,
        prices: Prices,
        stats: RunStats,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._limits, self.prices = folder, limits, prices
        self._stats, self._clock = stats, clock
        self._before = _tokens_before(folder)
        self._save_at = clock()

    def start(self, models: Sequence[str]) -> None:
        """Watch every reply from now on.

        Raises:
            SettingsError: there is a money limit, and no price for one of `models`.
            LimitReached: nothing is left to spend.
        """
        unknown = sorted({m for m in models if not self.prices.knows(m)})
        if self._limits.max_cost is not None and unknown:
            raise SettingsError(
                f"limits.max_cost needs the price of {unknown[0]!r}: put it into a table and give "
                "limits.prices: PATH, or use limits.max_tokens"
            )
        self._stats.on_tokens = self.check
        self.check()

    def check(self) -> None:
        """Raises LimitReached when a limit is used up."""
        if self._clock() >= self._save_at:
            self.save(durable=False)
        if self._limits.max_cost is None and self._limits.max_tokens is None:
            return
        check_totals(self.totals(), self._limits, self.prices)

    def totals(self) -> dict[str, list[int]]:
        """Tokens in, out and cached by model, those of earlier commands too."""
        out = {m: list(t) for m, t in self._before.items()}
        for model, tokens in self._stats.by_model.items():
            out[model] = [a + b for a, b in zip(out.get(model, [0, 0, 0]), tokens, strict=True)]
        return out

    def cost(self) -> float | None:
        """Money spent in this run folder; None where a price is missing."""
        return self.prices.cost(self.totals())

    def command_cost(self) -> float | None:
        """Money spent by this command."""
        return self.prices.cost(self._stats.by_model)

    def save(self, durable: bool = True) -> None:
        """Write the totals down."""
        self._save_at = self._clock() + SAVE_EVERY_S
        self._folder.write(FILE, {"models": self.totals()}, durable)


def check_totals(
    totals: Mapping[str, Sequence[int]], limits: LimitSettings, prices: Prices
) -> None:
    """Raises LimitReached when the tokens (in, out, cached) by model use up a limit."""
    used = sum(t[0] + t[1] for t in totals.values())
    if limits.max_tokens is not None and used >= limits.max_tokens:
        raise LimitReached(
            f"limits.max_tokens = {limits.max_tokens} is used up ({used} in this run folder): "
            "raise it (--max-tokens) and run the same command again, what was answered is kept"
        )
    cost = prices.cost(totals)
    if limits.max_cost is not None and cost is not None and cost >= limits.max_cost:
        raise LimitReached(
            f"limits.max_cost = {limits.max_cost:g} {prices.currency} is used up ({cost:.4g} spent "
            "in this run folder): raise it (--max-cost) and run the same command again, "
            "what was answered is kept"
        )


def _tokens_before(folder: RunFolder) -> dict[str, list[int]]:
    models = read_json(folder.path / FILE).get("models", {})
    good = isinstance(models, dict) and all(
        isinstance(t, list) and len(t) == 3 and all(isinstance(n, int) for n in t)
        for t in models.values()
    )
    return models if good else {}


# what a model's name tells: whether two names are one model, and of which family it is

_ENDING = re.compile(
    r"(?:[-:](?:\d{3,8}|\d{4}-\d{2}-\d{2}|\d{2}-\d{4})|@[\w.-]{1,80}|:[a-z]{1,40}|-latest){1,9}\Z"
)
_FAMILIES = (
    (r"qwen|qwq|qvq", "qwen"),
    (r"mi[sx]tral|ministral|codestral|magistral|devstral|zephyr", "mistral"),
    (r"llama|vicuna|alpaca|tulu", "llama"),
    (r"gemma|gemini|palm", "google"),
    (r"gpt|^o[134]\b|davinci", "gpt"),
    (r"glm", "glm"),
)


def same_model(asked: str, served: str) -> bool:
    """Whether `served` is a name of the model `asked`.

    Two names are the same model when they are equal without regard to case, `.gguf` and leading
    path segments that only one of them has, and but for an ending that only one of them has and
    that names no other model: a date or build of three or more digits (`-2024-08-06`, `-0613`), a
    revision (`@main`), or a tag of letters (`:latest`, `-latest`). `gpt-4o-mini` is not `gpt-4o`;
    `mistral-small-latest` is `mistral-small-2506`.
    """
    names = [name.strip().strip("/").lower().removesuffix(".gguf") for name in (asked, served)]
    paths = [name.removesuffix("-latest").removesuffix(":latest").split("/") for name in names]
    n = min(len(p) for p in paths)
    short, long = sorted(("/".join(p[-n:]) for p in paths), key=len)
    return long == short or (
        long.startswith(short) and _ENDING.match(long[len(short) :]) is not None
    )


def family(model: str) -> str:
    """The family that a model's name tells: `org/Qwen2.5-7B-Instruct` -> `qwen`; empty when the
    name tells none.

    The word that it begins with, of three letters or more and without the vendor's (`org/`,
    `region.vendor.`), unless a word in it is known to belong to a family of another name.
    """
    name = re.sub(r"^(?:[a-z]{2,}\.)+(?=[a-z])", "", model.rpartition("/")[2].lower())
    for pattern, known in _FAMILIES:
        if re.search(pattern, name):
            return known
    found = re.match(r"[a-z]{3,}", name)
    return found[0] if found else ""


def same_family(policy: str, judge: str) -> str:
    """The family that both names tell, or empty: a judge may favour answers of its own kind."""
    a, b = family(policy), family(judge)
    return a if a == b else ""
