"""The experiment as steps. Each leaves a file in OUT/steps and is skipped when that is there; each
starts what it needs.

    lab = Lab(out, SCALES["cpu"], seeds=3)
    table(lab)                      everything; or any one step: built(lab, q=0.1, seed=0)
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import analysis
from .building import build, count_pairs, fused, level, plain, write_pairs
from .scale import Scale, without_skill
from .training import METRICS, Scores, dpo, evaluate, scores
from .world import DIMENSIONS

GATE = 0.8  # mean helpful reward on plain H questions of the pool, under which it is trained on
ROUNDS = 4
_WITHIN: list[float] = []  # seconds of CPU of the steps that each step under way has started
SUM, ADDED = "identity_sum", "additive"
# method -> arm and selector, where it is not its own name and `dominance`
SELECTORS = {SUM: ("identity", "total")}


@dataclass(frozen=True, slots=True)
class Lab:
    """Where the experiment lies, how large it is and how often it is repeated."""

    out: Path
    scale: Scale
    seeds: int

    def step(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What the step found; from its file where it was done before. `cpu_s` is without the steps
        that it started itself."""
        file = self.out / "steps" / f"{name}.json"
        if file.is_file():
            found: dict[str, Any] = json.loads(file.read_text("utf-8"))
            return found
        file.parent.mkdir(parents=True, exist_ok=True)
        print(f"{name} ...", file=sys.stderr, flush=True)
        cpu, wall = _cpu(), time.monotonic()
        _WITHIN.append(0.0)
        try:
            found = work()
        finally:
            within, took = _WITHIN.pop(), _cpu() - cpu
            if _WITHIN:
                _WITHIN[-1] += took
        found |= {"cpu_s": round(took - within, 1), "wall_s": round(time.monotonic() - wall, 1)}
        part = file.with_suffix(".part")
        part.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
        part.replace(file)
        print(
            f"{name}: {found['cpu_s']:.0f} s of CPU, {found['wall_s']:.0f} s",
            file=sys.stderr,
            flush=True,
        )
        return found

    @property
    def methods(self) -> list[str]:
        """What is trained on: the arms under `dominance`, identity under the sum, perhaps identity
        with fused added."""
        return [*self.scale.arms, SUM, *([ADDED] if self.scale.added else [])]


def base(lab: Lab, q: float) -> Path:
    """The base policy with latent skill q; trained in as many rounds as it needs to be competent.

    Raises:
        SystemExit: it is not after the last.
    """
    before, found = None, {"helpful_H": 0.0}
    for part in range(ROUNDS):
        folder = lab.out / f"base-q{q}-{part}"

        def train(
            part: int = part, folder: Path = folder, before: Path | None = before
        ) -> dict[str, Any]:
            return _train_base(lab, q, folder, before, part)

        lab.step(folder.name, train)
        found = lab.step(f"gate-q{q}-{part}", lambda folder=folder: gate(lab, folder))  # type: ignore[misc]
        if found["helpful_H"] >= GATE or lab.scale.name == "toy":
            return folder
        before = folder
    raise SystemExit(
        f"error: the base policy is helpful in {found['helpful_H']:.2f} of plain H questions after"
        f" {ROUNDS} rounds, {GATE} are needed: stop here"
    )


def _train_base(lab: Lab, q: float, folder: Path, before: Path | None, part: int) -> dict[str, Any]:
    from .model import make  # torch

    return make(folder, lab.scale.known(), lab.scale.model, q, 0, before, part)


def gate(lab: Lab, model: Path) -> dict[str, Any]:
    """How helpful one answer to each plain H question of the pool is."""
    rows = [r for r in plain(lab.scale.splits()["pool"], 1) if r["category"] == "H"]
    found = evaluate({"base@0": model}, rows, lab.out / f"gate-{model.name}", lab.scale, answers=1)
    return {
        "helpful_H": float(found.methods["base"][0, :, METRICS.index("reward_helpful")].mean()),
        "needed": GATE,
        "model": model.name,
    }


def built(lab: Lab, q: float, seed: int) -> Path:
    """The build of one seed."""
    run, model = lab.out / f"run-q{q}-s{seed}", base(lab, q)

    def work() -> dict[str, Any]:
        build(run, lab.scale, model, seed)
        rows = level(run)
        (lab.out / f"level-q{q}-s{seed}.json").write_text(json.dumps(rows), "utf-8")
        return {
            "pairs": count_pairs(run),
            "mined": len({r["prompt_id"] for r in rows if r["arm"] == "identity"}),
        }

    lab.step(f"build-q{q}-s{seed}", work)
    return run


def summed(lab: Lab, q: float, seed: int) -> Path:
    """The same answers once more, pairs chosen by the plain sum."""
    run, other = built(lab, q, seed), lab.out / f"sum-q{q}-s{seed}"

    def work() -> dict[str, Any]:
        build(other, lab.scale, base(lab, q), seed, "total", start=run)
        return {"pairs": count_pairs(other)}

    lab.step(other.name, work)
    return other


def n_pairs(lab: Lab, q: float, seed: int) -> int:
    """Pairs for every method of this seed: what the poorest has."""
    built(lab, q, seed)
    summed(lab, q, seed)
    found, by_sum = (lab.step(f"{name}-q{q}-s{seed}", dict)["pairs"] for name in ("build", "sum"))
    each = [*(found.get(a, 0) for a in lab.scale.arms), by_sum.get("identity", 0)]
    if not min(each):
        raise SystemExit(f"error: an arm has no pair at all (q = {q}, seed {seed}): {found}")
    return min(*each, lab.scale.max_pairs)


def pairs(lab: Lab, q: float, method: str, seed: int, n: int) -> Path:
    """The dataset folder of a method's pairs."""
    out = lab.out / "pairs" / f"{method}-q{q}-s{seed}-n{n}"
    arm, selector = SELECTORS.get(method, (method, "dominance"))
    run = lab.out / f"{'run' if selector == 'dominance' else 'sum'}-q{q}-s{seed}"
    return out if (out / "README.md").is_file() else write_pairs(run, arm, n, out, seed)


def trained(lab: Lab, q: float, method: str, seed: int, rate: float, n: int | None = None) -> Path:
    """A checkpoint: the base policy after DPO on n of the method's pairs, as many as every method
    has where n is None.

    As many steps for all, whatever n is and whatever is added.
    """
    whole = n_pairs(lab, q, seed)
    steps = max(1, -(-whole // lab.scale.batch) * lab.scale.epochs)
    name = f"dpo-q{q}-{method}-s{seed}-lr{rate}" + (f"-n{n}" if n else "")
    out = lab.out / "models" / name

    def work() -> dict[str, Any]:
        if method == ADDED:
            added, original = (
                pairs(lab, q, "fused", seed, whole),
                pairs(lab, q, "identity", seed, whole),
            )
            found = dpo(added, base(lab, q), out, lab.scale, rate, seed, steps, original)
        else:
            found = dpo(
                pairs(lab, q, method, seed, n or whole),
                base(lab, q),
                out,
                lab.scale,
                rate,
                seed,
                steps,
            )
        kept = (
            "pairs",
            "steps",
            "seconds",
            "loss_first",
            "loss_last",
            "accuracy_last",
            "reward_margin_last",
        )
        return {k: found[k] for k in kept}

    lab.step(name, work)
    return out


def candidates(lab: Lab, i: int) -> dict[str, Path]:
    """The checkpoints of seed 0 at the i-th learning rate, of the two arms that the rate is chosen
    on."""
    q, rate = lab.scale.skills[0], lab.scale.learning_rates[i]
    return {f"{m}.{i}@0": trained(lab, q, m, 0, rate) for m in ("identity", "fused")}


def learning_rate(lab: Lab) -> float:
    """One for all: of the two that with the higher joint pass on plain questions of training
    topics, mean of identity and fused."""
    q = lab.scale.skills[0]

    def work() -> dict[str, Any]:
        models = candidates(lab, 0) | candidates(lab, 1)
        dev = without_skill(lab.scale.splits()["train"], lab.scale.n_dev, q)
        found = evaluate(
            {"base@0": base(lab, q), **models},
            plain(dev, 1),
            lab.out / "dev",
            lab.scale,
            lab.scale.test_answers,
        )
        joint = {m: _mean(v[0, :, METRICS.index("joint_pass")]) for m, v in found.methods.items()}
        best = max(range(2), key=lambda i: (joint[f"identity.{i}"] + joint[f"fused.{i}"], -i))
        return {"joint_pass": joint, "learning_rate": lab.scale.learning_rates[best]}

    return float(lab.step("rate", work)["learning_rate"])


def tested(lab: Lab, q: float, name: str, methods: Mapping[str, Callable[[int], Path]]) -> Scores:
    """Methods (seed -> checkpoint) and the base policy on the test topics' questions: plain ones,
    or fused where named so."""
    rows = (
        fused(lab.scale.splits()["test"])
        if name.startswith("fused")
        else plain(lab.scale.splits()["test"], 1)
    )
    out = lab.out / f"test-{name}-q{q}"

    def work() -> dict[str, Any]:
        models = {
            "base@0": base(lab, q),
            **{
                f"{m}@{s}": make_one(s) for m, make_one in methods.items() for s in range(lab.seeds)
            },
        }
        evaluate(models, rows, out, lab.scale, lab.scale.test_answers)
        return {"models": sorted(models)}

    lab.step(out.name, work)
    return scores(out / "rows.jsonl", [r["prompt"] for r in rows])


def finals(lab: Lab, name: str) -> Scores:
    """The first skill's test on `plain` or `fused` questions."""
    q = lab.scale.skills[0]
    return tested(lab, q, name, main_methods(lab, q))


def main_methods(lab: Lab, q: float) -> dict[str, Callable[[int], Path]]:
    """Every method at the chosen learning rate."""
    rate = learning_rate(lab)
    return {m: lambda seed, m=m: trained(lab, q, m, seed, rate) for m in lab.methods}  # type: ignore[misc]


def table(lab: Lab) -> dict[str, Any]:
    """P1, P2 and P4 of the first skill; results.json."""
    q, rows = lab.scale.skills[0], []
    for seed in range(lab.seeds):
        built(lab, q, seed)
        rows += [
            {**r, "seed": seed}
            for r in json.loads((lab.out / f"level-q{q}-s{seed}.json").read_text("utf-8"))
        ]
    others = [a for a in lab.scale.arms if a != "fused"]
    compared = [("fused", m, "joint_pass") for m in (*others, SUM)]
    moved = [(m, "base", f"reward_{d}") for m in (SUM, "identity") for d in DIMENSIONS]
    found, on_fused = (finals(lab, name) for name in ("plain", "fused"))
    reports = [
        json.loads((built(lab, q, s) / "report.json").read_text("utf-8")) for s in range(lab.seeds)
    ]
    return {
        "reports": [{k: r[k] for k in ("verdict", "reasons")} for r in reports],
        "cpu_s": _spent(lab.out),
        "scale": lab.scale.name,
        "seeds": lab.seeds,
        "q": q,
        "base": lab.step(base(lab, q).name, dict),
        "gate": lab.step(base(lab, q).name.replace("base", "gate"), dict),
        "rate": lab.step("rate", dict),
        "pairs": [n_pairs(lab, q, s) for s in range(lab.seeds)],
        "P1": analysis.data_level(rows, others),
        "P2": analysis.training_level(found, compared),
        "P4": analysis.training_level(found, moved),
        "against_base": analysis.training_level(
            found, [(m, "base", "joint_pass") for m in lab.methods]
        ),
        "fused_questions": analysis.training_level(
            on_fused, [("fused", m, "joint_pass") for m in (*others, SUM)]
        ),
    }


def _spent(out: Path) -> float:
    """Seconds of CPU of all steps."""
    return round(
        sum(json.loads(p.read_text("utf-8"))["cpu_s"] for p in (out / "steps").glob("*.json")), 1
    )


def _mean(values: Any) -> float:
    there = values[values == values]
    return float(there.mean()) if len(there) else 0.0


def _cpu() -> float:
    return sum(
        u.ru_utime + u.ru_stime
        for u in (resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )
