"""Personal data: texts are counted, per side and entity type; what was found is nowhere."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.compute as pc
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.scored import DIMS, MANIFEST, many, one, settings, write

from mora_data.dataset import lint, privacy
from mora_data.dataset.privacy import public_copy
from mora_data.errors import PublishError

needs_presidio = pytest.mark.skipif(
    find_spec("presidio_analyzer") is None,
    reason="presidio-analyzer is not installed: pip install 'mora-data[pii]'",
)
FOUND = {
    "EMAIL_ADDRESS": "Write to ann.smith@example.org.",
    "PHONE_NUMBER": "Call +1 415 555 2671 now.",
    "IP_ADDRESS": "The host is 192.0.2.17, also 2001:db8::17.",
    "CREDIT_CARD": "Card 4111 1111 1111 1111.",
    "IBAN_CODE": "IBAN DE89 3704 0044 0532 0130 00.",
    "US_SSN": "SSN 536-90-4399.",
}
CLEAN = (
    "In 2019 it cost 12.50, at 12:30:45.",
    "std::vector",
    "a @ b",
    "version 1.2.3",
    "card 4111 1111 1111 1112",
    "DE00 0000",
)
LOOKING = {"EMAIL_ADDRESS": lambda text: "@" in text, "IP_ADDRESS": lambda text: "192.0.2" in text}


def dataset(out: Path, configs: str | list[str] = "all") -> Path:
    answers, rewards = (
        ("Mail ann@example.org.", "bo@example.org", "", "no"),
        dict.fromkeys(DIMS, (1.0, 0.25, 0.5, 0.5)),
    )
    rows = [*many(12), one(12, question="Is 192.0.2.1 mine?", answers=answers, rewards=rewards)]
    write(out, rows, settings=settings(publish={"configs": configs, "test_share": 0.0}))
    return out


@pytest.fixture
def looking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Presidio: simple recognizers of two types."""
    monkeypatch.setattr(privacy, "recognizers", lambda: LOOKING)
    monkeypatch.setattr(privacy, "version", lambda name: "2.2.360")


def test_each_text_counts_once_per_type(tmp_path: Path, looking: None) -> None:
    got = privacy.screen(dataset(tmp_path / "dataset"))
    assert got["configs"] == ["scored"] and got["texts"] == {
        "prompts": 13,
        "source_prompts": 13,
        "answers": 52,
    }
    assert got["found"]["EMAIL_ADDRESS"] == {"prompts": 0, "source_prompts": 0, "answers": 2}
    assert got["found"]["IP_ADDRESS"] == {"prompts": 1, "source_prompts": 1, "answers": 0}


def test_without_scored_every_config_is_read(tmp_path: Path, looking: None) -> None:
    got = privacy.screen(dataset(tmp_path / "dataset", ["preference", "prompt_only"]))
    assert got["configs"] == ["preference", "prompt_only"]
    assert (
        got["texts"] == {"prompts": 26, "source_prompts": 26, "answers": 26}
        and got["found"]["EMAIL_ADDRESS"]["answers"] == 2
    )


def test_the_card_and_the_manifest_have_the_counts_and_no_text(
    tmp_path: Path, looking: None
) -> None:
    rows = [
        *many(12),
        one(12, answers=("Mail ann@example.org.", "no"), rewards=dict.fromkeys(DIMS, (1.0, 0.0))),
    ]
    result = write(tmp_path / "dataset", rows, settings=settings(publish={"pii": True}))
    card = (tmp_path / "dataset" / "README.md").read_text("utf-8")
    assert "| e-mail address | 0 | 0 | 1 |" in card and "- personal data in texts" not in card
    assert lint.lint(tmp_path / "dataset") == []
    wrong = card.replace("| e-mail address | 0 | 0 | 1 |", "| e-mail address | 0 | 0 | 777 |")
    assert any("777" in fault for fault in lint.lint(tmp_path / "dataset", wrong))
    assert result.pii is not None and result.pii["found"]["EMAIL_ADDRESS"]["answers"] == 1
    for path in (tmp_path / "dataset" / "provenance").iterdir():
        assert "ann@" not in path.read_text("utf-8")


def test_the_public_copy_is_counted_anew(tmp_path: Path, looking: None) -> None:
    rewards = dict.fromkeys(DIMS, (1.0, 0.75, 0.0))  # the last answer is under every floor
    rows = [
        one(
            i,
            answers=("Yes.", f"Ask bo{i}@example.org.", f"No: ann{i}@example.org."),
            rewards=rewards,
        )
        for i in range(12)
    ]
    write(tmp_path / "dataset", rows, settings=settings(publish={"pii": True}))
    found = {}
    for folder in (tmp_path / "dataset", public_copy(tmp_path / "dataset", "drop")):
        published = json.loads((folder / "provenance" / "manifest.json").read_text("utf-8"))
        found[folder.name] = published["manifest"]["pii"]["found"]["EMAIL_ADDRESS"]["answers"]
        assert lint.lint(folder) == []
    assert found == {"dataset": 24, "dataset-public": 12}


def test_off_is_not_measured(tmp_path: Path) -> None:
    assert write(tmp_path / "dataset", list(many(12)), manifest=MANIFEST).pii is None
    assert "- personal data in texts" in (tmp_path / "dataset" / "README.md").read_text("utf-8")


def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> ModuleType:
        raise ImportError(name)

    monkeypatch.setattr(privacy, "import_module", missing)
    with pytest.raises(
        PublishError,
        match=r"^publish.pii needs presidio-analyzer, .* pip install 'mora-data\[pii\]'$",
    ):
        privacy.recognizers()


def mutant(rng: random.Random) -> str:
    """An example with letters, digits, separators and spaces changed."""
    text = list(rng.choice([*FOUND.values(), *CLEAN]))
    for _ in range(rng.randrange(4)):
        at = rng.randrange(len(text))
        text[at : at + rng.randrange(2)] = rng.choice(
            [*"0159.:-/ @xA(", "\u00a0", "\u0661", "", "ü"]
        )
    return "".join(text)


@needs_presidio
def test_presidio_finds_each_type_offline_and_the_first_sieve_loses_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import socket

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    holds: dict[str, Callable[[str], bool]] = privacy.recognizers()
    for kind, hold in holds.items():
        assert hold(FOUND[kind]), kind
        assert [text for text in CLEAN if hold(text)] == [], kind
    rng = random.Random(0)
    texts = [mutant(rng) for _ in range(600)]
    for kind, hold in holds.items():
        likely = pc.match_substring_regex(pa.array(texts), privacy.KINDS[kind].needs).to_pylist()
        hits = [hold(text) for text in texts]
        assert (
            sum(hits) > 10
            and [t for t, hit, seen in zip(texts, hits, likely, strict=True) if hit and not seen]
            == []
        ), kind
