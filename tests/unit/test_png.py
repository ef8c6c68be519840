"""The card's figures as PNG: drawn where the extra is there, named by the manifest, published, and
left out without harm."""

from __future__ import annotations

import json
import re
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
from support.run_folder import make_run

from mora_data.api import build
from mora_data.dataset.lint import lint
from mora_data.dataset.push import _local_files
from mora_data.report.document import arms_report
from mora_data.report.page import CARD_CHARTS, pictures, sheet, svg_style


@pytest.fixture(scope="module")
def module() -> Any:
    """The extra itself, which conftest.py hides from all other tests; it can be imported only
    once."""
    hidden = sys.modules.pop("resvg_py", None)
    try:
        return pytest.importorskip(
            "resvg_py", reason="resvg-py is not installed: pip install 'mora-data[png]'"
        )
    finally:
        sys.modules["resvg_py"] = hidden  # type: ignore[assignment]


@pytest.fixture
def resvg(module: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(sys.modules, "resvg_py", module)
    return module


def test_the_pictures_of_a_run(tmp_path: Path, resvg: Any) -> None:
    report = arms_report(make_run(tmp_path / "run", {"identity": 0.2, "fused": 0.6}, 12))
    found = pictures(report)
    assert set(found) == {chart(report).name for chart in CARD_CHARTS}
    for name, (question, png) in found.items():
        assert (
            png[:8] == b"\x89PNG\r\n\x1a\n" and 1000 < struct.unpack(">I", png[16:20])[0] < 2000
        ), name
        assert 5_000 < len(png) < 300_000 and question.endswith("?")
    assert pictures(report)["arms"] == found["arms"]


def test_nothing_is_left_for_the_browser_to_look_up() -> None:
    css = svg_style()
    assert (
        "var(" not in css
        and "@media" not in css
        and "{color:#0072b2}" in css
        and css.count("{") == css.count("}")
    )


def test_panels_stand_side_by_side(tmp_path: Path) -> None:
    report = arms_report(make_run(tmp_path / "run", {"identity": 0.2, "fused": 0.6}, 12))
    for chart in CARD_CHARTS:
        f = chart(report)
        drawn = sheet(f)
        assert drawn.count("<svg ") == 1 + min(len(f.panels), 12)
        assert len(set(re.findall(r'<svg x="\d+" y="\d+"', drawn))) == min(len(f.panels), 12)


def test_a_machine_without_fonts_draws_nothing(
    tmp_path: Path, resvg: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = arms_report(make_run(tmp_path / "run", {"fused": 0.6}, 12))
    draw = resvg.svg_to_bytes
    monkeypatch.setattr(
        resvg, "svg_to_bytes", lambda **given: draw(**given, skip_system_fonts=True)
    )
    assert pictures(report) == {}


def test_the_card_shows_them_where_they_are(tmp_path: Path, resvg: Any) -> None:
    settings = {"mine.limit": 10, "rollout.n": 4}
    build("pku-saferlhf", sample=True, out=tmp_path / "with", quiet=True, overrides=settings)
    card = (tmp_path / "with/dataset/README.md").read_text("utf-8")
    figures = json.loads((tmp_path / "with/dataset/provenance/manifest.json").read_text())[
        "manifest"
    ]["figures"]
    assert (
        {f["file"] for f in figures}
        == {f"report/{p.name}" for p in (tmp_path / "with/dataset/report").iterdir()}
        != set()
    )
    for f in figures:
        assert f"![{f['question']}]({f['file']})" in card
    assert lint(tmp_path / "with/dataset") == []
    assert {f["file"] for f in figures} <= set(_local_files(tmp_path / "with/dataset", card))
