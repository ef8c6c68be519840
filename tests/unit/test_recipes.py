"""Recipes are listed, copied and turned into commands without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mora_data.cli import recipes
from mora_data.errors import ExtraMissing, SettingsError

SCRIPTS = sorted(recipes.find_recipe("dpo").script.parent.glob("*.py"))


def test_list_recipes_has_dpo_with_its_configs_and_not_the_helper() -> None:
    found = {r.name: r for r in recipes.list_recipes()}
    assert "dpo" in found and "tiny_model" not in found
    assert {"dpo", "grpo", "kto", "sequential", "sft"} <= found.keys()
    training = [r for r in found.values() if r.name != "evaluate"]
    assert all({"multi-gpu", "single-gpu-lora", "smoke"} <= set(r.configs) for r in training)
    assert found["dpo"].summary.startswith("Direct preference optimisation")


def test_scripts_never_import_the_package_and_have_a_pep_723_header() -> None:
    assert len(SCRIPTS) >= 2
    for script in SCRIPTS:
        text = script.read_text("utf-8")
        assert text.startswith("# /// script\n"), script.name
        nodes = ast.walk(ast.parse(text))
        imports = [ast.unparse(n) for n in nodes if isinstance(n, (ast.Import, ast.ImportFrom))]
        assert imports and "mora_data" not in " ".join(imports), script.name


def test_what_is_the_same_in_every_recipe_stands_once() -> None:
    shared = _functions("trl_recipe.py") | _functions("recipe.py") | _functions("dataset_rows.py")
    assert {"load_rows", "make_trainer", "train", "write_results", "command_line"} <= shared
    for name in ("dpo", "sft", "kto", "grpo", "reward"):
        assert {"recipe.py", "dataset_rows.py", "trl_recipe.py"} <= {
            p.name for p in recipes.find_recipe(name).helpers()
        }, name
    for script in SCRIPTS:
        if script.name not in ("recipe.py", "dataset_rows.py", "trl_recipe.py", "tiny_model.py"):
            assert not _functions(script.name) & shared - {
                "read_settings",
                "write_results",
            }, script.name


def _functions(name: str) -> set[str]:
    (script,) = (s for s in SCRIPTS if s.name == name)
    body = ast.parse(script.read_text("utf-8")).body
    return {n.name for n in body if isinstance(n, (ast.FunctionDef, ast.ClassDef))} - {"Settings"}


def test_a_recipe_that_starts_another_is_copied_with_it(tmp_path: Path) -> None:
    names = [p.name for p in recipes.find_recipe("sequential").helpers()]
    shared = ["recipe.py", "tiny_model.py", "trl_recipe.py"]
    assert names == ["dataset_rows.py", "dpo.py", "dry_run.py", *shared]


def test_every_config_is_a_flat_mapping() -> None:
    files = [r.config_file(c) for r in recipes.list_recipes() for c in r.configs]
    assert len(files) >= 15
    for file in files:
        values = yaml.safe_load(file.read_text("utf-8"))
        assert values and not [k for k, v in values.items() if isinstance(v, dict)], file.name


def test_copy_writes_script_helper_and_configs_and_refuses_to_overwrite(tmp_path: Path) -> None:
    written = recipes.copy_recipe("dpo", tmp_path / "mine")
    assert sorted(p.relative_to(tmp_path / "mine").as_posix() for p in written) == [
        "dataset_rows.py",
        "dpo.py",
        "dpo/multi-gpu.yaml",
        "dpo/single-gpu-lora.yaml",
        "dpo/smoke.yaml",
        "dry_run.py",
        "recipe.py",
        "tiny_model.py",
        "trl_recipe.py",
    ]
    (tmp_path / "mine" / "dpo.py").write_text("edited")
    with pytest.raises(SettingsError, match="exists already"):
        recipes.copy_recipe("dpo", tmp_path / "mine")
    assert (tmp_path / "mine" / "dpo.py").read_text() == "edited"


def test_copy_that_is_refused_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "tiny_model.py").touch()
    with pytest.raises(SettingsError, match=r"tiny_model\.py exists already"):
        recipes.copy_recipe("dpo", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["tiny_model.py"]


def test_copy_into_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="can't copy recipe dpo"):
        recipes.copy_recipe("dpo", tmp_path / "file")


def test_run_command_is_exact() -> None:
    recipe = recipes.find_recipe("dpo")
    command = recipes.run_command(
        "dpo", "org/pairs", "v1.0.0", "smoke", ["beta=0.2", "output_dir=out"], python="py"
    )
    assert command == [
        "py",
        str(recipe.script),
        "--config",
        str(recipe.config_file("smoke")),
        "dataset=org/pairs",
        "revision=v1.0.0",
        "beta=0.2",
        "output_dir=out",
    ]


def test_run_command_names_an_output_folder_and_quotes_a_tag_that_looks_like_a_number() -> None:
    command = recipes.run_command("dpo", "org/pairs", "1.0", "single-gpu-lora")
    assert command[-2:] == ["revision='1.0'", "output_dir=runs/dpo-single-gpu-lora"]
    assert command == recipes.run_command("dpo", "org/pairs@1.0", None, "single-gpu-lora")


def test_a_config_with_launch_flags_is_started_by_accelerate() -> None:
    command = recipes.run_command("dpo", "org/pairs", None, "multi-gpu", python="py")
    assert command[:4] == ["py", "-m", "accelerate.commands.launch", "--use_fsdp"]
    given = recipes.run_command("dpo", "d", None, "multi-gpu", ["launch=--use_deepspeed"], "py")
    assert given[3] == "--use_deepspeed" and given[-1] == "launch=--use_deepspeed"
    dry = recipes.run_command("dpo", "d", None, "multi-gpu", python="py", dry_run=True)
    assert dry[1].endswith("dpo.py") and dry[-1] == "dry_run=true"
    assert command.index(str(recipes.find_recipe("dpo").script)) > 4


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: recipes.run_command("dop", "d"), "unknown recipe 'dop': did you mean 'dpo'?"),
        (
            lambda: recipes.run_command("dpo", "d", config="smok"),
            "has no config 'smok': did you mean 'smoke'?",
        ),
        (lambda: recipes.run_command("dpo", "d", overrides=["beta"]), "'beta' is not key=value"),
        (
            lambda: recipes.run_command("dpo", "d", overrides=["--beta=1"]),
            "'--beta=1' is not key=value",
        ),
        (lambda: recipes.copy_recipe("xyz", Path("nowhere")), "unknown recipe 'xyz': known: dpo, "),
    ],
)
def test_errors_name_the_nearest(call: object, line: str) -> None:
    assert callable(call)
    with pytest.raises(SettingsError) as e:
        call()
    assert line in str(e.value) and "\n" not in str(e.value)


def test_run_without_torch_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ExtraMissing,
        match=r"install the torch build you want first, then pip install 'mora-data\[train\]'",
    ):
        recipes.run_recipe("dpo", ["never", "run"])


def test_run_shows_the_command_and_returns_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recipes.importlib.util, "find_spec", lambda name: object())
    assert recipes.run_recipe("dpo", [sys.executable, "-c", "raise SystemExit(7)"]) == 7
    assert capfd.readouterr().err == f"{sys.executable} -c 'raise SystemExit(7)'\n"


def test_importing_recipes_is_light() -> None:
    heavy = "{'torch', 'trl', 'transformers', 'datasets', 'pandas', 'openai'}"
    code = (
        f"import sys, mora_data.cli.recipes as r; r.list_recipes(); print(sorted({heavy} &"
        " set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
