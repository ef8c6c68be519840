"""The viewer's list of prompts and their stories, folds of unsafe answers, orders, search by id."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest
from support.run_folder import DIMS, make_run, outcome, prompt
from support.scored import one, write
from support.viewing import HOSTILE, Viewer, dataset, viewing

from mora_data.prompts.result import tables
from mora_data.rewriting.checks import Check
from mora_data.run.partitions import Partition
from mora_data.types import STAGES
from mora_data.viewer.folder import open_folder
from mora_data.viewer.provenance import calls_of


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build that ended with its rewrites: 12 prompts, every third one refused, the last one
    never tried; and an open partition with 4 more."""
    path = make_run(
        tmp_path_factory.mktemp("runs") / "run", {"fused": 0.6}, 4, parts=1, seal=False, pairs=0
    )
    (path / "mine.json").write_bytes(orjson.dumps({"n_parts": 2}))
    prompts = [prompt(i) for i in range(12)]
    found = []
    for i, p in enumerate(prompts):
        out = outcome(p, {"fused": 0.6, "single": 0.1}, np.random.default_rng(i), {}, "")
        out.presample, out.arms = replace(out.arms[0], name="presample", pairs=[]), []
        if i % 3 == 0:
            first, *_ = (a for a in out.attempts if a.arm == "fused")
            failed = replace(first, checks=(Check("harm", False, 0.9),))
            out.attempts = [failed, *(a for a in out.attempts if a.arm != "fused")]
        if i == 1:
            out.attempts.reverse()  # the accepted one of two candidates comes first
        found.append(out)
    found[-1].attempts = []
    part = Partition(path, 0)
    part.keep_prompts(prompts)
    manifest = {"settings": "x", "n_prompts": 12, "counts": {}, "owed": []}
    part.finalize(tables(found, DIMS), [], [], manifest)
    Partition(path, 1).keep_prompts([prompt(i) for i in range(12, 16)])
    return path


@pytest.fixture(scope="module")
def viewer(run: Path) -> Any:
    with viewing(run) as v:
        yield v


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("data") / "set")


def ids(v: Viewer, query: str = "") -> list[str]:
    return [p["prompt_id"] for p in v.get(f"/prompts.json?{query}").tree["prompts"]]


def test_a_run_without_pairs_shows_its_prompts(viewer: Viewer) -> None:
    assert "/prompts" in viewer.page("/").links
    tree = viewer.get("/prompts.json").tree
    assert (tree["n"], tree["total"], tree["arm"]) == (16, 16, "fused")
    assert tree["facets"]["outcome"] == {
        "accepted": 7,
        "harm": 4,
        "not finished": 4,
        "not fused": 1,
    }
    assert tree["arms"] == {"fused": 7, "single": 11}
    first = tree["prompts"][0]
    assert (first["outcome"], first["tries"], first["source"]) == (
        "harm",
        1,
        "What about number 0?",
    )
    seen = viewer.page("/prompts")
    assert f"/prompt/{first['prompt_id']}" in seen.links
    text = viewer.get(f"/prompt/{first['prompt_id']}").text
    assert "failed harm" in text and "✗ harm" in text and "<details" in text
    assert "8 answers, before fusion (presamples)" in text
    # its texts are not folded
    assert text.index("What about number 0?") < text.index("<details")


def test_filters_and_order_of_prompts(viewer: Viewer) -> None:
    every = ids(viewer)
    refused = ids(viewer, "outcome=harm")
    assert refused == every[0:12:3]
    assert ids(viewer, "outcome=harm&category=songs") == every[3:12:6]
    assert ids(viewer, "pair=yes") == [] and len(ids(viewer, "arm=single&outcome=accepted")) == 11
    assert ids(viewer, "sort=-mined") == every[::-1]
    untried = {*ids(viewer, "outcome=not+fused"), *ids(viewer, "outcome=not+finished")}
    assert set(ids(viewer, "sort=-tries")[-5:]) == set(ids(viewer, "sort=tries")[:5]) == untried
    assert ids(viewer, f"q={every[5][:9]}") == [every[5]]
    assert ids(viewer, "q=NUMBER+11") == [every[11]]
    # a facet counts what would be left with each of its values
    facets = viewer.get("/prompts.json?outcome=harm").tree["facets"]
    assert facets["category"] == {"sums": 2, "songs": 2} and facets["outcome"]["accepted"] == 7
    for query in ("sort=nope", "q=" + "x" * 201):
        assert viewer.get(f"/prompts?{query}").status == 400
    page = viewer.get("/prompts?outcome=harm&sort=tries").text
    assert 'aria-sort="ascending"' in page and "sort=-tries" in page
    back = f"/prompt/{refused[0]}?outcome=harm"
    assert f"/prompt/{refused[1]}?outcome=harm" in viewer.page(back).links


def test_only_answers_that_may_harm_are_folded(folder: Path) -> None:
    rows = pq.read_table(folder / "preference").to_pylist()
    floor = 0.5
    unsafe = {
        r["pair_id"]: [
            s for s in ("chosen", "rejected") if not (r[f"{s}_reward_harmless"] or 0) >= floor
        ]
        for r in rows
    }
    with viewing(folder) as v:
        found = v.get("/pairs.json").tree["pairs"]
        assert all(c["unsafe"] == unsafe[c["pair_id"]] for c in found)
        assert Counter(len(c["unsafe"]) for c in found).keys() == {1}
        page = v.get("/pairs").text
        table = page[page.index("<tbody>") :]
        assert table.count("<details") == sum(len(c["unsafe"]) for c in found)
        assert all(c["prompt"].split("…")[0] in unescape(table) for c in found)
        one_pair = v.get(f"/pair/{found[0]['pair_id']}").text
        assert one_pair.count("<summary>Show the answer") == 1
        # the choice goes along wherever a link leads, but for the one that folds again
        for path in ("/", "/pairs", "/prompts", f"/pair/{found[0]['pair_id']}"):
            links = [x for x in v.page(f"{path}?texts=1").links if x.startswith("/")]
            without = [x for x in links if "texts=1" not in x and ".json" not in x]
            assert set(without) <= {"/style.css", path}, (path, without)
            assert "<summary>Show the answer" not in v.get(f"{path}?texts=1").text


def test_heads_order_and_ids_are_found(folder: Path) -> None:
    with viewing(folder) as v:
        page = v.get("/pairs?sort=-margin_helpful").text
        assert 'aria-sort="descending"' in page and "sort=margin_helpful" in page
        pair = v.get("/pairs.json").tree["pairs"][3]
        whole = v.get(f"/pair/{pair['pair_id']}.json").tree["pair"]
        for start in (pair["pair_id"], pair["pair_id"][:10].upper(), whole["prompt_id"][:12]):
            assert v.get(f"/pairs.json?q={start}").tree["total"] == 1, start


def test_a_hostile_question_stands_in_the_list_as_text(tmp_path: Path) -> None:
    write(tmp_path / "set", [one(0, question="=1+1 " + HOSTILE, answers=("a", "b", "c", ""))])
    with viewing(tmp_path / "set") as v:
        v.page("/prompts?q=%3Cscript%3E")
        assert v.get("/prompts").text.count("<script") == 1


def test_calls_are_not_made_of_what_a_stranger_names(run: Path) -> None:
    folder, prompt_id = open_folder(run), prompt(1).prompt_id
    assert "No call was found" in (calls_of(folder, prompt_id).note or "")
    assert "is not finished" in (calls_of(folder, prompt(13).prompt_id).note or "")
    settings = run / "build.yaml"
    kept = settings.read_text()
    settings.write_text(re.sub(r"selector: \w+", "selector: os:getcwd", kept))
    try:
        assert "code of their own" in (calls_of(folder, prompt_id).note or "")
    finally:
        settings.write_text(kept)


def test_stages_stand_in_their_order(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "set")
    path = tmp_path / "set/provenance/manifest.json"
    tree = orjson.loads(path.read_bytes())
    counts = {s: {"in": 1, "kept": 1, "dropped": {}} for s in sorted(STAGES)}
    tree["manifest"]["counts"] = counts
    path.write_bytes(orjson.dumps(tree))
    with viewing(tmp_path / "set") as v:
        assert tuple(v.get("/index.json").tree["stages"]) == STAGES


def test_links_keep_the_list(viewer: Viewer) -> None:
    links = [urlsplit(x) for x in viewer.page("/prompts?outcome=harm&q=number").links]
    stories = [dict(parse_qsl(x.query)) for x in links if x.path.startswith("/prompt/")]
    assert stories and all(q == {"outcome": "harm", "q": "number"} for q in stories)
