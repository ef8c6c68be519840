"""Where a dataset is, here or on the Hub, and the Hub calls that a release makes; each failure is a
PublishError of one line that says what to do."""

from __future__ import annotations

import hashlib
import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .. import resources
from ..errors import PublishError
from ..run.files import readable
from ..text import one_line

_ON_HUB = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>\S+))?")


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file to publish: its bytes on disk, or in memory."""

    source: Path | bytes
    n_bytes: int
    sha256: str
    git_oid: str


def local_file(source: Path | bytes) -> LocalFile:
    """A file with its sizes and hashes, read once.

    Raises:
        DamagedFile: it can't be read.
    """
    if isinstance(source, Path):
        with readable(source, "build again"):
            return _hashed(source)
    return _hashed(source)


def _hashed(source: Path | bytes) -> LocalFile:
    n_bytes = source.stat().st_size if isinstance(source, Path) else len(source)
    sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % n_bytes, usedforsecurity=False)
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as f:
        while block := f.read(1 << 20):
            sha256.update(block)
            git.update(block)
    return LocalFile(source, n_bytes, sha256.hexdigest(), git.hexdigest())


def endpoint() -> str:
    """Address of the Hub, read when it is needed."""
    from huggingface_hub import constants

    return os.environ.get("HF_ENDPOINT") or constants.ENDPOINT


def snapshot(repo_id: str, revision: str | None) -> Path:
    """The files of a dataset as they were at a revision, in a folder of the user's cache.

    Raises:
        PublishError: there is no such repository or revision, or the Hub can't be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    _quiet_unless_a_terminal()
    name = f"{repo_id}@{revision or 'main'}"
    try:
        return Path(
            snapshot_download(
                repo_id,
                repo_type="dataset",
                revision=revision,
                endpoint=endpoint(),
                local_dir=resources.cache() / "hub" / name.replace("/", "--"),
            )
        )
    except (RepositoryNotFoundError, RevisionNotFoundError) as e:
        raise PublishError(
            f"{name} is neither a folder here nor on the Hub, or the token may not see it: check"
            " the name"
        ) from e
    except Exception as e:
        why = f"{type(e).__name__}: {one_line(e)}"
        raise PublishError(
            f"{name} is no folder here and can't be fetched ({why}): check the name, the"
            " network and HF_ENDPOINT"
        ) from e


def dataset_of(where: str) -> Path:
    """The dataset folder of a run or a folder, or a copy of what a tag of the Hub holds.

    Raises:
        PublishError: there is none.
    """
    path = Path(where)
    if is_on_hub(where) and (on_hub := _ON_HUB.fullmatch(where)):
        path = snapshot(on_hub["repo"], on_hub["revision"])
    for folder in (path / "dataset", path):
        if (folder / "README.md").is_file() and any(folder.glob("*/*.parquet")):
            return folder
    raise PublishError(
        f"{where} holds no dataset: give a dataset folder, a run folder that is built to the end,"
        " or ORG/NAME@TAG"
    )


def is_on_hub(where: str) -> bool:
    """Whether a name is no folder here, and may be ORG/NAME or ORG/NAME@TAG."""
    return not Path(where).exists() and _ON_HUB.fullmatch(where) is not None


@dataclass(frozen=True, slots=True)
class RepoState:
    """A repository as it stood when it was read; `head` is None where there is none."""

    head: str | None
    public: bool
    tags: Mapping[str, str]


class Hub:
    """One repository, through the token of the environment or of the Hub's own store."""

    def __init__(self, repo_id: str) -> None:
        from huggingface_hub import HfApi, get_token

        self.repo_id = repo_id
        token = get_token()
        if not token:
            raise PublishError("no Hub token: set HF_TOKEN, or run `hf auth login`")
        self._api = HfApi(endpoint=endpoint(), token=token)
        _quiet_unless_a_terminal()

    def read(self) -> RepoState:
        """The repository's head, visibility and tags; the token is checked first."""
        from huggingface_hub.errors import RepositoryNotFoundError

        self._guarded(self._api.whoami)
        try:
            info = self._call("repo_info")
        except PublishError as e:
            if isinstance(e.__cause__, RepositoryNotFoundError):
                return RepoState(None, False, {})
            raise
        tags = self._call("list_repo_refs").tags
        return RepoState(info.sha, not info.private, {t.name: t.target_commit for t in tags})

    def tree(self, revision: str) -> dict[str, str]:
        """Path -> sha256 of an LFS file, git hash of another."""
        from huggingface_hub.hf_api import RepoFile

        entries = self._call("list_repo_tree", recursive=True, revision=revision)
        files = [e for e in entries if isinstance(e, RepoFile)]
        return {e.path: e.lfs.sha256 if e.lfs else e.blob_id for e in files}

    def history(self, revision: str) -> list[str]:
        """The commits that led to a revision, latest first."""
        return [c.commit_id for c in self._call("list_repo_commits", revision=revision)]

    def fetch(self, path: str, revision: str, to: Path) -> Path:
        """A file as it was at a revision, written below `to`."""
        return Path(self._call("hf_hub_download", filename=path, revision=revision, local_dir=to))

    def create(self) -> str:
        """A new private repository; its first commit."""
        self._call("create_repo", private=True, exist_ok=True)
        return str(self._call("repo_info").sha)

    def commit(
        self,
        files: Mapping[str, LocalFile],
        added: list[str],
        deleted: list[str],
        parent: str,
        tag: str | None,
    ) -> str:
        """All changes as one commit on `parent`.

        Raises:
            PublishError: among others, someone committed meanwhile; then it says what.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        done = self._call(
            "create_commit",
            operations=[
                *(CommitOperationAdd(p, path_or_fileobj=files[p].source) for p in added),
                *(CommitOperationDelete(p) for p in deleted),
            ],
            commit_message=f"Release {tag}" if tag else "Update the dataset",
            parent_commit=parent,
        )
        return str(done.oid)

    def tag(self, tag: str, revision: str, move: bool) -> None:
        """Name the commit; an existing tag is moved only where that was asked for."""
        if move:
            self._call("delete_tag", tag=tag)
        self._call("create_tag", tag=tag, revision=revision)

    def gate(self) -> None:
        """Readers must agree to the terms; set before the upload, so no ungated minute exists."""
        self._call("update_repo_settings", gated="auto")

    def finish(self, state: RepoState, public: bool, gated: bool) -> None:
        """Make the repository public, last of all."""
        if public and not state.public:
            if gated:
                self.gate()
            self._call("update_repo_settings", private=False)

    def _call(self, method: str, **given: Any) -> Any:
        """What a method of the Hub's API says about the repository."""
        call = getattr(self._api, method)
        return self._guarded(
            lambda: call(self.repo_id, repo_type="dataset", **given), given.get("parent_commit")
        )

    def _guarded(self, call: Callable[[], Any], parent: str | None = None) -> Any:
        from huggingface_hub.errors import HfHubHTTPError

        try:
            answer = call()
            return list(answer) if isinstance(answer, Iterator) else answer
        except Exception as e:
            response = getattr(e, "response", None) if isinstance(e, HfHubHTTPError) else None
            status = getattr(response, "status_code", None)
            if status == 412 and parent is not None:
                raise PublishError(self._moved(parent)) from e
            raise PublishError(self._explain(status, e)) from e

    def _moved(self, parent: str) -> str:
        advice = "nothing was written; look at it and run the command again"
        try:
            commits = self._api.list_repo_commits(self.repo_id, repo_type="dataset")
        except Exception:  # the answer is the 412 itself; what changed is a courtesy
            return f"someone committed to {self.repo_id} meanwhile: {advice}"
        new = commits[: next((i for i, c in enumerate(commits) if c.commit_id == parent), 0)]
        what = "; ".join(f"{c.commit_id[:8]} {c.title!r}" for c in new[:3]) or "an unknown commit"
        return f"someone committed to {self.repo_id} meanwhile ({what}): {advice}"

    def _explain(self, status: int | None, e: Exception) -> str:
        host = urlsplit(endpoint()).netloc
        known = {
            401: f"the Hub at {host} refused the token (401): set HF_TOKEN to a valid one, or run"
            " `hf auth login`",
            403: f"the token may not write to {self.repo_id} (403): use one with write access, or"
            " another repository",
            404: f"{self.repo_id} is not on {host}, or the token may not see it (404): check the"
            " name",
        }
        if status in known:
            return known[status]
        what = one_line(e)
        if status is not None:
            return f"the Hub at {host} answered {status}: {what}; run the command again to finish"
        return (
            f"the Hub at {host} can't be reached ({type(e).__name__}: {what}): "
            "check the network and HF_ENDPOINT, then run the command again"
        )


def _quiet_unless_a_terminal() -> None:
    """No progress bars into a file or a pipe, unless the environment asks for them."""
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if constants.HF_HUB_DISABLE_PROGRESS_BARS is None and not (sys.stderr and sys.stderr.isatty()):
        disable_progress_bars()
