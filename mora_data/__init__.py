"""mora-data: from a preference dataset to max-margin, multi-objective preference pairs.

from mora_data import MoraPairs, build, load_run
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import Run, build, load_run, preview
    from .mora_pairs import MoraPairs

__version__ = "0.1.0"
__all__ = ["MoraPairs", "Run", "__version__", "build", "load_run", "preview"]

_HOMES = {"MoraPairs": "mora_pairs"} | dict.fromkeys(("Run", "build", "load_run", "preview"), "api")


def __getattr__(name: str) -> Any:
    """The public names, imported when first used: `import mora_data` stays light."""
    if name not in _HOMES:
        raise AttributeError(
            f"module 'mora_data' has no attribute {name!r}; it has {', '.join(__all__)}"
        )
    import importlib

    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
