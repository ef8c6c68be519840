"""The three walks of docs/tutorials, command by command as they are printed, against a fake
endpoint and a stand-in Hub: that every command ends well, and leaves what the next one needs.

Changed on the way: addresses and models become the fake's; `--limit 5000` becomes 20, and rows are
those bundled with the package (`--sample`) where the page takes a dataset from the Hub; `view`
writes its pages (`--freeze`) in place of serving them. Recipes run in tests/integration/
test_recipe_smokes.py, so here only `smoke` does, for two steps.
"""

from __future__ import annotations

import os
import re
import runpy
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import fake_openai
from support.fake_openai import FakeOpenAI
from support.hub_standin import make_server

from mora_data import build, load_run
from mora_data.cli import main

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "tutorials"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
Walk = Callable[..., None]


def blocks(page: str, language: str) -> list[str]:
    """The blocks of a page, or of a text that is given whole."""
    text = page if "\n" in page else (PAGES / page).read_text("utf-8")
    found = _BLOCK.findall(text)
    return [text for name, text in found if name == language]


def commands(page: str) -> list[list[str]]:
    """The arguments of every `mora-data ...` of a page."""
    lines = [line for text in blocks(page, "console") for line in text.splitlines()]
    assert lines and all(line.startswith("mora-data ") for line in lines)
    return [shlex.split(line)[1:] for line in lines]


@pytest.fixture
def walk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Walk:
    """Runs commands in a folder of their own; each must end with 0."""
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(fake_openai, "grade", fake_openai.steady_grade)

    def run(page: str, given: Callable[[list[str]], list[str]]) -> None:
        for number, words in enumerate(commands(page)):
            if words[0] == "view":
                words = [*words, "--freeze", f"pages-{number}"]
            words = given(words)
            if words[0] == "push":  # where the Hub is, its client asks once a process
                command = [sys.executable, "-m", "mora_data", *words]
                done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
                code, out, err = done.returncode, done.stdout, done.stderr
            else:
                code = main(words)
                out, err = capsys.readouterr()
            assert code == 0, f"mora-data {shlex.join(words)}\n{out[-2000:]}\n{err[-2000:]}"

    return run


def test_on_a_laptop(walk: Walk, tmp_path: Path) -> None:
    prompts = next(t for t in blocks("laptop.md", "text") if t.startswith('{"prompt"'))
    (tmp_path / "prompts.jsonl").write_text(prompts, "utf-8")
    with FakeOpenAI() as server:
        walk("laptop.md", lambda words: [w.replace(OLLAMA, server.base_url) for w in words])
    assert (tmp_path / "pages-3" / "index.html").is_file() or list(tmp_path.glob("pages-*"))


def test_thousands_of_pairs(
    walk: Walk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: str
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "a-key-of-twenty-letters")
    (settings,) = blocks("server.md", "yaml")
    hosts = {"org/policy-8b": "http://127.0.0.1:8000/v1", "judge-70b": "https://api.example.com/v1"}
    with (
        FakeOpenAI(models=("org/policy-8b",)) as policy,
        FakeOpenAI(models=("judge-70b",)) as judge,
    ):
        for fake in (policy, judge):
            settings = settings.replace(hosts[fake.models[0]], fake.base_url)
        copied = tmp_path / "mine" / "pku-saferlhf.yaml"

        def here(words: list[str]) -> list[str]:
            if words[0] == "check":
                fewer = "presample: {n: [2, 4]}\nrollout: {n: 4}\n"
                copied.write_text(copied.read_text("utf-8") + settings + fewer, "utf-8")
            words = ["8" if w in ("5000", "300") else w for w in words]
            if words[0] == "push":
                return [*words, "--allow-simulated"]
            return [*words, "--sample"] if words[0] in ("build", "audit") else words

        walk("server.md", here)
    assert policy.repeated() == judge.repeated() == 0


@pytest.mark.slow
def test_from_a_dataset_to_a_trained_model(walk: Walk, tmp_path: Path) -> None:
    build("pku-saferlhf", sample=True, out=tmp_path / "runs" / "demo", quiet=True)
    for code in blocks("dataset.md", "python"):
        (tmp_path / "page.py").write_text(code, "utf-8")
        runpy.run_path(str(tmp_path / "page.py"))

    def here(words: list[str]) -> list[str]:
        if "org/policy-8b" in " ".join(words) or words[1:3] == ["run", "sequential"]:
            return ["recipe", "list"]  # wants a GPU
        return [*words[:3], "max_steps=2", *words[3:]] if words[0] == "recipe" else words

    walk("dataset.md", here)
    assert (tmp_path / "runs" / "dpo-smoke" / "metrics.json").is_file()


@pytest.mark.slow
def test_from_a_csv_to_a_trained_model(walk: Walk, tmp_path: Path) -> None:
    """The block of the README: 30 prompts of one's own, no model server."""
    (page,) = (
        block
        for block in blocks((ROOT / "README.md").read_text("utf-8"), "console")
        if "--source prompts.csv" in block
    )
    things = "basil bread cats chess clocks cheese glass honey ice ink jam kites knots lamps maps"
    asked = [
        q for t in things.split() for q in (f"How are {t} made?", f"Who studies {t}, and why?")
    ]
    rows = "".join(f'{i},"{q}"\n' for i, q in enumerate(asked))
    (tmp_path / "prompts.csv").write_text(f"id,question\n{rows}", "utf-8")
    walk(
        f"```console\n{page}```\n",
        lambda words: [*words[:3], "max_steps=2", *words[3:]] if words[0] == "recipe" else words,
    )
    assert len(load_run("runs/mine").pairs()) >= 20
    assert (tmp_path / "runs" / "dpo-mine" / "metrics.json").is_file()


OLLAMA = "http://127.0.0.1:11434/v1"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = make_server(tmp_path / "hub", token="T")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name, value in {"ENDPOINT": server.url, "TOKEN": "T", "HUB_DISABLE_XET": "1"}.items():
        monkeypatch.setenv(f"HF_{name}", value)
    yield server.url
    server.shutdown()
    server.server_close()
