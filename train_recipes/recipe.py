# /// script
# requires-python = ">=3.11"
# dependencies = ["pyyaml>=6.0"]
# ///
"""What every recipe does, whatever it trains with: settings from YAML and key=value, failures in
one line, results by rename."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import yaml


class Stop(Exception):
    """A stated failure; its text is one line."""


def read_values(
    file: Path | None,
    overrides: list[str],
    make: Callable[[dict[str, Any]], Any] = lambda values: values,
) -> Any:
    """What `make` makes of a flat YAML file with key=value on top of it."""
    try:
        values = yaml.safe_load(file.read_text("utf-8")) if file else {}
        values |= {
            key: yaml.safe_load(value)
            for key, _, value in (text.partition("=") for text in overrides)
        }
        return make(values)
    except (OSError, ValueError, TypeError, yaml.YAMLError) as e:
        raise Stop(
            f"can't read the settings {file or ''} {' '.join(overrides)}:"
            f" {' '.join(str(e).split())}"
        ) from e


def dataset_name(name: str, revision: str | None) -> str:
    """A local dataset folder, `~` expanded, or a Hub id; Stop where it is neither."""
    if Path(name).expanduser().is_dir():
        name = str(Path(name).expanduser())
        if revision is not None:
            raise Stop(
                f"revision={revision} means nothing for the local folder {name}: leave it out, or"
                " give a Hub id"
            )
    elif not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name):
        raise Stop(f"no dataset folder {name}, and it is not a Hub id either")
    return name


def shown(name: str) -> str:
    """A dataset or model on a card, where no path of this machine may stand."""
    return f"the local folder {Path(name).name}" if Path(name).is_dir() else name


def with_template(tokenizer: Any, model: str, ends: Collection[int] = ()) -> Any:
    """The tokenizer; Stop where it can't render messages, or its template ends an answer with none
    of `ends`, the tokens at which the model stops: it would learn not to stop."""
    if tokenizer.chat_template is None:
        raise Stop(
            f"model {model} has no chat template to render messages with: take its chat or instruct"
            " version"
        )
    if ends:
        talk = [{"role": r, "content": "a"} for r in ("user", "assistant")]
        try:
            text = tokenizer.apply_chat_template(talk, tokenize=False).rstrip()
        except Exception as e:  # whatever a template of a model repository raises
            raise Stop(
                f"the chat template of {model} renders no user's and assistant's turn:"
                f" {first_line(e)}"
            ) from e
        known = [tokenizer.convert_ids_to_tokens(i) or "" for i in ends]
        if not text.endswith(tuple(filter(None, known))):
            raise Stop(
                f"the chat template of {model} ends an answer with {text[-12:]!r}, but the model"
                f" stops at {' or '.join(map(repr, known))}: give the eos_token that the template"
                " writes in the model's generation_config.json and tokenizer_config.json"
            )
    return tokenizer


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def write_json(file: Path, tree: Any) -> None:
    """The file appears whole or not at all."""
    part = file.with_name(f"{file.name}.part")
    part.write_text(json.dumps(tree, indent=2) + "\n", "utf-8")
    part.replace(file)


def command_line(
    doc: str | None,
    work: Callable[[Path | None, list[str]], None],
    interrupted: str = "the same command with resume=true goes on from the last checkpoint",
) -> int:
    """Run `work` with the command's YAML file and its key=value; the exit code."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    parser.add_argument(
        "--config", type=Path, metavar="FILE.yaml", help="flat YAML file of settings"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="settings on top of the file, read as YAML",
    )
    given = parser.parse_args()
    try:
        work(given.config, given.overrides)
    except Stop as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted; {interrupted}", file=sys.stderr)
        return 130
    return 0
