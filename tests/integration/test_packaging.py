"""A wheel, a source archive and a checkout all find their templates, builders, cards and recipes,
from any folder."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROBE = """
import sys
import mora_data
from mora_data import build, resources
from mora_data.cli.recipes import list_recipes
print(mora_data.__file__)
for name, pattern in (("templates", "judge/*.j2"), ("builders", "*.yaml"), ("cards", "*.j2"), ("train_recipes", "*.py")):
    assert resources.names(name, pattern), name
assert list_recipes()
run = build("hh-rlhf", sample=True, out="run", quiet=True, overrides={"mine.limit": 4, "presample.n": [8], "rollout.n": 8},
            until="score")
assert run.counts["score"]["kept"] > 0
"""  # noqa: E501


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The unpacked wheel and source archive, each as a folder to import from."""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(out)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,), (archive,) = out.glob("*.whl"), out.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as z:
        z.extractall(out / "wheel")
    with tarfile.open(archive) as t:
        t.extractall(out / "sdist", filter="data")
    return {"wheel": out / "wheel", "sdist": next((out / "sdist").iterdir()), "checkout": ROOT}


@pytest.mark.parametrize("how", ["wheel", "sdist", "checkout"])
def test_finds_its_files(built: dict[str, Path], how: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(built[how]), "PATH": "/usr/bin", "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.split()[0]).is_relative_to(built[how])


def test_archives_hold_nothing_they_should_not(built: dict[str, Path]) -> None:
    names = [
        p.relative_to(built["wheel"]).as_posix() for p in built["wheel"].rglob("*") if p.is_file()
    ]
    outside, made = ("tests/", "benchmarks/", "docs/"), (".log", ".pyc", ".safetensors")
    assert not [n for n in names if n.startswith(outside) or n.endswith(made)]
    assert (built["sdist"] / "Makefile").is_file() and (built["sdist"] / "tests").is_dir()


def test_the_wheel_holds_every_file_of_the_package(built: dict[str, Path]) -> None:
    """Prices, styles, templates, personas, sample rows, recipe configs: whatever lies beside the
    code."""
    folders = {"mora_data": "mora_data"} | {
        n: f"mora_data/{n}" for n in ("templates", "builders", "cards", "train_recipes")
    }
    wanted = [
        Path(to) / p.relative_to(ROOT / name)
        for name, to in folders.items()
        for p in (ROOT / name).rglob("*")
        if p.is_file() and "__pycache__" not in p.parts and not p.name.startswith(".")
    ]
    assert len(wanted) > 200 and {"prices.yaml", "style.css", "cautious.yaml"} <= {
        p.name for p in wanted
    }
    assert [str(p) for p in wanted if not (built["wheel"] / p).is_file()] == []
