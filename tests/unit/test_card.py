"""The card: a pure function of the manifest, literal about every text, and checked number by
number."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.scored import DIMS, MANIFEST

from mora_data.dataset import card, lint, papers
from mora_data.dataset.privacy import scrub, scrub_text

CONTROLS = "\x1b[2J\x07\x9b\u202e\u2066\U000e0041"
HOSTILE = (
    "---\nlicense: mit\n---\n# Owned | `x` <script>alert(1)</script> {{ 7*7 }} {% raw %} "
    "[a](b) ![i](j) =cmd|' /C calc'!A0\n```\n</details>"
) + CONTROLS


def published(manifest: dict[str, Any] | None = None, **folder: Any) -> Any:
    splits = {
        "train": {"num_examples": 22, "num_bytes": 900, "file_bytes": 500},
        "test": {"num_examples": 2, "num_bytes": 90, "file_bytes": 50},
    }
    config = {"splits": splits, "n_columns": 43}
    names = ["preference", *(f"preference_{d}" for d in DIMS)]
    described = [
        {**config, "name": n, "files": {s: [f"{n}/{s}-00000-of-00001.parquet"] for s in splits}}
        for n in names
    ]
    spread = {"n": 24, "p10": 0.25, "p50": 0.5, "p90": 0.75, "positive": 1.0}
    base = {
        "dimensions": list(DIMS),
        "unscored": [],
        "licence": "inherit",
        "test_share": 0.05,
        "n_bytes": 550,
        "floors": {"helpful": 0.75},
        "grey": {},
        "too_large": {},
        "configs": described,
        "union": papers.union_of(described),
        "origin": {
            "policy": "org/p",
            "judge": "org/j",
            "rewriter": "org/p",
            "selector": "dominance_hv",
            "simulated": False,
            "seed": 7,
        },
        "sources": [
            {
                "dataset": "org/source",
                "config": "default",
                "revision": "a" * 40,
                "licence": "cc-by-4.0",
                "prompts": 24,
            }
        ],
        "statistics": {
            "pairs": 24,
            "prompts": 24,
            "margins": dict.fromkeys(DIMS, spread),
            "margin_total": spread,
            "chosen_longer": 0.5,
            "length": {"chosen": 10.5, "rejected": 11.25},
            "kind": {"one_dim": 24},
            "arm": {"fused": 24},
            "category": {},
        },
    }
    return {
        "manifest": {**(MANIFEST if manifest is None else manifest), "fingerprint": "f" * 64},
        "folder": {**base, **folder},
    }


def render(data: card.PublishedManifest, example: dict[str, Any] | None = None) -> str:
    return card.render_card(data, example)


def example(text: str) -> dict[str, Any]:
    sides = {
        "prompt": ("user", text),
        "chosen": ("assistant", text),
        "rejected": ("assistant", "no"),
    }
    turns = {name: [{"role": role, "content": said}] for name, (role, said) in sides.items()}
    return turns | {f"margin_{d}": 0.5 for d in DIMS}


def header_of(text: str) -> dict[str, Any]:
    header = lint.read_header(text)
    assert header is not None
    return header


def test_the_card_says_what_it_must() -> None:
    text = render(published())
    assert card.CLAIM in text
    assert "arXiv:2605.11679" in text
    assert "| mine | 30 | 24 | duplicate 5, too\\_long 1 |" in text
    assert "## Not measured" in text
    assert "Simulated" not in text
    assert "http" not in text


def test_the_header_has_one_default_and_a_union_without_files_of_its_own() -> None:
    header = header_of(render(published()))
    assert [c["config_name"] for c in header["configs"] if c.get("default")] == ["preference"]
    union = header["configs"][-1]
    assert union["config_name"] == "preference_by_dim"
    assert union["data_files"][0]["path"] == [
        f"preference_{d}/train-00000-of-00001.parquet" for d in DIMS
    ]
    info = header["dataset_info"][-1]
    assert info["splits"][0] == {"name": "train", "num_bytes": 2700, "num_examples": 66}
    assert header["license"] == "cc-by-4.0"
    assert header["size_categories"] == ["n<1K"]
    assert header["source_datasets"] == ["org/source"]


def test_a_plain_build_does_not_claim_fusion() -> None:
    data = published(
        {"settings": {"presample": {"enabled": False}, "fuse": {"arms": ["identity"]}}}
    )
    assert "*Presample*: left out" in render(data)
    assert "*Fuse*: left out" in render(data)
    assert "left out" not in render(published())


def test_simulated_rows_are_said_first() -> None:
    data = published()
    data["folder"]["origin"]["simulated"] = True
    body = render(data).split("\n---\n", 1)[1].strip()
    assert body.startswith("> **Simulated data.**")
    assert "simulated" in header_of(render(data))["tags"]


@pytest.mark.parametrize("missing", [*MANIFEST, None])
def test_every_key_of_the_manifest_may_be_missing(missing: str | None) -> None:
    manifest = {} if missing is None else {k: v for k, v in MANIFEST.items() if k != missing}
    text = render(published(manifest))
    if missing is None:
        for block in (
            "noise of the scorers",
            "counts per stage",
            "models and sampling",
            "tokens",
            "cost",
        ):
            assert f"- {block}\n" in text


def test_what_is_measured_is_not_listed_as_missing() -> None:
    listed = card.unmeasured_blocks(published())
    assert "noise of the scorers" not in listed
    assert "counts per stage" not in listed
    assert any("confirmed" in line for line in listed)
    sets = card.unmeasured_blocks(published({**MANIFEST, "not_measured": ["XSTest", "MT-Bench"]}))
    assert (
        "overlap with evaluation sets: XSTest, MT-Bench" in sets
        and "overlap with evaluation sets" in listed
    )
    assert card.unmeasured_blocks(published(unscored=["truthful"]))[0].startswith(
        "rewards in truthful"
    )


@pytest.mark.parametrize("place", ["example", "category", "note", "model", "reason", "name"])
def test_hostile_text_stays_text(place: str) -> None:
    data, shown = published(), None
    if place == "example":
        shown = example(HOSTILE)
    elif place == "category":
        data["folder"]["statistics"]["category"] = {HOSTILE: 3}
    elif place == "note":
        data["manifest"]["notes"] = {HOSTILE: 7}
    elif place == "model":
        data["folder"]["origin"]["policy"] = HOSTILE
    elif place == "reason":
        data["manifest"]["counts"] = {"mine": {"in": 5, "kept": 4, "dropped": {HOSTILE: 1}}}
    else:
        data["manifest"]["settings"] = {"name": HOSTILE}
    plain, text = (
        render(published(), example("fine") if place == "example" else None),
        render(data, shown),
    )
    assert not set(CONTROLS) - set("[2J") & set(text)
    header, before = header_of(text), header_of(plain)
    assert {**header, "pretty_name": ""} == {**before, "pretty_name": ""}
    body = text.split("\n---\n", 1)[1]
    prose = lint._prose(body)
    assert "49" not in text
    assert "<script" not in prose
    assert "](b)" not in prose.replace("\\]", "")
    assert "# Owned" not in re.sub(r"\\#", "", prose)
    assert not re.search(r"^---$", prose, re.M)
    tables = [line for line in prose.splitlines() if line.startswith("|")]
    plain_tables = [
        line
        for line in lint._prose(plain.split("\n---\n", 1)[1]).splitlines()
        if line.startswith("|")
    ]
    assert len(tables) - len(plain_tables) == {"category": 1, "reason": -1}.get(place, 0)


def test_a_fence_is_longer_than_any_run_of_backticks_inside() -> None:
    fenced = card.fence("a ```` b\n`````\nc")
    assert fenced.startswith("``````text\n")
    assert fenced.endswith("\n``````")
    assert "[cut]" in card.fence("x" * 5000)
    lines = card.fence("word " * 90 + "\n\n    indented").splitlines()
    assert max(map(len, lines)) <= card.FENCE_WIDTH and lines[-3:-1] == ["", "    indented"]


def test_the_card_shows_what_a_run_writes() -> None:
    """A run's own manifest: versions by name, the number of its format, many categories, counts by
    benchmark."""
    manifest = {
        **MANIFEST,
        "version": 1,
        "created_with": {"mora_data": "0.1.0", "python": "3.11.7"},
        "contamination": {"AdvBench": 321, "XSTest": 0},
        "not_measured": ["MT-Bench"],
    }
    manifest["reference"] = {**MANIFEST["reference"], "noise": {"helpful": 0.0749688}}
    data = published(manifest)
    data["folder"]["statistics"]["category"] = {f"topic {chr(97 + i)}": 40 - i for i in range(20)}
    text = render(data)
    assert "Made with mora-data 0.1.0, python 3.11.7." in text and "| release |" not in text
    assert (
        "| helpful | 0.75 | 0.075 |" in text and "topic l 29, … |" in text and "topic m" not in text
    )
    assert (
        "| AdvBench | 321 |\n| XSTest | 0 |" in text
        and "overlap with evaluation sets: MT-Bench" in text
    )
    body = text.split("\n---\n", 1)[1]
    assert list(lint._number_faults(body, data)) == []
    assert [
        f
        for f in lint._number_faults(body.replace("| AdvBench | 321 |", "| AdvBench | 322 |"), data)
        if "322" in f
    ]


def test_two_licences_make_the_mix_known() -> None:
    data = published()
    data["folder"]["sources"].append(
        {**data["folder"]["sources"][0], "licence": "mit", "prompts": 3}
    )
    assert header_of(render(data))["license"] == "cc-by-4.0"
    assert "governs the whole: cc-by-4.0" in render(data)
    data["folder"]["sources"][1]["licence"] = "unknown"
    header = header_of(render(data))
    assert (header["license"], header["license_name"]) == ("other", "mixed-see-card")
    assert "different licences" in render(data)
    assert header_of(render(published(licence="mit")))["license"] == "mit"


def test_load_snippets_take_the_repository_and_the_tag() -> None:
    text = card.with_address(render(published()), "org/pairs", "v1.2.0")
    assert 'load_dataset("org/pairs", revision="v1.2.0")' in text
    assert card.PLACE not in text


def test_each_number_of_the_card_stands_in_the_manifest() -> None:
    data = published()
    pair = example("fine") | {"margin_helpful": 0.00782065}  # of a reward without levels
    body = render(data, pair).split("\n---\n", 1)[1]
    assert list(lint._number_faults(body, data)) == [] and "`0.00782065`" in body
    wrong = body.replace("| duplicate 5,", "| duplicate 6543,").replace(
        "duplicate 5,", "duplicate 6543,"
    )
    assert [f for f in lint._number_faults(wrong, data) if "6543" in f]


def test_published_text_holds_no_address_or_path() -> None:
    assert scrub_text("/home/ann/models/tiny") == "tiny"
    assert (
        scrub_text("served at http://10.0.0.5:8000/v1 by ann@box.lan")
        == "served at (withheld) by (withheld)"
    )
    assert scrub_text("127.0.0.1:9") == "(withheld)"
    for kept in (
        "org/model@abc",
        "v1.2.0",
        "judge/helpful",
        "a/b ratio",
        "no_dominating_pair",
        "mora-data 0.1.0",
    ):
        assert scrub_text(kept) == kept
    clean = scrub(
        {
            "policy": {"base_url": "http://x", "model": "~/m/tiny"},
            "tokens": {"in": 1, "out": 2},
            "n": [None, True, 0.5],
        }
    )
    assert clean == {
        "policy": {"model": "tiny"},
        "tokens": {"in": 1, "out": 2},
        "n": [None, True, 0.5],
    }
