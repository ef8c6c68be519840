"""A viewer on a port of its own for tests, and a reader of its pages that sees what a browser would
take for markup."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from support.run_folder import DIMS
from support.scored import many, write

from mora_data.viewer.server import ViewerServer, server_of

TAGS = frozenset(
    "html head meta title link body a nav ul li main h1 h2 h3 h4 p div span section article aside"
    " dl dt dd table thead tbody tr th td details summary form label input select option button"
    " footer b ins strong figure figcaption svg desc text line rect circle path polyline polygon script".split()  # noqa: E501
)
HOSTILE = (
    "<script>window.hacked=1</script><img src=x onerror=window.hacked=1><svg"
    " onload=window.hacked=1>\"'><a"
    " href=javascript:window.hacked=1></textarea></title></style><meta http-equiv=refresh"
    " content=0;url=http://example.invalid><iframe src=//example.invalid></iframe>\u202eright to"
    " left\u202c zero\u200bwidth \u2066isolate\u2069 \x07bell \ufeff"
    " tag\U000e0041 \u206a &lt;b&gt; <!-- ]]> {{7*7}}"
)


class Reply(NamedTuple):
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def tree(self) -> Any:
        return json.loads(self.body)


class Seen(HTMLParser):
    """The tags, attributes, links and ids of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [v or "" for name, v in attrs if name in ("href", "src", "action")]
        self.ids += [v or "" for name, v in attrs if name == "id"]
        if tag not in ("meta", "link", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, (
            f"</{tag}> closes <{self.open[-1] if self.open else ''}>"
        )
        self.open.pop()


class Viewer:
    """A running viewer."""

    def __init__(self, server: ViewerServer) -> None:
        self.server = server
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        self.cookie = {"Cookie": f"{server.cookie}={server.token}"}

    def get(self, path: str, method: str = "GET", **headers: str) -> Reply:
        """A request; errors are replies, too."""
        request = urllib.request.Request(
            self.url + path,
            method=method,
            headers=self.cookie | headers,
            data=b"" if method == "POST" else None,
        )
        try:
            with urllib.request.urlopen(request, timeout=600) as reply:
                return Reply(reply.status, dict(reply.headers), reply.read())
        except urllib.error.HTTPError as e:
            with e:
                return Reply(e.code, dict(e.headers), e.read())

    def post(self, path: str, fields: dict[str, str], **headers: str) -> Reply:
        """A form sent as a browser would, not followed."""
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.server.server_address[1], timeout=600
        )
        kind = {"Content-Type": "application/x-www-form-urlencoded", "Origin": self.url}
        try:
            connection.request(
                "POST", path, urllib.parse.urlencode(fields), self.cookie | kind | headers
            )
            reply = connection.getresponse()
            return Reply(reply.status, dict(reply.headers), reply.read())
        finally:
            connection.close()

    def page(self, path: str) -> Seen:
        """A page that must be there, whole and harmless."""
        reply = self.get(path)
        assert reply.status == 200, reply.text[-400:]
        seen = Seen(reply.text)
        assert not seen.open and seen.tags <= TAGS, (seen.open, seen.tags - TAGS)
        assert not {a for a in seen.attributes if a.startswith("on") or a == "style"}
        assert len(seen.ids) == len(set(seen.ids))
        assert all(
            link.startswith(("/", "#", "?")) and not link.startswith("//") for link in seen.links
        ), seen.links
        return seen


@contextlib.contextmanager
def viewing(path: Path, reviewer: str | None = None) -> Iterator[Viewer]:
    """The viewer of a folder while the block lasts."""
    server = server_of(path, 0, reviewer)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield Viewer(server)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def dataset(path: Path, n: int = 130, seed: int = 0) -> Path:
    """A dataset folder of n pairs with drawn margins, kinds, arms; the first quarter is the test
    split."""
    write(path, list(many(n)))
    rng = np.random.default_rng(seed)
    table = pa.concat_tables(
        [pq.read_table(f) for f in sorted((path / "preference").glob("*.parquet"))]
    )
    for f in (path / "preference").glob("*.parquet"):
        f.unlink()
    values: dict[str, list[Any]] = {
        f"margin_{d}": rng.choice([0.0, 0.25, 0.5, 0.75], n).tolist() for d in DIMS
    }
    values |= {f"margin_confirmed_{d}": rng.choice([0.0, 0.25, 0.5], n).tolist() for d in DIMS}
    values["margin_confirmed_harmless"][3] = None
    values["margin_total"] = np.sum([values[f"margin_{d}"] for d in DIMS], axis=0).tolist()
    values |= {
        "kind": rng.choice(["flat", "conflict"], n).tolist(),
        "arm": rng.choice(["fused", "single"], n).tolist(),
    }
    for name, column in values.items():
        at = table.schema.get_field_index(name)
        table = table.set_column(
            at, table.schema.field(at), pa.array(column, table.schema.field(at).type)
        )
    for split, rows in (("test", table.slice(0, n // 4)), ("train", table.slice(n // 4))):
        pq.write_table(rows, path / f"preference/{split}-00000-of-00001.parquet", row_group_size=40)
    return path


def prompt_of(run: Path, part: int = 0) -> str:
    """Id of a partition's first prompt."""
    return str(
        orjson.loads((run / f"parts/{part:05d}/prompts.jsonl").read_bytes().splitlines()[0])[
            "prompt_id"
        ]
    )
