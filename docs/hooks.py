"""Pages of the site that are made from other files: the commands from their `--help`, the notebook
with its outputs, what changed from CHANGELOG.md, and SECURITY.md."""

from __future__ import annotations

import argparse
import json
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    pages = {"cli.md": commands(), "notebook.md": notebook()}
    for name in ("CHANGELOG.md", "SECURITY.md"):
        pages[name.lower()] = (ROOT / name).read_text("utf-8").replace("](docs/", "](")
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """What lies beside the folder of pages is a page of the site."""
    markdown = markdown.replace("](notebook.ipynb", "](notebook.md")
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


def notebook() -> str:
    """The cells of notebook.ipynb and what they show."""
    out = []
    for cell in json.loads((ROOT / "docs/notebook.ipynb").read_text("utf-8"))["cells"]:
        source = "".join(cell["source"])
        out.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for shown in cell.get("outputs", ()):
            data = shown.get("data", {"text/plain": shown.get("text")})
            page, text = data.get("text/html"), data["text/plain"]
            out.append(_flat(page, len(out)) if page else f"```text\n{text}\n```")
    return "\n\n".join([*out, '<a href="../notebook.ipynb">The notebook as a file</a>', ""])


def _flat(page: str, number: int) -> str:
    """HTML that Markdown leaves alone: no empty lines, headings below the page's, names that are
    unique in it."""
    flat = " ".join(filter(None, map(str.strip, page.splitlines())))
    flat = re.sub(r"(</?h)([2-4])", lambda m: f"{m[1]}{int(m[2]) + 1}", flat)
    flat = re.sub('aria-label="([^"]*)"', rf'aria-label="\1 {number}"', flat)
    return f"<div>{flat.replace('<th></th>', '<td></td>')}</div>"


def _help(parser: argparse.ArgumentParser) -> list[str]:
    return [f"```text\n{parser.format_help().strip()}\n```"]
