"""The answer log: what was put is there after any death of the process; what is damaged is noticed
and asked again."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from mora_data.errors import RunFolderError
from mora_data.run.log import AnswerLog, Record
from mora_data.types import Answer


def record(text: str, n: int = 1) -> Record:
    return Record(n, tuple(Answer(f"{text} {i}", "stop", 3) for i in range(n)), (7, 3 * n, 0))


def filled(path: Path, n: int = 50) -> list[tuple[bytes, Record]]:
    log = AnswerLog(path)
    items = [
        (i.to_bytes(12, "big"), record(f"answer {i} ünï \n {{}}", 1 + i % 3)) for i in range(n)
    ]
    for base, r in items:
        log.put(base, 0, r)
    log.close()
    return items


def test_round_trip(tmp_path: Path) -> None:
    items = filled(tmp_path / "a.log")
    log = AnswerLog(tmp_path / "a.log")
    assert [log.get(base, 0) for base, _ in items] == [r for _, r in items]
    assert log.get(b"x" * 12, 0) is None
    assert log.damaged == 0
    log.close()


def test_torn_last_line_is_cut_and_the_log_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    items = filled(path)
    whole = path.stat().st_size
    os.truncate(path, whole - 5)
    log = AnswerLog(path)
    assert log.damaged == 1
    assert log.get(items[-1][0], 0) is None
    assert [log.get(base, 0) for base, _ in items[:-1]] == [r for _, r in items[:-1]]
    log.put(*items[-1][:1], 0, items[-1][1])
    log.close()
    again = AnswerLog(path)
    assert again.damaged == 0
    assert again.get(items[-1][0], 0) == items[-1][1]
    again.close()


@pytest.mark.parametrize("seed", range(30))
def test_random_damage_loses_only_the_lines_it_hits(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "a.log"
    items = filled(path)
    raw = bytearray(path.read_bytes())
    starts = [0, *(i + 1 for i, b in enumerate(raw) if b == 10)][:-1]
    rng = random.Random(seed)
    hit = set()
    for _ in range(5):
        at = rng.randrange(len(raw))
        before = raw[at]
        raw[at] = rng.randrange(256)
        if raw[at] != before:
            line = max(i for i, s in enumerate(starts) if s <= at)
            hit |= {line, line + 1} if before == 10 else {line}
    path.write_bytes(bytes(raw))
    log = AnswerLog(path)
    for i, (base, r) in enumerate(items):
        assert log.get(base, 0) in ((None, r) if i in hit else (r,))
    log.close()


def test_damage_after_opening_is_a_missing_answer_not_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    items = filled(path, 3)
    log = AnswerLog(path)
    raw = path.read_bytes()
    path.write_bytes(raw[:60] + b"\xff" * 10 + raw[70:])
    assert log.get(items[0][0], 0) is None
    assert log.damaged == 1
    assert log.get(items[1][0], 0) == items[1][1]
    log.close()


def test_items_are_in_key_order_whatever_the_order_of_arrival(tmp_path: Path) -> None:
    pairs = [(i.to_bytes(12, "big"), record(str(i))) for i in range(20)]
    dumps = []
    for name, order in (("a", pairs), ("b", pairs[::-1])):
        log = AnswerLog(tmp_path / name)
        for base, r in order:
            log.put(base, 0, r)
        dumps.append(list(log.items()))
        log.close()
    assert dumps[0] == dumps[1]
    assert [k for k, _ in dumps[0]] == sorted(k for k, _ in dumps[0])


def test_sealed_answers_stand_under_the_log(tmp_path: Path) -> None:
    old, new = record("old"), record("new")
    base = b"a" * 12
    log = AnswerLog(tmp_path / "a.log", {base + bytes(4): old.encode()})
    assert log.get(base, 0) == old
    log.put(b"b" * 12, 0, new)
    assert [key[:12] for key, _ in log.items()] == [base, b"b" * 12]
    log.close()


def test_permanent_failure_is_replayed_as_one(tmp_path: Path) -> None:
    log = AnswerLog(tmp_path / "a.log")
    log.put(b"a" * 12, 0, Record(2, (Answer("", "error", error="HTTP 400: too long"),) * 2))
    found = log.get(b"a" * 12, 0)
    assert found is not None and [a.error for a in found.answers] == ["HTTP 400: too long"] * 2
    log.close()


def test_full_disk_is_one_line_and_nothing_half_written_is_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.log"
    log = AnswerLog(path)
    log.put(b"a" * 12, 0, record("kept"))
    real = os.write

    def short(fd: int, data: bytes) -> int:
        return real(fd, data[:20])

    monkeypatch.setattr(os, "write", short)
    with pytest.raises(RunFolderError, match=r"No space left.*run the same command again"):
        log.put(b"b" * 12, 0, record("lost"))
    monkeypatch.undo()
    log.put(b"c" * 12, 0, record("after"))
    log.close()
    again = AnswerLog(path)
    assert again.damaged == 0
    assert [again.has(k * 12, 0) for k in (b"a", b"b", b"c")] == [True, False, True]
    again.close()


def test_full_device(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    log = AnswerLog(tmp_path / "a.log")
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, log._fd)
    os.close(full)
    with pytest.raises(RunFolderError, match="No space left"):
        log.put(b"a" * 12, 0, record("x"))
    log._dirty = False
    log.close()
