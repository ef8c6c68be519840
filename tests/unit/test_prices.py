"""Model names, prices, and what a run may spend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mora_data.cli.show import money_line
from mora_data.errors import LimitReached, SettingsError
from mora_data.run.cost import (
    CostTracker,
    Prices,
    account_of,
    load_prices,
    same_model,
    spent_in,
)
from mora_data.run.files import read_json
from mora_data.run.folder import RunFolder
from mora_data.run.stats import RunStats
from mora_data.settings import LimitSettings, RoleSettings

SAME = [
    ("gpt-4o", "gpt-4o-2024-08-06"),
    ("gpt-4o-2024-08-06", "gpt-4o"),
    ("gpt-4", "gpt-4-0613"),
    ("m", "M"),
    ("org/model-8b", "model-8b"),
    ("model-8b", "accounts/x/models/model-8b"),
    ("llama3", "llama3:latest"),
    ("org/x:free", "org/x"),
    ("tiny", "/models/tiny.gguf"),
    ("m", "m@20250101"),
    ("org/tiny", "org/tiny@main"),
    ("c", "c-latest"),
    ("c-r", "c-r-08-2024"),
]
OTHER = [
    ("gpt-4o", "gpt-4o-mini"),
    ("gpt-4o", "gpt-4"),
    ("gpt-4", "gpt-4-32k"),
    ("org/model", "other/model"),
    ("a", "b"),
    ("llama-3", "llama-3.1"),
    ("llama-3-8b", "llama-3-70b"),
    ("x-2024-08-06", "x-2024-05-13"),
    ("llama3:8b", "llama3:70b"),
]


@pytest.mark.parametrize(("asked", "served"), SAME)
def test_same_model(asked: str, served: str) -> None:
    assert same_model(asked, served) and same_model(served, asked)


@pytest.mark.parametrize(("asked", "served"), OTHER)
def test_other_model(asked: str, served: str) -> None:
    assert not same_model(asked, served) and not same_model(served, asked)


def test_shipped_table() -> None:
    prices = load_prices()
    assert prices.currency == "USD" and len(prices.tables[0]) >= 5
    assert prices.cost({"gpt-4o-mini-2024-07-18": [1_000_000, 500_000, 0]}) == pytest.approx(
        0.15 + 0.30
    )
    # cached ones cost as much
    assert prices.cost({"gpt-4o-mini": [1_000_000, 0, 1_000_000]}) == pytest.approx(0.15)
    assert prices.cost({"gpt-4o-mini": [1, 1, 0], "org/local-8b": [1, 1, 0]}) is None
    assert prices.cost({}) is None


BAD = [
    "models: [",
    "models: {m: {in: 1}}\ncurrency: EUR",
    "currency: EUR\nmodels: {m: {in: -1, out: 1}}",
    "currency: EUR\nmodels: {m: {in: .inf, out: 1}}",
    "currency: EUR\nmodels: {m: {in: 1, out: 1, batch: 2}}",
    "7",
    "x: 1",
]


@pytest.mark.parametrize(
    "models", ["{m: {in: 1, out: 1}, m: {in: 2, out: 2}}", "{Gen: &g {in: 1, out: 1}, gEN: *g}"]
)
def test_a_model_priced_twice_is_named(tmp_path: Path, models: str) -> None:
    (tmp_path / "p.yaml").write_text(f"currency: EUR\nmodels: {models}")
    with pytest.raises(SettingsError, match=r"(?i)(gen is priced|'m' stands there) twice"):
        load_prices(str(tmp_path / "p.yaml"))


def table(tmp_path: Path, text: str) -> Prices:
    (tmp_path / "own.yaml").write_text(text)
    return load_prices(str(tmp_path / "own.yaml"))


def test_ones_own_table_lies_over_the_shipped_one(tmp_path: Path) -> None:
    own = "models: {GPT-4o-mini: {in: 7, out: 0}, mine: {in: 1, out: 1}}"
    both = table(tmp_path, f"currency: USD\n{own}")
    shipped = load_prices().cost({"gpt-4o": [10, 10, 0]})
    assert both.cost({"gpt-4o": [10, 10, 0]}) == shipped and shipped is not None
    assert both.cost({"gpt-4o-mini": [1_000_000, 0, 0]}) == 7, "one's own comes first"
    alone = table(tmp_path, f"currency: EUR\n{own}")
    assert alone.unknown(["mine", "gpt-4o"]) == ["gpt-4o"], "dollars are no euros"


def test_accounts(tmp_path: Path) -> None:
    prices = table(tmp_path, "currency: USD\nmodels: {m: {in: 2, out: 4, batch: 0.5}}")
    million = [1_000_000, 1_000_000, 0]
    assert prices.cost({"m": million}) == 6 and prices.cost({"m (batch)": million}) == 3
    assert prices.cost({"org/x (local)": million}) == 0, "one's own machine"
    assert prices.cost({"m (local)": million}) == 6, "unless it has a price: a proxy, say"
    assert prices.cost({"m": million, "org/x (local)": million}) == 6
    assert prices.unknown(["org/x", "org/x (local)", "m (batch)"]) == ["org/x"]


@pytest.mark.parametrize(
    ("url", "own"),
    [
        ("http://127.0.0.1:8000/v1", True),
        ("http://localhost:1/v1", True),
        ("http://gpu-3:8000/v1", True),
        ("http://10.0.3.4/v1", True),
        ("http://[::1]:8000/v1", True),
        ("https://vllm.cluster.internal/v1", True),
        ("https://api.openai.com/v1", False),
        ("http://8.8.8.8/v1", False),
        ("https://10.evil.com/v1", False),
        ("", False),
    ],
)
def test_where_a_model_costs_nothing(url: str, own: bool) -> None:
    role = RoleSettings(engine="openai", base_url=url)
    assert account_of("m", role) == ("m (local)" if own else "m")
    hosted = role.model_copy(update={"replicas": ["https://api.openai.com/v1"]})
    assert account_of("m", hosted) == "m"
    batch = role.model_copy(update={"engine": "batch"})
    assert account_of("m", batch) == ("m (local)" if own else "m (batch)")
    assert account_of("m", RoleSettings(engine="vllm")) == "m (local)"
    assert account_of("m", RoleSettings(engine="mine:open")) == "m"


@pytest.mark.parametrize("text", BAD)
def test_bad_table_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(SettingsError, match="price table") as caught:
        load_prices(str(tmp_path / "p.yaml"))
    assert "\n" not in str(caught.value)


def test_missing_table(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no\.yaml can't be read"):
        load_prices(str(tmp_path / "no.yaml"))


def spending(tmp_path: Path, stats: RunStats, **limits: Any) -> tuple[RunFolder, CostTracker]:
    (tmp_path / "p.yaml").write_text("currency: EUR\nmodels: {m: {in: 1, cached: 0.5, out: 2}}")
    folder = RunFolder(tmp_path / "run", {"a": "b"}, False)
    return folder, CostTracker(
        folder, LimitSettings(**limits), load_prices(str(tmp_path / "p.yaml")), stats, lambda: 0.0
    )


def test_limits_hold_over_the_commands_of_a_run_folder(tmp_path: Path) -> None:
    stats = RunStats()
    folder, s = spending(tmp_path, stats, max_cost=3.0)
    with folder:
        s.start(["m"])
        stats.count("m", "p", (1_000_000, 500_000, 0))
        with pytest.raises(
            LimitReached, match=r"limits\.max_cost = 3 EUR is used up \(3\.5 spent.*--max-cost"
        ):
            stats.count("m", "p", (1_000_000, 500_000, 1_000_000))
        s.save()
        assert s.command_cost() == 3.5
    folder, s = spending(tmp_path, RunStats(), max_cost=3.0)
    with folder, pytest.raises(LimitReached):
        s.start(["m"])
    stats = RunStats()
    folder, s = spending(tmp_path, stats, max_cost=30.0, max_tokens=5_000_000)
    with folder:
        s.start(["m"])
        stats.count("m", "p", (1_000_000, 0, 0))
        assert (s.cost(), s.command_cost()) == (4.5, 1.0)
        with pytest.raises(
            LimitReached,
            match=r"limits\.max_tokens = 5000000 is used up \(5000000 in this run folder\)",
        ):
            stats.count("m", "p", (1_000_000, 0, 0))
        s.save()
    assert read_json(tmp_path / "run" / "spending.json") == {
        "models": {"m": [4_000_000, 1_000_000, 1_000_000]}
    }


def test_a_money_limit_needs_prices(tmp_path: Path) -> None:
    folder, s = spending(tmp_path, RunStats(), max_cost=3.0)
    with folder, pytest.raises(SettingsError, match=r"price of 'other'.*limits\.prices"):
        s.start(["m", "other"])


@pytest.mark.parametrize(
    "text", ["", "{}", '{"models": 3}', '{"models": {"m": [1]}}', '{"models": {"m": [1, 2, "x"]}}']
)
def test_damaged_record_counts_from_zero(tmp_path: Path, text: str) -> None:
    folder, s = spending(tmp_path, RunStats())
    with folder:
        (tmp_path / "run" / "spending.json").write_text(text)
        assert (
            CostTracker(folder, LimitSettings(), load_prices(), RunStats()).totals()
            == s.totals()
            == {}
        )


def test_what_a_folder_spent_in_words(tmp_path: Path) -> None:
    stats = RunStats()
    folder, s = spending(tmp_path, stats)
    with folder:
        assert s.start(["m", "own (local)"]) == []
        stats.count("m", "p", (1_000_000, 500_000, 0))
        stats.count("own (local)", "p", (9, 9, 0))
        s.save()
    limits = {"limits": {"prices": str(tmp_path / "p.yaml")}}
    spent = spent_in(tmp_path / "run", {"settings": limits})
    assert (spent.cost, spent.currency, spent.unpriced) == (2.0, "EUR", [])
    assert (
        money_line(None, spent.cost, "EUR", [], 8) == "cost 2 EUR in this run folder, 0.25 a pair"
    )
    assert money_line(0.5, 2.0, "EUR", [], 0) == "cost 0.5 EUR, 2 EUR in this run folder"
    assert money_line(0.0, 0.0, "EUR", [], 8) == ""
    gone = spent_in(tmp_path / "run", {"settings": {"limits": {"prices": "/no"}}, "cost": 3.0})
    assert gone.cost == 3.0, "a table that is gone"
    shipped = spent_in(tmp_path / "run", {})
    assert shipped.cost is None and shipped.unpriced == ["m"]
    assert "no price for m (limits.prices: PATH)" in money_line(None, None, "", ["m"], 8)
