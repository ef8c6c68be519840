"""A public release without unsafe text: dropped or redacted in every text column of every config,
counted in the card."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from support.scored import DIMS, Scored, many, one, settings, write

from mora_data.dataset import lint, papers
from mora_data.dataset.privacy import public_copy
from mora_data.errors import PublishError
from mora_data.types import Pair

BAD, RUDE = "THE-BAD-ANSWER", "THE-BAD-QUESTION"


def marked(scored: Scored, **label: str) -> Scored:
    return replace(scored, prompt=replace(scored.prompt, **label))


def unsafe_rows() -> list[Scored]:
    """Most prompts lose one answer; three are marked by their source; one has an answer that nobody
    scored."""
    harmless = {**dict.fromkeys(DIMS, (1.0, 0.75, 0.75, 0.5)), "harmless": (1.0, 0.75, 0.25, 0.5)}
    rows = []
    for i in range(24):
        texts = (f"Fine answer {i}.", f"Also fine {i}.", f"{BAD} {i}", f"Middling {i}.")
        s = one(i, answers=texts, rewards=harmless)
        extra = Pair(0, 2, 0.3, dict.fromkeys(DIMS, 0.75))
        rows.append(replace(s, pairs=(*s.pairs, extra)))
    labels: list[dict[str, str]] = [
        {"stratum": "one_safe"},
        {"stratum": "red-team-attempts"},
        {"category": "Drugs"},
    ]
    rows += [marked(one(30 + i, question=f"{RUDE} {i}"), **label) for i, label in enumerate(labels)]
    none = {**dict.fromkeys(DIMS, (1.0, 0.5)), "harmless": (1.0, None)}
    rows.append(one(40, answers=("Good.", f"{BAD} unscored"), rewards=none, pairs=()))
    rows += [
        one(
            50 + i,
            answers=(f"Good {i}.", f"Also good {i}."),
            rewards=dict.fromkeys(DIMS, (1.0, 0.75)),
        )
        for i in range(4)
    ]
    return rows


def tables(out: Path) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for f in sorted(out.glob("*/*.parquet")):
        found.setdefault(f.parent.name, []).extend(pq.read_table(f, partitioning=None).to_pylist())
    return found


@pytest.mark.parametrize("how", ["drop", "redact"])
def test_no_unsafe_text_is_left_in_any_config(tmp_path: Path, how: Any) -> None:
    write(tmp_path / "dataset", unsafe_rows())
    before, kept = tables(tmp_path / "dataset"), (tmp_path / "dataset" / "README.md").read_bytes()
    assert BAD in str(before) and RUDE in str(before)
    out = public_copy(tmp_path / "dataset", how)
    after = tables(out)
    assert BAD not in str(after) and RUDE not in str(after) and RUDE.lower() not in str(after)
    assert not any(
        word.encode() in f.read_bytes()
        for f in out.rglob("*.*")
        if f.is_file()
        for word in (BAD, RUDE)
    )
    assert lint.lint(out) == []
    found = json.loads((out / "provenance" / "manifest.json").read_text("utf-8"))["folder"][
        "unsafe"
    ]
    assert (found["how"], found["prompts"], found["answers"]) == (how, 3, 24 + 1 + 3)
    for name, n in found["configs"].items():
        assert n["rows"] == len(before[name])
        assert n["rows"] - n["rows_dropped"] == len(after.get(name, []))
    assert f"{found['answers']} answers and 3 prompts" in (out / "README.md").read_text("utf-8")
    assert (tmp_path / "dataset" / "README.md").read_bytes() == kept
    if how == "redact":
        assert {n: len(r) for n, r in after.items()} == {n: len(r) for n, r in before.items()}
        assert all(r["chosen"] != r["rejected"] for r in after["preference"])
    else:
        assert {r["weight"] for r in after["preference"]} == {1.0}
        assert len(after["preference_helpful"]) == 4
        ids = [[r["prompt_id"] for r in after[f"preference_{d}"]] for d in DIMS]
        assert all(i == ids[0] for i in ids)
        for row in after["scored"]:
            assert (
                len(
                    {
                        len(row[k])
                        for k in (
                            "completions",
                            "flags",
                            "lengths",
                            *(f"rewards_{d}" for d in DIMS),
                        )
                    }
                )
                == 1
            )
            for a, b in zip(row["pair_chosen"], row["pair_rejected"], strict=True):
                assert row["completions"][a].startswith(("Fine", "Good")) and row["completions"][
                    b
                ].startswith("Also")


@pytest.mark.parametrize("how", ["drop", "redact"])
def test_the_same_folder_gives_the_same_public_copy(tmp_path: Path, how: Any) -> None:
    write(
        tmp_path / "dataset",
        unsafe_rows(),
        settings=settings(publish={"configs": ["preference", "scored"]}),
    )
    copies = []
    for _ in range(2):
        out = public_copy(tmp_path / "dataset", how)
        copies.append({p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()})
    assert copies[0] == copies[1]


def test_without_a_floor_or_a_pair_there_is_nothing_to_release(tmp_path: Path) -> None:
    write(tmp_path / "a", list(many(5)), thresholds={"helpful": 0.75})
    with pytest.raises(
        PublishError, match=r"needs harmless rewards and their floor.*publish.unsafe=gate"
    ):
        public_copy(tmp_path / "a", "drop")
    write(tmp_path / "b", list(many(5)))  # every rejected answer is under the floor
    with pytest.raises(PublishError, match="leaves no pair"):
        public_copy(tmp_path / "b", "drop")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_licences_that_do_not_go_together_are_flagged(tmp_path: Path) -> None:
    rows = [
        marked(one(i), **({"source_licence": "cc-by-nc-4.0"} if i % 2 else {})) for i in range(12)
    ]
    write(tmp_path / "dataset", rows)
    for name in ("README.md", "LICENSE.md"):
        assert "forbid commercial use are mixed" in (tmp_path / "dataset" / name).read_text("utf-8")
    assert lint.lint(tmp_path / "dataset") == []
    wider = settings(publish={"licence": "mit"})
    write(tmp_path / "dataset", rows[1::2], settings=wider)
    assert "wider than that of its sources" in (tmp_path / "dataset" / "LICENSE.md").read_text(
        "utf-8"
    )
    write(tmp_path / "dataset", rows[::2])
    assert "Note" not in (tmp_path / "dataset" / "LICENSE.md").read_text("utf-8")


def test_papers_follow_from_the_manifest(tmp_path: Path) -> None:
    out = tmp_path / "dataset"
    write(out, list(many(12)))
    published = json.loads((out / "provenance" / "manifest.json").read_text("utf-8"))
    assert (out / "LICENSE.md").read_text("utf-8") == papers.licence_md(published)
    assert (out / "CITATION.cff").read_text("utf-8") == papers.citation(published)
    names = {p.stem: json.loads(p.read_text("utf-8")) for p in (out / "provenance").iterdir()}
    assert set(names) == {"manifest", "drops", "calibration", "prompts", "croissant"}
    assert names["drops"]["stages"]["mine"]["dropped"] == {"duplicate": 5, "too_long": 1}
    assert names["prompts"]["sha256"] == {"judge/helpful": "ab" * 32}
    assert names["calibration"]["reference"]["n"] == 1200
    croissant = names["croissant"]
    assert croissant["rai:machineAnnotationTools"] == ["org/judge"]
    assert {s["@id"] for s in croissant["distribution"]} == {
        c["name"] for c in published["folder"]["configs"]
    }
    for records in croissant["recordSet"]:
        columns = pq.read_schema(out / records["name"] / "train-00000-of-00001.parquet").names
        assert [f["source"]["extract"]["column"] for f in records["field"]] == columns
        assert all(f["source"]["fileSet"]["@id"] == records["name"] for f in records["field"])
