"""`mora-data preview`, and what a run shows of itself from Python: in a notebook, as rows, as
tables."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from pathlib import Path

import pytest

from mora_data import Run, build, load_run, preview
from mora_data.cli import main
from mora_data.errors import MoraError, RunFolderError
from mora_data.run.folder import free_for_preview
from mora_data.run.tasks import run_to_end
from mora_data.settings import preview_settings, read_builder

HOSTILE = "<script>alert(1)</script> What is tea‮?"  # a row with ESC would be dropped


def run(argv: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> tuple[str, str]:
    assert main(argv) == code
    return capsys.readouterr()


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A preview of two hostile rows, made inside a running event loop."""
    folder = tmp_path_factory.mktemp("preview")
    rows = [{"prompt": HOSTILE}, {"prompt": "How do I sharpen a kitchen knife at home?"}]
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))

    async def cell() -> Run:
        return preview(
            "jsonl",
            data=[folder / "rows.jsonl"],
            out=folder / "run",
            overrides={"policy.engine": "scripted"},
            quiet=True,
        )

    return asyncio.run(cell())


def test_five_prompts_with_their_pairs_are_on_the_screen_for_100_requests(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--source", "pku-saferlhf", "--sample", "--out", str(tmp_path / "run")]
    out, _ = run(["preview", *where, "--html"], capsys)
    assert out.count("\nsource ") == 5 and out.count("\nfused ") == 5 and "{+" in out
    pairs, without = out.count("CHOSEN"), out.count("\npair      none: no answer is better")
    assert pairs + without == out.count("\npair ") == 5 and pairs >= 3
    assert "target_harmless" in out and "harm_before" in out
    n = int(out.rpartition("requests ")[2].split()[0])
    assert 0 < n <= 100
    page = (tmp_path / "run" / "preview.html").read_text("utf-8")
    assert page.count("<article") == 5 and "<ins>" in page and "<script" not in page
    # again: nothing is asked; then the build asks nothing twice, and is left alone from then on
    tree = json.loads(run(["preview", *where, "--json"], capsys)[0])
    assert tree["requests"] == 0 and tree["replayed"] >= n  # of samples
    assert len(tree["prompts"]) == 5 and tree["prompts"][0]["tries"]
    cheap = ["--set", "presample.enabled=false", "--set", "rollout.n=5", "--limit", "6"]
    tree, said = run(["build", *where, *cheap, "--until", "score", "--json"], capsys)
    built = json.loads(tree)
    assert built["repeated"] == 0 and built["replayed"] >= 75 and "differ" not in said
    assert free_for_preview(tmp_path / "run") == tmp_path / "run-preview"
    _, said = run(["preview", *where, "--limit", "1", "--until", "mine"], capsys)
    assert "holds a build, so the preview is in" in said
    assert load_run(tmp_path / "run").counts["fuse"]["in"] == 6


def test_settings_that_differ_are_named_before_anything_is_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cheap = ["--set", "presample.enabled=false", "--set", "rollout.n=4"]
    where = ["build", "--source", "pku-saferlhf", "--sample", "--out", str(tmp_path / "run")]
    run([*where, *cheap, "--limit", "2"], capsys)
    mine = [*where, *cheap, "--until", "mine"]
    _, said = run([*where, *cheap, "--limit", "1", "--set", "judge.max_tokens=9"], capsys)
    (line,) = [x for x in said.splitlines() if x.startswith("settings differ")]
    assert "mine.limit 2 -> 1" in line and "judge.max_tokens 256 -> 9" in line
    assert line.endswith("; its dataset of 2 pairs will be replaced")
    assert said.index(line) < said.index("mine: prompts")
    assert "differ" not in run([*mine, "--limit", "1", "--set", "judge.max_tokens=9"], capsys)[1]
    (tmp_path / "run" / "build.yaml").write_text("name: [damaged")
    run([*mine, "--limit", "2"], capsys)


def test_a_preview_is_cheap_whatever_the_builder_says() -> None:
    tree = {
        **read_builder("pku-saferlhf"),
        "fuse": {"arms": "all", "probe": 8},
        "publish": {"arms": ["single"]},
        "audit": {"limit": 300},
    }
    s = preview_settings(tree)
    assert (s.mine.limit, s.rollout.n, s.audit.limit, s.fuse.probe) == (5, 4, 0, 0)
    assert s.fuse.arms == ["single"] and not s.presample.enabled and not s.select.confirm
    assert preview_settings({**tree, "publish": {}}, {"fuse.arms": ["concat"]}).fuse.arms == [
        "concat"
    ]
    assert preview_settings(tree, {"presample.enabled": True, "mine.limit": 2}).presample.enabled


def test_inside_a_loop_a_run_shows_itself_escaped(shown: Run) -> None:
    page = shown._repr_html_()
    assert "&lt;script&gt;" in page and "<script" not in page
    assert "‮" not in page and "\x1b" not in page
    assert page.count("<article") == 2
    table = shown.prompts()._repr_html_()
    assert "&lt;script&gt;" in table and "<script" not in table and "‮" not in table


def test_prompts_scores_and_drops_are_rows_and_tables(shown: Run) -> None:
    prompts, scores = shown.prompts(), shown.scores()
    assert [p["arm"] for p in prompts] == ["fused", "fused"]
    fused = [p for p in prompts if p["rewrite"]]
    assert all(p["checks"] and p["tries"] >= 1 and not p["failed"] for p in fused)
    assert all(p["failed"] for p in prompts if p not in fused)
    assert {s["dimension"] for s in scores} == {"helpful", "harmless", "truthful"}
    assert scores.to_arrow().num_rows == len(scores) == scores.to_pandas().shape[0]
    dropped = shown.drops()
    assert sum(d["n"] for d in dropped if d["stage"] == "fuse") == len(prompts) - len(fused)
    with pytest.raises(RunFolderError, match=r"prompts\(\) has what was fused"):
        shown.pairs()


def test_a_build_in_a_running_loop(tmp_path: Path) -> None:
    async def cell() -> Run:
        return build(
            "pku-saferlhf",
            sample=True,
            out=tmp_path / "run",
            until="fuse",
            overrides={"mine.limit": 2, "presample.enabled": False},
            quiet=True,
        )

    assert len(asyncio.run(cell()).prompts()) == 2

    async def failing() -> Run:
        return build("pku-saferlhf", data=[tmp_path / "none.jsonl"], out=tmp_path / "other")

    with pytest.raises(MoraError):
        asyncio.run(failing())


def test_an_interrupt_in_a_notebook_cancels_the_work() -> None:
    began, cancelled = threading.Event(), threading.Event()

    async def endless() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def cell(monkey: pytest.MonkeyPatch) -> None:
        from concurrent.futures import Future

        def interrupted(self: Future[None], timeout: float | None = None) -> None:
            assert began.wait(60)
            raise KeyboardInterrupt

        monkey.setattr(Future, "result", interrupted)
        run_to_end(endless())

    with pytest.MonkeyPatch.context() as monkey, pytest.raises(KeyboardInterrupt):
        asyncio.run(cell(monkey))
    assert cancelled.wait(60)


def test_a_larger_limit_with_another_judge_reopens_the_partition(tmp_path: Path) -> None:
    """Was `prompts.jsonl is damaged`: the new prompts stood beside the old checksum when the judge
    was measured anew."""
    cheap = {"presample.n": [4], "fuse.arms": ["identity"], "rollout.n": 2}
    for limit, temperature in ((2, 0.0), (3, 0.5)):
        found = build(
            "pku-saferlhf",
            sample=True,
            out=tmp_path / "run",
            until="select",
            overrides={**cheap, "mine.limit": limit, "judge.temperature": temperature},
            quiet=True,
        )
        assert found.counts["presample"]["in"] == limit
    shutil.rmtree(tmp_path / "run")
