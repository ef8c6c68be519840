"""The command line as a user meets it: help with examples, one line for a mistake, settings that
can be looked up, files to begin with, completion, a build that goes on."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import pages

from mora_data import cli, plugins
from mora_data.cli import main, settings
from mora_data.cli.completion import script
from mora_data.errors import SettingsError
from mora_data.pipeline import publishing
from mora_data.prompts.personas import load_personas
from mora_data.rewards import REWARDS
from mora_data.run.files import read_json, write_json
from mora_data.settings import build_settings, load_settings, parse_override

ROOT = Path(__file__).parents[2]
EVALUATE = "evaluate a=scripted:x b=scripted:y --source pku-saferlhf --set judge.engine=scripted"
CHEAP = ["--set", "presample.enabled=false", "--set", "rollout.n=2", "--limit", "1"]


def commands(parser: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, object]]:
    """Every command and subcommand with its parser."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, below in action.choices.items():
                full = f"{name} {word}".strip()
                yield full, below
                yield from commands(below, full)


def test_each_command_shows_an_example_that_works() -> None:
    found = dict(commands(cli._parser()))
    assert len(found) >= 20
    assert sorted(set(found) ^ (set(cli.EXAMPLES) - {""})) == []
    for name, examples in cli.EXAMPLES.items():
        for line in examples:
            words = shlex.split(line.removeprefix("source <(").removesuffix(")"))
            assert words[0] == "mora-data" and cli._parsed(words[1:])
            assert not name or line in found[name].format_help()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("biuld", "mora-data: unknown 'biuld': did you mean 'build'?"),
        ("build --source x --limt 3", "unknown argument '--limt': did you mean '--limit'?"),
        ("build --source x --limit=a", "argument --limit: invalid int value: 'a'"),
        ("build --source x --until fus", "argument --until: unknown 'fus': did you mean 'fuse'?"),
        ("list sorces", "mora-data list: unknown 'sorces': did you mean 'sources'?"),
        ("recipe run dpo --dataset x --confg y", "'--confg': did you mean '--config'?"),
        ("view", "mora-data view: the following arguments are required: RUN_DIR"),
        ("status a b", "mora-data status: unknown argument 'b'"),
        # an unset shell variable: the next best server would be asked, the folder here written to
        ("build --source x --base-url=", "argument --base-url: is empty (a shell variable"),
        ("build --source x --out=", "argument --out: is empty"),
        ("build --source x --base-url=,", "argument --base-url: is empty"),
        # what another flag makes useless, or useful
        ("build --source x --tag v1.0.0", "--tag does nothing without --push"),
        ("build --source x --public", "--public does nothing without --push"),
        ("build --source x --push a/b --until fuse", "--push does nothing beside --until"),
        ("build --source x --probe", "--probe does nothing without --dry-run"),
        ("push x a/b --move-tag", "--move-tag does nothing without --tag"),
        ("report x --out y", "--out does nothing without --compare"),
        ("view x --most 3", "--most does nothing without --freeze"),
        ("view x --freeze y --review me", "--review does nothing beside --freeze"),
    ],
)
def test_a_mistake_is_one_line_with_the_nearest_word(
    words: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as e:
        main(words.split())
    err = capsys.readouterr().err
    assert e.value.code == 2 and line in err and err.count("\n") == 1 and "--help)" in err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("evaluate a=scripted:x --set limits.max_cost=1", "limits.max_cost does nothing here"),
        ("evaluate a=scripted:x --dataset nowhere", "no dataset folder nowhere"),
        (f"{EVALUATE} --sequence a b=helpfull", "did you mean 'helpful'?"),
        (f"{EVALUATE} --sequence a", "--sequence a: name the start, then each stage's model"),
        ("source look x.jsonl --set mine.limit=3", "mine.limit does nothing here"),
        ("check --source pku-saferlhf --set rollout.n=3", "rollout.n does nothing here"),
        ("weights x --target helpful", "--target 'helpful' is not KEY=VALUE"),
        ("weights x --target helpful=0.8 --target helpful=0.2", "names a dimension twice"),
        ("recipe run dpo --dataset nowhere", "no folder nowhere"),
        ("check --source pku-saferlhf --set policy.engine=scripted", "there is nothing to check"),
        ("build --source pku-saferlhf --sample --push here", "'here' is not a repository id"),
        ("build --source pku-saferlhf --sample --push a/b --public", "a decision on unsafe text"),
        ("recipe run dpo --dataset . learning_rate=", "'learning_rate=' is not key=value"),
        (
            "audit --source pku-saferlhf --sample --limit 1 --dry-run"
            " --compare-set rewards.harmless.template=nowhere.j2",
            "no template can be read at 'nowhere.j2'",
        ),
    ],
)
def test_what_would_be_ignored_or_paid_first_is_one_line(
    words: str,
    line: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 1
    err = capsys.readouterr().err
    assert line in err and err.count("\n") == 1 and not list(tmp_path.iterdir())


def test_what_is_in_a_folder_of_others_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(
        tmp_path / "socket"
    )  # of another program: --out / walked the disk, to have it removed
    words = "build --source pku-saferlhf --sample --limit 1 --out"
    assert main([*words.split(), str(tmp_path)]) == 1
    assert "is not a run folder (it holds 'socket')" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["personas/concise.yaml", "personas/skeptical.yaml"])
def test_shown_personas_are_taken(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["template", "copy", name, str(tmp_path)]) == 0
    shown = shlex.split(capsys.readouterr().out)[-1]
    (setting,) = settings.settings_in("rollout.personas")
    for example in (shown, setting.example):
        assert len(load_personas(parse_override(example)[1], 16)) == 2


def test_the_settings_page_is_the_code_s() -> None:
    page = (ROOT / "docs" / "settings.md").read_text("utf-8")
    assert page == pages.settings_page(), "run make pages"


def test_every_setting_has_a_meaning_and_an_example_that_loads() -> None:
    found = [s for some in settings.sections().values() for s in some]
    assert len(found) > 160
    for s in found:
        key, value = parse_override(s.example)
        assert s.meaning and s.type != "any value", s.path
        # a builder has a source of its own
        mixed = build_settings({"name": "mixed"}, {key: value}) if key == "sources" else None
        try:
            loaded = mixed or load_settings("pku-saferlhf", {key: value})
        except SettingsError as e:  # alone it would do nothing, as its meaning says
            assert "does nothing while" in str(e) and "Only with" in s.meaning, s.path
            continue
        kind = s.meaning.partition(": ")[0]
        if kind in REWARDS and s.path.startswith("rewards."):
            reward = loaded.rewards["helpful"][0]
            assert plugins.load(REWARDS, kind, "").options(reward.options) is not None


def test_settings_are_looked_up_by_section_and_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings"]) == 0
    sections = capsys.readouterr().out
    assert "\nfuse " in sections and "heldout_judge" in sections
    assert main(["settings", "judge.temperature"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("judge.temperature   number >= 0, <= 2   default 0.0\n")
    assert "--set judge.temperature=" in out
    assert main(["settings", "fuse", "--json"]) == 0
    assert {"path", "type", "default", "meaning", "example"} == set(
        json.loads(capsys.readouterr().out)[0]
    )
    assert main(["settings", "rewards.helpful.kind"]) == 0
    assert "rewards.<dimension>.kind" in capsys.readouterr().out
    assert main(["settings", "rolout"]) == 1
    assert "did you mean 'rollout'?" in capsys.readouterr().err


def test_what_is_shipped_is_copied_and_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init"]) == 0
    assert load_settings("build.yaml").policy.base_url == "http://127.0.0.1:8000/v1"
    assert main(["init"]) == 1
    assert "build.yaml exists already" in capsys.readouterr().err
    assert main(["template", "copy", "judge/helpful.j2", "my"]) == 0
    assert "--set 'rewards.helpful={kind: judge, template: my/helpful.j2}'" in (
        capsys.readouterr().out
    )
    assert main(["template", "copy", "judge/helpfl.j2", "my"]) == 1
    assert "did you mean 'judge/helpful.j2'?" in capsys.readouterr().err
    assert main(["source", "copy", "pku-saferlhf", "my"]) == 0
    assert load_settings("my/pku-saferlhf.yaml") == load_settings("pku-saferlhf")
    assert main(["source", "copy", "pku-saferlhf", "my"]) == 1
    assert main(["list", "templates"]) == 0
    lines = dict(x.split(None, 1) for x in capsys.readouterr().out.splitlines())
    assert Path(lines["judge/helpful.j2"]).is_file()


def test_shell_completion(tmp_path: Path) -> None:
    made = script("bash", cli._parser())
    assert script("zsh", cli._parser()).endswith(made)
    ask = 'COMP_WORDS=(mora-data {0}); COMP_CWORD={1}; _mora_data; echo "${{COMPREPLY[@]}}"'
    lines = [ask.format("pre", 1), ask.format("build --lim", 2), ask.format("recipe ru", 2)]
    lines += [ask.format("recipe run --conf", 3), ask.format("list se", 2)]
    done = subprocess.run(
        ["bash", "-c", "\n".join([made, *lines])], capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:5] == ["preview", "--limit", "run", "--config", "selectors"]


def test_a_stopped_build_says_why_and_goes_on_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    here = ["build", "--source", "pku-saferlhf", "--sample", "--out", "run", *CHEAP]

    def stopped(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(publishing, "audit_arms", stopped)
        assert main([*here, "--until", "select"]) == 130
    assert main(["status", "run"]) == 0
    out = capsys.readouterr().out
    assert "run: not finished" in out and "ended before its end: interrupted" in out
    assert "go on: mora-data resume run" in out
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["resume", "../run", "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["requests"] == 0 and tree["replayed"] > 0
    assert list(tree["counts"])[-1] == "select"
    assert main(["status", str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ended"] is None
    (tmp_path / "run/manifest.json").write_text("{")
    assert main(["status", str(tmp_path / "run")]) == 0
    assert "run: without a manifest.json that can be read" in capsys.readouterr().out


def test_a_failed_build_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "How do I boil an egg?"}\n')
    here = ["--source", "jsonl", "--data", str(tmp_path / "rows.jsonl"), "--engine", "scripted"]
    said = ["--out", str(tmp_path / "run"), "--max-tokens", "1", *CHEAP]
    assert main(["build", *here, *said]) == 1
    assert main(["status", str(tmp_path / "run")]) == 0
    assert "ended before its end: limits.max_tokens" in capsys.readouterr().out
    assert main(["resume", str(tmp_path)]) == 1
    assert "does not say how it was built" in capsys.readouterr().err
    options = read_json(tmp_path / "run" / "options.json")
    for key in ("data", "plugins", "cwd", "until"):
        write_json(tmp_path / "run" / "options.json", {**options, key: 3})
        assert main(["resume", str(tmp_path / "run")]) == 1
        assert "does not say how it was built" in capsys.readouterr().err
