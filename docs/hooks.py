"""Pages of the site that are made from other files: the commands from their `--help`, what changed
from CHANGELOG.md, and SECURITY.md."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    pages = {"cli.md": commands()}
    for name in ("CHANGELOG.md", "SECURITY.md"):
        pages[name.lower()] = (ROOT / name).read_text("utf-8").replace("](docs/", "](")
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """What lies beside the folder of pages is a page of the site."""
    return markdown.replace("](../SECURITY.md", "](security.md")


def commands() -> str:
    """Every command's help, in the order of `mora-data --help`."""
    os.environ["COLUMNS"] = "100"  # argparse wraps at the terminal's width
    from mora_data.cli import _parser

    top = _parser()
    out = ["# Commands", *_help(top)]
    subparsers = next(a for a in top._actions if isinstance(a, argparse._SubParsersAction))
    for name, command in subparsers.choices.items():
        out += [f"## {name}", *_help(command)]
    return "\n\n".join(out) + "\n"


def _help(parser: argparse.ArgumentParser) -> list[str]:
    return [f"```text\n{parser.format_help().strip()}\n```"]
