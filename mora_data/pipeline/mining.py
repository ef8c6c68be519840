"""Mining: the sources' rows as partitions of prompts, and mine.json."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from ..engines import resolve
from ..run.files import json_hash, read_json
from ..run.folder import shortfalls
from ..run.moving import all_partitions, homes_of, move_answers
from ..run.partitions import Partition
from ..settings import SourceSettings
from ..sources import SOURCES, load_source, plugin_of
from ..sources.mine import MineCounts, OpenedSource, mine
from ..sources.mix import identity_of, mine_sources
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
    homes = {} if anywhere else homes_of(run_dir)
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
            left = {p.number for p in all_partitions(run_dir)}
        move_answers(run_dir, left, moved)
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
        from ..simulator.writing import generated_prompts

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
