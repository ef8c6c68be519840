"""Files of a run folder: written whole, in an order that survives a power loss, never through a
link; a damaged one is one line; files of others are bounded."""

from __future__ import annotations

import csv
import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.run_folder import make_run

from mora_data.cli import main
from mora_data.dataset.schemas import papers_of
from mora_data.errors import DamagedFile, MoraError, RunFolderError, SettingsError, SourceError
from mora_data.resources import parse_yaml
from mora_data.run.files import read_json, readable, replacing, write_json, write_whole
from mora_data.run.folder import RunFolder, manifest_of
from mora_data.run.log import AnswerLog
from mora_data.run.partitions import Partition
from mora_data.settings import load_settings, parse_override
from mora_data.sources import containers, read
from mora_data.viewer.pairs import ReviewSession

MANIFEST = {"settings": "x", "n_prompts": 0, "counts": {}, "owed": []}


def finalized(run: Path) -> Partition:
    """A partition that was open, with its log, and is finalized."""
    part = Partition(run, 0)
    part.keep_prompts([])
    part.folder.mkdir(parents=True, exist_ok=True)
    part.keep_prompts([])
    (part.folder / "prompts.jsonl").touch()
    log = AnswerLog(part.log_path)
    log.close()
    part.finalize({}, [], [], MANIFEST)
    return part


def test_the_log_goes_when_all_else_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, str]] = []
    opened: dict[int, str] = {}

    def seen(owner: object, name: str, of: Callable[..., str]) -> None:
        real = getattr(owner, name)

        def call(*args: Any, **more: Any) -> Any:
            given = of(*args)
            out = real(*args, **more)
            if name == "open":
                opened[out] = given
            else:
                done.append((name, given))
            return out

        monkeypatch.setattr(owner, name, call)

    for name in ("replace", "unlink"):  # Python 3.10's `Path` does not look them up in `os`
        seen(Path, name, lambda path, *_, **__: path.name)
    seen(os, "open", lambda path, *_: Path(path).name)
    seen(os, "fsync", lambda fd: opened[fd])
    part = finalized(tmp_path)
    end = done.index(("unlink", "answers.log"))
    renamed = [i for i, (what, _) in enumerate(done) if what == "replace"]
    assert len(renamed) >= 3 and max(renamed) < end == len(done) - 1
    for i in renamed:  # its bytes before it has its name
        assert ("fsync", done[i][1]) in done[:i]
    assert done[renamed[-1]][1] == "manifest.json.tmp"
    folders = [i for i, call in enumerate(done) if call == ("fsync", part.folder.name)]
    assert max(renamed[:-1]) < folders[0] < renamed[-1] < folders[1] < end


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_the_system_sees_that_order_too(tmp_path: Path) -> None:
    code = "import sys, pathlib as p, unit.test_files as t; t.finalized(p.Path(sys.argv[1]))"
    calls = "fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat"
    argv = ["strace", "-f", "-y", "-e", f"trace={calls}", sys.executable, "-c", code]
    paths = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
    done = subprocess.run(
        [*argv, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ":".join(paths)},
        check=False,
    )
    if done.returncode:
        pytest.skip(f"strace may not trace here: {done.stderr[-100:]}")
    lines = [x for x in done.stderr.splitlines() if "parts/00000" in x and "ENOENT" not in x]
    end = next(i for i, x in enumerate(lines) if "unlink" in x and "answers.log" in x)
    assert "fsync" in lines[end - 1] and "parts/00000>" in lines[end - 1]
    assert "rename" in lines[end - 2] and "manifest.json" in lines[end - 2]
    for at, line in enumerate(lines):
        if "rename" in line:
            assert "fsync" in lines[at - 1], lines[: at + 1]


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("mine")
    for name in ("report.json.tmp", "answers.log", "reviews.jsonl"):
        (tmp_path / name).symlink_to(tmp_path / "secret")
    write_whole(tmp_path / "report.json", b"{}")
    with pytest.raises(RunFolderError, match="can't open the answer log"):
        AnswerLog(tmp_path / "answers.log")
    with pytest.raises(RunFolderError, match="can't write"):
        ReviewSession(tmp_path, "ada").add("0", "first")
    assert (tmp_path / "secret").read_text() == "mine"
    assert (tmp_path / "report.json").read_bytes() == b"{}"
    assert not (tmp_path / "report.json.tmp").exists()


def test_what_can_not_be_written_is_one_line(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(RunFolderError, match="remove the folder that stands there"):
        write_whole(tmp_path / "a", b"x")
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "b") as part:
        part.write_bytes(b"half")
        raise ZeroDivisionError
    assert [p.name for p in tmp_path.iterdir()] == ["a"]

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFolderError, match="No space left on device; free some space"):
        write_whole(tmp_path / "b", b"x")


def test_a_report_on_a_disk_that_can_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", {"identity": 0.2, "fused": 0.6}, 12)

    def read_only(*_: Any) -> Any:
        raise OSError(30, "Read-only file system")

    real = os.open
    monkeypatch.setattr(os, "open", lambda p, f, *m: read_only() if f & os.O_CREAT else real(p, f))
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: read_only())
    assert main(["report", str(run)]) == 1
    err = capsys.readouterr().err
    assert err.startswith("mora-data: can't write") and "Read-only" in err and err.count("\n") == 1


def test_a_flipped_digit_in_a_state_file_makes_it_a_lost_one(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"b": 1.5, "a": [1, None, "é"], 3: float("nan")})  # type: ignore[dict-item]
    assert read_json(path) == {"b": 1.5, "a": [1, None, "é"], "3": None}
    path.write_bytes(path.read_bytes().replace(b"1.5", b"1.7"))
    assert read_json(path) == {}
    path.write_text('{"by": "hand"}')
    assert read_json(path) == {"by": "hand"}


@pytest.mark.parametrize("error", [OSError(5, "I/O"), MemoryError(), RecursionError(), KeyError(1)])
def test_what_a_library_says_of_a_file_is_one_error(error: Exception) -> None:
    with pytest.raises(DamagedFile, match=r"x can't be read \(.+\): again"), readable("x", "again"):
        raise error


def test_a_folder_without_a_prompt_takes_the_corrected_command(tmp_path: Path) -> None:
    """`can't fetch ...: give --sample` led to "is another build"."""
    with RunFolder(tmp_path / "run", {"config": "default"}, False):
        pass
    with RunFolder(tmp_path / "run", {"config": "sample"}, False) as f:
        assert manifest_of(f.path)["identity"] == {"config": "sample"}


def test_a_run_without_its_manifest_goes_on(tmp_path: Path) -> None:
    identity = {"dataset": "a"}
    run = tmp_path / "run"
    with RunFolder(run, identity, False) as f:
        f.write("mine.json", {"identity": identity, "n_parts": 0})
    (run / "manifest.json").unlink()
    with pytest.raises(RunFolderError, match="is another build"), RunFolder(run, {}, False):
        pass
    with RunFolder(run, identity, False) as f:
        assert manifest_of(f.path) == {"identity": identity, "status": "started"}
    for name in ("manifest.json", "mine.json"):
        (run / name).write_bytes(b"")
    with RunFolder(run, identity, False) as f:  # its secret tells
        assert manifest_of(f.path)["identity"] == identity
    (run / "manifest.json").unlink()
    (run / "secret").unlink()
    with pytest.raises(RunFolderError, match="not a run folder"), RunFolder(run, identity, False):
        pass
    part = Partition(run, 0)
    part.folder.mkdir(parents=True)
    (part.folder / "prompts.jsonl").touch()
    with RunFolder(run, identity, False):
        assert part.folder.exists()
    with RunFolder(run, identity, True):
        assert not part.folder.exists()


@pytest.mark.parametrize("name", ["parts", "mine.json", "manifest.json", "secret"])
def test_a_folder_of_another_kind_is_never_emptied(tmp_path: Path, name: str) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    if name == "parts":
        (tmp_path / name).mkdir()
        (tmp_path / name / "prompts.jsonl").touch()
    else:
        (tmp_path / name).write_text('{"name": "x"}')
    with pytest.raises(RunFolderError, match="not a run folder"):
        RunFolder(tmp_path, {"dataset": "a"}, True)
    assert (tmp_path / "thesis.tex").exists()


def files(path: Path) -> list[read.DataFile]:
    return read.find([path], [])


def rows(path: Path) -> list[Any]:
    return [r.row.reason if isinstance(r.row, Exception) else r.row for r in read.rows(files(path))]


@pytest.mark.parametrize("zipped", [False, True])
def test_a_line_of_any_length_is_a_dropped_row(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    zipped: bool,
) -> None:
    request.addfinalizer(partial(csv.field_size_limit, csv.field_size_limit(64)))  # a process's
    monkeypatch.setattr(containers, "LONGEST_LINE", 64)
    monkeypatch.setattr(containers, "LARGEST_WHOLE", 100)
    save = (lambda p, b: p.write_bytes(gzip.compress(b))) if zipped else Path.write_bytes
    end = ".gz" if zipped else ""
    for long in (b"x" * 64, b"x" * 63, b"x" * 1000, b'{"a": "' + b"y" * 200 + b'"}'):
        path = tmp_path / f"a.jsonl{end}"
        save(path, b'{"a": 1}\n' + long + b'\n{"a": 2}')
        first, middle, last = rows(path)
        assert (first, last) == ({"a": 1}, {"a": 2})
        assert middle == ("bad_json" if len(long) == 63 else "line_too_long")
    for name, data, says in (
        (f"a.csv{end}", b"a,b\n1,2\n" + b"x" * 70, "a line of more than"),
        (f"b.csv{end}", b'a,b\n1,"' + b"x\n" * 70, "field larger than"),
        (f"a.json{end}", b"[" + b" " * 200 + b"]", "would be read at once"),
    ):
        save(tmp_path / name, data)
        with pytest.raises(SourceError, match=says) as e:
            rows(tmp_path / name)
        assert "\n" not in str(e.value)


DEEP = 100_000


@pytest.mark.parametrize("depth", [200, 300, 900, 1010, 2000, DEEP])
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_data_nested_deeply_is_no_traceback(tmp_path: Path, depth: int, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    said = '{"role": "user", "content": ' + "[" * depth + "]" * depth + "}"
    path.write_text(f'{{"prompt": "How?", "a": [{said}]}}')
    out = tmp_path / "run"
    for source in (["--source", "jsonl", "--data", str(path)], ["--source", str(path)]):
        assert main(["build", *source, "--until", "mine", "--out", str(out), "--fresh"]) in (0, 1)
        path.write_text(path.read_text().replace("prompt", "b"))  # of no layout: it is described


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [*a]",
        "a: &a {b: *a}",
        "a: &a [1]\n"
        + "".join(f"x{i}: &x{i} [{f'*x{i - 1}, ' * 9}]\n" for i in range(1, 12)).replace(
            "*x0", "*a"
        ),
        "[" * 1000,
        "{a: " * 1000,
        "- " * 1000,
        "!!timestamp x",
        "!!bool x",
        "2024-13-45",
        "!!int ''",
    ],
)
def test_yaml_that_no_reader_takes_is_one_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(yaml.YAMLError):
        parse_yaml(text)
    (tmp_path / "x.yaml").write_text(text)
    for call in (
        lambda: load_settings(str(tmp_path / "x.yaml")),
        lambda: parse_override(f"a={text}"),
    ):
        with pytest.raises(SettingsError) as e:
            call()
        assert "\n" not in str(e.value)


def test_export_and_push_follow_no_link_out_of_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", {"identity": 0.2, "fused": 0.6}, 12)
    file = next((run / "dataset" / "preference").glob("train-*.parquet"))
    shutil.move(file, tmp_path / "elsewhere.parquet")
    file.symlink_to(tmp_path / "elsewhere.parquet")
    argv = ["export", str(run), "--config", "preference", "--to", str(tmp_path / "out")]
    assert main(argv) == 1
    assert "leads out of its folder" in capsys.readouterr().err
    file.unlink()
    shutil.move(tmp_path / "elsewhere.parquet", file)
    (run / "dataset" / "provenance" / "key").symlink_to("/etc/hostname")
    assert main(["push", str(run), "org/x", "--dry-run"]) == 1
    assert "leads out of its folder" in capsys.readouterr().err


def test_a_push_sees_what_was_changed_beside_the_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", {"identity": 0.2, "fused": 0.6}, 12)
    dataset, manifest = run / "dataset", read_json(run / "manifest.json")
    write_json(run / "manifest.json", {**manifest, "papers": papers_of(dataset)})
    argv = ["push", str(run), "org/x", "--dry-run", "--allow-simulated"]
    assert main(argv) == 0 and "since the build" not in capsys.readouterr().err
    licence = dataset / "LICENSE.md"
    licence.write_text(licence.read_text() + "A word of mine.\n")
    assert main(argv) == 0 and "LICENSE.md was changed since the build" in capsys.readouterr().err
    drops = dataset / "provenance" / "drops.json"
    drops.write_text(drops.read_text().replace("stages", "stagez"))
    assert main(argv) == 1
    assert "drops.json is not what the build wrote: build again" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["manifest.json", "dataset/README.md", "parts/00000/x.json"])
@pytest.mark.parametrize("kind", ["pipe", "device", "huge"])
def test_a_folder_of_others_keeps_no_command_waiting(
    tmp_path: Path, name: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as f:
            f.truncate(1 << 40)
    run = str(tmp_path / "run")
    for argv in (
        ["status", run],
        ["view", run],
        ["push", run, "org/x", "--dry-run"],
        ["diff", run, run],
        ["build", "--source", "pku-saferlhf", "--sample", "--out", run],
        ["evaluate", "a=http://127.0.0.1:9/v1", "--dataset", run],
    ):
        assert main(argv) == 1
        said = capsys.readouterr().err
        assert name in said and said.rstrip().endswith(": remove it"), said


def test_no_memory_left_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(path: Path) -> None:
        raise MemoryError

    monkeypatch.setattr("mora_data.run.folder.is_run_folder", none)
    assert main(["status", "x"]) == 1
    assert capsys.readouterr().err.startswith("mora-data: there is not enough memory")


def test_a_status_of_a_damaged_run_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", {"fused": 0.6}, 12)
    assert main(["status", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["partitions_sealed"] == 2
    (run / "parts/00001/prompts.jsonl").unlink()
    for argv in (["status", str(run)], ["report", str(run)]):
        assert main(argv) == 1
        err = capsys.readouterr().err
        assert "parts/00001/prompts.jsonl can't be read" in err and err.count("\n") == 1


def test_a_changed_byte_in_any_file_of_a_partition_is_seen(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {"fused": 0.6}, 4, parts=1, pairs=0)
    part = Partition(run, 0)
    names = sorted(p.name for p in part.folder.iterdir() if p.stat().st_size)
    assert part.damage() is None and len(names) > 6
    for name in names:
        path = part.folder / name
        good = path.read_bytes()
        for at in (0, len(good) // 3, len(good) - 1):
            path.write_bytes(good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :])
            if name == "manifest.json":
                assert part.manifest() is None
            elif name == "answers.parquet":
                with pytest.raises(MoraError):
                    part.file(name)
            else:
                assert name in (part.damage() or "")
        path.write_bytes(good)
    assert part.damage() is None
