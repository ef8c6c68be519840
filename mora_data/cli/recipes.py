"""The training recipes in train_recipes/: list them, copy them, run them.

A recipe is a script `<name>.py` beside a folder `<name>/` of YAML configs. Scripts never import
this package, and this module never imports torch: it only builds the command and starts it.

    run_recipe("dpo", run_command("dpo", "runs/demo/dataset", overrides=["output_dir=runs/dpo"]))
"""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from .. import resources
from ..errors import ExtraMissing, SettingsError
from ..settings import nearest

_NEEDED = re.compile(r'^[ \t]*(?:import|from) (\w+)|"(\w+)\.py"', re.M)  # imported, or started
INSTALL = "install the torch build you want first, then pip install 'mora-data[train]'"


@dataclass(frozen=True, slots=True)
class Recipe:
    """One training script with its configs."""

    name: str
    summary: str  # first line of the script's docstring
    configs: tuple[str, ...]
    script: Path

    def config_file(self, config: str) -> Path:
        """The YAML file of a config.

        Raises:
            SettingsError: no such config; the text names the nearest one.
        """
        if config not in self.configs:
            raise SettingsError(
                f"recipe {self.name} has no config {config!r}: {nearest(config, self.configs)}"
            )
        return self.script.with_suffix("") / f"{config}.yaml"

    def helpers(self) -> list[Path]:
        """Shipped scripts that this one needs beside it, sorted: those it imports or starts, and
        theirs."""
        found, todo = {self.script}, [self.script]
        while todo:
            names = map("".join, _NEEDED.findall(todo.pop().read_text("utf-8")))
            new = {p for n in names if (p := self.script.with_name(f"{n}.py")).is_file()} - found
            found |= new
            todo += new
        return sorted(found - {self.script})


def list_recipes() -> list[Recipe]:
    """All shipped recipes, by name."""
    found = []
    for script in sorted(resources.folder("train_recipes").glob("*.py")):
        configs = tuple(sorted(p.stem for p in script.with_suffix("").glob("*.yaml")))
        if configs:
            text = ast.get_docstring(ast.parse(script.read_text("utf-8"))) or script.stem
            found.append(Recipe(script.stem, text.splitlines()[0], configs, script))
    return found


def find_recipe(name: str) -> Recipe:
    """The recipe of this name.

    Raises:
        SettingsError: there is none; the text names the nearest one.
    """
    recipes = {r.name: r for r in list_recipes()}
    if name not in recipes:
        raise SettingsError(f"unknown recipe {name!r}: {nearest(name, recipes)}")
    return recipes[name]


def copy_recipe(name: str, to: Path) -> list[Path]:
    """Copy a recipe's script, the helpers it imports and its configs into folder `to`; the files
    written.

    Raises:
        SettingsError: no such recipe, a file to be written exists already (then nothing is), or
            `to` can't be written.
    """
    recipe = find_recipe(name)
    configs = [recipe.config_file(c) for c in recipe.configs]
    plan = {
        p: to / p.relative_to(recipe.script.parent)
        for p in (recipe.script, *recipe.helpers(), *configs)
    }
    copy_files(plan, f"recipe {name}")
    return list(plan.values())


def copy_files(plan: Mapping[Path, Path], what: str) -> None:
    """Copy each file to its target.

    Raises:
        SettingsError: a target exists already (then nothing is copied), or can't be written.
    """
    taken = [str(target) for target in plan.values() if target.exists()]
    if taken:
        raise SettingsError(
            f"{taken[0]} exists already: remove it, or give another place for {what}"
        )
    try:
        for source, target in plan.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    except OSError as e:
        where = next(iter(plan.values())).parent
        raise SettingsError(f"can't copy {what} to {where}: {e.strerror}") from e


def templates() -> dict[str, Path]:
    """Every shipped template, intents file and persona: its name in templates/ and its path."""
    root = resources.folder("templates")
    files = (p for p in sorted(root.rglob("*")) if p.suffix in (".j2", ".yaml"))
    return {p.relative_to(root).as_posix(): p for p in files}


def shipped_builders() -> dict[str, Path]:
    """Every shipped builder: its name and its path."""
    folder = resources.folder("builders")
    return {name: folder / f"{name}.yaml" for name in resources.names("builders", "*.yaml")}


def copy_shipped(what: str, known: Mapping[str, Path], name: str, to: Path) -> Path:
    """Copy the one of the `known` files that has this name into folder `to`; the file written.

    Raises:
        SettingsError: there is none (the nearest is named), or it can't be written.
    """
    if name not in known:
        raise SettingsError(f"unknown {what} {name!r}: {nearest(name, known)}")
    target = to / known[name].name
    copy_files({known[name]: target}, f"{what} {name}")
    return target


def run_command(
    name: str,
    dataset: str,
    revision: str | None = None,
    config: str = "smoke",
    overrides: Sequence[str] = (),
    python: str = sys.executable,
    dry_run: bool = False,
) -> list[str]:
    """The exact command that trains recipe `name`; a config with a `launch` key is started by
    `accelerate launch`, a dry run in one process.

    Without an `output_dir=` among the overrides, the output goes to runs/<name>-<config>.

    Raises:
        SettingsError: no such recipe or config, or an override that is not KEY=VALUE.
    """
    recipe = find_recipe(name)
    file = recipe.config_file(config)
    for override in overrides:
        key, _, value = override.partition("=")
        if not value or not key.isidentifier():
            raise SettingsError(f"{override!r} is not key=value: write it as max_steps=100")
    if (inside := Path(dataset) / "dataset").is_dir():  # of a run folder
        dataset = str(inside)
    if revision is None and not Path(dataset).exists():  # ORG/NAME@TAG, as other commands take it
        dataset, _, revision = dataset.partition("@")
    values = [f"dataset={dataset}"] + ([f"revision={_as_text(revision)}"] if revision else [])
    if not any(o.startswith("output_dir=") for o in overrides):
        values.append(f"output_dir=runs/{name}-{config}")
    given = [o.partition("=")[2] for o in overrides if o.startswith("launch=")]
    flags = given[-1] if given else yaml.safe_load(file.read_text("utf-8")).get("launch")
    launcher = ["-m", "accelerate.commands.launch", *shlex.split(flags)] if flags else []
    if dry_run:
        launcher, values = [], [*values, "dry_run=true"]
    train = [str(recipe.script), "--config", str(file)]
    return [python, *launcher, *train, *values, *overrides]


def _as_text(word: str) -> str:
    """The word, quoted where YAML would read it as something else (a tag named 1.0)."""
    return word if yaml.safe_load(word) == word else f"'{word}'"


def run_recipe(name: str, command: Sequence[str]) -> int:
    """Print the command of a recipe on stderr, run it, and return its exit code.

    Raises:
        ExtraMissing: torch or trl is not installed.
    """
    if missing := [m for m in ("torch", "trl") if importlib.util.find_spec(m) is None]:
        raise ExtraMissing(f"recipe {name} needs {' and '.join(missing)}: {INSTALL}")
    print(shlex.join(command), file=sys.stderr, flush=True)
    try:
        return subprocess.run(command, check=False).returncode
    except KeyboardInterrupt:
        return 130
