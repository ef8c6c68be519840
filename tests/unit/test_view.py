"""The viewer over its loopback server: every page and its twin, filters, order and pages, hostile
text, folders in every state."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import socket
import struct
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jinja2 import UndefinedError
from markupsafe import Markup
from support.command import start
from support.run_folder import DIMS, make_run
from support.scored import one, write
from support.viewing import HOSTILE, Seen, Viewer, dataset, prompt_of, viewing

from mora_data.cli import main
from mora_data.errors import RunFolderError
from mora_data.report.markup import Frame, dot, environment, escape, panel
from mora_data.viewer.folder import index_pairs, look_at, open_folder, read_pair
from mora_data.viewer.pairs import PairQuery, PairSearch, parse_query
from mora_data.viewer.pictures import reward_space
from mora_data.viewer.prompts import word_diff
from mora_data.viewer.provenance import ScoredAnswer
from mora_data.viewer.server import server_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("data") / "set")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run", {"identity": 0.2, "fused": 0.6}, 12)


@pytest.fixture(scope="module")
def viewer(run: Path) -> Any:
    with viewing(run) as v:
        yield v


def test_every_page_and_its_twin(viewer: Viewer, run: Path) -> None:
    pair = viewer.get("/pairs.json").tree["pairs"][0]["pair_id"]
    for path in (
        "/",
        "/pairs",
        "/pairs?texts=1&sort=margin_helpful",
        f"/pair/{pair}",
        f"/prompt/{prompt_of(run)}",
        "/drops",
        "/requests",
    ):
        seen, given = viewer.page(path), viewer.get(path).text
        assert given.count("<h1>") == 1 and '<html lang="en">' in given
        for link in seen.links:
            if link.startswith("/"):
                assert viewer.get(link.split("#")[0]).status == 200, (path, link)
        name, _, query = path.partition("?")
        for twin in (
            f"{'/index' if name == '/' else name}.json?{query}",
            f"{name}?{query}&format=json",
        ):
            reply = viewer.get(twin)
            assert reply.headers["Content-Type"] == "application/json" and isinstance(
                reply.tree, dict
            ), twin
    assert viewer.get("/", "HEAD").body == b""


def test_only_this_machine_only_looking(viewer: Viewer) -> None:
    assert viewer.server.server_address[0] == "127.0.0.1"
    for host in ("example.com", "example.com:80", "127.0.0.1.example.com", "0.0.0.0", ""):
        assert viewer.get("/pairs", Host=host).status == 403, host
    assert viewer.get("/", Host="localhost:9").status == 200
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        assert viewer.get("/pairs", method).status == 405
    headers = viewer.get("/pairs").headers
    policy = dict(p.strip().split(" ", 1) for p in headers["Content-Security-Policy"].split(";"))
    assert (
        policy["default-src"] == "'none'"
        and policy["style-src"] == "'self'"
        # one script, by its hash
        and re.fullmatch(r"'sha256-[^']+='", policy["script-src"])
    )
    assert (
        headers["X-Content-Type-Options"] == "nosniff"
        and "Access-Control-Allow-Origin" not in headers
    )
    for path in (
        "/nope",
        "/pair",
        "/pair/0123",
        "/pairs/x",
        "/prompt/..%2f..%2fetc",
        "/pair/%3Cscript%3E",
        "/report.html",
        "/../manifest.json",
    ):
        reply = viewer.get(path)
        assert reply.status == 404 and not Seen(reply.text).open, path
    for query in ("sort=nope", "flag=nope", "adds=nope", "low=x", "low=nan", "q=" + "x" * 201):
        reply = viewer.get(f"/pairs?{query}")
        assert reply.status == 400 and reply.text.count('class="problem"') == 1, query
        assert "\n" not in viewer.get(f"/pairs.json?{query}").tree["error"]


def test_only_who_has_the_address(viewer: Viewer) -> None:
    nobody = {"Cookie": "mora-view-1=x; broken=="}
    for path in ("/", "/pairs", "/pairs.json", "/?token=nope", "/pairs.json?token="):
        reply = viewer.get(path, **nobody)
        assert reply.status == 403 and "How do I" not in reply.text, path
    assert viewer.get("/style.css", **nobody).status == 200
    token = viewer.server.token
    assert viewer.get(f"/pairs.json?token={token}", **nobody).tree["total"] == 12
    for path in ("/", "//example.com/x", "/pairs"):
        with socket.create_connection(viewer.server.server_address, 30) as client:
            asked = f"GET {path}?sort=-score&token={token} HTTP/1.0\r\nHost: localhost\r\n\r\n"
            client.sendall(asked.encode())
            answer = client.makefile("rb").read().decode()
        location = re.findall(r"^Location: (.*?)\r$", answer, re.M)
        assert " 302 " in answer.split("\r\n")[0] and token not in location[0], answer
        assert location[0].startswith("/") and not location[0].startswith("//")
        assert f"{viewer.server.cookie}={token}; Path=/; HttpOnly; SameSite=Strict" in answer


def test_what_a_client_does_is_no_traceback(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with viewing(run, "ada") as v:
        asked = [
            b"GET http://[::1 HTTP/1.1",
            b"GET /%00%ff?\xff HTTP/1.1",
            b"\xff",
            b"GET / HTTP/9.9",
        ]
        for line in asked:
            with socket.create_connection(v.server.server_address, 30) as client:
                client.sendall(line + b"\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                assert b" 200 " not in client.makefile("rb").readline()
        fields = {f"x{i}": "y" for i in range(11)}
        assert v.post("/review", fields).status == 400
        for end in (
            b"GET /pairs HTTP/1.1\r\n",
            b"POST /review HTTP/1.1\r\nContent-Length: 9\r\n\r\nx",
        ):
            client = socket.create_connection(v.server.server_address, 30)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.sendall(end)
            client.close()  # with a reset
        idle = [socket.create_connection(v.server.server_address, 30) for _ in range(100)]
        assert v.get("/").status == 200
        threads = list(v.server._open)
        assert len(threads) >= len(idle)
    assert not any(thread.is_alive() for thread in threads)
    for client in idle:
        client.close()
    assert capfd.readouterr().err == ""


def test_filters_agree_with_the_rows(folder: Path) -> None:
    rows = [
        {**r, "split": s}
        for s in ("test", "train")
        for r in pq.read_table(folder / f"preference/{s}-00000-of-00001.parquet").to_pylist()
    ]
    held = PairSearch(open_folder(folder))

    def found(**query: str) -> set[str]:
        q = parse_query(query, held.index)
        return {held.index.ids[i] for i in held.page(q, 1000).rows}

    def wanted(test: Any) -> set[str]:
        return {r["pair_id"] for r in rows if test(r)}

    assert found() == wanted(lambda r: True) and held.index.n == 130
    assert (
        found(kind="flat", arm="fused")
        == wanted(lambda r: r["kind"] == "flat" and r["arm"] == "fused")
        != set()
    )
    assert (
        found(split="test") == wanted(lambda r: r["split"] == "test")
        and found(kind="nope") == set()
    )
    assert found(adds="harmless") == wanted(lambda r: True) and found(adds="truthful") == set()
    assert found(flag="unconfirmed") == {rows[3]["pair_id"]}
    assert found(flag="small") == wanted(lambda r: r["margin_total"] < 0.25)
    assert found(flag="lost") == wanted(
        lambda r: any(r[f"margin_{d}"] > 0 and r[f"margin_confirmed_{d}"] == 0 for d in DIMS)
    )
    assert found(sort="margin_helpful", low="0.25", high="0.5") == wanted(
        lambda r: 0.25 <= r["margin_helpful"] <= 0.5
    )
    assert (
        found(q="number 12 THINGS") == wanted(lambda r: " 12 things" in r["prompt"][0]["content"])
        and len(found(q="number 12 things")) == 1
    )
    assert (
        found(q="slowly.", whole="1") == wanted(lambda r: True)
        and found(q="nothing holds this", whole="1") == set()
    )
    q = parse_query({"kind": "flat"}, held.index)
    facets = held.facets(q)
    assert facets["kind"] == {k: sum(r["kind"] == k for r in rows) for k in ("flat", "conflict")}
    assert facets["arm"]["fused"] == len(found(kind="flat", arm="fused")) and sum(
        facets["split"].values()
    ) == len(found(kind="flat"))
    assert sum(n for *_, n in held.histogram(q)) == len(found(kind="flat"))


@pytest.mark.parametrize(
    "sort", ["-margin_total", "margin_helpful", "margin_confirmed_harmless", "-length_ratio"]
)
def test_pages_go_through_every_pair_once_in_order(folder: Path, sort: str) -> None:
    held = PairSearch(open_folder(folder))
    q, seen, starts = parse_query({"sort": sort}, held.index), [], []
    while True:
        page = held.page(q, 30)
        starts.append(page.first)
        seen += page.rows
        if page.after is None:
            break
        q = parse_query({**q.params(), "after": page.after}, held.index)
    assert sorted(seen) == list(range(130)) and starts == [0, 30, 60, 90, 120]
    values = [v for v in held.index.numbers[sort.removeprefix("-")][seen].tolist() if v == v]
    assert values == sorted(values, reverse=sort.startswith("-"))
    back = held.page(
        parse_query({"sort": sort, "before": held.index.ids[seen[60]]}, held.index), 30
    )
    assert (
        back.rows == seen[30:60]
        and held.page(parse_query({"sort": sort, "after": "gone"}, held.index), 30).first == 0
    )
    kept = parse_query({"sort": sort, "kind": "flat"}, held.index)
    flat = held.page(kept, 1000).rows
    other = next(i for i in seen if i not in flat and seen.index(i) > 40)
    after = held.page(
        parse_query({**kept.params(), "after": held.index.ids[other]}, held.index), 1000
    ).rows
    assert after == [i for i in flat if seen.index(i) > seen.index(other)]


def test_a_change_of_filter_begins_at_the_first_page() -> None:
    q = PairQuery(kind="flat", after="x", low=0.5)
    assert q.params(arm="fused") == {"kind": "flat", "arm": "fused", "low": "0.5"}
    assert (
        q.params(sort="margin_helpful") == {"kind": "flat", "sort": "margin_helpful"}
        and q.params(q="a&b", kind=None)["q"] == "a&b"
    )


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    long = "x" * 1_000_000
    rows = [
        one(0, question=HOSTILE, answers=(HOSTILE + " a", HOSTILE + " b", HOSTILE, "")),
        one(1, question="How do I fold it?", answers=(long, HOSTILE, "c", "")),
    ]
    path = write(tmp_path / "set", rows) and tmp_path / "set"
    _break_utf8(path)
    with viewing(path) as v:
        cards = v.get("/pairs.json?texts=1").tree["pairs"]
        assert len(cards) == 2
        for c in cards:
            full_row = v.get(f"/pair/{c['pair_id']}.json").tree["pair"]
            assert c["prompt"].startswith(("How", HOSTILE[:40]))  # the values are the same
            for page in (
                "/pairs?texts=1&q=" + "%3Cscript%3E",
                f"/pair/{c['pair_id']}?texts=1",
                f"/prompt/{full_row['prompt_id']}?texts=1",
            ):
                v.page(page)
                said = v.get(page).text
                assert said.count("<script") == 1  # our own
                assert not set("\u202e\u200b\x07\U000e0041\u206a") & set(said)
                assert len(said) < 200_000, page
                told = v.get(f"{page}&format=json")
                assert not set("\u202e\u200b\x07\U000e0041\u206a\x7f") & set(told.text)
        assert "⟦U+202E⟧" in said or any(
            "⟦U+202E⟧" in v.get(f"/pair/{c['pair_id']}?texts=1").text for c in cards
        )
        whole = [v.get(f"/pair/{c['pair_id']}?full=1&texts=1").text for c in cards]
        assert any(long in w for w in whole)
        v.page(
            "/pairs?kind=%3Cscript%3Ealert(1)%3C/script%3E&q=%22%3E%3Cimg+src%3Dx+onerror%3D1%3E&category=%E2%80%AE"
        )
        v.page("/drops?stage=%3Cb%3E&reason=%22onload%3D1")


def test_a_template_prints_every_value_as_text() -> None:
    env = environment()
    shown = env.from_string("<p title='{{ x }}'>{{ x }} {{ x|line(9) }} {{ made }} {{ n }}</p>")
    text = shown.render(x="<b>'\"\u202e\x07\r\n&", made=Markup("<i>"), n=1.5)
    hidden = "&lt;b&gt;&#x27;&quot;⟦U+202E⟧⟦U+0007⟧\n&amp;"
    assert text == (
        f"<p title='{hidden}'>{hidden} &lt;b&gt;&#x27;&quot;⟦U+202E⟧⟦U+0007⟧ &amp; <i> 1.5</p>"
    )
    assert escape("a\u202e<\x1b\U000e0041") == "a⟦U+202E⟧&lt;⟦U+001B⟧⟦U+E0041⟧"
    drawn = panel("\u202e", "\x07", Frame((0, 1), (0, 1)), [dot(1, 1, "m", tip="\u202e")])
    assert not set("\u202e\x07") & set(drawn)
    assert env.from_string("{% if missing is defined %}x{% endif %}").render() == ""
    with pytest.raises(UndefinedError):
        env.from_string("{{ missing }}").render()


def _break_utf8(folder: Path) -> None:
    """Bytes that are no UTF-8 at the end of a chosen answer, in the raw column; readers must not
    fail on them."""
    for path in (folder / "preference").glob("*.parquet"):
        table = pq.read_table(path)
        at = table.schema.get_field_index("chosen")
        raw = [
            [(m["role"].encode(), m["content"].encode() + b" \xff\xfe\xc3") for m in turn]
            for turn in table.column(at).to_pylist()
        ]
        pieces = pa.array(
            [[{"role": r, "content": c} for r, c in turn] for turn in raw],
            pa.list_(pa.struct([("role", pa.binary()), ("content", pa.binary())])),
        )
        flat = pieces.values
        texts = pa.StructArray.from_arrays(
            [flat.field(k).view(pa.string()) for k in range(2)], ["role", "content"]
        )
        table = table.set_column(
            at, table.schema.field(at), pa.ListArray.from_arrays(pieces.offsets, texts)
        )
        pq.write_table(table, path)


def test_a_prompt_shows_what_became_of_it(viewer: Viewer, run: Path) -> None:
    prompt_id = prompt_of(run)
    tree = viewer.get(f"/prompt/{prompt_id}.json").tree["lineage"]
    raw = [
        r
        for r in pq.read_table(run / "parts/00000/rollouts.parquet").to_pylist()
        if r["prompt_id"] == prompt_id
    ]
    arms = {arm["name"]: arm for arm in tree["arms"]}
    assert set(arms) == {"identity", "fused"} and all(len(a["answers"]) == 8 for a in arms.values())
    for r in raw:
        answer = arms[r["arm"]]["answers"][r["index"]]
        assert answer["text"] == r["text"] and answer["rewards"] == {
            d: r[f"reward_{d}"] for d in DIMS
        }
    (taken,) = [t for t in tree["tries"] if t["accepted"]]
    assert taken["checks"][0]["name"] == "subject"
    seen = viewer.page(f"/prompt/{prompt_id}?x=helpful&y=harmless")
    points = [
        link for link in seen.links if link.startswith("#identity-") or link.startswith("#fused-")
    ]
    assert len(points) == 16 and {p[1:] for p in points} <= set(seen.ids)
    # one answer an arm has no truthful score
    without = viewer.page(f"/prompt/{prompt_id}?x=helpful&y=truthful")
    assert sum(link.startswith(("#identity-", "#fused-")) for link in without.links) == 14


def test_the_picture_keeps_every_answer_apart() -> None:
    def answer(i: int, x: float, y: float, *flags: str) -> ScoredAnswer:
        return ScoredAnswer(i, {"helpful": x, "harmless": y}, flags)

    answers = [
        *(answer(i, 0.5, 0.5) for i in range(9)),
        answer(9, 1.0, 0.25),
        answer(10, 0.25, 1.0),
        answer(11, 1.0, 1.0, "truncated"),
    ]
    svg = reward_space(
        "after",
        answers,
        ("helpful", "harmless"),
        {"helpful": 0.75, "harmless": 0.75},
        [(9, 0)],
        "#fused-",
    )

    places = [
        (float(x), float(y))
        for x, y in re.findall(r'class="dot [a-z]+" cx="([\d.]+)" cy="([\d.]+)"', svg)
    ]
    assert (
        len(places) == 12
        and min(
            np.hypot(a[0] - b[0], a[1] - b[1]) for i, a in enumerate(places) for b in places[:i]
        )
        > 6
    )
    assert (
        svg.count("ring") == 2
        and 'class="dot unusable"' in svg
        and "answer 9, chosen: helpful 1.00, harmless 0.25" in svg
    )
    stairs = re.search(r'class="stairs" points="([^"]+)"', svg)
    assert (
        stairs is not None and len(stairs[1].split()) == 7
    )  # down from (1, .25), over (.5, .5) to (.25, 1); the truncated one is not on it
    assert 'class="good"' in svg and "1 at or above both floors" in svg


def test_added_words_are_marked() -> None:
    assert word_diff("How do I fold a map?", "How do I fold a map? And is it <b>safe</b>?") == [
        ("How do I fold a map? ", False),
        ("And is it <b>safe</b>?", True),
    ]
    assert word_diff("one two three", "entirely other words here") == [
        ("entirely other words here", False)
    ]


def test_the_words_of_long_texts_are_compared_in_bounded_time() -> None:
    start = time.process_time()
    for text in ("a " * 8000, "a b " * 4000, "".join(f"w{i} " for i in range(3000))):
        assert "".join(t for t, _ in word_diff(text, "new " + text)) == ("new " + text)[:20_000]
    assert time.process_time() - start < 2


def test_a_dataset_alone(folder: Path, tmp_path: Path) -> None:
    with viewing(folder) as v:
        row = v.get("/pairs.json").tree["pairs"][0]
        assert v.get("/index.json").tree["kind"] == "dataset"
        tree = v.get(f"/pair/{row['pair_id']}.json").tree
        assert (
            len(tree["lineage"]["arms"][0]["answers"]) == 4
            and "Only the dataset" in tree["lineage"]["note"]
        )
        for path in (
            "/",
            "/drops",
            "/requests",
            f"/pair/{row['pair_id']}",
            f"/prompt/{tree['pair']['prompt_id']}",
        ):
            v.page(path)
    alone = tmp_path / "alone"
    shutil.copytree(folder / "preference", alone / "preference")
    with viewing(alone) as v:  # without scores of the other answers
        assert "Neither a run folder nor a scored config" in v.get(f"/pair/{row['pair_id']}").text
        assert v.get(f"/prompt/{tree['pair']['prompt_id']}").status == 404 and v.page("/")
        # no floor is known: no answer is known to be harmless
        assert all(
            c["unsafe"] == ["chosen", "rejected"] for c in v.get("/pairs.json").tree["pairs"]
        )
        assert v.get(f"/pair/{row['pair_id']}").text.count("<summary>Show the answer") == 2


def test_a_dataset_without_scores(tmp_path: Path) -> None:
    path = dataset(tmp_path / "set", 12)
    for f in (path / "preference").glob("*.parquet"):
        table = pq.read_table(f)
        for i, name in enumerate(table.schema.names):
            if name == "score" or name.startswith(
                ("margin_", "chosen_reward_", "rejected_reward_")
            ):
                field = table.schema.field(i)
                table = table.set_column(i, field, pa.nulls(len(table), field.type))
        pq.write_table(table, f)
    shutil.rmtree(path / "scored")
    with viewing(path) as v:
        pair = v.get("/pairs.json").tree["pairs"][0]["pair_id"]
        for page in (
            "/",
            "/pairs",
            "/pairs?sort=margin_helpful&low=0",
            "/pairs?flag=small",
            f"/pair/{pair}",
            "/drops",
        ):
            v.page(page)
        assert (
            "not measured" in v.get(f"/pair/{pair}").text
            and v.get("/pairs.json").tree["total"] == 12
        )


def test_runs_that_are_not_done(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "manifest.json").write_text('{"identity": {"dataset": "x"}, "status": "started"}')
    with viewing(empty) as v:
        assert "No pairs are written yet" in v.get("/").text and "not finished" in v.get("/").text
        for path in ("/", "/pairs", "/drops", "/requests"):
            v.page(path)
        assert (
            v.get("/pairs.json").tree["total"] == 0
            and v.get("/prompt/0123456789abcdef").status == 404
        )
    half = make_run(tmp_path / "half", {"identity": 0.2, "fused": 0.6}, 12, seal=False, pairs=0)
    with viewing(half) as v:
        tree = v.get("/index.json").tree
        assert (tree["live"]["prompts_sealed"], tree["live"]["prompts"]) == (6, 12)
        # those of the partition that is finished
        assert len(tree["prompts"]) == 6 and tree["prompts"][0]["outcome"] == "accepted"
        v.page(f"/prompt/{tree['prompts'][0]['prompt_id']}")
        assert "is not finished" in v.get(f"/prompt/{prompt_of(half, 1)}").text
        assert "Refresh" not in v.get("/").headers


def test_a_running_build_is_followed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {"fused": 0.6}, 12, seal=False, pairs=0)
    manifest = orjson.loads((run / "manifest.json").read_bytes())
    (run / "manifest.json").write_bytes(orjson.dumps({**manifest, "status": "started"}))
    log = run / "parts/00001/answers.log"
    (run / "spending.json").write_text('{"models": {"m": [1000, 120, 0]}}')
    log.write_bytes(b"a\nb\nhalf")
    for file in (log, run / "spending.json", run / "mine.json"):
        os.utime(file, (10, 10))
    assert not look_at(open_folder(run))["running"]
    lock = os.open(run / ".lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = look_at(open_folder(run))  # a slow answer is under way: only the lock tells
        assert second["running"] and second["now"] is None
        assert second["tokens"] == {"in": 1000, "out": 120}
        slots = [
            {"size": 64, "open": 60, "busy": 58, "waiting": 12},
            {"size": 8, "open": 8, "busy": 1, "waiting": 0},
        ]
        said = {
            "step": "prompts",
            "done": 4,
            "total": 12,
            "requests": 99,
            "retries": 2,
            "failed": 1,
            "tokens_per_s": 812.0,
            "slots": slots,
        }
        (run / "live.json").write_bytes(orjson.dumps({**said, "at": time.time()}))
        with viewing(run) as v:
            assert v.get("/").headers["Refresh"] == "3" and "is running" in v.get("/").text
            assert (
                "Refresh" not in v.get("/?still=1").headers
                and "stands still" in v.get("/?still=1").text
            )
            assert "59 of 72 (4 shut by refusals), 12 waiting" in v.get("/").text
            assert "812 tokens/s" in v.get("/").text
            # left by a build that was killed
            (run / "live.json").write_bytes(orjson.dumps({**said, "at": time.time() - 60}))
            assert v.get("/index.json").tree["live"]["now"] is None
    finally:
        os.close(lock)


def test_files_that_change_underfoot(tmp_path: Path) -> None:
    path = dataset(tmp_path / "set", 40)
    with viewing(path) as v:
        first = v.get("/pairs.json").tree
        gone = first["pairs"][0]["pair_id"]
        held = v.server.state.pairs()
        for f in (path / "preference").glob("train-*.parquet"):
            f.unlink()
        with pytest.raises(RunFolderError, match="load the page again"):
            read_pair(held.index, held.index.n - 1)
        with pytest.raises(RunFolderError, match="load the page again"):
            held.page(PairQuery(q="x", whole=True))
        assert v.get("/pairs.json").tree["n"] == 10
        test = next((path / "preference").glob("test-*.parquet"))
        pq.write_table(pq.read_table(test).slice(1), test)
        assert v.get("/pairs.json").tree["n"] == 9
        with pytest.raises(RunFolderError, match="has changed"):
            read_pair(held.index, 0)
        test.write_bytes(b"PAR1 and no more")
        reply = v.get("/pairs")
        assert (
            reply.status == 503
            and "can't be read" in reply.text.replace("&#x27;", "'")
            and not Seen(reply.text).open
        )
        shutil.rmtree(path)
        assert (
            v.get("/").status == 503 and v.get(f"/pair/{gone}.json").tree["error"].count("\n") == 0
        )


def test_what_it_cannot_show_is_one_line(
    tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other").mkdir()
    old = tmp_path / "old"
    shutil.copytree(run, old)
    (old / "manifest.json").write_text('{"identity": {}, "settings": {"dims": 3}}')
    narrow = dataset(tmp_path / "narrow", 8)
    for f in (narrow / "preference").glob("*.parquet"):
        pq.write_table(pq.read_table(f).drop_columns(["margin_total"]), f)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for argv, said in (
            ([str(tmp_path / "nope")], "does not exist"),
            ([str(tmp_path / "other")], "neither a run nor a dataset folder"),
            ([str(old)], "another version of mora-data"),
            ([str(narrow)], "column margin_total is missing"),
            ([str(run), "--port", port], f"port {port} of 127.0.0.1 is in use"),
            ([str(run), "--port", "99999"], "--port"),
        ):
            assert main(["view", "--no-open", *argv]) == 1
            err = capsys.readouterr().err
            assert err.count("\n") == 1 and err.startswith("mora-data: ") and said in err, err


def test_two_viewers_of_one_folder(run: Path) -> None:
    first = server_of(run, None)
    try:
        second = server_of(run, None)  # 7470 is taken: a free one
        assert first.server_address[1] != second.server_address[1]
        second.server_close()
    finally:
        first.server_close()


def test_an_index_without_pairs(tmp_path: Path) -> None:
    (tmp_path / "preference").mkdir()
    index = index_pairs(open_folder(tmp_path))
    assert index.n == 0 and index.of_prompt("x") == []
    with viewing(tmp_path) as v:
        v.page("/")
        v.page("/pairs?kind=flat&flag=lost")


def test_errors_are_counted_by_cause(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {"fused": 0.6}, 12, pairs=0)
    rows = [
        {
            "prompt_id": prompt_of(run),
            "stage": "score",
            "arm": "fused",
            "index": i,
            "error": "no <verdict>",
        }
        for i in range(3)
    ]
    (run / "parts/00000/errors.jsonl").write_bytes(
        b"".join(orjson.dumps(r) + b"\n" for r in rows) + b"torn\n"
    )
    with viewing(run) as v:
        causes = v.get("/requests.json").tree["causes"]
        assert (
            causes[0] == {"stage": "score", "cause": "no <verdict>", "rows": 3}
            and causes[1]["cause"] == "unreadable line"
        )
        v.page("/requests")


@pytest.mark.parametrize("ended_by", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_ended(
    run: Path, tmp_path: Path, ended_by: signal.Signals
) -> None:
    def in_a_script() -> None:  # whose shell has its background jobs ignore ctrl-c
        if ended_by == signal.SIGTERM:
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    process = start(["view", str(run.resolve()), "--no-open", "--port", "0"], tmp_path, in_a_script)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        with urllib.request.urlopen(url.replace("/?", "/pairs.json?"), timeout=600) as reply:
            assert orjson.loads(reply.read())["total"] == 12
    finally:
        process.send_signal(ended_by)
        err = process.communicate(timeout=600)[1]
    assert (
        process.returncode == 0 and url.startswith("http://127.0.0.1:") and "Traceback" not in err
    ), err
