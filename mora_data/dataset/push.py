"""A dataset folder -> a Hub repository: one commit on a known parent, then the tag. And what
changed between two datasets, config by config: rows added, removed and changed, columns that
differ; CHANGELOG.md says so for each tag against the tag before it.

    deltas = diff_datasets("runs/a", "org/mora-pairs@v1.0.0")
    deltas["preference"].added
    push_folder(Path("runs/demo/dataset"), "org/pairs", "v1.0.0", manifest=manifest)

Rows are matched by `pair_id`; where there is none, by prompt, arm and, if the row has one, its
answer. A changelog is a pure function of both releases: a repeated push writes the same bytes.

The head of the repository is always an old release or a complete new one. Nothing is retried behind
the user's back: a repeated command finishes what is left, and changes nothing when all is done.
`Dataset.push_to_hub` is never used: it makes one commit per config. On the real Hub uploads go
through Xet; `create_commit` stays one commit either way (a Hub without Xet wants
HF_HUB_DISABLE_XET=1 in the environment).
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Literal

import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import PublishError
from ..run import Manifest
from ..run.files import check_inside, readable, sha256_of
from ..secrets import is_loopback
from . import card, lint
from .card import code, escape_markdown, format_value
from .client import Hub, LocalFile, RepoState, dataset_of, endpoint, local_file
from .privacy import public_copy
from .schemas import (
    AGAIN,
    DEFAULT_CONFIG,
    Row,
    check_fingerprint,
    counts_of,
    footer_of,
    row_batches,
)

TITLE = "# Changelog\n\nRows by `pair_id`; where a config has none, by prompt, arm and answer.\n"


@dataclass(frozen=True, slots=True)
class Delta:
    """One config: rows by what became of them, and `name: type before -> after` of columns that
    differ."""

    added: int = 0
    removed: int = 0
    changed: int = 0
    same: int = 0
    columns: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed or self.columns)


def diff_datasets(before: str, after: str) -> dict[str, Delta]:
    """Config -> what changed, for every config of either.

    Each is a dataset folder, a run folder, or `ORG/NAME@TAG` on the Hub, where a commit or a branch
    serves as well.

    Raises:
        PublishError: one of them holds no dataset.
        DamagedFile: a Parquet file can't be read.
    """
    a, b = (_configs(dataset_of(where)) for where in (before, after))
    return {name: delta_of(a.get(name, []), b.get(name, [])) for name in dict.fromkeys([*a, *b])}


def delta_of(before: Iterable[Path], after: Iterable[Path]) -> Delta:
    """What changed from the rows of some Parquet files to those of others."""
    before, after = sorted(before), sorted(after)
    if not before or not after:
        return Delta(added=_count(after), removed=_count(before))
    a, b = _rows(before), _rows(after)
    changed = sum(a[key] != b[key] for key in a.keys() & b.keys())
    return Delta(
        added=len(b.keys() - a.keys()),
        removed=len(a.keys() - b.keys()),
        changed=changed,
        same=len(a.keys() & b.keys()) - changed,
        columns=_columns(before, after),
    )


def diff_lines(deltas: Mapping[str, Delta]) -> list[str]:
    """The deltas as an aligned table."""
    width = max([6, *map(len, deltas)])
    out = [f"{'config':<{width}} {'added':>8} {'removed':>8} {'changed':>8} {'same':>8}  columns"]
    for name, d in deltas.items():
        columns = "; ".join(d.columns) or "-"
        out.append(
            f"{name:<{width}} {d.added:>8} {d.removed:>8} {d.changed:>8} {d.same:>8}  {columns}"
        )
    return out


def _configs(folder: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*/*.parquet")):
        found.setdefault(path.parent.name, []).append(path)
    return found


def _rows(files: list[Path]) -> dict[bytes, bytes]:
    """Key -> what stands under it, both hashed; a further row under one key goes under the hash of
    that key."""
    found: dict[bytes, bytes] = {}
    for path in files:
        split = path.name.split("-")[0]
        with readable(path, AGAIN):
            for row in chain.from_iterable(row_batches([path])):
                key = _hash(_key(row))
                while key in found:
                    key = _hash(key.hex())
                found[key] = _hash([split, row])
    return found


def _count(files: list[Path]) -> int:
    return sum(footer_of(f).num_rows for f in files)


def _key(row: Row) -> object:
    if row.get("pair_id") is not None:
        return row["pair_id"]
    return [row.get("prompt_id"), row.get("arm"), row.get("completion"), row.get("response")]


def _hash(value: object) -> bytes:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).digest()


def _columns(before: list[Path], after: list[Path]) -> tuple[str, ...]:
    a, b = (
        {f.name: str(f.type) for f in footer_of(files[0]).schema.to_arrow_schema()}
        for files in (before, after)
    )
    return tuple(
        f"{n}: {a.get(n, 'none')} -> {b.get(n, 'none')}"
        for n in sorted({*a, *b})
        if a.get(n) != b.get(n)
    )


def changelog(tag: str, previous: str | None, deltas: Mapping[str, Delta], older: str = "") -> str:
    """The whole file: this tag's section, then those of the file at the previous tag."""
    against = (
        f"Against {escape_markdown(previous)}. A {version_step(deltas)} step."
        if previous
        else "First release."
    )
    rows = [
        f"| {code(name)} | {format_value(d.added)} | {format_value(d.removed)} |"
        f" {format_value(d.changed)} |"
        for name, d in deltas.items()
        if d
    ]
    table = ["| config | added | removed | changed |", "|---|---:|---:|---:|", *rows]
    columns = [
        f"- Columns of {code(name)}: {escape_markdown('; '.join(d.columns))}"
        for name, d in deltas.items()
        if d.columns
    ]
    lines = [
        f"## {escape_markdown(tag)}",
        "",
        against,
        "",
        *(table if rows else ["No row changed."]),
    ]
    lines += ["", *columns] if columns else []
    sections = older[older.index("\n## ") :] if "\n## " in older else ""
    return f"{TITLE}\n" + "\n".join(lines) + "\n" + sections


def version_step(deltas: Mapping[str, Delta]) -> str:
    """Which part of a semantic version the change calls for: major where a column is gone or means
    something else, minor where rows or configs differ, else patch."""
    if any(": none ->" not in column for d in deltas.values() for column in d.columns):
        return "major"
    return "minor" if any(deltas.values()) else "patch"


# to the Hub

Status = Literal["planned", "pushed", "nothing changed"]
_OWNED = re.compile(
    r"(?:preference(?:_[^/]+)?|stage\d+_[^/]+|unpaired|prompt_only|scored|reward_modeling|multilabel|sft)"
    r"/(?:train|test)-\d{5}-of-\d{5}\.parquet|provenance/[^/]+"
)


@dataclass(frozen=True, slots=True)
class PushResult:
    """What was done, or in a dry run would be. `revision` is the commit that carries the
    release."""

    status: Status
    repo_id: str
    tag: str | None
    revision: str | None
    added: tuple[str, ...]  # files new or changed
    deleted: tuple[str, ...]
    n_bytes: int  # of the added files
    private: bool
    note: str = ""


def push_folder(
    folder: Path,
    repo_id: str,
    tag: str | None,
    *,
    dry_run: bool = False,
    public: bool = False,
    allow_simulated: bool = False,
    move_tag: bool = False,
    manifest: Manifest | None = None,
    unsafe: str | None = None,
) -> PushResult:
    """Publish the folder under `tag`; a new repository is private. A dry run writes nothing.

    `unsafe` (gate, drop, redact) is carried out even where the repository stays private; None
    leaves it to the build's `publish.unsafe`, which is for public ones.

    Raises:
        PublishError: one line that says what to do. The repository is then as it was, or complete.
    """
    manifest = manifest or {}
    built = ((manifest.get("settings") or {}).get("publish") or {}).get("unsafe")
    decision = unsafe or (None if built is None else str(built))
    check_names(repo_id, tag, public, decision)
    _check_folder(folder, manifest, allow_simulated)
    edited = _edited(folder, manifest.get("papers") or {})
    if (public or unsafe is not None) and decision in ("drop", "redact"):
        folder = public_copy(folder, "drop" if decision == "drop" else "redact")
    readme = _linted_card(folder, repo_id, tag, manifest)
    files = _local_files(folder, readme)
    note, gated = _note(folder, edited), decision == "gate"
    planned = PushResult(
        status="planned",
        repo_id=repo_id,
        tag=tag,
        revision=None,
        added=tuple(files),
        deleted=(),
        n_bytes=sum(f.n_bytes for f in files.values()),
        private=not public,
        note=note,
    )
    try:
        hub = Hub(repo_id)
        state = hub.read()
    except PublishError as e:
        if not dry_run:
            raise
        notes = (f"the repository was not read: {e}", note)
        return replace(planned, note="; ".join(filter(None, notes)))
    _check_visibility(hub, state, public, gated)
    if tag is not None and _is_released(files, hub, state, tag, move_tag):
        if not dry_run:
            hub.finish(state, public, gated)
        return replace(
            planned,
            status="nothing changed",
            revision=state.tags[tag],
            added=(),
            n_bytes=0,
            private=not (public or state.public),
        )
    files = _with_changelog(files, hub, state, tag, state.head)
    added, deleted = _difference(files, hub.tree(state.head) if state.head else {})
    result = replace(
        planned,
        revision=state.head,
        added=tuple(added),
        deleted=tuple(deleted),
        n_bytes=sum(files[name].n_bytes for name in added),
    )
    if dry_run:
        return result
    if added or deleted or state.head is None:
        lint.load_back(folder, lint.read_header(readme) or {})
    head = hub.create() if state.head is None else state.head
    if public and gated:
        hub.gate()
    revision = hub.commit(files, added, deleted, head, tag) if added or deleted else head
    if tag is not None:
        hub.tag(tag, revision, move=tag in state.tags)
    hub.finish(state, public, gated)
    done: Status = "pushed" if added or deleted or tag is not None else "nothing changed"
    return replace(result, status=done, revision=revision)


def check_names(repo_id: str, tag: str | None, public: bool, decision: str | None) -> None:
    """What can be said of a push before there is anything to push.

    Raises:
        PublishError: no such name can be, or a public release is undecided on unsafe text.
    """
    if public and decision is None:
        raise PublishError(
            "--public needs a decision on unsafe text: give --split-unsafe, or run the build"
            " with --set publish.unsafe=gate (or drop, or redact)"
        )
    if tag is not None and not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", tag):
        raise PublishError(f"--tag {tag!r} is not a tag name: write it as v1.0.0")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise PublishError(f"{repo_id!r} is not a repository id: write it as ORG/NAME")


def _linted_card(folder: Path, repo_id: str, tag: str | None, manifest: Manifest) -> str:
    """The card of the release, with its address."""
    readme = card.with_address(lint.read_card(folder), repo_id, tag)
    if faults := lint.lint(folder, readme):
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise PublishError(f"the dataset folder fails its check: {faults[0]}{more}")
    if not manifest.get("fingerprint"):
        check_fingerprint(folder, lint.fingerprint_in(folder))
    return readme


def _note(folder: Path, edited: Iterable[str]) -> str:
    """What the user should know of a release: texts of theirs, and what the licence asks for."""
    published = json.loads((folder / "provenance/manifest.json").read_text("utf-8"))
    changed = [f"{name} was changed since the build." for name in edited]
    return " ".join([*changed, *card.licence_warnings(published["folder"])]).replace("`", "")


def _check_visibility(hub: Hub, state: RepoState, public: bool, gated: bool) -> None:
    if state.public and not public:
        raise PublishError(
            f"{hub.repo_id} is public already: give --public (with publish.unsafe set), or another"
            " repository"
        )
    if public and not gated:
        _check_history(hub, state)


def _is_released(
    files: Mapping[str, LocalFile], hub: Hub, state: RepoState, tag: str, move_tag: bool
) -> bool:
    """Whether the repository has exactly these files under the tag.

    Raises:
        PublishError: it has others, and the tag is not to be moved.
    """
    if tag not in state.tags:
        return False
    there = hub.tree(state.tags[tag])
    added, deleted = _difference(_with_changelog(files, hub, state, tag, state.tags[tag]), there)
    if (added or deleted) and not move_tag:
        raise PublishError(
            f"tag {tag} of {hub.repo_id} exists with other content ({_some(added + deleted)}): "
            "give a new --tag, or --move-tag to replace it"
        )
    return not (added or deleted)


def _check_folder(folder: Path, manifest: Manifest, allow_simulated: bool) -> None:
    """Whether this folder may be pushed at all.

    Raises:
        PublishError: it holds no pair, or what the simulator made, or not what was built.
    """
    if not (folder / "README.md").is_file():
        raise PublishError(f"no dataset in {folder}: run `mora-data build` to its end first")
    if not counts_of(folder).get(DEFAULT_CONFIG):
        empty = next(
            (stage for stage, c in (manifest.get("counts") or {}).items() if c.get("kept") == 0),
            "select",
        )
        raise PublishError(f"there is no pair to publish: stage {empty} left nothing")
    check_fingerprint(folder, manifest.get("fingerprint"))
    with readable(folder / DEFAULT_CONFIG, AGAIN):
        rows = pq.read_table(folder / DEFAULT_CONFIG, columns=["simulated"], partitioning=None)
    simulated = manifest.get("simulated") or pc.any(rows["simulated"]).as_py()
    if simulated and not allow_simulated and not is_loopback(endpoint()):
        raise PublishError(
            "these rows are simulated (engine scripted), so they are not published: build with a"
            " model, or give --allow-simulated"
        )


def _edited(folder: Path, papers: Mapping[str, str]) -> list[str]:
    """The texts that are other than the build wrote them: people may mend a card.

    Raises:
        PublishError: another file is.
    """
    with readable(folder, AGAIN):
        changed = [name for name, known in papers.items() if sha256_of(folder / name) != known]
    if other := [name for name in changed if name not in lint.OWN_TEXTS]:
        raise PublishError(
            f"{folder / other[0]} is not what the build wrote: build again, with the same command"
        )
    return changed


def _local_files(folder: Path, readme: str) -> dict[str, LocalFile]:
    """Path in the repository -> file, in a fixed order."""
    patterns = ("*/*.parquet", "provenance/*", "report/*.png", *lint.OWN_TEXTS)
    paths = sorted(p for pattern in patterns for p in folder.glob(pattern))
    return {
        p.relative_to(folder).as_posix(): local_file(check_inside(folder, p)) for p in paths
    } | {"README.md": local_file(readme.encode())}


def _with_changelog(
    files: Mapping[str, LocalFile], hub: Hub, state: RepoState, tag: str | None, start: str | None
) -> dict[str, LocalFile]:
    """The files and CHANGELOG.md, which says what differs from the last tag before `start`; without
    a tag none."""
    if tag is None:
        return dict(files)
    tagged = {commit: name for name, commit in sorted(state.tags.items()) if name != tag}
    found = next((c for c in hub.history(start) if c in tagged), None) if start and tagged else None
    tree = hub.tree(found) if found else {}
    added, deleted = _difference(files, tree)
    touched = {p.split("/")[0] for p in [*added, *deleted] if p.endswith(".parquet")}

    def parquet(paths: Iterable[str]) -> list[str]:
        return [p for p in paths if p.endswith(".parquet") and p.split("/")[0] in touched]

    with tempfile.TemporaryDirectory(prefix="mora-diff-") as tmp:

        def earlier(path: str) -> Path:
            return hub.fetch(path, found or "", Path(tmp))

        before = [earlier(p) for p in parquet(tree) if _OWNED.fullmatch(p)]
        after = [f for p in parquet(files) if isinstance(f := files[p].source, Path)]
        older = earlier("CHANGELOG.md").read_text("utf-8") if "CHANGELOG.md" in tree else ""
        deltas = {
            name: delta_of(
                *([p for p in side if p.parent.name == name] for side in (before, after))
            )
            for name in sorted(touched, key=lambda n: (n != DEFAULT_CONFIG, n))
        }
    text = changelog(tag, tagged[found] if found else None, deltas, older)
    return {**files, "CHANGELOG.md": local_file(text.encode())}


def _check_history(hub: Hub, state: RepoState) -> None:
    """A repository with an unscreened release in its past must not become public: the past would
    too."""
    if state.head is None or state.public:
        return
    for commit in hub.history(state.head):
        tree = hub.tree(commit)
        if not any(_OWNED.fullmatch(path) for path in tree):
            continue
        name, published = "provenance/manifest.json", {}
        if name in tree:
            with tempfile.TemporaryDirectory(prefix="mora-past-") as tmp:
                published = json.loads(hub.fetch(name, commit, Path(tmp)).read_text("utf-8"))
        if not (published.get("folder") or {}).get("unsafe"):
            raise PublishError(
                f"{hub.repo_id} holds an earlier release whose unsafe text was kept (commit"
                f" {commit[:8]}), which would become public with it: give another repository, or"
                " publish.unsafe=gate"
            )


def _difference(
    files: Mapping[str, LocalFile], remote: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """Files to add, and files of ours to delete. `remote` gives each path its sha256 (LFS) or git
    hash."""
    added = [path for path, f in files.items() if remote.get(path) not in (f.sha256, f.git_oid)]
    return added, sorted(path for path in remote if path not in files and _OWNED.fullmatch(path))


def _some(paths: list[str]) -> str:
    return ", ".join(paths[:3]) + (f" and {len(paths) - 3} more files" if len(paths) > 3 else "")
