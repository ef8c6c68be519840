"""Writes anew every page that shows what the code makes: the README's pair and counts, its picture,
docs/capacity.md, docs/settings.md, the table of docs/data.md, the notebook's outputs.

    make pages        (python -m tests.support.pages, after pip install -e ".[dev]")

A changed template, rubric or default moves the simulator's draws, and most of these with them. The
tests say which page no longer shows what this writes.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mora_data
from benchmarks import reward_space
from mora_data.cli import main, settings
from mora_data.cli.show import counts_table
from mora_data.run.folder import run_status
from mora_data.settings import BuildSettings
from tests.layouts.page import page_with_table
from tests.support.notebook import executed

ROOT = Path(__file__).parents[2]
OUTPUT = "```text\n"


def readme(text: str, run: Path) -> str:
    """The README with the demo's counts, and a pair of the source prompt that it shows; where that
    has none any more, the pair with the largest margin."""
    rows = [r for split in ("train", "test") for r in mora_data.load_run(run).pairs(split=split)]
    (shown,) = re.findall(r"^\| source prompt \| (.*) \|$", text, re.M)
    row = max(rows, key=lambda r: (r["source_prompt"] == shown, r["margin_total"]))
    pair = _replaced(text, "| source prompt |", "\n\n| | chosen", _prompts(row))
    pair = _replaced(pair, "| answer |", "\n\nEvery prompt", _answers(row))
    return _replaced(pair, OUTPUT, "\n```", OUTPUT + counts_table(run_status(run).counts))


def _prompts(row: Mapping[str, Any]) -> str:
    prompt = row["prompt"][-1]["content"]
    return f"| source prompt | {row['source_prompt']} |\n| prompt | {prompt} |"


def _answers(row: Mapping[str, Any]) -> str:
    """The texts of both sides, then a line for each dimension."""
    chosen, rejected = (row[side][0]["content"] for side in ("chosen", "rejected"))
    lines = [f"| answer | {chosen} | {rejected} | | |"]
    columns = ("chosen_reward", "rejected_reward", "margin", "margin_confirmed")
    for d in row["dims"]:
        lines.append(" | ".join([f"| {d}", *(f"{row[f'{c}_{d}']:.2f}" for c in columns)]) + " |")
    return "\n".join(lines)


def capacity(text: str) -> str:
    """docs/capacity.md with what its command prints: the estimate but for the line of time, and the
    table."""
    (command,) = re.findall(r"^mora-data (build .*)$", text, re.M)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(shlex.split(command)) == 0
    estimate, at, table = out.getvalue().partition("At 20,000 tokens/s")
    text = _replaced(text, OUTPUT, "\n```", OUTPUT + estimate.rpartition("time ")[0].rstrip())
    return _replaced(text, at, "\n\n## How", (at + table).rstrip())


def settings_page() -> str:
    """docs/settings.md."""
    meanings = settings.meanings_of(BuildSettings)
    out = [
        "# Settings",
        "",
        "Every setting of a build, made from the code. `mora-data settings SECTION` prints them.",
        "They stand in a builder's YAML, or behind `--set`, as in the examples. Flags win over",
        "`--set`, that over the YAML, and the YAML over the defaults.",
        "",
        "`Only with` says which other setting makes one work. What would do nothing is refused at",
        "once, in a line that names both, unless it stands in the YAML and a flag or",
        "`--set` turned it off: then it is left out.",
        "",
        "Where several settings belong together the example gives their whole mapping.",
    ]
    for name, found in settings.sections().items():
        out += ["", f"## {name}", "", meanings.get(name, "What stands in no section.")]
        if name == "policy":
            out += [
                "`rewriter`, `judge`, `heldout_judge` and every `endpoint` have the same settings.",
                "A rewriter's `temperature` is 0.7; a judge's is 0.0, its `max_tokens` 256. Both",
                "`use` the policy where they name no endpoint.",
            ]
        out += ["", "| setting | type | default | meaning | example |", "|---|---|---|---|---|"]
        for s in found:
            default = "must be given" if s.default is None else f"`{_cell(s.default)}`"
            cells = [f"`{s.path}`", _cell(s.type), default, _cell(s.meaning)]
            out.append(f"| {' | '.join(cells)} | `{_cell(s.example)}` |")
    return "\n".join(out) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _replaced(text: str, start: str, end: str, new: str) -> str:
    """`text` with `new` from the first `start` up to the next `end`, which stays."""
    before, found, rest = text.partition(start)
    assert found and end in rest, f"the page has no {start!r} before {end!r}"
    return before + new + end + rest.partition(end)[2]


def write_all() -> None:
    """Every page, in its place."""
    docs = ROOT / "docs"
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "demo"
        mora_data.build("pku-saferlhf", sample=True, out=run, quiet=True)
        pages = {
            ROOT / "README.md": lambda text: readme(text, run),
            docs / "reward-space.svg": lambda _: reward_space.draw(run),
            docs / "capacity.md": capacity,
            docs / "settings.md": lambda _: settings_page(),
            docs / "data.md": page_with_table,
            docs / "notebook.ipynb": executed,
        }
        for path, page in pages.items():
            before = path.read_text("utf-8")
            after = page(before)
            if after != before:
                path.write_text(after, "utf-8")
                print(f"{path.relative_to(ROOT)} written anew")


if __name__ == "__main__":
    write_all()
