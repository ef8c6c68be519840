"""Memory that is used once and then given back, so that a run's peak is that of its largest
step."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h


def give_back() -> None:
    """Between two phases: what the first one needed goes back to the system."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def choose_malloc() -> None:
    """Before pyarrow is imported: its Parquet writer and kernels take the system's malloc, too (22
    MB after one partition).

    `pa.set_memory_pool` reaches what Python allocates; the C++ side reads the environment, once.
    """
    if "pyarrow" not in sys.modules:
        os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")


class _Hidden:
    """An import finder that finds no pandas."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name)


@functools.cache
def lean_arrow() -> None:
    """Before pyarrow's first use: its arrays come from a malloc that gives memory back, and its
    first one without pandas.

    Its own pool keeps 60 to 90 MB after a few partitions; pandas would be imported for nothing (0.3
    s, 40 MB), and `to_pandas` still finds it later.
    """
    choose_malloc()
    import pyarrow as pa

    # only glibc has it; columns of text would raise its thresholds
    with contextlib.suppress(OSError, AttributeError):
        for option, value in (
            (M_MMAP_THRESHOLD, 256 << 10),
            (M_TRIM_THRESHOLD, 1 << 20),
            (M_ARENA_MAX, 1),
        ):
            ctypes.CDLL(None).mallopt(option, value)
    pa.set_memory_pool(pa.system_memory_pool())
    if "pandas" not in sys.modules:
        sys.meta_path.insert(0, _Hidden)
        try:
            pa.array([])
        finally:
            sys.meta_path.remove(_Hidden)
