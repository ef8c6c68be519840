"""What tokens cost, what the builds of a run folder have spent, and when the next reply is one too
many.

The price table is `prices.yaml` beside this file, under one of the user's own:

    currency: USD
    as_of: 2026-06-01
    models: {judge-1: {in: 0.25, cached: 0.025, out: 2.00, batch: 0.5}}     # per million tokens

Tokens are counted by account: the model's name, with ` (local)` where it runs on machines of one's
own and ` (batch)` where it is asked in batches. A local model without a price costs nothing; any
other without one makes the cost unknown (None), never 0.

    spending.json   {"models": {"judge-1": [tokens in, tokens out, tokens cached]}}

The limits hold for the folder, over all its builds: run again with the same limit, a build stops at
once; with a higher one it goes on. Every reply is counted when it comes; what is in flight then
comes on top. The file is written once a second and at the end, so a killed process forgets what its
last second cost.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ..errors import LimitReached, SettingsError
from ..resources import parse_yaml
from ..settings import LimitSettings, RoleSettings
from ..text import one_line
from . import Manifest
from .files import read_json
from .folder import RunFolder
from .stats import RunStats, added

FILE = "spending.json"
SAVE_EVERY_S = 1.0
PER = 1_000_000
OWN = ("scripted", "recorded", "transformers", "vllm")  # engines of this machine


LOCAL, BATCH = " (local)", " (batch)"


class _Price(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    tokens_in: Annotated[float, Field(ge=0, alias="in")]
    tokens_out: Annotated[float, Field(ge=0, alias="out")]
    cached: Annotated[float, Field(ge=0)] | None = None
    batch: Annotated[float, Field(gt=0, le=1)] = 1.0


class _PriceTable(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    currency: str
    as_of: object = None
    models: dict[str, _Price]

    @field_validator("models")
    @classmethod
    def _once(cls, models: dict[str, _Price]) -> dict[str, _Price]:
        names = Counter(name.lower() for name in models)
        if twice := [name for name, n in names.items() if n > 1]:
            raise ValueError(f"{twice[0]} is priced twice")
        return models


@dataclass(frozen=True, slots=True)
class Prices:
    """Price tables of one currency; the first that knows a model has its price."""

    currency: str
    tables: Sequence[Mapping[str, _Price]]

    def unknown(self, accounts: Iterable[str]) -> list[str]:
        """The accounts without a price, sorted."""
        return sorted({a for a in accounts if self._of(a) is None})

    def cost(self, tokens: Mapping[str, Sequence[float]]) -> float | None:
        """What (in, out, cached) tokens by account cost; None when one of the accounts has no
        price, or none was asked."""
        total = 0.0
        for account, (n_in, n_out, n_cached) in tokens.items():
            price = self._of(account)
            if price is None:
                return None
            cached = price.tokens_in if price.cached is None else price.cached
            share = price.batch if account.endswith(BATCH) else 1.0
            total += share * (
                (n_in - n_cached) * price.tokens_in + n_cached * cached + n_out * price.tokens_out
            )
        return total / PER if tokens else None

    def _of(self, account: str) -> _Price | None:
        model = account.removesuffix(LOCAL).removesuffix(BATCH)
        for table in self.tables:
            if model in table:
                return table[model]
            if alike := [name for name in table if same_model(name, model)]:
                return table[max(alike, key=len)]
        return _FREE if account.endswith(LOCAL) else None


_FREE = _Price.model_validate({"in": 0, "out": 0})


def load_prices(path: str | None = None) -> Prices:
    """The shipped table, under the one at `path`; one in another currency stands alone.

    Raises:
        SettingsError: it can't be read, or is no price table.
    """
    shipped = _read(Path(__file__).with_name("prices.yaml"))
    if path is None:
        return Prices(shipped.currency, [shipped.models])
    own = _read(Path(path))
    below = [shipped.models] if own.currency == shipped.currency else []
    return Prices(own.currency, [own.models, *below])


def _read(file: Path) -> _PriceTable:
    try:
        return _PriceTable.model_validate(parse_yaml(file.read_text("utf-8")))
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


def account_of(model: str, role: RoleSettings) -> str:
    """The account of a model in a role whose engine is decided."""
    hosted = role.engine == "openai" or (role.engine == "batch" and role.batch.mode == "provider")
    urls = [role.base_url or "", *role.replicas]
    if role.engine in OWN or (role.engine == "batch" and not hosted):
        return model + LOCAL
    if hosted and all(is_own(url) for url in urls):
        return model + LOCAL
    return model + BATCH if role.engine == "batch" else model


def is_own(url: str) -> bool:
    """Whether a URL names a machine of one's own: an address or name that no public one has."""
    host = urlsplit(url).hostname or ""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_private
    return bool(host) and ("." not in host or host.endswith((".local", ".lan", ".internal")))


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
        self._before = _tokens_before(folder.path)
        self._save_at = clock()

    def start(self, accounts: Iterable[str]) -> list[str]:
        """Watch every reply from now on; the accounts without a price.

        Raises:
            SettingsError: there is a money limit, and no price for one of `accounts`.
            LimitReached: nothing is left to spend.
        """
        unknown = self.prices.unknown(accounts)
        if self._limits.max_cost is not None and unknown:
            raise SettingsError(
                f"limits.max_cost needs the price of {unknown[0]!r}: put it into a table and give "
                "limits.prices: PATH, or use limits.max_tokens"
            )
        self._stats.on_tokens = self.check
        self.check()
        return unknown

    def check(self) -> None:
        """Raises LimitReached when a limit is used up."""
        if self._clock() >= self._save_at:
            self.save(durable=False)
        if self._limits.max_cost is None and self._limits.max_tokens is None:
            return
        check_totals(self.totals(), self._limits, self.prices)

    def totals(self) -> dict[str, list[int]]:
        """Tokens in, out and cached by account, those of earlier commands too."""
        return added([self._before, self._stats.by_account])

    def cost(self) -> float | None:
        """Money spent in this run folder; None where a price is missing."""
        return self.prices.cost(self.totals())

    def command_cost(self) -> float | None:
        """Money spent by this command."""
        return self.prices.cost(self._stats.by_account)

    def unpriced(self) -> list[str]:
        """The accounts that make the cost unknown."""
        return self.prices.unknown(self.totals())

    def save(self, durable: bool = True) -> None:
        """Write the totals down."""
        self._save_at = self._clock() + SAVE_EVERY_S
        self._folder.write(FILE, {"models": self.totals()}, durable)


@dataclass(frozen=True, slots=True)
class Spent:
    """What the builds of a run folder used.

    Attributes:
        tokens: in, out and cached by account.
        cost: None where one of `unpriced` has no price.
    """

    tokens: Mapping[str, Sequence[int]]
    cost: float | None
    currency: str
    unpriced: Sequence[str]


def spent_in(run_dir: Path, manifest: Manifest) -> Spent:
    """What spending.json says, at the prices that the manifest's settings name; where these can't
    be read, the cost is the manifest's."""
    tokens = _tokens_before(run_dir)
    limits = (manifest.get("settings") or {}).get("limits") or {}
    try:
        prices = load_prices(limits.get("prices"))
    except (SettingsError, ValueError, TypeError):
        return Spent(tokens, manifest.get("cost"), str(manifest.get("currency") or ""), [])
    return Spent(tokens, prices.cost(tokens), prices.currency, prices.unknown(tokens))


def check_totals(
    totals: Mapping[str, Sequence[int]], limits: LimitSettings, prices: Prices
) -> None:
    """Raises LimitReached when the tokens (in, out, cached) by account use up a limit."""
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


def _tokens_before(run_dir: Path) -> dict[str, list[int]]:
    models = read_json(run_dir / FILE).get("models", {})
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
