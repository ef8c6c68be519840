"""Fixtures that several tests share."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fuzzing import fuzzing, pytest_terminal_summary  # noqa: F401
from support.recipe_cases import Recipes

# One thread for linear algebra, here and in every process that is started: the arrays are small,
# and threads that wait for a core that another process has take up to six times the CPU.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # read when numpy and torch are imported
    os.environ.setdefault(name, "1")

OURS = ("HF_", "MORA_", "OPENAI_")  # variables that this package and its clients read


@pytest.fixture(scope="session", autouse=True)
def no_cached_benchmarks(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the user's cache holds must not show in a test."""
    os.environ["MORA_DATA_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def no_pictures() -> None:
    """Drawing the card's figures takes half a second a build: tests/unit/test_png.py alone does
    it."""
    sys.modules["resvg_py"] = None  # type: ignore[assignment]


@pytest.fixture(scope="module", autouse=True)
def only_new_garbage() -> None:
    """A build collects garbage between its phases: an eighth of a second each time, where it looks
    through all modules and tests, too."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def no_variable_left_behind() -> Iterator[None]:
    """What a file's tests leave in the environment, the next file's may trip over: then their order
    matters."""
    before = {k: v for k, v in os.environ.items() if k.startswith(OURS)}
    yield
    assert {k: v for k, v in os.environ.items() if k.startswith(OURS)} == before


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real rows: MORA_TEST_DATA, else ../shared/data beside the checkout; without them the test is
    skipped."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    found = Path(os.environ.get("MORA_TEST_DATA", beside))
    if not found.is_dir():
        pytest.skip(
            f"no real rows at {found}: set MORA_TEST_DATA to the folder that holds hh-rlhf/"
        )
    return found


@pytest.fixture(scope="session")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recipes]:
    """One process that runs the training scripts of all tests, one after the other."""
    with (tmp_path_factory.mktemp("recipes") / "stderr").open("w") as errors:
        process = Recipes(errors)
        yield process
        process.close()
