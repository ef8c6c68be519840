"""Which files are read, and their rows: at a path, in a folder, behind a URL, or on the Hub at a
pinned revision. Streaming, in the order of the file names; containers.py reads the files.

    found = find([Path("data/")], patterns=[], split="train")
    for number, file, row in rows(found):
        ...     # row: a dict, or the DropRow that says why not

A damaged line is one dropped row with a reason; a file that can't be read at all is a SourceError.
HF_ENDPOINT, HF_HOME and the token store of huggingface_hub are honoured; it reads them when it is
first imported.
"""

from __future__ import annotations

import glob
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from .. import resources
from ..errors import DropRow, MoraError, SourceError
from ..settings import SourceSettings
from ..text import digest, one_line
from ..types import Row
from .containers import (
    ARCHIVES,
    KIND_OF,
    PACKED,
    SUFFIXES,
    DataFile,
    members_of,
    rows_in,
    suffix_of,
)

_BUFFER = 1 << 18
_WAYS_ON = "give --data PATH (files you have) or --sample (bundled rows)"
_PAPERS = re.compile(
    r"(?i)(?:readme|licen[cs]e|notice|changelog|citation)\b.*"
    r"|(?:dataset_infos?|dataset_dict|state|config|metadata|manifest)\.json|cache-.*\.arrow|_.*"
)
_SPLIT_OF = {
    **dict.fromkeys("train training".split(), "train"),
    **dict.fromkeys("valid validation val dev eval".split(), "validation"),
    **dict.fromkeys("test testing heldout".split(), "test"),
}


class SourceRow(NamedTuple):
    """A row's number over all files, the file it came from, and the row or why it can't be read."""

    number: int
    file: str
    row: Row | DropRow


def find(paths: Sequence[Path], patterns: Sequence[str], split: str = "") -> list[DataFile]:
    """The data files at `paths`, sorted by name.

    A folder is searched with its sub-folders, and so is an archive. Where files in it match the
    source's `patterns`, only these are taken, so that a copy of the upstream repository gives the
    split asked for; else those of `split`, where names say splits. Hidden files, papers and notes
    are passed over.

    Raises:
        SourceError: nothing there, nothing of a known type, or nothing of the split.
    """
    found: list[DataFile] = []
    for path in paths:
        if path.is_dir():
            files = _in_folder(path)
        elif path.is_file():
            files = _at(path)
        else:
            raise SourceError(f"no file or folder at {path}: correct the path, --data or --source")
        if len(files) > 1 or path.is_dir():
            matching = [f for f in files if any(fnmatch(f.name, p) for p in patterns)]
            files = matching or _of_split(files, split, path)
        found += files
    return sorted(found, key=lambda f: f.name)


def sha256(files: Iterable[DataFile]) -> str:
    """Hash of the files' bytes in reading order: a single file's own sha256, else that of the
    joined digests.

    Raises:
        SourceError: a file can't be read.
    """
    digests = [_file_sha256(file) for file in files]
    return (
        digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    )


def rows(files: Iterable[DataFile], split: str = "train") -> Iterator[SourceRow]:
    """All rows of the files, numbered from 0 across them; of JSON that holds several splits, those
    of `split`.

    Raises:
        SourceError: a file can't be read, or breaks off.
    """
    number = 0
    for file in files:
        try:
            for row in rows_in(file, split):
                yield SourceRow(number, file.name, row)
                number += 1
        except MoraError:
            raise
        except Exception as e:  # on damaged bytes each reader has errors of its own
            why = (isinstance(e, OSError) and e.strerror) or one_line(e)
            why = why or "it does not fit into memory"
            raise SourceError(
                f"can't read {file.path} beyond row {number}: {why}; get the file anew"
            ) from e


def left_out(paths: Sequence[Path], files: Sequence[DataFile]) -> list[str]:
    """The names of the data files in folders and archives that `find` passed over."""
    read = {(f.path, f.member) for f in files}
    there = (f for path in paths for f in (_in_folder(path) if path.is_dir() else _at(path)))
    return sorted(f.name for f in there if (f.path, f.member) not in read)


def names_data(source: str) -> bool:
    """Whether a source's name is that of a file or folder of rows, and of no builder."""
    if suffix_of(source) in (".yaml", ".yml") or source in resources.names("builders", "*.yaml"):
        return False
    path = Path(source).expanduser()
    return suffix_of(source) in SUFFIXES or "://" in source or path.is_dir() or path.is_file()


def local_paths(given: Iterable[str | Path]) -> list[Path]:
    """Paths in place of what a user gives: `~` and globs are expanded, and what a URL names
    (https://, s3://, hf://datasets/ORG/NAME) is downloaded into the cache.

    Raises:
        SourceError: nothing matches, or a URL can't be read.
    """
    found: list[Path] = []
    for text in map(str, given):
        path = Path(text).expanduser()
        if "://" in text:
            found.append(_downloaded(text))
        elif glob.has_magic(text) and not path.exists():
            matched = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207
            if not matched:
                raise SourceError(f"no file matches {text}: correct the pattern")
            found += map(Path, matched)
        else:
            found.append(path)
    return found


def _downloaded(url: str) -> Path:
    """A copy of the file or folder behind a URL; of a folder, its data files."""
    from ..run.storage import filesystem

    fs, root = filesystem(url)
    folder = resources.cache() / "data" / digest(url)
    try:
        if "://" in root or not fs.isdir(root):
            name = re.sub(r"[^A-Za-z0-9._-]", "_", re.split(r"[?#]", root)[0].rsplit("/", 1)[-1])
            target = folder / (name or "file")
            _fetch(fs, root, target)
            return target
        names = [n for n in fs.find(root) if _is_data(n)]
        for name in names:
            _fetch(fs, name, folder / name.removeprefix(root).lstrip("/"))
        return folder
    except Exception as e:  # every file system has errors of its own
        raise SourceError(
            f"can't read {url} ({type(e).__name__}: {one_line(e, 150)}): check the address and your"
            " rights there, or download it and give --data PATH"
        ) from e


def _fetch(fs: object, remote: str, target: Path) -> None:
    if ".." in target.parts:
        raise ValueError(f"{remote} leads out of its folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.part")
    fs.get_file(remote, str(partial))  # type: ignore[attr-defined]
    partial.replace(target)


def _in_folder(folder: Path) -> list[DataFile]:
    names = [p for p in folder.rglob("*") if p.is_file()]
    data = [
        DataFile(p, p.relative_to(folder).as_posix())
        for p in names
        if _is_data(p.relative_to(folder).as_posix())
    ]
    if not data:
        raise SourceError(
            f"no data file in {folder}: --data takes {', '.join(SUFFIXES)} files, each also packed"
            f" ({' '.join(PACKED)})"
        )
    rows = [f for f in data if KIND_OF.get(suffix_of(f.name)) != "text"]  # beside data, notes
    return rows or data


def _is_data(name: str) -> bool:
    plain = name.rsplit("/", 1)[-1]
    return (
        suffix_of(name) in SUFFIXES and not f"/{name}".count("/.") and not _PAPERS.fullmatch(plain)
    )


def _at(path: Path) -> list[DataFile]:
    """A file, or the members of the archive that it is."""
    file = DataFile(path, f"{path.absolute().parent.name}/{path.name}")
    try:
        return members_of(file)
    except MoraError:
        raise
    except Exception as e:
        if suffix_of(path.name) in ARCHIVES:
            raise SourceError(f"can't read {path}: {one_line(e)}; get the file anew") from e
        return [file]  # its reader says what is wrong with it


def split_of(name: str) -> str | None:
    """The split that a file's name says, else its folder's."""
    for part in reversed(name.lower().split("/")):
        found = [_SPLIT_OF[t] for t in re.split("[^a-z]+", part) if t in _SPLIT_OF]
        if found:
            return found[-1]
    return None


def _of_split(files: list[DataFile], split: str, where: Path) -> list[DataFile]:
    """Of files whose names say splits, those of the one that is asked for: a held-out question is
    never mined in passing."""
    splits = {f.name: split_of(f.name) for f in files}
    if not split or not any(splits.values()):
        return files
    exact = [f for f in files if re.search(rf"(?<![a-z]){re.escape(split)}(?![a-z_])", f.name)]
    wanted = exact or [f for f in files if splits[f.name] == (split_of(split) or split)]
    wanted = wanted or [f for f in files if splits[f.name] is None]
    if not wanted:
        there = ", ".join(sorted({s for s in splits.values() if s}))
        raise SourceError(
            f"{where} has no file of the split {split!r}, only of {there}: give --set"
            f" source.split={there.split(', ')[0]}"
        )
    return wanted


def _file_sha256(file: DataFile) -> str:
    hashed = hashlib.sha256(file.member.encode())
    try:
        with file.path.open("rb") as stream:
            while block := stream.read(_BUFFER):
                hashed.update(block)
    except OSError as e:
        raise SourceError(f"can't read {file.path}: {e.strerror}") from e
    return hashed.hexdigest()


def fetch_dataset(settings: SourceSettings, patterns: Sequence[str]) -> tuple[list[DataFile], str]:
    """The files that match `patterns`, sorted by name, and the full commit they are from.

    Raises:
        SourceError: no dataset id, Hub unreachable, no such dataset or revision, no matching file.
    """
    name, revision = settings.dataset, settings.revision
    if name is None:
        raise SourceError(
            f"source {settings.kind} names no Hub dataset: {_WAYS_ON}, or set source.dataset"
        )
    from huggingface_hub import errors

    unreachable = errors.HTTPError  # type: ignore[attr-defined]  # of httpx or httpx2, whichever the Hub's client uses
    try:
        return _download(name, revision, patterns, settings.split)
    except errors.GatedRepoError as e:
        raise SourceError(
            f"Hub dataset {name} is gated: accept its terms and log in, or {_WAYS_ON}"
        ) from e
    except errors.RevisionNotFoundError as e:
        raise SourceError(
            f"Hub dataset {name} lacks revision {revision!r}: set source.revision, or {_WAYS_ON}"
        ) from e
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as e:
        raise SourceError(
            f"no Hub dataset {name!r}, or it is private: check source.dataset, or {_WAYS_ON}"
        ) from e
    except (OSError, unreachable) as e:
        why = type(e).__name__
        raise SourceError(
            f"can't fetch {name} from the Hub ({why}): try again later, or {_WAYS_ON}"
        ) from e


def _download(
    dataset: str, revision: str | None, patterns: Sequence[str], split: str
) -> tuple[list[DataFile], str]:
    from huggingface_hub import HfApi, hf_hub_download

    info = HfApi().dataset_info(dataset, revision=revision)
    commit = info.sha or revision or "main"
    there = [s.rfilename for s in info.siblings or []]
    wanted = sorted(f for f in there if _matches(f, patterns))
    if not patterns:
        files = [DataFile(Path(f), f) for f in wanted]
        wanted = [f.name for f in _of_split(files, split, Path(dataset))]
    if not wanted:
        like = ", ".join(patterns) or "a data file"
        raise SourceError(
            f"Hub dataset {dataset} at {commit[:12]} has no file like {like}: "
            f"check source.config and source.split, or {_WAYS_ON}"
        )
    paths = (
        hf_hub_download(dataset, name, revision=commit, repo_type="dataset") for name in wanted
    )
    return [DataFile(Path(path), name) for path, name in zip(paths, wanted, strict=True)], commit


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """With no patterns, every data file matches."""
    return any(fnmatch(name, p) for p in patterns) if patterns else _is_data(name)
