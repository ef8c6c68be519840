"""Finds the files shipped beside the code: templates/, builders/, cards/, train_recipes/.

A wheel carries them inside the package; an editable install or a checkout has them in the folder
above it.
"""

from __future__ import annotations

import os
from pathlib import Path

from .errors import SettingsError

CACHE_ENV = "MORA_DATA_CACHE"
_PACKAGE = Path(__file__).resolve().parent


def folder(name: str) -> Path:
    """The shipped folder `name`.

    Raises:
        SettingsError: the installation lacks it.
    """
    for parent in (_PACKAGE, _PACKAGE.parent):
        found = parent / name
        if found.is_dir():
            return found
    raise SettingsError(
        f"the installation lacks its {name}/ folder (looked in {_PACKAGE.name}/ and beside it):"
        " reinstall"
    )


def names(name: str, pattern: str) -> list[str]:
    """Stems of the shipped files in folder `name` that match `pattern`, sorted."""
    return sorted(p.stem for p in folder(name).glob(pattern))


def cache() -> Path:
    """The user's cache: $MORA_DATA_CACHE, else mora-data in the system's folder for caches."""
    base = os.environ.get(CACHE_ENV)
    return (
        Path(base)
        if base
        else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mora-data"
    )
