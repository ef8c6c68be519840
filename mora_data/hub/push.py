"""A dataset folder -> a Hub repository: one commit on a known parent, then the tag; or one of its configs -> a file.

    push(Path("runs/demo/dataset"), "org/pairs", "v1.0.0", manifest=manifest)

The head of the repository is always an old release or a complete new one. Nothing is retried behind the user's back: a
repeated command finishes what is left, and changes nothing when all is done. `Dataset.push_to_hub` is never used: it
makes one commit per config. On the real Hub uploads go through Xet; `create_commit` stays one commit either way (a Hub
without Xet wants HF_HUB_DISABLE_XET=1 in the environment).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import pyarrow.parquet as pq

from ..config import nearest
from ..errors import PublishError
from . import card, lint
from .folder import counts_of, fingerprint_of
from .schemas import DEFAULT_CONFIG

Status = Literal["planned", "pushed", "nothing changed"]
T = TypeVar("T")
_OWNED = re.compile(
    r"(?:preference(?:_[^/]+)?|stage\d+_[^/]+|unpaired|prompt_only|scored|reward_modeling|multilabel|sft)"
    r"/(?:train|test)-\d{5}-of-\d{5}\.parquet|provenance/[^/]+"
)


@dataclass(frozen=True, slots=True)
class PushResult:
    """What was done, or in a dry run would be. `revision` is the commit that carries the release."""

    status: Status
    repo_id: str
    tag: str | None
    revision: str | None
    added: tuple[str, ...]  # files new or changed
    deleted: tuple[str, ...]
    n_bytes: int  # of the added files
    private: bool
    counts: dict[str, dict[str, int]]
    note: str = ""


@dataclass(frozen=True, slots=True)
class _Local:
    """A file to publish: its bytes on disk, or in memory."""

    source: Path | bytes
    n_bytes: int
    sha256: str
    git_oid: str


def push(
    folder: Path,
    repo_id: str,
    tag: str | None,
    *,
    dry_run: bool = False,
    public: bool = False,
    allow_simulated: bool = False,
    move_tag: bool = False,
    manifest: Mapping[str, Any] | None = None,
) -> PushResult:
    """Publish the folder under `tag`; a new repository is private. A dry run reads the Hub if it can, and writes nothing.

    Raises:
        PublishError: one line that says what to do. The repository is then as it was, or complete.
    """
    manifest = manifest or {}
    counts = _check_folder(folder, manifest, public, allow_simulated)
    if tag is not None and not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", tag):
        raise PublishError(f"--tag {tag!r} is not a tag name: write it as v1.0.0")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise PublishError(f"{repo_id!r} is not a repository id: write it as ORG/NAME")
    readme = card.addressed((folder / "README.md").read_text("utf-8"), repo_id, tag)
    if faults := lint.lint(folder, readme):
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise PublishError(f"the dataset folder fails its check: {faults[0]}{more}")
    files = _local_files(folder, readme)
    private = not public
    try:
        hub = _Hub(repo_id)
        state = hub.read()
    except PublishError as e:
        if not dry_run:
            raise
        return PushResult(
            "planned",
            repo_id,
            tag,
            None,
            tuple(files),
            (),
            _bytes(files, files),
            private,
            counts,
            f"the repository was not read: {e}",
        )
    _check_state(state, repo_id, public)
    if tag is not None and tag in state.tags:
        added, deleted = _difference(files, hub.tree(state.tags[tag]))
        if (added or deleted) and not move_tag:
            raise PublishError(
                f"tag {tag} of {repo_id} exists with other content ({_some(added + deleted)}): "
                "give a new --tag, or --move-tag to replace it"
            )
        if not (added or deleted):
            if not dry_run:
                hub.finish(public, state, manifest)
            return PushResult(
                "nothing changed", repo_id, tag, state.tags[tag], (), (), 0, private and not state.public, counts
            )
    added, deleted = _difference(files, hub.tree(state.head) if state.head else {})
    result = PushResult(
        "planned", repo_id, tag, state.head, tuple(added), tuple(deleted), _bytes(files, added), private, counts
    )
    if dry_run:
        return result
    if added or deleted or state.head is None:
        lint.load_back(folder, lint.read_header(readme) or {})
    head = hub.create() if state.head is None else state.head
    if public and _unsafe(manifest) == "gate":
        hub.gate()
    revision = hub.commit(files, added, deleted, head, tag) if added or deleted else head
    if tag is not None:
        hub.tag(tag, revision, move=tag in state.tags)
    hub.finish(public, state, manifest)
    done: Status = "pushed" if added or deleted or tag is not None else "nothing changed"
    return PushResult(done, repo_id, tag, revision, tuple(added), tuple(deleted), _bytes(files, added), private, counts)


def export_config(folder: Path, config: str, to: Path, fmt: Literal["parquet", "jsonl"] = "parquet") -> list[Path]:
    """The files written into `to`: `<config>-<split>.parquet`, with shards joined, or `.jsonl` with one row a line.

    Raises:
        PublishError: the folder has no such config (those that exist are named), or `to` can't be written.
    """
    header = lint.read_header((folder / "README.md").read_text("utf-8")) if (folder / "README.md").is_file() else None
    configs = lint.declared(header or {})
    if config not in configs:
        raise PublishError(
            f"no config {config!r} in {folder.name}/: {nearest(config, configs) if configs else 'it holds no dataset'}"
        )
    written = []
    try:
        to.mkdir(parents=True, exist_ok=True)
        for split, files in configs[config].items():
            out = to / f"{config}-{split}.{fmt}"
            part = out.with_name(f".{out.name}.part")
            (_copy_parquet if fmt == "parquet" else _copy_jsonl)([folder / f for f in files], part)
            part.replace(out)
            written.append(out)
    except OSError as e:
        raise PublishError(f"can't export {config} to {to}: {e.strerror or e}") from e
    return written


def _copy_parquet(files: list[Path], out: Path) -> None:
    with pq.ParquetWriter(out, pq.read_schema(files[0]), compression="zstd", write_page_index=True) as writer:
        for path in files:
            for batch in pq.ParquetFile(path).iter_batches(batch_size=1000):
                writer.write_batch(batch)


def _copy_jsonl(files: list[Path], out: Path) -> None:
    with out.open("w", encoding="utf-8") as f:
        for path in files:
            for batch in pq.ParquetFile(path).iter_batches(batch_size=1000):
                f.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in batch.to_pylist())


def _check_folder(
    folder: Path, manifest: Mapping[str, Any], public: bool, allow_simulated: bool
) -> dict[str, dict[str, int]]:
    """Rows per config, if this folder may be pushed at all."""
    if not (folder / "README.md").is_file():
        raise PublishError(f"no dataset in {folder}: run `mora-data build` to its end first")
    counts = counts_of(folder)
    if not counts.get(DEFAULT_CONFIG):
        empty = next((stage for stage, c in (manifest.get("counts") or {}).items() if c.get("kept") == 0), "select")
        raise PublishError(f"there is no pair to publish: stage {empty} left nothing")
    known = manifest.get("fingerprint")
    if known and known != fingerprint_of(folder):
        raise PublishError(
            f"the Parquet files in {folder} were changed since the build (fingerprint is not {known[:12]}): build again"
        )
    if (manifest.get("simulated") or _simulated(folder)) and not allow_simulated and not _loopback(_endpoint()):
        raise PublishError(
            "these rows are simulated (engine scripted), so they are not published: build with a model, "
            "or give --allow-simulated"
        )
    if public:
        _check_public(_unsafe(manifest))
    return counts


def _check_public(unsafe: str | None) -> None:
    if unsafe is None:
        raise PublishError("--public needs a decision on unsafe text: --set publish.unsafe=gate")
    if unsafe != "gate":
        raise PublishError(
            f"--public with publish.unsafe={unsafe} is not supported yet: set publish.unsafe=gate, or push privately"
        )


def _unsafe(manifest: Mapping[str, Any]) -> str | None:
    decision = ((manifest.get("settings") or {}).get("publish") or {}).get("unsafe")
    return None if decision is None else str(decision)


def _simulated(folder: Path) -> bool:
    """Whether a row of the default config says so, read from the column itself."""
    return any(
        True in pq.read_table(f, columns=["simulated"], partitioning=None)["simulated"].unique().to_pylist()
        for f in (folder / DEFAULT_CONFIG).glob("*.parquet")
    )


def _local_files(folder: Path, readme: str) -> dict[str, _Local]:
    """Path in the repository -> file, in a fixed order."""
    paths = sorted([*folder.glob("*/*.parquet"), *folder.glob("provenance/*")])
    return {"README.md": _hashed(readme.encode()), **{p.relative_to(folder).as_posix(): _hashed(p) for p in paths}}


def _hashed(source: Path | bytes) -> _Local:
    n_bytes = source.stat().st_size if isinstance(source, Path) else len(source)
    sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % n_bytes, usedforsecurity=False)
    if isinstance(source, bytes):
        sha256.update(source)
        git.update(source)
    else:
        with source.open("rb") as f:
            while block := f.read(1 << 20):
                sha256.update(block)
                git.update(block)
    return _Local(source, n_bytes, sha256.hexdigest(), git.hexdigest())


def _difference(files: Mapping[str, _Local], remote: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Files to add, and files of ours to delete. `remote` gives each path its sha256 (LFS) or git hash."""
    added = [path for path, f in files.items() if remote.get(path) not in (f.sha256, f.git_oid)]
    return added, sorted(path for path in remote if path not in files and _OWNED.fullmatch(path))


def _check_state(state: _State, repo_id: str, public: bool) -> None:
    if state.public and not public:
        raise PublishError(
            f"{repo_id} is public already: give --public (with publish.unsafe set), or another repository"
        )


def _bytes(files: Mapping[str, _Local], names: Any) -> int:
    return sum(files[n].n_bytes for n in names)


def _some(paths: list[str]) -> str:
    return ", ".join(paths[:3]) + (f" and {len(paths) - 3} more files" if len(paths) > 3 else "")


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


def _loopback(endpoint: str) -> bool:
    host = urlsplit(endpoint).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


@dataclass(frozen=True, slots=True)
class _State:
    """A repository as it stood when it was read; `head` is None where there is none."""

    head: str | None
    public: bool
    tags: Mapping[str, str]


class _Hub:
    """The calls that this module makes, each failure a PublishError of one line."""

    def __init__(self, repo_id: str) -> None:
        from huggingface_hub import HfApi, get_token

        self._repo_id = repo_id
        token = get_token()
        if not token:
            raise PublishError("no Hub token: set HF_TOKEN, or run `hf auth login`")
        self._api = HfApi(endpoint=_endpoint(), token=token)

    def read(self) -> _State:
        """The repository's head, visibility and tags; the token is checked first."""
        from huggingface_hub.errors import RepositoryNotFoundError

        self._call("read", self._api.whoami)
        try:
            info = self._call(
                "read", lambda: self._api.repo_info(self._repo_id, repo_type="dataset"), RepositoryNotFoundError
            )
            refs = self._call("read", lambda: self._api.list_repo_refs(self._repo_id, repo_type="dataset"))
        except RepositoryNotFoundError:
            return _State(None, False, {})
        return _State(info.sha, not info.private, {t.name: t.target_commit for t in refs.tags})

    def tree(self, revision: str) -> dict[str, str]:
        """Path -> sha256 of an LFS file, git hash of another."""
        from huggingface_hub.hf_api import RepoFile

        entries = self._call(
            "read",
            lambda: list(
                self._api.list_repo_tree(self._repo_id, recursive=True, revision=revision, repo_type="dataset")
            ),
        )
        files = [e for e in entries if isinstance(e, RepoFile)]
        return {e.path: e.lfs.sha256 if e.lfs else e.blob_id for e in files}

    def create(self) -> str:
        """A new private repository; its first commit."""
        self._call(
            "create", lambda: self._api.create_repo(self._repo_id, repo_type="dataset", private=True, exist_ok=True)
        )
        return str(self._call("read", lambda: self._api.repo_info(self._repo_id, repo_type="dataset")).sha)

    def commit(
        self, files: Mapping[str, _Local], added: list[str], deleted: list[str], parent: str, tag: str | None
    ) -> str:
        """All changes as one commit on `parent`.

        Raises:
            PublishError: among others, someone committed meanwhile; then it says what.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete

        operations: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete] = [
            *(CommitOperationAdd(path_in_repo=p, path_or_fileobj=files[p].source) for p in added),
            *(CommitOperationDelete(path_in_repo=p) for p in deleted),
        ]
        message = f"Release {tag}" if tag else "Update the dataset"
        done = self._call(
            "write",
            lambda: self._api.create_commit(
                self._repo_id, operations, commit_message=message, repo_type="dataset", parent_commit=parent
            ),
            parent=parent,
        )
        return str(done.oid)

    def tag(self, tag: str, revision: str, move: bool) -> None:
        """Name the commit; an existing tag is moved only where that was asked for."""
        if move:
            self._call("tag", lambda: self._api.delete_tag(self._repo_id, tag=tag, repo_type="dataset"))
        self._call("tag", lambda: self._api.create_tag(self._repo_id, tag=tag, revision=revision, repo_type="dataset"))

    def gate(self) -> None:
        """Readers must agree to the terms; set before the upload, so no ungated minute exists."""
        self._call("write", lambda: self._api.update_repo_settings(self._repo_id, gated="auto", repo_type="dataset"))

    def finish(self, public: bool, state: _State, manifest: Mapping[str, Any]) -> None:
        """Make the repository public, last of all."""
        if public and not state.public:
            if _unsafe(manifest) == "gate":
                self.gate()
            self._call(
                "write", lambda: self._api.update_repo_settings(self._repo_id, private=False, repo_type="dataset")
            )

    def _call(
        self, what: str, call: Callable[[], T], let_through: type[Exception] | None = None, parent: str | None = None
    ) -> T:
        from huggingface_hub.errors import HfHubHTTPError

        try:
            return call()
        except Exception as e:
            if let_through is not None and isinstance(e, let_through):
                raise
            response = getattr(e, "response", None) if isinstance(e, HfHubHTTPError) else None
            status = getattr(response, "status_code", None)
            if status == 412 and parent is not None:
                raise PublishError(self._moved(parent)) from e
            raise PublishError(self._explain(what, status, e)) from e

    def _moved(self, parent: str) -> str:
        advice = "nothing was written; look at it and run the command again"
        try:
            commits = self._api.list_repo_commits(self._repo_id, repo_type="dataset")
        except Exception:  # the answer is the 412 itself; what changed is a courtesy
            return f"someone committed to {self._repo_id} meanwhile: {advice}"
        new = [c for c in commits[: next((i for i, c in enumerate(commits) if c.commit_id == parent), 0)]]
        what = "; ".join(f"{c.commit_id[:8]} {c.title!r}" for c in new[:3]) or "an unknown commit"
        return f"someone committed to {self._repo_id} meanwhile ({what}): {advice}"

    def _explain(self, what: str, status: int | None, e: Exception) -> str:
        host = urlsplit(_endpoint()).netloc
        if status == 401:
            return f"the Hub at {host} refused the token (401): set HF_TOKEN to a valid one, or run `hf auth login`"
        if status == 403:
            return f"the token may not write to {self._repo_id} (403): use one with write access, or another repository"
        if status == 404:
            return f"{self._repo_id} is not on {host}, or the token may not see it (404): check the name"
        if status is not None:
            return f"the Hub at {host} answered {status}: {_last_line(e)}; run the command again to finish"
        return (
            f"the Hub at {host} can't be reached ({type(e).__name__}: {_last_line(e)}): "
            "check the network and HF_ENDPOINT, then run the command again"
        )


def _last_line(e: Exception) -> str:
    return " ".join(str(e).split())[:200]
