"""Does a dry run's interval hold what the build then takes?

    python -m benchmarks.dry_run [--builds 20] [--prompts 48] [--first 0]

Builds of different settings on models that the dry run knows nothing of: another program's
simulator, in either world, whose answers are 0.3 to 0.65 of max_tokens long on average, whose
tokens are of another size than ours, and which costs money. Each build is estimated twice before it
runs, by the dry run alone and by a probe of 16 of its prompts; then it runs to its selected pairs,
and its requests, tokens (in and out together) and money are looked up in the intervals. Everything
is drawn from the number of the build, so one build is the same wherever the list begins.

    hit      the interval holds what the build took
    width    its high end over its low one
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from mora_data.cli.dry_run import BuildEstimate, estimate, probe_build
from mora_data.engines.engine import OnRecord, Shared, n_per_request
from mora_data.pipeline import run_build
from mora_data.run.cost import load_prices
from mora_data.run.log import Record
from mora_data.run.progress import Progress
from mora_data.run.stats import RunStats
from mora_data.settings import BuildOptions, BuildSettings, RoleSettings, load_settings
from mora_data.simulator.engine import CHARS_PER_TOKEN, Simulator, _judged
from mora_data.text import n_tokens
from mora_data.types import Request

PRICES = {"policy-x": {"in": 1, "out": 3}, "judge-x": {"in": 2, "out": 6}}
SIMULATED_TOKENS = 90  # of the simulator's answers, on average
WHAT = ("requests", "tokens", "money", "pairs")


class OtherEngine(Simulator):
    """The simulator under another name, with its own count of tokens.

    `extra_body` of its role says `longer`, the length of its answers beside the simulator's, and
    `size`, its tokens for one of ours; it is part of no request.
    """

    simulated = False

    def __init__(self, role: RoleSettings, build: BuildSettings, stats: RunStats) -> None:
        super().__init__(build.scripted, build.seed, stats, n_per_request(role))
        self.model = role.model or ""
        told = role.extra_body
        self._longer, self._size = float(told["longer"]), float(told["size"])

    async def send(
        self, request: Request, request_bytes: bytes, seed: int, on_record: OnRecord
    ) -> Record:
        def counted(record: Record) -> None:
            n_in, n_out, _ = record.tokens
            if request.role == "policy":
                n_out = round(n_out * self._longer)
            elif request.purpose.startswith(("score", "repeat", "confirm")):
                answer = _judged(request.messages[-1]["content"])[1]
                n_in += round(self._longer * n_tokens(answer) - len(answer) / CHARS_PER_TOKEN)
            said = Record(
                record.asked,
                record.answers,
                (round(n_in * self._size), round(n_out * self._size), 0),
            )
            self._stats.simulated -= 1
            self._stats.sent += 1
            on_record(said)
            kept.append(said)

        kept: list[Record] = []
        await super().send(request, request_bytes, seed, counted)
        return kept[0]


def open_other(
    role: RoleSettings, build: BuildSettings, stats: RunStats, shared: Shared
) -> OtherEngine:
    """The engine of a role, for `policy.engine`."""
    return OtherEngine(role, build, stats)


def settings_of(number: int, prompts: int, prices: Path) -> BuildSettings:
    """The settings of one build, drawn from its number."""
    rng = random.Random(f"dry run {number}")
    max_tokens = rng.choice((128, 256, 512, 1024))
    arms = rng.choice(
        (["fused"], ["fused"], ["identity", "fused"], ["identity", "single", "generic", "fused"])
    )
    told = {
        "longer": rng.uniform(0.3, 0.65) * max_tokens / SIMULATED_TOKENS,
        "size": rng.uniform(0.85, 1.2),
    }
    engine = "benchmarks.dry_run:open_other"
    changed: dict[str, object] = {
        "mine.limit": prompts,
        "limits.prices": str(prices),
        "scripted.world": rng.choice(("planted", "planted", None)),
        "seed": number,
        "policy": {"engine": engine, "model": "policy-x", "max_tokens": max_tokens},
        "judge": {"engine": engine, "model": "judge-x"},
        "presample.n": rng.choice(([4, 8], [8, 16], [8, 16, 32], [6])),
        "presample.step": rng.choice((None, None, 2)),
        "presample.canaries": rng.choice(("auto", 0)),
        "fuse.arms": arms,
        "fuse.checks": rng.choice((["harm"], [], ["harm", "intent"])),
        "fuse.candidates": rng.choice((1, 1, 2)),
        "rollout.n": rng.choice((8, 16)),
        "select.confirm_top": rng.choice((1, 3)),
        "select.allow_unreliable": True,
        "presample.max_drift": 10,
        "policy.n_per_request": rng.choice(("all", "all", 1, 4)),
        "dimensions": rng.choice((["helpful", "harmless", "truthful"], ["helpful", "harmless"])),
    }
    for role in ("policy", "rewriter", "judge"):
        changed[f"{role}.extra_body"] = told
    found = load_settings("pku-saferlhf", changed)
    order = [d for d in found.publish.stage_order if d in found.dimensions]
    return found.model_copy(
        update={"publish": found.publish.model_copy(update={"stage_order": order})}
    )


def measured(number: int, prompts: int) -> dict[str, Any]:
    """One build: what it took, and both intervals of each figure."""
    with TemporaryDirectory() as folder:
        prices = Path(folder) / "prices.yaml"
        prices.write_text(json.dumps({"currency": "USD", "models": PRICES}))
        settings = settings_of(number, prompts, prices)
        blind = estimate(settings, True, [], "select")
        probed = probe_build(
            settings, BuildOptions(True, (), Path(folder) / "probe", "select"), quiet=True
        )
        stats = RunStats()
        options = BuildOptions(True, (), Path(folder) / "run", "select")
        summary, failure = run_build(settings, options, Progress(stats, quiet=True))
        cost = load_prices(str(prices)).cost(stats.by_account)
    took = {
        "requests": stats.requests,
        "tokens": stats.tokens_in + stats.tokens_out,
        "money": cost,
        "pairs": summary.pairs,
    }
    return {
        "build": number,
        "failure": failure and str(failure),
        "took": took,
        "dry run": ends_of(blind),
        "probe": ends_of(probed),
    }


def ends_of(found: BuildEstimate) -> dict[str, tuple[float, float] | None]:
    """The intervals of an estimate."""
    tokens = [i + o for i, o in zip(found.tokens_in, found.tokens_out, strict=True)]
    return {
        "requests": found.requests,
        "tokens": (tokens[0], tokens[1]),
        "money": found.cost,
        "pairs": found.pairs,
    }


def table(rows: list[Mapping[str, Any]]) -> str:
    """Hits and widths by figure, for both ways."""
    lines = [
        "| figure | dry run: hits | median width | widest | probe: hits | median width | widest |",
        "|---|---|---|---|---|---|---|",
    ]
    for what in WHAT:
        cells = [what]
        for way in ("dry run", "probe"):
            ends = [r[way][what] for r in rows]
            hits = sum(
                low <= r["took"][what] <= high for r, (low, high) in zip(rows, ends, strict=True)
            )
            widths = [high / low if low else float("inf") for low, high in ends]
            said = [f"{w:.2f}" if w < 1e9 else "from 0" for w in (median(widths), max(widths))]
            cells += [f"{hits} of {len(rows)}", *said]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Prints each build, then the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--builds", type=int, default=20, help="how many (default: 20)")
    parser.add_argument("--prompts", type=int, default=48, help="of each (default: 48)")
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    args = parser.parse_args()
    rows: list[Mapping[str, Any]] = []
    for number in range(args.first, args.first + args.builds):
        rows.append(measured(number, args.prompts))
        print(json.dumps(rows[-1]), flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
