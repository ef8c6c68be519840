"""Every file of cases.py is read rightly, or refused with a fix that works when it is typed."""

from __future__ import annotations

import re
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from layouts.cases import CASES, Case
from layouts.examples import EXAMPLES
from layouts.page import PAGE, page_with_table

import mora_data.sources.layouts
from mora_data.errors import DropRow, MoraError
from mora_data.settings import load_settings, parse_override
from mora_data.sources.layouts import LAYOUTS
from mora_data.sources.mine import MineCounts, by_file, checked_text, open_source

HOSTILE: list[Any] = [None, 7, "", [], {}, [None], [7], [[]], [{}], {"role": 1}, "\x00", True]


def read(path: Path, given: dict[str, Any]) -> tuple[list[str], list[Any]]:
    """What is asked, and the rated answers."""
    settings = load_settings("auto", given)
    opened = open_source(settings, False, [path])
    asks, rated = [], []
    for _, file, row in by_file(opened, settings, MineCounts()):
        try:
            if isinstance(row, DropRow):
                raise row
            parsed = opened.source.parse(row, file)
            checked_text(parsed.messages)
            asks.append(
                " / ".join(
                    f"{'S:' * (m['role'] == 'system')}{m['content']}" for m in parsed.messages
                )
            )
            rated += [(text, dict(ratings)) for text, ratings in parsed.answers]
        except DropRow as e:
            asks.append(f"!{e.reason}")
    return asks, rated


def typed(message: str) -> dict[str, Any]:
    """What the first way on that a message names sets."""
    way = re.search(r"(--(?:set|layout) (?:'[^']*'|[^\s,;]+))", message)
    if way is None:
        return {}
    _, value = shlex.split(way[1])
    return dict([parse_override(value)])


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_a_file_is_read_rightly_or_refused_with_a_fix_that_works(
    case: Case, tmp_path: Path
) -> None:
    path, given = case.write(tmp_path), case.given
    if case.refused:
        with pytest.raises(MoraError, match=case.refused) as refused:
            read(path, given)
        said = str(refused.value)
        assert "\n" not in said
        if not case.asks:
            return
        if near := re.search("did you mean '(.*)'", said):
            given = {"source.columns.prompt": near[1]}
        elif "leave source.layout out" in said:
            given = {}
        else:
            fix = typed(said)
            assert fix, said
            given = {**given, **fix}
        if "has no layout" in said and len(list(path.parent.rglob("*.jsonl"))) > 1:
            asks = read(path / "a.jsonl", {})[0] + read(path / "b.jsonl", given)[0]
            assert asks == case.asks
            return
    asks, rated = read(path, given)
    assert asks == case.asks
    if case.rated is not None:
        assert rated == case.rated


def test_there_are_enough_files_of_different_names() -> None:
    assert len(CASES) >= 150 and len({c.name for c in CASES}) == len(CASES)


def test_the_page_of_layouts_is_made_from_the_code() -> None:
    text = PAGE.read_text("utf-8")
    assert page_with_table(text) == text, "run make pages"
    entry = re.search(r"```text\n(    Layout\(.*?)```", text, re.S)
    source = Path(mora_data.sources.layouts.__file__).read_text("utf-8")
    assert entry and entry[1] in source


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda x: x.name)
def test_the_example_of_a_layout_is_of_it(layout: Any, tmp_path: Path) -> None:
    from mora_data.settings import SourceSettings
    from mora_data.sources.auto import Auto

    source, example = Auto(SourceSettings(kind="auto")), EXAMPLES[layout.name]
    assert layout.what in source.look([example], "f")
    assert source._laid_out(example)[0].name == layout.name
    assert source.parse(example, "f").messages[-1]["role"] == "user"
    for column in example:
        for value in HOSTILE:  # a row of these columns that is none of the layout
            row = {**example, column: value}
            for parser in (source, Auto(SourceSettings(kind="auto"))):
                with suppress(DropRow):
                    parser.parse(row, "f")
