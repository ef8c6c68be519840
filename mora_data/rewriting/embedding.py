"""Does a rewrite keep the subject? By the cosine of static embeddings (model2vec, an optional
extra): numpy alone, no GPU.

    alike = cosine("org/static-model")     # or a folder
    alike("How do I dry herbs?", "Which herbs keep well when dried, and which spoil?")
"""

from __future__ import annotations

from collections.abc import Callable

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
