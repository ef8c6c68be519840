"""Mining: the sources' rows as partitions of prompts, and mine.json."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ..engines import resolve
from ..errors import DamagedFile
from ..run.files import json_hash, read_json
from ..run.folder import shortfalls
from ..run.log import AnswerLog, prompt_of
from ..run.partitions import Partition
from ..settings import SourceSettings
from ..sources import SOURCES, load_source, plugin_of
from ..sources.mine import MineCounts, OpenedSource, identity_of, mine, mine_sources
from ..sources.read import SourceRow
from ..types import Prompt
from .values import Build


def mine_prompts(build: Build, opened: Sequence[OpenedSource]) -> dict[str, Any]:
    """The mined prompts as partitions, and mine.json; skipped when both are there, undamaged."""
    s = build.settings
    rows = [
        {
            "source": wanted.model_dump(),
            "code": "" if wanted.kind in SOURCES else plugin_of(wanted).code_hash,
            "revision": one.revision,
        }
        for wanted, one in zip(s.all_sources, opened, strict=True)
    ]
    key = json_hash(
        {
            "mine": s.mine.model_dump(),
            **({"sources": rows} if s.sources else rows[0]),
            "size": s.partition_size,
            "generated": _n_generated(build),
            "benchmarks": build.benchmarks.at_hand,
            "recorded": build.recorded,
        }
    )
    mined = read_json(build.folder.path / "mine.json")
    if mined.get("basis") == key:
        there = [p.prompts_hash() for p in build.folder.parts()]
        wanted = mined.get("prompts") or there
        damaged = [n for n, given in enumerate(wanted) if given != there[n]]
        if not damaged:
            return mined
        for n in damaged:
            path = Partition(build.folder.path, n).folder / "prompts.jsonl"
            build.progress.message(f"{path} was damaged: mined again")
    for one in opened:
        build.progress.message(f"source {one.dataset}: split {one.split}, licence {one.licence}")
    counts, run_dir = MineCounts(), build.folder.path
    # cut short while prompts went into other partitions: any answer may be in any of them
    anywhere = bool(mined.get("moving"))
    homes = {} if anywhere else _homes_of(run_dir)
    if mined:
        build.folder.write("mine.json", {**mined, "basis": None, "moving": True})
    moved: dict[str, int] = {}
    build.progress.start("mine: prompts", s.mine.limit or 0)
    n_parts, prompts = 0, iter(_prompts(build, opened, counts))
    while chunk := list(islice(prompts, s.partition_size)):
        if anywhere or homes:
            ids = (p.prompt_id for p in chunk)
            moved |= {i: n_parts for i in ids if anywhere or homes.get(i, n_parts) != n_parts}
        Partition(run_dir, n_parts).keep_prompts(chunk)
        build.progress.step(len(chunk))
        n_parts += 1
    build.progress.finish()
    beside = [line for one in opened for line in one.not_read()]
    for line in (*counts.reading(), *beside, *shortfalls(counts.sources)):
        build.progress.message(line)
    if moved:
        build.progress.start("answers to other partitions")
        left = {homes[i] for i in moved if i in homes}
        if anywhere:
            left = {p.number for p in _all_partitions(run_dir)}
        _move_answers(run_dir, left, moved)
    mined = {
        "basis": key,
        "identity": identity_of(s, opened),
        "n_parts": n_parts,
        "prompts": [Partition(build.folder.path, n).prompts_hash() for n in range(n_parts)],
        **counts.as_dict(),
        **({"sources": counts.sources} if s.sources else {}),
        "notes": dict(sorted(counts.notes.items())),
        "contamination": counts.contamination,
        "not_measured": list(counts.not_measured),
    }
    build.folder.write("mine.json", mined)
    return mined


def _prompts(build: Build, opened: Sequence[OpenedSource], counts: MineCounts) -> Iterator[Prompt]:
    """The sources' prompts, then the simulator's own where they are asked for."""
    yield from mine_sources(opened, build.settings, counts, build.benchmarks)
    if n := _n_generated(build):
        from ..simulator.language import generated_prompts

        rows = enumerate(generated_prompts(n, build.settings.seed))
        generated = OpenedSource(
            load_source(SourceSettings(kind="jsonl")),
            [SourceRow(i, "generated", row) for i, row in rows],
            *("mora-data/generated", "generated", "generated", "generated", "apache-2.0"),
        )
        yield from mine(generated, build.settings, counts, build.benchmarks)


def _n_generated(build: Build) -> int:
    """Prompts that the simulator adds; only where it is the policy."""
    n = build.settings.scripted.n_prompts
    if not n or not build.reaches("presample"):
        return 0
    policy = resolve(build.settings.role("policy"), build.options.sample)
    return n if policy.engine == "scripted" else 0


# Answers go with their prompts, where mining puts these into other partitions: after another
# `partition_size`, or where prompts were dropped before them.


def _all_partitions(run_dir: Path) -> list[Partition]:
    """Every partition folder, those of an earlier, larger limit too."""
    found = (run_dir / "parts").glob("[0-9][0-9][0-9][0-9][0-9]")
    return [Partition(run_dir, int(path.name)) for path in sorted(found)]


def _homes_of(run_dir: Path) -> dict[str, int]:
    """The partition that each prompt is in; without those of a partition that can't be read."""
    out: dict[str, int] = {}
    for part in _all_partitions(run_dir):
        try:
            for prompt in part.prompts():
                out.setdefault(prompt.prompt_id, part.number)
        except DamagedFile:
            continue
    return out


def _move_answers(run_dir: Path, numbers: Iterable[int], to: Mapping[str, int]) -> None:
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
