"""Rows whose texts are YAML, Markdown, HTML, Jinja and spreadsheet formulas stay text in every file
of a release or an export."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from support.scored import DIMS, FLOORS, MANIFEST, Scored, many, one, settings, write

from mora_data.dataset import lint
from mora_data.dataset.export import export_config

TEXTS = {
    "yaml": "---\nlicense: mit\nconfigs: !!python/object/apply:os.system [id]\n---\n",
    "markdown": "# Owned\n\n| a | b |\n|---|---|\n[click](x) ![i](j) `code` ```\n~~~\n</details>",
    "html": "<script>alert(1)</script><img src=x onerror=alert(1)><!-- gone",
    "jinja": "{{ 7*7 }} {% include 'parts/first.md.j2' %} {% raw %} {# gone #}",
    "formula": "=cmd|' /C calc'!A0",
    "mixed": "\t@SUM(1)\r\n+1-1\u2028\u202e\x00 \"quoted\", 'single'; end",
}


KEYS = {
    "license",
    "pretty_name",
    "task_categories",
    "tags",
    "size_categories",
    "annotations_creators",
    "language_creators",
    "source_datasets",
    "configs",
    "dataset_info",
}


def scored(text: str, i: int) -> Scored:
    """A prompt whose question, answers, category and source are that text."""
    row = one(
        i,
        question=f"{text} {i}",
        answers=(f"{text} good", f"{text} bad"),
        rewards=dict.fromkeys(DIMS, (1.0, 0.75)),
    )
    prompt = replace(
        row.prompt,
        category=text,
        source_dataset=text,
        source_config=text,
        source_licence=text,
        stratum=text,
    )
    return replace(row, prompt=prompt)


@pytest.fixture(scope="module", params=TEXTS)
def built(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A dataset folder full of one kind of text."""
    text: str = TEXTS[request.param]
    out = tmp_path_factory.mktemp("hostile") / "dataset"
    manifest = {
        **MANIFEST,
        "notes": {text: 3},
        "contamination": {text: 2},
        "settings": {"name": text},
    }
    write(
        out,
        [*(scored(text, i) for i in range(12)), *many(12)],
        manifest=manifest,
        settings=settings(publish={"licence": "cc-by-4.0"}),
    )
    return out, text


def test_the_papers_stay_what_they_are(built: tuple[Path, str]) -> None:
    folder, _ = built
    assert lint.lint(folder) == []
    card = (folder / "README.md").read_text("utf-8")
    header = lint.read_header(card)
    assert (
        header is not None
        and header["license"] == "cc-by-4.0"
        and isinstance(header["pretty_name"], str)
    )
    assert set(header) <= KEYS
    assert [c["config_name"] for c in header["configs"] if c.get("default")] == ["preference"]
    for page in (card.split("\n---\n", 1)[1], (folder / "LICENSE.md").read_text("utf-8")):
        prose = lint._prose(page).replace("\\]", "")
        assert not any(
            mark in prose for mark in ("<script", "<img", "<!--", "](x)", "\n# Owned", "\n---\n")
        ), prose
        assert "49" not in page.replace("2605", "")
    assert yaml.safe_load((folder / "CITATION.cff").read_text("utf-8"))["type"] == "dataset"
    for path in (folder / "provenance").iterdir():
        json.loads(path.read_text("utf-8"))


@pytest.mark.skipif(
    find_spec("markdown_it") is None,
    reason="markdown-it-py is not installed: pip install markdown-it-py",
)
def test_a_renderer_shows_text_and_no_markup(built: tuple[Path, str]) -> None:
    from markdown_it import MarkdownIt

    renderer = MarkdownIt("commonmark", {"html": True}).enable("table")
    for name in ("README.md", "LICENSE.md"):
        page = renderer.render((built[0] / name).read_text("utf-8").split("\n---\n", 1)[-1])
        assert not any(tag in page for tag in ("<script", "<img", "<a ", "<!--", "Owned</h1>")), (
            page
        )
        assert page.count("<details>") == page.count("</details>") and page.count(
            "<table>"
        ) == page.count("</table>")


def test_an_export_has_the_texts_as_they_are(built: tuple[Path, str], tmp_path: Path) -> None:
    folder, text = built
    rows = pq.read_table(
        folder / "preference" / "train-00000-of-00001.parquet", partitioning=None
    ).to_pylist()
    wanted = {
        (r["prompt"][-1]["content"], r["chosen"][0]["content"], r["rejected"][0]["content"])
        for r in rows
    }
    assert any(prompt.startswith(text) for prompt, _, _ in wanted)

    def triple(row: dict[str, Any]) -> tuple[str, str, str]:
        return (
            row["prompt"][-1]["content"],
            row["chosen"][0]["content"],
            row["rejected"][0]["content"],
        )

    (lines, *_) = export_config(folder, "preference", tmp_path, "jsonl")
    raw = lines.read_bytes()
    assert (
        raw.count(b"\n") == len(rows)
        and {triple(json.loads(line)) for line in raw.split(b"\n") if line} == wanted
    )
    (parquet, *_) = export_config(folder, "preference", tmp_path, "parquet")
    assert {triple(r) for r in pq.read_table(parquet, partitioning=None).to_pylist()} == wanted
    (llama, *_) = export_config(folder, "preference", tmp_path, "llamafactory")
    found = json.loads(llama.read_text("utf-8"))
    assert {
        (r["conversations"][-1]["value"], r["chosen"]["value"], r["rejected"]["value"])
        for r in found
    } == wanted
    by_dim = [
        p
        for p in export_config(folder, "preference_by_dim", tmp_path, "mahdpo")
        if "train" in p.name
    ]
    assert {r["question"] for p in by_dim for r in json.loads(p.read_text("utf-8"))} == {
        prompt for prompt, _, _ in wanted
    }
    assert FLOORS["harmless"] <= 0.75  # so that the card's example pair may be one of these
