"""What is read by a build, asked of the viewer or set by its user, made odd at random: each command
ends with one line, each request with a page.

    pytest tests/integration/test_fuzz.py    a few of each kind
    make fuzz                                as many as MORA_FUZZ_S seconds give

Replies of servers are in unit/test_fuzz_replies.py, files of run folders in test_damage.py.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import json
import random
import re
import resource
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
import yaml
from support import damage
from support.fuzzing import FUZZ_SEED, Fuzzing
from support.run_folder import make_run
from support.viewing import Viewer, prompt_of, viewing
from unit.test_fuzz_replies import text, tree

from mora_data import resources
from mora_data.settings import load_settings, to_yaml

SEEDS = range(FUZZ_SEED * 1000, FUZZ_SEED * 1000 + 30)
ODD: tuple[Any, ...] = (
    *(None, True, "", " ", "x", "é\u202e\x1b[2J", "a" * 70_000, "~", "../../x", "/dev/zero"),
    *(0, -1, 1, 3, 10**9, 10**400, 0.5, -0.5, 1e308, float("nan"), float("inf"), "1e999", "0x10"),
    *([], [None], [[[]]], ["a", "a"], [-1, 0], {}, {"": ""}, {"a": {"b": [1]}}, {1: 2}),
    *("2024-13-45", "{{ x }}", "<|im_end|>", "\ud800", "http://[::1", "http://me:p@h/v1", "a:b"),
)


BOMBS = (  # YAML that is endless, or as good as that
    b"\nx: &a [*a]\n",
    b"\nx0: &x0 [1]\n"
    + b"".join(b"x%d: &x%d [%s]\n" % (i, i, b"*x%d," % (i - 1) * 9) for i in range(1, 12)),
    b"\nx: " + b"{a: " * 20_000,
)  # fmt: skip


def check(done: damage.Outcome) -> None:
    """It went well, or said one line."""
    lines = [line for line in done.said.splitlines() if re.match(r"mora-data( \w+)*: ", line)]
    assert done.code is not None and "Traceback" not in done.said, done.said[-1500:]
    assert done.code == 0 or len(lines) == 1, done
    assert not set("\x1b\x07\u202e") & set(done.said + done.gave), done


@pytest.fixture(autouse=True)
def some_memory() -> Iterator[None]:
    """What asks for more than that would have asked for all."""
    was = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (12 << 30, was[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, was)


# settings


def places(tree: object, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of the values in a tree of settings, and of some groups of them."""
    if not isinstance(tree, dict) or not tree:
        return [at]
    return [at][: len(at) % 2] + [
        p for key, value in tree.items() for p in places(value, (*at, key))
    ]


@functools.cache
def known_settings() -> list[str]:
    """Every builder with each of its settings, as YAML."""
    return [to_yaml(load_settings(name)) for name in resources.names("builders", "*.yaml")]


def odd_value(rng: random.Random, now: object) -> object:
    """In place of a setting's value; of its type as a rule."""
    if rng.random() < 0.2:
        return tree(rng, 2)
    if isinstance(now, list) and rng.random() < 0.5:
        return [rng.choice(ODD), *now]
    alike = [v for v in ODD if type(v) is type(now)]
    return rng.choice(alike if alike and rng.random() < 0.7 else ODD)


def odd_settings(rng: random.Random, folder: Path) -> list[str]:
    """Arguments: a builder's file with some of its values, keys or bytes changed, and --set."""
    settings = yaml.load(rng.choice(known_settings()), yaml.CSafeLoader)
    paths = places(settings)
    for place in rng.sample(paths, rng.choice((0, 1, 1, 1, 2))):
        inside = settings
        for key in place[:-1]:
            inside = inside.get(key, {}) if isinstance(inside, dict) else {}
        if isinstance(inside, dict):
            key = place[-1] if rng.random() < 0.95 else text(rng)[:30]
            inside[key] = odd_value(rng, inside.get(key))
    raw = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).encode("utf-8", "replace")
    if rng.random() < 0.15:
        at = rng.randrange(len(raw))
        raw = raw[:at] + rng.choice((b"", b"\x00", b"\xff", b"\t", b"[", b"!!x "))
        raw += raw[at + rng.randrange(4) :] if rng.random() < 0.8 else b""
    if rng.random() < 0.05:
        raw += rng.choice(BOMBS)
    path = folder / "odd.yaml"
    path.write_bytes(raw)
    argv = ["build", "--source", str(path), "--sample", "--dry-run", "--limit", "2"]
    argv += ["--out", str(folder / "run")]
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        key = ".".join(map(str, rng.choice(paths))) if rng.random() < 0.9 else text(rng)[:40]
        value = rng.choice(ODD)
        said = value if isinstance(value, str) else json.dumps(value)
        argv += ["--set", f"{key}={said}".encode("utf-8", "replace").decode().replace("\x00", "0")]
    return argv


def a_setting(seed: int, folder: Path) -> int:
    check(damage.run(odd_settings(random.Random(seed), folder)))
    return 1


def test_odd_settings_are_one_line(tmp_path: Path) -> None:
    for seed in SEEDS:
        a_setting(seed, tmp_path)


@pytest.mark.fuzz
def test_odd_settings_for_minutes(fuzzing: Fuzzing, tmp_path: Path) -> None:
    fuzzing("settings", lambda seed: a_setting(seed, tmp_path))


# files of a source


def odd_row(rng: random.Random) -> Any:
    said = [{"role": rng.choice(("user", "assistant", "", 3)), "content": text(rng)}]
    value = rng.choice((text(rng), said * rng.randrange(4), tree(rng, 2), rng.choice(ODD)))
    return {rng.choice(("prompt", "messages", "conversations", "chosen", "", "id")): value}


def odd_file(rng: random.Random, folder: Path) -> Path:
    """A file of rows of which some are odd, and some of its bytes."""
    kind = rng.choice(".jsonl .json .csv .parquet .arrow .zip .tar .jsonl.gz .txt".split())
    path = folder / f"rows{kind}"
    rows = [{"prompt": f"How do I mend clock number {i}?"} for i in range(3)]
    rows += [odd_row(rng) for _ in range(rng.randrange(6))]
    rng.shuffle(rows)
    lines = [json.dumps(row).encode("utf-8", "surrogatepass") for row in rows]
    if kind in (".parquet", ".arrow"):
        said = [str(row.get("prompt", row)).encode("utf-8", "replace") for row in rows]
        table = pa.table({rng.choice(("prompt", "x")): pa.array(said)})
        if kind == ".parquet":
            pq.write_table(table, path)
        else:
            feather.write_feather(table, str(path), "uncompressed")
        raw = path.read_bytes()
    elif kind in (".zip", ".tar"):
        (folder / "a.jsonl").write_bytes(b"\n".join(lines))
        raw = Path(
            shutil.make_archive(str(folder / "rows"), kind[1:], folder, "a.jsonl")
        ).read_bytes()
        (folder / "a.jsonl").unlink()
    elif kind == ".csv":
        raw = b"prompt,id\n" + b"\n".join(b'"' + line[:90] + b'",1' for line in lines)
    else:
        raw = b"[" + b",".join(lines) + b"]" if kind == ".json" else b"\n".join(lines)
    if rng.random() < 0.5:
        at = rng.randrange(len(raw))
        put = rng.choice(
            (
                b"",
                b"\x00",
                b"\xff\xff\xff\x7f",
                b"\xff\xfe",
                b"\r",
                b'"',
                rng.randbytes(3),
                b"[" * 5000,
            )
        )
        raw = raw[:at] + put + (raw[at + rng.randrange(3) :] if rng.random() < 0.8 else b"")
    raw = gzip.compress(raw) if kind.endswith("gz") else raw
    if rng.random() < 0.2:
        raw = raw[: rng.randrange(len(raw) + 1)]
    path.write_bytes(raw)
    return path


def a_file(seed: int, folder: Path) -> int:
    path = odd_file(random.Random(seed), folder)
    argv = ["build", "--source", "jsonl", "--data", str(path), "--until", "mine", "--fresh"]
    check(damage.run([*argv, "--out", str(folder / "run")]))
    path.unlink()
    return 1


def test_odd_rows_are_dropped_or_one_line(tmp_path: Path) -> None:
    for seed in SEEDS:
        a_file(seed, tmp_path)


@pytest.mark.fuzz
def test_odd_rows_for_minutes(fuzzing: Fuzzing, tmp_path: Path) -> None:
    fuzzing("source files", lambda seed: a_file(seed, tmp_path))


# requests to the viewer


class Asked:
    """A request to the viewer, as bytes, and whether it may be answered with what the folder
    holds: it comes from this machine's own page, with the token of this start."""

    def __init__(self, rng: random.Random, viewer: Viewer, ids: list[str], vote_token: str) -> None:
        server = viewer.server
        port, token = server.server_address[1], server.token
        hosts = (
            f"127.0.0.1:{port}",
            "localhost",
            f"evil.example:{port}",
            f"127.0.0.1.nip.io:{port}",
        )
        hosts += ("", "[::1]", "127.0.0.1@evil.example", "localhost.", "2130706433", text(rng)[:30])
        host = rng.choice(hosts) if rng.random() < 0.5 else hosts[0]
        tokens = (token, token[:-1], token.upper(), "", "x" * 5000, text(rng)[:40])
        sent = rng.choice(tokens) if rng.random() < 0.5 else token
        self.own = host in hosts[:2] and sent == token
        method = rng.choice(
            ("GET", "GET", "GET", "HEAD", "POST", "PUT", "TRACE", "\x00", "g" * 300)
        )
        path, is_vote = self.path(rng, ids), rng.random() < 0.3
        if is_vote:
            method, path = "POST", "/review"
        query = [
            f"{rng.choice(PARAMETERS)}={rng.choice((text(rng)[:60], *ids[:3], *VALUES))}"
            for _ in range(0 if is_vote else rng.choice((0, 0, 1, 2, 60)))
        ]
        headers = [f"Host: {host}"] if rng.random() < 0.95 else []
        self.own = self.own and bool(headers)
        if is_vote or rng.random() < 0.5:
            headers.append(f"Cookie: {server.cookie}={sent}; a=b")
        else:
            query.append(f"token={sent}")
        origins = (f"http://{host}", "null", "http://evil.example", "http://127.0.0.1", "")
        self.votes = method == "POST" and path == "/review" and not query
        origin = rng.choice(origins) if rng.random() < 0.5 else origins[0]
        site = rng.choice(("same-origin", "cross-site", "same-site", "none", "x"))
        if self.votes or rng.random() < 0.2:
            headers += [f"Origin: {origin}", f"Sec-Fetch-Site: {site}"]
        given = rng.choice((vote_token, vote_token, "x", ""))
        form = f"token={given}&pair={rng.choice(ids)}&vote={rng.choice(('first', 'equal', 'x'))}"
        body = rng.choice((form, form, form + "&x=y" * rng.randrange(20), text(rng)))
        size = str(len(body.encode("latin-1", "replace")))
        sizes = (size, size, size, "-1", "9" * 5000, "1e3", "0", "99999999", "\xb2", "")
        headers.append(f"Content-Length: {rng.choice(sizes)}")
        headers += [rng.choice(MORE) for _ in range(rng.choice((0, 0, 0, 1, 2)))]
        rng.shuffle(headers)
        version = rng.choice((" HTTP/1.1",) * 9 + (" HTTP/1.0", " HTTP/9.9", " HTTP/x", ""))
        target = path + ("?" if query else "") + "&".join(query)
        lines = [f"{method} {target}{version}", *headers, "", body]
        self.raw = "\r\n".join(lines).encode("latin-1", "replace")
        if rng.random() < 0.15:
            self.raw = self.raw[: rng.randrange(len(self.raw))]
        self.votes = (
            self.votes and self.own and given == vote_token and origin == origins[0]
            and site in ("same-origin", "none")
        )  # fmt: skip

    @staticmethod
    def path(rng: random.Random, ids: list[str]) -> str:
        pages = "pairs pair prompts prompt drops requests review"
        name = rng.choice(("", *pages.split()))
        key = rng.choice((*ids, "..%2f..%2fetc%2fpasswd", "%00", "%ff", "%E2%80%AE", "x" * 300))
        plain = f"/{name}" if name not in ("pair", "prompt") else f"/{name}/{key}"
        odd = (
            "//evil.example",
            "http://[::1",
            "http://evil.example/pairs",
            "*",
            "/style.css",
            "/.",
        )
        odd += ("/" + "a/" * 3000, "/../manifest.json", f"/{name}/{key}/x", "/\xff", "?", "/pair/")
        path = rng.choice((plain, plain, plain, "/review", rng.choice(odd)))
        return path + ".json" if rng.random() < 0.2 else path


PARAMETERS = (
    "sort low high flag adds kind arm split category q whole after before texts full still stage"
    " reason x y last format token page n".split()
)
VALUES = ("1", "-1", "nan", "1e999", "margin_total", "-margin_helpful", "json", "flat", "%00", "%")
MORE = (
    "Transfer-Encoding: chunked", "Expect: 100-continue", "Upgrade: websocket", "x" * 70_000,
    "Host: evil.example", "Content-Length: 7", "no colon", " folded", "\x00: \x00",
    "Cookie: " + "a=b; " * 5000, "X: " + "y" * 60_000, "\r\n".join(["A: b"] * 150),
)  # fmt: skip


def reply_to(viewer: Viewer, raw: bytes) -> bytes:
    with socket.create_connection(viewer.server.server_address, 60) as client:
        got = b""
        with contextlib.suppress(OSError):  # it had read enough
            client.sendall(raw)
            client.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while part := client.recv(1 << 16):
                got += part
        return got


def some_pages(seed: int, viewer: Viewer, run: Path, capfd: pytest.CaptureFixture[str]) -> int:
    rng, n = random.Random(seed), 40
    session = viewer.server.state.session
    assert session is not None
    ids = [*viewer.server.state.pairs().index.ids[:3], prompt_of(run)]
    votes = run / "reviews.jsonl"
    for _ in range(n):
        asked = Asked(rng, viewer, ids, session.token)
        before = votes.stat().st_size if votes.exists() else 0
        got = reply_to(viewer, asked.raw)
        shown = asked.raw[:300]
        # a line that is none, or of HTTP/0.9, has no head in its reply
        status = got[9:12].decode() if got.startswith(b"HTTP/1.") else ""
        assert status in ("", *"100 200 302 303 400 403 404 405 408 414 431 501 505".split()), (
            shown,
            got,
        )
        assert b"Traceback" not in got
        if not asked.own:
            assert b"How do I" not in got and status not in ("302", "303"), (shown, got[:300])
        after = votes.stat().st_size if votes.exists() else 0
        assert after == before or asked.votes, shown
    assert viewer.get("/pairs.json").tree["total"] == 12
    assert capfd.readouterr().err == ""
    return n


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run", {"identity": 0.2, "fused": 0.6}, 12)


def test_odd_requests_get_a_page(
    shown: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(shown, tmp_path / "run"))
    with viewing(run, "ada") as viewer:
        for seed in SEEDS[:10]:
            some_pages(seed, viewer, run, capfd)


@pytest.mark.fuzz
def test_odd_requests_for_minutes(
    shown: Path, tmp_path: Path, fuzzing: Fuzzing, capfd: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(shown, tmp_path / "run"))
    with viewing(run, "ada") as viewer:
        fuzzing("pages", lambda seed: some_pages(seed, viewer, run, capfd))
