"""Any file of a run folder cut, empty, gone, changed by a bit, unreadable: each command ends with
one line, or gives what it gave before; a build mends what it can, without a request."""

from __future__ import annotations

import json
import random
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import damage
from support.damage import Case, Outcome
from support.fuzzing import FUZZ_SEED as SEED
from support.fuzzing import Fuzzing
from support.hub_standin import make_server


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Outcome]]]:
    """A finished run and what each command gives on it; pushes go to a stand-in for the Hub."""
    where = tmp_path_factory.mktemp("clean")
    server = make_server(where / "hub", token="T")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as env:
        env.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
        env.setenv("HF_TOKEN", "T")
        yield where / "run", damage.make(where / "run")
    server.shutdown()
    thread.join()
    server.server_close()


def check(clean: tuple[Path, dict[str, Outcome]], cases: list[Case]) -> None:
    wrong = [
        (case.name, case.damage.__name__, case.seed, *fault)
        for case in cases
        for fault in damage.faults(clean[0], case, clean[1])
    ]
    assert not wrong, wrong


def test_some_damage(clean: tuple[Path, dict[str, Outcome]]) -> None:
    check(clean, damage.cases(clean[0], 2, SEED))


def test_a_build_mends_its_folder_and_names_the_files(
    clean: tuple[Path, dict[str, Outcome]], tmp_path: Path
) -> None:
    run, rng = tmp_path / "run", random.Random(SEED)
    shutil.copytree(clean[0], run)
    damage.flipped(run / "parts/00000/prompts.jsonl", rng)
    damage.flipped(run / "parts/00000/pairs.parquet", rng)
    damage.missing(run / "parts/00001/rollouts.parquet", rng)
    for name in ("manifest.json", "reference.json", "spending.json", "mine.json"):
        damage.cut(run / name, rng)
    if SEED % 2:  # then the flipped prompts are told by mine.json, else by the source
        shutil.copy(clean[0] / "mine.json", run / "mine.json")
    done = damage.run([*damage.BUILD, "--out", str(run)])
    said = done.said.splitlines()
    assert done.code == 0 and json.loads(done.gave)["requests"] == 0, done
    assert damage.hash_of(run / "dataset", "*/*.parquet") == clean[1]["build"].gave
    assert sum("parts/00000/" in line and "damaged" in line for line in said) >= 1
    assert any("parts/00001/rollouts.parquet can't be read" in line for line in said), said


@pytest.mark.slow
def test_every_file_is_damaged_once(clean: tuple[Path, dict[str, Outcome]]) -> None:
    check(clean, damage.cases(clean[0], len(damage.names(clean[0])), SEED))


@pytest.mark.fuzz
def test_damage_for_minutes(clean: tuple[Path, dict[str, Outcome]], fuzzing: Fuzzing) -> None:
    cases = iter(damage.cases(clean[0], 5000, SEED))

    def one(seed: int) -> int:
        check(clean, [next(cases)])
        return 1

    fuzzing("files", one)
