"""A loopback provider with the OpenAI Batch API beside its chat endpoint, and a stand-in for vLLM's
run-batch.

A batch ends after it was looked at `looks` times. `lines` decides what a line of it gets instead of
its answer, a function of (body, how often this body was asked); `fates` are the statuses that the
next batches end with ("expired", "failed", ...), and an expired one has answered only the first
half of its lines.

    with FakeProvider() as provider:
        provider.base_url, provider.batches, provider.asked
"""

from __future__ import annotations

import email.parser
import email.policy
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from .fake_openai import FakeOpenAI, Fault, Handler, Script


class FakeProvider(FakeOpenAI):
    """Files and batches in memory. `asked` are the bodies of all lines of all batches, in order."""

    def __init__(
        self,
        script: Script | None = None,
        lines: Script | None = None,
        looks: int = 2,
        fates: tuple[str, ...] = (),
        lose_created: int = 0,
        **more: Any,
    ) -> None:
        self.handler = _Handler
        super().__init__(script, **more)
        self.lines, self.looks, self.fates, self.lose_created = (
            lines,
            looks,
            list(fates),
            lose_created,
        )
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.asked: list[dict[str, Any]] = []
        self.looked: Counter[str] = Counter()
        self.keys: set[str] = set()
        self.has_batches = True
        self.unwell = 0  # replies of 500 still to come, to looks at a batch

    def add_file(self, content: bytes) -> dict[str, Any]:
        name = f"file-{len(self.files)}"
        self.files[name] = content
        return {
            "id": name,
            "object": "file",
            "bytes": len(content),
            "created_at": 0,
            "filename": "x",
            "purpose": "batch",
            "status": "processed",
        }

    def add_batch(self, body: dict[str, Any]) -> dict[str, Any]:
        n = len(self.files[body["input_file_id"]].splitlines())
        batch = {
            "id": f"batch_{len(self.batches)}",
            "object": "batch",
            "endpoint": body["endpoint"],
            "status": "validating",
            "input_file_id": body["input_file_id"],
            "completion_window": body["completion_window"],
            "created_at": 0,
            "request_counts": {"total": n, "completed": 0, "failed": 0},
        }
        self.batches[batch["id"]] = batch
        return batch

    def look(self, name: str) -> dict[str, Any]:
        batch = self.batches[name]
        self.looked[name] += 1
        if self.looked[name] < self.looks:
            batch["status"] = "in_progress"
        elif batch["status"] in ("validating", "in_progress"):
            self._end(batch, self.fates.pop(0) if self.fates else "completed")
        return batch

    def _end(self, batch: dict[str, Any], fate: str) -> None:
        batch["status"] = fate
        if fate == "failed":
            said = {"code": "token_limit_exceeded", "message": "too many tokens in the queue"}
            batch["errors"] = {"object": "list", "data": [said]}
            return
        requests = self.files[batch["input_file_id"]].splitlines()
        whole = len(requests) // 2 if fate in ("expired", "cancelled") else len(requests)
        good, bad = [], []
        for i, line in enumerate(requests):
            request = json.loads(line)
            assert (request["method"], request["url"]) == ("POST", "/v1/chat/completions")
            reply = (
                self._answered(request)
                if i < whole
                else {
                    "custom_id": request["custom_id"],
                    "response": None,
                    "error": {
                        "code": "batch_expired",
                        "message": "not done within the completion window",
                    },
                }
            )
            if reply is not None:
                (
                    good if reply["response"] and reply["response"]["status_code"] == 200 else bad
                ).append(reply)
        for name, replies in (("output_file_id", good), ("error_file_id", bad)):
            if replies:
                batch[name] = self.add_file(
                    b"".join(json.dumps(r).encode() + b"\n" for r in reversed(replies))
                )["id"]

    def _answered(self, request: dict[str, Any]) -> dict[str, Any] | None:
        body = request["body"]
        time = 1 + sum(b == body for b in self.asked)
        self.asked.append(body)
        fault = self.lines(body, time) if self.lines else None
        if fault is not None and fault.drop:
            return None
        fault = fault or Fault()
        said = {"error": {"message": f"told to say {fault.status}"}}
        if fault.body is not None:
            said = json.loads(fault.body)
        elif fault.status == 200:
            said = self.completion(body, fault)
        return {
            "id": "r",
            "custom_id": request["custom_id"],
            "error": None,
            "response": {"status_code": fault.status, "request_id": "x", "body": said},
        }


class _Handler(Handler):
    fake: FakeProvider

    def do_GET(self) -> None:
        if found := re.fullmatch(r"/v1/files/([\w-]+)/content", self.path):
            return self._send(200, self.fake.files[found[1]])
        if found := re.fullmatch(r"/v1/batches/(\w+)", self.path):
            if self.fake.unwell:
                self.fake.unwell -= 1
                return self._say({"error": {"message": "unwell"}}, 500)
            if found[1] not in self.fake.batches:
                return self._say({"error": {"message": "no such batch"}}, 404)
            with self.fake.changed:
                batch = self.fake.look(found[1])
                self.fake.changed.notify_all()
            return self._say(batch)
        if self.path.startswith("/v1/batches"):
            return self._say(
                {
                    "object": "list",
                    "data": list(reversed(self.fake.batches.values())),
                    "has_more": False,
                }
            )
        return super().do_GET()

    def do_POST(self) -> None:
        if self.path not in ("/v1/files", "/v1/batches"):
            return super().do_POST()
        raw = self.rfile.read(int(self.headers["content-length"]))
        if not self.fake.has_batches:
            return self._say({"error": {"message": "no such path"}}, 404)
        if self.fake.keys and self.headers["authorization"] not in {
            f"Bearer {k}" for k in self.fake.keys
        }:
            return self._say({"error": {"message": "bad key"}}, 401)
        if self.path == "/v1/files":
            return self._say(self.fake.add_file(_part(self.headers["content-type"], raw, "file")))
        batch = self.fake.add_batch(json.loads(raw))
        if self.fake.lose_created:
            self.fake.lose_created -= 1
            self.close_connection = True  # made, but nobody hears of it
            return None
        return self._say(batch)

    def _say(self, tree: Any, status: int = 200) -> None:
        self._send(status, json.dumps(tree).encode())


def _part(content_type: str, raw: bytes, name: str) -> bytes:
    """One field of a multipart form."""
    parser = email.parser.BytesParser(policy=email.policy.HTTP)
    message = parser.parsebytes(b"content-type: " + content_type.encode() + b"\r\n\r\n" + raw)
    part = next(
        p for p in message.iter_parts() if p.get_param("name", header="content-disposition") == name
    )
    content = part.get_payload(decode=True)
    assert isinstance(content, bytes)
    return content


def run_batch(requests: Path, answers: Path, share: float = 1.0) -> int:
    """What `vllm run-batch -i requests -o answers` does, for the first `share` of the lines;
    returns how many."""
    with FakeOpenAI() as fake:
        lines = requests.read_bytes().splitlines()
        lines = lines[: round(len(lines) * share)]
        asked = [json.loads(line) for line in lines]
        said = [
            {"status_code": 200, "request_id": "x", "body": fake.completion(r["body"], Fault())}
            for r in asked
        ]
        replies = [
            {"id": "x", "custom_id": r["custom_id"], "error": None, "response": s}
            for r, s in zip(asked, said, strict=True)
        ]
    answers.write_bytes(b"".join(json.dumps(r).encode() + b"\n" for r in replies))
    return len(lines)
