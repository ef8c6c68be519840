"""The table of layouts on docs/data.md, made from the code and the cases.

make pages
"""

from __future__ import annotations

import json
from pathlib import Path

from mora_data.sources.layouts import LAYOUTS

from .examples import EXAMPLES

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
START, END = "<!-- made by: make pages -->\n", "<!-- end -->"


def layouts_table() -> str:
    """A line for each layout: its name, how it is recognised, an example; the test of all is
    tests/layouts/test_layouts.py."""
    lines = ["", "| layout | recognised by | example |", "|---|---|---|"]
    for x in LAYOUTS:
        example = json.dumps(EXAMPLES[x.name]).replace("|", "\\|")
        lines.append(
            f"| {x.name}: {x.what} | {x.known_by.replace('|', chr(92) + '|')} | `{example}` |"
        )
    lines += ["", "Each example is a test (`tests/layouts/test_layouts.py`).", ""]
    return "\n".join(lines) + "\n"


def page_with_table(text: str) -> str:
    """The page, with the table as the code has it now."""
    before, rest = text.split(START)
    return before + START + layouts_table() + END + rest.split(END, 1)[1]
