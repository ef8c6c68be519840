"""Run folders on object storage, with fsspec's memory as the storage: segments, manifests last,
leases, refusals."""

from __future__ import annotations

import datetime
import importlib.util
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from mora_data.errors import ExtraMissing, RunFolderError, SettingsError
from mora_data.run import remote as remotes
from mora_data.run import storage as leases
from mora_data.run.folder import RunFolder
from mora_data.run.log import AnswerLog, Record
from mora_data.run.remote import (
    Remote,
    WorkerCopy,
    current_copy,
    destination,
    local_path,
    remote_url,
    shared_address,
    upload_copy,
)
from mora_data.run.storage import Lease
from mora_data.types import Answer

URL = "memory://bucket/run"
IDENTITY = {"source": "jsonl"}


@pytest.fixture(autouse=True)
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("MORA_DATA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remotes, "SYNC_S", 3600.0)  # nothing is carried but when a test says so
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    yield fs
    fs.store.clear()


def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on this is another machine."""
    monkeypatch.setenv("MORA_DATA_CACHE", str(tmp_path / "another"))


def there(fs: Any) -> set[str]:
    return {
        name.removeprefix("/bucket/run/")
        for name in fs.find("/bucket/run")
        if "/.lease/" not in name
    }


def put(log: AnswerLog, *numbers: int) -> None:
    for i in numbers:
        log.put(i.to_bytes(12, "big"), 0, Record(1, (Answer(f"answer {i}", "stop", 3),), (7, 3, 0)))


def test_a_folder_goes_up_and_comes_down_elsewhere(
    tmp_path: Path, storage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunFolder(local_path(URL), IDENTITY, False) as folder:
        folder.write("mine.json", {"n_parts": 1})
        log = AnswerLog(folder.path / "parts/00000/answers.log")
        put(log, 1, 2)
        log.close()
        first = folder.path
    assert there(storage) >= {"manifest.json", "mine.json"} and shared_address(first) == URL
    assert (
        [n for n in there(storage) if "answers.log/" in n]
        == [n for n in there(storage) if "answers.log/000000-" in n]
        != []
    )
    elsewhere(tmp_path, monkeypatch)
    with RunFolder(local_path(URL), IDENTITY, False) as folder:
        assert folder.path != first and len(folder.parts()) == 1
        log = AnswerLog(folder.path / "parts/00000/answers.log")
        assert len(log) == 2 and log.damaged == 0
        put(log, 3)
        log.close()
    numbers = sorted(n.rpartition("/")[2][:6] for n in there(storage) if "answers.log/" in n)
    assert numbers == ["000000", "000001"], "an object never changes: what is added is another one"
    second = current_copy(URL)
    assert (second / "parts/00000/answers.log").read_bytes().count(b"\n") == 3


def test_the_secret_is_the_folders_wherever_it_is_built(
    tmp_path: Path, storage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nonces follow from it: another one, and every answer of a judge would be asked for again."""
    with RunFolder(local_path(URL), IDENTITY, False) as folder:
        first = folder.secret
    elsewhere(tmp_path, monkeypatch)
    with RunFolder(local_path(URL), IDENTITY, False) as folder:
        assert folder.secret == first and len(first) == 16
        assert (folder.path / "secret").stat().st_mode & 0o777 == 0o600
    with RunFolder(local_path(URL), IDENTITY, True) as folder:  # --fresh
        assert folder.secret != first


def test_a_folder_without_its_secret_gets_another(tmp_path: Path) -> None:
    """As those of earlier versions; one that is damaged could be brought back, and another would
    have every answer of a judge asked for again."""
    place = tmp_path / "run"
    with RunFolder(place, IDENTITY, False) as folder:
        made = folder.secret
    good = (place / "secret").read_bytes()
    flipped = bytes([good[0] ^ 1]) + good[1:]
    for content in (b"", b"\xff", flipped, good[:-1], b"00" * 16, b"zz" * 16):
        (place / "secret").write_bytes(content)
        with pytest.raises(RunFolderError, match="secret is damaged: bring it back, or delete it"):
            RunFolder(place, IDENTITY, False)
    (place / "secret").write_bytes(good)
    with RunFolder(place, IDENTITY, False) as folder:
        assert folder.secret == made
    (place / "secret").unlink()
    with RunFolder(place, IDENTITY, False) as folder:
        assert folder.secret != made
    (place / "secret").unlink()
    (place / "secret").mkdir()
    with pytest.raises(RunFolderError, match=r"can't read .*secret: Is a directory; build as"):
        RunFolder(place, IDENTITY, False)


def test_only_whole_lines_are_carried(tmp_path: Path, storage: Any) -> None:
    with RunFolder(local_path(URL), IDENTITY, False) as folder:
        path = folder.path / "canary.log"
        path.write_bytes(b"one\ntwo\nthr")
        upload_copy(folder.path)
        assert (
            b"".join(storage.cat_file(n) for n in sorted(storage.find("/bucket/run/canary.log")))
            == b"one\ntwo\n"
        )


def test_a_log_that_was_started_anew_replaces_the_old_one(tmp_path: Path, storage: Any) -> None:
    with RunFolder(local_path(URL), IDENTITY, False) as folder:
        remote, path = Remote(folder.path), folder.path / "canary.log"
        for text in ("one\ntwo\n", "three\n"):
            path.write_text(text)
            remote.push()
        assert [storage.cat_file(n) for n in storage.find("/bucket/run/canary.log")] == [b"three\n"]


def test_sealing_takes_the_segments_away_and_the_manifest_comes_last(
    tmp_path: Path, storage: Any
) -> None:
    with RunFolder(local_path(URL), IDENTITY, False) as folder:
        part = folder.path / "parts/00000"
        log = AnswerLog(part / "answers.log")
        put(log, 1)
        log.close()
        remote = Remote(folder.path)
        remote.push()
        (part / "answers.log").unlink()
        for name in ("answers.parquet", "manifest.json", "rollouts.parquet"):
            (part / name).write_bytes(name.encode())
        order: list[str] = []
        written = remote._write
        remote._write = lambda name, data: (order.append(name), written(name, data))[1]  # type: ignore[method-assign]
        remote.push()
        assert order[-1] == "parts/00000/manifest.json" and len(order) == 3
        assert {n for n in there(storage) if n.startswith("parts/")} == set(order)
        (part / "manifest.json").unlink()  # reopened
        put(log := AnswerLog(part / "answers.log"), 2)
        log.close()
        remote.push()
        assert "parts/00000/manifest.json" not in there(storage)
        assert [n for n in there(storage) if "answers.log" in n] != []


def test_a_working_copy_that_wrote_last_is_ahead_and_loses_nothing(
    tmp_path: Path, storage: Any
) -> None:
    remote_at = local_path(URL)
    folder = RunFolder(remote_at, IDENTITY, False)
    # and the process dies: nothing of it was carried
    put(log := AnswerLog(folder.path / "parts/00000/answers.log"), 1, 2, 3)
    log.close()
    folder._remote._stop.set()  # type: ignore[union-attr]
    folder._remote._lease._stop.set()  # type: ignore[union-attr]
    os.close(folder._lock)
    assert not [n for n in there(storage) if "answers.log" in n]
    with RunFolder(remote_at, IDENTITY, False) as again:
        assert (again.path / "parts/00000/answers.log").read_bytes().count(b"\n") == 3
    assert [n for n in there(storage) if "answers.log" in n]


def test_what_workers_wrote_survives_the_death_of_the_driver(tmp_path: Path, storage: Any) -> None:
    folder = RunFolder(local_path(URL), IDENTITY, False)
    (folder.path / "parts/00000").mkdir(parents=True)
    (folder.path / "parts/00000/prompts.jsonl").write_text("{}\n")
    delegated = folder.delegated()
    delegated.__enter__()
    visit = WorkerCopy(URL)
    visit.fetch("parts/00000/")
    put(log := AnswerLog(visit.path / "parts/00000/answers.log"), 1, 2)
    log.close()
    visit.close()
    folder._remote._stop.set()  # type: ignore[union-attr]
    folder._remote._lease._stop.set()  # type: ignore[union-attr]
    os.close(folder._lock)
    with RunFolder(local_path(URL), IDENTITY, False) as again:
        assert (again.path / "parts/00000/answers.log").read_bytes().count(b"\n") == 2
        assert not (again.path / ".lent").exists()
    delegated.__exit__(None, None, None)


def test_what_another_machine_dropped_is_dropped_here(
    tmp_path: Path, storage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunFolder(local_path(URL), IDENTITY, False) as folder:
        folder.write("feedback.json", {"a": 1})
        here = folder.path
    elsewhere(tmp_path, monkeypatch)
    with RunFolder(local_path(URL), IDENTITY, True) as folder:  # --fresh
        assert not (folder.path / "feedback.json").exists()
    assert "feedback.json" not in there(storage)
    monkeypatch.setenv("MORA_DATA_CACHE", str(tmp_path / "cache"))
    assert (
        current_copy(URL) == here
        and not (here / "feedback.json").exists()
        and (here / "manifest.json").exists()
    )


def test_two_builds_are_kept_apart(
    tmp_path: Path, storage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "RENEW_S", 0.05)
    monkeypatch.setattr(leases, "_POLL_S", 0.1)
    with RunFolder(local_path(URL), IDENTITY, False):
        elsewhere(tmp_path, monkeypatch)
        with pytest.raises(
            RunFolderError, match=r"memory://bucket/run is in use by another mora-data build"
        ):
            RunFolder(local_path(URL), IDENTITY, False)
    with RunFolder(local_path(URL), IDENTITY, False):  # given back
        pass


@pytest.mark.parametrize("skew_h", [-30, 0, 30])
def test_a_dead_builds_lease_ends_by_the_storages_clock(
    storage: Any, monkeypatch: pytest.MonkeyPatch, skew_h: int
) -> None:
    now = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc) + datetime.timedelta(
        hours=skew_h
    )
    old = now - datetime.timedelta(seconds=21)
    monkeypatch.setattr(
        storage, "modified", lambda path: now if "now-" in path else old, raising=False
    )
    storage.pipe_file("/bucket/run/.lease/000004", b'{"copy": "other", "beat": 17}')
    mine = Lease(storage, "/bucket/run", "mine")
    waits: list[float] = []
    monkeypatch.setattr(leases.time, "sleep", waits.append)
    mine.take(URL)
    assert not waits and mine.is_last()
    mine.release()


def test_a_young_lease_is_waited_for(storage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(leases.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(leases.time, "sleep", lambda s: clock.__setitem__(0, clock[0] + s))
    storage.pipe_file("/bucket/run/.lease/000004", b'{"copy": "other", "beat": 17}')
    mine = Lease(storage, "/bucket/run", "mine")
    mine.take(URL)
    assert leases.LEASE_S - 1 <= clock[0] <= leases.LEASE_S + 2
    mine.release()


def test_who_comes_second_to_the_same_lease_loses(storage: Any) -> None:
    storage.pipe_file("/bucket/run/.lease/000001", b'{"copy": "other", "beat": null}')
    first, second = (Lease(storage, "/bucket/run", name) for name in ("a", "b"))
    last = second._last
    second._last = lambda: 1  # type: ignore[method-assign]  # it looked before the first one wrote
    first.take(URL)
    with pytest.raises(RunFolderError, match="in use"):
        second.take(URL)
    second._last = last  # type: ignore[method-assign]
    assert not second.is_last() and first.is_last()
    first.release()


def test_a_build_that_was_taken_over_stops(
    tmp_path: Path, storage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "RENEW_S", 0.01)
    folder = RunFolder(local_path(URL), IDENTITY, False)
    storage.pipe_file("/bucket/run/.lease/000009", b'{"copy": "other", "beat": 1}')
    assert folder._remote is not None and folder._remote._lease is not None
    beater = folder._remote._lease._renewer
    assert isinstance(beater, threading.Thread)
    beater.join(10)
    with pytest.raises(RunFolderError, match="was taken over by another build"):
        folder.write("x.json", {})
    with pytest.raises(RunFolderError, match="was taken over"):
        folder.__exit__(None, None, None)
    assert "x.json" not in there(storage)


def test_storage_that_refuses_writes_is_one_line(
    tmp_path: Path, storage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **more: Any) -> None:
        raise PermissionError("Access Denied")

    path = local_path(URL)
    with monkeypatch.context() as at_once:
        at_once.setattr(type(storage), "pipe_file", refuse)
        with pytest.raises(
            RunFolderError,
            match=r"can't write to memory://bucket/run \(PermissionError: Access Denied\)",
        ):
            RunFolder(path, IDENTITY, False)
    folder = RunFolder(path, IDENTITY, False)
    put(log := AnswerLog(folder.path / "parts/00000/answers.log"), 1)
    log.close()
    with monkeypatch.context() as later:
        later.setattr(type(storage), "pipe_file", refuse)
        with pytest.raises(RunFolderError, match="what was answered is kept in"):
            folder.__exit__(None, None, None)
    with RunFolder(path, IDENTITY, False):
        pass
    assert [n for n in there(storage) if "answers.log" in n], (
        "carried by the next build of this working copy"
    )


def test_a_folder_of_something_else_is_refused(storage: Any) -> None:
    storage.pipe_file("/bucket/run/thesis.txt", b"")
    with pytest.raises(
        RunFolderError, match=r"memory://bucket/run is not a run folder \(it holds 'thesis.txt'\)"
    ):
        RunFolder(local_path(URL), IDENTITY, False)
    assert there(storage) == {"thesis.txt"}


@pytest.mark.parametrize(
    ("url", "error", "said"),
    [
        ("nosuch://bucket/a", SettingsError, "is no address of a folder"),
        ("s3://bucket/a", ExtraMissing, "needs another package .* s3fs"),
    ],
)
def test_addresses_that_lead_nowhere(url: str, error: type[Exception], said: str) -> None:
    if url.startswith("s3") and importlib.util.find_spec("s3fs"):
        pytest.skip("s3fs is installed")
    with pytest.raises(error, match=said):
        RunFolder(local_path(url), IDENTITY, False)


def test_a_worker_has_only_what_it_works_on(tmp_path: Path, storage: Any) -> None:
    with RunFolder(local_path(URL), IDENTITY, False) as folder:
        for n in (0, 1):
            (folder.path / f"parts/0000{n}").mkdir(parents=True)
            (folder.path / f"parts/0000{n}/prompts.jsonl").write_text("{}\n")
        folder.write("mine.json", {"n_parts": 2})
        with folder.delegated():
            visit = WorkerCopy(shared_address(folder.path))
            visit.fetch("mine.json")
            visit.fetch("parts/00001/")
            assert {
                p.relative_to(visit.path).as_posix()
                for p in visit.path.rglob("*")
                if p.is_file() and p.name[0] != "."
            } == {"mine.json", "parts/00001/prompts.jsonl"}
            put(log := AnswerLog(visit.path / "parts/00001/answers.log"), 5)
            log.close()
            visit.upload()
            push_back_of_the_driver = Remote(folder.path)
            push_back_of_the_driver._delegated = "parts/"
            push_back_of_the_driver.push()
            assert any("parts/00001/answers.log/" in n for n in there(storage)), (
                "the driver leaves alone what it lent"
            )
            visit.close()
            assert not visit.path.exists()
        assert (folder.path / "parts/00001/answers.log").read_bytes().count(b"\n") == 1


def test_ordinary_folders_have_no_storage(tmp_path: Path) -> None:
    assert (
        local_path(str(tmp_path)) == current_copy(str(tmp_path)) == tmp_path
        and remote_url(tmp_path) is None
    )
    upload_copy(tmp_path)
    visit = WorkerCopy(str(tmp_path))
    visit.fetch("parts/00000/")
    visit.upload()
    visit.close()
    assert visit.path == tmp_path and tmp_path.exists() and not list(tmp_path.iterdir())


def test_what_is_exported_goes_to_a_url(storage: Any, tmp_path: Path) -> None:
    for place in ("memory://bucket/data", str(tmp_path / "data")):
        with destination(place) as folder:
            (folder / "preference").mkdir(parents=True)
            (folder / "preference/train.parquet").write_bytes(b"rows")
    assert storage.cat_file("/bucket/data/preference/train.parquet") == b"rows"
    assert (tmp_path / "data/preference/train.parquet").read_bytes() == b"rows"
