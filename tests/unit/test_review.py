"""Blind review and two folders side by side, over the viewer's loopback server."""

from __future__ import annotations

import json
import re
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.run_folder import make_run
from support.scored import many, write
from support.viewing import HOSTILE, Viewer, viewing

from mora_data.errors import SettingsError
from mora_data.report.document import report_of
from mora_data.report.page import report_html
from mora_data.report.pairs import PairTable, agreement, read_pairs, read_reviews
from mora_data.viewer.pairs import ReviewSession
from mora_data.viewer.server import server_of


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", {"identity": 0.2, "fused": 0.6}, 12)


def token(v: Viewer) -> str:
    found = re.search(r'name="token" value="([^"]+)"', v.get("/review").text)
    assert found
    return found[1]


def votes(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "reviews.jsonl").read_text().splitlines()]


def test_a_vote_is_kept_and_the_next_pair_comes(run: Path) -> None:
    with viewing(run, "ada") as v:
        seen, tree = v.page("/review"), v.get("/review.json").tree
        assert tree["n"] == 12 and tree["judged"] == 0 and "form" in seen.tags
        assert not {"chosen", "rejected", "token", "_token"} & set(
            tree
        ) and "chosen" not in json.dumps(tree)
        reply = v.post(
            "/review", {"token": token(v), "pair": tree["pair_id"], "vote": "first", "texts": "1"}
        )
        assert (
            reply.status == 303
            and reply.headers["Location"] == f"/review?last={tree['pair_id']}&texts=1"
        )
        after = v.get(reply.headers["Location"]).text
        assert "1 of 12 pairs judged by ada" in after and "The scores" in after
        assert v.get("/review.json").tree["pair_id"] != tree["pair_id"]
        (row,) = votes(run)
        assert (row["pair_id"], row["reviewer"], row["vote"]) == (tree["pair_id"], "ada", "first")
        # voted again: the later one counts
        v.post("/review", {"token": token(v), "pair": tree["pair_id"], "vote": "equal"})
        assert [r["vote"] for r in read_reviews(run)] == ["equal"] and len(votes(run)) == 2
        skipped = v.get(f"/review.json?after={v.get('/review.json').tree['pair_id']}").tree[
            "pair_id"
        ]
        assert skipped and skipped != v.get("/review.json").tree["pair_id"]
        for _ in range(11):
            v.post(
                "/review",
                {
                    "token": token(v),
                    "pair": v.get("/review.json").tree["pair_id"],
                    "vote": "second",
                },
            )
        assert "Every pair has your vote" in v.get("/review").text


def test_what_was_voted_is_what_was_shown(run: Path) -> None:
    with viewing(run, "ada") as v:
        shown = v.get("/review.json").tree
        pair = v.get(f"/pair/{shown['pair_id']}.json").tree["pair"]
        v.post("/review", {"token": token(v), "pair": shown["pair_id"], "vote": "first"})
    (row,) = votes(run)
    assert pair[row["first"]][-1]["content"] == shown["first"]
    sides = [ReviewSession(run, "ada").first(f"{i:016x}") for i in range(400)]
    assert 160 < sides.count("chosen") < 240
    orders = [
        sorted(map(str, range(50)), key=lambda i, who=who: ReviewSession(run, who).first(i))
        for who in ("ada", "bob")
    ]
    assert orders[0] != orders[1]


def test_nobody_else_can_vote(run: Path) -> None:
    with viewing(run, "ada") as v:
        pair, good = v.get("/review.json").tree["pair_id"], token(v)
        fields = {"token": good, "pair": pair, "vote": "first"}
        refused = [
            v.post("/review", {**fields, "token": "x"}),
            v.post("/review", {**fields, "token": ""}),
            v.post("/review", fields, Origin="http://example.com"),
            v.post("/review", fields, Origin="null"),
            v.post("/review", fields, Host="example.com"),
            v.post("/review", fields, **{"Sec-Fetch-Site": "cross-site"}),
        ]
        assert [r.status for r in refused] == [403] * 6
        bad = [
            v.post("/review", {**fields, "vote": "nope"}),
            v.post("/review", {**fields, "pair": "nope"}),
            v.post("/review", {**fields, "x": "y" * 5000}),
        ]
        assert [r.status for r in bad] == [400] * 3
        assert v.post("/pairs", fields).status == 405
        assert not (run / "reviews.jsonl").exists()
    with viewing(run) as v:
        assert v.post("/review", fields).status == 405 and "--review NAME" in v.get("/review").text
        assert not (run / "reviews.jsonl").exists()


def test_two_viewers_write_whole_lines(run: Path) -> None:
    people = [ReviewSession(run, name) for name in ("ada", "bob")]
    work = [
        threading.Thread(target=lambda p=p: [p.add(f"{i:016x}", "first") for i in range(200)])
        for p in people
    ]
    for t in work:
        t.start()
    for t in work:
        t.join()
    assert len(votes(run)) == 400 == len(read_reviews(run))
    with (run / "reviews.jsonl").open("a") as f:
        f.write('{"pair_id": "half')  # a line that a killed viewer left
    assert len(read_reviews(run)) == 400 and len(people[0].votes()) == 200


def test_kappa_goes_to_the_report(run: Path, tmp_path: Path) -> None:
    assert report_of(run)["reviews"] is None
    held = read_pairs(run / "dataset", ["helpful", "harmless", "truthful"])
    for name, right in (("ada", 10), ("bob", 9)):
        person = ReviewSession(run, name)
        for k, pair_id in enumerate(f"{i:016x}" for i in held.ids_Q.tolist()):
            first = person.first(pair_id) == "chosen"
            person.add(pair_id, "first" if first == (k < right) else "second")
    report = report_of(run)
    v = report["reviews"]
    assert (v["votes"], v["pairs"], v["reviewers"]) == (24, 12, 2) and v["agree"][
        "value"
    ] == pytest.approx(19 / 24, abs=1e-5)
    human = [r["vote"] == "first" for r in read_reviews(run)]
    judge = [r["first"] == "chosen" for r in read_reviews(run)]
    agree = np.mean([h == j for h, j in zip(human, judge, strict=True)])
    chance = np.mean(human) * np.mean(judge) + (1 - np.mean(human)) * (1 - np.mean(judge))
    assert v["kappa"]["value"] == pytest.approx((agree - chance) / (1 - chance), abs=1e-5)
    assert (
        v["kappa"]["low"] <= v["kappa"]["value"] <= v["kappa"]["high"]
        and v["between_people"]["pairs"] == 12
    )
    html = report_html(report, run)
    assert "Do people agree with the scores?" in html and "kappa, people and scores" in html
    assert not any("agreement with people" in x for x in report["not_measured"])
    assert agreement(run, PairTable(), 0) is None


def test_hostile_text_and_bad_starts(tmp_path: Path) -> None:
    hostile = make_run(tmp_path / "h", {"identity": 0.2, "fused": 0.6}, 12, text=HOSTILE)
    with viewing(hostile, '<b>"x"</b>') as v:
        shown = v.get("/review.json").tree["pair_id"]
        for path in (
            "/review?texts=1",
            f"/review?texts=1&pair={shown}",
            "/review?pair=%3Cb%3E&after=%3Cb%3E&last=%3Cb%3E",
        ):
            v.page(path)
    write(tmp_path / "set", list(many(6)))
    with pytest.raises(SettingsError, match="writes into a run folder"):
        server_of(tmp_path / "set", 0, "ada")


def test_folders_that_change_underfoot(run: Path) -> None:
    with viewing(run, "ada") as v:
        fields = {"token": token(v), "pair": v.get("/review.json").tree["pair_id"], "vote": "first"}
        shutil.rmtree(run / "dataset/preference")
        assert (
            v.post("/review", fields).status == 400
            and v.get("/review.json").tree["pair_id"] is None
        )
        assert "There are no pairs" in v.get("/review").text
        shutil.rmtree(run)
        assert v.get("/review").status == 503 and v.post("/review", fields).status in (400, 503)
