"""Plug-ins: what is edited in place changes what it should and nothing else; a reward with a server
and a setting of its own is logged, replayed, and fails row by row."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from unit.test_docs import blocks, written

from mora_data import resources
from mora_data.errors import MoraError
from mora_data.pipeline import run_build
from mora_data.prompts.context import load_context
from mora_data.resources import Secret
from mora_data.run.files import read_json
from mora_data.run.folder import Summary
from mora_data.run.progress import Progress
from mora_data.run.stats import RunStats
from mora_data.settings import BuildOptions, RewardSettings, build_settings, cache_tree
from mora_data.sources.benchmarks import Benchmarks

TREE: dict[str, Any] = {
    "name": "mine",
    "source": {"kind": "jsonl", "licence": "cc0-1.0"},
    "policy": {"engine": "scripted"},
    "presample": {"enabled": False, "floors": {"helpful": 0.1, "harmless": 0.1, "truthful": 0.1}},
    "fuse": {"arms": ["identity"]},
    "rollout": {"n": 6},
    "select": {"selector": "weighted_sum"},
    "publish": {"configs": ["preference", "scored"]},
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with rows, whose modules can be imported."""
    rows = [{"prompt": f"How do I store {i} bottles of oil?"} for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(here: Path, tree: dict[str, Any]) -> Summary:
    """The build as a new process would run it: its plug-ins are imported again."""
    own = [n for n, m in sys.modules.items() if str(here) in str(getattr(m, "__file__", ""))]
    for name in own:
        del sys.modules[name]
    for cached in here.rglob("__pycache__"):
        shutil.rmtree(cached)
    stats = RunStats()
    options = BuildOptions(data=(here / "rows.jsonl",), out=here / "run")
    summary, failure = run_build(build_settings(tree), options, Progress(stats, True))
    assert failure is None
    return summary


def pairs(here: Path) -> list[tuple[str, str]]:
    import pyarrow.parquet as pq

    rows = pq.read_table(here / "run" / "dataset" / "preference").to_pylist()
    return [(r["chosen"][0]["content"], r["rejected"][0]["content"]) for r in rows]


SELECTOR = """
import numpy as np

def pick(batch):
    total = batch.margins_P_N_N_D.sum(-1)
    return np.where(batch.allowed_P_N_N() & (total > 0), {sign} * total, -np.inf)
"""


def test_a_selector_edited_in_place_selects_other_pairs_and_asks_no_policy(here: Path) -> None:
    tree = {**TREE, "select": {"selector": "picks:pick", "balance_length": False}}
    (here / "picks.py").write_text(SELECTOR.format(sign=1))
    run(here, tree)
    largest = pairs(here)
    assert run(here, tree).requests == 0 and pairs(here) == largest
    (here / "picks.py").write_text(SELECTOR.format(sign=-1))
    assert run(here, tree).repeated == 0
    smallest = pairs(here)
    assert len(smallest) > 5 and set(smallest) != set(largest)
    # pairs are there, though none is published
    assert run(here, {**tree, "publish": {"configs": ["scored"]}}).pairs == len(smallest)


def test_a_source_edited_in_place_is_mined_again(here: Path) -> None:
    code = """
from mora_data.sources import ParsedRow
from mora_data.types import Message

class Rows:
    required = (frozenset({"prompt"}),)
    def __init__(self, settings): ...
    def files(self): return []
    def parse(self, row, file):
        return ParsedRow((Message(role="user", content=row["prompt"] + END),))
""".lstrip()
    (here / "mining.py").write_text(code + 'END = ""\n')
    tree = {**TREE, "source": {"kind": "mining:Rows", "licence": "cc0-1.0"}}
    run(here, tree)
    before = {p.split('"content":"')[1][:40] for p in prompts(here)}
    (here / "mining.py").write_text(code + 'END = " Please be short."\n')
    run(here, tree)
    assert before and all("Please be short." in p for p in prompts(here))


def prompts(here: Path) -> list[str]:
    return (here / "run" / "parts" / "00000" / "prompts.jsonl").read_text().splitlines()


def test_a_reward_edited_in_place_is_scored_again_and_nothing_else(here: Path) -> None:
    code = """
def of(messages, answer):
    return {value}
"""
    (here / "rule.py").write_text(code.format(value="min(len(answer) / 1000, 1)"))
    rewards = {"short": [{"kind": "python", "path": "rule:of"}]}
    tree = {**TREE, "dimensions": ["helpful", "short"], "rewards": rewards}
    tree["presample"] = {"enabled": False, "floors": {"helpful": 0.1, "short": 0.0}}
    tree["publish"] = {**TREE["publish"], "stage_order": ["helpful", "short"]}
    tree["select"] = {"confirm": False}
    run(here, tree)
    before = scores(here, "short")
    (here / "rule.py").write_text(code.format(value="1 - min(len(answer) / 1000, 1)"))
    again = run(here, tree)
    after = scores(here, "short")
    assert again.requests == 0 and len(after) == len(before)
    assert after == pytest.approx([1 - v for v in before])


def scores(here: Path, dimension: str) -> list[float]:
    import pyarrow.parquet as pq

    rows = pq.read_table(here / "run" / "parts" / "00000" / "scores.parquet").to_pylist()
    return [r["value"] for r in rows if r["dimension"] == dimension and r["purpose"] == "score"]


def test_a_rubric_edited_in_place_asks_the_judge_again_and_nobody_else(here: Path) -> None:
    rubric = here / "helpful.j2"
    shutil.copy(resources.folder("templates") / "judge" / "helpful.j2", rubric)
    tree = {**TREE, "rewards": {"helpful": [{"kind": "judge", "template": str(rubric)}]}}
    first = run(here, tree)
    rubric.write_text(rubric.read_text().replace("Levels:", "The levels are:"))
    again = run(here, tree)
    verdicts = 12 * 6
    assert again.repeated == 0 and 0 < again.requests < first.requests
    assert again.requests >= verdicts * 0.9  # every answer once, by this judge alone


def test_what_the_partition_key_holds(here: Path) -> None:
    (here / "near.py").write_text("def to(a, b):\n    return 1.0\n")
    tree = {
        **TREE,
        "heldout_judge": {"engine": "scripted"},
        "fuse": {"arms": ["fused"], "subject": "near:to"},
    }

    def context_of(tree: dict[str, Any]) -> Any:
        return load_context(build_settings(tree), "publish", Benchmarks({}), Secret())

    before = context_of(tree)
    assert {"heldout/helpful", "heldout/harmless", "heldout/truthful"} <= before.templates.keys()
    assert {"fuse.subject", "select.selector", "rewards.helpful.0"} <= before.code.keys()
    (here / "near.py").write_text("def to(a, b):\n    return 0.9\n")
    after = context_of(tree)
    changed = {k for k in before.code if before.code[k] != after.code[k]}
    assert changed == {"fuse.subject"}


@pytest.mark.parametrize(
    ("changed", "reopened", "measured"),
    [
        ({"policy.local": {"window": 7, "max_batch": 3}}, False, False),
        (
            {"policy.concurrency": 3, "policy.timeout_s": 5, "judge.local": {"window": 7}},
            False,
            False,
        ),
        ({"scripted.n_prompts": 3}, False, False),
        ({"rewards": {"helpful": [{"kind": "judge", "concurrency": 3}]}}, False, False),
        ({"publish.test_share": 0.5, "limits.max_tokens": 9, "mine.limit": 3}, False, False),
        (
            {"ray.workers": 3, "executor": "ray", "name": "other", "presample.canaries": 3},
            False,
            False,
        ),
        ({"heldout_judge": {"engine": "scripted"}}, True, False),
        ({"select.selector": "weighted_sum"}, True, False),
        ({"fuse.retries": 1, "rollout.n": 7, "rewriter.top_p": 0.5}, True, False),
        ({"policy.temperature": 0.5}, True, True),
        ({"scripted.world": None}, True, True),
        ({"rewards": {"helpful": [{"kind": "judge", "weight": 3}]}}, True, True),
        ({"policy.extra_body": {"top_k": 3}, "policy.engine": "openai"}, True, True),
    ],
    ids=str,
)
def test_what_a_changed_setting_opens_again(
    tmp_path: Path, changed: dict[str, Any], reopened: bool, measured: bool
) -> None:
    from mora_data.engines import connect
    from mora_data.run.partitions import Partition
    from mora_data.settings import load_settings

    part = Partition(tmp_path, 0)
    part.folder.mkdir(parents=True)
    (part.folder / "prompts.jsonl").write_text("{}")
    base = {
        "policy.engine": "mora_data.simulator.engine:open_simulator",
        "policy.model": "m",
        "policy.base_url": "http://127.0.0.1:1",
    }

    def keys(more: dict[str, Any]) -> tuple[str, str]:
        settings = load_settings("pku-saferlhf", {**base, **more})
        engines = connect(settings, False, RunStats(), tmp_path, lambda text: None)
        context = load_context(settings, "publish", Benchmarks({}), Secret())
        return context.partition_key(engines, part), context.judge_stats_key(engines)

    before, after = keys({}), keys(changed)
    assert [a != b for a, b in zip(before, after, strict=True)] == [reopened, measured]


class CalmServer(ThreadingHTTPServer):
    """The server of the page's example, which counts its calls; it refuses connections until it is
    started."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler, bind_and_activate=False)
        self.server_bind()
        self.calls: list[str] = []
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)

    def start(self) -> None:
        self.server_activate()
        self._thread.start()

    def stop(self) -> None:
        if self._thread.is_alive():
            self.shutdown()
            self._thread.join()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: CalmServer

    def do_POST(self) -> None:
        text = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"]
        self.server.calls.append(text)
        body = json.dumps({"calm": 1 / (1 + text.count("!") + len(text) % 7)}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def server() -> Iterator[CalmServer]:
    made = CalmServer()
    yield made
    made.stop()


def test_a_reward_with_its_own_server_and_setting(here: Path, server: CalmServer) -> None:
    import yaml

    page = [b for b in blocks("python", "yaml", page="docs/add-your-own.md") if b.file]
    written(here, [b for b in page if b.file.startswith("calm.")])
    tree = yaml.safe_load((here / "calm.yaml").read_text())
    tree["rewards"]["calm"][0]["url"] = f"http://127.0.0.1:{server.server_port}"
    tree |= {"policy": {"engine": "scripted"}, "rollout": {"n": 4}, "select": {"confirm": False}}
    tree["limits"] = {"max_error_share": 1}
    tree["publish"] = {**TREE["publish"], "stage_order": ["helpful", "harmless", "calm"]}

    assert reasons_without_a_server(here, tree) == {
        "raised URLError: <urlopen error [Errno 111] Connection refused>"
    }

    server.start()
    first = run(here, tree)
    asked = len(server.calls)
    assert asked == len(set(server.calls)) > 30 and first.repeated == 0
    assert read_json(here / "run" / "manifest.json")["errors"] == 0
    assert run(here, tree).requests == 0 and len(server.calls) == asked

    tree["rollout"] = {"n": 6}
    assert run(here, tree).repeated == 0
    new = server.calls[asked:]
    assert new and not set(new) & set(server.calls[:asked])

    asked = len(server.calls)
    tree["rewards"]["calm"][0]["url"] += "/moved"
    assert run(here, tree).requests == 0 and len(server.calls) == asked

    tree["rewards"]["calm"][0]["loudest"] = 0.5
    run(here, tree)
    assert max(scores(here, "calm")) <= 0.5


def reasons_without_a_server(here: Path, tree: dict[str, Any]) -> set[str]:
    """Why scores are missing; the build ends with one line and no traceback."""
    stats = RunStats()
    options = BuildOptions(data=(here / "rows.jsonl",), out=here / "run")
    _, failure = run_build(build_settings(tree), options, Progress(stats, True))
    assert failure is not None and "\n" not in str(failure)
    lines = (here / "run" / "errors.jsonl").read_text().splitlines()
    return {json.loads(line)["error"] for line in lines}


LEVELS = """
import numpy as np
from mora_data.types import Score

class Levels:
    pass_threshold, calibration, step, fingerprint = 0.1, "identity", 0.0, ""

    def __init__(self, dimension, options, context):
        self.dimension, self.name = dimension, "levels"

    async def scores(self, ask, prompt_id, messages, answers, purpose):
        {first}
        return [Score(self.dimension, self.name, np.float32(len(a) % 7 / 7)) for a in answers]
"""


def levels(here: Path, first: str, **more: Any) -> dict[str, Any]:
    """A build with a reward whose method begins with the line `first`."""
    (here / "levels.py").write_text(LEVELS.format(first=first))
    for name in ("levels", "rule"):  # of another test's folder
        sys.modules.pop(name, None)
    return {
        **TREE,
        "dimensions": ["helpful", "level"],
        "rewards": {"level": [{"kind": "levels:Levels"}]},
        "publish": {**TREE["publish"], "stage_order": ["helpful", "level"]},
        "limits": {"max_error_share": 1},
        **more,
    }


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        ("return None", "gave NoneType in place of scores"),
        ("return [0.5 for a in answers]", "gave float in place of a score"),
        (
            "return [Score(self.dimension, self.name, 'high') for a in answers]",
            "gave a score of str in place of a number",
        ),
        ("raise ValueError('of no\\nuse')", "raised ValueError: of no use"),
        ("raise SystemExit(3)", "raised SystemExit: 3"),
        ("return [Score(self.dimension, self.name, None) for a in answers]", "no_score"),
    ],
)
def test_what_is_no_score_is_a_row_with_a_reason(here: Path, first: str, reason: str) -> None:
    presample = {"enabled": False, "floors": {"helpful": 0.1, "level": 0.1}}
    assert reasons_without_a_server(here, levels(here, first, presample=presample)) == {reason}


def test_what_a_function_raises_is_final(here: Path) -> None:
    (here / "rule.py").write_text("def of(messages, answer):\n    raise KeyError(answer[:0])\n")
    tree = levels(here, "", rewards={"level": [{"kind": "python", "path": "rule:of"}]})
    tree["presample"] = {"enabled": False, "floors": {"helpful": 0.1, "level": 0.1}}
    assert reasons_without_a_server(here, tree) == {"raised KeyError: ''"}
    assert read_json(here / "run/parts/00000/manifest.json")["owed"] == []


def test_judges_are_measured_again_where_a_reward_raised(here: Path) -> None:
    presample = {"reference": 4, "n": [2, 4], "canaries": 0, "repeat_share": 1}
    down = "if not __import__('os').path.exists('up'): raise OSError('down')"
    tree = levels(here, down, presample=presample)
    reasons_without_a_server(here, tree)
    assert read_json(here / "run/reference.json")["basis"] is None
    (here / "up").touch()
    run(here, tree)
    measured = read_json(here / "run/reference.json")
    assert measured["basis"] is not None and measured["noise"]["level"]["measured"]


def test_stated_noise_is_in_the_statistics_of_a_build_and_in_no_key_of_a_reward(here: Path) -> None:
    presample = {"reference": 8, "n": [4, 8], "canaries": 0, "repeat_share": 1}
    tree = levels(here, "", presample=presample)

    def sigma(**stated: float) -> float:
        level = {"kind": "levels:Levels", **stated}
        double = {**level, "weight": 3.0, "noise": 0.0}
        run(here, {**tree, "rewards": {"level": [level, double]}})
        return read_json(here / "run/reference.json")["noise"]["level"]["sigma"]

    assert sigma() == 0
    assert sigma(noise=0.2) == pytest.approx(0.2 / 4)
    assert sigma(noise=0.1) == pytest.approx(0.1 / 4)
    assert cache_tree(RewardSettings(noise=0.1)) == cache_tree(RewardSettings())


def test_a_reward_that_raises_costs_a_canary_and_not_the_run(here: Path) -> None:
    presample = {"reference": 4, "n": [2, 4], "canaries": 6, "max_drift": 1.0}
    first = "assert not purpose.startswith('score:canary:end'), 'down'"
    run(here, levels(here, first, presample=presample))
    drift = read_json(here / "run/canary.json")["drift"]
    assert drift["helpful"]["n"] == 6 and drift["level"]["n"] == 0


PARTS = """
import numpy as np
from mora_data.sources import ParsedRow

class Reward:
    pass_threshold, calibration, step, name, dimension = 0.1, "identity", 0.0, "mine", "level"
    def __init__(self, dimension, options, context): pass
    async def scores(self, ask, prompt_id, messages, answers, purpose): ...

class Bare(Reward):
    def __init__(self): pass
class Broken(Reward):
    def __init__(self, *a): raise OSError("no weights")
class Ranked(Reward):
    calibration = "percentile"
class Sure(Reward):
    pass_threshold = "high"
class Told(Reward):
    Settings = {"url": "x"}
class Nothing:
    def __init__(self, *a): pass

class Source:
    required = (frozenset({"prompt"}),)
    def __init__(self, settings): pass
    def files(self): return []
    def parse(self, row, file): return row["ask"]
class Row(Source):
    def parse(self, row, file): return row
class Mute(Source):
    def parse(self, row, file): return ParsedRow(())
class Number(Source):
    def parse(self, row, file): return ParsedRow(({"role": "user", "content": 3},))
class Listed(Source):
    def parse(self, row, file): return ParsedRow(({"role": ["user"], "content": "hi"},))
class Human(Source):
    def parse(self, row, file): return ParsedRow(({"role": "human", "content": "hi"},))
def leave(batch): raise SystemExit(2)

def boom(*a): raise RuntimeError("boom")
def flat(batch): return np.zeros(3)
def words(x, y): return "high"
"""


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rewards.level": {"kind": "parts:Bare"}}, "parts:Bare' raised TypeError: Bare.__init__"),
        (
            {"rewards.level": {"kind": "parts:Broken"}},
            r"raised OSError: no weights \(parts.py, line 13\)",
        ),
        (
            {"rewards.level": {"kind": "parts:Ranked"}},
            "calibration of parts:Ranked is 'percentile'",
        ),
        ({"rewards.level": {"kind": "parts:Sure"}}, "pass_threshold of parts:Sure is 'high'"),
        ({"rewards.level": {"kind": "parts:Told"}}, "Settings of parts:Told must be a class"),
        (
            {"rewards.level": {"kind": "parts:Nothing"}},
            "without dimension, name, step, scores",
        ),
        ({"source.kind": "parts:Source"}, r"raised KeyError: 'ask' \(parts.py, line 27\)"),
        ({"source.kind": "parts:Row"}, "gave dict of a row, not a ParsedRow"),
        ({"source.kind": "parts:Mute"}, r"gave \(\) of row 0 of .*rows.jsonl: messages are turns"),
        ({"source.kind": "parts:Number"}, "'content': 3}.* of row 0"),
        ({"source.kind": "parts:Listed"}, "'role': \\['user'\\].* of row 0"),
        ({"source.kind": "parts:Human"}, "'role': 'human'.* of row 0"),
        ({"select.selector": "parts:leave"}, "selector 'parts:leave' raised SystemExit: 2"),
        (
            {"select.selector": "gone:pick"},
            "can't load select.selector 'gone:pick': No module named 'gone' beside",
        ),
        ({"source.kind": "parts:Nothing"}, "gave Nothing without required, files, parse"),
        ({"select.selector": "parts:boom"}, "select.selector 'parts:boom' raised RuntimeError"),
        ({"select.selector": "parts:flat"}, r"gave an array of \(3,\) in place of \(\d+, 6, 6\)"),
        ({"policy.engine": "parts:boom"}, "policy.engine 'parts:boom' raised RuntimeError: boom"),
        ({"policy.engine": "parts:Nothing"}, "gave Nothing without model, revision, extra"),
        ({"fuse.subject": "parts:words", "fuse.arms": ["fused"]}, "raised ValueError: could not"),
        ({"fuse.subject": "wrong:part", "fuse.arms": ["fused"]}, "can't load .*invalid syntax"),
    ],
)
def test_a_fault_of_a_part_of_ones_own_is_one_line(
    here: Path, change: dict[str, Any], says: str
) -> None:
    (here / "parts.py").write_text(PARTS)
    (here / "wrong.py").write_text("def part(:\n")
    sys.modules.pop("parts", None)
    dims = {"dimensions": ["helpful", "level"], "publish.stage_order": ["helpful"]}
    settings = build_settings(TREE, {**(dims if "rewards.level" in change else {}), **change})
    options = BuildOptions(data=(here / "rows.jsonl",), out=here / "run")
    stats = RunStats()
    with pytest.raises(MoraError, match=says) as told:
        raise run_build(settings, options, Progress(stats, True))[1] or AssertionError
    assert "\n" not in str(told.value)


def test_an_unknown_setting_of_a_plug_in_names_the_nearest(here: Path) -> None:
    page = [b for b in blocks("python", page="docs/add-your-own.md") if b.file == "calm.py"]
    written(here, page)
    wrong = {"calm": [{"kind": "calm:Calm", "uri": "http://127.0.0.1:1"}]}
    tree = {**TREE, "dimensions": ["helpful", "calm"], "rewards": wrong, "presample": {}}
    with pytest.raises(Exception, match=r"rewards\.calm\.uri.*did you mean 'url'"):
        run(here, tree)
