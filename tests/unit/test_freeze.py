"""The frozen copy: every link leads to a page of the folder, it is bounded, harmless, and the same
again."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.run_folder import make_run
from support.viewing import HOSTILE, TAGS, Seen, dataset

from mora_data.cli import main
from mora_data.errors import DamagedFile, RunFolderError
from mora_data.viewer.freeze import freeze


def pages(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text("utf-8") for p in sorted(folder.glob("*.html"))}


def check(folder: Path) -> dict[str, str]:
    """Every page whole and harmless, every link and anchor inside the folder."""
    found = pages(folder)
    seen = {name: Seen(text) for name, text in found.items() if name != "report.html"}
    ids = {name: set(s.ids) for name, s in seen.items()}
    for name, s in seen.items():
        assert not s.open and s.tags <= TAGS | {"style", "g"} and "form" not in s.tags, (
            name,
            s.tags - TAGS,
        )
        assert "default-src 'none'" in found[name] and not {
            a for a in s.attributes if a.startswith("on")
        }
        for link in s.links:
            file, _, anchor = unescape(link).partition("#")
            assert file in found or not file, (name, link)
            target = file or name
            assert (
                not anchor or target == "report.html" or anchor in ids[target] or anchor == "main"
            ), (name, link)
    assert len(seen) > 3
    return found


def test_every_link_stays_in_the_folder(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {"identity": 0.2, "fused": 0.6}, 12, text=HOSTILE)
    (run / "report.html").write_text("<!doctype html><title>r</title>")
    done = freeze(run, tmp_path / "a", 500)
    found = check(tmp_path / "a")
    assert done == {"pages": len(found) - 1, "pairs": 12, "of": 12}
    assert sum(name.startswith("pair-") for name in found) == 12
    # those of the pairs, and those of the list: in this toy run they are others
    assert sum(name.startswith("prompt-") for name in found) == 24
    linked = set(re.findall(r'href="([^"#]+)', "".join(found.values())))
    assert found.keys() - linked == set()
    freeze(run, tmp_path / "b", 500)
    assert pages(tmp_path / "b") == found and (tmp_path / "b/robots.txt").read_text().endswith(
        "Disallow: /\n"
    )


def test_it_is_bounded_and_says_so(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "set", 130)
    done = freeze(folder, tmp_path / "out", 20)
    found = check(tmp_path / "out")
    assert done["pairs"] == sum(name.startswith("pair-") for name in found) == 20
    assert "20 of 130 pairs have their page" in found["index.html"]
    # the lists themselves are whole
    for name in ("pairs", "prompts"):
        pages_of = [text for n, text in found.items() if n.startswith(f"{name}-")]
        assert sum("51 to 100 of 130" in text for text in pages_of) == 1


def test_ids_that_are_no_file_names(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "set", 8)
    odd = ["a/b", "a-b", "../../x", "é", "x" * 300, "a\nb", ".", "?#"]
    for f in sorted((folder / "preference").glob("*.parquet")):
        table = pq.read_table(f)
        ids = pa.array([odd.pop() for _ in range(len(table))], pa.string())
        at = table.schema.get_field_index("pair_id")
        pq.write_table(table.set_column(at, table.schema.field(at), ids), f)
    assert freeze(folder, tmp_path / "out", 20)["pairs"] == 8
    assert sum(name.startswith("pair-") for name in check(tmp_path / "out")) == 8
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "set"]


def test_it_gives_nothing_away_from_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s3cret")
    folder = dataset(tmp_path / "set", 8)
    (folder / "report.html").symlink_to(tmp_path / "secret")
    with pytest.raises(DamagedFile, match="leads out of its folder"):
        freeze(folder, tmp_path / "out", 20)
    assert not (tmp_path / "out").exists()


def test_runs_in_every_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "manifest.json").write_text('{"identity": {"dataset": "x"}, "status": "started"}')
    assert (
        main(["view", str(empty), "--freeze", str(tmp_path / "e")]) == 0
        and "0 of 0 pairs" in capsys.readouterr().out
    )
    half = make_run(tmp_path / "half", {"fused": 0.6}, 12, seal=False, pairs=0)
    assert freeze(half, tmp_path / "h", 5)["of"] == 0
    check(tmp_path / "h")
    with pytest.raises(RunFolderError, match="is not empty"):
        freeze(half, tmp_path / "h", 5)
    for bad in (tmp_path / "none", half / "build.yaml"):
        assert main(["view", str(bad), "--freeze", str(tmp_path / "x")]) == 1
    assert main(["view", str(half), "--freeze", str(half / "build.yaml")]) == 1
    assert all("Traceback" not in line for line in capsys.readouterr().err.splitlines())
