"""Settings: precedence, inheritance between roles, and faults that name the nearest known thing."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from mora_data import plugins
from mora_data.errors import SettingsError
from mora_data.resources import parse_yaml
from mora_data.settings import (
    BuildSettings,
    build_settings,
    cache_tree,
    kept_settings,
    load_settings,
    parse_override,
    preview_settings,
    to_yaml,
)
from mora_data.types import NO_ARMS

TREE = {"name": "x", "source": {"kind": "jsonl"}}
DECONTAMINATED = {"kind": "jsonl", "decontaminate_from": {"XSTest": "xstest.csv"}}


def settings(**more: object) -> object:
    return build_settings({**TREE, **more})


def test_role_defaults_stand_under_what_is_given() -> None:
    s = build_settings({**TREE, "judge": {"concurrency": 8}, "rewriter": {"engine": "scripted"}})
    assert (s.judge.temperature, s.judge.concurrency, s.judge.use) == (0.0, 8, "policy")
    assert (s.rewriter.temperature, s.role("rewriter").engine) == (0.7, "scripted")


def test_judge_model_alone_keeps_the_policy_url() -> None:
    s = build_settings(
        {**TREE, "policy": {"base_url": "http://a/v1", "model": "m"}, "judge": {"model": "j"}}
    )
    assert (s.role("judge").base_url, s.role("judge").model) == ("http://a/v1", "j")
    assert (s.role("rewriter").base_url, s.role("rewriter").model) == ("http://a/v1", "m")


def test_judge_url_of_its_own_takes_no_model_and_no_engine() -> None:
    s = build_settings(
        {
            **TREE,
            "policy": {"engine": "scripted", "model": "m", "api_key_env": "K"},
            "judge": {"base_url": "http://b/v1"},
        }
    )
    judge = s.role("judge")
    assert (judge.base_url, judge.model, judge.engine, judge.api_key_env) == (
        "http://b/v1",
        None,
        None,
        "K",
    )


def test_overrides_beat_yaml(tmp_path: Path) -> None:
    path = tmp_path / "b.yaml"
    path.write_text("name: b\nsource: {kind: jsonl}\nrollout: {n: 4}\n")
    assert load_settings(str(path)).rollout.n == 4
    assert (
        load_settings(str(path), {"rollout.n": 8, "policy.temperature": 0.3}).policy.temperature
        == 0.3
    )


def test_written_settings_read_back() -> None:
    import yaml

    s = load_settings("pku-saferlhf", {"judge.model": "j"})
    assert build_settings(yaml.safe_load(to_yaml(s))) == s


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"rollouts": {"n": 3}}, "unknown setting 'rollouts': did you mean 'rollout'"),
        ({"rollout": {"m": 3}}, "unknown setting 'rollout.m'"),
        ({"policy": {"temprature": 1}}, "did you mean 'temperature'"),
        ({"rollout": {"n": "many"}}, "rollout.n = 'many'"),
        ({"rollout": {"n": 10**30}}, "rollout.n = 1"),  # found by make fuzz, as the next two
        ({"mine": {"limit": 10**30}}, "should be at most"),
        ({"seed": -1}, "seed = -1: Input should be greater than or equal to 0"),
        ({"source": {"kind": "jsonl", "dataset": "\ud800"}}, "should be text"),
        (
            {"rewards": {"helpful": {"x": "\ud800"}}},
            "rewards.helpful.x = '\\ud800': should be text",
        ),
        ({"presample": {"n": [32, 16]}}, "must rise"),
        ({"dimensions": []}, "dimensions"),
        ({"presample": {"n": ["many"]}}, "presample.n.0 = 'many'"),
        ({"presample": {"step": 1}}, "presample.step = 1: Input should be 'auto', or greater than"),
        ({"select": {"weights": {"helpful:2": None}}}, "write '{helpful: 2}'"),
        ({"presample": {"floors": {"helpful": 7}}}, "presample.floors.helpful = 7: Input should"),
        ({"select": {"weights": {"helpful": -1}}}, "select.weights.helpful = -1"),
        ({"presample": {"accept": []}}, "presample.accept = []"),
        ({"fuse": {"length_matched": ["fused"]}}, "'fused' is no control"),
        ({"fuse": {"targets": []}}, "fuse.targets = []"),
        ({"publish": {"arms": []}}, "publish.arms = []"),
        ({"publish": {"configs": []}}, "publish.configs = []"),
        ({"rewards": {"helpful": []}}, "rewards.helpful = []"),
        ({"recorded": {"dimensions": ["a"], "rewards": {"b": []}}}, "rewards names 'b'"),
        ({"policy": {"temperature": 3}}, "policy.temperature = 3"),
    ],
)
def test_faults_are_one_line(more: dict[str, object], says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        settings(**more)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "value", "known"),
    [
        ("rewards", {"helpfull": {}}, "dimensions: did you mean 'helpful'"),
        ("audit.labels", {"helpfull": "safe"}, "dimensions: did you mean 'helpful'"),
        ("presample.floors", {"helpfull": 0.5}, "dimensions: did you mean 'helpful'"),
        ("select.weights", {"helpfull": 2}, "dimensions: did you mean 'helpful'"),
        ("fuse.intents", {"helpfull": "own.yaml"}, "dimensions: did you mean 'helpful'"),
        ("fuse.targets", ["helpfull"], "dimensions: did you mean 'helpful'"),
        ("publish.stage_order", ["helpfull"], "dimensions: did you mean 'helpful'"),
        ("publish.stage_order", ["helpful", "helpful"], "names 'helpful' twice"),
        ("fuse.templates", {"fusde": "own.j2"}, "fuse.arms: did you mean 'fused'"),
        ("publish.arms", ["fusde"], "fuse.arms: did you mean 'fused'"),
        ("fuse.length_matched", ["singel"], "fuse.arms: did you mean 'single'"),
    ],
)
def test_a_name_that_nothing_has_is_refused(setting: str, value: object, known: str) -> None:
    """Each was taken, and did nothing."""
    with pytest.raises(SettingsError) as caught:
        build_settings(TREE, {setting: value})
    assert f"{setting} names " in str(caught.value) and known in str(caught.value)


def test_what_the_file_says_of_names_that_a_flag_leaves_out_goes_with_them() -> None:
    tree = {
        **TREE,
        "rewards": {"harmless": {"weight": 2}},
        "audit": {"labels": {"helpful": "better", "harmless": "safe"}},
        "fuse": {
            "arms": ["fused", "own"],
            "templates": {"own": "own.j2"},
            "length_matched": ["own", "single"],
        },
        "publish": {"arms": ["fused", "own"], "stage_order": ["harmless", "helpful"]},
    }
    s = build_settings(tree, {"dimensions": ["helpful"], "fuse.arms": ["fused"]})
    assert (s.rewards, list(s.audit.labels)) == ({}, ["helpful"])
    assert (s.fuse.templates, s.fuse.length_matched) == ({}, ["single"])
    assert (s.publish.arms, s.publish.stage_order) == (["fused"], ["helpful"])
    with pytest.raises(SettingsError, match="rewards names 'harmless', not in dimensions"):
        build_settings(tree, {"dimensions": ["helpful"], "rewards.harmless.weight": 2})
    with pytest.raises(SettingsError, match="rewards names 'harmles', not in dimensions"):
        build_settings({**TREE, "rewards": {"harmles": {}}}, {"fuse.checks": []})


@pytest.mark.parametrize(
    ("given", "needs"),
    [
        ({"mine": {"near_duplicates": 0.8, "dedup": False}}, "mine.dedup is false"),
        ({"select": {"weights": {"helpful": 2}}}, 'select.selector is "dominance_hv"'),
        ({"select": {"confirm": False, "confirm_top": 2}}, "select.confirm is false"),
        ({"presample": {"enabled": False, "n": [4]}}, "presample.enabled is false"),
        ({"presample": {"enabled": False}, "fuse": {"probe": 8}}, "presample.enabled is false"),
        ({"presample": {"step": None, "error": 0.1}}, "presample.step is null"),
        ({"fuse": {"checks": [], "guard": {"endpoint": {"model": "g"}}}}, "fuse.checks is []"),
        ({"policy": {"local": {"device": "cpu"}}}, 'policy.engine is "openai"'),
        ({"policy": {"batch": {"mode": "files"}}}, 'policy.engine is "openai"'),
        ({"policy": {"engine": "vllm", "replicas": ["http://b/v1"]}}, 'engine is "vllm"'),
        ({"policy": {"engine": "vllm", "ca_file": "a.pem"}}, 'policy.engine is "vllm"'),
        ({"policy": {"engine": "vllm"}, "judge": {"transport": "openai"}}, 'judge.engine is "vllm'),
        ({"rewards": {"helpful": {"endpoint": {"local": {"dtype": "float16"}}}}}, "0.endpoint.eng"),
        ({"ray": {"workers": 8}}, 'executor is "local"'),
        ({"fuse": {"arms": ["identity"], "retries": 5}}, 'fuse.arms is ["identity"]'),
        ({"policy": {"engine": "recorded"}, "rewards": {"helpful": [{}]}}, 'is "recorded"'),
        ({"mine": {"decontaminate": False}, "source": DECONTAMINATED}, "mine.decontaminate is"),
    ],
)
def test_what_does_nothing_is_refused(given: dict[str, object], needs: str) -> None:
    with pytest.raises(SettingsError, match="does nothing while .*" + re.escape(needs)):
        build_settings(TREE | given)


def test_what_an_override_turns_off_in_a_file_goes_with_it() -> None:
    file = {**TREE, "mine": {"near_duplicates": 0.8}, "policy": {"base_url": "http://a/v1"}}
    file |= {"judge": {"concurrency": 8}}
    off = build_settings(file, {"mine.dedup": False, "policy.engine": "scripted"})
    assert (off.mine.near_duplicates, off.policy.base_url, off.judge.concurrency) == (
        None,
        None,
        64,
    )
    assert build_settings(parse_yaml(to_yaml(off))) == off
    judge = {"policy": {"engine": "vllm"}, "judge": {"local": {"dtype": "float16"}}}
    assert build_settings(TREE | judge).role("judge").local.dtype == "float16"
    assert (
        build_settings(TREE | judge, {"judge.base_url": "http://a/v1"}).judge.local.dtype == "auto"
    )
    with pytest.raises(SettingsError, match="columns does nothing while"):
        columns = {"kind": "pku-saferlhf", "columns": {"prompt": "q"}}
        build_settings({**TREE, "source": columns}, {"rewards.helpful.kind": "judge"})
    with pytest.raises(SettingsError, match="near_duplicates does nothing while"):
        build_settings(file, {"mine.dedup": False, "mine.near_duplicates": 0.7})
    own = {"policy.engine": "mine:open_it", "policy.replicas": ["http://b/v1"]}
    assert build_settings(file, own).policy.replicas, "an engine of one's own may use it"
    seen = preview_settings(file, {"presample.n": [4], "select.confirm_top": 2})
    assert (seen.presample.n, seen.select.confirm_top) == ([8, 16, 32], 3)


def test_settings_that_an_older_version_kept_are_read(tmp_path: Path) -> None:
    tree = parse_yaml(to_yaml(build_settings(TREE)))
    tree["mine"] |= {"dedup": False, "near_duplicates": 0.8}
    tree["rewards"], tree["presample"]["floors"] = {"polite": [{}]}, {"helpful": 0.7, "polite": 0.5}
    (tmp_path / "build.yaml").write_text(yaml.safe_dump(tree))
    kept = kept_settings(tmp_path / "build.yaml")
    assert (kept.mine.near_duplicates, kept.reward_roles()) == (0.8, [])
    with pytest.raises(ValidationError, match="rewards names 'polite'"):
        BuildSettings.model_validate(tree)
    tree["fuse"]["targets"] = []
    (tmp_path / "build.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(SettingsError, match=r"targets = \[\].*Correct .*build\.yaml, or run"):
        kept_settings(tmp_path / "build.yaml")


def test_override_text() -> None:
    assert parse_override("rollout.n=8") == ("rollout.n", 8)
    assert parse_override("fuse.arms=[identity, fused]") == ("fuse.arms", ["identity", "fused"])
    assert parse_override("policy.stop=['=']") == ("policy.stop", ["="])
    with pytest.raises(SettingsError, match="KEY=VALUE"):
        parse_override("rollout.n")
    with pytest.raises(SettingsError, match="no value"):
        parse_override("policy.base_url=")


def test_plug_ins_stand_beside_the_builder_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Was `No module named`: only what Python finds by itself was imported."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own_parts_beside.py").write_text("def best(batch):\n    return None\n")
    file = tmp_path / "own.yaml"
    file.write_text(
        "name: own\nsource: {kind: jsonl}\nselect: {selector: 'own_parts_beside:best'}\n"
    )
    name = load_settings(str(file)).select.selector
    assert plugins.load({}, name, "select.selector").target.__name__ == "best"


def test_roles_that_use_each_other_are_one_line() -> None:
    with pytest.raises(SettingsError, match=r"judge -> rewriter: `use` leads in a circle"):
        load_settings("pku-saferlhf", {"judge.use": "rewriter", "rewriter.use": "judge"})


def test_an_arm_is_called_as_its_file_wherever_that_is() -> None:
    """Rows and keys hold the name, so that a folder that moves changes neither."""
    arms = {"arms": ["my/fused.j2", "my/brief.j2"], "length_matched": ["my/brief.j2"]}
    made = build_settings({**TREE, "fuse": arms})
    again = build_settings(parse_yaml(to_yaml(made)))
    for fuse in (made.fuse, again.fuse):
        assert (fuse.arms, fuse.length_matched) == (["fused", "brief"], ["brief"])
        assert fuse.templates == {"fused": "my/fused.j2", "brief": "my/brief.j2"}
    moved = build_settings({**TREE, "fuse": {**arms, "arms": ["b/fused.j2", "b/brief.j2"]}})
    assert cache_tree(moved) == cache_tree(made)
    shown = preview_settings({**TREE, "fuse": arms}).fuse
    assert (shown.arms, shown.templates) == (["fused"], {"fused": "my/fused.j2"})


@pytest.mark.parametrize(
    ("arm", "says"),
    [
        *((arm, f"{arm!r} means something else") for arm in NO_ARMS),
        ("my/before.j2", "'before' means something else in every run: rename the template"),
        ("my/concat.j2", "arm concat asks no rewriter: rename the template"),
        ("a:b", "name an arm, and its template, with letters"),
    ],
)
def test_an_arm_whose_name_is_taken_is_refused(arm: str, says: str) -> None:
    """Answers to the bare prompt would be taken for the arm's, or its requests for theirs."""
    with pytest.raises(SettingsError, match=says):
        settings(fuse={"arms": ["fused", arm]})
