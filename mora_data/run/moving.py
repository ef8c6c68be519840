"""Answers that go with their prompts, where mining puts these into other partitions: after another
`partition_size`, or where prompts were dropped before them.

    homes = homes_of(run_dir)                         before mining
    move_answers(run_dir, from_numbers, to)           after it; may be cut anywhere and run again
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from ..errors import DamagedFile
from .log import AnswerLog, prompt_of
from .partitions import Partition


def all_partitions(run_dir: Path) -> list[Partition]:
    """Every partition folder, those of an earlier, larger limit too."""
    found = (run_dir / "parts").glob("[0-9][0-9][0-9][0-9][0-9]")
    return [Partition(run_dir, int(path.name)) for path in sorted(found)]


def homes_of(run_dir: Path) -> dict[str, int]:
    """The partition that each prompt is in; without those of a partition that can't be read."""
    out: dict[str, int] = {}
    for part in all_partitions(run_dir):
        try:
            for prompt in part.prompts():
                out.setdefault(prompt.prompt_id, part.number)
        except DamagedFile:
            continue
    return out


def move_answers(run_dir: Path, numbers: Iterable[int], to: Mapping[str, int]) -> None:
    """Of the answers in these partitions, those to prompts in `to` go into the partitions that it
    names.

    An answer is on the disk in its new place before it is taken away from the old one.
    """
    for number in sorted(numbers):
        part = Partition(run_dir, number)
        log = AnswerLog(part.log_path, part.finalized_answers())
        stay: list[tuple[bytes, bytes]] = []
        go: dict[int, list[tuple[bytes, bytes]]] = {}
        for key, raw in log.items():
            new = to.get(prompt_of(raw), number)
            (stay if new == number else go.setdefault(new, [])).append((key, raw))
        log.close()
        if not go:
            continue
        part.invalidate()
        for new, answers in go.items():
            there = AnswerLog(Partition(run_dir, new).log_path)
            for key, raw in answers:
                there.append(key, raw)
            there.close()
        part.keep_answers(stay)
