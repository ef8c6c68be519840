"""Does a rewrite keep the subject? By the cosine of static embeddings (model2vec, an optional
extra): numpy alone, no GPU.

    alike = cosine("org/static-model")     # or a folder
    alike("How do I dry herbs?", "Which herbs keep well when dried, and which spoil?")
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from ..errors import SettingsError


def cosine(name: str) -> Callable[[str, str], float]:
    """The cosine of two texts' embeddings, in [-1, 1]; 0 where a text has none.

    Raises:
        SettingsError: the extra is missing, or the model can't be loaded.
    """
    try:
        from model2vec import StaticModel
    except ImportError as e:
        raise SettingsError(
            "fuse.embedding needs model2vec: pip install 'mora-data[embedding]'"
        ) from e
    try:
        model = StaticModel.from_pretrained(name)
    except Exception as e:  # the Hub's errors, those of files and those of their contents
        raise SettingsError(
            f"can't load fuse.embedding {name!r}: {' '.join(str(e).split())[:200]}"
        ) from e

    def alike(x: str, y: str) -> float:
        a, b = model.encode([x, y])
        size = float((a @ a) ** 0.5 * (b @ b) ** 0.5)
        return float(a @ b) / size if size > 0 else 0.0

    return alike


def folder_hash(folder: Path) -> str:
    """16 hex digits over the names and bytes of a model's files."""
    content = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        content.update(path.relative_to(folder).as_posix().encode() + b"\0")
        with path.open("rb") as f:
            while block := f.read(1 << 20):
                content.update(block)
    return content.hexdigest()[:16]
