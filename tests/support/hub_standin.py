"""A small stand-in for the Hub's git and LFS API: tests only, stdlib only, the unmodified client
talks to it.

    python hub_standin.py --root DIR --port 0 [--token T] [--read-token R] [--log FILE]
    HF_ENDPOINT=http://127.0.0.1:PORT HF_HUB_DISABLE_XET=1 HF_TOKEN=T python your_script.py

State is on disk under the root: blobs/<sha256>, and one JSON file per repository (commits and
refs). It speaks plain Git-LFS "basic" uploads only, so clients set HF_HUB_DISABLE_XET=1. Private
repositories need a token to be read, when the server has one. In a test, faults are put in by hand:

    server = make_server(root, token="T")
    server.faults.append(Fault("POST", r".*/commit/.*", status=412))          # refuse one commit
    server.faults.append(Fault("PUT", r"/_lfs/.*", drop="half"))              # hang up in the
    middle of an upload server.faults.append(Fault("POST", r".*/commit/.*", drop="after"))        #
    do it, then hang up without an answer
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import fnmatch
import hashlib
import json
import os
import re
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any, Literal
from urllib.parse import parse_qs, quote, unquote, urlsplit

LFS_GLOBS = (
    "*.parquet",
    "*.arrow",
    "*.bin",
    "*.safetensors",
    "*.gz",
    "*.zip",
    "*.zst",
    "*.tar",
    "*.npy",
    "*.npz",
    "*.pt",
    "*.png",
    "*.jpg",
)
LFS_SIZE = 10 * 1024 * 1024
KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}
Repo = dict[str, Any]


@dataclass
class Fault:
    """What the server does to the next `times` requests of this method whose path matches."""

    method: str
    path: str
    status: int = 0
    times: int = 1
    skip: int = 0  # let this many pass first
    retry_after: float | None = None
    # hang up: halfway through the body, or after doing what was asked
    drop: Literal["", "half", "after"] = ""
    # done to the store first; without a status the request then goes on
    then: Callable[[Store], None] | None = None
    seen: int = 0


class HubError(Exception):
    """An error answer: status, X-Error-Code and message."""

    def __init__(
        self,
        status: int,
        code: str | None = None,
        message: str = "",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.retry_after = status, code, message, retry_after


class HungUp(Exception):
    """The connection is to be closed without an answer."""


class Store:
    """Blobs and repositories on disk."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        (self.root / "blobs").mkdir(parents=True, exist_ok=True)
        (self.root / "repos").mkdir(exist_ok=True)
        self.lock = threading.RLock()

    def blob(self, sha: str) -> Path:
        return self.root / "blobs" / sha

    def put_blob(self, data: bytes) -> str:
        sha = hashlib.sha256(data).hexdigest()
        path = self.blob(sha)
        if not path.exists():
            part = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
            part.write_bytes(data)
            part.replace(path)
        return sha

    def _path(self, kind: str, repo_id: str) -> Path:
        return self.root / "repos" / f"{kind}--{repo_id.replace('/', '--')}.json"

    def load(self, kind: str, repo_id: str) -> Repo:
        path = self._path(kind, repo_id)
        if not path.exists():
            raise HubError(404, "RepoNotFound", "Repository not found")
        repo: Repo = json.loads(path.read_text())
        return repo

    def save(self, repo: Repo) -> None:
        path = self._path(repo["kind"], repo["id"])
        part = path.with_suffix(".tmp")
        part.write_text(json.dumps(repo))
        part.replace(path)

    def create(self, kind: str, repo_id: str, private: bool) -> Repo:
        if self._path(kind, repo_id).exists():
            raise HubError(409, None, f"You already created this {kind} repo")
        repo: Repo = {
            "kind": kind,
            "id": repo_id,
            "private": private,
            "createdAt": now(),
            "commits": {},
            "branches": {},
            "tags": {},
        }
        attributes = "".join(
            f"{g} filter=lfs diff=lfs merge=lfs -text\n" for g in LFS_GLOBS
        ).encode()
        self.commit(repo, "main", [("file", ".gitattributes", attributes)], "initial commit", "")
        self.save(repo)
        return repo

    def delete(self, kind: str, repo_id: str) -> None:
        self.load(kind, repo_id)
        self._path(kind, repo_id).unlink()

    @staticmethod
    def resolve(repo: Repo, revision: str | None) -> str:
        wanted = unquote(revision or "main")
        for prefix, refs in (("refs/heads/", "branches"), ("refs/tags/", "tags")):
            if wanted.startswith(prefix) and wanted[len(prefix) :] in repo[refs]:
                return str(repo[refs][wanted[len(prefix) :]])
        for refs in ("branches", "tags"):
            if wanted in repo[refs]:
                return str(repo[refs][wanted])
        if re.fullmatch(r"[0-9a-f]{7,40}", wanted):
            for commit in repo["commits"]:
                if commit.startswith(wanted):
                    return str(commit)
        raise HubError(404, "RevisionNotFound", f"Invalid rev id: {wanted}")

    def commit(
        self,
        repo: Repo,
        branch: str,
        operations: list[tuple[str, str, Any]],
        title: str,
        description: str,
        parent: str | None = None,
    ) -> str:
        head = repo["branches"].get(branch)
        if head is None and repo["commits"]:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {branch}")
        if parent and head and not head.startswith(parent):
            raise HubError(
                412,
                None,
                f"A commit has happened since. Please refresh and try again. ({parent} is not"
                f" {head})",
            )
        files = dict(repo["commits"][head]["files"]) if head else {}
        for operation, path, value in operations:
            self._apply(files, operation, path, value)
        oid = hashlib.sha1(
            json.dumps([head, files, title, description, time.time_ns()]).encode()
        ).hexdigest()
        repo["commits"][oid] = {
            "parent": head,
            "files": files,
            "title": title,
            "message": description,
            "date": now(),
        }
        repo["branches"][branch] = oid
        return oid

    def _apply(self, files: dict[str, Any], operation: str, path: str, value: Any) -> None:
        if operation == "file":
            files[path] = {
                "oid": git_blob_oid(value),
                "size": len(value),
                "sha": self.put_blob(value),
            }
        elif operation == "lfs":
            if not self.blob(value).exists():
                raise HubError(
                    400, None, f"LFS pointer points to a file that does not exist: {value}"
                )
            size = self.blob(value).stat().st_size
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{value}\nsize {size}\n".encode()  # noqa: E501
            files[path] = {
                "oid": git_blob_oid(pointer),
                "size": size,
                "sha": value,
                "lfs": len(pointer),
            }
        elif operation == "delete":
            if path not in files:
                raise HubError(404, "EntryNotFound", f"{path} does not exist")
            del files[path]
        elif operation == "delete_folder":
            for name in [name for name in files if name.startswith(path.rstrip("/") + "/")]:
                del files[name]


class Handler(BaseHTTPRequestHandler):
    """One request: its faults, its token, its route."""

    protocol_version = "HTTP/1.1"
    wbufsize = 65536  # headers and body in one segment: no wait for the delayed acknowledgement
    server: HubServer
    raw: bytes
    query: dict[str, str]

    def log_message(self, format: str, *args: object) -> None:
        pass

    @property
    def store(self) -> Store:
        return self.server.store

    @property
    def base(self) -> str:
        return f"http://{self.headers['host']}"

    def dispatch(self) -> None:
        url = urlsplit(self.path)
        self.query = {k: v[-1] for k, v in parse_qs(url.query).items()}
        try:
            fault = self.server.fault_for(self.command, url.path)
            self.raw = self._body(half=fault is not None and fault.drop == "half")
            if fault is not None and fault.then is not None:
                fault.then(self.store)
            if fault is not None and fault.status:
                raise HubError(fault.status, None, f"fault {fault.status}", fault.retry_after)
            self._answer = fault is None or not fault.drop
            for methods, pattern, route in ROUTES:
                found = (
                    re.fullmatch(pattern, url.path) if self.command in methods.split("|") else None
                )
                if found:
                    self._check_token(route)
                    with self.store.lock:
                        route(
                            self,
                            **{
                                k: v if k == "rev" else unquote(v or "")
                                for k, v in found.groupdict().items()
                            },
                        )
                    return
            raise HubError(404, None, "no such route in this stand-in")
        except HubError as e:
            headers = {"X-Error-Message": e.message.splitlines()[0] if e.message else ""}
            headers |= {"X-Error-Code": e.code} if e.code else {}
            headers |= {"Retry-After": str(e.retry_after)} if e.retry_after is not None else {}
            self.send(e.status, {"error": e.message}, headers)
        except (HungUp, ConnectionError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = dispatch

    def send(
        self,
        status: int,
        data: Any = b"",
        headers: dict[str, str] | None = None,
        kind: str = "application/json",
    ) -> None:
        if not getattr(self, "_answer", True):
            raise HungUp
        payload = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(payload)),
            "X-Request-Id": secrets.token_hex(8),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(payload)
        self.server.record(self.command, self.path, status, len(self.raw))

    def _body(self, half: bool) -> bytes:
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            return self._chunks()
        length = int(self.headers.get("content-length") or 0)
        if half:
            self.rfile.read(length // 2)
            raise HungUp
        return self.rfile.read(length)

    def _chunks(self) -> bytes:
        out = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            out += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return out

    def _token(self) -> str:
        return self.headers.get("authorization", "").removeprefix("Bearer ")

    def _check_token(self, route: Callable[..., None]) -> None:
        if (
            self.server.token is None
            or self.command in ("GET", "HEAD")
            or route in (Handler.paths_info, Handler.validate_yaml, Handler.lfs_put)
        ):
            return
        if self._token() == self.server.read_token is not None:
            raise HubError(
                403, None, "Forbidden: you must use a write token to upload to a repository."
            )
        if self._token() != self.server.token:
            raise HubError(401, None, "Invalid credentials in Authorization header")

    def repo(self, kind: str, rid: str) -> Repo:
        repo = self.store.load(KINDS[(kind or "models/").rstrip("/")], rid)
        if (
            repo["private"]
            and self.server.token is not None
            and self._token() not in (self.server.token, self.server.read_token)
        ):
            raise HubError(401, "RepoNotFound", "Repository not found")
        return repo

    # routes

    def whoami(self) -> None:
        known = {self.server.token: "write", self.server.read_token: "read"}
        if self.server.token is not None and self._token() not in known:
            raise HubError(401, None, "Invalid username or password.")
        role = known.get(self._token(), "write")
        self.send(
            200,
            {
                "type": "user",
                "id": "u1",
                "name": "tester",
                "fullname": "Tester",
                "orgs": [{"name": "org"}],
                "auth": {"type": "access_token", "accessToken": {"displayName": "t", "role": role}},
            },
        )

    def create_repo(self) -> None:
        body = json.loads(self.raw)
        repo_id = f"{body.get('organization') or 'tester'}/{body['name']}"
        if repo_id.split("/")[0] not in ("tester", "org"):
            raise HubError(
                403,
                None,
                "You don't have the rights to create a repo under the namespace"
                f" {repo_id.split('/')[0]}",
            )
        kind = body.get("type") or "model"
        url = f"{self.base}/{'' if kind == 'model' else kind + 's/'}{repo_id}"
        try:
            self.store.create(
                kind, repo_id, body.get("visibility") == "private" or bool(body.get("private"))
            )
        except HubError as e:
            if e.status != 409:
                raise
            self.send(409, {"error": e.message, "url": url})
            return
        self.send(200, {"url": url, "name": repo_id, "id": secrets.token_hex(12)})

    def delete_repo(self) -> None:
        body = json.loads(self.raw)
        self.store.delete(
            body.get("type") or "model", f"{body.get('organization') or 'tester'}/{body['name']}"
        )
        self.send(200, {})

    def validate_yaml(self) -> None:
        self.send(200, {"errors": [], "warnings": []})

    def info(self, kind: str, rid: str, rev: str | None = None) -> None:
        repo = self.repo(kind, rid)
        oid = self.store.resolve(repo, rev)
        commit = repo["commits"][oid]
        self.send(
            200,
            {
                "_id": hashlib.md5(rid.encode()).hexdigest()[:24],
                "id": rid,
                "author": rid.split("/")[0],
                "sha": oid,
                "private": repo["private"],
                "gated": repo.get("gated", False),
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": [],
                "createdAt": repo["createdAt"],
                "lastModified": commit["date"],
                "cardData": card_of(self.store, commit["files"]),
                "siblings": [{"rfilename": p} for p in sorted(commit["files"])],
            },
            {"X-Repo-Commit": oid},
        )

    def settings(self, kind: str, rid: str) -> None:
        repo = self.repo(kind, rid)
        body = json.loads(self.raw or b"{}")
        if "private" in body or "visibility" in body:
            repo["private"] = bool(body.get("private", body.get("visibility") == "private"))
        if "gated" in body:
            repo["gated"] = body["gated"]
        self.store.save(repo)
        self.send(200, {"private": repo["private"], "gated": repo.get("gated", False)})

    def refs(self, kind: str, rid: str) -> None:
        repo = self.repo(kind, rid)
        listed = {
            what: [
                {"name": n, "ref": f"refs/{path}/{n}", "targetCommit": oid}
                for n, oid in repo[what].items()
            ]
            for what, path in (("branches", "heads"), ("tags", "tags"))
        }
        self.send(200, {**listed, "converts": [], "pullRequests": []})

    def commits(self, kind: str, rid: str, rev: str) -> None:
        repo = self.repo(kind, rid)
        oid: str | None = self.store.resolve(repo, rev)
        out = []
        while oid:
            commit = repo["commits"][oid]
            out.append(
                {
                    "id": oid,
                    "title": commit["title"],
                    "message": commit["message"],
                    "date": commit["date"],
                    "authors": [{"user": "tester"}],
                }
            )
            oid = commit["parent"]
        self.send(200, out, {"X-Total-Count": str(len(out))})

    def tree(self, kind: str, rid: str, rev: str, sub: str = "") -> None:
        repo = self.repo(kind, rid)
        oid = self.store.resolve(repo, rev)
        commit = repo["commits"][oid]
        prefix = f"{sub.strip('/')}/" if sub.strip("/") else ""
        recursive = self.query.get("recursive", "").lower() in ("true", "1")
        files, folders = [], {}
        for path, stored in sorted(commit["files"].items()):
            if not path.startswith(prefix):
                continue
            parts = path[len(prefix) :].split("/")
            for depth in range(1, len(parts) if recursive else min(2, len(parts))):
                name = prefix + "/".join(parts[:depth])
                folders[name] = {
                    "type": "directory",
                    "oid": hashlib.sha1(name.encode()).hexdigest(),
                    "size": 0,
                    "path": name,
                }
            if recursive or len(parts) == 1:
                last = {"id": oid, "title": commit["title"], "date": commit["date"]}
                expand = self.query.get("expand", "").lower() in ("true", "1")
                files.append({**entry(path, stored), **({"lastCommit": last} if expand else {})})
        if prefix and not files and not folders:
            raise HubError(404, "EntryNotFound", f"{sub} does not exist on {rev}")
        self.send(
            200,
            sorted([*folders.values(), *files], key=lambda e: str(e["path"])),
            {"X-Repo-Commit": oid},
        )

    def paths_info(self, kind: str, rid: str, rev: str) -> None:
        repo = self.repo(kind, rid)
        files = repo["commits"][self.store.resolve(repo, rev)]["files"]
        if self.headers.get("content-type", "").startswith("application/json"):
            paths = json.loads(self.raw)["paths"]
        else:
            paths = parse_qs(self.raw.decode()).get("paths", [])
        out = []
        for path in [p.strip("/") for p in ([paths] if isinstance(paths, str) else paths)]:
            if path in files:
                out.append(entry(path, files[path]))
            elif any(f.startswith(path + "/") for f in files):
                out.append(
                    {
                        "type": "directory",
                        "oid": hashlib.sha1(path.encode()).hexdigest(),
                        "size": 0,
                        "path": path,
                    }
                )
        self.send(200, out)

    def preupload(self, kind: str, rid: str, rev: str) -> None:
        repo = self.repo(kind, rid)
        oid = self.store.resolve(repo, rev)
        files = repo["commits"][oid]["files"]
        out = []
        for file in json.loads(self.raw)["files"]:
            name = file["path"].split("/")[-1]
            lfs = (
                file["size"] > LFS_SIZE
                or any(fnmatch.fnmatch(name, g) for g in LFS_GLOBS)
                or b"\0" in base64.b64decode(file.get("sample", ""))
            )
            old = files.get(file["path"])
            out.append(
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if lfs else "regular",
                    "shouldIgnore": False,
                    "oid": (old["sha"] if "lfs" in old else old["oid"]) if old else None,
                }
            )
        self.send(200, {"files": out, "commitOid": oid})

    def do_commit(self, kind: str, rid: str, rev: str) -> None:
        repo = self.repo(kind, rid)
        head: dict[str, Any] = {}
        operations: list[tuple[str, str, Any]] = []
        for line in filter(bytes.strip, self.raw.splitlines()):
            record = json.loads(line)
            key, value = record["key"], record["value"]
            if key == "header":
                head = value
            elif key == "file":
                operations.append(("file", value["path"], base64.b64decode(value["content"])))
            elif key == "lfsFile":
                operations.append(("lfs", value["path"], value["oid"]))
            else:
                operations.append(
                    ("delete" if key == "deletedFile" else "delete_folder", value["path"], None)
                )
        branch = unquote(rev).removeprefix("refs/heads/")
        if branch not in repo["branches"]:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {branch}")
        oid = self.store.commit(
            repo,
            branch,
            operations,
            head.get("summary", ""),
            head.get("description", ""),
            head.get("parentCommit"),
        )
        self.store.save(repo)
        prefix = "" if kind == "models" else f"{kind}/"
        self.send(
            200,
            {
                "success": True,
                "commitOid": oid,
                "commitUrl": f"{self.base}/{prefix}{rid}/commit/{oid}",
                "hookOutput": "",
            },
        )

    def ref_add(self, kind: str, rid: str, what: str, name: str) -> None:
        repo = self.repo(kind, rid)
        body = json.loads(self.raw or b"{}")
        if what == "branch":
            target, new, refs = (
                self.store.resolve(repo, body.get("startingPoint") or "main"),
                name,
                repo["branches"],
            )
        else:
            target, new, refs = self.store.resolve(repo, name), body["tag"], repo["tags"]
        if new in refs:
            raise HubError(409, None, f"Reference already exists: {new}")
        refs[new] = target
        self.store.save(repo)
        self.send(201 if what == "branch" else 200, {})

    def ref_delete(self, kind: str, rid: str, what: str, name: str) -> None:
        repo = self.repo(kind, rid)
        if repo["branches" if what == "branch" else "tags"].pop(name, None) is None:
            raise HubError(404, "RevisionNotFound", "Reference does not exist")
        self.store.save(repo)
        self.send(200, {})

    def lfs_batch(self, kind: str, rid: str) -> None:
        self.repo(kind, rid)
        body = json.loads(self.raw)
        out = []
        for wanted in body["objects"]:
            known: dict[str, Any] = {
                "oid": wanted["oid"],
                "size": wanted["size"],
                "authenticated": True,
            }
            if body["operation"] == "upload" and not self.store.blob(wanted["oid"]).exists():
                known["actions"] = {
                    "upload": {"href": f"{self.base}/_lfs/{wanted['oid']}", "header": {}}
                }
            out.append(known)
        self.send(200, {"transfer": "basic", "objects": out}, kind="application/vnd.git-lfs+json")

    def lfs_put(self, sha: str) -> None:
        if hashlib.sha256(self.raw).hexdigest() != sha:
            raise HubError(400, None, "sha256 mismatch")
        self.store.put_blob(self.raw)
        self.send(200)

    def resolve(self, kind: str, rid: str, rev: str, path: str) -> None:
        repo = self.repo(kind, rid)
        oid = self.store.resolve(repo, rev)
        stored = repo["commits"][oid]["files"].get(path)
        if stored is None:
            raise HubError(404, "EntryNotFound", "Entry not found")
        data = self.store.blob(stored["sha"]).read_bytes()
        etag = stored["sha"] if "lfs" in stored else stored["oid"]
        headers = {
            "X-Repo-Commit": oid,
            "ETag": f'"{etag}"',
            "Accept-Ranges": "bytes",
            "Content-Disposition": f'inline; filename="{quote(path.split("/")[-1])}"',
        }
        if "lfs" in stored:
            headers |= {"X-Linked-Size": str(stored["size"]), "X-Linked-ETag": f'"{etag}"'}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        if asked is None or self.command != "GET":
            self.send(200, data, headers, "application/octet-stream")
            return
        first, last = (
            int(asked[1]),
            min(int(asked[2]) if asked[2] else len(data) - 1, len(data) - 1),
        )
        if first >= len(data):
            self.send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        else:
            self.send(
                206,
                data[first : last + 1],
                {**headers, "Content-Range": f"bytes {first}-{last}/{len(data)}"},
                "application/octet-stream",
            )


_ID = r"(?P<rid>[^/]+/[^/]+)"
_KIND = r"(?P<kind>models|datasets|spaces)"
_PREFIX = r"(?P<kind>datasets/|spaces/)?"
ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", r"/api/whoami-v2", Handler.whoami),
    ("POST", r"/api/repos/create", Handler.create_repo),
    ("DELETE", r"/api/repos/delete", Handler.delete_repo),
    ("POST", r"/api/validate-yaml", Handler.validate_yaml),
    ("GET|HEAD", rf"/api/{_KIND}/{_ID}", Handler.info),
    ("GET|HEAD", rf"/api/{_KIND}/{_ID}/revision/(?P<rev>.+)", Handler.info),
    ("PUT", rf"/api/{_KIND}/{_ID}/settings", Handler.settings),
    ("GET", rf"/api/{_KIND}/{_ID}/refs", Handler.refs),
    ("GET", rf"/api/{_KIND}/{_ID}/commits/(?P<rev>[^/]+)", Handler.commits),
    ("GET", rf"/api/{_KIND}/{_ID}/tree/(?P<rev>[^/]+)(?:/(?P<sub>.*))?", Handler.tree),
    ("POST", rf"/api/{_KIND}/{_ID}/paths-info/(?P<rev>[^/]+)", Handler.paths_info),
    ("POST", rf"/api/{_KIND}/{_ID}/preupload/(?P<rev>[^/]+)", Handler.preupload),
    ("POST", rf"/api/{_KIND}/{_ID}/commit/(?P<rev>[^/]+)", Handler.do_commit),
    ("POST", rf"/api/{_KIND}/{_ID}/(?P<what>branch|tag)/(?P<name>.+)", Handler.ref_add),
    ("DELETE", rf"/api/{_KIND}/{_ID}/(?P<what>branch|tag)/(?P<name>.+)", Handler.ref_delete),
    ("POST", rf"/{_PREFIX}{_ID}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", r"/_lfs/(?P<sha>[0-9a-f]{64})", Handler.lfs_put),
    ("GET|HEAD", rf"/{_PREFIX}{_ID}/resolve/(?P<rev>[^/]+)/(?P<path>.+)", Handler.resolve),
]


@dataclass
class Seen:
    """One request that was answered."""

    method: str
    path: str
    status: int
    n_bytes: int = field(default=0)


class HubServer(ThreadingHTTPServer):
    """The stand-in; `faults` may be changed and `seen` read while it runs."""

    daemon_threads = True

    def __init__(
        self,
        root: str | Path,
        port: int = 0,
        token: str | None = None,
        read_token: str | None = None,
        log: IO[str] | None = None,
    ) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.store = Store(root)
        self.token, self.read_token, self.log = token, read_token, log
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def fault_for(self, method: str, path: str) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                if fault.method == method and re.fullmatch(fault.path, path):
                    fault.seen += 1
                    if fault.skip < fault.seen <= fault.skip + fault.times:
                        return fault
        return None

    def record(self, method: str, path: str, status: int, n_bytes: int) -> None:
        with self._lock:
            self.seen.append(Seen(method, path, status, n_bytes))
            if self.log is not None:
                self.log.write(
                    json.dumps({"method": method, "path": path, "status": status, "bytes": n_bytes})
                    + "\n"
                )
                self.log.flush()


def make_server(
    root: str | Path,
    port: int = 0,
    token: str | None = None,
    logf: IO[str] | None = None,
    read_token: str | None = None,
) -> HubServer:
    """A server that is bound but not yet serving; `serve_forever` it in a thread."""
    return HubServer(root, port, token, read_token, logf)


def git_blob_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())


def entry(path: str, stored: dict[str, Any]) -> dict[str, Any]:
    """A file as `tree` and `paths-info` list it."""
    listed: dict[str, Any] = {
        "type": "file",
        "oid": stored["oid"],
        "size": stored["size"],
        "path": path,
    }
    if "lfs" in stored:
        listed["lfs"] = {"oid": stored["sha"], "size": stored["size"], "pointerSize": stored["lfs"]}
    return listed


def card_of(store: Store, files: dict[str, Any]) -> Any:
    """The YAML header of a commit's README.md; None without one."""
    if "README.md" not in files:
        return None
    import yaml

    header = re.match(
        r"---\s*\n(.*?)\n---",
        store.blob(files["README.md"]["sha"]).read_text(errors="replace"),
        re.S,
    )
    try:
        return yaml.safe_load(header[1]) if header else None
    except yaml.YAMLError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--root", required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--token")
    parser.add_argument("--read-token")
    parser.add_argument("--log")
    args = parser.parse_args()
    log = Path(args.log).open("a") if args.log else None  # noqa: SIM115 - open as long as the server runs
    server = make_server(
        args.root,
        args.port,
        args.token or os.environ.get("HUB_STANDIN_TOKEN"),
        log,
        args.read_token,
    )
    print(server.url, flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()


if __name__ == "__main__":
    main()
