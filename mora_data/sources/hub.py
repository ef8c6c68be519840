"""Fetches a dataset's files from the Hub at a pinned revision; from then on they are local files.

Honours HF_ENDPOINT, HF_HOME and the token store of huggingface_hub, which reads them when it is
first imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from ..errors import SourceError
from ..settings import SourceSettings
from .read import SUFFIXES, DataFile

_WAYS_ON = "give --data PATH (files you have) or --sample (bundled rows)"


def fetch(settings: SourceSettings, patterns: Sequence[str]) -> tuple[list[DataFile], str]:
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
        return _download(name, revision, patterns)
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
    dataset: str, revision: str | None, patterns: Sequence[str]
) -> tuple[list[DataFile], str]:
    from huggingface_hub import HfApi, hf_hub_download

    info = HfApi().dataset_info(dataset, revision=revision)
    commit = info.sha or revision or "main"
    there = [s.rfilename for s in info.siblings or []]
    wanted = sorted(f for f in there if _matches(f, patterns))
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
    return (
        any(fnmatch(name, p) for p in patterns)
        if patterns
        else name.lower().removesuffix(".gz").endswith(SUFFIXES)
    )
