"""An evaluation over HTTP: 1,000 prompts x 3 models, one judge call each, every request distinct,
64 slots.

The floor is the engine itself: a build up to the scores with as many requests on the same server.
What the evaluation adds are its statistics: intervals, tests, tables.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.common import MORA_DATA, Figure, Scale, checked, median, run
from benchmarks.endpoint import BUILD, JUDGE_USER, Bench, Job, K, Server, prompt_text

MODELS = 3
GOAL = 1.1
STATISTICS = """
import sys, time
from mora_data.evaluate import markdown
from mora_data.evaluate.asking import EvalModel
from mora_data.evaluate.prompts import EvalRow
from mora_data.evaluate.report import About, result
n = int(sys.argv[1])
models = [EvalModel("sft", "0", ""), *(EvalModel("mora", str(s), "") for s in range(3))]
rows = [EvalRow("plain", str(i), str(i), m.name, m.seed, 0, "", None, {
         "refusal": 0.0, "degenerate": 0.0, "length": 50 + (i * 7) % 60, "win": i % 3 / 2, "length_gap": i * 11 % 41 - 20,
         **{f"reward_{d}": ((i * k + int(m.seed)) % 5) / 4 for k, d in enumerate("abc", 3)}}) for m in models for i in range(n // 4)]
begun = time.process_time()
markdown(result(rows, models, "sft", dict.fromkeys("abc", 0.75), About(False, "j")))
print(time.process_time() - begun)
"""  # noqa: E501


def figures(scale: Scale) -> Iterator[Figure]:
    """CPU per request beside the engine's, in turn, and the statistics of 40,000 rows."""
    m = 100 if scale.quick else 1000
    requests = 2 * MODELS * m
    with Server() as server, TemporaryDirectory() as name:
        folder, url = Path(name), f"http://127.0.0.1:{server.port}/v1"
        (folder / "judge.j2").write_text(
            f"{{% block user %}}{JUDGE_USER}{{% endblock %}}\n", "utf-8"
        )
        build = {
            **BUILD,
            "rewards": {"helpful": [{"kind": "judge", "template": str(folder / "judge.j2")}]},
            "judge": {"base_url": url, "model": "stub-judge"},
        }
        (folder / "build.yaml").write_text(json.dumps(build), "utf-8")
        (folder / "prompts.jsonl").write_text(
            "".join(json.dumps({"prompt": prompt_text(i)}) + "\n" for i in range(m)), "utf-8"
        )
        bench, floors, ours = Bench(server, folder / "floor"), [], []
        for repeat in range(scale.repeats):
            floors += [
                r.done for r in bench.do(Job(requests // (2 * K), latency_ms=0, until="score"))
            ]
            server.call("/_reset", {"latency_ms": 0})
            command = (
                *MORA_DATA,
                "evaluate",
                *(f"m{i}={url}#stub-gen" for i in range(MODELS)),
                "--source",
                folder / "build.yaml",
                "--prompts",
                folder / "prompts.jsonl",
                "--out",
                folder / f"out{repeat}",
                "--json",
                "--no-win-rate",
            )
            ours.append(checked(run(command, limit_s=600), "the evaluation"))
            seen = server.call("/_stats")
            if seen["answered_again"] or seen["received"] != requests:
                raise RuntimeError(f"the evaluation left or repeated answers: {seen}")
    cpu, floor = (1000 * median(runs, lambda r: r.cpu_s) / requests for runs in (ours, floors))
    yield Figure(
        f"evaluate, {m:,} prompts x {MODELS} models, CPU ms/request",
        "<= 1.1 x the engine's",
        f"{cpu:.3f}",
        f"{floor:.3f} build --until score",
        cpu / floor,
        cpu / floor <= GOAL,
    )
    peak, below = (median(runs, lambda r: r.peak_mb) for runs in (ours, floors))
    yield Figure("same, peak PSS MB", "-", f"{peak:.0f}", f"{below:.0f}", peak / below)
    rows = 4000 if scale.quick else 40_000
    spent = float(
        checked(
            run((sys.executable, "-c", STATISTICS, str(rows)), limit_s=600), "the statistics"
        ).out
    )
    yield Figure(f"statistics of {rows:,} rows, CPU s", "seconds", f"{spent:.1f}")
