"""The documentation is executed: commands parse, settings exist, links resolve, Python runs, output
shown is output had.

Code blocks by language: `console` (commands), `yaml` (settings, or the file named in the first
line), `python` (run in order in one folder, or the module named in the first line), `jinja` (the
template named in the first line), `text` (output).
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import pytest
import yaml
from pydantic import BaseModel
from support import pages
from support.notebook import executed

import mora_data
from benchmarks import reward_space
from mora_data import build, cli
from mora_data.cli.commands import _settings as command_settings
from mora_data.cli.recipes import run_command
from mora_data.cli.show import best_pair
from mora_data.engines import NO_ENDPOINT
from mora_data.errors import MoraError
from mora_data.plugins import load as load_plugin
from mora_data.resources import load_template
from mora_data.rewards import REWARDS
from mora_data.rewards.calibration import KINDS
from mora_data.rewards.judge import VARIABLES
from mora_data.rewriting.rewriter import VARIABLES as FUSE
from mora_data.run.cost import load_prices
from mora_data.settings import ROLES, BuildSettings, load_settings, parse_override
from mora_data.types import STAGES

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [
    README,
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
LANGUAGES = {"console", "yaml", "python", "jinja", "text"}
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
_FILE = re.compile(r"^(?:#|\{#) ([\w./-]+\.(?:py|yaml|j2))(, continued)?(?: #\})?$")
_SHIPPED = re.compile(
    r"\b(?:templates|builders|train_recipes|docs|cards|mora_data|tests)/[\w./-]*\w"
)


class Block(NamedTuple):
    """A fenced block; `file` is what its first line names."""

    page: str
    line: int
    language: str
    text: str
    file: str | None

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(*languages: str, page: str | None = None) -> list[Block]:
    found = []
    for path in PAGES:
        text = path.read_text("utf-8")
        for m in _BLOCK.finditer(text):
            named = _FILE.match(m[2].split("\n")[0])
            name = path.relative_to(ROOT).as_posix()
            if m[1] in languages and page in (None, name):
                found.append(
                    Block(
                        name,
                        text.count("\n", 0, m.start()) + 1,
                        m[1],
                        m[2],
                        named[1] if named else None,
                    )
                )
    return found


def documented() -> list[tuple[str, list[str]]]:
    """Every `mora-data ...` with arguments: in console blocks, in inline code and in the builders'
    comments."""
    found = []
    for b in blocks("console"):
        found += [
            (b.where, shlex.split(line, comments=True))
            for line in b.text.splitlines()
            if line.startswith("mora-data ")
        ]
    for path in sorted((ROOT / "builders").glob("*.yaml")):
        for line in path.read_text("utf-8").splitlines():
            if line.startswith("#   mora-data "):
                found.append((path.name, shlex.split(line[1:])))
    return [(where, words[1:]) for where, words in found]


def written(folder: Path, found: list[Block]) -> None:
    """The files that blocks name, into `folder`; `, continued` appends."""
    for b in found:
        assert b.file is not None
        first, _, rest = b.text.partition("\n")
        path = folder / b.file
        path.parent.mkdir(parents=True, exist_ok=True)
        if first.endswith(", continued"):
            path.write_text(path.read_text("utf-8") + "\n\n" + rest, "utf-8")
        else:
            path.write_text(b.text, "utf-8")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No endpoint from outside, no cache outside the test's folder, no module left behind."""
    import datasets

    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name in ("mine", "least", "parts"):
            del sys.modules[name]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the README's demo."""
    out = tmp_path_factory.mktemp("docs") / "runs" / "demo"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
            patch.delenv(name, raising=False)
        build("pku-saferlhf", sample=True, out=out, quiet=True)
    return out


# --- form


def test_every_block_names_a_language_that_is_checked() -> None:
    found = [(p.name, m[1]) for p in PAGES for m in _BLOCK.finditer(p.read_text("utf-8"))]
    assert len(found) > 30
    assert [f for f in found if f[1] not in LANGUAGES] == []


def test_links_and_anchors_resolve() -> None:
    n = 0
    for page in PAGES:
        for target in re.findall(r"\]\(([^)]+)\)", page.read_text("utf-8")):
            name, _, anchor = target.partition("#")
            to = (page.parent / name).resolve() if name else page
            assert to.is_file(), f"{page.name} links to {target}"
            titles = re.findall(r"^#+ (.+)$", to.read_text("utf-8"), re.M)
            assert not anchor or anchor in {
                re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles
            }, target
            n += 1
    assert n >= 10


def test_every_page_is_linked_from_the_readme_and_in_the_site() -> None:
    pages = {p.relative_to(ROOT).as_posix() for p in PAGES if "docs" in p.parts}
    assert set(re.findall(r"\]\((docs/[\w/-]+\.md)", README.read_text("utf-8"))) == pages
    site = (ROOT / "mkdocs.yml").read_text("utf-8")
    assert [p for p in pages if p.removeprefix("docs/") not in site] == []


def test_files_named_exist() -> None:
    made = {b.file for b in blocks("yaml", "jinja", "python") if b.file} | {
        "templates/fuse/NAME.j2"
    }
    named = {(p.name, m.rstrip(".")) for p in PAGES for m in _SHIPPED.findall(p.read_text("utf-8"))}
    named = {(page, m) for page, m in named if m not in made and "NAME" not in m}
    assert len(named) > 15
    assert [n for n in named if not (ROOT / n[1]).exists()] == []


def test_readme_has_the_two_commands_and_the_claim() -> None:
    text = README.read_text("utf-8")
    assert "```console\nmake demo\nmake test\n```" in text
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M)
    named = {
        t for p in PAGES for t in re.findall(r"(?:^|`)make ([\w-]+)", p.read_text("utf-8"), re.M)
    }
    assert {"demo", "test"} <= named <= set(targets)
    claim = (
        "an independent implementation, not by the authors of the paper; thresholds, templates and"
        " defaults are ours"
    )
    assert claim in " ".join(text.split())


# --- commands and settings


def test_commands_parse(capsys: pytest.CaptureFixture[str]) -> None:
    found = documented()
    assert len(found) >= 25
    assert {words[0] for _, words in found} == {
        "audit",
        "build",
        "check",
        "status",
        "push",
        "diff",
        "evaluate",
        "export",
        "preview",
        "recipe",
        "report",
        "resume",
        "source",
        "verify",
        "view",
        "weights",
    }
    for where, words in found:
        try:
            args = cli._parser().parse_args(words)
        except SystemExit:
            pytest.fail(f"{where}: mora-data {shlex.join(words)}: {capsys.readouterr().err}")
        if words[:2] == ["recipe", "run"]:
            run_command(args.name, args.dataset, args.revision, args.config, args.overrides)
        elif words[0] == "build" and not re.search(r"\.(yaml|csv|jsonl)$", args.source[0]):
            command_settings(args)


def test_flags_and_settings_named_in_the_text_exist() -> None:
    text = "\n".join(p.read_text("utf-8") for p in PAGES)
    known = set(re.findall(r"--[\w-]+", inspect.getsource(cli))) | {
        "--set",
        "--strict",
        "--port",
        "--first",  # of a benchmark
        "--help",
    }
    used = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", _BLOCK.sub("", text)))
    assert len(used) > 12 and used <= known, used - known
    for engine, given in re.findall(r"(?:--engine (\S+).*?)?--set (\S+=[^\s`)]+)", text):
        own = {"policy.engine": engine} if engine else {}
        load_settings("auto", own | dict([parse_override(given)]))
    fields = load_settings("pku-saferlhf").model_dump()
    named = re.findall(r"[\[`](\w+)\.(\w+)[\]`]", text)
    settings = [(a, b) for a, b in named if a in fields and isinstance(fields[a], dict)]
    assert len(settings) > 12
    assert [f"{a}.{b}" for a, b in settings if b not in fields[a]] == []


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda b: b.where)
def test_yaml_blocks_are_settings(block: Block, tmp_path: Path) -> None:
    tree = yaml.safe_load(block.text)
    if block.file and "intents/" in block.file:
        assert (
            {"definition", "need", "good", "bad"}
            <= set(tree)
            <= {"definition", "need", "good", "bad", "ask", "asked", "cues", "alone", "premises"}
        )
        return
    if block.file == "prices.yaml":
        (tmp_path / "prices.yaml").write_text(block.text)
        assert (
            load_prices(str(tmp_path / "prices.yaml")).cost({"judge-1": [1_000_000, 0, 0]}) == 0.25
        )
        return
    base = yaml.safe_load((ROOT / "builders" / "pku-saferlhf.yaml").read_text("utf-8"))
    file = tmp_path / "build.yaml"
    file.write_text(
        yaml.safe_dump(tree if tree.keys() & {"source", "sources"} else base | tree), "utf-8"
    )
    settings = load_settings(str(file))
    assert settings.dimensions


def _models_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from _models_in(part)


def all_settings() -> set[str]:
    """Every setting as owner.name (`presample.step`); an endpoint's are those of `role`."""
    found: set[tuple[str, str]] = set()
    todo: list[tuple[str, type[BaseModel]]] = [("", BuildSettings)]
    own = [getattr(load_plugin(REWARDS, kind, "").target, "Settings", None) for kind in REWARDS]
    todo += [("rewards", model) for model in own if model is not None]
    while todo:
        owner, model = todo.pop()
        for name, field in model.model_fields.items():
            if (owner, name) not in found:
                found.add((owner, name))
                section = "role" if name in (*ROLES, "endpoint") else name
                section = "source" if name == "sources" else section
                todo += [(section, inner) for inner in _models_in(field.annotation)]
    return {f"{owner}.{name}".lstrip(".") for owner, name in found}


def settings_in(tree: object, owner: str = "") -> Iterator[str]:
    """The settings, as owner.name, that a piece of YAML gives."""
    if isinstance(tree, list):
        for item in tree:
            yield from settings_in(item, owner)
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield f"{owner}.{key}".lstrip(".")
            below = "role" if key in (*ROLES, "endpoint") else str(key)
            below = "source" if key == "sources" else below
            # between rewards or labels and their settings stands the dimension
            yield from settings_in(value, owner if owner in ("rewards", "labels") else below)
            yield from settings_in(value, below)


def settings_named(text: str) -> set[str]:
    """Settings that a page names: in YAML, whole or inline, or by their dotted path in code."""
    inline = [m[1] for m in re.finditer(r"(?<!`)`([^`\n]+)`(?!`)", text)]
    found = set(inline)  # a bare name is one at the top, as `seed`
    for code in [m[2] for m in _BLOCK.finditer(text) if m[1] == "yaml"] + inline:
        with contextlib.suppress(yaml.YAMLError):
            found |= set(settings_in(yaml.safe_load(code)))
    for path in re.findall(r"[a-z_]+(?:\.[a-z_]+)+", " ".join(inline) + str(documented())):
        owner, name = path.split(".")[-2:]
        found |= {f"{'role' if owner in ROLES else owner}.{name}", path.split(".")[0]}
    return found


def test_every_setting_is_named_on_a_page() -> None:
    pages = [p for p in PAGES if p.name not in ("settings.md", "CHANGELOG.md", "CONTRIBUTING.md")]
    named = set[str]().union(*(settings_named(page.read_text("utf-8")) for page in pages))
    known = all_settings()
    assert len(known) > 140
    assert sorted(known - named) == [], "name these where they belong in docs/, or delete them"


def test_help_shown_is_the_help() -> None:
    for b in blocks("text"):
        if b.text.startswith("usage:"):
            assert b.text == cli._parser().format_help(), b.where


def test_tables_list_what_there_is() -> None:
    stages = re.findall(
        r"^\| `(\w+)` \|", README.read_text("utf-8").split("## The stages")[1], re.M
    )
    assert tuple(stages) == STAGES
    judge, _, calibration = (
        (ROOT / "docs" / "rewards.md").read_text("utf-8").partition("## Calibration")
    )
    judge = judge.partition("## Guards")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", judge, re.M)) == VARIABLES
    rows = re.findall(r"^\| (`[^|]+`) \|", calibration, re.M)
    assert set(re.findall(r"`(\w+)`", " ".join(rows))) == set(KINDS)


def test_error_lines_are_the_code_s() -> None:
    """Each line of the troubleshooting page stands in the code, its placeholders and values
    aside: capitals, numbers, quoted names, what is in brackets, `...`."""
    page = (ROOT / "docs/troubleshooting.md").read_text("utf-8")
    lines = re.findall(r"^\| `([^`]+)` \| .+ \| .+ \|$", page, re.M)
    assert len(lines) == len(re.findall("^\\| `", page, re.M)) >= 60
    known = "\n".join([*_messages(), NO_ENDPOINT])
    value = (
        r"\(.*?(?:\)|$)|\b[A-Z][A-Z_]+\b|\d[\d.%]*|\.\.\.|(?<!\w)'[^']*'|source\.columns\.prompt"
        r"|/models lists"
    )
    for line in lines:
        for piece in re.split(value, line):
            assert piece.strip(" :;,=-") in known, (line, piece)


def _messages() -> Iterator[str]:
    """Every text of the package and the recipes, without what an f-string fills in."""
    for folder in ("mora_data", "train_recipes"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    texts = (v.value for v in node.values if isinstance(v, ast.Constant))
                    yield "\0".join(map(str, texts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


# --- what is run


def test_python_of_readme_and_pages_runs(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(demo.parent, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    found = [b for b in blocks("python") if b.file is None]
    assert len(found) >= 4
    for b in found:
        text = b.text.replace('"org/mora-pairs"', '"runs/demo/dataset"').replace(
            ', revision="v1.0.0"', ""
        )
        names: dict[str, object] = {}
        exec(compile(text, b.where, "exec"), names)  # noqa: S102
        assert any(hasattr(names.get(n), "__len__") for n in ("pairs", "train")), b.where
    assert capsys.readouterr().out


def test_demo_output_in_the_readme_is_the_demo_s(demo: Path) -> None:
    page = README.read_text("utf-8")
    assert pages.readme(page, demo) == page, "run make pages"
    rows = [r for split in ("train", "test") for r in mora_data.load_run(demo).pairs(split=split)]
    (row,) = [r for r in rows if r["chosen"][0]["content"] in page]
    assert row["simulated"] and "chosen (simulated)" in page
    assert best_pair(demo / "dataset") is not None
    # without the extra no figures, and a card without images
    assert not (demo / "dataset/report").exists()
    assert "](report/" not in (demo / "dataset/README.md").read_text("utf-8")


def test_the_picture_of_the_readme_is_drawn_from_the_demo(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = (ROOT / "docs/reward-space.svg").read_text("utf-8")
    assert reward_space.main([str(demo), str(tmp_path / "drawn.svg")]) == 0
    assert (tmp_path / "drawn.svg").read_text("utf-8") == held, "run make pages"
    assert len(held.encode()) < 60_000 and "prefers-color-scheme:dark" in held
    assert "](docs/reward-space.svg)" in README.read_text("utf-8")
    root = ElementTree.fromstring(held)
    marks = [e.get("class") or "" for e in root.iter() if e.tag.endswith("circle")]
    assert sum("dot" in m for m in marks) > 16 + 8 and not {
        e.tag.split("}")[1] for e in root.iter()
    } & {"a", "script", "image", "use"}
    assert (
        reward_space.main([str(demo), str(tmp_path / "x.svg"), "nope"]) == 1
        and reward_space.main([]) == 2
    )
    assert "has no pair nope" in capsys.readouterr().err


def test_configs_in_the_readme_are_those_of_the_dataset(demo: Path) -> None:
    have = {p.name for p in (demo / "dataset").iterdir() if p.is_dir()} - {"provenance"} | {
        "preference_by_dim"
    }
    section = README.read_text("utf-8").split("| config | rows | for |")[1].split("\n\n")[0]
    named = set(
        re.findall(
            r"`([\w<>]+)`", "".join(line.split("|")[1] for line in section.splitlines() if line)
        )
    )
    dims = ("helpful", "harmless", "truthful")
    spelled = {n.replace("<dim>", d) for n in named for d in dims} - {
        f"stage{k}_{d}" for k in (1, 2) for d in dims
    }
    assert spelled == {h for h in have if not h.startswith("stage")}
    assert {"stage1_<dim>", "stage2_<dim>"} <= named


def test_export_of_the_page_prints_what_it_says(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(demo.parent, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    words = [w for _, w in documented() if w[0] == "export"][-1]
    assert cli.main(words) == 0
    assert capsys.readouterr().out == blocks("text", page="docs/publish.md")[-1].text


def test_the_concise_example_builds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The files of the page, put where it says, and its command."""
    monkeypatch.chdir(tmp_path)
    found = [
        b
        for b in blocks("yaml", "jinja", page="docs/add-your-own.md")
        if b.file and "concise" in b.file
    ]
    assert {"concise.yaml", "rubrics/concise.j2", "intents/concise.yaml"} == {b.file for b in found}
    written(tmp_path, found)
    words = next(w for where, w in documented() if "concise.yaml" in w)
    assert cli.main([*words, "--limit", "16"]) == 0, capsys.readouterr().err
    run = mora_data.load_run("runs/concise")
    assert run.counts["fuse"]["kept"] > 0
    rows = run.pairs()
    assert rows and all(isinstance(r["chosen_reward_concise"], float) for r in rows)
    assert run.dataset_dir is not None and {"preference_concise"} <= {
        p.name for p in run.dataset_dir.iterdir()
    }


def test_the_plug_ins_of_the_page_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path, [b for b in blocks("yaml", "python", page="docs/add-your-own.md") if b.file])
    rows = [
        *(f'{{"ask": "How do I store {i} bottles of oil?"}}\n' for i in range(30)),
        '{"ask": 1}\n',
    ]
    (tmp_path / "faq.jsonl").write_text("".join(rows))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    words = next(w for where, w in documented() if "faq.yaml" in w)
    assert cli.main(words) == 0, capsys.readouterr().err
    run = mora_data.load_run("runs/faq")
    assert run.counts["mine"]["dropped"] == {"not_text": 1}
    assert all(r["selector"] == "parts:least_margin" and r["margin_short"] > 0 for r in run.pairs())


def test_the_plug_ins_of_the_readme_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [b for b in blocks("python", page="README.md") if b.file]
    assert [b.file for b in found] == ["mine.py", "least.py"]
    written(tmp_path, found)
    (tmp_path / "rows.jsonl").write_text(
        "".join(f'{{"ask": "How do I store {i} bottles of oil?"}}\n' for i in range(12))
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    tree = {
        "name": "faq",
        "source": {"kind": "mine:Faq"},
        "select": {"selector": "least:least_margin"},
        "policy": {"engine": "scripted"},
    }
    run = build(tree, data=[tmp_path / "rows.jsonl"], out=tmp_path / "run", quiet=True)
    assert run.pairs() and run.counts["mine"]["kept"] == 12


def test_a_rubric_may_lie_anywhere_when_nothing_is_fused(tmp_path: Path) -> None:
    (block,) = [b for b in blocks("yaml", page="docs/add-your-own.md") if "terse" in b.text]
    rubric, arm = blocks("jinja", page="docs/add-your-own.md")
    (tmp_path / "brief.j2").write_text(arm.text, "utf-8")
    assert [
        m["role"]
        for m in load_template("fuse", str(tmp_path / "brief.j2"), FUSE).render(
            {"nonce": "0", "prompt": "How?"}
        )
    ] == ["system", "user", "assistant", "user"]
    (tmp_path / "concise.j2").write_text(rubric.text, "utf-8")
    load_template("judge", str(tmp_path / "concise.j2"), VARIABLES)
    tree = yaml.safe_load(block.text.replace("rubrics/concise.j2", str(tmp_path / "concise.j2")))
    run = build(
        {"name": "terse", "source": {"kind": "pku-saferlhf"}, **tree, "mine": {"limit": 10}},
        sample=True,
        out=tmp_path / "run",
        until="score",
        quiet=True,
    )
    assert run.counts["score"]["kept"] > 0
    with pytest.raises(MoraError, match=r"templates/intents/terse\.yaml"):
        build(
            {
                "name": "terse",
                "source": {"kind": "pku-saferlhf"},
                **tree,
                "fuse": {"arms": ["fused"]},
            },
            sample=True,
            out=tmp_path / "other",
            quiet=True,
        )


# --- discipline


def test_no_machine_paths_and_no_overlong_lines() -> None:
    for page in PAGES:
        text = page.read_text("utf-8")
        assert not re.search(r"/(?:home|tmp|root|Users|work)/|TODO|FIXME", text), page.name
        long = [
            line
            for line in _BLOCK.sub("", text).splitlines()
            if len(line) > 132 and not line.startswith("|")
        ]
        assert long == [], page.name


def test_the_notebook_runs_and_shows_what_it_showed() -> None:
    """Headings, columns and lines of each output, but for the values, which follow every template:
    `make pages` writes them anew."""
    path = ROOT / "docs" / "notebook.ipynb"
    assert path.stat().st_size < 200_000
    text = path.read_text("utf-8")
    kept, now = (
        [re.findall(r"<(?:h2|th)\b[^>]*>([^<]*)<", t) or t.count("\n") for t in texts]
        for texts in map(_shown, map(json.loads, (text, executed(text))))
    )
    assert len(kept) >= 5 and now == kept


def _shown(notebook: dict[str, Any]) -> list[str]:
    outputs = [o for c in notebook["cells"] for o in c.get("outputs", ())]
    data = [o.get("data") or {"text/plain": o["text"]} for o in outputs]
    return [d.get("text/html") or d["text/plain"] for d in data]
