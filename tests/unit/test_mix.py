"""Several sources in one build: whose turn it is, what is dropped between them, and how they are
named on the command line, in YAML and in a run folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mora_data.cli import main
from mora_data.dataset.card import strictest
from mora_data.errors import RunFolderError, SettingsError, SourceError
from mora_data.pipeline import run_build
from mora_data.run.folder import RunFolder, manifest_of, shortfalls
from mora_data.run.progress import Progress
from mora_data.run.stats import RunStats
from mora_data.settings import (
    BuildOptions,
    BuildSettings,
    build_settings,
    mixed_builder,
    to_yaml,
)
from mora_data.settings.build import resources
from mora_data.sources.mine import MineCounts, as_recorded, identity_of, mine_sources, open_sources
from mora_data.types import Prompt


def rows(path: Path, *prompts: str) -> str:
    path.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts))
    return str(path)


def some(path: Path, n: int) -> str:
    """`n` prompts that carry the name of their file."""
    return rows(path, *(f"{path.stem} {i}" for i in range(n)))


def mix(*sources: dict[str, Any], **settings: Any) -> BuildSettings:
    return build_settings(
        {"name": "mix", "sources": [{"kind": "jsonl", **s} for s in sources], **settings}
    )


def mined(settings: BuildSettings, data: Sequence[Path] = ()) -> tuple[list[Prompt], MineCounts]:
    counts = MineCounts()
    prompts = list(mine_sources(open_sources(settings, False, data), settings, counts))
    assert counts.rows == counts.kept + counts.dropped.total()
    assert [counts.rows, counts.kept] == [
        sum(s[key] for s in counts.sources) for key in ("in", "kept")
    ]
    return prompts, counts


def firsts(prompts: Sequence[Prompt]) -> str:
    return "".join(p.text[0] for p in prompts)


def test_sources_with_shares_take_turns_and_the_others_follow(tmp_path: Path) -> None:
    a, b, c, d = (some(tmp_path / f"{name}.jsonl", 6) for name in "abcd")
    settings = mix(
        {"data": [c]},
        {"data": [a], "share": 2},
        {"data": [b], "share": 1},
        {"data": [d], "count": 2},
    )
    prompts, counts = mined(settings)
    assert firsts(prompts) == "abaabaaba" + "bbb" + "cccccc" + "dd"
    assert [s["kept"] for s in counts.sources] == [6, 6, 6, 2]
    assert [s["name"] for s in counts.sources] == ["jsonl", "jsonl-2", "jsonl-3", "jsonl-4"]


@pytest.mark.parametrize("shares", [(1, 1, 1), (5, 3, 2), (0.7, 0.2, 0.1)])
def test_every_beginning_of_a_mix_has_its_shares(tmp_path: Path, shares: tuple[float, ...]) -> None:
    files = [some(tmp_path / f"{name}.jsonl", 100) for name in "abc"]
    settings = mix(*({"data": [f], "share": s} for f, s in zip(files, shares, strict=True)))
    all_of_them = firsts(mined(settings)[0])
    for n in range(1, 100):
        for name, share in zip("abc", shares, strict=True):
            assert abs(all_of_them[:n].count(name) - n * share / sum(shares)) < 1.0
    limited = settings.model_copy(update={"mine": settings.mine.model_copy(update={"limit": 37})})
    assert firsts(mined(limited)[0]) == all_of_them[:37]


def test_a_source_that_ends_before_its_share_is_named(tmp_path: Path) -> None:
    a, b, c = (some(tmp_path / f"{name}.jsonl", n) for name, n in (("a", 3), ("b", 50), ("c", 4)))
    settings = mix(
        {"data": [a], "share": 1, "name": "small"},
        {"data": [b], "share": 3},
        {"data": [c], "count": 9, "name": "few"},
        mine={"limit": 44},
    )
    prompts, counts = mined(settings)
    assert len(prompts) == 44 and firsts(prompts).count("b") == 41
    assert shortfalls(counts.sources) == [
        "source small ended after 3 prompts: 8 fewer than its share of 44"
    ]
    more = settings.model_copy(update={"mine": settings.mine.model_copy(update={"limit": None})})
    assert shortfalls(mined(more)[1].sources)[1:] == [
        "source few ended after 4 prompts: 5 fewer than its count"
    ]


def test_a_prompt_of_two_sources_is_the_first_ones(tmp_path: Path) -> None:
    a = rows(
        tmp_path / "a.jsonl", "one", "two", "two", "long ago a river ran past the old mill here"
    )
    b = rows(
        tmp_path / "b.jsonl", "zwei", "ONE", "Long ago a river ran past the old mill, here!", "x"
    )
    settings = mix({"data": [a]}, {"data": [b]}, mine={"near_duplicates": 0.8})
    prompts, counts = mined(settings)
    assert [p.text for p in prompts] == [
        "one",
        "two",
        "long ago a river ran past the old mill here",
        "zwei",
        "x",
    ]
    assert counts.sources[0]["dropped"] == {"duplicate": 1}
    assert counts.sources[1]["dropped"] == {"in_other_source": 1, "near_duplicate": 1}
    keep = mix({"data": [a]}, {"data": [b]}, mine={"dedup": False})
    again, counts = mined(keep)
    assert counts.kept == 8 and len({p.prompt_id for p in again}) == 8
    alone = mined(mix({"data": [a]}, mine={"dedup": False}))[0]
    assert [p.prompt_id for p in again[:4]] == [p.prompt_id for p in alone]


def test_each_row_keeps_where_it_is_from(tmp_path: Path) -> None:
    a, b = some(tmp_path / "a.jsonl", 2), some(tmp_path / "b.jsonl", 2)
    settings = mix(
        {"data": [a], "dataset": "me/a", "licence": "mit", "share": 1},
        {"data": [b], "licence": "cc-by-nc-4.0", "share": 1},
    )
    prompts, _ = mined(settings)
    assert [(p.source_dataset, p.source_row, p.source_licence) for p in prompts] == [
        ("me/a", 0, "mit"),
        ("local", 0, "cc-by-nc-4.0"),
        ("me/a", 1, "mit"),
        ("local", 1, "cc-by-nc-4.0"),
    ]
    assert len({p.source_revision for p in prompts}) == 2
    assert len({p.source for p in prompts}) == 2


def test_the_shipped_mix_is_three_builders(tmp_path: Path) -> None:
    settings = build_settings(mixed_builder([("pku-hh-ultrafeedback", [])]))
    assert [(s.name, s.kind) for s in settings.sources] == [
        (n, n) for n in ("pku-saferlhf", "hh-rlhf", "ultrafeedback")
    ]
    assert all(s.revision for s in settings.sources)
    assert strictest(s.licence for s in settings.sources) == "cc-by-nc-4.0"
    again = build_settings(resources.parse_yaml(to_yaml(settings)))
    assert again == settings and "source" not in again.model_dump()
    counts = MineCounts()
    list(mine_sources(open_sources(settings, True, []), settings, counts))
    assert [s["dataset"] for s in counts.sources] == [
        f"mora-data/sample-{s.name}" for s in settings.sources
    ]
    assert min(s["kept"] for s in counts.sources) > 80
    with pytest.raises(SettingsError, match="recorded takes one source"):
        as_recorded(
            build_settings(
                mixed_builder([("pku-hh-ultrafeedback", [])]), {"policy.engine": "recorded"}
            )
        )


@pytest.mark.parametrize(
    ("licences", "whole"),
    [
        (["mit"], "mit"),
        (["mit", "cc-by-nc-4.0", "apache-2.0"], "cc-by-nc-4.0"),
        (["mit", "cc-by-4.0"], "cc-by-4.0"),
        (["cc-by-sa-4.0", "mit"], "cc-by-sa-4.0"),
        (["cc-by-sa-4.0", "cc-by-nc-4.0"], "other"),
        (["cc-by-nc-sa-4.0", "cc-by-nc-4.0"], "cc-by-nc-sa-4.0"),
        (["mit", "bsd-3-clause"], "other"),
        (["unknown", "mit"], "other"),
        (["unknown"], "unknown"),
    ],
)
def test_the_strictest_licence_is_the_datasets(licences: list[str], whole: str) -> None:
    assert strictest(licences) == whole


def test_sources_and_data_repeat_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = some(tmp_path / "a.jsonl", 5), some(tmp_path / "b.jsonl", 3)
    ask = ["--engine", "scripted", "--until", "mine", "--out", str(tmp_path / "run"), "--json"]
    given = ["--source", "jsonl", "--data", a, "--source", "jsonl", "--data", b, "--limit", "4"]
    assert main(["build", *given, *ask]) == 0
    assert json.loads(capsys.readouterr().out)["counts"]["mine"]["kept"] == 4
    assert main(["status", str(tmp_path / "run")]) == 0
    status = [line.split()[:5] for line in capsys.readouterr().out.splitlines()[-2:]]
    assert status == [["jsonl", "(local)", "1", "2", "2"], ["jsonl-2", "(local)", "1", "2", "2"]]
    assert main(["build", *given, "--engine", "scripted", "--dry-run", "--json"]) == 0
    assert [s["kept"] for s in json.loads(capsys.readouterr().out)["sources"]] == [2, 2]
    assert main(["build", "--source", "pku-hh-ultrafeedback", "--data", a, *ask]) == 1
    assert "write NAME=PATH, with NAME one of pku-saferlhf" in capsys.readouterr().err
    assert main(["build", "--source", "jsonl", "--source", "pku-hh-ultrafeedback", *ask]) == 1
    assert "has several sources of its own" in capsys.readouterr().err


def test_data_of_a_mix_says_whose_it_is(tmp_path: Path) -> None:
    a, b = some(tmp_path / "a.jsonl", 2), some(tmp_path / "b.jsonl", 2)
    settings = mix({"name": "one", "share": 1}, {"name": "two", "share": 1})
    prompts, _ = mined(settings, [Path(f"two={b}"), Path(f"one={a}")])
    assert firsts(prompts) == "abab"


@pytest.mark.parametrize(
    ("tree", "line"),
    [
        ({"sources": "x"}, "sources must be a list"),
        ({"sources": [{"builder": "nope"}]}, "unknown --source 'nope'"),
        ({"sources": [{"builder": "pku-hh-ultrafeedback"}]}, "has no source of its own"),
        ({"sources": [{"kind": "jsonl", "shar": 1}]}, "unknown setting 'sources.0.shar'"),
        ({"sources": [{"kind": "jsonl", "share": 0}]}, "sources.0.share = 0"),
        ({"sources": [{"share": 1}]}, "'sources.0.kind' is missing"),
        ({"sources": [{"kind": "jsonl"}], "source": {"kind": "jsonl"}}, "give one of them"),
    ],
)
def test_a_wrong_list_of_sources_is_one_line(tree: dict[str, Any], line: str) -> None:
    with pytest.raises(SettingsError, match=line) as failure:
        build_settings({"name": "x", **tree})
    assert len(str(failure.value)) < 200 and "\n" not in str(failure.value)


def test_a_run_folder_takes_one_more_source_at_its_end(tmp_path: Path) -> None:
    a, b, c = (some(tmp_path / f"{name}.jsonl", 2) for name in "abc")
    one = build_settings({"name": "x", "source": {"kind": "jsonl"}})
    two, three = mix({"data": [a]}, {"data": [b]}), mix({"data": [a]}, {"data": [b]}, {"data": [c]})
    others = [
        mix({"data": [b]}, {"data": [a]}),
        mix({"data": [a], "share": 1}, {"data": [b], "share": 1}, {"data": [c], "share": 1}),
        mix({"data": [a]}, {"data": [c]}),
        one,
    ]

    def take(settings: BuildSettings, data: Sequence[Path] = ()) -> None:
        identity = identity_of(settings, open_sources(settings, False, data))
        with RunFolder(tmp_path / "run", identity, fresh=False) as folder:
            assert manifest_of(folder.path)["identity"] == identity
            folder.write("mine.json", {"identity": identity})

    take(one, [Path(a)])
    take(two)
    take(three)
    take(three)
    for other in others:
        with pytest.raises(RunFolderError, match="is another build"):
            take(other, [Path(a)] if other is one else ())


def test_a_source_without_a_usable_row_stops_the_mix(tmp_path: Path) -> None:
    a, b = some(tmp_path / "a.jsonl", 3), rows(tmp_path / "b.jsonl", "", " ")
    with pytest.raises(SourceError, match="all 2 rows of source jsonl were dropped"):
        mined(mix({"data": [a]}, {"data": [b]}))


def test_one_more_source_asks_for_its_own_prompts_only(tmp_path: Path) -> None:
    a, b = some(tmp_path / "a.jsonl", 3), some(tmp_path / "b.jsonl", 3)
    plain: dict[str, Any] = {
        "policy": {"engine": "scripted"},
        "presample": {"enabled": False},
        "fuse": {"arms": ["identity"]},
        "rollout": {"n": 2},
        "select": {"confirm": False},
        "publish": {"configs": ["scored"]},
        "partition_size": 2,
    }
    one = build_settings({"name": "x", "source": {"kind": "jsonl"}, **plain})
    two = mix({"data": [a]}, {"data": [b]}, **plain)

    def requests(settings: BuildSettings, out: str, *data: Path) -> int:
        options = BuildOptions(data=data, out=tmp_path / out, until="select")
        stats = RunStats()
        run_build(settings, options, Progress(stats, quiet=True))
        return stats.requests

    first, more = requests(one, "run", Path(a)), requests(two, "run")
    assert more > 0 and first + more == requests(two, "fresh")
    files = [sorted((tmp_path / run).glob("parts/*/*.parquet")) for run in ("run", "fresh")]
    assert [f.read_bytes() for f in files[0] if f.name == "rollouts.parquet"] == [
        f.read_bytes() for f in files[1] if f.name == "rollouts.parquet"
    ]
