"""File systems by URL, through fsspec; what they raise, in one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import ExtraMissing, RunFolderError, SettingsError


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the folder's path in it.

    Raises:
        ExtraMissing: the package for this kind of URL is not installed.
        SettingsError: not a URL of a folder.
    """
    import fsspec

    try:
        fs, root = fsspec.url_to_fs(
            url, **({"auto_mkdir": True} if url.startswith("file://") else {})
        )
    except ImportError as e:
        raise ExtraMissing(
            f"{url} needs another package ({e}): pip install it, as s3fs for s3:// or gcsfs for"
            " gs://"
        ) from e
    except (ValueError, OSError) as e:
        why = " ".join(str(e).split())[:150]
        raise SettingsError(
            f"{url} is no address of a folder ({why}): write it as s3://bucket/runs/a"
        ) from e
    return fs, str(root).rstrip("/")


@contextlib.contextmanager
def told(what: str, url: str, path: Path) -> Iterator[None]:
    """Around calls of a file system; `what` they are for, `path` is the working copy.

    Raises:
        RunFolderError: one of them failed.
    """
    try:
        yield
    except RunFolderError:
        raise
    except Exception as e:  # every file system has errors of its own
        why = f"{type(e).__name__}: {' '.join(str(e).split())[:150]}"
        raise RunFolderError(
            f"can't {what} {url} ({why}): see to its address and your rights there; what was"
            f" answered is kept in {path}"
        ) from e
