"""`mora-data build` as a user runs it: on the simulator, and against a loopback server."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from support.command import parquet_hashes
from support.fake_openai import FakeOpenAI, Fault
from support.viewing import viewing

from mora_data.cli import main
from mora_data.dataset import schemas
from mora_data.dataset.schemas import counts_of
from mora_data.errors import RunFolderError
from mora_data.run import Manifest
from mora_data.run.folder import parts_of
from mora_data.run.partitions import Partition
from mora_data.types import STAGES
from mora_data.viewer.folder import open_folder
from mora_data.viewer.provenance import calls_of

KEYS = {
    "run_dir",
    "dataset_dir",
    "counts",
    "pairs",
    "requests",
    "repeated",
    "replayed",
    "tokens",
    "errors",
    "seconds",
}
DIMS = ("helpful", "harmless", "truthful")
PLAIN = [
    "--set",
    "presample.enabled=false",
    "--set",
    "fuse.arms=[identity]",
    "--set",
    "select.confirm=false",
]


class Cli:
    """Runs commands in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.err = ""

    def __call__(self, *argv: object, code: int = 0) -> dict[str, Any]:
        """The JSON object that a build prints; empty when it prints none."""
        self._capsys.readouterr()
        got = main([str(a) for a in argv])
        out, self.err = self._capsys.readouterr()
        assert got == code, self.err
        return json.loads(out) if out.strip() else {}

    @property
    def said(self) -> str:
        """The error line."""
        lines = [line for line in self.err.splitlines() if line.startswith("mora-data: ")]
        assert len(lines) == 1, self.err
        return lines[0]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    return Cli(capsys)


def rows_file(path: Path, n: int) -> Path:
    path.write_text(
        "".join(
            json.dumps({"prompt": f"How do I repair item {i} of the old clock?"}) + "\n"
            for i in range(n)
        )
    )
    return path


def roles(server: FakeOpenAI) -> Counter[str]:
    return Counter("judge" if "response_format" in r else "policy" for r in server.requests)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo build, made once."""
    run = tmp_path_factory.mktemp("demo") / "run"
    assert (
        main(
            [
                "build",
                "--source",
                "pku-saferlhf",
                "--sample",
                "--limit",
                "50",
                "--out",
                str(run),
                "--set",
                "presample.n=[4,8]",
                "--set",
                "rollout.n=8",
                "--json",
            ]
        )
        == 0
    )
    return run


def test_demo_writes_the_run_folder(demo: Path) -> None:
    for name in (
        "build.yaml",
        "manifest.json",
        "parts/00000/manifest.json",
        "errors.jsonl",
        "reference.json",
        "dataset/README.md",
    ):
        assert (demo / name).is_file(), name
    manifest = json.loads((demo / "manifest.json").read_text())
    assert manifest["status"] == "done" and manifest["simulated"] is True
    assert (
        manifest["source"]["dataset"] == "mora-data/sample-pku-saferlhf"
        and manifest["source"]["licence"] == "apache-2.0"
    )
    assert manifest["templates"].keys() == {
        "fuse/fused",
        "guard/harm",
        "guard/targets",
        *(f"{kind}/{d}" for kind in ("judge", "intents") for d in DIMS),
    }
    declared = [*Manifest.__annotations__, "checksum"]
    assert list(manifest) == [k for k in declared if k in manifest]
    assert set(declared) - set(manifest) == {"sources", "figures", "report"}  # of a mix; of a copy


def test_the_secret_of_the_nonces_stays_in_its_file(demo: Path) -> None:
    """It is what the run's nonces follow from; its owner alone reads it."""
    kept = demo / "secret"
    assert kept.stat().st_mode & 0o777 == 0o600
    key = bytes.fromhex(kept.read_text("ascii").split()[0])
    assert len(key) == 16
    elsewhere = [p for p in demo.rglob("*") if p.is_file() and p != kept]
    assert len(elsewhere) > 40
    for path in elsewhere:
        content = path.read_bytes()
        assert key not in content and key.hex().encode() not in content, path


def test_the_report_counts_what_was_asked_before_fusion(demo: Path) -> None:
    report = json.loads((demo / "report.json").read_text())
    before = report["arms"]["before"]["metrics"]
    assert report["settings"]["k"] == 4 and before["scored"]["value"] > 0.9
    went_on = json.loads((demo / "manifest.json").read_text())["counts"]["presample"]["kept"]
    assert before["joint_pass"]["n"] == before["joint_pass_1"]["n"] == went_on
    assert not [d for d in report["doubts"] if "could be scored" in d]


def test_counts_add_up_in_every_stage(demo: Path) -> None:
    counts = json.loads((demo / "manifest.json").read_text())["counts"]
    assert tuple(counts) == STAGES
    for stage, c in counts.items():
        assert c["in"] == c["kept"] + sum(c["dropped"].values()) > 0, stage
    for before, after in zip(
        ("mine", "presample", "rollout"), ("presample", "fuse", "score"), strict=True
    ):
        assert counts[before]["kept"] == counts[after]["in"]


def test_every_pair_keeps_the_law_of_its_selector(demo: Path) -> None:
    rows = [
        r
        for f in (demo / "dataset/preference").glob("*.parquet")
        for r in pq.read_table(f).to_pylist()
    ]
    assert len(rows) >= 20
    for row in rows:
        assert (
            [m["role"] for m in row["chosen"]]
            == [m["role"] for m in row["rejected"]]
            == ["assistant"]
        )
        assert row["chosen"][0]["content"] != row["rejected"][0]["content"]
        margins = {d: row[f"margin_{d}"] for d in DIMS}
        assert all(m >= 0 for m in margins.values()) and row["margin_total"] > 0
        assert row["binding_dims"] and all(margins[d] > 0 for d in row["binding_dims"])
        assert row["simulated"] is True and row["prompt"][-1]["role"] == "user"
        assert all(
            margins[d] == pytest.approx(row[f"chosen_reward_{d}"] - row[f"rejected_reward_{d}"])
            for d in DIMS
        )


def test_every_config_has_rows(demo: Path) -> None:
    """That `datasets` loads them is in test_release.py."""
    found = counts_of(demo / "dataset")
    assert found.keys() == {*schemas.config_names(DIMS, DIMS)}
    assert all(sum(splits.values()) > 0 for splits in found.values())
    assert {"stage1_helpful", "stage2_harmless", "stage3_truthful"} <= found.keys()


def test_the_same_command_again_asks_nothing_and_writes_the_same_bytes(
    demo: Path, cli: Cli
) -> None:
    before = parquet_hashes(demo)
    summary = cli(
        "build",
        "--source",
        "pku-saferlhf",
        "--sample",
        "--limit",
        "50",
        "--out",
        demo,
        "--set",
        "presample.n=[4,8]",
        "--set",
        "rollout.n=8",
        "--json",
    )
    assert summary.keys() >= KEYS
    assert summary["requests"] == summary["repeated"] == 0 and summary["replayed"] > 1000
    assert summary["pairs"] > 0 and parquet_hashes(demo) == before


def test_simulator_is_announced_and_never_used_in_silence(cli: Cli, tmp_path: Path) -> None:
    cli(
        "build",
        "--source",
        "jsonl",
        "--sample",
        "--out",
        tmp_path / "r",
        "--limit",
        3,
        "--until",
        "presample",
        "--json",
    )
    assert "simulator" in cli.err
    cli(
        "build",
        "--source",
        "jsonl",
        "--data",
        rows_file(tmp_path / "x.jsonl", 3),
        "--out",
        tmp_path / "r2",
        code=1,
    )
    for way in ("--base-url", "OPENAI_API_KEY", "--engine scripted"):
        assert way in cli.said
    assert not (tmp_path / "r2").exists()


@pytest.mark.parametrize("stage", STAGES)
def test_until(cli: Cli, tmp_path: Path, stage: str) -> None:
    summary = cli(
        "build",
        "--source",
        "hh-rlhf",
        "--sample",
        "--out",
        tmp_path / "r",
        "--limit",
        6,
        "--until",
        stage,
        "--set",
        "presample.n=[4]",
        "--set",
        "rollout.n=8",
        "--json",
    )
    assert list(summary["counts"]) == list(STAGES[: STAGES.index(stage) + 1])
    assert all(c["in"] > 0 for c in summary["counts"].values())
    assert (summary["dataset_dir"] is not None) == (stage == "publish")


def test_going_on_from_a_stage_repeats_nothing(cli: Cli, tmp_path: Path) -> None:
    args = (
        "build",
        "--source",
        "hh-rlhf",
        "--sample",
        "--out",
        tmp_path / "r",
        "--limit",
        8,
        "--set",
        "presample.n=[4]",
        "--set",
        "rollout.n=8",
        "--json",
    )
    steps = [cli(*args, "--until", stage) for stage in ("presample", "rollout", "publish")]
    whole = cli(*args[:5], tmp_path / "whole", *args[6:])
    assert sum(s["requests"] for s in steps) == whole["requests"]
    assert parquet_hashes(tmp_path / "r") == parquet_hashes(tmp_path / "whole")


def plain(server: FakeOpenAI, data: Path, run: Path, *more: object) -> list[object]:
    return [
        "build",
        "--source",
        "jsonl",
        "--data",
        data,
        "--base-url",
        server.base_url,
        "--model",
        "gen",
        "--judge-model",
        "judge",
        "--out",
        run,
        "--set",
        "rollout.n=16",
        *PLAIN,
        "--json",
        *more,
    ]


def test_more_samples_ask_only_the_new_ones(cli: Cli, tmp_path: Path) -> None:
    data = rows_file(tmp_path / "x.jsonl", 5)
    with FakeOpenAI() as server:
        first = cli(*plain(server, data, tmp_path / "r"))
        assert (
            first["requests"] == len(server.requests) == 5 + 5 * 16 * 3 and first["replayed"] == 0
        )
        server.requests.clear()
        second = cli(*plain(server, data, tmp_path / "r", "--set", "rollout.n=24"))
        asked = [r for r in server.requests if "response_format" not in r]
        assert [r["n"] for r in asked] == [8] * 5
        assert roles(server)["judge"] == 5 * 8 * 3 and second["requests"] == len(server.requests)
        assert server.repeated() == second["repeated"] == 0 and second["replayed"] == 5 * 16 * 4


def test_new_judge_template_asks_the_judge_alone(cli: Cli, tmp_path: Path) -> None:
    data = rows_file(tmp_path / "x.jsonl", 4)
    template = tmp_path / "mine.j2"
    text = (
        "{% block user %}<a-{{ nonce }}>{{ answer }}</a-{{ nonce }}> Dimension: helpful{%"
        " endblock %}"
    )
    template.write_text(text)
    with FakeOpenAI() as server:
        args = plain(
            server,
            data,
            tmp_path / "r",
            "--set",
            f"rewards={{helpful: [{{kind: judge, template: {template}}}]}}",
        )
        cli(*args)
        server.requests.clear()
        template.write_text(text + "{# Be strict. #}")
        cli(*args)
        assert roles(server) == {"judge": 0} or roles(server) == {}
        template.write_text(text.replace("Dimension", "Be strict. Dimension"))
        cli(*args)
        assert roles(server) == {"judge": 4 * 16} and server.repeated() == 0


def test_raising_the_limit_only_appends(cli: Cli, tmp_path: Path) -> None:
    data = rows_file(tmp_path / "x.jsonl", 30)
    with FakeOpenAI() as server:
        small = ("--set", "partition_size=8", "--set", "rollout.n=8")
        cli(*plain(server, data, tmp_path / "r", *small, "--limit", 12))
        asked = len(server.requests)
        grown = cli(*plain(server, data, tmp_path / "r", *small, "--limit", 20))
        assert grown["counts"]["mine"] == {"in": 20, "kept": 20, "dropped": {}}
        assert grown["requests"] == len(server.requests) - asked == 8 + 8 * 8 * 3
        cli(*plain(server, data, tmp_path / "whole", *small, "--limit", 20))
        assert parquet_hashes(tmp_path / "r/dataset") == parquet_hashes(tmp_path / "whole/dataset")


def test_failed_rows_are_data_listed_and_owed(cli: Cli, tmp_path: Path) -> None:
    data = rows_file(tmp_path / "x.jsonl", 20)

    def refuse(body: dict[str, Any], time: int) -> Fault | None:
        return (
            Fault(400)
            if "item 7 " in body["messages"][-1]["content"] and "response_format" not in body
            else None
        )

    with FakeOpenAI(refuse) as server:
        summary = cli(*plain(server, data, tmp_path / "r", "--set", "limits.max_error_share=0.1"))
        assert summary["counts"]["rollout"]["dropped"] == {"failed": 16} and summary["errors"] == 16
        errors = [
            json.loads(line) for line in (tmp_path / "r/errors.jsonl").read_text().splitlines()
        ]
        assert {e["error"] for e in errors} == {"HTTP 400: told to say 400"}
        assert sum("item 7 " in r["messages"][-1]["content"] for r in server.requests) == 1
        cli(*plain(server, data, tmp_path / "r2", "--set", "limits.max_error_share=0.001"), code=1)
        assert "max_error_share" in cli.said and "errors.jsonl" in cli.said


def test_unreadable_verdicts_are_asked_twice_more_then_none(cli: Cli, tmp_path: Path) -> None:
    data = rows_file(tmp_path / "x.jsonl", 3)

    def prose(body: dict[str, Any], time: int) -> Fault | None:
        return Fault(text="I would say four.") if "response_format" in body else None

    with FakeOpenAI(prose) as server:
        summary = cli(*plain(server, data, tmp_path / "r", "--set", "rollout.n=4"), code=1)
        assert summary["counts"]["score"] == {"in": 12, "kept": 0, "dropped": {"unscored": 12}}
        assert roles(server)["judge"] == 12 * 3 * 3
        assert "most often 36 x no_verdict: 'I would say four.'" in cli.said
        assert (tmp_path / "r/dataset/README.md").is_file()
        scores = pq.read_table(tmp_path / "r/parts/00000/scores.parquet").to_pylist()
        assert {(s["value"], s["reason"]) for s in scores} == {
            (None, "no_verdict: 'I would say four.'")
        }


def test_endpoint_dies_midway_state_is_kept(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mora_data.engines import openai

    monkeypatch.setattr(openai, "_wait_s", lambda fault, tries: 0.01)
    data = rows_file(tmp_path / "x.jsonl", 10)
    alive = [True]

    def dying(body: dict[str, Any], time: int) -> Fault | None:
        alive[0] = alive[0] and len(server.requests) < 200
        return None if alive[0] else Fault(drop="before")

    with FakeOpenAI(dying) as server:
        args = plain(server, data, tmp_path / "r", "--set", "policy.give_up_s=0.2")
        cli(*args, code=1)
        assert "has not answered for 0.2 s" in cli.said
        kept = len((tmp_path / "r/parts/00000/answers.log").read_bytes().splitlines())
        server.script = None
        summary = cli(*args)
        # those in flight when the run gave up
        assert summary["replayed"] > 0 and server.repeated() <= 64
        assert kept > 0 and kept + summary["requests"] == 10 + 10 * 16 * 3


def test_dry_run_asks_nothing_and_writes_nothing(cli: Cli, tmp_path: Path) -> None:
    found = cli(
        "build",
        "--source",
        "ultrafeedback",
        "--sample",
        "--out",
        tmp_path / "r",
        "--dry-run",
        "--json",
    )
    assert (
        found["prompts"] >= 80
        and found["requests"][0] < found["requests"][1]
        and not (tmp_path / "r").exists()
    )


def test_generated_prompts_and_the_null_world(cli: Cli, tmp_path: Path) -> None:
    summary = cli(
        "build",
        "--source",
        "jsonl",
        "--sample",
        "--out",
        tmp_path / "r",
        "--limit",
        5,
        "--until",
        "presample",
        "--set",
        "scripted.n_prompts=40",
        "--set",
        "mine.limit=null",
        "--set",
        "scripted.world=null",
        "--json",
    )
    assert summary["counts"]["mine"]["kept"] >= 40


def test_recipe_reads_what_was_built(demo: Path, cli: Cli) -> None:
    rows = pq.read_table(next((demo / "dataset/preference").glob("train-*.parquet"))).to_pylist()
    assert all(
        set(m) == {"role", "content"}
        for r in rows
        for side in ("prompt", "chosen", "rejected")
        for m in r[side]
    )


def test_answers_of_phase_0_are_not_called_replayed(cli: Cli, tmp_path: Path) -> None:
    args = (
        "build",
        "--source",
        "jsonl",
        "--sample",
        "--out",
        tmp_path / "r",
        "--limit",
        4,
        "--until",
        "presample",
        "--json",
    )
    first, again = cli(*args), cli(*args)
    assert first["requests"] > 0 and first["replayed"] == 0
    assert again["requests"] == 0 and again["replayed"] > 0


VLLM = [("0.32.0", "structured_outputs"), ("0.11.2", "response_format"), ("", "response_format")]


@pytest.mark.parametrize(("version", "field"), VLLM)
def test_vllm_gets_the_verdict_as_a_pattern_under_the_same_key(
    cli: Cli, tmp_path: Path, version: str, field: str
) -> None:
    """A pattern leaves no room for the white space that weak models fill their tokens with; moving
    servers pays nothing twice."""
    data = rows_file(tmp_path / "x.jsonl", 2)
    more = ("--set", "rollout.n=4", "--until", "score")
    with FakeOpenAI(vllm=version) as server:
        first = cli(*plain(server, data, tmp_path / "r", *more))
        sent = [{"response_format", "structured_outputs"} & r.keys() for r in server.requests]
        assert [s for s in sent if s] == [{field}] * (2 * 4 * 3)
        patterns = {
            r["structured_outputs"]["regex"] for r in server.requests if "structured_outputs" in r
        }
        assert patterns == ({r'\{"score": [1-5]\}'} if field == "structured_outputs" else set())
    with FakeOpenAI() as other:
        again = cli(*plain(other, data, tmp_path / "r", *more))
        assert again["requests"] == 0 and again["counts"] == first["counts"]


def test_every_model_call_of_a_prompt_can_be_shown_again(demo: Path, tmp_path: Path) -> None:
    folder = open_folder(demo)
    rollouts = pq.read_table(demo / "parts/00000/rollouts.parquet").to_pylist()
    prompt_id = next(r["prompt_id"] for r in rollouts if r["arm"] == "fused")
    found = calls_of(folder, prompt_id)
    assert found.note is None
    by_purpose = {c.purpose: c for c in found.calls}
    asked = by_purpose["arm:fused"]
    texts = [r["text"] for r in rollouts if r["prompt_id"] == prompt_id and r["arm"] == "fused"]
    assert [a.text for a in asked.answers] == texts and asked.sampling["temperature"] == 1.0
    mined = next(p for p in folder.partitions()[0].prompts() if p.prompt_id == prompt_id)
    said = "".join(m["content"] for m in by_purpose["fuse:fused:0"].messages)
    assert mined.text in said
    assert any(texts[0] in c.messages[-1]["content"] for c in found.calls if c.role == "judge")
    with viewing(demo) as v:
        v.page(f"/prompt/{prompt_id}?calls=1")
        assert "fuse:fused:0" in v.get(f"/prompt/{prompt_id}?calls=1").text
        assert "fuse:fused:0" not in v.get(f"/prompt/{prompt_id}").text
    shutil.copytree(demo, tmp_path / "other")
    settings = yaml.safe_load((demo / "build.yaml").read_text())
    settings["judge"]["temperature"] = 0.9  # its calls are not found any more, and it is said
    (tmp_path / "other" / "build.yaml").write_text(yaml.safe_dump(settings))
    fewer = calls_of(open_folder(tmp_path / "other"), prompt_id)
    assert 0 < len(fewer.calls) < len(found.calls)
    assert "Other calls are missing here" in (fewer.note or "")


@pytest.fixture
def cut(cli: Cli, tmp_path: Path) -> Iterator[Callable[..., dict[str, Any]]]:
    """Builds 12 prompts in partitions of a size; its summary."""
    data = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"How do I fold paper number {i}?{' Slowly.' * (i < 2)}"} for i in range(12)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with FakeOpenAI() as server:

        def build(size: int, *more: object, out: str = "r", code: int = 0) -> dict[str, Any]:
            sets = (f"partition_size={size}", "rollout.n=4", "publish.configs=[preference, scored]")
            words = [word for s in sets for word in ("--set", s)]
            given = plain(server, data, tmp_path / out, *words, *more)
            found = cli(*given, code=code)
            assert server.repeated() == 0 or out != "r"
            return found

        yield build


def fingerprint(run: Path) -> tuple[object, object]:
    found = json.loads((run / "manifest.json").read_text())
    return found["fingerprint"], found["tokens"]


def test_another_partition_size_asks_nothing_again(
    cut: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    first = cut(512)
    for size in (5, 7, 512):
        again = cut(size)
        assert (again["requests"], again["errors"]) == (0, 0) and again["pairs"] == first["pairs"]
        records = sum(
            len(Partition(tmp_path / "r", p.number).finalized_answers())
            for p in parts_of(tmp_path / "r")
        )
        assert records == first["requests"], "each answer is in one place"
    cut(5)
    cut(5, out="new")
    assert fingerprint(tmp_path / "r") == fingerprint(tmp_path / "new")


def test_an_open_partition_is_cut_anew_and_prompts_move_up(
    cut: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """A limit leaves logs open; then the first prompts are dropped, so that all others move."""
    part = cut(6, "--max-tokens", 900, code=1)
    assert 0 < part["requests"] < 12 * (1 + 4 * 3)
    rest = cut(4, "--max-tokens", 10**6)
    assert part["requests"] + rest["requests"] == 12 * (1 + 4 * 3)
    short = cut(4, "--set", "mine.max_chars=32")
    assert short["requests"] == 0 and short["counts"]["mine"]["kept"] == 10


def test_cut_short_while_answers_move(
    cut: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(6)
    keep, calls = Partition.keep_answers, []

    def stop(part: Partition, answers: Any) -> None:
        calls.append(part)
        if len(calls) == 2:
            raise RunFolderError("the disk is full")
        keep(part, answers)

    monkeypatch.setattr(Partition, "keep_answers", stop)
    cut(2, code=1)
    assert len(calls) == 2
    assert cut(2)["requests"] == 0
