"""What a confirmed pair costs a server: tokens computed, by stage and purpose, of every call that a
build makes of the simulator.

    python -m benchmarks.cost [--prompts 1000] [--set KEY=VALUE ...] [--baselines] [--keep DIR]

Tokens computed: those of a prompt that are in no 16-token block of an endless prefix cache, one
cache for the policy, which also rewrites, and one for the judge; and those of the answers. The
demo is the bundled rows; `--prompts` adds so many generated ones. Beside it two baselines of the
same parts:

    fixed 64      64 presamples of every prompt and 64 rollouts, each with one verdict in every
                  dimension; else as the build
    best of 16    16 answers to the prompt as it is, a verdict each, the best against the worst
                  that it beats everywhere; no pair is confirmed
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mora_data.types import Answer, Request

BASELINES = {
    "fixed 64": ("presample.n=[64]", "presample.before=0", "rollout.n=64"),
    "best of 16": ("presample.enabled=false", "fuse.arms=[identity]", "select.confirm=false"),
}
PARTS = (
    "presample: answers",
    "presample: verdicts",
    "presample: retests",
    "before fusion: answers",
    "before fusion: verdicts",
    "fuse: rewrites",
    "fuse: checks",
    "rollout: answers",
    "score: verdicts",
    "select: confirmation",
)


@dataclass(slots=True)
class Part:
    """Calls of one stage and purpose."""

    calls: int = 0
    tokens_in: int = 0
    computed: int = 0
    tokens_out: int = 0


@dataclass(slots=True)
class Cost:
    """What a build took."""

    prompts: int = 0
    pairs: int = 0
    parts: dict[str, Part] = field(default_factory=lambda: {name: Part() for name in PARTS})

    @property
    def computed(self) -> int:
        """Tokens of prompts and answers."""
        return sum(p.computed + p.tokens_out for p in self.parts.values())

    @property
    def verdicts(self) -> int:
        """Scores that the judge was asked for, once more or not; checks of rewrites are none."""
        names = (n for n in PARTS if n.split(": ")[1] in ("verdicts", "retests", "confirmation"))
        return sum(self.parts[n].calls for n in names)


def part_of(request: Request) -> str:
    """Stage and purpose of a call."""
    kind = request.purpose.split(":")
    stages = {"presample": "presample", "before": "before fusion"}
    if request.role == "policy":
        return f"{stages.get(kind[0], 'rollout')}: answers"
    if request.role == "rewriter":
        return "fuse: rewrites"
    if kind[0] == "score":
        return f"{stages.get(kind[1], 'score')}: verdicts"
    named = {"repeat": "presample: retests", "confirm": "select: confirmation"}
    return named.get(kind[0], "fuse: checks")


def measured(sets: Sequence[str], prompts: int, out: Path) -> Cost:
    """The cost of a build of the bundled rows and so many generated prompts."""
    from mora_data.cli import main as command
    from mora_data.cli.rehearsal import PrefixCache
    from mora_data.simulator.engine import Simulator

    cost, answer = Cost(), Simulator.answer
    caches: dict[bool, PrefixCache] = {True: PrefixCache(), False: PrefixCache()}

    def counted(self: Simulator, request: Request, seed: int) -> list[Answer]:
        answers = answer(self, request, seed)
        said = "".join(f"<|{m['role']}|>\n{m['content']}\n" for m in request.messages)
        sent, computed = caches[request.role in ("policy", "rewriter")].add(said)
        part = cost.parts[part_of(request)]
        part.calls += 1
        part.tokens_in += sent
        part.computed += computed
        part.tokens_out += sum(a.tokens_out for a in answers)
        return answers

    Simulator.answer = counted  # type: ignore[method-assign,assignment]
    try:
        words = [w for s in (f"scripted.n_prompts={prompts}", *sets) for w in ("--set", s)]
        said, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
            code = command(
                [
                    *("build", "--source", "pku-saferlhf", "--sample", "--engine", "scripted"),
                    *("--until", "select", "--json", "--out", str(out), *words),
                ]
            )
    finally:
        Simulator.answer = answer  # type: ignore[method-assign]
    if code:
        raise RuntimeError(f"the build ended with {code}: {errors.getvalue()[-400:]}")
    found = json.loads(said.getvalue())
    cost.prompts, cost.pairs = found["counts"]["mine"]["kept"], found["pairs"]
    return cost


def table(cost: Cost) -> Iterator[str]:
    """The parts as Markdown, per confirmed pair."""
    yield "| | calls a prompt | tokens a pair: in | computed | out |\n|---|---:|---:|---:|---:|"
    for name, p in [*cost.parts.items(), ("all", _sum(cost.parts.values()))]:
        each = (p.tokens_in, p.computed, p.tokens_out)
        cells = " | ".join(f"{v / max(cost.pairs, 1):,.0f}" for v in each)
        yield f"| {name} | {p.calls / cost.prompts:.1f} | {cells} |"


def _sum(parts: Iterator[Part] | Sequence[Part]) -> Part:
    total: Counter[str] = Counter()
    for p in parts:
        for name in Part.__slots__:
            total[name] += getattr(p, name)
    return Part(**total)


def line(name: str, cost: Cost, whole: int | None = None) -> str:
    share = f", {cost.computed / whole:.1%} of fixed 64" if whole else ""
    return (
        f"{name}: {cost.prompts} prompts, {cost.pairs} pairs, {cost.verdicts / cost.prompts:.1f}"
        f" verdicts a prompt, tokens computed {cost.computed / max(cost.pairs, 1):,.0f} a pair,"
        f" {cost.computed / cost.prompts:,.0f} a prompt{share}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=0, help="generated ones, beside the rows")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--baselines", action="store_true")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the run folder here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=None) as folder:
        cost = measured(args.set, args.prompts, args.keep or Path(folder) / "run")
        print("\n".join(table(cost)), flush=True)
        whole = None
        for name, sets in BASELINES.items() if args.baselines else ():
            other = measured([*args.set, *sets], args.prompts, Path(folder) / name.split()[0])
            whole = other.computed if whole is None else whole
            print(line(name, other, whole), flush=True)
        print(line("the build", cost, whole))


if __name__ == "__main__":
    main()
